"""The feature pass of calibration fast on a Trainer: the same bits as in one process, and its cache."""

import pickle
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from lpips_lightning.calibration import pooled
from lpips_lightning.calibration.model import TrainableLPIPS
from lpips_lightning.calibration.pooled import pool
from lpips_lightning.data.bapps import TwoAFCDataset
from lpips_lightning.data.triplets import Triplet, TripletDataset
from lpips_lightning.runs import engine
from lpips_lightning.runs import pooled as runs_pooled
from lpips_lightning.runs.launch import Launch
from lpips_lightning.runs.once import PerProcess
from lpips_lightning.runs.pooled import PooledWork, pair_blocks, pool_on_ranks


@pytest.fixture
def network():
    return PerProcess(partial(TrainableLPIPS, "embedded", init="official"))


@pytest.fixture
def data(tmp_path):
    """Triplets that share images, and triplets in the layout of BAPPS."""
    generator = np.random.default_rng(0)

    def write(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(path)

    for name in "abcdefgh":
        write(tmp_path / "own" / f"{name}.png")
    rows = ["abc", "bad", "acb", "fea", "caf", "ghg"]
    triplets = [Triplet(*(f"{name}.png" for name in row), judge=index / 8) for index, row in enumerate(rows)]
    for number in range(5):
        for kind in ("ref", "p0", "p1"):
            write(tmp_path / "2afc/train/noise" / kind / f"{number}.png")
        (tmp_path / "2afc/train/noise/judge").mkdir(exist_ok=True)
        np.save(tmp_path / "2afc/train/noise/judge" / f"{number}.npy", np.float32(number / 4))
    return [TripletDataset(triplets, tmp_path / "own", 40), TwoAFCDataset(tmp_path, "train", ["noise"], 40)]


def equal(first, second):
    names = ("mean", "rows", "judge", "spread")
    values = [(getattr(first, name), getattr(second, name)) for name in names]
    return first.layers == second.layers and all(
        (one is None and other is None) or (torch.equal(one, other) and one.dtype == other.dtype)
        for one, other in values
    )


@pytest.mark.parametrize("spread", [False, True])
def test_a_trainer_pools_the_same_bits_as_one_process_from_a_copy_of_the_work(spread, network, data, monkeypatch):
    monkeypatch.setattr(runs_pooled, "_IMAGES", 2)
    monkeypatch.setattr(runs_pooled, "TRIPLETS", 2)
    monkeypatch.setattr(pooled, "TRIPLETS", 2)
    work = PooledWork(network, data, spread=spread)
    assert len(work.todo()) >= 7
    copied = pickle.loads(pickle.dumps(work))
    results = engine.run(Launch("1", accelerator="cpu").trainer(), lambda: copied)
    found = work.pooled(results)
    expected = [pool(network(), one, spread=spread) for one in data]
    assert [equal(one, other) for one, other in zip(found, expected, strict=True)] == [True, True]
    assert not equal(found[0], found[1])


def test_a_full_cache_starts_nothing_and_half_of_one_does_the_rest(network, data, tmp_path, monkeypatch):
    runs, run = [], engine.run
    monkeypatch.setattr(engine, "run", lambda *args, **options: runs.append(1) or run(*args, **options))

    def pooled_now():
        trainer = Launch("1", accelerator="cpu").trainer()
        return pool_on_ranks(trainer, lambda: PooledWork(network, data, tmp_path / "cache"))

    first = pooled_now()
    files = sorted((tmp_path / "cache").iterdir())
    again = pooled_now()
    assert (len(runs), len(files)) == (1, 2)
    files[0].unlink()
    third = pooled_now()
    assert len(runs) == 2
    assert sorted((tmp_path / "cache").iterdir()) == files
    assert all(equal(one, two) and equal(one, three) for one, two, three in zip(first, again, third, strict=True))


def test_a_work_in_a_cache_is_sent_without_what_it_found(network, data, tmp_path):
    pool_on_ranks(Launch("1", accelerator="cpu").trainer(), lambda: PooledWork(network, data, tmp_path / "cache"))
    work = PooledWork(network, data, tmp_path / "cache")
    assert len(work.pooled([])) == 2
    assert len(pickle.dumps(work)) < 10_000


def test_images_of_several_sizes_need_a_size(network, data):
    own = data[0]
    with Image.open(own.folder / "a.png") as image:
        image.resize((64, 64)).save(own.folder / "f.png")
    own.size = None
    trainer = Launch("1", accelerator="cpu").trainer()
    with pytest.raises(ValueError, match="size: expected images of one size, got 40x40 and 64x64; set size"):
        pool_on_ranks(trainer, lambda: PooledWork(network, [own]))


@pytest.mark.parametrize("images", [1, 3, 8, 100])
def test_every_pair_is_in_one_part_of_at_most_two_blocks(images):
    generator = torch.Generator().manual_seed(images)
    stars = torch.tensor([[10 * star, 10 * star + leaf] for star in range(12) for leaf in range(1, 4)])
    mixed = torch.randint(200, 260, (80, 2), generator=generator).sort(1).values
    pairs = torch.cat([stars, mixed]).unique(dim=0)
    parts = pair_blocks(pairs, images)
    assert torch.cat(parts).sort().values.tolist() == list(range(len(pairs)))
    assert max(len(pairs[part].unique()) for part in parts) <= 2 * images
    if images >= 8:  # a star fits, and is not cut
        assert all(sum(bool((pairs[part] == 10 * star).any()) for part in parts) == 1 for star in range(12))
    assert len(pair_blocks(pairs, 1000)) == 1
