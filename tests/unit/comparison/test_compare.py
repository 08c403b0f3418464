"""`lpips-lightning compare`: two images, two folders, all pairs; printed and written results, errors."""

from __future__ import annotations

import csv
import json
import os
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from image_file_kinds import RGB, RGBA, deep_png, noise, saved
from PIL import Image

from lpips_lightning import LPIPS
from lpips_lightning.backbones.definition import BACKBONES
from lpips_lightning.backbones.selfcheck import GOLDEN
from lpips_lightning.cli import commands as cli
from lpips_lightning.comparison import measure as compare
from lpips_lightning.io.heatmap import heatmap_colors, heatmap_indices
from lpips_lightning.io.image_files import read_image, write_image
from lpips_lightning.weights import EXAMPLES, load


def write(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def folders(tmp_path):
    """Two folders of five images in two sizes, one in a subfolder; the suffixes differ between the folders."""
    sizes = {"1": (40, 36), "2": (33, 50), "10": (40, 36), "in/3": (33, 50), "é 4": (40, 36)}
    for seed, (name, (height, width)) in enumerate(sizes.items()):
        numbers = np.random.default_rng(seed)
        for side, suffix in (("a", "png"), ("b", "bmp")):
            pixels = numbers.integers(0, 256, (height, width, 3), dtype=np.uint8)
            write(tmp_path / side / f"{name}.{suffix}", pixels)
    return tmp_path / "a", tmp_path / "b"


def expected(net, a, b, **options):
    with torch.inference_mode():
        return float(net(read_image(a)[None], read_image(b)[None], **options))


def rows_of(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


@pytest.mark.parametrize("net_type", ["embedded", pytest.param("alex", marks=pytest.mark.real)])
def test_the_golden_patches_print_the_golden_numbers(run, tmp_path, net_type, request, monkeypatch):
    if net_type != "embedded":
        monkeypatch.setenv("LPIPS_LIGHTNING_WEIGHTS", str(request.getfixturevalue("real_weights")))
    for name, patch in load(EXAMPLES).items():
        write_image(patch, tmp_path / f"{name}.png")
    golden = GOLDEN[net_type]
    for name, distance in (("p0", golden.p0), ("p1", golden.p1)):
        code, lines, _ = run(tmp_path / "ref.png", tmp_path / f"{name}.png", net=net_type)
        assert code == 0
        assert float(lines[0]) == pytest.approx(distance, rel=1e-6)
        assert lines[1:] == [LPIPS(net_type).fingerprint]


@pytest.mark.real
@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_golden_files_print_the_reference_implementations_numbers(run, real_weights, monkeypatch, every):
    golden = Path(os.environ.get("LPIPS_LIGHTNING_DATA", "")) / "golden"
    if not (golden / "lpips_0.1.4.csv").is_file():
        pytest.skip("LPIPS_LIGHTNING_DATA does not name the folder of golden/lpips_0.1.4.csv")
    monkeypatch.setenv("LPIPS_LIGHTNING_WEIGHTS", str(real_weights))
    header, *rows = rows_of(golden / "lpips_0.1.4.csv")
    rows += rows_of(golden / "lpips_0.1.4_vgg.csv")[1:]
    here = [row for row in rows if (real_weights / f"{BACKBONES[row[2]].builder}.safetensors").is_file()]
    assert len(here) >= 8 and header[4] == "lpips"
    if not every:  # the first of each network and version
        here = list({(row[2], row[3]): row for row in reversed(here)}.values())
    for ref, distorted, net_type, version, distance, _, baseline, *layers in here:
        options = [golden / ref, golden / distorted, "--version", version]
        lines = run(*options, "--per-layer", net=net_type)[1]
        terms = [float(line.split("\t")[1]) for line in lines[1:-1]]
        assert float(lines[0]) == pytest.approx(float(distance), rel=1e-5)
        assert terms == pytest.approx([float(layer) for layer in layers if layer], rel=1e-5)
        assert float(run(*options, "--baseline", net=net_type)[1][0]) == pytest.approx(float(baseline), rel=1e-5)


def test_layers_sum_to_the_distance_and_files_match_the_output(run, net, tmp_path):
    a, b = write(tmp_path / "a.png", noise()), write(tmp_path / "b.png", 255 - noise())
    code, lines, err = run(a, b, "--per-layer", "--csv", tmp_path / "new/x.csv", "--json", tmp_path / "x.json")
    assert (code, err) == (0, "")
    assert float(lines[0]) == pytest.approx(expected(net, a, b), rel=1e-6)
    terms = dict(line.split("\t") for line in lines[1:-1])
    assert list(terms) == list(net.layers)
    assert sum(map(float, terms.values())) == pytest.approx(float(lines[0]), rel=1e-6)
    header, row = rows_of(tmp_path / "new/x.csv")
    assert header == ["a", "b", "lpips", *net.layers]
    assert row == [str(a), str(b), lines[0], *terms.values()]
    found = json.loads((tmp_path / "x.json").read_text())
    assert found["fingerprint"] == lines[-1]
    assert found["pairs"][0]["lpips"] == pytest.approx(float(lines[0]))
    assert found["pairs"][0]["layers"].keys() == terms.keys()


def test_folders_are_matched_by_name_whatever_the_suffix_and_size(run, net, folders, tmp_path):
    code, lines, _ = run(*folders, "--csv", tmp_path / "x.csv", "--json", tmp_path / "x.json", "--batch-size", 2)
    assert code == 0
    names = ["1", "2", "10", "in/3", "é 4"]
    files = [(folders[0] / f"{name}.png", folders[1] / f"{name}.bmp") for name in names]
    alone = [expected(net, *pair) for pair in files]
    header, *rows = rows_of(tmp_path / "x.csv")
    assert header == ["a", "b", "lpips"]
    assert [row[:2] for row in rows] == [[str(a), str(b)] for a, b in files]
    assert [float(row[2]) for row in rows] == pytest.approx(alone, rel=1e-6)
    said = dict(line.split("\t", 1) for line in lines[:-1])
    assert list(said) == ["mean", "std", "min", "max", "n"]
    assert float(said["mean"]) == pytest.approx(np.mean(alone), rel=1e-6)
    assert float(said["std"]) == pytest.approx(np.std(alone, ddof=1), rel=1e-6)
    for line, index in (("min", np.argmin(alone)), ("max", np.argmax(alone))):
        value, name = said[line].split("\t")
        assert (float(value), name) == (pytest.approx(alone[index], rel=1e-6), names[index])
    assert said["n"] == "5" and lines[-1] == net.fingerprint
    found = json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))
    assert (found["n"], len(found["pairs"]), found["pairs"][4]["a"]) == (5, 5, str(files[4][0]))
    assert found["std"] == pytest.approx(float(said["std"]))


def test_differing_names_are_listed_with_the_options_that_help(run, folders):
    a, b = folders
    (b / "2.bmp").rename(b / "two.bmp")
    code, lines, err = run(a, b)
    assert (code, lines) == (2, [])
    assert err == (
        f"lpips-lightning: {b}: expected the same 5 image names as in '{a}', got 5: 1 missing ('2') and 1 unexpected"
        " ('two'); --common compares the 4 names in both; --in-order matches the sorted files by position\n"
    )
    assert "n\t4" in run(a, b, "--common")[1]
    (b / "1.bmp").unlink()
    assert "--in-order" not in run(a, b)[2]
    code, _, err = run(a, b, "--in-order")
    assert code == 2 and f"expected equally many images in both folders, got 5 in '{a}' and 4 in '{b}'" in err


def test_common_names_must_exist(run, tmp_path):
    write(tmp_path / "a/x.png", noise())
    write(tmp_path / "b/y.png", noise())
    code, _, err = run(tmp_path / "a", tmp_path / "b", "--common")
    assert code == 2 and "common: expected names in both" in err and "'x' and 'y'" in err


def test_frames_in_order_are_matched_by_number(run, net, tmp_path):
    for number in (2, 9, 10, 100):
        write(tmp_path / f"a/{number}.png", np.full((40, 40, 3), number, np.uint8))
        write(tmp_path / f"b/frame{number + 5}.png", np.full((40, 40, 3), number, np.uint8))
    write(tmp_path / "b/frame7.png", noise(40, 40))
    assert run(tmp_path / "a", tmp_path / "b", "--in-order", "--csv", tmp_path / "x.csv")[0] == 0
    first, *others = rows_of(tmp_path / "x.csv")[1:]
    assert first[1].endswith("frame7.png") and float(first[2]) > 0
    assert [float(row[2]) for row in others] == [0, 0, 0]
    assert [row[0].rpartition("/")[2] for row in others] == ["9.png", "10.png", "100.png"]


@pytest.mark.parametrize("way", [[], ["--long"]])
def test_all_pairs_equal_pairwise_with_one_pass_per_image(run, net, tmp_path, way, monkeypatch):
    names = [f"{number}" for number in (1, 2, 10, 11)]
    files = [write(tmp_path / f"all/{name}.png", noise(40 + 0 * int(name), 36, 3) // int(name)) for name in names]
    seen = []
    encode = LPIPS.encode
    monkeypatch.setattr(LPIPS, "encode", lambda self, x, r: (seen.append(len(x)), encode(self, x, r))[1])
    options = ["--csv", tmp_path / "x.csv", "--json", tmp_path / "x.json", "--batch-size", 3, *way]
    code, lines, _ = run("--pairs", tmp_path / "all", *options)
    assert (code, seen) == (0, [3, 1])
    matrix = net.pairwise(torch.stack([read_image(file) for file in files])).tolist()
    header, *rows = rows_of(tmp_path / "x.csv")
    if way:
        assert header == ["a", "b", "lpips"]
        found = {(row[0], row[1]): float(row[2]) for row in rows}
        pairs = [(i, j) for i in range(4) for j in range(i + 1, 4)]
        assert found == {(names[i], names[j]): pytest.approx(matrix[i][j], rel=1e-5) for i, j in pairs}
    else:
        assert header == ["", *names] and [row[0] for row in rows] == names
        for row, values in zip(rows, matrix, strict=True):
            assert [float(cell) for cell in row[1:]] == pytest.approx(values, rel=1e-5)
    written = json.loads((tmp_path / "x.json").read_text())
    assert written["names"] == names and len(written["distances"]) == 4
    assert lines[-2] == "n\t6" and lines[-1] == net.fingerprint
    assert lines[2].split("\t")[2:] == ["10", "11"]


def test_all_pairs_have_both_orders_where_the_distance_has_a_reference(run, tmp_path):
    net = LPIPS("embedded", distance="lpips_plus")
    files = [write(tmp_path / f"all/{number}.png", noise(64, 72, 3) // number) for number in (1, 2, 3)]
    images = {str(number): read_image(file)[None] for number, file in enumerate(files, 1)}
    expected = {(a, b): float(net(images[a], images[b])) for a in images for b in images if a != b}
    options = ["--distance", "lpips_plus", "--long", "--csv", tmp_path / "x.csv"]
    code, lines, _ = run("--pairs", tmp_path / "all", *options)
    assert code == 0 and lines[-2] == "n\t6"
    assert float(lines[0].split("\t")[1]) == pytest.approx(sum(expected.values()) / 6, rel=1e-4)
    found = {(a, b): float(distance) for a, b, distance in rows_of(tmp_path / "x.csv")[1:]}
    assert found == {pair: pytest.approx(distance, rel=1e-4) for pair, distance in expected.items()}
    assert found["1", "2"] != pytest.approx(found["2", "1"], rel=1e-4)


def test_all_pairs_of_unequal_sizes_need_resize_and_are_then_those_of_two_images(run, folders):
    code, _, err = run("--pairs", folders[0])
    assert code == 2 and "2.png: expected the size of" in err and "(and 1 more file)" in err
    code, lines, _ = run("--pairs", folders[0], "--resize", "40x44")
    assert code == 0 and "resize 40x44 bilinear antialias" in lines[-1]
    least = lines[2].split("\t")
    a, b = (folders[0] / f"{name}.png" for name in least[2:])
    assert float(run(a, b, "--resize", "40x44")[1][0]) == pytest.approx(float(least[1]), rel=1e-5)


def test_sixteen_bit_images_are_compared_at_full_depth_and_with_eight_bit_ones(run, net, tmp_path):
    deep = noise(high=65536)
    (tmp_path / "deep.png").write_bytes(deep_png(deep, RGB))
    write(tmp_path / "low.png", (deep >> 8).astype(np.uint8))
    write(tmp_path / "other.png", noise(40, 36)[::-1].copy())
    code, lines, _ = run(tmp_path / "deep.png", tmp_path / "low.png")
    x, y = (torch.from_numpy(one).permute(2, 0, 1)[None].float() for one in (deep / 65535, (deep >> 8) / 255))
    assert code == 0 and 0 < float(lines[0]) == pytest.approx(float(net(x, y, (0, 1))), rel=1e-4)
    (tmp_path / "all").mkdir()
    for name in ("deep", "low", "other"):
        (tmp_path / f"all/{name}.png").write_bytes((tmp_path / f"{name}.png").read_bytes())
    pairs = run("--pairs", tmp_path / "all")[1]
    assert float(pairs[2].split("\t")[1]) == pytest.approx(float(lines[0]), rel=1e-3)


def test_folders_may_mix_depths_and_alpha(run, tmp_path):
    deep, clear = noise(high=65536), noise(channels=4)
    kinds = {
        "1": saved(noise(), "PNG"),
        "2": deep_png(deep, RGB),
        "3": saved(clear, "PNG"),
        "4": deep_png(clear.astype(np.uint16) * 257, RGBA),
        "5": saved(noise()[::-1].copy(), "PNG"),
    }
    for name, data in kinds.items():
        write(tmp_path / f"a/{name}.png", 255 - noise())
        (tmp_path / "b").mkdir(exist_ok=True)
        (tmp_path / f"b/{name}.png").write_bytes(data)
    options = ["--background", "black"]
    assert run(tmp_path / "a", tmp_path / "b", "--csv", tmp_path / "x.csv", *options)[0] == 0
    for a, b, distance in rows_of(tmp_path / "x.csv")[1:]:
        assert float(distance) == pytest.approx(float(run(a, b, *options)[1][0]), rel=1e-6)
    for name in kinds:
        (tmp_path / f"a/{name}x.png").write_bytes(kinds[name])
    code, lines, _ = run("--pairs", tmp_path / "a", *options)
    pair = [tmp_path / f"a/{name}.png" for name in lines[3].split("\t")[2:]]
    assert code == 0 and float(lines[3].split("\t")[1]) == pytest.approx(float(run(*pair, *options)[1][0]), rel=1e-5)


def test_transparent_images_need_a_background(run, tmp_path):
    clear, opaque = noise(channels=4), noise(channels=4)
    opaque[..., 3] = 255
    write(tmp_path / "clear.png", clear)
    write(tmp_path / "opaque.png", opaque)
    write(tmp_path / "plain.png", opaque[..., :3])
    (tmp_path / "deep.png").write_bytes(deep_png(clear.astype(np.uint16) * 257, RGBA))
    assert run(tmp_path / "opaque.png", tmp_path / "plain.png")[1][0] == "0"
    code, lines, err = run(tmp_path / "clear.png", tmp_path / "plain.png")
    assert (code, lines) == (2, [])
    assert "clear.png: expected an opaque image, got transparent pixels; --background sets the color" in err
    share = clear[..., 3:] / 255
    for option, under in (("white", 1.0), ("black", 0.0), ("0.5,0.5,0.5", 0.5)):
        blended = torch.from_numpy(clear[..., :3] / 255 * share + under * (1 - share)).float()
        plain = torch.from_numpy(opaque[..., :3] / 255).float()
        x, y = (one.permute(2, 0, 1)[None] for one in (blended, plain))
        for file in ("clear.png", "deep.png"):
            code, lines, _ = run(tmp_path / file, tmp_path / "plain.png", "--background", option)
            assert code == 0 and float(lines[0]) == pytest.approx(float(LPIPS("embedded")(x, y, (0, 1))), rel=1e-4)
            assert "alpha over" in lines[-1]


def test_gray_images_need_the_gray_option(run, net, tmp_path):
    gray = noise(channels=1)[..., 0]
    write(tmp_path / "gray.png", gray)
    other = write(tmp_path / "other.png", noise())
    code, lines, err = run(other, tmp_path / "gray.png")
    assert (code, lines) == (2, []) and "gray.png: expected a color image, got a gray one; --gray" in err
    code, lines, _ = run(other, tmp_path / "gray.png", "--gray")
    assert code == 0 and float(lines[0]) == pytest.approx(expected(net, other, tmp_path / "gray.png"), rel=1e-6)
    assert "gray repeat" in lines[-1]


def test_heatmaps_have_the_images_size_and_the_shared_colors(run, net, folders, tmp_path):
    a, b = folders[0] / "2.png", folders[1] / "2.bmp"
    plain = run(a, b)[1]
    code, lines, _ = run(a, b, "--map-raw", tmp_path / "m.png", "--map-max", 2)
    assert code == 0 and float(lines[0]) == pytest.approx(float(plain[0]), rel=1e-6)
    with torch.inference_mode():
        heat = net(read_image(a)[None], read_image(b)[None], spatial=True)[0, 0]
    with Image.open(tmp_path / "m.png") as image:
        assert np.array_equal(np.asarray(image), heatmap_colors()[heatmap_indices(heat, 2.0)])
        assert net.fingerprint in image.info["Description"]
    code, _, err = run(*folders, "--map-raw", tmp_path / "maps", "--map-max", 1)
    assert code == 0 and f"map-raw: 5 pairs in {tmp_path / 'maps'}, .png; colors from 0 to 1 in all of them\n" in err
    made = sorted(path.relative_to(tmp_path / "maps").as_posix() for path in (tmp_path / "maps").rglob("*.png"))
    assert made == ["1.png", "10.png", "2.png", "in/3.png", "é 4.png"]
    with Image.open(tmp_path / "maps/2.png") as image:
        assert np.array_equal(np.asarray(image), heatmap_colors()[heatmap_indices(heat, 1.0)])


def test_a_damaged_image_is_named_and_the_other_pairs_are_kept(run, net, folders, tmp_path):
    a, b = folders
    whole = (a / "10.png").read_bytes()
    (a / "10.png").write_bytes(whole[:-40])
    options = ["--csv", tmp_path / "x.csv", "--json", tmp_path / "x.json", "--map-raw", tmp_path / "maps"]
    code, lines, err = run(a, b, *options)
    assert code == 2 and "n\t4" in lines
    assert f"1 of 5 pairs failed: {a}/10.png: expected a readable image, got a truncated PNG\n" in err
    header, *rows = rows_of(tmp_path / "x.csv")
    assert header == ["a", "b", "lpips", "error"] and len(rows) == 5
    assert rows[2][2] == "" and "truncated PNG" in rows[2][3]
    for row in (*rows[:2], *rows[3:]):
        assert float(row[2]) == pytest.approx(expected(net, *map(str, row[:2])), rel=1e-6) and row[3] == ""
    found = json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))
    assert found["n"] == 4 and found["pairs"][2]["lpips"] is None and "truncated PNG" in found["pairs"][2]["error"]
    assert len(list((tmp_path / "maps").rglob("*.png"))) == 4


def test_nothing_is_written_where_nothing_was_measured(run, tmp_path):
    for name in ("a", "b"):
        write(tmp_path / f"{name}.png", noise())
    (tmp_path / "b.png").write_bytes((tmp_path / "b.png").read_bytes()[:-40])
    before = sorted(tmp_path.iterdir())
    code, lines, err = run(
        tmp_path / "a.png", tmp_path / "b.png", "--csv", tmp_path / "x.csv", "--map", tmp_path / "m.png"
    )
    assert (code, lines) == (2, []) and "b.png: expected a readable image" in err
    assert sorted(tmp_path.iterdir()) == before


def test_headers_are_checked_before_anything_is_decoded(run, folders, monkeypatch):
    monkeypatch.setattr(compare, "read_pixels", lambda path: pytest.fail("decoded"))
    (folders[1] / "é 4.bmp").write_bytes(b"no image")
    code, lines, err = run(*folders)
    assert (code, lines) == (2, []) and "é 4.bmp: expected a readable image" in err


def test_non_finite_distances_are_errors(run, folders, monkeypatch):
    terms = LPIPS.forward

    def broken(self, x, y, *args, **options):
        return {layer: values * float("inf") for layer, values in terms(self, x, y, *args, **options).items()}

    monkeypatch.setattr(LPIPS, "forward", broken)
    code, lines, err = run(*folders)
    assert (code, lines) == (2, []) and "1.png: expected a finite distance, got" in err and "(and 4 more)" in err


def test_few_images_are_in_memory_at_once(run, tmp_path, monkeypatch):
    for number in range(60):
        for side in "ab":
            write(tmp_path / f"{side}/{number}.png", np.full((36, 36, 3), number, np.uint8))
    alive, most, lock = [0], [0], threading.Lock()
    read_pair, measure_batch = compare._read_pair, compare._measure_batch

    def counted_read(*args):
        with lock:
            alive[0] += 1
            most[0] = max(most[0], alive[0])
        return read_pair(*args)

    def counted_measure(pairs, batch, *args):
        found = measure_batch(pairs, batch, *args)
        with lock:
            alive[0] -= len(batch)
        return found

    monkeypatch.setattr(compare, "_read_pair", counted_read)
    monkeypatch.setattr(compare, "_measure_batch", counted_measure)
    code, lines, _ = run(tmp_path / "a", tmp_path / "b", "--batch-size", 4)
    assert code == 0 and "n\t60" in lines and lines[0] == "mean\t0"
    assert 4 <= most[0] <= 12


def test_help_fits_one_screen(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as exit_:
        cli.main(["compare", "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert exit_.value.code == 0
    assert len(lines) <= 43 and max(map(len, lines)) <= 100
