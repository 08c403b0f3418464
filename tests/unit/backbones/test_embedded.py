"""The networks that ship: everywhere a net is accepted, never in another's place, and always the same."""

from __future__ import annotations

import pytest
import torch

from lpips_lightning import LPIPS, LearnedPerceptualImagePatchSimilarity, PerceptualLoss, weights
from lpips_lightning.functional.lpips import learned_perceptual_image_patch_similarity
from lpips_lightning.weights import CALIBRATIONS, WeightsError

RECORDED = {"embedded": 0.00162439961, "embedded-vgg": 0.00706281846}  # in float64

both = pytest.mark.parametrize("name", RECORDED)


def waves(size=64):
    """Two images without a random number: color gradients with waves, and the same blurred."""
    row, column = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    channels = [
        torch.sin(row / (3 + c)) * torch.cos(column / (5 - c)) * 0.6 + (row - column) / (4 * size) for c in range(3)
    ]
    image = torch.stack(channels)[None]
    blurred = torch.nn.functional.avg_pool2d(image, 5, 1, 2, count_include_pad=False)
    return image, blurred


@both
def test_it_needs_no_file_of_this_machine_and_gives_its_recorded_value(name):
    net = LPIPS(name)
    assert f"backbone {name} sha256:" in net.fingerprint
    assert float(net(*waves())) == pytest.approx(RECORDED[name], rel=1e-5)


@both
def test_it_works_everywhere(name):
    x, y = waves()
    net = LPIPS(name)
    distance = net(x, y)
    assert torch.allclose(sum(net(x, y, per_layer=True).values()), distance)
    assert net(x, y, spatial=True).shape == (1, 1, 64, 64)
    assert torch.allclose(net.distance(net.encode(x), net.encode(y)), distance)
    assert torch.allclose(net.pairwise(x, y), distance)
    assert learned_perceptual_image_patch_similarity(x, y, name) == distance.mean()
    assert LearnedPerceptualImagePatchSimilarity(name)(x, y) == distance
    loss = PerceptualLoss(name, data_range=(-1, 1))
    x.requires_grad_()
    loss(x, y).backward()
    assert bool(x.grad.isfinite().all())
    assert list(loss.parameters()) == []
    assert float(LPIPS(name, calibrated=False)(x.detach(), y)) != pytest.approx(float(distance))


@both
def test_it_has_one_version(name):
    with pytest.raises(ValueError, match=f"version: expected one of '0.1' for net_type '{name}', got '0.0'"):
        LPIPS(name, version="0.0")


@pytest.mark.parametrize("net", ["alex", "vgg", "squeeze"])
def test_it_never_stands_in_for_another_net(net):
    with pytest.raises(WeightsError, match="was not found"):
        LPIPS(net)


@both
def test_it_is_below_2_mb_and_says_how_it_was_made(name):
    from safetensors import safe_open

    path = weights.FOLDER / CALIBRATIONS[name, "0.1"].file
    assert path.stat().st_size < 2e6
    with safe_open(path, "pt") as file:
        record = file.metadata()["record"]
    for word in ("recipe", "seed", "data", "teacher", "date", "agreement"):
        assert f'"{word}"' in record


@both
def test_a_whole_network_file_brings_its_own_calibration(name, tmp_path):
    from safetensors.torch import save_file

    tensors = weights.load(CALIBRATIONS[name, "0.1"])
    doubled = {name: tensor * (2 if name.startswith("calibration.") else 1) for name, tensor in tensors.items()}
    save_file(doubled, tmp_path / "student.safetensors")
    student = LPIPS(name, weights=tmp_path / "student.safetensors")
    assert float(student(*waves())) == pytest.approx(2 * RECORDED[name], rel=1e-5)


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "teacher"), [("embedded", "alex"), pytest.param("embedded-vgg", "vgg", marks=pytest.mark.slow)]
)
def test_it_reads_like_its_teacher_on_photographs(name, teacher, real_weights):
    from torchmetrics.functional import spearman_corrcoef

    from lpips_lightning.io.image_files import read_image
    from lpips_lightning.recipes.photographs import bundled_photographs

    nets, images = (LPIPS(name), LPIPS(teacher, weights=real_weights)), []
    for path in bundled_photographs().values():
        image = read_image(path)[None, :, :160, :160]
        images.append([image])
        for size in (10, 20, 40, 80, 120):
            small = torch.nn.functional.interpolate(image.float(), size, mode="bicubic", antialias=True)
            images[-1].append(torch.nn.functional.interpolate(small, 160, mode="bicubic").clamp(0, 255).byte())
        for strength in (4, 12, 40):
            noise = strength * torch.randn(image.shape)
            images[-1].append((image + noise).clamp(0, 255).byte())
    assert sum(len(worse) for _, *worse in images) >= 40
    ours, theirs = (torch.cat([net.pairwise(x, torch.cat(worse))[0] for x, *worse in images]) for net in nets)
    assert float(spearman_corrcoef(ours, theirs)) > 0.97
    assert float(ours.mean() / theirs.mean()) == pytest.approx(1, abs=0.1)


def optimized(loss, start, target):
    """Pixels after 100 steps of Adam on the loss."""
    pixels = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([pixels], lr=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100)
    for _ in range(100):
        optimizer.zero_grad()
        loss(pixels, target).backward()
        optimizer.step()
        schedule.step()
    return pixels.detach().clamp(0, 1)


@pytest.fixture
def judged_ends(real_weights):
    """judged_ends(teacher, nets): the teacher's distances of blurred photographs, and of what losses make of them."""
    from lpips_lightning.io.image_files import read_image
    from lpips_lightning.recipes.photographs import bundled_photographs

    target = torch.stack([read_image(path)[:, 100:164, 100:164] / 255 for path in bundled_photographs().values()])
    small = torch.nn.functional.avg_pool2d(target, 4)
    start = torch.nn.functional.interpolate(small, scale_factor=4, mode="bicubic").clamp(0, 1)

    def judged(teacher, nets):
        judge = LPIPS(teacher, weights=real_weights)
        weights = {net: None if net in RECORDED else real_weights for net in nets}
        losses = [PerceptualLoss(net, data_range=(0, 1), weights=weights[net]) for net in nets]
        ends = [start, *(optimized(loss, start, target) for loss in losses)]
        return [float(judge(images, target, data_range=(0, 1)).mean()) for images in ends]

    return judged


@pytest.mark.real
@pytest.mark.parametrize(("name", "teacher", "most"), [("embedded", "alex", 0.6), ("embedded-vgg", "vgg", 0.9)])
def test_as_a_loss_it_lowers_its_teacher(name, teacher, most, judged_ends):
    start, end = judged_ends(teacher, [name])
    assert end < most * start


@pytest.mark.slow
@pytest.mark.real
def test_as_a_loss_embedded_vgg_lowers_vgg_more_than_squeeze_and_alex_do(judged_ends):
    _, lowered, *others = judged_ends("vgg", ["embedded-vgg", "squeeze", "alex"])
    assert lowered < 0.8 * min(others)
