"""The folder of a recipe's run: a new version for a new run, the same one for a resumed run, none after a failed start.

A run writes into ``<save_dir>/<name>/version_N`` of its first logger. `RunFolder.open` creates it before the Trainer
starts, so that two runs that start at once get different versions. A run that resumes from its own newest checkpoint
continues in the folder of that checkpoint; from another checkpoint it gets a new version, whose log starts with the
earlier rows. Either way the best checkpoint so far is known (`CarryBest`).
"""

from __future__ import annotations

import csv
import io
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_only
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.cli import SaveConfigCallback
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter
from torch import Tensor
from typing_extensions import override

from lpips_lightning._lightning import Callback, LightningModule
from lpips_lightning.io.atomic import atomic_write

CHECKPOINTS = "checkpoints"  # ModelCheckpoint's folder below that of the logger


class RunFolder:
    """Folder of one run.

    Attributes:
        path: The folder, or None if no logger has one.
        continues: Whether it is that of the run which is resumed.
    """

    def __init__(self, path: Path | None = None, continues: bool = False) -> None:
        self.path, self.continues = path, continues
        self._created: list[Path] = []
        self._before: set[Path] = set()

    @classmethod
    def open(cls, trainer: Trainer, ckpt_path: Path | None) -> RunFolder:
        """Create the folder of a run, or find the one that it continues.

        Args:
            trainer: Trainer that has not started yet.
            ckpt_path: Checkpoint from which ``fit`` resumes; None for a new run and for other subcommands.

        Raises:
            OSError: If the folder cannot be created.
        """
        logger: Any = next((one for one in trainer.loggers if _is_versioned(one)), None)
        if getattr(trainer, "fast_dev_run", False):
            return cls()
        if logger is None or rank() != 0:
            return cls(None if logger is None else Path(logger.log_dir))
        own = _continued_version(logger, ckpt_path) if ckpt_path is not None else None
        folder = cls(continues=own is not None)
        if own is None and logger._version is None:
            folder._create(logger)
        elif own is not None:
            logger._version = own
        folder.path = Path(logger.log_dir)
        if ckpt_path is not None and type(logger) is CSVLogger:
            logger._experiment = _ContinuedLog(logger.log_dir, *_earlier_rows(ckpt_path))
        folder._before = set(_files(folder.path))
        return folder

    def _create(self, logger: Any) -> None:
        while True:
            path = Path(logger.log_dir)
            missing = [one for one in (path, *path.parents) if not one.exists()]
            try:
                path.mkdir(parents=True)
            except FileExistsError:  # created by another run in this moment
                logger._version = logger.version + 1
                continue
            self._created = missing
            return

    def discard(self) -> None:
        """Remove what a run left that failed before its first step; earlier files of a continued folder stay."""
        if self.path is None or rank() != 0:
            return
        if self._created:
            shutil.rmtree(self.path, ignore_errors=True)
        for file in set(_files(self.path)) - self._before if self.continues else ():
            file.unlink(missing_ok=True)
        for parent in self._created[1:]:
            with suppress(OSError):  # not empty
                parent.rmdir()


class SaveRunConfig(SaveConfigCallback):
    """Saves the configuration into the run's folder, as ``config_2.yaml`` and so on if the folder is continued.

    Without a logger nothing is saved: Lightning would write, or overwrite, ``config.yaml`` in the working folder.
    """

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not trainer.loggers or self.already_saved:
            return
        log_dir, number = trainer.log_dir, 2  # log_dir is a broadcast
        while log_dir is not None and trainer.is_global_zero and Path(log_dir, self.config_filename).exists():
            self.config_filename, number = f"config_{number}.yaml", number + 1
        super().setup(trainer, pl_module, stage)


class CarryBest(Callback):
    """Tells ModelCheckpoint the best checkpoints of the run that is resumed, wherever they lie now.

    By itself ModelCheckpoint forgets the best score when its folder changes, but keeps the path.

    Args:
        ckpt_path: Checkpoint from which the run resumes.
    """

    def __init__(self, ckpt_path: Path) -> None:
        self.ckpt_path = ckpt_path

    @override
    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        states = checkpoint.get("callbacks", {})
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.state_key in states:
                state = states[callback.state_key]
                states[callback.state_key] = self._relocated(state, callback, checkpoint["global_step"])

    def _relocated(self, state: dict[str, Any], callback: ModelCheckpoint, step: int) -> dict[str, Any]:
        """State of the callback with the paths of this run; files that are gone or newer are left out."""
        own = Path(callback.dirpath or ".").resolve() == self.ckpt_path.parent.resolve()
        if own:  # a best checkpoint may be newer than the last one, if the run was killed
            newer = (read_checkpoint(file).get("callbacks", {}) for file in _checkpoints(self.ckpt_path.parent))
            found = [one[callback.state_key] for one in newer if callback.state_key in one]
            state = max([state, *found], key=lambda one: _is_better(one, callback.mode))
        paths = {old: self._current(old, callback, step, own) for old in (*state["best_k_models"], *_path_of(state))}
        best = {paths[old]: score for old, score in state["best_k_models"].items() if paths[old]}
        order = sorted(best, key=lambda path: float(best[path]), reverse=callback.mode == "max")
        last = str(Path(callback.dirpath or ".", f"{callback.CHECKPOINT_NAME_LAST}{callback.FILE_EXTENSION}"))
        return state | {
            "dirpath": callback.dirpath,
            "best_k_models": best,
            "best_model_path": order[0] if order else paths.get(state["best_model_path"], ""),
            "best_model_score": best[order[0]] if order else None,
            "kth_best_model_path": order[-1] if order else "",
            "kth_value": best[order[-1]] if order else callback.kth_value,
            "last_model_path": last if own and Path(last).exists() else "",
        }

    def _current(self, old: str, callback: ModelCheckpoint, step: int, own: bool) -> str:
        """Path at which the checkpoint `old` lies now; empty if it is gone, or newer than `step` in another folder."""
        beside = self.ckpt_path.parent / Path(old).name
        path = beside if beside.is_file() else Path(old)
        if not path.is_file() or (not own and read_checkpoint(path).get("global_step", step + 1) > step):
            return ""
        return str(Path(callback.dirpath or ".", path.name)) if own and path == beside else str(path)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Content of a checkpoint, tensors unread; empty if it cannot be read."""
    try:
        content = torch.load(str(path), map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # damaged, of another program, with objects
        return {}
    return content if isinstance(content, dict) else {}


class _ContinuedLog(ExperimentWriter):
    """Writer of ``metrics.csv`` that starts with rows of an earlier run; they are written with the first new row."""

    def __init__(self, log_dir: str, columns: list[str], rows: list[dict[str, str]]) -> None:
        self._earlier: tuple[list[str], list[dict[str, str]]] | None = (columns, rows)
        super().__init__(log_dir)

    def _check_log_dir_exists(self) -> None:
        """Lightning deletes an existing file here."""

    @override
    def save(self) -> None:
        if self.metrics and self._earlier is not None:
            columns, rows = self._earlier
            self._earlier = None
            Path(self.metrics_file_path).unlink(missing_ok=True)
            if rows:
                self.metrics_keys = sorted(columns)
                with atomic_write(self.metrics_file_path) as temporary:
                    temporary.write_text(_csv_text(self.metrics_keys, rows))
        super().save()


def rank() -> int:
    """Rank of this process, known before its Trainer starts."""
    return getattr(rank_zero_only, "rank", 0)


def _is_versioned(logger: Any) -> bool:
    """Whether it is a CSVLogger, a TensorBoardLogger or another one with numbered folders."""
    # Of the class: the property itself chooses the version.
    return hasattr(logger, "_version") and all(hasattr(type(logger), name) for name in ("root_dir", "log_dir"))


def _continued_version(logger: Any, ckpt_path: Path) -> int | str | None:
    """Version whose newest checkpoint is `ckpt_path`, or None."""
    folder = ckpt_path.parent.parent
    if logger._version is not None or ckpt_path.parent.name != CHECKPOINTS:
        return None
    if folder.resolve().parent != Path(logger.root_dir).resolve() or not _is_newest(ckpt_path):
        return None
    number = folder.resolve().name.removeprefix("version_")
    return int(number) if number.isdigit() else folder.resolve().name


def _is_newest(ckpt_path: Path) -> bool:
    """Whether a run goes on from here: its last checkpoint, or none of the others has more steps."""
    if ckpt_path.stem.startswith(ModelCheckpoint.CHECKPOINT_NAME_LAST):
        others = [file for file in _checkpoints(ckpt_path.parent) if file.stem.startswith(ckpt_path.stem[:4])]
    else:
        others = _checkpoints(ckpt_path.parent)
    step = read_checkpoint(ckpt_path).get("global_step", -1)
    return all(read_checkpoint(file).get("global_step", -1) <= step for file in others)


def _is_better(state: dict[str, Any], mode: str) -> float:
    score = state["best_model_score"]
    if not isinstance(score, Tensor):
        return float("-inf")
    return float(score) if mode == "max" else -float(score)


def _path_of(state: dict[str, Any]) -> list[str]:
    return [state["best_model_path"]] if state["best_model_path"] else []


def _earlier_rows(ckpt_path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Columns and rows of the log beside a checkpoint, up to the step of the checkpoint."""
    file, step = ckpt_path.parent.parent / ExperimentWriter.NAME_METRICS_FILE, read_checkpoint(ckpt_path)
    if ckpt_path.parent.name != CHECKPOINTS or not file.is_file():
        return [], []
    with file.open(newline="") as text:
        reader = csv.DictReader(text)
        rows = [row for row in reader if _is_before(row.get("step"), step.get("global_step", 0))]
        return list(reader.fieldnames or ()), rows


def _is_before(cell: str | None, step: int) -> bool:
    with suppress(TypeError, ValueError):
        return int(cell or "") < step
    return False


def _csv_text(columns: list[str], rows: list[dict[str, str]]) -> str:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows({name: row.get(name, "") for name in columns} for row in rows)
    return text.getvalue()


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"*{ModelCheckpoint.FILE_EXTENSION}"))


def _files(folder: Path | None) -> Iterator[Path]:
    return (file for file in folder.rglob("*") if file.is_file()) if folder is not None else iter(())
