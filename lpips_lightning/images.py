"""What an image batch is: shape, dtype, channels, size and range. The only place that checks input."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

__all__ = ["DataRange", "RangeError", "check_pair", "check_shape", "check_values", "parse_range", "to_trunk"]

DataRange: TypeAlias = float | tuple[float, float] | Sequence[float]
"""``(low, high)``, or ``high`` alone for ``(0, high)``."""

OVERSHOOT = 1e-3  # of the range's largest magnitude: what resampling in float32 and 2x - 1 leave behind


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
        ValueError: If ``low`` is not below ``high``, or either is not finite.

    Example:
        >>> parse_range(255), parse_range((-1, 1))
        ((0.0, 255.0), (-1.0, 1.0))
    """
    pair = data_range if isinstance(data_range, Sequence) else (0.0, data_range)
    if len(pair) != 2 or not all(map(_is_number, pair)):
        raise TypeError(f"data_range: expected a pair (low, high) or a number, got {data_range!r}")
    low, high = float(pair[0]), float(pair[1])
    if not (low < high and abs(low) < float("inf") and abs(high) < float("inf")):
        raise ValueError(f"data_range: expected low < high, both finite, got {data_range!r}")
    return low, high


def check_shape(images: Tensor, name: str, net_type: str, smallest_side: int) -> None:
    """Refuse what is not a batch of colour images that the net can see.

    Args:
        images: Expected: ``(N, 3, H, W)``, floating or uint8. N may be 0.
        name: What to call it in the error.
        net_type: What to call the net in the error.
        smallest_side: Of H and W, in pixels.

    Raises:
        TypeError: If it is not a dense tensor, or neither floating nor uint8.
        ValueError: If the shape is another, or a side is too small.
    """
    if not isinstance(images, Tensor):
        raise TypeError(f"{name}: expected a tensor (N, 3, H, W), got {type(images).__name__}")
    if images.layout != torch.strided or images.is_quantized:
        raise TypeError(f"{name}: expected a dense tensor, got layout {images.layout}, dtype {images.dtype}")
    if not images.is_floating_point() and images.dtype != torch.uint8:
        raise TypeError(
            f"{name}: expected floating-point values, or uint8 on [0, 255], got {images.dtype}; "
            "convert with .float() and say data_range=, or with .to(torch.uint8)"
        )
    shape = tuple(images.shape)
    if len(shape) != 4:
        way_out = "; add the batch dimension with .unsqueeze(0)" if len(shape) == 3 else ""
        raise ValueError(f"{name}: expected shape (N, 3, H, W), got {shape}{way_out}")
    if shape[1] != 3:
        way_out = "; channels come second: use .permute(0, 3, 1, 2)" if shape[3] == 3 else ""
        way_out = "; repeat gray images with .expand(-1, 3, -1, -1)" if shape[1] == 1 else way_out
        raise ValueError(f"{name}: expected 3 channels (N, 3, H, W), got shape {shape}{way_out}")
    if min(shape[2:]) < smallest_side:
        raise ValueError(
            f"{name}: expected sides of at least {smallest_side} pixels for net_type {net_type!r}, got {shape[2]}x"
            f"{shape[3]}; upsample both images alike, or choose a net that sees smaller images"
        )


def check_pair(x: Tensor, y: Tensor, names: tuple[str, str], net_type: str, smallest_side: int) -> None:
    """Refuse two batches that are not pairs of images.

    Args:
        x: ``(N, 3, H, W)``.
        y: The same shape, on the same device.
        names: What to call them in the error.
        net_type: What to call the net in the error.
        smallest_side: Of H and W, in pixels.

    Raises:
        TypeError: If either is not an image batch by its type.
        ValueError: If either is not an image batch by its shape, or the two differ in shape or device.
    """
    check_shape(x, names[0], net_type, smallest_side)
    check_shape(y, names[1], net_type, smallest_side)
    if x.shape != y.shape:
        raise ValueError(
            f"{names[1]}: expected the shape of {names[0]}, {tuple(x.shape)}, got {tuple(y.shape)}; "
            "nothing is broadcast or resized: crop or resize one to the other"
        )
    if x.device != y.device:
        raise ValueError(f"{names[1]}: expected device {x.device}, that of {names[0]}, got {y.device}")


def check_values(images: Tensor, name: str, data_range: tuple[float, float], slack: float = 0.0) -> None:
    """Refuse pixel values off the declared range; a rounding error's worth of overshoot passes.

    Waits for the device that holds the images.

    Args:
        images: Floating images; uint8 always passes.
        name: What to call them in the error.
        data_range: ``(low, high)``.
        slack: How much farther than rounding values may lie out, in sizes of the range; NaN passes if it is positive.
            For the output of a network in training.

    Raises:
        RangeError: Also for NaN; with the likely mistake and its mend.
    """
    if images.dtype == torch.uint8 or images.numel() == 0 or slack == float("inf"):
        return
    low, high = data_range
    slack_size = slack * (high - low)
    lowest, highest = (float(value) for value in torch.aminmax(images.detach()))
    tolerance = _tolerance(images.dtype, data_range) + slack_size
    if slack and lowest != lowest:
        return
    if not (lowest >= low - tolerance and highest <= high + tolerance):
        raise RangeError(
            f"{name}: expected values on [{low:g}, {high:g}], got values from {lowest:g} to {highest:g}"
            f"{_likely_mistake(lowest, highest, low, high)}"
        )


def to_trunk(
    images: Tensor,
    data_range: tuple[float, float],
    shift: Tensor | None,
    scale: Tensor | None,
    dtype: torch.dtype,
    clamp: bool,
) -> Tensor:
    """Images as the trunk wants them: mapped to ``[-1, 1]``, shifted, scaled, channels last.

    Args:
        images: ``(N, 3, H, W)``; uint8 is on [0, 255] whatever `data_range` says.
        data_range: ``(low, high)`` of floating images.
        shift: Subtracted, shape ``(3,)``; None for v0.0, which does not scale its input.
        scale: Then divided by, shape ``(3,)``; None for v0.0.
        dtype: What to return; the arithmetic is done in float32, or in float64 for float64.
        clamp: Bring values back onto the range.

    Returns:
        ``(N, 3, H, W)`` of `dtype`, in ``channels_last`` memory.
    """
    low, high = (0.0, 255.0) if images.dtype == torch.uint8 else data_range
    clamp = clamp and images.dtype != torch.uint8
    working = torch.float64 if dtype == torch.float64 else torch.float32
    images = images.to(working)
    if clamp:
        images = images.clamp(low, high)
    if (low, high) != (-1.0, 1.0):
        images = (images - low) * (2 / (high - low)) - 1
    if shift is not None and scale is not None:
        images = (images - shift.to(working).view(1, 3, 1, 1)) / scale.to(working).view(1, 3, 1, 1)
    return images.to(dtype).contiguous(memory_format=torch.channels_last)


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _tolerance(dtype: torch.dtype, data_range: tuple[float, float]) -> float:
    return max(OVERSHOOT, torch.finfo(dtype).eps) * max(abs(data_range[0]), abs(data_range[1]))


def _likely_mistake(lowest: float, highest: float, low: float, high: float) -> str:
    if lowest != lowest:
        return "; a NaN usually comes from a diverged network"
    if lowest >= -0.5 and 2 < highest <= 256 and high <= 1:
        return "; these look like [0, 255]: pass data_range=255 or uint8 images, or divide by 255"
    if low == 0 and high == 1 and -1.01 <= lowest < 0 and highest <= 1.01:
        return "; these look like [-1, 1]: pass data_range=(-1, 1) (normalize=False)"
    if -3.01 <= lowest < -1.5 and highest <= 1.01 and low == -1:
        return "; 2x - 1 was applied twice"
    if -2.2 <= lowest < -1.5 and 1.5 < highest <= 2.7:
        return "; these look normalised by ImageNet's mean and standard deviation: undo that first"
    return "; clamp the images to the range first"
