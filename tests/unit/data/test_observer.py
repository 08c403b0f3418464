"""Simulated observers: probabilities, votes that agree with them, and data sets with fractions in place of 0 and 1."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import binom, norm

from lpips_lightning.cli import commands as cli
from lpips_lightning.data.bapps import JNDDataset, TwoAFCDataset
from lpips_lightning.data.bapps_generate import l2, make_bapps
from lpips_lightning.data.judges import is_exact, judge_note, judged_by
from lpips_lightning.data.observer import VOTES, SimulatedObserver, vote
from lpips_lightning.functional.judgments import human_ceiling, jnd_curve, jnd_score, two_afc_score
from tests._helpers.small_data import write_noise

SMALL = {"train": 6, "val": 6, "jnd": 9, "size": 32, "distance": l2}
COUNT = 3000
SIGMAS = 4.0


def distances(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).exp()


def voted(probabilities, votes):
    generator = torch.Generator().manual_seed(1)
    return torch.tensor([vote(p, votes, generator) for p in probabilities.tolist()], dtype=torch.float64)


@pytest.mark.parametrize(("noise", "lapse", "threshold"), [(0.5, 0.0, 1.0), (0.75, 0.1, 0.3), (2.0, 1.0, 4.0)])
def test_probabilities_are_those_of_a_noisy_threshold(noise, lapse, threshold):
    observer, (d0, d1) = SimulatedObserver(noise, lapse, threshold), distances(2, 50).numpy()
    same = lapse / 2 + (1 - lapse) * norm.cdf((np.log(threshold) - np.log(d0)) / noise)
    second = lapse / 2 + (1 - lapse) * norm.cdf((np.log(d0) - np.log(d1)) / (math.sqrt(2) * noise))
    found = observer.same(torch.from_numpy(d0)), observer.second(torch.from_numpy(d0), torch.from_numpy(d1))
    assert np.allclose(found[0], same, atol=1e-6) and np.allclose(found[1], second, atol=1e-6)
    assert bool((found[0][torch.from_numpy(d0).argsort()].diff() <= 0).all())


def test_without_noise_the_metric_decides_and_zero_distances_look_the_same():
    exact, noisy = SimulatedObserver(0, 0, 2.0), SimulatedObserver(0.5, 0.1, 2.0)
    pairs, zeros = torch.tensor([0.0, 1.0, 2.0, 3.0]), torch.zeros(3)
    assert exact.same(pairs).tolist() == [1, 1, 1, 0]
    assert exact.second(torch.tensor([1.0, 2.0, 2.0]), torch.tensor([2.0, 1.0, 2.0])).tolist() == [0, 1, 0.5]
    assert noisy.same(zeros).tolist() == pytest.approx([0.95] * 3)
    assert noisy.second(zeros, torch.tensor([0.0, 1.0, 0.0])).tolist() == pytest.approx([0.5, 0.05, 0.5])


def test_the_threshold_is_the_median_unless_it_is_given():
    found = SimulatedObserver().with_threshold(torch.tensor([3.0, 1.0, 2.0, 10.0]))
    assert found == replace(SimulatedObserver(), threshold=2.5)
    assert found.with_threshold(torch.tensor([7.0])) is found
    assert SimulatedObserver().with_threshold(torch.tensor([])).threshold is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise": -1}, "noise: expected at least 0, got -1"),
        ({"noise": math.nan}, "noise: expected at least 0, got nan"),
        ({"lapse": 1.5}, r"lapse: expected a probability in \[0, 1\], got 1.5"),
        ({"threshold": -0.1}, "threshold: expected a distance of at least 0, got -0.1"),
    ],
)
def test_impossible_observers_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SimulatedObserver(**options)


@pytest.mark.parametrize("wrong", [-1.0, math.nan, math.inf])
def test_impossible_distances_are_refused(wrong):
    values = torch.tensor([1.0, wrong])
    for ask in (SimulatedObserver(threshold=1.0).same, lambda d: SimulatedObserver().second(values.abs(), d)):
        with pytest.raises(ValueError, match=f"distances: expected finite values of at least 0, got {wrong:g}"):
            ask(values)
    with pytest.raises(ValueError, match="threshold: expected a distance, got None"):
        SimulatedObserver().same(torch.ones(1))


def test_jnd_precision_is_what_the_model_predicts():
    pairs, votes = distances(COUNT), VOTES["jnd/val"]
    expected = SimulatedObserver(0.75, 0.02).with_threshold(pairs).same(pairs)
    same = voted(expected, votes)
    assert {round(3 * value) for value in same.tolist()} == {0, 1, 2, 3}
    (_, found), (recall, predicted) = jnd_curve(pairs, same), jnd_curve(pairs, expected)
    ordered = expected[pairs.argsort()]
    ranks = torch.arange(1, COUNT + 1)
    deviation = (ordered * (1 - ordered) / votes).cumsum(0).sqrt() / ranks  # of a mean of binomial fractions
    for quarter in (COUNT // 4, COUNT // 2, 3 * COUNT // 4, COUNT):
        assert abs(found[quarter - 1] - predicted[quarter - 1]) < SIGMAS * deviation[quarter - 1]
    total = deviation[-1] * COUNT / expected.sum()  # relative error of all recalls
    bound = SIGMAS * float((recall.diff(prepend=recall.new_zeros(1)) * deviation).sum() + total)
    assert abs(jnd_score(pairs, same) - jnd_score(pairs, expected)) < bound < 0.1


@pytest.mark.parametrize("part", ["2afc/train", "2afc/val"])
def test_2afc_score_and_ceiling_are_what_the_model_predicts(part):
    (d0, d1), votes = distances(2, COUNT, seed=2), VOTES[part]
    expected = SimulatedObserver(0.75, 0.02).second(d0, d1)
    judge = voted(expected, votes)
    agreed = torch.maximum(expected, 1 - expected)  # the metric itself chooses the likelier answer
    deviation = (expected * (1 - expected) / votes).sum().sqrt() / COUNT
    assert abs(two_afc_score(d0, d1, judge) - agreed.mean()) < SIGMAS * deviation
    yes = np.arange(votes + 1)
    chances = binom.pmf(yes, votes, expected.numpy()[:, None])
    ceilings = (yes / votes) ** 2 + (1 - yes / votes) ** 2
    mean = chances @ ceilings
    assert np.allclose(mean, expected**2 + (1 - expected) ** 2 + 2 * expected * (1 - expected) / votes)
    deviation = math.sqrt((chances @ ceilings**2 - mean**2).sum()) / COUNT
    found = float(human_ceiling(judge))
    assert abs(found - mean.mean()) < SIGMAS * deviation and 0.6 < found < 0.97


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    return write_noise(tmp_path_factory.mktemp("photographs"))


def content(folder, suffix):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob(f"*{suffix}") if path.is_file()
    }


def fractions(root):
    parts = {
        f"2afc/{split}": (TwoAFCDataset(root, split, ("traditional",), None), "judge") for split in ("train", "val")
    }
    parts["jnd/val"] = (JNDDataset(root, ("traditional",), None), "same")
    return {part: [float(data[index][kind]) for index in range(len(data))] for part, (data, kind) in parts.items()}


def test_simulated_votes_change_the_judgments_alone(photographs, tmp_path):
    exact = make_bapps(photographs, tmp_path / "exact", **SMALL)
    observer = SimulatedObserver(noise=1.0)
    root = make_bapps(photographs, tmp_path / "simulated", **SMALL, observer=observer)
    again = make_bapps(photographs, tmp_path / "again", **SMALL, observer=observer)
    still = make_bapps(photographs, tmp_path / "still", **SMALL, observer=SimulatedObserver(0, 0))
    for suffix in (".png", ".csv"):
        assert content(root, suffix) == content(exact, suffix)
    assert content(root, "") == content(again, "")
    assert content(still, ".npy") == content(exact, ".npy") != content(root, ".npy")
    found = fractions(root)
    for part, values in found.items():
        assert all(abs(VOTES[part] * value - round(VOTES[part] * value)) < 1e-6 for value in values)
    assert any(0 < value < 1 for values in found.values() for value in values)
    record = json.loads((root / "made.json").read_text())
    middle = float(
        np.median([float(line.rpartition(",")[2]) for line in _lines(root / "jnd/val/traditional/made.csv")])
    )
    assert record["observer"] == {"noise": 1.0, "lapse": 0.02, "threshold": pytest.approx(middle), "votes": {**VOTES}}
    assert "observer" not in json.loads((exact / "made.json").read_text())
    judge = judged_by(root, "jnd/val", "traditional")
    assert (judge.kind, judge.label, is_exact(judge.label)) == ("simulated", "simulated: l2", False)
    assert judge_note([judge.label, "judge: l2"]) == "judged by a metric: l2; votes simulated with a metric: l2"


def _lines(path):
    return path.read_text().splitlines()[1:]


def test_observers_need_a_metric(photographs, tmp_path):
    with pytest.raises(ValueError, match="observer: expected None without a judging distance"):
        make_bapps(photographs, tmp_path / "out", train=2, val=0, distance=None, observer=SimulatedObserver())


def test_commands_make_and_evaluate_simulated_votes(photographs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make = ["bapps", "make", f"--folder={photographs}", "--out=made", "--judge=l2", "--size=32"]
    counts = ["--train=0", "--val=20", "--jnd=20"]
    assert cli.main([*make, *counts, "--observers=simulated", "--noise=2", "--threshold=0.01"]) == 0
    assert "judged by l2, votes of simulated observers" in capsys.readouterr().out
    assert json.loads((tmp_path / "made/made.json").read_text())["observer"]["threshold"] == 0.01
    assert cli.main(["bapps", "evaluate", "l2", "--folder=made", "--size=0", "--resamples=20"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.count("votes simulated with a metric: l2") == 2 and "simulated: l2" in shown
    text = (tmp_path / "outputs/evaluation/scores.csv").read_text()
    (ceiling,) = (line for line in text.splitlines() if line.startswith("simulated: l2"))
    assert 50 < float(ceiling.split(",")[3]) < 100
    for wrong, message in (
        (["--noise=1"], "--noise: expected --observers simulated with this option, got none"),
        (["--observers=simulated", "--noise=-1"], "--noise: expected at least 0, got -1.0"),
        (["--observers=simulated", "--judge=none"], "--observers: expected a --judge that is a distance, got none"),
    ):
        assert cli.main([*make[:3], "--out=new", *make[4:], *wrong]) == 2
        assert capsys.readouterr().err == f"lpips-lightning: {message}\n"
    assert not (tmp_path / "new").exists()
