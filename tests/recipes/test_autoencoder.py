"""The autoencoder recipe: bottlenecks, any sizes, average of the weights, discriminator, resuming, command line."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import pytorch_lightning
import torch
import torch.nn.functional as F
from packaging.version import Version
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from small_data import write_noise
from torch.distributions import Normal, kl_divergence

from lpips_lightning.callbacks import PerceptualScores
from lpips_lightning.io.image_files import read_image
from lpips_lightning.recipes import autoencoder_network
from lpips_lightning.recipes.autoencoder import Autoencoder, CodePerplexity, LatentStd, main
from lpips_lightning.recipes.autoencoder_data import AutoencoderData
from lpips_lightning.recipes.autoencoder_network import GaussianBottleneck, VectorQuantizer
from lpips_lightning.recipes.interruption import RandomNumbers

KINDS = ("kl", "vq")
DISCRIMINATOR = {"adversarial_weight": 0.5, "adversarial_start": 2}
TINY = {
    "channels": [4, 8],
    "latent_channels": 3,
    "codes": 16,
    "loss_weights": "random",
    "warmup_steps": 0,
    "discriminator_layers": 1,
    "discriminator_channels": 4,
    "adversarial_weight": 0.0,
}
pytestmark = [
    # 2026-11-28, pytorch_lightning/trainer/connectors/data_connector.py: right for large data, noise for five images.
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    # 2026-11-28, pytorch_lightning/callbacks/model_checkpoint.py: the second run has a folder of its own.
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
]
every_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture
def data(tmp_path):
    """Three batches of training crops; two held-out images of 49 x 70 pixels, and three crops of them."""
    folder = write_noise(tmp_path / "images")
    crops = {"crop_size": 32, "val_crop_size": 32, "val_size": 3, "epoch_size": 6, "batch_size": 2}
    return AutoencoderData(str(folder), ["d", "more/e"], **crops)


def trainer(tmp_path, **options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    defaults = {"max_epochs": 2, "log_every_n_steps": 1, "enable_checkpointing": False, "gradient_clip_val": 1.0}
    return Trainer(default_root_dir=tmp_path, **{**defaults, **quiet, **options})


def tiny(kind="kl", **options):
    return Autoencoder(**{"latent": kind, **TINY, **options})


@every_kind
@pytest.mark.parametrize("levels", [2, 4])
def test_latents_are_smaller_by_the_factor_and_images_keep_their_size(kind, levels):
    model, factor = tiny(kind, channels=[4] * levels, latent_channels=5), 2 ** (levels - 1)
    for height, width in ((16, 24), (17, 31), (3, 9), (1, 1)):
        images = torch.rand(2, 3, height, width)
        latents = model.encode(images)
        assert latents.shape == (2, 5, -(-height // factor), -(-width // factor))
        decoded = model.decode(latents)
        assert decoded.shape == (2, 3, latents.shape[2] * factor, latents.shape[3] * factor)
        assert torch.equal(model(images), decoded[..., :height, :width])
        assert 0 <= decoded.min() <= decoded.max() <= 1


def test_added_rows_and_columns_repeat_the_last_ones():
    model, images = tiny(channels=[4, 4, 4]), torch.rand(1, 3, 14, 15)
    larger = torch.cat([images, images[..., -1:]], -1)
    larger = torch.cat([larger, larger[..., -1:, :], larger[..., -1:, :]], -2)
    assert torch.equal(model.encode(images), model.encode(larger))


@every_kind
def test_crops_of_any_size_are_trained_on(kind):
    model, images = tiny(kind, channels=[4, 4, 4]), torch.rand(2, 3, 14, 15)
    larger = torch.nn.functional.pad(images, (0, 1, 0, 2), mode="replicate")
    torch.manual_seed(0)
    made = model.network(images).images
    torch.manual_seed(0)
    assert torch.equal(made, model.network(larger).images[..., :14, :15])
    assert bool(model.losses(images)["train/loss"].isfinite())


def test_latents_are_the_mean_of_the_distribution_in_any_mode():
    model, images = tiny(), torch.rand(2, 3, 16, 16)
    mean = model.network.encoder(2 * images - 1).chunk(2, 1)[0]
    for mode in (True, False):
        assert torch.equal(model.train(mode).encode(images), mean)
    made = [model.network(images).latent.values for _ in range(2)]
    assert (made[0] - made[1]).abs().mean() > 0.1  # samples, with a standard deviation of about 1


def test_the_kl_divergence_and_the_samples_are_those_of_torch_distributions():
    moments = torch.randn(4, 6, 8, 8)
    latent = GaussianBottleneck(3, kl_weight=0.5)(moments)
    mean, log_variance = moments.chunk(2, 1)
    normal = Normal(mean, (0.5 * log_variance).exp())
    expected = kl_divergence(normal, Normal(0.0, 1.0)).mean()
    torch.testing.assert_close(latent.terms["kl"], expected)
    torch.testing.assert_close(latent.loss, 0.5 * expected)
    standard = (latent.values - normal.mean) / normal.stddev
    assert float(standard.mean()) == pytest.approx(0, abs=0.15)
    assert float(standard.std()) == pytest.approx(1, abs=0.1)


def test_extreme_moments_stay_finite():
    moments = torch.cat([torch.full((1, 3, 2, 2), 9.0), torch.full((1, 3, 2, 2), 500.0)], 1).requires_grad_()
    latent = GaussianBottleneck(3, kl_weight=1.0)(moments)
    (latent.loss + latent.values.sum()).backward()
    assert latent.values.isfinite().all() and moments.grad.isfinite().all()


def test_codes_are_the_nearest_ones_and_their_gradient_goes_straight_through():
    torch.manual_seed(0)
    quantizer, features = VectorQuantizer(3, codes=16), torch.randn(2, 3, 4, 5, requires_grad=True)
    latent = quantizer(features)
    unit, codes = F.normalize(features, dim=1).movedim(1, -1), F.normalize(quantizer.codebook)
    distances = (unit[..., None, :] - codes).norm(dim=-1)
    indices = distances.argmin(-1)
    torch.testing.assert_close(latent.values, codes[indices].movedim(-1, 1))
    assert torch.equal(quantizer.nearest(features), indices)
    assert torch.equal(quantizer.nearest(latent.values), indices)
    torch.testing.assert_close(quantizer.mode(features), latent.values)
    torch.testing.assert_close(latent.loss, 1.25 * distances.min(-1).values.square().mean())
    counts = indices.flatten().bincount(minlength=16) / indices.numel()
    entropy = -(counts[counts > 0] * counts[counts > 0].log()).sum()
    torch.testing.assert_close(latent.terms["perplexity"], entropy.exp())
    direction = torch.randn_like(latent.values)
    (made,) = torch.autograd.grad((latent.values * direction).sum(), features)
    (expected,) = torch.autograd.grad((F.normalize(features, dim=1) * direction).sum(), features)
    torch.testing.assert_close(made, expected)


@pytest.mark.parametrize("most", [1, 50])
def test_codes_of_large_images_are_searched_in_parts(most, monkeypatch):
    quantizer, latents = VectorQuantizer(3, 10), torch.randn(2, 3, 4, 5)
    expected = quantizer.nearest(latents)
    monkeypatch.setattr(autoencoder_network, "_MOST_SCORES", most)
    assert expected.shape == (2, 4, 5)
    assert torch.equal(quantizer.nearest(latents), expected)


def test_the_codebook_moves_to_the_latents_and_the_latents_to_their_codes():
    quantizer, features = VectorQuantizer(3, 8, commitment_weight=0.0), torch.randn(2, 3, 4, 4, requires_grad=True)
    quantizer(features).loss.backward()
    assert not features.grad.any() and quantizer.codebook.grad.any()
    quantizer = VectorQuantizer(3, 8, commitment_weight=1.0, weight=2.0)
    quantizer.codebook.requires_grad_(False)
    quantizer(features).loss.backward()
    assert features.grad.any()


def test_the_std_of_latents_and_the_perplexity_are_over_all_updates():
    parts, std, used = torch.randn(3, 2, 4, 5, 6) + 2, LatentStd(), CodePerplexity(6)
    for part in parts:
        std.update(part)
    assert float(std.compute()) == pytest.approx(float(parts.std(correction=0)), rel=1e-5)
    for indices in ([0, 0], [1, 1], [2, 3]):
        used.update(torch.tensor(indices))
    entropy = -(
        2 * torch.tensor(1 / 3) * torch.tensor(1 / 3).log() + 2 * torch.tensor(1 / 6) * torch.tensor(1 / 6).log()
    )
    assert float(used.compute()) == pytest.approx(float(entropy.exp()), rel=1e-5)


@pytest.mark.parametrize("pixel_loss", ["l1", "l2"])
def test_the_loss_is_the_weighted_sum_of_pixels_lpips_and_bottleneck(pixel_loss):
    model = tiny("vq", pixel_loss=pixel_loss, pixel_weight=2.0, loss_weight=0.7)  # VQ draws no random numbers
    model.setup("fit")
    images = torch.rand(2, 3, 32, 32)
    losses = {name: float(value.detach()) for name, value in model.losses(images).items()}
    made = model.network(images)
    error = made.images - images
    assert losses[f"train/{pixel_loss}"] == pytest.approx(
        float((error.abs() if pixel_loss == "l1" else error.square()).mean().detach()), rel=1e-5
    )
    distance = float(model.perceptual.net(made.images.detach().clamp(0, 1), images, (0, 1)).mean())
    assert losses["train/perceptual"] == pytest.approx(0.7 * distance, rel=1e-4)
    total = 2 * losses[f"train/{pixel_loss}"] + losses["train/perceptual"] + float(made.latent.loss.detach())
    assert losses["train/loss"] == pytest.approx(total, rel=1e-5)


@every_kind
def test_every_parameter_gets_a_gradient(kind):
    model = tiny(kind, loss_weight=0.0)
    model.losses(torch.rand(2, 3, 32, 32))["train/loss"].backward()
    gradients = {name: value.grad for name, value in model.network.named_parameters()}
    assert all(value is not None and value.isfinite().all() and value.any() for value in gradients.values())


class Averages(Callback):
    """Keeps an exponential moving average by hand, over optimizer steps."""

    def __init__(self, decay):
        self.decay, self.expected, self.steps = decay, None, 0

    def on_before_zero_grad(self, trainer, model, optimizer):
        assert {id(one) for group in optimizer.param_groups for one in group["params"]} == {
            id(one) for one in model.parameters() if one.requires_grad
        }

    def on_train_batch_end(self, trainer, model, outputs, batch, batch_idx):
        if trainer.global_step == self.steps:
            return
        self.steps = trainer.global_step
        now = [one.detach().clone() for one in model.network.parameters()]
        old = self.expected or now
        self.expected = [self.decay * one + (1 - self.decay) * two for one, two in zip(old, now, strict=True)]


@pytest.mark.parametrize("batches", [1, 2])
def test_the_average_of_the_weights_is_that_by_hand_and_is_validated(tmp_path, data, batches):
    average = Averages(0.9)
    model = tiny(loss_weight=0.0, ema_decay=0.9, lr=1e-2, **DISCRIMINATOR)
    trainer(tmp_path, callbacks=[average], accumulate_grad_batches=batches).fit(model, data)
    assert average.steps == {1: 6, 2: 4}[batches]
    for one, two, network in zip(
        average.expected, model.ema.module.parameters(), model.network.parameters(), strict=True
    ):
        torch.testing.assert_close(two, one, rtol=1e-5, atol=1e-6)
        assert not two.requires_grad
        assert network.requires_grad
    assert any(
        not torch.allclose(*pair, atol=1e-4) for pair in zip(average.expected, model.network.parameters(), strict=True)
    )
    images = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        expected = model.ema.module.decode(model.ema.module.encode(images)).clamp(0, 1)
        assert torch.equal(model(images), expected)
        plain = model.network.decode(model.network.encode(images)).clamp(0, 1)
        assert not torch.allclose(plain, expected, atol=1e-4)


def test_without_decay_there_is_no_average():
    model = tiny(ema_decay=0.0)
    assert model.ema is None and model.averaged is model.network
    assert not [name for name in model.state_dict() if name.startswith("ema")]


@every_kind
def test_a_mid_epoch_resume_equals_an_uninterrupted_run(tmp_path, data, kind):
    torch.manual_seed(0)
    options = {"loss_weight": 0.0, "lr": 1e-2, **DISCRIMINATOR}
    start, ends = tiny(kind, **options).state_dict(), []
    for seed, path in ((1, None), (2, tmp_path / "1" / "middle.ckpt")):
        torch.manual_seed(seed)  # nothing may depend on it
        saving = [ModelCheckpoint(tmp_path / str(seed), "middle", every_n_train_steps=4, save_top_k=1), RandomNumbers()]
        model = tiny(kind, **options)
        model.load_state_dict(start)
        fitted = trainer(tmp_path, callbacks=saving, enable_checkpointing=True, limit_val_batches=0)
        fitted.fit(model, data, ckpt_path=path)
        assert fitted.global_step == 6
        ends.append(model.state_dict())
    assert {name.partition(".")[0] for name in ends[0]} == {"network", "ema", "adversarial"}
    assert int(ends[1]["ema.n_averaged"]) == 6
    assert all(torch.equal(one, two) for one, two in zip(*(end.values() for end in ends), strict=True))
    changed = [name for name in start if not torch.equal(start[name], ends[0][name])]
    assert {"network.encoder.0.weight", "ema.module.encoder.0.weight"} < set(changed)
    assert "adversarial.discriminator.0.weight" in changed


class Draws(Callback):
    """The noise of a step depends on the step alone."""

    def on_train_batch_start(self, trainer, model, batch, batch_idx):
        torch.manual_seed(trainer.global_step)


@every_kind
def test_a_few_images_are_learned(kind):
    torch.manual_seed(0)
    model = tiny(kind, channels=[8, 16], latent_channels=4, codes=64, loss_weight=0.0, kl_weight=1e-6)
    images = F.interpolate(torch.rand(4, 3, 4, 4), scale_factor=4, mode="bilinear")
    optimizer, errors = torch.optim.Adam(model.network.parameters(), 5e-3), []
    for _ in range(40):
        losses = model.losses(images)
        optimizer.zero_grad()
        losses["train/loss"].backward()
        optimizer.step()
        errors.append(float(losses["train/l1"].detach()))
    assert errors[-1] < errors[0] / 2


def test_training_logs_losses_and_scores_and_saves_no_backbone(tmp_path, data):
    model = tiny("vq", loss_weight=0.5, **DISCRIMINATOR)
    scores = PerceptualScores("embedded", data_range=(0, 1))
    fitted = trainer(tmp_path, callbacks=[scores])
    fitted.fit(model, data)
    terms = {"loss", "l1", "perceptual", "quantization", "perplexity", "generator", "discriminator", "adaptive_weight"}
    own = {"val/latent_std", "val/perplexity", "val/psnr", "val/ssim", "val/lpips"}
    assert set(fitted.callback_metrics) == {f"train/{name}" for name in terms} | own
    assert fitted.callback_metrics["train/adaptive_weight"] > 0
    fitted.save_checkpoint(tmp_path / "saved.ckpt")
    saved = torch.load(tmp_path / "saved.ckpt", weights_only=True)
    assert {name.partition(".")[0] for name in saved["state_dict"]} == {"network", "ema", "adversarial"}


def test_scores_are_over_all_validation_crops(tmp_path, data):
    model = tiny("vq")
    data.setup("fit")
    latents = torch.cat([model.encode(images) for images, _ in data.val_dataloader()])
    assert len(latents) == 3
    for _ in range(2):  # and are forgotten from one to the next
        (found,) = trainer(tmp_path).validate(model, data, verbose=False)
    assert found["val/latent_std"] == pytest.approx(float(latents.std(correction=0)), rel=1e-5)
    counts = model.averaged.bottleneck.nearest(latents).flatten().bincount()
    entropy = torch.special.entr(counts / counts.sum()).sum()
    assert found["val/perplexity"] == pytest.approx(float(entropy.exp()), rel=1e-5)


@every_kind
def test_bfloat16_agrees_with_float32_and_trains(tmp_path, data, kind):
    model = tiny(kind, **DISCRIMINATOR)
    (whole,) = trainer(tmp_path, callbacks=scores()).validate(model, data, verbose=False)
    half = trainer(tmp_path, callbacks=scores(), precision="bf16-mixed")
    (found,) = half.validate(model, data, verbose=False)
    assert found["val/psnr"] == pytest.approx(whole["val/psnr"], rel=0.02)
    half.fit(model, data)
    assert all(value.isfinite() for value in half.callback_metrics.values())
    assert all(one.isfinite().all() for one in model.state_dict().values())


def scores():
    return [PerceptualScores(data_range=(0, 1), metrics=["psnr"])]


class Norms(Callback):
    """Norms of the gradients of network and discriminator, after clipping."""

    def __init__(self):
        self.found = []

    def on_before_zero_grad(self, trainer, model, optimizer):
        groups = (group["params"] for group in optimizer.param_groups)
        parts = [[one.grad for one in group if one.grad is not None] for group in groups]
        if all(parts):
            self.found.append([float(torch.cat([one.flatten() for one in part]).norm()) for part in parts])


def test_gradients_of_network_and_discriminator_are_clipped_by_themselves(tmp_path, data):
    norms = Norms()
    model = tiny(loss_weight=0.0, **{**DISCRIMINATOR, "adversarial_start": 0})
    trainer(tmp_path, callbacks=[norms], gradient_clip_val=1e-3).fit(model, data)
    assert len(norms.found) >= 4
    assert all(one == pytest.approx([1e-3, 1e-3], rel=1e-2) for one in norms.found)


def test_before_its_start_the_discriminator_changes_nothing(tmp_path, data):
    ends = []
    for options in ({}, {**DISCRIMINATOR, "adversarial_start": 100}):
        torch.manual_seed(0)
        model = tiny(loss_weight=0.0, **options)
        trainer(tmp_path, max_epochs=1, callbacks=[Draws()]).fit(model, data)
        ends.append(model.network.state_dict())
    assert all(torch.equal(one, two) for one, two in zip(*(end.values() for end in ends), strict=True))


@pytest.mark.parametrize("without", [{"adversarial_weight": 0.0}, {"ema_decay": 0.0}])
def test_a_reloaded_model_is_the_same_and_needs_no_backbone(tmp_path, data, without):
    model = tiny("vq", loss_weight=0.5, **DISCRIMINATOR)
    fitted = trainer(tmp_path, max_epochs=1)
    fitted.fit(model, data)
    fitted.save_checkpoint(tmp_path / "saved.ckpt")
    again = Autoencoder.load_from_checkpoint(tmp_path / "saved.ckpt", weights_only=True)
    images = torch.rand(1, 3, 21, 30)
    assert torch.equal(again(images), model(images))
    assert dict(again.hparams) == dict(model.hparams)
    assert again.perceptual is None
    other = Autoencoder.load_from_checkpoint(tmp_path / "saved.ckpt", weights_only=True, **without)
    average = "ema_decay" not in without
    assert torch.equal(other(images), model(images)) is average
    assert torch.equal(other.network.encoder[0].weight, model.network.encoder[0].weight)


def test_crops_are_of_the_training_images_and_validation_crops_are_fixed(data):
    data.setup("fit")
    images, _ = next(iter(data.train_dataloader()))
    assert images.shape == (2, 3, 32, 32) and images.dtype == torch.float32
    assert 0 <= images.min() < images.max() <= 1
    assert {data.train_data[index][1] for index in range(len(data.train_data))} == {"a", "b", "c"}
    assert not torch.equal(data.train_data[0][0], data.train_data[0][0])
    assert torch.equal(data.val_data[0][0], data.val_data[0][0])
    assert [name for _, names in data.val_dataloader() for name in names] == ["d", "more/e", "d"]
    data.val_crop_size = None
    data.setup("validate")
    assert [tuple(image.shape) for image, _ in data.val_dataloader()] == [(1, 3, 49, 70)] * 2


def test_bundled_photographs_are_the_default():
    train, held_out = AutoencoderData().split()
    assert set(held_out) == {"astronaut"}
    assert {"chelsea", "coffee"} < set(train)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"crop_size": 0}, "crop_size: expected at least 1, got 0"),
        ({"val_crop_size": 0}, "val_crop_size: expected at least 1, got 0"),
        ({"val_size": 0}, "val_size: expected at least 1, got 0"),
        ({"epoch_size": 0}, "epoch_size: expected at least 1, got 0"),
        ({"batch_size": 0}, "batch_size: expected at least 1, got 0"),
        ({"zoom": 0.5}, "zoom: expected at least 1, got 0.5"),
        ({"zoom": float("nan")}, "zoom: expected at least 1, got nan"),
    ],
)
def test_bad_data_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        AutoencoderData(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"latent": "vae"}, "latent: expected one of .*'kl', 'vq'.*, got 'vae'"),
        ({"pixel_loss": "l3"}, "pixel_loss: expected one of .*'l1', 'l2'.*, got 'l3'"),
        ({"channels": [4]}, "channels: expected two levels or more, of at least 1, got \\[4\\]"),
        ({"channels": [4, 0]}, "channels: expected two levels or more, of at least 1, got \\[4, 0\\]"),
        ({"blocks": 0}, "blocks: expected at least 1, got 0"),
        ({"latent_channels": 0}, "latent_channels: expected at least 1, got 0"),
        ({"codes": 1}, "codes: expected at least 2, got 1"),
        ({"kl_weight": -1.0}, "kl_weight: expected at least 0, got -1.0"),
        ({"ema_decay": 1.0}, "ema_decay: expected a number in \\[0, 1\\), got 1.0"),
        ({"adversarial_weight": -0.5}, "weight: expected at least 0, got -0.5"),
        ({"adversarial_weight": 0.5, "discriminator_layers": 0}, "layers: expected at least 1, got 0"),
    ],
)
def test_bad_model_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        tiny(**arguments)


@pytest.mark.slow  # each of it is tried elsewhere
@every_kind
def test_command_line_fits_tests_and_writes_images_of_any_size(tmp_path, kind, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_noise("images")
    model = [f"--model.{name}={value}".replace(" ", "") for name, value in {**TINY, "loss_weight": 0.5}.items()]
    images = "--data.folder=images --data.held_out=[d] --data.crop_size=32 --data.val_crop_size=32 --data.val_size=2"
    quiet = "--data.epoch_size=4 --data.batch_size=2 --trainer.accelerator=cpu --trainer.enable_progress_bar=false"
    line = [*model, f"--model.latent={kind}", "--scores.weights=random", *f"{images} {quiet}".split()]
    main(["fit", *line, "--trainer.max_epochs=1", "--trainer.log_every_n_steps=1"])
    version = tmp_path / "outputs" / "autoencoder" / "version_0"
    rows = list(csv.DictReader((version / "metrics.csv").read_text().splitlines()))
    assert {"val/lpips", "val/psnr", "val/ssim", "val/latent_std"} < set(rows[0])
    assert ("val/perplexity" in rows[0]) is (kind == "vq")
    assert list(version.rglob("val/gallery/worst_1_step_*.png"))
    checkpoint = f"--ckpt_path={version / 'checkpoints' / 'last.ckpt'}"
    main(["test", *line, checkpoint])
    assert "test/latent_std" in capsys.readouterr().out
    write_noise("small", ("one", "more/two"), height=5, width=3)
    write_noise("small", ("wide",), height=20, width=61)
    # No option of the model: sizes and networks come from the checkpoint, as pytorch-lightning has it since 2.6.
    model = [] if Version(pytorch_lightning.__version__) >= Version("2.6") else line
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu", "--trainer.logger=false"]
    main(["predict", checkpoint, "--data.predict_folder=small", "--images.out=made", *quiet, *model])
    sizes = {str(path.relative_to("made")): tuple(read_image(path).shape) for path in Path("made").rglob("*.png")}
    assert sizes == {"one.png": (3, 5, 3), "more/two.png": (3, 5, 3), "wide.png": (3, 20, 61)}


def test_the_yaml_of_vq_is_a_configuration_and_differs_in_the_latents(tmp_path, monkeypatch, capsys):
    from lpips_lightning import recipes

    file = Path(recipes.__file__).parent / "autoencoder_vq.yaml"
    with pytest.raises(SystemExit):
        main(["fit", "--config", str(file), "--print_config"])
    printed = capsys.readouterr().out
    assert "latent: vq" in printed and "name: autoencoder_vq" in printed
