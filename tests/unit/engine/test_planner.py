"""How much memory a call takes, and which way is chosen within a budget."""

from __future__ import annotations

import os
import subprocess
import sys

import forked_python
import pytest
import torch
from frozen_networks import frozen_network
from references import relative_distance
from tiling_nets import made, whole
from torch import nn

from lpips_lightning import LPIPS
from lpips_lightning.backbones.custom import from_module
from lpips_lightning.engine.constants import STRIP_BYTES
from lpips_lightning.engine.memory import _LiveBytes, estimate, estimate_stream, peak_bytes
from lpips_lightning.engine.planner import plan
from lpips_lightning.engine.streaming import stream
from lpips_lightning.engine.tiling import tiled_gradient

MIB = 2**20


def empty(*shape, **options):
    return torch.empty(*shape, device="meta", **options)


def test_peak_bytes_counts_what_is_alive():
    x = empty(1000)
    assert peak_bytes(lambda: x + 1, [x]) == 4000
    assert peak_bytes(lambda: (x + 1).exp_().view(10, 100).relu_(), [x]) == 4000
    assert peak_bytes(lambda: x.view(10, 100).relu_(), [x]) == 0
    assert peak_bytes(lambda: [(x + 1).sum() for _ in range(9)], [x]) == 4000 + 9 * 4
    assert peak_bytes(lambda: [x + 1 for _ in range(9)], [x]) == 9 * 4000
    assert peak_bytes(lambda: x.double(), [x]) == 8000


def test_peak_bytes_counts_what_autograd_keeps():
    x = empty(1000, requires_grad=True)

    def chain():
        result = x
        for _ in range(5):
            result = result.exp()  # each is kept for the backward pass
        return torch.autograd.grad(result.sum(), x)

    assert 5 * 4000 <= peak_bytes(chain, [x]) <= 8 * 4000
    with torch.no_grad():
        assert peak_bytes(lambda: x.exp().exp().exp().exp().exp().sum(), [x]) <= 2 * 4000 + 4


@pytest.fixture
def networks(backbones):
    return {name: frozen_network(LPIPS(name, weights=backbones[name])) for name in backbones}


def test_an_estimate_copies_no_weights_and_changes_none(networks):
    network = networks["alex"]
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    estimate(network, (1, 3, 600, 600), "gradient")
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert all(tensor.device.type == "cpu" for tensor in network.state_dict().values())


class _Counted(_LiveBytes):
    """Bytes of the tensors that a call really allocates, on any device."""

    def _run(self, func, args, kwargs):
        return func(*args, **kwargs)


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("distance", ["style", "lpips_plus", "mean_pool"])
def test_an_estimate_of_other_distances_holds_where_autograd_runs_the_backbone(distance, gradient):
    net = LPIPS("embedded-vgg", distance=distance)
    x, y = torch.rand(2, 1, 3, 224, 224)
    x.requires_grad_(gradient)
    with torch.set_grad_enabled(gradient), _Counted([x, y]) as counted:
        total = net(x, y, data_range=(0, 1)).sum()
        if gradient:
            total.backward()
    found = estimate(frozen_network(net), (1, 3, 224, 224), "gradient" if gradient else "forward")
    assert 0.6 < counted.peak / found < 1.02


@pytest.mark.parametrize("work", ["forward", "gradient", "tile"])
@pytest.mark.parametrize("name", ["alex", "vgg", "squeeze"])
def test_estimates_grow_with_the_images(networks, name, work):
    network = networks[name]
    sizes = [estimate(network, (1, 3, side, side), work) for side in (128, 256, 512, 1024, 2048)]
    assert sizes == sorted(sizes)
    assert 3 < sizes[4] / sizes[3] < 4.05
    assert estimate(network, (4, 3, 1024, 1024), work) > 3 * sizes[3]
    # What must be there: for the values the first layer of both images, for the gradient of one more.
    first = {"alex": 64 / 16, "vgg": 64, "squeeze": 64 / 4}[name] * 4 * 2048**2
    assert (2 if work == "forward" else 3) * 0.9 * first < sizes[4] < 12 * first


def test_a_backbone_in_half_precision_takes_half(networks, backbones):
    net = LPIPS("vgg", weights=backbones["vgg"])
    half = estimate(frozen_network(net, torch.bfloat16), (1, 3, 2048, 2048), "gradient")
    assert 0.4 < half / estimate(networks["vgg"], (1, 3, 2048, 2048), "gradient") < 0.7


def test_stripes_take_little_and_grow_with_their_block(networks):
    network = networks["vgg"]
    sizes = [estimate_stream(network, (1, 3, 2048, 1024), block * MIB) for block in (4, 16)]
    assert sizes == sorted(sizes)
    assert sizes[1] < 200 * MIB < estimate(network, (1, 3, 2048, 1024), "forward") / 8
    assert estimate_stream(network, (1, 3, 8192, 1024), 16 * MIB) == sizes[1]


def test_what_fits_is_done_at_once(networks):
    network = networks["alex"]
    for gradient in (False, True):
        found = plan(network, (16, 3, 64, 64), 1024 * MIB, gradient)
        assert (found.way, found.images, found.reason) == ("whole", 16, "")
        assert found.size <= 1024 * MIB


@pytest.mark.parametrize("gradient", [False, True])
def test_what_does_not_fit_is_done_in_parts_of_the_batch(networks, gradient):
    network = networks["vgg"]
    work = "gradient" if gradient else "forward"
    shape = (10, 3, 256, 256)
    found = plan(network, shape, 400 * MIB, gradient)
    assert found.way == "images" and 1 <= found.images < 10 and found.reason == ""
    assert estimate(network, (found.images, *shape[1:]), work) == found.size <= 400 * MIB
    fewer_parts = -(-10 // (-(-10 // found.images) - 1))
    assert estimate(network, (fewer_parts, *shape[1:]), work) > 400 * MIB


def test_huge_images_go_in_stripes_or_tiles(networks):
    for name, network in networks.items():
        if name != "squeeze":
            rows = plan(network, (1, 3, 4096, 4096), 300 * MIB, False)
            assert (rows.way, rows.reason, rows.strip_bytes) == ("rows", "", STRIP_BYTES) and rows.size <= 300 * MIB
        budget = min(2048 * MIB, estimate(network, (1, 3, 4096, 4096), "gradient") - 1)  # the whole must not fit
        tiles = plan(network, (1, 3, 4096, 4096), budget, True)
        assert (tiles.way, tiles.reason) == ("tiles", "") and 1000 * MIB < tiles.size <= budget
        assert min(tiles.tile) >= 256


def test_a_smaller_budget_gives_smaller_pieces(networks):
    network = networks["vgg"]
    tiles = [plan(network, (1, 3, 2048, 2048), budget * MIB, True) for budget in (500, 1000, 2000, 4000)]
    areas = [found.tile[0] * found.tile[1] for found in tiles]
    assert areas == sorted(areas) and areas[0] < areas[-1]
    blocks = [plan(network, (1, 3, 1024, 512), budget * MIB, False).strip_bytes for budget in (40, 400)]
    assert blocks == sorted(blocks) and blocks[0] < blocks[-1] == STRIP_BYTES


@pytest.mark.parametrize("gradient", [False, True])
def test_what_fits_nowhere_is_done_in_the_smallest_pieces_and_says_so(networks, gradient):
    found = plan(networks["vgg"], (1, 3, 512, 512), 1 * MIB, gradient)
    assert found.way == ("tiles" if gradient else "rows")
    assert found.size > MIB and str(found.size) in found.reason and f"more than {MIB}" in found.reason


@pytest.mark.parametrize("gradient", [False, True])
def test_a_backbone_that_cannot_be_followed_is_evaluated_image_by_image(gradient):
    module = nn.Sequential(nn.Conv2d(3, 32, 3), nn.InstanceNorm2d(32), nn.ReLU())
    network = frozen_network(LPIPS(from_module(module, ["2"]), calibrated=False))
    found = plan(network, (3, 3, 1024, 1024), 100 * MIB, gradient)
    assert (found.way, found.images) == ("images", 1)
    assert "images cannot be split into strips or tiles" in found.reason and "InstanceNorm2d" in found.reason
    assert plan(network, (3, 3, 64, 64), 100 * MIB, gradient).way == "whole"


def test_a_backbone_that_hooks_pick_up_is_estimated_too():
    class Untraced(nn.Module):
        def __init__(self):
            super().__init__()
            self.end = nn.Conv2d(3, 64, 3)

        def forward(self, images):
            return self.end(images) if len(images) < 10**6 else images

    network = frozen_network(LPIPS(from_module(Untraced(), ["end"]), calibrated=False))
    assert estimate(network, (1, 3, 1024, 1024), "forward") > 2 * 64 * 4 * 1000**2


@pytest.mark.parametrize("budget", [0, -1])
def test_a_budget_is_positive(networks, budget):
    with pytest.raises(ValueError, match=f"memory_budget: expected a positive number of bytes, got {budget}"):
        plan(networks["alex"], (1, 3, 64, 64), budget, False)


def test_plans_give_the_numbers_of_the_whole(backbones, pair):
    _, network = made("embedded", backbones)
    x, y = pair(1, 300, 420, torch.float64)
    expected, gradient = whole(network, x, y)
    rows = plan(network, x.shape, 8 * MIB, False)
    found = stream(network, x, y, torch.Tensor.double, torch.Tensor.double, rows.strip_bytes)
    tiles = plan(network, x.shape, 12 * MIB, True)
    found_tiles, found_gradient = tiled_gradient(network, x, y, torch.Tensor.double, torch.Tensor.double, tiles.tile)
    assert (rows.way, tiles.way) == ("rows", "tiles") and tiles.tile < (300, 420)
    for layer, distance in expected.items():
        assert torch.allclose(found[layer], distance, rtol=1e-12) and torch.allclose(found_tiles[layer], distance)
    assert relative_distance(found_gradient, gradient) < 1e-10


MEASURED = """
import sys, torch
from lpips_lightning import LPIPS
from lpips_lightning.engine.memory import _forward, _gradient, estimate, estimate_stream
from lpips_lightning.engine.constants import STRIP_BYTES
from lpips_lightning.engine.streaming import stream
from lpips_lightning.engine.tiling import tiled_gradient

def kib(key):
    return int(next(line for line in open("/proc/self/status") if line.startswith(key)).split()[1])

net, height, width, way = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
network = LPIPS(net, weights="random").frozen_network(torch.device("cpu"), torch.float32)
x, y = torch.rand(2, 1, 3, height, width)
prepare = lambda images: (images * 2 - 1).contiguous(memory_format=torch.channels_last)
runs = {
    "forward": lambda x, y: _forward(network, x, y, prepare, prepare),
    "rows": lambda x, y: stream(network, x, y, prepare, prepare),
    "gradient": lambda x, y: _gradient(network, x, y, prepare, prepare),
    "tile": lambda x, y: tiled_gradient(network, x, y, prepare, prepare, (height, width)),
}
runs[way](x[..., :256, :256], y[..., :256, :256])  # all weights have been made ready
if way == "rows":
    expected = estimate_stream(network, x.shape, STRIP_BYTES)
else:
    expected = estimate(network, x.shape, way)
before = kib("VmRSS")
runs[way](x, y)
print((kib("VmHWM") - before) * 1024 / expected)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("way", ["forward", "rows", "gradient", "tile"])
@pytest.mark.parametrize("net", ["alex", "squeeze", "vgg"])
def test_an_estimate_is_what_is_measured(net, way):
    height, width = {"alex": (1024, 1024), "squeeze": (768, 768), "vgg": (384, 512)}[net]
    command = [sys.executable, "-c", MEASURED, net, str(height), str(width), way]
    exact = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "MALLOC_MMAP_THRESHOLD_": "65536",
    }  # what is freed goes back to the system at once
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=exact)
    assert 0.8 < float(done.stdout) < 1.1


FIRST = """
from lpips_lightning import LPIPS
net = LPIPS("squeeze", weights="random", memory_budget=2**34)
sizes = [net.plan((count, 3, 256, 256)).size for count in (1, 2, 4)]
assert 1.8 < sizes[1] / sizes[0] < 2.1 and 1.8 < sizes[2] / sizes[1] < 2.1, sizes
"""


def test_the_first_estimate_of_a_process_is_like_the_others():
    forked_python.run(["-c", FIRST], check=True)
