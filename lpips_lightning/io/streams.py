"""Paths that are no regular files: standard streams, other open files of this process, pipes and devices.

A stream is written into and read once; it cannot be replaced, rewound, or asked for its size.
"""

from __future__ import annotations

import os
import re
import select
import shutil
import stat
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

STDIN, STDOUT = "/dev/stdin", "/dev/stdout"
"""Names of the standard streams, understood also where the system has no such files."""

_STANDARD = {STDIN: 0, STDOUT: 1, "/dev/stderr": 2}
_MAX_LINKS = 40  # as on Linux


def is_stream(path: str | os.PathLike[str]) -> bool:
    """Whether `path` leads to an open file of this process, a pipe, a device or a socket.

    Args:
        path: Any path; symbolic links are followed.

    Returns:
        False also for folders and for files that do not exist.

    Example:
        >>> is_stream("/dev/stdout"), is_stream("missing.csv")
        (True, False)
    """
    if open_file(path) is not None:
        return True
    mode = _mode(path)
    return mode is not None and not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def open_file(path: str | os.PathLike[str]) -> int | None:
    """Number of this process's open file that `path` names, such as 1 for ``/dev/stdout`` and links to it.

    Such a name must not be opened again: that would start at the beginning of a redirected file, and fails on sockets.

    Args:
        path: Any path; the last component's links are followed one by one.

    Returns:
        The file descriptor, which may be closed; None for other paths.
    """
    own = rf"(?:/dev|/proc/(?:self|thread-self|{os.getpid()})(?:/task/\d+)?)/fd/(\d+)"
    link = Path(path)
    for _ in range(_MAX_LINKS):
        place = Path(os.path.realpath(link.parent), link.name)
        for name in (link.as_posix(), place.as_posix()):
            if name in _STANDARD:
                return _STANDARD[name]
            if found := re.fullmatch(own, name):
                return int(found[1])
        if not place.is_symlink():
            return None
        link = place.parent / place.readlink()
    return None


def why_not_writable(path: str | os.PathLike[str]) -> str:
    """What keeps a stream from being written into, for an error message; empty if nothing does. Opens nothing."""
    number = open_file(path)
    if number is not None:
        if number and _python_stream(number) is not None:
            return ""
        return _why_not_open_for_writing(number)
    if stat.S_ISSOCK(_mode(path) or 0):
        return "is a socket; write to a file or a pipe"
    return "" if os.access(path, os.W_OK) else "is not writable"


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """Content of a file, or the rest of a stream.

    Args:
        path: A file or a stream; ``/dev/stdin`` is Python's standard input.

    Raises:
        OSError: If it cannot be read.
    """
    number = open_file(path)
    if number is None:
        return Path(path).read_bytes()
    stream = _python_stream(number)
    if stream is not None:
        return bytes(stream.buffer.read()) if hasattr(stream, "buffer") else str(stream.read()).encode()
    with os.fdopen(os.dup(number), "rb") as file:
        return file.read()


def write_stream(path: str | os.PathLike[str], content: Path) -> None:
    """Write a file into a stream, after what this process has printed.

    Args:
        path: A stream. A pipe waits for its reader.
        content: Regular file to copy.

    Raises:
        BrokenPipeError: If the reader of a pipe is gone.
        OSError: If the stream cannot be written; every error names `path`.
    """
    number = open_file(path)
    try:
        if number in (1, 2):
            flush_standard_streams()
        stream = _python_stream(number) if number else None
        if stream is not None:
            _write_python_stream(stream, content)
            return
        # Without O_CREAT, which Linux may refuse for pipes of others in /tmp.
        copy(content, os.open(path, os.O_WRONLY) if number is None else os.dup(number))
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def name_streams(options: object, inputs: Sequence[str] = (), outputs: Sequence[str] = ()) -> bool:
    """Replace ``-`` by the path of standard input or output.

    Args:
        options: The parsed command line, which is changed.
        inputs: Names of options that are files to read.
        outputs: Names of options that are files to write.

    Returns:
        Whether ``-`` is among the outputs: standard output then belongs to it, and text for people to standard error.

    Raises:
        ValueError: If ``-`` is given twice.
    """
    dashes: dict[str, list[str]] = {}
    for stream, names in ((STDIN, inputs), (STDOUT, outputs)):
        dashes[stream] = [name for name in names if getattr(options, name) == "-"]
        for name in dashes[stream]:
            setattr(options, name, stream)
        if len(dashes[stream]) > 1:
            both = " and ".join(name.replace("_", "-") for name in dashes[stream])
            raise ValueError(f"{both}: expected '-' for one of them, got it for both")
    return bool(dashes[STDOUT])


def redirected_output(path: str | os.PathLike[str]) -> int | None:
    """1 or 2 if standard output or error is redirected to the regular file `path`, else None.

    Such a file must not be replaced: what is printed later would go to the deleted one.
    """
    for number in (1, 2):
        with suppress(OSError):
            if os.path.samestat(Path(path).stat(), os.fstat(number)):
                return number
    return None


def copy(content: Path, descriptor: int) -> None:
    """Write a file into an open one, which is closed."""
    with os.fdopen(descriptor, "wb") as out, content.open("rb") as source:
        shutil.copyfileobj(source, out)


def flush_standard_streams() -> None:
    """Write what was printed and is still in Python's buffers."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()


def has_lost_reader(stream: Any) -> bool:
    """Whether a stream of Python is a pipe that nobody reads any longer; False where this cannot be asked."""
    try:
        poll = select.poll()
        poll.register(stream.fileno(), 0)
        return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    except (AttributeError, OSError, ValueError):  # Windows, and streams that are no files
        return False


def _python_stream(number: int) -> Any:
    """Python's stream for a standard descriptor; None if the descriptor itself is meant.

    Output that a notebook or a test captures is no file; standard input may have been read in part.
    """
    stream: Any = {0: sys.stdin, 1: sys.stdout, 2: sys.stderr}.get(number)
    if stream is None or number == 0:
        return stream
    try:
        return None if stream.fileno() == number else stream
    except (OSError, ValueError, AttributeError):
        return stream


def _write_python_stream(stream: Any, content: Path) -> None:
    if hasattr(stream, "buffer"):
        stream.buffer.write(content.read_bytes())
    else:
        stream.write(content.read_text(encoding="utf-8"))
    stream.flush()


def _why_not_open_for_writing(number: int) -> str:
    try:
        import fcntl

        flags = fcntl.fcntl(number, fcntl.F_GETFL)
    except ImportError:  # Windows
        return ""
    except OSError:
        return "is closed"
    return "is open for reading only" if flags & (os.O_WRONLY | os.O_RDWR) == 0 else ""


def _mode(path: str | os.PathLike[str]) -> int | None:
    with suppress(OSError, ValueError):
        return Path(path).stat().st_mode
    return None
