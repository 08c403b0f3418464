"""LPIPS as a torchmetrics metric."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat
from typing_extensions import override

from lpips_lightning.frozen import WeightsSource
from lpips_lightning.functional import Reduction, check_reduction, choose_range
from lpips_lightning.images import DataRange
from lpips_lightning.legacy import DropsLegacyKeys
from lpips_lightning.network import LPIPS, Precision

__all__ = ["LearnedPerceptualImagePatchSimilarity"]

# A float32 sum drifts by 1e-5 over a hundred thousand batches. MPS has no float64.
EXACT = torch.float32 if torch.backends.mps.is_available() else torch.float64


class LearnedPerceptualImagePatchSimilarity(DropsLegacyKeys, Metric):
    """Mean LPIPS over all images seen; torchmetrics' class of the same name, with its arguments and defaults.

    The state is a sum and a count, so that any split over batches and ranks, uneven, empty or of one image, gives the
    same number. The frozen network is not part of the metric: copies and pickles are small, checkpoints do not hold it.

    As input to `update` and `forward`:

    - ``img1`` or ``preds``: images ``(N, 3, H, W)``, floating on the range or uint8 on [0, 255];
    - ``img2`` or ``target``: images of the same shape.

    As output of `compute` and `forward`: a 0-dimensional tensor, or ``(N,)`` for reduction ``"none"``; float32, float64
    after float64 images.

    Args:
        net_type: ``"alex"``, ``"vgg"``, ``"squeeze"`` or ``"embedded"``, which ships.
        reduction: Over all images: ``"mean"``, ``"sum"``, or ``"none"`` (None), which keeps one score an image.
        normalize: True if images are on [0, 1], False if on [-1, 1].
        data_range: Instead of `normalize`: ``(low, high)``, or ``high`` alone for ``(0, high)``.
        version: ``"0.1"`` or ``"0.0"``.
        calibrated: False for the baseline.
        weights: See `LPIPS`.
        calibration: See `LPIPS`.
        precision: Of the trunk; ``"fp32"`` also under autocast.
        validate_args: Check pixel values; this waits for the device. Shapes are always checked.
        kwargs: See `torchmetrics.Metric`.

    Attributes:
        fingerprint: One citeable line: everything that decides the number.

    Raises:
        ValueError: If an argument is none of the known ones.
        WeightsError: If weights are missing, damaged or of another architecture.

    Example:
        >>> metric = LearnedPerceptualImagePatchSimilarity("squeeze", normalize=True, weights="random")
        >>> metric.update(torch.ones(2, 3, 64, 64), torch.ones(2, 3, 64, 64))
        >>> metric.compute()
        tensor(0.)
    """

    is_differentiable = True
    higher_is_better = False
    full_state_update = False
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0
    feature_network = "net"

    def __init__(
        self,
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
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_reduction(reduction)
        self.reduction = reduction
        self.normalize = normalize
        self.data_range = choose_range(normalize, data_range)
        self.net = LPIPS(
            net_type,
            version=version,
            calibrated=calibrated,
            weights=weights,
            calibration=calibration,
            precision=precision,
            validate_args=validate_args,
        )
        self.fingerprint = f"{self.net.fingerprint}, range {list(self.data_range)}"
        # MetricCollection merges metrics whose states have equal names and equal first values (two nets that both saw
        # identical images): the names carry everything that makes two metrics differ.
        identity = hashlib.sha256(f"{self.fingerprint} {validate_args}".encode()).hexdigest()[:8]
        self._scores = f"scores_{net_type}_{identity}"
        self._count = f"count_{net_type}_{identity}"
        self._dtype_of_images = torch.float32
        if reduction in ("none", None):
            self.add_state(self._scores, default=[], dist_reduce_fx="cat")
        else:
            self.add_state(self._scores, default=torch.zeros((), dtype=EXACT), dist_reduce_fx="sum")
            self.add_state(self._count, default=torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    @override
    def update(
        self,
        preds: Tensor | None = None,
        target: Tensor | None = None,
        img1: Tensor | None = None,
        img2: Tensor | None = None,
    ) -> None:
        """Add a batch.

        Args:
            preds: Images ``(N, 3, H, W)``; N may be 0.
            target: Images of the same shape.
            img1: Another name of `preds`, torchmetrics'.
            img2: Another name of `target`, torchmetrics'.

        Raises:
            TypeError: If an argument is missing, given twice or of the wrong type.
            ValueError: If shapes, devices or sides do not fit, or pixel values are off the range.
        """
        names = ("img1", "img2") if preds is None else ("preds", "target")
        x, y = (img1, img2) if preds is None else (preds, target)
        spare = (target,) if preds is None else (img1, img2)
        if x is None or y is None or any(image is not None for image in spare):
            raise TypeError("update: expected (preds, target) or (img1, img2), got another combination")
        scores: Tensor = self.net(x, y, self.data_range, names=names)
        self._dtype_of_images = scores.dtype
        if self.reduction in ("none", None):
            getattr(self, self._scores).append(scores)
            return
        # Not the state's dtype: a parent's .to(torch.bfloat16) casts states, and must not round the sum.
        setattr(self, self._scores, getattr(self, self._scores) + scores.sum(dtype=EXACT))
        setattr(self, self._count, getattr(self, self._count) + scores.shape[0])

    @override
    def compute(self) -> Tensor:
        """The score of everything seen; NaN for the mean of no image."""
        if self.reduction in ("none", None):
            scores = getattr(self, self._scores)
            return dim_zero_cat(scores) if len(scores) else torch.zeros(0, device=self.device)
        total, count = getattr(self, self._scores), getattr(self, self._count)
        return (total / count if self.reduction == "mean" else total).to(self._dtype_of_images)

    @override
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Add a batch and return the batch's own score, differentiable; the state keeps no graph."""
        value = super().forward(*args, **kwargs)
        for name in self._defaults:
            state = getattr(self, name)
            setattr(self, name, [part.detach() for part in state] if isinstance(state, list) else state.detach())
        return value

    def plot(self, val: Tensor | Sequence[Tensor] | None = None, ax: Any = None) -> Any:
        """Draw one or several scores.

        Args:
            val: What `forward` or `compute` returned, or a list of such; None computes.
            ax: A matplotlib axes to draw in.

        Returns:
            Figure and axes.

        Raises:
            ModuleNotFoundError: If matplotlib is missing.
        """
        return self._plot(val, ax)
