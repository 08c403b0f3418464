"""What calibration learned, as a file; at the level of the official calibration if wanted."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from lpips_lightning.calibration.model import TrainableLPIPS, check_choice
from lpips_lightning.io.tensor_files import write_tensors
from lpips_lightning.network import LPIPS

Rescale = Literal["official"]


def rescale_factor(
    network: TrainableLPIPS, net_type: str, rescale_to: Rescale | None, pairs: Iterable[tuple[Tensor, Tensor]]
) -> float:
    """What to multiply a calibration with, so that its mean distance is that of the official one.

    Args:
        network: With the calibration.
        net_type: Whose official calibration, on whose looked-up backbone.
        rescale_to: None gives 1.
        pairs: Batches of two images ``(N, 3, H, W)`` on [-1, 1].

    Returns:
        Mean official distance / mean distance.

    Raises:
        ValueError: If there are no pairs, or their mean distance is 0.
    """
    if rescale_to is None:
        return 1.0
    check_choice("rescale_to", rescale_to, get_args(Rescale))
    official = LPIPS(net_type, version="0.1" if network.shift is not None else "0.0")
    training = network.training
    network.eval()
    own = known = torch.zeros((), dtype=torch.float64)
    with torch.no_grad():
        for x, y in pairs:
            (distance,) = network(x, y)
            own = own + distance.cpu().double().sum()
            known = known + official(x, y).cpu().double().sum()
    network.train(training)
    if not float(own) > 0:
        raise ValueError(f"pairs: expected pairs of different images to rescale over, got a summed distance of {own:g}")
    return float(known / own)


def write_calibration(
    path: str | os.PathLike[str], network: TrainableLPIPS, factor: float, record: Mapping[str, Any]
) -> Path:
    """Write a calibration, and the backbone where it was trained.

    Args:
        path: A ``.safetensors`` file.
        network: What was trained.
        factor: To multiply the calibration with.
        record: How it was made; goes into the file's metadata.

    Returns:
        The file.

    Raises:
        ValueError: If the path ends in something else.
    """
    tensors = {layer: weight.float() * factor for layer, weight in network.calibration.items()}
    if network.mode != "lin":
        tensors = {f"calibration.{layer}": weight for layer, weight in tensors.items()}
        tensors |= network.extractor.graph.state_dict()
    labels = {"net_type": network.record.name, "version": "0.1" if network.shift is not None else "0.0"}
    return write_tensors(path, tensors, record, **labels)
