"""A real server: killed, stopped, slow clients, ports; and the command line around it."""

from __future__ import annotations

import contextlib
import itertools
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time

import httpx
import pytest
import uvicorn
from small_studies import first_candidate, small_study

from lpips_lightning.io.console import Console
from lpips_lightning.judge.server import serving
from lpips_lightning.judge.server.serving import access, listen, page_links, serve, summary
from lpips_lightning.judge.store import Study

SERVER = """
import sys
sys.path[:0] = {path!r}
from small_studies import first_candidate
from lpips_lightning.judge.server.serving import serve
from lpips_lightning.judge.store import Study
try:
    serve(Study.open({file!r}), first_candidate, port={port})
except KeyboardInterrupt:
    sys.exit(130)
"""


def free_port():
    with listen("127.0.0.1", 0) as listener:
        return listener.getsockname()[1]


def start(study, port):
    code = SERVER.format(path=sys.path, file=str(study.path), port=port)
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    end = time.monotonic() + 120
    while True:
        try:
            httpx.get(f"http://127.0.0.1:{port}/api/study").raise_for_status()
            return process
        except httpx.HTTPError:
            assert process.poll() is None and time.monotonic() < end, process.communicate()[0]
            time.sleep(0.05)


def stop(process, number):
    process.send_signal(number)
    printed = process.communicate(timeout=60)[0]
    return process.returncode, printed


def send(client, secret, step):
    sent = {"trial": step["trial"], "choice": "left", "response_ms": 300, "timing": {"visible": True}}
    return client.post("/api/answers", json=sent, headers={"X-Observer": secret})


def test_a_server_that_is_killed_between_and_during_answers_loses_and_doubles_none(tmp_path):
    study, port = small_study(tmp_path), free_port()
    confirmed, process = [], start(study, port)
    secrets = []
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
            for _ in range(2):
                found = client.post("/api/observers", json={"consent": True})
                secrets.append(found.json()["secret"])
        for turn in itertools.count():
            with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
                secret = secrets[turn % 2]
                try:
                    step = client.get("/api/next", headers={"X-Observer": secret}).json()
                except httpx.TransportError:  # killed after its answer to the last turn
                    process.communicate()
                    process = start(study, port)
                    continue
                if step["step"] == "session_done":
                    break
                if turn == 5:  # between answers
                    process.kill()
                elif turn == 9:  # while it is written
                    threading.Timer(0.003, process.kill).start()
                try:
                    assert send(client, secret, step).json()["kept"]
                    confirmed.append(step["trial"])
                except httpx.TransportError:
                    process.communicate()
                    process = start(study, port)
                    again = httpx.get(f"http://127.0.0.1:{port}/api/next", headers={"X-Observer": secret}).json()
                    stored = step["trial"] in study.answered_trials(1) | study.answered_trials(2)
                    assert (again["trial"] == step["trial"]) is not stored
                    with httpx.Client(base_url=f"http://127.0.0.1:{port}") as other:
                        assert send(other, secret, step).json()["kept"]
                    confirmed.append(step["trial"])
        code, printed = stop(process, signal.SIGINT)
        assert code == 130 and f"Stopped: {summary(study)}" in printed
    finally:
        process.kill()
        process.communicate()
    trials = [trial.id for session in study.sessions() for trial in study.trials(session.id)]
    assert len(confirmed) == len({*confirmed}) and {*confirmed} == {answer.trial for answer in study.answers()}
    assert {*confirmed} <= {*trials} and len(trials) - len(confirmed) <= 1
    assert study._rows("PRAGMA integrity_check") == [("ok",)]


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A server in a thread: its study, address, and what it printed."""
    monkeypatch.setattr(serving, "_HEAD_SECONDS", 0.3)
    monkeypatch.setattr(serving, "_REPORT_SECONDS", 0.05)
    servers, study, port = [], small_study(tmp_path), free_port()
    printed = (tmp_path / "printed").open("w+", encoding="utf-8")
    console = Console(file=printed, highlight=False, soft_wrap=True)

    class Server(uvicorn.Server):
        def __init__(self, config):
            super().__init__(config)
            servers.append(self)

    monkeypatch.setattr(uvicorn, "Server", Server)
    thread = threading.Thread(target=serve, args=(study, first_candidate), kwargs={"port": port, "console": console})
    thread.start()
    while not (servers and servers[0].started):
        assert thread.is_alive()
        time.sleep(0.01)
    yield study, port, tmp_path / "printed"
    servers[0].should_exit = True
    thread.join(timeout=30)
    printed.close()
    assert not thread.is_alive()


def ended(connection, seconds=10):
    """What a server sends until it ends the connection."""
    connection.settimeout(seconds)
    found = b""
    while part := connection.recv(65536):
        found += part
    return found


@pytest.mark.parametrize("sent", [b"", b"GET / HT", b"GET /api/study HTTP/1.1\r\nHost: localhost\r\nX-Slow: "])
def test_connections_whose_request_does_not_come_are_ended(served, sent):
    _, port, _ = served
    with socket.create_connection(("127.0.0.1", port)) as connection:
        begun = time.monotonic()
        connection.sendall(sent)
        assert ended(connection) == b"" and time.monotonic() - begun < 5


def test_a_second_slow_request_on_a_connection_is_ended_too_and_whole_ones_are_not(served):
    _, port, _ = served
    request = b"GET /api/study HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port)) as connection:
        for _ in range(3):
            connection.sendall(request)
            found = b""
            while not found.endswith(b"}"):
                found += connection.recv(65536)
            assert found.startswith(b"HTTP/1.1 200 OK\r\n")
            time.sleep(0.4)  # longer than a request may take
        connection.sendall(request[:30])
        assert ended(connection) == b""


def test_a_body_that_is_slow_or_endless_is_refused(served, monkeypatch):
    _, port, _ = served
    monkeypatch.setattr("lpips_lightning.judge.server.guard.BODY_SECONDS", 0.2)
    head = b"POST /api/observers HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(head + b"Content-Length: 50\r\n\r\n{")
        assert ended(connection).startswith(b"HTTP/1.1 408")
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n")
        try:
            for _ in range(25_000):
                connection.sendall(b"1000\r\n" + b"x" * 4096 + b"\r\n")
        except OSError:  # the server reads no further
            return
        pytest.fail("the server has read 100 MB")


def test_connections_whose_client_does_not_read_are_ended(served, monkeypatch):
    _, port, _ = served
    monkeypatch.setattr(serving, "_READ_SECONDS", 0.3)
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.settimeout(10)
        request = b"GET /judge.js HTTP/1.1\r\nHost: localhost\r\n\r\n"  # a reply of 25 kB
        with pytest.raises(ConnectionError):
            connection.sendall(request * 500_000)


def test_an_address_with_too_many_connections_gets_no_more_unless_it_is_this_machine(served, monkeypatch):
    _, port, _ = served
    monkeypatch.setattr(serving, "_FROM_ONE_ADDRESS", 3)
    address = ("127.0.0.1", port)
    request = b"GET /api/study HTTP/1.1\r\nHost: localhost\r\n\r\n"

    def is_answered(connection):
        try:
            connection.sendall(request)
            return bool(connection.recv(1000))
        except ConnectionError:
            return False

    with contextlib.ExitStack() as stack:
        others = [stack.enter_context(socket.create_connection(address)) for _ in range(4)]
        assert all(map(is_answered, others))  # a proxy
        monkeypatch.setattr(serving, "is_loopback", lambda host: False)
        assert not is_answered(stack.enter_context(socket.create_connection(address)))
        for one in others[:2]:
            one.close()
        end = time.monotonic() + 10
        while not is_answered(stack.enter_context(socket.create_connection(address))):
            assert time.monotonic() < end


def test_200_requests_that_are_no_http_do_no_harm(served):
    study, port, _ = served
    for number in range(200):
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(bytes([number % 256]) * (1 + number * 10) + b"\r\n\r\n")
    response = httpx.get(f"http://127.0.0.1:{port}/api/study")
    assert response.status_code == 200 and "server" not in response.headers
    assert not study.observers()


def test_observers_and_answers_are_printed_now_and_then(served):
    study, port, printed = served
    assert f"http://127.0.0.1:{port}/\n" in printed.read_text("utf-8")
    study.enroll()
    end = time.monotonic() + 20
    while "1 observer, 0 answers, 0 failed sessions" not in printed.read_text("utf-8"):
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_file_that_is_locked_for_a_while_ends_no_lines(served, monkeypatch):
    _, _, printed = served
    calls = []

    def locked(study):
        calls.append(study)
        if len(calls) < 3:
            raise sqlite3.OperationalError("database is locked")
        return "again"

    monkeypatch.setattr(serving, "summary", locked)
    end = time.monotonic() + 20
    while "again\n" not in printed.read_text("utf-8"):
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_file_that_cannot_be_written_is_told_before_anybody_answers(tmp_path):
    study = small_study(tmp_path)
    before = study._rows("SELECT * FROM study")
    study.check_writable()
    assert study._rows("SELECT * FROM study") == before
    study._rows("PRAGMA query_only = ON")
    with pytest.raises(ValueError, match=r"expected a file to write answers into, got '.*study\.db': .*readonly"):
        serve(study, first_candidate, port=0)


def test_a_port_in_use_and_wrong_addresses_are_told(tmp_path):
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            ValueError, match=rf"port: expected a free port, got {port} \(.*\); choose another with --port"
        ):
            listen("127.0.0.1", port)
    for port in (-1, 65536):
        with pytest.raises(ValueError, match="port: expected a port up to 65535, got"):
            listen("127.0.0.1", port)
    with pytest.raises(ValueError, match=r"host: expected an address of this machine, got '192\.0\.2\.1'"):
        listen("192.0.2.1", 0)
    with pytest.raises(ValueError, match="host: expected an address of this machine, got 'no such name'"):
        listen("no such name", 0)


def test_links_for_other_machines_carry_a_token_that_stays(tmp_path, monkeypatch):
    study = small_study(tmp_path)
    for host in ("127.0.0.1", "localhost", "::1", "127.5.5.5"):
        found = access(study, host)
        assert not found.token and found.is_served(f"{host}:80" if ":" not in host else f"[{host}]:80")
    assert page_links(access(study, "127.0.0.1"), "127.0.0.1", 80) == ["http://127.0.0.1:80/"]
    assert page_links(access(study, "::1"), "::1", 80) == ["http://[::1]:80/"]
    found = access(study, "0.0.0.0")
    assert len(found.token) == 32 and access(Study.open(study.path), "10.1.1.1").token == found.token
    for link in page_links(found, "0.0.0.0", 80):
        assert link.startswith("http://") and link.endswith(f":80/?token={found.token}")
    proxied = access(study, "127.0.0.1", "https://study.example.org/")
    assert page_links(proxied, "127.0.0.1", 80) == [f"https://study.example.org/?token={found.token}"]
    assert found.cookie == proxied.cookie != access(small_study(tmp_path / "other"), "::1").cookie
    for wrong in ("study.example.org", "ftp://a", "https://", "https://a/b"):
        with pytest.raises(ValueError, match="url: expected an address such as https://study.example.org, got"):
            access(study, "127.0.0.1", wrong)


def test_a_changed_image_is_found_before_serving(tmp_path):
    study = small_study(tmp_path)
    (study.folder / "2.png").write_bytes(b"other")
    with pytest.raises(ValueError, match=r"image 2: expected '.*2\.png' as it was when the study was made"):
        serve(study, first_candidate, port=0)
