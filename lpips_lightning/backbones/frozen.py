"""The frozen network: one shared copy per process, device and dtype, identified by a small specification.

The network is never registered in a user's module. So `parameters()`, `state_dict()`, optimizers, EMA, DDP, `.half()`,
`.train()` and summaries do not see it, copies and pickles of its users are small, and it is freed with its last user.
"""

from __future__ import annotations

import contextlib
import copy
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

from lpips_lightning.backbones.definition import Backbone
from lpips_lightning.backbones.extractor import FeatureExtractor
from lpips_lightning.distances.feature_distance import LPIPS_DISTANCE, FeatureDistance
from lpips_lightning.kernels.conv2d import replace_convolutions
from lpips_lightning.tracing import untraced

_Key: TypeAlias = tuple["Specification", torch.device, torch.dtype]

_networks: weakref.WeakValueDictionary[_Key, FrozenNetwork] = weakref.WeakValueDictionary()
_lock = threading.RLock()


@dataclass(frozen=True)
class Specification:
    """Identifies a network by content: equal specifications give equal distances.

    Attributes:
        net_type: Name of the backbone.
        version: ``"0.1"``, or ``"0.0"``, which does not scale its input.
        calibrated: False for the baseline.
        backbone: Readable name of the backbone weights: ``"IMAGENET1K_V1"`` (verified by hash), the name of a net
            that ships, ``"random"``, ``"custom"`` (passed by the user), or ``"unverified"`` (found by name, without a
            recorded sha256).
        backbone_sha256: `tensors_sha256` of the backbone weights.
        calibration_sha256: `tensors_sha256` of the calibration; empty for the baseline.
        calibration: Readable name of the calibration: ``"official"``, ``"custom"``, or empty for the baseline.
        layout: For custom backbones: sha256 of feature layers, input scaling and structure.
        distance: Name of the distance on the features; of a sum, with the weights.
    """

    net_type: str
    version: str
    calibrated: bool
    backbone: str
    backbone_sha256: str
    calibration_sha256: str
    calibration: str
    layout: str = ""
    distance: str = "lpips"


class FrozenNetwork(nn.Module):
    """Frozen backbone, input scaling and calibration on one device in one dtype, in evaluation mode.

    Attributes:
        extractor: The backbone.
        record: Definition of the backbone.
        shift: Input shift of every channel, ``(3,)`` for RGB images, or None for v0.0.
        scale: Input scale of every channel, or None for v0.0.
        distance: Distance on the features.
        on_cpu: Whether it is on the CPU, or a meta copy of a network on the CPU.
        compiled_name: Its name in `lpips_lightning.backbones.compiled`; empty if no compiled code uses it.
    """

    shift: Tensor | None
    scale: Tensor | None

    def __init__(
        self,
        record: Backbone,
        extractor: FeatureExtractor,
        calibration: Mapping[str, Tensor] | None,
        version: str,
        distance: FeatureDistance = LPIPS_DISTANCE,
    ) -> None:
        super().__init__()
        self.distance = distance
        self.record = record
        self.extractor = extractor
        for name, values in (("shift", record.shift), ("scale", record.scale)):
            scaled = torch.tensor(values, device="cpu", dtype=torch.float32) if version != "0.0" else None
            self.register_buffer(name, scaled)
        self.layers = tuple(record.feature_layers)
        self.calibrated = calibration is not None
        for index, layer in enumerate(self.layers if self.calibrated else ()):  # buffer names must not contain dots
            self.register_buffer(f"calibration_{index}", (calibration or {})[layer])
        replace_convolutions(extractor)
        self.on_cpu = True
        self.compiled_name = ""
        self.eval().requires_grad_(False)

    @property
    def calibration(self) -> dict[str, Tensor] | None:
        """Weights ``(C,)`` by layer name (of DISTS ``(2, C)``: alpha and beta), or None for the baseline."""
        if not self.calibrated:
            return None
        return {layer: getattr(self, f"calibration_{index}") for index, layer in enumerate(self.layers)}

    def moved(self, device: torch.device, dtype: torch.dtype) -> FrozenNetwork:
        """A copy on another device; the backbone in `dtype`, everything after it in float32 or better."""
        clone = copy.deepcopy(self).to(device).eval()  # deepcopy puts traced graphs into training mode
        clone.on_cpu = device.type == "cpu"
        clone.extractor.to(dtype).to(memory_format=torch.channels_last)
        return clone


def get_network(
    base: FrozenNetwork, specification: Specification, device: torch.device, dtype: torch.dtype
) -> FrozenNetwork:
    """The shared copy of a network on a device in a dtype.

    Args:
        base: The network on the CPU in float32.
        specification: Identifies the network.
        device: Target device.
        dtype: Target dtype of the backbone.

    Returns:
        The shared copy; it is freed with its last user.
    """
    with without_modes():
        return get_or_create((specification, device, dtype), lambda: base.moved(device, dtype))


@contextlib.contextmanager
def without_modes() -> Iterator[None]:
    """A context in which new tensors are ordinary: without torch.func, fake tensors, inference mode and gradients."""
    with (
        untraced(),
        temporarily_clear_interpreter_stack(),
        torch.inference_mode(False),
        torch.no_grad(),
    ):
        yield


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """A context that disables autocast.

    Args:
        device: Device of the tensors.
    """
    if device.type == "meta" or not torch.is_autocast_enabled(device.type):
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)


def get_or_create(key: _Key, make: Callable[[], FrozenNetwork]) -> FrozenNetwork:
    """The shared network with a key; `make` creates it if there is none."""
    with _lock:
        network = _networks.get(key)
        if network is None:
            network = _networks[key] = make()
        return network
