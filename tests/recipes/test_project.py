"""``lpips-lightning new``: copies of recipes run by themselves and train as the originals do."""

from __future__ import annotations

import ast
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lpips_lightning import __version__
from lpips_lightning.cli import new
from lpips_lightning.cli.commands import COMMANDS
from lpips_lightning.cli.commands import main as run
from lpips_lightning.recipes.project import copyable_recipes, own_modules
from tests._helpers.small_data import write_noise
from tests._helpers.small_recipes import RECIPES

ROOT = Path(__file__).parents[2]
WITHOUT_MODEL = {"calibration"}
DEFAULT = ("superresolution", "deblurring")  # few and many modules; all recipes by ``-m ""``
TRAINED = [pytest.param(one, id=one.name, marks=[] if one.name in DEFAULT else [pytest.mark.slow]) for one in RECIPES]


@pytest.fixture(autouse=True)
def _work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def imported(monkeypatch):
    """imported(folder, name): a module of a project; its neighbors are forgotten afterwards."""
    before = set(sys.modules)

    def load(folder, name):
        monkeypatch.syspath_prepend(str(Path(folder).resolve()))
        spec = importlib.util.spec_from_file_location(name, Path(folder) / f"{name}.py")
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    yield load
    for name in set(sys.modules) - before:
        if "." not in name and getattr(sys.modules[name], "__file__", None):
            del sys.modules[name]


def stem(recipe):
    return recipe.replace("-", "_")


def test_every_recipe_with_a_model_of_its_own_can_be_copied():
    fitting = {name for name, command in COMMANDS.items() if "fit" in command.actions}
    assert set(copyable_recipes()) == fitting - WITHOUT_MODEL and len(fitting) >= 9


@pytest.mark.parametrize("recipe", copyable_recipes())
def test_copies_are_complete_and_import_each_other(recipe, capsys):
    assert run(["new", recipe, "mine"]) == 0
    modules = own_modules(recipe)
    assert modules[0] == stem(recipe) and len(modules) == len(set(modules))
    for module in modules:
        tree = ast.parse(Path(f"mine/{module}.py").read_text())
        names = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        assert not {f"lpips_lightning.recipes.{own}" for own in modules} & set(names)
        original = (ROOT / f"recipes/{module}.py").read_text()
        imports = original.count("from lpips_lightning.recipes.")
        assert sum(name.startswith("lpips_lightning.recipes.") or name in modules for name in names) == imports
        assert f"lpips-lightning {recipe} " not in Path(f"mine/{module}.py").read_text()
        assert f"recipes/{stem(recipe)}." not in Path(f"mine/{module}.py").read_text()
    said = capsys.readouterr().out
    assert said.endswith(f"Next:\n  cd mine\n  python {stem(recipe)}.py fit\n")
    for path in Path("mine").iterdir():
        assert path.name in said and path.stat().st_size
    readme = Path("mine/README.md").read_text()
    assert f"python {stem(recipe)}.py fit " in readme and "{" not in readme
    assert readme.count("| defaults of the options") == 1
    for yaml in {path.name for path in Path("mine").glob("*.yaml")} - {f"{stem(recipe)}.yaml"}:
        assert f"| {yaml} | other values: `python {stem(recipe)}.py fit --config {yaml}` |" in readme
    assert f"lpips-lightning {recipe} " not in Path(f"mine/{stem(recipe)}.yaml").read_text()
    assert Path("mine/LICENSE").read_text() == (ROOT / "LICENSE").read_text()
    assert f"lpips_lightning[recipes]>={__version__}\n" in Path("mine/requirements.txt").read_text()


def test_what_three_recipes_share_stays_in_the_package():
    own = {recipe: own_modules(recipe) for recipe in copyable_recipes()}
    assert own["superresolution"] == ["superresolution", "superresolution_data", "realistic_degradation"]
    assert {"interpolation_network", "frame_triplets", "synthetic_motion"} <= set(own["frame-interpolation"])
    assert own["puzzle"] == ["puzzle"]
    copied = {module for modules in own.values() for module in modules}
    assert not copied & {"command", "held_out", "photographs", "optimization", "split_data_module", "self_supervised"}


@pytest.mark.parametrize("recipe", TRAINED)
def test_copies_train_to_the_same_weights(recipe, imported, capsys):
    assert run(["new", recipe.name.replace("_", "-"), "mine"]) == 0
    write_noise("images")
    more = ["--trainer.max_epochs=1", "--checkpoint.monitor=null", "--without", "scores", "gallery", "baseline"]
    states = []
    for main in (recipe.main, imported("mine", recipe.name).main):
        main(recipe.line("fit", *more))
        *_, path = sorted(Path("outputs").rglob("last.ckpt"))
        checkpoint = torch.load(path, weights_only=True)
        states.append({name: one for name, one in checkpoint["state_dict"].items() if isinstance(one, torch.Tensor)})
    assert len([*Path("outputs").rglob("last.ckpt")]) == 2
    assert checkpoint["global_step"] == 2
    assert states[0] and states[0].keys() == states[1].keys()
    assert all(torch.equal(one, states[1][name]) for name, one in states[0].items())
    said = capsys.readouterr().out
    assert f"Next: lpips-lightning {recipe.name.replace('_', '-')} test" in said
    assert f"Next: python {recipe.name}.py test" in said


@pytest.mark.slow
@pytest.mark.parametrize("recipe", copyable_recipes())
def test_the_projects_own_test_passes(recipe):
    assert run(["new", recipe, "mine"]) == 0
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q"], cwd="mine", env=environment, capture_output=True, text=True
    )
    assert "1 passed" in done.stdout, done.stdout


def test_the_test_of_a_project_runs_a_training(imported, monkeypatch, tmp_path):
    assert run(["new", "superresolution", "mine"]) == 0
    test = imported("mine", "test_superresolution")
    monkeypatch.setattr(test, "OPTIONS", f"{test.OPTIONS.strip()}\n--model.n_feats=4\n--data.val_crop_size=32\n")
    test.test_training_ends_with_finite_weights(tmp_path, monkeypatch)
    monkeypatch.setattr(test.superresolution, "main", lambda args: None)
    (tmp_path / "other").mkdir()
    with pytest.raises(ValueError, match="not enough values"):  # no checkpoint
        test.test_training_ends_with_finite_weights(tmp_path / "other", monkeypatch)


def test_files_in_the_way_are_named_and_stay(capsys):
    Path("mine").mkdir()
    Path("mine/superresolution.yaml").write_text("old")
    assert run(["new", "superresolution", "mine"]) == 2
    assert "DIR: mine/superresolution.yaml exists; --force replaces it" in capsys.readouterr().err
    assert [path.read_text() for path in Path("mine").iterdir()] == ["old"]
    Path("mine/superresolution.yaml").rename("mine/notes.txt")
    assert run(["new", "superresolution", "mine"]) == 2
    assert "expected a new or empty folder, got 'mine', which has notes.txt; --force" in capsys.readouterr().err
    assert run(["new", "superresolution", "mine", "--force"]) == 0
    assert Path("mine/notes.txt").read_text() == "old" and Path("mine/superresolution.py").is_file()
    Path("mine/LICENSE").write_text("changed")
    assert run(["new", "superresolution", "mine", "--force"]) == 0
    assert Path("mine/LICENSE").read_text() != "changed"
    Path("mine/LICENSE").unlink()
    Path("mine/LICENSE").mkdir()
    assert run(["new", "superresolution", "mine", "--force"]) == 2
    assert "expected to write mine/LICENSE, got a folder of that name" in capsys.readouterr().err
    Path("file").write_text("old")
    assert run(["new", "superresolution", "file"]) == 2
    assert "DIR: expected a folder to write, got 'file', which is a file" in capsys.readouterr().err


def test_empty_and_current_folders_are_filled(monkeypatch):
    Path("mine").mkdir()
    monkeypatch.chdir("mine")
    assert run(["new", "bigan", "."]) == 0
    assert Path("bigan.py").is_file() and not [path for path in Path().iterdir() if path.name.startswith(".new")]


@pytest.mark.parametrize("exists", [True, False])
def test_an_interrupted_copy_leaves_nothing(exists, monkeypatch):
    if exists:
        Path("mine").mkdir()
    write, written = Path.write_text, []

    def interrupted(path, *args, **options):
        written.append(path)
        if len(written) == 3:
            raise KeyboardInterrupt
        return write(path, *args, **options)

    monkeypatch.setattr(Path, "write_text", interrupted)
    assert run(["new", "bigan", "mine"]) == 130
    assert len(written) == 3 and [*Path().rglob("*")] == [Path("mine")] * exists


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["superresolutoin", "mine"], "got 'superresolutoin'; did you mean superresolution?"),
        (["calibration", "mine"], "got 'calibration', whose model and data are in the library"),
        (["demo", "mine"], "got 'demo', which trains superresolution"),
        (["puzzle"], "expected DIR, got none"),
    ],
)
def test_other_names_are_refused_with_the_right_ones(args, said, capsys):
    with pytest.raises(SystemExit) as exit_:
        run(["new", *args])
    assert exit_.value.code == 2 and said in capsys.readouterr().err
    assert not [*Path().iterdir()]


def test_the_copy_is_made_without_torch():
    code = "import sys; from lpips_lightning.cli.commands import main; main(['new', 'puzzle', 'mine'])"
    code += "; print('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.endswith("False\n") and new.parser().prog == "lpips-lightning new"
