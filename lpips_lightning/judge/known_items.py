"""Items with a known answer: sentinels, which tell whether an observer pays attention, and practice.

As in the paper's tests. 2AFC sentinels: an image with large and with small Gaussian noise; the small one is nearer.
JND sentinels: four of five are identical pairs ("same"), the others have large noise ("different"), of two or more one
at least. Practice for JND: of ten pairs four are the same, one is obviously different, five are distorted; for 2AFC a
distortion that is weak in one candidate and strong in the other.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lpips_lightning.data.crops import seeded
from lpips_lightning.data.distortions import distort
from lpips_lightning.judge.records import Design, Item
from lpips_lightning.judge.study_images import StudyImages

_NOISE = "gaussian_noise"
_SMALL, _LARGE = 0.1, 0.9  # strengths: standard deviations of 0.025 and 0.225
_PRACTICE = (_NOISE, "gaussian_blur", "jpeg", "color_shift", "pink_noise")
_WEAK, _CLEAR = 0.1, 0.6
_VISIBLE = 2e-3  # mean squared difference, a standard deviation of 0.045; blur of a blank image has none


@dataclass(frozen=True)
class _Known:
    purpose: Literal["sentinel", "practice"]
    distortion: str
    strengths: tuple[float, ...]
    expected: str


def known_items(images: StudyImages, design: Design, references: Sequence[int], first: int, seed: int) -> list[Item]:
    """Write the images of all sentinels and practice trials of a study.

    Args:
        images: Where they are written, under names that tell nothing.
        design: Number of sentinels and practice trials.
        references: Numbers of the images to use, in `images`; each is used once, if there are enough.
        first: Number of the first item.
        seed: Random seed.

    Returns:
        The items: `Design.sentinels` and `Design.practice` of them.
    """
    rng = random.Random(f"{seed}/known")
    order = _endless(references, rng)
    known = [*_sentinels(design, rng), *_practice(design, rng)]
    return [
        _write(images, one, next(order), first + index, seed, f"known/{rng.getrandbits(48):012x}")
        for index, one in enumerate(known)
    ]


def known_images(design: Design) -> int:
    """Number of images that `known_items` writes."""
    return (design.sentinels + design.practice) * (2 if design.test == "2afc" else 1)


def _endless(references: Sequence[int], rng: random.Random) -> Iterator[int]:
    while True:
        yield from rng.sample(references, len(references))


def _sentinels(design: Design, rng: random.Random) -> list[_Known]:
    if design.test == "2afc":
        return [_ordered("sentinel", _NOISE, _SMALL, _LARGE, rng) for _ in range(design.sentinels)]
    different = max(round(design.sentinels / 5), min(1, design.sentinels - 1))
    return [_pair("sentinel", 0.0)] * (design.sentinels - different) + [_pair("sentinel", _LARGE)] * different


def _practice(design: Design, rng: random.Random) -> list[_Known]:
    count = design.practice
    kinds = [_PRACTICE[index % len(_PRACTICE)] for index in range(count)]
    if design.test == "2afc":
        return [_ordered("practice", kind, _WEAK, _LARGE, rng) for kind in kinds]
    same, obvious = int(0.4 * count), min(1, count)
    distorted = [_pair("practice", _CLEAR, kind) for kind in kinds[: count - same - obvious]]
    return [*([_pair("practice", 0.0)] * same), *([_pair("practice", _LARGE)] * obvious), *distorted]


def _ordered(
    purpose: Literal["sentinel", "practice"], distortion: str, small: float, large: float, rng: random.Random
) -> _Known:
    """A triplet; the candidate with the small strength is `p0` or `p1` at random."""
    if rng.random() < 0.5:
        return _Known(purpose, distortion, (small, large), "p0")
    return _Known(purpose, distortion, (large, small), "p1")


def _pair(purpose: Literal["sentinel", "practice"], strength: float, distortion: str = _NOISE) -> _Known:
    return _Known(purpose, distortion, (strength,), "different" if strength else "same")


def _write(images: StudyImages, known: _Known, reference: int, number: int, seed: int, name: str) -> Item:
    image = images.read(reference)
    generator = seeded(seed, 1, number)
    distortion = known.distortion if _is_visible(image, known, number, seed) else _NOISE
    candidates = [
        images.add(
            _distorted(image, distortion, strength, generator),
            f"{name}-{'ab'[index]}",
            images.images[reference - 1].path,
            f"{distortion} {strength:.2f}" if strength else "a copy",
        )
        for index, strength in enumerate(known.strengths)
    ]
    p1 = candidates[1] if len(candidates) > 1 else None
    return Item(number, known.purpose, reference, candidates[0], p1, known.expected)


def _is_visible(image: Tensor, known: _Known, number: int, seed: int) -> bool:
    """Whether the strongest candidate differs clearly; a blurred blank image doesn't."""
    if known.distortion == _NOISE:
        return True
    changed = _distorted(image, known.distortion, max(known.strengths), seeded(seed, 1, number))
    return float((changed.float() - image.float()).div(255).square().mean()) > _VISIBLE


def _distorted(image: Tensor, distortion: str, strength: float, generator: torch.Generator) -> Tensor:
    if not strength:
        return image
    return distort(image[None].float() / 255, distortion, strength, generator)[0].mul(255).round().to(torch.uint8)
