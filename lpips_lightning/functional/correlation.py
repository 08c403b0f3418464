"""Distances held against opinion scores: Spearman, Kendall, and Pearson after the usual logistic.

A good distance is low where people are content. All correlations are signed so that 1 is perfect agreement: with mean
opinion scores ("mos", higher is better) the distances are negated first, with difference scores ("dmos", higher is
worse) they are not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torchmetrics.functional import kendall_rank_corrcoef, pearson_corrcoef, spearman_corrcoef

Score = Literal["mos", "dmos"]
LEAST = 5  # pairs: the logistic alone has four parameters


@dataclass(frozen=True)
class Correlations:
    """Agreement of distances with opinion scores, 1 at best, -1 at worst.

    Attributes:
        srcc: Spearman's rank correlation.
        plcc: Pearson's correlation after the logistic.
        krcc: Kendall's rank correlation, tau-b.
        count: Pairs.
    """

    srcc: float
    plcc: float
    krcc: float
    count: int


@dataclass(frozen=True)
class Logistic:
    """``f(x) = low + (high - low) / (1 + exp(-(x - center) / width))``, the four-parameter logistic of VQEG.

    Attributes:
        low: Limit towards smaller x.
        high: Limit towards larger x.
        center: x halfway between the two.
        width: Positive.
    """

    low: float
    high: float
    center: float
    width: float

    def __call__(self, x: Tensor) -> Tensor:
        """Shape of `x`, float64."""
        return self.low + (self.high - self.low) * torch.sigmoid((x.double() - self.center) / self.width)


def correlate(distances: Tensor, scores: Tensor, score: Score = "mos") -> Correlations:
    """Agreement of distances with opinion scores.

    Args:
        distances: Shape ``(M,)``, lower is better, M at least 5.
        scores: Shape ``(M,)``.
        score: ``"mos"``: higher is better; ``"dmos"``: higher is worse.

    Returns:
        The three correlations.

    Raises:
        ValueError: If shapes differ, there are fewer than 5 pairs, a value is not finite, or all values are equal.

    Example:
        >>> found = correlate(torch.tensor([0.1, 0.2, 0.3, 0.5, 0.7]), torch.tensor([5.0, 4.0, 3.5, 2.0, 1.0]))
        >>> round(found.srcc, 6), round(found.krcc, 6)
        (1.0, 1.0)
    """
    if score not in get_args(Score):
        raise ValueError(f"score: expected one of {get_args(Score)}, got {score!r}")
    x, y = _check(distances, scores)
    x = -x if score == "mos" else x
    fitted = fit_logistic(x, y)
    # The fit falls where people disagree with the distances; Pearson's correlation of a falling fit would hide that.
    direction = math.copysign(1.0, fitted.high - fitted.low)
    return Correlations(
        srcc=float(spearman_corrcoef(x, y)),
        plcc=direction * float(pearson_corrcoef(_standardized(fitted(x)), _standardized(y))),
        krcc=float(kendall_rank_corrcoef(x, y)),  # type: ignore[arg-type]  # a tuple for t_test=True alone
        count=len(x),
    )


def by_group(distances: Tensor, scores: Tensor, groups: Sequence[str], score: Score = "mos") -> dict[str, Correlations]:
    """Correlations within each group, such as the versions of one video.

    Args:
        distances: Shape ``(M,)``, lower is better.
        scores: Shape ``(M,)``.
        groups: Name of each pair's group.
        score: As in `correlate`.

    Returns:
        By group, in the order of their first pair; each group has its own logistic.

    Raises:
        ValueError: As `correlate`, with the group's name.
    """
    found = {}
    for group, rows in _rows_of(groups).items():
        with _naming(group):
            found[group] = correlate(distances[rows], scores[rows], score)
    return found


def check_scores(scores: Tensor, groups: Sequence[str] | None = None) -> None:
    """Refuse scores that no distance can be correlated with; call it before a long measurement.

    Args:
        scores: Shape ``(M,)``.
        groups: Name of each one's group, if `by_group` will be called.

    Raises:
        ValueError: If there are fewer than 5, one is not finite, or all are equal; likewise of a group, with its name.
    """
    _check_values(scores, "scores")
    for group, rows in _rows_of(groups or ()).items():
        with _naming(group):
            _check_values(scores[rows], "scores")


def mean_over_groups(correlations: Mapping[str, Correlations], fisher: bool = False) -> Correlations:
    """The mean over groups.

    Args:
        correlations: From `by_group`.
        fisher: Weight groups by their size and average Fisher's z (artanh), as leaderboards of video metrics do.
            Perfect correlations count as 0.9999.

    Returns:
        The means, and the sum of the counts.

    Raises:
        ValueError: If there is no group.
    """
    if not correlations:
        raise ValueError("correlations: expected at least one group, got none")
    groups = list(correlations.values())
    weights = torch.tensor([group.count if fisher else 1 for group in groups], dtype=torch.float64)

    def mean(values: list[float]) -> float:
        numbers = torch.tensor(values, dtype=torch.float64)
        if fisher:
            numbers = numbers.clamp(-0.9999, 0.9999).atanh()
        average = (weights * numbers).sum() / weights.sum()
        return float(average.tanh() if fisher else average)

    srcc, plcc, krcc = (mean([getattr(group, name) for group in groups]) for name in ("srcc", "plcc", "krcc"))
    return Correlations(srcc, plcc, krcc, sum(group.count for group in groups))


def fit_logistic(x: Tensor, y: Tensor) -> Logistic:
    """The four-parameter logistic nearest to ``(x, y)`` in squares.

    For a given center and width, `low` and `high` are a linear regression; what remains is to find the sigmoid that
    correlates most with y. That is done over a grid of centers and widths, and from the best of them with L-BFGS.

    Args:
        x: Shape ``(M,)``, M at least 5, finite, not all equal.
        y: Shape ``(M,)``, likewise.

    Returns:
        The fit. Its width lies within 0.02 and 50 standard deviations of x, its center within the range of x and one
        range more on both sides.

    Raises:
        ValueError: If there are fewer than 5 points, one is not finite, or all are equal.
    """
    x, y = _check(x, y)
    unit, target = _standardized(x), _standardized(y)
    lowest, reach = float(unit.min()), float(unit.max() - unit.min())
    limits = torch.tensor([[lowest - reach, math.log(0.02)], [lowest + 2 * reach, math.log(50.0)]], dtype=torch.float64)

    def misfit(place: Tensor) -> Tensor:
        """Unexplained share of the variance; `place` is (..., 2), center and log width between the limits."""
        center, log_width = torch.lerp(limits[0], limits[1], place.sigmoid()).unbind(-1)
        curve = torch.sigmoid((unit - center.unsqueeze(-1)) / log_width.exp().unsqueeze(-1))
        curve = curve - curve.mean(-1, keepdim=True)
        return 1 - (curve @ target).square() / (curve.square().sum(-1) * target.square().sum()).clamp(min=1e-30)

    steps = torch.linspace(0.02, 0.98, 33, dtype=torch.float64)
    grid = torch.cartesian_prod(steps, steps).logit()
    starts = grid[misfit(grid).argsort()[:5]]
    best = min((_descend(misfit, start) for start in starts), key=lambda place: float(misfit(place)))
    center, log_width = torch.lerp(limits[0], limits[1], best.sigmoid()).tolist()
    curve = torch.sigmoid((unit - center) / math.exp(log_width))
    slope = float((curve - curve.mean()) @ (y - y.mean()) / (curve - curve.mean()).square().sum())
    low = float(y.mean()) - slope * float(curve.mean())
    deviation = float(x.std())
    return Logistic(low, low + slope, float(x.mean()) + deviation * center, deviation * math.exp(log_width))


def _descend(misfit: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    """The end of a descent from `start`, or `start` where it led nowhere better."""
    place = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([place], max_iter=100, tolerance_change=1e-14, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = misfit(place)
        torch.autograd.backward(value)
        return value

    with torch.enable_grad():
        optimizer.step(closure)
    end = place.detach()
    return end if bool(misfit(end) <= misfit(start)) else start


def _rows_of(groups: Sequence[str]) -> dict[str, Tensor]:
    rows: dict[str, list[int]] = {}
    for index, group in enumerate(groups):
        rows.setdefault(group, []).append(index)
    return {group: torch.tensor(indices) for group, indices in rows.items()}


@contextmanager
def _naming(group: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(f"group {group!r}: {error}") from error


def _check(distances: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float64 on the CPU."""
    if distances.ndim != 1 or distances.shape != scores.shape:
        raise ValueError(
            f"scores: expected one a distance, shapes (M,), got {tuple(distances.shape)} and {tuple(scores.shape)}"
        )
    _check_values(scores, "scores")
    _check_values(distances, "distances")
    return distances.detach().cpu().double(), scores.detach().cpu().double()


def _check_values(values: Tensor, name: str) -> None:
    if len(values) < LEAST:
        raise ValueError(f"{name}: expected at least {LEAST}, got {len(values)}")
    if not values.isfinite().all():
        raise ValueError(f"{name}: expected finite values, got {float(values[~values.isfinite()][0]):g}")
    if (values == values[0]).all():
        raise ValueError(f"{name}: expected different values, got {float(values[0]):g} for all {len(values)}")


def _standardized(values: Tensor) -> Tensor:
    return (values - values.mean()) / values.std()
