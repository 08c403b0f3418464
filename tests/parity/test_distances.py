"""DISTS and the style distance against piq, and DISTS against its own package and its published values."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from references import relative_difference
from torchvision import models
from torchvision.models import vgg16 as untrained_vgg16

from lpips_lightning import LPIPS
from lpips_lightning.weights import DISTS, load

STYLE_MEAN = [(1 + shift) / 2 for shift in (-0.030, -0.088, -0.188)]  # LPIPS' scaling, for images on [0, 1]
STYLE_STD = [scale / 2 for scale in (0.458, 0.448, 0.450)]


@pytest.fixture(scope="module")
def vgg16_of():
    """torchvision's VGG16 with given convolutions, as the peers call it."""

    def make(tensors):
        def vgg16(*args, **kwargs):
            with torch.device("meta"):
                model = untrained_vgg16(weights=None)
            model.classifier = torch.nn.Identity()
            model.load_state_dict(dict(tensors), strict=True, assign=True)
            return model.requires_grad_(False)

        return vgg16

    return make


def halves(pair):
    """Images on [0, 1] with equal ones among them."""
    x, y = ((images + 1) / 2 for images in pair(3, 64, 48))
    y[2] = x[2].roll(2, -1)
    return x, y


def piq_dists(vgg16):
    perceptual = pytest.importorskip("piq.perceptual")
    packaged = {name: tensor.view(1, -1, 1, 1) for name, tensor in load(DISTS).items()}
    with (
        mock.patch.object(perceptual, "vgg16", vgg16),
        mock.patch.object(torch.hub, "load_state_dict_from_url", return_value=packaged),
    ):
        return perceptual.DISTS(reduction="none")


def test_dists_equals_piq(backbones, vgg16_of, pair):
    x, y = halves(pair)
    peer = piq_dists(vgg16_of(backbones["vgg"]))
    with torch.no_grad():
        expected = peer(x, y)
    found = LPIPS("vgg", distance="dists", weights=backbones["vgg"])(x, y, data_range=(0, 1))
    assert float((found - expected).abs().max()) < 1e-6
    assert float(expected.min()) > 1e-3


@pytest.mark.parametrize("layer", ["relu1_2", "relu3_3", "relu5_3"])
def test_style_times_positions_equals_piq(backbones, vgg16_of, pair, layer):
    perceptual = pytest.importorskip("piq.perceptual")
    x, y = halves(pair)
    options = {"distance": "mae", "normalize_features": True, "mean": STYLE_MEAN, "std": STYLE_STD}
    with mock.patch.object(perceptual, "vgg16", vgg16_of(backbones["vgg"])):
        peer = perceptual.StyleLoss("vgg16", layers=[layer], weights=[1.0], **options)
    with torch.no_grad():
        features = peer.get_features(x), peer.get_features(y)
        (difference,) = peer.compute_distance(*features)
    net = LPIPS("vgg", distance="style", weights=backbones["vgg"])
    found = net(x, y, data_range=(0, 1), per_layer=True)[layer]
    positions = features[0][0][0, 0].numel()
    assert relative_difference(found * positions, difference.mean((1, 2, 3))) < 1e-5


def read(path):
    with Image.open(path) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).unsqueeze(0)


@pytest.mark.real
@pytest.mark.parametrize(("name", "published"), [("I03", 0.4742), ("I04", 0.1424)])
def test_published_values_of_dists(real_weights, name, published):
    folder = real_weights.parent / "golden" / "tid"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    x, y = (read(folder / f"{name}_{kind}.bmp") for kind in ("dist", "ref"))
    net = LPIPS("vgg", distance="dists", weights=real_weights)
    assert round(float(net(x, y)), 4) == published
    assert "backbone IMAGENET1K_V1" in net.fingerprint


@pytest.mark.real
def test_the_selfcheck_of_dists_knows_its_weights(real_weights, backbones):
    found = LPIPS("vgg", distance="dists", weights=real_weights).selfcheck()
    assert found == pytest.approx({"p0": 0.387927307, "p1": 0.225023716}, rel=1e-5)
    with pytest.raises(RuntimeError, match="selfcheck: expected distances of 0.388 and 0.225"):
        LPIPS("vgg", distance="dists", weights=backbones["vgg"]).selfcheck()


@pytest.mark.real
def test_dists_equals_its_own_package(real_weights, vgg16_of, pair):
    peers = pytest.importorskip("DISTS_pytorch.DISTS_pt")
    from safetensors.torch import load_file

    weights = torch.load(Path(peers.__file__).with_name("weights.pt"), weights_only=True)
    with (
        mock.patch.object(models, "vgg16", vgg16_of(load_file(real_weights / "vgg16.safetensors"))),
        mock.patch.object(torch, "load", return_value=weights),
    ):
        peer = peers.DISTS().double()
    x, y = (images.double() for images in halves(pair))
    assert all(torch.equal(getattr(peer, name).float().flatten(), tensor) for name, tensor in load(DISTS).items())
    found = LPIPS("vgg", distance="dists", weights=real_weights)(x, y, data_range=(0, 1))
    assert relative_difference(found, peer(x, y).detach()) < 1e-6
