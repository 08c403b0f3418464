"""Mask images of pairs: white pixels count, black ones do not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lpips_lightning.comparison.file_pairs import Matches, Pair, examples, left_out_note
from lpips_lightning.io.image_decoding import Header, printable, read_header, read_pixels
from lpips_lightning.io.image_folders import check_any_image, count_of, list_images
from lpips_lightning.io.streams import is_stream


def match_masks(matches: Matches, masks: str | Path) -> Matches:
    """Give every pair its mask.

    Args:
        matches: The pairs.
        masks: One mask image for all pairs, or a folder with a mask named as each pair.

    Returns:
        The pairs with masks, and notes on masks that no pair uses.

    Raises:
        FileNotFoundError: If `masks` does not exist or contains no image.
        ValueError: If a pair has no mask.
    """
    path = Path(masks)
    if is_stream(path):  # it is read once for each pair
        raise ValueError(f"mask: expected an image file or a folder, got a stream: '{printable(path)}'; save it first")
    if not path.exists():
        raise FileNotFoundError(f"mask: expected an image or a folder, got no such file: '{printable(path)}'")
    if not path.is_dir():
        return replace(matches, pairs=[replace(pair, mask=path) for pair in matches.pairs])
    found = list_images(path)
    check_any_image(found, path)
    missing = [pair.name for pair in matches.pairs if pair.name not in found.images]
    if missing:
        raise ValueError(
            f"mask: expected a mask in '{printable(path)}' with the name of each pair, got none for"
            f" {len(missing)} of {count_of(len(matches.pairs), 'pair')} ({examples(missing)})"
        )
    used = {pair.name for pair in matches.pairs}
    unused = [name for name in found.images if name not in used]
    notes = [*matches.notes, *left_out_note(path, found.left_out)]
    if unused:
        notes.append(f"{printable(path)}: {count_of(len(unused), 'mask')} without pair: {examples(unused)}")
    return Matches([replace(pair, mask=found.images[pair.name]) for pair in matches.pairs], notes)


def check_masks(pairs: Sequence[Pair], headers: Mapping[Path, Header]) -> None:
    """Raise if a mask cannot be read, is not gray, or has another size than its pair.

    Args:
        pairs: Pairs; those without mask are skipped.
        headers: Headers of the pairs' files.

    Raises:
        ValueError: If a mask is invalid; the message names the first one.
        FileNotFoundError: If a mask is missing.
    """
    known: dict[Path, Header] = {}
    for pair in pairs:
        if pair.mask is None:
            continue
        if pair.mask not in known:
            known[pair.mask] = read_header(pair.mask)
            if not known[pair.mask].gray or known[pair.mask].alpha:
                read_mask(pair.mask)  # a gray image may be stored as RGB, its pixels decide
        mask, image = known[pair.mask], headers[pair.a]
        if mask.size != image.size:
            raise ValueError(
                f"{printable(pair.mask)}: expected a mask of the size of '{printable(pair.a)}',"
                f" {image.height}x{image.width} (height x width), got {mask.height}x{mask.width}"
            )


def read_mask(path: str | Path) -> npt.NDArray[np.float32]:
    """Weights of the pixels, ``(H, W)`` in [0, 1]: 1 for white, 0 for black.

    Raises:
        ValueError: If the image is damaged, has colors, or has transparent pixels.
        FileNotFoundError: If the file does not exist.
    """
    pixels = read_pixels(path)
    top = np.iinfo(pixels.dtype).max
    expected = f"{printable(path)}: expected a gray mask (white counts, black does not), got"
    if pixels.shape[2] == 4 and bool((pixels[:, :, 3] < top).any()):
        raise ValueError(f"{expected} transparent pixels; save the mask without alpha channel")
    if bool((pixels[:, :, :3] != pixels[:, :, :1]).any()):
        raise ValueError(f"{expected} a color image; save it as 8-bit gray")
    return pixels[:, :, 0].astype(np.float32) / np.float32(top)
