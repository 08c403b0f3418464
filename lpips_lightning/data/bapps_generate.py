"""Generates a data set in BAPPS' layout from photographs and the paper's traditional or CNN-based distortions.

As in the paper (section 2), the reference is a square patch of a photograph. A candidate is the patch after one
traditional distortion, or an ordered pair of them, at random strength; or what one network of a family makes of it. A
distance or people judge the candidates. Training and validation sets use different photographs.
"""

from __future__ import annotations

import errno
import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Generator, Tensor

from lpips_lightning.data.cnn_distortions import COMMAND, DistortionFamily
from lpips_lightning.data.crops import crops, seeded
from lpips_lightning.data.distortions import DISTORTIONS, distort, ordered_pairs
from lpips_lightning.data.observer import VOTES, SimulatedObserver, vote
from lpips_lightning.io.atomic import follow_links
from lpips_lightning.io.download import ProgressCallback, no_progress
from lpips_lightning.io.image_files import find_images, image_size, read_image, write_image
from lpips_lightning.io.tables import write_table

Distance = Callable[[Tensor, Tensor], Tensor]
"""Function of two uint8 image batches ``(N, 3, H, W)`` that returns distances ``(N,)``, such as an `LPIPS`."""

Family = Literal["traditional", "cnn", "both"]
"""Distortions of a data set; ``"both"`` makes a set of each, of half the size."""

RECORD = "made.json"
"""File of a data set from `make_bapps`, with its arguments."""

_PARTS = ("2afc/train", "2afc/val", "jnd/val")
_VAL_FRACTION = 0.2  # of the photographs
_BATCH = 32
_SMALLEST_SIDE = 16  # minimum of the distortions


@dataclass
class _Item:
    """A triplet, or a pair whose first image is the untouched patch.

    Attributes:
        part: One of `_PARTS`.
        set_name: Name of the set.
        name: File name without suffix.
        photograph: Name of the photograph.
        candidates: Distortions and strengths of each distorted image; a network of a family has no strength.
        generator: Random state of the item, for crop and distortions.
        distances: Distance of each candidate to the patch; empty if people judge.
    """

    part: str
    set_name: str
    name: str
    photograph: str
    candidates: list[tuple[tuple[str, ...], list[float]]]
    generator: Generator
    distances: tuple[float, ...] = ()

    @property
    def kinds(self) -> tuple[str, ...]:
        return ("p0", "p1") if self.part == "jnd/val" else ("ref", "p0", "p1")

    @property
    def pair_distance(self) -> tuple[float, ...]:
        """Distance of a pair; nothing for a triplet."""
        return self.distances if self.part == "jnd/val" else ()


def l2(x: Tensor, y: Tensor) -> Tensor:
    """Mean squared difference of uint8 images, as a judging distance.

    Args:
        x: Shape ``(N, 3, H, W)``, uint8.
        y: Shape and dtype of `x`.

    Returns:
        Shape ``(N,)``, float32, in [0, 1].
    """
    return (x.float() - y.float()).div(255).square().mean((1, 2, 3))


def make_bapps(
    folder: str | Path,
    out: str | Path,
    *,
    distance: Distance | None,
    observer: SimulatedObserver | None = None,
    train: int = 1000,
    val: int = 200,
    jnd: int | None = None,
    family: Family = "traditional",
    cnn: DistortionFamily | None = None,
    set_name: str | None = None,
    size: int = 64,
    seed: int = 0,
    replace: bool = False,
    report: ProgressCallback = no_progress,
) -> Path:
    """Write ``2afc/train/<set>``, ``2afc/val/<set>`` and ``jnd/val/<set>`` for `TwoAFCDataset` and `JNDDataset`.

    With a distance, ``judge`` is 1 where `p1` is nearer and 0 where `p0` is; ``same`` is 1 for the nearer half of the
    pairs. With simulated observers, both are fractions of votes: 2 per training triplet, 5 per validation triplet, 3
    per pair, as in the paper. Without a distance, ``judge_train.csv`` and ``judge_val.csv`` have empty votes for people
    to fill in; `TripletDataModule` reads them, with `out` as its folder of images. ``made.csv`` next to the images
    records how each was made, ``made.json`` in `out` records the arguments.

    Args:
        folder: Folder of photographs, searched recursively.
        out: Output folder, new or empty; written atomically.
        distance: Judging distance, such as ``LPIPS("embedded")`` or `l2`: a function of two uint8 image batches
            ``(N, 3, H, W)`` that returns ``(N,)``. None: people judge.
        observer: Observers whose votes follow the distance with noise; None: the distance judges itself. Without a
            threshold of their own, they get the median distance of the pairs.
        train: Number of training triplets.
        val: Number of validation triplets.
        jnd: Number of pairs; None: 200, or 0 without a distance.
        family: ``"traditional"``, ``"cnn"``, or ``"both"``: half of each number in a set of each, as in the paper's
            training set; odd ones have one more traditional item.
        cnn: The trained networks, for ``"cnn"`` and ``"both"``; the candidates of a triplet are from different ones.
        set_name: Name of the set; None: that of the family, and always so for ``"both"``.
        size: Side of the patches in pixels.
        seed: Random seed. Equal arguments give equal files; larger counts keep the first items unchanged.
        replace: Replace `out` if it is an earlier result of this function.
        report: Progress callback, in triplets and pairs.

    Returns:
        Path of `out`.

    Raises:
        ValueError: If an argument is invalid, a photograph is too small, or there are too few to hold some out.
        FileExistsError: If `out` is not empty.
        FileNotFoundError: If `folder` does not exist or contains no images.
        TypeError: If `distance` does not return a tensor.
    """
    counts = _check_counts(train, val, jnd, judged=distance is not None)
    _check_family(family, cnn, set_name)
    _check_options(set_name or family, size, seed)
    if observer is not None and distance is None:
        raise ValueError("observer: expected None without a judging distance, got simulated observers")
    out = follow_links(out)
    replaceable = replace and (out / RECORD).is_file()
    if out.exists() and (not out.is_dir() or any(out.iterdir())) and not replaceable:
        raise FileExistsError(f"out: expected a new or empty folder, got '{out}', which is not empty")
    photographs = find_images(folder)
    check_photographs(photographs, size)
    names = _split_photographs(list(photographs), counts, seed)
    items = []
    for name, (own, networks) in _sets(family, set_name, counts, cnn).items():
        items += _draw(own, names, seed, name, networks)
    record = {"images": list(photographs), "counts": counts, "set": set_name or family, "size": size, "seed": seed}
    record |= {"judge": _judge_name(distance), **_record_of_family(family, cnn)}
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        made = temporary / "made"
        done = 0
        for photograph, group in _by_photograph(items).items():
            image = read_image(photographs[photograph])
            for batch in (group[start : start + _BATCH] for start in range(0, len(group), _BATCH)):
                _write_images(batch, image, made, size, distance, cnn)
                done += len(batch)
                report("making patches", done, len(items))
        if observer is not None:
            observer = observer.with_threshold(torch.tensor([d for item in items for d in item.pair_distance]))
            record["observer"] = {**asdict(observer), "votes": dict(VOTES)}
        for part in (part for part, count in counts.items() if count):
            _write_tables([item for item in items if item.part == part], made, observer)
        (made / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        if replaceable:
            _move_content(out, temporary / "replaced")
        put_in_place(made, out)
    finally:
        shutil.rmtree(temporary)
    return out


def _move_content(folder: Path, to: Path) -> None:
    to.mkdir(exist_ok=True)
    for part in folder.iterdir():
        shutil.move(part, to)


def put_in_place(made: Path, out: Path) -> None:
    """Rename a folder to `out`, which is new or empty; a mount point gets its content."""
    try:
        if out.exists():
            out.rmdir()
        made.rename(out)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        _move_content(made, out)


def _check_counts(train: int, val: int, jnd: int | None, judged: bool) -> dict[str, int]:
    """Validated number of items per part."""
    pairs = (200 if judged else 0) if jnd is None else jnd
    if pairs and not judged:
        raise ValueError(f"jnd: expected 0 without a judging distance (people judge triplets only), got {jnd}")
    for argument, count in (("train", train), ("val", val), ("jnd", pairs)):
        if count < 0:
            raise ValueError(f"{argument}: expected at least 0, got {count}")
    if not train + val + pairs:
        raise ValueError("train: expected some triplets or pairs, got 0 for train, val and jnd")
    return dict(zip(_PARTS, (train, val, pairs), strict=True))


def _check_family(family: str, cnn: DistortionFamily | None, set_name: str | None) -> None:
    if family not in get_args(Family):
        raise ValueError(f"family: expected one of {', '.join(get_args(Family))}, got {family!r}")
    if family == "traditional" and cnn is not None:
        raise ValueError("cnn: expected it with family cnn or both, got family traditional")
    if family != "traditional" and cnn is None:
        raise ValueError(f"cnn: expected trained networks for family {family}, got none; `{COMMAND}` trains them")
    if cnn is not None and len(cnn) < 2:
        raise ValueError(f"cnn: expected at least 2 networks, one for each candidate, got {len(cnn)}")
    if family == "both" and set_name is not None:
        raise ValueError(
            f"set_name: expected none for family both, whose sets are traditional and cnn, got {set_name!r}"
        )


def _sets(
    family: Family, set_name: str | None, counts: dict[str, int], cnn: DistortionFamily | None
) -> dict[str, tuple[dict[str, int], DistortionFamily | None]]:
    """Number of items per part, and the networks or None, by name of the set."""
    if family != "both":
        return {set_name or family: (counts, cnn)}
    halves = {part: count // 2 for part, count in counts.items()}
    others = {part: count - halves[part] for part, count in counts.items()}
    return {"traditional": (others, None), "cnn": (halves, cnn)}


def _record_of_family(family: Family, cnn: DistortionFamily | None) -> dict[str, Any]:
    """What ``made.json`` says about it; nothing about the traditional distortions alone."""
    return {} if cnn is None else {"family": family, "networks": {"names": cnn.names, "sha256": cnn.sha256}}


def _check_options(set_name: str, size: int, seed: int) -> None:
    if size < _SMALLEST_SIDE:
        raise ValueError(f"size: expected at least {_SMALLEST_SIDE}, got {size}")
    if seed < 0:
        raise ValueError(f"seed: expected at least 0, got {seed}")
    if not set_name or Path(set_name).name != set_name or set_name.startswith("."):
        raise ValueError(f"set_name: expected a folder name, got {set_name!r}")


def check_photographs(photographs: dict[str, Path], size: int) -> None:
    """Raise a ValueError that names the first photograph with a side below `size`."""
    for path in photographs.values():
        height, width = image_size(path)
        if min(height, width) < size:
            raise ValueError(f"folder: expected sides of at least {size} pixels, got {height}x{width} in {path}")


def _split_photographs(names: list[str], counts: dict[str, int], seed: int) -> dict[str, list[str]]:
    """Photographs per part; training and validation parts have none in common."""
    if not (counts["2afc/train"] and counts["2afc/val"] + counts["jnd/val"]):
        return dict.fromkeys(_PARTS, names)
    if len(names) < 2:
        raise ValueError(
            "folder: expected at least 2 photographs, since training and validation use different ones, got 1; with"
            " train=0, or val=0 and jnd=0, one is enough"
        )
    order = torch.randperm(len(names), generator=seeded(seed, len(_PARTS))).tolist()
    held_out = set(order[: max(1, round(_VAL_FRACTION * len(names)))])
    val = [name for index, name in enumerate(names) if index in held_out]
    return {"2afc/train": [name for name in names if name not in val], "2afc/val": val, "jnd/val": val}


def _draw(
    counts: dict[str, int], names: dict[str, list[str]], seed: int, set_name: str, cnn: DistortionFamily | None
) -> list[_Item]:
    items = []
    for code, (part, count) in enumerate(counts.items()):
        for index in range(count):
            generator = seeded(seed, code, index) if cnn is None else seeded(seed, code, index, 1)
            photograph = names[part][int(torch.randint(len(names[part]), (), generator=generator))]
            pair = part == "jnd/val"
            candidates = draw_candidates(generator, 1 if pair else 2, near=pair, cnn=cnn)
            items.append(_Item(part, set_name, f"{index:06d}", photograph, candidates, generator))
    return items


def draw_candidates(
    generator: Generator, count: int, near: bool, cnn: DistortionFamily | None
) -> list[tuple[tuple[str, ...], list[float]]]:
    """Draw the candidates of an item: names of distortions, and their strengths; a network has no strength.

    Args:
        generator: Random state.
        count: Number of candidates; with `cnn`, from different networks.
        near: Prefer weak distortions, near the visibility threshold.
        cnn: Trained networks to draw from; None: the traditional distortions.
    """
    if cnn is None:
        return [_draw_distortions(generator, near) for _ in range(count)]
    order = torch.randperm(len(cnn), generator=generator).tolist()
    return [((cnn.names[index],), []) for index in order[:count]]


def _draw_distortions(generator: Generator, near: bool) -> tuple[tuple[str, ...], list[float]]:
    """One or two distortions with equal probability; `near` prefers weak ones, near the visibility threshold."""
    choices: Sequence[tuple[str, ...]] = [(name,) for name in DISTORTIONS]
    if int(torch.randint(2, (), generator=generator)):
        choices = ordered_pairs()
    names = choices[int(torch.randint(len(choices), (), generator=generator))]
    strengths = torch.rand(len(names), generator=generator)
    return names, (strengths.square() if near else strengths).tolist()


def _by_photograph(items: list[_Item]) -> dict[str, list[_Item]]:
    """Group items by photograph, so that each is read once and only one is in memory."""
    groups: dict[str, list[_Item]] = {}
    for item in items:
        groups.setdefault(item.photograph, []).append(item)
    return groups


def _judge_name(distance: Distance | None) -> str:
    """Name of the judge for ``made.json``: fingerprint of a network, or name of a function."""
    if distance is None:
        return "none"
    return str(getattr(distance, "fingerprint", None) or getattr(distance, "__name__", type(distance).__name__))


def _measure(distance: Distance, references: Tensor, others: Tensor) -> list[float]:
    with torch.inference_mode():
        distances = distance(references, others)
    if not isinstance(distances, Tensor):
        raise TypeError(
            f"distance: expected a callable that returns a tensor (N,), got one returning {type(distances).__name__}"
        )
    return distances.tolist()


def _write_images(
    items: list[_Item],
    photograph: Tensor,
    made: Path,
    size: int,
    distance: Distance | None,
    cnn: DistortionFamily | None,
) -> None:
    """Write the patches of one photograph and their candidates; set the items' distances."""
    photographs: list[list[Tensor]] = []
    for item in items:
        patch = crops([photograph], 1, size, item.generator)
        altered = [
            apply_candidate(patch, names, strengths, item.generator, cnn) for names, strengths in item.candidates
        ]
        photographs.append([image[0].mul(255).round().to(torch.uint8) for image in (patch, *altered)])
        for kind, image in zip(item.kinds, photographs[-1], strict=True):
            write_image(image, made / item.part / item.set_name / kind / f"{item.name}.png")
    if distance is not None:
        references = torch.stack([patch for patch, *altered in photographs for _ in altered])
        others = torch.stack([image for _, *altered in photographs for image in altered])
        distances = iter(_measure(distance, references, others))
        for item in items:
            item.distances = tuple(next(distances) for _ in item.candidates)


def apply_candidate(
    patch: Tensor, names: tuple[str, ...], strengths: list[float], generator: Generator, cnn: DistortionFamily | None
) -> Tensor:
    """What `draw_candidates` drew, applied to a patch ``(1, 3, H, W)`` in [0, 1]."""
    if cnn is not None and not strengths:
        return cnn.distort(patch, names[0], generator)
    return distort(patch, names, torch.tensor(strengths).unsqueeze(1), generator)


def _write_tables(items: list[_Item], made: Path, observer: SimulatedObserver | None) -> None:
    """Write a part's judgments, or the CSV for people to judge in, and the record of its candidates."""
    part = items[0].part
    if not items[0].distances:
        columns = ["ref", "p0", "p1", "votes_p0", "votes_p1"]
        write_table(made / f"judge_{part.rpartition('/')[2]}.csv", columns, map(_row_to_judge, items))
    for name in dict.fromkeys(item.set_name for item in items):
        _write_set([item for item in items if item.set_name == name], made / part / name, observer)


def _row_to_judge(item: _Item) -> list[str]:
    return [*(f"{item.part}/{item.set_name}/{kind}/{item.name}.png" for kind in item.kinds), "", ""]


def _write_set(items: list[_Item], folder: Path, observer: SimulatedObserver | None) -> None:
    is_pair = items[0].part == "jnd/val"
    if items[0].distances:
        kind = "same" if is_pair else "judge"
        (folder / kind).mkdir()
        judgments = _judgments(items) if observer is None else _votes(items, observer)
        for item, judgment in zip(items, judgments, strict=True):
            np.save(folder / kind / f"{item.name}.npy", np.float32(judgment))
    candidates = ("p1",) if is_pair else ("p0", "p1")
    columns = ["name", "photograph", *(f"{c}{what}" for c in candidates for what in ("", "_strength", "_distance"))]
    write_table(folder / "made.csv", columns, map(_record_row, items))


def _record_row(item: _Item) -> list[str]:
    """Row of ``made.csv``."""
    cells = [item.name, item.photograph]
    for index, (names, strengths) in enumerate(item.candidates):
        distance = f"{item.distances[index]:.9g}" if item.distances else ""
        cells += ["+".join(names), "+".join(f"{strength:.9g}" for strength in strengths), distance]
    return cells


def _judgments(items: list[_Item]) -> list[float]:
    """For triplets, 1 if `p1` is nearer than `p0`; for pairs, 1 for the nearer half."""
    if len(items[0].distances) == 2:
        return [0.5 if d0 == d1 else float(d1 < d0) for d0, d1 in (item.distances for item in items)]
    middle = float(np.median([item.distances[0] for item in items]))
    return [float(item.distances[0] <= middle) for item in items]


def _votes(items: list[_Item], observer: SimulatedObserver) -> list[float]:
    """Fractions of the observers' votes, from the random state that each item's distortions left."""
    distances = torch.tensor([item.distances for item in items], dtype=torch.float64)
    pairs = distances.shape[1] == 1
    found = observer.same(distances[:, 0]) if pairs else observer.second(distances[:, 0], distances[:, 1])
    return [
        vote(probability, VOTES[item.part], item.generator)
        for item, probability in zip(items, found.tolist(), strict=True)
    ]
