"""LPIPS as a function of two batches of images."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Literal, TypeAlias, get_args

from torch import Tensor

from lpips_lightning.frozen import WeightsSource
from lpips_lightning.images import DataRange, parse_range
from lpips_lightning.network import LPIPS, Precision

__all__ = ["learned_perceptual_image_patch_similarity"]

Reduction: TypeAlias = Literal["mean", "sum", "none"] | None


def learned_perceptual_image_patch_similarity(
    img1: Tensor,
    img2: Tensor,
    net_type: str = "alex",
    reduction: Reduction = "mean",
    normalize: bool = False,
    *,
    data_range: DataRange | None = None,
    version: str = "0.1",
    calibrated: bool = True,
    weights: WeightsSource = None,
    calibration: WeightsSource = None,
    precision: Precision = "fp32",
    validate_args: bool = True,
    spatial: bool = False,
    per_layer: bool = False,
) -> Tensor | dict[str, Tensor]:
    """LPIPS of two batches; arguments up to `normalize` are torchmetrics'.

    The last few networks that were asked for stay in memory, unless their weights were handed over as tensors.

    Args:
        img1: Images ``(N, 3, H, W)``, floating on the range or uint8 on [0, 255].
        img2: Images of the same shape.
        net_type: ``"alex"``, ``"vgg"``, ``"squeeze"`` or ``"embedded"``, which ships.
        reduction: Over the batch: ``"mean"``, ``"sum"``, or ``"none"`` (None) for ``(N,)``.
        normalize: True if images are on [0, 1], False if on [-1, 1].
        data_range: Instead of `normalize`: ``(low, high)``, or ``high`` alone for ``(0, high)``.
        version: ``"0.1"`` or ``"0.0"``.
        calibrated: False for the baseline.
        weights: See `LPIPS`.
        calibration: See `LPIPS`.
        precision: See `LPIPS`.
        validate_args: Check pixel values; this waits for the device.
        spatial: Maps instead of means: every image's term is ``(1, H, W)``.
        per_layer: A dict of the layers' terms instead of their sum.

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
    options = (net_type, version, calibrated, weights, calibration, precision, validate_args)
    handed_over = isinstance(weights, Mapping) or isinstance(calibration, Mapping) or weights == "random"
    net = _make(*options) if handed_over else _kept(*options)  # type: ignore[arg-type]
    result = net(img1, img2, low_high, spatial=spatial, per_layer=per_layer, names=("img1", "img2"))
    if isinstance(result, dict):
        return {layer: reduce(term, reduction) for layer, term in result.items()}
    return reduce(result, reduction)


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


def reduce(scores: Tensor, reduction: Reduction) -> Tensor:
    """Scores of a batch -> one number, or themselves.

    Args:
        scores: Shape ``(N, ...)``.
        reduction: Over the first dimension.

    Returns:
        Shape ``(...)``, or ``(N, ...)`` for ``"none"``.
    """
    if reduction == "mean":
        return scores.mean(0)
    if reduction == "sum":
        return scores.sum(0)
    return scores


def _make(net_type: str, *options: Any) -> LPIPS:
    names = ("version", "calibrated", "weights", "calibration", "precision", "validate_args")
    return LPIPS(net_type, **dict(zip(names, options, strict=True)))


_kept = lru_cache(maxsize=4)(_make)
