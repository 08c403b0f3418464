"""Arguments that are none of the known ones: refused when a thing is made, not in the middle of a run."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from entry_points import NET, SIDE, X, Y
from torch import nn

from lpips_lightning import LPIPS, LearnedPerceptualImagePatchSimilarity, PerceptualLoss
from lpips_lightning.callbacks import PerceptualScores, SampleGallery
from lpips_lightning.functional.lpips import learned_perceptual_image_patch_similarity
from lpips_lightning.metrics.diversity import LPIPSDiversity

NAN = math.nan
OPTIONS = {  # an argument of every face: values that are none
    "net_type": ["Alex", "lpips", "vgg16", "", None, 3, ["alex"]],
    "version": ["0.2", "v0.1", 0.2, 1, True, None],
    "calibrated": ["yes", "no", None, 1, 0],
    "reduction": ["Mean", "avg", "batchmean", True, 0, [], ["mean"]],
    "data_range": [
        (1, 0),
        (0, 0),
        (NAN, 1),
        (0, NAN),
        (0, math.inf),
        -1,
        0,
        "uint8",
        "1",
        (0, "1"),
        (1,),
        (0, 1, 2),
        True,
    ],
    "range": [
        {},
        b"\0\1",
        1j,
        torch.tensor([0, 1]),
        np.array([0, 1]),
        slice(0, 1),
        1e-40,
        (0, 1e300),
        10**400,
        (1e8, 1e8 + 1),
    ],
    "weight": [NAN, -1, -1e-9, math.inf, "1", None, True, 1j, [1], torch.tensor(1.0), torch.tensor([1.0, 2.0])],
    "memory_budget": [0, -1, 1.5, "1G", True, NAN],
    "frame_chunk": [0, -1, 1.5, "2", True],
    "precision": ["fp8", "float32", 16, torch.float16, None],
    "gray": ["mean", True, 1, ""],
    "background": ["red", "", (0, 0, 255), (0, 0), 5, (NAN, 0, 0), (-0.1, 0, 0), torch.ones(3), ("0", 0, 0)],
    "resize": [0, -1, (64,), (64, 0), 64.0, "64", True, (64, NAN), torch.tensor(64), (1, 2, 3)],
    "normalize": ["yes", None, 1, 0],
    "validate_args": ["no", None, 0, 1],
    "weights": ["", 3, [1], b"x", nn.Linear(1, 1)],
    "calibration": ["", 3, [1], b"x", nn.Linear(1, 1)],
}
MAKERS = {  # what makes it, and the arguments that it has not
    "network": (LPIPS, {"reduction", "data_range", "range", "weight", "normalize"}),
    "metric": (LearnedPerceptualImagePatchSimilarity, {"weight"}),
    "loss": (PerceptualLoss, {"normalize"}),
    "diversity": (LPIPSDiversity, {"weight", "reduction"}),
    "function": (lambda *a, **k: learned_perceptual_image_patch_similarity(X, Y, *a, **k), {"weight"}),
    "scores": (PerceptualScores, {"weight", "reduction", "normalize"}),
    "gallery": (SampleGallery, {"weight", "reduction", "normalize"}),
}
RANGED = ("loss", "scores", "gallery")


KNOWN = [(argument, maker) for argument in OPTIONS for maker, (_, unknown) in MAKERS.items() if argument not in unknown]


@pytest.mark.parametrize(("argument", "maker"), KNOWN)
def test_options_that_are_none_are_refused_when_a_thing_is_made(argument, maker):
    make, _ = MAKERS[maker]
    name = {"range": "data_range"}.get(argument, argument)
    for value in OPTIONS[argument]:
        given = {"net_type": "embedded", **({"data_range": (-1, 1)} if maker in RANGED else {}), name: value}
        if name == "calibration":
            given["calibrated"] = True
        with pytest.raises((ValueError, TypeError, RuntimeError), match=f"^{name}: expected ") as caught:
            make(**given)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_a_weight_is_checked_whenever_it_is_set():
    loss = PerceptualLoss("embedded", data_range=(-1, 1))
    for wrong in OPTIONS["weight"]:
        with pytest.raises(ValueError, match="^weight: expected a finite number >= 0, got "):
            loss.weight = wrong
        assert loss.weight == 1
    for right in (0, 0.5, np.float64(0.25), 3):
        loss.weight = right
        torch.testing.assert_close(loss(X, Y), float(right) * NET(X, Y).mean())


def test_a_loss_of_weight_0_refuses_what_it_would_refuse_later():
    loss = PerceptualLoss("embedded", data_range=(-1, 1), weight=0)
    assert float(loss(X, Y)) == 0 and loss(X.double(), Y.double()).dtype == torch.float64
    assert float(loss(X, reference=loss.encode(Y))) == 0
    for target in (Y[:1], Y[..., 1:], Y.to("meta")):
        with pytest.raises(ValueError, match="^target: expected"):
            loss(X, target)
    with pytest.raises(ValueError, match="^reference: expected features"):
        loss(X[:1], reference=loss.encode(Y))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: NET.distance(X, Y), "x: expected features from encode, got Tensor"),
        (lambda: NET.distance(NET.encode(X), Y), "y: expected features from encode, got Tensor"),
        (lambda: NET(NET.encode(X), Y), "x: expected a tensor .*, got Features"),
        (lambda: NET.encode(None), "images: expected a tensor .*, got NoneType"),
        (lambda: NET(X, Y, spatial=True, mask=torch.ones(2, SIDE, SIDE)), "mask: expected None with spatial=True"),
        (lambda: NET(X, Y, erode=True), "erode: expected a mask with erode=True, got none"),
        (lambda: NET.pairwise(X, batch_size=0), "batch_size: expected a positive number of images, got 0"),
        (lambda: NET.pairwise(X, batch_size=-1), "batch_size: expected a positive number"),
        (lambda: NET.pairwise(X, batch_size="2"), "batch_size: expected a positive number"),
        (lambda: NET.pairwise(X, memory_budget=0), "memory_budget: expected a positive number of bytes"),
        (lambda: NET.pairwise(X, memory_budget="1G"), "memory_budget: expected a positive number of bytes"),
        (lambda: NET.plan("abcd"), r"shape: expected \(N, 3, H, W\), got abcd"),
        (lambda: NET.plan((1, 3, -1, 4)), r"shape: expected \(N, 3, H, W\), got \(1, 3, -1, 4\)"),
        (lambda: NET.plan((1, 3, 64.0, 64)), r"shape: expected \(N, 3, H, W\)"),
        (lambda: PerceptualLoss("embedded", data_range=1)(X), "target: expected either target or reference"),
        (lambda: LearnedPerceptualImagePatchSimilarity("embedded").update(X), "update: expected"),
        (lambda: LPIPSDiversity("embedded").update(X[:1]), "images: expected .* at least 2 samples per group, got"),
        (lambda: LPIPSDiversity("embedded").update(X[None, None]), "images: expected .* at least 2 samples"),
    ],
)
def test_calls_that_are_none(call, message):
    with pytest.raises((TypeError, ValueError), match=f"^{message}"):
        call()


def test_the_table_is_long():
    assert sum(map(len, OPTIONS.values())) >= 100
