"""The frozen networks behind `LPIPS`: the one place where the tests reach for what it keeps to itself."""

from __future__ import annotations

import gc

import torch

from lpips_lightning.backbones import frozen


def frozen_network(net, dtype=torch.float32, device="cpu"):
    """The shared `FrozenNetwork` that an `LPIPS` uses there in this dtype."""
    return net.frozen_network(torch.device(device), dtype)


def live_networks():
    """How many shared networks this process holds."""
    gc.collect()
    return len(frozen._networks)
