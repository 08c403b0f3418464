"""The web application of a study: its JSON, its images, and what it refuses."""

from __future__ import annotations

import io
import json
import threading
import warnings

import image_file_kinds as kinds
import numpy as np
import pytest
from PIL import Image as PillowImage
from small_studies import GOOD_TIMING, first_candidate, small_design, small_study

from lpips_lightning.io.image_files import read_image
from lpips_lightning.judge.records import Design, Image, Item
from lpips_lightning.judge.server.app import create_app
from lpips_lightning.judge.server.guard import MAX_BODY, Access, Limits, Rate, RateLimiter, RefusedError, host_name
from lpips_lightning.judge.server.shown import ShownImages
from lpips_lightning.judge.store import Study

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # starlette 1 would rather have another client than httpx
    from starlette.testclient import TestClient

ORIGIN = "http://127.0.0.1:8765"
AGREED = {"consent": True, "client": {"width": 1280, "height": 720, "pixel_ratio": 1.5, "touch": False}}


def client_of(study, **options):
    return TestClient(create_app(study, first_candidate, **options), base_url=ORIGIN, raise_server_exceptions=False)


@pytest.fixture
def study(tmp_path):
    return small_study(tmp_path)


@pytest.fixture
def client(study):
    return client_of(study)


def enroll(client):
    """A new observer; the client has the cookie from here on."""
    response = client.post("/api/observers", json=AGREED)
    assert response.status_code == 201
    return response.json()


def refused(response, status):
    """The sentence of a refused request."""
    assert response.status_code == status, response.text
    assert [*response.json()] == ["error"]
    return response.json()["error"]


def test_the_page_learns_how_the_study_is_conducted_but_not_what_gives_it_away(client):
    told = client.get("/api/study").json()
    assert told["test"] == "2afc" and told["question"] == "Which?" and told["consent"] == "I agree."
    assert {"title", "instructions", "shown_ms", "gap_ms", "slip_ms", "break_every", "votes"} <= {*told}
    assert not {"sentinels", "pass_mark", "repeats", "seed", "active"} & {*told}


def test_the_server_does_not_stand_still_while_the_file_is_locked(client, study):
    held, free = threading.Event(), threading.Event()

    def hold():
        with study.transaction():
            held.set()
            free.wait(20)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    timer = threading.Timer(5, free.set)
    timer.start()
    assert client.get("/api/study").status_code == 200 and not free.is_set()
    timer.cancel()
    free.set()
    thread.join()


def test_an_observer_enrolls_with_consent_alone_and_only_known_numbers_are_stored(client, study):
    for wrong in ({}, {"consent": False}, {"consent": 1}, {"consent": "true"}):
        assert "consent: expected true" in refused(client.post("/api/observers", json=wrong), 400)
    assert not study.observers()
    client_facts = {**AGREED["client"], "name": "Ann", "width": "x" * 100, "height": 1e300}
    found = client.post("/api/observers", json={"consent": True, "client": client_facts}).json()
    assert found["observer"] == study.observers()[0].name and study.observer(found["secret"]) == study.observers()[0]
    (stored,) = study._rows("SELECT client FROM observer")
    assert json.loads(stored[0]) == {"pixel_ratio": 1.5, "touch": False}


def test_a_2afc_trial_shows_three_images_and_keeps_the_answer(client, study):
    enroll(client)
    step = client.get("/api/next").json()
    assert (step["step"], step["phase"], step["position"], step["total"], step["break"]) == (
        "trial",
        "practice",
        0,
        2,
        False,
    )
    assert {*step} == {"step", "trial", "phase", "position", "total", "ref", "left", "right", "break"}
    trial = study.trials(1)[0]
    item = study.items()[trial.item]
    left, right = (item.p1, item.p0) if trial.swapped else (item.p0, item.p1)
    assert [step[name] for name in ("ref", "left", "right")] == [f"/image/{n}" for n in (item.ref, left, right)]
    for name in ("ref", "left", "right"):
        image = study.images()[int(step[name].rpartition("/")[2])]
        response = client.get(step[name])
        assert response.content == (study.folder / image.path).read_bytes()
        assert response.headers["content-type"] == "image/png"
    sent = {"trial": step["trial"], "choice": "left", "response_ms": 812.5, "timing": {"visible": True, "frames": 50}}
    told = client.post("/api/answers", json=sent)
    assert told.json()["kept"] is True and {*told.json()["feedback"]} == {"right", "expected"}
    (kept,) = study.answers()
    assert (kept.choice, kept.response_ms, kept.timing) == ("p1" if trial.swapped else "p0", 812.5, sent["timing"])
    assert client.post("/api/answers", json=sent).json() == told.json()  # a lost reply
    assert len(study.answers()) == 1


def test_a_jnd_trial_shows_the_reference_first(tmp_path):
    study = small_study(tmp_path, small_design("jnd", shown_ms=800))
    client = client_of(study)
    enroll(client)
    step = client.get("/api/next").json()
    item = study.items()[study.trials(1)[0].item]
    assert (step["first"], step["second"]) == (f"/image/{item.ref}", f"/image/{item.p0}") and "left" not in step
    timing = {"visible": True, "shown_ms": [800, 830], "gap_ms": 250}
    sent = {"trial": step["trial"], "choice": "same", "response_ms": 100, "timing": timing}
    assert client.post("/api/answers", json=sent).json()["feedback"]["expected"] == item.expected
    assert study.answers()[0].slipped is True


def whole_session(client):
    """Answer by HTTP until the session is done."""
    while (step := client.get("/api/next").json())["step"] == "trial":
        sent = {"trial": step["trial"], "choice": "left", "response_ms": 500, "timing": GOOD_TIMING}
        told = client.post("/api/answers", json=sent).json()
        assert told["kept"] and (told["feedback"] is None) == (step["phase"] == "main")
    return step


def test_sessions_end_without_telling_the_verdict_and_another_one_can_follow(client, study):
    enroll(client)
    assert whole_session(client) == {"step": "session_done", "session": 1, "answered": 12, "can_continue": True}
    assert client.get("/api/next").json()["step"] == "session_done"  # until asked for
    step = client.post("/api/sessions", json={}).json()
    assert (step["step"], step["phase"]) == ("trial", "main")
    assert client.post("/api/sessions", json={}).json() == step == client.get("/api/next").json()
    assert whole_session(client) == {"step": "session_done", "session": 2, "answered": 6, "can_continue": False}
    assert client.post("/api/sessions", json={}).json()["step"] == "session_done"
    assert len(study.sessions()) == 2 and all(session.passed is not None for session in study.sessions())


def test_an_observer_comes_back_by_cookie_header_or_secret(client, study):
    found = enroll(client)
    step = client.get("/api/next").json()
    other = client_of(study)
    assert "nobody" in refused(other.get("/api/next"), 401)
    assert other.get("/api/next", headers={"X-Observer": found["secret"]}).json() == step
    assert other.post("/api/resume", json={"secret": found["secret"]}).json() == {"observer": found["observer"]}
    assert other.get("/api/next").json() == step
    assert "somebody else" in refused(other.get("/api/next", headers={"X-Observer": "x" * 32}), 401)
    for wrong in ("x" * 32, ""):
        refused(other.post("/api/resume", json={"secret": wrong}), 401)
    for wrong in (None, 5, "\ud800", "é"):
        refused(other.post("/api/resume", content=json.dumps({"secret": wrong}), headers=JSON), 400)


JSON = {"Content-Type": "application/json"}


def test_cookies_are_for_this_site_and_study_alone(study, tmp_path):
    response = client_of(study).post("/api/observers", json=AGREED)
    cookie = response.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie and "secure" not in cookie
    access = Access(token="t", url="https://study.example.org", cookie="_1")
    proxied = client_of(study, access=access)
    response = proxied.post("/api/observers", json=AGREED, headers={"X-Study-Token": "t"})
    assert (
        response.headers["set-cookie"].startswith("observer_1=") and "secure" in response.headers["set-cookie"].lower()
    )


@pytest.mark.parametrize("path", ["/", "/judge.js", "/judge.css", "/api/study", "/image/1", "/missing", "/api/answers"])
def test_every_response_has_safe_headers(client, path):
    headers = client.get(path).headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy
    assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"
    assert "server" not in headers
    assert headers["cache-control"] == ("no-cache" if path in ("/", "/judge.js", "/judge.css") else "no-store")


def test_the_page_needs_nothing_from_elsewhere_and_nothing_inline(client):
    page = client.get("/").text
    assert 'src="/judge.js"' in page or 'src="judge.js"' in page
    assert "http" not in page.replace("http-equiv", "") and "<style" not in page and " onclick" not in page
    assert client.get("/judge.js").headers["content-type"].startswith("text/javascript")


@pytest.mark.parametrize(
    "path",
    [
        *("/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/image/../../store.py", "/image/%2e%2e%2fstudy.db"),
        *("/image/1/../../study.db", "/image/-1", "/image/0", "/image/1.png", "/image/99999999999999999999999"),
        f"/image/{'9' * 5000}",
        *("/judge.js/../index.html%00", "//etc/passwd", "/study.db", "/images/1.png", "/page/index.html"),
    ],
)
def test_no_other_file_is_readable(client, path):
    enroll(client)
    assert len(refused(client.get(path), 404)) > 10


def test_images_are_for_observers(client):
    assert "nobody" in refused(client.get("/image/1"), 401)


def test_an_image_that_was_changed_or_deleted_is_refused_and_the_reason_is_logged(client, study, caplog):
    enroll(client)
    path = study.folder / study.images()[3].path
    path.write_bytes(path.read_bytes() + b"\0")
    assert "has changed since the study was made" in refused(client.get("/image/3"), 410)
    assert str(path) in caplog.text and str(path.parent) not in client.get("/image/3").text
    path.unlink()
    refused(client.get("/image/3"), 410)
    assert client.get("/image/4").status_code == 200


def test_images_are_kept_by_a_browser_only_under_their_content(client, study):
    enroll(client)
    response = client.get("/image/3")
    assert response.headers["cache-control"] == "private, no-cache"
    again = client.get("/image/3", headers={"If-None-Match": response.headers["etag"]})
    assert again.status_code == 304 and again.content == b""
    assert client.get("/image/4", headers={"If-None-Match": response.headers["etag"]}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost@evil.example", "", "10.1.2.3", "a b"]
)
def test_other_hosts_are_refused(client, host):
    for path in ("/", "/api/study"):
        assert "address in the link" in refused(client.get(path, headers={"Host": host}), 421)


def test_who_runs_the_study_is_told_of_names_that_are_not_served_a_few_times(client, caplog):
    for number in range(20):
        client.get("/", headers={"Host": f"{number % 10}.tunnel.example"})
    assert caplog.text.count("start with --url") == 5 and "'0.tunnel.example'" in caplog.text


@pytest.mark.parametrize("host", ["127.0.0.1:9", "localhost", "LOCALHOST:8765", "[::1]:8765", "localhost.:1"])
def test_names_of_this_machine_are_served_at_any_port(client, host):
    assert client.get("/api/study", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "http://127.0.0.1:8766"},
        {"Origin": "http://[127.0.0.1:8765"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": ORIGIN, "Sec-Fetch-Site": "cross-site"},
        {"Origin": "https://evil.example", "Sec-Fetch-Site": "same-origin"},
    ],
)
def test_requests_from_other_pages_are_refused(client, study, headers):
    enroll(client)
    step = client.get("/api/next").json()
    sent = {"trial": step["trial"], "choice": "left", "response_ms": 1}
    for path, body in (("answers", sent), ("observers", AGREED), ("sessions", {}), ("resume", {"secret": ""})):
        assert "another page" in refused(client.post(f"/api/{path}", json=body, headers=headers), 403)
    refused(client.get("/api/next", headers=headers), 403)
    assert not study.answers() and len(study.observers()) == 1


@pytest.mark.parametrize(
    "headers",
    [{"Origin": ORIGIN}, {"Sec-Fetch-Site": "same-origin"}, {"Origin": "null", "Sec-Fetch-Site": "same-origin"}],
)
def test_requests_from_the_page_are_served(client, headers):
    assert client.post("/api/observers", json=AGREED, headers=headers).status_code == 201


@pytest.mark.parametrize(
    ("content", "headers", "status"),
    [
        (b"x" * (MAX_BODY + 1), JSON, 413),
        (b"{}", {**JSON, "Content-Length": "9" * 30}, 413),
        (b"{}", {"Content-Type": "text/plain"}, 415),
        (b"{}", {"Content-Type": "application/x-www-form-urlencoded"}, 415),
        (b"{}", {}, 415),
        (b"{", JSON, 400),
        (b"", JSON, 400),
        (b"[]", JSON, 400),
        (b"null", JSON, 400),
        (b"\xff\xfe", JSON, 400),
        (b'{"trial": NaN}', JSON, 400),
        (b"[" * 8000, JSON, 400),
    ],
)
def test_bodies_that_are_no_small_json_object_are_refused(client, study, content, headers, status):
    enroll(client)
    for path in ("observers", "answers", "sessions", "resume"):
        refused(client.post(f"/api/{path}", content=content, headers=headers), status)
    assert len(study.observers()) == 1 and not study.answers()


def test_a_body_in_pieces_is_read_no_further_than_allowed(client):
    read = []

    def pieces():
        for _ in range(1000):
            read.append(1024)
            yield b"x" * 1024

    response = client.post("/api/observers", content=pieces(), headers=JSON)
    refused(response, 413)
    assert response.headers["connection"] == "close"


GOOD = {"trial": 1, "choice": "left", "response_ms": 5, "timing": {}}


@pytest.mark.parametrize(
    "change",
    [
        *({"trial": value} for value in (None, "1", 1.5, True, -1, 2, 2**63, 10**300)),
        *({"choice": value} for value in (None, 5, "p0", "same", "LEFT", "", "\ud800", ["left"])),
        *({"response_ms": value} for value in (None, "5", -1, 1e300, True, [], 10**400)),
        *({"timing": value} for value in (None, 5, "x", [])),
    ],
)
def test_wrong_answers_are_refused_and_nothing_is_lost(client, study, change):
    enroll(client)
    client.get("/api/next")
    refused(client.post("/api/answers", content=json.dumps({**GOOD, **change}), headers=JSON), 400)
    assert not study.answers()
    assert client.post("/api/answers", json=GOOD).json()["kept"]


def test_of_what_the_page_measured_only_known_numbers_are_stored(client, study):
    enroll(client)
    client.get("/api/next")
    kept = {"frames": 60, "refresh_ms": 16.67, "visible": True, "scale": 1.5}
    wrong = {"simulated": True, "shown_ms": [5, "<b>"], "gap_ms": {}, "pixel_ratio": 1e300, "other": [[1]]}
    client.post("/api/answers", json={**GOOD, "timing": {**kept, **wrong}})
    assert study.answers()[0].timing == kept


def test_a_trial_of_another_observer_cannot_be_answered(study):
    one, other = client_of(study), client_of(study)
    enroll(one), enroll(other)
    one.get("/api/next")
    assert "one of this observer" in refused(other.post("/api/answers", json=GOOD), 400)


@pytest.mark.parametrize("method", ["PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "POST"])
def test_other_methods_are_refused(client, method):
    refused(client.request(method, "/api/study"), 405)


def test_a_disk_that_is_full_is_told_and_the_answer_can_be_sent_again(client, study, monkeypatch):
    import sqlite3

    enroll(client)
    client.get("/api/next")
    with monkeypatch.context() as patch:

        def fail(*args, **options):
            raise sqlite3.OperationalError("database or disk is full")

        patch.setattr(Study, "answer", fail)
        assert "try again" in refused(client.post("/api/answers", json=GOOD), 503)
    assert client.post("/api/answers", json=GOOD).json()["kept"] and len(study.answers()) == 1


def test_nothing_is_confirmed_once_the_file_of_the_study_is_gone(client, study, caplog):
    enroll(client)
    client.get("/api/next")
    elsewhere = study.path.rename(study.path.with_name("moved.db"))
    refused(client.post("/api/answers", json=GOOD), 503)
    refused(client.post("/api/observers", json=AGREED), 503)
    assert f"'{study.path}' was deleted, moved or replaced" in caplog.text
    elsewhere.rename(study.path)
    assert client.post("/api/answers", json=GOOD).json()["kept"]


class TestToken:
    """The link's token, for other machines."""

    @pytest.fixture
    def guarded(self, study):
        return client_of(study, access=Access(frozenset({"lab.example"}), "secret-token", cookie="_1"))

    def test_nothing_of_the_study_is_told_without_it(self, guarded, study):
        for given in (None, "", "secret-toke", "secret-token2", "é".encode("latin-1"), "secret token"):
            headers = {} if given is None else {"X-Study-Token": given}
            for path in ("/api/study", "/api/next", "/image/1"):
                assert "whole link" in refused(guarded.get(path, headers=headers), 403)
            refused(guarded.post("/api/observers", json=AGREED, headers=headers), 403)
        assert "set-cookie" not in guarded.get("/?token=wrong").headers
        assert not study.observers()

    def test_the_link_opens_the_study_for_the_browser(self, guarded):
        page = guarded.get("/?token=secret-token")
        assert page.status_code == 200 and page.headers["set-cookie"].startswith("token_1=secret-token; HttpOnly")
        assert guarded.get("/api/study").status_code == 200
        guarded.cookies.clear()
        assert guarded.get("/api/study", headers={"X-Study-Token": "secret-token"}).status_code == 200

    @pytest.mark.parametrize(
        ("host", "served"), [("lab.example:80", True), ("10.0.0.7:80", True), ("evil.example", False)]
    )
    def test_addresses_in_figures_are_served_with_it(self, guarded, host, served):
        headers = {"Host": host, "X-Study-Token": "secret-token"}
        assert guarded.get("/api/study", headers=headers).status_code == (200 if served else 421)

    def test_a_proxy_may_have_another_name(self, study):
        client = client_of(study, access=Access(token="t", url="https://study.example.org"))
        for host in ("study.example.org", "127.0.0.1:8765"):
            headers = {"X-Study-Token": "t", "Host": host, "Origin": "https://study.example.org"}
            assert client.post("/api/observers", json=AGREED, headers=headers).status_code == 201


class TestLimits:
    """Rates of requests."""

    def test_a_bucket_empties_and_fills_by_key(self):
        now = [0.0]
        limiter = RateLimiter(Rate(3, 0.5), keys=2, clock=lambda: now[0])
        assert [limiter.wait("a") for _ in range(4)] == [0, 0, 0, 2] and limiter.wait("b") == 0
        now[0] = 2.0
        assert limiter.wait("a") == 0 and limiter.wait("a") == 2
        limiter.wait("c")
        assert len(limiter._left) == 2
        with pytest.raises(RefusedError, match="too many requests; try again in 2 s"):
            limiter.check("a")

    def test_enrollment_is_limited_more_than_the_rest(self, study):
        client = client_of(study, limits=Limits(enroll=Rate(5, 0.01)))
        found = [client.post("/api/observers", json=AGREED).status_code for _ in range(20)]
        assert found == [201] * 5 + [429] * 15 and len(study.observers()) == 5
        whole_session(client)  # who is enrolled goes on

    def test_one_observer_in_a_hurry_does_not_slow_others(self, study):
        client, other = (client_of(study, limits=Limits(observer=Rate(10, 0.001))) for _ in range(2))
        enroll(client)
        assert [client.get("/api/next").status_code for _ in range(12)] == [200] * 10 + [429] * 2
        response = client.get("/api/next")
        assert response.json()["error"] == f"too many requests; try again in {response.headers['retry-after']} s"
        assert 900 < int(response.headers["retry-after"]) <= 1000
        enroll(other)
        assert other.get("/api/next").status_code == 200

    def test_a_flood_from_one_address_is_refused(self, study):
        client = client_of(study, limits=Limits(address=Rate(50, 0.001)))
        assert [client.get("/x").status_code for _ in range(60)] == [404] * 50 + [429] * 10

    def test_a_session_as_fast_as_a_person_can_is_within_them(self, client):
        enroll(client)
        whole_session(client)


def test_200_bad_requests_lose_nothing(client, study):
    enroll(client)
    step = client.get("/api/next").json()
    bad = [
        lambda n: client.post("/api/answers", json={**GOOD, "trial": n + 1000}),
        lambda n: client.post("/api/answers", content=b"\0" * n, headers=JSON),
        lambda n: client.get(f"/{'../' * n}etc/passwd"),
        lambda n: client.get("/api/next", headers={"X-Observer": f"{n}", "Origin": "null"}),
    ]
    assert all(400 <= bad[n % 4](n).status_code < 500 for n in range(200))
    assert client.get("/api/next").json() == step and not study.answers()
    assert whole_session(client)["answered"] == 12 and len(study.answers()) == 14


def test_observers_in_threads_get_whole_sessions(study):
    ends, errors = [], []

    def observer():
        try:
            client = client_of(study)
            enroll(client)
            ends.append(whole_session(client))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=observer) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and len(ends) == 4
    trials = [trial.id for session in study.sessions() for trial in study.trials(session.id)]
    assert len(trials) == len(study.answers()) == sum(end["answered"] + 2 for end in ends)


def jpeg_exif(orientation):
    exif = PillowImage.Exif()
    exif[274] = orientation
    return exif


NOISE = kinds.noise(12, 16)
PROFILE = b"0" * 200
IMAGES = {
    "plain.png": (kinds.saved(NOISE, "PNG"), "image/png", True),
    "gray.png": (kinds.saved(NOISE[:, :, :1], "PNG"), "image/png", True),
    "palette.png": (kinds.saved(NOISE, "PNG", "P"), "image/png", True),
    "plain.jpg": (kinds.saved(NOISE, "JPEG"), "image/jpeg", True),
    "named.bin.png": (kinds.saved(NOISE, "JPEG"), "image/jpeg", True),
    "plain.webp": (kinds.saved(NOISE, "WEBP", lossless=True), "image/webp", True),
    "plain.gif": (kinds.saved(NOISE, "GIF"), "image/gif", True),
    "profile.png": (kinds.saved(NOISE, "PNG", icc_profile=PROFILE), "image/png", False),
    "profile.jpg": (kinds.saved(NOISE, "JPEG", icc_profile=PROFILE), "image/png", False),
    "turned.jpg": (kinds.saved(NOISE, "JPEG", exif=jpeg_exif(6)), "image/png", False),
    "turned.png": (kinds.saved(NOISE, "PNG", exif=jpeg_exif(8)), "image/png", False),
    "upright.jpg": (kinds.saved(NOISE, "JPEG", exif=jpeg_exif(1)), "image/jpeg", True),
    "clear.png": (kinds.saved(kinds.noise(12, 16, 4), "PNG"), "image/png", False),
    "clear.webp": (kinds.saved(kinds.noise(12, 16, 4), "WEBP", lossless=True), "image/png", False),
    "deep.png": (kinds.deep_png(kinds.noise(12, 16, 3, 65536), kinds.RGB), "image/png", False),
    "deepgray.png": (kinds.deep_png(kinds.noise(12, 16, 1, 65536), kinds.GRAY), "image/png", False),
    "plain.tif": (kinds.saved(NOISE, "TIFF"), "image/png", False),
    "deep.tif": (kinds.tiff(kinds.noise(12, 16, 1, 65536), 1), "image/png", False),
    "plain.bmp": (kinds.saved(NOISE, "BMP"), "image/png", False),
    "gamma.png": (
        kinds.saved(NOISE, "PNG").replace(b"IDAT", b"IDAT", 1)[:33]
        + kinds.chunk(b"gAMA", (100000).to_bytes(4, "big"))
        + kinds.saved(NOISE, "PNG")[33:],
        "image/png",
        False,
    ),
}


@pytest.mark.parametrize("name", IMAGES)
def test_people_see_the_pixels_that_the_metric_reads(tmp_path, name):
    """What is sent has no profile, orientation or transparency that a browser would apply, and equals `read_image`."""
    from hashlib import sha256

    data, media_type, untouched = IMAGES[name]
    (tmp_path / "images").mkdir()
    path = tmp_path / "images" / name
    path.write_bytes(data)
    height, width = read_image(path).shape[1:]
    image = Image(1, name, sha256(data).hexdigest(), width, height)
    study = Study.create(tmp_path / "study.db", Design("jnd"), path.parent, [image], [Item(1, "judged", 1, 1)])
    images = ShownImages(study)
    shown = images.get(1)
    assert shown.media_type == media_type and (shown.content == data) is untouched
    assert images.get(1) == shown  # from the cache
    with PillowImage.open(io.BytesIO(shown.content)) as opened:
        assert opened.format.lower() == media_type.partition("/")[2]
        assert not {"icc_profile", "gamma", "transparency"} & {*opened.info} and opened.getexif().get(274, 1) == 1
        pixels = np.asarray(opened.convert("RGB"))
    assert np.array_equal(pixels, read_image(path).permute(1, 2, 0).numpy())


@pytest.mark.parametrize(
    ("host", "name"),
    [("a.b:80", "a.b"), ("[2001:DB8::1]:80", "2001:db8::1"), ("a:b:c", ""), ("a/b", ""), ("a?b", ""), ("x:", "x")],
)
def test_names_are_read_from_hosts(host, name):
    assert host_name(host) == name
