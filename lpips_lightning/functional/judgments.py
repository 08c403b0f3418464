"""Distances held against people's judgments: 2AFC (which one is nearer?) and JND (are they the same?).

Zhang et al. 2018, sections 2.2, 2.3 and appendix; as the reference computes them (richzhang/PerceptualSimilarity,
``data/`` and ``trainer.py``), but that JND distances must be one number a pair: the reference sorts an array
``(M, 1, 1, 1)`` along its last axis, which leaves any order as it is.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lpips_lightning.batch import SUM_DTYPE


def two_afc_score(d0: Tensor, d1: Tensor, judge: Tensor) -> Tensor:
    """Mean share of people who agree with the distances about which of two is nearer to the reference.

    Args:
        d0: Distance of the first one to the reference, shape ``(M,)``; ``(M, 1, ...)`` is flattened.
        d1: Distance of the second one, as many.
        judge: Share of people who find the second one nearer, in [0, 1], as many.

    Returns:
        Shape ``()`` in [0, 1], float64; NaN for M = 0. Equal distances count one half.

    Raises:
        TypeError: If an argument is no tensor of numbers.
        ValueError: If shapes or devices differ, a value is NaN, or `judge` is off [0, 1].

    Example:
        >>> d0, d1 = torch.tensor([0.1, 0.7, 0.2]), torch.tensor([0.3, 0.2, 0.2])
        >>> two_afc_score(d0, d1, torch.tensor([0.0, 1.0, 0.8]))
        tensor(0.8333, dtype=torch.float64)
    """
    return agreement(d0, d1, judge).mean()


def agreement(d0: Tensor, d1: Tensor, judge: Tensor, validate_args: bool = True) -> Tensor:
    """Share of people who agree with the distances, triplet by triplet: ``(M,)`` in float64.

    Arguments and errors are those of `two_afc_score`, which is its mean; `validate_args` checks values.
    """
    first, second, share = checked({"d0": d0, "d1": d1, "judge": judge}, shares=("judge",), values=validate_args)
    return torch.where(first < second, 1 - share, torch.where(second < first, share, 0.5))


def human_ceiling(judge: Tensor) -> Tensor:
    """The 2AFC score of one more person, if people are the shares they are: mean of ``p^2 + (1 - p)^2``.

    Args:
        judge: Share of people who find the second one nearer, in [0, 1], shape ``(M,)``; ``(M, 1, ...)`` is flattened.

    Returns:
        Shape ``()`` in [0.5, 1], float64; NaN for M = 0.

    Raises:
        TypeError: If it is no tensor of numbers.
        ValueError: If the shape is another, a value is NaN or off [0, 1].

    Example:
        >>> human_ceiling(torch.tensor([1.0, 0.5]))
        tensor(0.7500, dtype=torch.float64)
    """
    (share,) = checked({"judge": judge}, shares=("judge",))
    return (share.square() + (1 - share).square()).mean()


def jnd_curve(distances: Tensor, same: Tensor) -> tuple[Tensor, Tensor]:
    """Recall and precision of "these look the same" as the threshold on the distance rises.

    Pairs of equal distance pass a threshold together, so the order of the pairs does not matter.

    Args:
        distances: Of the two images of each pair, shape ``(M,)``; ``(M, 1, ...)`` is flattened.
        same: Share of people who saw no difference, in [0, 1], as many.

    Returns:
        Recall and precision, each ``(K,)`` in float64, for the K different distances, ascending. Recall is NaN if
        nobody ever said same.

    Raises:
        TypeError: If an argument is no tensor of numbers.
        ValueError: If shapes or devices differ, a value is NaN, or `same` is off [0, 1].

    Example:
        >>> recall, precision = jnd_curve(torch.tensor([0.3, 0.1, 0.2]), torch.tensor([1.0, 1.0, 0.0]))
        >>> recall.tolist(), [round(value, 3) for value in precision.tolist()]
        ([0.5, 0.5, 1.0], [1.0, 0.5, 0.667])
    """
    distance, share = checked({"distances": distances, "same": same}, shares=("same",))
    ordered, order = distance.sort(stable=True)
    found = share[order].cumsum(0)
    seen = torch.arange(1, len(ordered) + 1, dtype=ordered.dtype, device=ordered.device)
    last = torch.ones_like(ordered, dtype=torch.bool)
    last[:-1] = ordered[:-1] != ordered[1:]
    return (found / share.sum())[last], (found / seen)[last]


def jnd_score(distances: Tensor, same: Tensor) -> Tensor:
    """Average precision of "these look the same": area under the VOC envelope of `jnd_curve`.

    Args:
        distances: Of the two images of each pair, shape ``(M,)``; ``(M, 1, ...)`` is flattened.
        same: Share of people who saw no difference, in [0, 1], as many.

    Returns:
        Shape ``()`` in [0, 1], float64; NaN if nobody ever said same. A constant distance gets the mean of `same`.

    Raises:
        TypeError: If an argument is no tensor of numbers.
        ValueError: If shapes or devices differ, a value is NaN, or `same` is off [0, 1].

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
    score: Callable[..., Tensor], *columns: Tensor, confidence: float = 0.95, resamples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of a score when its rows are drawn again with replacement.

    Args:
        score: Of as many tensors as there are `columns`, to a 0-dimensional tensor: `two_afc_score`, `jnd_score`.
        columns: Tensors ``(M,)``, drawn alike.
        confidence: Between 0 and 1.
        resamples: How often to draw.
        seed: Equal seeds give equal intervals.

    Returns:
        Lower and upper end, of the draws for which the score is a number; NaN for M = 0.

    Raises:
        ValueError: If an argument is off, or the columns differ in length.

    Example:
        >>> low, high = bootstrap_interval(torch.mean, torch.tensor([0.0, 1.0]).repeat(50))
        >>> low < 0.5 < high
        True
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence: expected a number between 0 and 1, got {confidence}")
    if resamples < 1:
        raise ValueError(f"resamples: expected at least 1, got {resamples}")
    rows = {len(column) for column in columns}
    if len(rows) != 1:
        raise ValueError(f"columns: expected tensors of one length, got lengths {[len(column) for column in columns]}")
    count = rows.pop()
    if not count:
        return float("nan"), float("nan")
    generator = torch.Generator().manual_seed(seed)
    drawn = []
    for _ in range(resamples):
        chosen = torch.randint(count, (count,), generator=generator)
        drawn.append(float(score(*(column[chosen.to(column.device)] for column in columns))))
    ends = torch.tensor([(1 - confidence) / 2, (1 + confidence) / 2], dtype=torch.float64)
    low, high = torch.tensor(drawn, dtype=torch.float64).nanquantile(ends).tolist()
    return low, high


def checked(columns: dict[str, Tensor], shares: tuple[str, ...] = (), values: bool = True) -> list[Tensor]:
    """The columns as ``(M,)`` in float64, detached.

    Args:
        columns: Tensors ``(M,)`` or ``(M, 1, ...)`` by their names in errors.
        shares: Names of those that must lie in [0, 1].
        values: Check values too; this waits for the device.

    Returns:
        In the order given.

    Raises:
        TypeError: If one is no tensor of numbers.
        ValueError: If shapes or devices do not fit, a value is NaN, or a share is off [0, 1].
    """
    flat: list[Tensor] = []
    for name, column in columns.items():
        if not isinstance(column, Tensor) or column.is_complex():
            raise TypeError(f"{name}: expected a tensor of numbers (M,), got {_kind(column)}")
        shape = tuple(column.shape)
        if not shape or column.numel() != shape[0]:
            raise ValueError(f"{name}: expected shape (M,), one number a judgment, got {shape}; flatten it yourself")
        if flat and (len(flat[0]) != shape[0] or flat[0].device != column.device):
            expected = f"{len(flat[0])} on {flat[0].device}"
            raise ValueError(
                f"{name}: expected as many as {next(iter(columns))}, {expected}, got {shape[0]} on {column.device}"
            )
        flat.append(column.detach().to(SUM_DTYPE).flatten())
        if values:
            _check_values(name, flat[-1], share=name in shares)
    return flat


def _check_values(name: str, column: Tensor, share: bool) -> None:
    if bool(column.isnan().any()):
        raise ValueError(f"{name}: expected numbers, got {int(column.isnan().sum())} NaN of {len(column)}")
    if share and len(column) and not bool(((column >= 0) & (column <= 1)).all()):
        lowest, highest = (float(value) for value in column.aminmax())
        raise ValueError(
            f"{name}: expected shares in [0, 1], got values from {lowest:g} to {highest:g}; "
            "divide votes by their number"
        )


def _kind(value: object) -> str:
    return f"a tensor of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
