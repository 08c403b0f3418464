"""Maps of local distances for `compare`: figures, bare heatmaps, and one color scale for all of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, PngImagePlugin
from torch import Tensor

from lpips_lightning.comparison.fidelity import white
from lpips_lightning.comparison.file_pairs import Pair
from lpips_lightning.comparison.measure import PairResult, Read
from lpips_lightning.images.preprocessing import ImagePolicy
from lpips_lightning.io.atomic import atomic_write
from lpips_lightning.io.comparison_figure import SIDE, Panel, comparison_figure, reduced
from lpips_lightning.io.download import ProgressCallback, no_progress
from lpips_lightning.io.figures import save_figure
from lpips_lightning.io.heatmap import HeatmapScale, heatmap_colors, heatmap_indices
from lpips_lightning.io.image_decoding import printable
from lpips_lightning.io.image_files import to_pixels
from lpips_lightning.io.image_folders import count_of
from lpips_lightning.io.streams import is_stream

_KEPT = 1 << 26  # bytes of maps and small images that are kept until the scale is known


@dataclass(frozen=True)
class Drawing:
    """What is needed to draw a pair.

    Attributes:
        result: Pair and distance.
        images: Both images as the network gets them, `reduced`.
        size: Height and width of the map.
        distances: The map, `reduced`.
        whole: The whole map, if bare heatmaps are written.
    """

    result: PairResult
    images: tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]
    size: tuple[int, int]
    distances: Tensor
    whole: Tensor | None

    @property
    def nbytes(self) -> int:
        """Size in memory."""
        maps = [self.distances, *([] if self.whole is None else [self.whole])]
        return sum(one.nbytes for one in self.images) + sum(one.numel() * one.element_size() for one in maps)


@dataclass
class MapWriter:
    """Writes figures and bare heatmaps of pairs on one color scale.

    Call it with every result, as ``keep_map`` of `measure_pairs`. Without a given scale it first keeps what it needs to
    draw, up to 64 MiB; `finish` then draws, or asks for a second pass over all pairs.

    Attributes:
        figures: Output file, or output folder if `folder`; there a file is named after its pair. None: no figures.
        raw: The same for bare heatmaps.
        folder: Whether the outputs are folders.
        net: Name of the network, for the title.
        images: How the network converts images.
        fingerprint: Fingerprint of the network, stored in the files.
        heatmap_max: Local distance at the brightest color; None: from all pairs, see `heatmap_limit`.
    """

    figures: Path | None
    raw: Path | None
    folder: bool
    net: str
    images: ImagePolicy
    fingerprint: str
    heatmap_max: float | None = None
    _scale: HeatmapScale = field(default_factory=HeatmapScale)
    _kept: list[Drawing] | None = field(default_factory=list)
    _fixed: bool = field(init=False)
    _bytes: int = 0
    _written: int = 0
    _noun: str = "pair"

    def __post_init__(self) -> None:
        self._fixed = self.heatmap_max is not None

    def __call__(self, result: PairResult, distances: Tensor, read: Read) -> None:
        """Draw or keep a pair."""
        if self.heatmap_max is not None:
            self._write(self._drawing(result, distances, read))
            return
        self._scale.add(distances)
        if self._kept is not None:
            self._kept.append(self._drawing(result, distances, read))
            self._bytes += self._kept[-1].nbytes
            if self.folder and self._bytes > _KEPT:
                self._kept = None

    def finish(self, measure_again: Callable[[], object], report: ProgressCallback = no_progress) -> None:
        """Draw what was kept; if it was too much, call `measure_again`, which calls this object with all pairs.

        Args:
            measure_again: Runs the second pass.
            report: Progress callback, in pairs, where no second pass is needed.
        """
        if self.heatmap_max is not None:
            return
        self.heatmap_max = self._scale.limit
        if self._kept is None:
            measure_again()
            return
        for done, drawing in enumerate(self._kept, 1):
            self._write(drawing)
            report("drawing", done, len(self._kept))
        self._kept = None

    def notes(self) -> list[str]:
        """A sentence for each output: what was written, and the color scale."""
        if self.heatmap_max is None or not self._written:
            return []
        scale = f"colors from 0 to {self.heatmap_max:g}{' in all of them' * self.folder}"
        scale += "" if self._fixed else " (--map-max sets another scale)"
        lines = []
        for option, path, kinds in (("map", self.figures, (".png", ".pdf")), ("map-raw", self.raw, (".png",))):
            if path is None:
                continue
            files = [printable(path)] if is_stream(path) else [printable(path.with_suffix(kind)) for kind in kinds]
            of_folder = f"{count_of(self._written, self._noun)} in {printable(path)}, {' and '.join(kinds)}"
            lines.append(f"{option}: {of_folder if self.folder else ' and '.join(files)}; {scale}")
        return lines

    def _drawing(self, result: PairResult, distances: Tensor, read: Read) -> Drawing:
        first, second = (self._shown(pixels) if self.figures else _NOTHING for pixels in read[:2])
        small = reduced(distances[None])[0] if self.figures else distances[:0]
        size = (distances.shape[0], distances.shape[1])
        return Drawing(result, (first, second), size, small, None if self.raw is None else distances.clone())

    def _shown(self, pixels: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
        """An image as the network gets it, in 8 bits and small; nothing larger than the file's pixels is made."""
        if pixels.dtype != np.uint8:
            pixels = (pixels / np.float32(white(pixels) / 255)).round().astype(np.uint8)
        factor = 1 if self.images.resize else -(-max(pixels.shape[:2]) // SIDE)
        small = np.array(Image.fromarray(pixels).reduce(factor))
        image, data_range = self.images.to_flat_rgb(torch.from_numpy(small).permute(2, 0, 1)[None], (0.0, 1.0))
        return to_pixels(reduced(image[0]), data_range)

    def _write(self, drawing: Drawing) -> None:
        assert self.heatmap_max is not None
        self._written += 1
        pair = drawing.result.pair
        self._noun = "pair" if pair.frame is None else "frame"
        if self.raw is not None and drawing.whole is not None:
            map_writer(self.raw, self.folder, self.heatmap_max, self.fingerprint)(pair, drawing.whole)
        if self.figures is None:
            return
        names = pair_names(pair)
        panels = [Panel(name, pixels) for name, pixels in zip(names, drawing.images, strict=True)]
        path = self.figures / f"{pair.name}.png" if self.folder else self.figures
        about = {"Description": _description(self.heatmap_max, self.fingerprint), "Images": " | ".join(names)}
        title, note = self._title(drawing.result), self._note(drawing)
        with comparison_figure(panels, drawing.distances, self.heatmap_max, title, note) as figure:
            save_figure(figure, path, about)

    def _title(self, result: PairResult) -> str:
        units = {"psnr": ("PSNR", "{:.2f} dB"), "ssim": ("SSIM", "{:.3f}"), "tlp": ("tLP", "{:#.3g}")}
        known = {name: value for name, value in result.scores.items() if not math.isnan(value)}
        parts = [f"{units[name][0]} {units[name][1].format(value)}" for name, value in known.items()]
        return ", ".join([f"LPIPS ({self.net}) {result.distance:#.3g}", *parts])

    def _note(self, drawing: Drawing) -> str:
        height, width = drawing.size
        small = drawing.distances.shape[-1] < width
        parts = [f"{width} x {height} pixels{', reduced for this figure' * small}"]
        parts += [f"mask {drawing.result.pair.mask.name}"] if drawing.result.pair.mask is not None else []
        if self.folder:
            parts.append(f"one color scale for all {self._noun}s")
        return "; ".join(parts)


def pair_names(pair: Pair) -> tuple[str, str]:
    """Names of both images for a reader: file names, with as many folders as tell them apart."""
    a, b = ([printable(part) for part in path.parts] for path in (pair.a, pair.b))
    count = next((n for n in range(1, max(len(a), len(b)) + 1) if a[-n:] != b[-n:]), 1)
    frame = "" if pair.frame is None else f", frame {pair.frame}"
    return "/".join(a[-count:]) + frame, "/".join(b[-count:]) + frame


def map_writer(target: Path, folder: bool, heatmap_max: float, fingerprint: str) -> Callable[[Pair, Tensor], None]:
    """A function that writes a pair's spatial map as a bare heatmap PNG.

    Args:
        target: Output file, or output folder if `folder`; there a file is named after its pair.
        folder: Whether `target` is a folder.
        heatmap_max: Local distance at the brightest color.
        fingerprint: Fingerprint of the network, stored in the PNG.
    """
    colors = heatmap_colors()

    def write(pair: Pair, distances: Tensor) -> None:
        metadata = PngImagePlugin.PngInfo()
        metadata.add_text("Description", _description(heatmap_max, fingerprint))
        path = target / f"{pair.name}.png" if folder else target
        with atomic_write(path) as temporary:
            Image.fromarray(colors[heatmap_indices(distances, heatmap_max)]).save(temporary, "PNG", pnginfo=metadata)

    return write


_NOTHING = np.zeros((0, 0, 3), np.uint8)


def _description(heatmap_max: float, fingerprint: str) -> str:
    return f"local LPIPS, black 0, brightest >= {heatmap_max:g}; {fingerprint}"
