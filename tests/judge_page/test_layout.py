"""Every screen of the page in several sizes: nothing outside, readable, for keyboard, finger and screen reader."""

from __future__ import annotations

import pytest
from judge_page import GO_ON, PROBLEMS, Person, chromium, make_study, served

SIZES = [(320, 568), (568, 320), (768, 1024), (1920, 1080), (3840, 2160)]
DRAWN = """() => [...document.querySelectorAll(".stimulus")].filter((one) => one.naturalWidth && one.checkVisibility())
  .map((one) => [one.getBoundingClientRect().width * devicePixelRatio / one.naturalWidth,
    one.getBoundingClientRect().height * devicePixelRatio / one.naturalHeight, getComputedStyle(one).imageRendering])"""
FOCUS = """() => { const one = document.activeElement, style = getComputedStyle(one);
  return [one.id, style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2]; }"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser():
    with chromium() as one:
        yield one


@pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size)))
@pytest.mark.parametrize("test", ["2afc", "jnd"])
def test_every_screen_fits_and_is_accessible(browser, tmp_path, test, size):
    design = {"trials": 2, "sentinels": 1, "repeats": 0, "practice": 1, "break_every": 1, "shown_ms": 50, "gap_ms": 20}
    study, seen = make_study(tmp_path, test, size=(256, 256), items=4, **design), set()
    choice = "left" if test == "2afc" else "same"
    with served(study) as address:
        person = Person(browser, address, size=size, touch=size[0] < 600)
        while (stop := person.stop()) != "done":
            seen.add(stop if isinstance(stop, str) else "trial")
            assert not person.page.evaluate(PROBLEMS), stop
            for summary in person.page.locator("summary:visible").all():
                summary.click()
                assert not person.page.evaluate(PROBLEMS), stop
            if isinstance(stop, int):
                person.choose(choice)
            else:
                person.press(GO_ON[stop])
        assert not person.page.evaluate(PROBLEMS)
        person.page.reload()
        assert person.stop() == "returning" and not person.page.evaluate(PROBLEMS)
        assert seen == {"consent", "instructions", "trial", "feedback", "pause"}
        person.leave()


@pytest.mark.parametrize(
    ("natural", "size", "ratio", "factor"),
    [
        (256, (1024, 900), 1, 1),
        (256, (1024, 900), 1.5, 1),
        (256, (1024, 900), 2, 2),
        (64, (1024, 900), 1, 4),
        (64, (1024, 900), 1.5, 6),
        (64, (390, 844), 3, 8),
        (64, (320, 568), 1, 2),
        (256, (320, 568), 1, None),
        (256, (390, 844), 3, 2),
        (256, (320, 568), 3, None),
    ],
)
def test_an_image_pixel_is_a_whole_number_of_screen_pixels_where_it_can_be(
    browser, tmp_path, natural, size, ratio, factor
):
    study = make_study(tmp_path, "2afc", size=(natural, natural))
    with served(study) as address:
        person = Person(browser, address, size=size, device_scale_factor=ratio)
        assert isinstance(person.next_trial(), int)
        drawn = person.page.evaluate(DRAWN)
        notice = person.page.inner_text("#hint")
        person.choose("left")
        assert person.next_trial()
        person.leave()
    assert len(drawn) == 3
    across = drawn[0][0]
    for width, height, rendering in drawn:
        assert width == pytest.approx(across, rel=0.002) and height == pytest.approx(across, rel=0.002)
        assert (rendering == "pixelated") == (factor is not None)
    if factor is None:
        assert across < ratio and f"{100 * across / ratio:.0f} %" in notice
    else:
        assert across == pytest.approx(factor, rel=0.002) and not notice
    assert study.answers()[0].timing["scale"] == pytest.approx(across / ratio, abs=0.01)


@pytest.mark.parametrize("test", ["2afc", "jnd"])
def test_a_session_by_tab_and_enter_alone_shows_its_focus(browser, tmp_path, test):
    study = make_study(tmp_path, test, shown_ms=50, gap_ms=20)
    wanted = "right" if test == "2afc" else "different"
    with served(study) as address:
        person, given = Person(browser, address), {}
        while (stop := person.stop()) != "done":
            target = GO_ON.get(stop, f"#{wanted}").removeprefix("#")
            for _ in range(8):
                focused, is_visible = person.page.evaluate(FOCUS)
                if focused == target:
                    break
                person.page.keyboard.press("Tab")
            assert focused == target and is_visible
            if isinstance(stop, int):
                given[stop] = wanted
            person.page.keyboard.press("Enter")
            if isinstance(stop, str):
                person.page.wait_for_selector(f"#{target}", state="hidden")
        assert len(study.answers()) == len(given) == 8
        person.leave()


def test_reduced_motion_is_respected(browser, tmp_path):
    study = make_study(tmp_path, "2afc")
    durations = "() => getComputedStyle(document.getElementById('progress-done')).transitionDuration"
    with served(study) as address:
        moving, still = (Person(browser, address, reduced_motion=one) for one in ("no-preference", "reduce"))
        assert [person.page.evaluate(durations) for person in (moving, still)] == ["0.2s", "0s"]
        moving.leave()
        still.leave()
