"""Large runs of `lpips-lightning compare`: the same tables as small ones, in a folder from which they resume."""

from __future__ import annotations

import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import zipfile
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
from file_servers import s3_server
from PIL import Image

from lpips_lightning.cli import compare_run
from lpips_lightning.cli.commands import main
from lpips_lightning.cli.compare import parser
from lpips_lightning.cli.launch import launch_or_one_device, workers_of
from lpips_lightning.comparison import report
from lpips_lightning.comparison.file_pairs import Pair
from lpips_lightning.comparison.measure import PairResult
from lpips_lightning.runs import results
from lpips_lightning.runs.journal import PairRow

PAIRS = 30
FULL = ["--psnr", "--ssim", "--per-layer"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two folders of pairs of one size, one of them equal, one in a subfolder."""
    folder = tmp_path_factory.mktemp("pairs")
    numbers = np.random.default_rng(0)
    for index in range(PAIRS):
        first = numbers.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        second = first if index == 4 else numbers.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        for side, pixels in (("a", first), ("b", second)):
            path = folder / side / ("in" if index == 7 else "") / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    return folder


@pytest.fixture
def here(made, tmp_path, monkeypatch):
    """The current folder, with copies of them."""
    for side in "ab":
        shutil.copytree(made / side, tmp_path / side)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def compare(capsys):
    """Runs the command; its exit code, lines on standard output, and lines on standard error."""

    def call(*args):
        try:
            code = main(["compare", *args, "--net", "embedded"])
        except SystemExit as error:
            code = error.code
        out, err = capsys.readouterr()
        return code, out.splitlines(), err.splitlines()

    return call


def command(*paths):
    """The command line of a process of its own."""
    started = [sys.executable, "-m", "lpips_lightning", "compare", *paths]
    return [*started, "--net", "embedded", "--accelerator", "cpu"]


def rows_of(path):
    return [line.split(",") for line in path.read_text().splitlines()[1:]]


@pytest.mark.parametrize("options", [[], FULL, ["--batch-size", "7", "--ssim"]])
def test_a_run_prints_and_writes_what_a_small_comparison_does(here, compare, options):
    small = compare("a", "b", "--csv", "small.csv", "--json", "small.json", *options)
    large = compare("a", "b", "--csv", "large.csv", "--json", "large.json", "--workers", "0", *options)
    assert small[0] == large[0] == 0
    assert small[1] == large[1] and len(large[1]) >= 6
    assert (here / "small.csv").read_bytes() == (here / "large.csv").read_bytes()
    one, two = (json.loads((here / f"{name}.json").read_text()) for name in ("small", "large"))
    assert one.pop("std") == pytest.approx(two.pop("std"), rel=1e-14)
    assert one == two and len(one["pairs"]) == PAIRS
    assert [line for line in small[2] if "note" in line] == [line for line in large[2] if "note" in line]


@pytest.mark.slow
def test_any_number_of_ranks_writes_the_same_bytes(here, compare):
    (here / "b" / "3.png").write_bytes(b"damaged")
    code, _, _ = compare("a", "b", "--csv", "one.csv", "--workers", "0", *FULL)
    assert code == 3
    environment = os.environ | {"PYTHONPATH": str(Path(compare_run.__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    for devices in (2, 3):
        options = ["--devices", str(devices), "--csv", f"{devices}.csv", *FULL]
        done = subprocess.run(
            [*command("a", "b"), *options], env=environment, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 3, done.stderr
        assert "1 of 30 pairs failed" in done.stderr
        assert done.stdout.count("mean\t") == 1
        assert (here / f"{devices}.csv").read_bytes() == (here / "one.csv").read_bytes()


@pytest.mark.slow  # over a minute
def test_two_ranks_read_from_a_store(here, compare, monkeypatch):
    pytest.importorskip("moto.server")
    pytest.importorskip("webdataset")
    s3fs = pytest.importorskip("s3fs")
    (here / "b" / "3.png").write_bytes(b"damaged")
    assert compare("a", "b", "--csv", "local.csv", "--workers", "0")[0] == 3
    names = [row[0].removeprefix("a/") for row in rows_of(here / "local.csv")]
    local = [row[2] for row in rows_of(here / "local.csv")]
    assert len(local) == PAIRS and local.count("") == 1
    (here / "list.csv").write_text("a,b\n" + "".join(f"a/{name},b/{name}\n" for name in names))
    with zipfile.ZipFile(here / "images.zip", "w") as packed:
        for name in names:
            for side in "ab":
                packed.write(here / side / name, f"{side}/{name}")
    for shard in range(3):
        with tarfile.open(here / f"s-{shard}.tar", "w") as tar:
            for name in names[10 * shard : 10 * shard + 10]:
                for side in "ab":
                    tar.add(here / side / name, name.replace(".png", f".{side}.png"))
    with s3_server() as url:
        settings = {"ACCESS_KEY_ID": "k", "SECRET_ACCESS_KEY": "s", "DEFAULT_REGION": "us-east-1", "ENDPOINT_URL": url}
        for name, value in settings.items():
            monkeypatch.setenv(f"AWS_{name}", value)
        store = s3fs.S3FileSystem(skip_instance_cache=True)
        store.mkdir("bucket")
        for name in ("a", "b", "list.csv", "images.zip", *(f"s-{shard}.tar" for shard in range(3))):
            store.put(str(here / name), f"bucket/{name}", recursive=True)
        sources = {
            "folders": ["s3://bucket/a", "s3://bucket/b"],
            "list": ["s3://bucket/list.csv"],
            "zip": ["zip://a::s3://bucket/images.zip", "zip://b::s3://bucket/images.zip"],
            "shards": ["s3://bucket/s-{0..2}.tar"],
            "found": ["s3://bucket/s-*.tar"],
        }
        for name, paths in sources.items():
            options = ["--devices", "2", "--workers", "1", "--csv", f"of-{name}.csv", "--out", f"run-{name}"]
            done = subprocess.run(
                [*command(*paths), *options],
                env=os.environ | {"PYTHONPATH": str(Path(compare_run.__file__).parents[2]), "OMP_NUM_THREADS": "1"},
                capture_output=True,
                text=True,
                timeout=600,
            )
            assert done.returncode == 3, done.stderr
            assert "1 of 30 pairs failed" in done.stderr
            found = [row[2] for row in rows_of(here / f"of-{name}.csv")]
            if paths[0].endswith(".tar"):  # shards have batches of their own
                assert [bool(one) for one in found] == [bool(one) for one in local]
                assert [float(one or 0) for one in found] == pytest.approx([float(one or 0) for one in local], rel=1e-6)
            else:
                assert found == local


def test_failed_pairs_are_rows_and_the_exit_code_is_3(here, compare):
    for name in ("3", "5", "11", "12"):
        (here / "b" / f"{name}.png").write_bytes(b"damaged")
    code, lines, errors = compare("a", "b", "--csv", "t.csv", "--json", "t.json", "--workers", "0")
    assert code == 3
    assert "n\t26" in lines
    named = [name for name in ("3", "5", "11", "12") if any(f"b/{name}.png: expected" in line for line in errors)]
    assert named == ["3", "5", "11"]
    assert errors[-1].endswith("4 of 30 pairs failed; they are in the table")
    table = (here / "t.csv").read_text().splitlines()
    assert table[0] == "a,b,lpips,error" and len(table) == PAIRS + 1
    assert sum("b/12.png: expected" in line for line in table) == 1
    summary = json.loads((here / "outputs/compare/run/summary.json").read_text())
    assert (summary["n"], summary["failed"]) == (26, 4)


def test_the_exit_code_is_2_if_all_pairs_fail(here, compare):
    for path in (here / "b").rglob("*.png"):
        path.write_bytes(b"damaged")
    code, lines, errors = compare("a", "b", "--csv", "t.csv", "--workers", "0")
    assert code == 2 and lines == []
    assert len(errors) == 1 and "and 29 more" in errors[0]
    assert not (here / "t.csv").exists()


def test_an_unfinished_run_resumes_by_the_same_command(here, compare):
    command = ["a", "b", "--csv", "t.csv", "--workers", "0", "--batch-size", "5"]
    assert compare(*command)[0] == 0
    whole = (here / "t.csv").read_bytes()
    folder = here / "outputs/compare/run"
    # As if killed with three batches measured, and then as the tables were written.
    plan = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**plan, "finished": False}))
    (part,) = folder.glob("part-*")
    lines = part.read_bytes().splitlines(keepends=True)
    part.write_bytes(b"".join(lines[:3]) + lines[3][:20])
    code, _, errors = compare(*command)
    assert code == 0
    assert any("of 30 pairs are measured already" in line for line in errors)
    assert (here / "t.csv").read_bytes() == whole
    (new,) = set(folder.glob("part-*")) - {part}
    measured = sum(len(json.loads(line)[2]) for line in new.read_text().splitlines())
    assert 0 < measured < PAIRS
    assert not (here / "outputs/compare/run-2").exists()


def test_failed_pairs_are_tried_again(here, compare):
    system = pytest.importorskip("fsspec").filesystem("memory")
    for side in "ab":
        for path in sorted((here / side).rglob("*.png")):
            system.pipe(f"/again/{side}/{path.relative_to(here / side)}", path.read_bytes())
    rows = "".join(f"a/{index}.png,b/{index}.png\n" for index in range(7))
    system.pipe("/again/list.csv", f"a,b\n{rows}".encode())
    broken = system.cat("/again/b/3.png")
    system.rm("/again/b/3.png")
    command = ["memory://again/list.csv", "--csv", "t.csv", "--workers", "0"]
    code, _, errors = compare(*command, "--retry-failed")
    assert code == 2
    assert "retry-failed: expected a run of the same command in 'outputs/compare/run', got none" in errors[0]
    assert compare(*command)[0] == 3
    before = rows_of(here / "t.csv")
    assert compare(*command, "--retry-failed")[0] == 3
    assert rows_of(here / "t.csv") == before
    system.pipe("/again/b/3.png", broken)
    code, lines, errors = compare(*command, "--retry-failed")
    assert code == 0 and "n\t7" in lines
    assert any("6 of 7 pairs are measured already" in line for line in errors)
    after = rows_of(here / "t.csv")
    assert [row for row in after if "/3.png" not in row[0]] == [row[:3] for row in before if "/3.png" not in row[0]]
    code, _, errors = compare(*command, "--retry-failed", "--psnr")
    assert code == 2 and "got one whose fingerprint is" in errors[0]
    assert compare(*command, "--retry-failed", "--force")[0] == 2
    assert not (here / "outputs/compare/run-2").exists()


def test_other_images_are_measured_in_a_folder_of_their_own(here, compare):
    command = ["a", "b", "--workers", "0"]
    assert compare(*command)[0] == compare(*command)[0] == 0
    Image.new("RGB", (32, 32)).save(here / "b" / "3.png")
    os.utime(here / "b" / "3.png", (1, 1))
    plan = json.loads((here / "outputs/compare/run/run.json").read_text())
    (here / "outputs/compare/run/run.json").write_text(json.dumps({**plan, "finished": False}))
    assert compare(*command)[0] == 0  # an unfinished run of what the images were
    assert sorted(path.name for path in (here / "outputs/compare").iterdir()) == ["run", "run-2", "run-3"]


def test_a_chosen_folder_is_not_overwritten_without_force(here, compare):
    command = ["a", "b", "--workers", "0", "--out", "run"]
    assert compare(*command)[0] == 0
    code, _, errors = compare(*command)
    assert code == 2 and "--out: expected a new folder" in errors[0] and "a finished run" in errors[0]
    code, _, errors = compare(*command, "--ssim")
    assert code == 2 and "another run, whose fingerprint is" in errors[0]
    assert compare(*command, "--ssim", "--force")[0] == 0
    plan = json.loads((here / "run/run.json").read_text())
    assert plan["scores"] == ["ssim"] and plan["finished"]
    assert len(list((here / "run").glob("part-*"))) == 1


def test_an_output_that_exists_is_kept_without_force(here, compare):
    (here / "t.csv").write_text("mine\n")
    code, _, errors = compare("a", "b", "--csv", "t.csv", "--workers", "0")
    assert code == 2 and "--force replaces it" in errors[0]
    assert (here / "t.csv").read_text() == "mine\n"
    assert compare("a", "b", "--csv", "t.csv", "--workers", "0", "--force")[0] == 0
    assert len((here / "t.csv").read_text().splitlines()) == PAIRS + 1


def test_parquet_has_the_rows_of_the_csv_in_groups(here, compare, monkeypatch):
    parquet = pytest.importorskip("pyarrow.parquet")
    (here / "b" / "3.png").write_bytes(b"damaged")
    monkeypatch.setattr(results, "_ROW_GROUP", 8)
    code, lines, _ = compare("a", "b", "--csv", "t.csv", "--parquet", "t.parquet", "--psnr")
    assert code == 3
    file = parquet.ParquetFile(here / "t.parquet")
    assert file.num_row_groups == math.ceil(PAIRS / 8)
    assert file.schema_arrow.metadata[b"fingerprint"].decode() == lines[-1]
    rows = file.read().to_pylist()
    table = [line.split(",", 4) for line in (here / "t.csv").read_text().splitlines()]
    assert list(rows[0]) == table[0]
    for row, cells in zip(rows, table[1:], strict=True):
        shown = ["" if value is None else value for value in row.values()]
        assert cells[:2] == shown[:2] and cells[4].strip('"') == shown[4]
        assert cells[2:4] == ["" if value == "" else f"{value:.9g}" for value in shown[2:4]]


def test_parquet_without_pyarrow_is_refused_before_the_run(here, compare, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    code, _, errors = compare("a", "b", "--parquet", "t.parquet")
    assert code == 2 and "lpips_lightning[parquet]" in errors[0] and "--csv" in errors[0]
    assert not (here / "outputs").exists()


def test_json_of_too_many_pairs_is_refused_before_the_run(here, compare, monkeypatch):
    monkeypatch.setattr(results, "MOST_IN_JSON", PAIRS - 1)
    code, _, errors = compare("a", "b", "--json", "t.json", "--workers", "0")
    assert code == 2 and "--json: expected at most 29 pairs, got 30; use --csv or --parquet" in errors[0]
    assert not (here / "outputs").exists()


@pytest.mark.parametrize(
    "option",
    [["--map", "m"], ["--map-raw", "m"], ["--map-max", "1"], ["--mask", "a"], ["--erode"], ["--tlp"], ["--long"]],
)
def test_options_of_small_comparisons_are_refused(here, compare, option):
    code, _, errors = compare("a", "b", *option, "--out", "run")
    assert code == 2
    assert errors[0].startswith(f"lpips-lightning: {option[0]}: expected no {option[0]} with --out")


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (["a/1.png", "b/1.png", "--workers", "0"], "paths: expected two folders"),
        (["--pairs", "a", "--workers", "0"], "paths: expected two folders"),
        (["a", "c", "--workers", "0"], "c: expected a folder, got no such file"),
        (["a", "b", "--workers", "-1"], "--workers: expected at least 0, got -1"),
        (["a", "b", "--out", "r", "--batch-size", "0"], "--batch-size: expected a positive number"),
        (["a", "b", "--devices", "2", "--device", "cpu"], "--device: expected no --device with --devices"),
        (["a", "b", "--csv", "t", "--json", "t", "--out", "r"], "--json: expected a path that no other option"),
    ],
)
def test_mistakes_are_named_before_the_run(here, compare, args, named):
    code, _, errors = compare(*args)
    assert code == 2 and named in errors[0]
    assert not (here / "outputs").exists() and not (here / "r").exists()


def test_a_list_of_pairs_in_two_folders_runs_too(here, compare):
    (here / "list.csv").write_text("a,b\n3,5\nin/7,1\n")
    code, lines, _ = compare("--pairs", "a", "b", "list.csv", "--csv", "t.csv", "--workers", "0")
    assert code == 0 and "n\t2" in lines
    assert [line.split(",")[:2] for line in (here / "t.csv").read_text().splitlines()[1:]] == [
        ["a/3.png", "b/5.png"],
        ["a/in/7.png", "b/1.png"],
    ]


def test_tar_shards_have_the_same_distances(here, compare):
    pytest.importorskip("webdataset")
    for shard in range(3):
        with tarfile.open(here / f"s-{shard}.tar", "w") as tar:
            for index in range(8 + 2 * shard, 10 + 2 * shard):
                for side in "ab":
                    tar.add(here / side / f"{index}.png", f"{index}.{side}.png")
    code, lines, _ = compare("s-{0..2}.tar", "--csv", "s.csv", "--workers", "0")
    assert code == 0 and "n\t6" in lines
    assert compare("a", "b", "--csv", "t.csv")[0] == 0
    known = {Path(row[0]).stem: float(row[2]) for row in rows_of(here / "t.csv")}
    found = rows_of(here / "s.csv")
    assert len(found) == 6
    for index, row in enumerate(found):
        assert f"{8 + index}" in row[0]
        assert float(row[2]) == pytest.approx(known[f"{8 + index}"], rel=1e-6)
    code, _, errors = compare("s-0.tar", "s-1.tar", "--common")
    assert code == 2 and "--common: expected no --common with tar shards" in errors[0]
    code, _, errors = compare("s-0.tar", "b")
    assert code == 2 and "paths: expected shards" in errors[0]


def test_the_help_has_a_page_of_its_own_for_runs(compare):
    code, short, _ = compare("--help")
    assert code == 0 and not any("--parquet" in line for line in short)
    assert any("--help=runs" in line for line in short)
    code, page, _ = compare("--help=runs")
    text = " ".join(" ".join(page).split())
    assert code == 0
    assert all(f" {option} " in text for option in ("--devices", "--num-nodes", "--out", "--parquet", "--workers"))
    assert "a row with a distance before one with an error" in text
    code, _, errors = compare("--help=run")
    assert code == 2 and errors == ["lpips-lightning: --help: expected runs, got 'run'; did you mean runs?"]


@pytest.mark.parametrize(("typed", "meant"), [("32-true", "fp32"), ("bf16-mixed", "bf16"), ("16-mixed", "fp16")])
def test_precisions_may_be_spelled_as_lightning_does(typed, meant):
    assert parser().parse_args(["a", "b", "--precision", typed]).precision == meant


def test_workers_share_the_cores_of_the_machine(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)), raising=False)
    assert [workers_of(None, devices) for devices in (1, 2, 4, 24)] == [8, 6, 3, 0]
    assert workers_of(5, 4) == 5
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
    assert workers_of(None, 1) == 0


def test_one_device_is_that_of_the_option(monkeypatch):
    empty = dict.fromkeys(("devices", "num_nodes", "strategy", "accelerator", "workers"))
    launch = launch_or_one_device(Namespace(**empty, device="cpu"))
    assert (launch.devices, launch.accelerator) == ("1", "cpu")
    launch = launch_or_one_device(Namespace(**{**empty, "devices": "2"}, device="auto"))
    assert (launch.devices, launch.accelerator) == ("2", "auto")


def test_statistics_are_those_of_a_list():
    numbers = np.random.default_rng(0)
    distances = (0.5 + 1e-5 * numbers.random(2000)).astype(np.float32).tolist()
    psnr = [math.inf if index % 100 == 3 else float(10 + index) for index in range(2000)]
    rows = [
        PairRow(f"{index}", "b", distance, scores={"psnr": score})
        for index, (distance, score) in enumerate(zip(distances, psnr, strict=True))
    ]
    found = results.Statistics()
    assert list(found.passing([*rows, PairRow("c", "d", math.nan, "damaged")])) != []
    assert found.mean == statistics.fmean(distances)
    assert found.std == pytest.approx(statistics.stdev(distances), rel=1e-15)
    pairs = [PairResult(Pair(row.a, Path(row.a), Path(row.b)), row.distance, scores=dict(row.scores)) for row in rows]
    assert found.lines(lambda row: row.a) == report.summary_lines(pairs)
    assert found.notes() == report.infinite_note(pairs) != []
    assert (found.count, found.failed, found.examples) == (2000, 1, ["damaged"])
