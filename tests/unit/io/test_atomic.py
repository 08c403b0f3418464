"""Outputs that are no plain files are written into; links stay; what cannot be replaced is written in place."""

from __future__ import annotations

import errno
import os
import socket
import stat
import threading
import urllib.request
from pathlib import Path

import pytest
import torch
from crash_jobs import BACKBONE, backbone_record
from safetensors.torch import load
from small_data import write_noise

from lpips_lightning.backbones.fetch import fetch_backbone
from lpips_lightning.callbacks._loggers import write_png
from lpips_lightning.comparison.file_pairs import Pair
from lpips_lightning.comparison.maps import map_writer
from lpips_lightning.comparison.measure import PairResult
from lpips_lightning.comparison.report import write_csv, write_json
from lpips_lightning.data.bapps_generate import l2, make_bapps
from lpips_lightning.evaluation.report import save_text
from lpips_lightning.io.atomic import atomic_write, check_output_path, follow_links, replace_file
from lpips_lightning.io.checkpoint_io import AtomicCheckpointIO
from lpips_lightning.io.download import download
from lpips_lightning.io.image_files import write_image
from lpips_lightning.io.tables import write_table
from lpips_lightning.io.tensor_files import write_tensors

pytestmark = pytest.mark.skipif(os.name != "posix", reason="FIFOs, devices and permissions are POSIX's")
OLD, NEW = b"what was there before", b"new"
RESULTS = [PairResult(Pair("a", Path("a.png"), Path("b.png")), 0.1)]
IN_PLACE = [errno.EACCES, errno.EPERM, errno.EROFS, errno.EBUSY, errno.EXDEV]


def write(path, durable=False):
    with atomic_write(path, durable) as temporary:
        assert temporary.read_bytes() == b"" and stat.S_ISREG(temporary.lstat().st_mode)
        temporary.write_bytes(NEW)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def download_to(path):
    source = path.parent / "source"
    source.write_bytes(NEW)
    download(source.as_uri(), path)
    source.unlink()


WRITERS = {  # what writes a file, and how the file begins
    "CSV": (lambda path: write_table(path, ["a"], [["b"]]), b"a\nb\n"),
    "CSV of pairs": (lambda path: write_csv(path, RESULTS), b"a,b,lpips\na.png,b.png,0.1\n"),
    "JSON": (lambda path: write_json(path, RESULTS, "LPIPS"), b'{\n "fingerprint": "LPIPS",'),
    "text": (lambda path: save_text("text", path), b"text"),
    "heatmap": (lambda path: map_writer(path, False, 1.0, "LPIPS")(RESULTS[0].pair, torch.ones(4, 4)), b"\x89PNG"),
    "PNG": (lambda path: write_png(path, torch.zeros(4, 4, 3, dtype=torch.uint8).numpy()), b"\x89PNG"),
    "image": (lambda path: write_image(torch.zeros(3, 4, 4), path), b"\xff\xd8"),
    "checkpoint": (lambda path: AtomicCheckpointIO().save_checkpoint({"a": torch.zeros(2)}, path), b"PK"),
    "tensors": (lambda path: write_tensors(path, {"a": torch.zeros(2)}, {}), b""),
    "download": (download_to, NEW),
}


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    opener = urllib.request.build_opener(urllib.request.FileHandler)
    monkeypatch.setattr(urllib.request, "urlopen", lambda request, timeout: opener.open(request))


@pytest.mark.parametrize("name", WRITERS)
def test_every_writer_writes_into_a_pipe(name, tmp_path):
    writer, beginning = WRITERS[name]
    path, got = tmp_path / "pipe.jpg", []
    path = path.with_suffix(".safetensors") if name == "tensors" else path
    os.mkfifo(path)
    reader = threading.Thread(target=lambda: got.append(path.read_bytes()), daemon=True)
    reader.start()
    writer(path)
    reader.join(10)
    assert path.is_fifo() and names(tmp_path) == [path.name]
    assert got[0].startswith(beginning) and got[0]
    if name == "tensors":
        assert load(got[0]).keys() == {"a"}


@pytest.mark.parametrize("exists", [True, False])
@pytest.mark.parametrize("name", WRITERS)
def test_every_writer_keeps_a_link_and_writes_what_it_leads_to(name, exists, tmp_path):
    writer, beginning = WRITERS[name]
    suffix = ".safetensors" if name == "tensors" else ".jpg"
    real, link, outer = (tmp_path / f"{stem}{suffix}" for stem in ("real/target", "links/inner", "links/outer"))
    for folder in (real.parent, link.parent):
        folder.mkdir()
    link.symlink_to(f"../real/target{suffix}")
    outer.symlink_to(link.name)
    if exists:
        real.write_bytes(OLD)
    writer(outer)
    assert outer.is_symlink() and link.is_symlink() and not real.is_symlink()
    assert real.read_bytes().startswith(beginning) and real.read_bytes() != OLD
    assert names(tmp_path / "real") == [real.name] and names(tmp_path / "links") == [link.name, outer.name]


def test_a_link_into_a_missing_folder_creates_it(tmp_path):
    (tmp_path / "link").symlink_to("new/folder/target")
    write(tmp_path / "link")
    assert (tmp_path / "new/folder/target").read_bytes() == NEW and (tmp_path / "link").is_symlink()
    (tmp_path / "folder").symlink_to("newer")
    check_output_path(tmp_path / "folder", "out", folder=True)
    write(tmp_path / "folder/sub/file")
    assert (tmp_path / "newer/sub/file").read_bytes() == NEW and (tmp_path / "folder").is_symlink()


def test_a_loop_of_links_is_an_error_before_the_work(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError, match="expected a file to write, got a loop of symbolic links: '.*a'"):
        write(tmp_path / "a")
    with pytest.raises(ValueError, match="csv: expected a file to write, got '.*a', which is a loop of symbolic links"):
        check_output_path(tmp_path / "a", "csv")
    assert names(tmp_path) == ["a", "b"]


def test_a_device_is_written_into(tmp_path):
    if os.geteuid():
        pytest.skip("only root makes devices")
    os.mknod(tmp_path / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    check_output_path(tmp_path / "null", "csv")
    write(tmp_path / "null", durable=True)
    os.mknod(tmp_path / "full", 0o666 | stat.S_IFCHR, os.makedev(1, 7))
    with pytest.raises(OSError, match="No space left on device: '.*full'"):
        write(tmp_path / "full")
    assert all(stat.S_ISCHR((tmp_path / name).lstat().st_mode) for name in ("null", "full"))
    assert names(tmp_path) == ["full", "null"]


def test_a_socket_is_refused_before_the_work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # names of sockets are short
    with socket.socket(socket.AF_UNIX) as served:
        served.bind("socket")
        with pytest.raises(ValueError, match="csv: expected a file to write, got 'socket', which is a socket"):
            check_output_path("socket", "csv")
        with pytest.raises(OSError, match="^socket: expected a file, pipe or device .* that is a socket"):
            write("socket")
        assert stat.S_ISSOCK(Path("socket").lstat().st_mode)


def test_checking_a_pipe_does_not_open_it_and_folders_are_still_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    check_output_path(tmp_path / "pipe", "csv")  # opening would wait for a reader
    with pytest.raises(ValueError, match="map: expected a folder to write, got '.*pipe', which is no folder"):
        check_output_path(tmp_path / "pipe", "map", folder=True)
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="csv: expected a file to write, got '.*link', which is a folder"):
        check_output_path(tmp_path / "link", "csv")
    check_output_path(tmp_path / "link", "map", folder=True)


def test_a_pipe_whose_reader_leaves_is_named(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    threading.Thread(target=lambda: (tmp_path / "pipe").open("rb").close(), daemon=True).start()
    with pytest.raises(BrokenPipeError, match="pipe'"), atomic_write(tmp_path / "pipe") as temporary:
        temporary.write_bytes(bytes(2**20))
    assert names(tmp_path) == ["pipe"]


@pytest.mark.parametrize("number", IN_PLACE)
def test_a_file_that_cannot_be_replaced_is_written_in_place(number, tmp_path, monkeypatch):
    path = tmp_path / "mounted"
    path.write_bytes(OLD * 9)
    before = path.stat()

    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("pathlib.Path.replace", refuse)
    write(path, durable=True)
    assert path.read_bytes() == NEW
    assert os.path.samestat(before, path.stat()) and names(tmp_path) == ["mounted"]
    with pytest.raises(OSError, match=os.strerror(number)):  # without a file there is no place
        write(tmp_path / "new")
    assert names(tmp_path) == ["mounted"]


def test_other_errors_of_replacing_stay_errors(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(OLD)

    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("pathlib.Path.replace", fail)
    with pytest.raises(OSError, match="Input/output"):
        write(tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == OLD and names(tmp_path) == ["a"]


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EROFS])
def test_a_writable_file_in_a_read_only_folder_is_written(number, tmp_path, monkeypatch):
    path = tmp_path / "shared.csv"
    path.write_bytes(OLD * 9)
    before = path.stat()

    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    access = os.access
    monkeypatch.setattr("pathlib.Path.touch", refuse)
    monkeypatch.setattr("pathlib.Path.replace", refuse)
    monkeypatch.setattr(os, "access", lambda place, mode: Path(place).is_file() and access(place, mode))
    check_output_path(path, "csv")
    write(path)
    assert path.read_bytes() == NEW and os.path.samestat(before, path.stat())
    with pytest.raises(ValueError, match="csv: expected a file to write, got '.*new', but '.*' is not writable"):
        check_output_path(tmp_path / "new", "csv")
    with pytest.raises(OSError, match=os.strerror(number)):
        write(tmp_path / "new")
    assert names(tmp_path) == ["shared.csv"]


def test_a_write_protected_file_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "results.csv"
    path.write_bytes(OLD)
    monkeypatch.setattr(os, "access", lambda place, mode: Path(place).is_dir())  # root may write everything
    with pytest.raises(ValueError, match="csv: expected a file to write, got '.*', which is write-protected"):
        check_output_path(path, "csv")


def test_a_failed_write_in_place_says_that_the_file_is_incomplete(tmp_path, monkeypatch):
    (tmp_path / "mounted").write_bytes(OLD)

    def busy(*_):
        raise OSError(errno.EBUSY, "Device or resource busy")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pathlib.Path.replace", busy)
    monkeypatch.setattr("shutil.copyfileobj", full)
    with pytest.raises(OSError, match="No space left on device; its content is incomplete: '.*mounted'") as error:
        write(tmp_path / "mounted")
    assert error.value.errno == errno.ENOSPC and names(tmp_path) == ["mounted"]


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444, 0o755])
def test_an_existing_file_keeps_its_permissions_and_the_new_one_is_never_more_open(mode, tmp_path):
    path = tmp_path / "a"
    path.write_bytes(OLD)
    path.chmod(mode)
    with atomic_write(path) as temporary:
        assert stat.S_IMODE(temporary.stat().st_mode) == mode | 0o600
        temporary.write_bytes(NEW)
    assert path.read_bytes() == NEW and stat.S_IMODE(path.stat().st_mode) == mode


def test_a_writer_that_replaces_the_temporary_changes_no_permissions(tmp_path):
    with atomic_write(tmp_path / "a") as temporary:
        mode = temporary.stat().st_mode
        (tmp_path / "private").touch(0o600)
        (tmp_path / "private").replace(temporary)
    write_tensors(tmp_path / "b.safetensors", {"a": torch.ones(2)}, {})
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b.safetensors").stat().st_mode == mode


def test_a_new_file_gets_the_umask(tmp_path):
    umask = os.umask(0o027)
    try:
        write(tmp_path / "a")
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


def test_an_existing_file_keeps_its_owner(tmp_path):
    if os.geteuid():
        pytest.skip("only root gives files away")
    (tmp_path / "a").write_bytes(OLD)
    os.chown(tmp_path / "a", 12345, 23456)
    write(tmp_path / "a")
    status = (tmp_path / "a").stat()
    assert (status.st_uid, status.st_gid) == (12345, 23456) and (tmp_path / "a").read_bytes() == NEW


def test_names_as_long_as_the_system_allows_can_be_written(tmp_path):
    for name in ("a" * 255, "ü" * 127):
        write(tmp_path / name)
        assert (tmp_path / name).read_bytes() == NEW
    assert len(names(tmp_path)) == 2


def test_an_error_of_the_writer_leaves_everything_as_it_was(tmp_path):
    (tmp_path / "real").write_bytes(OLD)
    (tmp_path / "link").symlink_to("real")
    os.mkfifo(tmp_path / "pipe")
    for name in ("real", "link", "pipe", "new"):
        with pytest.raises(FileNotFoundError, match="gone"), atomic_write(tmp_path / name) as temporary:
            temporary.write_bytes((tmp_path / "gone").read_bytes())
        assert not temporary.exists()
    assert names(tmp_path) == ["link", "pipe", "real"] and (tmp_path / "link").read_bytes() == OLD


def test_a_complete_file_moves_under_the_same_rules(tmp_path, monkeypatch):
    (tmp_path / "real").write_bytes(OLD)
    (tmp_path / "link").symlink_to("real")
    for _ in range(2):  # renamed, then copied
        (tmp_path / "complete").write_bytes(NEW)
        replace_file(tmp_path / "complete", tmp_path / "link")
        assert names(tmp_path) == ["link", "real"] and (tmp_path / "real").read_bytes() == NEW
        assert follow_links(tmp_path / "link") == (tmp_path / "real").resolve()
        (tmp_path / "real").write_bytes(OLD)

        def far(*_):
            raise OSError(errno.EXDEV, "Invalid cross-device link")

        monkeypatch.setattr("pathlib.Path.replace", far)


def test_a_fetched_backbone_keeps_a_link_into_shared_storage(tmp_path):
    record = backbone_record()
    for folder in ("mirror", "shared", "mine"):
        (tmp_path / folder).mkdir()
    (tmp_path / "mirror" / record.file).write_bytes(BACKBONE)
    link = tmp_path / "mine" / record.file
    link.symlink_to(f"../shared/{record.file}")
    assert fetch_backbone(record, tmp_path / "mine", str(tmp_path / "mirror"))
    assert link.is_symlink() and (tmp_path / "shared" / record.file).read_bytes() == BACKBONE
    assert names(tmp_path / "mine") == names(tmp_path / "shared") == [record.file]


@pytest.mark.parametrize("out", ["link", "mounted"])
def test_a_generated_data_set_goes_into_a_link_or_a_mount_point(out, tmp_path, monkeypatch):
    write_noise(tmp_path / "images")
    (tmp_path / "mounted").mkdir()
    (tmp_path / "link").symlink_to("mounted")
    if out == "mounted":

        def busy(*_):
            raise OSError(errno.EBUSY, "Device or resource busy")

        monkeypatch.setattr("pathlib.Path.rmdir", busy)
    make_bapps(tmp_path / "images", tmp_path / out, train=2, val=1, jnd=0, size=32, distance=l2)
    assert names(tmp_path / "mounted") == ["2afc", "made.json"] and (tmp_path / "link").is_symlink()
    assert names(tmp_path) == ["images", "link", "mounted"]
