"""Listing folders: every image counts once, links are followed, and what is left out is named."""

from __future__ import annotations

import os

import pytest
from image_file_kinds import noise, saved

from lpips_lightning.io.image_files import find_images
from lpips_lightning.io.image_folders import HIDDEN, describe_left_out, list_images
from lpips_lightning.io.image_formats import image_suffixes

PNG = saved(noise(), "PNG")


@pytest.fixture
def put(tmp_path):
    """put(name, data): path of a new file below the folder."""

    def write(name, data=PNG):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path

    return write


def test_every_suffix_that_pillow_registers_for_an_image_counts(put, tmp_path):
    suffixes = image_suffixes()
    expected = {".gif", ".tga", ".jfif", ".jp2", ".ppm", ".webp", ".apng", ".mpo", ".avif", ".tiff", ".bmp", ".psd"}
    assert expected <= suffixes and not suffixes & {".pdf", ".eps", ".mpg", ".h5", ".grib", ".wmf", ".fits"}
    names = {f"{number}{suffix}" for number, suffix in enumerate(suffixes)}
    names |= {f"{number}{suffix.upper()}" for number, suffix in enumerate(suffixes, len(suffixes))}
    for name in names:
        put(name)
    found = list_images(tmp_path)
    assert {path.name for path in found.images.values()} == names and len(found.images) >= 60
    assert set(found.images) == {str(number) for number in range(2 * len(suffixes))}
    assert found.left_out == {}


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "PPM"])
def test_files_without_known_suffix_are_known_by_content_and_keep_their_whole_name(put, tmp_path, kind):
    for name in ("0001", "frame.0001", "frame.0002", "photo.jpg~"):
        put(name, saved(noise(), kind))
    put("notes")
    (tmp_path / "notes").write_text("P3 is no image here")
    put("BMW.me", b"BM is how this text starts, and it goes on for a while")
    found = list_images(tmp_path)
    assert list(found.images) == ["0001", "frame.0001", "frame.0002", "photo.jpg~"]
    assert found.left_out == {"BMW.me": "not an image", "notes": "not an image"}


def test_linked_folders_and_files_are_followed_and_loops_end(put, tmp_path):
    put("elsewhere/3.png")
    put("pred/0.png")
    scenes = put("pred/deep/1.png").parent
    (tmp_path / "pred/scene").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "pred/again").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "pred/4.png").symlink_to(tmp_path / "elsewhere/3.png")
    (scenes / "up").symlink_to(tmp_path / "pred")
    (scenes / "self").symlink_to(scenes)
    (tmp_path / "elsewhere/back").symlink_to(tmp_path / "pred")
    found = list_images(tmp_path / "pred")
    assert list(found.images) == ["0", "4", "again/3", "deep/1", "scene/3"]
    above = "a link to a folder above it"
    assert found.left_out == dict.fromkeys(["again/back", "deep/self", "deep/up", "scene/back"], above)


def test_what_is_left_out_has_a_reason(put, tmp_path):
    for name in ("a.png", "a.txt", "a.exr", "a.HDR", "a.heic", "a.mp4", "a.pdf", "a.npy", "a.CR2", "Thumbs.db"):
        put(name, PNG if name == "a.png" else b"text")
    for name in (".DS_Store", ".hidden.png", ".git/x.png", ".git/y.png"):
        put(name)
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.png")
    found = list_images(tmp_path)
    assert list(found.images) == ["a"]
    assert found.left_out == {
        ".DS_Store": HIDDEN,
        ".git": HIDDEN,
        ".hidden.png": HIDDEN,
        "Thumbs.db": HIDDEN,
        "a.CR2": "a camera's raw file",
        "a.HDR": "Radiance HDR, high dynamic range",
        "a.exr": "OpenEXR, high dynamic range",
        "a.heic": "HEIC",
        "a.mp4": "a video",
        "a.npy": "an array",
        "a.pdf": "a document",
        "a.txt": "not an image",
        "gone": "a broken link",
        "pipe.png": "not a regular file",
    }
    assert describe_left_out(found.left_out) == (
        "'a.CR2' (a camera's raw file), 'a.HDR' (Radiance HDR, high dynamic range), 'a.exr' (OpenEXR, high dynamic"
        " range), 'a.heic' (HEIC), 'a.mp4' (a video), 5 more, 4 hidden files"
    )


def test_damaged_and_missing_images_stay_in_the_list(put, tmp_path):
    put("broken.png", b"text")
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere")
    assert list(list_images(tmp_path).images) == ["broken", "gone"]


def test_find_images_warns_of_what_it_leaves_out_but_not_of_hidden_files(put, tmp_path):
    put("a.png")
    put(".DS_Store")
    put("Thumbs.db")
    assert list(find_images(tmp_path)) == ["a"]  # warnings are errors here
    put("b.txt", b"text")
    put("in/c.exr", b"text")
    said = r"folder: 2 files in '.*' left out: 'b.txt' \(not an image\), 'in/c.exr' \(OpenEXR, high dynamic range\)$"
    with pytest.warns(UserWarning, match=said):
        assert list(find_images(tmp_path)) == ["a"]


def test_a_folder_of_other_files_only_says_what_they_are(put, tmp_path):
    put("a.exr", b"text")
    with pytest.raises(FileNotFoundError, match=r"got none in '.*'; left out: 'a.exr' \(OpenEXR, high dynamic range\)"):
        find_images(tmp_path)


def test_names_that_clash_are_refused_across_links_and_suffixes(put, tmp_path):
    put("a", PNG)
    put("a.tga", saved(noise(), "TGA"))
    with pytest.raises(ValueError, match=r"folder: expected one file per name, got '.*/a' and '.*/a.tga'"):
        list_images(tmp_path)
