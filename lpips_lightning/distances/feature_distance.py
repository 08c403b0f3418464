"""What a distance on features is, and the LPIPS formula as one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from lpips_lightning.distances.lpips import layer_distances, layer_maps


@dataclass(frozen=True)
class FeatureDistance:
    """Distance between two sets of features, by layer.

    Attributes:
        name: Value of the ``distance`` option.
        title: What the fingerprint begins with.
        is_fused: Whether the engine computes it without autograd, in strips and tiles; true for LPIPS only.
        is_squared_euclidean: Whether it is the squared distance of the vectors of
            `lpips_lightning.distances.lpips.feature_vectors`.
    """

    name: str
    title: str
    is_fused: bool = False
    is_squared_euclidean: bool = False

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
            calibration: Weights ``(C,)`` by layer name, or None.
            masks: Weight of every position, ``(N, 1, h, w)`` by layer name; None for equal weights.

        Returns:
            Shape ``(N,)`` by layer name; float32, or float64 for float64 features. NaN where all weights are 0.

        Raises:
            ValueError: With masks, if the distance has no terms by position.
        """
        raise NotImplementedError

    def maps(
        self, x: Mapping[str, Tensor], y: Mapping[str, Tensor], calibration: Mapping[str, Tensor] | None
    ) -> dict[str, Tensor]:
        """Distance at every position of every layer, at the resolution of the layer.

        Args:
            x: See `by_layer`.
            y: See `by_layer`.
            calibration: See `by_layer`.

        Returns:
            Shape ``(N, 1, h, w)`` by layer name.

        Raises:
            ValueError: If the distance has no terms by position.
        """
        raise NotImplementedError


class LPIPSDistance(FeatureDistance):
    """Zhang et al. 2018, equation 1: see `lpips_lightning.distances.lpips`."""

    def by_layer(
        self,
        x: Mapping[str, Tensor],
        y: Mapping[str, Tensor],
        calibration: Mapping[str, Tensor] | None,
        masks: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """See `FeatureDistance.by_layer`."""
        return layer_distances(x, y, calibration, masks)

    def maps(
        self, x: Mapping[str, Tensor], y: Mapping[str, Tensor], calibration: Mapping[str, Tensor] | None
    ) -> dict[str, Tensor]:
        """See `FeatureDistance.maps`."""
        return layer_maps(x, y, calibration)


LPIPS_DISTANCE = LPIPSDistance("lpips", "LPIPS", is_fused=True, is_squared_euclidean=True)


def parse_distance(distance: str) -> FeatureDistance:
    """The distance of a name.

    Args:
        distance: Value of the ``distance`` option.

    Returns:
        The distance.

    Raises:
        ValueError: If the name is unknown.
    """
    if distance != "lpips":
        raise ValueError(f"distance: expected 'lpips', got {distance!r}")
    return LPIPS_DISTANCE
