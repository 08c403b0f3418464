"""Simulated observers, who answer a study as people do through its page: to plan a study, and to test what follows.

Their answers are marked in the file, and everything that is made from them says so.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import torch

from lpips_lightning.data.observer import SimulatedObserver
from lpips_lightning.judge.records import Answer, Item, Observer, StudyError
from lpips_lightning.judge.selection import Selector
from lpips_lightning.judge.sessions import TrialStep, next_step, record_answer, start_session
from lpips_lightning.judge.store import Study

Distances: TypeAlias = Mapping[int, tuple[float, float | None]] | Callable[[Item], tuple[float, float | None]]
"""Distances of an item's candidates to its reference: by number of the item, as `Study.distances` has them, or a
function of the item."""

_MARK = "simulated"
_REFRESH_MS = 1000 / 60


@dataclass(frozen=True)
class SimulatedPerson:
    """How a simulated observer answers.

    Attributes:
        perception: Noise of perceived distances, lapses, and for JND the threshold.
        side_bias: Probability of an answer that is the left image, whatever is shown; 2AFC only. Negative: the right.
        response_ms: Median time of an easy answer; the hardest take twice as long.
        response_spread: Standard deviation of the time's logarithm.
        slip: Probability of a JND display that is off by 40 ms.
    """

    perception: SimulatedObserver = field(default_factory=SimulatedObserver)
    side_bias: float = 0.0
    response_ms: float = 900.0
    response_spread: float = 0.35
    slip: float = 0.0

    def __post_init__(self) -> None:
        if not -1 <= self.side_bias <= 1:
            raise ValueError(f"side_bias: expected a probability in [-1, 1], got {self.side_bias}")
        if not 0 <= self.slip <= 1:
            raise ValueError(f"slip: expected a probability in [0, 1], got {self.slip}")
        if not (0 < self.response_ms < math.inf and 0 <= self.response_spread < math.inf):
            got = f"{self.response_ms}, {self.response_spread}"
            raise ValueError(f"response_ms: expected a positive time, and a spread of at least 0, got {got}")


def simulate(
    study: Study,
    distances: Distances,
    selector: Selector,
    *,
    observers: int = 10,
    sessions: int = 1,
    person: SimulatedPerson | None = None,
    stop_after: int | None = None,
    seed: int = 0,
) -> list[Observer]:
    """Let simulated observers enroll and answer, in turns, until their sessions are done or no item is left.

    They see what the page shows: they go through practice, sentinels, repeats and sides of `sessions.next_step`, and
    their answers through `sessions.record_answer`. Practice and sentinels are answered right but for lapses and the
    bias of side.

    Args:
        study: The study; the answers are added to its file.
        distances: Of the judged items; what the observers perceive, but for noise.
        selector: Chooses the items, such as `selection.random_selector`.
        observers: Number of observers.
        sessions: Sessions of each one.
        person: How they answer; for JND, the threshold is the median distance if it has none.
        stop_after: Answers of each observer after which all stop, such as in the middle of a session; None: no limit.
        seed: Equal seeds give equal answers to equal trials.

    Returns:
        The observers.

    Raises:
        StudyError: If a judged item has no distance.
        ValueError: If a number is out of its range.
    """
    if observers < 1 or sessions < 1:
        raise ValueError(f"observers: expected at least 1, of at least 1 session, got {observers}, {sessions}")
    shown = _distances(study, distances)
    person = _with_threshold(person or SimulatedPerson(), study, shown)
    client = {_MARK: {**asdict(person), "seed": seed}}
    with study.transaction():  # one for all: each answer alone would wait for the disk
        people = [study.enroll(client)[0] for _ in range(observers)]
        turns = [
            _answers(study, one, _Mind(study, person, shown, random.Random(f"{seed}/{number}")), selector, sessions)
            for number, one in enumerate(people)
        ]
        given = 0
        while turns and (stop_after is None or given < stop_after):
            turns = [turn for turn in turns if next(turn, None) is not None]
            given += 1
    return people


def copy_without_answers(study: Study, out: str | Path) -> Study:
    """A new study with the design, images, items and distances of another one, and nobody's answers.

    Args:
        study: The study; only read.
        out: The new file; must not exist. Its images stay where they are.

    Raises:
        FileExistsError: If `out` exists.
    """
    images, items = study.images().values(), study.items().values()
    copy = Study.create(out, study.design, study.folder, images, items)
    for metric, distances in study.distances().items():
        copy.set_distances(metric, distances)
    if made_with := study.made_with():
        copy.set_made_with(made_with)
    return copy


def simulation_note(answers: Iterable[Answer]) -> str:
    """A sentence that says how many of the answers are of simulated observers; empty if none is.

    Everything that is made from the answers of a study must show it.
    """
    answers = list(answers)
    count = sum(bool(answer.timing.get(_MARK)) for answer in answers)
    if not count:
        return ""
    whole = "All answers" if count == len(answers) else f"{count} of {len(answers)} answers"
    return f"{whole} are of simulated observers: they say nothing about people."


def _answers(study: Study, observer: Observer, mind: _Mind, selector: Selector, sessions: int) -> Iterator[TrialStep]:
    step = next_step(study, observer, selector)
    for number in range(sessions):
        if number:
            step = start_session(study, observer, selector)
        while isinstance(step, TrialStep):
            choice, response, timing = mind.answer(step)
            record_answer(study, observer, step.trial.id, choice, response, timing)
            yield step
            step = next_step(study, observer, selector)


@dataclass
class _Mind:
    """One observer's answers."""

    study: Study
    person: SimulatedPerson
    distances: Mapping[int, tuple[float, float | None]]
    random: random.Random

    def answer(self, step: TrialStep) -> tuple[str, float, dict[str, Any]]:
        """What the page would send: choice, response time and timing."""
        second = self.probability(step.item)
        chosen = int(self.random.random() < second)
        if self.study.design.test == "jnd":
            choice = ("different", "same")[chosen]
        else:
            choice = ("left", "right")[chosen ^ step.trial.swapped]
            if self.random.random() < abs(self.person.side_bias):
                choice = "left" if self.person.side_bias > 0 else "right"
        return choice, self.response(second), self.timing()

    def probability(self, item: Item) -> float:
        """Of choosing the second candidate; for JND, of "same"."""
        perception = self.person.perception
        if item.expected is not None:
            right = 1 - perception.lapse / 2
            return right if item.expected in ("p1", "same") else 1 - right
        d0, d1 = (torch.tensor([value], dtype=torch.float64) for value in _pair(self.distances[item.id]))
        return float(perception.same(d0) if self.study.design.test == "jnd" else perception.second(d0, d1))

    def response(self, second: float) -> float:
        """Hard choices take longer."""
        hardness = 1 - abs(2 * second - 1)
        spread = math.exp(self.person.response_spread * self.random.gauss(0, 1))
        return self.person.response_ms * (1 + hardness) * spread

    def timing(self) -> dict[str, Any]:
        """Durations as the page would measure them."""
        found: dict[str, Any] = {_MARK: True, "visible": True, "refresh_ms": _REFRESH_MS}
        if self.study.design.test == "jnd":
            off = 40.0 if self.random.random() < self.person.slip else 0.0
            shown = [self.study.design.shown_ms + off, float(self.study.design.shown_ms)]
            found |= {"shown_ms": shown, "gap_ms": float(self.study.design.gap_ms)}
        return found


def _distances(study: Study, distances: Distances) -> dict[int, tuple[float, float | None]]:
    """Distances of all judged items."""
    items = study.items("judged")
    if callable(distances):
        return {number: distances(item) for number, item in items.items()}
    missing = [number for number in items if number not in distances]
    if missing:
        raise StudyError(f"distances: expected those of all judged items, got none of item {missing[0]}")
    return {number: distances[number] for number in items}


def _pair(pair: tuple[float, float | None]) -> tuple[float, float]:
    return pair[0], pair[0] if pair[1] is None else pair[1]


def _with_threshold(
    person: SimulatedPerson, study: Study, distances: Mapping[int, tuple[float, float | None]]
) -> SimulatedPerson:
    if study.design.test != "jnd" or person.perception.threshold is not None:
        return person
    perception = SimulatedObserver(
        person.perception.noise, person.perception.lapse, statistics.median(pair[0] for pair in distances.values())
    )
    return SimulatedPerson(perception, person.side_bias, person.response_ms, person.response_spread, person.slip)
