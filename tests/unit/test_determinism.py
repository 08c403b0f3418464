"""Repeated calls are bit-equal, and every operation has a deterministic implementation."""

from __future__ import annotations

import boring_module as boring
import pytest
import torch
from pytorch_lightning import seed_everything

from lpips_lightning import LPIPS, LearnedPerceptualImagePatchSimilarity, PerceptualLoss
from lpips_lightning.callbacks import LossSchedule, PerceptualScores


@pytest.fixture(autouse=True)
def _ends(deterministic_ends):
    pass


def trained(folder):
    """Everything that two epochs with a deterministic Trainer learn and log."""
    seed_everything(3, verbose=False)
    model = boring.Boring(loss="embedded")
    model.blur = torch.nn.Conv2d(3, 3, 3, padding=1)
    model.forward = lambda x: model.blur(model.scale * x).clamp(0, 1)
    callbacks = [
        PerceptualScores("squeeze", data_range=(0, 1), weights="random"),
        LossSchedule(final=0.5, warmup_steps=3),
    ]
    trainer = boring.fit(folder, callbacks, model, deterministic=True)
    assert torch.are_deterministic_algorithms_enabled()
    return {**model.state_dict(), **trainer.callback_metrics}


def test_a_deterministic_trainer_learns_and_logs_the_same_bits_twice(tmp_path):
    one, two = trained(tmp_path / "one"), trained(tmp_path / "two")
    assert {"scale", "blur.weight", "val/lpips", "val/psnr"} <= set(one)
    assert set(one) == set(two)
    assert all(torch.equal(one[name], two[name]) for name in one)


def loss_step(net, x, y):
    loss = PerceptualLoss(net, data_range=(-1, 1))
    loss(x, y).backward()
    return x.grad


def metric(net, x, y):
    found = LearnedPerceptualImagePatchSimilarity(net)
    for images in zip(x.detach().split(1), y.split(1), strict=True):
        found.update(*images)
    return found.compute()


def gradient(value, x):
    return torch.autograd.grad(value.sum(), x)[0]


WAYS = {
    "loss": loss_step,
    "loss in tiles": lambda net, x, y: gradient(LPIPS(net, memory_budget=3 * 2**20)(x, y), x),
    "map": lambda net, x, y: gradient(LPIPS(net)(x, y, spatial=True), x),
    "mask": lambda net, x, y: gradient(LPIPS(net)(x, y, mask=torch.ones(2, 96, 96), erode=True), x),
    "layers": lambda net, x, y: gradient(sum(LPIPS(net)(x, y, per_layer=True).values()), x),
    "resized": lambda net, x, y: LPIPS(net, resize=(64, 64))(x.detach(), y),
    "pairs": lambda net, x, y: LPIPS(net).pairwise(x.detach(), y),
    "metric": metric,
}


@pytest.mark.parametrize("way", WAYS)
def test_every_call_is_deterministic_and_bit_equal(way, pair):
    torch.use_deterministic_algorithms(True)
    x, y = pair(2, 96, 96)
    one, two = (WAYS[way]("embedded", x.clone().requires_grad_(), y) for _ in range(2))
    assert torch.equal(one, two)
    assert one.abs().sum() > 0
