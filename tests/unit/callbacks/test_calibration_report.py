"""CalibrationReport: drawn once a run, the same in every logger, and refused where there is nothing to report."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from boring_module import Boring, board, board_events, fit, loader, trainer, wandb
from lightning_fabric.utilities.exceptions import MisconfigurationException
from PIL import Image
from pytorch_lightning.loggers import CSVLogger

from lpips_lightning.callbacks import CalibrationReport
from lpips_lightning.callbacks._loggers import log_image
from lpips_lightning.data.datamodules import BAPPSDataModule
from lpips_lightning.data.judges import PEOPLE

# 2026-11-21, pytorch_lightning/trainer/connectors/data_connector.py: its advice on loaders.
pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers")


REPORT = "lpips_lightning.callbacks.calibration_report"


class Calibration(Boring):
    """A module with the attributes of a calibration; its scores are those of the last validation or test."""

    def __init__(self):
        super().__init__()
        self.calibration_scores, self.human_ceilings, self.jnd_scores, self.jnd_curves = {}, {}, {}, {}
        self.calibration = {"relu1": torch.linspace(0, 1, 8), "relu2": torch.zeros(5), "relu3": torch.ones(3)}

    def on_validation_epoch_end(self):
        self.calibration_scores = {"traditional": 0.7, "my set": 0.8}
        self.human_ceilings = {"traditional": 0.81, "my set": 0.85}
        self.jnd_scores = {"cnn": 0.6}
        self.jnd_curves = {"cnn": (torch.linspace(0, 1, 9), torch.linspace(1, 0.5, 9))}

    on_test_epoch_end = on_validation_epoch_end


@pytest.fixture
def drawn(monkeypatch):
    """Logged images: name, step, pixels."""
    found = []

    def note(trainer, name, pixels, step, **options):
        found.append((name, step, pixels))
        log_image(trainer, name, pixels, step, **options)

    monkeypatch.setattr(f"{REPORT}.log_image", note)
    return found


def read(path):
    with Image.open(path) as image:
        return np.array(image)


def test_every_logger_and_the_folder_get_the_same_image_once(tmp_path, drawn):
    tensorboard, table = board(tmp_path), CSVLogger(tmp_path, name="csv")
    weights_and_biases = wandb(tmp_path)
    fit(tmp_path, [CalibrationReport("Alex-lin")], Calibration(), logger=[tensorboard, table, weights_and_biases])
    ((name, step, pixels),) = drawn
    assert (name, step) == ("val/calibration_report", 6)
    (event,) = board_events(tensorboard).Images(name)
    (media,) = tmp_path.rglob("files/media/images/val/*.png")
    files = [Path(logger.log_dir) / f"{name}_step_00000006.png" for logger in (tensorboard, table)]
    for shown in (io.BytesIO(event.encoded_image_string), media, *files):
        assert np.array_equal(read(shown), pixels)
    assert len(list(tmp_path.rglob("*.png"))) == 3
    assert list(tmp_path.rglob("*.pdf")) == [files[0].with_suffix(".pdf")]
    weights_and_biases.experiment.finish()


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_a_validation_or_test_without_fit_is_reported(tmp_path, drawn, stage):
    getattr(trainer(tmp_path, [CalibrationReport()]), stage)(Calibration(), loader(), verbose=False)
    prefix = {"validate": "val", "test": "test"}[stage]
    assert [name for name, _, _ in drawn] == [f"{prefix}/calibration_report"]
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.p*")} == {
        f"{prefix}/calibration_report_step_00000000.{kind}" for kind in ("png", "pdf")
    }


def test_fast_dev_run_draws_and_writes_nothing(tmp_path, drawn):
    fit(tmp_path / "new", [CalibrationReport()], Calibration(), fast_dev_run=True)
    assert len(drawn) == 1
    assert not (tmp_path / "new").exists()


def axes_of(monkeypatch, model, paper=None):
    """The axes that the report draws, by title."""
    from matplotlib.figure import Figure

    figures = []
    subplots = Figure.subplots
    monkeypatch.setattr(
        Figure, "subplots", lambda figure, *args, **kw: figures.append(figure) or subplots(figure, *args, **kw)
    )
    pixels = CalibrationReport(paper).draw(model)
    assert pixels.dtype == np.uint8
    assert pixels.shape[2] == 3
    return {axis.get_title(): axis for axis in figures[0].axes if axis.axison}


def scores_of(axis):
    return {line.get_label(): list(line.get_xdata()) for line in axis.lines}


def test_the_figure_shows_the_values(monkeypatch):
    model = Calibration()
    model.on_test_epoch_end()
    axes = axes_of(monkeypatch, model, "VGG-tune")
    assert list(axes) == ["Agreement with the judgments", "Just noticeable differences", "The calibration"]
    lines = scores_of(axes["Agreement with the judgments"])
    assert lines["this calibration"] == pytest.approx([70, 80])
    assert lines["ceiling of the judges"] == pytest.approx([81, 85])
    assert lines["VGG-tune (paper)"] == pytest.approx([79.3])  # a set of one's own is not in the paper
    (curve,) = axes["Just noticeable differences"].lines
    assert curve.get_label() == "cnn, AP 60.0 %"
    assert curve.get_ydata() == pytest.approx(np.linspace(100, 50, 9))
    weights = axes["The calibration"].lines
    assert [line.get_label() for line in weights][1] == "relu2: 5, 100 %"
    assert weights[0].get_ydata() == pytest.approx(np.linspace(1, 0, 8))


def test_before_the_first_validation_only_weights_are_drawn(monkeypatch):
    assert list(axes_of(monkeypatch, Calibration())) == ["The calibration"]


def test_custom_reference_scores_are_drawn(monkeypatch):
    model = Calibration()
    model.on_test_epoch_end()
    lines = scores_of(axes_of(monkeypatch, model, {"my set": 0.75})["Agreement with the judgments"])
    assert lines.keys() == {"this calibration", "paper", "ceiling of the judges"}


class InFolder(BAPPSDataModule):
    """Data of a folder, without images."""

    def prepare_data(self):
        pass

    def setup(self, stage):
        pass

    def test_dataloader(self):
        return loader()


@pytest.mark.parametrize(
    ("record", "paper", "shown"),
    [
        ({"judge": "l2"}, "Alex-lin", set()),
        ({"judge": "l2"}, {"traditional": 0.7}, {"paper"}),
        ({"judge": "none"}, "Alex-lin", {"ceiling of the judges"}),
        (None, "Alex-lin", {"ceiling of the judges"}),
        ("BAPPS", "Alex-lin", {"human ceiling", "Alex-lin (paper)"}),
    ],
)
def test_the_papers_scores_are_drawn_beside_bapps_alone(tmp_path, monkeypatch, record, paper, shown):
    if record == "BAPPS":
        monkeypatch.setattr(f"{REPORT}.judged_by", lambda *place: PEOPLE)
    elif record is not None:
        (tmp_path / "made.json").write_text(json.dumps(record))
    figures = []
    monkeypatch.setattr(f"{REPORT}.figure_pixels", figures.append)
    monkeypatch.setattr(f"{REPORT}.log_image", lambda *args, **options: None)
    report = CalibrationReport(paper)
    trainer(tmp_path / "logs", [report]).test(Calibration(), datamodule=InFolder(str(tmp_path)), verbose=False)
    (axis,) = (axis for axis in figures[0].axes if axis.get_title() == "Agreement with the judgments")
    assert scores_of(axis).keys() == {"this calibration", *shown}
    judged = record == {"judge": "l2"}
    assert axis.get_xlabel() == "2AFC score, %" + ("\njudged by a metric: l2" if judged else "")


def test_the_figure_is_saved_as_png_and_pdf(tmp_path):
    files = CalibrationReport().save(Calibration(), tmp_path / "report.png")
    assert files == [tmp_path / "report.png", tmp_path / "report.pdf"]
    assert files[1].read_bytes().startswith(b"%PDF")


def test_rows_of_table_5_have_the_published_means():
    printed = {  # Table 5, last column
        "Squeeze-lin": 70.0,
        "Alex-lin": 69.8,
        "VGG-lin": 69.2,
        "Squeeze-scratch": 69.2,
        "Alex-scratch": 70.2,
        "VGG-scratch": 70.0,
        "Squeeze-tune": 69.6,
        "Alex-tune": 69.7,
        "VGG-tune": 69.8,
    }
    means = {name: 100 * sum(CalibrationReport(name).paper.values()) / 6 for name in printed}
    assert means == pytest.approx(printed, abs=0.06)  # the scores are rounded too


def test_other_models_and_scores_are_refused(tmp_path, monkeypatch):
    message = (
        "model: expected a calibration .* got Boring without calibration, calibration_scores, human_ceilings, jnd_"
    )
    with pytest.raises(MisconfigurationException, match=message):
        fit(tmp_path, [CalibrationReport()], Boring())
    with pytest.raises(ValueError, match=r"paper: expected one of \('Human', .* got 'Alex'"):
        CalibrationReport("Alex")
    with pytest.raises(ValueError, match=r"paper: expected scores on \[0, 1\], got 70.6 for 'cnn'; divide percent"):
        CalibrationReport({"cnn": 70.6})
    monkeypatch.setattr("lpips_lightning.io.figures.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="CalibrationReport needs matplotlib, which is not installed: pip"):
        fit(tmp_path, [CalibrationReport()], Calibration())
