"""Every figure of numbers stays readable: no text leaves the canvas, overlaps another or has a wrong size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from _helpers.figure_layout import HOSTILE_NAMES, saved_faults
from benchmarks import report as benchmark_report

from lpips_lightning.callbacks import CalibrationReport
from lpips_lightning.data.judges import Judge
from lpips_lightning.evaluation import figures
from lpips_lightning.evaluation.benchmark import HUMAN, Judged, Score
from lpips_lightning.recipes.tradeoff_plot import save_plot
from lpips_lightning.recipes.tradeoff_table import TradeoffRow


@dataclass(frozen=True)
class Content:
    """What a figure has to show: names of methods and of sets, a value and an interval for each."""

    methods: Sequence[str]
    sets: Sequence[str]
    values: Sequence[float]
    half: float = 1.0
    judge: str = HUMAN

    def value(self, *places: int) -> float:
        return self.values[sum(places) % len(self.values)]


CONTENTS = {
    "ordinary": Content(["l2", "ssim", "alex", "vgg"], ["traditional", "cnn", "superres"], [58.2, 71.9, 73.3, 64.0]),
    "30 methods": Content(HOSTILE_NAMES, ["cnn", HOSTILE_NAMES[-1]], [50 + 1.7 * i for i in range(29)]),
    "13 sets": Content(HOSTILE_NAMES[5:7], HOSTILE_NAMES[:13], [61.3, 98.7]),
    "one point": Content(["l2"], ["cnn"], [71.25]),
    "long names": Content([HOSTILE_NAMES[-1]], [HOSTILE_NAMES[-2]], [100.0, 0.0], judge=f"judge: {HOSTILE_NAMES[-3]}"),
    "NaN": Content(HOSTILE_NAMES[:6], ["cnn", HOSTILE_NAMES[-1]], [math.nan, 60.0], math.nan),
    "nothing finite": Content(HOSTILE_NAMES[:3], ["cnn"], [math.nan], math.nan),
    "equal": Content(HOSTILE_NAMES[:5], ["cnn", "color"], [70.0], 0.0),
    "ends": Content(["a", "b", "c"], ["cnn"], [0.0, 100.0, 50.0], 40.0),
    "empty": Content([], [], [0.0]),
}


def scores(content, kind):
    half = content.half
    return [
        Score(method, name, kind, value, max(0, value - half), min(100, value + half), 9, paper, content.judge)
        for row, method in enumerate([*content.methods, *([content.judge] if kind == "2afc" else [])])
        for column, name in enumerate(content.sets)
        for value in [content.value(row, column)]
        for paper in [value - 1 if row % 2 and value > 1 else None]
    ]


def draw_scores(content, path):
    return figures.save_scores(scores(content, "2afc"), path)


def draw_scatter(content, path):
    return figures.save_scatter([*scores(content, "2afc"), *scores(content, "jnd")], path)


def draw_disagreements(content, path):
    names = [*content.methods, "x", "y"][:2]
    made = torch.Generator().manual_seed(0)
    sets, measured = {}, {name: {} for name in names}
    for number, name in enumerate(content.sets or ["cnn"]):
        shape = (3, 9, 20) if number % 2 else (3, 20, 9)
        images = [dict.fromkeys(("ref", "p0", "p1"), torch.rand(shape, generator=made) * 2 - 1) for _ in range(3)]
        named = {} if number % 3 else {"path": "|".join(map(str, HOSTILE_NAMES[-3:]))}
        sets[name] = [item | {"judge": torch.tensor(0.5)} | named for item in images]
        for sign, method in zip((1, -1), names, strict=True):
            values = sign * torch.rand((3, 2), generator=made) * content.value(number)
            measured[method][name] = Judged("2afc", values, torch.zeros(3))
    return figures.save_disagreements(measured, tuple(names), sets, path)


def draw_calibration(content, path):
    values = {name: content.value(place) / 100 for place, name in enumerate(content.sets)}
    curve = torch.linspace(0, 1, 5), torch.linspace(1, 0, 5)
    layers = dict.fromkeys(content.methods or ["relu1"], torch.linspace(0, content.values[0], 7))
    results = SimpleNamespace(
        calibration_scores=values,
        human_ceilings=values,
        jnd_scores=values,
        jnd_curves=dict.fromkeys(content.sets, curve),
        calibration=layers,
    )
    paper = dict.fromkeys(content.sets, 0.5)
    report = CalibrationReport(paper)
    if content.judge != HUMAN:
        report._judges = dict.fromkeys(content.sets, Judge("metric", content.judge))
    return report.save(results, path)


def draw_benchmark(content, path):
    rows = [
        {"net": net, "batch": 16, "side": 1024, "work": work, "contender": contender, "setting": setting}
        | {"rounds_cpu_s": [content.value(place, index) / 10 + (contender == "floor") for index in range(3)]}
        for place, net in enumerate(("alex", "vgg", "squeeze"))
        for work in ("forward", "step")
        for contender, setting in [("floor", "fp32"), ("ours", "fp32"), ("ours", "bf16"), ("piq", "fp32")]
        if content.methods
    ]
    machine = {"device": "cpu", "cpu": HOSTILE_NAMES[-1] * 3, "threads": 2, "torch": "2.6.0"}
    return benchmark_report.draw({"machine": machine, "timing": rows}, "cpu", path)


def draw_tradeoff(content, path):
    names = [*(name.partition(":")[0] for name in content.methods[:1]), *content.sets] or ["alex"]
    rows = [
        TradeoffRow(method, seed, scores={f"lpips_{name}": content.value(place, seed) for name in names})
        for place, method in enumerate(content.methods or ["pixel"])
        for seed in (0, 1)
    ]
    return save_plot(path, rows, {})


FIGURES = {
    "scores": draw_scores,
    "scatter": draw_scatter,
    "disagreements": draw_disagreements,
    "calibration": draw_calibration,
    "benchmark": draw_benchmark,
    "tradeoff": draw_tradeoff,
}


CASES = [  # every figure with half of the contents and every content in half of the figures; all with ``-m ""``
    pytest.param(figure, content, marks=[pytest.mark.slow] * ((row + column) % 2))
    for row, figure in enumerate(FIGURES)
    for column, content in enumerate(CONTENTS)
]


@pytest.mark.parametrize(("figure", "content"), CASES)
def test_a_figure_is_readable(figure, content, tmp_path):
    assert saved_faults(lambda path: FIGURES[figure](CONTENTS[content], path), tmp_path / "a.png") == []
