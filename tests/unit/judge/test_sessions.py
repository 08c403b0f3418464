"""The order of sessions, and what an answer does."""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections import Counter

import pytest
from small_studies import GOOD_TIMING, answer, first_candidate, right_choice, seeded, small_design, small_study, walk

from lpips_lightning.judge import sessions
from lpips_lightning.judge.records import CHOICES, Design, Item, StudyError
from lpips_lightning.judge.sessions import (
    DoneStep,
    candidates,
    draw_plan,
    has_slipped,
    next_step,
    record_answer,
    sentinels_needed,
    start_session,
)
from lpips_lightning.judge.store import Study
from lpips_lightning.judge.texts import usual_design
from lpips_lightning.judge.votes import votes


def known(purpose, count, test="2afc"):
    return [Item(100 + n, purpose, 1, 4, 7 if test == "2afc" else None, CHOICES[test][n % 2]) for n in range(count)]


DESIGNS = [
    Design("2afc"),
    Design("2afc", trials=1, sentinels=1, pass_mark=1, repeats=1, practice=0),
    Design("2afc", trials=2, sentinels=0, pass_mark=0, repeats=2, practice=1),
    Design("2afc", trials=7, sentinels=3, pass_mark=3, repeats=7, practice=3),
    Design("jnd", trials=160, sentinels=40, pass_mark=36, repeats=16, practice=10),
    Design("jnd", trials=3, sentinels=2, pass_mark=1, repeats=1, practice=2),
]


@pytest.mark.parametrize("design", DESIGNS, ids=lambda design: f"{design.test}-{design.trials}")
@pytest.mark.parametrize("part", [1.0, 0.4, 0.0])
def test_plans_hold_their_counts_sides_and_distances(design, part):
    judged = max(1, int(design.trials * part))
    for seed in range(40):
        sentinels, practice = known("sentinel", 50, design.test), known("practice", 20, design.test)
        plan = draw_plan(design, judged, sentinels, practice, seeded(seed))
        kinds = Counter(slot.kind for slot in plan)
        assert kinds["judged"] == judged and kinds["practice"] == design.practice
        assert kinds["sentinel"] == math.ceil(design.sentinels * judged / design.trials)
        assert kinds["repeat"] <= design.repeats * judged / design.trials
        assert [slot.kind for slot in plan[: design.practice]] == ["practice"] * design.practice
        assert len({slot.value for slot in plan if slot.kind == "sentinel"}) == kinds["sentinel"]
        originals = [slot.value for slot in plan if slot.kind == "repeat"]
        assert len({*originals}) == len(originals)
        for position, slot in enumerate(plan):
            if slot.kind == "repeat":
                assert plan[slot.value].kind == "judged" and position - slot.value >= 2
        _check_sides(design, plan, {item.id: item for item in (*sentinels, *practice)})


def _check_sides(design, plan, items):
    sides = [slot.swapped for slot in plan if slot.kind == "judged"]
    if design.test == "jnd":
        assert not any(slot.swapped for slot in plan)
        return
    assert abs(2 * sum(sides) - len(sides)) <= 1
    for kind in ("sentinel", "practice"):
        left = [(items[slot.value].expected == "p0") ^ slot.swapped for slot in plan if slot.kind == kind]
        assert abs(2 * sum(left) - len(left)) <= 1


def test_long_sessions_keep_all_repeats_well_apart_and_seeds_differ():
    plans = [
        draw_plan(Design("2afc"), 50, known("sentinel", 15), known("practice", 5), seeded(seed)) for seed in range(50)
    ]
    for plan in plans:
        gaps = [position - slot.value for position, slot in enumerate(plan) if slot.kind == "repeat"]
        assert len(gaps) == 5 and min(gaps) >= 6
    assert len({tuple(plan) for plan in plans}) == 50
    places = Counter(position for plan in plans for position, slot in enumerate(plan) if slot.kind == "sentinel")
    assert len(places) > 60  # anywhere behind the practice
    sides = Counter(
        plan[slot.value].swapped == slot.swapped for plan in plans for slot in plan if slot.kind == "repeat"
    )
    assert 90 < sides[True] < 160  # of 250: drawn anew


@pytest.mark.parametrize("test", ["2afc", "jnd"])
def test_observers_walk_through_all_items_and_practice_once(tmp_path, test):
    study = small_study(tmp_path, small_design(test), items=12)
    for _ in range(3):
        observer, _ = study.enroll()
        steps = walk(study, observer)
        trials = [step for step in steps if not isinstance(step, DoneStep)]
        assert Counter(step.trial.reason for step in trials) == {
            "practice": 2,
            "random": 12,
            "sentinel": 5,
            "repeat": 1,
        }
        assert [step.phase for step in trials[:3]] == ["practice", "practice", "main"]
        assert [step.position for step in trials] == [0, 1, *range(12), *range(6)]
        assert [step.total for step in trials] == [2, 2, *[12] * 12, *[6] * 6]
        assert [n for n, step in enumerate(trials) if step.pause] == [6, 10, 18]  # every four
        ends = [step for step in steps if isinstance(step, DoneStep)]
        assert [(end.session.number, end.session.passed, end.answered) for end in ends] == [(0, True, 12), (1, True, 6)]
        assert [end.can_continue for end in ends] == [True, False]
    assert study.tally(0) == dict.fromkeys(study.items("judged"), 3)
    late, _ = study.enroll()
    assert next_step(study, late, first_candidate) == DoneStep(None, 0, False)
    assert start_session(study, late, first_candidate) == DoneStep(None, 0, False) and not study.sessions(late.id)


def test_the_order_comes_from_the_seed_the_observer_and_the_session(tmp_path):
    orders = []
    for index, seed in enumerate((1, 1, 2)):
        study = small_study(tmp_path / str(index), small_design(seed=seed))
        for _ in range(2):
            steps = walk(study, study.enroll()[0], sessions=1)[:-1]
            orders.append([(step.trial.item, step.trial.reason, step.trial.swapped) for step in steps])
    assert orders[:2] == orders[2:4]
    assert len({str(order) for order in orders}) == 4


def test_an_open_trial_comes_back_until_it_is_answered_also_after_the_file_is_opened_again(tmp_path):
    study = small_study(tmp_path)
    observer, secret = study.enroll()
    first = next_step(study, observer, first_candidate)
    assert next_step(study, observer, first_candidate) == first
    again = Study.open(study.path)
    observer = again.observer(secret)
    assert next_step(again, observer, first_candidate) == first
    assert start_session(again, observer, first_candidate) == first
    answer(again, observer, first)
    assert next_step(study, observer, first_candidate).trial.position == 1


def test_answers_sent_again_are_kept_once_and_told_the_same(tmp_path):
    study = small_study(tmp_path)
    observer, _ = study.enroll()
    step = next_step(study, observer, first_candidate)
    told = [record_answer(study, observer, step.trial.id, "left", 500, GOOD_TIMING) for _ in range(3)]
    assert told[0].kept and told == [told[0]] * 3
    other = record_answer(study, observer, step.trial.id, "right", 10, GOOD_TIMING)
    assert not other.kept and (other.right, other.expected) == (told[0].right, told[0].expected)
    (only,) = study.answers()
    assert only.response_ms == 500 and only.choice == ("p1" if step.trial.swapped else "p0")


@pytest.mark.parametrize("test", ["2afc", "jnd"])
def test_practice_tells_the_right_answer_and_the_rest_tells_nothing(tmp_path, test):
    study = small_study(tmp_path, small_design(test))
    observer, _ = study.enroll()
    while not isinstance(step := next_step(study, observer, first_candidate), DoneStep):
        sides = CHOICES["jnd"] if test == "jnd" else ("left", "right")
        told = answer(study, observer, step, sides[step.trial.id % 2])
        if step.phase == "practice":
            assert told.right == (told.expected == sides[step.trial.id % 2]) and told.expected in sides
        else:
            assert told.expected is None and not told.right


def test_wrong_answers_are_refused(tmp_path):
    study = small_study(tmp_path)
    (one, _), (other, _) = study.enroll(), study.enroll()
    trial = next_step(study, one, first_candidate).trial.id
    with pytest.raises(StudyError, match="trial: expected one of this observer, got"):
        record_answer(study, other, trial, "left", 1, {})
    with pytest.raises(StudyError, match="choice: expected one of left, right, got 'p0'"):
        record_answer(study, one, trial, "p0", 1, {})
    for wrong in (-1, math.inf, math.nan, 1e12):
        with pytest.raises(StudyError, match="response_ms: expected milliseconds, got"):
            record_answer(study, one, trial, "left", wrong, {})
    assert not study.answers()


@pytest.mark.parametrize(("wrong", "passed"), [(0, True), (1, True), (2, False), (3, False)])
def test_the_pass_mark_counts_right_sentinels(tmp_path, wrong, passed):
    study = small_study(tmp_path)
    observer, _ = study.enroll()
    left = itertools.count()
    while not isinstance(step := next_step(study, observer, first_candidate), DoneStep):
        lapse = step.trial.reason == "sentinel" and next(left) < wrong
        right = ("left", "right")[CHOICES["2afc"].index(step.item.expected or "p0") ^ step.trial.swapped]
        answer(study, observer, step, {"left": "right", "right": "left"}[right] if lapse else right)
    assert step.session.passed is passed
    assert bool(study.tally(0)) is passed  # failed sessions give no votes, and their items are asked others again
    other, _ = study.enroll()
    assert len(candidates(study, other)) == 12 and len(candidates(study, observer)) == 4


def test_a_session_is_finished_by_its_last_answer(tmp_path):
    study = small_study(tmp_path)
    observer, _ = study.enroll()
    for _ in range(14):
        assert study.sessions()[-1:] == [] or study.sessions()[-1].finished is None
        answer(study, observer, next_step(study, observer, first_candidate))
    assert study.sessions()[-1].passed is True


@pytest.mark.parametrize("slipped", [True, False])
def test_slipped_jnd_sentinels_count_neither_way(tmp_path, slipped):
    study = small_study(tmp_path, small_design("jnd"))
    observer, _ = study.enroll()
    while not isinstance(step := next_step(study, observer, first_candidate), DoneStep):
        wrong = {"same": "different", "different": "same", None: "same"}[step.item.expected]
        answer(study, observer, step, wrong, {"visible": False} if slipped else None)
    assert step.session.passed is slipped


def test_needed_sentinels_are_in_proportion():
    needed = [sentinels_needed(Design(sentinels=15, pass_mark=14), shown) for shown in range(16)]
    assert needed == [*range(5), *range(4, 15)]
    strict = Design(sentinels=15, pass_mark=15)
    assert [sentinels_needed(strict, shown) for shown in range(16)] == [*range(16)]
    assert sentinels_needed(Design(sentinels=0, pass_mark=0), 0) == 0
    jnd = Design("jnd", sentinels=40, pass_mark=36)
    assert sentinels_needed(jnd, 40) == 36 > 32  # more than the identical ones, which "same" always gets right


@pytest.mark.parametrize("sentinels", [0, 1, 2, 3, 5, 6, 7, 20, 40, 60])
def test_the_usual_pass_mark_fits_any_number_of_sentinels(sentinels):
    for test in ("2afc", "jnd"):
        design = usual_design(test, sentinels=sentinels)
        assert design.pass_mark >= 0.85 * sentinels
        if test == "jnd" and sentinels > 2:
            assert design.pass_mark > sentinels - round(sentinels / 5)  # those that are "same"


def test_one_answer_to_everything_passes_no_jnd_session_however_short():
    design = Design("jnd", trials=160, sentinels=40, pass_mark=36, repeats=0, practice=0)
    sentinels = [Item(n, "sentinel", 1, 2, None, "same" if n < 32 else "different") for n in range(40)]
    expected = {item.id: item.expected for item in sentinels}
    for judged in range(5, 161):
        for seed in range(3):
            order = seeded(seed).sample(sentinels, 40)
            plan = draw_plan(design, judged, order, [], seeded(judged, seed))
            answers = Counter(expected[slot.value] for slot in plan if slot.kind == "sentinel")
            assert max(answers["same"], answers["different"]) < sentinels_needed(design, answers.total())


@pytest.mark.parametrize(
    ("test", "change", "slipped"),
    [
        ("2afc", {}, False),
        ("2afc", {"shown_ms": None, "gap_ms": None}, False),
        ("2afc", {"visible": False}, True),
        ("jnd", {}, False),
        ("jnd", {"shown_ms": [1000.0, 1021.0]}, True),
        ("jnd", {"shown_ms": [979.9, 1000.0]}, True),
        ("jnd", {"shown_ms": [1020.0, 980.0], "gap_ms": 270.0}, False),
        ("jnd", {"gap_ms": 229.0}, True),
        ("jnd", {"gap_ms": None}, True),
        ("jnd", {"shown_ms": [1000.0]}, True),
        ("jnd", {"shown_ms": ["1000", True]}, True),
        ("jnd", {"shown_ms": [1000.0, 10**400]}, True),
        ("jnd", {"visible": False}, True),
    ],
)
def test_slips_are_found_by_the_timing(test, change, slipped):
    assert has_slipped(small_design(test), {**GOOD_TIMING, **change}) is slipped


def test_two_observers_at_once_do_not_get_the_last_vote_of_an_item(tmp_path, monkeypatch):
    study = small_study(tmp_path, small_design(votes=1, sentinels=0, pass_mark=0, practice=0, repeats=0), items=4)
    (one, _), (other, _), (third, _) = (study.enroll() for _ in range(3))
    for _ in range(2):
        steps = [next_step(study, observer, first_candidate) for observer in (one, other)]
        assert steps[0].item != steps[1].item
        assert not {step.item.id for step in steps} & {*candidates(study, third)}
        for observer, step in zip((one, other), steps, strict=True):
            answer(study, observer, step)
    ends = [next_step(study, observer, first_candidate) for observer in (one, other)]
    assert [(end.answered, end.can_continue, end.session.passed) for end in ends] == [(2, False, True)] * 2
    assert study.tally(0) == dict.fromkeys(study.items("judged"), 1)


def test_an_item_whose_observer_went_away_is_asked_again(tmp_path, monkeypatch):
    study = small_study(tmp_path, small_design(votes=1, practice=0, sentinels=0, pass_mark=0), items=1)
    (one, _), (other, _) = study.enroll(), study.enroll()
    waiting = next_step(study, one, first_candidate)
    assert next_step(study, other, first_candidate) == DoneStep(None, 0, False)
    now = time.time()
    monkeypatch.setattr(sessions.time, "time", lambda: now + 601)
    assert next_step(study, other, first_candidate).item == waiting.item
    assert next_step(study, one, first_candidate) == waiting  # and is still this observer's


def test_items_with_the_fewest_votes_come_first(tmp_path):
    study = small_study(tmp_path, small_design(practice=0, sentinels=0, pass_mark=0, repeats=0), items=12)
    walk(study, study.enroll()[0], sessions=1)
    voted = {answer.item for answer in study.answers()}
    other, _ = study.enroll()
    order = candidates(study, other, seeded(1))
    assert len(voted) == 8 and not voted & {*order[:4]} and voted == {*order[4:]}
    assert order != candidates(study, other, seeded(2))


def test_many_observers_in_threads_share_the_work_exactly(tmp_path):
    study = small_study(
        tmp_path, small_design(votes=2, sentinels=1, pass_mark=0, practice=1, trials=3, repeats=0), items=6
    )
    errors = []

    def slow(study, found, rng):
        time.sleep(0.002)  # long enough for another observer to ask
        return min(found), "random"

    def judge(observer):
        try:
            walk(study, observer, slow)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=judge, args=(study.enroll()[0],)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert study.tally(0) == dict.fromkeys(study.items("judged"), 2)
    trials = [trial for session in study.sessions() for trial in study.trials(session.id)]
    assert len(trials) == len(study.answers())
    for observer in study.observers():
        seen = [t.item for s in study.sessions(observer.id) for t in study.trials(s.id) if t.reason == "random"]
        assert len(seen) == len({*seen})


@pytest.mark.parametrize("test", ["2afc", "jnd"])
def test_the_tally_counts_what_the_votes_count_and_open_trials(tmp_path, test):
    study = small_study(tmp_path, small_design(test))
    for index in range(4):
        observer, _ = study.enroll()
        rng = seeded(test, index)
        for _ in range(25):
            if not isinstance(step := next_step(study, observer, first_candidate), DoneStep):
                lapse = index == 0 and step.trial.reason == "sentinel"  # the first one fails
                wrong = {"left": "right", "right": "left", "same": "different", "different": "same"}
                choice = wrong[right_choice(study, step)] if lapse else None
                answer(study, observer, step, choice, {**GOOD_TIMING, "visible": rng.random() < 0.8})
            elif step.can_continue:
                start_session(study, observer, first_candidate)
    found = {item: sum(pair) for item, pair in votes(study).items()}
    assert study.tally(time.time() + 1) == found and len(found) > 8
    assert study.sessions()[0].passed is False and any(answer.slipped for answer in study.answers())
    waiting = [one for one in study.observers() if not isinstance(next_step(study, one, first_candidate), DoneStep)]
    assert sum(study.tally(0).values()) <= sum(found.values()) + len(waiting)
