"""Match a user's state dict to the tensors of a backbone."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from lpips_lightning.weights import WeightsError

# Heads of a whole model; self-supervised models may have other heads than torchvision's.
_HEAD = re.compile(r"(classifier|fc\d*|head|linear|top_layer|projection|projector)\.")


def fitting_tensors(
    backbone: str,
    expected: Mapping[str, Tensor],
    whole: Collection[str],
    tensors: Mapping[str, Tensor],
    source: str = "weights",
) -> dict[str, Tensor]:
    """Select and validate the tensors of a backbone; copied to the CPU, floating-point tensors in float32.

    Accepted names: those of the backbone, those of the convolutional part alone (``0.weight``), both with a prefix
    (``module.features.0.weight``), and ``conv1``, ``conv2``, ... for the convolutions in order.

    Args:
        backbone: Name of the backbone for error messages.
        expected: Tensors by name; only names, shapes and dtypes are used.
        whole: Names of the whole model; other names than `expected` are ignored.
        tensors: The given tensors; tensors of a head are ignored.
        source: Name of the weights for error messages: the argument or the file.

    Returns:
        Tensors by expected name.

    Raises:
        WeightsError: If a tensor is missing, unknown, of the wrong shape, not floating-point or not finite.
    """
    tensors = _renamed(expected, tensors)
    missing = sorted(expected.keys() - tensors.keys())
    unknown = sorted(name for name in tensors.keys() - expected.keys() - set(whole) if not _HEAD.match(name))
    if missing or unknown:
        raise WeightsError(
            f"{source}: expected the tensors of {backbone}; missing: {_few(missing)}; unknown: {_few(unknown)}"
        )
    fitting = {}
    for name, like in expected.items():
        tensor = tensors[name]
        if tensor.shape != like.shape:
            raise WeightsError(f"{source}: {name}: expected shape {tuple(like.shape)}, got {tuple(tensor.shape)}")
        if like.is_floating_point() and not tensor.is_floating_point():
            raise WeightsError(f"{source}: {name}: expected finite floating-point values, got {tensor.dtype}")
        dtype = torch.float32 if like.is_floating_point() else like.dtype
        fitting[name] = tensor.detach().to("cpu", dtype, copy=True)
        if not bool(fitting[name].isfinite().all()):
            count = int((~fitting[name].isfinite()).sum())
            raise WeightsError(f"{source}: {name}: expected finite floating-point values, got {count} that are not")
    return fitting


def check_tensors(tensors: Mapping[str, Tensor], source: str) -> None:
    """Raise unless a mapping holds only dense tensors with data, by name.

    Args:
        tensors: The given tensors.
        source: Name of the weights for error messages: the argument or the file.

    Raises:
        WeightsError: Names the first invalid entry.
    """
    for name, tensor in tensors.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise WeightsError(f"{source}: expected tensors by name, got {type(tensor).__name__} by the name {name!r}")
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            kind = tensor.dtype if tensor.is_quantized else tensor.device if tensor.is_meta else tensor.layout
            raise WeightsError(f"{source}: {name}: expected a dense tensor with data, got one of {kind}")


def _renamed(expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Rename tensors to the expected names where a known naming scheme matches."""
    if not expected or any(name in expected for name in tensors):
        return tensors
    first = next(iter(expected))
    for name in tensors:
        if name.endswith(f".{first}"):
            prefix = name.removesuffix(first)
            return {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}
    convolutions = list(dict.fromkeys(name.rpartition(".")[0] for name in expected))
    if any(name.startswith("conv1.") for name in tensors):
        new = {f"conv{number}": name for number, name in enumerate(convolutions, start=1)}
        parts = {name: name.rpartition(".") for name in tensors}
        return {f"{new.get(parts[name][0], parts[name][0])}.{parts[name][2]}": t for name, t in tensors.items()}
    if not first.startswith("features."):
        return tensors
    return {f"features.{name}" if name[:1].isdigit() else name: tensor for name, tensor in tensors.items()}


def _few(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "") or "none"
