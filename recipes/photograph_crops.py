"""Data sets of photographs that recipes share: random crops, and full images."""

from collections.abc import Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset
from typing_extensions import override

from lpips_lightning.io.image_files import read_image


class Crops(Dataset[Tensor]):
    """Square crops of photographs, mirrored at random, uint8 ``(3, size, size)``.

    A crop has a side of 1 to `zoom` times `size`, limited by the photograph, and is resized to `size`.

    Args:
        files: Files of the photographs.
        size: Side of a crop.
        zoom: Largest side before resizing, in units of `size`.
        length: Number of crops.
        cache: Keep decoded photographs in memory.
        seed: For the same crops in every epoch; None draws new ones from the global generator.
    """

    def __init__(
        self, files: Iterable[Path], size: int, zoom: float, length: int, cache: bool, seed: int | None = None
    ) -> None:
        self.files, self.size, self.zoom, self.length = list(files), size, zoom, length
        self._decoded = [read_image(file) for file in self.files] if cache else None
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        self._draws = None if generator is None else torch.rand(length, 4, generator=generator)

    def __len__(self) -> int:
        return self.length

    @override
    def __getitem__(self, index: int) -> Tensor:
        if not 0 <= index < self.length:
            raise IndexError(f"index: expected 0 to {self.length - 1}, got {index}")
        draws = torch.rand(4) if self._draws is None else self._draws[index]
        zoom, top, left, mirror = draws.tolist()
        number = index % len(self.files)
        photograph = read_image(self.files[number]) if self._decoded is None else self._decoded[number]
        height, width = photograph.shape[1:]
        side = min(round(self.size * self.zoom**zoom), height, width)
        y, x = int(top * (height - side + 1)), int(left * (width - side + 1))
        crop = photograph[None, :, y : y + side, x : x + side]
        if side != self.size:
            crop = F.interpolate(crop, size=(self.size, self.size), mode="bilinear", antialias=True)
        return crop[0].flip(-1) if mirror < 0.5 else crop[0]


class NamedCrops(Dataset[tuple[Tensor, str]]):
    """(crop, name) of `Crops`, on [0, 1].

    Args:
        images: Names and files of the photographs.
        size: See `Crops`.
        zoom: See `Crops`.
        length: See `Crops`.
        cache: See `Crops`.
        seed: See `Crops`.
        swap_channels: Reorder red, green and blue of half of the crops at random.
    """

    def __init__(
        self,
        images: dict[str, Path],
        size: int,
        zoom: float,
        length: int,
        cache: bool,
        seed: int | None = None,
        swap_channels: bool = False,
    ) -> None:
        self.names, self.swap_channels = list(images), swap_channels
        self.crops = Crops(images.values(), size, zoom, length, cache, seed)

    def __len__(self) -> int:
        return len(self.crops)

    @override
    def __getitem__(self, index: int) -> tuple[Tensor, str]:
        crop = self.crops[index].float().div(255)
        if self.swap_channels and torch.rand(()) < 0.5:
            crop = crop[torch.randperm(3)]
        return crop, self.names[index % len(self.names)]


class WholeImages(Dataset[tuple[Tensor, str]]):
    """(image, name) of full images ``(3, H, W)`` on [0, 1]; gray images have three equal channels.

    Args:
        images: Names and files of the photographs.
    """

    def __init__(self, images: dict[str, Path]) -> None:
        self.items = list(images.items())

    def __len__(self) -> int:
        return len(self.items)

    @override
    def __getitem__(self, index: int) -> tuple[Tensor, str]:
        name, file = self.items[index]
        return read_image(file).float().div(255), name
