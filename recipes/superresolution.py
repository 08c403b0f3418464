"""Superresolution x2, x3, x4 with LPIPS as its loss, and LPIPS from another network as its validation score.

Examples::

    lpips-lightning superresolution fit
    lpips-lightning superresolution fit --data.folder DIV2K/train --data.val_folder Set5
    lpips-lightning superresolution predict --ckpt_path last.ckpt --data.predict_folder small_pictures
"""

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import BasePredictionWriter, ModelCheckpoint
from pytorch_lightning.cli import LightningArgumentParser
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import MetricCollection
from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure
from typing_extensions import override

from lpips_lightning import LearnedPerceptualImagePatchSimilarity, PerceptualLoss
from lpips_lightning.pictures import write_image
from lpips_lightning.recipes.command import RecipeCLI, run_recipe
from lpips_lightning.recipes.superresolution_data import Scale, SuperResolutionData, check_scale

__all__ = ["EDSR", "PictureWriter", "SuperResolution", "main", "upscale"]

Batch = tuple[Tensor, Tensor, Sequence[str]]  # low, high, names


def upscale(low: Tensor, scale: int) -> Tensor:
    """Bicubic enlargement, the baseline; not clamped, so it can overshoot [0, 1] at edges.

    Args:
        low: Shape ``(N, 3, h, w)``, range [0, 1].
        scale: How many times larger.

    Returns:
        Shape ``(N, 3, h * scale, w * scale)``.
    """
    size = [low.shape[-2] * scale, low.shape[-1] * scale]
    return F.interpolate(low, size=size, mode="bicubic", antialias=True, align_corners=False)


class ResidualBlock(nn.Module):
    """Convolution, ReLU, convolution, scaled and added to the input; no normalization (Lim et al. 2017, figure 2c)."""

    def __init__(self, n_feats: int, res_scale: float) -> None:
        super().__init__()
        self.body = nn.Sequential(_conv(n_feats, n_feats), nn.ReLU(inplace=True), _conv(n_feats, n_feats))
        self.res_scale = res_scale

    @override
    def forward(self, x: Tensor) -> Tensor:
        return x + self.res_scale * self.body(x)


class EDSR(nn.Module):
    """EDSR baseline (Lim et al. 2017, arXiv:1707.02921) that predicts what bicubic enlargement lacks.

    The paper's baseline has 16 blocks of 64 features. The skip over the whole network by bicubic enlargement is ours:
    colours and flat areas are right from the first step, which matters in a training of minutes.

    Args:
        scale: 2, 3 or 4.
        n_resblocks: Residual blocks at low resolution.
        n_feats: Channels of every block.
        res_scale: Factor on each block's residual; 0.1 keeps wide networks (256 features) stable.
    """

    def __init__(self, scale: int = 4, n_resblocks: int = 16, n_feats: int = 64, res_scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        self.head = _conv(3, n_feats)
        self.body = nn.Sequential(
            *(ResidualBlock(n_feats, res_scale) for _ in range(n_resblocks)), _conv(n_feats, n_feats)
        )
        stages = [2, 2] if scale == 4 else [scale]
        self.up = nn.Sequential(*(nn.Sequential(_conv(n_feats, n_feats * s * s), nn.PixelShuffle(s)) for s in stages))
        self.tail = _conv(n_feats, 3)
        # Untrained, the network is bicubic enlargement: noise from random filters would cost the first hundred steps.
        for parameter in self.tail.parameters():
            nn.init.zeros_(parameter)

    @override
    def forward(self, low: Tensor) -> Tensor:
        """Shape ``(N, 3, h, w)`` in [0, 1] -> ``(N, 3, h * scale, w * scale)``, not clamped."""
        features = self.head(low - 0.5)
        return upscale(low, self.scale) + self.tail(self.up(features + self.body(features)))


class SuperResolution(LightningModule):
    """EDSR trained with ``pixel_weight * L1 + loss_weight * LPIPS``; logs ``val/psnr``, ``val/ssim`` and ``val/lpips``.

    All arguments are plain values, so a checkpoint loads with ``weights_only=True`` and brings its loss settings along;
    it holds the network's parameters alone.

    Args:
        scale: 2, 3 or 4.
        n_resblocks: Residual blocks of the network.
        n_feats: Channels of the network.
        res_scale: Factor on each block's residual.
        pixel_weight: Weight of the L1 distance, images on [0, 1].
        loss_weight: Weight of LPIPS in the loss; 0 trains on pixels alone.
        loss_net: Network of the loss.
        loss_calibrated: False takes the uncalibrated distance ("baseline" in the paper).
        loss_weights: Trunk weights of the loss: a path, ``"random"``, or None to look them up.
        metric_net: Network of ``val/lpips``; a warning says so when it is the loss's own.
        metric_weights: Trunk weights of the metric, as `loss_weights`.
        lr: Highest learning rate of Adam.
        warmup_steps: Steps until `lr` is reached; from there it falls to 0 along a cosine.

    Raises:
        ValueError: If `scale` is not 2, 3 or 4.
    """

    def __init__(
        self,
        scale: Scale = 4,
        n_resblocks: int = 8,
        n_feats: int = 32,
        res_scale: float = 1.0,
        pixel_weight: float = 1.0,
        loss_weight: float = 0.05,
        loss_net: str = "embedded",
        loss_calibrated: bool = True,
        loss_weights: str | None = None,
        metric_net: str = "alex",
        metric_weights: str | None = None,
        lr: float = 1e-3,
        warmup_steps: int = 50,
    ) -> None:
        super().__init__()
        check_scale(scale)
        if loss_weight and loss_net == metric_net:
            warnings.warn(
                f"metric_net: expected another network than the loss's, got {metric_net!r} for both;"
                " val/lpips will flatter a model that was trained to lower it",
                stacklevel=2,
            )
        self.save_hyperparameters()
        self.network = EDSR(scale, n_resblocks, n_feats, res_scale).to(memory_format=torch.channels_last)

    @override
    def setup(self, stage: str) -> None:
        # Here and not in __init__: a checkpoint then loads, and enlarges pictures, where there are no trunk weights.
        options = self.hparams
        if stage == "fit" and not hasattr(self, "perceptual"):
            self.perceptual = PerceptualLoss(
                options["loss_net"],
                data_range=(0, 1),
                weight=options["loss_weight"],
                calibrated=options["loss_calibrated"],
                weights=options["loss_weights"],
            )
        if stage != "predict" and not hasattr(self, "val_scores"):
            lpips = LearnedPerceptualImagePatchSimilarity(
                options["metric_net"], data_range=(0, 1), weights=options["metric_weights"]
            )
            psnr = PeakSignalNoiseRatio(data_range=1.0, dim=(1, 2, 3))  # with dim: the mean of the pictures' PSNRs
            ssim = StructuralSimilarityIndexMeasure(data_range=1.0)
            scores = MetricCollection({"psnr": psnr, "ssim": ssim, "lpips": lpips})
            self.val_scores, self.test_scores = scores.clone(prefix="val/"), scores.clone(prefix="test/")

    @override
    def forward(self, low: Tensor) -> Tensor:
        """Shape ``(N, 3, h, w)`` in [0, 1] -> ``(N, 3, h * scale, w * scale)`` in [0, 1]."""
        return self.network(low).clamp(0, 1)

    def losses(self, low: Tensor, high: Tensor) -> dict[str, Tensor]:
        """A batch's ``train/loss``, the sum to lower, ``train/l1`` and ``train/perceptual``, LPIPS times its weight."""
        prediction = self.network(low)
        parts = {"train/l1": F.l1_loss(prediction, high)}
        loss = self.hparams["pixel_weight"] * parts["train/l1"]
        if self.perceptual.weight:
            # Clamped for the trunk, which knows no colours outside [0, 1]; L1 pulls back what leaves the range.
            parts["train/perceptual"] = self.perceptual(prediction.clamp(0, 1), high)
            loss = loss + parts["train/perceptual"]
        return {"train/loss": loss, **parts}

    @override
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        losses = self.losses(*batch[:2])
        self.log_dict({name: value.detach() for name, value in losses.items()}, prog_bar=True)
        return losses["train/loss"]

    @override
    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        return self._score(batch, self.val_scores)

    @override
    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        return self._score(batch, self.test_scores)

    @override
    def predict_step(self, batch: tuple[Any, ...], batch_idx: int) -> Tensor:
        return self(batch[0])

    def _score(self, batch: Batch, scores: MetricCollection) -> dict[str, Tensor]:
        low, high, _ = batch
        prediction = self(low)
        scores.update(prediction, high)
        self.log_dict(scores, on_step=False, on_epoch=True, prog_bar=True)
        return {"input": low, "preds": prediction, "target": high}  # for callbacks that show pictures

    @override
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.network.parameters(), lr=self.hparams["lr"])
        total, warmup = self.trainer.estimated_stepping_batches, self.hparams["warmup_steps"]

        # Not OneCycleLR: that one raises when a resumed run asks for more steps than the first run planned.
        def factor(step: int) -> float:
            progress = min(max(step - warmup, 0) / max(total - warmup, 1), 1.0)
            return min((step + 1) / (warmup + 1), 0.5 * (1 + math.cos(math.pi * progress)))

        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": LambdaLR(optimizer, factor), "interval": "step"}}


class PictureWriter(BasePredictionWriter):
    """Writes each enlarged picture as ``<folder>/<name>.png`` while ``predict`` runs.

    Args:
        folder: Made when needed; files of the same name are overwritten.
    """

    def __init__(self, folder: str = "outputs/superresolved") -> None:
        super().__init__(write_interval="batch")
        self.folder = folder

    @override
    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Tensor,
        batch_indices: Any,
        batch: tuple[Any, ...],
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        for name, picture in zip(batch[-1], prediction, strict=True):
            write_image(picture, Path(self.folder) / f"{name}.png")


class SuperResolutionCLI(RecipeCLI):
    """Adds ``--checkpoint.*`` and ``--pictures.*``, and gives data and model the same scale."""

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.add_lightning_class_args(PictureWriter, "pictures")
        parser.link_arguments("model.scale", "data.scale")


def main(args: list[str] | None = None) -> None:
    """Run the recipe: ``fit``, ``validate``, ``test`` or ``predict``, with the YAML beside this file as defaults.

    Args:
        args: Command line without the program's name; None takes ``sys.argv``.
    """
    run_recipe(SuperResolutionCLI, SuperResolution, SuperResolutionData, __file__, args)


def _conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel_size=3, padding=1)
