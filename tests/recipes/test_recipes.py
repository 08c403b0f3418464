"""Common behavior of all image recipes: YAML, command line, callbacks, wandb."""

from __future__ import annotations

import ast
import csv
import math
import os
import shutil
import sys
from pathlib import Path

import forked_python
import pytest
import torch
import yaml
from PIL import Image
from small_data import write_noise
from small_recipes import RECIPES

from lpips_lightning import recipes

FOLDER = Path(recipes.__file__).parent
SCORES = {"val/psnr", "val/ssim", "val/lpips"}


SLOW = pytest.mark.slow


pytestmark = [
    # 2026-11-21, pytorch_lightning/trainer/connectors/data_connector.py: right for large data, noise for five images.
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    # 2026-11-21, pytorch_lightning/callbacks/model_checkpoint.py: a second run has a folder of its own.
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
]
every_recipe = pytest.mark.parametrize("recipe", RECIPES, ids=[recipe.name for recipe in RECIPES])
# What the recipes share is tried with the first one; with all of them by ``-m ""``.
one_recipe = pytest.mark.parametrize(
    "recipe",
    [pytest.param(recipe, id=recipe.name, marks=[SLOW] * (recipe is not RECIPES[0])) for recipe in RECIPES],
)


@pytest.fixture(autouse=True)
def _images(tmp_path, monkeypatch):
    """Working folder with five noise images, one of them in a subfolder."""
    monkeypatch.chdir(tmp_path)
    write_noise("images")


@pytest.fixture(scope="module")
def fits(tmp_path_factory):
    """Folders of recipes that have been fitted, by name."""
    return {}


@pytest.fixture
def fitted(recipe, fits, tmp_path):
    """Log folder of a fit of two epochs, in the working folder."""
    if recipe.name not in fits:
        recipe.run("fit")
        fits[recipe.name] = shutil.copytree("outputs", tmp_path.with_name(f"{recipe.name}_fitted"))
    shutil.copytree(fits[recipe.name], "outputs", dirs_exist_ok=True)
    return Path("outputs", recipe.name, "version_0")


def numbers(folder="outputs"):
    """The last value of every column of all metrics.csv below the folder."""
    found = {}
    for file in sorted(Path(folder).rglob("metrics.csv")):
        for row in csv.DictReader(file.read_text().splitlines()):
            found |= {name: float(value) for name, value in row.items() if value}
    return found


def test_every_image_recipe_is_tested():
    found = {file.stem for file in FOLDER.glob("*.py") if "(ImageRecipeCLI)" in file.read_text()}
    assert found == {recipe.name for recipe in RECIPES}


@pytest.mark.parametrize(
    "name", sorted(file.stem for file in FOLDER.glob("*.yaml") if file.with_suffix(".py").exists())
)
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


@one_recipe
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
def test_callbacks_of_the_yaml_are_enabled(recipe, fitted):
    assert SCORES | {"loss/perceptual/weight", "train/loss"} <= set(numbers())
    assert {path.name for path in (fitted / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert list(fitted.rglob("val/gallery/worst_1_step_*.png"))


@one_recipe
def test_callbacks_can_be_disabled(recipe):
    own = {"class_path": "lpips_lightning.callbacks.PerceptualScores", "init_args": {"metrics": ["psnr"]}}
    own["init_args"] |= {"data_range": [0, 1], "prefix": "own_"}
    blocks = ["gallery", "scores", "schedule", "checkpoint"]
    recipe.run("fit", f"--trainer.callbacks={[own]}", "--scores.weights=nowhere", "--without", *blocks)
    assert {"train/loss", "val/own_psnr"} <= set(numbers())
    assert not set(numbers()) & {*SCORES, "loss/perceptual/weight"}
    assert not list(Path("outputs").rglob("*.png"))
    assert not list(Path().rglob("best.ckpt"))


@every_recipe
def test_the_pixel_loss_loads_no_backbone_and_has_no_schedule(recipe):
    recipe.run("fit", "--model.loss_weight=0", "--model.loss_net=vgg", "--model.loss_weights=null")
    assert set(numbers()) >= SCORES
    assert "loss/perceptual/weight" not in numbers()


@one_recipe
def test_scoring_with_the_network_of_the_loss_warns(recipe):
    options = ["--model.loss_net=embedded", "--scores.net_type=embedded", "--trainer.max_epochs=1"]
    with pytest.warns(UserWarning, match="net_type: expected another network than that of the loss 'perceptual'"):
        recipe.run("fit", *options, "--without", "gallery", backbones=())


@every_recipe
def test_a_checkpoint_is_plain_data_with_the_models_arguments(recipe, fitted):
    saved = torch.load(fitted / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["hyper_parameters"]["loss_net"] == "embedded"
    assert not [key for key in saved["state_dict"] if "perceptual" in key]


@every_recipe
def test_a_fit_resumes(recipe, fitted):
    before = numbers()
    last = fitted / "checkpoints" / "last.ckpt"
    shutil.move("outputs", "first")
    recipe.run("fit", f"--ckpt_path=first/{last.relative_to('outputs')}", "--trainer.max_epochs=3")
    assert numbers()["epoch"] == 2
    assert numbers()["step"] == before["step"] * 3 / 2 + 0.5  # counted from 0


@every_recipe
def test_mixed_precision_takes_steps(recipe):
    recipe.run("fit", "--trainer.precision=bf16-mixed", "--trainer.max_epochs=1", "--without", "gallery")
    assert math.isfinite(numbers()["train/loss"])
    assert set(numbers()) >= SCORES


@one_recipe
def test_deterministic_training_gives_equal_bits_twice(recipe, deterministic_ends):
    learned = []
    for folder in ("one", "two"):
        recipe.run("fit", "--trainer.deterministic=true", f"--trainer.logger.init_args.save_dir={folder}")
        assert torch.are_deterministic_algorithms_enabled()
        (saved,) = Path(folder).rglob("last.ckpt")
        learned.append(torch.load(saved, weights_only=True))
    states = [saved["state_dict"] for saved in learned]
    assert states[0]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert numbers("one") == numbers("two")


@every_recipe
def test_prediction_needs_no_backbone_and_writes_images(recipe, fitted):
    options = ["--images.out=made", "--trainer.logger=false", "--model.loss_net=vgg", "--scores.net_type=vgg"]
    recipe.run("predict", f"--ckpt_path={fitted}/checkpoints/best.ckpt", *options, backbones=())
    written = list(Path("made").rglob("*.png"))
    assert written
    with Image.open(written[0]) as image:
        assert image.mode == "RGB"


@every_recipe
def test_a_test_gives_scores(recipe):
    recipe.run("test")
    assert {name.replace("val", "test") for name in SCORES} <= set(numbers())


@one_recipe
def test_wandb_writes_a_folder_only_with_its_flag(recipe):
    before = "wandb" in sys.modules  # wandb 0.19 cannot be imported twice
    recipe.run("validate")
    assert set(numbers()) >= SCORES
    assert before or "wandb" not in sys.modules
    assert not Path("outputs", "wandb").exists()
    try:
        recipe.run("validate", "--wandb")
        assert list(Path("outputs", "wandb").glob("offline-run-*"))
    finally:
        sys.modules["wandb"].finish()  # else the next logger of this process would go on with this run


@pytest.mark.slow
@every_recipe
def test_two_processes_give_the_single_process_scores(recipe):
    judge = ["--scores.net_type=embedded", "--model.loss_net=embedded", "--without", "gallery", "schedule"]
    once = ["--trainer.max_epochs=1", "--trainer.logger.init_args.save_dir=two", *judge]
    two = ["--trainer.strategy=ddp", "--trainer.devices=2", *once]
    test = recipe.line("test", *two, "--ckpt_path=two/last.ckpt", backbones=())
    fit = recipe.line("fit", *two, "--checkpoint.dirpath=two", backbones=())
    # Without wandb's: an old one leaves the address of its server there, at which a new process waits when it ends.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    environment = {**inherited, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    script = Path(__file__).parents[1] / "_helpers" / "recipe_jobs.py"
    done = forked_python.run([script, recipe.name, *fit, "--then", *test], env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr[-2000:]

    for subcommand in ("validate", "test"):
        recipe.run(subcommand, "--ckpt_path=two/last.ckpt", *judge, backbones=())
    together = {name: value for name, value in numbers("two").items() if name.startswith(("val/", "test/"))}
    alone = {name: value for name, value in numbers().items() if name.startswith(("val/", "test/"))}
    assert set(alone) >= SCORES
    assert together == {name: pytest.approx(value, rel=1e-5) for name, value in alone.items()}


@one_recipe
def test_the_tradeoff_table_is_made(recipe):
    options = recipe.line("tradeoff", "--losses=untrained,embedded", "--judges=embedded", "--out=table", backbones=())
    recipe.main(options)
    with Path("table/tradeoff.csv").open() as file:
        untrained, embedded = csv.DictReader(file)
    assert untrained["lpips_embedded"] != embedded["lpips_embedded"]
    assert Path("table/tradeoff.png").exists()
