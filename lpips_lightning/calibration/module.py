"""LightningModule that calibrates LPIPS on human judgments, in the paper's modes lin, tune and scratch."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from datetime import date
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from typing_extensions import override

from lpips_lightning._lightning import LightningModule
from lpips_lightning.backbones.definition import Backbone
from lpips_lightning.backbones.loading import version_name
from lpips_lightning.calibration.export import Rescale, rescale_factor, write_calibration
from lpips_lightning.calibration.model import Initialization, Mode, RankNetwork, TrainableLPIPS
from lpips_lightning.calibration.schedule import learning_rate_factor, step_seed
from lpips_lightning.distributed import dataset_indices
from lpips_lightning.images.ranges import RangeChecker
from lpips_lightning.metrics.judgments import HumanCeiling, JNDScore, TwoAFCScore

Batch = dict[str, Any]
_KINDS = ("", "2afc", "jnd")  # of a set; empty before its first batch


class PerceptualCalibration(LightningModule):
    """Trains LPIPS to predict which of two images people find nearer to a reference (Zhang et al. 2018, section 3).

    Batches are dicts. Triplets: ``ref``, ``p0``, ``p1``, shape ``(N, 3, H, W)`` on [-1, 1], and ``judge`` ``(N,)``, the
    fraction of people who find `p1` nearer. Pairs, for validation and test only: ``p0``, ``p1`` and ``same`` ``(N,)``,
    the fraction who saw no difference. For a custom backbone, images have its channels, and any values if it has no
    range (`lpips_lightning.data.TensorTriplets` holds such triplets). The defaults are the paper's, with ``max_epochs``
    10 and batches of 50 triplets of 64 x 64 pixels.

    Logs ``train/loss``; ``val/<set>/2afc`` for every set of triplets and their mean ``val/2afc``; ``val/<set>/jnd`` for
    every set of pairs and their mean ``val/jnd``; tests log the same below ``test/``. Set names are the data module's
    ``val_names`` and ``test_names`` if it has them, otherwise loader indices.

    A training that resumes from a checkpoint gives bit-equal weights on the CPU if the data come in the same order (see
    `lpips_lightning.data.samplers.ResumableLoader`): dropout masks depend only on seed, epoch, batch index and rank.

    In mode ``"lin"`` the frozen backbone is in evaluation mode on purpose; Lightning warns about this at the start.

    Args:
        net_type: As for `LPIPS`.
        mode: ``"lin"``: trains the calibration only. ``"tune"``: trains calibration and backbone. ``"scratch"``: trains
            both, with the backbone initialized with Gaussian weights.
        version: ``"0.1"``, or ``"0.0"``, which does not scale its input.
        weights: Backbone weights: a path, None to look them up, or ``"random"``; None with mode ``"scratch"``.
        init: Initial calibration: ``"random"`` as in the paper, or ``"official"``.
        lr: Learning rate of Adam.
        betas: Betas of Adam.
        constant_epochs: Epochs at the full learning rate.
        decay_epochs: Epochs of linear decay that follow.
        dropout: Probability to drop a squared difference before the calibration.
        seed: Random seed of initialization and dropout.

    Attributes:
        network: The trained LPIPS; registered as a submodule, unlike elsewhere in this package.
        rank: The rank network, needed for training only.
        calibration_scores: 2AFC score in [0, 1] by set, from the last validation or test.
        human_ceilings: Human ceiling of the 2AFC score in [0, 1] by set.
        jnd_scores: JND average precision in [0, 1] by set.
        jnd_curves: Recall and precision of the JND curve by set.

    Raises:
        ValueError: If an argument is invalid.
        WeightsError: If weights are missing, damaged or of another architecture.
    """

    def __init__(
        self,
        net_type: str | Backbone = "alex",
        mode: Mode = "lin",
        version: str | float = "0.1",
        weights: str | None = None,
        init: Initialization = "random",
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.5, 0.999),
        constant_epochs: int = 6,
        decay_epochs: int = 4,
        dropout: float = 0.5,
        seed: int = 0,
    ) -> None:
        super().__init__()
        version = version_name(version)
        # A custom Backbone object in the hyperparameters would break loading with weights_only=True.
        self.save_hyperparameters(ignore=["net_type"] if isinstance(net_type, Backbone) else [])
        self.network = TrainableLPIPS(
            net_type, version=version, weights=weights, mode=mode, init=init, dropout=dropout, seed=seed
        )
        self.rank = RankNetwork(seed)
        self.calibration_scores: dict[str, float] = {}
        self.human_ceilings: dict[str, float] = {}
        self.jnd_scores: dict[str, float] = {}
        self.jnd_curves: dict[str, tuple[Tensor, Tensor]] = {}
        self._sets: list[_SetScores] = []
        self._ranges = RangeChecker(immediate=True)

    @property
    def calibration(self) -> dict[str, Tensor]:
        """Current weights ``(C,)`` by layer name."""
        return self.network.calibration

    @override
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Distances ``(N,)`` between images ``(N, 3, H, W)`` on [-1, 1]."""
        (distance,) = self.network(x, y)
        return distance

    @override
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        seed = step_seed(self.hparams["seed"], self.current_epoch, batch_idx, self.global_rank)
        d0, d1 = self._distances(batch, batch_idx, Generator(self.device).manual_seed(seed))
        judge = batch["judge"].to(d0.dtype)
        loss = F.binary_cross_entropy_with_logits(self.rank(d0, d1), judge)
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=len(judge))
        return loss

    @override
    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        # Not in on_train_batch_end: a checkpoint may be written before that hook.
        super().optimizer_step(*args, **kwargs)
        self.network.clamp_calibration()

    @override
    def on_validation_epoch_start(self) -> None:
        self._start_scores()

    @override
    def on_test_epoch_start(self) -> None:
        self._start_scores()

    @override
    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._update(batch, batch_idx, dataloader_idx)

    @override
    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._update(batch, batch_idx, dataloader_idx)

    @override
    def on_validation_epoch_end(self) -> None:
        self._finish_scores("val")

    @override
    def on_test_epoch_end(self) -> None:
        self._finish_scores("test")

    @override
    def configure_optimizers(self) -> Any:
        options = self.hparams
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        optimizer = torch.optim.Adam(trained, lr=options["lr"], betas=tuple(options["betas"]))

        def factor(epoch: int) -> float:
            return learning_rate_factor(epoch, options["constant_epochs"], options["decay_epochs"])

        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": LambdaLR(optimizer, factor), "interval": "epoch"}}

    def export(
        self,
        path: str | os.PathLike[str],
        rescale_to: Rescale | None = None,
        pairs: Iterable[tuple[Tensor, Tensor]] | None = None,
    ) -> Path:
        """Write the trained weights to a file for `LPIPS`, metric, loss and command line.

        In mode ``"lin"`` the file contains the calibration: ``LPIPS(net_type, calibration=path)``. In the other modes
        it contains backbone and calibration: ``LPIPS(net_type, weights=path)``.

        Args:
            path: Output ``.safetensors`` file, written atomically.
            rescale_to: ``"official"`` scales the calibration so that the mean distance over `pairs` equals that of the
                official calibration and backbone; known thresholds keep their meaning, rankings and scores do not
                change. None keeps the scale from training, which is arbitrary.
            pairs: Batches of two images ``(N, 3, H, W)`` on [-1, 1], for rescaling.

        Returns:
            Path of the file.

        Raises:
            ValueError: If the path has another suffix, or there are no pairs to rescale over.
        """
        factor = rescale_factor(self.network, self._net_type, rescale_to, pairs or ())
        return write_calibration(
            path, self.network, factor, self._record() | {"rescale_to": rescale_to, "factor": factor}
        )

    @property
    def _net_type(self) -> str:
        return self.network.record.name

    def _record(self) -> dict[str, Any]:
        from lpips_lightning import __version__

        trainer = self._trainer
        data = getattr(trainer, "datamodule", None)
        scores = {"2afc": self.calibration_scores, "human": self.human_ceilings, "jnd": self.jnd_scores}
        return {
            "net_type": self._net_type,
            **{name: self.hparams[name] for name in ("mode", "version", "init", "lr", "dropout", "seed")},
            "data": getattr(data, "description", type(data).__name__ if data is not None else "not recorded"),
            "epochs": trainer.current_epoch if trainer else 0,
            "steps": trainer.global_step if trainer else 0,
            "scores": {
                kind: {name: round(value, 6) for name, value in found.items()} for kind, found in scores.items()
            },
            "date": date.today().isoformat(),
            "lpips_lightning": __version__,
        }

    def _distances(self, batch: Batch, batch_idx: int, generator: Generator | None = None) -> tuple[Tensor, ...]:
        """Distances of candidates to references for triplets, or within pairs."""
        names = ("ref", "p0", "p1") if "judge" in batch else ("p0", "p1")
        if missing := [name for name in names if name not in batch]:
            raise ValueError(
                f"batch: expected ref, p0, p1 and judge, or p0, p1 and same, got {', '.join(map(str, batch))}"
                f" without {', '.join(missing)}"
            )
        record, policy = self.network.record, self.network.images
        for other in names[1:]:
            policy.check_pair(batch[names[0]], batch[other], (names[0], other), record.name, record.smallest_side)
        if batch_idx == 0:  # synchronizes the device, so only once per epoch
            for name in names:
                self._ranges.observe(batch[name], name, record.value_range, hints=policy.hints)
        images: list[Tensor] = [batch[name] for name in names]
        distances: tuple[Tensor, ...] = self.network(*images, generator=generator)
        return distances

    def _start_scores(self) -> None:
        trainer, stage = self.trainer, "test" if self.trainer.testing else "val"
        counts = trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches
        counts = trainer.num_test_batches if stage == "test" else counts
        names = _set_names(getattr(trainer, "datamodule", None), stage, len(counts))
        self._sets = [_SetScores(name).to(self.device) for name in names]

    def _update(self, batch: Batch, batch_idx: int, dataloader_idx: int) -> None:
        distances, part = self._distances(batch, batch_idx), self._sets[dataloader_idx]
        # Exclude the padding of a distributed sampler, which comes last.
        count = len(dataset_indices(self.trainer, dataloader_idx, part.seen, len(distances[0])))
        judged: Batch = {name: batch[name][:count] for name in ("judge", "same") if name in batch}
        part.update([distance[:count] for distance in distances], judged)
        part.seen += len(batch["p0"])

    def _finish_scores(self, stage: str) -> None:
        if self.trainer.sanity_checking:
            return
        self._sync_kinds()
        for kind, scores in (("2afc", self.calibration_scores), ("jnd", self.jnd_scores)):
            scores.clear()
            for part in self._sets:
                if part.kind == kind:
                    scores[part.name] = part.score()
                    self.log(f"{stage}/{part.name}/{kind}", scores[part.name], sync_dist=True)
            if scores:
                self.log(f"{stage}/{kind}", sum(scores.values()) / len(scores), prog_bar=True, sync_dist=True)
        self.human_ceilings = {part.name: float(part.ceiling.compute()) for part in self._sets if part.kind == "2afc"}
        self.jnd_curves = {part.name: part.curve() for part in self._sets if part.kind == "jnd"}

    def _sync_kinds(self) -> None:
        """Share the kinds of sets between ranks: all ranks compute the scores, including ranks without a batch."""
        local = torch.tensor([_KINDS.index(part.kind) for part in self._sets], dtype=torch.long, device=self.device)
        reduced = cast(Tensor, self.trainer.strategy.reduce(local, reduce_op="max"))
        for part, code in zip(self._sets, reduced.tolist(), strict=True):
            part.kind = _KINDS[code]


class _SetScores(nn.Module):
    """Scores of one set; its first batch decides whether it has triplets or pairs."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name, self.kind, self.seen = name, _KINDS[0], 0
        self.afc, self.ceiling, self.jnd = TwoAFCScore(), HumanCeiling(), JNDScore()

    def update(self, distances: Sequence[Tensor], batch: Batch) -> None:
        """Add the distances of a batch."""
        kind = "2afc" if "judge" in batch else "jnd"
        if self.kind not in ("", kind):
            raise ValueError(f"batch: expected triplets or pairs in {self.name}, got both")
        self.kind = kind
        if kind == "2afc":
            self.afc.update(distances[0], distances[1], batch["judge"])
            self.ceiling.update(batch["judge"])
        else:
            self.jnd.update(distances[0], batch["same"])

    def score(self) -> float:
        """2AFC score or JND average precision in [0, 1], over all ranks."""
        return float((self.afc if self.kind == "2afc" else self.jnd).compute())

    def curve(self) -> tuple[Tensor, Tensor]:
        """JND recall and precision over all ranks, on the CPU."""
        with self.jnd.sync_context(dist_sync_fn=self.jnd.dist_sync_fn, should_sync=self.jnd._to_sync):
            recall, precision = self.jnd.curve()
        return recall.cpu(), precision.cpu()


def _set_names(data: Any, stage: str, count: int) -> list[str]:
    names = getattr(data, f"{stage}_names", None)
    if names is None or len(names) != count:
        return [str(index) for index in range(count)]
    return [str(name).removeprefix("2afc/").removeprefix("jnd/") for name in names]  # log names end with the kind
