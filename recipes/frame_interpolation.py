"""Frame interpolation with LPIPS as loss: predicts the frame between two frames.

Examples::

    lpips-lightning frame-interpolation fit
    lpips-lightning frame-interpolation fit --data.layout vimeo --data.folder vimeo_triplet --data.num_workers 8
    lpips-lightning frame-interpolation test --ckpt_path best.ckpt --data.val_layout middlebury --data.val_folder other
    lpips-lightning frame-interpolation predict --ckpt_path best.ckpt --data.predict_folder clip
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric
from typing_extensions import override

from lpips_lightning import PerceptualLoss
from lpips_lightning._lightning import LightningModule
from lpips_lightning.batch import SUM_DTYPE
from lpips_lightning.distributed import dataset_indices
from lpips_lightning.recipes.command import ImageRecipeCLI, run_recipe
from lpips_lightning.recipes.frame_interpolation_data import FrameInterpolationData
from lpips_lightning.recipes.interpolation_network import Interpolation, InterpolationNetwork
from lpips_lightning.recipes.optimization import perceptual_loss, warmup_cosine

Batch = tuple[Tensor, Tensor, Tensor, Sequence[str]]  # frame 0, frame 1, middle, names


def charbonnier(pred: Tensor, target: Tensor, eps: float = 1e-3) -> Tensor:
    """Mean of ``sqrt(difference ** 2 + eps ** 2)``, a smooth L1 (Charbonnier et al. 1994)."""
    return (pred - target).square().add(eps**2).sqrt().mean()


class InterpolationError(Metric):
    """Interpolation error of the Middlebury benchmark (Baker et al. 2011), mean over images.

    The error of an image is ``sqrt(mean((r - r')^2 + (g - g')^2 + (b - b')^2))`` with the mean over pixels and colors
    on [0, 255]. Some papers also average over the three colors; their error is smaller by a factor of ``sqrt(3)``.

    Images are ``(N, 3, H, W)`` on [0, 1], without rounding.

    Example:
        >>> error = InterpolationError()
        >>> error.update(torch.zeros(1, 3, 2, 2), torch.full((1, 3, 2, 2), 10 / 255))
        >>> round(float(error.compute()), 4)  # sqrt(3 * 10 ** 2)
        17.3205
    """

    is_differentiable = True
    higher_is_better = False
    full_state_update = False
    if TYPE_CHECKING:  # torch.jit.script reads annotations of attributes, and these are strings
        total: Tensor
        count: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("total", torch.zeros((), dtype=SUM_DTYPE), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    @override
    def update(self, preds: Tensor, target: Tensor) -> None:
        difference = (preds.float() - target.float()) * 255
        self.total = self.total + difference.square().sum(1).mean((1, 2)).sqrt().sum(dtype=SUM_DTYPE)
        self.count = self.count + len(preds)

    @override
    def compute(self) -> Tensor:
        return (self.total / self.count).float()


class FrameInterpolation(LightningModule):
    """`InterpolationNetwork` trained with ``pixel_weight * Charbonnier + loss_weight * LPIPS``.

    Its steps return images for `PerceptualScores`; the input is the mean of the two frames. It logs
    ``val/interpolation_error`` (and ``test/...``). The untrained network returns the mean of the two frames, so
    ``validate`` without a checkpoint gives the baseline.

    All arguments are plain values, so a checkpoint loads with ``weights_only=True`` and contains the loss settings; its
    only parameters are the network's.

    Args:
        channels: Feature channels at 1/2, 1/4, 1/8, ... of the size.
        hidden: Channels of the search levels.
        fine: Channels of the finest level.
        radius: Search radius at each level, in pixels of the level.
        pixel_weight: Weight of the Charbonnier loss, images on [0, 1].
        coarse_weight: Weight of the Charbonnier loss for the frame of each coarser level.
        loss_weight: Weight of LPIPS in the loss; 0 trains on the pixel loss only.
        loss_net: Network of the loss.
        loss_calibrated: False for the uncalibrated distance ("baseline" in the paper).
        loss_weights: Backbone weights of the loss: a path, ``"random"``, or None for torchvision's.
        lr: Highest learning rate of Adam.
        warmup_steps: Linear warm-up to `lr`; then cosine decay to 0.

    Raises:
        ValueError: If there are fewer than two levels, or `radius` is below 1.
    """

    def __init__(
        self,
        channels: Sequence[int] = (16, 24, 32),
        hidden: int = 32,
        fine: int = 24,
        radius: int = 2,
        pixel_weight: float = 1.0,
        coarse_weight: float = 0.25,
        loss_weight: float = 0.1,
        loss_net: str = "embedded",
        loss_calibrated: bool = True,
        loss_weights: str | None = None,
        lr: float = 1e-3,
        warmup_steps: int = 100,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.network = InterpolationNetwork(channels, hidden, fine, radius)
        self.perceptual: PerceptualLoss | None = None
        self.errors: Any = torch.nn.ModuleDict({stage: InterpolationError() for stage in ("val", "test")})

    @override
    def setup(self, stage: str) -> None:
        # Not in __init__, so that a checkpoint loads and predicts without backbone weights.
        if stage == "fit" and self.perceptual is None:
            self.perceptual = perceptual_loss(self.hparams)

    @override
    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Predict the frame between two frames ``(N, 3, H, W)`` in [0, 1] of any size; the result is in [0, 1]."""
        made: Interpolation = self.network(first, second)
        return made.frame.clamp(0, 1)

    def losses(self, first: Tensor, second: Tensor, middle: Tensor) -> dict[str, Tensor]:
        """Loss terms of a batch: ``train/loss`` is the weighted sum, ``train/perceptual`` is LPIPS times its weight."""
        made: Interpolation = self.network(first, second)
        parts = {"train/charbonnier": charbonnier(made.frame, middle)}
        loss = self.hparams["pixel_weight"] * parts["train/charbonnier"]
        small = [F.adaptive_avg_pool2d(middle, (frame.shape[2], frame.shape[3])) for frame in made.coarse]
        parts["train/coarse"] = sum(map(charbonnier, made.coarse, small), torch.zeros_like(loss))
        loss = loss + self.hparams["coarse_weight"] * parts["train/coarse"]
        if self.perceptual is not None and self.perceptual.weight:
            # Clamp for the backbone, whose input range is [0, 1].
            parts["train/perceptual"] = self.perceptual(made.frame.clamp(0, 1), middle)
            loss = loss + parts["train/perceptual"]
        return {"train/loss": loss, **parts}

    @override
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        losses = self.losses(*batch[:3])
        self.log_dict({name: value.detach() for name, value in losses.items()}, prog_bar=True)
        return losses["train/loss"]

    @override
    def on_validation_epoch_start(self) -> None:
        self.seen = 0

    @override
    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        return self._score(batch, "val")

    @override
    def on_test_epoch_start(self) -> None:
        self.seen = 0

    @override
    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        return self._score(batch, "test")

    @override
    def predict_step(self, batch: tuple[Any, ...], batch_idx: int) -> Tensor:
        return self(batch[0], batch[1])

    def _score(self, batch: Batch, stage: str) -> dict[str, Tensor]:
        first, second, middle, _ = batch
        made = self(first, second)
        # Exclude images that a DistributedSampler repeats; they come last.
        count = len(dataset_indices(self.trainer, 0, self.seen, len(middle)))
        self.seen += len(middle)
        self.errors[stage].update(made[:count], middle[:count])
        self.log(f"{stage}/interpolation_error", self.errors[stage], on_step=False, on_epoch=True, prog_bar=True)
        return {"input": (first + second) / 2, "preds": made, "target": middle}

    @override
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.network.parameters(), lr=self.hparams["lr"])
        return warmup_cosine(self, optimizer, self.hparams["warmup_steps"])


class FrameInterpolationCLI(ImageRecipeCLI):
    """CLI of the image recipes."""

    untrained = "mean of both frames"
    pixel = "Charbonnier"


def main(args: list[str] | None = None) -> None:
    """Run the recipe: ``fit``, ``validate``, ``test``, ``predict`` or ``tradeoff``; defaults from the YAML file.

    Args:
        args: Command line without the program name; None takes ``sys.argv``.
    """
    run_recipe(FrameInterpolationCLI, FrameInterpolation, FrameInterpolationData, __file__, args)
