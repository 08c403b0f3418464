"""The validation scores of a recipe's run, beside those of the model before training; a line if they do not improve."""

from __future__ import annotations

import copy
import itertools
import math
import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import ModelCheckpoint, ProgressBar
from pytorch_lightning.utilities.seed import isolate_rng
from typing_extensions import override

from lpips_lightning._lightning import Callback, LightningModule
from lpips_lightning.callbacks.perceptual_scores import PerceptualScores
from lpips_lightning.io.console import Console

Mode = Literal["min", "max"]
Scores = dict[str, float]


@dataclass
class Validation:
    """Scores of a validation after `epoch` epochs and `step` steps, by name without the stage."""

    epoch: int
    step: int
    scores: Scores


class RunHistory(Callback):
    """Records the scores of every validation, in checkpoints too, and says once if training does not improve them.

    After `least_validations` validations and `least_minutes` minutes, or at the end, one line is printed if the
    monitored score is not better than before training, see `is_stalled`. Training goes on.

    Args:
        advice: What to try, as the end of the line.
        least_validations: Validations before the line.
        least_minutes: Minutes of training before the line, unless it ends.
        chooses_logging: Set the Trainer's ``log_every_n_steps`` by `logging_interval`.
        clock: Seconds, for tests.

    Attributes:
        references: Scores of other models by label: the untrained one, a baseline.
        untrained: Label of the model before training, or None if its scores are unknown.
        validations: Validations in order, including those of the run that is resumed.
    """

    def __init__(
        self,
        advice: str = "",
        least_validations: int = 3,
        least_minutes: float = 3.0,
        chooses_logging: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.advice, self.least_validations, self.least_minutes = advice, least_validations, least_minutes
        self.chooses_logging = chooses_logging
        self.references: dict[str, Scores] = {}
        self.untrained: str | None = None
        self.validations: list[Validation] = []
        self._clock, self._start, self._is_said = clock, math.nan, False

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start = self._clock()
        if self.chooses_logging:
            cast(Any, trainer).log_every_n_steps = logging_interval(trainer.num_training_batches)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        scores = plain_scores(trainer.callback_metrics, "val")
        self.validations.append(Validation(trainer.current_epoch + 1, trainer.global_step, scores))
        if self._clock() - self._start >= 60 * self.least_minutes:
            self._say_if_stalled(trainer, "Training goes on. ")

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._say_if_stalled(trainer, "")

    def _say_if_stalled(self, trainer: Trainer, end: str) -> None:
        monitor, mode = monitored(trainer)
        before = self.references.get(self.untrained or "", {}).get(monitor or "")
        seen = [one.scores[monitor] for one in self.validations if monitor in one.scores]
        is_early = len(seen) < self.least_validations
        if before is None or is_early or self._is_said or not is_stalled(before, seen, mode):
            return
        self._is_said = True
        if not trainer.is_global_zero:
            return
        line = f"Not learning so far: val/{monitor} is {rounded(seen[-1])} after {len(seen)} validations, "
        line += f"{rounded(before)} before training. {end}{self.advice}".rstrip()
        Console(stderr=True).print(line, soft_wrap=True, highlight=False, markup=False)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"validations": [vars(one) for one in self.validations]}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.validations = [Validation(**one) for one in state_dict["validations"]]


def is_stalled(before: float, scores: Sequence[float], mode: Mode) -> bool:
    """Whether scores are no better than before training, beyond their own noise.

    The median of the later half of `scores` is compared with `before`. The noise of a score is estimated from the
    median difference of neighbors, which a slow trend or one jump hardly affects; a gain must be twice as large.

    Args:
        before: Score of the untrained model.
        scores: Scores of validations, in order.
        mode: Whether better is ``"min"`` or ``"max"``.

    Example:
        >>> is_stalled(0.917, [0.917, 0.9165, 0.9172], "max"), is_stalled(0.6, [0.77, 0.771, 0.7705], "max")
        (True, False)
    """
    sign = 1 if mode == "max" else -1
    gain = sign * (statistics.median(scores[len(scores) // 2 :]) - before)
    steps = [abs(two - one) for one, two in itertools.pairwise(scores)]
    noise = statistics.median(steps) / math.sqrt(2) if steps else 0.0
    return not gain > 2 * noise


def logging_interval(batches: float) -> int:
    """Steps between two logged training losses: ten points an epoch, at most 50 steps apart."""
    return 50 if math.isinf(batches) else min(50, max(1, int(batches) // 10))


def monitored(trainer: Trainer) -> tuple[str | None, Mode]:
    """Name without stage, and mode, of the score by which the best checkpoint is chosen."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and (callback.monitor or "").startswith("val/"):
            return str(callback.monitor).removeprefix("val/"), "max" if callback.mode == "max" else "min"
    return None, "min"


def plain_scores(metrics: Mapping[str, Any], stage: str, single_sets: bool = False) -> Scores:
    """Scores of a stage as numbers, by name without stage; `single_sets`: also those of sets, loaders and layers."""
    names = {name: name.removeprefix(f"{stage}/") for name in metrics if name.startswith(f"{stage}/")}
    return {short: float(metrics[name]) for name, short in names.items() if single_sets or "/" not in short}


def score_models(
    trainer: Any, models: dict[str, LightningModule], data: Any, stage: str, single_sets: bool = False
) -> dict[str, Scores]:
    """Validate or test models, by label, without logging; random numbers of the run stay as they are.

    Args:
        trainer: Trainer of the run, before it starts.
        models: Models by label.
        data: Data module.
        stage: ``"val"`` or ``"test"``.
        single_sets: See `plain_scores`.
    """
    callbacks, loggers = trainer.callbacks, trainer.loggers
    run = trainer.test if stage == "test" else trainer.validate
    found = {}
    try:
        for label, model in models.items():
            trainer.callbacks, trainer.loggers = [*map(_for_scores, filter(_is_for_scores, callbacks))], []
            with isolate_rng(), warnings.catch_warnings():
                # Right in general, but scores of the recipes leave out the samples that it repeats.
                warnings.filterwarnings("ignore", "Using `DistributedSampler` with the dataloaders")
                run(model, datamodule=data, verbose=False)
            found[label] = plain_scores(trainer.callback_metrics, stage, single_sets)
    finally:
        trainer.callbacks, trainer.loggers = callbacks, loggers
    return found


def rounded(value: float) -> str:
    """A score with three digits after the point, or two from 10 on.

    Example:
        >>> rounded(0.28361), rounded(25.704)
        ('0.284', '25.70')
    """
    return f"{value:.2f}" if abs(value) >= 10 else f"{value:.3f}"


def _is_for_scores(callback: Any) -> bool:
    return isinstance(callback, PerceptualScores | ProgressBar)


def _for_scores(callback: Any) -> Any:
    if isinstance(callback, PerceptualScores) and callback.table:  # its file would be that of the trained model
        callback = copy.copy(callback)
        callback.table = False
    return callback
