"""The colorization recipe: network, data, training, checkpoints, command line."""

from __future__ import annotations

import csv
import itertools

import numpy as np
import pytest
import pytorch_lightning
import torch
from packaging.version import Version
from PIL import Image
from pytorch_lightning import Trainer

from lpips_lightning import LPIPS
from lpips_lightning.callbacks import PerceptualScores
from lpips_lightning.recipes.colorization import Colorization, UNet, main
from lpips_lightning.recipes.colorization_data import ColorizationData, shrink
from lpips_lightning.recipes.colors import ciede2000, colorfulness, split_lab

TINY = {"n_feats": 4, "n_levels": 2, "working_size": 40, "loss_weights": "random"}
OWN = {"val/ciede2000", "val/colorfulness", "val/colorfulness_truth", "val/colorfulness_ratio"}
SCORES = {"val/psnr", "val/ssim", "val/lpips", *OWN}
pytestmark = [
    # 2026-11-21, pytorch_lightning/trainer/connectors/data_connector.py: right for large data, noise for five images.
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
]


@pytest.fixture
def folder(tmp_path):
    """Five color images, one in a folder of its own, none of the size of another."""
    generator = np.random.default_rng(0)
    for number, name in enumerate(("a", "b", "c", "d", "more/e")):
        path = tmp_path / "images" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(generator.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        coarse.resize((70 + number, 49), Image.Resampling.BILINEAR).save(path)
    return tmp_path / "images"


@pytest.fixture
def data(folder):
    """Three batches of training crops, two held-out images."""
    return ColorizationData(str(folder), ["d", "more/e"], working_size=40, crop_size=32, epoch_size=6, batch_size=2)


def trainer(tmp_path, **options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    scores = PerceptualScores("embedded", data_range=(0, 1))
    defaults = {"max_epochs": 2, "log_every_n_steps": 1, "enable_checkpointing": False, "callbacks": [scores]}
    options = {**defaults, **quiet, **options}
    return Trainer(default_root_dir=tmp_path, **options)


def colored(model):
    """The model with a head that paints, which an untrained one's does not."""
    torch.nn.init.normal_(model.network.head.weight, generator=torch.Generator().manual_seed(0))
    return model.eval()


def command_line(folder, *more):
    model = "--model.lr=0.1 --model.warmup_steps=0 --model.n_feats=4 --model.n_levels=2 --model.working_size=40"
    backbones = "--model.loss_weights=random --scores.weights=random"
    images = f"--data.folder={folder} --data.held_out=[d] --data.crop_size=32 --data.epoch_size=4"
    small = "--data.batch_size=2 --trainer.accelerator=cpu --trainer.enable_progress_bar=false"
    return [*f"{model} {backbones} {images} {small} --trainer.log_every_n_steps=1".split(), *more]


@pytest.mark.parametrize("levels", [2, 4])
@pytest.mark.parametrize(
    ("size", "features"), [((32, 32), "embedded"), ((33, 47), "embedded"), ((31, 64), None), ((5, 17), None)]
)
def test_network_takes_any_size_and_starts_with_gray(size, levels, features):
    network = UNet(n_feats=6, n_levels=levels, features_net=features)
    lightness = 100 * torch.rand(2, 1, *size)
    ab = network(lightness)
    assert ab.shape == (2, 2, *size)
    assert not ab.any()
    torch.nn.init.normal_(network.head.weight)
    ab = network(lightness)
    assert ab.std() > 0.1
    ab.square().sum().backward()
    assert all(parameter.grad.isfinite().all() and parameter.grad.any() for parameter in network.parameters())


def test_frozen_features_are_no_parameters_of_the_unet_but_change_its_output():
    network = UNet(n_feats=4, n_levels=2)
    assert {name.partition(".")[0] for name in network.state_dict()} == {"stem", "feature_convs", "down", "up", "head"}
    torch.nn.init.normal_(network.head.weight)
    lightness = 100 * torch.rand(1, 1, 48, 48)
    before = network(lightness)
    network.features = LPIPS("embedded", weights="random")
    assert (network(lightness) - before).abs().max() > 1e-2


def test_dropout_is_for_training_only():
    network = UNet(n_feats=8, n_levels=2, dropout=0.5)
    torch.nn.init.normal_(network.head.weight)
    lightness = 100 * torch.rand(1, 1, 32, 32)
    assert not torch.equal(network(lightness), network(lightness))
    assert torch.equal(network.eval()(lightness), network(lightness))


def test_colors_are_added_and_lightness_is_preserved():
    model = colored(Colorization(**TINY))
    images = torch.rand(2, 3, 61, 90)
    images[0, :, :8], images[0, :, -8:] = 0, 1
    with torch.inference_mode():
        painted = model(images)
    assert painted.shape == images.shape
    assert 0 <= painted.min() <= painted.max() <= 1
    assert colorfulness(painted).min() > 5
    assert (split_lab(painted)[0] - split_lab(images)[0]).abs().max() < 0.3


def test_only_the_lightness_of_an_image_is_used():
    model = colored(Colorization(**TINY))
    gray = torch.rand(1, 1, 40, 50).expand(-1, 3, -1, -1)
    tinted = model(gray)
    assert colorfulness(tinted).item() > 5
    with torch.inference_mode():
        assert (model(tinted) - tinted).abs().mean() < 1e-3


def test_an_untrained_model_leaves_images_gray():
    painted = Colorization(**TINY).eval()(torch.rand(1, 3, 40, 50))
    assert colorfulness(painted).item() < 0.1


def test_large_images_are_downscaled_to_the_working_size(monkeypatch):
    model, seen = Colorization(**TINY), []
    monkeypatch.setattr(
        model.network, "forward", lambda x: seen.append(x.shape[-2:]) or torch.zeros_like(x).repeat(1, 2, 1, 1)
    )
    for size in ((120, 80), (80, 120), (40, 200), (32, 33)):
        assert model(torch.rand(1, 3, *size)).shape[-2:] == size
    assert seen == [(60, 40), (40, 60), (40, 200), (32, 33)]
    assert shrink(torch.rand(1, 1, 401, 81), 40).shape[-2:] == (198, 40)


def test_loss_is_l1_and_chroma_of_colors_and_weighted_lpips():
    model = Colorization(**TINY | {"dropout": 0.0, "loss_weight": 0.7, "pixel_weight": 2.0, "chroma_weight": 0.5})
    model.setup("fit")
    images = torch.rand(2, 3, 32, 32)
    losses = {name: value.detach() for name, value in model.losses(images).items()}
    _, ab = split_lab(images)
    # It begins with gray.
    assert float(losses["train/l1"]) == pytest.approx(float(ab.abs().mean()) / 50, rel=1e-5)
    assert float(losses["train/chroma"]) == pytest.approx(float(ab.norm(dim=1).mean()) / 50, rel=1e-2)
    distance = float(model.perceptual.net(model(images).detach(), images, (0, 1)).mean())
    assert float(losses["train/perceptual"]) == pytest.approx(0.7 * distance, rel=1e-2)
    total = 2 * losses["train/l1"] + 0.5 * losses["train/chroma"] + losses["train/perceptual"]
    assert float(losses["train/loss"]) == pytest.approx(float(total), rel=1e-6)


def test_chroma_is_compared_image_by_image(monkeypatch):
    model = Colorization(**{**TINY, "loss_weight": 0.0, "lightness_jitter": 0.0})
    images = torch.rand(2, 3, 32, 32)
    _, ab = split_lab(images)
    monkeypatch.setattr(model.network, "forward", lambda lightness: ab.flip(-1))  # wrong everywhere, and as colorful
    losses = model.losses(images)
    assert losses["train/l1"] > 0.1
    assert losses["train/chroma"] < 1e-6


@pytest.mark.parametrize("value", [0.0, 1.0, "random"])
@pytest.mark.parametrize("std", [0, 3])  # at gray, and far out of gamut
def test_gradients_are_finite_on_black_white_and_garish_images(value, std):
    model = Colorization(**TINY)
    model.setup("fit")
    torch.nn.init.normal_(model.network.head.weight, std=std)
    images = torch.rand(2, 3, 32, 32).round() if value == "random" else torch.full((2, 3, 32, 32), value)
    model.losses(images)["train/loss"].backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.network.parameters())


def test_crops_are_of_the_training_images_in_many_sizes_and_held_out_images_stay_out(data, folder):
    data.setup("fit")
    crops, names = next(iter(data.train_dataloader()))
    assert crops.shape == (2, 3, 32, 32)
    assert 0 <= crops.min() < crops.max() <= 1
    assert len(names) == 2
    assert {data.crops[index][1] for index in range(len(data.crops))} == {"a", "b", "c"}
    assert not torch.equal(data.crops[0][0], data.crops[0][0])
    whole = [(tuple(image.shape), *names) for image, names in data.val_dataloader()]
    assert whole == [((1, 3, 49, 73), "d"), ((1, 3, 49, 74), "more/e")]
    assert all(min(image.shape[1:]) == 40 for image in data.crops.small)
    unlike = ColorizationData(str(folder), ["d"], working_size=40, crop_size=32, cache=False)
    unlike.setup("fit")
    assert unlike.crops[0][0].shape == (3, 32, 32)


def test_images_smaller_than_a_crop_are_enlarged(folder):
    data = ColorizationData(str(folder), ["d"], working_size=100, crop_size=64)
    data.setup("fit")
    assert data.crops[0][0].shape == (3, 64, 64)


def test_bundled_photographs_are_the_default_and_are_named(capsys):
    data = ColorizationData()
    train, held_out = data.split()
    assert set(held_out) == {"chelsea"}
    assert set(train) == {"astronaut", "coffee", "motorcycle", "rocket", "hopper"}
    for _ in range(2):
        data.setup("fit")
        data.train_dataloader()
    named = "Training photographs: astronaut, coffee, motorcycle, rocket, hopper; held out: chelsea"
    assert capsys.readouterr().out.count(named) == 1
    small = [image[None] / 255 for image in data.crops.small]
    assert all(float(colorfulness(image)) < 49 for image in small)  # the astronaut has 73, the coffee 77


def test_colors_of_crops_change_and_their_lightness_does_not(folder):
    def crop(**options):
        plain = {"max_colorfulness": None, "hue_jitter": 0, "saturation_jitter": 0, "tint_jitter": 0}
        data = ColorizationData(str(folder), ["d"], working_size=40, crop_size=32, **plain | options)
        data.setup("fit")
        torch.manual_seed(0)
        return data.crops[0][0][None]

    lightness, ab = split_lab(crop())
    for option in ({"hue_jitter": 30}, {"saturation_jitter": 1}, {"tint_jitter": 9}, {"max_colorfulness": 20}):
        changed, changed_ab = split_lab(crop(**option))
        assert (changed_ab - ab).abs().mean() > 1, option
        assert (changed - lightness).abs().max() < 1, option  # the limit's images are stored in 8 bits


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"crop_size": 0}, "crop_size: expected at least 1, got 0"),
        ({"epoch_size": 0}, "epoch_size: expected at least 1, got 0"),
        ({"batch_size": 0}, "batch_size: expected at least 1, got 0"),
        ({"working_size": 31}, "crop_size: expected at most the working_size 31, got 32"),
        ({"held_out": []}, "held_out: expected names of images in .* to validate on, or a val_folder, got neither"),
        ({"held_out": ["z"]}, "held_out: expected names among a, b, c, d, more/e, got 'z'"),
        ({"held_out": ["a", "b", "c", "d", "more/e"]}, "held_out: expected to leave images to train on, got all 5"),
        ({"max_colorfulness": 0}, "max_colorfulness: expected above 0, or null for no limit, got 0"),
        ({"hue_jitter": -1}, "hue_jitter: expected a finite number of at least 0, got -1"),
        ({"val_folder": "somewhere"}, "held_out: expected None with val_folder"),
    ],
)
def test_bad_data_arguments_are_refused(folder, arguments, message):
    with pytest.raises(ValueError, match=message):
        ColorizationData(**{"folder": str(folder), "held_out": ["d"], "crop_size": 32, **arguments}).setup("fit")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_feats": 0}, "n_feats: expected at least 1, got 0"),
        ({"n_levels": 1}, "n_levels: expected at least 2, got 1"),
        ({"working_size": 0}, "working_size: expected at least 1, got 0"),
        ({"dropout": 1.0}, "dropout: expected at least 0 and below 1, got 1.0"),
        ({"adversarial_weight": -1}, "weight: expected at least 0, got -1"),
        ({"features_net": "nothing"}, "net_type: expected one of"),
    ],
)
def test_bad_model_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Colorization(**{**TINY, **arguments})


def test_missing_folder_is_refused():
    with pytest.raises(FileNotFoundError, match="folder: expected an existing folder of images, got 'nowhere'"):
        ColorizationData("nowhere", ["d"]).setup("fit")


def test_training_logs_scores_and_saves_only_the_network(tmp_path, data):
    fitted = trainer(tmp_path)
    model = Colorization(**TINY)
    fitted.fit(model, data)
    assert fitted.global_step == 6
    assert set(fitted.callback_metrics) == SCORES | {"train/loss", "train/l1", "train/chroma", "train/perceptual"}
    assert list(model.perceptual.parameters()) == []
    fitted.save_checkpoint(tmp_path / "saved.ckpt")
    saved = torch.load(tmp_path / "saved.ckpt", weights_only=True)
    assert {key.partition(".")[0] for key in saved["state_dict"]} == {"network"}
    assert all(isinstance(value, str | int | float | bool | None) for value in saved["hyper_parameters"].values())


def test_a_discriminator_trains_beside_the_network_from_its_start_on(tmp_path, data):
    options = {
        "adversarial_weight": 0.5,
        "adversarial_start": 4,
        "discriminator_layers": 1,
        "discriminator_channels": 4,
    }
    model, fitted = Colorization(**TINY, **options), trainer(tmp_path)
    before = {name: value.clone() for name, value in model.adversarial.state_dict().items()}
    fitted.fit(model, data)  # six steps
    more = {"train/generator", "train/discriminator", "train/adaptive_weight"}
    assert set(fitted.callback_metrics) > SCORES | more
    assert fitted.callback_metrics["train/adaptive_weight"] > 0
    assert all(not torch.equal(value, before[name]) for name, value in model.adversarial.state_dict().items())
    fitted.save_checkpoint(tmp_path / "saved.ckpt")
    saved = torch.load(tmp_path / "saved.ckpt", weights_only=True)
    assert {key.partition(".")[0] for key in saved["state_dict"]} == {"network", "adversarial"}
    (found,) = trainer(tmp_path).validate(Colorization(**TINY), data, ckpt_path=tmp_path / "saved.ckpt", verbose=False)
    assert found["val/lpips"] == pytest.approx(float(fitted.callback_metrics["val/lpips"]), rel=1e-4)


def test_the_initial_network_is_the_same_with_a_discriminator():
    states = []
    for weight in (0.0, 0.5):
        torch.manual_seed(0)
        model = Colorization(**TINY, adversarial_weight=weight, discriminator_channels=4)
        states.append(model.network.state_dict())
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_reloaded_model_is_the_same_and_needs_no_backbone_of_the_loss(tmp_path, data):
    model = Colorization(**{**TINY, "loss_net": "vgg", "loss_weight": 0.5, "loss_calibrated": False})
    fitted = trainer(tmp_path, max_epochs=1)
    fitted.fit(model, data)
    fitted.save_checkpoint(tmp_path / "saved.ckpt")
    again = Colorization.load_from_checkpoint(tmp_path / "saved.ckpt", weights_only=True)
    images = torch.rand(1, 3, 50, 60)
    assert torch.equal(again.eval()(images), model.eval()(images))
    assert dict(again.hparams) == dict(model.hparams)
    assert again.perceptual is None
    again.setup("fit")
    assert again.perceptual.net.net_type == "vgg"
    assert not again.perceptual.net.calibrated


def test_a_longer_resumed_fit_equals_an_uninterrupted_one(tmp_path, data):
    def fit(epochs, name, ckpt_path=None):
        torch.manual_seed(0)
        fitted, model = trainer(tmp_path, max_epochs=epochs), Colorization(**TINY)
        fitted.fit(model, data, ckpt_path=ckpt_path)
        fitted.save_checkpoint(tmp_path / name)
        return fitted, model

    fit(1, "first.ckpt")
    resumed, _ = fit(2, "second.ckpt", tmp_path / "first.ckpt")
    assert resumed.global_step == 6
    assert set(resumed.callback_metrics) > SCORES
    saved = [torch.load(tmp_path / name, weights_only=True) for name in ("first.ckpt", "second.ckpt")]
    steps = [next(iter(one["optimizer_states"][0]["state"].values()))["step"] for one in saved]
    assert [float(step) for step in steps] == [3, 6]


def test_the_pixel_loss_loads_no_backbone(tmp_path, data):
    fitted = trainer(tmp_path, max_epochs=1)
    fitted.fit(Colorization(**{**TINY, "loss_net": "vgg", "loss_weights": None, "loss_weight": 0.0}), data)
    assert set(fitted.callback_metrics) == SCORES | {"train/loss", "train/l1", "train/chroma"}


def test_bfloat16_colors_agree_with_float32(tmp_path, data):
    model = colored(Colorization(**TINY))
    (whole,) = trainer(tmp_path).validate(model, data, verbose=False)
    half = trainer(tmp_path, precision="bf16-mixed")
    (found,) = half.validate(model, data, verbose=False)
    assert found["val/colorfulness_truth"] == whole["val/colorfulness_truth"]
    assert found == pytest.approx(whole, rel=0.01)
    half.fit(model.train(), data)
    assert torch.isfinite(half.callback_metrics["train/loss"])


def test_validation_scores_are_means_over_images(tmp_path, data):
    model = colored(Colorization(**TINY))
    for _ in range(2):  # and are forgotten from one to the next
        (found,) = trainer(tmp_path).validate(model, data, verbose=False)
    assert set(found) == SCORES
    pairs = [(model(image), image) for image, _ in data.val_dataloader()]
    truth = np.mean([colorfulness(image).item() for _, image in pairs])
    painted = np.mean([colorfulness(prediction).item() for prediction, _ in pairs])
    difference = np.mean([ciede2000(*(torch.cat(split_lab(x), 1) for x in pair)).mean().item() for pair in pairs])
    assert found["val/colorfulness"] == pytest.approx(painted, rel=1e-4)
    assert found["val/colorfulness_truth"] == pytest.approx(truth, rel=1e-4)
    assert found["val/colorfulness_ratio"] == pytest.approx(painted / truth, rel=1e-4)
    assert found["val/ciede2000"] == pytest.approx(difference, rel=1e-4)


def test_learning_rate_rises_and_falls_to_zero():
    model = Colorization(**TINY, warmup_steps=3)
    model.trainer = type("Planned", (), {"estimated_stepping_batches": 10})()
    scheduler = model.configure_optimizers()["lr_scheduler"]["scheduler"]
    rates = [scheduler.lr_lambdas[0](step) for step in range(13)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert all(one > two for one, two in itertools.pairwise(rates[3:11]))
    assert rates[10:] == pytest.approx([0, 0, 0], abs=1e-9)


# 2026-11-21, pytorch_lightning/callbacks/model_checkpoint.py: a second run has a folder of its own.
@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_command_line_fits_tests_and_colors_gray_files(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(["fit", *command_line(folder, "--trainer.max_epochs=2", "--trainer.enable_model_summary=false")])
    version = tmp_path / "outputs" / "colorization" / "version_0"
    assert {path.name for path in (version / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    rows = list(csv.DictReader((version / "metrics.csv").read_text().splitlines()))
    assert set(rows[0]) > SCORES
    assert sum(bool(row["val/colorfulness_ratio"]) for row in rows) == 2
    checkpoint = f"--ckpt_path={version / 'checkpoints' / 'last.ckpt'}"
    main(["test", *command_line(folder, checkpoint)])
    assert "test/ciede2000" in capsys.readouterr().out
    gray = tmp_path / "gray"
    gray.mkdir()
    numbers = np.random.default_rng(0).integers(0, 256, (50, 61), dtype=np.uint8)
    Image.fromarray(numbers).save(gray / "eight.png")
    Image.fromarray(numbers.astype(np.uint16) * 257).save(gray / "sixteen.png")
    Image.fromarray(numbers).convert("1").save(gray / "ink.png")
    Image.fromarray(np.dstack([numbers] * 3)).save(gray / "three.png")
    # No option of the model: size and networks come from the checkpoint, as pytorch-lightning has it since 2.6.
    model = [] if Version(pytorch_lightning.__version__) >= Version("2.6") else command_line(folder)
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu", "--trainer.logger=false"]
    main(["predict", checkpoint, f"--data.predict_folder={gray}", "--images.out=painted", *quiet, *model])
    painted = {path.name: Image.open(path) for path in (tmp_path / "painted").iterdir()}
    assert set(painted) == {"eight.png", "sixteen.png", "ink.png", "three.png"}
    assert {(image.mode, image.size) for image in painted.values()} == {("RGB", (61, 50))}
    pixels = {name: np.asarray(image, int) for name, image in painted.items()}
    assert np.ptp(pixels["eight.png"], axis=2).max() > 0  # of color, however little was learnt
    assert (pixels["eight.png"] == pixels["three.png"]).all()
    assert (pixels["eight.png"] == pixels["sixteen.png"]).all()
