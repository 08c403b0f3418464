"""Small studies of methods with a known order: images with more and more noise; answers from known scores."""

import hashlib
from itertools import combinations
from pathlib import Path

import torch

from lpips_lightning.io import write_image
from lpips_lightning.judge.records import Design, Image, Item
from lpips_lightning.judge.results.ranking import Preferences
from lpips_lightning.judge.store import Study

STRENGTHS = {"clear": 0.02, "good": 0.08, "fair": 0.16, "poor": 0.32}


def write_methods(folder, references=6, side=32, strengths=STRENGTHS, seed=0):
    """Folders ``reference`` and one per method, with equal file names."""
    generator = torch.Generator().manual_seed(seed)
    for number in range(references):
        clean = torch.rand(3, side, side, generator=generator)
        write_image(clean, Path(folder) / "reference" / f"{number}.png")
        for name, strength in strengths.items():
            noise = strength * torch.randn(3, side, side, generator=generator)
            write_image((clean + noise).clamp(0, 1), Path(folder) / name / f"{number}.png")


def method_study(path, folder, references=6, strengths=STRENGTHS, **design):
    """A study of all pairs of methods on the images of `write_methods`, without practice, with two sentinels."""
    folder = Path(folder)
    files = [f"{name}/{number}.png" for name in ("reference", *strengths) for number in range(references)]
    images = [_image(number, folder, file) for number, file in enumerate(files, 1)]
    number_of = {image.path: image.id for image in images}
    items = [
        Item(0, "judged", *(number_of[f"{name}/{ref}.png"] for name in ("reference", one, other)), None, one, other)
        for ref in range(references)
        for one, other in combinations(strengths, 2)
    ]
    easy = [number_of[f"{name}/0.png"] for name in ("reference", *[*strengths][:1], *[*strengths][-1:])]
    items += [Item(0, "sentinel", *easy, "p0"), Item(0, "sentinel", easy[0], easy[2], easy[1], "p1")]
    items = [Item(number, *(getattr(item, name) for name in _ITEM[1:])) for number, item in enumerate(items, 1)]
    given = {"trials": 20, "sentinels": 2, "pass_mark": 1, "practice": 0, "repeats": 2, "votes": 20} | design
    return Study.create(path, Design(**given), folder, images, items)


_ITEM = ("id", "purpose", "ref", "p0", "p1", "expected", "method0", "method1")


def _image(number, folder, file):
    digest = hashlib.sha256((folder / file).read_bytes()).hexdigest()
    return Image(number, file, digest, 32, 32)


def random_selector(study, candidates, rng):
    """The first candidate."""
    return candidates[0], "random"


def noise_distances(item, strengths=STRENGTHS):
    """What observers perceive: the strength of the noise."""
    return strengths[item.method0], strengths[item.method1]


NAMES = ("a", "b", "c", "d")


def answers(count, generator, *, references=40, observers=8, by_reference=0.0, by_observer=0.0, scores=None):
    """Answers to random pairs; what a reference or an observer prefers differs by a normal effect for each method."""
    scores = torch.tensor([0.9, 0.3, -0.3, -0.9], dtype=torch.float64) if scores is None else scores
    size = len(scores)
    of_reference = by_reference * torch.randn(references, size, generator=generator, dtype=torch.float64)
    of_observer = by_observer * torch.randn(observers, size, generator=generator, dtype=torch.float64)
    one = torch.randint(size, (count,), generator=generator)
    other = (one + torch.randint(1, size, (count,), generator=generator)) % size
    reference = torch.randint(references, (count,), generator=generator)
    observer = torch.arange(count) % observers
    liked = scores + of_reference[reference] + of_observer[observer]
    rows = torch.arange(count)
    share = (liked[rows, one] - liked[rows, other]).sigmoid()
    first = torch.rand(count, generator=generator, dtype=torch.float64) < share
    winners, losers = torch.where(first, one, other), torch.where(first, other, one)
    return Preferences(NAMES[:size], winners, losers, reference, observer)
