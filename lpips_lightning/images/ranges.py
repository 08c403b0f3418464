"""Value ranges of images, and checks that pixel values are in range."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from lpips_lightning.callers import warn_user
from lpips_lightning.images.hints import OPTIONS, Hints
from lpips_lightning.transforms import unwrapped

DataRange: TypeAlias = float | tuple[float, float] | Sequence[float]
"""``(low, high)``, or ``high`` alone for ``(0, high)``."""

NoRange: TypeAlias = Literal["none"] | None
"""Of networks whose input has no range; a configuration file says ``none``, since its ``null`` is a missing value."""

Role: TypeAlias = Literal["data", "unsure", "companion", "prediction"]
"""What images are, and so what their values may be.

``"data"``: on the range; rounding overshoot is clamped, anything else is an error. ``"unsure"``: data or predictions,
as the `lpips` package takes them; overshoot as far as ImageNet's normalization reaches passes with one warning for each
likely mistake. More is an error, unless the other batch of the pair is on its range: then it may be a prediction, and
passes with the warning too.
``"companion"``: given together with a prediction where data or predictions are taken; any scale that a loss may have
chosen passes with the warning, [0, 255] declared as [-1, 1] and NaN are errors.
``"prediction"``: a network's output, which may have any values; one warning if the scale itself looks wrong.
"""

UNBOUNDED = (-math.inf, math.inf)
"""Range of values for a backbone without one: the network gets them as they are, and only NaN and infinity are refused.

Callers write it as ``data_range=None``.
"""

OVERSHOOT = 1e-3  # relative to the largest magnitude of the range: rounding of float32 resampling and of 2x - 1
_MIN_WIDTH = 10 * OVERSHOOT  # relative to the largest magnitude: in narrower ranges, OVERSHOOT would hide errors
_SMALLEST, _LARGEST = 1e-30, 1e30  # widths by which float32 can divide
_FIRST_BATCHES = 3  # three batches of photographs always have a pixel below mid-gray
# Relative to the highest value: how near to 0 the lowest of a batch on [0, 1] is. Of 177 photographs in crops of 64 to
# 256 pixels, 46 to 76 percent of single crops and 95 percent or more of batches of four come as near. Images on [-1, 1]
# must lie above mid-gray, with their darkest pixel at most 2 gray levels above it: 0.13 percent of single crops of 64
# pixels, no larger ones.
_NEAR_ZERO = 0.02
_COPY_EVERY, _READ_AFTER = 8, 4  # calls: copy the device's extremes every 8 calls, read the copy 4 calls later
# In ranges, below and above: what ImageNet's normalization, which some losses apply, reaches beyond [-1, 1]. [-1, 1]
# declared as [0, 1], and 2x - 1 applied twice, reach a whole range below.
_OVERSHOOTS = {"unsure": (0.6, 0.85), "companion": (10.0, 10.0)}
_BYTES = 50  # no overshoot comes near it, and few images on [0, 255] stay below it
_SMALL_OVERSHOOT = 0.5  # in ranges: what resampling and rounding may reach; clamping more would lose the image
# Untrained networks stay within a few ranges; of [0, 255] declared as [0, 1] or [-1, 1], most values lie beyond.
_FAR = 10
_WATCHED_CALLS = 100  # a wrong scale shows in the first calls; later checks would cost time and warn of a divergence
_SAMPLE = 4096  # elements: their quartiles are within a few percent of those of the batch


class RangeError(ValueError):
    """Pixel values outside the declared range."""


def parse_range(data_range: DataRange) -> tuple[float, float]:
    """Lowest and highest pixel value.

    Args:
        data_range: ``(low, high)``, or ``high`` alone: ``1.0`` is ``(0, 1)`` and ``255`` is ``(0, 255)``.

    Returns:
        ``(low, high)``.

    Raises:
        TypeError: If `data_range` is neither a number nor a pair of numbers.
        ValueError: If ``low < high`` does not hold, either is not finite, or the range is too narrow for float32.

    Example:
        >>> parse_range(255), parse_range((-1, 1))
        ((0.0, 255.0), (-1.0, 1.0))
    """
    pair = data_range if isinstance(data_range, Sequence) and not isinstance(data_range, bytes) else (0.0, data_range)
    if len(pair) != 2 or not all(map(_is_number, pair)):
        raise TypeError(f"data_range: expected a pair (low, high) or a number, got {data_range!r}")
    try:
        low, high = float(pair[0]), float(pair[1])
    except OverflowError:  # an int beyond float64
        low = high = math.inf
    if not (low < high and abs(low) < math.inf and abs(high) < math.inf):
        raise ValueError(f"data_range: expected low < high, both finite, got {data_range!r:.80}")
    if high - low < _MIN_WIDTH * max(-low, high) or not _SMALLEST < high - low < _LARGEST:
        raise ValueError(f"data_range: expected low < high that float32 can tell apart, got {data_range!r:.80}")
    return low, high


def range_label(data_range: tuple[float, float]) -> str:
    """Name of a range in fingerprints.

    Args:
        data_range: ``(low, high)``, or `UNBOUNDED`.

    Example:
        >>> range_label((0.0, 1.0)), range_label(UNBOUNDED)
        ('range [0.0, 1.0]', 'range none')
    """
    return f"range {'none' if data_range == UNBOUNDED else list(data_range)}"


def check_values(images: Tensor, name: str, data_range: tuple[float, float], hints: Hints = OPTIONS) -> None:
    """Raise if pixel values are outside the declared range by more than rounding. Synchronizes with the device.

    Args:
        images: Floating-point images; uint8 always passes.
        name: Argument name for error messages.
        data_range: Declared range ``(low, high)``.
        hints: Ways out that the error names.

    Raises:
        RangeError: For values outside the range and for NaN; names the likely mistake.
    """
    checker = RangeChecker(immediate=True)
    checker._warned = True  # one batch alone: a warning here would come with every batch
    checker.observe(images, name, data_range, hints=hints)


@dataclass
class _Extremes:
    """Extremes (of predictions, quartiles) under one name: on the host, and `gathered` on a device."""

    name: str
    data_range: tuple[float, float]
    role: Role
    hints: Hints = OPTIONS
    margin: float = 0.0
    calls: int = 0
    lowest: float = math.inf
    highest: float = -math.inf
    gathered: Tensor | None = field(default=None, repr=False)
    copied: tuple[Tensor, torch.cuda.Event | None] | None = field(default=None, repr=False)


class RangeChecker:
    """Checks the pixel values of many batches: an error for values out of range, one warning for suspicious ranges.

    A range is suspicious if it includes negative values but the first three batches have none, or if it reaches 255 but
    the first three stay in [0, 1]. One batch is enough where such images are hardly possible: if its lowest value is
    near 0, or if it has fractions below 1. Of `UNBOUNDED` values, only NaN and infinity are refused.

    Predictions are never an error. Of the first 100 batches, one warning is given if a quarter of the values or more is
    farther than 10 ranges from the declared range: the quartiles tell a wrong scale from the outliers of an untrained
    or diverging network.

    CPU images are checked immediately. On other devices, minima and maxima are gathered without synchronization and
    checked in `flush` or, if `periodic`, a few calls later.

    Args:
        immediate: Check immediately on every device; synchronizes.
        periodic: Check gathered values every few calls.
    """

    def __init__(self, *, immediate: bool = False, periodic: bool = False) -> None:
        self.immediate = immediate
        self.periodic = periodic
        self._tracked: dict[tuple[str, Role], _Extremes] = {}
        self._warned = False
        self._warned_of: set[str] = set()

    def observe(
        self,
        images: Tensor,
        name: str,
        data_range: tuple[float, float],
        role: Role = "data",
        hints: Hints = OPTIONS,
    ) -> None:
        """Check a batch, or gather its extremes for a later check.

        Args:
            images: Floating-point images; uint8 always passes. Under ``torch.vmap`` all of them are checked.
            name: Argument name for messages; values are tracked by name and role.
            data_range: Declared range ``(low, high)``.
            role: What the images are, see `Role`.
            hints: Ways out that messages name.

        Raises:
            RangeError: For values outside the range and for NaN, except in predictions; names the likely mistake.
            ValueError: If the tensor has no data.
        """
        images = unwrapped(images)
        if images.is_meta or type(images).__name__ == "FakeTensor":
            raise ValueError(f"{name}: expected values, got a tensor without; {hints.no_values}")
        if images.dtype == torch.uint8 or images.numel() == 0:
            return
        known = self._tracked.get((name, role))
        if known is None or known.data_range != data_range:
            known = self._tracked[name, role] = _Extremes(name, data_range, role)
        known.calls += 1
        known.hints = hints
        if not self.immediate and images.is_cuda and torch.cuda.is_current_stream_capturing():
            return
        if role == "prediction":
            if known.calls > _WATCHED_CALLS or data_range == UNBOUNDED:
                return
            known.margin = _FAR * (data_range[1] - data_range[0])
            extremes = _quartiles(images.detach())
        elif data_range == UNBOUNDED:
            extremes = _finite_in_float32(torch.stack(torch.aminmax(images.detach())))
        else:
            rounding = max(OVERSHOOT, torch.finfo(images.dtype).eps) * max(map(abs, data_range))
            known.margin = max(known.margin, rounding)
            extremes = torch.stack(torch.aminmax(images.detach())).float()
        if self.immediate or _on_host(images):
            self._check(known, extremes, known.calls)
            if known.calls < _FIRST_BATCHES and role != "prediction" and not self._warned:
                self._warn_if_obvious(known, images)
        else:
            self._gather(known, unwrapped(extremes))

    def observe_pair(
        self,
        x: Tensor,
        y: Tensor,
        names: tuple[str, str],
        data_range: tuple[float, float],
        hints: Hints = OPTIONS,
    ) -> None:
        """Check two batches of which either may be a prediction, both with the role ``"unsure"``.

        Args:
            x: Floating-point images; uint8 always passes.
            y: The same.
            names: Argument names for messages.
            data_range: Declared range ``(low, high)`` of both.
            hints: Ways out that messages name.

        Raises:
            RangeError: If both are off the range, further than ImageNet's normalization reaches, or NaN; names the
                likely mistake.
            ValueError: If a tensor has no data.
        """
        errors = []
        for images, name in zip((x, y), names, strict=True):
            try:
                self.observe(images, name, data_range, "unsure", hints)
            except RangeError as error:
                errors.append(error)
        if len(errors) == 2:
            raise errors[0]
        for caught in errors:
            self._warn_of_values(str(caught), "measured as they are, since the other images are on the range")

    def flush(self) -> None:
        """Check everything that was gathered and start anew. Synchronizes with the devices.

        Raises:
            RangeError: For values outside the range and for NaN; names the likely mistake.
        """
        tracked, self._tracked = self._tracked, {}
        for known in tracked.values():
            if known.gathered is not None:
                self._check(known, known.gathered, known.calls)
            self._warn_if_suspicious(known, known.calls)

    def _gather(self, known: _Extremes, extremes: Tensor) -> None:
        if known.role == "prediction":  # a batch without finite values must not hide later ones
            extremes = extremes.nan_to_num(nan=sum(known.data_range) / 2)
        if known.gathered is not None:
            extremes = torch.stack(
                (
                    torch.minimum(known.gathered[0], extremes[0]),
                    torch.maximum(known.gathered[1], extremes[1]),
                )
            )
        known.gathered = extremes
        if not self.periodic:
            return
        if known.calls % _COPY_EVERY == 1:
            known.copied = _begin_copy(extremes)
        elif known.calls % _COPY_EVERY == 1 + _READ_AFTER and known.copied is not None:
            (copy, done), known.copied = known.copied, None
            if done is not None:
                done.synchronize()  # recorded calls ago: does not wait
            self._check(known, copy, known.calls - _READ_AFTER)

    def _check(self, known: _Extremes, extremes: Tensor, batches: int) -> None:
        """Check the extremes of the first `batches` batches."""
        lowest, highest = (value.item() for value in extremes)  # torch.func tensors have no .tolist() in torch 2.6
        low, high = known.data_range
        if known.data_range == UNBOUNDED:
            self._check_finite(known, lowest, highest)
            return
        if known.role == "prediction":
            if lowest < low - known.margin or highest > high + known.margin:
                self._warn_of_values(
                    f"{known.name}: declared on [{low:g}, {high:g}], but the middle half of the values lies from "
                    f"{lowest:g} to {highest:g}{_likely_scale(lowest, highest, high)}",
                    "a prediction never stops a run, but check data_range and the network's last layer",
                )
            return
        if not (lowest >= low - known.margin and highest <= high + known.margin):
            message = (
                f"{known.name}: expected values on [{low:g}, {high:g}], got values from {lowest:g} to {highest:g}"
                f"{_likely_mistake(lowest, highest, low, high, known.hints)}{known.hints.beside_mask()}"
            )
            below, above = (part * (high - low) for part in _OVERSHOOTS.get(known.role, (0.0, 0.0)))
            passes = lowest >= low - known.margin - below and highest <= high + known.margin + above
            if not passes and (known.role == "data" or known.gathered is None):  # too late to tell the pairs apart
                raise RangeError(message)
            self._warn_of_values(message, "they are measured as they are")
        known.lowest, known.highest = min(known.lowest, lowest), max(known.highest, highest)
        late = known.gathered is not None and (batches > _FIRST_BATCHES or _is_near_zero(known))
        if batches == _FIRST_BATCHES or late:
            self._warn_if_suspicious(known, batches)

    def _check_finite(self, known: _Extremes, lowest: float, highest: float) -> None:
        """Check the extremes of values without a range."""
        if math.isfinite(lowest) and math.isfinite(highest):
            return
        found = "NaN" if math.isnan(lowest) else "infinity"
        hint = f"; {known.hints.nan()}" if found == "NaN" else ""
        message = f"{known.name}: expected finite values, got {found}{hint}{known.hints.beside_mask()}"
        if known.role == "data" or known.gathered is None:  # as for values off a range
            raise RangeError(message)
        self._warn_of_values(message, "they are measured as they are")

    def _warn_if_obvious(self, known: _Extremes, images: Tensor) -> None:
        """Warn before the third batch if images on the declared range hardly look like this."""
        low, high = known.data_range
        fractions = low == 0 and high >= 255 and known.lowest >= 0 and known.highest <= 1 + OVERSHOOT
        if _is_near_zero(known) or (fractions and bool(((images > 0) & (images < 1)).any())):
            self._warn_if_suspicious(known, known.calls)

    def _warn_if_suspicious(self, known: _Extremes, batches: int) -> None:
        low, high = known.data_range
        if self._warned or known.role == "prediction" or known.data_range == UNBOUNDED:
            return
        if not known.lowest < known.highest:  # constant images prove nothing
            return
        if low < 0 <= known.lowest:
            seen = "none below 0"
        elif low == 0 and high >= 255 and known.highest <= 1 + OVERSHOOT:
            seen = "none above 1"
        else:
            return
        self._warned = True
        first = "batch" if batches == 1 else f"{batches} batches"
        warn_user(
            f"{known.name}: expected values on [{low:g}, {high:g}], got {seen} in the first {first}; if they are on "
            f"[0, 1], {known.hints.unit_range}"
        )

    def _warn_of_values(self, message: str, consequence: str) -> None:
        mistake = message.partition("; ")[2]  # after the values: an overshoot must not hide a wrong range later on
        if mistake not in self._warned_of:
            self._warned_of.add(mistake)
            warn_user(f"{message}; {consequence}")

    def __getstate__(self) -> dict[str, Any]:
        # Copies and pickles start empty; gathered values are checked by the original.
        return {**self.__dict__, "_tracked": {}, "_warned_of": set(self._warned_of)}


def _is_near_zero(known: _Extremes) -> bool:
    """Whether nothing is below 0, as the range allows, and the darkest value is near 0: black, on [0, 1]."""
    low, high = known.data_range
    return low < 0 <= known.lowest <= _NEAR_ZERO * high


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _on_host(images: Tensor) -> bool:
    return images.device.type == "cpu"


def _finite_in_float32(values: Tensor) -> Tensor:
    """Values in float32, where finite ones stay finite; only those of float64 may be too large."""
    if values.dtype == torch.float64:
        values = torch.where(values.isfinite(), values.clamp(-_LARGEST, _LARGEST), values)
    return values.float()


def _quartiles(images: Tensor) -> Tensor:
    """Lower and upper quartile of the finite values of a strided sample, NaN without any; never waits for a device."""
    values = images.reshape(-1)[:: images.numel() // _SAMPLE | 1].float()  # an odd stride meets every column
    finite = values.isfinite()
    values = values.where(finite, math.inf).sort().values
    last = (finite.sum() - 1).clamp(min=0)
    quartiles = values[torch.stack((last // 4, last - last // 4))]
    return quartiles.where(quartiles.isfinite(), math.nan)


def _begin_copy(extremes: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """A copy on the host and the event that marks its completion; None if it is complete."""
    if not extremes.is_cuda:
        return extremes.cpu(), None
    copy = extremes.to("cpu", non_blocking=True)
    done = torch.cuda.Event()
    done.record(torch.cuda.current_stream(extremes.device))
    return copy, done


def _likely_scale(lowest: float, highest: float, high: float) -> str:
    return "; these look like [0, 255]" if lowest >= -1 and 2 < highest <= 256 and high <= 1 else ""


def _likely_mistake(lowest: float, highest: float, low: float, high: float, hints: Hints) -> str:
    if lowest != lowest:
        return f"; {hints.nan()}"
    if lowest >= min(-0.5, low) and _BYTES < highest <= 256 and high <= 1:
        return f"; these look like [0, 255]: {hints.bytes_range}"
    if low == 0 and high == 1 and -1.01 <= lowest < 0 and highest <= 1.01:
        return f"; these look like [-1, 1]: {hints.signed_range}"
    if -3.01 <= lowest < -1.5 and highest <= 1.01 and low == -1:
        return "; 2x - 1 was applied twice"
    if -2.2 <= lowest < -1.5 and 1.5 < highest <= 2.7:
        return "; these look normalized by ImageNet's mean and standard deviation: undo that first"
    slack = _SMALL_OVERSHOOT * (high - low)
    if lowest < low - slack or highest > high + slack:
        return "; that is no overshoot to clamp: check how the images are scaled"
    return "; clamp the images to the range first"
