"""Stacked k-means: clustering, whitening, backbones better than random, the command."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from lpips_lightning import LPIPS
from lpips_lightning.backbones.definition import BACKBONES
from lpips_lightning.backbones.extractor import FeatureExtractor
from lpips_lightning.backbones.plain import PlainBackbone, Stage
from lpips_lightning.calibration.kmeans import spherical_kmeans, stacked_kmeans, whitening
from lpips_lightning.cli import commands as cli
from lpips_lightning.images.preprocessing import to_backbone
from lpips_lightning.io.image_files import write_image
from lpips_lightning.io.tensor_files import read_record
from lpips_lightning.recipes.distillation_augmentations import procedural
from lpips_lightning.weights import read_tensors


@pytest.fixture
def tiny():
    """Two layers; whitening of wide ones takes seconds."""
    stages = (Stage(12, 11, 4, 2), Stage(16, pool=3))
    nodes, build = {"relu1": "features.1", "relu2": "features.4"}, partial(PlainBackbone, stages)
    made = {"name": "tiny", "builder": "tiny", "feature_layers": nodes, "channels": (12, 16), "build": build}
    return replace(BACKBONES["embedded"], **made, default_weights=None)


def images(count=8, size=48, seed=0):
    return procedural(count, size, torch.Generator().manual_seed(seed)) * 2 - 1


def test_clusters_are_found_where_they_are():
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(5, 20, generator=generator), dim=1)
    rows = directions.repeat(40, 1) * (0.5 + torch.rand(200, 1, generator=generator))
    rows = rows + 0.02 * torch.randn(200, 20, generator=generator)
    best = []
    for seed in range(5):
        centers = spherical_kmeans(rows, 5, 20, torch.Generator().manual_seed(seed))
        assert torch.allclose(centers.norm(dim=1), torch.ones(5))
        best.append(float((directions @ centers.T).max(1).values.min()))
    assert max(best) > 0.99
    again = spherical_kmeans(rows, 5, 20, torch.Generator().manual_seed(4))
    assert torch.equal(again, centers)


def test_clusters_without_rows_start_again():
    rows = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    centers = spherical_kmeans(rows, 3, 5, torch.Generator().manual_seed(0))
    assert torch.allclose(centers.norm(dim=1), torch.ones(3))


def test_whitened_rows_are_uncorrelated_with_equal_variance():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(5000, 6, generator=generator) @ torch.randn(6, 6, generator=generator) + 3
    white = (rows - rows.mean(0)) @ whitening(rows, fraction=0.0)
    assert torch.allclose(white.T @ white / len(white), torch.eye(6), atol=1e-3)
    matrix = whitening(rows, fraction=0.1)
    assert torch.allclose(matrix, matrix.T, atol=1e-6)
    flat = torch.cat([rows, torch.zeros(5000, 1)], 1)  # a direction without signal
    assert bool(whitening(flat).isfinite().all())


def test_every_channel_has_the_mean_and_variance_asked_for(tiny):
    record, batch = tiny, images()
    for beta in (0.0, 0.5):
        backbone = stacked_kmeans(record, batch, patches=400, iterations=2, beta=beta)
        shift, scale = torch.tensor(record.shift), torch.tensor(record.scale)
        seen = to_backbone(batch, (-1.0, 1.0), shift, scale, torch.float32, clamp=True)
        output = torch.nn.functional.conv2d(seen, backbone["features.0.weight"], backbone["features.0.bias"], 4, 2)
        assert torch.allclose(output.mean((0, 2, 3)), torch.full((12,), beta), atol=1e-3)
        assert torch.allclose(output.std((0, 2, 3)), torch.ones(12), atol=1e-2)
    layers = FeatureExtractor(record, backbone)(seen)
    assert list(layers) == list(record.feature_layers)
    assert all(bool((values > 0).any((0, 2, 3)).all()) for values in layers.values())


def test_equal_seeds_give_equal_backbones_that_lpips_takes(tiny, pair):
    record, batch = tiny, images()
    one, two, other = (stacked_kmeans(record, batch, patches=200, iterations=2, seed=seed) for seed in (0, 0, 1))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["features.0.weight"], other["features.0.weight"])
    x, y = pair(2, 64, 64)
    assert bool((LPIPS(tiny, calibrated=False, weights=one)(x, y) > 0).all())
    state = torch.get_rng_state()
    stacked_kmeans(record, batch, patches=200, iterations=1)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("net", "patches", "message"),
    [
        ("embedded", 100, "patches: expected at least 128, the channels of the widest layer, got 100"),
        ("squeeze", 1000, "net: expected a plain chain of convolutions such as alex, got 'squeeze'"),
    ],
)
def test_unsupported_networks_and_too_few_patches_are_refused(net, patches, message):
    with pytest.raises(ValueError, match=message):
        stacked_kmeans(BACKBONES[net], images(), patches=patches)


def test_command_writes_a_backbone_with_its_record(tmp_path, capsys):
    for number, image in enumerate(images(3, 80)):
        write_image((image + 1) / 2, tmp_path / "photos" / f"{number}.png")
    out = tmp_path / "made" / "backbone.safetensors"
    args = ["--folder", str(tmp_path / "photos"), "--out", str(out), "--net", "embedded"]
    small = ["--crops", "6", "--crop-size", "48", "--patches", "200", "--iterations", "2"]
    assert cli.main(["kmeans", *args, *small]) == 0
    assert "embedded:kmeans=" in capsys.readouterr().out
    record = read_record(out)
    assert record["mode"] == "kmeans"
    assert record["net_type"] == "embedded"
    first = read_tensors(out)
    assert cli.main(["kmeans", *args, *small, "--force"]) == 0
    assert all(torch.equal(first[name], value) for name, value in read_tensors(out).items())
    assert LPIPS("embedded", calibrated=False, weights=out).fingerprint
    assert cli.main(["kmeans", "--images", str(tmp_path / "photos"), "--out", "a.pth"]) == 2
    assert "out: expected a file that ends in .safetensors" in capsys.readouterr().err
