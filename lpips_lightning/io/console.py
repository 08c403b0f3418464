"""Text on the terminal; a reader that leaves early (``| head``) ends the text, not the work."""

from __future__ import annotations

import sys
from collections.abc import Sequence
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


def print_lines(lines: Sequence[str], to_stderr: bool) -> None:
    """Print lines, if somebody reads them; escape characters that the terminal's encoding lacks."""
    stream = sys.stderr if to_stderr else sys.stdout
    if stream is None:  # closed by the shell
        return
    encoding = stream.encoding or "utf-8"
    text = "".join(f"{line}\n" for line in lines)
    with suppress(BrokenPipeError):  # files are still to be written
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding))


def print_notes(notes: Sequence[str]) -> None:
    """Print notes on standard error, such as which files are left out."""
    console = Console(stderr=True)
    for note in notes:
        console.print(f"lpips-lightning: note: {note}", soft_wrap=True, highlight=False, markup=False, emoji=False)
