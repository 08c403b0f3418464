"""Procedural images, crops and groups of altered versions."""

import pytest
import torch

from lpips_lightning.data.crops import crops
from lpips_lightning.recipes.distillation_augmentations import ALTERATIONS, altered, procedural, vary


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def images():
    return procedural(6, 48, seeded(4))


def test_procedural_images_are_varied_and_in_range():
    made = procedural(24, 40, seeded())
    assert made.shape == (24, 3, 40, 40)
    assert made.isfinite().all()
    assert made.min() >= 0
    assert made.max() <= 1
    assert (made.std(dim=(1, 2, 3)) > 0.02).float().mean() > 0.9
    assert torch.equal(made, procedural(24, 40, seeded()))


def test_crops_have_several_scales_and_stay_inside_the_image():
    ramp = torch.arange(200).to(torch.uint8).expand(3, 150, 200)
    found = crops([ramp], 30, 32, seeded())
    assert found.shape == (30, 3, 32, 32)
    steps = (found[:, 0, 16].diff(dim=-1) * 255).mean(-1)  # image pixels in a crop's pixel
    assert steps.min() < 0.95
    assert steps.max() > 2
    assert steps.max() <= 3.05


def test_crops_of_an_image_smaller_than_the_size_are_enlarged():
    small = torch.randint(0, 256, (3, 20, 30), dtype=torch.uint8)
    assert crops([small], 3, 32, seeded()).shape == (3, 3, 32, 32)


@pytest.mark.parametrize("name", ALTERATIONS)
def test_alterations_follow_seed_and_strength_and_stay_in_range(name, images):
    def ladder(seed):
        strengths = (0.0, 0.3, 0.6, 1.0)
        return [altered(name, images, torch.full((6,), strength), seeded(seed)) for strength in strengths]

    rungs = ladder(1)
    assert all(torch.equal(one, two) for one, two in zip(rungs, ladder(1), strict=True))
    assert (rungs[0] - images).abs().max() < 1e-5
    damage = torch.stack([(rung - images).square().mean((1, 2, 3)) for rung in rungs])
    assert (damage.diff(dim=0) >= -1e-3).float().mean() > 0.9
    assert damage[-1].mean() > 1e-4
    assert all(rung.min() >= 0 and rung.max() <= 1 for rung in rungs)


def test_groups_begin_with_the_image_and_follow_the_seed(images):
    seen = 0
    for seed in range(30):
        group = vary(images, 3, seeded(seed))
        assert group.shape == (6, 4, 3, 48, 48)
        assert group.dtype == torch.uint8
        assert torch.equal(group[:, 0], (images * 255).round().to(torch.uint8))
        assert torch.equal(group, vary(images, 3, seeded(seed)))
        seen += int((group[:, 1:] != group[:, :1]).flatten(2).any(2).sum())
    assert seen > 0.8 * 30 * 6 * 3  # a few versions are below one gray level
