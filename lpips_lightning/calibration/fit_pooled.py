"""Fast calibration in mode lin: training on pooled squared differences instead of images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from lpips_lightning.calibration.model import RankNetwork, check_choice
from lpips_lightning.calibration.pooled import PooledTriplets
from lpips_lightning.calibration.schedule import learning_rate_factor, step_seed
from lpips_lightning.functional.judgments import two_afc_score

PooledDropout = Literal["matched", "vector", "none"]


@dataclass(frozen=True)
class FastLin:
    """Result of `fit_lin`.

    Attributes:
        calibration: Weights ``(C,)`` by layer name.
        losses: Mean training loss per epoch.
        scores: 2AFC score in [0, 1] on the held-out triplets after every epoch; empty without held-out triplets.
    """

    calibration: dict[str, Tensor]
    losses: list[float]
    scores: list[float]


def fit_lin(
    train: PooledTriplets,
    start: dict[str, Tensor],
    *,
    held_out: PooledTriplets | None = None,
    dropout: PooledDropout = "none",
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.5, 0.999),
    batch_size: int = 50,
    constant_epochs: int = 6,
    decay_epochs: int = 4,
    seed: int = 0,
) -> FastLin:
    """Train a calibration and its rank network as `PerceptualCalibration` does in mode lin.

    Args:
        train: Training data, from `pool` or `cached_pool`.
        start: Initial weights ``(C,)`` by layer name: `random_calibration` as in the paper, or the official ones.
        held_out: Triplets to score after every epoch.
        dropout: The paper drops squared differences per position with probability 0.5; pooled data have no positions.
            ``"matched"``: adds Gaussian noise of the variance that this dropout gives the pooled values.
            ``"vector"``: drops pooled values with probability 0.5, which is much stronger than the paper's dropout.
            ``"none"``: no dropout.
        lr: Learning rate of Adam.
        betas: Betas of Adam.
        batch_size: Triplets per step.
        constant_epochs: Epochs at the full learning rate.
        decay_epochs: Epochs of linear decay that follow.
        seed: Random seed; equal seeds give equal weights on one machine.

    Returns:
        The calibration after the last epoch, with losses and scores.

    Raises:
        ValueError: If an argument is invalid, or there are no training triplets.

    Example:
        >>> mean, rows = torch.eye(2), torch.tensor([[0, 1], [1, 0]] * 50)
        >>> data = PooledTriplets(mean, 0 * mean, rows, torch.tensor([0.0, 1.0] * 50), {"relu1": 2})
        >>> found = fit_lin(data, {"relu1": torch.tensor([0.1, 0.2])}, held_out=data, lr=1e-2)
        >>> found.scores[-1], bool(found.calibration["relu1"][1] - found.calibration["relu1"][0] > 0.2)
        (1.0, True)
    """
    check_choice("dropout", dropout, get_args(PooledDropout))
    if not len(train) or batch_size < 1:
        raise ValueError(f"train: expected triplets, and a batch_size of at least 1, got {len(train)} and {batch_size}")
    weight = nn.Parameter(train.joined(start).float().clamp(min=0))
    rank = RankNetwork(seed)
    optimizer = torch.optim.Adam([weight, *rank.parameters()], lr=lr, betas=betas)
    losses, scores = [], []
    for epoch in range(constant_epochs + decay_epochs):
        for group in optimizer.param_groups:
            group["lr"] = lr * learning_rate_factor(epoch, constant_epochs, decay_epochs)
        generator = Generator().manual_seed(step_seed(seed, epoch))
        total = torch.zeros(())
        for part in torch.randperm(len(train), generator=generator).split(batch_size):
            pooled = _apply_dropout(train, train.rows[part].T.flatten(), dropout, generator)
            d0, d1 = (pooled @ weight).view(2, -1)
            loss = F.binary_cross_entropy_with_logits(rank(d0, d1), train.judge[part])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                weight.clamp_(min=0)
                total += loss.detach() * len(part)
        losses.append(float(total) / len(train))
        if held_out is not None:
            scores.append(float(two_afc_score(*held_out.distances(train.by_layer(weight)), held_out.judge)))
    return FastLin(train.by_layer(weight), losses, scores)


def _apply_dropout(train: PooledTriplets, rows: Tensor, dropout: PooledDropout, generator: Generator) -> Tensor:
    """Pooled values ``(P, C)`` of the pairs in `rows`, after dropout."""
    pooled = train.mean[rows]
    if dropout == "matched":
        if train.spread is None:
            raise ValueError("dropout: expected triplets pooled with spread=True for 'matched', got none")
        return pooled + train.spread[rows] * torch.randn(pooled.shape, generator=generator)
    if dropout == "vector":
        return 2 * pooled * torch.empty_like(pooled).bernoulli_(0.5, generator=generator)
    return pooled
