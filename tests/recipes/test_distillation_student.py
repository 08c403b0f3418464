"""Students: plain backbones with a calibration, and the one in ``weights/embedded.safetensors``."""

import json

import pytest
import torch
from safetensors import safe_open

from lpips_lightning import LPIPS, weights
from lpips_lightning.backbones.plain import EMBEDDED, PlainBackbone, Stage
from lpips_lightning.data.distortions import DISTORTIONS, distort
from lpips_lightning.io.image_files import read_image
from lpips_lightning.recipes.distillation_student import Student
from lpips_lightning.recipes.photographs import bundled_photographs

FILE = weights.FOLDER / "embedded.safetensors"


def test_a_normalized_student_is_folded_into_plain_convolutions():
    torch.manual_seed(0)
    student = Student([Stage(8), Stage(12, pool=2, average=True, compared=False), Stage(16)], normalize=True)
    images = torch.randn(4, 3, 24, 24)
    for _ in range(3):
        student.encode(images)  # running means and variances
    for norm in student.norms.values():
        torch.nn.init.uniform_(norm.weight, 0.5, 2)
        torch.nn.init.normal_(norm.bias)
    student.eval()
    plain = Student([Stage(8), Stage(12, pool=2, average=True, compared=False), Stage(16)])
    plain.load_state_dict(student.folded())
    expected, found = student.encode(images), plain.encode(images)
    assert list(found) == ["relu1", "relu3"]
    for layer, activations in expected.items():
        torch.testing.assert_close(found[layer], activations, rtol=1e-4, atol=1e-4)
    assert all(torch.equal(value, plain.folded()[name]) for name, value in plain.state_dict().items())


def test_every_convolution_has_a_feature_layer():
    backbone = PlainBackbone([Stage(8, 5, 2, 2), Stage(16, pool=3), Stage(24)])
    assert backbone.feature_layers == {"relu1": 1, "relu2": 4, "relu3": 6}
    assert backbone.channels == (8, 16, 24)
    images = torch.randn(2, 3, 33, 40)
    features = backbone.encode(images)
    assert {layer: tuple(feature_map.shape) for layer, feature_map in features.items()} == {
        "relu1": (2, 8, 17, 20),
        "relu2": (2, 16, 8, 9),
        "relu3": (2, 24, 8, 9),
    }
    assert all((feature_map >= 0).all() for feature_map in features.values())
    assert torch.equal(features["relu3"], backbone(images))


def test_a_backbone_without_stages_is_refused():
    with pytest.raises(ValueError, match="stages: expected at least one, got none"):
        PlainBackbone([])


def test_the_embedded_architecture_has_the_teachers_geometry_with_few_channels():
    backbone = PlainBackbone(EMBEDDED)
    assert backbone.feature_layers == {"relu1": 1, "relu2": 4, "relu3": 7, "relu4": 9, "relu5": 11}
    assert all(count % 8 == 0 for count in backbone.channels)
    assert {type(layer).__name__ for layer in backbone.features} == {"Conv2d", "ReLU", "MaxPool2d"}
    assert [feature_map.shape[-1] for feature_map in backbone.encode(torch.randn(1, 3, 64, 64)).values()] == [
        15,
        7,
        3,
        3,
        3,
    ]
    assert backbone.encode(torch.randn(1, 3, 31, 31))["relu5"].numel() > 0


def test_the_file_has_this_architecture_finite_weights_and_nonnegative_calibration():
    tensors = weights.read_tensors(FILE)
    Student(EMBEDDED).load_state_dict(tensors, strict=True)
    assert all(tensor.dtype == torch.float32 and tensor.isfinite().all() for tensor in tensors.values())
    calibration = [tensor for name, tensor in tensors.items() if name.startswith("calibration.")]
    assert len(calibration) == 5
    assert all((weight >= 0).all() and weight.sum() > 0 for weight in calibration)


def test_the_file_was_trained_and_evaluated_on_different_images():
    with safe_open(FILE, "pt") as file:
        metadata = file.metadata()
    record = json.loads(metadata["record"])
    assert metadata["net_type"] == "embedded"
    sizes = {0: 0, 1: 3}  # when the file was written, pool said whether there is one
    assert tuple(Stage(**{**stage, "pool": sizes[stage["pool"]]}) for stage in record["stages"]) == EMBEDDED
    assert record["teacher"] == "LPIPS-alex v0.1"
    assert len(record["held_out"]) == 4
    assert not set(record["data"]) & set(record["held_out"])
    correlations = [value for name, value in record["agreement"].items() if "scale" not in name]
    assert len(correlations) == 4
    assert min(correlations) > 0.98


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_gradients_are_finite_on_flat_identical_and_noisy_images(value):
    net = LPIPS("embedded")
    flat = torch.full((2, 3, 40, 40), value)
    for image in (flat.clone(), (flat + 1e-4 * torch.randn_like(flat)).clamp(0, 1), torch.rand_like(flat)):
        image.requires_grad_()
        net(image, flat, data_range=(0, 1)).sum().backward()
        assert image.grad.isfinite().all()


@pytest.mark.real
def test_it_agrees_with_alex_on_twenty_distortions_of_a_held_out_photograph(real_weights):
    photograph = read_image(bundled_photographs()["motorcycle"]) / 255
    corners = [(40, 60), (300, 400), (120, 500)]
    patches = torch.stack([photograph[:, y : y + 128, x : x + 128] for y, x in corners])
    nets, found = (LPIPS("embedded"), LPIPS("alex", weights=real_weights)), []
    for seed, name in enumerate(DISTORTIONS):
        for strength in (0.05, 0.2, 0.4, 0.7, 1.0):
            distorted = distort(patches, name, strength, torch.Generator().manual_seed(seed))
            found.append(torch.stack([net(patches, distorted, data_range=(0, 1)) for net in nets]))
    both = torch.cat(found, dim=1)
    assert both.shape == (2, 300)
    assert float(torch.corrcoef(both.argsort(1).argsort(1).float())[0, 1]) > 0.98
    assert float(torch.corrcoef(both)[0, 1]) > 0.97
    assert float(both[0].mean() / both[1].mean()) == pytest.approx(1, abs=0.1)
