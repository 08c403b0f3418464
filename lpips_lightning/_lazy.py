"""Packages whose public names are imported when they are first asked for."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any


def lazy_names(
    package: str, homes: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` for the ``__init__`` of a package (PEP 562).

    Beside them the ``__init__`` says the same imports to type checkers, under ``TYPE_CHECKING``; a test compares both.

    Args:
        package: Its ``__name__``.
        homes: The module in the package -> the names that it defines.

    Example:
        >>> find, names = lazy_names("lpips_lightning.images", {"ranges": ["RangeError"]})
        >>> find("RangeError").__module__
        'lpips_lightning.images.ranges'
    """
    home = {name: module for module, names in homes.items() for name in names}

    def find(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        found = getattr(import_module(f"{package}.{home[name]}"), name)
        setattr(sys.modules[package], name, found)  # the next time without this function
        return found

    return find, lambda: sorted({*vars(sys.modules[package]), *home})
