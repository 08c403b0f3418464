"""Images that are overwritten between the loss and its backward pass: the gradient is that at the time of the call."""

from __future__ import annotations

import pytest
import torch
from references import peer_lpips, relative_distance

from lpips_lightning import LPIPS, PerceptualLoss, compat
from lpips_lightning.engine import autograd

SIDE = 40
BOOLS = torch.ones(3, SIDE, SIDE, dtype=torch.bool)
BOOLS[1:, :3] = False  # eroded, nothing is left of these images


def total(found):
    return sum(value.sum() for value in found.values()) if isinstance(found, dict) else found.sum()


def of(options, channels=3, reference=False, data_range=1.0, **call):
    """A function of a prediction, a target and a mask; and what its images and masks are."""

    def measure(x, y, mask):
        given = {"reference": loss.encode(y)} if reference else {"target": y}
        return total(loss(x, **given, **({**call, "mask": mask} if "mask" in call else call)))

    loss = PerceptualLoss(**{"net_type": "embedded", "data_range": data_range, **options})
    return measure, channels, call.get("mask")


def of_compat():
    net = compat.LPIPS(net="embedded")
    return lambda x, y, mask: net(x, y, normalize=True).sum(), 3, None


PLANS = {
    "whole": lambda: of({}),
    "chunks": lambda: of({"frame_chunk": 1}),
    "layers": lambda: of({"per_layer": True}),
    "maps": lambda: of({"spatial": True}),
    "mask": lambda: of({}, mask=BOOLS),
    "mask of floats": lambda: of({}, mask=BOOLS.double()),
    "eroded mask": lambda: of({}, mask=BOOLS, erode=True),
    "reference": lambda: of({}, reference=True),
    "reference and mask": lambda: of({}, reference=True, mask=BOOLS),
    "alpha": lambda: of({"background": "white", "spatial": True}, channels=4),
    "gray": lambda: of({"gray": "per_channel", "per_layer": True}, channels=2),
    "resize": lambda: of({"resize": 36, "spatial": True}),
    "neither scaled nor clamped": lambda: of(
        {"net_type": "alex", "weights": "random", "version": "0.0", "per_layer": True, "validate_args": False},
        data_range=(-1, 1),
    ),
    "compat": of_compat,
}


def gradients(measure, x, y, mask, overwrite, both):
    leaf, target = x.clone().requires_grad_(), y.clone().requires_grad_(both)
    image, other = leaf * 1, target * 1
    image, other = (one.contiguous(memory_format=torch.channels_last) for one in (image, other))
    mask = None if mask is None else mask.clone()
    value = measure(image, other, mask)
    if overwrite:
        image.detach().clamp_(0, 0.1)
        other.detach().zero_()
        if mask is not None:
            mask.zero_()
    return torch.autograd.grad(value, [leaf, target] if both else [leaf])


@pytest.mark.parametrize(
    ("name", "both"), [(n, b) for n in PLANS for b in (False, True) if not (b and "reference" in n)]
)
def test_images_and_masks_may_be_overwritten_after_the_loss(name, both):
    measure, channels, mask = PLANS[name]()
    x, y = torch.rand(2, 3, channels, SIDE, SIDE, dtype=torch.float64)
    found, right = (gradients(measure, x, y, mask, overwrite, both) for overwrite in (True, False))
    for mine, expected in zip(found, right, strict=True):
        assert relative_distance(mine, expected) < 1e-10 and float(expected.norm()) > 0


def test_in_tiles_too(monkeypatch):
    calls, tiled = [], autograd.tiled_gradient
    monkeypatch.setattr(autograd, "tiled_gradient", lambda *given: calls.append(1) or tiled(*given))
    measure, *_ = of({"memory_budget": 26 * 2**20})
    x, y = torch.rand(2, 1, 3, 420, 410, dtype=torch.float64)
    found, right = (gradients(measure, x, y, None, overwrite, False)[0] for overwrite in (True, False))
    assert len(calls) == 2 and relative_distance(found, right) < 1e-10


def test_as_with_lpips(backbones):
    x, y = torch.rand(2, 2, 3, SIDE, SIDE) * 2 - 1
    found = [
        gradients(lambda x, y, mask, net=net: net(x, y).sum(), x, y, None, True, False)[0]
        for net in (
            compat.LPIPS(net="squeeze", weights=backbones["squeeze"]),
            peer_lpips("squeeze", backbones["squeeze"]),
        )
    ]
    assert relative_distance(*found) < 1e-3  # of float32, on random weights; that of 0 instead would be off by 1


def test_a_leaf_may_be_clamped_too():
    loss = PerceptualLoss("embedded", data_range=1.0)
    x, y = torch.rand(2, 2, 3, SIDE, SIDE)
    found = []
    for clamp in (True, False):
        leaf = x.clone().requires_grad_()
        value = loss(leaf, y)
        if clamp:
            with torch.no_grad():
                leaf.clamp_(0, 0.1)
        value.backward()
        found.append(leaf.grad)
    assert torch.equal(*found)


@pytest.mark.parametrize("place", ["prediction", "target"])
def test_a_second_derivative_asks_for_a_copy(place):
    loss = PerceptualLoss("embedded", data_range=1.0)
    x, y = torch.rand(2, 2, 3, SIDE, SIDE)
    leaf = x.clone().requires_grad_()
    image = leaf * 1
    value = loss(image, y)
    (image.detach() if place == "prediction" else y).mul_(0.5)
    with pytest.raises(RuntimeError, match="modified in place since the forward pass; pass a .clone"):
        torch.autograd.grad(value, leaf, create_graph=True)
    torch.autograd.grad(LPIPS("embedded")(image * 1, y, 1.0).sum(), leaf, create_graph=True)
