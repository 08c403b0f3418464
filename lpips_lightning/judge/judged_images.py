"""Images of a study: their files, checked to be those that people saw, and distances of its pairs by any method."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor

from lpips_lightning.data.bapps import read_images
from lpips_lightning.data.triplets import Triplet, photograph_of
from lpips_lightning.evaluation.methods import Method
from lpips_lightning.judge.records import Image, Item, StudyError
from lpips_lightning.judge.store import Study

Distances = dict[int, tuple[float, float | None]]
"""Distances ``(ref, p0)`` and ``(ref, p1)`` by item; the second is None for JND."""

_BATCH_PIXELS = 50 * 64 * 64


def images_of(item: Item) -> list[int]:
    """Numbers of the images of an item: the reference, then the candidates."""
    return [item.ref, item.p0, *([] if item.p1 is None else [item.p1])]


def related(study: Study, items: Iterable[Item]) -> Tensor:
    """Number of what the reference of each item comes from, ``(M,)``; equal where it is one photograph or file."""
    images, numbers = study.images(), dict[str, int]()
    names = [photograph_of(images[item.ref].path) for item in items]
    return torch.tensor([numbers.setdefault(name, len(numbers)) for name in names], dtype=torch.long)


def related_by(study: Study) -> str:
    """What `related` tells apart, in a word."""
    images = study.images()
    paths = [images[item.ref].path for item in study.items("judged").values()]
    return "photograph" if any(photograph_of(path) != path for path in paths) else "reference"


def is_of_photographs(study: Study) -> bool:
    """Whether the candidates of a study are distorted photographs, not the outputs of methods."""
    return "images" in study.made_with() or related_by(study) == "photograph"


def checked_files(study: Study, items: Iterable[Item]) -> dict[int, Path]:
    """Files of the images of items, by number.

    Raises:
        StudyError: If a file is missing, or is not the one that people saw.
    """
    images = study.images()
    used = sorted({number for item in items for number in images_of(item)})
    return {number: _checked(study.folder, images[number]) for number in used}


def _checked(folder: Path, image: Image) -> Path:
    file = folder / image.path
    if not file.is_file():
        raise StudyError(
            f"images: expected the file that people saw, got none at '{file}'; put it back, or the folder beside the"
            " file of the study"
        )
    if hashlib.sha256(file.read_bytes()).hexdigest() != image.sha256:
        raise StudyError(f"images: expected the file that people saw, got another content in '{file}'; put it back")
    return file


def triplets_of(study: Study, votes: Mapping[int, tuple[int, int]]) -> list[Triplet]:
    """Judged triplets of a 2AFC study; their files are relative to `Study.folder`.

    Args:
        study: The study.
        votes: Votes for p0 and p1 by item.
    """
    images, items = study.images(), study.items("judged")
    triplets = []
    for item, (for_p0, for_p1) in votes.items():
        ref, p0, p1 = (images[image].path for image in images_of(items[item]))
        triplets.append(Triplet(ref, p0, p1, for_p1 / (for_p0 + for_p1)))
    return triplets


def measure(
    study: Study,
    items: Sequence[Item],
    methods: Sequence[Method],
    *,
    size: int | None = None,
    device: str | torch.device = "cpu",
    report: Callable[[str, int, int], None] | None = None,
) -> dict[str, Distances]:
    """Distances of the pairs of items; every pair is measured once.

    Args:
        study: The study.
        items: Items to measure.
        methods: Methods.
        size: Side to resize images to; None: as people saw them.
        device: Device to compute on.
        report: Progress callback: what, pairs done, pairs in total.

    Returns:
        Distances by name of the method.

    Raises:
        StudyError: If a file is missing or was changed.
        ValueError: If the images of an item differ in size.
    """
    files = checked_files(study, items)
    pairs = sorted({(item.ref, candidate) for item in items for candidate in images_of(item)[1:]})
    found: dict[str, dict[tuple[int, int], float]] = {method.name: {} for method in methods}
    done = 0
    for batch in _batches(pairs, study.images(), size):
        read = [read_images({"ref": files[one], "candidate": files[other]}, size) for one, other in batch]
        ref, other = (torch.stack([pair[kind] for pair in read]).to(device) for kind in ("ref", "candidate"))
        for method in methods:
            found[method.name] |= dict(zip(batch, _distances(method, ref, other), strict=True))
        done += len(batch)
        if report is not None:
            report("distances", done, len(pairs))
    return {name: _by_item(items, values) for name, values in found.items()}


def _distances(method: Method, ref: Tensor, other: Tensor) -> list[float]:
    with torch.inference_mode():
        values = method.distance(ref, other).cpu().double().flatten()
    if not bool(values.isfinite().all()):
        raise ValueError(f"net: expected finite distances, got others by {method.name}; leave it out")
    return [float(value) for value in values]


def _by_item(items: Sequence[Item], values: Mapping[tuple[int, int], float]) -> Distances:
    return {
        item.id: (values[item.ref, item.p0], None if item.p1 is None else values[item.ref, item.p1]) for item in items
    }


def _batches(
    pairs: Sequence[tuple[int, int]], images: Mapping[int, Image], size: int | None
) -> Iterable[list[tuple[int, int]]]:
    """Pairs of one image size, as many at a time as have about the pixels of 50 patches of 64 x 64."""

    def side(pair: tuple[int, int]) -> tuple[int, int]:
        return (size, size) if size else (images[pair[0]].height, images[pair[0]].width)

    for (height, width), group in groupby(sorted(pairs, key=side), side):
        some, count = list(group), max(1, _BATCH_PIXELS // (height * width))
        yield from (some[start : start + count] for start in range(0, len(some), count))
