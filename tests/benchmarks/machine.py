"""What a measurement was taken on."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import torch

# Those that decide a convolution's speed: x86, then aarch64.
FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve", "bf16")
# Where the system lists no flags: what PyTorch has found.
CAPABILITIES = {"AVX2": ("avx2",), "AVX512": ("avx2", "avx512f"), "SVE256": ("asimd", "sve")}
# The widest that a processor has, as file names say it.
WIDEST = {"amx_bf16": "avx512 amx", "avx512f": "avx512", "avx2": "avx2", "sve": "sve", "asimd": "asimd"}
HARDWARE = ("device", "cpu", "cpu_flags", "cores", "threads", "gpu", "gpu_memory_gib")  # the rest are versions
PACKAGES = ("torch", "torchvision", "lpips", "torchmetrics", "piq", "triton")


def describe(device: torch.device) -> dict[str, object]:
    """Everything that decides the numbers; two runs with equal descriptions can be compared."""
    cpu, flags = _cpu(_cpu_info())
    described: dict[str, object] = {
        "device": device.type,
        "cpu": cpu,
        "cpu_flags": [flag for flag in FLAGS if flag in flags],
        "cores": len(_affinity()),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        described |= {
            "gpu": properties.name,
            "gpu_memory_gib": round(properties.total_memory / 2**30, 1),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "tf32_convolutions_by_default": torch.backends.cudnn.allow_tf32,
        }
    return described


def hardware(described: dict[str, object]) -> dict[str, object]:
    """The part of a description that another installation of PyTorch does not change."""
    return {key: value for key, value in described.items() if key in HARDWARE}


def versions(described: dict[str, object]) -> dict[str, object]:
    """The other part."""
    return {key: value for key, value in described.items() if key not in HARDWARE}


def slug(described: dict[str, object]) -> str:
    """A file's name for the machine.

    It carries family and model, since virtual machines with different processors may all say "AMD EPYC", the widest
    instructions, since a hypervisor may hide some, and the number of threads.
    """
    if "gpu" in described:
        words = str(described["gpu"])
    else:
        # "Intel(R) Xeon(R) Gold 6130 CPU @ 2.10GHz" and "AMD EPYC 7B13 64-Core Processor" say more than is needed.
        name = re.sub(
            r"\((R|TM)\)|\bCPU\b|\bProcessor\b|@ [\d.]+GHz|\b\d+-Core\b", " ", str(described["cpu"]), flags=re.I
        )
        flags: list[str] = described["cpu_flags"]  # type: ignore[assignment]
        widest = next((word for flag, word in WIDEST.items() if flag in flags), "")
        words = f"{name} {widest} {described['threads']} thread{'s' * (described['threads'] != 1)}"
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")


def stamp() -> dict[str, str]:
    """When, and of which commit."""
    root = Path(__file__).parents[2]
    git = ["git", "-C", str(root), "describe", "--always", "--dirty"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = "unknown"
    return {"date": datetime.date.today().isoformat(), "commit": commit}


def _cpu(info: dict[str, str]) -> tuple[str, set[str]]:
    """Name and flags of the processor; `info` is empty but on Linux, and has no names on most ARM machines."""
    if "cpu family" in info:
        name = f"{info.get('model name', 'unknown')} (family {info['cpu family']}, model {info.get('model', '?')})"
    elif "CPU part" in info:
        name = f"{platform.machine()} (implementer {info.get('CPU implementer', '?')}, part {info['CPU part']})"
    else:
        name = info.get("model name") or _brand() or platform.processor() or platform.machine() or "unknown"
    flags = (info.get("flags") or info.get("Features") or "").split()
    return name, set(flags or CAPABILITIES.get(torch.backends.cpu.get_cpu_capability(), ()))


def _cpu_info() -> dict[str, str]:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().partition("\n\n")[0].splitlines() if path.is_file() else []
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}


def _brand() -> str | None:
    """The processor's name on macOS, where `platform.processor` says "arm"."""
    if sys.platform != "darwin":
        return None
    try:
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _affinity() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
