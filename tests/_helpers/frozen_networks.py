"""The frozen networks behind `LPIPS`: the only access of the tests to private attributes."""

from __future__ import annotations

import gc

import torch

from lpips_lightning.backbones import frozen


def frozen_network(net, dtype=torch.float32, device="cpu"):
    """The shared `FrozenNetwork` of an `LPIPS` on a device and in a dtype."""
    return net.frozen_network(torch.device(device), dtype)


def live_networks():
    """Number of shared networks in this process."""
    gc.collect()
    return len(frozen._networks)
