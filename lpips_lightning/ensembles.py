"""Average of a perceptual distance over random transformations of both images."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from random import Random
from typing import Literal, Self, TypeAlias, get_args

import torch
from torch import Tensor
from typing_extensions import override

from lpips_lightning.backbones.definition import Backbone
from lpips_lightning.backbones.frozen import without_modes
from lpips_lightning.batch import Features
from lpips_lightning.engine.dispatch import LayerDistances
from lpips_lightning.images.preprocessing import SIGNED
from lpips_lightning.images.random_transforms import NAMED, BoxDownscale, Numbers, RandomTransform
from lpips_lightning.images.ranges import UNBOUNDED, DataRange, RangeChecker, Role
from lpips_lightning.network import LPIPS
from lpips_lightning.perceptual_distance import PerceptualDistance
from lpips_lightning.tracing import is_jit_tracing, is_tracing

Named = Literal["elpips", "shift"]
Transforms: TypeAlias = Named | Sequence[RandomTransform]
"""Name of a list of transformations, or the list."""

_UNIT = (0.0, 1.0)


@dataclass(frozen=True)
class _Draw:
    """One draw of every transformation: the same for all images."""

    steps: tuple[tuple[RandomTransform, Numbers], ...]

    def images(self, images: Tensor) -> Tensor:
        for transform, numbers in self.steps:
            images = transform.apply(images, numbers)
        return images

    def mask(self, mask: Tensor) -> Tensor:
        return _Draw(self._moves()).images(mask)

    def size(self, size: tuple[int, int]) -> tuple[int, int]:
        """``(h, w)`` of transformed images."""
        height, width = self.mask(torch.empty(1, 1, *size, device="meta")).shape[-2:]
        return height, width

    def restore(self, maps: Tensor, size: tuple[int, int]) -> Tensor:
        """Maps of transformed images, moved back to images of this size."""
        moves, sizes = self._moves(), [size]
        for step in moves:
            sizes.append(_Draw((step,)).size(sizes[-1]))
        for (transform, numbers), before in zip(reversed(moves), reversed(sizes[:-1]), strict=True):
            maps = transform.restore(maps, numbers, before)
        return maps

    def _moves(self) -> tuple[tuple[RandomTransform, Numbers], ...]:
        return tuple(step for step in self.steps if step[0].moves_pixels)


class Ensemble(PerceptualDistance):
    """Mean of a distance over random transformations of both images, as E-LPIPS has it (Kettunen et al. 2019).

    A network can be fooled: images exist that it hardly tells apart and people do. Few of them fool it under other
    shifts, flips, scales and colors too. The two images of a pair are always transformed alike.

    As a metric: `draws` lists of random numbers are fixed by `seed`, the same for every image. The mean does not depend
    on batches, ranks or their order; `measure_with_error` also returns the standard error of the mean, and so does
    `lpips_lightning.compare`. As a loss: ``draws=1, seed=None`` transforms every batch by a fresh draw from PyTorch's
    global generator of the CPU, so seeded trainings repeat. A resumed one goes on with other draws, unless the state of
    that generator is restored, which Lightning does not do. Ranks that are seeded alike draw alike.

    Transformations act on the images as the network gets them, after `gray`, `background` and `resize`, mapped from
    the declared range, if there is one, to [0, 1], in float32 (float64 for float64 images). Predictions of a loss are
    not clamped. Masks are transformed like the images; maps of each draw are moved back to the pixels of the images and
    averaged.

    ``"elpips"`` is `Shift`, `Flip`, `Transpose`, `ChannelGains`, `ChannelPermutation` and `BoxDownscale` of
    `lpips_lightning.images`, one after the other, with the numbers of E-LPIPS. Its values differ from those here: it
    reduces first, with boxes that begin at random pixels, then shifts, which enlarges the image where here pixels leave
    it, and runs a VGG of its own with average pooling, dropout and 14 feature layers. ``"shift"`` moves both images by
    up to 7 pixels in both directions; it removes the grid that a loss on tokens leaves in images of a decoder with the
    same patches. Channels of latents must not change places: take ``"shift"`` or a list of your own for them.

    Args:
        net: A backbone, or a built `LPIPS` or other `PerceptualDistance`, which has its own options.
        transforms: ``"elpips"``, ``"shift"``, or a list of transformations, applied one after the other.
        draws: Number of draws in the mean. Time grows in proportion; for a loss, so does the memory for gradients, one
            image batch for each draw.
        seed: Integer that fixes the draws; None for fresh draws in every call, which a metric does not accept.

    Attributes:
        net: The distance, which takes RGB images as they are.
        transforms: The transformations.
        draws: Number of draws.
        seed: The seed, or None.

    Raises:
        ValueError: If an argument has an unknown value.
        TypeError: If `transforms` holds anything else.

    Example:
        >>> ensemble = Ensemble("embedded", draws=4)
        >>> x, y = torch.rand(2, 2, 3, 64, 64)
        >>> mean, error = ensemble.measure_with_error(x, y, data_range=(0, 1))
        >>> torch.allclose(mean, ensemble(x, y, data_range=(0, 1))), error.shape
        (True, torch.Size([2]))
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

    def __init__(
        self,
        net: str | Backbone | PerceptualDistance = "alex",
        transforms: Transforms = "elpips",
        *,
        draws: int = 16,
        seed: int | None = 0,
    ) -> None:
        super().__init__()
        if type(draws) is not int or draws < 1:
            raise ValueError(f"draws: expected a whole number >= 1, got {draws!r}")
        if seed is not None and type(seed) is not int:
            raise ValueError(f"seed: expected an integer, or None for fresh draws, got {seed!r}")
        built = LPIPS.of(net, {}, Ensemble)
        if transforms == "elpips" and (built.images.channels != 3 or not built.images.has_range):
            raise ValueError(
                f"transforms: expected 'shift' or a list for a network of {built.images.described()}, got 'elpips', "
                "which scales and permutes the channels of RGB images"
            )
        self.net = built.plain()
        self.transforms = _checked_transforms(transforms, built.smallest_side)
        self.draws, self.seed = draws, seed
        self._indices = tuple(range(draws))
        self._label = f"{draws} draw{'s' * (draws > 1)}"
        self.net_type, self.images, self.precision = built.net_type, built.images, built.precision
        self.frame_chunk, self.memory_budget = built.frame_chunk, built.memory_budget
        self.validate_args = built.validate_args
        self.range_checker, self.role = RangeChecker(immediate=True), "data"

    @property
    def _range(self) -> tuple[float, float]:
        """Range of the transformed images."""
        return _UNIT if self.images.has_range else UNBOUNDED

    @property
    @override
    def layers(self) -> tuple[str, ...]:
        return self.net.layers

    @property
    @override
    def smallest_side(self) -> int:
        return self.net.smallest_side

    @property
    @override
    def is_repeatable(self) -> bool:
        return self.seed is not None and self.net.is_repeatable

    @property
    @override
    def fingerprint(self) -> str:
        transforms = " ".join(map(repr, self.transforms))
        fresh = f"{self.draws} fresh draw{'s' * (self.draws > 1)} a call"
        kind = fresh if self.seed is None else f"{self._label}, seed {self.seed}"
        return f"mean over transformations ({kind}: {transforms}) of {self.net.fingerprint}{self._image_label()}"

    @property
    @override
    def source(self) -> str:
        return f"{self._label} {self.seed} {self.transforms} {self.net.source}{self._image_label()}"

    @property
    @override
    def backbone_hashes(self) -> frozenset[str]:
        return self.net.backbone_hashes

    @property
    @override
    def label(self) -> str:
        return f"{self.net.label} ensemble"

    @override
    def check_range(self, data_range: tuple[float, float]) -> None:
        self.net.check_range(data_range)

    @override
    def check_maps(self) -> None:
        self.net.check_maps()

    @override
    def plain(self) -> Self:
        clone = super().plain()
        clone.net = self.net.plain()
        return clone

    def measure_with_error(
        self,
        x: Tensor,
        y: Tensor | Features,
        data_range: DataRange | None = None,
        *,
        mask: Tensor | None = None,
        erode: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Distance of every pair, and its standard error.

        The error is the standard deviation over draws, with ``draws - 1`` degrees of freedom, divided by the root of
        `draws`: how far the mean over these draws may be from the mean over all transformations.

        Args:
            x: See `forward`.
            y: See `forward`.
            data_range: See `forward`.
            mask: See `forward`.
            erode: See `forward`.

        Returns:
            Mean and standard error, each ``(N,)``, or ``(B, T)`` for videos.

        Raises:
            TypeError: See `forward`.
            ValueError: See `forward`; also with a single draw.
        """
        found = self.draw_distances(x, y, data_range, mask=mask, erode=erode)
        totals = torch.stack([torch.stack(list(terms.values())).sum(0) for terms in found])
        return totals.mean(0), self.standard_error(totals)

    def single(self, draw: int) -> Self:
        """The distance under one draw alone, for instance for a metric of each draw.

        The values of these metrics have the mean of the ensemble's metric, and their `standard_error` is the one of it.

        Args:
            draw: Index of the draw, from 0 to ``draws - 1``.

        Raises:
            ValueError: If there is no such draw, or no seed.

        Example:
            >>> from lpips_lightning import LearnedPerceptualImagePatchSimilarity
            >>> ensemble, (x, y) = Ensemble("embedded", draws=3), torch.rand(2, 2, 3, 64, 64)
            >>> one_each = [LearnedPerceptualImagePatchSimilarity(ensemble.single(i), data_range=1) for i in range(3)]
            >>> values = torch.stack([metric(x, y) for metric in one_each])
            >>> torch.allclose(values.mean(), ensemble(x, y, data_range=1).mean())
            True
            >>> ensemble.standard_error(values).shape
            torch.Size([])
        """
        if self.seed is None:
            raise ValueError("single: expected an ensemble with a seed, got fresh draws in every call; pass seed=0")
        if type(draw) is not int or draw not in self._indices:
            raise ValueError(f"draw: expected one of {self._indices}, got {draw!r}")
        clone = copy.deepcopy(self)
        clone._only(draw)
        return clone

    def draw_distances(
        self,
        x: Tensor,
        y: Tensor | Features,
        data_range: DataRange | None = None,
        *,
        mask: Tensor | None = None,
        erode: bool = False,
    ) -> Iterator[dict[str, Tensor]]:
        """Distance of every pair under each draw, by layer.

        Args:
            x: See `forward`.
            y: See `forward`.
            data_range: See `forward`.
            mask: See `forward`.
            erode: See `forward`.

        Yields:
            `draws` dicts of tensors ``(N,)``, or ``(B, T)`` for videos, that sum to the distance.

        Raises:
            TypeError: See `forward`.
            ValueError: See `forward`.
        """
        for index in self._indices:
            single = copy.copy(self)
            single._only(index)
            # Values are checked once, and warned of once.
            single.validate_args = self.validate_args and index == self._indices[0]
            other = y._replace(source=single.source) if isinstance(y, Features) and y.source == self.source else y
            values = single.measure(x, other, data_range, per_layer=True, mask=mask, erode=erode).values
            yield values if isinstance(values, dict) else {"": values}

    def standard_error(self, distances: Tensor) -> Tensor:
        """Standard error of a mean over draws.

        Args:
            distances: One value for each draw, ``(draws, ...)``, for instance from metrics of `single` draws.

        Returns:
            Shape ``(...)``.

        Raises:
            ValueError: For a single draw.
        """
        if len(distances) < 2:
            raise ValueError("draws: expected 2 or more for a standard error, got 1")
        return distances.std(0) / len(distances) ** 0.5

    @override
    def encode_flat(self, images: Tensor, flat: Tensor, flat_range: tuple[float, float]) -> dict[str, Tensor]:
        if self.seed is None:
            raise ValueError(
                "encode: expected an ensemble with a seed, got fresh draws in every call; compare images or pass seed=0"
            )
        unit = _to_unit(flat, flat_range)
        return {
            f"{index}.{layer}": features
            for index, draw in self._draws(unit)
            for layer, features in self.net.encode_flat(images, self._transformed(draw, unit), self._range).items()
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
        arguments = (x, y, data_range, roles, map_size, per_layer, mask, erode)
        return self._terms(*arguments) if self.seed is not None else _outside_graphs(self._terms, *arguments)

    def _terms(
        self,
        x: Tensor,
        y: Tensor | Features,
        data_range: tuple[float, float],
        roles: tuple[Role, Role],
        map_size: tuple[int, int] | None,
        per_layer: bool,
        mask: Tensor | None,
        erode: bool,
    ) -> LayerDistances:
        unit_x = _to_unit(*self.images.to_flat_rgb(x, data_range))
        unit_y = _to_unit(*self.images.to_flat_rgb(y, data_range)) if isinstance(y, Tensor) else None
        found = []
        for index, draw in self._draws(unit_x):
            images = self._transformed(draw, unit_x)
            size = (images.shape[2], images.shape[3])
            other = self._features(y, index, size) if unit_y is None else self._transformed(draw, unit_y)  # type: ignore[arg-type]
            options = {"map_size": None if map_size is None else size, "per_layer": per_layer, "erode": erode}
            moved = None if mask is None else draw.mask(mask)
            terms = self.net.pair_terms(images, other, self._range, roles, mask=moved, **options)  # type: ignore[arg-type]
            found.append(_restored(draw, terms, map_size))
        return _mean(found)

    @override
    def feature_terms(
        self, x: Features, y: Features, *, map_size: tuple[int, int] | None, mask: Tensor | None, erode: bool
    ) -> LayerDistances:
        found = []
        for index, draw in self._draws_of(self.images.channels):
            size = draw.size(x.size)
            parts = (self._features(features, index, size) for features in (x, y))
            options = {"map_size": None if map_size is None else size, "erode": erode}
            moved = None if mask is None else draw.mask(mask)
            terms = self.net.feature_terms(*parts, mask=moved, **options)  # type: ignore[arg-type]
            found.append(_restored(draw, terms, map_size))
        return _mean(found)

    @override
    def all_pairs(
        self, x: Tensor, y: Tensor | None, data_range: DataRange, batch_size: int, memory_budget: int
    ) -> Tensor:
        if self.images.gray == "per_channel":
            return super().all_pairs(x, y, data_range, batch_size, memory_budget)
        low_high = self.images.value_range(data_range, SIGNED)
        self.check_range(low_high)
        for images, name in ((x, "x"), (y, "y")):
            if images is not None:
                self.check_values(images, name, low_high)
        rows = _to_unit(*self.images.to_flat_rgb(x, low_high))
        columns = None if y is None else _to_unit(*self.images.to_flat_rgb(y, low_high))
        found = []
        for _, draw in self._draws(rows):
            others = None if columns is None else self._transformed(draw, columns)
            found.append(
                self.net.all_pairs(self._transformed(draw, rows), others, self._range, batch_size, memory_budget)
            )
        return torch.stack(found).mean(0)

    @override
    def selfcheck(self, device: torch.device | str = "cpu") -> dict[str, float]:
        """See `LPIPS.selfcheck`: of the network without transformations.

        Args:
            device: Device to compute on.

        Returns:
            The measured distances.

        Raises:
            WeightsError: If they differ from the recorded ones.
            ValueError: If none are recorded for this backbone.
        """
        return self.net.selfcheck(device)

    def _only(self, index: int) -> None:
        """Leave one draw."""
        if self.draws > 1:
            self._label = f"draw {index} of {self.draws}"
        self._indices, self.draws = (index,), 1

    def _image_label(self) -> str:
        return f", {self.images}" if str(self.images) else ""

    def _draws(self, images: Tensor) -> Iterator[tuple[int, _Draw]]:
        """The draws of a call, with their index."""
        if is_jit_tracing() or (self.seed is None and is_tracing()):
            raise ValueError(
                "Ensemble: expected a call outside tracing and export, which would keep the draws of the example; "
                "trace the network that it averages"
            )
        yield from self._draws_of(images.shape[1])

    def _draws_of(self, channels: int) -> Iterator[tuple[int, _Draw]]:
        amounts = tuple(transform.amount(channels) for transform in self.transforms)
        for index in self._indices:
            numbers = _fresh_numbers(amounts) if self.seed is None else _seeded_numbers(self.seed, index, amounts)
            yield index, _Draw(tuple(zip(self.transforms, numbers, strict=True)))

    def _transformed(self, draw: _Draw, images: Tensor) -> Tensor:
        found = draw.images(images)
        if min(found.shape[-2:]) < self.smallest_side:
            raise ValueError(
                f"transforms: expected images with sides of at least {self.smallest_side} pixels for net_type "
                f"{self.net_type!r}, got {found.shape[-2]}x{found.shape[-1]} of {images.shape[-2]}x{images.shape[-1]}"
            )
        return found

    def _features(self, features: Features, index: int, size: tuple[int, int]) -> Features:
        """Features under one draw."""
        prefix = f"{index}."
        layers = {
            name.removeprefix(prefix): layer for name, layer in features.layers.items() if name.startswith(prefix)
        }
        return Features(layers, size, features.batch_layout, self.net.source)


def _checked_transforms(transforms: Transforms, smallest_side: int) -> tuple[RandomTransform, ...]:
    if isinstance(transforms, str) and transforms not in get_args(Named):
        raise ValueError(
            f"transforms: expected one of {get_args(Named)} or a list of transformations of "
            f"lpips_lightning.images, got {transforms!r}"
        )
    steps: Sequence[RandomTransform] = NAMED[transforms] if isinstance(transforms, str) else transforms
    if not isinstance(steps, Sequence) or not all(isinstance(one, RandomTransform) for one in steps):
        raise TypeError(
            f"transforms: expected a list of transformations of lpips_lightning.images, such as [Shift(), Flip()], got "
            f"{transforms!r:.80}"
        )
    if not steps:
        raise ValueError("transforms: expected one transformation or more, got none; use the network without ensemble")
    return tuple(
        replace(one, least_side=max(one.least_side, smallest_side)) if isinstance(one, BoxDownscale) else one
        for one in steps
    )


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _outside_graphs(measure: Callable[..., LayerDistances], *arguments: object) -> LayerDistances:
    """What torch.compile leaves to Python: the numbers of a call decide which operations run."""
    return measure(*arguments)


def _fresh_numbers(amounts: tuple[int, ...]) -> list[list[float]]:
    """Numbers of one draw, from PyTorch's global generator of the CPU."""
    with without_modes():
        numbers = torch.rand(sum(amounts), dtype=torch.float64, device="cpu")
        return [part.tolist() for part in numbers.split(list(amounts))]


def _seeded_numbers(seed: int, index: int, amounts: tuple[int, ...]) -> list[list[float]]:
    """Numbers of one draw; those of Python's generator are the same in all versions and on all machines."""
    return [[float(number) for number in part.split()] for part in _written(seed, index, amounts).split("/")]


# As text: torch.compile would make variables of numbers, on which no branch may depend.
@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _written(seed: int, index: int, amounts: tuple[int, ...]) -> str:
    return _write(seed, index, amounts)


@lru_cache(maxsize=1024)
def _write(seed: int, index: int, amounts: tuple[int, ...]) -> str:
    parts = []
    for step, amount in enumerate(amounts):
        generator = Random(f"{seed}/{index}/{step}")
        parts.append(" ".join(repr(generator.random()) for _ in range(amount)))
    return "/".join(parts)


def _to_unit(images: Tensor, data_range: tuple[float, float]) -> Tensor:
    """Images mapped from their range to [0, 1], unclamped; values without a range as they are."""
    low, high = data_range
    images = images if images.dtype == torch.float64 else images.float()
    return images if data_range in (_UNIT, UNBOUNDED) else (images - low) / (high - low)


def _restored(draw: _Draw, terms: LayerDistances, size: tuple[int, int] | None) -> LayerDistances:
    """Maps moved back to the pixels of the images; distances as they are."""
    if size is None:
        return terms
    return {layer: draw.restore(maps, size) for layer, maps in terms[0].items()}, terms[1]


def _mean(found: Sequence[LayerDistances]) -> LayerDistances:
    """Mean over draws; an image is valid if it is under every draw."""
    if len(found) == 1:
        return found[0]
    terms: list[Mapping[str, Tensor]] = [one for one, _ in found]
    mean = {layer: torch.stack([one[layer] for one in terms]).mean(0) for layer in terms[0]}
    valid = [one for _, one in found if one is not None]
    return mean, torch.stack(valid).all(0) if valid else None
