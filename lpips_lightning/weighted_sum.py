"""Weighted sum of the distances of several networks."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterator, Mapping, Sequence
from typing import Self, TypeAlias

import torch
from torch import Tensor, nn
from typing_extensions import override

from lpips_lightning.backbones.definition import Backbone
from lpips_lightning.batch import Features
from lpips_lightning.distances.weighted import weight_text
from lpips_lightning.engine.dispatch import LayerDistances
from lpips_lightning.images.preprocessing import ImagePolicy
from lpips_lightning.images.ranges import DataRange, RangeChecker, Role
from lpips_lightning.network import LPIPS
from lpips_lightning.perceptual_distance import PerceptualDistance

Net: TypeAlias = str | Backbone | PerceptualDistance
Parts: TypeAlias = Sequence[tuple[Net, float]] | Mapping[str, float] | Mapping[PerceptualDistance, float]
"""Networks with their weights."""


class WeightedSum(PerceptualDistance):
    """Sum of several distances, each times a weight: for instance LPIPS plus half a distance on tokens of DINO.

    Metric, loss, function, callbacks and `lpips_lightning.compare` take it as one network. Every part keeps its own
    precision and memory budget; parts with equal weights share one frozen network, and parts with equal features are
    encoded once. Layers are called by their part, as ``"vgg.relu1_2"``: a part has the name of its net, with its
    distance if that is not LPIPS (``"vgg-dists"``), its convention if it has one (``"vgg-3dgs"``), and with a number if
    another one is called so (``"vgg-2"``). A part may be a sum or an `Ensemble` itself.

    Args:
        parts: Pairs ``(net, weight)``, or a mapping of them; each `net` is a backbone, or a built `LPIPS` or other
            `PerceptualDistance` with options of its own. All must accept the same images: `gray`, `background` and
            `resize` must agree. Weights are above 0.

    Attributes:
        parts: The networks by name.
        weights: Their weights by name.

    Raises:
        TypeError: If `parts` are no pairs.
        ValueError: If there are none, a weight is not above 0, or image options differ.
        WeightsError: If weights are missing, damaged or of another architecture.

    Example:
        >>> net = WeightedSum([("embedded", 1), ("embedded-vgg", 0.5)])
        >>> x, y = torch.rand(2, 2, 3, 64, 64)
        >>> expected = LPIPS("embedded")(x, y, (0, 1)) + 0.5 * LPIPS("embedded-vgg")(x, y, (0, 1))
        >>> torch.allclose(net(x, y, data_range=(0, 1)), expected)
        True
    """

    __jit_unused_properties__ = (
        "layers",
        "smallest_side",
        "fingerprint",
        "source",
        "backbone_hashes",
        "label",
        "is_repeatable",
    )

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        pairs = _checked_parts(parts)
        nets = [LPIPS.of(net, {}, WeightedSum) for net, _ in pairs]
        self.names = _distinct(list(map(_name, nets)))
        self.weights = {name: float(weight) for name, (_, weight) in zip(self.names, pairs, strict=True)}
        self._nets = nn.ModuleList(nets)
        first = nets[0]
        for name, net in zip(self.names, nets, strict=True):
            if net.images != first.images:
                raise ValueError(
                    f"parts: expected networks that accept the same images, got {self.names[0]!r} with "
                    f"{_accepted(first.images)}, and {name!r} with {_accepted(net.images)}; all need the same "
                    "channels, range, gray, background and resize"
                )
        self.net_type, self.images, self.precision = "+".join(self.names), first.images, first.precision
        self.frame_chunk, self.memory_budget = None, _smallest(net.memory_budget for net in nets)
        self.validate_args = any(net.validate_args for net in nets)
        self.range_checker, self.role = RangeChecker(immediate=True), "data"

    @property
    def parts(self) -> dict[str, PerceptualDistance]:
        """The networks by name."""
        return dict(zip(self.names, self._nets, strict=True))  # type: ignore[arg-type]

    @property
    @override
    def layers(self) -> tuple[str, ...]:
        return tuple(f"{name}.{layer}" for name, net in self.parts.items() for layer in net.layers)

    @property
    @override
    def smallest_side(self) -> int:
        return max(net.smallest_side for net in self.parts.values())

    @property
    @override
    def fingerprint(self) -> str:
        terms = (f"{weight_text(self.weights[name])} * ({net.fingerprint})" for name, net in self.parts.items())
        return f"weighted sum: {' + '.join(terms)}"

    @property
    @override
    def source(self) -> str:
        return f"sum of {', '.join(f'{name}: ({net.source})' for name, net in self.parts.items())}"

    @property
    @override
    def backbone_hashes(self) -> frozenset[str]:
        return frozenset().union(*(net.backbone_hashes for net in self.parts.values()))

    @property
    @override
    def label(self) -> str:
        return " + ".join(
            f"{'' if self.weights[name] == 1 else f'{weight_text(self.weights[name])} '}{net.label}"
            for name, net in self.parts.items()
        )

    @property
    @override
    def is_repeatable(self) -> bool:
        return all(net.is_repeatable for net in self.parts.values())

    @override
    def check_range(self, data_range: tuple[float, float]) -> None:
        for net in self.parts.values():
            net.check_range(data_range)

    @override
    def check_maps(self) -> None:
        for net in self.parts.values():
            net.check_maps()

    @override
    def plain(self) -> Self:
        clone = super().plain()
        clone._nets = nn.ModuleList(net.plain() for net in self.parts.values())
        return clone

    @override
    def encode_flat(self, images: Tensor, flat: Tensor, flat_range: tuple[float, float]) -> dict[str, Tensor]:
        known: dict[tuple[str, str], dict[str, Tensor]] = {}
        for net in self.parts.values():
            key = (net.source, net.precision)
            if key not in known:
                known[key] = net.encode_flat(images, flat, flat_range)
        return {
            f"{name}.{layer}": features
            for name, net in self.parts.items()
            for layer, features in known[net.source, net.precision].items()
        }

    @override
    def pair_terms(
        self,
        x: Tensor,
        y: Tensor | Features,
        data_range: tuple[float, float],
        roles: tuple[Role, Role],
        *,
        map_size: tuple[int, int] | None = None,
        per_layer: bool = False,
        mask: Tensor | None = None,
        erode: bool = False,
    ) -> LayerDistances:
        options = {"map_size": map_size, "per_layer": per_layer, "mask": mask, "erode": erode}
        return self._sum(
            {
                name: net.pair_terms(x, self._of_part(y, name), data_range, roles, **options)  # type: ignore[arg-type]
                for name, net in self.parts.items()
            }
        )

    @override
    def feature_terms(
        self, x: Features, y: Features, *, map_size: tuple[int, int] | None, mask: Tensor | None, erode: bool
    ) -> LayerDistances:
        options = {"map_size": map_size, "mask": mask, "erode": erode}
        return self._sum(
            {
                name: net.feature_terms(self._of_part(x, name), self._of_part(y, name), **options)  # type: ignore[arg-type]
                for name, net in self.parts.items()
            }
        )

    @override
    def all_pairs(
        self, x: Tensor, y: Tensor | None, data_range: DataRange, batch_size: int, memory_budget: int
    ) -> Tensor:
        terms = [
            self.weights[name] * net.all_pairs(x, y, data_range, batch_size, memory_budget)
            for name, net in self.parts.items()
        ]
        return torch.stack(terms).sum(0)

    @override
    def selfcheck(self, device: torch.device | str = "cpu") -> dict[str, float]:
        """See `LPIPS.selfcheck`: of every part for which distances are recorded.

        Args:
            device: Device to compute on.

        Returns:
            The measured distances, by part: ``"vgg.p0"``. Parts that are missing here have no recorded ones.

        Raises:
            WeightsError: If they differ from the recorded ones.
            ValueError: If none are recorded for any part.
        """
        found: dict[str, float] = {}
        errors = []
        for name, net in self.parts.items():
            try:
                found |= {f"{name}.{pair}": distance for pair, distance in net.selfcheck(device).items()}
            except ValueError as error:
                errors.append(error)
        if not found:
            raise errors[0]
        return found

    def _of_part(self, given: Tensor | Features, name: str) -> Tensor | Features:
        """Images as they are; of features, those of a part."""
        if isinstance(given, Tensor):
            return given
        prefix = f"{name}."
        layers = {
            layer.removeprefix(prefix): values for layer, values in given.layers.items() if layer.startswith(prefix)
        }
        return given._replace(layers=layers, source=self.parts[name].source)

    def _sum(self, found: Mapping[str, LayerDistances]) -> LayerDistances:
        """Weighted terms by layer, or their sum under ``""`` if a part has no terms by layer."""
        valid = [one for _, one in found.values() if one is not None]
        terms = {
            f"{name}.{layer}": self.weights[name] * values
            for name, (by_layer, _) in found.items()
            for layer, values in by_layer.items()
        }
        if any("" in by_layer for by_layer, _ in found.values()):
            terms = {"": torch.stack(list(terms.values())).sum(0)}
        return terms, torch.stack(valid).all(0) if valid else None


def _checked_parts(parts: Parts) -> list[tuple[Net, float]]:
    pairs: list[object] = list(parts.items()) if isinstance(parts, Mapping) else list(parts)
    if not pairs:
        raise ValueError("parts: expected one network or more, got none")
    checked: list[tuple[Net, float]] = []
    for pair in pairs:
        if isinstance(pair, str) or not isinstance(pair, Sequence) or len(pair) != 2:
            raise TypeError(
                f"parts: expected pairs (net, weight), such as [('vgg', 1), ('alex', 0.5)], got {pair!r:.80}"
            )
        net, weight = pair
        if isinstance(weight, bool) or not isinstance(weight, numbers.Real) or not 0 < float(weight) < math.inf:
            raise ValueError(f"parts: expected a finite weight above 0, got {weight!r}; leave a part of weight 0 out")
        checked.append((net, float(weight)))
    return checked


def _name(net: PerceptualDistance) -> str:
    """Name of a part, with its distance, unless that is the usual one or a formula, and its convention."""
    if not isinstance(net, LPIPS):
        return net.net_type
    distance = net.specification.distance
    usual = distance == "lpips" or not distance.isidentifier()
    return "-".join(filter(None, [net.net_type, None if usual else distance, net.convention]))


def _distinct(names: Sequence[str]) -> tuple[str, ...]:
    """Names without dots, which separate a part from its layer; a repeated one gets a number."""
    found: list[str] = []
    for name in (one.replace(".", "-") for one in names):
        known, count = name, 1
        while known in found:
            count += 1
            known = f"{name}-{count}"
        found.append(known)
    return tuple(found)


def _accepted(images: ImagePolicy) -> str:
    """What a network accepts, for errors."""
    limits = "" if images.has_range else " without a range"
    return ", ".join(filter(None, [f"{images.channels} channels{limits}", str(images)]))


def _smallest(budgets: Iterator[int | None]) -> int | None:
    return min((budget for budget in budgets if budget is not None), default=None)
