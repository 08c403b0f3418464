"""What a study consists of: its design, images, items, observers, sessions, trials and answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

Test = Literal["2afc", "jnd"]
"""Two-alternative forced choice (which candidate is nearer to the reference?), or just noticeable differences."""

Reason = Literal["practice", "sentinel", "random", "active", "repeat"]
"""Why a trial is shown: practice and sentinels have a known answer; repeats measure an observer's consistency."""

CHOICES: dict[str, tuple[str, str]] = {"2afc": ("p0", "p1"), "jnd": ("same", "different")}
"""Possible answers by test."""


class StudyError(ValueError):
    """The file of a study is missing, of another kind, or does not allow what was asked."""


@dataclass(frozen=True)
class Design:
    """How a study is conducted; fixed when its file is created.

    Attributes:
        test: ``"2afc"`` or ``"jnd"``.
        trials: Trials of a session that count, without practice, sentinels and repeats.
        sentinels: Trials of a session with a known answer.
        pass_mark: Sentinels that must be answered right, or the session does not count.
        practice: Trials before the first session, with feedback, that do not count.
        repeats: Trials of a session that show an earlier one of it again.
        votes: Answers wanted per item; items with fewer come first.
        active: Fraction of the counting trials that are chosen where metrics are unsure; the others are random.
        break_every: Trials between offered breaks; 0: none.
        shown_ms: Duration of each image in a JND trial.
        gap_ms: Gap between the two images of a JND trial.
        slip_ms: A trial whose display differs from what was asked by more is marked as slipped.
        title: Title of the page.
        question: Question of a trial, such as "Which image looks more like the reference?".
        instructions: Text before the practice; paragraphs are separated by blank lines.
        consent: Text that an observer agrees to before anything is stored.
        seed: Seed of orders and sides.
    """

    test: Test = "2afc"
    trials: int = 50
    sentinels: int = 15
    pass_mark: int = 14
    practice: int = 5
    repeats: int = 5
    votes: int = 5
    active: float = 0.0
    break_every: int = 25
    shown_ms: int = 1000
    gap_ms: int = 250
    slip_ms: float = 20.0
    title: str = "Image comparison"
    question: str = ""
    instructions: str = ""
    consent: str = ""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.test not in get_args(Test):
            raise StudyError(f"test: expected one of {', '.join(get_args(Test))}, got {self.test!r}")
        for name in ("sentinels", "pass_mark", "practice", "repeats", "break_every", "gap_ms", "slip_ms", "seed"):
            if not getattr(self, name) >= 0:
                raise StudyError(f"{name}: expected at least 0, got {getattr(self, name)}")
        for name in ("trials", "votes", "shown_ms"):
            if getattr(self, name) < 1:
                raise StudyError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.pass_mark > self.sentinels:
            raise StudyError(f"pass_mark: expected at most sentinels = {self.sentinels}, got {self.pass_mark}")
        if self.repeats > self.trials:
            raise StudyError(f"repeats: expected at most trials = {self.trials}, got {self.repeats}")
        if not 0 <= self.active <= 1:
            raise StudyError(f"active: expected a fraction in [0, 1], got {self.active}")


@dataclass(frozen=True)
class Image:
    """An image file of a study.

    Attributes:
        id: Number of the image; random order, so that it tells nothing about the image.
        path: File relative to `Study.folder`, with forward slashes.
        sha256: Digest of the file; one that changed is not shown.
        width: Width in pixels.
        height: Height in pixels.
    """

    id: int
    path: str
    sha256: str
    width: int
    height: int


@dataclass(frozen=True)
class Item:
    """What a trial shows: a reference with two candidates, or with one for JND.

    Attributes:
        id: Number of the item.
        purpose: ``"judged"``, ``"sentinel"`` or ``"practice"``.
        ref: `Image.id` of the reference.
        p0: `Image.id` of the first candidate.
        p1: `Image.id` of the second candidate; None for JND.
        expected: The right answer of a sentinel or a practice trial, one of `CHOICES`; else None.
        method0: Name of the method that made `p0`, or the distortion; may be empty.
        method1: The same of `p1`.
    """

    id: int
    purpose: Literal["judged", "sentinel", "practice"]
    ref: int
    p0: int
    p1: int | None = None
    expected: str | None = None
    method0: str = ""
    method1: str = ""


@dataclass(frozen=True)
class Observer:
    """A person under a pseudonym."""

    id: int
    name: str


@dataclass(frozen=True)
class Session:
    """A run of trials by one observer; `passed` is None until it is finished, then whether the sentinels were right."""

    id: int
    observer: int
    number: int
    started: float
    finished: float | None = None
    passed: bool | None = None


@dataclass(frozen=True)
class Trial:
    """An item shown to an observer; `swapped`: the left image is `p1`."""

    id: int
    session: int
    position: int
    item: int
    reason: Reason
    swapped: bool
    assigned: float


@dataclass(frozen=True)
class Answer:
    """An answered trial with all that is needed to count it.

    Attributes:
        trial: Number of the trial.
        item: Number of the item.
        observer: Pseudonym.
        session: Number of the session in the file.
        position: Position in the session, from 0.
        reason: Why it was shown.
        swapped: Whether the left image was `p1`.
        choice: One of `CHOICES`, whatever side it was on.
        answered: Time of the answer in seconds since 1970, UTC.
        response_ms: Time from the display of the images, or from the end of it for JND, to the answer.
        slipped: Whether the display differed from what was asked by more than `Design.slip_ms`.
        passed: Whether the session passed its sentinels; None while it is not finished.
        timing: What the page measured, as it was sent.
    """

    trial: int
    item: int
    observer: str
    session: int
    position: int
    reason: Reason
    swapped: bool
    choice: str
    answered: float
    response_ms: float
    slipped: bool
    passed: bool | None
    timing: dict[str, Any] = field(default_factory=dict)
