"""Base class of modules that use a shared frozen network without owning it."""

from __future__ import annotations

import re
import weakref
from collections.abc import Generator, Mapping
from typing import Any, Self

import torch
from torch import nn
from typing_extensions import override

from lpips_lightning.backbones.compiled import publish, published
from lpips_lightning.backbones.definition import Backbone
from lpips_lightning.backbones.frozen import FrozenNetwork, get_network, without_modes
from lpips_lightning.backbones.loading import WeightsSource, resolve_network, version_name
from lpips_lightning.distances.feature_distance import LPIPS_DISTANCE, FeatureDistance
from lpips_lightning.tracing import TraceableModule
from lpips_lightning.weights import WeightsError

# State dict keys of `lpips` 0.1.4 and torchmetrics: backbone slices, calibration (two names) and input scaling.
_LEGACY = re.compile(
    r"(net\.){0,2}(slice\d+|slices\.\d+)\.\d+\..+"
    r"|(net\.)?(lin\d+|lins\.\d+)\.model\.\d+\.weight"
    r"|(net\.)?scaling_layer\.(shift|scale)"
)


_NO_PARAMETERS = (
    "no parameters: the frozen network is not registered, and runs on the device of the images; write images.device "
    "for next(net.parameters()).device"
)


class DropsLegacyKeys(TraceableModule):
    """A module whose frozen network is not registered.

    The network of `lpips` or torchmetrics in a state dict is ignored, so that ``strict=True`` loads: those weights are
    frozen and not needed here. Every other unknown key is still an error.

    Without parameters of its own, ``next(module.parameters())`` is a `StopIteration` that says so.

    Example:
        >>> model = nn.ModuleDict({"loss": DropsLegacyKeys()})
        >>> model.load_state_dict({"loss.net.slice1.0.weight": 0, "loss.lin0.model.1.weight": 0}, strict=True)
        <All keys matched successfully>
    """

    @override
    def parameters(self, recurse: bool = True) -> Generator[nn.Parameter, None, str | None]:
        none = True
        for parameter in super().parameters(recurse):
            none = False
            yield parameter
        return _NO_PARAMETERS if none else None

    @override
    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        for key in list(state_dict):
            if key.startswith(prefix) and _LEGACY.fullmatch(key, len(prefix)):
                del state_dict[key]
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


_BASE = (torch.device("cpu"), torch.float32)

_users: dict[str, weakref.WeakSet[SharedNetworkModule]] = {}  # by the identity of their network


class SharedNetworkModule(DropsLegacyKeys):
    """A module that uses a shared frozen network, on any device and in any dtype.

    The network is found and validated on construction. Nothing is registered: `parameters()`, `state_dict()`, `.half()`
    and `.train()` do not see it. Deep copies share it. Pickles store the source of the weights, and the weights
    themselves only if they were passed as tensors.

    Args:
        record: Definition of the backbone.
        version: ``"0.1"`` or ``"0.0"``; or a number, as YAML reads it.
        calibrated: False for the baseline.
        weights: Source of the backbone weights.
        calibration: Source of the calibration; None for the official one.
        distance: Distance on the features.

    Raises:
        ValueError: If an argument has an unknown value.
        WeightsError: If weights are missing, damaged or of another architecture.
    """

    def __init__(
        self,
        record: Backbone,
        version: str | float,
        calibrated: bool,
        weights: WeightsSource,
        calibration: WeightsSource,
        distance: FeatureDistance = LPIPS_DISTANCE,
    ) -> None:
        super().__init__()
        self._distance = distance
        self._record = record
        self.version = version = version_name(version)
        self.calibrated = calibrated
        self._weights = weights
        self._calibration = calibration
        with without_modes():
            self._seed = int(torch.randint(2**62, (), device="cpu")) if weights == "random" else 0
        self._specification, base = resolve_network(
            record, version, calibrated, weights, calibration, self._seed, distance
        )
        # A plain dict, so that nothing is registered as a submodule.
        self._networks: dict[tuple[torch.device, torch.dtype], FrozenNetwork] = {_BASE: base}
        self._register()

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the feature layers, in execution order."""
        return tuple(self._record.feature_layers)

    def frozen_network(self, device: torch.device = _BASE[0], dtype: torch.dtype = _BASE[1]) -> FrozenNetwork:
        """The network, shared with every user of the same weights in this process.

        Args:
            device: Target device.
            dtype: Target dtype of the backbone.

        Returns:
            The network; do not modify it.

        Raises:
            WeightsError: If this object was unpickled and its source now holds other weights.
        """
        if torch.compiler.is_dynamo_compiling():
            compiled: FrozenNetwork = published(_load_for_compile(self._identity, device, dtype))
            return compiled
        network = self._networks.get((device, dtype))
        if network is None:
            found = (
                self._resolved()
                if (device, dtype) == _BASE
                else get_network(self.frozen_network(), self._specification, device, dtype)
            )
            network = self._networks[device, dtype] = found
        return network

    def _register(self) -> None:
        self._identity = repr(self._specification)
        _users.setdefault(self._identity, weakref.WeakSet()).add(self)

    def _resolved(self) -> FrozenNetwork:
        options = (self.version, self.calibrated, self._weights, self._calibration, self._seed, self._distance)
        found, base = resolve_network(self._record, *options)
        if found != self._specification:
            raise WeightsError(f"weights: expected those of {self._specification}, found {found}")
        return base

    @override
    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        # Nothing to move, but create the network on the new device before the first (compiled) step.
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        device = fn(torch.empty(0, device="cpu")).device
        if device.type not in ("cpu", "meta"):
            self.frozen_network(device, torch.float32)
        return self

    def __getstate__(self) -> dict[str, Any]:
        state = {**self.__dict__, "_networks": {}}
        del state["_identity"]  # of the specification
        if isinstance(self._weights, Mapping):
            given, repeated = self._weights, f"{self._record.repeated_conv}.weight"
            used = dict(self.frozen_network().extractor.graph.state_dict())
            state["_weights"] = used | ({repeated: given[repeated]} if repeated in given else {})
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._register()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        clone = type(self).__new__(type(self))
        clone.__dict__ = {**self.__dict__, "_networks": dict(self._networks)}
        memo[id(self)] = clone
        clone._register()
        return clone


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _load_for_compile(identity: str, device: torch.device, dtype: torch.dtype) -> str:
    """Load a network for all modules that use it, which share their compiled code; its name in `published`."""
    with without_modes():
        network, *_ = (user.frozen_network(device, dtype) for user in list(_users[identity]))
    network.compiled_name = publish(f"network {identity} {device} {dtype}", network)
    return network.compiled_name
