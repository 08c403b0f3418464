"""Feature extractor: a backbone that returns its feature layers."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from functools import partial

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from lpips_lightning.backbones.definition import Backbone
from lpips_lightning.backbones.dists_vgg import ImageNetNormalization, L2Pool2d
from lpips_lightning.backbones.lab import RgbToLab
from lpips_lightning.backbones.shift_tolerant import BlurPool
from lpips_lightning.backbones.state_dict import fitting_tensors


class FeatureModule(nn.Module):
    """A module that returns its feature layers by name, as a traced backbone does; torch.fx need not trace it."""

    def feature_nodes(self) -> nn.Module:
        """The module whose submodules the feature layers name."""
        raise NotImplementedError


class FeatureExtractor(nn.Module):
    """A backbone, cut after its last feature layer, that returns all feature layers.

    Input: preprocessed images ``(N, 3, H, W)``.
    Output: features ``(N, C, h, w)`` by layer name, in execution order.

    Weights are float32 and ``channels_last``; the module is in evaluation mode. Parameters are not frozen.

    Attributes:
        graph: The traced backbone up to its last feature layer; the whole module, read out by hooks, if torch.fx cannot
            trace it; or a `FeatureModule`.

    Args:
        record: Definition of the backbone.
        tensors: Weights by torchvision's names, of the whole model or of the used part; see `fitting_tensors` for other
            accepted names.
        source: Name of the weights for error messages: the argument or the file.

    Raises:
        ValueError: If a feature layer does not exist in the backbone.
        WeightsError: If a tensor is missing, unknown, of the wrong shape, not floating-point or not finite.
    """

    def __init__(self, record: Backbone, tensors: Mapping[str, Tensor], source: str = "weights") -> None:
        super().__init__()
        self.feature_layers = dict(record.feature_layers)
        self.graph, whole = cut(record)
        expected = self.graph.state_dict()
        fitting = fitting_tensors(record.builder or record.name, expected, whole, tensors, source)
        self.graph.load_state_dict(fitting, assign=True, strict=True)
        self.graph.to(memory_format=torch.channels_last)
        self.eval()

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Features by layer name."""
        return hooked_features(self.graph, self.feature_layers, images)


def random_backbone(record: Backbone, seed: int) -> dict[str, Tensor]:
    """Gaussian weights (He et al. 2015, fan-in) and zero biases: the random net of the paper, also used in tests.

    Args:
        record: Definition of the backbone.
        seed: Seed of the weights; the global generator is not used.

    Returns:
        Tensor by name.

    Example:
        >>> from lpips_lightning.backbones.definition import BACKBONES
        >>> backbone = random_backbone(BACKBONES["alex"], seed=0)
        >>> backbone["features.0.weight"].shape
        torch.Size([64, 3, 11, 11])
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    graph, _ = cut(record)
    tensors = {}
    for name, like in graph.state_dict().items():
        tensor = torch.zeros(like.shape, device="cpu", dtype=like.dtype)
        if like.dim() > 1:
            nn.init.kaiming_normal_(tensor, nonlinearity="relu", generator=generator)
        elif name.endswith((".weight", "running_var", ".gamma", ".gamma_1", ".gamma_2")):  # normalization, layer scale
            tensor.fill_(1)
        tensors[name] = tensor
    return tensors


def cut(record: Backbone) -> tuple[nn.Module, set[str]]:
    """Cut a backbone after its last feature layer.

    Args:
        record: Definition of the backbone.

    Returns:
        A traced graph that returns a dict, or the whole module if torch.fx cannot trace it, with weights on the meta
        device unless `record.build` loads some; and the names of all tensors of the whole model.

    Raises:
        ValueError: If a feature layer does not exist in the backbone.
    """
    from torchvision.models.feature_extraction import create_feature_extractor

    with torch.device("meta"):
        model = record.build().eval()
    names = set(model.state_dict())
    if isinstance(model, FeatureModule):
        _refuse_unknown(record, model.feature_nodes())
        return model, names
    try:
        nodes = {node: layer for layer, node in record.feature_layers.items()}
        # Each is one operation for the engine.
        leaves = {"leaf_modules": [RgbToLab, ImageNetNormalization, L2Pool2d, BlurPool]}
        return create_feature_extractor(model, nodes, tracer_kwargs=leaves).eval(), names
    except Exception as error:  # tracing runs the user's code: any error
        _refuse_unknown(record, model, error)
        return model, names


def _refuse_unknown(record: Backbone, model: nn.Module, cause: Exception | None = None) -> None:
    modules = dict(model.named_modules())
    unknown = [node for node in record.feature_layers.values() if node not in modules]
    if unknown:
        near = get_close_matches(unknown[0], modules, n=3, cutoff=0.3)
        hint = f"; did you mean one of {near}?" if near else ""
        raise ValueError(f"feature layers: expected names of parts of {record.name}, got {unknown}{hint}") from cause


def hooked_features(backbone: nn.Module, feature_layers: Mapping[str, str], images: Tensor) -> dict[str, Tensor]:
    """Run a backbone and collect its feature layers.

    Args:
        backbone: A backbone from `cut`.
        feature_layers: Node by layer name.
        images: Preprocessed images ``(N, 3, H, W)``.

    Returns:
        Features by layer name, in execution order.
    """
    if isinstance(backbone, GraphModule | FeatureModule):
        return backbone(images)
    found: dict[str, Tensor] = {}
    handles = [
        backbone.get_submodule(node).register_forward_hook(partial(_keep, found, layer, len(feature_layers)))
        for layer, node in feature_layers.items()
    ]
    try:
        backbone(images)
    except _AllCollectedError:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return {layer: found[layer] for layer in feature_layers}


class _AllCollectedError(Exception):
    """Stops the forward pass once all feature layers are collected."""


def _keep(found: dict[str, Tensor], layer: str, total: int, module: nn.Module, inputs: object, output: Tensor) -> None:
    found[layer] = output
    if len(found) == total:
        raise _AllCollectedError
