"""BAPPS archives: resumable downloads, safe extraction, file counts, cleanup."""

from __future__ import annotations

import gzip
import http.server
import io
import logging
import re
import tarfile
import threading
import urllib.request

import pytest
from small_data import write_bapps

from lpips_lightning.data.bapps import JNDDataset
from lpips_lightning.data.bapps_download import ARCHIVES, Archive, fetch, unpack
from lpips_lightning.io.download import download

URLOPEN = urllib.request.urlopen  # the tests have no network, but for a server of their own
COUNTS = {"jnd/val/cnn": 3, "jnd/val/traditional": 2}


@pytest.fixture
def files(tmp_path):
    """Path in the archive -> bytes, of a whole data set."""
    made = write_bapps(tmp_path / "made", COUNTS)
    return {path.relative_to(made).as_posix(): path.read_bytes() for path in made.rglob("*") if path.is_file()}


def packed(files, links=(), prefix=""):
    """The bytes of an archive; `links` are (name, target, type)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(prefix + name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        for name, target, kind in links:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            tar.addfile(member)
    return buffer.getvalue()


def archive_at(url, **counts):
    return Archive(f"{url}/jnd.tar.gz", "jnd/val", {"cnn": (3, 3), "traditional": (1, 3)} | counts, 1e-6)


def everything_in(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


class Server(http.server.BaseHTTPRequestHandler):
    """One file; the connection is lost after `cut` bytes of each answer, and ranges are served unless told not to."""

    content, etag, cut, ranges, asked = b"", '"1"', None, True, []
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        cls = type(self)
        cls.asked.append(self.headers.get("Range"))
        begin = 0
        fresh = self.headers.get("If-Range") == cls.etag
        if cls.ranges and fresh and (found := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))):
            begin = int(found[1])
        if begin >= len(cls.content) > 0:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(cls.content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        rest = cls.content[begin:]
        self.send_response(206 if begin else 200)
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(cls.content) - 1}/{len(cls.content)}")
        self.send_header("Content-Length", str(len(rest)))
        self.send_header("ETag", cls.etag)
        self.end_headers()
        self.wfile.write(rest[: cls.cut])
        self.close_connection = True

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    """A class to set up, and its address."""
    monkeypatch.setattr(urllib.request, "urlopen", URLOPEN)
    handler = type("Handler", (Server,), {"asked": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        handler.url = f"http://127.0.0.1:{running.server_port}"
        yield handler
        running.shutdown()
        thread.join()


def test_download_resumes_after_lost_connections(server, tmp_path):
    server.content, server.cut = bytes(range(250)), 100
    said = []
    download(f"{server.url}/a.bin", tmp_path / "a.bin", lambda *progress: said.append(progress))
    assert (tmp_path / "a.bin").read_bytes() == server.content
    assert server.asked == [None, "bytes=100-", "bytes=200-"]
    assert said[-1] == ("downloading a.bin", 250, 250)
    assert everything_in(tmp_path) == ["a.bin"]


def test_download_resumes_in_a_later_call_and_restarts_for_another_version(server, tmp_path):
    server.content, server.cut = bytes(range(250)), 0
    (tmp_path / "a.bin.part").write_bytes(server.content[:120])
    (tmp_path / "a.bin.part.version").write_text('"1"')
    with pytest.raises(OSError, match="the connection ended early"):
        download(f"{server.url}/a.bin", tmp_path / "a.bin")
    assert (tmp_path / "a.bin.part").stat().st_size == 120
    server.cut, server.asked[:] = None, []
    download(f"{server.url}/a.bin", tmp_path / "a.bin")
    assert server.asked == ["bytes=120-"]
    assert (tmp_path / "a.bin").read_bytes() == server.content

    (tmp_path / "a.bin.part").write_bytes(b"other" * 20)
    (tmp_path / "a.bin.part.version").write_text('"0"')
    download(f"{server.url}/a.bin", tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == server.content


@pytest.mark.parametrize("length", [250, 300])
def test_a_complete_or_overlong_partial_file_is_recognized(server, tmp_path, length):
    server.content = bytes(range(250))
    (tmp_path / "a.bin.part").write_bytes((server.content + bytes(50))[:length])
    (tmp_path / "a.bin.part.version").write_text('"1"')
    download(f"{server.url}/a.bin", tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == server.content


def test_a_server_without_ranges_sends_everything_again(server, tmp_path):
    server.content, server.ranges = bytes(range(250)), False
    (tmp_path / "a.bin.part").write_bytes(server.content[:120])
    (tmp_path / "a.bin.part.version").write_text('"1"')
    download(f"{server.url}/a.bin", tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == server.content


def test_archive_is_fetched_unpacked_counted_and_not_fetched_again(server, tmp_path, files):
    server.content = packed(files)
    root = tmp_path / "bapps"
    assert fetch(archive_at(server.url), root) == root / "jnd/val"
    assert everything_in(root)[0] == "jnd"
    assert {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*.*")} == files
    assert len(JNDDataset(root)) == 5
    assert len(server.asked) == 1
    fetch(archive_at(server.url), root)
    assert len(server.asked) == 1


def test_a_manually_provided_archive_is_unpacked_and_kept(tmp_path, files):
    root = tmp_path / "bapps"
    root.mkdir()
    (root / "jnd.tar.gz").write_bytes(packed(files))
    fetch(archive_at("http://nowhere"), root)
    assert len(JNDDataset(root)) == 5
    assert (root / "jnd.tar.gz").exists()


@pytest.mark.parametrize("prefix", ["", "./", "dataset/"])
def test_folders_above_the_layout_do_not_matter(tmp_path, files, prefix):
    (tmp_path / "jnd.tar.gz").write_bytes(packed(files, prefix=prefix))
    unpack(archive_at(""), tmp_path / "jnd.tar.gz", tmp_path)
    assert len(JNDDataset(tmp_path)) == 5


def test_without_network_the_error_explains_the_manual_download(tmp_path):
    message = (
        r"jnd.tar.gz: expected to download it \(0.2 GB\), got the tests have no network; .* put it into '.*' as jnd"
    )
    with pytest.raises(OSError, match=message):
        fetch(ARCHIVES["jnd/val"], tmp_path)
    assert everything_in(tmp_path) == []


def test_http_errors_are_reported(server, tmp_path):
    server.do_GET = lambda self: self.send_error(403)
    with pytest.raises(OSError, match="got HTTP 403 Forbidden; run again"):
        fetch(archive_at(server.url), tmp_path)


def test_insufficient_disk_space_is_reported_before_the_download(tmp_path):
    huge = Archive("http://nowhere/a.tar.gz", "jnd/val", {}, 1e9)
    with pytest.raises(OSError, match=r"expected 2300000000.0 GB of free disk for a.tar.gz, got"):
        fetch(huge, tmp_path)


EVIL = {
    "a path upwards": (
        {"jnd/val/cnn/p0/../../../../../evil.png": b"x"},
        (),
        "expected plain files inside the archive, got",
    ),
    "an absolute path": ({"/jnd/val/cnn/p0/evil.png": b"x"}, (), "expected plain files inside the archive, got '/jnd"),
    "a Windows path": ({"jnd/val/cnn/p0/C:evil.png": b"x"}, (), "expected plain files inside the archive"),
    "a symbolic link": (
        {},
        [("jnd/val/cnn/p0/a.png", "/etc/passwd", tarfile.SYMTYPE)],
        "got 'jnd/.*a.png', which is a link",
    ),
    "a hard link": ({}, [("jnd/val/cnn/p0/a.png", "jnd/val/cnn/p0/000000.png", tarfile.LNKTYPE)], "a link or device"),
    "a device": ({}, [("jnd/val/cnn/p0/a.png", "", tarfile.CHRTYPE)], "a link or device"),
    "a file twice": (
        {"x/jnd/val/cnn/p0/000000.png": b"x"},
        (),
        "expected every file once, got 'cnn/p0/000000.png' twice",
    ),
    "a pair too many": (
        {f"jnd/val/cnn/{kind}": b"x" for kind in ("p0/9.png", "p1/9.png", "same/9.npy")},
        (),
        "expected 3 files in cnn/p0, got 4; get it again",
    ),
    "unequal names": (
        {"jnd/val/traditional/p0/9.png": b"x", "jnd/val/traditional/p1/8.png": b"x"},
        (),
        "expected the same names in traditional/p0 and traditional/p1, got '8' in only one",
    ),
}


@pytest.mark.parametrize("trouble", EVIL)
@pytest.mark.parametrize("by_hand", [True, False])
def test_unsafe_archives_are_refused_and_leave_nothing_behind(server, tmp_path, files, trouble, by_hand):
    added, links, message = EVIL[trouble]
    content = packed(files | added, links)
    root = tmp_path / "deep" / "root"
    root.mkdir(parents=True)
    if by_hand:
        (root / "jnd.tar.gz").write_bytes(content)
    server.content = content
    before = everything_in(tmp_path)
    with pytest.raises(ValueError, match=rf"jnd.tar.gz: .*{message}"):
        fetch(archive_at(server.url), root)
    assert everything_in(tmp_path) == before


def test_missing_files_are_counted(tmp_path, files):
    (tmp_path / "jnd.tar.gz").write_bytes(packed(files))
    with pytest.raises(ValueError, match=r"expected 7 to 9 files in traditional/p0, got 2"):
        unpack(archive_at("", traditional=(7, 9)), tmp_path / "jnd.tar.gz", tmp_path)
    del files["jnd/val/cnn/same/000001.npy"]
    (tmp_path / "jnd.tar.gz").write_bytes(packed(files))
    with pytest.raises(ValueError, match=r"jnd.tar.gz: expected 3 files in cnn/same, got 2; get it again"):
        unpack(archive_at(""), tmp_path / "jnd.tar.gz", tmp_path)


@pytest.mark.parametrize("damage", ["cut gzip", "cut tar", "flipped byte", "no archive", "empty"])
def test_a_damaged_archive_is_refused_and_nothing_left_behind(server, tmp_path, files, damage):
    whole = packed(files)
    middle = len(whole) // 2
    server.content = {
        "cut gzip": whole[:middle],
        "cut tar": gzip.compress(gzip.decompress(whole)[:5000]),
        "flipped byte": whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :],
        "no archive": b"<html>not found</html>",
        "empty": b"",
    }[damage]
    with pytest.raises(ValueError, match=r"downloaded_jnd.tar.gz: expected (an intact archive, got|3 files)"):
        fetch(archive_at(server.url), tmp_path / "root")
    assert everything_in(tmp_path / "root") == []


def test_unknown_files_are_skipped_with_a_warning(tmp_path, files, caplog):
    extra = {
        "jnd/val/cnn/p0/._000000.png": b"x",
        "jnd/README": b"x",
        "jnd/val/cnn/p0/run.sh": b"x",
        "jnd/val/x/p0/1.png": b"",
    }
    (tmp_path / "jnd.tar.gz").write_bytes(packed(files | extra))
    with caplog.at_level(logging.WARNING, "lpips_lightning"):
        unpack(archive_at(""), tmp_path / "jnd.tar.gz", tmp_path)
    assert "skipped 4 files that are not part of BAPPS, such as jnd/val/cnn/p0/._000000.png" in caplog.text
    assert {path.relative_to(tmp_path).as_posix() for path in (tmp_path / "jnd").rglob("*.*")} == set(files)


def test_interrupts_and_killed_processes_leave_no_temporary_files(tmp_path, files):
    root = tmp_path / "root"
    (root / ".unpacking-1/made").mkdir(parents=True)
    (root / "jnd.tar.gz").write_bytes(packed(files))
    seen = []

    def interrupt(*progress):
        seen.append(everything_in(root))
        if len(seen) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(archive_at(""), root, interrupt)
    assert len(seen[-1]) > len(seen[0])
    assert ".unpacking-1/made" not in seen[0]  # of a process that was killed
    assert everything_in(root) == ["jnd.tar.gz"]


def test_records_are_those_of_the_paper():
    assert list(ARCHIVES) == ["2afc/train", "2afc/val", "jnd/val"]
    assert sum(low for low, _ in ARCHIVES["2afc/val"].counts.values()) == 36344
    assert all(low == high for low, high in ARCHIVES["2afc/val"].counts.values())
    assert ARCHIVES["2afc/train"].counts["cnn"] == (38050, 38150)
    assert {archive.file for archive in ARCHIVES.values()} == {"twoafc_train.tar.gz", "twoafc_val.tar.gz", "jnd.tar.gz"}
