"""What a distance on features is, and the LPIPS formula as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from lpips_lightning.distances.lpips import feature_vectors, layer_distance, layer_maps
from lpips_lightning.distances.vectors import DistanceVectors


@dataclass(frozen=True)
class FeatureDistance:
    """Distance between two sets of features, by layer.

    A subclass defines `at_layer`; one that needs all layers at once defines `by_layer` instead.

    Attributes:
        name: Value of the ``distance`` option.
        title: What the fingerprint begins with.
        is_fused: Whether the engine has kernels for it, and computes it in strips and tiles; true for LPIPS only.
        is_layerwise: Whether the term of a layer depends on that layer alone.
        has_vectors: Whether `vectors` give it for all pairs of images.
        is_symmetric: Whether `x` and `y` may be exchanged.
        has_maps: Whether it has terms by position, see `maps`.
        uses_calibration: Whether it takes LPIPS' weights by channel.
    """

    name: str
    title: str
    is_fused: bool = False
    is_layerwise: bool = True
    has_vectors: bool = False
    is_symmetric: bool = True
    has_maps: bool = False
    uses_calibration: bool = False

    def by_layer(
        self,
        x: Mapping[str, Tensor],
        y: Mapping[str, Tensor],
        calibration: Mapping[str, Tensor] | None,
        masks: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Distance of every pair at every layer; the sum over layers is the distance.

        Args:
            x: Features ``(N, C, h, w)`` by layer name.
            y: Features with the same names and shapes: those of the reference, where it matters.
            calibration: Weights by layer name, or None.
            masks: Weight of every position, ``(N, 1, h, w)`` by layer name; None for equal weights.

        Returns:
            Shape ``(N,)`` by layer name; float32, or float64 for float64 features. NaN where all weights are 0.
        """
        return {
            layer: self.at_layer(
                x[layer],
                y[layer],
                None if calibration is None else calibration[layer],
                None if masks is None else masks[layer],
            )
            for layer in x
        }

    def at_layer(self, x: Tensor, y: Tensor, weight: Tensor | None, mask: Tensor | None = None) -> Tensor:
        """`by_layer` of one layer.

        Args:
            x: Features ``(N, C, h, w)``.
            y: Features of the same shape.
            weight: Calibration of the layer, or None.
            mask: Weight of every position, ``(N, 1, h, w)``; None for equal weights.

        Returns:
            Shape ``(N,)``.
        """
        raise NotImplementedError

    def maps(
        self, x: Mapping[str, Tensor], y: Mapping[str, Tensor], calibration: Mapping[str, Tensor] | None
    ) -> dict[str, Tensor]:
        """Distance at every position of every layer, at the resolution of the layer; the mean of a map is the term.

        Args:
            x: See `by_layer`.
            y: See `by_layer`.
            calibration: See `by_layer`.

        Returns:
            Shape ``(N, 1, h, w)`` by layer name.

        Raises:
            ValueError: If the distance has no terms by position.
        """
        self.check_maps()
        raise NotImplementedError

    def vectors(self, layers: Mapping[str, Tensor], calibration: Mapping[str, Tensor] | None) -> DistanceVectors:
        """Vectors of each image whose differences give the distance, if it `has_vectors`.

        Args:
            layers: Features ``(N, C, h, w)`` by layer name.
            calibration: See `by_layer`.
        """
        raise NotImplementedError

    def packaged_weights(self, layers: Sequence[str], channels: Sequence[int]) -> dict[str, Tensor] | None:
        """Weights of its own that ship, by layer name, in place of a calibration; None if it has none.

        Args:
            layers: Names of the feature layers.
            channels: Channels of each.
        """
        return None

    def check_maps(self) -> None:
        """Raise ValueError unless the distance `has_maps`."""
        if not self.has_maps:
            raise ValueError(
                f"distance: expected 'lpips' or 'lpips_plus' for a map (spatial=True), got {self.name!r}, which "
                "compares statistics of whole feature maps"
            )

    def check_layers(self, layers: Sequence[str]) -> None:
        """Raise ValueError if the distance is not defined on a backbone with these feature layers."""


class LPIPSDistance(FeatureDistance):
    """Zhang et al. 2018, equation 1: see `lpips_lightning.distances.lpips`."""

    def at_layer(self, x: Tensor, y: Tensor, weight: Tensor | None, mask: Tensor | None = None) -> Tensor:
        """See `FeatureDistance.at_layer`."""
        return layer_distance(x, y, weight, mask)

    def maps(
        self, x: Mapping[str, Tensor], y: Mapping[str, Tensor], calibration: Mapping[str, Tensor] | None
    ) -> dict[str, Tensor]:
        """See `FeatureDistance.maps`."""
        return layer_maps(x, y, calibration)

    def vectors(self, layers: Mapping[str, Tensor], calibration: Mapping[str, Tensor] | None) -> DistanceVectors:
        """See `FeatureDistance.vectors`."""
        return DistanceVectors.of([feature_vectors(layers, calibration)], [])


LPIPS_DISTANCE = LPIPSDistance("lpips", "LPIPS", is_fused=True, has_vectors=True, has_maps=True, uses_calibration=True)
