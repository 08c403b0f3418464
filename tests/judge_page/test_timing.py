"""When images are on the screen in a JND trial: as asked, measured rightly, and marked where they slipped."""

from __future__ import annotations

import itertools
import json

import pytest
from judge_page import Person, chromium, make_study, served

# Each frame of the page, by a loop of its own: its time, and which images are shown in it.
WATCH = """
window.frames = [];
const shown = (id) => document.getElementById(id)?.classList.contains("shown") ?? false;
requestAnimationFrame(function note(now) {
  window.frames.push([now, shown("first"), shown("second")]);
  requestAnimationFrame(note);
});
"""
# The page stands still while the second image of every second trial is shown.
STALL = """() => {
  let trial = 0;
  const second = document.getElementById("second");
  new MutationObserver(() => {
    if (!second.classList.contains("shown") || trial++ % 2 === 0) return;
    setTimeout(() => { for (const end = performance.now() + 500; performance.now() < end;); }, 50);
  }).observe(second, { attributeFilter: ["class"] });
}"""
HIDE = """(hidden) => {
  Object.defineProperty(document, "hidden", {configurable: true, get: () => hidden});
  document.dispatchEvent(new Event("visibilitychange"));
}"""


@pytest.fixture(scope="module")
def browser():
    with chromium() as one:
        yield one


def displays(frames):
    """Seconds of each display, from the first frame with an image to the first without."""
    found, since = [], None
    for now, *shown in frames:
        if any(shown) and since is None:
            since = now
        elif not any(shown) and since is not None:
            found.append(now - since)
            since = None
    return found


@pytest.mark.slow
def test_95_percent_of_displays_are_within_20_ms_of_what_was_asked(browser, tmp_path):
    study = make_study(tmp_path, "jnd", items=20, trials=20, sentinels=2, repeats=0, break_every=0, size=(256, 256))
    with served(study) as address:
        person = Person(browser, address)
        person.page.evaluate(WATCH)
        assert person.judge(itertools.cycle(["same", "different"])) == "done"
        seen = displays(person.page.evaluate("window.frames"))
        person.leave()
    timings = [answer.timing for answer in study.answers()]
    measured = [one for timing in timings for one in timing["shown_ms"]]
    gaps = [timing["gap_ms"] for timing in timings]
    refresh = max(timing["refresh_ms"] for timing in timings)
    assert len(measured) == len(seen) == 2 * len(gaps) == 48
    assert max(abs(one - other) for one, other in zip(measured, seen, strict=True)) < 1.5 * refresh
    errors = [abs(one - 1000) for one in measured] + [abs(one - 250) for one in gaps]
    within = sum(error <= 20 for error in errors) / len(errors)
    print(json.dumps({"within 20 ms": within, "largest": max(errors), "median": sorted(errors)[len(errors) // 2]}))
    assert within >= 0.95


@pytest.mark.slow
def test_trials_are_marked_where_their_display_was_off(browser, tmp_path):
    study = make_study(tmp_path, "jnd", trials=4, shown_ms=300, gap_ms=100)
    with served(study) as address:
        person = Person(browser, address)
        person.page.evaluate(STALL)
        assert person.judge(itertools.cycle(["same", "different"])) == "done"
        person.leave()
    answers = study.answers()
    for answer in answers:
        timing = answer.timing
        errors = [abs(one - 300) for one in timing["shown_ms"]] + [abs(timing["gap_ms"] - 100)]
        assert answer.slipped == (max(errors) > study.design.slip_ms)
    late = [answer.timing["shown_ms"][1] > 450 for answer in answers]
    assert late == [number % 2 == 1 for number in range(len(late))] and len(late) > 6


@pytest.mark.slow
@pytest.mark.parametrize("test", ["jnd", "2afc"])
def test_a_page_that_was_hidden_in_a_display_is_marked(browser, tmp_path, test):
    study = make_study(tmp_path, test, shown_ms=600, gap_ms=50, slip_ms=10_000)
    with served(study) as address:
        person, choices = Person(browser, address), itertools.cycle(["same" if test == "jnd" else "left"])
        person.judge(choices, 3)
        hidden = person.stop()
        if test == "jnd":  # the trial that is asked for now was seen; hide the next one
            person.choose("same")
            person.page.wait_for_selector("#first.shown")
        person.page.evaluate(HIDE, True)
        person.page.evaluate(HIDE, False)
        assert person.judge(choices, 3) != hidden
        person.leave()
    marked = {answer.trial for answer in study.answers() if answer.slipped}
    assert marked == {hidden + (test == "jnd")} and len(study.answers()) > 5
    assert {answer.trial for answer in study.answers() if not answer.timing["visible"]} == marked
