"""Properties over shapes, ranges and dtypes, by hypothesis."""

from __future__ import annotations

from itertools import pairwise

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lpips_lightning import LPIPS, LearnedPerceptualImagePatchSimilarity, PerceptualLoss

RELAXED = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
SHAPES = st.tuples(st.integers(1, 4), st.integers(31, 56), st.integers(31, 56))
RANGES = st.sampled_from([(-1.0, 1.0), (0.0, 1.0), (0.0, 255.0), (-0.5, 0.5), (2.0, 5.0)])
DTYPES = st.sampled_from([torch.float32, torch.float64])


def _images(shape, data_range, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    low, high = data_range
    batch, height, width = shape
    # Down to the range's ends, so that the range is believed.
    images = torch.rand(2, batch, 3, height, width, generator=generator, dtype=torch.float64)
    return (low + (high - low) * images).clamp(low, high).to(dtype)


@RELAXED
@given(shape=SHAPES, data_range=RANGES, dtype=DTYPES, seed=st.integers(0, 99))
def test_distance_properties_hold_for_any_shape_range_and_dtype(shape, data_range, dtype, seed):
    net = LPIPS("embedded")
    x, y = _images(shape, data_range, dtype, seed)
    distance = net(x, y, data_range=data_range)
    assert distance.shape == shape[:1]
    assert distance.dtype == dtype
    assert bool((distance > 0).all())
    tolerance = {"rtol": 2e-5} if dtype == torch.float32 else {"rtol": 1e-9}
    assert torch.allclose(net(y, x, data_range=data_range), distance, **tolerance)
    assert torch.equal(net(x, x.clone(), data_range=data_range), torch.zeros_like(distance))
    singles = torch.cat([net(x[i : i + 1], y[i : i + 1], data_range=data_range) for i in range(len(x))])
    assert torch.allclose(singles, distance, **tolerance)
    low, high = data_range
    standard = ((image.double() - low) * (2 / (high - low)) - 1 for image in (x, y))
    assert torch.allclose(net(*standard).to(dtype), distance, rtol=1e-4)


@RELAXED
@given(shape=SHAPES, seed=st.integers(0, 99), cuts=st.sets(st.integers(1, 5)), empty=st.booleans())
def test_a_metric_is_independent_of_the_split(shape, seed, cuts, empty):
    x, y = _images((6, *shape[1:]), (-1.0, 1.0), torch.float32, seed)
    whole = LPIPS("embedded")(x, y).double().mean()
    metric = LearnedPerceptualImagePatchSimilarity("embedded")
    edges = [0, *sorted(cuts), 6]
    split = [end - start for start, end in pairwise(edges)] + [0] * empty
    for part_x, part_y in zip(x.split(split), y.split(split), strict=True):
        metric.update(part_x, part_y)
    assert abs(float(metric.compute()) - float(whole)) < 1e-6


@RELAXED
@given(shape=SHAPES, seed=st.integers(0, 99))
def test_a_gradient_step_lowers_the_loss(shape, seed):
    x, y = _images(shape, (-1.0, 1.0), torch.float64, seed)
    x = (0.9 * x).requires_grad_()
    loss = PerceptualLoss("embedded", data_range=(-1, 1), reduction="sum")
    value = loss(x, y)
    value.backward()
    step = 1e-6 * x.grad / x.grad.norm()
    fallen = float(value.detach()) - float(loss(x.detach() - step, y))
    assert 0.9 < fallen / (1e-6 * float(x.grad.norm())) < 1.1


@RELAXED
@given(shape=SHAPES, seed=st.integers(0, 99), box=st.tuples(*[st.integers(0, 30)] * 2, *[st.integers(1, 31)] * 2))
def test_a_mask_gives_a_mean_between_the_extremes_of_the_map(shape, seed, box):
    net = LPIPS("embedded")
    x, y = _images(shape, (-1.0, 1.0), torch.float64, seed)
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[:, box[0] : box[0] + box[2], box[1] : box[1] + box[3]] = True
    inside, outside = (net(x, y, mask=m, per_layer=True) for m in (mask, ~mask))
    everywhere = net(x, y, per_layer=True)
    for layer, mean in everywhere.items():
        low, high = torch.minimum(inside[layer], outside[layer]), torch.maximum(inside[layer], outside[layer])
        assert bool(((mean > low - 1e-9) & (mean < high + 1e-9)).all())
