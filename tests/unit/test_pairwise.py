"""All pairs against `forward`, and the number of backbone passes."""

from __future__ import annotations

import pytest
import torch
from conftest import NETS

from lpips_lightning import LPIPS
from lpips_lightning.backbones.extractor import FeatureExtractor


def by_calls(net, x, y):
    return torch.stack([torch.cat([net(a[None], b[None]) for b in y]) for a in x])


@pytest.mark.parametrize("calibrated", [True, False])
@pytest.mark.parametrize("name", NETS)
def test_every_pair_equals_forward(backbones, pair, name, calibrated):
    net = LPIPS(name, weights=backbones[name], calibrated=calibrated)
    x, y = pair(3, 48, 40)[0], pair(2, 48, 40, seed=1)[1]
    y[0] = x[1]
    distances = net.pairwise(x, y)
    assert distances.shape == (3, 2)
    assert float(distances[1, 0]) < 1e-12  # the same image in two batches: convolutions may round differently
    assert torch.allclose(distances, by_calls(net, x, y), rtol=1e-5, atol=1e-12)


def test_one_set_is_symmetric_with_a_zero_diagonal(backbones, pair):
    net = LPIPS("alex", weights=backbones["alex"])
    x, _ = pair(5, 48, 40)
    distances = net.pairwise(x, batch_size=2)
    assert torch.equal(distances, distances.T)
    assert torch.equal(distances.diagonal(), torch.zeros(5))
    assert torch.allclose(distances, by_calls(net, x, x), rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_near_images_stay_exact(backbones, pair, dtype):
    net = LPIPS("alex", weights=backbones["alex"])
    x, noise = pair(2, 48, 48, dtype)
    x = x * 0.9
    near = x + 1e-3 * noise
    exact, called = net(x.double(), near.double()), net(x, near)
    # In float32 the features' rounding decides; all pairs add less than a call has.
    allowed = (called - exact).abs() + 1e-12 * exact
    assert (allowed < (1e-3 if dtype == torch.float32 else 1e-11) * exact).all()
    assert ((net.pairwise(x, near).diagonal() - called).abs() <= allowed).all()


@pytest.fixture
def passes(monkeypatch):
    seen = []
    forward = FeatureExtractor.forward
    monkeypatch.setattr(FeatureExtractor, "forward", lambda self, x: seen.append(len(x)) or forward(self, x))
    return seen


def test_the_backbone_runs_once_per_image_within_the_budget(backbones, pair, passes):
    net = LPIPS("alex", weights=backbones["alex"])
    x, y = pair(5, 48, 40)
    net.pairwise(x, batch_size=2)
    assert sum(passes) == 5
    passes.clear()
    expected = net.pairwise(x, y, batch_size=2)
    assert sum(passes) == 10
    passes.clear()
    assert torch.allclose(net.pairwise(x, y, batch_size=1, memory_budget=1), expected, rtol=1e-6)
    assert sum(passes) == 5 + 5 * 5
    one_set = net.pairwise(x)
    assert torch.allclose(net.pairwise(x, batch_size=2, memory_budget=1), one_set, rtol=1e-6)


def test_gradients_reach_the_images(backbones, pair):
    net = LPIPS("alex", weights=backbones["alex"])
    x, y = pair(2, 48, 48, torch.float64)
    x1, x2 = x.clone().requires_grad_(), x.clone().requires_grad_()
    net.pairwise(x1, y).diagonal().sum().backward()
    net(x2, y).sum().backward()
    assert torch.allclose(x1.grad, x2.grad, rtol=1e-8, atol=1e-12)


def test_other_sizes_are_refused(backbones):
    net = LPIPS("alex", weights=backbones["alex"])
    with pytest.raises(ValueError, match=r"y: expected the shape of x, \(1, 3, 48, 48\), got \(1, 3, 48, 40\)"):
        net.pairwise(torch.zeros(2, 3, 48, 48), torch.zeros(2, 3, 48, 40))
