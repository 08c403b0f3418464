"""A trunk as a list of steps whose rows and columns are known, so that images can be evaluated in pieces.

A trunk can be followed if torch.fx traced it and it is made of convolutions, pools, functions of single positions, sums
and concatenations over channels: then a row of any layer sees a known range of the image's rows, and a piece of the
image gives a piece of every layer.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import lcm
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from lpips_lightning.windows import Axis, Window, window_of

__all__ = ["Course", "Sight", "Step", "follow", "obstacle"]

Size: TypeAlias = tuple[int, int]

_POINTWISE: tuple[type[nn.Module], ...] = (
    nn.CELU, nn.ELU, nn.GELU, nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh, nn.LeakyReLU, nn.LocalResponseNorm, nn.Mish,
    nn.PReLU, nn.ReLU, nn.ReLU6, nn.SELU, nn.SiLU, nn.Sigmoid, nn.Softplus, nn.Softsign, nn.Tanh,
)  # fmt: skip
_DROPOUTS = (nn.AlphaDropout, nn.Dropout, nn.Dropout2d, nn.FeatureAlphaDropout)
_FUNCTIONS: tuple[Any, ...] = (
    F.celu, F.elu, F.gelu, F.hardsigmoid, F.hardswish, F.hardtanh, F.leaky_relu, F.mish, F.relu, F.relu6, F.relu_,
    F.selu, F.silu, F.softplus, operator.add, operator.iadd, operator.imul, operator.isub, operator.mul, operator.sub,
    operator.truediv, torch.add, torch.mul, torch.relu, torch.relu_, torch.sigmoid, torch.sub, torch.tanh,
)  # fmt: skip
_CHANGING = (operator.iadd, operator.imul, operator.isub, F.relu_, torch.relu_)
_METHODS = ("add", "add_", "mul", "mul_", "relu", "relu_", "sigmoid", "sigmoid_", "sub", "sub_", "tanh", "tanh_")
_POOLS = {
    F.max_pool2d: (nn.MaxPool2d, ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")),
    F.avg_pool2d: (
        nn.AvgPool2d,
        ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"),
    ),
}


@dataclass(frozen=True)
class Step:
    """One operation.

    Attributes:
        name: Of its result.
        inputs: Names of the results that it takes.
        act: A convolution or pool, or a function of the same rows of every input.
        stacks: Whether it puts its inputs' channels one after the other.
    """

    name: str
    inputs: tuple[str, ...]
    act: Window | Callable[..., Tensor]
    stacks: bool = False


@dataclass(frozen=True)
class Sight:
    """Which of the image's rows (or columns) position ``o`` sees: ``[jump * o - before, jump * o + after]``.

    Attributes:
        jump: From one position to the next.
        before: How far it sees back.
        after: How far ahead.
    """

    jump: int = 1
    before: int = 0
    after: int = 0

    def through(self, axis: Axis) -> Sight:
        """What a window over such positions sees."""
        before, ahead = axis.before * self.jump, (axis.reach - 1 - axis.before) * self.jump
        return Sight(self.jump * axis.stride, self.before + before, self.after + ahead)


@dataclass(frozen=True)
class Course:
    """A trunk's steps.

    Attributes:
        image: Name of what goes in.
        steps: In the trunk's order.
        taps: Name of the result that is handed out, by layer name.
    """

    image: str
    steps: tuple[Step, ...]
    taps: Mapping[str, str]

    @cached_property
    def last_use(self) -> dict[str, int]:
        """Index of the last step that takes a result."""
        return {name: index for index, step in enumerate(self.steps) for name in step.inputs}

    @cached_property
    def sights(self) -> dict[str, tuple[Sight, Sight]]:
        """What positions of every result see: in rows, in columns."""
        found = {self.image: (Sight(), Sight())}
        for step in self.steps:
            rows, columns = zip(*(found[name] for name in step.inputs), strict=True)
            both = _union(step.name, rows), _union(step.name, columns)
            if isinstance(step.act, Window):
                both = both[0].through(step.act.rows), both[1].through(step.act.columns)
            found[step.name] = both
        return found

    @cached_property
    def strides(self) -> Size:
        """An image shifted by these, down or across, shifts every result by whole positions."""
        rows, columns = zip(*self.sights.values(), strict=True)
        return lcm(*(sight.jump for sight in rows)), lcm(*(sight.jump for sight in columns))

    def shapes(self, size: Size, channels: int = 3) -> dict[str, tuple[int, int, int]]:
        """Channels, height and width of every result.

        Args:
            size: Of the image.
            channels: Of the image.

        Returns:
            ``(C, h, w)`` by name.

        Raises:
            ValueError: If results of unequal size meet.
        """
        found = {self.image: (channels, *size)}
        for step in self.steps:
            inputs = [found[name] for name in step.inputs]
            if len({shape[1:] for shape in inputs}) != 1:
                raise ValueError(f"{step.name}: expected inputs of one size, got {inputs}")
            depth, height, width = inputs[0]
            if isinstance(step.act, Window):
                act = step.act
                found[step.name] = (act.channels(depth), act.rows.count(height), act.columns.count(width))
            else:
                found[step.name] = (sum(shape[0] for shape in inputs) if step.stacks else depth, height, width)
        return found


def follow(trunk: nn.Module) -> Course:
    """A trunk's steps.

    Args:
        trunk: `FeatureExtractor.graph`, in evaluation mode.

    Returns:
        Steps that make the trunk's numbers; what it changes in place has the changed value for all who come later.

    Raises:
        ValueError: If there is something in it that cannot be followed.
    """
    if not isinstance(trunk, fx.GraphModule):
        raise ValueError(f"expected a trunk that torch.fx can trace, got {type(trunk).__name__}")
    return _Follower(trunk).course()


def obstacle(trunk: nn.Module) -> str | None:
    """What keeps a trunk from being evaluated in pieces.

    Args:
        trunk: `FeatureExtractor.graph`, in evaluation mode.

    Returns:
        A sentence, or None if nothing does.
    """
    try:
        course = follow(trunk)
        rows, columns = course.strides
        course.shapes((64 * rows, 64 * columns))
    except ValueError as error:
        return str(error)
    return None


class _Follower:
    """Walks a graph; knows which nodes share memory, so that changes in place reach all names of a value."""

    def __init__(self, trunk: fx.GraphModule) -> None:
        self._modules = dict(trunk.named_modules())
        self._nodes = list(trunk.graph.nodes)
        self._memory: dict[fx.Node, fx.Node] = {}  # the first node of those that share it
        self._latest: dict[fx.Node, str] = {}  # by that node: the name of what is in it now
        self._steps: list[Step] = []

    def course(self) -> Course:
        image = ""
        taps: dict[str, str] = {}
        for node in self._nodes:
            if node.op == "placeholder":
                image = node.name
                self._made(node)
            elif node.op == "output":
                taps = {layer: self._name(tap) for layer, tap in node.args[0].items()}
            else:
                self._visit(node)
        return Course(image, tuple(self._steps), taps)

    def _visit(self, node: fx.Node) -> None:
        inputs = tuple(self._name(argument) for argument in node.all_input_nodes)
        if not inputs:
            raise ValueError(f"{node.name}: expected an operation on images, got {node.op} {node.target}")
        module = self._module(node)
        window = window_of(module) if module is not None else None
        if window is not None:
            self._add(node, Step(node.name, inputs, window))
        elif module is not None and type(module) in (nn.Identity, *_DROPOUTS) and not module.training:
            self._memory[node] = self._memory[node.all_input_nodes[0]]
        elif module is not None and _is_pointwise(module):
            self._add(node, Step(node.name, inputs, module), getattr(module, "inplace", False))
        elif node.target in (torch.cat, torch.concat) and _over_channels(node):
            self._add(node, Step(node.name, inputs, _call(node), stacks=True))
        elif node.op == "call_function" and node.target in _FUNCTIONS:
            self._add(node, Step(node.name, inputs, _call(node)), _changes(node))
        elif node.op == "call_method" and node.target in _METHODS:
            self._add(node, Step(node.name, inputs, _call(node)), str(node.target).endswith("_"))
        else:
            what = module if module is not None else f"{node.op} {node.target}"
            raise ValueError(f"{node.name}: expected convolutions, pools and functions of single positions, got {what}")

    def _module(self, node: fx.Node) -> nn.Module | None:
        """The module that a node calls; one is made for pools that are called as functions."""
        if node.op == "call_function" and node.target in _POOLS:
            kind, names = _POOLS[node.target]
            options: dict[str, Any] = {**dict(zip(names, node.args[1:], strict=False)), **node.kwargs}
            return kind(**options).eval()
        if node.op != "call_module":
            return None
        module = self._modules[str(node.target)]
        if module._forward_hooks or module._forward_pre_hooks:
            raise ValueError(f"{node.target}: expected a module without hooks")
        return module

    def _name(self, argument: Any) -> str:
        if not isinstance(argument, fx.Node) or argument not in self._memory:
            raise ValueError(f"{argument}: expected an operation on images")
        return self._latest[self._memory[argument]]

    def _made(self, node: fx.Node) -> None:
        self._memory[node] = node
        self._latest[node] = node.name

    def _add(self, node: fx.Node, step: Step, changes_input: bool = False) -> None:
        self._steps.append(step)
        self._made(node)
        if changes_input:
            changed = node.args[0] if node.args else node.all_input_nodes[0]
            assert isinstance(changed, fx.Node)
            self._memory[node] = self._memory[changed]
            self._latest[self._memory[node]] = node.name


def _is_pointwise(module: nn.Module) -> bool:
    if type(module) is nn.BatchNorm2d:
        return not module.training and module.running_mean is not None
    return type(module) in _POINTWISE


def _over_channels(node: fx.Node) -> bool:
    dim = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
    return dim in (1, -3)


def _changes(node: fx.Node) -> bool:
    """Whether a function changes its first argument."""
    if node.target in _CHANGING:
        return True
    try:
        bound = inspect.signature(node.target).bind(*node.args, **node.kwargs)  # type: ignore[arg-type]
    except ValueError:  # of those in C, which have no such option
        return False
    return bool(bound.arguments.get("inplace", False))


def _call(node: fx.Node) -> Callable[..., Tensor]:
    """What a node does, as a function of its inputs alone."""
    inputs = node.all_input_nodes

    def call(*tensors: Tensor) -> Tensor:
        given = dict(zip(inputs, tensors, strict=True))
        args: Any = fx.node.map_arg(node.args, given.__getitem__)
        kwargs: Any = fx.node.map_arg(node.kwargs, given.__getitem__)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        return node.target(*args, **kwargs)  # type: ignore[operator]

    return call


def _union(name: str, sights: tuple[Sight, ...]) -> Sight:
    """What positions see that are made of several."""
    jump = sights[0].jump
    if any(sight.jump != jump for sight in sights):
        raise ValueError(f"{name}: expected inputs of one stride, got {sorted(sight.jump for sight in sights)}")
    return Sight(jump, max(sight.before for sight in sights), max(sight.after for sight in sights))
