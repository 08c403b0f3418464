"""The report of a study: what people did, how they agree, and how metrics agree with them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from importlib.resources import files
from pathlib import Path
from typing import Any

from lpips_lightning.evaluation.paper_report import Picture, picture
from lpips_lightning.io.atomic import atomic_write
from lpips_lightning.io.figures import WIDTHS
from lpips_lightning.io.image_folders import count_of
from lpips_lightning.io.tables import write_table
from lpips_lightning.judge.judged_images import Distances, related_by
from lpips_lightning.judge.records import Answer
from lpips_lightning.judge.results import report_figures as figures
from lpips_lightning.judge.results.agreement import FEW_OBSERVERS, UNKNOWN, Ballots, Estimate, between
from lpips_lightning.judge.results.calibrate import Point
from lpips_lightning.judge.results.observers import (
    TOO_FAST_MS,
    Fatigue,
    ObserverRow,
    consistency,
    excluded,
    fatigue,
    observer_rows,
    refresh_ms,
    side_bias,
)
from lpips_lightning.judge.results.scoring import (
    Difference,
    Judgments,
    MetricScore,
    Outlook,
    difference,
    outlook,
    score,
)
from lpips_lightning.judge.simulated import simulation_note
from lpips_lightning.judge.store import Study
from lpips_lightning.judge.votes import counted, tally

CSVS = ("numbers.csv", "observers.csv", "metrics.csv", "differences.csv")
FIGURES = ("scores", "outlook", "learning", "threshold", "disagreements")
PAGE = "report.html"
BASELINES = ("l2", "ssim")
"""Methods that need no weights, below the networks in every report."""

_PARTS = (0.1, 0.2, 0.35, 0.5, 0.75, 1.0)
_FEW_RESAMPLES = 200  # of earlier states of a study


@dataclass(frozen=True)
class Number:
    """One number of the report.

    Attributes:
        name: What it is.
        text: As text for people; says what is missing where it cannot be told.
        estimate: The number, with its interval if it has one.
    """

    name: str
    text: str
    estimate: Estimate


@dataclass(frozen=True)
class Report:
    """What a report says.

    Attributes:
        study: The study.
        numbers: Numbers of the whole study.
        observers: What each observer did.
        scores: Metrics, best first.
        differences: The best metric against each other one.
        ceiling: The human ceiling.
        outlook: What more judgments would do; None if it cannot be told.
        history: Number of judgments and half the interval of the best metric's score, as the study went on.
        judged: Votes that metrics are scored on.
        distances: Distances by metric.
        notes: Sentences that a reader must know.
    """

    study: Study
    numbers: Sequence[Number]
    observers: Sequence[ObserverRow]
    scores: Sequence[MetricScore]
    differences: Sequence[Difference]
    ceiling: Estimate
    outlook: Outlook | None
    history: Sequence[tuple[int, float]]
    judged: Judgments
    distances: Mapping[str, Distances]
    notes: Sequence[str]

    @property
    def best(self) -> MetricScore | None:
        """The metric that agrees best with people on all items that were judged; None without one."""
        whole = [one for one in self.scores if one.score.known and not one.held_out]
        return whole[0] if whole else None


def gather(
    study: Study,
    distances: Mapping[str, Distances],
    *,
    held_out: Mapping[str, Sequence[int]] | None = None,
    resamples: int = 1000,
    too_fast_ms: float = TOO_FAST_MS,
    more: int = 200,
) -> Report:
    """Compute all numbers of a report.

    Agreement between observers and scores of metrics are of random trials alone, if there are any, so that they hold
    for all items of the study.

    Args:
        study: The study; may have no answer yet.
        distances: Distances by metric, then by item.
        held_out: For metrics that were calibrated on this study, the items that they were not trained on.
        resamples: Bootstrap resamples.
        too_fast_ms: Answers that take less are counted as too fast.
        more: Further judgments that the report looks ahead to.
    """
    votes = counted(study)
    base = [answer for answer in votes if answer.reason == "random"] or votes
    notes = _notes(votes, base)
    ballots, judged = Ballots.of(base, study), Judgments.of(tally(base, study), study)
    agreed, alpha = between(ballots, resamples)
    scores = _scores(distances, judged, study, held_out or {}, resamples)
    best = next((one for one in scores if one.score.known and not one.held_out), None)
    ahead = outlook(best, distances[best.name], ballots, study, more) if best else None
    numbers = [
        *_sessions(study, votes, too_fast_ms),
        *_agreement(study, agreed, alpha, ballots, resamples),
        *_habits(study, votes, resamples),
    ]
    return Report(
        study,
        numbers,
        observer_rows(study, too_fast_ms),
        scores,
        _differences(scores, distances, judged, study, held_out or {}, resamples),
        agreed,
        ahead,
        _history(base, distances[best.name], study) if best and ahead else [],
        judged,
        distances,
        notes,
    )


def _notes(votes: Sequence[Answer], base: Sequence[Answer]) -> list[str]:
    if not votes:
        return ["No answer counts yet: agreement and scores of metrics cannot be told."]
    note = simulation_note(votes)
    notes = [note] if note else []
    if base is votes and any(answer.reason == "active" for answer in votes):
        notes.append("All trials were chosen where metrics are unsure: scores hold for these items alone.")
    elif len(base) < len(votes):
        notes.append(
            f"Agreement and scores are of the {count_of(len(base), 'answer')} to random trials, not of the"
            f" {len(votes) - len(base)} to trials chosen where metrics are unsure."
        )
    people = len({answer.observer for answer in base})
    if people == 1:
        notes.append("One observer: agreement between people cannot be told, and metrics are scored on one person.")
    elif people < FEW_OBSERVERS:
        notes.append(f"{people} observers: intervals are over images alone, and hold for these observers.")
    return notes


def _scores(
    distances: Mapping[str, Distances],
    judged: Judgments,
    study: Study,
    held_out: Mapping[str, Sequence[int]],
    resamples: int,
) -> list[MetricScore]:
    if not len(judged):
        return []
    found = [
        score(name, one, judged, study.design.test, only=held_out.get(name), resamples=resamples)
        for name, one in distances.items()
    ]
    return sorted(found, key=lambda one: -one.score.value if one.score.known else math.inf)


def _differences(
    scores: Sequence[MetricScore],
    distances: Mapping[str, Distances],
    judged: Judgments,
    study: Study,
    held_out: Mapping[str, Sequence[int]],
    resamples: int,
) -> list[Difference]:
    """The best metric against the others, each on the items that neither was trained on."""
    known = [one.name for one in scores if one.score.known]
    found = []
    for name in known[1:]:
        sets = [set(held_out[one]) for one in (known[0], name) if one in held_out]
        only = sorted(set.intersection(*sets)) if sets else None
        pair = distances[known[0]], distances[name]
        found.append(difference((known[0], name), pair, judged, study.design.test, only=only, resamples=resamples))
    return found


def _history(base: Sequence[Answer], distances: Distances, study: Study) -> list[tuple[int, float]]:
    points = []
    for count in sorted({round(part * len(base)) for part in _PARTS} - {0, 1}):
        judged = Judgments.of(tally(base[:count], study), study)
        found = score("", distances, judged, study.design.test, resamples=_FEW_RESAMPLES)
        points.append((count, found.score.half))
    return points


def _plain(name: str, value: float, text: str | None = None) -> Number:
    return Number(name, f"{value:g}" if text is None else text, Estimate(value, math.nan, math.nan))


def _sessions(study: Study, votes: Sequence[Answer], too_fast_ms: float) -> list[Number]:
    answers, sessions = study.answers(), study.sessions()
    real = [answer for answer in answers if answer.reason != "practice"]
    left_out = excluded(study)
    reasons = ", ".join(f"{count} {name}" for name, count in left_out.items())
    outcome = {
        name: sum(one.passed is state for one in sessions)
        for name, state in (("passed", True), ("failed", False), ("not finished", None))
    }
    per_item = [sum(pair) for pair in tally(votes, study).values()]
    judged = study.items("judged")
    spread = f"{min(per_item)} to {max(per_item)}, median {statistics.median(per_item):g}" if per_item else "-"
    fast = sum(answer.response_ms < too_fast_ms for answer in real)
    late = sum(answer.slipped for answer in answers)
    times = [answer.response_ms for answer in real]
    return [
        _plain("observers", len(study.observers())),
        _plain(
            "sessions", len(sessions), f"{len(sessions)}: {', '.join(f'{n} {name}' for name, n in outcome.items())}"
        ),
        _plain("answers", len(answers)),
        _plain("answers that count", len(votes), f"{len(votes)}" + (f" (not: {reasons})" if reasons else "")),
        _plain("items judged", len(per_item), f"{len(per_item)} of {len(judged)}"),
        Number("votes per item", spread, Estimate(statistics.median(per_item) if per_item else 0, math.nan, math.nan)),
        _sentinels(study, answers),
        _milliseconds("median response time", times),
        _plain("answers too fast", fast, f"{fast} of {len(real)} (below {too_fast_ms:g} ms)"),
        _plain("trials whose display slipped", late, f"{late} of {len(answers)}"),
        _refresh(answers),
    ]


def _sentinels(study: Study, answers: Sequence[Answer]) -> Number:
    items = study.items("sentinel")
    tests = [answer for answer in answers if answer.reason == "sentinel" and answer.item in items]
    wrong = sum(answer.choice != items[answer.item].expected for answer in tests)
    return _plain("sentinels answered wrong", wrong, f"{wrong} of {len(tests)}")


def _milliseconds(name: str, times: Sequence[float]) -> Number:
    if not times:
        return Number(name, "-", UNKNOWN)
    return _plain(name, statistics.median(times), f"{statistics.median(times):.0f} ms")


def _refresh(answers: Sequence[Answer]) -> Number:
    value = refresh_ms(answers)
    known = math.isfinite(value) and value > 0
    return _plain("median refresh of displays", value, f"{value:.1f} ms ({1000 / value:.0f} Hz)" if known else "-")


def _agreement(study: Study, agreed: Estimate, alpha: Estimate, ballots: Ballots, resamples: int) -> list[Number]:
    alike = consistency(study, resamples)
    within = alike.percent() if alike.known else "- (no repeat was answered)"
    why = "- (one observer)" if len(ballots.observers) == 1 else "- (no item has two votes)"
    ceiling = "agreement between observers" + (" (human ceiling)" if study.design.test == "2afc" else "")
    alphas = alpha.plain() if alpha.known else why if not agreed.known else "- (all votes are equal)"
    return [
        Number("repeats answered alike", within, alike),
        Number(ceiling, agreed.percent() if agreed.known else why, agreed),
        Number("Krippendorff's alpha", alphas, alpha),
    ]


def _habits(study: Study, votes: Sequence[Answer], resamples: int) -> list[Number]:
    side = side_bias(votes, study, resamples)
    name = "left image chosen" if study.design.test == "2afc" else 'answers "same"'
    tired: Fatigue = fatigue(votes, study, resamples)
    gap = tired.agreement
    missing = "- (no item with two votes in both halves of sessions)"
    change = f"{100 * gap.value:+.1f} points ({100 * gap.low:+.1f} to {100 * gap.high:+.1f})" if gap.known else missing
    times = " and ".join("-" if math.isnan(one) else f"{one:.0f}" for one in tired.times)
    change_name = "agreement with others, second half of sessions minus first"
    drop = tired.times[1] - tired.times[0]
    return [
        Number(name, side.percent(), side),
        Number(change_name, change, gap),
        _plain("median response time, first and second half", drop, f"{times} ms"),
    ]


def write_tables(report: Report, out: Path) -> list[Path]:
    """Write the numbers as CSV, atomically.

    Args:
        report: The report.
        out: Output folder.

    Returns:
        The files, named `CSVS`.
    """
    write_table(out / CSVS[0], ["name", "value", "low", "high", "text"], map(_number_row, report.numbers))
    names = [field.name for field in fields(ObserverRow)]
    write_table(out / CSVS[1], names, ([_cell(value) for value in astuple(row)] for row in report.observers))
    header = ["metric", "score", "low", "high", "items", "judgments", "held_out", "threshold", "low", "high"]
    rows = [
        [one.name, *map(_cell, one.score), one.items, one.judgments, int(one.held_out), *map(_cell, one.threshold)]
        for one in report.scores
    ]
    header[-2:] = ["threshold_low", "threshold_high"]
    write_table(out / CSVS[2], header, rows)
    pairs = ([one.first, one.second, *map(_cell, one.difference), one.items] for one in report.differences)
    write_table(out / CSVS[3], ["metric", "other", "difference", "low", "high", "items"], pairs)
    return [out / name for name in CSVS]


def _number_row(number: Number) -> list[str]:
    return [number.name, *map(_cell, number.estimate), number.text]


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    return value


def draw(report: Report, out: Path) -> dict[str, Picture]:
    """Draw the figures of a report.

    Args:
        report: The report.
        out: Output folder.

    Returns:
        Those that there are, by the names in `FIGURES`.
    """
    found: dict[str, Picture] = {}
    test, best = report.study.design.test, report.best
    known = [one for one in report.scores if one.score.known]
    if known:
        drawn = figures.draw_scores(known, report.ceiling, test, report.study.design.title, out / "scores.png")
        text = f"Agreement of metrics with people, with 95 % intervals over {related_by(report.study)}s."
        found["scores"] = picture(drawn, WIDTHS["column"], "Scores of the metrics", text)
    if report.outlook is not None and report.history:
        drawn = figures.draw_outlook(report.history, report.outlook, out / "outlook.png")
        text = f"Half of the 95 % interval of the score of {report.outlook.name}, so far and with more judgments."
        found["outlook"] = picture(drawn, WIDTHS["column"], "Width of the interval by number of judgments", text)
    if best is not None and test == "jnd":
        drawn = figures.draw_psychometric(
            best.name, report.distances[best.name], report.judged, best.threshold, out / "threshold.png"
        )
        text = f"People who see a difference, by distance of {best.name}; dashed: the just noticeable distance."
        found["threshold"] = picture(drawn, WIDTHS["column"], "Fraction of people who see a difference", text)
    if best is not None:
        own = report.distances[best.name]
        drawn = figures.draw_disagreements(report.study, best.name, own, report.judged, out / "disagreements.png")
        text = f"Items on which people and {best.name} disagree most."
        if drawn:
            found["disagreements"] = picture(drawn, WIDTHS["text"], text, text)
    return found


def draw_learning(record: Mapping[str, Any], out: Path) -> dict[str, Picture]:
    """Draw the learning curve that a calibration file of `judge calibrate` holds.

    Args:
        record: Record of the file.
        out: Output folder.

    Returns:
        The figure, by its name in `FIGURES`.
    """
    curve = [Point(*row) for row in record["learning_curve"]]
    before = Estimate(record["scores"]["held-out"]["official"], math.nan, math.nan)
    ceiling = Estimate(*record["ceiling"]) if record["ceiling"] else UNKNOWN
    drawn = figures.draw_learning(curve, before, ceiling, out / "learning.png")
    text = "Held-out 2AFC score of the calibration, by the judgments that it was trained on; gray: random parts."
    return {"learning": picture(drawn, WIDTHS["column"], "Learning curve of the calibration", text)}


def write_page(report: Report, pictures: Mapping[str, Picture], run: Mapping[str, str], path: Path) -> None:
    """Write the report as one HTML page that needs no other file, atomically.

    Args:
        report: The report.
        pictures: Figures by name.
        run: Description of the run, as rows of a table.
        path: Output file.
    """
    from jinja2 import Environment, StrictUndefined

    template = files("lpips_lightning.judge.results").joinpath("report.html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    page = environment.from_string(template).render(
        title=report.study.design.title,
        test={"2afc": "2AFC: which of two is closer to the reference", "jnd": "JND: same or different"}[
            report.study.design.test
        ],
        related=related_by(report.study),
        is_jnd=report.study.design.test == "jnd",
        report=report,
        figures={name: pictures.get(name) for name in FIGURES},
        run=run,
        number=_shown,
    )
    with atomic_write(path) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="backslashreplace")


def _shown(value: float, digits: int = 0) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"
