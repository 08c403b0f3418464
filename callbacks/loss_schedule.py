"""Schedules the weight of perceptual losses during training."""

from __future__ import annotations

import math
from typing import Any, Literal, TypeAlias, get_args

from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning import Trainer
from typing_extensions import override

from lpips_lightning._lightning import Callback, LightningModule
from lpips_lightning.loss import PerceptualLoss

Shape: TypeAlias = Literal["linear", "cosine", "step"]


class LossSchedule(Callback):
    """Sets the weight of the model's `PerceptualLoss` modules before every training step, and logs it.

    The weight is ``initial`` before `start_step`, then changes to ``final`` within `warmup_steps`. Steps are the
    Trainer's global (optimizer) steps, so accumulated batches count as one step. At weight 0 the network does not run.

    The weight is logged as ``loss/<path of the loss>/weight``. Checkpoints store the final weights, so that with
    ``final=None`` a run that resumes during the warm-up reaches the same final weight.

    Under ``torch.compile`` each new weight recompiles the training step; use ``shape="step"`` there.

    Args:
        final: Final weight; None for the weight that each loss has at the start of the fit.
        start_step: Step at which the warm-up begins.
        warmup_steps: Steps from the initial to the final weight; 0 for ``"step"``.
        shape: ``"linear"``, ``"cosine"`` (half a period, slow at both ends) or ``"step"`` (immediate).
        initial: Weight before `start_step`.
        loss: Path of the loss in the model, such as ``"perceptual"`` or ``"losses.0"``; None for all.

    Raises:
        ValueError: If an argument has an unknown value, or contradicts another one.

    Example:
        >>> schedule = LossSchedule(0.1, start_step=100, warmup_steps=100)
        >>> [round(schedule.weight(step, final=0.1), 3) for step in (0, 100, 150, 200, 300)]
        [0.0, 0.0, 0.05, 0.1, 0.1]
    """

    def __init__(
        self,
        final: float | None = None,
        *,
        start_step: int = 0,
        warmup_steps: int = 0,
        shape: Shape = "linear",
        initial: float = 0.0,
        loss: str | None = None,
    ) -> None:
        if shape not in get_args(Shape):
            raise ValueError(f"shape: expected one of {get_args(Shape)}, got {shape!r}")
        for name, steps in (("start_step", start_step), ("warmup_steps", warmup_steps)):
            if steps < 0:
                raise ValueError(f"{name}: expected at least 0, got {steps}")
        if shape == "step" and warmup_steps:
            raise ValueError(f"warmup_steps: expected 0 with shape='step', got {warmup_steps}")
        for name, weight in (("final", final), ("initial", initial)):
            if weight is not None and not (math.isfinite(weight) and weight >= 0):
                raise ValueError(f"{name}: expected a finite weight of at least 0, got {weight}")
        self.final = final
        self.start_step = start_step
        self.warmup_steps = warmup_steps
        self.shape = shape
        self.initial = initial
        self.loss = loss
        self._losses: dict[str, PerceptualLoss] = {}
        self._finals: dict[str, float] = {}

    @property
    @override
    def state_key(self) -> str:
        return f"LossSchedule(loss={self.loss!r})"

    def weight(self, step: int, final: float) -> float:
        """Weight at a step.

        Args:
            step: Global step of the Trainer.
            final: Final weight.
        """
        progress = min(max(step - self.start_step, 0) / self.warmup_steps, 1.0) if self.warmup_steps else 1.0
        if step < self.start_step:
            progress = 0.0
        if self.shape == "cosine":
            progress = (1 - math.cos(math.pi * progress)) / 2
        return self.initial + progress * (final - self.initial)

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        found = perceptual_losses(pl_module)
        if not found or (self.loss is not None and self.loss not in found):
            paths = ", ".join(map(repr, found)) or "none in the model"
            raise MisconfigurationException(
                f"loss: expected the path of a PerceptualLoss among {paths}, got {self.loss!r}; "
                "create losses as submodules of the model, at the latest in its setup()"
            )
        self._losses = found if self.loss is None else {self.loss: found[self.loss]}
        for path, loss in self._losses.items():
            # In a second or resumed fit, loss.weight is already scheduled: use the stored final weight.
            self._finals[path] = float(self._finals.get(path, loss.weight)) if self.final is None else self.final

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._set(trainer)  # not in on_fit_start: a resumed run restores its global step after it

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._set(trainer)
        for path, loss in self._losses.items():
            pl_module.log(f"loss/{path}/weight", loss.weight, on_step=True, on_epoch=False)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"final": dict(self._finals)}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._finals = {path: float(final) for path, final in state_dict["final"].items()}

    def _set(self, trainer: Trainer) -> None:
        for path, loss in self._losses.items():
            loss.weight = self.weight(trainer.global_step, self._finals[path])


def perceptual_losses(pl_module: LightningModule) -> dict[str, PerceptualLoss]:
    """Perceptual losses of the model by path; compiled modules have the path of the original module."""
    found = {}
    for path, module in pl_module.named_modules():
        if isinstance(module, PerceptualLoss):
            found[path.replace("_orig_mod.", "")] = module
    return found
