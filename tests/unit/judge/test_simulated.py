"""Simulated observers answer as people would through the page, and are recognized."""

import json
import sqlite3
from collections import Counter

import pytest
import torch

from lpips_lightning.data.observer import SimulatedObserver
from lpips_lightning.judge.records import Design, Image, Item, StudyError
from lpips_lightning.judge.simulated import SimulatedPerson, simulate, simulation_note
from lpips_lightning.judge.store import Study
from tests._helpers.method_study import method_study, noise_distances, random_selector, write_methods

EXACT = SimulatedPerson(SimulatedObserver(noise=0, lapse=0))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    write_methods(folder, references=4)
    return folder


@pytest.fixture
def make(images, tmp_path):
    """Makes studies, and closes them."""
    made = []

    def build(name="s.db", **design):
        made.append(method_study(tmp_path / name, images, references=4, **design))
        return made[-1]

    yield build
    for study in made:
        study.close()


def test_they_answer_whole_sessions_as_the_distance_has_it(make):
    study = make(trials=10)
    people = simulate(study, noise_distances, random_selector, observers=3, sessions=2, person=EXACT)
    items, answers = study.items(), study.answers()
    assert [session.passed for session in study.sessions()] == [True] * 6
    assert Counter(one.observer for one in answers) == {one.name: 2 * (10 + 2 + 2) for one in people}
    for one in answers:
        item = items[one.item]
        nearer = item.expected or ("p0", "p1")[noise_distances(item)[0] > noise_distances(item)[1]]
        assert one.choice == nearer
    assert {one.swapped for one in answers} == {True, False}
    assert Counter(one.reason for one in answers) == {"random": 60, "sentinel": 12, "repeat": 12}


def test_answers_and_observers_are_marked_in_the_file(make):
    study = make()
    simulate(study, noise_distances, random_selector, observers=1, seed=7)
    assert simulation_note(study.answers()) == (
        "All answers are of simulated observers: they say nothing about people."
    )
    with sqlite3.connect(study.path) as connection:
        (client,) = connection.execute("SELECT client FROM observer").fetchone()
    connection.close()
    assert json.loads(client)["simulated"]["seed"] == 7
    assert json.loads(client)["simulated"]["perception"]["noise"] == 0.75
    person, _ = study.enroll()
    trial = study.assign(study.start_session(person.id).id, 0, 1, "random", False)
    study.answer(trial.id, "p0", 500.0)
    answers = study.answers()
    assert simulation_note(answers).startswith(f"{len(answers) - 1} of {len(answers)} answers are of simulated")
    assert simulation_note(answers[-1:]) == ""


def test_equal_seeds_give_equal_answers(make):
    found = []
    for number, seed in enumerate((3, 3, 4)):
        study = make(f"{number}.db")
        simulate(study, noise_distances, random_selector, observers=2, seed=seed)
        found.append([(one.item, one.choice, one.response_ms) for one in study.answers()])
    assert found[0] == found[1] != found[2]


def test_noise_and_lapses_are_those_that_were_asked_for(make):
    study = make(trials=24, votes=100, sentinels=0, pass_mark=0, repeats=0)
    person = SimulatedPerson(SimulatedObserver(noise=0.5, lapse=0.1))
    simulate(study, lambda item: (0.1, 0.15), random_selector, observers=20, person=person)
    share = sum(one.choice == "p1" for one in study.answers()) / 480
    wanted = person.perception.second(torch.tensor([0.1]), torch.tensor([0.15]))
    assert share == pytest.approx(float(wanted), abs=0.07)  # 3 standard errors


@pytest.mark.parametrize(("bias", "left"), [(0.5, 0.75), (-0.5, 0.25), (1.0, 1.0)])
def test_a_bias_of_side_is_seen_on_the_side_alone(make, bias, left):
    study = make(trials=24, votes=100, sentinels=0, pass_mark=0, repeats=0)
    person = SimulatedPerson(SimulatedObserver(noise=1), side_bias=bias)
    simulate(study, lambda item: (0.1, 0.1), random_selector, observers=10, person=person)
    answers = study.answers()
    assert sum((one.choice == "p1") == one.swapped for one in answers) / 240 == pytest.approx(left, abs=0.1)
    assert sum(one.choice == "p1" for one in answers) / 240 == pytest.approx(0.5, abs=0.1)


def test_hard_choices_take_longer(make):
    study = make(trials=24, votes=100)
    person = SimulatedPerson(SimulatedObserver(noise=0.3, lapse=0), response_spread=0.0)
    simulate(study, lambda item: (0.1, 0.1 if item.id % 2 else 0.9), random_selector, observers=2, person=person)
    times = {one.item % 2: one.response_ms for one in study.answers() if one.reason == "random"}
    assert times[1] == pytest.approx(1800) and times[0] == pytest.approx(900, rel=0.01)


def test_lapses_fail_sentinels(make):
    study = make(trials=4, sentinels=2, pass_mark=2, votes=100)
    careless = SimulatedPerson(SimulatedObserver(lapse=1.0))
    simulate(study, noise_distances, random_selector, observers=30, person=careless)
    passed = sum(bool(session.passed) for session in study.sessions())
    assert len(study.sessions()) == 30 and 0 < passed < 18


def test_a_study_can_stop_in_the_middle_and_is_shared_in_turns(make):
    study = make(trials=20)
    simulate(study, noise_distances, random_selector, observers=3, stop_after=5)
    assert len(study.answers()) == 15
    assert {session.passed for session in study.sessions()} == {None}


def test_jnd_observers_have_a_threshold_and_slips(tmp_path):
    images = [Image(number, f"{number}.png", "0", 8, 8) for number in range(1, 42)]
    items = [Item(number, "judged", 1, number + 1) for number in range(1, 41)]
    design = Design(test="jnd", trials=40, sentinels=0, pass_mark=0, practice=0, repeats=0, votes=50)
    study = Study.create(tmp_path / "jnd.db", design, tmp_path, images, items)
    person = SimulatedPerson(SimulatedObserver(noise=0, lapse=0), slip=0.25)
    near = {number: (number / 100, None) for number in range(1, 41)}
    simulate(study, near, random_selector, observers=10, person=person)
    answers = study.answers()
    assert all((one.choice == "same") == (one.item <= 20) for one in answers)  # the median is 0.205
    assert sum(one.slipped for one in answers) / 400 == pytest.approx(0.25, abs=0.07)
    study.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [({"side_bias": 2}, "side_bias"), ({"slip": -1}, "slip"), ({"response_ms": 0}, "response_ms")],
)
def test_values_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=f"{message}: expected"):
        SimulatedPerson(**options)


def test_missing_distances_and_no_observers_are_refused_before_anything_is_stored(make):
    study = make()
    with pytest.raises(StudyError, match="distances: expected those of all judged items, got none of item 2"):
        simulate(study, {1: (0.1, 0.2)}, random_selector)
    with pytest.raises(ValueError, match="observers: expected at least 1"):
        simulate(study, noise_distances, random_selector, observers=0)
    assert study.observers() == []
