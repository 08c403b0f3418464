"""Network options: equal in all signatures and docstrings, checked by name, and shared through a built network."""

from __future__ import annotations

import copy
import inspect
import math
import pickle
from contextlib import redirect_stdout
from io import StringIO

import pytest
import torch
from jsonargparse import ArgumentParser
from pytorch_lightning import Callback

from lpips_lightning import LPIPS, LearnedPerceptualImagePatchSimilarity, PerceptualLoss
from lpips_lightning.backbones import frozen
from lpips_lightning.calibration import PerceptualCalibration
from lpips_lightning.callbacks import PerceptualScores, SampleGallery
from lpips_lightning.functional.lpips import learned_perceptual_image_patch_similarity
from lpips_lightning.metrics.diversity import LPIPSDiversity
from lpips_lightning.metrics.indexed import METRIC_DEFAULTS, MetricOptions
from lpips_lightning.options import DEFAULTS, LPIPSOptions

X, Y = torch.rand(2, 2, 3, 40, 40, generator=torch.Generator().manual_seed(0))
GRAY, GRAY_TARGET = X[:, :1], Y[:, :1]

DTYPES = ["torch.bfloat16", "torch.float32"]


def by_function(*net_type, **options):
    return learned_perceptual_image_patch_similarity(X, Y, *net_type, data_range=(0, 1), **options)


OWNERS = {  # what takes the options, and what makes it
    LPIPS: LPIPS,
    LearnedPerceptualImagePatchSimilarity: LearnedPerceptualImagePatchSimilarity,
    LPIPSDiversity: LPIPSDiversity,
    PerceptualLoss: lambda *given, **options: PerceptualLoss(*given, data_range=(0, 1), **options),
    PerceptualScores: lambda *given, **options: PerceptualScores(*given, data_range=(0, 1), **options),
    SampleGallery: lambda *given, **options: SampleGallery(*given, data_range=(0, 1), **options),
    learned_perceptual_image_patch_similarity: by_function,
}
SHARING = [owner for owner in OWNERS if owner is not LPIPS]


def names(owner):
    return getattr(owner, "__name__", str(owner))


def net_of(made):
    """The network of an owner."""
    return made._pairs.net if isinstance(made, Callback) else made.net


def test_every_option_has_type_default_and_documentation():
    assert list(DEFAULTS) == list(LPIPSOptions.__annotations__) and len(DEFAULTS) == 13
    assert set(MetricOptions.__annotations__) >= {*DEFAULTS, *METRIC_DEFAULTS}
    for name in DEFAULTS:
        assert f"\n        {name}: " in inspect.cleandoc(LPIPSOptions.__doc__).replace("\n    ", "\n        ")


def test_the_metrics_options_are_torchmetrics():
    plain = LearnedPerceptualImagePatchSimilarity("embedded", normalize=True)
    given = LearnedPerceptualImagePatchSimilarity("embedded", normalize=True, **METRIC_DEFAULTS)
    for name in METRIC_DEFAULTS:
        assert getattr(given, name) == getattr(plain, name)
    assert not LPIPSDiversity("embedded", sync_on_compute=False).sync_on_compute
    with pytest.raises(ValueError, match="^Expected keyword argument `dist_sync_on_step` to be an `bool` but got 3"):
        LPIPSDiversity("embedded", dist_sync_on_step=3)


@pytest.mark.parametrize("owner", OWNERS, ids=names)
def test_signature_and_docstring_show_every_option(owner):
    parameters = inspect.signature(owner).parameters
    expected = {**DEFAULTS, "precision": "autocast" if owner is PerceptualLoss else "fp32"}
    assert {name: parameters[name].default for name in DEFAULTS} == expected
    assert all(one.kind is not inspect.Parameter.VAR_KEYWORD for one in parameters.values())
    text = inspect.getdoc(owner)
    assert [name for name in DEFAULTS if text.count(f"\n    {name}: ") != 1] == [] and "\n    options: " not in text


@pytest.mark.parametrize("owner", OWNERS, ids=names)
def test_an_unknown_name_is_refused_with_the_nearest_one(owner):
    for wrong, near in (("memmory_budget", "memory_budget"), ("grey", "gray"), ("calibrate", "calibrated")):
        message = f"^{wrong}: expected the name of an option, got an unknown one; did you mean '{near}'[?]$"
        with pytest.raises(TypeError, match=message):
            OWNERS[owner]("embedded", **{wrong: None})
    with pytest.raises(TypeError, match="^xyz: expected the name of an option, .*; options of the network: version, "):
        OWNERS[owner]("embedded", xyz=1)


def test_an_unknown_name_suggests_the_owners_arguments_too():
    with pytest.raises(TypeError, match="did you mean 'sync_on_compute'"):
        LearnedPerceptualImagePatchSimilarity("embedded", sync_on_computes=True)
    with pytest.raises(TypeError, match="did you mean 'cache_bytes'"):
        PerceptualScores("embedded", data_range=1, metrics=["psnr"], cache_byte=0)


def test_one_network_serves_metric_loss_callbacks_and_function():
    net = LPIPS("squeeze", weights="random", gray="repeat", precision="bf16", frame_chunk=1, memory_budget=2**30)
    made = [OWNERS[owner](net) for owner in SHARING if owner is not learned_perceptual_image_patch_similarity]
    assert len(made) == 5
    for one in made:
        mine = net_of(one)
        assert mine is not net and mine.range_checker is not net.range_checker and mine.fingerprint == net.fingerprint
        assert net.fingerprint in one.fingerprint if hasattr(one, "fingerprint") else True
        assert (mine.frame_chunk, mine.memory_budget, mine.specification) == (1, 2**30, net.specification)
        assert mine.frozen_network(X.device, torch.bfloat16) is net.frozen_network(X.device, torch.bfloat16)
    assert len({id(net_of(one).range_checker) for one in made}) == 5
    # In memory once in each dtype.
    assert sorted(str(key[2]) for key in list(frozen._networks) if key[0] == net.specification) == DTYPES
    expected = net(GRAY, GRAY_TARGET, (0, 1))
    metric, _, loss, scores, _ = made
    metric.data_range = loss.data_range
    metric.update(GRAY, GRAY_TARGET)
    torch.testing.assert_close(metric.compute(), expected.mean(), rtol=1e-6, atol=0)
    torch.testing.assert_close(loss(GRAY, GRAY_TARGET), expected.mean(), rtol=1e-6, atol=0)
    torch.testing.assert_close(scores.score(GRAY, GRAY_TARGET)[:, 0], expected, rtol=1e-6, atol=0)
    found = learned_perceptual_image_patch_similarity(GRAY, GRAY_TARGET, net, "none", normalize=True)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert sorted(str(key[2]) for key in list(frozen._networks) if key[0] == net.specification) == DTYPES
    assert pickle.loads(pickle.dumps(loss)).fingerprint == copy.deepcopy(loss).fingerprint == loss.fingerprint


def test_each_owner_of_a_shared_network_has_its_own_range_checker():
    net = LPIPS("embedded")
    metric, loss = LearnedPerceptualImagePatchSimilarity(net, data_range=(0, 1)), PerceptualLoss(net, data_range=(0, 1))
    assert net.range_checker.immediate and loss.net.range_checker.periodic
    assert not (metric.net.range_checker.immediate or metric.net.range_checker.periodic)
    scores = PerceptualScores(net, data_range=(0, 1))
    assert net.validate_args and not scores._pairs.net.validate_args and scores._pairs.validate_args
    metric.update(X, Y)
    loss(X, Y)
    assert set(metric.net.range_checker._tracked) == {("preds", "data"), ("target", "data")}
    assert set(loss.net.range_checker._tracked) == {("pred", "prediction"), ("target", "data")}
    assert not net.range_checker._tracked
    with pytest.raises(ValueError, match="^target: expected values on"):
        PerceptualScores(net, data_range=(0, 1)).score(X, Y + 1)
    PerceptualScores(LPIPS("embedded", validate_args=False), data_range=(0, 1)).score(X, Y + 1)


def test_a_loss_uses_the_precision_of_a_built_network():
    for precision in ("fp32", "bf16"):
        net = LPIPS("embedded", precision=precision)
        loss = PerceptualLoss(net, data_range=(0, 1))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            torch.testing.assert_close(loss(X, Y), net(X, Y, (0, 1)).mean(), rtol=0, atol=0)
        assert loss.net.precision == precision and PerceptualLoss("embedded", data_range=1).net.precision == "autocast"


@pytest.mark.parametrize("owner", SHARING, ids=names)
def test_options_with_a_built_network_are_refused(owner):
    net = LPIPS("embedded")
    for options in ({"gray": "repeat"}, {"version": "0.1"}, {"weights": None, "precision": "autocast"}):
        message = (
            f"^{next(iter(options))}: expected no options with a built network in net_type, got {', '.join(options)};"
        )
        with pytest.raises(ValueError, match=message):
            OWNERS[owner](net, **options)


@pytest.mark.parametrize("owner", SHARING, ids=names)
def test_all_defaults_of_a_configuration_parser_count_as_no_options(owner):
    usual = {name: inspect.signature(owner).parameters[name].default for name in DEFAULTS}
    OWNERS[owner](LPIPS("embedded"), **usual)
    with pytest.raises(ValueError, match="^gray: expected no options with a built network in net_type, got gray;"):
        OWNERS[owner](LPIPS("embedded"), **{**usual, "gray": "repeat"})


def test_a_network_is_not_accepted_as_a_backbone():
    with pytest.raises(ValueError, match="^net_type: expected one of 'alex', "):
        LPIPS(LPIPS("embedded"))


def test_configuration_files_show_check_and_share_options(tmp_path):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_argument("--callbacks", type=list[Callback])
    parser.add_argument("--loss", type=PerceptualLoss)
    parser.add_class_arguments(LearnedPerceptualImagePatchSimilarity, "metric")
    (tmp_path / "config.yaml").write_text(
        """
callbacks:
- class_path: lpips_lightning.callbacks.PerceptualScores
  init_args:
    net_type: {class_path: lpips_lightning.LPIPS, init_args: {net_type: embedded, gray: repeat, resize: [64, 64]}}
    data_range: [0, 1]
loss:
  class_path: lpips_lightning.PerceptualLoss
  init_args: {net_type: embedded, data_range: 1.0, background: [0, 0.5, 1], memory_budget: 1000000}
metric: {net_type: embedded, gray: per_channel, sync_on_compute: false}
"""
    )
    given = parser.parse_args([f"--config={tmp_path / 'config.yaml'}"])
    made = parser.instantiate_classes(given)
    (scores,) = made.callbacks
    assert "gray repeat, resize 64x64 bilinear antialias, fp32" in scores.fingerprint
    assert "alpha over [0.0, 0.5, 1.0], autocast" in made.loss.fingerprint and made.loss.net.memory_budget == 10**6
    assert "gray per_channel" in made.metric.fingerprint and not made.metric.sync_on_compute
    for wrong in ("--metric.gray=grey", "--metric.grey=repeat", "--loss.resize=a", "--metric.precision=fp8"):
        with pytest.raises(Exception, match=wrong.split(".")[1].split("=")[0]):
            parser.parse_args([f"--config={tmp_path / 'config.yaml'}", wrong])
    with redirect_stdout(StringIO()) as out:
        parser.print_help()
    for name in {**DEFAULTS, **METRIC_DEFAULTS}:
        assert f"--metric.{name}" in out.getvalue()
    assert "default: fp32" in out.getvalue() and "Limit in bytes for the estimated" in out.getvalue()


def test_networks_with_unhashable_options_are_not_cached():
    assert math.isfinite(by_function("embedded", resize=[40, 40])) and math.isfinite(by_function("embedded", resize=40))


def test_diversity_respects_its_memory_budget(monkeypatch):
    budgets = []
    pairwise = LPIPS.pairwise
    monkeypatch.setattr(
        LPIPS, "pairwise", lambda net, *given, **options: (budgets.append(options), pairwise(net, *given, **options))[1]
    )
    images = torch.cat([X, Y])
    values = [LPIPSDiversity("embedded", True, memory_budget=budget)(images) for budget in (None, 100_000)]
    torch.testing.assert_close(values[1], values[0], rtol=1e-6, atol=0)
    assert [options["memory_budget"] for options in budgets] == [2**30, 100_000]


@pytest.mark.parametrize("owner", OWNERS, ids=names)
def test_net_is_another_name_of_net_type(owner):
    make = OWNERS[owner]
    found, expected = make(net="embedded"), make("embedded")
    if isinstance(expected, torch.Tensor):
        assert found == expected
    else:
        nets = [one if isinstance(one, LPIPS) else net_of(one) for one in (found, expected)]
        assert nets[0].fingerprint == nets[1].fingerprint
    for given in ((("embedded",), {}), ((), {"net_type": "embedded"})):
        with pytest.raises(TypeError, match="net: expected net_type or net, which is another name of it, got both"):
            make(*given[0], net="alex", **given[1])
    assert "net" not in inspect.signature(owner).parameters


@pytest.mark.parametrize("owner", OWNERS, ids=names)
def test_a_version_may_be_a_number(owner):
    make = OWNERS[owner]
    found = make("embedded", version=0.1)
    net = found if isinstance(found, LPIPS) else None if isinstance(found, torch.Tensor) else net_of(found)
    assert net is None or net.version == "0.1"
    for wrong in (True, 0.2, 1, math.nan):
        with pytest.raises(ValueError, match="version: expected one of '0.1' for net_type 'embedded', got"):
            make("embedded", version=wrong)


def test_a_configuration_file_may_hold_a_number_as_version(tmp_path):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(PerceptualLoss, "loss")
    (tmp_path / "loss.yaml").write_text("loss: {net_type: embedded, data_range: 1.0, version: 0.1}")
    built = parser.instantiate_classes(parser.parse_args(["--config", str(tmp_path / "loss.yaml")])).loss
    assert built.net.version == "0.1"
    shared = LPIPS("embedded")
    assert LPIPS.of(shared, {**DEFAULTS, "version": 0.1}, LPIPS).fingerprint == shared.fingerprint
    assert PerceptualCalibration("embedded", version=0.1).hparams["version"] == "0.1"
