"""LPIPS of files, folders, Pillow images, arrays and tensors, as ``lpips-lightning compare`` computes it."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, Unpack

import torch
from torch import Tensor

from lpips_lightning.backbones.definition import Backbone
from lpips_lightning.images.ranges import DataRange, parse_range
from lpips_lightning.network import LPIPS
from lpips_lightning.options import LPIPSOptions, with_options
from lpips_lightning.perceptual_distance import PerceptualDistance, check_repeatable

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image

    from lpips_lightning.comparison.measure import PairResult

Images: TypeAlias = "str | os.PathLike[str] | Image | NDArray[Any] | Tensor"
"""A path of an image, a video or a folder; a Pillow image; one or several images as an array or tensor."""

_SCORES = ("psnr", "ssim", "tlp")
# What errors call the options of the command, and how the function calls them.
_ARGUMENTS = {
    "--gray": "gray='repeat'",
    "--resize": "resize=",
    "--background": "background=",
    "--common": "common=True",
    "--in-order": "in_order=True",
    "--erode": "erode=True",
    "--mask": "mask=",
    "--precision fp32": "precision='fp32'",
    "in-order:": "in_order:",
    "leave --tlp out": "leave 'tlp' out",
    "tlp:": "metrics:",
}


@dataclass(frozen=True)
class Comparison:
    """Distances of several pairs of images.

    Attributes:
        names: Names of the pairs: of files in folders as in ``lpips-lightning compare``, indices of frames and batches.
        distances: LPIPS of each pair.
        fingerprint: One line to cite.
        psnr: PSNR of each pair in dB, infinite for equal images; empty unless asked for.
        ssim: SSIM of each pair; empty unless asked for.
        tlp: tLP of each frame, NaN for the first one of a video; empty unless asked for.
        notes: Sentences on files that were not compared.
        standard_errors: Standard error of each distance, over the draws of an `Ensemble`; empty for other nets.
    """

    names: list[str]
    distances: list[float]
    fingerprint: str
    psnr: list[float] = field(default_factory=list)
    ssim: list[float] = field(default_factory=list)
    tlp: list[float] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    standard_errors: list[float] = field(default_factory=list)

    @property
    def mean(self) -> float:
        """Mean distance."""
        return sum(self.distances) / len(self.distances)

    @property
    def mean_tlp(self) -> float:
        """Mean tLP over all frames with one before; NaN unless asked for."""
        values = [value for value in self.tlp if not math.isnan(value)]
        return sum(values) / len(values) if values else math.nan


@with_options()
def compare(
    a: Images,
    b: Images,
    net: str | Backbone | PerceptualDistance = "alex",
    *,
    data_range: DataRange | None = None,
    metrics: Sequence[Literal["psnr", "ssim", "tlp"]] = (),
    mask: str | os.PathLike[str] | None = None,
    erode: bool = False,
    common: bool = False,
    in_order: bool = False,
    batch_size: int | None = None,
    device: str | torch.device | None = None,
    **options: Unpack[LPIPSOptions],
) -> float | Comparison:
    """LPIPS of two images or of many pairs, with the decoding, checks and values of ``lpips-lightning compare``.

    Files are decoded exactly, 16 bits per channel and EXIF orientation included. No gradient: use `LPIPS` or
    `PerceptualLoss` for that. `LPIPS` is also faster for many calls: this function builds a network each time, unless
    `net` is one.

    Args:
        a: A path of an image, a video or a folder of images; a Pillow image; an array ``(H, W, 3)`` or a batch
            ``(N, H, W, 3)``, uint8, uint16 or floating; a tensor ``(3, H, W)`` or ``(N, 3, H, W)``, uint8 or floating.
            Gray images have no or one channel, and need ``gray="repeat"``.
        b: What `a` is compared with. Files, Pillow images, arrays and tensors may be mixed, folders and videos not.
        net: ``"alex"``, ``"vgg"``, ``"squeeze"``, ``"alex-st"``, ``"vgg-st"``, or ``"embedded"`` or ``"embedded-vgg"``,
            which ship with the package, a custom backbone, or a built `LPIPS`, `WeightedSum` or `Ensemble`.
        data_range: Range of floating-point images: ``(low, high)``, or ``high`` alone for ``(0, high)``. uint8 and
            uint16 images have their full range.
        metrics: Other scores: ``"psnr"`` (dB, all pixels and RGB, peak 1, no border crop) and ``"ssim"`` (RGB, Gaussian
            window 11x11, sigma 1.5, no border crop, as in torchmetrics), of the images that the network gets;
            ``"tlp"`` of two videos or folders of frames: the difference of both sides' LPIPS from frame to frame (see
            `lpips_lightning.functional.temporal_lpips`), where each sub-folder is a video.
        mask: File of an image whose white pixels count, or a folder of them by name. PSNR is then that of its pixels.
        erode: With `mask`: black pixels have no influence at all.
        common: Of two folders compare only names that both have.
        in_order: Match the sorted files of two folders by position, not by name.
        batch_size: Pairs per batch; None: 24, fewer for large images.
        device: Device to compute on; None: that of a given tensor, else the CPU.
        options: See `lpips_lightning.options.LPIPSOptions`.

    Returns:
        The distance of two images. A `Comparison` for folders, videos, batches, or with `metrics`: its ``names``,
        ``distances``, ``mean``, ``fingerprint``, ``psnr``, ``ssim`` and ``tlp``.

    Raises:
        FileNotFoundError: If a path does not exist.
        ValueError: If an argument or an image is invalid, floating-point images have no `data_range`, or any pair
            cannot be compared.
        TypeError: If `a` or `b` is none of these.
        WeightsError: If weights are missing or damaged.

    Example:
        >>> import numpy as np
        >>> image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        >>> compare(image, image, net="embedded")
        0.0
        >>> found = compare(image, 255 - image, net="embedded", metrics=["psnr"])
        >>> found.names, [round(value, 1) for value in found.psnr]
        (['0'], [4.7])
    """
    if isinstance(metrics, str) or any(metric not in _SCORES for metric in metrics):
        raise ValueError(f"metrics: expected some of {_SCORES}, got {metrics!r}")
    if mask is not None and "ssim" in metrics:
        raise ValueError("metrics: expected no 'ssim' with mask=: its windows reach over the border of a mask")
    if "tlp" in metrics and (mask is not None or common):
        other = "mask=" if mask is not None else "common=True"
        way_out = "; remove the frames that only one folder has" * common
        raise ValueError(
            f"metrics: expected no 'tlp' with {other}: it compares whole frames that follow each other{way_out}"
        )
    if erode and mask is None:
        raise ValueError("erode: expected mask= with erode=True, got none")
    from lpips_lightning.comparison.inputs import measure_inputs

    network = LPIPS.of(net, options, compare)
    network.images.check_pictures("net")
    check_repeatable(network)
    if data_range is not None:
        network.check_range(parse_range(data_range))
    given = {"data_range": data_range, "mask": mask, "common": common, "in_order": in_order}
    compute = {"erode": erode, "batch_size": batch_size, "scores": [score for score in _SCORES if score in metrics]}
    try:
        results, notes, single = measure_inputs(a, b, network, device, given, compute)
    except (ValueError, FileNotFoundError) as error:
        raise _renamed(error) from None
    if single and not metrics:
        return results[0].distance
    return _comparison(results, network.fingerprint, notes, given | compute)


def _comparison(
    results: Sequence[PairResult], fingerprint: str, notes: list[str], options: dict[str, Any]
) -> Comparison:
    from lpips_lightning.comparison.fidelity import definition

    mask = options["mask"]
    if mask is not None:
        fingerprint += f", mask {Path(mask).name}{', eroded' if options['erode'] else ''}"
    fingerprint += definition(options["scores"], masked=mask is not None)
    scores = {score: [one.scores[score] for one in results] for score in options["scores"]}
    names, distances = [one.pair.name for one in results], [one.distance for one in results]
    errors = [one.standard_error for one in results if not math.isnan(one.standard_error)]
    return Comparison(names, distances, fingerprint, **scores, notes=notes, standard_errors=errors)


def _renamed(error: Exception) -> Exception:
    """The error, with the arguments of `compare` in place of the command's options."""
    text = str(error)
    for option, argument in _ARGUMENTS.items():
        text = text.replace(option, argument)
    kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
    return error if text == str(error) else kind(text)
