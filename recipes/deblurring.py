"""Deblurring with LPIPS as loss: a sharp image from one that camera shake and moving objects have blurred.

Examples::

    lpips-lightning deblurring fit
    lpips-lightning deblurring fit --data.layout pairs --data.folder GOPRO_Large --data.num_workers 8
    lpips-lightning deblurring fit --data.layout clips --data.folder frames --data.frames 5
    lpips-lightning deblurring predict --ckpt_path best.ckpt --data.predict_folder blurred
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from lpips_lightning import PerceptualLoss
from lpips_lightning.recipes.adversarial_module import AdversarialModule
from lpips_lightning.recipes.command import ImageRecipeCLI, run_recipe
from lpips_lightning.recipes.deblurring_data import DeblurringData
from lpips_lightning.recipes.optimization import perceptual_loss, warmup_cosine

Batch = tuple[Tensor, Tensor, Sequence[str]]  # blurred, sharp, names


class Deblurred(NamedTuple):
    """Result of `DeblurringNetwork`, not clamped.

    Attributes:
        image: Sharp image, shape ``(N, 3, H, W)``.
        coarse: Sharp images at 1/2, 1/4, ... of the padded size, the finest first.
    """

    image: Tensor
    coarse: list[Tensor]


class ResidualBlock(nn.Module):
    """Convolution, ReLU, convolution, added to the input; no normalization (Nah et al. 2017, figure 3b)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(_conv(channels, channels), nn.ReLU(inplace=True), _conv(channels, channels))

    @override
    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class UNet(nn.Module):
    """U-Net of residual blocks from blurred image and estimate to a residual, the same for every scale.

    It works at half the image's size and below, which costs a quarter and sees twice as far.

    Args:
        channels: Channels at 1/2, 1/4, ... of the image's size.
        blocks: Residual blocks at each size; on the way down and up at all but the coarsest.
    """

    def __init__(self, channels: Sequence[int], blocks: int) -> None:
        super().__init__()
        self.head = _conv(6 * 4, channels[0])
        self.first = nn.ModuleList(nn.Sequential(*_blocks(one, blocks)) for one in channels[:-1])
        self.down = nn.ModuleList(
            nn.Sequential(_conv(one, two, stride=2), nn.ReLU(inplace=True)) for one, two in itertools.pairwise(channels)
        )
        self.middle = nn.Sequential(*_blocks(channels[-1], blocks))
        self.up = nn.ModuleList(
            nn.Sequential(*_blocks(two, blocks), nn.Conv2d(two, 4 * one, 1), nn.PixelShuffle(2))
            for one, two in itertools.pairwise(channels)
        )
        self.last = nn.Sequential(*_blocks(channels[0], blocks))
        self.tail = _conv(channels[0], 3 * 4)
        # The untrained network returns the blurred image; random filters would cost the first hundred steps.
        for parameter in self.tail.parameters():
            nn.init.zeros_(parameter)

    @override
    def forward(self, images: Tensor) -> Tensor:
        """Residual ``(N, 3, H, W)`` of blurred image and estimate ``(N, 6, H, W)``."""
        features = self.head(F.pixel_unshuffle(images - 0.5, 2))
        passed = []
        for first, down in zip(self.first, self.down, strict=True):
            passed.append(first(features))
            features = down(passed[-1])
        features = self.middle(features)
        for up, skip in zip(self.up[::-1], passed[::-1], strict=True):
            features = up(features) + skip
        return F.pixel_shuffle(self.tail(self.last(features)), 2)


class DeblurringNetwork(nn.Module):
    """Coarse-to-fine deblurring with one U-Net for all scales (Nah et al. 2017; shared weights: Tao et al. 2018).

    Each scale gets the blurred image and the sharp one of the next coarser scale, enlarged, and adds a residual to the
    blurred image. Long motion is short at a coarse scale.

    Args:
        channels: Channels of the U-Net at 1/2, 1/4, ... of a scale's size.
        blocks: Residual blocks at each size.
        scales: Number of scales, each half the size of the one before.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(self, channels: Sequence[int] = (40, 80, 96), blocks: int = 1, scales: int = 2) -> None:
        super().__init__()
        if not channels or min(channels) < 1:
            raise ValueError(f"channels: expected positive numbers, got {list(channels)}")
        for argument, count in (("blocks", blocks), ("scales", scales)):
            if count < 1:
                raise ValueError(f"{argument}: expected at least 1, got {count}")
        self.scales, self.stride = scales, 2 ** (len(channels) + scales - 1)
        self.net = UNet(channels, blocks)

    @override
    def forward(self, blurred: Tensor) -> Deblurred:
        """Deblur ``(N, 3, H, W)`` in [0, 1] of any size."""
        height, width = blurred.shape[-2:]
        pyramid = [self.padded(blurred)]
        for _ in range(1, self.scales):
            pyramid.append(F.avg_pool2d(pyramid[-1], 2))
        made: list[Tensor] = []
        for image in reversed(pyramid):
            estimate = _twice(made[0]) if made else image
            made.insert(0, image + self.net(torch.cat([image, estimate], 1)))
        return Deblurred(made[0][..., :height, :width], made[1:])

    def padded(self, images: Tensor) -> Tensor:
        """Images with the last row and column repeated up to multiples of the stride."""
        height, width = images.shape[-2:]
        pads = [0, -width % self.stride, 0, -height % self.stride]
        return F.pad(images, pads, mode="replicate") if any(pads) else images


class Deblurring(AdversarialModule):
    """`DeblurringNetwork` trained with ``pixel_weight * L1 + loss_weight * LPIPS``, and a discriminator on request.

    Its steps return images for `PerceptualScores`. The untrained network returns the blurred image, so ``validate``
    without a checkpoint gives the baseline.

    All arguments are plain values, so a checkpoint loads with ``weights_only=True`` and contains the loss settings; its
    only parameters are those of the network and the discriminator.

    Args:
        channels: Channels of the network at 1/2, 1/4, ... of a scale's size.
        blocks: Residual blocks at each size.
        scales: Number of scales.
        pixel_weight: Weight of the L1 distance, images on [0, 1].
        coarse_weight: Weight of the L1 distance at each coarser scale.
        loss_weight: Weight of LPIPS in the loss; 0 trains on the pixel loss only.
        loss_net: Network of the loss.
        loss_calibrated: False for the uncalibrated distance ("baseline" in the paper).
        loss_weights: Backbone weights of the loss: a path, ``"random"``, or None for torchvision's.
        adversarial_weight: Weight of the adversarial loss, relative to the gradient of the others; 0 for none.
        adversarial_start: Steps without adversarial loss.
        discriminator_layers: Convolutions of stride 2 of the discriminator.
        discriminator_channels: Channels of its first layer.
        discriminator_lr: Highest learning rate of the discriminator.
        lr: Highest learning rate of Adam.
        warmup_steps: Linear warm-up to `lr`; then cosine decay to 0.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        channels: Sequence[int] = (40, 80, 96),
        blocks: int = 1,
        scales: int = 2,
        pixel_weight: float = 1.0,
        coarse_weight: float = 0.25,
        loss_weight: float = 1.0,
        loss_net: str = "embedded",
        loss_calibrated: bool = True,
        loss_weights: str | None = None,
        adversarial_weight: float = 0.0,
        adversarial_start: int = 800,
        discriminator_layers: int = 3,
        discriminator_channels: int = 32,
        discriminator_lr: float = 4e-4,
        lr: float = 1e-3,
        warmup_steps: int = 50,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.network = DeblurringNetwork(channels, blocks, scales).to(memory_format=torch.channels_last)
        self.perceptual: PerceptualLoss | None = None
        self.add_discriminator()

    @override
    def setup(self, stage: str) -> None:
        # Not in __init__, so that a checkpoint loads and predicts without backbone weights.
        if stage == "fit" and self.perceptual is None:
            self.perceptual = perceptual_loss(self.hparams)

    @override
    def forward(self, blurred: Tensor) -> Tensor:
        """Deblur ``(N, 3, H, W)`` in [0, 1] of any size; the result is in [0, 1]."""
        made: Deblurred = self.network(blurred)
        return made.image.clamp(0, 1)

    def losses(self, made: Deblurred, sharp: Tensor) -> dict[str, Tensor]:
        """Loss terms of a batch: ``train/loss`` is the weighted sum, ``train/perceptual`` is LPIPS times its weight.

        Args:
            made: What the network made.
            sharp: The sharp images, shape ``(N, 3, H, W)``.
        """
        parts = {"train/l1": F.l1_loss(made.image, sharp)}
        loss = self.hparams["pixel_weight"] * parts["train/l1"]
        # Padded like the blurred images: at coarse scales the network makes images of the padded size.
        padded = self.network.padded(sharp)
        small = [F.adaptive_avg_pool2d(padded, (image.shape[2], image.shape[3])) for image in made.coarse]
        parts["train/coarse"] = sum(map(F.l1_loss, made.coarse, small), torch.zeros_like(loss))
        loss = loss + self.hparams["coarse_weight"] * parts["train/coarse"]
        if self.perceptual is not None and self.perceptual.weight:
            # Clamp for the backbone, whose input range is [0, 1]; L1 penalizes values outside the range.
            parts["train/perceptual"] = self.perceptual(made.image.clamp(0, 1), sharp)
            loss = loss + parts["train/perceptual"]
        return {"train/loss": loss, **parts}

    @override
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        blurred, sharp, _ = batch
        made: Deblurred = self.network(blurred)
        losses = self.losses(made, sharp)
        losses = self.with_adversarial(losses, made.image, sharp, self.network.net.tail.weight)
        self.log_dict({name: value.detach() for name, value in losses.items()}, prog_bar=True)
        return losses["train/loss"]

    @override
    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        blurred, sharp, _ = batch
        return {"input": blurred, "preds": self(blurred), "target": sharp}

    @override
    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        return self.validation_step(batch, batch_idx)

    @override
    def predict_step(self, batch: tuple[Any, ...], batch_idx: int) -> Tensor:
        return self(batch[0])

    @override
    def configure_optimizers(self) -> Any:
        return warmup_cosine(self, self.adam(self.network.parameters()), self.hparams["warmup_steps"])


class DeblurringCLI(ImageRecipeCLI):
    """CLI of the image recipes."""

    untrained = "blurred"
    pixel = "L1"


def main(args: list[str] | None = None) -> None:
    """Run the recipe: ``fit``, ``validate``, ``test``, ``predict`` or ``tradeoff``; defaults from the YAML file.

    Args:
        args: Command line without the program name; None takes ``sys.argv``.
    """
    run_recipe(DeblurringCLI, Deblurring, DeblurringData, __file__, args)


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, 1)


def _blocks(channels: int, count: int) -> list[nn.Module]:
    return [ResidualBlock(channels) for _ in range(count)]


def _twice(image: Tensor) -> Tensor:
    return F.interpolate(image, scale_factor=2, mode="bilinear", align_corners=False)
