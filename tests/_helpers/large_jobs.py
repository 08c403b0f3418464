"""A large measurement as a command of its own, which the tests start on several ranks, kill and start again.

``python large_jobs.py IMAGES OUT --pairs N --devices N ...``; see test_large_runs.py.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import signal
import warnings
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from lpips_lightning.comparison.file_pairs import InputNeeds
from lpips_lightning.network import LPIPS
from lpips_lightning.runs import processes
from lpips_lightning.runs.engine import run
from lpips_lightning.runs.journal import Journal
from lpips_lightning.runs.launch import Launch
from lpips_lightning.runs.pairs import PairWork
from lpips_lightning.runs.results import Statistics
from lpips_lightning.sources.listed import ListedPairs

SIZES = ((32, 32), (32, 40), (40, 32), (33, 35))
UNIT, BATCH = 96, 24
TABLE = "table.jsonl"


def write_images(folder, count, seed=0):
    """`count` pairs of small images of four sizes, among them broken, missing and unequal ones; how many fail."""
    numbers = np.random.default_rng(seed)
    failed = 0
    for side in "ab":
        (folder / side).mkdir(parents=True)
    for index in range(count):
        size = SIZES[int(numbers.integers(len(SIZES)))]
        for side in "ab":
            pixels = numbers.integers(0, 256, (*size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / side / f"{index:05d}.png", compress_level=0)
        failed += _break(folder / "b" / f"{index:05d}.png", index)
    return failed


def _break(path, index):
    if index % 97 == 5:
        path.write_bytes(path.read_bytes()[:700])
    elif index % 101 == 6:
        path.unlink()
    elif index % 103 == 7:
        path.write_text("no image")
    elif index % 107 == 8:
        Image.new("RGB", (50, 50)).save(path)
    else:
        return False
    return True


@dataclass
class Watched(PairWork):
    """Says how many pairs each rank has measured and how much memory it has; kills its own process if told to.

    Attributes:
        kill: Rank and number of pairs after which it is killed.
    """

    kill: tuple[int, int] | None = None

    def start(self, trainer, device):
        super().start(trainer, device)
        self._rank, self._count, self._sampled, self._memory = trainer.global_rank, 0, 0, []
        self._kept = Path(self.folder) / f"watched-{self._rank}-{os.getpid()}.json"

    def measure(self, batch, times):
        super().measure(batch, times)
        self._count += len(batch.rows) + len(batch.errors)
        if self._count - self._sampled >= 1000:
            self._sampled = self._count
            self._memory.append(resident())
        if self.kill is not None and self._rank == self.kill[0] and self._count >= self.kill[1]:
            self._keep()
            os.kill(os.getpid(), signal.SIGKILL)

    def finish(self):
        super().finish()
        self._keep()

    def _keep(self):
        self._kept.write_text(json.dumps({"pairs": self._count, "memory": self._memory}))


def resident():
    """Memory of this process and its worker processes in MiB, without files such as libraries (Linux)."""
    total = 0
    for process in ["self", *(child.pid for child in multiprocessing.active_children())]:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss_Anon:"))
    return total / 1024


def network():
    """The network of the runs."""
    return LPIPS("embedded")


def pairs_of(images, count):
    """Pairs of a folder of `write_images`; more than it has are its own ones again."""
    there = len(list((Path(images) / "a").iterdir()))
    names = [f"{index % there:05d}.png" for index in range(count)]
    return ListedPairs([(f"{images}/a/{name}", f"{images}/b/{name}") for name in names], UNIT, "images")


def measure(images, out, count, devices, *, workers=0, kill=None, accelerator="cpu"):
    """Measure on the ranks of a Trainer; rank 0 writes the table, and what the whole has given."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    out = Path(out)
    trainer = Launch(devices=str(devices), accelerator=accelerator).trainer()
    with ExitStack() as stack:
        if trainer.is_global_zero:
            stack.enter_context(Journal(out).locked())
            Journal(out).begin({})
        needs = InputNeeds.of(network())
        run(trainer, partial(_made, images, count, needs, out, kill), workers=workers)
        if trainer.is_global_zero:
            _merge(out, -(-count // UNIT))


def _made(images, count, needs, out, kill):
    return Watched(pairs_of(images, count), network, needs, out, BATCH, kill=kill)


def _merge(out, units):
    found = Statistics()
    with (out / TABLE).open("w") as file:
        for row in found.passing(Journal(out).rows(units)):
            file.write(json.dumps(row.to_json()) + "\n")
    assert math.isfinite(found.mean)
    (out / "summary.json").write_text(json.dumps([found.count, found.failed, found.mean, found.std]))


def on_rank(rank, images, out, count, world_size, workers):
    """`measure` in a process of `subprocess_jobs.run`."""
    measure(images, out, count, world_size, workers=workers)


def measure_and_be_killed(images, out, count, kill):
    """`measure` on one rank, which is killed."""
    measure(images, out, count, 1, kill=kill)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("images")
    parser.add_argument("out")
    parser.add_argument("--pairs", type=int)
    parser.add_argument("--devices", default="auto")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--start-method")
    parser.add_argument("--kill", type=int, nargs=2)
    options = parser.parse_args()
    if options.start_method:
        torch.multiprocessing.set_start_method(options.start_method)
    kill = tuple(options.kill) if options.kill else None
    measure(options.images, options.out, options.pairs, options.devices, workers=options.workers, kill=kill)


if __name__ == "__main__":
    import large_jobs  # so that all ranks find its classes under the same name

    processes._MAIN = processes._MAIN.replace("from lpips_lightning.cli import", "from large_jobs import")
    large_jobs.main()
