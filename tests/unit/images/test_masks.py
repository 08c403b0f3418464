"""Masks: which positions count, how far a position sees, and what becomes of an image of which nothing is left."""

from __future__ import annotations

import pytest
import torch
from conftest import NETS
from frozen_networks import frozen_network
from torch import nn

from lpips_lightning import LPIPS, LearnedPerceptualImagePatchSimilarity, PerceptualLoss
from lpips_lightning.backbones.custom import from_module, from_torchvision
from lpips_lightning.distances.lpips import layer_maps
from lpips_lightning.engine.erosion import eroded_masks
from lpips_lightning.engine.state import Engine
from lpips_lightning.functional.lpips import learned_perceptual_image_patch_similarity


@pytest.fixture
def net(backbones):
    return LPIPS("squeeze", weights=backbones["squeeze"])


def _slow_area(mask, height, width):
    """Mean of the mask over every cell of a height x width grid, in loops; cells as adaptive pooling has them."""
    rows, columns = mask.shape
    out = torch.zeros(height, width, dtype=torch.float64)
    for i in range(height):
        for j in range(width):
            top, bottom = i * rows // height, -(-(i + 1) * rows // height)
            left, right = j * columns // width, -(-(j + 1) * columns // width)
            out[i, j] = mask[top:bottom, left:right].double().mean()
    return out


@pytest.mark.parametrize("name", NETS)
def test_a_mask_weighs_positions_by_area(backbones, pair, name):
    net = LPIPS(name, weights=backbones[name])
    x, y = pair(2, 48, 56, torch.float64)
    mask = torch.rand(2, 48, 56, generator=torch.Generator().manual_seed(1))
    features = [net.encode(image).layers for image in (x, y)]
    maps = layer_maps(*features, frozen_network(net, x.dtype, x.device).calibration)
    terms = net(x, y, per_layer=True, mask=mask)
    for layer, layer_map in maps.items():
        for image in range(2):
            weight = _slow_area(mask[image], *layer_map.shape[2:])
            expected = (layer_map[image, 0] * weight).sum() / weight.sum()
            assert float((terms[layer][image] - expected).abs() / expected) < 1e-6
    assert torch.allclose(net(x, y, mask=mask.unsqueeze(1)), sum(terms.values()), rtol=1e-10)


def test_a_mask_of_ones_changes_nothing(net, pair):
    x, y = pair()
    for mask in (torch.ones(2, 64, 64), torch.ones(2, 1, 64, 64, dtype=torch.bool)):
        assert torch.allclose(net(x, y, mask=mask), net(x, y), rtol=1e-6)
        assert torch.allclose(net(x, y, mask=mask, erode=True), net(x, y), rtol=1e-6)


def _reached_by_nan(net, mask):
    """Positions that a NaN under the mask's zeros reaches, through the backbone itself: the slow oracle."""
    images = torch.zeros(1, 3, *mask.shape[1:], dtype=torch.float64).masked_fill(mask[:, None] == 0, float("nan"))
    layers = frozen_network(net, images.dtype, images.device).extractor(images)
    return {layer: feature_map.isnan().any(1, keepdim=True) for layer, feature_map in layers.items()}


def _backbone(name, backbones):
    if name in backbones:
        return LPIPS(name, weights=backbones[name])
    torch.manual_seed(0)
    if name == "resnet18":
        return LPIPS(from_torchvision(name, ["relu", "layer1", "layer2"]), weights="random", calibrated=False)
    layers = (nn.Conv2d(3, 4, (3, 5), padding="same"), nn.GELU(), nn.AvgPool2d(2), nn.Conv2d(4, 4, 3, dilation=2))
    return LPIPS(from_module(nn.Sequential(*layers), ["1", "3"]), calibrated=False)


@pytest.mark.parametrize("name", [*NETS, "resnet18", "custom"])
@pytest.mark.parametrize("hole", [(0, 0), (40, 70), (120, 95)])
def test_erode_leaves_exactly_the_positions_that_see_no_hole(backbones, name, hole):
    net = _backbone(name, backbones)
    mask = torch.ones(1, 128, 102)
    mask[0, hole[0], hole[1]] = 0
    found = eroded_masks(mask[:, None], Engine.of(frozen_network(net)).layer_graph)
    expected = _reached_by_nan(net, mask)
    assert list(found) == list(net.layers)
    assert any(bool((kept == 0).any()) and bool(kept.any()) for kept in found.values())
    for layer, kept in found.items():
        assert torch.equal(kept == 0, expected[layer])


def test_an_eroded_mask_hides_its_holes_completely(backbones, pair):
    net = LPIPS(from_torchvision("vgg16", ["features.3", "features.8"]), weights=backbones["vgg"], calibrated=False)
    x, y = pair(1, 64, 64)
    mask = torch.ones(1, 64, 64, dtype=torch.bool)
    mask[0, 20:30, 10:20] = False
    before = net(x, y, mask=mask, erode=True)
    other = torch.where(mask[:, None], x, -x).requires_grad_()
    after = net(other, y, mask=mask, erode=True)
    assert torch.equal(after, before)
    assert not torch.allclose(net(other, y, mask=mask), net(x, y, mask=mask), rtol=1e-3)
    after.sum().backward()
    assert float(other.grad[~mask[:, None].expand_as(other)].abs().max()) == 0
    assert float(other.grad.abs().max()) > 0


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("kind", ["floats", "uint8", "gray", "video"])
def test_nothing_in_the_holes_of_an_eroded_mask_leaves_a_trace(backbones, kind, soft):
    net = LPIPS("alex", weights=backbones["alex"], **({"gray": "repeat"} if kind == "gray" else {}))
    lead = (2, 3) if kind == "video" else (3,)
    x, y, other = torch.rand(3, *lead, 1 if kind == "gray" else 3, 224, 224)
    mask = torch.ones(*lead, 224, 224, dtype=torch.float if soft else torch.bool)
    mask[..., 100:110, 3:9] = 0.5 if soft else False
    changed = torch.where(mask.unsqueeze(-3) == 1, x, other)
    options = {"mask": mask, "erode": True, "data_range": (0, 1)}
    if kind == "uint8":
        x, y, changed = ((255 * images).to(torch.uint8) for images in (x, y, changed))
        options["data_range"] = (0, 255)
    before = net(x, y, **options)
    assert before.shape == lead and bool((before > 0).all())
    assert torch.equal(net(changed, y, **options), before) and torch.equal(net(y, changed, **options), before)
    assert not torch.equal(net(changed, y, data_range=options["data_range"]), before)
    cached = net.distance(*(net.encode(z, data_range=options["data_range"]) for z in (x, y)), mask=mask, erode=True)
    assert torch.allclose(cached, before, rtol=1e-5)


def test_an_image_of_which_nothing_is_left_does_not_count(backbones, pair):
    weights = backbones["squeeze"]
    x, y = pair(3)
    mask = torch.ones(3, 64, 64)
    mask[1] = 0
    x.requires_grad_()
    net = LPIPS("squeeze", weights=weights)
    each = net(x, y)[[0, 2]]
    found = net(x, y, mask=mask)
    assert found.isnan().tolist() == [False, True, False]
    expected = {"mean": each.mean(), "sum": each.sum()}
    for reduction in ("mean", "sum", "none"):
        loss = PerceptualLoss("squeeze", data_range=(-1, 1), reduction=reduction, weights=weights)
        metric = LearnedPerceptualImagePatchSimilarity("squeeze", reduction, weights=weights)
        metric.update(x, y, mask=mask)
        value = learned_perceptual_image_patch_similarity(x, y, "squeeze", reduction, weights=weights, mask=mask)
        if reduction == "none":
            assert loss(x, y, mask=mask)[1] == 0
            assert bool(metric.compute()[1].isnan())
            assert bool(value[1].isnan())
        else:
            for number in (loss(x, y, mask=mask), metric.compute(), value):
                assert torch.allclose(number, expected[reduction], rtol=1e-5)
    loss = PerceptualLoss("squeeze", data_range=(-1, 1), weights=weights)
    with torch.autograd.set_detect_anomaly(True):
        loss(x, y, mask=mask).backward()
    assert float(x.grad[1].abs().max()) == 0
    assert float(x.grad[0].abs().max()) > 0
    assert bool(x.grad.isfinite().all())


def test_a_batch_of_which_nothing_is_left_gives_0_to_a_loss_and_nan_to_a_metric(backbones, pair):
    x, y = pair()
    x.requires_grad_()
    none = torch.zeros(2, 64, 64, dtype=torch.bool)
    loss = PerceptualLoss("squeeze", data_range=(-1, 1), weights=backbones["squeeze"])
    with torch.autograd.set_detect_anomaly(True):
        value = loss(x, y, mask=none)
        value.backward()
    assert float(value.detach()) == 0
    assert torch.equal(x.grad, torch.zeros_like(x))
    metric = LearnedPerceptualImagePatchSimilarity("squeeze", weights=backbones["squeeze"])
    metric.update(x, y, mask=none)
    assert bool(metric.compute().isnan())


def test_a_diverged_prediction_is_not_taken_for_a_masked_one(backbones, pair):
    x, y = pair()
    x[0] = float("nan")
    metric = LearnedPerceptualImagePatchSimilarity("squeeze", weights=backbones["squeeze"], validate_args=False)
    metric.update(x, y, mask=torch.ones(2, 64, 64))
    assert bool(metric.compute().isnan())


def test_masks_of_videos_and_of_channels(backbones, pair):
    x, y = (image.view(2, 3, 3, 48, 48) for image in pair(6, 48, 48))
    mask = (torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    mask[1, 2] = 0
    net = LPIPS("squeeze", weights=backbones["squeeze"], frame_chunk=2)
    whole = LPIPS("squeeze", weights=backbones["squeeze"])
    expected = whole(x.flatten(0, 1), y.flatten(0, 1), mask=mask.flatten(0, 1)).view(2, 3)
    assert torch.allclose(net(x, y, mask=mask), expected, rtol=1e-6, equal_nan=True)
    assert expected.isnan().sum() == 1
    each = LPIPS("squeeze", weights=backbones["squeeze"], gray="per_channel")
    channels = [whole(*(i[:, 0, [c] * 3] for i in (x, y)), mask=mask[:, 0]) for c in range(3)]
    assert torch.allclose(each(x[:, 0], y[:, 0], mask=mask[:, 0]), torch.stack(channels).mean(0), rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"mask": torch.ones(2, 64, 64, dtype=torch.long)},
            TypeError,
            "mask: expected a tensor of bools, .* torch.int64",
        ),
        ({"mask": [[1]]}, TypeError, "mask: expected a tensor of bools, .* got list"),
        ({"mask": torch.ones(2, 32, 32)}, ValueError, r"mask: expected shape \(2, 64, 64\) or \(2, 1, 64, 64\), got"),
        ({"mask": torch.ones(1, 64, 64)}, ValueError, "mask: expected shape"),
        ({"mask": torch.ones(2, 64, 64, device="meta")}, ValueError, "mask: expected device cpu"),
        ({"mask": torch.full((2, 64, 64), -0.1)}, ValueError, r"mask: expected values on \[0, 1\]"),
        ({"mask": torch.full((2, 64, 64), 255.0)}, ValueError, r"mask: expected values on \[0, 1\]"),
        ({"mask": torch.ones(2, 64, 64), "spatial": True}, ValueError, "mask: expected None with spatial=True"),
        ({"erode": True}, ValueError, "erode: expected a mask with erode=True"),
    ],
)
def test_what_is_no_mask_is_refused(net, pair, options, error, message):
    with pytest.raises(error, match=message):
        net(*pair(), **options)


def test_erode_is_refused_where_the_reach_is_unknown(backbones, pair):
    x, y = pair()
    mask = torch.ones(2, 64, 64)
    resized = LPIPS("squeeze", weights=backbones["squeeze"], resize=32)
    with pytest.raises(ValueError, match="erode: expected resize=None"):
        resized(x, y, mask=mask, erode=True)
    normalized = nn.Sequential(nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4))
    net = LPIPS(from_module(normalized, ["1"]), calibrated=False)
    with pytest.raises(
        ValueError, match="erode: the receptive fields of this backbone are unknown: .* got InstanceNorm2d"
    ):
        net(x, y, mask=mask, erode=True)
