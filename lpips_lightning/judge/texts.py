"""What the page says if a study brings no texts of its own, and the usual numbers of each test."""

from __future__ import annotations

from dataclasses import replace

from lpips_lightning.judge.records import Design, Test

QUESTIONS: dict[Test, str] = {
    "2afc": "Which image looks more like the reference?",
    "jnd": "Were the two images the same or different?",
}
"""Question of a trial, by test."""

INSTRUCTIONS: dict[Test, str] = {
    "2afc": """\
Each trial shows a reference image and two changed versions of it, one on the left and one on the right. Choose the \
version that looks more like the reference.

There is no trick, and often no right answer: your impression counts. Most choices take about three seconds. If both \
look equally close, take the one that you would guess.

Sit as you usually do at this screen, keep the zoom of the browser as it is, and look at the whole image. In some \
trials one version is clearly closer; they show that the task was understood.""",
    "jnd": """\
Each trial shows two images in the same place, one after the other, for a moment each. Decide whether they were the \
same or different.

In some trials the two are exactly the same. In others the difference may be large, or so small that it \
is hard to see: answer what you saw. You cannot look again, so watch the place of the image when a trial starts.

Sit as you usually do at this screen, keep the zoom of the browser as it is, and close other programs that move or \
flash. Some trials have a clear answer; they show that the task was understood.""",
}
"""Text before the practice, by test."""

CONSENT = """\
You take part in a study on how people compare images. It is voluntary: you may stop at any time by closing the page, \
without giving a reason. Answers that you have given until then are kept.

Stored are your choices, the time and duration of each, what the browser measures of the display (its size, and when \
images were shown), and whether it is a touch screen, under a random name. No name, address or account is stored. A \
random key stays in this browser, so that you can come back.

The answers are used to find out how well measures of image similarity agree with people. They may be published under \
the random name."""
"""Text that an observer agrees to before anything is stored."""

_USUAL: dict[Test, Design] = {
    "2afc": Design("2afc", trials=50, sentinels=15, pass_mark=14, practice=5, votes=5, break_every=25),
    "jnd": Design("jnd", trials=160, sentinels=40, pass_mark=36, practice=10, votes=3, break_every=50),
}


def usual_design(test: Test, trials: int | None = None, sentinels: int | None = None) -> Design:
    """The usual numbers and texts of a test: those of the paper where it gives them.

    Args:
        test: ``"2afc"`` or ``"jnd"``.
        trials: Trials of a session; with fewer than usual, there are fewer sentinels in proportion.
        sentinels: Sentinels of a session.

    Returns:
        A design with one repeat per ten trials, and a pass mark in proportion to the sentinels.

    Example:
        >>> design = usual_design("2afc", trials=10)
        >>> design.sentinels, design.pass_mark, design.repeats
        (3, 3, 1)
    """
    usual = _USUAL[test]
    trials = usual.trials if trials is None else trials
    if sentinels is None:
        sentinels = max(1, round(usual.sentinels * min(1.0, trials / usual.trials)))
    pass_mark = int(usual.pass_mark * max(0, sentinels) / usual.sentinels + 0.5)
    if test == "jnd":  # four of five are "same": that answer to all must not pass
        pass_mark = min(sentinels, max(pass_mark, sentinels - round(sentinels / 5) + 1))
    return replace(
        usual,
        trials=trials,
        sentinels=sentinels,
        pass_mark=pass_mark,
        repeats=max(0, trials // 10),
        title="Image comparison",
        question=QUESTIONS[test],
        instructions=INSTRUCTIONS[test],
        consent=CONSENT,
    )
