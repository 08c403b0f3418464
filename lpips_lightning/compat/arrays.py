"""Images as NumPy arrays and tensors, converted and loaded as the `lpips` package's scripts do."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lpips_lightning.io.image_files import read_image

Array = npt.NDArray[Any]


def load_image(path: str | os.PathLike[str]) -> Array:
    """Read an image file as RGB.

    Upright and in 8 bits, as `lpips` reads it. Alpha is composited over white, where `lpips` drops it.

    Args:
        path: The file.

    Returns:
        Shape ``(H, W, 3)``, dtype ``uint8``.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the file is not an image, is damaged, or is not supported.
    """
    return read_image(os.fspath(path)).permute(1, 2, 0).contiguous().numpy()


def im2tensor(image: Array, imtype: type = np.uint8, cent: float = 1.0, factor: float = 255.0 / 2.0) -> Tensor:
    """An image array as a batch of one: ``image / factor - cent``, which maps [0, 255] to [-1, 1].

    Args:
        image: Shape ``(H, W, C)``.
        imtype: Ignored, as in `lpips`.
        cent: Subtracted after the division.
        factor: Divisor.

    Returns:
        Shape ``(1, C, H, W)``, float32.

    Raises:
        ValueError: If the array does not have three dimensions.

    Example:
        >>> im2tensor(np.array([[[0, 51, 255]]], np.uint8)).flatten()
        tensor([-1.0000, -0.6000,  1.0000])
    """
    return np2tensor(np.asarray(image) / factor - cent)


def tensor2im(image_tensor: Tensor, imtype: type = np.uint8, cent: float = 1.0, factor: float = 255.0 / 2.0) -> Array:
    """The first image of a batch as an array: ``(image + cent) * factor``, which maps [-1, 1] to [0, 255].

    Integers are truncated as in `lpips`. Values outside the integers' range are clamped to it; `lpips` lets them
    overflow.

    Args:
        image_tensor: Shape ``(N, C, H, W)``.
        imtype: Dtype of the result.
        cent: Added before the multiplication.
        factor: Factor.

    Returns:
        Shape ``(H, W, C)``.

    Example:
        >>> tensor2im(torch.tensor([-1.0, 0.25, 1.2]).view(1, 3, 1, 1)).flatten().tolist()
        [0, 159, 255]
    """
    values = (tensor2np(image_tensor) + cent) * factor
    if np.issubdtype(imtype, np.integer):
        values = values.clip(np.iinfo(imtype).min, np.iinfo(imtype).max)
    return values.astype(imtype)


def tensor2np(tensor_obj: Tensor) -> Array:
    """The first image of a batch as an array, with unchanged values.

    Args:
        tensor_obj: Shape ``(N, C, H, W)``.

    Returns:
        Shape ``(H, W, C)``, float32.
    """
    return tensor_obj[0].detach().cpu().float().permute(1, 2, 0).numpy()


def np2tensor(np_obj: Array) -> Tensor:
    """An image array as a batch of one, with unchanged values.

    Args:
        np_obj: Shape ``(H, W, C)``.

    Returns:
        Shape ``(1, C, H, W)``, float32.

    Raises:
        ValueError: If the array does not have three dimensions.
    """
    if np.ndim(np_obj) != 3:
        raise ValueError(f"image: expected an array (H, W, C), got shape {np.shape(np_obj)}")
    return torch.from_numpy(np.ascontiguousarray(np_obj.transpose(2, 0, 1), dtype=np.float32)).unsqueeze(0)


def tensor2tensorlab(image_tensor: Tensor, to_norm: bool = True, mc_only: bool = False) -> Tensor:
    """The first image of a batch in the Lab color space; needs scikit-image.

    Args:
        image_tensor: Shape ``(N, 3, H, W)`` on [-1, 1].
        to_norm: Center the lightness and divide all by 100.
        mc_only: Center the lightness only.

    Returns:
        Shape ``(1, 3, H, W)``, float32.

    Raises:
        ModuleNotFoundError: If scikit-image is not installed.
    """
    lab = rgb2lab(tensor2im(image_tensor))
    if to_norm or mc_only:
        lab[:, :, 0] -= 50
    return np2tensor(lab / 100.0 if to_norm and not mc_only else lab)


def rgb2lab(input: Array) -> Array:  # noqa: A002 - the name of `lpips`
    """An RGB image in the Lab color space; needs scikit-image.

    Args:
        input: Shape ``(H, W, 3)`` on [0, 255].

    Returns:
        Shape ``(H, W, 3)``.

    Raises:
        ModuleNotFoundError: If scikit-image is not installed.
    """
    from skimage import color

    return color.rgb2lab(input / 255.0)


def l2(p0: Array, p1: Array, range: float = 255.0) -> np.floating[Any]:  # noqa: A002
    """Half the mean squared difference of two images, relative to their range.

    Args:
        p0: An image.
        p1: Another, of the same shape.
        range: Width of the range of both.

    Returns:
        A number.
    """
    return 0.5 * np.mean(np.square(p0 / range - p1 / range))


def psnr(p0: Array, p1: Array, peak: float = 255.0) -> np.floating[Any]:
    """Peak signal-to-noise ratio of two images, in decibel.

    Args:
        p0: An image.
        p1: Another, of the same shape.
        peak: Largest possible value.

    Returns:
        A number.
    """
    difference = np.asarray(p0, np.float64) - np.asarray(p1, np.float64)
    return 10 * np.log10(peak**2 / np.mean(np.square(difference)))


def dssim(p0: Array, p1: Array, range: float = 255.0) -> np.floating[Any]:  # noqa: A002
    """``(1 - SSIM) / 2`` of two images; needs scikit-image, whose present form of SSIM is used.

    Args:
        p0: Shape ``(H, W, C)``.
        p1: The same.
        range: Width of the range of both.

    Returns:
        A number in [0, 1].

    Raises:
        ModuleNotFoundError: If scikit-image is not installed.
    """
    from skimage import metrics

    similarity: Any = metrics.structural_similarity
    return (1 - similarity(p0, p1, data_range=range, channel_axis=2)) / 2.0
