"""Objects that ``torch.compile`` finds instead of making them while it traces.

Loading a network takes locks and files, which ``torch.compile(fullgraph=True)`` cannot trace. A function with
``torch.compiler.assume_constant_result`` runs as it is, but may return no module: it returns the name of a weak
reference here. Code that uses the object is compiled again once it is gone.
"""

from __future__ import annotations

import hashlib
import weakref
from typing import Any


class _References:
    """Weak references by name, as attributes."""


_references = _References()


def publish(name: str, found: object) -> str:
    """Make an object available to compiled code, as long as something else keeps it alive.

    Args:
        name: Identifies the object; another one of this name is replaced.
        found: The object.

    Returns:
        Argument of `published`.
    """
    attribute = f"object_{hashlib.sha256(name.encode()).hexdigest()}"
    setattr(_references, attribute, weakref.ref(found))
    return attribute


def published(name: str) -> Any:
    """The object with a name that `publish` returned.

    Args:
        name: The name.

    Returns:
        The object; None if it is gone.
    """
    return getattr(_references, name)()
