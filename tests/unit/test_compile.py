"""torch.compile(fullgraph=True) against eager mode: values and gradients, from the first call on."""

from __future__ import annotations

import copy
import gc
import pickle
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from frozen_networks import live_networks
from references import relative_distance
from torch._dynamo.testing import CompileCounterWithBackend

from lpips_lightning import LPIPS, LPIPSDiversity, PerceptualLoss, compat
from lpips_lightning import LearnedPerceptualImagePatchSimilarity as Metric
from lpips_lightning.functional.lpips import learned_perceptual_image_patch_similarity

SIDE = 40
BOOLS = torch.ones(2, SIDE, SIDE, dtype=torch.bool)
BOOLS[1:, :3] = False  # eroded, nothing is left of these images
FLOATS = torch.rand(2, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
# The compiler may fuse and order sums otherwise; in half precision it may also skip roundings.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


@pytest.fixture(autouse=True)
def _nothing_compiled():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def unpickled(loss):
    written = pickle.dumps(loss)
    del loss
    return pickle.loads(written)


@dataclass
class Case:
    options: dict = field(default_factory=dict)
    call: dict = field(default_factory=dict)
    dtype: torch.dtype = torch.float32
    works_in: torch.dtype | None = None  # the dtype of the backbone, for the tolerance
    lead: tuple[int, ...] = (2,)
    channels: int = 3
    autocast: bool = False
    reference: bool = False
    made: Callable = copy.copy

    def images(self):
        x, y = torch.rand(2, *self.lead, self.channels, SIDE, SIDE)
        if self.dtype == torch.uint8:
            x, y = 255 * x, 255 * y
        return x.to(self.dtype), y.to(self.dtype)

    def tolerance(self):
        return TOLERANCE[self.works_in or (torch.float32 if self.dtype == torch.uint8 else self.dtype)]


BF16 = torch.bfloat16
CASES = {
    "autocast": Case(autocast=True, works_in=BF16),
    "bf16": Case({"precision": "bf16"}, works_in=BF16),
    "erode in float64": Case(call={"mask": BOOLS, "erode": True}, dtype=torch.float64),
    "layers": Case({"per_layer": True, "reduction": "none"}),
    "videos": Case({"reduction": "none", "gray": "repeat"}, lead=(2, 2), channels=1),
    "reference and mask": Case(call={"mask": FLOATS}, reference=True),
    "unpickled in float64": Case(dtype=torch.float64, made=unpickled),
}
MORE = {
    "float32": Case(),
    "float64": Case(dtype=torch.float64),
    "uint8": Case(dtype=torch.uint8),
    "maps": Case({"spatial": True}),
    "fp32 in autocast": Case({"precision": "fp32"}, autocast=True),
    "bf16 in autocast": Case({"precision": "bf16"}, autocast=True, works_in=BF16),
    "fp16": Case({"precision": "fp16"}, works_in=torch.float16),
    "bfloat16 images": Case(dtype=BF16),
    "float16 images": Case(dtype=torch.float16),
    "mask": Case(call={"mask": BOOLS}),
    "mask of floats": Case(call={"mask": FLOATS}),
    "erode": Case(call={"mask": BOOLS, "erode": True}),
    "maps of layers": Case({"per_layer": True, "spatial": True}),
    "gray": Case({"gray": "per_channel"}, channels=2),
    "alpha": Case({"background": "white"}, channels=4),
    "resize": Case({"resize": 36}),
    "chunks": Case({"frame_chunk": 1}),
    "weight 0": Case({"weight": 0.0}),
    "weight": Case({"weight": 0.5}),
    "without checks": Case({"validate_args": False}),
    "reference": Case(reference=True),
    "reference in autocast": Case(reference=True, autocast=True, works_in=BF16),
    "unpickled": Case(made=unpickled),
    "deep copy": Case(made=copy.deepcopy),
    "random": Case({"net_type": "squeeze", "weights": "random", "calibrated": False}),
    "random, v0.0, unpickled": Case({"net_type": "alex", "weights": "random", "version": "0.0"}, made=unpickled),
}


def run(loss, x, y, case, differentiate):
    x = x.clone().requires_grad_(differentiate)
    reference = {"reference": y} if case.reference else {"target": y}
    with torch.autocast("cpu", dtype=BF16, enabled=case.autocast):
        found = loss(x, **reference, **case.call)
    parts = list(found.values()) if isinstance(found, dict) else [found]
    total = sum(part.double().square().sum() for part in parts)
    return [*parts, *(torch.autograd.grad(total, x) if differentiate else [])]


def check(case, backend):
    loss = case.made(PerceptualLoss(**{"net_type": "embedded", "data_range": 1.0, **case.options}))
    x, y = case.images()
    if case.reference:
        with torch.autocast("cpu", dtype=BF16, enabled=case.autocast):
            y = loss.encode(y)
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(loss, backend=counter, fullgraph=True)
    floating = case.dtype.is_floating_point
    for differentiate in (floating, False, floating):  # the first call and later ones
        found, right = (run(one, x, y, case, differentiate) for one in (compiled, loss))
        assert len(found) == len(right) > 0
        for mine, eager in zip(found, right, strict=True):
            assert mine.dtype == eager.dtype and relative_distance(mine, eager) <= case.tolerance()
    assert counter.frame_count == 1 + floating  # once with a gradient and once without, not at every call


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name in ("erode in float64", "videos", "bf16"))) for name in CASES],
)
def test_a_loss_compiles_in_one_graph_from_the_first_call_on(name):
    check(CASES[name], "eager")


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("name", [*CASES, *MORE])
def test_every_loss_compiles_in_one_graph_from_the_first_call_on(name, backend):
    check({**CASES, **MORE}[name], backend)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["autocast", "float64", "erode in float64", "reference and mask", "unpickled"])
def test_inductor_compiles_a_loss_in_one_graph(name):
    check({**CASES, **MORE}[name], "inductor")


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch's own, at its break
@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_training_step_with_its_backward_pass_compiles(backend):
    model, loss = torch.nn.Conv2d(3, 3, 3, padding=1), PerceptualLoss("embedded", data_range=1.0)
    x, y = torch.rand(2, 2, 3, SIDE, SIDE)

    def step(model):
        value = loss(model(x), y)
        value.backward()
        return value.detach()

    twin = copy.deepcopy(model)
    compiled = torch.compile(step, backend=backend)
    for _ in range(2):
        assert relative_distance(compiled(model), step(twin)) < 1e-5
    for mine, eager in zip(model.parameters(), twin.parameters(), strict=True):
        assert relative_distance(mine.grad, eager.grad) < 1e-5


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch's own
@pytest.mark.slow
def test_compiled_autograd_gives_the_gradient():
    loss = PerceptualLoss("embedded", data_range=1.0)
    x, y = torch.rand(2, 2, 3, SIDE, SIDE)
    x.requires_grad_()
    (right,) = torch.autograd.grad(loss(x, y), x)
    enable = getattr(torch._dynamo.compiled_autograd, "_enable", None) or torch._dynamo.compiled_autograd.enable
    for one in (loss, torch.compile(loss, backend="eager", fullgraph=True)):
        with enable(torch.compile(backend="eager")):
            one(x, y).backward()
        assert relative_distance(x.grad, right) < 1e-5
        x.grad = None


OTHERS = {"encode": False, "layers of compat": False, "function": False}
SLOW = ("network", "maps and layers", "measure", "pairwise", "compat", "function of a network", "two dtypes")
OTHERS |= dict.fromkeys(SLOW, True)


def others():
    net, peer = LPIPS("embedded"), compat.LPIPS(net="embedded")
    function = learned_perceptual_image_patch_similarity
    return {
        "network": lambda x, y: net(x, y, 1.0),
        "maps and layers": lambda x, y: torch.stack(list(net(x, y, 1.0, spatial=True, per_layer=True).values())),
        "measure": lambda x, y: net.measure(x, y, 1.0, mask=BOOLS).values,
        "encode": lambda x, y: net.distance(net.encode(x, 1.0), net.encode(y, 1.0)),
        "pairwise": lambda x, y: net.pairwise(x, y, 1.0),
        "compat": lambda x, y: peer(x, y, normalize=True),
        "layers of compat": lambda x, y: torch.stack(peer(x, y, normalize=True, retPerLayer=True)[1]),
        "function": lambda x, y: function(x, y, "embedded", "none", normalize=True),
        "function of a network": lambda x, y: function(x, y, net, "none", normalize=True),
        "two dtypes": lambda x, y: net(x, y, 1.0) + net(x.double(), y.double(), 1.0),
    }


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * slow) for name, slow in OTHERS.items()])
def test_networks_and_functions_compile_in_one_graph(name):
    call = others()[name]
    x, y = torch.rand(2, 2, 3, SIDE, SIDE)
    found, right = torch.compile(call, backend="eager", fullgraph=True)(x, y), call(x, y)
    assert found.dtype == right.dtype and relative_distance(found, right) < 1e-5


@pytest.mark.parametrize("reduction", ["mean", pytest.param("none", marks=pytest.mark.slow)])
def test_the_update_of_a_metric_compiles_in_one_graph(reduction):
    metric = Metric("embedded", reduction, normalize=True)
    eager = copy.deepcopy(metric)
    update = torch.compile(metric.update, backend="eager", fullgraph=True)
    for images in torch.rand(3, 2, 2, 3, SIDE, SIDE).unbind():
        update(*images)
        eager.update(*images)
    assert relative_distance(metric.compute(), eager.compute()) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_the_forward_of_a_metric_compiles(reduction):
    # Not in one graph: torchmetrics' forward, and the shapes of single scores, depend on values.
    metric = Metric("embedded", reduction, normalize=True)
    eager, compiled = copy.deepcopy(metric), torch.compile(metric, backend="eager")
    for images in torch.rand(3, 2, 2, 3, SIDE, SIDE).unbind():
        assert relative_distance(compiled(*images), eager(*images)) < 1e-5
    assert relative_distance(metric.compute(), eager.compute()) < 1e-5


def test_batches_and_sizes_of_any_number_share_two_graphs():
    loss = PerceptualLoss("embedded", data_range=1.0)
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(loss, backend=counter, fullgraph=True)
    for count in (2, 3, 4, 5, 6):
        x, y = torch.rand(2, count, 3, SIDE, SIDE)
        assert relative_distance(compiled(x, y), loss(x, y)) < 1e-5
    assert counter.frame_count == 2  # torch takes the second number for a variable one
    for _ in range(10):  # more losses than torch compiles one function for
        torch.compile(PerceptualLoss("embedded", data_range=1.0), backend=counter, fullgraph=True)(x, y)
    assert counter.frame_count == 2


@pytest.mark.slow
def test_sizes_may_be_dynamic():
    loss = PerceptualLoss("embedded", data_range=1.0)
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(loss, backend=counter, fullgraph=True, dynamic=True)
    for count, side in ((2, 40), (3, 48), (4, 56), (5, 64), (6, 72), (7, 80)):
        x, y = torch.rand(2, count, 3, side, side + 8)
        assert relative_distance(compiled(x, y), loss(x, y)) < 1e-5
    assert counter.frame_count <= 3


def test_networks_that_differ_are_not_mistaken_for_each_other():
    x, y = torch.rand(2, 2, 3, SIDE, SIDE)
    for seed in (1, 2):
        torch.manual_seed(seed)
        net = LPIPS("embedded", weights="random")
        compiled = torch.compile(net, backend="eager", fullgraph=True)
        assert relative_distance(compiled(x, y, 1.0), net(x, y, 1.0)) < 1e-5


def test_compiled_code_keeps_no_network_alive_and_loads_it_again():
    gc.collect()
    before = live_networks()
    written = pickle.dumps(PerceptualLoss("embedded", data_range=1.0, weights="random"))
    x, y = torch.rand(2, 2, 3, SIDE, SIDE, dtype=torch.float64)
    found = []
    for _ in range(2):
        found.append(torch.compile(pickle.loads(written), backend="eager", fullgraph=True)(x, y))
        gc.collect()
        assert live_networks() == before
    assert torch.equal(*found)


def test_features_made_in_inference_mode_give_the_right_gradient_where_they_cannot_be_refused():
    loss = PerceptualLoss("embedded", data_range=1.0)
    x, y = torch.rand(2, 2, 3, SIDE, SIDE)
    x.requires_grad_()
    with torch.inference_mode():
        reference = loss.net.encode(y, 1.0)
    (right,) = torch.autograd.grad(loss(x, y), x)
    compiled = torch.compile(loss, backend="eager", fullgraph=True)
    assert relative_distance(torch.autograd.grad(compiled(x, reference=reference), x)[0], right) < 1e-5


@pytest.mark.slow
def test_a_first_call_in_inference_mode_leaves_later_gradients_alone():
    loss = unpickled(PerceptualLoss("embedded", data_range=1.0))
    x, y = torch.rand(2, 2, 3, SIDE, SIDE, dtype=torch.float64)
    compiled = torch.compile(loss, backend="eager", fullgraph=True)
    with torch.inference_mode():
        compiled(x, y)
    x.requires_grad_()
    (right,) = torch.autograd.grad(loss(x, y), x)
    assert relative_distance(torch.autograd.grad(compiled(x, y), x)[0], right) < 1e-10


@pytest.mark.slow
def test_diversity_compiles():
    metric = LPIPSDiversity("embedded", normalize=True)
    eager = copy.deepcopy(metric)
    images = torch.rand(3, 3, SIDE, SIDE)
    torch.compile(metric.update, backend="eager")(images)
    eager.update(images)
    assert relative_distance(metric.compute(), eager.compute()) < 1e-5
