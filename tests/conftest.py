"""Fixtures: seeded backbones, photographs made of noise, the real backbones where they are at hand, and no network."""

from __future__ import annotations

import copy
import gc
import os
import urllib.request
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lpips_lightning.backbones import extractor
from lpips_lightning.backbones.definition import BACKBONES
from lpips_lightning.backbones.extractor import random_backbone

NETS = ("alex", "vgg", "squeeze")
REAL_WEIGHTS = os.environ.get("LPIPS_LIGHTNING_WEIGHTS")


def pytest_collection():
    """No garbage is collected while modules are imported."""
    gc.disable()


def pytest_collection_finish():
    """What was imported stays, and is not looked through again by every collection of garbage, for half a second."""
    gc.enable()
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def backbones():
    """Seeded backbone tensors by net_type, as a peer would load them too."""
    made = {}
    for seed, net in enumerate(NETS):
        made[net] = random_backbone(BACKBONES[net], seed)
        generator = torch.Generator().manual_seed(seed)
        for name, tensor in made[net].items():
            if name.endswith("bias"):
                tensor.normal_(0, 0.05, generator=generator)
    return made


@pytest.fixture(scope="session")
def backbone_files(backbones, tmp_path_factory):
    """A folder of them, in which `weights=` finds each."""
    folder = tmp_path_factory.mktemp("backbones")
    for net, tensors in backbones.items():
        save_file(tensors, folder / f"{BACKBONES[net].builder}.safetensors")
    return folder


@pytest.fixture(scope="session")
def traced_once():
    """`cut`, which copies graphs of our own backbones that it has traced before: tracing takes longer than a score."""
    made, trace = {}, extractor.cut

    def cut(record):
        if BACKBONES.get(record.name) is not record:
            return trace(record)
        if record.name not in made:
            made[record.name] = trace(record)
        graph, names = made[record.name]
        return copy.deepcopy(graph), set(names)

    return cut


@pytest.fixture(autouse=True)
def _alone(request, monkeypatch, tmp_path_factory, traced_once):
    """No network, no weights of this machine, a fixed seed."""

    def refuse(*args, **kwargs):
        raise OSError("the tests have no network")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path_factory.getbasetemp() / "torch_home"))
    monkeypatch.delenv("LPIPS_LIGHTNING_WEIGHTS", raising=False)
    torch.manual_seed(0)
    if "backbones" not in request.path.parts:  # the tests of loading trace anew
        monkeypatch.setattr(extractor, "cut", traced_once)


@pytest.fixture
def deterministic_ends():
    """What a test switches on by Trainer(deterministic=True) ends with it."""
    yield
    torch.use_deterministic_algorithms(False)
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)  # Lightning's


@pytest.fixture
def real_weights():
    """Folder of the ImageNet backbones, or a visible skip."""
    if not REAL_WEIGHTS or not Path(REAL_WEIGHTS).is_dir():
        pytest.skip("LPIPS_LIGHTNING_WEIGHTS does not name a folder with the ImageNet backbones")
    return Path(REAL_WEIGHTS)


@pytest.fixture(scope="session")
def pair():
    """pair(n, height, width, dtype): two batches on [-1, 1], smooth with noise, really different."""

    def make(n=2, height=64, width=64, dtype=torch.float32, seed=0):
        generator = torch.Generator().manual_seed(seed)

        def one():
            coarse = torch.rand(n, 3, height // 8, width // 8, generator=generator, dtype=torch.float64)
            smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
            noise = torch.rand(n, 3, height, width, generator=generator, dtype=torch.float64)
            return ((0.7 * smooth + 0.3 * noise) * 2 - 1).to(dtype)

        return one(), one()

    return make
