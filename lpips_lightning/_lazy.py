"""Lazy import of a package's public names (PEP 562)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any


def lazy_names(
    package: str, homes: Mapping[str, Sequence[str]], replaced: Mapping[str, str] | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Make ``__getattr__`` and ``__dir__`` for the ``__init__`` of a package (PEP 562).

    For type checkers, the ``__init__`` repeats the imports under ``TYPE_CHECKING``; a test compares both.

    Args:
        package: ``__name__`` of the package.
        homes: Module in the package -> names that it defines.
        replaced: Name that does not exist -> what the error proposes instead.

    Example:
        >>> find, names = lazy_names("lpips_lightning.images", {"ranges": ["RangeError"]})
        >>> find("RangeError").__module__
        'lpips_lightning.images.ranges'
    """
    home = {name: module for module, names in homes.items() for name in names}

    def find(name: str) -> Any:
        if name not in home:
            instead = f"; {replaced[name]}" if replaced and name in replaced else ""
            raise AttributeError(f"module {package!r} has no attribute {name!r}{instead}")
        found = getattr(import_module(f"{package}.{home[name]}"), name)
        setattr(sys.modules[package], name, found)  # later accesses bypass this function
        return found

    return find, lambda: sorted({*vars(sys.modules[package]), *home})
