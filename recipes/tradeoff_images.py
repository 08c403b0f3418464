"""Figure of a trade-off table: the detail of one image in which the losses differ most, and its local LPIPS."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lpips_lightning.backbones.definition import BACKBONES
from lpips_lightning.io.figures import (
    SMALL_SIZE,
    TEXT_SIZE,
    TITLE_SIZE,
    WIDTHS,
    axes_at,
    fit_name,
    fit_names,
    new_figure,
    save_figure,
    text_inches,
    write_at,
)
from lpips_lightning.io.heatmap import heatmap_limit
from lpips_lightning.io.image_files import read_image
from lpips_lightning.network import LPIPS
from lpips_lightning.recipes.tradeoff_table import OWN, UNTRAINED, TradeoffRow, label, score_names

_WIDE, _WIDER = 4, 5  # columns: image and input, each loss above its map, truth and color bar; more go on below
_GAP, _HEADER, _TITLE, _SCORES, _NOTE = 0.1, 0.28, 0.16, 0.17, 0.4  # inches
_SMALLEST = 32  # pixels of the detail's side
_FAMILIAR = ("vgg", "alex")  # networks of the captions, where they judge
_MAP_NETS = ("alex", "embedded-vgg", "squeeze", "vgg", "embedded")  # of the maps: the first that no loss has
_ACCENT = "#00c8ff"  # in contrast to photographs


class _Detail(NamedTuple):
    """The square that is shown enlarged, and the size of the image, in pixels."""

    top: int
    left: int
    side: int
    height: int
    width: int

    def crop(self, image: Tensor) -> Tensor:
        """The square of an image of this size, ``(..., H, W)``."""
        return image[..., self.top : self.top + self.side, self.left : self.left + self.side]


class _Shown(NamedTuple):
    """An image ``(3, H, W)`` in [0, 1] under a loss, its title and scores, and its local LPIPS ``(H, W)``."""

    title: str
    scores: str
    image: Tensor
    local: Tensor | None


def save_images(
    folder: Path, rows: Sequence[TradeoffRow], labels: dict[str, str], heading: str, detail: float = 0.25
) -> list[Path]:
    """Draw the same enlarged detail under each loss in ``<folder>/tradeoff.png``, beside input and truth.

    The detail is the square in which the images of the losses differ most, see `most_different`, of at least
    32 pixels. Below each stands the local LPIPS to the truth, all with one color scale,
    by a network that is on this machine and, if there is one, is not that of a loss.

    Args:
        folder: Folder with ``input.png``, ``target.png`` and an image of each row, named by its stem.
        rows: Rows; those with scores are shown, with the first of several seeds.
        labels: See `lpips_lightning.recipes.tradeoff_table.label`.
        heading: Title of the figure.
        detail: Side of the detail, in units of the image's shorter side.

    Returns:
        The figure as PNG and PDF; empty without images.

    Raises:
        ModuleNotFoundError: If matplotlib is not installed.
    """
    scored = {row.loss: row for row in reversed(rows) if not row.note and (folder / f"{row.stem}.png").exists()}
    shown = [scored[loss] for loss in dict.fromkeys(row.loss for row in rows) if loss in scored]
    if not shown or not (folder / "target.png").exists():
        return []
    images = {row.loss: _read(folder / f"{row.stem}.png") for row in shown}
    truth = _read(folder / "target.png")
    trained = [image for loss, image in images.items() if loss != UNTRAINED]
    side = min(max(_SMALLEST, int(min(truth.shape[1:]) * detail)), *truth.shape[1:])
    corner = most_different(trained if len(trained) > 1 else [*images.values(), truth], side)
    place = _Detail(*corner, side, *truth.shape[1:])
    net = _map_net(shown, min(truth.shape[1:]))
    maps = _local(list(images.values()), truth, net)
    across = _columns(len(shown) + 2)
    cell = (WIDTHS["text"] - _GAP * (across + 1)) / across
    judges = _judges(shown, cell + _GAP / 2)
    tiles = [
        _Shown(label(row.loss, labels), _scores(row, judges), images[row.loss], local)
        for row, local in zip(shown, maps, strict=True)
    ]
    source = _read(folder / "input.png") if (folder / "input.png").exists() else truth
    several = any(row.loss in scored and row.seed != scored[row.loss].seed and not row.note for row in rows)
    own = OWN if net is not None and any(net.net_type == row.net for row in shown) else ""
    bar = f"{net.net_type}{own}" if net is not None else ""
    titles = _wrapped_all([tile.title for tile in tiles], cell)
    page = _Page(across, cell, _TITLE * max(map(len, titles)), len(shown), place)
    with new_figure("text", page.height) as figure:
        figure.set_layout_engine("none")
        shown_before = any(torch.equal(source, one) for one in (truth, *images.values()))
        page.draw(figure, heading, truth, None if shown_before else source)
        page.draw_losses(figure, tiles, titles, bar)
        for index, line in enumerate(_note(shown, judges, bar, several)):
            write_at(figure, _GAP, _NOTE - 0.14 - 0.14 * index, fit_name(line, WIDTHS["text"] - 2 * _GAP), color="0.35")
        return save_figure(figure, folder / "tradeoff.png")


def most_different(images: Sequence[Tensor], side: int) -> tuple[int, int]:
    """Top and left of the square in which images differ most: largest mean of the standard deviation over images.

    Args:
        images: Two or more images of one size, each ``(C, H, W)``.
        side: Side of the square in pixels, at most the image's.
    """
    deviation = torch.stack([image.double() for image in images]).std(0).mean(0)
    total = F.avg_pool2d(deviation[None, None], side, stride=1)[0, 0]
    top, left = divmod(int(total.argmax()), total.shape[1])
    return top, left


def _read(path: Path) -> Tensor:
    return read_image(path) / 255


def _map_net(rows: Sequence[TradeoffRow], side: int) -> LPIPS | None:
    """Network of the maps: on this machine, for images of this side, and if possible of no loss."""
    nets = [LPIPS(net) for net in _MAP_NETS if BACKBONES[net].is_available]
    fitting = [net for net in nets if net.smallest_side <= side]
    losses = {row.net for row in rows}
    return next((net for net in fitting if net.net_type not in losses), fitting[0] if fitting else None)


def _local(images: Sequence[Tensor], truth: Tensor, net: LPIPS | None) -> list[Tensor | None]:
    """Local LPIPS of each image to the truth, ``(H, W)``."""
    if net is None:
        return [None] * len(images)
    with torch.inference_mode():
        return [net(image[None], truth[None], (0, 1), spatial=True)[0, 0] for image in images]


def _columns(slots: int) -> int:
    """Columns of the figure: four or five, so that few places stay empty."""
    if slots <= _WIDER:
        return max(slots, _WIDE)
    return min(_WIDE, _WIDER, key=lambda across: -slots % across)


def _judges(rows: Sequence[TradeoffRow], inches: float) -> list[str]:
    """Networks whose scores stand in the captions: two if their captions fit, else one."""
    names = [name.removeprefix("lpips_") for name in score_names(rows) if name.startswith("lpips_")]
    two, one = (
        sorted(names, key=lambda net: familiar.index(net) if net in familiar else len(familiar))[:most]
        for familiar, most in ((_FAMILIAR, 2), (_FAMILIAR[::-1], 1))
    )
    return two if max(text_inches(_scores(row, two), SMALL_SIZE) for row in rows) <= inches else one


def _scores(row: TradeoffRow, judges: Sequence[str]) -> str:
    """Caption of a loss; a single judge is named below the figure."""
    psnr = [f"{row.scores['psnr']:.1f} dB"] if "psnr" in row.scores else []
    lpips = [
        f"{net if len(judges) > 1 else 'LPIPS'} {row.scores[f'lpips_{net}']:.3f}{OWN if net == row.net else ''}"
        for net in judges
        if f"lpips_{net}" in row.scores
    ]
    return " \u00b7 ".join([*psnr, *lpips])


def _note(rows: Sequence[TradeoffRow], judges: Sequence[str], maps: str, several: bool) -> list[str]:
    """Lines below the figure: what the detail is, and what the scores are; `several`: of the first of several seeds."""
    marked = OWN in maps or any(row.net in judges for row in rows)
    own = f" {OWN} The network of the loss: biased." if marked else ""
    lpips = f", and LPIPS by {' and '.join(judges)}, lower is better" if judges else ""
    detail = "The detail is the square in which the images of the losses differ most"
    below = f"; below, its LPIPS to the truth by {maps}" if maps else ""
    means = "validation means of the first seed" if several else "means over all validation images"
    return [f"{detail}{below}.", f"Scores: PSNR{lpips}; {means}.{own}"]


class _Page(NamedTuple):
    """Places of the images, in inches: columns of two squares, the lower one for the map.

    Attributes:
        across: Columns.
        cell: Side of a square.
        title: Height of the titles.
        losses: Number of losses.
        detail: What the squares show.
    """

    across: int
    cell: float
    title: float
    losses: int
    detail: _Detail

    @property
    def pitch(self) -> float:
        """Height of a line."""
        return self.title + 2 * self.cell + _SCORES + _GAP

    @property
    def height(self) -> float:
        """Height of the figure."""
        return _HEADER + math.ceil((self.losses + 2) / self.across) * self.pitch + _NOTE

    def draw(self, figure: Any, heading: str, truth: Tensor, source: Tensor | None) -> None:
        """Draw the title, the truth, and the input if it is to be shown."""
        title = fit_name(heading, WIDTHS["text"] - 0.2, TITLE_SIZE)
        style: dict[str, Any] = {"ha": "center", "va": "baseline", "transform": figure.transFigure}
        figure.text(0.5, 1 - 0.17 / self.height, title, fontsize=TITLE_SIZE, **style)
        self._whole(figure, truth, source)
        self._detail(figure, self.losses + 1, ["truth"], truth)

    def draw_losses(self, figure: Any, tiles: Sequence[_Shown], titles: Sequence[Sequence[str]], net: str) -> None:
        """Draw the image of each loss, its map, and the color bar; `net` is the network of the maps."""
        maps = [self.detail.crop(tile.local) for tile in tiles if tile.local is not None]
        limit, drawn = heatmap_limit(*maps), None
        for slot, (tile, name) in enumerate(zip(tiles, titles, strict=True), 1):
            self._detail(figure, slot, name, tile.image)
            self._write(figure, slot, tile.scores)
            if tile.local is not None:
                drawn = self._map(figure, slot, self.detail.crop(tile.local), limit)
        if drawn is not None:
            beyond = any(bool((one > limit).any()) for one in maps)
            self._bar(figure, len(tiles) + 1, drawn, net, "max" if beyond else "neither")

    def _place(self, slot: int, lower: bool = False) -> tuple[float, float]:
        """Left and bottom of a square."""
        line, column = divmod(slot, self.across)
        bottom = self.height - _HEADER - line * self.pitch - self.title - self.cell
        return _GAP + column * (self.cell + _GAP), bottom - (self.cell + _SCORES) * lower

    def _whole(self, figure: Any, truth: Tensor, source: Tensor | None) -> None:
        """The full image with the detail framed, above the input."""
        from matplotlib.patches import Rectangle

        detail = self.detail
        axes = self._axes(figure, 0, truth)
        square = (detail.left, detail.top), detail.side, detail.side
        axes.add_patch(Rectangle(*square, fill=False, edgecolor=_ACCENT, linewidth=1))
        self._heading(figure, 0, ["image, and the detail"])
        if source is not None:
            self._zoom(self._axes(figure, 0, source, lower=True))
            self._write(figure, 0, "input", TEXT_SIZE)

    def _detail(self, figure: Any, slot: int, title: Sequence[str], image: Tensor) -> None:
        self._zoom(self._axes(figure, slot, image))
        self._heading(figure, slot, title)

    def _map(self, figure: Any, slot: int, values: Tensor, limit: float) -> Any:
        axes = axes_at(figure, *self._place(slot, lower=True), self.cell, self.cell)
        _bare(axes)
        return axes.imshow(values.nan_to_num(limit).numpy(), cmap="inferno", vmin=0, vmax=limit)

    def _bar(self, figure: Any, slot: int, drawn: Any, net: str, extend: str) -> None:
        left, bottom = self._place(slot, lower=True)
        axes = axes_at(figure, left + 0.02, bottom + 0.05, 0.12, self.cell - 0.1)
        bar = figure.colorbar(drawn, cax=axes, extend=extend, extendfrac=0.05)
        bar.outline.set_linewidth(0.6)
        bar.set_label(f"local LPIPS\n{fit_name(f'by {net}', self.cell - 0.1, SMALL_SIZE)}", fontsize=SMALL_SIZE)

    def _axes(self, figure: Any, slot: int, image: Tensor, lower: bool = False) -> Any:
        """Show an image; a low-resolution input fills the same square."""
        axes = axes_at(figure, *self._place(slot, lower), self.cell, self.cell)
        _bare(axes)
        extent = (0, self.detail.width, self.detail.height, 0)
        axes.imshow(image.permute(1, 2, 0).clamp(0, 1).numpy(), extent=extent, interpolation="nearest")
        return axes

    def _zoom(self, axes: Any) -> None:
        top, left, side = self.detail[:3]
        axes.set(xlim=(left, left + side), ylim=(top + side, top))

    def _heading(self, figure: Any, slot: int, title: Sequence[str]) -> None:
        """Lines above the upper square."""
        left, bottom = self._place(slot)
        place = (left + self.cell / 2) / WIDTHS["text"]
        for number, line in enumerate(reversed(title)):
            above = (bottom + self.cell + 0.05 + number * (_TITLE - 0.02)) / self.height
            figure.text(place, above, line, fontsize=TEXT_SIZE, ha="center", va="baseline")

    def _write(self, figure: Any, slot: int, text: str, size: float = SMALL_SIZE) -> None:
        """A line between both squares."""
        left, bottom = self._place(slot)
        place = (left + self.cell / 2) / WIDTHS["text"], (bottom - 0.12) / self.height
        figure.text(*place, fit_name(text, self.cell + _GAP / 2, size), fontsize=size, ha="center", va="baseline")


def _bare(axes: Any) -> None:
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def _wrapped(title: str, inches: float) -> list[str]:
    """A title on as many lines as it needs, each with as much as fits."""
    parts = re.split(r"(?<!\+) ", title)  # a line may begin with +, not end with it
    if _fits(title, inches) or len(parts) == 1:
        return [title]
    heads = [" ".join(parts[:count]) for count in range(len(parts) - 1, 0, -1)]
    head = next((one for one in heads if _fits(one, inches)), heads[-1])
    return [head, *_wrapped(title[len(head) + 1 :], inches)]


def _fits(line: str, inches: float) -> bool:
    return text_inches(fit_name(line, WIDTHS["text"], TEXT_SIZE), TEXT_SIZE) <= inches


def _wrapped_all(titles: Sequence[str], inches: float) -> list[list[str]]:
    """Titles on one or more lines each; what fits on no line is shortened."""
    wrapped = [_wrapped(title, inches) for title in titles]
    single = iter(fit_names([lines[0] for lines in wrapped if len(lines) == 1], inches, TEXT_SIZE))
    return [
        [fit_name(line, inches, TEXT_SIZE) for line in lines] if len(lines) > 1 else [next(single)] for lines in wrapped
    ]
