"""Distances of neighboring frames; every frame is encoded once, and of earlier batches only the last frame is kept."""

from __future__ import annotations

import torch
from torch import Tensor

from lpips_lightning.batch import BatchLayout, Features
from lpips_lightning.images.hints import Hints
from lpips_lightning.images.preprocessing import check_dense
from lpips_lightning.images.ranges import Role
from lpips_lightning.perceptual_distance import PerceptualDistance, measure

_MAX_PIXELS = 1 << 19  # per backbone pass; at least one frame


class FrameSequence:
    """Distance of each frame to the frame before it, for frames that come in batches.

    Args:
        net: The network.
        data_range: ``(low, high)`` of frames that come as images.
    """

    def __init__(self, net: PerceptualDistance, data_range: tuple[float, float]) -> None:
        self.net = net
        self.data_range = data_range
        self._last: Tensor | Features | None = None

    def reset(self) -> None:
        """Forget the last frame: the next one begins a video."""
        self._last = None

    def extend(self, frames: Tensor | Features) -> Tensor:
        """Add frames.

        Args:
            frames: Images ``(N, 3, H, W)``, or their features from ``net.encode``, always the same of both; N >= 1.

        Returns:
            Distances ``(N,)``; NaN for the first frame of all.
        """
        count = _count(frames)
        if self._last is None:
            like = frames if isinstance(frames, Tensor) else next(iter(frames.layers.values()))
            parts = [torch.full((1,), float("nan"), device=like.device)]
        else:
            parts = [self._distance(self._last, _part(frames, 0, 1))]
        if count > 1:
            parts.append(self._distance(_part(frames, 0, count - 1), _part(frames, 1, count)))
        self._last = _own(_part(frames, count - 1, count))
        return torch.cat(parts)

    def _distance(self, before: Tensor | Features, after: Tensor | Features) -> Tensor:
        if isinstance(before, Features) and isinstance(after, Features):
            return self.net.distance(before, after)
        found = self.net.measure(before, after, self.data_range).values  # type: ignore[arg-type]
        assert isinstance(found, Tensor)
        return found


def neighbor_distances(
    net: PerceptualDistance, videos: Tensor, data_range: tuple[float, float], role: Role = "data"
) -> Tensor:
    """Distance of every frame to the next.

    Data is encoded once, a few frames at a time. Predictions, which must not be clamped, all frames under a memory
    budget, and those of an ensemble of fresh draws are measured as pairs: the backbone runs on most of them twice.

    Args:
        net: The network.
        videos: Checked videos ``(B, T, 3, H, W)``, T >= 2.
        data_range: ``(low, high)``.
        role: Role of the videos.

    Returns:
        Distances ``(B, T - 1)``.
    """
    batch, count, _, height, width = videos.shape
    if role == "prediction" or net.memory_budget is not None or not net.is_repeatable or not batch:
        found = measure(net, videos[:, :-1], videos[:, 1:], data_range, roles=(role, role)).values
        assert isinstance(found, Tensor)
        return found
    sequence = FrameSequence(net, data_range)
    size = net.frame_chunk or max(1, _MAX_PIXELS // (height * width))
    parts = [sequence.extend(net.encode(frames, data_range)) for frames in videos.flatten(0, 1).split(size)]
    return torch.cat(parts).view(batch, count)[:, 1:]  # the first one is to the video before


def temporal_differences(
    net: PerceptualDistance,
    x: Tensor,
    y: Tensor,
    data_range: tuple[float, float],
    *,
    names: tuple[str, str],
    roles: tuple[Role, Role],
    hints: Hints,
) -> Tensor:
    """Difference of the changes of two videos: ``|d(x_t, x_t+1) - d(y_t, y_t+1)|``.

    Args:
        net: The network.
        x: Videos ``(B, T, 3, H, W)``.
        y: Videos of the same shape.
        data_range: ``(low, high)``.
        names: Names of `x` and `y` in errors.
        roles: Roles of `x` and `y`; only data is clamped.
        hints: Ways out that errors about pixel values name.

    Returns:
        Shape ``(B, T - 1)``.

    Raises:
        TypeError: If either is not a tensor.
        ValueError: If shapes or devices do not match, videos have less than two frames, or values are off the range.
    """
    for videos, name in zip((x, y), names, strict=True):
        check_dense(videos, name, "a tensor (B, T, 3, H, W)")
        if videos.dim() != 5 or videos.shape[1] < 2:
            raise ValueError(
                f"{name}: expected videos (B, T, 3, H, W) of two frames or more, got shape {tuple(videos.shape)}"
            )
    net.check_range(data_range)
    net.check_shapes(x, y, names)
    net.check_pair_values(x, y, names, data_range, roles, hints)
    first, second = (
        neighbor_distances(net, videos, data_range, role) for videos, role in zip((x, y), roles, strict=True)
    )
    return (first - second).abs()


def _count(frames: Tensor | Features) -> int:
    return len(frames) if isinstance(frames, Tensor) else frames.batch_layout.shape[0]


def _part(frames: Tensor | Features, start: int, stop: int) -> Tensor | Features:
    """Consecutive frames, as views."""
    if isinstance(frames, Tensor):
        return frames[start:stop]
    rows = frames.batch_layout.channels
    layers = {layer: values[start * rows : stop * rows] for layer, values in frames.layers.items()}
    return frames._replace(layers=layers, batch_layout=BatchLayout((stop - start,), rows))


def _own(frames: Tensor | Features) -> Tensor | Features:
    """The same without the memory of the batch that they come from."""
    if isinstance(frames, Tensor):
        return frames.clone()
    return frames._replace(layers={layer: values.clone() for layer, values in frames.layers.items()})
