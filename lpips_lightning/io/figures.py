"""Style of all figures: widths of a column and of a page, fonts, colors, names that fit, and files."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from lpips_lightning.io.atomic import atomic_write
from lpips_lightning.io.image_decoding import printable
from lpips_lightning.io.streams import is_stream

Width: TypeAlias = Literal["column", "text"]

WIDTHS: dict[Width, float] = {"column": 3.3, "text": 6.9}
"""Width in inches of a column and of the text of a two-column paper."""

DPI = 300
TITLE_SIZE, TEXT_SIZE, SMALL_SIZE = 9, 8, 7  # points
_FONT = "DejaVu Sans"  # comes with matplotlib: the same on every machine
_STYLE: Any = {
    "font.family": _FONT,
    "font.size": TEXT_SIZE,
    "axes.titlesize": TEXT_SIZE,
    "axes.labelsize": TEXT_SIZE,
    "xtick.labelsize": SMALL_SIZE,
    "ytick.labelsize": SMALL_SIZE,
    "legend.fontsize": SMALL_SIZE,
    "figure.titlesize": TITLE_SIZE,
    "figure.dpi": DPI,
    "savefig.dpi": DPI,
    "savefig.bbox": None,  # "tight" would change the width
    "text.usetex": False,
    "text.parse_math": False,  # names may contain $; log scales then need the formatter "{x:g}"
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.2,
    "lines.markersize": 4,
    "hatch.linewidth": 0.6,
    "legend.frameon": False,
    "pdf.fonttype": 42,  # text stays text
    "image.interpolation": "nearest",
    "image.cmap": "inferno",
}
_COLORS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#777777")  # P. Tol's "bright"
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_HATCHES = ("", "////", "....", "xxxx", "----", "\\\\\\\\", "++++")


class CategoryStyle(NamedTuple):
    """Look of a category; color and marker, or color and hatch, together are unique."""

    color: str
    marker: str
    hatch: str


def require_matplotlib(what: str = "figures need") -> None:
    """Raise an error that says what to install if matplotlib is missing.

    Args:
        what: Start of the message, such as ``"CalibrationReport needs"``.

    Raises:
        ModuleNotFoundError: If matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise ModuleNotFoundError(
            f'{what} matplotlib, which is not installed: pip install "lpips_lightning[recipes]"', name="matplotlib"
        )


@contextmanager
def new_figure(width: Width, height: float) -> Iterator[Any]:
    """Create a figure to draw in; draw and save it within the context.

    Within it matplotlib has the style of the library, whatever the process's settings are; these return afterwards.

    Args:
        width: ``"column"`` (3.3 inches) or ``"text"`` (6.9 inches).
        height: Inches.

    Yields:
        A `matplotlib.figure.Figure` with constrained layout, without pyplot.

    Raises:
        ModuleNotFoundError: If matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib import rc_context, rcdefaults, rcParams
    from matplotlib.figure import Figure

    with rc_context():
        rcdefaults()
        rcParams.update(_STYLE)
        yield Figure((WIDTHS[width], height), layout="constrained")


def save_figure(figure: Any, path: str | os.PathLike[str], about: Mapping[str, str] | None = None) -> list[Path]:
    """Write a figure as PNG (300 dpi), and as PDF with vectors beside it.

    Args:
        figure: Figure of `new_figure`.
        path: Output file, whose suffix is replaced by ``.png`` and ``.pdf``; a pipe or device gets the PNG alone.
        about: Texts for the PNG's metadata, such as the fingerprint; the PDF holds them in its subject.

    Returns:
        The files.
    """
    about = dict(about or {})
    if is_stream(path):
        _save(figure, path, "png", about)
        return [Path(path)]
    stem = Path(path)
    stem = stem.with_suffix("") if stem.suffix.lower() in (".png", ".pdf") else stem
    files = [stem.with_name(f"{stem.name}.{kind}") for kind in ("png", "pdf")]
    _save(figure, files[0], "png", about)
    save_pdf(figure, files[1], about)
    return files


def save_pdf(figure: Any, path: str | os.PathLike[str], about: Mapping[str, str] | None = None) -> None:
    """Write a figure as PDF with vectors; see `save_figure`."""
    subject = "; ".join(f"{name}: {value}" for name, value in (about or {}).items())
    _save(figure, path, "pdf", {"CreationDate": None, **({"Subject": subject} if subject else {})})


def category_styles(count: int) -> list[CategoryStyle]:
    """Looks of categories, up to 49 different ones: seven colors for color-blind readers, then other shapes."""
    return [
        CategoryStyle(
            _COLORS[i % len(_COLORS)],
            _MARKERS[(i + i // len(_COLORS)) % len(_MARKERS)],
            _HATCHES[i // len(_COLORS) % len(_HATCHES)],
        )
        for i in range(count)
    ]


def shorten(name: str, most: int) -> str:
    """A name of at most `most` characters on one line: the middle of longer ones becomes an ellipsis.

    Characters that the font lacks are escaped.
    """
    name = _drawable(printable(name))
    if len(name) <= most:
        return name
    head = (most - 1) // 2
    return f"{name[:head]}\u2026{name[len(name) - (most - 1 - head) :]}"


def shorten_all(names: Sequence[str], most: int) -> list[str]:
    """As `shorten`; names that become equal are cut around the part in which they differ, or get a number."""
    short = [shorten(name, most) for name in names]
    clash = [i for i, name in enumerate(short) if short.count(name) > 1]
    for i, name in zip(clash, _cut_around_difference([names[i] for i in clash], most), strict=True):
        short[i] = name
    return [_numbered(names[i], i + 1, most) if short.count(name) > 1 else name for i, name in enumerate(short)]


def fit_names(names: Sequence[str], inches: float, size: float = SMALL_SIZE) -> list[str]:
    """As `shorten_all`, with as many characters as a width of `inches` holds at `size` points."""
    full = shorten_all(names, max([len(_drawable(printable(name))) for name in names] + [8]))
    most = max(map(len, full), default=0)
    while most > 8 and max(text_inches(name, size) for name in full) > inches:
        most -= 1
        full = shorten_all(names, most)
    return full


def fit_name(name: str, inches: float, size: float = SMALL_SIZE) -> str:
    """As `shorten`, with as many characters as a width of `inches` holds at `size` points."""
    return fit_names([name], inches, size)[0]


def text_inches(text: str, size: float = SMALL_SIZE) -> float:
    """Width of one line of text in inches."""
    return sum(map(_advance, text)) * size / 72


def value_limits(values: Sequence[float], margin: float = 0.06, most: float = 100.0) -> tuple[float, float]:
    """Limits of an axis around the finite values, with a margin on both sides, within the possible ones, 0 to `most`.

    Args:
        values: Values in any order.
        margin: Fraction of their range.
        most: Largest possible value; infinity if there is none.
    """
    finite = [value for value in values if math.isfinite(value)] or [0.0, most if math.isfinite(most) else 1.0]
    least = 0.01 * (most if math.isfinite(most) else max(*finite, 1e-3))
    room = max(margin * (max(finite) - min(finite)), least)
    return max(0.0, min(finite) - room), min(most, max(finite) + room)


def label_points(axes: Any, points: Sequence[tuple[float, float]], names: Sequence[str]) -> bool:
    """Write each name beside its point where it covers no other name or point.

    Args:
        axes: Axes with limits and points; success fixes the layout of their figure.
        points: Places in data coordinates.
        names: One short name per point.

    Returns:
        False, with nothing written, if there is no room for all names.
    """
    axes.figure.draw_without_rendering()
    scale = axes.figure.dpi / 72
    places = axes.transData.transform(np.reshape(points, (-1, 2)))
    taken = [_Box(x - 3 * scale, y - 3 * scale, x + 3 * scale, y + 3 * scale) for x, y in places]
    found = []
    for (x, y), name in zip(places, names, strict=True):
        size = text_inches(name) * 72 * scale, 1.25 * SMALL_SIZE * scale
        boxes = (_Box.beside(x, y, *size, right, up, 5 * scale) for right, up in _DIRECTIONS)
        box = next((box for box in boxes if box.is_within(axes.bbox) and not any(map(box.meets, taken))), None)
        if box is None:
            return False
        taken.append(box)
        found.append(box)
    axes.figure.set_layout_engine("none")  # the labels were placed in this one
    for (x, y), box, name in zip(places, found, names, strict=True):
        offset = ((box.left - x) / scale, ((box.low + box.high) / 2 - y) / scale)
        point = axes.transData.inverted().transform((x, y))
        style = {"textcoords": "offset points", "va": "center_baseline", "fontsize": SMALL_SIZE}
        axes.annotate(name, point, xytext=offset, **style)
    return True


def below_row(axes: Any, points: float = 4) -> Any:
    """Transform of data coordinates, a little lower: for a second marker in a row."""
    from matplotlib.transforms import offset_copy

    return offset_copy(axes.transData, axes.figure, y=-points, units="points")


def axes_at(figure: Any, left: float, bottom: float, width: float, height: float) -> Any:
    """Axes at a place in inches."""
    across, up = figure.get_size_inches()
    return figure.add_axes((left / across, bottom / up, width / across, height / up))


def write_at(figure: Any, x: float, y: float, text: str, **style: Any) -> None:
    """Write small text at a place in inches, from its baseline unless `style` says otherwise."""
    across, up = figure.get_size_inches()
    figure.text(x / across, y / up, text, fontsize=SMALL_SIZE, **style)


def figure_pixels(figure: Any) -> npt.NDArray[np.uint8]:
    """Pixels of a figure of `new_figure`, within its context: those of the PNG, shape ``(H, W, 3)``."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    figure.set_layout_engine("none")  # another pass could move axes by a fraction of a pixel
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


class _Box(NamedTuple):
    """Rectangle in pixels, from the lower left."""

    left: float
    low: float
    right: float
    high: float

    @classmethod
    def beside(cls, x: float, y: float, width: float, height: float, right: int, up: int, gap: float) -> _Box:
        """A box to the left or right of a point, above or below it, or both."""
        left = x + (right - 1) * width / 2 + right * gap
        low = y + (up - 1) * height / 2 + up * gap * (1 if right == 0 else 0.6)
        return cls(left, low, left + width, low + height)

    def is_within(self, other: Any) -> bool:
        """Whether it lies within a matplotlib box."""
        return bool(self.left >= other.x0 and self.low >= other.y0 and self.right <= other.x1 and self.high <= other.y1)

    def meets(self, other: _Box) -> bool:
        return self.left < other.right and other.left < self.right and self.low < other.high and other.low < self.high


_DIRECTIONS = ((1, 0), (1, 1), (-1, 0), (1, -1), (-1, 1), (-1, -1), (0, 1), (0, -1))  # right and up, best first


def _cut_around_difference(names: Sequence[str], most: int) -> list[str]:
    full = [_drawable(printable(name)) for name in names]
    equal = sum(1 for _ in takewhile(lambda letters: len(set(letters)) == 1, zip(*full, strict=False)))
    begin = max(0, equal - most // 3)
    end = begin + most - 2
    dots = "\u2026"
    return [f"{dots * (begin > 0)}{name[begin:end]}{dots * (end < len(name))}" for name in full]


def _numbered(name: str, number: int, most: int) -> str:
    suffix = f" #{number}"
    return f"{shorten(name, most - len(suffix))}{suffix}"


def _drawable(name: str) -> str:
    """The name with escapes for characters that the font lacks."""
    if find_spec("matplotlib") is None:
        return name
    known = _font().get_charmap()
    return "".join(c if ord(c) in known else c.encode("unicode_escape").decode() for c in name)


@cache
def _advance(character: str) -> float:
    """Width of a character, of the size of the font."""
    font = _font()
    font.set_size(64, 72)
    return float(font.load_char(ord(character)).linearHoriAdvance) / 65536 / 64


@cache
def _font() -> Any:
    from matplotlib.font_manager import FontProperties, findfont
    from matplotlib.ft2font import FT2Font

    # All named: what is left out comes from the process's settings, such as bold.
    regular = FontProperties(family=_FONT, style="normal", variant="normal", weight="normal", stretch="normal")
    return FT2Font(findfont(regular))


def _save(figure: Any, path: str | os.PathLike[str], kind: str, metadata: Mapping[str, Any]) -> None:
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format=kind, metadata=metadata)
