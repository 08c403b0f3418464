"""Picture files: found in a folder, read upright as 8-bit RGB, written."""

from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor

__all__ = ["IMAGE_SUFFIXES", "find_images", "image_size", "read_image", "resize_image", "write_image"]

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")

# Their colours are plain red, green and blue once decoded; CMYK and LAB need a colour profile to mean anything.
_RGB_LIKE = ("1", "L", "P", "RGB", "RGBX", "YCbCr")
_WITH_ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")


def find_images(folder: str | Path) -> dict[str, Path]:
    """Name and file of every image below `folder`, sorted by path; a name is the path inside it without the suffix.

    Hidden files and folders are left out; files are recognised by their suffix (`IMAGE_SUFFIXES`).

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


def image_size(path: str | Path) -> tuple[int, int]:
    """Height and width of the upright picture, read from the file's header alone.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not an image.
    """
    try:
        with Image.open(path) as image:
            sideways = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
            return (image.width, image.height) if sideways else (image.height, image.width)
    except (UnidentifiedImageError, OSError) as error:
        raise _unreadable(path, error) from error


def read_image(path: str | Path) -> Tensor:
    """Read a picture as 8-bit RGB, turned upright.

    Gray is repeated to three channels, palettes are looked up, 16-bit gray keeps its upper 8 bits (rounded), the EXIF
    orientation is applied, and transparent pixels are laid over white. What has no plain RGB meaning is refused: CMYK,
    LAB and HSV (they need a colour profile) and 32-bit integer or float images (their range is unknown).

    Returns:
        Shape ``(3, H, W)``, dtype ``uint8``, range [0, 255].

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not an image, is damaged, or is of a kind that is refused.
    """
    try:
        with Image.open(path) as image:
            stored_as_png = image.format == "PNG"
            upright = ImageOps.exif_transpose(image)
            upright.load()
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise _unreadable(path, error) from error
    rgb = _to_rgb(upright, stored_as_png)
    if rgb is None:
        raise ValueError(
            f"{path}: expected an RGB, gray, palette or 16-bit gray image, got mode {upright.mode};"
            " convert it to RGB first"
        )
    return torch.from_numpy(np.array(rgb)).permute(2, 0, 1).contiguous()


def resize_image(image: Tensor, size: int | None) -> Tensor:
    """The picture as a square: the shorter side resized, bilinear as Pillow does it, the longer one cropped.

    Square pictures come out as from the reference's loader (torchvision's ``Resize`` on a Pillow image).

    Args:
        image: Shape ``(3, H, W)``, dtype ``uint8``.
        size: None leaves the picture as it is.

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
    """Write a picture as a file; folders are made as needed.

    Args:
        image: Shape ``(3, H, W)``; floating in [0, 1] (clamped and rounded) or ``uint8`` in [0, 255].
        path: The suffix chooses the format.

    Raises:
        ValueError: If the shape is not ``(3, H, W)``.
    """
    if image.ndim != 3 or image.shape[0] != 3:
        raise ValueError(f"image: expected shape (3, H, W), got {tuple(image.shape)}")
    if image.is_floating_point():
        image = image.detach().float().clamp(0, 1).mul(255).round().to(torch.uint8)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image.permute(1, 2, 0).cpu().numpy()).save(path)


def _to_rgb(image: Image.Image, stored_as_png: bool) -> Image.Image | None:
    """The picture as RGB, or None where its mode has no plain RGB meaning."""
    # Older Pillows give 16-bit gray PNGs the 32-bit mode "I".
    if image.mode.startswith("I;16") or (image.mode == "I" and stored_as_png):
        gray = (np.asarray(image).astype(np.float64) / 257).round().clip(0, 255).astype(np.uint8)
        return Image.fromarray(gray).convert("RGB")
    if image.mode in _WITH_ALPHA or "transparency" in image.info:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB") if image.mode in _RGB_LIKE else None


def _unreadable(path: str | Path, error: Exception) -> Exception:
    """The error to raise instead of Pillow's, which does not always name the file."""
    if isinstance(error, FileNotFoundError):
        return FileNotFoundError(f"{path}: expected an image file, got no such file")
    return ValueError(f"{path}: expected a readable image, got {type(error).__name__}: {error}")
