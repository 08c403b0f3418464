"""Jobs of the distributed tests, in a module that spawned processes can import."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import time
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import toy_judgments as judged
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import Callback, ModelCheckpoint

from lpips_lightning.calibration.module import PerceptualCalibration
from lpips_lightning.io.checkpoint_io import AtomicCheckpointIO

# What every process needs, imported once by the server that they are forked from.
PRELOADED = [
    *("pytest", "torch.distributed", "torchvision.models", "torchmetrics.image", "pytorch_lightning", "kornia"),
    *(
        "lpips_lightning.calibration.module",
        "lpips_lightning.callbacks",
        "lpips_lightning.data.distortions",
    ),  # from a checkout too
]
SECONDS = 900  # a run that takes longer hangs: gloo itself gives up after 1800, and a machine may be slow


def start(target, *args):
    """A process that runs ``target(*args)``, without the seconds that imports take."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=_quietly, args=(target, args))
    process.start()
    return process


def _quietly(target, args):
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    target(*args)


def run(worker, world_size, folder, *args, seconds=SECONDS):
    """Run ``worker(rank, *args)`` in gloo processes; the results by rank. All processes are ended."""
    multiprocessing.set_forkserver_preload(PRELOADED)
    # In a file: torch would hand tensors over one by one, each with a file handle.
    Path(folder, "args.pkl").write_bytes(pickle.dumps((worker, args)))
    started = mp.start_processes(_start, (world_size, str(folder)), world_size, join=False, start_method="forkserver")
    end = time.monotonic() + seconds
    try:
        while not started.join(timeout=1):
            if time.monotonic() > end:
                raise TimeoutError(f"{worker.__name__}: {world_size} processes hang")
    finally:
        for process in started.processes:
            process.kill()
    return [torch.load(f"{folder}/{rank}.pt") for rank in range(world_size)]


def wait_until(condition):
    """Wait for a result, with a timeout for hanging processes."""
    end = time.monotonic() + SECONDS
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError("processes hang")
        time.sleep(0.01)


def _start(rank, world_size, folder):
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    worker, args = pickle.loads(Path(folder, "args.pkl").read_bytes())
    # What torchrun says; a Trainer then takes this process as one of its own.
    known = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "GROUP_RANK": 0,
        "WORLD_SIZE": world_size,
        "LOCAL_WORLD_SIZE": world_size,
    }
    os.environ |= {name: str(value) for name, value in known.items()}
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=world_size)
    try:
        torch.save(worker(rank, *args), f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


def scores_over_ranks(rank, world_size, folder, jobs, validations):
    """Results of metrics and Trainers on this rank; see sharding.py and test_distributed.py."""
    found = [job.on(rank) for job in jobs]
    return found, [one.on(rank, world_size, f"{folder}/{one.name}") for one in validations]


def raise_before_the_sync(rank, metric, images):
    """One rank's images are outside the range while the others wait in the reduction."""
    try:
        metric.update(images + 7 * rank, images)
    except ValueError as error:
        raise ValueError(f"rank {rank}: {error}") from error
    return metric.compute()


class Killed(Callback):
    """Kills its own process before a step, given as (epoch, batch)."""

    def __init__(self, at):
        self.at = at

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == self.at:
            os.kill(os.getpid(), signal.SIGKILL)


def calibrate(folder, mode, kill_at=None, ckpt_path=None, every=3):
    """Three epochs of five steps with a checkpoint after every third step; everything that was learned."""
    torch.set_num_threads(1)
    # Other random numbers in every process: nothing may depend on them.
    torch.manual_seed(os.getpid())
    warnings.filterwarnings("ignore", ".*(many workers|LeafSpec|dirpath|exists and is not empty)")
    checkpoint = ModelCheckpoint(folder, every_n_train_steps=every, save_last=True, save_top_k=0)
    trainer = Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[checkpoint, Killed(kill_at)],
        plugins=[AtomicCheckpointIO()],
    )
    data = judged.triplets(20)
    model = PerceptualCalibration("embedded", mode, lr=1e-3, constant_epochs=1, decay_epochs=2)
    trainer.fit(model, datamodule=judged.DataModule(data, [data.part(0, 5)], batch_size=4), ckpt_path=ckpt_path)
    return learned(trainer, model)


def learned(trainer, model):
    """Weights and the optimizer's moments."""
    optimizer = trainer.optimizers[0].state_dict()["state"]
    moments = {f"{number} {name}": value for number, state in optimizer.items() for name, value in state.items()}
    return {**model.state_dict(), **moments}


def fail_in_a_step(folder, rank, stage):
    """Fit on two ranks, of which one raises in its second training or validation step."""
    import boring_module as boring

    from lpips_lightning.callbacks import PerceptualScores

    class Failing(boring.Boring):
        def _step(self, name, batch, batch_idx):
            if (stage, rank) == (name, self.global_rank) and batch_idx == 1:
                raise ValueError(f"the {name} step of rank {rank} went wrong")

        def training_step(self, batch, batch_idx):
            self._step("training", batch, batch_idx)
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            self._step("validation", batch, batch_idx)
            return super().validation_step(batch, batch_idx)

    scores = PerceptualScores("embedded", data_range=(0, 1))
    trainer = boring.trainer(folder, [scores], strategy="ddp", devices=2, num_sanity_val_steps=0)
    trainer.fit(Failing(loss="embedded"), boring.loader(8), boring.loader(8, seed=1))


if __name__ == "__main__":
    import sys

    warnings.filterwarnings("ignore")
    fail_in_a_step(sys.argv[1], int(sys.argv[2]), sys.argv[3])
