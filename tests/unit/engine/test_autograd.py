"""The head in blocks, and the gradient that is computed in the forward pass, against the plain form under autograd."""

import math
from contextlib import nullcontext

import pytest
import torch
from references import relative_distance
from rounding import FEW, TWICE
from torch.nn import functional as F

from lpips_lightning import LPIPS, PerceptualLoss
from lpips_lightning.distances.lpips import layer_distances
from lpips_lightning.engine import autograd
from lpips_lightning.kernels import head
from lpips_lightning.kernels.head import layer_sum, layer_sum_gradient
from lpips_lightning.perceptual_distance import measure

EXACT = 1e-12  # relative, in float64: a thousand times its rounding of 24 channels and 35 positions
NETS = ("alex", "squeeze", "embedded", "embedded-vgg")


def features(kind, shape=(3, 24, 7, 5), dtype=torch.float64):
    """Two feature layers: different, nearly equal, equal, or dead (all channels zero) at some positions."""
    x = torch.randn(shape, dtype=dtype).relu()
    y = torch.randn(shape, dtype=dtype).relu()
    if isinstance(kind, float):
        y = (x + kind * torch.randn(shape, dtype=dtype)).relu()
    if kind == "equal":
        y = x.clone()
    if kind == "dead":
        x[:, :, :3], y[:, :, 2:4], x[0], y[1] = 0, 0, 0, 0
    return x, y


def oracle(x, y, weight, dtype=torch.float64):
    x = x.to(dtype).clone().requires_grad_()
    calibration = None if weight is None else {"feature layer": weight.to(dtype)}
    sums = layer_distances({"feature layer": x}, {"feature layer": y.to(dtype)}, calibration)["feature layer"] * (
        x.shape[2] * x.shape[3]
    )
    return sums.detach(), torch.autograd.grad(sums.sum(), x)[0]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("calibrated", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("kind", ["different", 1e-3, 1e-5, "dead"])
def test_the_blocked_head_is_the_plain_head(kind, dtype, calibrated, memory_format, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(head, "_BLOCK_BYTES", 24 * 8 * 11)  # many blocks, the last one smaller
    x, y = (given.to(dtype).to(memory_format=memory_format) for given in features(kind))
    weight = torch.rand(24, dtype=dtype) if calibrated else None
    right, slope = oracle(x, y, weight)
    # The difference of near images has the features' rounding in it, whatever is done with it: in float32 as much as
    # the plain form has, which takes differences of unit vectors. A sum's error is at most that of its gradient.
    tolerance = EXACT * (1 if isinstance(kind, str) else 1e-2 / kind)
    if dtype == torch.float32:
        tolerance = TWICE * relative_distance(oracle(x, y, weight, dtype)[1], slope) + FEW
    assert relative_distance(layer_sum(x, y, weight), right) < tolerance
    sums, gradient = layer_sum_gradient(x, y, weight)
    assert relative_distance(sums, right) < tolerance
    assert gradient.shape == x.shape and relative_distance(gradient, slope) < tolerance
    own = y.clone(memory_format=torch.channels_last)
    assert layer_sum_gradient(x, own, weight, into=own)[1] is own and torch.equal(own, gradient)


def test_the_blocked_head_is_zero_for_equal_features_and_at_dead_positions():
    torch.manual_seed(0)
    x, y = features("equal", dtype=torch.float32)
    sums, gradient = layer_sum_gradient(x, y, torch.rand(24))
    assert not sums.any() and not gradient.any() and not layer_sum(x, y, None).any()
    x, y = features("dead", dtype=torch.float32)
    gradient = layer_sum_gradient(x, y, None)[1]
    dead = (x == 0).all(1)
    assert dead.any() and not gradient.permute(0, 2, 3, 1)[dead].any()


def test_the_blocked_head_lets_nan_through():
    x, y = features("different", dtype=torch.float32)
    x[1, 3, 2, 2] = math.nan
    assert layer_sum(x, y, None).isnan().tolist() == [False, True, False]
    assert layer_sum_gradient(x, y, None)[1][1, :, 2, 2].isnan().all()


@pytest.mark.parametrize("low_high", [(-1, 1), (0, 1), (0, 255), (-0.5, 0.5)])
@pytest.mark.parametrize("net_type", NETS)
def test_the_gradient_made_in_the_forward_pass_is_autograds(net_type, low_high):
    torch.manual_seed(0)
    loss = PerceptualLoss(net_type, data_range=low_high, weights=None if net_type == "embedded" else "random")
    low, high = low_high
    x, y = (low + (high - low) * torch.rand(3, 3, 40, 47, dtype=torch.float64) for _ in range(2))
    x.requires_grad_()
    weights = torch.tensor([0.5, 2.0, 0.0], dtype=torch.float64)
    direct = (loss.net(x, y, low_high) * weights).sum()
    (ours,) = torch.autograd.grad(direct, x)
    # Asked for by layer, the distances take the way through autograd.
    plain = (torch.stack(list(loss.net(x, y, low_high, per_layer=True).values())).sum(0) * weights).sum()
    (right,) = torch.autograd.grad(plain, x)
    torch.testing.assert_close(direct, plain, rtol=1e-12, atol=0)
    torch.testing.assert_close(ours, right, rtol=1e-9, atol=1e-12 * float(right.abs().max()))
    assert not ours[2].any() and ours[0].any()


def test_pixels_of_data_that_are_clamped_have_no_gradient_and_those_of_predictions_have_theirs():
    torch.manual_seed(0)
    net = LPIPS("embedded")
    y = torch.rand(1, 3, 40, 40)
    x = torch.rand(1, 3, 40, 40)
    x[0, :, 3, 4], x[0, :, 5, 6], x[0, :, 7, 8] = 1.0005, -0.0005, 1.0
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(net(x, y, (0, 1)).sum(), x)  # what requires grad is a prediction
    assert gradient[0, :, 3, 4].any() and gradient[0, :, 5, 6].any() and gradient[0, :, 7, 8].any()
    data = measure(net, x, y, (0.0, 1.0), roles=("data", "data")).values
    (gradient,) = torch.autograd.grad(data.sum(), x)
    assert not gradient[0, :, 3, 4].any() and not gradient[0, :, 5, 6].any() and gradient[0, :, 7, 8].any()


def test_the_target_may_want_the_gradient_alone_or_too():
    torch.manual_seed(0)
    net = LPIPS("embedded")
    x, y = torch.rand(2, 2, 3, 40, 40, dtype=torch.float64).requires_grad_()
    both = torch.autograd.grad(net(x, y, (0, 1)).sum(), (x, y))
    torch.testing.assert_close(torch.autograd.grad(net(y, x.detach(), (0, 1)).sum(), y)[0], both[1])
    torch.testing.assert_close(torch.autograd.grad(net(x.detach(), y, (0, 1)).sum(), y)[0], both[1])
    torch.testing.assert_close(torch.autograd.grad(net(x, y.detach(), (0, 1)).sum(), x)[0], both[0])


def test_the_gradient_has_a_derivative():
    torch.manual_seed(0)
    net = LPIPS("embedded", validate_args=False)
    x, y = torch.rand(2, 1, 3, 33, 33, dtype=torch.float64)
    x.requires_grad_()
    assert torch.autograd.gradgradcheck(lambda z: net(z, y, (0, 1)), x, fast_mode=True)


def test_torch_func_takes_the_gradient():
    torch.manual_seed(0)
    net = LPIPS("embedded", validate_args=False)
    x, y = torch.rand(2, 2, 3, 40, 40)
    found = torch.func.grad(lambda z: net(z, y, (0, 1)).sum())(x)
    x.requires_grad_()
    torch.testing.assert_close(found, torch.autograd.grad(net(x, y, (0, 1)).sum(), x)[0])


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_backbones_keep_the_gradient_of_a_mean(precision):
    # On 128 x 128 pixels the derivative by one of them is about 1e-6: most of it is nothing in fp16.
    torch.manual_seed(0)
    y = F.interpolate(torch.rand(1, 3, 32, 32), 128)
    x = (y + 0.2 * torch.randn_like(y)).clamp(0, 1).requires_grad_()
    gradients = []
    for asked in ("fp32", precision):
        loss = PerceptualLoss("embedded", data_range=(0, 1), precision=asked)
        gradients.append(torch.autograd.grad(loss(x, y), x)[0].flatten())
    assert float(F.cosine_similarity(*gradients, 0)) > 0.98
    assert abs(float(gradients[1].norm() / gradients[0].norm()) - 1) < 0.02


@pytest.mark.parametrize("frame_chunk", [None, 1, 2])
def test_a_step_keeps_the_gradient_and_nothing_else(frame_chunk):
    torch.manual_seed(0)
    net = LPIPS("embedded", frame_chunk=frame_chunk)
    x, y = torch.rand(3, 3, 40, 40).requires_grad_(), torch.rand(3, 3, 40, 40)
    found = net(x, y, (0, 1)).sum()
    nodes, ahead = set(), [found.grad_fn]
    while ahead:
        node = ahead.pop()
        nodes.add(node)
        ahead += [other for other, _ in node.next_functions if other is not None and other not in nodes]
    (ours,) = [node for node in nodes if "Distances" in node.name()]
    assert len(nodes) < 8 and [saved.shape for saved in ours.saved_tensors] == [x.shape]
    found.backward()
    whole = LPIPS("embedded")
    clone = x.detach().requires_grad_()
    whole(clone, y, (0, 1)).sum().backward()
    torch.testing.assert_close(x.grad, clone.grad)


def test_features_that_come_from_outside_are_left_as_they_are():
    torch.manual_seed(0)
    loss = PerceptualLoss("embedded", data_range=(0, 1))
    x, y = torch.rand(2, 2, 3, 40, 40)
    reference = loss.encode(y)
    before = {layer: values.clone() for layer, values in reference.layers.items()}
    x.requires_grad_()
    loss(x, reference=reference).backward()
    loss(x.detach(), reference=reference)
    assert all(torch.equal(before[layer], values) for layer, values in reference.layers.items())


@pytest.mark.parametrize(("budget", "way"), [(None, "whole"), (2**30, "whole"), (2**21, "images"), (2**20, "rows")])
def test_a_memory_budget_changes_the_way_and_not_the_number(budget, way):
    torch.manual_seed(0)
    x, y = torch.rand(2, 3, 3, 128, 96)
    whole = LPIPS("embedded")(x, y, (0, 1))
    net = LPIPS("embedded", memory_budget=budget)
    too_little = pytest.warns(UserWarning, match="memory_budget: .* row strips takes .* bytes, more than 1048576")
    with too_little if way == "rows" else nullcontext():
        assert net.plan(x.shape).way == way
        found = net(x, y, (0, 1))
    torch.testing.assert_close(found, whole, rtol=2e-6, atol=0)


def test_a_small_budget_makes_tiles_of_the_gradient(monkeypatch):
    torch.manual_seed(0)
    calls, tiled = [], autograd.tiled_gradient
    monkeypatch.setattr(autograd, "tiled_gradient", lambda *given: calls.append(1) or tiled(*given))
    x, y = torch.rand(2, 1, 3, 420, 410, dtype=torch.float64)
    gradients = []
    for budget in (None, 26 * 2**20):
        loss = PerceptualLoss("embedded", data_range=(0, 1), memory_budget=budget)
        clone = x.clone().requires_grad_()
        loss(clone, y).backward()
        gradients.append(clone.grad)
    assert len(calls) == 1
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-9, atol=1e-13)


def test_a_plan_says_what_a_call_takes():
    net = LPIPS("embedded", memory_budget=32 * 2**20)
    small, large = net.plan((1, 3, 64, 64)), net.plan((8, 3, 256, 256), gradient=True)
    assert 0 < small.size < large.size <= 32 * 2**20 and large.images < 8
    with pytest.raises(ValueError, match=r"shape: expected \(N, 3, H, W\), got \(3, 64, 64\)"):
        net.plan((3, 64, 64))
    for wrong in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match="memory_budget: expected a positive number of bytes or None, got"):
            LPIPS("embedded", memory_budget=wrong)
