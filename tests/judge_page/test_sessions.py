"""Whole sessions on the page of `judge serve` in a real browser: what people chose is what the study holds."""

from __future__ import annotations

import itertools

import pytest
from judge_page import Person, as_pressed, chromium, make_study, served

SIDES = ("left", "right", "right", "left", "right")
FAST = {"shown_ms": 100, "gap_ms": 50}


@pytest.fixture(scope="module")
def browser():
    with chromium() as one:
        yield one


def test_a_2afc_session_by_keyboard_with_wrong_keys_and_a_reload(browser, tmp_path):
    study = make_study(tmp_path, "2afc")
    with served(study) as address:
        person, choices = Person(browser, address), itertools.cycle(SIDES)
        assert person.stop() == "consent"
        assert person.page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]") == [0, 0, ""]
        assert not person.context.cookies() and not study.observers()
        assert all(method == "GET" for method, _ in person.asked)
        first = person.next_trial()
        for key in ("x", "q", "ArrowUp"):
            person.page.keyboard.press(key)
        assert "Press ←" in person.page.inner_text("#hint")
        assert person.stop() == first and not study.answers()
        assert person.judge(choices, 4) not in ("done", first)
        person.page.keyboard.down("f")  # a key that is held down answers once
        person.given[person_trial(person)] = "left"
        for _ in range(5):
            person.page.keyboard.down("f")
        person.page.keyboard.up("f")
        asked = person.next_trial()
        person.page.reload()
        assert person.stop() == "returning"
        person.press("#known button")
        assert person.next_trial() == asked
        assert person.judge(choices) == "done"
        assert person.name in person.page.inner_text("#done")
        assert as_pressed(study) == {person.name: person.given} and len(person.given) == 8
        assert all(answer.response_ms > 0 and not answer.slipped for answer in study.answers())
        assert not person.stored()["pending"] and not person.complaints
        person.leave()


def person_trial(person):
    """The trial that was asked last: the held key has answered it already."""
    return max(person.given) + 1


@pytest.mark.parametrize("touch", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_jnd_session(browser, tmp_path, touch):
    study = make_study(tmp_path, "jnd", trials=2, sentinels=1, practice=1, repeats=0, **FAST)
    with served(study) as address:
        person = Person(browser, address, touch=touch, size=(390, 720))
        assert person.judge(itertools.cycle(["same", "different", "different"])) == "done"
        assert as_pressed(study) == {person.name: person.given} and len(person.given) == 4
        assert not person.complaints
        person.leave()
