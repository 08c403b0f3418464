"""Every number against `lpips` 0.1.4, torchmetrics, published values and loops."""

from __future__ import annotations

import copy
import csv
from collections import Counter
from itertools import product
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from conftest import NETS
from PIL import Image
from references import (
    BUILDERS,
    TOLERANCE,
    peer_lpips,
    peer_torchmetrics,
    relative_difference,
    slow_distance,
    slow_features,
)
from safetensors.torch import load_file

from lpips_lightning import LPIPS, LearnedPerceptualImagePatchSimilarity
from lpips_lightning.functional.lpips import learned_perceptual_image_patch_similarity
from lpips_lightning.weights import CALIBRATIONS, load

SIZES = ((64, 64), (65, 71), (256, 256))
EVERY = list(product(NETS, SIZES, TOLERANCE, ("0.1", "0.0"), (True, False)))
QUICK = [  # the versions in float64, where the bound is the tightest
    (net, size, dtype, version, calibrated)
    for net, size, dtype, version, calibrated in EVERY
    if (size == (64, 64) and dtype == torch.float64)
    or (version == "0.1" and calibrated and (net != "vgg" or size[0] < 100))
]
CASES = [case if case in QUICK else pytest.param(*case, marks=pytest.mark.slow) for case in EVERY]


@pytest.fixture(scope="module")
def lpips_of(backbones):
    made = {}

    def get(net, version, calibrated, dtype):
        key = (net, version, calibrated, dtype)
        if key not in made:
            made[key] = peer_lpips(net, backbones[net], version=version, lpips=calibrated).to(dtype)
        return made[key]

    return get


def test_the_cases_are_all_there():
    assert len(EVERY) == 72
    assert len(QUICK) == 12 + 3 + 2 * 3 * 2 - 2


@pytest.mark.parametrize(("net", "size", "dtype", "version", "calibrated"), CASES)
def test_distance_layers_and_map_equal_lpips(backbones, lpips_of, pair, net, size, dtype, version, calibrated):
    x, y = pair(2, *size, dtype)
    peer = lpips_of(net, version, calibrated, dtype)
    with torch.no_grad():
        total, layers = peer(x, y, retPerLayer=True)
        with mock.patch.object(peer, "spatial", True):
            peer_map = peer(x, y)
        ours = LPIPS(net, version=version, calibrated=calibrated, weights=backbones[net])
        features = ours.encode(x), ours.encode(y)
        distance, terms = ours(x, y), ours.distance(*features, per_layer=True)
        spatial = ours.distance(*features, spatial=True)
    assert spatial.shape == (2, 1, *size)
    assert relative_difference(spatial, peer_map) < TOLERANCE[dtype]
    assert distance.shape == (2,)
    assert distance.dtype == dtype
    assert relative_difference(distance, total.flatten()) < TOLERANCE[dtype]
    assert len(terms) == len(layers)
    for ours_layer, theirs in zip(terms.values(), layers, strict=True):
        assert relative_difference(ours_layer, theirs.flatten()) < TOLERANCE[dtype]


@pytest.mark.parametrize("calibrated", [True, False])
@pytest.mark.parametrize("net", NETS)
def test_gradient_equals_lpips(backbones, lpips_of, pair, net, calibrated):
    x, y = pair(2, 65, 71, torch.float64)
    x1, x2 = x.clone().requires_grad_(), x.clone().requires_grad_()
    LPIPS(net, calibrated=calibrated, weights=backbones[net])(x1, y).sum().backward()
    lpips_of(net, "0.1", calibrated, torch.float64)(x2, y).sum().backward()
    assert float((x1.grad - x2.grad).norm() / x2.grad.norm()) < 1e-10


@pytest.mark.parametrize("net", NETS)
def test_gradient_in_float32_points_where_lpips_does(backbones, lpips_of, pair, net):
    x, y = pair(2, 64, 64)
    x1, x2 = x.clone().requires_grad_(), x.double().requires_grad_()
    LPIPS(net, weights=backbones[net])(x1, y).sum().backward()
    lpips_of(net, "0.1", True, torch.float64)(x2, y.double()).sum().backward()
    assert float(torch.cosine_similarity(x1.grad.double().flatten(), x2.grad.flatten(), 0)) > 0.9995


@pytest.fixture(scope="module")
def nearly_equal_of(lpips_of, pair):
    """``(x, y, their distances in float64, the error that is allowed)`` by net and strength."""
    made = {}

    def get(net, strength):
        if (net, strength) not in made:
            x, y, exact = nearly_equal(pair, lpips_of(net, "0.1", True, torch.float64), strength)
            allowed = twice_that_of_lpips(lpips_of(net, "0.1", True, torch.float32), x, y, exact)
            made[net, strength] = x, y, exact, allowed
        return made[net, strength]

    return get


@pytest.mark.parametrize("strength", [*(pytest.param(one, marks=pytest.mark.slow) for one in (1e-2, 1e-3)), 1e-4])
@pytest.mark.parametrize("net", NETS)
def test_nearly_equal_images_are_as_exact_as_lpips(backbones, nearly_equal_of, net, strength):
    x, y, exact, allowed = nearly_equal_of(net, strength)
    ours = LPIPS(net, weights=backbones[net])
    assert relative_difference(ours(x.double(), y.double()), exact) < 1e-10
    assert root_mean_square(ours(x, y), exact) < allowed


@pytest.mark.parametrize("layer", [0, -1])
@pytest.mark.parametrize("net", NETS)
def test_that_bound_rejects_a_convolution_in_bfloat16_and_one_without_bias(backbones, nearly_equal_of, net, layer):
    x, y, exact, allowed = nearly_equal_of(net, 1e-2)
    name = [name for name in backbones[net] if name.endswith("bias")][layer]
    no_bias = {**backbones[net], name: torch.zeros_like(backbones[net][name])}
    assert root_mean_square(LPIPS(net, weights=no_bias)(x, y), exact) > allowed
    ours = LPIPS(net, weights=backbones[net])
    convolutions = [part for part in ours.frozen_network().modules() if isinstance(part, torch.nn.Conv2d)]
    forward = type(convolutions[layer]).convolve

    def rounded(self, x, padding):
        y = forward(self, x, padding)
        return y.bfloat16().float() if self is convolutions[layer] else y

    with (
        mock.patch.object(type(convolutions[layer]), "convolve", rounded),
        mock.patch.object(type(convolutions[layer]), "forward", lambda self, x: self.convolve(x, self.padding)),
    ):
        assert root_mean_square(ours(x, y), exact) > allowed


def nearly_equal(pair, exactly, strength):
    """Eight pairs in float32 that differ by noise of a tenth of `strength`, and their distances in float64."""
    x, noise = pair(8, 64, 64, torch.float64)
    x = x * 0.9
    x, y = x.float(), (x + strength * 0.1 * noise).float()
    return x, y, exactly(x.double(), y.double()).flatten()


def root_mean_square(value, exact):
    return float(((value.double() - exact) / exact).square().mean().sqrt())


def twice_that_of_lpips(peer, x, y, exact):
    """Twice the error of `lpips` on this machine, in the memory format where it is larger.

    The rounding of the features, divided by their small difference, is what decides, and oneDNN's convolutions round
    differently by CPU and memory format. Twice, since eight pairs are few; 16 epsilons, of the sums that are left where
    features happen to be exact.
    """
    formats = (torch.contiguous_format, torch.channels_last)
    both = ([given.contiguous(memory_format=memory) for given in (x, y)] for memory in formats)
    return 2 * max(root_mean_square(peer(*given).flatten(), exact) for given in both) + 16 * torch.finfo(x.dtype).eps


@pytest.mark.parametrize(
    ("normalize", "net"),
    [*product([True], NETS), (False, "alex"), (False, "squeeze"), pytest.param(False, "vgg", marks=pytest.mark.slow)],
)
def test_metric_and_function_equal_torchmetrics(backbones, pair, net, normalize):
    peer = peer_torchmetrics(net, backbones[net], normalize=normalize)
    ours = LearnedPerceptualImagePatchSimilarity(net, normalize=normalize, weights=backbones[net])
    singles = []
    for seed, n in enumerate((3, 1, 2)):
        x, y = pair(n, 64, 72, seed=seed)
        if normalize:
            x, y = (x + 1) / 2, (y + 1) / 2
        batch = ours(x, y)
        assert relative_difference(batch, peer(x, y)) < 1e-5
        single = learned_perceptual_image_patch_similarity(
            x, y, net, reduction="none", normalize=normalize, weights=backbones[net]
        )
        assert single.shape == (n,)
        assert relative_difference(single.mean(), batch) < 1e-6
        singles.append(single)
    assert relative_difference(ours.compute(), peer.compute()) < 1e-5
    assert relative_difference(ours.compute(), torch.cat(singles).mean()) < 1e-6


@pytest.mark.parametrize("calibrated", [True, False])
@pytest.mark.parametrize(("net", "size"), [("alex", (33, 35)), ("vgg", (17, 19)), ("squeeze", (19, 21))])
def test_distance_equals_the_paper_in_loops(backbones, pair, net, size, calibrated):
    x, y = pair(1, *size, torch.float64)
    weights = [tensor.double().tolist() for tensor in _ordered(net)] if calibrated else None
    slow = slow_distance(slow_features(net, backbones[net], x), slow_features(net, backbones[net], y), weights)
    ours = LPIPS(net, weights=backbones[net], calibrated=calibrated)(x, y)
    assert abs(float(ours) - slow) < 1e-12 * slow


def _ordered(net):
    calibration = load(CALIBRATIONS[net, "0.1"])
    return [calibration[name] for name in sorted(calibration)]


@pytest.mark.parametrize("version", ["0.0", "0.1"])
@pytest.mark.parametrize("net", NETS)
def test_calibrations_are_those_of_the_lpips_wheel(net, version):
    import lpips

    path = Path(lpips.__file__).parent / "weights" / f"v{version}" / f"{net}.pth"
    official = torch.load(path, map_location="cpu", weights_only=True)
    ours = load(CALIBRATIONS[net, version])
    assert len(ours) == len(official)
    for index, name in enumerate(sorted(ours)):
        assert torch.equal(ours[name], official[f"lin{index}.model.1.weight"].flatten())


def _golden(real_weights):
    folder, rows = real_weights.parent / "golden", []
    for table in (folder / "lpips_0.1.4.csv", folder / "lpips_0.1.4_vgg.csv"):
        if not table.is_file():
            pytest.skip(f"{table} is not there")
        with table.open(newline="") as stream:
            rows += csv.DictReader(stream)
    return folder, rows


def _read(path):
    with Image.open(path) as image:
        pixels = torch.from_numpy(np.array(image.convert("RGB")))
    return pixels.permute(2, 0, 1).unsqueeze(0)


@pytest.mark.real
@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_golden_values_with_the_real_backbones(real_weights, every):
    folder, rows = _golden(real_weights)
    assert Counter(row["net"] for row in rows) == {"alex": 8, "squeeze": 8, "vgg": 8}
    nets = {
        (name, version, calibrated): LPIPS(name, version=version, weights=real_weights, calibrated=calibrated)
        for name, version in {(row["net"], row["version"]) for row in rows}
        for calibrated in (True, False)
    }
    for row in rows if every else rows[::2]:
        x, y = _read(folder / row["ref"]), _read(folder / row["dist"])
        net, baseline = (nets[row["net"], row["version"], calibrated] for calibrated in (True, False))
        features = net.encode(x), net.encode(y)
        expected = {
            "lpips": net(x, y),
            "lpips_spatial_mean": net.distance(*features, spatial=True).mean((1, 2, 3)),
            "baseline_lpips_False": baseline(x, y),
            **{f"layer{i}": term for i, term in enumerate(net.distance(*features, per_layer=True).values())},
        }
        for column, value in expected.items():
            # The table has nine decimals.
            assert abs(float(value) - float(row[column])) < 1e-5 * float(row[column]) + 1e-9, (row, column)


@pytest.mark.real
@pytest.mark.parametrize(("name", "published"), [("alex", (0.722, 0.138)), ("vgg", (0.569, 0.422))])
def test_published_examples_of_the_reference(real_weights, name, published):
    folder, _ = _golden(real_weights)
    ref, p0, p1 = (_read(folder / f"ex_{name}.png") for name in ("ref", "p0", "p1"))
    net = LPIPS(name, weights=real_weights)
    assert (round(float(net(ref, p0)), 3), round(float(net(ref, p1)), 3)) == published
    assert "backbone IMAGENET1K_V1" in net.fingerprint


@pytest.mark.real
@pytest.mark.parametrize("net", NETS)
def test_gradients_and_nearly_equal_images_with_the_real_backbones(real_weights, pair, net):
    tensors = load_file(real_weights / f"{BUILDERS[net]}.safetensors")
    peer, ours = peer_lpips(net, tensors, version="0.1", lpips=True), LPIPS(net, weights=tensors)
    oracle = copy.deepcopy(peer).double()
    x, y = pair(2, 65, 71, torch.float64)
    x1, x2 = x.clone().requires_grad_(), x.clone().requires_grad_()
    ours(x1, y).sum().backward()
    oracle(x2, y).sum().backward()
    assert float((x1.grad - x2.grad).norm() / x2.grad.norm()) < 1e-10
    x, y, exact = nearly_equal(pair, oracle, 1e-2)
    assert relative_difference(ours(x.double(), y.double()), exact) < 1e-10
    assert root_mean_square(ours(x, y), exact) < twice_that_of_lpips(peer, x, y, exact)
