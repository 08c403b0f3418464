"""Export of the votes of a study: the CSV of `TripletDataModule`, BAPPS' folders, or one row per answer."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from lpips_lightning.io.atomic import check_output_path
from lpips_lightning.io.image_files import read_image
from lpips_lightning.io.tables import write_table
from lpips_lightning.judge.judged_images import checked_files, images_of
from lpips_lightning.judge.records import CHOICES, Item, StudyError
from lpips_lightning.judge.store import Study
from lpips_lightning.judge.votes import counted, tally

Layout = Literal["csv", "bapps", "answers"]

_KINDS = {"2afc": ("ref", "p0", "p1"), "jnd": ("p0", "p1")}
_JUDGMENT = {"2afc": "judge", "jnd": "same"}
_NAME_LENGTH = 6  # digits of a file name, as in BAPPS


def export_csv(study: Study, path: str | os.PathLike[str], **rules: Any) -> int:
    """Write the votes on each item as a CSV, atomically.

    2AFC: ``ref``, ``p0``, ``p1``, ``votes_p0``, ``votes_p1``, ``method_p0``, ``method_p1``, as
    `lpips_lightning.data.triplets.read_triplets` reads them. JND: ``ref``, ``distorted``, ``votes_same``,
    ``votes_different``, ``method``. Files are relative to `Study.folder`.

    Args:
        study: The study.
        path: Output file.
        **rules: Which answers count, as for `lpips_lightning.judge.votes.votes`.

    Returns:
        Number of items.

    Raises:
        StudyError: If there is no vote.
    """
    votes = _votes(study, rules)
    images, items = study.images(), study.items("judged")
    rows = []
    for number, pair in votes.items():
        item = items[number]
        files = [images[image].path for image in images_of(item)]
        methods = [item.method0, item.method1][: len(files) - 1]
        rows.append([*files, *pair, *methods])
    two_afc = ["ref", "p0", "p1", "votes_p0", "votes_p1", "method_p0", "method_p1"]
    jnd = ["ref", "distorted", "votes_same", "votes_different", "method"]
    write_table(Path(path), two_afc if study.design.test == "2afc" else jnd, rows)
    return len(rows)


def export_answers(study: Study, path: str | os.PathLike[str], *, observers: bool = False, **rules: Any) -> int:
    """Write one row per answer as a CSV, atomically, for other programs.

    Args:
        study: The study.
        path: Output file.
        observers: Write the pseudonyms; else observers are numbered.
        **rules: Which answers count, as for `lpips_lightning.judge.votes.counted`; the others have 0 in column
            ``counted``.

    Returns:
        Number of answers.

    Raises:
        StudyError: If there is no answer.
    """
    counts = {answer.trial for answer in counted(study, **rules)}
    chosen = study.answers()
    if not chosen:
        raise StudyError(f"study: expected answers to export, got none in '{study.path}'")
    people = sorted({answer.observer for answer in chosen})  # pseudonyms are random, and so is this order
    names = {name: name if observers else f"observer {number}" for number, name in enumerate(people, 1)}
    images, items = study.images(), study.items()
    columns = ["trial", "observer", "session", "position", "reason", "ref", "p0", "p1", "method_p0", "method_p1"]
    columns += ["left", "choice", "expected", "response_ms", "slipped", "passed", "counted", "answered", "timing"]
    rows = []
    for one in chosen:
        item = items[one.item]
        files = [images[image].path for image in images_of(item)]
        left = "" if study.design.test == "jnd" else ("p1" if one.swapped else "p0")
        row = [one.trial, names[one.observer], one.session, one.position, one.reason, *files, *[""] * (3 - len(files))]
        row += [item.method0, item.method1, left, one.choice, item.expected or "", f"{one.response_ms:.1f}"]
        row += [int(one.slipped), "" if one.passed is None else int(one.passed), int(one.trial in counts)]
        rows.append([*row, f"{one.answered:.3f}", json.dumps(one.timing)])
    write_table(Path(path), columns, rows)
    return len(rows)


def export_bapps(
    study: Study, folder: str | os.PathLike[str], *, name: str = "study", replace: bool = False, **rules: Any
) -> int:
    """Write the votes with copies of the images in BAPPS' layout, which `TwoAFCDataset` and `JNDDataset` read.

    Args:
        study: The study.
        folder: Output folder; gets ``2afc/val/<name>`` or ``jnd/val/<name>``, complete or not at all.
        name: Name of the set.
        replace: Replace that set if it exists.
        **rules: Which answers count, as for `lpips_lightning.judge.votes.votes`.

    Returns:
        Number of items.

    Raises:
        StudyError: If there is no vote, or an image is missing or was changed.
        FileExistsError: If the set exists, without `replace`.
    """
    votes, items = _votes(study, rules), study.items("judged")
    chosen = [items[number] for number in votes]
    files = checked_files(study, chosen)
    target = bapps_set(study, folder, name)
    check_output_path(target, "out", folder=True, replace=replace)
    with _whole_folder(target) as temporary:
        for number, item in enumerate(chosen):
            _write_item(temporary, study.design.test, f"{number:0{_NAME_LENGTH}}", item, files, votes[item.id])
    return len(chosen)


def bapps_set(study: Study, folder: str | os.PathLike[str], name: str) -> Path:
    """The folder of a set in BAPPS' layout."""
    if not name or Path(name).name != name or name.startswith("."):
        raise ValueError(f"set: expected a name of a folder, got {name!r}")
    return Path(folder).expanduser() / study.design.test / "val" / name


def _votes(study: Study, rules: Mapping[str, Any]) -> dict[int, tuple[int, int]]:
    votes = tally(counted(study, **rules), study)
    if not votes:
        hint = "" if rules.get("failed") else "; --include-failed also counts sessions that failed their sentinels"
        raise StudyError(f"study: expected answers that count, got none of {len(study.answers())}{hint}")
    return votes


@contextmanager
def _whole_folder(target: Path) -> Iterator[Path]:
    """A temporary folder that takes the place of `target` once it is complete."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}-{secrets.token_hex(4)}")
    old = temporary.with_name(f"{temporary.name}-replaced")
    temporary.mkdir()
    try:
        yield temporary
        if target.exists():
            target.rename(old)
        temporary.rename(target)
    finally:
        if old.exists() and not target.exists():
            old.rename(target)
        for folder in (temporary, old):
            shutil.rmtree(folder, ignore_errors=True)


def _write_item(
    folder: Path, test: str, stem: str, item: Item, files: Mapping[int, Path], votes: tuple[int, int]
) -> None:
    for kind, image in zip(_KINDS[test], images_of(item), strict=True):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        target = folder / kind / f"{stem}.png"
        if files[image].suffix.lower() == ".png":
            shutil.copyfile(files[image], target)
        else:  # images of a triplet have one name, so one suffix
            Image.fromarray(read_image(files[image]).permute(1, 2, 0).numpy()).save(target)
    judgment = folder / _JUDGMENT[test] / f"{stem}.npy"
    judgment.parent.mkdir(parents=True, exist_ok=True)
    of_choice = CHOICES[test].index("p1" if test == "2afc" else "same")
    np.save(judgment, np.array([votes[of_choice] / sum(votes)], dtype=np.float32))
