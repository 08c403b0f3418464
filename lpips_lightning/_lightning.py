"""Lightning's base classes, from `pytorch_lightning` and `lightning` at once.

The package `lightning` holds copies of the classes of `pytorch_lightning`, and the Trainer of either refuses objects of
the other. A class derived from one of these bases is accepted by both, whichever was imported first. If `lightning` is
not installed, they are the classes of `pytorch_lightning`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from importlib import import_module
from types import CodeType, FunctionType
from typing import TYPE_CHECKING, Any


class _EitherCode:
    """Code of a hook, equal to that of either package: Lightning compares code to see whether a hook is overridden."""

    def __init__(self, *codes: CodeType) -> None:
        self._codes = codes

    def __eq__(self, other: object) -> bool:
        return other in self._codes

    def __hash__(self) -> int:
        return hash(self._codes)


def _signature(function: FunctionType) -> inspect.Signature:
    """Signature without annotations, whose names are those of another module."""
    signature, empty = inspect.signature(function), inspect.Signature.empty
    parameters = [one.replace(annotation=empty) for one in signature.parameters.values()]
    return signature.replace(parameters=parameters, return_annotation=empty)


class _Hook:
    """What Lightning finds as ``__wrapped__`` of a hook that both packages have."""

    def __init__(self, first: FunctionType, second: FunctionType) -> None:
        self._function = first
        self.__code__ = _EitherCode(first.__code__, second.__code__)
        self.__signature__ = _signature(first)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._function(*args, **kwargs)


def _shared_hook(first: FunctionType, second: FunctionType) -> Callable[..., Any]:
    @functools.wraps(first)
    def hook(*args: Any, **kwargs: Any) -> Any:
        return first(*args, **kwargs)

    hook.__annotations__ = {}
    vars(hook).update(__wrapped__=_Hook(first, second), __signature__=_signature(first))
    return hook


def _base(module: str, name: str) -> type:
    """Class that derives from both packages' class, or the one of `pytorch_lightning`."""
    first: type = getattr(import_module(f"pytorch_lightning{module}"), name)
    try:
        second: type = getattr(import_module(f"lightning.pytorch{module}"), name)
    except Exception:  # not installed, or of a version that cannot be imported here
        return first
    hooks = {}
    for attribute in set(dir(first)) & set(dir(second)):
        own, other = (inspect.getattr_static(one, attribute) for one in (first, second))
        functions = isinstance(own, FunctionType) and isinstance(other, FunctionType)
        if functions and not attribute.startswith("_") and own.__code__ != other.__code__:
            hooks[attribute] = _shared_hook(own, other)
    doc = f"`{name}` of both packages."
    return type(first)(name, (first, second), {"__module__": __name__, "__doc__": doc, **hooks})


if TYPE_CHECKING:
    from pytorch_lightning import Callback as Callback
    from pytorch_lightning import LightningDataModule as LightningDataModule
    from pytorch_lightning import LightningModule as LightningModule
    from pytorch_lightning.callbacks import BasePredictionWriter as BasePredictionWriter
    from pytorch_lightning.plugins.io import TorchCheckpointIO as TorchCheckpointIO
    from pytorch_lightning.utilities.exceptions import (  # type: ignore[attr-defined]
        MisconfigurationException as MisconfigurationException,
    )
else:
    Callback = _base("", "Callback")
    LightningDataModule = _base("", "LightningDataModule")
    LightningModule = _base("", "LightningModule")
    BasePredictionWriter = _base(".callbacks", "BasePredictionWriter")
    TorchCheckpointIO = _base(".plugins.io", "TorchCheckpointIO")
    MisconfigurationException = _base(".utilities.exceptions", "MisconfigurationException")
