"""What all recipes that make pictures have in common: YAML, command line, callbacks, wandb."""

from __future__ import annotations

import ast
import csv
import sys
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import yaml
from PIL import Image

from lpips_lightning import recipes

FOLDER = Path(recipes.__file__).parent
SCORES = {"val/psnr", "val/ssim", "val/lpips"}


class Recipe(NamedTuple):
    """A recipe in small: its options for two steps an epoch on the `pictures` below, two of which are held out."""

    name: str
    options: str

    def run(self, subcommand, *more, trunks=("--model.loss_weights=random", "--scores.weights=random")):
        """Call its command line with more options, on the CPU, quietly, with random trunks."""
        quiet = "--trainer.accelerator=cpu --trainer.enable_progress_bar=false --trainer.enable_model_summary=false"
        small = f"{self.options} --trainer.log_every_n_steps=1 --trainer.max_epochs=2".split()
        self.main([subcommand, *small, *quiet.split(), *trunks, *more])

    @property
    def main(self):
        return import_module(f"lpips_lightning.recipes.{self.name}").main


RECIPES = [
    Recipe(
        "superresolution",
        "--model.n_resblocks=1 --model.n_feats=4 --data.folder=pictures --data.held_out=[d,more/e]"
        " --data.patch_size=32 --data.val_patch_size=32 --data.epoch_size=4 --data.batch_size=2",
    ),
]

pytestmark = [
    # 2026-11-21, pytorch_lightning/trainer/connectors/data_connector.py: right for large data, noise for five pictures.
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    # 2026-11-21, pytorch_lightning/callbacks/model_checkpoint.py: a second run has a folder of its own.
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
]
every_recipe = pytest.mark.parametrize("recipe", RECIPES, ids=[recipe.name for recipe in RECIPES])


@pytest.fixture(autouse=True)
def _pictures(tmp_path, monkeypatch):
    """A folder to be in, with five pictures of noise, one of them in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    for name in ("a", "b", "c", "d", "more/e"):
        path = Path("pictures", f"{name}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (49, 70, 3), dtype=np.uint8)).save(path)


def metrics():
    """Columns of all metrics.csv below the folder."""
    files = list(Path("outputs").rglob("metrics.csv"))
    return {
        name for file in files for row in csv.DictReader(file.read_text().splitlines()) for name in row if row[name]
    }


def test_every_recipe_of_pictures_is_among_those_tested():
    found = {file.stem for file in FOLDER.glob("*.py") if "ImageRecipeCLI)" in file.read_text()}
    assert found == {recipe.name for recipe in RECIPES}


@pytest.mark.parametrize("name", sorted(file.stem for file in FOLDER.glob("*.yaml")))
def test_a_recipe_imports_no_other_one(name):
    others = {file.stem for file in FOLDER.glob("*.yaml")} - {name}
    imported = set()
    for file in (FOLDER / f"{name}.py", FOLDER / f"{name}_data.py"):
        for node in ast.walk(ast.parse(file.read_text())) if file.exists() else ():
            if isinstance(node, ast.ImportFrom):
                imported |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    assert "lpips_lightning.recipes.command" in imported
    assert not {f"lpips_lightning.recipes.{other}" for other in others} & imported
    assert not {f"lpips_lightning.recipes.{other}_data" for other in others} & imported


@every_recipe
def test_packaged_yaml_takes_one_step(recipe):
    recipe.run("fit", "--trainer.fast_dev_run=true")


@every_recipe
def test_printed_config_is_a_config(recipe, capsys):
    with pytest.raises(SystemExit):
        recipe.run("fit", "--print_config")
    printed = capsys.readouterr().out
    Path("config.yaml").write_text(printed)
    with pytest.raises(SystemExit):
        recipe.main(["fit", "--config", "config.yaml", "--print_config"])
    assert yaml.safe_load(capsys.readouterr().out) == yaml.safe_load(printed)
    recipe.main(["fit", "--config", "config.yaml", "--trainer.fast_dev_run=true"])


@every_recipe
def test_callbacks_of_the_yaml_are_on(recipe):
    recipe.run("fit")
    assert SCORES | {"loss/perceptual/weight", "train/loss"} <= metrics()
    (version,) = Path("outputs", recipe.name).iterdir()
    assert {path.name for path in (version / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert list(version.rglob("val/gallery/worst_1_step_*.png"))


@every_recipe
def test_callbacks_can_be_left_out(recipe):
    recipe.run("fit", "--without", "gallery", "scores", "schedule", "checkpoint", "--scores.weights=nowhere")
    assert "train/loss" in metrics()
    assert not metrics() & {*SCORES, "loss/perceptual/weight"}
    assert not list(Path("outputs").rglob("*.png"))
    assert not list(Path().rglob("best.ckpt"))


@every_recipe
def test_pixels_alone_look_for_no_trunk_and_have_no_schedule(recipe):
    recipe.run("fit", "--model.loss_weight=0", "--model.loss_net=vgg", "--model.loss_weights=null")
    assert metrics() >= SCORES
    assert "loss/perceptual/weight" not in metrics()


@every_recipe
def test_judging_by_the_network_of_the_loss_is_warned_about(recipe):
    options = ["--model.loss_net=embedded", "--scores.net_type=embedded", "--trainer.max_epochs=1"]
    with pytest.warns(UserWarning, match="net_type: expected another network than that of the loss 'perceptual'"):
        recipe.run("fit", *options, "--without", "gallery", trunks=())


@every_recipe
def test_prediction_needs_no_trunk_and_writes_pictures(recipe):
    recipe.run("fit")
    (checkpoint,) = Path("outputs").rglob("best.ckpt")
    options = ["--pictures.folder=made", "--trainer.logger=false", "--model.loss_net=vgg", "--scores.net_type=vgg"]
    recipe.run("predict", f"--ckpt_path={checkpoint}", *options, trunks=())
    written = list(Path("made").rglob("*.png"))
    assert written
    with Image.open(written[0]) as picture:
        assert picture.mode == "RGB"


@every_recipe
@pytest.mark.parametrize("subcommand", ["validate", "test"])
def test_scores_without_a_fit(recipe, subcommand, capsys):
    recipe.run(subcommand)
    said = capsys.readouterr().out
    assert {name.replace("val", subcommand.removesuffix("idate")) for name in SCORES} <= set(said.split())


@every_recipe
def test_wandb_writes_a_folder_and_only_when_asked(recipe, monkeypatch):
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    recipe.run("validate")
    assert "wandb" not in sys.modules
    assert not Path("outputs", "wandb").exists()
    recipe.run("validate", "--wandb")
    assert list(Path("outputs", "wandb").glob("offline-run-*"))
