"""Which answers of a study count, and the votes on each item."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from lpips_lightning.judge.records import CHOICES, Answer, Reason
from lpips_lightning.judge.store import Study

COUNTED: tuple[Reason, ...] = ("random", "active")
"""Reasons of the trials that are votes; `repeat`, `practice` and `sentinel` are not."""


def counted(
    study: Study,
    *,
    failed: bool = False,
    slipped: bool | None = None,
    repeats: bool = False,
    reasons: Collection[Reason] = COUNTED,
) -> list[Answer]:
    """The answers that count: one per observer and item, the first that no rule excludes.

    Answers to practice and sentinels never count. Those of sessions that are not finished do.

    Args:
        study: The study.
        failed: Also count sessions that failed their sentinels.
        slipped: Also count trials whose display slipped; None: for 2AFC, where images stay until the answer, and not
            for JND, where their duration is part of the question.
        repeats: Also return repeats, beside the first answers that they repeat.
        reasons: Reasons of the trials that count. `("random",)` leaves out those chosen where metrics are unsure:
            estimates over all items of the study, such as the score of a metric, are then unbiased.

    Returns:
        Answers in the order in which they came.
    """
    keep_slipped = study.design.test == "2afc" if slipped is None else slipped
    wanted = {*reasons, *(("repeat",) if repeats else ())}
    judged = study.items("judged")
    found: dict[tuple[str, int, bool], Answer] = {}
    for answer in study.answers():
        excluded = (answer.passed is False and not failed) or (answer.slipped and not keep_slipped)
        if answer.item in judged and answer.reason in wanted and not excluded:
            found.setdefault((answer.observer, answer.item, answer.reason == "repeat"), answer)
    return list(found.values())


def votes(
    study: Study, *, failed: bool = False, slipped: bool | None = None, reasons: Collection[Reason] = COUNTED
) -> dict[int, tuple[int, int]]:
    """Votes for each of the test's two `CHOICES`, by item; items without a vote are left out.

    Args:
        study: The study.
        failed: See `counted`.
        slipped: See `counted`.
        reasons: See `counted`.
    """
    return tally(counted(study, failed=failed, slipped=slipped, reasons=reasons), study)


def tally(answers: Iterable[Answer], study: Study) -> dict[int, tuple[int, int]]:
    """Number of answers for each of the test's two `CHOICES`, by item in the order of their numbers."""
    second, found = CHOICES[study.design.test][1], dict[int, tuple[int, int]]()
    for answer in answers:
        for_first, for_second = found.get(answer.item, (0, 0))
        chose_second = answer.choice == second
        found[answer.item] = for_first + (not chose_second), for_second + chose_second
    return dict(sorted(found.items()))
