"""Random transformations of images: what they do to pixels, masks and maps."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
import torch

from lpips_lightning.images import BoxDownscale, ChannelGains, ChannelPermutation, Flip, Shift, Transpose
from lpips_lightning.images.random_transforms import NAMED

IMAGES = torch.rand(2, 3, 20, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
BOX = BoxDownscale(4, 5)


def draws(transform, count=200):
    generator = Random(0)
    for _ in range(count):
        yield [generator.random() for _ in range(transform.amount(3))]


def test_shift_moves_and_reflects():
    low, high = Counter(), Counter()
    for numbers in draws(Shift(-3, 3)):
        found = Shift(-3, 3).apply(IMAGES, numbers)
        down, right = Shift(-3, 3)._pixels(numbers)
        low[down], high[right] = low[down] + 1, high[right] + 1
        assert found.shape == IMAGES.shape
        for row in range(20):
            source = row - down
            source = -source if source < 0 else 38 - source if source > 19 else source
            columns = [-c if c < 0 else 46 - c if c > 23 else c for c in (c - right for c in range(24))]
            assert torch.equal(found[:, :, row], IMAGES[:, :, source, columns])
    assert sorted(low) == sorted(high) == list(range(-3, 4)), "every shift is drawn"


def test_channel_gains_and_permutations():
    orders = Counter()
    for numbers in draws(ChannelGains()):
        ratios = ChannelGains(0.2, 1.0).apply(IMAGES, numbers) / IMAGES
        expected = torch.tensor([0.2 + 0.8 * number for number in numbers], dtype=torch.float64)
        assert torch.allclose(ratios, expected.view(3, 1, 1).expand_as(ratios))
        found = ChannelPermutation().apply(IMAGES, numbers)
        orders[tuple(next(c for c in range(3) if torch.equal(one, IMAGES[0, c])) for one in found[0])] += 1
    assert len(orders) == 6 and min(orders.values()) > 10


def test_flips_and_transposition():
    seen = set()
    for numbers in draws(Flip(), 20):
        dims = [dim for dim, number in zip((3, 2), numbers, strict=True) if number < 0.5]
        seen.add(tuple(dims))
        assert torch.equal(Flip().apply(IMAGES, numbers), IMAGES.flip(dims))
    assert len(seen) == 4
    assert torch.equal(Transpose().apply(IMAGES, [0.4]), IMAGES.mT)
    assert Transpose().apply(IMAGES, [0.6]) is IMAGES


def test_box_downscale_is_the_mean_of_boxes_drawn_by_one_over_the_square():
    drawn = Counter()
    for (number,) in draws(BOX, 2000):
        found = BOX.apply(IMAGES, [number])
        factor = -(-20 // found.shape[2])
        drawn[factor] += 1
        if drawn[factor] > 1:
            continue
        for row in range(found.shape[2]):
            for column in range(found.shape[3]):
                box = IMAGES[:, :, row * factor : (row + 1) * factor, column * factor : (column + 1) * factor]
                assert torch.allclose(found[:, :, row, column], box.mean((2, 3)))
    total = sum(1 / factor**2 for factor in range(1, 5))
    assert sorted(drawn) == [1, 2, 3, 4]
    for factor, count in drawn.items():
        assert count / 2000 == pytest.approx(1 / factor**2 / total, abs=0.03)


def test_small_images_are_not_reduced_below_the_least_side():
    assert all(BoxDownscale(8, 64).apply(torch.rand(1, 3, 100, 127), numbers).shape[2] >= 64 for numbers in draws(BOX))
    assert {tuple(BoxDownscale(8, 64).apply(torch.rand(1, 3, 128, 200), n).shape[2:]) for n in draws(BOX)} == {
        (128, 200),
        (64, 100),
    }


@pytest.mark.parametrize("transform", [Shift(), Shift(-7, 7), Flip(), Transpose(), BOX], ids=repr)
def test_maps_come_back_to_the_pixels(transform):
    where = torch.zeros(1, 1, 20, 24, dtype=torch.float64)
    where[..., 8:12, 8:12] = 1  # an incomplete box, or what leaves the image, is elsewhere
    for numbers in draws(transform, 50):
        moved = transform.apply(where, numbers)
        back = transform.restore(moved, numbers, (20, 24))
        assert back.shape == where.shape
        if not isinstance(transform, BoxDownscale) or moved.shape == where.shape:
            assert torch.equal(back[..., 7:13, 7:13], where[..., 7:13, 7:13])
        else:
            assert torch.allclose(transform.apply(back, numbers), moved)


@pytest.mark.parametrize("transform", NAMED["elpips"], ids=repr)
def test_gradients(transform):
    for numbers in draws(transform, 2):
        small = IMAGES[:1, :, :9, :10].clone().requires_grad_()
        assert torch.autograd.gradcheck(lambda x, n=numbers: transform.apply(x, n), small)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Shift(3, 1), "Shift: expected whole numbers of pixels low <= high, got 3, 1"),
        (lambda: Shift(0.5, 1), "Shift: expected whole numbers"),
        (lambda: Flip(1.5), r"Flip: expected a probability on \[0, 1\], got 1.5"),
        (lambda: Transpose(True), "Transpose: expected a probability"),
        (lambda: ChannelGains(0, 1), "ChannelGains: expected factors 0 < low <= high <= 1, got 0, 1"),
        (lambda: ChannelGains(0.5, 2.0), "ChannelGains: expected factors"),
        (lambda: BoxDownscale(0), "BoxDownscale: expected a whole number most >= 1, got 0"),
        (lambda: BoxDownscale(2, 1.5), "BoxDownscale: expected a whole number least_side >= 1, got 1.5"),
        (lambda: Shift().apply(torch.zeros(1, 3, 7, 30), [0, 0]), "expected images with sides above 7, got 7x30"),
    ],
)
def test_bad_values_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
