"""Opinion scores of images and videos: a CSV of (reference, distorted, score), and the LPIPS of each row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lpips_lightning.batch import Features
from lpips_lightning.io.download import Report, silent
from lpips_lightning.io.image_decoding import printable
from lpips_lightning.io.image_files import find_images, natural_order, read_image
from lpips_lightning.io.tables import read_table
from lpips_lightning.network import LPIPS

COLUMNS = ("reference", "distorted", "score")
_PIXELS = 1 << 19  # in one backbone pass, as far as whole frames allow


@dataclass(frozen=True)
class OpinionScore:
    """One rated image or video.

    Attributes:
        reference: As the file names it.
        distorted: As the file names it.
        score: What people thought of `distorted`.
        group: Its group; empty without one.
        frames: The files to compare, reference and distorted; one pair of an image.
        place: Where it stands in the file, for errors.
    """

    reference: str
    distorted: str
    score: float
    group: str
    frames: tuple[tuple[Path, Path], ...]
    place: str


@dataclass(frozen=True)
class FrameDistance:
    """The distance of one frame, or of an image.

    Attributes:
        reference: Of its row.
        distorted: Of its row.
        frame: Name of the distorted frame's file.
        distance: LPIPS.
    """

    reference: str
    distorted: str
    frame: str
    distance: float


def read_opinion_scores(
    path: str | Path, root: str | Path | None = None, columns: Sequence[str] = COLUMNS, group: str | None = None
) -> list[OpinionScore]:
    """The rated images and videos of a CSV.

    Args:
        path: The CSV, UTF-8 with a header; other columns are left alone.
        root: Folder that its paths begin in; None: the CSV's own.
        columns: What the file calls the reference, the distorted one and the score. An image is a file; a video is a
            folder of frames, which are compared in the order of their names (numbers by value), as many in both.
        group: What the file calls the column of groups, if there are any.

    Returns:
        One a row, in the file's order.

    Raises:
        FileNotFoundError: If the CSV, a file or a folder is missing, with the number of the line.
        ValueError: If a column is missing or a row is off, with the number of the line.
    """
    if len(columns) != 3:
        raise ValueError(f"columns: expected 3 names, of reference, distorted and score, got {', '.join(columns)}")
    table = read_table(path)
    table.require([*columns, *([group] if group else [])])
    folder = Path(path).parent if root is None else Path(root)
    if not folder.is_dir():
        raise FileNotFoundError(f"root: expected an existing folder, got '{folder}'")
    found = []
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
                f"{row.place}: expected as many frames in '{distorted}' as in '{reference}', {len(pairs[0])},"
                f" got {len(pairs[1])}"
            )
        named = row[group] if group else ""
        matched = tuple(zip(*pairs, strict=True))
        found.append(OpinionScore(reference, distorted, row.number(columns[2]), named, matched, row.place))
    return found


def measure(
    opinions: Sequence[OpinionScore], net: LPIPS, device: str | torch.device = "cpu", report: Report = silent
) -> tuple[Tensor, list[FrameDistance]]:
    """LPIPS of every row; a video's is the mean over its frames.

    Args:
        opinions: From `read_opinion_scores`.
        net: What measures.
        device: Where.
        report: Told the progress, in frames.

    Returns:
        Distances, shape ``(M,)``, float64, and those of the single frames in the rows' order.

    Raises:
        ValueError: If an image is damaged or does not fit, with the number of the line.
    """
    total, done = sum(len(opinion.frames) for opinion in opinions), 0
    by_row: dict[int, list[float]] = {}
    held = _HeldFeatures(net, torch.device(device))
    # Rows about the same reference one after the other, so that it passes the backbone once.
    for index in sorted(range(len(opinions)), key=lambda index: opinions[index].reference):
        opinion = opinions[index]
        try:
            by_row[index] = [float(value) for part in _parts(opinion.frames, held) for value in part]
        except ValueError as error:
            raise ValueError(f"{opinion.place}: {error}") from error
        done += len(opinion.frames)
        report("measuring", done, total)
    frames = [
        FrameDistance(opinion.reference, opinion.distorted, distorted.name, distance)
        for index, opinion in enumerate(opinions)
        for (_, distorted), distance in zip(opinion.frames, by_row[index], strict=True)
    ]
    means = [sum(by_row[index]) / len(by_row[index]) for index in range(len(opinions))]
    return torch.tensor(means, dtype=torch.float64), frames


class _HeldFeatures:
    """Distances of frames; what the backbone saw in the last reference image is kept for the next row."""

    def __init__(self, net: LPIPS, device: torch.device) -> None:
        self.net, self.device = net, device
        self.path: Path | None = None
        self.features: Features | None = None

    def read(self, path: Path) -> Tensor:
        """A uint8 image; transparent pixels over white, or over the network's background."""
        return read_image(path, keep_alpha=self.net.images.background is not None)

    def distances(self, pairs: Sequence[tuple[Path, Path]], images: Sequence[tuple[Tensor, Tensor]]) -> list[float]:
        """Of pairs of uint8 images of one size, or of any two that the network resizes."""
        x, y = (torch.stack(side).to(self.device) for side in zip(*images, strict=True))
        if x.shape[2:] != y.shape[2:] and self.net.images.resize is None:
            (height, width), (expected_height, expected_width) = y.shape[2:], x.shape[2:]
            raise ValueError(
                f"{pairs[0][1]}: expected the size of {pairs[0][0]}, {expected_height}x{expected_width}"
                f" (height x width), got {height}x{width}"
            )
        with torch.inference_mode():
            if self.net.memory_budget is not None:
                return self.net(x, y).double().tolist()
            if self.features is None or len(pairs) > 1 or pairs[0][0] != self.path:
                self.path, self.features = pairs[0][0], self.net.encode(x)
            distance = self.net.distance(self.features, self.net.encode(y))
            if len(pairs) > 1:
                self.features = None
        return distance.cpu().double().tolist()


def _parts(frames: Sequence[tuple[Path, Path]], held: _HeldFeatures) -> Iterator[list[float]]:
    """Distances of consecutive frames, as many at once as `_PIXELS` allow."""
    pairs: list[tuple[Path, Path]] = []
    images: list[tuple[Tensor, Tensor]] = []
    for pair in frames:
        new = (held.read(pair[0]), held.read(pair[1]))
        full = images and (len(images) + 1) * new[0].shape[1] * new[0].shape[2] > _PIXELS
        if images and (full or any(a.shape != b.shape for a, b in zip(images[-1], new, strict=True))):
            yield held.distances(pairs, images)
            pairs, images = [], []
        pairs.append(pair)
        images.append(new)
    yield held.distances(pairs, images)


def _frames_of(path: Path) -> tuple[Path, ...]:
    """The image, or the frames of a folder in the order of their names, numbers by value."""
    if path.is_file():
        return (path,)
    frames = find_images(path)
    return tuple(frames[name] for name in sorted(frames, key=natural_order))
