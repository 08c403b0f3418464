"""Writes the calibration at the end of training."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Trainer
from torch import Tensor
from typing_extensions import override

from lpips_lightning._lightning import Callback, LightningModule, MisconfigurationException
from lpips_lightning.calibration.export import Rescale, has_official_scale
from lpips_lightning.calibration.module import PerceptualCalibration
from lpips_lightning.callbacks._loggers import log_folder
from lpips_lightning.io.atomic import check_output_path
from lpips_lightning.io.streams import is_stream
from lpips_lightning.network import LPIPS
from lpips_lightning.weights import WeightsError


class CalibrationFile(Callback):
    """Writes the calibration of a `PerceptualCalibration` at the end of ``fit``.

    Args:
        path: A ``.safetensors`` file, written atomically; None for ``calibration.safetensors`` in the log folder, which
            is a new one for every run.
        rescale_to: ``"official"`` scales distances to the mean of the official calibration, measured on validation
            triplets, so that loss weights and thresholds keep their meaning; see `PerceptualCalibration.export`. None
            does not scale, nor is a backbone of your own scaled, which has no official calibration.
        rescale_pairs: Most triplets for this measurement.

    Attributes:
        written: The file, once it is written.
    """

    def __init__(
        self,
        path: str | None = None,
        rescale_to: Rescale | None = "official",
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
        if stage == "fit" and self.rescale_to and pl_module.network.mode != "lin":
            self._check_official(pl_module)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if (
            isinstance(pl_module, PerceptualCalibration)
            and trainer.is_global_zero
            and not getattr(trainer, "fast_dev_run", False)
        ):
            path = self.path or log_folder(trainer, trainer.logger) / "calibration.safetensors"
            rescale_to = self.rescale_to if has_official_scale(pl_module.network) else None
            pairs = self._pairs(trainer, pl_module.device) if rescale_to else None
            try:
                self.written = pl_module.export(path, rescale_to, pairs)
            except ValueError as error:  # no triplets, or distances of 0
                if rescale_to is None:
                    raise
                warnings.warn(f"CalibrationFile: {path} keeps the scale of the training: {error}", stacklevel=2)
                self.written = pl_module.export(path)

    @staticmethod
    def _check_official(module: PerceptualCalibration) -> None:
        """Raise before the training if the official backbone is missing, which a trained one is compared with."""
        if not has_official_scale(module.network):
            return
        try:
            LPIPS(module.network.record.name, version="0.1" if module.network.shift is not None else "0.0")
        except WeightsError as error:
            raise MisconfigurationException(
                "rescale_to: expected the official backbone, to scale distances to its own, got none; rescale_to: null"
                f" keeps the scale of the training: {error}"
            ) from error

    def _pairs(self, trainer: Trainer, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        remaining = self.rescale_pairs
        parts: Any = (trainer.val_dataloaders, trainer.train_dataloader)
        loaders = [loader for part in parts if part for loader in (part if isinstance(part, list) else [part])]
        for batch in itertools.chain.from_iterable(loaders):
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
