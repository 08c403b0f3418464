"""Units of work on ranks: order, errors, interrupts, and commands on several ranks."""

import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from lpips_lightning.runs.engine import UnitDataset, Work, run
from lpips_lightning.runs.launch import Launch
from lpips_lightning.runs.once import PerProcess
from lpips_lightning.runs.ranks import _portable

ROOT = Path(__file__).parents[3]


@dataclass(frozen=True)
class Number:
    """One batch of a unit."""

    unit: int
    value: torch.Tensor

    def to(self, device):
        return replace(self, value=self.value.to(device))

    def pin_memory(self):
        return replace(self, value=self.value.pin_memory())

    def share(self):
        return replace(self, value=self.value.share_memory_())


class Numbers(UnitDataset):
    """Unit n has the batches 10 n and 10 n + 1."""

    def __init__(self, units, broken=()):
        super().__init__(units)
        self.broken = broken

    def __iter__(self):
        for unit in self.own_units():
            if unit in self.broken:
                raise ValueError(f"unit {unit} is broken")
            for batch in range(2):
                yield Number(unit, torch.tensor(10 * unit + batch))


class Doubling(Work):
    """Doubles numbers; keeps those of odd units to itself."""

    def __init__(self, units, broken=(), act=None):
        self.units, self.broken, self.act, self.finished = units, broken, act, False

    def todo(self):
        return self.units

    def dataset(self, units):
        return Numbers(units, self.broken)

    def measure(self, batch, times):
        assert times.waiting >= 0
        assert times.transfer >= 0
        if self.act is not None:
            self.act()
        return None if batch.unit % 2 else 2 * int(batch.value)

    def finish(self):
        self.finished = True


def one_rank():
    return Launch(devices="1", accelerator="cpu").trainer()


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_results_are_in_the_order_of_units(workers):
    work = Doubling([0, 1, 2, 5, 6])
    assert run(one_rank(), lambda: work, workers=workers) == [0, 2, 40, 42, 120, 122]
    assert work.finished


def test_no_units_have_no_results():
    assert run(one_rank(), lambda: Doubling([])) == []


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_an_error_of_reading_is_as_it_was_raised(workers):
    with pytest.raises(ValueError, match="^unit 2 is broken$"):
        run(one_rank(), lambda: Doubling([0, 1, 2], broken=[2]), workers=workers)


def test_a_run_without_room_in_shared_memory_ends(monkeypatch):
    def full(tensor):
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)  # also in forked worker processes
    assert run(one_rank(), lambda: Doubling([0, 2])) == [0, 2, 40, 42]
    with pytest.raises(OSError, match=r"^workers: expected room .* No space left .* or --workers 0$"):
        run(one_rank(), lambda: Doubling([0, 2]), workers=1)


def test_an_error_of_making_the_work_is_as_it_was_raised():
    def make():
        raise FileNotFoundError("no such list")

    with pytest.raises(FileNotFoundError, match="^no such list$"):
        run(one_rank(), make)


@pytest.mark.skipif(sys.platform == "win32", reason="no such signal")
def test_sigterm_ends_a_run_and_the_handler_is_as_before():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as raised:
        run(one_rank(), lambda: Doubling([0, 1], act=lambda: os.kill(os.getpid(), signal.SIGTERM)))
    assert raised.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_value_per_process_is_made_once_and_again_by_a_copy():
    value = PerProcess(list, (1, 2))
    assert value() is value()
    copy = pickle.loads(pickle.dumps(value))
    assert copy() == value()
    assert copy() is not value()


class ArgumentsOfItsOwnError(Exception):
    """Cannot be unpickled."""

    def __init__(self, a, b):
        super().__init__(f"{a} {b}")


@pytest.mark.parametrize(
    ("error", "kind", "notes"),
    [(ValueError("a"), ValueError, 0), (OSError("b"), OSError, 0), (RuntimeError("c"), RuntimeError, 1)],
)
def test_an_error_travels_to_rank_0(error, kind, notes):
    sent = pickle.loads(pickle.dumps(_portable(error, rank=3)))
    assert type(sent) is kind
    assert str(sent) == str(error)
    assert len(getattr(sent, "__notes__", [])) == notes


def test_an_error_that_cannot_travel_is_told():
    assert str(_portable(ArgumentsOfItsOwnError(1, 2), rank=3)) == "ArgumentsOfItsOwnError: 1 2"


# On several ranks, as commands: each test takes seconds.


@pytest.fixture
def rated(tmp_path):
    """A CSV of opinion scores of five references with four images each, and a broken copy."""
    from small_data import write_noise

    names = [f"{reference}{kind}" for reference in range(5) for kind in ("", "a", "b", "c", "d")]
    write_noise(tmp_path, names, height=64, width=64)
    rows = [f"{one[0]}.png,{one}.png,{(7 * row) % 13}" for row, one in enumerate(names) if len(one) > 1]
    (tmp_path / "scores.csv").write_text("\n".join(["reference,distorted,score", *rows]) + "\n")
    return tmp_path


def environment():
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "LPIPS_LIGHTNING_T"))}
    return {**kept, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def command(folder, *options, start=("-m", "lpips_lightning"), **more):
    """A command that correlates; its result."""
    line = [sys.executable, *start, "correlate", "scores.csv", "--net", "embedded", "--accelerator", "cpu", *options]
    given = {"cwd": folder, "env": environment(), "capture_output": True, "text": True, "timeout": 300}
    return subprocess.run(line, **{**given, **more}, check=False)


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "lpips_lightning")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "start"),
    [
        (["--devices", "2"], ("-m", "lpips_lightning")),
        (["--devices", "4", "--workers", "1"], ("-m", "lpips_lightning")),
        (["--devices", "7"], ("-m", "lpips_lightning")),  # more ranks than references
        ([], TORCHRUN),
    ],
)
def test_ranks_give_the_table_of_one_process(rated, options, start):
    alone = command(rated, "--also", "ssim", "--csv", "alone.csv", "--workers", "0")
    several = command(rated, "--also", "ssim", "--csv", "several.csv", *options, start=start)
    assert (alone.returncode, several.returncode) == (0, 0), several.stderr
    assert several.stdout == alone.stdout
    assert (rated / "several.csv").read_bytes() == (rated / "alone.csv").read_bytes()


@pytest.mark.slow
def test_tasks_of_srun_give_the_table_of_one_process(rated):
    from lightning_fabric.plugins.environments.lightning import find_free_network_port

    alone = command(rated, "--csv", "alone.csv", "--workers", "0")
    job = {"SLURM_JOB_ID": "1", "SLURM_JOB_NAME": "x", "SLURM_NNODES": "1", "SLURM_NODELIST": "localhost"}
    job |= dict.fromkeys(("SLURM_NTASKS", "SLURM_NTASKS_PER_NODE", "SLURM_STEP_NUM_TASKS"), "2")
    job |= {"SLURM_NODEID": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(find_free_network_port())}
    line = [sys.executable, "-m", "lpips_lightning", "correlate", "scores.csv", "--net", "embedded"]
    tasks = [
        subprocess.Popen(
            [*line, "--accelerator", "cpu", "--csv", "several.csv"],
            cwd=rated,
            env={**environment(), **job, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [task.communicate(timeout=300)[0] for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0]
    assert outputs == [alone.stdout, ""]
    assert (rated / "several.csv").read_bytes() == (rated / "alone.csv").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "start", "code"),
    [
        (["--devices", "2"], ("-m", "lpips_lightning"), 2),
        (["--devices", "3", "--workers", "1"], ("-m", "lpips_lightning"), 2),
        ([], TORCHRUN, 1),  # torchrun's own code
    ],
)
@pytest.mark.parametrize("broken", ["0b.png", "1b.png"])  # the first reference is rank 0's, the second rank 1's
def test_an_error_on_a_rank_is_told_once_and_ends_all(rated, options, start, code, broken):
    (rated / broken).write_bytes((rated / broken).read_bytes()[:300])
    found = command(rated, "--csv", "several.csv", *options, start=start)
    assert found.returncode == code
    own = [line for line in found.stderr.splitlines() if line.startswith("lpips-lightning:")]
    assert len(own) == 1, found.stderr
    assert f"{broken}: expected a readable image" in own[0]
    assert start == TORCHRUN or "Traceback" not in found.stderr
    assert not (rated / "several.csv").exists()
    assert found.stdout == ""


@pytest.mark.slow
@pytest.mark.parametrize("start", [("-m", "lpips_lightning"), TORCHRUN])
def test_an_error_before_the_work_is_told_once(rated, start):
    options = ["--columns", "reference,distorted,wrong"]
    found = command(rated, *options, *(["--devices", "2"] if start != TORCHRUN else []), start=start)
    assert found.returncode != 0
    assert found.stderr.count("lpips-lightning: ") == 1, found.stderr
    assert "wrong" in found.stderr


@pytest.mark.slow
def test_a_program_may_call_the_command_and_is_not_run_again(rated):
    (rated / "program.py").write_text(
        textwrap.dedent("""
        import os
        from lpips_lightning.cli import main

        print("begin")
        before = dict(os.environ)
        for number in range(2):
            name = f"several{number}.csv"
            options = ["--net", "embedded", "--accelerator", "cpu", "--devices", "2", "--csv", name]
            assert main(["correlate", "scores.csv", *options]) == 0
        assert dict(os.environ) == before | {"OMP_NUM_THREADS": os.environ["OMP_NUM_THREADS"]}
        print("end")
        """)
    )
    found = subprocess.run(
        [sys.executable, "program.py"], cwd=rated, env=environment(), capture_output=True, text=True, timeout=300
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.count("begin") == found.stdout.count("end") == 1
    assert (rated / "several0.csv").read_bytes() == (rated / "several1.csv").read_bytes()


def ranks_of(process):
    """Process ids of the ranks that a process has started."""
    found = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(pid) for pid in found if b"lpips_lightning.cli" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def is_running(pid):
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="looks for processes in /proc")
@pytest.mark.parametrize(
    ("number", "whom", "code", "message"),
    [
        (signal.SIGINT, "all", 130, ""),
        (signal.SIGINT, "first", 130, ""),
        (signal.SIGTERM, "first", -15, ""),  # 143 once the run has begun: for a shell the same
        (
            signal.SIGKILL,
            "other",
            2,
            "expected rank 1 on this machine to run to the end, but it was killed by signal 9",
        ),
        (signal.SIGKILL, "first", -9, ""),
    ],
)
@pytest.mark.parametrize("wait", [0.0, 6.0], ids=["starting", "measuring"])
def test_a_signal_ends_all_ranks(rated, number, whom, code, message, wait):
    rows = (rated / "scores.csv").read_text().splitlines()
    (rated / "scores.csv").write_text("\n".join([rows[0], *rows[1:] * 400]) + "\n")
    line = ["correlate", "scores.csv", "--net", "embedded-vgg", "--accelerator", "cpu", "--devices", "2"]
    first = subprocess.Popen(
        [sys.executable, "-m", "lpips_lightning", *line],
        cwd=rated,
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        end = time.monotonic() + 120
        while not (others := ranks_of(first)):
            assert first.poll() is None
            assert time.monotonic() < end
            time.sleep(0.1)
        time.sleep(wait)
        if whom == "all":
            os.killpg(first.pid, number)
        else:
            os.kill(first.pid if whom == "first" else others[0], number)
        errors = first.communicate(timeout=60)[1]
        end = time.monotonic() + 30
        while any(map(is_running, others)) and time.monotonic() < end:
            time.sleep(0.1)
        assert not any(map(is_running, others))
    finally:
        for pid in [first.pid, *others]:
            if is_running(pid):
                os.kill(pid, signal.SIGKILL)
    assert first.returncode in {code, 143 if code == -15 else code}, errors
    assert "Traceback" not in errors
    assert message in errors


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no such signal")
def test_ctrl_c_ends_a_run_that_waits_for_another_machine(rated):
    code = "from lpips_lightning.runs import launch; launch._SILENT = 0.5; from lpips_lightning.cli import main; main()"
    line = [sys.executable, "-c", code, "correlate", "scores.csv", "--net", "embedded", "--accelerator", "cpu"]
    process = subprocess.Popen(
        [*line, "--devices", "2", "--num-nodes", "2"],
        cwd=rated,
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        said = process.stderr.readline()
        assert said.startswith("lpips-lightning: note: waiting for 4 ranks on 2 machines to connect to 127.0.0.1:")
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == -signal.SIGINT
        assert process.stderr.read() == ""  # also the other rank has ended
    finally:
        process.kill()
        process.stderr.close()
