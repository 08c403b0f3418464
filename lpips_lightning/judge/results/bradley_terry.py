"""The Bradley-Terry model: scores of methods from counts of pairwise preferences.

Method i is preferred over j with probability ``sigmoid(s[i] - s[j])`` (Bradley and Terry 1952, Biometrika 39). Scores
are log-odds, and have mean 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_STEPS, _CONVERGED, _LONGEST = 200, 1e-8, 1.0  # convergence is quadratic


def fit_scores(wins: Tensor, prior: float | Tensor = 0.0) -> Tensor:
    """Scores of largest likelihood, by Newton's method.

    Args:
        wins: Shape ``(..., K, K)``: how often method ``i`` was preferred over ``j``; the diagonal is ignored.
        prior: Weight of a prior, a number or shape ``(...)``: every method is taken to have won and lost this many
            halves of comparisons with an average method, of score 0. 0: maximum likelihood, which exists where
            `is_estimable`.

    Returns:
        Scores of shape ``(..., K)`` and mean 0, float64.

    Raises:
        ValueError: If a count is negative, or there is no finite maximum.

    Example:
        >>> wins = torch.tensor([[0.0, 30.0], [10.0, 0.0]])
        >>> scores = fit_scores(wins)  # log(30 / 10) apart
        >>> [round(float(score), 4) for score in scores]
        [0.5493, -0.5493]
    """
    counts = _off_diagonal(wins)
    batch, methods = counts.shape[:-2], counts.shape[-1]
    weight = torch.as_tensor(prior, dtype=torch.float64).expand(batch)
    if not bool((is_estimable(counts) | (weight > 0)).all()):
        raise ValueError(
            "wins: expected every method to win and to lose, directly or over others, against every other one, got"
            " one that does not: scores of largest likelihood are infinite; use a prior above 0"
        )
    scores = torch.zeros((*batch, methods), dtype=torch.float64)
    for _ in range(_STEPS):
        step = _newton_step(counts, weight.unsqueeze(-1), scores)
        step = step / (step.abs().amax(-1, keepdim=True) / _LONGEST).clamp(min=1)
        scores = scores + step
        if not step.numel() or float(step.abs().max()) < _CONVERGED:
            return scores - scores.mean(-1, keepdim=True)
    raise ValueError(f"wins: expected counts whose scores are found in {_STEPS} steps of Newton's method, got others")


def expected_shares(scores: Tensor) -> Tensor:
    """Probability that method ``i`` is preferred over ``j``: scores ``(..., K)`` to ``(..., K, K)``."""
    return (scores.unsqueeze(-1) - scores.unsqueeze(-2)).sigmoid()


def is_estimable(wins: Tensor) -> Tensor:
    """Whether scores of largest likelihood exist: every method beats every other one over a chain of wins (Ford 1957).

    Args:
        wins: Counts of shape ``(..., K, K)``.

    Returns:
        Shape ``(...)``, bool.
    """
    return _reachable(_off_diagonal(wins) > 0).all(-1).all(-1)


def components(wins: Tensor) -> list[list[int]]:
    """Groups of methods that comparisons connect; methods of different groups have no common scale.

    Args:
        wins: Counts of shape ``(K, K)``.
    """
    counts = _off_diagonal(wins)
    rows = _reachable((counts + counts.mT) > 0).tolist()
    groups: list[list[int]] = []
    for row in rows:
        group = [index for index, reached in enumerate(row) if reached]
        if group not in groups:
            groups.append(group)
    return groups


def deviance(wins: Tensor, scores: Tensor) -> tuple[float, int]:
    """Deviance of the model from the share of wins of each pair, and its degrees of freedom.

    Args:
        wins: Counts of shape ``(K, K)``.
        scores: Scores of shape ``(K,)``.
    """
    counts = _off_diagonal(wins)
    played = counts + counts.mT
    shares = counts / played.clamp(min=1)
    value = 2 * (torch.xlogy(counts, shares) - torch.xlogy(counts, expected_shares(scores))).sum()
    pairs = int((played.triu(1) > 0).sum())
    return max(0.0, float(value)), pairs - (len(scores) - 1)


def count_wins(winners: Tensor, losers: Tensor, methods: Sequence[str]) -> Tensor:
    """Counts of shape ``(K, K)`` from the methods' indices in each comparison."""
    size = len(methods)
    return torch.bincount(winners * size + losers, minlength=size * size).double().reshape(size, size)


def _newton_step(counts: Tensor, weight: Tensor, scores: Tensor) -> Tensor:
    played, shares = counts + counts.mT, expected_shares(scores)
    own = scores.sigmoid()
    gradient = (counts - played * shares).sum(-1) + weight * (0.5 - own)
    information = played * shares * (1 - shares)
    curvature = torch.diag_embed(information.sum(-1) + weight * own * (1 - own)) - information
    # The mean stays 0: steps are taken among scores of mean 0, and the constant makes the rest of the system regular.
    gradient = gradient - gradient.mean(-1, keepdim=True)
    curvature = curvature - curvature.mean(-1, keepdim=True)
    curvature = curvature - curvature.mean(-2, keepdim=True) + 1 / scores.shape[-1]
    return torch.linalg.solve(curvature, gradient.unsqueeze(-1)).squeeze(-1)


def _off_diagonal(wins: Tensor) -> Tensor:
    counts = wins.double()
    if bool((counts < 0).any()):
        raise ValueError(f"wins: expected counts of at least 0, got {float(counts.min()):g}")
    return counts * (1 - torch.eye(counts.shape[-1], dtype=torch.float64))


def _reachable(edges: Tensor) -> Tensor:
    """Which method leads to which over the edges ``(..., K, K)``; every method leads to itself."""
    size = edges.shape[-1]
    reached = (edges | torch.eye(size, dtype=torch.bool)).double()
    for _ in range(size.bit_length()):
        reached = (reached @ reached > 0).double()
    return reached > 0
