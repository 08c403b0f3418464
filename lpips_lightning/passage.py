"""The way of image pairs through a trunk, and of gradients back, without autograd's graph.

Whatever nobody needs any more is let go at once, and on the way back a gradient is written over the one that it is made
of: memory that is new, or that has left the cache, costs a processor more time than the arithmetic.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from lpips_lightning.frozen import FrozenNetwork
from lpips_lightning.geometry import Course, Step, follow
from lpips_lightning.windows import Convolution, Window

__all__ = ["Passage", "pair_features", "passage"]

_Run: TypeAlias = Callable[[Step, list[Tensor]], Tensor]

# glibc maps blocks from a threshold on anew each time, and gives the end of the heap back when more than twice that is
# free. The threshold is the largest block that was ever freed, of those below 32 MiB.
_LARGEST_BLOCK = 2**25 - 2**16
# Up to so many pixels everything stays in the cache, and what is called from C++, or from code that torch.fx wrote, is
# faster than steps from here.
_FEW_PIXELS = 2**17

_courses: weakref.WeakKeyDictionary[FrozenNetwork, Course | None] = weakref.WeakKeyDictionary()


class Passage(Protocol):
    """A way there and back."""

    def taps(self, x: Tensor, y: Tensor | None) -> Iterator[tuple[str, Tensor, Tensor | None, bool]]:
        """Features of pairs, layer by layer in any order.

        Args:
            x: Images ``(N, 3, H, W)`` as the trunk wants them.
            y: Images of the same shape, or None.

        Yields:
            The layer's name, its features of `x` and of `y`, and whether those of `y` may be written over.
        """

    def back(self, gradients: Mapping[str, Tensor]) -> Tensor:
        """What gradients by features are as one by `x`, which has been through.

        Args:
            gradients: By the features, by layer name; they are written over.

        Returns:
            Shape ``(N, 3, H, W)``.
        """


def pair_features(network: FrozenNetwork, x: Tensor, y: Tensor | None) -> Iterator[tuple[str, Tensor, Tensor | None]]:
    """Features of pairs, layer by layer in any order, each let go with the next.

    Args:
        network: On the images' device, in their dtype.
        x: Images ``(N, 3, H, W)`` as the trunk wants them.
        y: Images of the same shape, or None.

    Yields:
        The layer's name, its features of `x` and of `y`, without a graph.
    """
    course = None if _is_small(x) else _course(network)
    with torch.no_grad():
        if course is None:
            features_x, features_y = network.extractor(x), {} if y is None else network.extractor(y)
            del x, y
            for layer in network.layers:
                yield layer, features_x.pop(layer), features_y.pop(layer, None)
            return
        others = {} if y is None else _features(course, y)
        del y
        for layers, tap in _walk(course, _run, x):
            for layer in layers:
                yield layer, tap, others.pop(layer, None)


def passage(network: FrozenNetwork, images: Tensor) -> Passage:
    """The fastest way through a network that leads back.

    Args:
        network: It decides by where it is, and by what it is made of.
        images: Shape ``(N, 3, H, W)``; so do they by how many pixels they have.

    Returns:
        For one batch of pairs.
    """
    course = _course(network)
    if course is None or _is_small(images) or not _leads_back(course):
        return _ByAutograd(network)
    return _ByHand(course)


class _ByAutograd:
    def __init__(self, network: FrozenNetwork) -> None:
        self._network = network
        self._image = torch.empty(0)
        self._features: dict[str, Tensor] = {}

    @torch.no_grad()
    def taps(self, x: Tensor, y: Tensor | None) -> Iterator[tuple[str, Tensor, Tensor | None, bool]]:
        others = {} if y is None else self._network.extractor(y)
        places = {tap.untyped_storage()._cdata for tap in others.values()}
        apart = y is not None and len(places - {y.untyped_storage()._cdata}) == len(others)
        with torch.enable_grad():
            self._image = x.detach().requires_grad_()
            self._features = self._network.extractor(self._image)
        for layer, tap in self._features.items():
            yield layer, tap.detach(), others.pop(layer, None), apart

    def back(self, gradients: Mapping[str, Tensor]) -> Tensor:
        outputs = [self._features[layer] for layer in gradients]
        return torch.autograd.grad(outputs, self._image, list(gradients.values()))[0]


class _ByHand:
    def __init__(self, course: Course) -> None:
        self._course = course
        self._image = torch.empty(0)
        self._inputs: dict[str, torch.Size] = {}  # shapes of convolutions' inputs
        self._rectified: dict[str, Tensor] = {}
        self._graphs: dict[str, tuple[Tensor, Tensor]] = {}  # of pools: input and result

    @torch.no_grad()
    def taps(self, x: Tensor, y: Tensor | None) -> Iterator[tuple[str, Tensor, Tensor | None, bool]]:
        others = {} if y is None else _features(self._course, y)
        self._image = x
        for layers, tap in _walk(self._course, self._run, x):
            spare = len(layers) == 1 and self._course.taps[layers[0]] != self._course.image
            for layer in layers:
                yield layer, tap, others.pop(layer, None), spare

    @torch.no_grad()
    def back(self, gradients: Mapping[str, Tensor]) -> Tensor:
        found: dict[str, Tensor] = {}
        for layer, gradient in gradients.items():
            _add(found, self._course.taps[layer], gradient)
        for step in reversed(self._course.steps):
            if step.name in found:
                for name, part in zip(step.inputs, self._back(step, found.pop(step.name)), strict=True):
                    _add(found, name, part)
        image = found.get(self._course.image)
        return torch.zeros_like(self._image) if image is None else image

    def _run(self, step: Step, inputs: list[Tensor]) -> Tensor:
        act = step.act
        if isinstance(act, nn.ReLU):
            result = self._rectified[step.name] = _run(step, inputs)
            return result
        if step.stacks:
            result = _run(step, inputs)
            # What was stacked is in the stack: masks are looked up there.
            widths = [given.shape[1] for given in inputs]
            for name, part in zip(step.inputs, result.split(widths, 1), strict=True):
                if name in self._rectified:
                    self._rectified[name] = part
            return result
        if isinstance(act, Convolution):
            self._inputs[step.name] = inputs[0].shape
            return _run(step, inputs)
        leaf = inputs[0].detach().requires_grad_()
        with torch.enable_grad():
            result = _run(step, [leaf])
        self._graphs[step.name] = leaf, result
        return result.detach()

    def _back(self, step: Step, gradient: Tensor) -> Sequence[Tensor]:
        act = step.act
        if isinstance(act, nn.ReLU):
            return [_masked(gradient, self._rectified.pop(step.name))]
        if step.stacks:
            widths = [self._rectified[name].shape[1] for name in step.inputs]
            return gradient.split(widths, 1)
        if isinstance(act, Convolution):
            assert act.fast is not None
            return [act.fast.adjoint(gradient, self._inputs.pop(step.name))]
        leaf, result = self._graphs.pop(step.name)
        return torch.autograd.grad(result, leaf, gradient)


def _course(network: FrozenNetwork) -> Course | None:
    """The trunk's steps if they are to be gone one by one: elsewhere new memory costs nothing, and calls do."""
    if network not in _courses:
        if not next(network.extractor.parameters()).is_meta:
            _keep_freed_memory()
        try:
            _courses[network] = follow(network.extractor.graph) if network.on_processor else None
        except ValueError:
            _courses[network] = None
    return _courses[network]


def _is_small(images: Tensor) -> bool:
    return len(images) * images.shape[2] * images.shape[3] <= _FEW_PIXELS and not images.is_meta


@cache
def _keep_freed_memory() -> None:
    """Let the process keep memory between two calls: pages that come fresh from the system cost a fifth of the time."""
    torch.empty(_LARGEST_BLOCK, dtype=torch.uint8, device="cpu")  # is never touched, and freed at once


def _leads_back(course: Course) -> bool:
    """Whether every step is a convolution, a pool, a ReLU, or a stack of ReLUs."""
    acts = {step.name: step.act for step in course.steps}
    for step in course.steps:
        if step.stacks:
            if not all(isinstance(acts.get(name), nn.ReLU) for name in step.inputs) or len(set(step.inputs)) < len(
                step.inputs
            ):
                return False
        elif isinstance(step.act, Convolution):
            if step.act.fast is None:
                return False
        elif not isinstance(step.act, Window | nn.ReLU):
            return False
    return True


def _features(course: Course, images: Tensor) -> dict[str, Tensor]:
    return {layer: tap for layers, tap in _walk(course, _run, images) for layer in layers}


def _walk(course: Course, run: _Run, image: Tensor) -> Iterator[tuple[list[str], Tensor]]:
    """Every tap and its layers' names, once no other step needs it."""
    layers: dict[str, list[str]] = {}
    for layer, name in course.taps.items():
        layers.setdefault(name, []).append(layer)
    results = {course.image: image}
    del image
    if course.image in layers and course.image not in course.last_use:
        yield layers[course.image], results.pop(course.image)
    for index, step in enumerate(course.steps):
        results[step.name] = run(step, [results[name] for name in step.inputs])
        for name in dict.fromkeys((*step.inputs, step.name)):
            if course.last_use.get(name, index) == index:
                value = results.pop(name)
                if name in layers:
                    yield layers[name], value
                del value


def _run(step: Step, inputs: list[Tensor]) -> Tensor:
    if isinstance(step.act, Window):
        return step.act.whole(inputs[0])
    return step.act(*inputs)


def _masked(gradient: Tensor, rectified: Tensor) -> Tensor:
    """Zero where a ReLU was; written over where memory has no gaps."""
    backward: Any = torch.ops.aten.threshold_backward
    dense = gradient.is_contiguous(memory_format=torch.channels_last)
    masked: Tensor = (
        backward.grad_input(gradient, rectified, 0, grad_input=gradient) if dense else backward(gradient, rectified, 0)
    )
    return masked


def _add(found: dict[str, Tensor], name: str, gradient: Tensor) -> None:
    found[name] = found[name].add_(gradient) if name in found else gradient
