"""Logs the worst and best samples of validation and test as images."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from typing import Any, Unpack

import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning import Trainer
from torch import Tensor
from typing_extensions import override

from lpips_lightning._lightning import Callback, LightningModule
from lpips_lightning.backbones.definition import Backbone
from lpips_lightning.callbacks._loggers import Pixels, log_figure_file, log_image, log_table
from lpips_lightning.callbacks._pair_scorer import PairScorer
from lpips_lightning.callbacks._sample_panel import Legend, Sample, Scored, sample_panel
from lpips_lightning.callbacks._sample_sheet import sample_sheet
from lpips_lightning.callbacks._step_outputs import Adapter, OutputReader, StepOutputs
from lpips_lightning.distributed import dataset_indices, gather
from lpips_lightning.images.ranges import DataRange
from lpips_lightning.io.figures import figure_pixels
from lpips_lightning.io.heatmap import heatmap_limit
from lpips_lightning.io.image_files import to_pixels
from lpips_lightning.loss import PerceptualLoss
from lpips_lightning.options import LPIPSOptions, with_options
from lpips_lightning.perceptual_distance import PerceptualDistance

_KINDS = ("worst", "best")


@with_options()
class SampleGallery(Callback):
    """Logs the `k` worst and `k` best samples by LPIPS of each validation and test, over all ranks.

    Each sample is one image, input | prediction | target | LPIPS heatmap, with its score and a color scale that is the
    same for all samples: ``val/gallery/worst_1``, ..., ``val/gallery/best_1``, ... It is drawn in uint8, so that it is
    identical in TensorBoard, wandb and MLflow. For loggers without images, and without a logger, it is a PNG file in
    the log folder. wandb also gets a sortable table ``val/gallery``. If matplotlib is installed, all samples together
    are ``val/gallery/sheet``, a figure for print, whose last version is ``val/gallery/sheet.pdf`` in the log folder.

    A sample is named by the string that its step returns under ``"name"`` or ``"names"``, that the batch has under
    these keys, or that is the last element of the batch; else by its index in the data set. If a `PerceptualLoss` of
    the model has the gallery's network, the images say so: such scores are biased.

    Each rank stores only the images of its `k` worst and best samples, in uint8, and their maps in half precision. The
    network runs on every sample, as in `PerceptualScores`; a larger `every_n_epochs` saves time. Prediction and target
    are drawn after ``background`` and ``resize``; with ``gray="per_channel"`` as the mean of their channels.

    Args:
        net_type: ``"alex"``, ``"vgg"``, ``"squeeze"``; ``"alex-st"`` or ``"vgg-st"``, which tolerate shifts;
            ``"embedded"`` or ``"embedded-vgg"``, which ship with the package; a custom backbone from
            `lpips_lightning.backbones`; or a built `LPIPS`, `WeightedSum` or `Ensemble`, whose frozen networks and
            options are used.
        data_range: Range of all images: ``(low, high)``, or ``high`` alone for ``(0, high)``; uint8 is always on [0,
            255].
        k: Number of worst and of best samples. With fewer than ``2 * k`` samples, some are in both groups.
        heatmap_max: Local distance of the brightest color; larger distances are clipped. None: a round number above
            nearly all distances of the samples shown.
        every_n_epochs: In a fit, log only after every n-th epoch.
        prefix: Prefix of ``gallery`` in the names, for a second callback.
        pred_key: Key of the prediction in the step outputs; None for ``"pred"`` or ``"preds"``.
        target_key: Key of the target.
        input_key: Key of the input, ``(N, 3, h, w)`` or gray ``(N, 1, h, w)`` of any size, with a ``background`` also
            ``(N, 4, h, w)``; None or a missing key leaves it out.
        input_label: What the input is, such as ``"low resolution"``.
        adapter: ``(step outputs, batch) -> {"pred": ..., "target": ..., "input": ...}`` converts other outputs; in YAML
            an import path.
        clamp: Clamp predictions to the range. Otherwise predictions outside it
            are scored unclamped, with one warning. NaN ranks as worst. Targets outside the range are always an error.
        options: See `lpips_lightning.options.LPIPSOptions`.

    Raises:
        TypeError: If `data_range` is neither a pair nor a number, `adapter` is not callable, or an option does not
            exist.
        ValueError: If an argument has an unknown value, or an option is given with a built network.
        WeightsError: If weights are missing, damaged or of another architecture.
    """

    def __init__(
        self,
        net_type: str | Backbone | PerceptualDistance = "alex",
        *,
        data_range: DataRange,
        k: int = 4,
        heatmap_max: float | None = None,
        every_n_epochs: int = 1,
        prefix: str = "",
        pred_key: str | None = None,
        target_key: str = "target",
        input_key: str | None = "input",
        input_label: str = "input",
        adapter: Adapter | None = None,
        clamp: bool = False,
        **options: Unpack[LPIPSOptions],
    ) -> None:
        for name, number in (("k", k), ("every_n_epochs", every_n_epochs)):
            if number < 1:
                raise ValueError(f"{name}: expected at least 1, got {number}")
        if heatmap_max is not None and not heatmap_max > 0:
            raise ValueError(f"heatmap_max: expected a positive distance, got {heatmap_max}")
        self.k, self.heatmap_max, self.every_n_epochs, self.prefix = k, heatmap_max, every_n_epochs, prefix
        self.input_label = input_label
        self._reader = OutputReader(pred_key, target_key, input_key, adapter)
        self._pairs = PairScorer(net_type, data_range, options, type(self), clamp=clamp)
        self._pairs.images.check_pictures("net_type")
        self._pairs.net.check_maps()
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
        self._log(trainer, pl_module, "val")

    @override
    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._log(trainer, pl_module, "test")

    def _reset(self) -> None:
        self._seen: dict[int, int] = {}
        self._chosen: dict[str, list[Scored]] = {kind: [] for kind in _KINDS}
        self._samples: dict[Scored, Sample] = {}

    def _is_active(self, trainer: Trainer) -> bool:
        if trainer.sanity_checking:
            return False
        return trainer.state.fn != "fit" or (trainer.current_epoch + 1) % self.every_n_epochs == 0

    @torch.no_grad()
    def _add(self, trainer: Trainer, images: StepOutputs, dataloader_idx: int) -> None:
        _check_input(images, (1, 3) if self._pairs.images.background is None else (1, 3, 4))
        if not self._is_active(trainer):
            return
        seen, count = self._seen.get(dataloader_idx, 0), len(images.pred)
        self._seen[dataloader_idx] = seen + count
        indices = dataset_indices(trainer, dataloader_idx, seen, count)
        if not len(indices):
            return
        pred, target = self._pairs.check(images.pred[: len(indices)], images.target[: len(indices)])
        net = self._pairs.net
        distances = net(pred, target, self._pairs.data_range)
        # Synchronizes once per batch: the host must know which samples to keep.
        scores: list[float] = distances.nan_to_num(nan=math.inf).tolist()  # NaN cannot be sorted
        names = images.names or [""] * count
        new = [
            Scored(score, dataloader_idx, index, trainer.global_rank, name)
            for score, index, name in zip(scores, indices, names, strict=False)
        ]
        self._chosen = {kind: _ranked(kind, [*self._chosen[kind], *new], self.k) for kind in _KINDS}
        wanted = {scored for chosen in self._chosen.values() for scored in chosen}
        self._samples = {scored: sample for scored, sample in self._samples.items() if scored in wanted}
        rows = [row for row, scored in enumerate(new) if scored in wanted]
        if rows:
            given = None if images.input is None else images.input[rows]
            samples = self._to_samples(StepOutputs(pred[rows], target[rows], given))
            self._samples.update(zip((new[row] for row in rows), samples, strict=True))

    def _to_samples(self, images: StepOutputs) -> Iterator[Sample]:
        """Convert samples to uint8, with their local distances."""
        maps = self._pairs.net(images.pred, images.target, self._pairs.data_range, spatial=True)
        preds, targets = self._pairs.display(images.pred), self._pairs.display(images.target)
        given = None if images.input is None else self._pairs.display_input(images.input)
        for row, distances in enumerate(maps):
            yield Sample(
                _pixels(preds, row),
                _pixels(targets, row),
                None if given is None else _pixels(given, row),
                distances[0].half().cpu(),
            )

    def _log(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not self._is_active(trainer):
            return
        # Gather the scores first, then only the images of the chosen samples.
        gathered = gather(trainer, self._chosen)
        chosen = {kind: _ranked(kind, itertools.chain(*(one[kind] for one in gathered)), self.k) for kind in _KINDS}
        shown = {scored for kind in _KINDS for scored in chosen[kind]}
        own = {scored: sample for scored, sample in self._samples.items() if scored in shown}
        samples = {scored: sample for rank in gather(trainer, own) for scored, sample in rank.items()}
        self._reset()
        if trainer.is_global_zero:
            maps = [sample.distances for sample in samples.values()]
            legend = Legend(
                self._pairs.net.label,
                self.heatmap_max or heatmap_limit(*maps),
                self.input_label,
                _is_in_a_loss(self._pairs.net, pl_module),
            )
            self._show(trainer, f"{stage}/{self.prefix}gallery", chosen, samples, legend)

    def _show(
        self,
        trainer: Trainer,
        name: str,
        chosen: dict[str, list[Scored]],
        samples: dict[Scored, Sample],
        legend: Legend,
    ) -> None:
        rows: list[list[Any]] = []
        for kind in _KINDS:
            for place, scored in enumerate(chosen[kind], 1):
                label = f"{kind} {place} of {len(chosen[kind])}"
                pixels = sample_panel(samples[scored], scored, label, legend)
                log_image(trainer, f"{name}/{kind}_{place}", pixels, trainer.global_step)
                source = [scored.dataloader_idx, scored.dataset_index, scored.name]
                rows.append([kind, place, scored.score, *source, pixels])
        columns = ["kind", "place", "lpips", "dataloader_idx", "image", "name", "sample"]
        log_table(trainer, name, columns, rows, trainer.global_step, otherwise_csv=False)
        if samples and find_spec("matplotlib") is not None:
            groups = {kind: [(samples[scored], scored) for scored in chosen[kind]] for kind in _KINDS}
            with sample_sheet(groups, legend) as figure:
                log_image(trainer, f"{name}/sheet", figure_pixels(figure), trainer.global_step)
                log_figure_file(trainer, f"{name}/sheet", figure, None)  # a megabyte or more


def _is_in_a_loss(net: PerceptualDistance, module: LightningModule) -> bool:
    losses = (part for part in module.modules() if isinstance(part, PerceptualLoss))
    return any(loss.net.backbone_hashes & net.backbone_hashes for loss in losses)


def _pixels(shown: tuple[Tensor, tuple[float, float]], row: int) -> Pixels:
    images, data_range = shown
    return to_pixels(images[row], data_range)


def _ranked(kind: str, scored: Iterable[Scored], k: int) -> list[Scored]:
    """First `k` samples of a kind, independent of the input order."""
    sign = -1 if kind == "worst" else 1
    return sorted(scored, key=lambda one: (sign * one.score, *one[1:]))[:k]


def _check_input(images: StepOutputs, channels: Sequence[int]) -> None:
    given, count = images.input, len(images.pred)
    if given is None:
        return
    has_image_dtype = given.is_floating_point() or given.dtype == torch.uint8
    if given.dim() != 4 or given.shape[0] != count or given.shape[1] not in channels or not has_image_dtype:
        hint = "; pass background= for transparent images" if given.dim() == 4 and given.shape[1] == 4 else ""
        raise MisconfigurationException(
            f"input_key: expected images ({count}, 3, h, w) or ({count}, 1, h, w), floating or uint8, got "
            f"{given.dtype} of shape {tuple(given.shape)}{hint}; pass input_key=None to leave the input out"
        )
