"""The protocol of superresolution: luma, border, PSNR and SSIM against slow loops, and published scores."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
import torch

from lpips_lightning.functional.luma import luma, luma_scores
from lpips_lightning.io.image_files import find_images, read_image
from lpips_lightning.recipes.superresolution import upscale
from lpips_lightning.recipes.superresolution_data import crop_to_multiple, downscale

IMAGES = Path(os.environ.get("LPIPS_LIGHTNING_DATA", "nowhere")) / "images"


def slow_luma(image):
    """Rows of integers, from an image (3, H, W) on [0, 1], pixel by pixel."""
    rows = []
    for y in range(image.shape[1]):
        row = []
        for x in range(image.shape[2]):
            r, g, b = (min(max(round(255 * float(image[c, y, x])), 0), 255) / 255 for c in range(3))
            row.append(round(16 + 65.481 * r + 128.553 * g + 24.966 * b))
        rows.append(row)
    return rows


def slow_scores(pred, target, border):
    """PSNR and SSIM of two images as in the paper of Wang et al. 2004, equation 13, in loops."""
    one, two = ([row[border:-border] for row in slow_luma(image)[border:-border]] for image in (pred, target))
    height, width = len(one), len(one[0])
    error = sum((one[y][x] - two[y][x]) ** 2 for y in range(height) for x in range(width)) / (height * width)
    bell = [math.exp(-((i - 5) ** 2) / (2 * 1.5**2)) for i in range(11)]
    window = [[a * b / sum(bell) ** 2 for b in bell] for a in bell]
    c1, c2, values = (0.01 * 255) ** 2, (0.03 * 255) ** 2, []
    for top in range(height - 10):
        for left in range(width - 10):
            places = [(y, x, window[y][x]) for y in range(11) for x in range(11)]
            mean = [sum(w * p[top + y][left + x] for y, x, w in places) for p in (one, two)]
            square = [
                sum(w * (p[top + y][left + x] - m) ** 2 for y, x, w in places)
                for p, m in zip((one, two), mean, strict=True)
            ]
            both = sum(
                w * (one[top + y][left + x] - mean[0]) * (two[top + y][left + x] - mean[1]) for y, x, w in places
            )
            structure = (2 * mean[0] * mean[1] + c1) * (2 * both + c2)
            values.append(structure / ((mean[0] ** 2 + mean[1] ** 2 + c1) * (sum(square) + c2)))
    return 10 * math.log10(255**2 / error), sum(values) / len(values)


@pytest.mark.parametrize("border", [2, 4])
def test_scores_match_slow_loops(border):
    target = torch.rand(2, 3, 24, 21)
    pred = (target + 0.2 * torch.randn(2, 3, 24, 21)).clamp(-0.01, 1.01)
    psnr, ssim = luma_scores(pred, target, border)
    for index in range(2):
        slow = slow_scores(pred[index], target[index], border)
        assert (float(psnr[index]), float(ssim[index])) == pytest.approx(
            slow, rel=1e-7
        )  # torchmetrics' logarithms are float32


def test_the_border_is_ignored():
    target = torch.rand(1, 3, 24, 24)
    pred = (0.9 * target).clone()
    other = pred.clone()
    other[..., :3, :] = other[..., -3:, :] = other[..., :3] = other[..., -3:] = 0
    for one, two in zip(luma_scores(pred, target, 3), luma_scores(other, target, 3), strict=True):
        assert torch.equal(one, two)
    assert luma_scores(other, target, 2)[0] < luma_scores(pred, target, 2)[0]


def test_luma_of_primaries_matches_matlab():
    primaries = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1], [2, 2, 2]]).view(6, 3, 1, 1)
    assert luma(primaries).flatten().tolist() == [16, 81, 145, 41, 235, 235]


@pytest.mark.parametrize(
    ("shape", "border", "message"),
    [
        ((1, 3, 24, 24), 7, "border: expected to leave at least 11 pixels, SSIM's window, got 7 at each side of 24x24"),
        ((1, 3, 24, 20), 2, r"pred: expected the target's shape \(1, 3, 24, 24\), got \(1, 3, 24, 20\)"),
    ],
)
def test_bad_input_is_refused(shape, border, message):
    with pytest.raises(ValueError, match=message):
        luma_scores(torch.rand(shape), torch.rand(1, 3, 24, 24), border)


# Bicubic in Kim et al. 2016 (VDSR, arXiv:1511.04587), table 3.
@pytest.mark.parametrize(
    ("scale", "published"), [(2, (33.66, 0.9299)), (3, (30.39, 0.8682)), (4, (28.42, 0.8104))], ids=["x2", "x3", "x4"]
)
def test_bicubic_on_set5_has_the_published_scores(scale, published):
    if not (IMAGES / "Set5").is_dir():
        pytest.skip("LPIPS_LIGHTNING_DATA does not name a folder with images/Set5")
    scores = []
    for file in find_images(IMAGES / "Set5").values():
        high = crop_to_multiple(read_image(file)[None] / 255, scale)
        scores.append(torch.cat(luma_scores(upscale(downscale(high, scale), scale), high, scale)))
    assert len(scores) == 5
    psnr, ssim = torch.stack(scores).mean(0).tolist()
    assert psnr == pytest.approx(published[0], abs=0.02)
    assert ssim == pytest.approx(published[1], abs=0.0005)
