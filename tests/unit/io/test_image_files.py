"""Reading images as upright 8-bit RGB, listing folders, writing images."""

import numpy as np
import pytest
import torch
from PIL import Image

from lpips_lightning.io.image_files import find_images, image_size, read_image, write_image


@pytest.fixture
def rgb():
    """Eight rows of twelve pixels."""
    return np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)


def pixels(path):
    return read_image(path).permute(1, 2, 0).numpy()


def test_rgb_is_read_unchanged(rgb, tmp_path):
    Image.fromarray(rgb).save(tmp_path / "a.png")
    assert np.array_equal(pixels(tmp_path / "a.png"), rgb)


def test_gray_and_one_bit_are_repeated_over_channels(rgb, tmp_path):
    gray = Image.fromarray(rgb[..., 0])
    gray.save(tmp_path / "gray.png")
    gray.convert("1").save(tmp_path / "bits.png")
    assert np.array_equal(pixels(tmp_path / "gray.png"), rgb[..., :1].repeat(3, 2))
    assert set(np.unique(pixels(tmp_path / "bits.png"))) == {0, 255}


def test_palettes_are_resolved(rgb, tmp_path):
    palette = Image.fromarray(rgb).quantize(16)
    palette.save(tmp_path / "a.png")
    assert np.array_equal(pixels(tmp_path / "a.png"), np.asarray(palette.convert("RGB")))


def test_sixteen_bit_gray_keeps_its_brightness(tmp_path):
    Image.fromarray(np.array([[0, 257, 32768, 65535]], dtype=np.uint16)).save(tmp_path / "a.png")
    assert pixels(tmp_path / "a.png")[0, :, 0].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_pixels_are_composited_over_white(rgb, tmp_path, mode):
    image = Image.fromarray(rgb).convert(mode)
    alpha = np.full((8, 12), 255, np.uint8)
    alpha[:, :6] = 0
    image.putalpha(Image.fromarray(alpha))
    image.save(tmp_path / "a.png")
    found = pixels(tmp_path / "a.png")
    assert (found[:, :6] == 255).all()
    assert np.array_equal(found[:, 6:], np.asarray(image.convert("RGB"))[:, 6:])


def test_transparent_palette_colors_are_composited_over_white(tmp_path):
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    image.putpixel((0, 0), 0)
    image.save(tmp_path / "a.png", transparency=0)
    found = pixels(tmp_path / "a.png")
    assert found[0, 0].tolist() == [255, 255, 255]
    assert found[1, 1].tolist() == [10, 20, 30]


def test_orientation_is_applied_to_pixels_and_size(rgb, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show rotated by 90 degrees clockwise
    Image.fromarray(rgb).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(pixels(tmp_path / "a.png"), np.rot90(rgb, -1))
    assert image_size(tmp_path / "a.png") == (12, 8)


@pytest.mark.parametrize(("mode", "suffix"), [("CMYK", "jpg"), ("LAB", "tif")])
def test_images_without_rgb_meaning_are_refused_by_name(tmp_path, mode, suffix):
    Image.new(mode, (4, 4)).save(tmp_path / f"a.{suffix}")
    with pytest.raises(ValueError, match=rf"a\.{suffix}: expected an RGB, gray, .* got mode {mode}; convert it to RGB"):
        read_image(tmp_path / f"a.{suffix}")


@pytest.mark.parametrize("read", [read_image, image_size])
def test_missing_and_damaged_files_are_refused_by_name(rgb, tmp_path, read):
    (tmp_path / "text.png").write_text("not an image")
    with pytest.raises(ValueError, match=r"text\.png: expected a readable image, got UnidentifiedImageError"):
        read(tmp_path / "text.png")
    with pytest.raises(FileNotFoundError, match=r"gone\.png: expected an image file, got no such file"):
        read(tmp_path / "gone.png")


def test_truncated_file_is_refused_by_name(rgb, tmp_path):
    Image.fromarray(rgb.repeat(8, 0).repeat(8, 1)).save(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"a\.png: expected a readable image, got"):
        read_image(tmp_path / "a.png")


def test_folders_are_searched_recursively_and_sorted(rgb, tmp_path):
    for name in ("b.PNG", "a.jpg", "in/c.png", ".hidden/d.png", ".e.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(rgb).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("none")
    with pytest.warns(UserWarning, match=r"folder: 1 file in '.*' left out: 'notes.txt' \(not an image\)$"):
        assert list(find_images(tmp_path)) == ["a", "b", "in/c"]
    Image.fromarray(rgb).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"folder: expected one file per name, got '.*a.jpg' and '.*a.png'"):
        find_images(tmp_path)


def test_folder_without_images_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"folder: expected images .* got none in"):
        find_images(tmp_path)
    with pytest.raises(FileNotFoundError, match="folder: expected an existing folder of images, got"):
        find_images(tmp_path / "gone")


@pytest.mark.parametrize("floating", [False, True])
def test_written_image_is_read_back(rgb, tmp_path, floating):
    image = torch.from_numpy(rgb).permute(2, 0, 1)
    write_image(image / 255 if floating else image, tmp_path / "new" / "a.png")
    assert torch.equal(read_image(tmp_path / "new" / "a.png"), image)


def test_writing_clamps_and_checks_the_shape(tmp_path):
    write_image(torch.tensor([-1.0, 0.5, 2.0]).view(3, 1, 1), tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").flatten().tolist() == [0, 128, 255]
    with pytest.raises(ValueError, match=r"image: expected shape \(3, H, W\), got \(1, 4, 4\)"):
        write_image(torch.zeros(1, 4, 4), tmp_path / "a.png")
