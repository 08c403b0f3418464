"""A backbone as a list of operations with known receptive fields, so that images can be evaluated in strips or tiles.

Supported are backbones that torch.fx can trace and that consist of convolutions, pools, pointwise functions, sums, and
concatenations over channels. Then every row of a layer depends on a known range of image rows.
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

from lpips_lightning.backbones.dists_vgg import ImageNetNormalization
from lpips_lightning.backbones.extractor import FeatureModule
from lpips_lightning.backbones.lab import RgbToLab
from lpips_lightning.engine.windows import Axis, Window, window_of

Size: TypeAlias = tuple[int, int]

_POINTWISE: tuple[type[nn.Module], ...] = (
    nn.CELU, nn.ELU, nn.GELU, nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh, nn.LeakyReLU, nn.LocalResponseNorm, nn.Mish,
    nn.PReLU, nn.ReLU, nn.ReLU6, nn.SELU, nn.SiLU, nn.Sigmoid, nn.Softplus, nn.Softsign, nn.Tanh, RgbToLab,
    ImageNetNormalization,
)  # fmt: skip
_DROPOUTS = (nn.AlphaDropout, nn.Dropout, nn.Dropout2d, nn.FeatureAlphaDropout)
_FUNCTIONS: tuple[Any, ...] = (
    F.celu, F.elu, F.gelu, F.hardsigmoid, F.hardswish, F.hardtanh, F.leaky_relu, F.mish, F.relu, F.relu6, F.relu_,
    F.selu, F.silu, F.softplus, operator.add, operator.iadd, operator.imul, operator.isub, operator.mul, operator.sub,
    operator.truediv, torch.add, torch.mul, torch.relu, torch.relu_, torch.sigmoid, torch.sub, torch.tanh,
)  # fmt: skip
_INPLACE = (operator.iadd, operator.imul, operator.isub, F.relu_, torch.relu_)
_METHODS = ("add", "add_", "mul", "mul_", "relu", "relu_", "sigmoid", "sigmoid_", "sub", "sub_", "tanh", "tanh_")
_POOLS = {
    F.max_pool2d: (nn.MaxPool2d, ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")),
    F.avg_pool2d: (
        nn.AvgPool2d,
        ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"),
    ),
}


@dataclass(frozen=True)
class Node:
    """One operation.

    Attributes:
        name: Name of the result.
        inputs: Names of the inputs.
        op: A convolution or pool, or a function that is pointwise over positions.
        concatenates: Whether `op` concatenates its inputs over channels.
    """

    name: str
    inputs: tuple[str, ...]
    op: Window | Callable[..., Tensor]
    concatenates: bool = False


@dataclass(frozen=True)
class ReceptiveField:
    """Receptive field along one axis: position ``o`` depends on the pixels ``[jump * o - before, jump * o + after]``.

    Attributes:
        jump: Pixels between neighboring positions (the total stride).
        before: Pixels before the first one, ``jump * o``.
        after: Pixels after it.
    """

    jump: int = 1
    before: int = 0
    after: int = 0

    def through(self, axis: Axis) -> ReceptiveField:
        """Receptive field after another sliding window."""
        before, ahead = axis.before * self.jump, (axis.extent - 1 - axis.before) * self.jump
        return ReceptiveField(self.jump * axis.stride, self.before + before, self.after + ahead)


@dataclass(frozen=True)
class LayerGraph:
    """The operations of a backbone.

    Attributes:
        image: Name of the input.
        nodes: Operations in execution order.
        feature_layers: Name of the result that is the feature map, by layer name.
    """

    image: str
    nodes: tuple[Node, ...]
    feature_layers: Mapping[str, str]

    @cached_property
    def last_use(self) -> dict[str, int]:
        """Index of the last node that reads a result, by name."""
        return {name: index for index, node in enumerate(self.nodes) for name in node.inputs}

    @cached_property
    def receptive_fields(self) -> dict[str, tuple[ReceptiveField, ReceptiveField]]:
        """Receptive fields of every result in rows and in columns, by name."""
        found = {self.image: (ReceptiveField(), ReceptiveField())}
        for node in self.nodes:
            rows, columns = zip(*(found[name] for name in node.inputs), strict=True)
            both = _union(node.name, rows), _union(node.name, columns)
            if isinstance(node.op, Window):
                rows_seen, columns_seen = node.op.reach
                both = both[0].through(rows_seen), both[1].through(columns_seen)
            found[node.name] = both
        return found

    @cached_property
    def strides(self) -> Size:
        """Smallest image shift, in rows and in columns, that shifts every result by whole positions."""
        rows, columns = zip(*self.receptive_fields.values(), strict=True)
        return lcm(*(field.jump for field in rows)), lcm(*(field.jump for field in columns))

    def shapes(self, size: Size, channels: int = 3) -> dict[str, tuple[int, int, int]]:
        """Shape of every result.

        Args:
            size: ``(H, W)`` of the image.
            channels: Channels of the image.

        Returns:
            ``(C, h, w)`` by name.

        Raises:
            ValueError: If the inputs of a node differ in size.
        """
        found = {self.image: (channels, *size)}
        for node in self.nodes:
            inputs = [found[name] for name in node.inputs]
            if len({shape[1:] for shape in inputs}) != 1:
                raise ValueError(f"{node.name}: expected inputs of one size, got {inputs}")
            depth, height, width = inputs[0]
            if isinstance(node.op, Window):
                op = node.op
                found[node.name] = (op.out_channels(depth), op.rows.count(height), op.columns.count(width))
            else:
                found[node.name] = (sum(shape[0] for shape in inputs) if node.concatenates else depth, height, width)
        return found


def build_layer_graph(backbone: nn.Module) -> LayerGraph:
    """Convert a traced backbone to a `LayerGraph`.

    Args:
        backbone: `FeatureExtractor.graph`, in evaluation mode.

    Returns:
        The layer graph. It computes the backbone's values; later nodes read the modified value of what an in-place
        operation changes.

    Raises:
        ValueError: If the backbone was not traced or contains an unsupported operation.
    """
    if isinstance(backbone, FeatureModule):
        model = type(backbone.feature_nodes()).__name__
        raise ValueError(f"expected convolutions, got {model}, whose tokens depend on the whole image")
    if not isinstance(backbone, fx.GraphModule):
        raise ValueError(f"expected a backbone that torch.fx can trace, got {type(backbone).__name__}")
    return _GraphBuilder(backbone).layer_graph()


def unsupported_reason(backbone: nn.Module) -> str | None:
    """Why a backbone cannot be evaluated in strips or tiles.

    Args:
        backbone: `FeatureExtractor.graph`, in evaluation mode.

    Returns:
        A sentence, or None if it can.
    """
    try:
        layer_graph = build_layer_graph(backbone)
        rows, columns = layer_graph.strides
        layer_graph.shapes((64 * rows, 64 * columns))
    except ValueError as error:
        return str(error)
    return None


class _GraphBuilder:
    """Walks an fx graph and tracks which fx nodes share memory, so that in-place changes reach all aliases."""

    def __init__(self, backbone: fx.GraphModule) -> None:
        self._modules = dict(backbone.named_modules())
        self._fx_nodes = list(backbone.graph.nodes)
        self._owner: dict[fx.Node, fx.Node] = {}  # the first fx node with the same memory
        self._current: dict[fx.Node, str] = {}  # by owner: name of the result that its memory holds now
        self._nodes: list[Node] = []

    def layer_graph(self) -> LayerGraph:
        image = ""
        feature_layers: dict[str, str] = {}
        for fx_node in self._fx_nodes:
            if fx_node.op == "placeholder":
                image = fx_node.name
                self._register(fx_node)
            elif fx_node.op == "output":
                feature_layers = {layer: self._name(feature_map) for layer, feature_map in fx_node.args[0].items()}
            else:
                self._visit(fx_node)
        return LayerGraph(image, tuple(self._nodes), feature_layers)

    def _visit(self, fx_node: fx.Node) -> None:
        name, target = fx_node.name, fx_node.target
        inputs = tuple(self._name(argument) for argument in fx_node.all_input_nodes)
        if not inputs:
            raise ValueError(f"{name}: expected an operation on images, got {fx_node.op} {target}")
        module = self._module(fx_node)
        window = window_of(module) if module is not None else None
        if window is not None:
            self._add(fx_node, Node(name, inputs, window))
        elif module is not None and type(module) in (nn.Identity, *_DROPOUTS) and not module.training:
            self._owner[fx_node] = self._owner[fx_node.all_input_nodes[0]]
        elif module is not None and _is_pointwise(module):
            self._add(fx_node, Node(name, inputs, module), getattr(module, "inplace", False))
        elif target in (torch.cat, torch.concat) and _is_over_channels(fx_node):
            self._add(fx_node, Node(name, inputs, _as_function(fx_node), concatenates=True))
        elif fx_node.op == "call_function" and target in _FUNCTIONS:
            self._add(fx_node, Node(name, inputs, _as_function(fx_node)), _is_inplace(fx_node))
        elif fx_node.op == "call_method" and target in _METHODS:
            self._add(fx_node, Node(name, inputs, _as_function(fx_node)), str(target).endswith("_"))
        else:
            got = module if module is not None else f"{fx_node.op} {target}"
            raise ValueError(f"{name}: expected convolutions, pools and pointwise functions, got {got}")

    def _module(self, fx_node: fx.Node) -> nn.Module | None:
        """The module that an fx node calls; functional pools are converted to modules."""
        if fx_node.op == "call_function" and fx_node.target in _POOLS:
            kind, names = _POOLS[fx_node.target]
            options: dict[str, Any] = {**dict(zip(names, fx_node.args[1:], strict=False)), **fx_node.kwargs}
            return kind(**options).eval()
        if fx_node.op != "call_module":
            return None
        module = self._modules[str(fx_node.target)]
        if module._forward_hooks or module._forward_pre_hooks:
            raise ValueError(f"{fx_node.target}: expected a module without hooks")
        return module

    def _name(self, argument: Any) -> str:
        if not isinstance(argument, fx.Node) or argument not in self._owner:
            raise ValueError(f"{argument}: expected an operation on images")
        return self._current[self._owner[argument]]

    def _register(self, fx_node: fx.Node) -> None:
        self._owner[fx_node] = fx_node
        self._current[fx_node] = fx_node.name

    def _add(self, fx_node: fx.Node, node: Node, inplace: bool = False) -> None:
        self._nodes.append(node)
        self._register(fx_node)
        if inplace:
            changed = fx_node.args[0] if fx_node.args else fx_node.all_input_nodes[0]
            assert isinstance(changed, fx.Node)
            self._owner[fx_node] = self._owner[changed]
            self._current[self._owner[fx_node]] = fx_node.name


def _is_pointwise(module: nn.Module) -> bool:
    if type(module) is nn.BatchNorm2d:
        return not module.training and module.running_mean is not None
    return type(module) in _POINTWISE


def _is_over_channels(fx_node: fx.Node) -> bool:
    dim = fx_node.kwargs.get("dim", fx_node.args[1] if len(fx_node.args) > 1 else 0)
    return dim in (1, -3)


def _is_inplace(fx_node: fx.Node) -> bool:
    """Whether a function modifies its first argument."""
    if fx_node.target in _INPLACE:
        return True
    try:
        bound = inspect.signature(fx_node.target).bind(*fx_node.args, **fx_node.kwargs)  # type: ignore[arg-type]
    except ValueError:  # functions implemented in C have no signature and no `inplace` argument
        return False
    return bool(bound.arguments.get("inplace", False))


def _as_function(fx_node: fx.Node) -> Callable[..., Tensor]:
    """The operation of an fx node as a function of its tensor inputs alone."""
    inputs = fx_node.all_input_nodes

    def call(*tensors: Tensor) -> Tensor:
        given = dict(zip(inputs, tensors, strict=True))
        args: Any = fx.node.map_arg(fx_node.args, given.__getitem__)
        kwargs: Any = fx.node.map_arg(fx_node.kwargs, given.__getitem__)
        if fx_node.op == "call_method":
            return getattr(args[0], str(fx_node.target))(*args[1:], **kwargs)
        return fx_node.target(*args, **kwargs)  # type: ignore[operator]

    return call


def _union(name: str, receptive_fields: tuple[ReceptiveField, ...]) -> ReceptiveField:
    """Receptive field of a node with several inputs."""
    jump = receptive_fields[0].jump
    if any(field.jump != jump for field in receptive_fields):
        raise ValueError(
            f"{name}: expected inputs of one stride, got {sorted(field.jump for field in receptive_fields)}"
        )
    return ReceptiveField(
        jump, max(field.before for field in receptive_fields), max(field.after for field in receptive_fields)
    )
