"""2AFC and JND scores: closed forms, slow loops, published figures, batches and ranks, bad input."""

import csv
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from references import slow_jnd, slow_two_afc

from lpips_lightning.functional.judgments import (
    agreement,
    bootstrap_interval,
    human_ceiling,
    jnd_curve,
    jnd_score,
    rank_flip_rate,
    two_afc_score,
)
from lpips_lightning.metrics.judgments import JNDScore, RankFlipRate, TwoAFCScore

NAN = float("nan")
# Means of the score column and of p^2 + (1 - p)^2, in per cent: data/README.md beside the files.
PUBLISHED = {
    "traditional": (4720, 77.48, 80.84),
    "cnn": (4720, 82.87, 84.35),
    "superres": (10856, 71.19, 73.60),
    "deblur": (9440, 61.04, 66.09),
    "color": (4720, 65.23, 68.83),
    "frameinterp": (1888, 62.43, 68.61),
}


@pytest.fixture
def bapps():
    """Folder of the recorded distances and judgments, or a visible skip."""
    root = os.environ.get("LPIPS_LIGHTNING_DATA")
    if not root or not (Path(root) / "bapps").is_dir():
        pytest.skip("LPIPS_LIGHTNING_DATA does not name a folder with bapps/alex_vanilla and bapps/pim1_user_jnd_*.npy")
    return Path(root) / "bapps"


def judged(count, seed, levels=None):
    generator = torch.Generator().manual_seed(seed)
    d0, d1 = torch.rand(2, count, generator=generator, dtype=torch.float64)
    if levels:  # few different distances: ties
        d0, d1 = (d0 * levels).floor(), (d1 * levels).floor()
    return d0, d1, torch.randint(6, (count,), generator=generator) / 5


@pytest.mark.parametrize("name", PUBLISHED)
def test_scorer_gives_the_published_means_and_ceilings(bapps, name):
    with (bapps / "alex_vanilla" / f"{name}.csv").open() as file:
        rows = list(csv.DictReader(file))
    d0, d1, judge, score = (
        torch.tensor([float(row[column]) for row in rows], dtype=torch.float64)
        for column in ("d0", "d1", "judge", "score")
    )
    count, mean, ceiling = PUBLISHED[name]
    assert len(rows) == count
    assert round(100 * float(two_afc_score(d0, d1, judge)), 2) == mean
    assert round(100 * float(human_ceiling(judge)), 2) == ceiling
    assert torch.allclose(agreement(d0, d1, judge), score, rtol=0, atol=1e-7)  # the column was written in float32


def test_jnd_scorer_gives_the_published_average_precision(bapps):
    distances, same = (torch.from_numpy(np.load(bapps / f"pim1_user_jnd_{name}.npy")) for name in ("ds", "sames"))
    assert len(distances) == 301
    assert round(float(jnd_score(distances, same)), 8) == 0.77088508


def test_closed_forms():
    d0, d1 = torch.tensor([0.0, 1.0, 0.5, 0.2]), torch.tensor([1.0, 0.0, 0.5, 0.3])
    judge = torch.tensor([0.2, 0.2, 0.9, 0.5])
    assert float(two_afc_score(d0, d1, judge)) == pytest.approx((0.8 + 0.2 + 0.5 + 0.5) / 4)
    assert float(human_ceiling(judge)) == pytest.approx((0.68 + 0.68 + 0.82 + 0.5) / 4)
    assert float(jnd_score(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 1.0, 0.0]))) == 1.0
    assert float(jnd_score(torch.tensor([3.0, 2.0, 1.0]), torch.tensor([1.0, 0.0, 0.0]))) == pytest.approx(1 / 3)


@pytest.mark.parametrize("levels", [None, 4])
@pytest.mark.parametrize("count", [1, 7, 60])
def test_scores_match_slow_loops(count, levels):
    d0, d1, judge = judged(count, seed=count, levels=levels)
    judge[0] = 1.0
    assert float(two_afc_score(d0, d1, judge)) == pytest.approx(slow_two_afc(d0, d1, judge), abs=1e-12)
    assert float(jnd_score(d0, judge)) == pytest.approx(slow_jnd(d0, judge), abs=1e-12)


@given(st.integers(0, 2**31), st.integers(2, 30))
@settings(max_examples=30, deadline=None)
def test_scores_are_invariant_to_order_and_scale(seed, count):
    d0, d1, judge = judged(count, seed, levels=5)
    judge[0] = 1.0
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    again = two_afc_score(3 * d0[order], 3 * d1[order], judge[order])
    assert float(again) == pytest.approx(float(two_afc_score(d0, d1, judge)), abs=1e-12)
    assert float(two_afc_score(d1, d0, 1 - judge)) == pytest.approx(float(two_afc_score(d0, d1, judge)), abs=1e-6)
    assert float(jnd_score(3 * d0[order], judge[order])) == pytest.approx(float(jnd_score(d0, judge)), abs=1e-12)


def test_an_uninformative_distance_scores_at_chance_level():
    generator = torch.Generator().manual_seed(0)
    same = (torch.rand(4000, generator=generator) < 0.3).float()
    flat = jnd_score(torch.rand(4000, generator=generator), same)
    assert float(flat) == pytest.approx(0.3, abs=0.03)
    distances = torch.rand(4000, 1, 1, 1, generator=generator)  # as the reference's network returns them
    assert float(jnd_score(distances, same)) == pytest.approx(0.3, abs=0.03)
    assert torch.equal(jnd_score(distances, same), jnd_score(distances.flatten(), same))
    assert float(jnd_score(torch.zeros(4000), same)) == pytest.approx(float(same.mean()))


def test_curve_has_a_point_for_each_distance_and_ends_at_the_mean():
    recall, precision = jnd_curve(torch.tensor([0.2, 0.1, 0.2, 0.4]), torch.tensor([1.0, 0.0, 0.0, 1.0]))
    assert recall.tolist() == [0.0, 0.5, 1.0]
    assert precision.tolist() == pytest.approx([0.0, 1 / 3, 0.5])


def test_no_samples_give_nan():
    nothing = torch.zeros(0)
    assert all(
        score.isnan()
        for score in (
            two_afc_score(nothing, nothing, nothing),
            human_ceiling(nothing),
            jnd_score(nothing, nothing),
            jnd_score(torch.rand(3), torch.zeros(3)),
        )
    )
    assert all(math.isnan(end) for end in bootstrap_interval(torch.mean, nothing))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"d0": torch.zeros(3)}, "d1: expected as many as d0, 3 on cpu, got 4"),
        ({"judge": torch.zeros(1)}, "judge: expected as many as d0, 4 on cpu, got 1"),
        ({"d0": torch.zeros(())}, r"d0: expected shape \(M,\), .* got \(\)"),
        ({"d0": torch.zeros(1, 4)}, r"d0: expected shape \(M,\), .* got \(1, 4\); flatten it"),
        ({"d1": torch.zeros(4, 1, 2, 2)}, r"d1: expected shape \(M,\), .* got \(4, 1, 2, 2\)"),
        ({"d1": torch.tensor([0.0, NAN, NAN, 1.0])}, "d1: expected values without NaN, got 2 NaN of 4"),
        ({"judge": torch.tensor([0.0, NAN, 0.5, 1.0])}, "judge: expected values without NaN, got 1 NaN of 4"),
        ({"judge": torch.tensor([0.0, 4.0, 0.5, 1.0])}, r"expected fractions in \[0, 1\], got values from 0 to 4"),
        ({"judge": torch.tensor([0.0, -0.1, 0.5, 1.0])}, r"expected fractions in \[0, 1\], got values from -0.1"),
    ],
)
def test_bad_judgments_are_refused(change, message):
    arguments = {"d0": torch.rand(4), "d1": torch.rand(4), "judge": torch.rand(4)} | change
    with pytest.raises(ValueError, match=message):
        two_afc_score(**arguments)
    with pytest.raises(ValueError, match=message):
        TwoAFCScore().update(**arguments)
    if "d1" not in change:
        message = message.replace("d1", "same").replace("judge", "same").replace("d0", "distances")
        with pytest.raises(ValueError, match=message):
            jnd_score(arguments["d0"], arguments["judge"])


@pytest.mark.parametrize("wrong", [[0.5], torch.zeros(1, dtype=torch.complex64)])
def test_only_real_tensors_are_accepted(wrong):
    with pytest.raises(TypeError, match="judge: expected a real tensor"):
        human_ceiling(wrong)


def test_interval_covers_the_score_narrows_with_data_and_repeats():
    few, many = judged(40, 0), judged(4000, 0)
    low, high = bootstrap_interval(two_afc_score, *few, resamples=200)
    assert low < float(two_afc_score(*few)) < high
    narrow = bootstrap_interval(two_afc_score, *many, resamples=200)
    assert narrow[1] - narrow[0] < 0.3 * (high - low)
    assert bootstrap_interval(two_afc_score, *few, resamples=200) == (low, high)
    assert bootstrap_interval(two_afc_score, *few, resamples=200, seed=1) != (low, high)
    # The mean of many: its interval is the normal one.
    scores = agreement(*many)
    error = float(scores.std()) / len(scores) ** 0.5
    low, high = bootstrap_interval(torch.mean, scores, resamples=1000)
    assert (high - low) / (2 * 1.96 * error) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"confidence": 1.0}, "confidence: expected a number between 0 and 1, got 1.0"),
        ({"resamples": 0}, "resamples: expected at least 1, got 0"),
    ],
)
def test_bad_intervals_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_interval(torch.mean, torch.rand(3), **arguments)
    with pytest.raises(ValueError, match=r"columns: expected equal lengths, got \[3, 2\]"):
        bootstrap_interval(two_afc_score, torch.rand(3), torch.rand(2))


def test_metrics_take_distances_as_the_reference_returns_them_and_give_the_curve():
    d0, d1, judge = judged(20, 3, levels=6)
    afc, jnd = TwoAFCScore(), JNDScore()
    afc.update(d0.view(-1, 1, 1, 1), d1, judge)
    assert torch.equal(afc.compute(), two_afc_score(d0, d1, judge))
    jnd.update(d0[:14], judge[:14])
    jnd.update(d0[14:], judge[14:])
    assert torch.equal(jnd.compute(), jnd_score(d0, judge))
    assert torch.equal(jnd.curve()[1], jnd_curve(d0, judge)[1])
    for metric, columns in ((TwoAFCScore(), (d0, d1, judge)), (JNDScore(), (d0, judge))):
        metric.update(*(column[:0] for column in columns))
        assert metric.compute().isnan()


def test_shapes_are_checked_without_validate_args():
    metric = TwoAFCScore(validate_args=False)
    metric.update(torch.tensor([0.1]), torch.tensor([NAN]), torch.tensor([0.3]))
    with pytest.raises(ValueError, match="d1: expected as many as d0"):
        metric.update(torch.rand(2), torch.rand(3), torch.rand(2))


@pytest.mark.parametrize(
    ("values", "bounds", "expected"),
    [  # Wilson's intervals of 0 or all of n, by hand: z^2 / (n + z^2) from the end
        ([0.0], (0, 1), (0.0, 0.7935)),
        ([1.0, 1.0], (0, 1), (0.3424, 1.0)),
        ([0.0], (-1, 1), (-0.7935, 0.7935)),
        ([1.0] * 200, (0, 1), (0.9812, 1.0)),
        ([0.0] * 400, (-1, 1), (-0.0095, 0.0095)),
    ],
)
def test_equal_rows_have_wilsons_interval(values, bounds, expected):
    found = bootstrap_interval(torch.mean, torch.tensor(values), bounds=bounds, resamples=20)
    assert found == pytest.approx(expected, abs=1e-4)
    assert bootstrap_interval(torch.mean, torch.tensor(values), resamples=20) == (values[0], values[0])  # not bounded


@pytest.mark.parametrize("count", [1, 3, 5, 10, 20])
@pytest.mark.parametrize("fraction", [0.5, 0.8])
def test_an_interval_of_few_rows_covers_the_truth(count, fraction):
    generator = torch.Generator().manual_seed(count)
    trials = 60
    hits = 0
    for seed in range(trials):
        votes = (torch.rand(count, generator=generator) < fraction).double()
        low, high = bootstrap_interval(torch.mean, votes, bounds=(0, 1), resamples=60, seed=seed)
        hits += low <= fraction <= high
    # 95 %; the interval of one vote covers a fraction of 0.8 in 80 %, since a "0" leaves it out.
    assert hits / trials > (0.7 if (count, fraction) == (1, 0.8) else 0.88)


def test_rows_of_a_group_are_drawn_together():
    generator = torch.Generator().manual_seed(0)
    means = torch.rand(40, generator=generator, dtype=torch.float64)
    rows, groups = means.repeat_interleave(25), torch.randperm(40, generator=generator).repeat_interleave(25)
    order = torch.randperm(1000, generator=generator)
    together = bootstrap_interval(torch.mean, rows[order], groups=groups[order])
    alone, apart = bootstrap_interval(torch.mean, means), bootstrap_interval(torch.mean, rows)
    assert together[1] - together[0] == pytest.approx(alone[1] - alone[0], rel=0.1)
    assert together[1] - together[0] > 4 * (apart[1] - apart[0])  # the root of 25
    one = bootstrap_interval(torch.mean, rows, groups=torch.zeros(1000))
    assert one == apart  # no second group to draw


@pytest.mark.parametrize(("count", "widest"), [(2, 0.6), (4, 0.4), (5, 0.01), (40, 0.01)])
def test_few_groups_tell_little_however_many_their_rows(count, widest):
    rows = torch.ones(1000)
    low, high = bootstrap_interval(torch.mean, rows, groups=torch.arange(1000) % count, bounds=(0, 1), resamples=20)
    assert high == 1.0
    assert (1 - low > widest) == (count < 5)


def test_groups_of_unequal_size_are_whole_in_every_resample():
    groups = torch.tensor([7, 3, 3, 9, 9, 9])
    seen = []
    bootstrap_interval(lambda rows: seen.append(rows.tolist()) or rows.mean(), groups.double(), groups=groups)
    sizes = {7.0: 1, 3.0: 2, 9.0: 3}
    assert len(seen) == 1000
    for drawn in seen:
        times = [drawn.count(label) / size for label, size in sizes.items()]
        assert sum(times) == 3 and all(count == int(count) for count in times)


def test_few_groups_have_the_tail_of_students_distribution():
    from lpips_lightning.functional.judgments import _tail

    for count, quantile in ((5, 2.7764), (10, 2.2622), (30, 2.0452), (200, 1.9720)):  # of t with count - 1 degrees
        expected = 0.5 * math.erfc(quantile * math.sqrt(count / (count - 1)) / math.sqrt(2))
        assert _tail(count, 0.95) == pytest.approx(expected, rel=0.03, abs=2.5e-4)
    assert _tail(10**6, 0.95) == pytest.approx(0.025, rel=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bounds": (1, 0)}, r"bounds: expected the lowest and the highest score, got \(1, 0\)"),
        ({"groups": torch.zeros(2)}, r"groups: expected shape \(3,\), as the columns, got \(2,\)"),
    ],
)
def test_bad_groups_and_bounds_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_interval(torch.mean, torch.rand(3), **arguments)


# Distances of 12 triplets of BAPPS' frameinterp (20 to 26, 38 to 42) before and after a shift by 1 pixel, as published
# for alex-ST: abhijay9/ShiftTolerant-LPIPS, results/alex_shift_tolerant (BSD-2-Clause).
TRIPLETS = """
0.033962 0.019528 0.036819 0.027115
0.006254 0.017664 0.011204 0.020751
0.162080 0.042016 0.155771 0.046764
0.002871 0.003360 0.008609 0.008347
0.002710 0.002622 0.013956 0.009905
0.053075 0.006350 0.056761 0.008690
0.060353 0.047496 0.060401 0.048133
0.028355 0.223099 0.027480 0.220367
0.035006 0.123652 0.026689 0.115601
0.008021 0.003364 0.006715 0.011137
0.001270 0.000994 0.001480 0.001139
0.004162 0.012997 0.010032 0.012006
"""


def test_rank_flips_of_published_distances():
    columns = torch.tensor([[float(value) for value in line.split()] for line in TRIPLETS.split("\n") if line]).unbind(
        1
    )
    assert float(rank_flip_rate(*columns)) == pytest.approx(2 / 12)  # the fourth, and the tenth


def test_rank_flips_by_hand():
    rows = {
        (1, 2, 3, 4): 0.0,  # the first stays nearer
        (1, 2, 4, 3): 1.0,
        (2, 1, 3, 4): 1.0,
        (1, 1, 2, 2): 0.0,  # tied before and after
        (1, 1, 2, 3): 0.5,
        (2, 3, 1, 1): 0.5,
        (math.inf, math.inf, 1, 2): 0.5,
    }
    columns = torch.tensor(list(rows), dtype=torch.float32).unbind(1)
    assert float(rank_flip_rate(*columns)) == pytest.approx(sum(rows.values()) / len(rows))
    d0, d1, shifted_d0, shifted_d1 = columns
    for same in ((d1, d0, shifted_d1, shifted_d0), (shifted_d0, shifted_d1, d0, d1)):
        assert rank_flip_rate(*same) == rank_flip_rate(*columns)
    for row, flips in rows.items():
        assert float(rank_flip_rate(*torch.tensor(row)[:, None])) == flips
    assert rank_flip_rate(*[column.view(-1, 1, 1, 1) for column in columns]) == rank_flip_rate(*columns)
    assert rank_flip_rate(*torch.zeros(4, 0)).isnan()


@pytest.mark.parametrize("call", [rank_flip_rate, lambda *columns: RankFlipRate().update(*columns)])
def test_rank_flips_refuse_what_scores_refuse(call):
    d = torch.rand(3)
    with pytest.raises(ValueError, match="shifted_d1: expected values without NaN, got 1 NaN of 3"):
        call(d, d, d, torch.tensor([0.1, NAN, 0.2]))
    with pytest.raises(ValueError, match="d1: expected as many as d0, 3 on cpu, got 2 on cpu"):
        call(d, d[:2], d, d)
    with pytest.raises(ValueError, match=r"shifted_d0: expected shape \(M,\)"):
        call(d, d, torch.rand(3, 2), d)
    with pytest.raises(TypeError, match="d0: expected a real tensor"):
        call([0.1], d, d, d)
