"""Exact distances of huge images in bounded memory: stripes of rows go through the trunk, and none is computed twice.

Every convolution and pool keeps the few rows that its next windows still need, and pads only at the image's own
borders. So the numbers are those of the whole image, but for the order of the sums over positions.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from lpips_lightning.frozen import FrozenNetwork
from lpips_lightning.geometry import Course, Step, follow
from lpips_lightning.head import layer_sum
from lpips_lightning.windows import Window

__all__ = ["BLOCK", "stream"]

BLOCK = 8 * 2**20
"""Bytes of a block of an image's rows: few, so that what is freed is kept, and the cache holds much."""


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
        block: Bytes of an image's rows that should pass an operation at once. Memory grows with it.

    Returns:
        Shape ``(N,)`` by layer name, float32, or float64 for a trunk in float64.

    Raises:
        ValueError: If the trunk cannot be followed: see `lpips_lightning.geometry.obstacle`.
    """
    course = follow(network.extractor.graph)
    shapes = course.shapes((x.shape[2], x.shape[3]))
    element_size = prepare_x(x[:1, :, :1, :1]).element_size()
    distances: list[dict[str, Tensor]] = []
    for image in range(len(x)):
        pair = _Pair(course, shapes, network.calibration, block, element_size)
        for top in range(0, x.shape[2], pair.rows):
            stripe = slice(image, image + 1), slice(None), slice(top, top + pair.rows)
            pair.push(prepare_x(x[stripe]).clone(), prepare_y(y[stripe]).clone())
        distances.append(pair.distances)
    return {layer: torch.cat([pair[layer] for pair in distances]) for layer in network.layers}


class _Lane:
    """The rows of one input of one image that are still needed."""

    def __init__(self) -> None:
        self.seen = 0
        self._start = 0
        self._parts: list[tuple[Tensor, bool]] = []
        self._none = torch.empty(0)

    def add(self, rows: Tensor, own: bool) -> None:
        """Rows that come next; they are ours alone, or others still use them and may change them."""
        if self.seen == 0:
            self._none = rows[:, :, :0].clone()
        self._parts.append((rows, own))
        self.seen += rows.shape[2]

    def take(self, low: int, high: int) -> list[Tensor]:
        """The rows ``[low, high)``, in one or more parts; some windows lie in the padding alone."""
        taken, start = [], self._start
        for rows, _ in self._parts:
            stop = start + rows.shape[2]
            if start < high and low < stop:
                taken.append(rows[:, :, max(low - start, 0) : high - start])
            start = stop
        return taken or [self._none]

    def forget(self, low: int) -> None:
        """Let go of what comes before row `low`; of the rest, copy what others may change."""
        kept, start = [], self._start
        for rows, own in self._parts:
            stop = start + rows.shape[2]
            if low <= start and own:
                kept.append((rows, True))
            elif low < stop:
                rest = rows[:, :, max(low - start, 0) :]
                kept.append((rest.clone(memory_format=torch.channels_last), True))
            start = stop
        self._parts = kept
        self._start = min(max(low, self._start), self.seen)


class _Pair:
    """Two images on their way through the trunk, row by row beside each other."""

    def __init__(
        self,
        course: Course,
        shapes: dict[str, tuple[int, int, int]],
        calibration: dict[str, Tensor] | None,
        block: int,
        element_size: int,
    ) -> None:
        self._course, self._shapes, self._calibration = course, shapes, calibration
        self._block, self._element_size = block, element_size
        self._lanes = [[(_Lane(), _Lane()) for _ in step.inputs] for step in course.steps]
        self._made = dict.fromkeys(shapes, 0)
        self._sums: dict[str, Tensor] = {}

    @property
    def distances(self) -> dict[str, Tensor]:
        """Mean over positions by layer, once all rows are through."""
        sizes = {layer: self._shapes[name] for layer, name in self._course.taps.items()}
        return {layer: total / (sizes[layer][1] * sizes[layer][2]) for layer, total in self._sums.items()}

    @property
    def rows(self) -> int:
        """Of the images that should come at once: of no result do they make more than a block, or a row."""
        jumps = {name: sights[0].jump for name, sights in self._course.sights.items()}
        return max(1, min(self._block // self._row(name) * jumps[name] for name in self._shapes))

    def push(self, x: Tensor, y: Tensor) -> None:
        """The next rows of both images.

        Args:
            x: As the trunk wants them, shape ``(1, 3, h, W)``.
            y: The same.
        """
        results = {self._course.image: [x, y]}
        del x, y
        self._tap(self._course.image, results)
        for index, step in enumerate(self._course.steps):
            self._receive(index, step, results)
            first, stop = self._made[step.name], self._possible(index, step)
            if stop > first:
                results[step.name] = [self._make(index, step, first, stop, side) for side in range(2)]
                self._made[step.name] = stop
                self._tap(step.name, results)
            else:
                for lane in itertools.chain(*self._lanes[index]):
                    lane.forget(0)

    def _tap(self, name: str, results: dict[str, list[Tensor]]) -> None:
        for layer, tap in self._course.taps.items():
            if tap == name:
                weight = None if self._calibration is None else self._calibration[layer]
                x, y = results[name]
                total = layer_sum(x, y, weight)
                self._sums[layer] = self._sums[layer] + total if layer in self._sums else total
        if name not in self._course.last_use:
            del results[name]

    def _receive(self, index: int, step: Step, results: dict[str, list[Tensor]]) -> None:
        """Hand the new rows of its inputs to a step; with the last that needs them, they are out of the results."""
        for lanes, name in zip(self._lanes[index], step.inputs, strict=True):
            last = self._course.last_use[name] == index
            for lane, rows in zip(lanes, results.get(name, ()), strict=False):
                lane.add(rows, own=last and step.inputs.count(name) == 1)
        for name in step.inputs:
            if self._course.last_use[name] == index:
                results.pop(name, None)

    def _possible(self, index: int, step: Step) -> int:
        """How many rows of a step's result can, and should, be made by now."""
        seen = min(lanes[0].seen for lanes in self._lanes[index])
        total, height = self._shapes[step.name][1], self._shapes[step.inputs[0]][1]
        if not isinstance(step.act, Window) or seen in (0, height):
            return total if seen == height else seen
        stop = min(total, step.act.rows.complete(seen))
        # Thin rows wait for others: every call costs time, and a copy of the weights.
        return stop if 2 * (stop - self._made[step.name]) > self._fitting(step) else 0

    def _make(self, index: int, step: Step, first: int, stop: int, side: int) -> Tensor:
        """The rows ``[first, stop)`` of a step's result, of one image."""
        lanes = [both[side] for both in self._lanes[index]]
        if not isinstance(step.act, Window):
            inputs = [_joined(lane.take(first, stop)) for lane in lanes]
            for lane in lanes:
                lane.forget(stop)
            return step.act(*inputs)
        axis, height = step.act.rows, self._shapes[step.inputs[0]][1]
        low, high = axis.under(first, stop)
        parts = lanes[0].take(max(low, 0), min(high, height))
        rows = _padded(parts, max(-low, 0), max(high - height, 0), step.act.fill)
        del parts  # what was copied need not be there any more while the step runs
        lanes[0].forget(max(0, axis.under(stop, stop)[0]))
        return step.act.run(rows, first, height)

    def _fitting(self, step: Step) -> int:
        """Rows of a window's result that make a block, or are made of one."""
        assert isinstance(step.act, Window)
        return self._block // max(self._row(step.name), self._row(step.inputs[0]) * step.act.rows.stride)

    def _row(self, name: str) -> int:
        """Bytes of a row."""
        depth, _, width = self._shapes[name]
        return max(1, depth * width * self._element_size)


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, 2)


def _padded(parts: list[Tensor], top: int, bottom: int, fill: float) -> Tensor:
    """The parts in one tensor, between rows of `fill`."""
    like = parts[0]
    layout = torch.channels_last
    shapes = [(like.shape[0], like.shape[1], rows, like.shape[3]) for rows in (top, bottom)]
    above, below = ([like.new_full(shape, fill).to(memory_format=layout)] if shape[2] else [] for shape in shapes)
    return _joined([*above, *parts, *below])
