"""Small modules and functions of tensors with the `lpips` package's names."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import override

from lpips_lightning.backbones.definition import Backbone
from lpips_lightning.compat import arrays
from lpips_lightning.distances.lpips import EPS, unit_normalize
from lpips_lightning.distances.lpips import upsample as _upsample


def normalize_tensor(in_feat: Tensor, eps: float = EPS) -> Tensor:
    """Scale every position of features to unit length over channels.

    Args:
        in_feat: Shape ``(N, C, H, W)``.
        eps: Added to the norm.

    Returns:
        Shape and dtype of `in_feat`. The gradient where all channels are 0 is 0; that of `lpips` is NaN.
    """
    return unit_normalize(in_feat, eps)


def spatial_average(in_tens: Tensor, keepdim: bool = True) -> Tensor:
    """Mean over height and width.

    Args:
        in_tens: Shape ``(N, C, H, W)``.
        keepdim: Keep both dimensions, of size 1.

    Returns:
        ``(N, C, 1, 1)``, or ``(N, C)``.
    """
    return in_tens.mean((2, 3), keepdim=keepdim)


def upsample(in_tens: Tensor, out_HW: tuple[int, int] = (64, 64)) -> Tensor:  # noqa: N803 - the name of `lpips`
    """Resize maps, bilinear with half-pixel centers.

    Args:
        in_tens: Shape ``(N, C, h, w)``.
        out_HW: Height and width of the result.

    Returns:
        Shape ``(N, C, H, W)``.
    """
    return _upsample(in_tens, (int(out_HW[0]), int(out_HW[1])))


class ScalingLayer(nn.Module):
    """Input scaling of LPIPS v0.1: ``(images - shift) / scale`` by channel, for images on [-1, 1]."""

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.tensor(Backbone.shift).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(Backbone.scale).view(1, 3, 1, 1))

    @override
    def forward(self, inp: Tensor) -> Tensor:
        return (inp - self.shift) / self.scale


class NetLinLayer(nn.Module):
    """Weighted sum over channels, as a 1x1 convolution without bias after an optional dropout.

    Args:
        chn_in: Channels of the input.
        chn_out: Channels of the result.
        use_dropout: Begin with a dropout of one half.
    """

    def __init__(self, chn_in: int, chn_out: int = 1, use_dropout: bool = False) -> None:
        super().__init__()
        dropout = [nn.Dropout()] if use_dropout else []
        self.model = nn.Sequential(*dropout, nn.Conv2d(chn_in, chn_out, 1, bias=False))

    @override
    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.model(x)
        return found


class FakeNet(nn.Module):
    """Base class of `L2` and `DSSIM`.

    Args:
        use_gpu: Put the result on the GPU.
        colorspace: ``"Lab"`` or ``"RGB"``.

    Raises:
        ValueError: If `colorspace` is another one.
    """

    def __init__(self, use_gpu: bool = True, colorspace: str = "Lab") -> None:
        super().__init__()
        if colorspace not in ("Lab", "RGB"):
            raise ValueError(f"colorspace: expected 'Lab' or 'RGB', got {colorspace!r}")
        self.use_gpu = use_gpu
        self.colorspace = colorspace

    @override
    def forward(self, in0: Tensor, in1: Tensor, retPerLayer: bool | None = None) -> Tensor:
        """Distance of one pair.

        Args:
            in0: Shape ``(1, 3, H, W)``.
            in1: The same.
            retPerLayer: Ignored.

        Returns:
            Shape ``(1,)``.

        Raises:
            ValueError: If there is not one pair.
        """
        if in0.dim() != 4 or len(in0) != 1:
            raise ValueError(f"in0: expected one image (1, 3, H, W), got shape {tuple(in0.shape)}; score one at a time")
        return self._distance(in0, in1)

    def _distance(self, in0: Tensor, in1: Tensor) -> Tensor:
        raise NotImplementedError

    def _result(self, value: Any) -> Tensor:
        found = torch.tensor([float(value)])
        return found.cuda() if self.use_gpu else found


class L2(FakeNet):
    """Squared difference of one pair of images on [-1, 1]; `lpips` halves it in Lab, and so does this."""

    @override
    def _distance(self, in0: Tensor, in1: Tensor) -> Tensor:
        if self.colorspace == "RGB":
            return (in0 - in1).square().mean((1, 2, 3))
        return self._result(arrays.l2(_lab(in0), _lab(in1), range=100.0))


class DSSIM(FakeNet):
    """``(1 - SSIM) / 2`` of one pair of images on [-1, 1]; needs scikit-image."""

    @override
    def _distance(self, in0: Tensor, in1: Tensor) -> Tensor:
        if self.colorspace == "RGB":
            x, y = (arrays.tensor2im(one).astype(np.float64) for one in (in0, in1))
            return self._result(arrays.dssim(x, y, range=255.0))
        return self._result(arrays.dssim(_lab(in0), _lab(in1), range=100.0))


def _lab(image: Tensor) -> arrays.Array:
    return arrays.tensor2np(arrays.tensor2tensorlab(image, to_norm=False))
