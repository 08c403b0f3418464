"""How different the samples of a generator are, as a torchmetrics metric."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from lpips_lightning.backbones import Backbone
from lpips_lightning.frozen import WeightsSource
from lpips_lightning.functional import choose_range
from lpips_lightning.images import Background, Gray, check_dense
from lpips_lightning.network import LPIPS, Precision
from lpips_lightning.numbered import EXACT
from lpips_lightning.ranges import DataRange
from lpips_lightning.watched import WatchedMetric

__all__ = ["LPIPSDiversity"]


class LPIPSDiversity(WatchedMetric):
    """Mean LPIPS over all pairs of a group's samples, averaged over groups; higher is more diverse.

    A group holds the samples a generator drew for one condition (Zhu et al. 2017, "Toward Multimodal Image-to-Image
    Translation", section 5.1). Each image passes the trunk once, whatever the number of pairs.

    As input to `update` and `forward`: ``images`` of shape ``(K, 3, H, W)`` for one group or ``(G, K, 3, H, W)`` for
    several, K >= 2. As output: a 0-dimensional float32 tensor; NaN for no group.

    Args:
        net_type: ``"alex"``, ``"vgg"``, ``"squeeze"`` or ``"embedded"``, which ships.
        normalize: True if images are on [0, 1], False if on [-1, 1].
        data_range: Instead of `normalize`: ``(low, high)``, or ``high`` alone for ``(0, high)``.
        version: ``"0.1"`` or ``"0.0"``.
        calibrated: False for the baseline.
        weights: See `LPIPS`.
        calibration: See `LPIPS`.
        precision: Of the trunk; ``"fp32"`` also under autocast.
        gray: See `LPIPS`.
        background: See `LPIPS`.
        resize: See `LPIPS`.
        validate_args: Check pixel values. On an accelerator no update waits for the check: `compute` raises what it
            finds. Shapes are always checked.
        kwargs: See `torchmetrics.Metric`.

    Attributes:
        fingerprint: One citeable line: everything that decides the number.

    Raises:
        ValueError: If an argument is none of the known ones.
        WeightsError: If weights are missing, damaged or of another architecture.

    Example:
        >>> metric = LPIPSDiversity("squeeze", normalize=True, weights="random")
        >>> metric(torch.ones(4, 3, 64, 64))
        tensor(0.)
    """

    is_differentiable = True
    higher_is_better = True
    full_state_update = False
    plot_lower_bound = 0.0

    total: Tensor
    groups: Tensor

    def __init__(
        self,
        net_type: str | Backbone = "alex",
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
        validate_args: bool = True,
        **kwargs: Any,
    ) -> None:
        low_high = choose_range(normalize, data_range)
        net = LPIPS(
            net_type,
            version=version,
            calibrated=calibrated,
            weights=weights,
            calibration=calibration,
            precision=precision,
            gray=gray,
            background=background,
            resize=resize,
            validate_args=validate_args,
        )
        super().__init__(net, **kwargs)
        self.data_range = low_high
        self.fingerprint = f"diversity by {self.net.fingerprint}, range {list(self.data_range)}"
        self.add_state("total", default=torch.zeros((), dtype=EXACT), dist_reduce_fx="sum")
        self.add_state("groups", default=torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    @override
    def update(self, images: Tensor, index: Tensor | Sequence[int] | None = None) -> None:
        """Add one group or several.

        Args:
            images: ``(K, 3, H, W)`` or ``(G, K, 3, H, W)``, floating on the range or uint8 on [0, 255]; K >= 2.
            index: Number in the data set of each group, ``(G,)``; what comes again, as a distributed sampler has it,
                is counted once. In every update or in none.

        Raises:
            TypeError: If it is not an image batch by its type.
            ValueError: If a shape or a side does not fit, K is below 2, or pixel values are off the range.
        """
        check_dense(images, "images", "a tensor (K, 3, H, W) or (G, K, 3, H, W)")
        groups = images.unsqueeze(0) if images.dim() == 4 else images
        if groups.dim() != 5 or groups.shape[1] < 2:
            raise ValueError(
                "images: expected (K, 3, H, W) or (G, K, 3, H, W) with at least 2 samples K a group, "
                f"got {tuple(images.shape)}"
            )
        numbers = self._checked_index(index, len(groups))
        for group in groups:
            self.net.check_shapes(group, group, ("images", "images"))
        means = [self._mean(group) for group in groups]
        if numbers is not None:
            if means:
                self._keep(numbers, torch.stack(means).unsqueeze(1))
            return
        for mean in means:
            self.total = self.total + mean
        self.groups = self.groups + len(groups)

    def _mean(self, group: Tensor) -> Tensor:
        samples = len(group)
        distances = self.net.pairwise(group, data_range=self.data_range)
        return distances.sum(dtype=EXACT) / (samples * (samples - 1))

    @override
    def compute(self) -> Tensor:
        """Mean over groups of the mean over pairs."""
        self._speak()
        rows = self._kept(self.groups)
        return (self.total / self.groups if rows is None else rows.mean()).float()
