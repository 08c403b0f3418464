"""Diversity against plain loops, over splits and processes."""

from __future__ import annotations

import pytest
import torch
from references import slow_diversity

from lpips_lightning import LPIPS
from lpips_lightning.metrics.diversity import LPIPSDiversity


@pytest.fixture
def groups(pair):
    return torch.stack([pair(4, 48, 40, seed=seed)[0] for seed in range(3)])


@pytest.fixture
def expected(backbones, groups):
    net = LPIPS("squeeze", weights=backbones["squeeze"])
    return torch.stack([slow_diversity(net, group[None]) for group in groups])


def test_it_is_the_mean_over_pairs_and_groups_of_one_or_several(backbones, groups, expected):
    metric = LPIPSDiversity("squeeze", weights=backbones["squeeze"])
    assert torch.allclose(metric(groups), expected.mean(), rtol=1e-5)
    metric.reset()
    for group, mean in zip(groups, expected, strict=True):
        assert torch.allclose(metric(group), mean, rtol=1e-5)
    assert LPIPSDiversity.higher_is_better


def test_forward_is_differentiable_and_keeps_no_graph(backbones, groups):
    metric = LPIPSDiversity("squeeze", weights=backbones["squeeze"])
    images = groups[0].clone().requires_grad_()
    metric(images).backward()
    assert float(images.grad.norm()) > 0
    states = [state for state in metric.metric_state.values() if isinstance(state, torch.Tensor)]
    assert len(states) == 2 and not any(state.requires_grad for state in states)


@pytest.mark.parametrize("shape", [(1, 3, 48, 48), (3, 48, 48), (2, 1, 3, 48, 48)])
def test_groups_of_fewer_than_two_are_refused(backbones, shape):
    with pytest.raises(ValueError, match=r"images: expected \(K, 3, H, W\) or \(G, K, 3, H, W\) with at least 2"):
        LPIPSDiversity("squeeze", weights=backbones["squeeze"]).update(torch.zeros(shape))
