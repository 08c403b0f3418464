"""Folders by method with equal file names: matching them, and drawing comparisons of methods in balance."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

from lpips_lightning.io.image_decoding import printable
from lpips_lightning.io.image_folders import count_of
from lpips_lightning.judge.records import Design
from lpips_lightning.judge.study_images import is_study_image

_log = logging.getLogger("lpips_lightning")


def method_folders(root: Path, reference: str | Path, fewest: int) -> tuple[Path, dict[str, Path]]:
    """The folder of references, and those of methods by name."""
    if not root.is_dir():
        raise FileNotFoundError(f"folder: expected an existing folder of folders of methods, got '{printable(root)}'")
    folders = [path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")]
    folders = [path for path in folders if not is_study_image(path / "any", root)]
    inside = [path for path in folders if path.name == str(reference)]
    references = inside[0] if inside else Path(reference).expanduser()
    listed = ", ".join(printable(path.name) for path in sorted(folders)) or "none"
    if not references.is_dir():
        raise FileNotFoundError(
            f"reference: expected one of the folders in '{printable(root)}' ({listed}) or the path of another, got"
            f" '{printable(reference)}'"
        )
    methods = {path.name: path for path in sorted(folders) if not path.samefile(references)}
    if len(methods) < fewest:
        raise ValueError(
            f"folder: expected {fewest} or more folders of methods beside the references in '{printable(root)}', got"
            f" {len(methods)}; folders there: {listed}"
        )
    return references, methods


def shared_names(
    references: Path, originals: Mapping[str, Path], outputs: Mapping[str, Mapping[str, Path]], common: bool
) -> list[str]:
    """Names of images that all folders have, in the order of the references."""
    for method, images in outputs.items():
        missing = [name for name in originals if name not in images]
        extra = [name for name in images if name not in originals]
        if missing and not common:
            raise ValueError(
                f"folder: expected an image in '{printable(method)}' for each of '{printable(references.name)}', got"
                f" none for '{printable(missing[0])}' ({len(missing)} of {len(originals)} missing);"
                f" `common` uses those that all have"
            )
        if extra:
            _log.warning(
                "%s: %s without reference, such as '%s'", printable(method), count_of(len(extra), "image"), extra[0]
            )
    names = [name for name in originals if all(name in images for images in outputs.values())]
    if not names:
        raise ValueError(
            f"folder: expected equal names in all folders, got none: '{printable(next(iter(originals)))}' in"
            f" '{printable(references.name)}'"
        )
    return names


def method_groups(methods: Sequence[str], design: Design, rng: random.Random) -> list[tuple[str, ...]]:
    """Methods shown together, in the order of a round robin, whose parts have all methods about equally often."""
    order: list[str | None] = [*rng.sample(methods, len(methods))]
    if design.test == "jnd":
        return [(str(method),) for method in order]
    order += [None] * (len(order) % 2)
    found: list[tuple[str, ...]] = []
    for _ in range(len(order) - 1):
        meetings = zip(order[: len(order) // 2], reversed(order[len(order) // 2 :]), strict=True)
        found += [(one, other) for one, other in meetings if one is not None and other is not None]
        order = [order[0], order[-1], *order[1:-1]]
    return found


def balanced(
    names: Sequence[str], groups: Sequence[tuple[str, ...]], count: int, rng: random.Random
) -> list[tuple[str, tuple[str, ...]]]:
    """`count` different pairs of a name and a group; each name and each group equally often, give or take one."""
    rows = rng.sample(names, len(names))
    block = math.lcm(len(rows), len(groups))  # until a diagonal of the table closes; then the next one
    return [(rows[index % len(rows)], groups[(index + index // block) % len(groups)]) for index in range(count)]
