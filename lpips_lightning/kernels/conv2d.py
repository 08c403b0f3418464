"""Faster 2d convolutions with frozen weights on a CPU.

A convolution without bias is a linear map, so its derivative is the input gradient, and the derivative of the input
gradient is the convolution again. PyTorch's convolution is used where nothing here is known to be faster: on other
devices, in dtypes other than float32, for trainable weights, and under ``torch.compile``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_input
from typing_extensions import override

from lpips_lightning.kernels import winograd
from lpips_lightning.tracing import is_symbolic
from lpips_lightning.transforms import is_differentiated, is_transformed

LinearMap: TypeAlias = Literal["forward", "linear", "input_gradient"]
"""The convolution with bias, the convolution without bias, or its input gradient."""

# Winograd is faster than oneDNN on CPUs with these capabilities (measurements: see `winograd`), for at least this many
# input and output channels and this much work per image: pixels x input channels x output channels.
_WINOGRAD_CAPABILITIES = ("AVX2",)
_WINOGRAD_MIN_CHANNELS = 128
_WINOGRAD_MIN_WORK = 2**23
_WINOGRAD_MAX_OVERHEAD = 1.5  # computed pixels per output pixel; tiles extend beyond the output
_IMAGE_CHANNELS = 4  # oneDNN is slow in the input gradient of strided convolutions with at most this many channels


class FastConv2d(nn.Conv2d):
    """A convolution that is faster while its weights are frozen.

    Args:
        like: The convolution to replace; its weights are shared.
    """

    def __init__(self, like: nn.Conv2d) -> None:
        options = (like.kernel_size, like.stride, like.padding, like.dilation, like.groups)
        super().__init__(like.in_channels, like.out_channels, *options, like.bias is not None, device="meta")  # type: ignore[arg-type]
        self.weight, self.bias, self.training = like.weight, like.bias, like.training
        self._winograd_kernel: tuple[_WeightVersion, Tensor] | None = None
        self._is_strided_stem = self.in_channels <= _IMAGE_CHANNELS and self.stride[0] == self.stride[1] > 1
        channels = min(self.in_channels, self.out_channels)
        self._is_3x3 = self.kernel_size == (3, 3) and self.stride == (1, 1) and channels >= _WINOGRAD_MIN_CHANNELS
        self._is_candidate = self._is_strided_stem or self._is_3x3

    @override
    def forward(self, input: Tensor) -> Tensor:
        if not self._is_candidate or is_symbolic(input):
            return super().forward(input)
        return self.convolve(input, self._int_padding)

    def convolve(self, x: Tensor, padding: tuple[int, int]) -> Tensor:
        """The convolution with a different padding.

        Args:
            x: Shape ``(N, C, H, W)``.
            padding: Zeros around rows and columns.

        Returns:
            Shape ``(N, K, h, w)``.
        """
        size = self._unstrided_size(x.shape[-2:], padding)
        if self._is_fast(x, self.in_channels, size, padding):
            if not (is_transformed() or is_differentiated(x)):  # spares the time of `apply`
                return self.run(x, padding, "forward", x.shape[2:])
            result: Tensor = _LinearMap.apply(x, self, padding, "forward", x.shape[2:])
            return result
        workspace = self._meta_workspace(x, size, padding, input_gradient=False)
        result = F.conv2d(x, self.weight, self.bias, self.stride, padding, self.dilation, self.groups)
        del workspace
        return result

    def input_gradient(self, gradient: Tensor, shape: torch.Size) -> Tensor:
        """Gradient w.r.t. the input, without an autograd graph.

        Args:
            gradient: Gradient w.r.t. the output, shape ``(N, K, h, w)``.
            shape: Shape of the input, ``(N, C, H, W)``.

        Returns:
            Gradient w.r.t. the input, of shape `shape`.
        """
        if self._is_fast(gradient, self.out_channels, gradient.shape[2:], self._int_padding):
            return self.run(gradient, self._int_padding, "input_gradient", shape[2:])
        workspace = self._meta_workspace(gradient, gradient.shape[2:], self._int_padding, input_gradient=True)
        result: Tensor = conv2d_input(shape, self.weight, gradient, self.stride, self._int_padding)
        del workspace
        return result

    def run(self, x: Tensor, padding: tuple[int, int], linear_map: LinearMap, size: torch.Size) -> Tensor:
        """Apply a linear map by the faster algorithm, without an autograd graph.

        Args:
            x: The input, or the gradient w.r.t. the output.
            padding: Zeros around rows and columns of the convolution's input.
            linear_map: Which map.
            size: ``(H, W)`` of the convolution's input.

        Returns:
            The output, or the gradient w.r.t. the input.
        """
        bias = self.bias if linear_map == "forward" else None
        if self._is_3x3:
            is_gradient = linear_map == "input_gradient"
            return winograd.convolve(x, self._transformed_weight(), bias, padding, input_gradient=is_gradient)
        if linear_map == "input_gradient":
            return self._strided_input_gradient(x, padding, size)
        return F.conv2d(x, self.weight, bias, self.stride, padding)

    @property
    def _int_padding(self) -> tuple[int, int]:
        return int(self.padding[0]), int(self.padding[1])

    def _unstrided_size(self, size: Sequence[int], padding: tuple[int, int]) -> list[int]:
        """``(h, w)`` of the output at stride 1."""
        return [size[axis] + 2 * padding[axis] - self.kernel_size[axis] + 1 for axis in range(2)]

    def _is_fast(self, x: Tensor, channels: int, size: Sequence[int], padding: tuple[int, int]) -> bool:
        """Whether `run` supports this call and is faster; `size` is that of the output at stride 1."""
        if not self._is_candidate or is_symbolic(x):
            return False
        frozen = _is_frozen(self.weight) and (self.bias is None or _is_frozen(self.bias))
        if not frozen or torch.is_autocast_enabled("cpu"):
            return False
        plain = x.dtype == self.weight.dtype == torch.float32 and x.dim() == 4 and x.shape[1] == channels
        here = x.device.type == self.weight.device.type == "cpu"
        if not (plain and here) or len(x) == 0 or min(size) < 1:
            return False
        return self._is_strided_stem or self._is_winograd(size, padding)

    def _is_winograd(self, size: Sequence[int], padding: tuple[int, int]) -> bool:
        """Whether Winograd is faster; independent of the batch size, so that batching changes no value."""
        here = torch.backends.cpu.get_cpu_capability() in _WINOGRAD_CAPABILITIES and torch.backends.mkl.is_available()
        if not (self._is_3x3 and here) or max(padding) > 2:
            return False
        pixels = 9 * -(-size[0] // 3) * -(-size[1] // 3)
        enough = pixels * self.in_channels * self.out_channels >= _WINOGRAD_MIN_WORK
        return enough and pixels <= _WINOGRAD_MAX_OVERHEAD * size[0] * size[1]

    def _meta_workspace(self, x: Tensor, size: Sequence[int], padding: tuple[int, int], input_gradient: bool) -> object:
        """On the meta device, where memory is estimated: the workspace that the call would allocate."""
        if not x.is_meta:
            return None
        if self._is_winograd(size, padding):
            return winograd.workspace(x, self.weight, padding, input_gradient)
        # Rule of thumb for oneDNN: reordered weights and a buffer of about the same size.
        return x.new_empty(2 * self.weight.numel())

    def _transformed_weight(self) -> Tensor:
        if self._winograd_kernel is None or not self._winograd_kernel[0].matches(self.weight):
            with torch.inference_mode(False):
                self._winograd_kernel = _WeightVersion(self.weight), winograd.transform_weight(self.weight)
        return self._winograd_kernel[1]

    def _strided_input_gradient(self, gradient: Tensor, padding: tuple[int, int], size: torch.Size) -> Tensor:
        """Input gradient at stride s: a stride-1 convolution computes s x s pixels as channels, then pixel shuffle."""
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
        return {**self.__dict__, "_winograd_kernel": None}


class _WeightVersion:
    """Detects in-place changes of a weight; changes through ``.data`` are invisible to PyTorch and to this."""

    def __init__(self, weight: Tensor) -> None:
        self._memory = weight.untyped_storage()  # kept alive, so that its address is not reused
        self._version = weight._version

    def matches(self, weight: Tensor) -> bool:
        """Whether the weight has the same memory and version."""
        return self._memory.data_ptr() == weight.untyped_storage().data_ptr() and self._version == weight._version


class _LinearMap(torch.autograd.Function):
    """Apply one of the linear maps of a convolution."""

    @staticmethod
    def forward(
        x: Tensor, module: FastConv2d, padding: tuple[int, int], linear_map: LinearMap, size: torch.Size
    ) -> Tensor:
        return module.run(x, padding, linear_map, size)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, *ctx.options = inputs
        ctx.weight = _WeightVersion(inputs[1].weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        module, padding, linear_map, size = ctx.options
        if not ctx.weight.matches(module.weight):
            raise RuntimeError(
                "backward: expected the weights of the forward pass, got weights that were modified since"
            )
        transpose = "linear" if linear_map == "input_gradient" else "input_gradient"
        return _LinearMap.apply(gradient, module, padding, transpose, size), None, None, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> Tensor:
        module, padding, linear_map, size = ctx.options
        derivative = "input_gradient" if linear_map == "input_gradient" else "linear"
        result: Tensor = _LinearMap.apply(tangent, module, padding, derivative, size)
        return result

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], x: Tensor, *options: Any) -> tuple[Tensor, int]:
        stack = x.movedim(in_dims[0], 0)
        result: Tensor = _LinearMap.apply(stack.flatten(0, 1), *options)
        return result.unflatten(0, stack.shape[:2]), 0


def replace_convolutions(module: nn.Module) -> None:
    """Replace the plain convolutions of a module by `FastConv2d`, in place.

    Args:
        module: The module to modify. Subclasses of ``nn.Conv2d`` and convolutions with hooks, groups, dilation or
            padding other than a number of zeros are left alone.
    """
    made: dict[int, FastConv2d] = {}
    for parent in list(module.modules()):
        for name, child in list(parent._modules.items()):
            if type(child) is nn.Conv2d and _is_plain(child):
                setattr(parent, name, made.setdefault(id(child), FastConv2d(child)))


def _is_frozen(weight: Tensor) -> bool:
    """Whether it is a frozen `nn.Parameter` whose in-place version is tracked."""
    return type(weight) is nn.Parameter and not weight.requires_grad and not weight.is_inference()


def _is_plain(module: nn.Conv2d) -> bool:
    hooks = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    simple = module.groups == 1 and module.dilation == (1, 1) and not isinstance(module.padding, str)
    return simple and module.padding_mode == "zeros" and not hooks and "forward" not in vars(module)
