"""LossSchedule: the weight at each step, in the log, and after a resume."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest
import torch
from boring_module import Boring, board, board_events, fit, loader, trainer
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.loggers import CSVLogger

from lpips_lightning import PerceptualLoss
from lpips_lightning.callbacks import LossSchedule

# 2026-11-21, pytorch_lightning/trainer/connectors/data_connector.py: its advice on loaders.
pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers")


def boring(weight=0.5):
    return Boring(loss="embedded", loss_weight=weight)


def weights(folder, name="loss/perceptual/weight"):
    (file,) = Path(folder).rglob("metrics.csv")
    return [float(row[name]) for row in csv.DictReader(file.read_text().splitlines()) if row[name]]


@pytest.mark.parametrize(
    ("shape", "steps", "expected"),
    [
        ("linear", 4, [0, 0, 0, 0.25, 0.5, 0.75, 1, 1]),
        ("cosine", 4, [0, 0, 0, (1 - math.sqrt(0.5)) / 2, 0.5, (1 + math.sqrt(0.5)) / 2, 1, 1]),
        ("step", 0, [0, 0, 1, 1, 1, 1, 1, 1]),
        ("linear", 0, [0, 0, 1, 1, 1, 1, 1, 1]),
    ],
)
def test_shapes(shape, steps, expected):
    schedule = LossSchedule(shape=shape, start_step=2, warmup_steps=steps)
    assert [schedule.weight(step, final=1.0) for step in range(8)] == pytest.approx(expected)
    falling = LossSchedule(shape=shape, start_step=2, warmup_steps=steps, initial=3.0)
    assert [falling.weight(step, final=1.0) for step in range(8)] == pytest.approx([3 - 2 * e for e in expected])


def test_each_step_has_its_weight_and_logs_it(tmp_path):
    used = []

    class Watched(Boring):
        def training_step(self, batch, batch_idx):
            used.append(self.perceptual.weight)
            return super().training_step(batch, batch_idx)

    loggers = [CSVLogger(tmp_path), board(tmp_path)]
    fit(tmp_path, [LossSchedule(0.4, start_step=1, warmup_steps=4)], Watched(loss="embedded"), logger=loggers)
    assert used == pytest.approx([0, 0, 0.1, 0.2, 0.3, 0.4])
    assert weights(tmp_path) == pytest.approx(used)
    events = board_events(loggers[1]).Scalars("loss/perceptual/weight")
    assert [event.step for event in events] == list(range(6))


def test_accumulated_batches_share_a_weight(tmp_path):
    schedule = LossSchedule(1.0, warmup_steps=3)
    fit(tmp_path, [schedule], boring(), logger=CSVLogger(tmp_path), accumulate_grad_batches=3)
    assert weights(tmp_path)[-1] == pytest.approx(1 / 3)  # six batches are two steps: the last one began at 1


@pytest.mark.parametrize("final", [None, 0.5])
def test_a_resumed_fit_continues_the_schedule(tmp_path, final):
    def schedule():
        return LossSchedule(final, warmup_steps=6)

    first = fit(tmp_path, [schedule()], boring(0.5), max_epochs=1)
    first.save_checkpoint(tmp_path / "half.ckpt")
    torch.load(tmp_path / "half.ckpt", weights_only=True)
    # The resumed model was built with the weight that the first had reached, as a notebook would have it.
    resumed = trainer(tmp_path, [schedule()], max_epochs=3, logger=CSVLogger(tmp_path))
    model = boring(first.lightning_module.perceptual.weight)
    resumed.fit(model, loader(), loader(), ckpt_path=tmp_path / "half.ckpt")
    assert weights(tmp_path) == pytest.approx([0.25, 0.5 * 4 / 6, 0.5 * 5 / 6, 0.5, 0.5, 0.5])


def test_a_second_fit_keeps_the_final_weight(tmp_path):
    model, schedule = boring(0.5), LossSchedule(warmup_steps=12)
    fit(tmp_path, [schedule], model)
    assert model.perceptual.weight == pytest.approx(0.5 * 5 / 12)
    fit(tmp_path, [schedule], model, max_epochs=5)
    assert model.perceptual.weight == 0.5


def test_two_losses_have_two_schedules(tmp_path):
    model = boring()
    model.second = torch.nn.ModuleList([PerceptualLoss("embedded", data_range=(0, 1))])
    one, two = LossSchedule(0.1, loss="perceptual"), LossSchedule(0.2, loss="second.0", shape="step", start_step=5)
    fitted = fit(tmp_path, [one, two], model, logger=CSVLogger(tmp_path))
    assert weights(tmp_path, "loss/second.0/weight") == pytest.approx([0, 0, 0, 0, 0, 0.2])
    fitted.save_checkpoint(tmp_path / "saved.ckpt")
    states = torch.load(tmp_path / "saved.ckpt", weights_only=True)["callbacks"]
    assert states[one.state_key] == {"final": {"perceptual": 0.1}}
    assert states[two.state_key] == {"final": {"second.0": 0.2}}
    fit(tmp_path, [LossSchedule(0.3)], model)
    assert model.perceptual.weight == model.second[0].weight == 0.3


def test_fast_dev_run_validation_and_no_logger_work(tmp_path):
    model = boring()
    fit(tmp_path, [LossSchedule(0.1)], model, fast_dev_run=True)
    assert model.perceptual.weight == 0.1
    trainer(tmp_path, [LossSchedule(0.7)]).validate(model, loader(), verbose=False)
    assert model.perceptual.weight == 0.1


@pytest.mark.parametrize(
    ("model", "loss", "got"),
    [
        (Boring, None, "among none in the model, got None"),
        (boring, "lpips", "among 'perceptual', got 'lpips'"),
    ],
)
def test_a_model_without_the_loss_is_refused_before_the_first_step(tmp_path, model, loss, got):
    with pytest.raises(
        MisconfigurationException,
        match=f"loss: expected the path of a PerceptualLoss {got}; create losses as sub",
    ):
        fit(tmp_path, [LossSchedule(loss=loss)], model())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shape": "square"}, r"shape: expected one of \('linear', 'cosine', 'step'\), got 'square'"),
        ({"start_step": -1}, "start_step: expected at least 0, got -1"),
        ({"warmup_steps": -1}, "warmup_steps: expected at least 0, got -1"),
        ({"shape": "step", "warmup_steps": 3}, "warmup_steps: expected 0 with shape='step', got 3"),
        ({"final": math.nan}, "final: expected a finite weight of at least 0, got nan"),
        ({"initial": -0.5}, "initial: expected a finite weight of at least 0, got -0.5"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        LossSchedule(**arguments)
