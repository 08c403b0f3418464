"""How much memory an evaluation takes.

An estimate runs the evaluation itself on tensors without data, and adds up what is alive: it holds for any trunk.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lpips_lightning.frozen import FrozenNetwork
from lpips_lightning.geometry import follow
from lpips_lightning.head import layer_sum
from lpips_lightning.images import to_trunk
from lpips_lightning.streaming import stream
from lpips_lightning.tiling import Span, tile_gradient
from lpips_lightning.windows import Window

__all__ = ["estimate", "estimate_stream", "peak_bytes"]

_SIDE = 128  # pixels; what is alive at this and twice this, or at four and eight times, gives the line for all sizes
_NARROW = 64  # pixels; a stripe of this width stands for wider ones

_twins: weakref.WeakKeyDictionary[FrozenNetwork, FrozenNetwork] = weakref.WeakKeyDictionary()
_lines: weakref.WeakKeyDictionary[FrozenNetwork, dict[tuple[int, bool], tuple[float, float]]] = (
    weakref.WeakKeyDictionary()
)


def estimate(network: FrozenNetwork, shape: tuple[int, int, int, int], gradient: bool) -> int:
    """Bytes that the evaluation of a batch of pairs takes, all at once, above weights and images.

    Args:
        network: On any device; its dtype counts.
        shape: ``(N, 3, H, W)`` of each of the two batches.
        gradient: Whether the gradient by the first images is wanted too.

    Returns:
        An estimate, the gradient included. What the convolutions' library takes for itself is a rule of thumb.
    """
    pixels = shape[2] * shape[3]
    side = max(_SIDE if pixels <= 4 * _SIDE**2 else 4 * _SIDE, 2 * network.record.smallest_side)
    known = _lines.setdefault(network, {})
    if (side, gradient) not in known:
        small, large = (_alive(network, (1, 3, length, length), gradient) for length in (side, 2 * side))
        slope = (large - small) / (3 * side**2)
        known[side, gradient] = max(small - slope * side**2, 0.0), slope
    fixed, slope = known[side, gradient]
    return int(fixed + slope * shape[0] * pixels) + _scratch(network)


def estimate_stream(network: FrozenNetwork, shape: tuple[int, int, int, int], block: int) -> int:
    """The same of `lpips_lightning.streaming.stream`, whose images go one after the other.

    Args:
        network: On any device; its dtype counts.
        shape: ``(N, 3, H, W)`` of each of the two batches.
        block: As for `stream`.

    Returns:
        An estimate.

    Raises:
        ValueError: If the trunk cannot be followed: see `lpips_lightning.geometry.obstacle`.
    """
    twin = _without_data(network)
    course = follow(twin.extractor.graph)
    # Widths and blocks in one proportion pass in the same number of rows; and after the first rows of the deepest
    # layer, nothing new happens until the last.
    width = min(shape[3], max(_NARROW, 2 * network.record.smallest_side))
    scale = shape[3] / width
    shapes = course.shapes((width, width))
    deepest = 1
    for step in course.steps:
        if isinstance(step.act, Window):
            depth, _, columns = shapes[step.name]
            rows = block / scale / (4 * depth * max(columns, 1))
            sight = course.sights[step.name][0]
            deepest = max(deepest, int(rows * sight.jump) + sight.before + sight.after)
    x, y = (torch.empty(1, 3, min(shape[2], deepest + deepest // 4), width, device="meta") for _ in range(2))
    prepare = partial(_prepare, twin)
    run = partial(stream, twin, x, y, prepare, prepare, block=max(1, int(block / scale)))
    return int(peak_bytes(run, [x, y, *twin.parameters(), *twin.buffers()]) * scale) + _scratch(network)


def peak_bytes(run: Callable[[], object], given: Iterable[Tensor]) -> int:
    """Most bytes alive at one time while a function runs on tensors without data.

    Args:
        run: Works on ``meta`` tensors.
        given: Tensors that were there before; they do not count.

    Returns:
        Bytes of all tensors that `run` makes, what autograd keeps included.

    Example:
        >>> x = torch.empty(1000, device="meta")
        >>> peak_bytes(lambda: (x + 1).exp().sum(), [x])
        8000
    """
    with torch.inference_mode(False), _Living(given) as living:
        run()
    return living.peak


class _Living(TorchDispatchMode):
    """Counts the storages that operations make, until each is gone."""

    def __init__(self, given: Iterable[Tensor]) -> None:
        super().__init__()
        self._given = [tensor.untyped_storage() for tensor in given]
        self._seen = {storage._cdata for storage in self._given}
        self._now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        for result in results if isinstance(results, list | tuple) else [results]:
            if isinstance(result, Tensor):
                self._see(result.untyped_storage())
        self.peak = max(self.peak, self._now)
        return results

    def _see(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata not in self._seen:
            self._seen.add(storage._cdata)
            self._now += storage.nbytes()
            weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())

    def _gone(self, storage: int, size: int) -> None:
        self._seen.discard(storage)
        self._now -= size


def _alive(network: FrozenNetwork, shape: tuple[int, int, int, int], gradient: bool) -> int:
    twin = _without_data(network)
    x, y = (torch.empty(shape, device="meta") for _ in range(2))
    prepare = partial(_prepare, twin)
    run: Callable[[], object] = partial(_forward, twin, x, y)
    if gradient:
        whole = Span(slice(None), dict.fromkeys(twin.layers, slice(None)))
        positions = dict.fromkeys(twin.layers, 1)
        run = partial(tile_gradient, twin, (x, y), (prepare, prepare), (whole, whole), positions)
    return peak_bytes(run, [x, y, *twin.parameters(), *twin.buffers()])


@torch.no_grad()
def _forward(network: FrozenNetwork, x: Tensor, y: Tensor) -> list[Tensor]:
    layers_x, layers_y = (network.extractor(_prepare(network, images)) for images in (x, y))
    return [layer_sum(layers_x.pop(layer), layers_y.pop(layer), None) for layer in network.layers]


def _prepare(network: FrozenNetwork, images: Tensor) -> Tensor:
    dtype = next(network.extractor.parameters()).dtype
    return to_trunk(images, (0.0, 1.0), network.shift, network.scale, dtype, clamp=True)


def _scratch(network: FrozenNetwork) -> int:
    """What convolutions take for themselves: their weights in another order, and a buffer of about that size."""
    return 2 * max(tensor.numel() * tensor.element_size() for tensor in network.extractor.parameters())


def _without_data(network: FrozenNetwork) -> FrozenNetwork:
    twin = _twins.get(network)
    if twin is None:
        with torch.inference_mode(False), torch.no_grad():
            empty: dict[int, Any] = {id(tensor): tensor.to("meta") for tensor in network.buffers()}
            for tensor in network.parameters():
                empty[id(tensor)] = nn.Parameter(tensor.to("meta"), requires_grad=False)
            twin = _twins[network] = copy.deepcopy(network, empty).eval()
    return twin
