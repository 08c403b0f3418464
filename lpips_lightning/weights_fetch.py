"""Trunk files from torchvision or a mirror into a folder: whole or not at all, by one process at a time."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from lpips_lightning.download import Report, download, silent
from lpips_lightning.weights import TrunkFile, WeightsError
from lpips_lightning.weights.lookup import file_sha256

__all__ = ["fetch_trunk"]


def fetch_trunk(
    record: TrunkFile, folder: str | os.PathLike[str], mirror: str | None = None, report: Report = silent
) -> bool:
    """Put torchvision's file of a trunk into a folder, unless it is there and whole.

    It appears under its name once its sha256 has been held against the one that the name promises. What is there of a
    download that stopped is gone on with. Processes that fetch the same file into the same folder wait for each other;
    where the file system knows no locks, each downloads for itself, and the last one's whole file stays.

    Args:
        record: Of the trunk.
        folder: Made when needed.
        mirror: Where the file lies under its own name: http, https or file URL, or a folder; None for torchvision's.
        report: Told the progress.

    Returns:
        Whether it had to be downloaded.

    Raises:
        OSError: If it cannot be downloaded or written.
        WeightsError: If what was downloaded has another sha256; it is deleted.
    """
    target = Path(folder) / record.file
    target.parent.mkdir(parents=True, exist_ok=True)
    with _alone(target.with_name(f".{record.file}.lock")) as alone:
        if target.is_file() and file_sha256(target).startswith(record.sha256_prefix):
            return False
        url = record.url if mirror is None else _address(mirror, record.file)
        loaded = target.with_name(f".{record.file}.{'download' if alone else os.getpid()}")
        try:
            download(url, loaded, report)
        except OSError as error:
            raise OSError(
                f"{url}: expected to download it, got {error}; run again to go on where it stopped, name another"
                f" source with --mirror, or put the file into '{target.parent}' as {record.file} yourself"
            ) from error
        _check(loaded, url, record)
        loaded.replace(target)
    return True


def _address(mirror: str, file: str) -> str:
    prefix = mirror if "://" in mirror else Path(mirror).expanduser().resolve().as_uri()
    return f"{prefix.rstrip('/')}/{file}"


def _check(loaded: Path, url: str, record: TrunkFile) -> None:
    found = file_sha256(loaded)
    if not found.startswith(record.sha256_prefix):
        size = loaded.stat().st_size
        loaded.unlink()
        raise WeightsError(
            f"{url}: expected a file whose sha256 begins with {record.sha256_prefix}, got {found[:12]} ({size} bytes);"
            " it was deleted"
        )


@contextlib.contextmanager
def _alone(lock: Path) -> Iterator[bool]:
    """Wait until no other process is in here with the same lock; False where there are no locks."""
    handle = _lock(lock)
    try:
        yield handle is not None
    finally:
        if handle is not None:
            lock.unlink(missing_ok=True)
            os.close(handle)


def _lock(path: Path) -> int | None:
    try:
        import fcntl
    except ModuleNotFoundError:
        return None
    while True:
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except PermissionError:  # a folder to read from: what is there may be whole
            return None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError:  # some file systems of clusters know none
            os.close(handle)
            path.unlink(missing_ok=True)
            return None
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), path.stat()):
                return handle
        os.close(handle)  # its last owner took it away while we waited
