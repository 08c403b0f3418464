"""The network that ships: everywhere a net is accepted, never in another's place, and always the same."""

from __future__ import annotations

import pytest
import torch

from lpips_lightning import LPIPS, LearnedPerceptualImagePatchSimilarity, PerceptualLoss, weights
from lpips_lightning.functional.lpips import learned_perceptual_image_patch_similarity
from lpips_lightning.weights import EMBEDDED, WeightsError

RECORDED = 0.00162439961  # in float64, on 2026-11-21


def waves(size=64):
    """Two images without a random number: color gradients with waves, and the same blurred."""
    row, column = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    channels = [
        torch.sin(row / (3 + c)) * torch.cos(column / (5 - c)) * 0.6 + (row - column) / (4 * size) for c in range(3)
    ]
    image = torch.stack(channels)[None]
    blurred = torch.nn.functional.avg_pool2d(image, 5, 1, 2, count_include_pad=False)
    return image, blurred


def test_it_needs_no_file_of_this_machine_and_gives_its_recorded_value():
    net = LPIPS("embedded")
    assert "backbone embedded sha256:" in net.fingerprint
    assert float(net(*waves())) == pytest.approx(RECORDED, rel=1e-5)


def test_it_works_everywhere():
    x, y = waves()
    net = LPIPS("embedded")
    distance = net(x, y)
    assert torch.allclose(sum(net(x, y, per_layer=True).values()), distance)
    assert net(x, y, spatial=True).shape == (1, 1, 64, 64)
    assert torch.allclose(net.distance(net.encode(x), net.encode(y)), distance)
    assert torch.allclose(net.pairwise(x, y), distance)
    assert learned_perceptual_image_patch_similarity(x, y, "embedded") == distance.mean()
    assert LearnedPerceptualImagePatchSimilarity("embedded")(x, y) == distance
    loss = PerceptualLoss("embedded", data_range=(-1, 1))
    x.requires_grad_()
    loss(x, y).backward()
    assert bool(x.grad.isfinite().all())
    assert list(loss.parameters()) == []
    assert float(LPIPS("embedded", calibrated=False)(x.detach(), y)) != pytest.approx(float(distance))


def test_it_has_one_version():
    with pytest.raises(ValueError, match="version: expected one of '0.1' for net_type 'embedded', got '0.0'"):
        LPIPS("embedded", version="0.0")


@pytest.mark.parametrize("net", ["alex", "vgg", "squeeze"])
def test_it_never_stands_in_for_another_net(net):
    with pytest.raises(WeightsError, match="was not found"):
        LPIPS(net)


def test_it_is_below_2_mb_and_says_how_it_was_made():
    from safetensors import safe_open

    path = weights.FOLDER / EMBEDDED.file
    assert path.stat().st_size < 2e6
    with safe_open(path, "pt") as file:
        record = file.metadata()["record"]
    for word in ("recipe", "seed", "data", "teacher", "date", "agreement"):
        assert f'"{word}"' in record


def test_a_whole_network_file_brings_its_own_calibration(tmp_path):
    from safetensors.torch import save_file

    tensors = weights.load(EMBEDDED)
    doubled = {name: tensor * (2 if name.startswith("calibration.") else 1) for name, tensor in tensors.items()}
    save_file(doubled, tmp_path / "student.safetensors")
    student = LPIPS("embedded", weights=tmp_path / "student.safetensors")
    assert float(student(*waves())) == pytest.approx(2 * RECORDED, rel=1e-5)


@pytest.mark.real
def test_it_reads_like_alex_on_photographs(real_weights):
    from torchmetrics.functional import spearman_corrcoef

    from lpips_lightning.io.image_files import read_image
    from lpips_lightning.recipes.photographs import bundled_photographs

    alex, embedded = LPIPS("alex", weights=real_weights), LPIPS("embedded")
    pairs = []
    for path in bundled_photographs().values():
        image = read_image(path)[None, :, :256, :256]
        for size in (16, 32, 64, 128, 192):
            small = torch.nn.functional.interpolate(image.float(), size, mode="bicubic", antialias=True)
            pairs.append((image, torch.nn.functional.interpolate(small, 256, mode="bicubic").clamp(0, 255).byte()))
        for strength in (4, 12, 40):
            noise = strength * torch.randn(image.shape)
            pairs.append((image, (image + noise).clamp(0, 255).byte()))
    assert len(pairs) >= 40
    ours, theirs = (torch.cat([net(x, y) for x, y in pairs]) for net in (embedded, alex))
    assert float(spearman_corrcoef(ours, theirs)) > 0.97
    assert float(ours.mean() / theirs.mean()) == pytest.approx(1, abs=0.1)
