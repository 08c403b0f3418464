"""Models of timm as backbones: vision transformers (ViT, DINO, DINOv2, DINOv3, CLIP) and convolutional networks."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import lru_cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from lpips_lightning.backbones.custom import channel_scaling, measured_backbone
from lpips_lightning.backbones.definition import Backbone
from lpips_lightning.backbones.tokens import TokenMaps, Tokens, tokens_of
from lpips_lightning.weights import WeightsError


def from_timm(
    name: str,
    feature_layers: Sequence[int | str] | Mapping[str, int | str],
    *,
    pretrained: bool = False,
    norm: bool = False,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    smallest_side: int | None = None,
    tokens: Tokens | None = None,
    **model_options: Any,
) -> Backbone:
    """A model of timm as a backbone: "LPIPS or DINO?" is then a choice of `net_type`. Needs the extra ``timm``.

    The tokens of a transformer become feature maps, without class and register tokens. Every position is scaled to unit
    length, and the squared differences are summed over channels, averaged over positions and summed over layers: the
    LPIPS formula without calibration. `lpips_lightning.backbones.mean_calibration` makes it the mean over layers.

    Images of any size are taken, as far as timm can interpolate the position embeddings of the model
    (``dynamic_img_size=True``): each side is resized to the nearest multiple of the patch. A model with fixed
    embeddings gets images of its own size; see `lpips_lightning.backbones.Tokens`. The fingerprint says which.

    A decoder whose patches lie on those of the backbone may learn speckles. A fresh random shift of both images in each
    step breaks them up: ``PerceptualLoss(lpips_lightning.Ensemble(net, "shift", draws=1, seed=None), ...)``.

    Fused attention has no second derivative. Gradients of the plain distance have one (``create_graph=True``); those of
    maps, masked and per-layer distances, and forward-mode AD, need
    ``torch.nn.attention.sdpa_kernel(SDPBackend.MATH)``.

    Args:
        name: Name in timm, with the tag of its weights: ``"vit_small_patch16_224.dino"``,
            ``"vit_small_patch14_reg4_dinov2.lvd142m"``, ``"vit_base_patch16_clip_224.openai"``, ``"resnet50.a1_in1k"``.
        feature_layers: Layers that are compared: indices as of timm's ``features_only``, for transformers the number of
            the block from 0, where -1 is the last; or names of submodules. The keys of a mapping are your layer names.
        pretrained: Load the weights with timm, which downloads them. False: ``LPIPS(weights=FILE)`` takes a file of
            timm or, where timm converts it, of the authors (DINO, DINOv2, DINOv3, CLIP), or ``"random"``; without it,
            ``timm/NAME.safetensors`` or ``.pth`` is looked for in the folder ``$LPIPS_LIGHTNING_WEIGHTS``.
        norm: Apply the last normalization of a transformer to every layer, as DINO's ``get_intermediate_layers`` does.
        mean: Input mean per channel, for images in [0, 1]; None for that of the weights, or 0.5 with ``in_chans``.
        std: Input standard deviation per channel, for images in [0, 1]; None as for `mean`.
        smallest_side: Minimum image side in pixels; None for the patch, or determines it.
        tokens: How the model makes tokens; None to ask the model.
        model_options: Passed on to ``timm.create_model``, for example ``img_size=512``; or ``in_chans=4``, for which
            weights of RGB images are repeated as by ``first_conv="repeat"`` of `from_module`.

    Returns:
        A backbone for the `net_type` argument. It has no official calibration: pass ``calibration=`` or
        ``calibrated=False``.

    Raises:
        ModuleNotFoundError: If timm is not installed.
        ValueError: If the model or a layer does not exist, or has no features ``(N, C, h, w)``.

    Example:
        How does a blurred image compare, by AlexNet and by DINO? Files of the weights take the place of ``"random"``.

        >>> from lpips_lightning import LPIPS
        >>> _ = torch.manual_seed(0)
        >>> dino = from_timm("vit_tiny_patch16_224", [2, 5, 8, 11])
        >>> nets = [LPIPS("squeeze", weights="random"), LPIPS(dino, weights="random", calibrated=False)]
        >>> image = torch.rand(1, 3, 96, 80)
        >>> blurred = nn.functional.avg_pool2d(image, 3, 1, 1)
        >>> [net(image, blurred, data_range=(0, 1)).shape for net in nets]
        [torch.Size([1]), torch.Size([1])]
        >>> [*nets[1](image, blurred, data_range=(0, 1), per_layer=True)]
        ['blocks.2', 'blocks.5', 'blocks.8', 'blocks.11']
    """
    _timm()
    build = _TimmBuilder(name, tuple(sorted(model_options.items())))
    model = build.empty()
    nodes, indices = _layers(model, name, feature_layers)
    usual, channels = model.pretrained_cfg, model_options.get("in_chans", 3)
    scaling = channel_scaling(mean, std, channels, True, (usual["mean"], usual["std"]) if channels == 3 else None)
    repeated = "" if channels == 3 else usual["first_conv"]
    options = (nodes, build, None, scaling)
    if tokens is None and _gives_maps(model):
        if norm:
            raise ValueError(f"norm: expected False for {name!r}, which has no tokens, got True")
        found = measured_backbone(name, f"timm/{name}", *options, smallest_side, True, repeated)
    else:
        if norm and indices is None:
            raise ValueError("norm: expected numbers of blocks as feature layers, got names of submodules and True")
        tokens = tokens or tokens_of(model)
        maps = replace(build, nodes=tuple(nodes.items()), indices=indices, tokens=tokens, norm=norm)
        side = max(tokens.sides)
        options = (nodes, maps, None, scaling)
        found = measured_backbone(name, f"timm/{name}", *options, smallest_side or 4 * side, True, repeated)
        said = f"{tokens}, norm" if norm else str(tokens)
        found = replace(found, smallest_side=smallest_side or side, description=said)
    return replace(found, convert=build.convert, default_weights=build.pretrained if pretrained else None)


@dataclass(frozen=True)
class _TimmBuilder:
    """Builds a model of timm; plain values alone, so that a backbone pickles in a few bytes."""

    name: str
    options: tuple[tuple[str, Any], ...]
    nodes: tuple[tuple[str, str], ...] = ()
    indices: tuple[int, ...] | None = None
    tokens: Tokens | None = None
    norm: bool = False

    def __call__(self) -> nn.Module:
        """The model with its weights on the default device, as `TokenMaps` if it gives tokens."""
        model = self._create(num_classes=0)
        kept = model.state_dict().keys()
        computed = [name for name, buffer in model.named_buffers() if buffer.is_meta and name not in kept]
        values = _buffers(replace(self, nodes=(), indices=None, tokens=None, norm=False)) if computed else {}
        for name in computed:
            parent, _, own = name.rpartition(".")
            model.get_submodule(parent)._buffers[own] = values[name].clone()
        if self.tokens is None:
            return model
        return TokenMaps(model, dict(self.nodes), self.tokens, self.indices, self.norm)

    def empty(self) -> Any:
        """The model of timm itself, without a classifier and without values."""
        with torch.device("meta"):
            return self._create(num_classes=0)

    def with_values(self) -> Any:
        """The model of timm itself, without a classifier, as timm initializes it."""
        with torch.device("cpu"):
            return self._create(num_classes=0)

    def pretrained(self) -> Mapping[str, Tensor]:
        """The weights that timm downloads; a WeightsError if it cannot."""
        try:
            with torch.device("cpu"):
                model = self._create(pretrained=True)  # with its classifier: only then timm refuses missing tensors
        except Exception as error:  # of networks, hubs and files
            raise WeightsError(
                f"{self.name}: expected weights from timm, got {error!r:.300}; download them elsewhere and pass"
                " from_timm(..., pretrained=False) and weights=FILE"
            ) from error
        return self._without_classifier(model.state_dict(), model)

    def convert(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Tensors by the names of timm, of a file of timm or of the authors, by timm's own function."""
        model = self.empty()
        rename = getattr(importlib.import_module(type(model).__module__), "checkpoint_filter_fn", None)
        given = _without_prefix(tensors)
        return self._without_classifier(given if rename is None else rename(given, model), model)

    def _without_classifier(self, tensors: Mapping[str, Tensor], model: Any) -> dict[str, Tensor]:
        heads = model.pretrained_cfg.get("classifier") or ()
        heads = (heads,) if isinstance(heads, str) else heads
        return {name: tensor for name, tensor in tensors.items() if not name.startswith(tuple(f"{h}." for h in heads))}

    def _create(self, **options: Any) -> Any:
        """A model that interpolates its position embeddings, where timm can; the global generator is not used."""
        _check_known(self.name)
        options = {"dynamic_img_size": True, **options, **dict(self.options)}
        try:
            return _created(self.name, options)
        except RuntimeError as error:
            if "meta tensors" not in str(error):
                raise
        with torch.device("cpu"):  # older timm computes some settings with tensors
            return _created(self.name, options)


def _created(name: str, options: dict[str, Any]) -> Any:
    create = _timm().create_model
    with torch.random.fork_rng(devices=[]):
        try:
            return create(name, **options)
        except TypeError as error:
            if "dynamic_img_size" not in str(error):
                raise
        except RuntimeError as error:
            if "Invalid pretrained tag" not in str(error):
                raise
            known = _timm().list_pretrained(f"{name.partition('.')[0]}.*")
            raise ValueError(
                f"name: expected a tag of weights that timm knows, such as in {known}, got {name!r}"
            ) from error
        return create(name, **{key: value for key, value in options.items() if key != "dynamic_img_size"})


@lru_cache(maxsize=2)
def _buffers(build: _TimmBuilder) -> dict[str, Tensor]:
    """Buffers of a model, such as tables of positions, that no file holds and timm computes while it builds."""
    return dict(build.with_values().named_buffers())


_PREFIX = re.compile(r"((?:module|teacher|student|backbone|encoder|model)\.)+(?=patch_embed\.proj\.weight$)")


def _without_prefix(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by their names in the model, of a file of a training that wrapped it; of DINO's two models the teacher.

    What lies beside the model, such as the head of the training, is left out.
    """
    prefixes = sorted({found.group() for found in map(_PREFIX.match, tensors) if found})
    prefix = next((one for one in prefixes if "teacher" in one), prefixes[0] if prefixes else "")
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _layers(
    model: Any, name: str, feature_layers: Sequence[int | str] | Mapping[str, int | str]
) -> tuple[dict[str, str], tuple[int, ...] | None]:
    """Submodule by layer name, and their indices as timm counts; None for submodules that it does not count."""
    if isinstance(feature_layers, str) or not isinstance(feature_layers, Sequence | Mapping) or not feature_layers:
        raise ValueError(
            f"feature_layers: expected numbers or names of layers of {name!r} in a list, got {feature_layers!r}"
        )
    info = getattr(model, "feature_info", [])
    counted = [entry["module"] for entry in getattr(info, "info", info)]
    named = isinstance(feature_layers, Mapping)
    nodes: dict[str, str] = {}
    for layer in feature_layers:
        node = _node(feature_layers[layer] if named else layer, counted, name)  # type: ignore[index]
        nodes[str(layer) if named else node] = node
    if len(nodes) != len(feature_layers) or len(set(nodes.values())) != len(nodes):
        raise ValueError(f"feature_layers: expected every layer once, got {feature_layers!r}")
    if not set(nodes.values()) <= set(counted) or not hasattr(model, "forward_intermediates"):
        return nodes, None
    indices = tuple(counted.index(node) for node in nodes.values())
    if list(indices) != sorted(indices):
        raise ValueError(f"feature_layers: expected layers in their order in the model, got {feature_layers!r}")
    return nodes, indices


def _node(layer: int | str, counted: Sequence[str], name: str) -> str:
    """Name of the submodule of a layer."""
    if isinstance(layer, str):
        return layer
    if type(layer) is not int or not -len(counted) <= layer < len(counted):
        raise ValueError(
            f"feature_layers: expected names, or numbers from 0 to {len(counted) - 1} for {name!r}, got {layer!r}"
        )
    return counted[layer]


def _check_known(name: str) -> None:
    timm = _timm()
    if ":" in name or timm.is_model(name):  # of a hub or a folder
        return
    near = get_close_matches(name.partition(".")[0], timm.list_models(), n=3, cutoff=0.6)
    hint = f"did you mean one of {near}?" if near else "timm.list_pretrained('*dino*') lists those of DINO"
    raise ValueError(f"name: expected a model of timm, got {name!r}; {hint}")


def _gives_maps(model: Any) -> bool:
    """Whether layers are ``(N, C, h, w)``."""
    return not hasattr(model, "num_prefix_tokens") and getattr(model, "output_fmt", "NCHW") == "NCHW"


def _timm() -> ModuleType:
    try:
        return importlib.import_module("timm")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'from_timm: expected the package timm, which is not installed: pip install "lpips_lightning[timm]"',
            name="timm",
        ) from error
