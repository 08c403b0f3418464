"""Backbone files that say which `CaffeAlexNet` they hold, so that ``LPIPS(weights=FILE)`` suffices."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from lpips_lightning.backbones.caffe_alexnet import NET_TYPE, CaffeAlexNet, caffe_backbone
from lpips_lightning.backbones.definition import Backbone
from lpips_lightning.io.tensor_files import read_record, write_tensors
from lpips_lightning.weights import WeightsError, read_tensors

ARCHITECTURE = "architecture"
"""Name of the settings in the record of a file."""

_CALIBRATION = "calibration."


def write_caffe_alexnet(
    path: str | os.PathLike[str], net: CaffeAlexNet, mode: str, record: Mapping[str, Any] | None = None
) -> Path:
    """Write a network as a backbone file for ``LPIPS(weights=FILE)``, atomically.

    The file holds the network with three input channels, see `CaffeAlexNet.with_three_channels`.

    Args:
        path: Output ``.safetensors`` file; missing folders are created.
        net: The network.
        mode: Name of the method that trained it, for example ``"split-brain"``; the evaluation shows the paper's score
            of this method beside the file's.
        record: Further JSON-serializable provenance.

    Returns:
        Path of the file.

    Raises:
        ValueError: If the path has another suffix, or is a folder.
        OSError: If the file cannot be written.

    Example:
        >>> import tempfile
        >>> from lpips_lightning import LPIPS
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = write_caffe_alexnet(f"{folder}/mine.safetensors", CaffeAlexNet((4, 8, 8, 8, 8)), "random")
        ...     LPIPS(weights=path).net_type
        'caffe-alexnet'
    """
    plain = net.with_three_channels()
    about = {"mode": mode, "trained_on": net.colors, ARCHITECTURE: plain.settings, **(record or {})}
    return write_tensors(path, plain.state_dict(), about, net_type=NET_TYPE)


def is_caffe_file(path: object) -> bool:
    """Whether a path is that of a file which `write_caffe_alexnet` wrote."""
    if not isinstance(path, str | os.PathLike) or Path(path).suffix != ".safetensors":
        return False
    file = Path(path).expanduser()
    try:
        return file.is_file() and read_record(file).get("net_type") == NET_TYPE
    except WeightsError:  # damaged; whoever reads the tensors says so
        return False


def caffe_settings(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The arguments of the `CaffeAlexNet` in a file.

    Args:
        path: A file that `write_caffe_alexnet` wrote.

    Returns:
        Keyword arguments: ``CaffeAlexNet(**settings)`` takes the file's tensors as its ``state_dict``.

    Raises:
        WeightsError: If the file cannot be read, or does not say its architecture.
    """
    settings = read_record(path).get(ARCHITECTURE)
    if not isinstance(settings, dict):
        raise WeightsError(f"{path}: expected a backbone file that says its architecture, got one that does not")
    return settings


def has_calibration(path: str | os.PathLike[str]) -> bool:
    """Whether a safetensors file holds a calibration, too; only its header is read.

    Args:
        path: The file.
    """
    from safetensors import safe_open

    with safe_open(Path(path).expanduser(), "pt") as file:
        return any(name.startswith(_CALIBRATION) for name in file.keys())  # noqa: SIM118 -- it is no mapping


def caffe_backbone_of_file(path: str | os.PathLike[str]) -> Backbone:
    """The backbone in a file, with the file's weights as its default weights.

    Args:
        path: A file that `write_caffe_alexnet` wrote.

    Returns:
        A backbone for the `net_type` argument.

    Raises:
        WeightsError: If the file cannot be read, or its architecture is none of `CaffeAlexNet`.
    """
    settings, file = caffe_settings(path), Path(path).expanduser()
    try:
        return caffe_backbone(settings, partial(_tensors, file))
    except (TypeError, ValueError) as error:
        raise WeightsError(
            f"{path}: expected the architecture of a CaffeAlexNet, got an invalid one: {error}"
        ) from error


def load_caffe_alexnet(path: str | os.PathLike[str]) -> CaffeAlexNet:
    """The network in a file, in training mode, to go on training it.

    Args:
        path: A file that `write_caffe_alexnet` wrote.

    Returns:
        The network, with the input ``"rgb"`` or ``"lab"``.

    Raises:
        WeightsError: If the file cannot be read, or its tensors do not fit its architecture.
    """
    settings, tensors = caffe_settings(path), _tensors(Path(path).expanduser())
    try:
        net = CaffeAlexNet(**settings)
        net.load_state_dict(tensors)
    except (TypeError, ValueError, RuntimeError) as error:
        raise WeightsError(f"{path}: expected the tensors of its CaffeAlexNet, got others: {error}") from error
    return net


def _tensors(path: Path) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in read_tensors(path).items() if not name.startswith(_CALIBRATION)}
