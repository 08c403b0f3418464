"""Finds ImageNet trunks: a path, a folder, torchvision's cache, torchvision's download, or an error that helps."""

from __future__ import annotations

import hashlib
import logging
import os
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from lpips_lightning.weights import TRUNK_FILES, TrunkFile, WeightsError, read_tensors

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "FOLDER_VARIABLE",
    "FoundTrunk",
    "file_sha256",
    "find_trunk",
    "is_torchvision_file",
    "trunk_file",
    "trunk_places",
    "with_promise",
]

FOLDER_VARIABLE = "LPIPS_LIGHTNING_WEIGHTS"
_CONNECT_SECONDS = 15  # a cluster without a network drops packets; torch.hub would wait for ever

_log = logging.getLogger("lpips_lightning")


@dataclass(frozen=True)
class FoundTrunk:
    """Tensors and where they were found."""

    tensors: dict[str, Tensor]
    origin: str


def trunk_file(builder: str) -> TrunkFile | None:
    """The record of a torchvision model's ImageNet weights.

    Args:
        builder: torchvision's builder, for example ``"alexnet"``.

    Returns:
        Ours, or one made of torchvision's ``IMAGENET1K_V1``; None where there is neither.
    """
    if builder in TRUNK_FILES:
        return TRUNK_FILES[builder]
    from torchvision.models import get_model_weights

    try:
        weights = get_model_weights(builder)["IMAGENET1K_V1"]
    except (ValueError, KeyError):
        return None
    return TrunkFile(builder, weights.url, None)


def trunk_places(builder: str, path: str | os.PathLike[str] | None = None) -> list[Path]:
    """Every file that would be taken as the trunk, in the order of search; they need not exist.

    Args:
        builder: torchvision's builder, for example ``"alexnet"``.
        path: A file, or a folder to look in; then nowhere else is searched.

    Returns:
        Candidate files: those of `path`, or of the folder that ``LPIPS_LIGHTNING_WEIGHTS`` names and of torchvision's
        cache.
    """
    record = trunk_file(builder)
    names = [f"{builder}.safetensors", f"{builder}.pth"]
    if record is not None:
        names.insert(0, record.file)
    if path is not None:
        given = Path(path).expanduser()
        return [given / name for name in names] if given.is_dir() else [given]
    places = []
    if folder := os.environ.get(FOLDER_VARIABLE):
        places += [Path(folder).expanduser() / name for name in names]
    if record is not None:
        places.append(Path(torch.hub.get_dir()) / "checkpoints" / record.file)
    return places


def find_trunk(builder: str, path: str | os.PathLike[str] | None = None) -> FoundTrunk:
    """The first trunk file in the order of `trunk_places`, or torchvision's download.

    A download goes to torchvision's cache and its hash is checked. Nothing else is ever taken in a trunk's place.

    Args:
        builder: torchvision's builder, for example ``"alexnet"``.
        path: A file, or a folder to look in; then nowhere else is searched.

    Returns:
        The file's tensors, not yet held against an architecture, and the file's path.

    Raises:
        WeightsError: If nothing is found, or if what is found is damaged.
    """
    places = trunk_places(builder, path)
    for place in places:
        if place.is_file():
            return FoundTrunk(_read(place, trunk_file(builder)), str(place))
    if path is not None:
        raise WeightsError(f"weights: expected a file, or a folder with one, got {path}; looked for {_listing(places)}")
    record = trunk_file(builder)
    if record is None:
        raise WeightsError(_nothing_found(builder, record, places, None))
    target = places[-1]
    try:
        _download(record, target)
    except (OSError, RuntimeError) as error:
        raise WeightsError(_nothing_found(builder, record, places, error)) from error
    return FoundTrunk(_read(target, record), str(target))


def is_torchvision_file(path: str | os.PathLike[str], record: TrunkFile) -> bool:
    """Whether a file is torchvision's own: by its name and by the sha256 that the name promises.

    Args:
        path: A file, or any other text.
        record: What it should be.

    Returns:
        False also where there is no such file.
    """
    file = Path(path)
    return file.name == record.file and file.is_file() and file_sha256(file).startswith(record.sha256_prefix)


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes, 64 hex digits.

    Args:
        path: The file.
    """
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _read(path: Path, record: TrunkFile | None) -> dict[str, Tensor]:
    try:
        return read_tensors(path)
    except WeightsError as error:
        raise with_promise(error, path, record) from error


def with_promise(error: WeightsError, path: str | os.PathLike[str], record: TrunkFile | None) -> WeightsError:
    """An error about a file, and the sha256 that its name promises beside the one that it has.

    Args:
        error: What is wrong with the file.
        path: The file, or any other text.
        record: Of torchvision's file, whose name promises a sha256.

    Returns:
        The same error for a file of another name.
    """
    if record is None or Path(path).name != record.file or not Path(path).is_file():
        return error
    found = file_sha256(Path(path))
    return WeightsError(f"{error}; expected a sha256 that begins with {record.sha256_prefix}, got {found}: delete it")


def _download(record: TrunkFile, target: Path) -> None:
    urllib.request.urlopen(record.url, timeout=_CONNECT_SECONDS).close()
    target.parent.mkdir(parents=True, exist_ok=True)
    _log.info("downloading %s to %s", record.url, target)
    torch.hub.download_url_to_file(record.url, str(target), hash_prefix=record.sha256_prefix)


def _listing(places: list[Path]) -> str:
    return ", ".join(str(place) for place in places) or "nowhere"


def _nothing_found(builder: str, record: TrunkFile | None, places: list[Path], error: Exception | None) -> str:
    lines = [f"The pretrained trunk {builder!r} was not found."]
    if record is not None:
        lines.append(
            f"  file:      {record.file} (torchvision {record.name}, sha256 begins with {record.sha256_prefix})\n"
            f"  source:    {record.url}" + (f" (download failed: {error})" if error else "")
        )
    lines.append(f"  searched:  {_listing(places)}")
    if not os.environ.get(FOLDER_VARIABLE):
        lines.append(f"             the environment variable {FOLDER_VARIABLE} is not set")
    lines.append(
        "  ways out:  fetch the file on a machine with a network and pass weights=PATH, or put it into a folder and "
        f"set {FOLDER_VARIABLE} to that folder"
    )
    return "\n".join(lines)
