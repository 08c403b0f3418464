"""Tensors of every kind through every face: the right number, or one clear error; never a silent wrong number.

Each case is a change of one batch, of the other, or of both. What is right is what plain, contiguous float32 tensors of
the same values give.
"""

from __future__ import annotations

import copy
import math
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torchvision import tv_tensors

from lpips_lightning import LPIPS, LearnedPerceptualImagePatchSimilarity, PerceptualLoss
from lpips_lightning.diversity import LPIPSDiversity
from lpips_lightning.functional import learned_perceptual_image_patch_similarity

SIDE = 40
NET, UNCLAMPED = LPIPS("embedded"), LPIPS("embedded", validate_args=False)
_numbers = torch.rand(2, 2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) * 2 - 1
X, Y = _numbers[0].clone(), _numbers[1].clone()
METRIC, DIVERSITY = LearnedPerceptualImagePatchSimilarity("embedded", "none"), LPIPSDiversity("embedded")
LOSS = PerceptualLoss("embedded", data_range=(-1, 1), reduction="none")
UNCHECKED = PerceptualLoss("embedded", data_range=(-1, 1), reduction="none", validate_args=False)


def _metric(x, y):
    metric = copy.deepcopy(METRIC)
    metric.update(x, y)
    return metric.compute()


def _diversity(x, y):
    metric = copy.deepcopy(DIVERSITY)
    metric.update(torch.stack((x, y), 1))
    return metric.compute()


FACES = {  # two batches -> distances (N,)
    "network": NET,
    "measure": lambda x, y: NET.measure(x, y).values,
    "layers": lambda x, y: torch.stack(list(NET(x, y, per_layer=True).values())).sum(0),
    "mask": lambda x, y: NET(x, y, mask=torch.ones(len(x), *x.shape[-2:], dtype=torch.bool)),
    "features": lambda x, y: NET.distance(NET.encode(x), NET.encode(y)),
    "pairwise": lambda x, y: NET.pairwise(x, y).diagonal(),
    "function": lambda x, y: learned_perceptual_image_patch_similarity(x, y, "embedded", "none"),
    "metric": _metric,
    "forward of the metric": lambda x, y: copy.deepcopy(METRIC)(x, y),
    "loss": lambda x, y: copy.deepcopy(LOSS)(x, y),
    "loss without checks": UNCHECKED,
}


def plain(images):
    """The same values in a new, contiguous, ordinary float32 tensor on [-1, 1]."""
    images = images.detach().as_subclass(torch.Tensor).resolve_neg().resolve_conj()
    values = images.double() / 127.5 - 1 if images.dtype == torch.uint8 else images.double()
    return values.float().clone(memory_format=torch.contiguous_format)


class Own(torch.Tensor):
    """A subclass of the user's."""


def _inference(images):
    with torch.inference_mode():
        return images.clone()


def _window(images):
    """A part of a larger tensor, every other pixel of it."""
    canvas = torch.full((len(images), 5, 2 * SIDE + 3, 3 * SIDE), math.nan)
    canvas[:, 1:4, 2 : 2 * SIDE + 2 : 2, 1::3] = images
    return canvas[:, 1:4, 2 : 2 * SIDE + 2 : 2, 1::3]


SAME = {  # a change of a batch that leaves it a batch of images
    "contiguous": lambda t: t.clone(),
    "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "transposed": lambda t: t.mT.contiguous().mT,
    "permuted from HWC": lambda t: t.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2),
    "permuted from CNHW": lambda t: t.transpose(0, 1).contiguous().transpose(0, 1),
    "window of a larger tensor": _window,
    "reversed by index": lambda t: t.flip(0)[torch.tensor([1, 0])],
    "expanded over the batch": lambda t: t[:1].expand(2, -1, -1, -1),
    "expanded over the channels": lambda t: t[:, :1].expand(-1, 3, -1, -1),
    "expanded over the rows": lambda t: t[:, :, :1].expand(-1, -1, SIDE, -1),
    "expanded from one number": lambda t: torch.tensor(0.3).expand(2, 3, SIDE, SIDE),
    "one row in memory, as_strided": lambda t: t.as_strided((2, 3, SIDE, SIDE), (1, 1, 1, 1)),
    "negated view": lambda t: torch._neg_view(-t),
    "real part of a conjugate": lambda t: torch.complex(t, t).conj().real,
    "imaginary part of a conjugate": lambda t: torch.complex(t, -t).conj().imag,
    "of NumPy, reversed and copied": lambda t: torch.from_numpy(t.numpy()[..., ::-1].copy()),
    "of NumPy, in Fortran's order": lambda t: torch.from_numpy(np.asfortranarray(t.numpy())),
    "one image": lambda t: t[:1],
    "three images": lambda t: t[[0, 1, 0]],
    "no image": lambda t: t[:0],
    "the smallest side": lambda t: t[..., :31, :31],
    "an odd side": lambda t: t[..., :37, :33],
    "a parameter": lambda t: nn.Parameter(t.clone()),
    "wants a gradient": lambda t: t.clone().requires_grad_(),
    "of another operation": lambda t: t.clone().requires_grad_() * 1,
    "detached": lambda t: (t.clone().requires_grad_() * 1).detach(),
    "of inference mode": _inference,
    "a subclass": lambda t: t.as_subclass(Own),
    "tv_tensors.Image": tv_tensors.Image,
    "tv_tensors.Image of float64": lambda t: tv_tensors.Image(t.double()),
    "float64": lambda t: t.double(),
    "float16": lambda t: t.half(),
    "bfloat16": lambda t: t.bfloat16(),
    "uint8": lambda t: ((t + 1) * 127.5).round().to(torch.uint8),
    "uint8, channels_last": lambda t: (
        ((t + 1) * 127.5).round().to(torch.uint8).contiguous(memory_format=torch.channels_last)
    ),
    "uint8, one value": lambda t: torch.full_like(t, 9, dtype=torch.uint8),
    "all on the border": lambda t: t.sign(),
    "all zero": torch.zeros_like,
    "an efficient zero": lambda t: torch._efficientzerotensor(t.shape),
    "minus zero": lambda t: t * -0.0,
    "nearly zero": lambda t: t * 1e-40,
    "over by rounding": lambda t: t * (1 + 3e-7),
}
ONE_SIDED = set(SAME) - {"one image", "three images", "no image", "the smallest side", "an odd side"}


@pytest.mark.parametrize("which", ["x", "y", "both"])
@pytest.mark.parametrize("name", SAME)
def test_the_right_number_through_every_face(name, which):
    if which != "both" and name not in ONE_SIDED:
        pytest.skip("the two would differ in shape")
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
        found = _diversity(x.as_subclass(torch.Tensor), y.as_subclass(torch.Tensor))
        torch.testing.assert_close(found, right.mean(), rtol=2e-5, atol=1e-7)


def _fake(images):
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        return mode.from_tensor(images)


def _nested(images):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the prototype
        return torch.nested.nested_tensor([images[0], images[1]])


def _jagged(images):
    return torch.nested.nested_tensor([images[0], images[1]], layout=torch.jagged)


def _compressed(images):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # in beta
        return images[0, 0].to_sparse_csr()


def _quantized(images):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated
        return torch.quantize_per_tensor(images, 0.01, 0, torch.qint8)


def _spoiled(value, place):
    def spoil(images):
        spoiled = images.clone()
        spoiled[place] = value
        return spoiled

    return spoil


SHAPE, TYPE, RANGE = "expected shape", "expected", "expected values on"
WRONG = {  # a change of a batch, the error, what it says after the argument's name
    "no dimension": (lambda t: t[0, 0, 0, 0], ValueError, SHAPE),
    "one dimension": (lambda t: t[0, 0, 0], ValueError, SHAPE),
    "two dimensions": (lambda t: t[0, 0], ValueError, SHAPE),
    "three dimensions": (
        lambda t: t[0],
        ValueError,
        r"expected shape .*; add the batch dimension with .unsqueeze\(0\)",
    ),
    "six dimensions": (lambda t: t[None, None], ValueError, SHAPE),
    "no channel": (lambda t: t[:, :0], ValueError, "expected 3 channels"),
    "one channel": (lambda t: t[:, :1], ValueError, "expected 3 channels .* gray images: say gray='repeat'"),
    "two channels": (lambda t: t[:, :2], ValueError, "expected 3 channels"),
    "four channels": (
        lambda t: t[:, [0, 1, 2, 0]],
        ValueError,
        "expected 3 channels .* alpha channels: say background=",
    ),
    "five channels": (lambda t: t[:, [0] * 5], ValueError, "expected 3 channels"),
    "channels last": (lambda t: t.permute(0, 2, 3, 1), ValueError, "expected 3 channels .* channels come second"),
    "no rows": (lambda t: t[:, :, :0], ValueError, "expected sides of at least 31 pixels .* got 0x40"),
    "no columns": (lambda t: t[..., :0], ValueError, "expected sides of at least 31 pixels .* got 40x0"),
    "too few rows": (lambda t: t[:, :, :30], ValueError, "expected sides of at least 31 pixels .* got 30x40"),
    "too few columns": (lambda t: t[..., :1], ValueError, "expected sides of at least 31 pixels .* got 40x1"),
    "int64": (lambda t: t.long(), TypeError, "expected floating-point values, or uint8 .*, got torch.int64"),
    "int8": (lambda t: t.to(torch.int8), TypeError, "expected floating-point values, or uint8 .*, got torch.int8"),
    "uint16": (lambda t: (t.abs() * 9).to(torch.uint16), TypeError, "expected floating-point values, .*torch.uint16"),
    "bool": (lambda t: t > 0, TypeError, "expected floating-point values, or uint8 .*, got torch.bool"),
    "complex": (lambda t: t + 0j, TypeError, "expected floating-point values, or uint8 .*, got torch.complex64"),
    "float8": (lambda t: t.to(torch.float8_e4m3fn), TypeError, "expected floating-point values, .*got torch.float8"),
    "quantised": (_quantized, TypeError, "expected a dense tensor, got layout torch.strided, dtype torch.qint8"),
    "sparse": (lambda t: t.to_sparse(), TypeError, "expected a dense tensor, got layout torch.sparse_coo"),
    "compressed rows": (
        _compressed,
        TypeError,
        "expected a dense tensor, got layout torch.sparse_c",
    ),
    "nested": (_nested, TypeError, "expected a dense tensor, got layout nested"),
    "nested, jagged": (_jagged, TypeError, "expected a dense tensor, got layout"),
    "of oneDNN": (lambda t: t.to_mkldnn(), TypeError, "expected a dense tensor, got layout torch._mkldnn"),
    "a NumPy array": (lambda t: t.numpy(), TypeError, "expected a tensor .*, got ndarray"),
    "a NumPy array, reversed": (lambda t: t.numpy()[..., ::-1], TypeError, "expected a tensor .*, got ndarray"),
    "a list": (lambda t: t.tolist(), TypeError, "expected a tensor .*, got list"),
    "a list of tensors": (lambda t: [t[0], t[1]], TypeError, "expected a tensor .*, got list"),
    "a picture": (lambda t: Image.new("RGB", (SIDE, SIDE)), TypeError, "expected a tensor .*, got Image"),
    "a path": (lambda t: "a.png", TypeError, "expected a tensor .*, got str"),
    "a number": (lambda t: 0.5, TypeError, "expected a tensor .*, got float"),
    "a storage": (lambda t: t.untyped_storage(), TypeError, "expected a tensor .*, got UntypedStorage"),
}
VALUES = {  # the same, of pixel values; of a loss's predictions some pass, see SLACK
    "NaN": (_spoiled(math.nan, ...), "from nan to nan; a NaN usually comes from a diverged network"),
    "one NaN, first": (_spoiled(math.nan, (0, 0, 0, 0)), "from nan to nan"),
    "one NaN, last": (_spoiled(math.nan, (-1, -1, -1, -1)), "from nan to nan"),
    "one infinity": (_spoiled(math.inf, (1, 2, 3, 4)), "from -0.99.* to inf"),
    "one minus infinity": (_spoiled(-math.inf, (1, 2, 3, 4)), "from -inf to "),
    "huge": (lambda t: t * 1e30, "clamp the images to the range first"),
    "one beyond the range": (_spoiled(1.01, (1, 2, 3, 4)), "to 1.01; clamp the images to the range first"),
    "one below the range": (_spoiled(-1.01, (1, 2, 3, 4)), "from -1.01 to "),
    "on 0, 255": (lambda t: (t + 1) * 127.5, r"these look like \[0, 255\]"),
    "of 16 bits": (lambda t: (t + 1) * 32767.5, "from .* to 655"),
    "scaled twice": (lambda t: 2 * t - 1, "2x - 1 was applied twice"),
    "normalised by ImageNet": (lambda t: ((t + 1) / 2 - 0.45) / 0.225, "these look normalised by ImageNet's mean"),
    "float16 infinity": (lambda t: _spoiled(math.inf, (0, 0, 0, 0))(t.half()), "to inf"),
    "float64 NaN": (lambda t: _spoiled(math.nan, (0, 0, 0, 0))(t.double()), "from nan"),
    "bfloat16 beyond the range": (lambda t: _spoiled(1.05, (0, 0, 0, 0))(t.bfloat16()), "to 1.04688"),
}
SLACK = {"NaN", "one NaN, first", "one NaN, last", "float64 NaN", "one beyond the range", "one below the range"}
SLACK |= {"bfloat16 beyond the range"}
ARGUMENTS = {  # what the errors of a face call its two batches
    "network": ("x", "y"),
    "measure": ("x", "y"),
    "layers": ("x", "y"),
    "features": ("images", "images"),
    "pairwise": ("x|images", "y|images"),
    "function": ("img1", "img2"),
    "metric": ("preds", "target"),
    "forward of the metric": ("preds", "target"),
    "loss": ("pred", "target"),
}


def _refused(error, said, call, x, y, names):
    with pytest.raises(error, match=rf"^({names}): {said}") as caught:
        call(x, y)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("which", ["x", "y", "both"])
@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_batch_is_refused_by_every_face(name, which):
    change, error, said = WRONG[name]
    x, y = (change(X) if which != "y" else X), (change(Y) if which != "x" else Y)
    for face, names in ARGUMENTS.items():
        _refused(error, said, FACES[face], x, y, names[which == "y"])
    zero = copy.deepcopy(LOSS)
    zero.weight = 0
    for loss in (UNCHECKED, zero):
        _refused(error, said, loss, x, y, ("pred", "target")[which == "y"])
    if which == "both":
        with pytest.raises((TypeError, ValueError), match="^images: expected ") as caught:
            DIVERSITY.update(x)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("which", ["x", "y", "both"])
@pytest.mark.parametrize("name", VALUES)
def test_values_off_the_range_are_refused_by_every_face(name, which):
    change, said = VALUES[name]
    x, y = (change(X) if which != "y" else X), (change(Y) if which != "x" else Y)
    for face, names in ARGUMENTS.items():
        if face == "loss" and which == "x" and name in SLACK:
            assert FACES[face](x, y).shape == (2,)
            continue
        which_first = which == "y" or (face == "loss" and name in SLACK)
        _refused(ValueError, f"expected values on .*{said}", FACES[face], x, y, names[which_first])
    if which == "both":
        _refused(ValueError, "expected values on", _diversity, x, y, "images")


@pytest.mark.parametrize("make", [lambda t: t.to("meta"), _fake], ids=["meta", "fake"])
def test_tensors_without_values_are_refused_or_give_shapes(make):
    x, y = make(X), make(Y)
    for face, names in ARGUMENTS.items():
        _refused(ValueError, "expected values, got a tensor without", FACES[face], x, y, names[0])
    if x.is_meta:
        assert LPIPS("embedded", validate_args=False)(x, y).shape == (2,)
        assert PerceptualLoss("embedded", data_range=(-1, 1), validate_args=False)(x, y).is_meta
        for face, names in ARGUMENTS.items():
            if face != "features":
                _refused(ValueError, "expected device cpu", FACES[face], X, y, names[1])
                _refused(ValueError, "expected device meta", FACES[face], x, Y, names[1])


UNEQUAL = {
    "one image to two": (lambda t: t[:1], "expected the shape of"),
    "three images to two": (lambda t: t[[0, 1, 0]], "expected the shape of"),
    "no image to two": (lambda t: t[:0], "expected the shape of"),
    "a row more": (lambda t: nn.functional.pad(t, (0, 0, 0, 1)), "expected the shape of"),
    "a column less": (lambda t: t[..., 1:], "expected the shape of"),
    "a video": (lambda t: t[None], "expected (the shape of|images)"),
}


@pytest.mark.parametrize("name", UNEQUAL)
def test_nothing_is_broadcast(name):
    change, said = UNEQUAL[name]
    for face, names in ARGUMENTS.items():
        if face == "features":
            with pytest.raises(ValueError, match="y: expected features of"):
                FACES[face](change(X), Y)
        elif face != "pairwise" or "image" not in name:
            wrong = "x|y" if face == "pairwise" else names[1]
            _refused(ValueError, said, FACES[face], change(X), Y, wrong)
            _refused(ValueError, said, FACES[face], X, change(Y), wrong)
    for images in (X, X.double(), X[:1], X[:0]):
        found = NET.pairwise(images, Y)
        assert found.shape == (len(images), 2) and found.dtype == images.dtype
        assert NET.pairwise(Y, images).shape == (2, len(images))


def test_vmap_is_refused_and_other_transforms_are_right():
    for net in (NET, LPIPS("embedded", validate_args=False)):
        for call in (
            torch.vmap(lambda x, y, net=net: net(x[None], y[None])[0]),
            torch.vmap(torch.func.grad(lambda x, y, net=net: net(x[None], y[None])[0])),
        ):
            _refused(TypeError, "expected a tensor .* by torch.vmap; give whole batches", call, X, Y, "x")
        right = _gradients(X, Y)[0]
        torch.testing.assert_close(torch.func.grad(lambda x, net=net: net(x, Y).sum())(X), right)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.jit's, inside torch.func
            _, slope = torch.func.jvp(lambda x, net=net: net(x, Y), (X,), (Y,))
        torch.testing.assert_close(slope.sum(), (right * Y).sum(), rtol=1e-4, atol=1e-6)
        with pytest.raises(RuntimeError, match="^backward: expected a derivative by torch.autograd"):
            torch.func.jacrev(lambda x, net=net: net(x, Y))(X)
        assert torch.equal(X, _numbers[0]) and torch.equal(Y, _numbers[1])


def _gradients(x, y, dtype=torch.float32):
    """By ordinary autograd through the plain head, layer by layer; nothing is clamped, as in a loss."""
    x, y = (plain(images).to(dtype).requires_grad_() for images in (x, y))
    torch.stack(list(UNCLAMPED(x, y, per_layer=True).values())).sum().backward()
    return x.grad, y.grad


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
        twin = images.clone().requires_grad_()
        slope = _gradients(*((values, other) if place == 0 else (other, values)))[place]
        if base is made:
            right = slope.to(made.dtype)
        else:
            right = torch.autograd.grad(SAME[name](twin), twin, slope.to(values.dtype).as_subclass(type(values)))[0]
        tolerance = {torch.float16: 1e-2, torch.bfloat16: 2e-2}.get(values.dtype, 1e-4)
        found, right = (g.as_subclass(torch.Tensor).float() for g in (base.grad, right.detach()))
        assert float((found - right).norm()) <= tolerance * float(right.norm()) + 1e-6, place
        assert bool(found.isfinite().all())


def test_saturated_pixels_have_the_same_gradient_on_every_way():
    """At the ends of the range torch's clamp has derivative 1 up to some version, 0 after it."""
    x, y = (2 * X).clamp(-1, 1).double(), (2 * Y).clamp(-1, 1).double()
    right = _gradients(x, y, torch.float64)
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
            pair = [given.clone().requires_grad_(wants) for given, wants in zip((x, y), wanted, strict=True)]
            way(*pair).sum().backward()
            for given, slope in zip(pair, right, strict=True):
                if given.requires_grad:
                    torch.testing.assert_close(given.grad, slope, rtol=1e-6, atol=1e-10, msg=name)
    leaf = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(NET(leaf, y).sum(), leaf, create_graph=True)
    torch.testing.assert_close(slope.detach(), right[0], rtol=1e-6, atol=1e-10)
    over = (x * (1 + 1e-5)).requires_grad_()
    slopes = [torch.autograd.grad(ways[name](over, y).sum(), over)[0] for name in ("distance", "layers")]
    torch.testing.assert_close(*slopes, rtol=1e-6, atol=1e-10)
    assert not slopes[0][over.detach().abs() > 1].any()


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
    right = _gradients(X, Y)
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
    x, twin = X.clone().requires_grad_(), X.clone().requires_grad_()
    for images, target in ((x, y), (twin, Y)):
        value = loss(images, target)
        (sum(value.values()) if isinstance(value, dict) else value).sum().backward()
    assert torch.equal(x.grad, twin.grad)
    assert not any(value.requires_grad for value in (inside.values() if isinstance(inside, dict) else [inside]))
    with pytest.raises(ValueError, match="reference: expected features that can serve a backward pass"):
        loss(x, reference=reference)
    loss(X, reference=reference)


PLACES = {"leaf": 0, "input": 1, "target": 2, "reference": 3}


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("place", PLACES)
def test_what_is_written_over_before_the_backward_pass_never_makes_a_wrong_gradient(place, create_graph):
    right = _gradients(X.double(), Y.double(), torch.float64)[0]

    def loss(*given, **reference):
        return LOSS(*given, **reference).sum()

    leaf, target = X.double().requires_grad_(), Y.double().clone()
    image = leaf * 1
    reference = LOSS.encode(target)
    value = loss(image, reference=reference) if place == "reference" else loss(image, target)
    with torch.no_grad():
        for tensor in reference.layers.values() if place == "reference" else [(leaf, image, target)[PLACES[place]]]:
            tensor.mul_(0.5)
    if place == "input" or (create_graph and place != "leaf"):
        with pytest.raises(RuntimeError, match="modified (by an inplace operation|in place since)"):
            torch.autograd.grad(value, leaf, create_graph=create_graph)
        return
    (found,) = torch.autograd.grad(value, leaf, create_graph=create_graph)
    torch.testing.assert_close(found.detach(), right, rtol=1e-9, atol=1e-12)


def test_gradients_through_checkpoints_hooks_batches_and_twice():
    right = _gradients(X, Y)[0]
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


ONES = torch.ones(2, SIDE, SIDE)
MASKS = {  # a mask, the error, what it says
    "of one image": (ONES[:1], ValueError, "expected shape"),
    "of no image": (ONES[:0], ValueError, "expected shape"),
    "without a batch": (ONES[0], ValueError, "expected shape"),
    "of three channels": (X, ValueError, "expected shape"),
    "a column less": (ONES[..., 1:], ValueError, "expected shape"),
    "of whole numbers": (ONES.long(), TypeError, "expected a tensor of bools, or of floats on .*, got torch.int64"),
    "uint8": (ONES.to(torch.uint8), TypeError, "got torch.uint8"),
    "complex": (ONES + 0j, TypeError, "got torch.complex64"),
    "on 0, 255": (ONES * 255, ValueError, r"expected values on \[0, 1\], got values from 255"),
    "negative": (-ONES, ValueError, r"expected values on \[0, 1\]"),
    "NaN": (ONES * math.nan, ValueError, r"expected values on \[0, 1\]"),
    "sparse": (ONES.to_sparse(), TypeError, "expected a dense tensor"),
    "nested": (_nested(ONES), TypeError, "expected a dense tensor"),
    "quantised": (_quantized(ONES), TypeError, "expected a dense tensor"),
    "elsewhere": (ONES.to("meta"), ValueError, "expected device cpu"),
    "an array": (ONES.numpy(), TypeError, "got ndarray"),
    "a list": (ONES.tolist(), TypeError, "got list"),
}


@pytest.mark.parametrize("name", MASKS)
def test_what_is_no_mask_is_refused(name):
    mask, error, said = MASKS[name]
    metric = copy.deepcopy(METRIC)
    for call in (NET, NET.measure, LOSS, metric.update, metric):
        with pytest.raises(error, match=f"^mask: .*{said}"):
            call(X, Y, mask=mask)


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


NAN = math.nan
OPTIONS = {  # an argument of every face: values that are none
    "net_type": ["Alex", "lpips", "vgg16", "", None, 3, ["alex"]],
    "version": ["0.2", "v0.1", 0.1, None],
    "calibrated": ["yes", "no", None, 1, 0],
    "reduction": ["Mean", "avg", "batchmean", True, 0, [], ["mean"]],
    "data_range": [
        (1, 0),
        (0, 0),
        (NAN, 1),
        (0, NAN),
        (0, math.inf),
        -1,
        0,
        "uint8",
        "1",
        (0, "1"),
        (1,),
        (0, 1, 2),
        True,
    ],
    "range": [
        {},
        b"\0\1",
        1j,
        torch.tensor([0, 1]),
        np.array([0, 1]),
        slice(0, 1),
        1e-40,
        (0, 1e300),
        10**400,
        (1e8, 1e8 + 1),
    ],
    "weight": [NAN, -1, -1e-9, math.inf, "1", None, True, 1j, [1], torch.tensor(1.0), torch.tensor([1.0, 2.0])],
    "memory_budget": [0, -1, 1.5, "1G", True, NAN],
    "frame_chunk": [0, -1, 1.5, "2", True],
    "precision": ["fp8", "float32", 16, torch.float16, None],
    "gray": ["mean", True, 1, ""],
    "background": ["red", "", (0, 0, 255), (0, 0), 5, (NAN, 0, 0), (-0.1, 0, 0), torch.ones(3), ("0", 0, 0)],
    "resize": [0, -1, (64,), (64, 0), 64.0, "64", True, (64, NAN), torch.tensor(64), (1, 2, 3)],
    "normalize": ["yes", None, 1, 0],
    "validate_args": ["no", None, 0, 1],
    "weights": ["", 3, [1], b"x", nn.Linear(1, 1)],
    "calibration": ["", 3, [1], b"x", nn.Linear(1, 1)],
}
MAKERS = {
    "network": (LPIPS, {"reduction", "data_range", "range", "weight", "normalize"}),
    "metric": (LearnedPerceptualImagePatchSimilarity, {"weight"}),
    "loss": (PerceptualLoss, {"normalize", "frame_chunk"}),
    "diversity": (LPIPSDiversity, {"weight", "reduction", "frame_chunk", "memory_budget"}),
    "function": (
        lambda *a, **k: learned_perceptual_image_patch_similarity(X, Y, *a, **k),
        {"weight", "memory_budget"},
    ),
}


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("argument", OPTIONS)
def test_options_that_are_none_are_refused_when_a_thing_is_made(argument, maker):
    make, unknown = MAKERS[maker]
    if argument in unknown:
        pytest.skip("it has no such argument")
    name = {"range": "data_range"}.get(argument, argument)
    for value in OPTIONS[argument]:
        given = {"net_type": "embedded", **({"data_range": (-1, 1)} if maker == "loss" else {}), name: value}
        if name == "calibration":
            given["calibrated"] = True
        with pytest.raises((ValueError, TypeError, RuntimeError), match=f"^{name}: expected ") as caught:
            make(**given)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_a_weight_is_checked_whenever_it_is_set():
    loss = PerceptualLoss("embedded", data_range=(-1, 1))
    for wrong in OPTIONS["weight"]:
        with pytest.raises(ValueError, match="^weight: expected a finite number >= 0, got "):
            loss.weight = wrong
        assert loss.weight == 1
    for right in (0, 0.5, np.float64(0.25), 3):
        loss.weight = right
        torch.testing.assert_close(loss(X, Y), float(right) * NET(X, Y).mean())


def test_a_loss_of_weight_0_refuses_what_it_would_refuse_later():
    loss = PerceptualLoss("embedded", data_range=(-1, 1), weight=0)
    assert float(loss(X, Y)) == 0 and loss(X.double(), Y.double()).dtype == torch.float64
    assert float(loss(X, reference=loss.encode(Y))) == 0
    for target in (Y[:1], Y[..., 1:], Y.to("meta")):
        with pytest.raises(ValueError, match="^target: expected"):
            loss(X, target)
    with pytest.raises(ValueError, match="^reference: expected features"):
        loss(X[:1], reference=loss.encode(Y))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: NET.distance(X, Y), "x: expected features from encode, got Tensor"),
        (lambda: NET.distance(NET.encode(X), Y), "y: expected features from encode, got Tensor"),
        (lambda: NET(NET.encode(X), Y), "x: expected a tensor .*, got Features"),
        (lambda: NET.encode(None), "images: expected a tensor .*, got NoneType"),
        (lambda: NET(X, Y, spatial=True, mask=ONES), "mask: expected None with spatial=True"),
        (lambda: NET(X, Y, erode=True), "erode: expected a mask with erode=True, got none"),
        (lambda: NET.pairwise(X, batch_size=0), "batch_size: expected a positive number of images, got 0"),
        (lambda: NET.pairwise(X, batch_size=-1), "batch_size: expected a positive number"),
        (lambda: NET.pairwise(X, batch_size="2"), "batch_size: expected a positive number"),
        (lambda: NET.pairwise(X, memory_budget=0), "memory_budget: expected a positive number of bytes"),
        (lambda: NET.pairwise(X, memory_budget="1G"), "memory_budget: expected a positive number of bytes"),
        (lambda: NET.plan("abcd"), r"shape: expected \(N, 3, H, W\), got abcd"),
        (lambda: NET.plan((1, 3, -1, 4)), r"shape: expected \(N, 3, H, W\), got \(1, 3, -1, 4\)"),
        (lambda: NET.plan((1, 3, 64.0, 64)), r"shape: expected \(N, 3, H, W\)"),
        (lambda: PerceptualLoss("embedded", data_range=1)(X), "target: expected either target or reference"),
        (lambda: LearnedPerceptualImagePatchSimilarity("embedded").update(X), "update: expected"),
        (lambda: LPIPSDiversity("embedded").update(X[:1]), "images: expected .* at least 2 samples K a group, got"),
        (lambda: LPIPSDiversity("embedded").update(X[None, None]), "images: expected .* at least 2 samples"),
    ],
)
def test_calls_that_are_none(call, message):
    with pytest.raises((TypeError, ValueError), match=f"^{message}"):
        call()


def test_the_tables_are_long():
    tensors = 3 * (len(SAME) + len(WRONG) + len(VALUES)) + 2 * len(UNEQUAL) + len(MASKS)
    assert tensors >= 250
    assert sum(map(len, OPTIONS.values())) >= 100
