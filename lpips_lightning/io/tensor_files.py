"""Safetensors files, written atomically, with a record of how they were made."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lpips_lightning.io.atomic import atomic_write
from lpips_lightning.io.streams import is_stream
from lpips_lightning.weights import DIGEST, WeightsError, tensors_sha256

_SUFFIX = ".safetensors"


def write_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], record: Mapping[str, Any], **labels: str
) -> Path:
    """Write tensors and a record of how they were made, atomically.

    The metadata includes the sha256 of the tensors, which `lpips_lightning.weights.read_tensors` verifies.

    Args:
        path: Output ``.safetensors`` file, or a stream; missing folders are created.
        tensors: Tensors by name.
        record: JSON-serializable provenance.
        labels: Further metadata strings.

    Returns:
        Path of the file.

    Raises:
        ValueError: If the path has another suffix, or is a folder.
        OSError: If the file cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    file = Path(path).expanduser()
    if not is_stream(file) and (file.suffix != _SUFFIX or file.is_dir()):
        raise ValueError(f"path: expected a file that ends in {_SUFFIX}, got {str(path)!r}")
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {"format": "pt", DIGEST: tensors_sha256(plain), **labels, "record": json.dumps(dict(record))}
    with atomic_write(file, durable=True) as temporary:
        try:
            save_file(plain, temporary, metadata)
        except SafetensorError as error:  # also raised on a full disk
            raise OSError(str(error)) from error
    return file


def read_record(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The record and labels that `write_tensors` stored in a file.

    Args:
        path: A safetensors file.

    Returns:
        The record, merged with the labels (the record wins on equal names); empty if the file has neither.

    Raises:
        WeightsError: If the file cannot be read.
    """
    from safetensors import safe_open

    try:
        with safe_open(Path(path).expanduser(), "pt") as file:
            metadata = file.metadata() or {}
        record = json.loads(metadata.pop("record", "{}"))
    except Exception as error:  # safetensors raises its own exception types
        raise WeightsError(f"{path}: expected a safetensors file, got a damaged file or another format") from error
    for label in ("format", DIGEST):
        metadata.pop(label, None)
    return {**metadata, **record}
