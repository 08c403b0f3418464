"""What a measurement was taken on."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
import re
import subprocess
from pathlib import Path

import torch

FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")  # those that decide a convolution's speed
PACKAGES = ("torch", "torchvision", "lpips", "torchmetrics", "piq", "triton")


def describe(device: torch.device) -> dict[str, object]:
    """Everything that decides the numbers; two runs with equal descriptions can be compared."""
    info = _cpu_info()
    flags = set(info.get("flags", "").split())
    described: dict[str, object] = {
        "device": device.type,
        "cpu": f"{info.get('model name', platform.processor() or 'unknown')}"
        f" (family {info.get('cpu family', '?')}, model {info.get('model', '?')})",
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


def slug(described: dict[str, object]) -> str:
    """A file's name for the machine."""
    what = str(described.get("gpu") or str(described["cpu"]).partition(" (")[0])
    suffix = "" if "gpu" in described else f" {described['threads']} threads"
    amx = " amx" if "amx_bf16" in described["cpu_flags"] and "gpu" not in described else ""  # type: ignore[operator]
    return re.sub(r"[^a-z0-9]+", "-", f"{what}{amx}{suffix}".lower()).strip("-")


def stamp() -> dict[str, str]:
    """When, and of which commit."""
    root = Path(__file__).parents[2]
    git = ["git", "-C", str(root), "describe", "--always", "--dirty"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = "unknown"
    return {"date": datetime.date.today().isoformat(), "commit": commit}


def _cpu_info() -> dict[str, str]:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().partition("\n\n")[0].splitlines() if path.is_file() else []
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}


def _affinity() -> set[int]:
    import os

    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
