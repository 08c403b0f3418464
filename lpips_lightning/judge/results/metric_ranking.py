"""Methods ranked by metrics on the references that people judged, and how far metric and people agree on the order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lpips_lightning.evaluation.methods import Method
from lpips_lightning.io.download import ProgressCallback, no_progress
from lpips_lightning.judge.judged_images import measure
from lpips_lightning.judge.results.bradley_terry import fit_scores
from lpips_lightning.judge.results.ranking import Difference, Preferences, Ranking, draw, resampled_scores
from lpips_lightning.judge.results.student import quantile
from lpips_lightning.judge.store import Study

_MOST_FREEDOM = 1000
_DECIMALS = 12  # equal methods stay equal


@dataclass(frozen=True)
class Mean:
    """A method's mean distance by a metric.

    Attributes:
        method: Its name.
        value: Mean over the references of the distance to the reference; lower is better.
        low: Lower end of the interval, which is of the difference from the mean over methods: what all methods share on
            hard references does not widen it.
        high: Upper end.
    """

    method: str
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Agreement:
    """A rank correlation of people's scores with a metric's negated mean distances, in [-1, 1], and its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class MetricRanking:
    """A metric's order of the methods.

    Attributes:
        metric: Name of the metric.
        means: One entry per method, in people's order.
        kendall: Kendall's tau-b with people's scores. Its interval draws references, for people and metric alike, and
            observers with replacement; it errs on the wide side.
        spearman: Spearman's rho, in the same way.
        differing: Pairs of methods, people's better one first, that the metric puts in the other order.
        references: Number of references.
    """

    metric: str
    means: tuple[Mean, ...]
    kendall: Agreement
    spearman: Agreement
    differing: tuple[Difference, ...]
    references: int

    @property
    def places(self) -> tuple[int, ...]:
        """Place of each method by this metric, from 1, in people's order; equal means share the better place."""
        values = [mean.value for mean in self.means]
        return tuple(1 + sum(other < value for other in values) for value in values)


def measure_methods(
    study: Study,
    metrics: Sequence[Method],
    references: Tensor,
    report: ProgressCallback = no_progress,
    device: str | torch.device = "cpu",
) -> dict[str, dict[tuple[int, str], float]]:
    """Distances of every method's image to its reference.

    Args:
        study: A study whose items name methods.
        metrics: Metrics by name.
        references: Numbers of the references to measure.
        report: Progress callback.
        device: Device to compute on.

    Returns:
        By metric, distances by number of the reference and method.

    Raises:
        StudyError: If an image is missing or was changed since the study was made.
    """
    wanted = set(references.tolist())
    items = [item for item in study.items("judged").values() if item.ref in wanted]
    found: dict[str, dict[tuple[int, str], float]] = {}
    for metric, distances in measure(study, items, metrics, device=device, report=report).items():
        cells = found.setdefault(metric, {})
        for item in items:
            for method, distance in zip((item.method0, item.method1), distances[item.id], strict=True):
                if method and distance is not None:
                    cells[item.ref, method] = distance
    return found


def rank_by_metric(
    metric: str,
    distances: Mapping[tuple[int, str], float],
    data: Preferences,
    ranking: Ranking,
    resamples: int = 1000,
    seed: int = 0,
) -> MetricRanking:
    """Rank methods by a metric's mean distance, beside people's ranking.

    Means are over all references. Where a reference lacks a method's image, they are the least-squares fit of a sum of
    an effect of the reference and one of the method, which leaves the mean as it is where none is missing.

    Args:
        metric: Name of the metric.
        distances: Distances by number of the reference and method, of `measure_methods`.
        data: People's answers.
        ranking: Their ranking, of `rank`.
        resamples: Bootstrap resamples.
        seed: Equal seeds give equal intervals.

    Raises:
        ValueError: If a distance is not finite.
    """
    table = _Table.of(metric, distances, data)
    count, generator = len(table.pulls), torch.Generator().manual_seed(seed)
    drawn = draw(count, resamples, generator)
    observers = draw(len(data.observers.unique()), resamples, generator)
    effects, people = table.effects(drawn), resampled_scores(data, drawn, observers)
    own, scores = table.effects(torch.ones(1, count, dtype=torch.float64))[0], fit_scores(data.wins, ranking.prior)
    means = _means(table.level, own, effects, count, ranking.confidence)
    order = [data.methods.index(row.method) for row in ranking.scores]
    named = dict(zip(data.methods, means, strict=True))
    return MetricRanking(
        metric,
        tuple(Mean(data.methods[index], *means[index]) for index in order),
        _agreement(kendall, (scores, -own), (people, -effects), ranking.confidence),
        _agreement(spearman, (scores, -own), (people, -effects), ranking.confidence),
        tuple(one for one in ranking.pairs if named[one.better][0] > named[one.worse][0]),
        count,
    )


def kendall(first: Tensor, second: Tensor) -> Tensor:
    """Kendall's tau-b along the last dimension: ``(..., K)`` to ``(...)``; NaN where all values of one are equal."""
    signs = [(values.unsqueeze(-1) - values.unsqueeze(-2)).sign() for values in (first, second)]
    norm = signs[0].square().sum((-1, -2)) * signs[1].square().sum((-1, -2))
    return (signs[0] * signs[1]).sum((-1, -2)) / norm.sqrt()


def spearman(first: Tensor, second: Tensor) -> Tensor:
    """Spearman's rho along the last dimension: ``(..., K)`` to ``(...)``; equal values have their mean rank."""
    ranks = [(values.unsqueeze(-1) - values.unsqueeze(-2)).sign().sum(-1) for values in (first, second)]
    return (ranks[0] * ranks[1]).sum(-1) / (ranks[0].square().sum(-1) * ranks[1].square().sum(-1)).sqrt()


@dataclass(frozen=True)
class _Table:
    """Normal equations of the methods' effects for every reference.

    Attributes:
        level: Mean distance.
        curvatures: Shape ``(R, K, K)``.
        pulls: Shape ``(R, K)``.
    """

    level: float
    curvatures: Tensor
    pulls: Tensor

    @classmethod
    def of(cls, metric: str, distances: Mapping[tuple[int, str], float], data: Preferences) -> _Table:
        references = data.references.unique().tolist()
        cells = [[distances.get((ref, name), float("nan")) for name in data.methods] for ref in references]
        values = torch.tensor(cells, dtype=torch.float64)
        known = torch.tensor([[(ref, name) in distances for name in data.methods] for ref in references])
        if not bool(values[known].isfinite().all()):
            raise ValueError(
                f"{metric}: expected finite distances, got {int((~values[known].isfinite()).sum())} others"
            )
        values, present = values.nan_to_num(), known.double()
        number = present.sum(1, keepdim=True)
        level = values.sum(1, keepdim=True) / number
        curvatures = torch.diag_embed(present) - present.unsqueeze(2) * present.unsqueeze(1) / number.unsqueeze(2)
        return cls(float(level.mean()), curvatures, (values - level) * present)

    def effects(self, drawn: Tensor) -> Tensor:
        """Effects of methods ``(B, K)``, mean 0, with every reference as often as it was drawn ``(B, R)``."""
        curvature = torch.einsum("br,rij->bij", drawn, self.curvatures)
        pull = (drawn @ self.pulls).unsqueeze(-1)
        effects = (torch.linalg.pinv(curvature, hermitian=True) @ pull).squeeze(-1)
        return effects.round(decimals=_DECIMALS)


def _means(
    level: float, own: Tensor, effects: Tensor, references: int, confidence: float
) -> list[tuple[float, float, float]]:
    """Mean and ends of every method."""
    if references == 1:
        return [(level + value,) * 3 for value in own.tolist()]
    freedom = min(references - 1, _MOST_FREEDOM)
    wide = quantile(confidence, freedom) * (references / (references - 1)) ** 0.5
    ends = zip(own.tolist(), (effects.std(0) * wide).tolist(), strict=True)
    return [(level + value, level + value - room, level + value + room) for value, room in ends]


def _agreement(
    measure: Callable[[Tensor, Tensor], Tensor], own: tuple[Tensor, Tensor], drawn: tuple[Tensor, Tensor], level: float
) -> Agreement:
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = measure(*drawn).nanquantile(ends).tolist()
    value = float(measure(*own))
    return Agreement(value, min(low, value), max(high, value))
