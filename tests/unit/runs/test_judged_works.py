"""The works of `bapps evaluate` and `correlate` give what today's path gives, bit for bit."""

import csv
import pickle

import pytest
import torch
from small_data import write_bapps, write_noise

from lpips_lightning import LPIPS
from lpips_lightning.cli.commands import main
from lpips_lightning.cli.evaluate import data_sets
from lpips_lightning.evaluation import benchmark, opinion_scores
from lpips_lightning.evaluation.methods import parse_method
from lpips_lightning.runs.engine import run
from lpips_lightning.runs.judgments import JudgmentsWork, judged_sets
from lpips_lightning.runs.launch import Launch
from lpips_lightning.runs.opinions import OpinionsWork, by_alpha, measured_rows

SHIFTS = [1, 4]


def one_rank():
    return Launch(devices="1", accelerator="cpu").trainer()


def methods():
    return [parse_method(name) for name in ("embedded", "l2")]


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_judgments_are_measured_as_today(tmp_path, workers):
    write_bapps(tmp_path, {"2afc/val/cnn": 5, "2afc/val/color": 3, "jnd/val/cnn": 4}, size=36)
    sets = data_sets(tmp_path, None, None, None)
    expected = benchmark.measure(methods(), sets, 2, shifts=SHIFTS)
    steps = []
    work = JudgmentsWork(methods, sets, 2, SHIFTS, lambda *step: steps.append(step))
    found = judged_sets(run(one_rank(), lambda: work, workers=workers), sets, SHIFTS)
    assert [*found] == [*expected] == ["embedded", "l2"]
    for method, by_set in expected.items():
        assert [*found[method]] == [*by_set] == ["cnn", "color", "jnd/cnn"]
        for name, judged in by_set.items():
            own = found[method][name]
            assert own.kind == judged.kind
            assert own.distances.equal(judged.distances)
            assert own.shares.equal(judged.shares)
            assert [*own.flips] == [*judged.flips] == ([] if "jnd" in name else SHIFTS)
            assert all(own.flips[shift].equal(flips) for shift, flips in judged.flips.items())
    assert steps[-1] == ("measuring", 7, 7)


def test_a_copy_on_another_rank_reports_nothing(tmp_path):
    write_bapps(tmp_path, {"2afc/val/cnn": 2}, size=32)
    work = JudgmentsWork(methods, data_sets(tmp_path, None, None, None), report=pytest.fail)
    assert run(one_rank(), lambda: pickle.loads(pickle.dumps(work)))


def rated(folder):
    """Images of three references of several sizes, and a video whose frames fill several batches."""
    names = [f"{reference}{kind}" for reference in "cab" for kind in ("", "x", "y")]
    for number, one in enumerate(names):
        write_noise(folder, [one], height=32 + 8 * (number // 3), width=48, seed=number)
    write_noise(folder, [f"{video}/{frame}" for video in ("v", "w") for frame in range(9)], height=256, width=300)
    rows = [(f"{one[0]}.png", f"{one}.png", number % 4) for number, one in enumerate(names) if len(one) > 1]
    with (folder / "scores.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("reference", "distorted", "score"), *rows[::2], ("v", "w", 2.5), *rows[1::2]])
    return opinion_scores.read_opinion_scores(folder / "scores.csv")


@pytest.mark.parametrize("background", [None, "white"])
def test_opinions_are_measured_as_today(tmp_path, background):
    opinions = rated(tmp_path)
    distances = {"": LPIPS("embedded", background=background), "l2": parse_method("l2")}
    expected = {name: opinion_scores.measure(opinions, one) for name, one in distances.items()}
    assert by_alpha(distances) == ({True: [""], False: ["l2"]} if background else {False: ["", "l2"]})
    work = OpinionsWork(lambda: distances, opinions, by_alpha(distances))
    found = measured_rows(run(one_rank(), lambda: work), opinions)
    assert sorted(found) == sorted(expected)
    for name, (means, frames) in expected.items():
        assert found[name][0].equal(means)
        assert found[name][1] == frames
    assert len(expected[""][1]) == 6 + 9


EVALUATE = ["bapps", "evaluate", "l2", "--size", "0", "--resamples", "10", "--force", "--folder", ".", "--out"]
CORRELATE = ["correlate", "scores.csv", "--net", "embedded", "--force", "--csv"]


@pytest.mark.parametrize(
    ("line", "file"), [pytest.param(EVALUATE, "scores.csv", marks=pytest.mark.slow), (CORRELATE, "")]
)
def test_commands_with_devices_give_what_they_give_without(tmp_path, monkeypatch, capsys, line, file):
    monkeypatch.chdir(tmp_path)
    write_bapps(tmp_path, {"2afc/val/cnn": 3, "jnd/val/cnn": 3}, size=32)
    rated(tmp_path)
    outputs = []
    for number, more in enumerate(([], ["--devices", "1", "--accelerator", "cpu"])):
        assert main([*line, "out", *more]) == 0
        outputs.append((capsys.readouterr().out, (tmp_path / "out" / file).read_bytes()))
        (tmp_path / "out").rename(tmp_path / f"out{number}")
    assert outputs[0] == outputs[1]


def test_a_broken_image_stops_a_command_with_devices_as_without(tmp_path, capsys):
    rated(tmp_path)
    (tmp_path / "bx.png").write_bytes((tmp_path / "bx.png").read_bytes()[:200])
    errors = []
    for more in ([], ["--devices", "1", "--accelerator", "cpu"]):
        line = ["correlate", str(tmp_path / "scores.csv"), "--net", "embedded", *more]
        assert main(line) == 2
        errors.append(capsys.readouterr().err.splitlines()[-1])
    assert errors[0] == errors[1]
    assert "bx.png: expected a readable image" in errors[0]


def test_frames_of_different_sizes_are_refused_with_their_line(tmp_path):
    rated(tmp_path)
    (tmp_path / "scores.csv").write_text("reference,distorted,score\na.png,ax.png,1\na.png,bx.png,2\n")
    opinions = opinion_scores.read_opinion_scores(tmp_path / "scores.csv")
    distances = {"": LPIPS("embedded")}
    with pytest.raises(ValueError, match=r"scores\.csv, line 3: .*bx\.png: expected the size of .*a\.png"):
        run(one_rank(), lambda: OpinionsWork(lambda: distances, opinions, by_alpha(distances)))
    assert torch.is_grad_enabled()
