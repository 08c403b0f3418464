"""The command line: help, version, errors, weights."""

import re
import subprocess
import sys
import types
import warnings

import pytest
import torch

from lpips_lightning import __version__
from lpips_lightning.cli import commands as cli
from lpips_lightning.weights import BACKBONE_FILES, CALIBRATIONS, DISTS, EMBEDDED, WeightsError


@pytest.fixture
def command(monkeypatch):
    """command(function) puts `function` behind ``lpips-lightning trial``."""

    def install(function):
        module = types.ModuleType("trial_command")
        module.run = function
        monkeypatch.setitem(sys.modules, "trial_command", module)
        monkeypatch.setitem(cli.COMMANDS, "trial", cli.Command("a trial", "trial_command:run"))

    monkeypatch.delenv(cli.TRACEBACK_VARIABLE, raising=False)
    return install


@pytest.mark.parametrize("args", [[], ["-h"], ["--help"]])
def test_help_fits_on_one_screen_and_names_every_command(args, capsys):
    assert cli.main(args) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 24
    assert max(len(line.rstrip()) for line in lines) <= 80
    for name in cli.COMMANDS:
        # Recipes stand in two columns; the line of `demo` names one of them.
        others = [line for line in lines if name == "demo" or not line.startswith("  demo")]
        assert sum(bool(re.search(rf"  {name}[* ]", line)) for line in others) == 1


def test_version_is_the_packages(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"lpips_lightning {__version__}\n"


def test_unknown_command_is_two_and_one_sentence(capsys):
    assert cli.main(["wieghts"]) == 2
    assert capsys.readouterr().err == "lpips-lightning: expected a subcommand, got 'wieghts'; did you mean 'weights'?\n"
    assert cli.main(["xyz"]) == 2
    assert "lpips-lightning --help lists them" in capsys.readouterr().err


def test_every_command_is_there_to_be_called():
    for command in cli.COMMANDS.values():
        module, _, function = command.target.partition(":")
        assert callable(getattr(__import__(module, fromlist=[function]), function))
    assert len(cli.COMMANDS) >= 3


def test_command_gets_everything_after_its_name(command):
    seen = []
    command(seen.append)
    assert cli.main(["trial", "--help", "-x", "[bold]"]) == 0
    assert seen == [["--help", "-x", "[bold]"]]


@pytest.mark.parametrize("error", [ValueError, FileNotFoundError, ModuleNotFoundError, WeightsError])
def test_errors_that_explain_themselves_are_two_and_one_sentence(command, error, capsys, monkeypatch):
    def fail(args):
        raise error("scale: expected one of [2, 3], got [bold]5")

    command(fail)
    assert cli.main(["trial"]) == 2
    assert capsys.readouterr().err == "lpips-lightning: scale: expected one of [2, 3], got [bold]5\n"
    monkeypatch.setenv(cli.TRACEBACK_VARIABLE, "1")
    with pytest.raises(error, match="scale"):
        cli.main(["trial"])


def test_bugs_keep_their_traceback_and_interrupts_are_quiet(command, capsys):
    def bug(args):
        raise KeyError("bug")

    def interrupt(args):
        raise KeyboardInterrupt

    command(bug)
    with pytest.raises(KeyError, match="bug"):
        cli.main(["trial"])
    command(interrupt)
    assert cli.main(["trial"]) == 130
    assert capsys.readouterr().err == ""


def test_warnings_of_the_package_are_one_line_and_those_of_others_keep_their_place(command):
    said = []
    places = [("1 file left out", cli.__file__), ("of another", "elsewhere.py")]
    command(lambda args: said.extend(warnings.formatwarning(text, UserWarning, file, 7) for text, file in places))
    before = warnings.formatwarning
    assert cli.main(["trial"]) == 0
    assert said == ["lpips-lightning: note: 1 file left out\n", "elsewhere.py:7: UserWarning: of another\n"]
    assert warnings.formatwarning is before


def test_trainer_misconfiguration_is_two_and_one_sentence(command, capsys):
    from pytorch_lightning.utilities.exceptions import MisconfigurationException

    def fail(args):
        raise MisconfigurationException("trainer: expected a logger")

    command(fail)
    assert cli.main(["trial"]) == 2
    assert capsys.readouterr().err == "lpips-lightning: trainer: expected a logger\n"


def test_weights_list_names_every_record_and_what_is_missing(capsys):
    assert cli.main(["weights", "list"]) == 0
    said = capsys.readouterr().out
    for record in (*CALIBRATIONS.values(), DISTS):
        assert record.file in said
        assert record.sha256[:12] in said
        # The row's last word is what fingerprints show.
        assert re.search(rf"{record.file} +{record.sha256[:12]} +{record.calibration_sha256[:12]}\s", said)
    assert f"embedded: packaged (in fingerprints {EMBEDDED.backbone_sha256[:12]})" in said
    assert f"(in fingerprints {BACKBONE_FILES['alexnet'].convolutions_sha256[:12]})" in said
    assert (
        "alex: torchvision IMAGENET1K_V1, BSD-3-Clause: not on this machine; would be downloaded from https://" in said
    )
    assert "LPIPS_LIGHTNING_WEIGHTS, the folder searched first: not set" in said


def test_doctor_passes_intact_files_and_reports_missing_backbones(capsys):
    assert cli.main(["weights", "doctor"]) == 0
    said = capsys.readouterr().out
    assert said.count(": intact") == len(CALIBRATIONS) + 2  # DISTS, examples
    assert "embedded: LPIPS embedded v0.1" in said
    for record in (*CALIBRATIONS.values(), DISTS):
        hashes = f"sha256 of file {record.sha256[:12]}, tensors {record.calibration_sha256[:12]} (as in fingerprints)"
        assert f"{record.file}: intact, {hashes}" in said
    assert said.count("golden distances reproduced") == 2
    assert "vgg: its backbone is not on this machine" in said


def test_doctor_reports_damage_with_code_one(capsys, monkeypatch, tmp_path):
    (tmp_path / "alexnet.safetensors").write_bytes(b"damaged")
    monkeypatch.setenv("LPIPS_LIGHTNING_WEIGHTS", str(tmp_path))
    with pytest.raises(SystemExit) as exit_:
        cli.main(["weights", "doctor"])
    assert exit_.value.code == 1
    assert "alexnet.safetensors: expected a whole file of tensors" in capsys.readouterr().out


def test_doctor_finds_an_intact_file_of_wrong_weights(capsys, monkeypatch, tmp_path, backbones):
    torch.save(backbones["alex"], tmp_path / "alexnet.pth")
    monkeypatch.setenv("LPIPS_LIGHTNING_WEIGHTS", str(tmp_path))
    with pytest.raises(SystemExit) as exit_:
        cli.main(["weights", "doctor"])
    assert exit_.value.code == 1
    said = capsys.readouterr().out
    assert "alexnet.pth: expected torchvision's IMAGENET1K_V1, tensors of sha256 195266a4" in said
    assert "; to use other weights, pass weights=PATH" in said


def test_bad_input_of_recipes_is_code_two(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for args in (
        ["weights"],
        ["superresolution"],
        ["superresolution", "fit", "--model.scale=5"],
        ["demo", "--minutes=x"],
    ):
        with pytest.raises(SystemExit) as exit_:
            cli.main(args)
        assert exit_.value.code == 2
        assert capsys.readouterr().err
    assert cli.main(["demo", "--minutes=-1"]) == 2
    assert capsys.readouterr().err == "lpips-lightning: --minutes: expected more than 0, got -1.0\n"


@pytest.mark.parametrize("args", [["--help"], ["--version"], ["compare", "gone.png", "gone.png"], ["compere"]])
def test_help_and_mistakes_import_neither_torch_nor_recipes(args):
    code = f"import sys; from lpips_lightning.cli.commands import main; main({args}); print(list(sys.modules))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "'lpips_lightning.cli.commands'" in said
    assert "'torch'" not in said
    assert "pytorch_lightning" not in said
    assert "lpips_lightning.recipes" not in said
