"""What scripts written for the `lpips` package do, with the import changed: the same numbers."""
# ruff: noqa: UP031 - the scripts print tensors by %, which asks them for a float

from __future__ import annotations

import re
import warnings
from itertools import combinations

import numpy as np
import pytest
import torch
from PIL import Image
from references import BUILDERS, peer_lpips, relative_difference, slow_jnd
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader

import lpips_lightning.compat as ours
from lpips_lightning.images.ranges import RangeError

theirs = pytest.importorskip("lpips")
NET = "squeeze"


@pytest.fixture
def nets(backbones, tmp_path):
    """nets(options): the reference and ours, with the same backbone."""
    folder = tmp_path / "backbones"
    folder.mkdir()

    def make(net=NET, **options):
        save_file(backbones[net], folder / f"{BUILDERS[net]}.safetensors")
        return peer_lpips(net, backbones[net], **options), ours.LPIPS(net=net, weights=folder, **options)

    return make


@pytest.fixture
def arrays():
    generator = np.random.default_rng(0)
    return [generator.integers(0, 256, (48, 40, 3), np.uint8) for _ in range(4)]


@pytest.fixture
def folder(arrays, tmp_path):
    for index, array in enumerate(arrays):
        Image.fromarray(array).save(tmp_path / f"{index}.png")
    return tmp_path


def test_an_image_file_becomes_the_same_tensor_and_array_again(arrays, folder):
    for index, array in enumerate(arrays):
        loaded = ours.load_image(str(folder / f"{index}.png"))
        assert loaded.dtype == np.uint8 and np.array_equal(loaded, array)
        tensor = ours.im2tensor(loaded)
        assert tensor.dtype == torch.float32 and tensor.shape == (1, 3, 48, 40)
        assert torch.equal(tensor, theirs.im2tensor(array))
        assert np.array_equal(ours.tensor2im(tensor), theirs.tensor2im(tensor))
        assert np.array_equal(ours.tensor2np(tensor), theirs.tensor2np(tensor))
        assert torch.equal(ours.np2tensor(array), theirs.np2tensor(array))
        custom = {"cent": 0.0, "factor": 255.0}
        assert torch.equal(ours.im2tensor(array, **custom), theirs.im2tensor(array, **custom))
        assert ours.tensor2im(tensor, float).dtype == np.float64
    assert ours.tensor2im(torch.tensor([-9.0, 0.5, 9.0]).view(1, 3, 1, 1)).flatten().tolist() == [0, 191, 255]
    with pytest.raises(ValueError, match=r"image: expected an array \(H, W, C\), got shape \(48, 40\)"):
        ours.im2tensor(arrays[0][..., 0])
    gray = Image.fromarray(arrays[0][..., 0])
    gray.save(folder / "gray.png")
    assert np.array_equal(ours.load_image(folder / "gray.png"), np.asarray(gray.convert("RGB")))


def test_numbers_of_arrays_are_the_same(arrays, monkeypatch):
    from skimage import measure
    from skimage.metrics import structural_similarity

    def compare_ssim(x, y, data_range, multichannel):  # by this name until scikit-image 0.18
        return structural_similarity(x, y, data_range=data_range, channel_axis=2 if multichannel else None)

    monkeypatch.setattr(measure, "compare_ssim", compare_ssim, raising=False)
    x, y = arrays[:2]
    for name in ("l2", "psnr", "dssim"):
        assert getattr(ours, name)(x, y) == pytest.approx(getattr(theirs, name)(x, y), rel=1e-12)
    np.testing.assert_allclose(ours.rgb2lab(x), theirs.rgb2lab(x), rtol=1e-12)
    a, b = ours.im2tensor(x), ours.im2tensor(y)
    for options in ({}, {"to_norm": False}, {"mc_only": True}):
        torch.testing.assert_close(ours.tensor2tensorlab(a, **options), theirs.tensor2tensorlab(a, **options))
    for name in ("L2", "DSSIM"):
        for space in ("RGB", "Lab"):
            pair = [getattr(module, name)(use_gpu=False, colorspace=space)(a, b) for module in (ours, theirs)]
            assert pair[0].shape == pair[1].shape and relative_difference(*pair) < 1e-5, (name, space)
    with pytest.raises(ValueError, match="in0: expected one image"):
        ours.L2(use_gpu=False)(torch.cat((a, a)), torch.cat((b, b)))
    with pytest.raises(ValueError, match="colorspace: expected 'Lab' or 'RGB', got 'HSV'"):
        ours.DSSIM(colorspace="HSV")


def test_steps_of_the_distance_are_the_same():
    features = torch.randn(2, 5, 6, 7, dtype=torch.float64)
    for found, expected in (
        (ours.normalize_tensor(features), theirs.normalize_tensor(features)),
        (ours.normalize_tensor(features, eps=0.1), theirs.normalize_tensor(features, eps=0.1)),
        (ours.spatial_average(features), theirs.spatial_average(features)),
        (ours.spatial_average(features, keepdim=False), theirs.spatial_average(features, keepdim=False)),
        (ours.upsample(features), theirs.upsample(features)),
        (ours.upsample(features, out_HW=(9, 20)), theirs.upsample(features, out_HW=(9, 20))),
        (ours.ScalingLayer()(features[:, :3].float()), theirs.ScalingLayer()(features[:, :3].float())),
    ):
        torch.testing.assert_close(found, expected, rtol=1e-10 if found.dtype == torch.float64 else 1e-6, atol=1e-12)
    layers = ours.NetLinLayer(5, use_dropout=True).eval(), theirs.NetLinLayer(5, use_dropout=True).eval()
    layers[1].load_state_dict(layers[0].state_dict())
    assert torch.equal(*(layer(features.float()) for layer in layers))


def printed(module, net, folder, pairs):
    """What the scripts for two images, for folders and for all pairs print of each pair and of all together."""
    lines, found = [], []
    for a, b in pairs:
        images = [module.im2tensor(read(module, folder / name)) for name in (a, b)]
        distance = net.forward(*images)
        lines.append(f"({a},{b}): %.3f" % distance)
        lines.append(f"{a}: %.6f" % distance)
        found.append(distance.item())
        total, layers = net.forward(*images, retPerLayer=True)
        lines += [f"{float(layer.detach()):.4f}" for layer in (total, *layers)]
    lines.append("Avg: %.5f +/- %.5f" % (np.mean(np.array(found)), np.std(np.array(found)) / np.sqrt(len(found))))
    return lines


def same_digits(lines, others):
    """Whether lines have the same words, and numbers that differ by one unit of the last digit at most."""
    number = re.compile(r"\d+\.(\d+)")
    assert [number.sub("N", line) for line in lines] == [number.sub("N", line) for line in others]
    for line, other in zip(lines, others, strict=True):
        for found, expected in zip(number.finditer(line), number.finditer(other), strict=True):
            assert abs(float(found[0]) - float(expected[0])) < 1.5 * 10 ** -len(found[1]), (line, other)
    return True


def read(module, path):
    return ours.load_image(path) if module is ours else np.asarray(Image.open(path))


@pytest.mark.parametrize("options", [{}, {"version": "0.0"}, {"net": "alex"}, {"net": "vgg"}])
def test_scripts_for_files_print_the_same_digits(nets, folder, options):
    files = [f"{index}.png" for index in range(4)]
    pairs = [*combinations(files, 2)][: 1 if "net" in options else 3]
    peer, net = nets(**options)
    assert same_digits(printed(ours, net, folder, pairs), printed(theirs, peer, folder, pairs))


def test_the_script_for_maps_prints_the_same_digits(nets, arrays):
    peer, net = nets(spatial=True)
    a, b = map(ours.im2tensor, arrays[:2])
    maps = [module.forward(a, b) for module in (net, peer)]
    assert same_digits(*(["%.3f" % one.mean()] for one in maps))
    assert maps[0][0, 0, ...].data.cpu().numpy().shape == (48, 40)


def test_the_script_for_a_loss_prints_the_same_digits(nets, arrays):
    peer, net = nets()
    target = ours.im2tensor(arrays[0])
    lines = []
    for loss in (net, peer):
        pred = torch.autograd.Variable(ours.im2tensor(arrays[1]), requires_grad=True)
        optimizer = torch.optim.Adam([pred], lr=1e-3, betas=(0.9, 0.999))
        said = []
        for _ in range(5):
            distance = loss.forward(pred, target)
            optimizer.zero_grad()
            distance.backward()
            optimizer.step()
            pred.data = torch.clamp(pred.data, -1, 1)
            said.append("dist %.4f" % distance.view(-1).data.cpu().numpy()[0])
        lines.append(said)
    assert same_digits(*lines) and len(set(lines[0])) > 1


class Loader:
    """What the scripts' data loaders give."""

    def __init__(self, columns, batch_size):
        generator = torch.Generator().manual_seed(0)
        rows = [
            {name: torch.rand(3, 40, 40, generator=generator) * 2 - 1 for name in columns[:-1]}
            | {columns[-1]: torch.randint(0, 6, (1, 1, 1), generator=generator) / 5}
            for _ in range(7)
        ]
        self.batches = DataLoader(rows, batch_size)

    def load_data(self):
        return self.batches


def trainers(nets, model):
    peer, net = nets(lpips=model == "lpips") if model in ("lpips", "baseline") else (None, None)
    found = []
    for module, own in ((ours, net), (theirs, peer)):
        trainer = module.Trainer()
        if own is None:
            trainer.initialize(model=model, colorspace="RGB", use_gpu=False)
        else:
            trainer.initialize(model="l2", use_gpu=False)
            trainer.net = own
        found.append(trainer)
    return found


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("model", ["lpips", "baseline", "l2"])
def test_the_script_for_judgments_prints_the_same_2afc_score(nets, model):
    loader = Loader(("ref", "p0", "p1", "judge"), 1 if model == "l2" else 3)
    mine, peer = trainers(nets, model)
    score, results = ours.score_2afc_dataset(loader, mine.forward, name="val")
    expected, peer_results = theirs.score_2afc_dataset(loader, peer.forward, name="val")
    assert score == pytest.approx(expected, rel=1e-12)
    assert results.keys() == peer_results.keys()
    for name, values in results.items():
        np.testing.assert_allclose(values, peer_results[name], rtol=1e-5)


def test_the_script_for_judgments_prints_the_same_jnd_score_where_the_reference_sorts(nets):
    loader = Loader(("p0", "p1", "same"), 1)
    mine, peer = trainers(nets, "l2")
    score, results = ours.score_jnd_dataset(loader, mine.forward, name="val")
    expected, peer_results = theirs.score_jnd_dataset(loader, peer.forward, name="val")
    assert score == pytest.approx(expected, rel=1e-12)
    assert {name: values.shape for name, values in results.items()} == {"ds": (7,), "sames": (7,)}
    np.testing.assert_allclose(results["ds"], peer_results["ds"], rtol=1e-6)


def test_jnd_scores_of_networks_are_sorted_and_a_warning_says_that_they_differ(nets):
    loader = Loader(("p0", "p1", "same"), 3)
    mine, _ = trainers(nets, "lpips")
    with pytest.warns(UserWarning, match=r"shape \(3, 1, 1, 1\) are sorted here; lpips 0.1.4 does not") as caught:
        score, results = ours.score_jnd_dataset(loader, mine.forward)
    assert len(caught) == 1
    assert score == pytest.approx(slow_jnd(results["ds"], results["sames"]), rel=1e-12)


@pytest.mark.parametrize("old", [False, True])
def test_average_precision_is_the_same(old):
    generator = np.random.default_rng(0)
    for count in (1, 2, 9):
        recall, precision = np.sort(generator.random(count)), generator.random(count)
        expected = theirs.voc_ap(recall, precision, old)
        assert ours.voc_ap(recall, precision, old) == pytest.approx(expected, rel=1e-12)


def test_a_trainer_by_its_own_arguments_and_what_it_refuses():
    trainer = ours.Trainer()
    with pytest.raises(AttributeError, match="call initialize first"):
        _ = trainer.net
    trainer.initialize(model="lpips", net="embedded", use_gpu=False, version="0.1", gpu_ids=[0])
    assert trainer.name() == "lpips [embedded]" and trainer.parameters == []
    x = torch.rand(2, 3, 40, 40) * 2 - 1
    assert trainer.forward(x, -x).shape == (2, 1, 1, 1)
    assert len(trainer.forward(x, -x, retPerLayer=True)[1]) == trainer.net.L
    trainer.initialize(model="baseline", net="embedded", use_gpu=False)
    assert not trainer.net.lpips
    for options, said in (
        ({"is_train": True}, "is_train: expected False, got True; calibrations are trained by .*PerceptualCalibration"),
        ({"pnet_tune": True, "net": "embedded"}, "pnet_tune: expected False"),
        ({"model": "net-lin"}, "model: expected 'lpips', 'baseline', 'L2' or 'DSSIM', got 'net-lin'"),
    ):
        with pytest.raises(ValueError, match=said):
            ours.Trainer().initialize(use_gpu=False, **options)
    for name in ("set_input", "optimize_parameters", "save"):
        with pytest.raises(AttributeError, match=f"Trainer.{name} is part of a training; .*PerceptualCalibration"):
            getattr(trainer, name)
    with pytest.raises(AttributeError, match="Trainer has no attribute 'other'"):
        _ = trainer.other


IMAGENET = [torch.tensor(values).view(1, 3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]


def normalized(images):
    return (images - IMAGENET[0]) / IMAGENET[1]


LOSSES = {  # a decoder's output and a target on [0, 1] -> the distance, as training code computes it
    "reconstruction first": lambda net, pred, target: net(pred * 2 - 1, target * 2 - 1),
    "target first": lambda net, pred, target: net((target * 2 - 1).contiguous(), (pred * 2 - 1).contiguous()),
    "target on [0, 1]": lambda net, pred, target: net(target.contiguous(), pred.contiguous()),
    "normalized by ImageNet": lambda net, pred, target: net(normalized(target), normalized(pred)),
    "normalized by ImageNet, of [-1, 1]": lambda net, pred, target: net(
        normalized(target * 2 - 1), normalized(pred * 2 - 1)
    ),
    "normalize=True": lambda net, pred, target: net(pred, target, normalize=True),
    "for validation": lambda net, pred, target: net(pred.detach() * 2 - 1, target * 2 - 1),
    "for validation, ImageNet": lambda net, pred, target: net(normalized(target), normalized(pred.detach())),
    "one channel": lambda net, pred, target: net(pred[:, :1] * 2 - 1, target[:, :1] * 2 - 1),
}


@pytest.mark.parametrize("name", LOSSES)
def test_training_steps_of_public_code_run_with_the_same_number_and_gradient(nets, name):
    peer, net = nets()
    x = torch.rand(2, 3, 40, 40)
    x[..., 0, 0], x[..., 1, 1] = 0, 1
    torch.manual_seed(0)
    decoder = nn.Conv2d(3, 3, 3, padding=1)  # without a last tanh, as of a VAE
    found = []
    for loss in (net, peer):
        decoder.zero_grad()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            distance = LOSSES[name](loss, 2.4 * decoder(x - 0.5) + 0.5, x).mean()
        if distance.requires_grad:
            distance.backward()
        gradient = decoder.weight.grad
        found.append((distance.detach(), None if gradient is None else gradient.clone()))
    (ours_value, ours_gradient), (value, gradient) = found
    assert relative_difference(ours_value, value) < 1e-5
    assert (ours_gradient is None) == (gradient is None) == name.startswith("for validation")
    if gradient is not None:
        assert float((ours_gradient - gradient).norm() / gradient.norm()) < 1e-4


def test_what_no_training_code_means_is_still_an_error(nets):
    _, net = nets()
    x = torch.rand(2, 3, 40, 40)
    for pred in (x.clone().requires_grad_(), x * 255):
        with pytest.raises(
            RangeError, match=r"these look like \[0, 255\]: pass uint8 images, or divide by 255 and say"
        ):
            net(pred, x * 255)
