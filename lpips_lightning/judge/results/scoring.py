"""Metrics scored on the answers of a study: agreement with people, its interval, and what more judgments would give."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lpips_lightning.functional.judgments import agreement, bootstrap_interval, jnd_score
from lpips_lightning.judge.judged_images import Distances, related
from lpips_lightning.judge.records import Item
from lpips_lightning.judge.results.agreement import UNKNOWN, Ballots, Components, Estimate, components
from lpips_lightning.judge.store import Study

_NEWTON_STEPS, _RIDGE = 25, 1e-3


@dataclass(frozen=True)
class Judgments:
    """Votes on items, as columns.

    Attributes:
        items: The items.
        second: Fraction of the votes for the second choice, p1 or "different", ``(M,)`` in [0, 1].
        votes: Number of votes, ``(M,)``.
        references: Number of what each item's reference comes from, ``(M,)``: patches of one photograph are related.
    """

    items: Sequence[Item]
    second: Tensor
    votes: Tensor
    references: Tensor

    @classmethod
    def of(cls, votes: Mapping[int, tuple[int, int]], study: Study) -> Judgments:
        """Columns of `lpips_lightning.judge.votes.tally`."""
        items = study.items("judged")
        table = torch.tensor(list(votes.values()), dtype=torch.float64).view(-1, 2)
        chosen = [items[item] for item in votes]
        return cls(chosen, table[:, 1] / table.sum(1), table.sum(1), related(study, chosen))

    def __len__(self) -> int:
        return len(self.items)

    def subset(self, rows: Sequence[int]) -> Judgments:
        """The items at `rows`."""
        index = torch.tensor(rows, dtype=torch.long)
        items = [self.items[row] for row in rows]
        return replace(
            self, items=items, second=self.second[index], votes=self.votes[index], references=self.references[index]
        )


@dataclass(frozen=True)
class MetricScore:
    """Agreement of a metric with people.

    Attributes:
        name: Name of the metric.
        score: 2AFC score, or the average precision of JND, in [0, 1], with its interval over references.
        items: Number of items.
        judgments: Their votes.
        threshold: JND: the distance at which half of the observers see a difference; unknown for 2AFC.
        held_out: Whether the items are only those that its calibration was not trained on.
    """

    name: str
    score: Estimate
    items: int
    judgments: int
    threshold: Estimate = UNKNOWN
    held_out: bool = False


def score(
    name: str,
    distances: Distances,
    judged: Judgments,
    test: str,
    *,
    only: Sequence[int] | None = None,
    resamples: int = 1000,
) -> MetricScore:
    """Score a metric on the items that it has distances of.

    Args:
        name: Name of the metric.
        distances: Its distances by item.
        judged: The votes.
        test: ``"2afc"`` or ``"jnd"``.
        only: Items that its calibration was not trained on; None for all.
        resamples: Bootstrap resamples.
    """
    part = _part(distances, judged, only)
    if not len(part):
        return MetricScore(name, UNKNOWN, 0, 0, held_out=only is not None)
    columns = _columns(distances, part, test)
    function = torch.mean if test == "2afc" else jnd_score
    value = float(function(*columns))
    bounds = (0.0, 1.0)
    ends = bootstrap_interval(function, *columns, groups=part.references, bounds=bounds, resamples=resamples)
    known = Estimate(value, *ends) if math.isfinite(value) else UNKNOWN
    threshold = UNKNOWN if test == "2afc" else _threshold(distances, part, resamples)
    return MetricScore(name, known, len(part), int(part.votes.sum()), threshold, only is not None)


@dataclass(frozen=True)
class Difference:
    """Paired difference of two metrics' scores on the items that both have.

    Attributes:
        first: Name of the first metric.
        second: Name of the second metric.
        difference: Score of the first minus that of the second, with its interval over references.
        items: Number of items.
    """

    first: str
    second: str
    difference: Estimate
    items: int

    @property
    def verdict(self) -> str:
        """What the interval says."""
        if not self.difference.known:
            return "cannot be told"
        if self.difference.low > 0:
            return f"{self.first} agrees better"
        return f"{self.second} agrees better" if self.difference.high < 0 else "within the noise"


def difference(
    names: tuple[str, str],
    distances: tuple[Distances, Distances],
    judged: Judgments,
    test: str,
    *,
    only: Sequence[int] | None = None,
    resamples: int = 1000,
) -> Difference:
    """Paired difference of two metrics; arguments as for `score`."""
    shared: Distances = {item: pair for item, pair in distances[0].items() if item in distances[1]}
    part = _part(shared, judged, only)
    if not len(part):
        return Difference(*names, UNKNOWN, 0)
    first, other = (_columns(one, part, test) for one in distances)
    columns = [first[0] - other[0]] if test == "2afc" else [first[0], other[0], first[1]]

    def gap(*some: Tensor) -> Tensor:
        return some[0].mean() if test == "2afc" else jnd_score(some[0], some[2]) - jnd_score(some[1], some[2])

    value = float(gap(*columns))
    if not math.isfinite(value):
        return Difference(*names, UNKNOWN, len(part))
    ends = bootstrap_interval(gap, *columns, groups=part.references, bounds=(-1.0, 1.0), resamples=resamples)
    return Difference(*names, Estimate(value, *ends), len(part))


def _part(distances: Distances, judged: Judgments, only: Sequence[int] | None) -> Judgments:
    allowed = distances.keys() if only is None else distances.keys() & set(only)
    return judged.subset([row for row, item in enumerate(judged.items) if item.id in allowed])


def _columns(distances: Distances, part: Judgments, test: str) -> list[Tensor]:
    pairs = [distances[item.id] for item in part.items]
    first = torch.tensor([pair[0] for pair in pairs], dtype=torch.float64)
    if test == "jnd":
        return [first, 1 - part.second]
    other = torch.tensor([pair[1] for pair in pairs], dtype=torch.float64)
    return [agreement(first, other, part.second)]


def psychometric(distances: Tensor, different: Tensor, votes: Tensor) -> tuple[Tensor, Tensor]:
    """Logistic curve of the fraction of people who see a difference, over the logarithm of the distance.

    Args:
        distances: Distances, ``(..., M)``; zeros count as the smallest one above 0.
        different: Fractions of people, ``(..., M)``.
        votes: Number of votes, ``(..., M)``.

    Returns:
        The distance at which half of the people see a difference, and the slope there; each ``(...)``. NaN where
        people's answers do not rise with the distance.
    """
    least = distances[distances > 0].min() if bool((distances > 0).any()) else distances.new_tensor(1.0)
    x = distances.clamp(min=float(least)).log()
    middle, scale = x.mean(-1, keepdim=True), x.std(-1, keepdim=True).clamp(min=1e-9)
    x = (x - middle) / scale
    a, b = torch.zeros_like(x[..., 0]), torch.ones_like(x[..., 0])
    for _ in range(_NEWTON_STEPS):
        p = torch.sigmoid(a[..., None] + b[..., None] * x)
        error, w = votes * (different - p), votes * p * (1 - p) + 1e-12
        g0, g1 = error.sum(-1) - _RIDGE * a, (error * x).sum(-1) - _RIDGE * b
        h00, h01, h11 = w.sum(-1) + _RIDGE, (w * x).sum(-1), (w * x * x).sum(-1) + _RIDGE
        determinant = h00 * h11 - h01 * h01
        step = torch.stack([(h11 * g0 - h01 * g1) / determinant, (h00 * g1 - h01 * g0) / determinant])
        step = step * (2 / step.abs().amax(0).clamp(min=2))  # at most 2, so that separable answers do not diverge
        a, b = a + step[0], b + step[1]
    threshold = (middle[..., 0] - scale[..., 0] * a / b).exp()
    return torch.where(b > 0, threshold, math.nan), b / scale[..., 0]


def _threshold(distances: Distances, part: Judgments, resamples: int) -> Estimate:
    """The just noticeable distance; not known where it lies outside of what was shown."""
    first, _ = _columns(distances, part, "jnd")
    if not 0 < float(part.second.mean()) < 1 or len(part) < 3:
        return UNKNOWN

    def function(*some: Tensor) -> Tensor:
        return psychometric(*some)[0]

    columns, few = (first, part.second, part.votes), min(resamples, 200)  # of a fit of many steps
    value = float(function(*columns))
    if not (math.isfinite(value) and float(first.min()) <= value <= float(first.max())):
        return UNKNOWN
    low, high = bootstrap_interval(function, *columns, groups=part.references, resamples=few)
    within = math.isfinite(low) and math.isfinite(high)  # else too few answers decide for or against a distance
    return Estimate(value, low, high) if within else Estimate(value, math.nan, math.nan)


@dataclass(frozen=True)
class Outlook:
    """What more judgments would do to the interval of a 2AFC score.

    Attributes:
        name: Name of the metric.
        half: Half of its interval now.
        judgments: Judgments now.
        more: Further judgments.
        new_items: Half of the interval if they are of new items; None if it cannot be told.
        same_items: Half of the interval if they are of the same items; None if it cannot be told.
        parts: Fractions of the variance by items, observers and single answers; None if no item has two votes.
        left: Items of the study without a vote.
    """

    name: str
    half: float
    judgments: int
    more: int
    new_items: float
    same_items: float | None
    parts: Components | None
    left: int

    def sentences(self) -> list[str]:
        """What it says, in words."""
        digits = 1 if self.half - self.new_items > 0.001 else 2
        now, then = (f"± {100 * half:.{digits}f}" for half in (self.half, self.new_items))
        first = f"{self.more} more judgments of new items would narrow {self.name} from {now} to {then}"
        if self.same_items is not None:
            first += f"; of the same items, to ± {100 * self.same_items:.{digits}f}"
        lines = [first + "."]
        if not self.left:
            lines.append("No item of the study is left without a vote: new items take a new study.")
        if self.parts is None:
            lines.append("No item has two votes: what comes from items and what from observers cannot be told.")
            return lines
        shares = [f"{100 * part:.0f} %" for part in self.parts]
        lines.append(
            f"Of the variance of this score, {shares[0]} comes from which items were judged, {shares[1]} from which"
            f" observers judged, {shares[2]} from single answers."
        )
        if self.parts.observers > 0.1:
            lines.append("The intervals are for these observers: for others they would be wider.")
        return lines


def outlook(
    found: MetricScore, distances: Distances, ballots: Ballots, study: Study, more: int = 200
) -> Outlook | None:
    """What more judgments would do, from the variance components of a metric's agreement with single answers.

    New items bring as many votes per item, and as many answers per observer, as there are now. More votes on the same
    items leave the items' part of the variance as it is.

    Args:
        found: The metric's score.
        distances: Its distances by item.
        ballots: The answers that it was scored on.
        study: The study.
        more: Further judgments.

    Returns:
        None without a score of two items or more.
    """
    if study.design.test != "2afc" or not found.score.known or found.items < 2:
        return None
    kept, values = _answers_right(distances, ballots)
    parts = components(kept, values)
    now, grown = len(kept), (len(kept) + more) / len(kept)
    votes = kept.counts().sum(1)
    left = len(study.items("judged").keys() - set(ballots.items))
    new, half = found.score.half / math.sqrt(grown), found.score.half
    if parts is None:
        return Outlook(found.name, half, now, more, new, None, None, left)
    mean = parts.of_mean(votes, len(kept.observers))
    total = sum(mean)
    if total <= 0:
        return Outlook(found.name, half, now, more, new, None, None, left)
    fixed = mean.items + mean.answers
    same = half * math.sqrt((mean.items + mean.answers / grown) / fixed) if fixed > 0 else half
    return Outlook(found.name, half, now, more, new, same, Components(*(part / total for part in mean)), left)


def _answers_right(distances: Distances, ballots: Ballots) -> tuple[Ballots, Tensor]:
    """The answers to items with distances, and whether each agrees with them; ties count one half."""
    known = torch.tensor([item in distances for item in ballots.items])
    rows = known.cumsum(0) - 1
    chosen = known[ballots.item]
    kept = Ballots(
        rows[ballots.item[chosen]],
        ballots.observer[chosen],
        ballots.second[chosen],
        [item for item in ballots.items if item in distances],
        ballots.observers,
        None if ballots.references is None else ballots.references[known],
    )
    pairs = torch.tensor([distances[item] for item in kept.items], dtype=torch.float64)
    return kept, agreement(pairs[kept.item, 0], pairs[kept.item, 1], kept.second.double())
