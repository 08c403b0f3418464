"""The metric among torchmetrics' own: collections, trackers, copies, processes."""

from __future__ import annotations

import pickle

import pytest
import torch
from torchmetrics import MetricCollection, MetricTracker
from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure

from lpips_lightning import LPIPS, LPIPSDiversity
from lpips_lightning import LearnedPerceptualImagePatchSimilarity as Metric
from lpips_lightning.functional.lpips import learned_perceptual_image_patch_similarity


@pytest.fixture
def metric(backbones):
    return Metric("squeeze", weights=backbones["squeeze"])


@pytest.fixture
def scores(backbones, pair):
    return LPIPS("squeeze", weights=backbones["squeeze"])(*pair(5))


def test_both_argument_names_and_positional_arguments(metric, pair):
    x, y = pair()
    values = [metric(x, y), metric(preds=x, target=y), metric(img1=x, img2=y), metric(img2=y, img1=x)]
    values += [metric(x, img2=y), metric(x, target=y), metric(preds=y, target=y, img1=x, img2=y)]
    assert len({float(value) for value in values}) == 1
    for wrong in ({"preds": x}, {"img1": x}, {"target": y}, {"preds": x, "target": y, "img1": x}, {}):
        with pytest.raises(TypeError, match=r"expected \(preds, target\) or \(img1, img2\)"):
            metric.update(**wrong)
    with pytest.raises(ValueError, match="target: expected the shape of preds"):
        metric.update(x, y[:1])
    with pytest.raises(ValueError, match="img2: expected the shape of img1"):
        metric.update(img1=x, img2=y[:1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"net_type": "resnet"}, "net_type: expected one of"),
        ({"reduction": "median"}, r"reduction: expected one of \('mean', 'sum', 'none', None\), got 'median'"),
        ({"normalize": 1}, "normalize: expected True or False, got 1"),
        ({"normalize": True, "data_range": 255}, "data_range: expected None with normalize=True"),
    ],
)
def test_wrong_arguments_are_value_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        Metric(**{"weights": "random", **arguments})


@pytest.mark.parametrize(
    "options", [{"data_range": (0, 1)}, {"data_range": 1.0, "normalize": True}, {"normalize": True}]
)
def test_data_range_and_torchmetrics_argument_say_the_same(options, pair):
    x, y = ((image + 1) / 2 for image in pair())
    metric = Metric("embedded", **options)
    assert (metric.data_range, metric.normalize) == ((0.0, 1.0), True)  # code for torchmetrics reads the latter
    expected = metric.net(x, y, normalize=metric.normalize).mean()
    assert metric(x, y) == expected == learned_perceptual_image_patch_similarity(x, y, metric.net, **options)
    diversity = LPIPSDiversity("embedded", **options)
    assert diversity(torch.stack((x, y), 1)) == pytest.approx(float(expected), rel=1e-5)


def test_an_unknown_argument_is_a_type_error():
    with pytest.raises(TypeError, match="^no_such: expected the name of an option, got an unknown one; "):
        Metric(weights="random", no_such=1)


def test_a_state_is_a_sum_and_a_count_and_no_weights(metric, pair):
    metric.update(*pair())
    assert [len(state) for state in metric.metric_state.values() if isinstance(state, list)] == [0, 0]  # for index=
    assert len([state for state in metric.metric_state.values() if not isinstance(state, list)]) == 2
    assert metric.state_dict() == {}
    assert list(metric.parameters()) == []


def test_forward_is_differentiable_and_keeps_no_graph(backbones, pair):
    x, y = pair()
    x.requires_grad_()
    for reduction in ("mean", "none"):
        metric = Metric("squeeze", reduction, weights=backbones["squeeze"])
        metric(x, y).sum().backward()
        metric(x, y)
        states = [
            part for state in metric.metric_state.values() for part in (state if isinstance(state, list) else [state])
        ]
        assert states
        assert not any(state.requires_grad for state in states)
    assert float(x.grad.norm()) > 0


def test_collection_with_psnr_and_ssim_by_keyword_and_position(backbones, pair):
    x, y = ((image + 1) / 2 for image in pair())
    metric = Metric("squeeze", normalize=True, weights=backbones["squeeze"])
    collection = MetricCollection(
        {
            "psnr": PeakSignalNoiseRatio(data_range=1.0),
            "ssim": StructuralSimilarityIndexMeasure(data_range=1.0),
            "lpips": metric,
        }
    )
    by_position = collection(x, y)
    by_keyword = collection(preds=x, target=y)
    assert set(by_position) == {"psnr", "ssim", "lpips"}
    assert by_position == by_keyword


def test_two_networks_with_equal_first_scores_are_not_merged(backbones, pair):
    x, y = pair()
    options = {
        "squeeze": {"net_type": "squeeze", "weights": backbones["squeeze"]},
        "alex": {"net_type": "alex", "weights": backbones["alex"]},
        "baseline": {"net_type": "alex", "weights": backbones["alex"], "calibrated": False},
        "old": {"net_type": "alex", "weights": backbones["alex"], "version": "0.0"},
        "range": {"net_type": "alex", "weights": backbones["alex"], "data_range": (-2, 2)},
    }
    collection = MetricCollection({name: Metric(**option) for name, option in options.items()})
    collection.update(x, x)
    collection.update(x, y)
    values = collection.compute()
    for name, option in options.items():
        alone = Metric(**option)
        alone.update(x, x)
        alone.update(x, y)
        assert values[name] == alone.compute()
    assert len({float(value) for value in values.values()}) == 5


def test_two_equal_metrics_are_merged(backbones, pair):
    collection = MetricCollection({name: Metric("alex", weights=backbones["alex"]) for name in "ab"})
    collection.update(*pair())
    assert len(collection.compute_groups) == 1


def test_tracker_copies_cheaply_and_minimizes(metric, pair):
    x, y = pair()
    tracker = MetricTracker(metric, maximize=None)
    for strength in (1.0, 0.1, 0.5):
        tracker.increment()
        tracker.update(x, (1 - strength) * x + strength * y)
    best, step = tracker.best_metric(return_step=True)
    assert step == 1
    assert best == tracker.compute_all().min()


def test_a_pickle_of_random_weights_holds_their_seed_alone():
    assert len(pickle.dumps(Metric("vgg", weights="random"))) < 10_000


def test_float64_images_give_a_float64_score(metric, pair):
    x, y = pair(dtype=torch.float64)
    assert metric(x, y).dtype == torch.float64
    assert metric(x.float(), y.float()).dtype == torch.float32


def test_plot_draws_the_value(metric, pair):
    pytest.importorskip("matplotlib").use("Agg")
    metric.update(*pair())
    _, axes = metric.plot()
    assert axes.get_ylim()[0] <= float(metric.compute()) <= axes.get_ylim()[1]


@pytest.mark.parametrize("change", ["half", "double", "to_bf16"])
def test_parents_cannot_cast_it(metric, pair, change):
    x, y = pair()
    before = metric(x, y)
    parent = torch.nn.ModuleList([metric])
    {"half": parent.half, "double": parent.double, "to_bf16": lambda: parent.to(torch.bfloat16)}[change]()
    metric.reset()
    assert metric(x, y) == before


def test_maps_of_unequal_size_and_videos_of_unequal_length_are_refused(backbones, pair):
    maps = Metric("squeeze", spatial=True, weights=backbones["squeeze"])
    maps.update(*pair(2, 32, 40))
    with pytest.raises(ValueError, match=r"as in the first batch, \(0, 32, 40\), got \(0, 40, 32\)"):
        maps.update(*pair(2, 40, 32))
    maps.reset()
    maps.update(*pair(2, 40, 32))
    videos = Metric("squeeze", "none", weights=backbones["squeeze"])
    videos(*(image.view(2, 3, 3, 32, 40) for image in pair(6, 32, 40)))
    with pytest.raises(ValueError, match=r"as in the first batch, \(3, 0, 0\), got \(2, 0, 0\)"):
        videos(*(image.view(3, 2, 3, 32, 40) for image in pair(6, 32, 40)))
    with pytest.raises(ValueError, match="as in the first batch"):
        videos.update(*pair(2, 32, 40))


def test_a_metric_takes_features_of_a_fixed_target(backbones, pair):
    x, y = pair()
    metric = Metric("squeeze", weights=backbones["squeeze"])
    expected = metric(x, y)
    assert torch.equal(metric(x, metric.net.encode(y)), expected)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_indexed_images_count_once_in_the_order_of_indices(backbones, pair, scores, reduction):
    x, y = pair(5)
    metric = Metric("squeeze", reduction, weights=backbones["squeeze"])
    for numbers in ([3, 1], [4, 0, 2], [3, 4], []):
        batch = metric(x[numbers], y[numbers], index=numbers if len(numbers) < 3 else torch.tensor(numbers))
    expected = {"mean": scores.mean(), "sum": scores.sum()}.get(reduction, scores)
    assert torch.allclose(metric.compute(), expected, rtol=1e-5)
    assert batch.shape == ((0,) if reduction == "none" else ())
    metric.reset()
    image = x[:1].clone().requires_grad_()
    metric(image, y[:1], index=7).sum().backward()
    assert float(image.grad.norm()) > 0
    assert not metric.indexed_rows[0].requires_grad


@pytest.mark.parametrize(
    ("index", "error", "message"),
    [
        ([0, 1, 2], ValueError, r"index: expected one index per sample, shape \(2,\), got \(3,\)"),
        (torch.zeros(2, 1, dtype=torch.long), ValueError, r"shape \(2,\), got \(2, 1\)"),
        ([0.0, 1.0], TypeError, "index: expected integers, got torch.float32"),
        (torch.ones(2, dtype=torch.bool), TypeError, "index: expected integers, got torch.bool"),
    ],
)
def test_wrong_indices_are_refused_and_nothing_is_added(metric, backbones, pair, index, error, message):
    with pytest.raises(error, match=message):
        metric.update(*pair(), index=index)
    assert not metric.indices and not metric.indexed_rows
    maps = Metric("squeeze", spatial=True, weights=backbones["squeeze"])
    with pytest.raises(ValueError, match="index: expected None for the mean or sum of maps"):
        maps.update(*pair(), index=[0, 1])


def test_indices_within_the_batch_and_partial_indices_are_errors(metric, pair):
    x, y = pair(4)
    y = torch.lerp(x, y, torch.linspace(0.2, 0.8, 4).view(4, 1, 1, 1))
    for part in (slice(0, 2), slice(2, 4)):
        metric.update(x[part], y[part], index=[0, 1])
    message = "got two different samples with index 0; do not pass the index within the batch"
    with pytest.raises(ValueError, match=message):
        metric.compute()
    metric.reset()
    metric.update(x, y, index=range(4))
    metric.update(x, y)
    with pytest.raises(ValueError, match="index: expected it in every update or in none, on all ranks"):
        metric.compute()
