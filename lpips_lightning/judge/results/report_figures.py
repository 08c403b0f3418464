"""Figures of a study's report: scores of metrics, what more judgments give, and where people and a metric disagree."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lpips_lightning.data.bapps import to_signed
from lpips_lightning.evaluation.benchmark import HUMAN, Kind, Score
from lpips_lightning.evaluation.figures import save_scores
from lpips_lightning.io.figures import (
    SMALL_SIZE,
    TEXT_SIZE,
    WIDTHS,
    category_styles,
    fit_name,
    new_figure,
    save_figure,
    text_inches,
    value_limits,
)
from lpips_lightning.io.image_files import read_image
from lpips_lightning.judge.judged_images import Distances, checked_files, images_of
from lpips_lightning.judge.records import Item
from lpips_lightning.judge.results.agreement import Estimate
from lpips_lightning.judge.results.calibrate import Point
from lpips_lightning.judge.results.scoring import Judgments, MetricScore, Outlook, psychometric
from lpips_lightning.judge.store import Study

SHOWN = 6
"""Items of the contact sheet."""

_LINE, _COLUMNS, _SIDE = 0.125, 2, 256
_PERCENT_AXIS = {"nbins": 6, "steps": [1, 2, 5, 10]}


def draw_scores(
    scores: Sequence[MetricScore], ceiling: Estimate, test: Kind, title: str, path: str | Path
) -> list[Path]:
    """Draw the scores of metrics with their intervals, and for 2AFC the human ceiling.

    Args:
        scores: The scores.
        ceiling: The human ceiling; may be unknown.
        test: The test.
        title: Title of the study.
        path: Output PNG; a PDF is written beside it.

    Returns:
        The files.
    """
    rows = [_cell(one.name, one.score, test, title, one.items) for one in scores]
    if test == "2afc" and ceiling.known:
        rows.append(_cell(HUMAN, ceiling, test, title, 0))
    return save_scores(rows, path, test)


def _cell(name: str, found: Estimate, test: Kind, title: str, count: int) -> Score:
    ends = (found.low, found.high) if math.isfinite(found.low) else (found.value, found.value)
    return Score(name, title, test, 100 * found.value, 100 * ends[0], 100 * ends[1], count, None)


def draw_outlook(points: Sequence[tuple[int, float]], found: Outlook, path: str | Path) -> list[Path]:
    """Draw how the interval of a metric's score has narrowed, and how it would go on.

    Args:
        points: Number of judgments and half the interval of the score at that time.
        found: What more judgments would do.
        path: Output PNG; a PDF is written beside it.

    Returns:
        The files.
    """
    future = [found.judgments + step * found.more / 2 for step in range(9)]
    with new_figure("column", 2.4) as figure:
        axes = figure.subplots()
        styles = category_styles(3)
        drawn = [(count, 100 * half) for count, half in points if math.isfinite(half)]
        if drawn:
            axes.plot(*zip(*drawn, strict=True), styles[0].marker, color=styles[0].color, label="so far")
        first = [100 * found.half * math.sqrt(found.judgments / count) for count in future]
        axes.plot(future, first, color=styles[1].color, label="new items")
        if found.same_items is not None:
            second = [100 * _same_items(found, count) for count in future]
            axes.plot(future, second, color=styles[2].color, linestyle="dashed", label="same items")
        top = max([half for _, half in drawn] + first)
        axes.set(ylim=(0, 1.1 * top), xlim=(0, 1.05 * future[-1]), xlabel="judgments")
        axes.set_ylabel("half of the 95 % interval,\npercentage points")
        _ticks(axes)
        axes.legend(title=fit_name(found.name, 1.3), title_fontsize=SMALL_SIZE)
        return save_figure(figure, path)


def _same_items(found: Outlook, count: float) -> float:
    """Half of the interval once there are so many judgments of the same items."""
    if found.parts is None or found.parts.items + found.parts.answers <= 0:
        return found.half
    items, answers = found.parts.items, found.parts.answers
    return found.half * math.sqrt((items + answers * found.judgments / count) / (items + answers))


def draw_learning(curve: Sequence[Point], before: Estimate, ceiling: Estimate, path: str | Path) -> list[Path]:
    """Draw the held-out 2AFC score of calibrations against the judgments that they were trained on.

    Args:
        curve: Points of the learning curve.
        before: Score of the official calibration.
        ceiling: Human ceiling; may be unknown.
        path: Output PNG; a PDF is written beside it.

    Returns:
        The files.
    """
    with new_figure("column", 2.4) as figure:
        axes = figure.subplots()
        color = category_styles(1)[0].color
        for point in curve:
            axes.plot([point.judgments] * len(point.scores), [100 * one for one in point.scores], ".", color="0.6")
        means = [100 * point.mean for point in curve]
        axes.plot([point.judgments for point in curve], means, "o-", color=color, label="calibrated")
        axes.axhline(100 * before.value, color="0.3", linestyle="dotted", linewidth=1, label="official")
        if ceiling.known:
            axes.axhline(100 * ceiling.value, color="black", linestyle="dashed", linewidth=0.8, label="human ceiling")
        ends = [*means, 100 * before.value, *(100 * one for point in curve for one in point.scores)]
        axes.set_ylim(value_limits([*ends, *([100 * ceiling.value] if ceiling.known else [])], 0.1))
        axes.set(xlim=(0, 1.08 * max(point.judgments for point in curve)), xlabel="judgments for training")
        axes.set_ylabel("held-out 2AFC score, %")
        _ticks(axes)
        figure.legend(loc="outside upper center", ncols=3, columnspacing=1.0, handlelength=1.5)
        return save_figure(figure, path)


def draw_psychometric(
    name: str, distances: Distances, judged: Judgments, threshold: Estimate, path: str | Path
) -> list[Path]:
    """Draw the fraction of people who see a difference over a metric's distance, with the fitted curve.

    Args:
        name: Name of the metric.
        distances: Its distances by item.
        judged: The votes.
        threshold: The distance at which half of the people see a difference; may be unknown.
        path: Output PNG; a PDF is written beside it.

    Returns:
        The files.
    """
    rows = [row for row, item in enumerate(judged.items) if distances.get(item.id, (0.0,))[0] > 0]
    part = judged.subset(rows)
    x = torch.tensor([distances[item.id][0] for item in part.items], dtype=torch.float64)
    styles = category_styles(2)
    with new_figure("column", 2.4) as figure:
        axes = figure.subplots()
        for group in x.argsort().tensor_split(min(10, max(1, len(x) // 5))):
            middle = float(x[group].log().mean().exp())
            share = float((part.second[group] * part.votes[group]).sum() / part.votes[group].sum())
            axes.plot(middle, 100 * share, "o", color=styles[0].color)
        if threshold.known:
            at, slope = (float(one) for one in psychometric(x, part.second, part.votes))
            grid = torch.linspace(float(x.min().log()), float(x.max().log()), 100, dtype=torch.float64)
            axes.plot(grid.exp(), 100 * torch.sigmoid(slope * (grid - math.log(at))), color=styles[1].color)
            axes.axvline(threshold.value, color="0.5", linestyle="dashed", linewidth=0.8)
        axes.set(xscale="log", ylim=(-3, 103), ylabel="see a difference, %")
        axes.set_xlabel(fit_name(f"distance by {name}", 2.4, TEXT_SIZE))
        _log_ticks(axes, float(x.min()), float(x.max()))
        return save_figure(figure, path)


def _log_ticks(axes: Any, low: float, high: float) -> None:
    """A few ticks with plain numbers."""
    from matplotlib.ticker import NullLocator

    steps = (
        torch.linspace(math.log(low), math.log(high), 4, dtype=torch.float64).exp().tolist() if high > low else [low]
    )
    axes.set_xticks(steps, [f"{step:.2g}" for step in steps])
    axes.xaxis.set_minor_locator(NullLocator())


def _ticks(axes: Any) -> None:
    for axis in (axes.xaxis, axes.yaxis):
        axis.get_major_locator().set_params(**_PERCENT_AXIS)
        axis.set_major_formatter("{x:g}")


def disagreements(distances: Distances, judged: Judgments, test: str, count: int = SHOWN) -> list[int]:
    """Rows of the items on which people and a metric disagree most, strongest first.

    2AFC: the metric prefers one candidate and people the other; the rank of the ratio of its distances among the items,
    times people's majority, ``|k - n / 2| / (n + 2)`` for k of n votes, so that one vote weighs little. JND: the rank
    of the distance against the fraction of people who see a difference, shrunk in the same way.

    Args:
        distances: Distances of the metric by item.
        judged: The votes.
        test: ``"2afc"`` or ``"jnd"``.
        count: Most rows.
    """
    rows = [row for row, item in enumerate(judged.items) if item.id in distances]
    if not rows:
        return []
    part = judged.subset(rows)
    people = part.votes * (part.second - 0.5) / (part.votes + 2)
    pairs = [distances[item.id] for item in part.items]
    if test == "2afc":
        ratio = torch.tensor([_log_ratio(pair) for pair in pairs], dtype=torch.float64)  # above 0: p1 is nearer
        strength = -ratio.sign() * people * _rank(ratio.abs())
    else:
        strength = (_rank(torch.tensor([pair[0] for pair in pairs], dtype=torch.float64)) - 0.5 - people).abs()
    order = strength.argsort(descending=True, stable=True)[:count]
    return [rows[index] for index in order.tolist() if float(strength[index]) > 0]


def _log_ratio(pair: tuple[float, float | None]) -> float:
    first, other = (max(float(one or 0.0), 1e-12) for one in pair)
    return math.log(first / other)


def _rank(values: Tensor) -> Tensor:
    """Ranks from 0 to 1."""
    return values.argsort(stable=True).argsort().double() / max(1, len(values) - 1)


def draw_disagreements(
    study: Study, name: str, distances: Distances, judged: Judgments, path: str | Path
) -> list[Path]:
    """Draw the items on which people and a metric disagree most.

    Args:
        study: The study, whose images are read.
        name: Name of the metric.
        distances: Its distances by item.
        judged: The votes.
        path: Output PNG; a PDF is written beside it.

    Returns:
        The files; none if there is no such item.

    Raises:
        StudyError: If an image is missing or was changed.
    """
    test = study.design.test
    rows = disagreements(distances, judged, test)
    if not rows:
        return []
    items = [judged.items[row] for row in rows]
    files = checked_files(study, items)
    images = [_row_of_images(item, files) for item in items]
    inches = WIDTHS["text"] / _COLUMNS - 0.15
    texts = [_caption(judged, row, name, distances[judged.items[row].id], test, inches) for row in rows]
    height = max(image.shape[1] / image.shape[2] for image in images) * inches
    lines = math.ceil(len(rows) / _COLUMNS)
    total = lines * (height + (texts[0].count("\n") + 1) * _LINE + 0.15) + 0.25
    with new_figure("text", total) as figure:
        what = "reference, p0, p1" if test == "2afc" else "reference, distorted"
        figure.suptitle(f"From left to right: {what}", fontsize=TEXT_SIZE)
        axes = figure.subplots(lines, _COLUMNS, squeeze=False).ravel()
        for panel, image, text in zip(axes, images, texts, strict=False):
            panel.imshow(image.permute(1, 2, 0).numpy())
            panel.set(xticks=[], yticks=[], anchor="N")
            panel.spines[:].set_visible(False)
            panel.set_xlabel(text, fontsize=SMALL_SIZE)
        for panel in axes[len(rows) :]:
            panel.set_visible(False)
        return save_figure(figure, path)


def _row_of_images(item: Item, files: Mapping[int, Path]) -> Tensor:
    """The images of an item side by side, ``(3, H, W)`` in [0, 1], at most 256 pixels per side each."""
    images = [read_image(files[number]) for number in images_of(item)]
    shown = [(to_signed(image) + 1) / 2 for image in images]
    if (scale := _SIDE / max(images[0].shape[1:])) < 1:
        size = [max(1, round(scale * side)) for side in images[0].shape[1:]]
        shown = [F.interpolate(image[None], size, mode="bilinear", antialias=True)[0].clamp(0, 1) for image in shown]
    gap = torch.ones(3, shown[0].shape[1], max(2, shown[0].shape[2] // 24))
    return torch.cat([part for image in shown for part in (gap, image)][1:], 2)


def _caption(judged: Judgments, row: int, name: str, pair: tuple[float, float | None], test: str, inches: float) -> str:
    """Methods, votes and distances, in lines of at most `inches`."""
    item, votes = judged.items[row], judged.votes[row]
    second = round(float(judged.second[row] * votes))
    first = round(float(votes)) - second
    if test == "2afc":
        people = f"people {first} for p0, {second} for p1"
        values = f": {pair[0]:.3g} to p0, {pair[1]:.3g} to p1"
        methods = f"{item.method0} | {item.method1}" if item.method0 or item.method1 else ""
    else:
        people, values, methods = f"people {first} same, {second} different", f": {pair[0]:.3g}", item.method0
    lines = [people, fit_name(name, inches - text_inches(values)) + values]
    return "\n".join([*lines, fit_name(methods, inches) if methods else " "])
