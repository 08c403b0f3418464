"""Convolutions and pools as windows that slide over rows and columns, and can be run on a range of rows alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from lpips_lightning.convolutions import FastConv2d

__all__ = ["AvgPool", "Axis", "Convolution", "MaxPool", "Window", "window_of"]


@dataclass(frozen=True)
class Axis:
    """A sliding window along one axis.

    Attributes:
        kernel: Positions in a window.
        stride: From one window to the next.
        before: Padding before the first position.
        after: Padding after the last.
        dilation: From one position of a window to the next.
        ceil: Whether a last window may hang over the end.
    """

    kernel: int
    stride: int = 1
    before: int = 0
    after: int = 0
    dilation: int = 1
    ceil: bool = False

    @property
    def reach(self) -> int:
        """From a window's first position to its last, both counted."""
        return self.dilation * (self.kernel - 1) + 1

    def count(self, length: int) -> int:
        """How many windows there are over `length` positions, as PyTorch counts them."""
        span = length + self.before + self.after - self.reach
        count = (-(-span // self.stride) if self.ceil else span // self.stride) + 1
        if self.ceil and (count - 1) * self.stride >= length + self.before:
            count -= 1  # it would begin beyond the end
        return max(count, 0)

    def complete(self, length: int) -> int:
        """How many windows lie wholly before position `length`, padding before the first position included."""
        return max((length + self.before - self.reach) // self.stride + 1, 0)

    def under(self, first: int, stop: int) -> tuple[int, int]:
        """The positions ``[low, high)`` under the windows ``[first, stop)``; beyond the ends where there is padding."""
        return first * self.stride - self.before, (stop - 1) * self.stride - self.before + self.reach


class Window:
    """A convolution or pool; `run` takes rows that are padded already, and pads columns itself.

    Attributes:
        module: What it is made of.
        rows: Along the height.
        columns: Along the width.
        fill: What the padding holds.
    """

    fill = 0.0

    def __init__(self, module: nn.Module, rows: Axis, columns: Axis) -> None:
        self.module, self.rows, self.columns = module, rows, columns

    def channels(self, channels: int) -> int:
        """How many come out where `channels` go in."""
        return channels

    def run(self, block: Tensor, first: int, height: int) -> Tensor:
        """The windows' results.

        Args:
            block: Rows under them, padded: shape ``(N, C, r, W)``.
            first: Index of the first window.
            height: Rows of the whole input.

        Returns:
            Shape ``(N, C', r', W')``.
        """
        raise NotImplementedError

    def whole(self, x: Tensor) -> Tensor:
        """All results.

        Args:
            x: Shape ``(N, C, H, W)``.

        Returns:
            Shape ``(N, C', H', W')``.
        """
        result: Tensor = self.module(x)
        return result

    @property
    def _stride(self) -> tuple[int, int]:
        return self.rows.stride, self.columns.stride

    @property
    def _kernel(self) -> tuple[int, int]:
        return self.rows.kernel, self.columns.kernel

    @property
    def _dilation(self) -> tuple[int, int]:
        return self.rows.dilation, self.columns.dilation


class Convolution(Window):
    """Of a module, whose weights it shares.

    Args:
        module: With zero padding.

    Raises:
        ValueError: If it pads with anything else.
    """

    module: nn.Conv2d

    def __init__(self, module: nn.Conv2d) -> None:
        if module.padding_mode != "zeros":
            raise ValueError(f"expected zero padding, got padding_mode={module.padding_mode!r}")
        axes = []
        for axis in range(2):
            kernel, dilation = module.kernel_size[axis], module.dilation[axis]
            if isinstance(module.padding, str):
                total = dilation * (kernel - 1) if module.padding == "same" else 0
                before, after = total // 2, total - total // 2
            else:
                before = after = int(module.padding[axis])
            axes.append(Axis(kernel, module.stride[axis], before, after, dilation))
        super().__init__(module, axes[0], axes[1])

    @property
    def fast(self) -> FastConv2d | None:
        """The module, if its adjoint can be had."""
        return self.module if isinstance(self.module, FastConv2d) else None

    @override
    def channels(self, channels: int) -> int:
        return self.module.out_channels

    @override
    def run(self, block: Tensor, first: int, height: int) -> Tensor:
        columns, padding = self.columns, self.columns.before
        if columns.before != columns.after:
            block, padding = F.pad(block, (columns.before, columns.after)), 0
        if self.fast is not None:
            return self.fast.convolve(block, (0, padding))
        weight, bias, groups = self.module.weight, self.module.bias, self.module.groups
        return F.conv2d(block, weight, bias, self._stride, (0, padding), self._dilation, groups)


class MaxPool(Window):
    """Of a module.

    Args:
        module: Without indices.

    Raises:
        ValueError: If it returns indices too.
    """

    fill = float("-inf")

    def __init__(self, module: nn.MaxPool2d) -> None:
        if module.return_indices:
            raise ValueError("expected a pool that returns no indices")
        super().__init__(module, *_pool_axes(module, _two(module.dilation)))

    @override
    def run(self, block: Tensor, first: int, height: int) -> Tensor:
        padding = (0, self.columns.before)
        return F.max_pool2d(block, self._kernel, self._stride, padding, self._dilation, self.columns.ceil)


class AvgPool(Window):
    """Of a module.

    Args:
        module: Any.
    """

    def __init__(self, module: nn.AvgPool2d) -> None:
        super().__init__(module, *_pool_axes(module, (1, 1)))
        self._padding_counts, self._divisor = module.count_include_pad, module.divisor_override

    @override
    def run(self, block: Tensor, first: int, height: int) -> Tensor:
        padding = (0, self.columns.before)
        options = (self._kernel, self._stride, padding, self.columns.ceil, self._padding_counts, self._divisor)
        means = F.avg_pool2d(block, *options)
        if self._divisor is not None:
            return means
        # Padded rows counted as rows of the image: where they do not count, the mean is over fewer.
        kernel = self.rows.kernel
        counts = [self._counted(index, height) for index in range(first, first + means.shape[2])]
        if all(count == kernel for count in counts):
            return means
        factors = torch.tensor([kernel / count for count in counts], dtype=means.dtype, device=means.device)
        return means * factors.view(1, 1, -1, 1)

    def _counted(self, index: int, height: int) -> int:
        low, high = self.rows.under(index, index + 1)
        if self._padding_counts:
            return min(high, height + self.rows.after) - low
        return min(high, height) - max(low, 0)


def window_of(module: nn.Module) -> Window | None:
    """What a module does, if it is a convolution or pool.

    Args:
        module: Any; subclasses may do anything, and are none.

    Returns:
        The window, or None.

    Raises:
        ValueError: If it is a convolution or pool of a kind that cannot be run in pieces.
    """
    kinds = ((nn.Conv2d, Convolution), (FastConv2d, Convolution), (nn.MaxPool2d, MaxPool), (nn.AvgPool2d, AvgPool))
    for kind, window in kinds:
        if type(module) is kind:
            return window(module)  # type: ignore[arg-type]
    return None


def _pool_axes(module: nn.MaxPool2d | nn.AvgPool2d, dilation: tuple[int, int]) -> tuple[Axis, Axis]:
    kernels, strides, paddings = (_two(value) for value in (module.kernel_size, module.stride, module.padding))
    rows, columns = (
        Axis(kernels[axis], strides[axis], paddings[axis], paddings[axis], dilation[axis], bool(module.ceil_mode))
        for axis in range(2)
    )
    return rows, columns


def _two(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])
