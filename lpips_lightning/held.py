"""How a module holds a frozen network without owning it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
from typing_extensions import override

from lpips_lightning.backbones import Backbone
from lpips_lightning.frozen import FrozenNetwork, WeightsSource, acquire, specify
from lpips_lightning.legacy import DropsLegacyKeys
from lpips_lightning.weights import WeightsError

__all__ = ["HoldsFrozenNetwork"]

_BASE = (torch.device("cpu"), torch.float32)


class HoldsFrozenNetwork(DropsLegacyKeys):
    """A module that draws its network from the process's shared ones, on any device and in any dtype.

    The network is found and checked when the module is made. Nothing of it is registered: `parameters()`,
    `state_dict()`, `.half()` and `.train()` do not see it. Deep copies share it; pickles hold where the weights came
    from, and the weights themselves only if they were handed over as tensors.

    Args:
        record: Of the trunk.
        version: ``"0.1"`` or ``"0.0"``.
        calibrated: False for the baseline.
        weights: Of the trunk.
        calibration: None for the official one.

    Raises:
        ValueError: If an argument is none of the known ones.
        WeightsError: If weights are missing, damaged or of another architecture.
    """

    def __init__(
        self, record: Backbone, version: str, calibrated: bool, weights: WeightsSource, calibration: WeightsSource
    ) -> None:
        super().__init__()
        self._record = record
        self.version = version
        self.calibrated = calibrated
        self._weights = weights
        self._calibration = calibration
        self._seed = int(torch.randint(2**62, (), device="cpu")) if weights == "random" else 0
        self._specification, base = specify(record, version, calibrated, weights, calibration, self._seed)
        # A plain dict in a plain attribute: no module, no parameter, no buffer is registered.
        self._held: dict[tuple[torch.device, torch.dtype], FrozenNetwork] = {_BASE: base}

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers, from the input on."""
        return tuple(self._record.taps)

    def _network(self, device: torch.device, dtype: torch.dtype) -> FrozenNetwork:
        network = self._held.get((device, dtype))
        if network is None:
            network = self._held[device, dtype] = acquire(self._base(), self._specification, device, dtype)
        return network

    def _base(self) -> FrozenNetwork:
        base = self._held.get(_BASE)
        if base is None:
            options = (self.version, self.calibrated, self._weights, self._calibration, self._seed)
            found, base = specify(self._record, *options)
            if found != self._specification:
                raise WeightsError(f"weights: expected those of {self._specification}, found {found}")
            self._held[_BASE] = base
        return base

    @override
    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        # Nothing to move; but a module that goes to a device wants its network there before the first (compiled) step.
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        device = fn(torch.empty(0, device="cpu")).device
        if device.type not in ("cpu", "meta"):
            self._network(device, torch.float32)
        return self

    def __getstate__(self) -> dict[str, Any]:
        state = {**self.__dict__, "_held": {}}
        if isinstance(self._weights, Mapping):
            state["_weights"] = dict(self._base().extractor.graph.state_dict())
        return state

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        twin = type(self).__new__(type(self))
        twin.__dict__ = {**self.__dict__, "_held": dict(self._held)}
        memo[id(self)] = twin
        return twin
