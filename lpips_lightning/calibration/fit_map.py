"""Calibration from few judgments: the most probable weights under a prior around the official ones.

`fit_lin` trains as the paper did, on hundreds of thousands of judgments. With hundreds, it stops early or fits the
noise, and more so if the judgments are on triplets that a metric was unsure of. Here an answer follows a logistic
function of the difference of two distances, with lapses, and there is nothing to tune.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lpips_lightning.calibration.pooled import PooledTriplets

LAPSE = 0.1
"""Fraction of answers for one candidate, and for the other, that are given whatever the images are."""

SLOPE = 0.3
"""Logits of the prior mean per root mean square of the official differences."""

_STEPS = 500  # at most
_TOLERANCE = 1e-6  # of the weights' change in a step
_SMALLEST = 1e-6  # of the largest scale of a channel


def fit_map(train: PooledTriplets, start: Mapping[str, Tensor], answers: Tensor | None = None) -> dict[str, Tensor]:
    """Calibration of the highest posterior probability, with weights of at least 0.

    The prior is normal around `start`, scaled such that a typical difference of distances is 0.3 logits, with the same
    variance in every channel relative to its differences, such that the standard deviation of a typical difference is
    1 logit. Held-out scores on material appearance (Lagunas et al. 2019) from 100 to 800 answers are highest there;
    half or double the scale makes little difference.

    Args:
        train: Judged triplets.
        start: Official weights ``(C,)`` by layer name.
        answers: Number of answers behind each `PooledTriplets.judge`, ``(M,)``; None: 1.

    Returns:
        Weights ``(C,)`` by layer name, on the scale of `start`.

    Raises:
        ValueError: If there are no triplets, or all differences are 0.

    Example:
        >>> mean, rows = torch.eye(2), torch.tensor([[0, 1], [1, 0]] * 50)
        >>> data = PooledTriplets(mean, None, rows, torch.tensor([0.0, 1.0] * 50), {"relu1": 2})
        >>> found = fit_map(data, {"relu1": torch.tensor([0.2, 0.1])})["relu1"]
        >>> bool(found[1] > found[0])
        True
    """
    if not len(train):
        raise ValueError("train: expected triplets, got none")
    weights = train.joined(start).float().clamp(min=0)
    rows, scale = normalized(train.differences())
    mean, factor = prior_mean(rows, weights * scale)
    count = torch.ones(len(train)) if answers is None else answers.float()
    return train.by_layer(_minimize(rows, mean, train.judge, count) / (scale * factor))


def normalized(features: Tensor) -> tuple[Tensor, Tensor]:
    """Features ``(M, C)`` of the same root mean square in every channel and a mean squared norm of 1, and the scale.

    Raises:
        ValueError: If all are 0.
    """
    scale = features.square().mean(0).sqrt()
    if not bool(scale.max() > 0):
        raise ValueError("features: expected images that differ, got differences of 0")
    scale = scale.clamp(min=_SMALLEST * float(scale.max()))
    scale = scale * (features / scale).square().sum(1).mean().sqrt()
    return features / scale, scale


def prior_mean(rows: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The weights ``(C,)`` such that logits of rows have a root mean square of `SLOPE`, and the factor that does it."""
    factor = SLOPE / (rows @ weights).square().mean().sqrt().clamp(min=1e-12)
    return factor * weights, factor


def likelihood_terms(logits: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Derivative of an answer's log likelihood by the logit, and its expected curvature.

    Args:
        logits: For the second answer, ``(N,)``.
        second: Fraction of answers that are the second, ``(N,)``.
    """
    chance = logits.sigmoid()
    probability = LAPSE + (1 - 2 * LAPSE) * chance
    change = (1 - 2 * LAPSE) * chance * (1 - chance)
    variance = probability * (1 - probability)
    return (second - probability) * change / variance, change.square() / variance


def _minimize(rows: Tensor, mean: Tensor, second: Tensor, count: Tensor) -> Tensor:
    """Accelerated projected gradient steps (Beck and Teboulle 2009) on the negative log posterior."""
    steepest = 0.25 * _largest_eigenvalue(rows * count.sqrt()[:, None]) + 1
    weights = point = mean
    momentum = 1.0
    for _ in range(_STEPS):
        slope, _ = likelihood_terms(rows @ point, second)
        gradient = point - mean - rows.T @ (count * slope)
        following = (point - gradient / steepest).clamp(min=0)
        faster = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        step = following - weights
        point = following + (momentum - 1) / faster * step
        weights, momentum = following, faster
        if float(step.norm()) < _TOLERANCE * float(weights.norm()):
            break
    return weights


def _largest_eigenvalue(rows: Tensor) -> float:
    """Of ``rows.T @ rows``, by the smaller one of the two products."""
    product = rows.T @ rows if len(rows) > rows.shape[1] else rows @ rows.T
    return float(torch.linalg.eigvalsh(product)[-1])
