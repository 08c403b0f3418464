"""Backbones of other than three input channels, and of values without a range."""

from __future__ import annotations

import copy
import math
import pickle
import warnings

import pytest
import torch
from frozen_networks import frozen_network
from jsonargparse import ArgumentParser
from pytorch_lightning import Callback
from references import relative_difference, relative_distance
from torch import nn
from torchmetrics.wrappers import FeatureShare

from lpips_lightning import LPIPS, LearnedPerceptualImagePatchSimilarity, LPIPSDiversity, PerceptualLoss
from lpips_lightning.backbones.custom import from_module, from_torchvision
from lpips_lightning.backbones.extractor import random_backbone
from lpips_lightning.backbones.first_convolution import repeated_filters
from lpips_lightning.callbacks import PerceptualScores
from lpips_lightning.comparison.compare import compare
from lpips_lightning.distances.lpips import layer_distances
from lpips_lightning.engine import dispatch
from lpips_lightning.engine.streaming import stream
from lpips_lightning.export import export_network
from lpips_lightning.functional import learned_perceptual_image_patch_similarity
from lpips_lightning.images import RangeError

CHANNELS = (1, 2, 4, 8, 12, 16)
NUMBERS = [0.3, -0.2, 1.0, 0.5] * 4


def module_of(channels, width=8, stride=1, side=3):
    torch.manual_seed(channels)
    return nn.Sequential(
        nn.Conv2d(channels, width, side, stride=stride, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(width, 2 * width, 3, padding=1),
        nn.ReLU(),
    )


def backbone_of(channels, has_range=False, **options):
    scaling = {"mean": NUMBERS[:channels], "std": [0.5 + number**2 for number in NUMBERS[:channels]]}
    return from_module(module_of(channels), ["1", "4"], name="net", has_range=has_range, **{**scaling, **options})


def net_of(channels, has_range=False, **options):
    generator = torch.Generator().manual_seed(0)
    weights = {layer: torch.rand(width, generator=generator) for layer, width in (("1", 8), ("4", 16))}
    return LPIPS(backbone_of(channels, has_range), calibration=weights, **options)


def pair_of(channels, size=24, scale=1.0, dtype=torch.float32, count=2):
    generator = torch.Generator().manual_seed(1)
    shape = (2, count, channels, size, size)
    return [scale * part for part in torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)]


def to_input(net, images, low_high=None):
    """Input of the module, in plain arithmetic."""
    images = images if low_high is None else 2 * (images - low_high[0]) / (low_high[1] - low_high[0]) - 1
    network = frozen_network(net)
    shift, scale = (part.to(images.dtype).view(1, -1, 1, 1) for part in (network.shift, network.scale))
    return (images - shift) / scale


def slow(net, x, y, low_high=None):
    """The formula on the module's own features, in plain autograd."""
    network = frozen_network(net, x.dtype)
    features = [network.extractor(to_input(net, images, low_high)) for images in (x, y)]
    return sum(layer_distances(*features, network.calibration).values())


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("low_high", [None, (-3.0, 2.0)], ids=["none", "range"])
def test_values_and_gradients_in_float64_are_those_of_plain_autograd(channels, low_high):
    net = net_of(channels, has_range=low_high is not None)
    x, y = pair_of(channels, dtype=torch.float64, scale=1e3 if low_high is None else 0.3)
    expected = slow(net, a := x.clone().requires_grad_(), y, low_high)
    found = net(b := x.clone().requires_grad_(), y, low_high)
    assert relative_difference(found.detach(), expected.detach()) < 1e-10
    assert relative_difference(net(x, y, low_high), expected.detach()) < 1e-10
    expected.sum().backward()
    found.sum().backward()
    assert float(a.grad.norm()) > 0
    assert relative_distance(b.grad, a.grad) < 1e-10


@pytest.mark.parametrize("channels", CHANNELS)
def test_no_number_of_channels_leaves_the_fast_path(channels, monkeypatch):
    calls = []
    monkeypatch.setattr(dispatch, "distances", lambda pairs: calls.append("gradient") or pairs.x.sum((1, 2, 3)))
    monkeypatch.setattr(dispatch, "measure_features", lambda *args, **kwargs: calls.append("slow"))
    net, (x, y) = net_of(channels), pair_of(channels)
    net(x, y)
    net(x.requires_grad_(), y)
    assert calls == ["gradient"]


def test_strips_and_tiles_give_the_distance_of_the_whole_image():
    net, (x, y) = net_of(16), pair_of(16, 96, count=1)
    whole, shape = net(a := x.clone().requires_grad_(), y), (1, 16, 96, 96)
    whole.sum().backward()
    found = stream(frozen_network(net), x, y, *[lambda part: to_input(net, part)] * 2, 2**12)
    assert relative_difference(sum(found.values()), whole.detach()) < 1e-5
    small = net_of(16, memory_budget=net.plan((16, *shape[1:])).size // 40)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert [small.plan(shape, gradient=gradient).way for gradient in (False, True)] == ["rows", "tiles"]
        assert relative_difference(small(x, y), whole.detach()) < 1e-5
        small(b := x.clone().requires_grad_(), y).sum().backward()
    assert relative_distance(b.grad, a.grad) < 1e-5


@pytest.mark.parametrize("channels", [1, 16])
def test_every_entry_point_takes_them(channels):
    net, (x, y) = net_of(channels), pair_of(channels, scale=1e3)
    whole = net(x, y)
    assert net(x, y, spatial=True).shape == (2, 1, 24, 24)
    assert torch.allclose(sum(net(x, y, per_layer=True).values()), whole)
    assert torch.allclose(net.distance(net.encode(x), net.encode(y)), whole, rtol=1e-5)
    assert torch.allclose(net.pairwise(x, y).diagonal(), whole, rtol=1e-5)
    assert torch.allclose(net(x[None], y[None])[0], whole, rtol=1e-6)
    assert torch.allclose(learned_perceptual_image_patch_similarity(x, y, net), whole.mean())
    mask = torch.ones(2, 24, 24)
    mask[:, :, :4] = 0
    hole = x.clone()
    hole[..., :2] = float("nan")
    eroded = net(hole, y, mask=mask, erode=True)
    assert torch.equal(eroded, net(x, y, mask=mask, erode=True))
    assert bool(eroded.isfinite().all())
    metric = LearnedPerceptualImagePatchSimilarity(net)
    metric.update(x, y)
    assert torch.allclose(metric.compute(), whole.mean())
    assert metric.fingerprint.endswith("range none")
    assert metric.data_range == PerceptualLoss(net, data_range=metric.data_range).data_range
    diversity = LPIPSDiversity(net)
    diversity.update(x)
    assert torch.allclose(diversity.compute(), net.pairwise(x)[0, 1])
    assert LPIPS(net._record, calibrated=False, resize=40)(x, y, spatial=True).shape[2:] == (40, 40)


def test_torch_compile_and_vmap_take_them():
    net, (x, y) = net_of(4), pair_of(4, scale=1e3)
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    assert torch.allclose(compiled(x, y), net(x, y), rtol=1e-5)
    each = torch.vmap(lambda a, b: net(a[None], b[None])[0])(x, y)
    assert torch.allclose(each, net(x, y), rtol=1e-5)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_stays_near(precision):
    x, y = pair_of(8, scale=3.0)
    half = net_of(8, precision=precision)
    assert relative_difference(half(x, y), net_of(8)(x, y)) < 0.02
    half(x.requires_grad_(), y).sum().backward()
    assert bool(x.grad.isfinite().all()) and float(x.grad.norm()) > 0


def test_a_declared_range_takes_uint8_and_clamps_rounding():
    net = net_of(2, has_range=True)
    values = torch.randint(256, (2, 1, 2, 16, 16), dtype=torch.uint8)
    assert torch.allclose(net(*values), net(*(values / 255), data_range=(0, 1)), rtol=1e-5)
    wrong = 20 * (values[0] > 99).float()
    with pytest.raises(RangeError, match=r"x: expected values on \[0, 10\], got values from 0 to 20"):
        net(wrong, wrong, data_range=(0, 10))


def test_a_prediction_without_a_range_stops_no_training_and_a_target_must_be_finite():
    loss = PerceptualLoss(backbone_of(4), data_range=None, calibrated=False)
    x, y = pair_of(4)
    diverged = torch.full_like(x, float("nan")).requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert bool(loss(diverged, y).isnan())
        assert bool(loss((1e6 * x).requires_grad_(), y.abs()).isfinite())  # no range is suspected either
    for value, word in ((float("nan"), "NaN"), (float("inf"), "infinity")):
        wrong = y.clone()
        wrong[0, 0, 0, 0] = value
        with pytest.raises(RangeError, match=f"target: expected finite values, got {word}"):
            loss(x, wrong)
    metric = LearnedPerceptualImagePatchSimilarity(net_of(4))
    with pytest.raises(RangeError, match="img1: expected finite values, got infinity"):
        metric(img1=x / 0, img2=y)


def test_the_fingerprint_names_channels_and_range():
    ranged, free = net_of(4, has_range=True), net_of(4)
    assert "4 input channels" in free.fingerprint
    assert ranged.specification.layout != free.specification.layout
    assert ranged.fingerprint != free.fingerprint
    assert "input channel" not in LPIPS("embedded").fingerprint
    same = from_module(module_of(3), ["1"], name="net")
    spelled = from_module(module_of(3), ["1"], name="net", mean=(0.5,) * 3, std=(0.5,) * 3, input_channels=3)
    layouts = [LPIPS(one, calibrated=False).specification for one in (same, spelled)]
    assert layouts[0] == layouts[1]


def test_fingerprints_differ_by_mean_and_std():
    scalings = [{}, {"mean": [0.1] * 4}, {"std": [0.1] * 4}, {"mean": [0.9] * 4, "std": [0.1] * 4}]
    made = [from_module(module_of(4), ["1", "4"], input_channels=4, **scaling) for scaling in scalings]
    lines = [LPIPS(backbone, calibrated=False).fingerprint for backbone in made]
    assert len(set(lines)) == 4 and all(", settings sha256:" in line for line in lines)
    assert LPIPS(made[0], calibrated=False).fingerprint == lines[0]


def test_metrics_of_other_means_do_not_share_distances():
    backbones = [from_module(module_of(4), ["1", "4"], mean=[mean] * 4) for mean in (0.1, 0.9)]
    metrics = {
        str(index): LearnedPerceptualImagePatchSimilarity(backbone, calibrated=False)
        for index, backbone in enumerate(backbones)
    }
    x, y = (part.clamp(-1, 1) for part in pair_of(4))
    expected = [metric.net(x, y).mean() for metric in metrics.values()]
    with pytest.warns(UserWarning, match="network to share between the metrics is not the same"):
        share = FeatureShare(metrics)
    found = share(x, y)
    assert expected[0] != expected[1]
    assert torch.allclose(torch.stack([found["0"], found["1"]]), torch.stack(expected))


def test_copies_and_pickles_keep_them():
    net, (x, y) = net_of(16), pair_of(16)
    for again in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(again(x, y), net(x, y))
        assert again.fingerprint == net.fingerprint


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda net, x: net(x, x, data_range=1), ValueError, "data_range: expected None for a network whose"),
        (lambda net, x: net(x, x, normalize=False), ValueError, "normalize: expected None for a network whose"),
        (lambda net, x: net.encode(x.byte()), TypeError, "images: expected floating-point values for net_type 'net'"),
        (lambda net, x: net(x[:, :3], x), ValueError, r"x: expected 4 channels \(N, 4, H, W\), got shape \(2, 3, 24"),
        (lambda net, x: net(x.permute(0, 2, 3, 1), x), ValueError, r"channels come second: use .permute\(0, 3, 1, 2\)"),
        (lambda net, x: net(x[0], x[0]), ValueError, r"expected shape \(N, 4, H, W\) or \(B, T, 4, H, W\), got"),
        (lambda net, x: net.plan((1, 3, 64, 64)), ValueError, r"shape: expected \(N, 4, H, W\), got"),
        (lambda net, x: LPIPS(net._record, gray="repeat"), ValueError, "gray: expected None for a network of 4 input"),
        (lambda net, x: LPIPS(net._record, background="white"), ValueError, "background: expected None for"),
        (lambda net, x: PerceptualLoss(net, data_range=(0, 1)), ValueError, "data_range: expected None for a network"),
        (lambda net, x: PerceptualLoss("embedded", data_range=None), TypeError, "data_range: expected a pair"),
        (
            lambda net, x: LearnedPerceptualImagePatchSimilarity(net, normalize=True),
            ValueError,
            "normalize: expected False for a network whose input has no range",
        ),
        (lambda net, x: compare(x, x, net), ValueError, "net: expected a network of RGB images on a range"),
    ],
)
def test_what_does_not_fit_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call(net_of(4), pair_of(4)[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_values_of_any_floating_dtype_are_measured_and_checked(dtype):
    net, (x, y) = net_of(4), (part.to(dtype) for part in pair_of(4))
    expected = net(x.float(), y.float())
    assert torch.allclose(net(x, y).float(), expected, rtol=1e-6)
    metric = LearnedPerceptualImagePatchSimilarity(net)
    assert torch.allclose(metric(x, y).float(), expected.mean(), rtol=1e-6)
    loss = PerceptualLoss(net, data_range=None)(x.requires_grad_(), y)
    loss.backward()
    assert torch.allclose(loss.float(), expected.mean(), rtol=1e-5) and bool(x.grad.isfinite().all())
    with pytest.raises(RangeError, match="y: expected finite values, got infinity"):
        net(x, y * torch.finfo(dtype).max * 2)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64])
def test_integers_are_no_way_into_a_network_without_a_range(dtype):
    x = torch.ones(1, 4, 16, 16).to(dtype)
    with pytest.raises(TypeError, match=f"got {dtype}; convert with .float\\(\\)$"):
        net_of(4)(x, x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"expected a backbone that takes 256x256 images of 3 channels \(input_channels\)"),
        ({"input_channels": 0}, "input_channels: expected a positive number of channels, or None, got 0"),
        ({"input_channels": 4, "mean": [0.5]}, "mean: expected 4 numbers, one for each input channel"),
        ({"input_channels": 4, "std": [1, 1, 1, 0]}, "std: expected positive numbers"),
        ({"input_channels": 4, "std": [1, 1, 1, math.inf]}, "std: expected 4 numbers, .* all finite, got .*inf"),
        ({"input_channels": 4, "mean": [math.nan] * 4}, "mean: expected 4 numbers, .* all finite, got .*nan"),
        ({"input_channels": 1, "mean": 0.5}, "mean: expected a sequence of one finite number, got 0.5"),
        ({"mean": 0.5}, "mean: expected 3 numbers, one for each input channel, all finite, got 0.5"),
        ({"input_channels": 4, "has_range": None}, "has_range: expected True or False, got None"),
        ({"input_channels": 4, "first_conv": "sum"}, "first_conv: expected one of"),
        ({"input_channels": 4, "first_conv": "repeat"}, "first_conv: expected a first convolution of 3 channels"),
    ],
)
def test_a_backbone_whose_channels_do_not_fit_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        from_module(module_of(4), ["1"], **options)
    if "as_is" not in message:
        with pytest.raises(ValueError, match="input_channels: expected 3, as torchvision's models have, got 5"):
            from_torchvision("resnet18", ["relu"], input_channels=5)


@pytest.mark.parametrize("channels", CHANNELS)
def test_repeated_filters_are_those_of_timm(channels):
    manipulate = pytest.importorskip("timm.models._manipulate")
    weight = torch.randn(8, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(repeated_filters(weight, channels), manipulate.adapt_input_conv(channels, weight.clone()))


def test_a_repeated_first_convolution_of_a_module_is_in_the_fingerprint():
    module = module_of(3)
    backbone = from_module(module, ["1", "4"], input_channels=5, first_conv="repeat", has_range=False)
    net, (x, y) = LPIPS(backbone, calibrated=False), pair_of(5)
    assert "backbone custom repeated to 5 channels sha256:" in net.fingerprint
    adapted = module_of(5)
    adapted.load_state_dict({**module.state_dict(), "0.weight": repeated_filters(module[0].weight.detach(), 5)})
    own = LPIPS(from_module(adapted, ["1", "4"], input_channels=5, has_range=False), calibrated=False)
    assert torch.equal(net(x, y), own(x, y))
    assert torch.equal(pickle.loads(pickle.dumps(net))(x, y), net(x, y))


def test_weights_of_a_torchvision_model_are_repeated_or_taken_as_they_are():
    rgb = random_backbone(from_torchvision("resnet18", ["relu"]), 0)
    backbone = from_torchvision("resnet18", ["relu"], input_channels=12, first_conv="repeat")
    net, (x, y) = LPIPS(backbone, weights=rgb, calibrated=False), pair_of(12, 32, scale=0.2)
    assert "custom repeated to 12 channels" in net.fingerprint
    wide = {**rgb, "conv1.weight": repeated_filters(rgb["conv1.weight"], 12)}
    own = LPIPS(backbone, weights=wide, calibrated=False)
    assert "repeated" not in own.fingerprint
    assert torch.equal(net(x, y), own(x, y))
    assert pickle.loads(pickle.dumps(net)).fingerprint == net.fingerprint
    assert LPIPS(backbone, weights="random", calibrated=False)(x, x).tolist() == [0, 0]


@pytest.mark.filterwarnings("ignore:`torch.jit.load` is deprecated:FutureWarning")
def test_an_exported_file_has_its_channels_and_no_range(tmp_path):
    net, (x, y) = net_of(4), pair_of(4)
    file = export_network(net, tmp_path / "net.pt", size=(32, 32))
    assert (file.metadata["data_range"], file.metadata["inputs"][:30]) == ("null", "x, y: float32 (N, 4, H, W) on ")
    assert torch.allclose(torch.jit.load(tmp_path / "net.pt")(x, y), net(x, y), rtol=1e-5)


def test_a_configuration_file_says_none_where_there_is_no_range():
    """``null`` is a missing value for jsonargparse."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--callback", type=Callback)
    chosen = {"class_path": "lpips_lightning.callbacks.PerceptualScores"}
    given = parser.parse_object({"callback": {**chosen, "init_args": {"data_range": "none", "metrics": ["lpips"]}}})
    options = {**given.callback.init_args.as_dict(), "net_type": net_of(4)}
    assert "range none" in PerceptualScores(**options).fingerprint
    x, y = pair_of(4)
    loss = PerceptualLoss(net_of(4), data_range="none")
    assert torch.equal(loss(x, y), PerceptualLoss(net_of(4), data_range=None)(x, y))
    with pytest.raises(TypeError, match="data_range: expected a pair .* got 'none'"):
        PerceptualLoss("embedded", data_range="none")
