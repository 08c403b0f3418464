"""Callbacks take a network by name, as a built object, and from the YAML of a LightningCLI."""

from __future__ import annotations

import sys

import pytest
import torch
from boring_module import Boring, fit, loader
from pytorch_lightning import LightningDataModule
from pytorch_lightning.cli import LightningCLI

from lpips_lightning import LPIPS
from lpips_lightning.backbones import BACKBONES
from lpips_lightning.callbacks import PerceptualScores, SampleGallery


class Data(LightningDataModule):
    def train_dataloader(self):
        return loader()

    def val_dataloader(self):
        return loader(seed=1)


def frozen(callback):
    return callback._pairs.net.frozen_network(torch.device("cpu"), torch.float32)


def tensors(value):
    """Every tensor in a checkpoint."""
    if isinstance(value, torch.Tensor):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [tensor for one in inner for tensor in tensors(one)]


IN_PYTHON = {
    "a name": "embedded",
    "a backbone": BACKBONES["embedded"],
    "a network": LPIPS("embedded"),
}
IN_YAML = {
    "a name": "net_type: embedded",
    "a name and options": "net_type: embedded, version: 0.1, gray: null",
    "a network": "net_type: {class_path: lpips_lightning.LPIPS, init_args: {net_type: embedded}}",
}


def _holds_the_model_alone(checkpoint):
    assert list(checkpoint["state_dict"]) == ["scale"]
    assert sum(tensor.numel() for tensor in tensors(checkpoint)) <= 2  # it, and what ModelCheckpoint keeps


def run(callbacks, folder):
    """Fit the model with two callbacks, and its checkpoint."""
    fitted = fit(folder, callbacks, max_epochs=1, enable_checkpointing=True)
    (file,) = folder.rglob("*.ckpt")
    return fitted, torch.load(file, weights_only=True)


@pytest.mark.parametrize("kind", IN_PYTHON)
def test_two_callbacks_share_a_network_that_no_checkpoint_holds(kind, tmp_path):
    network = IN_PYTHON[kind]
    callbacks = [PerceptualScores(network, data_range=(0, 1)), SampleGallery(network, data_range=(0, 1), k=1)]
    fitted, checkpoint = run(callbacks, tmp_path)
    assert frozen(callbacks[0]) is frozen(callbacks[1])
    _holds_the_model_alone(checkpoint)
    assert float(fitted.callback_metrics["val/lpips"]) > 0
    assert len(list((tmp_path / "val" / "gallery").glob("*.png"))) == 3  # worst, best, sheet


@pytest.mark.filterwarnings("ignore:.*does not have many workers")  # Lightning's advice on loaders, 2026-11-28
@pytest.mark.parametrize("kind", IN_YAML)
def test_a_network_in_yaml_is_the_one_of_python(kind, tmp_path, monkeypatch):
    network = IN_YAML[kind]
    config = f"""
trainer:
  default_root_dir: {tmp_path}
  accelerator: cpu
  max_epochs: 1
  logger: false
  enable_progress_bar: false
  enable_model_summary: false
  callbacks:
  - class_path: lpips_lightning.callbacks.PerceptualScores
    init_args: {{{network}, data_range: [0, 1]}}
  - class_path: lpips_lightning.callbacks.SampleGallery
    init_args: {{{network}, data_range: [0, 1], k: 1}}
"""
    given = tmp_path / "given.yaml"
    given.write_text(config)
    monkeypatch.setattr(sys, "argv", ["boring"])
    ran = LightningCLI(Boring, Data, args=["fit", f"--config={given}"], seed_everything_default=0)
    callbacks = [one for one in ran.trainer.callbacks if isinstance(one, PerceptualScores | SampleGallery)]
    assert [one._pairs.fingerprint for one in callbacks] == [f"{LPIPS('embedded').fingerprint}, range [0.0, 1.0]"] * 2
    assert frozen(callbacks[0]) is frozen(callbacks[1]) is LPIPS("embedded").frozen_network(*_BASE)
    (file,) = tmp_path.rglob("*.ckpt")
    _holds_the_model_alone(torch.load(file, weights_only=True))
    assert (tmp_path / "config.yaml").is_file() and float(ran.trainer.callback_metrics["val/lpips"]) > 0


_BASE = torch.device("cpu"), torch.float32
