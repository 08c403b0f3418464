"""The three archives of BAPPS: downloaded with resume, unpacked where nothing can go astray, counted."""

from __future__ import annotations

import gzip
import logging
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from lpips_lightning.io.download import Report, download, silent

_URL = "https://perceptual-similarity.s3.us-west-2.amazonaws.com/dataset"
_KINDS = {"2afc": ("ref", "p0", "p1", "judge"), "jnd": ("p0", "p1", "same")}
_SUFFIXES = {"judge": ".npy", "same": ".npy"}  # of all others: .png
_WORKSHOP = ".unpacking-"
_log = logging.getLogger("lpips_lightning")


@dataclass(frozen=True)
class Archive:
    """An archive and what must be in it.

    Attributes:
        url: Where it is downloaded from; the last part is the file's name.
        part: Folder below the root that it becomes: ``"2afc/train"``, ``"2afc/val"`` or ``"jnd/val"``.
        counts: Lowest and highest number of triplets (pairs) by set.
        gigabytes: Its size, roughly.
    """

    url: str
    part: str
    counts: Mapping[str, tuple[int, int]]
    gigabytes: float

    @property
    def file(self) -> str:
        """Its file name."""
        return self.url.rpartition("/")[2]


def _about(thousands: float) -> tuple[int, int]:
    """The paper gives the sizes of the training sets and of the pairs in thousands, with one digit after the point."""
    return round(1000 * thousands) - 50, round(1000 * thousands) + 50


_VAL = {"traditional": 4720, "cnn": 4720, "superres": 10856, "deblur": 9440, "color": 4720, "frameinterp": 1888}

ARCHIVES: dict[str, Archive] = {
    archive.part: archive
    for archive in (
        Archive(
            f"{_URL}/twoafc_train.tar.gz",
            "2afc/train",
            {"traditional": _about(56.6), "cnn": _about(38.1), "mix": _about(56.6)},
            5.3,
        ),
        Archive(f"{_URL}/twoafc_val.tar.gz", "2afc/val", {name: (count, count) for name, count in _VAL.items()}, 1.1),
        Archive(f"{_URL}/jnd.tar.gz", "jnd/val", {"traditional": _about(4.8), "cnn": _about(4.8)}, 0.2),
    )
}
"""By the folder that they become. Sizes: the paper, table 2 and appendix; of the validation sets: the released data."""


def fetch(archive: Archive, root: str | Path, report: Report = silent) -> Path:
    """The unpacked archive; downloaded and unpacked unless it is there.

    A file of the archive's name in `root`, put there by hand, is unpacked instead and kept; a downloaded one is deleted
    once it is unpacked, or found to be damaged.

    Args:
        archive: Which one.
        root: Folder of the data set; made when needed.
        report: Told the progress, see `Report`.

    Returns:
        ``root / archive.part``.

    Raises:
        OSError: If it cannot be downloaded, with what to do by hand, or the disk is too small.
        ValueError: If the archive is damaged, holds what it should not, or not what it should.
    """
    root, target = Path(root), Path(root) / archive.part
    if target.exists():
        return target
    root.mkdir(parents=True, exist_ok=True)
    for left_behind in root.glob(f"{_WORKSHOP}*"):  # by a process that was killed
        shutil.rmtree(left_behind)
    by_hand = root / archive.file
    if by_hand.exists():
        return unpack(archive, by_hand, root, report)
    loaded = root / f"downloaded_{archive.file}"
    if not loaded.exists():
        _check_disk(archive, root)
        try:
            download(archive.url, loaded, report)
        except OSError as error:
            raise OSError(
                f"{archive.url}: expected to download it ({archive.gigabytes} GB), got {error}; run again to go on"
                f" where it stopped, or get the file in another way, put it into '{root}' as {archive.file}, and run"
                " again"
            ) from error
    try:
        return unpack(archive, loaded, root, report)
    finally:
        loaded.unlink(missing_ok=True)


def _check_disk(archive: Archive, root: Path) -> None:
    need = int(2.3e9 * archive.gigabytes)  # the archive beside what comes out of it, which is hardly larger
    free = shutil.disk_usage(root).free + sum(path.stat().st_size for path in root.glob(f"downloaded_{archive.file}*"))
    if free < need:
        raise OSError(f"{root}: expected {need / 1e9:.1f} GB of free disk for {archive.file}, got {free / 1e9:.1f} GB")


def unpack(archive: Archive, file: Path, root: str | Path, report: Report = silent) -> Path:
    """Unpack `file` into a temporary folder in `root`, count, and put the result in its place in one step.

    Nothing is written to a path that the archive names: a regular file whose last three folders are a known split, set
    and kind, and whose suffix is the kind's, goes to the place of that name; other regular files are left out, with a
    warning; a path that leaves the archive, a link or a device makes the whole archive refused.

    Args:
        archive: What is expected in it.
        file: The archive on disk.
        root: Folder of the data set.
        report: Told the progress, see `Report`.

    Returns:
        ``root / archive.part``.

    Raises:
        ValueError: If it is damaged, holds what it should not, or not what it should. Nothing is left behind then.
    """
    root, target = Path(root), Path(root) / archive.part
    workshop = Path(tempfile.mkdtemp(prefix=_WORKSHOP, dir=root))
    try:
        made = workshop / "made"
        try:
            _extract_all(archive, file, made, report)
        except tarfile.FilterError as error:
            raise ValueError(
                f"{file}: expected plain files inside the archive, got '{error.tarinfo.name}', which is a link or"
                " device, or leads out of it; nothing was unpacked"
            ) from error
        except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(
                f"{file}: expected a whole archive, got {type(error).__name__}: {error}; get it again"
            ) from error
        _check_counts(archive, made, file)
        target.parent.mkdir(parents=True, exist_ok=True)
        made.rename(target)
    finally:
        shutil.rmtree(workshop)
    return target


def _extract_all(archive: Archive, file: Path, made: Path, report: Report) -> None:
    if not hasattr(tarfile, "data_filter"):
        raise RuntimeError("unpacking: expected Python 3.11.4 or later, whose tarfile refuses unsafe members")
    left_out: list[str] = []
    placed: set[str] = set()
    size = file.stat().st_size

    def choose(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo | None:
        report(f"unpacking {archive.file}", raw.tell(), size)
        if not member.isreg() and not member.isdir():  # tarfile takes links that stay inside
            raise tarfile.SpecialFileError(member)
        if member.name.startswith("/") or "\\" in member.name or ":" in member.name:  # it would strip the first
            raise tarfile.AbsolutePathError(member)
        place = _place(archive, tarfile.data_filter(member, folder))
        if place is None:
            left_out.extend([member.name] if member.isreg() else [])
            return None
        if place in placed:
            raise ValueError(f"{file}: expected every file once, got '{place}' twice")
        placed.add(place)
        return member.replace(name=place, mode=None, mtime=None, uid=None, gid=None, deep=False)  # type: ignore[arg-type]

    with file.open("rb") as raw, gzip.open(raw) as plain, tarfile.open(fileobj=plain, mode="r|") as tar:
        tar.extractall(made, filter=choose)
        while plain.read(1 << 20):  # to the end, where gzip's checksum is
            pass
    if left_out:
        _log.warning("%s: left out %d files that are no part of BAPPS, such as %s", file, len(left_out), left_out[0])


def _place(archive: Archive, member: tarfile.TarInfo) -> str | None:
    """Where a member belongs below the part's folder; None for folders and what is no part of the layout."""
    path = PurePosixPath(member.name)
    if len(path.parts) < 4 or not member.isreg():
        return None
    top, split = archive.part.split("/")
    of_split, of_set, kind, name = path.parts[-4:]
    fits = of_split == split and of_set in archive.counts and kind in _KINDS[top]
    if not fits or name.startswith(".") or path.suffix != _SUFFIXES.get(kind, ".png"):
        return None
    return f"{of_set}/{kind}/{name}"


def _check_counts(archive: Archive, made: Path, file: Path) -> None:
    kinds = _KINDS[archive.part.partition("/")[0]]
    for name, (lowest, highest) in archive.counts.items():
        stems = {kind: {path.stem for path in (made / name / kind).glob("*")} for kind in kinds}
        expected = f"{lowest}" if lowest == highest else f"{lowest} to {highest}"
        for kind, found in stems.items():
            if not lowest <= len(found) <= highest:
                raise ValueError(f"{file}: expected {expected} files in {name}/{kind}, got {len(found)}; get it again")
            if lacking := stems[kinds[0]] ^ found:
                raise ValueError(
                    f"{file}: expected the same names in {name}/{kinds[0]} and {name}/{kind},"
                    f" got '{min(lacking)}' in one of them alone; get it again"
                )
