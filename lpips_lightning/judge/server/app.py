"""The web application of a study: its page, its images, and what the page asks for as JSON.

Routes: ``/`` and the other files of the page; ``/image/<number>``; ``GET /api/study``; ``POST /api/observers`` enrolls
an observer, ``POST /api/resume`` brings one back; ``GET /api/next``, ``POST /api/answers`` and ``POST /api/sessions``
conduct the sessions. A refused request gets ``{"error": <sentence>}``. What may ask is decided in `guard`.
"""

from __future__ import annotations

import hashlib
import logging
import re
import sqlite3
from collections.abc import Awaitable, Callable
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from lpips_lightning.judge.records import Observer, StudyError
from lpips_lightning.judge.server.guard import (
    Access,
    Guard,
    Limits,
    RateLimiter,
    RefusedError,
    address,
    key_of,
    read_json,
    refusal,
)
from lpips_lightning.judge.server.shown import ChangedImageError, ShownImages
from lpips_lightning.judge.sessions import Step, TrialStep, is_number, next_step, record_answer, start_session
from lpips_lightning.judge.store import Study

if TYPE_CHECKING:
    from lpips_lightning.judge.selection import Selector

_PAGE = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/judge.js": ("judge.js", "text/javascript; charset=utf-8"),
    "/judge.css": ("judge.css", "text/css; charset=utf-8"),
}
_COOKIE_SECONDS = 90 * 24 * 3600
_TOLD = (
    *("title", "test", "question", "instructions", "consent", "shown_ms", "gap_ms", "slip_ms", "break_every"),
    *("trials", "practice", "votes"),
)
_MEASURED = ("frames", "gap_ms", "refresh_ms", "scale", "pixel_ratio")
_SHOWN = 2  # images whose duration the page measures
_logger = logging.getLogger(__name__)


def create_app(
    study: Study,
    selector: Selector,
    *,
    access: Access | None = None,
    limits: Limits | None = None,
    lifespan: Any = None,
) -> ASGIApp:
    """The ASGI application of a study.

    Args:
        study: The study.
        selector: Chooses the judged items.
        access: Who may ask; by default this machine, without a token.
        limits: Rates of requests.
        lifespan: Starlette's; what runs while the server does.
    """
    access, limits = access or Access(), limits or Limits()
    page = _StudyPage(study, selector, access, limits)
    routes = [Route(path, page.file) for path in _PAGE]
    routes += [
        Route("/favicon.ico", page.no_icon),
        Route("/image/{number}", page.image),
        Route("/api/study", page.study),
        Route("/api/observers", page.enroll, methods=["POST"]),
        Route("/api/resume", page.resume, methods=["POST"]),
        Route("/api/next", page.next),
        Route("/api/answers", page.answer, methods=["POST"]),
        Route("/api/sessions", page.session, methods=["POST"]),
    ]
    # The guard stands outside, so that responses to errors have its headers too.
    return Guard(Starlette(routes=routes, exception_handlers=_HANDLERS, lifespan=lifespan), access, limits)


class _StudyPage:
    """The endpoints; what waits for the disk runs in threads."""

    def __init__(self, study: Study, selector: Selector, access: Access, limits: Limits) -> None:
        self._study, self._selector, self._access = study, selector, access
        # By its id a browser keeps observers and answers of studies apart that were served at one address in turn.
        created = hashlib.sha256(str(study.value("created")).encode()).hexdigest()[:12]
        self._told = {"id": created, **{name: getattr(study.design, name) for name in _TOLD}}
        self._images = ShownImages(study)
        self._observers = RateLimiter(limits.observer)
        self._enroll, self._enroll_all = RateLimiter(limits.enroll), RateLimiter(limits.enroll_all)

    def _check_in_place(self) -> None:
        if not self._study.is_in_place():
            raise sqlite3.OperationalError(
                f"'{self._study.path}' was deleted, moved or replaced; start the server anew"
            )

    async def file(self, request: Request) -> Response:
        name, media_type = _PAGE[request.scope["path"]]
        content = await run_in_threadpool(_page_file, name)
        response = Response(content, media_type=media_type, headers={"cache-control": "no-cache"})
        token = request.query_params.get("token", "")
        if self._access.token and token and self._access.is_token(token):
            self._set_cookie(response, self._access.token_cookie, token)
        return response

    async def no_icon(self, request: Request) -> Response:
        return Response(status_code=204)  # browsers ask for it unasked, and would report an error

    async def study(self, request: Request) -> Response:
        return JSONResponse(self._told)

    async def enroll(self, request: Request) -> Response:
        body = await read_json(request)
        if body.get("consent") is not True:
            raise RefusedError(400, "consent: expected true; nothing is stored without it")
        self._enroll.check(address(request))
        self._enroll_all.check("")
        self._check_in_place()
        client = _client(body.get("client"))
        observer, secret = await run_in_threadpool(self._study.enroll, client)
        response = JSONResponse({"observer": observer.name, "secret": secret}, 201)
        self._set_cookie(response, self._access.observer_cookie, secret)
        return response

    async def resume(self, request: Request) -> Response:
        body = await read_json(request)
        secret = body.get("secret")
        if not isinstance(secret, str) or not secret.isascii():
            raise RefusedError(400, "secret: expected that of an observer")
        observer = await self._find(secret)
        response = JSONResponse({"observer": observer.name})
        self._set_cookie(response, self._access.observer_cookie, secret)
        return response

    async def next(self, request: Request) -> Response:
        observer = await self._observer(request)
        return self._step(await run_in_threadpool(next_step, self._study, observer, self._selector))

    async def session(self, request: Request) -> Response:
        await read_json(request)
        observer = await self._observer(request)
        return self._step(await run_in_threadpool(start_session, self._study, observer, self._selector))

    async def answer(self, request: Request) -> Response:
        body = await read_json(request)
        observer = await self._observer(request)
        trial, choice = body.get("trial"), body.get("choice")
        response_ms, timing = body.get("response_ms"), body.get("timing", {})
        if not isinstance(trial, int) or isinstance(trial, bool) or abs(trial) >= 2**63:
            raise RefusedError(400, "trial: expected a number of a trial")
        if not isinstance(choice, str) or not isinstance(timing, dict):
            raise RefusedError(400, "choice and timing: expected text and an object")
        if not is_number(response_ms):
            raise RefusedError(400, "response_ms: expected a number of milliseconds")
        self._check_in_place()
        found = await run_in_threadpool(
            record_answer, self._study, observer, trial, choice[:20], float(response_ms), _timing(timing)
        )
        feedback = None if found.expected is None else {"right": found.right, "expected": found.expected}
        return JSONResponse({"kept": found.kept, "feedback": feedback})

    async def image(self, request: Request) -> Response:
        await self._observer(request)
        number = _image_number(request.path_params["number"])
        digest = self._images.digest(number)
        shown = await run_in_threadpool(self._images.get, number)
        if shown is None:
            raise RefusedError(404, "expected the number of an image of this study")
        # Asked for again each time: another study on the same port has other images under the same numbers.
        headers = {"cache-control": "private, no-cache", "etag": f'"{digest}"'}
        if request.headers.get("if-none-match") == headers["etag"]:
            return Response(status_code=304, headers=headers)
        return Response(shown.content, media_type=shown.media_type, headers=headers)

    async def _observer(self, request: Request) -> Observer:
        secret = request.headers.get("x-observer") or request.cookies.get(self._access.observer_cookie)
        if not secret:
            raise RefusedError(401, "expected an observer of this study, got nobody; start on the first page")
        return await self._find(secret)

    async def _find(self, secret: str) -> Observer:
        self._observers.check(key_of(secret))
        found = await run_in_threadpool(self._study.observer, secret)
        if found is None:
            raise RefusedError(401, "expected an observer of this study, got somebody else; start on the first page")
        return found

    def _step(self, step: Step) -> Response:
        if not isinstance(step, TrialStep):
            number = None if step.session is None else step.session.number + 1
            done = {"session": number, "answered": step.answered, "can_continue": step.can_continue}
            return JSONResponse({"step": "session_done", **done})
        item, place = step.item, {"phase": step.phase, "position": step.position, "total": step.total}
        if item.p1 is None:
            shown = {"first": item.ref, "second": item.p0}
        else:
            left, right = (item.p1, item.p0) if step.trial.swapped else (item.p0, item.p1)
            shown = {"ref": item.ref, "left": left, "right": right}
        images = {name: f"/image/{number}" for name, number in shown.items()}
        return JSONResponse({"step": "trial", "trial": step.trial.id, **place, **images, "break": step.pause})

    def _set_cookie(self, response: Response, name: str, value: str) -> None:
        secure = self._access.url.startswith("https:")
        response.set_cookie(name, value, _COOKIE_SECONDS, httponly=True, samesite="strict", secure=secure)


def _client(found: object) -> dict[str, float | bool]:
    """What is kept of what the page says of the screen."""
    given = found if isinstance(found, dict) else {}
    numbers = {name: given[name] for name in ("width", "height", "pixel_ratio") if name in given}
    kept = {name: value for name, value in numbers.items() if is_number(value)}
    return {**kept, **({"touch": given["touch"]} if isinstance(given.get("touch"), bool) else {})}


def _timing(given: dict[str, Any]) -> dict[str, Any]:
    """What is kept of what the page measured; no other key, since some mean something in the file."""
    numbers = {name: given[name] for name in _MEASURED if is_number(given.get(name))}
    shown, visible = given.get("shown_ms"), given.get("visible")
    if isinstance(shown, list) and len(shown) <= _SHOWN and all(map(is_number, shown)):
        numbers["shown_ms"] = shown
    return {**numbers, **({"visible": visible} if isinstance(visible, bool) else {})}


def _image_number(text: str) -> int:
    """The number in the path of an image; -1, which no image has, for anything else."""
    return int(text) if re.fullmatch("[0-9]{1,18}", text) else -1


@cache
def _page_file(name: str) -> bytes:
    return files("lpips_lightning.judge.server").joinpath("page", name).read_bytes()


def _answers(status: int, sentence: Callable[[Exception], str]) -> Callable[[Request, Exception], Awaitable[Response]]:
    async def handler(request: Request, error: Exception) -> Response:
        return refusal(RefusedError(status, sentence(error)))

    return handler


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, RefusedError)
    return refusal(error)


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return refusal(RefusedError(error.status_code, f"{str(error.detail).lower()}; the page of this study is at /"))


async def _changed(request: Request, error: Exception) -> Response:
    _logger.error("%s", error)  # with the path, for who runs the study
    return refusal(RefusedError(410, "the file of this image has changed since the study was made; tell who runs it"))


async def _not_stored(request: Request, error: Exception) -> Response:
    _logger.error("%s", error)
    return refusal(RefusedError(503, "this could not be stored; try again"))


_HANDLERS: dict[Any, Any] = {
    RefusedError: _refused,
    HTTPException: _no_route,
    StudyError: _answers(400, str),
    ChangedImageError: _changed,
    sqlite3.Error: _not_stored,
    Exception: _answers(500, lambda error: "this went wrong on the server; try again, or tell who runs the study"),
}
