"""Options of the recipes: help without long imports, in full, and mistakes as one line with the nearest right word."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest

from lpips_lightning.cli.commands import COMMANDS, main
from lpips_lightning.recipes import command
from lpips_lightning.recipes.help_pages import RECIPES, recipe_groups
from lpips_lightning.recipes.parser import options_of


class GrabbedError(Exception):
    """Carries a parser out of the CLI."""


def real_options(name, action, monkeypatch):
    """Options of the parser that LightningCLI builds."""

    def grab(self, parser, args):
        raise GrabbedError(self._subcommand_parsers[action])

    recipe = import_module(f"lpips_lightning.recipes.{name.replace('-', '_')}")
    monkeypatch.setattr(command.RecipeCLI, "parse_arguments", grab)
    with pytest.raises(GrabbedError) as grabbed:
        recipe.main([action])
    return {option for option in options_of(grabbed.value.args[0]) if not option.endswith("+")}


@pytest.mark.parametrize("action", ["fit", "predict"])
@pytest.mark.parametrize("name", RECIPES)
def test_the_options_of_the_help_are_those_of_the_parser(name, action, monkeypatch):
    recipe = RECIPES[name]
    shown = {group.option(option) for group in recipe_groups(recipe, action) for option in group.options}
    real = real_options(name, action, monkeypatch)
    real -= {"--help", "--print_config", *(f"--{group}" for group in [*recipe.groups, "trainer"])}
    real -= {f"--{option}" for option in recipe.linked}
    if name == "calibration":  # those of the data module that is chosen
        shown = {option for option in shown if not option.startswith("--data.")}
        real = {option for option in real if not option.startswith("--data.")}
    assert shown == real


@pytest.mark.parametrize("name", RECIPES)
def test_help_shows_the_recipes_own_options_first(name, capsys):
    with pytest.raises(SystemExit) as ended:
        main([name, "fit", "--help"])
    assert ended.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    groups = [line.partition(" ")[0].rstrip(":") for line in lines if line and not line.startswith(" ")]
    assert groups.index("model") < groups.index("data") < groups.index("trainer")
    assert lines.index(next(line for line in lines if "--model." in line)) < 8
    assert len(lines) < 140
    assert "More: --help=NAME" in lines[-1] and "trainer" in lines[-1]


def test_help_of_a_recipe_imports_no_torch():
    code = (
        "import sys\nfrom lpips_lightning.cli.commands import main\n"
        "try:\n    main(['superresolution', 'fit', '--help'])\nexcept SystemExit:\n    pass\n"
        "print(sorted({'torch', 'pytorch_lightning', 'jsonargparse'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "[]"


MISTAKES = {
    "superresolution fit --model.scal 2": "got --model.scal; did you mean --model.scale?",
    "superresolution fit --modl.scale 2": "got --modl.scale; did you mean --model.scale?",
    "superresolution fit --model.scale 5": "--model.scale: expected one of 2, 3, 4, got '5'",
    "superresolution fit --trainer.max_epoch 3": "did you mean --trainer.max_epochs?",
    "superresolution fit --trainer.max_epochs x": "--trainer.max_epochs: expected an integer or null, got 'x'",
    "superresolution fit --model nofile.yaml": "--model: expected a YAML file, got 'nofile.yaml'\n",
    "superresolution fit --scores.net_type.class_path a.B": "--scores.net_type.class_path: expected text or a Backbone",
    "superresolution fit --scores.data_range null": "--scores.data_range: expected a value, got none\n",
    "superresolution fit --data.foldr x": "got --data.foldr; did you mean --data.folder?",
    "superresolution fit --without galery": "got 'galery'; did you mean gallery?",
    "superresolution fitt": "superresolution: expected one of fit, validate, test, predict, tradeoff, got 'fitt'; did",
    "superresolution fit --help=trainr": "got 'trainr'; did you mean trainer?",
    "superresolution tradeoff --loses alex": "got --loses; did you mean --losses?",
    "colorization predict --image.out x": "did you mean --images.out?",
    "frame-interpolation fit --data.layot vimeo": "did you mean --data.layout?",
    "autoencoder fit --model.latnt vq": "did you mean --model.latent?",
    "distillation fit --data.folders x": "did you mean --data.folder?",
    "split-brain fit --data.zom 3": "did you mean --data.zoom?",
    "puzzle fit --model.tiles 64": "did you mean --model.tile?",
    "bigan fit --data.folders x": "did you mean --data.folder?",
    "cnn-distortions fit --model.network 8": "did you mean --model.networks?",
    "bapps make --folder x --out y --family gan": "expected one of traditional, cnn, both, got 'gan'",
    "calibration fast --cvs a.csv": "got --cvs; did you mean --csv?",
    "demo --minute 1": "got --minute; did you mean --minutes?",
    "compare a.png b.png --mpa x": "did you mean --map?",
    "compare a.png b.png --net alx": "got 'alx'; did you mean alex?",
    "bapps mak": "got 'mak'; did you mean make?",
    "kmeans --folder x --out k.safetensors --crop 3": "did you mean --crops?",
    "kmeans --foldr x --out k.safetensors": "got --foldr; did you mean --folder?",
    "bapps make --folder x --ot=y": "got --ot; did you mean --out?",
    "weights fetch --too x": "got --too; did you mean --to?",
    "weights fetch": "expected --to, got none",
    "weights lst": "got 'lst'; did you mean list?",
}


@pytest.mark.parametrize("typed", MISTAKES)
def test_a_mistake_is_one_line_with_the_nearest_right_word(typed, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(typed.split())
    assert ended.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert MISTAKES[typed] in captured.err
    assert not list(tmp_path.iterdir())


def test_yaml_keys_are_checked_as_options_are(tmp_path, capsys):
    file = tmp_path / "mine.yaml"
    file.write_text("model: {scal: 2}\n")
    with pytest.raises(SystemExit) as ended:
        main(["superresolution", "fit", "--config", str(file)])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "model.scal" in said and "did you mean --model.scale?" in said


def parsers_of(parser):
    """The parser, and those of its subcommands."""
    yield parser
    for action in parser._actions:
        for inner in action.choices.values() if isinstance(action.choices, dict) else ():
            yield from parsers_of(inner)


@pytest.mark.parametrize("name", [name for name, known in COMMANDS.items() if known.parser])
def test_commands_refuse_abbreviations(name):
    module, _, function = COMMANDS[name].parser.partition(":")
    assert not [parser.prog for parser in parsers_of(getattr(import_module(module), function)()) if parser.allow_abbrev]
