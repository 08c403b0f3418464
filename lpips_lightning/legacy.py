"""Keys that checkpoints written with other LPIPS modules hold, where ours has none."""

from __future__ import annotations

import re
from typing import Any

from torch import nn
from typing_extensions import override

__all__ = ["DropsLegacyKeys"]

# Of `lpips` 0.1.4 and torchmetrics: the trunk's slices, the calibration (under two names) and the input scaling.
_LEGACY = re.compile(
    r"(net\.){0,2}(slice\d+|slices\.\d+)\.\d+\..+"
    r"|(net\.)?(lin\d+|lins\.\d+)\.model\.\d+\.weight"
    r"|(net\.)?scaling_layer\.(shift|scale)"
)


class DropsLegacyKeys(nn.Module):
    """Lets a state dict that holds a peer's frozen network load with ``strict=True`` into a module of ours instead.

    Nothing is lost: those numbers were never trained, or should not have been. Every other unknown key stays an error.

    Example:
        >>> model = nn.ModuleDict({"loss": DropsLegacyKeys()})
        >>> model.load_state_dict({"loss.net.slice1.0.weight": 0, "loss.lin0.model.1.weight": 0}, strict=True)
        <All keys matched successfully>
    """

    @override
    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        for key in list(state_dict):
            if key.startswith(prefix) and _LEGACY.fullmatch(key, len(prefix)):
                del state_dict[key]
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
