"""The teacher's answers: gradients, the replay of old answers, and images that the student optimizes."""

from __future__ import annotations

import pytest
import torch

from lpips_lightning.backbones.plain import Stage
from lpips_lightning.recipes.distillation_student import Student, pair_maps
from lpips_lightning.recipes.distillation_targets import (
    OptimizedGroups,
    Replay,
    Targets,
    answers,
    feature_error,
    gradient_error,
    gradient_of,
    weighted_features,
)


def groups(count=2, versions=2, side=24, seed=0):
    return torch.rand(count, 1 + versions, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def distances(student, images):
    versions = images.shape[1] - 1
    maps = pair_maps(student.encode(images.flatten(0, 1)), dict(student.calibration), versions)
    return torch.stack([m.mean((2, 3)) for m in maps]).sum(0)[:, :versions]


@pytest.fixture
def student():
    torch.manual_seed(0)
    return Student([Stage(8), Stage(8, pool=2, compared=False), Stage(12)])


def test_gradients_are_the_slope_of_the_distances(student):
    student = student.double()
    images = groups().double()
    found = answers(student.encode, dict(student.calibration), images, gradients=True)
    maps, gradient = found.maps, found.gradients
    direction = torch.randn_like(images)
    step = 1e-6
    with torch.no_grad():
        rise = (distances(student, images + step * direction) - distances(student, images - step * direction)).sum()
    assert float((gradient * direction).sum()) == pytest.approx(float(rise) / (2 * step), rel=1e-5)
    assert torch.equal(torch.stack([m.mean((2, 3)) for m in maps]).sum(0)[:, :2], distances(student, images).detach())
    assert not any(m.requires_grad for m in maps)


def test_a_student_learns_the_gradients_of_its_teacher(student):
    teacher = Student([Stage(8), Stage(8, pool=2, compared=False), Stage(12)]).requires_grad_(False)
    images = groups()
    target = answers(teacher.encode, dict(teacher.calibration), images, gradients=True).gradients
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-2)
    errors = []
    for _ in range(80):
        own = answers(student.encode, dict(student.calibration), images, gradients=True, create_graph=True)
        error = gradient_error(own.gradients, target)
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        errors.append(error.item())
    assert errors[-1] < 0.8 * errors[0]


def test_gradient_error_is_zero_for_equal_gradients_and_leaves_out_images_without_one():
    teacher = torch.randn(3, 1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert float(gradient_error(teacher, teacher)) == pytest.approx(0, abs=1e-5)
    assert float(gradient_error(-teacher, teacher)) == pytest.approx(1, rel=0.01)
    assert float(gradient_error(3 * teacher, teacher)) > 0.1
    teacher[0] = 0
    changed = teacher.clone()
    changed[0] = 1
    assert float(gradient_error(changed, teacher)) == pytest.approx(0, abs=1e-5)
    assert float(gradient_error(changed, torch.zeros_like(teacher))) == 0


def test_replay_returns_what_it_was_given_and_forgets_the_oldest():
    replay = Replay(pixels=5 * 3 * 24**2)  # five groups of three images
    for value in range(8):
        images = torch.full((1, 3, 3, 24, 24), float(value))
        replay.add(Targets(images, [torch.full((1, 3, 4, 4), value / 10)], 1e-6 * images))
    drawn = replay.draw(24, 200)
    assert len(drawn) == 200
    values = drawn.images[:, 0, 0, 0, 0]
    assert set(values.tolist()) == {3.0, 4.0, 5.0, 6.0, 7.0}
    torch.testing.assert_close(drawn.maps[0][:, 0, 0, 0], values / 10, rtol=1e-3, atol=0)
    torch.testing.assert_close(drawn.gradients[:, 0, 0, 0, 0], 1e-6 * values, rtol=4e-3, atol=0)


def test_replay_without_gradients_has_none():
    replay = Replay(pixels=10**6)
    replay.add(Targets(groups(), [torch.rand(2, 3, 4, 4)]))
    assert replay.draw(24, 3).gradients is None


def test_optimized_groups_approach_their_image_in_the_students_eyes(student):
    def gradient(images):
        return gradient_of(student.encode, dict(student.calibration), images)

    fresh = groups(1)
    optimized = OptimizedGroups(1, steps=30, rates=(0.03, 0.03))
    seen = [optimized.advance(fresh, gradient) for _ in range(30)]
    assert all(torch.equal(group[:, 0], fresh[:, 0]) for group in seen)
    first, last = (distances(student, seen[index]).detach() for index in (0, -1))
    assert (last < 0.6 * first).all()
    assert all(fresh.amin() <= group.amin() and group.amax() <= fresh.amax() for group in seen)
    again = optimized.advance(fresh, gradient)  # a new group
    assert (distances(student, again).detach() > last).all()
    assert not torch.equal(again[:, -1], fresh[:, -1])  # from noise


def test_groups_take_turns_and_end_at_different_times(student):
    fresh = iter([groups(1, seed=seed) for seed in range(40)])
    optimized = OptimizedGroups(3, steps=5)
    references = [optimized.advance(next(fresh), torch.zeros_like)[0, 0, 0, 0, 0].item() for _ in range(12)]
    assert len(set(references)) > 4


def test_weighted_features_differ_by_the_distance_and_a_linear_map_of_them_is_no_error(student):
    images = groups(1, versions=1).flatten(0, 1)
    features = student.encode(images)
    weighted = weighted_features(features, dict(student.calibration))
    maps = pair_maps(features, dict(student.calibration), 1)
    for values, distance in zip(weighted, maps, strict=True):
        torch.testing.assert_close((values[0] - values[1]).square().sum(0), distance[0, 0])
    assert float(feature_error(weighted, weighted).detach()) == 0
    means = [values.mean((0, 2, 3), keepdim=True).expand_as(values) for values in weighted]
    assert float(feature_error(means, weighted).detach()) == pytest.approx(1, rel=1e-5)
