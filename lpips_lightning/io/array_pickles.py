"""Pickles of arrays and nothing else, read without running any code that they name."""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from typing import Any

import numpy as np
from typing_extensions import override

from lpips_lightning.weights import WeightsError

_RECONSTRUCT = np.zeros(1).__reduce__()[0]  # its module's name depends on numpy's version
_ARRAYS: Mapping[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}
"""All that a pickle of arrays names."""


def unpickle_arrays(data: bytes, shown: str) -> Any:
    """Read arrays in dicts, lists and tuples, and refuse whatever else a pickle names.

    Args:
        data: The pickle; also one of Python 2.
        shown: Name of the file for error messages.

    Returns:
        The object.

    Raises:
        WeightsError: If the pickle is damaged, or holds something else; no code in it is executed.
    """
    try:
        return _ArrayUnpickler(io.BytesIO(data), encoding="latin1").load()
    except Exception as error:  # a damaged pickle raises nearly anything
        raise WeightsError(
            f"{shown}: expected a pickle of arrays and nothing else, got {error}; no code in it was executed"
        ) from None


class _ArrayUnpickler(pickle.Unpickler):
    @override
    def find_class(self, module_name: str, global_name: str) -> Any:
        try:
            return _ARRAYS[module_name, global_name]
        except KeyError:
            raise pickle.UnpicklingError(f"one that names {module_name}.{global_name}") from None
