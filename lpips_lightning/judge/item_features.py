"""Pooled squared differences of a study's items: what a calibration is multiplied with, computed once and cached."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from lpips_lightning.calibration.model import TrainableLPIPS
from lpips_lightning.calibration.pooled import pool_pairs
from lpips_lightning.data.bapps import to_signed
from lpips_lightning.io.download import ProgressCallback, no_progress
from lpips_lightning.io.image_files import read_image
from lpips_lightning.io.tensor_files import read_record, write_tensors
from lpips_lightning.judge.judged_images import images_of
from lpips_lightning.judge.records import Image, Item
from lpips_lightning.judge.store import Study
from lpips_lightning.weights import WeightsError, read_tensors, tensors_sha256

_log = logging.getLogger("lpips_lightning")
_FORMAT = 1


def item_features(
    study: Study,
    network: TrainableLPIPS,
    cache: str | Path | None = None,
    report: ProgressCallback = no_progress,
) -> dict[int, Tensor]:
    """Features of the judged items: pooled squared differences of (ref, p0) minus those of (ref, p1).

    Their product with a calibration is the difference of the two distances; for JND, whose features are those of
    (ref, p0), it is the distance.

    Args:
        study: The study.
        network: Network with the backbone; its calibration is not used.
        cache: Folder for the result, created if missing; None: no cache. A file that is damaged, or of other images or
            another backbone, is made anew.
        report: Progress callback, in images.

    Returns:
        Shape ``(C,)`` by item, float32; all layers' channels, in the order of ``network.layers``.

    Raises:
        ValueError: If an image is damaged or too small.
        FileNotFoundError: If an image is missing.
    """
    items = list(study.items("judged").values())
    pairs = list(dict.fromkeys((item.ref, other) for item in items for other in images_of(item)[1:]))
    images = study.images()
    path = None if cache is None else Path(cache) / f"items-{network.record.name}.safetensors"
    key = _key(network, [(images[one], images[other]) for one, other in pairs])
    table = _read(path, key)
    if table is None:
        table = _pool(study, network, images, pairs, report)
        _write(path, key, table)
    rows = dict(zip(pairs, table, strict=True))
    return {item.id: _difference(item, rows) for item in items}


def start_calibration(network: TrainableLPIPS) -> Tensor:
    """The network's calibration, ``(C,)``, in the order of the features."""
    return torch.cat([network.calibration[layer] for layer in network.layers])


def _difference(item: Item, rows: dict[tuple[int, int], Tensor]) -> Tensor:
    first = rows[item.ref, item.p0]
    return first if item.p1 is None else first - rows[item.ref, item.p1]


def _pool(
    study: Study,
    network: TrainableLPIPS,
    images: dict[int, Image],
    pairs: Sequence[tuple[int, int]],
    report: ProgressCallback,
) -> Tensor:
    """Pooled squared differences ``(P, C)``, size by size."""
    sizes: dict[tuple[int, int], list[int]] = {}
    for row, (ref, _) in enumerate(pairs):
        sizes.setdefault((images[ref].height, images[ref].width), []).append(row)
    seen: set[int] = set()
    total = len({number for pair in pairs for number in pair})
    parts = []
    for rows in sizes.values():
        used = sorted({number for row in rows for number in pairs[row]})
        position = {number: index for index, number in enumerate(used)}

        def image(index: int, used: list[int] = used) -> Tensor:
            seen.add(used[index])
            report("measuring images", len(seen), total)
            return to_signed(read_image(study.folder / images[used[index]].path))

        indices = torch.tensor([[position[number] for number in pairs[row]] for row in rows])
        parts.append(pool_pairs(network, image, indices)[0])
    order = torch.tensor([row for rows in sizes.values() for row in rows])
    return torch.cat(parts)[order.argsort()]


def _key(network: TrainableLPIPS, pairs: Sequence[tuple[Image, Image]]) -> str:
    """Digest of everything that the features depend on."""
    scaling = [None if value is None else value.tolist() for value in (network.shift, network.scale)]
    backbone = tensors_sha256(network.extractor.graph.state_dict())
    digests = [(one.sha256, other.sha256) for one, other in pairs]
    content = repr((_FORMAT, network.record.name, network.layers, backbone, scaling, digests))
    return hashlib.sha256(content.encode()).hexdigest()


def _read(path: Path | None, key: str) -> Tensor | None:
    if path is None or not path.is_file():
        return None
    try:
        return read_tensors(path)["mean"] if read_record(path).get("key") == key else None
    except (OSError, WeightsError, KeyError) as error:
        _log.warning("%s; computing it anew", error)
        return None


def _write(path: Path | None, key: str, table: Tensor) -> None:
    if path is None:
        return
    try:
        write_tensors(path, {"mean": table}, {"key": key})
    except OSError as error:  # the result is valid without a cache
        _log.warning("cache: expected to write '%s', got %s; continuing without", path, error)
