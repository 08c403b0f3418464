"""The recipes of self-supervised backbones: what each task asks, learning, the file, the life of a run."""

from __future__ import annotations

import signal
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from pytorch_lightning import Trainer
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from safetensors.torch import load_file
from small_data import write_noise

from lpips_lightning import LPIPS
from lpips_lightning.io.tensor_files import read_record
from lpips_lightning.recipes import interruption
from lpips_lightning.recipes.bigan import BiGAN
from lpips_lightning.recipes.puzzle import Puzzle, distant_permutations, normalized, tiles_of
from lpips_lightning.recipes.self_supervised import (
    BackboneFile,
    Crops,
    PhotographCrops,
    new_alexnet,
    start_from_kmeans,
)
from lpips_lightning.recipes.split_brain import SplitBrain, ab_class, lightness_class

TINY = (
    "--model.start=random --data.folder=images --data.held_out=[c,d] --data.batch_size=4 --data.epoch_size=12"
    " --data.val_size=4"
)
RECIPES = {
    "split_brain": f"{TINY} --data.crop_size=67 --model.width=0.05 --model.warmup_steps=2",
    "puzzle": f"{TINY} --data.crop_size=120 --model.tile=38 --model.width=0.05 --model.hidden=8",
    "bigan": f"{TINY} --model.width=0.05 --model.code=4 --model.channels=2",
}
MODELS = {"split_brain": SplitBrain, "puzzle": Puzzle, "bigan": BiGAN}
every_recipe = pytest.mark.parametrize("name", RECIPES)
pytestmark = [
    # 2026-11-28, pytorch_lightning/trainer/connectors/data_connector.py: noise for a few images.
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    # 2026-11-28, pytorch_lightning/callbacks/model_checkpoint.py: the folder of a resumed run.
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]


@pytest.fixture(autouse=True)
def _images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_noise("images", ("a", "b", "c", "d"), 121, 130)


def run(name, *more, subcommand="fit"):
    quiet = "--trainer.accelerator=cpu --trainer.enable_progress_bar=false --trainer.max_epochs=2"
    line = [subcommand, *RECIPES[name].split(), *quiet.split(), *more]
    return import_module(f"lpips_lightning.recipes.{name}").main(line)


def folder(name, number=0):
    return Path("outputs", name, f"version_{number}")


def images(count=2, side=64, seed=0):
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def small(name, **options):
    torch.manual_seed(0)
    own = {"split_brain": {}, "puzzle": {"hidden": 8, "tile": 38}, "bigan": {"code": 4, "channels": 2}}[name]
    return MODELS[name](width=0.05, **own, **options)


@every_recipe
def test_a_run_writes_a_backbone_that_lpips_takes(name, capsys):
    run(name)
    file = folder(name) / "backbone.safetensors"
    said = capsys.readouterr().out
    assert f"{file}  " in said and "the backbone" in said and f"Next: LPIPS(weights='{file}') in Python" in said
    assert "before training" in said
    record = read_record(file)
    assert record["mode"] == name.replace("_", "-") and record["steps"] == 6
    assert record["data"] == ["a", "b"] and record["held_out"] == ["c", "d"]
    assert (
        set(record["scores"])
        == {
            "split_brain": {"val/ab_error", "val/lightness_error"},
            "puzzle": {"val/accuracy", "val/loss"},
            "bigan": {"val/image_error", "val/code_error"},
        }[name]
    )
    trained = MODELS[name].load_from_checkpoint(folder(name) / "checkpoints" / "last.ckpt", weights_only=True)
    x, y = images(2, 67), images(2, 67, seed=1)
    expected = torch.zeros(2)
    with torch.no_grad():
        one, two = (trained.eval().backbone.encode(batch) for batch in (x, y))
    for layer in one:
        first, second = (torch.nn.functional.normalize(features[layer]) for features in (one, two))
        expected += (first - second).square().sum(1).mean((1, 2))
    torch.testing.assert_close(LPIPS(weights=file)(x, y, data_range=(0, 1)), expected, rtol=1e-4, atol=1e-5)


@every_recipe
def test_an_interrupted_run_resumes_to_the_same_file(name, monkeypatch):
    run(name)
    original, signals = interruption.Interruption.on_train_batch_start, [signal.SIGTERM]

    def stop(self, trainer, *args):
        original(self, trainer, *args)
        if trainer.global_step == 1 and signals:
            signal.raise_signal(signals.pop())

    monkeypatch.setattr(interruption.Interruption, "on_train_batch_start", stop)
    with pytest.raises(SystemExit):
        run(name)
    assert not (folder(name, 1) / "backbone.safetensors").exists()
    run(name, f"--ckpt_path={folder(name, 1)}/checkpoints/last.ckpt")
    whole, parts = (load_file(folder(name, number) / "backbone.safetensors") for number in (0, 1))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(value, parts[key]) for key, value in whole.items())
    first, second = ((folder(name, number) / "metrics.csv").read_text() for number in (0, 1))
    assert first == second


@every_recipe
def test_training_changes_every_network_and_lowers_a_loss_on_one_batch(name):
    model = small(name, lr=3e-3)
    model.log = model.log_dict = lambda *args, **kwargs: None
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    before = {key: value.clone() for key, value in model.named_parameters()}
    batch, losses = images(4, 120 if name == "puzzle" else 64), []
    for _ in range(25):
        torch.manual_seed(1)  # the same puzzles and codes
        optimizer.zero_grad()
        loss = model.training_step(batch, 0)
        loss.backward()
        model.on_after_backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    # Batch normalization undoes the biases of the convolutions before it.
    same = [key for key, value in model.named_parameters() if torch.equal(value, before[key])]
    assert not [key for key in same if not (key.startswith("backbone") and key.endswith("bias"))]
    if name != "bigan":  # a game has no loss that falls
        assert losses[-1] < 0.95 * losses[0]


def test_the_halves_of_a_split_brain_never_see_each_other():
    model = small("split_brain")
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    model.log = model.log_dict = lambda *args, **kwargs: None
    for seed in range(3):
        optimizer.zero_grad()
        model.training_step(images(4, 67, seed), 0).backward()
        model.on_after_backward()
        optimizer.step()
    model.eval()
    x = model.backbone.preprocess(images(2, 67))
    other = model.backbone.preprocess(images(2, 67, seed=1))
    same_lightness, same_ab = torch.cat([x[:, :1], other[:, 1:]], 1), torch.cat([other[:, :1], x[:, 1:]], 1)
    layers = model.backbone.encode_preprocessed(x)
    of_lightness, of_ab = (model.backbone.encode_preprocessed(part) for part in (same_lightness, same_ab))
    assert len(layers) == 5
    for layer, features in layers.items():
        half = features.shape[1] // 2
        torch.testing.assert_close(of_lightness[layer][:, :half], features[:, :half], rtol=0, atol=0)
        torch.testing.assert_close(of_ab[layer][:, half:], features[:, half:], rtol=0, atol=0)
        assert not torch.equal(of_lightness[layer][:, half:], features[:, half:])
        assert not torch.equal(of_ab[layer][:, :half], features[:, :half])


@pytest.mark.parametrize("name", ["split_brain", "puzzle"])
def test_a_training_starts_from_filters_of_the_data_and_a_resumed_one_does_not(name):
    data = PhotographCrops("images", held_out=["c"], crop_size=67, epoch_size=4)
    data.setup("fit")
    model, seen = small(name), {}
    before = {key: value.clone() for key, value in model.state_dict().items()}
    blocks = [(slice(0, 1), slice(0, 2)), (slice(1, 3), slice(2, None))] if name == "split_brain" else None
    start_from_kmeans(SimpleNamespace(ckpt_path="last.ckpt", datamodule=data), model.backbone, blocks)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    start_from_kmeans(SimpleNamespace(ckpt_path=None, datamodule=data), model.backbone, blocks)
    for index in model.backbone.convolutions:
        model.backbone.features[index].register_forward_hook(
            lambda _, args, output, index=index: seen.update({index: output})
        )
    with torch.no_grad():
        model.eval().backbone(data.start_crops() / 255)
    assert len(seen) == 5
    for output in seen.values():
        assert output.mean((0, 2, 3)).abs().max() < 1e-3
        torch.testing.assert_close(output.std((0, 2, 3)), torch.ones(output.shape[1]), rtol=0, atol=1e-2)
    first = model.backbone.features[0].weight
    outside = [first[:2, 1:], first[2:, :1]]
    assert [bool(part.any()) for part in outside] == ([False, False] if name == "split_brain" else [True, True])


def test_classes_of_colors_are_intervals():
    values = torch.tensor([[-200.0, -110, -100.5, -0.1, 0, 109, 200], [-110.0, -110, -110, 0, 0, 109, 0]])
    found = ab_class(values.T.reshape(7, 2, 1, 1)).flatten()
    cells = [(0, 0), (0, 0), (0, 0), (10, 11), (11, 11), (21, 21), (21, 11)]
    assert found.tolist() == [22 * a + b for a, b in cells]
    assert lightness_class(torch.tensor([0.0, 1.9, 2, 99, 100]).view(5, 1, 1, 1)).flatten().tolist() == [
        0,
        0,
        1,
        49,
        49,
    ]


def test_the_split_brain_learns_colors_that_follow_from_lightness():
    model = SplitBrain(width=0.05)
    model.log = model.log_dict = lambda *args, **kwargs: None
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    level = torch.rand(64, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    flat = torch.cat([level, level, 1 - level], 1).expand(-1, -1, 67, 67)
    for step in range(100):
        optimizer.zero_grad()
        model.training_step(flat[step % 4 : 48 : 4], 0).backward()
        model.on_after_backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        model.validation_step(flat[48:], 0)
    assert float(model.val_ab_error.compute()) < 0.5
    assert float(model.val_lightness_error.compute()) < 0.5


def test_tiles_are_those_of_a_slow_loop():
    batch, tile, slack = images(2, 33), 8, 3
    generator = torch.Generator().manual_seed(0)
    offsets = torch.randint(slack + 1, (2, 9, 2), generator=generator)
    shift = torch.randint(-2, 3, (2, 3, 2), generator=generator)
    found = tiles_of(batch, tile, offsets, shift)
    assert found.shape == (2, 9, 3, 8, 8)
    for image in range(2):
        for ninth in range(9):
            for channel in range(3):
                y, x = (
                    min(max(11 * part + int(offsets[image, ninth, axis] + shift[image, channel, axis]), 0), 33 - tile)
                    for axis, part in enumerate(divmod(ninth, 3))
                )
                expected = batch[image, channel, y : y + tile, x : x + tile]
                assert torch.equal(found[image, ninth, channel], expected)
    assert torch.equal(tiles_of(batch, tile)[:, 8], batch[:, :, 23:31, 23:31])


def test_a_puzzle_shows_the_tiles_in_its_order():
    model = small("puzzle")
    tiles = tiles_of(images(4, 120), 38)
    order = torch.tensor([0, 5, 23, 5])
    found = model._shuffled(tiles, order)
    for number, index in enumerate(order):
        for place, tile in enumerate(model.orders[index]):
            torch.testing.assert_close(found[number, place], normalized(tiles[number, tile]))


def test_brightness_and_contrast_of_a_tile_are_no_hints():
    tiles = images(3, 16).view(1, 3, 3, 16, 16)
    found = normalized(tiles)
    assert found.mean((-2, -1)).abs().max() < 1e-5
    torch.testing.assert_close(normalized(0.5 * tiles + 0.3), found, rtol=0.1, atol=0.05)
    assert torch.equal(normalized(torch.full((1, 1, 3, 4, 4), 0.25)), torch.zeros(1, 1, 3, 4, 4))


@pytest.mark.parametrize(("count", "distance"), [(9, 8), (64, 6), (200, 5)])
def test_permutations_are_far_apart_and_follow_the_seed(count, distance):
    found = distant_permutations(count, 0)
    assert torch.equal(found.sort(1).values, torch.arange(9).expand(count, 9))
    different = (found[:, None] != found[None]).sum(2) + 9 * torch.eye(count, dtype=torch.int64)
    assert int(different.min()) >= distance
    assert torch.equal(found, distant_permutations(count, 0))
    assert not torch.equal(found, distant_permutations(count, 1))


def test_each_loss_of_a_bigan_trains_its_own_networks():
    model = small("bigan")
    model.discriminator.eval()  # spectral normalization estimates its norms in training mode, with every call
    model.log_dict = lambda values, **options: None
    batch = images(4)
    torch.manual_seed(3)
    model.training_step(batch, 0).backward()
    found = {name: value.grad.clone() for name, value in model.named_parameters()}
    torch.manual_seed(3)
    random = torch.randn(4, 4)
    codes, made = model(batch), model.generator(random)
    softplus = torch.nn.functional.softplus
    real, fake = model.discriminator(batch, codes), model.discriminator(made, random)
    losses = softplus(-real).mean() + softplus(fake).mean(), softplus(real).mean() + softplus(-fake).mean()
    for loss, is_own in zip(losses, (True, False), strict=True):
        names = [name for name in found if name.startswith("discriminator") == is_own]
        parameters = dict(model.named_parameters())
        gradients = torch.autograd.grad(loss, [parameters[name] for name in names], retain_graph=True)
        assert len(names) > 5
        for name, gradient in zip(names, gradients, strict=True):
            torch.testing.assert_close(found[name], gradient, msg=name)
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("name", ["split_brain", "bigan"])
def test_an_error_of_one_is_that_of_the_mean(name):
    model = small(name).eval()
    model.log = lambda *args, **kwargs: None
    metric = model.val_image_error if name == "bigan" else model.val_ab_error
    columns = 3 if name == "bigan" else 2
    target = torch.randn(50, columns, generator=torch.Generator().manual_seed(0))
    metric.update(target.mean(0).expand_as(target), target)
    assert float(metric.compute()) == pytest.approx(1, abs=1e-4)
    metric.reset()
    with torch.no_grad():
        model.validation_step((255 * images(4, 67 if name == "split_brain" else 64)).byte(), 0)
    assert 0.5 < float(metric.compute()) < 1e4


def test_crops_are_new_in_training_and_the_same_in_validation():
    data = PhotographCrops("images", held_out=["c"], crop_size=40, epoch_size=6, val_size=5, batch_size=3)
    data.setup("fit")
    assert data.trained_on == ["a", "b", "d"] and data.validated_on == ["c"]
    torch.manual_seed(0)
    first, second = (torch.cat(list(data.train_dataloader())) for _ in range(2))
    assert first.shape == (6, 3, 40, 40) and first.dtype == torch.uint8
    assert not torch.equal(first, second)
    assert torch.equal(*(torch.cat(list(data.val_dataloader())) for _ in range(2)))


def test_crops_are_parts_of_photographs_at_random_sizes_and_mirrored(tmp_path):
    from PIL import Image

    ramp = torch.arange(100, dtype=torch.uint8)[None, :, None].expand(100, -1, 3)
    Image.fromarray(ramp.numpy()).save(tmp_path / "ramp.png")
    torch.manual_seed(0)
    widths, mirrored = [], 0
    for cache in (True, False):
        crops = Crops([tmp_path / "ramp.png"], 20, 4.0, 30, cache)
        for index in range(len(crops)):
            row = crops[index][0, 10].int()
            widths.append(int((row[-1] - row[0]).abs()) + 1)
            mirrored += int(row[0] > row[-1])
    assert len(widths) == 60 and 15 < mirrored < 45
    assert min(widths) < 25 and 60 < max(widths) <= 80
    (whole,) = Crops([tmp_path / "ramp.png"], 200, 1.0, 1, True, seed=0)
    assert whole.shape == (3, 200, 200)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("split_brain", "--model.width=0", "width: expected a positive number, got 0"),
        ("split_brain", "--data.zoom=0.5", "zoom: expected at least 1, got 0.5"),
        ("split_brain", "--data.epoch_size=0", "epoch_size: expected at least 1, got 0"),
        ("split_brain", "--data.held_out=[nobody]", "held_out: expected names among a, b, c, d, got 'nobody'"),
        ("split_brain", "--data.crop_size=20", "crop_size: expected at least 23, got 20"),
        ("puzzle", "--model.tile=41", "tile: expected at most 40, a third of the crops' side, got 41; raise"),
        ("puzzle", "--model.tile=20", "tile: expected at least 23, got 20"),
        ("puzzle", "--model.permutations=1", "permutations: expected 2 to 1000, got 1"),
        ("bigan", "--model.code=0", "code: expected at least 1, got 0"),
        ("bigan", "--data.crop_size=80", "crop_size: expected 64, the size of the generator's images, got 80x80"),
    ],
)
def test_bad_input_is_refused_before_any_training(name, options, said):
    with pytest.raises(ValueError, match=said.replace("[", r"\[")):
        run(name, options)
    assert not Path("outputs").exists()


@every_recipe
def test_an_unknown_start_is_refused(name):
    with pytest.raises(ValueError, match="start: expected one of 'kmeans', 'random', got 'kmean'"):
        small(name, start="kmean")


def test_the_file_is_checked_before_the_training():
    model, data = small("bigan"), PhotographCrops("images", held_out=["c"], crop_size=64)
    quiet = {"logger": False, "enable_progress_bar": False, "accelerator": "cpu", "enable_checkpointing": False}
    fit = Trainer(max_epochs=1, callbacks=[BackboneFile("backbone.pt")], **quiet)
    with pytest.raises(MisconfigurationException, match=r"path: expected a file that ends in \.safetensors"):
        fit.fit(model, data)
    model.backbone = torch.nn.Identity()
    with pytest.raises(MisconfigurationException, match="BackboneFile: expected a model with a CaffeAlexNet"):
        Trainer(max_epochs=1, callbacks=[BackboneFile()], **quiet).fit(model, data)


def test_a_width_scales_all_channels():
    assert new_alexnet(1.0).channels == (96, 256, 384, 384, 256)
    assert new_alexnet(0.5).channels == (48, 128, 192, 192, 128)
    assert new_alexnet(0.001).channels == (4, 4, 4, 4, 4)


@every_recipe
def test_the_packaged_yaml_takes_a_step_and_writes_no_file(name, monkeypatch):
    write_noise("large", ("a", "b"), 230, 230)
    module = import_module(f"lpips_lightning.recipes.{name}")
    small = "--data.epoch_size=2 --data.val_size=1 --data.batch_size=2 --model.width=0.05 --data.held_out=[b]"
    module.main(
        ["fit", "--data.folder=large", *small.split(), "--trainer.fast_dev_run=true", "--trainer.accelerator=cpu"]
    )
    assert not Path("outputs").exists()
