"""LPIPS as a function of two batches of images."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import lru_cache
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from lpips_lightning.backbones import Backbone
from lpips_lightning.frozen import WeightsSource
from lpips_lightning.images import Background, Gray
from lpips_lightning.network import LPIPS, Measurement, Precision
from lpips_lightning.ranges import DataRange, parse_range

__all__ = ["learned_perceptual_image_patch_similarity"]

Reduction: TypeAlias = Literal["mean", "sum", "none"] | None


def learned_perceptual_image_patch_similarity(
    img1: Tensor,
    img2: Tensor,
    net_type: str | Backbone = "alex",
    reduction: Reduction = "mean",
    normalize: bool = False,
    *,
    data_range: DataRange | None = None,
    version: str = "0.1",
    calibrated: bool = True,
    weights: WeightsSource = None,
    calibration: WeightsSource = None,
    precision: Precision = "fp32",
    gray: Gray | None = None,
    background: Background | None = None,
    resize: int | Sequence[int] | None = None,
    frame_chunk: int | None = None,
    validate_args: bool = True,
    spatial: bool = False,
    per_layer: bool = False,
    mask: Tensor | None = None,
    erode: bool = False,
) -> Tensor | dict[str, Tensor]:
    """LPIPS of two batches; arguments up to `normalize` are torchmetrics'.

    The last few networks that were asked for stay in memory, unless their weights were handed over as tensors.

    Args:
        img1: Images ``(N, 3, H, W)`` or videos ``(B, T, 3, H, W)``, floating on the range or uint8 on [0, 255].
        img2: Images of the same shape.
        net_type: ``"alex"``, ``"vgg"``, ``"squeeze"`` or ``"embedded"``, which ships; or from `lpips_lightning.trunks`.
        reduction: Over the batch: ``"mean"``, ``"sum"``, or ``"none"`` (None) for ``(N,)``; for videos over all frames,
            or ``(B, T)``.
        normalize: True if images are on [0, 1], False if on [-1, 1].
        data_range: Instead of `normalize`: ``(low, high)``, or ``high`` alone for ``(0, high)``.
        version: ``"0.1"`` or ``"0.0"``.
        calibrated: False for the baseline.
        weights: See `LPIPS`.
        calibration: See `LPIPS`.
        precision: See `LPIPS`.
        gray: See `LPIPS`.
        background: See `LPIPS`.
        resize: See `LPIPS`.
        frame_chunk: See `LPIPS`.
        validate_args: Check pixel values; this waits for the device.
        spatial: Maps instead of means: every image's term is ``(1, H, W)``.
        per_layer: A dict of the layers' terms instead of their sum.
        mask: Which pixels count, see `LPIPS.forward`. Images of which nothing is left are NaN under ``"none"``, and
            left out of mean and sum.
        erode: See `LPIPS.forward`.

    Returns:
        A 0-dimensional tensor, or ``(N,)`` for ``"none"``; float32, float64 for float64 images.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If an argument, a shape or a pixel value does not fit.
        WeightsError: If weights are missing, damaged or of another architecture.

    Example:
        >>> import torch
        >>> from lpips_lightning.backbones import BACKBONES, random_trunk
        >>> x = torch.zeros(2, 3, 64, 64)
        >>> trunk = random_trunk(BACKBONES["squeeze"], seed=0)
        >>> learned_perceptual_image_patch_similarity(x, x, "squeeze", weights=trunk)
        tensor(0.)
    """
    check_reduction(reduction)
    low_high = choose_range(normalize, data_range)
    options = (
        version,
        calibrated,
        weights,
        calibration,
        precision,
        gray,
        background,
        resize,
        frame_chunk,
        validate_args,
    )
    lasting = weights != "random" and all(isinstance(option, Hashable) for option in (net_type, *options))
    net = (_kept if lasting else _make)(net_type, *options)  # type: ignore[arg-type]
    shown = net.measure(
        img1, img2, low_high, spatial=spatial, per_layer=per_layer, mask=mask, erode=erode, names=("img1", "img2")
    )
    return reduced(shown, reduction)


def check_reduction(reduction: Reduction) -> None:
    """Refuse a reduction that does not exist.

    Args:
        reduction: Over the batch.

    Raises:
        ValueError: If it is none of the known ones.
    """
    known = (*get_args(get_args(Reduction)[0]), None)
    if reduction not in known:
        raise ValueError(f"reduction: expected one of {known}, got {reduction!r}")


def choose_range(normalize: bool, data_range: DataRange | None) -> tuple[float, float]:
    """The range that torchmetrics' `normalize` and our `data_range` say together.

    Args:
        normalize: True for [0, 1], False for [-1, 1].
        data_range: Overrides it.

    Returns:
        ``(low, high)``.

    Raises:
        ValueError: If `normalize` is no bool, or both are given.
    """
    if not isinstance(normalize, bool):
        raise ValueError(f"normalize: expected True or False, got {normalize!r}")
    if data_range is None:
        return (0.0, 1.0) if normalize else (-1.0, 1.0)
    if normalize:
        raise ValueError(f"data_range: expected None with normalize=True, got {data_range!r}; leave one of them out")
    return parse_range(data_range)


def reduced(measurement: Measurement, reduction: Reduction) -> Tensor | dict[str, Tensor]:
    """Distances of a batch -> one number, or themselves.

    Args:
        measurement: From `LPIPS.measure`.
        reduction: Over the batch, and over the frames of videos.

    Returns:
        0-dimensional, or ``(1, H, W)`` for maps, or as they are for ``"none"``; a dict of such for a dict. Images of
        which a mask left nothing enter neither mean nor sum; the mean of nothing is NaN.
    """
    values, counted = measurement.values, measurement.counted
    if isinstance(values, dict):
        return {layer: _reduced(term, counted, measurement.dims, reduction) for layer, term in values.items()}
    return _reduced(values, counted, measurement.dims, reduction)


def _reduced(values: Tensor, counted: Tensor | None, dims: int, reduction: Reduction) -> Tensor:
    if reduction in ("none", None):
        return values
    batch = tuple(range(dims))
    if counted is None:
        return values.mean(batch) if reduction == "mean" else values.sum(batch)
    total, count = torch.where(counted, values, 0).sum(batch), counted.sum()
    if reduction == "sum":
        return total
    return torch.where(count == 0, float("nan"), total / count.clamp_min(1))  # no 0 / 0: its gradient is NaN


def _make(net_type: str | Backbone, *options: Any) -> LPIPS:
    images = ("gray", "background", "resize", "frame_chunk")
    names = ("version", "calibrated", "weights", "calibration", "precision", *images, "validate_args")
    return LPIPS(net_type, **dict(zip(names, options, strict=True)))


_kept = lru_cache(maxsize=4, typed=True)(_make)  # 1 is no True, for the checks of `_make`
