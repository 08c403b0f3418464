"""Our classes in the Trainers of both Lightning packages, in any order of imports."""

from __future__ import annotations

import inspect
import sys
from importlib import import_module

import boring_module as boring
import forked_python
import pytest
import pytorch_lightning
import torch
import toy_judgments as judged
from lightning_utilities.core.overrides import is_overridden

from lpips_lightning import LearnedPerceptualImagePatchSimilarity, PerceptualLoss, _lightning
from lpips_lightning.calibration import PerceptualCalibration
from lpips_lightning.callbacks import PerceptualScores, SampleGallery
from lpips_lightning.callbacks.image_writer import ImageWriter
from lpips_lightning.io import AtomicCheckpointIO

unified = pytest.importorskip("lightning.pytorch")
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(many workers|dirpath|exists and is not empty|in eval mode|max_epochs=2)"
)
PACKAGES = {"pytorch_lightning": pytorch_lightning, "lightning": unified}


@pytest.fixture(params=PACKAGES)
def package(request):
    return PACKAGES[request.param]


def calibrated(folder, package, **options):
    """A calibration after two epochs, and its Trainer."""
    data = judged.triplets(8)
    checkpoint = package.callbacks.ModelCheckpoint(folder, save_last=True)
    trainer = boring.trainer(
        folder, [checkpoint], package, plugins=[AtomicCheckpointIO()], enable_checkpointing=True, num_sanity_val_steps=0
    )
    model = PerceptualCalibration("embedded", lr=1e-3, constant_epochs=1, decay_epochs=1)
    trainer.fit(model, datamodule=judged.DataModule(data, [data.part(0, 4)], batch_size=4), **options)
    return trainer, model


def test_either_trainer_fits_tests_and_resumes_a_calibration(tmp_path, package):
    trainer, model = calibrated(tmp_path, package)
    assert trainer.global_step == 4 and type(trainer.strategy.checkpoint_io) is AtomicCheckpointIO
    restored = PerceptualCalibration.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    assert all(torch.equal(value, model.calibration[name]) for name, value in restored.calibration.items())
    resumed, _ = calibrated(tmp_path, package, ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert resumed.global_step == 4
    scores = trainer.validate(restored, datamodule=judged.DataModule(val=[judged.triplets(4)]))
    assert scores and all(0 <= score <= 1 for score in scores[0].values())


def test_both_trainers_calibrate_alike(tmp_path):
    found = [calibrated(tmp_path / name, package)[1].calibration for name, package in PACKAGES.items()]
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


def test_callbacks_run_in_either_trainer_and_keep_their_state(tmp_path, package):
    class Model(package.LightningModule):
        def __init__(self):
            super().__init__()
            self.inner = boring.Boring()
            self.forward, self.training_step = self.inner.forward, self.inner.training_step
            self.validation_step = self.inner.validation_step

        def predict_step(self, batch, batch_idx):
            return {"pred": self(batch[0]), "name": ["a", "b"][: len(batch[0])]}

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.01)

    callbacks = [PerceptualScores("embedded", data_range=(0, 1)), SampleGallery("embedded", data_range=(0, 1))]
    trainer = boring.trainer(tmp_path, callbacks, package, logger=package.loggers.CSVLogger(tmp_path))
    trainer.fit(Model(), boring.loader(), boring.loader(seed=1))
    assert {"val/lpips", "val/psnr", "val/ssim"} <= set(trainer.callback_metrics)
    assert [path.name for path in tmp_path.rglob("*.png")]
    assert all(isinstance(callback, package.Callback) for callback in callbacks)
    stored = trainer.callbacks[0].state_dict()
    assert trainer._callback_connector is not None and callbacks[0].state_key.startswith("PerceptualScores")
    callbacks[0].load_state_dict(stored)


@pytest.mark.parametrize("name", ["Callback", "LightningDataModule", "LightningModule"])
def test_a_hook_counts_as_overridden_in_either_package_if_it_is(name, package):
    base, package_base = getattr(_lightning, name), getattr(package, name)
    named = [hook for hook in dir(base) if hook.startswith(("on_", "configure_")) or hook.endswith("_dataloader")]
    hooks = [hook for hook in named if inspect.isfunction(getattr(package_base, hook))]
    overriding = type("Own", (base,), {hook: lambda self, *args: None for hook in hooks[::2]})()
    found = [hook for hook in hooks if is_overridden(hook, overriding, package_base)]
    assert found == hooks[::2] and len(hooks) > 4
    assert isinstance(overriding, package_base)


def test_errors_and_writers_are_those_of_either_package(package):
    from lightning.fabric.utilities.exceptions import MisconfigurationException as Unified
    from pytorch_lightning.utilities.exceptions import MisconfigurationException

    assert issubclass(_lightning.MisconfigurationException, Unified)
    assert issubclass(_lightning.MisconfigurationException, MisconfigurationException)
    assert issubclass(ImageWriter, package.callbacks.BasePredictionWriter)


@pytest.mark.parametrize("name", ["lightning_fabric", "lightning.fabric"])
def test_a_loss_and_a_metric_work_with_fabric(name):
    fabric = import_module(name).Fabric(accelerator="cpu", devices=1)
    network = torch.nn.Conv2d(3, 3, 1)
    network, optimizer = fabric.setup(network, torch.optim.SGD(network.parameters(), 0.1))
    x = torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    loss = PerceptualLoss("embedded", data_range=(0, 1))
    for one in (loss, fabric.to_device(loss), fabric.setup_module(loss)):
        value = one(network(x), x)
        assert torch.allclose(value, loss(network(x), x), rtol=1e-5)
        optimizer.zero_grad()
        fabric.backward(value)
        assert float(network.weight.grad.norm()) > 0
    metric = fabric.to_device(LearnedPerceptualImagePatchSimilarity("embedded", normalize=True))
    assert torch.allclose(metric(x.flip(0), x), loss(x.flip(0), x), rtol=1e-5)


ORDERS = {
    "lightning first": "import lightning as L; import lpips_lightning._lightning, pytorch_lightning as pl",
    "ours first": "import lpips_lightning._lightning; import lightning as L; import pytorch_lightning as pl",
}
CHECK = """
from lpips_lightning.calibration.module import PerceptualCalibration
from lpips_lightning.io.checkpoint_io import AtomicCheckpointIO
quiet = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
for package in (L, pl):
    trainer = package.Trainer(plugins=[AtomicCheckpointIO()], fast_dev_run=True, **quiet)
    trainer.validate(PerceptualCalibration("embedded"), [])
"""


@pytest.mark.parametrize("order", ["ours first", pytest.param("lightning first", marks=pytest.mark.slow)])
def test_the_order_of_imports_does_not_matter(order):
    done = forked_python.run(["-W", "ignore", "-c", ORDERS[order] + CHECK], capture_output=True)
    assert done.returncode == 0, done.stderr


def test_without_lightning_the_classes_are_those_of_pytorch_lightning(monkeypatch):
    assert _lightning._base("", "Callback") is not pytorch_lightning.Callback
    monkeypatch.setitem(sys.modules, "lightning.pytorch", None)
    assert _lightning._base("", "Callback") is pytorch_lightning.Callback
