"""LPIPS of two videos, frame by frame; only a few frames are in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path

import torch

from lpips_lightning.comparison.fidelity import Score
from lpips_lightning.comparison.file_pairs import Pair, check_images
from lpips_lightning.comparison.mask_files import check_masks, read_mask
from lpips_lightning.comparison.measure import (
    KeepMap,
    PairResult,
    Read,
    checked_pixels,
    default_batch_size,
    measure_read,
)
from lpips_lightning.comparison.temporal import TemporalScores
from lpips_lightning.io.download import ProgressCallback, no_progress
from lpips_lightning.io.image_decoding import Header, Pixels, printable
from lpips_lightning.io.video_files import read_frames
from lpips_lightning.perceptual_distance import PerceptualDistance


def measure_videos(
    pair: Pair,
    net: PerceptualDistance,
    *,
    device: str | torch.device = "cpu",
    batch_size: int | None = None,
    erode: bool = False,
    scores: Sequence[Score] = (),
    keep_map: KeepMap | None = None,
    report: ProgressCallback = no_progress,
) -> list[PairResult]:
    """LPIPS of every frame of two videos.

    Args:
        pair: The two videos, and the mask of all frames.
        net: The network.
        device: Device to compute on.
        batch_size: Frames per batch; None: 24, fewer for large frames.
        erode: See `measure_pairs`.
        scores: See `measure_pairs`.
        keep_map: See `measure_pairs`.
        report: Progress callback, in frames.

    Returns:
        One result per frame; the pair's name is the frame's index with leading zeros.

    Raises:
        ModuleNotFoundError: If PyAV is not installed.
        FileNotFoundError: If a file does not exist.
        ValueError: If a video is damaged or not supported, the videos differ in their numbers or sizes of frames, or
            tLP is wanted of single frames.
    """
    temporal = TemporalScores(net) if "tlp" in scores else None
    compute = (torch.device(device), erode, scores, keep_map, temporal)
    results: list[PairResult] = []
    pairs: list[Pair] = []
    read: list[Read] = []
    size = batch_size or 1
    mask = None if pair.mask is None else read_mask(pair.mask)
    headers: dict[Path, Header] = {}
    for index, (first, second) in enumerate(_frame_pairs(pair)):
        if not headers:
            headers = {pair.a: first[0], pair.b: second[0]}
            check_images([(pair.a, pair.b)], net, look=headers.__getitem__)
            check_masks([pair], headers)
            size = batch_size or default_batch_size(first[0], second[0])
        for one, path in ((first, pair.a), (second, pair.b)):
            if one[0].size != headers[path].size:
                raise ValueError(f"{printable(path)}: expected frames of one size, got another one at frame {index}")
        a, b = (
            checked_pixels(one[1], path, headers[path], net.images) for one, path in ((first, pair.a), (second, pair.b))
        )
        pairs.append(replace(pair, name=f"{index:06d}", frame=index))
        read.append((a, b, mask))
        if len(read) == size:
            results += measure_read(pairs, read, net, *compute)
            pairs, read = [], []
            report("comparing", len(results), 0)
    if temporal is not None and len(results) + len(read) < 2:
        raise ValueError(f"tlp: expected videos of two frames or more, got one frame in '{printable(pair.a)}'")
    if read:
        results += measure_read(pairs, read, net, *compute)
    return results


def _frame_pairs(pair: Pair) -> Iterator[tuple[tuple[Header, Pixels], tuple[Header, Pixels]]]:
    """Frames of both videos side by side; raise at the end if one video is longer."""
    first, second = read_frames(pair.a), read_frames(pair.b)
    for index, (x, y) in enumerate(zip_longest(first, second)):
        if x is not None and y is not None:
            yield x, y
            continue
        longer = index + 1 + sum(1 for _ in (first if y is None else second))
        counts = (longer, index) if y is None else (index, longer)
        raise ValueError(
            f"{printable(pair.b)}: expected {counts[0]} frames, as in '{printable(pair.a)}', got {counts[1]}; cut the"
            " videos to the same frames"
        )
