"""``convention="3dgs"``: the number that `lpips` prints for images on [0, 1] with ``normalize=False``."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest
import torch
from PIL import Image
from references import peer_lpips
from safetensors.torch import save_file

from lpips_lightning import LPIPS, PerceptualLoss, WeightedSum, compare
from lpips_lightning import LearnedPerceptualImagePatchSimilarity as Metric
from lpips_lightning.cli.commands import main
from lpips_lightning.functional.lpips import learned_perceptual_image_patch_similarity as function

FACTOR = 4  # two rounding errors add up, and the largest of few values exceeds that of others


@pytest.fixture(scope="module")
def peer(backbones):
    return peer_lpips("vgg", backbones["vgg"])


@pytest.fixture(scope="module")
def net(backbones):
    return LPIPS("vgg", weights=backbones["vgg"], convention="3dgs")


def noisy(count):
    x = torch.randint(0, 256, (count, 3, 32, 40), dtype=torch.uint8)
    noise = torch.randint(-40, 41, x.shape)
    return x, (x.int() + noise).clamp(0, 255).to(torch.uint8)


@pytest.fixture
def images():
    return noisy(2)


@pytest.fixture(scope="module")
def tolerance(peer):
    """Relative; from the error of `lpips` itself in float32 on this machine, whose convolutions differ by CPU."""
    x, y = noisy(16)
    with torch.no_grad():
        exact = deepcopy(peer).double()(x.double() / 255, y.double() / 255).flatten()
        found = peer(x.float() / 255, y.float() / 255).flatten()
    return FACTOR * float(((found - exact) / exact).abs().max())


@pytest.fixture
def expected(peer, images):
    """As the scripts behind those tables do it: images on [0, 1], no ``normalize=True``."""
    x, y = (one.float() / 255 for one in images)
    with torch.no_grad():
        return peer(x, y).flatten()


def by_metric(net, x, y):
    metric = Metric(net, data_range=(0, 1), reduction="none")
    metric.update(x, y)
    return metric.compute()


WAYS = {
    "network": lambda net, x, y: net(x, y, (0, 1)),
    "features": lambda net, x, y: net.distance(net.encode(x, 1), net.encode(y, 1)),
    "layers": lambda net, x, y: sum(net(x, y, (0, 1), per_layer=True).values()),
    "255": lambda net, x, y: net(255 * x, 255 * y, 255),
    "metric": by_metric,
    "function": lambda net, x, y: function(x, y, net, "none", data_range=(0, 1)),
    "loss": lambda net, x, y: PerceptualLoss(net, data_range=(0, 1), reduction="none")(x, y),
    "pairs": lambda net, x, y: net.pairwise(x, y, (0, 1)).diagonal(),
}


@pytest.mark.parametrize("way", WAYS)
def test_the_number_of_the_tables(net, images, expected, tolerance, way):
    assert torch.allclose(WAYS[way](net, *(one.float() / 255 for one in images)), expected, rtol=tolerance, atol=0)
    if way not in ("255", "pairs"):
        assert torch.allclose(WAYS[way](net, *images), expected, rtol=tolerance, atol=0), "uint8"


def test_the_convention_changes_number_and_fingerprint(backbones, net, images, expected):
    plain = LPIPS("vgg", weights=backbones["vgg"])
    assert not torch.allclose(plain(*images), expected, rtol=0.05)
    assert net.fingerprint == plain.fingerprint.replace(", fp32", ", convention 3dgs: [0, 1] read as [-1, 1], fp32")


def test_the_gradient_of_the_tables(net, backbones, images):
    x, y = (one.double() / 255 for one in images)
    x = (x * 1.2 - 0.1).requires_grad_()  # a prediction is not clamped
    peer_lpips("vgg", backbones["vgg"]).double()(x, y).mean().backward()
    expected, x.grad = x.grad, None
    PerceptualLoss(net, data_range=(0, 1))(x, y).backward()
    assert torch.allclose(x.grad, expected, rtol=1e-8, atol=1e-10 * expected.abs().max())


def test_files_are_compared_so(backbones, images, expected, tolerance, tmp_path, capsys):
    for folder, batch in zip("ab", images, strict=True):
        (tmp_path / folder).mkdir()
        for index, one in enumerate(batch):
            Image.fromarray(one.permute(1, 2, 0).numpy()).save(tmp_path / folder / f"{index}.png")
    weights = tmp_path / "vgg.safetensors"
    save_file(backbones["vgg"], weights)
    found = compare(tmp_path / "a", tmp_path / "b", "vgg", weights=weights, convention="3dgs")
    assert np.allclose(found.distances, expected, rtol=tolerance)
    files = [str(tmp_path / folder / "0.png") for folder in "ab"]
    main(["compare", *files, "--net", "vgg", "--weights", str(weights), "--convention", "3dgs"])
    distance, fingerprint = capsys.readouterr().out.strip().split("\n")
    assert float(distance.split()[-1]) == pytest.approx(expected[0].item(), abs=1e-5)
    assert "convention 3dgs" in fingerprint


def test_its_names_say_so(net, images):
    assert net.label == "vgg v0.1 3dgs"
    both = WeightedSum([(net, 1), ("embedded", 0.5)])
    assert both.names == ("vgg-3dgs", "embedded") and both.layers[0] == "vgg-3dgs.relu1_2"
    assert torch.allclose(both(*images, 255), net(*images, 255) + 0.5 * LPIPS("embedded")(*images, 255))


@pytest.mark.parametrize("memory", [[], ["--memory-budget=64M"]])
def test_correlate_measures_so(backbones, images, expected, tolerance, tmp_path, memory):
    rows = ["reference,distorted,score"]
    for index, pair in enumerate(zip(*images, strict=True)):
        for side, one in zip("ab", pair, strict=True):
            Image.fromarray(one.permute(1, 2, 0).numpy()).save(tmp_path / f"{side}{index}.png")
        rows.append(f"b{index}.png,a{index}.png,{index}")
    (tmp_path / "rated.csv").write_text("\n".join([*rows, "b0.png,b0.png,9", "b1.png,b1.png,8", "b0.png,a1.png,7"]))
    save_file(backbones["vgg"], tmp_path / "vgg.safetensors")
    network = ["--net", "vgg", "--weights", str(tmp_path / "vgg.safetensors"), "--convention", "3dgs", *memory]
    out = tmp_path / "out.csv"
    assert main(["correlate", str(tmp_path / "rated.csv"), *network, "--csv", str(out)]) in (0, None)
    found = [float(line.split(",")[3]) for line in out.read_text().split()[1:]]
    assert found[: len(expected)] == pytest.approx(expected.tolist(), rel=tolerance)


@pytest.mark.parametrize("data_range", [(-1, 1), (0, 2), (0.5, 1)])
@pytest.mark.parametrize(
    "use",
    [
        lambda net, given: net(torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 32, 32), given),
        lambda net, given: net.encode(torch.zeros(1, 3, 32, 32), given),
        lambda net, given: Metric(net, data_range=given),
        lambda net, given: PerceptualLoss(net, data_range=given),
        lambda net, given: compare(np.zeros((32, 32, 3)), np.zeros((32, 32, 3)), net, data_range=given),
    ],
)
def test_other_ranges_are_refused(net, use, data_range):
    with pytest.raises(ValueError, match=r"data_range: expected \(0, 1\), or 255, with convention='3dgs'.*leave the"):
        use(net, data_range)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"net_type": "alex"}, "convention: expected net_type='vgg' with '3dgs', got 'alex'"),
        ({"version": 0.0}, "version: expected '0.1' with convention='3dgs', got '0.0'"),
        ({"calibrated": False}, "calibrated: expected True with convention='3dgs', got False"),
        ({"calibration": "own.safetensors"}, "calibration: expected None with convention='3dgs'"),
        ({"convention": "nerf"}, r"convention: expected None or one of \('3dgs',\), got 'nerf'"),
    ],
)
def test_what_contradicts_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        LPIPS(**{"net_type": "vgg", "weights": "random", "convention": "3dgs", **options})


def test_the_command_names_its_options(tmp_path, capsys):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    assert main(["compare", str(tmp_path / "a.png"), str(tmp_path / "a.png"), "--convention", "3dgs"]) == 2
    assert "--convention: expected --net vgg with this option, got --net alex" in capsys.readouterr().err


def test_features_of_another_convention_are_refused(backbones, net, images):
    own, other = net, LPIPS("vgg", weights=backbones["vgg"])
    x, y = (one.float() / 255 for one in images)
    with pytest.raises(ValueError, match="y: expected features of"):
        own.distance(own.encode(x, 1), other.encode(y, 1))
