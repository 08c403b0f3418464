"""The allocator's opt-in: calls reuse memory instead of fetching it from the system."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a threshold of glibc's malloc")
def test_kept_memory_is_not_fetched_from_the_system_again():
    code = """
import resource, torch
from lpips_lightning import LPIPS, keep_freed_memory
net = LPIPS("embedded")
x, y = torch.rand(2, 4, 3, 256, 256)
for choice in ("release", "keep"):
    if choice == "keep":
        keep_freed_memory()
    with torch.no_grad():
        for call in range(8):
            if call == 3:
                before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            net(x, y, 1.0)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    released, kept = map(int, subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True).split())
    assert kept < 0.1 * released
