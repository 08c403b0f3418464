"""Diversity against plain loops, over splits and processes."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch

from lpips_lightning import LPIPS
from lpips_lightning.diversity import LPIPSDiversity


@pytest.fixture
def groups(pair):
    return torch.stack([pair(4, 48, 40, seed=seed)[0] for seed in range(3)])


@pytest.fixture
def expected(trunks, groups):
    net = LPIPS("squeeze", weights=trunks["squeeze"])
    means = [torch.cat([net(a[None], b[None]) for a, b in combinations(group, 2)]).mean() for group in groups]
    return torch.stack(means)


def test_it_is_the_mean_over_pairs_and_groups_for_any_split(trunks, groups, expected):
    metric = LPIPSDiversity("squeeze", weights=trunks["squeeze"])
    assert torch.allclose(metric(groups), expected.mean(), rtol=1e-5)
    metric.reset()
    for group, mean in zip(groups, expected, strict=True):
        assert torch.allclose(metric(group), mean, rtol=1e-5)
    assert torch.allclose(metric.compute(), expected.mean(), rtol=1e-5)
    assert LPIPSDiversity.higher_is_better


def test_forward_is_differentiable_and_keeps_no_graph(trunks, groups):
    metric = LPIPSDiversity("squeeze", weights=trunks["squeeze"])
    images = groups[0].clone().requires_grad_()
    metric(images).backward()
    assert float(images.grad.norm()) > 0
    assert not metric.total.requires_grad


@pytest.mark.parametrize("shape", [(1, 3, 48, 48), (3, 48, 48), (2, 1, 3, 48, 48)])
def test_groups_of_fewer_than_two_are_refused(trunks, shape):
    with pytest.raises(ValueError, match=r"images: expected \(K, 3, H, W\) or \(G, K, 3, H, W\) with at least 2"):
        LPIPSDiversity("squeeze", weights=trunks["squeeze"]).update(torch.zeros(shape))
