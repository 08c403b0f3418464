"""Autoencoder of images (KL or VQ) with pixel loss, LPIPS and a discriminator: the first stage of latent diffusion.

Examples::

    lpips-lightning autoencoder fit
    lpips-lightning autoencoder fit --model.latent vq
    lpips-lightning autoencoder fit --data.folder photographs --model.adversarial_weight 0
    lpips-lightning autoencoder predict --ckpt_path last.ckpt --data.predict_folder images

Latents of your own images, in Python::

    model = Autoencoder.load_from_checkpoint("last.ckpt").eval()
    latents = model.encode(images)  # (N, 3, H, W) on [0, 1] -> (N, 4, H / 4, W / 4)
    images = model.decode(latents)
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchmetrics import Metric
from typing_extensions import override

from lpips_lightning import PerceptualLoss
from lpips_lightning.batch import SUM_DTYPE
from lpips_lightning.distributed import dataset_indices
from lpips_lightning.recipes.adversarial_module import AdversarialModule
from lpips_lightning.recipes.autoencoder_data import AutoencoderData
from lpips_lightning.recipes.autoencoder_network import (
    AutoencoderNetwork,
    Autoencoding,
    Bottleneck,
    GaussianBottleneck,
    VectorQuantizer,
    perplexity,
)
from lpips_lightning.recipes.command import ImageRecipeCLI, run_recipe
from lpips_lightning.recipes.optimization import perceptual_loss, warmup_cosine

Batch = tuple[Tensor, Sequence[str]]  # images, names
LatentKind = Literal["kl", "vq"]
PixelLoss = Literal["l1", "l2"]

_PIXEL_LOSSES = {"l1": F.l1_loss, "l2": F.mse_loss}


class LatentStd(Metric):
    """Standard deviation of all latent values; latent diffusion divides latents by it (``1 / scale_factor``).

    Example:
        >>> metric = LatentStd()
        >>> metric(torch.tensor([[[[1.0, 3.0]]]]))
        tensor(1.)
    """

    full_state_update = False
    if TYPE_CHECKING:  # torch.jit.script reads annotations of attributes, and these are strings
        count: Tensor
        total: Tensor
        squares: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in ("count", "total", "squares"):
            self.add_state(name, torch.zeros((), dtype=SUM_DTYPE), dist_reduce_fx="sum")

    @override
    def update(self, latents: Tensor) -> None:
        """Add latents, any shape."""
        # Not in place: the state may be an inference tensor, since a Trainer's validate resets it in inference mode.
        latents = latents.to(SUM_DTYPE)
        self.count = self.count + latents.numel()
        self.total = self.total + latents.sum()
        self.squares = self.squares + latents.square().sum()

    @override
    def compute(self) -> Tensor:
        variance = self.squares / self.count - (self.total / self.count).square()
        return variance.clamp(min=0).sqrt().float()


class CodePerplexity(Metric):
    """Perplexity of the codes in use, see `perplexity`.

    Args:
        codes: Size of the codebook.
        kwargs: See `torchmetrics.Metric`.

    Example:
        >>> metric = CodePerplexity(8)
        >>> metric(torch.tensor([[0, 1], [2, 3]]))
        tensor(4.)
    """

    full_state_update = False
    if TYPE_CHECKING:
        counts: Tensor

    def __init__(self, codes: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("counts", torch.zeros(codes, dtype=SUM_DTYPE), dist_reduce_fx="sum")

    @override
    def update(self, indices: Tensor) -> None:
        """Add indices of codes, any shape."""
        self.counts = self.counts + indices.flatten().bincount(minlength=len(self.counts))

    @override
    def compute(self) -> Tensor:
        return perplexity(self.counts)


class Autoencoder(AdversarialModule):
    """Autoencoder trained with ``pixel_weight * L1 + loss_weight * LPIPS``, the bottleneck's loss and a discriminator.

    Its steps return images for `PerceptualScores`; it logs ``val/latent_std`` and, with a codebook,
    ``val/perplexity`` (and ``test/...``). Validation, test and prediction use the exponential moving average (EMA) of
    the weights, and the mean of the latents' distribution.

    All arguments are plain values, so a checkpoint loads with ``weights_only=True`` and contains the loss settings. Its
    state holds the network, its average and the discriminator, not the backbone of LPIPS.

    Args:
        latent: ``"kl"`` for a normal distribution of every latent value, ``"vq"`` for a codebook.
        channels: Channels of the levels; each but the last halves the size. Three give the factor 4.
        blocks: Residual blocks of a level of encoder and decoder.
        latent_channels: Channels of the latents.
        codes: Size of the codebook of ``"vq"``.
        kl_weight: Weight of the KL divergence of ``"kl"``, in nats per latent value.
        codebook_weight: Weight of the codebook's loss of ``"vq"``.
        commitment_weight: Weight of the encoder's distance to its codes, in that loss.
        ema_decay: Decay of the average of the weights (EMA), per step; 0 for none.
        pixel_loss: ``"l1"``, or ``"l2"`` for the squared error; images on [0, 1].
        pixel_weight: Weight of the pixel loss.
        loss_weight: Weight of LPIPS in the loss; 0 trains without it.
        loss_net: Network of the loss.
        loss_calibrated: False for the uncalibrated distance ("baseline" in the paper).
        loss_weights: Backbone weights of the loss: a path, ``"random"``, or None for torchvision's.
        adversarial_weight: Weight of the adversarial loss, relative to the gradient of the others; 0 for none.
        adversarial_start: Steps without adversarial loss.
        discriminator_layers: Convolutions of stride 2 of the discriminator.
        discriminator_channels: Channels of its first layer.
        discriminator_lr: Highest learning rate of the discriminator.
        lr: Highest learning rate of AdamW.
        warmup_steps: Linear warm-up to `lr`; then cosine decay to 0.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        latent: LatentKind = "kl",
        channels: Sequence[int] = (24, 48, 64),
        blocks: int = 1,
        latent_channels: int = 4,
        codes: int = 1024,
        kl_weight: float = 1e-4,
        codebook_weight: float = 1.0,
        commitment_weight: float = 0.25,
        ema_decay: float = 0.99,
        pixel_loss: PixelLoss = "l1",
        pixel_weight: float = 1.0,
        loss_weight: float = 0.5,
        loss_net: str = "embedded",
        loss_calibrated: bool = True,
        loss_weights: str | None = None,
        adversarial_weight: float = 0.2,
        adversarial_start: int = 300,
        discriminator_layers: int = 2,
        discriminator_channels: int = 32,
        discriminator_lr: float = 1e-3,
        lr: float = 1e-3,
        warmup_steps: int = 50,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        _check(self.hparams)
        bottleneck: Bottleneck = GaussianBottleneck(latent_channels, kl_weight)
        if latent == "vq":
            bottleneck = VectorQuantizer(latent_channels, codes, commitment_weight, codebook_weight)
        network = AutoencoderNetwork(channels, blocks, bottleneck, latent_channels)
        self.network = network.to(memory_format=torch.channels_last)
        self.ema: AveragedModel | None = None
        if ema_decay:
            self.ema = AveragedModel(self.network, multi_avg_fn=get_ema_multi_avg_fn(ema_decay)).requires_grad_(False)
        self.perceptual: PerceptualLoss | None = None
        self.scores: Any = nn.ModuleDict({stage: self._new_scores() for stage in ("val", "test")})
        self.add_discriminator()

    def _new_scores(self) -> nn.ModuleDict:
        scores: dict[str, nn.Module] = {"latent_std": LatentStd()}
        if self.hparams["latent"] == "vq":
            scores["perplexity"] = CodePerplexity(self.hparams["codes"])
        return nn.ModuleDict(scores)

    @override
    def setup(self, stage: str) -> None:
        # Not in __init__, so that a checkpoint loads and encodes images without backbone weights.
        if stage == "fit" and self.perceptual is None:
            self.perceptual = perceptual_loss(self.hparams)

    @property
    def averaged(self) -> AutoencoderNetwork:
        """The network of validation, test and prediction: the average of the weights, or the weights themselves."""
        return self.network if self.ema is None else cast("AutoencoderNetwork", self.ema.module)

    def encode(self, images: Tensor) -> Tensor:
        """Latents of images, without noise; of ``"vq"``, the codes, of unit length.

        Args:
            images: Shape ``(N, 3, H, W)``, range [0, 1], any size; the last row and column are repeated up to a
                multiple of the factor f.

        Returns:
            Shape ``(N, latent_channels, ceil(H / f), ceil(W / f))``, float32.
        """
        return self.averaged.encode(images)

    def decode(self, latents: Tensor) -> Tensor:
        """Images of latents.

        Args:
            latents: Shape ``(N, latent_channels, h, w)``, as from `encode`.

        Returns:
            Shape ``(N, 3, h * f, w * f)``, float32, range [0, 1].
        """
        return self.averaged.decode(latents).clamp(0, 1)

    @override
    def forward(self, images: Tensor) -> Tensor:
        """Encode and decode images ``(N, 3, H, W)`` on [0, 1] of any size; the result is on [0, 1]."""
        height, width = images.shape[-2:]
        return self.decode(self.encode(images))[..., :height, :width]

    def losses(self, images: Tensor) -> dict[str, Tensor]:
        """Loss terms of a batch: ``train/loss`` is the weighted sum, ``train/perceptual`` is LPIPS times its weight."""
        return self._losses(self.network(images), images)

    def _losses(self, made: Autoencoding, images: Tensor) -> dict[str, Tensor]:
        options, latent = self.hparams, made.latent
        kind = options["pixel_loss"]
        parts = {f"train/{kind}": _PIXEL_LOSSES[kind](made.images, images)}
        loss = options["pixel_weight"] * parts[f"train/{kind}"] + latent.loss
        if self.perceptual is not None and self.perceptual.weight:
            # Clamp for the backbone; the pixel loss penalizes values outside the range.
            parts["train/perceptual"] = self.perceptual(made.images.clamp(0, 1), images)
            loss = loss + parts["train/perceptual"]
        return {"train/loss": loss, **parts, **{f"train/{name}": value for name, value in latent.terms.items()}}

    @override
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images = batch[0]
        made = self.network(images)
        # The bottleneck's loss does not depend on the last layer, so that the adaptive weight is that of the images'.
        losses = self.with_adversarial(self._losses(made, images), made.images, images, self.network.last_layer)
        self.log_dict({name: value.detach() for name, value in losses.items()}, prog_bar=True)
        return losses["train/loss"]

    @override
    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        # Not in on_train_batch_end, which comes after that of ModelCheckpoint.
        if self.ema is not None:
            self.ema.update_parameters(self.network)

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
    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self(batch[0])

    def _score(self, batch: Batch, stage: str) -> dict[str, Tensor]:
        images = batch[0]
        latents = self.encode(images)
        # Exclude images that a DistributedSampler repeats; they come last.
        counted = latents[: len(dataset_indices(self.trainer, 0, self.seen, len(images)))]
        self.seen += len(images)
        scores = self.scores[stage]
        scores["latent_std"].update(counted)
        if "perplexity" in scores:
            codebook: Any = self.averaged.bottleneck
            scores["perplexity"].update(codebook.nearest(counted))
        self.log_dict({f"{stage}/{name}": score for name, score in scores.items()}, on_step=False, on_epoch=True)
        height, width = images.shape[-2:]
        return {"preds": self.decode(latents)[..., :height, :width], "target": images}

    @override
    def configure_optimizers(self) -> Any:
        optimizer = self.adam(self.network.parameters())
        return warmup_cosine(self, optimizer, self.hparams["warmup_steps"])

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        state = checkpoint["state_dict"]
        if self.ema is None:
            for name in [name for name in state if name.startswith("ema.")]:
                del state[name]


class AutoencoderCLI(ImageRecipeCLI):
    """CLI of the image recipes."""


def main(args: list[str] | None = None) -> None:
    """Run the recipe: ``fit``, ``validate``, ``test``, ``predict`` or ``tradeoff``; defaults from the YAML file.

    Args:
        args: Command line without the program name; None takes ``sys.argv``.
    """
    run_recipe(AutoencoderCLI, Autoencoder, AutoencoderData, __file__, args)


def _check(options: Any) -> None:
    for argument, kinds in (("latent", get_args(LatentKind)), ("pixel_loss", get_args(PixelLoss))):
        if options[argument] not in kinds:
            raise ValueError(f"{argument}: expected one of {kinds}, got {options[argument]!r}")
    if len(options["channels"]) < 2 or min(options["channels"]) < 1:
        raise ValueError(f"channels: expected two levels or more, of at least 1, got {list(options['channels'])}")
    for argument, fewest in (("blocks", 1), ("latent_channels", 1), ("codes", 2)):
        if options[argument] < fewest:
            raise ValueError(f"{argument}: expected at least {fewest}, got {options[argument]}")
    for argument in ("kl_weight", "codebook_weight", "commitment_weight", "pixel_weight"):
        if options[argument] < 0:
            raise ValueError(f"{argument}: expected at least 0, got {options[argument]}")
    if not 0 <= options["ema_decay"] < 1:
        raise ValueError(f"ema_decay: expected a number in [0, 1), got {options['ema_decay']}")
