"""Commands on the CPU let OpenMP's threads wait without spinning, unless somebody has said otherwise."""

from __future__ import annotations

import os
import sys

from lpips_lightning.cli.launch import share_cores


def test_threads_wait_passively_if_torch_is_not_there_yet(monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    share_cores()
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"
    monkeypatch.delenv("OMP_WAIT_POLICY")
    share_cores()
    assert "torch" in sys.modules and "OMP_WAIT_POLICY" not in os.environ  # too late: nothing is changed
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    share_cores()
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"
    monkeypatch.delenv("OMP_WAIT_POLICY")
    share_cores()
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
