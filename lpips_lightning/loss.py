"""LPIPS as a training loss."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lpips_lightning.frozen import WeightsSource
from lpips_lightning.functional import Reduction, check_reduction, reduce
from lpips_lightning.images import DataRange, parse_range
from lpips_lightning.legacy import DropsLegacyKeys
from lpips_lightning.network import LPIPS, Precision

__all__ = ["PerceptualLoss"]

# An untrained network overshoots, and a later burst must not end a run: predictions are watched only while mistakes in
# the pipeline show, and leniently. [0, 255] floats lie 254 ranges above [0, 1]; 2x - 1 applied twice reaches -3.
_WATCHED_CALLS = 100
_SLACK_ABOVE_ZERO, _SLACK_AROUND_ZERO = 1.0, 0.25


class PerceptualLoss(DropsLegacyKeys):
    """Mean LPIPS between predictions and targets, times a weight.

    Nothing of the network behind it can be trained, cast, saved or forgotten on another device: the module has no
    parameters, buffers or state. It may be called with two batches of images anywhere in a training step.

    Args:
        net_type: ``"vgg"`` (the reference's advice for optimisation), ``"alex"``, ``"squeeze"`` or ``"embedded"``,
            which ships.
        data_range: Of predictions and targets: ``(low, high)``, or ``high`` alone for ``(0, high)``. There is no
            default: a wrong range trains silently towards something else.
        weight: Factor of the result; may be changed at any time. At 0 the network is not run.
        reduction: Over the batch: ``"mean"``, ``"sum"``, or ``"none"`` (None) for ``(N,)``.
        version: ``"0.1"`` or ``"0.0"``.
        calibrated: False for the baseline.
        weights: See `LPIPS`.
        calibration: See `LPIPS`.
        precision: Of the trunk. ``"autocast"`` follows the surrounding autocast and is float32 without it; ``"fp32"``,
            ``"bf16"`` and ``"fp16"`` hold under any. Everything after the trunk runs in float32.
        validate_args: Check pixel values; this waits for the device. Targets must always be on the range. Predictions
            may overshoot, in the first 100 calls by the size of the range for ``(0, high)``, by a quarter of it for
            other ranges; after that they are not checked. Shapes are always checked.

    Raises:
        TypeError: If `data_range` is neither a pair nor a number.
        ValueError: If an argument is none of the known ones.
        WeightsError: If weights are missing, damaged or of another architecture.

    Example:
        >>> import torch
        >>> loss = PerceptualLoss("squeeze", data_range=(0, 1), weights="random")
        >>> prediction = torch.rand(2, 3, 64, 64, requires_grad=True)
        >>> loss(prediction, torch.rand(2, 3, 64, 64)).backward()
        >>> prediction.grad.shape, list(loss.parameters()), loss.state_dict()
        (torch.Size([2, 3, 64, 64]), [], OrderedDict())
    """

    def __init__(
        self,
        net_type: str = "vgg",
        *,
        data_range: DataRange,
        weight: float = 1.0,
        reduction: Reduction = "mean",
        version: str = "0.1",
        calibrated: bool = True,
        weights: WeightsSource = None,
        calibration: WeightsSource = None,
        precision: Precision = "autocast",
        validate_args: bool = True,
    ) -> None:
        super().__init__()
        check_reduction(reduction)
        self.data_range = parse_range(data_range)
        self.weight = weight
        self._calls = 0
        self.reduction = reduction
        self.net = LPIPS(
            net_type,
            version=version,
            calibrated=calibrated,
            weights=weights,
            calibration=calibration,
            precision=precision,
            validate_args=validate_args,
        )

    @property
    def fingerprint(self) -> str:
        """One citeable line: everything that decides the number, but for the weight."""
        return f"{self.net.fingerprint}, range {list(self.data_range)}"

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """Weighted LPIPS of a batch.

        Args:
            pred: Predictions ``(N, 3, H, W)`` on `data_range`; they may overshoot, and are not clamped.
            target: Targets of the same shape; nothing is computed for a gradient that they do not ask for.

        Returns:
            A 0-dimensional tensor, or ``(N,)`` for reduction ``"none"``; float32, float64 for float64 images.

        Raises:
            TypeError: If an argument is of the wrong type.
            ValueError: If shapes, devices or sides do not fit, or pixel values are off the range.
        """
        if self.weight == 0:
            return reduce((pred * 0).sum((1, 2, 3)), self.reduction)
        distances = self.net(pred, target, self.data_range, names=("pred", "target"), slack=self._slack())
        return self.weight * reduce(distances, self.reduction)

    def _slack(self) -> float:
        if torch.compiler.is_compiling() or self._calls >= _WATCHED_CALLS:
            return math.inf
        self._calls += 1
        return _SLACK_ABOVE_ZERO if self.data_range[0] == 0 else _SLACK_AROUND_ZERO
