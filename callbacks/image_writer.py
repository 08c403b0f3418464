"""Writes what a recipe predicts as image files."""

from pathlib import Path
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import BasePredictionWriter
from torch import Tensor
from typing_extensions import override

from lpips_lightning.callbacks._loggers import write_png
from lpips_lightning.callbacks._sample_panel import to_pixels


def save_image(path: Path, image: Tensor) -> None:
    """Write an image as PNG, atomically; its folder is made when needed.

    Args:
        path: Of the file, which is overwritten.
        image: ``(C, H, W)``, on [0, 1] (clamped and rounded) or uint8.
    """
    write_png(path, to_pixels(image, (0.0, 1.0)))


class ImageWriter(BasePredictionWriter):
    """Writes each predicted image as ``<folder>/<name>.png`` while ``predict`` runs, whole or not at all.

    ``predict_step`` returns images ``(N, 3, H, W)`` on [0, 1] (clamped and rounded) or uint8; the last part of its
    batch are their names, which may hold slashes. Of several dataloaders each but the first has a folder of its own,
    ``<folder>/dataloader_1``.

    Args:
        folder: Made when needed; files of the same name are overwritten.
    """

    def __init__(self, folder: str = "outputs/images") -> None:
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
        for name, image in zip(batch[-1], prediction, strict=True):
            save_image(folder / f"{name}.png", image)
