"""Writes what a recipe predicts as picture files."""

from pathlib import Path
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import BasePredictionWriter
from torch import Tensor
from typing_extensions import override

from lpips_lightning.callbacks.loggers import write_png
from lpips_lightning.callbacks.sample_picture import to_pixels

__all__ = ["PictureWriter"]


class PictureWriter(BasePredictionWriter):
    """Writes each predicted picture as ``<folder>/<name>.png`` while ``predict`` runs, whole or not at all.

    ``predict_step`` returns pictures ``(N, 3, H, W)`` on [0, 1] (clamped and rounded) or uint8; the last part of its
    batch are their names, which may hold slashes. Of several dataloaders each but the first has a folder of its own,
    ``<folder>/dataloader_1``.

    Args:
        folder: Made when needed; files of the same name are overwritten.
    """

    def __init__(self, folder: str = "outputs/pictures") -> None:
        super().__init__(write_interval="batch")
        self.folder = folder

    @override
    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Tensor,
        batch_indices: Any,
        batch: tuple[Any, ...],
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        folder = Path(self.folder) / (f"dataloader_{dataloader_idx}" if dataloader_idx else "")
        for name, picture in zip(batch[-1], prediction, strict=True):
            write_png(folder / f"{name}.png", to_pixels(picture, (0.0, 1.0)))
