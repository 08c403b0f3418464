"""What observers did: sessions, sentinels, repeats, response times, sides, and whether they tired."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lpips_lightning.functional.judgments import bootstrap_interval
from lpips_lightning.judge.records import CHOICES, Answer
from lpips_lightning.judge.results.agreement import (
    FEW_OBSERVERS,
    UNKNOWN,
    Ballots,
    Estimate,
    by_observer,
    pair_agreement,
)
from lpips_lightning.judge.store import Study
from lpips_lightning.judge.votes import COUNTED, counted

TOO_FAST_MS = 200.0
"""Answers that come faster were hardly given to what was shown: simple reactions to light take about 200 ms."""


@dataclass(frozen=True)
class ObserverRow:
    """What one observer did.

    Attributes:
        name: Pseudonym.
        sessions: Sessions begun.
        passed: Sessions that passed their sentinels.
        failed: Sessions that did not.
        answers: Answers, practice and all.
        counted: Answers that count.
        sentinels: Sentinels answered.
        wrong: Those answered wrong.
        repeats: Repeats answered, of sessions that did not fail.
        alike: Those answered as the first time.
        median_ms: Median response time without practice; NaN without answers.
        too_fast: Answers faster than a limit, without practice.
        slipped: Trials whose display slipped.
        refresh_ms: Median refresh interval of the display; NaN if it was not measured.
        left: 2AFC: fraction of the counted answers for the left image; JND: for "same"; NaN without.
    """

    name: str
    sessions: int
    passed: int
    failed: int
    answers: int
    counted: int
    sentinels: int
    wrong: int
    repeats: int
    alike: int
    median_ms: float
    too_fast: int
    slipped: int
    refresh_ms: float
    left: float


def observer_rows(study: Study, too_fast_ms: float = TOO_FAST_MS) -> list[ObserverRow]:
    """What each observer did, in the order in which they came.

    Args:
        study: The study.
        too_fast_ms: Answers that take less are too fast.
    """
    answers, sessions = _by_name(study.answers()), study.sessions()
    votes = _by_name(counted(study))
    alike = _by_pairs(repeat_pairs(study))
    rows = []
    for observer in study.observers():
        own, mine = answers.get(observer.name, []), [one for one in sessions if one.observer == observer.id]
        real = [answer for answer in own if answer.reason != "practice"]
        tests = [answer for answer in own if answer.reason == "sentinel"]
        expected = {number: item.expected for number, item in study.items("sentinel").items()}
        times = [answer.response_ms for answer in real]
        pairs = alike.get(observer.name, [])
        rows.append(
            ObserverRow(
                observer.name,
                len(mine),
                sum(session.passed is True for session in mine),
                sum(session.passed is False for session in mine),
                len(own),
                len(votes.get(observer.name, [])),
                len(tests),
                sum(answer.choice != expected.get(answer.item) for answer in tests),
                len(pairs),
                sum(pairs),
                statistics.median(times) if times else math.nan,
                sum(time < too_fast_ms for time in times),
                sum(answer.slipped for answer in own),
                refresh_ms(own),
                first_side(votes.get(observer.name, []), study),
            )
        )
    return rows


def _by_name(answers: Iterable[Answer]) -> dict[str, list[Answer]]:
    found: dict[str, list[Answer]] = {}
    for answer in answers:
        found.setdefault(answer.observer, []).append(answer)
    return found


def refresh_ms(answers: Iterable[Answer]) -> float:
    """Median refresh interval that the page measured; NaN if it measured none."""
    found = [answer.timing.get("refresh_ms") for answer in answers]
    values = [float(value) for value in found if isinstance(value, int | float) and math.isfinite(value)]
    return statistics.median(values) if values else math.nan


def first_side(answers: Sequence[Answer], study: Study) -> float:
    """2AFC: fraction of answers for the left image; JND: for "same"; NaN without answers."""
    return float(_first_side(answers, study).mean()) if answers else math.nan


def _first_side(answers: Sequence[Answer], study: Study) -> Tensor:
    first, swaps = CHOICES[study.design.test][0], study.design.test == "2afc"
    return torch.tensor(
        [(answer.choice == first) != (answer.swapped and swaps) for answer in answers], dtype=torch.float64
    )


def repeat_pairs(study: Study) -> list[tuple[str, bool]]:
    """Observer and whether the answer was the same, for each repeat of a session that did not fail.

    A repeat is compared with the observer's last earlier answer to the item; those that slipped are left out for JND.
    """
    known: dict[tuple[str, int], str] = {}
    pairs = []
    keep_slipped = study.design.test == "2afc"
    for answer in sorted(study.answers(), key=lambda one: one.trial):  # clocks are set back now and then
        if answer.passed is False or (answer.slipped and not keep_slipped):
            continue
        key = answer.observer, answer.item
        if answer.reason == "repeat" and key in known:
            pairs.append((answer.observer, known[key] == answer.choice))
        if answer.reason in (*COUNTED, "repeat"):
            known[key] = answer.choice
    return pairs


def _by_pairs(pairs: Iterable[tuple[str, bool]]) -> dict[str, list[bool]]:
    found: dict[str, list[bool]] = {}
    for name, same in pairs:
        found.setdefault(name, []).append(same)
    return found


def consistency(study: Study, resamples: int = 1000) -> Estimate:
    """Fraction of the repeats that observers answer as the first time, with an interval over observers."""
    pairs = repeat_pairs(study)
    people = {name: index for index, name in enumerate(sorted({name for name, _ in pairs}))}
    values = torch.tensor([same for _, same in pairs], dtype=torch.float64)
    return by_observer(values, torch.tensor([people[name] for name, _ in pairs]), resamples=resamples)


def side_bias(answers: Sequence[Answer], study: Study, resamples: int = 1000) -> Estimate:
    """Fraction of answers for the left image (2AFC) or "same" (JND), with an interval over observers."""
    if not answers:
        return UNKNOWN
    return by_observer(_first_side(answers, study), Ballots.of(answers, study).observer, resamples=resamples)


def excluded(study: Study) -> dict[str, int]:
    """Numbers of the answers that do not count, by the reason why."""
    kept = {answer.trial for answer in counted(study)}
    items = study.items("judged")
    found: Counter[str] = Counter()
    for answer in study.answers():
        if answer.trial in kept:
            continue
        if answer.reason in ("practice", "sentinel", "repeat"):
            found[{"practice": "practice", "sentinel": "sentinels", "repeat": "repeats"}[answer.reason]] += 1
        elif answer.passed is False:
            found["of sessions that failed their sentinels"] += 1
        elif answer.slipped and study.design.test == "jnd":
            found["display slipped"] += 1
        else:
            found["second answer of an observer to an item" if answer.item in items else "of other items"] += 1
    return dict(found)


@dataclass(frozen=True)
class Fatigue:
    """The second half of sessions against the first.

    Attributes:
        agreement: Agreement with the other observers of the item in the second half minus that in the first, each less
            the item's mean, so that it is no matter which items came late.
        times: Median response time in the first and in the second half, in milliseconds.
    """

    agreement: Estimate
    times: tuple[float, float]


def fatigue(answers: Sequence[Answer], study: Study, resamples: int = 1000) -> Fatigue:
    """Whether answers at the end of sessions differ from those at their beginning.

    Args:
        answers: Answers that count.
        study: The study.
        resamples: Bootstrap resamples, of observers if there are `FEW_OBSERVERS`.
    """
    if not answers:
        return Fatigue(UNKNOWN, (math.nan, math.nan))
    late = _late(answers)
    halves = [
        [answer.response_ms for answer, is_late in zip(answers, late, strict=True) if is_late == x] for x in (0, 1)
    ]
    times = tuple(statistics.median(half) if half else math.nan for half in halves)
    ballots = Ballots.of(answers, study)
    counts = ballots.counts()
    votes = counts[ballots.item]
    kept = votes.sum(1) > 1
    alike = (votes.gather(1, ballots.second[:, None])[:, 0] - 1) / (votes.sum(1) - 1)
    alike = (alike - pair_agreement(counts)[ballots.item])[kept]
    end = torch.tensor(late, dtype=torch.float64)[kept]
    if not 0 < float(end.sum()) < len(end):
        return Fatigue(UNKNOWN, (times[0], times[1]))

    def gap(values: Tensor, ends: Tensor) -> Tensor:
        return values[ends > 0].mean() - values[ends == 0].mean()

    people = ballots.observer[kept]
    groups = people if len(people.unique()) >= FEW_OBSERVERS else None
    found = bootstrap_interval(gap, alike, end, groups=groups, bounds=(-1.0, 1.0), resamples=resamples)
    return Fatigue(Estimate(float(gap(alike, end)), *found), (times[0], times[1]))


def _late(answers: Sequence[Answer]) -> list[bool]:
    """Whether each answer is in the second half of those of its session."""
    places: dict[int, list[int]] = {}
    for answer in answers:
        places.setdefault(answer.session, []).append(answer.position)
    middle: Mapping[int, float] = {session: statistics.median(found) for session, found in places.items()}
    return [answer.position > middle[answer.session] for answer in answers]
