"""Reads prediction, target and input from the outputs of a step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning import Trainer
from torch import Tensor

Adapter: TypeAlias = Callable[[Any, Any], Mapping[str, Any]]
"""``(step outputs, batch) -> {"pred": ..., "target": ..., "input": ...}``; the input is optional."""

PREDICTION_KEYS = ("pred", "preds")
NAME_KEYS = ("name", "names")


class StepOutputs(NamedTuple):
    """Images of one batch.

    Attributes:
        pred: ``(N, 3, H, W)``.
        target: ``(N, 3, H, W)``.
        input: ``(N, C, h, w)``, or None.
        names: One for each image, or None.
    """

    pred: Tensor
    target: Tensor
    input: Tensor | None
    names: Sequence[str] | None = None


class OutputReader:
    """Reads the images from the outputs of a step.

    Args:
        pred_key: Key of the prediction; None for ``"pred"`` or ``"preds"``.
        target_key: Key of the target.
        input_key: Key of the input; None or a missing key for no input.
        adapter: Converts other outputs: called with outputs and batch, returns a mapping with these keys.

    Raises:
        TypeError: If `adapter` is not callable.
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
        """Read the images of a batch.

        Args:
            outputs: Outputs of the step.
            batch: Batch of the step.
            step: Name of the step, for errors.

        Raises:
            MisconfigurationException: If prediction or target is missing.
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
                "return these, pass other keys as pred_key= and target_key=, or convert the outputs with adapter="
            )
        given = images.get(self.input_key) if self.input_key is not None else None
        names = find_names(images, outputs, batch)
        names = names if names is not None and len(names) == len(pred) else None
        return StepOutputs(pred.detach(), target.detach(), given.detach() if isinstance(given, Tensor) else None, names)


def find_names(*sources: Any) -> Sequence[str] | None:
    """Names of a batch's images: strings under ``"name"`` or ``"names"``, or in the last element of a batch; or None.

    Args:
        *sources: Step outputs and batch, in order of preference.
    """
    found: list[Any] = []
    for source in sources:
        if isinstance(source, Mapping):
            found += [source[key] for key in NAME_KEYS if key in source]
        elif isinstance(source, Sequence) and not isinstance(source, str) and len(source):
            found.append(source[-1])
    for names in found:
        names = [names] if isinstance(names, str) else names
        if isinstance(names, Sequence) and names and all(isinstance(name, str) for name in names):
            return names
    return None


def count_dataloaders(trainer: Trainer) -> int:
    """Number of dataloaders of the running validation or test."""
    batches = trainer.num_test_batches if trainer.testing else trainer.num_val_batches
    return len(batches) if isinstance(batches, list) else 1


def _describe(found: Any) -> str:
    if isinstance(found, Mapping):
        return f"the keys {sorted(map(str, found))}" if found else "an empty mapping"
    if isinstance(found, Tensor):
        return f"a tensor of shape {tuple(found.shape)}"
    return "None" if found is None else f"a {type(found).__name__}"
