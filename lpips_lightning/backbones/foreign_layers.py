"""Layers of an AlexNet out of files of other programs: torch, Caffe, and arrays of NumPy."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from lpips_lightning.io.array_pickles import unpickle_arrays
from lpips_lightning.io.caffemodel import read_caffemodel
from lpips_lightning.weights import WeightsError, read_tensors

Layers: TypeAlias = dict[str, dict[str, Tensor]]
"""Tensors by their role in a layer (``"weight"``, ``"bias"``, ``"running_mean"``, ...), by the layer's name."""

SUFFIXES = (".pt", ".pth", ".safetensors", ".npy", ".npz", ".caffemodel")
"""Files that can be read; ``.pt`` and ``.pth`` are those of ``torch.save``."""

KERNELS = (11, 5, 3, 3, 3)
"""Kernel sizes of the five convolutions."""

_ROLES = {
    **dict.fromkeys(("weight", "weights", "w", "kernel", "0"), "weight"),
    **dict.fromkeys(("bias", "biases", "b", "beta", "offset", "1"), "bias"),
    **dict.fromkeys(("running_mean", "mean", "moving_mean"), "running_mean"),
    **dict.fromkeys(("running_var", "var", "variance", "moving_variance"), "running_var"),
    **dict.fromkeys(("scale", "gamma"), "weight"),
}


@dataclass(frozen=True)
class ForeignAlexNet:
    """The layers of an AlexNet in a file.

    Attributes:
        convolutions: The five convolutions in order, weights as ``(out, in, height, width)``.
        normalizations: Batch normalizations in order of their names, which may be more than the convolutions have.
        input_scaling: Mean and standard deviation that a 1 x 1 convolution before the first one applies, by input
            channel; None without one.
    """

    convolutions: list[dict[str, Tensor]]
    normalizations: list[dict[str, Tensor]]
    input_scaling: tuple[list[float], list[float]] | None


def read_foreign(path: Path, prefix: str | None = None) -> ForeignAlexNet:
    """Read the convolutions and batch normalizations of an AlexNet; no code in the file is executed.

    Convolutions are ``conv1`` to ``conv5``, whatever stands before these names; else the first five of the file, in the
    order of the numbers in their names.

    Args:
        path: A file with one of `SUFFIXES`.
        prefix: Only layers whose names begin so are read; None for all.

    Returns:
        The layers.

    Raises:
        WeightsError: If the file is damaged or holds other objects than arrays, or it is not clear which of its layers
            are the convolutions of an AlexNet.
    """
    if path.suffix not in SUFFIXES:
        raise WeightsError(f"{path}: expected a file that ends in one of {', '.join(SUFFIXES)}, got {path.suffix!r}")
    if not path.is_file():
        raise WeightsError(f"{path}: expected a file, got none")
    layers = _standardized(_read(path))
    if prefix is not None:
        kept = {name: tensors for name, tensors in layers.items() if name.startswith(prefix)}
        if not kept:
            raise WeightsError(f"prefix: expected one of {path}, whose layers are {_few(layers)}, got {prefix!r}")
        layers = kept
    order = sorted(layers, key=_natural)
    names = _convolutions([name for name in order if _dimensions(layers[name]) == 4], layers, path)
    layers = _channels_first(layers, names, path)
    return ForeignAlexNet(
        [layers[name] for name in names],
        _normalizations([layers[name] for name in order], path),
        _input_scaling({name: layers[name] for name in order if name not in names}),
    )


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """Arrays or tensors by role, as the file calls it, by layer."""
    if path.suffix == ".caffemodel":
        return _of_caffe(read_caffemodel(path))
    if path.suffix == ".npy":
        return _nested(_of_npy(path), path)
    if path.suffix == ".npz":
        return _split(_of_npz(path))
    return _split(read_tensors(path))


def _of_caffe(blobs: Mapping[str, Sequence[np.ndarray[Any, Any]]]) -> dict[str, dict[str, Any]]:
    layers: dict[str, dict[str, Any]] = {}
    for name, values in blobs.items():
        if len(values) == 3 and values[2].size == 1:  # BatchNorm: sums of mean and variance, and their weight
            mean, variance = (value.reshape(-1) / (float(values[2].reshape(-1)[0]) or 1.0) for value in values[:2])
            layers[name] = {"running_mean": mean, "running_var": variance}
        else:
            layers[name] = {"weight": values[0], **({"bias": values[1].reshape(-1)} if len(values) > 1 else {})}
    return layers


def _of_npy(path: Path) -> Any:
    """The object in a file of ``numpy.save``: a dict, for which NumPy itself would run the file's pickle."""
    with path.open("rb") as file:
        try:
            is_first = np.lib.format.read_magic(file) == (1, 0)
            npy = np.lib.format
            _, _, dtype = (npy.read_array_header_1_0 if is_first else npy.read_array_header_2_0)(file)
        except (ValueError, OSError) as error:
            raise WeightsError(f"{path}: expected a file of numpy.save, got another one ({error})") from error
        if not dtype.hasobject:
            raise WeightsError(f"{path}: expected a dict of layers, got an array of {dtype}")
        content = unpickle_arrays(file.read(), str(path))
    return content.item() if isinstance(content, np.ndarray) and content.size == 1 else content


def _of_npz(path: Path) -> dict[str, Any]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except Exception as error:  # zipfile's, zlib's and NumPy's own
        raise WeightsError(
            f"{path}: expected a file of numpy.savez with arrays alone, got {error}; no code in it was executed"
        ) from error


def _nested(content: Any, path: Path) -> dict[str, dict[str, Any]]:
    """A dict of ``{layer: {role: array}}`` or ``{layer: [weight, bias]}``."""
    if not isinstance(content, dict):
        raise WeightsError(f"{path}: expected a dict of layers, got {type(content).__name__}")
    layers: dict[str, dict[str, Any]] = {}
    for name, values in content.items():
        if isinstance(values, dict):
            layers[str(name)] = {str(role): value for role, value in values.items()}
        elif isinstance(values, list | tuple):
            layers[str(name)] = {str(index): value for index, value in enumerate(values)}
        else:
            raise WeightsError(
                f"{path}: expected arrays by layer and role, or lists of weight and bias, got"
                f" {type(values).__name__} by the name {name!r}"
            )
    return layers


def _split(flat: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """``{"conv1.weight": tensor}``, or with ``/`` or ``_`` between layer and role, to roles by layer."""
    layers: dict[str, dict[str, Any]] = {}
    for name, value in flat.items():
        found = re.fullmatch(r"(.+?)[./_](running_mean|running_var|moving_mean|moving_variance|[^./_]+)(:0)?", name)
        if found is not None:
            layers.setdefault(found[1], {})[found[2]] = value
    return layers


def _standardized(raw: Mapping[str, Mapping[str, Any]]) -> Layers:
    """Known roles as float32 tensors."""
    layers: Layers = {}
    for name, values in raw.items():
        for said, value in values.items():
            role = _ROLES.get(said.lower())
            if role is not None and isinstance(value, np.ndarray) and value.dtype.kind in "fiu":
                value = torch.from_numpy(np.array(value, np.float32))
            if role is not None and isinstance(value, Tensor):
                layers.setdefault(name, {})[role] = value.detach().to("cpu", torch.float32)
    return layers


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key: numbers in a name by their value."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _convolutions(candidates: list[str], layers: Layers, path: Path) -> list[str]:
    """Names of the five convolutions."""
    named: dict[str, dict[int, str]] = {}
    for name in candidates:
        if found := re.fullmatch(r"(|.*[./_])conv_?([1-5])", name, re.IGNORECASE):
            named.setdefault(found[1], {})[int(found[2])] = name
    whole = [names for names in named.values() if len(names) == len(KERNELS)]
    if len(whole) == 1:
        return [whole[0][number] for number in range(1, 6)]
    numbered = [name for name in candidates if _fits_any(layers[name]["weight"])]
    fits = len(numbered) >= 5 and all(_fits(layers[n]["weight"], k) for n, k in zip(numbered, KERNELS, strict=False))
    if len(whole) > 1 or not fits or any(_fits(layers[name]["weight"], 11) for name in numbered[5:]):
        shapes = {f"{name} {tuple(layers[name]['weight'].shape)}": None for name in candidates}
        raise WeightsError(
            f"{path}: expected the five convolutions of one AlexNet (kernels {', '.join(map(str, KERNELS))}), got"
            f" {_few(shapes)}; of several networks in a file, --prefix chooses one"
        )
    return numbered[:5]


def _fits(weight: Tensor, kernel: int) -> bool:
    return weight.shape[2:] == (kernel, kernel) or weight.shape[:2] == (kernel, kernel)


def _fits_any(weight: Tensor) -> bool:
    return any(_fits(weight, kernel) for kernel in KERNELS)


def _channels_first(layers: Layers, names: list[str], path: Path) -> Layers:
    """Convolution weights as ``(out, in, height, width)``, also if the file has ``(height, width, in, out)``."""
    first, last = set[bool](), set[bool]()
    for name, kernel in zip(names, KERNELS, strict=True):
        shape = layers[name]["weight"].shape
        first.add(shape[2:] == (kernel, kernel))
        last.add(shape[:2] == (kernel, kernel))
    is_first, is_last = False not in first, False not in last
    if is_first == is_last:
        shapes = {str(tuple(layers[name]["weight"].shape)): None for name in names}
        what = "both fit" if is_first else "neither fits"
        raise WeightsError(
            f"{path}: expected convolutions of (out, in, height, width) or of (height, width, in, out), got"
            f" {_few(shapes)}, which {what}"
        )
    if is_first:
        return layers
    turned = {name: layers[name] | {"weight": layers[name]["weight"].permute(3, 2, 0, 1)} for name in names}
    return layers | turned


def _normalizations(layers: list[dict[str, Tensor]], path: Path) -> list[dict[str, Tensor]]:
    """Batch normalizations, each with what Caffe keeps in a layer of its own: factor and summand."""
    found = [layer for layer in layers if "running_mean" in layer]
    scales = [layer for layer in layers if "running_mean" not in layer and _dimensions(layer) == 1]
    if not scales:
        return found
    if len(scales) != len(found):
        raise WeightsError(
            f"{path}: expected a scale for every batch normalization, got {len(scales)} for {len(found)}; read it with"
            " torch, and save a state_dict"
        )
    return [scale | layer for layer, scale in zip(found, scales, strict=True)]


def _input_scaling(others: Layers) -> tuple[list[float], list[float]] | None:
    """Mean and standard deviation in a 1 x 1 convolution of every channel alone, as Caffe files for Lab have it."""
    for name, layer in others.items():
        if not name.startswith("data_") or layer.keys() != {"weight", "bias"}:
            continue
        weight, bias = layer["weight"], layer["bias"]
        if weight.dim() == 4 and weight.shape[1:] == (1, 1, 1) and bool((weight > 0).all()):
            std = 1 / weight.double().flatten()
            return [0.0 - value for value in (bias * std).tolist()], std.tolist()
    return None


def _dimensions(layer: Mapping[str, Tensor]) -> int:
    return layer["weight"].dim() if "weight" in layer else 0


def _few(names: Mapping[str, Any]) -> str:
    shown = list(names)
    return ", ".join(shown[:6]) + (f" and {len(shown) - 6} more" if len(shown) > 6 else "") or "none"
