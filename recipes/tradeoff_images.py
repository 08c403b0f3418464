"""Figure of a trade-off table: the detail of one image in which the losses differ most, under each loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lpips_lightning.io.figures import (
    TEXT_SIZE,
    TITLE_SIZE,
    WIDTHS,
    axes_at,
    fit_name,
    fit_names,
    new_figure,
    save_figure,
    write_at,
)
from lpips_lightning.io.image_files import read_image
from lpips_lightning.recipes.tradeoff_table import OWN, UNTRAINED, TradeoffRow, label, score_names

_ACROSS = 4  # tiles side by side; more go on below
_GAP, _HEADER, _TITLE, _SCORES, _NOTE = 0.1, 0.28, 0.16, 0.15, 0.4  # inches
_SMALLEST, _PART = 32, 4  # the detail: a quarter of the shorter side, at least 32 pixels
_FAMILIAR = ("vgg", "alex")  # networks of the captions, where they judge
_ACCENT = "#00c8ff"  # in contrast to photographs


@dataclass(frozen=True)
class _Tile:
    """An image ``(3, H, W)`` in [0, 1] with its title and scores; `whole` shows it in full, with the detail framed."""

    title: str
    scores: str
    image: Tensor
    whole: bool = False


def save_images(folder: Path, rows: Sequence[TradeoffRow], labels: dict[str, str], heading: str) -> list[Path]:
    """Draw the same enlarged detail under each loss in ``<folder>/tradeoff.png``, beside input and truth.

    The detail is the square in which the images of the losses differ most, see `most_different`: a quarter of the
    image's shorter side, at least 32 pixels.

    Args:
        folder: Folder with ``input.png``, ``target.png`` and an image of each row, named by its stem.
        rows: Rows; those with scores are shown, with the first of several seeds.
        labels: See `lpips_lightning.recipes.tradeoff_table.rich_table`.
        heading: Title of the figure.

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
    judges = _judges(shown)
    tiles = [_Tile("image", "the frame is the detail", truth, whole=True), _Tile("truth", "", truth)]
    if (folder / "input.png").exists():
        tiles.append(_Tile("input", "", _read(folder / "input.png")))
    tiles += [_Tile(label(row.loss, labels), _scores(row, judges), images[row.loss]) for row in shown]
    trained = [image for loss, image in images.items() if loss != UNTRAINED]
    side = min(max(_SMALLEST, min(truth.shape[1:]) // _PART), *truth.shape[1:])
    corner = most_different(trained if len(trained) > 1 else [*images.values(), truth], side)
    return _draw(tiles, folder / "tradeoff.png", heading, _note(shown, judges), (*corner, side), truth.shape[1:])


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


def _judges(rows: Sequence[TradeoffRow]) -> list[str]:
    """At most two networks whose scores stand in the captions."""
    names = [name.removeprefix("lpips_") for name in score_names(rows) if name.startswith("lpips_")]
    return sorted(names, key=lambda net: _FAMILIAR.index(net) if net in _FAMILIAR else len(_FAMILIAR))[:2]


def _scores(row: TradeoffRow, judges: Sequence[str]) -> str:
    psnr = [f"{row.scores['psnr']:.1f} dB"] if "psnr" in row.scores else []
    lpips = [
        f"{net} {row.scores[f'lpips_{net}']:.3f}{OWN if net == row.net else ''}"
        for net in judges
        if f"lpips_{net}" in row.scores
    ]
    return " \u00b7 ".join([*psnr, *lpips])


def _note(rows: Sequence[TradeoffRow], judges: Sequence[str]) -> list[str]:
    """Lines below the figure: what the detail is, and what the scores are."""
    own = f" {OWN} The network of the loss: biased." if any(row.net in judges for row in rows) else ""
    lpips = f", and LPIPS by {' and '.join(judges)}, lower is better" if judges else ""
    detail = "The detail is the square in which the images of the losses differ most"
    return [f"{detail}.", f"Scores: PSNR{lpips}; means over all validation images.{own}"]


def _draw(
    tiles: Sequence[_Tile],
    path: Path,
    heading: str,
    note: Sequence[str],
    detail: tuple[int, int, int],
    size: Sequence[int],
) -> list[Path]:
    """Draw tiles line by line; `detail` is top, left and side, `size` height and width of the truth in pixels."""
    across = min(_ACROSS, len(tiles))
    cell = (WIDTHS["text"] - _GAP * (across + 1)) / across
    pitch = cell + _TITLE + _SCORES + _GAP
    lines = math.ceil(len(tiles) / across)
    height = _HEADER + lines * pitch + _NOTE
    titles = fit_names([tile.title for tile in tiles], cell, TEXT_SIZE)
    with new_figure("text", height) as figure:
        figure.set_layout_engine("none")
        style: dict[str, Any] = {"ha": "center", "va": "baseline", "transform": figure.transFigure}
        title = fit_name(heading, WIDTHS["text"] - 0.2, TITLE_SIZE)
        figure.text(0.5, 1 - 0.17 / height, title, fontsize=TITLE_SIZE, **style)
        for index, (tile, name) in enumerate(zip(tiles, titles, strict=True)):
            left = _GAP + index % across * (cell + _GAP)
            bottom = height - _HEADER - (index // across + 1) * pitch + _GAP
            _show(axes_at(figure, left, bottom, cell, cell), tile, detail, size)
            middle = left + cell / 2
            place = middle / WIDTHS["text"], (bottom + cell + _SCORES + 0.03) / height
            figure.text(*place, name, fontsize=TEXT_SIZE, **style)
            write_at(figure, middle, bottom + cell + 0.05, fit_name(tile.scores, cell + _GAP / 2), ha="center")
        for index, line in enumerate(note):
            write_at(figure, _GAP, _NOTE - 0.14 - 0.14 * index, fit_name(line, WIDTHS["text"] - 2 * _GAP), color="0.35")
        return save_figure(figure, path)


def _show(axes: Any, tile: _Tile, detail: tuple[int, int, int], size: Sequence[int]) -> None:
    """Show a tile; a low-resolution input fills the same square."""
    from matplotlib.patches import Rectangle

    top, left, side = detail
    height, width = size
    axes.imshow(tile.image.permute(1, 2, 0).clamp(0, 1).numpy(), extent=(0, width, height, 0), interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    if tile.whole:
        axes.add_patch(Rectangle((left, top), side, side, fill=False, edgecolor=_ACCENT, linewidth=1))
    else:
        axes.set(xlim=(left, left + side), ylim=(top + side, top))
