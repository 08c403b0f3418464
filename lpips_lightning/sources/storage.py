"""Files on local disks and behind URLs: their bytes, lists of folders, and what tells versions of a file apart.

URLs are those of fsspec: ``s3://bucket/x``, ``gs://``, ``hf://``, ``http://``, ``memory://``, and chains such as
``zip://inner::s3://bucket/x.zip``. fsspec finds credentials and endpoints where the store's own tools do: in the
environment and in configuration files. For a server that speaks S3, set ``AWS_ENDPOINT_URL``, or
``FSSPEC_S3_ENDPOINT_URL`` for these commands only. Passwords and signatures in a URL are shown as ``***``.

Every process opens its own connections, also after a fork. Reading is tried four times, with growing waits, unless a
file is missing or access is denied. Local paths need no fsspec.
"""

from __future__ import annotations

import errno
import glob
import io
import os
import posixpath
import random
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import unquote

from typing_extensions import override

from lpips_lightning.io.image_decoding import printable

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+(://|::.*://)", re.DOTALL)
_SECRETS = (
    (re.compile(r"(\b(?:https?|ftps?|git|github)://)[^/?#\s'\"]*@", re.IGNORECASE), r"\1***@"),
    (re.compile(r"(://)[^/?#\s'\"@]*:[^/?#\s'\"]*@"), r"\1***@"),
    (
        re.compile(r"([?&][^=&#\s'\"]*(?:sig|signature|token|credential|secret|password|key|keyid)=)[^&#\s'\"]+", re.I),
        r"\1***",
    ),
)
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "hf": "hf"}
_WAITS = (0.5, 1.0, 2.0)  # seconds before another attempt
_FINAL = (
    *(FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError),
    *(ValueError, TypeError, AttributeError, LookupError, NotImplementedError, ImportError, MemoryError),
)
_FINAL_NUMBERS = {errno.EINVAL, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOSPC, errno.EACCES}
_TEMPORARY_STATUS = (408, 425, 429)  # of the statuses 400 to 499
_VERSIONS = ("ETag", "etag", "mtime", "LastModified", "last_modified", "updated", "created", "CRC", "blob_id")
_FLAT = ("s3", "s3a", "gs", "gcs", "hf", "abfs", "az")  # protocols that list without folders
_BUFFER = 1 << 20
_IMAGE, _FOLDER = "an image file", "an existing folder of images"
_random = random.Random()
_Found = TypeVar("_Found")


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file in a folder.

    Attributes:
        inside: Path relative to the folder, with slashes.
        place: Path or URL that `read` takes.
        version: A text that changes when the file does; for servers that tell nothing about their files: empty.
    """

    inside: str
    place: str
    version: str

    def __str__(self) -> str:
        return shown(self.place)


def is_url(name: str) -> bool:
    """Whether a name is a URL or a chain of URLs, and not a local path.

    Example:
        >>> is_url("s3://bucket/x.png"), is_url("C:/x.png")
        (True, False)
    """
    return _URL.match(name) is not None


def shown(text: object) -> str:
    """A name or message as it may be shown: URLs without passwords and signatures.

    Example:
        >>> shown("https://me:pw@host/x.png?X-Amz-Signature=1f&X-Amz-Expires=60")
        'https://***@host/x.png?X-Amz-Signature=***&X-Amz-Expires=60'
    """
    found = str(text)
    if "://" in found and ("@" in found or "=" in found):
        for secret, instead in _SECRETS:
            found = secret.sub(instead, found)
    return found


def join(folder: str, inside: str) -> str:
    """Path or URL of a file in a folder; absolute paths and URLs stay as they are.

    Example:
        >>> join("zip://images::s3://bucket/x.zip", "a/1.png")
        'zip://images/a/1.png::s3://bucket/x.zip'
    """
    if is_url(inside) or Path(inside).is_absolute():
        return inside
    if not is_url(folder):
        return os.path.join(folder, inside)  # noqa: PTH118 (the folder stays as typed)
    links = folder.split("::")
    at = next(number for number, link in enumerate(links) if "://" in link)
    protocol, _, path = links[at].partition("://")
    joined = posixpath.normpath(posixpath.join(path, inside))
    if joined == ".." or joined.startswith("../"):
        raise ValueError(f"{shown(inside)}: expected a path in '{shown(folder)}', got one above its root")
    links[at] = f"{protocol}://{joined}"
    return "::".join(links)


def folder_of(name: str) -> str:
    """Path or URL of the folder of a file.

    Example:
        >>> folder_of("s3://bucket/lists/pairs.csv"), folder_of("pairs.csv")
        ('s3://bucket/lists', '.')
    """
    if not is_url(name):
        return str(Path(name).parent)
    links = name.split("::")
    at = next(number for number, link in enumerate(links) if "://" in link)
    protocol, _, path = links[at].partition("?")[0].partition("://")
    links[at] = f"{protocol}://{posixpath.dirname(path)}"
    return "::".join(links)


def read(name: str) -> bytes:
    """The bytes of a file.

    Raises:
        FileNotFoundError: If there is no such file.
        OSError: If it cannot be read; the message names it.
    """
    if is_url(name):
        return _tried(name, _IMAGE, lambda system, path: system.cat_file(path))
    try:
        with open(name, "rb") as file:  # noqa: PTH123 (the name may be of any form)
            return file.read()
    except FileNotFoundError:
        raise FileNotFoundError(f"{printable(name)}: expected an image file, got no such file") from None
    except IsADirectoryError:
        raise IsADirectoryError(f"{printable(name)}: expected an image file, got a folder") from None


def read_part(name: str, start: int, end: int) -> bytes:
    """The bytes of a file from `start` to before `end`.

    Raises:
        OSError: If they cannot be read; the message names the file.
    """
    if not is_url(name):
        with open(name, "rb") as file:  # noqa: PTH123
            file.seek(start)
            return file.read(end - start)
    return _tried(name, "a list of pairs", lambda system, path: system.cat_file(path, start=start, end=end))


def open_stream(name: str, what: str, *, sequential: bool = False) -> io.BufferedReader:
    """Open a file. Where reading a URL fails, it is opened again and read from there on.

    Args:
        name: Path or URL.
        what: What the file is, for messages.
        sequential: Do without seeking: one request of HTTP instead of one for each 5 MB.

    Raises:
        FileNotFoundError: If there is no such file.
        OSError: If it cannot be opened; the message names it.
    """
    if is_url(name):
        return io.BufferedReader(_Steady(name, what, sequential), _BUFFER)
    if Path(name).is_dir():
        raise IsADirectoryError(f"{printable(name)}: expected {what}, got a folder")
    try:
        return open(name, "rb")  # noqa: PTH123
    except FileNotFoundError:
        raise FileNotFoundError(f"{printable(name)}: expected {what}, got no such file") from None


def matching(pattern: str) -> list[str]:
    """Paths or URLs that fit a pattern with ``*``, ``?`` and ``[...]``, sorted; only one that exists, if any.

    Raises:
        OSError: If a folder on a store cannot be listed; the message names it.
    """
    if not is_url(pattern):
        return sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 (the pattern may be absolute)
    protocol, _, rest = pattern.partition("://")
    chain = "".join(f"::{link}" for link in rest.split("::")[1:])

    def found(system: Any, path: str) -> list[str]:
        try:
            return sorted(system.glob(path))
        finally:
            system.invalidate_cache()

    names = _tried(pattern, "files", found)
    return [f"{protocol}://{name.removeprefix(f'{protocol}://')}{chain}" for name in names]


def version(name: str, what: str = _IMAGE) -> str:
    """A text that changes when the file does: size, and time or checksum as far as the store tells them.

    Args:
        name: Path or URL.
        what: What the file is, for messages.

    Raises:
        OSError: If it cannot be told; the message names the file.
    """
    if is_url(name):
        return _version(_tried(name, what, lambda system, path: system.info(path)))
    try:
        status = Path(name).stat()
    except FileNotFoundError:
        raise FileNotFoundError(f"{printable(name)}: expected {what}, got no such file") from None
    return f"{status.st_size} {status.st_mtime_ns}"


def list_files(folder: str) -> Iterator[StoredFile]:
    """The files below a URL, in order of their paths.

    All names are in memory meanwhile, with about a kilobyte for each file; a list of pairs does without.

    Raises:
        FileNotFoundError: If there is no such folder.
        OSError: If it cannot be listed; the message names it.
    """
    found = dict(_listing(folder))
    if set(found) == {""}:
        raise NotADirectoryError(f"{shown(folder)}: expected a folder of images, got a file")
    if not found:
        raise FileNotFoundError(f"{shown(folder)}: expected {_FOLDER}, got no file there")
    from_web = _is_web(folder)
    for inside in sorted(found, key=lambda one: one.split("/")):
        if not inside or (from_web and ("?" in inside or "#" in inside)):  # links that sort the server's list
            continue
        yield StoredFile(unquote(inside) if from_web else inside, _join_found(folder, inside), found[inside])


class _Steady(io.RawIOBase):
    """A file behind a URL; it is opened again where reading it failed.

    Raises:
        OSError: If it cannot be read, after several attempts; the message names it.
    """

    def __init__(self, name: str, what: str, sequential: bool) -> None:
        self._name, self._what = name, what
        self._at = 0
        self._streams = sequential and _is_web(name)
        self._file: Any = None
        self._lock: Any = nullcontext()
        _attempts(name, what, self._open)

    @override
    def readable(self) -> bool:
        return True

    @override
    def seekable(self) -> bool:
        return self._file is None or bool(self._file.seekable())

    @override
    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = int(_attempts(self._name, self._what, lambda: self._opened().seek(offset, whence)))
        return self._at

    @override
    def tell(self) -> int:
        return self._at

    @override
    def readinto(self, buffer: Any, /) -> int:
        content = _attempts(self._name, self._what, partial(self._part, len(buffer)))
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)

    @override
    def close(self) -> None:
        if self._file is not None:
            with suppress(Exception):  # nothing was written
                self._file.close()
            self._file = None
        super().close()

    def _part(self, size: int) -> bytes:
        try:
            with self._lock:
                return bytes(self._opened().read(size))
        except Exception:
            broken, self._file = self._file, None
            with suppress(Exception):
                broken.close()
            raise

    def _opened(self) -> Any:
        if self._file is None:
            self._open()
        return self._file

    def _open(self) -> None:
        (system, self._lock), path = _own.get(self._name)
        with self._lock:
            if self._streams and not self._at:
                self._file = system.open(path, "rb", block_size=0)
            else:
                self._file = self._go_on(system, path)

    def _go_on(self, system: Any, path: str) -> Any:
        file = system.open(path, "rb")
        if self._at:
            try:
                file.seek(self._at)
                file.read(1)
                file.seek(self._at)
            except ValueError:  # a web server that cannot send parts
                if not self._streams:
                    raise
                file = system.open(path, "rb", block_size=0)
                _skip(file, self._at)
        return file


def _is_web(name: str) -> bool:
    return name.startswith(("http://", "https://")) and "::" not in name


def _skip(file: Any, count: int) -> None:
    while count > 0:
        found = len(file.read(min(count, _BUFFER)))
        if not found:
            raise EOFError("a file that became shorter meanwhile")
        count -= found


class _System(NamedTuple):
    """A file system of fsspec, and a lock if it must not be used by several threads at once."""

    system: Any
    lock: Any


class _OfProcess:
    """The file systems of this process, each with its own connections."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._opened: dict[Any, _System] = {}
        self._parent: Any = None

    def forked(self) -> None:
        """Begin anew in a child process; the parent's are kept, since closing would shut down its connections."""
        self._parent = self._opened, self._parent
        self._lock, self._opened = threading.Lock(), {}
        if "fsspec.asyn" in sys.modules:
            module = sys.modules["fsspec.asyn"]
            module.iothread[0] = module.loop[0] = None
            module.reset_lock()

    def get(self, url: str) -> tuple[_System, str]:
        """The file system of a URL, and the path there.

        Raises:
            ValueError: If fsspec does not know the protocol.
            ImportError: If a package is missing; the message names the extra.
        """
        fsspec = _fsspec(url)
        head, chain, rest = url.partition("::")
        protocol, mark, path = head.partition("://")
        try:
            if not mark:  # a cache, which has the paths of what it keeps
                system, path = fsspec.core.url_to_fs(url)
                return _System(system, threading.Lock()), path
            if chain:
                base = f"{protocol}://::{rest}"
                return self._kept(base, lambda: fsspec.core.url_to_fs(base)[0]), path
            kind = fsspec.get_filesystem_class(protocol)
            options = kind._get_kwargs_from_urls(url)
            key = (protocol, repr(sorted(options.items())))
            return self._kept(key, lambda: kind(**options)), kind._strip_protocol(url)
        except ImportError as error:
            raise _missing(protocol, error) from None

    def _kept(self, key: Any, make: Callable[[], Any]) -> _System:
        with self._lock:
            if key not in self._opened:
                system = make()
                lock = nullcontext() if getattr(system, "async_impl", False) else threading.RLock()
                self._opened[key] = _System(system, lock)
            return self._opened[key]


_own = _OfProcess()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_own.forked)


def _tried(name: str, what: str, function: Callable[[Any, str], _Found]) -> _Found:
    """What a function of a file system and a path returns, after several attempts."""

    def attempt() -> _Found:
        (system, lock), path = _own.get(name)
        with lock:
            return function(system, path)

    return _attempts(name, what, attempt)


def _attempts(name: str, what: str, function: Callable[[], _Found]) -> _Found:
    for wait in (*_WAITS, None):
        try:
            return function()
        except Exception as error:
            if wait is None or _is_final(error):
                raise _explained(name, error, what) from None
        time.sleep(wait * _random.uniform(0.7, 1.3))
    raise AssertionError


def _is_final(error: Exception) -> bool:
    """Whether another attempt would fail too."""
    response = getattr(error, "response", None)
    status = getattr(error, "status", None) or getattr(response, "status_code", None)
    if isinstance(status, int) and 400 <= status < 500:
        return status not in _TEMPORARY_STATUS
    return isinstance(error, _FINAL) or getattr(error, "errno", None) in _FINAL_NUMBERS


def _explained(name: str, error: Exception, what: str) -> Exception:
    """The error as one that names the file, without passwords."""
    place, reason = printable(shown(name)), printable(shown(error)) or "no reason"
    if isinstance(error, ImportError):
        return error
    if isinstance(error, FileNotFoundError):
        return FileNotFoundError(f"{place}: expected {what}, got no such file")
    if isinstance(error, PermissionError):
        return PermissionError(f"{place}: expected {what} that may be read, got: {reason}")
    attempts = "" if _is_final(error) else f", {len(_WAITS) + 1} times"
    kind = ValueError if isinstance(error, ValueError) else OSError
    return kind(f"{place}: expected {what} that can be read, got {type(error).__name__}{attempts}: {reason}")


def _listing(folder: str) -> Iterator[tuple[str, str]]:
    """Relative path and version of every file below a URL; empty paths are the URL itself.

    fsspec's own search would leave out folders that it cannot list.
    """
    (system, lock), path = _attempts(folder, _FOLDER, partial(_own.get, folder))
    root = str(system._strip_protocol(path)).rstrip("/")
    flat = folder.partition(":")[0] in _FLAT and "::" not in folder
    waiting, seen = [root], {root}
    while waiting:
        entries = _attempts(folder, _FOLDER, partial(_entries, system, lock, waiting.pop(), flat))
        for entry in entries:
            name = str(entry["name"]).rstrip("/")
            inside = name.removeprefix(root).lstrip("/")
            if entry["type"] != "directory":
                yield inside, _version(entry)
            elif name not in seen and name.startswith(f"{root}/" if root else ""):
                seen.add(name)
                waiting.append(name)


def _entries(system: Any, lock: Any, path: str, flat: bool) -> Iterable[Mapping[str, Any]]:
    with lock:
        try:
            return system.find(path, detail=True).values() if flat else system.ls(path, detail=True)
        finally:
            system.invalidate_cache()  # else all names stay in memory


def _join_found(folder: str, inside: str) -> str:
    """URL of a listed file; the name is taken as it is."""
    links = folder.split("::")
    at = next(number for number, link in enumerate(links) if "://" in link)
    links[at] += inside if links[at].endswith("/") else f"/{inside}"
    return "::".join(links)


def _version(info: Mapping[str, Any]) -> str:
    known = [str(info[key]) for key in _VERSIONS if info.get(key) is not None]
    return " ".join([str(info["size"]), *known]) if info.get("size") is not None else " ".join(known)


def _fsspec(url: str) -> Any:
    try:
        import fsspec
        import fsspec.core
    except ImportError as error:
        raise _missing(url.partition("://")[0], error) from None
    return fsspec


def _missing(protocol: str, error: ImportError) -> ImportError:
    extra = _EXTRAS.get(protocol, "remote")
    return ImportError(
        f"paths: expected the packages that read {protocol}:// URLs, got: {printable(error)};"
        f" pip install 'lpips_lightning[{extra}]'"
    )
