"""Pixels outside an eroded mask: whatever they hold leaves no trace in number or gradient, and is no error."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from lpips_lightning import LPIPS, LearnedPerceptualImagePatchSimilarity, PerceptualLoss
from lpips_lightning.functional.lpips import learned_perceptual_image_patch_similarity
from lpips_lightning.images.ranges import RangeError

SIDE, HOLE = 128, 2  # the deepest receptive field, 147 pixels wide, reaches 73 pixels to each side
_NUMBERS = torch.rand(2, 1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
X, Y = _NUMBERS[0], _NUMBERS[1]
MASK = torch.ones(1, SIDE, SIDE, dtype=torch.bool)
MASK[:, :HOLE, :HOLE] = False
NET = LPIPS("embedded")
LOSS = PerceptualLoss("embedded", data_range=1, reduction="none")
METRIC = LearnedPerceptualImagePatchSimilarity("embedded", "none", normalize=True)
GRAY = LPIPS("embedded", gray="per_channel")


def _by_metric(x, y, **mask):
    metric = copy.deepcopy(METRIC)
    metric.update(x, y, **mask)
    return metric.compute()


CALLS = {
    "network": lambda x, y, **mask: NET(x, y, 1.0, **mask),
    "measure": lambda x, y, **mask: NET.measure(x, y, 1.0, **mask).values,
    "layers": lambda x, y, **mask: torch.stack(list(NET(x, y, 1.0, per_layer=True, **mask).values())).sum(0),
    "channels": lambda x, y, **mask: GRAY(x, y, 1.0, **mask),
    "video": lambda x, y, **mask: NET(x[None], y[None], 1.0, **{**mask, "mask": mask["mask"][None]})[0],
    "loss": LOSS,
    "loss with a reference": lambda x, y, **mask: LOSS(x, reference=LOSS.encode(Y), **mask),
    "metric": _by_metric,
    "forward of the metric": lambda x, y, **mask: copy.deepcopy(METRIC)(x, y, **mask),
    "network of the metric": lambda x, y, **mask: METRIC.net(x, y, 1.0, **mask),
    "function": lambda x, y, **mask: learned_perceptual_image_patch_similarity(x, y, NET, "none", True, **mask),
}
TRAINED = sorted(set(CALLS) - {"metric"})


def holed(images, value):
    return torch.where(MASK[:, None], images, value)


@pytest.mark.parametrize("value", [math.nan, -1.0])
@pytest.mark.parametrize("name", CALLS)
def test_a_hole_leaves_no_trace_in_the_number(name, value):
    call, options = CALLS[name], {"mask": MASK, "erode": True}
    expected = call(X, Y, **options)
    assert bool((expected > 0).all())
    assert torch.equal(call(holed(X, value), Y, **options), expected)
    assert torch.equal(call(holed(X, value), holed(Y, 1e30), mask=MASK.float()[:, None], erode=True), expected)


@pytest.mark.parametrize("value", [math.nan])
@pytest.mark.parametrize("name", TRAINED)
def test_a_hole_leaves_no_trace_in_the_gradient(name, value):
    gradients = []
    for images, others in ((X, Y), (holed(X, value), holed(Y, value))):
        leaf = images.clone().requires_grad_()
        CALLS[name](leaf, others, mask=MASK, erode=True).sum().backward()
        gradients.append(leaf.grad)
    assert torch.equal(*gradients)
    assert bool(gradients[0].any()) and not bool(gradients[0][..., :HOLE, :HOLE].any())


def test_an_image_without_a_known_pixel_adds_0_and_no_gradient():
    x, y = X.expand(2, -1, -1, -1), Y.expand(2, -1, -1, -1)
    mask = torch.cat((torch.zeros_like(MASK), MASK))
    leaf = torch.where(mask[:, None], x, math.nan).requires_grad_()
    found = LOSS(leaf, torch.where(mask[:, None], y, math.nan), mask=mask, erode=True)
    found.sum().backward()
    assert float(found[0].detach()) == 0 and float(found[1].detach()) > 0
    assert bool(leaf.grad.isfinite().all()) and not bool(leaf.grad[0].any())


def test_a_loss_of_weight_0_stays_0():
    loss = PerceptualLoss("embedded", data_range=1, weight=0)
    leaf = holed(X, math.nan).requires_grad_()
    found = loss(leaf, holed(Y, math.nan), mask=MASK, erode=True)
    found.backward()
    assert float(found.detach()) == 0 and not bool(leaf.grad.any())


@pytest.mark.parametrize("name", ["network", "loss", "metric", "function"])
@pytest.mark.parametrize("value", [math.nan, -1.0])
def test_without_erode_the_error_says_so(name, value):
    images = holed(Y, value)
    with pytest.raises(RangeError, match=r"neighbors: erode=True excludes .* or fill them first with torch.where$"):
        CALLS[name](X, images, mask=MASK)
    assert bool(CALLS[name](X, torch.where(MASK[:, None], images, 0), mask=MASK).isfinite().all())


def test_a_prediction_beside_a_mask_without_erode_is_nan_and_no_error():
    assert bool(LOSS(holed(X, math.nan), Y, mask=MASK).isnan().all())


def test_inside_the_mask_values_are_checked_as_ever():
    for bad, said in ((math.nan, r"fill those with .nan_to_num\(\)$"), (-2.0, "got values from -2 to")):
        with pytest.raises(RangeError, match=said) as caught:
            NET(torch.where(MASK[:, None], bad, X), Y, 1.0, mask=MASK, erode=True)
        assert "mask=" not in str(caught.value)


def test_features_of_an_image_with_holes_need_them_filled_first():
    images = holed(Y, math.nan)
    for encode in (
        lambda: LOSS.encode(images),
        lambda: NET.encode(images, 1.0),
        lambda: NET.pairwise(images, None, 1.0),
    ):
        with pytest.raises(RangeError, match=r"fill those with .nan_to_num\(\)$"):
            encode()
    options = {"mask": MASK, "erode": True}
    expected = LOSS(X, Y, **options)
    torch.testing.assert_close(LOSS(X, reference=LOSS.encode(images.nan_to_num()), **options), expected)


class Warped(nn.Module):
    """What is known of the second frame, as optical flow gives it."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(0.5))

    def forward(self, x):
        return holed(self.gain * x, math.nan)


def test_a_training_on_warped_images_moves_its_weights_by_finite_steps():
    net = Warped()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for _ in range(2):
        optimizer.zero_grad()
        LOSS(net(X), Y, mask=MASK, erode=True).mean().backward()
        optimizer.step()
    assert 0 < abs(float(net.gain.detach()) - 0.5) < 1
