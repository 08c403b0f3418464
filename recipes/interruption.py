"""Ctrl-C and SIGTERM in a recipe's run: training stops after its step, with a checkpoint to resume from."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import Checkpoint, ModelCheckpoint
from typing_extensions import override

from lpips_lightning._lightning import Callback, LightningModule
from lpips_lightning.data.samplers import RandomStates, random_states, set_random_states
from lpips_lightning.io.console import Console
from lpips_lightning.recipes.run_folder import rank

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SHOW_CURSOR = "\x1b[?25h"  # a progress bar hides it


class Stopped(BaseException):
    """Raised at the end of a step, or of a validation, after a signal."""


class Interruption(Checkpoint):
    """Stops a run at a signal; a context manager around the run, and the last callback of its Trainer.

    The first SIGINT or SIGTERM of a training takes effect after the running step, or after the running validation:
    ``last.ckpt`` of the ModelCheckpoint is written, and `Stopped` is raised. The second one ends the process at once.
    Outside of a training the first one raises an exception. With several processes, all stop at the same step.

    Attributes:
        signal: The signal, or None.
        checkpoint: Path of the checkpoint, or None before it is written and without a ModelCheckpoint.
        steps: Steps of this run.
    """

    def __init__(self) -> None:
        super().__init__()
        self.signal: int | None = None
        self.checkpoint: str | None = None
        self.steps = 0
        self._is_training, self._saves, self._is_saved = False, False, False
        self._process = os.getpid()
        self._previous: dict[int, Any] = {}

    @property
    def code(self) -> int:
        """Exit code of a process that ends at the signal, 130 or 143."""
        return 128 + int(self.signal or signal.SIGINT)

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            self._previous = {one: signal.signal(one, self._receive) for one in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for one, handler in self._previous.items():
            signal.signal(one, signal.SIG_DFL if handler is None else handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a worker process, which the terminal signals too
            return
        if self.signal is not None:
            self._end_at_once()
        self.signal = number
        if not self._is_training:
            raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(self.code)
        if rank() != 0:
            return
        what = ", with a checkpoint" if self._saves else ""
        end = " Ctrl-C again ends at once." if number == signal.SIGINT else ""
        line = f"Stopping after this step or validation{what}.{end}"
        Console(stderr=True).print(line, soft_wrap=True, highlight=False, markup=False)

    def _end_at_once(self) -> None:
        if sys.stdout is not None and sys.stdout.isatty():
            sys.stdout.write(_SHOW_CURSOR)
            sys.stdout.flush()
        os._exit(self.code)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._is_training, self._saves = True, bool(_checkpoint_callbacks(trainer))
        for one in self._previous:  # without Lightning's handler, which would stop at another place
            signal.signal(one, self._receive)

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._is_saved:  # not right after the step, whose scores are logged later
            raise Stopped

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.steps += 1
        if self._can_resume_after(trainer, batch_idx) and self._is_requested(trainer):
            self._save(trainer)

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._is_saved:
            raise Stopped

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # At the end of an epoch ModelCheckpoint saves later, in on_train_epoch_end.
        if self._is_training and not trainer.is_last_batch and self._is_requested(trainer):
            self._save(trainer)
            raise Stopped

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not _is_complete(trainer) and self._is_requested(trainer):
            self._save(trainer)
            raise Stopped

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._is_training = False

    @staticmethod
    def _can_resume_after(trainer: Trainer, batch_idx: int) -> bool:
        """False before a validation, which a resumed run would leave out, and while gradients accumulate."""
        every = getattr(trainer, "val_check_batch", None)
        validates = trainer.is_last_batch or (isinstance(every, int) and every > 0 and (batch_idx + 1) % every == 0)
        return not validates and (batch_idx + 1) % trainer.accumulate_grad_batches == 0

    def _is_requested(self, trainer: Trainer) -> bool:
        requested = self.signal is not None
        return trainer.strategy.reduce_boolean_decision(requested, all=False) if trainer.world_size > 1 else requested

    def _save(self, trainer: Trainer) -> None:
        self.signal = self.signal or signal.SIGINT  # another process received it
        self._is_saved = True
        found = _checkpoint_callbacks(trainer)
        for callback in [one for one in found if one.save_last] or found[:1]:
            self.checkpoint = save_last(trainer, callback)


class RandomNumbers(Callback):
    """Saves the states of torch's random numbers in checkpoints; a training that resumes continues with them.

    In the middle of an epoch `ResumableLoader` does more; Lightning does not give it its state at the end of one.
    """

    def __init__(self) -> None:
        self._loaded: RandomStates | None = None

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"states": random_states()}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._loaded = state_dict["states"]

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._loaded is not None:
            set_random_states(self._loaded)


class SaveLast(Checkpoint):
    """Writes ``last.ckpt`` after every epoch, for each ModelCheckpoint with ``save_last``.

    ModelCheckpoint of Lightning 2.6 writes it only with a new best checkpoint, so that the last epochs can be missing.
    """

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for callback in _checkpoint_callbacks(trainer):
            if callback.save_last is True and callback._last_global_step_saved != trainer.global_step:
                save_last(trainer, callback)


def save_last(trainer: Trainer, callback: ModelCheckpoint) -> str:
    """Write the last checkpoint of a ModelCheckpoint; returns its path."""
    path = callback.last_model_path or callback.format_checkpoint_name({}, callback.CHECKPOINT_NAME_LAST)
    callback.last_model_path = path
    trainer.save_checkpoint(path)
    callback._last_global_step_saved = trainer.global_step
    return path


def _checkpoint_callbacks(trainer: Trainer) -> list[ModelCheckpoint]:
    if getattr(trainer, "fast_dev_run", False):
        return []
    return [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]


def _is_complete(trainer: Trainer) -> bool:
    """Whether the training ends by itself after this epoch."""
    epochs = trainer.max_epochs
    return (
        epochs is not None and 0 <= epochs <= trainer.current_epoch + 1
    ) or 0 <= trainer.max_steps <= trainer.global_step
