"""Resumable download of one large file, moved to its final name when complete."""

from __future__ import annotations

import contextlib
import errno
import http.client
import re
import socket
import urllib.request
from collections.abc import Callable, Iterator
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lpips_lightning.io.atomic import follow_links, replace_file

ProgressCallback = Callable[[str, int, int], None]
"""``(task, done, total)``, called repeatedly; counts are bytes or items, and a `total` of 0 means unknown."""

_CHUNK = 1 << 20
_UNREACHABLE = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN)


def no_progress(task: str, done: int, total: int) -> None:
    """A `ProgressCallback` that does nothing."""


class WriteError(OSError):
    """What was received could not be written here: a matter of this machine, not of the server."""


class TooLargeError(OSError):
    """The server has a larger file than the caller takes."""


def partial_file(path: Path) -> Path:
    """Where `download` keeps what it has received so far of the file `path`."""
    path = follow_links(path)
    return path.with_name(f"{path.name}.part")


def remove_partial(path: Path) -> None:
    """Delete what `download` has received so far of the file `path`."""
    for file in _partial_files(path):
        file.unlink(missing_ok=True)


def download(
    url: str,
    path: Path,
    report: ProgressCallback = no_progress,
    timeout: float = 60.0,
    open_url: Callable[..., Any] | None = None,
    most: int = 0,
) -> None:
    """Download `url` to `path`; the file appears under that name when complete.

    Keeps the received bytes in ``<path>.part`` and the server's ETag or modification date in ``<path>.part.version``.
    After a lost connection, this call or a later one requests only the missing bytes, and restarts if the file on the
    server has changed.

    Args:
        url: A http, https or file URL.
        path: Output file; a symbolic link stays, and its target is written.
        report: Progress callback, in bytes.
        timeout: Seconds without data before the connection counts as lost.
        open_url: Called as ``open_url(request, timeout=...)``; None for `urllib.request.urlopen`.
        most: Largest number of bytes that is taken; 0 for any.

    Raises:
        OSError: If the server is unreachable or refuses, or the connection is lost twice at the same byte.
        TooLargeError: If the file is larger than `most`; what was received is deleted.
        WriteError: If the file cannot be written.
    """
    path = follow_links(path)
    part, version = _partial_files(path)
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            if _receive(url, (part, version), report, timeout, open_url, most):
                break
            problem = "the connection ended early"
        except WriteError:
            raise
        except TooLargeError:
            remove_partial(path)
            raise
        except _LostError as error:
            problem = in_words(error.args[0], url)
        except urllib.error.HTTPError as error:
            raise OSError(f"HTTP {error.code} {error.reason}") from None
        except (OSError, http.client.HTTPException) as error:
            problem = in_words(getattr(error, "reason", None) or error, url)
        if not part.exists() or part.stat().st_size <= before:
            raise OSError(problem)
    with _writing():
        replace_file(part, path)
        version.unlink(missing_ok=True)


def _partial_files(path: Path) -> tuple[Path, Path]:
    """What was received, and the server's version of it."""
    part = partial_file(path)
    return part, part.with_name(f"{part.name}.version")


class _LostError(Exception):
    """The connection was lost while a file was being written; its argument says how."""


@contextlib.contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except TooLargeError:
        raise
    except OSError as error:
        raise WriteError(str(error)) from None


def in_words(error: object, url: str) -> str:
    """What failed, as a user without a network would say it.

    Args:
        error: The error, or the reason in it.
        url: What was to be opened.
    """
    server = urlsplit(url).hostname
    if isinstance(error, socket.gaierror):
        return f"no network: the name {server} could not be resolved"
    if isinstance(error, OSError) and error.errno in _UNREACHABLE:
        return f"no network: {server} cannot be reached ({error.strerror})"
    if isinstance(error, TimeoutError):
        return f"no network, or a slow one: {server} did not answer in time"
    return str(error) or type(error).__name__


def _receive(
    url: str,
    files: tuple[Path, Path],
    report: ProgressCallback,
    timeout: float,
    open_url: Callable[..., Any] | None,
    most: int,
) -> bool:
    """Request the missing bytes and append them; return whether the file is complete."""
    part, version = files
    have = part.stat().st_size if part.exists() and version.exists() else 0
    request = urllib.request.Request(url)
    if have:
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", version.read_text())
    try:
        response = (open_url or urllib.request.urlopen)(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        total_size = re.fullmatch(r"bytes \*/(\d+)", error.headers.get("Content-Range", ""))
        if error.code != 416 or total_size is None:
            raise
        if int(total_size[1]) == have:
            return True
        part.unlink()  # longer than the file on the server, so not a prefix of it
        return _receive(url, files, report, timeout, open_url, most)
    with response:
        rest = re.match(rf"bytes {have}-\d+/(\d+)", response.headers.get("Content-Range", ""))
        if response.status == 206 and rest is not None:
            mode, total = "ab", int(rest[1])
        else:
            mode, have, total = "wb", 0, int(response.headers.get("Content-Length") or 0)
        _check_size(total, most)
        _check_size(total, most)
        with _writing():
            _save_version(response.headers, version)
            with part.open(mode) as out:
                while chunk := _read(response):
                    have += len(chunk)
                    _check_size(have, most)
                    out.write(chunk)
                    report(f"downloading {urlsplit(url).path.rpartition('/')[2]}", have, total)
    return have == total or not total


def _read(response: Any) -> bytes:
    try:
        return bytes(response.read(_CHUNK))
    except (OSError, http.client.HTTPException) as error:
        raise _LostError(error) from None


def _check_size(size: int, most: int) -> None:
    if most and size > most:
        raise TooLargeError(f"a file of {size} bytes or more, expected {most} at most")


def _save_version(headers: Message, version: Path) -> None:
    tag = headers.get("ETag") or headers.get("Last-Modified")
    if tag and not tag.startswith("W/"):  # a weak ETag does not guarantee equal bytes
        version.write_text(tag)
    else:
        version.unlink(missing_ok=True)
