"""Images in memory as pairs to measure: Pillow images, arrays and tensors beside files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lpips_lightning.comparison.file_pairs import Matches, Pair, check_images, match_folders
from lpips_lightning.comparison.mask_files import check_masks, match_masks
from lpips_lightning.comparison.measure import PairResult, measure_pairs
from lpips_lightning.comparison.videos import measure_videos
from lpips_lightning.images.hints import UNMASKED
from lpips_lightning.images.ranges import DataRange, check_values, parse_range
from lpips_lightning.io.image_decoding import Header, Pixels, decoded_image, printable, read_header, read_pixels
from lpips_lightning.io.image_formats import is_video
from lpips_lightning.perceptual_distance import PerceptualDistance

_TYPES = "a path, a Pillow image, a NumPy array or a tensor"


_Content: TypeAlias = tuple[Header, Pixels]


class _Given(NamedTuple):
    """One argument: its images by path or name, without content for a file, and whether it is a batch."""

    images: list[tuple[Path, _Content | None]]
    batch: bool


def measure_inputs(
    a: Any,
    b: Any,
    net: PerceptualDistance,
    device: str | torch.device | None,
    given: dict[str, Any],
    compute: dict[str, Any],
) -> tuple[list[PairResult], list[str], bool]:
    """LPIPS of what `compare` takes.

    Args:
        a: First argument of `compare`.
        b: Second argument.
        net: The network.
        device: Device to compute on; None: that of a tensor, or the CPU.
        given: ``data_range``, ``mask``, ``common``, ``in_order``.
        compute: Arguments of `measure_pairs`.

    Returns:
        Results, notes on files that were not compared, and whether these are two single images.

    Raises:
        ValueError: If a pair cannot be compared; see `compare`.
    """
    tensors = [one for one in (a, b) if isinstance(one, Tensor)]
    compute["device"] = device if device is not None else (tensors[0].device if tensors else "cpu")
    paths = [Path(one) for one in (a, b) if isinstance(one, str | os.PathLike)]
    folders = [path for path in paths if path.is_dir()]
    videos = [path for path in paths if not path.is_dir() and is_video(path)]
    for kind, found in (("folder", folders), ("video", videos)):
        if len(found) == 1:
            raise ValueError(f"{'b' if found[0] == paths[0] else 'a'}: expected a {kind} too, as '{found[0]}' is one")
    matched = (given["common"], given["in_order"])
    if not folders and any(matched):
        raise ValueError(f"{'common' if matched[0] else 'in_order'}: expected two folders with this option")
    if "tlp" in compute["scores"] and not (folders or videos):
        raise ValueError(
            "metrics: expected two videos or two folders of frames with 'tlp'; for tensors there is"
            " lpips_lightning.functional.temporal_lpips"
        )
    memory: dict[Path, _Content] = {}
    single = not folders and not videos
    if folders:
        matches = match_folders(*folders, common=given["common"], in_order=given["in_order"])
    elif videos:
        matches = Matches([Pair(videos[0].stem, videos[0], videos[1])])
    else:
        matches, memory, single = _match_images(a, b, given["data_range"])
    if given["mask"] is not None:
        matches = match_masks(matches, given["mask"])
    if videos:
        return _checked(measure_videos(matches.pairs[0], net, **compute)), [], False
    return _checked(_measure(matches.pairs, memory, net, compute)), matches.notes, single


def _measure(
    pairs: Sequence[Pair], memory: dict[Path, _Content], net: PerceptualDistance, compute: dict[str, Any]
) -> list[PairResult]:
    def look(path: Path) -> Header:
        return memory[path][0] if path in memory else read_header(path)

    def read(path: Path, header: Header) -> Pixels:
        return memory[path][1] if path in memory else read_pixels(path, header.content)

    headers = check_images([(pair.a, pair.b) for pair in pairs], net, look)
    check_masks(pairs, headers)
    return measure_pairs(pairs, net, headers, read=read, **compute)


def _checked(results: list[PairResult]) -> list[PairResult]:
    """The results; raise if any pair failed."""
    errors = [one.error for one in results if one.error]
    if errors:
        more = f" ({len(errors)} of {len(results)} pairs failed)" if len(results) > 1 else ""
        raise ValueError(errors[0] + more)
    return results


def _match_images(a: Any, b: Any, data_range: DataRange | None) -> tuple[Matches, dict[Path, _Content], bool]:
    """Pairs, pixels of those in memory by their name, and whether it is one pair of images."""
    files = {Path(one) for one in (a, b) if isinstance(one, str | os.PathLike)}
    names = [f"argument {name}" if Path(name) in files else name for name in ("a", "b")]
    first, second = (_images_of(one, name, data_range) for one, name in zip((a, b), names, strict=True))
    if len(first.images) != len(second.images):
        raise ValueError(
            f"b: expected as many images as a, {len(first.images)}, got {len(second.images)}; nothing is broadcast"
        )
    memory = {path: content for path, content in (*first.images, *second.images) if content is not None}
    pairs = [
        Pair(one[0].stem if one[1] is None else str(index), one[0], two[0])
        for index, (one, two) in enumerate(zip(first.images, second.images, strict=True))
    ]
    return Matches(pairs), memory, not (first.batch or second.batch)


def _images_of(given: Any, name: str, data_range: DataRange | None) -> _Given:
    if isinstance(given, str | os.PathLike):
        if not Path(given).exists():
            raise FileNotFoundError(f"{printable(given)}: expected an image, a video or a folder, got no such file")
        return _Given([(Path(given), None)], False)
    if isinstance(given, Image.Image):
        return _Given([(Path(name), decoded_image(given, name))], False)
    if isinstance(given, Tensor):
        pixels = _from_tensor(given, name)
    elif isinstance(given, np.ndarray):
        pixels = _from_array(given, name)
    else:
        raise TypeError(f"{name}: expected {_TYPES}, got {type(given).__name__}")
    pixels = _on_range(pixels, name, data_range)
    batch = given.ndim == 4
    if batch and not len(pixels):
        raise ValueError(f"{name}: expected one image or more, got an empty batch")
    names = [f"{name}[{index}]" for index in range(len(pixels))] if batch else [name]
    return _Given([(Path(one), _content(part)) for one, part in zip(names, pixels, strict=True)], batch)


def _from_tensor(given: Tensor, name: str) -> Any:
    """Pixels ``(N, H, W, C)``."""
    if given.layout != torch.strided or given.ndim not in (2, 3, 4):
        raise ValueError(f"{name}: expected a tensor (3, H, W) or (N, 3, H, W), got {_shape(given)}")
    if given.ndim > 2 and given.shape[-3] not in (1, 3, 4):
        hint = "; for channels last use .movedim(-1, -3)" if given.shape[-1] in (1, 3, 4) else ""
        raise ValueError(f"{name}: expected a tensor (3, H, W) or (N, 3, H, W), got {_shape(given)}{hint}")
    values = given.detach().cpu()
    if values.dtype == torch.bfloat16:
        values = values.float()
    values = values[None] if values.ndim == 2 else values
    values = values[None] if values.ndim == 3 else values
    return values.movedim(1, -1).numpy()


def _from_array(given: Any, name: str) -> Any:
    """Pixels ``(N, H, W, C)``."""
    values = given[:, :, None] if given.ndim == 2 else given
    if values.ndim not in (3, 4) or values.shape[-1] not in (1, 3, 4):
        hint = ""
        if values.ndim in (3, 4) and values.shape[-3] in (1, 3, 4):
            hint = "; for channels first use np.moveaxis(array, -3, -1)"
        raise ValueError(f"{name}: expected an array (H, W, 3) or (N, H, W, 3), got {_shape(given)}{hint}")
    return values[None] if values.ndim == 3 else values


def _on_range(pixels: Any, name: str, data_range: DataRange | None) -> Any:
    """uint8 and uint16 as they are, others from `data_range` to [0, 1]."""
    if pixels.dtype in (np.uint8, np.uint16):
        return pixels
    if pixels.dtype.kind != "f":
        raise TypeError(f"{name}: expected uint8, uint16 or floating-point values, got {pixels.dtype}")
    if data_range is None:
        raise ValueError(f"{name}: expected data_range= for floating-point values, such as data_range=(0, 1), got None")
    low, high = parse_range(data_range)
    values = torch.from_numpy(np.ascontiguousarray(pixels, dtype=np.float64))
    check_values(values, name, (low, high), replace(UNMASKED, integers=""))
    return ((values.numpy() - low) / (high - low)).clip(0, 1).astype(np.float32)


def _content(pixels: Any) -> _Content:
    """Header that a file of these pixels ``(H, W, C)`` would have, and the pixels as it would be decoded."""
    height, width, channels = pixels.shape
    header = Header(height, width, channels == 1, channels == 4, pixels.dtype != np.uint8)
    return header, pixels.repeat(3, 2) if channels == 1 else pixels


def _shape(given: Any) -> str:
    return f"shape {tuple(given.shape)}"
