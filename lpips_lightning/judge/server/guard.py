"""What stands before the page of a study: served names, the link's token, foreign origins, rates, sizes, headers."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import json
import logging
import math
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lpips_lightning.io.image_decoding import printable

LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
"""Names of this machine that lead nowhere else."""

MAX_BODY = 8192
"""Bytes of a request; the largest honest one has about 500."""

BODY_SECONDS = 10.0
"""Time in which the body of a request must be there."""

HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self';"
        " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}
"""Headers of every response."""


_HINTS = 5  # names told at most
_logger = logging.getLogger(__name__)
_HOST = re.compile(r"(?:\[(?P<six>[0-9a-f:.]+)\]|(?P<name>[a-z0-9._-]+))(?::\d*)?")


class RefusedError(Exception):
    """A request that is refused.

    Attributes:
        status: Status of the response.
        sentence: What the client is told.
        wait: Seconds after which the request may be sent again; 0: not told.
    """

    def __init__(self, status: int, sentence: str, wait: int = 0) -> None:
        super().__init__(sentence)
        self.status, self.sentence, self.wait = status, sentence, wait


@dataclass(frozen=True)
class Access:
    """Who may ask.

    Attributes:
        names: Names in the Host header that are served; addresses in figures are too, where a token is asked for.
        token: What the link must carry; empty: nothing, for this machine alone.
        url: Address in front of a proxy or tunnel, or empty.
        cookie: Ending of the names of cookies, so that two studies on one machine keep theirs apart.
    """

    names: frozenset[str] = LOCAL_NAMES
    token: str = ""
    url: str = ""
    cookie: str = ""

    @property
    def observer_cookie(self) -> str:
        """Name of the cookie with an observer's secret."""
        return f"observer{self.cookie}"

    @property
    def token_cookie(self) -> str:
        """Name of the cookie with the link's token."""
        return f"token{self.cookie}"

    def is_served(self, host: str) -> bool:
        """Whether a Host header names this server, at any port, since tunnels change it."""
        name = host_name(host)
        if name in self.names or (self.url and name == host_name(urlsplit(self.url).netloc)):
            return True
        return bool(self.token) and _is_address(name)

    def is_token(self, given: str) -> bool:
        """Whether a token is right, in constant time."""
        return hmac.compare_digest(given.encode(), self.token.encode())


@dataclass(frozen=True)
class Rate:
    """Requests that one client may make: `burst` at once, and `per_second` in the long run."""

    burst: float
    per_second: float


@dataclass(frozen=True)
class Limits:
    """Rates, generous for people: a trial takes about five requests and a second.

    Attributes:
        address: Of one network address; a whole laboratory may stand behind it.
        observer: Of one observer.
        enroll: New observers from one address.
        enroll_all: New observers from everywhere.
    """

    address: Rate = Rate(2000, 200)
    observer: Rate = Rate(300, 30)
    enroll: Rate = Rate(60, 1 / 10)
    enroll_all: Rate = Rate(500, 1 / 5)


@dataclass
class RateLimiter:
    """Token buckets by key; forgets the keys that were used longest ago.

    Attributes:
        rate: What each key may do.
        keys: Keys that are remembered.
        clock: Seconds.
    """

    rate: Rate
    keys: int = 10_000
    clock: Callable[[], float] = time.monotonic
    _left: OrderedDict[str, tuple[float, float]] = field(default_factory=OrderedDict, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def wait(self, key: str) -> float:
        """Take one request of a key; returns 0, or the seconds until there is one again."""
        with self._lock:
            now = self.clock()
            left, at = self._left.pop(key, (self.rate.burst, now))
            left = min(self.rate.burst, left + (now - at) * self.rate.per_second)
            allowed = left >= 1
            self._left[key] = left - allowed, now
            if len(self._left) > self.keys:
                self._left.popitem(last=False)
        return 0.0 if allowed else (1 - left) / self.rate.per_second

    def check(self, key: str) -> None:
        """Take one request of a key.

        Raises:
            RefusedError: If there is none.
        """
        seconds = math.ceil(self.wait(key))
        if seconds:
            raise RefusedError(429, f"too many requests; try again in {seconds} s", seconds)


class Guard:
    """ASGI middleware: refuses what does not come from the page of the study, and sets safe headers."""

    def __init__(self, app: ASGIApp, access: Access, limits: Limits) -> None:
        self._app, self._access, self._addresses = app, access, RateLimiter(limits.address)
        self._hinted: set[str] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check a request and hand it on."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # no websockets here
            await send({"type": "websocket.close", "code": 1008})
            return
        safe = _with_headers(send)
        try:
            self._check(Request(scope))
        except RefusedError as error:
            await refusal(error)(scope, receive, safe)
            return
        await self._app(scope, receive, safe)

    def _check(self, request: Request) -> None:
        self._addresses.check(address(request))
        hosts = request.headers.getlist("host")
        if len(hosts) != 1 or not self._access.is_served(hosts[0]):
            self._hint(", ".join(hosts))
            raise RefusedError(421, "expected the address in the link of this study; ask for the right link")
        if request.method not in ("GET", "HEAD", "POST"):
            raise RefusedError(405, f"expected GET or POST, got {request.method[:20]}")
        protected = request.scope["path"].startswith(("/api/", "/image/"))
        if protected:
            _check_origin(request, self._access, hosts[0])
        if protected and self._access.token and not self._has_token(request):
            raise RefusedError(403, "expected the whole link of this study, with its token; ask for it again")

    def _hint(self, host: str) -> None:
        """Tell who runs the study of a name that is not served; perhaps a tunnel's."""
        name = printable(host[:100])
        if name not in self._hinted and len(self._hinted) < _HINTS:
            self._hinted.add(name)
            _logger.warning("refused a request to %r; for a proxy or tunnel of that name, start with --url", name)

    def _has_token(self, request: Request) -> bool:
        given = (request.headers.get("x-study-token"), request.cookies.get(self._access.token_cookie))
        return any(self._access.is_token(one) for one in given if one)


def refusal(error: RefusedError) -> JSONResponse:
    """The response to a refused request; a body that was not read closes the connection."""
    headers = {"connection": "close"} if error.status in (408, 413) else {}
    if error.wait:
        headers["retry-after"] = str(error.wait)
    return JSONResponse({"error": error.sentence}, error.status, headers)


def address(request: Request) -> str:
    """The network of a client: its address, of IPv6 the first half."""
    return network_of(request.client.host if request.client else "")


def network_of(host: str) -> str:
    """An IPv4 address, also one that a socket of both versions tells as IPv6; of IPv6 the first half.

    Example:
        >>> network_of("192.0.2.7"), network_of("::ffff:192.0.2.7"), network_of("2001:db8::7")
        ('192.0.2.7', '192.0.2.7', '2001:db8::/64')
    """
    try:
        found = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(found, ipaddress.IPv4Address):
        return host
    return str(found.ipv4_mapped or ipaddress.ip_network((int(found) >> 64 << 64, 64)))


def key_of(secret: str) -> str:
    """A key for rates in place of a secret."""
    return hashlib.sha256(secret.encode()).hexdigest()


async def read_json(request: Request) -> dict[str, Any]:
    """The JSON object in the body of a request; reads at most `MAX_BODY` bytes in `BODY_SECONDS`.

    Raises:
        RefusedError: If it is too large, too slow, of another type, or no object.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise RefusedError(415, "content-type: expected application/json")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and (len(length) > 18 or int(length) > MAX_BODY):
        raise RefusedError(413, f"expected at most {MAX_BODY} bytes, got {length[:18]}")
    try:
        body = await asyncio.wait_for(_body(request), BODY_SECONDS)
    except TimeoutError as error:
        raise RefusedError(408, f"expected the request within {BODY_SECONDS:.0f} s") from error
    except ClientDisconnect as error:
        raise RefusedError(400, "expected the whole request") from error
    try:
        found = json.loads(body, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise RefusedError(400, "expected a JSON object, got other text") from error
    if not isinstance(found, dict):
        raise RefusedError(400, "expected a JSON object, got another value")
    return found


def host_name(host: str) -> str:
    """The name in a Host header, in lower case without port, dot at the end and brackets; empty if it is malformed.

    Example:
        >>> host_name("LocalHost:8000"), host_name("[::1]:80"), host_name("localhost:80/api/")
        ('localhost', '::1', '')
    """
    found = _HOST.fullmatch(host.strip().lower())
    return "" if found is None else found["six"] or found["name"].rstrip(".")


async def _body(request: Request) -> bytes:
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MAX_BODY:
            raise RefusedError(413, f"expected at most {MAX_BODY} bytes, got more")
    return body


def _check_origin(request: Request, access: Access, host: str) -> None:
    """Refuse what another page of the browser sends; programs that are no browsers send neither header."""
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    own = {host.strip().lower(), urlsplit(access.url).netloc.lower()} - {""}
    is_own = origin is None or (origin == "null" and site == "same-origin") or _netloc(origin) in own
    if site not in (None, "same-origin", "none") or not is_own:
        raise RefusedError(403, "expected a request from the page of this study, got one from another page")


def _netloc(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:  # no address, such as http://[
        return ""


def _with_headers(send: Send) -> Send:
    async def safe(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers[name] = value
            headers.setdefault("cache-control", "no-store")
        await send(message)

    return safe


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _no_constant(name: str) -> None:
    raise ValueError(f"expected a number, got {name}")
