"""What values pixels may have, and who watches that they do."""

from __future__ import annotations

import math
import numbers
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor

__all__ = ["DataRange", "RangeError", "RangeWatch", "check_values", "parse_range", "training_slack"]

DataRange: TypeAlias = float | tuple[float, float] | Sequence[float]
"""``(low, high)``, or ``high`` alone for ``(0, high)``."""

OVERSHOOT = 1e-3  # of the range's largest magnitude: what resampling in float32 and 2x - 1 leave behind
_NARROWEST = 10 * OVERSHOOT  # of the range's largest magnitude: below it, hardly a value could be off the range
_SMALLEST, _LARGEST = 1e-30, 1e30  # what float32 computes with, and divides by
_FIRST_BATCHES = 3  # of photographs, none of them with a pixel below mid-gray: does not happen
_EVERY, _LATER = 8, 4  # calls: a copy of what the device has gathered is begun every 8, and read 4 later


class RangeError(ValueError):
    """Pixel values that cannot be on the declared range."""


def parse_range(data_range: DataRange) -> tuple[float, float]:
    """Lowest and highest pixel value.

    Args:
        data_range: ``(low, high)``, or ``high`` alone: ``1.0`` is ``(0, 1)`` and ``255`` is ``(0, 255)``.

    Returns:
        ``(low, high)``.

    Raises:
        TypeError: If it is neither a number nor a pair of numbers.
        ValueError: If ``low`` is not below ``high``, either is not finite, or float32 knows too few numbers between.

    Example:
        >>> parse_range(255), parse_range((-1, 1))
        ((0.0, 255.0), (-1.0, 1.0))
    """
    pair = data_range if isinstance(data_range, Sequence) and not isinstance(data_range, bytes) else (0.0, data_range)
    if len(pair) != 2 or not all(map(_is_number, pair)):
        raise TypeError(f"data_range: expected a pair (low, high) or a number, got {data_range!r}")
    try:
        low, high = float(pair[0]), float(pair[1])
    except OverflowError:  # of a whole number
        low = high = math.inf
    if not (low < high and abs(low) < math.inf and abs(high) < math.inf):
        raise ValueError(f"data_range: expected low < high, both finite, got {data_range!r:.80}")
    if high - low < _NARROWEST * max(-low, high) or not _SMALLEST < high - low < _LARGEST:
        raise ValueError(f"data_range: expected low < high that float32 can tell apart, got {data_range!r:.80}")
    return low, high


def training_slack(data_range: tuple[float, float]) -> float:
    """How far the output of a network in training may lie off its range and still pass.

    [0, 255] floats lie 254 ranges above [0, 1]; 2x - 1 applied twice reaches -3.

    Args:
        data_range: ``(low, high)``.

    Returns:
        In sizes of the range: all of it for ``(0, high)``, a quarter for others.
    """
    return 1.0 if data_range[0] == 0 else 0.25


def check_values(images: Tensor, name: str, data_range: tuple[float, float], slack: float = 0.0) -> None:
    """Refuse pixel values off the declared range; a rounding error's worth of overshoot passes. The host waits.

    Args:
        images: Floating images; uint8 always passes.
        name: What to call them in the error.
        data_range: ``(low, high)``.
        slack: See `RangeWatch.see`.

    Raises:
        RangeError: With the likely mistake and its mend; also for NaN.
    """
    RangeWatch(immediate=True).see(images, name, data_range, slack)


@dataclass
class _Stream:
    """What has been seen under one name: `lowest` and `highest` by the host, `gathered` by a device."""

    name: str
    data_range: tuple[float, float]
    slack: float
    tolerance: float = 0.0
    calls: int = 0
    lowest: float = math.inf
    highest: float = -math.inf
    gathered: Tensor | None = field(default=None, repr=False)
    copied: tuple[Tensor, torch.cuda.Event | None] | None = field(default=None, repr=False)


class RangeWatch:
    """Follows the pixel values of many batches: an error for impossible ones, one warning for suspicious ones.

    Impossible are values off the declared range by more than rounding. Suspicious is a declared range that reaches
    below 0 when the first batches never do, or one up to 255 when they stay on [0, 1].

    Images on the CPU are judged on the spot. On another device their extremes are gathered without making the host
    wait, and judged at `speak` or, if `periodic`, a few calls later.

    Args:
        immediate: Judge on the spot on every device; the host waits.
        periodic: Judge what a device has gathered every few calls.
    """

    def __init__(self, *, immediate: bool = False, periodic: bool = False) -> None:
        self.immediate = immediate
        self.periodic = periodic
        self._streams: dict[str, _Stream] = {}
        self._warned = False

    def see(self, images: Tensor, name: str, data_range: tuple[float, float], slack: float = 0.0) -> None:
        """Take a batch into account.

        Args:
            images: Floating images; uint8 always passes.
            name: What to call them.
            data_range: ``(low, high)``.
            slack: How much farther than rounding values may lie out, in sizes of the range; if it is positive, NaN
                passes and nothing is suspicious. For the output of a network in training.

        Raises:
            RangeError: With the likely mistake and its mend; also for NaN.
            ValueError: If the tensor has no values.
        """
        if images.is_meta or type(images).__name__ == "FakeTensor":
            raise ValueError(f"{name}: expected values, got a tensor without; validate_args=False gives shapes alone")
        if images.dtype == torch.uint8 or images.numel() == 0 or math.isinf(slack):
            return
        stream = self._streams.get(name)
        if stream is None or (stream.data_range, stream.slack) != (data_range, slack):
            stream = self._streams[name] = _Stream(name, data_range, slack)
        tolerance = max(OVERSHOOT, torch.finfo(images.dtype).eps) * max(map(abs, data_range))
        stream.tolerance = max(stream.tolerance, tolerance + slack * (data_range[1] - data_range[0]))
        stream.calls += 1
        extremes = torch.stack(torch.aminmax(images.detach())).float()
        if self.immediate or _on_host(images):
            self._judge(stream, extremes)
        elif not (images.is_cuda and torch.cuda.is_current_stream_capturing()):
            self._gather(stream, extremes)

    def speak(self) -> None:
        """Judge everything that was gathered, and forget it; the host waits for the devices.

        Raises:
            RangeError: With the likely mistake and its mend; also for NaN.
        """
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            if stream.gathered is not None:
                self._judge(stream, stream.gathered)
            self._suspect(stream)

    def _gather(self, stream: _Stream, extremes: Tensor) -> None:
        if stream.slack:  # a diverged network's NaN must not hide what comes after it
            extremes = extremes.nan_to_num(nan=sum(stream.data_range) / 2, posinf=math.inf, neginf=-math.inf)
        if stream.gathered is not None:
            extremes = torch.stack(
                (
                    torch.minimum(stream.gathered[0], extremes[0]),
                    torch.maximum(stream.gathered[1], extremes[1]),
                )
            )
        stream.gathered = extremes
        if not self.periodic:
            return
        if stream.calls % _EVERY == 1:
            stream.copied = _begin_copy(extremes)
        elif stream.calls % _EVERY == 1 + _LATER and stream.copied is not None:
            (copy, done), stream.copied = stream.copied, None
            if done is not None:
                done.synchronize()  # recorded calls ago: long since done
            self._judge(stream, copy)

    def _judge(self, stream: _Stream, extremes: Tensor) -> None:
        lowest, highest = (value.item() for value in extremes)  # torch.func's have no .tolist() in torch 2.6
        low, high = stream.data_range
        if stream.slack and math.isnan(lowest):
            return
        if not (lowest >= low - stream.tolerance and highest <= high + stream.tolerance):
            raise RangeError(
                f"{stream.name}: expected values on [{low:g}, {high:g}], got values from {lowest:g} to {highest:g}"
                f"{_likely_mistake(lowest, highest, low, high)}"
            )
        stream.lowest, stream.highest = min(stream.lowest, lowest), max(stream.highest, highest)
        if stream.calls == _FIRST_BATCHES or stream.gathered is not None:
            self._suspect(stream)

    def _suspect(self, stream: _Stream) -> None:
        low, high = stream.data_range
        if self._warned or stream.slack or not stream.lowest < stream.highest:  # one flat colour says nothing
            return
        if low < 0 <= stream.lowest:
            seen = "no value below 0"
        elif low == 0 and high >= 255 and stream.highest <= 1 + OVERSHOOT:
            seen = "no value above 1"
        else:
            return
        self._warned = True
        warnings.warn(
            f"{stream.name}: declared on [{low:g}, {high:g}], but {seen} in the first {stream.calls} batches; if they "
            "are on [0, 1], say data_range=(0, 1) (normalize=True)",
            stacklevel=2,
        )

    def __getstate__(self) -> dict[str, Any]:
        # Copies and pickles start with a clean slate: what was gathered is the original's to judge.
        return {**self.__dict__, "_streams": {}}


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _on_host(images: Tensor) -> bool:
    return images.device.type == "cpu"


def _begin_copy(extremes: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """A copy on the host, and when it is there; None if it already is."""
    if not extremes.is_cuda:
        return extremes.cpu(), None
    copy = extremes.to("cpu", non_blocking=True)
    done = torch.cuda.Event()
    done.record(torch.cuda.current_stream(extremes.device))
    return copy, done


def _likely_mistake(lowest: float, highest: float, low: float, high: float) -> str:
    if lowest != lowest:
        return "; a NaN usually comes from a diverged network"
    if lowest >= min(-0.5, low) and 2 < highest <= 256 and high <= 1:
        return "; these look like [0, 255]: pass data_range=255 or uint8 images, or divide by 255"
    if low == 0 and high == 1 and -1.01 <= lowest < 0 and highest <= 1.01:
        return "; these look like [-1, 1]: pass data_range=(-1, 1) (normalize=False)"
    if -3.01 <= lowest < -1.5 and highest <= 1.01 and low == -1:
        return "; 2x - 1 was applied twice"
    if -2.2 <= lowest < -1.5 and 1.5 < highest <= 2.7:
        return "; these look normalised by ImageNet's mean and standard deviation: undo that first"
    return "; clamp the images to the range first"
