"""`lpips-lightning compare` of folders: what is left out is named; masks, lists of pairs, all pairs of two folders."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from image_file_kinds import RGB, deep_png, noise, saved
from PIL import Image

from lpips_lightning import LPIPS
from lpips_lightning.comparison import measure
from lpips_lightning.comparison.file_pairs import match_folders, match_listed
from lpips_lightning.io.image_files import read_image


def write(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def image(seed, height=40, width=36):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def sides(tmp_path):
    """Two folders of three images of one size: 1, 2, in/3."""
    for seed, name in enumerate(("1", "2", "in/3")):
        write(tmp_path / f"a/{name}.png", image(seed))
        write(tmp_path / f"b/{name}.bmp", image(seed + 10))
    return tmp_path / "a", tmp_path / "b"


def tensor(path):
    return read_image(path)[None]


def rows_of(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def test_images_behind_links_and_of_every_format_are_compared(run, net, tmp_path):
    names = {
        "0.png": "PNG",
        "1.gif": "GIF",
        "2.tga": "TGA",
        "3": "PNG",
        "4.JFIF": "JPEG",
        "5.ppm": "PPM",
        "6.0001": "BMP",
    }
    distances = []
    for seed, (name, kind) in enumerate(names.items()):
        for side, shift in (("a", 0), ("b", 50)):
            path = tmp_path / f"away_{side}" / name if seed % 2 else tmp_path / side / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(saved(image(seed + shift), kind))
            if seed % 2 and not (tmp_path / side / "scene").exists():
                (tmp_path / side / "scene").symlink_to(path.parent)
        pair = [tmp_path / side / ("scene" if seed % 2 else "") / name for side in "ab"]
        with torch.inference_mode():
            distances.append(float(net(*map(tensor, pair))))
    code, lines, err = run(tmp_path / "a", tmp_path / "b", "--csv", tmp_path / "x.csv")
    assert code == 0 and "note" not in err
    assert f"n\t{len(names)}" in lines
    assert sorted(float(row[2]) for row in rows_of(tmp_path / "x.csv")[1:]) == pytest.approx(
        sorted(distances), rel=1e-5
    )


@pytest.mark.parametrize("options", [[], ["--pairs"]])
def test_what_is_left_out_is_named_on_standard_error_and_in_the_json(run, sides, tmp_path, options):
    a, b = sides
    (a / "notes.txt").write_text("text")
    (a / "in/depth.exr").write_bytes(b"\x76\x2f\x31\x01")
    (a / ".DS_Store").write_bytes(b"")
    (b / "clip.mp4").write_bytes(b"")
    code, lines, err = run(a, b, "--json", tmp_path / "x.json", *options)
    notes = [
        f"{a}: 3 files were not compared: 'in/depth.exr' (OpenEXR, high dynamic range), 'notes.txt' (not an image),"
        " 1 hidden file",
        f"{b}: 1 file was not compared: 'clip.mp4' (a video)",
    ]
    assert code == 0 and f"n\t{9 if options else 3}" in lines
    assert err.startswith("".join(f"lpips-lightning: note: {note}\n" for note in notes))
    assert json.loads((tmp_path / "x.json").read_text())["notes"] == notes


def test_a_folder_in_which_nothing_is_left_out_has_no_notes(run, sides, tmp_path):
    code, _, err = run(*sides, "--json", tmp_path / "x.json")
    assert code == 0 and "note" not in err and "notes" not in json.loads((tmp_path / "x.json").read_text())


def test_images_without_partner_are_counted_and_left_out_files_explain_a_missing_one(run, sides):
    a, b = sides
    (b / "1.bmp").rename(b / "1.heic")
    code, lines, err = run(a, b)
    assert (code, lines) == (2, [])
    assert "1 missing ('1')" in err and f"{b}: 1 file was not compared: '1.heic' (HEIC)" in err
    matches = match_folders(a, b, common=True)
    assert [pair.name for pair in matches.pairs] == ["2", "in/3"]
    assert matches.notes[1:] == [f"{a}: 1 image without partner: '1'"]


def test_a_damaged_image_in_a_folder_is_an_error_not_a_note(run, sides):
    (sides[0] / "1.png").write_bytes(b"text")
    code, lines, err = run(*sides)
    assert (code, lines) == (2, []) and "1.png: expected a readable image" in err


def test_the_standard_deviation_of_one_pair_is_undefined(run, tmp_path):
    write(tmp_path / "a/1.png", image(0))
    write(tmp_path / "b/1.png", image(1))
    write(tmp_path / "c/1.png", image(1))
    write(tmp_path / "c/2.png", image(0))
    for arguments in (["a", "b"], ["--pairs", "c"]):
        code, lines, _ = run(*(arg if arg[0] == "-" else tmp_path / arg for arg in arguments))
        assert code == 0 and "std\t-" in lines and "n\t1" in lines
    assert run(tmp_path / "a", tmp_path / "b", "--json", tmp_path / "x.json")[0] == 0
    found = json.loads((tmp_path / "x.json").read_text())
    assert found["std"] is None and found["n"] == 1


def test_all_pairs_of_two_folders_are_their_pairwise_matrix(run, net, sides, tmp_path):
    a, b = sides
    write(b / "4.png", image(77))
    options = ["--csv", tmp_path / "x.csv", "--json", tmp_path / "x.json"]
    code, lines, _ = run(a, b, "--pairs", *options)
    names, others = ["1", "2", "in/3"], ["1", "2", "4", "in/3"]
    first = [tensor(a / f"{name}.png") for name in names]
    second = [tensor(b / f"{name}.{'png' if name == '4' else 'bmp'}") for name in others]
    with torch.inference_mode():
        matrix = torch.stack([torch.cat([net(x, y) for y in second]) for x in first])
    header, *rows = rows_of(tmp_path / "x.csv")
    assert code == 0 and header == ["", *others] and [row[0] for row in rows] == names
    assert torch.tensor([[float(cell) for cell in row[1:]] for row in rows]).allclose(matrix, rtol=1e-5)
    found = json.loads((tmp_path / "x.json").read_text())
    assert (found["names"], found["other_names"]) == (names, others)
    assert torch.tensor(found["distances"]).allclose(matrix, rtol=1e-5)
    assert "n\t12" in lines and float(lines[0].split("\t")[1]) == pytest.approx(float(matrix.mean()), rel=1e-5)
    assert run("--pairs", a, b, "--csv", tmp_path / "long.csv", "--long")[0] == 0
    assert [row[:2] for row in rows_of(tmp_path / "long.csv")[1:]] == [[x, y] for x in names for y in others]


def test_listed_pairs_are_relative_to_the_folders(run, net, sides, tmp_path):
    a, b = sides
    (tmp_path / "list.csv").write_text("b,a\nin/3.bmp,1\n./2,in/3.png\n1,1.png\n")
    code, lines, err = run(a, b, "--pairs", tmp_path / "list.csv", "--csv", tmp_path / "x.csv", "--map", tmp_path / "m")
    expected = [("1", "in/3"), ("in/3", "2"), ("1", "1")]
    assert code == 2 and "map: expected each image of the first folder in one pair only" in err
    code, lines, err = run(a, b, "--pairs", tmp_path / "list.csv", "--csv", tmp_path / "x.csv")
    rows = rows_of(tmp_path / "x.csv")[1:]
    assert code == 0 and "n\t3" in lines
    assert [row[:2] for row in rows] == [[str(a / f"{x}.png"), str(b / f"{y}.bmp")] for x, y in expected]
    with torch.inference_mode():
        alone = [float(net(tensor(a / f"{x}.png"), tensor(b / f"{y}.bmp"))) for x, y in expected]
    assert [float(row[2]) for row in rows] == pytest.approx(alone, rel=1e-5)
    assert f"note: {a}: 1 image in no pair: '2'" in err
    again = run(a, b, f"--pairs={tmp_path / 'x.csv'}")  # its own table
    assert again[0] == 0 and again[1] == lines


def test_a_list_of_pairs_names_one_image_or_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for file in ("a/x.png", "a/a/x.png", "a/two\nlines.png", "b/x.png"):
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32)).save(file)
    Path("list.csv").write_text("a,b\na/a/x.png,b/x.png\na/two\\nlines.png,b/x.png\n")  # as `write_csv` writes them
    found = [pair.a for pair in match_listed("a", "b", "list.csv").pairs]
    assert found == [Path("a/a/x.png"), Path("a/two\nlines.png")]
    Path("list.csv").write_text("a,b\na/x.png,b/x.png\n")
    with pytest.raises(ValueError, match=r"line 2: a: .* 'a/x.png', which names '.*' and '.*'; give absolute folders"):
        match_listed("a", "b", "list.csv")
    (pair,) = match_listed(tmp_path / "a", "b", "list.csv").pairs
    assert pair.a == tmp_path / "a/a/x.png"


def test_errors_in_a_list_of_pairs_have_the_line(sides, tmp_path):
    (tmp_path / "list.csv").write_text("a,b\n1,1\n7,1\n")
    with pytest.raises(ValueError, match=r"list.csv, line 3: a: expected an image in '.*/a', got '7'"):
        match_listed(*sides, tmp_path / "list.csv")
    (tmp_path / "list.csv").write_text("x,b\n1,1\n")
    with pytest.raises(ValueError, match=r"list.csv, line 1: expected the columns a, b, got x, b, without a"):
        match_listed(*sides, tmp_path / "list.csv")
    with pytest.raises(FileNotFoundError, match=r"gone.csv: expected a CSV file, got no such file"):
        match_listed(*sides, tmp_path / "gone.csv")


def half(height=40, width=36):
    """White on the left, black on the right."""
    mask = np.zeros((height, width), np.uint8)
    mask[:, : 2 * width // 3] = 255
    return mask


@pytest.mark.parametrize("erode", [False, True])
@pytest.mark.parametrize("stored", ["L", "1", "RGB", "P"])
def test_a_mask_for_all_pairs_gives_the_values_of_the_api(run, net, tmp_path, stored, erode):
    a, b = (write(tmp_path / f"{side}/1.png", image(ord(side), 40, 200)).parent for side in "ab")
    Image.fromarray(half(40, 200)).convert(stored).save(tmp_path / "mask.png")
    options = ["--mask", tmp_path / "mask.png", *["--erode"] * erode]
    code, lines, _ = run(a, b, *options, "--csv", tmp_path / "x.csv", "--json", tmp_path / "x.json", "--per-layer")
    header, *rows = rows_of(tmp_path / "x.csv")
    assert code == 0 and header == ["a", "b", "lpips", *net.layers, "mask", "erode"]
    mask = torch.from_numpy(half(40, 200))[None] > 127
    for row in rows:
        with torch.inference_mode():
            alone = float(net(tensor(row[0]), tensor(row[1]), mask=mask, erode=erode))
        assert float(row[2]) == pytest.approx(alone, rel=1e-5) and alone > 0
        assert row[-2:] == [str(tmp_path / "mask.png"), str(erode).lower()]
    assert lines[-1] == f"{net.fingerprint}, mask mask.png{', eroded' * erode}"
    found = json.loads((tmp_path / "x.json").read_text())
    assert found["fingerprint"] == lines[-1]
    assert found["pairs"][0]["mask"].endswith("mask.png") and found["pairs"][0]["erode"] is erode


def test_masks_of_a_folder_are_matched_by_name_and_may_be_soft(run, net, sides, tmp_path):
    a, b = sides
    for seed, name in enumerate(("1", "2", "in/3", "more")):
        write(tmp_path / f"masks/{name}.tif", image(seed)[..., 0])
    deep = noise(channels=1, high=65536)
    (tmp_path / "masks/2.tif").unlink()
    (tmp_path / "masks/2.png").write_bytes(deep_png(deep.repeat(3, 2), RGB))
    code, _, err = run(a, b, "--mask", tmp_path / "masks", "--csv", tmp_path / "x.csv", "--batch-size", 2)
    masks = [torch.from_numpy(image(seed)[..., 0] / np.float32(255)) for seed in (0, 2)]
    masks.insert(1, torch.from_numpy(deep[..., 0] / np.float32(65535)))
    rows = rows_of(tmp_path / "x.csv")[1:]
    assert code == 0 and f"note: {tmp_path / 'masks'}: 1 mask without pair: 'more'" in err
    for row, mask in zip(rows, masks, strict=True):
        with torch.inference_mode():
            alone = float(net(tensor(row[0]), tensor(row[1]), mask=mask[None]))
        assert float(row[2]) == pytest.approx(alone, rel=1e-5)


def test_maps_with_a_mask_are_black_outside_it(run, sides, tmp_path):
    a, b = sides
    mask = write(tmp_path / "mask.png", half())
    assert run(a / "1.png", b / "1.bmp", "--map-raw", tmp_path / "plain.png", "--map-max", 1)[0] == 0
    assert run(a / "1.png", b / "1.bmp", "--map-raw", tmp_path / "m.png", "--mask", mask, "--map-max", 1)[0] == 0
    plain, masked = (np.asarray(Image.open(tmp_path / name)) for name in ("plain.png", "m.png"))
    inside = half() > 0
    assert np.array_equal(masked[inside], plain[inside]) and plain[~inside].any()
    assert (masked[~inside] == masked[~inside][0]).all()


def test_a_mask_under_resize_has_the_size_of_the_images(run, sides, tmp_path):
    a, b = sides
    mask = write(tmp_path / "mask.png", half())
    net = LPIPS("embedded", resize=(48, 52))
    code, lines, _ = run(a / "1.png", b / "1.bmp", "--mask", mask, "--resize", "48x52", "--map-raw", tmp_path / "m.png")
    with torch.inference_mode():
        alone = net(tensor(a / "1.png"), tensor(b / "1.bmp"), mask=torch.from_numpy(half())[None] > 0)
    assert code == 0 and float(lines[0]) == pytest.approx(float(alone), rel=1e-5)


@pytest.mark.parametrize("erode", [False, True])
def test_a_mask_that_leaves_nothing_is_an_error_that_names_it(run, sides, tmp_path, erode):
    black = half() * 0
    black[0, 0] = 255 * erode
    mask = write(tmp_path / "mask.png", black)
    code, lines, err = run(*sides, "--mask", mask, *["--erode"] * erode)
    assert (code, lines) == (2, [])
    assert f"{mask}: expected a mask that leaves something to compare, got one without" in err
    assert ("compare without --erode" in err) == erode


@pytest.mark.parametrize(
    ("pixels", "said"),
    [
        (half(40, 40), "mask.png: expected a mask of the size of '.*1.png', 40x36 .height x width., got 40x40"),
        (image(0), "mask.png: expected a gray mask .white counts, black does not., got a color image"),
        (noise(channels=4)[..., [0, 0, 0, 3]], "mask.png: expected a gray mask .*, got transparent pixels"),
    ],
)
def test_wrong_masks_are_found_before_anything_is_compared(run, sides, tmp_path, monkeypatch, pixels, said):
    monkeypatch.setattr(measure, "read_pixels", lambda path: pytest.fail("decoded"))
    code, lines, err = run(*sides, "--mask", write(tmp_path / "mask.png", pixels))
    assert (code, lines) == (2, [])
    with pytest.raises(AssertionError, match=said):
        raise AssertionError(err)
