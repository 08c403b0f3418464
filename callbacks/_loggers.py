"""Log images, tables and hyperparameters to every logger of a Trainer.

Loggers are told apart by their methods, not by class: the loggers of `lightning.pytorch` are other classes than those
of `pytorch_lightning`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from pytorch_lightning import Trainer

from lpips_lightning._lightning import LightningModule
from lpips_lightning.io.atomic import atomic_write
from lpips_lightning.io.figures import save_pdf
from lpips_lightning.io.tables import table_text

Pixels = npt.NDArray[np.uint8]
"""Image ``(H, W, 3)``, uint8; loggers rescale other dtypes."""


def log_image(trainer: Trainer, name: str, pixels: Pixels, step: int, *, always_png: bool = False) -> None:
    """Log an image to every logger, and write a PNG file for loggers without images and for no logger.

    TensorBoard, wandb and MLflow show it as `name`; the file is ``<log folder>/<name>_step_<step>.png``. Only rank zero
    logs, and never in a ``fast_dev_run``.

    Args:
        trainer: Trainer with the loggers.
        name: For example ``val/gallery/worst_1``.
        pixels: Shape ``(H, W, 3)``, uint8.
        step: Global step of the Trainer.
        always_png: Write the file to the first logger's folder even if every logger shows images.

    Raises:
        TypeError: If `pixels` is not uint8.
        ValueError: If `pixels` has another shape.
    """
    check_pixels(pixels)
    if not trainer.is_global_zero or _is_fast_dev_run(trainer):
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


def log_figure_file(trainer: Trainer, name: str, figure: Any, step: int | None) -> None:
    """Write a matplotlib figure as PDF into the first logger's folder.

    Args:
        trainer: Trainer with the loggers.
        name: Name of the image.
        figure: Figure of `lpips_lightning.io.figures.new_figure`, within its context.
        step: Global step of the Trainer, for the file's name; None for one file, the last.
    """
    if trainer.is_global_zero and not _is_fast_dev_run(trainer):
        file = f"{name}.pdf" if step is None else _file(name, step, "pdf")
        save_pdf(figure, log_folder(trainer, _loggers(trainer)[0]) / file)


def log_table(
    trainer: Trainer,
    name: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    step: int,
    *,
    otherwise_csv: bool = True,
) -> None:
    """Log a table to every logger with tables (wandb), and write a CSV file for other loggers and for no logger.

    Args:
        trainer: Trainer with the loggers.
        name: For example ``val/scores``; the file is ``<log folder>/<name>_step_<step>.csv``.
        columns: Column names.
        rows: Plain values; uint8 arrays ``(H, W, 3)`` become images.
        step: Global step of the Trainer.
        otherwise_csv: False writes no CSV file.
    """
    if not trainer.is_global_zero or _is_fast_dev_run(trainer):
        return
    for logger in _loggers(trainer):
        if hasattr(logger, "log_table"):
            logger.log_table(key=name, columns=list(columns), data=[_with_images(row) for row in rows], step=step)
        elif otherwise_csv:
            _write_text(trainer, logger, _file(name, step, "csv"), table_text(columns, rows))


def log_hyperparameters(trainer: Trainer, pl_module: LightningModule, entries: Mapping[str, Any]) -> None:
    """Add entries to the hyperparameters of every logger; call it in `setup`.

    TensorBoard shows only the first set of a run, and Lightning logs the model's set after `setup`. Therefore the
    hyperparameters of model and datamodule are logged here too; other loggers accept the same values twice.

    Args:
        trainer: Trainer with the loggers.
        pl_module: Model, whose hyperparameters Lightning logs later.
        entries: Plain values.
    """
    if not trainer.is_global_zero or _is_fast_dev_run(trainer):
        return
    merged: dict[str, Any] = {}
    for source in (pl_module, getattr(trainer, "datamodule", None)):
        if getattr(source, "_log_hyperparams", False):  # set by save_hyperparameters(logger=...)
            merged |= dict(source.hparams_initial)  # type: ignore[union-attr]
    merged.pop("_class_path", None)  # added by LightningCLI
    for logger in trainer.loggers:
        logger.log_hyperparams({**merged, **entries})


def log_folder(trainer: Trainer, logger: Any) -> Path:
    """Folder for a logger's files, as in ModelCheckpoint; for None the Trainer's root folder."""
    if logger is None:
        return Path(trainer.default_root_dir)
    own = getattr(logger, "log_dir", None)
    if own is not None:
        return Path(own)
    version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
    return Path(logger.save_dir or trainer.default_root_dir) / str(logger.name) / version


def write_png(path: Path, pixels: Pixels) -> None:
    """Write an image ``(H, W, 3)`` atomically; missing folders are created."""
    with atomic_write(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG")


def check_pixels(pixels: Pixels) -> None:
    """Check for uint8 ``(H, W, 3)``: loggers rescale floating images in different ways.

    Raises:
        TypeError: If `pixels` is not uint8.
        ValueError: If `pixels` has another shape.
    """
    if pixels.dtype != np.uint8:
        raise TypeError(f"pixels: expected uint8, got {pixels.dtype}")
    if pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(f"pixels: expected shape (H, W, 3), got {pixels.shape}")


def _is_fast_dev_run(trainer: Trainer) -> bool:
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
    with atomic_write(log_folder(trainer, logger) / file) as temporary:
        temporary.write_text(text)
