"""What other devices and systems lack: float64 on MPS, files that are flushed but not written on Windows."""

from __future__ import annotations

import os
from pathlib import Path

import forked_python
import pytest
import torch
from packaging.version import Version
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lpips_lightning.distances.vectors import DistanceVectors, pairwise_distances
from lpips_lightning.io import atomic

ROOT = Path(__file__).parents[1]


class NoFloat64(TorchDispatchMode):
    """Refuses what MPS refuses, of one kind of device."""

    def __init__(self, device):
        super().__init__()
        self.device, self.seen = device, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        results = function(*args, **(kwargs or {}))
        for result in tree_leaves(results):
            if isinstance(result, torch.Tensor) and result.device.type == self.device:
                self.seen += 1
                if result.dtype == torch.float64:
                    raise TypeError(f"{function}: MPS has no float64")
        return results


# As on a Mac with MPS, but computed here: no float64 at all may be made.
WITHOUT_FLOAT64 = """
import torch, torchmetrics
there = torch.backends.mps.is_available
torch.backends.mps.is_available = lambda: True
import lpips_lightning.batch
torch.backends.mps.is_available = there
from lpips_lightning import LearnedPerceptualImagePatchSimilarity as Metric, PerceptualLoss
from lpips_lightning.metrics.diversity import LPIPSDiversity
from lpips_lightning.metrics.judgments import HumanCeiling, JNDScore, TwoAFCScore
from lpips_lightning.recipes.colors import ColorDifference, Colorfulness
from lpips_lightning.recipes.frame_interpolation import InterpolationError
from test_other_devices import NoFloat64

x, y = torch.rand(2, 4, 3, 32, 32)
shares, rows = torch.rand(4), torch.arange(4)
metrics = {
    **{f"{reduction} {numbered}": (Metric("embedded", reduction, normalize=True), (x, y), numbered)
       for reduction in ("mean", "sum", "none") for numbered in (False, True)},
    "layers": (Metric("embedded", per_layer=True, normalize=True), (x, y), False),
    "2afc": (TwoAFCScore(), (torch.rand(4), torch.rand(4), shares), False),
    "2afc numbered": (TwoAFCScore(), (torch.rand(4), torch.rand(4), shares), True),
    "jnd": (JNDScore(), (torch.rand(4), shares), False),
    "ceiling": (HumanCeiling(), (shares,), False),
    "colors": (ColorDifference(), (x, y), False),
    "colorfulness": (Colorfulness(of="ratio"), (x, y), False),
    "interpolation": (InterpolationError(), (x, y), False),
}
loss = PerceptualLoss("embedded", data_range=(0, 1))
with NoFloat64("cpu") as seen:
    for name, (metric, columns, numbered) in metrics.items():
        for _ in range(2):
            metric.update(*columns, **({"index": rows} if numbered else {}))
        assert bool(metric.compute().isfinite().all()) if name != "layers" else metric.compute(), name
        print(name)
    loss(x.requires_grad_(), y).backward()
    loss(x, y, mask=y[:, 0] > 0.5).backward()
assert seen.seen > 1000
print(len(metrics), "metrics and a loss")
"""


def test_where_mps_is_no_state_and_no_loss_takes_float64():
    paths = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "_helpers")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    done = forked_python.run(["-W", "ignore", "-c", WITHOUT_FLOAT64], env=environment, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == "14 metrics and a loss"


@pytest.mark.skipif(
    Version(torch.__version__) < Version("2.7"),
    reason="torch 2.6 pretends no tensors on MPS: 'not linked with support'",
)
def test_all_pairs_on_mps_are_exact_on_the_cpu():
    with FakeTensorMode(), NoFloat64("mps") as seen:
        x, y = (DistanceVectors.of([torch.rand(count, 70_000, device="mps")], []) for count in (3, 4))
        found = pairwise_distances([x], [y])
        assert (found.device.type, found.dtype, found.shape) == ("mps", torch.float32, (3, 4))
        assert seen.seen > 5
        with pytest.raises(TypeError, match="MPS has no float64"):
            torch.rand(2, device="mps").double()


def test_a_file_is_flushed_with_the_flags_of_windows_too(tmp_path, monkeypatch):
    flushed = []
    monkeypatch.setattr(atomic, "_FSYNC_FLAGS", os.O_RDWR)
    monkeypatch.setattr(os, "fsync", flushed.append)
    (tmp_path / "a").write_text("")
    atomic._fsync(tmp_path / "a")
    assert len(flushed) == 1
