"""A calibration and the official one on the same held-out triplets: scores, their difference, what is said."""

import pytest
import torch

from lpips_lightning.calibration.comparison import compare_calibrations
from lpips_lightning.calibration.pooled import PooledTriplets

FIRST, SECOND = {"one": torch.tensor([1.0, 0.0])}, {"one": torch.tensor([0.0, 1.0])}


def triplets(count, agree=1.0, seed=0):
    """Triplets on which the calibrations disagree; people side with the first in a fraction of them."""
    generator = torch.Generator().manual_seed(seed)
    near = torch.rand(count, 2, generator=generator) + 0.1
    far = near + 1
    swap = torch.rand(count, generator=generator) < 0.5
    # For the first calibration p0 is closer where not swapped; for the second the other way round.
    p0, p1 = torch.stack([near[:, 0], far[:, 1]], 1), torch.stack([far[:, 0], near[:, 1]], 1)
    p0, p1 = torch.where(swap[:, None], p1, p0), torch.where(swap[:, None], p0, p1)
    with_first = torch.rand(count, generator=generator) < agree
    judge = (swap == with_first).float()
    rows = torch.stack([torch.arange(count), count + torch.arange(count)], 1)
    return PooledTriplets(torch.cat([p0, p1]), None, rows, judge, {"one": 2})


@pytest.mark.parametrize(
    ("own", "official", "agree", "verdict"),
    [
        (FIRST, SECOND, 1.0, "better than the official calibration, beyond the noise"),
        (SECOND, FIRST, 1.0, "worse than the official calibration, beyond the noise"),
        (FIRST, SECOND, 0.5, "within the noise"),
        (FIRST, FIRST, 1.0, "within the noise"),
    ],
)
def test_the_interval_of_the_difference_decides(own, official, agree, verdict):
    found = compare_calibrations(triplets(100, agree, seed=1), own, official, resamples=200)
    assert verdict in found.verdict
    assert found.difference.value == pytest.approx(found.own.value - found.official.value, abs=1e-12)
    assert found.own.low <= found.own.value <= found.own.high
    assert found.human is None and "no triplet has votes for both" in "\n".join(found.lines("set"))


def test_one_triplet_decides_nothing():
    found = compare_calibrations(triplets(1), FIRST, SECOND, resamples=50)
    assert (found.own.value, found.official.value) == (1.0, 0.0)
    assert found.own.low < 0.25 and found.official.high > 0.75
    assert found.difference.low < 0 < found.difference.high
    assert "within the noise" in found.verdict
    assert found.lines("set")[0] == "set: 2AFC in percent on 1 held-out triplet of 1 reference"


def test_the_difference_is_paired():
    """What both calibrations get wrong is no noise of their difference."""
    data = triplets(400, agree=1.0)
    coin = torch.Generator().manual_seed(1)
    data.judge[:] = (torch.rand(400, generator=coin) < 0.5).float()
    found = compare_calibrations(data, FIRST, FIRST, resamples=100)
    assert found.own.high - found.own.low > 0.08
    assert found.difference.high - found.difference.low < 0.04


def test_intervals_are_over_references_and_the_record_has_everything():
    data = triplets(200, agree=0.8)
    data.judge[:5] = 0.5
    alone = compare_calibrations(data, FIRST, SECOND, resamples=200)
    grouped = compare_calibrations(data, FIRST, SECOND, torch.arange(200) % 10, resamples=200)
    assert (alone.references, grouped.references, grouped.triplets) == (200, 10, 200)
    one = compare_calibrations(data, FIRST, SECOND, torch.zeros(200, dtype=torch.long), resamples=20).lines("set")
    assert one[0] == "set: 2AFC in percent on 200 held-out triplets of 1 reference, for which alone the intervals hold"
    assert grouped.own.value == alone.own.value and (grouped.own.low, grouped.own.high) != (
        alone.own.low,
        alone.own.high,
    )
    assert grouped.human == pytest.approx((195 + 2.5) / 200)
    record = grouped.record()
    assert record["difference"] == [grouped.difference.value, grouped.difference.low, grouped.difference.high]
    assert (record["2afc"], record["official"], record["references"]) == (grouped.own.value, grouped.official.value, 10)
