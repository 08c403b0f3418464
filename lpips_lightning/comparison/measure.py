"""LPIPS of image files, pair by pair or all pairs; images are decoded in threads while the backbone runs."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from lpips_lightning.batch import Features
from lpips_lightning.comparison.fidelity import Score, pair_scores, white
from lpips_lightning.comparison.file_pairs import Pair
from lpips_lightning.comparison.mask_files import read_mask
from lpips_lightning.comparison.temporal import TemporalScores, places_of
from lpips_lightning.ensembles import Ensemble
from lpips_lightning.images.preprocessing import ImagePolicy
from lpips_lightning.io.download import ProgressCallback, no_progress
from lpips_lightning.io.image_decoding import Header, printable, read_pixels
from lpips_lightning.perceptual_distance import PerceptualDistance

_MAX_PAIRS, _MAX_PIXELS = 24, 1 << 19  # per default batch
_PREFETCH = 2  # batches decoded ahead of the backbone
_Pixels = npt.NDArray[Any]
_Mask = npt.NDArray[np.float32] | None
Read: TypeAlias = tuple[_Pixels, _Pixels, _Mask]
"""Pixels of a pair and its mask."""


@dataclass(frozen=True)
class PairResult:
    """Result of one pair.

    Attributes:
        pair: The two files.
        distance: LPIPS; NaN on an error.
        layers: Terms by layer name, which sum to `distance`.
        error: Why the pair failed; empty on success.
        scores: PSNR, SSIM and tLP, if wanted; tLP is NaN for the first frame of a video.
        standard_error: Of `distance`, over the draws of an `Ensemble`; else NaN.
    """

    pair: Pair
    distance: float = math.nan
    layers: dict[str, float] = field(default_factory=dict)
    error: str = ""
    scores: dict[str, float] = field(default_factory=dict)
    standard_error: float = math.nan


KeepMap: TypeAlias = Callable[[PairResult, Tensor, Read], None]
"""Takes the result of a pair, its map of local distances ``(H, W)`` on the CPU, 0 outside the mask, and its pixels."""

ReadPixels: TypeAlias = Callable[[Path, Header], _Pixels]
"""Decodes an image whose header is known."""


def read_file(path: Path, header: Header) -> _Pixels:
    """Pixels of a file, or of a stream that was read with its header."""
    return read_pixels(path, header.content)


def measure_pairs(
    pairs: Sequence[Pair],
    net: PerceptualDistance,
    headers: Mapping[Path, Header],
    *,
    device: str | torch.device = "cpu",
    batch_size: int | None = None,
    erode: bool = False,
    scores: Sequence[Score] = (),
    keep_map: KeepMap | None = None,
    report: ProgressCallback = no_progress,
    read: ReadPixels = read_file,
) -> list[PairResult]:
    """LPIPS of every pair of images.

    Batches pairs of equal sizes. A damaged image, or a transparent one without ``background=``, fails its pair only.

    Args:
        pairs: Files to compare; all with a mask, or none.
        net: The network.
        headers: Headers of all files, from `check_images`.
        device: Device to compute on.
        batch_size: Pairs per batch; None: 24, fewer for large images.
        erode: Count only positions whose receptive field the mask does not touch (see `LPIPS.forward`).
        scores: PSNR, SSIM and tLP to compute too. For tLP the pairs in one folder are the frames of a video, in the
            order of `pairs`.
        keep_map: Called with every result, its map and its pixels.
        report: Progress callback, in pairs.
        read: Decodes an image.

    Returns:
        One result per pair, in the order of `pairs`.

    Raises:
        OSError: If `keep_map` raises it.
        ValueError: If tLP is wanted of files that are not frames of videos.
    """
    results: dict[int, PairResult] = {}
    temporal = TemporalScores(net, places_of(pairs, headers)) if "tlp" in scores else None
    with ThreadPoolExecutor(_workers()) as pool:
        waiting: deque[list[tuple[int, Future[Read]]]] = deque()

        def finish() -> None:
            batch = waiting.popleft()
            results.update(_measure_batch(pairs, batch, net, torch.device(device), erode, scores, keep_map, temporal))
            report("comparing", len(results), len(pairs))

        try:
            for indices in _batches(pairs, headers, batch_size):
                futures = [(i, pool.submit(_read_pair, pairs[i], headers, net, read)) for i in indices]
                waiting.append(futures)
                if len(waiting) > _PREFETCH:
                    finish()
            while waiting:
                finish()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return [results[index] for index in range(len(pairs))]


def measure_all_pairs(
    files: Sequence[Path],
    net: PerceptualDistance,
    headers: Mapping[Path, Header],
    *,
    others: Sequence[Path] = (),
    device: str | torch.device = "cpu",
    batch_size: int | None = None,
    report: ProgressCallback = no_progress,
) -> Tensor:
    """LPIPS between all images; encodes each image once and holds all in memory.

    Args:
        files: The N images, of one size unless the network resizes.
        net: The network.
        headers: Headers of all files, from `check_images`.
        others: The M images that each of `files` is compared with; empty: `files` themselves.
        device: Device to compute on.
        batch_size: Images per backbone pass; None: 24, fewer for large images.
        report: Progress callback, in images.

    Returns:
        Matrix of shape ``(N, M)``, on the CPU; without `others` ``(N, N)``, symmetric if the distance is. The columns
        are the references.

    Raises:
        ValueError: If an image is damaged, or transparent without a ``background=``.
    """
    pixels: list[_Pixels] = []
    with ThreadPoolExecutor(_workers()) as pool:
        every = [*files, *others]
        for one in pool.map(lambda path: _read(path, headers[path], net, read_file), every):
            pixels.append(one)
            report("reading", len(pixels), len(every))
    deep = any(headers[path].deep for path in every)
    data_range: tuple[float, float] = (0.0, 1.0)
    if net.images.resize is None:
        images = stacked(pixels, deep, device)
    else:  # resize one by one: unequal sizes cannot be stacked
        parts = [net.images.to_flat_rgb(stacked([one], deep, device), data_range) for one in pixels]
        images, data_range = torch.cat([part for part, _ in parts]), parts[0][1]
    del pixels
    report("all pairs", 0, 0)
    batch_size = batch_size or _default_batch(images.shape[2] * images.shape[3])
    with torch.inference_mode():
        budget = net.memory_budget or 2**30  # the default of `pairwise`
        rows, columns = images[: len(files)], images[len(files) :] if others else None
        return net.pairwise(rows, columns, data_range, batch_size=batch_size, memory_budget=budget).cpu()


def _workers() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(2, min(8, cores))


def _default_batch(pixels: int) -> int:
    return max(1, min(_MAX_PAIRS, _MAX_PIXELS // pixels))


def default_batch_size(a: Header, b: Header) -> int:
    """Pairs per batch for images of this size."""
    return _default_batch(max(one.height * one.width for one in (a, b)))


def _batches(pairs: Sequence[Pair], headers: Mapping[Path, Header], batch_size: int | None) -> Iterator[list[int]]:
    """Indices of pairs that can be stacked."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for index, pair in enumerate(pairs):
        a, b = headers[pair.a], headers[pair.b]
        groups.setdefault((a.size, b.size, a.alpha, b.alpha, a.deep or b.deep), []).append(index)
    for indices in groups.values():
        size = batch_size or default_batch_size(headers[pairs[indices[0]].a], headers[pairs[indices[0]].b])
        yield from (indices[start : start + size] for start in range(0, len(indices), size))


def _read_pair(pair: Pair, headers: Mapping[Path, Header], net: PerceptualDistance, read: ReadPixels) -> Read:
    mask = None if pair.mask is None else read_mask(pair.mask)
    return _read(pair.a, headers[pair.a], net, read), _read(pair.b, headers[pair.b], net, read), mask


def _read(path: Path, header: Header, net: PerceptualDistance, read: ReadPixels) -> _Pixels:
    return checked_pixels(read(path, header), path, header, net.images)


def checked_pixels(pixels: _Pixels, path: str | Path, header: Header, images: ImagePolicy) -> _Pixels:
    """Pixels ``(H, W, 3)``, or ``(H, W, 4)`` for images with alpha if the network has a background.

    Raises:
        ValueError: If the size is not that of the header, or pixels are transparent and there is no background.
    """
    if pixels.shape[:2] != header.size:
        raise ValueError(
            f"{printable(path)}: expected height x width {header.height}x{header.width} as in the header check, got"
            f" {pixels.shape[0]}x{pixels.shape[1]}; another process may be writing the file"
        )
    if header.alpha and images.background is None:
        if bool((pixels[:, :, 3] < white(pixels)).any()):
            raise ValueError(
                f"{printable(path)}: expected an opaque image, got transparent pixels; --background sets the color"
                " behind them"
            )
        pixels = pixels[:, :, :3]
    return pixels


def _measure_batch(
    pairs: Sequence[Pair],
    batch: Sequence[tuple[int, Future[Read]]],
    net: PerceptualDistance,
    device: torch.device,
    erode: bool,
    scores: Sequence[Score],
    keep_map: KeepMap | None,
    temporal: TemporalScores | None,
) -> dict[int, PairResult]:
    """Results of one batch by index of the pair."""
    results, read = {}, []
    for index, future in batch:
        try:
            read.append((index, future.result()))
        except (ValueError, OSError) as error:
            results[index] = PairResult(pairs[index], error=str(error))
    if read:
        chosen, pixels = [pairs[index] for index, _ in read], [one for _, one in read]
        found = measure_read(chosen, pixels, net, device, erode, scores, keep_map, temporal)
        results |= {index: result for (index, _), result in zip(read, found, strict=True)}
    return results


def measure_read(
    pairs: Sequence[Pair],
    read: Sequence[Read],
    net: PerceptualDistance,
    device: torch.device,
    erode: bool,
    scores: Sequence[Score],
    keep_map: KeepMap | None,
    temporal: TemporalScores | None = None,
) -> list[PairResult]:
    """LPIPS of pairs of equal size that have been read, and tLP if there is `temporal`; see `measure_pairs`."""
    first, second, masks = zip(*read, strict=True)
    deep = any(one.dtype != np.uint8 for one in (*first, *second))
    x, y = stacked(first, deep, device), stacked(second, deep, device)
    mask = None if masks[0] is None else torch.from_numpy(np.stack(masks)).to(device)
    with torch.inference_mode():
        features = None
        if temporal is not None and net.memory_budget is None and not isinstance(net, Ensemble):
            features = net.encode(x, (0, 1)), net.encode(y, (0, 1))
        layers, maps, errors = _layers_and_maps(net, x, y, mask, erode, keep_map is not None, features)
        changes = [] if temporal is None else temporal.extend(pairs, *(features or (x, y)))
    distances = torch.stack(list(layers.values())).sum(0).tolist()
    terms = {layer: values.tolist() for layer, values in layers.items()}
    error = [math.nan] * len(read) if errors is None else errors.tolist()
    results = []
    for row, pair in enumerate(pairs):
        if not math.isfinite(distances[row]):
            results.append(PairResult(pair, error=_not_finite(pair, distances[row], erode)))
            continue
        pixels, own = read[row], {layer: values[row] for layer, values in terms.items()}
        beside = pair_scores(pixels[0], pixels[1], net.images, scores, pixels[2]) if set(scores) - {"tlp"} else {}
        beside |= {} if temporal is None else {"tlp": changes[row]}
        results.append(PairResult(pair, distances[row], own, scores=beside, standard_error=error[row]))
        if keep_map is not None and maps is not None:
            keep_map(results[-1], maps[row, 0], pixels)
    return results


def _not_finite(pair: Pair, distance: float, erode: bool) -> str:
    if math.isnan(distance) and pair.mask is not None:
        remedy = "; compare without --erode, or enlarge the white area" if erode else ""
        return f"{printable(pair.mask)}: expected a mask that leaves something to compare, got one without{remedy}"
    return f"{printable(pair.a)}: expected a finite distance, got {distance}; use --precision fp32"


def _layers_and_maps(
    net: PerceptualDistance,
    x: Tensor,
    y: Tensor,
    mask: Tensor | None,
    erode: bool,
    with_maps: bool,
    features: tuple[Features, Features] | None = None,
) -> tuple[dict[str, Tensor], Tensor | None, Tensor | None]:
    """Terms ``(N,)`` by layer, maps ``(N, 1, H, W)`` on the CPU, and the standard error over draws ``(N,)``.

    Maps without a mask are from one backbone pass, and without a standard error. The features are those of `x` and `y`,
    if they are there already.
    """
    layers: dict[str, Tensor] | None = None
    error = None
    if mask is not None or not (with_maps or features):
        layers, error = layer_terms(net, x, y, mask, erode)
    if layers is not None and not with_maps:
        return layers, None, error
    features = features or (net.encode(x, (0, 1)), net.encode(y, (0, 1)))
    if layers is None:
        layers = net.distance(*features, per_layer=True)
    if not with_maps:
        return layers, None, None
    maps = net.distance(*features, spatial=True)
    return layers, (maps if mask is None else maps * _at_size(mask, maps)).cpu(), error


def layer_terms(
    net: PerceptualDistance, x: Tensor, y: Tensor, mask: Tensor | None = None, erode: bool = False
) -> tuple[dict[str, Tensor], Tensor | None]:
    """Terms ``(N,)`` by layer, which sum to the distance, and the standard error over the draws of an `Ensemble`.

    Args:
        net: The network.
        x: Images on [0, 1] or uint8, ``(N, C, H, W)``.
        y: Images that `x` is compared with.
        mask: Weights of the pixels, ``(N, H, W)``.
        erode: See `measure_pairs`.
    """
    if not isinstance(net, Ensemble) or net.draws == 1:
        layers: dict[str, Tensor] = net(x, y, (0, 1), per_layer=True, mask=mask, erode=erode)
        return layers, None
    draws = list(net.draw_distances(x, y, (0, 1), mask=mask, erode=erode))
    totals = torch.stack([torch.stack(list(terms.values())).sum(0) for terms in draws])
    means = {layer: torch.stack([terms[layer] for terms in draws]).mean(0) for layer in draws[0]}
    return means, net.standard_error(totals)


def _at_size(mask: Tensor | None, maps: Tensor) -> Tensor | float:
    """The mask in the size of the maps, which is another one if the network resizes."""
    return 1.0 if mask is None else F.interpolate(mask[:, None], (maps.shape[-2], maps.shape[-1]), mode="area")


def stacked(pixels: Sequence[_Pixels], deep: bool, device: str | torch.device = "cpu") -> Tensor:
    """Stack to ``(N, C, H, W)``: uint8, or float32 on [0, 1] if any image of the batch has more than 8 bits."""
    if deep:
        pixels = [one.astype(np.float32) / np.float32(white(one)) for one in pixels]
    channels = max(one.shape[2] for one in pixels)
    same_channels = [one if one.shape[2] == channels else _add_opaque_alpha(one) for one in pixels]
    return torch.from_numpy(np.stack(same_channels)).permute(0, 3, 1, 2).to(device)


def _add_opaque_alpha(pixels: _Pixels) -> _Pixels:
    return np.concatenate([pixels, np.full_like(pixels[:, :, :1], white(pixels))], 2)
