"""Candidate paths of backbone files: a path, a folder, torchvision's cache. Nothing is downloaded."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import torch

from lpips_lightning.weights import BACKBONE_FILES, BackboneFile, WeightsError

FOLDER_VARIABLE = "LPIPS_LIGHTNING_WEIGHTS"


def backbone_file(builder: str) -> BackboneFile | None:
    """Record of the weights of a backbone: those of `BACKBONE_FILES`, or the ImageNet weights of a torchvision model.

    Args:
        builder: `Backbone.builder`, for example ``"alexnet"``.

    Returns:
        Our record, or one made from torchvision's ``IMAGENET1K_V1``; None if there is neither.
    """
    if builder in BACKBONE_FILES:
        return BACKBONE_FILES[builder]
    from torchvision.models import get_model_weights

    try:
        weights = get_model_weights(builder)["IMAGENET1K_V1"]
    except (ValueError, KeyError):
        return None
    return BackboneFile(builder, weights.url, None)


def backbone_places(builder: str, path: str | os.PathLike[str] | None = None) -> list[Path]:
    """Candidate files of a backbone in search order; they need not exist.

    Args:
        builder: `Backbone.builder`, for example ``"alexnet"``.
        path: A file or folder; if given, nothing else is searched.

    Returns:
        Files in `path`, or else in the folder ``$LPIPS_LIGHTNING_WEIGHTS`` and in torchvision's cache.
    """
    record = backbone_file(builder)
    names = [f"{builder}.safetensors", f"{builder}.pth"]
    if record is not None and record.file not in names:
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


def is_torchvision_file(path: str | os.PathLike[str], record: BackboneFile) -> bool:
    """Whether a file is torchvision's: its name matches the record, and its sha256 starts as its name says.

    Args:
        path: A path, or any other string.
        record: The expected file.

    Returns:
        Also False if the file does not exist, or the weights are not torchvision's.
    """
    file = Path(path)
    return (
        bool(record.url)
        and file.name == record.file
        and file.is_file()
        and file_sha256(file).startswith(record.sha256_prefix)
    )


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes, 64 hex digits.

    Args:
        path: The file.
    """
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def with_promise(error: WeightsError, path: str | os.PathLike[str], record: BackboneFile | None) -> WeightsError:
    """Add the expected and actual sha256 to an error about one of torchvision's files.

    Args:
        error: The error.
        path: The file, or any other string.
        record: Record of torchvision's file, whose name holds the start of its sha256.

    Returns:
        The extended error; `error` itself for files with another name.
    """
    if record is None or not record.url or Path(path).name != record.file or not Path(path).is_file():
        return error
    found = file_sha256(Path(path))
    return WeightsError(f"{error}; expected a sha256 that begins with {record.sha256_prefix}, got {found}: delete it")
