"""What is judged: distorted versions of photographs, triplets from a CSV, or the outputs of several methods.

Every function writes the images of a study into a folder beside its file, with sentinels and practice trials
(`known_items`), and makes the file. Equal arguments give equal images and items.

Images larger than `size` are cropped, at a place that is drawn per reference and common to all of its versions. The
default of 512 pixels lets a reference and two candidates stand side by side on a usual screen of 1920 pixels, one image
pixel on one of the screen: shrunk to fit, images of 2 megapixels would lose what super-resolution and codecs differ in.
"""

from __future__ import annotations

import functools
import itertools
import logging
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from lpips_lightning.data.bapps_generate import apply_candidate, check_photographs, draw_candidates
from lpips_lightning.data.cnn_distortions import DistortionFamily
from lpips_lightning.data.crops import crops, seeded
from lpips_lightning.io.download import ProgressCallback, no_progress
from lpips_lightning.io.image_decoding import printable
from lpips_lightning.io.image_files import image_size, natural_order, read_image
from lpips_lightning.io.image_folders import HIDDEN, check_any_image, count_of, describe_left_out, list_images
from lpips_lightning.io.tables import Row, Table, read_table
from lpips_lightning.judge.known_items import known_images, known_items
from lpips_lightning.judge.method_pairs import balanced, method_folders, method_groups, shared_names
from lpips_lightning.judge.records import Design, Item
from lpips_lightning.judge.store import Study
from lpips_lightning.judge.study_images import (
    Source,
    StudyImages,
    build_study,
    check_new,
    check_same_sizes,
    images_folder,
    is_study_image,
    shown_window,
    source_name,
)

PATCH = 256
"""Default side of patches of photographs; the paper's have 64."""

LARGEST = 512
"""Default largest side of what is shown of an image of triplets or methods."""

_SMALLEST = 16  # of the distortions of sentinels
_COLUMNS = ("ref", "p0", "p1", "method0", "method1")
_VOTES = ("votes_p0", "votes_p1", "judge")
_log = logging.getLogger("lpips_lightning")


@dataclass(frozen=True)
class _Comparison:
    """Sources of an item."""

    ref: Source
    candidates: tuple[Source, ...]
    methods: tuple[str, ...]


def study_from_photographs(
    out: str | Path,
    folder: str | Path,
    *,
    design: Design | None = None,
    count: int = 200,
    size: int = PATCH,
    seed: int | None = None,
    cnn: DistortionFamily | None = None,
    images_out: str | Path | None = None,
    report: ProgressCallback = no_progress,
) -> Study:
    """A study of distorted versions of photographs, by the paper's distortions (see `make_bapps`).

    The reference of an item is a random patch of a photograph; photographs are used equally often. 2AFC candidates have
    one or two distortions of any strength; the candidate of a JND pair has weak ones, near the threshold of visibility.

    Args:
        out: File of the study; must not exist.
        folder: Folder of photographs, searched recursively.
        design: How the study is conducted; None: the defaults.
        count: Number of items to judge.
        size: Side of the patches in pixels; the paper's have 64.
        seed: Random seed; None: that of the design.
        cnn: Trained networks whose outputs are the candidates, in place of the traditional distortions.
        images_out: Folder for the images of the study, new or empty; None: ``<name of out>-images`` beside `out`.
        report: Progress callback, in images.

    Returns:
        The study. `Item.method0` and `Item.method1` are the names of the distortions.

    Raises:
        ValueError: If an argument is invalid, or a photograph is smaller than `size`.
        FileExistsError: If `out` exists, or the folder for the images is not empty.
        FileNotFoundError: If `folder` does not exist or contains no images.
    """
    design = design or Design()
    seed = design.seed if seed is None else seed
    if count < 1:
        raise ValueError(f"count: expected at least 1, got {count}")
    if cnn is not None and len(cnn) < 2:
        raise ValueError(f"cnn: expected at least 2 networks, one for each candidate, got {len(cnn)}")
    _check_size(size or 0)
    _check_target(out, images_out)
    photographs = _photographs(folder)
    check_photographs(photographs, size)
    drawn = _in_turn(list(photographs), count, random.Random(f"{seed}/photographs"))

    def fill(images: StudyImages) -> list[Item]:
        images.total = count * (3 if design.test == "2afc" else 2) + known_images(design)
        items: list[Item] = []
        for name in dict.fromkeys(drawn):  # each photograph is read once
            photograph = read_image(photographs[name])
            for index in (index for index, one in enumerate(drawn) if one == name):
                items.append(_distorted_item(images, design, photograph, name, index, size, seed, cnn))
        return sorted(items, key=lambda item: item.id)

    return _build(out, images_out, design, seed, fill, report)


def study_from_triplets(
    out: str | Path,
    csv: str | Path,
    folder: str | Path,
    *,
    design: Design | None = None,
    columns: Mapping[str, str] | None = None,
    size: int | None = LARGEST,
    seed: int | None = None,
    images_out: str | Path | None = None,
    report: ProgressCallback = no_progress,
) -> Study:
    """A study of the triplets of a CSV: columns ``ref``, ``p0`` and ``p1``, or ``ref`` and ``p0`` for JND.

    Optional columns ``method0`` and ``method1`` name what made the candidates. Judgments in the file are not used. Rows
    about the same images are one item, also with the candidates swapped.

    Args:
        out: File of the study; must not exist.
        csv: The CSV.
        folder: Folder of the images that it names.
        design: How the study is conducted; None: the defaults.
        columns: Names of columns in the file that differ, such as ``{"ref": "reference"}``.
        size: Largest side of what is shown; larger images are cropped, those of one reference at the same place. None:
            images are shown whole.
        seed: Random seed; None: that of the design.
        images_out: See `study_from_photographs`.
        report: See `study_from_photographs`.

    Returns:
        The study.

    Raises:
        ValueError: If a column is missing, the images of a row have different sizes, or are one file; the message has
            the line number.
        FileExistsError: If `out` exists, or the folder for the images is not empty.
        FileNotFoundError: If the CSV, the folder or an image is missing; the message has the line number.
    """
    design = design or Design()
    seed = design.seed if seed is None else seed
    _check_size(size)
    _check_target(out, images_out)
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(f"folder: expected an existing folder of images, got '{printable(folder)}'")
    if unknown := set(columns or ()) - set(_COLUMNS):
        raise ValueError(f"columns: expected some of {', '.join(_COLUMNS)} as keys, got {min(unknown)!r}")
    names = {column: (columns or {}).get(column, column) for column in _COLUMNS}
    table = read_table(Path(csv).expanduser())
    kinds = ("ref", "p0", "p1") if design.test == "2afc" else ("ref", "p0")
    table.require([names[kind] for kind in kinds])
    _log_unused(table, kinds)
    place = _Places(size, seed)
    compared: dict[tuple[str, ...], _Comparison] = {}
    for row in table.rows:
        one = _listed(row, names, kinds, root, place)
        compared.setdefault((str(one.ref.path), *sorted(str(candidate.path) for candidate in one.candidates)), one)
    if len(compared) < len(table.rows):
        what = "triplet" if design.test == "2afc" else "pair"
        _log.warning("%s: merged %d rows into %s", csv, len(table.rows), count_of(len(compared), what))
    return _build(out, images_out, design, seed, _filler(list(compared.values()), design), report)


def study_from_methods(
    out: str | Path,
    folder: str | Path,
    reference: str | Path,
    *,
    design: Design | None = None,
    count: int | None = None,
    common: bool = False,
    size: int | None = LARGEST,
    seed: int | None = None,
    images_out: str | Path | None = None,
    report: ProgressCallback = no_progress,
) -> Study:
    """A study that compares methods: a folder with a folder of images per method, and the references.

    For 2AFC, an item shows the outputs of two methods for a reference; for JND, the output of one. Of all of these,
    `count` are drawn such that every reference and every pair of methods occurs equally often, give or take one.

    Args:
        out: File of the study; must not exist.
        folder: Folder with a folder per method; their images have equal names, suffixes aside.
        reference: Name of the folder of references in `folder`, or a path elsewhere.
        design: How the study is conducted; None: the defaults.
        count: Number of items to judge; None: all.
        common: Use the images that all folders have; else a missing one is an error.
        size: Largest side of what is shown; larger images are cropped, all versions of a reference at the same place.
            None: images are shown whole.
        seed: Random seed; None: that of the design.
        images_out: See `study_from_photographs`.
        report: See `study_from_photographs`.

    Returns:
        The study. `Item.method0` and `Item.method1` are the names of the folders.

    Raises:
        ValueError: If there are too few methods, names or sizes of images differ, or an argument is invalid.
        FileExistsError: If `out` exists, or the folder for the images is not empty.
        FileNotFoundError: If a folder does not exist or contains no images.
    """
    design = design or Design()
    seed = design.seed if seed is None else seed
    _check_size(size)
    _check_target(out, images_out)
    root = Path(folder).expanduser()
    references, methods = method_folders(root, reference, 2 if design.test == "2afc" else 1)
    originals = _photographs(references)
    outputs = {name: _photographs(path) for name, path in methods.items()}
    names = shared_names(references, originals, outputs, common)
    for name in names:
        check_same_sizes([originals[name], *(images[name] for images in outputs.values())])
    rng = random.Random(f"{seed}/methods")
    groups = method_groups(list(outputs), design, rng)
    drawn = balanced(names, groups, _check_count(count, len(names) * len(groups)), rng)
    place = _Places(size, seed)
    compared = [_compared(name, group, references.name, originals, outputs, place, rng) for name, group in drawn]
    return _build(out, images_out, design, seed, _filler(compared, design), report)


def _check_size(size: int | None) -> None:
    if size is not None and size < _SMALLEST:
        raise ValueError(f"size: expected at least {_SMALLEST}, got {size}")


def _check_target(out: str | Path, images_out: str | Path | None) -> None:
    """Refuse an existing result before long work."""
    target = Path(out).expanduser()
    check_new(target, images_folder(target, images_out))


def _check_count(count: int | None, most: int) -> int:
    if count is not None and not 1 <= count <= most:
        raise ValueError(f"count: expected 1 to {most}, all there are, got {count}")
    return most if count is None else count


def _photographs(folder: str | Path) -> dict[str, Path]:
    """Images below a folder by name, without those that were written for a study."""
    root = Path(folder).expanduser()
    listed = list_images(root)
    check_any_image(listed, root)
    found = {name: path for name, path in listed.images.items() if not is_study_image(path, root)}
    if not found:
        raise FileNotFoundError(f"folder: expected images, got only those of a study in '{printable(root)}'")
    left_out = {
        name: reason
        for name, reason in listed.left_out.items()
        if reason != HIDDEN and not is_study_image(root / name, root)
    }
    if left_out:
        _log.warning("%s left out: %s", printable(root), describe_left_out(left_out))
    return {name: found[name] for name in sorted(found, key=natural_order)}


def _in_turn(names: Sequence[str], count: int, rng: random.Random) -> list[str]:
    """`count` names in random order, each equally often, give or take one."""
    rounds = itertools.chain.from_iterable(rng.sample(names, len(names)) for _ in range(-(-count // len(names))))
    return list(itertools.islice(rounds, count))


def _distorted_item(
    images: StudyImages,
    design: Design,
    photograph: torch.Tensor,
    name: str,
    index: int,
    size: int,
    seed: int,
    cnn: DistortionFamily | None,
) -> Item:
    """Write a patch of a photograph and its candidates."""
    generator = seeded(seed, 0, index)
    pair = design.test == "jnd"
    drawn = draw_candidates(generator, 1 if pair else 2, near=pair, cnn=cnn)
    patch = crops([photograph], 1, size, generator)
    base = f"photographs/{name}/{index:06d}"
    numbers = [images.add(patch[0], f"{base}-ref", name)]
    for kind, (names, strengths) in zip(("p0", "p1"), drawn, strict=False):
        how = ", ".join(f"{one} {strength:.4f}" for one, strength in itertools.zip_longest(names, strengths or [1.0]))
        altered = apply_candidate(patch, names, strengths, generator, cnn)
        numbers.append(images.add(altered[0], f"{base}-{kind}", name, how))
    methods = [" + ".join(names) for names, _ in drawn]
    return _item(index + 1, numbers, methods)


def _item(number: int, images: Sequence[int], methods: Sequence[str]) -> Item:
    """A judged item of the numbers of two or three images."""
    p1 = images[2] if len(images) > 2 else None
    return Item(number, "judged", images[0], images[1], p1, None, *methods)


def _filler(compared: Sequence[_Comparison], design: Design) -> Callable[[StudyImages], list[Item]]:
    """What writes the images of items from files."""

    def fill(images: StudyImages) -> list[Item]:
        shown = {(source.path, source.window) for one in compared for source in (one.ref, *one.candidates)}
        images.total = len(shown) + known_images(design)
        return [
            _item(number, [images.add_source(source) for source in (one.ref, *one.candidates)], one.methods)
            for number, one in enumerate(compared, 1)
        ]

    return fill


def _build(
    out: str | Path,
    images_out: str | Path | None,
    design: Design,
    seed: int,
    fill: Callable[[StudyImages], list[Item]],
    report: ProgressCallback,
) -> Study:
    """Write judged items, then those with a known answer."""

    def fill_all(images: StudyImages) -> list[Item]:
        items = fill(images)
        _log_identical(images, items)
        references = list(dict.fromkeys(item.ref for item in items))
        return items + known_items(images, design, references, len(items) + 1, seed)

    return build_study(out, images_out, design, seed, fill_all, report)


def _log_identical(images: StudyImages, items: Sequence[Item]) -> None:
    """Say how many items show two images that no one can tell apart; they stay, as what methods did."""
    shown = [(item.ref, item.p0) if item.p1 is None else (item.p0, item.p1) for item in items]
    count = sum(images.images[one - 1].sha256 == images.images[other - 1].sha256 for one, other in shown)
    if count:
        _log.warning("%s of %d with two images of equal pixels", count_of(count, "item"), len(items))


class _Places:
    """Crops of images that are too large, one place per reference."""

    def __init__(self, size: int | None, seed: int) -> None:
        self.size, self.seed, self._shape = size, seed, functools.cache(image_size)

    def sources(self, files: Sequence[Path], names: Sequence[str], place: str = "") -> list[Source]:
        """What is shown of a reference and its versions."""
        shape = check_same_sizes(files, place, self._shape)
        if min(shape) < _SMALLEST:
            raise ValueError(
                f"{place and place + ': '}{printable(files[0])}: expected sides of at least {_SMALLEST} pixels, got"
                f" {shape[0]}x{shape[1]}"
            )
        window = shown_window(shape, self.size, random.Random(f"{self.seed}/{printable(names[0])}"))
        return [Source(file, name, window) for file, name in zip(files, names, strict=True)]


def _log_unused(table: Table, kinds: Sequence[str]) -> None:
    votes = [column for column in _VOTES if column in table.columns]
    if votes:
        _log.info("%s: judgments in %s are not used; the study collects its own", table.path, ", ".join(votes))
    if len(kinds) == 2 and "p1" in table.columns:
        _log.warning("%s: p1 is not used; a JND item shows ref and p0", table.path)


def _listed(row: Row, names: Mapping[str, str], kinds: Sequence[str], folder: Path, place: _Places) -> _Comparison:
    """A row of the CSV."""
    files = [folder / row[names[kind]] for kind in kinds]
    for kind, file in zip(kinds, files, strict=True):
        if not row[names[kind]] or not file.is_file():
            raise FileNotFoundError(
                f"{row.place}: {names[kind]}: expected a file in '{printable(folder)}', got"
                f" '{printable(row[names[kind]])}'"
            )
    one, other = files[-2:]
    if one.samefile(other):
        raise ValueError(
            f"{row.place}: expected two images to tell apart, got '{printable(row[names[kinds[-1]]])}' for"
            f" {names[kinds[-2]]} and {names[kinds[-1]]}"
        )
    sources = place.sources(files, [source_name(Path(row[names[kind]])) for kind in kinds], row.place)
    methods = [row.values.get(names[f"method{index}"], "") for index in range(len(kinds) - 1)]
    return _Comparison(sources[0], tuple(sources[1:]), tuple(methods))


def _compared(
    name: str,
    group: Sequence[str],
    reference: str,
    originals: Mapping[str, Path],
    outputs: Mapping[str, Mapping[str, Path]],
    place: _Places,
    rng: random.Random,
) -> _Comparison:
    """The outputs of methods for a reference, in random order."""
    shuffled = rng.sample(group, len(group))
    files = [originals[name], *(outputs[method][name] for method in shuffled)]
    ref, *candidates = place.sources(files, [f"{folder}/{name}" for folder in (reference, *shuffled)])
    return _Comparison(ref, tuple(candidates), tuple(map(printable, shuffled)))
