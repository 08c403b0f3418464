"""Writes predicted images as PNG files."""

from pathlib import Path
from typing import Any

from pytorch_lightning import Trainer
from torch import Tensor
from typing_extensions import override

from lpips_lightning._lightning import BasePredictionWriter, LightningModule
from lpips_lightning.callbacks._loggers import write_png
from lpips_lightning.callbacks._sample_panel import to_pixels


def save_image(path: Path, image: Tensor) -> None:
    """Write an image as PNG atomically; missing folders are created.

    Args:
        path: Path of the file; an existing file is overwritten.
        image: ``(C, H, W)``, on [0, 1] (clamped and rounded) or uint8.
    """
    write_png(path, to_pixels(image, (0.0, 1.0)))


class ImageWriter(BasePredictionWriter):
    """Writes each image of ``predict`` to ``<out>/<name>.png``, atomically.

    ``predict_step`` returns images ``(N, 3, H, W)`` on [0, 1] (clamped and rounded) or uint8. The last element of its
    batch holds their names, which may contain slashes. With several dataloaders, each but the first writes to its own
    folder, ``<out>/dataloader_1`` and so on.

    Args:
        out: Output folder, created if missing; files of the same name are overwritten.
    """

    def __init__(self, out: str = "outputs/images") -> None:
        super().__init__(write_interval="batch")
        self.out = out

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
        folder = Path(self.out) / (f"dataloader_{dataloader_idx}" if dataloader_idx else "")
        for name, image in zip(batch[-1], prediction, strict=True):
            save_image(folder / f"{name}.png", image)
