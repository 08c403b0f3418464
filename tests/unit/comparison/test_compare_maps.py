"""`compare --psnr --ssim`, and its figures: what is printed and written, one color scale, hostile names and sizes."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
from _helpers.figure_layout import layout_faults
from PIL import Image

from lpips_lightning.comparison import maps
from lpips_lightning.comparison.file_pairs import Pair
from lpips_lightning.comparison.maps import MapWriter, pair_names
from lpips_lightning.comparison.measure import PairResult
from lpips_lightning.images.preprocessing import PLAIN
from lpips_lightning.io.comparison_figure import Panel, comparison_figure, reduced
from lpips_lightning.io.figures import save_figure
from lpips_lightning.io.heatmap import HeatmapScale, heatmap_colors, heatmap_indices, heatmap_limit


def image(seed, height=40, width=36):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def sides(tmp_path):
    """Two folders of three images; the second pair differs least, the third is equal."""
    for side in ("a", "b"):
        (tmp_path / side).mkdir()
    for seed, name in enumerate(("1", "2", "3")):
        Image.fromarray(image(seed)).save(tmp_path / f"a/{name}.png")
    for name, pixels in (("1", 255 - image(0)), ("2", image(1) // 2 + 60), ("3", image(2))):
        Image.fromarray(pixels).save(tmp_path / f"b/{name}.png")
    return tmp_path / "a", tmp_path / "b"


def test_scores_stand_beside_the_same_distances(run, sides, tmp_path):
    plain = run(*sides, "--csv", tmp_path / "plain.csv")[1]
    options = ["--psnr", "--ssim", "--per-layer", "--csv", tmp_path / "x.csv", "--json", tmp_path / "x.json"]
    code, lines, err = run(*sides, *options)
    assert code == 0 and lines[:5] == plain[:5]  # to the last bit
    assert "note: psnr: 1 of 3 pairs is equal, with infinite PSNR; the mean of the others is " in err
    assert lines[5] == "psnr\tinf" and lines[6].startswith("ssim\t0.")
    assert lines[-1].startswith(
        f"{plain[-1]}; PSNR in dB from the mean squared error of all pixels and RGB, peak 1, no"
    )
    with (tmp_path / "x.csv").open() as file, (tmp_path / "plain.csv").open() as other:
        header, *rows = csv.reader(file)
        before = list(csv.reader(other))[1:]
    assert header[:5] == ["a", "b", "lpips", "psnr", "ssim"] and len(header) > 6
    assert [row[:3] for row in rows] == before
    error = ((image(0) / 255 - (255 - image(0)) / 255) ** 2).mean()
    assert float(rows[0][3]) == pytest.approx(-10 * np.log10(error), rel=1e-8)
    assert rows[2][3:5] == ["inf", "1"]
    found = json.loads((tmp_path / "x.json").read_text())
    assert found["pairs"][2]["psnr"] == found["mean_psnr"] == "inf"
    assert found["mean_ssim"] == pytest.approx(np.mean([float(row[4]) for row in rows]), rel=1e-6)
    pair = run(sides[0] / "1.png", sides[1] / "1.png", "--ssim")[1]
    assert pair[1] == f"ssim\t{rows[0][4]}" and len(pair) == 3


@pytest.mark.parametrize("kept", [0, 1 << 26])
def test_figures_of_folders_have_one_scale(run, sides, tmp_path, monkeypatch, kept):
    monkeypatch.setattr(maps, "_KEPT", kept)  # 0: a second pass
    options = ["--map", tmp_path / "maps", "--map-raw", tmp_path / "raw", "--psnr"]
    code, lines, err = run(*sides, *options)
    assert code == 0 and "n\t3" in lines
    names = sorted(path.name for path in (tmp_path / "maps").iterdir())
    assert names == ["1.pdf", "1.png", "2.pdf", "2.png", "3.pdf", "3.png"]
    note = err[err.index("map: 3 pairs") :].splitlines()[0]
    limit = float(note.split("colors from 0 to ")[1].split(" ")[0])
    assert note == f"map: 3 pairs in {tmp_path / 'maps'}, .png and .pdf; colors from 0 to {limit:g} in all of them" + (
        " (--map-max sets another scale)"
    )
    for name in ("1", "2", "3"):
        with Image.open(tmp_path / f"raw/{name}.png") as raw, Image.open(tmp_path / f"maps/{name}.png") as figure:
            assert f"brightest >= {limit:g};" in raw.info["Description"] == figure.info["Description"]
            assert raw.size == (36, 40) and figure.width == 2070
            assert figure.info["Images"] == f"a/{name}.png | b/{name}.png"
    again = run(*sides, "--map-raw", tmp_path / "fixed", "--map-max", limit)
    assert again[0] == 0 and again[1][:5] == lines[:5]
    for name in ("1", "2", "3"):
        assert np.array_equal(*(np.asarray(Image.open(tmp_path / f"{part}/{name}.png")) for part in ("raw", "fixed")))


def test_the_scale_of_a_pair_is_that_of_its_map(run, net, sides, tmp_path):
    code, _, err = run(sides[0] / "2.png", sides[1] / "2.png", "--map-raw", tmp_path / "x.png")
    x, y = (torch.from_numpy(np.asarray(Image.open(side / "2.png")).copy()).permute(2, 0, 1)[None] for side in sides)
    with torch.inference_mode():
        local = net(x, y, spatial=True)[0, 0]
    limit = heatmap_limit(local)
    assert code == 0 and f"map-raw: {tmp_path / 'x.png'}; colors from 0 to {limit:g} (--map-max" in err
    with Image.open(tmp_path / "x.png") as written:
        assert np.array_equal(np.asarray(written), heatmap_colors()[heatmap_indices(local, limit)])


def test_the_scale_of_many_maps_is_the_limit_of_all_values():
    parts = [torch.rand(50, 40, generator=torch.Generator().manual_seed(seed)) * 10.0 ** (-seed) for seed in range(4)]
    for count in range(1, 5):
        scale = HeatmapScale()
        for part in parts[:count]:
            scale.add(torch.cat([part, torch.tensor([[float("nan"), float("inf")] * 20])]))
        assert scale.limit == heatmap_limit(*parts[:count])
    assert HeatmapScale().limit == heatmap_limit() == 0.001


def panels(height, width, name="a.png"):
    return [Panel(f"{name}{side}", image(seed, height, width)) for seed, side in enumerate("ab")]


HOSTILE = [
    *((64, 64, name) for name in ("a.png", "$\\x_{" * 12, "\N{GREEK SMALL LETTER MU}\n" * 20)),
    *((height, width, "W" * 60) for height, width in ((64, 64), (900, 40), (40, 900), (200, 700), (33, 2000))),
]


@pytest.mark.parametrize(("height", "width", "name"), HOSTILE)
def test_no_text_of_a_figure_is_cut_off_or_overlaps(height, width, name):
    distances = torch.rand(height, width) * 0.06
    distances[0, 0] = float("nan")
    title, note = "LPIPS (squeeze) 0.0512, PSNR 25.31 dB, SSIM 0.912", f"{'mask ' * 60}; one color scale for all pairs"
    with comparison_figure(panels(height, width, name), distances, 0.05, title, note) as figure:
        assert layout_faults(figure) == []
        texts = [axes.get_title() for axes in figure.axes[:3]]
        assert len(set(texts)) == 3 and texts[2] == "local distance"
        assert figure.get_figheight() < 8.5


def test_a_figure_of_equal_images_is_black_and_says_so(tmp_path):
    distances = torch.zeros(64, 64)
    with comparison_figure(panels(64, 64), distances, heatmap_limit(distances), "LPIPS (alex) 0.00") as figure:
        assert layout_faults(figure) == []
        (shown,) = figure.axes[2].get_images()
        assert shown.get_clim() == (0, 0.001)
        assert [file.suffix for file in save_figure(figure, tmp_path / "x.png")] == [".png", ".pdf"]


def test_large_images_are_reduced_for_the_figure_alone(tmp_path):
    height, width = 1500, 2000
    pixels = np.full((height, width, 3), 200, np.uint8)
    writer = MapWriter(tmp_path / "x.png", tmp_path / "raw.png", False, "alex", PLAIN, "LPIPS alex")
    result = PairResult(Pair("x", tmp_path / "x.tif", tmp_path / "y.tif"), 0.0123, scores={"psnr": 30.0})
    writer(result, torch.full((height, width), 0.04), (pixels, pixels.astype(np.uint16) * 257, None))
    (drawing,) = writer._kept
    assert drawing.distances.shape == reduced(torch.zeros(1, height, width))[0].shape == (930, 1240)
    assert all(max(one.shape) <= 1240 and (one == 200).all() for one in drawing.images)
    assert writer._title(result) == "LPIPS (alex) 0.0123, PSNR 30.00 dB"
    result.scores["tlp"] = 0.01234
    assert writer._title(result) == "LPIPS (alex) 0.0123, PSNR 30.00 dB, tLP 0.0123"
    result.scores["tlp"] = float("nan")  # of the first frame
    assert writer._title(result) == "LPIPS (alex) 0.0123, PSNR 30.00 dB"
    assert writer._note(drawing) == "2000 x 1500 pixels, reduced for this figure"
    writer.finish(lambda: pytest.fail("a second pass over one pair"))
    assert writer.heatmap_max == 0.05
    with Image.open(tmp_path / "raw.png") as raw:
        assert raw.size == (width, height)


@pytest.mark.parametrize(
    ("a", "b", "names"),
    [
        ("x/a.png", "x/b.png", ("a.png", "b.png")),
        ("restored/1.png", "truth/1.png", ("restored/1.png", "truth/1.png")),
        ("p/restored/1.png", "q/restored/1.png", ("p/restored/1.png", "q/restored/1.png")),
        ("a.png", "a.png", ("a.png", "a.png")),
    ],
)
def test_pairs_are_named_by_what_tells_them_apart(a, b, names, tmp_path):
    assert pair_names(Pair("x", tmp_path / a, tmp_path / b)) == names
    framed = pair_names(Pair("x", tmp_path / a, tmp_path / b, frame=7))
    assert framed == tuple(f"{name}, frame 7" for name in names)


def test_without_matplotlib_the_error_names_the_bare_heatmap(run, sides, tmp_path, monkeypatch):
    monkeypatch.setattr("lpips_lightning.io.figures.find_spec", lambda name: None)
    code, lines, err = run(*sides, "--map", tmp_path / "maps")
    assert (code, lines) == (2, []) and "--map-raw where there is no matplotlib" in err and "pip install" in err
    assert run(*sides, "--map-raw", tmp_path / "maps")[0] == 0
