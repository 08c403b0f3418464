"""Stripes of rows against whole images: values, work and memory."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from frozen_networks import frozen_network
from tiling_nets import PIECES, made, whole
from torch import nn
from torch.nn import functional as F

from lpips_lightning import LPIPS
from lpips_lightning.backbones.custom import from_module
from lpips_lightning.distances.lpips import layer_distances
from lpips_lightning.engine.constants import STRIP_BYTES
from lpips_lightning.engine.graph import build_layer_graph
from lpips_lightning.engine.streaming import stream
from lpips_lightning.engine.windows import Convolution
from lpips_lightning.images.preprocessing import to_backbone

BLOCKS = (1, 40_000, STRIP_BYTES)  # bytes: row by row, some rows, all rows


def as_they_are(images):
    return images


@pytest.mark.parametrize(
    ("name", "size"),
    [
        *((name, (97, 131)) for name in PIECES),
        ("thin", (64, 200)),
        ("odd", (65, 200)),
        ("vgg", (33, 40)),
        ("alex", (211, 64)),
    ],
)
def test_stripes_give_the_distances_of_the_whole(backbones, pair, name, size):
    _, network = made(name, backbones)
    x, y = pair(2, *size, torch.float64)
    expected, _ = whole(network, x, y)
    for block in BLOCKS:
        found = stream(network, x, y, as_they_are, as_they_are, block)
        assert list(found) == list(expected)
        for layer, distances in expected.items():
            assert found[layer].shape == (2,) and found[layer].dtype == torch.float64
            assert torch.allclose(found[layer], distances, rtol=1e-12, atol=0), (layer, block)


@pytest.mark.parametrize("name", [*PIECES, "vgg"])
def test_stripes_of_the_smallest_images(backbones, name):
    net, network = made(name, backbones)
    side = frozen_network(net).record.smallest_side
    x, y = torch.rand(2, 1, 3, side, side + 5, dtype=torch.float64)
    expected, _ = whole(network, x, y)
    found = stream(network, x, y, as_they_are, as_they_are, 1)
    assert all(torch.allclose(found[layer], expected[layer], rtol=1e-12, atol=0) for layer in expected)


@pytest.mark.parametrize("block", BLOCKS)
def test_no_row_is_computed_twice(backbones, pair, monkeypatch, block):
    _, network = made("thin", backbones)
    rows = []
    run = Convolution.run_rows
    monkeypatch.setattr(
        Convolution, "run_rows", lambda self, *given: [made := run(self, *given), rows.append(made.shape[2])][0]
    )
    stream(network, *pair(1, 96, 40, torch.float64), as_they_are, as_they_are, block)
    layer_graph = build_layer_graph(network.extractor.graph)
    heights = [
        layer_graph.shapes((96, 40))[node.name][1] for node in layer_graph.nodes if isinstance(node.op, Convolution)
    ]
    assert len(heights) == 13
    assert sum(rows) == 2 * sum(heights)
    assert (len(rows) == 2 * 13) == (block == STRIP_BYTES)


def test_thin_rows_wait_for_others(backbones, pair, monkeypatch):
    """So that the deepest convolution, whose rows are few, is not called for each strip of the image."""
    _, network = made("thin", backbones)
    deepest = list(network.extractor.graph.modules())[-2]
    assert isinstance(deepest, nn.Conv2d)
    calls = []
    run = Convolution.run_rows
    monkeypatch.setattr(
        Convolution, "run_rows", lambda self, *given: [run(self, *given), calls.append(self.module is deepest)][0]
    )
    stream(network, *pair(1, 400, 32, torch.float64), as_they_are, as_they_are, 16 * 6 * 32 * 8)  # 16 rows
    assert 2 <= sum(calls) <= 2 * 4
    assert len(calls) > 100


def test_each_batch_is_prepared_in_its_own_way_and_stays_as_it_is(pair):
    module = nn.Sequential(nn.Hardtanh(-0.5, 0.5, inplace=True), nn.Conv2d(3, 4, 3), nn.ReLU())
    network = frozen_network(LPIPS(from_module(module, ["0", "2"]), calibrated=False), torch.float64)
    x, y = pair(1, 80, 96, torch.float64)
    y8 = ((y + 1) * 127.5).to(torch.uint8)
    before = x.clone()
    graphs = []

    def prepare(images):
        graphs.append(torch.is_grad_enabled())
        return to_backbone(images, (0.0, 9.0), network.shift, network.scale, torch.float64, clamp=False)

    with torch.no_grad():
        expected = layer_distances(network.extractor(x.clone()), network.extractor(prepare(y8)), None)
    found = stream(network, x, y8, as_they_are, prepare, 40_000)
    assert all(torch.allclose(found[layer], expected[layer], rtol=1e-12, atol=0) for layer in expected)
    assert torch.equal(x, before)
    assert graphs and not any(graphs)


class ChangedLater(nn.Module):
    """A convolution sees what is changed in place after it, and so does a sum."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.end = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 5, padding=2), nn.Identity()

    def forward(self, images):
        x = self.first(images)
        second = self.second(x)
        third = x + second
        x = F.hardtanh(x, -0.1, 0.1, inplace=True)
        return self.end(torch.cat([x, second, third], dim=1))


def test_what_is_changed_in_place_was_not_changed_for_those_before(pair):
    network = frozen_network(LPIPS(from_module(ChangedLater(), ["end"]), calibrated=False), torch.float64)
    x, y = pair(1, 64, 72, torch.float64)
    with torch.no_grad():
        expected = layer_distances(network.extractor(x), network.extractor(y), None)
    for block in (1, 20_000, STRIP_BYTES):
        found = stream(network, x, y, as_they_are, as_they_are, block)
        assert torch.allclose(found["end"], expected["end"], rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", PIECES)
def test_equal_images_are_at_distance_0_exactly(backbones, pair, name):
    net, _ = made(name, backbones)
    x = pair(1, 64, 72)[0]
    network = frozen_network(net, torch.float32, x.device)
    for block in BLOCKS:
        found = stream(network, x, x.clone(), as_they_are, as_they_are, block)
        assert all(float(distance) == 0.0 for distance in found.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_precisions(backbones, pair, dtype):
    net, reference = made("squeeze", backbones)
    x, y = pair(1, 72, 64, torch.float64)
    network = frozen_network(net, dtype, x.device)
    found = stream(network, x.to(dtype), y.to(dtype), as_they_are, as_they_are, 40_000)
    expected, _ = whole(network, x.to(dtype), y.to(dtype))
    for layer, distance in expected.items():
        assert found[layer].dtype == torch.float32
        assert torch.allclose(found[layer], distance, rtol=1e-5 if dtype == torch.float32 else 2e-2)
    exact, _ = whole(reference, x, y)
    assert all(torch.allclose(found[layer].double(), exact[layer], rtol=5e-2) for layer in exact)


MEMORY = """
import torch
from lpips_lightning import LPIPS
from lpips_lightning.engine.streaming import stream

def kib(key):
    return int(next(line for line in open("/proc/self/status") if line.startswith(key)).split()[1])

network = LPIPS("vgg", weights="random").frozen_network(torch.device("cpu"), torch.float32)
x, y = torch.rand(2, 1, 3, {height}, {width})
prepare = lambda images: images * 2 - 1
stream(network, x[..., :64, :64], y[..., :64, :64], prepare, prepare)
before = kib("VmRSS")
stream(network, x, y, prepare, prepare)
print((kib("VmHWM") - before) / 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("height", "width", "most"), [(1024, 2048, 400), (256, 4096, 800)])
def test_memory_of_huge_images(height, width, most):
    code = MEMORY.format(height=height, width=width)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 10 < float(done.stdout) < most


def test_a_backbone_that_cannot_be_followed_is_refused(pair):
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(4), nn.ReLU())
    network = frozen_network(LPIPS(from_module(module, ["2"]), calibrated=False))
    with pytest.raises(ValueError, match=r"expected convolutions, pools and .*, got AdaptiveAvgPool2d"):
        stream(network, *pair(1, 64, 64), as_they_are, as_they_are)
