"""Rank methods by the answers of a study."""

from __future__ import annotations

from typing import Any


def add_ranking(commands: Any) -> None:
    """Add the actions to the parser of ``judge``."""
