"""Killed, out of room, not allowed to write, eight at once: what is on the disk is whole, and no work is lost."""

from __future__ import annotations

import random
import shutil
import signal
import tempfile
import urllib.request
from pathlib import Path

import crash_jobs as faults
import pytest
import subprocess_jobs as workers
import torch

from lpips_lightning.calibration.module import PerceptualCalibration

# 2026-11-21, pytorch_lightning: its advice on loaders, and on a folder of checkpoints that is used again.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*exists and is not empty"),
    # 2026-11-27, pytorch_lightning/loops/fit_loop.py: in mode lin the frozen backbone is meant to be in eval mode.
    pytest.mark.filterwarnings(r"ignore:Found \d+ module\(s\) in eval mode"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
]
KINDS = list(faults.WORK)
STEPS = {"calibrating": 15, "training": 12, "exporting": 0}
URLOPEN = urllib.request.urlopen  # the tests have no network, but file:// is none


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """uninterrupted(kind): what the work comes to, and at how many moments it changes something on the disk."""
    known = {}

    def of(kind):
        if kind not in known:
            folder = tmp_path_factory.mktemp("whole") / kind
            process = workers.start(faults.at_work, kind, folder, tmp_path_factory.getbasetemp())
            process.join()
            assert process.exitcode == 0
            assert faults.check_whole(folder) >= 1
            known[kind] = torch.load(folder / "result.pt"), int((folder / faults.MOMENTS).read_text())
        return known[kind]

    return of


@pytest.fixture(autouse=True)
def _files_can_be_opened(monkeypatch):
    def only_files(request, **options):
        assert request.full_url.startswith("file://")
        return URLOPEN(request, **options)

    monkeypatch.setattr(urllib.request, "urlopen", only_files)


@pytest.fixture(autouse=True)
def _one_thread():
    """As in the processes that are killed; more would add in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def steps(monkeypatch):
    """A list that grows with every training step."""
    done = []
    for model in (PerceptualCalibration, faults.Heavy):

        def counted(self, batch, batch_idx, step=model.training_step):
            done.append(batch_idx)
            return step(self, batch, batch_idx)

        monkeypatch.setattr(model, "training_step", counted)
    return done


@pytest.fixture
def elsewhere(tmp_path):
    """A folder on another file system, where there is one."""
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev:
        yield tmp_path
        return
    folder = Path(tempfile.mkdtemp(dir=memory))
    yield folder
    shutil.rmtree(folder)


FEW = (0, 1, 2, 5)  # all kinds; between two changes, or in the middle of a write


@pytest.mark.parametrize(
    "seed", [pytest.param(seed, marks=[pytest.mark.slow] * (seed not in FEW)) for seed in range(20)]
)
def test_killed_at_any_moment_it_leaves_whole_files_and_goes_on_to_the_same_result(
    seed, uninterrupted, tmp_path, elsewhere, steps
):
    kind, folder = KINDS[seed % len(KINDS)], tmp_path / "work"
    expected, moments = uninterrupted(kind)
    drawn = random.Random(seed)
    at, size = int(drawn.uniform(0.05, 0.7) * moments), None
    if seed % 2:  # in the middle of a write
        size = drawn.randint(1, 4000)
    process = workers.start(faults.at_work, kind, folder, elsewhere, at, size)
    process.join()
    assert process.exitcode == -(signal.SIGXFSZ if size else signal.SIGKILL)
    if size:
        left = [path.stat().st_size for path in folder.rglob(".*")]
        assert any(found <= size for found in left)  # it is 0 where a writer asks for all of its room at once
    faults.check_whole(folder)

    last = folder / "last.ckpt"
    left = STEPS[kind] - (torch.load(last)["global_step"] if last.exists() else 0)
    again = {"rounds": 1} if kind == "exporting" else {}
    found = faults.WORK[kind](folder, last if last.exists() else None, **again)
    assert len(steps) == left
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert faults.check_whole(folder) >= 1
