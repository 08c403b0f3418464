"""Winograd's arithmetic against PyTorch's convolution in float64: values, borders, blocks, bits, and whole networks."""

from __future__ import annotations

import copy
import math
import pickle
import threading
import weakref

import pytest
import rounding
import torch
from references import relative_distance
from rounding import FEW, TWICE, winograd_error
from torch import nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_input

from lpips_lightning import LPIPS, PerceptualLoss
from lpips_lightning.backbones import frozen
from lpips_lightning.calibration.model import TrainableLPIPS
from lpips_lightning.engine.memory import peak_bytes
from lpips_lightning.kernels import winograd
from lpips_lightning.kernels.conv2d import FastConv2d
from lpips_lightning.kernels.winograd import convolve, transform_weight, workspace

EXACT = 1e-12  # relative, in float64: a thousand times its rounding of some hundred summands
SIZES = ((1, 1), (1, 2), (2, 2), (3, 3), (5, 4), (3, 700), (200, 3), (15, 15), (16, 16), (17, 33))  # of the input
PADDINGS = ((0, 0), (1, 1), (2, 2), (0, 1), (1, 2), (2, 0))
CASES = [(size, pads) for size in SIZES for pads in PADDINGS if min(map(sum, zip(size, pads, pads, strict=True))) > 2]
FORMS = ("convolution", "input_gradient")


def drawn(size, padding, form, count=3, channels=5, filters=7):
    """What a form is of, the weight and the bias, in float64; `size` is that of the convolution's input."""
    of_result = [length + 2 * pad - 2 for length, pad in zip(size, padding, strict=True)]
    shape = (count, channels, *size) if form == "convolution" else (count, filters, *of_result)
    weight, bias = torch.randn(filters, channels, 3, 3).double(), torch.randn(filters).double()
    return torch.randn(shape).double(), weight, bias


def direct(x, weight, bias, padding, form):
    if form == "convolution":
        return F.conv2d(x, weight, bias, padding=padding)
    size = [length + 2 - 2 * pad for length, pad in zip(x.shape[2:], padding, strict=True)]
    return conv2d_input((len(x), weight.shape[1], *size), weight, x, padding=padding)


def found(x, weight, bias, padding, form):
    return convolve(x, transform_weight(weight), bias, padding, input_gradient=form == "input_gradient")


@pytest.fixture
def in_blocks_of(monkeypatch):
    """in_blocks_of(tiles): at most so many, so that an image has several blocks, or a block several images."""
    return lambda tiles: [monkeypatch.setattr(winograd, name, tiles) for name in ("_MIN_TILES", "_MAX_TILES")]


def test_the_cases_are_all_there_are():
    assert len(CASES) == 51
    assert {size for size, _ in CASES} == set(SIZES) and {padding for _, padding in CASES} == set(PADDINGS)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("size", "padding"), CASES)
def test_it_is_the_convolution_and_its_input_gradient_in_float64(size, padding, form):
    x, weight, bias = drawn(size, padding, form)
    for with_bias in (bias.requires_grad_(), None):  # the input_gradient has none, whatever is given
        value = found(x.requires_grad_(), weight.requires_grad_(), with_bias, padding, form)
        assert relative_distance(value, direct(x, weight, with_bias, padding, form)) < EXACT
        _, channels, height, width = value.shape
        assert value.stride() == (channels * height * width, 1, channels * width, channels)  # channels_last
        assert value.dtype == torch.float64 and not value.requires_grad


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("channels", [(5, 7), (64, 256), (512, 128), (1, 1)])
@pytest.mark.parametrize("size", [(4, 4), (17, 33), (3, 90)])
def test_in_float32_its_error_is_that_of_its_algorithm(size, channels, form):
    """From `rounding.winograd_error`, for noise where rounding is; the bias is one rounding more."""
    x, weight, bias = (tensor.float() for tensor in drawn(size, (1, 1), form, 2, *channels))
    right = direct(x.double(), weight.double(), bias.double(), (1, 1), form)
    value = found(x, weight, bias, (1, 1), form)
    assert value.dtype == torch.float32
    assert relative_distance(value, right) < TWICE * winograd_error(x, weight, (1, 1), form == "input_gradient") + FEW


def bf16_products(patch):
    """Products that are summed in bfloat16, block by block of channels."""

    def bmm(values, kernel, out):
        total = torch.zeros_like(out, dtype=torch.bfloat16)
        for of_values, of_kernel in zip(values.split(32, 2), kernel.split(32, 1), strict=True):
            total += torch.matmul(of_values, of_kernel).bfloat16()
        out.copy_(total)

    patch.setattr(winograd.torch, "bmm", bmm)


def wrong(name, value):
    return lambda patch: patch.setattr(winograd, name, value)


POINTS = list(winograd._POINTS)
MUTATIONS = {
    "products in bfloat16": bf16_products,
    "a point": wrong("_POINTS", (*POINTS[:2], (8 / 9, -4.001 / 9, 2 / 9), *POINTS[3:])),
    "a sign": wrong("_POINTS", (*POINTS[:3], (2 / 9, 4 / 9, 8 / 9), POINTS[4])),
    "a scale": wrong("_POINTS", (POINTS[0], tuple(value * (1 + 1e-4) for value in POINTS[1]), *POINTS[2:])),
    "order of the mirrored points": wrong("_MIRRORED", (4, 1, 2, 3, 0)),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_that_bound_rejects_arithmetic_that_is_wrong(monkeypatch, mutation):
    x, weight, _ = (tensor.float() for tensor in drawn((12, 15), (1, 1), "input_gradient", 2, 64, 64))
    right = direct(x.double(), weight.double(), None, (1, 1), "input_gradient")
    allowed = TWICE * winograd_error(x, weight, (1, 1), input_gradient=True) + FEW
    assert relative_distance(found(x, weight, None, (1, 1), "input_gradient"), right) < allowed
    MUTATIONS[mutation](monkeypatch)
    assert relative_distance(found(x, weight, None, (1, 1), "input_gradient"), right) > 3 * allowed


@pytest.mark.parametrize("form", FORMS)
def test_that_oracle_is_the_convolution(form):
    x, weight, _ = drawn((12, 16), (0, 2), form, 2)
    assert (
        relative_distance(
            rounding.winograd(x, weight, (0, 2), form == "input_gradient"), direct(x, weight, None, (0, 2), form)
        )
        < EXACT
    )


@pytest.mark.parametrize(("size", "padding"), CASES)
def test_the_input_gradient_is_the_adjoint_map(size, padding):
    x, weight, _ = drawn(size, padding, "convolution")
    y, _, _ = drawn(size, padding, "input_gradient")
    forward = found(x, weight, None, padding, "convolution") * y
    back = x * found(y, weight, None, padding, "input_gradient")
    assert abs(float(forward.sum() - back.sum())) < EXACT * float(forward.norm() * forward.numel() ** 0.5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("tiles", [1, 7, 20, 45, 512])
@pytest.mark.parametrize("size", [(1, 9), (7, 9), (11, 10), (30, 6)])
def test_blocks_of_any_size_give_the_same(in_blocks_of, tiles, size, form):
    in_blocks_of(tiles)
    padding = 1, 1
    x, weight, bias = drawn(size, padding, form, 7)
    assert relative_distance(found(x, weight, bias, padding, form), direct(x, weight, bias, padding, form)) < EXACT


def layouts(x):
    """The same values in other memory; whatever lies between and around them is NaN."""
    around = torch.full([side + 4 for side in x.shape], math.nan, dtype=x.dtype)
    around[2:-2, 2:-2, 2:-2, 2:-2] = x
    between = torch.full([2 * side for side in x.shape], math.nan, dtype=x.dtype)[::2, ::2, 1::2, ::2]
    between.copy_(x)
    return {
        "rows": x.contiguous(),
        "channels last": x.contiguous(memory_format=torch.channels_last),
        "slice": around[2:-2, 2:-2, 2:-2, 2:-2],
        "slice of channels last": around.contiguous(memory_format=torch.channels_last)[2:-2, 2:-2, 2:-2, 2:-2],
        "steps": between,
        "transposed": x.transpose(2, 3).contiguous().transpose(2, 3),
        "expanded": x[:1].expand(3, -1, -1, -1),
    }


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("padding", [(0, 0), (1, 1), (2, 2), (0, 1)])
def test_memory_does_not_matter_and_what_lies_around_a_slice_is_not_read(padding, form):
    x, weight, bias = (tensor.float() for tensor in drawn((9, 14), padding, form, 1))
    x = x.expand(3, -1, -1, -1).clone()
    expected = found(x, weight, bias, padding, form)
    assert expected.isfinite().all()
    for name, values in layouts(x).items():
        assert torch.equal(found(values, weight, bias, padding, form), expected), name
        assert torch.equal(values, x)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("tiles", [1, 16, 512])
def test_an_image_does_not_see_its_neighbors(in_blocks_of, tiles, form):
    in_blocks_of(tiles)
    x, weight, bias = drawn((8, 7), (1, 1), form, 4)
    expected = direct(x, weight, bias, (1, 1), form)
    x[0], x[2] = math.nan, math.inf
    value = found(x, weight, bias, (1, 1), form)
    assert relative_distance(value[1::2], expected[1::2]) < EXACT
    assert not value[0::2].isfinite().any()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize(("row", "column"), [(0, 0), (5, 8), (6, 7), (11, 14)])
def test_what_is_not_finite_is_not_lost_and_stays_near(row, column, bad):
    """In the result of a direct convolution it reaches as far as the kernel; here, whole tiles more."""
    x, weight, bias = drawn((12, 15), (1, 1), "convolution")
    x[1, 2, row, column] = bad
    lost = ~found(x, weight, bias, (1, 1), "convolution").isfinite()
    assert (lost | direct(x, weight, bias, (1, 1), "convolution").isfinite()).all()
    near = 3  # of the kernel 1, of the tile 2
    lost[1, :, max(row - near, 0) : row + near + 1, max(column - near, 0) : column + near + 1] = False
    assert not lost.any()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [(8, 8), (15, 15), (9, 33), (33, 40), (3, 700)])
def test_the_bits_of_an_image_do_not_depend_on_its_batch(size, form):
    x, weight, bias = (tensor.float() for tensor in drawn(size, (1, 1), form, 6, 128, 136))
    whole = found(x, weight, bias, (1, 1), form)
    assert torch.equal(found(x, weight, bias, (1, 1), form), whole)
    for chosen in ([0], [4], [1, 2], [1, 2, 3, 4, 5], [3, 3, 0, 5, 3, 3, 3]):
        assert torch.equal(found(x[chosen], weight, bias, (1, 1), form), whole[chosen]), chosen


def test_a_kernel_is_products_of_channels_at_every_pair_of_points():
    weight = torch.randn(7, 5, 3, 3)
    kernel = transform_weight(weight)
    assert kernel.shape == (25, 5, 7) and kernel.dtype == torch.float32 and kernel.is_contiguous()
    corners = kernel.view(5, 5, 5, 7)[::4, ::4]
    assert torch.equal(corners, weight[:, :, ::2, ::2].permute(2, 3, 1, 0))
    assert torch.equal(transform_weight(weight.contiguous(memory_format=torch.channels_last)), kernel)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("length", [7, 16, 96])
@pytest.mark.parametrize("channels", [(512, 512), (128, 256)])
def test_it_takes_the_workspace_that_it_says_and_few_pixels_take_little(channels, length, form):
    x, weight, _ = (tensor.float().to("meta") for tensor in drawn((length, length), (1, 1), form, 2, *channels))
    kernel, input_gradient = transform_weight(torch.empty(weight.shape)).to("meta"), form == "input_gradient"
    result = 4 * 2 * channels[form == "convolution"] * length**2
    taken = peak_bytes(lambda: convolve(x, kernel, None, (1, 1), input_gradient), [x, kernel]) - result
    said = peak_bytes(lambda: workspace(x, weight, (1, 1), input_gradient), [x, weight])
    assert abs(taken - said) < 100
    assert said < 45 * 2**20 and (length < 96) == (said < 16 * 2**20)


def test_calls_share_one_workspace_per_thread_and_free_it(monkeypatch):
    x, weight, bias = drawn((12, 15), (1, 1), "convolution")
    kernels = [transform_weight(times * weight) for times in (1, 2, 3)]
    expected = [convolve(x, kernel, bias, (1, 1)) for kernel in kernels]
    seen, memory = [], winograd._allocate
    monkeypatch.setattr(winograd, "_allocate", lambda *given: [part := memory(*given), seen.append(part)][0])
    with winograd.shared_workspace():
        with winograd.shared_workspace():
            found = [convolve(x, kernel, bias, (1, 1)) for kernel in kernels]
        found.append(convolve(x, kernels[0], bias, (1, 1)))
        thread = threading.Thread(target=lambda: found.append(convolve(x, kernels[0], bias, (1, 1))))
        thread.start()
        thread.join()
    assert all(torch.equal(*pair) for pair in zip(found, [*expected, expected[0], expected[0]], strict=True))
    places = [part.data_ptr() for part in seen]
    assert len(set(places[:4])) == 1 and places[4] not in places[:4]
    gone = weakref.ref(seen[0].untyped_storage())
    seen.clear()
    assert gone() is None and getattr(winograd._thread, "workspaces", None) is None


@pytest.fixture
def avx2(monkeypatch):
    """A processor on which it is taken."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)


@pytest.mark.usefixtures("avx2")
def test_a_kernel_is_made_once_and_copies_of_a_module_carry_none(monkeypatch):
    plain, x, kernels = nn.Conv2d(128, 128, 3, padding=1).requires_grad_(False), torch.randn(2, 128, 24, 26), []
    monkeypatch.setattr(
        winograd, "transform_weight", lambda *given: [transform_weight(*given), kernels.append(given)][0]
    )
    fast = FastConv2d(plain)
    expected = fast(x)
    assert torch.equal(fast(x), expected) and len(kernels) == 1
    assert len(pickle.dumps(fast)) < len(pickle.dumps(plain)) + 1000
    for count, clone in ((2, copy.deepcopy(fast)), (4, pickle.loads(pickle.dumps(fast)))):
        assert torch.equal(clone(x), expected) and len(kernels) == count
        clone.weight.zero_()
        assert torch.equal(clone(x), clone.bias.view(1, -1, 1, 1).expand_as(expected))
    assert torch.equal(fast(x), expected) and len(kernels) == 5


@pytest.fixture
def vgg(monkeypatch, avx2, backbones):
    """vgg(fast): a random network with fast convolutions, or without; shared with no other test."""

    def make(fast):
        monkeypatch.setattr(frozen, "_networks", weakref.WeakValueDictionary())
        with monkeypatch.context() as patch:
            if not fast:
                patch.setattr(frozen, "replace_convolutions", lambda module: None)
            net = LPIPS("vgg", weights=backbones["vgg"])
        kinds = [type(part) for part in net.frozen_network().modules() if isinstance(part, nn.Conv2d)]
        assert kinds == [FastConv2d if fast else nn.Conv2d] * 13
        return net

    return make


def test_distances_and_gradients_of_a_network_are_as_exact_as_those_without(vgg, pair):
    """A layer's error is at most `times` that of PyTorch's own, so that of the network is, in the root mean square."""
    x, y = pair(8, 48, 64)
    found, own = (measured(vgg(fast), x, y) for fast in (True, False))
    exact = measured(vgg(False), x.double(), y.double())
    layer = torch.randn(2, 128, 24, 32), torch.randn(128, 128, 3, 3), (1, 1)
    assert not torch.equal(found[-1], own[-1])
    for ours, theirs, right in zip(found, own, exact, strict=True):
        assert relative_distance(ours, right) < rounding.times(*layer) * relative_distance(theirs, right) + FEW


def measured(net, x, y):
    """Distances, with a graph and without, and the gradient."""
    distance = net(leaf := x.clone().requires_grad_(), y)
    return net(x, y), distance.detach(), torch.autograd.grad(distance.sum(), leaf)[0]


def test_equal_images_are_at_distance_0_exactly_and_without_a_slope(vgg, pair, backbones):
    net, loss = vgg(True), PerceptualLoss("vgg", weights=backbones["vgg"], data_range=(-1, 1))
    for shape in ((1, 64, 64), (3, 48, 64)):
        x, _ = pair(*shape)
        assert not net(x, x.clone()).any()
        leaf = x.clone().requires_grad_()
        distance = net(leaf, x)
        assert not distance.any() and not torch.autograd.grad(distance.sum(), leaf)[0].any()
    assert loss(x, x.clone()) == 0


@pytest.mark.parametrize("mode", ["lin", "tune"])
def test_a_backbone_that_is_trained_has_gradients_and_one_that_is_not_has_none(vgg, pair, mode, monkeypatch):
    calls = []
    monkeypatch.setattr(winograd, "convolve", lambda *args, **kwargs: [convolve(*args, **kwargs), calls.append(0)][0])
    network = TrainableLPIPS("vgg", weights="random", mode=mode)
    sum(network(*pair(1, 64, 64))).sum().backward()
    weights = [part.weight for part in network.extractor.modules() if isinstance(part, FastConv2d)]
    assert len(weights) == 13
    assert all((weight.grad is not None and weight.grad.any()) == (mode == "tune") for weight in weights)
    assert bool(calls) == (mode == "lin")
