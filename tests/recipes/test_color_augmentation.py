"""Changes of the colors of training images that keep their lightness."""

from __future__ import annotations

import pytest
import torch

from lpips_lightning.recipes.color_augmentation import ColorAugmentation, limit_colorfulness
from lpips_lightning.recipes.colors import colorfulness, compose, split_lab


def photographs(count=2, size=24):
    """Smooth images with moderate colors, and all lightnesses."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 4, 5, generator=generator)
    gray = coarse.mean(1, keepdim=True)
    return torch.nn.functional.interpolate(gray + 0.5 * (coarse - gray), size=(size, size), mode="bilinear").clamp(0, 1)


def hue(images):
    _, ab = split_lab(images)
    return torch.atan2(ab[:, 1], ab[:, 0])


def test_augmentation_changes_colors_and_keeps_lightness():
    torch.manual_seed(0)
    images = photographs(8)
    changed = ColorAugmentation(hue=60, saturation=1.0, tint=20)(images)
    assert changed.shape == images.shape
    assert changed.dtype == images.dtype
    assert 0 <= changed.min() <= changed.max() <= 1
    (lightness, ab), (lightness_after, ab_after) = split_lab(images), split_lab(changed)
    assert (lightness - lightness_after).abs().max() < 0.3
    assert ((ab - ab_after).abs().mean((1, 2, 3)) > 1).all()


def test_images_of_a_batch_change_differently_and_by_the_seed():
    one = photographs(1)
    batch = one.expand(3, -1, -1, -1)
    torch.manual_seed(1)
    first = ColorAugmentation()(batch)
    assert len({float(image.sum()) for image in first}) == 3
    torch.manual_seed(1)
    assert torch.equal(ColorAugmentation()(batch), first)


def test_hue_turns_by_at_most_the_given_angle():
    torch.manual_seed(0)
    images = photographs(1).expand(40, -1, -1, -1)
    turned = hue(ColorAugmentation(hue=10, saturation=0, tint=0)(images)) - hue(images)
    turned = (turned + torch.pi) % (2 * torch.pi) - torch.pi
    chroma = split_lab(images)[1].norm(dim=1)
    angles = torch.rad2deg(turned[:, chroma[0] > 10]).mean(1)
    assert angles.abs().max() < 10.5
    assert angles.min() < -7 and angles.max() > 7


def test_saturation_is_multiplied():
    torch.manual_seed(0)
    images = photographs(1).expand(40, -1, -1, -1)
    made = ColorAugmentation(hue=0, saturation=0.3, tint=0)(images)
    factors = split_lab(made)[1].norm(dim=1).mean((1, 2)) / split_lab(images)[1].norm(dim=1).mean((1, 2))
    assert 0.73 < factors.min() < 0.8
    assert 1.25 < factors.max() < 1.36


def test_a_tint_is_largest_on_white_and_none_on_black():
    torch.manual_seed(0)
    levels = torch.tensor([0.0, 25.0, 50.0, 75.0])
    gray = compose(levels.view(1, 1, 1, 4), torch.zeros(1, 2, 1, 4)).clamp(0, 1).expand(500, -1, -1, -1)
    _, ab = split_lab(ColorAugmentation(hue=0, saturation=0, tint=4)(gray))
    deviation = ab.std((0, 1)).flatten()
    torch.testing.assert_close(deviation, 4 * levels / 100, atol=0.25, rtol=0)


def test_nothing_changes_without_jitter():
    images = photographs()
    assert (ColorAugmentation(hue=0, saturation=0, tint=0)(images) - images).abs().max() < 1e-3


def test_only_images_above_the_limit_lose_saturation():
    pale = 0.5 + 0.1 * (photographs(1) - 0.5)
    garish = torch.rand(1, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    assert colorfulness(pale) < 45 < colorfulness(garish)
    limited = limit_colorfulness(torch.cat([pale, garish]), 45)
    assert torch.equal(limited[0], pale[0])
    assert float(colorfulness(limited)[1]) == pytest.approx(45, rel=0.15)
    assert (split_lab(limited)[0] - split_lab(torch.cat([pale, garish]))[0]).abs().max() < 0.3


@pytest.mark.parametrize("argument", ["hue", "saturation", "tint"])
@pytest.mark.parametrize("value", [-1, float("nan"), float("inf")])
def test_jitter_that_is_negative_or_not_finite_is_refused(argument, value):
    with pytest.raises(ValueError, match=f"{argument}_jitter: expected a finite number of at least 0, got {value}"):
        ColorAugmentation(**{argument: value})
