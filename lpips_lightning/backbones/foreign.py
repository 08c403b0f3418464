"""A `CaffeAlexNet` with the weights of a file that another program wrote."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lpips_lightning.backbones.caffe_alexnet import MEANS, CaffeAlexNet
from lpips_lightning.backbones.caffe_file import is_caffe_file
from lpips_lightning.backbones.foreign_layers import ForeignAlexNet, read_foreign
from lpips_lightning.backbones.published import METHODS
from lpips_lightning.weights import WeightsError

_NORMALIZED = {"none": (), "batch": (1, 2, 3, 4, 5), "batch_345": (3, 4, 5), "batch_after": (1, 2, 3, 4)}
"""Convolutions that have a batch normalization."""


_TORCHVISION = [64, 192, 384, 256, 256]


def caffe_alexnet_of_file(
    path: str | os.PathLike[str],
    method: str,
    *,
    prefix: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> CaffeAlexNet:
    """Read an AlexNet that another program wrote; no code in the file is executed.

    Channels and groups are those of the file's convolutions. All that a file of weights does not say comes from the
    published method: the order of the colors, their mean and scale, LRN, paddings, slopes. Nothing of it is guessed.

    Args:
        path: A ``.pt``, ``.pth`` or ``.safetensors`` (``state_dict``), ``.npy`` or ``.npz`` (arrays by layer), or
            ``.caffemodel``. Convolution weights may be ``(out, in, height, width)`` or ``(height, width, in, out)``.
        method: A key of `METHODS`.
        prefix: Only layers whose names begin so are read, of a file with several networks; None for all.
        settings: Arguments of `CaffeAlexNet` that take the place of the method's.

    Returns:
        The network, in evaluation mode.

    Raises:
        ValueError: If the method or a setting is unknown.
        WeightsError: If the file is damaged, holds other objects than arrays, or does not fit the method's network.
    """
    if method not in METHODS:
        raise ValueError(f"as: expected one of {', '.join(METHODS)}, got {method!r}")
    path = Path(path).expanduser()
    given = dict(settings or {})
    if unknown := sorted(given.keys() - _free_settings()):
        raise ValueError(f"set: expected some of {', '.join(sorted(_free_settings()))}, got {unknown[0]!r}")
    if is_caffe_file(path):
        raise WeightsError(f"{path}: expected a file of another program, got one for LPIPS(weights=FILE) as it is")
    foreign = read_foreign(path, prefix)
    chosen = {**METHODS[method].settings, **given}
    net = _architecture(foreign, chosen, path)
    _fill(net, foreign, path)
    return net.eval()


def _free_settings() -> set[str]:
    with torch.device("meta"):
        return CaffeAlexNet().settings.keys() - {"channels", "groups"}


def _architecture(foreign: ForeignAlexNet, chosen: dict[str, Any], path: Path) -> CaffeAlexNet:
    weights = [layer["weight"] for layer in foreign.convolutions]
    channels = [len(weight) for weight in weights]
    if channels == _TORCHVISION:
        raise WeightsError(
            f"{path}: expected Caffe's AlexNet, got the channels of torchvision's, {channels};"
            " LPIPS('alex', weights=FILE) takes it"
        )
    groups = [1, *(before // weight.shape[1] for before, weight in zip(channels, weights[1:], strict=False))]
    colors, inputs = chosen.get("colors", "bgr"), weights[0].shape[1]
    if colors in MEANS and len(MEANS[colors]) != inputs:
        others = [name for name, mean in MEANS.items() if len(mean) == inputs]
        raise WeightsError(
            f"{path}: expected a first convolution of {len(MEANS[colors])} input channels for colors {colors!r}, got"
            f" {inputs}; --set colors=... takes {' or '.join(others) or 'no such number'}"
        )
    scaling = foreign.input_scaling
    if scaling is not None and len(scaling[0]) == inputs:
        chosen = {"mean": scaling[0], "std": scaling[1], **chosen}
    try:
        return CaffeAlexNet(channels, groups=groups, **chosen)
    except TypeError as error:
        raise ValueError(f"set: expected values of the right type, got {chosen!r} ({error})") from error
    except ZeroDivisionError as error:
        raise WeightsError(f"{path}: expected convolutions with input channels, got one without") from error


def _fill(net: CaffeAlexNet, foreign: ForeignAlexNet, path: Path) -> None:
    """Copy all weights to the network."""
    numbers = _NORMALIZED[net.settings["normalization"]]
    normalizations = _fitting(foreign, net, numbers, path)
    state = net.state_dict()
    for index, layer in zip(net.convolutions, foreign.convolutions, strict=True):
        like = state[f"features.{index}.weight"]
        if layer["weight"].shape != like.shape:
            raise WeightsError(
                f"{path}: expected a convolution of shape {tuple(like.shape)}, got {tuple(layer['weight'].shape)}"
            )
        state[f"features.{index}.weight"] = layer["weight"]
        state[f"features.{index}.bias"] = layer.get("bias", torch.zeros(len(like)))
    places = [index for index, module in enumerate(net.features) if isinstance(module, nn.BatchNorm2d)]
    for index, layer in zip(places, normalizations, strict=True):
        defaults = {"weight": torch.ones_like(layer["running_mean"]), "bias": torch.zeros_like(layer["running_mean"])}
        state |= {f"features.{index}.{role}": tensor for role, tensor in (defaults | layer).items()}
    for name, tensor in state.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise WeightsError(f"{path}: expected finite values, got others in {name}")
    try:
        net.load_state_dict(state)
    except RuntimeError as error:
        raise WeightsError(f"{path}: expected layers of fitting shapes, got others: {error}") from error


def _fitting(
    foreign: ForeignAlexNet, net: CaffeAlexNet, numbers: tuple[int, ...], path: Path
) -> list[dict[str, Tensor]]:
    """The batch normalizations of the network: the first ones of the file, whose sizes must fit.

    Later ones belong to fully connected layers, which have other sizes, or lie behind the last ReLU, as in egomotion's.
    Any other of a convolution's size is refused.
    """
    sizes = [len(layer["running_mean"]) for layer in foreign.normalizations]
    expected = [net.channels[number - 1] for number in numbers]
    if _fits(sizes, numbers, net):
        return foreign.normalizations[: len(expected)]
    fits = [name for name, places in _NORMALIZED.items() if places and _fits(sizes, places, net)]
    way_out = f"; --set normalization={' or '.join(fits)} fits" if fits else "; no variant of this network has those"
    raise WeightsError(
        f"{path}: expected batch normalizations of {expected or 'no'} channels, got those of {sizes or 'none'}{way_out}"
    )


def _fits(sizes: list[int], numbers: tuple[int, ...], net: CaffeAlexNet) -> bool:
    """Whether the first sizes are those of the convolutions `numbers`, and the others of no convolution."""
    expected = [net.channels[number - 1] for number in numbers]
    others = [size for size in sizes[len(expected) :] if size in net.channels]
    behind = net.channels[-1:] if numbers == _NORMALIZED["batch_after"] else ()  # behind the last ReLU
    return sizes[: len(expected)] == expected and (not others or others == list(behind))
