"""PerceptualScores: exact values, names, every logger, and an unchanged model."""

from __future__ import annotations

import csv
import json
import math
import sys
from pathlib import Path

import boring_module as boring
import pytest
import pytorch_lightning as pl
import torch
import yaml
from boring_module import Boring, board, board_events, fit, images, loader, trainer, wandb
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from pytorch_lightning.cli import LightningCLI
from pytorch_lightning.loggers import CSVLogger
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure

from lpips_lightning import LPIPS, LearnedPerceptualImagePatchSimilarity
from lpips_lightning.callbacks import LossSchedule, PerceptualScores
from lpips_lightning.engine import dispatch, inputs
from lpips_lightning.functional import luma_scores
from lpips_lightning.images.preprocessing import to_backbone

# 2026-11-21, pytorch_lightning/trainer/connectors/data_connector.py: its advice on loaders.
pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers")
SCORES = {"val/lpips", "val/psnr", "val/ssim"}


def scores(**options):
    return PerceptualScores("embedded", **{"data_range": (0, 1), **options})


def by_hand(model, loaders):
    """The metrics of torchmetrics, and ours, over the same data."""
    metrics = {
        "lpips": LearnedPerceptualImagePatchSimilarity("embedded", normalize=True),
        "psnr": PeakSignalNoiseRatio(data_range=1.0, dim=(1, 2, 3)),
        "ssim": StructuralSimilarityIndexMeasure(data_range=1.0),
    }
    with torch.no_grad():
        for x, target in (batch for one in loaders for batch in one):
            for metric in metrics.values():
                metric.update(model(x), target)
    return {name: float(metric.compute()) for name, metric in metrics.items()}


def logged(folder):
    """Step and values of the rows of a CSVLogger."""
    (file,) = Path(folder).rglob("metrics.csv")
    rows = csv.DictReader(file.read_text().splitlines())
    return [(int(row["step"]), {name: float(value) for name, value in row.items() if value}) for row in rows]


@pytest.mark.parametrize("cache_bytes", [0, 2**28])
def test_scores_equal_those_of_the_metrics(tmp_path, cache_bytes):
    model = Boring()
    fitted = fit(tmp_path, [scores(cache_bytes=cache_bytes)], model)
    expected = by_hand(model, [loader(seed=1)])
    assert set(fitted.callback_metrics) == SCORES
    assert float(fitted.callback_metrics["val/lpips"]) == expected["lpips"]
    for name, value in expected.items():
        assert float(fitted.callback_metrics[f"val/{name}"]) == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize("data_range", [(-1, 1), 255.0, "uint8"])
def test_every_score_uses_the_data_range(tmp_path, data_range):
    def convert(images):
        if data_range == "uint8":
            return (images * 255).round().to(torch.uint8)
        return images * 2 - 1 if data_range == (-1, 1) else images * 255

    model = Boring(lambda x, pred, target: {"preds": convert(pred), "target": convert(target)})
    callback = scores(data_range=(0, 1) if data_range == "uint8" else data_range)
    tested = trainer(tmp_path, [callback])
    (found,) = tested.validate(model, loader(seed=1), verbose=False)
    for name, value in by_hand(model, [loader(seed=1)]).items():
        assert found[f"val/{name}"] == pytest.approx(value, rel=2e-3 if data_range == "uint8" else 1e-4)


def test_layers_sum_to_lpips_and_names_match_the_callback(tmp_path):
    callback = scores(metrics=["lpips"], per_layer=True, prefix="small_")
    tested = trainer(tmp_path, [callback])
    (found,) = tested.test(Boring(), loader(seed=1), verbose=False)
    layers = [f"test/small_lpips/{layer}" for layer in LPIPS("embedded").layers]
    assert list(found) == ["test/small_lpips", *layers]
    assert list(found) == [f"test/{name}" for name in callback.names]
    assert sum(found[layer] for layer in layers) == pytest.approx(found["test/small_lpips"], rel=1e-6)


def test_several_dataloaders_have_their_own_scores_and_the_mean_over_all_images(tmp_path):
    model, loaders = Boring(), [loader(seed=1), loader(n=3, seed=2)]
    found = fit(tmp_path, [scores(metrics=["lpips"])], model, val=loaders).callback_metrics
    assert set(found) == {"val/lpips", "val/lpips/dataloader_0", "val/lpips/dataloader_1"}
    assert float(found["val/lpips"]) == pytest.approx(by_hand(model, loaders)["lpips"], rel=1e-6)
    for index, one in enumerate(loaders):
        assert float(found[f"val/lpips/dataloader_{index}"]) == by_hand(model, [one])["lpips"]
    assert set(fit(tmp_path, [scores(per_dataloader=False)], val=loaders).callback_metrics) == SCORES


def test_each_epoch_is_logged_once_and_the_sanity_check_not(tmp_path):
    fitted = fit(tmp_path, [scores()], logger=CSVLogger(tmp_path), num_sanity_val_steps=2)
    assert fitted.num_sanity_val_steps == 2
    rows = [(step, set(row) & SCORES) for step, row in logged(tmp_path) if set(row) & SCORES]
    assert rows == [(2, SCORES), (5, SCORES)]


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ({}, {"val/lpips"}),
        ({"metrics": ["ssim", "lpips"], "prefix": "a_"}, {"val/a_ssim"}),
        ({"prog_bar": False}, set()),
    ],
)
def test_the_first_score_is_on_the_progress_bar(tmp_path, options, shown):
    fitted = fit(tmp_path, [scores(**options)], val=[loader(3), loader(3, seed=1)])
    assert {name for name in fitted.progress_bar_metrics if name.startswith("val/")} == shown


def test_one_callback_logs_to_every_logger(tmp_path):
    loggers = [
        board(tmp_path),
        CSVLogger(tmp_path, name="csv"),
        wandb(tmp_path),
    ]
    callback = scores(table=True)
    fitted = fit(tmp_path, [callback], logger=loggers)
    shown = board_events(loggers[0])
    for name in SCORES:
        assert [event.step for event in shown.Scalars(name)] == [2, 5]
        assert shown.Scalars(name)[-1].value == pytest.approx(float(fitted.callback_metrics[name]))
    for logger in loggers[:2]:
        hparams = yaml.safe_load((Path(logger.log_dir) / "hparams.yaml").read_text())
        assert hparams["lpips_fingerprint"] == callback.fingerprint
        assert len(list(Path(logger.log_dir).rglob("val/scores_step_*.csv"))) == 2
    assert loggers[2].experiment.config["lpips_fingerprint"] == callback.fingerprint
    summary = loggers[2].experiment.summary
    assert summary["val/lpips"] == pytest.approx(float(fitted.callback_metrics["val/lpips"]))
    tables = sorted(tmp_path.rglob("*.table.json"))
    assert len(tables) == 2
    assert json.loads(tables[0].read_text())["columns"] == ["dataloader_idx", "image", "lpips", "psnr", "ssim"]
    loggers[2].experiment.finish()


def test_tensorboards_page_of_hyperparameters_shows_the_models_and_the_fingerprint(tmp_path):
    class Saved(Boring):
        def __init__(self, width=3):
            super().__init__()
            self.save_hyperparameters()

    logger, callback = board(tmp_path), scores()
    fit(tmp_path, [callback], Saved(), logger=logger)
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    kept = board_events(logger).SummaryMetadata("_hparams_/session_start_info")
    shown = HParamsPluginData.FromString(kept.plugin_data.content).session_start_info.hparams
    assert {name: shown[name].string_value or shown[name].number_value for name in shown} == {
        "width": 3,
        "lpips_fingerprint": callback.fingerprint,
    }


def test_mlflow_gets_scores_fingerprint_and_table(tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    from pytorch_lightning.loggers import MLFlowLogger

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    logger, callback = MLFlowLogger(tracking_uri=f"file:{tmp_path / 'runs'}"), scores(table=True)
    fitted = fit(tmp_path, [callback], logger=logger)
    run = logger.experiment.get_run(logger.run_id)
    assert run.data.params["lpips_fingerprint"] == callback.fingerprint
    assert run.data.metrics["val/lpips"] == pytest.approx(float(fitted.callback_metrics["val/lpips"]))
    files = [file.path for file in logger.experiment.list_artifacts(logger.run_id, "val")]
    assert files == ["val/scores_step_00000003.csv", "val/scores_step_00000006.csv"]


def test_the_table_has_every_images_scores(tmp_path):
    model = Boring()
    tested = trainer(tmp_path, [scores(table=True)])
    tested.validate(model, [loader(seed=1), loader(n=3, seed=2)], verbose=False)
    rows = list(csv.reader((tmp_path / "val" / "scores_step_00000000.csv").read_text().splitlines()))
    assert rows[0] == ["dataloader_idx", "image", "lpips", "psnr", "ssim"]
    assert [(row[0], row[1]) for row in rows[1:]] == [("0", str(i)) for i in range(5)] + [
        ("1", str(i)) for i in range(3)
    ]
    x, target = images(5, 1)
    with torch.no_grad():
        expected = LPIPS("embedded")(model(x), target, data_range=(0, 1))
    assert [float(row[2]) for row in rows[1:6]] == pytest.approx(expected.tolist(), rel=1e-5)


def test_checkpoint_and_early_stopping_monitor_the_score(tmp_path):
    checkpoint = ModelCheckpoint(
        tmp_path / "kept", monitor="val/lpips", filename="{val/lpips:.3f}", auto_insert_metric_name=False
    )
    stopping = EarlyStopping(monitor="val/lpips", min_delta=10.0, patience=1)
    # Before and after: the score has to be there whatever the order.
    fitted = fit(tmp_path, [stopping, scores(), checkpoint], max_epochs=9, enable_checkpointing=True)
    assert fitted.current_epoch == 2
    assert float(checkpoint.best_model_score) <= float(fitted.callback_metrics["val/lpips"])
    assert Path(checkpoint.best_model_path).stem == f"{float(checkpoint.best_model_score):.3f}"


def test_a_resumed_fit_continues_logging(tmp_path):
    first = fit(tmp_path, [scores()], max_epochs=1)
    first.save_checkpoint(tmp_path / "half.ckpt")
    torch.load(tmp_path / "half.ckpt", weights_only=True)
    resumed, model = trainer(tmp_path, [scores()], logger=CSVLogger(tmp_path)), Boring()
    resumed.fit(model, loader(), loader(seed=1), ckpt_path=tmp_path / "half.ckpt")
    assert [step for step, row in logged(tmp_path) if "val/lpips" in row] == [5]
    assert float(resumed.callback_metrics["val/lpips"]) == by_hand(model, [loader(seed=1)])["lpips"]


def test_fast_dev_run_runs_everything_and_writes_nothing(tmp_path):
    fitted = fit(tmp_path / "new", [scores(table=True)], fast_dev_run=True, logger=CSVLogger(tmp_path / "new"))
    assert set(fitted.callback_metrics) == SCORES
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("training", [True, False])
def test_mode_and_random_numbers_are_as_found(tmp_path, training):
    class Watching(pl.Callback):
        def on_validation_batch_start(self, trainer, pl_module, *args):
            pl_module.train(training)
            self.before = torch.get_rng_state()

        def on_validation_batch_end(self, trainer, pl_module, *args):
            assert torch.equal(torch.get_rng_state(), self.before)
            assert pl_module.training == training
            self.seen = True

    watching = Watching()
    fit(tmp_path, [scores(table=True), watching])
    assert watching.seen


def count_backbone_passes(monkeypatch):
    """Number of images in each batch for the backbone."""
    sizes = []
    for module in (dispatch, inputs):
        monkeypatch.setattr(module, "to_backbone", lambda x, *args: sizes.append(len(x)) or to_backbone(x, *args))
    return sizes


def test_targets_are_encoded_once(tmp_path, monkeypatch):
    sizes = count_backbone_passes(monkeypatch)
    fit(tmp_path, [scores()], max_epochs=3)
    assert sum(sizes) == 3 * 5 + 5
    sizes.clear()
    fit(tmp_path, [scores(cache_bytes=0)], max_epochs=3)
    assert sum(sizes) == 3 * (5 + 5)
    target = next(iter(loader(seed=1)))[1]
    features = LPIPS("embedded").encode(target, (0, 1))
    one_batch = sum(4 * tensor.numel() for tensor in (target, *features.layers.values()))
    sizes.clear()
    fit(tmp_path, [scores(cache_bytes=one_batch)], max_epochs=3)  # room for one of the batches of two
    assert sum(sizes) == 3 * 5 + 2 + 3 * 3


def test_changed_targets_are_encoded_again(tmp_path, monkeypatch):
    target = images(5, seed=1)[1]
    val = DataLoader(TensorDataset(images(5, seed=1)[0], target), batch_size=2)

    class Changing(pl.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 2:
                target[3, 0, 0, 0] = 1 - target[3, 0, 0, 0]

    sizes = count_backbone_passes(monkeypatch)
    model = Boring()
    found = fit(tmp_path, [scores(), Changing()], model, val=val, max_epochs=4).callback_metrics
    assert sum(sizes) == 4 * 5 + 5 + 2  # the second batch twice, since one of its images changed in one pixel
    assert float(found["val/lpips"]) == by_hand(model, [val])["lpips"]


def test_the_cache_is_cleared_after_the_run(tmp_path):
    callback = scores()
    fit(tmp_path, [callback])
    assert len(callback._pairs.target_features) == callback._pairs.target_features.size == 0


@pytest.mark.parametrize(
    ("returns", "got"),
    [
        (lambda x, pred, target: None, "got None"),
        (lambda x, pred, target: {"loss": pred.mean()}, r"got the keys \['loss'\]"),
        (lambda x, pred, target: {"pred": pred}, r"got the keys \['pred'\]"),
        (lambda x, pred, target: pred.mean(), r"got a tensor of shape \(\)"),
    ],
)
def test_outputs_without_images_are_refused_at_the_first_batch(tmp_path, returns, got):
    message = f"validation_step: expected a mapping with tensors 'pred' or 'preds' and 'target', {got}; return these"
    with pytest.raises(MisconfigurationException, match=message):
        fit(tmp_path, [scores()], Boring(returns))


def test_keys_and_adapter_find_the_images(tmp_path):
    expected = by_hand(Boring(), [loader(seed=1)])["lpips"]
    named = Boring(lambda x, pred, target: {"output": pred, "truth": target})
    (found,) = trainer(tmp_path, [scores(pred_key="output", target_key="truth")]).test(
        named, loader(seed=1), verbose=False
    )
    assert found["test/lpips"] == expected
    other = Boring(lambda x, pred, target: {"loss": pred.mean(), "output": [pred]})
    adapted = scores(adapter=lambda outputs, batch: {"pred": outputs["output"][0], "target": batch[1]})
    (found,) = trainer(tmp_path, [adapted]).test(other, loader(seed=1), verbose=False)
    assert found["test/lpips"] == expected
    bad = scores(adapter=lambda outputs, batch: batch)
    with pytest.raises(MisconfigurationException, match="adapter, after test_step,: expected .* got a list"):
        trainer(tmp_path, [bad]).test(other, loader(seed=1), verbose=False)


def test_predictions_off_the_range_are_scored_as_they_are_with_one_warning_or_clamped(tmp_path):
    beyond = Boring(lambda x, pred, target: {"pred": 1.3 * x, "target": target})
    with pytest.warns(
        UserWarning, match=r"pred: expected values on \[0, 1\], got values from .* to 1.2.* clamp=True"
    ) as caught:
        (found,) = trainer(tmp_path, [scores()]).validate(beyond, loader(seed=1), verbose=False)
    assert len([one for one in caught if "clamp=True" in str(one.message)]) == 1
    unchecked = LPIPS("embedded", validate_args=False)
    values = [unchecked(1.3 * x, target, data_range=(0, 1)) for x, target in loader(seed=1)]
    assert found["val/lpips"] == pytest.approx(float(torch.cat(values).mean()), rel=1e-5)
    callback = scores(clamp=True)
    (found,) = trainer(tmp_path, [callback]).validate(beyond, loader(seed=1), verbose=False)
    clamped = Boring(lambda x, pred, target: {"pred": (1.3 * x).clamp(0, 1), "target": target})
    (expected,) = trainer(tmp_path, [scores()]).validate(clamped, loader(seed=1), verbose=False)
    assert found == expected
    assert callback.fingerprint == f"{scores().fingerprint}, predictions clamped"
    large = Boring(lambda x, pred, target: {"pred": 255 * x, "target": target})
    with pytest.warns(UserWarning, match="pred: .* these look like .0, 255."):
        trainer(tmp_path, [scores(clamp=True)]).validate(large, loader(seed=1), verbose=False)
    bright = Boring(lambda x, pred, target: {"pred": pred, "target": 1.3 * x})
    for options in ({}, {"clamp": True}):
        with pytest.raises(ValueError, match="target: expected values on"):
            trainer(tmp_path, [scores(**options)]).validate(bright, loader(seed=1), verbose=False)


def test_a_diverged_network_ends_no_validation(tmp_path):
    diverged = Boring(lambda x, pred, target: {"pred": pred * math.nan, "target": target})
    with pytest.warns(UserWarning, match="pred: .* a NaN usually comes from a diverged network"):
        (found,) = trainer(tmp_path, [scores()]).validate(diverged, loader(seed=1), verbose=False)
    (clamped,) = trainer(tmp_path, [scores(clamp=True)]).validate(diverged, loader(seed=1), verbose=False)
    for values in (found, clamped):
        assert all(math.isnan(values[f"val/{name}"]) for name in ("lpips", "psnr", "ssim"))


def test_scoring_with_the_network_of_the_loss_warns(tmp_path, recwarn):
    message = "net_type: expected another network than that of the loss 'perceptual', got 'embedded' for both"
    with pytest.warns(UserWarning, match=message):
        fit(tmp_path, [scores()], Boring(loss="embedded"), max_epochs=1)
    with pytest.warns(UserWarning, match=message):  # another calibration of the same backbone flatters too
        fit(tmp_path, [scores(calibrated=False)], Boring(loss="embedded"), max_epochs=1)
    with pytest.warns(UserWarning, match=message):  # weightless now, but not for long
        fit(tmp_path, [scores(), LossSchedule(0.1)], Boring(loss="embedded", loss_weight=0.0), max_epochs=1)
    recwarn.clear()
    fit(tmp_path, [scores()], Boring(loss="embedded", loss_weight=0.0), max_epochs=1)
    fit(tmp_path, [scores(metrics=["psnr"])], Boring(loss="embedded"), max_epochs=1)
    assert not [one for one in recwarn if "another network" in str(one.message)]


def test_two_callbacks_need_different_names(tmp_path):
    with pytest.raises(MisconfigurationException, match=r"prefix: .* got \['lpips'\] from two"):
        fit(tmp_path, [scores(metrics=["lpips"]), scores()])
    baseline = scores(metrics=["lpips"], calibrated=False, prefix="baseline_")
    found = fit(tmp_path, [scores(), baseline]).callback_metrics
    assert set(found) == SCORES | {"val/baseline_lpips"}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"metrics": ["lpips", "fid"]}, ValueError, r"metrics: expected some of \('lpips', 'psnr', .*\), got"),
        ({"metrics": []}, ValueError, "metrics: expected some of"),
        ({"metrics": "lpips"}, ValueError, "metrics: expected some of"),
        ({"border": -1}, ValueError, "border: expected a number of pixels, 0 or more, got -1"),
        ({"metrics": ["psnr"], "per_layer": True}, ValueError, "per_layer: expected False without 'lpips'"),
        ({"cache_bytes": -1}, ValueError, "cache_bytes: expected at least 0, got -1"),
        ({"adapter": 3}, TypeError, "adapter: expected a callable .* got 3"),
        ({"data_range": (1, 0)}, ValueError, "data_range: expected low < high"),
        ({"version": "7"}, ValueError, "version: expected one of"),
    ],
)
def test_bad_arguments_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        scores(**arguments)
    with pytest.raises(TypeError, match="data_range"):
        PerceptualScores("embedded")


def take_first(outputs, batch):
    """Adapter in the YAML below."""
    return {"pred": outputs["pred"], "target": batch[1]}


class Data(pl.LightningDataModule):
    def train_dataloader(self):
        return loader()

    def val_dataloader(self):
        return loader(seed=1)


def prepared(kind):
    """Predictions and targets of some kind on [0, 1], and the corresponding color images, as a list."""
    pred, target = (batch[:, :, :40, :40] for batch in images(3))
    alpha = torch.linspace(0, 1, 40).expand(3, 1, 40, 40)
    if kind == "gray":
        return (pred[:, :1], target[:, :1]), [(pred[:, :1].expand(-1, 3, -1, -1), target[:, :1].expand(-1, 3, -1, -1))]
    if kind == "gray and color":
        return (pred[:, :1], target), [(pred[:, :1].expand(-1, 3, -1, -1), target)]
    if kind == "alpha":
        over = [alpha * batch + (1 - alpha) * torch.tensor([0.0, 0.5, 1.0]).view(3, 1, 1) for batch in (pred, target)]
        return (torch.cat([pred, alpha], 1), torch.cat([target, alpha], 1)), [tuple(over)]
    if kind == "resize":
        small = {"size": (36, 44), "mode": "bilinear", "antialias": True}
        return (pred, target), [tuple(torch.nn.functional.interpolate(batch, **small) for batch in (pred, target))]
    five = [torch.cat([batch, batch[:, :2] / 2], 1) for batch in (pred, target)]
    return tuple(five), [tuple(batch[:, c : c + 1].expand(-1, 3, -1, -1) for batch in five) for c in range(5)]


PREPARED = {
    "gray": {"gray": "repeat"},
    "gray and color": {"gray": "repeat"},
    "alpha": {"background": (0, 0.5, 1)},
    "resize": {"resize": (36, 44)},
    "channels": {"gray": "per_channel"},
}


@pytest.mark.parametrize("kind", PREPARED)
@pytest.mark.parametrize("data_range", [(0, 1), (-1, 1), "uint8"])
def test_all_scores_use_the_input_of_the_network(kind, data_range):
    given, colors = prepared(kind)
    if data_range == "uint8":
        given = [(batch * 255).round().to(torch.uint8) for batch in given]
    elif data_range == (-1, 1):
        given = [batch * 2 - 1 for batch in given]
    said = (0, 1) if data_range == "uint8" else data_range
    found = scores(**PREPARED[kind], data_range=said).score(*given)
    expected = torch.stack([scores().score(pred, target) for pred, target in colors]).mean(0)
    assert found.shape == (3, 3)
    torch.testing.assert_close(found, expected, rtol=2e-2 if data_range == "uint8" else 1e-4, atol=1e-5)
    alone = scores(**PREPARED[kind], data_range=said, metrics=["ssim", "psnr"]).score(*given)
    torch.testing.assert_close(alone, found[:, [2, 1]], rtol=0, atol=0)
    if kind == "resize":
        assert (scores(data_range=said).score(*given) - found).abs().amin() > 0
    else:
        with pytest.raises(ValueError, match="^pred: expected 3 channels"):
            scores(data_range=said).score(*given)


def test_gray_images_are_scored_in_a_fit(tmp_path):
    model = Boring(lambda x, pred, target: {"preds": pred[:, :1], "target": target[:, :1]})
    fitted = fit(tmp_path, [scores(gray="repeat")], model)
    model.returns = lambda x, pred, target: {
        name: batch[:, :1].expand(-1, 3, -1, -1) for name, batch in (("preds", pred), ("target", target))
    }
    colored = trainer(tmp_path, [scores()])
    (expected,) = colored.validate(model, loader(seed=1), verbose=False)
    assert set(fitted.callback_metrics) == SCORES
    for name, value in expected.items():
        assert float(fitted.callback_metrics[name]) == pytest.approx(value, rel=1e-6)


def test_with_a_memory_budget_nothing_is_cached_and_scores_are_equal():
    pred, target = images(3)
    free, bounded = scores(per_layer=True), scores(per_layer=True, memory_budget=2**22, frame_chunk=2)
    expected, found = (callback.score(pred, target, ("val", 0, 0)) for callback in (free, bounded))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
    assert len(free._pairs.target_features) == 1 and len(bounded._pairs.target_features) == 0
    assert bounded._pairs.net.plan((3, 3, 48, 48)).size <= 2**22


def test_without_lpips_no_backbone_is_loaded(monkeypatch):
    monkeypatch.setattr("lpips_lightning.network.resolve_network", None, raising=False)
    monkeypatch.setattr("lpips_lightning.backbones.shared.resolve_network", None)
    pred, target = (batch[:, :1, :12, :12] for batch in images(2))
    assert scores(metrics=["psnr", "ssim"], gray="repeat").score(pred, target).isfinite().all()
    with pytest.raises(TypeError):
        scores(version="0.0")


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-1, 1), (0, 255)])
def test_luma_scores_are_those_of_papers_on_any_range(low, high):
    pred, target = torch.rand(2, 3, 3, 40, 40)
    expected = torch.stack(luma_scores(pred, target, border=4), 1).float()
    shifted = [low + (high - low) * images for images in (pred, target)]
    found = scores(data_range=(low, high), metrics=["psnr_y", "ssim_y"], border=4).score(*shifted)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)  # a rounding to 8 bits may fall the other way
    torch.testing.assert_close(torch.stack(luma_scores(*shifted, 4, data_range=(low, high)), 1).float(), found)
    with pytest.warns(UserWarning, match="a NaN usually comes from a diverged network"):
        found = scores(data_range=(low, high), metrics=["psnr_y"]).score(shifted[0] * math.nan, shifted[1])
    assert bool(found.isnan().all())


def test_the_callbacks_work_from_yaml(tmp_path, monkeypatch):
    monkeypatch.setattr(boring, "take_first", take_first, raising=False)
    config = f"""
trainer:
  default_root_dir: {tmp_path}
  accelerator: cpu
  max_epochs: 1
  logger: false
  enable_checkpointing: false
  enable_progress_bar: false
  enable_model_summary: false
  callbacks:
  - class_path: lpips_lightning.callbacks.PerceptualScores
    init_args: {{net_type: embedded, data_range: [0, 1], metrics: [lpips, psnr], adapter: boring_module.take_first}}
  - class_path: lpips_lightning.callbacks.SampleGallery
    init_args: {{net_type: embedded, data_range: 1.0, k: 1}}
  - class_path: lpips_lightning.callbacks.LossSchedule
    init_args: {{final: 0.1, warmup_steps: 2, shape: cosine, loss: perceptual}}
"""
    (tmp_path / "config.yaml").write_text(config)
    arguments = ["fit", f"--config={tmp_path / 'config.yaml'}", "--model.loss=embedded", "--model.loss_weight=0"]
    monkeypatch.setattr(sys, "argv", ["boring"])
    with pytest.warns(UserWarning, match="another network"):
        ran = LightningCLI(Boring, Data, args=arguments, save_config_callback=None, seed_everything_default=0)
    assert set(ran.trainer.callback_metrics) == {"val/lpips", "val/psnr", "loss/perceptual/weight"}
    assert ran.model.perceptual.weight == 0.1
    assert len(list((tmp_path / "val" / "gallery").glob("*.png"))) == 3  # worst, best, sheet


def test_the_callback_runs_in_a_lightning_pytorch_trainer(tmp_path):
    unified = pytest.importorskip("lightning.pytorch")
    from lightning.pytorch.loggers import CSVLogger as UnifiedCSVLogger

    class Unified(unified.LightningModule):
        __init__, forward, configure_optimizers = Boring.__init__, Boring.forward, Boring.configure_optimizers
        training_step, validation_step, test_step = Boring.training_step, Boring.validation_step, Boring.test_step

    Unified.__init__ = lambda self: unified.LightningModule.__init__(self)
    model = Unified()
    model.scale = torch.nn.Parameter(torch.tensor(0.8))
    model.returns = lambda x, pred, target: {"pred": pred, "target": target}
    fitted = trainer(tmp_path, [scores(table=True)], unified, logger=UnifiedCSVLogger(tmp_path))
    fitted.fit(model, loader(), loader(seed=1))
    assert float(fitted.callback_metrics["val/lpips"]) == by_hand(model, [loader(seed=1)])["lpips"]
    assert [step for step, row in logged(tmp_path) if "val/lpips" in row] == [2, 5]
