"""Bytes, lists and versions of files on disks and behind URLs; what is broken is named, and no secret is shown."""

from __future__ import annotations

import os
import pickle
import zipfile

import pytest
from file_servers import reset, s3_server, web_server

from lpips_lightning.sources import storage
from lpips_lightning.sources.listed import ListedPairs

fsspec = pytest.importorskip("fsspec")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(storage, "_WAITS", (0.01, 0.02, 0.03))


@pytest.fixture
def files(tmp_path):
    """A folder with files, by relative path."""
    made = {"a.png": b"1", "in/b 1.png": b"22", "in/deep/c.png": b"", "d.txt": b"4444"}
    for inside, content in made.items():
        (tmp_path / inside).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / inside).write_bytes(content)
    return made


@pytest.fixture
def memory():
    """An empty file system in memory."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    system.pseudo_dirs[:] = [""]
    yield system
    system.store.clear()
    system.pseudo_dirs[:] = [""]


def listed(folder):
    return {file.inside: storage.read(file.place) for file in storage.list_files(folder)}


def zipped(folder, path):
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, file.relative_to(folder))
    return path


def test_every_store_has_the_same_files(files, tmp_path, tmp_path_factory, memory):
    for inside, content in files.items():
        memory.pipe_file(f"/x/{inside}", content)
    archive = zipped(tmp_path, tmp_path_factory.mktemp("zip") / "x.zip")
    memory.pipe_file("/x.zip", archive.read_bytes())
    memory.mkdir("/x/empty")
    with web_server(tmp_path) as (web, _):
        urls = ["memory://x", "memory://x/", f"file://{tmp_path}", f"zip://::{archive}", "zip://::memory://x.zip", web]
        for url in urls:
            assert listed(url) == files, url
            inside = [file.inside for file in storage.list_files(url)]
            assert inside == sorted(inside, key=lambda one: one.split("/")), url
        assert listed(f"{web}/in/") == {"b 1.png": b"22", "deep/c.png": b""}
        assert listed(f"zip://in::{archive}") == {"b 1.png": b"22", "deep/c.png": b""}


def test_versions_tell_a_changed_file(tmp_path, memory):
    path = tmp_path / "x.png"
    for write, name in ((path.write_bytes, str(path)), (lambda b: memory.pipe_file("/v/x", b), "memory://v/x")):
        write(b"1")
        first = storage.version(name)
        assert storage.version(name) == first
        write(b"2")
        assert storage.version(name) != first
    before = [file.version for file in storage.list_files("memory://v")]
    memory.pipe_file("/v/x", b"3")
    assert before != [file.version for file in storage.list_files("memory://v")]


def test_parts(tmp_path, memory):
    (tmp_path / "x").write_bytes(b"0123456789")
    memory.pipe_file("/x", b"0123456789")
    for name in (str(tmp_path / "x"), "memory://x"):
        assert storage.read_part(name, 2, 5) == b"234"
        with storage.open_stream(name, "a list") as file:
            assert file.read() == b"0123456789"


@pytest.mark.parametrize(
    ("name", "kind"),
    [("memory://none/x", FileNotFoundError), ("none/x", FileNotFoundError), ("xyz://a/b", ValueError)],
)
def test_what_is_missing_is_named(name, kind, memory):
    for call in (storage.read, storage.version, lambda name: storage.open_stream(name, "a list")):
        with pytest.raises(kind, match=name if kind is not ValueError else "xyz://a/b: expected .* Protocol not known"):
            call(name)


def test_a_folder_is_no_image(tmp_path):
    with pytest.raises(IsADirectoryError, match=f"^{tmp_path}: expected an image file, got a folder$"):
        storage.read(str(tmp_path))


def test_folders_that_are_none(memory, tmp_path):
    memory.pipe_file("/x", b"1")
    with pytest.raises(FileNotFoundError, match="^memory://none: expected an existing folder of images, got no "):
        list(storage.list_files("memory://none"))
    with pytest.raises(NotADirectoryError, match="memory://x: expected a folder of images, got a file"):
        list(storage.list_files("memory://x"))
    with pytest.raises(FileNotFoundError, match="zip://::.*none.zip: expected"):
        list(storage.list_files(f"zip://::{tmp_path}/none.zip"))


def test_an_extra_that_is_missing_is_named(monkeypatch):
    def missing(protocol):
        raise ImportError("Please install gcsfs")

    monkeypatch.setattr(fsspec, "get_filesystem_class", missing)
    with pytest.raises(
        ImportError, match=r"gs:// URLs, got: Please install gcsfs; pip install 'lpips_lightning\[gs\]'"
    ):
        storage.read("gs://bucket/x")


def test_a_connection_that_is_reset_is_tried_again(tmp_path, files):
    left = {"/a.png": 2, "/in/": 1}

    def misbehave(handler):
        left[handler.path] = left.get(handler.path, 0) - 1
        return left[handler.path] >= 0 and reset(handler)

    with web_server(tmp_path, misbehave) as (web, requests):
        assert storage.read(f"{web}/a.png") == b"1"
        assert requests == ["/a.png"] * 3
        assert set(listed(web)) == set(files)


@pytest.mark.parametrize(("status", "attempts"), [(500, 4), (503, 4), (429, 4), (403, 1), (404, 1)])
def test_errors_of_a_server(tmp_path, status, attempts):
    with web_server(tmp_path, lambda handler: handler.send_error(status) is None) as (web, requests):
        with pytest.raises(OSError, match=f"{web}/x.png.* expected an image file") as caught:
            storage.read(f"{web}/x.png?token=hidden")
        assert len(requests) == attempts
    assert "hidden" not in str(caught.value)
    assert isinstance(caught.value, FileNotFoundError) == (status == 404)


def test_a_folder_that_cannot_be_listed_is_no_empty_one(tmp_path, files):
    with (
        web_server(tmp_path, lambda handler: handler.path == "/in/" and handler.send_error(500) is None) as (web, _),
        pytest.raises(OSError, match="ClientResponseError, 4 times"),
    ):
        list(storage.list_files(web))


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://me:pw@host/x?a=1", "https://***@host/x?a=1"),
        ("https://token@host/x", "https://***@host/x"),
        ("sftp://me:p@w@host/x", "sftp://***@host/x"),
        ("sftp://me@host/x", "sftp://me@host/x"),
        ("https://h/x?X-Amz-Credential=A%2F1&X-Amz-Date=2&X-Amz-Signature=ab", None),
        ("https://h/x.png?sv=2&sig=a%2Bb&se=3", "https://h/x.png?sv=2&sig=***&se=3"),
        ("zip://in@2x.png::s3://bucket/a@b.zip", "zip://in@2x.png::s3://bucket/a@b.zip"),
        ("simplecache::https://u:p@h/x", "simplecache::https://***@h/x"),
        ("got url='https://h/x?X-Goog-Signature=1f', retry", "got url='https://h/x?X-Goog-Signature=***', retry"),
    ],
)
def test_secrets_are_not_shown(url, expected):
    expected = expected or "https://h/x?X-Amz-Credential=***&X-Amz-Date=2&X-Amz-Signature=***"
    assert storage.shown(url) == expected
    source = ListedPairs([(url, "b.png")], 1, "listed")
    (pair,) = source.unit(0)
    assert (pair.a, pair.places) == (expected, (url, "b.png"))


@pytest.mark.parametrize(
    ("folder", "inside", "joined"),
    [
        ("x", "a", f"x{os.sep}a"),
        ("x", "s3://b/1.png", "s3://b/1.png"),
        ("s3://b/l", "../x/1.png", "s3://b/x/1.png"),
        ("s3://b/l/", "1.png", "s3://b/l/1.png"),
        ("zip://::x.zip", "a/1.png", "zip://a/1.png::x.zip"),
        ("simplecache::s3://b", "1.png", "simplecache::s3://b/1.png"),
        ("https://h/l", "../1.png", "https://h/1.png"),
    ],
)
def test_names_in_a_folder(folder, inside, joined):
    assert storage.join(folder, inside) == joined


def test_a_path_above_the_root_is_refused():
    with pytest.raises(ValueError, match="one above its root"):
        storage.join("s3://b/l", "../../../x.png")


def test_names_are_packed_and_kept(tmp_path):
    names = [(f"{tmp_path}/a {n}\udcff.png", f"{tmp_path}/b/ü{n}.png") for n in range(1000)]
    source = pickle.loads(pickle.dumps(ListedPairs(names, 48, "listed")))
    assert [pair.places for unit in range(len(source)) for pair in source.unit(unit)] == names
    assert len(pickle.dumps(source)) < len(repr(names)) / 5


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_opens_its_own_connections(tmp_path, files, monkeypatch):
    with web_server(tmp_path) as (web, _):
        assert storage.read(f"{web}/a.png") == b"1"
        child = os.fork()
        if child == 0:
            try:
                os._exit(0 if storage.read(f"{web}/in/b%201.png") == b"22" else 1)
            finally:
                os._exit(2)
        assert os.waitpid(child, 0)[1] == 0
        assert storage.read(f"{web}/a.png") == b"1"


@pytest.fixture
def s3(monkeypatch):
    """A server that speaks S3, with a bucket."""
    pytest.importorskip("s3fs")
    pytest.importorskip("moto.server")
    with s3_server() as url:
        settings = {"ACCESS_KEY_ID": "k", "SECRET_ACCESS_KEY": "s", "DEFAULT_REGION": "us-east-1", "ENDPOINT_URL": url}
        for name, value in settings.items():
            monkeypatch.setenv(f"AWS_{name}", value)
        monkeypatch.setattr(storage._own, "_opened", {})
        system = fsspec.filesystem("s3", skip_instance_cache=True)
        system.mkdir("bucket")
        yield system


@pytest.mark.slow  # 3 s
def test_s3(s3, files):
    for inside, content in files.items():
        s3.pipe_file(f"bucket/x/{inside}", content)
    assert listed("s3://bucket/x") == files
    assert listed("s3://bucket/x/in/") == {"b 1.png": b"22", "deep/c.png": b""}
    before = {file.inside: file.version for file in storage.list_files("s3://bucket/x")}
    s3.pipe_file("bucket/x/a.png", b"2")
    after = {file.inside: file.version for file in storage.list_files("s3://bucket/x")}
    assert [inside for inside in files if before[inside] != after[inside]] == ["a.png"]
    assert storage.read_part("s3://bucket/x/d.txt", 1, 3) == b"44"
    for missing in ("s3://bucket/none.png", "s3://nobucket/x.png"):
        with pytest.raises(FileNotFoundError, match=f"{missing}: expected an image file, got no such file"):
            storage.read(missing)
    with pytest.raises(FileNotFoundError, match="s3://bucket/none"):
        list(storage.list_files("s3://bucket/none"))
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if storage.read("s3://bucket/x/a.png") == b"2" else 1)
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    assert storage.read("s3://bucket/x/a.png") == b"2"
