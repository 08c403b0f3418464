"""Logs LPIPS, PSNR and SSIM of validation and test images, exact over batches and ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias, Unpack, cast, get_args

import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning import Trainer
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure
from typing_extensions import override

from lpips_lightning._lightning import Callback, LightningModule
from lpips_lightning.backbones.definition import Backbone
from lpips_lightning.batch import SUM_DTYPE
from lpips_lightning.callbacks._loggers import log_hyperparameters, log_table
from lpips_lightning.callbacks._pair_scorer import PairScorer
from lpips_lightning.callbacks._step_outputs import Adapter, OutputReader, count_dataloaders
from lpips_lightning.callbacks.loss_schedule import LossSchedule, perceptual_losses
from lpips_lightning.callers import warn_user
from lpips_lightning.distributed import dataset_indices, gather
from lpips_lightning.functional.luma import luma_scores_of_unit_range
from lpips_lightning.images.ranges import DataRange, NoRange
from lpips_lightning.options import LPIPSOptions, with_options
from lpips_lightning.perceptual_distance import PerceptualDistance

Score: TypeAlias = Literal["lpips", "psnr", "ssim", "psnr_y", "ssim_y"]


@with_options()
class PerceptualScores(Callback):
    """Logs ``val/lpips``, ``val/psnr`` and ``val/ssim`` (and ``test/...``) for any model whose step returns images.

    The step returns ``{"pred": ..., "target": ...}`` or ``{"preds": ..., "target": ...}`` with images ``(N, 3, H, W)``;
    `pred_key`, `target_key` and `adapter` handle other outputs. Each score is the mean over the images of all batches
    and ranks; images repeated by a `DistributedSampler` count once. ModelCheckpoint and EarlyStopping can monitor the
    scores; ``{val/lpips}`` in a file name needs ``auto_insert_metric_name=False``. The sanity check only looks for
    missing keys.

    With several dataloaders, ``val/lpips`` is the mean over all images, and each dataloader has its own score
    ``val/lpips/dataloader_0`` (Lightning 2.5 reserves the name ``dataloader_idx_0``). The layers' terms are
    ``val/lpips/relu1`` and so on.

    Target features are cached for fixed validation sets: from the second epoch on, the backbone runs on predictions
    only. If a target has changed, its features are recomputed. With a ``memory_budget`` nothing is cached.

    PSNR and SSIM use the input of the LPIPS network, after the options ``gray``, ``background`` and ``resize``; with
    ``gray="per_channel"`` they are the mean over channels. ``"psnr_y"`` and ``"ssim_y"`` are those of superresolution
    papers, on 8-bit luma without a `border`: see `lpips_lightning.functional.luma_scores`.

    Args:
        net_type: ``"alex"``, ``"vgg"``, ``"squeeze"``; ``"alex-st"`` or ``"vgg-st"``, which tolerate shifts;
            ``"embedded"`` or ``"embedded-vgg"``, which ship with the package; a custom backbone from
            `lpips_lightning.backbones`; or a built `LPIPS`, `WeightedSum` or `Ensemble`, whose frozen networks and
            options are used. A warning is issued if a `PerceptualLoss` of the model has the same backbone.
        data_range: Range of predictions and targets: ``(low, high)``, or ``high`` alone for ``(0, high)``; uint8 is
            always on [0, 255]. There is no default, since scores with a wrong range are wrong silently; None for a
            backbone without a range, which has ``metrics=["lpips"]`` alone.
        metrics: Scores to log: ``"lpips"``, ``"psnr"`` (mean of the images' PSNRs), ``"ssim"``, ``"psnr_y"``,
            ``"ssim_y"``.
        border: Pixels that ``"psnr_y"`` and ``"ssim_y"`` crop on each side; papers crop the scale factor.
        per_layer: Log LPIPS by layer too.
        per_dataloader: With several dataloaders, log the scores of each one too.
        prog_bar: Show the first of `metrics`, over all dataloaders, on the progress bar.
        table: Log the scores of every image: a wandb Table, or ``val/scores_step_<step>.csv`` in the log folder.
        prefix: Prefix of the score names, for a second callback: ``"vgg_"`` gives ``val/vgg_lpips``.
        pred_key: Key of the prediction in the step outputs; None for ``"pred"`` or ``"preds"``.
        target_key: Key of the target.
        adapter: ``(step outputs, batch) -> {"pred": ..., "target": ...}`` converts other outputs; in YAML an import
            path.
        clamp: Clamp predictions to the range, as writing them to a file does. Otherwise predictions outside it
            are scored unclamped, with one warning. Targets outside the range are always an error.
        cache_bytes: Memory limit for cached target features on the device of the images; 0 disables the cache.
        options: See `lpips_lightning.options.LPIPSOptions`. Checking pixel values synchronizes with the device.

    Attributes:
        fingerprint: One line to cite that identifies the LPIPS network and its settings; every logger gets it as the
            hyperparameter ``lpips_fingerprint``. None without LPIPS.

    Raises:
        TypeError: If `data_range` is neither a pair nor a number, `adapter` is not callable, or an option does not
            exist.
        ValueError: If an argument has an unknown value, or an option is given with a built network.
        WeightsError: If weights are missing, damaged or of another architecture.

    Example:
        >>> callback = PerceptualScores("embedded", data_range=(0, 1), metrics=["lpips", "psnr"])
        >>> callback.names
        ['lpips', 'psnr']
    """

    def __init__(
        self,
        net_type: str | Backbone | PerceptualDistance = "alex",
        *,
        data_range: DataRange | NoRange,
        metrics: Sequence[Score] = ("lpips", "psnr", "ssim"),
        border: int = 0,
        per_layer: bool = False,
        per_dataloader: bool = True,
        prog_bar: bool = True,
        table: bool = False,
        prefix: str = "",
        pred_key: str | None = None,
        target_key: str = "target",
        adapter: Adapter | None = None,
        clamp: bool = False,
        cache_bytes: int = 2**28,
        **options: Unpack[LPIPSOptions],
    ) -> None:
        known = get_args(Score)
        if isinstance(metrics, str) or not metrics or any(metric not in known for metric in metrics):
            raise ValueError(f"metrics: expected some of {known}, got {metrics!r}")
        if per_layer and "lpips" not in metrics:
            raise ValueError(f"per_layer: expected False without 'lpips' among the metrics, got {per_layer!r}")
        if type(border) is not int or border < 0:
            raise ValueError(f"border: expected a number of pixels, 0 or more, got {border!r}")
        self.metrics: tuple[Score, ...] = tuple(dict.fromkeys(metrics))
        self.border = border
        self.per_layer, self.per_dataloader, self.table, self.prefix = per_layer, per_dataloader, table, prefix
        self.prog_bar = prog_bar
        self._reader = OutputReader(pred_key, target_key, None, adapter)
        has_lpips = "lpips" in self.metrics
        self._pairs = PairScorer(
            net_type, data_range, options, type(self), lpips=has_lpips, clamp=clamp, cache_bytes=cache_bytes
        )
        self._check_metrics()
        self.fingerprint = self._pairs.fingerprint if has_lpips else None
        self._reset()

    @property
    def names(self) -> list[str]:
        """Names of the scores, without stage and dataloader."""
        layers = [f"lpips/{layer}" for layer in self._pairs.net.layers] if self.per_layer else []
        return [self.prefix + name for metric in self.metrics for name in (metric, *layers * (metric == "lpips"))]

    def _check_metrics(self) -> None:
        """Raise if a score is not defined for the images of the network."""
        images = self._pairs.images
        undefined = [metric for metric in self.metrics if metric.endswith("_y") and images.channels != 3]
        if not images.has_range:
            undefined = [metric for metric in self.metrics if metric != "lpips"]
        if undefined:
            defined = [metric for metric in self.metrics if metric not in undefined] or ["lpips"]
            raise ValueError(
                f"metrics: expected {defined} for a network of {images.described()}, got {undefined[0]!r} too, which"
                " is not defined for them"
            )

    def score(self, pred: Tensor, target: Tensor, batch: tuple[str, int, int] | None = None) -> Tensor:
        """Scores of every pair of images.

        Args:
            pred: ``(N, 3, H, W)``, floating on the range or uint8.
            target: Same shape.
            batch: Stage, dataloader index and batch index, as key of the feature cache; None does not cache.

        Returns:
            Shape ``(N, len(names))``.
        """
        pred, target = self._pairs.check(pred, target)
        columns: list[Tensor] = []
        for metric in self.metrics:
            if metric == "lpips":
                terms = self._pairs.layers(pred, target, batch)
                columns += [torch.stack(terms).sum(0), *(terms if self.per_layer else ())]
            else:
                scores = self._plain(metric, self._pairs.to_unit_range(pred), self._pairs.to_unit_range(target))
                columns.append(scores.view(len(pred), -1).mean(1) if len(scores) != len(pred) else scores)
        return torch.stack(columns, 1)

    def _plain(self, metric: Score, pred: Tensor, target: Tensor) -> Tensor:
        """PSNR or SSIM of images on [0, 1]."""
        if metric == "psnr":
            return _psnr(pred, target)
        if metric == "ssim":
            return _ssim(pred, target)
        # Both come from one call; the other is cheap beside LPIPS.
        scores = luma_scores_of_unit_range(pred, target, self.border)[metric == "ssim_y"]
        return scores.to(pred.device, pred.dtype)

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for other in getattr(trainer, "callbacks", []):
            shared = set(self.names) & set(other.names) if isinstance(other, PerceptualScores) else set()
            if other is not self and shared:
                raise MisconfigurationException(
                    f"prefix: expected different names for each PerceptualScores, got {sorted(shared)} from two"
                )
        if stage != "predict" and self.fingerprint is not None:
            log_hyperparameters(trainer, pl_module, {f"{self.prefix}lpips_fingerprint": self.fingerprint})

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.fingerprint is None or not trainer.is_global_zero:
            return
        own = self._pairs.net
        scheduled = any(isinstance(callback, LossSchedule) for callback in getattr(trainer, "callbacks", []))
        for path, loss in perceptual_losses(pl_module).items():
            if (loss.weight or scheduled) and loss.net.backbone_hashes & own.backbone_hashes:
                warn_user(
                    f"net_type: expected another network than that of the loss {path!r}, got {own.net_type!r} for both;"
                    f" val/{self.prefix}lpips is biased, since the model is trained to lower it"
                )

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
        self._add(trainer, "val", outputs, batch, batch_idx, dataloader_idx)

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
        self._add(trainer, "test", outputs, batch, batch_idx, dataloader_idx)

    @override
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._log(trainer, pl_module, "val")

    @override
    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._log(trainer, pl_module, "test")

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._pairs.target_features.clear()
        self._reset()

    def _reset(self) -> None:
        self._totals: dict[int, Tensor] = {}  # by dataloader: sums of the scores, then the count
        self._seen: dict[int, int] = {}
        self._rows: list[tuple[int, range, Tensor]] = []

    @torch.no_grad()
    def _add(self, trainer: Trainer, stage: str, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int) -> None:
        step = "test_step" if stage == "test" else "validation_step"
        images = self._reader.read(outputs, batch, step)
        pred, target = images.pred, images.target
        if trainer.sanity_checking:
            return
        seen = self._seen.get(dataloader_idx, 0)
        self._seen[dataloader_idx] = seen + len(pred)
        indices = dataset_indices(trainer, dataloader_idx, seen, len(pred))
        if not len(indices):
            return
        scores = self.score(pred[: len(indices)], target[: len(indices)], (stage, dataloader_idx, batch_idx))
        totals = torch.cat([scores.sum(0, dtype=SUM_DTYPE), scores.new_full((1,), len(scores), dtype=SUM_DTYPE)])
        self._totals[dataloader_idx] = self._totals.get(dataloader_idx, 0) + totals
        if self.table:
            self._rows.append((dataloader_idx, indices, scores))

    def _log(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if trainer.sanity_checking:
            return
        # Include dataloaders without images on this rank: the reduction needs the same shape on all ranks.
        loaders = count_dataloaders(trainer)
        empty = torch.zeros(len(self.names) + 1, dtype=SUM_DTYPE, device=pl_module.device)
        own = torch.stack([self._totals.get(index, empty).to(empty.device) for index in range(loaders)])
        totals = cast(Tensor, trainer.strategy.reduce(own, reduce_op="sum"))
        reported = {"": totals.sum(0)}
        if self.per_dataloader and loaders > 1:
            reported |= {f"/dataloader_{index}": totals[index] for index in range(loaders)}
        for suffix, sums in reported.items():
            if sums[-1] == 0:
                continue
            for name, mean in zip(self.names, (sums[:-1] / sums[-1]).float(), strict=True):
                # The value is already equal on all ranks; reducing by max is exact and avoids Lightning's warning.
                shown = self.prog_bar and not suffix and name == self.names[0]
                pl_module.log(
                    f"{stage}/{name}{suffix}",
                    mean,
                    prog_bar=shown,
                    sync_dist=True,
                    reduce_fx="max",
                    add_dataloader_idx=False,
                )
        if self.table:
            self._log_table(trainer, stage)
        self._reset()

    def _log_table(self, trainer: Trainer, stage: str) -> None:
        own = [
            (loader, index, *row)
            for loader, indices, scores in self._rows
            for index, row in zip(indices, scores.tolist(), strict=True)
        ]
        rows = sorted(row for rank in gather(trainer, own) for row in rank)
        columns = ["dataloader_idx", "image", *self.names]
        log_table(trainer, f"{stage}/{self.prefix}scores", columns, rows, trainer.global_step)


def _psnr(pred: Tensor, target: Tensor) -> Tensor:
    # One PSNR per image: the score is the mean of the PSNRs, not the PSNR of the mean error.
    return peak_signal_noise_ratio(pred, target, data_range=1.0, dim=(1, 2, 3), reduction="none")


def _ssim(pred: Tensor, target: Tensor) -> Tensor:
    return cast(Tensor, structural_similarity_index_measure(pred, target, data_range=1.0, reduction="none"))
