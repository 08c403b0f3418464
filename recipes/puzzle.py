"""Trains a backbone without labels to solve puzzles: nine tiles of a photograph, in one of several known orders.

    lpips-lightning puzzle fit --data.folder Kodak     # a backbone file, for LPIPS(weights=FILE)

Noroozi and Favaro 2016, "Unsupervised Learning of Visual Representations by Solving Jigsaw Puzzles"
(arXiv:1603.09246): every tile passes through the same backbone, then the nine results together tell the order. Gaps
between the tiles, shifted color channels, gray puzzles, and a mean and standard deviation equal for all tiles keep the
network from matching borders, chromatic aberration or brightness.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torchmetrics.classification import MulticlassAccuracy
from typing_extensions import override

from lpips_lightning._lightning import LightningModule
from lpips_lightning.backbones.caffe_alexnet import CaffeAlexNet
from lpips_lightning.recipes.command import run_recipe
from lpips_lightning.recipes.optimization import warmup_cosine
from lpips_lightning.recipes.self_supervised import (
    SMALLEST_SIDE,
    PhotographCrops,
    SelfSupervisedCLI,
    Start,
    check_start,
    new_alexnet,
    parameter_groups,
    start_from_kmeans,
    to_unit,
)

_TILES = 9
_CANDIDATES = 20_000  # permutations to choose from
_LEAST_CONTRAST = 0.02  # of a tile on [0, 1]; keeps the noise of a clear sky small


class Puzzle(LightningModule):
    """Solves puzzles of 3 x 3 tiles; logs ``val/accuracy``, which is 1 / `permutations` by chance.

    All arguments are plain values, so a checkpoint loads with ``weights_only=True``.

    Args:
        width: Channels of the backbone, in units of AlexNet's.
        start: Filters before the training: ``"kmeans"``, by stacked k-means on training crops (arXiv:1511.06856), or
            ``"random"``.
        tile: Side of a tile in pixels; below a third of the crops, so that there are gaps.
        permutations: Number of orders to tell apart.
        channel_shift: In training, red, green and blue are shifted by up to so many pixels each.
        gray: Fraction of training puzzles without color.
        hidden: Outputs of the hidden layer for each tile, and half of those for all tiles.
        lr: Highest learning rate of AdamW, but of the backbone.
        backbone_lr: Highest learning rate of the backbone; higher ones undo the start.
        weight_decay: Weight decay of AdamW.
        warmup_steps: Linear warm-up; then cosine decay to 0.
        seed: Seed of the permutations.

    Raises:
        ValueError: If `permutations` or `tile` is out of range.
    """

    def __init__(
        self,
        width: float = 0.5,
        start: Start = "kmeans",
        tile: int = 64,
        permutations: int = 24,
        channel_shift: int = 2,
        gray: float = 0.3,
        hidden: int = 256,
        lr: float = 1e-3,
        backbone_lr: float = 1e-4,
        weight_decay: float = 1e-2,
        warmup_steps: int = 50,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_start(start)
        self.save_hyperparameters()
        self.backbone = new_alexnet(width, std=(60.0, 60.0, 60.0), normalization="batch", lrn=False)
        if tile < SMALLEST_SIDE:
            raise ValueError(f"tile: expected at least {SMALLEST_SIDE}, got {tile}")
        with torch.device("meta"):
            outputs = CaffeAlexNet(**self.backbone.settings).eval().features(torch.empty(1, 3, tile, tile)).numel()
        self.of_tile = nn.Sequential(nn.Flatten(), nn.Linear(outputs, hidden), nn.BatchNorm1d(hidden), nn.ReLU())
        self.of_all = nn.Sequential(
            nn.Linear(_TILES * hidden, 2 * hidden),
            nn.BatchNorm1d(2 * hidden),
            nn.ReLU(),
            nn.Linear(2 * hidden, permutations),
        )
        self.register_buffer("orders", distant_permutations(permutations, seed), persistent=False)
        self.orders: Tensor
        self.val_accuracy = MulticlassAccuracy(permutations, average="micro")

    @override
    def forward(self, tiles: Tensor) -> Tensor:
        """Logits of the orders ``(N, permutations)``, for tiles ``(N, 9, 3, tile, tile)`` from `normalized`."""
        features = self.of_tile(self.backbone.features(tiles.flatten(0, 1)))
        return self.of_all(features.unflatten(0, (-1, _TILES)).flatten(1))

    @override
    def on_fit_start(self) -> None:
        if self.hparams["start"] == "kmeans":
            start_from_kmeans(self.trainer, self.backbone)

    @override
    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        images, options = to_unit(batch), self.hparams
        count, device = len(images), images.device
        slack = gap(images, options["tile"])
        offsets = torch.randint(slack + 1, (count, _TILES, 2), device=device)
        most = options["channel_shift"]
        shift = torch.randint(-most, most + 1, (count, 3, 2), device=device)
        is_gray = torch.rand(count, 1, 1, 1, device=device) < options["gray"]
        images = torch.where(is_gray, images.mean(1, keepdim=True), images)
        order = torch.randint(options["permutations"], (count,), device=device)
        logits = self(self._shuffled(tiles_of(images, options["tile"], offsets, shift), order))
        loss = F.cross_entropy(logits, order)
        self.log("train/loss", loss.detach(), prog_bar=True)
        self.log("train/accuracy", (logits.argmax(1) == order).float().mean())
        return loss

    @override
    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        images = to_unit(batch)
        generator = Generator().manual_seed(batch_idx)  # the same puzzles in every epoch
        order = torch.randint(self.hparams["permutations"], (len(images),), generator=generator).to(self.device)
        logits = self(self._shuffled(tiles_of(images, self.hparams["tile"]), order))
        self.val_accuracy.update(logits, order)
        self.log("val/accuracy", self.val_accuracy, prog_bar=True)
        self.log("val/loss", F.cross_entropy(logits, order), sync_dist=True)

    def _shuffled(self, tiles: Tensor, order: Tensor) -> Tensor:
        """Normalized tiles of every puzzle, in its order."""
        rows = torch.arange(len(tiles), device=tiles.device)[:, None]
        return normalized(tiles)[rows, self.orders[order]]

    @override
    def configure_optimizers(self) -> Any:
        options = self.hparams
        groups = parameter_groups(self, options["lr"], options["backbone_lr"])
        optimizer = torch.optim.AdamW(groups, weight_decay=options["weight_decay"])
        return warmup_cosine(self, optimizer, options["warmup_steps"])


def gap(images: Tensor, tile: int) -> int:
    """Pixels by which a third of the images is larger than a tile.

    Raises:
        ValueError: If it is smaller.
    """
    third = min(images.shape[-2:]) // 3
    if tile > third:
        raise ValueError(
            f"tile: expected at most {third}, a third of the crops' side, got {tile}; raise --data.crop_size"
        )
    return third - tile


def tiles_of(images: Tensor, tile: int, offsets: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
    """Cut images into 3 x 3 tiles.

    Args:
        images: Shape ``(N, C, S, S)``.
        tile: Side of a tile.
        offsets: Position of every tile in its ninth of the image, ``(N, 9, 2)``, from 0 to `gap`; None for the middle.
        shift: Added to the position in every channel, ``(N, C, 2)``; at the border of the image, less.

    Returns:
        Shape ``(N, 9, C, tile, tile)``, row by row.

    Raises:
        ValueError: If a tile is larger than a third of the image.

    Example:
        >>> tiles_of(torch.arange(36.0).view(1, 1, 6, 6), tile=1).flatten()
        tensor([ 0.,  2.,  4., 12., 14., 16., 24., 26., 28.])
    """
    slack, (count, channels) = gap(images, tile), images.shape[:2]
    device = images.device
    ninths = (slack + tile) * torch.cartesian_prod(torch.arange(3, device=device), torch.arange(3, device=device))
    corners = ninths[None, :, None] + (slack // 2 if offsets is None else offsets[:, :, None])
    if shift is not None:
        corners = corners + shift[:, None]
    side = torch.tensor(images.shape[-2:], device=device)
    corners = torch.minimum(corners.clamp(min=0), side - tile)
    along = torch.arange(tile, device=device)
    rows, columns = (corners[..., axis, None] + along for axis in (0, 1))  # (N, 9, C, tile)
    image, channel = torch.arange(count, device=device).view(-1, 1, 1, 1, 1), torch.arange(channels, device=device)
    return images[image, channel.view(1, 1, -1, 1, 1), rows[..., :, None], columns[..., None, :]]


def normalized(tiles: Tensor) -> Tensor:
    """Scale every channel of every tile ``(..., tile, tile)`` to mean 0 and standard deviation 1."""
    mean = tiles.mean((-2, -1), keepdim=True)
    deviation = (tiles - mean).square().mean((-2, -1), keepdim=True).sqrt()
    return (tiles - mean) / (deviation + _LEAST_CONTRAST)


def distant_permutations(count: int, seed: int) -> Tensor:
    """Permutations of nine tiles that differ from each other in as many places as possible, chosen one by one.

    Args:
        count: Number of permutations.
        seed: Equal seeds give equal permutations.

    Returns:
        Shape ``(count, 9)``, int64; each row holds 0 to 8.

    Raises:
        ValueError: If there are not so many.

    Example:
        >>> orders = distant_permutations(9, seed=0)
        >>> min(int((orders[i] != orders[j]).sum()) for i in range(9) for j in range(i))
        8
    """
    if not 2 <= count <= 1000:
        raise ValueError(f"permutations: expected 2 to 1000, got {count}")
    generator = Generator("cpu").manual_seed(seed)
    with torch.device("cpu"):
        candidates = torch.rand(_CANDIDATES, _TILES, generator=generator).argsort(1)
        chosen = [candidates[0]]
        nearest = torch.full((_CANDIDATES,), _TILES)
        for _ in range(count - 1):
            nearest = torch.minimum(nearest, (candidates != chosen[-1]).sum(1))
            chosen.append(candidates[nearest.argmax()])
    return torch.stack(chosen)


def main(args: list[str] | None = None) -> None:
    """Run the recipe: ``fit`` or ``validate``, with defaults from ``puzzle.yaml``.

    Args:
        args: Command line without the program name; None takes ``sys.argv``.
    """
    run_recipe(SelfSupervisedCLI, Puzzle, PhotographCrops, __file__, args)
