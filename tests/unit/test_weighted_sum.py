"""Weighted sums of the distances of several networks."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from lpips_lightning import LPIPS, Ensemble, PerceptualLoss, WeightedSum, compare
from lpips_lightning import LearnedPerceptualImagePatchSimilarity as Metric
from lpips_lightning.callbacks import PerceptualScores
from lpips_lightning.functional.lpips import learned_perceptual_image_patch_similarity as function
from lpips_lightning.images import Shift

PARTS = [("embedded", 1), ("embedded-vgg", 0.5)]


@pytest.fixture
def images():
    return torch.rand(2, 3, 3, 40, 48)


def by_hand(x, y, **options):
    first, second = (LPIPS(net)(x, y, (0, 1), **options) for net, _ in PARTS)
    return first + 0.5 * second


def test_every_way_gives_the_sum(images):
    net, (x, y) = WeightedSum(PARTS), images
    expected = by_hand(x, y)
    metric = Metric(net, data_range=(0, 1))
    for part in (slice(0, 1), slice(1, 3)):
        metric.update(x[part], y[part])
    features = net.encode(x, 1), net.encode(y, 1)
    layers = net(x, y, (0, 1), per_layer=True)
    mask = torch.zeros(3, 40, 48)
    mask[:, 4:, 9:] = 1
    scorer = PerceptualScores(net, data_range=(0, 1))._pairs
    arrays = [one.movedim(1, -1).numpy() for one in images]
    found = {
        "metric": (metric.compute(), expected.mean()),
        "function": (function(x, y, net, "none", data_range=1), expected),
        "features": (net.distance(*features), expected),
        "reference": (net(x, features[1], (0, 1)), expected),
        "layers": (sum(layers.values()), expected),
        "scorer": (sum(scorer.layers(*scorer.check(x, y))), expected),
        "compare": (torch.tensor(compare(*arrays, net, data_range=1).distances), expected),
        "maps": (net(x, y, (0, 1), spatial=True), by_hand(x, y, spatial=True)),
        "mask": (net(x, y, (0, 1), mask=mask), by_hand(x, y, mask=mask)),
        "features, mask": (net.distance(*features, mask=mask), by_hand(x, y, mask=mask)),
        "pairs": (net.pairwise(x, y, (0, 1)).diagonal(), expected),
        "mapping": (WeightedSum(dict(PARTS))(x, y, (0, 1)), expected),
        "copy": (copy.deepcopy(net)(x, y, (0, 1)), expected),
        "pickle": (pickle.loads(pickle.dumps(net))(x, y, (0, 1)), expected),
        "nested": (WeightedSum([(WeightedSum(PARTS), 2)])(x, y, (0, 1)), 2 * expected),
        "ensemble": (
            Ensemble(WeightedSum(PARTS), [Shift()], draws=2)(x, y, 1),
            WeightedSum([(Ensemble(net, [Shift()], draws=2), weight) for net, weight in PARTS])(x, y, 1),
        ),
    }
    for way, (value, wanted) in found.items():
        assert torch.allclose(value, wanted, rtol=1e-5, atol=1e-6), way
    assert tuple(layers) == net.layers
    assert list(net.layers) == [f"{name}.{layer}" for name, _ in PARTS for layer in LPIPS(name).layers]
    assert not list(net.parameters()) and not net.state_dict()
    all_pairs = net.pairwise(x, data_range=1)
    assert torch.equal(all_pairs, all_pairs.T) and not all_pairs.diagonal().any()


def test_what_it_says_of_itself():
    net, parts = WeightedSum(PARTS), [LPIPS(name) for name, _ in PARTS]
    assert net.fingerprint == f"weighted sum: 1 * ({parts[0].fingerprint}) + 0.5 * ({parts[1].fingerprint})"
    assert net.smallest_side == max(part.smallest_side for part in parts)
    assert net.backbone_hashes == parts[0].backbone_hashes | parts[1].backbone_hashes
    assert len(net.backbone_hashes) == 2
    assert net.selfcheck() == {
        f"{part.net_type}.{pair}": value for part in parts for pair, value in part.selfcheck().items()
    }
    assert net.label == "embedded v0.1 + 0.5 embedded-vgg v0.1"
    assert WeightedSum([("embedded", 1), (LPIPS("embedded", calibrated=False), 0.1)]).names == (
        "embedded",
        "embedded-2",
    )


@pytest.mark.parametrize("per_layer", [False, True])
def test_the_gradient_is_that_of_the_sum(images, per_layer):
    x, y = images.double()
    x = (1.2 * x - 0.1).requires_grad_()
    found = PerceptualLoss(WeightedSum(PARTS), data_range=1, per_layer=per_layer)(x, y)
    (sum(found.values()) if per_layer else found).backward()
    (expected,) = torch.autograd.grad(by_hand(x, y).mean(), x)
    assert torch.allclose(x.grad, expected, rtol=1e-9, atol=1e-12)


def test_parts_that_share_features_are_encoded_once(images, monkeypatch):
    net = WeightedSum([("embedded", 1), (LPIPS("embedded", calibrated=False), 0.1)])
    calls, encode = [], LPIPS.encode_flat
    monkeypatch.setattr(LPIPS, "encode_flat", lambda *args: calls.append(1) or encode(*args))
    features = net.encode(images[0], 1)
    assert len(calls) == 1 and tuple(features.layers) == net.layers
    expected = LPIPS("embedded")(*images, 1) + 0.1 * LPIPS("embedded", calibrated=False)(*images, 1)
    assert torch.allclose(net(images[1], features, 1), expected)


def test_each_part_keeps_its_precision(images):
    net = WeightedSum([(LPIPS("embedded", precision="bf16"), 1), ("embedded", 1)])
    half, full = LPIPS("embedded", precision="bf16")(*images, 1), LPIPS("embedded")(*images, 1)
    assert torch.equal(net(*images, 1), half + full) or torch.allclose(net(*images, 1), half + full, rtol=1e-6)
    assert not torch.equal(half, full)


def test_masks_that_leave_nothing_of_an_image(images):
    mask = torch.ones(3, 40, 48, dtype=torch.bool)
    mask[1] = False
    found = WeightedSum(PARTS).measure(*images, 1, mask=mask)
    assert found.valid.tolist() == [True, False, True]
    assert found.values.isnan().tolist() == [False, True, False]
    assert PerceptualLoss(WeightedSum(PARTS), data_range=1)(*images, mask=mask).isfinite()


@pytest.mark.parametrize(
    ("parts", "error", "message"),
    [
        ([], ValueError, "parts: expected one network or more, got none"),
        ([("embedded", 0)], ValueError, "parts: expected a finite weight above 0, got 0"),
        ([("embedded", -1.0)], ValueError, "parts: expected a finite weight above 0, got -1.0"),
        ([("embedded", float("nan"))], ValueError, "parts: expected a finite weight above 0, got nan"),
        ([("embedded", True)], ValueError, "parts: expected a finite weight above 0, got True"),
        (["embedded", "embedded-vgg"], TypeError, r"parts: expected pairs \(net, weight\)"),
        ([("alexx", 1)], ValueError, "alexx"),
        (
            [(LPIPS("embedded", resize=64), 1), ("embedded-vgg", 1)],
            ValueError,
            "got 'embedded' with 3 channels, resize 64x64 bilinear antialias, and 'embedded-vgg' with 3 channels; all "
            "need the same channels, range, gray, background and resize",
        ),
    ],
)
def test_bad_parts_are_named(parts, error, message):
    with pytest.raises(error, match=message):
        WeightedSum(parts)


def test_bad_images_are_named(images):
    net = WeightedSum(PARTS)
    with pytest.raises(
        ValueError, match=r"x: expected sides of at least 31 pixels for net_type 'embedded\+embedded-vgg'"
    ):
        net(*images[..., :20, :20], 1)
    with pytest.raises(ValueError, match="y: expected features of 'sum of"):
        net.distance(net.encode(images[0], 1), LPIPS("embedded").encode(images[1], 1))
    with pytest.raises(ValueError, match="data_range: expected"):
        WeightedSum([(LPIPS("vgg", weights="random", convention="3dgs"), 1), ("embedded", 1)])(*images)


def test_a_range_is_checked_when_the_metric_is_built():
    with pytest.raises(ValueError, match="data_range: expected"):
        Metric(WeightedSum([(LPIPS("vgg", weights="random", convention="3dgs"), 1)]))


def test_selfcheck_needs_a_part_with_recorded_distances():
    from torch import nn

    from lpips_lightning.backbones.custom import from_module

    own = from_module(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), ["1"])
    with pytest.raises(ValueError, match="selfcheck"):
        WeightedSum([(LPIPS(own, calibrated=False), 1)]).selfcheck()
    assert set(WeightedSum([(LPIPS(own, calibrated=False), 1), *PARTS[:1]]).selfcheck()) == {
        "embedded.p0",
        "embedded.p1",
    }


def test_parts_of_one_net_are_called_by_their_distance(images):
    parts = [(LPIPS("embedded", distance=distance), 1) for distance in ("lpips", "mean_pool", "lpips+0.5*style")]
    net = WeightedSum(parts)
    assert net.names == ("embedded", "embedded-mean_pool", "embedded-2")
    assert torch.allclose(net(*images, 1), sum(part(*images, 1) for part, _ in parts))
    with pytest.raises(ValueError, match="spatial"):
        net(*images, 1, spatial=True)
