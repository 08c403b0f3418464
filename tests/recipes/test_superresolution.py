"""The superresolution recipe: network, pairs, training, checkpoints, command line."""

import csv
import itertools
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning
import torch
import yaml
from packaging.version import Version
from PIL import Image
from pytorch_lightning import Trainer
from small_data import write_noise

from lpips_lightning.callbacks import PerceptualScores
from lpips_lightning.functional.luma import luma_scores
from lpips_lightning.recipes import superresolution
from lpips_lightning.recipes.realistic_degradation import blur_kernel, degrade
from lpips_lightning.recipes.superresolution import EDSR, SuperResolution, main, upscale
from lpips_lightning.recipes.superresolution_data import SuperResolutionData, downscale

TINY = {"n_resblocks": 1, "n_feats": 4, "loss_weights": "random"}
SCORES = {"val/psnr", "val/ssim", "val/lpips"}
pytestmark = [
    # 2026-11-21, pytorch_lightning/trainer/connectors/data_connector.py: right for large data, noise for five images.
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
]


@pytest.fixture
def folder(tmp_path):
    """Five images of noise, one in a folder of its own."""
    return write_noise(tmp_path / "images")


@pytest.fixture
def data(folder):
    """Three batches of training crops, two of validation crops."""
    return SuperResolutionData(str(folder), ["d", "more/e"], crop_size=32, val_crop_size=32, epoch_size=6, batch_size=2)


def trainer(tmp_path, **options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    scores = PerceptualScores("embedded", data_range=(0, 1))
    defaults = {"max_epochs": 2, "log_every_n_steps": 1, "enable_checkpointing": False, "callbacks": [scores]}
    options = {**defaults, **quiet, **options}
    return Trainer(default_root_dir=tmp_path, **options)


def command_line(folder, *more):
    model = "--model.n_resblocks=1 --model.n_feats=4 --model.loss_weights=random --scores.weights=random"
    images = f"--data.folder={folder} --data.held_out=[d] --data.crop_size=32 --data.val_crop_size=32"
    small = "--data.epoch_size=4 --data.batch_size=2 --trainer.accelerator=cpu --trainer.enable_progress_bar=false"
    return [*f"{model} {images} {small} --trainer.log_every_n_steps=1".split(), *more]


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_untrained_network_is_bicubic_upscaling(scale):
    low = torch.rand(2, 3, 8, 10)
    high = EDSR(scale, n_resblocks=2, n_feats=4)(low)
    assert high.shape == (2, 3, 8 * scale, 10 * scale)
    assert torch.equal(high, upscale(low, scale))


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_scaling_down_and_up_agrees_with_pillow(scale):
    image = torch.randint(0, 256, (3, 24 * scale, 15 * scale), dtype=torch.uint8)
    pillow = Image.fromarray(image.permute(1, 2, 0).numpy())
    small = pillow.resize((15, 24), Image.Resampling.BICUBIC)
    ours = downscale(image / 255, scale).mul(255).permute(1, 2, 0).numpy()
    assert np.abs(ours - np.asarray(small, float)).max() <= 1.001  # Pillow works with 8-bit intermediates
    large = small.resize((15 * scale, 24 * scale), Image.Resampling.BICUBIC)
    low = torch.from_numpy(np.array(small)).permute(2, 0, 1)[None] / 255
    ours = upscale(low, scale)[0].mul(255).clamp(0, 255).permute(1, 2, 0).numpy()
    assert np.abs(ours - np.asarray(large, float)).max() <= 1.501


def test_pairs_match_and_held_out_images_are_excluded(data):
    data.setup("fit")
    low, high, names = next(iter(data.train_dataloader()))
    assert low.shape == (2, 3, 8, 8)
    assert high.shape == (2, 3, 32, 32)
    assert torch.equal(downscale(high, 4), low)
    assert 0 <= high.min() < high.max() <= 1
    assert {name for index in range(len(data.train_data)) for name in data.train_data[index][2:]} == {"a", "b", "c"}
    fixed = [batch for _ in range(2) for batch in data.val_dataloader()]
    assert [len(batch[2]) for batch in fixed] == [2, 2, 2, 2]  # two crops in each of two images, twice
    assert all(torch.equal(one[1], two[1]) for one, two in zip(fixed[:2], fixed[2:], strict=True))
    assert names[0] != "d"


def test_realistic_inputs_differ_from_item_to_item_and_stay_the_same_in_validation(folder, capsys):
    options = {"crop_size": 32, "val_crop_size": 32, "epoch_size": 6, "batch_size": 2, "realistic": True}
    data = SuperResolutionData(str(folder), ["d", "more/e"], **options)
    data.setup("fit")
    first, second = (list(data.val_dataloader()) for _ in range(2))
    for one, two in zip(first, second, strict=True):
        assert torch.equal(one[0], two[0])
        assert one[0].shape == (2, 3, 8, 8)
        assert (one[0] - downscale(one[1], 4)).abs().mean() > 0.02
    epochs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        epochs.append(torch.cat([batch[0] for batch in data.train_dataloader()]))
    assert torch.equal(epochs[0], epochs[1])
    assert not torch.equal(epochs[0], epochs[2])
    assert "Realistic" not in capsys.readouterr().out
    data.setup("test")
    low, high, _ = next(iter(data.test_dataloader()))
    assert (low.shape[2] * 4, low.shape[3] * 4) == high.shape[2:]
    assert "Realistic inputs: degraded by blur, noise and JPEG." in capsys.readouterr().out


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_degraded_images_are_of_the_exact_size_and_of_8_bits(scale):
    high = torch.rand(3, 5 * scale, 7 * scale).repeat_interleave(2, 1)
    lows = [degrade(high, scale, torch.Generator().manual_seed(seed)) for seed in range(12)]
    for low in lows:
        assert low.shape == (3, 10, 7)
        assert low.min() >= 0 and low.max() <= 1
        assert torch.equal(low.mul(255).round().div(255), low)
    assert len({float(low.sum()) for low in lows}) == 12
    again = degrade(high, scale, torch.Generator().manual_seed(0))
    assert torch.equal(again, lows[0])


def test_a_degraded_gray_area_keeps_its_mean_and_the_blur_has_the_given_width():
    gray = torch.full((3, 64, 64), 0.5)
    lows = torch.stack([degrade(gray, 2, torch.Generator().manual_seed(seed)) for seed in range(20)])
    assert float(lows.mean()) == pytest.approx(0.5, abs=0.01)
    assert 0 < float(lows.std((1, 2, 3)).min()) < 0.02 < float(lows.std((1, 2, 3)).max()) < 0.25
    kernel = blur_kernel((2.0, 1.0), 0.0)
    place = torch.arange(kernel.shape[1]) - kernel.shape[1] // 2.0
    assert float(kernel.sum()) == pytest.approx(1)
    spread = [float((kernel.sum(axis) * place**2).sum()) for axis in (0, 1)]
    assert spread == pytest.approx([4, 1], rel=0.05)  # along x and y
    assert torch.allclose(blur_kernel((2.0, 1.0), torch.pi / 2), kernel.T, atol=1e-6)


def test_a_discriminator_trains_beside_the_same_network_and_is_left_out_of_prediction(tmp_path, data):
    torch.manual_seed(0)
    plain = SuperResolution(**TINY)
    after = torch.rand(1)
    torch.manual_seed(0)
    adversarial = {"adversarial_weight": 0.5, "adversarial_start": 1, "discriminator_channels": 4}
    model = SuperResolution(**TINY, **adversarial)
    assert torch.equal(torch.rand(1), after)
    assert all(torch.equal(one, two) for one, two in zip(plain.parameters(), model.network.parameters(), strict=True))
    judge = [parameter.detach().clone() for parameter in model.adversarial.parameters()]
    fitted = trainer(tmp_path)
    fitted.fit(model, data)
    more = {"train/generator", "train/discriminator", "train/adaptive_weight"}
    assert set(fitted.callback_metrics) == SCORES | {"train/loss", "train/l1", "train/perceptual"} | more
    assert float(fitted.callback_metrics["train/adaptive_weight"]) > 0
    moved = [not torch.equal(one, two) for one, two in zip(judge, model.adversarial.parameters(), strict=True)]
    assert all(moved[:-1])  # real and generated images push the last bias into opposite directions
    fitted.save_checkpoint(tmp_path / "saved.ckpt")
    state = torch.load(tmp_path / "saved.ckpt", weights_only=True)["state_dict"]
    assert {key.partition(".")[0] for key in state} == {"network", "adversarial"}
    without = SuperResolution.load_from_checkpoint(tmp_path / "saved.ckpt", adversarial_weight=0.0, weights_only=True)
    low = torch.rand(1, 3, 12, 12)
    assert torch.equal(without.eval()(low), model.eval()(low))


def test_without_a_discriminator_training_is_that_of_adam(tmp_path, data):
    finals = []
    for optimizer in (None, torch.optim.Adam):
        torch.manual_seed(0)
        model = SuperResolution(**TINY)
        if optimizer is not None:
            model.adam = lambda parameters, made=optimizer: made(parameters, lr=1e-3)
        trainer(tmp_path, max_epochs=1).fit(model, data)
        finals.append([parameter.detach().clone() for parameter in model.network.parameters()])
    assert all(torch.equal(one, two) for one, two in zip(*finals, strict=True))


def test_full_images_are_cropped_to_a_multiple_of_the_scale(data):
    data.setup("test")
    low, high, names = next(iter(data.test_dataloader()))
    assert low.shape == (1, 3, 12, 17)
    assert high.shape == (1, 3, 48, 68)
    assert list(names) == ["d"]


def test_bundled_photographs_are_the_default():
    train, held_out = SuperResolutionData().split()
    assert set(held_out) == {"astronaut"}
    assert set(train) == {"chelsea", "coffee", "motorcycle", "rocket"}


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_yaml_sizes_work_for_every_scale(scale):
    defaults = yaml.safe_load(Path(superresolution.__file__).with_suffix(".yaml").read_text())["data"]
    data = SuperResolutionData(**defaults, scale=scale)
    data.setup("validate")
    low, high, names = next(iter(data.val_dataloader()))
    assert [side * scale for side in low.shape[2:]] == list(high.shape[2:]) == [defaults["val_crop_size"]] * 2
    assert set(names) == {"astronaut"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scale": 5}, r"scale: expected one of \(2, 3, 4\), got 5"),
        ({"crop_size": 30}, "crop_size: expected a positive multiple of the scale 4, got 30"),
        ({"val_crop_size": 2}, "val_crop_size: expected a positive multiple of the scale 4, got 2"),
        ({"batch_size": 0}, "batch_size: expected at least 1, got 0"),
        ({"held_out": []}, "held_out: expected names of images in .* to validate on, or a val_folder, got neither"),
        ({"held_out": ["z"]}, "held_out: expected names among a, b, c, d, more/e, got 'z'"),
        ({"held_out": ["a", "b", "c", "d", "more/e"]}, "held_out: expected to leave images to train on, got all 5"),
        ({"val_folder": "somewhere"}, "held_out: expected None with val_folder"),
        ({"crop_size": 64}, r"crop_size: .* got 64 and 4 of 4 smaller, the first being .*a.png of 49x70"),
    ],
)
def test_bad_data_arguments_are_refused(folder, arguments, message):
    with pytest.raises(ValueError, match=message):
        SuperResolutionData(**{"folder": str(folder), "held_out": ["d"], "val_crop_size": 32, **arguments}).setup("fit")


def test_missing_folder_is_refused():
    with pytest.raises(FileNotFoundError, match="folder: expected an existing folder of images, got 'nowhere'"):
        SuperResolutionData("nowhere", ["d"]).setup("fit")


def test_training_logs_scores_and_saves_only_the_network(tmp_path, data):
    fitted = trainer(tmp_path)
    model = SuperResolution(**TINY)
    fitted.fit(model, data)
    assert fitted.global_step == 6
    assert set(fitted.callback_metrics) == SCORES | {"train/loss", "train/l1", "train/perceptual"}
    assert list(model.perceptual.parameters()) == []
    fitted.save_checkpoint(tmp_path / "saved.ckpt")
    saved = torch.load(tmp_path / "saved.ckpt", weights_only=True)
    assert {key.partition(".")[0] for key in saved["state_dict"]} == {"network"}
    assert all(isinstance(value, str | int | float | bool | None) for value in saved["hyper_parameters"].values())


def test_reloaded_model_is_the_same_and_needs_no_backbone(tmp_path, data):
    model = SuperResolution(**{**TINY, "loss_net": "vgg", "loss_weight": 0.5, "loss_calibrated": False})
    fitted = trainer(tmp_path, max_epochs=1)
    fitted.fit(model, data)
    fitted.save_checkpoint(tmp_path / "saved.ckpt")
    again = SuperResolution.load_from_checkpoint(tmp_path / "saved.ckpt", weights_only=True)
    low = torch.rand(1, 3, 12, 12)
    assert torch.equal(again.eval()(low), model.eval()(low))
    assert dict(again.hparams) == dict(model.hparams)
    assert again.perceptual is None
    again.setup("fit")
    assert again.perceptual.net.net_type == "vgg"
    assert again.perceptual.weight == 0.5
    assert not again.perceptual.net.calibrated


def test_two_fits_in_a_row_and_a_longer_resumed_one(tmp_path, data):
    model = SuperResolution(**TINY)
    trainer(tmp_path, max_epochs=1).fit(model, data)
    first = trainer(tmp_path, max_epochs=1)
    first.fit(model, data)
    first.save_checkpoint(tmp_path / "saved.ckpt")
    longer = trainer(tmp_path, max_epochs=2)
    longer.fit(model, data, ckpt_path=tmp_path / "saved.ckpt")
    assert longer.global_step == 6
    assert set(longer.callback_metrics) > SCORES


def test_the_pixel_loss_loads_no_backbone(tmp_path, data):
    fitted = trainer(tmp_path, max_epochs=1)
    fitted.fit(SuperResolution(n_resblocks=1, n_feats=4, loss_net="vgg", loss_weight=0.0), data)
    assert set(fitted.callback_metrics) == SCORES | {"train/loss", "train/l1"}


def test_validation_score_is_the_mean_over_images(tmp_path, data):
    model = SuperResolution(**TINY)
    (whole,) = trainer(tmp_path).validate(model, data, verbose=False)
    data.batch_size = 3  # two uneven batches
    (split,) = trainer(tmp_path).validate(model, data, verbose=False)
    assert set(whole) == SCORES
    assert whole == pytest.approx(split, rel=1e-5)


def test_test_logs_luma_scores_and_those_of_bicubic(tmp_path, data):
    model = SuperResolution(**TINY)
    torch.nn.init.normal_(model.network.tail.weight, std=0.1)
    tester = trainer(tmp_path)
    (found,) = tester.test(model, data, verbose=False)
    expected = torch.zeros(2, 2)
    for low, high, _ in data.test_dataloader():
        for row, enlarged in enumerate((model(low), upscale(low, 4))):
            expected[row] += torch.cat(luma_scores(enlarged.detach(), high, border=4)) / 2
    names = ("test/psnr_y", "test/ssim_y", "test/bicubic_psnr_y", "test/bicubic_ssim_y")
    assert [found[name] for name in names] == pytest.approx(expected.flatten().tolist(), rel=1e-5)
    assert found["test/psnr_y"] != found["test/bicubic_psnr_y"]
    assert set(found) == {*names, "test/lpips", "test/psnr", "test/ssim"}
    assert tester.test(model, data, verbose=False) == [found]


def test_learning_rate_rises_and_falls_to_zero(tmp_path, data):
    model = SuperResolution(**TINY, warmup_steps=3)
    model.trainer = type("Planned", (), {"estimated_stepping_batches": 10})()
    scheduler = model.configure_optimizers()["lr_scheduler"]["scheduler"]
    rates = [scheduler.lr_lambdas[0](step) for step in range(13)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert all(one > two for one, two in itertools.pairwise(rates[3:11]))
    assert rates[10:] == pytest.approx([0, 0, 0], abs=1e-9)


# 2026-11-21, pytorch_lightning/callbacks/model_checkpoint.py: a second run has a folder of its own.
@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_command_line_fits_validates_and_predicts(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(["fit", *command_line(folder, "--trainer.max_epochs=2", "--trainer.enable_model_summary=false")])
    version = tmp_path / "outputs" / "superresolution" / "version_0"
    assert {path.name for path in (version / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    rows = list(csv.DictReader((version / "metrics.csv").read_text().splitlines()))
    assert set(rows[0]) > SCORES
    assert sum(bool(row["val/lpips"]) for row in rows) == 2
    checkpoint = f"--ckpt_path={version / 'checkpoints' / 'best.ckpt'}"
    main(["test", *command_line(folder, checkpoint)])
    assert "test/lpips" in capsys.readouterr().out
    # No option of the model: size, scale and networks come from the checkpoint, as pytorch-lightning has it since 2.6.
    model = [] if Version(pytorch_lightning.__version__) >= Version("2.6") else command_line(folder)
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu", "--trainer.logger=false"]
    main(["predict", checkpoint, f"--data.predict_folder={folder}", "--images.out=large", *quiet, *model])
    written = {path.relative_to(tmp_path / "large").as_posix() for path in (tmp_path / "large").rglob("*.png")}
    assert written == {"a.png", "b.png", "c.png", "d.png", "more/e.png"}
    with Image.open(tmp_path / "large" / "more" / "e.png") as image:
        assert image.size == (280, 196)
