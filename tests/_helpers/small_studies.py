"""Studies of small images of noise, for tests of the page of ``judge serve``."""

from __future__ import annotations

import hashlib
import itertools
import random

import numpy as np
from PIL import Image as PillowImage

from lpips_lightning.judge.records import CHOICES, Design, Image, Item
from lpips_lightning.judge.sessions import DoneStep, next_step, record_answer, start_session
from lpips_lightning.judge.store import Study


def first_candidate(study, candidates, rng):
    """A selector."""
    return candidates[0], "random"


def small_design(test="2afc", **changes):
    """Sessions of 8 trials, 3 sentinels (2 must be right), 1 repeat and 2 trials of practice."""
    usual = {"trials": 8, "sentinels": 3, "pass_mark": 2, "practice": 2, "repeats": 1, "votes": 3, "break_every": 4}
    return Design(test, **{**usual, "question": "Which?", "title": "A test", "consent": "I agree.", **changes})


def small_study(folder, design=None, items=12, sentinels=10, practice=6, size=8):
    """A study in a folder, its images beside it."""
    design = design or small_design()
    images = folder / "images"
    images.mkdir(parents=True)
    made = []
    for number in range(1, 10):
        path = images / f"{number}.png"
        pixels = np.random.default_rng(number).integers(0, 256, (size, size, 3), dtype=np.uint8)
        PillowImage.fromarray(pixels).save(path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        made.append(Image(number, path.name, digest, size, size))
    shown = []
    for purpose, count in (("judged", items), ("sentinel", sentinels), ("practice", practice)):
        for index in range(count):
            expected = None if purpose == "judged" else CHOICES[design.test][index % 2]
            p1 = 7 + index % 3 if design.test == "2afc" else None
            shown.append(Item(len(shown) + 1, purpose, 1 + index % 3, 4 + index % 3, p1, expected))
    return Study.create(folder / "study.db", design, images, made, shown)


def right_choice(study, step):
    """The answer of the page that is right, of practice and sentinels; else some answer."""
    expected = step.item.expected or CHOICES[study.design.test][step.trial.id % 2]
    if study.design.test == "jnd":
        return expected
    return ("left", "right")[CHOICES["2afc"].index(expected) ^ step.trial.swapped]


GOOD_TIMING = {"visible": True, "shown_ms": [1000.0, 1004.0], "gap_ms": 250.0}


def answer(study, observer, step, choice=None, timing=None):
    """Answer a trial."""
    choice = choice or right_choice(study, step)
    return record_answer(study, observer, step.trial.id, choice, 500.0, timing or GOOD_TIMING)


def walk(study, observer, selector=first_candidate, choose=None, sessions=None):
    """Answer trials until nothing is left, or for a number of sessions; the steps, sessions' ends included."""
    steps = []
    for _ in itertools.count():
        step = next_step(study, observer, selector)
        steps.append(step)
        if isinstance(step, DoneStep):
            if not step.can_continue or sum(isinstance(one, DoneStep) for one in steps) == sessions:
                return steps
            start_session(study, observer, selector)
        else:
            answer(study, observer, step, choose and choose(step))
    return steps


def seeded(*seed):
    """A random generator."""
    return random.Random("/".join(map(str, seed)))
