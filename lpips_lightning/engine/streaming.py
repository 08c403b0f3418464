"""Exact distances of huge images in bounded memory: row strips pass the backbone one after another, none twice.

Every convolution and pool keeps the few input rows that its next windows need in a line buffer, and pads only at the
true image borders. The result differs from that of the whole image only by the order of the sums over positions.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from lpips_lightning.backbones.frozen import FrozenNetwork
from lpips_lightning.engine.constants import STRIP_BYTES
from lpips_lightning.engine.graph import LayerGraph, Node
from lpips_lightning.engine.state import Engine
from lpips_lightning.engine.windows import Window, joined
from lpips_lightning.kernels.head import layer_sum


@torch.no_grad()
def stream(
    network: FrozenNetwork,
    x: Tensor,
    y: Tensor,
    preprocess_x: Callable[[Tensor], Tensor],
    preprocess_y: Callable[[Tensor], Tensor],
    strip_bytes: int = STRIP_BYTES,
) -> dict[str, Tensor]:
    """Distance of every pair at every layer, without an autograd graph.

    Args:
        network: The frozen network, with the dtype and device that `preprocess_x` returns.
        x: Images ``(N, 3, H, W)``.
        y: Images of the same shape.
        preprocess_x: Rows of images ``(1, 3, h, W)`` -> backbone input, pixel by pixel.
        preprocess_y: The same for `y`.
        strip_bytes: Target size of the row strip that one operation processes. Memory grows with it.

    Returns:
        Shape ``(N,)`` by layer name; float32, or float64 for a backbone in float64.

    Raises:
        ValueError: If the backbone is not supported: see `lpips_lightning.engine.graph.unsupported_reason`.
    """
    layer_graph = Engine.of(network).layer_graph
    shapes = layer_graph.shapes((x.shape[2], x.shape[3]), x.shape[1])
    element_size = preprocess_x(x[:1, :, :1, :1]).element_size()
    distances: list[dict[str, Tensor]] = []
    for image in range(len(x)):
        pair = _PairStream(layer_graph, shapes, network.calibration, strip_bytes, element_size)
        for top in range(0, x.shape[2], pair.image_rows):
            strip = slice(image, image + 1), slice(None), slice(top, top + pair.image_rows)
            pair.push(preprocess_x(x[strip]).clone(), preprocess_y(y[strip]).clone())
        distances.append(pair.distances)
    return {layer: torch.cat([pair[layer] for pair in distances]) for layer in network.layers}


class _LineBuffer:
    """Rows of one input of one node, for one image, that later windows still need."""

    def __init__(self) -> None:
        self.received = 0
        self._start = 0
        self._parts: list[tuple[Tensor, bool]] = []
        self._empty = torch.empty(0)

    def add(self, rows: Tensor, exclusive: bool) -> None:
        """Append rows; `exclusive` says that no other node reads their memory or modifies it in place."""
        if self.received == 0:
            self._empty = rows[:, :, :0].clone()
        self._parts.append((rows, exclusive))
        self.received += rows.shape[2]

    def take(self, low: int, high: int) -> list[Tensor]:
        """The rows ``[low, high)`` in one or more parts; one empty part for a window that covers only padding."""
        taken, start = [], self._start
        for rows, _ in self._parts:
            stop = start + rows.shape[2]
            if start < high and low < stop:
                taken.append(rows[:, :, max(low - start, 0) : high - start])
            start = stop
        return taken or [self._empty]

    def discard(self, low: int) -> None:
        """Free the rows before `low`; copy remaining rows that other nodes may modify."""
        kept, start = [], self._start
        for rows, exclusive in self._parts:
            stop = start + rows.shape[2]
            if low <= start and exclusive:
                kept.append((rows, True))
            elif low < stop:
                rest = rows[:, :, max(low - start, 0) :]
                kept.append((rest.clone(memory_format=torch.channels_last), True))
            start = stop
        self._parts = kept
        self._start = min(max(low, self._start), self.received)


class _PairStream:
    """Two images that pass the backbone in lockstep, strip by strip."""

    def __init__(
        self,
        layer_graph: LayerGraph,
        shapes: dict[str, tuple[int, int, int]],
        calibration: dict[str, Tensor] | None,
        strip_bytes: int,
        element_size: int,
    ) -> None:
        self._layer_graph, self._shapes, self._calibration = layer_graph, shapes, calibration
        self._strip_bytes, self._element_size = strip_bytes, element_size
        self._line_buffers = [[(_LineBuffer(), _LineBuffer()) for _ in node.inputs] for node in layer_graph.nodes]
        self._rows_done = dict.fromkeys(shapes, 0)
        self._sums: dict[str, Tensor] = {}

    @property
    def distances(self) -> dict[str, Tensor]:
        """Distance by layer, after the last strip."""
        sizes = {layer: self._shapes[name] for layer, name in self._layer_graph.feature_layers.items()}
        return {layer: total / (sizes[layer][1] * sizes[layer][2]) for layer, total in self._sums.items()}

    @property
    def image_rows(self) -> int:
        """Image rows per strip, so that no result exceeds `strip_bytes` (or one row)."""
        jumps = {name: rows.jump for name, (rows, _) in self._layer_graph.receptive_fields.items()}
        return max(1, min(self._strip_bytes // self._row_bytes(name) * jumps[name] for name in self._shapes))

    def push(self, x: Tensor, y: Tensor) -> None:
        """Process the next strip of both images.

        Args:
            x: Backbone input, shape ``(1, 3, h, W)``.
            y: The same for the other image.
        """
        results = {self._layer_graph.image: [x, y]}
        del x, y
        self._add_distances(self._layer_graph.image, results)
        for index, node in enumerate(self._layer_graph.nodes):
            self._receive(index, node, results)
            first, stop = self._rows_done[node.name], self._computable_rows(index, node)
            if stop > first:
                results[node.name] = [self._compute(index, node, first, stop, side) for side in range(2)]
                self._rows_done[node.name] = stop
                self._add_distances(node.name, results)
            else:
                for line_buffer in itertools.chain(*self._line_buffers[index]):
                    line_buffer.discard(0)

    def _add_distances(self, name: str, results: dict[str, list[Tensor]]) -> None:
        """Add the distances of a result's rows if it is a feature layer; free the result if no node reads it."""
        for layer, feature_map in self._layer_graph.feature_layers.items():
            if feature_map == name:
                weight = None if self._calibration is None else self._calibration[layer]
                x, y = results[name]
                total = layer_sum(x, y, weight)
                self._sums[layer] = self._sums[layer] + total if layer in self._sums else total
        if name not in self._layer_graph.last_use:
            del results[name]

    def _receive(self, index: int, node: Node, results: dict[str, list[Tensor]]) -> None:
        """Move new input rows to a node's line buffers; drop them from `results` after their last use."""
        for line_buffers, name in zip(self._line_buffers[index], node.inputs, strict=True):
            last = self._layer_graph.last_use[name] == index
            for line_buffer, rows in zip(line_buffers, results.get(name, ()), strict=False):
                line_buffer.add(rows, exclusive=last and node.inputs.count(name) == 1)
        for name in node.inputs:
            if self._layer_graph.last_use[name] == index:
                results.pop(name, None)

    def _computable_rows(self, index: int, node: Node) -> int:
        """Number of output rows that can be complete after this strip; 0 to wait for more input."""
        received = min(line_buffers[0].received for line_buffers in self._line_buffers[index])
        total, height = self._shapes[node.name][1], self._shapes[node.inputs[0]][1]
        if not isinstance(node.op, Window) or received in (0, height):
            return total if received == height else received
        stop = min(total, node.op.count_complete(received))
        # Wait for at least half a strip: every call costs time, and a copy of the weights.
        return stop if 2 * (stop - self._rows_done[node.name]) > self._strip_rows(node) else 0

    def _compute(self, index: int, node: Node, first: int, stop: int, side: int) -> Tensor:
        """Compute the output rows ``[first, stop)`` of a node, for one of the two images."""
        line_buffers = [both[side] for both in self._line_buffers[index]]
        if not isinstance(node.op, Window):
            inputs = [joined(line_buffer.take(first, stop)) for line_buffer in line_buffers]
            for line_buffer in line_buffers:
                line_buffer.discard(stop)
            return node.op(*inputs)
        height = self._shapes[node.inputs[0]][1]
        parts = line_buffers[0].take(*node.op.needed_rows(first, stop, height))
        rows = node.op.pad_rows(parts, first, stop, height)
        del parts  # free what was copied before the operation runs
        line_buffers[0].discard(node.op.first_needed(stop))
        return node.op.run_rows(rows, first, height)

    def _strip_rows(self, node: Node) -> int:
        """Output rows of a window whose input and output are at most `strip_bytes`."""
        assert isinstance(node.op, Window)
        largest = max(self._row_bytes(node.name), self._row_bytes(node.inputs[0]) * node.op.rows.stride)
        return self._strip_bytes // largest

    def _row_bytes(self, name: str) -> int:
        depth, _, width = self._shapes[name]
        return max(1, depth * width * self._element_size)
