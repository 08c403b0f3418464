"""The Trainer of a command: options, torchrun, SLURM."""

import pytest

from lpips_lightning.runs.launch import Launch, started_by_launcher

TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "none",
    "WORLD_SIZE": "4",
    "LOCAL_WORLD_SIZE": "2",
    "RANK": "3",
    "LOCAL_RANK": "1",
    "GROUP_RANK": "1",
}
SBATCH = {  # of a script for two machines with two tasks each
    "SLURM_JOB_ID": "1234",
    "SLURM_JOB_NAME": "measure",
    "SLURM_NTASKS": "4",
    "SLURM_NTASKS_PER_NODE": "2",
    "SLURM_NNODES": "2",
    "SLURM_NODELIST": "node[1-2]",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
}
SRUN = {**SBATCH, "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NODEID": "1"}


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """Without what the machine of the tests has; `environment(values)` sets variables."""
    for name in {*TORCHRUN, *SRUN, "MASTER_ADDR", "MASTER_PORT", "NODE_RANK"}:
        monkeypatch.delenv(name, raising=False)

    def given(values):
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return given


def test_one_device_has_one_rank():
    trainer = Launch(devices="1", accelerator="cpu").trainer()
    assert (trainer.world_size, trainer.is_global_zero) == (1, True)
    assert not started_by_launcher()


@pytest.mark.parametrize("strategy", ["auto", "ddp"])
def test_several_devices_are_processes(strategy):
    trainer = Launch(devices="3", accelerator="cpu", strategy=strategy, command=("correlate", "x.csv")).trainer()
    launcher = trainer.strategy.launcher
    assert (trainer.world_size, trainer.is_global_zero) == (3, True)
    assert launcher._command == ["correlate", "x.csv"]
    assert not launcher.cluster_environment.creates_processes_externally


def test_torchrun_says_how_many_devices_there_are(environment):
    environment(TORCHRUN)
    trainer = Launch(accelerator="cpu").trainer()
    assert started_by_launcher()
    assert (trainer.world_size, trainer.global_rank, trainer.local_rank, trainer.num_nodes) == (4, 3, 1, 2)


def test_one_process_of_torchrun_is_no_run_on_ranks(environment):
    environment({**TORCHRUN, "WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0", "GROUP_RANK": "0"})
    assert not started_by_launcher()


def test_srun_says_how_many_devices_there_are(environment):
    environment(SRUN)
    trainer = Launch(accelerator="cpu").trainer()
    assert started_by_launcher()
    assert (trainer.world_size, trainer.global_rank, trainer.local_rank, trainer.num_nodes) == (4, 3, 1, 2)
    assert not trainer.strategy.cluster_environment.auto_requeue  # there are no checkpoints to go on from


@pytest.mark.parametrize(
    "found",
    [
        pytest.param(SBATCH, id="script of sbatch, without srun"),
        pytest.param({**SRUN, "SLURM_JOB_NAME": "bash", "SLURM_PROCID": "0"}, id="shell"),
        pytest.param({**SRUN, "SLURM_JOB_NAME": "interactive", "SLURM_PROCID": "0"}, id="interactive"),
        pytest.param({**SRUN, "SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, id="one task"),
    ],
)
def test_elsewhere_in_slurm_the_process_waits_for_no_other_and_may_start_ranks(environment, found):
    environment(found)
    assert not started_by_launcher()
    trainer = Launch(devices="2", accelerator="cpu").trainer()
    assert (trainer.world_size, trainer.global_rank) == (2, 0)
    assert not trainer.strategy.launcher.cluster_environment.creates_processes_externally


def test_slurm_without_tasks_per_node_is_one_line(environment, monkeypatch):
    environment(SRUN)
    monkeypatch.delenv("SLURM_NTASKS_PER_NODE")
    with pytest.raises(ValueError, match="--ntasks-per-node=4") as raised:
        Launch(accelerator="cpu").trainer()
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"devices": "x"}, "^devices: expected a number, a list such as 0,2, or auto, got 'x'$"),
        ({"devices": "1.5"}, "^devices: expected a number"),
        ({"devices": "0,x"}, "^devices: expected a number"),
        ({"devices": "0", "accelerator": "cpu"}, "^devices: expected .*, got '0': "),
        ({"devices": "-1", "accelerator": "cpu"}, "^devices: expected .*, got '-1': "),
        ({"devices": "0,2", "accelerator": "cpu"}, "^devices: expected .*, got '0,2': "),
        ({"accelerator": "nope"}, "^accelerator: expected .*, got 'nope': "),
        *(({"strategy": name}, "^strategy: expected auto or ddp, got ") for name in ("ddp_spawn", "ddp_fork", "fsdp")),
    ],
)
def test_a_wrong_option_is_one_line(options, message):
    with pytest.raises(ValueError, match=message) as raised:
        Launch(**options).trainer()
    assert "\n" not in str(raised.value)
