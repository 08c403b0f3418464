"""Temporal difference of videos (tLP) as a torchmetrics metric."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

import torch
from torch import Tensor
from typing_extensions import override

from lpips_lightning.backbones.definition import Backbone
from lpips_lightning.batch import SUM_DTYPE
from lpips_lightning.images.hints import METRIC
from lpips_lightning.images.ranges import DataRange, range_label
from lpips_lightning.metrics.indexed import METRIC_DEFAULTS, ImageMetric, MetricOptions, state_names
from lpips_lightning.options import with_options
from lpips_lightning.perceptual_distance import PerceptualDistance
from lpips_lightning.temporal import temporal_differences


@with_options(METRIC_DEFAULTS)
class TemporalLPIPS(ImageMetric):
    """Mean of ``|LPIPS(x_t, x_t+1) - LPIPS(y_t, y_t+1)|`` over all pairs of neighboring frames of all videos: tLP.

    0 if both videos change alike, whatever each frame looks like: report it beside LPIPS. Chu et al. 2020 (TecoGAN),
    whose tables print 100 times this number; see `lpips_lightning.functional.temporal_lpips`. The state is a sum and a
    count. Each frame is encoded once.

    A pair of frames counts only within one call: pass whole videos, or parts that share a frame. If a long video comes
    in parts without one, the pair across each border is missing from the mean.

    As input to `update` and `forward`: ``preds`` and ``target`` of shape ``(B, T, 3, H, W)``, T >= 2, floating on the
    range or uint8 on [0, 255]. As output: a 0-dimensional float32 tensor; NaN without videos.

    Args:
        net_type: A backbone's name, a custom backbone, a built `LPIPS` or any other `PerceptualDistance`.
        normalize: True is ``data_range=(0, 1)``, False is ``(-1, 1)``.
        data_range: Range of the videos, instead of `normalize`: ``(low, high)``, or ``high`` alone for ``(0, high)``.
        options: See `lpips_lightning.options.LPIPSOptions`.
        kwargs: See `torchmetrics.Metric`.

    Attributes:
        fingerprint: One line to cite: everything that determines the score.

    Raises:
        TypeError: If an option does not exist.
        ValueError: If an argument has an unknown value, or an option is given with a built network.
        WeightsError: If weights are missing, damaged or of another architecture.

    Example:
        >>> metric = TemporalLPIPS("embedded", data_range=(0, 1))
        >>> still = torch.zeros(2, 3, 3, 64, 64)
        >>> metric(still, still + 0.5)
        tensor(0.)
    """

    is_differentiable = True
    higher_is_better = False
    full_state_update = False
    plot_lower_bound = 0.0

    def __init__(
        self,
        net_type: str | Backbone | PerceptualDistance = "alex",
        normalize: bool = False,
        *,
        data_range: DataRange | None = None,
        **options: Unpack[MetricOptions],
    ) -> None:
        super().__init__(net_type, options)
        self.data_range = self._choose_range(normalize, data_range)
        self.fingerprint = f"tLP by {self.net.fingerprint}, {range_label(self.data_range)}"
        self._total, self._pairs = state_names(("total", "pairs"), self.fingerprint, self.net)
        self.add_state(self._total, default=torch.zeros((), dtype=SUM_DTYPE), dist_reduce_fx="sum")
        self.add_state(self._pairs, default=torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    @override
    def update(self, preds: Tensor, target: Tensor, index: Tensor | Sequence[int] | None = None) -> None:
        """Add a batch of videos.

        Args:
            preds: Videos ``(B, T, 3, H, W)``, T >= 2; B may be 0.
            target: Videos of the same shape.
            index: Dataset index of each video, ``(B,)``; a video that a `DistributedSampler` repeats counts once. Pass
                it in every update or in none.

        Raises:
            TypeError: If an argument is of the wrong type.
            ValueError: If shapes, sizes or devices do not match, videos have less than two frames, or pixel values are
                outside the range.
        """
        names = ("preds", "target")
        values = temporal_differences(
            self.net, preds, target, self.data_range, names=names, roles=("data", "data"), hints=METRIC
        )
        indices = self._checked_index(index, len(values))
        sums = (values if self._in_forward else values.detach()).sum(1, dtype=SUM_DTYPE)
        with self._exclusive():
            if indices is None:
                setattr(self, self._total, getattr(self, self._total) + sums.sum())
                setattr(self, self._pairs, getattr(self, self._pairs) + values.numel())
            else:
                self._store_rows(indices, torch.stack([sums, torch.full_like(sums, values.shape[1])], 1))

    @override
    def compute(self) -> Tensor:
        """Mean over all pairs of neighboring frames; NaN without videos."""
        self._flush_range_checks()
        total, pairs = getattr(self, self._total), getattr(self, self._pairs)
        rows = self._unique_rows(pairs)
        return (total / pairs if rows is None else rows[:, 0].sum() / rows[:, 1].sum()).float()
