"""Lab composition, gamut, CIEDE2000 and colorfulness."""

from __future__ import annotations

import math

import pytest
import torch
from torchmetrics import MetricCollection

from lpips_lightning.recipes.colors import (
    ColorDifference,
    Colorfulness,
    ciede2000,
    colorfulness,
    compose,
    into_gamut,
    split_lab,
)

# Table 1 of Sharma, Wu and Dalal 2005: two colors in Lab, and their difference.
SHARMA = """
50.0000   2.6772 -79.7751  50.0000   0.0000 -82.7485   2.0425
50.0000   3.1571 -77.2803  50.0000   0.0000 -82.7485   2.8615
50.0000   2.8361 -74.0200  50.0000   0.0000 -82.7485   3.4412
50.0000  -1.3802 -84.2814  50.0000   0.0000 -82.7485   1.0000
50.0000  -1.1848 -84.8006  50.0000   0.0000 -82.7485   1.0000
50.0000  -0.9009 -85.5211  50.0000   0.0000 -82.7485   1.0000
50.0000   0.0000   0.0000  50.0000  -1.0000   2.0000   2.3669
50.0000  -1.0000   2.0000  50.0000   0.0000   0.0000   2.3669
50.0000   2.4900  -0.0010  50.0000  -2.4900   0.0009   7.1792
50.0000   2.4900  -0.0010  50.0000  -2.4900   0.0010   7.1792
50.0000   2.4900  -0.0010  50.0000  -2.4900   0.0011   7.2195
50.0000   2.4900  -0.0010  50.0000  -2.4900   0.0012   7.2195
50.0000  -0.0010   2.4900  50.0000   0.0009  -2.4900   4.8045
50.0000  -0.0010   2.4900  50.0000   0.0010  -2.4900   4.8045
50.0000  -0.0010   2.4900  50.0000   0.0011  -2.4900   4.7461
50.0000   2.5000   0.0000  50.0000   0.0000  -2.5000   4.3065
50.0000   2.5000   0.0000  73.0000  25.0000 -18.0000  27.1492
50.0000   2.5000   0.0000  61.0000  -5.0000  29.0000  22.8977
50.0000   2.5000   0.0000  56.0000 -27.0000  -3.0000  31.9030
50.0000   2.5000   0.0000  58.0000  24.0000  15.0000  19.4535
50.0000   2.5000   0.0000  50.0000   3.1736   0.5854   1.0000
50.0000   2.5000   0.0000  50.0000   3.2972   0.0000   1.0000
50.0000   2.5000   0.0000  50.0000   1.8634   0.5757   1.0000
50.0000   2.5000   0.0000  50.0000   3.2592   0.3350   1.0000
60.2574 -34.0099  36.2677  60.4626 -34.1751  39.4387   1.2644
63.0109 -31.0961  -5.8663  62.8187 -29.7946  -4.0864   1.2630
61.2901   3.7196  -5.3901  61.4292   2.2480  -4.9620   1.8731
35.0831 -44.1164   3.7933  35.0232 -40.0716   1.5901   1.8645
22.7233  20.0904 -46.6940  23.0331  14.9730 -42.5619   2.0373
36.4612  47.8580  18.3852  36.2715  50.5065  21.2231   1.4146
90.8027  -2.0831   1.4410  91.1528  -1.6435   0.0447   1.4441
90.9257  -0.5406  -0.9208  88.6381  -0.8985  -0.7239   1.5381
 6.7747  -0.2908  -2.4247   5.8714  -0.0985  -2.2286   0.6377
 2.0776   0.0795  -1.1350   0.9033  -0.0636  -0.5514   0.9082
"""


def lab_grid(dtype=torch.float32):
    """Every L from black to white with every a and b in and out of gamut: ``(1, 1, ...)`` and ``(1, 2, ...)``."""
    steps = [torch.linspace(low, high, 21, dtype=dtype) for low, high in ((0, 100), (-120, 120), (-120, 120))]
    grid = torch.cartesian_prod(*steps).T.reshape(1, 3, 21, 441)
    return grid[:, :1], grid[:, 1:]


@pytest.fixture
def images():
    """Predictions and targets of seven images."""
    return torch.rand(2, 7, 3, 12, 10)


def test_ciede2000_gives_the_published_differences_of_the_published_pairs():
    numbers = [[float(number) for number in line.split()] for line in SHARMA.strip().split("\n")]
    rows = torch.tensor(numbers, dtype=torch.float64)
    assert rows.shape == (34, 7)
    first, second = (rows[:, part].T.reshape(1, 3, 34, 1) for part in (slice(0, 3), slice(3, 6)))
    for one, other in ((first, second), (second, first)):
        assert (ciede2000(one, other).flatten() - rows[:, 6]).abs().max() < 6e-5


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-3)])
def test_ciede2000_agrees_with_scikit_image(dtype, tolerance):
    try:
        from skimage.color import deltaE_ciede2000
    except (ImportError, ValueError) as error:  # built for another NumPy, as beside the lowest one
        pytest.skip(f"scikit-image cannot be imported: {error}")
    generator = torch.Generator().manual_seed(0)
    scale, shift = (torch.tensor(values, dtype=dtype).view(3, 1, 1) for values in ([100, 200, 200], [0, -100, -100]))
    colors = torch.rand(2, 3, 60, 60, generator=generator, dtype=dtype) * scale + shift
    colors[0, 1:, 0], colors[1, 1:, :, 0] = 0, 0  # some are gray
    expected = deltaE_ciede2000(*(one.permute(1, 2, 0).double().numpy() for one in colors))
    assert (ciede2000(colors[:1], colors[1:])[0].double() - torch.from_numpy(expected)).abs().max() < tolerance


def test_colorfulness_matches_slow_loops():
    images = torch.rand(2, 3, 5, 4, dtype=torch.float64)
    for image, found in zip(images, colorfulness(images), strict=True):
        rg, yb = [], []
        for y in range(5):
            for x in range(4):
                red, green, blue = (255 * float(value) for value in image[:, y, x])
                rg.append(red - green)
                yb.append(0.5 * (red + green) - blue)
        means = [sum(values) / 20 for values in (rg, yb)]
        variances = [sum((v - m) ** 2 for v in vs) / 20 for vs, m in zip((rg, yb), means, strict=True)]
        assert float(found) == pytest.approx(math.sqrt(sum(variances)) + 0.3 * math.hypot(*means), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_splitting_and_composing_restores_the_image(dtype):
    images = torch.rand(2, 3, 8, 9, dtype=dtype)
    images[0, :, 0], images[0, :, 1] = 0, 1
    again = compose(*split_lab(images))
    assert again.dtype == dtype
    assert (again - images).abs().max() < 1e-4  # the two matrices of kornia are each other's inverse to five digits


def test_lab_is_exact_under_autocast():
    images = torch.rand(2, 3, 8, 8)
    expected = split_lab(images)
    with torch.autocast("cpu", torch.bfloat16):
        found = split_lab(images)
        again = compose(*found)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert again.dtype == torch.float32
    assert torch.equal(again, compose(*expected))


def test_images_of_bytes_are_refused():
    with pytest.raises(TypeError, match=r"images: expected a floating dtype with range \[0, 1\], got torch.uint8"):
        split_lab(torch.zeros(1, 3, 4, 4, dtype=torch.uint8))


def test_gradients_are_finite_for_black_white_and_colors_outside_srgb():
    lightness, ab = lab_grid()
    ab.requires_grad_()
    compose(lightness, ab).clamp(0, 1).sum().backward()
    assert ab.grad.isfinite().all()
    assert ab.grad.abs().max() > 0
    gray = torch.zeros_like(ab, requires_grad=True)
    compose(lightness, gray).square().sum().backward()
    assert gray.grad.isfinite().all()
    assert (gray.grad.abs().sum(1)[lightness[:, 0] > 1] > 0).all()  # a gray start is no dead end


def test_colors_are_moved_into_gamut_with_equal_lightness():
    lightness, ab = lab_grid()
    whole = compose(lightness, ab)
    shown = ((whole >= 0) & (whole <= 1)).all(1, keepdim=True)
    assert 0.1 < float(shown.float().mean()) < 0.5
    found = into_gamut(lightness, ab)
    assert torch.equal(found * shown, ab * shown)
    composed = compose(lightness, found)
    assert composed.min() > -1e-2
    assert composed.max() < 1 + 2e-3
    assert (split_lab(composed.clamp(0, 1))[0] - lightness).abs().max() < 0.3
    # Clipping red, green and blue instead would not keep it.
    assert (split_lab(whole.clamp(0, 1))[0] - lightness).abs().max() > 30


def test_colors_brought_into_gamut_are_the_most_saturated_of_their_hue():
    lightness, ab = lab_grid()
    found = into_gamut(lightness, ab)
    factor = found.norm(dim=1) / ab.norm(dim=1).clamp(min=1e-9)
    reduced = (factor < 1) & (ab.norm(dim=1) > 0)
    assert reduced.any()
    assert torch.allclose(found, factor[:, None] * ab, atol=1e-3)
    more = compose(lightness, ab * (factor + 0.02)[:, None])
    assert ((more < -1e-3) | (more > 1 + 1e-3)).any(1)[reduced].all()


def test_scores_are_means_over_images_for_any_batches(images):
    preds, target = images
    for sizes in ([7], [3, 4], [1, 0, 6], [1] * 7):
        metrics = [ColorDifference(), Colorfulness("preds"), Colorfulness("target"), Colorfulness("ratio")]
        for one, other in zip(preds.split(sizes), target.split(sizes), strict=True):
            for metric in metrics:
                metric.update(one, other)
        difference, color, truth, ratio = (float(metric.compute()) for metric in metrics)
        pair = (torch.cat(split_lab(batch), 1) for batch in (preds, target))
        assert difference == pytest.approx(float(ciede2000(*pair).mean()), rel=1e-5)
        assert color == pytest.approx(float(colorfulness(preds).mean()), rel=1e-5)
        assert truth == pytest.approx(float(colorfulness(target).mean()), rel=1e-5)
        assert ratio == pytest.approx(color / truth, rel=1e-5)


def test_a_collection_gives_the_single_scores_in_every_epoch(images):
    def alone():
        return {
            "difference": ColorDifference(),
            "preds": Colorfulness("preds"),
            "target": Colorfulness("target"),
            "ratio": Colorfulness("ratio"),
        }

    together = MetricCollection(alone())
    for epoch in range(2):
        metrics = alone()
        for preds, target in zip(*(batch.split([3, 4]) for batch in images + 0.1 * epoch), strict=True):
            together.update(preds, target)
            for metric in metrics.values():
                metric.update(preds, target)
        assert together.compute() == {name: metric.compute() for name, metric in metrics.items()}
        together.reset()


def test_gray_predictions_have_no_colorfulness():
    gray = torch.rand(2, 1, 8, 8).expand(-1, 3, -1, -1)
    metric = Colorfulness("ratio")
    metric.update(gray, torch.rand(2, 3, 8, 8))
    assert float(metric.compute()) < 1e-3


def test_unknown_of_is_refused():
    with pytest.raises(ValueError, match=r"of: expected one of \('preds', 'target', 'ratio'\), got 'truth'"):
        Colorfulness("truth")
