"""Winograd's arithmetic against PyTorch's convolution in float64: values, borders, blocks, bits, and whole networks."""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle
import threading
import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_input

from lpips_lightning import LPIPS, PerceptualLoss, frozen, winograd
from lpips_lightning.convolutions import FastConv2d
from lpips_lightning.memory import peak_bytes
from lpips_lightning.trainable import TrainableLPIPS
from lpips_lightning.winograd import convolve, room, transformed

EXACT = 1e-12  # relative, in float64
SIZES = ((1, 1), (1, 2), (2, 2), (3, 3), (5, 4), (3, 700), (200, 3), (15, 15), (16, 16), (17, 33))  # of the input
PADDINGS = {3: ((0, 0), (1, 1), (2, 2), (0, 1), (1, 2), (2, 0)), 5: ((0, 0), (2, 2), (4, 4), (0, 3), (1, 2), (4, 0))}
KINDS = ((3, 2), (3, 3), (5, 3))  # side of the kernel, size of the tiles
SMALLEST = {
    (side, size, pads): min(map(sum, zip(size, pads, pads, strict=True))) - side + 1
    for side in (3, 5)
    for size in SIZES
    for pads in PADDINGS[side]
}
CASES = [
    (kind, size, pads)
    for kind in KINDS
    for size in SIZES
    for pads in PADDINGS[kind[0]]
    if SMALLEST[kind[0], size, pads] > 0
]
FORMS = ("convolution", "adjoint")


def drawn(size, padding, form, count=3, channels=5, filters=7, side=3):
    """What a form is of, the weight and the bias, in float64; `size` is that of the convolution's input."""
    of_result = [length + 2 * pad - side + 1 for length, pad in zip(size, padding, strict=True)]
    shape = (count, channels, *size) if form == "convolution" else (count, filters, *of_result)
    weight, bias = torch.randn(filters, channels, side, side).double(), torch.randn(filters).double()
    return torch.randn(shape).double(), weight, bias


def direct(x, weight, bias, padding, form):
    if form == "convolution":
        return F.conv2d(x, weight, bias, padding=padding)
    size = [length + weight.shape[2] - 1 - 2 * pad for length, pad in zip(x.shape[2:], padding, strict=True)]
    return conv2d_input((len(x), weight.shape[1], *size), weight, x, padding=padding)


def found(x, weight, bias, padding, form, size=2):
    return convolve(x, transformed(weight, size), bias, padding, adjoint=form == "adjoint")


def relative(value, right):
    assert value.shape == right.shape
    value, right = value.detach().double(), right.detach().double()
    return float((value - right).norm() / right.norm())


@pytest.fixture
def in_blocks_of(monkeypatch):
    """in_blocks_of(tiles): at most so many, so that an image has several blocks, or a block several images."""
    return lambda tiles: [monkeypatch.setattr(winograd, name, tiles) for name in ("_FEWEST_TILES", "_MOST_TILES")]


def test_the_cases_are_all_there_are():
    assert len(CASES) == 51 + 51 + 39
    assert {kind for kind, *_ in CASES} == set(KINDS)
    for kind in KINDS:
        assert {size for other, size, _ in CASES if other == kind} == set(SIZES)
        assert {padding for other, _, padding in CASES if other == kind} == set(PADDINGS[kind[0]])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("kind", "size", "padding"), CASES)
def test_it_is_the_convolution_and_its_adjoint_in_float64(kind, size, padding, form):
    side, tile = kind
    x, weight, bias = drawn(size, padding, form, side=side)
    for with_bias in (bias.requires_grad_(), None):  # the adjoint has none, whatever is given
        value = found(x.requires_grad_(), weight.requires_grad_(), with_bias, padding, form, tile)
        assert relative(value, direct(x, weight, with_bias, padding, form)) < EXACT
        _, channels, height, width = value.shape
        assert value.stride() == (channels * height * width, 1, channels * width, channels)  # channels_last
        assert value.dtype == torch.float64 and not value.requires_grad


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", [(5, 7), (64, 256), (512, 128), (1, 1)])
@pytest.mark.parametrize("size", [(4, 4), (17, 33), (3, 90)])
def test_in_float32_it_is_as_near_to_the_exact_one_as_the_direct_convolution(size, channels, kind, form):
    side, tile = kind
    x, weight, bias = (tensor.float() for tensor in drawn(size, (1, 1), form, 2, *channels, side=side))
    right = direct(x.double(), weight.double(), bias.double(), (1, 1), form)
    value = found(x, weight, bias, (1, 1), form, tile)
    assert value.dtype == torch.float32
    times, least = {2: (1.5, 1e-6), 3: (2, 1.2e-6)}[tile]
    assert relative(value, right) < max(times * relative(direct(x, weight, bias, (1, 1), form), right), least)


@pytest.mark.parametrize(("kind", "size", "padding"), CASES)
def test_the_adjoint_is_adjoint(kind, size, padding):
    side, tile = kind
    x, weight, _ = drawn(size, padding, "convolution", side=side)
    y, _, _ = drawn(size, padding, "adjoint", side=side)
    forward = found(x, weight, None, padding, "convolution", tile) * y
    back = x * found(y, weight, None, padding, "adjoint", tile)
    assert abs(float(forward.sum() - back.sum())) < EXACT * float(forward.norm() * forward.numel() ** 0.5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tiles", [1, 7, 20, 45, 512])
@pytest.mark.parametrize("size", [(1, 9), (7, 9), (11, 10), (30, 6)])
def test_blocks_of_any_size_give_the_same(in_blocks_of, tiles, size, kind, form):
    in_blocks_of(tiles)
    side, tile = kind
    padding = side // 2, side // 2
    x, weight, bias = drawn(size, padding, form, 7, side=side)
    assert relative(found(x, weight, bias, padding, form, tile), direct(x, weight, bias, padding, form)) < EXACT


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
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("padding", [(0, 0), (1, 1), (2, 2), (0, 1)])
def test_memory_does_not_matter_and_what_lies_around_a_slice_is_not_read(padding, kind, form):
    side, tile = kind
    x, weight, bias = (tensor.float() for tensor in drawn((9, 14), padding, form, 1, side=side))
    x = x.expand(3, -1, -1, -1).clone()
    expected = found(x, weight, bias, padding, form, tile)
    assert expected.isfinite().all()
    for name, values in layouts(x).items():
        assert torch.equal(found(values, weight, bias, padding, form, tile), expected), name
        assert torch.equal(values, x)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tiles", [1, 16, 512])
def test_an_image_does_not_see_its_neighbours(in_blocks_of, tiles, kind, form):
    in_blocks_of(tiles)
    side, tile = kind
    x, weight, bias = drawn((8, 7), (1, 1), form, 4, side=side)
    expected = direct(x, weight, bias, (1, 1), form)
    x[0], x[2] = math.nan, math.inf
    value = found(x, weight, bias, (1, 1), form, tile)
    assert relative(value[1::2], expected[1::2]) < EXACT
    assert not value[0::2].isfinite().any()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize(("row", "column"), [(0, 0), (5, 8), (6, 7), (11, 14)])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_finite_is_not_lost_and_stays_near(kind, row, column, bad):
    """In the result of a direct convolution it reaches as far as the kernel; here, whole tiles more."""
    side, tile = kind
    x, weight, bias = drawn((12, 15), (side // 2, side // 2), "convolution", side=side)
    x[1, 2, row, column] = bad
    lost = ~found(x, weight, bias, (side // 2, side // 2), "convolution", tile).isfinite()
    assert (lost | direct(x, weight, bias, (side // 2, side // 2), "convolution").isfinite()).all()
    near = 3 * math.ceil(side / 3) - side + side // 2 + tile - 1
    lost[1, :, max(row - near, 0) : row + near + 1, max(column - near, 0) : column + near + 1] = False
    assert not lost.any()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(8, 8), (15, 15), (9, 33), (33, 40), (3, 700)])
def test_the_bits_of_an_image_do_not_depend_on_its_batch(size, kind, form):
    side, tile = kind
    channels = (128, 136) if side == 3 else (64, 72)
    x, weight, bias = (tensor.float() for tensor in drawn(size, (1, 1), form, 6, *channels, side=side))
    whole = found(x, weight, bias, (1, 1), form, tile)
    assert torch.equal(found(x, weight, bias, (1, 1), form, tile), whole)
    for chosen in ([0], [4], [1, 2], [1, 2, 3, 4, 5], [3, 3, 0, 5, 3, 3, 3]):
        assert torch.equal(found(x[chosen], weight, bias, (1, 1), form, tile), whole[chosen]), chosen


@pytest.mark.parametrize("tile", [2, 3])
def test_a_kernel_is_products_of_channels_at_every_pair_of_points(tile):
    weight, points = torch.randn(7, 5, 3, 3), tile + 2
    kernel = transformed(weight, tile)
    assert (kernel.side, kernel.size, kernel.blocks) == (3, tile, 1)
    assert kernel.values.shape == (points**2, 5, 7) and kernel.values.dtype == torch.float32
    assert kernel.values.is_contiguous()
    corners = kernel.values.view(points, points, 5, 7)[:: points - 1, :: points - 1]
    assert torch.equal(corners, weight[:, :, ::2, ::2].permute(2, 3, 1, 0))
    assert torch.equal(transformed(weight.contiguous(memory_format=torch.channels_last), tile).values, kernel.values)


def test_a_kernel_of_five_is_four_of_three_with_zeros_beyond_the_end():
    weight = torch.randn(7, 4, 5, 5)
    parts = transformed(weight, 3).values.view(25, 2, 2, 4, 7)
    for down, right in ((0, 0), (0, 1), (1, 0), (1, 1)):
        part = F.pad(weight, (0, 1, 0, 1))[:, :, 3 * down : 3 * down + 3, 3 * right : 3 * right + 3]
        assert torch.equal(parts[:, down, right], transformed(part, 3).values)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("length", [7, 16, 96])
@pytest.mark.parametrize(("kind", "channels"), [((3, 2), (512, 512)), ((3, 3), (128, 256)), ((5, 3), (64, 192))])
def test_it_takes_the_room_that_it_says_and_few_pixels_take_little(kind, channels, length, form):
    side, tile = kind
    padding = side // 2, side // 2
    x, weight, _ = (tensor.float() for tensor in drawn((length, length), padding, form, 2, *channels, side=side))
    x, kernel = x.to("meta"), transformed(weight, tile)
    kernel, adjoint = dataclasses.replace(kernel, values=kernel.values.to("meta")), form == "adjoint"
    result = 4 * 2 * channels[form == "convolution"] * length**2
    taken = peak_bytes(lambda: convolve(x, kernel, None, padding, adjoint), [x, kernel.values]) - result
    empty = weight.to("meta")
    said = peak_bytes(lambda: room(x, empty, tile, padding, adjoint), [x, empty])
    assert abs(taken - said) < 100
    assert said < 45 * 2**20 and (length < 96) == (said < 16 * 2**20)


def test_calls_share_one_piece_of_memory_in_each_thread_and_let_it_go(monkeypatch):
    x, weight, bias = drawn((12, 15), (1, 1), "convolution")
    kernels = [transformed(weight, tile) for tile in (2, 3, 2)]
    expected = [convolve(x, kernel, bias, (1, 1)) for kernel in kernels]
    seen, memory = [], winograd._memory
    monkeypatch.setattr(winograd, "_memory", lambda *given: [part := memory(*given), seen.append(part)][0])
    with winograd.shared_memory():
        with winograd.shared_memory():
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
    assert gone() is None and getattr(winograd._shared, "pieces", None) is None


@pytest.fixture
def avx2(monkeypatch):
    """A processor on which it is taken."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)


@pytest.mark.usefixtures("avx2")
def test_a_kernel_is_made_once_and_copies_of_a_module_carry_none(monkeypatch):
    plain, x, kernels = nn.Conv2d(128, 128, 3, padding=1).requires_grad_(False), torch.randn(2, 128, 24, 26), []
    monkeypatch.setattr(winograd, "transformed", lambda *given: [transformed(*given), kernels.append(given)][0])
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
