"""The golden distances: right weights pass, wrong ones do not."""

from __future__ import annotations

import pytest
import torch

from lpips_lightning import LPIPS, LearnedPerceptualImagePatchSimilarity, PerceptualLoss
from lpips_lightning.backbones.custom import from_module
from lpips_lightning.backbones.plain import EMBEDDED as STAGES
from lpips_lightning.backbones.plain import PlainBackbone
from lpips_lightning.backbones.selfcheck import GOLDEN
from lpips_lightning.weights import EMBEDDED, WeightsError, load


def test_the_embedded_network_passes_from_every_face():
    golden = GOLDEN["embedded"]
    for face in (
        LPIPS("embedded"),
        LPIPS("embedded", calibrated=False),
        LearnedPerceptualImagePatchSimilarity("embedded"),
        PerceptualLoss("embedded", data_range=1),
    ):
        found = face.selfcheck()
        assert found == pytest.approx({"p0": golden.p0, "p1": golden.p1}, rel=1e-5)


@pytest.mark.real
@pytest.mark.parametrize("net", ["alex", "vgg", "squeeze"])
@pytest.mark.parametrize("version", ["0.1", "0.0"])
def test_the_imagenet_backbones_pass(real_weights, net, version):
    found = LPIPS(net, version=version, weights=real_weights).selfcheck()
    assert found == pytest.approx({"p0": GOLDEN[net].p0, "p1": GOLDEN[net].p1}, rel=1e-5)


@pytest.mark.parametrize("net", ["alex", "vgg", "squeeze", "embedded"])
def test_random_weights_fail(net):
    with pytest.raises(WeightsError, match="selfcheck: expected distances of .* these are not the weights"):
        LPIPS(net, weights="random").selfcheck()


@pytest.mark.parametrize("layer", [0, 3, 8])
def test_one_layer_that_was_trained_on_fails(layer):
    tensors = {name: tensor.clone() for name, tensor in load(EMBEDDED).items()}
    name = f"features.{layer}.weight"
    tensors[name] += (
        0.2 * tensors[name].std() * torch.randn(tensors[name].shape, generator=torch.Generator().manual_seed(0))
    )
    LPIPS("embedded").selfcheck()
    with pytest.raises(WeightsError, match="selfcheck: expected"):
        LPIPS("embedded", weights=tensors).selfcheck()


def test_a_backbone_of_your_own_has_no_golden_distance():
    module = from_module(PlainBackbone(STAGES), ["features.1"], name="mine")
    with pytest.raises(ValueError, match="selfcheck: expected one of 'alex', 'vgg', .* got the backbone 'mine'"):
        LPIPS(module, calibrated=False).selfcheck()
