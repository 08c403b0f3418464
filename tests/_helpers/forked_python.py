"""Python processes that start with torch, torchvision and torchmetrics imported: forks of one that waits.

`run` takes what follows ``python`` on a command line, as ``subprocess.run([sys.executable, ...])`` would. The process
is a fork, but its code, streams, environment, working folder and end are its own: the interpreter shuts down as usual.
What it does not have is the second or two of every other process that imports torch. Nothing of this package, no
Lightning and no kornia is imported in it before its code runs.

Not for what depends on the start of a process: the imports of torch itself, ``python -X``, memory from the system.
"""

from __future__ import annotations

import atexit
import io
import os
import pickle
import runpy
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import types
import warnings
from pathlib import Path

IMPORTED = ("torch", "torchvision", "torchmetrics")
_server = []  # the process that waits and the socket to it, once it is needed


def run(args, *, stdout=None, stderr=None, capture_output=False, cwd=None, env=None, check=False, timeout=900, **more):
    """`subprocess.run` of Python with these arguments: ``-c CODE``, ``-m MODULE`` or a script, and what they take.

    Args:
        args: After ``python``.
        stdout: A file or its number; None: that of this process. `stderr` alike.
        stderr: See `stdout`.
        capture_output: Both are strings of the result.
        cwd: Its working folder.
        env: Its environment.
        check: A code other than 0 is a `subprocess.CalledProcessError`.
        timeout: Seconds after which it is killed.
        more: ``text``, ignored (all text is text); ``start_new_session``.

    Returns:
        A `subprocess.CompletedProcess`; its ``pid`` is that of the process.
    """
    if sys.platform != "linux":
        options = {"stdout": stdout, "stderr": stderr} if not capture_output else {"capture_output": True}
        options |= {"cwd": cwd, "env": env, "check": check, "timeout": timeout, "text": True, **more}
        return subprocess.run([sys.executable, *args], **options)
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        targets = (out, err) if capture_output else (stdout, stderr)
        numbers = [_number(target, standard) for standard, target in enumerate(targets, 1)]
        request = {
            "args": [str(arg) for arg in args],
            "cwd": str(cwd or Path.cwd()),
            "env": dict(os.environ if env is None else env),
            "new session": more.get("start_new_session", False),
        }
        pid, code = _ask(request, numbers, timeout)
        for file in (out, err):
            file.seek(0)
        texts = [file.read().decode() if capture_output else None for file in (out, err)]
    done = subprocess.CompletedProcess([sys.executable, *args], code, *texts)
    done.pid = pid
    if check:
        done.check_returncode()
    return done


def _number(target, standard):
    if target is None:
        return standard
    return target if isinstance(target, int) else target.fileno()


def _ask(request, numbers, timeout):
    """Id of the process and its exit code, once it has ended."""
    connection = _connection()
    with Path(os.devnull).open("rb") as nothing:
        socket.send_fds(connection, [b"x"], [nothing.fileno(), *numbers])
    _send(connection, request)
    pid = _receive(connection)
    connection.settimeout(timeout)
    try:
        return pid, _receive(connection)
    except TimeoutError:
        (os.killpg if request["new session"] else os.kill)(pid, signal.SIGKILL)
        connection.settimeout(None)
        _receive(connection)
        raise subprocess.TimeoutExpired(request["args"], timeout) from None
    finally:
        connection.settimeout(None)


def _connection():
    if not _server:
        ours, theirs = socket.socketpair()
        command = [sys.executable, __file__, str(theirs.fileno())]
        _server[:] = [subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL), ours]
        theirs.close()
        atexit.register(_end)
    return _server[1]


def _end():
    process, connection = _server
    connection.close()
    process.wait(60)


def _send(connection, what):
    content = pickle.dumps(what)
    connection.sendall(struct.pack("!I", len(content)) + content)


def _receive(connection):
    (length,) = struct.unpack("!I", _exactly(connection, 4))
    return pickle.loads(_exactly(connection, length))


def _exactly(connection, count):
    content = b""
    while len(content) < count:
        more = connection.recv(count - len(content))
        if not more:
            raise EOFError("the other end is closed")
        content += more
    return content


def _serve(connection):
    """Fork for every request; in a fork, return the request."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        mark, numbers, _, _ = socket.recv_fds(connection, 1, 3)
        if not mark:
            os._exit(0)
        request = _receive(connection)
        with warnings.catch_warnings(action="ignore"):  # of threads that a library may have started
            pid = os.fork()
        if pid == 0:
            connection.close()
            _take_over(request, numbers)
            return request
        for number in numbers:
            os.close(number)
        _send(connection, pid)
        _, status = os.waitpid(pid, 0)
        _send(connection, os.waitstatus_to_exitcode(status))


def _take_over(request, numbers):
    """What Python does before a main program: streams, environment, paths, arguments."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if request["new session"]:
        os.setsid()
    for place, number in enumerate(numbers):
        os.dup2(number, place)
        os.close(number)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    sys.stdin = sys.__stdin__ = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout = sys.__stdout__ = _output(1)
    sys.stderr = sys.__stderr__ = _output(2)
    args = request["args"]
    while args[0] == "-W":
        warnings.simplefilter(args[1])
        sys.warnoptions.append(args[1])
        del args[:2]
    named = [path for path in request["env"].get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:] = [*named, *(path for path in sys.path[1:] if path not in named)]
    if "torch" in sys.modules and "OMP_NUM_THREADS" in os.environ:
        sys.modules["torch"].set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def _output(number):
    unbuffered = bool(os.environ.get("PYTHONUNBUFFERED"))
    binary = open(number, "wb", 0 if unbuffered else -1, closefd=False)  # noqa: SIM115
    errors = "strict" if number == 1 else "backslashreplace"
    return io.TextIOWrapper(binary, "utf-8", errors, line_buffering=number == 2, write_through=unbuffered)


def _main(args):
    """Run what stands on the command line as the main program."""
    first, rest = args[0], args[1:]
    if first == "-c":
        sys.argv[:], sys.path[:0] = ["-c", *rest[1:]], [""]
        module = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(rest[0], "<string>", "exec"), module.__dict__)
    elif first == "-m":
        sys.argv[:], sys.path[:0] = rest, [str(Path.cwd())]
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv[:], sys.path[:0] = args, [str(Path(first).resolve().parent)]
        runpy.run_path(first, run_name="__main__")


if __name__ == "__main__":
    for name in IMPORTED:
        __import__(name)
    _main(_serve(socket.socket(fileno=int(sys.argv[1])))["args"])
