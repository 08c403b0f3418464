"""What the answers so far say about a calibration: a Gaussian belief, by which the next question is chosen.

An answer follows a logistic function of the difference of two distances, with a rate of lapses. Distances are linear in
the calibration (`PooledTriplets`), so that a normal prior around the official calibration gives a posterior by a few
Newton steps (Laplace's approximation). It is kept in the leading principal components of the differences, which makes
a fit a matter of milliseconds.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

LAPSE = 0.1
"""Fraction of answers for one candidate, and for the other, that are given whatever the images are."""

_COMPONENTS = 100
_SLOPE = 0.3  # logits of the prior mean per standard deviation of the official differences
_SAMPLE = 1500  # rows that the principal components are computed from
_STEPS = 6
_SMALLEST = 1e-6


class Belief:
    """Posterior of a calibration, by the answers to a table of questions.

    The prior has the official calibration as its mean, scaled such that a typical difference of distances is 0.3
    logits, and the same variance in every channel relative to its differences, such that the standard deviation of a
    typical difference is 1 logit. Held-out scores of calibrations of material appearance (Lagunas et al. 2019) from 100
    to 800 answers are highest there; half or double the scale makes little difference.

    Args:
        features: What is multiplied with the calibration in each question, ``(M, C)``: pooled squared differences of
            (ref, p0) minus those of (ref, p1), or for JND those of (ref, p0).
        start: The official calibration, ``(C,)``.
        centered: Whether to subtract the mean of the features, as for JND, whose threshold is unknown.

    Raises:
        ValueError: If shapes don't fit, or all features are 0.
    """

    def __init__(self, features: Tensor, start: Tensor, centered: bool = False) -> None:
        if features.ndim != 2 or features.shape[1:] != start.shape or not len(features):
            raise ValueError(
                f"features: expected (M, {len(start)}) as start, with some rows, got {tuple(features.shape)}"
            )
        center = features.mean(0) if centered else torch.zeros(features.shape[1])
        spread = (features - center).square().mean(0).sqrt()
        if not bool(spread.max() > 0):
            raise ValueError("features: expected images that differ, got differences of 0")
        self._scale = spread.clamp(min=_SMALLEST * float(spread.max()))
        rows = (features - center) / self._scale
        mean = start * self._scale
        self._start = mean * (_SLOPE / (rows @ mean).std(correction=0).clamp(min=1e-12))
        self._basis = _principal_directions(rows) / rows.square().sum(1).mean().sqrt()
        self._parts, self._offset = rows @ self._basis, rows @ self._start
        self.mean = torch.zeros(self._parts.shape[1])
        self.covariance = torch.eye(self._parts.shape[1])

    def __len__(self) -> int:
        return len(self._parts)

    @property
    def calibration(self) -> Tensor:
        """The mean as a calibration ``(C,)``, up to a factor; values may be negative."""
        return (self._start + self._basis @ self.mean) / self._scale

    def fit(self, questions: Tensor, second: Tensor, answers: Tensor) -> None:
        """Update the belief to all answers so far.

        Args:
            questions: Rows of the table, ``(N,)``, int64.
            second: Fraction of answers for the second of `CHOICES`, ``(N,)`` in [0, 1].
            answers: Number of answers, ``(N,)``.
        """
        parts, offset = self._parts[questions], self._offset[questions]
        for _ in range(_STEPS):
            slope, weight = _terms(offset + parts @ self.mean, second)
            precision = torch.eye(len(self.mean)) + (parts * (answers * weight)[:, None]).T @ parts
            gradient = parts.T @ (answers * slope) - self.mean
            self.mean = self.mean + torch.linalg.solve(precision, gradient)
        _, weight = _terms(offset + parts @ self.mean, second)
        self.covariance = torch.linalg.inv(torch.eye(len(self.mean)) + (parts * (answers * weight)[:, None]).T @ parts)

    def predict(self, questions: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of the logits of questions, each ``(N,)``; positive: the second of `CHOICES`."""
        parts = self._parts[questions]
        return self._offset[questions] + parts @ self.mean, ((parts @ self.covariance) * parts).sum(1)

    def anticipate(self, question: int) -> None:
        """Reduce the uncertainty as an answer to a question will, whatever it is; the mean stays."""
        parts = self._parts[question]
        _, weight = _terms(self._offset[question] + parts @ self.mean, torch.tensor(0.5))
        along = self.covariance @ parts
        self.covariance = self.covariance - torch.outer(along, along) * (weight / (1 + weight * (parts @ along)))


def expected_loss(mean: Tensor, variance: Tensor) -> Tensor:
    """How much is expected to be lost by deciding for the sign of the mean: E[max(0, -u)] for a normal u of mean > 0.

    Large where a decision is both open and uncertain; a tie that is known to be one has nothing to teach.

    Example:
        >>> expected_loss(torch.tensor([0.0, 0.0, 3.0]), torch.tensor([1.0, 0.01, 1.0]))
        tensor([0.3989, 0.0399, 0.0004])
    """
    deviation = variance.clamp(min=1e-12).sqrt()
    ratio = mean.abs() / deviation
    density = torch.exp(-0.5 * ratio.square()) / math.sqrt(2 * math.pi)
    return deviation * density - mean.abs() * 0.5 * torch.erfc(ratio / math.sqrt(2))


def _terms(logits: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Derivative of an answer's log likelihood by the logit, and its expected curvature."""
    chance = logits.sigmoid()
    probability = LAPSE + (1 - 2 * LAPSE) * chance
    change = (1 - 2 * LAPSE) * chance * (1 - chance)
    variance = probability * (1 - probability)
    return (second - probability) * change / variance, change.square() / variance


def _principal_directions(rows: Tensor) -> Tensor:
    """Leading directions ``(C, K)`` of a table, from evenly spaced rows if there are many."""
    sample = rows[:: -(-len(rows) // _SAMPLE)]
    if len(sample) < rows.shape[1]:
        values, vectors = torch.linalg.eigh(sample @ sample.T)
        directions = sample.T @ (vectors / values.clamp(min=1e-12).sqrt())
    else:
        values, directions = torch.linalg.eigh(sample.T @ sample)
    kept = values > _SMALLEST * values.max()
    return directions[:, kept][:, -_COMPONENTS:]
