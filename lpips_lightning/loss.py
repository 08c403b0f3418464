"""LPIPS as a training loss."""

from __future__ import annotations

from torch import Tensor, nn

from lpips_lightning.frozen import WeightsSource
from lpips_lightning.functional import Reduction, check_reduction, reduce
from lpips_lightning.images import DataRange, parse_range
from lpips_lightning.network import LPIPS, Precision

__all__ = ["PerceptualLoss"]

# A network in training overshoots; 2x - 1 applied twice reaches 1.0 of the range below it, [0, 255] floats 127.
_SLACK = 0.25


class PerceptualLoss(nn.Module):
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
        validate_args: Check pixel values: targets must be on the range, predictions at most a quarter of it outside.
            This waits for the device. Shapes are always checked.

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
        distances = self.net(pred, target, self.data_range, names=("pred", "target"), slack=_SLACK)
        return self.weight * reduce(distances, self.reduction)
