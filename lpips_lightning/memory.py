"""How much memory an evaluation takes.

An estimate runs the evaluation itself on tensors without data, and adds up what is alive: it holds for any trunk.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lpips_lightning.convolutions import FastConv2d
from lpips_lightning.frozen import FrozenNetwork
from lpips_lightning.geometry import follow
from lpips_lightning.images import to_trunk
from lpips_lightning.pair_terms import pair_gradient, pair_terms
from lpips_lightning.streaming import stream
from lpips_lightning.tiling import Span, tile_gradient

__all__ = ["estimate", "estimate_stream", "peak_bytes"]

Shape: TypeAlias = tuple[int, int, int, int]
Prepare: TypeAlias = Callable[[Tensor], Tensor]
Work: TypeAlias = Literal["forward", "gradient", "tile"]

_SIDE = 128  # pixels; what is alive at this and twice this, or at four and eight times, gives the line for all sizes
_STEP = 64  # pixels, to which the sides of streamed images are rounded up: few estimates serve many sizes

_twins: weakref.WeakKeyDictionary[FrozenNetwork, FrozenNetwork] = weakref.WeakKeyDictionary()
_lines: weakref.WeakKeyDictionary[FrozenNetwork, dict[tuple[int, Work], tuple[float, float]]] = (
    weakref.WeakKeyDictionary()
)
_scratches: weakref.WeakKeyDictionary[FrozenNetwork, int] = weakref.WeakKeyDictionary()
_streams: weakref.WeakKeyDictionary[FrozenNetwork, dict[tuple[int, int, int], int]] = weakref.WeakKeyDictionary()


def estimate(network: FrozenNetwork, shape: Shape, work: Work) -> int:
    """Bytes that the evaluation of a batch of pairs takes, all at once, above weights and images.

    Args:
        network: On any device; its dtype counts.
        shape: ``(N, 3, H, W)`` of each of the two batches.
        work: Distances alone, with their gradient by the first images, or with that of a tile of them.

    Returns:
        An estimate, the gradient included. What the convolutions' library takes for itself is a rule of thumb.
    """
    pixels = shape[2] * shape[3]
    side = max(_SIDE if pixels <= 4 * _SIDE**2 else 4 * _SIDE, 2 * network.record.smallest_side)
    known = _lines.setdefault(network, {})
    if (side, work) not in known:
        evaluate = {"forward": _forward, "gradient": _gradient, "tile": _tile}[work]
        small, large = (_alive(network, (1, 3, length, length), evaluate) for length in (side, 2 * side))
        slope = max(large - small, 1) / (3 * side**2)
        known[side, work] = max(small - slope * side**2, 0.0), slope
    fixed, slope = known[side, work]
    return int(fixed + slope * shape[0] * pixels) + _scratch(network)


def estimate_stream(network: FrozenNetwork, shape: Shape, block: int) -> int:
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
    course = follow(network.extractor.graph)
    tall, wide = (-(-side // _STEP) * _STEP for side in shape[2:])
    element_size = next(network.extractor.parameters()).element_size()
    sights = {name: rows for name, (rows, _) in course.sights.items()}
    deepest = max(
        block // (element_size * depth * columns) * sights[name].jump + sights[name].before + sights[name].after
        for name, (depth, _, columns) in course.shapes((wide, wide)).items()
    )
    tall = min(tall, deepest + deepest // 4)  # after the first rows of the deepest layer, nothing new happens
    known = _streams.setdefault(network, {})
    if (tall, wide, block) not in known:
        known[tall, wide, block] = _alive(network, (1, 3, tall, wide), partial(stream, block=block))
    return known[tall, wide, block] + _scratch(network)


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
    graphs = torch.is_grad_enabled()
    with torch.inference_mode(False), torch.set_grad_enabled(graphs), _Living(given) as living:
        run()
    return living.peak


class _Living(TorchDispatchMode):
    """Counts the storages that operations make, until each is gone.

    What an operation makes depends on shapes alone. So it runs once for each; that is much faster.
    """

    def __init__(self, given: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._given = [tensor.untyped_storage() for tensor in given]
        self._seen = {storage._cdata for storage in self._given}
        self._made: dict[object, list[tuple[Any, Any, torch.dtype] | None]] = {}
        self._now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = self._run(func, args, kwargs or {})
        for result in results if isinstance(results, list | tuple) else [results]:
            if isinstance(result, Tensor):
                self._see(result.untyped_storage())
        self.peak = max(self.peak, self._now)
        return results

    def _run(self, func: Any, args: Any, kwargs: Any) -> Any:
        aliases = [returned.alias_info for returned in func._schema.returns]
        if any(aliases) or any(str(returned.type) != "Tensor" for returned in func._schema.returns):
            return func(*args, **kwargs)
        key = (func, _described(args), _described(kwargs))
        if key not in self._made:
            results = func(*args, **kwargs)
            several = results if isinstance(results, tuple) else [results]
            self._made[key] = [None if made is None else (made.shape, made.stride(), made.dtype) for made in several]
            return results
        made = [
            None if form is None else torch.empty_strided(form[0], form[1], dtype=form[2], device="meta")
            for form in self._made[key]
        ]
        return made[0] if len(made) == 1 else tuple(made)

    def _see(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata not in self._seen:
            self._seen.add(storage._cdata)
            self._now += storage.nbytes()
            weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())

    def _gone(self, storage: int, size: int) -> None:
        self._seen.discard(storage)
        self._now -= size


def _described(value: Any) -> object:
    """Arguments of an operation, hashable; tensors by what decides the form of the result."""
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype
    if isinstance(value, list | tuple):
        return tuple(map(_described, value))
    return tuple((key, _described(part)) for key, part in value.items()) if isinstance(value, dict) else value


def _alive(network: FrozenNetwork, shape: Shape, evaluate: Callable[..., object]) -> int:
    """Bytes alive while ``evaluate(network, x, y, prepare_x, prepare_y)`` runs."""
    twin = _without_data(network)
    dtype = next(twin.extractor.parameters()).dtype
    x, y = (torch.empty(shape, device="meta") for _ in range(2))

    def prepare(images: Tensor) -> Tensor:
        return to_trunk(images, (0.0, 1.0), twin.shift, twin.scale, dtype, clamp=True)

    run = partial(evaluate, twin, x, y, prepare, prepare)
    return peak_bytes(run, [x, y, *twin.parameters(), *twin.buffers()])


@torch.no_grad()
def _forward(network: FrozenNetwork, x: Tensor, y: Tensor, prepare_x: Prepare, prepare_y: Prepare) -> list[Tensor]:
    return list(pair_terms(network, prepare_x(x), prepare_y(y)).values())


def _gradient(network: FrozenNetwork, x: Tensor, y: Tensor, prepare_x: Prepare, prepare_y: Prepare) -> Tensor:
    return pair_gradient(network, prepare_x(x), prepare_y(y))[1] * torch.ones_like(x)


def _tile(network: FrozenNetwork, x: Tensor, y: Tensor, prepare_x: Prepare, prepare_y: Prepare) -> Tensor:
    whole = Span(slice(None), dict.fromkeys(network.layers, slice(None)))
    positions = dict.fromkeys(network.layers, 1)
    return tile_gradient(network, (x, y), (prepare_x, prepare_y), (whole, whole), positions)[1]


def _scratch(network: FrozenNetwork) -> int:
    """What other convolutions than `FastConv2d`, which says it itself, take for themselves."""
    if network not in _scratches:
        modules = (module for module in network.extractor.modules() if not isinstance(module, FastConv2d))
        weights = [tensor.nbytes for module in modules for tensor in module.parameters(recurse=False)]
        _scratches[network] = 2 * max(weights, default=0)
    return _scratches[network]


def _without_data(network: FrozenNetwork) -> FrozenNetwork:
    twin = _twins.get(network)
    if twin is None:
        with torch.inference_mode(False), torch.no_grad():
            empty: dict[int, Any] = {id(tensor): tensor.to("meta") for tensor in network.buffers()}
            for tensor in network.parameters():
                empty[id(tensor)] = nn.Parameter(tensor.to("meta"), requires_grad=False)
            twin = _twins[network] = copy.deepcopy(network, empty).eval()
    return twin
