"""What the recipes of self-supervised backbones share: photographs, a small AlexNet, its file, the command line.

`split_brain`, `puzzle` and `bigan` train a `CaffeAlexNet` without labels. Their models have it as ``backbone``, and
`BackboneFile` writes it at the end, for ``LPIPS(weights=FILE)``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import torch
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.cli import LightningArgumentParser
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics import Metric
from typing_extensions import override

from lpips_lightning import __version__
from lpips_lightning._lightning import Callback, LightningModule, MisconfigurationException
from lpips_lightning.backbones.caffe_alexnet import CaffeAlexNet
from lpips_lightning.backbones.caffe_file import write_caffe_alexnet
from lpips_lightning.batch import SUM_DTYPE
from lpips_lightning.calibration.kmeans import initialize_layer
from lpips_lightning.callbacks._loggers import log_folder
from lpips_lightning.callbacks.calibration_file import check_tensor_file
from lpips_lightning.recipes.command import RecipeCLI
from lpips_lightning.recipes.held_out import HeldOut
from lpips_lightning.recipes.photograph_crops import Crops
from lpips_lightning.recipes.photographs import split_images
from lpips_lightning.recipes.split_data_module import SplitDataModule

CHANNELS = (96, 256, 384, 384, 256)
"""Channels of the five convolutions at width 1."""

SMALLEST_SIDE = 23
"""Side of the smallest images, in pixels, for which an AlexNet of the recipes has an output."""

Start = Literal["kmeans", "random"]
"""Filters before the training: stacked k-means, or random."""

_VAL_SEED = 1  # of the validation crops, which are the same in every run
_START_SEED, _START_CROPS = 2, 64  # of k-means
# Regularization of k-means. With 0.1, 2AFC on data judged by vgg is lower: 78.8 % instead of 82.8 % for a backbone of
# the puzzles' kind, width 0.5, before its training (2026-11-28).
_WHITENING = 0.02


class PhotographCrops(SplitDataModule):
    """Random crops of photographs to train on, fixed crops of held-out ones to validate.

    Batches are uint8, ``(N, 3, crop_size, crop_size)``.

    Args:
        folder: Folder of photographs, searched recursively; None for those that come with scikit-image.
        held_out: Names (files without suffix) for validation; None for "astronaut" of scikit-image's photographs, or
            an automatic split of `folder` (see `HeldOut`), which is printed.
        val_folder: Folder for validation instead of `held_out`.
        crop_size: Side of a crop in pixels.
        zoom: Crops have up to `zoom` times this side before they are resized to it.
        epoch_size: Training crops per epoch.
        val_size: Validation crops.
        batch_size: Crops per batch.
        num_workers: Worker processes; 0 suits cached photographs.
        cache: Keep decoded photographs in memory (3 bytes per pixel) instead of reading files at each access.

    Raises:
        ValueError: If a size or a name is invalid (checks that need the files: in ``setup``).
        FileNotFoundError: If a folder does not exist or has no image (in ``setup``).
    """

    def __init__(
        self,
        folder: str | None = None,
        held_out: list[str] | None = None,
        val_folder: str | None = None,
        crop_size: int = 128,
        zoom: float = 2.0,
        epoch_size: int = 4096,
        val_size: int = 256,
        batch_size: int = 32,
        num_workers: int = 0,
        cache: bool = True,
    ) -> None:
        super().__init__()
        counts = {"crop_size": crop_size, "epoch_size": epoch_size, "val_size": val_size, "batch_size": batch_size}
        for argument, count in counts.items():
            if count < 1:
                raise ValueError(f"{argument}: expected at least 1, got {count}")
        if zoom < 1:
            raise ValueError(f"zoom: expected at least 1, got {zoom}")
        self.folder, self.held_out, self.val_folder = folder, held_out, val_folder
        self._choice = HeldOut(held_out)
        self.crop_size, self.zoom, self.cache = crop_size, zoom, cache
        self.epoch_size, self.val_size = epoch_size, val_size
        self.batch_size, self.num_workers = batch_size, num_workers
        self.trained_on: list[str] = []
        self.validated_on: list[str] = []

    @override
    def setup(self, stage: str) -> None:
        train, held_out = split_images(self.folder, self._choice, self.val_folder, "astronaut")
        self.trained_on, self.validated_on = list(train), list(held_out)
        size, zoom, cache = self.crop_size, self.zoom, self.cache
        if stage == "fit":
            self.train_data = Crops(train.values(), size, zoom, self.epoch_size, cache)
        self.val_data = Crops(held_out.values(), size, zoom, self.val_size, cache, seed=_VAL_SEED)

    def start_crops(self) -> Tensor:
        """The same crops of training photographs in every run, for `start_from_kmeans`."""
        crops = Crops(self.train_data.files, self.crop_size, self.zoom, _START_CROPS, False, seed=_START_SEED)
        return torch.stack([crops[number] for number in range(len(crops))])

    @override
    def train_dataloader(self) -> DataLoader[Tensor]:
        return self._loader(
            self.train_data, self.batch_size, shuffle=True, drop_last=self.epoch_size >= self.batch_size
        )

    @override
    def val_dataloader(self) -> DataLoader[Tensor]:
        return self._loader(self.val_data, self.batch_size)


def new_alexnet(width: float, **variant: Any) -> CaffeAlexNet:
    """An AlexNet with `width` times the channels, in multiples of 4, and random weights (He et al. 2015, fan-in).

    Args:
        width: Factor of `CHANNELS`.
        variant: Further arguments of `CaffeAlexNet`.

    Raises:
        ValueError: If `width` is not positive.

    Example:
        >>> new_alexnet(0.25).channels
        (24, 64, 96, 96, 64)
    """
    if not width > 0:
        raise ValueError(f"width: expected a positive number, got {width}")
    backbone = CaffeAlexNet([max(1, round(width * channels / 4)) * 4 for channels in CHANNELS], **variant)
    for index in backbone.convolutions:
        convolution = cast("nn.Conv2d", backbone.features[index])
        nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
        nn.init.zeros_(cast("Tensor", convolution.bias))
    return backbone.to(memory_format=torch.channels_last)


def check_start(start: str) -> None:
    """Raise a ValueError unless `start` is one of `Start`."""
    if start not in get_args(Start):
        raise ValueError(f"start: expected one of {', '.join(map(repr, get_args(Start)))}, got {start!r}")


@torch.no_grad()
def start_from_kmeans(
    trainer: Trainer, backbone: CaffeAlexNet, blocks: Sequence[tuple[slice, slice]] | None = None
) -> None:
    """Set the filters of a backbone by stacked k-means on training crops, unless the training resumes.

    See `lpips_lightning.calibration.kmeans`: a layer's filters are cluster centers of its whitened input patches, and
    its outputs have mean 0 and variance 1.

    Args:
        trainer: Trainer whose data module is `PhotographCrops`.
        backbone: The backbone, without LRN.
        blocks: Of the first convolution, the input channels that each part of the output channels sees.
    """
    data = getattr(trainer, "datamodule", None)
    if trainer.ckpt_path is not None or not isinstance(data, PhotographCrops):
        return
    device = next(backbone.parameters()).device
    backbone.to("cpu")
    generator = torch.Generator().manual_seed(_START_SEED)
    inputs = backbone.preprocess(to_unit(data.start_crops()))
    for index, layer in enumerate(backbone.features):
        if isinstance(layer, nn.Conv2d):
            parts = blocks if index == 0 else None
            initialize_layer(layer, inputs, generator, patches=8000, iterations=6, fraction=_WHITENING, blocks=parts)
        is_training, layer.training = layer.training, False
        inputs = torch.cat([layer(part) for part in inputs.split(16)])
        layer.training = is_training
    backbone.to(device)


class RelativeError(Metric):
    """Squared error of predictions, divided by that of the targets' mean: 1 is no better than the mean.

    Predictions and targets have the shape ``(N, columns)``; errors are added over all columns, then divided.

    Args:
        columns: Number of columns.

    Example:
        >>> metric = RelativeError(1)
        >>> target = torch.tensor([[0.0], [1.0], [2.0]])
        >>> metric(torch.full((3, 1), 1.0), target), metric(target, target)
        (tensor(1.), tensor(0.))
    """

    full_state_update = False
    higher_is_better = False
    if TYPE_CHECKING:  # torch.jit.script reads annotations of attributes, and these are strings
        error: Tensor
        count: Tensor
        total: Tensor
        squares: Tensor

    def __init__(self, columns: int) -> None:
        super().__init__()
        for name, shape in (("error", ()), ("count", ()), ("total", (columns,)), ("squares", (columns,))):
            self.add_state(name, torch.zeros(shape, dtype=SUM_DTYPE), dist_reduce_fx="sum")

    @override
    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add rows, ``(N, columns)``."""
        # Not in place: the state may be an inference tensor, since a Trainer's validate resets it in inference mode.
        preds, target = preds.to(SUM_DTYPE), target.to(SUM_DTYPE)
        self.error = self.error + (preds - target).square().sum()
        self.count = self.count + len(target)
        self.total = self.total + target.sum(0)
        self.squares = self.squares + target.square().sum(0)

    @override
    def compute(self) -> Tensor:
        about_mean = self.squares - self.total.square() / self.count
        return (self.error / about_mean.sum()).float()


def to_unit(images: Tensor) -> Tensor:
    """Images on [0, 1], from those or from uint8."""
    return images if images.is_floating_point() else images.float() / 255


def parameter_groups(module: LightningModule, lr: float, backbone_lr: float) -> list[dict[str, Any]]:
    """All parameters for an optimizer: those of the backbone, and the others.

    Args:
        module: Model with a ``backbone``.
        lr: Learning rate of the others.
        backbone_lr: Learning rate of the backbone.
    """
    backbone = list(cast("CaffeAlexNet", module.backbone).parameters())
    known = set(map(id, backbone))
    others = [parameter for parameter in module.parameters() if id(parameter) not in known]
    return [{"params": backbone, "lr": backbone_lr}, {"params": others, "lr": lr}]


class BackboneFile(Callback):
    """Writes the backbone and its record at the end of training.

    Args:
        path: A ``.safetensors`` file, written atomically; its folder is created if missing. None for
            ``backbone.safetensors`` in the log folder, which is a new one for every run.

    Attributes:
        written: The file, once it is written.
    """

    def __init__(self, path: str | None = None) -> None:
        self.path = path
        self.written: Path | None = None

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not isinstance(getattr(pl_module, "backbone", None), CaffeAlexNet):
            kind = type(pl_module).__name__
            raise MisconfigurationException(
                f"BackboneFile: expected a model with a CaffeAlexNet as backbone, got {kind}"
            )
        if self.path is not None:
            check_tensor_file(self.path)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero or getattr(trainer, "fast_dev_run", False):
            return
        path = self.path or log_folder(trainer, trainer.logger) / "backbone.safetensors"
        backbone = cast("CaffeAlexNet", pl_module.backbone)
        self.written = write_caffe_alexnet(path, backbone, _method(pl_module), _record(trainer, pl_module))


def _method(module: LightningModule) -> str:
    """Name of the method: ``split-brain`` for a model of ``split_brain.py``."""
    name = type(module).__module__.rpartition(".")[2]
    if name == "__main__":  # a file of the user's
        name = Path(sys.argv[0]).stem
    return name.replace("_", "-")


def _record(trainer: Trainer, module: LightningModule) -> dict[str, Any]:
    """How a backbone was made: settings, photographs and validation scores."""
    data: Any = getattr(trainer, "datamodule", None)
    scores = trainer.callback_metrics.items()
    return {
        "lpips_lightning": __version__,
        "options": dict(module.hparams),
        "steps": trainer.global_step,
        "data": getattr(data, "trained_on", None),
        "held_out": getattr(data, "validated_on", None),
        "scores": {name: round(float(value), 4) for name, value in scores if name.startswith("val/")},
        "date": date.today().isoformat(),
    }


class SelfSupervisedCLI(RecipeCLI):
    """Adds ``--checkpoint.*`` (ModelCheckpoint) and ``--file.path``."""

    outputs = (("file.path", "fit"),)

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.add_lightning_class_args(BackboneFile, "file")

    @override
    def reference_models(self) -> dict[str, LightningModule]:
        return {"untrained": self.model}

    @override
    def written_files(self) -> list[tuple[Path, str]]:
        written = self._get(self.config_init, "file").written
        return [] if written is None else [(written, "the backbone")]

    @override
    def next_commands(self, checkpoint: Path) -> list[str]:
        return [f"LPIPS(weights={str(path)!r}) in Python" for path, _ in self.written_files()]
