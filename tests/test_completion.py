"""Shell completion: the scripts know every command, action and option, in the shells themselves; torch stays out."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from lpips_lightning import bapps_cli, cli, compare_cli, completion, correlate_cli, recipes
from lpips_lightning.backbones import BACKBONES
from lpips_lightning.bapps_make import Judge
from lpips_lightning.correlation import Score
from lpips_lightning.network import Precision
from lpips_lightning.opinions import COLUMNS

ACTIONS = ["fit", "validate", "test", "predict"]
WANTED = {  # words before the last, the last, as it stands: what is offered
    ("", "co"): ["compare", "colorization", "correlate", "completion"],
    ("", "--v"): ["--version"],
    ("weights", ""): ["list", "doctor", "fetch"],
    ("weights", "f"): ["fetch"],
    ("weights fetch", "--"): ["--help", "--to", "--net", "--mirror", "--from"],
    ("weights fetch --to", ""): [],
    ("compare", ""): [],
    ("compare", "--c"): ["--common", "--calibration", "--csv"],
    ("compare a.png", "--res"): ["--resize"],
    ("compare --csv", "--"): [],
    ("compare --precision", ""): ["fp32", "bf16", "fp16"],
    ("compare a b --net", "s"): ["squeeze"],
    ("superresolution", ""): [*ACTIONS, "tradeoff"],
    ("superresolution fit", "--c"): ["--config", "--ckpt_path"],
    ("superresolution fit --config", ""): [],
    ("distillation", "p"): ["predict"],
    ("calibration", ""): [*ACTIONS, "fast"],
    ("bapps", ""): ["evaluate", "make", "sheet"],
    ("bapps make --judge", "l"): ["l2"],
    ("bapps evaluate", "--jnd"): ["--jnd-sets"],
    ("correlate x.csv --score", ""): ["mos", "dmos"],
    ("completion", ""): ["bash", "zsh", "fish"],
    ("demo", ""): [],
}


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    """File of each shell's script."""
    folder = tmp_path_factory.mktemp("completion")
    files = {}
    for shell in ("bash", "zsh", "fish"):
        code = f"import sys; from lpips_lightning.cli import main; main(['completion', '{shell}'])"
        code += "; print('torch' in sys.modules, file=sys.stderr)"
        made = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
        assert made.stderr == b"False\n"
        files[shell] = folder / shell
        files[shell].write_bytes(made.stdout)
    return files


def shell(name, script):
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    options = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "check": True, "timeout": 900}
    return subprocess.run([found, "-c", script], **options).stdout.splitlines()


def test_bash_offers_what_may_follow(scripts):
    lines = [f"source '{scripts['bash']}'"]
    for before, last in WANTED:
        words = " ".join(f"'{word}'" for word in ["lpips-lightning", *before.split(), last])
        lines.append(f"COMP_WORDS=({words}); COMP_CWORD={len(before.split()) + 1}")
        lines.append('IFS=x _lpips_lightning; IFS=" "; echo "${COMPREPLY[*]}"')
    lines.append("complete -p lpips-lightning")
    *offered, installed = shell("bash", "\n".join(lines))
    assert [line.split() for line in offered] == list(WANTED.values())
    assert installed == "complete -o default -F _lpips_lightning lpips-lightning"


def test_zsh_offers_what_may_follow(scripts):
    lines = [
        "compdef() { true }",
        "compadd() { [[ $1 == -- ]] && shift; print -n -- ${(M)@:#$words[CURRENT]*}' ' }",
        "_describe() { compadd -- ${given%%:*} }",
        "_files() { true }",
        f"source '{scripts['zsh']}'",
    ]
    for before, last in WANTED:
        words = " ".join(f"'{word}'" for word in ["lpips-lightning", *before.split(), last])
        lines.append(f"words=({words}); CURRENT={len(before.split()) + 2}; _lpips_lightning; print")
    offered = shell("zsh", "\n".join(lines))
    assert [line.split() for line in offered] == list(WANTED.values())


def test_fish_offers_what_may_follow(scripts):
    lines = [f"source '{scripts['fish']}'"]
    for before, last in WANTED:
        lines.append(f"echo (complete -C 'lpips-lightning {before + ' ' if before else ''}{last}')")
    offered = shell("fish", "\n".join(lines))
    for line, wanted in zip(offered, WANTED.values(), strict=True):
        assert {word for word in wanted if not word.startswith("-")} <= set(line.split())
    assert "--resize" in offered[list(WANTED).index(("compare a.png", "--res"))]


def test_every_command_is_known_and_every_recipe_takes_lightnings_actions():
    found = completion.places()
    assert list(found[""].words) == list(cli.COMMANDS) and set(cli.COMMANDS) < set(found)
    fitting = [name for name, place in found.items() if "fit" in place.words]
    yamls = {path.stem.replace("_", "-") for path in Path(recipes.__file__).parent.glob("*.yaml")}
    assert {name.replace("_", "-") for name in fitting} == yamls & set(cli.COMMANDS) and len(fitting) >= 3


def test_every_long_option_of_every_parser_is_offered():
    found = completion.places()
    texts = {"compare": compare_cli.parser().format_help(), "correlate": correlate_cli.parser().format_help()}
    for name, text in texts.items():
        options = {word.strip(",[]") for word in text.split() if word.startswith("--") and word.strip(",[];:") == word}
        assert len(options) > 8
        assert options - {"--pairs"} <= set(found[name].options) | {"--help"}


def test_choices_that_are_said_twice_are_the_same():
    found = completion.places()
    assert found["compare"].choices["--net"] == list(BACKBONES)
    assert set(found["compare"].choices["--precision"]) == set(get_args(Precision)) - {"autocast"}
    assert found["correlate"].choices["--score"] == list(get_args(Score))
    assert correlate_cli.parser().get_default("columns") == ",".join(COLUMNS)
    assert found["bapps make"].choices["--judge"] == list(get_args(Judge))
    assert bapps_cli.parser().prog == "lpips-lightning bapps"


def test_an_unknown_shell_is_code_two(capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main(["completion", "tcsh"])
    assert exit_.value.code == 2 and "invalid choice: 'tcsh'" in capsys.readouterr().err
