"""Distance of one feature layer, and its gradient, on a GPU: one pass over the features.

Computes what `lpips_lightning.distances.lpips` computes, up to float32 rounding: difference first, an explicit branch
for positions whose channels are all zero, ``1e-10`` outside the root, everything in float32 for any feature dtype. The
kernels are registered as ``torch.ops.lpips_lightning.layer_sum`` and ``layer_sum_gradient``, so ``torch.compile`` keeps
them whole and CUDA graphs can capture them: nothing here synchronizes with the device or depends on values.
"""

from __future__ import annotations

import logging
import os
from importlib.util import find_spec

import torch
from torch import Tensor

SWITCH = "LPIPS_LIGHTNING_TRITON"
"""Environment variable; ``0`` disables the kernels."""

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_log = logging.getLogger("lpips_lightning")
_works: dict[torch.device, bool] = {}


def layer_sum(x: Tensor, y: Tensor, weight: Tensor | None) -> Tensor:
    """Sum over positions of ``weight . (x^ - y^)^2`` for every image pair.

    Args:
        x: Features ``(N, C, h, w)`` in float32, bfloat16 or float16; read in place if contiguous or channels_last.
        y: Features of the same shape.
        weight: Shape ``(C,)``, or None for the baseline: 1 everywhere. Divide it by ``h w`` to get the mean.

    Returns:
        Shape ``(N,)``, float32, without an autograd graph. Exactly 0 for equal images; bit-identical for equal calls.

    Raises:
        TypeError: If a dtype is not supported.
        ValueError: If shapes or devices differ, or an argument requires grad (use `layer_sum_gradient`).
    """
    if torch.is_grad_enabled() and (x.requires_grad or y.requires_grad):
        raise ValueError(
            "x, y: expected features without requires_grad, or torch.no_grad; got features that require grad"
        )
    return torch.ops.lpips_lightning.layer_sum(*_checked(x, y, weight))


def layer_sum_gradient(x: Tensor, y: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """`layer_sum` and its gradient w.r.t. `x`.

    Args:
        x: See `layer_sum`.
        y: See `layer_sum`.
        weight: See `layer_sum`.

    Returns:
        Sums ``(N,)`` in float32, and the gradient with the shape, dtype and memory format of `x`; 0 at positions where
        all channels of `x` are 0. Both without an autograd graph.

    Raises:
        TypeError: If a dtype is not supported.
        ValueError: If shapes or devices differ.
    """
    sums, gradient = torch.ops.lpips_lightning.layer_sum_gradient(*_checked(x.detach(), y.detach(), weight))
    return sums, gradient


@torch.compiler.assume_constant_result
def available(device: torch.device, dtype: torch.dtype = torch.float32) -> bool:
    """Whether the kernels work on a device; the first call for a device runs one and warns if it fails.

    Call this once before capturing a CUDA graph.

    Args:
        device: Device of the features.
        dtype: Dtype of the features.

    Returns:
        False without CUDA, without Triton, for float64, if the environment variable ``LPIPS_LIGHTNING_TRITON`` is ``0``
        at the first call, and if the kernel does not compile, for example without a C compiler.
    """
    if device.type != "cuda" or dtype not in _DTYPES:
        return False
    if device not in _works:
        _works[device] = os.environ.get(SWITCH, "") != "0" and find_spec("triton") is not None and _try(device)
    return _works[device]


def _try(device: torch.device) -> bool:
    """Run a kernel once; False and one warning if it fails or returns a wrong value."""
    try:
        with torch.no_grad():
            x = torch.tensor([3.0, 4.0], device=device).view(1, 2, 1, 1)
            sums, gradient = layer_sum_gradient(x, x.flip(1), None)
            right = torch.allclose(sums.cpu(), torch.tensor([0.08])) and bool(gradient.isfinite().all())
        reason = "" if right else f"expected 0.08, got {float(sums):g}"
    except Exception as error:  # compiler, driver or linker errors of any type
        reason = f"{type(error).__name__}: {error}"
    if reason:
        _log.warning("the Triton kernels do not run on %s, the plain form does: %s", device, reason.splitlines()[0])
    return not reason


def _checked(x: Tensor, y: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Validated arguments of the operators."""
    for name, features in (("x", x), ("y", y)):
        if features.dtype not in _DTYPES:
            raise TypeError(f"{name}: expected float32, bfloat16 or float16, got {features.dtype}")
    if x.dim() != 4 or x.shape != y.shape or x.device != y.device:
        raise ValueError(
            f"y: expected features (N, C, h, w) as x, {tuple(x.shape)} on {x.device}, "
            f"got {tuple(y.shape)} on {y.device}"
        )
    if weight is not None:
        if weight.shape != x.shape[1:2] or weight.device != x.device:
            raise ValueError(
                f"weight: expected shape {tuple(x.shape[1:2])} on {x.device}, "
                f"got {tuple(weight.shape)} on {weight.device}"
            )
        weight = weight.detach().float().contiguous()
    return _dense(x), _dense(y), weight


def _dense(features: Tensor) -> Tensor:
    return features if features.is_contiguous() else features.contiguous(memory_format=torch.channels_last)


def _layer_sum(x: Tensor, y: Tensor, weight: Tensor | None) -> Tensor:
    from lpips_lightning.kernels.head_triton_kernels import launch

    return launch(x, y, weight, None)


def _layer_sum_gradient(x: Tensor, y: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    from lpips_lightning.kernels.head_triton_kernels import launch

    gradient = torch.empty_like(x)
    return launch(x, y, weight, gradient), gradient


def _layer_sum_shape(x: Tensor, y: Tensor, weight: Tensor | None) -> Tensor:
    return x.new_empty(x.shape[0], dtype=torch.float32)


def _layer_sum_gradient_shape(x: Tensor, y: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape[0], dtype=torch.float32), torch.empty_like(x)


_library = torch.library.Library("lpips_lightning", "FRAGMENT")
for _name, _returns, _run, _shape in (
    ("layer_sum", "Tensor", _layer_sum, _layer_sum_shape),
    ("layer_sum_gradient", "(Tensor, Tensor)", _layer_sum_gradient, _layer_sum_gradient_shape),
):
    _library.define(f"{_name}(Tensor x, Tensor y, Tensor? weight) -> {_returns}")
    _library.impl(_name, _run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"lpips_lightning::{_name}", _shape, lib=_library)
