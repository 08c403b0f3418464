"""Colors for gray images: a U-Net from L to a and b of Lab, with LPIPS of the colored image in its loss.

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
from pytorch_lightning import LightningModule
from pytorch_lightning.cli import LightningArgumentParser
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import Metric, MetricCollection
from typing_extensions import override

from lpips_lightning import LPIPS, PerceptualLoss
from lpips_lightning.backbones.definition import get_backbone
from lpips_lightning.distance import unit_normalize
from lpips_lightning.distributed import dataset_indices
from lpips_lightning.recipes.colorization_data import ColorizationData, shrink
from lpips_lightning.recipes.colors import ColorDifference, Colorfulness, compose, into_gamut, split_lab
from lpips_lightning.recipes.command import ImageRecipeCLI, run_recipe

Batch = tuple[Tensor, Sequence[str]]  # images, names

# Units of Lab in which a and b leave the network and enter the loss: most colors of photographs are within [-1, 1].
_AB_SCALE = 50.0


class UNet(nn.Module):
    """L -> a and b: a U-Net (Ronneberger et al. 2015) whose deeper levels also get what a trained network sees.

    Its first level has half the resolution: colors vary slowly. What a thing is, and so which color it may have,
    cannot be learnt from a few photographs; the features in which a frozen network sees the gray image know more.
    They enter every level but the first.

    Args:
        n_feats: Channels of the first level; they double from level to level, up to four times as many.
        n_levels: Levels; each has half the resolution of the one before.
        features_net: Network whose features go in, see `LPIPS`; None for none.
        features_weights: Its backbone weights: a path, ``"random"``, or None to look them up.

    Raises:
        ValueError: If `n_feats` is below 1, or `n_levels` below 2.
        WeightsError: If the backbone weights are missing.
    """

    def __init__(
        self,
        n_feats: int = 32,
        n_levels: int = 4,
        features_net: str | None = "embedded",
        features_weights: str | None = None,
    ) -> None:
        super().__init__()
        for argument, count, fewest in (("n_feats", n_feats, 1), ("n_levels", n_levels, 2)):
            if count < fewest:
                raise ValueError(f"{argument}: expected at least {fewest}, got {count}")
        widths = [n_feats * min(2**level, 4) for level in range(n_levels)]
        self.stem = nn.Conv2d(1, widths[0], kernel_size=6, stride=2, padding=2)
        self.down = nn.ModuleList(_block(a, b) for a, b in pairwise([widths[0], *widths]))
        self.features, self.seen = None, None
        if features_net is not None:
            self.features = LPIPS(features_net, weights=features_weights, validate_args=False)
            channels = sum(get_backbone(features_net).channels)
            self.seen = nn.ModuleList(nn.Conv2d(channels, width, kernel_size=1) for width in widths[:-1])
        self.up = nn.ModuleList(_block(a + b, a) for a, b in pairwise(widths))
        self.head = nn.Conv2d(widths[0], 2, kernel_size=1)
        for parameter in self.head.parameters():  # untrained, it leaves images gray
            nn.init.zeros_(parameter)

    @override
    def forward(self, lightness: Tensor) -> Tensor:
        """Shape ``(N, 1, H, W)`` on [0, 100] -> ``(N, 2, H, W)``, a and b, in units of Lab."""
        x = self.stem(lightness / 50 - 1)
        seen = self._look(lightness)
        levels: list[Tensor] = []
        for level, block in enumerate(self.down):
            if level:
                x = F.avg_pool2d(x, 2, ceil_mode=True)
                x = x if self.seen is None else x + self.seen[level - 1](_resized(seen, (x.shape[-2], x.shape[-1])))
            x = block(x)
            levels.append(x)
        for level in reversed(range(len(self.up))):
            x = F.interpolate(x, size=levels[level].shape[-2:], mode="bilinear", align_corners=False)
            x = self.up[level](torch.cat([levels[level], x], 1))
        ab = _AB_SCALE * self.head(x).float()  # from here on in float32, also under autocast
        return F.interpolate(ab, size=lightness.shape[-2:], mode="bilinear", align_corners=False)

    @torch.no_grad()
    def _look(self, lightness: Tensor) -> list[Tensor]:
        """Every layer's features, of unit length as LPIPS compares them; none without `features_net`."""
        if self.features is None:
            return []
        gray = (lightness / 100).clamp(0, 1).expand(-1, 3, -1, -1)
        layers = self.features.encode(gray, data_range=(0, 1)).layers.values()
        # Times the root of the channels: of unit variance, whatever the layer.
        return [unit_normalize(layer) * layer.shape[1] ** 0.5 for layer in layers]


class Colorization(LightningModule):
    """U-Net trained with ``pixel_weight * L1 of a and b + loss_weight * LPIPS of the colored image``.

    Its steps return images for `PerceptualScores`; it logs ``val/ciede2000`` and ``val/colorfulness``, with
    ``val/colorfulness_truth`` and ``val/colorfulness_ratio`` (and ``test/...``). All arguments are plain values, so a
    checkpoint loads with ``weights_only=True`` and brings its loss settings along; it holds the U-Net alone.

    Args:
        n_feats: Channels of the U-Net's first level.
        n_levels: Levels of the U-Net.
        features_net: Network that shows the U-Net what is in the image; None for none.
        features_weights: Its backbone weights: a path, ``"random"``, or None to look them up.
        working_size: Images with a longer shorter side are looked at in this one; their colors are then enlarged,
            their lightness stays as it is.
        pixel_weight: Weight of the L1 distance of a and b, in units of 50.
        chroma_weight: Weight of the difference between an image's mean chroma and that of its prediction, in units of
            50. Where a color is uncertain, both L1 and LPIPS are lowest at pale ones; this says how colorful to be.
        lightness_jitter: In training the U-Net sees lightness to a random power, on [0, 1] to between exp(-this) and
            exp(this): colors are then learnt from what is in the image more than from how bright it is.
        loss_weight: Weight of LPIPS in the loss; 0 trains without it.
        loss_net: Network of the loss.
        loss_calibrated: False takes the uncalibrated distance ("baseline" in the paper).
        loss_weights: Backbone weights of the loss, as `features_weights`.
        lr: Highest learning rate of AdamW.
        weight_decay: Of AdamW.
        warmup_steps: Steps until `lr` is reached; from there it falls to 0 along a cosine.

    Raises:
        ValueError: If `n_feats` or `working_size` is below 1, or `n_levels` below 2.
    """

    def __init__(
        self,
        n_feats: int = 32,
        n_levels: int = 4,
        features_net: str | None = "embedded",
        features_weights: str | None = None,
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
    ) -> None:
        super().__init__()
        if working_size < 1:
            raise ValueError(f"working_size: expected at least 1, got {working_size}")
        self.save_hyperparameters()
        network = UNet(n_feats, n_levels, features_net, features_weights)
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

    @override
    def setup(self, stage: str) -> None:
        # Here and not in __init__: a checkpoint then loads, and colors images, where there is no backbone of the loss.
        options = self.hparams
        if stage == "fit" and options["loss_weight"] and self.perceptual is None:
            self.perceptual = PerceptualLoss(
                options["loss_net"],
                data_range=(0, 1),
                weight=options["loss_weight"],
                calibrated=options["loss_calibrated"],
                weights=options["loss_weights"],
            )

    @override
    def forward(self, images: Tensor) -> Tensor:
        """Shape ``(N, 3, H, W)`` in [0, 1], of which the lightness alone counts -> colored, of the same lightness."""
        lightness, _ = split_lab(images)
        ab = self.network(shrink(lightness, self.hparams["working_size"]))
        ab = F.interpolate(ab, size=lightness.shape[-2:], mode="bilinear", align_corners=False)
        return compose(lightness, into_gamut(lightness, ab)).clamp(0, 1)

    def losses(self, images: Tensor) -> dict[str, Tensor]:
        """A batch's ``train/loss``, the sum to lower, and its terms, ``train/perceptual`` as LPIPS times its weight."""
        options = self.hparams
        lightness, ab = split_lab(images)
        gamma = torch.empty(len(lightness), 1, 1, 1, device=lightness.device)
        gamma.uniform_(-options["lightness_jitter"], options["lightness_jitter"]).exp_()
        prediction = self.network(100 * (lightness / 100).clamp(0, 1) ** gamma)
        chroma = (_mean_chroma(prediction) - _mean_chroma(ab)).abs().mean() / _AB_SCALE
        parts = {"train/l1": F.l1_loss(prediction, ab) / _AB_SCALE, "train/chroma": chroma}
        loss = options["pixel_weight"] * parts["train/l1"] + options["chroma_weight"] * chroma
        if self.perceptual is not None and self.perceptual.weight:
            # Clamped for the backbone, which knows no colors outside [0, 1]; L1 pulls back what leaves the gamut.
            parts["train/perceptual"] = self.perceptual(compose(lightness, prediction).clamp(0, 1), images)
            loss = loss + parts["train/perceptual"]
        return {"train/loss": loss, **parts}

    @override
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        losses = self.losses(batch[0])
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
        # One image a batch, see the data; a distributed sampler repeats some, which do not count twice.
        counted = len(dataset_indices(self.trainer, 0, batch_idx * len(names), len(names)))
        scores.update(prediction[:counted], images[:counted])
        self.log_dict(scores, on_step=False, on_epoch=True)
        lightness, ab = split_lab(images)
        return {"input": compose(lightness, 0 * ab).clamp(0, 1), "preds": prediction, "target": images}

    @override
    def configure_optimizers(self) -> Any:
        options = self.hparams
        optimizer = torch.optim.AdamW(self.network.parameters(), options["lr"], weight_decay=options["weight_decay"])
        total, warmup = self.trainer.estimated_stepping_batches, options["warmup_steps"]

        # Not OneCycleLR: that one raises when a resumed run asks for more steps than the first run planned.
        def factor(step: int) -> float:
            progress = min(max(step - warmup, 0) / max(total - warmup, 1), 1.0)
            return min((step + 1) / (warmup + 1), 0.5 * (1 + math.cos(math.pi * progress)))

        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": LambdaLR(optimizer, factor), "interval": "step"}}


class ColorizationCLI(ImageRecipeCLI):
    """Gives data and model the same working size."""

    untrained = "gray"

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        parser.link_arguments("model.working_size", "data.working_size")


def main(args: list[str] | None = None) -> None:
    """Run the recipe: ``fit``, ``validate``, ``test`` or ``predict``, with the YAML beside this file as defaults.

    Args:
        args: Command line without the program's name; None takes ``sys.argv``.
    """
    run_recipe(ColorizationCLI, Colorization, ColorizationData, __file__, args)


def _resized(layers: list[Tensor], size: tuple[int, int]) -> Tensor:
    """Features of several resolutions, ``(N, c, h, w)``, next to each other in one, ``(N, C, H, W)``."""
    return torch.cat([F.adaptive_avg_pool2d(layer, size) for layer in layers], 1)


def _mean_chroma(ab: Tensor) -> Tensor:
    """Shape ``(N, 2, H, W)`` -> ``(N,)``; with a finite gradient at gray."""
    return (ab.square().sum(1) + 1e-2).sqrt().mean((1, 2))


def _block(inputs: int, outputs: int) -> nn.Sequential:
    """Two convolutions, each with group normalization, which does not ask for large batches."""
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        layers.append(nn.Conv2d(channels, outputs, kernel_size=3, padding=1))
        layers += [nn.GroupNorm(math.gcd(8, outputs), outputs), nn.SiLU()]
    return nn.Sequential(*layers)
