"""Studies for the tests: items with or without image files, and answers of simulated observers put in by the store."""

from __future__ import annotations

import hashlib
import random

import torch
from PIL import Image as PillowImage
from toy_judgments import pairs, triplets

from lpips_lightning.judge.records import CHOICES, Design, Image, Item
from lpips_lightning.judge.store import Study

SESSION = 50


def bare_study(folder, count=10, *, test="2afc", per_reference=1, known=2, name="study.db", **design):
    """A study of `count` judged items and `known` sentinels, without image files; item 1 is the first."""
    images, items = [], []

    def image(kind, number):
        path = f"{kind}{number}.png"
        found = next((one for one in images if one.path == path), None)
        if found is None:
            images.append(found := Image(len(images) + 1, path, "", 1, 1))
        return found.id

    for number in range(count + known):
        judged = number < count
        ref = image("ref", number // per_reference)
        candidates = [image(f"p{side}-", number) for side in range(2 if test == "2afc" else 1)]
        expected = {} if judged else {"expected": CHOICES[test][0]}
        items.append(Item(number + 1, "judged" if judged else "sentinel", ref, *candidates, **expected))
    return _create(folder / name, Design(test, **design), folder, images, items)


def drawn_study(folder, count=20, *, test="2afc", size=32, seed=0, name="study.db", **design):
    """A study of `count` items with image files, distorted patches of noise."""
    columns = (triplets if test == "2afc" else pairs)(count, size, seed).columns
    kinds = ("ref", "p0", "p1") if test == "2afc" else ("p0", "p1")
    images, items = [], []
    for row in range(count):
        for kind in kinds:
            file = folder / "images" / f"{kind}-{row:04d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            pixels = ((columns[kind][row] + 1) * 127.5).round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
            PillowImage.fromarray(pixels).save(file)
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
            images.append(Image(len(images) + 1, file.name, digest, size, size))
        items.append(Item(row + 1, "judged", *(image.id for image in images[-len(kinds) :])))
    return _create(folder / name, Design(test, **design), folder / "images", images, items)


def _create(path, design, folder, images, items):
    study = Study.create(path, design, folder, images, items)
    for setting in ("synchronous = OFF", "journal_mode = MEMORY"):  # tests need not survive a power cut
        study._connection.execute(f"PRAGMA {setting}")
    return study


def choose(test, d0, d1, noise, lapse, generator, threshold=1.0):
    """Answer of a simulated observer, with noise on log distances."""
    if generator.random() < lapse:
        return generator.choice(CHOICES[test])
    first = torch.tensor(d0).log().item() + generator.gauss(0, noise)
    if test == "jnd":
        return CHOICES[test][first > torch.tensor(threshold).log().item()]
    return CHOICES[test][first > torch.tensor(d1).log().item() + generator.gauss(0, noise)]


def observe(
    study,
    distances,
    *,
    observers=5,
    trials=None,
    noise=0.3,
    lapse=0.0,
    threshold=1.0,
    repeats=0,
    reason="random",
    slipped=0.0,
    passed=True,
    finished=True,
    response_ms=900.0,
    seed=0,
):
    """Let new observers judge in random order, in sessions of 50, with the last items shown again as repeats.

    Args:
        study: The study.
        distances: Distances ``(d0, d1)`` of the items by the metric that the observers have.
        observers: Number of observers.
        trials: Items per observer; None: all.
        noise: Standard deviation of log distances.
        lapse: Probability of a random answer.
        threshold: Just noticeable distance.
        repeats: Items shown again at the end.
        reason: Reason of the trials; a function of the item, or one for all.
        slipped: Fraction of the trials whose display slips.
        passed: Whether the session passes.
        finished: Whether the session is finished.
        response_ms: Median response time.
        seed: Random seed.

    Returns:
        Names of the observers.
    """
    generator, names = random.Random(seed), []
    for _ in range(observers):
        observer, _secret = study.enroll({"width": 1280})
        names.append(observer.name)
        order = generator.sample(sorted(distances), trials or len(distances))
        plan = [(item, reason(item) if callable(reason) else reason) for item in order]
        plan += [(item, "repeat") for item in order[-SESSION:][:repeats]]
        for start in range(0, len(plan), SESSION + repeats):
            session = study.start_session(observer.id)
            for position, (item, why) in enumerate(plan[start : start + SESSION + repeats]):
                trial = study.assign(session.id, position, item, why, generator.random() < 0.5)
                choice = choose(study.design.test, *distances[item], noise, lapse, generator, threshold)
                late = generator.random() < slipped
                time = response_ms * 2 ** generator.gauss(0, 0.5)
                study.answer(trial.id, choice, time, slipped=late, timing={"refresh_ms": 16.7, "visible": not late})
            if finished:
                study.finish_session(session.id, passed)
    return names
