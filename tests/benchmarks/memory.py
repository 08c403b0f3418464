"""Peak memory of one call, in a process of its own."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import torch

from benchmarks.contenders import contender, images

MIB = 2**20


def measure(
    name: str, setting: str, net: str, batch: int, side: int, work: str, device: torch.device
) -> dict[str, object] | None:
    """Run `main` in a fresh process.

    Returns:
        The row; None where there is no such contender.

    Raises:
        RuntimeError: If it fails, as when memory runs out.
    """
    args = [name, setting, net, str(batch), str(side), work, str(device), "--threads", str(torch.get_num_threads())]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory", *args], env=env, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(
            f"{' '.join(args)}: expected a measurement, got exit status {done.returncode}\n{done.stderr}"
        )
    return json.loads(done.stdout)


def room(side: int, work: str, device: torch.device) -> bool:
    """Whether the machine can take this of one pair of images from whoever does not bound memory.

    Of vgg at 2048 pixels the forward of `lpips` takes about 10.9 GiB, the step about 16; half as much again is wanted.
    """
    need = {"forward": 10.9, "step": 16.0}[work] * (side / 2048) ** 2 * 1.5 * 2**30
    if side < 2048:
        return True
    if device.type == "cuda":
        return need < torch.cuda.mem_get_info(device)[0]
    available = [line.split() for line in Path("/proc/meminfo").read_text().splitlines() if "MemAvailable" in line]
    return need < int(available[0][1]) * 1024


def is_measurable(device: torch.device) -> bool:
    """Whether the peak can be read: from CUDA, or from Linux's /proc."""
    return device.type == "cuda" or Path("/proc/self/clear_refs").exists()


def main() -> None:
    """Measure, and print a row as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    for argument in ("name", "setting", "net"):
        parser.add_argument(argument)
    parser.add_argument("batch", type=int)
    parser.add_argument("side", type=int)
    parser.add_argument("work", choices=("forward", "step"))
    parser.add_argument("device", type=torch.device)
    parser.add_argument("--threads", type=int, required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(json.dumps(_row(args)))


def _row(args: argparse.Namespace) -> dict[str, object] | None:
    each = contender(args.name, args.setting, args.net, args.device)
    if each is None:
        return None
    # Once on a small pair: threads, code that libraries make at the first call, weights made ready. From here on only
    # the work counts.
    small = [each.prepare(batch) for batch in images(1, 128, args.device)]
    each.run(args.work, small[0].requires_grad_(args.work == "step"), small[1])
    del small
    x, y = (each.prepare(batch) for batch in images(args.batch, args.side, args.device))
    x.requires_grad_(args.work == "step")
    gc.collect()
    before = _start(args.device)
    wall, cpu = time.perf_counter(), time.process_time()
    each.run(args.work, x, y)
    peak = _peak(args.device)  # waits for the device
    return {
        "contender": args.name,
        "setting": args.setting,
        "peak_mib": round((peak - before) / MIB, 1),
        "inputs_mib": round((x.nbytes + y.nbytes) / MIB, 1),
        "once_wall_s": time.perf_counter() - wall,
        "once_cpu_s": time.process_time() - cpu,
    }


def _start(device: torch.device) -> int:
    """Bytes held before the work; forgets the peak up to now."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    with contextlib.suppress(OSError, AttributeError):  # another libc
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # what was freed while loading must not hide what the work takes
    Path("/proc/self/clear_refs").write_text("5")  # Linux: VmHWM starts again at VmRSS
    return _status("VmRSS")


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device)
    return _status("VmHWM")


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status: expected a line {field}, got none")


if __name__ == "__main__":
    main()
