"""What the processes of the distributed tests run; a module of its own, since spawned processes import it by name."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


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
