"""Winograd's arithmetic against PyTorch's convolution in float64: values, borders, blocks, bits, and whole networks."""

from __future__ import annotations

import copy
import math
import pickle
import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_input

from lpips_lightning import LPIPS, PerceptualLoss, frozen, winograd
from lpips_lightning.convolutions import FastConv2d
from lpips_lightning.trainable import TrainableLPIPS
from lpips_lightning.winograd import convolve, transformed

EXACT = 1e-12  # relative, in float64
SIZES = ((1, 1), (1, 2), (2, 2), (3, 3), (5, 4), (3, 700), (200, 3), (15, 15), (16, 16), (17, 33))  # of the input
PADDINGS = ((0, 0), (1, 1), (2, 2), (0, 1), (1, 2), (2, 0))
CASES = [(size, pads) for size in SIZES for pads in PADDINGS if min(map(sum, zip(size, pads, pads, strict=True))) >= 3]
FORMS = ("convolution", "adjoint")


def drawn(size, padding, form, count=3, channels=5, filters=7):
    """What a form is of, the weight and the bias, in float64; `size` is that of the convolution's input."""
    of_result = [side + 2 * pad - 2 for side, pad in zip(size, padding, strict=True)]
    shape = (count, channels, *size) if form == "convolution" else (count, filters, *of_result)
    weight, bias = torch.randn(filters, channels, 3, 3).double(), torch.randn(filters).double()
    return torch.randn(shape).double(), weight, bias


def direct(x, weight, bias, padding, form):
    if form == "convolution":
        return F.conv2d(x, weight, bias, padding=padding)
    size = [side + 2 - 2 * pad for side, pad in zip(x.shape[2:], padding, strict=True)]
    return conv2d_input((len(x), weight.shape[1], *size), weight, x, padding=padding)


def found(x, weight, bias, padding, form):
    return convolve(x, transformed(weight), bias, padding, adjoint=form == "adjoint")


def relative(value, right):
    assert value.shape == right.shape
    value, right = value.detach().double(), right.detach().double()
    return float((value - right).norm() / right.norm())


@pytest.fixture
def in_blocks_of(monkeypatch):
    """in_blocks_of(tiles): at most so many, so that an image has several blocks, or a block several images."""
    return lambda tiles: [monkeypatch.setattr(winograd, name, tiles) for name in ("_FEWEST_TILES", "_MOST_TILES")]


def test_the_cases_are_all_there_are():
    assert len(CASES) == 51
    assert {size for size, _ in CASES} == set(SIZES) and {padding for _, padding in CASES} == set(PADDINGS)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("size", "padding"), CASES)
def test_it_is_the_convolution_and_its_adjoint_in_float64(size, padding, form):
    x, weight, bias = drawn(size, padding, form)
    for with_bias in (bias.requires_grad_(), None):  # the adjoint has none, whatever is given
        value = found(x.requires_grad_(), weight.requires_grad_(), with_bias, padding, form)
        assert relative(value, direct(x, weight, with_bias, padding, form)) < EXACT
        _, channels, height, width = value.shape
        assert value.stride() == (channels * height * width, 1, channels * width, channels)  # channels_last
        assert value.dtype == torch.float64 and not value.requires_grad


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("channels", [(5, 7), (64, 256), (512, 128), (1, 1)])
@pytest.mark.parametrize("size", [(4, 4), (17, 33), (3, 90)])
def test_in_float32_it_is_as_near_to_the_exact_one_as_the_direct_convolution(size, channels, form):
    x, weight, bias = (tensor.float() for tensor in drawn(size, (1, 1), form, 2, *channels))
    right = direct(x.double(), weight.double(), bias.double(), (1, 1), form)
    value = found(x, weight, bias, (1, 1), form)
    assert value.dtype == torch.float32
    assert relative(value, right) < max(1.5 * relative(direct(x, weight, bias, (1, 1), form), right), 1e-6)


@pytest.mark.parametrize(("size", "padding"), CASES)
def test_the_adjoint_is_adjoint(size, padding):
    x, weight, _ = drawn(size, padding, "convolution")
    y, _, _ = drawn(size, padding, "adjoint")
    forward = found(x, weight, None, padding, "convolution") * y
    back = x * found(y, weight, None, padding, "adjoint")
    assert abs(float(forward.sum() - back.sum())) < EXACT * float(forward.norm() * forward.numel() ** 0.5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("tiles", [1, 7, 20, 45, 512])
@pytest.mark.parametrize("size", [(1, 9), (7, 9), (11, 10), (30, 6)])
def test_blocks_of_any_size_give_the_same(in_blocks_of, tiles, size, form):
    in_blocks_of(tiles)
    x, weight, bias = drawn(size, (1, 1), form, 7)
    assert relative(found(x, weight, bias, (1, 1), form), direct(x, weight, bias, (1, 1), form)) < EXACT


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
def test_an_image_does_not_see_its_neighbours(in_blocks_of, tiles, form):
    in_blocks_of(tiles)
    x, weight, bias = drawn((8, 7), (1, 1), form, 4)
    expected = direct(x, weight, bias, (1, 1), form)
    x[0], x[2] = math.nan, math.inf
    value = found(x, weight, bias, (1, 1), form)
    assert relative(value[1::2], expected[1::2]) < EXACT
    assert not value[0::2].isfinite().any()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize(("row", "column"), [(0, 0), (5, 8), (6, 7), (11, 14)])
def test_what_is_not_finite_is_not_lost_and_stays_near(row, column, bad):
    """In the result of a direct convolution it reaches one pixel; here, whole tiles of two."""
    x, weight, bias = drawn((12, 15), (1, 1), "convolution")
    x[1, 2, row, column] = bad
    lost = ~found(x, weight, bias, (1, 1), "convolution").isfinite()
    assert (lost | direct(x, weight, bias, (1, 1), "convolution").isfinite()).all()
    lost[1, :, max(row - 2, 0) : row + 3, max(column - 2, 0) : column + 3] = False
    assert not lost.any()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [(8, 8), (15, 15), (9, 33), (33, 40), (3, 700)])
def test_the_bits_of_an_image_do_not_depend_on_its_batch(size, form):
    x, weight, bias = (tensor.float() for tensor in drawn(size, (1, 1), form, 6, 128, 136))
    whole = found(x, weight, bias, (1, 1), form)
    assert torch.equal(found(x, weight, bias, (1, 1), form), whole)
    for chosen in ([0], [4], [1, 2], [1, 2, 3, 4, 5], [3, 3, 0, 5, 3, 3, 3]):
        assert torch.equal(found(x[chosen], weight, bias, (1, 1), form), whole[chosen]), chosen


def test_a_kernel_is_four_by_four_products_of_channels():
    weight = torch.randn(7, 5, 3, 3)
    kernel = transformed(weight)
    assert kernel.shape == (16, 5, 7) and kernel.dtype == torch.float32 and kernel.is_contiguous()
    assert torch.equal(kernel[0], weight[:, :, 0, 0].T) and torch.equal(kernel[15], weight[:, :, 2, 2].T)
    assert torch.equal(transformed(weight.contiguous(memory_format=torch.channels_last)), kernel)


@pytest.fixture
def avx2(monkeypatch):
    """A processor on which it is taken."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)


@pytest.mark.usefixtures("avx2")
def test_a_kernel_is_made_once_and_copies_of_a_module_carry_none(monkeypatch):
    plain, x, kernels = nn.Conv2d(128, 128, 3, padding=1).requires_grad_(False), torch.randn(2, 128, 24, 26), []
    monkeypatch.setattr(winograd, "transformed", lambda weight: [transformed(weight), kernels.append(weight)][0])
    fast = FastConv2d(plain)
    expected = fast(x)
    assert torch.equal(fast(x), expected) and len(kernels) == 1
    assert len(pickle.dumps(fast)) < len(pickle.dumps(plain)) + 1000
    for count, twin in ((2, copy.deepcopy(fast)), (4, pickle.loads(pickle.dumps(fast)))):
        assert torch.equal(twin(x), expected) and len(kernels) == count
        twin.weight.zero_()
        assert torch.equal(twin(x), twin.bias.view(1, -1, 1, 1).expand_as(expected))
    assert torch.equal(fast(x), expected) and len(kernels) == 5


@pytest.fixture
def vgg(monkeypatch, avx2, trunks):
    """vgg(fast): a random network with fast convolutions, or without; shared with no other test."""

    def make(fast):
        monkeypatch.setattr(frozen, "_networks", weakref.WeakValueDictionary())
        with monkeypatch.context() as patch:
            if not fast:
                patch.setattr(frozen, "hasten", lambda module: None)
            net = LPIPS("vgg", weights=trunks["vgg"])
        kinds = [type(part) for part in net._base().modules() if isinstance(part, nn.Conv2d)]
        assert kinds == [FastConv2d if fast else nn.Conv2d] * 13
        return net

    return make


def test_distances_and_gradients_of_a_network_are_those_without(vgg, pair):
    x, y = pair(2, 64, 64)
    results = []
    for net in (vgg(True), vgg(False)):
        distance = net(leaf := x.clone().requires_grad_(), y)
        results.append((net(x, y), distance.detach(), torch.autograd.grad(distance.sum(), leaf)[0]))
    (found, with_graph, slope), (right, right_with_graph, right_slope) = results
    assert torch.allclose(found, right, rtol=1e-6, atol=0)
    assert torch.allclose(with_graph, right_with_graph, rtol=1e-6, atol=0)
    assert 0 < relative(slope, right_slope) < 1e-4
    assert float(F.cosine_similarity(slope.flatten(), right_slope.flatten(), dim=0)) > 0.99999


def test_equal_images_are_at_distance_0_exactly_and_without_a_slope(vgg, pair, trunks):
    net, loss = vgg(True), PerceptualLoss("vgg", weights=trunks["vgg"], data_range=(-1, 1))
    for shape in ((1, 64, 64), (3, 48, 64)):
        x, _ = pair(*shape)
        assert not net(x, x.clone()).any()
        leaf = x.clone().requires_grad_()
        distance = net(leaf, x)
        assert not distance.any() and not torch.autograd.grad(distance.sum(), leaf)[0].any()
    assert loss(x, x.clone()) == 0


@pytest.mark.parametrize("mode", ["lin", "tune"])
def test_a_trunk_that_is_trained_has_gradients_and_one_that_is_not_has_none(vgg, pair, mode, monkeypatch):
    calls = []
    monkeypatch.setattr(winograd, "convolve", lambda *args, **kwargs: [convolve(*args, **kwargs), calls.append(0)][0])
    network = TrainableLPIPS("vgg", weights="random", mode=mode)
    sum(network(*pair(1, 64, 64))).sum().backward()
    weights = [part.weight for part in network.extractor.modules() if isinstance(part, FastConv2d)]
    assert len(weights) == 13
    assert all((weight.grad is not None and weight.grad.any()) == (mode == "tune") for weight in weights)
    assert bool(calls) == (mode == "lin")
