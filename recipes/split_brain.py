"""Trains a backbone without labels by cross-channel prediction: colors from lightness, and lightness from colors.

    lpips-lightning split-brain fit --data.folder Kodak     # a backbone file, for LPIPS(weights=FILE)

Zhang, Isola, Efros 2017, "Split-Brain Autoencoders" (arXiv:1611.09842): one half of the channels sees L of Lab and
predicts a and b, the other half sees a and b and predicts L, both as classes of intervals. The halves meet nowhere, so
that together they are one AlexNet with two groups in every convolution.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from lpips_lightning._lightning import LightningModule
from lpips_lightning.recipes.command import run_recipe
from lpips_lightning.recipes.optimization import warmup_cosine
from lpips_lightning.recipes.self_supervised import (
    SMALLEST_SIDE,
    PhotographCrops,
    RelativeError,
    SelfSupervisedCLI,
    Start,
    check_start,
    new_alexnet,
    parameter_groups,
    start_from_kmeans,
    to_unit,
)

_SIDE, _AB_LIMIT = 22, 110.0  # intervals of 10 units of a and of b, as in the paper
_LIGHTNESSES = 50  # intervals of 2 units of L


class SplitBrain(LightningModule):
    """Split-brain autoencoder; logs ``val/ab_error`` and ``val/lightness_error``.

    They are squared errors of the expected color and lightness on held-out photographs, divided by those of the mean:
    1 is no better than one color for all.

    All arguments are plain values, so a checkpoint loads with ``weights_only=True``.

    Args:
        width: Channels of the backbone, in units of AlexNet's.
        start: Filters before the training: ``"kmeans"``, by stacked k-means on training crops (arXiv:1511.06856), or
            ``"random"``.
        lr: Highest learning rate of AdamW, but of the backbone.
        backbone_lr: Highest learning rate of the backbone; higher ones undo the start.
        weight_decay: Weight decay of AdamW.
        warmup_steps: Linear warm-up; then cosine decay to 0.
    """

    def __init__(
        self,
        width: float = 0.5,
        start: Start = "kmeans",
        lr: float = 1e-3,
        backbone_lr: float = 1e-4,
        weight_decay: float = 1e-2,
        warmup_steps: int = 50,
    ) -> None:
        super().__init__()
        check_start(start)
        self.save_hyperparameters()
        self.backbone = new_alexnet(
            width,
            colors="lab",
            std=(25.0, 15.0, 15.0),
            groups=(1, 2, 2, 2, 2),
            normalization="batch",
            lrn=False,  # it would let the halves see each other
        )
        first = self._first
        half = first.out_channels // 2
        sees = torch.zeros_like(first.weight)
        sees[:half, :1], sees[half:, 1:] = 1, 1
        self.register_buffer("_sees", sees, persistent=False)  # conv1 has no groups, since 3 channels have no halves
        self._sees: Tensor
        with torch.no_grad():
            first.weight.mul_(sees)
        self.to_ab = nn.Conv2d(self.backbone.channels[-1] // 2, _SIDE**2, 1)
        self.to_lightness = nn.Conv2d(self.backbone.channels[-1] // 2, _LIGHTNESSES, 1)
        self.val_ab_error = RelativeError(2)
        self.val_lightness_error = RelativeError(1)

    @property
    def _first(self) -> nn.Conv2d:
        return cast("nn.Conv2d", self.backbone.features[self.backbone.convolutions[0]])

    @override
    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Predict each part of Lab from the other one.

        Args:
            inputs: What `backbone.preprocess` returns, ``(N, 3, H, W)``.

        Returns:
            Logits ``(N, 484, h, w)`` of the intervals of (a, b), and ``(N, 50, h, w)`` of those of L.
        """
        features: Tensor = self.backbone.features(inputs)
        from_lightness, from_ab = features.chunk(2, dim=1)
        return self.to_ab(from_lightness), self.to_lightness(from_ab)

    @override
    def on_fit_start(self) -> None:
        if self.hparams["start"] == "kmeans":
            half = self._first.out_channels // 2
            start_from_kmeans(
                self.trainer, self.backbone, [(slice(0, 1), slice(0, half)), (slice(1, 3), slice(half, None))]
            )

    @override
    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        ab, lightness, (ab_logits, lightness_logits) = self._predict(batch)
        losses = {
            "train/ab_loss": F.cross_entropy(ab_logits, ab_class(ab)),
            "train/lightness_loss": F.cross_entropy(lightness_logits, lightness_class(lightness)),
        }
        loss = losses["train/ab_loss"] + losses["train/lightness_loss"]
        self.log_dict({name: value.detach() for name, value in losses.items()})
        self.log("train/loss", loss.detach(), prog_bar=True)
        return loss

    @override
    def on_after_backward(self) -> None:
        if self._first.weight.grad is not None:
            self._first.weight.grad.mul_(self._sees)

    @override
    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        ab, lightness, (ab_logits, lightness_logits) = self._predict(batch)
        expected_ab = _expected(ab_logits, _centers_of_ab(self.device))
        expected_lightness = _expected(lightness_logits, _centers_of_lightness(self.device))
        self.val_ab_error.update(expected_ab, ab.permute(0, 2, 3, 1).reshape(-1, 2))
        self.val_lightness_error.update(expected_lightness, lightness.permute(0, 2, 3, 1).reshape(-1, 1))
        self.log("val/ab_error", self.val_ab_error, prog_bar=True)
        self.log("val/lightness_error", self.val_lightness_error, prog_bar=True)

    def _predict(self, images: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        """Mean a and b, mean L, and logits, each at the resolution of the last layer."""
        if min(images.shape[-2:]) < SMALLEST_SIDE:
            raise ValueError(f"crop_size: expected at least {SMALLEST_SIDE}, got {min(images.shape[-2:])}")
        inputs = self.backbone.preprocess(to_unit(images))
        logits = self(inputs)
        settings = self.backbone.settings
        mean, std = (inputs.new_tensor(settings[name]).view(-1, 1, 1) for name in ("mean", "std"))
        lab = F.adaptive_avg_pool2d(inputs * std + mean, logits[0].shape[-2:])
        return lab[:, 1:], lab[:, :1], logits

    @override
    def configure_optimizers(self) -> Any:
        options = self.hparams
        groups = parameter_groups(self, options["lr"], options["backbone_lr"])
        optimizer = torch.optim.AdamW(groups, weight_decay=options["weight_decay"])
        return warmup_cosine(self, optimizer, options["warmup_steps"])


def ab_class(ab: Tensor) -> Tensor:
    """Interval of a and b: ``(N, 2, h, w)`` in Lab units -> ``(N, h, w)``, int64.

    Example:
        >>> ab_class(torch.tensor([-110.0, -100.0]).view(1, 2, 1, 1)).item()
        1
    """
    cells = ((ab + _AB_LIMIT) / (2 * _AB_LIMIT / _SIDE)).long().clamp(0, _SIDE - 1)
    return cells[:, 0] * _SIDE + cells[:, 1]


def lightness_class(lightness: Tensor) -> Tensor:
    """Interval of L: ``(N, 1, h, w)`` on [0, 100] -> ``(N, h, w)``, int64."""
    return (lightness[:, 0] / (100 / _LIGHTNESSES)).long().clamp(0, _LIGHTNESSES - 1)


def _expected(logits: Tensor, centers: Tensor) -> Tensor:
    """Expected values ``(N * h * w, D)``, for the centers of the intervals ``(classes, D)``."""
    return logits.float().softmax(1).permute(0, 2, 3, 1).flatten(0, 2) @ centers


def _centers_of_ab(device: torch.device) -> Tensor:
    axis = (torch.arange(_SIDE, device=device) + 0.5) * (2 * _AB_LIMIT / _SIDE) - _AB_LIMIT
    return torch.cartesian_prod(axis, axis)


def _centers_of_lightness(device: torch.device) -> Tensor:
    return ((torch.arange(_LIGHTNESSES, device=device) + 0.5) * (100 / _LIGHTNESSES)).view(-1, 1)


def main(args: list[str] | None = None) -> None:
    """Run the recipe: ``fit`` or ``validate``, with defaults from ``split_brain.yaml``.

    Args:
        args: Command line without the program name; None takes ``sys.argv``.
    """
    run_recipe(SelfSupervisedCLI, SplitBrain, PhotographCrops, __file__, args)
