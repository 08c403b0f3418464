"""Adversarial loss beside a perceptual loss: PatchGAN discriminator, hinge loss, adaptive weight.

The recipe of VQGAN (Esser et al. 2021, "Taming Transformers for High-Resolution Image Synthesis", equations 6 and 7)
and of the autoencoder of latent diffusion (Rombach et al. 2022, section G). The discriminator is that of pix2pix (Isola
et al. 2017, section 3.2.2), with group normalization, which does not depend on the batch.
"""

from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from typing_extensions import override

Kind = Literal["hinge", "logistic"]

_MOST_WIDER = 8  # channels of the discriminator in units of those of its first layer


def adaptive_weight(
    nll: Tensor, generator_loss: Tensor, last_layer: Tensor, *, largest: float = 1e4, epsilon: float = 1e-4
) -> Tensor:
    """Weight that gives the generator's loss the same gradient norm at the last layer as the reconstruction loss.

    ``norm(grad(nll, last_layer)) / (norm(grad(generator_loss, last_layer)) + epsilon)``, clamped to [0, `largest`], of
    Esser et al. 2021, equation 7. It changes no ``.grad`` and keeps the graph, so that it can be used in any
    LightningModule, with automatic and with manual optimization, before the backward pass of the weighted sum. On
    several processes each has the weight of its own batch.

    Args:
        nll: Reconstruction loss, such as L1 + LPIPS, shape ``()``.
        generator_loss: Loss of the generator, such as minus the mean logit of the discriminator, shape ``()``.
        last_layer: Weight of the last layer that makes the image, a tensor that requires grad.
        largest: Largest weight.
        epsilon: Added to the denominator.

    Returns:
        Shape ``()``, float32, without gradient.

    Raises:
        ValueError: If a loss does not depend on `last_layer`, or gradients are disabled, as in validation.

    Example:
        >>> weight = torch.tensor([1.0, 1.0], requires_grad=True)
        >>> adaptive_weight((3 * weight).sum(), (0.5 * weight).sum(), weight)
        tensor(5.9992)
    """
    norms = [
        _gradient_norm(name, loss, last_layer) for name, loss in (("nll", nll), ("generator_loss", generator_loss))
    ]
    return (norms[0] / (norms[1] + epsilon)).clamp(0, largest)


class PatchDiscriminator(nn.Sequential):
    """Scores every position of an image: real or not, as logits ``(N, 1, h, w)``.

    Args:
        layers: Convolutions of stride 2; a score sees 16, 34, 70 or 142 pixels with 1 to 4 of them. Images need 6, 12,
            24 or 48 pixels a side.
        channels: Channels of the first; they double up to eight times as many.
        in_channels: Channels of the image.

    Raises:
        ValueError: If an argument is below 1.

    Example:
        >>> PatchDiscriminator(layers=2, channels=8)(torch.rand(4, 3, 64, 64)).shape
        torch.Size([4, 1, 14, 14])
    """

    def __init__(self, layers: int = 3, channels: int = 64, in_channels: int = 3) -> None:
        for argument, count in (("layers", layers), ("channels", channels), ("in_channels", in_channels)):
            if count < 1:
                raise ValueError(f"{argument}: expected at least 1, got {count}")
        modules: list[nn.Module] = [nn.Conv2d(in_channels, channels, 4, 2, 1), nn.LeakyReLU(0.2)]
        inputs = channels
        for layer in range(1, layers + 1):
            outputs, stride = channels * min(2**layer, _MOST_WIDER), 2 if layer < layers else 1
            modules += [nn.Conv2d(inputs, outputs, 4, stride, 1), nn.GroupNorm(1, outputs), nn.LeakyReLU(0.2)]
            inputs = outputs
        super().__init__(*modules, nn.Conv2d(inputs, 1, 4, 1, 1))
        self.smallest = 3 * 2**layers

    @override
    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(N, 1, h, w)`` of images ``(N, C, H, W)``.

        Raises:
            ValueError: If the images are too small for the layers.
        """
        self.check_size(images)
        for module in self:
            images = module(images)
        return images

    def check_size(self, images: Tensor) -> None:
        """Raise a ValueError if a side of `images` is below 3 * 2 ** layers pixels."""
        height, width = images.shape[-2:]
        if min(height, width) < self.smallest:
            raise ValueError(
                f"layers: expected images of at least {self.smallest} pixels a side for this discriminator, got"
                f" {height}x{width}; take fewer layers or larger images"
            )


class AdversarialTerms(NamedTuple):
    """Result of `AdversarialLoss`.

    Attributes:
        generator: Weighted loss of the generator, with gradients for the generator only.
        discriminator: Loss of the discriminator, with gradients for the discriminator only.
        weight: The weight of the generator's loss, without gradient.
    """

    generator: Tensor
    discriminator: Tensor
    weight: Tensor


class AdversarialLoss(nn.Module):
    """PatchGAN discriminator with the losses of generator and discriminator, for one backward pass.

    ``loss = nll + terms.generator + terms.discriminator`` trains both in one step of one optimizer: the generator's
    term has no gradient for the discriminator, and the discriminator's none for the generator. So automatic
    optimization, gradient accumulation, mixed precision and DDP work as for any loss. With manual optimization, call
    `generator_loss` and `discriminator_loss`, and `adaptive_weight`.

    Its parameters are the discriminator's. Train them, usually with betas (0.5, 0.9).

    Args:
        weight: Weight of the generator's loss; with `adaptive`, relative to the gradient of the reconstruction loss.
        start: Steps without adversarial loss. Until then both terms are 0, with gradients of 0 for the discriminator.
        adaptive: Multiply by `adaptive_weight`.
        kind: ``"hinge"``, or ``"logistic"`` for the binary cross entropy of logits.
        layers: See `PatchDiscriminator`.
        channels: See `PatchDiscriminator`.
        in_channels: See `PatchDiscriminator`.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> decoder, target = torch.nn.Conv2d(3, 3, 3, padding=1), torch.rand(2, 3, 32, 32)
        >>> adversarial = AdversarialLoss(weight=0.5, start=100, layers=2, channels=8)
        >>> preds = decoder(target)
        >>> nll = (preds - target).abs().mean()
        >>> terms = adversarial(nll, preds, target, decoder.weight, step=100)
        >>> (nll + terms.generator + terms.discriminator).backward()
    """

    def __init__(
        self,
        weight: float = 0.5,
        start: int = 0,
        *,
        adaptive: bool = True,
        kind: Kind = "hinge",
        layers: int = 3,
        channels: int = 64,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        if weight < 0 or start < 0:
            argument, value = ("weight", weight) if weight < 0 else ("start", start)
            raise ValueError(f"{argument}: expected at least 0, got {value}")
        if kind not in get_args(Kind):
            raise ValueError(f"kind: expected one of {get_args(Kind)}, got {kind!r}")
        self.weight, self.start, self.adaptive, self.kind = weight, start, adaptive, kind
        self.discriminator = PatchDiscriminator(layers, channels, in_channels)

    @override
    def forward(
        self, nll: Tensor, preds: Tensor, target: Tensor, last_layer: Tensor | None = None, *, step: int
    ) -> AdversarialTerms:
        """Both terms of a training step.

        Args:
            nll: Reconstruction loss, shape ``()``.
            preds: Generated images, shape ``(N, C, H, W)``.
            target: Real images, of the same shape and range.
            last_layer: See `adaptive_weight`; not needed without `adaptive`.
            step: Training step, such as ``trainer.global_step``.

        Raises:
            ValueError: If `last_layer` is missing or a loss does not depend on it, or the images are too small.
        """
        if self.weight:
            self.discriminator.check_size(preds)  # at the first step, not at `start`
        if step < self.start or not self.weight:
            nothing = torch.stack([one.sum() for one in self.parameters()]).sum() * 0  # gradients of 0, for DDP
            return AdversarialTerms(torch.zeros_like(nothing), nothing, torch.zeros_like(nothing))
        if self.adaptive and last_layer is None:
            raise ValueError("last_layer: expected the weight of the last layer for the adaptive weight, got None")
        generator, weight = self.generator_loss(preds), torch.full((), self.weight, device=preds.device)
        if last_layer is not None and self.adaptive:
            weight = weight * adaptive_weight(nll, generator, last_layer)
        return AdversarialTerms(weight * generator, self.discriminator_loss(preds, target), weight)

    def generator_loss(self, preds: Tensor) -> Tensor:
        """Unweighted loss of the generator; the discriminator gets no gradient.

        Args:
            preds: Generated images, shape ``(N, C, H, W)``.

        Returns:
            Shape ``()``: minus the mean logit, or the cross entropy with "real".
        """
        fixed = {name: one.detach() for name, one in self.discriminator.named_parameters()}
        logits: Tensor = functional_call(self.discriminator, fixed, (preds,))
        return -logits.float().mean() if self.kind == "hinge" else F.softplus(-logits.float()).mean()

    def discriminator_loss(self, preds: Tensor, target: Tensor) -> Tensor:
        """Loss of the discriminator; the generator gets no gradient.

        Args:
            preds: Generated images, shape ``(N, C, H, W)``.
            target: Real images, same shape.

        Returns:
            Shape ``()``: mean of the losses of real and generated images.
        """
        real, made = (self.discriminator(images.detach()).float() for images in (target, preds))
        if self.kind == "hinge":
            return (F.relu(1 - real).mean() + F.relu(1 + made).mean()) / 2
        return (F.softplus(-real).mean() + F.softplus(made).mean()) / 2


def _gradient_norm(name: str, loss: Tensor, last_layer: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        raise ValueError("adaptive_weight: expected enabled gradients; in validation, leave the adversarial loss out")
    gradient = None
    if loss.requires_grad and last_layer.requires_grad:
        (gradient,) = torch.autograd.grad(loss, last_layer, retain_graph=True, allow_unused=True)
    if gradient is None:
        raise ValueError(
            f"last_layer: expected a weight that requires grad and that {name} depends on, such as decoder.conv.weight"
        )
    return gradient.detach().float().norm()
