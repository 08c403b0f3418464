"""Figure of a calibration: agreement with human judgments, just noticeable differences, and weights."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning import Trainer
from torch import Tensor
from typing_extensions import override

from lpips_lightning._lightning import Callback, LightningModule
from lpips_lightning.callbacks._loggers import Pixels, log_figure_file, log_image
from lpips_lightning.data.datamodules import BAPPSDataModule
from lpips_lightning.data.judges import Judge, judge_note, judged_by
from lpips_lightning.evaluation.table5 import PAPER_SETS, TABLE_5
from lpips_lightning.io.figures import (
    SMALL_SIZE,
    TEXT_SIZE,
    CategoryStyle,
    below_row,
    category_styles,
    figure_pixels,
    fit_name,
    fit_names,
    new_figure,
    require_matplotlib,
    save_figure,
    value_limits,
)

_LINE = 0.15  # inches, of a line of a legend
_ROW = 0.18  # inches, of a set
_LINES = ("-", "--", ":", "-.")


@runtime_checkable
class CalibrationResults(Protocol):
    """Attributes that a LightningModule must have for the report; empty before its first validation or test.

    Attributes:
        calibration_scores: 2AFC score in [0, 1] by dataset.
        human_ceilings: Expected 2AFC score of one more person, in [0, 1], by dataset.
        jnd_curves: Recall and precision, each ``(M,)``, by dataset.
        jnd_scores: Average precision in [0, 1] by dataset.
    """

    calibration_scores: dict[str, float]
    human_ceilings: dict[str, float]
    jnd_curves: dict[str, tuple[Tensor, Tensor]]
    jnd_scores: dict[str, float]

    @property
    def calibration(self) -> Mapping[str, Tensor]:
        """Calibration weights ``(C,)`` by layer name."""


class CalibrationReport(Callback):
    """Plots the results of a calibration at the end of fit, validation or test.

    The figure shows the 2AFC scores by dataset with the human ceiling and the paper's scores, precision over recall for
    just noticeable differences, and the sorted weights of each layer. Loggers with images get it as
    ``val/calibration_report`` or ``test/calibration_report``; a PNG and a PDF file are always written to the log
    folder.

    Args:
        paper: The paper's scores: a key of `lpips_lightning.evaluation.table5.TABLE_5` such as ``"Alex-lin"``, or
            scores in [0, 1] by dataset; None for none. The rows of ``TABLE_5`` are for BAPPS' validation sets: they
            are not drawn beside other data of `BAPPSDataModule`, such as those of ``bapps make``.

    Raises:
        ValueError: If `paper` is an unknown key, or a score is outside [0, 1].
    """

    def __init__(self, paper: str | Mapping[str, float] | None = None) -> None:
        if isinstance(paper, str) and paper not in TABLE_5:
            raise ValueError(f"paper: expected one of {tuple(TABLE_5)} or scores by dataset, got {paper!r}")
        row = _paper_scores(paper) if isinstance(paper, str) else dict(paper or {})
        for name, score in row.items():
            if not 0 <= score <= 1:
                raise ValueError(f"paper: expected scores on [0, 1], got {score} for {name!r}; divide percent by 100")
        self.paper = row
        self.paper_label = f"{paper} (paper)" if isinstance(paper, str) else "paper"
        self._from_table = isinstance(paper, str)
        self._judges: dict[str, Judge] = {}

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        require_matplotlib("CalibrationReport needs")
        if stage != "predict" and not isinstance(pl_module, CalibrationResults):
            wanted = [name for name in dir(CalibrationResults) if not name.startswith("_")]
            wanted += CalibrationResults.__annotations__
            missing = ", ".join(name for name in sorted(wanted) if not hasattr(pl_module, name))
            raise MisconfigurationException(
                f"model: expected a calibration with the attributes of CalibrationResults, got "
                f"{type(pl_module).__name__} without {missing}; they may be empty before the first validation"
            )

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._log(trainer, pl_module, "val")

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "validate":
            self._log(trainer, pl_module, "val")

    @override
    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._log(trainer, pl_module, "test")

    def draw(self, results: CalibrationResults) -> Pixels:
        """Draw the figure.

        Args:
            results: Calibration results, usually the LightningModule.

        Returns:
            Shape ``(H, W, 3)``, uint8.

        Raises:
            ModuleNotFoundError: If matplotlib is not installed.
        """
        with self._drawn(results) as figure:
            return figure_pixels(figure)

    def save(self, results: CalibrationResults, path: str | os.PathLike[str]) -> list[Path]:
        """Write the figure as PNG, and as PDF beside it.

        Args:
            results: Calibration results, usually the LightningModule.
            path: Output file; its suffix is replaced.

        Returns:
            The files.

        Raises:
            ModuleNotFoundError: If matplotlib is not installed.
        """
        with self._drawn(results) as figure:
            return save_figure(figure, path)

    def _log(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        name = f"{stage}/calibration_report"
        if isinstance(pl_module, CalibrationResults):  # checked in setup
            self._judges = _judges(getattr(trainer, "datamodule", None), pl_module.calibration_scores)
            with self._drawn(pl_module) as figure:
                log_image(trainer, name, figure_pixels(figure), trainer.global_step, always_png=True)
                log_figure_file(trainer, name, figure, trainer.global_step)

    @contextmanager
    def _drawn(self, results: CalibrationResults) -> Iterator[Any]:
        """The figure, in the style that it is to be saved in."""
        parts = [
            (1.15, self._draw_scores, results.calibration_scores),
            (1.0, _draw_curves, results.jnd_curves),
            (1.0, _draw_weights, results.calibration),
        ]
        drawn = [(width, part) for width, part, content in parts if content]
        legend = _LINE * max(3, len(results.jnd_curves), len(results.calibration) + 1) + 0.1
        height = max(1.9, 0.5 + _ROW * len(results.calibration_scores))
        with new_figure("text" if len(drawn) > 1 else "column", height + legend) as figure:
            grid = {"height_ratios": [height, legend], "width_ratios": [width for width, _ in drawn] or [1]}
            axes, legends = figure.subplots(2, max(len(drawn), 1), squeeze=False, gridspec_kw=grid)
            for below in (*legends, *axes[len(drawn) :]):
                below.set_axis_off()
            for axis, below, (_, part) in zip(axes, legends, drawn, strict=False):
                part(axis, below, results)
            yield figure

    def _draw_scores(self, axis: Any, below: Any, results: CalibrationResults) -> None:
        sets = list(results.calibration_scores)
        levels: list[float] = []
        for scores, label, marker, style in self._rows(axis, results):
            known = [(100 * scores[name], place) for place, name in enumerate(sets) if name in scores]
            if known:
                values, places = zip(*known, strict=True)
                axis.plot(values, places, marker, label=label, clip_on=False, **style)
                levels += values
        for place, name in enumerate(sets):
            value = 100 * results.calibration_scores[name]
            text = f"{value:.1f}" if math.isfinite(value) else "no value"
            style = {"transform": axis.get_yaxis_transform(), "va": "center_baseline", "fontsize": SMALL_SIZE}
            axis.text(1.03, place, text, **style)
        axis.grid(axis="y", color="0.9", linewidth=0.5)
        axis.set_axisbelow(True)
        axis.set(xlim=value_limits(levels), ylim=(len(sets) - 0.4, -0.6))
        axis.set_yticks(range(len(sets)), fit_names(sets, 0.7))
        axis.xaxis.get_major_locator().set_params(nbins=4, steps=[1, 2, 5, 10])
        axis.xaxis.set_major_formatter("{x:g}")
        note = judge_note(judge.label for judge in self._judges.values())
        axis.set_xlabel("2AFC score, %" + (f"\n{fit_name(note, 2.0, TEXT_SIZE)}" if note else ""))
        axis.set_title("Agreement with the judgments")
        _legend(axis, below)

    def _rows(
        self, axis: Any, results: CalibrationResults
    ) -> list[tuple[Mapping[str, float], str, str, dict[str, Any]]]:
        """Scores by dataset, with label, marker and style; those that do not belong to the data are left out."""
        kinds = {name: judge.kind for name, judge in self._judges.items()}
        hidden = {name for name, kind in kinds.items() if self._from_table and kind != "people"}
        paper = {name: score for name, score in self.paper.items() if name not in hidden}
        ceilings = {name: score for name, score in results.human_ceilings.items() if kinds.get(name) != "metric"}
        ceiling = "human ceiling" if set(kinds.values()) == {"people"} else "ceiling of the judges"
        below = {"color": "#ee6677", "markersize": 3, "transform": below_row(axis)}
        return [
            (results.calibration_scores, "this calibration", "o", {"color": "#4477aa"}),
            (paper, self.paper_label, "D", below),
            (ceilings, ceiling, "|", {"color": "black", "markersize": 9}),
        ]


def _draw_curves(axis: Any, below: Any, results: CalibrationResults) -> None:
    sets = results.jnd_curves
    for (name, (recall, precision)), short, (line, style) in zip(
        sets.items(), fit_names(list(sets), 0.95), _line_styles(len(sets)), strict=True
    ):
        score = results.jnd_scores.get(name, math.nan)
        label = f"{short}, AP {100 * score:.1f} %" if math.isfinite(score) else short
        axis.plot(100 * recall.cpu().numpy(), 100 * precision.cpu().numpy(), line, color=style.color, label=label)
    axis.set(xlim=(0, 100), ylim=(0, 100), xlabel="recall, %", ylabel="precision, %")
    axis.set_title("Just noticeable differences")
    _legend(axis, below)


def _draw_weights(axis: Any, below: Any, results: CalibrationResults) -> None:
    layers = results.calibration
    largest = 0.0
    for weights, short, (line, style) in zip(
        layers.values(), fit_names(list(layers), 0.7), _line_styles(len(layers)), strict=True
    ):
        values = np.sort(weights.detach().float().cpu().numpy().ravel())[::-1]
        percent = 100 * (np.arange(len(values)) + 0.5) / max(len(values), 1)
        few = f", {100 * (values < 0.01).mean():.0f} %" if len(values) else ""
        axis.plot(percent, values, line, color=style.color, label=f"{short}: {len(values)}{few}")
        largest = max([largest, *values[np.isfinite(values)]])
    # A few channels carry most of the weight; a linear scale would show only these.
    axis.set_yscale("symlog", linthresh=1e-2, linscale=0.5)
    axis.set_yticks(_weight_ticks(largest))
    axis.yaxis.set_major_formatter("{x:g}")
    axis.set(xlim=(0, 100), ylim=(0, max(1.3 * largest, 0.02)), xlabel="channels by weight, %", ylabel="weight")
    axis.set_title("The calibration")
    _legend(axis, below, "layer: channels, below 0.01")


def _weight_ticks(largest: float) -> list[float]:
    """0 and up to four powers of ten, from 0.01 where it does not meet the 0."""
    top = math.floor(math.log10(max(largest, 0.01)) + 1e-9)
    exponents = range(top, -3 if top < 3 else -2, -math.ceil(max(top + 2, 1) / 4))
    return [0.0, *(10.0**exponent for exponent in exponents)]


def _legend(axis: Any, below: Any, title: str | None = None) -> None:
    """Legend of `axis` in the empty axes `below`."""
    handles, labels = axis.get_legend_handles_labels()
    if handles:
        options = {"loc": "upper left", "borderaxespad": 0, "alignment": "left", "title_fontsize": SMALL_SIZE}
        below.legend(handles, labels, title=title, **options)


def _line_styles(count: int) -> list[tuple[str, CategoryStyle]]:
    """Lines of categories: seven colors, then dashed."""
    return [(_LINES[i // 7 % len(_LINES)], style) for i, style in enumerate(category_styles(count))]


def _judges(data: Any, sets: Iterable[str]) -> dict[str, Judge]:
    """Who judged the sets of a `BAPPSDataModule`; empty for other data."""
    if not isinstance(data, BAPPSDataModule):
        return {}
    folder = Path(getattr(data, "folder", None) or getattr(data, "root", ""))
    return {name: judged_by(folder, "2afc/val", name) for name in sets}


def _paper_scores(row: str) -> dict[str, float]:
    return {name: score / 100 for name, score in zip(PAPER_SETS, TABLE_5[row], strict=True)}
