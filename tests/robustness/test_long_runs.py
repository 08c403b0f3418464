"""Long runs: memory, live tensors and the work of a call stay what they were, and nothing of a step outlives it.

Memory is what was asked of malloc, and work is a number of calls: neither depends on the machine or what else it does.

The full length is 20,000 loss calls and 2,000 metric updates (``-m slow``); the default run takes a twentieth.
"""

from __future__ import annotations

import ctypes
import gc
import statistics
import sys
import weakref

import pytest
import torch

from lpips_lightning import LPIPS, LearnedPerceptualImagePatchSimilarity, PerceptualLoss
from lpips_lightning.functional.lpips import learned_perceptual_image_patch_similarity
from lpips_lightning.metrics.diversity import LPIPSDiversity

SIDE, PARTS = 32, 20
SHORT, FULL = 1, 20
GROWTH = {SHORT: 0.5, FULL: 0.05}  # KiB a call: a image is 12, a graph hundreds


def images(number, count=1, side=SIDE):
    """Two batches that differ from call to call."""
    generator = torch.Generator().manual_seed(number)
    return (torch.rand(2, count, 3, side, side, generator=generator) * 2 - 1).unbind(0)


class Mallinfo(ctypes.Structure):
    """Of glibc's malloc.h."""

    _fields_ = (
        *((name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks")),
        *((name, ctypes.c_size_t) for name in ("uordblks", "fordblks", "keepcost")),
    )


def mallinfo():
    """glibc's mallinfo2 (2.33), or None."""
    try:
        function = ctypes.CDLL(None).mallinfo2
    except (AttributeError, OSError, TypeError):  # another libc, or Windows
        return None
    function.restype = Mallinfo
    return function


MALLINFO = mallinfo()


def memory():
    """What this process holds of malloc, KiB; 0 where that cannot be asked."""
    found = MALLINFO() if MALLINFO else Mallinfo()
    return (found.uordblks + found.hblkhd) / 1024


def counted(step, number):
    """Do a step; how many functions it calls."""
    calls = 0

    def count(frame, event, arg):
        nonlocal calls
        calls += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        step(number)
    finally:
        sys.setprofile(before)
    return calls


@pytest.fixture(autouse=True)
def _seen_alone():
    """What was there before is not looked at."""
    gc.collect()
    gc.freeze()


def tensors(collect=True):
    """How many there are that were made in this test."""
    if collect:
        gc.collect()
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())


class Run:
    """What was seen while a step was done many times."""

    def __init__(self, step, calls):
        self.memory, self.tensors, self.places, self.calls = [], [], [], []
        for number in range(calls):
            if (number + 1) % (calls // PARTS):
                step(number)
            else:
                self.calls.append(counted(step, number))
                self.tensors.append(tensors())
                self.memory.append(memory())
                self.places.append(number)

    @property
    def growth(self):
        """KiB a call, by least squares over the last three quarters."""
        return statistics.linear_regression(self.places[PARTS // 4 :], self.memory[PARTS // 4 :]).slope

    def check(self, length, record_property):
        record_property("growth, KiB a call", round(self.growth, 4))
        record_property("functions called in a call", self.calls[-1])
        print(f"{self.growth:.4f} KiB a call, {self.calls[-1]} functions called in one, {self.tensors[-1]} tensors")
        assert self.growth < GROWTH[length]
        assert len(set(self.tensors[2:])) == 1, self.tensors
        assert len(set(self.calls[2:])) == 1 and self.calls[-1] > 100, self.calls


NET, LOSS, DIVERSITY = LPIPS("embedded"), PerceptualLoss("embedded", data_range=(-1, 1)), LPIPSDiversity("embedded")
LENGTHS = [pytest.param(SHORT, id="a twentieth"), pytest.param(FULL, id="full", marks=pytest.mark.slow)]


@pytest.mark.parametrize("length", LENGTHS)
def test_loss_calls_with_their_backward_pass(length, record_property):
    loss = PerceptualLoss("embedded", data_range=(-1, 1))
    weight = torch.ones(3, 1, 1, requires_grad=True)

    def step(number):
        x, y = images(number)
        loss(weight * x, y).backward()
        weight.grad = None

    Run(step, 1000 * length).check(length, record_property)


@pytest.mark.parametrize("length", LENGTHS)
def test_metric_updates_of_images_that_want_gradients(length, record_property):
    metric = LearnedPerceptualImagePatchSimilarity("embedded")
    weight = torch.ones(3, 1, 1, requires_grad=True)

    def step(number):
        x, y = images(number, count=4)
        metric.update(weight * x, y)
        assert not any(state.requires_grad for state in metric.metric_state.values() if isinstance(state, torch.Tensor))

    Run(step, 100 * length).check(length, record_property)
    assert int(metric.metric_state[metric._count]) == 400 * length and bool(metric.compute().isfinite())


LOSSES = {
    "plain": {},
    "map": {"spatial": True},
    "layers": {"per_layer": True},
    "each": {"reduction": "none"},
    "bfloat16": {"precision": "bf16"},
    "half": {"precision": "fp16"},
    "little memory": {"memory_budget": 2**24},
    "resized": {"resize": 40},
    "weight 0": {"weight": 0},
    "without checks": {"validate_args": False},
}
CALLS = 12


def _loss_step(**options):
    loss = PerceptualLoss("embedded", **{"data_range": (-1, 1), **options})

    def step(x, y):
        value = loss(x.requires_grad_(), y)
        (sum(value.values()) if isinstance(value, dict) else value).sum().backward()

    return step


def _twice(x, y):
    x.requires_grad_()
    (slope,) = torch.autograd.grad(LOSS(x, y), x, create_graph=True)
    torch.autograd.grad(slope.square().sum(), x)


def _reference(x, y):
    LOSS(x.requires_grad_(), reference=LOSS.encode(y)).backward()


def _masked(x, y):
    LOSS(x.requires_grad_(), y, mask=x[:, 0].detach() > 0).backward()


def _function(x, y):
    learned_perceptual_image_patch_similarity(x.requires_grad_(), y, "embedded").backward()


def _metric_step(**options):
    metric = LearnedPerceptualImagePatchSimilarity("embedded", **options)

    def step(x, y):
        metric(x.requires_grad_(), y)
        metric.update(x, y)

    return step


def _diversity(x, y):
    DIVERSITY.update(torch.cat((x.requires_grad_(), y)))
    DIVERSITY(torch.cat((x, y)))


def _features(x, y):
    NET.distance(NET.encode(x.requires_grad_()), NET.encode(y)).sum().backward()
    NET.pairwise(x, y).sum().backward()


def _refused(x, y):
    for wrong in ((x, y[:0]), (x, 3 * y), (x, y.double() * 100)):
        with pytest.raises(ValueError, match="expected"):
            NET(wrong[0].requires_grad_(), wrong[1])


STEPS = {f"loss: {name}": lambda options=options: _loss_step(**options) for name, options in LOSSES.items()}
STEPS |= {f"metric: {name}": lambda name=name: _metric_step(reduction=name) for name in ("mean", "sum")}
STEPS |= {
    "metric: map": lambda: _metric_step(spatial=True),
    "metric: layers": lambda: _metric_step(per_layer=True),
    "a loss's derivative of the gradient": lambda: _twice,
    "a loss with a reference": lambda: _reference,
    "a loss with a mask": lambda: _masked,
    "the function": lambda: _function,
    "diversity": lambda: _diversity,
    "features and all pairs": lambda: _features,
    "refused": lambda: _refused,
}


@pytest.mark.parametrize("name", STEPS)
def test_nothing_of_a_step_outlives_it(name):
    step, seen, counts = STEPS[name](), [], []
    gc.disable()  # what a cycle held would live until the next collection
    try:
        for number in range(CALLS):
            x, y = images(number, count=2, side=SIDE + 2 * (number % 3))
            if "map" in name:
                x, y = x[..., :SIDE, :SIDE].clone(), y[..., :SIDE, :SIDE].clone()
            seen += [weakref.ref(x), weakref.ref(y)]
            step(x, y)
            del x, y
            counts.append(tensors(collect=False))
            assert [ref() for ref in seen] == [None] * len(seen), f"call {number}"
    finally:
        gc.enable()
    assert len(set(counts[3:])) == 1, counts


def test_scores_that_are_kept_are_all_that_grows():
    """Reduction "none" keeps a number an image, and nothing of the image."""
    metric = LearnedPerceptualImagePatchSimilarity("embedded", "none")
    before = tensors()
    for number in range(20):
        x, y = images(number)
        metric.update(x.requires_grad_(), y)
        metric(x, y)
    del x, y
    kept = metric.metric_state[metric._scores]
    assert sum(part.numel() for part in kept) == 40 and not any(part.requires_grad for part in kept)
    assert tensors() - before <= 40 + 2
    del kept
    metric.reset()
    assert tensors() - before <= 2


def test_networks_that_are_made_and_dropped_leave_nothing():
    x, y = images(0)
    counts = []
    for _ in range(6):
        LPIPS("embedded", calibrated=False)(x.double(), y.double())
        LearnedPerceptualImagePatchSimilarity("squeeze", weights="random")(x, y)
        counts.append(tensors())
    assert len(set(counts[2:])) == 1, counts
