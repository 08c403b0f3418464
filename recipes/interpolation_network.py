"""Small frame interpolation network: coarse-to-fine motion to both frames, then a blend of the warped frames."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override


def warp(image: Tensor, flow: Tensor) -> Tensor:
    """Warp an image backward: ``out(x, y) = image(x + flow_x, y + flow_y)``, bilinear, with border padding.

    Args:
        image: Shape ``(N, C, H, W)``.
        flow: Shape ``(N, 2, H, W)``, x and y in pixels.

    Returns:
        Shape ``(N, C, H, W)``, at least float32: half precision is too coarse for coordinates of large images.
    """
    flow = flow.to(torch.promote_types(flow.dtype, torch.float32))
    height, width = image.shape[-2:]
    x = torch.arange(width, device=flow.device, dtype=flow.dtype) + flow[:, 0]
    y = torch.arange(height, device=flow.device, dtype=flow.dtype)[:, None] + flow[:, 1]
    # Normalized coordinates: -1 and 1 are the image edges, half a pixel beyond the centers of the outer pixels.
    grid = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], -1)
    return F.grid_sample(image.to(flow.dtype), grid, mode="bilinear", padding_mode="border", align_corners=False)


def matching_scores(first: Tensor, second: Tensor, radius: int) -> Tensor:
    """Correlation of two frames' features for displacements symmetric about the middle frame.

    Each channel is one displacement ``(dx, dy)`` up to `radius`, row by row: the sum over features of
    ``first(x - dx, y - dy) * second(x + dx, y + dy)``, and 0 outside the image. Because of the symmetry, one cost
    volume gives the motion to both frames.

    Args:
        first: Features of the first frame, shape ``(N, C, H, W)``.
        second: Features of the second frame, same shape.
        radius: Search radius in pixels.

    Returns:
        Shape ``(N, (2 * radius + 1) ** 2, H, W)``.
    """
    height, width = first.shape[-2:]
    first, second = (F.pad(features, [radius] * 4) for features in (first, second))
    scores = []
    for dy in range(-radius, radius + 1):
        for dx in range(-radius, radius + 1):
            one = first[..., radius - dy : radius - dy + height, radius - dx : radius - dx + width]
            two = second[..., radius + dy : radius + dy + height, radius + dx : radius + dx + width]
            scores.append((one * two).sum(1))
    return torch.stack(scores, 1)


def likeliest(scores: Tensor, sharpness: float = 40.0, rest: float = 0.5) -> Tensor:
    """Expected displacement (soft-argmax) from locally averaged matching scores, with a preference for short ones.

    Args:
        scores: From `matching_scores`, for features of unit length.
        sharpness: Factor on the scores, averaged over 5 x 5 positions, before the softmax.
        rest: Penalty per squared displacement before the softmax; it resolves ambiguity in repetitive patterns.

    Returns:
        Shape ``(N, 2, H, W)``, x and y in pixels.
    """
    side = math.isqrt(scores.shape[1])
    # Average only over positions inside the image.
    averaged = F.avg_pool2d(scores.float(), 5, 1, 2, count_include_pad=False)
    steps = torch.arange(side, device=scores.device, dtype=averaged.dtype) - side // 2
    moves = torch.stack([steps.repeat(side), steps.repeat_interleave(side)])
    weights = (sharpness * averaged - rest * moves.square().sum(0).view(1, -1, 1, 1)).softmax(1)
    return torch.einsum("md,ndhw->nmhw", moves, weights)


class Interpolation(NamedTuple):
    """Interpolated frame with its motion.

    Attributes:
        frame: Shape ``(N, 3, H, W)``; not clamped.
        flow: Motion from the middle to the first and to the second frame, ``(N, 4, H, W)``: x, y, x, y in pixels.
        blend: Weight of the first frame, ``(N, 1, H, W)``, in (0, 1).
        coarse: Frame from the motion of each coarser level, coarsest first; padded to a multiple of the stride.
    """

    frame: Tensor
    flow: Tensor
    blend: Tensor
    coarse: list[Tensor]


class SearchLevel(nn.Module):
    """Estimates the residual motion between features that are aligned by the motion so far.

    Block matching gives a displacement; convolutions predict its weight and an additional motion. The initial weight is
    0.

    Args:
        width: Channels of the features.
        hidden: Channels of the hidden features for the next level.
        known: Channels from the previous level; 0 at the first.
        radius: Search radius in pixels of the level.
    """

    def __init__(self, width: int, hidden: int, known: int, radius: int) -> None:
        super().__init__()
        self.radius = radius
        inputs = (2 * radius + 1) ** 2 + 2 + 2 * width + known
        self.body = nn.Sequential(*_conv(inputs, hidden), *_conv(hidden, hidden), *_conv(hidden, hidden))
        self.head = _zeros(nn.Conv2d(hidden, 6, 3, padding=1))

    @override
    def forward(self, pair: Tensor, known: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Compute hidden features and the update of motion and blend from aligned features of both frames."""
        one, two = pair.chunk(2)
        scores = matching_scores(_comparable(one), _comparable(two), self.radius)
        best = likeliest(scores)
        hidden = self.body(torch.cat([scores, best, one, two, *known], 1))
        free, blend, trust = self.head(hidden).float().split([4, 1, 1], 1)
        return hidden, torch.cat([free + trust * torch.cat([-best, best], 1), blend], 1)


class InterpolationNetwork(nn.Module):
    """Frame interpolation by motion from the middle frame to both frames.

    After PWC-Net (Sun et al. 2018, arXiv:1709.02371), BMBC (Park et al. 2020, arXiv:2007.12622) and IFRNet (Kong et al.
    2022, arXiv:2205.14620): a feature pyramid of both frames; from coarse to fine, features are warped by the motion so
    far and the residual motion is searched symmetrically about the middle; the finest level works at half size and
    gives motion, blend and a residual image at full size. The untrained network returns the mean of the two frames.

    Args:
        channels: Feature channels at 1/2, 1/4, 1/8, ... of the size, one entry per level, at least two.
        hidden: Channels of the search levels.
        fine: Channels of the finest level, which has most of the computation.
        radius: Search radius at each level. The largest motion between the frames is about
            ``radius * 2 ** (levels + 1)`` pixels.

    Raises:
        ValueError: If there are fewer than two levels, or a number is below 1.
    """

    def __init__(
        self, channels: Sequence[int] = (16, 24, 32), hidden: int = 32, fine: int = 24, radius: int = 2
    ) -> None:
        super().__init__()
        if len(channels) < 2 or min(channels) < 1:
            raise ValueError(f"channels: expected at least two positive numbers, got {list(channels)}")
        for name, number in (("hidden", hidden), ("fine", fine), ("radius", radius)):
            if number < 1:
                raise ValueError(f"{name}: expected at least 1, got {number}")
        self.stride = 2 ** len(channels)
        self.encoders = nn.ModuleList(
            nn.Sequential(*_conv(inputs, outputs, stride=2), *_conv(outputs, outputs))
            for inputs, outputs in zip((3, *channels), channels, strict=False)
        )
        # From the coarsest level to the second finest.
        self.searches = nn.ModuleList(
            SearchLevel(width, hidden, hidden + 5 if index else 0, radius)
            for index, width in enumerate(reversed(channels[1:]))
        )
        inputs = 2 * channels[0] + hidden + 24
        self.fine = nn.Sequential(*_conv(inputs, fine), *_conv(fine, fine), _zeros(nn.Conv2d(fine, 32, 3, padding=1)))

    @override
    def forward(self, first: Tensor, second: Tensor) -> Interpolation:
        """Interpolate two frames ``(N, 3, H, W)`` in [0, 1] of any size."""
        height, width = first.shape[-2:]
        # Both frames in one batch, first frames first; all pairs below have this layout.
        pair, pads = torch.cat([first, second]), [0, -width % self.stride, 0, -height % self.stride]
        pair = F.pad(pair, pads, mode="replicate") if any(pads) else pair
        pyramid, features = [], pair - 0.5
        for encoder in self.encoders:
            features = encoder(features)
            pyramid.append(features)
        motion, hidden, coarse = self._search(pair, pyramid[:0:-1])
        frame, motion = self._refine(pair, pyramid[0], motion, hidden)
        frame, motion = frame[..., :height, :width], motion[..., :height, :width]
        return Interpolation(frame, motion[:, :4], motion[:, 4:].sigmoid(), coarse)

    def _search(self, pair: Tensor, pyramid: Sequence[Tensor]) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Motion and blend, ``(N, 5, h, w)``, and hidden features, at twice the size of the finest search level."""
        motion, hidden, known, coarse = pair.new_zeros(()), pair, list[Tensor](), []
        for search, features in zip(self.searches, pyramid, strict=True):
            hidden, change = search(_aligned(features, motion) if known else features, known)
            motion = motion + change
            height, width = motion.shape[-2:]
            coarse.append(_blend(F.adaptive_avg_pool2d(pair, (height, width)), motion))
            hidden, motion = _twice(hidden), _twice_motion(motion)
            known = [hidden, motion]
        return motion, hidden, coarse

    def _refine(self, pair: Tensor, features: Tensor, motion: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Frame, and motion and blend, at full size."""
        aligned = _aligned(features, motion).chunk(2)
        motion = _twice_motion(motion)
        frames = F.pixel_unshuffle(torch.cat(_aligned(pair, motion).chunk(2), 1) - 0.5, 2)
        made = F.pixel_shuffle(self.fine(torch.cat([*aligned, hidden, frames], 1)).float(), 2)
        motion = motion + made[:, :5]
        return _blend(pair, motion) + made[:, 5:], motion


def _aligned(pair: Tensor, motion: Tensor) -> Tensor:
    """Warp both frames of pairs ``(2 N, C, H, W)`` to the middle by the motion ``(N, 5, H, W)``."""
    return warp(pair, torch.cat([motion[:, :2], motion[:, 2:4]]))


def _blend(pair: Tensor, motion: Tensor) -> Tensor:
    one, two = _aligned(pair, motion).chunk(2)
    return torch.lerp(two, one, motion[:, 4:].sigmoid())


def _twice(values: Tensor) -> Tensor:
    return F.interpolate(values, scale_factor=2, mode="bilinear", align_corners=False)


def _twice_motion(motion: Tensor) -> Tensor:
    """Upsample motion and blend by 2; motion in pixels doubles."""
    motion = _twice(motion)
    return torch.cat([2 * motion[:, :4], motion[:, 4:]], 1)


def _comparable(features: Tensor) -> Tensor:
    """Normalize features for matching: mean 0 and variance 1 over the frame, then unit length."""
    features = features.float()
    centered = features - features.mean((2, 3), keepdim=True)
    deviation = (centered.square().mean((2, 3), keepdim=True) + 1e-5).sqrt()
    return F.normalize(centered / deviation, dim=1)


def _conv(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, stride, 1), nn.LeakyReLU(0.1, inplace=True)]


def _zeros(convolution: nn.Conv2d) -> nn.Conv2d:
    # The untrained network returns the mean of the frames, so that random filters do not slow down the first steps.
    for parameter in convolution.parameters():
        nn.init.zeros_(parameter)
    return convolution
