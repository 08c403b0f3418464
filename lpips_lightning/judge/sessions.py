"""The order of a session: practice, sentinels, repeats, breaks and sides; open trials come back after a reload.

A plan is drawn once from `Design.seed`, the observer and the number of the session, and stored. Which item is judged is
decided when its turn comes, by a `Selector`. Everything happens in one transaction of the study's file, so that several
observers, threads and processes may ask at once, and a killed server goes on where it was.
"""

from __future__ import annotations

import itertools
import json
import math
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeGuard

from lpips_lightning.judge.records import CHOICES, Design, Item, Observer, Reason, Session, StudyError, Trial
from lpips_lightning.judge.store import Study

if TYPE_CHECKING:
    from lpips_lightning.judge.selection import Selector

SIDES = ("left", "right")
"""Answers of the page to a 2AFC trial."""

PENDING_SECONDS = 600.0
"""A trial without answer counts as a vote for this long, so that two observers do not get the last vote of an item."""

_MAX_NUMBER = 1e9  # eleven days in milliseconds
_FAR = 5  # trials between a trial and its repeat, where the session is long enough


@dataclass(frozen=True)
class Slot:
    """A place in the plan of a session.

    Attributes:
        kind: What is shown there.
        swapped: Whether the left image is `Item.p1`.
        value: The item for practice and sentinels; for a repeat the position of the trial that it repeats; else 0.
    """

    kind: Literal["practice", "sentinel", "judged", "repeat"]
    swapped: bool
    value: int = 0


@dataclass(frozen=True)
class TrialStep:
    """A trial to show.

    Attributes:
        trial: The trial.
        item: Its item.
        phase: Practice comes with feedback, before the first session.
        position: Position in the phase, from 0.
        total: Trials of the phase.
        pause: Whether a break is offered before it.
    """

    trial: Trial
    item: Item
    phase: Literal["practice", "main"]
    position: int
    total: int
    pause: bool


@dataclass(frozen=True)
class DoneStep:
    """Nothing to show until another session is started.

    Attributes:
        session: The finished session; None if nothing was left for a first one.
        answered: Answers in it, without practice.
        can_continue: Whether items are left for another session.
    """

    session: Session | None
    answered: int
    can_continue: bool


Step: TypeAlias = TrialStep | DoneStep


@dataclass(frozen=True)
class Recorded:
    """What became of an answer.

    Attributes:
        kept: Whether this answer is the one on the disk, also if it was sent before.
        expected: The right answer of a practice trial as the page calls it, else None.
        right: Whether the answer on the disk is that one.
    """

    kept: bool
    expected: str | None = None
    right: bool = False


def next_step(study: Study, observer: Observer, selector: Selector) -> Step:
    """The open trial of an observer, or the next one of the session, or that the session is done.

    Starts the first session by itself, others after `Study.start_session`. Finishes a session after its last trial, or
    when no item is left for it.

    Args:
        study: The study.
        observer: Who asks.
        selector: Chooses the judged items.
    """
    with study.transaction():
        sessions = study.sessions(observer.id)
        if not sessions and not candidates(study, observer):
            return DoneStep(None, 0, False)
        if sessions and sessions[-1].finished is not None:
            return _done(study, observer, sessions[-1])
        session = study.start_session(observer.id)
        plan, trials = _plan(study, observer, session), study.trials(session.id)
        answered = study.answered_trials(session.id)
        trial = next((one for one in trials if one.id not in answered), None)
        if trial is None and len(trials) < len(plan):
            trial = _assign(study, observer, session, plan, trials, selector)
        if trial is not None:
            return _shown(study, plan, trial)
        study.finish_session(session.id, _has_passed(study, session))
        return _done(study, observer, study.sessions(observer.id)[-1])


def start_session(study: Study, observer: Observer, selector: Selector) -> Step:
    """Start another session if the last one is finished and items are left; then as `next_step`."""
    with study.transaction():
        if candidates(study, observer):
            study.start_session(observer.id)
        return next_step(study, observer, selector)


def record_answer(
    study: Study, observer: Observer, trial: int, choice: str, response_ms: float, timing: Mapping[str, Any]
) -> Recorded:
    """Keep an answer as the page sends it; the first one of a trial counts, and may be sent again.

    Args:
        study: The study.
        observer: Who answers.
        trial: Number of a trial of the observer.
        choice: ``"left"`` or ``"right"`` for 2AFC, ``"same"`` or ``"different"`` for JND.
        response_ms: Time to the answer in milliseconds.
        timing: What the page measured, see `has_slipped`.

    Raises:
        StudyError: If the trial is not one of the observer, or the choice is none of the test.
    """
    with study.transaction():
        found = study.find_trial(trial, observer.id)
        if found is None:
            raise StudyError(f"trial: expected one of this observer, got {trial}")
        if not is_number(response_ms) or response_ms < 0:
            raise StudyError(f"response_ms: expected milliseconds, got {response_ms}")
        stored = _stored(study.design, choice, found.swapped)
        study.answer(trial, stored, response_ms, slipped=has_slipped(study.design, timing), timing=timing)
        _finish_after_last(study, observer, found.session)
        kept = study.choice(trial)
        if found.reason != "practice":
            return Recorded(kept == stored)
        expected = study.item(found.item).expected
        return Recorded(kept == stored, _as_shown(study.design, str(expected), found.swapped), kept == expected)


def has_slipped(design: Design, timing: Mapping[str, Any]) -> bool:
    """Whether the display of a trial differed from what was asked, by what the page measured.

    Args:
        design: Of the study.
        timing: ``visible`` (false: the page was hidden meanwhile); for JND ``shown_ms`` of both images, and ``gap_ms``.

    Returns:
        True if the page was hidden. For JND also if a duration differs by more than `Design.slip_ms` or is missing.
    """
    if timing.get("visible") is False:
        return True
    if design.test == "2afc":
        return False
    shown, gap = timing.get("shown_ms"), timing.get("gap_ms")
    if not isinstance(shown, list) or len(shown) != 2:
        return True
    wanted = [(shown[0], design.shown_ms), (shown[1], design.shown_ms), (gap, design.gap_ms)]
    return not all(is_number(got) and abs(got - asked) <= design.slip_ms for got, asked in wanted)


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value from the page is a finite number, of a size that a page can measure."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _MAX_NUMBER


def candidates(study: Study, observer: Observer, rng: random.Random | None = None) -> list[int]:
    """Judged items that an observer has not seen and that want votes; those with the fewest first.

    Args:
        study: The study.
        observer: Who is to judge.
        rng: Orders items with equally many votes; None leaves them in the order of their numbers.
    """
    votes, shown = study.tally(time.time() - PENDING_SECONDS), study.shown(observer.id)
    found = [item for item in study.items("judged") if item not in shown and votes.get(item, 0) < study.design.votes]
    if rng is not None:
        rng.shuffle(found)
    return sorted(found, key=lambda item: votes.get(item, 0))


def draw_plan(
    design: Design, judged: int, sentinels: Sequence[Item], practice: Sequence[Item], rng: random.Random
) -> list[Slot]:
    """Draw the order of a session.

    Practice comes first. Sentinels and judged items are shuffled; each repeat stands behind its original, with
    other trials between. Half of the judged items have their sides swapped, and half of the right answers of sentinels
    and of practice stand on the left; a repeat's side is drawn anew. A session with fewer judged items than
    `Design.trials` has fewer sentinels (at least one) and repeats in proportion.

    Args:
        design: Of the study.
        judged: Judged items of the session.
        sentinels: Items to take sentinels from, in the order of preference.
        practice: Items to practice on; empty after the first session.
        rng: Source of all choices.
    """
    part = min(1.0, judged / design.trials)
    count = min(len(sentinels), math.ceil(design.sentinels * part))
    main = [*_known("sentinel", design, _mixed(design, sentinels, count), rng)]
    main += [Slot("judged", side) for side in _sides(design, judged, rng)]
    rng.shuffle(main)
    first = list(practice[: design.practice])
    rng.shuffle(first)
    start = [*_known("practice", design, first, rng)]
    return [*start, *_with_repeats(main, int(design.repeats * part), len(start), design, rng)]


def sentinels_needed(design: Design, shown: int) -> int:
    """Sentinels that must be right of those shown.

    With fewer than `Design.sentinels`, the misses that it allows are in proportion, rounded up from a third on: honest
    observers miss a few percent, and none of a handful would be allowed otherwise.

    Example:
        >>> [sentinels_needed(Design(sentinels=15, pass_mark=14), shown) for shown in (15, 8, 5, 4, 1, 0)]
        [14, 7, 4, 4, 1, 0]
    """
    if shown == 0:
        return 0
    allowed = design.sentinels - design.pass_mark
    return shown - (3 * shown * allowed + 2 * design.sentinels) // (3 * design.sentinels)


def _plan(study: Study, observer: Observer, session: Session) -> list[Slot]:
    """The stored plan of a session, drawn if there is none."""
    stored = study.plan(session.id)
    if stored is None:
        design = study.design
        rng = random.Random(f"{design.seed}/{observer.id}/{session.number}")
        judged = min(design.trials, len(candidates(study, observer)))
        practice = [] if session.number else list(study.items("practice").values())
        rng.shuffle(practice)
        slots = draw_plan(design, judged, _sentinels(study, observer, rng), practice, rng)
        stored = json.dumps([astuple(slot) for slot in slots])
        study.set_plan(session.id, stored)
    return [Slot(*values) for values in json.loads(stored)]


def _sentinels(study: Study, observer: Observer, rng: random.Random) -> list[Item]:
    """Sentinels in random order, those that the observer has not seen first."""
    found, shown = list(study.items("sentinel").values()), study.shown(observer.id)
    rng.shuffle(found)
    return sorted(found, key=lambda item: item.id in shown)


def _sides(design: Design, count: int, rng: random.Random) -> list[bool]:
    """Random sides, half of them swapped; a JND trial has none."""
    if design.test == "jnd":
        return [False] * count
    sides = [number % 2 == 1 for number in range(count)]
    if count % 2:
        sides[-1] = rng.random() < 0.5
    rng.shuffle(sides)
    return sides


def _known(
    kind: Literal["practice", "sentinel"], design: Design, items: Sequence[Item], rng: random.Random
) -> list[Slot]:
    """Slots of items with a known answer; half of the answers on the left."""
    sides = _sides(design, len(items), rng)
    if design.test == "jnd":
        return [Slot(kind, False, item.id) for item in items]
    return [Slot(kind, side == (item.expected == "p0"), item.id) for item, side in zip(items, sides, strict=True)]


def _mixed(design: Design, sentinels: Sequence[Item], count: int) -> list[Item]:
    """The first sentinels; of fewer than usual, half for each answer, so that one answer to all does not pass."""
    if count >= design.sentinels:
        return list(sentinels[:count])
    rare, often = sorted(
        ([one for one in sentinels if one.expected == choice] for choice in CHOICES[design.test]), key=len
    )
    pairs = itertools.chain.from_iterable(itertools.zip_longest(rare, often))
    return [one for one in pairs if one is not None][:count]


def _with_repeats(main: list[Slot], count: int, start: int, design: Design, rng: random.Random) -> list[Slot]:
    """The main slots with repeats of judged ones behind their originals; positions count from `start`."""
    far = min(_FAR, max(1, len(main) // 3))
    originals = [at for at, slot in enumerate(main) if slot.kind == "judged" and at + 1 + far <= len(main)]
    behind: dict[int, list[int]] = {}
    for original in rng.sample(originals, min(count, len(originals))):
        behind.setdefault(rng.randint(original + 1 + far, len(main)), []).append(original)
    result: list[Slot] = []
    places: dict[int, int] = {}
    for at in range(len(main) + 1):
        for original in behind.get(at, []):
            result.append(Slot("repeat", _sides(design, 1, rng)[0], places[original]))
        if at < len(main):
            places[at] = start + len(result)
            result.append(main[at])
    return result


def _assign(
    study: Study,
    observer: Observer,
    session: Session,
    plan: Sequence[Slot],
    trials: Sequence[Trial],
    selector: Selector,
) -> Trial | None:
    """The trial of the next slot; None if no item is left for it, which ends the session."""
    position = len(trials)
    slot = plan[position]
    reason: Reason
    if slot.kind == "judged":
        rng = random.Random(f"{study.design.seed}/{observer.id}/{session.number}/{position}")
        left = candidates(study, observer, rng)
        if not left:
            return None
        item, reason = selector(study, left, rng)
    elif slot.kind == "repeat":
        item, reason = trials[slot.value].item, "repeat"
    else:
        item, reason = slot.value, slot.kind
    return study.assign(session.id, position, item, reason, slot.swapped)


def _shown(study: Study, plan: Sequence[Slot], trial: Trial) -> TrialStep:
    practice, every = sum(slot.kind == "practice" for slot in plan), study.design.break_every
    item = study.item(trial.item)
    if trial.position < practice:
        return TrialStep(trial, item, "practice", trial.position, practice, False)
    before, total = trial.position - practice, len(plan) - practice
    pause = bool(every) and before > 0 and before % every == 0 and total - before > every // 4  # not close to the end
    return TrialStep(trial, item, "main", before, total, pause)


def _done(study: Study, observer: Observer, session: Session) -> DoneStep:
    answered = sum(answer.reason != "practice" for answer in study.answers(session.id))
    return DoneStep(session, answered, bool(candidates(study, observer)))


def _finish_after_last(study: Study, observer: Observer, number: int) -> None:
    """Finish a session whose plan is answered; the page may never ask for the next step."""
    session = next(one for one in study.sessions(observer.id) if one.id == number)
    stored = study.plan(number)
    if stored is not None and len(study.answered_trials(number)) == len(json.loads(stored)):
        study.finish_session(number, _has_passed(study, session))


def _has_passed(study: Study, session: Session) -> bool:
    """Whether enough sentinels were right; a JND sentinel whose display slipped counts neither way."""
    items, jnd = study.items("sentinel"), study.design.test == "jnd"
    answers = [one for one in study.answers(session.id) if one.reason == "sentinel" and not (jnd and one.slipped)]
    right = sum(answer.choice == items[answer.item].expected for answer in answers)
    return right >= sentinels_needed(study.design, len(answers))


def _stored(design: Design, choice: str, swapped: bool) -> str:
    """The answer of the page as one of `CHOICES`."""
    shown = SIDES if design.test == "2afc" else CHOICES["jnd"]
    if choice not in shown:
        raise StudyError(f"choice: expected one of {', '.join(shown)}, got {choice!r}")
    return choice if design.test == "jnd" else CHOICES["2afc"][SIDES.index(choice) ^ swapped]


def _as_shown(design: Design, choice: str, swapped: bool) -> str:
    """One of `CHOICES` as the page calls it."""
    return choice if design.test == "jnd" else SIDES[CHOICES["2afc"].index(choice) ^ swapped]
