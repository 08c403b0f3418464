"""Temporal difference of videos (tLP) as a function of two batches."""

from __future__ import annotations

from typing import Literal, Unpack

from torch import Tensor

from lpips_lightning.backbones.definition import Backbone
from lpips_lightning.functional.lpips import cached_network
from lpips_lightning.functional.reduction import check_reduction, choose_range
from lpips_lightning.images.hints import METRIC
from lpips_lightning.images.ranges import DataRange
from lpips_lightning.options import LPIPSOptions, with_options
from lpips_lightning.perceptual_distance import PerceptualDistance, roles_of
from lpips_lightning.temporal import temporal_differences


@with_options()
def temporal_lpips(
    preds: Tensor,
    target: Tensor,
    net_type: str | Backbone | PerceptualDistance = "alex",
    reduction: Literal["mean", "sum", "none"] | None = "mean",
    normalize: bool = False,
    *,
    data_range: DataRange | None = None,
    **options: Unpack[LPIPSOptions],
) -> Tensor:
    """How differently two videos change: tLP, the mean of ``|LPIPS(x_t, x_t+1) - LPIPS(y_t, y_t+1)|``.

    0 if both change alike, whatever each frame looks like: report it beside LPIPS. Chu et al. 2020 ("Learning temporal
    coherence via self-supervision for GAN-based video generation", TecoGAN), section 5.3, with the AlexNet backbone;
    the mean is over all pairs of frames, the "total avg" of their ``metrics.py``, whose "folder avg" is the mean of the
    clips' means. Their tables print 100 times this number, and their script leaves out two frames at each end of a clip
    and crops: do so before the call to compare with them.

    Differentiable. Videos that require grad are predictions of a network in training: any values pass unclamped.

    Args:
        preds: Videos ``(B, T, 3, H, W)``, T >= 2, floating on the range or uint8 on [0, 255].
        target: Videos of the same shape.
        net_type: A backbone's name, a custom backbone, a built `LPIPS` or any other `PerceptualDistance`.
        reduction: Over videos and pairs of frames: ``"mean"``, ``"sum"``, or ``"none"`` (None).
        normalize: True is ``data_range=(0, 1)``, False is ``(-1, 1)``.
        data_range: Range of the videos, instead of `normalize`: ``(low, high)``, or ``high`` alone for ``(0, high)``.
        options: See `lpips_lightning.options.LPIPSOptions`.

    Returns:
        0-dimensional tensor; ``(B, T - 1)`` for reduction ``"none"``. float32; float64 for float64 videos.

    Raises:
        TypeError: If an argument is of the wrong type, or an option does not exist.
        ValueError: If an argument, shape or pixel value is invalid, or videos have less than two frames.
        WeightsError: If weights are missing, damaged or of another architecture.

    Example:
        >>> import torch
        >>> still = torch.zeros(1, 3, 3, 64, 64)
        >>> flicker = torch.stack([torch.zeros(3, 64, 64), torch.ones(3, 64, 64), torch.zeros(3, 64, 64)])[None]
        >>> temporal_lpips(still, still + 0.5, "embedded", data_range=1.0)  # other frames, the same changes: none
        tensor(0.)
        >>> temporal_lpips(flicker, still, "embedded", "none", data_range=1.0).shape
        torch.Size([1, 2])
    """
    check_reduction(reduction)
    net = cached_network(net_type, options, temporal_lpips)
    low_high = choose_range(net.images, normalize, data_range)
    names, roles = ("preds", "target"), roles_of(preds, target)
    values = temporal_differences(net, preds, target, low_high, names=names, roles=roles, hints=METRIC)
    if reduction in ("none", None):
        return values
    return values.mean() if reduction == "mean" else values.sum()
