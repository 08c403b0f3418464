"""Distances by name, for the evaluation: all variants of LPIPS, and classical metrics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lpips_lightning.backbones.caffe_alexnet import NET_TYPE
from lpips_lightning.backbones.definition import BACKBONES
from lpips_lightning.distances.weighted import DISTANCES
from lpips_lightning.evaluation.table5 import paper_row
from lpips_lightning.images.hints import EVALUATION
from lpips_lightning.io.tensor_files import read_record
from lpips_lightning.network import LPIPS
from lpips_lightning.weights import read_tensors

VDP = "cvvdp"
"""Name of ColorVideoVDP."""

_OPTIONS = ("calibration", "weights", "kmeans")
_MS_SSIM_SIDE = 160  # after 4 halvings, a shorter side is below the window of 11 pixels


@dataclass(frozen=True)
class Method:
    """A distance between two batches of images.

    Attributes:
        name: Name passed to `parse_method`.
        distance: Function of two image batches ``(N, 3, H, W)`` on [-1, 1], the reference first, returns ``(N,)``;
            lower is more similar.
        paper: Row of the paper's Table 5, or None.
        note: What the distance is, to cite; empty if the name says it.
    """

    name: str
    distance: Callable[[Tensor, Tensor], Tensor]
    paper: str | None
    note: str = ""


def parse_method(name: str) -> Method:
    """Build a method from its name.

    ``NET`` is LPIPS with its official calibration; ``NET:baseline`` is uncalibrated; ``NET:random`` has Gaussian
    backbone weights; ``NET:calibration=FILE`` uses your own calibration; ``NET:kmeans=FILE`` and ``NET:weights=FILE``
    use other backbone weights, uncalibrated unless the file includes a calibration. ``NET`` is a network name of
    `LPIPS`; ``caffe-alexnet`` needs ``random`` or ``weights=FILE``. ``NET:mean_pool``, ``NET:style``,
    ``NET:lpips_plus`` and sums such as ``NET:lpips+0.5*style`` are other distances on the same features; ``dists`` is
    ``vgg:dists``. The classical metrics are the keys of `OTHERS`. ``cvvdp`` is ColorVideoVDP,
    ``cvvdp:DISPLAY`` with another display model (see `lpips_lightning.evaluation.colorvideovdp`).

    Args:
        name: Name of the method.

    Returns:
        The method, with its weights loaded.

    Raises:
        ValueError: If the name is unknown.
        WeightsError: If weights are missing, damaged or of another architecture.
        ModuleNotFoundError: If the method needs a package that is not installed.

    Example:
        >>> x = torch.zeros(1, 3, 64, 64)
        >>> parse_method("l2").distance(x, x + 0.5)
        tensor([0.0625])
    """
    head, _, variant = name.partition(":")
    if head in OTHERS and not variant:
        return Method(name, OTHERS[head](), paper_row(head))
    if name == "dists":
        return _lpips(name, "vgg", "dists")
    if head == VDP and (variant or ":" not in name):
        return _color_video_vdp(name, variant)
    if head not in BACKBONES and head != NET_TYPE:
        known = ", ".join([*BACKBONES, "dists", *OTHERS, VDP])
        raise ValueError(
            f"method: expected one of {known}, or a network with a variant such as alex:baseline or"
            f" {NET_TYPE}:weights=FILE, got {name!r}"
        )
    return _lpips(name, head, variant)


def _lpips(name: str, net_type: str, variant: str) -> Method:
    option, _, file = variant.partition("=")
    if option in ("", "baseline") and not file:
        net = _net(net_type, calibrated=not option)
        return Method(name, net, paper_row(net_type, option or "lin"))
    if option == "random" and not file:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            net = _net(net_type, calibrated=False, weights="random")
        return Method(name, net, paper_row(net_type, "random"))
    if any(distance in variant for distance in DISTANCES) and not file:
        net = _net(net_type, distance=variant)
        return Method(name, lambda reference, other: net(other, reference), None)
    if option not in _OPTIONS or not file:
        distances = [distance for distance in DISTANCES if distance != "dists" or net_type == "vgg"]
        choices = ", ".join(["baseline", "random", *distances, *(f"{choice}=FILE" for choice in _OPTIONS)])
        raise ValueError(f"method: expected {net_type} with one of {choices}, got {name!r}")
    if option == "calibration":
        return Method(name, _net(net_type, calibration=file), paper_row(net_type, "lin"))
    has_calibration = any(key.startswith("calibration.") for key in read_tensors(Path(file).expanduser()))
    mode = (
        "kmeans"
        if option == "kmeans"
        else str(read_record(file).get("mode", ""))
        if file.endswith(".safetensors")
        else ""
    )
    net = _net(net_type, weights=file, calibrated=has_calibration)
    return Method(name, net, paper_row(net.net_type, mode) if mode else None)


def _net(net_type: str, **options: Any) -> LPIPS:
    net = LPIPS(net_type, **options)
    net.images = replace(net.images, hints=EVALUATION)
    return net


def _l2() -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, y: (_unit(x) - _unit(y)).square().mean((1, 2, 3))


def _l2_lab() -> Callable[[Tensor, Tensor], Tensor]:
    from kornia.color import rgb_to_lab

    # Scaled by 100, the approximate range of each channel.
    return lambda x, y: ((rgb_to_lab(_unit(x)) - rgb_to_lab(_unit(y))) / 100).square().mean((1, 2, 3))


def _psnr() -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, y: 10 * (_unit(x) - _unit(y)).square().mean((1, 2, 3)).log10()


def _ssim() -> Callable[[Tensor, Tensor], Tensor]:
    from torchmetrics.functional.image import structural_similarity_index_measure as ssim

    def distance(x: Tensor, y: Tensor) -> Tensor:
        similarity: Any = ssim(_unit(x), _unit(y), data_range=1.0, reduction="none")
        return 1 - torch.as_tensor(similarity).reshape(len(x))

    return distance


def _ms_ssim() -> Callable[[Tensor, Tensor], Tensor]:
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure as ms_ssim

    def distance(x: Tensor, y: Tensor) -> Tensor:
        height, width = x.shape[2:]
        if min(height, width) <= _MS_SSIM_SIDE:
            raise ValueError(
                f"ms-ssim: expected sides of more than {_MS_SSIM_SIDE} pixels, got {height}x{width}; "
                "use larger images (--size of `bapps evaluate`), or leave ms-ssim out"
            )
        return 1 - ms_ssim(_unit(x), _unit(y), data_range=1.0, reduction="none").reshape(len(x))

    return distance


def _fsim() -> Callable[[Tensor, Tensor], Tensor]:
    if find_spec("piq") is None:
        raise ModuleNotFoundError(
            'fsim: expected the package piq, which is not installed: pip install "lpips_lightning[piq]"'
        )
    from piq import fsim

    return lambda x, y: 1 - fsim(_unit(x), _unit(y), data_range=1.0, reduction="none")


def _color_video_vdp(name: str, display: str) -> Method:
    from lpips_lightning.evaluation.colorvideovdp import DISPLAY, color_video_vdp

    distance, about = color_video_vdp(display or DISPLAY)
    return Method(name, lambda x, y: distance(_unit(x), _unit(y)), None, f"{name}: {about}")


def _unit(images: Tensor) -> Tensor:
    """From [-1, 1] to [0, 1]."""
    return ((images + 1) / 2).clamp(0, 1)


OTHERS: dict[str, Callable[[], Callable[[Tensor, Tensor], Tensor]]] = {
    "l2": _l2,
    "l2-lab": _l2_lab,
    "psnr": _psnr,
    "ssim": _ssim,
    "ms-ssim": _ms_ssim,
    "fsim": _fsim,
}
"""Factories of the classical metrics, by name."""
