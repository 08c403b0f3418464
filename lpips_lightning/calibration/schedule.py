"""Learning rate and seeds of the calibration."""

from __future__ import annotations

import numpy as np


def learning_rate_factor(epoch: int, constant_epochs: int = 6, decay_epochs: int = 4) -> float:
    """Share of the full learning rate in an epoch, counted from 0.

    The reference's loop lowers the rate at the ends of epochs 6 to 10, so ten epochs run at 1 1 1 1 1 1 .8 .6 .4 .2.

    Example:
        >>> [round(learning_rate_factor(epoch), 1) for epoch in range(11)]
        [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2, 0.0]
    """
    return min(1.0, max(0.0, 1 - (epoch - constant_epochs + 1) / (decay_epochs + 1)))


def step_seed(*numbers: int) -> int:
    """A seed that depends on every one of some numbers >= 0.

    Example:
        >>> step_seed(0, 1) != step_seed(1, 0)
        True
    """
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
