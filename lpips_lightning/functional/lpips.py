"""LPIPS as a function of two batches of images."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import lru_cache
from typing import Any, Literal, Unpack, overload

import torch
from torch import Tensor

from lpips_lightning.backbones.compiled import publish, published
from lpips_lightning.backbones.definition import Backbone
from lpips_lightning.backbones.frozen import without_modes
from lpips_lightning.functional.reduction import Reduction, check_reduction, choose_range, reduced
from lpips_lightning.images.hints import METRIC
from lpips_lightning.images.ranges import DataRange
from lpips_lightning.network import LPIPS
from lpips_lightning.options import LPIPSOptions, check_names, check_not_given, with_options
from lpips_lightning.perceptual_distance import PerceptualDistance, measure, roles_of


@overload
def learned_perceptual_image_patch_similarity(
    img1: Tensor,
    img2: Tensor,
    net_type: str | Backbone | PerceptualDistance = "alex",
    reduction: Reduction = "mean",
    normalize: bool = False,
    *,
    data_range: DataRange | None = None,
    spatial: bool = False,
    per_layer: Literal[False] = False,
    mask: Tensor | None = None,
    erode: bool = False,
    **options: Unpack[LPIPSOptions],
) -> Tensor: ...


@overload
def learned_perceptual_image_patch_similarity(
    img1: Tensor,
    img2: Tensor,
    net_type: str | Backbone | PerceptualDistance = "alex",
    reduction: Reduction = "mean",
    normalize: bool = False,
    *,
    data_range: DataRange | None = None,
    spatial: bool = False,
    per_layer: Literal[True],
    mask: Tensor | None = None,
    erode: bool = False,
    **options: Unpack[LPIPSOptions],
) -> dict[str, Tensor]: ...


@overload
def learned_perceptual_image_patch_similarity(
    img1: Tensor,
    img2: Tensor,
    net_type: str | Backbone | PerceptualDistance = "alex",
    reduction: Reduction = "mean",
    normalize: bool = False,
    *,
    data_range: DataRange | None = None,
    spatial: bool = False,
    per_layer: bool,
    mask: Tensor | None = None,
    erode: bool = False,
    **options: Unpack[LPIPSOptions],
) -> Tensor | dict[str, Tensor]: ...


@with_options()
def learned_perceptual_image_patch_similarity(
    img1: Tensor,
    img2: Tensor,
    net_type: str | Backbone | PerceptualDistance = "alex",
    reduction: Reduction = "mean",
    normalize: bool = False,
    *,
    data_range: DataRange | None = None,
    spatial: bool = False,
    per_layer: bool = False,
    mask: Tensor | None = None,
    erode: bool = False,
    **options: Unpack[LPIPSOptions],
) -> Tensor | dict[str, Tensor]:
    """LPIPS of two batches; arguments up to `normalize` are torchmetrics'.

    The last four networks stay in memory, except networks with random weights or weights passed as tensors.

    Args:
        img1: Images ``(N, 3, H, W)`` or videos ``(B, T, 3, H, W)``, floating on the range or uint8 on [0, 255]. Images
            that require grad may have any values, see `LPIPS.forward`.
        img2: Images of the same shape.
        net_type: ``"alex"``, ``"vgg"``, ``"squeeze"``; ``"alex-st"`` or ``"vgg-st"``, which tolerate shifts;
            ``"embedded"`` or ``"embedded-vgg"``, which ship with the package; a custom backbone from
            `lpips_lightning.backbones`; or a built `LPIPS`, `WeightedSum` or `Ensemble`, whose frozen networks and
            options are used.
        reduction: Over the batch and the frames of videos: ``"mean"``, ``"sum"``, or ``"none"`` (None).
        normalize: torchmetrics' argument: True is ``data_range=(0, 1)``, False is ``(-1, 1)``.
        data_range: Range of the images, instead of `normalize`: ``(low, high)``, or ``high`` alone for ``(0, high)``.
            None for a backbone without a range.
        spatial: Return distance maps, ``(1, H, W)`` for each image.
        per_layer: Return a dict of the layers' terms instead of their sum.
        mask: Weight of each pixel, see `LPIPS.forward`. Images that the mask excludes completely do not count in mean
            and sum, and are NaN for ``"none"``.
        erode: See `LPIPS.forward`.
        options: See `lpips_lightning.options.LPIPSOptions`. Checking pixel values synchronizes with the device.

    Returns:
        0-dimensional tensor; ``(N,)`` (``(B, T)`` for videos) for reduction ``"none"``; with trailing dimensions
        ``(1, H, W)`` if `spatial`; a dict of these if `per_layer`. float32; float64 for float64 images.

    Raises:
        TypeError: If an argument is of the wrong type, or an option does not exist.
        ValueError: If an argument, shape or pixel value is invalid, or an option is given with a built network.
        WeightsError: If weights are missing, damaged or of another architecture.

    Example:
        >>> import torch
        >>> from lpips_lightning.backbones.definition import BACKBONES
        >>> from lpips_lightning.backbones.extractor import random_backbone
        >>> x = torch.zeros(2, 3, 64, 64)
        >>> backbone = random_backbone(BACKBONES["squeeze"], seed=0)
        >>> learned_perceptual_image_patch_similarity(x, x, "squeeze", weights=backbone)
        tensor(0.)
    """
    check_reduction(reduction)
    net = cached_network(net_type, options, learned_perceptual_image_patch_similarity)
    low_high = choose_range(net.images, normalize, data_range)
    distances = measure(
        net,
        img1,
        img2,
        low_high,
        spatial=spatial,
        per_layer=per_layer,
        mask=mask,
        erode=erode,
        names=("img1", "img2"),
        roles=roles_of(img1, img2),
        hints=METRIC,
    )
    return reduced(distances, reduction)


def cached_network(
    net_type: str | Backbone | PerceptualDistance, options: LPIPSOptions, owner: Callable[..., Any]
) -> PerceptualDistance:
    """The network of a function: a built one, or one of the last four.

    Args:
        net_type: See `learned_perceptual_image_patch_similarity`.
        options: Options of the network.
        owner: The function that they were given to, for errors.
    """
    check_names(options, owner)
    if isinstance(net_type, PerceptualDistance):
        check_not_given(options)
        return net_type
    given: dict[str, Any] = dict(sorted(options.items()))
    cached = given.get("weights") != "random" and all(isinstance(one, Hashable) for one in (net_type, *given.values()))
    if cached and torch.compiler.is_dynamo_compiling():
        compiled: PerceptualDistance = published(_load_for_compile(net_type, **given))
        return compiled
    return (_cached if cached else LPIPS)(net_type, **given)


_cached = lru_cache(maxsize=4, typed=True)(LPIPS)  # typed: 1 must not hit the entry of True


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _load_for_compile(net_type: str | Backbone, **given: Any) -> str:
    with without_modes():
        found = _cached(net_type, **given)
    # Modules of one structure have one `repr`, whatever their weights: the specification tells their backbones apart.
    return publish(f"function {net_type!r} {given} {found.specification}", found)
