"""Agreement of observers with each other and with themselves, with intervals over references and over observers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import NamedTuple

import torch
from torch import Tensor

from lpips_lightning.functional.judgments import bootstrap_percentiles, unseen_ends
from lpips_lightning.judge.judged_images import related
from lpips_lightning.judge.records import CHOICES, Answer
from lpips_lightning.judge.store import Study

FEW_OBSERVERS = 5
"""With fewer observers, intervals are over references alone: they hold for these observers."""

_Z = NormalDist().inv_cdf(0.975)


class Estimate(NamedTuple):
    """A number with its 95 % interval; all NaN where the answers do not tell it."""

    value: float
    low: float
    high: float

    @property
    def known(self) -> bool:
        """Whether the answers tell it."""
        return math.isfinite(self.value)

    @property
    def half(self) -> float:
        """Half the width of the interval."""
        return (self.high - self.low) / 2

    def percent(self, digits: int = 1) -> str:
        """As text in percent; `-` where it is not known."""
        if not self.known:
            return "-"
        value, low, high = (f"{100 * one:.{digits}f}" for one in self)
        return f"{value} % ({low} to {high})" if math.isfinite(self.half) else f"{value} %"

    def plain(self, digits: int = 2) -> str:
        """As text; `-` where it is not known."""
        if not self.known:
            return "-"
        interval = f" ({self.low:.{digits}f} to {self.high:.{digits}f})" if math.isfinite(self.half) else ""
        return f"{self.value:.{digits}f}{interval}"


UNKNOWN = Estimate(math.nan, math.nan, math.nan)


@dataclass(frozen=True)
class Ballots:
    """Answers as columns, at most one per observer and item.

    Attributes:
        item: Index into `items` of each answer, ``(N,)``.
        observer: Index into `observers` of each answer, ``(N,)``.
        second: Whether the second choice of the test was made, ``(N,)``, 0 or 1.
        items: Numbers of the items.
        observers: Pseudonyms of the observers.
        references: Number of what each item's reference comes from, ``(items,)``: patches of one photograph are
            related; None if every item has its own.
    """

    item: Tensor
    observer: Tensor
    second: Tensor
    items: Sequence[int]
    observers: Sequence[str]
    references: Tensor | None = None

    @classmethod
    def of(cls, answers: Sequence[Answer], study: Study) -> Ballots:
        """Columns of answers from `lpips_lightning.judge.votes.counted`."""
        items = sorted({answer.item for answer in answers})
        observers = sorted({answer.observer for answer in answers})
        rows, people = ({one: index for index, one in enumerate(names)} for names in (items, observers))
        second, judged = CHOICES[study.design.test][1], study.items("judged")
        return cls(
            torch.tensor([rows[answer.item] for answer in answers], dtype=torch.long),
            torch.tensor([people[answer.observer] for answer in answers], dtype=torch.long),
            torch.tensor([answer.choice == second for answer in answers], dtype=torch.long),
            items,
            observers,
            related(study, (judged[item] for item in items)),
        )

    def __len__(self) -> int:
        return len(self.item)

    def counts(self, weights: Tensor | None = None) -> Tensor:
        """Votes by item and choice, ``(items, 2)``, float64; `weights` of the answers ``(N,)``."""
        weights = torch.ones(len(self), dtype=torch.float64) if weights is None else weights
        flat = torch.zeros(2 * len(self.items), dtype=torch.float64)
        return flat.index_add(0, 2 * self.item + self.second, weights).view(-1, 2)


def pair_agreement(counts: Tensor) -> Tensor:
    """Fraction of the pairs of observers of an item who agree; its mean over items is the human ceiling.

    With `n` votes, `k` of them for one choice, it is ``(k (k - 1) + (n - k) (n - k - 1)) / (n (n - 1))``: an unbiased
    estimate of ``p^2 + (1 - p)^2``, which the fractions themselves overestimate by ``2 p (1 - p) / n``.

    Args:
        counts: Votes by item and choice, ``(M, K)``.

    Returns:
        Shape ``(M,)``, float64; NaN for items with fewer than two votes.

    Example:
        >>> pair_agreement(torch.tensor([[3, 1], [2, 0], [1, 0]]))
        tensor([0.5000, 1.0000,    nan], dtype=torch.float64)
    """
    votes = counts.double()
    pairs = votes.sum(1) * (votes.sum(1) - 1)
    return torch.where(pairs > 0, (votes * (votes - 1)).sum(1) / pairs, math.nan)


def ceiling(counts: Tensor) -> Tensor:
    """Expected 2AFC score of one more observer: mean of `pair_agreement` over the items with two votes or more."""
    return pair_agreement(counts).nanmean()


def krippendorff_alpha(counts: Tensor, times: Tensor | None = None) -> Tensor:
    """Krippendorff's alpha of nominal values: 1 for full agreement, 0 for agreement by chance.

    Any number of values per item; items with fewer than two do not count. Krippendorff, "Computing Krippendorff's
    Alpha-Reliability", 2011, section C.

    Args:
        counts: Number of times that each value was given, by item, ``(M, K)``.
        times: How often each item counts, ``(M,)``; None for once.

    Returns:
        Shape ``()``, float64; NaN if no item has two values, or all values are equal.

    Example:
        >>> krippendorff_alpha(torch.tensor([[2, 0], [0, 2], [1, 1]]))
        tensor(0.4444, dtype=torch.float64)
    """
    votes = counts.double()[counts.sum(1) > 1]
    scale = 1 / (votes.sum(1) - 1)
    if times is not None:
        scale = scale * times[counts.sum(1) > 1]
    table = torch.einsum("u,uj,uk->jk", scale, votes, votes) - torch.diag(scale @ votes)
    values = table.sum(1)
    expected = (values.sum().square() - values.square().sum()) / (values.sum() - 1)
    observed = table.sum() - table.diagonal().sum()
    return 1 - observed / expected if float(expected) > 0 else votes.new_tensor(math.nan)


def between(ballots: Ballots, resamples: int = 1000, seed: int = 0) -> tuple[Estimate, Estimate]:
    """The human ceiling, and Krippendorff's alpha.

    Their intervals are over references and over observers: percentiles over resamples of references, with all votes on
    their items (of items, if there is one reference), and of votes that may not have been seen, as in
    `bootstrap_interval`; widened by the variance that observers add. That is the jackknife variance over observers,
    minus its mean after votes were shuffled among the observers of each item, which leaves the noise of single answers
    and takes away what one observer's answers have in common. With fewer than `FEW_OBSERVERS` observers the intervals
    are over references alone.

    Args:
        ballots: The answers.
        resamples: Number of resamples of references.
        seed: Random seed.
    """
    counts = ballots.counts()
    several = counts.sum(1) > 1
    counts = counts[several]
    if not len(counts):
        return UNKNOWN, UNKNOWN
    groups, units = _units(ballots, several)
    ones = torch.ones(len(counts), dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.stack([_both(counts, _draw(units, generator)[groups]) for _ in range(resamples)])
    variances = _variance_of_observers(ballots, generator).tolist()
    estimates = []
    values = _both(counts, ones).tolist()
    for value, column, added, bounds in zip(values, drawn.T, variances, ((0.0, 1.0), (-1.0, 1.0)), strict=True):
        known = column[column.isfinite()]
        if len(counts) < 2 or len(known) < 2 or not math.isfinite(value):
            estimates.append(Estimate(value, math.nan, math.nan))
            continue
        unseen = unseen_ends(value, len(counts), units, bounds)  # votes that happen to agree tell less than they seem
        ends = zip(bootstrap_percentiles(known, units), unseen, strict=True)
        low, high = (max(abs(end - value) for end in both) for both in ends)
        more = _Z * math.sqrt(added)
        low, high = value - math.hypot(low, more), value + math.hypot(high, more)
        estimates.append(Estimate(value, max(low, bounds[0]), min(high, bounds[1])))
    return estimates[0], estimates[1]


def _units(ballots: Ballots, rows: Tensor) -> tuple[Tensor, int]:
    """What is resampled: the unit of each of the items at `rows`, and the number of units."""
    count = int(rows.sum())
    if ballots.references is not None:
        groups = ballots.references[rows].unique(return_inverse=True)[1]
        if int(groups.max()):
            return groups, int(groups.max()) + 1
    return torch.arange(count), count


def _both(counts: Tensor, times: Tensor) -> Tensor:
    """Ceiling and alpha of items that count so many times."""
    agreed = pair_agreement(counts)
    known = agreed.isfinite()
    mean = (agreed[known] * times[known]).sum() / times[known].sum()
    return torch.stack([mean, krippendorff_alpha(counts, times)])


def _variance_of_observers(ballots: Ballots, generator: torch.Generator, shuffles: int = 20) -> Tensor:
    """Variance that observers add to ceiling and alpha, ``(2,)``."""
    if len(ballots.observers) < FEW_OBSERVERS:
        return torch.zeros(2, dtype=torch.float64)
    shuffled = [_jackknife(replace(ballots, second=_shuffle(ballots, generator))) for _ in range(shuffles)]
    return (_jackknife(ballots) - torch.stack(shuffled).mean(0)).nan_to_num().clamp(min=0)


def _jackknife(ballots: Ballots) -> Tensor:
    """Jackknife variance of ceiling and alpha over observers, ``(2,)``."""
    people = len(ballots.observers)
    ones = torch.ones(len(ballots.items), dtype=torch.float64)
    without = [_both(ballots.counts((ballots.observer != one).double()), ones) for one in range(people)]
    return torch.stack(without).var(0) * (people - 1) ** 2 / people


def _shuffle(ballots: Ballots, generator: torch.Generator) -> Tensor:
    """The choices, exchanged at random among the answers to each item."""
    order = torch.rand(len(ballots), generator=generator, dtype=torch.float64) + ballots.item
    first = ballots.item.argsort(stable=True)
    second = torch.empty_like(ballots.second)
    second[first] = ballots.second[order.argsort()]
    return second


def by_observer(
    values: Tensor, observers: Tensor, function: Callable[[Tensor], Tensor] = torch.mean, resamples: int = 1000
) -> Estimate:
    """A number over answers, such as the fraction of repeats answered alike, with an interval.

    Args:
        values: A value per answer, ``(N,)``.
        observers: Index of the observer of each, ``(N,)``: observers are resampled, with all of their answers. With
            fewer than `FEW_OBSERVERS` answers are resampled one by one.
        function: The number.
        resamples: Number of resamples.
    """
    from lpips_lightning.functional.judgments import bootstrap_interval

    if not len(values):
        return UNKNOWN
    groups = observers if len(observers.unique()) >= FEW_OBSERVERS else None
    bounds = (0.0, 1.0) if function is torch.mean and bool(((values >= 0) & (values <= 1)).all()) else None
    ends = bootstrap_interval(function, values.double(), groups=groups, bounds=bounds, resamples=resamples)
    return Estimate(float(function(values.double())), *ends)


def _draw(count: int, generator: torch.Generator) -> Tensor:
    """How often each of `count` units is drawn in one resample."""
    return torch.randint(count, (count,), generator=generator).bincount(minlength=count).double()


class Components(NamedTuple):
    """Variance of a mean over answers, by what it comes from.

    Attributes:
        items: Of a single item's expected value, such that the mean over items has it divided by their number: items of
            one reference, which have something in common, add more than others.
        observers: Of a single observer's deviation from the others.
        answers: Of a single answer.
    """

    items: float
    observers: float
    answers: float

    def of_mean(self, votes: Tensor, observers: int) -> Components:
        """Variances of the mean over items with these numbers of votes, ``(I,)``, by this number of observers."""
        count = len(votes)
        return Components(
            self.items / count, self.observers / observers, self.answers * float((1 / votes.double()).sum()) / count**2
        )


def components(ballots: Ballots, values: Tensor) -> Components | None:
    """Variance components of a value per answer, by the method of moments; those below 0 are 0.

    Args:
        ballots: The answers.
        values: A value per answer, ``(N,)``, such as whether it agrees with a metric.

    Returns:
        None if no item has two votes, or there are fewer than two items.
    """
    ones = torch.ones(len(ballots), dtype=torch.float64)
    votes, mean = _group_means(values.double(), ones, ballots.item, len(ballots.items))
    several = votes > 1
    if not bool(several.any()) or len(votes) < 2:
        return None
    within = (values.double() - mean[ballots.item]).square()
    squares = torch.zeros_like(mean).index_add(0, ballots.item, within)
    answers = float(squares[several].sum() / (votes[several] - 1).sum())
    items = max(0.0, _item_variance(ballots, mean) - answers * float((1 / votes).mean()))
    observers = _observer_variance(ballots, values.double(), votes, mean)
    return Components(items, observers, max(0.0, answers - observers))


def _item_variance(ballots: Ballots, mean: Tensor) -> float:
    """Number of items times the variance of the mean over items of their values ``(I,)``."""
    groups, units = _units(ballots, torch.ones(len(mean), dtype=torch.bool))
    sums = torch.zeros(units, dtype=torch.float64).index_add(0, groups, mean - mean.mean())
    return float(sums.square().sum()) / len(mean) * units / (units - 1)


def _group_means(values: Tensor, weights: Tensor, groups: Tensor, count: int) -> tuple[Tensor, Tensor]:
    sizes = torch.zeros(count, dtype=torch.float64).index_add(0, groups, weights)
    return sizes, torch.zeros(count, dtype=torch.float64).index_add(0, groups, weights * values) / sizes


def _observer_variance(ballots: Ballots, values: Tensor, votes: Tensor, mean: Tensor) -> float:
    """Variance between observers of their deviations from the other observers of the same items."""
    people = len(ballots.observers)
    kept = votes[ballots.item] > 1
    item = ballots.item[kept]
    others = (mean[item] * votes[item] - values[kept]) / (votes[item] - 1)
    deviation = values[kept] - others
    observer = ballots.observer[kept]
    sizes, average = _group_means(deviation, torch.ones_like(deviation), observer, people)
    seen = sizes > 1
    if int(seen.sum()) < 2:
        return 0.0
    spread = torch.zeros(people, dtype=torch.float64).index_add(0, observer, (deviation - average[observer]).square())
    noise = (spread / (sizes - 1) / sizes)[seen].mean()
    return max(0.0, float(average[seen].var() - noise))
