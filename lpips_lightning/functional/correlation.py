"""Correlation of distances with opinion scores: Spearman, Kendall, and Pearson after a logistic fit.

Correlations are signed so that 1 is perfect agreement: distances are negated for mean opinion scores ("mos", higher is
better), but not for difference mean opinion scores ("dmos", higher is worse).
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
MIN_PAIRS = 5  # the logistic alone has four parameters


@dataclass(frozen=True)
class Correlations:
    """Correlations of distances with opinion scores, from -1 to 1 (perfect agreement).

    Attributes:
        srcc: Spearman's rank correlation.
        plcc: Pearson's correlation after the logistic.
        krcc: Kendall's rank correlation, tau-b.
        count: Number of pairs.
    """

    srcc: float
    plcc: float
    krcc: float
    count: int


@dataclass(frozen=True)
class Logistic:
    """``f(x) = low + (high - low) / (1 + exp(-(x - center) / width))``, the four-parameter logistic of VQEG.

    Attributes:
        low: Limit for small x.
        high: Limit for large x.
        center: x where f is halfway between the limits.
        width: Width of the transition, positive.
    """

    low: float
    high: float
    center: float
    width: float

    def __call__(self, x: Tensor) -> Tensor:
        """Evaluate f: shape of `x`, float64."""
        return self.low + (self.high - self.low) * torch.sigmoid((x.double() - self.center) / self.width)


def correlate(distances: Tensor, scores: Tensor, score: Score = "mos") -> Correlations:
    """Correlate distances with opinion scores.

    Args:
        distances: Shape ``(M,)``, lower is better, M at least 5.
        scores: Opinion scores, shape ``(M,)``.
        score: ``"mos"``: higher is better; ``"dmos"``: higher is worse.

    Returns:
        SRCC, PLCC and KRCC.

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
    # If opinions contradict the distances, the fit decreases, and Pearson's correlation with it would still be
    # positive.
    direction = math.copysign(1.0, fitted.high - fitted.low)
    return Correlations(
        srcc=float(spearman_corrcoef(x, y)),
        plcc=direction * float(pearson_corrcoef(_standardized(fitted(x)), _standardized(y))),
        krcc=float(kendall_rank_corrcoef(x, y)),  # type: ignore[arg-type]  # a tuple only for t_test=True
        count=len(x),
    )


def by_group(distances: Tensor, scores: Tensor, groups: Sequence[str], score: Score = "mos") -> dict[str, Correlations]:
    """Correlations within each group, for example the versions of one video.

    Args:
        distances: Shape ``(M,)``, lower is better.
        scores: Opinion scores, shape ``(M,)``.
        groups: Group name of each pair.
        score: As in `correlate`.

    Returns:
        Correlations by group, in the order of first occurrence; each group has its own logistic.

    Raises:
        ValueError: As `correlate`; the message names the group.
    """
    found = {}
    for group, rows in _rows_by_group(groups).items():
        with _name_group_in_errors(group):
            found[group] = correlate(distances[rows], scores[rows], score)
    return found


def check_scores(scores: Tensor, groups: Sequence[str] | None = None) -> None:
    """Check that scores can be correlated with distances; call it before a long measurement.

    Args:
        scores: Shape ``(M,)``.
        groups: Group name of each score, if `by_group` will be called.

    Raises:
        ValueError: If all scores or those of a group are fewer than 5, not finite, or equal; the message names the
            group.
    """
    _check_values(scores, "scores")
    for group, rows in _rows_by_group(groups or ()).items():
        with _name_group_in_errors(group):
            _check_values(scores[rows], "scores")


def mean_over_groups(correlations: Mapping[str, Correlations], fisher: bool = False) -> Correlations:
    """Mean of the correlations over groups.

    Args:
        correlations: From `by_group`.
        fisher: Weight groups by size and average Fisher's z (artanh), as leaderboards of video metrics do. Correlations
            are clamped to 0.9999.

    Returns:
        Mean correlations, with the total count.

    Raises:
        ValueError: If there is no group.
    """
    if not correlations:
        raise ValueError("correlations: expected at least one group, got none")
    groups = list(correlations.values())
    weights = torch.tensor([group.count if fisher else 1 for group in groups], dtype=torch.float64)

    def mean(values: list[float]) -> float:
        terms = torch.tensor(values, dtype=torch.float64)
        if fisher:
            terms = terms.clamp(-0.9999, 0.9999).atanh()
        average = (weights * terms).sum() / weights.sum()
        return float(average.tanh() if fisher else average)

    srcc, plcc, krcc = (mean([getattr(group, name) for group in groups]) for name in ("srcc", "plcc", "krcc"))
    return Correlations(srcc, plcc, krcc, sum(group.count for group in groups))


def fit_logistic(x: Tensor, y: Tensor) -> Logistic:
    """Fit the four-parameter logistic to ``(x, y)`` by least squares.

    For a given center and width, `low` and `high` follow from linear regression. The search is therefore for the
    sigmoid that correlates most with y: first over a grid of centers and widths, then from the best five by L-BFGS.

    Args:
        x: Shape ``(M,)``, M at least 5, finite, not all equal.
        y: Shape ``(M,)``, finite, not all equal.

    Returns:
        The fit. Its width is between 0.02 and 50 standard deviations of x. Its center is at most one range of x outside
        the range of x.

    Raises:
        ValueError: If there are fewer than 5 points, one is not finite, or all are equal.
    """
    x, y = _check(x, y)
    unit, target = _standardized(x), _standardized(y)
    lowest, extent = float(unit.min()), float(unit.max() - unit.min())
    lower, upper = [lowest - extent, math.log(0.02)], [lowest + 2 * extent, math.log(50.0)]
    limits = torch.tensor([lower, upper], dtype=torch.float64)

    def misfit(point: Tensor) -> Tensor:
        """Unexplained fraction of the variance; `point` is (..., 2), the logits of center and log width."""
        center, log_width = torch.lerp(limits[0], limits[1], point.sigmoid()).unbind(-1)
        curve = torch.sigmoid((unit - center.unsqueeze(-1)) / log_width.exp().unsqueeze(-1))
        curve = curve - curve.mean(-1, keepdim=True)
        return 1 - (curve @ target).square() / (curve.square().sum(-1) * target.square().sum()).clamp(min=1e-30)

    steps = torch.linspace(0.02, 0.98, 33, dtype=torch.float64)
    grid = torch.cartesian_prod(steps, steps).logit()
    starts = grid[misfit(grid).argsort()[:5]]
    best = min((_descend(misfit, start) for start in starts), key=lambda point: float(misfit(point)))
    center, log_width = torch.lerp(limits[0], limits[1], best.sigmoid()).tolist()
    curve = torch.sigmoid((unit - center) / math.exp(log_width))
    slope = float((curve - curve.mean()) @ (y - y.mean()) / (curve - curve.mean()).square().sum())
    low = float(y.mean()) - slope * float(curve.mean())
    deviation = float(x.std())
    return Logistic(low, low + slope, float(x.mean()) + deviation * center, deviation * math.exp(log_width))


def _descend(misfit: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    """Minimize from `start` by L-BFGS; returns `start` if that does not improve the misfit."""
    point = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([point], max_iter=100, tolerance_change=1e-14, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = misfit(point)
        torch.autograd.backward(value)
        return value

    with torch.enable_grad():
        optimizer.step(closure)
    end = point.detach()
    return end if bool(misfit(end) <= misfit(start)) else start


def _rows_by_group(groups: Sequence[str]) -> dict[str, Tensor]:
    rows: dict[str, list[int]] = {}
    for index, group in enumerate(groups):
        rows.setdefault(group, []).append(index)
    return {group: torch.tensor(indices) for group, indices in rows.items()}


@contextmanager
def _name_group_in_errors(group: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(f"group {group!r}: {error}") from error


def _check(distances: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """Check both and return them in float64 on the CPU."""
    if distances.ndim != 1 or distances.shape != scores.shape:
        raise ValueError(
            "scores: expected one score per distance, shapes (M,), "
            f"got {tuple(distances.shape)} and {tuple(scores.shape)}"
        )
    _check_values(scores, "scores")
    _check_values(distances, "distances")
    return distances.detach().cpu().double(), scores.detach().cpu().double()


def _check_values(values: Tensor, name: str) -> None:
    if len(values) < MIN_PAIRS:
        raise ValueError(f"{name}: expected at least {MIN_PAIRS}, got {len(values)}")
    if not values.isfinite().all():
        raise ValueError(f"{name}: expected finite values, got {float(values[~values.isfinite()][0]):g}")
    if (values == values[0]).all():
        raise ValueError(f"{name}: expected different values, got {float(values[0]):g} for all {len(values)}")


def _standardized(values: Tensor) -> Tensor:
    return (values - values.mean()) / values.std()
