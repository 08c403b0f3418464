"""Tiles against whole images: values and gradients, which positions a tile owns, and memory."""

from __future__ import annotations

import itertools

import pytest
import torch
from frozen_networks import frozen_network
from references import relative_distance
from tiling_nets import PIECES, made, whole
from torch import nn
from torch.nn import functional as F

from lpips_lightning import LPIPS
from lpips_lightning.backbones.custom import from_module
from lpips_lightning.distances.lpips import layer_distances
from lpips_lightning.engine.graph import build_layer_graph
from lpips_lightning.engine.tiling import axis_tiles, tiled_gradient
from lpips_lightning.images.preprocessing import to_backbone

TILES = ((32, 48), (160, 176), (1000, 1000))


def as_they_are(images):
    return images


@pytest.mark.parametrize(
    ("name", "size"),
    [
        *((name, (97, 131)) for name in PIECES),
        ("thin", (64, 200)),
        ("odd", (65, 200)),
        ("vgg", (33, 40)),
        ("embedded", (353, 331)),
        ("thin", (353, 227)),
    ],
)
def test_tiles_give_values_and_gradients_of_the_whole(backbones, pair, name, size):
    _, network = made(name, backbones)
    x, y = pair(2 if size[0] < 100 else 1, *size, torch.float64)
    expected, gradient = whole(network, x, y)
    for tile in TILES[len(x) == 1 :]:
        found, found_gradient = tiled_gradient(network, x, y, as_they_are, as_they_are, tile)
        assert list(found) == list(expected)
        assert all(torch.allclose(found[layer], expected[layer], rtol=1e-12, atol=0) for layer in expected)
        assert found_gradient.shape == x.shape and found_gradient.dtype == x.dtype
        assert relative_distance(found_gradient, gradient) < 1e-10
        assert not found_gradient.requires_grad and not any(distance.requires_grad for distance in found.values())


@pytest.mark.parametrize("name", [*PIECES, "vgg"])
def test_the_smallest_images(backbones, name):
    net, network = made(name, backbones)
    side = frozen_network(net).record.smallest_side
    x, y = torch.rand(2, 1, 3, side + 1, side, dtype=torch.float64)
    _, gradient = whole(network, x, y)
    assert relative_distance(tiled_gradient(network, x, y, as_they_are, as_they_are, (1, 1))[1], gradient) < 1e-10


def valid_net():
    """No padding at all: the last pixels belong to no position."""
    layers = nn.Sequential(nn.Conv2d(3, 4, 7), nn.ReLU(), nn.MaxPool2d(4), nn.Conv2d(4, 4, 5, stride=2), nn.ReLU())
    return frozen_network(LPIPS(from_module(layers, ["1", "4"]), calibrated=False), torch.float64)


@pytest.mark.parametrize("height", [39, 46, 47, 48, 55, 63, 64, 79, 80, 81, 95])
def test_without_padding_no_tile_is_too_small(pair, height):
    network = valid_net()
    x, y = pair(1, height, 64, torch.float64)
    expected, gradient = whole(network, x, y)
    found, found_gradient = tiled_gradient(network, x, y, as_they_are, as_they_are, (8, 24))
    assert all(torch.allclose(found[layer], expected[layer], rtol=1e-12, atol=0) for layer in expected)
    assert relative_distance(found_gradient, gradient) < 1e-10


def test_padding_beyond_the_kernel(pair):
    """The first position of the last layer sees one pixel, but the layers before it need more."""
    layers = nn.Sequential(nn.Conv2d(3, 4, 4, 3), nn.Tanh(), nn.Conv2d(4, 4, 3, 3, padding=3), nn.Conv2d(4, 4, 1, 3))
    network = frozen_network(LPIPS(from_module(layers, ["3"]), calibrated=False), torch.float64)
    x, y = pair(1, 104, 64, torch.float64)
    expected, gradient = whole(network, x, y)
    found, found_gradient = tiled_gradient(network, x, y, as_they_are, as_they_are, (1, 30))
    assert torch.allclose(found["3"], expected["3"], rtol=1e-12, atol=0)
    assert relative_distance(found_gradient, gradient) < 1e-10


@pytest.mark.parametrize("length", [97, 331, 512, 530, 1000])
@pytest.mark.parametrize("name", PIECES)
def test_every_position_belongs_to_one_tile_that_holds_what_it_sees(backbones, name, length):
    layer_graph = build_layer_graph(made(name, backbones)[1].extractor.graph)
    shapes = layer_graph.shapes((length, length))
    several = 0
    for tile, axis in itertools.product((16, 50, 128, 4000), range(2)):
        cut = axis_tiles(layer_graph, axis, length, tile)
        several += len(cut) > 1
        for layer, feature_map in layer_graph.feature_layers.items():
            field = layer_graph.receptive_fields[feature_map][axis]
            owned = []
            for span in cut:
                start, stop = span.pixels.start, span.pixels.stop
                assert start % layer_graph.strides[axis] == 0
                interior = span.interior[layer]
                positions = [start // field.jump + o for o in range(interior.start, interior.stop)]
                assert positions
                assert max(positions[0] * field.jump - field.before, 0) >= start
                assert min(positions[-1] * field.jump + field.after, length - 1) < stop
                owned += positions
            assert owned == list(range(shapes[feature_map][1 + axis]))
    assert several >= 4


def test_the_gradient_is_that_of_the_images_as_they_came(backbones, pair):
    _, network = made("embedded", backbones)
    x, y = ((image + 1) / 2 for image in pair(1, 200, 120, torch.float64))
    y8 = (y * 255).to(torch.uint8)

    def prepare(images):
        return to_backbone(images, (0.0, 1.0), network.shift, network.scale, torch.float64, clamp=False)

    x = x.requires_grad_()
    expected = sum(layer_distances(*(network.extractor(prepare(i)) for i in (x, y8)), network.calibration).values())
    (gradient,) = torch.autograd.grad(expected.sum(), x)
    found, found_gradient = tiled_gradient(network, x, y8, prepare, prepare, (64, 64))
    assert torch.allclose(sum(found.values()), expected.detach(), rtol=1e-12)
    assert relative_distance(found_gradient, gradient) < 1e-10
    assert x.grad is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_precisions(backbones, pair, dtype):
    net, exact = made("embedded", backbones)
    x, y = pair(1, 230, 210, torch.float64)
    network = frozen_network(net, dtype, x.device)
    found, gradient = tiled_gradient(network, x.to(dtype), y.to(dtype), as_they_are, as_they_are, (64, 80))
    expected, expected_gradient = whole(exact, x, y)
    assert gradient.dtype == dtype and all(distance.dtype == torch.float32 for distance in found.values())
    rtol, cosine = {torch.float32: (1e-4, 0.9999), torch.bfloat16: (5e-2, 0.95)}[dtype]
    assert all(torch.allclose(found[layer].double(), expected[layer], rtol=rtol) for layer in expected)
    assert float(F.cosine_similarity(gradient.double().flatten(), expected_gradient.flatten(), 0)) > cosine


def test_half_precision_gradients_of_huge_images_do_not_vanish(backbones, pair):
    """A mean over many positions has small gradients at each, which float16 cannot hold."""
    net, _ = made("embedded", backbones)
    x, y = pair(1, 256, 320)
    network = frozen_network(net, torch.float16, x.device)
    expected = whole(frozen_network(net, torch.float32, x.device), x, y)[1]
    gradient = tiled_gradient(network, x, y, torch.Tensor.half, torch.Tensor.half, (128, 128))[1]
    assert gradient.dtype == torch.float32
    assert float(F.cosine_similarity(gradient.flatten(), expected.flatten(), 0)) > 0.98


def test_equal_images_have_no_gradient(backbones, pair):
    _, network = made("squeeze", backbones)
    x = pair(1, 100, 90, torch.float64)[0]
    found, gradient = tiled_gradient(network, x, x.clone(), as_they_are, as_they_are, (32, 32))
    assert float(gradient.abs().max()) == 0 and all(float(distance) == 0 for distance in found.values())


def test_a_tile_has_pixels(backbones, pair):
    _, network = made("alex", backbones)
    with pytest.raises(ValueError, match="tile: expected a positive number of pixels, got 0"):
        tiled_gradient(network, *pair(1, 64, 64, torch.float64), as_they_are, as_they_are, (0, 64))
