"""Colorization: a U-Net predicts a and b of Lab from L, trained with LPIPS of the colored image.

Examples::

    lpips-lightning colorization fit
    lpips-lightning colorization fit --data.folder photographs --data.held_out '[beach, house]'
    lpips-lightning colorization predict --ckpt_path last.ckpt --data.predict_folder gray_images
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from pytorch_lightning.cli import LightningArgumentParser
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection
from typing_extensions import override

from lpips_lightning import LPIPS, PerceptualLoss
from lpips_lightning.backbones.definition import get_backbone
from lpips_lightning.distances.lpips import unit_normalize
from lpips_lightning.distributed import dataset_indices
from lpips_lightning.recipes.adversarial_module import AdversarialModule
from lpips_lightning.recipes.colorization_data import ColorizationData, shrink
from lpips_lightning.recipes.colors import ColorDifference, Colorfulness, compose, into_gamut, split_lab
from lpips_lightning.recipes.command import ImageRecipeCLI, run_recipe
from lpips_lightning.recipes.optimization import perceptual_loss, warmup_cosine

Batch = tuple[Tensor, Sequence[str]]  # images, names

# Scale of a and b in the network output and the loss: most colors of photographs are then within [-1, 1].
_AB_SCALE = 50.0


class UNet(nn.Module):
    """U-Net (Ronneberger et al. 2015) from L to a and b, with features of a frozen network as additional input.

    The first level has half the image resolution, since colors vary slowly. A few photographs are not enough to learn
    objects and their possible colors; features of a frozen network on the gray image provide this knowledge. They are
    added at every level but the first.

    Args:
        n_feats: Channels of the first level; they double from level to level up to four times `n_feats`.
        n_levels: Number of levels; each has half the resolution of the previous one.
        features_net: Network of the additional features, see `LPIPS`; None for none.
        features_weights: Backbone weights of `features_net`: a path, ``"random"``, or None for torchvision's.
        dropout: Fraction of the features' channels that training sets to 0 in a step, and of the last level's.

    Raises:
        ValueError: If `n_feats` is below 1, `n_levels` below 2, or `dropout` not in [0, 1).
        WeightsError: If the backbone weights are missing.
    """

    def __init__(
        self,
        n_feats: int = 32,
        n_levels: int = 4,
        features_net: str | None = "embedded",
        features_weights: str | None = None,
        dropout: float = 0.3,
    ) -> None:
        super().__init__()
        for argument, count, fewest in (("n_feats", n_feats, 1), ("n_levels", n_levels, 2)):
            if count < fewest:
                raise ValueError(f"{argument}: expected at least {fewest}, got {count}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout: expected at least 0 and below 1, got {dropout}")
        self.dropout = nn.Dropout2d(dropout)
        widths = [n_feats * min(2**level, 4) for level in range(n_levels)]
        self.stem = nn.Conv2d(1, widths[0], kernel_size=6, stride=2, padding=2)
        self.down = nn.ModuleList(_block(a, b) for a, b in pairwise([widths[0], *widths]))
        self.features, self.feature_convs = None, None
        if features_net is not None:
            self.features = LPIPS(features_net, weights=features_weights, validate_args=False)
            channels = sum(get_backbone(features_net).channels)
            self.feature_convs = nn.ModuleList(nn.Conv2d(channels, width, kernel_size=1) for width in widths[:-1])
        self.up = nn.ModuleList(_block(a + b, a) for a, b in pairwise(widths))
        self.head = nn.Conv2d(widths[0], 2, kernel_size=1)
        for parameter in self.head.parameters():  # the untrained network leaves images gray
            nn.init.zeros_(parameter)

    @override
    def forward(self, lightness: Tensor) -> Tensor:
        """Map L, ``(N, 1, H, W)`` on [0, 100], to a and b in Lab units, ``(N, 2, H, W)``."""
        x = self.stem(lightness / 50 - 1)
        features = self._frozen_features(lightness)
        levels: list[Tensor] = []
        for level, block in enumerate(self.down):
            if level:
                x = F.avg_pool2d(x, 2, ceil_mode=True)
                if self.feature_convs is not None:
                    resized = _resized(features, (x.shape[-2], x.shape[-1]))
                    x = x + self.feature_convs[level - 1](self.dropout(resized))
            x = block(x)
            levels.append(x)
        x = self.dropout(x)
        for level in reversed(range(len(self.up))):
            x = F.interpolate(x, size=levels[level].shape[-2:], mode="bilinear", align_corners=False)
            x = self.up[level](torch.cat([levels[level], x], 1))
        ab = _AB_SCALE * self.head(x).float()  # float32 from here, also under autocast
        return F.interpolate(ab, size=lightness.shape[-2:], mode="bilinear", align_corners=False)

    @torch.no_grad()
    def _frozen_features(self, lightness: Tensor) -> list[Tensor]:
        """Features of every layer, normalized to unit length as in LPIPS; empty without `features_net`."""
        if self.features is None:
            return []
        gray = (lightness / 100).clamp(0, 1).expand(-1, 3, -1, -1)
        layers = self.features.encode(gray, data_range=(0, 1)).layers.values()
        # Times the square root of the channels: unit variance in every layer.
        return [unit_normalize(layer) * layer.shape[1] ** 0.5 for layer in layers]


class Colorization(AdversarialModule):
    """U-Net trained with ``pixel_weight * L1 of a and b + loss_weight * LPIPS of the colored image``.

    With `adversarial_weight` a PatchGAN discriminator also judges the colored images: see `AdversarialLoss`.

    Its steps return images for `PerceptualScores`; it logs ``val/ciede2000`` and ``val/colorfulness``, with
    ``val/colorfulness_truth`` and ``val/colorfulness_ratio`` (and ``test/...``). All arguments are plain values, so a
    checkpoint loads with ``weights_only=True`` and contains the loss settings; its only parameters are those of the
    U-Net and the discriminator.

    Args:
        n_feats: Channels of the U-Net's first level.
        n_levels: Levels of the U-Net.
        features_net: Network of the U-Net's additional features; None for none.
        features_weights: Backbone weights of `features_net`: a path, ``"random"``, or None for torchvision's.
        dropout: Dropout of the additional features and of the U-Net's last level.
        working_size: Largest shorter side, in pixels, of the U-Net's input. Larger images are downscaled, and the
            predicted a and b are upscaled; L keeps its resolution.
        pixel_weight: Weight of the L1 distance of a and b, in units of 50.
        chroma_weight: Weight of the difference in mean chroma, in units of 50. For uncertain colors, L1 and LPIPS favor
            pale ones; this term counteracts it.
        lightness_jitter: Logarithm of the largest random gamma of L in training. L on [0, 1] is raised to a power
            between exp(-lightness_jitter) and exp(lightness_jitter), so that colors depend on content more than on
            brightness.
        loss_weight: Weight of LPIPS in the loss; 0 trains without it.
        loss_net: Network of the loss.
        loss_calibrated: False for the uncalibrated distance ("baseline" in the paper).
        loss_weights: Backbone weights of the loss, as `features_weights`.
        lr: Highest learning rate of AdamW.
        weight_decay: Weight decay of AdamW.
        warmup_steps: Linear warm-up to `lr`; then cosine decay to 0.
        adversarial_weight: Weight of the adversarial loss, relative to the gradient of the others; 0 for none.
        adversarial_start: Steps without adversarial loss.
        discriminator_layers: Convolutions of stride 2 of the discriminator.
        discriminator_channels: Channels of its first layer.
        discriminator_lr: Highest learning rate of the discriminator.

    Raises:
        ValueError: If `n_feats` or `working_size` is below 1, `n_levels` below 2, or another argument out of its range.
    """

    def __init__(
        self,
        n_feats: int = 32,
        n_levels: int = 4,
        features_net: str | None = "embedded",
        features_weights: str | None = None,
        dropout: float = 0.3,
        working_size: int = 256,
        pixel_weight: float = 1.0,
        chroma_weight: float = 0.25,
        lightness_jitter: float = 0.3,
        loss_weight: float = 0.25,
        loss_net: str = "embedded",
        loss_calibrated: bool = True,
        loss_weights: str | None = None,
        lr: float = 1e-3,
        weight_decay: float = 1e-2,
        warmup_steps: int = 50,
        adversarial_weight: float = 0.0,
        adversarial_start: int = 100,
        discriminator_layers: int = 3,
        discriminator_channels: int = 32,
        discriminator_lr: float = 5e-4,
    ) -> None:
        super().__init__()
        if working_size < 1:
            raise ValueError(f"working_size: expected at least 1, got {working_size}")
        self.save_hyperparameters()
        network = UNet(n_feats, n_levels, features_net, features_weights, dropout)
        self.network = network.to(memory_format=torch.channels_last)
        self.perceptual: PerceptualLoss | None = None
        scores: dict[str, Metric | MetricCollection] = {
            "ciede2000": ColorDifference(),
            "colorfulness": Colorfulness("preds"),
            "colorfulness_truth": Colorfulness("target"),
            "colorfulness_ratio": Colorfulness("ratio"),
        }
        self.val_scores = MetricCollection(scores, prefix="val/")
        self.test_scores = self.val_scores.clone(prefix="test/")
        self.add_discriminator()

    @override
    def setup(self, stage: str) -> None:
        # Not in __init__, so that a checkpoint loads and colors images without the backbone of the loss.
        if stage == "fit" and self.perceptual is None:
            self.perceptual = perceptual_loss(self.hparams)

    @override
    def forward(self, images: Tensor) -> Tensor:
        """Color images ``(N, 3, H, W)`` in [0, 1]; only their lightness is used, and it is preserved."""
        lightness, _ = split_lab(images)
        ab = self.network(shrink(lightness, self.hparams["working_size"]))
        ab = F.interpolate(ab, size=lightness.shape[-2:], mode="bilinear", align_corners=False)
        return compose(lightness, into_gamut(lightness, ab)).clamp(0, 1)

    def losses(self, images: Tensor) -> dict[str, Tensor]:
        """Loss terms of a batch: ``train/loss`` is the weighted sum, ``train/perceptual`` is LPIPS times its weight."""
        return self._losses_and_images(images)[0]

    def _losses_and_images(self, images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Loss terms without the adversarial ones, and the colored images."""
        options = self.hparams
        lightness, ab = split_lab(images)
        gamma = torch.empty(len(lightness), 1, 1, 1, device=lightness.device)
        gamma.uniform_(-options["lightness_jitter"], options["lightness_jitter"]).exp_()
        prediction = self.network(100 * (lightness / 100).clamp(0, 1) ** gamma)
        # Clamp for backbone and discriminator; L1 penalizes colors outside the gamut.
        colored = compose(lightness, prediction).clamp(0, 1)
        chroma = (_mean_chroma(prediction) - _mean_chroma(ab)).abs().mean() / _AB_SCALE
        parts = {"train/l1": F.l1_loss(prediction, ab) / _AB_SCALE, "train/chroma": chroma}
        loss = options["pixel_weight"] * parts["train/l1"] + options["chroma_weight"] * chroma
        if self.perceptual is not None and self.perceptual.weight:
            parts["train/perceptual"] = self.perceptual(colored, images)
            loss = loss + parts["train/perceptual"]
        return {"train/loss": loss, **parts}, colored

    @override
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        losses, colored = self._losses_and_images(batch[0])
        losses = self.with_adversarial(losses, colored, batch[0], self.network.head.weight)
        self.log_dict({name: value.detach() for name, value in losses.items()}, prog_bar=True)
        return losses["train/loss"]

    @override
    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        return self._score(batch, batch_idx, self.val_scores)

    @override
    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        return self._score(batch, batch_idx, self.test_scores)

    @override
    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self(batch[0])

    def _score(self, batch: Batch, batch_idx: int, scores: MetricCollection) -> dict[str, Tensor]:
        images, names = batch
        prediction = self(images)
        # Batches hold one image, see the data; exclude images that a DistributedSampler repeats.
        count = len(dataset_indices(self.trainer, 0, batch_idx * len(names), len(names)))
        scores.update(prediction[:count], images[:count])
        self.log_dict(scores, on_step=False, on_epoch=True)
        lightness, ab = split_lab(images)
        return {"input": compose(lightness, 0 * ab).clamp(0, 1), "preds": prediction, "target": images}

    @override
    def configure_optimizers(self) -> Any:
        options = self.hparams
        optimizer = self.adam(self.network.parameters(), weight_decay=options["weight_decay"])
        return warmup_cosine(self, optimizer, options["warmup_steps"])


class ColorizationCLI(ImageRecipeCLI):
    """Links the working sizes of model and data."""

    untrained = "gray"
    pixel = "L1"
    detail = 1.0  # colors vary slowly
    networks = (*ImageRecipeCLI.networks, ("model.features_net", "model.features_weights"))

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        parser.link_arguments("model.working_size", "data.working_size")


def main(args: list[str] | None = None) -> None:
    """Run the recipe: ``fit``, ``validate``, ``test`` or ``predict``, with defaults from ``colorization.yaml``.

    Args:
        args: Command line without the program name; None takes ``sys.argv``.
    """
    run_recipe(ColorizationCLI, Colorization, ColorizationData, __file__, args)


def _resized(layers: list[Tensor], size: tuple[int, int]) -> Tensor:
    """Resize layers ``(N, c, h, w)`` to one size and concatenate them to ``(N, C, H, W)``."""
    return torch.cat([F.adaptive_avg_pool2d(layer, size) for layer in layers], 1)


def _mean_chroma(ab: Tensor) -> Tensor:
    """Mean chroma of ``(N, 2, H, W)``, shape ``(N,)``; the gradient is finite at gray."""
    return (ab.square().sum(1) + 1e-2).sqrt().mean((1, 2))


def _block(inputs: int, outputs: int) -> nn.Sequential:
    """Two convolutions with group normalization, which suits small batches."""
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        layers.append(nn.Conv2d(channels, outputs, kernel_size=3, padding=1))
        layers += [nn.GroupNorm(math.gcd(8, outputs), outputs), nn.SiLU()]
    return nn.Sequential(*layers)
