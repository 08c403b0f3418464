"""Find, validate and load the weights of a backbone and its calibration."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from lpips_lightning.backbones.caffe_alexnet import NET_TYPE, CaffeAlexNet, caffe_backbone
from lpips_lightning.backbones.caffe_file import caffe_backbone_of_file, has_calibration, is_caffe_file
from lpips_lightning.backbones.definition import BACKBONES, Backbone, get_backbone
from lpips_lightning.backbones.extractor import FeatureExtractor, random_backbone
from lpips_lightning.backbones.fetch import find_backbone
from lpips_lightning.backbones.first_convolution import repeat_filters
from lpips_lightning.backbones.frozen import FrozenNetwork, Specification, get_or_create, without_modes
from lpips_lightning.backbones.state_dict import check_tensors
from lpips_lightning.distances.feature_distance import LPIPS_DISTANCE, FeatureDistance
from lpips_lightning.io.tensor_files import read_record
from lpips_lightning.weights import CALIBRATIONS, WeightsError, load, read_tensors, tensors_sha256
from lpips_lightning.weights.lookup import backbone_file, file_sha256, is_torchvision_file, with_promise

WeightsSource: TypeAlias = str | os.PathLike[str] | Mapping[str, Tensor] | None
"""Source of weights: None (look up), a path, tensors by name, or ``"random"`` (backbones only)."""


_PREFIX = "calibration."  # of calibration tensors in a file that holds a backbone too
_NO_FILES = ("tensors", "random", "packaged", "custom")  # origins of weights
_log = logging.getLogger("lpips_lightning")


def version_name(version: str | float) -> str:
    """Name of a version, which a YAML file may hold as a number.

    Args:
        version: ``"0.1"``, or the number 0.1.

    Example:
        >>> version_name(0.1), version_name("0.0")
        ('0.1', '0.0')
    """
    return str(version) if isinstance(version, float) else version


def describe_backbone(
    net_type: str | Backbone, weights: WeightsSource, calibrated: bool, calibration: WeightsSource, default: str
) -> tuple[Backbone, bool]:
    """The backbone of a name, or the one that the file of its weights describes.

    A file of `lpips_lightning.backbones.caffe_file` says its architecture, and has no official calibration: without one
    of the user's, the network is the baseline.

    Args:
        net_type: Name of a backbone, or a custom backbone.
        weights: Source of the backbone weights.
        calibrated: False for the baseline.
        calibration: Source of the calibration.
        default: The name that stands for none given, next to which the file decides.

    Returns:
        The backbone, and whether the network is calibrated.

    Raises:
        ValueError: If the name is unknown, or its architecture is not determined.
        WeightsError: If the file describes another backbone than the name.
    """
    if isinstance(net_type, Backbone) or not (net_type == NET_TYPE or is_caffe_file(weights)):
        return get_backbone(net_type), calibrated
    if is_caffe_file(weights):
        path = _path(weights, "weights")  # type: ignore[arg-type]
        if net_type not in (default, NET_TYPE):
            raise WeightsError(
                f"{path}: expected weights of {net_type!r}, got those of {NET_TYPE!r}; leave the net out"
            )
        return caffe_backbone_of_file(path), calibrated and (calibration is not None or has_calibration(path))
    if not isinstance(weights, str) or weights != "random":
        raise ValueError(
            f"weights: expected a file for {NET_TYPE!r}, of which none ships, or 'random', got {weights!r:.80};"
            " lpips-lightning weights convert makes one of a published file"
        )
    with torch.device("meta"):  # draws no random numbers
        settings = CaffeAlexNet(colors="rgb").settings
    return caffe_backbone(settings), calibrated and calibration is not None


def resolve_network(
    net_type: str | Backbone,
    version: str,
    calibrated: bool,
    weights: WeightsSource,
    calibration: WeightsSource,
    seed: int,
    distance: FeatureDistance = LPIPS_DISTANCE,
) -> tuple[Specification, FrozenNetwork]:
    """Find and validate all weights of a network, and build it on the CPU in float32.

    Args:
        net_type: Name of a backbone, or a custom backbone.
        version: ``"0.0"`` or ``"0.1"``.
        calibrated: False for the baseline.
        weights: Source of the backbone weights.
        calibration: Source of the calibration; None for the official one.
        seed: Seed for ``weights="random"``.
        distance: Distance on the features.

    Returns:
        The specification of the network and the network.

    Raises:
        ValueError: If an argument has an unknown value.
        WeightsError: If weights are missing, damaged or of another architecture.
    """
    record = get_backbone(net_type)
    in_table = BACKBONES.get(record.name) is record
    _check_version(record, version)
    if calibration is not None and not calibrated:
        raise ValueError("calibration: expected None with calibrated=False, got a calibration that would not be used")
    with without_modes():
        tensors, origin = _backbone_tensors(record, weights, seed)
        source = "weights" if origin in _NO_FILES else origin
        tensors, own_calibration = _split(tensors, source)
        calibration = calibration if calibration is not None else own_calibration
        if record.convert is not None and origin not in ("random", "custom"):
            tensors = _converted(record.convert, tensors, record.name, source)
        own_weights = distance.packaged_weights(list(record.feature_layers), record.channels)
        if calibrated and calibration is None and own_weights is None and not in_table:
            raise ValueError(
                f"calibration: expected a path or tensors for net_type {record.name!r}, which has no official "
                "calibration; or pass calibrated=False"
            )
        repeated = repeat_filters(record, tensors)
        try:
            extractor = FeatureExtractor(record, {**tensors, **repeated}, source)
        except WeightsError as error:
            raise with_promise(error, origin, backbone_file(record.builder)) from error.__cause__
        source = "calibration" if calibration is not own_calibration or source == "weights" else source
        values = own_weights
        if values is None and calibrated:
            values = calibration_tensors(record, version, calibration, source)
        state = extractor.graph.state_dict()
        backbone_sha256 = tensors_sha256(state)
        given_sha256 = tensors_sha256({**state, **{name: tensors[name] for name in repeated}})
        named = _backbone_name(record, given_sha256, origin, looked_up=weights is None)
        calibration_sha256 = tensors_sha256(values) if values is not None else ""
        found = Specification(
            record.name,
            version,
            calibrated,
            f"{named} repeated to {record.input_channels} channels" if repeated else named,
            backbone_sha256,
            calibration_sha256,
            _calibration_name(record, version, calibration_sha256, distance) if calibrated else "",
            "" if in_table else _layout(record, extractor),
            distance.name,
        )
        key = (found, torch.device("cpu"), torch.float32)
        return found, get_or_create(key, lambda: FrozenNetwork(record, extractor, values, version, distance))


def _check_version(record: Backbone, version: str) -> None:
    in_table = BACKBONES.get(record.name) is record
    versions = [known for net, known in CALIBRATIONS if net == record.name] if in_table else ["0.1"]
    if version not in versions:
        known = ", ".join(map(repr, versions))
        raise ValueError(f"version: expected one of {known} for net_type {record.name!r}, got {version!r}")


def _backbone_tensors(record: Backbone, weights: WeightsSource, seed: int) -> tuple[Mapping[str, Tensor], str]:
    """Unchecked tensors and their origin: a path, or one of `_NO_FILES`."""
    if isinstance(weights, Mapping):
        return weights, "tensors"
    if weights == "random":
        return random_backbone(record, seed), "random"
    if weights is None and record.default_weights is not None:
        return record.default_weights(), "packaged" if BACKBONES.get(record.name) is record else "custom"
    found = find_backbone(record.builder, None if weights is None else _path(weights, "weights"))
    return found.tensors, found.origin


def _converted(
    convert: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]],
    tensors: Mapping[str, Tensor],
    name: str,
    source: str,
) -> dict[str, Tensor]:
    try:
        return dict(convert(tensors))
    except Exception as error:  # of other packages, for tensors of another model
        raise WeightsError(f"{source}: expected the tensors of {name}; converting them failed: {error!r}") from error


def _path(source: str | os.PathLike[str], name: str) -> Path:
    if not isinstance(source, str | os.PathLike) or not str(source):
        way_out = "; of a module, give .state_dict()" if isinstance(source, nn.Module) else ""
        raise TypeError(f"{name}: expected None, a path or tensors by name, got {source!r:.80}{way_out}")
    return Path(source).expanduser()


def _split(tensors: Mapping[str, Tensor], source: str) -> tuple[dict[str, Tensor], dict[str, Tensor] | None]:
    """Split a file that holds backbone and calibration, as distillation writes it."""
    check_tensors(tensors, source)
    own = {name.removeprefix(_PREFIX): tensor for name, tensor in tensors.items() if name.startswith(_PREFIX)}
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(_PREFIX)}, own or None


def _backbone_name(record: Backbone, backbone_sha256: str, origin: str, looked_up: bool) -> str:
    """Readable name of the weights; an error if their hash contradicts the name of their file."""
    if origin == "packaged":
        return record.name
    if origin == "random":
        return origin
    official = backbone_file(record.builder)
    if official is None:
        return "custom"
    if backbone_sha256 == official.convolutions_sha256 or is_torchvision_file(origin, official):
        return official.name
    if official.url and origin not in _NO_FILES and Path(origin).name == official.file:
        raise WeightsError(
            f"{origin}: expected a sha256 that begins with {official.sha256_prefix}, as {official.title}"
            f" has, got {file_sha256(Path(origin))}; delete the file, or give other weights another name"
        )
    if not looked_up:
        return "custom"
    if official.convolutions_sha256 is not None:
        raise WeightsError(
            f"{origin}: expected {official.title}, tensors of sha256 {official.convolutions_sha256}, got"
            f" {backbone_sha256}; to use other weights, pass weights=PATH"
        )
    _log.warning("%s: whether these are %s is not known: no sha256 is recorded", origin, official.title)
    return "unverified"


def _calibration_name(record: Backbone, version: str, calibration_sha256: str, distance: FeatureDistance) -> str:
    if not distance.uses_calibration:  # it has weights of its own
        return "official"
    official = CALIBRATIONS.get((record.name, version)) if BACKBONES.get(record.name) is record else None
    return "official" if official is not None and official.calibration_sha256 == calibration_sha256 else "custom"


def _layout(record: Backbone, extractor: FeatureExtractor) -> str:
    """Hash of what the weights of a custom backbone do not determine."""
    structure = f"{type(extractor.graph)!r} {extractor.graph!r} {getattr(extractor.graph, 'code', '')}"
    said: tuple[object, ...] = (sorted(record.feature_layers.items()), record.shift, record.scale, structure)
    said += () if record.has_range else ("no range",)
    said += (*_settings(extractor.graph), record.description) if _is_opaque(extractor.graph) else ()
    return hashlib.sha256(repr(said).encode()).hexdigest()


def _is_opaque(graph: nn.Module) -> bool:
    """Whether a backbone was not traced, or holds attention, which is never traced and whose heads no `repr` shows."""
    return not isinstance(graph, GraphModule) or any(
        isinstance(part, nn.MultiheadAttention) for part in graph.modules()
    )


def _settings(graph: nn.Module) -> tuple[object, ...]:
    """Plain attributes of all parts of a module, and the sha256 of buffers that its state dict lacks."""
    plain = [
        (name, type(part).__module__, type(part).__qualname__, attribute, value)
        for name, part in graph.named_modules()
        for attribute, value in sorted(vars(part).items())
        if attribute not in _MODULE_ATTRIBUTES and _is_plain(value)
    ]
    kept = graph.state_dict().keys()
    unsaved = {name.removeprefix("model."): buffer for name, buffer in graph.named_buffers()}
    unsaved = {name: buffer for name, buffer in unsaved.items() if name not in kept and not buffer.is_meta}
    return plain, tensors_sha256(unsaved)


_MODULE_ATTRIBUTES = frozenset(vars(nn.Module()))  # PyTorch's own, such as `training`


def _is_plain(value: object) -> bool:
    """Whether a value is plain, of plain values alone, and so has one `repr`."""
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str | torch.dtype | torch.Size)


def calibration_tensors(
    record: Backbone, version: str, calibration: WeightsSource, source: str = "calibration"
) -> dict[str, Tensor]:
    """Load and validate a calibration, on the CPU.

    Args:
        record: Definition of the backbone.
        version: ``"0.1"`` or ``"0.0"``.
        calibration: Source of the calibration; None for the official one.
        source: Name for error messages if the calibration is given as tensors.

    Returns:
        Shape ``(C,)`` by layer name.

    Raises:
        WeightsError: If weights are missing, negative, not finite, or of other layers or shapes.
    """
    if calibration is None:
        tensors: Mapping[str, Tensor] = load(CALIBRATIONS[record.name, version])
        name = "the official calibration"
    elif isinstance(calibration, Mapping):
        tensors, name = calibration, source
    else:
        path = _path(calibration, "calibration")
        tensors, name = read_tensors(path), str(path)
        _check_made_for(record, version, read_record(path) if path.suffix == ".safetensors" else {}, name)
    tensors = _split(tensors, name)[1] or tensors  # the file may hold a backbone too
    official_names = [f"lin{index}.model.1.weight" for index in range(len(record.feature_layers))]
    if set(tensors) == set(official_names):
        tensors = {
            layer: tensors[old].flatten() for layer, old in zip(record.feature_layers, official_names, strict=True)
        }
    if set(tensors) != set(record.feature_layers):
        raise WeightsError(
            f"{name}: expected weights of the layers {list(record.feature_layers)}, got {sorted(tensors)}"
        )
    widths = zip(record.feature_layers, record.channels, strict=True)
    checked = {layer: _weight(tensors[layer], channels, f"{name}: {layer}") for layer, channels in widths}
    if not any(bool(weight.any()) for weight in checked.values()):
        raise WeightsError(f"{name}: expected weights of which some are above 0, got zeros alone")
    return checked


def _check_made_for(record: Backbone, version: str, stored: Mapping[str, Any], name: str) -> None:
    """Raise a WeightsError if the record of a calibration file names another version or network."""
    if (made_for := stored.get("version", version)) != version:
        raise WeightsError(f"{name}: expected a calibration of version {version!r}, got one of {made_for!r}")
    net = stored.get("net_type")
    if net != record.name and net in BACKBONES and BACKBONES.get(record.name) is record:
        raise WeightsError(
            f"{name}: expected a calibration of {record.name!r}, got one of {net!r}; choose that network"
        )


def _weight(given: Tensor, channels: int, name: str) -> Tensor:
    """A validated copy of one layer's calibration, on the CPU."""
    if given.shape != (channels,):
        raise WeightsError(f"{name}: expected shape ({channels},), got {tuple(given.shape)}")
    if not given.is_floating_point():
        raise WeightsError(f"{name}: expected finite weights >= 0, got {given.dtype}")
    weight = given.detach().to("cpu", torch.float32, copy=True)
    if not bool(((weight >= 0) & weight.isfinite()).all()):
        raise WeightsError(f"{name}: expected finite weights >= 0, got a smallest of {float(weight.min()):g}")
    return weight
