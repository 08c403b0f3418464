"""Figure of a calibration: agreement with human judgments, just noticeable differences, and weights."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from itertools import cycle
from typing import Any, Protocol, runtime_checkable

import numpy as np
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning import Trainer
from torch import Tensor
from typing_extensions import override

from lpips_lightning._lightning import Callback, LightningModule
from lpips_lightning.callbacks._loggers import Pixels, log_image
from lpips_lightning.evaluation.table5 import PAPER_SETS, TABLE_5


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
    ``val/calibration_report`` or ``test/calibration_report``; a PNG file is always written to the log folder.

    Args:
        paper: The paper's scores: a key of `lpips_lightning.evaluation.table5.TABLE_5` such as ``"Alex-lin"``, or
            scores in [0, 1] by dataset; None for none.

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

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if find_spec("matplotlib") is None:
            raise ModuleNotFoundError(
                'CalibrationReport needs matplotlib, which is not installed: pip install "lpips_lightning[recipes]"'
            )
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
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure  # no pyplot: no global state, no window

        parts = [
            (max(3.2, 1.2 * len(results.calibration_scores) + 1.2), self._draw_scores, results.calibration_scores),
            (4.2, _draw_curves, results.jnd_curves),
            (4.2, _draw_weights, results.calibration),
        ]
        drawn = [(width, part) for width, part, content in parts if content]
        figure = Figure((sum(width for width, _ in drawn), 3.9), dpi=150, layout="constrained")
        canvas: Any = FigureCanvasAgg(figure)
        axes = figure.subplots(1, len(drawn), squeeze=False, width_ratios=[width for width, _ in drawn])
        for axis, (_, part) in zip(axes[0], drawn, strict=True):
            part(axis, results)
            axis.spines[["top", "right"]].set_visible(False)
            axis.tick_params(labelsize=8)
        canvas.draw()
        return np.asarray(canvas.buffer_rgba())[..., :3].copy()

    def _log(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        name = f"{stage}/calibration_report"
        if isinstance(pl_module, CalibrationResults):  # checked in setup
            log_image(trainer, name, self.draw(pl_module), trainer.global_step, always_png=True)

    def _draw_scores(self, axis: Any, results: CalibrationResults) -> None:
        sets = list(results.calibration_scores)
        heights = [100 * results.calibration_scores[name] for name in sets]
        bars = axis.bar(range(len(sets)), heights, 0.62, color="#3b6ea8", label="this calibration")
        axis.bar_label(bars, fmt="%.1f", fontsize=8, padding=2, label_type="center", color="white")
        levels = heights[:]
        for row, label, style in (
            (self.paper, self.paper_label, {"colors": "#e08214", "linewidth": 2.2}),
            (results.human_ceilings, "human ceiling", {"colors": "black", "linestyles": "dashed", "linewidth": 1.4}),
        ):
            known = [(place, 100 * row[name]) for place, name in enumerate(sets) if name in row]
            if known:
                places, values = np.array(known).T
                axis.hlines(values, places - 0.42, places + 0.42, label=label, **style)
                levels += values.tolist()
        # Chance level is 50 %.
        axis.set_ylim(min(50.0, np.floor(min(levels)) - 2), max(levels) + 2)
        axis.set_xticks(range(len(sets)), sets)
        axis.set_ylabel("2AFC score, %", fontsize=9)
        axis.set_title("Agreement with people", fontsize=10, pad=26)
        axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, fontsize=8, frameon=False)


def _draw_curves(axis: Any, results: CalibrationResults) -> None:
    for (name, (recall, precision)), style in zip(results.jnd_curves.items(), cycle(("-", "--", ":")), strict=False):
        score = results.jnd_scores.get(name)
        label = name if score is None else f"{name}, AP {100 * score:.1f} %"
        axis.plot(100 * recall.cpu().numpy(), 100 * precision.cpu().numpy(), style, label=label, linewidth=1.6)
    axis.set(xlim=(0, 100), ylim=(0, 102))
    axis.set_xlabel("recall, %", fontsize=9)
    axis.set_ylabel("precision, %", fontsize=9)
    axis.set_title("Just noticeable differences", fontsize=10)
    axis.legend(loc="lower left", fontsize=8, frameon=False)


def _draw_weights(axis: Any, results: CalibrationResults) -> None:
    from matplotlib import colormaps

    layers = list(results.calibration.items())
    for index, (layer, weights) in enumerate(layers):
        values = np.sort(weights.detach().float().cpu().numpy().ravel())[::-1]
        percent = 100 * (np.arange(len(values)) + 0.5) / len(values)
        label = f"{layer}, {len(values)} channels, {100 * (values < 0.01).mean():.0f} % below 0.01"
        color = colormaps["viridis"](0.05 + 0.85 * index / max(len(layers) - 1, 1))
        axis.plot(percent, values, color=color, label=label, linewidth=1.6)
    # A few channels carry most of the weight; a linear scale would show only these.
    axis.set_yscale("symlog", linthresh=1e-2, linscale=0.3)
    axis.set_ylim(bottom=0)
    axis.set_xlim(0, 100)
    axis.set_xlabel("channels, from the largest weight, %", fontsize=9)
    axis.set_ylabel("weight", fontsize=9)
    axis.set_title("The calibration", fontsize=10)
    axis.legend(loc="upper right", fontsize=7.5, frameon=False)


def _paper_scores(row: str) -> dict[str, float]:
    return {name: score / 100 for name, score in zip(PAPER_SETS, TABLE_5[row], strict=True)}
