"""Training and validation of the rows of a trade-off table."""

from __future__ import annotations

import inspect
import itertools
import json
import time
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from pytorch_lightning import Trainer
from typing_extensions import override

from lpips_lightning._lightning import Callback, LightningModule
from lpips_lightning.backbones.definition import get_backbone
from lpips_lightning.callbacks import PerceptualScores
from lpips_lightning.callbacks.image_writer import save_image
from lpips_lightning.io.atomic import atomic_write
from lpips_lightning.io.download import ProgressCallback
from lpips_lightning.recipes.command import ImageRecipeCLI, run_recipe
from lpips_lightning.recipes.tradeoff_table import BASELINE, GAN, PIXEL, UNTRAINED, TradeoffRow, read_rows, write_rows

_SETTINGS = "settings.json"
_ADVERSARIAL = "adversarial_weight"  # argument of models that can train with a discriminator
_SCALE = "scale_"  # prefix of scores that are only used for the weight of a baseline


@dataclass
class Tradeoff:
    """Trains and validates one row after the other; finished rows are stored in ``<out>/tradeoff.csv``.

    Attributes:
        recipe: CLI class, model, data module and file, as for `run_recipe`.
        options: Options of the recipe.
        judges: Networks for validation.
        out: Folder for table, trained models and images.
        restart: Discard a table in that folder, instead of keeping its rows.
    """

    recipe: tuple[type[ImageRecipeCLI], type, type, str]
    options: list[str]
    judges: list[str]
    out: Path
    restart: bool = False

    def __post_init__(self) -> None:
        self.kept = {} if self.restart else {(row.loss, row.seed): row for row in read_rows(self.out / "tradeoff.csv")}
        self.rows: list[TradeoffRow] = []
        self.adversarial_weight = 0.0  # of rows with a discriminator, once it is known

    def check_settings(self) -> None:
        """Check that an existing table has the same options.

        Raises:
            ValueError: If they differ.
        """
        before = _options_of(self.out)
        if before not in (None, self.options) and not self.restart:
            raise ValueError(
                f"out: expected the options of the table in {self.out}, {' '.join(before) or 'none'}, got"
                f" {' '.join(self.options) or 'none'}; pass another --out for another"
                " table, or --force to replace this one"
            )

    def run(self, losses: list[str], seeds: list[int], report: ProgressCallback) -> None:
        """Make all missing rows.

        Args:
            losses: ``"untrained"``, ``"pixel"``, ``"<net>"`` or ``"<net>:baseline"``; the last three also with
                ``"+gan"``.
            seeds: Seeds of the trainings.
            report: Callback for the progress of steps.
        """
        wanted = [TradeoffRow(loss, seed) for loss in losses for seed in (seeds[:1] if loss == UNTRAINED else seeds)]
        self.rows = [self._kept(row) or row for row in wanted]
        if all(row.scores for row in self.rows):
            return
        # First, and outside the try of _row: wrong options raise here within seconds.
        weights, untrained = self._weights_and_untrained([*{row.reconstruction: None for row in wanted}], seeds[0])
        if self.restart:
            discard(self.out)
        with atomic_write(self.out / _SETTINGS) as temporary:
            temporary.write_text(json.dumps({"options": self.options}))
        for index, row in enumerate(self.rows):
            if not row.scores:
                self.rows[index] = untrained if row.loss == UNTRAINED else self._row(row, weights, report)
                self._write()

    def _write(self) -> None:
        """Write all rows, including earlier rows of losses that are not in this run."""
        done = {(row.loss, row.seed): row for row in self.rows if row.scores or row.note}
        others = [row for key, row in self.kept.items() if key not in done]
        write_rows(self.out / "tradeoff.csv", [*done.values(), *others])

    def _kept(self, row: TradeoffRow) -> TradeoffRow | None:
        """Row of an earlier run, if it is complete."""
        kept = self.kept.get((row.loss, row.seed))
        lacking = kept is None or kept.note or {f"lpips_{judge}" for judge in self.judges} - set(kept.scores)
        return None if lacking else kept

    def _weights_and_untrained(self, losses: list[str], seed: int) -> tuple[dict[str, float], TradeoffRow]:
        """Weight of each loss, and the row of the untrained model.

        Calibrated networks have about the same scale, so all get the recipe's weight. Uncalibrated distances are
        several times larger; their weight gives the untrained model the same loss as with calibration.
        """
        nets = [loss.partition(":")[0] for loss in losses if loss.endswith(f":{BASELINE}")]
        nets = [net for net in nets if self._is_available(net)]
        scales = [
            PerceptualScores(
                net, data_range=(0, 1), metrics=["lpips"], calibrated=calibrated, prefix=f"{_SCALE}{net}_{calibrated}_"
            )
            for net in nets
            for calibrated in (True, False)
        ]
        row, recipe = self._validate(TradeoffRow(UNTRAINED, seed), scales)
        weight = float(recipe.model.hparams["loss_weight"])
        self.adversarial_weight = float(recipe.model.hparams.get(_ADVERSARIAL, 0)) or self.recipe[0].adversarial_weight
        weights = {loss: 0.0 if loss in (PIXEL, UNTRAINED) else weight for loss in losses}
        for net in nets:
            scored = recipe.trainer.callback_metrics
            one, two = (float(scored[f"val/{_SCALE}{net}_{calibrated}_lpips"]) for calibrated in (True, False))
            weights[f"{net}:{BASELINE}"] = weight * one / two
        return weights, row

    def _row(self, row: TradeoffRow, weights: dict[str, float], report: ProgressCallback) -> TradeoffRow:
        """Train and validate; on failure, a row with the reason."""
        kept = self.kept.get((row.loss, row.seed), row)
        adversarial = self.adversarial_weight if row.loss.endswith(GAN) else 0.0
        row = replace(row, weight=weights[row.reconstruction], seconds=kept.seconds, adversarial=adversarial)
        if row.reconstruction != PIXEL and not self._is_available(row.net):
            return replace(row, note=f"skipped: the backbone of {row.net} is not on this machine")
        try:
            if not self._checkpoint(row).exists():
                row = self._train(row, report)
            return self._validate(row, [])[0]
        except Exception as error:
            warnings.warn(f"{row.stem}: {type(error).__name__}: {error}", stacklevel=2)
            return replace(row, note=f"failed: {type(error).__name__}")

    def _is_available(self, net: str) -> bool:
        given = any(option.startswith("--model.loss_weights") for option in self.options)
        return get_backbone(net).is_available or given

    def _adversarial_option(self, row: TradeoffRow) -> list[str]:
        has_discriminator = can_be_adversarial(self.recipe[1])
        return [f"--model.{_ADVERSARIAL}={row.adversarial}"] if has_discriminator else []

    def _checkpoint(self, row: TradeoffRow) -> Path:
        return self.out / f"{row.stem}.ckpt"

    def _train(self, row: TradeoffRow, report: ProgressCallback) -> TradeoffRow:
        loss = [f"--model.loss_weight={row.weight}", f"--seed_everything={row.seed}", "--schedule.final=null"]
        loss += self._adversarial_option(row)
        if row.reconstruction != PIXEL:
            calibrated = "false" if row.reconstruction.endswith(BASELINE) else "true"
            loss += [f"--model.loss_net={row.net}", f"--model.loss_calibrated={calibrated}"]
        without = ["checkpoint", "scores", "gallery", "images", *["schedule"] * (row.reconstruction == PIXEL)]
        no_validation = ["--trainer.limit_val_batches=0", "--trainer.num_sanity_val_steps=0"]
        start = time.monotonic()
        trained = self._call("fit", [*loss, *no_validation], without, [_SameBatches(row, report)])
        row = replace(row, seconds=time.monotonic() - start)
        with atomic_write(self._checkpoint(row)) as temporary:
            trained.trainer.save_checkpoint(temporary, weights_only=True)
        return row

    def _validate(self, row: TradeoffRow, extra: list[PerceptualScores]) -> tuple[TradeoffRow, ImageRecipeCLI]:
        judges = [PerceptualScores(net, data_range=(0, 1), metrics=["lpips"], prefix=f"{net}_") for net in self.judges]
        plain = PerceptualScores(data_range=(0, 1), metrics=["psnr", "ssim"])
        trained = [f"--ckpt_path={self._checkpoint(row)}", *self._adversarial_option(row)]
        checkpoint = [] if row.loss == UNTRAINED else trained
        images = _KeepImages(self.out, row.stem)
        without = ["checkpoint", "scores", "gallery", "schedule", "images"]
        more = [*checkpoint, f"--seed_everything={row.seed}", "--verbose=false"]
        recipe = self._call("validate", more, without, [plain, *judges, *extra, images])
        scores = {_score_name(name): float(value) for name, value in recipe.trainer.callback_metrics.items()}
        return replace(row, scores={name: value for name, value in scores.items() if _SCALE not in name}), recipe

    def _call(self, subcommand: str, more: list[str], without: list[str], callbacks: list[Any]) -> ImageRecipeCLI:
        off = ["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"]
        args = [subcommand, *self.options, *more, *(f"--trainer.{name}=false" for name in off), "--without", *without]
        cli, model, data, file = self.recipe
        silent = type(cli.__name__, (cli,), {"reports": False})
        options: dict[str, Any] = {"trainer_defaults": {"callbacks": callbacks}, "save_config_callback": None}
        ran = run_recipe(silent, model, data, file, args, **options)
        return cast(ImageRecipeCLI, ran)


def can_be_adversarial(model: type) -> bool:
    """Whether a model has the argument ``adversarial_weight``."""
    return _ADVERSARIAL in inspect.signature(model).parameters


def first_with_options(out: Path, options: list[str]) -> Path:
    """The first of ``out``, ``out-2``, ... that has no table, or one with these options of the recipe.

    Args:
        out: Default folder.
        options: Options of the recipe.
    """
    versions = (out.with_name(f"{out.name}-{number}") for number in itertools.count(2))
    return next(one for one in itertools.chain([out], versions) if _options_of(one) in (None, options))


def discard(out: Path) -> None:
    """Delete the table in `out`, and its trained models, so that every row is made anew.

    Args:
        out: Folder of a table; another is left as it is.
    """
    if _options_of(out) is not None:
        for path in (out / "tradeoff.csv", *out.glob("*.ckpt"), out / _SETTINGS):
            path.unlink(missing_ok=True)


def _options_of(out: Path) -> list[str] | None:
    """Options of the table in `out`; None if there is none."""
    path = out / _SETTINGS
    return list(json.loads(path.read_text())["options"]) if path.exists() else None


class _SameBatches(Callback):
    """Uses the same random numbers in every training, independent of the loss; reports progress."""

    def __init__(self, row: TradeoffRow, report: ProgressCallback) -> None:
        self.row, self.report, self.total = row, report, 0

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.total = int(trainer.estimated_stepping_batches)

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        torch.manual_seed((self.row.seed << 20) + trainer.current_epoch)  # no epoch of another seed

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.report(f"{self.row.loss}, seed {self.row.seed}", trainer.global_step, self.total)


class _KeepImages(Callback):
    """Writes input, target and prediction (named after the row) of the most detailed image in the first batch."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name

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
        if batch_idx or dataloader_idx or trainer.sanity_checking:
            return
        target = outputs["target"]
        detail = (target[..., 1:] - target[..., :-1]).abs().mean((1, 2, 3))
        chosen = int(detail.argmax())
        for name, key in ((self.name, "preds"), ("target", "target"), ("input", "input")):
            if key in outputs:
                save_image(self.folder / f"{name}.png", outputs[key][chosen])


def _score_name(metric: str) -> str:
    """``"val/alex_lpips"`` -> ``"lpips_alex"``."""
    name = metric.removeprefix("val/")
    return f"lpips_{name.removesuffix('_lpips')}" if name.endswith("_lpips") else name
