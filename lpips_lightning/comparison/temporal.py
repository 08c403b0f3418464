"""tLP of videos and folders of frames, for `compare`: each frame's change since the one before, on both sides."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from torch import Tensor

from lpips_lightning.batch import Features
from lpips_lightning.comparison.file_pairs import Pair
from lpips_lightning.io.image_decoding import Header, printable
from lpips_lightning.perceptual_distance import PerceptualDistance
from lpips_lightning.temporal import FrameSequence

_Place: TypeAlias = tuple[tuple[Path, Path], int]


def places_of(pairs: Sequence[Pair], headers: Mapping[Path, Header]) -> dict[str, _Place]:
    """The clip of each pair, which is its folder on either side, and its position there.

    Args:
        pairs: Pairs of frames; those of a clip in the order of time.
        headers: Headers of all files.

    Returns:
        Clip and position by the pair's name.

    Raises:
        ValueError: If frames of a clip differ in size or kind, or no clip has two frames.
    """
    places: dict[str, _Place] = {}
    kinds: dict[tuple[Path, Path], tuple[object, ...]] = {}
    counts: dict[tuple[Path, Path], int] = {}
    for pair in pairs:
        clip = (pair.a.parent, pair.b.parent)
        a, b = headers[pair.a], headers[pair.b]
        kind = (a.size, b.size, a.alpha, b.alpha, a.deep or b.deep)
        if kinds.setdefault(clip, kind) != kind:
            raise ValueError(
                f"tlp: expected the frames of a video in '{printable(clip[0])}' and '{printable(clip[1])}', of one size"
                f" and kind, got another one with '{printable(pair.name)}'; leave --tlp out for unrelated images"
            )
        counts[clip] = counts.get(clip, -1) + 1
        places[pair.name] = (clip, counts[clip])
    if not any(counts.values()):
        raise ValueError("tlp: expected videos of two frames or more, got single frames; leave --tlp out")
    return places


class TemporalScores:
    """tLP of each frame, ``|d(a_t-1, a_t) - d(b_t-1, b_t)|``, of pairs that come in batches in the order of time.

    Args:
        net: The network.
        places: From `places_of`; None: all pairs are of one video, by their ``frame``.
    """

    def __init__(self, net: PerceptualDistance, places: Mapping[str, _Place] | None = None) -> None:
        self._sides = FrameSequence(net, (0.0, 1.0)), FrameSequence(net, (0.0, 1.0))
        self._places = places
        self._last: _Place | None = None

    def extend(self, pairs: Sequence[Pair], x: Tensor | Features, y: Tensor | Features) -> list[float]:
        """Add frames.

        Args:
            pairs: N pairs of frames of equal size.
            x: Their first images ``(N, 3, H, W)`` on [0, 1] or uint8, or the features of these.
            y: Their second images.

        Returns:
            One value for each; NaN where the frame before is not the one before in time.
        """
        places = [self._place(pair) for pair in pairs]
        before = [self._last, *places[:-1]]
        if not _follows(before[0], places[0]):
            for side in self._sides:
                side.reset()
        first, second = (side.extend(frames) for side, frames in zip(self._sides, (x, y), strict=True))
        self._last = places[-1]
        values = (first - second).abs().tolist()
        return [
            value if _follows(earlier, place) else math.nan
            for value, earlier, place in zip(values, before, places, strict=True)
        ]

    def _place(self, pair: Pair) -> _Place:
        return ((pair.a, pair.b), pair.frame or 0) if self._places is None else self._places[pair.name]


def _follows(earlier: _Place | None, place: _Place) -> bool:
    return earlier is not None and earlier == (place[0], place[1] - 1)
