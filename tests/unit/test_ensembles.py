"""Averages over random transformations, as metric and as loss."""

from __future__ import annotations

import copy
import pickle
from random import Random

import numpy as np
import pytest
import torch
from boring_module import Boring, loader, trainer
from torch import nn

from lpips_lightning import LPIPS, Ensemble, PerceptualLoss, WeightedSum, compare
from lpips_lightning import LearnedPerceptualImagePatchSimilarity as Metric
from lpips_lightning.backbones import from_module
from lpips_lightning.callbacks import PerceptualScores, SampleGallery
from lpips_lightning.images import BoxDownscale, ChannelGains, Flip, Shift
from lpips_lightning.images.random_transforms import NAMED

SMALL = [Shift(), Flip(), ChannelGains(), BoxDownscale(2, 32)]


def ensemble(**options):
    return Ensemble("embedded", **{"transforms": SMALL, "draws": 3, **options})


@pytest.fixture
def images():
    return torch.rand(2, 4, 3, 72, 64)


def by_hand(net, x, y, draws, transforms, seed=0):
    """The mean over draws, step by step, on images on [0, 1]."""
    found = []
    for draw in range(draws):
        a, b = x, y
        for step, transform in enumerate(transforms):
            generator = Random(f"{seed}/{draw}/{step}")
            numbers = [generator.random() for _ in range(transform.amount(3))]
            a, b = transform.apply(a, numbers), transform.apply(b, numbers)
        found.append(net(a, b, (0, 1)))
    return torch.stack(found)


def test_it_is_the_mean_over_the_draws(images):
    found = by_hand(LPIPS("embedded"), *images, 3, NAMED["elpips"])
    net = Ensemble("embedded", draws=3)
    mean, error = net.measure_with_error(*images, (0, 1))
    assert torch.allclose(mean, found.mean(0))
    assert torch.allclose(error, found.std(0) / 3**0.5)
    assert torch.allclose(net(*images, (0, 1)), found.mean(0))
    assert error.min() > 0


@pytest.mark.parametrize("options", [{}, {"transforms": "shift"}, {"transforms": "elpips"}])
def test_every_way_gives_one_number(images, options):
    net, (x, y) = ensemble(**options), images
    expected = net(x, y, (0, 1))
    metric = Metric(net, data_range=(0, 1))
    for part in (slice(0, 1), slice(1, 4)):
        metric.update(x[part], y[part])
    features = net.encode(x, 1), net.encode(y, 1)
    mask = torch.ones(4, 72, 64)
    layers = net(x, y, (0, 1), per_layer=True)
    scorer = PerceptualScores(net, data_range=(0, 1))._pairs
    found = {
        "metric": (metric.compute(), expected.mean()),
        "features": (net.distance(*features), expected),
        "reference": (net(x, features[1], (0, 1)), expected),
        "layers": (sum(layers.values()), expected),
        "scorer": (sum(scorer.layers(*scorer.check(x, y))), expected),
        "mask": (net(x, y, (0, 1), mask=mask), expected),
        "other range": (net(2 * x - 1, 2 * y - 1), expected),
        "each": (torch.cat([net(a[None], b[None], (0, 1)) for a, b in zip(x, y, strict=True)]), expected),
        "pairs": (net.pairwise(x, y, (0, 1)).diagonal(), expected),
        "copy": (copy.deepcopy(net)(x, y, (0, 1)), expected),
        "pickle": (pickle.loads(pickle.dumps(net))(x, y, (0, 1)), expected),
        "maps": (net.distance(*features, spatial=True), net(x, y, (0, 1), spatial=True)),
    }
    assert tuple(layers) == net.layers == LPIPS("embedded").layers
    for way, (value, wanted) in found.items():
        assert torch.allclose(value, wanted, rtol=1e-4), way
    maps = net(x, y, (0, 1), spatial=True)
    assert maps.shape == (4, 1, 72, 64)
    assert torch.allclose(maps.mean((1, 2, 3)), expected, rtol=0.05)
    assert not list(net.parameters()) and not net.state_dict()


def test_the_seed_decides(images):
    one, same, other = (ensemble(seed=seed)(*images, (0, 1)) for seed in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert ensemble().fingerprint != ensemble(seed=1).fingerprint
    assert ensemble().fingerprint.startswith(
        "mean over transformations (3 draws, seed 0: Shift(low=0, high=7) Flip(probability=0.5) ChannelGains(low=0.2, "
        "high=1.0) BoxDownscale(most=2, least_side=32)) of LPIPS embedded"
    )


def test_masks_move_with_the_images(images):
    x, y = images
    mask = torch.zeros(4, 72, 64, dtype=torch.bool)
    mask[:, :, :32] = True
    y = torch.where(mask[:, None], x, y)
    net = ensemble(transforms=[Shift(-7, 7), Flip()])
    assert net(x, y, (0, 1), mask=mask).max() < 0.5 * net(x, y, (0, 1), mask=~mask).min()


def test_nothing_outside_an_eroded_mask_counts():
    x, y = torch.rand(2, 1, 3, 96, 128)
    mask = torch.ones(1, 96, 128, dtype=torch.bool)
    mask[:, :, :4] = False
    net = Ensemble("embedded", [Shift(-3, 3), Flip()], draws=4)
    expected = net(x, y, 1, mask=mask, erode=True)
    assert expected.isfinite().all()
    assert torch.equal(net(x, torch.where(mask, y, torch.nan), 1, mask=mask, erode=True), expected)


def test_maps_show_the_place(images):
    x = images[0]
    y = x.clone()
    y[:, :, 40:56, 10:26] = 0
    maps = ensemble(draws=4)(x, y, (0, 1), spatial=True)
    assert maps[:, :, 40:56, 10:26].mean() > 3 * maps.mean()


@pytest.mark.parametrize("draws", [1, 2])
def test_the_gradient_is_that_of_the_mean(images, draws):
    x, y = images[:, :1].double()
    x = (1.2 * x - 0.1).requires_grad_()  # predictions are not clamped
    net = ensemble(draws=draws)
    PerceptualLoss(net, data_range=(0, 1))(x, y).backward()
    expected = torch.autograd.grad(by_hand(LPIPS("embedded"), x, y, draws, SMALL).mean(), x)[0]
    assert torch.allclose(x.grad, expected, rtol=1e-9, atol=1e-12)


def test_a_loss_draws_afresh_and_repeats_by_seed(images):
    loss = PerceptualLoss(ensemble(draws=1, seed=None), data_range=(0, 1))
    x = images[0].requires_grad_()
    torch.manual_seed(3)
    first, second = loss(x, images[1]), loss(x, images[1])
    state = torch.get_rng_state()
    third = loss(x, images[1])
    assert first != second
    torch.manual_seed(3)
    assert first == loss(x, images[1]) and second == loss(x, images[1])
    torch.set_rng_state(state)
    assert third == loss(x, images[1])
    assert "1 fresh draw a call" in loss.fingerprint
    assert loss(x.detach(), x.detach()) == 0


@pytest.mark.parametrize("wrap", [lambda net: net, lambda net: WeightedSum([(net, 1), ("embedded", 1)])])
def test_fresh_draws_are_no_metric(images, wrap):
    fresh = wrap(ensemble(seed=None))
    for use in (
        lambda: Metric(fresh),
        lambda: PerceptualScores(fresh, data_range=1),
        lambda: compare(np.zeros((64, 64, 3), np.uint8), np.zeros((64, 64, 3), np.uint8), fresh),
    ):
        with pytest.raises(ValueError, match="fresh draws in every call; pass Ensemble"):
            use()
    with pytest.raises(ValueError, match="encode: expected an ensemble with a seed"):
        fresh.encode(images[0], 1)


def test_compare_gives_the_standard_error(images):
    net = ensemble()
    a, b = (one.movedim(1, -1).numpy() for one in images)
    found = compare(a, b, net, data_range=1)
    mean, error = net.measure_with_error(*images, 1)
    assert np.allclose(found.distances, mean, rtol=1e-5)
    assert np.allclose(found.standard_errors, error, rtol=1e-4)
    assert "3 draws, seed 0" in found.fingerprint
    assert compare(a, b, "embedded", data_range=1).standard_errors == []
    assert compare(a, b, net.single(1), data_range=1).standard_errors == []


def test_single_draws_have_the_mean_and_the_error(images):
    net = ensemble()
    singles = torch.stack([net.single(index)(*images, 1) for index in range(3)])
    mean, error = net.measure_with_error(*images, 1)
    assert torch.allclose(singles.mean(0), mean) and torch.allclose(net.standard_error(singles), error)
    assert torch.allclose(net.measure_with_error(images[0], net.encode(images[1], 1), 1)[1], error)
    assert len({net.single(index).fingerprint for index in range(3)} | {net.fingerprint}) == 4


@pytest.mark.parametrize(
    ("options", "shape", "same"),
    [
        ({"gray": "repeat"}, (1, 72, 64), lambda x: x.expand(-1, 3, -1, -1)),
        ({"resize": 48}, (3, 50, 90), lambda x: LPIPS("embedded", resize=48).images.to_flat_rgb(x, (0, 1))[0]),
        ({"background": "white"}, (4, 72, 64), lambda x: x[:, 3:] * x[:, :3] + 1 - x[:, 3:]),
    ],
)
def test_images_are_converted_first(options, shape, same):
    x, y = torch.rand(2, 2, *shape)
    net = Ensemble(LPIPS("embedded", **options), SMALL, draws=2)
    expected = Ensemble("embedded", SMALL, draws=2)(same(x), same(y), 1)
    assert torch.allclose(net(x, y, 1), expected, rtol=1e-4)
    assert torch.allclose(net.pairwise(x, y, 1).diagonal(), expected, rtol=1e-4)
    assert str(net.images) in net.fingerprint and str(net.images)


def test_channels_and_frames(images):
    net = Ensemble(LPIPS("embedded", gray="per_channel"), SMALL, draws=2)
    each = Ensemble(LPIPS("embedded", gray="repeat"), SMALL, draws=2)
    x, y = images[:, :, :2]
    expected = torch.stack([each(x[:, c : c + 1], y[:, c : c + 1], 1) for c in range(2)]).mean(0)
    assert torch.allclose(net(x, y, 1), expected)
    assert torch.allclose(net.pairwise(x, y, 1).diagonal(), expected)
    assert torch.allclose(ensemble()(images[0][None], images[1][None], 1), ensemble()(*images, 1)[None])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"draws": 0}, ValueError, "draws: expected a whole number >= 1, got 0"),
        ({"seed": 1.5}, ValueError, "seed: expected an integer, or None for fresh draws, got 1.5"),
        ({"transforms": "affine"}, ValueError, r"transforms: expected one of \('elpips', 'shift'\)"),
        ({"transforms": []}, ValueError, "transforms: expected one transformation or more, got none"),
        ({"transforms": [torch.flip]}, TypeError, "transforms: expected a list of transformations"),
        ({"transforms": Shift()}, TypeError, "transforms: expected a list of transformations"),
    ],
)
def test_bad_arguments_are_named(options, error, message):
    with pytest.raises(error, match=message):
        ensemble(**options)


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:FutureWarning", "ignore:.*torch.jit.trace:DeprecationWarning")
def test_bad_calls_are_named(images):
    with pytest.raises(ValueError, match="draws: expected 2 or more for a standard error, got 1"):
        ensemble(draws=1).measure_with_error(*images, 1)
    with pytest.raises(ValueError, match="x: expected values on"):
        ensemble()(2 * images[0], images[1], 1)
    with pytest.raises(ValueError, match=r"draw: expected one of \(0, 1, 2\), got 3"):
        ensemble().single(3)
    with pytest.raises(ValueError, match="trace the network that it averages"):
        torch.jit.trace(ensemble(), tuple(images))


def test_the_least_side_is_that_of_the_network():
    net = Ensemble("embedded", [BoxDownscale(8, 1)], draws=20)
    assert net.transforms == (BoxDownscale(8, net.smallest_side),)
    net(*torch.rand(2, 1, 3, net.smallest_side, 80), 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "make", [lambda: ensemble(draws=2), lambda: WeightedSum([("embedded", 1), ("embedded-vgg", 1)])]
)
def test_loss_compiles_into_one_graph(images, make):
    loss = PerceptualLoss(make(), data_range=1)
    x, y = images[0].requires_grad_(), images[1]
    torch.compile(loss, fullgraph=True, backend="aot_eager")(x, y).backward()
    found, x.grad = x.grad, None
    loss(x, y).backward()
    assert torch.allclose(found, x.grad, rtol=1e-4, atol=1e-6 * x.grad.abs().max().item())


@pytest.mark.parametrize(
    "make", [lambda: ensemble(draws=2), lambda: WeightedSum([("embedded", 1), ("embedded-vgg", 1)])]
)
def test_callbacks_take_it_and_show_its_label(tmp_path, make):
    model, net = Boring(), make()
    gallery, scores = SampleGallery(net, data_range=1, k=1), PerceptualScores(net, data_range=1, per_layer=True)
    fitted = trainer(tmp_path, [gallery, scores], max_epochs=1)
    fitted.fit(model, loader(), loader(n=3))
    x, target = loader(n=3).dataset.tensors
    expected = net(model(x), target, 1).mean().item()
    assert fitted.callback_metrics["val/lpips"].item() == pytest.approx(expected, rel=1e-5)
    assert len(list(tmp_path.rglob("*.png"))) >= 2


def test_a_shared_part_of_the_loss_is_told(tmp_path):
    model = Boring(loss=WeightedSum([("embedded", 1), ("embedded-vgg", 1)]))
    scores = PerceptualScores(ensemble(), data_range=1)
    with pytest.warns(UserWarning, match="expected another network than that of the loss 'perceptual'"):
        trainer(tmp_path, [scores], max_epochs=1).fit(model, loader(), loader(n=3))


def test_values_without_a_range_are_moved_as_they_are():
    module = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.ReLU())
    net = LPIPS(from_module(module, ["1"], input_channels=4, has_range=False), calibrated=False)
    x, y = 30 * torch.randn(2, 2, 4, 24, 20)
    averaged = Ensemble(net, "shift", draws=3)
    shifted = []
    for draw in range(3):
        generator = Random(f"0/{draw}/0")
        numbers = [generator.random(), generator.random()]
        shifted.append(net(*(NAMED["shift"][0].apply(images, numbers) for images in (x, y))))
    assert torch.allclose(averaged(x, y), torch.stack(shifted).mean(0))
    assert torch.allclose(averaged.pairwise(x, y).diagonal(), averaged(x, y))
    assert torch.allclose(averaged.measure_with_error(x, y)[0], averaged(x, y))
    with pytest.raises(ValueError, match="transforms: expected 'shift' or a list .* 4 input channels without"):
        Ensemble(net)
