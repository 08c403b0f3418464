"""Diversity of a generator's samples as a torchmetrics metric."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

import torch
from torch import Tensor
from typing_extensions import override

from lpips_lightning.backbones.definition import Backbone
from lpips_lightning.batch import SUM_DTYPE
from lpips_lightning.images.preprocessing import check_dense
from lpips_lightning.images.ranges import DataRange, range_label
from lpips_lightning.metrics.indexed import METRIC_DEFAULTS, ImageMetric, MetricOptions, state_names
from lpips_lightning.options import with_options
from lpips_lightning.perceptual_distance import PerceptualDistance


@with_options(METRIC_DEFAULTS)
class LPIPSDiversity(ImageMetric):
    """Mean LPIPS over all pairs of a group's samples, averaged over groups; higher is more diverse.

    A group holds a generator's samples for one condition (Zhu et al. 2017, "Toward Multimodal Image-to-Image
    Translation", section 5.1). The backbone runs once for each image. On an accelerator, the check of pixel values does
    not synchronize in `update`: `compute` raises its errors.

    As input to `update` and `forward`: ``images`` of shape ``(K, 3, H, W)`` for one group or ``(G, K, 3, H, W)`` for
    several, K >= 2. As output: a 0-dimensional float32 tensor; NaN without groups.

    Args:
        net_type: ``"alex"``, ``"vgg"``, ``"squeeze"``; ``"alex-st"`` or ``"vgg-st"``, which tolerate shifts;
            ``"embedded"`` or ``"embedded-vgg"``, which ship with the package; a custom backbone from
            `lpips_lightning.backbones`; or a built `LPIPS`, `WeightedSum` or `Ensemble`, whose frozen networks and
            options are used.
        normalize: torchmetrics' argument: True is ``data_range=(0, 1)``, False is ``(-1, 1)``.
        data_range: Range of the images, instead of `normalize`: ``(low, high)``, or ``high`` alone for ``(0, high)``.
            None for a backbone without a range.
        options: See `lpips_lightning.options.LPIPSOptions`.
        kwargs: See `torchmetrics.Metric`.

    Attributes:
        fingerprint: One line to cite: everything that determines the score.

    Raises:
        TypeError: If an option does not exist.
        ValueError: If an argument has an unknown value, or an option is given with a built network.
        WeightsError: If weights are missing, damaged or of another architecture.

    Example:
        >>> metric = LPIPSDiversity("squeeze", data_range=(0, 1), weights="random")
        >>> metric(torch.ones(4, 3, 64, 64))
        tensor(0.)
    """

    is_differentiable = True
    higher_is_better = True
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
        self.fingerprint = f"diversity by {self.net.fingerprint}, {range_label(self.data_range)}"
        self._total, self._groups = state_names(("total", "groups"), self.fingerprint, self.net)
        self.add_state(self._total, default=torch.zeros((), dtype=SUM_DTYPE), dist_reduce_fx="sum")
        self.add_state(self._groups, default=torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    @override
    def update(self, images: Tensor, index: Tensor | Sequence[int] | None = None) -> None:
        """Add one group or several.

        Args:
            images: ``(K, 3, H, W)`` or ``(G, K, 3, H, W)``, floating on the range or uint8 on [0, 255]; K >= 2.
            index: Dataset index of each group, ``(G,)``; a group that a `DistributedSampler` repeats counts once. Pass
                it in every update or in none.

        Raises:
            TypeError: If `images` is of the wrong type.
            ValueError: If the shape or size is wrong, K is below 2, or pixel values are outside the range.
        """
        check_dense(images, "images", "a tensor (K, 3, H, W) or (G, K, 3, H, W)")
        groups = images.unsqueeze(0) if images.dim() == 4 else images
        if groups.dim() != 5 or groups.shape[1] < 2:
            raise ValueError(
                "images: expected (K, 3, H, W) or (G, K, 3, H, W) with at least 2 samples per group, "
                f"got {tuple(images.shape)}"
            )
        indices = self._checked_index(index, len(groups))
        for group in groups:
            self.net.check_shapes(group, group, ("images", "images"))
        means = [self._mean(group) for group in groups]
        with self._exclusive():
            self._add(means, indices)

    def _add(self, means: list[Tensor], indices: Tensor | None) -> None:
        means = means if self._in_forward else [mean.detach() for mean in means]
        if indices is not None:
            if means:
                self._store_rows(indices, torch.stack(means).unsqueeze(1))
            return
        for mean in means:
            setattr(self, self._total, getattr(self, self._total) + mean)
        setattr(self, self._groups, getattr(self, self._groups) + len(means))

    def _mean(self, group: Tensor) -> Tensor:
        samples = len(group)
        budget = self.net.memory_budget or 2**30  # bytes of features; the default of `pairwise`
        distances = self.net.pairwise(group, data_range=self.data_range, memory_budget=budget)
        return distances.sum(dtype=SUM_DTYPE) / (samples * (samples - 1))

    @override
    def compute(self) -> Tensor:
        """Mean over groups of the mean over pairs; NaN without groups."""
        self._flush_range_checks()
        total, groups = getattr(self, self._total), getattr(self, self._groups)
        rows = self._unique_rows(groups)
        return (total / groups if rows is None else rows.mean()).float()
