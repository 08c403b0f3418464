"""Trunks of the user's own: torchvision's other models, and any module, cut at named parts."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from lpips_lightning.backbones import Backbone, Torchvision, cut, tapped

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "from_module", "from_torchvision"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_PROBE_SIDE = 256


def from_torchvision(
    builder: str,
    taps: Sequence[str] | Mapping[str, str],
    *,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    smallest_side: int | None = None,
) -> Backbone:
    """A torchvision model as a trunk, with its ``IMAGENET1K_V1`` weights looked for as the built-in ones' are.

    Args:
        builder: Its name, for example ``"vgg19"``, ``"resnet50"``, ``"convnext_tiny"``.
        taps: Parts whose output is compared, from the input on, as
            `torchvision.models.feature_extraction.get_graph_node_names` names them; a mapping gives them your names.
        mean: Of the trunk's input per channel, for images on [0, 1].
        std: Of the same.
        smallest_side: Of images, in pixels; None tries it out.

    Returns:
        What `LPIPS`, metric and loss take as `net_type`. There is no official calibration for it: pass one, or say
        ``calibrated=False``.

    Raises:
        ValueError: If there is no such model or part, or a part's output is not ``(N, C, h, w)``.

    Example:
        >>> trunk = from_torchvision("resnet18", ["relu", "layer1", "layer2"])
        >>> trunk.channels, trunk.smallest_side
        ((64, 64, 128), 1)
    """
    try:
        with torch.device("meta"):
            Torchvision(builder)()
    except ValueError as error:
        raise ValueError(f"builder: expected the name of a torchvision model, got {builder!r}") from error
    return _record(builder, builder, taps, Torchvision(builder), None, (mean, std), smallest_side)


def from_module(
    module: nn.Module,
    taps: Sequence[str] | Mapping[str, str],
    *,
    name: str = "custom",
    mean: Sequence[float] = (0.5, 0.5, 0.5),
    std: Sequence[float] = (0.5, 0.5, 0.5),
    smallest_side: int | None = None,
) -> Backbone:
    """Any module as a trunk, with the weights that it has.

    The module is copied, in evaluation mode; training it later changes nothing here. Where torch.fx can trace it, only
    the part up to the last tap is kept.

    Args:
        module: Images ``(N, 3, H, W)`` -> anything.
        taps: Parts whose output is compared, from the input on, as ``module.named_modules()`` names them; a mapping
            gives them your names.
        name: What to call it in the fingerprint.
        mean: Of the trunk's input per channel, for images on [0, 1]. The default leaves images on [-1, 1].
        std: Of the same.
        smallest_side: Of images, in pixels; None tries it out.

    Returns:
        What `LPIPS`, metric and loss take as `net_type`. There is no official calibration for it: pass one, or say
        ``calibrated=False``.

    Raises:
        TypeError: If it is no module.
        ValueError: If there is no such part, or a part's output is not ``(N, C, h, w)``.

    Example:
        >>> module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2), nn.ReLU())
        >>> trunk = from_module(module, {"first": "1", "second": "3"})
        >>> trunk.channels, trunk.smallest_side
        ((8, 16), 5)
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module: expected a torch.nn.Module, got {type(module).__name__}")
    build = _Copies(copy.deepcopy(module).to("cpu").eval())
    return _record(name, "", taps, build, build.state_dict, (mean, std), smallest_side)


@dataclass(frozen=True)
class _Copies:
    module: nn.Module

    def __call__(self) -> nn.Module:
        return copy.deepcopy(self.module)

    def state_dict(self) -> Mapping[str, Tensor]:
        return self.module.state_dict()


def _record(
    name: str,
    builder: str,
    taps: Sequence[str] | Mapping[str, str],
    build: Callable[[], nn.Module],
    own: Callable[[], Mapping[str, Tensor]] | None,
    scaling: tuple[Sequence[float], Sequence[float]],
    smallest_side: int | None,
) -> Backbone:
    if isinstance(taps, str) or not taps:
        raise ValueError(f"taps: expected names of parts of the trunk, got {taps!r}")
    by_layer = dict(taps) if isinstance(taps, Mapping) else {tap: tap for tap in taps}
    mean, std = (_three(values, what) for values, what in zip(scaling, ("mean", "std"), strict=True))
    if min(std) <= 0:
        raise ValueError(f"std: expected three positive numbers, got {std}")
    shift, scale = (2 * mean[0] - 1, 2 * mean[1] - 1, 2 * mean[2] - 1), (2 * std[0], 2 * std[1], 2 * std[2])
    record = Backbone(name, builder, by_layer, (), smallest_side or 1, build, shift, scale, own)
    channels, found_side = _probe(record, smallest_side)
    return replace(record, channels=channels, smallest_side=found_side)


def _three(values: Sequence[float], what: str) -> tuple[float, float, float]:
    if len(values) != 3:
        raise ValueError(f"{what}: expected three numbers, got {values!r}")
    return float(values[0]), float(values[1]), float(values[2])


def _probe(record: Backbone, smallest_side: int | None) -> tuple[tuple[int, ...], int]:
    """Channels of every tap, and the smallest side that works."""
    trunk, _ = cut(record)
    device = "meta"
    try:
        shapes = _shapes(trunk.to("meta"), record.taps, smallest_side or _PROBE_SIDE, device)
    except Exception:  # whatever cannot run without values
        device, (trunk, _) = "cpu", cut(record)
        side = smallest_side or _PROBE_SIDE
        try:
            shapes = _shapes(trunk, record.taps, side, device)
        except Exception as error:
            raise ValueError(f"{record.name}: expected a trunk that takes {side}x{side} images: {error}") from error
    for layer, shape in shapes.items():
        if shape is None or len(shape) != 4 or 0 in shape:
            raise ValueError(f"taps: expected an output of shape (N, C, h, w) at {layer!r}, got {shape}")
    channels = tuple(shape[1] for shape in shapes.values() if shape)
    if smallest_side is not None:
        return channels, smallest_side
    low, high = 0, _PROBE_SIDE  # the first never works, the second does
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _works(trunk, record.taps, middle, device) else (middle, high)
    return channels, high


def _works(trunk: nn.Module, taps: Mapping[str, str], side: int, device: str) -> bool:
    try:
        shapes = _shapes(trunk, taps, side, device)
    except Exception:  # each layer has its own for images that are too small
        return False
    return all(shape is not None and 0 not in shape for shape in shapes.values())


@torch.no_grad()
def _shapes(trunk: nn.Module, taps: Mapping[str, str], side: int, device: str) -> dict[str, tuple[int, ...] | None]:
    outputs = tapped(trunk, taps, torch.zeros(1, 3, side, side, device=device))
    return {layer: tuple(output.shape) if isinstance(output, Tensor) else None for layer, output in outputs.items()}
