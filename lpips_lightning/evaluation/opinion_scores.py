"""Mean opinion scores (MOS) of images and videos from a CSV, and the LPIPS of each row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor

from lpips_lightning.batch import Features
from lpips_lightning.evaluation.methods import Method
from lpips_lightning.io.download import ProgressCallback, no_progress
from lpips_lightning.io.image_decoding import printable
from lpips_lightning.io.image_files import find_images, natural_order, read_image
from lpips_lightning.io.streams import open_file
from lpips_lightning.io.tables import read_table
from lpips_lightning.perceptual_distance import PerceptualDistance

COLUMNS = ("reference", "distorted", "score")
_MAX_PIXELS = 1 << 19  # per backbone pass; at least one frame


@dataclass(frozen=True)
class OpinionScore:
    """One rated image or video.

    Attributes:
        reference: Path of the reference as in the CSV.
        distorted: Path of the distorted image or video as in the CSV.
        score: Opinion score of `distorted`.
        group: Group of the row; empty if there are no groups.
        frames: Pairs of files (reference, distorted) to compare; one pair for an image.
        place: File and line number, for error messages.
    """

    reference: str
    distorted: str
    score: float
    group: str
    frames: tuple[tuple[Path, Path], ...]
    place: str


@dataclass(frozen=True)
class FrameDistance:
    """Distance of one frame or image.

    Attributes:
        reference: `OpinionScore.reference` of the row.
        distorted: `OpinionScore.distorted` of the row.
        frame: File name of the distorted frame.
        distance: LPIPS, or that of a method.
    """

    reference: str
    distorted: str
    frame: str
    distance: float


def read_opinion_scores(
    path: str | Path, root: str | Path | None = None, columns: Sequence[str] = COLUMNS, group: str | None = None
) -> list[OpinionScore]:
    """Read rated images and videos from a CSV.

    A path is an image file, or a folder with the frames of a video. Frames are compared in the order of their names
    (numbers by value); reference and distorted video need equally many.

    Args:
        path: The CSV, UTF-8 with a header; other columns are ignored.
        root: Folder that paths are relative to; None: the CSV's folder, or the current one for ``/dev/stdin`` and other
            open files.
        columns: Column names of reference, distorted and score in the file.
        group: Name of the group column, if there is one.

    Returns:
        One entry per row, in file order.

    Raises:
        FileNotFoundError: If the CSV, a file or a folder is missing; the message has the line number.
        ValueError: If a column is missing or a row is invalid; the message has the line number.
    """
    if len(columns) != 3:
        raise ValueError(f"columns: expected 3 names, of reference, distorted and score, got {', '.join(columns)}")
    table = read_table(path)
    table.require([*columns, *([group] if group else [])])
    beside = Path(path).parent if open_file(path) is None else Path()
    folder = beside if root is None else Path(root)
    if not folder.is_dir():
        raise FileNotFoundError(f"root: expected an existing folder, got '{folder}'")
    opinions = []
    frames: dict[str, tuple[Path, ...]] = {}
    for row in table.rows:
        reference, distorted = (row[column] for column in columns[:2])
        for file, column in ((reference, columns[0]), (distorted, columns[1])):
            if file not in frames:
                if not file or not (folder / file).exists():
                    raise FileNotFoundError(
                        f"{row.place}: {column}: expected an image, or a folder of frames, in '{folder}', got"
                        f" '{printable(file)}'"
                    )
                frames[file] = _frames_of(folder / file)
        pairs = (frames[reference], frames[distorted])
        if len(pairs[0]) != len(pairs[1]):
            raise ValueError(
                f"{row.place}: expected {len(pairs[0])} frames in '{distorted}', as in '{reference}', got"
                f" {len(pairs[1])}"
            )
        group_name = row[group] if group else ""
        matched = tuple(zip(*pairs, strict=True))
        opinions.append(OpinionScore(reference, distorted, row.number(columns[2]), group_name, matched, row.place))
    return opinions


def measure(
    opinions: Sequence[OpinionScore],
    net: PerceptualDistance | Method,
    device: str | torch.device = "cpu",
    report: ProgressCallback = no_progress,
) -> tuple[Tensor, list[FrameDistance]]:
    """Distance of every row; for a video, the mean over its frames.

    Args:
        opinions: Rows from `read_opinion_scores`.
        net: The network, or a method of `lpips_lightning.evaluation.methods`.
        device: Device to compute on.
        report: Progress callback, in frames.

    Returns:
        Distances ``(M,)``, float64, and the distances of all frames in row order.

    Raises:
        ValueError: If an image is damaged or of the wrong size; the message has the line number.
    """
    total, done = sum(len(opinion.frames) for opinion in opinions), 0
    by_row: dict[int, list[float]] = {}
    scorer = frame_scorer(net, device)
    for group in reference_groups(opinions):
        for index in group:
            opinion = opinions[index]
            with naming_place(opinion):
                batches = frame_batches(opinion.frames, scorer.keeps_alpha)
                by_row[index] = [value for batch in batches for value in scorer.distances(batch)]
            done += len(opinion.frames)
            report("measuring", done, total)
    return row_means(opinions, by_row)


def reference_groups(opinions: Sequence[OpinionScore]) -> list[list[int]]:
    """Rows by reference, so that each reference is encoded once: lists of row numbers, sorted by reference."""
    order = sorted(range(len(opinions)), key=lambda index: opinions[index].reference)
    return [list(group) for _, group in groupby(order, key=lambda index: opinions[index].reference)]


@contextmanager
def naming_place(opinion: OpinionScore) -> Iterator[None]:
    """Errors about images of a row begin with its line number."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{opinion.place}: {error}") from error


def row_means(
    opinions: Sequence[OpinionScore], by_row: Mapping[int, Sequence[float]]
) -> tuple[Tensor, list[FrameDistance]]:
    """Distance of every row from those of its frames.

    Args:
        opinions: The rows.
        by_row: Distances of the frames of every row, by row number.

    Returns:
        As of `measure`.
    """
    frames = [
        FrameDistance(opinion.reference, opinion.distorted, distorted.name, distance)
        for index, opinion in enumerate(opinions)
        for (_, distorted), distance in zip(opinion.frames, by_row[index], strict=True)
    ]
    means = [sum(by_row[index]) / len(by_row[index]) for index in range(len(opinions))]
    return torch.tensor(means, dtype=torch.float64), frames


@dataclass(frozen=True)
class FrameBatch:
    """Frames of one row that are measured together.

    Attributes:
        pairs: Files (reference, distorted).
        x: Reference frames ``(N, C, H, W)``, uint8.
        y: Distorted frames; their size may be another one.
    """

    pairs: Sequence[tuple[Path, Path]]
    x: Tensor
    y: Tensor

    def check_sizes(self) -> None:
        """Raise a ValueError unless both sides have one size."""
        if self.x.shape[2:] == self.y.shape[2:]:
            return
        (height, width), (expected_height, expected_width) = self.y.shape[2:], self.x.shape[2:]
        raise ValueError(
            f"{self.pairs[0][1]}: expected the size of {self.pairs[0][0]}, {expected_height}x{expected_width}"
            f" (height x width), got {height}x{width}"
        )


class _FrameScorer:
    """Computes distances of frames; caches the features of the last reference image."""

    def __init__(self, net: PerceptualDistance, device: torch.device) -> None:
        self.net, self.device = net, device
        self.path: Path | None = None
        self.features: Features | None = None

    @property
    def keeps_alpha(self) -> bool:
        """Whether images keep their alpha channel; else they are composited over white."""
        return self.net.images.background is not None

    def distances(self, batch: FrameBatch) -> list[float]:
        """Distances of pairs of one size, or of any sizes if the network resizes."""
        if self.net.images.resize is None:
            batch.check_sizes()
        pairs, x, y = batch.pairs, batch.x.to(self.device), batch.y.to(self.device)
        with torch.inference_mode():
            if self.net.memory_budget is not None:
                return self.net(y, x, 255).cpu().double().tolist()
            if self.features is None or len(pairs) > 1 or pairs[0][0] != self.path:
                self.path, self.features = pairs[0][0], self.net.encode(x, 255)
            distance = self.net.distance(self.net.encode(y, 255), self.features)  # the reference comes second
            if len(pairs) > 1:
                self.features = None
        return distance.cpu().double().tolist()


class _MethodScorer:
    """As `_FrameScorer`, of a method by name."""

    keeps_alpha = False

    def __init__(self, method: Method, device: torch.device) -> None:
        self.method, self.device = method, device

    def distances(self, batch: FrameBatch) -> list[float]:
        """Distances of pairs of one size."""
        batch.check_sizes()
        x, y = (side.to(self.device).float() / 127.5 - 1 for side in (batch.x, batch.y))
        with torch.inference_mode():
            return self.method.distance(x, y).cpu().double().tolist()


Scorer = _FrameScorer | _MethodScorer


def frame_scorer(net: PerceptualDistance | Method, device: str | torch.device) -> Scorer:
    """What measures batches of frames with a network or a method."""
    place = torch.device(device)
    return _MethodScorer(net, place) if isinstance(net, Method) else _FrameScorer(net, place)


def frame_batches(frames: Sequence[tuple[Path, Path]], keep_alpha: bool) -> Iterator[FrameBatch]:
    """Consecutive frames of equal sizes, in batches of at most `_MAX_PIXELS`.

    Args:
        frames: Files (reference, distorted) of a row.
        keep_alpha: Keep alpha channels; else images are composited over white.

    Raises:
        ValueError: If an image is damaged.
        FileNotFoundError: If it is missing.
    """
    pairs: list[tuple[Path, Path]] = []
    images: list[tuple[Tensor, Tensor]] = []
    for pair in frames:
        new = (read_image(pair[0], keep_alpha=keep_alpha), read_image(pair[1], keep_alpha=keep_alpha))
        full = images and (len(images) + 1) * new[0].shape[1] * new[0].shape[2] > _MAX_PIXELS
        if images and (full or any(a.shape != b.shape for a, b in zip(images[-1], new, strict=True))):
            yield _stacked(pairs, images)
            pairs, images = [], []
        pairs.append(pair)
        images.append(new)
    yield _stacked(pairs, images)


def _stacked(pairs: Sequence[tuple[Path, Path]], images: Sequence[tuple[Tensor, Tensor]]) -> FrameBatch:
    x, y = (torch.stack(side) for side in zip(*images, strict=True))
    return FrameBatch(pairs, x, y)


def _frames_of(path: Path) -> tuple[Path, ...]:
    """The image itself, or the frames of a folder sorted by name, numbers by value."""
    if path.is_file():
        return (path,)
    frames = find_images(path)
    return tuple(frames[name] for name in sorted(frames, key=natural_order))
