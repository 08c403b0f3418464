"""Convolutional autoencoder in the manner of latent diffusion's first stage, with a KL or a VQ bottleneck.

Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models", section 3.1 and appendix G, without
attention, and small enough for a training of minutes.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

_MOST_SCORES = 2**24  # scores of latents for codes at once, 64 MiB: those of a full photograph would take gigabytes
_LOG_VARIANCE = (-30.0, 20.0)  # of LDM; its exponential stays finite


class Latent(NamedTuple):
    """What the decoder gets, and what the bottleneck adds to the loss.

    Attributes:
        values: Shape ``(N, latent_channels, h, w)``, float32.
        loss: Loss of the bottleneck, weighted, shape ``()``.
        terms: What to log, shape ``()`` each, without gradient.
    """

    values: Tensor
    loss: Tensor
    terms: dict[str, Tensor]


class GaussianBottleneck(nn.Module):
    """Normal distribution of every latent value, kept close to the standard normal one (Kingma and Welling 2014).

    Args:
        latent_channels: Channels of the latents; the encoder has twice as many, mean and log variance.
        kl_weight: Weight of `kl_divergence` in the loss.
    """

    def __init__(self, latent_channels: int, kl_weight: float) -> None:
        super().__init__()
        self.kl_weight, self.in_channels = kl_weight, 2 * latent_channels

    @override
    def forward(self, moments: Tensor) -> Latent:
        """A sample, for training; `moments` is ``(N, 2 * latent_channels, h, w)``."""
        mean, log_variance = moments.float().chunk(2, 1)
        log_variance = log_variance.clamp(*_LOG_VARIANCE)
        kl = kl_divergence(mean, log_variance)
        values = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        return Latent(values, self.kl_weight * kl, {"kl": kl.detach()})

    def mode(self, moments: Tensor) -> Tensor:
        """The mean, ``(N, latent_channels, h, w)``, float32."""
        return moments.float().chunk(2, 1)[0]


class VectorQuantizer(nn.Module):
    """Nearest code of a learned codebook, on the unit sphere (van den Oord et al. 2017; Yu et al. 2022).

    Latents of few channels, scaled to unit length, keep most codes in use (Yu et al. 2022, "Vector-Quantized Image
    Modeling with Improved VQGAN", section 3.1): here more than a quarter of 1024 codes, by perplexity.

    Args:
        latent_channels: Channels of the latents.
        codes: Size of the codebook.
        commitment_weight: Weight of the encoder's distance to its codes; that of the codes to the encoder has 1.
        weight: Weight of both in the loss.
    """

    def __init__(self, latent_channels: int, codes: int, commitment_weight: float = 0.25, weight: float = 1.0) -> None:
        super().__init__()
        self.commitment_weight, self.weight, self.in_channels = commitment_weight, weight, latent_channels
        self.codebook = nn.Parameter(F.normalize(torch.randn(codes, latent_channels)))

    @override
    def forward(self, features: Tensor) -> Latent:
        """The nearest codes of `features`, ``(N, latent_channels, h, w)``; their gradient goes straight through."""
        latents = F.normalize(features.float(), dim=1)
        indices = self.nearest(latents)
        chosen = self.lookup(indices)
        to_codes = (latents.detach() - chosen).square().sum(1).mean()
        to_latents = (latents - chosen.detach()).square().sum(1).mean()
        values = latents + (chosen - latents).detach()
        loss = self.weight * (to_codes + self.commitment_weight * to_latents)
        counts = torch.bincount(indices.flatten(), minlength=len(self.codebook))
        terms = {"quantization": to_latents.detach(), "perplexity": perplexity(counts)}
        return Latent(values, loss, terms)

    def mode(self, features: Tensor) -> Tensor:
        """The nearest codes, ``(N, latent_channels, h, w)``, float32."""
        return self.lookup(self.nearest(features.float()))

    def nearest(self, latents: Tensor) -> Tensor:
        """Indices of the nearest codes, ``(N, h, w)``, of latents ``(N, latent_channels, h, w)`` of any length."""
        vectors = latents.detach().movedim(1, -1)
        with torch.autocast(latents.device.type, enabled=False), torch.no_grad():
            codes = F.normalize(self.codebook).t()
            parts = vectors.flatten(0, 2).split(max(1, _MOST_SCORES // codes.shape[1]))
            return torch.cat([(part @ codes).argmax(-1) for part in parts]).view(vectors.shape[:-1])

    def lookup(self, indices: Tensor) -> Tensor:
        """Codes of indices ``(N, h, w)``, as latents ``(N, latent_channels, h, w)``."""
        return F.embedding(indices, F.normalize(self.codebook)).movedim(-1, 1)


def kl_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL divergence of normal distributions from the standard one, mean over all values, in nats; shape ``()``.

    Args:
        mean: Means, any shape.
        log_variance: Logarithms of the variances, same shape.
    """
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()


def perplexity(counts: Tensor) -> Tensor:
    """Exponential of the entropy of code counts ``(codes,)``: how many codes are in use, as if equally often.

    Example:
        >>> perplexity(torch.tensor([5, 5, 0, 0]))
        tensor(2.)
    """
    fractions = counts.float() / counts.sum()
    return torch.special.entr(fractions).sum().exp()


class ResidualBlock(nn.Module):
    """Normalization, SiLU and convolution, twice, added to the input, which a 1 x 1 convolution adapts if need be."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.body = nn.Sequential(_norm(inputs), _conv(inputs, outputs), _norm(outputs), _conv(outputs, outputs))
        self.skip = nn.Conv2d(inputs, outputs, kernel_size=1) if inputs != outputs else nn.Identity()

    @override
    def forward(self, x: Tensor) -> Tensor:
        summed: Tensor = self.skip(x) + self.body(x)
        return summed


class Autoencoding(NamedTuple):
    """Result of `AutoencoderNetwork`.

    Attributes:
        images: Shape ``(N, 3, H, W)``, range about [0, 1], not clamped.
        latent: What the decoder got.
    """

    images: Tensor
    latent: Latent


Bottleneck = GaussianBottleneck | VectorQuantizer


class AutoencoderNetwork(nn.Module):
    """Encoder, bottleneck and decoder.

    Every level but the last halves the size, by convolutions of stride 2. The decoder doubles it by nearest neighbors
    and a convolution, since transposed convolutions leave a checkerboard (Odena et al. 2016). The last row and column
    of images are repeated up to a multiple of the factor f.

    Args:
        channels: Channels of the levels, the first at full resolution; the factor is ``2 ** (len(channels) - 1)``.
        blocks: Residual blocks of a level.
        bottleneck: `GaussianBottleneck` or `VectorQuantizer`.
        latent_channels: Channels of the latents.
    """

    def __init__(
        self,
        channels: Sequence[int],
        blocks: int,
        bottleneck: GaussianBottleneck | VectorQuantizer,
        latent_channels: int,
    ) -> None:
        super().__init__()
        self.factor, self.bottleneck = 2 ** (len(channels) - 1), bottleneck
        down: list[nn.Module] = [_conv(3, channels[0])]
        for inputs, outputs in pairwise([*channels, 0]):
            down += [ResidualBlock(inputs, inputs) for _ in range(blocks)]
            down += [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1)] if outputs else []
        self.encoder = nn.Sequential(*down, _norm(channels[-1]), _conv(channels[-1], bottleneck.in_channels))
        up: list[nn.Module] = [_conv(latent_channels, channels[-1])]
        for outputs, inputs in pairwise([0, *channels][::-1]):
            up += [ResidualBlock(outputs, outputs) for _ in range(blocks)]
            up += [nn.Upsample(scale_factor=2), _conv(outputs, inputs)] if inputs else []
        self.decoder = nn.Sequential(*up, _norm(channels[0]), _conv(channels[0], 3))

    @property
    def last_layer(self) -> Tensor:
        """Weight of the decoder's last convolution."""
        weight: Any = self.decoder[-1].weight
        return weight

    def encode(self, images: Tensor) -> Tensor:
        """Latents of images ``(N, 3, H, W)`` on [0, 1], without noise, ``(N, latent_channels, ceil(H / f), ...)``."""
        return self.bottleneck.mode(self._encoded(images))

    def decode(self, latents: Tensor) -> Tensor:
        """Images of latents ``(N, latent_channels, h, w)``, float32, range about [0, 1], not clamped."""
        return 0.5 + 0.5 * self.decoder(latents).float()

    @override
    def forward(self, images: Tensor) -> Autoencoding:
        """Encode and decode images ``(N, 3, H, W)`` on [0, 1] of any size."""
        latent: Latent = self.bottleneck(self._encoded(images))
        height, width = images.shape[-2:]
        return Autoencoding(self.decode(latent.values)[..., :height, :width], latent)

    def _encoded(self, images: Tensor) -> Tensor:
        """Features of images whose last row and column are repeated up to multiples of the factor."""
        bottom, right = (-side % self.factor for side in images.shape[-2:])
        if bottom or right:
            images = F.pad(images, (0, right, 0, bottom), mode="replicate")
        features: Tensor = self.encoder(2 * images - 1)
        return features


def _norm(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.GroupNorm(math.gcd(8, channels), channels), nn.SiLU())


def _conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel_size=3, padding=1)
