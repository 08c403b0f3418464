"""Which item an observer judges next: at random, or where an answer teaches the metric most."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import TypeAlias

from lpips_lightning.judge.store import Reason, Study

Selector: TypeAlias = Callable[[Study, Sequence[int], random.Random], tuple[int, Reason]]
"""Chooses one of the candidate items, and says why: ``"random"`` or ``"active"``."""


def random_selector(study: Study, candidates: Sequence[int], rng: random.Random) -> tuple[int, Reason]:
    """The first candidate: those with the fewest votes come first, in random order."""
    return candidates[0], "random"
