"""Forward and backward pass of image pairs through a frozen backbone, without an autograd graph where that is faster.

Activations are freed after their last use, and the backward pass overwrites gradients in place: on a CPU, fresh memory
and cache misses cost more than the arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from lpips_lightning.backbones.dists_vgg import ImageNetNormalization
from lpips_lightning.backbones.frozen import FrozenNetwork
from lpips_lightning.engine.constants import AUTOGRAD_PIXELS, FP16_GRADIENT_PEAK
from lpips_lightning.engine.graph import LayerGraph, Node
from lpips_lightning.engine.state import Engine
from lpips_lightning.engine.windows import Convolution, Window
from lpips_lightning.kernels.head import layer_sum, layer_sum_gradient
from lpips_lightning.kernels.winograd import shared_workspace

_RunNode: TypeAlias = Callable[[Node, list[Tensor]], Tensor]

ImagesOrFeatures: TypeAlias = Tensor | Mapping[str, Tensor]
"""Preprocessed images ``(N, 3, H, W)``, or features ``(N, C, h, w)`` by layer name."""

Interior: TypeAlias = Mapping[str, tuple[slice, slice]]
"""Rows and columns of each layer that belong to the interior of a tile."""


class Executor(Protocol):
    """One forward and backward pass of a batch of pairs."""

    def features(self, x: Tensor, y: Tensor | None) -> Iterator[tuple[str, Tensor, Tensor | None, bool]]:
        """Run the forward pass; yields the feature layers in any order.

        Args:
            x: Preprocessed images ``(N, 3, H, W)``.
            y: Images of the same shape, or None.

        Yields:
            Layer name, features of `x`, features of `y`, and whether the caller may overwrite the features of `y`.
        """

    def backward(self, gradients: Mapping[str, Tensor]) -> Tensor:
        """Backpropagate feature gradients to the input `x` of the last `features` call.

        Args:
            gradients: Gradients w.r.t. the features, by layer name; they are overwritten.

        Returns:
            Gradient w.r.t. `x`, ``(N, 3, H, W)``.
        """


def choose_executor(network: FrozenNetwork, images: Tensor) -> Executor:
    """The fastest executor for a backward pass through a network.

    Args:
        network: Its device and operations decide.
        images: Shape ``(N, 3, H, W)``; the number of pixels decides too.

    Returns:
        An executor for one batch of pairs.
    """
    layer_graph = _cpu_layer_graph(network)
    if layer_graph is None or _is_small(images) or not _supports_backward(layer_graph):
        return _AutogradExecutor(network)
    return _ManualExecutor(layer_graph)


class _AutogradExecutor:
    def __init__(self, network: FrozenNetwork) -> None:
        self._network = network
        self._image = torch.empty(0)
        self._features: dict[str, Tensor] = {}

    @torch.no_grad()
    def features(self, x: Tensor, y: Tensor | None) -> Iterator[tuple[str, Tensor, Tensor | None, bool]]:
        features_y = {} if y is None else self._network.extractor(y)
        storages = {feature_map.untyped_storage()._cdata for feature_map in features_y.values()}
        overwritable = y is not None and len(storages - {y.untyped_storage()._cdata}) == len(features_y)
        with torch.enable_grad():
            self._image = x.detach().requires_grad_()
            self._features = self._network.extractor(_not_a_leaf(self._image))
        for layer, feature_map in self._features.items():
            yield layer, feature_map.detach(), features_y.pop(layer, None), overwritable

    def backward(self, gradients: Mapping[str, Tensor]) -> Tensor:
        outputs = [self._features[layer] for layer in gradients]
        return torch.autograd.grad(outputs, self._image, list(gradients.values()))[0]


class _ManualExecutor:
    """Runs the layer graph node by node; supports what `_supports_backward` lists."""

    def __init__(self, layer_graph: LayerGraph) -> None:
        self._layer_graph = layer_graph
        self._image = torch.empty(0)
        self._input_shapes: dict[str, torch.Size] = {}  # of convolutions
        self._relu_outputs: dict[str, Tensor] = {}
        self._pool_graphs: dict[str, tuple[Tensor, Tensor]] = {}  # input and output

    @torch.no_grad()
    def features(self, x: Tensor, y: Tensor | None) -> Iterator[tuple[str, Tensor, Tensor | None, bool]]:
        features_y = {} if y is None else _all_features(self._layer_graph, y)
        self._image = x
        for layers, feature_map in _run_graph(self._layer_graph, self._run_node, x):
            name = self._layer_graph.feature_layers[layers[0]]
            overwritable = len(layers) == 1 and name != self._layer_graph.image
            for layer in layers:
                yield layer, feature_map, features_y.pop(layer, None), overwritable

    @torch.no_grad()
    def backward(self, gradients: Mapping[str, Tensor]) -> Tensor:
        pending: dict[str, Tensor] = {}
        for layer, gradient in gradients.items():
            _accumulate(pending, self._layer_graph.feature_layers[layer], gradient)
        for node in reversed(self._layer_graph.nodes):
            if node.name in pending:
                for name, part in zip(node.inputs, self._input_gradients(node, pending.pop(node.name)), strict=True):
                    _accumulate(pending, name, part)
        image = pending.get(self._layer_graph.image)
        return torch.zeros_like(self._image) if image is None else image

    def _run_node(self, node: Node, inputs: list[Tensor]) -> Tensor:
        """Run a node and keep what its backward pass needs."""
        op = node.op
        if isinstance(op, nn.ReLU):
            result = self._relu_outputs[node.name] = _run_node(node, inputs)
            return result
        if node.concatenates:
            result = _run_node(node, inputs)
            # The concatenation holds a copy of its inputs: take the ReLU masks from there and free the inputs.
            channels = [tensor.shape[1] for tensor in inputs]
            for name, part in zip(node.inputs, result.split(channels, 1), strict=True):
                if name in self._relu_outputs:
                    self._relu_outputs[name] = part
            return result
        if isinstance(op, Convolution):
            self._input_shapes[node.name] = inputs[0].shape
            return _run_node(node, inputs)
        leaf = inputs[0].detach().requires_grad_()
        with torch.enable_grad():
            result = _run_node(node, [_not_a_leaf(leaf)])
        self._pool_graphs[node.name] = leaf, result
        return result.detach()

    def _input_gradients(self, node: Node, gradient: Tensor) -> Sequence[Tensor]:
        op = node.op
        if isinstance(op, nn.ReLU):
            return [_relu_backward(gradient, self._relu_outputs.pop(node.name))]
        if node.concatenates:
            channels = [self._relu_outputs[name].shape[1] for name in node.inputs]
            return gradient.split(channels, 1)
        if isinstance(op, Convolution):
            assert op.fast_module is not None
            return [op.fast_module.input_gradient(gradient, self._input_shapes.pop(node.name))]
        leaf, result = self._pool_graphs.pop(node.name)
        return torch.autograd.grad(result, leaf, gradient)


@torch.no_grad()
@shared_workspace()
def pair_distances(network: FrozenNetwork, x: Tensor, y: ImagesOrFeatures) -> dict[str, Tensor]:
    """Distance of every pair at every layer, without an autograd graph.

    Args:
        network: The frozen network, with the device and dtype of `x`.
        x: Preprocessed images ``(N, 3, H, W)``.
        y: Preprocessed images of the same shape, or features by layer name.

    Returns:
        Shape ``(N,)`` by layer name; float32, or float64 for float64 inputs.
    """
    given_features = None if isinstance(y, Tensor) else y
    distance = network.distance
    distances, kept = {}, _Features({}, {})
    for layer, features_x, features_y in iterate_features(network, x, y if isinstance(y, Tensor) else None):
        reference = features_y if given_features is None else given_features[layer]
        assert reference is not None
        if distance.is_fused:
            distances[layer] = layer_sum(features_x, reference, mean_weight(network, layer, features_x))
        elif distance.is_layerwise:
            distances[layer] = distance.at_layer(features_x, reference, _weight(network, layer))
        else:
            kept.x[layer], kept.y[layer] = features_x, reference
    return distances if not kept.x else distance.by_layer(*kept.ordered(network.layers), network.calibration)


@torch.no_grad()
@shared_workspace()
def pair_gradient(
    network: FrozenNetwork,
    x: Tensor,
    y: ImagesOrFeatures,
    positions: Mapping[str, int] | None = None,
    interior: Interior | None = None,
) -> tuple[dict[str, Tensor], Tensor]:
    """Distance of every pair at every layer, and the gradient of the sum over layers w.r.t. `x`.

    Args:
        network: The frozen network, with the device and dtype of `x`.
        x: Preprocessed images ``(N, 3, H, W)``.
        y: Preprocessed images of the same shape, or features by layer name.
        positions: Number of positions of the whole image by layer, if `x` is a tile; None if `x` is whole.
        interior: Positions of each layer to include, if `x` is a tile; None for all.

    Returns:
        Distances ``(N,)`` by layer name and the gradient ``(N, 3, H, W)``; float32, or float64 for float64 inputs.
    """
    executor = choose_executor(network, x)
    if not network.distance.is_fused:
        distances, gradients = _autograd_terms(network, executor, x, y)
        return distances, _to_image(executor, gradients, x.dtype)
    half = x.dtype == torch.float16
    given_features = None if isinstance(y, Tensor) else y
    distances, gradients = {}, {}
    for layer, features_x, features_y, overwritable in executor.features(x, y if isinstance(y, Tensor) else None):
        reference = features_y if given_features is None else given_features[layer]
        assert reference is not None
        part = (slice(None), slice(None), *(interior[layer] if interior is not None else (slice(None), slice(None))))
        pair = features_x[part], reference[part]
        if half:
            pair = pair[0].float(), pair[1].float()
        weight = mean_weight(network, layer, features_x, None if positions is None else positions[layer])
        # Write the gradient into the memory of y's features where nothing else needs them.
        reusable = overwritable and given_features is None
        reusable = reusable and reference.is_contiguous(memory_format=torch.channels_last)
        into = reference if reusable and interior is None and not half else None
        distances[layer], gradient = layer_sum_gradient(*pair, weight, into)
        if interior is not None:
            whole = reference.zero_() if reusable and not half else torch.zeros_like(features_x, dtype=gradient.dtype)
            whole[part] = gradient
            gradient = whole
        gradients[layer] = gradient
        del features_x, features_y, reference, pair, into, gradient
    return distances, _to_image(executor, gradients, x.dtype)


class _Features(NamedTuple):
    """Features of both images by layer name."""

    x: dict[str, Tensor]
    y: dict[str, Tensor]

    def ordered(self, layers: Sequence[str]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Both in the order of the backbone."""
        return {layer: self.x[layer] for layer in layers}, {layer: self.y[layer] for layer in layers}


def _autograd_terms(
    network: FrozenNetwork, executor: Executor, x: Tensor, y: ImagesOrFeatures
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Distances of every pair by layer, and the gradients of their sum w.r.t. the features of `x`, by autograd.

    A distance that takes one layer at a time frees the features of `y`, and its own graph, before the next layer.
    """
    distances, gradients, kept = {}, {}, _Features({}, {})
    for layer, features_x, features_y, _ in executor.features(x, y if isinstance(y, Tensor) else None):
        reference = features_y if isinstance(y, Tensor) else y[layer]
        assert reference is not None
        if not network.distance.is_layerwise:
            kept.x[layer], kept.y[layer] = features_x, reference
            continue
        with torch.enable_grad():
            leaf = features_x.detach().requires_grad_()
            term = network.distance.at_layer(leaf, reference, _weight(network, layer))
            gradients[layer] = torch.autograd.grad(term.sum(), leaf)[0]
        distances[layer] = term.detach()
        del features_x, features_y, reference, leaf, term
    return (distances, gradients) if not kept.x else _joint_terms(network, *kept.ordered(network.layers))


def _joint_terms(
    network: FrozenNetwork, x: Mapping[str, Tensor], y: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """`_autograd_terms` of a distance that needs all layers at once."""
    with torch.enable_grad():
        leaves = {layer: feature_map.detach().requires_grad_() for layer, feature_map in x.items()}
        terms = network.distance.by_layer(leaves, y, network.calibration)
        gradients = torch.autograd.grad(torch.stack(list(terms.values())).sum(), list(leaves.values()))
    return {layer: term.detach() for layer, term in terms.items()}, dict(zip(leaves, gradients, strict=True))


def _weight(network: FrozenNetwork, layer: str) -> Tensor | None:
    calibration = network.calibration
    return None if calibration is None else calibration[layer]


def _to_image(executor: Executor, gradients: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
    """Backpropagate feature gradients to the image: float32, or float64 for float64 inputs."""
    working = torch.promote_types(dtype, torch.float32)
    if dtype != torch.float16:
        return executor.backward(gradients).to(working)
    peak = torch.stack([gradient.abs().amax() for gradient in gradients.values()]).amax()
    factor = torch.where(peak > 0, FP16_GRADIENT_PEAK / peak, 1.0)
    scaled = executor.backward({layer: gradient.mul_(factor).half() for layer, gradient in gradients.items()})
    return scaled.to(working) / factor


def iterate_features(
    network: FrozenNetwork, x: Tensor, y: Tensor | None
) -> Iterator[tuple[str, Tensor, Tensor | None]]:
    """Features of pairs layer by layer, in any order; each is freed when the next one is requested.

    Args:
        network: The frozen network, with the device and dtype of the images.
        x: Preprocessed images ``(N, 3, H, W)``.
        y: Images of the same shape, or None.

    Yields:
        Layer name, features of `x` and features of `y`, without an autograd graph.
    """
    layer_graph = None if _is_small(x) else _cpu_layer_graph(network)
    with torch.no_grad():
        if layer_graph is None:
            features_x, features_y = network.extractor(x), {} if y is None else network.extractor(y)
            del x, y
            for layer in network.layers:
                yield layer, features_x.pop(layer), features_y.pop(layer, None)
            return
        features_y = {} if y is None else _all_features(layer_graph, y)
        del y
        for layers, feature_map in _run_graph(layer_graph, _run_node, x):
            for layer in layers:
                yield layer, feature_map, features_y.pop(layer, None)


def mean_weight(network: FrozenNetwork, layer: str, feature_map: Tensor, positions: int | None = None) -> Tensor:
    """Channel weights that turn a sum over positions into the layer's distance.

    Args:
        network: The frozen network; its calibration is used.
        layer: Name of the layer.
        feature_map: Features ``(N, C, h, w)`` of the layer.
        positions: Number of positions of the mean; None for ``h * w``.

    Returns:
        Calibration weights (1 for the baseline) divided by the number of positions: shape ``(C,)``, float32, or float64
        for float64 features.
    """
    calibration = network.calibration
    dtype = torch.float64 if feature_map.dtype == torch.float64 else torch.float32
    weight = (
        feature_map.new_ones(feature_map.shape[1], dtype=dtype) if calibration is None else calibration[layer].to(dtype)
    )
    return weight / (positions or feature_map.shape[2] * feature_map.shape[3])


def _cpu_layer_graph(network: FrozenNetwork) -> LayerGraph | None:
    """The layer graph if the backbone should be run node by node; on other devices, Python calls cost more."""
    engine = Engine.of(network)
    return engine.layer_graph if network.on_cpu and engine.has_layer_graph else None


def _is_small(images: Tensor) -> bool:
    return len(images) * images.shape[2] * images.shape[3] <= AUTOGRAD_PIXELS and not images.is_meta


def _supports_backward(layer_graph: LayerGraph) -> bool:
    """Whether `_ManualExecutor` supports every node."""
    ops = {node.name: node.op for node in layer_graph.nodes}
    for node in layer_graph.nodes:
        if node.concatenates:
            relus = all(isinstance(ops.get(name), nn.ReLU) for name in node.inputs)
            if not relus or len(set(node.inputs)) < len(node.inputs):
                return False
        elif isinstance(node.op, Convolution):
            if node.op.fast_module is None:
                return False
        elif not isinstance(node.op, Window | nn.ReLU | ImageNetNormalization):
            return False
    return True


def _all_features(layer_graph: LayerGraph, images: Tensor) -> dict[str, Tensor]:
    return {layer: value for layers, value in _run_graph(layer_graph, _run_node, images) for layer in layers}


def _run_graph(layer_graph: LayerGraph, run: _RunNode, image: Tensor) -> Iterator[tuple[list[str], Tensor]]:
    """Run all nodes; yields a feature map with the names of its layers after its last use."""
    layers: dict[str, list[str]] = {}
    for layer, name in layer_graph.feature_layers.items():
        layers.setdefault(name, []).append(layer)
    results = {layer_graph.image: image}
    del image
    if layer_graph.image in layers and layer_graph.image not in layer_graph.last_use:
        yield layers[layer_graph.image], results.pop(layer_graph.image)
    for index, node in enumerate(layer_graph.nodes):
        results[node.name] = run(node, [results[name] for name in node.inputs])
        for name in dict.fromkeys((*node.inputs, node.name)):
            if layer_graph.last_use.get(name, index) == index:
                value = results.pop(name)
                if name in layers:
                    yield layers[name], value
                del value


def _run_node(node: Node, inputs: list[Tensor]) -> Tensor:
    if isinstance(node.op, Window):
        return node.op.run(inputs[0])
    return node.op(*inputs)


def _not_a_leaf(leaf: Tensor) -> Tensor:
    """An alias to give to modules: `torch.autograd.grad` refuses gradient hooks on leaves, which FlopCounterMode adds.

    Its gradient is passed on as it is; that of a view would be copied out of channels_last.
    """
    return leaf[...]


def _relu_backward(gradient: Tensor, output: Tensor) -> Tensor:
    """Input gradient of a ReLU; in place if the memory is dense."""
    backward: Any = torch.ops.aten.threshold_backward
    dense = gradient.is_contiguous(memory_format=torch.channels_last)
    masked: Tensor = (
        backward.grad_input(gradient, output, 0, grad_input=gradient) if dense else backward(gradient, output, 0)
    )
    return masked


def _accumulate(gradients: dict[str, Tensor], name: str, gradient: Tensor) -> None:
    gradients[name] = gradients[name].add_(gradient) if name in gradients else gradient
