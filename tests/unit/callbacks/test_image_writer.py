"""Predictions as files, from any LightningModule: outputs, names, ranges, dataloaders, ranks."""

from __future__ import annotations

import warnings

import pytest
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning import LightningModule, Trainer
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from lpips_lightning.callbacks import ImageWriter
from lpips_lightning.io import read_image

# 2026-11-28, pytorch_lightning/trainer/connectors/data_connector.py: its advice on loaders.
pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers")
IMAGES = torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))
IMAGES[:, :, 0, 0] = 0  # black and white in each
IMAGES[:, :, 0, 1] = 1


class Predictor(LightningModule):
    def __init__(self, step):
        super().__init__()
        self.step = step

    def predict_step(self, batch, batch_idx, dataloader_idx=0):
        return self.step(batch)


class Named(Dataset):
    def __len__(self):
        return 3

    def __getitem__(self, index):
        return {"image": IMAGES[index], "name": f"shots/frame_{index}.5"}


class Stream(IterableDataset):
    def __iter__(self):
        return iter(IMAGES)


def predict(step, loaders, folder, **options):
    """Run predict; the files below the folder."""
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    Trainer(callbacks=[ImageWriter(str(folder), **options)], **quiet).predict(Predictor(step), loaders)
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))


def loader(data=None, batch_size=2):
    return DataLoader(TensorDataset(IMAGES) if data is None else data, batch_size=batch_size)


NUMBERED = [f"{index:06d}.png" for index in range(5)]
OUTPUTS = {
    "images": (lambda batch: batch[0], {}),
    "pred": (lambda batch: {"pred": batch[0], "other": 1}, {}),
    "preds": (lambda batch: {"preds": batch[0]}, {}),
    "another key": (lambda batch: {"fake": batch[0]}, {"pred_key": "fake"}),
    "tanh": (lambda batch: batch[0] * 2 - 1, {"data_range": (-1, 1)}),
    "bytes": (lambda batch: (batch[0] * 255).round().to(torch.uint8), {}),
    "overshoot of a network": (lambda batch: batch[0].where((batch[0] > 0) & (batch[0] < 1), batch[0] * 1.4 - 0.2), {}),
}


@pytest.mark.parametrize("kind", OUTPUTS)
def test_images_of_a_step_are_written_as_they_are(kind, tmp_path):
    step, options = OUTPUTS[kind]
    assert predict(step, loader(), tmp_path, **options) == NUMBERED
    for file, image in zip(NUMBERED, IMAGES, strict=True):
        torch.testing.assert_close(read_image(tmp_path / file) / 255, image, rtol=0, atol=0.5 / 255 + 1e-6)


def test_gray_images_names_and_dataloaders(tmp_path):
    expected = [f"shots/frame_{index}.5.png" for index in range(3)]
    assert predict(lambda batch: batch["image"][:, :1], loader(Named()), tmp_path) == expected
    both = predict(lambda batch: batch[0], [loader(), loader(batch_size=3)], tmp_path / "two")
    assert both == sorted([*NUMBERED, *(f"dataloader_1/{name}" for name in NUMBERED)])


def test_names_of_the_step_come_first_and_keep_their_suffix(tmp_path):
    step = lambda batch: {"pred": batch["image"], "names": [f"{one[-3]}.png" for one in batch["name"]]}  # noqa: E731
    assert predict(step, loader(Named()), tmp_path) == ["0.png", "1.png", "2.png"]


@pytest.mark.filterwarnings("ignore:Couldn't infer the batch indices")  # Lightning's, of iterable data sets
def test_without_names_and_indices_files_are_counted(tmp_path):
    assert predict(lambda batch: batch, DataLoader(Stream(), batch_size=2), tmp_path) == NUMBERED


def test_ranks_write_the_indices_of_the_data_set(tmp_path):
    writer, trainer = ImageWriter(str(tmp_path)), Trainer(logger=False, accelerator="cpu")
    for rank in (0, 1):  # as Lightning deals five images out to two ranks
        for batch_idx, first in enumerate(range(rank, 5, 4)):
            indices = list(range(first, 5, 2))[:2]
            writer.write_on_batch_end(trainer, None, IMAGES[indices], indices, [IMAGES[indices]], batch_idx, 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == NUMBERED


WRONG_RANGES = {
    "tanh": (lambda x: 2 * x - 1, {}, r"these look like \[-1, 1\]: pass data_range=\(-1, 1\)"),
    "bytes": (lambda x: 255 * x, {}, r"these look like \[0, 255\]: pass data_range=255"),
    "NaN": (lambda x: x * float("nan"), {}, "a NaN usually comes from a diverged network"),
    "unit": (lambda x: x, {"data_range": (-1, 1)}, r"got none below 0 in the first batch; .* data_range=\(0, 1\)"),
}


@pytest.mark.parametrize("kind", WRONG_RANGES)
def test_a_range_that_looks_wrong_warns_once_and_stops_nothing(kind, tmp_path):
    change, options, said = WRONG_RANGES[kind]
    with pytest.warns(UserWarning, match=f"^predict_step: expected values on .*{said}") as caught:
        assert predict(lambda batch: change(batch[0]), loader(), tmp_path, **options) == NUMBERED
    (one,) = (one for one in caught if "predict_step" in str(one.message))
    assert one.filename == __file__


BAD = {
    "a pair": (lambda batch: (batch["image"], 1), "expected images .*, got tuple"),
    "keys": (lambda batch: {"out": batch["image"]}, r"got the keys \['out'\]; return these, or .* pred_key="),
    "a shape": (lambda batch: batch["image"][0], r"got a tensor of shape \(3, 16, 16\)"),
    "labels": (lambda batch: {"pred": batch["image"], "name": ["cat", "cat"]}, "expected 2 different ones.*cat, cat"),
    "fewer names": (lambda batch: {"pred": batch["image"], "name": ["cat"]}, "expected 2 different ones"),
    "paths of the data": (
        lambda batch: {"pred": batch["image"], "name": ["/data/a.png", "/data/b.png"]},
        "expected names relative to the folder of the images, got '/data/a.png'",
    ),
    "above": (lambda batch: {"pred": batch["image"], "name": ["../a", "b"]}, "expected names relative"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_cannot_be_written_is_an_error_that_says_what_to_return(kind, tmp_path):
    step, said = BAD[kind]
    with warnings.catch_warnings(), pytest.raises(MisconfigurationException, match=said):
        predict(step, loader(Named()), tmp_path / "out")
    assert not list(tmp_path.rglob("*"))
