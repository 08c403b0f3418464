"""What the answers so far say about a calibration: a normal belief, by which the next question is chosen.

The model is that of `lpips_lightning.calibration.fit_map`; the posterior is Laplace's approximation of it, without the
bound at 0. It is kept in the leading principal components of the differences, so that a fit takes milliseconds.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lpips_lightning.calibration.fit_map import likelihood_terms, normalized, prior_mean

_COMPONENTS = 100
_SAMPLE = 1500  # rows that the principal components are computed from
_STEPS = 6
_SMALLEST = 1e-6  # of the largest eigenvalue


class Belief:
    """Posterior of a calibration, by the answers to a table of questions.

    Args:
        features: What is multiplied with the calibration in each question, ``(M, C)``: pooled squared differences of
            (ref, p0) minus those of (ref, p1), or for JND those of (ref, p0).
        start: The official calibration, ``(C,)``.
        threshold: Whether logits also have an unknown constant, as for JND: a distance is visible above a threshold.

    Raises:
        ValueError: If shapes don't fit, or all features are 0.
    """

    def __init__(self, features: Tensor, start: Tensor, threshold: bool = False) -> None:
        if features.ndim != 2 or features.shape[1:] != start.shape or not len(features):
            raise ValueError(
                f"features: expected (M, {len(start)}) as start, with some rows, got {tuple(features.shape)}"
            )
        rows, self._scale = normalized(features - features.mean(0) if threshold else features)
        self._start, self._factor = prior_mean(rows, start * self._scale)
        self._basis = _principal_directions(rows)
        self._parts, self._offset = rows @ self._basis, rows @ self._start
        if threshold:  # at the mean distance, give or take a few standard deviations
            self._parts = torch.cat([self._parts, torch.full((len(rows), 1), 2.0)], dim=1)
        self.mean = torch.zeros(self._parts.shape[1])
        self.covariance = torch.eye(self._parts.shape[1])

    def __len__(self) -> int:
        return len(self._parts)

    @property
    def calibration(self) -> Tensor:
        """The mean as a calibration ``(C,)``, on the scale of `start`; values may be negative."""
        return (self._start + self._basis @ self.mean[: self._basis.shape[1]]) / (self._scale * self._factor)

    def fit(self, questions: Tensor, second: Tensor, answers: Tensor) -> None:
        """Update the belief to all answers so far.

        Args:
            questions: Rows of the table, ``(N,)``, int64.
            second: Fraction of answers for the second of `CHOICES`, ``(N,)`` in [0, 1].
            answers: Number of answers, ``(N,)``.
        """
        parts, offset = self._parts[questions], self._offset[questions]
        for _ in range(_STEPS):
            precision, slope = self._local(parts, offset, second, answers)
            self.mean = self.mean + torch.linalg.solve(precision, parts.T @ (answers * slope) - self.mean)
        self.covariance = torch.linalg.inv(self._local(parts, offset, second, answers)[0])

    def _local(self, parts: Tensor, offset: Tensor, second: Tensor, answers: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior precision at the mean, and the derivative of the answers' log likelihood by their logits."""
        slope, weight = likelihood_terms(offset + parts @ self.mean, second)
        return torch.eye(len(self.mean)) + (parts * (answers * weight)[:, None]).T @ parts, slope

    def predict(self, questions: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of the logits of questions, each ``(N,)``; positive: the second of `CHOICES`."""
        parts = self._parts[questions]
        return self._offset[questions] + parts @ self.mean, ((parts @ self.covariance) * parts).sum(1)

    def anticipate(self, question: int) -> None:
        """Reduce the uncertainty as an answer to a question will, whatever it is; the mean stays."""
        parts = self._parts[question]
        _, weight = likelihood_terms(self._offset[question] + parts @ self.mean, torch.tensor(0.5))
        along = self.covariance @ parts
        self.covariance = self.covariance - torch.outer(along, along) * (weight / (1 + weight * (parts @ along)))


def expected_loss(mean: Tensor, variance: Tensor) -> Tensor:
    """How much is expected to be lost by deciding for the sign of the mean: E[max(0, -u)] for a normal u of mean > 0.

    Large where a decision is both open and uncertain; a tie that is known to be one has nothing to teach.

    Example:
        >>> expected_loss(torch.tensor([0.0, 0.0, 1.0]), torch.tensor([1.0, 0.01, 1.0]))
        tensor([0.3989, 0.0399, 0.0833])
    """
    deviation = variance.clamp(min=1e-12).sqrt()
    ratio = mean.abs() / deviation
    density = torch.exp(-0.5 * ratio.square()) / math.sqrt(2 * math.pi)
    return deviation * density - mean.abs() * 0.5 * torch.erfc(ratio / math.sqrt(2))


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
