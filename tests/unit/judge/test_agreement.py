"""Agreement of observers: closed forms, a published example, independent computations, and intervals that cover."""

import dataclasses
from itertools import combinations

import pytest
import torch

from lpips_lightning.functional.judgments import human_ceiling
from lpips_lightning.judge.results.agreement import (
    Ballots,
    between,
    by_observer,
    ceiling,
    components,
    krippendorff_alpha,
    pair_agreement,
)

KRIPPENDORFF = """1 2 3 3 2 1 4 1 2 . . .
1 2 3 3 2 2 4 1 2 5 . 3
. 3 3 3 2 3 4 2 2 5 1 .
1 2 3 3 2 4 4 1 2 5 1 ."""
"""Four observers, twelve units, missing values: Krippendorff 2011, section C."""

BINARY = """0 1 0 0 0 0 0 0 1 0
1 1 1 0 0 1 0 0 0 0"""
"""Two observers, two values: section A."""


def table(text):
    rows = [line.split() for line in text.splitlines()]
    values = sorted({cell for row in rows for cell in row} - {"."})
    return torch.tensor([[column.count(value) for value in values] for column in zip(*rows, strict=True)])


@pytest.mark.parametrize(("text", "alpha"), [(KRIPPENDORFF, 0.743), (BINARY, 0.095)])
def test_alpha_of_published_examples(text, alpha):
    assert float(krippendorff_alpha(table(text))) == pytest.approx(alpha, abs=5e-4)


def test_alpha_counts_an_item_as_often_as_told():
    counts = table(KRIPPENDORFF)
    times = torch.tensor([0, 1, 2, 3] * 3)
    expected = krippendorff_alpha(counts.repeat_interleave(times, 0))
    assert float(krippendorff_alpha(counts, times.double())) == pytest.approx(float(expected), abs=1e-12)


def test_alpha_of_equal_votes_is_not_known():
    assert krippendorff_alpha(torch.tensor([[3, 0], [2, 0]])).isnan()


def test_pair_agreement_is_that_of_all_pairs():
    votes = ["aab", "aa", "abba", "b", "bbbbb"]
    counts = torch.tensor([[vote.count("a"), vote.count("b")] for vote in votes])
    expected = [
        torch.tensor([one == other for one, other in combinations(vote, 2)]).double().mean().nan_to_num(-1)
        for vote in votes
    ]
    assert torch.equal(pair_agreement(counts).nan_to_num(-1), torch.stack(expected))


def world(items, people, votes, seed, lapse=0.4):
    """Answers with a probability per item, and an observer's own rate of random answers."""
    generator = torch.Generator().manual_seed(seed)
    chance = torch.rand(items, generator=generator).double()
    rate = lapse * torch.rand(people, generator=generator).double()
    item = torch.arange(items).repeat_interleave(votes)
    observer = torch.cat([torch.randperm(people, generator=generator)[:votes] for _ in range(items)])
    chance = chance[item] * (1 - rate[observer]) + 0.5 * rate[observer]
    second = (torch.rand(len(item), generator=generator) < chance).long()
    return Ballots(item, observer, second, range(items), [str(one) for one in range(people)])


# Of two observers with lapses l and k: 1 / 2 + 2 (1 - l) (1 - k) E (p - 1/2)^2, and the variance of p is 1 / 12.
CEILING = 0.5 + 2 * 0.8**2 / 12


def test_the_ceiling_is_unbiased_where_fractions_are_not():
    worlds = [world(200, 10, 3, seed) for seed in range(100)]
    counts = torch.cat([one.counts() for one in worlds])
    assert float(ceiling(counts)) == pytest.approx(CEILING, abs=0.012)
    biased = float(human_ceiling(counts[:, 1] / counts.sum(1)))
    assert biased == pytest.approx(CEILING + (1 - CEILING) / 3, abs=0.012)


def test_intervals_of_the_ceiling_cover_over_items_and_observers():
    found = [between(world(60, 10, 4, seed), resamples=60, seed=seed)[0] for seed in range(60)]
    inside = sum(one.low <= CEILING <= one.high for one in found)
    assert inside >= 53  # of 60; the 1st percentile of a binomial with 0.95
    spread = torch.tensor([one.value for one in found]).std()
    assert sum(one.half for one in found) / 60 < 1.5 * 1.96 * float(spread)


def test_observers_who_differ_widen_the_interval():
    """Three of twelve answer at random; the same votes, dealt out among all, are equal in kind."""
    generator = torch.Generator().manual_seed(0)
    item, observer = torch.arange(80).repeat_interleave(12), torch.arange(12).repeat(80)
    coin = (torch.rand(len(item), generator=generator) < 0.5).long()
    second = torch.where(observer < 3, coin, item % 2)
    order = torch.cat([12 * row + torch.randperm(12, generator=generator) for row in range(80)])
    kinds, dealt = (Ballots(item, observer, some, range(80), "abcdefghijkl") for some in (second, second[order]))
    (one, _), (other, _) = between(kinds, 200), between(dealt, 200)
    assert one.value == other.value
    assert one.half > 2 * other.half > 0


def test_votes_that_happen_to_agree_leave_an_interval():
    item, observer = torch.arange(3).repeat_interleave(2), torch.arange(2).repeat(3)
    found = between(Ballots(item, observer, item % 2, range(3), "ab"), resamples=20)
    for one, lowest in zip(found, (0.0, -1.0), strict=True):
        assert one.value == one.high == 1 and lowest < one.low < 0.5


def test_patches_of_one_photograph_tell_as_little_as_one():
    """Ten photographs, of which half are hard, with eight patches each."""
    item, observer = torch.arange(80).repeat_interleave(4), torch.arange(4).repeat(80)
    hard = (item // 8) % 2 == 0
    ballots = Ballots(item, observer, torch.where(hard, observer % 2, 0), range(80), "abcd")
    alone, _ = between(ballots, 300)
    together, _ = between(dataclasses.replace(ballots, references=torch.arange(80) // 8), 300)
    assert together.value == alone.value
    assert together.half > 2 * alone.half
    one, _ = between(dataclasses.replace(ballots, references=torch.zeros(80, dtype=torch.long)), 300)
    assert one == alone  # nothing to resample but items


@pytest.mark.parametrize("votes", [0, 1])
def test_without_two_votes_on_an_item_nothing_is_known(votes):
    one = torch.zeros(votes, dtype=torch.long)
    agreed, alpha = between(Ballots(one, one, one, range(votes), "a" * votes))
    assert not agreed.known and not alpha.known and agreed.percent() == "-"


def test_numbers_over_observers_are_known_for_one_answer_and_wide():
    found = by_observer(torch.ones(1), torch.zeros(1))
    assert found.value == 1 and found.low < 0.5
    assert not by_observer(torch.ones(0), torch.zeros(0)).known


def test_variance_components_are_those_of_the_simulation():
    generator = torch.Generator().manual_seed(0)
    items, people = 400, 40
    item, observer = torch.arange(items).repeat_interleave(people), torch.arange(people).repeat(items)
    parts = [
        scale * torch.randn(count, generator=generator).double()
        for scale, count in ((0.5, items), (0.3, people), (1, len(item)))
    ]
    values = parts[0][item] + parts[1][observer] + parts[2]
    ballots = Ballots(item, observer, torch.zeros_like(item), range(items), [str(one) for one in range(people)])
    found = components(ballots, values)
    assert found.items == pytest.approx(0.25, rel=0.2)
    assert found.observers == pytest.approx(0.09, rel=0.5)
    assert found.answers == pytest.approx(1.0, rel=0.1)
    mean = found.of_mean(torch.full((items,), people), people)
    assert mean.items == pytest.approx(found.items / items)
    assert mean.answers == pytest.approx(found.answers / len(item))


def test_items_of_one_reference_have_their_reference_in_common():
    """Variance of the mean over items: of the references by their number, of the items by theirs."""
    generator = torch.Generator().manual_seed(0)
    references, each, people = 400, 5, 4
    item, observer = torch.arange(2000).repeat_interleave(people), torch.arange(people).repeat(2000)
    reference = torch.arange(references).repeat_interleave(each)
    own = 0.5 * torch.randn(2000, generator=generator).double()
    common = 0.8 * torch.randn(references, generator=generator).double()
    values = own[item] + common[reference[item]] + torch.randn(len(item), generator=generator).double()
    ballots = Ballots(item, observer, torch.zeros_like(item), range(2000), "abcd", reference)
    mean = components(ballots, values).of_mean(torch.full((2000,), people), people)
    assert mean.items == pytest.approx(0.64 / references + 0.25 / 2000, rel=0.15)
    assert mean.answers == pytest.approx(1 / 8000, rel=0.1)
