"""Base of recipes that can train with a discriminator beside pixel and perceptual loss."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from typing_extensions import override

from lpips_lightning._lightning import LightningModule
from lpips_lightning.adversarial import AdversarialLoss
from lpips_lightning.recipes.optimization import clip_groups

_BETAS = (0.5, 0.9)  # of the discriminator; of VQGAN


class AdversarialModule(LightningModule):
    """LightningModule with an optional `AdversarialLoss`, trained in the same step by the same optimizer.

    Subclasses call `add_discriminator` at the end of ``__init__``, so that the initial network is the same with and
    without it; `with_adversarial` in the training step; and make their optimizer with `adam`. These arguments of
    theirs are used: ``adversarial_weight`` (0: no discriminator), ``adversarial_start``, ``discriminator_layers``,
    ``discriminator_channels`` and ``discriminator_lr``.

    Attributes:
        adversarial: The loss with its discriminator, or None.
    """

    adversarial: AdversarialLoss | None

    def add_discriminator(self) -> None:
        """Set `adversarial`, according to the hyperparameters.

        Raises:
            ValueError: If one of them is out of its range.
        """
        options = self.hparams
        with torch.random.fork_rng([]):  # crops and noise are drawn as without it
            loss = AdversarialLoss(
                options["adversarial_weight"],
                options["adversarial_start"],
                layers=options["discriminator_layers"],
                channels=options["discriminator_channels"],
            )
        self.adversarial = loss if options["adversarial_weight"] else None

    def with_adversarial(
        self, losses: dict[str, Tensor], preds: Tensor, target: Tensor, last_layer: Tensor
    ) -> dict[str, Tensor]:
        """Add the terms of generator and discriminator to ``train/loss``, and log entries beside it.

        Args:
            losses: Loss terms; ``train/loss`` is the reconstruction loss.
            preds: Generated images, shape ``(N, 3, H, W)``.
            target: Real images, same shape and range.
            last_layer: Weight of the layer that makes `preds`.
        """
        if self.adversarial is None:
            return losses
        terms = self.adversarial(losses["train/loss"], preds, target, last_layer, step=self.trainer.global_step)
        total = losses["train/loss"] + terms.generator + terms.discriminator
        more = {"generator": terms.generator, "discriminator": terms.discriminator, "adaptive_weight": terms.weight}
        return {**losses, "train/loss": total, **{f"train/{name}": value for name, value in more.items()}}

    def adam(
        self, parameters: Iterable[nn.Parameter], betas: tuple[float, float] = (0.9, 0.999), weight_decay: float = 0.0
    ) -> Optimizer:
        """AdamW over `parameters` with ``lr``, and the discriminator as a group with its own learning rate.

        Args:
            parameters: Parameters of the generator.
            betas: Betas of the generator.
            weight_decay: Weight decay of the generator.
        """
        groups: list[dict[str, Any]] = [{"params": list(parameters), "weight_decay": weight_decay, "betas": betas}]
        if self.adversarial is not None:
            own = {"lr": self.hparams["discriminator_lr"], "betas": _BETAS, "weight_decay": 0.0}
            groups.append({"params": list(self.adversarial.parameters()), **own})
        return AdamW(groups, self.hparams["lr"])

    @override
    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        clip_groups(optimizer, gradient_clip_val, gradient_clip_algorithm)

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.adversarial is None:  # validation and prediction, with the defaults, of a training with a discriminator
            state = checkpoint["state_dict"]
            for name in [name for name in state if name.startswith("adversarial.")]:
                del state[name]
