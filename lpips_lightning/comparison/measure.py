"""LPIPS of image files: pair by pair, or all with all; decoded beside the backbone, a few batches in memory."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lpips_lightning.comparison.file_pairs import Pair
from lpips_lightning.io.download import Report, silent
from lpips_lightning.io.image_decoding import Header, printable, read_pixels
from lpips_lightning.network import LPIPS

_PAIRS, _PIXELS = 24, 1 << 19  # in one batch, unless the user says how many
_AHEAD = 2  # batches that are decoded while one is measured
_Pixels = npt.NDArray[Any]


@dataclass(frozen=True)
class Compared:
    """What was found of a pair.

    Attributes:
        pair: The files.
        distance: LPIPS; NaN if they could not be read.
        layers: The layers' terms by name, which sum to it.
        error: Why they could not be read; empty if they could.
    """

    pair: Pair
    distance: float = math.nan
    layers: dict[str, float] = field(default_factory=dict)
    error: str = ""


def measure_pairs(
    pairs: Sequence[Pair],
    net: LPIPS,
    headers: Mapping[Path, Header],
    *,
    device: str | torch.device = "cpu",
    batch_size: int | None = None,
    keep_map: Callable[[Pair, Tensor], None] | None = None,
    report: Report = silent,
) -> list[Compared]:
    """LPIPS of every pair of images.

    Pairs of equal sizes pass the backbone together. An image that turns out to be damaged, or transparent without a
    ``background=``, does not stop the others.

    Args:
        pairs: What to compare.
        net: What measures.
        headers: Of all files, from `check_images`.
        device: Where.
        batch_size: Pairs at once; None: 24, fewer of large images.
        keep_map: Given every pair's map ``(H, W)`` on the CPU.
        report: Told the progress, in pairs.

    Returns:
        In the order of `pairs`.

    Raises:
        OSError: If `keep_map` does.
    """
    found: dict[int, Compared] = {}
    with ThreadPoolExecutor(_workers()) as pool:
        waiting: deque[list[tuple[int, Future[tuple[_Pixels, _Pixels]]]]] = deque()

        def finish() -> None:
            batch = waiting.popleft()
            found.update(_measure_batch(pairs, batch, net, torch.device(device), keep_map))
            report("comparing", len(found), len(pairs))

        try:
            for numbers in _batches(pairs, headers, batch_size):
                futures = [(n, pool.submit(_read_pair, pairs[n], headers, net)) for n in numbers]
                waiting.append(futures)
                if len(waiting) > _AHEAD:
                    finish()
            while waiting:
                finish()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return [found[number] for number in range(len(pairs))]


def measure_all_pairs(
    files: Sequence[Path],
    net: LPIPS,
    headers: Mapping[Path, Header],
    *,
    device: str | torch.device = "cpu",
    batch_size: int | None = None,
    report: Report = silent,
) -> Tensor:
    """LPIPS of every image to every other; each passes the backbone once, and all are held in memory.

    Args:
        files: Images of one size.
        net: What measures.
        headers: Of all files, from `check_images`.
        device: Where.
        batch_size: Images in one backbone pass; None: 24, fewer of large ones.
        report: Told the progress, in images.

    Returns:
        Shape ``(N, N)``, symmetric, on the CPU.

    Raises:
        ValueError: If an image is damaged, or transparent without a ``background=``.
    """
    pixels: list[_Pixels] = []
    with ThreadPoolExecutor(_workers()) as pool:
        for one in pool.map(lambda path: _read(path, headers[path], net), files):
            pixels.append(one)
            report("reading", len(pixels), len(files))
    deep = any(headers[path].deep for path in files)
    data_range: tuple[float, float] = (0.0, 1.0)
    if net.images.resize is None:
        images = _tensor(pixels, deep, device)
    else:  # one by one, for those of unequal sizes cannot be stacked before
        parts = [net.images.to_flat_rgb(_tensor([one], deep, device), data_range) for one in pixels]
        images, data_range = torch.cat([part for part, _ in parts]), parts[0][1]
    del pixels
    report("all pairs", 0, 0)
    at_once = batch_size or _at_once(images.shape[2] * images.shape[3])
    with torch.inference_mode():
        budget = net.memory_budget or 2**30  # of all features at once, as is pairwise's own default
        return net.pairwise(images, data_range=data_range, batch_size=at_once, memory_budget=budget).cpu()


def _workers() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(2, min(8, cores))


def _at_once(pixels: int) -> int:
    return max(1, min(_PAIRS, _PIXELS // pixels))


def _batches(pairs: Sequence[Pair], headers: Mapping[Path, Header], batch_size: int | None) -> Iterator[list[int]]:
    """Numbers of pairs that can be stacked."""
    alike: dict[tuple[Any, ...], list[int]] = {}
    for number, pair in enumerate(pairs):
        a, b = headers[pair.a], headers[pair.b]
        alike.setdefault((a.size, b.size, a.alpha, b.alpha, a.deep or b.deep), []).append(number)
    for (a, b, *_), numbers in alike.items():
        size = batch_size or _at_once(max(a[0] * a[1], b[0] * b[1]))
        yield from (numbers[start : start + size] for start in range(0, len(numbers), size))


def _read_pair(pair: Pair, headers: Mapping[Path, Header], net: LPIPS) -> tuple[_Pixels, _Pixels]:
    return _read(pair.a, headers[pair.a], net), _read(pair.b, headers[pair.b], net)


def _read(path: Path, header: Header, net: LPIPS) -> _Pixels:
    """``(H, W, 3)``; ``(H, W, 4)`` if it may be transparent and the network knows what lies under it."""
    pixels = read_pixels(path)
    if pixels.shape[:2] != header.size:
        raise ValueError(f"{printable(path)}: expected the size that it had before, got another: who is writing it?")
    if header.alpha and net.images.background is None:
        if bool((pixels[:, :, 3] < np.iinfo(pixels.dtype).max).any()):
            raise ValueError(
                f"{printable(path)}: expected an opaque image, got transparent pixels; --background says what lies"
                " under them"
            )
        pixels = pixels[:, :, :3]
    return pixels


def _measure_batch(
    pairs: Sequence[Pair],
    batch: Sequence[tuple[int, Future[tuple[_Pixels, _Pixels]]]],
    net: LPIPS,
    device: torch.device,
    keep_map: Callable[[Pair, Tensor], None] | None,
) -> dict[int, Compared]:
    """What was found of pairs that can be stacked, by number."""
    found, read = {}, []
    for number, future in batch:
        try:
            read.append((number, *future.result()))
        except (ValueError, OSError) as error:
            found[number] = Compared(pairs[number], error=str(error))
    if not read:
        return found
    numbers, first, second = zip(*read, strict=True)
    deep = any(one.dtype == np.uint16 for one in (first[0], second[0]))
    x, y = _tensor(first, deep, device), _tensor(second, deep, device)
    with torch.inference_mode():
        layers, maps = _layers_and_maps(net, x, y, keep_map is not None)
    distances = torch.stack(list(layers.values())).sum(0).tolist()
    terms = {layer: values.tolist() for layer, values in layers.items()}
    for row, number in enumerate(numbers):
        parts = {layer: values[row] for layer, values in terms.items()}
        if not math.isfinite(distances[row]):
            said = (
                f"{printable(pairs[number].a)}: expected a finite distance, got {distances[row]}; say --precision fp32"
            )
            found[number] = Compared(pairs[number], error=said)
            continue
        found[number] = Compared(pairs[number], distances[row], parts)
        if keep_map is not None and maps is not None:
            keep_map(pairs[number], maps[row, 0])
    return found


def _layers_and_maps(net: LPIPS, x: Tensor, y: Tensor, with_maps: bool) -> tuple[dict[str, Tensor], Tensor | None]:
    """Terms ``(N,)`` by layer, and maps ``(N, 1, H, W)`` on the CPU, from one pass of the backbone."""
    if not with_maps:
        layers = net(x, y, (0, 1), per_layer=True)
        return layers, None
    seen = net.encode(x, (0, 1)), net.encode(y, (0, 1))
    layers, maps = net.distance(*seen, per_layer=True), net.distance(*seen, spatial=True)
    return layers, maps.cpu()


def _tensor(pixels: Sequence[_Pixels], deep: bool, device: str | torch.device) -> Tensor:
    """``(N, C, H, W)``, uint8; or float32 on [0, 1] of 16 bits a channel, and beside such."""
    if deep:
        pixels = [one.astype(np.float32) / np.float32(np.iinfo(one.dtype).max) for one in pixels]
    channels = max(one.shape[2] for one in pixels)
    alike = [one if one.shape[2] == channels else _opaque(one) for one in pixels]
    return torch.from_numpy(np.stack(alike)).permute(0, 3, 1, 2).to(device)


def _opaque(pixels: _Pixels) -> _Pixels:
    full = 1.0 if pixels.dtype == np.float32 else np.iinfo(pixels.dtype).max
    return np.concatenate([pixels, np.full_like(pixels[:, :, :1], full)], 2)
