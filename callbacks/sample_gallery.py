"""The worst and the best samples of a validation or test, as pictures."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any, cast

import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from lpips_lightning.callbacks.image_pairs import ImagePairs
from lpips_lightning.callbacks.loggers import log_picture, log_table
from lpips_lightning.callbacks.outputs import Adapter, OutputReader, StepPictures, picture_numbers
from lpips_lightning.callbacks.ranks import gather
from lpips_lightning.callbacks.sample_picture import Sample, Scored, sample_picture, to_pixels
from lpips_lightning.frozen import WeightsSource
from lpips_lightning.heat import heat_indices
from lpips_lightning.images import DataRange
from lpips_lightning.network import Features, Precision

__all__ = ["SampleGallery"]

_KINDS = ("worst", "best")


class SampleGallery(Callback):
    """Logs the `k` worst and the `k` best samples by LPIPS of each validation and test, over all ranks.

    Each is one picture, input | prediction | target | LPIPS heat map, with its score and the heat map's scale, which is
    the same for all so that they compare: ``val/gallery/worst_1``, ..., ``val/gallery/best_1``, ... It is drawn here,
    in uint8, so that it is identical in TensorBoard, wandb and MLflow; for loggers that show no pictures, and without
    a logger, it is a PNG file in the log folder. wandb gets a sortable table ``val/gallery`` too.

    Only the pictures of the `k` worst and best of a rank stay in memory, in uint8. The network runs on every sample,
    as in `PerceptualScores`; `every_n_epochs` saves time.

    Args:
        net_type: ``"alex"``, ``"vgg"``, ``"squeeze"`` or ``"embedded"``, which ships.
        data_range: Of all pictures: ``(low, high)``, or ``high`` alone for ``(0, high)``; uint8 is always on [0, 255].
        k: How many worst, and how many best. With fewer than ``2 * k`` samples some are among both.
        heat_max: Local distance that the brightest colour stands for; larger ones look the same.
        every_n_epochs: In a fit, draw after each n-th epoch only.
        prefix: Before ``gallery`` in the names, for a second callback.
        pred_key: Of the prediction in what the step returns; None takes ``"pred"`` or ``"preds"``.
        target_key: Of the target.
        input_key: Of the input, ``(N, 3, h, w)`` or gray ``(N, 1, h, w)`` of any size; left out if there is none.
        adapter: ``(what the step returned, batch) -> {"pred": ..., "target": ..., "input": ...}``, for steps that
            return something else; in YAML an import path.
        clamp: Bring predictions onto the range first. Without it, values off the range are an error.
        version: ``"0.1"`` or ``"0.0"``.
        calibrated: False for the baseline.
        weights: See `LPIPS`.
        calibration: See `LPIPS`.
        precision: Of the trunk; ``"fp32"`` also under autocast.
        validate_args: Check pixel values. Shapes are always checked.

    Raises:
        TypeError: If `data_range` is neither a pair nor a number, or `adapter` cannot be called.
        ValueError: If an argument is none of the known ones.
        WeightsError: If weights are missing, damaged or of another architecture.
    """

    def __init__(
        self,
        net_type: str = "alex",
        *,
        data_range: DataRange,
        k: int = 4,
        heat_max: float = 1.0,
        every_n_epochs: int = 1,
        prefix: str = "",
        pred_key: str | None = None,
        target_key: str = "target",
        input_key: str | None = "input",
        adapter: Adapter | None = None,
        clamp: bool = False,
        version: str = "0.1",
        calibrated: bool = True,
        weights: WeightsSource = None,
        calibration: WeightsSource = None,
        precision: Precision = "fp32",
        validate_args: bool = True,
    ) -> None:
        for name, number in (("k", k), ("every_n_epochs", every_n_epochs)):
            if number < 1:
                raise ValueError(f"{name}: expected at least 1, got {number}")
        if not heat_max > 0:
            raise ValueError(f"heat_max: expected a positive distance, got {heat_max}")
        self.k, self.heat_max, self.every_n_epochs, self.prefix = k, heat_max, every_n_epochs, prefix
        self._reader = OutputReader(pred_key, target_key, input_key, adapter)
        self._pairs = ImagePairs(
            net_type,
            data_range,
            clamp=clamp,
            version=version,
            calibrated=calibrated,
            weights=weights,
            calibration=calibration,
            precision=precision,
            validate_args=validate_args,
        )
        self._reset()

    @override
    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._reset()

    @override
    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._reset()

    @override
    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._add(trainer, self._reader.read(outputs, batch, "validation_step"), dataloader_idx)

    @override
    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._add(trainer, self._reader.read(outputs, batch, "test_step"), dataloader_idx)

    @override
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._log(trainer, "val")

    @override
    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._log(trainer, "test")

    def _reset(self) -> None:
        self._seen: dict[int, int] = {}
        self._chosen: dict[str, list[Scored]] = {kind: [] for kind in _KINDS}
        self._samples: dict[Scored, Sample] = {}

    def _is_on(self, trainer: Trainer) -> bool:
        if trainer.sanity_checking:
            return False
        return trainer.state.fn != "fit" or (trainer.current_epoch + 1) % self.every_n_epochs == 0

    @torch.no_grad()
    def _add(self, trainer: Trainer, pictures: StepPictures, dataloader_idx: int) -> None:
        _check_input(pictures)
        if not self._is_on(trainer):
            return
        seen, count = self._seen.get(dataloader_idx, 0), len(pictures.pred)
        self._seen[dataloader_idx] = seen + count
        numbers = picture_numbers(trainer, dataloader_idx, seen, count)
        if not len(numbers):
            return
        pred, target = self._pairs.check(pictures.pred[: len(numbers)], pictures.target[: len(numbers)])
        features = self._pairs.encode(pred, target)
        # The host has to know which samples to keep: one wait for the device a batch.
        scores: list[float] = cast(Tensor, self._pairs.net.distance(*features)).tolist()
        new = [
            Scored(score, dataloader_idx, number, trainer.global_rank)
            for score, number in zip(scores, numbers, strict=True)
        ]
        self._chosen = {kind: _first(kind, [*self._chosen[kind], *new], self.k) for kind in _KINDS}
        wanted = {scored for chosen in self._chosen.values() for scored in chosen}
        self._samples = {scored: sample for scored, sample in self._samples.items() if scored in wanted}
        rows = [row for row, scored in enumerate(new) if scored in wanted]
        if rows:
            samples = self._make(StepPictures(pred, target, pictures.input), features, rows)
            self._samples.update(zip((new[row] for row in rows), samples, strict=True))

    def _make(self, pictures: StepPictures, features: tuple[Features, Features], rows: list[int]) -> Iterator[Sample]:
        """Some rows of a batch as they are kept; maps are made for these alone."""
        pred, target = (one.of(rows) for one in features)
        maps = cast(Tensor, self._pairs.net.distance(pred, target, spatial=True))
        data_range = self._pairs.data_range
        for row, heat in zip(rows, maps, strict=True):
            yield Sample(
                to_pixels(pictures.pred[row], data_range),
                to_pixels(pictures.target[row], data_range),
                None if pictures.input is None else to_pixels(pictures.input[row], data_range),
                heat_indices(heat[0], self.heat_max),
            )

    def _log(self, trainer: Trainer, stage: str) -> None:
        if not self._is_on(trainer):
            return
        # The scores go first, so that of the pictures only those that will be shown are sent.
        everybody = gather(trainer, self._chosen)
        chosen = {kind: _first(kind, itertools.chain(*(one[kind] for one in everybody)), self.k) for kind in _KINDS}
        shown = {scored for kind in _KINDS for scored in chosen[kind]}
        own = {scored: sample for scored, sample in self._samples.items() if scored in shown}
        samples = {scored: sample for rank in gather(trainer, own) for scored, sample in rank.items()}
        self._reset()
        if trainer.is_global_zero:
            self._show(trainer, f"{stage}/{self.prefix}gallery", chosen, samples)

    def _show(
        self, trainer: Trainer, name: str, chosen: dict[str, list[Scored]], samples: dict[Scored, Sample]
    ) -> None:
        rows: list[list[Any]] = []
        net = f"{self._pairs.net.net_type} v{self._pairs.net.version}"
        for kind in _KINDS:
            for place, scored in enumerate(chosen[kind], 1):
                label = f"{kind} {place} of {len(chosen[kind])}"
                pixels = sample_picture(samples[scored], scored, label, net, self.heat_max)
                log_picture(trainer, f"{name}/{kind}_{place}", pixels, trainer.global_step)
                rows.append([kind, place, scored.score, scored.dataloader_idx, scored.number, pixels])
        columns = ["kind", "place", "lpips", "dataloader_idx", "picture", "sample"]
        log_table(trainer, name, columns, rows, trainer.global_step, otherwise_csv=False)


def _first(kind: str, scored: Iterable[Scored], k: int) -> list[Scored]:
    """The `k` first, the same whatever the order they come in."""
    sign = -1 if kind == "worst" else 1
    return sorted(scored, key=lambda one: (sign * one.score, *one[1:]))[:k]


def _check_input(pictures: StepPictures) -> None:
    given, count = pictures.input, len(pictures.pred)
    if given is None:
        return
    shown = given.is_floating_point() or given.dtype == torch.uint8
    if given.dim() != 4 or given.shape[0] != count or given.shape[1] not in (1, 3) or not shown:
        raise MisconfigurationException(
            f"input_key: expected pictures ({count}, 3, h, w) or ({count}, 1, h, w), floating or uint8, got "
            f"{given.dtype} of shape {tuple(given.shape)}; pass input_key=None to leave the input out"
        )
