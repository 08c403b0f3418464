"""Convolutions with frozen weights on a CPU, by whichever arithmetic is fastest.

A convolution is a linear map: its derivative is its input gradient, and that one's derivative the convolution again,
however either is computed. PyTorch's own is taken wherever nothing here is known to be faster: on other devices, in
other precisions than float32, for weights that are trained, and under ``torch.compile``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_input
from typing_extensions import override

from lpips_lightning import winograd

__all__ = ["FastConv2d", "hasten"]

_Form: TypeAlias = Literal["affine", "linear", "adjoint"]

# Winograd's arithmetic is faster than oneDNN's convolution on CPUs of these capabilities (see `winograd`), from so many
# channels of input and output, if it has enough to do in one image: pixels times channels of both.
_CAPABILITIES = ("AVX2",)
_FEWEST_CHANNELS = 128
_FEWEST_PRODUCTS = 2**23
_MOST_WASTE = 1.5  # pixels of tiles, some of which hang over the end, for a pixel of the result
_FEW_CHANNELS = 4  # of images: the input gradient of a convolution with a stride writes too few for oneDNN


class FastConv2d(nn.Conv2d):
    """A convolution that is fast while its weights want no gradient.

    Args:
        like: Whose weights it shares.
    """

    def __init__(self, like: nn.Conv2d) -> None:
        options = (like.kernel_size, like.stride, like.padding, like.dilation, like.groups)
        super().__init__(like.in_channels, like.out_channels, *options, like.bias is not None, device="meta")  # type: ignore[arg-type]
        self.weight, self.bias, self.training = like.weight, like.bias, like.training
        self._kernel: tuple[_Snapshot, Tensor] | None = None
        # Of images, in steps: its input gradient is slow otherwise.
        self._is_first = self.in_channels <= _FEW_CHANNELS and self.stride[0] == self.stride[1] > 1
        channels = min(self.in_channels, self.out_channels)
        self._is_3x3 = self.kernel_size == (3, 3) and self.stride == (1, 1) and channels >= _FEWEST_CHANNELS
        self._is_candidate = self._is_first or self._is_3x3

    @override
    def forward(self, input: Tensor) -> Tensor:
        if not self._is_candidate:
            return super().forward(input)
        return self.convolve(input, self._pads)

    def convolve(self, x: Tensor, padding: tuple[int, int]) -> Tensor:
        """The convolution with other padding than its own.

        Args:
            x: Shape ``(N, C, H, W)``.
            padding: Zeros around rows and columns.

        Returns:
            Shape ``(N, K, h, w)``.
        """
        size = self._size(x.shape[-2:], padding)
        if self._is_fast(x, self.in_channels, size, padding):
            result: Tensor = _Map.apply(x, self, padding, "affine", x.shape[2:])
            return result
        room = self._room(x, size, padding, adjoint=False)
        result = F.conv2d(x, self.weight, self.bias, self.stride, padding, self.dilation, self.groups)
        del room
        return result

    def adjoint(self, gradient: Tensor, shape: torch.Size) -> Tensor:
        """What a gradient by the result is as one by the input, without a graph.

        Args:
            gradient: Shape ``(N, K, h, w)``.
            shape: Of the input, ``(N, C, H, W)``.

        Returns:
            Of that shape.
        """
        if self._is_fast(gradient, self.out_channels, gradient.shape[2:], self._pads):
            return self.run(gradient, self._pads, "adjoint", shape[2:])
        room = self._room(gradient, gradient.shape[2:], self._pads, adjoint=True)
        whole: Tensor = conv2d_input(shape, self.weight, gradient, self.stride, self._pads)
        del room
        return whole

    def run(self, x: Tensor, padding: tuple[int, int], form: _Form, size: torch.Size) -> Tensor:
        """One of the linear maps, without a graph, where it is known to be fast.

        Args:
            x: What it is of.
            padding: Zeros around rows and columns of the convolution's input.
            form: With bias, without, or the input gradient.
            size: Of the convolution's input.

        Returns:
            Its value.
        """
        bias = self.bias if form == "affine" else None
        if self._is_3x3:
            return winograd.convolve(x, self._transformed(), bias, padding, adjoint=form == "adjoint")
        if form == "adjoint":
            return self._by_blocks(x, padding, size)
        return F.conv2d(x, self.weight, bias, self.stride, padding)

    @property
    def _pads(self) -> tuple[int, int]:
        return int(self.padding[0]), int(self.padding[1])

    def _size(self, size: Sequence[int], padding: tuple[int, int]) -> list[int]:
        """Of the result, before steps."""
        return [size[axis] + 2 * padding[axis] - self.kernel_size[axis] + 1 for axis in range(2)]

    def _is_fast(self, x: Tensor, channels: int, size: Sequence[int], padding: tuple[int, int]) -> bool:
        """Whether anything but PyTorch's own convolution may be, and should be, taken.

        Args:
            x: What it, or its input gradient, is of.
            channels: That `x` should have.
            size: Of the convolution's result, before steps.
            padding: Of its input.
        """
        if not self._is_candidate or torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined,no-untyped-call]
            return False
        frozen = _is_frozen(self.weight) and (self.bias is None or _is_frozen(self.bias))
        if not frozen or torch.is_autocast_enabled("cpu"):
            return False
        plain = x.dtype == self.weight.dtype == torch.float32 and x.dim() == 4 and x.shape[1] == channels
        here = x.device.type == self.weight.device.type == "cpu"
        if not (plain and here) or len(x) == 0 or min(size) < 1:
            return False
        return self._is_first or self._is_winograd(size, padding)

    def _is_winograd(self, size: Sequence[int], padding: tuple[int, int]) -> bool:
        """Whether Winograd's arithmetic is faster, by one image's size alone: batches do not decide it.

        Args:
            size: Of the convolution's result.
            padding: Of its input.
        """
        here = torch.backends.cpu.get_cpu_capability() in _CAPABILITIES and torch.backends.mkl.is_available()
        if not (self._is_3x3 and here) or max(padding) > 2:
            return False
        pixels = 9 * -(-size[0] // 3) * -(-size[1] // 3)
        enough = pixels * self.in_channels * self.out_channels >= _FEWEST_PRODUCTS
        return enough and pixels <= _MOST_WASTE * size[0] * size[1]

    def _room(self, x: Tensor, size: Sequence[int], padding: tuple[int, int], adjoint: bool) -> object:
        """What the arithmetic takes for itself where there are data, for an estimate of memory that has none."""
        if not x.is_meta:
            return None
        if self._is_winograd(size, padding):
            return winograd.room(x, self.weight, padding, adjoint)
        # A rule of thumb of oneDNN: weights in another order, and a buffer of about that size.
        return x.new_empty(2 * self.weight.numel())

    def _transformed(self) -> Tensor:
        if self._kernel is None or not self._kernel[0].is_of(self.weight):
            with torch.inference_mode(False):
                self._kernel = _Snapshot(self.weight), winograd.transformed(self.weight)
        return self._kernel[1]

    def _by_blocks(self, gradient: Tensor, padding: tuple[int, int], size: torch.Size) -> Tensor:
        """The input gradient with stride s: a convolution of stride 1 makes s x s pixels at once, as channels."""
        step = self.stride[0]
        blocks = [-(-kernel // step) for kernel in self.kernel_size]
        grown = F.pad(
            self.weight, (0, blocks[1] * step - self.kernel_size[1], 0, blocks[0] * step - self.kernel_size[0])
        )
        parts = grown.view(self.out_channels, self.in_channels, blocks[0], step, blocks[1], step)
        mirrored = parts.flip(2, 4).permute(1, 3, 5, 0, 2, 4).flatten(0, 2)
        weight = mirrored.contiguous(memory_format=torch.channels_last)
        whole = F.pixel_shuffle(F.conv2d(gradient, weight, padding=(blocks[0] - 1, blocks[1] - 1)), step)
        missing = [max(0, padding[axis] + size[axis] - whole.shape[2 + axis]) for axis in range(2)]
        whole = F.pad(whole, (0, missing[1], 0, missing[0]))
        return whole[:, :, padding[0] : padding[0] + size[0], padding[1] : padding[1] + size[1]]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kernel": None}


class _Snapshot:
    """Tells whether a weight is what it was. Writes by way of ``.data`` are hidden from PyTorch, and from this."""

    def __init__(self, weight: Tensor) -> None:
        self._memory = weight.untyped_storage()  # held, so that nothing else gets its address
        self._version = weight._version

    def is_of(self, weight: Tensor) -> bool:
        """Whether the weight still has this memory, and nobody has written to it."""
        return self._memory.data_ptr() == weight.untyped_storage().data_ptr() and self._version == weight._version


class _Map(torch.autograd.Function):
    """x -> one of a convolution's linear maps of it."""

    @staticmethod
    def forward(x: Tensor, module: FastConv2d, padding: tuple[int, int], form: _Form, size: torch.Size) -> Tensor:
        return module.run(x, padding, form, size)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, *ctx.options = inputs
        ctx.weight = _Snapshot(inputs[1].weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        module, padding, form, size = ctx.options
        if not ctx.weight.is_of(module.weight):
            raise RuntimeError("backward: expected the weights of the forward pass, got some that were modified since")
        other = "linear" if form == "adjoint" else "adjoint"
        return _Map.apply(gradient, module, padding, other, size), None, None, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> Tensor:
        module, padding, form, size = ctx.options
        result: Tensor = _Map.apply(tangent, module, padding, "adjoint" if form == "adjoint" else "linear", size)
        return result

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], x: Tensor, *options: Any) -> tuple[Tensor, int]:
        stack = x.movedim(in_dims[0], 0)
        result: Tensor = _Map.apply(stack.flatten(0, 1), *options)
        return result.unflatten(0, stack.shape[:2]), 0


def hasten(module: nn.Module) -> None:
    """Put a `FastConv2d` in the place of every plain convolution inside a module.

    Args:
        module: Is changed. Subclasses, and convolutions with hooks, groups, dilation or other padding than a number of
            zeros stay what they are.
    """
    made: dict[int, FastConv2d] = {}
    for parent in list(module.modules()):
        for name, child in list(parent._modules.items()):
            if type(child) is nn.Conv2d and _is_plain(child):
                setattr(parent, name, made.setdefault(id(child), FastConv2d(child)))


def _is_frozen(weight: Tensor) -> bool:
    """Whether it is a module's own, wants no gradient, and can be asked whether it was changed."""
    return type(weight) is nn.Parameter and not weight.requires_grad and not weight.is_inference()


def _is_plain(module: nn.Conv2d) -> bool:
    hooks = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    simple = module.groups == 1 and module.dilation == (1, 1) and not isinstance(module.padding, str)
    return simple and module.padding_mode == "zeros" and not hooks and "forward" not in vars(module)
