"""Pixel values: errors for impossible ones, one warning for suspicious ones, no waiting for a device."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch

from lpips_lightning import LPIPS, LearnedPerceptualImagePatchSimilarity, PerceptualLoss
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
    return tuple((image + 1) / 2 for image in pair(1, 32, 32))


def _repeat(loss, x, y, calls=12):
    for _ in range(calls):
        loss(x, y)


def test_a_range_below_0_that_is_never_used_warns_once(backbones, pair, metric, loss):
    x, y = _bright(pair)
    net = LPIPS("squeeze", weights=backbones["squeeze"])
    for name, call in (("x", net), ("preds", metric.update), ("target", loss)):
        for _ in range(2):
            call(x, y)
        with pytest.warns(UserWarning, match=rf"{name}: declared on \[-1, 1\], but no value below 0 in the first 3"):
            call(x, y)
        for _ in range(3):
            call(x, y)
    metric.compute()


def test_a_metric_of_few_batches_warns_when_it_computes(metric, pair):
    metric.update(*_bright(pair))
    with pytest.warns(UserWarning, match=r"preds: declared on \[-1, 1\], but no value below 0 in the first 1 batches"):
        metric.compute()
    metric.reset()
    metric.update(*_bright(pair))
    metric.compute()


def test_a_range_to_255_over_values_to_1_warns(backbones, pair):
    metric = LearnedPerceptualImagePatchSimilarity("squeeze", data_range=255, weights=backbones["squeeze"])
    metric.update(*_bright(pair))
    with pytest.warns(UserWarning, match=r"preds: declared on \[0, 255\], but no value above 1"):
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
    with pytest.warns(UserWarning, match="no value below 0 in the first 4 batches"):
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
    with pytest.raises(RangeError, match=r"pred: .* these look like \[0, 255\]"):
        _repeat(loss, x, y)


def test_on_a_device_a_nan_target_is_an_error(loss, pair, on_a_device):
    x, y = pair(1, 32, 32)
    loss(x, torch.full_like(y, float("nan")))
    with pytest.raises(RangeError, match="target: .* a NaN usually comes from"):
        _repeat(loss, x, y)


def test_no_call_of_a_loss_asks_a_device_between_the_looks(loss, pair, on_a_device, monkeypatch):
    asked = []
    monkeypatch.setattr(RangeChecker, "_check", lambda self, known, extremes: asked.append(known.calls))
    for _ in range(16):
        loss(*pair(1, 32, 32))
    assert asked == [5, 5, 13, 13]


def test_copies_and_pickles_remember_the_warning_but_not_the_values(pair, on_a_device):
    checker = RangeChecker()
    checker.observe(pair()[0] * 3, "x", (-1.0, 1.0))
    for other in (copy.deepcopy(checker), pickle.loads(pickle.dumps(checker))):
        other.flush()
    with pytest.raises(RangeError):
        checker.flush()
    checker.flush()
    checker.observe(_bright(pair)[0], "x", (-1.0, 1.0))
    with pytest.warns(UserWarning, match="no value below 0"):
        checker.flush()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = copy.deepcopy(checker)
        again.observe(_bright(pair)[0], "x", (-1.0, 1.0))
        again.flush()


def test_a_metrics_copies_check_ranges_for_themselves(metric):
    clone = metric.clone()
    assert clone.net.range_checker is not metric.net.range_checker
