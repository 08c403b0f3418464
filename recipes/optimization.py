"""Optimization that recipes share: perceptual loss, warm-up and cosine decay, clipping with an adversarial loss."""

import math
from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lpips_lightning import PerceptualLoss
from lpips_lightning._lightning import LightningModule


def perceptual_loss(options: Mapping[str, Any]) -> PerceptualLoss | None:
    """The perceptual loss of an image recipe, on images in [0, 1]; None for ``loss_weight`` 0.

    Args:
        options: Hyperparameters with ``loss_net, loss_weight, loss_calibrated, loss_weights``.

    Raises:
        WeightsError: If the backbone weights are missing.
    """
    if not options["loss_weight"]:
        return None
    return PerceptualLoss(
        options["loss_net"],
        data_range=(0, 1),
        weight=options["loss_weight"],
        calibrated=options["loss_calibrated"],
        weights=options["loss_weights"],
    )


def warmup_cosine(module: LightningModule, optimizer: Optimizer, warmup_steps: int) -> dict[str, Any]:
    """Optimizer with linear warm-up of the learning rate, then cosine decay to 0: for ``configure_optimizers``.

    Args:
        module: The module in training; its Trainer knows the number of steps.
        optimizer: The optimizer; every group has its own highest learning rate.
        warmup_steps: Steps of the warm-up.
    """

    # Not OneCycleLR, which raises if a resumed run has more steps than the first run planned.
    def factor(step: int) -> float:
        if step <= warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        # estimated_stepping_batches creates the dataloader. Before the loops are restored from a checkpoint, that
        # would lose the position in the epoch (2026-11-28, pytorch_lightning/loops/fit_loop.py, setup_data).
        total = module.trainer.estimated_stepping_batches
        return 0.5 * (1 + math.cos(math.pi * min((step - warmup_steps) / max(total - warmup_steps, 1), 1.0)))

    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": LambdaLR(optimizer, factor), "interval": "step"}}


def clip_groups(optimizer: Optimizer, largest: float | None, algorithm: str | None) -> None:
    """Clip the gradients of each parameter group by itself: for ``configure_gradient_clipping``.

    A common norm over generator and discriminator would let large gradients of one stop the other.

    Args:
        optimizer: The optimizer.
        largest: Largest norm or value; None or 0 for no clipping.
        algorithm: ``"value"``, or ``"norm"``, as None.
    """
    clip: Any = nn.utils.clip_grad_value_ if algorithm == "value" else nn.utils.clip_grad_norm_
    for group in optimizer.param_groups if largest else ():
        clip(group["params"], largest)
