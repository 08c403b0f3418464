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
from lpips_lightning.images.ranges import DataRange, RangeChecker, parse_range, training_tolerance
from lpips_lightning.network import LPIPS, measure
from lpips_lightning.options import LPIPSOptions, with_options

# An untrained network overshoots, and a later burst must not end a run: predictions are watched only while mistakes in
# the pipeline show, and leniently.
_WATCHED_CALLS = 100


@with_options(precision="autocast")
class PerceptualLoss(DropsLegacyKeys):
    """Mean LPIPS between predictions and targets, times a weight.

    Nothing of the network behind it can be trained, cast, saved or forgotten on another device: the module has no
    parameters, buffers or state. It may be called with two batches of images anywhere in a training step.

    The backbone's precision is ``"autocast"`` unless said otherwise; ``"fp32"``, ``"bf16"`` and ``"fp16"`` hold under
    any autocast. With `validate_args` targets must always be on the range. Predictions may overshoot, in the first 100
    calls by the size of the range for ``(0, high)``, by a quarter of it for other ranges; after that they are not
    checked. On an accelerator no step waits for the check: what it finds is raised up to 12 calls later.

    Args:
        net_type: ``"vgg"`` (the reference's advice for optimization), ``"alex"``, ``"squeeze"`` or ``"embedded"``,
            which ships; a backbone of your own, from `lpips_lightning.backbones.custom`; or a built `LPIPS`, whose
            frozen network is shared and whose options hold, its precision too.
        data_range: Of predictions and targets: ``(low, high)``, or ``high`` alone for ``(0, high)``. There is no
            default: a wrong range trains silently towards something else.
        weight: Factor of the result, >= 0; may be changed at any time. At 0 the network is not run.
        reduction: Over the batch, and over the frames of videos: ``"mean"``, ``"sum"``, or ``"none"`` (None).
        spatial: Return maps: every image's term is ``(1, H, W)``.
        per_layer: Return a dict of the layers' terms instead of their sum.
        options: See `lpips_lightning.options.LPIPSOptions`.

    Raises:
        TypeError: If `data_range` is neither a pair nor a number, or an option does not exist.
        ValueError: If an argument is none of the known ones, or an option is given beside a built network.
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
        net_type: str | Backbone | LPIPS = "vgg",
        *,
        data_range: DataRange,
        weight: float = 1.0,
        reduction: Reduction = "mean",
        spatial: bool = False,
        per_layer: bool = False,
        **options: Unpack[LPIPSOptions],
    ) -> None:
        super().__init__()
        check_reduction(reduction)
        self.data_range = parse_range(data_range)
        self.weight = weight
        self._calls = 0
        self.reduction = reduction
        self.net = LPIPS.of(net_type, options, type(self), precision="autocast")
        self.net.range_checker = RangeChecker(periodic=True)
        self.spatial = spatial
        self.per_layer = per_layer

    @property
    def weight(self) -> float:
        """Factor of the result."""
        return self._weight

    @weight.setter
    def weight(self, weight: float) -> None:
        given: Any = weight  # from a YAML or a schedule: anything
        if isinstance(given, bool) or not isinstance(given, numbers.Real) or not 0 <= float(given) < math.inf:
            raise ValueError(f"weight: expected a finite number >= 0, got {given!r}")
        self._weight = float(given)

    @property
    def fingerprint(self) -> str:
        """One citeable line: everything that decides the number, but for the weight."""
        return f"{self.net.fingerprint}, range {list(self.data_range)}"

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
            pred: Predictions ``(N, 3, H, W)`` or ``(B, T, 3, H, W)`` on `data_range`; they may overshoot, and are not
                clamped.
            target: Targets of the same shape; nothing is computed for a gradient that they do not ask for.
            reference: Instead of `target`: what `encode` made of it. For a target that stays the same.
            mask: Which pixels count, see `LPIPS.forward`. An image of which nothing is left adds 0, and does not enter
                the mean.
            erode: See `LPIPS.forward`.

        Returns:
            A 0-dimensional tensor; ``(N,)`` (``(B, T)``) for reduction ``"none"``; with ``(1, H, W)`` behind it if
            `spatial`; a dict of such if `per_layer`. float32, float64 for float64 images.

        Raises:
            TypeError: If an argument is of the wrong type, or not one of `target` and `reference` is given.
            ValueError: If shapes, devices or sides do not fit, or pixel values are off the range.
        """
        goal = reference if target is None else target
        if goal is None or (target is not None and reference is not None):
            raise TypeError("target: expected either target or reference, got both or neither")
        names = ("pred", "reference" if isinstance(goal, Features) else "target")
        shown = self._zeros(pred, goal, names) if self.weight == 0 else self._measure(pred, goal, mask, erode, names)
        values = reduced(shown, self.reduction)
        if isinstance(values, dict):
            return {layer: self.weight * self._without_nothing(term, shown) for layer, term in values.items()}
        return self.weight * self._without_nothing(values, shown)

    @torch.no_grad()
    def encode(self, target: Tensor) -> Features:
        """What the backbone sees in targets that stay the same: the `reference` of later calls.

        Args:
            target: ``(N, 3, H, W)`` or ``(B, T, 3, H, W)`` on `data_range`.

        Returns:
            Features, without a graph.

        Raises:
            TypeError: If it is not an image batch by its type.
            ValueError: If a shape or a side does not fit, or pixel values are off the range.
        """
        return self.net.encode(target, self.data_range)

    def selfcheck(self, device: torch.device | str = "cpu") -> dict[str, float]:
        """See `LPIPS.selfcheck`.

        Args:
            device: Where to compute.

        Returns:
            The distances measured.

        Raises:
            WeightsError: If they are not the recorded ones.
            ValueError: If none are recorded for this backbone.
        """
        return self.net.selfcheck(device)

    def _measure(
        self, pred: Tensor, goal: Tensor | Features, mask: Tensor | None, erode: bool, names: tuple[str, str]
    ) -> Distances:
        return measure(
            self.net,
            pred,
            goal,
            self.data_range,
            spatial=self.spatial,
            per_layer=self.per_layer,
            mask=mask,
            erode=erode,
            names=names,
            tolerance=self._tolerance(),
        )

    def _zeros(self, pred: Tensor, goal: Tensor | Features, names: tuple[str, str]) -> Distances:
        """What the network would have given, times 0; wrong shapes shall not wait for the weight to rise."""
        self.net.check_shapes(pred, goal, names)
        zero = (pred if pred.dtype == torch.float64 else pred.float()).mean(-3, keepdim=True) * 0
        zero = zero if self.spatial else zero.mean((-3, -2, -1))
        values = dict.fromkeys(self.net.layers, zero) if self.per_layer else zero
        return Distances(values, None, pred.dim() - 3)

    def _without_nothing(self, values: Tensor, shown: Distances) -> Tensor:
        """Zero in place of the NaN of an image, or of a batch, of which the mask left nothing."""
        if shown.valid is None:
            return values
        some = shown.valid if self.reduction in ("none", None) else shown.valid.any()
        return torch.where(some, values, 0)

    def _tolerance(self) -> float:
        if torch.compiler.is_compiling() or self._calls >= _WATCHED_CALLS:
            return math.inf
        self._calls += 1
        return training_tolerance(self.data_range)
