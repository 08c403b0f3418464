"""LPIPS as a training loss."""

from __future__ import annotations

import math
import numbers
from typing import Any, Unpack

import torch
from torch import Tensor

from lpips_lightning.backbones.definition import Backbone
from lpips_lightning.backbones.shared import DropsLegacyKeys
from lpips_lightning.batch import Distances, Features
from lpips_lightning.functional.reduction import Reduction, check_reduction, reduced
from lpips_lightning.images.masks import fill_masked
from lpips_lightning.images.ranges import DataRange, NoRange, RangeChecker, range_label
from lpips_lightning.network import LPIPS
from lpips_lightning.options import LPIPSOptions, with_options
from lpips_lightning.perceptual_distance import PerceptualDistance, measure
from lpips_lightning.tracing import refuse_scripts


@with_options(precision="autocast")
class PerceptualLoss(DropsLegacyKeys):
    """Mean LPIPS between predictions and targets, times a weight.

    The module has no parameters, buffers or state: its frozen network cannot be trained, cast or saved by accident, and
    runs on the device of the images.

    The backbone's precision defaults to ``"autocast"``; ``"fp32"``, ``"bf16"`` and ``"fp16"`` override any autocast.
    With `validate_args`, targets must always be within the range. Predictions may have any values and are not clamped;
    with NaN or infinity the loss is NaN, so that ``GradScaler`` skips the step. One warning is issued if, in the first
    100 calls, a quarter of a prediction's values or more is over 10 ranges away from the range. On an accelerator the
    check does not synchronize: errors are raised up to 12 calls later.

    Args:
        net_type: ``"vgg"`` (recommended by the reference for optimization), ``"alex"``, ``"squeeze"``;
            ``"alex-st"`` or ``"vgg-st"``, which tolerate shifts; ``"embedded"`` or ``"embedded-vgg"``, which ship with
            the package; a custom backbone from `lpips_lightning.backbones`; or a built `LPIPS`, `WeightedSum` or
            `Ensemble`, whose frozen networks and options, including precision, are used.
        data_range: Range of predictions and targets: ``(low, high)``, or ``high`` alone for ``(0, high)``. There is no
            default, since training with a wrong range fails silently; None for a backbone without a range, and only
            for one.
        weight: Factor of the result, >= 0; may be changed at any time. At 0 the network does not run.
        reduction: Over the batch and the frames of videos: ``"mean"``, ``"sum"``, or ``"none"`` (None).
        spatial: Return distance maps, ``(1, H, W)`` for each image.
        per_layer: Return a dict of the layers' terms instead of their sum.
        options: See `lpips_lightning.options.LPIPSOptions`.

    Raises:
        TypeError: If `data_range` is neither a pair nor a number, or an option does not exist.
        ValueError: If an argument has an unknown value, or an option is given with a built network.
        WeightsError: If weights are missing, damaged or of another architecture.

    Example:
        >>> import torch
        >>> loss = PerceptualLoss("squeeze", data_range=(0, 1), weights="random")
        >>> prediction = torch.rand(2, 3, 64, 64, requires_grad=True)
        >>> loss(prediction, torch.rand(2, 3, 64, 64)).backward()
        >>> prediction.grad.shape, list(loss.parameters()), loss.state_dict()
        (torch.Size([2, 3, 64, 64]), [], OrderedDict())
    """

    __jit_unused_properties__ = ("weight", "fingerprint")

    def __init__(
        self,
        net_type: str | Backbone | PerceptualDistance = "vgg",
        *,
        data_range: DataRange | NoRange,
        weight: float = 1.0,
        reduction: Reduction = "mean",
        spatial: bool = False,
        per_layer: bool = False,
        **options: Unpack[LPIPSOptions],
    ) -> None:
        super().__init__()
        check_reduction(reduction)
        self.weight = weight
        self.reduction = reduction
        self.net = LPIPS.of(net_type, options, type(self), precision="autocast")
        self.data_range = self.net.images.value_range(data_range)
        self.net.check_range(self.data_range)
        self.net.range_checker = RangeChecker(periodic=True)
        if spatial:
            self.net.check_maps()
        self.spatial = spatial
        self.per_layer = per_layer

    @property
    def weight(self) -> float:
        """Factor of the result."""
        return self._weight

    @weight.setter
    def weight(self, weight: float) -> None:
        given: Any = weight  # may come from YAML or a schedule
        if isinstance(given, bool) or not isinstance(given, numbers.Real) or not 0 <= float(given) < math.inf:
            raise ValueError(f"weight: expected a finite number >= 0, got {given!r}")
        self._weight = float(given)

    @property
    def fingerprint(self) -> str:
        """One line to cite: everything that determines the value, except the weight."""
        return f"{self.net.fingerprint}, {range_label(self.data_range)}"

    @torch.jit.unused
    def forward(
        self,
        pred: Tensor,
        target: Tensor | None = None,
        *,
        reference: Features | None = None,
        mask: Tensor | None = None,
        erode: bool = False,
    ) -> Tensor | dict[str, Tensor]:
        """Weighted LPIPS of a batch.

        Args:
            pred: Predictions ``(N, 3, H, W)`` or ``(B, T, 3, H, W)`` for `data_range`; any values pass unclamped.
            target: Targets of the same shape. Their gradient is computed only if they require grad.
            reference: Features of a fixed target from `encode`, instead of `target`.
            mask: Weight of each pixel, see `LPIPS.forward`. Images that the mask excludes completely add 0 and do not
                count in the mean.
            erode: See `LPIPS.forward`.

        Returns:
            0-dimensional tensor; ``(N,)`` (``(B, T)`` for videos) for reduction ``"none"``; with trailing dimensions
            ``(1, H, W)`` if `spatial`; a dict of these if `per_layer`. float32; float64 for float64 images.

        Raises:
            TypeError: If an argument is of the wrong type, or both or neither of `target` and `reference` are given.
            ValueError: If shapes, sizes or devices do not match, or pixel values of `target` are outside the range.
        """
        refuse_scripts(self, pred=pred)
        other = reference if target is None else target
        if other is None or (target is not None and reference is not None):
            raise TypeError("target: expected either target or reference, got both or neither")
        names = ("pred", "reference" if isinstance(other, Features) else "target")
        if self.weight == 0:
            distances = self._zeros(pred, other, mask if erode else None, names)
        else:
            distances = self._measure(pred, other, mask, erode, names)
        values = reduced(distances, self.reduction)
        if isinstance(values, dict):
            return {layer: self.weight * self._zero_where_empty(term, distances) for layer, term in values.items()}
        return self.weight * self._zero_where_empty(values, distances)

    @torch.no_grad()
    def encode(self, target: Tensor) -> Features:
        """Compute the features of fixed targets, for ``reference=`` of later calls.

        Args:
            target: ``(N, 3, H, W)`` or ``(B, T, 3, H, W)`` on `data_range`.

        Returns:
            Features, without a graph.

        Raises:
            TypeError: If `target` is of the wrong type.
            ValueError: If the shape or size is wrong, or pixel values are outside the range.
        """
        return self.net.encode(target, self.data_range)

    def selfcheck(self, device: torch.device | str = "cpu") -> dict[str, float]:
        """See `LPIPS.selfcheck`.

        Args:
            device: Device to compute on.

        Returns:
            The measured distances.

        Raises:
            WeightsError: If they differ from the recorded ones.
            ValueError: If none are recorded for this backbone.
        """
        return self.net.selfcheck(device)

    def _measure(
        self, pred: Tensor, other: Tensor | Features, mask: Tensor | None, erode: bool, names: tuple[str, str]
    ) -> Distances:
        return measure(
            self.net,
            pred,
            other,
            self.data_range,
            spatial=self.spatial,
            per_layer=self.per_layer,
            mask=mask,
            erode=erode,
            names=names,
            roles=("prediction", "data"),
        )

    def _zeros(
        self, pred: Tensor, other: Tensor | Features, excluded: Tensor | None, names: tuple[str, str]
    ) -> Distances:
        """Zeros with the shape of the result, for weight 0; wrong shapes are an error here too."""
        self.net.check_shapes(pred, other, names)
        if excluded is not None:  # a NaN there must not make the zero one
            pred = fill_masked(pred, excluded, 0)
        zero = (pred if pred.dtype == torch.float64 else pred.float()).mean(-3, keepdim=True) * 0
        zero = zero if self.spatial else zero.mean((-3, -2, -1))
        values = dict.fromkeys(self.net.layers, zero) if self.per_layer else zero
        return Distances(values, None, pred.dim() - 3)

    def _zero_where_empty(self, values: Tensor, distances: Distances) -> Tensor:
        """Replace NaN by 0 where the mask excludes every pixel."""
        if distances.valid is None:
            return values
        valid = distances.valid if self.reduction in ("none", None) else distances.valid.any()
        return torch.where(valid, values, 0)
