"""Estimate the peak memory of an evaluation.

The evaluation runs once on ``meta`` tensors, which have no data, and the bytes of all live tensors are counted. So the
estimate works for any backbone.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from lpips_lightning.backbones.extractor import FeatureModule
from lpips_lightning.backbones.frozen import FrozenNetwork
from lpips_lightning.engine.constants import AUTOGRAD_PIXELS, ESTIMATE_SIDE, MAX_CACHED_PLANS, STREAM_SIDE_STEP
from lpips_lightning.engine.executor import pair_distances, pair_gradient
from lpips_lightning.engine.state import Engine
from lpips_lightning.engine.streaming import stream
from lpips_lightning.engine.tiling import AxisTile, tile_gradient
from lpips_lightning.images.preprocessing import to_backbone
from lpips_lightning.images.ranges import UNBOUNDED
from lpips_lightning.kernels.conv2d import FastConv2d

Shape: TypeAlias = tuple[int, int, int, int]
Preprocess: TypeAlias = Callable[[Tensor], Tensor]
Work: TypeAlias = Literal["forward", "gradient", "tile"]


def estimate(network: FrozenNetwork, shape: Shape, work: Work) -> int:
    """Estimated peak bytes to evaluate a batch of pairs in one pass, in addition to weights and images.

    Args:
        network: The frozen network, on any device; its dtype matters.
        shape: ``(N, 3, H, W)`` of each of the two batches.
        work: ``"forward"`` for distances, ``"gradient"`` for distances and the gradient w.r.t. the first images,
            ``"tile"`` for the same of a tile.

    Returns:
        Bytes, the gradient included. The workspace of library convolutions is a rule of thumb.
    """
    if isinstance(network.extractor.graph, FeatureModule):  # which may resize images: no line through two sizes
        return _estimate_by_images(network, shape, work)
    pixels = shape[2] * shape[3]
    side = ESTIMATE_SIDE if pixels <= 4 * ESTIMATE_SIDE**2 else 4 * ESTIMATE_SIDE
    side = max(side, 2 * network.record.smallest_side)
    costs = [_pixel_costs(network, side, work)]
    if not network.distance.is_fused and pixels <= AUTOGRAD_PIXELS:  # up to so many, a CPU runs autograd
        costs.append(_pixel_costs(network, side, work, by_node=False))
    copies = 1 if network.distance.is_fused else max(shape[0], 1)  # matrices of each image, whatever its size
    size = max(fixed * copies + per_pixel * shape[0] * pixels for fixed, per_pixel in costs)
    return int(size) + _workspace_bytes(network)


def _pixel_costs(network: FrozenNetwork, side: int, work: Work, by_node: bool = True) -> tuple[float, float]:
    """Fixed bytes and bytes per pixel: a line through images of `side` and of twice `side` pixels.

    Args:
        network: See `estimate`.
        side: Image side.
        work: See `estimate`.
        by_node: Run the layer graph node by node where that is possible, as for many pixels on a CPU.
    """
    costs, key = Engine.of(network).pixel_costs, (side, work, by_node)
    if key not in costs:
        channels, evaluate = network.record.input_channels, _EVALUATE[work]
        shapes: list[Shape] = [(1, channels, length, length) for length in (side, 2 * side)]
        small, large = (_peak_of(network, shape, evaluate, by_node) for shape in shapes)
        per_pixel = max(large - small, 1) / (3 * side**2)
        costs[key] = max(small - per_pixel * side**2, 0.0), per_pixel
    return costs[key]


def _estimate_by_images(network: FrozenNetwork, shape: Shape, work: Work) -> int:
    """`estimate` for images of one size: a line through one and two images."""
    costs = Engine.of(network).image_costs
    size = shape[2:]
    if (size, work) not in costs:
        if len(costs) >= MAX_CACHED_PLANS:
            costs.clear()
        one, two = (_peak_of(network, (count, shape[1], *size), _EVALUATE[work]) for count in (1, 2))
        costs[size, work] = max(2 * one - two, 0), max(two - one, 1)
    fixed, per_image = costs[size, work]
    return fixed + per_image * shape[0] + _workspace_bytes(network)


def estimate_stream(network: FrozenNetwork, shape: Shape, strip_bytes: int) -> int:
    """Estimated peak bytes of `lpips_lightning.engine.streaming.stream`, in addition to weights and images.

    Args:
        network: The frozen network, on any device; its dtype matters.
        shape: ``(N, 3, H, W)`` of each of the two batches.
        strip_bytes: See `stream`.

    Returns:
        Bytes.

    Raises:
        ValueError: If the backbone is not supported: see `lpips_lightning.engine.graph.unsupported_reason`.
    """
    layer_graph = Engine.of(network).layer_graph
    tall, wide = (-(-side // STREAM_SIDE_STEP) * STREAM_SIDE_STEP for side in shape[2:])
    element_size = next(network.extractor.parameters()).element_size()
    receptive_fields = {name: rows for name, (rows, _) in layer_graph.receptive_fields.items()}
    deepest = max(
        strip_bytes // (element_size * depth * columns) * receptive_fields[name].jump
        + receptive_fields[name].before
        + receptive_fields[name].after
        for name, (depth, _, columns) in layer_graph.shapes((wide, wide), shape[1]).items()
    )
    tall = min(tall, deepest + deepest // 4)  # the peak is reached once the deepest layer has rows
    costs = Engine.of(network).stream_costs
    if (tall, wide, strip_bytes) not in costs:
        evaluate = partial(stream, strip_bytes=strip_bytes)
        costs[tall, wide, strip_bytes] = _peak_of(network, (1, shape[1], tall, wide), evaluate)
    return costs[tall, wide, strip_bytes] + _workspace_bytes(network)


def keep_freed_memory() -> None:
    """Let this process keep up to 64 MiB of freed memory, so that calls on a CPU do not fetch it from the system anew.

    An opt-in, since it holds for the whole process: call it once at the start of a script. With glibc a forward pass of
    4 images of 256 pixels takes 0.88 (alex) and 0.7 (squeeze) of the time (two cores of an AMD EPYC with AVX-512,
    2026-11-27); without glibc nothing changes. Source: mallopt(3), ``M_MMAP_THRESHOLD``: blocks up to the size of the
    largest one that was freed, of those up to 32 MiB, come from the heap, which is trimmed beyond twice that size.

    Example:
        >>> keep_freed_memory()
    """
    torch.empty(2**25 - 2**16, dtype=torch.uint8, device="cpu")  # never touched, freed at once


def peak_bytes(run: Callable[[], object], given: Iterable[Tensor]) -> int:
    """Peak bytes of all tensors that a function allocates on the ``meta`` device.

    Args:
        run: A function on ``meta`` tensors.
        given: Tensors that exist before; they are not counted.

    Returns:
        Bytes; tensors saved by autograd are included.

    Example:
        >>> x = torch.empty(1000, device="meta")
        >>> peak_bytes(lambda: (x + 1).exp().sum(), [x])
        8000
    """
    grad_enabled = torch.is_grad_enabled()
    with (
        torch.inference_mode(False),
        torch.set_grad_enabled(grad_enabled),
        _FusedAttention(),
        _LiveBytes(given) as live,
    ):
        run()
    return live.peak


class _FusedAttention(TorchFunctionMode):
    """Attention without the matrix of all pairs of tokens: a device has it fused, ``meta`` alone has not."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        plain = func is F.scaled_dot_product_attention and len(args) == 3 and not _given(kwargs, "enable_gqa")
        if not plain or _given(kwargs, "attn_mask") or _given(kwargs, "dropout_p"):
            return func(*args, **kwargs)
        fused: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        causal = _given(kwargs, "is_causal")
        return fused(*args, dropout_p=0.0, is_causal=causal, scale=kwargs.get("scale"))[0]


def _given(kwargs: Mapping[str, Any], name: str) -> bool:
    value = kwargs.get(name)
    return value is not None and (isinstance(value, Tensor) or bool(value))


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of live storages.

    The outputs of an operation depend only on the shapes of its inputs, so each distinct call runs once and is then
    served from a cache, which is much faster.
    """

    def __init__(self, given: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._given = [tensor.untyped_storage() for tensor in given]
        self._counted = {storage._cdata for storage in self._given}
        self._outputs: dict[object, list[tuple[Any, Any, torch.dtype] | None]] = {}
        self._live = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = self._run(func, args, kwargs or {})
        for result in results if isinstance(results, list | tuple) else [results]:
            if isinstance(result, Tensor):
                self._count(result.untyped_storage())
        self.peak = max(self.peak, self._live)
        return results

    def _run(self, func: Any, args: Any, kwargs: Any) -> Any:
        aliases = [returned.alias_info for returned in func._schema.returns]
        if any(aliases) or any(str(returned.type) != "Tensor" for returned in func._schema.returns):
            return func(*args, **kwargs)
        key = (func, _hashable(args), _hashable(kwargs))
        if key not in self._outputs:
            results = func(*args, **kwargs)
            outputs = results if isinstance(results, tuple) else [results]
            self._outputs[key] = [None if out is None else (out.shape, out.stride(), out.dtype) for out in outputs]
            return results
        made = [
            None if layout is None else torch.empty_strided(layout[0], layout[1], dtype=layout[2], device="meta")
            for layout in self._outputs[key]
        ]
        return made[0] if len(made) == 1 else tuple(made)

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata not in self._counted:
            self._counted.add(storage._cdata)
            self._live += storage.nbytes()
            weakref.finalize(storage, self._free, storage._cdata, storage.nbytes())

    def _free(self, storage: int, size: int) -> None:
        self._counted.discard(storage)
        self._live -= size


def _hashable(value: Any) -> object:
    """Arguments of an operation as a cache key; tensors by shape, strides and dtype."""
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype
    if isinstance(value, list | tuple):
        return tuple(map(_hashable, value))
    return tuple((key, _hashable(part)) for key, part in value.items()) if isinstance(value, dict) else value


def _peak_of(network: FrozenNetwork, shape: Shape, evaluate: Callable[..., object], by_node: bool = True) -> int:
    """Peak bytes of ``evaluate(network, x, y, preprocess_x, preprocess_y)``; see `_pixel_costs`."""
    clone = _meta_copy(network)
    if not by_node:
        clone = copy.copy(clone)
        clone.on_cpu = False
    dtype = next(clone.extractor.parameters()).dtype
    x, y = (torch.empty(shape, device="meta") for _ in range(2))
    data_range = (0.0, 1.0) if network.record.has_range else UNBOUNDED

    def preprocess(images: Tensor) -> Tensor:
        return to_backbone(images, data_range, clone.shift, clone.scale, dtype, clamp=True)

    run = partial(evaluate, clone, x, y, preprocess, preprocess)
    return peak_bytes(run, [x, y, *clone.parameters(), *clone.buffers()])


@torch.no_grad()
def _forward(network: FrozenNetwork, x: Tensor, y: Tensor, prep_x: Preprocess, prep_y: Preprocess) -> list[Tensor]:
    return list(pair_distances(network, prep_x(x), prep_y(y)).values())


def _gradient(network: FrozenNetwork, x: Tensor, y: Tensor, prep_x: Preprocess, prep_y: Preprocess) -> Tensor:
    return pair_gradient(network, prep_x(x), prep_y(y))[1] * torch.ones_like(x)


def _tile(network: FrozenNetwork, x: Tensor, y: Tensor, prep_x: Preprocess, prep_y: Preprocess) -> Tensor:
    whole = AxisTile(slice(None), dict.fromkeys(network.layers, slice(None)))
    positions = dict.fromkeys(network.layers, 1)
    return tile_gradient(network, (x, y), (prep_x, prep_y), (whole, whole), positions)[1]


_EVALUATE = {"forward": _forward, "gradient": _gradient, "tile": _tile}


def _workspace_bytes(network: FrozenNetwork) -> int:
    """Rule of thumb for the workspace of library convolutions; `FastConv2d` allocates its own on ``meta``."""
    engine = Engine.of(network)
    if engine.workspace_bytes is None:
        modules = (module for module in network.extractor.modules() if not isinstance(module, FastConv2d))
        weights = [tensor.nbytes for module in modules for tensor in module.parameters(recurse=False)]
        engine.workspace_bytes = 2 * max(weights, default=0)
    return engine.workspace_bytes


def _meta_copy(network: FrozenNetwork) -> FrozenNetwork:
    engine = Engine.of(network)
    if engine.meta_copy is None:
        with torch.inference_mode(False), torch.no_grad():
            empty: dict[int, Any] = {id(tensor): tensor.to("meta") for tensor in network.buffers()}
            for tensor in network.parameters():
                empty[id(tensor)] = nn.Parameter(tensor.to("meta"), requires_grad=False)
            engine.meta_copy = copy.deepcopy(network, empty).eval()
    return engine.meta_copy
