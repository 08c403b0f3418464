"""BAPPSDataModule: content of the loaders, downloads, mid-epoch resume."""

import types

import pytest
import pytorch_lightning as pl
import torch
from small_data import write_bapps

from lpips_lightning.data import datamodules as data_modules
from lpips_lightning.data.datamodules import BAPPSDataModule

COUNTS = {"2afc/train/traditional": 5, "2afc/train/cnn": 4, "2afc/val/cnn": 3, "2afc/val/color": 2, "jnd/val/cnn": 2}
SETS = {"train_sets": ["traditional", "cnn"], "val_sets": ["color", "cnn"], "jnd_sets": ["cnn"]}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_bapps(tmp_path_factory.mktemp("bapps"), COUNTS)


def module(root, **options):
    return BAPPSDataModule(str(root), **(SETS | {"batch_size": 2, "size": 16, "download": False} | options))


def paths(loader):
    return [path for batch in loader for path in batch["path"]]


def test_training_draws_from_all_sets_and_each_set_is_validated_alone(root):
    data = module(root)
    data.setup("fit")
    drawn = paths(data.train_dataloader())
    assert len(set(drawn)) == len(drawn) == 9
    assert {path.split("/")[2] for path in drawn[:5]} == {"traditional", "cnn"}
    assert data.val_names == ("color", "cnn")
    assert [len(loader.dataset) for loader in data.val_dataloader()] == [2, 3]
    assert paths(data.val_dataloader()[1]) == [f"2afc/val/cnn/ref/{index:06d}.png" for index in range(3)]


def test_test_loaders_hold_2afc_and_jnd_sets(root):
    data = module(root)
    data.setup("test")
    assert data.test_names == ("2afc/color", "2afc/cnn", "jnd/cnn")
    keys = [sorted(next(iter(loader))) for loader in data.test_dataloader()]
    assert keys == [["judge", "p0", "p1", "path", "ref", "set"]] * 2 + [["p0", "p1", "path", "same", "set"]]


def test_sets_that_are_not_asked_for_need_not_be_there(root):
    data = module(root, train_sets=[], jnd_sets=[])
    data.setup("validate")
    data.setup("test")
    assert data.val_names == ("color", "cnn") and data.test_names == ("2afc/color", "2afc/cnn")
    with pytest.raises(ValueError, match=r"train_dataloader: expected setup\('fit'\) before it"):
        data.train_dataloader()
    with pytest.raises(FileNotFoundError, match="sets: expected some of cnn, color in .*, got 'deblur'"):
        module(root, val_sets=["deblur"]).setup("validate")


def test_archives_of_the_parts_that_are_asked_for_are_fetched(monkeypatch, tmp_path):
    fetched = []
    monkeypatch.setattr(data_modules, "fetch", lambda archive, root, report: fetched.append((archive.file, root)))
    BAPPSDataModule(str(tmp_path), train_sets=[]).prepare_data()
    assert fetched == [("twoafc_val.tar.gz", str(tmp_path)), ("jnd.tar.gz", str(tmp_path))]
    fetched.clear()
    BAPPSDataModule(str(tmp_path), download=False).prepare_data()
    assert fetched == []


def test_without_network_and_data_the_error_explains_the_download(monkeypatch, tmp_path):
    monkeypatch.setattr("shutil.disk_usage", lambda path: types.SimpleNamespace(free=10**12))
    with pytest.raises(OSError, match=r"twoafc_train.tar.gz: expected to download it \(5.3 GB\), got .* put it into"):
        BAPPSDataModule(str(tmp_path)).prepare_data()
    with pytest.raises(
        FileNotFoundError, match=r"folder: expected the folder of a BAPPS data set, got none at .*downloads it"
    ):
        BAPPSDataModule(str(tmp_path), download=False).setup("fit")


def test_ranks_train_on_parts_of_one_epoch(root):
    drawn = []
    for rank in range(2):
        data = module(root)
        data.trainer = types.SimpleNamespace(world_size=2, global_rank=rank)
        data.setup("fit")
        drawn.append(paths(data.train_dataloader()))
    assert [len(part) for part in drawn] == [5, 5]
    assert len(set(drawn[0]) | set(drawn[1])) == 9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size: expected at least 1, got 0"),
        ({"num_workers": -1}, "num_workers: expected at least 0, got -1"),
        ({"seed": -1}, "seed: expected at least 0, got -1"),
        ({"size": 0}, "size: expected at least 1 or None, got 0"),
    ],
)
def test_wrong_numbers_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        BAPPSDataModule(**options)


class Listener(pl.LightningModule):
    """Learns one parameter from the judgments, and records the batches."""

    def __init__(self, save_at=None, path=None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.save_at, self.path, self.seen, self.tested = save_at, path, [], set()

    def training_step(self, batch, batch_idx):
        self.seen.append((self.current_epoch, batch["path"], float(batch["ref"][0, 0, 0, 0])))
        return ((self.weight - batch["judge"]) ** 2 * batch["ref"].mean((1, 2, 3))).sum()

    def on_train_batch_end(self, outputs, batch, batch_idx):
        if self.trainer.global_step == self.save_at:
            self.trainer.save_checkpoint(self.path)

    def validation_step(self, batch, batch_idx, dataloader_idx):
        pass

    def test_step(self, batch, batch_idx, dataloader_idx):
        self.tested.add((self.trainer.datamodule.test_names[dataloader_idx], "judge" in batch))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 0.1)


# 2026-11-21, pytorch_lightning: its advice on loaders; state of the progress bars.
@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_mid_epoch_resume_gives_the_uninterrupted_result(root, tmp_path):
    def run(listener, checkpoint=None):
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
        trainer = pl.Trainer(max_epochs=3, enable_model_summary=False, num_sanity_val_steps=1, **quiet)
        data = module(root, mirror=True, seed=4)
        trainer.fit(listener, data, ckpt_path=checkpoint)
        trainer.test(listener, data, verbose=False)
        return listener

    whole = run(Listener(save_at=7, path=tmp_path / "a.ckpt"))
    assert len(whole.seen) == 15
    resumed = run(Listener(), tmp_path / "a.ckpt")
    assert resumed.seen == whole.seen[7:]
    assert torch.equal(resumed.weight, whole.weight) and whole.weight != 0
    assert whole.tested == {("2afc/color", True), ("2afc/cnn", True), ("jnd/cnn", False)}
