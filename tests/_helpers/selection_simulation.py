"""How many judgments active selection saves, on triplets whose judgments are known."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Generator, Tensor

from lpips_lightning.calibration.fit_map import fit_map
from lpips_lightning.calibration.pooled import PooledTriplets
from lpips_lightning.functional.judgments import two_afc_score
from lpips_lightning.judge.belief import Belief, expected_loss
from lpips_lightning.judge.selection import _LOOKED_AT

_REFIT_EVERY = 5  # as `ActiveSelector`


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
    may_be_chosen, at_random = order[: round(active * len(train))], order[round(active * len(train)) :].tolist()
    belief = _belief(train, start)
    asked: list[int] = []
    chosen = 0
    while len(asked) < count:
        wanted = float(torch.rand((), generator=generator)) < active
        if at_random and not (wanted and len(may_be_chosen)):
            asked.append(at_random.pop(0))
            continue
        if chosen % _REFIT_EVERY == 0 and asked:
            rows = torch.tensor(asked)
            belief.fit(rows, votes[rows], torch.ones(len(rows)))
        looked_at = torch.randperm(len(may_be_chosen), generator=generator)[:_LOOKED_AT]
        best = int(looked_at[expected_loss(*belief.predict(may_be_chosen[looked_at])).argmax()])
        asked.append(int(may_be_chosen[best]))
        belief.anticipate(asked[-1])
        may_be_chosen = torch.cat([may_be_chosen[:best], may_be_chosen[best + 1 :]])
        chosen += 1
    return asked


def _belief(train: PooledTriplets, start: Mapping[str, Tensor]) -> Belief:
    return Belief(train.differences(), train.joined(start))
