"""Small data sets on disk for the tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

BAPPS_KINDS = {"2afc": ("ref", "p0", "p1", "judge"), "jnd": ("p0", "p1", "same")}


def write_bapps(root, counts, size=16, seed=0):
    """A BAPPS folder of noise; `counts` by folder of a set: ``{"2afc/val/cnn": 3, "jnd/val/cnn": 2}``."""
    numbers = np.random.default_rng(seed)
    for folder, count in counts.items():
        for kind in BAPPS_KINDS[folder.partition("/")[0]]:
            (Path(root) / folder / kind).mkdir(parents=True)
        for index in range(count):
            for kind in BAPPS_KINDS[folder.partition("/")[0]]:
                path = Path(root) / folder / kind / f"{index:06d}"
                if kind in ("judge", "same"):
                    np.save(path.with_suffix(".npy"), np.float32(numbers.integers(6) / 5))
                else:
                    noise = numbers.integers(0, 256, (size, size, 3), dtype=np.uint8)
                    Image.fromarray(noise).save(path.with_suffix(".png"))
    return Path(root)


def write_noise(folder, names=("a", "b", "c", "d", "more/e"), height=49, width=70, seed=0):
    """Images of noise, one of them in a folder of its own."""
    numbers = np.random.default_rng(seed)
    for name in names:
        path = Path(folder) / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(numbers.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
    return Path(folder)
