"""Errors name a way out that the caller has, and the code in them does what it says."""

from __future__ import annotations

import copy
import inspect
import math
import pickle
import re
from functools import partial

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from lpips_lightning import LPIPS, LPIPSDiversity, PerceptualLoss, compat
from lpips_lightning import LearnedPerceptualImagePatchSimilarity as Metric
from lpips_lightning.callbacks import PerceptualScores, SampleGallery
from lpips_lightning.evaluation.methods import parse_method
from lpips_lightning.functional.lpips import learned_perceptual_image_patch_similarity as function
from lpips_lightning.images import hints
from lpips_lightning.images.hints import conversion_hint, layout_hint
from lpips_lightning.images.preprocessing import PLAIN
from lpips_lightning.images.ranges import check_values

GOOD = torch.rand(2, 3, 40, 40, generator=torch.Generator().manual_seed(0))


NET, METRIC, LOSS = LPIPS("embedded"), Metric("embedded", data_range=1), PerceptualLoss("embedded", data_range=1)
DIVERSITY, COMPAT = LPIPSDiversity("embedded", data_range=1), compat.LPIPS(net="embedded")
SCORES = PerceptualScores("embedded", data_range=1.0, metrics=["lpips"])


def _calibration(x, y):
    PLAIN.check_pair(x, y, ("ref", "p0"), "embedded", 31)
    check_values(y, "p0", (-1.0, 1.0), PLAIN.hints)


ENTRIES = {  # a call, and whose arguments it may name
    "network": (lambda x, y: NET(x, y, 1.0), (LPIPS, LPIPS.forward)),
    "features": (lambda x, y: NET.encode(y, 1.0), (LPIPS, LPIPS.encode)),
    "loss": (LOSS, (PerceptualLoss, PerceptualLoss.forward)),
    "reference": (lambda x, y: LOSS.encode(y), (PerceptualLoss, PerceptualLoss.encode)),
    "metric": (METRIC.update, (Metric, Metric.update)),
    "network of the metric": (lambda x, y: METRIC.net(x, y, 1.0), (LPIPS, LPIPS.forward)),
    "diversity": (lambda x, y: DIVERSITY.update(y), (LPIPSDiversity,)),
    "function": (lambda x, y: function(x, y, NET, data_range=1), (function,)),
    "compat": (COMPAT, (compat.LPIPS, compat.LPIPS.forward)),
    "compat, normalized": (partial(COMPAT, normalize=True), (compat.LPIPS, compat.LPIPS.forward)),
    "callback": (SCORES.score, (PerceptualScores,)),
    "calibration": (_calibration, ()),
    "evaluation": (parse_method("embedded").distance, ()),
}
BAD = {
    "gray": lambda t: t[:, :1],
    "alpha": lambda t: t[:, [0, 1, 2, 0]],
    "small": lambda t: t[..., :8, :8],
    "bytes": lambda t: t * 255,
    "signed": lambda t: t * 2 - 1,
    "negative": lambda t: t * 4 - 3,
    "NaN": lambda t: t * math.nan,
    "integers": lambda t: (t * 255).long(),
    "without values": lambda t: t.to("meta"),
    "HWC": lambda t: t.permute(0, 2, 3, 1),
    "one image": lambda t: t[0],
    "array": lambda t: t.permute(0, 2, 3, 1).numpy(),
}


def _said(call, x, y):
    """What the error says; empty without one."""
    try:
        call(x, y)
    except (TypeError, ValueError) as error:
        return str(error)
    return ""


@pytest.mark.filterwarnings("ignore:.*(expected values|declared) on")  # one batch on the range is enough for compat
@pytest.mark.parametrize("bad", BAD)
def test_an_error_names_no_argument_that_the_caller_lacks(bad):
    errors = 0
    for entry, (call, owners) in ENTRIES.items():
        known = {name for owner in owners for name in inspect.signature(owner).parameters}
        for x in (BAD[bad](GOOD), GOOD):
            said = _said(call, x, BAD[bad](GOOD)).replace("size= of the data set", "")
            assert set(re.findall(r"\b([a-z_]+)=", said)) <= known, (entry, said)
            errors += bool(said)
    assert errors >= len(ENTRIES)


def test_a_gallery_has_the_option_that_its_hint_names():
    assert "background" in inspect.signature(SampleGallery).parameters


ARRAY = (GOOD.permute(0, 2, 3, 1).numpy() * 255).astype(np.uint8)
PICTURE = Image.fromarray(ARRAY[0])
OBJECTS = {
    "NHWC": ARRAY,
    "HWC": ARRAY[0],
    "NCHW": ARRAY.transpose(0, 3, 1, 2),
    "CHW": ARRAY[0].transpose(2, 0, 1),
    "float": GOOD.permute(0, 2, 3, 1).numpy(),
    "Pillow": PICTURE,
    "Pillow, RGBA": PICTURE.convert("RGBA"),
    "tensors": list(GOOD),
    "batches": (GOOD, GOOD),
}


@pytest.mark.parametrize("name", OBJECTS)
def test_the_code_for_what_is_no_tensor_makes_a_batch(name):
    given = OBJECTS[name]
    for entry, (call, _) in ENTRIES.items():
        with pytest.raises(
            TypeError, match="expected a tensor .*, got (ndarray|Image|list|tuple); (convert|make)"
        ) as caught:
            call(GOOD, given)
        assert str(caught.value).endswith(conversion_hint(given)), entry
    code = conversion_hint(given).rpartition(" with ")[2]
    names = {"array": given, "image": given, "images": given, "torch": torch, "torchvision": torchvision}
    batch = eval(code, names)  # the code of our own message
    assert batch.dim() == 4 and batch.shape[1] == 3
    assert bool(NET(batch, batch, 1.0).eq(0).all())


def test_a_list_of_other_images_is_told_how_each_becomes_a_batch():
    hint = conversion_hint([ARRAY[0], ARRAY[1]])
    assert hint.startswith("; make one batch of it with torch.cat: of each image, convert it with torch.from_numpy(")
    assert conversion_hint(0.5) == conversion_hint([]) == conversion_hint(["a.png"]) == ""


@pytest.mark.parametrize(
    "shape", [(2, 40, 41, 3), (40, 41, 3), (3, 40, 41), (1, 40, 41), (40, 41), (2, 4, 40, 41, 3), (2, 40, 41, 1)]
)
def test_the_code_for_a_layout_makes_a_batch_of_it(shape):
    batch = eval(f"images{layout_hint(shape)}", {"images": torch.zeros(shape)})
    assert batch.dim() in (4, 5) and batch.shape[-3] in (1, 3) and batch.shape[-2:] == (40, 41)


@pytest.mark.parametrize("shape", [(2, 3, 40, 41), (2, 4, 40, 41), (2, 3, 40, 3), (2, 5, 3, 40, 40)])
def test_a_batch_needs_no_other_layout(shape):
    assert layout_hint(shape) == ""


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((2, 40, 40, 3), r"channels come second: use .permute\(0, 3, 1, 2\)$"),
        ((2, 4, 40, 40, 3), r"channels come third: use .permute\(0, 1, 4, 2, 3\)$"),
        ((40, 40, 3), r"add the batch dimension with .permute\(2, 0, 1\).unsqueeze\(0\)$"),
        ((3, 40, 40), r"add the batch dimension with .unsqueeze\(0\)$"),
        ((40, 40), r"add the batch dimension with \[None, None\]$"),
    ],
)
def test_the_error_for_a_layout_names_its_code(shape, said):
    for net in (NET, LPIPS("embedded", gray="repeat")):
        with pytest.raises(ValueError, match=said):
            net(torch.zeros(shape), torch.zeros(shape))


def test_rows_are_not_taken_for_channels_without_a_hint():
    net = LPIPS("embedded", gray="per_channel")
    with pytest.raises(ValueError, match=r"got 40x3; if these are rows of a channels-last image, use .permute"):
        net(GOOD.permute(0, 2, 3, 1), GOOD.permute(0, 2, 3, 1), 1.0)


@pytest.mark.parametrize("highest", [1.3, 2.19, 2.7, 6.0, 30.0])
@pytest.mark.parametrize("data_range", [(0.0, 1.0), (-1.0, 1.0)])
def test_an_overshoot_is_never_called_bytes(highest, data_range):
    images = GOOD * (highest - data_range[0]) + data_range[0]
    with pytest.raises(ValueError, match="expected values on") as caught:
        check_values(images, "x", data_range)
    assert "255" not in str(caught.value)
    with pytest.raises(ValueError, match=r"these look like \[0, 255\]"):
        check_values(GOOD * 255, "x", data_range)


def test_a_mask_that_is_no_tensor_or_holds_integers_is_told_how_it_becomes_one():
    mask = np.ones((2, 40, 40), np.uint8)
    with pytest.raises(TypeError, match=r"^mask: .* got ndarray; convert it with torch.from_numpy\(array\)$"):
        NET(GOOD, GOOD, 1.0, mask=mask)
    with pytest.raises(TypeError, match=r"^mask: .* got torch.uint8; convert it with mask > 0$"):
        NET(GOOD, GOOD, 1.0, mask=torch.from_numpy(mask))
    assert bool(NET(GOOD, GOOD, 1.0, mask=torch.from_numpy(mask) > 0).eq(0).all())


def test_a_mask_on_bytes_is_told_to_divide_the_mask():
    with pytest.raises(ValueError, match=r"^mask: .* these look like \[0, 255\]: divide the mask by 255$"):
        NET(GOOD, GOOD, 1.0, mask=torch.full((2, 40, 40), 255.0))


def test_hints_are_pickled_as_what_differs_from_the_defaults():
    for given in (hints.OPTIONS, hints.METRIC, hints.UNMASKED, hints.COMPAT, hints.MASK):
        assert pickle.loads(pickle.dumps(given)) == copy.deepcopy(given) == given
    assert len(pickle.dumps(hints.OPTIONS)) < 120
