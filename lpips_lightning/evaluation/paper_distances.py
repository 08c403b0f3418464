"""Distances of the paper's comparison, kept on disk set by set, so that an interrupted run goes on where it stopped."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from lpips_lightning.data.bapps import JNDDataset, TwoAFCDataset
from lpips_lightning.evaluation.benchmark import Judged, Kind, measure
from lpips_lightning.evaluation.paper_methods import PaperMethod
from lpips_lightning.io.tensor_files import read_record, write_tensors
from lpips_lightning.weights import WeightsError, read_tensors


def measure_or_read(
    methods: Sequence[PaperMethod],
    sets: Mapping[str, TwoAFCDataset | JNDDataset],
    folder: str | Path,
    batch_size: int = 50,
    num_workers: int = 0,
    device: str | torch.device = "cpu",
    report: Callable[[str, int, int], None] | None = None,
) -> dict[str, dict[str, Judged]]:
    """Distances of every method on every set: those in `folder`, and for the others as `measure` gives them.

    A file is taken only for the same method, by its fingerprint, and the same images and judgments, by their paths,
    sizes and times of change.

    Args:
        methods: Methods to evaluate.
        sets: Data sets by name, as for `measure`.
        folder: Folder of the distances; a file appears when a set is complete.
        batch_size: Triplets or pairs per batch.
        num_workers: Worker processes that read images.
        device: Device to compute on.
        report: Progress callback: name of the set, rows done, rows in total.

    Returns:
        Distances by method, then by set.
    """
    results: dict[str, dict[str, Judged]] = {one.name: {} for one in methods}
    for name, data in sets.items():
        state = _state(data)
        files = {one.name: _file(folder, name, one) for one in methods}
        found = {one.name: _read(files[one.name], name, _key(one, state)) for one in methods}
        missing = [one for one in methods if found[one.name] is None]
        chosen = [one.method for one in missing]
        measured = measure(chosen, {name: data}, batch_size, num_workers, device, report) if missing else {}
        for one in missing:
            judged = measured[one.name][name]
            tensors = {"distances": judged.distances, "fractions": judged.shares}
            record = {"set": name, "method": one.fingerprint, "key": _key(one, state)}
            write_tensors(files[one.name], tensors, record)
        for one in methods:
            results[one.name][name] = found[one.name] or measured[one.name][name]
    return results


def _file(folder: str | Path, name: str, one: PaperMethod) -> Path:
    """A file name of plain characters, which the digest makes unique."""
    digest = hashlib.sha256(one.name.encode("utf-8", "surrogateescape")).hexdigest()[:8]
    plain = re.sub(r"[^A-Za-z0-9.=-]+", "_", one.name)[:60]
    return Path(folder) / name.replace("/", "_") / f"{plain}-{digest}.safetensors"


def _state(data: TwoAFCDataset | JNDDataset) -> str:
    """A digest of which images a data set reads, from which files."""
    lines = [str(data.size)]
    for folder, file in data.items:
        paths = [data.folder / folder / kind / file for kind in data.images]
        paths.append((data.folder / folder / data.judgment / file).with_suffix(".npy"))
        for path in paths:
            status = path.stat()
            lines.append(f"{path.resolve()} {status.st_size} {status.st_mtime_ns}")
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def _key(one: PaperMethod, state: str) -> str:
    return hashlib.sha256(f"{one.fingerprint}\n{state}".encode()).hexdigest()


def _read(file: Path, name: str, key: str) -> Judged | None:
    """Distances in a file; None if there are none, or those of another method or other images."""
    try:
        if not file.is_file() or read_record(file).get("key") != key:
            return None
        tensors = read_tensors(file)
    except WeightsError:  # damaged: measured again
        return None
    kind: Kind = "jnd" if name.startswith("jnd/") else "2afc"
    return Judged(kind, tensors["distances"], tensors["fractions"])
