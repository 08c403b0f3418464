"""Other distances on the features of a network: their formulas, their gradients, and where they are taken."""

from __future__ import annotations

import copy
import pickle
import re

import pytest
import torch
from references import relative_difference
from torch import nn
from torch.nn import functional as F

from lpips_lightning import LPIPS, LearnedPerceptualImagePatchSimilarity, PerceptualLoss
from lpips_lightning.backbones.custom import from_module
from lpips_lightning.backbones.dists_vgg import L2Pool2d, l2_pool
from lpips_lightning.backbones.extractor import FeatureExtractor
from lpips_lightning.callbacks import SampleGallery
from lpips_lightning.distances.weighted import DISTANCES, parse_distance
from lpips_lightning.engine import executor
from lpips_lightning.evaluation.methods import parse_method
from lpips_lightning.weights import DISTS, WeightsError, load

NAMES = ("lpips_plus", "mean_pool", "style", "dists")
SUM = "lpips+0.5*style"
LAYERS, CHANNELS = ("a", "b", "c"), (3, 5, 4)


@pytest.fixture(scope="module")
def net_of(backbones):
    """`LPIPS` with a distance: DISTS on vgg, the others on the embedded network."""
    made = {}

    def make(distance, **options):
        key = (distance, *sorted(options.items()))
        if key not in made:
            net, weights = ("vgg", backbones["vgg"]) if distance == "dists" else ("embedded", None)
            made[key] = LPIPS(net, distance=distance, weights=weights, **options)
        return made[key]

    return make


@pytest.fixture
def features():
    """Positive features of two images at three layers, float64."""
    torch.manual_seed(0)
    sizes = ((8, 6), (4, 3), (4, 3))
    return [
        {
            layer: torch.rand(2, channels, *size, dtype=torch.float64)
            for layer, channels, size in zip(LAYERS, CHANNELS, sizes, strict=True)
        }
        for _ in range(2)
    ]


def weights_of(name):
    torch.manual_seed(1)
    if name == "dists":
        return {layer: torch.rand(2, channels) / 24 for layer, channels in zip(LAYERS, CHANNELS, strict=True)}
    return {layer: torch.rand(channels) for layer, channels in zip(LAYERS, CHANNELS, strict=True)}


def unit(v):
    return v / v.norm(dim=1, keepdim=True)


def slow(name, x, y, weights):
    """The formulas as their papers have them, term by term."""
    found = {}
    for layer in x:
        a, b, w = x[layer], y[layer], weights[layer].double()
        if name == "mean_pool":
            found[layer] = (unit(a.mean((2, 3))) - unit(b.mean((2, 3)))).square().sum(1) / a.shape[1]
        elif name == "style":
            grams = [torch.einsum("nchw,ndhw->ncd", unit(f), unit(f)) / f[0, 0].numel() for f in (a, b)]
            found[layer] = (grams[0] - grams[1]).abs().sum((1, 2)) / a.shape[1] ** 2
        elif name == "lpips_plus":
            squared = ((unit(a) - unit(b)).square() * w.view(1, -1, 1, 1)).sum(1, keepdim=True)
            semantic = F.interpolate(y["c"], size=squared.shape[2:], mode="bilinear", align_corners=False)
            found[layer] = (squared * semantic).sum((1, 2, 3)) / semantic.sum((1, 2, 3))
        else:
            mean_a, mean_b = a.mean((2, 3)), b.mean((2, 3))
            cov = (a * b).mean((2, 3)) - mean_a * mean_b
            var_a, var_b = a.var((2, 3), correction=0), b.var((2, 3), correction=0)
            texture = (2 * mean_a * mean_b + 1e-6) / (mean_a**2 + mean_b**2 + 1e-6)
            structure = (2 * cov + 1e-6) / (var_a + var_b + 1e-6)
            found[layer] = w.sum() - (w[0] * texture + w[1] * structure).sum(1)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_terms_are_those_of_the_paper(features, name):
    weights = weights_of(name)
    found = DISTANCES[name].by_layer(*features, weights)
    expected = slow(name, *features, weights)
    assert list(found) == list(LAYERS)
    for layer in LAYERS:
        assert relative_difference(found[layer], expected[layer]) < 1e-9


def test_a_sum_is_the_sum_of_its_parts(features):
    weights = weights_of("lpips")
    parts = [DISTANCES[name].by_layer(*features, weights) for name in ("lpips", "lpips_plus", "style")]
    found = parse_distance("2*style + lpips + 0.5*lpips_plus").by_layer(*features, weights)
    for layer in LAYERS:
        assert torch.allclose(found[layer], parts[0][layer] + 0.5 * parts[1][layer] + 2 * parts[2][layer])


@pytest.mark.parametrize("name", [*NAMES, SUM])
def test_a_mask_leaves_the_distance_of_what_it_selects(features, name):
    distance, weights = parse_distance(name), weights_of(name)
    ones = {layer: torch.ones(2, 1, *value.shape[2:]) for layer, value in features[0].items()}
    whole = distance.by_layer(*features, weights)
    for layer, term in distance.by_layer(*features, weights, ones).items():
        assert torch.allclose(term, whole[layer])
    half = {layer: mask.clone() for layer, mask in ones.items()}
    for mask in half.values():
        mask[:, :, mask.shape[2] // 2 :] = 0
        mask[1] = 0
    dirty = [{layer: value.where(half[layer] > 0, float("nan")) for layer, value in one.items()} for one in features]
    if name == "lpips_plus":  # its weights are resized, so they reach over the border
        dirty[1]["c"] = features[1]["c"]
    found = distance.by_layer(*dirty, weights, half)
    assert all(term[1].isnan() for term in found.values())
    if name != "lpips_plus":
        cropped = [{layer: value[:1, :, : value.shape[2] // 2] for layer, value in one.items()} for one in features]
        expected = distance.by_layer(*cropped, weights)
        assert all(torch.allclose(found[layer][:1], expected[layer]) for layer in LAYERS)
    assert all(term[0].isfinite() for term in found.values())


@pytest.mark.parametrize("name", [*NAMES, SUM])
def test_gradients_equal_finite_differences(features, name):
    x, y = ({layer: value[:1, :, :3, :2] for layer, value in one.items()} for one in features)
    distance, weights = parse_distance(name), weights_of(name)

    def total(*values):
        terms = distance.by_layer(dict(zip(LAYERS, values, strict=True)), y, weights)
        return sum(terms.values())

    leaves = [value.clone().requires_grad_() for value in x.values()]
    assert torch.autograd.gradcheck(total, leaves)
    if "style" not in name:  # its second derivative jumps with the signs of the differences
        assert torch.autograd.gradgradcheck(total, leaves)


@pytest.mark.parametrize("name", [*NAMES, SUM])
@pytest.mark.parametrize("kind", ["zeros", "equal", "half zeros"])
def test_gradients_of_every_order_are_finite_where_a_root_or_a_ratio_has_none(features, name, kind):
    x, y = ({layer: value.clone() for layer, value in one.items()} for one in features)
    for layer in LAYERS:
        if kind == "equal":
            y[layer] = x[layer].clone()
        else:
            x[layer][...] = 0
            y[layer][:, :, :, : 1 if kind == "half zeros" else None] = 0
    leaves = {layer: value.requires_grad_() for layer, value in x.items()}
    references = {layer: value.requires_grad_() for layer, value in y.items()}
    terms = parse_distance(name).by_layer(leaves, references, weights_of(name))
    total = torch.stack(list(terms.values())).sum()
    if kind in ("equal", "zeros"):
        assert float(total.detach()) == 0
    every = [*leaves.values(), *references.values()]
    gradients = torch.autograd.grad(total, every, create_graph=True)
    assert all(gradient.isfinite().all() for gradient in gradients)
    again = torch.autograd.grad(sum(g.square().sum() for g in gradients), every, allow_unused=True)
    assert all(gradient is None or gradient.isfinite().all() for gradient in again)


@pytest.mark.parametrize("name", [*NAMES, SUM])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_equal_images_have_distance_zero_and_others_none(net_of, pair, name, precision):
    net = net_of(name, precision=precision)
    x, y = pair(2, 33, 36)
    assert torch.equal(net(x, x.clone()), torch.zeros(2))
    found = net(x, y)
    assert found.dtype == torch.float32 and (found > 1e-5).all()
    if precision != "fp32":
        assert relative_difference(found, net_of(name)(x, y)) < 0.1


@pytest.mark.parametrize("node_by_node", [False, True])
@pytest.mark.parametrize("name", [*NAMES, SUM])
def test_the_engine_gives_the_values_and_gradients_of_plain_autograd(net_of, pair, monkeypatch, name, node_by_node):
    monkeypatch.setattr(executor, "AUTOGRAD_PIXELS", 0 if node_by_node else 2**17)
    net = net_of(name)
    x, y = pair(2, 40, 36)
    with_engine, plain = x.clone().requires_grad_(), x.clone().requires_grad_()
    found, expected = net(with_engine, y), net.distance(net.encode(plain), net.encode(y))
    with torch.no_grad():
        assert relative_difference(found, expected) < 1e-5
        assert relative_difference(net(x, y), expected) < 1e-5
    found.sum().backward()
    expected.sum().backward()
    assert float((with_engine.grad - plain.grad).norm() / plain.grad.norm()) < 1e-4


@pytest.mark.parametrize("name", [*NAMES, SUM])
def test_a_gradient_can_be_differentiated(net_of, pair, name):
    net = net_of(name)
    x, y = pair(1, 32, 32, torch.float64)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(net(x, y).sum(), x, create_graph=True)
    (again,) = torch.autograd.grad(gradient.square().sum(), x)
    assert again.isfinite().all() and again.abs().sum() > 0


@pytest.fixture
def passes(monkeypatch):
    seen = []
    forward = FeatureExtractor.forward
    monkeypatch.setattr(FeatureExtractor, "forward", lambda self, x: seen.append(len(x)) or forward(self, x))
    return seen


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("name", ["lpips_plus", "mean_pool", "style", SUM])
def test_a_budget_splits_the_batch_into_single_images(net_of, pair, passes, name, gradient):
    x, y = pair(3, 48, 40)
    x.requires_grad_(gradient)
    net = net_of(name)
    small = net_of(name, memory_budget=net.plan((1, 3, 48, 40), gradient=gradient).size or 2**24)
    one = small.plan((1, 3, 48, 40), gradient=gradient).size
    small = net_of(name, memory_budget=one + one // 8)
    assert small.plan((3, 3, 48, 40), gradient=gradient).images == 1
    passes.clear()
    found = small(x, y)
    assert set(passes) == {1} and len(passes) == 6
    assert relative_difference(found.detach(), net(x, y).detach()) < 1e-5


def test_a_budget_that_one_image_exceeds_is_named(net_of, pair):
    net = net_of("style", memory_budget=1000)
    with pytest.warns(UserWarning, match="memory_budget: images cannot be split .*only distance 'lpips' is computed"):
        net(*pair(1, 48, 40))


@pytest.mark.parametrize("name", [*NAMES, SUM])
def test_every_pair_equals_forward_and_the_backbone_runs_once_per_image(net_of, pair, passes, name):
    net = net_of(name)
    side = 64 if name == "lpips_plus" else 32  # below, its layer has one position
    x, y = pair(3, side, side)[0], pair(2, side, side, seed=1)[1]
    expected = torch.stack([torch.cat([net(a[None], b[None]) for b in y]) for a in x])
    passes.clear()
    assert torch.allclose(net.pairwise(x, y, batch_size=2), expected, rtol=1e-4)
    assert sum(passes) == 5
    itself = net.pairwise(x, batch_size=2)
    assert torch.equal(itself.diagonal(), torch.zeros(3))
    assert torch.equal(itself, itself.T) == (name != "lpips_plus")


@pytest.mark.parametrize("name", ["style", "2*mean_pool+0.5*style", SUM])
def test_all_pairs_have_the_gradients_of_forward_in_any_grouping(net_of, pair, name):
    net = net_of(name)
    x, y = pair(3, 32, 32, torch.float64)
    found, expected = x.clone().requires_grad_(), x.clone().requires_grad_()
    matrix = net.pairwise(found, y, batch_size=1, memory_budget=1)  # a group for each image
    singles = torch.stack([net(expected, one.expand_as(expected)) for one in y], 1)
    assert torch.allclose(matrix, singles, rtol=1e-10, atol=0)
    factors = torch.arange(9, dtype=torch.float64).view(3, 3)
    (matrix * factors).sum().backward()
    (singles * factors).sum().backward()
    assert torch.allclose(found.grad, expected.grad, rtol=1e-9, atol=1e-12)
    again = x.clone().requires_grad_()
    net.pairwise(again).sum().backward()
    assert again.grad.isfinite().all() and again.grad.abs().sum() > 0


@pytest.mark.parametrize("name", ["style", SUM])
def test_pairs_of_gray_images_by_channel_are_averaged(net_of, pair, name):
    net = net_of(name, gray="per_channel")
    x, y = (images[:, :2] for images in pair(2, 32, 32))
    expected = torch.stack([torch.cat([net(a[None], b[None]) for b in y]) for a in x])
    assert torch.allclose(net.pairwise(x, y), expected, rtol=1e-4)


@pytest.mark.parametrize("name", [*NAMES, SUM])
def test_layers_masks_and_features_go_through_the_network(net_of, pair, name):
    net = net_of(name)
    x, y = pair(2, 48, 48)
    by_layer = net(x, y, per_layer=True)
    assert tuple(by_layer) == net.layers
    assert ("image" in by_layer) == (name == "dists")
    total = torch.stack(list(by_layer.values())).sum(0)
    assert relative_difference(net(x, y), total) < 1e-5
    mask = torch.ones(2, 48, 48, dtype=torch.bool)
    assert relative_difference(net(x, y, mask=mask), total) < 1e-5
    mask[1] = False
    found = net(x, y, mask=mask)
    assert found[1].isnan() and found[0].isfinite()
    assert net(x, y, mask=torch.ones(2, 48, 48), erode=True).isfinite().all()


def test_a_map_of_lpips_plus_has_the_distance_as_its_mean(features):
    weights = weights_of("lpips")
    terms = DISTANCES["lpips_plus"].by_layer(*features, weights)
    for layer, layer_map in DISTANCES["lpips_plus"].maps(*features, weights).items():
        assert torch.allclose(layer_map.mean((1, 2, 3)), terms[layer])


def test_lpips_plus_weighs_by_the_second_images_and_equally_where_they_are_dead(net_of, pair, features):
    net = net_of("lpips_plus")
    x, y = pair(1, 48, 40)
    assert relative_difference(net(y, x), net(x, y)) > 1e-4
    x, y = features
    y["c"] = torch.zeros_like(y["c"])
    weights = weights_of("lpips")
    expected = DISTANCES["lpips"].by_layer(x, y, weights)
    for layer, term in DISTANCES["lpips_plus"].by_layer(x, y, weights).items():
        assert torch.allclose(term, expected[layer])


@pytest.mark.parametrize("name", ["mean_pool", "style", "dists", SUM])
def test_a_map_is_refused_before_anything_is_computed(net_of, pair, name):
    net, x, y = net_of(name), *pair(1, 48, 40)
    said = re.escape(f"distance: expected 'lpips' or 'lpips_plus' for a map (spatial=True), got {name!r}")
    with pytest.raises(ValueError, match=said):
        net(x, y, spatial=True)
    features = net.encode(x), net.encode(y)
    for call in (
        lambda: net.distance(*features, spatial=True),
        lambda: PerceptualLoss(net, data_range=(-1, 1), spatial=True),
        lambda: LearnedPerceptualImagePatchSimilarity(net, reduction="none", spatial=True),
        lambda: SampleGallery(net, data_range=(-1, 1)),
    ):
        with pytest.raises(ValueError, match="for a map"):
            call()


FINGERPRINTS = {
    "lpips": "LPIPS embedded v0.1, lin sha256:132bd6b73d77, backbone ",
    "lpips_plus": r"LPIPS\+ embedded v0.1, lin sha256:132bd6b73d77, backbone ",
    "mean_pool": "mean-pool distance embedded v0.1, backbone ",
    "style": "style distance embedded v0.1, backbone ",
    SUM: r"lpips \+ 0.5\*style embedded v0.1, lin sha256:132bd6b73d77, backbone ",
    "mean_pool+2*style": r"mean_pool \+ 2\*style embedded v0.1, backbone ",
    "dists": f"DISTS vgg v0.1, alpha beta sha256:{DISTS.calibration_sha256[:12]}, backbone custom ",
}


@pytest.mark.parametrize("name", FINGERPRINTS)
def test_fingerprints_begin_with_the_distance(net_of, name):
    net = net_of(name)
    assert net.calibrated == ("lin" in net.fingerprint or name == "dists")
    assert re.match(FINGERPRINTS[name], net.fingerprint)


@pytest.mark.parametrize(
    ("net", "options", "said"),
    [
        ("embedded", {"distance": "cosine"}, "distance: expected one of 'lpips', .*'dists', or a sum .*got 'cosine'"),
        ("embedded", {"distance": "lpips+"}, "distance: expected one of "),
        ("embedded", {"distance": "٣*style"}, "distance: expected one of "),
        ("embedded", {"distance": ""}, "distance: expected one of "),
        ("embedded", {"distance": "lpips+-1*style"}, "distance: expected one of "),
        ("embedded", {"distance": {}}, "distance: expected one of "),
        ("embedded", {"distance": "style+lpips+style"}, "distance: expected each name once, got 'style' twice"),
        ("embedded", {"distance": "0*style"}, "distance: expected positive weights, got 0.0 for 'style'"),
        ("embedded", {"distance": {"style": True}}, "distance: expected positive weights, got True"),
        ("vgg", {"distance": "lpips+dists"}, "distance: expected 'dists' alone, .*lpips_lightning.WeightedSum"),
        ("vgg", {"distance": "0.5*dists"}, "distance: expected 'dists' alone"),
        ("alex", {"distance": "dists"}, "net_type: expected 'vgg' with distance='dists', .*got 'alex'"),
        ("vgg", {"distance": "dists", "version": "0.0"}, "version: expected one of '0.1'"),
        ("vgg", {"distance": "dists", "calibrated": False}, "calibrated: expected True with distance='dists'"),
        ("vgg", {"distance": "dists", "calibration": "mine"}, "calibration: expected None with distance='dists'"),
        ("embedded", {"distance": "style", "calibration": "mine"}, "calibration: expected None with distance='style'"),
    ],
)
def test_options_that_do_not_fit_are_one_sentence(net, options, said):
    with pytest.raises(ValueError, match=said):
        LPIPS(net, weights=None if net == "embedded" else "random", **options)


def test_a_distance_is_text_or_a_mapping():
    with pytest.raises(TypeError, match="distance: expected text, or a mapping"):
        parse_distance(3)
    assert parse_distance({"style": 0.25, "lpips": 1}) == parse_distance(" lpips + .25 * style")
    assert parse_distance({"style": 1}) is parse_distance("style")
    assert parse_distance("1e-3*mean_pool").name == "0.001*mean_pool"


def test_a_backbone_without_calibration_needs_none_for_statistics(pair):
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.ReLU())
    backbone = from_module(module, ["1", "3"])
    x, y = pair(1, 16, 16)
    for name in ("mean_pool", "style", "style+mean_pool"):
        assert float(LPIPS(backbone, distance=name)(x, y)) > 0
    with pytest.raises(ValueError, match="at least 3 feature layers for 'lpips_plus'"):
        LPIPS(backbone, distance="lpips_plus", calibrated=False)


@pytest.mark.parametrize("name", ["dists", SUM])
def test_copies_and_pickles_measure_the_same(net_of, pair, name):
    net = net_of(name)
    x, y = pair(1, 32, 32)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert other.fingerprint == net.fingerprint
        assert torch.equal(other(x, y), net(x, y))
    assert not list(net.buffers()) and not net.state_dict()


def test_features_of_one_network_serve_its_distances_but_not_those_of_dists(net_of, backbones, pair):
    x, y = pair(1, 32, 32)
    lpips, style = net_of("lpips"), net_of("style")
    assert torch.equal(
        style.distance(lpips.encode(x), lpips.encode(y)), style.distance(style.encode(x), style.encode(y))
    )
    other = LPIPS("vgg", weights=backbones["vgg"])
    with pytest.raises(ValueError, match="x: expected features of "):
        net_of("dists").distance(other.encode(x), other.encode(y))


def test_loss_and_metric_take_them(pair):
    x, y = pair(2, 32, 32)
    loss = PerceptualLoss("embedded", data_range=(-1, 1), distance={"lpips": 1, "style": 0.5})
    metric = LearnedPerceptualImagePatchSimilarity("embedded", data_range=(-1, 1), distance=SUM)
    metric.update(x, y)
    assert torch.allclose(metric.compute(), loss(x, y), rtol=1e-5)
    assert metric.fingerprint.startswith("lpips + 0.5*style embedded")


@pytest.mark.parametrize("size", [(6, 6), (7, 5), (1, 3)])
def test_l2_pool_is_the_root_of_a_hann_weighted_mean(size):
    torch.manual_seed(0)
    x = torch.rand(2, 3, *size, dtype=torch.float64)
    hann = torch.hann_window(5, periodic=False, dtype=torch.float64)[1:-1]
    kernel = hann[:, None] * hann / hann.sum() ** 2
    squares = F.conv2d(x.square().flatten(0, 1).unsqueeze(1), kernel[None, None], stride=2, padding=1)
    assert torch.allclose(L2Pool2d()(x), (squares.view(2, 3, *squares.shape[2:]) + 1e-12).sqrt())
    large = torch.full((1, 1, 3, 3), 1000.0, dtype=torch.float16)  # its square is beyond fp16
    assert l2_pool(large, (0, 0)).item() == 1000


def test_the_weights_of_dists_are_those_of_its_package():
    tensors = load(DISTS)
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {"alpha": (1475,), "beta": (1475,)}
    assert sum(map(torch.numel, tensors.values())) == 2950
    assert all((tensor >= 0).all() for tensor in tensors.values())


@pytest.mark.parametrize("name", ["embedded:mean_pool", "embedded:style", f"embedded:{SUM}"])
def test_methods_name_them(pair, name):
    x, y = pair(2, 32, 32)
    expected = LPIPS("embedded", distance=name.partition(":")[2])(x, y)
    assert torch.equal(parse_method(name).distance(x, y), expected)


def test_methods_take_the_reference_first(pair):
    x, y = pair(1, 48, 40)
    found = parse_method("embedded:lpips_plus").distance(x, y)
    assert torch.equal(found, LPIPS("embedded", distance="lpips_plus")(y, x))
    with pytest.raises(ValueError, match="method: expected embedded with one of .*mean_pool, style, calibration=FILE"):
        parse_method("embedded:cosine")


def test_dists_is_a_method(backbone_files, monkeypatch):
    monkeypatch.setenv("LPIPS_LIGHTNING_WEIGHTS", str(backbone_files))
    with pytest.raises(WeightsError, match="vgg16.*expected torchvision's IMAGENET1K_V1"):  # found, and refused
        parse_method("dists")
