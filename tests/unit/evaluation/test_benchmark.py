"""The evaluation: methods by name, agreement with people, tables, figures, the command."""

import argparse
import csv
import re

import numpy as np
import pytest
import torch
import toy_judgments as judged
from PIL import Image
from safetensors.torch import save_file
from torchmetrics.functional.image import structural_similarity_index_measure

from lpips_lightning import LPIPS
from lpips_lightning.backbones.definition import BACKBONES
from lpips_lightning.backbones.extractor import random_backbone
from lpips_lightning.cli import commands as cli
from lpips_lightning.cli.evaluate import add_arguments, run
from lpips_lightning.data.bapps_download import ARCHIVES
from lpips_lightning.data.bapps_generate import l2, make_bapps
from lpips_lightning.data.judges import PEOPLE
from lpips_lightning.evaluation import figures
from lpips_lightning.evaluation.benchmark import (
    HUMAN,
    Judged,
    Score,
    flip_rates,
    measure,
    read_distances,
    score,
    summary,
)
from lpips_lightning.evaluation.methods import OTHERS, Method, parse_method
from lpips_lightning.evaluation.table5 import PAPER_SETS, TABLE_5, paper_row
from lpips_lightning.functional.judgments import bootstrap_interval, human_ceiling, jnd_score, two_afc_score
from lpips_lightning.io.image_files import write_image
from lpips_lightning.io.tensor_files import write_tensors


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A small data set in the paper's layout: two sets of triplets, one of pairs."""
    folder = tmp_path_factory.mktemp("bapps")
    for name, seed in (("cnn", 1), ("traditional", 2)):
        data = judged.triplets(6, 48, seed)
        for number in range(len(data)):
            _write(folder / "2afc/val" / name, number, data[number], ("ref", "p0", "p1"), "judge")
    data = judged.pairs(5, 48)
    for number in range(len(data)):
        _write(folder / "jnd/val/cnn", number, data[number], ("p0", "p1"), "same")
    return folder


def _write(folder, number, item, images, judgment):
    for kind in images:
        write_image((item[kind] + 1) / 2, folder / kind / f"{number}.png")
    (folder / judgment).mkdir(exist_ok=True)
    np.save(folder / judgment / f"{number}.npy", np.float32(item[judgment]))


def evaluate(*args):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    run(parser.parse_args([str(arg) for arg in args]))


def cells(path):
    with path.open() as file:
        return {(row["method"], row["set"], row["kind"]): row for row in csv.DictReader(file)}


def test_networks_are_found_by_name(pair, tmp_path):
    x, y = pair(2, 64, 64)
    assert torch.equal(parse_method("embedded").distance(x, y), LPIPS("embedded")(x, y))
    assert torch.equal(parse_method("embedded:baseline").distance(x, y), LPIPS("embedded", calibrated=False)(x, y))
    state = torch.get_rng_state()
    one, two = (parse_method("squeeze:random").distance(x, y) for _ in range(2))
    assert torch.equal(one, two)
    assert torch.equal(torch.get_rng_state(), state)
    backbone = random_backbone(BACKBONES["embedded"], 5)
    calibration = {
        layer: torch.rand(c) for layer, c in zip(LPIPS("embedded").layers, (48, 64, 128, 128, 96), strict=True)
    }
    save_file(backbone, tmp_path / "backbone.safetensors")
    write_tensors(tmp_path / "lin.safetensors", calibration, {})
    both = {**backbone, **{f"calibration.{layer}": weight for layer, weight in calibration.items()}}
    write_tensors(tmp_path / "both.safetensors", both, {"mode": "scratch"})
    for variant, expected in {
        "weights=backbone": LPIPS("embedded", calibrated=False, weights=backbone),
        "kmeans=backbone": LPIPS("embedded", calibrated=False, weights=backbone),
        "calibration=lin": LPIPS("embedded", calibration=calibration),
        "calibration=both": LPIPS("embedded", calibration=calibration),
        "weights=both": LPIPS("embedded", weights=backbone, calibration=calibration),
    }.items():
        found = parse_method(f"embedded:{variant.replace('=', f'={tmp_path}/')}.safetensors")
        assert torch.equal(found.distance(x, y), expected(x, y)), variant


def test_older_measures_are_distances(pair):
    x, y = pair(2, 64, 64)
    near = x + 0.05 * (y - x)
    unit_x, unit_y = (x + 1) / 2, (y + 1) / 2
    for name in OTHERS:
        if name == "ms-ssim":
            x2, y2, near2 = (torch.nn.functional.interpolate(image, (176, 176)) for image in (x, y, near))
        else:
            x2, y2, near2 = x, y, near
        if name == "fsim":
            pytest.importorskip("piq")
        distance = parse_method(name).distance
        same, close, far = distance(x2, x2), distance(x2, near2), distance(x2, y2)
        assert same.shape == far.shape == (2,)
        assert bool(((same < close) & (close < far)).all()), name
    expected = (unit_x - unit_y).square().flatten(1).mean(1)
    assert torch.allclose(parse_method("l2").distance(x, y), expected)
    assert torch.allclose(parse_method("psnr").distance(x, y), 10 * expected.log10())
    ssim = [
        structural_similarity_index_measure(a[None], b[None], data_range=1.0)
        for a, b in zip(unit_x, unit_y, strict=True)
    ]
    assert torch.allclose(parse_method("ssim").distance(x, y), 1 - torch.stack(ssim), atol=1e-6)
    assert parse_method("ssim").distance(x[:1], y[:1]).shape == (1,)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "lpips",
            "method: expected one of alex, vgg, squeeze, embedded, embedded-vgg, alex-st, vgg-st, dists, l2, .* got"
            " 'lpips'",
        ),
        ("l2:baseline", "method: expected one of alex"),
        (
            "embedded:tuned",
            "method: expected embedded with one of baseline, random, lpips, .*, calibration=FILE, .* got 'embedded:t",
        ),
        ("embedded:weights=", "got 'embedded:weights='"),
        ("embedded:baseline=x", "got 'embedded:baseline=x'"),
    ],
)
def test_unknown_methods_are_refused(name, message):
    with pytest.raises(ValueError, match=message):
        parse_method(name)


def test_missing_piq_and_small_images_are_refused(pair, monkeypatch):
    monkeypatch.setattr("lpips_lightning.evaluation.methods.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r'fsim: expected the package piq, .* "lpips_lightning\[piq\]"'):
        parse_method("fsim")
    with pytest.raises(ValueError, match=r"ms-ssim: expected sides of more than 160 pixels, got 64x64; use larger"):
        parse_method("ms-ssim").distance(*pair(2, 64, 64))


def test_papers_rows_are_named_as_the_paper_names_them():
    assert len(TABLE_5) == 23
    assert len(PAPER_SETS) == 6
    rows = {
        ("alex", "lin"): "Alex-lin",
        ("vgg", "tune"): "VGG-tune",
        ("squeeze", "scratch"): "Squeeze-scratch",
        ("vgg", "baseline"): "VGG",
        ("alex", "baseline"): "AlexNet",
        ("alex", "random"): "Gaussian",
        ("alex", "kmeans"): "K-means",
        ("human", "lin"): "Human",
        ("fsim", "lin"): "FSIMc",
    }
    for (net_type, mode), row in rows.items():
        assert paper_row(net_type, mode) == row
        assert row in TABLE_5
    assert paper_row("embedded") is None
    assert paper_row("squeeze", "random") is None
    # Means over the six sets, as the paper prints them in its last column.
    means = {row: round(sum(values) / 6, 1) for row, values in TABLE_5.items()}
    assert (means["L2"], means["Alex-lin"], means["VGG-tune"]) == (63.2, 69.8, 69.8)


def test_measured_distances_are_scored_by_the_judgments():
    data, pairs = judged.triplets(11, 40), judged.pairs(7, 40)
    methods = [parse_method("embedded"), parse_method("l2")]
    seen = []
    found = measure(methods, {"noise": data, "jnd/noise": pairs}, 4, report=lambda *args: seen.append(args))
    assert seen[-1] == ("jnd/noise", 7, 7)
    assert [(name, list(sets)) for name, sets in found.items()] == [
        ("embedded", ["noise", "jnd/noise"]),
        ("l2", ["noise", "jnd/noise"]),
    ]
    net, columns = LPIPS("embedded"), data.columns
    d0, d1 = net(columns["ref"], columns["p0"]), net(columns["ref"], columns["p1"])
    assert torch.allclose(found["embedded"]["noise"].distances, torch.stack([d0, d1], 1).double(), rtol=1e-5)
    table = {(cell.method, cell.set, cell.kind): cell for cell in score(found, {"l2": "L2"}, resamples=50)}
    assert len(table) == 5
    assert table["embedded", "noise", "2afc"].value == pytest.approx(
        100 * float(two_afc_score(d0, d1, columns["judge"]))
    )
    assert table["judges", "noise", "2afc"].value == pytest.approx(100 * float(human_ceiling(columns["judge"])))
    same = pairs.columns["same"]
    distances = (pairs.columns["p0"] - pairs.columns["p1"]).square().mean((1, 2, 3))
    cell = table["l2", "noise", "jnd"]
    assert cell.value == pytest.approx(100 * float(jnd_score(distances, same)))
    columns = (found["l2"]["jnd/noise"].distances[:, 0], same.double())
    low, high = bootstrap_interval(jnd_score, *columns, bounds=(0, 1), resamples=50)
    assert (cell.low, cell.high) == pytest.approx((100 * low, 100 * high))
    assert cell.count == 7


def test_shifts_move_the_patches_against_the_reference():
    data, seen = judged.triplets(6, 40), []

    def distance(x, y):
        seen.append((x, y))
        return (x - y).square().mean((1, 2, 3))

    found = measure([Method("l2", distance, None)], {"noise": data, "jnd/noise": judged.pairs(3, 40)}, 6, shifts=(1, 5))
    columns, flips = data.columns, found["l2"]["noise"].flips
    assert list(flips) == [1, 5] and found["l2"]["jnd/noise"].flips == {}
    for shift, width in ((1, 37), (5, 35)):
        ref = columns["ref"][..., :width]
        answers = [
            distance(ref, columns["p0"][..., first : first + width])
            < distance(ref, columns["p1"][..., first : first + width])
            for first in (0, shift)
        ]
        assert torch.equal(flips[shift], (answers[0] != answers[1]).double())
    assert all(x.shape == y.shape for x, y in seen)
    cells = {cell.kind: cell for cell in score(found, resamples=20) if cell.method == "l2" and cell.set == "noise"}
    assert list(cells) == ["2afc", "flips-1", "flips-5", "jnd"]
    assert cells["flips-5"].value == pytest.approx(100 * float(flips[5].mean())) and cells["flips-5"].count == 6
    with pytest.raises(ValueError, match="shifts: expected less than the width of the images, 40 pixels, got 40"):
        measure([Method("l2", distance, None)], {"noise": data}, 6, shifts=(40,))


def test_rank_flips_of_all_sets_are_pooled():
    rows = [
        Judged("2afc", torch.zeros(n, 2), torch.zeros(n), None, {1: torch.ones(n) * rate})
        for n, rate in ((1, 1.0), (3, 0))
    ]
    scores = score({"ours": dict(zip("ab", rows, strict=True))}, resamples=2)
    assert flip_rates(scores) == {"ours": {1: (25.0, 4)}}


def test_the_command_prints_and_writes_rank_flips(root, tmp_path, capsys):
    out = tmp_path / "out"
    evaluate("l2", "--folder", root, "--shifts", "1,2", "--resamples", 10, "--out", out, "--size", 0)
    said = capsys.readouterr().out
    assert "Rank flips, %" in said and re.search(r"method +1 px +2 px", said)
    assert {kind for _, _, kind in cells(out / "scores.csv")} == {"2afc", "jnd", "flips-1", "flips-2"}
    assert "| method | 1 px | 2 px |" in (out / "scores.md").read_text()
    for given, message in (
        ("0", "shifts: expected pixels of at least 1, got 0"),
        ("1", "shifts: expected --folder with"),
    ):
        only = ["--sets", "--jnd-sets", "cnn"] if given == "1" else []
        with pytest.raises(ValueError, match=message):
            evaluate("l2", "--folder", root, *only, "--shifts", given, "--out", tmp_path / "none")


def test_papers_values_stand_beside_ours_on_the_papers_sets():
    rows = Judged("2afc", torch.tensor([[0.1, 0.2]]), torch.tensor([0.0]))
    judges = {"cnn": PEOPLE}
    found = score({"ours": {"cnn": rows, "mine": rows}}, {"ours": "Alex-lin"}, resamples=2, judges=judges)
    assert {(cell.method, cell.set): cell.paper for cell in found} == {
        (HUMAN, "cnn"): 84.4,
        ("judges", "mine"): None,
        ("ours", "cnn"): 83.4,
        ("ours", "mine"): None,
    }
    assert [cell.value for cell in found] == [100, 100, 100, 100]


def test_bapps_is_known_by_names_and_numbers_of_rows():
    rows = Judged("2afc", torch.rand(1888, 2), torch.full((1888,), 0.5))
    found = score({"l2": {"frameinterp": rows, "cnn": rows}}, {"l2": "L2"}, resamples=2)
    assert {(cell.method, cell.set): (cell.paper, cell.is_ceiling) for cell in found} == {
        (HUMAN, "frameinterp"): (68.6, True),
        ("judges", "cnn"): (None, True),
        ("l2", "frameinterp"): (55.0, False),
        ("l2", "cnn"): (None, False),
    }


def test_generated_data_names_the_metric_that_judged(tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib")
    for number in range(2):
        write_image(
            torch.rand(3, 40, 40, generator=torch.Generator().manual_seed(number)), tmp_path / f"in/{number}.png"
        )
    make_bapps(tmp_path / "in", tmp_path / "made", distance=l2, train=0, val=6, jnd=6, size=32)
    # Even with the names and numbers of BAPPS it is not taken for it.
    monkeypatch.setitem(ARCHIVES["2afc/val"].counts, "traditional", (6, 6))
    evaluate("l2", "ssim", "--root", tmp_path / "made", "--out", tmp_path / "out", "--resamples", 2)
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "2AFC score, %, judged by a metric: l2" in said and "JND average precision, %, judged by a metric: l2" in said
    )
    assert "human" not in said and "paper" not in said
    found = cells(tmp_path / "out/scores.csv")
    assert next(iter(found)) == ("judge: l2", "traditional", "2afc")
    assert {(row["judge"], row["paper"]) for row in found.values()} == {("judge: l2", "")}
    markdown = (tmp_path / "out/scores.md").read_text()
    assert "**2AFC score, %** (judged by a metric: l2)" in markdown and "paper" not in markdown


def test_means_are_of_methods_with_every_set():
    def cell(method, name, value):
        return Score(method, name, "2afc", value, 0, 0, 1, None)

    found = summary([cell("a", "x", 50), cell("a", "y", 70), cell("b", "x", 90)], "2afc")
    assert found == {"a": 60}
    assert summary([cell("a", "x", 50)], "jnd") == {}


def test_external_distances_are_read_from_files(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d/one.csv").write_text("path,d0,d1,judge\nval/color/p0/0.png,0.1,0.2,0.4\nval/cnn/p0/0.png,3,2,1\n")
    (tmp_path / "d/two.csv").write_text("path,distance,same\njnd/val/cnn/p0/0.png,0.5,1\n")
    found = read_distances(tmp_path / "d")
    assert list(found) == ["cnn", "color", "jnd/cnn"]
    assert found["cnn"].distances.tolist() == [[3, 2]]
    assert found["jnd/cnn"].kind == "jnd"
    assert found["jnd/cnn"].distances.tolist() == [[0.5]]
    for text, message in {
        "path,d0,judge\nval/cnn/p0/0.png,1,1\n": "line 1: expected the columns path, d0, d1, judge",
        "path,d0,d1,judge\nval/cnn/p0/0.png,1,x,1\n": "line 2: d1: expected a number, got 'x'",
        "path,d0,d1,judge\nval/cnn/p0/0.png,1,2,3\n": r"line 2: judge: expected a fraction in \[0, 1\], got 3",
        "path,d0,d1,judge\n0.png,1,2,1\n": "line 2: path: expected <set>/<kind>/<image>, got '0.png'",
    }.items():
        (tmp_path / "bad.csv").write_text(text)
        with pytest.raises(ValueError, match=message):
            read_distances(tmp_path / "bad.csv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="distances: expected CSV files in .*empty"):
        read_distances(tmp_path / "empty")


def test_strongest_disagreements_come_first_in_both_directions():
    def distances(*values):
        return Judged("jnd", torch.tensor(values)[:, None], torch.zeros(len(values)))

    first = {"a": distances(1.0, 2.0, 3.0), "b": distances(40.0, 50.0, 60.0)}
    second = {"a": distances(0.6, 0.2, 0.3), "b": distances(0.4, 0.5, 0.1)}
    found = figures.disagreements(first, second, 1)
    assert found == ([("a", 0, 0)], [("b", 2, 0)])  # rank 0 against 5, 5 against 0


def test_pairs_without_a_disagreement_or_a_distance_are_left_out():
    def distances(*values):
        return {"a": Judged("jnd", torch.tensor(values)[:, None], torch.zeros(len(values)))}

    nan = float("nan")
    assert figures.disagreements(distances(1.0, 2.0, 3.0), distances(5.0, 6.0, 9.0), 2) == ([], [])
    found = figures.disagreements(distances(1.0, nan, 2.0, 3.0), distances(3.0, 9.0, nan, 1.0), 2)
    assert found == ([("a", 0, 0)], [("a", 3, 0)])


def test_a_pair_of_images_is_shown_once_with_its_files(tmp_path, monkeypatch):
    """Rows 0 and 1 have the same two images, in another order."""
    images = torch.rand(4, 3, 8, 8) * 2 - 1
    pairs = [(0, 1), (1, 0), (2, 3), (3, 0)]
    rows = [
        {
            "ref": images[a],
            "p0": images[b],
            "p1": images[b],
            "judge": torch.tensor(0.5),
            "path": f"{a}.png|{b}.png|x.png",
        }
        for a, b in pairs
    ]
    near = torch.tensor([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0], [6.0, 7.0]])
    measured = {name: {"mine": Judged("2afc", d, torch.zeros(4))} for name, d in (("one", near), ("two", -near))}
    shown = []
    monkeypatch.setattr(figures, "save_figure", lambda figure, path: shown.append(figure) or [path])
    figures.save_disagreements(measured, ("one", "two"), {"mine": rows}, tmp_path / "a.png")
    captions = [axes.get_xlabel().splitlines() for axes in shown[0].axes if axes.get_visible()]
    assert [caption[0] for caption in captions] == ["0.png", "3.png", "2.png"]
    assert captions[0] == ["0.png", "1.png", "one 0 | two -0"]
    titles = [block.get_suptitle() for block in shown[0].subfigs]
    assert titles == ["similar for one, different for two", "similar for two, different for one"]


def test_command_prints_and_saves_everything(root, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(ARCHIVES["2afc/val"].counts, "traditional", (6, 6))  # as if it were BAPPS
    pytest.importorskip("matplotlib")
    evaluate(
        "embedded", "l2", "--root", root, "--size", 40, "--out", tmp_path, "--resamples", 20, "--disagree", "l2", "psnr"
    )
    said = capsys.readouterr().out
    for word in ("2AFC score", "JND average precision", "human", "judges", "embedded", "psnr", "traditional", "paper"):
        assert word in said
    assert {path.name for path in tmp_path.iterdir()} == {
        "scores.csv",
        "scores.md",
        *(f"{name}.{kind}" for name in ("2afc", "jnd", "2afc_jnd", "disagreements") for kind in ("png", "pdf")),
    }
    assert all(path.name in said for path in tmp_path.iterdir())
    found = cells(tmp_path / "scores.csv")
    assert len(found) == 2 + 3 * 3
    assert [key[0] for key in found][:2] == ["human", "judges"]
    assert found["l2", "cnn", "2afc"]["paper"] == ""
    assert [key[1] for key in found][:2] == ["traditional", "cnn"]  # the paper's order
    cell = found["l2", "traditional", "2afc"]
    assert float(cell["paper"]) == 59.9
    assert float(cell["low"]) <= float(cell["value"]) <= float(cell["high"])
    assert cell["count"] == "6"
    assert found["embedded", "cnn", "jnd"]["paper"] == ""
    markdown = (tmp_path / "scores.md").read_text()
    assert "| method | traditional | cnn | mean |" in markdown
    assert "(59.9)" in markdown
    for path in tmp_path.glob("*.png"):
        with Image.open(path) as image:
            assert image.width > 300
            assert len(np.unique(np.asarray(image.convert("L")))) > 20


def test_own_judgments_and_distances_are_scored(root, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    folder = root / "2afc/val/cnn"
    (tmp_path / "own.csv").write_text("ref,p0,p1,judge\nref/0.png,p0/0.png,p1/0.png,1\nref/1.png,p0/1.png,p1/1.png,0\n")
    (tmp_path / "theirs.csv").write_text("path,d0,d1,judge\nval/triplets/p0/0.png,2,1,1\nval/triplets/p0/1.png,2,1,0\n")
    own = ["--csv", tmp_path / "own.csv", "--images", folder]
    evaluate(
        "l2", *own, "--distances", f"theirs={tmp_path / 'theirs.csv'}", "--out", tmp_path / "out", "--resamples", 5
    )
    found = cells(tmp_path / "out/scores.csv")
    assert float(found["theirs", "triplets", "2afc"]["value"]) == 50.0
    assert float(found["judges", "triplets", "2afc"]["value"]) == 100.0
    assert found["l2", "triplets", "2afc"]["count"] == "2"
    evaluate("--distances", f"theirs={tmp_path / 'theirs.csv'}", "--out", tmp_path / "alone", "--resamples", 5)
    assert len(cells(tmp_path / "alone/scores.csv")) == 2
    assert not (tmp_path / "alone/jnd.png").exists()
    assert "theirs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "sets"),
    [
        (["--csv", "CSV", "--folder", "CNN"], ["triplets"]),
        (["--csv", "CSV", "--images", "CNN"], ["triplets"]),
        (["--csv", "CSV", "--images", "CNN", "--folder", "ROOT"], ["triplets", "traditional", "cnn"]),
        (["--csv", "CSV", "--images", "CNN", "--root", "ROOT", "--sets", "cnn"], ["triplets", "cnn"]),
    ],
)
def test_folder_is_of_the_csv_or_of_a_data_set_beside_it(options, sets, root, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    names = {"CSV": tmp_path / "own.csv", "CNN": root / "2afc/val/cnn", "ROOT": root}
    (tmp_path / "own.csv").write_text(
        "ref,p0,p1,judge\nref/0.png,p0/0.png,p1/0.png,1\nref/0.png,p1/0.png,p0/0.png,0\nref/1.png,p0/1.png,p1/1.png,0\n"
    )
    evaluate("l2", *(names.get(option, option) for option in options), "--out", tmp_path / "out", "--resamples", 20)
    found = cells(tmp_path / "out/scores.csv")
    assert [key[1] for key in found if key[::2] == ("l2", "2afc")] == sets
    assert (row := found["l2", "triplets", "2afc"])["count"] == "2"
    assert float(row["low"]) < 40 + 0.5 * float(row["value"]) and float(row["high"]) - float(row["low"]) > 60
    said = capsys.readouterr().out
    assert re.search(r"^ n +2", said, re.MULTILINE) and "±0.0" not in said


def test_intervals_of_own_judgments_are_over_references():
    rows = torch.tensor([[0.1, 0.2]] * 100 + [[0.2, 0.1]] * 100)
    judged_rows = [Judged("2afc", rows, torch.zeros(200), groups) for groups in (None, torch.arange(200) % 100)]
    judged_rows.append(Judged("2afc", rows, torch.zeros(200), torch.arange(200) // 50))
    widths = []
    for one in judged_rows:
        (cell,) = [cell for cell in score({"mine": {"own": one}}) if cell.method == "mine"]
        widths.append(cell.high - cell.low)
    assert widths[1] < 5 < widths[0] < 20 < 80 < widths[2]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "methods: expected --folder or --distances, got nothing to score"),
        (["l2"], "folder: expected --folder DIR, alone or with --csv FILE, to evaluate methods, got none"),
        (["l2", "--csv", "a.csv"], "csv: expected --csv FILE together with --folder DIR, got one of them"),
        (["--distances", "a.csv"], "distances: expected NAME=FILE, got 'a.csv'"),
        (["l2", "--root", "nowhere"], "--root: expected sets in 2afc/val or jnd/val of 'nowhere', got none"),
        (["lpips", "--root", "HERE"], "method: expected one of alex"),
        (
            ["l2", "--root", "HERE", "--distances", "l2=a.csv"],
            "distances: expected a name that is not among the methods or judges, got 'l2'",
        ),
        (["--distances", "human=a.csv"], "distances: expected a name that is not among .* judges, got 'human'"),
        (["l2", "--root", "HERE", "--sets", "flowers"], "sets: expected some of cnn, traditional .* got 'flowers'"),
        (["ms-ssim", "--root", "HERE"], "ms-ssim: expected sides of more than 160 pixels, got 64x64"),
    ],
)
def test_bad_commands_are_one_sentence(args, message, root, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(cli.TRACEBACK_VARIABLE, raising=False)
    arguments = [str(root) if arg == "HERE" else arg for arg in args]
    assert cli.main(["bapps", "evaluate", *arguments]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


def test_figures_need_matplotlib(monkeypatch, tmp_path):
    monkeypatch.setattr("lpips_lightning.io.figures.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r'figures need matplotlib, .* "lpips_lightning\[recipes\]"'):
        figures.save_scores([], tmp_path / "a.png")
