"""Text on the terminal; a reader that leaves early (``| head``) ends the text, not the work."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import rich.console
from typing_extensions import override


class Console(rich.console.Console):
    """rich's console, which goes on without output once nobody reads it; rich itself would end the program."""

    @override
    def print(self, *objects: Any, **options: Any) -> None:
        with suppress(BrokenPipeError):  # raised by versions of rich without `on_broken_pipe`
            super().print(*objects, **options)

    def on_broken_pipe(self) -> None:
        """Called by rich."""
        self.quiet = True
