"""The network of DISTS: VGG16 with L2 pooling, whose first feature layer is the image itself (Ding et al. 2020)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from lpips_lightning.backbones.definition import BACKBONES, IMAGENET_MEAN, IMAGENET_STD, Backbone
from lpips_lightning.tracing import static_sizes

_EPS = 1e-12  # inside the root: L2pooling of DISTS_pytorch 0.1


class ImageNetNormalization(nn.Module):
    """Images on [0, 1] -> images of mean 0 and variance 1 by ImageNet's statistics."""

    @override
    def forward(self, images: Tensor) -> Tensor:
        # No constant tensors: they would have to follow the images to their device.
        channels = zip(images.unbind(1), IMAGENET_MEAN, IMAGENET_STD, strict=True)
        return torch.stack([(channel - mean) / std for channel, mean, std in channels], 1)


class L2Pool2d(nn.Module):
    """Root of the weighted mean of squares: Hann window of 3x3, stride 2, zero padding of 1."""

    @override
    def forward(self, features: Tensor) -> Tensor:
        return l2_pool(features, (1, 1))


def l2_pool(features: Tensor, padding: tuple[int, int]) -> Tensor:
    """`L2Pool2d` with a different padding.

    Args:
        features: Shape ``(N, C, H, W)``; half precision is squared in float32, whose range the squares need.
        padding: Zeros around rows and columns.

    Returns:
        Shape ``(N, C, h, w)``, in the dtype of `features`.

    Example:
        >>> l2_pool(torch.full((1, 1, 3, 3), 2.0), (0, 0)).item()
        2.0
    """
    squares = (features if features.dtype == torch.float64 else features.float()).square()
    window = 1 - torch.arange(-1, 2, dtype=squares.dtype, device=squares.device).abs() / 2
    (channels,) = static_sizes(features.shape[1:2])  # ONNX takes no kernel of unknown shape
    kernel = (window.unsqueeze(1) * window / 4).expand(channels, 1, 3, 3)
    means = F.conv2d(squares, kernel, stride=2, padding=padding, groups=channels)
    return (means + _EPS).sqrt().to(features.dtype)


class DISTSVGG16(nn.Module):
    """torchvision's VGG16 up to ``relu5_3`` with `L2Pool2d` for its pools; takes images on [0, 1]."""

    def __init__(self) -> None:
        super().__init__()
        from torchvision.models import vgg16

        layers = list(vgg16(weights=None).features)[:30]
        self.image = nn.Identity()
        self.normalization = ImageNetNormalization()
        self.features = nn.Sequential(*(L2Pool2d() if isinstance(one, nn.MaxPool2d) else one for one in layers))

    @override
    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.features(self.normalization(self.image(images)))
        return features


def dists_backbone(backbone: Backbone) -> Backbone:
    """The network of DISTS, which takes the weights of ``"vgg"``.

    Args:
        backbone: The entry ``"vgg"`` of the table.

    Returns:
        Its variant; images on [-1, 1] are brought to [0, 1], not scaled as for LPIPS.

    Raises:
        ValueError: If it is another backbone.
    """
    if backbone is not BACKBONES["vgg"]:
        raise ValueError(
            f"net_type: expected 'vgg' with distance='dists', which is defined on it, got {backbone.name!r}"
        )
    return replace(
        backbone,
        feature_layers={"image": "image", **backbone.feature_layers},
        channels=(3, *backbone.channels),
        build=DISTSVGG16,
        shift=(-1.0, -1.0, -1.0),
        scale=(2.0, 2.0, 2.0),
    )
