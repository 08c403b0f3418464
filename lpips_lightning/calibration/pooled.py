"""Pooled squared differences of judged pairs, computed once and cached; the only input that mode lin needs.

LPIPS multiplies the calibration with the spatial mean of the squared difference of unit-normalized activations. That
mean has 1152 (alex), 1472 (vgg), 2240 (squeeze) or 464 (embedded) values per pair, for any image size.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lpips_lightning.calibration.model import TrainableLPIPS
from lpips_lightning.data.bapps import TwoAFCDataset, read_images
from lpips_lightning.data.triplets import TripletDataset
from lpips_lightning.distances.lpips import unit_normalize
from lpips_lightning.io.tensor_files import read_record, write_tensors
from lpips_lightning.weights import WeightsError, read_tensors, tensors_sha256

_log = logging.getLogger("lpips_lightning")
_FORMAT = 2  # increment when the cache files or their values change
TRIPLETS = 32
"""Triplets per batch of the backbone."""
Moments: TypeAlias = tuple[Tensor, Tensor | None]
"""`PooledTriplets.mean` and `PooledTriplets.spread` of some pairs, ``(P, C)``."""


@dataclass(frozen=True)
class PooledTriplets:
    """M judged triplets over a table of P pooled pairs.

    Attributes:
        mean: Pooled squared differences of the pairs, ``(P, C)``, float32; the layers' channels are concatenated.
        spread: Standard deviation of `mean` under the paper's element-wise dropout with probability 0.5, ``(P, C)``;
            None if not computed.
        rows: Row indices of (ref, p0) and (ref, p1) per triplet, ``(M, 2)``.
        judge: Fraction of people who find p1 nearer, ``(M,)`` in [0, 1].
        layers: Number of channels by layer name, in column order.
    """

    mean: Tensor
    spread: Tensor | None
    rows: Tensor
    judge: Tensor
    layers: dict[str, int]

    def __len__(self) -> int:
        return len(self.rows)

    def subset(self, chosen: Tensor) -> PooledTriplets:
        """The triplets with indices `chosen`, over the same table of pairs."""
        return replace(self, rows=self.rows[chosen], judge=self.judge[chosen])

    def distances(self, calibration: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Distances ``d(ref, p0)`` and ``d(ref, p1)``, each ``(M,)``, for weights ``(C,)`` by layer name."""
        d0, d1 = (self.mean @ self.joined(calibration).to(self.mean))[self.rows].unbind(1)
        return d0, d1

    def differences(self) -> Tensor:
        """Pooled values of (ref, p0) minus those of (ref, p1), ``(M, C)``."""
        first, second = self.rows.T
        return self.mean[first] - self.mean[second]

    def joined(self, calibration: Mapping[str, Tensor]) -> Tensor:
        """Weights ``(C,)`` of all layers in column order."""
        return torch.cat([calibration[layer] for layer in self.layers])

    def by_layer(self, weights: Tensor) -> dict[str, Tensor]:
        """Copies of joined weights ``(C,)`` by layer name."""
        parts = weights.detach().split(list(self.layers.values()))
        return {layer: part.clone() for layer, part in zip(self.layers, parts, strict=True)}


def pool(
    network: TrainableLPIPS, data: Dataset[dict[str, Any]], *, spread: bool = False, num_workers: int = 0
) -> PooledTriplets:
    """Compute pooled squared differences of judged triplets.

    Args:
        network: Network with the backbone; its calibration is not used.
        data: Triplets with items as in `TwoAFCDataset`. In a `TripletDataset`, images and pairs that occur in several
            triplets are processed once.
        spread: Also compute `PooledTriplets.spread`; takes twice the time and memory.
        num_workers: Worker processes that read images; ignored for a `TripletDataset`.

    Returns:
        The pooled triplets, on the CPU.

    Raises:
        ValueError: If an image is damaged or too small, or sizes differ.
        FileNotFoundError: If an image is missing.
    """
    if isinstance(data, TripletDataset):
        shared = SharedPairs(data)
        return shared.joined([pool_pairs(network, shared.image, shared.pairs, spread=spread)], network)
    batches = DataLoader(data, batch_size=TRIPLETS, num_workers=num_workers)
    return joined_batches([(triplet_moments(network, batch, spread), batch["judge"]) for batch in batches], network)


def pool_pairs(
    network: TrainableLPIPS,
    image: Callable[[int], Tensor],
    pairs: Tensor,
    *,
    spread: bool = False,
    memory_budget: int = 2**30,
) -> tuple[Tensor, Tensor | None]:
    """Pooled squared differences of image pairs; caches features of images that occur in several pairs.

    Args:
        network: Network with the backbone; its calibration is not used.
        image: Function from an image index to the image ``(3, H, W)`` on [-1, 1]; all images have one size.
        pairs: Image indices, ``(P, 2)``, at least one pair.
        spread: Also compute `PooledTriplets.spread`.
        memory_budget: Bytes for cached features. If all images need more, some are encoded again.

    Returns:
        `PooledTriplets.mean` and `PooledTriplets.spread` of the pairs.
    """
    capacity = feature_capacity(network, first := image(0), memory_budget)
    cache = FeatureCache(network, image, first.shape, capacity)
    # Process pairs block by block; the cache fits two blocks of images.
    block = capacity // 2
    keys = [(first // block, second // block, first, second) for first, second in pairs.tolist()]
    order = torch.tensor(sorted(range(len(pairs)), key=keys.__getitem__), dtype=torch.long)
    mean, deviation = pair_moments(cache, pairs[order], spread)
    inverse = order.argsort()
    return mean[inverse], None if deviation is None else deviation[inverse]


def cached_pool(
    network: TrainableLPIPS,
    data: TwoAFCDataset | TripletDataset,
    folder: str | os.PathLike[str] | None,
    *,
    spread: bool = False,
    num_workers: int = 0,
) -> PooledTriplets:
    """`pool` with a file cache.

    The cache key is a digest of the backbone's weights and input scaling, the judgments, and the names, sizes and
    modification times of all images. A damaged or mismatched cache file is recomputed, with a warning in the log.

    Args:
        network: Network with the backbone; its calibration is not used.
        data: Triplets in files.
        folder: Cache folder, created if missing; None: no cache.
        spread: See `pool`.
        num_workers: See `pool`.

    Returns:
        The pooled triplets, on the CPU.
    """
    if folder is None:
        return pool(network, data, spread=spread, num_workers=num_workers)
    cache = PoolCache(network, data, folder, spread)
    found = cache.read()
    if found is None:
        cache.write(found := pool(network, data, spread=spread, num_workers=num_workers))
    return found


class PoolCache:
    """The file of `cached_pool`.

    Args:
        network: Network with the backbone.
        data: Triplets in files.
        folder: Cache folder.
        spread: See `pool`.
    """

    def __init__(
        self,
        network: TrainableLPIPS,
        data: TwoAFCDataset | TripletDataset,
        folder: str | os.PathLike[str],
        spread: bool = False,
    ) -> None:
        self._folder, self._layers = folder, _columns(network)
        self._key = _key(network, data, spread)
        name = f"pooled-{network.record.name}-{self._key[:16]}.safetensors"
        self._path = Path(folder).expanduser() / name

    def read(self) -> PooledTriplets | None:
        """The pooled triplets; None if they are to be computed."""
        try:
            return _read(self._path, self._key, self._layers) if self._path.is_file() else None
        except (OSError, WeightsError) as error:
            _log.warning("%s; recomputing", error)
            return None

    def write(self, pooled: PooledTriplets) -> None:
        """Write pooled triplets; if this fails, the log says so."""
        tensors = {"mean": pooled.mean, "rows": pooled.rows, "judge": pooled.judge}
        if pooled.spread is not None:
            tensors["spread"] = pooled.spread
        try:
            write_tensors(self._path, tensors, {"key": self._key})
        except OSError as error:  # the result is valid without a cache
            text = "cache: expected to write pooled differences to '%s', got %s; continuing without"
            _log.warning(text, self._folder, error)


def level_factor(triplets: PooledTriplets, own: dict[str, Tensor], official: dict[str, Tensor]) -> float:
    """Factor that gives a calibration the mean distance of the official one over the pairs of triplets.

    Args:
        triplets: The triplets.
        own: Weights ``(C,)`` by layer name.
        official: Weights ``(C,)`` by layer name.

    Raises:
        ValueError: If a mean distance is not above 0.
    """
    ours, theirs = (float(torch.cat(triplets.distances(weights)).double().mean()) for weights in (own, official))
    if not (ours > 0 and theirs > 0):
        raise ValueError(
            f"rescale: expected mean distances above 0, got {ours:g} and {theirs:g} (official); if the images differ,"
            " lower --lr, or pass --no-rescale"
        )
    return theirs / ours


class FeatureCache:
    """LRU cache of unit-normalized activations.

    Args:
        network: Network with the backbone.
        image: Function from an image index to the image ``(3, H, W)``.
        shape: Shape that all images must have.
        capacity: Most images in the cache.
    """

    def __init__(
        self, network: TrainableLPIPS, image: Callable[[int], Tensor], shape: torch.Size, capacity: int
    ) -> None:
        self.network, self.image, self.shape, self.capacity = network, image, shape, capacity
        self.features: OrderedDict[int, list[Tensor]] = OrderedDict()

    def get(self, index: int) -> list[Tensor]:
        """`_unit_features` of one image, without the batch dimension."""
        if index not in self.features:
            image = self.image(index)
            check_shape(image, self.shape)
            self.features[index] = [features[0] for features in _unit_features(self.network, image[None])]
        self.features.move_to_end(index)
        if len(self.features) > self.capacity:
            self.features.popitem(last=False)
        return self.features[index]


class SharedPairs:
    """The images and pairs of triplets, those that occur in several triplets once.

    Args:
        data: The triplets.

    Attributes:
        pairs: Image indices, ``(P, 2)``.
    """

    def __init__(self, data: TripletDataset) -> None:
        self._data = data
        self._files = sorted({file for triplet in data.triplets for file in (triplet.ref, triplet.p0, triplet.p1)})
        indices = {file: index for index, file in enumerate(self._files)}
        # Distances are symmetric, so (a, b) and (b, a) are one pair.
        all_pairs = [
            sorted((indices[triplet.ref], indices[other]))
            for triplet in data.triplets
            for other in (triplet.p0, triplet.p1)
        ]
        self.pairs, self._rows = torch.tensor(all_pairs).unique(dim=0, return_inverse=True)

    def image(self, index: int) -> Tensor:
        """The image ``(3, H, W)`` on [-1, 1] with this index."""
        return read_images({"image": self._data.folder / self._files[index]}, self._data.size)["image"]

    def joined(self, parts: Sequence[Moments], network: TrainableLPIPS) -> PooledTriplets:
        """The pooled triplets from the moments of all pairs, in order."""
        judge = torch.tensor([triplet.judge for triplet in self._data.triplets])
        return PooledTriplets(*concatenate(parts), self._rows.view(-1, 2), judge, _columns(network))


def feature_capacity(network: TrainableLPIPS, image: Tensor, memory_budget: int = 2**30) -> int:
    """How many images' features fit in a number of bytes; at least 2."""
    with torch.inference_mode():
        features = _unit_features(network, image[None])
    return max(2, memory_budget // sum(one.numel() * one.element_size() for one in features))


def check_shape(image: Tensor, shape: torch.Size) -> None:
    """Raise a ValueError unless an image has this shape."""
    if image.shape != shape:
        sizes = " and ".join(f"{one[1]}x{one[2]}" for one in (shape, image.shape))
        raise ValueError(f"size: expected images of one size, got {sizes}; set size to resize them")


@torch.inference_mode()
def pair_moments(cache: FeatureCache, pairs: Tensor, spread: bool) -> Moments:
    """Pooled squared differences of pairs of image indices ``(P, 2)``, in order; independent of the other pairs."""
    # One pair at a time: its difference fits the CPU cache, that of a batch does not.
    parts = [_moments(cache.get(first), cache.get(second), spread) for first, second in pairs.tolist()]
    return concatenate([(one[None], None if two is None else two[None]) for one, two in parts])


@torch.inference_mode()
def triplet_moments(network: TrainableLPIPS, batch: Mapping[str, Tensor], spread: bool) -> Moments:
    """Pooled squared differences of a batch of N triplets: N rows of (ref, p0), then N of (ref, p1)."""
    ref, *others = (_unit_features(network, batch[name]) for name in ("ref", "p0", "p1"))
    return concatenate([_moments(ref, other, spread) for other in others])


def joined_batches(batches: Sequence[tuple[Moments, Tensor]], network: TrainableLPIPS) -> PooledTriplets:
    """The pooled triplets from `triplet_moments` and judgments of all batches, in order."""
    rows: list[Tensor] = []
    start = 0
    for _, judge in batches:
        count = len(judge)
        rows.append(start + torch.arange(2 * count).view(2, count).T)
        start += 2 * count
    moments, judges = [one for one, _ in batches], torch.cat([judge for _, judge in batches]).float()
    return PooledTriplets(*concatenate(moments), torch.cat(rows), judges, _columns(network))


def _unit_features(network: TrainableLPIPS, images: Tensor) -> list[Tensor]:
    """Unit-normalized activations ``(N, C, H * W)`` of every layer."""
    network.images.check(images, "images", network.record.name, network.record.smallest_side)
    return [unit_normalize(features.float()).flatten(2).contiguous() for features in network.encode(images).values()]


def _moments(x: list[Tensor], y: list[Tensor], spread: bool) -> Moments:
    """Mean squared difference, and its standard deviation under dropout of 0.5, each ``(..., C)`` over all layers.

    For n positions, squared differences s and dropout probability p, dropout keeps the mean of s and adds a variance of
    ``p / (1 - p) * sum(s^2) / n^2``.
    """
    means, deviations = [], []
    for one, other in zip(x, y, strict=True):
        difference = one - other
        means.append(torch.linalg.vector_norm(difference, dim=-1).square() / difference.shape[-1])
        if spread:
            deviations.append(torch.linalg.vector_norm(difference.square_(), dim=-1) / difference.shape[-1])
    return torch.cat(means, -1), torch.cat(deviations, -1) if spread else None


def concatenate(parts: Sequence[Moments]) -> Moments:
    """Moments of several pairs as one, outside of inference mode."""
    means, deviations = zip(*parts, strict=True)
    computed = [deviation for deviation in deviations if deviation is not None]
    # Clone, because inference tensors cannot be used in autograd.
    return torch.cat(means).clone(), torch.cat(computed).clone() if computed else None


def _columns(network: TrainableLPIPS) -> dict[str, int]:
    return dict(zip(network.layers, network.record.channels, strict=True))


def _key(network: TrainableLPIPS, data: TwoAFCDataset | TripletDataset, spread: bool) -> str:
    """Digest of everything that the pooled values depend on."""
    digest = hashlib.sha256()
    scaling = [None if value is None else value.tolist() for value in (network.shift, network.scale)]
    backbone = tensors_sha256(network.extractor.graph.state_dict())
    digest.update(repr((_FORMAT, network.record.name, network.layers, backbone, scaling, data.size, spread)).encode())
    if isinstance(data, TripletDataset):
        digest.update(repr(data.triplets).encode())
        files: Iterable[Path] = (
            data.folder / file for triplet in data.triplets for file in (triplet.ref, triplet.p0, triplet.p1)
        )
    else:
        names = (*data.images, data.judgment)
        files = (
            (data.folder / folder / name / file).with_suffix(".npy" if name == data.judgment else Path(file).suffix)
            for folder, file in data.items
            for name in names
        )
    seen: dict[Path, str] = {}
    for file in files:
        if file not in seen:
            status = file.stat()
            seen[file] = f"{file.relative_to(data.folder).as_posix()} {status.st_size} {status.st_mtime_ns}\n"
            digest.update(seen[file].encode())
    return digest.hexdigest()


def _read(path: Path, key: str, layers: dict[str, int]) -> PooledTriplets:
    tensors, record = read_tensors(path), read_record(path)
    if record.get("key") != key or not {"mean", "rows", "judge"} <= set(tensors):
        raise WeightsError(f"{path}: expected pooled differences of this backbone and these triplets, got others")
    return PooledTriplets(**{"spread": None, **cast("dict[str, Any]", tensors)}, layers=layers)
