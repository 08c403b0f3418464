"""tLP as function and metric: against distances of neighboring frames, one by one."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from lpips_lightning import LPIPS, Ensemble, WeightedSum
from lpips_lightning.backbones import from_module
from lpips_lightning.functional.temporal import temporal_lpips
from lpips_lightning.images.ranges import RangeError
from lpips_lightning.metrics.temporal import TemporalLPIPS
from lpips_lightning.perceptual_distance import PerceptualDistance

NET = LPIPS("embedded")
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}


def videos(batch=2, frames=4, seed=0, dtype=torch.float32, side=40):
    return torch.rand(2, batch, frames, 3, side, side, generator=torch.Generator().manual_seed(seed)).to(dtype)


def slow(x, y, net=NET):
    """The definition, pair by pair."""
    rows = []
    for one, two in zip(x, y, strict=True):
        changes = [
            [net(side[t : t + 1], side[t + 1 : t + 2], 1.0).item() for t in range(len(side) - 1)] for side in (one, two)
        ]
        rows.append([abs(first - second) for first, second in zip(*changes, strict=True)])
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "options",
    [{}, {"frame_chunk": 1}, {"frame_chunk": 3}, {"memory_budget": 10**9}, {"resize": 48}, {"calibrated": False}],
)
def test_the_function_is_the_definition(options, dtype):
    net = LPIPS("embedded", **options)
    x, y = videos(dtype=dtype)
    found = temporal_lpips(x, y, net, "none", data_range=1.0)
    assert found.dtype == dtype and found.shape == (2, 3)
    assert torch.allclose(found.double(), slow(x, y, net), atol=TOLERANCE[dtype], rtol=0)
    for reduction in ("mean", "sum"):
        assert torch.allclose(temporal_lpips(x, y, net, reduction, data_range=1.0), getattr(found, reduction)())


def test_channels_of_multispectral_videos_are_averaged():
    net = LPIPS("embedded", gray="per_channel")
    x, y = (side[:, :, :2] for side in videos())
    assert torch.allclose(temporal_lpips(x, y, net, "none", data_range=1.0).double(), slow(x, y, net), atol=1e-6)


def test_each_frame_is_encoded_once(monkeypatch):
    seen = []
    encode = PerceptualDistance.encode
    monkeypatch.setattr(LPIPS, "encode", lambda self, x, *args: seen.append(len(x)) or encode(self, x, *args))
    temporal_lpips(*videos(2, 5), NET, data_range=1.0)
    assert sum(seen) == 2 * 2 * 5


def test_equal_changes_of_unlike_videos_are_none_and_flicker_counts():
    still, flicker = torch.zeros(1, 4, 3, 40, 40), torch.zeros(1, 4, 3, 40, 40)
    flicker[:, ::2] = 1
    assert temporal_lpips(still, still + 0.7, NET, data_range=1.0) == 0
    assert temporal_lpips(flicker, still, NET, data_range=1.0) > 0.1


def test_gradients_are_those_of_finite_differences():
    x, y = videos(1, 3, dtype=torch.float64, side=32)
    net = LPIPS("embedded", precision="fp32")
    x.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda images: temporal_lpips(images, y, net, data_range=1.0), (x,), fast_mode=True, atol=1e-6
    )


def test_predictions_may_have_any_values_and_data_may_not():
    x, y = videos(1, 3)
    prediction = (x * 3 - 1).requires_grad_()
    temporal_lpips(prediction, y, NET, data_range=1.0).backward()
    assert prediction.grad.abs().sum() > 0 and prediction.grad.isfinite().all()
    with pytest.raises(RangeError, match=r"target: expected values on \[0, 1\]"):
        temporal_lpips(x.requires_grad_(), y * 3 - 1, NET, data_range=1.0)


@pytest.mark.parametrize("shape", [(2, 1, 3, 40, 40), (2, 3, 40, 40), (3, 40, 40)])
def test_videos_without_two_frames_are_refused(shape):
    with pytest.raises(ValueError, match=r"preds: expected videos \(B, T, 3, H, W\) of two frames or more"):
        temporal_lpips(torch.zeros(shape), torch.zeros(shape), NET)
    with pytest.raises(ValueError, match="target: expected videos"):
        TemporalLPIPS(NET).update(torch.zeros(2, 3, 3, 40, 40), torch.zeros(shape))


def test_unequal_videos_and_unknown_arguments_are_refused():
    x, y = videos()
    with pytest.raises(ValueError, match="target: expected"):
        temporal_lpips(x, y[:, :3], NET)
    with pytest.raises(TypeError, match="preds: expected a tensor"):
        temporal_lpips(x.numpy(), y, NET)
    with pytest.raises(ValueError, match="reduction: expected one of"):
        temporal_lpips(x, y, NET, "median")
    with pytest.raises(TypeError, match="frame_chunks: expected the name of an option"):
        temporal_lpips(x, y, "embedded", frame_chunks=2)


def test_the_metric_is_the_mean_over_pairs_of_frames_of_videos_of_any_length():
    metric = TemporalLPIPS(NET, data_range=1.0)
    (a, b), (c, d) = videos(2, 4), videos(1, 2, seed=1)
    metric.update(a, b)
    metric.update(c, d)
    metric.update(a[:0], b[:0])
    every = torch.cat([slow(a, b).flatten(), slow(c, d).flatten()])
    assert metric.compute() == pytest.approx(every.mean().item(), abs=1e-6)
    assert metric.state_dict() == {} and pickle.loads(pickle.dumps(metric)).compute() == metric.compute()
    metric.reset()
    metric.update(a[:0], b[:0])
    assert metric.compute().isnan()


def test_repeated_videos_count_once_and_parts_that_share_a_frame_make_the_whole():
    x, y = videos(2, 5)
    plain, indexed, parts = (TemporalLPIPS(NET, data_range=1.0) for _ in range(3))
    plain.update(x, y)
    indexed.update(x, y, index=[1, 0])
    indexed.update(x[:1], y[:1], index=[1])
    parts.update(x[:, :3], y[:, :3])
    parts.update(x[:, 2:], y[:, 2:])
    assert indexed.compute() == pytest.approx(plain.compute().item(), abs=1e-7)
    assert parts.compute() == pytest.approx(plain.compute().item(), abs=1e-7)
    whole, other = copy.deepcopy(parts), TemporalLPIPS("embedded", data_range=1.0)
    assert whole.fingerprint == other.fingerprint and whole.fingerprint.startswith("tLP by LPIPS embedded")


def test_forward_of_the_metric_is_differentiable():
    x, y = videos(1, 3)
    x.requires_grad_()
    TemporalLPIPS(NET, data_range=1.0)(x, y).backward()
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize(
    "net",
    [
        Ensemble("embedded", "shift", draws=2),
        WeightedSum([(NET, 1.0), (LPIPS("embedded", calibrated=False), 0.5)]),
        LPIPS("embedded", distance="mean_pool"),
        LPIPS("embedded", distance="lpips_plus"),
    ],
    ids=["ensemble", "sum", "mean_pool", "lpips_plus"],
)
def test_any_distance_is_measured(net):
    x, y = videos(1, 3, side=48)
    expected = slow(x, y, net)
    assert torch.allclose(temporal_lpips(x, y, net, "none", data_range=1.0).double(), expected, atol=1e-6)
    metric = TemporalLPIPS(net, data_range=1.0)
    metric.update(x, y)
    assert metric.compute() == pytest.approx(expected.mean().item(), abs=1e-6)
    x.requires_grad_()
    found = temporal_lpips(x, y, net, "none", data_range=1.0)
    assert torch.allclose(found.double(), expected, atol=1e-6)
    found.sum().backward()
    assert x.grad.abs().sum() > 0


def test_fresh_draws_are_a_loss_and_no_metric():
    net = Ensemble("embedded", "shift", draws=1, seed=None)
    x, y = videos(1, 3, side=48)
    temporal_lpips(x.requires_grad_(), y, net, data_range=1.0).backward()
    assert x.grad.abs().sum() > 0
    with pytest.raises(ValueError, match="expected distances that can be repeated"):
        TemporalLPIPS(net, data_range=1.0)


def test_a_network_without_a_range_takes_latents():
    layers = torch.nn.Sequential(torch.nn.Conv2d(4, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3))
    net = LPIPS(from_module(layers, ["0", "2"], input_channels=4, has_range=False), calibrated=False)
    x, y = torch.randn(2, 1, 3, 4, 16, 16, generator=torch.Generator().manual_seed(0)) * 9
    expected = (net(x[:, :-1], x[:, 1:]) - net(y[:, :-1], y[:, 1:])).abs()
    assert torch.allclose(temporal_lpips(x, y, net, "none"), expected, atol=1e-6)
