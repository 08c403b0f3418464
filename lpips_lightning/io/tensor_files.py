"""Safetensors files written whole or not at all, with a record of how they were made."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lpips_lightning.io.atomic import atomic_write
from lpips_lightning.weights import DIGEST, WeightsError, tensors_sha256

_SUFFIX = ".safetensors"


def write_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], record: Mapping[str, Any], **labels: str
) -> Path:
    """Write tensors and how they were made; the file appears under its name when it is complete.

    It says the sha256 of its tensors, which `lpips_lightning.weights.read_tensors` holds them against.

    Args:
        path: A ``.safetensors`` file; its folder is made when needed.
        tensors: By name.
        record: What JSON can hold.
        labels: Short texts to put beside the record in the file's metadata.

    Returns:
        The file.

    Raises:
        ValueError: If the path has another suffix, or names a folder.
        OSError: If it cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    file = Path(path).expanduser()
    if file.suffix != _SUFFIX or file.is_dir():
        raise ValueError(f"path: expected a file that ends in {_SUFFIX}, got {str(path)!r}")
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {"format": "pt", DIGEST: tensors_sha256(plain), **labels, "record": json.dumps(dict(record))}
    with atomic_write(file, durable=True) as beside:
        try:
            save_file(plain, beside, metadata)
        except SafetensorError as error:  # of a full disk too
            raise OSError(str(error)) from error
    return file


def read_record(path: str | os.PathLike[str]) -> dict[str, Any]:
    """How a file's tensors were made: the record that `write_tensors` put into it, and its labels.

    Args:
        path: A safetensors file.

    Returns:
        The record; labels as further entries, where the record has no entry of that name. Empty for a file without.

    Raises:
        WeightsError: If it cannot be read.
    """
    from safetensors import safe_open

    try:
        with safe_open(Path(path).expanduser(), "pt") as file:
            metadata = file.metadata() or {}
        record = json.loads(metadata.pop("record", "{}"))
    except Exception as error:  # safetensors has its own
        raise WeightsError(f"{path}: expected a safetensors file, got a damaged one, or one of another kind") from error
    for label in ("format", DIGEST):
        metadata.pop(label, None)
    return {**metadata, **record}
