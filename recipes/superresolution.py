"""Superresolution x2, x3, x4 with LPIPS as loss, and LPIPS of another network as validation score.

Examples::

    lpips-lightning superresolution fit
    lpips-lightning superresolution fit --data.folder DIV2K/train --data.val_folder Set5
    lpips-lightning superresolution fit --data.realistic true --model.adversarial_weight 0.5
    lpips-lightning superresolution predict --ckpt_path last.ckpt --data.predict_folder small_images
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from pytorch_lightning.cli import LightningArgumentParser
from torch import Tensor, nn
from torchmetrics import MeanMetric
from typing_extensions import override

from lpips_lightning import PerceptualLoss
from lpips_lightning.distributed import dataset_indices
from lpips_lightning.functional.luma import luma_scores
from lpips_lightning.recipes.adversarial_module import AdversarialModule
from lpips_lightning.recipes.command import ImageRecipeCLI, run_recipe
from lpips_lightning.recipes.optimization import perceptual_loss, warmup_cosine
from lpips_lightning.recipes.superresolution_data import Scale, SuperResolutionData, check_scale

Batch = tuple[Tensor, Tensor, Sequence[str]]  # low, high, names


def upscale(low: Tensor, scale: int) -> Tensor:
    """Bicubic upscaling, the baseline; not clamped, so it can overshoot [0, 1] at edges.

    Args:
        low: Shape ``(N, 3, h, w)``, range [0, 1].
        scale: Scale factor.

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
    """EDSR baseline (Lim et al. 2017, arXiv:1707.02921) that predicts the residual of bicubic upscaling.

    The paper's baseline has 16 blocks of 64 features. The bicubic skip connection is our addition: colors and flat
    areas are right from the first step, which helps in a training of minutes.

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
        # The untrained network is bicubic upscaling; random filters would cost the first hundred steps.
        for parameter in self.tail.parameters():
            nn.init.zeros_(parameter)

    @override
    def forward(self, low: Tensor) -> Tensor:
        """Upscale ``(N, 3, h, w)`` in [0, 1] to ``(N, 3, h * scale, w * scale)``, not clamped."""
        features = self.head(low - 0.5)
        return upscale(low, self.scale) + self.tail(self.up(features + self.body(features)))


class SuperResolution(AdversarialModule):
    """EDSR trained with ``pixel_weight * L1 + loss_weight * LPIPS``, and a discriminator on request.

    In ``test`` it logs PSNR and SSIM as papers report them (see `luma_scores`), ``test/psnr_y`` and ``test/ssim_y``,
    and those of bicubic upscaling, ``test/bicubic_psnr_y`` and ``test/bicubic_ssim_y``. The untrained network is
    bicubic upscaling, so ``test`` without a checkpoint gives the LPIPS of bicubic.

    All arguments are plain values, so a checkpoint loads with ``weights_only=True`` and contains the loss settings; its
    only parameters are the network's and the discriminator's.

    Args:
        scale: 2, 3 or 4.
        n_resblocks: Residual blocks of the network.
        n_feats: Channels of the network.
        res_scale: Factor on each block's residual.
        pixel_weight: Weight of the L1 distance, images on [0, 1].
        loss_weight: Weight of LPIPS in the loss; 0 trains on the pixel loss only.
        loss_net: Network of the loss.
        loss_calibrated: False for the uncalibrated distance ("baseline" in the paper).
        loss_weights: Backbone weights of the loss: a path, ``"random"``, or None for torchvision's.
        lr: Highest learning rate of Adam.
        warmup_steps: Linear warm-up to `lr`; then cosine decay to 0.
        adversarial_weight: Weight of the adversarial loss, relative to the gradient of L1 and LPIPS; 0 for none.
        adversarial_start: Steps without adversarial loss.
        discriminator_layers: Convolutions of stride 2 of the discriminator.
        discriminator_channels: Channels of its first layer.
        discriminator_lr: Highest learning rate of the discriminator.

    Raises:
        ValueError: If `scale` is not 2, 3 or 4, or an argument of the discriminator is out of its range.
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
        lr: float = 1e-3,
        warmup_steps: int = 50,
        adversarial_weight: float = 0.0,
        adversarial_start: int = 0,
        discriminator_layers: int = 2,
        discriminator_channels: int = 32,
        discriminator_lr: float = 1e-3,
    ) -> None:
        super().__init__()
        check_scale(scale)
        self.save_hyperparameters()
        self.network = EDSR(scale, n_resblocks, n_feats, res_scale).to(memory_format=torch.channels_last)
        self.perceptual: PerceptualLoss | None = None
        names = ("psnr_y", "ssim_y", "bicubic_psnr_y", "bicubic_ssim_y")
        self.test_scores: Any = nn.ModuleDict({name: MeanMetric() for name in names})
        self.add_discriminator()

    @override
    def setup(self, stage: str) -> None:
        # Not in __init__, so that a checkpoint loads and upscales images without backbone weights.
        if stage == "fit" and self.perceptual is None:
            self.perceptual = perceptual_loss(self.hparams)

    @override
    def forward(self, low: Tensor) -> Tensor:
        """Upscale ``(N, 3, h, w)`` in [0, 1] to ``(N, 3, h * scale, w * scale)`` in [0, 1]."""
        return self.network(low).clamp(0, 1)

    def losses(self, prediction: Tensor, high: Tensor) -> dict[str, Tensor]:
        """Loss terms of a batch: ``train/loss`` is the weighted sum, ``train/perceptual`` is LPIPS times its weight."""
        parts = {"train/l1": F.l1_loss(prediction, high)}
        loss = self.hparams["pixel_weight"] * parts["train/l1"]
        if self.perceptual is not None and self.perceptual.weight:
            # Clamp for the backbone, whose input range is [0, 1]; L1 penalizes values outside the range.
            parts["train/perceptual"] = self.perceptual(prediction.clamp(0, 1), high)
            loss = loss + parts["train/perceptual"]
        return {"train/loss": loss, **parts}

    @override
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        low, high, _ = batch
        prediction = self.network(low)
        losses = self.losses(prediction, high)
        losses = self.with_adversarial(losses, prediction, high, self.network.tail.weight)
        self.log_dict({name: value.detach() for name, value in losses.items()}, prog_bar=True)
        return losses["train/loss"]

    @override
    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        low, high, _ = batch
        return {"input": low, "preds": self(low), "target": high}

    @override
    def on_test_epoch_start(self) -> None:
        self.tested = 0

    @override
    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        images = self.validation_step(batch, batch_idx)
        scale, (low, high, _) = self.hparams["scale"], batch
        # Exclude images that a DistributedSampler repeats; they come last.
        count = len(dataset_indices(self.trainer, 0, self.tested, len(high)))
        self.tested += len(high)
        for kind, enlarged in (("", images["preds"]), ("bicubic_", upscale(low, scale))):
            for name, scores in zip(("psnr_y", "ssim_y"), luma_scores(enlarged, high, border=scale), strict=True):
                self.test_scores[kind + name].update(scores[:count])
                self.log(f"test/{kind}{name}", self.test_scores[kind + name])
        return images

    @override
    def predict_step(self, batch: tuple[Any, ...], batch_idx: int) -> Tensor:
        return self(batch[0])

    @override
    def configure_optimizers(self) -> Any:
        optimizer = self.adam(self.network.parameters())
        return warmup_cosine(self, optimizer, self.hparams["warmup_steps"])


class SuperResolutionCLI(ImageRecipeCLI):
    """Links the scales of model and data."""

    untrained = "bicubic"
    pixel = "L1"

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        parser.link_arguments("model.scale", "data.scale")


def main(args: list[str] | None = None) -> None:
    """Run the recipe: ``fit``, ``validate``, ``test`` or ``predict``, with defaults from ``superresolution.yaml``.

    Args:
        args: Command line without the program name; None takes ``sys.argv``.
    """
    run_recipe(SuperResolutionCLI, SuperResolution, SuperResolutionData, __file__, args)


def _conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel_size=3, padding=1)
