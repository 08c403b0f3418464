"""What torchmetrics does with a metric: wrappers, collections, shared networks, synchronization; and threads."""

from __future__ import annotations

import pickle
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torchmetrics import Metric as AnyMetric
from torchmetrics import MetricCollection, MetricTracker
from torchmetrics.image import PeakSignalNoiseRatio
from torchmetrics.wrappers import (
    BootStrapper,
    ClasswiseWrapper,
    FeatureShare,
    MinMaxMetric,
    MultioutputWrapper,
    Running,
)

from lpips_lightning import LPIPS, LPIPSDiversity
from lpips_lightning import LearnedPerceptualImagePatchSimilarity as Metric
from lpips_lightning.functional import two_afc_score
from lpips_lightning.metrics import HumanCeiling, JNDScore, TwoAFCScore
from lpips_lightning.metrics import lpips as metric_module

CALLS = {
    "position": lambda x, y: ((x, y), {}),
    "mixed": lambda x, y: ((x,), {"img2": y}),
    "preds": lambda x, y: ((), {"preds": x, "target": y}),
    "img1": lambda x, y: ((), {"img1": x, "img2": y}),
}


def embedded(**options):
    return Metric("embedded", **options)


@pytest.fixture(scope="module")
def images(pair):
    return pair(4, 32, 40)


@pytest.fixture(scope="module")
def scores(images):
    return LPIPS("embedded")(*images)


@pytest.fixture
def measured(monkeypatch):
    """Batches that the network has measured."""
    calls, measure = [], metric_module.measure

    def counting(net, *args, **kwargs):
        calls.append(net)
        return measure(net, *args, **kwargs)

    monkeypatch.setattr(metric_module, "measure", counting)
    return calls


def near(found, expected):
    return torch.allclose(found.double(), expected.double(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("call", CALLS)
def test_every_wrapper_passes_images_by_position_and_by_any_name(images, scores, call):
    args, kwargs = CALLS[call](*images)
    repeated = BootStrapper(embedded(), num_bootstraps=2, raw=True)
    repeated.update(*args, **kwargs)
    raw = repeated.compute()["raw"]
    assert bool(((scores.min() <= raw) & (raw <= scores.max())).all())
    tracker = MetricTracker(embedded(), maximize=False)
    tracker.increment()
    expected = {
        "minmax": (MinMaxMetric(embedded()), {"raw": scores.mean(), "max": scores.mean(), "min": scores.mean()}),
        "tracker": (tracker, scores.mean()),
        "outputs": (
            MultioutputWrapper(embedded(), 4, 0, remove_nans=False, squeeze_outputs=False),
            scores,
        ),
        "classes": (ClasswiseWrapper(embedded(reduction="none"), ["a", "b", "c", "d"]), None),
        "running": (Running(embedded(), window=2), scores.mean()),
        "collection": (MetricCollection({"lpips": embedded()}), {"lpips": scores.mean()}),
        "compositional": (embedded() + 1, scores.mean() + 1),
    }
    for name, (wrapper, value) in expected.items():
        wrapper.update(*args, **kwargs)
        found = wrapper.compute()
        if name == "classes":
            found, value = torch.stack(list(found.values())), scores
        pairs = [(found[key], value[key]) for key in value] if isinstance(value, dict) else [(found, value)]
        assert all(near(*both) for both in pairs), name
    assert len(expected) == 7


def test_one_keyword_call_of_a_collection_reaches_psnr_and_lpips(images, scores):
    x, y = images
    collection = MetricCollection({"psnr": PeakSignalNoiseRatio(data_range=1.0), "lpips": embedded()}, prefix="val/")
    for _ in range(2):
        collection.update(preds=(x + 1) / 2, target=(y + 1) / 2, img1=x, img2=y)
    found = collection.clone(prefix="test/").compute()
    assert near(found["test/lpips"], scores.mean())
    assert near(found["test/psnr"], -10 * ((x - y) / 2).square().mean().log10())


@pytest.mark.parametrize("options", [{}, {"spatial": True}, {"per_layer": True, "reduction": "none"}])
@pytest.mark.parametrize("forward", [False, True])
def test_running_keeps_the_last_batches(images, options, forward):
    x, y = images
    window, whole = Running(embedded(**options), 2), embedded(**options)
    for start in range(3):
        batch = (x[start : start + 1], y[start : start + 1])
        window(*batch) if forward else window.update(*batch)
    whole.update(x[1:3], y[1:3])
    found, expected = window.compute(), whole.compute()
    if not isinstance(expected, dict):
        found, expected = {"": found}, {"": expected}
    for key, value in expected.items():
        # The window is a ring: the order of unreduced scores is not that of the batches.
        assert near(found[key].sort(0).values, value.sort(0).values)


def test_running_scores_with_an_index_are_in_its_order(images, scores):
    window = Running(embedded(reduction="none"), 3)
    for start in range(4):
        window.update(*(image[start : start + 1] for image in images), index=[start])
    assert near(window.compute(), scores[1:])


def shared(*names, **options):
    every = {
        "mean": embedded(),
        "sum": embedded(reduction="sum"),
        "none": embedded(reduction=None),
        "map": embedded(spatial=True),
    }
    return FeatureShare({name: every[name] for name in names}, **options)


def test_metrics_of_one_network_share_its_distances(images, scores, measured):
    share = shared("mean", "sum", "none", "map")
    for _ in range(2):
        share.update(*images)
    assert len(measured) == 4  # of each batch, distances and maps
    found = share.compute()
    assert near(found["mean"], scores.mean()) and near(found["sum"], 2 * scores.sum())
    assert near(found["none"], torch.cat([scores, scores]))
    assert near(found["map"].mean(), LPIPS("embedded")(*images, spatial=True).mean())
    for copied in (share.clone(), pickle.loads(pickle.dumps(share))):
        copied.reset()
        measured.clear()
        copied.update(*images)
        assert len(measured) == 2
        assert near(copied.compute()["mean"], scores.mean())
    assert near(share["mean"].net(*images), scores)


def test_a_shared_network_sees_images_written_into_the_same_tensor(images, scores):
    x, y = images
    share, batch = shared("mean", "sum"), x.clone()
    share.update(batch, y)
    batch.data.copy_(y)  # autograd does not count this change
    share.update(batch, y)
    found = share.compute()
    assert near(found["sum"], scores.sum()) and near(found["mean"], scores.sum() / 8)
    share.reset()
    share["mean"].update(x, y)
    share["sum"].update(x.clone(), y)
    x_changed = x.clone()
    share["mean"].update(x_changed, y)
    x_changed.copy_(y)
    share["sum"].update(x_changed, y)
    assert near(share["sum"].compute(), scores.sum())


def test_a_shared_network_keeps_gradients_and_errors(images):
    x, y = images
    share = shared("mean", "sum")
    leaf = x.clone().requires_grad_()
    for value in share(leaf, y).values():
        value.backward()
    assert float(leaf.grad.norm()) > 0
    with pytest.raises(ValueError, match="preds: expected values on"):
        share.update(3 * x, y)


class Foreign(AnyMetric):
    """A metric with a network of its own, as an FID has."""

    full_state_update = False
    feature_network = "inception"

    def __init__(self):
        super().__init__()
        self.inception = nn.Flatten()
        self.add_state("total", torch.zeros(()), "sum")

    def update(self, imgs, real):
        self.total = self.total + self.inception(imgs).sum()

    def compute(self):
        return self.total


def test_metrics_keep_their_network_if_the_shared_one_is_another(images, scores):
    options = {"weights": "random"}
    with pytest.warns(UserWarning, match="network to share between the metrics is not the same"):
        share = FeatureShare(
            {"a": embedded(), "b": Metric("squeeze", **options), "c": embedded(data_range=(-1.5, 1.5))}
        )
    share.update(*images)
    found = share.compute()
    for name, metric in share.items():
        assert near(found[name], metric.net(*images, metric.data_range).mean()), name
    assert len({float(value) for value in found.values()}) == 3
    with pytest.warns(UserWarning, match="network to share between the metrics is not the same"):
        share = FeatureShare({"fid": Foreign(), "lpips": embedded()})
    share.update(imgs=images[0], real=True, img1=images[0], img2=images[1])
    assert near(share.compute()["lpips"], scores.mean())
    assert near(share.compute()["fid"], images[0].sum())


JUDGED = (torch.tensor([0.1, 0.4]), torch.tensor([0.3, 0.2]), torch.tensor([1.0, 1.0]))
THREADED = {
    "sum": (lambda: embedded(reduction="sum"), lambda images: images),
    "none": (lambda: embedded(reduction="none"), lambda images: images),
    "maps": (lambda: embedded(spatial=True), lambda images: images),
    "diversity": (lambda: LPIPSDiversity("embedded"), lambda images: images[:1]),
    "2afc": (TwoAFCScore, lambda images: JUDGED),
    "human": (HumanCeiling, lambda images: JUDGED[2:]),
    "jnd": (JNDScore, lambda images: (JUDGED[0], torch.tensor([1.0, 0.0]))),
}


@pytest.mark.parametrize("name", THREADED)
def test_threads_lose_no_update(images, name):
    make, arguments = THREADED[name]
    metric, single, batch = make(), make(), arguments([image[:2] for image in images])
    updates = 60

    def update(number):
        metric.update(*batch)
        if number % 7 == 0:
            metric.compute()

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(update, range(updates)))
    for _ in range(updates):
        single.update(*batch)
    assert near(metric.compute(), single.compute())
    counts = {
        key: int(state) for key, state in metric.metric_state.items() if not isinstance(state, list) and not state.dim()
    }
    assert counts == {key: int(state) for key, state in single.metric_state.items() if key in counts}
    assert metric.update_count == updates


def test_a_score_computed_during_an_update_is_not_kept(images, scores, monkeypatch):
    metric, measure = embedded(reduction="sum"), metric_module.measure

    def measure_and_compute(*args, **kwargs):
        found = measure(*args, **kwargs)
        metric.compute()  # as another thread would
        return found

    metric.update(*images)
    monkeypatch.setattr(metric_module, "measure", measure_and_compute)
    metric.update(*images)
    assert near(metric.compute(), 2 * scores.sum())


def test_metrics_with_equal_first_states_are_not_merged(pair):
    x = pair(3, 32, 40)[0]
    same = x[:1].expand(3, -1, -1, -1)
    nets = {"a": "embedded", "b": LPIPS("squeeze", weights="random")}
    diversity = MetricCollection({name: LPIPSDiversity(net) for name, net in nets.items()})
    diversity.update(same)
    diversity.update(x)
    found = diversity.compute()
    assert all(near(found[name], diversity[name].net.pairwise(x).sum() / 12) for name in nets)
    assert float(found["a"]) != float(found["b"])
    judged = MetricCollection({"2afc": TwoAFCScore(), "human": HumanCeiling()})
    judged.update(d0=torch.tensor([0.3]), d1=torch.tensor([0.2]), judge=torch.tensor([1.0]))
    later = (torch.tensor([0.3, 0.1]), torch.tensor([0.2, 0.3]), torch.tensor([0.5, 0.75]))
    judged.update(**dict(zip(("d0", "d1", "judge"), later, strict=True)))
    whole = [torch.cat([torch.tensor([first]), rest]) for first, rest in zip((0.3, 0.2, 1.0), later, strict=True)]
    assert near(judged.compute()["2afc"], two_afc_score(*whole))
    assert near(judged.compute()["human"], (1 + 0.5 + 0.75**2 + 0.25**2) / torch.tensor(3.0))


def test_a_mean_of_maps_and_single_maps_are_not_merged(images):
    x, y = images
    maps = MetricCollection({"mean": embedded(spatial=True), "none": embedded(spatial=True, reduction="none")})
    for start in range(2):
        maps.update(x[start : start + 1], y[start : start + 1])
    expected, found = LPIPS("embedded")(x[:2], y[:2], spatial=True), maps.compute()
    assert near(found["none"], expected) and near(found["mean"], expected.mean(0))
    reductions = MetricCollection({"mean": embedded(), "sum": embedded(reduction="sum")})
    reductions.update(x, y)
    assert len(reductions.compute_groups) == 1
    assert near(reductions.compute()["sum"], 4 * reductions.compute()["mean"])


def test_maps_go_on_after_a_merge(images):
    x, y = images
    parts = [embedded(spatial=True) for _ in range(2)]
    for number, part in enumerate(parts):
        part.update(x[number : number + 1], y[number : number + 1])
    parts[0].merge_state(parts[1])
    parts[0].update(x[2:], y[2:])
    assert near(parts[0].compute(), LPIPS("embedded")(x, y, spatial=True).mean(0))


def test_a_loaded_state_keeps_the_size_of_its_maps(images):
    maps, loaded = embedded(spatial=True, reduction="none"), embedded(spatial=True, reduction="none")
    maps.persistent(True)
    maps.update(*images)
    loaded.load_state_dict(maps.state_dict())
    with pytest.raises(ValueError, match=r"as in the first batch, \(0, 32, 40\), got \(0, 40, 32\)"):
        loaded.update(*(image.transpose(2, 3) for image in images))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_synchronization_on_each_step_and_none_at_all(images, scores, reduction):
    ranks = {"dist_sync_fn": lambda state, group=None: [state, state], "distributed_available_fn": lambda: True}
    value = {
        "mean": lambda times: scores.mean(),
        "sum": lambda times: times * scores.sum(),
        "none": lambda times: scores.repeat(times),
    }[reduction]
    step = embedded(reduction=reduction, dist_sync_on_step=True, **ranks)
    assert near(step(*images), value(2)) and near(step(*images), value(2))
    assert near(step.compute(), value(4))
    alone = embedded(reduction=reduction, sync_on_compute=False, compute_with_cache=False, **ranks)
    assert near(alone(*images), value(1)) and near(alone.compute(), value(1))
    alone.sync(dist_sync_fn=ranks["dist_sync_fn"], distributed_available=lambda: True)
    alone.unsync()
    alone.update(*images)
    assert near(alone.compute(), value(2))


def test_arithmetic_hash_and_dtypes(images, scores):
    metric = embedded()
    composed = {"sum": metric + 1, "double": 2 * metric, "negative": abs(-1 * metric), "both": metric + embedded()}
    expected = {"sum": scores.mean() + 1, "double": 2 * scores.mean(), "negative": scores.mean()}
    for name, one in composed.items():
        one.reset()
        one.update(*images)
        assert near(one.compute(), expected.get(name, 2 * scores.mean())), name
    assert hash(metric) != hash(metric.clone())
    for change in (torch.float64, torch.bfloat16):
        metric.set_dtype(change)
        metric.reset()
        metric.update(*images)
        assert near(metric.compute(), scores.mean())


@pytest.mark.parametrize("name", THREADED)
def test_a_metric_itself_can_be_scripted(name):
    make, _ = THREADED[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated
        torch.jit.script(make())
        torch.jit.script(MetricCollection([make()]))
