"""Atomic file writes; streams and files that cannot be replaced are written in place."""

from __future__ import annotations

import errno
import itertools
import os
import secrets
import stat
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from lpips_lightning.io.streams import (
    copy,
    flush_standard_streams,
    is_stream,
    redirected_output,
    why_not_writable,
    write_stream,
)

# Disk full, quota exceeded, file too large; libraries re-raise these without an errno.
_DISK_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG, None)
# A folder that may not be written, a mount point, a file of others in a shared folder: the file itself may be writable.
_IN_PLACE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EBUSY, errno.EXDEV)
_PREFIX = 40  # characters of the file's name in that of its temporary: names may have 255 bytes

# fsync on Windows needs a writable handle; on POSIX folders are synced too, and cannot be opened for writing.
_FSYNC_FLAGS = os.O_RDONLY if os.name == "posix" else os.O_RDWR


@contextmanager
def atomic_write(path: str | os.PathLike[str], durable: bool = False) -> Iterator[Path]:
    """Yield a temporary file that replaces `path` on success and is deleted on an exception.

    Symbolic links stay, and what they lead to is replaced. An existing file keeps its permissions. These are written
    in place, once the temporary file is complete: pipes, devices and other streams; a file that standard output is
    redirected to, after what was printed; a file that cannot be replaced because its folder may not be written or
    because it is a mount point.

    Args:
        path: The file to write. Missing folders are created; an existing file stays until the new one is complete.
        durable: Call fsync, so that the file survives a power loss, not only the end of the process.

    Yields:
        An empty regular file, in the same folder if possible.

    Raises:
        OSError: If the file cannot be written; the error names `path` if the disk is full.
    """
    file = Path(path)
    stream = is_stream(file)
    if stream and (problem := why_not_writable(file)):
        raise OSError(f"{file}: expected a file, pipe or device to write, got one that {problem}")
    target = file if stream else follow_links(file)
    temporary = _temporary_elsewhere() if stream else _temporary_for(target)
    try:
        mode = stat.S_IMODE(temporary.stat().st_mode)
        with _full_disk_named(file):
            yield temporary
            with suppress(OSError):  # safetensors 0.8 puts a private file in its place
                temporary.chmod(mode)
            if durable and not stream:
                _fsync(temporary)
            moved = not stream and _move(temporary, target, durable)
        if not moved:
            _write_in_place(temporary, target, durable)
    finally:
        temporary.unlink(missing_ok=True)


def replace_file(complete: Path, path: Path) -> None:
    """Move a complete file to `path`, under the rules of `atomic_write`.

    Args:
        complete: Regular file beside what `follow_links` finds.
        path: Output path.

    Raises:
        OSError: If it cannot be written; `complete` then stays.
    """
    target = path if is_stream(path) else follow_links(path)
    if is_stream(path) or not _move(complete, target, durable=False):
        _write_in_place(complete, target, durable=False)
        complete.unlink()


def follow_links(path: str | os.PathLike[str]) -> Path:
    """The file that `path` leads to over symbolic links; it need not exist.

    Raises:
        OSError: If the links form a loop.
    """
    try:
        Path(path).stat()
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "expected a file to write, got a loop of symbolic links", str(path)) from error
    return Path(os.path.realpath(path)) if Path(path).is_symlink() else Path(path)


def check_output_path(path: str | os.PathLike[str], argument: str, folder: bool = False, replace: bool = True) -> None:
    """Raise if `path` cannot or must not be written, before long work starts; creates and opens nothing.

    Args:
        path: A file to create or overwrite, or a stream to write into.
        argument: Argument name for the error message.
        folder: Whether `path` is an output folder instead of a file.
        replace: Whether existing results may be replaced, as with ``--force`` on the command line.

    Raises:
        ValueError: If `path` is of the other type, a parent is not a folder, or permission is missing.
        FileExistsError: If there are results that may not be replaced, see `has_results`.
    """
    what, stream = "a folder" if folder else "a file", is_stream(path)
    if not str(path):
        problem = f"which is {'a file' if folder else 'a folder'}"
    elif stream:
        problem = "which is no folder" if folder else why_not_writable(path) and f"which {why_not_writable(path)}"
    else:
        problem = _why_not_creatable(path, folder)
    if problem:
        raise ValueError(f"{argument}: expected {what} to write, got {str(path)!r}, {problem}")
    if not replace and has_results(path):
        raise FileExistsError(f"{argument}: {path} exists; --force replaces {'files in it' if folder else 'it'}")


def has_results(path: str | os.PathLike[str]) -> bool:
    """Whether `path` is a file with content or a folder with files, so that writing to it could lose results.

    Streams, empty files (such as those of mktemp) and files that standard output is redirected to have none.
    """
    if is_stream(path):
        return False
    target = Path(path)
    with suppress(OSError):
        if target.is_dir():
            return any(target.iterdir())
        return target.is_file() and target.stat().st_size > 0 and redirected_output(target) is None
    return False


def new_version(path: str | os.PathLike[str]) -> Path:
    """`path`, or if it has results the first of ``name-2``, ``name-3``, ... that has none; a file keeps its suffix.

    Example:
        >>> new_version("missing/scores.csv").name
        'scores.csv'
    """
    return next(one for one in new_versions(path) if not has_results(one))


def new_versions(path: str | os.PathLike[str]) -> Iterator[Path]:
    """`path`, ``name-2``, ``name-3``, ...; a file keeps its suffix."""
    first = Path(path)
    yield first
    yield from (first.with_name(f"{first.stem}-{number}{first.suffix}") for number in itertools.count(2))


def choose_output_folder(
    given: str | None, default: str, replace: bool, files: Sequence[str], argument: str = "out"
) -> Path:
    """The output folder of a command: the given one, or a new version of the default one.

    Args:
        given: Folder that the user chose; None for `default`.
        default: Default folder. If it has results, the first of ``default-2``, ``default-3``, ... that has none.
        replace: Whether existing results may be replaced.
        files: Names of files that the command writes. Others in a chosen folder are no obstacle.
        argument: Argument name for error messages.

    Raises:
        ValueError: If the folder cannot be written.
        FileExistsError: If the given folder has one of `files`, and `replace` is False.
    """
    out = Path(given) if given is not None else Path(default) if replace else new_version(default)
    check_output_path(str(out) if given is None else given, argument, folder=True)
    for file in files:
        check_output_path(out / file, argument, replace=replace)
    return out


def _why_not_creatable(path: str | os.PathLike[str], folder: bool) -> str:
    """What keeps a file or folder from being written, for an error message; empty if nothing does."""
    try:
        target = follow_links(path).absolute()
    except OSError:
        return "which is a loop of symbolic links"
    if target.exists() and target.is_dir() != folder:
        return f"which is {'a file' if folder else 'a folder'}"
    if not folder and target.exists():  # in place if its folder may not be written
        return "" if os.access(target, os.W_OK) else "which is write-protected"
    above = next(parent for parent in (target, *target.parents) if parent.exists())
    if above != target and not above.is_dir():
        return f"but '{above}' is not a folder"
    return "" if os.access(above if above.is_dir() else above.parent, os.W_OK) else f"but '{above}' is not writable"


def _temporary_for(target: Path) -> Path:
    """An empty file beside `target`, as private as it; elsewhere if `target` exists in a folder that is read-only."""
    Path(os.path.realpath(target.parent)).mkdir(parents=True, exist_ok=True)  # mkdir follows no links itself
    temporary = target.with_name(f".{target.name[:_PREFIX]}.{secrets.token_hex(4)}")
    try:
        temporary.touch(exist_ok=False)  # unlike mkstemp, applies the umask, so that others can read the file
    except OSError as error:
        if error.errno not in _IN_PLACE or not target.is_file():
            raise
        return _temporary_elsewhere()
    with suppress(OSError):  # no such file, or a file system without permissions
        temporary.chmod(target.stat().st_mode & 0o777 | stat.S_IRUSR | stat.S_IWUSR)
    return temporary


def _temporary_elsewhere() -> Path:
    handle, name = tempfile.mkstemp()
    os.close(handle)
    return Path(name)


def _move(complete: Path, target: Path, durable: bool) -> bool:
    """Replace `target`; return whether this is possible and was done."""
    if redirected_output(target) is not None:
        return False
    with suppress(FileNotFoundError):
        _copy_permissions(target.stat(), complete)
    try:
        complete.replace(target)
    except OSError as error:
        if error.errno not in _IN_PLACE or not target.is_file():
            raise
        return False
    if durable and os.name == "posix":
        _fsync(target.parent)  # the folder stores the new name
    return True


def _copy_permissions(status: os.stat_result, file: Path) -> None:
    """Give owner, group and mode of a file to another, as far as this process may."""
    if os.name == "posix":
        for owner in ((status.st_uid, -1), (-1, status.st_gid)):
            with suppress(OSError):
                os.chown(file, *owner)
    with suppress(OSError):  # file systems without permissions
        file.chmod(stat.S_IMODE(status.st_mode))


def _write_in_place(complete: Path, target: Path, durable: bool) -> None:
    if is_stream(target):
        write_stream(target, complete)
        return
    number = redirected_output(target)
    if number is not None:
        flush_standard_streams()
        copy(complete, os.dup(number))
        return
    handle = os.open(target, os.O_WRONLY)
    try:
        os.ftruncate(handle, 0)
        copy(complete, os.dup(handle))
        if durable:
            os.fsync(handle)
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror}; its content is incomplete", str(target)) from error
    finally:
        os.close(handle)


@contextmanager
def _full_disk_named(file: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_FULL:
            raise
        reason = error.strerror or error
        full = OSError(f"{file}: expected to write this file, got {reason}; the existing file, if any, is unchanged")
        full.errno = error.errno
        raise full from error


def _fsync(path: Path) -> None:
    handle = os.open(path, _FSYNC_FLAGS)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
