"""The life of a recipe's run: its folder, failed starts, signals, resuming, the best checkpoint, and what is said."""

from __future__ import annotations

import csv
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
import pytorch_lightning
import subprocess_jobs as jobs
import torch
import yaml
from packaging.version import Version
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.cli import LightningCLI
from small_data import write_noise
from small_recipes import RECIPES

from lpips_lightning.recipes import interruption
from lpips_lightning.recipes.run_folder import RunFolder
from lpips_lightning.recipes.run_history import RunHistory, Validation, is_stalled, logging_interval
from lpips_lightning.recipes.run_report import fit_rows, options_with, without_option
from lpips_lightning.weights import WeightsError

# 2026-11-28, pytorch_lightning/trainer/connectors/data_connector.py: noise for five images.
pytestmark = pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")
SUPERRESOLUTION = RECIPES[0]
SLOW = pytest.mark.slow
RESUMED = ("autoencoder", "deblurring")  # their own tests resume them in the middle of an epoch
_DISCRIMINATOR = " --model.adversarial_weight=0.5 --model.discriminator_channels=4 --data.realistic=true"
ADVERSARIAL = SUPERRESOLUTION._replace(options=SUPERRESOLUTION.options + _DISCRIMINATOR)
PLAIN = ("--without", "gallery")


@pytest.fixture(autouse=True)
def _images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_noise("images")


@pytest.fixture
def signal_at(monkeypatch):
    """signal_at(step, hook): this process gets a signal before that step."""
    at = {}

    def wrap(name):
        original = getattr(interruption.Interruption, name)

        def hook(self, trainer, *args):
            original(self, trainer, *args)
            if at.get(name) == trainer.global_step:
                del at[name]
                signal.raise_signal(at.pop("signal"))

        monkeypatch.setattr(interruption.Interruption, name, hook)

    for name in ("on_train_batch_start", "on_validation_start"):
        wrap(name)
    return lambda step, name="on_train_batch_start", number=signal.SIGINT: at.update({name: step, "signal": number})


def run_folder(number, name="superresolution"):
    return Path("outputs", name, f"version_{number}")


def last(number, name="superresolution"):
    return run_folder(number, name) / "checkpoints" / "last.ckpt"


def rows(number):
    with (run_folder(number) / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    "broken",
    [
        "fit --data.folder=nowhere",
        "fit --data.held_out=[nobody]",
        "fit --model.loss_weights=nowhere",
        "fit --data.val_crop_size=3200",
        "fit --ckpt_path=nowhere.ckpt",
        "test --data.held_out=[nobody]",
        "validate --ckpt_path=nowhere.ckpt",
        "predict --data.predict_folder=nowhere",
    ],
)
def test_a_failed_start_leaves_nothing(broken):
    subcommand, *options = broken.split()
    with pytest.raises((ValueError, OSError, WeightsError)):
        SUPERRESOLUTION.run(subcommand, *options)
    assert {path.name for path in Path().iterdir()} == {"images"}


def test_a_failed_start_leaves_earlier_runs_as_they_were():
    SUPERRESOLUTION.run("fit", *PLAIN, "--trainer.max_epochs=1")
    before = {path: path.read_bytes() for path in Path("outputs").rglob("*") if path.is_file()}
    for resumed in ([], [f"--ckpt_path={last(0)}"]):
        with pytest.raises(ValueError, match="nobody"):
            SUPERRESOLUTION.run("fit", *PLAIN, "--data.held_out=[nobody]", *resumed)
    assert {path: path.read_bytes() for path in Path("outputs").rglob("*") if path.is_file()} == before


def test_two_runs_that_start_at_once_get_two_folders(monkeypatch):
    from pytorch_lightning.loggers import CSVLogger

    loggers = [CSVLogger("outputs", "a") for _ in range(2)]
    assert [logger.version for logger in loggers] == [0, 0]
    for logger in loggers:
        logger._version = None
    monkeypatch.setattr(CSVLogger, "_get_next_version", lambda self: 0)
    options = {"accelerator": "cpu", "enable_progress_bar": False}
    folders = [RunFolder.open(Trainer(logger=logger, **options), None) for logger in loggers]
    assert [folder.path.name for folder in folders] == ["version_0", "version_1"]
    folders[0].discard()
    assert Path("outputs/a/version_1").is_dir() and not Path("outputs/a/version_0").exists()


def test_without_a_logger_a_configuration_in_the_working_folder_stays():
    Path("config.yaml").write_text("mine")
    SUPERRESOLUTION.run("fit", *PLAIN, "--trainer.logger=false", "--trainer.max_epochs=1")
    assert Path("config.yaml").read_text() == "mine"


@pytest.mark.parametrize(
    ("recipe", "at"),
    [
        *(
            pytest.param(recipe, (0, "on_train_batch_start"), id=recipe.name, marks=[SLOW] * (recipe.name in RESUMED))
            for recipe in RECIPES
        ),
        pytest.param(ADVERSARIAL, (2, "on_validation_start"), id="in a validation"),
    ],
)
def test_an_interrupted_run_resumes_to_the_same_weights_and_log(recipe, at, signal_at, capsys):
    if at[1] == "on_validation_start" and Version(pytorch_lightning.__version__) < Version("2.6"):
        pytest.skip("Lightning 2.5 does not resume exactly after a stop in a validation")
    handlers = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
    recipe.run("fit", *PLAIN)
    signal_at(*at)
    with pytest.raises(SystemExit) as stopped:
        recipe.run("fit", *PLAIN)
    assert stopped.value.code == 130
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == handlers
    said = capsys.readouterr().err.splitlines()
    command = f"  lpips-lightning {recipe.name.replace('_', '-')} fit "
    assert said[-1].startswith(command) and said[-1].endswith(f" --ckpt_path {last(1, recipe.name)}")
    recipe.run("fit", *PLAIN, f"--ckpt_path={last(1, recipe.name)}")
    whole, parts = (torch.load(last(number, recipe.name), weights_only=True) for number in (0, 1))
    assert whole["global_step"] == parts["global_step"] == 4
    assert all(torch.equal(value, parts["state_dict"][name]) for name, value in whole["state_dict"].items())
    first, second = ((run_folder(number, recipe.name) / "metrics.csv").read_text() for number in (0, 1))
    assert first == second
    assert sorted(path.name for path in Path("outputs", recipe.name).iterdir()) == ["version_0", "version_1"]


def test_without_a_checkpoint_callback_an_interrupted_run_says_so(signal_at, capsys):
    signal_at(0)
    with pytest.raises(SystemExit):
        SUPERRESOLUTION.run("fit", "--without", "gallery", "checkpoint", "--trainer.enable_checkpointing=false")
    assert "Stopped without a checkpoint." in capsys.readouterr().err


def fit(folder, options):
    """A job: a long training in a folder, whose standard error goes into a file."""
    os.chdir(folder)
    with Path("stderr").open("w") as sys.stderr, Path(os.devnull).open("w") as sys.stdout:
        SUPERRESOLUTION.run("fit", *PLAIN, "--trainer.max_epochs=200000", *options)


def test_sigterm_stops_a_training_like_ctrl_c_and_ends_other_runs(signal_at, capsys):
    signal_at(0, number=signal.SIGTERM)
    with pytest.raises(SystemExit) as stopped:
        SUPERRESOLUTION.run("fit", *PLAIN)
    assert stopped.value.code == 143
    assert str(last(0)) in capsys.readouterr().err
    signal_at(0, "on_validation_start", signal.SIGTERM)
    with pytest.raises(SystemExit) as stopped:
        SUPERRESOLUTION.run("validate")
    assert stopped.value.code == 143
    assert not run_folder(1).exists()


def test_ctrl_c_ends_the_process_with_code_130_and_a_checkpoint(tmp_path):
    process = jobs.start(fit, tmp_path, ["--data.num_workers=1"])
    jobs.wait_until(lambda: last(0).exists() or process.exitcode is not None)
    os.kill(process.pid, signal.SIGINT)
    process.join(jobs.SECONDS)
    said = Path("stderr").read_text()
    assert process.exitcode == 130, said
    assert "Traceback" not in said and str(last(0)) in said
    assert torch.load(last(0), weights_only=True)["global_step"] > 0


def test_a_second_signal_ends_the_process_at_once(tmp_path):
    process = jobs.start(fit, tmp_path, ["--trainer.limit_val_batches=0", "--data.epoch_size=2000000"])
    log = run_folder(0) / "metrics.csv"
    jobs.wait_until(lambda: log.exists() or process.exitcode is not None)
    for number in (signal.SIGSTOP, signal.SIGTERM, signal.SIGINT, signal.SIGCONT):  # both are there when it goes on
        os.kill(process.pid, number)
    process.join(jobs.SECONDS)
    assert process.exitcode in (130, 143)
    assert not last(0).exists()


def best_of(number):
    state = torch.load(last(number), weights_only=True)["callbacks"]
    (found,) = [one for name, one in state.items() if name.startswith("ModelCheckpoint")]
    return found


def test_a_resumed_run_knows_the_best_of_the_run_that_it_continues(capsys):
    SUPERRESOLUTION.run("fit", *PLAIN)
    first = best_of(0)
    worse = ["--model.lr=10", "--trainer.max_epochs=3"]  # the fourth epoch of a run that diverges is not the best
    capsys.readouterr()
    SUPERRESOLUTION.run("fit", *PLAIN, *worse, f"--ckpt_path={last(0)}")
    second = best_of(0)
    assert second["best_model_path"] == first["best_model_path"] == str(run_folder(0) / "checkpoints" / "best.ckpt")
    assert float(second["best_model_score"]) <= float(first["best_model_score"])
    assert torch.load(last(0), weights_only=True)["global_step"] == 6
    assert {path.name for path in (run_folder(0) / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert [int(row["step"]) for row in rows(0) if row["val/lpips"]] == [1, 3, 5]
    assert {"config.yaml", "config_2.yaml"} <= {path.name for path in run_folder(0).iterdir()}
    assert f"{run_folder(0)}/checkpoints/best.ckpt" in capsys.readouterr().out


def test_options_of_the_command_line_win_over_those_in_the_checkpoint():
    SUPERRESOLUTION.run("fit", *PLAIN, "--trainer.max_epochs=1", "--model.warmup_steps=7")
    SUPERRESOLUTION.run("fit", *PLAIN, f"--ckpt_path={last(0)}", "--model.lr", "0.25")
    model = yaml.safe_load((run_folder(0) / "config_2.yaml").read_text())["model"]
    assert model["lr"] == torch.load(last(0), weights_only=True)["hyper_parameters"]["lr"] == 0.25
    if hasattr(LightningCLI, "_parse_ckpt_path"):
        assert model["warmup_steps"] == 7


def test_a_run_from_an_older_checkpoint_gets_a_folder_of_its_own(signal_at):
    SUPERRESOLUTION.run("fit", *PLAIN, "--trainer.max_epochs=1")
    shutil.copy(last(0), run_folder(0) / "checkpoints" / "older.ckpt")
    SUPERRESOLUTION.run("fit", *PLAIN, f"--ckpt_path={last(0)}")
    before = {path: path.read_bytes() for path in run_folder(0).rglob("*") if path.is_file()}
    SUPERRESOLUTION.run("fit", *PLAIN, f"--ckpt_path={run_folder(0)}/checkpoints/older.ckpt")
    assert {path: path.read_bytes() for path in run_folder(0).rglob("*") if path.is_file()} == before
    assert [int(row["step"]) for row in rows(1) if row["val/lpips"]] == [1, 3]  # the earlier epoch too


def test_a_moved_run_does_not_take_another_run_for_its_own():
    SUPERRESOLUTION.run("fit", *PLAIN, "--trainer.max_epochs=1")
    shutil.move("outputs", "moved")
    SUPERRESOLUTION.run("fit", *PLAIN, "--trainer.max_epochs=1", "--seed_everything=1")
    before = {path: path.read_bytes() for path in run_folder(0).rglob("*") if path.is_file()}
    SUPERRESOLUTION.run("fit", *PLAIN, f"--ckpt_path=moved/{last(0).relative_to('outputs')}", "--model.lr=10")
    assert {path: path.read_bytes() for path in run_folder(0).rglob("*") if path.is_file()} == before
    best = Path(best_of(1)["best_model_path"])
    assert best in (
        run_folder(1) / "checkpoints/best.ckpt",
        Path("moved/superresolution/version_0/checkpoints/best.ckpt"),
    )


def test_the_last_checkpoint_is_the_last_even_if_another_one_is_the_best():
    SUPERRESOLUTION.run("fit", *PLAIN, "--model.lr=10", "--trainer.max_epochs=4", "--model.warmup_steps=0")
    steps = {path.name: torch.load(path, weights_only=True)["global_step"] for path in last(0).parent.iterdir()}
    assert steps["last.ckpt"] == 8 and steps["best.ckpt"] < 8


def test_fit_says_scores_beside_the_baseline_files_and_the_next_commands(capsys):
    SUPERRESOLUTION.run("fit", "--data.num_workers=0", "--scores.clamp=true")
    said = capsys.readouterr().out
    table, files = said.split("Written:")
    assert "bicubic (before training)" in table and "lpips \u2193" in table and "psnr \u2191" in table
    for name in ("checkpoints/best.ckpt", "checkpoints/last.ckpt", "metrics.csv", "config.yaml", "val/gallery"):
        assert str(run_folder(0) / name) in files
    test, predict = [line for line in files.splitlines() if line.startswith("Next: ")]
    options = test.removeprefix("Next: lpips-lightning superresolution ").split(" --without")[0].split()
    assert options[:3] == ["test", "--ckpt_path", str(run_folder(0) / "checkpoints" / "best.ckpt")]
    assert "--data.folder=images" in options and "--scores.clamp=true" in options
    assert predict.endswith("best.ckpt --data.predict_folder FOLDER")


@pytest.mark.parametrize("subcommand", ["validate", "test"])
def test_evaluation_says_each_score_once_beside_the_baseline(subcommand, capsys):
    SUPERRESOLUTION.run("fit", *PLAIN, "--trainer.max_epochs=1")
    capsys.readouterr()
    SUPERRESOLUTION.run(subcommand, *PLAIN, f"--ckpt_path={last(0)}")
    said = capsys.readouterr().out
    name = "val/lpips" if subcommand == "validate" else "test/lpips"
    assert said.count(name) == 1
    assert "bicubic" in said and "last.ckpt" in said and "metric" not in said.replace("metrics.csv", "")
    SUPERRESOLUTION.run(subcommand, *PLAIN, f"--ckpt_path={last(0)}", "--verbose=false")
    assert "lpips" not in capsys.readouterr().out.replace("lpips-lightning", "")


def test_prediction_says_its_folder_and_makes_no_run_folder(capsys):
    SUPERRESOLUTION.run("predict")
    assert "Written: images in outputs/superresolved" in capsys.readouterr().out
    assert not Path("outputs/superresolution").exists()


def test_lightning_is_quiet_and_warnings_of_the_user_are_not(capsys):
    line = SUPERRESOLUTION.line("fit", *PLAIN, "--scores.net_type=embedded", backbones=())
    line = [word for word in line if "log_every" not in word and "summary" not in word]
    with pytest.warns(UserWarning, match="expected another network than that of the loss") as caught:
        SUPERRESOLUTION.main(line)
    assert len({str(one.message) for one in caught}) == 1
    said = capsys.readouterr()
    assert not said.err
    assert not {"FLOPs", "litlogger", "GPU available", "Tip"} & set(said.out.replace(":", " ").split())
    assert [row["train/loss"] != "" for row in rows(0)].count(True) == 4  # two steps an epoch, logged each


@pytest.mark.parametrize(("batches", "steps"), [(1, 1), (5, 1), (100, 10), (1000, 50), (float("inf"), 50)])
def test_ten_losses_are_logged_an_epoch_but_at_least_every_fifty_steps(batches, steps):
    assert logging_interval(batches) == steps


@pytest.mark.parametrize(
    ("before", "scores", "mode", "stalled"),
    [
        (0.917, [0.917, 0.917, 0.917], "max", True),
        (0.917, [0.9172, 0.9165, 0.918, 0.9166], "max", True),
        (0.6, [0.77, 0.771, 0.7705, 0.7708], "max", False),  # converged within the first epoch
        (0.295, [0.31, 0.30, 0.305], "min", True),
        (0.295, [0.29, 0.28, 0.27], "min", False),
        (0.295, [0.2948, 0.2946, 0.2944, 0.2942, 0.294], "min", False),  # slow, but steady
        (0.095, [0.0896, 0.0884, 0.0872, 0.0855, 0.071], "min", False),  # a jump, as when a loss is added
        (0.295, [float("nan")] * 3, "min", True),
    ],
)
def test_a_training_is_stalled_if_its_scores_are_no_better_than_before_beyond_their_noise(
    before, scores, mode, stalled
):
    assert is_stalled(before, scores, mode) is stalled


class _Trainer:
    """What `RunHistory` asks of a Trainer after a validation."""

    sanity_checking, is_global_zero, current_epoch, global_step = False, True, 0, 1
    log_every_n_steps, num_training_batches = 50, 3

    def __init__(self, score):
        self.callback_metrics = {"val/lpips": torch.tensor(score)}
        self.checkpoint_callbacks = [ModelCheckpoint(monitor="val/lpips", mode="min")]
        self.state = type("State", (), {"fn": "fit"})


@pytest.mark.parametrize(("minutes", "score", "times"), [(4, 0.3, 1), (0.1, 0.3, 0), (4, 0.1, 0)])
def test_a_training_that_does_not_learn_says_so_once_after_minutes(minutes, score, times, capsys):
    seconds = iter(range(0, 10**6, int(60 * minutes)))
    history = RunHistory("Try something.", clock=lambda: next(seconds))
    history.references, history.untrained = {"bicubic": {"lpips": 0.295}}, "bicubic"
    history.on_train_start(_Trainer(score), None)
    for _ in range(5):
        history.on_validation_end(_Trainer(score), None)
    said = capsys.readouterr().err
    assert said.count("Not learning so far: val/lpips is") == times
    assert not times or "0.295 before training. Training goes on. Try something." in said
    history.on_train_end(_Trainer(score), None)
    assert capsys.readouterr().err.count("Not learning so far") == (times == 0 and score == 0.3)


def test_the_table_has_the_first_epoch_where_nothing_is_known_before():
    history = RunHistory()
    history.validations = [
        Validation(epoch, epoch, {"lpips": score}) for epoch, score in ((1, 0.3), (2, 0.2), (3, 0.25))
    ]
    assert [label for label, _ in fit_rows(history, _Trainer(0.25))] == ["epoch 1", "epoch 3, last", "epoch 2, best"]


def test_options_are_taken_apart_as_typed():
    line = ["--data.folder", "a b", "--ckpt_path", "x", "--lr", "-1", "--without", "gallery", "images", "--data.size=3"]
    assert without_option(line, "--ckpt_path") == line[:2] + line[4:]
    assert options_with(line, "--data", "--without") == [*line[:2], *line[6:]]
