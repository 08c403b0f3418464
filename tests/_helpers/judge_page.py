"""A small study, its server in this process or in one that can be killed, and people in a real browser."""

from __future__ import annotations

import hashlib
import itertools
import shutil
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image as PillowImage

from lpips_lightning.judge.records import Design, Image, Item
from lpips_lightning.judge.store import Study

CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
QUIET += ["--disable-component-update", "--disable-sync"]
KEYS = {
    "left": itertools.cycle(["ArrowLeft", "f", "1", "F"]),
    "right": itertools.cycle(["ArrowRight", "j", "2", "J"]),
    "same": itertools.cycle(["s", "ArrowLeft", "1", "S"]),
    "different": itertools.cycle(["d", "ArrowRight", "2", "D"]),
}
ASKS = "#trial[data-asks]"
STOPS = {name: f"#{name}" for name in ("consent", "instructions", "returning", "pause", "done", "failure", "feedback")}
GO_ON = {"consent": "#agree", "instructions": "#begin", "pause": "#continue", "feedback": "#feedback-continue"}
WHERE = """(names) => {
  const trial = document.querySelector("#trial[data-asks]");
  return trial ? Number(trial.dataset.asks) : names.find((name) => document.getElementById(name).checkVisibility());
}"""
_SERVE = """
import sys
from lpips_lightning.judge.server.serving import serve
from lpips_lightning.judge.store import Study
serve(Study.open(sys.argv[1]), lambda study, items, rng: (items[0], "random"), port=int(sys.argv[2]))
"""


@contextmanager
def chromium():
    """The system's Chromium, or a skipped test."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    path = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if path is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=QUIET)
        try:
            yield browser
        finally:
            browser.close()


def make_study(folder, test, *, items=6, size=(48, 32), **design):
    """A study of small images: `items` to judge, four sentinels, three for practice."""
    usual = {"trials": 3, "sentinels": 2, "pass_mark": 1, "practice": 2, "repeats": 1, "break_every": 4, "votes": 5}
    made = Design(**{"test": test, "title": f"A small {test} study", **usual, **design})
    rng = np.random.default_rng(made.seed)
    images, pictures = [], folder / "images"
    pictures.mkdir(parents=True)
    kinds = ["judged"] * items + ["sentinel"] * 4 + ["practice"] * 3
    listed = []
    for number, kind in enumerate(kinds):
        clean = rng.integers(40, 200, (size[1] // 8, size[0] // 8, 3)).repeat(8, 0).repeat(8, 1)
        noises = [0, 8, 60] if test == "2afc" else [0, 60 * (number % 2)]
        for noise in noises:
            pixels = np.clip(clean + rng.normal(0, 1, clean.shape) * noise, 0, 255).astype(np.uint8)
            path = pictures / f"{len(images) + 1}.png"
            PillowImage.fromarray(pixels).save(path)
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            images.append(Image(len(images) + 1, path.name, digest, *size))
        used = [image.id for image in images[-len(noises) :]]
        expected = "p0" if test == "2afc" else ("different" if number % 2 else "same")
        listed.append(Item(number + 1, kind, *used, expected=None if kind == "judged" else expected))
    if test == "jnd":
        listed = [Item(one.id, one.purpose, one.ref, one.p0, expected=one.expected) for one in listed]
    return Study.create(folder / "study.db", made, pictures, images, listed)


def first(study, items, rng):
    """The item that the fewest have judged."""
    return items[0], "random"


@contextmanager
def served(study, **options):
    """The address of a study that is served by a thread of this process."""
    import uvicorn

    from lpips_lightning.judge.server.app import create_app

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(create_app(study, first, **options), lifespan="off", log_config=None))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        finally:
            server.should_exit = server.force_exit = True
            thread.join()


class ServerProcess:
    """A server in a process of its own, always at the same address."""

    def __init__(self, path):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.path, self.address, self._process = path, f"http://127.0.0.1:{self.port}/", None

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *error):
        self.kill()

    def start(self):
        """Start it, and wait until it answers."""
        self._process = subprocess.Popen([sys.executable, "-c", _SERVE, str(self.path), str(self.port)])
        for _ in range(600):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.1)
        raise TimeoutError("the server did not start")

    def kill(self):
        """SIGKILL, as a power cut."""
        self._process.kill()
        self._process.wait()


class Person:
    """Somebody at a browser of their own, by keyboard or by touch; `given` is what they chose, by trial."""

    def __init__(self, browser, address, *, touch=False, size=(1024, 768), **context):
        self.touch, self.address, self.given, self.complaints, self.asked = touch, address, {}, [], []
        self.context = browser.new_context(
            viewport={"width": size[0], "height": size[1]}, has_touch=touch, is_mobile=touch, **context
        )
        self.page = self.context.new_page()
        self.page.set_default_timeout(30_000)
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.asked.append((request.method, request.url)))
        self.page.goto(address)

    def stop(self):
        """Wait until the page wants something; its name, or the number of the trial that is asked for."""
        self.page.wait_for_selector(", ".join([ASKS, *(f"{one}:visible" for one in STOPS.values())]))
        return self.page.evaluate(WHERE, list(STOPS))

    def press(self, selector):
        """Activate a button with the keyboard or a finger, and wait until the page has gone on."""
        if self.touch:
            self.page.tap(selector)
        else:
            self.page.focus(selector)
            self.page.keyboard.press("Enter")
        self.page.wait_for_selector(selector, state="hidden")

    def next_trial(self):
        """Go on until a trial asks, or there is no other way on; returns as `stop`."""
        while (found := self.stop()) in GO_ON:
            self.press(GO_ON[found])
        return found

    def choose(self, choice):
        """Answer the trial that asks."""
        trial = int(self.page.locator(ASKS).get_attribute("data-asks"))
        self.given[trial] = choice
        if self.touch:
            self.page.tap(f"#{choice}")
        else:
            self.page.keyboard.press(next(KEYS[choice]))

    def judge(self, choices, most=1000):
        """Answer up to `most` trials in turn by `choices`; returns the last stop."""
        stop = self.next_trial()
        for _ in range(most):
            if not isinstance(stop, int):
                break
            self.choose(next(choices))
            stop = self.next_trial()
        return stop

    def stored(self):
        """What the browser keeps for the study."""
        return self.page.evaluate("JSON.parse(localStorage.getItem('lpips-lightning-judge'))")

    @property
    def name(self):
        """The pseudonym."""
        return self.stored()["observers"][0]["observer"]

    def leave(self):
        """Close the browser."""
        self.context.close()


def as_pressed(study):
    """The stored answers as the observers pressed them: by observer, choices by trial."""
    found = {one.name: {} for one in study.observers()}
    sides = {("p0", False): "left", ("p1", True): "left", ("p1", False): "right", ("p0", True): "right"}
    for answer in study.answers():
        choice = answer.choice if study.design.test == "jnd" else sides[answer.choice, answer.swapped]
        assert answer.trial not in found[answer.observer]
        found[answer.observer][answer.trial] = choice
    return found


PROBLEMS = """() => {
  const found = [];
  const all = [...document.querySelectorAll("body *")].filter((one) => one.checkVisibility({visibilityProperty: true}));
  const name = (one) => `${one.tagName} ${one.id || one.textContent.trim().slice(0, 30)}`;
  const root = document.documentElement;
  if (root.scrollWidth > innerWidth) found.push(`${root.scrollWidth} px wide`);
  const inTrial = !document.getElementById("trial").hidden;
  if (inTrial && root.scrollHeight > innerHeight) found.push(`${root.scrollHeight} px high`);
  for (const one of all) {
    const box = one.getBoundingClientRect();
    if (one.closest(".unseen") || !box.width) continue;
    const out = box.left < -0.5 || box.right > innerWidth + 0.5;
    if (out || (inTrial && (box.top < -0.5 || box.bottom > innerHeight + 0.5))) found.push(`${name(one)} outside`);
  }
  // Contrast by WCAG 2, of everything that holds text itself.
  const parse = (color) => color.match(/[\\d.]+/g).map(Number);
  const light = (color) => parse(color).slice(0, 3).map((value) => value / 255)
    .map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4))
    .reduce((sum, value, at) => sum + value * [0.2126, 0.7152, 0.0722][at], 0);
  const behind = (one) => {
    for (let at = one; at; at = at.parentElement) {
      const color = getComputedStyle(at).backgroundColor;
      if ((parse(color)[3] ?? 1) === 1) return color;
    }
    return "rgb(255, 255, 255)";
  };
  let texts = 0;
  for (const one of all) {
    const own = [...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (one.closest(".unseen") || !own) continue;
    const [a, b] = [light(getComputedStyle(one).color), light(behind(one))];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    texts += 1;
    if (contrast < 4.5) found.push(`${name(one)} has contrast ${contrast.toFixed(2)}`);
  }
  if (!texts) found.push("no text");
  // Roles, names, targets.
  for (const one of all.filter((each) => each.matches("button, summary"))) {
    const box = one.getBoundingClientRect();
    if (box.width < 43.9 || box.height < 43.9) found.push(`${name(one)} is ${box.width} x ${box.height}`);
    if (!one.innerText.trim()) found.push(`${name(one)} has no name`);
    if (one.tabIndex !== 0) found.push(`${name(one)} has tabindex ${one.tabIndex}`);
  }
  if (all.filter((one) => one.tagName === "H1").length !== 1) found.push("not one h1");
  if (document.querySelector("img:not([alt])")) found.push("an image without alt");
  const ids = [...document.querySelectorAll("[id]")].map((one) => one.id);
  if (new Set(ids).size !== ids.length) found.push("an id stands twice");
  if (root.lang !== "en" || !document.title) found.push("no language or title");
  for (const one of document.querySelectorAll("[style], script:not([src]), style")) {
    if (one.tagName !== "IMG" && !["stage", "progress-done"].includes(one.id)) found.push(`${name(one)} is inline`);
  }
  if (inTrial) {
    const bar = document.querySelector("[role=progressbar]");
    const [least, now, most] = ["min", "now", "max"].map((one) => Number(bar.getAttribute(`aria-value${one}`)));
    if (!(least <= now && now < most && bar.getAttribute("aria-label"))) found.push("no progress");
    if (!document.querySelector("[role=status]").textContent.trim()) found.push("nothing in the live region");
  }
  return found;
}"""
