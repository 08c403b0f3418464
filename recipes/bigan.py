"""Trains a backbone without labels as the encoder of an adversarial game with a generator (BiGAN).

    lpips-lightning bigan fit --data.folder Kodak     # a backbone file, for LPIPS(weights=FILE)

Donahue, Kraehenbuehl, Darrell 2017, "Adversarial Feature Learning" (arXiv:1605.09782): a generator makes images from
random codes, an encoder makes codes from images, and a discriminator tells pairs of an image and a code apart. It can
no longer if each inverts the other. The backbone is the encoder; as in the paper, it has leaky ReLUs and no LRN.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from typing_extensions import override

from lpips_lightning._lightning import LightningModule
from lpips_lightning.recipes.command import run_recipe
from lpips_lightning.recipes.self_supervised import (
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

SIDE = 64
"""Side of the images in pixels."""


class Generator(nn.Sequential):
    """Codes ``(N, code)`` -> images on [0, 1], ``(N, 3, 64, 64)``.

    Args:
        code: Numbers of a code.
        channels: Channels of the largest layer; twice as many in each smaller one.
    """

    def __init__(self, code: int, channels: int) -> None:
        layers: list[nn.Module] = [nn.Linear(code, 16 * 8 * channels), nn.Unflatten(1, (8 * channels, 4, 4))]
        for inputs, outputs in ((8, 4), (4, 2), (2, 1)):
            layers += [nn.BatchNorm2d(inputs * channels), nn.ReLU()]
            layers.append(nn.ConvTranspose2d(inputs * channels, outputs * channels, 4, stride=2, padding=1))
        layers += [nn.BatchNorm2d(channels), nn.ReLU(), nn.ConvTranspose2d(channels, 3, 4, stride=2, padding=1)]
        super().__init__(*layers, nn.Sigmoid())


class Discriminator(nn.Module):
    """Images ``(N, 3, 64, 64)`` on [0, 1] and codes ``(N, code)`` -> scores ``(N,)``, high for images of the data.

    Spectral normalization keeps it from winning so clearly that the others learn nothing.

    Args:
        code: Numbers of a code.
        channels: Channels of the first layer; twice as many in each later one.
    """

    def __init__(self, code: int, channels: int) -> None:
        super().__init__()
        widths, hidden = [3, *(channels * factor for factor in (1, 2, 4, 8))], 16 * channels
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            layers += [spectral_norm(nn.Conv2d(inputs, outputs, 4, stride=2, padding=1)), nn.LeakyReLU(0.2)]
        self.of_image = nn.Sequential(*layers, nn.Flatten(), *_linear(16 * widths[-1], hidden))
        self.of_code = nn.Sequential(*_linear(code, hidden))
        self.of_both = nn.Sequential(*_linear(2 * hidden, 2 * hidden), spectral_norm(nn.Linear(2 * hidden, 1)))

    @override
    def forward(self, images: Tensor, codes: Tensor) -> Tensor:
        both = torch.cat([self.of_image(2 * images - 1), self.of_code(codes)], 1)
        scores: Tensor = self.of_both(both)
        return scores[:, 0]


def _linear(inputs: int, outputs: int) -> tuple[nn.Module, nn.Module]:
    return spectral_norm(nn.Linear(inputs, outputs)), nn.LeakyReLU(0.2)


class BiGAN(LightningModule):
    """Adversarially learned encoder; logs ``val/image_error`` and ``val/code_error``.

    They are the squared errors of held-out images after encoder and generator, and of random codes after generator and
    encoder, divided by those of the mean color and of the mean code: 1 is no better than the mean.

    All arguments are plain values, so a checkpoint loads with ``weights_only=True``.

    Args:
        width: Channels of the backbone, in units of AlexNet's.
        start: Filters before the training: ``"kmeans"``, by stacked k-means on training crops (arXiv:1511.06856), or
            ``"random"``.
        code: Numbers of a code.
        channels: Channels of the largest layer of generator and discriminator.
        lr: Learning rate of Adam, but of the backbone.
        backbone_lr: Learning rate of the backbone; higher ones undo the start.
        betas: Betas of Adam.

    Raises:
        ValueError: If `code` or `channels` is below 1.
    """

    def __init__(
        self,
        width: float = 0.5,
        start: Start = "kmeans",
        code: int = 64,
        channels: int = 16,
        lr: float = 5e-4,
        backbone_lr: float = 2e-5,
        betas: tuple[float, float] = (0.5, 0.999),
    ) -> None:
        super().__init__()
        for argument, count in (("code", code), ("channels", channels)):
            if count < 1:
                raise ValueError(f"{argument}: expected at least 1, got {count}")
        check_start(start)
        self.save_hyperparameters()
        self.backbone = new_alexnet(width, std=(60.0, 60.0, 60.0), normalization="batch", lrn=False, leaky=0.2)
        # Codes have mean 0 and variance 1 from the start, as the random ones.
        last = nn.BatchNorm1d(code, affine=False)
        self.to_code = nn.Sequential(nn.Flatten(), nn.Linear(9 * self.backbone.channels[-1], code), last)
        self.generator, self.discriminator = Generator(code, channels), Discriminator(code, channels)
        self.val_image_error = RelativeError(3)
        self.val_code_error = RelativeError(code)

    @override
    def forward(self, images: Tensor) -> Tensor:
        """Codes ``(N, code)`` of images ``(N, 3, 64, 64)`` on [0, 1]."""
        codes: Tensor = self.to_code(self.backbone(images))
        return codes

    @override
    def on_fit_start(self) -> None:
        if self.hparams["start"] == "kmeans":
            start_from_kmeans(self.trainer, self.backbone)

    @override
    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        images = _checked(to_unit(batch))
        random = torch.randn(len(images), self.hparams["code"], device=images.device)
        codes, made = self(images), self.generator(random)
        score, made_score = self.discriminator(images, codes.detach()), self.discriminator(made.detach(), random)
        losses = {"train/discriminator": F.softplus(-score).mean() + F.softplus(made_score).mean()}
        with _without_gradients(self.discriminator):
            score, made_score = self.discriminator(images, codes), self.discriminator(made, random)
        losses["train/encoder"] = F.softplus(score).mean()
        losses["train/generator"] = F.softplus(-made_score).mean()
        self.log_dict({name: value.detach() for name, value in losses.items()}, prog_bar=True)
        # One optimizer for all: no loss has gradients for the networks of another one.
        return torch.stack(list(losses.values())).sum()

    @override
    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        images = _checked(to_unit(batch))
        generator = torch.Generator().manual_seed(batch_idx)  # the same codes in every epoch
        random = torch.randn(len(images), self.hparams["code"], generator=generator).to(self.device)
        restored, codes = self.generator(self(images)), self(self.generator(random))
        self.val_image_error.update(*(x.permute(0, 2, 3, 1).reshape(-1, 3) for x in (restored, images)))
        self.val_code_error.update(codes, random)
        self.log("val/image_error", self.val_image_error, prog_bar=True)
        self.log("val/code_error", self.val_code_error, prog_bar=True)

    @override
    def configure_optimizers(self) -> Any:
        options = self.hparams
        groups = parameter_groups(self, options["lr"], options["backbone_lr"])
        return torch.optim.Adam(groups, betas=options["betas"])


@contextmanager
def _without_gradients(module: nn.Module) -> Iterator[None]:
    """Let gradients pass through a module, but not into its parameters."""
    module.requires_grad_(False)
    try:
        yield
    finally:
        module.requires_grad_(True)


def _checked(images: Tensor) -> Tensor:
    if images.shape[-2:] != (SIDE, SIDE):
        height, width = images.shape[-2:]
        raise ValueError(f"crop_size: expected {SIDE}, the size of the generator's images, got {height}x{width}")
    return images


def main(args: list[str] | None = None) -> None:
    """Run the recipe: ``fit`` or ``validate``, with defaults from ``bigan.yaml``.

    Args:
        args: Command line without the program name; None takes ``sys.argv``.
    """
    run_recipe(SelfSupervisedCLI, BiGAN, PhotographCrops, __file__, args)
