"""Tensors inside the transforms of ``torch.func``: vmap, grad, vjp, jvp, jacrev, jacfwd, hessian.

A transform wraps tensors: a batched tensor hides a batch dimension, and the wrapper of a derivative says alone that it
requires grad. Transforms nest, and so do the wrappers.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

_functorch = torch._C._functorch


def is_transformed() -> bool:
    """Whether a transform of ``torch.func`` runs; False under ``torch.compile``, which follows every operation anyway.

    Example:
        >>> seen = torch.vmap(lambda x: x + is_transformed())(torch.zeros(2))
        >>> seen, is_transformed()
        (tensor([1., 1.]), False)
    """
    return not torch.compiler.is_compiling() and _functorch.peek_interpreter_stack() is not None


def unwrapped(tensor: Tensor) -> Tensor:
    """The tensor that holds the values, all hidden batch dimensions included.

    Args:
        tensor: Any tensor.

    Returns:
        `tensor` itself outside of transforms.
    """
    return _layers(tensor)[-1]


def is_vmapped(tensor: Tensor) -> bool:
    """Whether ``torch.vmap`` hides a batch dimension of a tensor.

    Args:
        tensor: Any tensor.
    """
    return not torch.compiler.is_compiling() and any(map(_functorch.is_batchedtensor, _layers(tensor)))


def is_differentiated(tensor: Tensor) -> bool:
    """Whether a derivative w.r.t. a tensor, or through it, is taken: in reverse, forward or any nested mode.

    Args:
        tensor: Any tensor.
    """
    if torch.compiler.is_compiling():
        return torch.is_grad_enabled() and tensor.requires_grad
    recorded = torch.is_grad_enabled() and any(one.requires_grad for one in _layers(tensor))
    return recorded or has_tangent(tensor)


def has_tangent(tensor: Tensor) -> bool:
    """Whether forward-mode AD follows a tensor.

    Args:
        tensor: Any tensor.
    """
    if torch.compiler.is_compiling():
        return False
    unbatched = [one for one in _layers(tensor) if not _functorch.is_batchedtensor(one)]
    return any(forward_ad.unpack_dual(one).tangent is not None for one in unbatched)


def _layers(tensor: Tensor) -> list[Tensor]:
    """The tensor, and what its wrappers hold, from the outermost to the innermost."""
    found = [tensor]
    while _functorch.is_functorch_wrapped_tensor(found[-1]):
        found.append(_functorch.get_unwrapped(found[-1]))
    return found
