"""No room on the disk, folders that may not be written, eight processes at once: the old file or the new one, whole."""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import crash_jobs as faults
import numpy as np
import pytest
import subprocess_jobs as workers
import torch
from small_data import write_noise
from small_recipes import RECIPES

from lpips_lightning.backbones import fetch as weights_fetch
from lpips_lightning.backbones.fetch import fetch_backbone, find_backbone
from lpips_lightning.calibration.model import TrainableLPIPS
from lpips_lightning.calibration.module import PerceptualCalibration
from lpips_lightning.calibration.pooled import cached_pool
from lpips_lightning.callbacks import CalibrationReport
from lpips_lightning.callbacks._loggers import log_image, log_table
from lpips_lightning.cli import commands as cli
from lpips_lightning.comparison.file_pairs import Pair
from lpips_lightning.comparison.maps import map_writer
from lpips_lightning.comparison.measure import PairResult
from lpips_lightning.comparison.report import write_csv, write_json
from lpips_lightning.data.bapps_generate import l2, make_bapps
from lpips_lightning.evaluation.benchmark import Score
from lpips_lightning.evaluation.figures import save_scores
from lpips_lightning.evaluation.report import save_csv, save_text
from lpips_lightning.io.atomic import atomic_write
from lpips_lightning.io.checkpoint_io import AtomicCheckpointIO
from lpips_lightning.io.image_files import read_image, write_image
from lpips_lightning.recipes.panel import Column, save_panel
from lpips_lightning.recipes.tradeoff_table import TradeoffRow, write_rows
from lpips_lightning.weights import WeightsError

# 2026-11-21, pytorch_lightning: its advice on loaders.
pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers")
resource = pytest.importorskip("resource", reason="a full disk is made by setrlimit, which Windows lacks")
URLOPEN = urllib.request.urlopen  # no network, but file:// is none
OLD = b"what was there before"


@pytest.fixture(autouse=True)
def _files_can_be_opened(monkeypatch):
    def only_files(request, **options):
        assert getattr(request, "full_url", request).startswith("file://")
        return URLOPEN(request, **options)

    monkeypatch.setattr(urllib.request, "urlopen", only_files)


@contextlib.contextmanager
def full_disk(room=16):
    """The kernel refuses to write any file beyond `room` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def everything(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def noise(height=40, width=48):
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(0))


def compared():
    return [PairResult(Pair("a", Path("a.png"), Path("b.png")), 0.1)] * 20


def trainer(folder):
    return SimpleNamespace(is_global_zero=True, loggers=[], default_root_dir=folder, fast_dev_run=False, global_step=0)


def draw_report(path):
    results = CalibrationReport().draw(PerceptualCalibration("embedded", init="official"))
    log_image(trainer(path.parent), path.name.partition("_step_")[0], results, 0)


def cells():
    return [Score("lpips", name, "2afc", 70.0, 69.0, 71.0, 9, None) for name in ("cnn", "color")]


WRITERS = {  # the file, and what writes it
    "calibration": ("a.safetensors", lambda path: PerceptualCalibration("embedded", init="official").export(path)),
    "checkpoint": ("a.ckpt", lambda path: AtomicCheckpointIO().save_checkpoint({"a": torch.zeros(99)}, path)),
    "report": ("r_step_00000000.png", draw_report),
    "scores of images": (
        "s_step_00000000.csv",
        lambda path: log_table(trainer(path.parent), "s", ["a"], [["b" * 99]], 0),
    ),
    "PNG": ("a.png", lambda path: write_image(noise(), path)),
    "JPEG": ("a.jpg", lambda path: write_image(noise(), path)),
    "TIFF": ("a.tif", lambda path: write_image(noise(), path)),
    "WebP": ("a.webp", lambda path: write_image(noise(), path)),
    "BMP": ("a.bmp", lambda path: write_image(noise(), path)),
    "map": ("a.png", lambda path: map_writer(path, False, 1.0, "LPIPS")(compared()[0].pair, noise()[0])),
    "CSV of pairs": ("a.csv", lambda path: write_csv(path, compared())),
    "JSON of pairs": ("a.json", lambda path: write_json(path, compared(), "LPIPS")),
    "CSV of an evaluation": ("a.csv", lambda path: save_csv(cells(), path)),
    "Markdown of an evaluation": ("a.md", lambda path: save_text("a" * 99, path)),
    "figure of an evaluation": ("a.png", lambda path: save_scores(cells(), path)),
    "panel": (
        "a.png",
        lambda path: save_panel([Column("a", "b", noise()), Column("c", "d", noise()[0])], path, "e", 16),
    ),
    "trade-off table": ("a.csv", lambda path: write_rows(path, [TradeoffRow("pixel", 0, note="n" * 99)])),
}


@pytest.mark.parametrize("what", WRITERS)
def test_on_a_full_disk_the_old_file_stays_and_the_error_names_it(what, tmp_path):
    name, write = WRITERS[what]
    path = tmp_path / name
    path.write_bytes(OLD)
    with (
        full_disk(),
        pytest.raises(
            OSError, match="expected to write this file, got .*; the existing file, if any, is unchanged"
        ) as error,
    ):
        write(path)
    assert str(error.value).startswith(f"{path}: ")
    assert everything(tmp_path) == {name: OLD}
    write(path)
    written = everything(tmp_path)
    assert written.keys() <= {name, path.with_suffix(".pdf").name}
    assert len(written[name]) > 16


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_only_errors_of_room_are_said_anew(tmp_path, number):
    (tmp_path / "a").write_bytes(OLD)
    with (
        pytest.raises(OSError, match=r"a: expected to write this file, got .*; the existing file") as error,
        atomic_write(tmp_path / "a"),
    ):
        raise OSError(number, os.strerror(number))
    assert error.value.errno == number
    with pytest.raises(FileNotFoundError, match="other"), atomic_write(tmp_path / "a"):
        (tmp_path / "other").read_bytes()
    assert everything(tmp_path) == {"a": OLD}


@pytest.fixture
def data(tmp_path):
    return faults.written_triplets(tmp_path / "images")


COMPARE = ["compare", "--net", "embedded", "images/a.png", "images/b.png"]
LINES = {  # what is written, how
    "compare --csv": ("out", [*COMPARE, "--csv", "out"]),
    "compare --json": ("out", [*COMPARE, "--json", "out"]),
    "compare --map": ("out.png", [*COMPARE, "--map", "out.png"]),
    "correlate --csv": (
        "out",
        ["correlate", "--net", "embedded", "--root", "images", "--csv", "out", "opinions.csv"],
    ),
    "calibration fast": (
        "out.safetensors",
        [
            "calibration",
            "fast",
            "--csv",
            "judge.csv",
            "--images",
            "images",
            "--net",
            "embedded",
            "--val-fraction",
            "0.5",
            "--size",
            "32",
            "--out",
            "out.safetensors",
        ],
    ),
    "bapps evaluate": (
        "out/scores.csv",
        [
            "bapps",
            "evaluate",
            "embedded",
            "--csv",
            "judge.csv",
            "--images",
            "images",
            "--size",
            "32",
            "--resamples",
            "5",
            "--out",
            "out",
        ],
    ),
    "bapps sheet": ("out.png", ["bapps", "sheet", "--images", "images", "--out", "out.png"]),
    "weights fetch": (
        "fetched/squeezenet1_1-b8a52dc0.pth",
        ["weights", "fetch", "--net", "squeeze", "--to", "fetched", "--mirror", "mirror"],
    ),
}


@pytest.mark.parametrize("line", LINES)
def test_on_a_full_disk_a_command_ends_with_one_sentence(line, tmp_path, monkeypatch, capsys, data):
    monkeypatch.chdir(tmp_path)
    rows = [f"{','.join((triplet.ref, triplet.p0, triplet.p1))},{triplet.judge}" for triplet in data.triplets]
    Path("judge.csv").write_text("\n".join(["ref,p0,p1,judge", *rows]))
    judged = [f"{one}.png,{two}.png,{number}" for number, (one, two) in enumerate(("ab", "ac", "ad", "bc", "bd", "cd"))]
    Path("opinions.csv").write_text("\n".join(["reference,distorted,score", *judged]))
    Path("mirror").mkdir()
    out, command = LINES[line]
    (Path("mirror") / Path(out).name).write_bytes(bytes(9999))
    Path(out).parent.mkdir(exist_ok=True)
    Path(out).write_bytes(OLD)
    before = everything(tmp_path)
    with full_disk():
        code = cli.main([*command, *["--force"] * (command[0] != "weights")])
    numbers, said = capsys.readouterr()
    assert numbers or line in ("compare --map", "bapps sheet", "weights fetch")  # what was measured is not lost
    sentence = said.splitlines()[-1]  # above it may be a progress bar
    assert code == 2
    assert sentence.startswith("lpips-lightning: ") and Path(out).name in sentence
    assert "expected to" in sentence and os.strerror(errno.EFBIG) in sentence
    assert "Traceback" not in said
    assert {name: content for name, content in everything(tmp_path).items() if ".part" not in name} == before


def test_on_a_full_disk_a_recipe_says_which_checkpoint(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_noise("images")
    fit = RECIPES[0].line("fit", "--without", "gallery", "scores", "--checkpoint.monitor=null")
    with full_disk(room=12_000):
        code = cli.main(["superresolution", *fit])
    said = capsys.readouterr().err
    assert code == 2
    assert ".ckpt: expected to write this file, got File too large; the existing file, if any, is unchanged" in said
    assert "Traceback" not in said
    assert not [path for path in tmp_path.rglob("*") if ".ckpt" in path.name]


def test_a_data_set_that_finds_no_room_is_not_there_at_all(tmp_path):
    write_noise(tmp_path / "images")
    with full_disk(), pytest.raises(OSError, match="expected to write this file, got"):
        make_bapps(tmp_path / "images", tmp_path / "out", train=2, val=1, jnd=0, size=32, distance=l2)
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_a_download_that_found_no_room_goes_on_when_there_is(tmp_path):
    record = faults.backbone_record()
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror" / record.file).write_bytes(faults.BACKBONE)
    with full_disk(), pytest.raises(OSError, match="File too large; run again to go on where it stopped"):
        fetch_backbone(record, tmp_path / "to", str(tmp_path / "mirror"))
    assert not (tmp_path / "to" / record.file).exists()
    assert fetch_backbone(record, tmp_path / "to", str(tmp_path / "mirror"))
    assert list(everything(tmp_path / "to")) == [record.file]


def refuse(*_, **__):
    raise PermissionError(errno.EACCES, "Permission denied")


def no_locks(*_):
    raise OSError(errno.ENOLCK, "No locks available")


def spoil(folder, how, monkeypatch):
    """Make a folder one that cannot be written."""
    if how == "a file in its place":
        folder.write_bytes(OLD)
    elif how == "read-only":
        if os.geteuid() == 0:
            pytest.skip("root may write anywhere")
        folder.mkdir(mode=0o555)
    elif how == "refused":
        monkeypatch.setattr("pathlib.Path.touch", refuse)


@pytest.mark.parametrize("how", ["a file in its place", "read-only", "refused", "full"])
def test_a_cache_that_cannot_be_written_costs_no_number(how, tmp_path, data, monkeypatch, caplog):
    network = TrainableLPIPS("embedded", init="official")
    expected = cached_pool(network, data, None)
    spoil(tmp_path / "cache", how, monkeypatch)
    with (
        caplog.at_level(logging.WARNING, "lpips_lightning"),
        full_disk() if how == "full" else contextlib.nullcontext(),
    ):
        found = cached_pool(network, data, tmp_path / "cache")
    assert torch.equal(found.mean, expected.mean)
    (said,) = caplog.messages
    assert said.startswith(f"cache: expected to write pooled differences to '{tmp_path / 'cache'}', got ")
    assert not list(tmp_path.rglob("*pooled*"))


def test_a_read_only_cache_that_has_it_is_used(tmp_path, data, monkeypatch, caplog):
    network = TrainableLPIPS("embedded", init="official")
    expected = cached_pool(network, data, tmp_path / "cache")
    monkeypatch.setattr("pathlib.Path.touch", refuse)
    monkeypatch.setattr("lpips_lightning.calibration.pooled.pool", None)
    assert torch.equal(cached_pool(network, data, tmp_path / "cache").mean, expected.mean)
    assert caplog.messages == []


def test_a_shared_folder_to_read_from_is_enough_where_the_backbone_is_there(tmp_path, monkeypatch):
    record = faults.backbone_record()
    (tmp_path / record.file).write_bytes(faults.BACKBONE)
    opened = os.open
    monkeypatch.setattr(
        weights_fetch.os,
        "open",
        lambda path, flags, *mode: refuse() if flags & os.O_CREAT else opened(path, flags, *mode),
    )
    assert not fetch_backbone(record, tmp_path)
    (tmp_path / record.file).unlink()
    with pytest.raises(OSError, match=r"expected to download it, got .*put the file into '.*' as t-.*pth yourself"):
        fetch_backbone(record, tmp_path, str(tmp_path / "mirror"))


@pytest.mark.parametrize("how", ["a file in its place", "read-only"])
def test_torchvisions_cache_that_cannot_be_written_is_a_sentence_with_ways_out(how, tmp_path, monkeypatch):
    spoil(tmp_path / "hub", how, monkeypatch)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: io.BytesIO())
    with pytest.raises(WeightsError, match=r"(?s)download failed: .*(exists|directory|denied).*ways out"):
        find_backbone("alexnet")
    assert everything(tmp_path) == ({"hub": OLD} if how == "a file in its place" else {})


def together(folder):
    """Wait until all eight are here."""
    (folder / f"ready {os.getpid()}").touch()
    workers.wait_until(lambda: len(list(folder.glob("ready *"))) == 8)


def fetch(folder):
    together(folder)
    downloaded = fetch_backbone(faults.backbone_record(), folder / "to", str(folder / "mirror"))
    (folder / f"said {os.getpid()}").write_text(str(downloaded))


def fetch_without_locks(folder):
    import fcntl

    fcntl.flock = no_locks
    fetch(folder)


def pool(folder):
    network, data = TrainableLPIPS("embedded", init="official"), faults.written_triplets(folder / "images")
    together(folder)
    cached_pool(network, data, folder / "to")


def write_and_read(folder):
    pixels = np.random.default_rng(os.getpid()).random((3, 99, 99))
    together(folder)
    for _ in range(20):
        write_image(torch.from_numpy(pixels), folder / "to" / "a.png")
        assert read_image(folder / "to" / "a.png").shape == (3, 99, 99)  # of whichever process


@pytest.mark.parametrize(
    "work", [fetch, fetch_without_locks, pool, pytest.param(write_and_read, marks=pytest.mark.slow)]
)
def test_eight_processes_at_once_end_with_one_whole_file(work, tmp_path, data):
    record = faults.backbone_record()
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror" / record.file).write_bytes(faults.BACKBONE)
    processes = [workers.start(work, tmp_path) for _ in range(8)]
    for process in processes:
        process.join(timeout=workers.SECONDS)
        process.kill()
    assert [process.exitcode for process in processes] == [0] * 8
    (path,) = (tmp_path / "to").iterdir()
    if work is pool:
        faults.check_whole(tmp_path / "to")
        expected = cached_pool(TrainableLPIPS("embedded", init="official"), data, None)
        assert torch.equal(
            cached_pool(TrainableLPIPS("embedded", init="official"), data, tmp_path / "to").mean, expected.mean
        )
    elif work is not write_and_read:
        assert path.read_bytes() == faults.BACKBONE
        said = [file.read_text() for file in tmp_path.glob("said *")]
        assert len(said) == 8
        assert said.count("True") == 1 or (work is fetch_without_locks and "True" in said)
