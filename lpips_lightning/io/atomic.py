"""Atomic file writes."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Disk full, quota exceeded, file too large; libraries re-raise these without an errno.
_DISK_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG, None)


# fsync on Windows needs a writable handle; on POSIX folders are synced too, and cannot be opened for writing.
_FSYNC_FLAGS = os.O_RDONLY if os.name == "posix" else os.O_RDWR


@contextmanager
def atomic_write(path: str | os.PathLike[str], durable: bool = False) -> Iterator[Path]:
    """Yield a temporary file that replaces `path` on success and is deleted on an exception.

    Args:
        path: The file to write. Missing folders are created; an existing file stays until the new one is complete.
        durable: Call fsync, so that the file survives a power loss, not only the end of the process.

    Yields:
        An empty file in the same folder.

    Raises:
        OSError: If the file cannot be written; the error names `path` if the disk is full.
    """
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    temporary.touch(exist_ok=False)  # unlike mkstemp, applies the umask, so that others can read the file
    try:
        yield temporary
        if durable:
            _fsync(temporary)
        temporary.replace(file)
        if durable and os.name == "posix":
            _fsync(file.parent)  # the folder stores the new name
    except OSError as error:
        if error.errno not in _DISK_FULL:
            raise
        reason = error.strerror or error
        full = OSError(f"{file}: expected to write this file, got {reason}; the existing file, if any, is unchanged")
        full.errno = error.errno
        raise full from error
    finally:
        temporary.unlink(missing_ok=True)


def check_output_path(path: str | os.PathLike[str], argument: str, folder: bool = False) -> None:
    """Raise if `path` cannot be written, before long work starts; creates nothing.

    Args:
        path: A file to create or overwrite.
        argument: Argument name for the error message.
        folder: Whether `path` is an output folder instead of a file.

    Raises:
        ValueError: If `path` is of the other type, a parent is not a folder, or permission is missing.
    """
    target, what = Path(path), "a folder" if folder else "a file"
    if not str(path) or (target.exists() and target.is_dir() != folder):
        raise ValueError(
            f"{argument}: expected {what} to write, got {str(path)!r}, which is {'a file' if folder else 'a folder'}"
        )
    above = next(parent for parent in (target.absolute(), *target.absolute().parents) if parent.exists())
    if above != target.absolute() and not above.is_dir():
        raise ValueError(f"{argument}: expected {what} to write, got {str(path)!r}, but '{above}' is not a folder")
    if not os.access(above if above.is_dir() else above.parent, os.W_OK):
        raise ValueError(f"{argument}: expected {what} to write, got {str(path)!r}, but '{above}' is not writable")


def _fsync(path: Path) -> None:
    handle = os.open(path, _FSYNC_FLAGS)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
