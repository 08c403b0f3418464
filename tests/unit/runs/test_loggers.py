"""The options --wandb, --logger and --log-dir: what is logged is read back; mistakes are refused before a run."""

import argparse
import csv
import logging
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from pytorch_lightning.loggers import CSVLogger

from lpips_lightning.cli.commands import main
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


def test_correlate_logs_the_numbers_of_its_table(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    lines = ["reference,distorted,score,kind"]
    for number in range(12):
        for kind in ("ref", "bad"):
            image = generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(image).save(f"{kind}{number}.png")
        lines.append(f"ref{number}.png,bad{number}.png,{number},{'xy'[number % 2]}")
    Path("mos.csv").write_text("\n".join(lines))
    main(["correlate", "mos.csv", "--net", "embedded", "--also", "l2", "--group", "kind", "--logger", "csv"])
    said = capsys.readouterr().out
    folder = Path("outputs/correlate/version_0")
    (found,) = rows(folder)
    config = yaml.safe_load((folder / "hparams.yaml").read_text())
    assert config["fingerprint"] in said and (config["net"], config["group"]) == ("embedded", "kind")
    assert not {"logger", "devices", "workers"} & set(config)
    places = ("lpips", "l2", "group/x", "group/y", "mean_over_groups/lpips", "mean_over_groups/l2")
    assert set(found) == {"step", *(f"correlate/{one}/{kind}" for one in places for kind in ("srcc", "plcc", "krcc"))}
    (line,) = [line for line in said.splitlines() if "all together" in line and "l2" not in line]
    assert f"{found['correlate/lpips/srcc']:.4f}" in line


def test_evaluate_logs_the_scores_of_its_table(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("mine.csv").write_text("path,d0,d1,judge\n" + "".join(f"noise/ref/{n}.png,{n},3,{n % 2}\n" for n in range(6)))
    main(["bapps", "evaluate", "--distances", "mine=mine.csv", "--logger", "csv", "--resamples", "10"])
    (found,) = rows(Path("outputs/bapps/version_0"))
    with Path("outputs/evaluation/scores.csv").open(newline="") as text:
        scores = list(csv.DictReader(text))
    assert len(scores) == len(found) - 1 >= 1
    logged = sorted(value for name, value in found.items() if name != "step")
    assert logged == pytest.approx(sorted(float(one["value"]) for one in scores), abs=1e-4)
    assert all(name == "step" or name.startswith("bapps/2afc/") for name in found)
    assert "Logged to outputs/bapps/version_0" in capsys.readouterr().out
    config = yaml.safe_load(Path("outputs/bapps/version_0/hparams.yaml").read_text())
    assert config["distances"] == ["mine=mine.csv"] and "run" not in config
