"""The loss: frozen by construction, follows autocast, lets predictions overshoot."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lpips_lightning import LPIPS, PerceptualLoss
from lpips_lightning.kernels.conv2d import FastConv2d


@pytest.fixture
def loss(backbones):
    return PerceptualLoss("squeeze", data_range=(-1, 1), weights=backbones["squeeze"])


def test_value_weight_and_reduction(backbones, pair):
    x, y = pair(3)
    each = LPIPS("squeeze", weights=backbones["squeeze"])(x, y)
    for reduction, expected in (("mean", each.mean()), ("sum", each.sum()), ("none", each), (None, each)):
        loss = PerceptualLoss(
            "squeeze", data_range=(-1, 1), weight=0.5, reduction=reduction, weights=backbones["squeeze"]
        )
        assert torch.allclose(loss(x, y), 0.5 * expected)
    assert loss(x[:1], y[:1]).shape == (1,)


def test_data_range_has_no_default():
    with pytest.raises(TypeError, match="data_range"):
        PerceptualLoss("alex", weights="random")


def test_60_adam_steps_over_all_parameters_leave_the_distance_alone(loss, pair):
    x, y = pair(1, 32, 32)
    model = nn.Conv2d(3, 3, 3, padding=1)
    assert sum(p.numel() for p in loss.parameters()) == 0
    before = loss(x, y)
    optimizer = torch.optim.Adam(list(model.parameters()) + list(loss.parameters()), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        value = loss(model(x).tanh(), y)
        assert float(value.detach()) >= 0
        value.backward()
        optimizer.step()
    assert torch.equal(loss(x, y), before)
    assert float(loss(x, x)) == 0


def test_the_backbone_computes_no_gradient_for_the_target(loss, pair):
    x, y = pair()
    x.requires_grad_()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        loss(x, y)
    with_target = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: with_target.append(t.numel()) or t, lambda t: t):
        loss(x, y.requires_grad_())
    assert sum(saved) < 0.75 * sum(with_target)
    y.grad = None
    loss(x, y).backward()
    assert float(y.grad.norm()) > 0


def test_predictions_may_overshoot_with_a_gradient_but_targets_may_not(loss, pair):
    x, y = pair()
    over = (x + 0.3).requires_grad_()
    loss(over, y).backward()
    outside = over.detach() > 1
    assert int(outside.sum()) > 100
    assert float(over.grad[outside].abs().sum()) > 0
    for wrong, mistake in (
        (y + 0.5, ""),
        (2 * y - 1, "2x - 1 was applied twice"),
        ((y + 1) * 127.5, r"like \[0, 255\]"),
    ):
        with pytest.raises(ValueError, match=f"target: expected values on .*{mistake}"):
            loss(x, wrong)
    with pytest.raises(ValueError, match="target: .* a NaN usually comes from"):
        loss(x, y * float("nan"))


def test_predictions_of_any_values_are_measured_as_they_are(backbones, pair):
    x, y = pair()
    options = {"weights": backbones["squeeze"], "data_range": (-1, 1)}
    loss, unchecked = PerceptualLoss("squeeze", **options), PerceptualLoss("squeeze", validate_args=False, **options)
    for scale in (1.05, 2, 5, 10):
        assert torch.equal(loss(scale * x, y), unchecked(scale * x, y))


def test_a_diverged_prediction_gives_nan_not_an_error(loss, pair):
    x, y = pair()
    x[0, 0, 0, 0] = float("nan")
    assert bool(loss(x, y).isnan())


def test_weight_zero_skips_the_network_and_keeps_the_graph(loss, pair, monkeypatch):
    x, y = pair()
    x.requires_grad_()
    loss.weight = 0.0
    monkeypatch.setattr(LPIPS, "measure", None)
    value = loss(x, y)
    value.backward()
    assert float(value.detach()) == 0
    assert torch.equal(x.grad, torch.zeros_like(x))


def test_train_mode_changes_nothing(loss, pair):
    x, y = pair()
    values = {float(model(x, y)) for model in (loss, loss.train(), loss.eval())}
    assert len(values) == 1


def test_bf16_autocast_and_half_parents_give_finite_gradients(loss, pair):
    x, y = pair()
    model = nn.Conv2d(3, 3, 1)
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(model(x).tanh(), y)
    value.backward()
    assert value.dtype == torch.float32
    assert bool(model.weight.grad.isfinite().all())
    half = x.half().requires_grad_()
    loss.half()(half, y.half()).backward()
    assert half.grad.dtype == torch.float16
    assert bool(half.grad.isfinite().all())


def test_double_backward_works(loss, pair):
    x, y = pair(1, 32, 32, torch.float64)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(loss(x, y), x, create_graph=True)
    (second,) = torch.autograd.grad(gradient.square().sum(), x)
    assert bool(second.isfinite().all())
    assert float(second.norm()) > 0


def test_gradient_is_right_by_finite_differences(loss, pair):
    x, y = pair(1, 32, 32, torch.float64)
    x = (0.9 * x).requires_grad_()
    loss(x, y).backward()
    step = 1e-7 * x.grad / x.grad.norm()
    with torch.no_grad():
        slope = (loss(x + step, y) - loss(x - step, y)) / 2e-7
    assert abs(float(slope) - float(x.grad.norm())) < 1e-5 * float(slope)


def test_a_reference_is_encoded_once_and_gives_the_same_loss_and_gradient(backbones, pair, monkeypatch):
    x, y = pair(2, 48, 48, torch.float64)
    loss = PerceptualLoss("squeeze", data_range=(-1, 1), weights=backbones["squeeze"])
    x1, x2 = x.clone().requires_grad_(), x.clone().requires_grad_()
    loss(x1, y).backward()
    reference = loss.encode(y)
    passes = []
    run = FastConv2d.forward
    monkeypatch.setattr(FastConv2d, "forward", lambda self, x: passes.append(self.in_channels) or run(self, x))
    for _ in range(3):
        x2.grad = None
        loss(x2, reference=reference).backward()
    assert passes.count(3) == 3  # of the first convolution
    assert torch.allclose(x1.grad, x2.grad, rtol=1e-10)
    for wrong in ({}, {"target": y, "reference": reference}):
        with pytest.raises(TypeError, match="target: expected either target or reference"):
            loss(x, **wrong)
    with pytest.raises(ValueError, match=r"reference: expected features of \(1,\) images"):
        loss(x[:1], reference=reference)


def test_maps_and_layers_of_a_loss(backbones, pair):
    x, y = pair()
    net = LPIPS("squeeze", weights=backbones["squeeze"])
    options = {"data_range": (-1, 1), "weight": 2.0, "weights": backbones["squeeze"]}
    maps = PerceptualLoss("squeeze", reduction="none", spatial=True, **options)
    assert torch.allclose(maps(x, y), 2 * net(x, y, spatial=True))
    layers = PerceptualLoss("squeeze", per_layer=True, **options)
    found = layers(x, y)
    assert list(found) == list(net.layers)
    assert torch.allclose(sum(found.values()), 2 * net(x, y).mean(), rtol=1e-6)
    for loss in (maps, layers):
        before = loss(x, y)
        loss.weight = 0.0
        after = loss(x, y)
        for one, other in zip(*(v.values() if isinstance(v, dict) else [v] for v in (before, after)), strict=True):
            assert one.shape == other.shape
            assert float(other.abs().max()) == 0


def test_gradients_of_videos_reach_every_frame(backbones, pair):
    x, y = (image.view(1, 3, 3, 48, 48) for image in pair(3, 48, 48))
    loss = PerceptualLoss("squeeze", data_range=(-1, 1), weights=backbones["squeeze"])
    x.requires_grad_()
    value = loss(x, y)
    value.backward()
    assert value.dim() == 0
    assert bool((x.grad.flatten(2).norm(dim=2) > 0).all())
