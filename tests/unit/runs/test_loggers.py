"""The options --wandb, --logger and --log-dir: what is logged is read back; mistakes are refused before a run."""

import argparse
import csv
import logging
from pathlib import Path

import pytest
import yaml
from pytorch_lightning.loggers import CSVLogger

from lpips_lightning.cli.loggers import LOGGER_OPTIONS, add_logger_options, check_loggers, log_scores
from lpips_lightning.runs import loggers

SCORES = {"compare/lpips_mean": 0.1, "compare/pairs": 7.0}
CONFIG = {"net": "alex", "fingerprint": "LPIPS alex v0.1", "sets": ["a", "b"], "weights": None}


def options(*args):
    parser = argparse.ArgumentParser()
    add_logger_options(parser.add_argument_group("loggers"))
    found = parser.parse_args(list(args))
    assert set(vars(found)) == set(LOGGER_OPTIONS)
    return found


def rows(folder):
    with (folder / "metrics.csv").open(newline="") as text:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(text)]


def test_scores_and_config_are_in_the_files_of_csv_and_tensorboard(tmp_path, monkeypatch, capsys):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.chdir(tmp_path)
    chosen = options("--logger", "tensorboard", "--logger", "csv", "--logger", "csv")
    check_loggers(chosen)
    assert not Path("outputs").exists()  # until there is something to log
    log_scores(chosen, SCORES, CONFIG, "compare")
    log_scores(chosen, {"compare/pairs": 8.0}, CONFIG, "compare")
    assert capsys.readouterr().out == "Logged to outputs/compare/version_0\nLogged to outputs/compare/version_1\n"
    first, second = Path("outputs/compare/version_0"), Path("outputs/compare/version_1")
    assert rows(first) == [{"step": 0, **SCORES}]
    assert rows(second) == [{"step": 0, "compare/pairs": 8}]
    assert yaml.safe_load((first / "hparams.yaml").read_text())["fingerprint"] == "LPIPS alex v0.1"
    events = EventAccumulator(str(first)).Reload()
    read = {name: events.Scalars(name)[-1].value for name in events.Tags()["scalars"]}
    assert {name: read[name] for name in SCORES} == pytest.approx(SCORES)


def test_wandb_logs_offline_and_one_run_after_the_other(tmp_path, monkeypatch, capsys):
    made = []

    class Fake(CSVLogger):
        """In place of wandb, which starts a process."""

        def __init__(self, **given):
            made.append(given)
            super().__init__(given["save_dir"], "wandb")

    monkeypatch.setattr("pytorch_lightning.loggers.WandbLogger", Fake)
    log_scores(options("--wandb", "--log-dir", str(tmp_path / "a/b")), SCORES, CONFIG, "compare")
    assert [made[0][name] for name in ("project", "offline", "mode")] == ["compare", True, "offline"]
    assert rows(tmp_path / "a/b/wandb/version_0") == [{"step": 0, **SCORES}]
    assert str(tmp_path / "a/b/wandb/version_0") in capsys.readouterr().out.replace("\n", "")


def test_without_options_nothing_is_logged_or_imported(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loggers, "log_run", None)
    check_loggers(options())
    log_scores(options(), SCORES, CONFIG, "compare")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("args", "missing", "message"),
    [
        (["--logger", "tensorboard"], "tensorboard", r"logger: .* pip install tensorboard, or --logger csv"),
        (["--wandb"], "wandb", r"wandb: expected the package wandb, .* or --logger csv"),
    ],
)
def test_a_missing_package_is_named_before_the_run(args, missing, message, monkeypatch):
    monkeypatch.setattr(loggers, "find_spec", lambda name: None if name.startswith(missing) else True)
    with pytest.raises(ModuleNotFoundError, match=message):
        check_loggers(options(*args))
    check_loggers(options("--logger", "csv"))


def test_what_cannot_work_is_refused_before_the_run(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="log-dir: expected a folder that can be written to, got '.*file/below'"):
        check_loggers(options("--logger", "csv", "--log-dir", str(tmp_path / "file/below")))
    with pytest.raises(ValueError, match="log-dir: expected --logger or --wandb with it, got 'x' alone"):
        check_loggers(options("--log-dir", "x"))
    monkeypatch.setattr(loggers, "_has_account", lambda: False)
    with pytest.raises(ValueError, match="wandb: expected an account for online, got none; run `wandb login` first"):
        check_loggers(options("--wandb", "online"))
    check_loggers(options("--wandb"))


def test_a_logger_that_fails_is_a_warning_and_the_others_log(tmp_path, monkeypatch, caplog, capsys):
    def fail(*args):
        raise OSError("the disk is full")

    monkeypatch.setattr(loggers, "TensorBoardLogger", fail)
    chosen = options("--logger", "tensorboard", "--logger", "csv", "--log-dir", str(tmp_path))
    with caplog.at_level(logging.WARNING, "lpips_lightning"):
        log_scores(chosen, SCORES, CONFIG, "compare")
    assert caplog.messages == ["tensorboard: expected to log the scores, got OSError: the disk is full"]
    assert rows(tmp_path / "compare/version_0") == [{"step": 0, **SCORES}]
