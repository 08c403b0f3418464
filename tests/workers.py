"""What the processes of the distributed tests run; a module of its own, since spawned processes import it by name."""

from __future__ import annotations

import os
import signal
import warnings

import judged
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from torch.utils.data import DataLoader

from lpips_lightning.calibration import PerceptualCalibration, _SetScores
from lpips_lightning.judgement_metrics import JNDScore, TwoAFCScore


def run(worker, world_size, folder, *args):
    """Run ``worker(rank, *args)`` in gloo processes; the results by rank."""
    mp.spawn(_start, (worker, world_size, str(folder), args), nprocs=world_size, join=True)
    return [torch.load(f"{folder}/{rank}.pt") for rank in range(world_size)]


def _start(rank, worker, world_size, folder, args):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=world_size)
    try:
        torch.save(worker(rank, *args), f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


def metric_over_shards(rank, jobs, images):
    """compute() of every metric after this rank's shard; a job is a metric and, by rank, the sizes of its batches."""
    x, y = images
    results = []
    for metric, shards in jobs:
        start = sum(sum(shard) for shard in shards[:rank])
        for size in shards[rank]:
            metric.update(x[start : start + size], y[start : start + size])
            start += size
        results.append(metric.compute())
    return results


def diversity_over_shards(rank, metric, groups, shards):
    """compute() after this rank's groups, given by rank as (first, last)."""
    first, last = shards[rank]
    if last > first:
        metric.update(groups[first:last])
    return metric.compute()


def judgements_over_shards(rank, columns, shards):
    """2AFC and JND scores after this rank's rows, of every way to deal them out: by rank (first, last)."""
    scores = []
    for dealt in shards:
        first, last = dealt[rank]
        d0, d1, judge = (column[first:last] for column in columns)
        afc, jnd = TwoAFCScore(), JNDScore()
        afc.update(d0, d1, judge)
        jnd.update(d0, judge)
        scores.append((afc.compute(), jnd.compute()))
    return scores


class Killed(Callback):
    """Kills its own process before a step, given as (epoch, batch)."""

    def __init__(self, at):
        self.at = at

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == self.at:
            os.kill(os.getpid(), signal.SIGKILL)


def calibrate(folder, mode, kill_at=None, ckpt_path=None):
    """Three epochs of five steps with a checkpoint after every third step; everything that was learned."""
    torch.set_num_threads(1)
    # Other random numbers in every process: nothing may depend on them.
    torch.manual_seed(os.getpid())
    warnings.filterwarnings("ignore", ".*(many workers|LeafSpec|dirpath|exists and is not empty)")
    checkpoint = ModelCheckpoint(folder, every_n_train_steps=3, save_last=True, save_top_k=0)
    trainer = Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[checkpoint, Killed(kill_at)],
    )
    data = judged.triplets(20)
    model = PerceptualCalibration("embedded", mode, lr=1e-3, constant_epochs=1, decay_epochs=2)
    trainer.fit(model, datamodule=judged.DataModule(data, [data.part(0, 5)], batch_size=4), ckpt_path=ckpt_path)
    optimizer = trainer.optimizers[0].state_dict()["state"]
    moments = {f"{number} {name}": value for number, state in optimizer.items() for name, value in state.items()}
    return {**model.state_dict(), **moments}


def calibration_scores_over_ranks(rank, world_size=2):
    """What `PerceptualCalibration` scores when each rank sees every other batch."""
    model = PerceptualCalibration("embedded", init="official").eval()
    batches = list(judged.DataModule(val=[judged.triplets(13)]).val_dataloader()[0])
    part = _SetScores("rows")
    with torch.no_grad():
        for number in range(rank, len(batches), world_size):
            part.update(model._distances(batches[number], number), batches[number])
    pairs, batches = _SetScores("pairs"), list(DataLoader(judged.pairs(9), 4))
    with torch.no_grad():
        for number in range(rank, len(batches), world_size):
            pairs.update(model._distances(batches[number], number), batches[number])
    curve = {f"recall {place}": value for place, value in enumerate(pairs.curve()[0].tolist())}
    return {"2afc": part.score(), "human": float(part.ceiling.compute()), "jnd": pairs.score(), **curve}


def validate_on_two_ranks(folder, uneven):
    """Validate the boring model's five pictures in a Trainer of two processes; each saves what it logged."""
    import boring

    from lpips_lightning.callbacks import PerceptualScores, SampleGallery

    callbacks = [
        PerceptualScores("embedded", data_range=(0, 1), table=True),
        SampleGallery("embedded", data_range=(0, 1), k=3),
    ]
    by_hand = uneven == "by hand"
    trainer = boring.trainer(folder, callbacks, strategy="ddp", devices=2, use_distributed_sampler=not by_hand)
    data = boring.shares([[0, 1, 2, 3], [4]], trainer.global_rank, seed=1) if by_hand else boring.loader(seed=1)
    trainer.validate(boring.Boring(), data, verbose=False)
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    torch.save(logged, f"{folder}/{trainer.global_rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    import sys

    validate_on_two_ranks(*sys.argv[1:])
