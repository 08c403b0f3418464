"""Image pairs as the engine takes them: images, value ranges, preprocessing and memory limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lpips_lightning.backbones.frozen import FrozenNetwork, without_autocast
from lpips_lightning.engine.executor import ImagesOrFeatures
from lpips_lightning.engine.planner import choose_plan
from lpips_lightning.engine.state import Plan
from lpips_lightning.images.preprocessing import to_backbone
from lpips_lightning.images.ranges import UNBOUNDED


@dataclass(frozen=True)
class Pairs:
    """A flat batch of image pairs.

    Attributes:
        network: The frozen network, on the device of the images.
        dtype: Dtype of the backbone.
        x: Images ``(M, 3, H, W)``, or of other input channels.
        y: Images of the same shape, or features ``(M, C, h, w)`` by layer name.
        range_x: Value range ``(low, high)`` of `x`.
        range_y: Value range ``(low, high)`` of `y`.
        clamp_x: Clamp `x` to its range.
        clamp_y: Clamp `y` to its range.
        chunk: Maximum number of pairs per pass; None lets the planner decide.
        memory_budget: Bytes; None for the default budgets in `lpips_lightning.engine.constants`.
    """

    network: FrozenNetwork
    dtype: torch.dtype
    x: Tensor
    y: Tensor | Mapping[str, Tensor]
    range_x: tuple[float, float]
    range_y: tuple[float, float]
    clamp_x: bool
    clamp_y: bool
    chunk: int | None = None
    memory_budget: int | None = None

    def plan(self, gradient: bool) -> Plan:
        """The plan to evaluate these pairs, with or without the gradient w.r.t. `x`."""
        found = choose_plan(self.network, tuple(self.x.shape), self.memory_budget, gradient)
        if not isinstance(self.y, Tensor) and found.way in ("rows", "tiles"):
            found = Plan("images", found.size, 1)  # the features of whole images already exist
        return replace(found, images=min(found.images, self.chunk or found.images))

    def inputs_x(self, part: slice) -> Tensor:
        """Backbone inputs of some of `x`."""
        return self.preprocess_x(self.x[part])

    def inputs_y(self, part: slice) -> ImagesOrFeatures:
        """Backbone inputs of some of `y`, or their features."""
        if isinstance(self.y, Tensor):
            return self.preprocess_y(self.y[part])
        return {layer: self.y[layer][part] for layer in self.network.layers}

    def preprocess_x(self, images: Tensor) -> Tensor:
        """Backbone inputs of images with the range of `x`."""
        return self._preprocess(images, self.range_x, self.clamp_x)

    def preprocess_y(self, images: Tensor) -> Tensor:
        """Backbone inputs of images with the range of `y`."""
        return self._preprocess(images, self.range_y, self.clamp_y)

    def features(self, part: slice) -> tuple[dict[str, Tensor], Mapping[str, Tensor]]:
        """Features of some of the pairs, recorded by autograd if grad mode is on."""
        with without_autocast(self.x.device):
            y = self.inputs_y(part)
            features_x = self.network.extractor(self.inputs_x(part))
            return features_x, self.network.extractor(y) if isinstance(y, Tensor) else y

    def versions(self) -> tuple[int, ...]:
        """In-place version counters of `x` and `y`; inference tensors have none."""
        fixed = [self.y] if isinstance(self.y, Tensor) else self.y.values()
        return tuple(tensor._version for tensor in (self.x, *fixed) if not tensor.is_inference())

    def preprocessing_derivative(self, part: slice) -> Tensor:
        """Derivative of `inputs_x` w.r.t. the pixels of `x`: float32 or float64, broadcasts to the shape of `x`."""
        low, high = self.range_x
        x = self.x[part].detach()
        is_mapped = self.range_x != UNBOUNDED
        slope = torch.full(
            (1, x.shape[1], 1, 1),
            2 / (high - low) if is_mapped else 1.0,
            device=x.device,
            dtype=torch.promote_types(x.dtype, torch.float32),
        )
        if self.network.scale is not None:
            slope = slope / self.network.scale.to(slope.dtype).view(1, -1, 1, 1)
        return slope * ((x >= low) & (x <= high)) if self.clamp_x and is_mapped else slope

    def autograd_distances(self) -> Tensor:
        """Distances ``(M,)`` by plain autograd."""
        features_x = self.network.extractor(self.preprocess_x(self.x))
        with torch.no_grad():
            y = self.inputs_y(slice(None))
            features_y = self.network.extractor(y) if isinstance(y, Tensor) else y
        by_layer = self.network.distance.by_layer(features_x, features_y, self.network.calibration)
        return torch.stack(list(by_layer.values())).sum(0)

    def _preprocess(self, images: Tensor, data_range: tuple[float, float], clamp: bool) -> Tensor:
        return to_backbone(images, data_range, self.network.shift, self.network.scale, self.dtype, clamp)
