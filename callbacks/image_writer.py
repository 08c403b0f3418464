"""Writes predicted images as PNG files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning import Trainer
from torch import Tensor
from typing_extensions import override

from lpips_lightning._lightning import BasePredictionWriter, LightningModule
from lpips_lightning.callbacks._loggers import write_png
from lpips_lightning.callbacks._step_outputs import PREDICTION_KEYS, find_names
from lpips_lightning.callers import warn_user
from lpips_lightning.images.hints import UNMASKED
from lpips_lightning.images.ranges import DataRange, RangeChecker, RangeError, check_values, parse_range
from lpips_lightning.io.image_files import to_pixels


def save_image(path: Path, image: Tensor, data_range: tuple[float, float] = (0.0, 1.0)) -> None:
    """Write an image as PNG atomically; missing folders are created.

    Args:
        path: Path of the file; an existing file is overwritten.
        image: ``(C, H, W)``, floating on `data_range` (clamped and rounded) or uint8.
        data_range: ``(low, high)``.
    """
    write_png(path, to_pixels(image, data_range))


class ImageWriter(BasePredictionWriter):
    """Writes each image of ``predict`` to ``<out>/<name>.png``, atomically.

    ``predict_step`` returns images ``(N, 3, H, W)`` or ``(N, 1, H, W)``, or a mapping with them under ``"pred"`` or
    ``"preds"``. Images are clamped to their range and rounded; a warning is issued if the range looks wrong.

    Names are strings, one for each image: under ``"name"`` or ``"names"`` in that mapping or in the batch, or the last
    element of the batch. They may contain slashes. Without names, files have the index of the image in the data set,
    ``000012.png``, on any number of ranks. With several dataloaders, each but the first writes to its own folder,
    ``<out>/dataloader_1`` and so on.

    Args:
        out: Output folder, created if missing; files of the same name are overwritten.
        data_range: Range of the images: ``(low, high)``, or ``high`` alone for ``(0, high)``; uint8 is always on [0,
            255].
        pred_key: Key of the images in the mapping; None for ``"pred"`` or ``"preds"``.

    Raises:
        TypeError: If `data_range` is neither a pair nor a number.
        ValueError: If `data_range` has no low < high.

    Example:
        >>> writer = ImageWriter("out", data_range=(-1, 1))  # of a generator that ends in tanh
        >>> writer.out, writer.data_range
        ('out', (-1.0, 1.0))
    """

    def __init__(
        self, out: str = "outputs/images", *, data_range: DataRange = (0, 1), pred_key: str | None = None
    ) -> None:
        super().__init__(write_interval="batch")
        self.out = out
        self.data_range = parse_range(data_range)
        self.pred_keys = PREDICTION_KEYS if pred_key is None else (pred_key,)
        self._ranges, self._warned = RangeChecker(immediate=True), False
        self._unnamed: dict[int, int] = {}

    @override
    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        images = self._images(prediction)
        self._warn_of_range(images)
        names = _names(prediction, batch, len(images))
        if names is None:
            names = self._numbers(trainer, batch_indices, dataloader_idx, batch_idx, len(images))
        folder = Path(self.out) / (f"dataloader_{dataloader_idx}" if dataloader_idx else "")
        for name, image in zip(names, images, strict=True):
            save_image(folder / _file(name), image, self.data_range)

    def _images(self, prediction: Any) -> Tensor:
        keys = [key for key in self.pred_keys if key in prediction] if isinstance(prediction, Mapping) else []
        images = prediction[keys[0]] if keys else prediction
        if isinstance(images, Tensor) and images.dim() == 4 and images.shape[1] in (1, 3):
            return images.detach()
        found = f"a tensor of shape {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        found = f"the keys {sorted(map(str, images))}" if isinstance(images, Mapping) else found
        wanted = " or ".join(map(repr, self.pred_keys))
        raise MisconfigurationException(
            f"predict_step: expected images (N, 3, H, W), or a mapping with them under {wanted}, got {found}; "
            "return these, or pass another key as pred_key="
        )

    def _warn_of_range(self, images: Tensor) -> None:
        """Warn once if clamping would hide that the images have another range."""
        if self._warned or not images.is_floating_point() or not images.numel():
            return
        low, high = self.data_range
        slack = (high - low) / 2  # a trained network overshoots by less
        lowest, highest = (float(end) for end in images.aminmax())
        if lowest >= low - slack and highest <= high + slack:
            self._ranges.observe(images.clamp(low, high), "predict_step", self.data_range, hints=UNMASKED)
            return
        try:
            check_values(images, "predict_step", self.data_range, UNMASKED)
        except RangeError as error:
            self._warned = True
            warn_user(f"{error}; they are written clamped")

    def _numbers(
        self, trainer: Trainer, indices: Sequence[int] | None, dataloader_idx: int, batch_idx: int, count: int
    ) -> list[str]:
        """Names from indices in the data set; without these, from what this rank wrote before."""
        if indices is not None and len(indices) == count:
            return [f"{index:06d}" for index in indices]
        first = 0 if batch_idx == 0 else self._unnamed.get(dataloader_idx, 0)
        self._unnamed[dataloader_idx] = first + count
        rank = f"rank_{trainer.global_rank}_" if trainer.world_size > 1 else ""
        return [f"{rank}{index:06d}" for index in range(first, first + count)]


def _names(prediction: Any, batch: Any, count: int) -> Sequence[str] | None:
    """The names that come with a batch; None without any."""
    names = find_names(prediction, batch) if isinstance(prediction, Mapping) else find_names(batch)
    if names is not None and not len(names) == len({*names}) == count:
        raise MisconfigurationException(
            f"names: expected {count} different ones, one for each image, got {', '.join(names):.80}; return "
            '{"pred": ..., "name": ...} from predict_step'
        )
    return names


def _file(name: str) -> str:
    """File of a name inside the folder; a name that is the path of another file must not overwrite that."""
    path = PurePath(name)
    if path.is_absolute() or ".." in path.parts or not path.name:
        raise MisconfigurationException(
            f"names: expected names relative to the folder of the images, got {name!r}; give Path(name).stem, or the "
            "path below the folder of the data"
        )
    return name if path.suffix.lower() == ".png" else f"{name}.png"
