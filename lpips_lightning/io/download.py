"""One large file from the network: it goes on where it stopped, and appears under its name when it is whole."""

from __future__ import annotations

import http.client
import re
import urllib.request
from collections.abc import Callable
from email.message import Message
from pathlib import Path

Report = Callable[[str, int, int], None]
"""``(what is being done, bytes done, bytes in all or 0 where unknown)``, called many times."""

_CHUNK = 1 << 20


def silent(task: str, done: int, total: int) -> None:
    """A `Report` that says nothing."""


def download(url: str, path: Path, report: Report = silent, timeout: float = 60.0) -> None:
    """Download `url` to `path`, which appears when it is whole.

    Bytes are kept in ``<path>.part``, and the server's mark of the file's version in ``<path>.part.version``, so that a
    later call (or this one, after a lost connection) asks for the rest only, and begins anew if the file has changed.

    Args:
        url: http, https or file.
        path: Where to.
        report: Told the progress.
        timeout: Seconds without a byte after which the connection counts as lost.

    Raises:
        OSError: If the server cannot be reached or refuses, or if the connection is lost twice at the same byte.
    """
    part = path.with_name(f"{path.name}.part")
    version = path.with_name(f"{path.name}.part.version")
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            if _receive(url, part, version, report, timeout):
                break
            problem = "the connection ended early"
        except urllib.error.HTTPError as error:
            raise OSError(f"HTTP {error.code} {error.reason}") from error
        except (OSError, http.client.HTTPException) as error:
            problem = str(getattr(error, "reason", None) or error or type(error).__name__)
        if not part.exists() or part.stat().st_size <= before:
            raise OSError(problem)
    part.replace(path)
    version.unlink(missing_ok=True)


def _receive(url: str, part: Path, version: Path, report: Report, timeout: float) -> bool:
    """Ask for what is missing, append it; whether the file is whole."""
    have = part.stat().st_size if part.exists() and version.exists() else 0
    request = urllib.request.Request(url)
    if have:
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", version.read_text())
    try:
        response = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        whole = re.fullmatch(r"bytes \*/(\d+)", error.headers.get("Content-Range", ""))
        if error.code != 416 or whole is None:
            raise
        if int(whole[1]) == have:
            return True
        part.unlink()  # longer than the file: no beginning of it
        return _receive(url, part, version, report, timeout)
    with response:
        rest = re.match(rf"bytes {have}-\d+/(\d+)", response.headers.get("Content-Range", ""))
        if response.status == 206 and rest is not None:
            mode, total = "ab", int(rest[1])
        else:
            mode, have, total = "wb", 0, int(response.headers.get("Content-Length") or 0)
        _note_version(response.headers, version)
        with part.open(mode) as out:
            while chunk := response.read(_CHUNK):
                out.write(chunk)
                have += len(chunk)
                report(f"downloading {url.rpartition('/')[2]}", have, total)
    return have == total or not total


def _note_version(headers: Message, version: Path) -> None:
    mark = headers.get("ETag") or headers.get("Last-Modified")
    if mark and not mark.startswith("W/"):  # a weak mark does not promise equal bytes
        version.write_text(mark)
    else:
        version.unlink(missing_ok=True)
