"""Whole sessions on the page of `judge serve` in a real browser: what people chose is what the study holds."""

from __future__ import annotations

import itertools
import re

import pytest
from judge_page import ASKS, PROBLEMS, Person, ServerProcess, as_pressed, chromium, make_study, served

SIDES = ("left", "right", "right", "left", "right")
PATH = re.compile(r"|judge\.(js|css)|image/\d+|api/(study|observers|resume|next|answers|sessions)|data:,")
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
        assert not person.page.evaluate(PROBLEMS)
        first = person.next_trial()
        assert not person.page.evaluate(PROBLEMS)
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
        paths = {url.removeprefix(address) for _, url in person.asked if not url.startswith("blob:")}
        assert len(paths) > 8 and all(PATH.fullmatch(path) for path in paths)
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


@pytest.mark.slow
def test_two_observers_at_once_by_touch_and_keyboard_and_a_second_session(browser, tmp_path):
    study = make_study(tmp_path, "2afc", items=6)
    with served(study) as address:
        people = [Person(browser, address, touch=touch, size=(390, 844)) for touch in (True, False)]
        choices = [itertools.cycle(SIDES), itertools.cycle(SIDES[::-1])]
        stops = [person.next_trial() for person in people]
        while isinstance(stops[0], int) or isinstance(stops[1], int):
            stops = [person.judge(choice, 1) for person, choice in zip(people, choices, strict=True)]
        assert stops == ["done", "done"]
        for person, choice in zip(people, choices, strict=True):
            assert len(person.given) == 2 + 3 + 2 + 1
            person.press("#another")
            assert person.judge(choice) == "done"
            assert len(person.given) == 2 + 2 * (3 + 2 + 1)  # practice comes once
            assert not person.page.is_visible("#another")  # all six items are judged
        assert as_pressed(study) == {person.name: person.given for person in people}
        assert [session.finished is not None for session in study.sessions()] == [True] * 4
        assert not people[0].complaints and not people[1].complaints
        for person in people:
            person.leave()


@pytest.mark.slow
@pytest.mark.parametrize(("test", "touch"), [("2afc", False), ("jnd", True)])
def test_server_killed_in_the_middle_loses_and_doubles_no_answer(browser, tmp_path, test, touch):
    study = make_study(tmp_path, test, trials=5, break_every=0, **FAST)
    with ServerProcess(study.path) as server:
        person = Person(browser, server.address, touch=touch)
        choices = itertools.cycle(SIDES if test == "2afc" else ("same", "different", "different"))
        assert isinstance(person.judge(choices, 2), int)
        server.kill()
        person.choose(next(choices))  # reaches no server
        person.page.wait_for_selector("#connection:has-text('Your answer is kept here')")
        assert [one["body"]["trial"] for one in person.stored()["pending"]] == [max(person.given)]
        server.start()
        assert isinstance(person.judge(choices, 1), int)  # it was sent without being asked
        assert not person.page.is_visible("#connection")
        person.choose(next(choices))
        server.kill()  # while the answer is on its way, or stored and not confirmed
        server.start()
        assert isinstance(person.next_trial(), int)
        server.kill()
        person.choose(next(choices))
        person.page.wait_for_selector("#connection:has-text('Your answer is kept here')")
        server.start()
        person.page.reload()  # the answer is sent by the next visit
        person.stop()
        person.press("#known button")
        assert person.judge(choices) == "done"
        assert as_pressed(study) == {person.name: person.given} and len(person.given) == 10
        assert not person.stored()["pending"]
        person.leave()


@pytest.mark.slow
def test_an_answer_whose_confirmation_is_lost_is_sent_again_and_stored_once(browser, tmp_path):
    study = make_study(tmp_path, "2afc")
    with served(study) as address:
        person, sent = Person(browser, address), []

        def lose(route):
            sent.append(route.request.post_data_json)
            if len(sent) % 2:
                route.fetch()  # the server stores it, and its reply is lost
                route.abort()
            else:
                route.continue_()

        person.page.route("**/api/answers", lose)
        assert person.judge(itertools.cycle(SIDES)) == "done"
        assert sent[::2] == sent[1::2] and len(sent) == 16
        assert as_pressed(study) == {person.name: person.given} and len(person.given) == 8
        person.leave()


@pytest.mark.slow
def test_an_answer_that_is_refused_for_the_link_waits_for_the_right_one(browser, tmp_path):
    study = make_study(tmp_path, "2afc")
    with served(study) as address:
        person, choices = Person(browser, address), itertools.cycle(SIDES)
        person.judge(choices, 3)
        person.page.route("**/api/answers", lambda route: route.fulfill(status=403, body="{}"), times=1)
        person.choose(next(choices))
        assert person.stop() == "failure" and "The link to this study" in person.page.inner_text("#failure")
        assert len(study.answers()) == 3
        person.press("#reload")
        assert person.stop() == "returning"
        person.press("#known button")
        assert person.judge(choices) == "done"
        assert as_pressed(study) == {person.name: person.given} and len(person.given) == 8
        person.leave()


@pytest.mark.slow
def test_offline_is_said_and_ends_by_itself(browser, tmp_path):
    study = make_study(tmp_path, "2afc")
    with served(study) as address:
        person, choices = Person(browser, address), itertools.cycle(SIDES)
        person.judge(choices, 3)
        person.context.set_offline(True)
        person.choose(next(choices))
        person.page.wait_for_selector("#connection[role=alert]:has-text('No connection') button")
        person.page.keyboard.press("j")  # no second answer
        person.page.wait_for_timeout(500)
        assert len(study.answers()) == 3 and len(person.stored()["pending"]) == 1
        person.context.set_offline(False)
        assert person.judge(choices) == "done"
        assert as_pressed(study) == {person.name: person.given}
        person.leave()


@pytest.mark.slow
def test_a_server_with_too_many_requests_is_left_alone_for_as_long_as_it_says(browser, tmp_path):
    study = make_study(tmp_path, "2afc")
    with served(study) as address:
        person, choices = Person(browser, address), itertools.cycle(SIDES)
        person.judge(choices, 3)
        busy = {"status": 429, "headers": {"Retry-After": "3"}, "body": "{}"}
        person.page.route("**/api/answers", lambda route: route.fulfill(**busy), times=1)
        person.choose(next(choices))
        person.page.wait_for_selector("#connection:has-text('Many people take part') button")
        person.page.wait_for_timeout(2000)
        assert len(study.answers()) == 3
        assert isinstance(person.next_trial(), int) and len(study.answers()) == 4
        assert not person.page.is_visible("#connection")
        person.leave()


@pytest.mark.slow
@pytest.mark.parametrize("test", ["2afc", "jnd"])
def test_keys_before_the_images_are_shown_do_nothing(browser, tmp_path, test):
    study = make_study(tmp_path, test, **FAST)
    with served(study) as address:
        person = Person(browser, address)
        person.page.route("**/image/*", lambda route: (person.page.wait_for_timeout(150), route.continue_()))
        for _ in range(2):
            if person.stop() != "instructions":
                person.press("#agree")
        person.page.focus("#begin")
        person.page.keyboard.press("Enter")
        for key in "fj12sd":
            person.page.keyboard.press(key)
        person.page.wait_for_selector(ASKS)
        assert not study.answers()
        assert isinstance(person.judge(itertools.cycle(["left" if test == "2afc" else "same"]), 2), int)
        assert as_pressed(study) == {person.name: person.given}
        person.leave()


@pytest.mark.slow
def test_a_reload_between_display_and_answer_shows_the_same_trial_again(browser, tmp_path):
    study = make_study(tmp_path, "jnd", **FAST)
    with served(study) as address:
        person, choices = Person(browser, address), itertools.cycle(["same", "different"])
        for _ in range(3):
            asked = person.judge(choices, 1)
            person.page.reload()
            assert person.stop() == "returning"
            person.press("#known button")
            assert person.next_trial() == asked
        assert person.judge(choices) == "done"
        assert as_pressed(study) == {person.name: person.given} and len(person.given) == 8
        person.leave()


@pytest.mark.slow
def test_people_who_share_a_computer_come_back_as_themselves(browser, tmp_path):
    study = make_study(tmp_path, "2afc")
    with served(study) as address:
        person, names, given = Person(browser, address), [], []
        for _ in range(2):
            person.given = {}
            person.judge(itertools.cycle(SIDES), 2)
            names.append(person.name)
            given.append(person.given)
            person.page.goto(address)
            assert person.stop() == "returning"
            if len(names) == 1:
                person.press("#somebody-else")
        assert person.page.locator("#known button").all_inner_texts() == [f"Continue as {one}" for one in names[::-1]]
        person.given = given[0]
        person.press(f"#known button:has-text('{names[0]}')")
        assert person.judge(itertools.cycle(SIDES)) == "done"
        assert as_pressed(study) == dict(zip(names, given, strict=True))
        assert [len(one) for one in given] == [8, 2]
        person.leave()


@pytest.mark.slow
def test_studies_at_the_same_address_in_turn_are_kept_apart(browser, tmp_path):
    studies = [make_study(tmp_path / name, "2afc") for name in ("one", "two")]
    with ServerProcess(studies[0].path) as server:
        person = Person(browser, server.address)
        person.judge(itertools.cycle(SIDES), 2)
        server.kill()
        given, name, person.given = person.given, person.name, {}
        given[max(given) + 1] = "left"
        person.choose("left")  # reaches no server
        server.path = studies[1].path
        server.start()
        person.page.reload()
        assert person.stop() == "consent"
        assert person.judge(itertools.cycle(SIDES)) == "done"
        server.kill()
        assert as_pressed(studies[1]) == {person.name: person.given}
        server.path = studies[0].path
        server.start()
        person.page.reload()
        assert person.stop() == "returning"
        assert as_pressed(studies[0]) == {name: given}  # the first study has got the answer that waited for it
        assert person.page.locator("#known button").all_inner_texts() == [f"Continue as {name}"]
        person.leave()


@pytest.mark.slow
def test_a_link_with_a_token_is_used_once_and_needed(browser, tmp_path):
    from lpips_lightning.judge.server.guard import Access

    study = make_study(tmp_path, "2afc")
    with served(study, access=Access(token="a-long-token")) as address:
        stranger = Person(browser, address)
        assert stranger.stop() == "failure"
        assert "not complete" in stranger.page.inner_text("#failure")
        person = Person(browser, f"{address}?token=a-long-token")
        assert person.stop() == "consent" and person.stored() is None
        assert person.judge(itertools.cycle(SIDES), 2) not in ("failure", "done")
        assert person.page.url == address
        person.page.reload()
        person.stop()
        person.press("#known button")
        assert person.judge(itertools.cycle(SIDES)) == "done"
        stranger.leave()
        person.leave()
