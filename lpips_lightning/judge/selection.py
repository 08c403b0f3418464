"""Which item an observer judges next: at random, or where an answer teaches the metric most.

Estimates over all items, such as the score of a metric, use answers to random trials alone. For these to be unbiased, a
random part of the items, fixed by the seed of the study before the first answer, is never chosen actively, and the
others are never drawn at random: whatever was chosen actively, by whomever, leaves the random draws as they were.
Answers to both kinds count for a calibration.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from lpips_lightning.judge.belief import Belief, expected_loss
from lpips_lightning.judge.records import Reason, StudyError
from lpips_lightning.judge.store import Study
from lpips_lightning.judge.votes import votes

Selector: TypeAlias = Callable[[Study, Sequence[int], random.Random], tuple[int, Reason]]
"""Chooses one of the candidate items, and says why: ``"random"`` or ``"active"``.

Takes the study, the candidates, and a source of random numbers. Candidates with the fewest votes come first, those with
equally many in random order.
"""

_LOOKED_AT = 1500  # candidates that are scored at a time: a part of them costs little information, and adds variety


def random_selector(study: Study, candidates: Sequence[int], rng: random.Random) -> tuple[int, Reason]:
    """A random one of the candidates with the fewest votes."""
    return candidates[0], "random"


def active_items(study: Study) -> frozenset[int]:
    """The items that may be chosen actively: the fraction `Design.active` of those to judge, at random."""
    items = sorted(study.items("judged"))
    random.Random(f"{study.design.seed}/active").shuffle(items)
    return frozenset(items[: round(study.design.active * len(items))])


class ActiveSelector:
    """Chooses a fraction `Design.active` of the trials where the expected loss of a decision is highest.

    The present metric is a `Belief` on its calibration, which starts at the official one and learns from the answers
    that count; an item's loss is high if its answer is open and the belief uncertain (`expected_loss`). With distances
    of a second metric, items on which the two disagree count as more uncertain.

    Between two fits, chosen items count as answered, so that several observers get different ones. Draws are the same
    for equal calls. Several threads may share one.

    Args:
        study: The study.
        features: Pooled squared differences by item, see `lpips_lightning.judge.item_features`, for the start
            `calibration`; None: the present metric is `metric`, which learns nothing.
        calibration: The official calibration, ``(C,)``; needed with `features`.
        metric: Name of stored distances, `Study.distances`, for the present metric in place of features.
        second: The second metric: name of stored distances, or by item ``d(ref, p0) - d(ref, p1)``, or for JND
            ``d(ref, p0)``; None: there is none.
        refit_every: Active trials between two fits.

    Raises:
        StudyError: If distances are missing, or neither or both of `features` and `metric` are given.
        ValueError: If `refit_every` is below 1.
    """

    def __init__(
        self,
        study: Study,
        features: Mapping[int, Tensor] | None = None,
        calibration: Tensor | None = None,
        *,
        metric: str | None = None,
        second: str | Mapping[int, float] | None = None,
        refit_every: int = 5,
    ) -> None:
        if (features is None) == (metric is None) or (features is None) != (calibration is None):
            raise StudyError("features: expected features with their calibration, or the name of a metric")
        if refit_every < 1:
            raise ValueError(f"refit_every: expected at least 1, got {refit_every}")
        self._items, self._active = sorted(study.items("judged")), active_items(study)
        self._rows = {item: row for row, item in enumerate(self._items)}
        self._second = None if second is None else _utilities(study, second, self._items)
        self._fixed = None if metric is None else _utilities(study, metric, self._items)
        self._belief: Belief | None = None
        if features is not None and calibration is not None:
            table = torch.stack([features[item] for item in self._items]).float()
            self._belief = Belief(table, calibration, threshold=study.design.test == "jnd")
        self._refit_every, self._chosen, self._lock = refit_every, 0, threading.Lock()

    def __call__(self, study: Study, candidates: Sequence[int], rng: random.Random) -> tuple[int, Reason]:
        """Choose an item; see `Selector`."""
        active = [item for item in candidates if item in self._active]
        others = [item for item in candidates if item not in self._active]
        wanted = rng.random() < study.design.active
        if others and not (wanted and active):
            return others[0], "random"
        with self._lock:
            return self._choose(study, active, rng), "active"

    def _choose(self, study: Study, candidates: Sequence[int], rng: random.Random) -> int:
        looked_at = candidates if len(candidates) <= _LOOKED_AT else rng.sample(candidates, _LOOKED_AT)
        rows = torch.tensor([self._rows[item] for item in looked_at])
        if self._belief is not None and self._chosen % self._refit_every == 0:
            self._fit(study)
        self._chosen += 1
        row = int(rows[self._loss(rows).argmax()])
        if self._belief is not None:
            self._belief.anticipate(row)
        return self._items[row]

    def _fit(self, study: Study) -> None:
        found = votes(study)
        if found and self._belief is not None:
            rows = torch.tensor([self._rows[item] for item in found])
            counts = torch.tensor(list(found.values()), dtype=torch.float32)
            self._belief.fit(rows, counts[:, 1] / counts.sum(1), counts.sum(1))

    def _loss(self, rows: Tensor) -> Tensor:
        """Expected loss of items, ``(N,)``."""
        if self._belief is not None:
            mean, variance = self._belief.predict(rows)
        else:
            mean = _known(self._fixed)[rows]
            variance = torch.ones_like(mean)
        if self._second is not None:
            other = self._second[rows]
            # Moments of an equal mixture of the two metrics.
            mean, variance = (mean + other) / 2, variance / 2 + (mean - other).square() / 4
        return expected_loss(mean, variance)


def _known(values: Tensor | None) -> Tensor:
    if values is None:
        raise StudyError("metric: expected its distances, got none")
    return values


def _utilities(study: Study, metric: str | Mapping[int, float], items: Sequence[int]) -> Tensor:
    """Evidence of a metric for the second of `CHOICES`, ``(M,)``, scaled to a root mean square of 1."""
    differences = _stored_differences(study, metric) if isinstance(metric, str) else metric
    if missing := [item for item in items if item not in differences]:
        raise StudyError(f"metric: expected distances of all items, got none of item {missing[0]}")
    values = torch.tensor([differences[item] for item in items])
    if study.design.test == "jnd":
        values = values - values.median()
    return values / values.square().mean().sqrt().clamp(min=1e-12)


def _stored_differences(study: Study, metric: str) -> dict[int, float]:
    stored = study.distances()
    if metric not in stored:
        known = ", ".join(stored) or "none"
        raise StudyError(f"metric: expected one with stored distances ({known}), got {metric!r}")
    return {item: d0 - (d1 or 0.0) for item, (d0, d1) in stored[metric].items()}
