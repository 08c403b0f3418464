"""What the processes of the distributed tests run; a module of its own, since spawned processes import it by name."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from lpips_lightning.judgements import JNDScore, TwoAFCScore


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
    """2AFC and JND scores after this rank's rows, given by rank as (first, last)."""
    first, last = shards[rank]
    d0, d1, judge = (column[first:last] for column in columns)
    afc, jnd = TwoAFCScore(), JNDScore()
    afc.update(d0, d1, judge)
    jnd.update(d0, judge)
    return afc.compute(), jnd.compute()
