"""Convolutions and pools as sliding windows that can also run on a range of rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from lpips_lightning.backbones.dists_vgg import L2Pool2d, l2_pool
from lpips_lightning.backbones.shift_tolerant import BlurPool, reflect
from lpips_lightning.kernels.conv2d import FastConv2d


@dataclass(frozen=True)
class Axis:
    """A sliding window along one axis.

    Attributes:
        kernel: Kernel size.
        stride: Stride.
        before: Padding before the first position.
        after: Padding after the last position.
        dilation: Dilation.
        ceil: ``ceil_mode`` of pools: whether the last window may extend beyond the end.
    """

    kernel: int
    stride: int = 1
    before: int = 0
    after: int = 0
    dilation: int = 1
    ceil: bool = False

    @property
    def extent(self) -> int:
        """Positions from the first to the last of a window: the dilated kernel size."""
        return self.dilation * (self.kernel - 1) + 1

    def count(self, length: int) -> int:
        """Number of outputs for `length` inputs, as PyTorch counts them."""
        span = length + self.before + self.after - self.extent
        count = (-(-span // self.stride) if self.ceil else span // self.stride) + 1
        if self.ceil and (count - 1) * self.stride >= length + self.before:
            count -= 1  # the window would start beyond the end
        return max(count, 0)

    def count_complete(self, length: int) -> int:
        """Number of outputs that depend only on the first `length` inputs and the padding before them."""
        return max((length + self.before - self.extent) // self.stride + 1, 0)

    def input_range(self, first: int, stop: int) -> tuple[int, int]:
        """Inputs ``[low, high)`` of the outputs ``[first, stop)``; beyond the ends where there is padding."""
        return first * self.stride - self.before, (stop - 1) * self.stride - self.before + self.extent


class Window:
    """A convolution or pool.

    Attributes:
        module: The PyTorch module.
        rows: The window along the height.
        columns: The window along the width.
        fill: Value of the padding.
    """

    fill = 0.0

    def __init__(self, module: nn.Module, rows: Axis, columns: Axis) -> None:
        self.module, self.rows, self.columns = module, rows, columns

    def out_channels(self, in_channels: int) -> int:
        """Number of output channels."""
        return in_channels

    def run(self, x: Tensor) -> Tensor:
        """Apply the module to whole images ``(N, C, H, W)``."""
        result: Tensor = self.module(x)
        return result

    @property
    def reach(self) -> tuple[Axis, Axis]:
        """Axes of a window without reflection that sees at least what this one sees."""
        return self.rows, self.columns

    def count_complete(self, received: int) -> int:
        """Number of output rows that depend only on the first `received` input rows, if more will follow."""
        return self.rows.count_complete(received)

    def needed_rows(self, first: int, stop: int, height: int) -> tuple[int, int]:
        """Input rows ``[low, high)`` of the output rows ``[first, stop)``, of an input of `height` rows."""
        low, high = self.rows.input_range(first, stop)
        return max(low, 0), min(high, height)

    def first_needed(self, stop: int) -> int:
        """First input row that output rows from `stop` on need."""
        return max(0, self.reach[0].input_range(stop, stop)[0])

    def pad_rows(self, parts: list[Tensor], first: int, stop: int, height: int) -> Tensor:
        """The needed rows, in one or more parts, with the padding of the output rows ``[first, stop)``."""
        low, high = self.rows.input_range(first, stop)
        return _padded(parts, max(-low, 0), max(high - height, 0), self.fill)

    def run_rows(self, block: Tensor, first: int, height: int) -> Tensor:
        """Compute some output rows.

        Args:
            block: The input rows of these output rows, shape ``(N, C, r, W)``; rows are padded, columns are not.
            first: Index of the first output row.
            height: Number of rows of the whole input.

        Returns:
            Shape ``(N, C', r', W')``.
        """
        raise NotImplementedError

    def dilate(self, ones: Tensor) -> Tensor:
        """1 at the outputs whose window contains a 1, else 0.

        Args:
            ones: Zeros and ones, shape ``(N, C, H, W)``.

        Returns:
            Shape ``(N, C, H', W')``.
        """
        pads = []
        for axis, length in ((self.columns, ones.shape[3]), (self.rows, ones.shape[2])):
            _, stop = axis.input_range(0, axis.count(length))
            pads += [axis.before, stop - length]
        return F.max_pool2d(F.pad(ones, pads), self._kernel, self._stride, dilation=self._dilation)

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
    """A convolution; it shares the weights of its module.

    Args:
        module: A convolution with ``padding_mode="zeros"``.

    Raises:
        ValueError: If the module pads with anything but zeros.
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
    def fast_module(self) -> FastConv2d | None:
        """The module, if it provides its input gradient."""
        return self.module if isinstance(self.module, FastConv2d) else None

    @override
    def out_channels(self, in_channels: int) -> int:
        return self.module.out_channels

    @override
    def run_rows(self, block: Tensor, first: int, height: int) -> Tensor:
        columns, padding = self.columns, self.columns.before
        if columns.before != columns.after:
            block, padding = F.pad(block, (columns.before, columns.after)), 0
        if self.fast_module is not None:
            return self.fast_module.convolve(block, (0, padding))
        weight, bias, groups = self.module.weight, self.module.bias, self.module.groups
        return F.conv2d(block, weight, bias, self._stride, (0, padding), self._dilation, groups)


class MaxPool(Window):
    """A max-pool.

    Args:
        module: A pool that does not return indices.

    Raises:
        ValueError: If the module returns indices.
    """

    fill = float("-inf")

    def __init__(self, module: nn.MaxPool2d) -> None:
        if module.return_indices:
            raise ValueError("expected a pool that returns no indices")
        super().__init__(module, *_pool_axes(module, _two(module.dilation)))

    @override
    def run_rows(self, block: Tensor, first: int, height: int) -> Tensor:
        padding = (0, self.columns.before)
        return F.max_pool2d(block, self._kernel, self._stride, padding, self._dilation, self.columns.ceil)


class AvgPool(Window):
    """An average pool."""

    def __init__(self, module: nn.AvgPool2d) -> None:
        super().__init__(module, *_pool_axes(module, (1, 1)))
        self._padding_counts, self._divisor = module.count_include_pad, module.divisor_override

    @override
    def run_rows(self, block: Tensor, first: int, height: int) -> Tensor:
        padding = (0, self.columns.before)
        options = (self._kernel, self._stride, padding, self.columns.ceil, self._padding_counts, self._divisor)
        means = F.avg_pool2d(block, *options)
        if self._divisor is not None:
            return means
        # The block holds padding as ordinary rows; rescale where PyTorch divides by fewer rows.
        kernel = self.rows.kernel
        counts = [self._divisor_rows(index, height) for index in range(first, first + means.shape[2])]
        if all(count == kernel for count in counts):
            return means
        factors = torch.tensor([kernel / count for count in counts], dtype=means.dtype, device=means.device)
        return means * factors.view(1, 1, -1, 1)

    def _divisor_rows(self, index: int, height: int) -> int:
        low, high = self.rows.input_range(index, index + 1)
        if self._padding_counts:
            return min(high, height + self.rows.after) - low
        return min(high, height) - max(low, 0)


class L2Pool(Window):
    """An L2 pool."""

    def __init__(self, module: L2Pool2d) -> None:
        super().__init__(module, Axis(3, 2, 1, 1), Axis(3, 2, 1, 1))

    @override
    def run_rows(self, block: Tensor, first: int, height: int) -> Tensor:
        return l2_pool(block, (0, self.columns.before))


class Blur(Window):
    """Blur pooling, which reflects its input at the borders: the first and last window see rows further inside."""

    def __init__(self, module: BlurPool) -> None:
        axis = Axis(3, 2, module.padding, module.padding)
        super().__init__(module, axis, axis)

    @property
    @override
    def reach(self) -> tuple[Axis, Axis]:
        margin = self.rows.before
        axis = Axis(3 + 2 * margin, 2, 2 * margin, 2 * margin)
        return axis, axis

    @override
    def count_complete(self, received: int) -> int:
        return super().count_complete(received) if received > self.rows.before else 0

    @override
    def needed_rows(self, first: int, stop: int, height: int) -> tuple[int, int]:
        low, high = self.rows.input_range(first, stop)
        # Row -r is row r, and row height - 1 + r is row height - 1 - r.
        return max(0, min(low, 2 * height - 1 - high)), min(height, max(high, 1 - low))

    @override
    def pad_rows(self, parts: list[Tensor], first: int, stop: int, height: int) -> Tensor:
        low, high = self.rows.input_range(first, stop)
        start, _ = self.needed_rows(first, stop, height)
        rows, above, below = joined(parts), max(-low, 0), max(high - height, 0)
        if above or below:
            rows = reflect(rows, max(above, below), 0)
            start -= max(above, below)
        return rows[:, :, low - start : high - start]

    @override
    def run_rows(self, block: Tensor, first: int, height: int) -> Tensor:
        return BlurPool.blur(reflect(block, 0, self.columns.before))

    @override
    def dilate(self, ones: Tensor) -> Tensor:
        return F.max_pool2d(reflect(ones, self.rows.before, self.columns.before), self._kernel, self._stride)


def joined(parts: list[Tensor]) -> Tensor:
    """Rows in parts as one tensor."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, 2)


def _padded(parts: list[Tensor], top: int, bottom: int, fill: float) -> Tensor:
    """Concatenate the parts between rows of `fill`."""
    like = parts[0]
    layout = torch.channels_last
    shapes = [(like.shape[0], like.shape[1], rows, like.shape[3]) for rows in (top, bottom)]
    above, below = ([like.new_full(shape, fill).to(memory_format=layout)] if shape[2] else [] for shape in shapes)
    return joined([*above, *parts, *below])


def window_of(module: nn.Module) -> Window | None:
    """The window of a convolution or pool.

    Args:
        module: Any module. Subclasses do not count: they may do anything.

    Returns:
        The window, or None if the module is neither.

    Raises:
        ValueError: If the module is a convolution or pool that cannot run on a range of rows.
    """
    kinds = (
        (nn.Conv2d, Convolution),
        (FastConv2d, Convolution),
        (nn.MaxPool2d, MaxPool),
        (nn.AvgPool2d, AvgPool),
        (L2Pool2d, L2Pool),
        (BlurPool, Blur),
    )
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
