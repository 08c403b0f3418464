"""Fast calibration in mode lin: pooling, its cache and training, compared with the full computation."""

import logging
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lpips_lightning import LPIPS
from lpips_lightning.calibration import pooled
from lpips_lightning.calibration.fit_pooled import fit_lin
from lpips_lightning.calibration.model import TrainableLPIPS, pooled_differences, random_calibration
from lpips_lightning.calibration.pooled import PooledTriplets, cached_pool, pool, pool_pairs
from lpips_lightning.data.bapps import TwoAFCDataset
from lpips_lightning.data.triplets import Triplet, TripletDataset, read_triplets
from lpips_lightning.functional.judgments import human_ceiling, two_afc_score
from lpips_lightning.weights import read_tensors


@pytest.fixture
def network():
    return TrainableLPIPS("embedded", init="official")


@pytest.fixture
def images(tmp_path):
    """Six images of noise, and triplets over them."""
    generator = np.random.default_rng(0)
    folder = tmp_path / "images"
    folder.mkdir()
    for name in "abcdef":
        pixels = generator.integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((48, 48)).save(folder / f"{name}.png")
    rows = [("a", "b", "c"), ("b", "a", "d"), ("a", "c", "b"), ("f", "e", "a"), ("c", "a", "f")]
    triplets = [Triplet(*(f"{name}.png" for name in row), judge=index / 4) for index, row in enumerate(rows)]
    return TripletDataset(triplets, folder, size=40)


@pytest.fixture
def patches(tmp_path):
    """Five triplets in the layout of BAPPS."""
    generator = np.random.default_rng(1)
    for number in range(5):
        for kind in ("ref", "p0", "p1"):
            path = tmp_path / "bapps/2afc/train/noise" / kind / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(generator.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(path)
        path = tmp_path / "bapps/2afc/train/noise/judge" / f"{number}.npy"
        path.parent.mkdir(exist_ok=True)
        np.save(path, np.float32(number / 4))
    return TwoAFCDataset(tmp_path / "bapps", "train", ["noise"], size=40)


def expected_distances(data, net):
    items = [data[index] for index in range(len(data))]
    return [torch.stack([net(item["ref"][None], item[name][None])[0] for item in items]) for name in ("p0", "p1")]


@pytest.mark.parametrize("kind", ["images", "patches"])
def test_pooled_distances_are_those_of_lpips(kind, network, request):
    data = request.getfixturevalue(kind)
    found = pool(network, data)
    assert len(found) == 5
    assert found.judge.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert found.spread is None
    for ours, expected in zip(
        found.distances(network.calibration), expected_distances(data, LPIPS("embedded")), strict=True
    ):
        assert torch.allclose(ours, expected, rtol=1e-5)
    chosen = torch.tensor([3, 1])
    assert torch.equal(
        found.subset(chosen).distances(network.calibration)[0], found.distances(network.calibration)[0][chosen]
    )


def test_an_image_is_encoded_once_and_a_pair_compared_once(network, images, monkeypatch):
    encoded = []
    encode = TrainableLPIPS.encode
    monkeypatch.setattr(TrainableLPIPS, "encode", lambda self, batch: encoded.append(len(batch)) or encode(self, batch))
    found = pool(network, images)
    assert sum(encoded) == 6 + 1  # one more, to learn how large features are
    assert len(found.mean) == 6  # ab ac bd ef af cf
    assert found.rows.flatten().unique().tolist() == list(range(6))


def test_a_small_memory_budget_changes_nothing(network):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(7, 3, 40, 40, generator=generator) * 2 - 1
    pairs = torch.combinations(torch.arange(7))[torch.randperm(21, generator=generator)]
    plenty = pool_pairs(network, images.__getitem__, pairs, spread=True)
    little = pool_pairs(network, images.__getitem__, pairs, spread=True, memory_budget=1)
    assert all(torch.equal(one, other) for one, other in zip(plenty, little, strict=True))
    features = [network.encode(images[column]) for column in pairs.T]
    assert torch.allclose(plenty[0], torch.cat(list(pooled_differences(*features).values()), 1), rtol=1e-4, atol=1e-8)


def test_spread_is_the_standard_deviation_of_element_wise_dropout(network):
    x, y = torch.rand(2, 3, 40, 40, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mean, spread = pool_pairs(network, [x, y].__getitem__, torch.tensor([[0, 1]]), spread=True)
    features = network.encode(torch.stack([x, y]))
    one, other = ({layer: value[index : index + 1] for layer, value in features.items()} for index in (0, 1))
    generator = torch.Generator().manual_seed(1)
    draws = torch.cat(
        [torch.cat(list(pooled_differences(one, other, 0.5, generator).values()), 1) for _ in range(2000)]
    )
    assert torch.allclose(draws.mean(0), mean[0], rtol=0.2, atol=1e-5)
    seen = spread[0] > 1e-6
    assert float((draws.std(0)[seen] / spread[0][seen]).mean()) == pytest.approx(1, abs=0.02)


def test_images_of_several_sizes_need_a_size(network, images):
    with Image.open(images.folder / "a.png") as image:
        image.resize((64, 64)).save(images.folder / "f.png")
    images.size = None
    with pytest.raises(ValueError, match="size: expected images of one size, got 48x48 and 64x64; set size"):
        pool(network, images)


@pytest.mark.parametrize("kind", ["images", "patches"])
def test_pool_is_kept_on_disk_and_made_anew_for_anything_else(kind, network, request, tmp_path, monkeypatch, caplog):
    data = request.getfixturevalue(kind)
    made = []
    monkeypatch.setattr(pooled, "pool", lambda *args, **kwargs: made.append(1) or pool(*args, **kwargs))
    folder = tmp_path / "cache"
    first = cached_pool(network, data, folder)
    again = cached_pool(network, data, folder)
    assert len(made) == 1
    assert all(torch.equal(getattr(first, name), getattr(again, name)) for name in ("mean", "rows", "judge"))
    assert again.layers == first.layers
    cached_pool(network, data, folder, spread=True)
    cached_pool(TrainableLPIPS("embedded", mode="scratch"), data, folder)
    cached_pool(TrainableLPIPS("embedded", init="random"), data, folder)  # another calibration of the same backbone
    assert len(made) == 3
    image = next((tmp_path / kind.replace("patches", "bapps")).rglob("*.png"))
    os.utime(image, ns=(1, 1))
    cached_pool(network, data, folder)
    assert len(made) == 4
    assert len(list(folder.iterdir())) == 4
    assert caplog.messages == []
    cached_pool(network, data, None)
    assert len(made) == 5


@pytest.mark.parametrize("damage", ["cut", "other numbers", "another key", "nothing"])
def test_damaged_cache_is_made_anew_with_a_word_in_the_log(damage, network, images, tmp_path, caplog):
    first = cached_pool(network, images, tmp_path / "cache")
    (path,) = (tmp_path / "cache").iterdir()
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-7])
    elif damage == "nothing":
        path.write_bytes(b"")
    elif damage == "other numbers":
        data = bytearray(path.read_bytes())
        data[-9] ^= 1
        path.write_bytes(data)
    else:
        pooled.write_tensors(path, read_tensors(path), {"key": pooled.read_record(path)["key"] + "0"})
    with caplog.at_level(logging.WARNING, "lpips_lightning"):
        again = cached_pool(network, images, tmp_path / "cache")
    assert torch.equal(again.mean, first.mean)
    assert [message.endswith("; recomputing") for message in caplog.messages] == [True]
    caplog.clear()
    cached_pool(network, images, tmp_path / "cache")
    assert caplog.messages == []


def made_up(count=600, channels=24, seed=0):
    """Triplets judged by a weight on the first half of the channels."""
    generator = torch.Generator().manual_seed(seed)
    mean = torch.rand(count, channels, generator=generator)
    rows = torch.randint(count, (count, 2), generator=generator)
    d0, d1 = mean[:, : channels // 2].sum(1)[rows].unbind(1)
    data = PooledTriplets(mean, 0.1 * mean, rows, (d1 < d0).float(), {"relu1": channels // 2, "relu2": channels // 2})
    return data.subset(torch.arange(count * 3 // 4)), data.subset(torch.arange(count * 3 // 4, count))


@pytest.mark.parametrize("dropout", ["none", "matched", "vector"])
def test_fit_improves_agreement_and_is_reproducible(dropout):
    train, held_out = made_up()
    start = {layer: torch.full((12,), 0.1) for layer in train.layers}
    found = fit_lin(train, start, held_out=held_out, dropout=dropout, lr=1e-2)
    before = float(two_afc_score(*held_out.distances(start), held_out.judge))
    assert len(found.scores) == len(found.losses) == 10
    assert before < 0.8
    assert found.scores[-1] > 0.85
    assert found.losses[-1] < found.losses[0]
    assert float(found.calibration["relu1"].mean()) > 3 * float(found.calibration["relu2"].mean())
    assert all(float(weight.min()) >= 0 for weight in found.calibration.values())
    again = fit_lin(train, start, dropout=dropout, lr=1e-2)
    assert torch.equal(again.calibration["relu1"], found.calibration["relu1"])
    assert again.scores == []
    other = fit_lin(train, start, dropout=dropout, lr=1e-2, seed=1)
    assert not torch.equal(other.calibration["relu1"], found.calibration["relu1"])


def test_bad_fits_are_refused():
    train, _ = made_up()
    start = {layer: torch.full((12,), 0.1) for layer in train.layers}
    with pytest.raises(ValueError, match="dropout: expected one of 'matched', 'vector', 'none', got 'half'"):
        fit_lin(train, start, dropout="half")
    with pytest.raises(ValueError, match="train: expected triplets, .* got 0 and 50"):
        fit_lin(train.subset(torch.arange(0)), start)
    without = PooledTriplets(train.mean, None, train.rows, train.judge, train.layers)
    with pytest.raises(ValueError, match="dropout: expected triplets pooled with spread=True for 'matched'"):
        fit_lin(without, start, dropout="matched")


@pytest.mark.slow
@pytest.mark.parametrize("net_type", ["alex", "squeeze"])
def test_materials_are_judged_far_better_after_recalibration(net_type, real_weights, monkeypatch):
    root = os.environ.get("LPIPS_LIGHTNING_DATA")
    if not root or not (Path(root) / "materials").is_dir():
        pytest.skip("LPIPS_LIGHTNING_DATA does not name a folder with materials/train.csv and materials/images")
    monkeypatch.setenv("LPIPS_LIGHTNING_WEIGHTS", str(real_weights))
    folder = Path(root) / "materials"
    triplets = read_triplets(folder / "train.csv", folder / "images")
    assert len(triplets) == 22801
    network = TrainableLPIPS(net_type, init="official")
    data = pool(network, TripletDataset(triplets, folder / "images", size=128))
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
    train, held_out = data.subset(order[3000:]), data.subset(order[:3000])
    found = fit_lin(train, random_calibration(network.record, 0), held_out=held_out)
    official = float(two_afc_score(*held_out.distances(network.calibration), held_out.judge))
    assert found.scores[-1] > official + 0.035
    assert 0.76 < found.scores[-1] < float(human_ceiling(held_out.judge)) + 0.01
