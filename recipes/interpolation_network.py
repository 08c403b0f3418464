"""A small network that draws the frame between two: motion to both, coarse to fine, then a blend of the two frames."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override


def warp(image: Tensor, flow: Tensor) -> Tensor:
    """What `image` shows where `flow` points: ``out(x, y) = image(x + flow_x, y + flow_y)``, bilinear.

    Places beyond the border show the border.

    Args:
        image: Shape ``(N, C, H, W)``.
        flow: Shape ``(N, 2, H, W)``, x and y in pixels.

    Returns:
        Shape ``(N, C, H, W)``, at least float32: half precision cannot say where a place on a large image is.
    """
    flow = flow.to(torch.promote_types(flow.dtype, torch.float32))
    height, width = image.shape[-2:]
    x = torch.arange(width, device=flow.device, dtype=flow.dtype) + flow[:, 0]
    y = torch.arange(height, device=flow.device, dtype=flow.dtype)[:, None] + flow[:, 1]
    # In these coordinates -1 and 1 are the image's edges, half a pixel beyond the middle of its first and last pixel.
    grid = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], -1)
    return F.grid_sample(image.to(flow.dtype), grid, mode="bilinear", padding_mode="border", align_corners=False)


def matching_scores(first: Tensor, second: Tensor, radius: int) -> Tensor:
    """How alike two frames' features are if what is between them here moved by twice a displacement.

    Each channel is a displacement ``(dx, dy)`` up to `radius`, row by row: the sum over features of
    ``first(x - dx, y - dy) * second(x + dx, y + dy)``, and 0 where one of the two lies outside. The search is
    symmetric about the frame in the middle, so one volume serves the motion to both.

    Args:
        first: Features of the first frame, shape ``(N, C, H, W)``.
        second: Of the second.
        radius: In pixels.

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
    """The displacement to expect where matches that are better around a place are likelier, and short ones a little.

    Args:
        scores: From `matching_scores`, of features of unit length.
        sharpness: Factor on the scores, averaged over 5 x 5 places, before they become shares by softmax.
        rest: Taken off before that, times the squared displacement: in a pattern that repeats, many are as good.

    Returns:
        Shape ``(N, 2, H, W)``, x and y in pixels.
    """
    side = math.isqrt(scores.shape[1])
    # The mean of the places that are there: beyond the border there is nothing to match.
    around = F.avg_pool2d(scores.float(), 5, 1, 2, count_include_pad=False)
    steps = torch.arange(side, device=scores.device, dtype=around.dtype) - side // 2
    moves = torch.stack([steps.repeat(side), steps.repeat_interleave(side)])
    shares = (sharpness * around - rest * moves.square().sum(0).view(1, -1, 1, 1)).softmax(1)
    return torch.einsum("md,ndhw->nmhw", moves, shares)


class Interpolation(NamedTuple):
    """A frame in the middle and what it was made of.

    Attributes:
        frame: Shape ``(N, 3, H, W)``; not clamped.
        flow: From the middle to the first and to the second frame, ``(N, 4, H, W)``: x, y, x, y in pixels.
        share: Of the first frame in the blend, ``(N, 1, H, W)``, in (0, 1).
        coarse: The frame from the motion at each coarser level alone, the coarsest first; padded to the stride.
    """

    frame: Tensor
    flow: Tensor
    share: Tensor
    coarse: list[Tensor]


class SearchLevel(nn.Module):
    """Adds to the motion what is left of it, in features that the motion known so far has brought together.

    Block matching about the middle gives a displacement; the convolutions say how far to trust it, and what else to
    add. They start with no trust at all.

    Args:
        width: Channels of the features.
        hidden: Channels of what is handed on to the next level.
        known: Channels of what the level before has handed on; 0 at the first.
        radius: Of the search.
    """

    def __init__(self, width: int, hidden: int, known: int, radius: int) -> None:
        super().__init__()
        self.radius = radius
        inputs = (2 * radius + 1) ** 2 + 2 + 2 * width + known
        self.body = nn.Sequential(*_conv(inputs, hidden), *_conv(hidden, hidden), *_conv(hidden, hidden))
        self.head = _zeros(nn.Conv2d(hidden, 6, 3, padding=1))

    @override
    def forward(self, pair: Tensor, known: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Features of both frames, brought together, -> what to hand on, and what to add to motion and share."""
        one, two = pair.chunk(2)
        scores = matching_scores(_comparable(one), _comparable(two), self.radius)
        best = likeliest(scores)
        hidden = self.body(torch.cat([scores, best, one, two, *known], 1))
        free, share, trust = self.head(hidden).float().split([4, 1, 1], 1)
        return hidden, torch.cat([free + trust * torch.cat([-best, best], 1), share], 1)


class InterpolationNetwork(nn.Module):
    """The frame between two, by motion from the middle to both of them.

    After PWC-Net (Sun et al. 2018, arXiv:1709.02371), BMBC (Park et al. 2020, arXiv:2007.12622) and IFRNet (Kong et al.
    2022, arXiv:2205.14620): features of both frames on a pyramid; from its coarsest level on, they are warped by the
    motion known so far and searched for what is left of it, symmetrically about the middle; the finest level works at
    half size and gives motion, share and a residual at full size. Untrained it is the mean of the two frames.

    Args:
        channels: Of the features at 1/2, 1/4, 1/8, ... of the size; their number is that of the levels, at least 2.
        hidden: Channels of the searching levels.
        fine: Channels of the finest level, where most of the work is.
        radius: Of the search at each level. The longest motion from frame to frame that is found is about
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
        # From the coarsest to the one before the finest.
        self.searches = nn.ModuleList(
            SearchLevel(width, hidden, hidden + 5 if number else 0, radius)
            for number, width in enumerate(reversed(channels[1:]))
        )
        inputs = 2 * channels[0] + hidden + 24
        self.fine = nn.Sequential(*_conv(inputs, fine), *_conv(fine, fine), _zeros(nn.Conv2d(fine, 32, 3, padding=1)))

    @override
    def forward(self, first: Tensor, second: Tensor) -> Interpolation:
        """Two frames ``(N, 3, H, W)`` in [0, 1], of any size, -> what is between them."""
        height, width = first.shape[-2:]
        # Both in one batch, the first frames first: so is every pair below.
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
        """Motion and share, ``(N, 5, h, w)``, and hidden features, at twice the finest searched level's size."""
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
        """The frame, and motion and share, at full size."""
        aligned = _aligned(features, motion).chunk(2)
        motion = _twice_motion(motion)
        frames = F.pixel_unshuffle(torch.cat(_aligned(pair, motion).chunk(2), 1) - 0.5, 2)
        made = F.pixel_shuffle(self.fine(torch.cat([*aligned, hidden, frames], 1)).float(), 2)
        motion = motion + made[:, :5]
        return _blend(pair, motion) + made[:, 5:], motion


def _aligned(pair: Tensor, motion: Tensor) -> Tensor:
    """Both of a pair, ``(2 N, C, H, W)``, as they look in the middle by the motion ``(N, 5, H, W)``."""
    return warp(pair, torch.cat([motion[:, :2], motion[:, 2:4]]))


def _blend(pair: Tensor, motion: Tensor) -> Tensor:
    one, two = _aligned(pair, motion).chunk(2)
    return torch.lerp(two, one, motion[:, 4:].sigmoid())


def _twice(values: Tensor) -> Tensor:
    return F.interpolate(values, scale_factor=2, mode="bilinear", align_corners=False)


def _twice_motion(motion: Tensor) -> Tensor:
    """Twice as large, and in the new pixels twice as long; the share stays."""
    motion = _twice(motion)
    return torch.cat([2 * motion[:, :4], motion[:, 4:]], 1)


def _comparable(features: Tensor) -> Tensor:
    """Features whose products say how alike places are: of mean 0 and variance 1 over the frame, then of length 1."""
    features = features.float()
    centered = features - features.mean((2, 3), keepdim=True)
    spread = (centered.square().mean((2, 3), keepdim=True) + 1e-5).sqrt()
    return F.normalize(centered / spread, dim=1)


def _conv(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, stride, 1), nn.LeakyReLU(0.1, inplace=True)]


def _zeros(convolution: nn.Conv2d) -> nn.Conv2d:
    # Untrained, the network is the mean of the frames: noise from random filters would cost the first steps.
    for parameter in convolution.parameters():
        nn.init.zeros_(parameter)
    return convolution
