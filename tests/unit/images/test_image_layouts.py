"""Batches of every layout, dtype and origin: the number, and the gradient, of plain contiguous float32 tensors."""

from __future__ import annotations

import math

import pytest
import torch
from entry_points import FACES, LOSS, NET, ONE_SIDED, SAME, SIDE, X, Y, by_diversity, gradients, plain
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lpips_lightning import PerceptualLoss

SIDES = [(name, which) for name in SAME for which in ("x", "y", "both") if which == "both" or name in ONE_SIDED]


@pytest.mark.parametrize(("name", "which"), SIDES)
def test_the_right_number_through_every_face(name, which):
    x = SAME[name](X) if which != "y" else X.clone()
    y = SAME[name](Y) if which != "x" else Y.clone()
    before = plain(x), plain(y)
    right = NET(*before)
    for face, call in FACES.items():
        found = call(x, y).detach().as_subclass(torch.Tensor)
        assert found.shape == (len(x),), face
        torch.testing.assert_close(found.float(), right, rtol=2e-5, atol=1e-7, msg=face)
        assert torch.equal(plain(x), before[0]) and torch.equal(plain(y), before[1]), face
    if which == "both" and len(x):
        found = by_diversity(x.as_subclass(torch.Tensor), y.as_subclass(torch.Tensor))
        torch.testing.assert_close(found, right.mean(), rtol=2e-5, atol=1e-7)


LAYOUTS = [name for name in ONE_SIDED if not name.startswith(("uint8", "of inference", "over by"))]
FLAT = {"expanded from one number", "one row in memory, as_strided", "all zero", "an efficient zero", "minus zero"}
FLAT |= {"nearly zero", "all on the border"}


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_gradients_reach_what_the_tensor_is_made_of(name):
    """d loss / d base, where the images are a view, copy or cast of the base."""
    for images, other, place in ((X, Y, 0), (Y, X, 1)):
        base = images.clone().requires_grad_()
        with torch.no_grad():
            values = SAME[name](images)
        if name in FLAT or values.requires_grad or "NumPy" in name or name in ("detached", "window of a larger tensor"):
            made, base = values.detach().clone().requires_grad_(), None
            base = made
        else:
            made = SAME[name](base)
        pair = (made, other) if place == 0 else (other, made)
        LOSS(*pair).sum().backward()
        clone = images.clone().requires_grad_()
        slope = gradients(*((values, other) if place == 0 else (other, values)))[place]
        if base is made:
            right = slope.to(made.dtype)
        else:
            right = torch.autograd.grad(SAME[name](clone), clone, slope.to(values.dtype).as_subclass(type(values)))[0]
        tolerance = {torch.float16: 1e-2, torch.bfloat16: 2e-2}.get(values.dtype, 1e-4)
        found, right = (g.as_subclass(torch.Tensor).float() for g in (base.grad, right.detach()))
        assert float((found - right).norm()) <= tolerance * float(right.norm()) + 1e-6, place
        assert bool(found.isfinite().all())


def test_saturated_pixels_have_the_same_gradient_on_every_way():
    """At the ends of the range torch's clamp has derivative 1 up to some version, 0 after it."""
    x, y = (2 * X).clamp(-1, 1).double(), (2 * Y).clamp(-1, 1).double()
    right = gradients(x, y, torch.float64)
    assert float(right[0][x.abs() == 1].norm()) > 0.1 * float(right[0].norm())
    ways = {
        "distance": NET,
        "layers": lambda x, y: torch.stack(list(NET(x, y, per_layer=True).values())).sum(0),
        "mask": lambda x, y: NET(x, y, mask=torch.ones(2, SIDE, SIDE)),
        "features": lambda x, y: NET.distance(NET.encode(x), NET.encode(y)),
        "pairwise": lambda x, y: NET.pairwise(x, y).diagonal(),
        "loss": LOSS,
    }
    for name, way in ways.items():
        for wanted in ((True, False), (False, True), (True, True)):
            pair = [images.clone().requires_grad_(wants) for images, wants in zip((x, y), wanted, strict=True)]
            way(*pair).sum().backward()
            for images, slope in zip(pair, right, strict=True):
                if images.requires_grad:
                    torch.testing.assert_close(images.grad, slope, rtol=1e-6, atol=1e-10, msg=name)
    leaf = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(NET(leaf, y).sum(), leaf, create_graph=True)
    torch.testing.assert_close(slope.detach(), right[0], rtol=1e-6, atol=1e-10)
    over = (x * (1 + 1e-5)).requires_grad_()
    slopes = [torch.autograd.grad(ways[name](over, y).sum(), over)[0] for name in ("distance", "layers")]
    torch.testing.assert_close(*slopes, rtol=1e-6, atol=1e-10)
    torch.testing.assert_close(slopes[0], gradients(over.detach(), y, torch.float64)[0], rtol=1e-4, atol=1e-8)
    assert slopes[0][over.detach().abs() > 1].any()  # a prediction is not clamped


@pytest.mark.parametrize("wants", ["x", "y", "both", "neither"])
@pytest.mark.parametrize("options", [{}, {"spatial": True}, {"per_layer": True}], ids=["whole", "map", "layers"])
def test_who_wants_a_gradient_gets_it(wants, options):
    loss = PerceptualLoss("embedded", data_range=(-1, 1), reduction="sum", **options)
    x, y = X.clone().requires_grad_(wants in ("x", "both")), Y.clone().requires_grad_(wants in ("y", "both"))
    found = loss(x, y)
    found = sum(found.values()) if isinstance(found, dict) else found
    assert found.requires_grad == (wants != "neither")
    if wants != "neither":
        found.sum().backward()
    right = gradients(X, Y)
    if options.get("spatial"):
        a, b = X.clone().requires_grad_(), Y.clone().requires_grad_()
        right = torch.autograd.grad(NET(a, b, spatial=True).sum(), (a, b))
    for images, slope in zip((x, y), right, strict=True):
        assert (images.grad is None) == (not images.requires_grad)
        if images.requires_grad:
            torch.testing.assert_close(images.grad, slope, rtol=1e-4, atol=1e-7 + 1e-5 * float(slope.abs().max()))
    with torch.no_grad():
        silent = loss(x, y)
    assert not any(value.requires_grad for value in (silent.values() if isinstance(silent, dict) else [silent]))


@pytest.mark.parametrize("options", [{}, {"spatial": True}, {"per_layer": True}], ids=["whole", "map", "layers"])
def test_inference_tensors_serve_as_targets_and_are_refused_as_references(options):
    loss = PerceptualLoss("embedded", data_range=(-1, 1), **options)
    with torch.inference_mode():
        y, reference = Y.clone(), loss.encode(Y)
        inside = loss(X, y)
    x, clone = X.clone().requires_grad_(), X.clone().requires_grad_()
    for images, target in ((x, y), (clone, Y)):
        value = loss(images, target)
        (sum(value.values()) if isinstance(value, dict) else value).sum().backward()
    assert torch.equal(x.grad, clone.grad)
    assert not any(value.requires_grad for value in (inside.values() if isinstance(inside, dict) else [inside]))
    with pytest.raises(ValueError, match="reference: expected features that support a backward pass"):
        loss(x, reference=reference)
    loss(X, reference=reference)


PLACES = {"leaf": 0, "input": 1, "target": 2, "reference": 3}


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("place", PLACES)
def test_what_is_written_over_before_the_backward_pass_never_makes_a_wrong_gradient(place, create_graph):
    right = gradients(X.double(), Y.double(), torch.float64)[0]

    def loss(*given, **reference):
        return LOSS(*given, **reference).sum()

    leaf, target = X.double().requires_grad_(), Y.double().clone()
    image = leaf * 1
    reference = LOSS.encode(target)
    value = loss(image, reference=reference) if place == "reference" else loss(image, target)
    with torch.no_grad():
        for tensor in reference.layers.values() if place == "reference" else [(leaf, image, target)[PLACES[place]]]:
            tensor.mul_(0.5)
    if create_graph and place != "leaf":
        with pytest.raises(RuntimeError, match="modified in place since the forward pass; pass a .clone"):
            torch.autograd.grad(value, leaf, create_graph=create_graph)
        return
    (found,) = torch.autograd.grad(value, leaf, create_graph=create_graph)
    torch.testing.assert_close(found.detach(), right, rtol=1e-9, atol=1e-12)


def test_gradients_through_checkpoints_hooks_batches_and_twice():
    right = gradients(X, Y)[0]
    loss = LOSS
    x = X.clone().requires_grad_()
    again = torch.utils.checkpoint.checkpoint(lambda images: loss(images, Y).sum(), x, use_reentrant=False)
    for value in (again, loss(x, Y).sum()):
        (found,) = torch.autograd.grad(value, x, retain_graph=True)
        torch.testing.assert_close(found, right)
        torch.testing.assert_close(torch.autograd.grad(value, x)[0], right)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(value, x)
    each = torch.autograd.grad(loss(x, Y), x, torch.eye(2), is_grads_batched=True)[0]
    torch.testing.assert_close(each.sum(0), right)
    assert not each[0, 1].any() and not each[1, 0].any()


def test_masks_of_any_layout_give_one_number():
    half = (torch.rand(2, SIDE, SIDE, generator=torch.Generator().manual_seed(1)) > 0.3).float()
    right = NET(X, Y, mask=half)
    for mask in (
        half.bool(),
        half[:, None],
        half.double(),
        half.half(),
        half.mT.contiguous().mT,
        half.to_sparse().to_dense(),
    ):
        torch.testing.assert_close(NET(X, Y, mask=mask), right)
    one = half[:1].expand(2, -1, -1)
    torch.testing.assert_close(NET(X, Y, mask=one), NET(X, Y, mask=one.contiguous()))


RELAXED = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
DTYPES = {torch.float32: 2e-5, torch.float64: 2e-5, torch.float16: 2e-5, torch.bfloat16: 2e-5, torch.uint8: 2e-5}
STEPS = {  # changes of memory that leave the values
    "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "rows and columns": lambda t: t.mT.contiguous().mT,
    "batch and channels": lambda t: t.transpose(0, 1).contiguous().transpose(0, 1),
    "every third": lambda t: t.repeat_interleave(3, -1)[..., ::3],
    "every other row": lambda t: t.repeat_interleave(2, -2)[..., 1::2, :],
    "inside": lambda t: torch.nn.functional.pad(t.double(), (1, 2, 3, 4)).to(t.dtype)[..., 3:-4, 1:-2],
    "turned twice": lambda t: t.flip(-1, -2).contiguous().flip(-1, -2),
    "by index": lambda t: t.flip(0)[torch.arange(len(t) - 1, -1, -1)],
    "unfolded": lambda t: t.unfold(0, 1, 1).squeeze(-1),
}
BATCHES = st.tuples(st.integers(1, 4), st.integers(31, 48), st.integers(31, 48))
RANGES = st.sampled_from([(-1.0, 1.0), (0.0, 1.0), (0.0, 255.0), (-0.5, 0.5), (2.0, 5.0), (-3.0, 1.0)])


def _drawn(shape, dtype, data_range, seed):
    """Two batches of a dtype on a range (uint8: on its own), and the same values in float64 on [0, 1]."""
    numbers, height, width = shape
    low, high = (0.0, 255.0) if dtype == torch.uint8 else data_range
    generator = torch.Generator().manual_seed(seed)
    on_range = low + (high - low) * torch.rand(2, numbers, 3, height, width, generator=generator, dtype=torch.float64)
    given = (on_range.round() if dtype == torch.uint8 else on_range).to(dtype)
    return given.unbind(0), ((given.double() - low) / (high - low)).clamp(0, 1).unbind(0)


@RELAXED
@given(
    shape=BATCHES,
    dtypes=st.tuples(*[st.sampled_from(list(DTYPES))] * 2),
    data_range=RANGES,
    steps=st.tuples(*[st.lists(st.sampled_from(list(STEPS)), max_size=3)] * 2),
    seed=st.integers(0, 999),
)
def test_any_shape_dtype_range_and_memory_gives_the_number_of_the_values(shape, dtypes, data_range, steps, seed):
    pairs = [_drawn(shape, dtype, data_range, seed) for dtype in dtypes]
    x, y = pairs[0][0][0], pairs[1][0][1]
    for name in steps[0]:
        x = STEPS[name](x)
    for name in steps[1]:
        y = STEPS[name](y)
    assert torch.equal(x, pairs[0][0][0]) and torch.equal(y, pairs[1][0][1])
    found = NET(x, y, data_range=data_range)
    right = NET(pairs[0][1][0], pairs[1][1][1], data_range=(0, 1))
    assert found.shape == shape[:1]
    torch.testing.assert_close(found.double(), right, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(NET(y, x, data_range=data_range).double(), found.double(), rtol=1e-4, atol=1e-6)
    assert not NET(x, x.clone(), data_range=data_range).any()
    order = torch.randperm(shape[0], generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(NET(x[order], y[order], data_range=data_range), found[order], rtol=2e-5, atol=1e-7)


@RELAXED
@given(shape=BATCHES, seed=st.integers(0, 999))
def test_uint8_and_floats_on_0_255_and_on_0_1_agree(shape, seed):
    (x, y), (on_one_x, on_one_y) = _drawn(shape, torch.uint8, (0.0, 1.0), seed)
    found = NET(x, y)
    for pair, data_range in (((x.float(), y.float()), 255), ((on_one_x.float(), on_one_y.float()), (0, 1))):
        torch.testing.assert_close(NET(*pair, data_range=data_range), found, rtol=1e-4, atol=1e-7)
    assert torch.equal((on_one_x.float() * 255).round().to(torch.uint8), x)


SIZES = st.one_of(st.just(3), st.sampled_from([0, 1, 2, 4, 31, 32, 40]), st.integers(0, 40))
KINDS = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.uint8]
KINDS += [torch.bool, torch.int16, torch.int64, torch.complex64]


@RELAXED
@given(
    shapes=st.one_of(
        st.lists(SIZES, max_size=6).map(lambda shape: (shape, shape)), st.tuples(*[st.lists(SIZES, max_size=5)] * 2)
    ),
    dtypes=st.tuples(*[st.sampled_from(KINDS)] * 2),
    fill=st.sampled_from([0.0, 0.5, -0.5, 1.0, 3.0, 200.0, -1.0, math.nan, math.inf]),
    wants=st.booleans(),
)
def test_anything_gives_a_distance_for_each_image_or_one_sentence(shapes, dtypes, fill, wants):
    with torch.no_grad():
        x, y = (torch.full(shape, 0.25).to(dtype) for shape, dtype in zip(shapes, dtypes, strict=True))
        if x.numel() and dtypes[0] != torch.bool:
            x.view(-1)[-1:] = fill if x.is_floating_point() else int(min(max(fill, 0), 200)) if fill == fill else 0
    x.requires_grad_(wants and x.is_floating_point())
    try:
        found = NET(x, y)
    except (TypeError, ValueError) as error:
        said = str(error)
        assert said.startswith(("x: expected ", "y: expected ")) and "\n" not in said
        return
    assert found.shape == x.shape[:-3] and bool(found.isfinite().all())
    assert x.shape == y.shape and x.shape[-3] == 3
    if x.requires_grad and found.numel():
        assert bool(torch.autograd.grad(found.sum(), x)[0].isfinite().all())
