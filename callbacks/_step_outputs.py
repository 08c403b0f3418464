"""Finds prediction, target and input in what a step returned, and the number of each image in its data set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning import Trainer
from torch import Tensor

Adapter: TypeAlias = Callable[[Any, Any], Mapping[str, Any]]
"""``(what the step returned, batch) -> {"pred": ..., "target": ..., "input": ...}``; the input may be missing."""

PREDICTION_KEYS = ("pred", "preds")


class StepOutputs(NamedTuple):
    """The images of one batch.

    Attributes:
        pred: ``(N, 3, H, W)``.
        target: ``(N, 3, H, W)``.
        input: ``(N, C, h, w)``, or None where there is none.
    """

    pred: Tensor
    target: Tensor
    input: Tensor | None


class OutputReader:
    """What a step returned -> its images.

    Args:
        pred_key: Of the prediction; None takes ``"pred"`` or ``"preds"``.
        target_key: Of the target.
        input_key: Of the input; None, or a key that is not there, for no input.
        adapter: For steps that return something else: called with it and the batch, returns a mapping with these keys.

    Raises:
        TypeError: If `adapter` cannot be called.
    """

    def __init__(
        self,
        pred_key: str | None = None,
        target_key: str = "target",
        input_key: str | None = "input",
        adapter: Adapter | None = None,
    ) -> None:
        if adapter is not None and not callable(adapter):
            raise TypeError(f"adapter: expected a callable (outputs, batch) -> mapping, got {adapter!r}")
        self.pred_keys = PREDICTION_KEYS if pred_key is None else (pred_key,)
        self.target_key = target_key
        self.input_key = input_key
        self.adapter = adapter

    def read(self, outputs: Any, batch: Any, step: str) -> StepOutputs:
        """The images of a batch.

        Args:
            outputs: What the step returned.
            batch: What it was given.
            step: Its name, for the error.

        Raises:
            MisconfigurationException: If there is no prediction or no target.
        """
        source = f"{step}" if self.adapter is None else f"adapter, after {step},"
        found = outputs if self.adapter is None else self.adapter(outputs, batch)
        images = found if isinstance(found, Mapping) else {}
        pred = next((images[key] for key in self.pred_keys if key in images), None)
        target = images.get(self.target_key)
        if not isinstance(pred, Tensor) or not isinstance(target, Tensor):
            wanted = " or ".join(map(repr, self.pred_keys))
            raise MisconfigurationException(
                f"{source}: expected a mapping with tensors {wanted} and {self.target_key!r}, got {_describe(found)}; "
                "return these, name your own keys with pred_key= and target_key=, or convert with adapter="
            )
        given = images.get(self.input_key) if self.input_key is not None else None
        return StepOutputs(pred.detach(), target.detach(), given.detach() if isinstance(given, Tensor) else None)


def count_dataloaders(trainer: Trainer) -> int:
    """How many loaders the validation or test that is running goes through."""
    batches = trainer.num_test_batches if trainer.testing else trainer.num_val_batches
    return len(batches) if isinstance(batches, list) else 1


def _describe(found: Any) -> str:
    if isinstance(found, Mapping):
        return f"the keys {sorted(map(str, found))}" if found else "an empty mapping"
    if isinstance(found, Tensor):
        return f"a tensor of shape {tuple(found.shape)}"
    return "None" if found is None else f"a {type(found).__name__}"
