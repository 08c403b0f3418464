"""Caffe's AlexNet against torch's functions, written out; its files; LPIPS on it."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import torch
from frozen_networks import frozen_network
from references import relative_difference, relative_distance
from safetensors.torch import save_file
from skimage.color import rgb2lab
from tiling_nets import whole
from torch.nn import functional as F

from lpips_lightning import LPIPS, LearnedPerceptualImagePatchSimilarity, PerceptualLoss
from lpips_lightning.backbones.caffe_alexnet import MEANS, CaffeAlexNet
from lpips_lightning.backbones.caffe_file import (
    caffe_backbone_of_file,
    caffe_settings,
    load_caffe_alexnet,
    write_caffe_alexnet,
)
from lpips_lightning.backbones.lab import rgb_to_lab
from lpips_lightning.backbones.published import METHODS
from lpips_lightning.calibration.module import PerceptualCalibration
from lpips_lightning.engine.state import Engine
from lpips_lightning.engine.streaming import stream
from lpips_lightning.engine.tiling import tiled_gradient
from lpips_lightning.evaluation.methods import parse_method
from lpips_lightning.functional import learned_perceptual_image_patch_similarity
from lpips_lightning.weights import WeightsError

SMALL = (4, 8, 6, 8, 4)
OTHERS = {
    "gray": {"colors": "gray", "groups": False},
    "halves": {"groups": (1, 2, 2, 2, 2), "colors": "lab", "std": (50.0, 110.0, 110.0), "lrn": False},
    "padded lab": {"first_padding": 5, "colors": "lab", "mean": (50.0, 3.0, -2.0), "first_stride": 2},
}
SETTINGS = {**{name: method.settings for name, method in METHODS.items()}, **OTHERS}


def caffe_alexnet(name, dtype=torch.float64):
    """A small network with random weights, batch statistics included."""
    torch.manual_seed(1)
    net = CaffeAlexNet(SMALL, **SETTINGS[name])
    for tensor in net.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5) if tensor.dim() == 1 and tensor.min() >= 0 else tensor.normal_(0, 0.2)
    net.features[0].weight.data.mul_(0.02 * float(np.mean(net.settings["std"])))
    return net.to(dtype).eval()


def slow_lrn(x):
    """x / (1 + 1e-4 / 5 * sum of squares over 5 channels) ** 0.75, channel by channel."""
    channels = range(x.shape[1])
    sums = [sum(x[:, j] ** 2 for j in channels if abs(i - j) <= 2) for i in channels]
    return torch.stack([x[:, i] / (1 + 1e-4 / 5 * sums[i]) ** 0.75 for i in channels], 1)


def slow_pool(x):
    """Max over 3 x 3 with stride 2; as in Caffe, a window may extend beyond the end."""
    rows, columns = (range(0, -(-max(size - 3, 0) // 2) * 2 + 1, 2) for size in x.shape[2:])
    return torch.stack(
        [torch.stack([x[:, :, i : i + 3, j : j + 3].amax((2, 3)) for j in columns], -1) for i in rows], -2
    )


def slow_input(images, settings):
    """What the first convolution sees, of RGB images on [0, 1]."""
    colors = settings["colors"]
    red, green, blue = (255 * images).unbind(1)
    if colors in ("lab", "lightness"):
        lab = torch.from_numpy(rgb2lab(images.numpy(), channel_axis=1))
        channels = list(lab.unbind(1))[: 3 if colors == "lab" else 1]
    else:
        gray = 0.299 * red + 0.587 * green + 0.114 * blue
        channels = {"bgr": [blue, green, red], "rgb": [red, green, blue], "gray": [gray]}[colors]
    zipped = zip(channels, settings["mean"], settings["std"], strict=True)
    return torch.stack([(channel - mean) / std for channel, mean, std in zipped], 1)


def slow_features(net, x):
    """The five ReLUs, of what the first convolution sees."""
    said, state, place, features = net.settings, net.state_dict(), 0, []

    def normalized(x):
        nonlocal place
        mean, var, weight, bias = (
            state[f"features.{place}.{role}"].view(-1, 1, 1)
            for role in ("running_mean", "running_var", "weight", "bias")
        )
        place += 1
        return (x - mean) / (var + 1e-5).sqrt() * weight + bias

    for number, groups in enumerate(said["groups"], start=1):
        padding, stride = (
            (said["first_padding"], said["first_stride"]) if number == 1 else ((2 if number == 2 else 1), 1)
        )
        weight, bias = state[f"features.{place}.weight"], state[f"features.{place}.bias"]
        x, place = F.conv2d(x, weight, bias, stride, padding, 1, groups), place + 1
        if said["normalization"] == "batch" or (said["normalization"] == "batch_345" and number > 2):
            x = normalized(x)
        x, place = torch.where(x > 0, x, said["leaky"] * x), place + 1
        features.append(x)
        after = said["normalization"] == "batch_after"
        if number <= 2:
            x, place = slow_pool(x), place + 1
            x = normalized(x) if after and number == 1 else x
            if said["lrn"]:
                x, place = slow_lrn(x), place + 1
            x = normalized(x) if after and number == 2 else x
        elif after and number < 5:
            x = normalized(x)
    return features


def slow_distance(features_x, features_y):
    total = 0
    for a, b in zip(features_x, features_y, strict=True):
        a, b = (f / (torch.linalg.vector_norm(f, dim=1, keepdim=True) + 1e-10) for f in (a, b))
        total = total + (a - b).square().sum(1).mean((1, 2))
    return total


@pytest.mark.parametrize("name", SETTINGS)
def test_features_are_those_of_caffes_layers(pair, name):
    net, (x, y) = caffe_alexnet(name), pair(2, 72, 64, torch.float64)
    x, y = (x + 1) / 2, (y + 1) / 2
    expected = slow_features(net, slow_input(x, net.settings))
    found = net.encode(x)
    assert list(found) == ["relu1", "relu2", "relu3", "relu4", "relu5"]
    for layer, slow in zip(found.values(), expected, strict=True):
        assert torch.allclose(layer, slow, rtol=1e-9, atol=1e-12)
        assert float(slow.std()) > 0
    assert torch.equal(net(x), found["relu5"])
    # As the backbone of LPIPS; its input scaling is kept in float32.
    lpips = LPIPS(net.backbone(), calibrated=False)
    distance = slow_distance(expected, slow_features(net, slow_input(y, net.settings)))
    assert relative_difference(lpips(x, y, data_range=(0, 1)), distance) < 1e-6
    assert float(distance.min()) > 0.01


@pytest.mark.parametrize("name", ["bigan", "egomotion", "padded lab"])
def test_gradients_and_maps(pair, name):
    net, (x, y) = caffe_alexnet(name), pair(1, 64, 72, torch.float64)
    x, y = ((x + 1) / 2).requires_grad_(), (y + 1) / 2
    lpips = LPIPS(net.backbone(), calibrated=False)
    (found,) = torch.autograd.grad(lpips(x, y, data_range=(0, 1)).sum(), x)
    features = (slow_features(net, net.preprocess(images)) for images in (x, y))
    (expected,) = torch.autograd.grad(slow_distance(*features).sum(), x)
    assert relative_distance(found, expected) < 1e-6
    with torch.no_grad():
        layer_maps = lpips(x, y, data_range=(0, 1), spatial=True, per_layer=True)
    a, b = (slow_features(net, net.preprocess(images))[1] for images in (x.detach(), y))
    a, b = (f / (torch.linalg.vector_norm(f, dim=1, keepdim=True) + 1e-10) for f in (a, b))
    upsampled = F.interpolate((a - b).square().sum(1, keepdim=True), (64, 72), mode="bilinear", align_corners=False)
    assert relative_distance(layer_maps["relu2"], upsampled) < 1e-6


@pytest.mark.parametrize("colors", MEANS)
def test_three_channels_give_the_same_features(pair, colors):
    torch.manual_seed(2)
    net = CaffeAlexNet(SMALL, colors=colors, first_padding=5, lrn=False).double()
    x = (pair(1, 40, 48, torch.float64)[0] + 1) / 2
    before = torch.get_rng_state()
    plain = net.with_three_channels()
    assert torch.equal(torch.get_rng_state(), before)
    assert plain.settings["colors"] == ("lab" if colors in ("lab", "lightness") else "rgb")
    assert all(torch.allclose(a, b) for a, b in zip(net.encode(x).values(), plain.encode(x).values(), strict=True))
    plain.requires_grad_(False).features[0].bias.zero_()  # it is a copy
    assert bool(net.features[0].bias.any()) and net.features[0].bias.requires_grad


def test_lab_is_that_of_scikit_image_and_has_gradients_at_black():
    corners = torch.tensor([[r, g, b] for r in (0.0, 0.02, 0.5, 1.0) for g in (0.0, 0.3, 1.0) for b in (0.0, 0.9)])
    images = corners.double().T.reshape(1, 3, 4, 6)
    assert np.allclose(rgb_to_lab(images), rgb2lab(images.numpy(), channel_axis=1), atol=1e-9)
    images.requires_grad_()
    assert torch.autograd.gradcheck(rgb_to_lab, images[..., 1:2, 2:4].detach().requires_grad_())
    (gradient,) = torch.autograd.grad(rgb_to_lab(images).sum(), images)
    assert bool(gradient.isfinite().all())


@pytest.mark.parametrize(("name", "side"), [("bigan", 23), ("context", 13), ("gray", 23)])
def test_the_smallest_side_is_the_smallest_that_works(name, side):
    lpips = LPIPS(caffe_alexnet(name, torch.float32).backbone(), calibrated=False)
    assert lpips.smallest_side == side
    x = torch.rand(1, 3, side, side)
    assert bool(lpips(x, 1 - x, data_range=1).isfinite().all())
    with pytest.raises(ValueError, match=f"at least {side} pixels for net_type 'caffe-alexnet', got {side - 1}"):
        lpips(x[..., 1:, 1:], x[..., 1:, 1:], data_range=1)


@pytest.mark.parametrize("name", ["egomotion", "padded lab"])
def test_row_strips_and_tiles_give_the_values_of_whole_images(pair, name):
    network = frozen_network(LPIPS(caffe_alexnet(name).backbone(), calibrated=False), torch.float64)
    assert Engine.of(network).unsupported_reason is None
    x, y = ((images + 1) / 2 for images in pair(1, 176, 152, torch.float64))
    same = torch.Tensor.double
    expected, gradient = whole(network, x, y)
    found = stream(network, x, y, same, same, 1)
    found_tiles, found_gradient = tiled_gradient(network, x, y, same, same, (64, 80))
    for layer, distance in expected.items():
        assert relative_difference(found[layer], distance) < 1e-9
        assert relative_difference(found_tiles[layer], distance) < 1e-9
    assert relative_distance(found_gradient, gradient) < 1e-9


def test_a_file_says_its_architecture(pair, tmp_path):
    net = caffe_alexnet("split-brain", torch.float32)
    path = write_caffe_alexnet(tmp_path / "mine.safetensors", net, "split-brain", {"steps": 3})
    x, y = pair(2, 48, 64)
    expected = LPIPS(net.backbone(), calibrated=False)(x, y)
    loss = PerceptualLoss(weights=path, data_range=(-1, 1), reduction="none")  # its default is another net
    metric = LearnedPerceptualImagePatchSimilarity(weights=str(path), reduction="mean")
    for lpips in (
        LPIPS(weights=path),
        LPIPS("caffe-alexnet", weights=str(path)),
        LPIPS(caffe_backbone_of_file(path), calibrated=False),
    ):
        assert torch.equal(lpips(x, y), expected)
        assert (lpips.net_type, lpips.calibrated) == ("caffe-alexnet", False)
        assert lpips.fingerprint.startswith(
            "LPIPS caffe-alexnet [relu1 relu2 relu3 relu4 relu5] v0.1, baseline, backbone custom"
        )
        assert list(lpips.parameters()) == [] and lpips.state_dict() == {}
    assert torch.allclose(loss(x, y), expected)
    assert torch.allclose(metric(x, y), expected.mean())
    assert torch.allclose(learned_perceptual_image_patch_similarity(x, y, weights=path), expected.mean())
    assert torch.equal(pickle.loads(pickle.dumps(LPIPS(weights=path)))(x, y), expected)
    assert LPIPS(weights=path).selfcheck()["p0"] > 0
    again = load_caffe_alexnet(path).eval()
    assert again.settings == {**net.settings, "channels": list(SMALL)} == caffe_settings(path)
    assert torch.equal(again((x + 1) / 2), net((x + 1) / 2))
    method = parse_method(f"caffe-alexnet:weights={path}")
    assert torch.equal(method.distance(x, y), expected) and method.paper == "Split-Brain"


def test_calibrations_of_such_a_file_are_used(pair, tmp_path):
    net, (x, y) = caffe_alexnet("puzzle", torch.float32), pair(1)
    path = write_caffe_alexnet(tmp_path / "mine.safetensors", net, "puzzle")
    uniform = {layer: torch.ones(channels) for layer, channels in zip(net.feature_layers, SMALL, strict=True)}
    calibrated = LPIPS(weights=path, calibration=uniform)
    assert calibrated.calibrated and "lin custom" in calibrated.fingerprint
    assert torch.allclose(calibrated(x, y), LPIPS(weights=path)(x, y))
    twice = {layer: 2 * weight for layer, weight in uniform.items()}
    assert torch.allclose(LPIPS(weights=path, calibration=twice)(x, y), 2 * calibrated(x, y))


@pytest.mark.parametrize("mode", ["lin", "tune"])
def test_calibrations_of_such_a_file_can_be_trained(pair, tmp_path, mode):
    path = write_caffe_alexnet(
        tmp_path / "mine.safetensors", caffe_alexnet("split-brain", torch.float32), "split-brain"
    )
    module = PerceptualCalibration(weights=str(path), mode=mode)
    x, y = pair(2)
    (before,) = module.eval()(x, y)
    out = module.export(tmp_path / "trained.safetensors")
    net = LPIPS(weights=path, calibration=out) if mode == "lin" else LPIPS(weights=out)
    assert net.calibrated and net.net_type == "caffe-alexnet"
    assert torch.allclose(net(x, y), before, rtol=1e-5)
    if mode == "lin":
        with pytest.raises(WeightsError, match="a backbone file that says its architecture, got one that does not"):
            LPIPS(weights=out)


def test_files_and_names_that_do_not_fit_are_refused(tmp_path):
    path = write_caffe_alexnet(tmp_path / "mine.safetensors", caffe_alexnet("puzzle", torch.float32), "puzzle")
    with pytest.raises(
        WeightsError, match="expected weights of 'vgg', got those of 'caffe-alexnet'; leave the net out"
    ):
        LPIPS("vgg", weights=path)
    with pytest.raises(WeightsError, match="expected weights of 'squeeze', got those of 'caffe-alexnet'"):
        PerceptualLoss("squeeze", weights=path, data_range=1)
    for weights in (None, {"features.0.weight": torch.zeros(1)}):
        with pytest.raises(ValueError, match="weights: expected a file for 'caffe-alexnet', of which none ships"):
            LPIPS("caffe-alexnet", weights=weights)
    with pytest.raises(ValueError, match="expected a path or tensors for net_type 'caffe-alexnet'"):
        LPIPS(caffe_backbone_of_file(path))
    data = bytearray(path.read_bytes())
    data[-5] ^= 16
    path.write_bytes(data)
    with pytest.raises(WeightsError, match="expected a whole file of tensors, got tensors of sha256"):
        LPIPS(weights=path)
    wrong = {"net_type": "caffe-alexnet", "record": json.dumps({"architecture": {"channels": [1, 2], "leaky": 0}})}
    save_file({"features.0.weight": torch.zeros(1)}, tmp_path / "wrong.safetensors", wrong)
    with pytest.raises(WeightsError, match="expected the architecture of a CaffeAlexNet, got an invalid one: channels"):
        LPIPS(weights=tmp_path / "wrong.safetensors")


def test_random_weights_need_no_file():
    torch.manual_seed(3)
    lpips = LPIPS("caffe-alexnet", weights="random")
    assert lpips.fingerprint.startswith("LPIPS caffe-alexnet") and "backbone random" in lpips.fingerprint
    assert dict(zip(lpips.layers, frozen_network(lpips).record.channels, strict=True))["relu1"] == 96


def test_selfcheck_finds_a_dead_layer(tmp_path):
    net = caffe_alexnet("caffenet", torch.float32)
    net.features[net.convolutions[3]].weight.data.zero_()
    net.features[net.convolutions[3]].bias.data.fill_(-1)
    with pytest.raises(WeightsError, match="selfcheck: expected features that differ at relu4, got constant ones"):
        LPIPS(net.backbone(), calibrated=False).selfcheck()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"channels": (4, 8)}, "channels: expected five positive integers, one per convolution, got"),
        ({"channels": (4, 9, 6, 8, 4)}, "channels: expected multiples of 2, the groups of conv2, got 4 and 9"),
        ({"groups": (2, 2, 1, 2, 2)}, "groups: expected 1 for the first convolution, got 2"),
        ({"colors": "cmyk"}, "colors: expected one of 'bgr', .*, got 'cmyk'"),
        ({"normalization": "layer"}, "normalization: expected one of 'none', .*, got 'layer'"),
        ({"colors": "gray", "mean": (1, 2, 3)}, "mean: expected 1 numbers for 'gray'"),
        ({"std": (1, 0, 1)}, "std: expected 3 positive numbers for 'bgr'"),
    ],
)
def test_invalid_settings_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        CaffeAlexNet(**{"channels": SMALL, **options})
