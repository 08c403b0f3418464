"""Writes the calibration at the end of training."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Trainer
from torch import Tensor
from typing_extensions import override

from lpips_lightning._lightning import Callback, LightningModule, MisconfigurationException
from lpips_lightning.calibration.export import Rescale
from lpips_lightning.calibration.module import PerceptualCalibration
from lpips_lightning.callbacks._loggers import log_folder
from lpips_lightning.io.atomic import check_output_path
from lpips_lightning.io.streams import is_stream


class CalibrationFile(Callback):
    """Writes the calibration of a `PerceptualCalibration` at the end of ``fit``.

    Args:
        path: A ``.safetensors`` file, written atomically; None for ``calibration.safetensors`` in the log folder, which
            is a new one for every run.
        rescale_to: ``"official"`` scales distances to the mean of the official calibration, measured on validation
            triplets; see `PerceptualCalibration.export`. None does not scale.
        rescale_pairs: Most triplets for this measurement.

    Attributes:
        written: The file, once it is written.
    """

    def __init__(
        self,
        path: str | None = None,
        rescale_to: Rescale | None = None,
        rescale_pairs: int = 500,
    ) -> None:
        self.path, self.rescale_to, self.rescale_pairs = path, rescale_to, rescale_pairs
        self.written: Path | None = None

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not isinstance(pl_module, PerceptualCalibration):
            raise MisconfigurationException(
                f"CalibrationFile: expected to be used with PerceptualCalibration, got {type(pl_module).__name__}"
            )
        if self.path is not None:
            check_tensor_file(self.path)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if (
            isinstance(pl_module, PerceptualCalibration)
            and trainer.is_global_zero
            and not getattr(trainer, "fast_dev_run", False)
        ):
            pairs = self._pairs(trainer, pl_module.device) if self.rescale_to else None
            path = self.path or log_folder(trainer, trainer.logger) / "calibration.safetensors"
            self.written = pl_module.export(path, self.rescale_to, pairs)

    def _pairs(self, trainer: Trainer, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        loaders: Any = trainer.val_dataloaders or trainer.train_dataloader
        remaining = self.rescale_pairs
        for batch in itertools.chain.from_iterable(loaders if isinstance(loaders, list) else [loaders]):
            if remaining <= 0:
                return
            if "judge" in batch:
                ref, *others = (batch[name][:remaining].to(device) for name in ("ref", "p0", "p1"))
                yield from ((ref, other) for other in others)
                remaining -= len(ref)


def check_tensor_file(path: str) -> None:
    """Check before a long training that its output file can be written.

    Args:
        path: Path of a ``.safetensors`` file.

    Raises:
        MisconfigurationException: If the path has another suffix or is not writable.
    """
    if not path.endswith(".safetensors") and not is_stream(path):
        raise MisconfigurationException(f"path: expected a file that ends in .safetensors, got {path!r}")
    try:
        check_output_path(path, "path")
    except ValueError as error:
        raise MisconfigurationException(str(error)) from error
