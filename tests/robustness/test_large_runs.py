"""Large measurements on several ranks: the same table bit for bit, also after kill -9 and with another number of ranks.

The default tests fork ranks from a process that has imported all; the slow ones start the command of large_jobs.py.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import large_jobs as large
import numpy as np
import pytest
import subprocess_jobs as workers

from lpips_lightning.comparison.compare import compare

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
FEW, MANY = 330, 10_000
MINUTES = 20 * 60


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """Images of a few pairs, and the table of one rank that ran to its end."""
    folder = tmp_path_factory.mktemp("few")
    assert large.write_images(folder, FEW) > 10
    workers.run(large.on_rank, 1, made(folder / "process"), folder, folder / "one", FEW, 1, 0)
    return folder


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """The same with many."""
    folder = tmp_path_factory.mktemp("many")
    failed = large.write_images(folder, MANY)
    run(folder, folder / "one", "--devices", "1", "--workers", "2")
    assert json.loads((folder / "one" / "summary.json").read_text())[:2] == [MANY - failed, failed]
    return folder


def made(folder):
    folder.mkdir(exist_ok=True)
    return folder


def rows(out):
    return [json.loads(line) for line in (out / large.TABLE).read_text().splitlines()]


def check_same(out, reference):
    """Table and summary are those of another run, bit for bit."""
    for name in (large.TABLE, "summary.json"):
        assert (out / name).read_bytes() == (reference / name).read_bytes()


def measured(out):
    """Pairs that the ranks of all attempts have measured."""
    return sum(json.loads(path.read_text())["pairs"] for path in out.glob("watched-*.json"))


def command(folder, out, *options, pairs=MANY, launcher=()):
    return [sys.executable, *launcher, large.__file__, str(folder), str(out), "--pairs", str(pairs), *options]


def environment(**more):
    paths = [*[path for path in sys.path if path], str(Path(large.__file__).parent)]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "TORCHELASTIC"))}
    return {**kept, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", **more}


@contextlib.contextmanager
def started(commands, environments):
    """Processes, which are ended afterwards together with those that they have started."""
    processes = [
        subprocess.Popen(one, env=own, stderr=subprocess.PIPE, text=True, start_new_session=True)
        for one, own in zip(commands, environments, strict=True)
    ]
    try:
        yield processes
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            process.stderr.close()


def run(folder, out, *options, pairs=MANY, launcher=()):
    with started([command(folder, out, *options, pairs=pairs, launcher=launcher)], [environment()]) as (process,):
        _, errors = process.communicate(timeout=MINUTES)
        assert process.returncode == 0, errors


def test_the_table_is_that_of_single_comparisons(few):
    found = rows(few / "one")
    assert [row[:2] for row in found] == [[f"{few}/{side}/{index:05d}.png" for side in "ab"] for index in range(FEW)]
    broken = {index for index, row in enumerate(found) if math.isnan(row[2])}
    assert broken == {index for index, row in enumerate(found) if len(row) > 3}
    for index in range(0, FEW, 7):
        if index in broken:
            with pytest.raises((ValueError, OSError)):
                compare(*found[index][:2], net="embedded", device="cpu")
        else:
            alone = compare(*found[index][:2], net="embedded", device="cpu")
            assert found[index][2] == pytest.approx(alone, rel=1e-5)
    assert len(broken) > 10


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_give_the_table_of_one(few, tmp_path, ranks):
    workers.run(large.on_rank, ranks, tmp_path, few, tmp_path / "out", FEW, ranks, 0)
    check_same(tmp_path / "out", few / "one")
    assert measured(tmp_path / "out") == FEW
    assert len(list((tmp_path / "out").glob("part-*.jsonl"))) == ranks


def test_a_killed_run_goes_on_with_more_ranks(few, tmp_path):
    out = tmp_path / "out"
    process = workers.start(large.measure_and_be_killed, few, out, FEW, (0, 150))
    process.join(workers.SECONDS)
    assert process.exitcode == -signal.SIGKILL
    assert 150 <= measured(out) < 150 + 2 * large.BATCH
    workers.run(large.on_rank, 2, tmp_path, few, out, FEW, 2, 0)
    check_same(out, few / "one")
    assert measured(out) - FEW <= large.BATCH


@pytest.mark.slow
@pytest.mark.parametrize("options", [("2", "1"), ("4", "0")])
def test_devices_of_the_command(many, tmp_path, options):
    run(many, tmp_path / "out", "--devices", options[0], "--workers", options[1])
    check_same(tmp_path / "out", many / "one")
    assert measured(tmp_path / "out") == MANY


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_start_methods_of_worker_processes(few, tmp_path, method):
    options = ("--devices", "2", "--workers", "1", "--start-method", method)
    run(few, tmp_path / "out", *options, pairs=FEW)
    check_same(tmp_path / "out", few / "one")


@pytest.mark.slow
def test_torchrun(few, tmp_path):
    run(few, tmp_path / "out", pairs=FEW, launcher=("-m", "torch.distributed.run", "--nproc-per-node=3"))
    check_same(tmp_path / "out", few / "one")
    assert len(list((tmp_path / "out").glob("part-*.jsonl"))) == 3


@pytest.mark.slow
def test_slurm(few, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    job = {
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NAME": "scores",
        "SLURM_NTASKS": "4",
        "SLURM_STEP_NUM_TASKS": "4",
        "SLURM_NTASKS_PER_NODE": "2",
        "SLURM_NNODES": "2",
        "SLURM_NODELIST": "localhost",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    places = [
        {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank % 2), "SLURM_NODEID": str(rank // 2)} for rank in range(4)
    ]
    commands = [command(few, tmp_path / "out", pairs=FEW)] * 4
    with started(commands, [environment(**job, **place) for place in places]) as processes:
        for process in processes:
            _, errors = process.communicate(timeout=MINUTES)
            assert process.returncode == 0, errors
    check_same(tmp_path / "out", few / "one")
    assert len(list((tmp_path / "out").glob("part-*.jsonl"))) == 4


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_ends_the_run_which_goes_on_with_other_ranks(many, tmp_path, rank):
    out = tmp_path / "out"
    first = command(many, out, "--devices", "3", "--kill", str(rank), "1500")
    with started([first], [environment()]) as (process,):
        process.wait(timeout=MINUTES)
        assert process.returncode != 0
        assert not (out / large.TABLE).exists()
        # At once: other ranks of the killed run may still measure.
        run(many, out, "--devices", "2", "--workers", "1")
    check_same(out, many / "one")


@pytest.mark.slow
def test_every_kill_repeats_at_most_one_batch_per_rank(many, tmp_path):
    out = tmp_path / "out"
    for attempt in range(4):
        one = command(many, out, "--devices", "1", "--kill", "0", str(700 + 300 * attempt))
        with started([one], [environment()]) as (process,):
            process.wait(timeout=MINUTES)
            assert process.returncode == -signal.SIGKILL
    run(many, out, "--devices", "2")
    check_same(out, many / "one")
    assert measured(out) - MANY <= 4 * large.BATCH


@pytest.mark.slow
def test_memory_is_flat_over_many_pairs(many, tmp_path):
    run(many, tmp_path / "out", "--devices", "2", "--workers", "1", pairs=100_000)
    assert (tmp_path / "out" / large.TABLE).read_bytes().count(b"\n") == 100_000
    found = [json.loads(path.read_text())["memory"] for path in (tmp_path / "out").glob("watched-*.json")]
    assert len(found) == 2
    for memory in found:
        assert len(memory) >= 40
        early, late = np.median(memory[5:12]), np.median(memory[-7:])
        assert late - early < 20, memory  # MiB
