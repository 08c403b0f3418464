"""A minimal model, its data, and a quiet Trainer, for the tests of callbacks."""

from __future__ import annotations

import pytest
import pytorch_lightning as pl
import torch
from packaging.version import Version
from pytorch_lightning.loggers import TensorBoardLogger, WandbLogger
from torch.utils.data import DataLoader, TensorDataset

from lpips_lightning import PerceptualLoss

SIZE = 48


class Boring(pl.LightningModule):
    """Darkens images; its steps return `returns(input, prediction, target)`."""

    def __init__(self, returns=None, loss=None, loss_weight=0.5):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(0.8))
        self.returns = returns or (lambda x, pred, target: {"input": x, "pred": pred, "target": target})
        if loss is not None:
            self.perceptual = PerceptualLoss(loss, data_range=(0, 1), weight=loss_weight)

    def forward(self, x):
        return (self.scale.clamp(0, 1) * x).clamp(0, 1)

    def training_step(self, batch, batch_idx):
        x, target = batch
        loss = (self(x) - target).abs().mean()
        return loss + self.perceptual(self(x), target) if hasattr(self, "perceptual") else loss

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        return self.returns(batch[0], self(batch[0]), batch[1])

    test_step = validation_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def images(n, seed=0, size=SIZE):
    """Inputs and targets ``(n, 3, size, size)`` on [0, 1]; the targets are noisier from one to the next."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, 3, size // 8, size // 8, generator=generator)
    x = torch.nn.functional.interpolate(coarse, (size, size), mode="bilinear")
    noise = torch.rand(n, 3, size, size, generator=generator) - 0.5
    return x, (x + torch.linspace(0.1, 0.9, n).view(-1, 1, 1, 1) * noise).clamp(0, 1)


def loader(n=5, batch_size=2, seed=0, size=SIZE):
    """Three batches of 2, 2 and 1 by default."""
    return DataLoader(TensorDataset(*images(n, seed, size)), batch_size=batch_size)


def trainer(folder, callbacks, module=pl, **options):
    """Two epochs, on the CPU, quiet."""
    defaults = {
        "default_root_dir": folder,
        "max_epochs": 2,
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
    }
    return module.Trainer(**{**defaults, "callbacks": callbacks, **options})


def board(folder, name="board"):
    """A logger of TensorBoard, or a visible skip."""
    pytest.importorskip("tensorboard")
    return TensorBoardLogger(folder, name=name)


def board_events(logger):
    """Logged data of a run, as read by TensorBoard."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(logger.log_dir, size_guidance={"images": 0}).Reload()


def wandb(folder):
    """An offline wandb logger."""
    import wandb

    # wandb 0.19 asks its server before it logs a table, offline too, and for ever (github.com/wandb/wandb/issues/8957).
    old = Version(wandb.__version__) < Version("0.20")
    settings = {"settings": wandb.Settings(allow_offline_artifacts=False)} if old else {}
    return WandbLogger(save_dir=folder, mode="offline", **settings)


def fit(folder, callbacks, model=None, val=None, **options):
    """Fit a model on three batches; the Trainer."""
    fitted = trainer(folder, callbacks, **options)
    fitted.fit(model or Boring(), loader(), val or loader(seed=1))
    return fitted
