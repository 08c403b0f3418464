"""A recipe of a user's own: one file, its YAML beside it, and the callbacks of ours."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

MODEL = """
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

from lpips_lightning import PerceptualLoss
from lpips_lightning.recipes import ImageRecipeCLI, run_recipe


class Denoising(pl.LightningModule):
    def __init__(self, loss_weight: float = 0.1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.network = torch.nn.Conv2d(3, 3, 1)
        self.perceptual = PerceptualLoss("embedded", data_range=(0, 1), weight=loss_weight)

    def training_step(self, batch):
        prediction = self.network(batch[0])
        return (prediction - batch[1]).abs().mean() + self.perceptual(prediction, batch[1])

    def validation_step(self, batch):
        return {"pred": self.network(batch[0]).clamp(0, 1), "target": batch[1]}

    def predict_step(self, batch):
        return {"pred": self.network(batch[0]).clamp(0, 1)}

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters())


class NoisyImages(pl.LightningDataModule):
    def train_dataloader(self):
        target = torch.rand(4, 3, 40, 40)
        return DataLoader(TensorDataset(target + 0.1 * torch.randn_like(target), target), batch_size=2)

    val_dataloader = predict_dataloader = train_dataloader


def main(*args):
    return run_recipe(ImageRecipeCLI, Denoising, NoisyImages, __file__, list(args))
"""
DEFAULTS = """
seed_everything: 0
trainer: {max_epochs: 2, accelerator: cpu, logger: false, enable_progress_bar: false, enable_model_summary: false}
scores: {net_type: {class_path: lpips_lightning.LPIPS, init_args: {net_type: embedded, resize: 48}}, data_range: [0, 1]}
gallery: {k: 1}
checkpoint: {monitor: val/lpips, dirpath: kept}
"""


@pytest.fixture
def main(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "denoising.py").write_text(MODEL)
    (tmp_path / "denoising.yaml").write_text(DEFAULTS)
    spec = importlib.util.spec_from_file_location("denoising", tmp_path / "denoising.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "denoising", module)
    spec.loader.exec_module(module)
    return module.main


# 2026-11-28, pytorch_lightning/trainer/connectors/data_connector.py: its advice on loaders.
@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore:net_type. expected another network")
def test_a_file_and_its_yaml_are_a_command(main, capsys):
    ran = main("fit", "--model.loss_weight", "0.5")
    assert ran.model.perceptual.weight == 0.5
    said = capsys.readouterr().out
    assert "Next: python denoising.py test" in said and "predict_folder" not in said  # its data module has none
    assert set(ran.trainer.callback_metrics) >= {"val/lpips", "val/psnr", "val/ssim"}
    assert len(list(Path("kept").glob("*.ckpt"))) == 1
    assert len(list(Path("val/gallery").glob("*.png"))) == 6  # best, worst and sheet, two epochs
    main("predict", "--images.out", "out")
    assert sorted(path.name for path in Path("out").iterdir()) == [f"{index:06d}.png" for index in range(4)]
    with pytest.raises(SystemExit):
        main("--help")
    assert "python denoising.py" in capsys.readouterr().out
