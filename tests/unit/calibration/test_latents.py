"""A distance of latents: a backbone without a range, calibrated on judged latents, in metric and callbacks."""

from __future__ import annotations

import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader

from lpips_lightning import LPIPS, PerceptualLoss
from lpips_lightning.backbones.custom import from_module
from lpips_lightning.calibration.fit_pooled import fit_lin
from lpips_lightning.calibration.model import TrainableLPIPS, random_calibration
from lpips_lightning.calibration.module import PerceptualCalibration
from lpips_lightning.calibration.pooled import pool
from lpips_lightning.callbacks.calibration_file import CalibrationFile
from lpips_lightning.callbacks.perceptual_scores import PerceptualScores
from lpips_lightning.callbacks.sample_gallery import SampleGallery
from lpips_lightning.data import TensorTriplets
from lpips_lightning.functional.judgments import two_afc_score
from lpips_lightning.images import RangeError

pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),  # a few rows
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
    pytest.mark.filterwarnings(r"ignore:Found \d+ module\(s\) in eval mode"),  # mode lin
]


class Latents(nn.Module):
    """A trunk like VGG's with group normalization, as users write one for latents."""

    def __init__(self, channels):
        super().__init__()
        parts, width = [], channels
        for stage, wider in enumerate((8, 16)):
            parts += [nn.MaxPool2d(2)] * (stage > 0)
            parts += [nn.Conv2d(width, wider, 3, padding=1), nn.GroupNorm(4, wider), nn.ReLU()]
            width = wider
        self.features = nn.Sequential(*parts)

    def forward(self, latents):
        return self.features(latents)


LAYERS = {"relu1": "features.2", "relu2": "features.6"}


def latent_backbone(channels=4):
    torch.manual_seed(0)
    return from_module(Latents(channels), LAYERS, name="latent", input_channels=channels, has_range=False)


def judged(count, backbone, scale=5.0, seed=0):
    """Triplets judged by one channel of each layer, on latents far outside [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    hidden = {layer: torch.zeros(width) for layer, width in zip(LAYERS, backbone.channels, strict=True)}
    for weight in hidden.values():
        weight[1] = 1
    shape = (3, count, backbone.input_channels, 16, 16)
    latents = torch.randn(shape, generator=generator) * torch.tensor([0.0, 0.5, 0.5]).view(3, 1, 1, 1, 1)
    ref = scale * torch.randn(shape[1:], generator=generator)
    ref, p0, p1 = (ref + scale * part for part in latents)
    net = LPIPS(backbone, calibration=hidden)
    judge = (net(ref, p1) < net(ref, p0)).float()
    return TensorTriplets(ref, p0, p1, judge)


def quiet(tmp_path, **options):
    silent = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return Trainer(default_root_dir=tmp_path, enable_checkpointing=False, **silent, **options)


@pytest.mark.parametrize("channels", [4, 16])
def test_a_calibration_of_latents_learns_and_its_file_gives_the_distance(tmp_path, channels):
    backbone = latent_backbone(channels)
    data = judged(80, backbone)
    model = PerceptualCalibration(backbone, lr=0.02, dropout=0.0, constant_epochs=10, decay_epochs=0)
    writer = CalibrationFile(str(tmp_path / "latent.safetensors"))
    trainer = quiet(tmp_path, max_epochs=10, callbacks=[writer])
    trainer.validate(model, DataLoader(data, 40), verbose=False)
    before = model.calibration_scores["0"]
    trainer.fit(model, DataLoader(data, 10), DataLoader(data, 40))
    assert model.calibration_scores["0"] > before + 0.05
    net = LPIPS(backbone, calibration=tmp_path / "latent.safetensors")
    assert "lin custom latent.safetensors" in net.fingerprint
    parts = data.tensors
    assert torch.allclose(net(parts["ref"], parts["p0"]), model.eval()(parts["ref"], parts["p0"]).detach(), rtol=1e-5)
    score = two_afc_score(net(parts["ref"], parts["p0"]), net(parts["ref"], parts["p1"]), parts["judge"])
    assert float(score) == pytest.approx(model.calibration_scores["0"])
    with pytest.raises(ValueError, match="rescale_to: expected None for 'latent', which has no official calibration"):
        model.export(tmp_path / "other.safetensors", "official", [(parts["ref"], parts["p0"])])


def test_pooled_latents_give_the_distances_of_the_network():
    backbone = latent_backbone()
    data, network = judged(60, backbone), TrainableLPIPS(backbone)
    pooled, start = pool(network, data), random_calibration(backbone, 0)
    found = fit_lin(pooled, start, held_out=pooled, lr=0.02, batch_size=10)
    assert found.scores[-1] > found.scores[0]
    net = LPIPS(backbone, calibration=found.calibration)
    expected = [net(data.tensors["ref"], data.tensors[name]) for name in ("p0", "p1")]
    for one, other in zip(pooled.distances(found.calibration), expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-4)


def test_triplets_of_other_values_or_channels_are_refused(tmp_path):
    data = judged(4, latent_backbone())
    model = PerceptualCalibration(latent_backbone(8))
    with pytest.raises(ValueError, match=r"ref: expected 8 channels \(N, 8, H, W\), got shape \(4, 4, 16, 16\)"):
        quiet(tmp_path, max_epochs=1).fit(model, DataLoader(data, 4))
    data.tensors["p1"][0] = float("nan")
    with pytest.raises(RangeError, match="p1: expected finite values, got NaN"):
        quiet(tmp_path, max_epochs=1).fit(PerceptualCalibration(latent_backbone()), DataLoader(data, 4))


def test_a_set_of_tensors_says_what_is_wrong_with_it():
    ref, judge = torch.zeros(3, 4, 8, 8), torch.zeros(3)
    for given, error, message in (
        ((ref, ref, ref.long(), judge), TypeError, "p1: expected a floating-point tensor, got torch.int64"),
        ((ref, ref, [0.0], judge), TypeError, "p1: expected a floating-point tensor, got list"),
        ((ref, ref[:2], ref, judge), ValueError, r"p0: expected shape \(3, 4, 8, 8\), as of ref, got \(2, 4, 8, 8\)"),
        ((ref, ref, ref, judge + 2), ValueError, r"judge: expected fractions in \[0, 1\], got 2 to 2"),
        ((ref[:0], ref[:0], ref[:0], judge[:0]), ValueError, "ref: expected images"),
    ):
        with pytest.raises(error, match=message):
            TensorTriplets(*given)


class Decoder(LightningModule):
    """A model of latents, whose validation step returns them."""

    def __init__(self):
        super().__init__()
        self.body = nn.Conv2d(4, 4, 1)
        self.loss = PerceptualLoss(latent_backbone(), data_range=None, calibrated=False)

    def training_step(self, batch, batch_idx):
        return self.loss(self.body(batch), batch)

    def validation_step(self, batch, batch_idx):
        return {"pred": self.body(batch), "target": batch}

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def test_a_model_of_latents_trains_and_is_scored(tmp_path):
    latents = 5 * torch.randn(4, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    scores = PerceptualScores(latent_backbone(), data_range=None, metrics=["lpips"], calibrated=False)
    assert scores.fingerprint.endswith("range none")
    model, trainer = Decoder(), quiet(tmp_path, max_epochs=1, callbacks=[scores], num_sanity_val_steps=0)
    with pytest.warns(UserWarning, match="is biased"):
        trainer.fit(model, DataLoader(latents, 2), DataLoader(latents, 2))
    expected = LPIPS(latent_backbone(), calibrated=False)(model.body(latents).detach(), latents).mean()
    assert float(trainer.callback_metrics["val/lpips"]) == pytest.approx(float(expected), rel=1e-5)


def test_scores_and_pictures_that_latents_do_not_have_are_refused():
    backbone = latent_backbone()
    with pytest.raises(ValueError, match=r"metrics: expected \['lpips'\] for a network of 4 input channels without a"):
        PerceptualScores(backbone, data_range=None, calibrated=False)
    with pytest.raises(ValueError, match="clamp: expected False for a network whose input has no range"):
        PerceptualScores(backbone, data_range=None, metrics=["lpips"], clamp=True, calibrated=False)
    with pytest.raises(ValueError, match="net_type: expected a network of RGB images on a range, got one of 4 input"):
        SampleGallery(backbone, data_range=None, calibrated=False)
    ranged = from_module(Latents(2), LAYERS, input_channels=2)
    scores = PerceptualScores(ranged, data_range=(0, 1), calibrated=False)
    found = scores.score(torch.zeros(3, 2, 16, 16), torch.full((3, 2, 16, 16), 0.1))
    assert found[:, 1].tolist() == pytest.approx([20.0] * 3)
    with pytest.raises(
        ValueError, match=r"metrics: expected \['psnr'\] for a network of 2 input channels, got 'ssim_y'"
    ):
        PerceptualScores(ranged, data_range=(0, 1), metrics=["psnr", "ssim_y"], calibrated=False)
