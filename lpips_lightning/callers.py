"""Warnings that point at the user's line."""

from __future__ import annotations

import sys
import warnings

_LIBRARIES = {
    "contextlib",
    "functools",
    "lightning",
    "lightning_fabric",
    "lightning_utilities",
    "lpips_lightning",
    "pytorch_lightning",
    "torch",
    "torchmetrics",
}
"""Packages and modules between the user's line and ours."""


def warn_user(message: str) -> None:
    """Issue a UserWarning at the innermost line outside this package, PyTorch, torchmetrics and Lightning.

    Args:
        message: The text.
    """
    frame = nearest = sys._getframe(1)
    while frame.f_globals.get("__name__", "").partition(".")[0] in _LIBRARIES:
        if frame.f_back is None:  # a thread of a library
            frame = nearest
            break
        frame = frame.f_back
    names = frame.f_globals
    warnings.warn_explicit(
        message,
        UserWarning,
        frame.f_code.co_filename,
        frame.f_lineno,
        names.get("__name__", "<unknown>"),
        names.setdefault("__warningregistry__", {}),
    )
