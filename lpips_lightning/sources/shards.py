"""Pairs in WebDataset-like tar shards: samples whose files share a key, as ``0001.a.png`` and ``0001.b.jpg``."""

from __future__ import annotations

import bz2
import glob
import gzip
import hashlib
import io
import lzma
import tarfile
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, Self, TypeAlias

from typing_extensions import override

from lpips_lightning.io.image_decoding import printable
from lpips_lightning.io.image_formats import image_suffixes
from lpips_lightning.sources import storage
from lpips_lightning.sources.base import SourcePair

_SHARD = "a tar shard"
_AHEAD = 32  # samples that are looked through for the partner of one
_LISTERS = 32  # requests for the versions of remote shards at once
_PACKED: Mapping[bytes, Callable[[IO[bytes]], Any]] = {
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\x00": lzma.LZMAFile,
}
_ZSTD = b"\x28\xb5\x2f\xfd"
_HEADER_ERROR = tarfile.HeaderError
_END_MARK = tarfile.EOFHeaderError  # type: ignore[attr-defined]
_DAMAGES = (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError)  # type: ignore[attr-defined]
_UNREADABLE = (OSError, EOFError, ValueError, tarfile.TarError, zlib.error, lzma.LZMAError)


class ShardPairs:
    """Pairs in tar shards, which are read as streams; a unit is one shard, or one of both sets.

    Samples are files with one key, which ends at the first dot of the file's name; they follow each other in the shard.
    The tar may be packed with gzip, bzip2 or xz. Damage is found by the checksums of the headers and of the packing,
    and by the mark at the end: what can be read counts, and an error row names the shard and says how far it was read.

    Args:
        shards: Shards with the first images, or with both: names or URLs, with ``{000..099}`` and ``*``.
        others: Shards with the second images: as many, with the same keys in the same order. A sample whose partner is
            not among the next 32 of the other shard is an error row.
        keys: How the names of both images go on after the sample's key, without suffix. By default ``a`` and ``b`` if
            both are in one shard, else the only image of the sample.

    Raises:
        ValueError: If the numbers of shards differ, or a pattern is malformed.
        FileNotFoundError: If there is no such shard.
        ImportError: If the extra ``shards`` is not installed.
    """

    def __init__(
        self,
        shards: str | Sequence[str],
        others: str | Sequence[str] | None = None,
        keys: tuple[str, str] | None = None,
    ) -> None:
        _check_installed()
        self._a = expand_shards(shards)
        self._b = None if others is None else expand_shards(others)
        if self._b is not None and len(self._a) != len(self._b):
            raise ValueError(
                f"shards: expected equally many shards of both images, got {len(self._a)} and {len(self._b)}"
            )
        self._keys = ("a", "b") if keys is None and others is None else keys
        names = [*self._a, *(self._b or [])]
        known = (list(map(storage.shown, names)), len(self._a), _versions(names))
        self._digest = hashlib.sha256(repr(known).encode("utf-8", "replace")).hexdigest()

    def __len__(self) -> int:
        return len(self._a)

    @property
    def pairs(self) -> None:
        """None: the number of pairs is known after reading."""

    def describe(self) -> dict[str, Any]:
        """Number of shards, the names of the images in a sample, and a digest of the shards' names and versions."""
        sets = 1 if self._b is None else 2
        keys = None if self._keys is None else list(self._keys)
        return {"source": "shards", "shards": len(self), "sets": sets, "keys": keys, "digest": self._digest}

    def unit(self, index: int) -> Iterator[SourcePair]:
        """The pairs of a shard; then an error for each shard that is damaged."""
        if self._b is None:
            return self._of_one(self._a[index])
        return self._of_two(self._a[index], self._b[index])

    def read(self, name: str) -> bytes:
        """Not used: the bytes come with the pairs.

        Raises:
            OSError: Always.
        """
        raise OSError(f"{_shown(name)}: expected the bytes with the pair, which was read from a shard")

    def _of_one(self, name: str) -> Iterator[SourcePair]:
        a, b = self._keys or ("a", "b")
        shard = _Shard(name, lambda rest: _is_of(rest, a) or _is_of(rest, b))
        for sample in shard:
            (name_a, content_a, problem_a), (name_b, content_b, problem_b) = sample.image(a), sample.image(b)
            yield _pair(name_a, name_b, content_a, content_b, problem_a or problem_b)
        yield from _ends(shard)

    def _of_two(self, first: str, second: str) -> Iterator[SourcePair]:
        a, b = self._keys or (None, None)
        one, two = (_Shard(name, _wanted(key)) for name, key in ((first, a), (second, b)))
        for x, y in _matched(one, two):
            name_a, content_a, problem_a = _alone(one.name, y, two.name) if x is None else x.image(a)
            name_b, content_b, problem_b = _alone(two.name, x, one.name) if y is None else y.image(b)
            yield _pair(name_a, name_b, content_a, content_b, problem_a or problem_b)
        yield from _ends(one, two)


def expand_shards(shards: str | Sequence[str]) -> list[str]:
    """Names or URLs of shards from patterns with ``{000..099}``, ``{a,b}``, ``*``, ``?`` and ``[...]``.

    Raises:
        ValueError: If braces are unbalanced.
        FileNotFoundError: If a pattern with wildcards fits no file, or there are no shards.
    """
    found = [name for one in ([shards] if isinstance(shards, str) else shards) for name in _expanded(str(one))]
    if not found:
        raise FileNotFoundError("shards: expected tar files, got none")
    return found


@dataclass
class _Sample:
    """Files of one key, by how their names go on after it; the bytes of unwanted files are None."""

    shard: str
    key: str
    files: dict[str, bytes | None]
    problems: list[str] = field(default_factory=list)

    def image(self, key: str | None) -> tuple[str, bytes, str]:
        """Name, bytes, and why there are none, of the image with this name after the sample's key, or the only one."""
        found = {rest: content for rest, content in self.files.items() if content is not None and _wanted(key)(rest)}
        name = f"{self.shard}/{self.key}"
        if self.problems:
            return name, b"", self.problems[0]
        if len(found) != 1:
            expected = f"one image {self.key}.{key}.*" if key else "one image"
            files = ", ".join(f"{self.key}.{rest}" for rest in self.files)
            return name, b"", f"{printable(name)}: expected {expected} in this sample, got {printable(files)}"
        ((rest, content),) = found.items()
        return f"{name}.{rest}", content or b"", ""


_Match: TypeAlias = tuple[_Sample | None, _Sample | None]


class _Shard(Iterator[_Sample]):
    """Samples of a shard, in order; afterwards `damage` says what could not be read.

    The archive is not read by `webdataset.tariterators.tar_file_iterator`, since this ends without a word at a damaged
    header, and at the end of a file that was cut between two files.
    """

    def __init__(self, name: str, wanted: Callable[[str], bool]) -> None:
        from webdataset.tariterators import group_by_keys

        self.name, self.damage, self.samples = storage.shown(name), "", 0
        self._place = name
        self._wanted = wanted
        self._problems: list[str] = []
        self._grouped = iter(group_by_keys(self._files(), keys=_split, lcase=False, handler=self._refuse))

    @override
    def __next__(self) -> _Sample:
        found = next(self._grouped)
        self.samples += 1
        files = {rest: content for rest, content in found.items() if not rest.startswith("__")}
        problems, self._problems = self._problems, []
        return _Sample(self.name, found["__key__"], files, problems)

    def _refuse(self, error: Exception) -> bool:
        """Note an error of the grouping: two files of one name."""
        self._problems.append(f"{printable(self.name)}: expected files with different names, got {printable(error)}")
        return True

    def _files(self) -> Iterator[dict[str, Any]]:
        try:
            with _opened(self._place) as stream, _Tar.open(fileobj=stream, mode="r|", tarinfo=_Member) as tar:
                for member in tar:
                    tar.members = []  # type: ignore[attr-defined]  # else it keeps all
                    if member.isreg():
                        yield {"fname": member.name, "data": self._content(tar, member), "__url__": self.name}
                self.damage = tar.damage()
        except _UNREADABLE as error:
            self.damage = f"{type(error).__name__}: {printable(error)}"

    def _content(self, tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes | None:
        _, rest = _split(member.name)
        if rest is None or not self._wanted(rest):
            return None
        file = tar.extractfile(member)
        content = b"" if file is None else file.read()
        if len(content) < member.size:
            raise EOFError(f"{member.name} is cut off")
        return content


class _Tar(tarfile.TarFile):
    """A tar file that notes damage; it goes on at the next whole header, and after the end of a joined archive."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.damaged_at: int | None = None
        self.ended = False
        super().__init__(*args, **{**options, "ignore_zeros": True})

    def damage(self) -> str:
        """What is wrong, at the end; empty if nothing is."""
        if self.damaged_at is not None:
            return f"damage at byte {self.damaged_at}"
        return "" if self.ended else "a file that is cut off: the mark at its end is missing"


class _Member(tarfile.TarInfo):
    """A header that tells its `_Tar` what its reading found."""

    @classmethod
    @override
    def fromtarfile(cls, tarfile: Any) -> Self:
        place = tarfile.offset
        try:
            found = super().fromtarfile(tarfile)
        except _HEADER_ERROR as error:
            tarfile.ended |= isinstance(error, _END_MARK)
            if isinstance(error, _DAMAGES) and tarfile.damaged_at is None:
                tarfile.damaged_at = place
            raise
        tarfile.ended = False
        return found


def _matched(first: Iterator[_Sample], second: Iterator[_Sample]) -> Iterator[_Match]:
    """Samples of equal keys, in order; alone if the partner is not among the next ones."""
    one, two = _Coming(first), _Coming(second)
    while (x := one.first()) is not None and (y := two.first()) is not None:
        skipped_x, skipped_y = one.place(y.key), two.place(x.key)
        if skipped_x is None and skipped_y is None:
            skipped_x = skipped_y = 1
        elif skipped_y is None or (skipped_x is not None and skipped_x <= skipped_y):
            skipped_y = 0
        else:
            skipped_x = 0
        yield from ((one.pop(), None) for _ in range(skipped_x or 0))
        yield from ((None, two.pop()) for _ in range(skipped_y or 0))
        if (x := one.first()) is not None and (y := two.first()) is not None and x.key == y.key:
            yield one.pop(), two.pop()
    while one.first() is not None:
        yield one.pop(), None
    while two.first() is not None:
        yield None, two.pop()


class _Coming:
    """The next samples of a shard."""

    def __init__(self, samples: Iterator[_Sample]) -> None:
        self._samples, self._read = samples, deque[_Sample]()

    def first(self) -> _Sample | None:
        """The next one; None at the end."""
        return self._read[0] if self._fill(1) else None

    def pop(self) -> _Sample:
        """Take the next one."""
        return self._read.popleft()

    def place(self, key: str) -> int | None:
        """How many samples come before the one with this key, if it is among the next ones."""
        for number in range(_AHEAD):
            if not self._fill(number + 1):
                return None
            if self._read[number].key == key:
                return number
        return None

    def _fill(self, count: int) -> bool:
        while len(self._read) < count:
            sample = next(self._samples, None)
            if sample is None:
                return False
            self._read.append(sample)
        return True


def _pair(name_a: str, name_b: str, a: bytes, b: bytes, problem: str) -> SourcePair:
    return SourcePair(name_a, name_b, error=problem) if problem else SourcePair(name_a, name_b, (a, b))


def _alone(shard: str, partner: _Sample | None, of: str) -> tuple[str, bytes, str]:
    key = "" if partner is None else partner.key
    problem = (
        f"{printable(of)}/{printable(key)}: expected a sample of this key in '{printable(shard)}', got none at this"
        " place; both shards need the same keys in the same order"
    )
    return shard, b"", problem


def _ends(*shards: _Shard) -> Iterator[SourcePair]:
    """An error for each shard that is damaged or empty."""
    for shard in shards:
        problem = shard.damage or ("" if shard.samples else "one without samples")
        if problem:
            reason = f"{printable(shard.name)}: expected a whole tar shard, got {problem}; {shard.samples} samples read"
            yield SourcePair(shards[0].name, shards[-1].name, error=reason)


def _split(name: str) -> tuple[str, str] | tuple[None, None]:
    """Key of a sample, and how the name goes on; Nones for files of no sample."""
    from webdataset.tariterators import base_plus_ext

    return base_plus_ext(name)


def _is_of(rest: str, key: str) -> bool:
    rest, key = rest.lower(), key.lower()
    return rest == key or rest.startswith(f"{key}.")


def _wanted(key: str | None) -> Callable[[str], bool]:
    if key is not None:
        return lambda rest: _is_of(rest, key)
    return lambda rest: f".{rest.rpartition('.')[2].lower()}" in image_suffixes()


def _opened(name: str) -> Any:
    """The unpacked bytes of a shard, as a stream."""
    file = storage.open_stream(name, _SHARD, sequential=True)
    start = file.peek(8)[:8]
    if start.startswith(_ZSTD):
        file.close()
        raise ValueError("one packed with zstd; pack it with gzip, or not at all, since images are compressed")
    for mark, unpack in _PACKED.items():
        if start.startswith(mark):
            return _Both(unpack(file), file)
    return file


class _Both(io.BufferedReader):
    """An unpacked stream that closes the packed one too."""

    def __init__(self, unpacked: Any, packed: Any) -> None:
        super().__init__(unpacked)
        self._packed = packed

    @override
    def close(self) -> None:
        super().close()
        self._packed.close()


def _expanded(pattern: str) -> Iterable[str]:
    from braceexpand import braceexpand

    if not storage.is_url(pattern) and Path(pattern).exists():
        return [pattern]
    try:
        names = list(braceexpand(pattern))
    except ValueError as error:
        raise ValueError(f"shards: expected balanced braces, as in 'x-{{000..099}}.tar', got {pattern!r}") from error
    return [found for name in names for found in _globbed(name)]


def _globbed(name: str) -> list[str]:
    if not glob.has_magic(name.partition("?")[0] if storage.is_url(name) else name):
        return [name]
    found = storage.matching(name)
    if not found:
        raise FileNotFoundError(f"shards: expected files that fit '{_shown(name)}', got none")
    return found


def _versions(names: Sequence[str]) -> list[str]:
    """A text for each shard that changes when it does.

    Raises:
        FileNotFoundError: If one does not exist.
    """
    if not any(map(storage.is_url, names)):
        return [storage.version(name, _SHARD) for name in names]
    with ThreadPoolExecutor(_LISTERS) as pool:
        return list(pool.map(lambda name: storage.version(name, _SHARD), names))


def _shown(name: str) -> str:
    return printable(storage.shown(name))


def _check_installed() -> None:
    if find_spec("webdataset") is None:
        raise ImportError(
            "shards: expected the package webdataset, which is not installed; pip install 'lpips_lightning[shards]'"
        )
