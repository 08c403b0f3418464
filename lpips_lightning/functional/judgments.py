"""Agreement of distances with human judgments: 2AFC (which one is closer?) and JND (are they the same?).

Zhang et al. 2018, sections 2.2, 2.3 and appendix, computed as in the reference (richzhang/PerceptualSimilarity,
``data/`` and ``trainer.py``) with one exception: the reference sorts JND distances ``(M, 1, 1, 1)`` along the last
axis, which does not sort them; here they are sorted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from statistics import NormalDist

import torch
from torch import Tensor

from lpips_lightning.batch import SUM_DTYPE

_FEW_GROUPS = 5  # with fewer, resamples are too few to span an interval


def two_afc_score(d0: Tensor, d1: Tensor, judge: Tensor) -> Tensor:
    """Mean fraction of people who agree with the distances on which of two patches is closer to the reference.

    Args:
        d0: Distance of the first patch to the reference, shape ``(M,)``; ``(M, 1, ...)`` is flattened.
        d1: Distance of the second patch, same shape.
        judge: Fraction of people who judge the second patch closer, in [0, 1], same shape.

    Returns:
        Shape ``()`` in [0, 1], float64; NaN for M = 0. Equal distances count one half.

    Raises:
        TypeError: If an argument is not a real tensor.
        ValueError: If shapes or devices differ, a value is NaN, or `judge` is outside [0, 1].

    Example:
        >>> d0, d1 = torch.tensor([0.1, 0.7, 0.2]), torch.tensor([0.3, 0.2, 0.2])
        >>> two_afc_score(d0, d1, torch.tensor([0.0, 1.0, 0.8]))
        tensor(0.8333, dtype=torch.float64)
    """
    return agreement(d0, d1, judge).mean()


def agreement(d0: Tensor, d1: Tensor, judge: Tensor, validate_args: bool = True) -> Tensor:
    """Fraction of people who agree with the distances, for each triplet: ``(M,)``, float64.

    `two_afc_score` is its mean and has the same arguments and errors. `validate_args` checks values.
    """
    first, second, fraction = checked({"d0": d0, "d1": d1, "judge": judge}, fractions=("judge",), values=validate_args)
    return torch.where(first < second, 1 - fraction, torch.where(second < first, fraction, 0.5))


def rank_flip_rate(d0: Tensor, d1: Tensor, shifted_d0: Tensor, shifted_d1: Tensor) -> Tensor:
    """How often a shift of the patches changes the answer which of two patches is closer to the reference.

    Ghildyal and Liu 2022, section 3. The authors count a triplet if ``d0 < d1`` has another truth value after the
    shift; without ties that is the same. `lpips_lightning.evaluation.benchmark.measure` says how they shift.

    Args:
        d0: Distance of the first patch to the reference, shape ``(M,)``; ``(M, 1, ...)`` is flattened.
        d1: Distance of the second patch, same shape.
        shifted_d0: Distance of the first patch after the shift, same shape.
        shifted_d1: Distance of the second patch after the shift, same shape.

    Returns:
        Shape ``()`` in [0, 1], float64; NaN for M = 0. Where the distances are equal either before or after the shift,
        the triplet counts one half; where they are equal both times, it counts 0.

    Raises:
        TypeError: If an argument is not a real tensor.
        ValueError: If shapes or devices differ, or a value is NaN.

    Example:
        >>> d0, d1 = torch.tensor([0.1, 0.7, 0.2, 0.4]), torch.tensor([0.3, 0.2, 0.2, 0.5])
        >>> rank_flip_rate(d0, d1, torch.tensor([0.2, 0.1, 0.1, 0.3]), torch.tensor([0.3, 0.2, 0.3, 0.4]))
        tensor(0.3750, dtype=torch.float64)
    """
    return rank_flips(d0, d1, shifted_d0, shifted_d1).mean()


def rank_flips(d0: Tensor, d1: Tensor, shifted_d0: Tensor, shifted_d1: Tensor, validate_args: bool = True) -> Tensor:
    """Whether the answer changes, for each triplet: 0, 0.5 or 1, ``(M,)``, float64.

    `rank_flip_rate` is its mean and has the same arguments and errors. `validate_args` checks values.
    """
    columns = {"d0": d0, "d1": d1, "shifted_d0": shifted_d0, "shifted_d1": shifted_d1}
    first, second, shifted_first, shifted_second = checked(columns, values=validate_args)
    # The sign of a comparison, not of a difference: that of two infinite distances would be NaN.
    before = (first > second).to(first.dtype) - (first < second).to(first.dtype)
    after = (shifted_first > shifted_second).to(first.dtype) - (shifted_first < shifted_second).to(first.dtype)
    return (before - after).abs() / 2


def human_ceiling(judge: Tensor) -> Tensor:
    """Expected 2AFC score of one more person who judges as the others: mean of ``p^2 + (1 - p)^2``.

    Args:
        judge: Fraction ``p`` of people who judge the second patch closer, in [0, 1], shape ``(M,)``; ``(M, 1, ...)`` is
            flattened.

    Returns:
        Shape ``()`` in [0.5, 1], float64; NaN for M = 0.

    Raises:
        TypeError: If `judge` is not a real tensor.
        ValueError: If the shape is wrong, or a value is NaN or outside [0, 1].

    Example:
        >>> human_ceiling(torch.tensor([1.0, 0.5]))
        tensor(0.7500, dtype=torch.float64)
    """
    (fraction,) = checked({"judge": judge}, fractions=("judge",))
    return (fraction.square() + (1 - fraction).square()).mean()


def jnd_curve(distances: Tensor, same: Tensor) -> tuple[Tensor, Tensor]:
    """Recall and precision of "these look the same" for increasing thresholds on the distance.

    Pairs of equal distance share a threshold, so the order of the pairs does not matter.

    Args:
        distances: Distance of each image pair, shape ``(M,)``; ``(M, 1, ...)`` is flattened.
        same: Fraction of people who saw no difference, in [0, 1], same shape.

    Returns:
        Recall and precision, each ``(K,)`` in float64, for the K different distances, ascending. Recall is NaN if
        `same` is 0 everywhere.

    Raises:
        TypeError: If an argument is not a real tensor.
        ValueError: If shapes or devices differ, a value is NaN, or `same` is outside [0, 1].

    Example:
        >>> recall, precision = jnd_curve(torch.tensor([0.3, 0.1, 0.2]), torch.tensor([1.0, 1.0, 0.0]))
        >>> recall.tolist(), [round(value, 3) for value in precision.tolist()]
        ([0.5, 0.5, 1.0], [1.0, 0.5, 0.667])
    """
    distance, fraction = checked({"distances": distances, "same": same}, fractions=("same",))
    ordered, order = distance.sort(stable=True)
    true_positives = fraction[order].cumsum(0)
    positives = torch.arange(1, len(ordered) + 1, dtype=ordered.dtype, device=ordered.device)
    last = torch.ones_like(ordered, dtype=torch.bool)
    last[:-1] = ordered[:-1] != ordered[1:]
    return (true_positives / fraction.sum())[last], (true_positives / positives)[last]


def jnd_score(distances: Tensor, same: Tensor) -> Tensor:
    """Average precision of "these look the same": area under the VOC envelope of `jnd_curve`.

    Args:
        distances: Distance of each image pair, shape ``(M,)``; ``(M, 1, ...)`` is flattened.
        same: Fraction of people who saw no difference, in [0, 1], same shape.

    Returns:
        Shape ``()`` in [0, 1], float64; NaN if `same` is 0 everywhere. A constant distance scores the mean of `same`.

    Raises:
        TypeError: If an argument is not a real tensor.
        ValueError: If shapes or devices differ, a value is NaN, or `same` is outside [0, 1].

    Example:
        >>> jnd_score(torch.tensor([0.3, 0.1, 0.2]), torch.tensor([1.0, 1.0, 0.0]))
        tensor(0.8333, dtype=torch.float64)
    """
    recall, precision = jnd_curve(distances, same)
    if not len(recall):
        return recall.new_tensor(float("nan"))
    envelope = precision.flip(0).cummax(0).values.flip(0)
    return (recall.diff(prepend=recall.new_zeros(1)) * envelope).sum()


def bootstrap_interval(
    score: Callable[..., Tensor],
    *columns: Tensor,
    groups: Tensor | None = None,
    bounds: tuple[float, float] | None = None,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Bootstrap interval of a score: its rows, or groups of rows, are resampled with replacement.

    The percentiles are those of Hesterberg (2015, arXiv:1411.5279): further out for few groups, where plain percentiles
    give intervals that are too narrow. Still, rows that happen to agree would give an interval of no width. With
    `bounds`, the interval therefore allows that some of all rows, which M rows may not have shown, lie at a bound: a
    fraction of ``z^2 / (M + z^2)``, the upper end of Wilson's interval for 0 of M (0.79 for 1, 0.04 for 100). 2 to 4
    groups tell as little of others as so many rows do, and M is their number.

    Args:
        score: Function of the `columns` that returns a 0-dimensional tensor, such as `two_afc_score` or `jnd_score`.
        columns: Tensors ``(M,)``; all are resampled with the same rows.
        groups: Group of each row, ``(M,)``, such as `TripletDataset.references`: rows of a group depend on each other
            and are drawn together. None, or one group only: rows are drawn one by one.
        bounds: Lowest and highest value that the score can have, such as ``(0, 1)``.
        confidence: Confidence level, between 0 and 1.
        resamples: Number of resamples.
        seed: Equal seeds give equal intervals.

    Returns:
        Lower and upper end; resamples with a NaN score are ignored; NaN for M = 0.

    Raises:
        ValueError: If an argument is out of its range, or the columns differ in length.

    Example:
        >>> low, high = bootstrap_interval(torch.mean, torch.tensor([0.0, 1.0]).repeat(50))
        >>> low < 0.5 < high
        True
        >>> low, high = bootstrap_interval(torch.mean, torch.zeros(1), bounds=(0, 1))
        >>> low, round(high, 2)
        (0.0, 0.79)
    """
    count = _check_interval(columns, groups, bounds, confidence, resamples)
    if not count:
        return float("nan"), float("nan")
    labels = torch.arange(count) if groups is None else groups.cpu().unique(return_inverse=True)[1]
    units = int(labels.max()) + 1
    if units == 1:
        labels, units = torch.arange(count), count
    drawn = torch.tensor(
        [
            float(score(*(column[rows.to(column.device)] for column in columns)))
            for rows in _resamples(labels, resamples, seed)
        ],
        dtype=torch.float64,
    )
    low, high = bootstrap_percentiles(drawn, units, confidence)
    if bounds is not None:
        ends = unseen_ends(float(score(*columns)), count, units, bounds, confidence)
        low, high = min(low, ends[0]), max(high, ends[1])
    return low, high


def bootstrap_percentiles(drawn: Tensor, units: int, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of a score from its bootstrap resamples, with the percentiles of `bootstrap_interval`.

    Args:
        drawn: Score of each resample, ``(B,)``; NaN are ignored.
        units: Number of independent units that were resampled.
        confidence: Confidence level, between 0 and 1.

    Returns:
        Lower and upper end.
    """
    tail = _tail(units, confidence)
    low, high = drawn.double().nanquantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return low, high


def _check_interval(
    columns: Sequence[Tensor],
    groups: Tensor | None,
    bounds: tuple[float, float] | None,
    confidence: float,
    resamples: int,
) -> int:
    """Number of rows."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence: expected a number between 0 and 1, got {confidence}")
    if resamples < 1:
        raise ValueError(f"resamples: expected at least 1, got {resamples}")
    if bounds is not None and not bounds[0] < bounds[1]:
        raise ValueError(f"bounds: expected the lowest and the highest score, got {bounds}")
    if len({len(column) for column in columns}) != 1:
        raise ValueError(f"columns: expected equal lengths, got {[len(column) for column in columns]}")
    if groups is not None and groups.shape != (len(columns[0]),):
        raise ValueError(f"groups: expected shape ({len(columns[0])},), as the columns, got {tuple(groups.shape)}")
    return len(columns[0])


def _resamples(labels: Tensor, resamples: int, seed: int) -> Iterator[Tensor]:
    """Rows of every resample; `labels` are the groups 0, 1, ... of the rows."""
    generator = torch.Generator().manual_seed(seed)
    rows, sizes = labels.argsort(stable=True), labels.bincount()
    starts = sizes.cumsum(0) - sizes
    for _ in range(resamples):
        chosen = torch.randint(len(sizes), (len(sizes),), generator=generator)
        lengths = sizes[chosen]
        offsets = starts[chosen] - (lengths.cumsum(0) - lengths)
        yield rows[offsets.repeat_interleave(lengths) + torch.arange(int(lengths.sum()))]


def _tail(count: int, confidence: float) -> float:
    """Share of the resamples below the interval of a score of `count` independent units (Hesterberg 2015)."""
    normal, freedom = NormalDist(), count - 1
    z = normal.inv_cdf((1 + confidence) / 2)
    if not freedom:
        return 0.0
    # Student's t quantile (Abramowitz and Stegun 26.7.5); where it is inexact, the tail has no resample anyway.
    t = z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    return normal.cdf(-t * math.sqrt(count / freedom))


def unseen_ends(
    value: float, rows: int, units: int, bounds: tuple[float, float], confidence: float = 0.95
) -> tuple[float, float]:
    """Where a score may be if a fraction of all rows, which those seen may not have shown, lies at a bound.

    Args:
        value: The score.
        rows: Number of rows.
        units: Number of independent groups of them.
        bounds: Lowest and highest value that the score can have.
        confidence: Confidence level, between 0 and 1.

    Returns:
        Lower and upper end; see `bootstrap_interval`.
    """
    z2 = NormalDist().inv_cdf((1 + confidence) / 2) ** 2
    unseen = z2 / ((rows if units >= _FEW_GROUPS else units) + z2)
    return value - unseen * (value - bounds[0]), value + unseen * (bounds[1] - value)


def checked(columns: dict[str, Tensor], fractions: tuple[str, ...] = (), values: bool = True) -> list[Tensor]:
    """Check columns and return them as detached float64 tensors ``(M,)``.

    Args:
        columns: Tensors ``(M,)`` or ``(M, 1, ...)`` by name; errors use the name.
        fractions: Names of columns that must be in [0, 1].
        values: Check values too; this synchronizes with the device.

    Returns:
        Columns in the given order.

    Raises:
        TypeError: If a column is not a real tensor.
        ValueError: If shapes or devices do not match, a value is NaN, or a fraction is outside [0, 1].
    """
    flat: list[Tensor] = []
    for name, column in columns.items():
        if not isinstance(column, Tensor) or column.is_complex():
            raise TypeError(f"{name}: expected a real tensor (M,), got {_kind(column)}")
        shape = tuple(column.shape)
        if not shape or column.numel() != shape[0]:
            raise ValueError(f"{name}: expected shape (M,), one value per judgment, got {shape}; flatten it")
        if flat and (len(flat[0]) != shape[0] or flat[0].device != column.device):
            expected = f"{len(flat[0])} on {flat[0].device}"
            raise ValueError(
                f"{name}: expected as many as {next(iter(columns))}, {expected}, got {shape[0]} on {column.device}"
            )
        flat.append(column.detach().to(SUM_DTYPE).flatten())
        if values:
            _check_values(name, flat[-1], fraction=name in fractions)
    return flat


def _check_values(name: str, column: Tensor, fraction: bool) -> None:
    if bool(column.isnan().any()):
        raise ValueError(f"{name}: expected values without NaN, got {int(column.isnan().sum())} NaN of {len(column)}")
    if fraction and len(column) and not bool(((column >= 0) & (column <= 1)).all()):
        lowest, highest = (float(value) for value in column.aminmax())
        raise ValueError(
            f"{name}: expected fractions in [0, 1], got values from {lowest:g} to {highest:g}; "
            "divide votes by the number of votes"
        )


def _kind(value: object) -> str:
    return f"a tensor of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
