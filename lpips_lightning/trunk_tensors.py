"""Users' state dicts -> exactly the tensors that a trunk has, or an error that says what does not fit."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from lpips_lightning.weights import WeightsError

__all__ = ["check_tensors", "fitting_tensors"]

# Parts of a whole model behind the trunk, of which a self-supervised one may have others than torchvision's.
_HEAD = re.compile(r"(classifier|fc\d*|head|linear|top_layer|projection|projector)\.")


def fitting_tensors(
    trunk: str,
    expected: Mapping[str, Tensor],
    whole: Collection[str],
    tensors: Mapping[str, Tensor],
    source: str = "weights",
) -> dict[str, Tensor]:
    """The expected tensors, copied to the CPU; floating ones in float32.

    Accepted are the names of the trunk itself, of the convolutional part alone (``0.weight``), with a prefix before
    them (``module.features.0.weight``), and ``conv1`` ... for the convolutions of AlexNet, in their order.

    Args:
        trunk: What to call it in errors.
        expected: Tensors by name, for their names, shapes and dtypes.
        whole: Names of the whole model, which may be given and are not used.
        tensors: What was given; may also hold another head of the model.
        source: What to call it in errors: the argument, or the file.

    Returns:
        Tensor by expected name.

    Raises:
        WeightsError: If a tensor is missing, unknown, of another shape, not floating or not finite.
    """
    tensors = _renamed(expected, tensors)
    missing = sorted(expected.keys() - tensors.keys())
    unknown = sorted(name for name in tensors.keys() - expected.keys() - set(whole) if not _HEAD.match(name))
    if missing or unknown:
        raise WeightsError(
            f"{source}: expected the tensors of {trunk}; missing: {_few(missing)}; unknown: {_few(unknown)}"
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
    """Refuse a mapping that holds anything else than dense tensors with data, by name.

    Args:
        tensors: What was given.
        source: What to call it in errors: the argument, or the file.

    Raises:
        WeightsError: With the first name that is off.
    """
    for name, tensor in tensors.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise WeightsError(f"{source}: expected tensors by name, got {type(tensor).__name__} by the name {name!r}")
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            kind = tensor.dtype if tensor.is_quantized else tensor.device if tensor.is_meta else tensor.layout
            raise WeightsError(f"{source}: {name}: expected a dense tensor with data, got one of {kind}")


def _renamed(expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The tensors by the expected names, as far as their names can be understood."""
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
