"""Values that every rank makes for itself, such as networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class PerProcess(Generic[T]):
    """A value that every process makes for itself, once: a copy by pickle makes its own.

    Args:
        function: Makes it; picklable.
        *args: Its arguments; picklable.
    """

    def __init__(self, function: Callable[..., T], *args: Any) -> None:
        self._function, self._args = function, args
        self._values: list[T] = []

    def __call__(self) -> T:
        """The value."""
        if not self._values:
            self._values.append(self._function(*self._args))
        return self._values[0]

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_values": []}
