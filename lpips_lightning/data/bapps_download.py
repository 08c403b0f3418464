"""Download, safe extraction and verification of the three BAPPS archives."""

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

from lpips_lightning.io.download import ProgressCallback, download, no_progress

_URL = "https://perceptual-similarity.s3.us-west-2.amazonaws.com/dataset"
_KINDS = {"2afc": ("ref", "p0", "p1", "judge"), "jnd": ("p0", "p1", "same")}
_SUFFIXES = {"judge": ".npy", "same": ".npy"}  # of all others: .png
_TEMPORARY_PREFIX = ".unpacking-"
_log = logging.getLogger("lpips_lightning")


@dataclass(frozen=True)
class Archive:
    """An archive and its expected content.

    Attributes:
        url: Download URL; its last part is the file name.
        part: Folder below the root to unpack to: ``"2afc/train"``, ``"2afc/val"`` or ``"jnd/val"``.
        counts: Minimum and maximum number of triplets (pairs) by set.
        gigabytes: Approximate size.
    """

    url: str
    part: str
    counts: Mapping[str, tuple[int, int]]
    gigabytes: float

    @property
    def file(self) -> str:
        """File name of the archive."""
        return self.url.rpartition("/")[2]


def _about(thousands: float) -> tuple[int, int]:
    """Bounds of a count that the paper gives in thousands, rounded to one decimal."""
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
"""Archives by target folder. Counts: the paper, Table 2 and appendix; for the validation sets, the released data."""


def fetch(archive: Archive, root: str | Path, report: ProgressCallback = no_progress) -> Path:
    """Download and unpack an archive unless its folder exists.

    If `root` already contains a file with the archive's name, that file is unpacked and kept. A downloaded file is
    deleted after unpacking, or if it is damaged.

    Args:
        archive: The archive.
        root: Folder of the data set; created if missing.
        report: Progress callback, see `ProgressCallback`.

    Returns:
        ``root / archive.part``.

    Raises:
        OSError: If the download fails (the message explains the manual download), or disk space is insufficient.
        ValueError: If the archive is damaged, unsafe or incomplete.
    """
    root, target = Path(root), Path(root) / archive.part
    if target.exists():
        return target
    root.mkdir(parents=True, exist_ok=True)
    for stale in root.glob(f"{_TEMPORARY_PREFIX}*"):  # from a killed process
        shutil.rmtree(stale)
    provided = root / archive.file
    if provided.exists():
        return unpack(archive, provided, root, report)
    loaded = root / f"downloaded_{archive.file}"
    if not loaded.exists():
        _check_disk(archive, root)
        try:
            download(archive.url, loaded, report)
        except OSError as error:
            raise OSError(
                f"{archive.url}: expected to download it ({archive.gigabytes} GB), got {error}; run again to resume,"
                f" or get the file in another way, put it into '{root}' as {archive.file}, and run again"
            ) from None
    try:
        return unpack(archive, loaded, root, report)
    finally:
        loaded.unlink(missing_ok=True)


def _check_disk(archive: Archive, root: Path) -> None:
    need = int(2.3e9 * archive.gigabytes)  # the archive plus its content, which is only slightly larger
    free = shutil.disk_usage(root).free + sum(path.stat().st_size for path in root.glob(f"downloaded_{archive.file}*"))
    if free < need:
        raise OSError(f"{root}: expected {need / 1e9:.1f} GB of free disk for {archive.file}, got {free / 1e9:.1f} GB")


def unpack(archive: Archive, file: Path, root: str | Path, report: ProgressCallback = no_progress) -> Path:
    """Unpack `file` into a temporary folder in `root`, verify the file counts, and rename the result into place.

    Ignores the archive's own folder structure: a regular file whose last three folders are a known split, set and kind,
    with the suffix of that kind, is written below that set and kind. Other regular files are skipped with a warning. A
    path outside the archive, a link or a device rejects the whole archive.

    Args:
        archive: Expected content.
        file: The archive on disk.
        root: Folder of the data set.
        report: Progress callback, see `ProgressCallback`.

    Returns:
        ``root / archive.part``.

    Raises:
        ValueError: If the archive is damaged, unsafe or incomplete; no files are left behind.
    """
    root, target = Path(root), Path(root) / archive.part
    temporary = Path(tempfile.mkdtemp(prefix=_TEMPORARY_PREFIX, dir=root))
    try:
        made = temporary / "made"
        try:
            _extract_all(archive, file, made, report)
        except tarfile.FilterError as error:
            raise ValueError(
                f"{file}: expected plain files inside the archive, got '{error.tarinfo.name}', which is a link or"
                " device, or points outside the archive; nothing was unpacked"
            ) from None
        except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(
                f"{file}: expected an intact archive, got {type(error).__name__}: {error}; get it again"
            ) from None
        _check_counts(archive, made, file)
        target.parent.mkdir(parents=True, exist_ok=True)
        made.rename(target)
    finally:
        shutil.rmtree(temporary)
    return target


def _extract_all(archive: Archive, file: Path, made: Path, report: ProgressCallback) -> None:
    if not hasattr(tarfile, "data_filter"):
        raise RuntimeError("unpacking: expected Python 3.11.4 or later, whose tarfile refuses unsafe members")
    skipped: list[str] = []
    placed: set[str] = set()
    size = file.stat().st_size

    def choose(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo | None:
        report(f"unpacking {archive.file}", raw.tell(), size)
        if not member.isreg() and not member.isdir():  # the data filter allows links inside the archive
            raise tarfile.SpecialFileError(member)
        # The filter would strip a leading slash instead.
        if member.name.startswith("/") or "\\" in member.name or ":" in member.name:
            raise tarfile.AbsolutePathError(member)
        place = _place(archive, tarfile.data_filter(member, folder))
        if place is None:
            skipped.extend([member.name] if member.isreg() else [])
            return None
        if place in placed:
            raise ValueError(f"{file}: expected every file once, got '{place}' twice")
        placed.add(place)
        return member.replace(name=place, mode=None, mtime=None, uid=None, gid=None, deep=False)  # type: ignore[arg-type]

    with file.open("rb") as raw, gzip.open(raw) as plain, tarfile.open(fileobj=plain, mode="r|") as tar:
        tar.extractall(made, filter=choose)
        while plain.read(1 << 20):  # read to the end, to verify gzip's checksum
            pass
    if skipped:
        _log.warning("%s: skipped %d files that are not part of BAPPS, such as %s", file, len(skipped), skipped[0])


def _place(archive: Archive, member: tarfile.TarInfo) -> str | None:
    """Target path of a member below the part's folder; None for folders and files outside the layout."""
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
            if unmatched := stems[kinds[0]] ^ found:
                raise ValueError(
                    f"{file}: expected the same names in {name}/{kinds[0]} and {name}/{kind},"
                    f" got '{min(unmatched)}' in only one of them; get it again"
                )
