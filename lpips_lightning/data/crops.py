"""Random crops of images, and the random states that they are drawn with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn import functional as F


def seeded(*entropy: int) -> Generator:
    """A random state that depends on all of some numbers >= 0: a seed, and what it is for."""
    return Generator().manual_seed(int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]) >> 1)


def crops(images: Sequence[Tensor], count: int, size: int, generator: Generator) -> Tensor:
    """Random square crops of random images, shape ``(count, 3, size, size)`` in ``[0, 1]``.

    A crop has a side of 0.75 to 3 times ``size``, limited by the image, and is resampled to ``size``.
    """
    chosen = torch.randint(len(images), (count,), generator=generator).tolist()
    unit = torch.rand(count, 3, generator=generator).tolist()
    result = torch.empty(count, 3, size, size)
    for row, image, (zoom, top, left) in zip(result, (images[k] for k in chosen), unit, strict=True):
        height, width = image.shape[1:]
        side = min(round(size * 0.75 * 4**zoom), height, width)
        y, x = int(top * (height - side + 1)), int(left * (width - side + 1))
        window = image[None, :, y : y + side, x : x + side] / 255
        row.copy_(F.interpolate(window, size=(size, size), mode="bicubic", antialias=True)[0])
    return result.clamp_(0, 1)
