"""``-``, pipes and redirections on the command line; ``python -m lpips_lightning``."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import forked_python
import pytest
import torch
from crash_jobs import written_triplets
from PIL import Image
from safetensors.torch import load
from small_data import write_noise

import lpips_lightning.cli
from lpips_lightning import LPIPS, __version__
from lpips_lightning.cli import commands as cli
from lpips_lightning.cli.options import choose_device
from lpips_lightning.io.image_files import read_image
from lpips_lightning.io.tables import read_table

posix = pytest.mark.skipif(os.name != "posix", reason="there are no FIFOs")
linux = pytest.mark.skipif(sys.platform != "linux", reason="/dev/fd of a pipe can be opened on Linux")
ROOT = Path(__file__).parents[3]
COMPARE = ["compare", "--net", "embedded"]
PAIRS = ("ab", "ac", "ad", "bc", "bd", "cd")
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def net():
    return LPIPS("embedded")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder: images/a.png to images/d.png, and judgments of them."""
    data = written_triplets(tmp_path / "images")
    monkeypatch.chdir(tmp_path)
    rows = [f"{triplet.ref},{triplet.p0},{triplet.p1},{triplet.judge}" for triplet in data.triplets]
    Path("judge.csv").write_text("\n".join(["ref,p0,p1,judge", *rows]))
    pairs = [f"images/{one}.png,images/{two}.png,{number}" for number, (one, two) in enumerate(PAIRS)]
    Path("opinions.csv").write_text("\n".join(["reference,distorted,score", *pairs]))
    return tmp_path


@pytest.fixture
def stdin(monkeypatch):
    def give(content):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))

    return give


def distance(net, first="images/a.png", second="images/b.png"):
    return float(net(read_image(first)[None], read_image(second)[None]))


def everything(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.mark.parametrize("inputs", [["images/a.png", "images/b.png"], ["images", "images"], ["images", "--pairs"]])
@pytest.mark.parametrize("option", ["--csv", "--json"])
def test_standard_output_gets_the_results_alone_and_standard_error_the_text(option, inputs, folder, capsys, net):
    before = everything(folder)
    assert cli.main([*COMPARE, *inputs, option, "result"]) == 0
    printed = capsys.readouterr().out
    assert cli.main([*COMPARE, *inputs, option, "-"]) == 0
    out, err = capsys.readouterr()
    assert out == Path("result").read_text()
    assert printed in err and net.fingerprint in printed
    assert json.loads(out) if option == "--json" else len(list(csv.reader(io.StringIO(out)))) >= 2
    assert everything(folder) == [*before, "result"]


def test_a_heatmap_goes_to_standard_output(folder, capsysbinary):
    for option, width in (("--map-raw", 32), ("--map", 2070)):
        assert cli.main([*COMPARE, "images/a.png", "images/b.png", option, "-"]) == 0
        out, err = capsysbinary.readouterr()
        with Image.open(io.BytesIO(out)) as image:
            assert image.format == "PNG" and image.width == width
        assert b"LPIPS embedded" in err


def test_a_dash_is_one_output_and_a_folder_is_none(folder, capsys):
    assert cli.main([*COMPARE, "images/a.png", "images/b.png", "--csv", "-", "--json", "-"]) == 2
    assert "--csv and --json: expected '-' for one of them, got it for both" in capsys.readouterr().err
    assert cli.main([*COMPARE, "images", "images", "--map", "-"]) == 2
    assert "map: expected a folder to write, got '/dev/stdout', which is no folder" in capsys.readouterr().err
    assert cli.main([*COMPARE, "images/a.png", "images/b.png", "--csv", "./-"]) == 0
    assert Path("./-").is_file()


def test_a_named_standard_output_follows_the_text(folder, capsys):
    assert cli.main([*COMPARE, "images/a.png", "images/b.png", "--csv", "/dev/stdout"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("LPIPS embedded") and lines[2] == "a,b,lpips" and len(lines) == 4


def test_results_are_written_where_standard_output_is_closed(folder, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)  # as Python sets it after >&-
    assert cli.main([*COMPARE, "images/a.png", "images/b.png", "--csv", "result"]) == 0
    assert len(read_table("result").rows) == 1


def test_an_image_comes_from_standard_input(folder, stdin, capsys, net):
    stdin(Path("images/a.png").read_bytes())
    assert cli.main([*COMPARE, "-", "images/b.png", "--csv", "pairs.csv"]) == 0
    (row,) = read_table("pairs.csv").rows
    assert row["a"] == "/dev/stdin" and row.number("lpips") == pytest.approx(distance(net), rel=1e-5)
    stdin(b"")
    assert cli.main([*COMPARE, "-", "images/b.png"]) == 2
    assert "/dev/stdin: expected a readable image, got an empty stream" in capsys.readouterr().err


def test_a_name_that_starts_with_a_dash_follows_two_dashes(folder, capsys):
    Path("-a.png").write_bytes(Path("images/a.png").read_bytes())
    assert cli.main([*COMPARE, "--csv", "-", "--", "-a.png", "images/a.png"]) == 0
    assert capsys.readouterr().out == "a,b,lpips\n-a.png,images/a.png,0\n"


@linux
def test_images_come_from_process_substitutions(folder, capsys, net):
    readers = []
    for name in "ab":
        reader, writer = os.pipe()
        os.write(writer, Path(f"images/{name}.png").read_bytes())
        os.close(writer)
        readers.append(reader)
    assert cli.main([*COMPARE, *(f"/dev/fd/{reader}" for reader in readers)]) == 0
    assert float(capsys.readouterr().out.splitlines()[0]) == pytest.approx(distance(net), rel=1e-5)
    for reader in readers:
        os.close(reader)


@posix
@pytest.mark.parametrize("option", ["--csv", "--json", "--map", "--map-raw"])
def test_results_go_into_pipes(option, folder, capsys):
    os.mkfifo("pipe")
    got = []
    reader = threading.Thread(target=lambda: got.append(Path("pipe").read_bytes()), daemon=True)
    reader.start()
    assert cli.main([*COMPARE, "images/a.png", "images/b.png", option, "pipe"]) == 0
    reader.join(10)
    assert Path("pipe").is_fifo()
    assert got[0].startswith({"--csv": b"a,b,lpips\n", "--json": b"{", "--map": PNG, "--map-raw": PNG}[option])
    assert capsys.readouterr().out.count("\n") == 2


def test_correlate_reads_and_writes_streams(folder, stdin, capsys):
    command = ["correlate", "--net", "embedded"]
    assert cli.main([*command, "opinions.csv", "--csv", "frames.csv"]) == 0
    table = capsys.readouterr().out
    stdin(Path("opinions.csv").read_bytes())
    assert cli.main([*command, "-", "--csv", "-"]) == 0
    out, err = capsys.readouterr()
    assert out == Path("frames.csv").read_text() and table in err


def test_judgments_come_from_standard_input(folder, stdin, capsys):
    evaluate = ["bapps", "evaluate", "l2", "--images", "images", "--size", "32", "--resamples", "5", "--csv"]
    assert cli.main([*evaluate, "judge.csv", "--out", "one"]) == 0
    stdin(Path("judge.csv").read_bytes())
    assert cli.main([*evaluate, "-", "--out", "two"]) == 0
    assert Path("one/scores.csv").read_text() == Path("two/scores.csv").read_text()
    assert "2AFC" in capsys.readouterr().out


def test_distances_come_from_standard_input(folder, stdin, capsys):
    stdin(b"path,d0,d1,judge\nval/cnn/0,0.1,0.2,0\nval/cnn/1,0.4,0.3,1\n")
    assert cli.main(["bapps", "evaluate", "--distances", "mine=-", "--resamples", "5", "--out", "out"]) == 0
    assert "mine" in capsys.readouterr().out


def test_a_calibration_is_fitted_between_pipes(folder, stdin, capsysbinary):
    fast = ["calibration", "fast", "--images", "images", "--net", "embedded", "--val-fraction", "0.5", "--size", "32"]
    stdin(Path("judge.csv").read_bytes())
    assert cli.main([*fast, "--csv", "-", "--out", "-"]) == 0
    out, err = capsysbinary.readouterr()
    weights = load(out)
    assert set(weights) == set(LPIPS("embedded").layers)
    assert all(torch.isfinite(weight).all() for weight in weights.values())
    assert b"Training on" in err and b"Written to /dev/stdout" in err


def test_weights_and_sheets_go_to_standard_output(folder, capsysbinary, monkeypatch):
    write_noise("noise", height=64)
    monkeypatch.setattr("lpips_lightning.calibration.kmeans.stacked_kmeans", lambda *_, **__: {"a": torch.ones(2)})
    monkeypatch.setattr("lpips_lightning.data.distortion_sheet._at_strengths", lambda patch, *_: [patch])
    small = ["--crops=6", "--size=48", "--net=embedded"]
    assert cli.main(["kmeans", "--images=noise", "--out=-", *small]) == 0
    out, err = capsysbinary.readouterr()
    assert load(out)["a"].tolist() == [1, 1] and b"Written to /dev/stdout" in err
    assert cli.main(["bapps", "sheet", "--images", "noise", "--out", "-"]) == 0
    assert capsysbinary.readouterr().out.startswith(PNG)
    assert cli.main(["bapps", "sheet", "--images", "noise", "--out", "sheet.jpg"]) == 2


def run(*args, **options):
    return subprocess.run([sys.executable, *args], env=environment(), check=False, timeout=100, **options)


def run_forked(*args, **options):
    """As `run`, without the seconds that torch takes to import; how the process ends is the same."""
    return forked_python.run(args, env=environment(), **options)


def environment():
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@posix
@pytest.mark.parametrize(
    ("args", "code"),
    [
        (["--help"], 141),
        (["completion", "bash"], 141),
        (["--version"], 141),
        ([*COMPARE, "images/a.png", "images/b.png", "--csv", "-"], 141),
    ],
)
def test_a_reader_that_leaves_is_a_quiet_end(args, code, folder):
    reader, writer = os.pipe()
    os.close(reader)
    done = run("-m", "lpips_lightning", *args, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert done.returncode == code
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr and "Broken" not in done.stderr


@posix
@pytest.mark.parametrize(
    "args",
    [
        ["compare", "--net=embedded", "images", "images", "--csv=out"],
        ["compare", "--net=embedded", "images", "--pairs", "--csv=out"],
        ["correlate", "--net=embedded", "opinions.csv", "--csv=out"],
        ["bapps", "evaluate", "l2", "--csv=judge.csv", "--images=images", "--resamples=5", "--size=32", "--out=out"],
    ],
)
def test_files_are_written_for_a_reader_that_leaves(args, folder, monkeypatch):
    monkeypatch.setenv("PYTHONUNBUFFERED", "1")  # so that the first line fails
    reader, writer = os.pipe()
    os.close(reader)
    done = run_forked("-m", "lpips_lightning", *args, stdout=writer, stderr=writer)
    os.close(writer)
    assert done.returncode == 141
    assert Path("out/scores.csv" if Path("out").is_dir() else "out").stat().st_size


@posix
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("args", [["compare", "--help"], [*COMPARE, "images/a.png", "images/b.png"]])
@pytest.mark.parametrize("target", ["closed", "full"])
def test_an_output_that_cannot_be_written_is_no_complaint_of_python(target, args, unbuffered, folder, monkeypatch):
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    if target == "full":
        if not Path("/dev/full").exists():
            pytest.skip("no /dev/full")
        writer = os.open("/dev/full", os.O_WRONLY)
    else:
        reader, writer = os.pipe()
        os.close(reader)
    with Path("said").open("wb") as said:
        start = run if args[-1] == "--help" else run_forked
        done = start("-m", "lpips_lightning", *args, stdout=writer, stderr=said)
    os.close(writer)
    assert "ignored" not in Path("said").read_text() and "Traceback" not in Path("said").read_text()
    if args[-1] != "--help" or not unbuffered:  # argparse itself ignores errors
        assert done.returncode == (141 if target == "closed" else 2)


def test_a_reader_that_leaves_another_pipe_is_one_sentence(monkeypatch, capsys):
    def fail(args):
        print("printed")
        raise BrokenPipeError(errno.EPIPE, "Broken pipe", "pipe")

    monkeypatch.delenv(cli.TRACEBACK_VARIABLE, raising=False)
    monkeypatch.setitem(sys.modules, "trial_command", SimpleNamespace(run=fail))
    monkeypatch.setitem(cli.COMMANDS, "trial", cli.Command("a trial", "trial_command:run"))
    assert cli.main(["trial"]) == 141
    out, err = capsys.readouterr()
    assert out == "printed\n"
    assert err == "lpips-lightning: expected a reader to the end, got [Errno 32] Broken pipe: 'pipe'\n"
    monkeypatch.setenv(cli.TRACEBACK_VARIABLE, "1")
    with pytest.raises(BrokenPipeError, match="pipe"):
        cli.main(["trial"])


def test_the_package_runs_as_a_module(capsys):
    done = run("-m", "lpips_lightning", "--version", capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"lpips_lightning {__version__}\n")
    done = run("-m", "lpips_lightning", "compare", "a.png", "b.png", "--csv", capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr == "lpips-lightning: --csv: expected one value, got none\n"
    assert lpips_lightning.cli.main is cli.main
    code = "import sys; from lpips_lightning.cli import main; print('torch' in sys.modules); sys.exit(main(['x']))"
    done = run("-c", code, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "False\n") and "got 'x'" in done.stderr


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"),
    [(True, True, "cuda"), (True, False, "cuda"), (False, True, "mps"), (False, False, "cpu")],
)
def test_the_best_device_is_taken(cuda, mps, expected, monkeypatch):
    zeros, seen = torch.zeros, []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    monkeypatch.setattr(torch, "zeros", lambda count, device: (seen.append(device), zeros(count))[1])
    assert choose_device("auto") == torch.device(expected)
    assert seen == [torch.device(expected)]
    assert choose_device("cpu") == torch.device("cpu")
