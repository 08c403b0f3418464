"""Learning rate schedule and random seeds of the calibration."""

from __future__ import annotations

import numpy as np


def learning_rate_factor(epoch: int, constant_epochs: int = 6, decay_epochs: int = 4) -> float:
    """Learning rate of an epoch (counted from 0) as a fraction of the full rate.

    The reference lowers the rate at the ends of epochs 6 to 10, so ten epochs run at 1 1 1 1 1 1 .8 .6 .4 .2.

    Example:
        >>> [round(learning_rate_factor(epoch), 1) for epoch in range(11)]
        [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2, 0.0]
    """
    return min(1.0, max(0.0, 1 - (epoch - constant_epochs + 1) / (decay_epochs + 1)))


def step_seed(*numbers: int) -> int:
    """A seed derived from all of `numbers`, each >= 0.

    Example:
        >>> step_seed(0, 1) != step_seed(1, 0)
        True
    """
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
