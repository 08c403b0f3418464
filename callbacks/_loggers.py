"""Hands images, tables and hyperparameters to whatever loggers a Trainer has, chosen by what they can do.

Not by class: a `pytorch_lightning` callback also runs in a `lightning.pytorch` Trainer, whose loggers are others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from pytorch_lightning import LightningModule, Trainer

from lpips_lightning.io.atomic import atomic_write
from lpips_lightning.io.tables import table_text

Pixels = npt.NDArray[np.uint8]
"""An image ``(H, W, 3)``, uint8: the one kind that no logger rescales."""


def log_image(trainer: Trainer, name: str, pixels: Pixels, step: int, *, always_png: bool = False) -> None:
    """Give an image to every logger; loggers that show none, or no logger at all, get a PNG file.

    TensorBoard, wandb and MLflow show it under `name`; the file is ``<log folder>/<name>_step_<step>.png``. Only rank
    zero does anything, and nobody in a ``fast_dev_run``.

    Args:
        trainer: Whose loggers.
        name: Such as ``val/gallery/worst_1``.
        pixels: Shape ``(H, W, 3)``, uint8.
        step: The Trainer's global step.
        always_png: Write the file, in the first logger's folder, also if every logger shows the image.

    Raises:
        TypeError: If it is not uint8.
        ValueError: If the shape is another.
    """
    check_pixels(pixels)
    if not trainer.is_global_zero or _is_rehearsal(trainer):
        return
    file = _file(name, step, "png")
    if always_png:
        write_png(log_folder(trainer, _loggers(trainer)[0]) / file, pixels)
    for logger in _loggers(trainer):
        experiment: Any = getattr(logger, "experiment", None)
        if hasattr(logger, "log_image"):
            logger.log_image(key=name, images=[Image.fromarray(pixels)], step=step)
        elif hasattr(experiment, "add_image"):
            experiment.add_image(name, pixels, step, dataformats="HWC")
        elif hasattr(logger, "run_id") and hasattr(experiment, "log_image"):
            experiment.log_image(logger.run_id, pixels, artifact_file=file)
        else:
            write_png(log_folder(trainer, logger) / file, pixels)


def log_table(
    trainer: Trainer,
    name: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    step: int,
    *,
    otherwise_csv: bool = True,
) -> None:
    """Give a table to every logger that shows one (wandb); the others, or none, get a CSV file.

    Args:
        trainer: Whose loggers.
        name: Such as ``val/scores``; the file is ``<log folder>/<name>_step_<step>.csv``.
        columns: Headings.
        rows: Plain values; arrays ``(H, W, 3)`` of uint8 become images.
        step: The Trainer's global step.
        otherwise_csv: False leaves out loggers that show no table.
    """
    if not trainer.is_global_zero or _is_rehearsal(trainer):
        return
    for logger in _loggers(trainer):
        if hasattr(logger, "log_table"):
            logger.log_table(key=name, columns=list(columns), data=[_with_images(row) for row in rows], step=step)
        elif otherwise_csv:
            _write_text(trainer, logger, _file(name, step, "csv"), table_text(columns, rows))


def log_hyperparameters(trainer: Trainer, pl_module: LightningModule, entries: Mapping[str, Any]) -> None:
    """Add entries to the hyperparameters, or the configuration, that every logger keeps; call it in `setup`.

    TensorBoard shows only the first set that a run gets, and Lightning gives it the model's after `setup`; so the
    model's and the data's own go along here. The others are content to get the same values twice.

    Args:
        trainer: Whose loggers.
        pl_module: Whose hyperparameters Lightning is about to log.
        entries: Plain values.
    """
    if not trainer.is_global_zero or _is_rehearsal(trainer):
        return
    merged: dict[str, Any] = {}
    for source in (pl_module, getattr(trainer, "datamodule", None)):
        if getattr(source, "_log_hyperparams", False):  # what save_hyperparameters(logger=...) said
            merged |= dict(source.hparams_initial)  # type: ignore[union-attr]
    merged.pop("_class_path", None)  # LightningCLI's own
    for logger in trainer.loggers:
        logger.log_hyperparams({**merged, **entries})


def log_folder(trainer: Trainer, logger: Any) -> Path:
    """Where the files of a logger go, as ModelCheckpoint has it; for None the Trainer's root folder."""
    if logger is None:
        return Path(trainer.default_root_dir)
    own = getattr(logger, "log_dir", None)
    if own is not None:
        return Path(own)
    version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
    return Path(logger.save_dir or trainer.default_root_dir) / str(logger.name) / version


def write_png(path: Path, pixels: Pixels) -> None:
    """Write an image ``(H, W, 3)``, whole or not at all; folders are made as needed."""
    with atomic_write(path) as beside:
        Image.fromarray(pixels).save(beside, format="PNG")


def check_pixels(pixels: Pixels) -> None:
    """Refuse what is not uint8 ``(H, W, 3)``: loggers rescale floats, each in its own way.

    Raises:
        TypeError: If it is not uint8.
        ValueError: If the shape is another.
    """
    if pixels.dtype != np.uint8:
        raise TypeError(f"pixels: expected uint8, got {pixels.dtype}")
    if pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(f"pixels: expected shape (H, W, 3), got {pixels.shape}")


def _is_rehearsal(trainer: Trainer) -> bool:
    return bool(getattr(trainer, "fast_dev_run", False))


def _loggers(trainer: Trainer) -> list[Any]:
    return list(trainer.loggers) or [None]


def _file(name: str, step: int, suffix: str) -> str:
    return f"{name}_step_{step:08d}.{suffix}"


def _with_images(row: Sequence[Any]) -> list[Any]:
    return [import_module("wandb").Image(cell) if isinstance(cell, np.ndarray) else cell for cell in row]


def _write_text(trainer: Trainer, logger: Any, file: str, text: str) -> None:
    experiment: Any = getattr(logger, "experiment", None)
    if hasattr(logger, "run_id") and hasattr(experiment, "log_text"):
        experiment.log_text(logger.run_id, text, artifact_file=file)
        return
    with atomic_write(log_folder(trainer, logger) / file) as beside:
        beside.write_text(text)
