"""The network: properties, sharing, copies, compilation."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import warnings

import pytest
import torch
from conftest import NETS
from frozen_networks import frozen_network, live_networks
from torch import nn

from lpips_lightning import LPIPS, LearnedPerceptualImagePatchSimilarity, PerceptualLoss, compat
from lpips_lightning.distances.lpips import layer_distances, unit_normalize
from lpips_lightning.io.tensor_files import write_tensors
from lpips_lightning.weights import WeightsError


@pytest.fixture
def net(backbones):
    return LPIPS("squeeze", weights=backbones["squeeze"])


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("calibrated", [True, False])
def test_identity_symmetry_sign_and_batches(backbones, pair, name, calibrated):
    net = LPIPS(name, weights=backbones[name], calibrated=calibrated)
    x, y = pair(3, 48, 56)
    distance = net(x, y)
    assert torch.equal(net(x, x.clone()), torch.zeros(3))
    assert torch.allclose(net(y, x), distance, rtol=1e-6)
    assert bool((distance > 0).all())
    singles = torch.cat([net(x[i : i + 1], y[i : i + 1]) for i in range(3)])
    assert torch.allclose(singles, distance, rtol=1e-5)
    assert net(x[:0], y[:0]).shape == (0,)


@pytest.mark.parametrize(("name", "side"), [("alex", 31), ("vgg", 16), ("squeeze", 17)])
def test_smallest_side_is_the_smallest_that_works(backbones, pair, name, side):
    net = LPIPS(name, weights=backbones[name])
    x, y = pair(1, side, side + 3)
    assert bool(net(x, y).isfinite().all())
    with pytest.raises(ValueError, match=rf"x: expected sides of at least {side} pixels .* got {side - 1}x64"):
        net(torch.zeros(1, 3, side - 1, 64), torch.zeros(1, 3, side - 1, 64))


def test_layers_are_named_and_sum_to_the_distance(net, pair):
    x, y = pair()
    terms = net(x, y, per_layer=True)
    assert list(terms) == list(net.layers) == [f"relu{i}" for i in range(1, 8)]
    assert torch.allclose(sum(terms.values()), net(x, y), rtol=1e-6)
    maps = net(x, y, per_layer=True, spatial=True)
    assert torch.allclose(sum(maps.values()), net(x, y, spatial=True), rtol=1e-5)


def test_encode_then_distance_equals_forward(net, pair):
    x, y = pair()
    assert torch.equal(net.distance(net.encode(x), net.encode(y)), net(x, y))
    with pytest.raises(
        ValueError, match=r"y: expected features of \(2,\) images of size \(64, 64\), got features of \(1,\) images"
    ):
        net.distance(net.encode(x), net.encode(y[:1]))


@pytest.mark.parametrize(
    ("data_range", "convert"),
    [
        ((0, 1), lambda x: (x + 1) / 2),
        (1.0, lambda x: (x + 1) / 2),
        (255, lambda x: (x + 1) * 127.5),
        ((-2, 2), lambda x: x * 2),
    ],
)
def test_ranges_agree(net, pair, data_range, convert):
    x, y = pair()
    assert torch.allclose(net(convert(x), convert(y), data_range=data_range), net(x, y), rtol=1e-4)


def test_uint8_is_on_0_255_whatever_the_range_says(net):
    x, y = torch.randint(0, 256, (2, 2, 3, 64, 64), dtype=torch.uint8)
    expected = net(x.float(), y.float(), data_range=255)
    for data_range in ((-1, 1), 1.0, 255):
        assert torch.equal(net(x, y, data_range=data_range), expected)


def test_nothing_is_registered(net):
    model = nn.ModuleDict({"net": net})
    assert list(model.parameters()) == []
    assert list(model.buffers()) == []
    assert model.state_dict() == {}
    assert [name for name, _ in model.named_modules()] == ["", "net"]
    model.load_state_dict({}, strict=True)


def _same(model):
    return model


@pytest.mark.parametrize(
    "do",
    [
        lambda m: m.train(),
        lambda m: m.half(),
        lambda m: m.double(),
        lambda m: m.to(torch.bfloat16),
        lambda m: m.requires_grad_(True),
        lambda m: m.to(memory_format=torch.contiguous_format),
        copy.deepcopy,
        lambda m: pickle.loads(pickle.dumps(m)),
        lambda m: _saved_and_loaded(m),
        lambda m: m.share_memory(),
    ],
)
@pytest.mark.parametrize("given", ["tensors", "random"])
def test_module_operations_do_not_change_the_distance(backbones, pair, do, given):
    x, y = pair()
    parent = nn.Sequential()
    parent.net = LPIPS("squeeze", weights=backbones["squeeze"] if given == "tensors" else "random")
    before = parent.net(x, y)
    after = do(parent)
    assert torch.equal(after.net(x, y), before)


def _saved_and_loaded(model):
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    return torch.load(stream, weights_only=False)


def test_pickles_are_small_unless_weights_are_tensors(backbones):
    assert len(pickle.dumps(LPIPS("vgg", weights="random"))) < 2000
    assert len(pickle.dumps(LPIPS("squeeze", weights=backbones["squeeze"]))) > 1e6


def test_a_pickle_refuses_other_weights(tmp_path, backbones, pair):
    path = tmp_path / "backbone.pth"
    torch.save(backbones["alex"], path)
    pickled = pickle.dumps(LPIPS("alex", weights=path))
    other = {name: tensor + 0.01 for name, tensor in backbones["alex"].items()}
    gc.collect()
    torch.save(other, path)
    with pytest.raises(WeightsError, match="weights: expected those of"):
        pickle.loads(pickled)(*pair())


def test_equal_networks_are_shared_and_freed_with_the_last_user(backbones):
    gc.collect()
    before = live_networks()
    first = LPIPS("alex", weights=backbones["alex"])
    second = PerceptualLoss("alex", data_range=1, weights={name: t.clone() for name, t in backbones["alex"].items()})
    third = copy.deepcopy(second)
    assert live_networks() == before + 1
    assert frozen_network(first) is frozen_network(second.net) is frozen_network(third.net)
    del first, second
    gc.collect()
    assert live_networks() == before + 1
    del third
    gc.collect()
    assert live_networks() == before


def test_a_network_built_in_inference_mode_supports_training(backbones, pair):
    x, y = pair()
    with torch.inference_mode():
        net = LPIPS("squeeze", weights=backbones["squeeze"])
        net(x.double(), y.double())
    x = x.double().requires_grad_()
    net(x, y.double()).sum().backward()
    assert float(x.grad.norm()) > 0


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16])
def test_default_dtype_changes_nothing(backbones, pair, default):
    x, y = pair()
    expected = LPIPS("alex", weights=backbones["alex"])(x, y)
    gc.collect()
    torch.set_default_dtype(default)
    try:
        assert torch.equal(LPIPS("alex", weights=backbones["alex"])(x, y), expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_random_weights_follow_the_global_seed(pair):
    x, y = pair()
    torch.manual_seed(5)
    first = LPIPS("alex", weights="random")(x, y)
    second = LPIPS("alex", weights="random")(x, y)
    torch.manual_seed(5)
    again = LPIPS("alex", weights="random")(x, y)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


def test_autocast_does_not_touch_fp32_and_drives_autocast(backbones, pair):
    x, y = pair()
    net = LPIPS("alex", weights=backbones["alex"])
    following = LPIPS("alex", weights=backbones["alex"], precision="autocast")
    half = LPIPS("alex", weights=backbones["alex"], precision="bf16")
    expected = net(x, y)
    assert torch.equal(following(x, y), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(net(x, y), expected)
        assert torch.equal(following(x, y), half(x, y))
    assert half(x, y).dtype == torch.float32
    assert torch.allclose(half(x, y), expected, rtol=1e-2)
    assert not torch.equal(half(x, y), expected)


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        pytest.param(name, precision, marks=[pytest.mark.slow] * (name == "vgg" and precision != "fp32"))
        for name in NETS
        for precision in ("fp32", "bf16", "fp16")
    ],
)
def test_dead_and_constant_images_have_finite_gradients(backbones, name, precision):
    net = LPIPS(name, weights=backbones[name], precision=precision)
    black, white = -torch.ones(1, 3, 48, 48), torch.ones(1, 3, 48, 48)
    with torch.autograd.set_detect_anomaly(True):
        for x, y in ((black, black), (black, white), (torch.zeros_like(black), white)):
            x = x.clone().requires_grad_()
            distance = net(x, y)
            distance.sum().backward()
            assert bool(distance.isfinite().all())
            assert bool(x.grad.isfinite().all())


def test_head_at_all_zero_positions_has_finite_first_and_second_gradients():
    x = torch.zeros(1, 4, 3, 3, dtype=torch.float64)
    x[..., 1:] = torch.rand(1, 4, 3, 2, dtype=torch.float64) + 0.1
    y = torch.rand(1, 4, 3, 3, dtype=torch.float64)
    x.requires_grad_()
    weight = {"feature layer": torch.rand(4, dtype=torch.float64)}
    distance = layer_distances({"feature layer": x}, {"feature layer": y}, weight)["feature layer"]
    (gradient,) = torch.autograd.grad(distance.sum(), x, create_graph=True)
    assert bool(gradient.isfinite().all())
    assert torch.equal(gradient[..., 0], torch.zeros(1, 4, 3, dtype=torch.float64))
    (second,) = torch.autograd.grad(gradient.square().sum(), x)
    assert bool(second.isfinite().all())


def test_head_gradcheck():
    y = torch.rand(2, 3, 2, 2, dtype=torch.float64) + 0.1
    weight = {"feature layer": torch.rand(3, dtype=torch.float64)}

    def head(x):
        return layer_distances({"feature layer": x}, {"feature layer": y}, weight)["feature layer"]

    x = (torch.rand(2, 3, 2, 2, dtype=torch.float64) + 0.1).requires_grad_()
    assert torch.autograd.gradcheck(head, (x,))
    assert torch.autograd.gradgradcheck(head, (x,))


def test_unit_normalize_refuses_other_shapes():
    with pytest.raises(ValueError, match=r"features: expected 4 dimensions \(N, C, H, W\), got shape \(3, 4\)"):
        unit_normalize(torch.zeros(3, 4))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"net_type": "resnet"}, "net_type: expected one of 'alex', 'vgg', 'squeeze'.*, got 'resnet'"),
        ({"net_type": None}, "net_type: expected one of 'alex', 'vgg', 'squeeze'.*, got None"),
        ({"version": "0.2"}, "version: expected one of '0.0', '0.1' for net_type 'alex', got '0.2'"),
        ({"precision": "fp8"}, r"precision: expected one of \('fp32', 'bf16', 'fp16', 'autocast'\), got 'fp8'"),
        ({"calibrated": False, "calibration": "x"}, "calibration: expected None with calibrated=False"),
    ],
)
def test_unknown_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        LPIPS(**{"weights": "random", **arguments})


@pytest.mark.slow
def test_compiles_in_one_graph_with_equal_values(backbones, pair):
    x, y = pair()
    net = LPIPS("squeeze", weights=backbones["squeeze"])
    loss = PerceptualLoss("squeeze", data_range=(-1, 1), weights=backbones["squeeze"])
    assert torch.allclose(torch.compile(net, fullgraph=True)(x, y), net(x, y), rtol=1e-5)
    x1, x2 = x.clone().requires_grad_(), x.clone().requires_grad_()
    torch.compile(loss, fullgraph=True)(x1, y).backward()
    loss(x2, y).backward()
    assert torch.allclose(x1.grad, x2.grad, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in ("vgg", "squeeze"))) for name in NETS]
)
def test_traces_in_one_graph_with_equal_values(backbones, pair, name):
    x, y = pair(1)
    net = LPIPS(name, weights=backbones[name])
    traced = torch.compile(net, fullgraph=True, backend="eager")
    assert torch.allclose(traced(x, y), net(x, y), rtol=2e-6)  # the plain form of the head, which the compiler fuses


# 2025-01, torch/fx/graph.py of torch 2.6: the constants of a program that owns no module.
@pytest.mark.filterwarnings("ignore:.*get_attr")
@pytest.mark.slow  # test_tracing.py exports the embedded network
def test_exports_with_dynamic_sizes(backbones, pair):
    net = LPIPS("squeeze", weights=backbones["squeeze"])
    auto = torch.export.Dim.AUTO
    sizes = {0: auto, 2: auto, 3: auto}
    program = torch.export.export(net, pair(2, 64, 64), dynamic_shapes=(sizes, sizes), strict=False)
    x, y = pair(3, 48, 80)
    assert torch.allclose(program.module()(x, y), net(x, y), rtol=1e-6)


def test_fingerprint_contains_all_settings(backbones):
    net = LPIPS("alex", weights=backbones["alex"])
    assert net.fingerprint.startswith("LPIPS alex v0.1, lin sha256:")
    assert "backbone custom sha256:" in net.fingerprint
    prints = {
        LPIPS("alex", weights=backbones["alex"], **options).fingerprint
        for options in ({}, {"version": "0.0"}, {"calibrated": False}, {"precision": "bf16"})
    }
    assert len(prints) == 4
    assert net.fingerprint in repr(nn.Sequential(net))


def test_fingerprint_names_a_calibration_of_ones_own(tmp_path):
    official = frozen_network(LPIPS("embedded")).calibration
    own = {layer: weight * 2 for layer, weight in official.items()}
    write_tensors(tmp_path / "mine.safetensors", own, {})
    both = {f"calibration.{layer}": weight for layer, weight in own.items()}
    both |= frozen_network(LPIPS("embedded")).extractor.graph.state_dict()
    write_tensors(tmp_path / "student.safetensors", both, {})
    digest = LPIPS("embedded", calibration=own).specification.calibration_sha256[:12]
    expected = {
        "lin sha256:132bd6b73d77": [{}, {"calibration": official}],
        f"lin custom sha256:{digest}": [{"calibration": own}],
        f"lin custom mine.safetensors sha256:{digest}": [{"calibration": tmp_path / "mine.safetensors"}],
        f"lin custom student.safetensors sha256:{digest}": [
            {"weights": str(tmp_path / "student.safetensors")},
            {"calibration": str(tmp_path / "student.safetensors")},
        ],
        "baseline": [{"calibrated": False}],
    }
    for label, cases in expected.items():
        for options in cases:
            net = LPIPS("embedded", **options)
            assert net.fingerprint.split(", ")[1] == label
            assert pickle.loads(pickle.dumps(net)).fingerprint == copy.deepcopy(net).fingerprint == net.fingerprint
    assert LPIPS("embedded", calibration=own).specification.calibration == "custom"
    metric = LearnedPerceptualImagePatchSimilarity("embedded", calibration=str(tmp_path / "mine.safetensors"))
    assert "lin custom mine.safetensors sha256:" in metric.fingerprint
    assert metric.selfcheck()  # of the backbone, which is the official one


def test_the_arguments_of_torchmetrics_network_are_understood(net, pair):
    x, y = pair()
    low = [(image + 1) / 2 for image in (x, y)]
    assert torch.equal(net(*low, normalize=True), net(*low, data_range=(0, 1)))
    assert torch.equal(net(x, y, normalize=False), net(x, y))
    assert torch.equal(net(*low, normalize=True, data_range=1.0), net(*low, normalize=True))
    total, layers = net(*low, retperlayer=True, normalize=True)
    expected = net(*low, data_range=(0, 1), per_layer=True)
    assert all(torch.equal(*both) for both in zip(layers, expected.values(), strict=True))
    assert torch.allclose(total, net(*low, data_range=(0, 1)), rtol=1e-5)
    metric = LearnedPerceptualImagePatchSimilarity(net, normalize=True)
    assert torch.allclose(metric.net(*low, normalize=metric.normalize).mean(), metric(*low), rtol=1e-5)
    for options, error, message in (
        ({"normalize": False, "data_range": (0, 1)}, TypeError, r"normalize: expected None with data_range=\(0, 1\)"),
        ({"normalize": 1}, ValueError, "normalize: expected True or False, got 1"),
        ({"retperlayer": True, "per_layer": True}, TypeError, "retperlayer: expected False with per_layer=True"),
    ):
        with pytest.raises(error, match=message):
            net(*low, **options)


class Training(torch.nn.Module):
    """A model with what its training needs beside it."""

    def __init__(self, beside):
        super().__init__()
        self.layer, self.beside = torch.nn.Linear(2, 2), beside

    def forward(self, x):
        return self.layer(x)

    def loss(self, prediction, target):
        return self.beside(prediction, target)


@pytest.mark.parametrize("name", ["network", "loss", "compat"])
def test_a_model_that_holds_the_network_or_loss_can_be_scripted(net, pair, name):
    beside = {
        "network": net,
        "loss": PerceptualLoss(net, data_range=(-1, 1)),
        "compat": compat.LPIPS(net="embedded"),
    }[name]
    model, x = Training(beside), torch.rand(3, 2)
    for _ in range(2):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.jit.script is deprecated
            scripted = torch.jit.script(model)
        assert torch.equal(scripted(x), model(x))
        assert bool((model.loss(*pair()) > 0).all())
