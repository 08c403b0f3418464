"""Pixel values: errors for impossible ones, one warning for suspicious ones, no waiting for a device."""

from __future__ import annotations

import copy
import math
import pickle
import warnings
from pathlib import Path

import pytest
import torch
from untrained import UNTRAINED

from lpips_lightning import LPIPS, LearnedPerceptualImagePatchSimilarity, LPIPSDiversity, PerceptualLoss, compat
from lpips_lightning import LearnedPerceptualImagePatchSimilarity as Metric
from lpips_lightning.calibration import PerceptualCalibration
from lpips_lightning.callbacks import PerceptualScores
from lpips_lightning.evaluation.methods import parse_method
from lpips_lightning.functional.lpips import learned_perceptual_image_patch_similarity
from lpips_lightning.functional.lpips import learned_perceptual_image_patch_similarity as function
from lpips_lightning.images import ranges
from lpips_lightning.images.ranges import RangeChecker, RangeError


@pytest.fixture
def on_a_device(monkeypatch):
    """The CPU stands in for an accelerator, whose values the host must not ask for."""
    monkeypatch.setattr(ranges, "_on_host", lambda images: False)


@pytest.fixture
def metric(backbones):
    return LearnedPerceptualImagePatchSimilarity("squeeze", weights=backbones["squeeze"])


@pytest.fixture
def loss(backbones):
    return PerceptualLoss("squeeze", data_range=(-1, 1), weights=backbones["squeeze"])


def _bright(pair):
    """Images that [-1, 1] and [0, 1] might hold: nothing below 0, and nothing near it."""
    return tuple(0.55 + 0.45 * image for image in pair(1, 32, 32))


def _unit(pair):
    """Images on [0, 1], from black to white."""
    return tuple((image - image.min()) / (image.max() - image.min()) for image in pair(1, 32, 32))


def _repeat(loss, x, y, calls=12):
    for _ in range(calls):
        loss(x, y)


def test_a_range_below_0_that_is_never_used_warns_once(backbones, pair, metric, loss):
    x, y = _bright(pair)
    net = LPIPS("squeeze", weights=backbones["squeeze"])
    for name, call in (("x", net), ("preds", metric.update), ("target", loss)):
        for _ in range(2):
            call(x, y)
        with pytest.warns(UserWarning, match=rf"{name}: expected values on \[-1, 1\], got none below 0 in the first 3"):
            call(x, y)
        for _ in range(3):
            call(x, y)
    metric.compute()


FIRST = {  # the first call on images on [0, 1] that takes them for [-1, 1]; the way out that it names
    "network": (lambda x, y: LPIPS("embedded")(x, y), "say data_range=(0, 1)"),
    "features": (lambda x, y: LPIPS("embedded").encode(x), "say data_range=(0, 1)"),
    "all pairs": (lambda x, y: LPIPS("embedded").pairwise(x, y), "say data_range=(0, 1)"),
    "loss": (lambda x, y: PerceptualLoss("embedded", data_range=(-1, 1))(2 * x - 1, y), "say data_range=(0, 1)"),
    "metric": (lambda x, y: Metric("embedded").update(x, y), "say data_range=(0, 1) (normalize=True)"),
    "its forward": (lambda x, y: Metric("embedded")(x, y), "say data_range=(0, 1) (normalize=True)"),
    "its network": (lambda x, y: Metric("embedded").net(x, y), "say data_range=(0, 1)"),
    "diversity": (lambda x, y: LPIPSDiversity("embedded").update(torch.cat((x, y))), "say data_range=(0, 1)"),
    "function": (lambda x, y: function(x, y, LPIPS("embedded")), "say data_range=(0, 1) (normalize=True)"),
    "callback": (
        lambda x, y: PerceptualScores("embedded", data_range=(-1, 1)).score(2 * x - 1, y),
        "say data_range=(0, 1)",
    ),
    "compat": (lambda x, y: compat.LPIPS(net="embedded", verbose=False)(x, y), "say normalize=True"),
    "calibration": (
        lambda x, y: PerceptualCalibration("embedded")._distances({"p0": x, "p1": y, "same": torch.ones(1)}, 0),
        "convert with 2 * images - 1",
    ),
    "evaluation": (lambda x, y: parse_method("embedded").distance(x, y), "convert with 2 * images - 1"),
}


@pytest.mark.parametrize("entry", FIRST)
def test_one_batch_on_0_1_is_enough_if_its_darkest_pixel_is_near_0(pair, entry):
    call, way_out = FIRST[entry]
    with pytest.warns(
        UserWarning, match=r": expected values on \[-1, 1\], got none below 0 in the first batch;"
    ) as caught:
        call(*_unit(pair))
    assert [str(one.message).partition("if they are on [0, 1], ")[2] for one in caught] == [way_out]
    assert Path(caught[0].filename).name == Path(__file__).name  # the user's line


@pytest.mark.parametrize("entry", FIRST)
def test_one_batch_that_both_ranges_may_hold_is_not(pair, entry):
    x, y = _bright(pair)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FIRST[entry][0](x, y)
        FIRST[entry][0](torch.ones_like(x), torch.ones_like(y))


def test_black_frames_on_0_255_are_not_taken_for_images_on_0_1(pair):
    net = LPIPS("embedded")
    x, y = (image.round() for image in _unit(pair))
    net(x, y, 255)
    with pytest.warns(UserWarning, match=r"x: expected values on \[0, 255\], got none above 1 in the first 2 batches"):
        net(x * 0.99, y, 255)


def test_images_of_another_range_than_declared_are_an_error_or_a_warning_everywhere(pair):
    x, y = pair(1, 32, 32)
    entries = {
        "network": lambda x, y: LPIPS("embedded")(x, y, (0, 1)),
        "features": lambda x, y: LPIPS("embedded").encode(x, (0, 1)),
        "all pairs": lambda x, y: LPIPS("embedded").pairwise(x, y, (0, 1)),
        "loss": lambda x, y: PerceptualLoss("embedded", data_range=(0, 1))(torch.zeros_like(x), y),
        "metric": Metric("embedded", data_range=(0, 1)).update,
        "torchmetrics' argument": Metric("embedded", normalize=True).update,
        "function": lambda x, y: function(x, y, LPIPS("embedded"), data_range=(0, 1)),
        "callback": PerceptualScores("embedded", data_range=(0, 1)).score,
        "diversity": lambda x, y: LPIPSDiversity("embedded", data_range=(0, 1)).update(torch.cat((x, y))),
    }
    for call in entries.values():
        with pytest.raises(RangeError, match=r"these look like \[-1, 1\]: pass data_range=\(-1, 1\)"):
            call(x, y)
        with pytest.raises(RangeError, match=r"these look like \[0, 255\]: pass data_range=255"):
            call(255 * x.abs(), 255 * y.abs())


def test_a_metric_of_few_batches_warns_when_it_computes(metric, pair):
    metric.update(*_bright(pair))
    with pytest.warns(UserWarning, match=r"preds: expected values on \[-1, 1\], got none below 0 in the first batch;"):
        metric.compute()
    metric.reset()
    metric.update(*_bright(pair))
    metric.compute()


def test_a_range_to_255_over_values_to_1_warns(backbones, pair):
    metric = LearnedPerceptualImagePatchSimilarity("squeeze", data_range=255, weights=backbones["squeeze"])
    with pytest.warns(UserWarning, match=r"preds: expected values on \[0, 255\], got none above 1 in the first batch;"):
        metric.update(*_bright(pair))
    metric.compute()


def test_what_proves_nothing_does_not_warn(backbones, pair, metric, loss):
    x, y = pair(1, 32, 32)
    flat = torch.ones_like(x)
    silent = PerceptualLoss("squeeze", data_range=(-1, 1), weights=backbones["squeeze"], validate_args=False)
    whole = (255 * _bright(pair)[0]).to(torch.uint8)
    for _ in range(4):
        metric.update(x, y)
        metric.update(flat, flat)
        metric.update(whole, whole)
        loss((x + 1) / 2, y)  # predictions of a network in training may be anywhere
        silent(*_bright(pair))
    metric.compute()


def test_one_batch_below_0_among_the_first_is_enough(metric, pair):
    for batch in (_bright(pair), pair(1, 32, 32), _bright(pair), _bright(pair)):
        metric.update(*batch)
    metric.compute()


def test_on_a_device_a_metric_reports_when_it_computes(metric, pair, on_a_device):
    x, y = pair(1, 32, 32)
    metric.update(x, y)
    metric.update(2 * x - 1, y)
    metric(x, y)  # the batch's own value does not make the host wait either
    with pytest.raises(RangeError, match="preds: .* 2x - 1 was applied twice"):
        metric.compute()
    metric.reset()
    metric.update(x, y)
    assert bool(metric.compute().isfinite())


def test_on_a_device_a_metric_warns_when_it_computes(metric, pair, on_a_device):
    for _ in range(4):
        metric.update(*_bright(pair))
    with pytest.warns(UserWarning, match="got none below 0 in the first 4 batches"):
        metric.compute()


@pytest.mark.parametrize("wrong_at", [0, 1, 5, 11])
def test_on_a_device_a_loss_reports_a_few_calls_later(loss, pair, on_a_device, wrong_at):
    x, y = pair(1, 32, 32)
    for call in range(wrong_at + 1):
        loss(x, 127.5 * (y + 1) if call == wrong_at else y)
    with pytest.raises(RangeError, match=r"target: .* these look like \[0, 255\]"):
        _repeat(loss, x, y)


def test_on_a_device_a_nan_prediction_does_not_hide_a_wrong_one(loss, pair, on_a_device):
    x, y = pair(1, 32, 32)
    loss(torch.full_like(x, float("nan")), y)
    loss(127.5 * (x + 1), y)
    with pytest.warns(UserWarning, match=r"pred: declared on \[-1, 1\], but .* these look like \[0, 255\]"):
        _repeat(loss, x, y)


def test_on_a_device_a_nan_target_is_an_error(loss, pair, on_a_device):
    x, y = pair(1, 32, 32)
    loss(x, torch.full_like(y, float("nan")))
    with pytest.raises(RangeError, match="target: .* a NaN usually comes from"):
        _repeat(loss, x, y)


def test_no_call_of_a_loss_asks_a_device_between_the_looks(loss, pair, on_a_device, monkeypatch):
    asked = []
    monkeypatch.setattr(RangeChecker, "_check", lambda self, known, extremes, batches: asked.append(known.calls))
    for _ in range(16):
        loss(*pair(1, 32, 32))
    assert asked == [5, 5, 13, 13]


def _stepped(network, data_range, steps=10, size=16):
    """Train a network for some steps, first on its untrained output; the losses."""
    low, high = data_range
    loss, optimizer = PerceptualLoss("embedded", data_range=data_range), torch.optim.Adam(network.parameters(), 1e-3)
    values = []
    for step in range(steps):
        torch.manual_seed(step)
        value = loss(network(torch.randn(2, 4, size, size)), torch.rand(2, 3, 2 * size, 2 * size) * (high - low) + low)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(float(value.detach()))
    return values


@pytest.mark.parametrize("data_range", [(0, 1), (-1, 1)])
@pytest.mark.parametrize("kind", UNTRAINED)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_an_untrained_network_trains_without_a_word(kind, data_range, seed, monkeypatch):
    torch.manual_seed(seed)
    network = UNTRAINED[kind]()
    first = network(torch.randn(2, 4, 16, 16)).detach()
    assert not data_range[0] <= float(first.min()) <= float(first.max()) <= data_range[1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert all(map(math.isfinite, _stepped(network, data_range)))


@pytest.mark.parametrize("data_range", [(0, 1), (-1, 1), (0, 255)])
def test_predictions_up_to_ten_ranges_off_pass_without_a_word(pair, data_range):
    x, y = pair(1, 32, 32)
    low, high = data_range
    width, target = high - low, (y + 1) / 2 * (high - low) + low
    loss = PerceptualLoss("embedded", data_range=data_range)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for times in (1, 2, 5, 10):
            assert bool(loss(low + times * width * x, target).isfinite())
        spike = target.clone()
        spike[0, 0, 0, :8] = 1e6 * width  # outliers tell of no wrong scale
        assert bool(loss(spike, target).isfinite())
    with pytest.warns(UserWarning, match="pred: declared on .*but the middle half of the values lies from"):
        loss(low + 100 * width * x, target)


def test_a_wrong_scale_of_predictions_warns_once(loss, pair):
    x, y = pair(1, 32, 32)
    with pytest.warns(UserWarning, match=r"pred: declared on \[-1, 1\], .* these look like \[0, 255\]") as caught:
        _repeat(loss, (x + 1) * 127.5, y, 6)
    assert len([one for one in caught if "middle half" in str(one.message)]) == 1


def test_the_scale_of_predictions_is_looked_at_in_the_first_calls_only(loss, pair, monkeypatch):
    monkeypatch.setattr(ranges, "_WATCHED_CALLS", 3)
    x, y = pair(1, 32, 32)
    _repeat(loss, x, y, 3)
    monkeypatch.setattr(ranges, "_quartiles", None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert bool(loss(1e4 * x, y).isfinite())
    with pytest.raises(RangeError, match="target: expected values on"):
        loss(x, 1.2 * y)


def test_under_compile_no_values_are_looked_at(pair, monkeypatch):
    monkeypatch.setattr(RangeChecker, "observe", None)
    x, y = pair(1, 32, 32)
    loss = PerceptualLoss("embedded", data_range=(-1, 1))
    plain = PerceptualLoss("embedded", data_range=(-1, 1), validate_args=False)
    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    assert torch.allclose(compiled(1e3 * x, y), plain(1e3 * x, y), rtol=1e-5)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("everywhere", [False, True])
def test_nan_and_inf_in_predictions_pass_and_the_next_step_works(loss, pair, value, everywhere):
    x, y = pair(2, 32, 32)
    spoiled = x.clone()
    spoiled[... if everywhere else (0, 0, 0, 0)] = value
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            leaf = spoiled.clone().requires_grad_()
            found = loss(leaf, y)
            found.backward()
            assert bool(found.isnan())
            assert not bool(leaf.grad.isfinite().all())
        leaf = x.clone().requires_grad_()
        loss(leaf, y).backward()
        assert bool(leaf.grad.isfinite().all())


def test_a_grad_scaler_skips_the_step_of_a_nan_prediction(loss, pair):
    _, y = pair(1, 32, 32)
    weight = torch.nn.Parameter(torch.full((1, 3, 1, 1), 0.5))
    optimizer, scaler = torch.optim.SGD([weight], lr=0.1), torch.amp.GradScaler("cpu", init_scale=2.0)
    moved = []
    for factor in (1.0, math.nan, 1.0):
        before = weight.detach().clone()
        optimizer.zero_grad()
        scaler.scale(loss(weight * y * factor, y)).backward()
        scaler.step(optimizer)
        scaler.update()
        moved.append(not torch.equal(weight.detach(), before))
    assert moved == [True, False, True]
    assert scaler.get_scale() == 1.0


def _strided(images):
    return images.repeat(1, 1, 2, 2)[..., ::2, ::2]


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t,
        lambda t: t.double(),
        lambda t: t.half(),
        lambda t: t.bfloat16(),
        lambda t: t.contiguous(memory_format=torch.channels_last),
        _strided,
    ],
)
def test_the_quartiles_are_those_of_the_finite_values(change):
    torch.manual_seed(0)
    images = torch.randn(4, 3, 64, 64)
    expected = images.quantile(torch.tensor([0.25, 0.75]))
    torch.testing.assert_close(ranges._quartiles(change(images)), expected, rtol=0, atol=0.05)
    images[torch.rand(images.shape) < 0.3] = math.nan
    images[torch.rand(images.shape) < 0.1] = math.inf
    torch.testing.assert_close(ranges._quartiles(change(images)), expected, rtol=0, atol=0.08)
    assert bool(ranges._quartiles(change(images * math.nan)).isnan().all())
    assert ranges._quartiles(change(torch.full((1, 1, 1, 1), 3.0))).tolist() == [3, 3]
    # Without values nothing can be asked of a device.
    assert ranges._quartiles(change(images).to("meta")).shape == (2,)


def test_a_network_as_a_loss_takes_any_prediction_with_the_right_gradient(backbones, pair):
    x, y = pair(1, 32, 32, torch.float64)
    options = {"weights": backbones["squeeze"]}
    net, metric = LPIPS("squeeze", **options), LearnedPerceptualImagePatchSimilarity("squeeze", **options)
    unchecked = LPIPS("squeeze", validate_args=False, **options)
    for call in (
        net,
        metric.net,
        lambda a, b: net.measure(a, b).values,
        lambda a, b: learned_perceptual_image_patch_similarity(a, b, net, "none"),
    ):
        for scale in (1.05, 3.0):
            for first in (True, False):
                leaf, right = (scale * x).requires_grad_(), (scale * x).requires_grad_()
                call(*(leaf, y) if first else (y, leaf)).sum().backward()
                unchecked(*(right, y) if first else (y, right)).sum().backward()
                torch.testing.assert_close(leaf.grad, right.grad, rtol=1e-9, atol=1e-12)
                assert bool(leaf.grad[leaf.detach().abs() > 1].any())
        with pytest.raises(RangeError):
            call(x.clone().requires_grad_(), 100 * y)
    nan = torch.full_like(x, math.nan).requires_grad_()
    assert bool(net(nan, y).isnan().all())
    for strict in (lambda: net(1.2 * x, y), lambda: net(x, 1.2 * y)):
        with pytest.raises(RangeError):
            strict()
    with torch.no_grad(), pytest.raises(RangeError):
        net((1.2 * x).requires_grad_(), y)
    with pytest.warns(UserWarning, match=r"x: declared on \[-1, 1\], .* these look like \[0, 255\]"):
        net(((x + 1) * 127.5).requires_grad_(), y)


def test_without_gradients_the_network_of_a_metric_lets_values_overshoot_with_one_warning(metric, backbones, pair):
    x, y = pair(1, 32, 32)
    unchecked = LPIPS("squeeze", validate_args=False, weights=backbones["squeeze"])
    with pytest.warns(UserWarning, match="x: expected values on .*; they are measured as they are") as caught:
        found = metric.net(1.2 * x, 1.2 * y)
    assert len(caught) == 1
    assert torch.equal(found, unchecked(1.2 * x, 1.2 * y))
    assert torch.equal(metric.net(1.2 * x, 1.2 * y), found)
    for change in (lambda t: 2 * t - 1, lambda t: 127.5 * (t + 1), lambda t: t * math.nan):
        with pytest.raises(RangeError, match="x: expected values on"):
            metric.net(change(x), change(y))
        with pytest.warns(UserWarning, match="x: expected values on .* since the other images are on the range"):
            found = metric.net(change(x), y)
        assert torch.equal(found.isnan(), change(x[0, 0, :1, 0]).isnan())
        assert torch.equal(metric.net(x, change(y)).isnan(), change(x[0, 0, :1, 0]).isnan())
    assert bool(metric.net(3 * x, metric.net.encode(y)).isfinite())
    with pytest.raises(RangeError):
        metric.update(1.2 * x, y)  # what the metric itself measures is data
    assert LPIPS.of(metric.net, {}, LPIPS).role == "data"
    assert metric.clone().net.role == pickle.loads(pickle.dumps(metric)).net.role == "unsure"


def test_on_a_device_the_network_of_a_metric_ends_no_metric(metric, pair, on_a_device):
    x, y = pair(1, 32, 32)
    metric.update(x, y)
    metric.net(4 * x, y)
    with pytest.warns(UserWarning, match="x: expected values on .*; they are measured as they are"):
        assert bool(metric.compute().isfinite())


def test_roles_do_not_reset_each_other(on_a_device, pair):
    checker = RangeChecker()
    x = pair(1, 32, 32)[0]
    checker.observe(3 * x, "x", (-1.0, 1.0))
    checker.observe(3 * x, "x", (-1.0, 1.0), "prediction")
    checker.observe(x, "x", (-1.0, 1.0))
    with pytest.raises(RangeError):
        checker.flush()


def test_copies_and_pickles_remember_the_warning_but_not_the_values(pair, on_a_device):
    checker = RangeChecker()
    checker.observe(pair()[0] * 3, "x", (-1.0, 1.0))
    for other in (copy.deepcopy(checker), pickle.loads(pickle.dumps(checker))):
        other.flush()
    with pytest.raises(RangeError):
        checker.flush()
    checker.flush()
    checker.observe(_bright(pair)[0], "x", (-1.0, 1.0))
    with pytest.warns(UserWarning, match="got none below 0"):
        checker.flush()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = copy.deepcopy(checker)
        again.observe(_bright(pair)[0], "x", (-1.0, 1.0))
        again.flush()


def test_a_metrics_copies_check_ranges_for_themselves(metric):
    clone = metric.clone()
    assert clone.net.range_checker is not metric.net.range_checker


def test_a_late_check_tells_how_many_batches_it_saw(monkeypatch, recwarn):
    monkeypatch.setattr("lpips_lightning.images.ranges._on_host", lambda images: False)
    numbers = torch.Generator().manual_seed(0)
    bright, both = (
        0.4 + 0.5 * torch.rand(1, 3, 8, 8, generator=numbers),
        torch.rand(1, 3, 8, 8, generator=numbers) * 2 - 1,
    )
    checker = RangeChecker(periodic=True)
    for images in (bright, both, both, both, both, both):
        checker.observe(images, "x", (-1.0, 1.0))
    checker.flush()
    assert not recwarn.list  # one bright batch among others proves nothing
    checker = RangeChecker(periodic=True)
    for _ in range(6):
        checker.observe(bright - bright.min(), "x", (-1.0, 1.0))
    assert [str(one.message) for one in recwarn.list if "in the first batch; if they" in str(one.message)]
