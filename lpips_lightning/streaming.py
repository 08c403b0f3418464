"""Exact distances of huge images in bounded memory: stripes of rows go through the trunk, and none is computed twice.

Every convolution and pool keeps the few rows that its next windows still need, and pads only at the image's own
borders. So the numbers are those of the whole image, but for the order of the sums over positions.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lpips_lightning.frozen import FrozenNetwork
from lpips_lightning.geometry import Course, Step, follow
from lpips_lightning.head import layer_sum
from lpips_lightning.windows import Window

__all__ = ["BLOCK", "stream"]

BLOCK = 16 * 2**20
"""Bytes of a block of rows that pass an operation at once: below the size from which allocators go to the system."""


@torch.no_grad()
def stream(
    network: FrozenNetwork,
    x: Tensor,
    y: Tensor,
    prepare_x: Callable[[Tensor], Tensor],
    prepare_y: Callable[[Tensor], Tensor],
    block: int = BLOCK,
) -> dict[str, Tensor]:
    """Distance of every pair at every layer, without a graph.

    Args:
        network: In the dtype and on the device of what `prepare_x` makes.
        x: Images ``(N, 3, H, W)``.
        y: Images of the same shape.
        prepare_x: Rows of images ``(1, 3, h, W)`` -> the trunk's input; of every pixel by itself.
        prepare_y: The same for `y`.
        block: Bytes of rows, of both images, that should pass an operation at once. Memory grows with it and time
            falls, little from 8 MiB on.

    Returns:
        Shape ``(N,)`` by layer name, float32, or float64 for a trunk in float64.

    Raises:
        ValueError: If the trunk cannot be followed: see `lpips_lightning.geometry.obstacle`.
    """
    course = follow(network.extractor.graph)
    size = (x.shape[2], x.shape[3])
    shapes = course.shapes(size)
    pairs = []
    for image in range(len(x)):
        pair = _Pair(course, shapes, network.calibration, block)
        rows = pair.rows(prepare_x(x[:1, :, :1, :1]).element_size())
        for top in range(0, size[0], rows):
            stripe = slice(image, image + 1), slice(None), slice(top, top + rows)
            pair.push(torch.cat([prepare_x(x[stripe]), prepare_y(y[stripe])]))
        pairs.append(pair.distances)
    return {layer: torch.stack([pair[layer] for pair in pairs]) for layer in network.layers}


class _Lane:
    """The rows of one input that are still needed."""

    def __init__(self) -> None:
        self.seen = 0
        self._start = 0
        self._parts: list[Tensor] = []

    def add(self, rows: Tensor) -> None:
        self._parts.append(rows)
        self.seen += rows.shape[2]

    def take(self, low: int, high: int) -> list[Tensor]:
        """The rows ``[low, high)``, in one or more parts."""
        taken, start = [], self._start
        for part in self._parts:
            stop = start + part.shape[2]
            if start < high and low < stop:
                taken.append(part[:, :, max(low - start, 0) : high - start])
            start = stop
        return taken

    def forget(self, low: int) -> None:
        """Keep copies of what comes from row `low` on, so that no larger memory is held, or changed, by others."""
        kept = self.take(low, self.seen)
        layout = torch.channels_last
        self._parts = [_joined(kept).clone(memory_format=layout)] if kept else []
        self._start = min(max(low, self._start), self.seen)


class _Pair:
    """Two images on their way through the trunk, side by side in one batch."""

    def __init__(
        self,
        course: Course,
        shapes: dict[str, tuple[int, int, int]],
        calibration: dict[str, Tensor] | None,
        block: int,
    ) -> None:
        self._course, self._shapes, self._calibration, self._block = course, shapes, calibration, block
        self._lanes = [[_Lane() for _ in step.inputs] for step in course.steps]
        self._made = dict.fromkeys(shapes, 0)
        self._sums: dict[str, Tensor] = {}

    @property
    def distances(self) -> dict[str, Tensor]:
        """Mean over positions by layer, once all rows are through."""
        sizes = {layer: self._shapes[name] for layer, name in self._course.taps.items()}
        return {layer: total / (sizes[layer][1] * sizes[layer][2]) for layer, total in self._sums.items()}

    def rows(self, element_size: int) -> int:
        """Of the images that should come at once: no result of theirs is larger than a block, or a block and a row."""
        jumps = {name: sights[0].jump for name, sights in self._course.sights.items()}
        fitting = [
            self._block // (2 * depth * width * element_size) * jumps[name]
            for name, (depth, _, width) in self._shapes.items()
        ]
        return max(1, min(fitting))

    def push(self, stripe: Tensor) -> None:
        """The next rows of both images.

        Args:
            stripe: As the trunk wants it, shape ``(2, 3, h, W)``.
        """
        results = {self._course.image: stripe}
        self._tap(self._course.image, stripe)
        del stripe
        for index, step in enumerate(self._course.steps):
            made = self._advance(index, step, results)
            if made is None or made.shape[2] == 0:
                continue
            self._made[step.name] += made.shape[2]
            self._tap(step.name, made)
            if step.name in self._course.last_use:
                results[step.name] = made

    def _tap(self, name: str, rows: Tensor) -> None:
        for layer, tap in self._course.taps.items():
            if tap == name:
                weight = None if self._calibration is None else self._calibration[layer]
                total = layer_sum(rows[:1], rows[1:], weight)[0]
                self._sums[layer] = self._sums[layer] + total if layer in self._sums else total

    def _advance(self, index: int, step: Step, results: dict[str, Tensor]) -> Tensor | None:
        """What a step can make now. Of its inputs' rows nothing is held on to but what the next windows need."""
        lanes = self._lanes[index]
        for lane, name in zip(lanes, step.inputs, strict=True):
            if name in results:
                lane.add(results[name])
        for name in step.inputs:
            if self._course.last_use[name] == index:
                results.pop(name, None)
        made = self._made[step.name]
        height = self._shapes[step.inputs[0]][1]
        ready = min(lane.seen for lane in lanes)
        if not isinstance(step.act, Window):
            parts = [lane.take(made, ready) for lane in lanes]
            for lane in lanes:
                lane.forget(ready)
            return step.act(*(_joined(part) for part in parts)) if ready > made else None
        axis = step.act.rows
        stop = self._shapes[step.name][1]
        if ready < height:
            stop = min(stop, axis.complete(ready))
            if 2 * (stop - made) <= self._fitting(step):
                lanes[0].forget(max(0, axis.under(made, made)[0]))
                return None
        if stop <= made:
            return None
        low, high = axis.under(made, stop)
        parts = lanes[0].take(max(low, 0), min(high, height))
        padded = _padded(parts, max(-low, 0), max(high - height, 0), step.act.fill)
        del parts
        lanes[0].forget(max(0, axis.under(stop, stop)[0]))
        return step.act.run(padded, made, height)

    def _fitting(self, step: Step) -> int:
        """Rows of a step's result that make a block, with those that they are made of; few are left to wait."""
        assert isinstance(step.act, Window)
        depth, _, width = self._shapes[step.name]
        below, _, wide = self._shapes[step.inputs[0]]
        return self._block // (2 * 4 * max(depth * width, below * wide * step.act.rows.stride))


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, 2)


def _padded(parts: list[Tensor], top: int, bottom: int, fill: float) -> Tensor:
    """The parts in one tensor, between rows of `fill`."""
    like = parts[0]
    layout = torch.channels_last
    shapes = [(like.shape[0], like.shape[1], rows, like.shape[3]) for rows in (top, bottom)]
    above, below = ([like.new_full(shape, fill).to(memory_format=layout)] if shape[2] else [] for shape in shapes)
    return _joined([*above, *parts, *below])
