"""Pooled squared differences of judged pairs, computed once: all that mode lin needs to know of the images.

A calibration is multiplied with the mean over space of the squared difference of unit activations. That mean is 1152
(alex), 1472 (vgg), 2240 (squeeze) or 464 (embedded) numbers a pair, whatever the images' size.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lpips_lightning.calibration.model import TrainableLPIPS
from lpips_lightning.data.bapps import TwoAFCDataset, read_images
from lpips_lightning.data.triplets import TripletDataset
from lpips_lightning.distance import unit_normalize
from lpips_lightning.images.preprocessing import PLAIN
from lpips_lightning.io.tensor_files import read_record, write_tensors
from lpips_lightning.weights import WeightsError, read_tensors, tensors_sha256

_log = logging.getLogger("lpips_lightning")
_FORMAT = 2  # of the cache's files and of how their numbers are computed
_Moments: TypeAlias = tuple[Tensor, Tensor | None]


@dataclass(frozen=True)
class PooledTriplets:
    """Judged triplets as rows of a table of pairs.

    Attributes:
        mean: Pooled squared differences of the pairs, ``(P, C)``, layers side by side, float32.
        spread: Standard deviation that the paper's element-wise dropout of one half gives each of them, ``(P, C)``;
            None where it was not asked for.
        rows: Of a triplet: the rows of (ref, p0) and of (ref, p1), ``(M, 2)``.
        judge: Share of people who find p1 nearer, ``(M,)``.
        layers: Channels by layer name, in the order of the columns.
    """

    mean: Tensor
    spread: Tensor | None
    rows: Tensor
    judge: Tensor
    layers: dict[str, int]

    def __len__(self) -> int:
        return len(self.rows)

    def subset(self, chosen: Tensor) -> PooledTriplets:
        """Some of the triplets, over the same table of pairs."""
        return replace(self, rows=self.rows[chosen], judge=self.judge[chosen])

    def distances(self, calibration: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """``d(ref, p0)`` and ``d(ref, p1)`` of every triplet, each ``(M,)``, for weights ``(C,)`` by layer name."""
        weight = torch.cat([calibration[layer] for layer in self.layers]).to(self.mean)
        d0, d1 = (self.mean @ weight)[self.rows].unbind(1)
        return d0, d1


def pool(
    network: TrainableLPIPS, data: Dataset[dict[str, Any]], *, spread: bool = False, num_workers: int = 0
) -> PooledTriplets:
    """Run the backbone over judged triplets once.

    Args:
        network: Its backbone is used, not its calibration.
        data: Triplets as `TwoAFCDataset` gives them. Of a `TripletDataset` every image is encoded once and every pair
            compared once, however many triplets they are in.
        spread: Compute `PooledTriplets.spread` too, in twice the time and memory.
        num_workers: Processes that read; not used for a `TripletDataset`, whose images are few.

    Returns:
        The table, on the CPU.

    Raises:
        ValueError: If an image is damaged, too small, or they differ in size.
        FileNotFoundError: If an image is missing.
    """
    if isinstance(data, TripletDataset):
        return _pool_shared(network, data, spread)
    parts: list[_Moments] = []
    judges: list[Tensor] = []
    rows: list[Tensor] = []
    for batch in DataLoader(data, batch_size=32, num_workers=num_workers):
        with torch.inference_mode():
            ref, *others = (_unit_features(network, batch[name]) for name in ("ref", "p0", "p1"))
            parts += [_moments(ref, other, spread) for other in others]
        count, start = len(batch["judge"]), 2 * sum(map(len, judges))
        judges.append(batch["judge"])
        rows.append(start + torch.arange(2 * count).view(2, count).T)  # all of (ref, p0), then all of (ref, p1)
    return PooledTriplets(*_joined(parts), torch.cat(rows), torch.cat(judges).float(), _columns(network))


def pool_pairs(
    network: TrainableLPIPS,
    image: Callable[[int], Tensor],
    pairs: Tensor,
    *,
    spread: bool = False,
    memory_budget: int = 2**30,
) -> tuple[Tensor, Tensor | None]:
    """Pooled squared differences of pairs out of a table of images; an image that is in many pairs is encoded once.

    Args:
        network: Its backbone is used, not its calibration.
        image: Number of an image -> ``(3, H, W)`` on [-1, 1], all of one size.
        pairs: Numbers of images, ``(P, 2)``, at least one pair.
        spread: Compute `PooledTriplets.spread` too.
        memory_budget: Bytes of features to hold. If all images need more, some are encoded again.

    Returns:
        `PooledTriplets.mean` and `PooledTriplets.spread` of the pairs.
    """
    with torch.inference_mode():
        held = _HeldFeatures(network, image, memory_budget)
        # In blocks of images such that those of two blocks fit into memory together; and back.
        block = max(1, held.capacity // 2)
        keys = [(first // block, second // block, first, second) for first, second in pairs.tolist()]
        order = torch.tensor(sorted(range(len(pairs)), key=keys.__getitem__), dtype=torch.long)
        # Pair by pair: a pair's difference stays in the processor's cache, a batch's does not.
        parts = [_moments(held.of(first), held.of(second), spread) for first, second in pairs[order].tolist()]
    mean, deviation = _joined([(one[None], None if two is None else two[None]) for one, two in parts])
    back = order.argsort()
    return mean[back], None if deviation is None else deviation[back]


def cached_pool(
    network: TrainableLPIPS,
    data: TwoAFCDataset | TripletDataset,
    folder: str | os.PathLike[str] | None,
    *,
    spread: bool = False,
    num_workers: int = 0,
) -> PooledTriplets:
    """`pool`, or what it gave the last time for the same backbone, images, size and judgments.

    The file's name is a digest of the backbone's weights, of how it scales its input, of the judgments, and of the
    names, sizes and times of all images. A file that is damaged or of something else is made anew, and the log says so.

    Args:
        network: Its backbone is used, not its calibration.
        data: Triplets in files.
        folder: Where to keep it; made when needed. None keeps nothing.
        spread: See `pool`.
        num_workers: See `pool`.

    Returns:
        The table, on the CPU.
    """
    if folder is None:
        return pool(network, data, spread=spread, num_workers=num_workers)
    key = _key(network, data, spread)
    path = Path(folder).expanduser() / f"pooled-{network.record.name}-{key[:16]}.safetensors"
    try:
        if path.is_file():
            return _read(path, key, network)
    except (OSError, WeightsError) as error:
        _log.warning("%s; computed anew", error)
    found = pool(network, data, spread=spread, num_workers=num_workers)
    tensors = {"mean": found.mean, "rows": found.rows, "judge": found.judge}
    if found.spread is not None:
        tensors["spread"] = found.spread
    try:
        write_tensors(path, tensors, {"key": key})
    except OSError as error:  # a full disk, a folder that may not be written: the numbers are right all the same
        _log.warning("cache: expected to keep pooled differences in '%s', got %s; they are not kept", folder, error)
    return found


class _HeldFeatures:
    """Unit activations of the images used last, within a number of bytes."""

    def __init__(self, network: TrainableLPIPS, image: Callable[[int], Tensor], memory_budget: int) -> None:
        self.network, self.image = network, image
        self.held: OrderedDict[int, list[Tensor]] = OrderedDict()
        self.shape = image(0).shape
        one = _unit_features(network, image(0)[None])
        size = sum(features.numel() * features.element_size() for features in one)
        self.capacity = max(2, memory_budget // size)

    def of(self, number: int) -> list[Tensor]:
        """What `_unit_features` gives for an image, without its first dimension."""
        if number not in self.held:
            image = self.image(number)
            if image.shape != self.shape:
                sizes = " and ".join(f"{shape[1]}x{shape[2]}" for shape in (self.shape, image.shape))
                raise ValueError(f"size: expected images of one size, got {sizes}; say which size to resize to")
            self.held[number] = [features[0] for features in _unit_features(self.network, image[None])]
        self.held.move_to_end(number)
        if len(self.held) > self.capacity:
            self.held.popitem(last=False)
        return self.held[number]


def _pool_shared(network: TrainableLPIPS, data: TripletDataset, spread: bool) -> PooledTriplets:
    files = sorted({file for triplet in data.triplets for file in (triplet.ref, triplet.p0, triplet.p1)})
    number = {file: index for index, file in enumerate(files)}
    # A distance is the same both ways, so (a, b) and (b, a) are one pair.
    both = [
        sorted((number[triplet.ref], number[other])) for triplet in data.triplets for other in (triplet.p0, triplet.p1)
    ]
    pairs, rows = torch.tensor(both).unique(dim=0, return_inverse=True)

    def image(index: int) -> Tensor:
        return read_images({"image": data.images / files[index]}, data.size)["image"]

    mean, deviation = pool_pairs(network, image, pairs, spread=spread)
    judge = torch.tensor([triplet.judge for triplet in data.triplets])
    return PooledTriplets(mean, deviation, rows.view(-1, 2), judge, _columns(network))


def _unit_features(network: TrainableLPIPS, images: Tensor) -> list[Tensor]:
    """Unit activations ``(N, C, positions)`` of every layer."""
    PLAIN.check(images, "images", network.record.name, network.record.smallest_side)
    return [unit_normalize(features.float()).flatten(2).contiguous() for features in network.encode(images).values()]


def _moments(x: list[Tensor], y: list[Tensor], spread: bool) -> _Moments:
    """Mean of the squared difference, and what dropout of one half adds, each ``(..., C)``, layers side by side.

    With n positions, squared differences s and a probability p, dropout leaves the mean of s as it is and adds a
    variance of ``p / (1 - p) * sum(s^2) / n^2``.
    """
    means, deviations = [], []
    for one, other in zip(x, y, strict=True):
        difference = one - other
        means.append(torch.linalg.vector_norm(difference, dim=-1).square() / difference.shape[-1])
        if spread:
            deviations.append(torch.linalg.vector_norm(difference.square_(), dim=-1) / difference.shape[-1])
    return torch.cat(means, -1), torch.cat(deviations, -1) if spread else None


def _joined(parts: list[_Moments]) -> _Moments:
    means, deviations = zip(*parts, strict=True)
    whole = [deviation for deviation in deviations if deviation is not None]
    # Clones are ordinary tensors, not of inference mode.
    return torch.cat(means).clone(), torch.cat(whole).clone() if whole else None


def _columns(network: TrainableLPIPS) -> dict[str, int]:
    return dict(zip(network.layers, network.record.channels, strict=True))


def _key(network: TrainableLPIPS, data: TwoAFCDataset | TripletDataset, spread: bool) -> str:
    """Digest of everything that decides the numbers."""
    digest = hashlib.sha256()
    scaling = [None if value is None else value.tolist() for value in (network.shift, network.scale)]
    backbone = tensors_sha256(network.extractor.graph.state_dict())
    digest.update(repr((_FORMAT, network.record.name, network.layers, backbone, scaling, data.size, spread)).encode())
    if isinstance(data, TripletDataset):
        digest.update(repr(data.triplets).encode())
        files: Iterable[Path] = (
            data.images / file for triplet in data.triplets for file in (triplet.ref, triplet.p0, triplet.p1)
        )
    else:
        names = (*data.images, data.judgment)
        files = (
            (data.root / folder / name / file).with_suffix(".npy" if name == data.judgment else Path(file).suffix)
            for folder, file in data.items
            for name in names
        )
    seen: dict[Path, str] = {}
    for file in files:
        if file not in seen:
            about = file.stat()
            seen[file] = f"{file.relative_to(_root(data)).as_posix()} {about.st_size} {about.st_mtime_ns}\n"
            digest.update(seen[file].encode())
    return digest.hexdigest()


def _root(data: TwoAFCDataset | TripletDataset) -> Path:
    return data.images if isinstance(data, TripletDataset) else data.root


def _read(path: Path, key: str, network: TrainableLPIPS) -> PooledTriplets:
    tensors, record = read_tensors(path), read_record(path)
    if record.get("key") != key or not {"mean", "rows", "judge"} <= set(tensors):
        raise WeightsError(f"{path}: expected pooled differences of this backbone and these triplets, got others")
    return PooledTriplets(**{"spread": None, **cast("dict[str, Any]", tensors)}, layers=_columns(network))
