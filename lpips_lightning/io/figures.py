"""Style of all figures: widths of a column and of a page, fonts, colors, shortened names, and files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

from lpips_lightning.io.atomic import atomic_write
from lpips_lightning.io.image_decoding import printable
from lpips_lightning.io.streams import is_stream

Width: TypeAlias = Literal["column", "text"]

WIDTHS: dict[Width, float] = {"column": 3.3, "text": 6.9}
"""Width in inches of a column and of the text of a two-column paper."""

DPI = 300
TITLE_SIZE, TEXT_SIZE, SMALL_SIZE = 9, 8, 7  # points
_STYLE = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same on every machine
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
    "text.parse_math": False,  # names of files and methods may contain $
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

    Within it matplotlib has the style of the library; the process's own settings return afterwards.

    Args:
        width: ``"column"`` (3.3 inches) or ``"text"`` (6.9 inches).
        height: Inches.

    Yields:
        A `matplotlib.figure.Figure` with constrained layout, without pyplot.

    Raises:
        ModuleNotFoundError: If matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(_STYLE):
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
    subject = "; ".join(f"{name}: {value}" for name, value in about.items())
    _save(figure, files[1], "pdf", {"CreationDate": None, **({"Subject": subject} if subject else {})})
    return files


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
    """A name of at most `most` characters on one line: the middle of longer ones becomes an ellipsis."""
    name = printable(name)
    if len(name) <= most:
        return name
    head = (most - 1) // 2
    return f"{name[:head]}\u2026{name[len(name) - (most - 1 - head) :]}"


def shorten_all(names: Sequence[str], most: int) -> list[str]:
    """As `shorten`; names that become equal get a number."""
    short = [shorten(name, most) for name in names]
    clash = {name for name in short if short.count(name) > 1}
    return [f"{shorten(name, most - 4)} #{i + 1}" if name in clash else name for i, name in enumerate(short)]


def _save(figure: Any, path: str | os.PathLike[str], kind: str, metadata: Mapping[str, Any]) -> None:
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format=kind, metadata=metadata)
