"""Devices by name, as command lines take them."""

from __future__ import annotations

import torch

__all__ = ["choose_device"]


def choose_device(name: str) -> torch.device:
    """The device that a user names.

    Args:
        name: ``"auto"``: CUDA if there is one, else the CPU; or one of torch's, such as ``"cuda:1"``.

    Raises:
        ValueError: If there is none of this name here.

    Example:
        >>> choose_device("cpu")
        device(type='cpu')
    """
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
        torch.zeros(1, device=device).cpu()
    except Exception as error:  # every backend has its own: RuntimeError, AssertionError, NotImplementedError, ...
        said = str(error).partition("\n")[0]
        raise ValueError(f"device: expected auto, cpu, cuda or another that is here, got {name!r} ({said})") from error
    return device
