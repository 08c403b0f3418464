"""Weighted sums of distances on the features of one network, and the ``distance`` option that names them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor

from lpips_lightning.distances.dists import DISTS_DISTANCE
from lpips_lightning.distances.feature_distance import LPIPS_DISTANCE, FeatureDistance
from lpips_lightning.distances.lpips_plus import LPIPS_PLUS_DISTANCE
from lpips_lightning.distances.pooled import MEAN_POOL_DISTANCE, STYLE_DISTANCE
from lpips_lightning.distances.vectors import DistanceVectors

DistanceSource: TypeAlias = str | Mapping[str, float]
"""A name, a sum such as ``"lpips+0.5*style"``, or the weights of a sum by name."""

DISTANCES: dict[str, FeatureDistance] = {
    distance.name: distance
    for distance in (LPIPS_DISTANCE, LPIPS_PLUS_DISTANCE, MEAN_POOL_DISTANCE, STYLE_DISTANCE, DISTS_DISTANCE)
}
"""Distances by name."""

_NUMBER = r"[0-9]+\.?[0-9]*(?:e[+-]?[0-9]+)?|\.[0-9]+(?:e[+-]?[0-9]+)?"
_TERM = re.compile(rf"\s*(?:(?P<weight>{_NUMBER})\s*\*\s*)?(?P<name>[a-z_]+)\s*(?:\+|$)", re.IGNORECASE)


@dataclass(frozen=True)
class WeightedDistance(FeatureDistance):
    """Weighted sum of distances on the same features.

    Attributes:
        parts: Pairs of weight and distance.
    """

    parts: tuple[tuple[float, FeatureDistance], ...] = ()

    def by_layer(
        self,
        x: Mapping[str, Tensor],
        y: Mapping[str, Tensor],
        calibration: Mapping[str, Tensor] | None,
        masks: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """See `FeatureDistance.by_layer`."""
        found = [(weight, part.by_layer(x, y, calibration, masks)) for weight, part in self.parts]
        return {layer: _sum([weight * terms[layer] for weight, terms in found]) for layer in x}

    def at_layer(self, x: Tensor, y: Tensor, weight: Tensor | None, mask: Tensor | None = None) -> Tensor:
        """See `FeatureDistance.at_layer`."""
        return _sum([factor * part.at_layer(x, y, weight, mask) for factor, part in self.parts])

    def maps(
        self, x: Mapping[str, Tensor], y: Mapping[str, Tensor], calibration: Mapping[str, Tensor] | None
    ) -> dict[str, Tensor]:
        """See `FeatureDistance.maps`."""
        self.check_maps()
        found = [(weight, part.maps(x, y, calibration)) for weight, part in self.parts]
        return {layer: _sum([weight * maps[layer] for weight, maps in found]) for layer in x}

    def vectors(self, layers: Mapping[str, Tensor], calibration: Mapping[str, Tensor] | None) -> DistanceVectors:
        """See `FeatureDistance.vectors`."""
        found = [(weight, part.vectors(layers, calibration)) for weight, part in self.parts]
        return DistanceVectors.of(
            [weight**0.5 * vectors.squared for weight, vectors in found],
            [weight * vectors.absolute for weight, vectors in found],
        )

    def check_layers(self, layers: Sequence[str]) -> None:
        """See `FeatureDistance.check_layers`."""
        for _, part in self.parts:
            part.check_layers(layers)


def parse_distance(distance: DistanceSource) -> FeatureDistance:
    """The distance of a name, or a weighted sum of several.

    Args:
        distance: Value of the ``distance`` option: a name of `DISTANCES`, a sum of them with positive weights, or a
            mapping from name to weight.

    Returns:
        The distance. The order of a sum's terms does not matter.

    Raises:
        TypeError: If it is neither text nor a mapping.
        ValueError: If a name is unknown or given twice, a weight is not positive, or DISTS is part of a sum.

    Example:
        >>> parse_distance("0.5*style + lpips").name, parse_distance({"style": 0.5, "lpips": 1}).name
        ('lpips+0.5*style', 'lpips+0.5*style')
    """
    weights = _checked(_terms(distance), distance)
    if len(weights) == 1 and (only := next(iter(weights))) in DISTANCES and weights[only] == 1:
        return DISTANCES[only]
    if "dists" in weights:
        raise ValueError(
            f"distance: expected 'dists' alone, which has a network of its own (VGG16 with L2 pooling), got "
            f"{distance!r}; lpips_lightning.WeightedSum adds distances of several networks"
        )
    parts = tuple((weights[name], part) for name, part in DISTANCES.items() if name in weights)
    terms = [part.name if weight == 1 else f"{weight_text(weight)}*{part.name}" for weight, part in parts]
    return WeightedDistance(
        "+".join(terms),
        " + ".join(terms),
        is_layerwise=all(part.is_layerwise for _, part in parts),
        is_symmetric=all(part.is_symmetric for _, part in parts),
        has_vectors=all(part.has_vectors for _, part in parts),
        has_maps=all(part.has_maps for _, part in parts),
        uses_calibration=any(part.uses_calibration for _, part in parts),
        parts=parts,
    )


def _terms(distance: DistanceSource) -> list[tuple[str, object]]:
    """Names and weights as given."""
    if isinstance(distance, Mapping):
        return [*distance.items()]
    if not isinstance(distance, str):
        raise TypeError(f"distance: expected text, or a mapping from name to weight, got {distance!r:.80}")
    found: list[tuple[str, object]] = []
    place = 0
    while place < len(distance):
        term = _TERM.match(distance, place)
        if term is None:
            raise ValueError(_expected(distance))
        found.append((term["name"], float(term["weight"] or 1)))
        place = term.end()
    return found if not distance.rstrip().endswith("+") else []


def _checked(terms: list[tuple[str, object]], given: DistanceSource) -> dict[str, float]:
    weights: dict[str, float] = {}
    for name, weight in terms:
        if name not in DISTANCES:
            raise ValueError(_expected(given))
        if name in weights:
            raise ValueError(f"distance: expected each name once, got {name!r} twice in {given!r}")
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
            raise ValueError(f"distance: expected positive weights, got {weight!r} for {name!r}")
        weights[name] = float(weight)
    if not weights:
        raise ValueError(_expected(given))
    return weights


def _expected(given: object) -> str:
    names = ", ".join(map(repr, DISTANCES))
    return f"distance: expected one of {names}, or a sum such as 'lpips+0.5*style', got {given!r:.80}"


def weight_text(weight: float) -> str:
    """A weight as in fingerprints: 0.5, or 1 for 1.0."""
    return repr(weight).removesuffix(".0")


def _sum(terms: Sequence[Tensor]) -> Tensor:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total
