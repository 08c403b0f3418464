"""Student's t distribution for whole degrees of freedom, for intervals from few references or observers."""

from __future__ import annotations

import math


def two_sided(t: float, freedom: int) -> float:
    """Probability that a variable with Student's t distribution is further from 0 than `t` (its two-sided p-value).

    The finite series of Abramowitz and Stegun, 26.7.3 and 26.7.4; inexact by about 1e-15, so that smaller values are 0.

    Args:
        t: The statistic, of either sign.
        freedom: Degrees of freedom, at least 1.

    Example:
        >>> round(two_sided(2.0, 2), 4), round(two_sided(12.7062, 1), 4)
        (0.1835, 0.05)
    """
    angle = math.atan(abs(t) / math.sqrt(freedom))
    cos2 = math.cos(angle) ** 2
    odd = freedom % 2
    term, total = (math.cos(angle), 0.0) if odd else (1.0, 0.0)
    for power in range(1 + odd, freedom, 2):
        total += term
        term *= cos2 * power / (power + 1)
    inside = 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total
    return min(1.0, max(0.0, 1 - inside))


def quantile(confidence: float, freedom: int) -> float:
    """The t that is exceeded on either side with probability ``1 - confidence``, by bisection.

    Args:
        confidence: Between 0 and 1, such as 0.95.
        freedom: Degrees of freedom, at least 1.

    Example:
        >>> round(quantile(0.95, 1), 3), round(quantile(0.95, 4), 3), round(quantile(0.95, 1000), 3)
        (12.706, 2.776, 1.962)
    """
    low, high = 0.0, 1.0
    while two_sided(high, freedom) > 1 - confidence:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if two_sided(middle, freedom) > 1 - confidence else (low, middle)
    return high
