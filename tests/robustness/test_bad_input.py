"""Tensors that are no images, through every face: one clear error that names the argument, and nothing else."""

from __future__ import annotations

import copy
import math
import warnings

import pytest
import torch
from entry_points import DIVERSITY, FACES, LOSS, METRIC, NET, SAME, SIDE, UNCHECKED, X, Y, by_diversity, gradients
from PIL import Image
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from lpips_lightning import LPIPS, PerceptualLoss


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
    "quantized": (_quantized, TypeError, "expected a dense tensor, got layout torch.strided, dtype torch.qint8"),
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
    "an image": (lambda t: Image.new("RGB", (SIDE, SIDE)), TypeError, "expected a tensor .*, got Image"),
    "a path": (lambda t: "a.png", TypeError, "expected a tensor .*, got str"),
    "a number": (lambda t: 0.5, TypeError, "expected a tensor .*, got float"),
    "a storage": (lambda t: t.untyped_storage(), TypeError, "expected a tensor .*, got UntypedStorage"),
}
VALUES = {  # the same, of pixel values; in a loss's predictions all pass
    "NaN": (_spoiled(math.nan, ...), "from nan to nan; a NaN usually comes from a diverged network"),
    "one NaN, first": (_spoiled(math.nan, (0, 0, 0, 0)), "from nan to nan"),
    "one NaN, last": (_spoiled(math.nan, (-1, -1, -1, -1)), "from nan to nan"),
    "one infinity": (_spoiled(math.inf, (1, 2, 3, 4)), "from -0.99.* to inf"),
    "one minus infinity": (_spoiled(-math.inf, (1, 2, 3, 4)), "from -inf to "),
    "huge": (lambda t: t * 1e30, "that is no overshoot to clamp: check how the images are scaled"),
    "one beyond the range": (_spoiled(1.01, (1, 2, 3, 4)), "to 1.01; clamp the images to the range first"),
    "one below the range": (_spoiled(-1.01, (1, 2, 3, 4)), "from -1.01 to "),
    "on 0, 255": (lambda t: (t + 1) * 127.5, r"these look like \[0, 255\]"),
    "of 16 bits": (lambda t: (t + 1) * 32767.5, "to 655.* check how the images are scaled"),
    "scaled twice": (lambda t: 2 * t - 1, "2x - 1 was applied twice"),
    "normalized by ImageNet": (lambda t: ((t + 1) / 2 - 0.45) / 0.225, "these look normalized by ImageNet's mean"),
    "float16 infinity": (lambda t: _spoiled(math.inf, (0, 0, 0, 0))(t.half()), "to inf"),
    "float64 NaN": (lambda t: _spoiled(math.nan, (0, 0, 0, 0))(t.double()), "from nan"),
    "bfloat16 beyond the range": (lambda t: _spoiled(1.05, (0, 0, 0, 0))(t.bfloat16()), "to 1.04688"),
}
FAR = {"huge", "on 0, 255", "of 16 bits"}  # a loss warns of such predictions
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
        with warnings.catch_warnings():
            if face == "loss" and name in FAR:
                warnings.filterwarnings("ignore", "pred: declared on .* but the middle half of the values lies from")
            if face == "loss" and which == "x":
                assert FACES[face](x, y).shape == (2,)
                continue
            second = which == "y" or face == "loss"
            _refused(ValueError, f"expected values on .*{said}", FACES[face], x, y, names[second])
    if which == "both":
        _refused(ValueError, "expected values on", by_diversity, x, y, "images")


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


def test_transforms_leave_the_images_alone():
    before = X.clone(), Y.clone()
    for net in (NET, LPIPS("embedded", validate_args=False)):
        right = gradients(X, Y)[0]
        torch.testing.assert_close(torch.func.grad(lambda x, net=net: net(x, Y).sum())(X), right)
        found = torch.vmap(torch.func.grad(lambda x, y, net=net: net(x[None], y[None])[0]))(X, Y)
        torch.testing.assert_close(found, right)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.jit's, inside torch.func
            _, slope = torch.func.jvp(lambda x, net=net: net(x, Y), (X,), (Y,))
        torch.testing.assert_close(slope.sum(), (right * Y).sum(), rtol=1e-4, atol=1e-6)
        assert torch.equal(X, before[0]) and torch.equal(Y, before[1])


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
    "quantized": (_quantized(ONES), TypeError, "expected a dense tensor"),
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


def test_the_tables_are_long():
    tensors = 3 * (len(SAME) + len(WRONG) + len(VALUES)) + 2 * len(UNEQUAL) + len(MASKS)
    assert tensors >= 250
