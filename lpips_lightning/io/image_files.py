"""Image files: found in a folder, read upright as 8-bit RGB, written."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lpips_lightning.io.atomic import atomic_write
from lpips_lightning.io.image_decoding import read_header, read_pixels

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")


def find_images(folder: str | Path) -> dict[str, Path]:
    """Name and file of every image below `folder`, sorted by path; a name is the path inside it without the suffix.

    Hidden files and folders are left out; files are recognized by their suffix (`IMAGE_SUFFIXES`).

    Raises:
        FileNotFoundError: If `folder` is no folder or holds no image.
        ValueError: If two files share a name (``a.png`` and ``a.jpg``).
    """
    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(f"folder: expected an existing folder of images, got '{folder}'")
    found: dict[str, Path] = {}
    for path in sorted(root.rglob("*")):
        inside = path.relative_to(root)
        hidden = any(part.startswith(".") for part in inside.parts)
        if hidden or path.suffix.lower() not in IMAGE_SUFFIXES or not path.is_file():
            continue
        name = inside.with_suffix("").as_posix()
        if name in found:
            raise ValueError(f"folder: expected one file a name, got '{found[name]}' and '{path}'")
        found[name] = path
    if not found:
        raise FileNotFoundError(f"folder: expected images ({' '.join(IMAGE_SUFFIXES)}), got none in '{folder}'")
    return found


def natural_order(name: str) -> list[tuple[int, str]]:
    """A key that sorts names as people do: numbers in them by value.

    Args:
        name: Of a file.

    Example:
        >>> sorted(["f10", "f9", "f009"], key=natural_order)
        ['f009', 'f9', 'f10']
    """
    parts = re.split(r"(\d+)", name)
    return [*((int(part), "") if part.isdecimal() else (-1, part) for part in parts), (-1, name)]


def image_size(path: str | Path) -> tuple[int, int]:
    """Height and width of the upright image, read from the file's header alone.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is no image, or of a kind that is refused.
    """
    return read_header(path).size


def read_image(path: str | Path, *, keep_alpha: bool = False) -> Tensor:
    """Read an image as 8-bit RGB, turned upright.

    Gray is repeated to three channels, palettes are looked up, 16 bits a channel are rounded to 8, and transparent
    pixels are laid over white; see `lpips_lightning.io.image_decoding` for what is refused.

    Args:
        path: The file.
        keep_alpha: Return the alpha channel of images that have one instead.

    Returns:
        Shape ``(3, H, W)``, or ``(4, H, W)`` with alpha, dtype ``uint8``, range [0, 255].

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not an image, is damaged, or is of a kind that is refused.
    """
    pixels = read_pixels(path)
    if pixels.dtype == np.uint16:
        pixels = ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if pixels.shape[2] == 4 and not keep_alpha:
        layer = Image.fromarray(pixels)
        flat = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
        pixels = np.asarray(flat)
    return torch.from_numpy(np.array(pixels.transpose(2, 0, 1), order="C"))


def resize_image(image: Tensor, size: int | None) -> Tensor:
    """The image as a square: the shorter side resized, bilinear as Pillow does it, the longer one cropped.

    Square images come out as from the reference's loader (torchvision's ``Resize`` on a Pillow image).

    Args:
        image: Shape ``(3, H, W)``, dtype ``uint8``.
        size: None leaves the image as it is.

    Returns:
        Shape ``(3, size, size)``, dtype ``uint8``.
    """
    height, width = image.shape[1:]
    if size is None or (height, width) == (size, size):
        return image
    shorter = min(height, width)
    new = [max(size, round(side * size / shorter)) for side in (width, height)]
    resized = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((new[0], new[1]), Image.Resampling.BILINEAR)
    left, top = (new[0] - size) // 2, (new[1] - size) // 2
    cropped = np.array(resized)[top : top + size, left : left + size]
    return torch.from_numpy(cropped).permute(2, 0, 1).contiguous()


def write_image(image: Tensor, path: str | Path) -> None:
    """Write an image as a file, whole or not at all; folders are made as needed.

    Args:
        image: Shape ``(3, H, W)``; floating in [0, 1] (clamped and rounded) or ``uint8`` in [0, 255].
        path: The suffix chooses the format.

    Raises:
        ValueError: If the shape is not ``(3, H, W)``, or the suffix is that of no format.
        OSError: If it cannot be written.
    """
    form = Image.registered_extensions().get(Path(path).suffix.lower())
    if form not in Image.SAVE:
        raise ValueError(f"path: expected a file that ends in one of {' '.join(IMAGE_SUFFIXES)}, got '{path}'")
    if image.ndim != 3 or image.shape[0] != 3:
        raise ValueError(f"image: expected shape (3, H, W), got {tuple(image.shape)}")
    if image.is_floating_point():
        image = image.detach().float().clamp(0, 1).mul(255).round().to(torch.uint8)
    # To memory first: given a file, Pillow's encoders of JPEG and others do not see that a full disk took a part only.
    content = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).cpu().numpy()).save(content, form)
    with atomic_write(path) as beside:
        beside.write_bytes(content.getbuffer())
