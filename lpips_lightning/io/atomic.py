"""Files that are there whole or not at all."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# What a full disk is called: no room on it, none within the user's share, or a file longer than may be; without a
# number, what libraries make of these.
_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG, None)


# Windows flushes only what may be written; elsewhere a folder, too, is flushed, and may not.
_TO_SYNC = os.O_RDONLY if os.name == "posix" else os.O_RDWR


@contextmanager
def atomic_write(path: str | os.PathLike[str], durable: bool = False) -> Iterator[Path]:
    """A file to fill, beside `path`; it takes that name when all went well, and is gone otherwise.

    Args:
        path: What to write. Folders are made as needed; a file of that name stays until the new one is complete.
        durable: Wait until the disk has it, so that it outlives a loss of power too, not only of the process.

    Yields:
        An empty file in the same folder.

    Raises:
        OSError: If it cannot be written, naming `path` where the disk is full.
    """
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    beside.touch(exist_ok=False)  # not mkstemp, whose files are the owner's alone: the system takes off the umask
    try:
        yield beside
        if durable:
            _to_disk(beside)
        beside.replace(file)
        if durable and os.name == "posix":
            _to_disk(file.parent)  # the name is kept there
    except OSError as error:
        if error.errno not in _FULL:
            raise
        what = error.strerror or error
        full = OSError(f"{file}: expected to write it, got {what}; nothing of that name was changed")
        full.errno = error.errno
        raise full from error
    finally:
        beside.unlink(missing_ok=True)


def check_output_path(path: str | os.PathLike[str], argument: str, folder: bool = False) -> None:
    """Refuse what cannot be written, before long work; nothing is made.

    Args:
        path: A file to write, or to write anew.
        argument: What to call it in the error.
        folder: It is a folder to write into.

    Raises:
        ValueError: If it is a folder (a file), if what is above it is none, or if it may not be written.
    """
    target, what = Path(path), "a folder" if folder else "a file"
    if not str(path) or (target.exists() and target.is_dir() != folder):
        raise ValueError(
            f"{argument}: expected {what} to write, got {str(path)!r}, which is {'a file' if folder else 'a folder'}"
        )
    above = next(parent for parent in (target.absolute(), *target.absolute().parents) if parent.exists())
    if above != target.absolute() and not above.is_dir():
        raise ValueError(f"{argument}: expected {what} to write, got {str(path)!r}, but '{above}' is no folder")
    if not os.access(above if above.is_dir() else above.parent, os.W_OK):
        raise ValueError(f"{argument}: expected {what} to write, got {str(path)!r}, but '{above}' may not be written")


def _to_disk(path: Path) -> None:
    handle = os.open(path, _TO_SYNC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
