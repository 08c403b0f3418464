"""Standard streams, other open files and pipes by name: recognized without opening, read once, written after prints."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from lpips_lightning.evaluation.opinion_scores import read_opinion_scores
from lpips_lightning.io.atomic import atomic_write, check_output_path
from lpips_lightning.io.image_decoding import read_header, read_pixels
from lpips_lightning.io.image_files import read_image
from lpips_lightning.io.streams import is_stream, name_streams, open_file, read_bytes
from lpips_lightning.io.tables import read_table, write_table
from lpips_lightning.weights import WeightsError, read_tensors

posix = pytest.mark.skipif(os.name != "posix", reason="there are no FIFOs and no /dev/fd")
linux = pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
ROOT = Path(__file__).parents[3]


def feed(path, content):
    threading.Thread(target=path.write_bytes, args=(content,), daemon=True).start()
    return path


@pytest.mark.parametrize(
    ("path", "number"),
    [
        ("/dev/stdin", 0),
        ("/dev/stdout", 1),
        ("/dev/stderr", 2),
        ("/dev/fd/63", 63),
        ("/dev/../dev/stdout", None if sys.platform != "linux" else 1),
        ("stdout", None),
        ("/dev/fd", None),
        ("/dev/null", None),
        ("-", None),
        ("", None),
    ],
)
def test_open_files_have_names(path, number):
    assert open_file(path) == number
    assert is_stream(path) == (number is not None or path == "/dev/null")


@linux
def test_open_files_have_names_in_proc_and_through_links(tmp_path):
    (tmp_path / "out").symlink_to("/proc/self/fd/1")
    (tmp_path / "folder").symlink_to("/dev/fd")
    (tmp_path / "again").symlink_to("out")
    for path in ("/proc/self/fd/1", f"/proc/{os.getpid()}/fd/1", "/proc/thread-self/fd/1", "/dev/fd/1"):
        assert open_file(path) == 1, path
    for name in ("out", "again", "folder/1"):
        assert open_file(tmp_path / name) == 1, name
    assert open_file(f"/proc/{os.getppid()}/fd/1") is None  # another process's
    (tmp_path / "loop").symlink_to("loop")
    assert open_file(tmp_path / "loop") is None


def test_plain_files_folders_and_missing_files_are_no_streams(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("file")
    assert not any(is_stream(tmp_path / name) for name in ("file", "link", "gone", "."))


PRINTS = """
import os, sys
from lpips_lightning.io.atomic import atomic_write
print("before")
with atomic_write(sys.argv[1]) as temporary:
    temporary.write_text("data\\n")
print("after")
"""


@linux
@pytest.mark.parametrize("mode", ["w", "a"])
@pytest.mark.parametrize("to", ["/dev/stdout", "/proc/self/fd/1", "/dev/fd/1", "log", "link"])
def test_a_redirected_output_gets_the_data_between_what_is_printed(to, mode, tmp_path):
    (tmp_path / "log").write_text("old\n")
    (tmp_path / "link").symlink_to("log")
    before = (tmp_path / "log").stat()
    with (tmp_path / "log").open(mode) as log:
        subprocess.run([sys.executable, "-c", PRINTS, to], stdout=log, cwd=tmp_path, check=True, env=environment())
    assert (tmp_path / "log").read_text() == ("old\n" if mode == "a" else "") + "before\ndata\nafter\n"
    assert os.path.samestat(before, (tmp_path / "log").stat())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "log"]


@linux
def test_other_open_files_keep_their_place(tmp_path):
    with (tmp_path / "file").open("wb") as file:
        file.write(b"head\n")
        file.flush()
        for number in range(2):
            write_table(f"/dev/fd/{file.fileno()}", ["a"], [[number]])
    assert (tmp_path / "file").read_bytes() == b"head\na\n0\na\n1\n"
    with (tmp_path / "file").open("rb") as file:
        assert file.read(5) == b"head\n"
        os.lseek(file.fileno(), 5, os.SEEK_SET)  # Python has read further
        assert read_bytes(f"/dev/fd/{file.fileno()}") == b"a\n0\na\n1\n"
        with pytest.raises(ValueError, match="csv: expected a file to write, got '/dev/fd/.*', which is open for read"):
            check_output_path(f"/dev/fd/{file.fileno()}", "csv")
    with pytest.raises(ValueError, match="which is closed"):
        check_output_path("/dev/fd/999", "csv")
    with pytest.raises(OSError, match="/dev/fd/999: expected a file, .* that is closed"), atomic_write("/dev/fd/999"):
        pass


@linux
def test_a_closed_standard_output_is_an_error():
    command = f"exec \"{sys.executable}\" -c '{PRINTS}' /dev/stdout >&-"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == 1 and "/dev/stdout: expected a file, pipe or device to write, got one that is closed" in (
        done.stderr
    )


def environment():
    return {**os.environ, "PYTHONPATH": str(ROOT)}


@pytest.mark.parametrize("stream", [io.StringIO, lambda: io.TextIOWrapper(io.BytesIO(), encoding="utf-8")])
def test_an_output_that_python_captures_gets_the_data(stream):
    with contextlib.redirect_stdout(stream()) as said:
        print("before")
        write_table("/dev/stdout", ["ü"], [["b"]])
        print("after")
    said.seek(0)
    assert said.read() == "before\nü\nb\nafter\n"


@pytest.mark.parametrize("stream", [io.StringIO, lambda text: io.TextIOWrapper(io.BytesIO(text.encode()), "utf-8")])
def test_a_table_is_read_from_standard_input(stream, monkeypatch):
    monkeypatch.setattr(sys, "stdin", stream("a;b\r\nü;2\n"))
    table = read_table("/dev/stdin")
    assert table.columns == ("a", "b") and [row.values for row in table.rows] == [{"a": "ü", "b": "2"}]
    assert table.rows[0].place == "/dev/stdin, line 2"
    with pytest.raises(ValueError, match="/dev/stdin: expected a header and rows, got an empty file"):
        read_table("/dev/stdin")


@posix
def test_tables_are_read_from_pipes_and_not_from_folders(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    table = read_table(feed(tmp_path / "pipe", b"\xef\xbb\xbfa,b\n1,2\n"))
    assert table.columns == ("a", "b") and [row.number("b") for row in table.rows] == [2]
    with pytest.raises(ValueError, match="pipe: expected UTF-8 text, got byte 0xff at 2"):
        read_table(feed(tmp_path / "pipe", b"a\n\xff"))
    with pytest.raises(FileNotFoundError, match="expected a CSV file, got a folder"):
        read_table(tmp_path)


@linux
def test_paths_in_a_table_from_a_stream_start_at_the_current_folder(tmp_path, monkeypatch):
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.StringIO("reference,distorted,score\na.png,b.png,1\n"))
    (opinion,) = read_opinion_scores("/dev/stdin")
    assert opinion.frames == ((Path("a.png"), Path("b.png")),)


@posix
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "16 bits", "gray"])
def test_images_are_read_from_pipes_with_one_pass(kind, tmp_path):
    numbers = np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8)
    path, pipe = tmp_path / "image.png", tmp_path / "pipe"
    if kind == "16 bits":
        Image.fromarray(numbers[:, :, 0].astype(np.uint16) * 257).save(path)
    elif kind == "gray":
        Image.fromarray(numbers[:, :, 0]).save(path)
    else:
        Image.fromarray(numbers).save(path, kind)
    os.mkfifo(pipe)
    header = read_header(feed(pipe, path.read_bytes()))
    assert header == read_header(path) and header.content == path.read_bytes()
    assert read_header(path).content is None
    assert np.array_equal(read_pixels(pipe, header.content), read_pixels(path))
    assert read_image(feed(pipe, path.read_bytes())).equal(read_image(path))


@posix
def test_damaged_images_in_pipes_are_named(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="pipe: expected a readable image, got an empty stream"):
        read_header(feed(tmp_path / "pipe", b""))
    with pytest.raises(ValueError, match="pipe: expected a readable image, got UnidentifiedImageError"):
        read_header(feed(tmp_path / "pipe", b"no image"))


@posix
def test_weights_in_a_pipe_are_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.raises(WeightsError, match="expected a regular file of tensors, got a pipe or device; copy it to a"):
        read_tensors(tmp_path / "pipe.safetensors")


def test_dashes_become_streams():
    options = SimpleNamespace(csv="-", json="a.json", file="-", other=None)
    assert name_streams(options, ["file", "other"], ["csv", "json"])
    assert vars(options) == {"csv": "/dev/stdout", "json": "a.json", "file": "/dev/stdin", "other": None}
    assert not name_streams(options, ["file"], ["csv", "json"])  # a name, not a dash
    options = SimpleNamespace(csv="./-", val_csv="-", json="-")
    assert not name_streams(options, outputs=["csv"]) and options.csv == "./-"
    with pytest.raises(ValueError, match="^val-csv and json: expected '-' for one of them, got it for both"):
        name_streams(options, outputs=["val_csv", "json"])
