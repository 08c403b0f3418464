"""How many judgments active selection saves, on triplets whose judgments are known."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Generator, Tensor

from lpips_lightning.calibration.fit_map import fit_map
from lpips_lightning.calibration.pooled import PooledTriplets
from lpips_lightning.functional.judgments import two_afc_score
from lpips_lightning.judge.belief import Belief, expected_loss

_LOOKED_AT, _REFIT_EVERY = 1500, 5  # as `ActiveSelector`


def simulate_selection(
    train: PooledTriplets,
    held_out: PooledTriplets,
    start: Mapping[str, Tensor],
    counts: Sequence[int],
    *,
    active: float = 0.5,
    seed: int = 0,
    fit: Callable[[PooledTriplets, Mapping[str, Tensor]], dict[str, Tensor]] = fit_map,
) -> dict[int, float]:
    """Held-out 2AFC scores after numbers of judgments, chosen as `ActiveSelector` does.

    Every triplet is asked about at most once; its answer is one vote, drawn with the probability
    `PooledTriplets.judge`.

    Args:
        train: Triplets to ask about; all have known judgments.
        held_out: Triplets to score on.
        start: Official weights ``(C,)`` by layer name.
        counts: Numbers of judgments to score after.
        active: Fraction of active choices, `Design.active`; 0: all are random.
        seed: Random seed of the votes and of all choices.
        fit: Makes a calibration of the judged triplets.

    Returns:
        Score in [0, 1] by number of judgments.

    Raises:
        ValueError: If there are fewer triplets than judgments.
    """
    if not 0 < min(counts) <= max(counts) <= len(train):
        raise ValueError(f"counts: expected numbers from 1 to the {len(train)} triplets, got {list(counts)}")
    generator = Generator().manual_seed(seed)
    votes = torch.bernoulli(train.judge, generator=generator)
    asked = _ask(train, start, votes, max(counts), active, generator)
    scores = {}
    for count in counts:
        chosen = torch.tensor(asked[:count])
        found = fit(PooledTriplets(train.mean, None, train.rows[chosen], votes[chosen], train.layers), start)
        scores[count] = float(two_afc_score(*held_out.distances(found), held_out.judge))
    return scores


def _ask(
    train: PooledTriplets, start: Mapping[str, Tensor], votes: Tensor, count: int, active: float, generator: Generator
) -> list[int]:
    """The first `count` triplets that are asked about, in order."""
    order = torch.randperm(len(train), generator=generator)
    split = round(active * len(train))
    open_, at_random = order[:split], iter(order[split:].tolist())
    belief = _belief(train, start) if split else None
    asked: list[int] = []
    chosen = 0
    while len(asked) < count:
        wanted = float(torch.rand((), generator=generator)) < active
        row = None if belief is not None and wanted and len(open_) else next(at_random, None)
        if row is None and belief is not None:
            if chosen % _REFIT_EVERY == 0 and asked:
                rows = torch.tensor(asked)
                belief.fit(rows, votes[rows], torch.ones(len(rows)))
            looked_at = torch.randperm(len(open_), generator=generator)[:_LOOKED_AT]
            best = int(looked_at[expected_loss(*belief.predict(open_[looked_at])).argmax()])
            row, open_, chosen = int(open_[best]), torch.cat([open_[:best], open_[best + 1 :]]), chosen + 1
            belief.anticipate(row)
        asked.append(row)
    return asked


def _belief(train: PooledTriplets, start: Mapping[str, Tensor]) -> Belief:
    features = train.mean[train.rows[:, 0]] - train.mean[train.rows[:, 1]]
    return Belief(features, torch.cat([start[layer] for layer in train.layers]))
