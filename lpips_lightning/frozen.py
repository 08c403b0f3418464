"""The frozen network as a shared resource: said by a small specification, kept in one copy a process, device and dtype.

Nothing here is ever registered in a user's module. So `parameters()`, `state_dict()`, optimizers, EMA, DDP, `.half()`,
`.train()` and summaries do not see it, copies and pickles of its users are small, and it is freed with its last user.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import logging
import os
import threading
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor, nn

from lpips_lightning.backbones import BACKBONES, Backbone, FeatureExtractor, backbone, random_trunk
from lpips_lightning.convolutions import hasten
from lpips_lightning.tensor_files import read_record
from lpips_lightning.trunk_tensors import check_tensors
from lpips_lightning.weights import CALIBRATIONS, WeightsError, load, read_tensors, tensors_sha256
from lpips_lightning.weights.lookup import file_sha256, find_trunk, is_torchvision_file, trunk_file, with_promise

__all__ = [
    "FrozenNetwork",
    "Specification",
    "WeightsSource",
    "acquire",
    "calibration_tensors",
    "specify",
    "without_autocast",
]

WeightsSource: TypeAlias = str | os.PathLike[str] | Mapping[str, Tensor] | None
"""Where weights come from: looked up (None), a path, tensors by name, or the word ``"random"`` (trunks only)."""

_Key: TypeAlias = tuple["Specification", torch.device, torch.dtype]

_networks: weakref.WeakValueDictionary[_Key, FrozenNetwork] = weakref.WeakValueDictionary()
_lock = threading.RLock()
_OWN = "calibration."
_NO_FILES = ("tensors", "random", "embedded", "custom")  # origins of weights
_log = logging.getLogger("lpips_lightning")


@dataclass(frozen=True)
class Specification:
    """Which network is meant, by content: equal specifications give equal numbers.

    Attributes:
        net_type: Name in the table of backbones.
        version: ``"0.1"``, or ``"0.0"``, which does not scale its input.
        calibrated: False for the baseline.
        trunk: The trunk's weights for people: ``"IMAGENET1K_V1"`` when their content is known to be that,
            ``"embedded"`` for those that ship, ``"random"``,
            ``"custom"`` when they were handed over, ``"unverified"`` when they were looked up and their sha256 is not
            on record.
        trunk_sha256: `tensors_sha256` of the trunk's weights.
        calibration_sha256: The same of the calibration's; empty for the baseline.
        layout: Of a trunk that is not in the table: sha256 of its taps, input scaling and structure.
    """

    net_type: str
    version: str
    calibrated: bool
    trunk: str
    trunk_sha256: str
    calibration_sha256: str
    layout: str = ""


class FrozenNetwork(nn.Module):
    """Trunk, input scaling and calibration on one device in one dtype, in evaluation mode, without own gradients.

    Attributes:
        extractor: The trunk.
        record: Its row in the table of backbones.
        shift: Shape ``(3,)``, or None for v0.0.
        scale: Shape ``(3,)``, or None for v0.0.
        on_processor: Whether it is on the CPU, or a copy without data of one that is.
    """

    shift: Tensor | None
    scale: Tensor | None

    def __init__(
        self, record: Backbone, extractor: FeatureExtractor, calibration: Mapping[str, Tensor] | None, version: str
    ) -> None:
        super().__init__()
        self.record = record
        self.extractor = extractor
        for name, values in (("shift", record.shift), ("scale", record.scale)):
            scaled = torch.tensor(values, device="cpu", dtype=torch.float32) if version != "0.0" else None
            self.register_buffer(name, scaled)
        self.layers = tuple(record.taps)
        self.calibrated = calibration is not None
        for index, layer in enumerate(self.layers if self.calibrated else ()):  # a layer's name may have dots
            self.register_buffer(f"calibration_{index}", (calibration or {})[layer])
        hasten(extractor)
        self.on_processor = True
        self.eval().requires_grad_(False)

    @property
    def calibration(self) -> dict[str, Tensor] | None:
        """Weights ``(C,)`` by layer name, or None for the baseline."""
        if not self.calibrated:
            return None
        return {layer: getattr(self, f"calibration_{index}") for index, layer in enumerate(self.layers)}

    def moved(self, device: torch.device, dtype: torch.dtype) -> FrozenNetwork:
        """A copy elsewhere; the trunk in `dtype`, everything after it in float32 or better."""
        twin = copy.deepcopy(self).to(device).eval()  # the copy of a traced graph is in training mode
        twin.on_processor = device.type == "cpu"
        twin.extractor.to(dtype).to(memory_format=torch.channels_last)
        return twin


def specify(
    net_type: str | Backbone,
    version: str,
    calibrated: bool,
    weights: WeightsSource,
    calibration: WeightsSource,
    seed: int,
) -> tuple[Specification, FrozenNetwork]:
    """Find and check every number of a network, and make it on the CPU in float32.

    Args:
        net_type: Name in the table of backbones, or a trunk of the user's own.
        version: ``"0.0"`` or ``"0.1"``.
        calibrated: False for the baseline.
        weights: Of the trunk.
        calibration: None for the official one.
        seed: For ``weights="random"``.

    Returns:
        What was found, and the network.

    Raises:
        ValueError: If an argument is none of the known ones.
        WeightsError: If weights are missing, damaged or of another architecture.
    """
    record = backbone(net_type)
    in_table = BACKBONES.get(record.name) is record
    versions = [known for net, known in CALIBRATIONS if net == record.name] if in_table else ["0.1"]
    if version not in versions:
        known = ", ".join(map(repr, versions))
        raise ValueError(f"version: expected one of {known} for net_type {record.name!r}, got {version!r}")
    if calibration is not None and not calibrated:
        raise ValueError("calibration: expected None with calibrated=False, got a calibration that would not be used")
    with torch.inference_mode(False), torch.no_grad():
        tensors, origin = _trunk_tensors(record, weights, seed)
        source = "weights" if origin in _NO_FILES else origin
        tensors, own_calibration = _split(tensors, source)
        calibration = calibration if calibration is not None else own_calibration
        if calibrated and calibration is None and not in_table:
            raise ValueError(
                f"calibration: expected a path or tensors for net_type {record.name!r}, which has no official "
                "calibration; or say calibrated=False"
            )
        try:
            extractor = FeatureExtractor(record, tensors, source)
        except WeightsError as error:
            raise with_promise(error, origin, trunk_file(record.builder)) from error
        source = "calibration" if calibration is not own_calibration or source == "weights" else source
        values = calibration_tensors(record, version, calibration, source) if calibrated else None
        trunk_sha256 = tensors_sha256(extractor.graph.state_dict())
        found = Specification(
            record.name,
            version,
            calibrated,
            _trunk_name(record, trunk_sha256, origin, looked_up=weights is None),
            trunk_sha256,
            tensors_sha256(values) if values is not None else "",
            "" if in_table else _layout(record, extractor),
        )
        key = (found, torch.device("cpu"), torch.float32)
        return found, _shared(key, lambda: FrozenNetwork(record, extractor, values, version))


def acquire(
    base: FrozenNetwork, specification: Specification, device: torch.device, dtype: torch.dtype
) -> FrozenNetwork:
    """The process's one copy of a network on a device in a dtype.

    Args:
        base: The network on the CPU in float32.
        specification: What it is.
        device: Where it is wanted.
        dtype: Of the trunk.

    Returns:
        The shared copy; it lives as long as somebody holds it.
    """
    with torch.inference_mode(False), torch.no_grad():
        return _shared((specification, device, dtype), lambda: base.moved(device, dtype))


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """A context in which tensors keep the precision that they were brought to.

    Args:
        device: Of the tensors.
    """
    if device.type == "meta" or not torch.is_autocast_enabled(device.type):
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)


def _shared(key: _Key, make: Callable[[], FrozenNetwork]) -> FrozenNetwork:
    with _lock:
        network = _networks.get(key)
        if network is None:
            network = _networks[key] = make()
        return network


def _trunk_tensors(record: Backbone, weights: WeightsSource, seed: int) -> tuple[Mapping[str, Tensor], str]:
    """Unchecked tensors, and where they come from: a path, or one of `_NO_FILES`."""
    if isinstance(weights, Mapping):
        return weights, "tensors"
    if weights == "random":
        return random_trunk(record, seed), "random"
    if weights is None and record.own is not None:
        return record.own(), "embedded" if record is BACKBONES["embedded"] else "custom"
    found = find_trunk(record.builder, None if weights is None else _path(weights, "weights"))
    return found.tensors, found.origin


def _path(source: str | os.PathLike[str], name: str) -> Path:
    if not isinstance(source, str | os.PathLike) or not str(source):
        way_out = "; of a module, give .state_dict()" if isinstance(source, nn.Module) else ""
        raise TypeError(f"{name}: expected None, a path or tensors by name, got {source!r:.80}{way_out}")
    return Path(source).expanduser()


def _split(tensors: Mapping[str, Tensor], source: str) -> tuple[dict[str, Tensor], dict[str, Tensor] | None]:
    """Trunk and calibration of a file that holds both, as distillation writes it; the two belong together."""
    check_tensors(tensors, source)
    own = {name.removeprefix(_OWN): tensor for name, tensor in tensors.items() if name.startswith(_OWN)}
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(_OWN)}, own or None


def _trunk_name(record: Backbone, trunk_sha256: str, origin: str, looked_up: bool) -> str:
    """What to call the trunk; an error if it is not what its file's name or its finding promises."""
    if origin in ("random", "embedded"):
        return origin
    official = trunk_file(record.builder)
    if official is None:
        return "custom"
    if trunk_sha256 == official.convolutions_sha256 or is_torchvision_file(origin, official):
        return official.name
    if origin not in _NO_FILES and Path(origin).name == official.file:
        raise WeightsError(
            f"{origin}: expected a sha256 that begins with {official.sha256_prefix}, as torchvision's {official.name}"
            f" has, got {file_sha256(Path(origin))}; delete the file, or give other weights another name"
        )
    if not looked_up:
        return "custom"
    if official.convolutions_sha256 is not None:
        raise WeightsError(
            f"{origin}: expected torchvision's {official.name}, tensors of sha256 {official.convolutions_sha256}, got"
            f" {trunk_sha256}; to take other weights, say weights=PATH"
        )
    _log.warning("%s: whether these are torchvision's %s is not known: no sha256 is recorded", origin, official.name)
    return "unverified"


def _layout(record: Backbone, extractor: FeatureExtractor) -> str:
    """Of a trunk that is not in the table: what its weights do not say."""
    structure = f"{type(extractor.graph)!r} {extractor.graph!r} {getattr(extractor.graph, 'code', '')}"
    said = (sorted(record.taps.items()), record.shift, record.scale, structure)
    return hashlib.sha256(repr(said).encode()).hexdigest()


def calibration_tensors(
    record: Backbone, version: str, calibration: WeightsSource, source: str = "calibration"
) -> dict[str, Tensor]:
    """Checked weights of a calibration, on the CPU.

    Args:
        record: Of the trunk.
        version: ``"0.1"`` or ``"0.0"``.
        calibration: None for the official one.
        source: What to call it in errors if it is handed over as tensors.

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
        if path.suffix == ".safetensors" and (made_for := read_record(path).get("version", version)) != version:
            raise WeightsError(f"{name}: expected a calibration of version {version!r}, got one of {made_for!r}")
    tensors = _split(tensors, name)[1] or tensors  # of a file that holds a trunk too, the calibration alone
    official_names = [f"lin{index}.model.1.weight" for index in range(len(record.taps))]
    if set(tensors) == set(official_names):
        tensors = {layer: tensors[old].flatten() for layer, old in zip(record.taps, official_names, strict=True)}
    if set(tensors) != set(record.taps):
        raise WeightsError(f"{name}: expected weights of the layers {list(record.taps)}, got {sorted(tensors)}")
    widths = zip(record.taps, record.channels, strict=True)
    checked = {layer: _weight(tensors[layer], channels, f"{name}: {layer}") for layer, channels in widths}
    if not any(bool(weight.any()) for weight in checked.values()):
        raise WeightsError(f"{name}: expected weights of which some are above 0, got zeros alone")
    return checked


def _weight(given: Tensor, channels: int, name: str) -> Tensor:
    """A copy on the CPU of a layer's calibration, checked."""
    if given.shape != (channels,):
        raise WeightsError(f"{name}: expected shape ({channels},), got {tuple(given.shape)}")
    if not given.is_floating_point():
        raise WeightsError(f"{name}: expected finite weights >= 0, got {given.dtype}")
    weight = given.detach().to("cpu", torch.float32, copy=True)
    if not bool(((weight >= 0) & weight.isfinite()).all()):
        raise WeightsError(f"{name}: expected finite weights >= 0, got a smallest of {float(weight.min()):g}")
    return weight
