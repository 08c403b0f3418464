"""Serve the page of a study until Ctrl-C: links, token, port, slow clients, and a line on the terminal now and then."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import ipaddress
import os
import secrets
import socket
import sqlite3
import webbrowser
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import uvicorn
from rich.markup import escape
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from typing_extensions import override
from uvicorn.protocols.http.h11_impl import H11Protocol

from lpips_lightning.io.console import Console
from lpips_lightning.io.image_folders import count_of
from lpips_lightning.judge.server.app import create_app
from lpips_lightning.judge.server.guard import LOCAL_NAMES, Access, Limits, host_name, network_of
from lpips_lightning.judge.server.shown import ShownImages
from lpips_lightning.judge.store import Study

if TYPE_CHECKING:
    from lpips_lightning.judge.selection import Selector

LOOPBACK, PORT = "127.0.0.1", 8765
"""Where the page is served by default: for this machine alone."""

_TOKEN = "token"  # key of the link's token in the study's file, so that links stay right after a restart
_CONNECTIONS = 500
_FROM_ONE_ADDRESS = 400  # a class of a hundred behind one address; the others have the rest
_HEAD_SECONDS = 10.0
_READ_SECONDS = 120.0  # for what is sent at once: an image of a megabyte takes 10 kB per second
_REPORT_SECONDS = 30.0


def serve(
    study: Study,
    selector: Selector,
    *,
    host: str = LOOPBACK,
    port: int = PORT,
    url: str = "",
    limits: Limits | None = None,
    show: bool = False,
    console: Console | None = None,
) -> None:
    """Serve the page of a study until SIGINT or SIGTERM; then answers under way are finished first.

    Args:
        study: The study.
        selector: Chooses the judged items.
        host: Address to listen on. On any but this machine's own, the link carries a token.
        port: Port; 0 takes a free one.
        url: Address of a proxy or tunnel in front, under which observers reach the page; with a token too.
        limits: Rates of requests.
        show: Open the page in a browser.
        console: Where links and progress are printed.

    Raises:
        ValueError: If the address cannot be listened on, an image of the study is missing or changed, or its file
            cannot be written.
        KeyboardInterrupt: After SIGINT.
    """
    console = console or Console(highlight=False, soft_wrap=True)
    ShownImages(study).check()
    study.check_writable()
    listener = listen(host, port)
    with listener:
        found = access(study, host, url)
        links = page_links(found, host, listener.getsockname()[1])
        app = create_app(
            study, selector, access=found, limits=limits, lifespan=_reports(study, found, links, show, console)
        )
        config = uvicorn.Config(
            app,
            http=_Protocol,
            ws="none",
            lifespan="on",
            log_config=None,
            log_level="error",
            access_log=False,
            server_header=False,
            proxy_headers=bool(url),  # trusts what a proxy on this machine says of the client's address
            limit_concurrency=_CONNECTIONS,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=5,
            h11_max_incomplete_event_size=16_384,
        )
        uvicorn.Server(config).run(sockets=[listener])


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        ValueError: If there is no such address, or the port is in use.
    """
    if not 0 <= port <= 65535:
        raise ValueError(f"port: expected a port up to 65535, got {port}")
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise ValueError(f"host: expected an address of this machine, got {host!r} ({error.strerror})") from error
    listener = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":  # elsewhere, two servers could share a port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(place)
        listener.listen(128)
    except OSError as error:
        listener.close()
        if isinstance(error, PermissionError) or error.errno == errno.EADDRINUSE:
            why = error.strerror or error
            raise ValueError(f"port: expected a free port, got {port} ({why}); choose another with --port") from error
        raise ValueError(f"host: expected an address of this machine, got {host!r} ({error.strerror})") from error
    return listener


def access(study: Study, host: str, url: str = "") -> Access:
    """Who may ask, when a study is served at an address; its token is made once and kept in the study's file."""
    split = urlsplit(url)
    if url and (split.scheme not in ("http", "https") or not host_name(split.netloc) or split.path not in ("", "/")):
        raise ValueError(f"url: expected an address such as https://study.example.org, got {url!r}")
    cookie = f"_{hashlib.sha256(str(study.path.resolve()).encode('utf-8', 'replace')).hexdigest()[:8]}"
    if is_loopback(host) and not url:
        return Access(names=LOCAL_NAMES | {host.lower()}, cookie=cookie)
    with study.transaction():
        token = study.value(_TOKEN) or secrets.token_urlsafe(24)
        study.set_value(_TOKEN, token)
    own = {name.lower() for name in (host, socket.gethostname(), f"{socket.gethostname()}.local", socket.getfqdn())}
    return Access(LOCAL_NAMES | own, token, url.rstrip("/"), cookie)


def page_links(found: Access, host: str, port: int) -> list[str]:
    """The links of the page, those for other machines first."""
    query = f"?token={found.token}" if found.token else ""
    if found.url:
        return [f"{found.url}/{query}"]
    names = _addresses() if host in ("0.0.0.0", "::") else [host]
    return [f"http://{f'[{name}]' if ':' in name else name}:{port}/{query}" for name in names]


def is_loopback(host: str) -> bool:
    """Whether an address is reachable from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def summary(study: Study) -> str:
    """Observers, answers and failed sessions so far, as a line."""
    answers, failed = study.count_answers(), sum(one.passed is False for one in study.sessions())
    parts = [count_of(len(study.observers()), "observer"), count_of(answers, "answer")]
    return ", ".join([*parts, count_of(failed, "failed session")])


def _addresses() -> list[str]:
    """Addresses of this machine: the one that others in the network see, its name, and its own."""
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing: only asks for the way to an address for documentation
            found.append(probe.getsockname()[0])
        except OSError:  # no network
            pass
    return list(dict.fromkeys([*found, socket.gethostname(), LOOPBACK]))


def _reports(study: Study, found: Access, links: list[str], show: bool, console: Console) -> Any:
    """What is printed while the server runs."""

    async def report(last: str) -> None:
        while True:
            await asyncio.sleep(_REPORT_SECONDS)
            with suppress(sqlite3.Error):  # another program has locked the file; the next line tells more
                line = await run_in_threadpool(summary, study)
                if line != last:
                    console.print(line)
                last = line

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        before = await run_in_threadpool(summary, study)
        console.print(f"{escape(str(study.path))}: {before}")
        for link in links:
            console.print(f"[bold]{escape(link)}[/bold]")
        if found.token and not found.url:
            console.print(
                "Whoever has a link can take part. http is not encrypted; --url puts a proxy with TLS in front."
            )
        console.print("Ctrl-C ends; the same command goes on.")
        if show:
            await run_in_threadpool(webbrowser.open, links[-1])
        task = asyncio.create_task(report(before))
        with suppress(asyncio.CancelledError):  # by a second Ctrl-C
            yield
        task.cancel()
        console.print(f"Stopped: {summary(study)}")

    return lifespan


class _Protocol(H11Protocol):
    """uvicorn's HTTP, which also ends connections that hold it up.

    Those are connections whose request does not come or comes too slowly, whose client does not read what is sent, and
    those of an address that has too many. A proxy on this machine may have them all.
    """

    _timer: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    @override
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if self._is_one_too_many():
            transport.abort()
        else:
            self._watch()

    @override
    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._unwatch()  # the request is there; its body has a limit of its own
        elif self._timer is None:
            self._watch()

    @override
    def on_response_complete(self) -> None:
        self._unwatch()  # the time between requests is uvicorn's timeout_keep_alive
        super().on_response_complete()

    @override
    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.loop.call_later(_READ_SECONDS, self.transport.abort)

    @override
    def resume_writing(self) -> None:
        self._end_of_unread()
        super().resume_writing()

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._unwatch()
        self._end_of_unread()
        super().connection_lost(exc)

    def _is_one_too_many(self) -> bool:
        host = self.client[0] if self.client else LOOPBACK
        own = network_of(host)
        if is_loopback(host) or is_loopback(own):
            return False
        clients = (one.client for one in self.connections if isinstance(one, _Protocol))
        return sum(client is not None and network_of(client[0]) == own for client in clients) > _FROM_ONE_ADDRESS

    def _end_of_unread(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _watch(self) -> None:
        self._timer = self.loop.call_later(_HEAD_SECONDS, self.transport.close)

    def _unwatch(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
