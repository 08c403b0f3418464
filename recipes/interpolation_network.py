"""A small network that draws the frame between two: motion to both, coarse to fine, then a blend of the two frames."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

__all__ = ["InterpolationNetwork", "Interpolation", "matching_scores", "warp"]


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

    Each channel is a displacement ``(dx, dy)`` up to `radius`, row by row: the mean over features of
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
            scores.append((one * two).mean(1))
    return torch.stack(scores, 1)


class Interpolation(NamedTuple):
    """A frame in the middle and what it was made of.

    Attributes:
        frame: Shape ``(N, 3, H, W)``; not clamped.
        flow: From the middle to the first and the second frame, ``(N, 4, H, W)``: x, y, x, y in pixels.
        share: Of the first frame in the blend, ``(N, 1, H, W)``, in (0, 1).
        coarse: The same frame from the coarser levels' motion alone, each of half the size of the one before.
    """

    frame: Tensor
    flow: Tensor
    share: Tensor
    coarse: list[Tensor]


class InterpolationNetwork(nn.Module):
    """The frame between two, by motion from the middle to both of them.

    After PWC-Net (Sun et al. 2018), BMBC (Park et al. 2020) and IFRNet (Kong et al. 2022): features of both frames on
    a pyramid; from its coarsest level on, the features are warped by the motion known so far and searched for what is
    left of it, symmetrically about the middle; the finest level works at half size and gives motion, blending mask and a
    residual at full size. Untrained it is the mean of the two frames.

    Args:
        channels: Of the features at 1/2, 1/4, 1/8, ... of the size; the number of them is that of the levels.
        hidden: Channels of the searching levels.
        fine: Channels of the finest level, where most of the work is.
        radius: Of the search at each level. The longest motion from frame to frame that is found is about
            ``radius * 2 ** (levels + 1)`` pixels.
    """

    def __init__(
        self, channels: Sequence[int] = (16, 24, 32), hidden: int = 32, fine: int = 24, radius: int = 3
    ) -> None:
        super().__init__()
        self.radius, self.stride = radius, 2 ** len(channels)
        widths = [3, *channels]
        self.encoders = nn.ModuleList(
            nn.Sequential(*_conv(one, two, stride=2), *_conv(two, two)) for one, two in zip(widths, channels, strict=False)
        )
        searched = (2 * radius + 1) ** 2
        self.searches = nn.ModuleList()
        for level, width in enumerate(reversed(channels[1:])):
            known = hidden + 5 if level else 0
            inputs = searched + 2 + 2 * width + known
            self.searches.append(nn.Sequential(*_conv(inputs, hidden), *_conv(hidden, hidden), *_conv(hidden, hidden)))
        self.heads = nn.ModuleList(nn.Conv2d(hidden, 6, 3, padding=1) for _ in self.searches)
        self.fine = nn.Sequential(
            *_conv(2 * channels[0] + hidden + 24, fine), *_conv(fine, fine), nn.Conv2d(fine, 32, 3, padding=1)
        )
        for head in (*self.heads, self.fine[-1]):
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)

    @override
    def forward(self, first: Tensor, second: Tensor) -> Interpolation:
        """Two frames ``(N, 3, H, W)`` in [0, 1], of any size, and what is between them."""
        height, width = first.shape[-2:]
        pads = [0, -width % self.stride, 0, -height % self.stride]
        frames = F.pad(torch.cat([first, second]), pads, mode="replicate") if any(pads) else torch.cat([first, second])
        frame, flow, share, coarse = self._interpolate(frames)
        return Interpolation(*(part[..., :height, :width] for part in (frame, flow, share)), coarse)

    def _likeliest(self, scores: Tensor) -> Tensor:
        """The displacement to expect, ``(N, 2, H, W)``, if better matches of the neighbourhood are likelier."""
        likely = F.avg_pool2d(scores, 5, 1, 2, count_include_pad=False).mul(40).softmax(1)
        steps = torch.arange(-self.radius, self.radius + 1.0, device=scores.device)
        moves = torch.stack([steps.repeat(len(steps)), steps.repeat_interleave(len(steps))])
        return torch.einsum("md,ndhw->nmhw", moves, likely)

    def _interpolate(self, frames: Tensor) -> Interpolation:
        pyramid, features = [], frames - 0.5
        for encoder in self.encoders:
            features = encoder(features)
            pyramid.append(features)
        flow, hidden, coarse = None, None, []
        for level in range(len(pyramid) - 1, 0, -1):
            search, head = self.searches[len(pyramid) - 1 - level], self.heads[len(pyramid) - 1 - level]
            one, two = pyramid[level].chunk(2)
            known = []
            if flow is not None:
                flow, hidden = _twice(flow, motion=True), _twice(hidden)
                one, two = warp(one, flow[:, :2]), warp(two, flow[:, 2:4])
                known = [hidden, flow]
            scores = matching_scores(_unit(one), _unit(two), self.radius) * one.shape[1]
            best = self._likeliest(scores)
            hidden = search(torch.cat([scores, best, one, two, *known], 1))
            change = head(hidden).float()
            moved = change[:, 5:] * best
            change = torch.cat([change[:, :2] - moved, change[:, 2:4] + moved, change[:, 4:5]], 1)
            flow = change if flow is None else flow + change
            small = F.avg_pool2d(frames, 2 ** (level + 1))
            coarse.append(_blend(*small.chunk(2), flow)[0])
        flow, hidden = _twice(flow, motion=True), _twice(hidden)
        one, two = (warp(part, flow[:, place : place + 2]) for part, place in zip(pyramid[0].chunk(2), (0, 2), strict=True))
        flow_whole = _twice(flow, motion=True)
        images = [warp(part, flow_whole[:, place : place + 2]) for part, place in zip(frames.chunk(2), (0, 2), strict=True)]
        images = F.pixel_unshuffle(torch.cat(images, 1) - 0.5, 2)
        made = F.pixel_shuffle(self.fine(torch.cat([one, two, hidden, images], 1)).float(), 2)
        flow = flow_whole + made[:, :5]
        frame, share = _blend(*frames.chunk(2), flow)
        return Interpolation(frame + made[:, 5:], flow[:, :4], share, coarse[::-1])


def _unit(features: Tensor) -> Tensor:
    return F.normalize(F.instance_norm(features), dim=1)


def _blend(first: Tensor, second: Tensor, flow: Tensor) -> tuple[Tensor, Tensor]:
    share = flow[:, 4:].sigmoid()
    first, second = warp(first, flow[:, :2]), warp(second, flow[:, 2:4])
    return share * first + (1 - share) * second, share


def _twice(values: Tensor, motion: bool = False) -> Tensor:
    """Twice as large; as a motion and a mask, twice as long in the new pixels."""
    large = F.interpolate(values, scale_factor=2, mode="bilinear", align_corners=False)
    if not motion:
        return large
    return large * torch.tensor([2.0, 2, 2, 2, 1], device=values.device).view(1, 5, 1, 1)


def _conv(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, stride, 1), nn.LeakyReLU(0.1, inplace=True)]
