"""Export of a trained calibration, optionally rescaled to the level of the official one."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from lpips_lightning.backbones.caffe_alexnet import settings_of
from lpips_lightning.backbones.caffe_file import ARCHITECTURE
from lpips_lightning.backbones.definition import BACKBONES
from lpips_lightning.backbones.loading import calibration_tensors
from lpips_lightning.calibration.model import TrainableLPIPS, check_choice
from lpips_lightning.distances.lpips import layer_distances
from lpips_lightning.io.tensor_files import write_tensors
from lpips_lightning.network import LPIPS
from lpips_lightning.weights import CALIBRATIONS

Rescale = Literal["official"]


def rescale_factor(
    network: TrainableLPIPS, net_type: str, rescale_to: Rescale | None, pairs: Iterable[tuple[Tensor, Tensor]]
) -> float:
    """Factor for a calibration that makes its mean distance equal to the official one's.

    Args:
        network: Network with the trained calibration.
        net_type: Network whose official calibration to match: in mode ``"lin"`` on the backbone of `network`, else on
            the official one.
        rescale_to: None returns 1.
        pairs: Batches of two images ``(N, 3, H, W)`` on [-1, 1].

    Returns:
        Mean official distance / mean distance of `network`.

    Raises:
        ValueError: If there are no pairs, or their mean distance is 0.
    """
    if rescale_to is None:
        return 1.0
    check_choice("rescale_to", rescale_to, get_args(Rescale))
    if not has_official_scale(network):
        raise ValueError(f"rescale_to: expected None for {net_type!r}, which has no official calibration")
    official = _official_distance(network, net_type)
    training = network.training
    network.eval()
    trained_sum = official_sum = torch.zeros((), dtype=torch.float64)
    with torch.no_grad():
        for x, y in pairs:
            (distance,) = network(x, y)
            trained_sum = trained_sum + distance.cpu().double().sum()
            official_sum = official_sum + official(x, y).cpu().double().sum()
    network.train(training)
    if not float(trained_sum) > 0:
        raise ValueError(
            f"pairs: expected pairs of different images to rescale over, got a total distance of {trained_sum:g}"
        )
    return float(official_sum / trained_sum)


def has_official_scale(network: TrainableLPIPS) -> bool:
    """Whether there is an official calibration of the network's backbone, which may be one of the user."""
    record = network.record
    return BACKBONES.get(record.name) is record and (record.name, _version(network)) in CALIBRATIONS


def _version(network: TrainableLPIPS) -> str:
    return "0.1" if network.shift is not None else "0.0"


def _official_distance(network: TrainableLPIPS, net_type: str) -> Callable[[Tensor, Tensor], Tensor]:
    if network.mode != "lin":
        return LPIPS(net_type, version=_version(network))
    weights = calibration_tensors(network.record, _version(network), None)

    def distance(x: Tensor, y: Tensor) -> Tensor:
        official = {layer: weight.to(x.device) for layer, weight in weights.items()}
        return torch.stack(list(layer_distances(network.encode(x), network.encode(y), official).values())).sum(0)

    return distance


def write_calibration(
    path: str | os.PathLike[str], network: TrainableLPIPS, factor: float, record: Mapping[str, Any]
) -> Path:
    """Write a calibration atomically, with the backbone unless the mode is ``"lin"``.

    Args:
        path: Output ``.safetensors`` file.
        network: The trained network.
        factor: Factor on the calibration, see `rescale_factor`.
        record: JSON-serializable provenance, stored in the file's metadata.

    Returns:
        Path of the file.

    Raises:
        ValueError: If the path has another suffix.
    """
    tensors = {layer: weight.float() * factor for layer, weight in network.calibration.items()}
    if network.mode != "lin":
        tensors = {f"calibration.{layer}": weight for layer, weight in tensors.items()}
        tensors |= network.extractor.graph.state_dict()
    if network.mode != "lin" and (settings := settings_of(network.record)) is not None:
        record = {**record, ARCHITECTURE: settings}
    labels = {"net_type": network.record.name, "version": _version(network)}
    return write_tensors(path, tensors, record, **labels)


def usage(net_type: str, path: str | os.PathLike[str], weights: str | None = None) -> str:
    """How a calibration file is used from Python and from the shell, two lines; `weights` are those of the backbone."""
    own = "" if weights is None else f", weights={weights!r}"
    line = ["lpips-lightning", "compare", "a.png", "b.png", "--net", net_type, "--calibration", str(path)]
    line += [] if weights is None else ["--weights", weights]
    return f"Python: LPIPS({net_type!r}, calibration={str(path)!r}{own})\nShell:  {shlex.join(line)}"
