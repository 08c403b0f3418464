"""Image files: listing, reading as upright 8-bit RGB, writing."""

from __future__ import annotations

import io
import re
import warnings
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from lpips_lightning.io.atomic import atomic_write
from lpips_lightning.io.image_decoding import printable, read_header, read_pixels
from lpips_lightning.io.image_folders import (
    HIDDEN,
    USUAL_SUFFIXES,
    check_any_image,
    count_of,
    describe_left_out,
    list_images,
)


def find_images(folder: str | Path) -> dict[str, Path]:
    """Image files below `folder` by name, sorted by path; the name is the relative path without suffix.

    Searches recursively, follows links, and skips hidden files and folders. Files of every format in
    `lpips_lightning.io.image_formats` count, also without a suffix. A warning names and counts all others.

    Raises:
        FileNotFoundError: If `folder` does not exist or contains no image.
        ValueError: If two files have the same name (``a.png`` and ``a.jpg``).
    """
    found = list_images(folder)
    check_any_image(found, folder)
    left_out = {name: reason for name, reason in found.left_out.items() if reason != HIDDEN}
    if left_out:
        warnings.warn(
            f"folder: {count_of(len(left_out), 'file')} in '{printable(folder)}' left out:"
            f" {describe_left_out(left_out)}",
            stacklevel=2,
        )
    return found.images


def natural_order(name: str) -> list[tuple[int, str]]:
    """Sort key that compares the numbers in a file name by value.

    Example:
        >>> sorted(["f10", "f9", "f009"], key=natural_order)
        ['f009', 'f9', 'f10']
    """
    parts = re.split(r"(\d+)", name)
    return [*((int(part), "") if part.isdecimal() else (-1, part) for part in parts), (-1, name)]


def image_size(path: str | Path) -> tuple[int, int]:
    """Height and width of the upright image, from the file header.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the file is not an image, or is not supported.
    """
    return read_header(path).size


def read_image(path: str | Path, *, keep_alpha: bool = False, content: bytes | None = None) -> Tensor:
    """Read an image as upright 8-bit RGB.

    Repeats gray to three channels, resolves palettes, rounds 16 bits per channel to 8, and composites transparent
    pixels over white. `lpips_lightning.io.image_decoding` lists unsupported files.

    Args:
        path: The file.
        keep_alpha: Return the alpha channel, if there is one, instead of compositing over white.
        content: Its bytes, if they have been read; then `path` is only named in errors.

    Returns:
        Shape ``(3, H, W)``, or ``(4, H, W)`` with alpha, dtype ``uint8``, range [0, 255].

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the file is not an image, is damaged, or is not supported.
    """
    pixels = read_pixels(path, content)
    if pixels.dtype == np.uint16:
        pixels = ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if pixels.shape[2] == 4 and not keep_alpha:
        layer = Image.fromarray(pixels)
        flat = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
        pixels = np.asarray(flat)
    return torch.from_numpy(np.array(pixels.transpose(2, 0, 1), order="C"))


def resize_image(image: Tensor, size: int | None) -> Tensor:
    """Resize the shorter side to `size` (Pillow's bilinear filter) and center-crop the longer one.

    Square images equal those of the reference's loader (torchvision's ``Resize`` on a Pillow image).

    Args:
        image: Shape ``(3, H, W)``, dtype ``uint8``.
        size: Output side in pixels; None returns the image unchanged.

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
    """Write an image file atomically; missing folders are created.

    Args:
        image: Shape ``(3, H, W)``; floating in [0, 1] (clamped and rounded) or ``uint8`` in [0, 255].
        path: Output file; the suffix selects the format.

    Raises:
        ValueError: If the shape is not ``(3, H, W)``, or the suffix is unknown.
        OSError: If the file cannot be written.
    """
    form = Image.registered_extensions().get(Path(path).suffix.lower())
    if form not in Image.SAVE:
        raise ValueError(f"path: expected a file that ends in one of {USUAL_SUFFIXES}, got '{path}'")
    if image.ndim != 3 or image.shape[0] != 3:
        raise ValueError(f"image: expected shape (3, H, W), got {tuple(image.shape)}")
    if image.is_floating_point():
        image = image.detach().float().clamp(0, 1).mul(255).round().to(torch.uint8)
    # Encode to memory first: Pillow's encoders (JPEG and others) do not notice short writes on a full disk.
    content = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).cpu().numpy()).save(content, form)
    with atomic_write(path) as temporary:
        temporary.write_bytes(content.getbuffer())


def to_pixels(image: Tensor, data_range: tuple[float, float]) -> npt.NDArray[np.uint8]:
    """Convert an image to uint8, clamped and rounded; NaN becomes black.

    Args:
        image: ``(3, H, W)``, or gray ``(1, H, W)``; floating on `data_range` or uint8 on [0, 255].
        data_range: ``(low, high)``.

    Returns:
        Shape ``(H, W, 3)``.
    """
    if image.dtype != torch.uint8:
        low, high = data_range
        image = ((image.float() - low) * (255 / (high - low))).nan_to_num(0).round().clamp(0, 255).to(torch.uint8)
    return image.expand(3, -1, -1).permute(1, 2, 0).contiguous().cpu().numpy()
