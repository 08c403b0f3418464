"""The deblurring recipe: network, losses, training, discriminator, command line."""

import os
from pathlib import Path

import pytest
import torch
from PIL import Image
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from small_data import write_noise

from lpips_lightning import LPIPS
from lpips_lightning.callbacks import PerceptualScores
from lpips_lightning.io.image_files import read_image
from lpips_lightning.recipes.deblurring import Deblurring, DeblurringNetwork, main
from lpips_lightning.recipes.deblurring_data import DeblurringData

TINY = {"channels": [4, 8], "scales": 2, "loss_weights": "random"}
ADVERSARIAL = {"adversarial_weight": 0.5, "discriminator_layers": 1, "discriminator_channels": 4}
SCORES = {"val/lpips", "val/psnr", "val/ssim"}
TRAINED = {"train/loss", "train/l1", "train/coarse", "train/perceptual"}
MIDDLEBURY = Path(os.environ.get("LPIPS_LIGHTNING_DATA", ""), "images", "Middlebury", "frames")
pytestmark = [
    # 2026-11-21, pytorch_lightning/trainer/connectors/data_connector.py: right for large data, noise for five images.
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
]


def trained_a_little(steps=4, **options):
    """A network that no longer returns its input."""
    torch.manual_seed(0)
    network = DeblurringNetwork(**{"channels": [4, 8], "scales": 2, **options})
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    blurred, sharp = torch.rand(2, 1, 3, 32, 32)
    for _ in range(steps):
        optimizer.zero_grad()
        (network(blurred).image - sharp).abs().mean().backward()
        optimizer.step()
    return network.eval()


@pytest.mark.parametrize(("height", "width"), [(64, 96), (37, 61), (5, 3), (1, 1)])
def test_untrained_network_returns_the_blurred_image(height, width):
    blurred = torch.rand(2, 3, height, width)
    made = DeblurringNetwork([4, 8, 8], scales=3)(blurred)
    assert torch.equal(made.image, blurred)
    assert len(made.coarse) == 2
    assert made.coarse[0].shape[2] == 2 * made.coarse[1].shape[2] >= height / 2


def test_odd_sizes_are_padded_and_cropped_back():
    network, blurred = trained_a_little(), torch.rand(1, 3, 61, 90)
    odd = network(blurred).image
    even = network(torch.nn.functional.pad(blurred, (0, 6, 0, 3), mode="replicate")).image
    assert network.stride == 8
    assert torch.equal(odd, even[..., :61, :90])
    assert not torch.allclose(odd, blurred, atol=1e-3)


def test_coarse_estimates_reach_the_finest_scale_through_one_network():
    one, three = DeblurringNetwork([4, 8], scales=1), DeblurringNetwork([4, 8], scales=3)
    assert sum(map(torch.numel, one.parameters())) == sum(map(torch.numel, three.parameters()))
    network, blurred = trained_a_little(scales=3), torch.rand(1, 3, 64, 64)
    made = network(blurred)
    small = torch.nn.functional.avg_pool2d(blurred, 2)
    estimate = torch.nn.functional.interpolate(made.coarse[1], scale_factor=2, mode="bilinear")
    assert torch.equal(made.coarse[0], small + network.net(torch.cat([small, estimate], 1)))
    assert not torch.equal(made.coarse[0], small + network.net(torch.cat([small, small], 1)))


def test_images_of_a_batch_are_independent():
    network, blurred = trained_a_little(), torch.rand(2, 3, 40, 48)
    alone = torch.cat([network(one[None]).image for one in blurred])
    assert torch.allclose(network(blurred).image, alone, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channels": []}, r"channels: expected positive numbers, got \[\]"),
        ({"channels": [4, 0]}, r"channels: expected positive numbers, got \[4, 0\]"),
        ({"blocks": 0}, "blocks: expected at least 1, got 0"),
        ({"scales": 0}, "scales: expected at least 1, got 0"),
        ({"adversarial_weight": -1.0}, "weight: expected at least 0, got -1"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Deblurring(**arguments)


@pytest.fixture
def data(tmp_path):
    """Three batches of training crops, two validation images."""
    folder = write_noise(tmp_path / "images")
    sizes = {"crop_size": 32, "val_size": 32, "epoch_size": 6, "val_count": 2, "batch_size": 2, "frames": 3}
    return DeblurringData(folder=str(folder), held_out=["d"], **sizes)


def trainer(tmp_path, **options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    scores = PerceptualScores("embedded", data_range=(0, 1))
    defaults = {"max_epochs": 2, "log_every_n_steps": 1, "enable_checkpointing": False, "callbacks": [scores]}
    return Trainer(default_root_dir=tmp_path, **{**defaults, **quiet, **options})


def test_each_part_of_the_loss_counts_by_its_weight():
    torch.manual_seed(0)
    model = Deblurring(**TINY, pixel_weight=2.0, coarse_weight=3.0, loss_weight=0.5)
    model.setup("fit")
    blurred, sharp = torch.rand(2, 1, 3, 32, 32)
    made = model.network(blurred)
    losses = model.losses(made, sharp)
    assert set(losses) == TRAINED
    total = 2 * losses["train/l1"] + 3 * losses["train/coarse"] + losses["train/perceptual"]
    assert torch.allclose(losses["train/loss"], total)
    assert torch.allclose(losses["train/l1"], (blurred - sharp).abs().mean())
    small = [torch.nn.functional.avg_pool2d(image, 2) for image in (blurred, sharp)]
    assert torch.allclose(losses["train/coarse"], (small[0] - small[1]).abs().mean())
    model.perceptual.weight = 0.0
    assert set(model.losses(made, sharp)) == TRAINED - {"train/perceptual"}


@pytest.mark.parametrize("size", [(32, 32), (34, 47), (64, 33)])
def test_coarse_targets_are_in_place_at_any_size(size):
    model, sharp = Deblurring([4, 8], scales=3), torch.rand(1, 3, *size)
    model.setup("fit")
    made = model.network(sharp)  # the untrained network returns its input
    losses = model.losses(made, sharp)
    assert losses["train/coarse"].item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("adversarial", [{}, ADVERSARIAL], ids=["plain", "adversarial"])
def test_training_logs_scores_and_saves_only_its_networks(tmp_path, data, adversarial):
    model = Deblurring(**TINY, **adversarial, adversarial_start=1)
    fitted = trainer(tmp_path)
    fitted.fit(model, data)
    more = {"train/generator", "train/discriminator", "train/adaptive_weight"} if adversarial else set()
    assert set(fitted.callback_metrics) == SCORES | TRAINED | more
    assert not adversarial or fitted.callback_metrics["train/discriminator"] > 0
    fitted.save_checkpoint(tmp_path / "saved.ckpt")
    saved = torch.load(tmp_path / "saved.ckpt", weights_only=True)
    parts = {"network", "adversarial"} if adversarial else {"network"}
    assert {key.partition(".")[0] for key in saved["state_dict"]} == parts


def test_reloaded_model_is_the_same_and_needs_no_backbone(tmp_path, data):
    model = Deblurring(**{**TINY, "loss_net": "squeeze", "loss_weight": 0.5, "loss_calibrated": False})
    fitted = trainer(tmp_path, max_epochs=1)
    fitted.fit(model, data)
    fitted.save_checkpoint(tmp_path / "saved.ckpt")
    again = Deblurring.load_from_checkpoint(tmp_path / "saved.ckpt", weights_only=True)
    blurred = torch.rand(1, 3, 21, 24)
    assert torch.equal(again.eval()(blurred), model.eval()(blurred))
    assert dict(again.hparams) == dict(model.hparams)
    assert again.perceptual is None
    again.setup("fit")
    assert again.perceptual.net.net_type == "squeeze"
    assert not again.perceptual.net.calibrated


# 2026-11-21, pytorch_lightning/callbacks/model_checkpoint.py: the second run has a folder of its own.
@pytest.mark.filterwarnings("ignore:The dirpath has changed")
@pytest.mark.parametrize("adversarial", [{}, ADVERSARIAL], ids=["plain", "adversarial"])
def test_a_mid_epoch_resume_equals_an_uninterrupted_run(tmp_path, data, adversarial):
    options = {**TINY, "loss_weight": 0.0, **adversarial, "adversarial_start": 2}
    torch.manual_seed(0)
    start = Deblurring(**options).state_dict()
    ends = []
    for seed, path in ((1, None), (2, tmp_path / "1" / "middle.ckpt")):
        torch.manual_seed(seed)  # nothing may depend on it
        saving = [ModelCheckpoint(tmp_path / str(seed), "middle", every_n_train_steps=4, save_top_k=1)]
        model = Deblurring(**options)
        model.load_state_dict(start)
        fitted = trainer(tmp_path, callbacks=saving, enable_checkpointing=True, limit_val_batches=0)
        fitted.fit(model, data, ckpt_path=path)
        assert fitted.global_step == 6
        ends.append(model.state_dict())
    assert torch.load(tmp_path / "1" / "middle.ckpt", weights_only=True)["global_step"] == 4
    assert all(torch.equal(one, two) for one, two in zip(*(end.values() for end in ends), strict=True))
    assert not torch.equal(ends[0]["network.net.head.weight"], start["network.net.head.weight"])


def test_untrained_validation_is_that_of_the_blurred_images(tmp_path, data):
    (scores,) = trainer(tmp_path).validate(Deblurring(**TINY), data, verbose=False)
    assert set(scores) == SCORES
    blurred, sharp = (torch.stack([data.val_data[number][part] for number in range(2)]) for part in (0, 1))
    expected = LPIPS("embedded")(blurred, sharp, data_range=(0, 1)).mean()
    assert scores["val/lpips"] == pytest.approx(float(expected), rel=1e-3)
    assert scores["val/lpips"] > 0.01


def test_blurred_images_of_any_size_are_deblurred(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_noise("blurred", ("a", "b/c"), 37, 53)
    quiet = "--trainer.accelerator=cpu --trainer.enable_progress_bar=false --model.channels=[4,4] --model.scales=2"
    main(["predict", "--data.predict_folder=blurred", "--images.out=made", *quiet.split()])
    for name in ("a", "b/c"):  # of a network that nobody trained
        assert torch.equal(read_image(f"made/{name}.png"), read_image(f"blurred/{name}.png"))
    with Image.open("made/a.png") as image:
        assert image.size == (53, 37)


def test_a_wrong_value_is_one_line_with_its_option(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_:
        main(["fit", "--data.frames=x"])
    assert exit_.value.code == 2
    assert capsys.readouterr().err == "lpips-lightning: --data.frames: expected an integer, got 'x'\n"


@pytest.mark.skipif(
    not MIDDLEBURY.is_dir(), reason="LPIPS_LIGHTNING_DATA does not name a folder with images/Middlebury"
)
def test_middlebury_frames_are_clips(tmp_path):
    data = DeblurringData(val_layout="clips", val_folder=str(MIDDLEBURY), frames=3)
    with pytest.warns(UserWarning, match="2 of 5 folders .* left out, with fewer than 3 images"):
        (found,) = trainer(tmp_path).test(Deblurring(**TINY), data, verbose=False)
    assert [one.name for one in data.val_data.files[:2]] == ["Grove3/frame08", "Grove3/frame11"]
    assert 0.02 < found["test/lpips"] < 0.5
