"""PerceptualCalibration: network and rank network, training, logs, resume, export."""

import signal
from pathlib import Path

import pytest
import subprocess_jobs as workers
import torch
import toy_judgments as judged
from frozen_networks import frozen_network
from pytorch_lightning import Trainer
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.utils.data import DataLoader

from lpips_lightning import LPIPS, LearnedPerceptualImagePatchSimilarity, PerceptualLoss
from lpips_lightning.backbones.custom import from_module
from lpips_lightning.calibration.model import RankNetwork, TrainableLPIPS, pooled_differences, random_calibration
from lpips_lightning.calibration.module import PerceptualCalibration
from lpips_lightning.calibration.schedule import learning_rate_factor, step_seed
from lpips_lightning.callbacks.calibration_file import CalibrationFile
from lpips_lightning.functional.judgments import human_ceiling, jnd_score, two_afc_score
from lpips_lightning.io.tensor_files import read_record, write_tensors
from lpips_lightning.weights import WeightsError, read_tensors

pytestmark = [
    # 2026-11-21, pytorch_lightning/trainer/connectors/data_connector.py: right for large data, noise for a few rows.
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    # 2026-11-21, pytorch_lightning/trainer/configuration_validator.py: some tests train without validating.
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
    # 2026-11-27, pytorch_lightning/loops/fit_loop.py: in mode lin the frozen backbone is meant to be in eval mode.
    pytest.mark.filterwarnings(r"ignore:Found \d+ module\(s\) in eval mode"),
]


@pytest.fixture(scope="module")
def data():
    return judged.triplets(12)


@pytest.fixture(scope="module")
def hard():
    """Triplets judged by every other channel of one layer."""
    return judged.hard_triplets(240, judged.hidden_judge())


def trainer(tmp_path, **options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    options = {"max_epochs": 1, "log_every_n_steps": 1, "enable_checkpointing": False, **quiet, **options}
    return Trainer(default_root_dir=tmp_path, **options)


def loaders(data, batch_size=5):
    return DataLoader(data, batch_size)


def backbone_of(model):
    return {name: value.clone() for name, value in model.network.extractor.state_dict().items()}


def slow_rank(rank, d0, d1):
    """The rank network on one pair of distances, in plain Python."""
    values = [d0, d1, d0 - d1, d0 / (d1 + 0.1), d1 / (d0 + 0.1)]
    layers = [rank.body[0], rank.body[2], rank.body[4]]
    for number, layer in enumerate(layers):
        rows, bias = layer.weight.tolist(), layer.bias.tolist()
        values = [sum(w * v for w, v in zip(row, values, strict=True)) + b for row, b in zip(rows, bias, strict=True)]
        if number < 2:
            values = [value if value > 0 else 0.2 * value for value in values]
    return values[0]


def test_network_gives_the_distances_of_lpips(pair):
    x, y = pair(2, 64, 64)
    network = TrainableLPIPS("embedded", init="official").eval()
    assert torch.allclose(network(x, y)[0], LPIPS("embedded")(x, y), rtol=2e-6)
    both = network(x, y, x)
    assert torch.equal(both[0], network(x, y)[0])
    assert torch.equal(both[1], torch.zeros(2))
    v0 = TrainableLPIPS("squeeze", weights="random", version="0.0").eval()
    backbone = v0.extractor.graph.state_dict()
    assert torch.allclose(
        v0(x, y)[0], LPIPS("squeeze", version="0.0", weights=backbone, calibration=v0.calibration)(x, y)
    )
    assert v0.shift is None


def test_dropout_drops_single_differences_and_is_right_on_average(pair):
    x, y = pair(1, 64, 64)
    network = TrainableLPIPS("embedded", init="official")
    fx, fy = network.encode(x), network.encode(y)
    whole = pooled_differences(fx, fy)
    draws = [
        torch.cat(list(pooled_differences(fx, fy, 0.5, torch.Generator().manual_seed(seed)).values()), 1)
        for seed in range(300)
    ]
    drawn, expected = torch.cat(draws), torch.cat(list(whole.values()), 1)
    assert torch.allclose(drawn.mean(0, keepdim=True), expected, rtol=0.3, atol=1e-4)
    # Element by element: of n positions with squares s the variance is sum(s^2) / n^2, not that of a dropped mean.
    from lpips_lightning.distances.lpips import unit_normalize

    square = (unit_normalize(fx["relu2"]) - unit_normalize(fy["relu2"])).square()
    variance = square.square().sum((2, 3)) / square[0, 0].numel() ** 2
    column = slice(48, 48 + 64)
    assert torch.allclose(drawn.var(0)[column].mean(), variance.mean(), rtol=0.1)
    assert float(drawn.var(0)[column].mean()) < 0.1 * float(expected[:, column].square().mean())
    one, two, other = (network(x, y, generator=torch.Generator().manual_seed(seed))[0] for seed in (0, 0, 1))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert torch.allclose(network.eval()(x, y)[0], LPIPS("embedded")(x, y), rtol=2e-6)


def test_modes_decide_what_is_trained():
    lin, tune, scratch = (TrainableLPIPS("embedded", mode=mode, seed=3) for mode in ("lin", "tune", "scratch"))
    assert not any(parameter.requires_grad for parameter in lin.extractor.parameters())
    assert not lin.train().extractor.training
    assert all(parameter.requires_grad for parameter in tune.parameters())
    assert tune.extractor.training
    assert all(torch.equal(a, b) for a, b in zip(lin.extractor.parameters(), tune.extractor.parameters(), strict=True))
    assert not torch.equal(next(scratch.extractor.parameters()), next(tune.extractor.parameters()))
    again = TrainableLPIPS("embedded", mode="scratch", seed=3)
    assert torch.equal(next(scratch.extractor.parameters()), next(again.extractor.parameters()))
    # The shared frozen copy is not the one that is trained.
    assert not any(parameter.requires_grad for parameter in frozen_network(LPIPS("embedded")).parameters())


def test_start_is_drawn_without_the_global_generator():
    state = torch.get_rng_state()
    model = PerceptualCalibration("embedded", "scratch", seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(
        model.calibration["relu1"], PerceptualCalibration("embedded", "scratch", seed=1).calibration["relu1"]
    )
    assert not torch.equal(
        model.calibration["relu1"], PerceptualCalibration("embedded", "scratch", seed=2).calibration["relu1"]
    )
    start = random_calibration(model.network.record, 0)["relu3"]
    assert 0.3 < float((start == 0).float().mean()) < 0.7  # half of PyTorch's default is negative
    assert float(start.max()) <= len(start) ** -0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "all"}, "mode: expected one of 'lin', 'tune', 'scratch', got 'all'"),
        ({"init": "zero"}, "init: expected one of 'random', 'official', got 'zero'"),
        ({"dropout": 1.0}, r"dropout: expected a probability in \[0, 1\), got 1.0"),
        ({"mode": "scratch", "weights": "a.pth"}, "weights: expected None with mode 'scratch'.* got 'a.pth'"),
        ({"net_type": "resnet"}, "net_type: expected one of"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        PerceptualCalibration(**{"net_type": "embedded", **arguments})


def test_rank_network_is_the_papers():
    rank = RankNetwork(seed=0)
    d0, d1 = torch.rand(2, 6, generator=torch.Generator().manual_seed(0))
    expected = [slow_rank(rank, a, b) for a, b in zip(d0.tolist(), d1.tolist(), strict=True)]
    assert rank(d0, d1).tolist() == pytest.approx(expected, abs=1e-5)
    assert sum(parameter.numel() for parameter in rank.parameters()) == 5 * 32 + 32 + 32 * 32 + 32 + 32 + 1


def test_loss_is_binary_cross_entropy_of_the_sigmoid(data, tmp_path):
    model = PerceptualCalibration("embedded", dropout=0.0)
    fitted = trainer(tmp_path, limit_train_batches=1)
    batch = next(iter(loaders(data)))
    d0 = LPIPS("embedded", calibration=model.calibration)(batch["ref"], batch["p0"])
    d1 = LPIPS("embedded", calibration=model.calibration)(batch["ref"], batch["p1"])
    vote = torch.sigmoid(model.rank(d0, d1)).detach().double()
    judge = batch["judge"].double()
    expected = -(judge * vote.log() + (1 - judge) * (1 - vote).log()).mean()
    fitted.fit(model, loaders(data))
    assert float(fitted.callback_metrics["train/loss"]) == pytest.approx(float(expected), rel=1e-5)


def test_learning_rate_is_constant_for_six_epochs_and_falls_in_four(tmp_path, data):
    rates = [round(learning_rate_factor(epoch), 6) for epoch in range(12)]
    assert rates == [1, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2, 0, 0]
    model = PerceptualCalibration("embedded", lr=0.5, constant_epochs=1, decay_epochs=1)
    seen = []
    model.on_train_epoch_start = lambda: seen.append(model.optimizers().param_groups[0]["lr"])
    trainer(tmp_path, max_epochs=2, limit_train_batches=1).fit(model, loaders(data))
    assert seen == [0.5, 0.25]
    settings = model.optimizers().param_groups[0]
    assert settings["betas"] == (0.5, 0.999)
    assert settings["weight_decay"] == 0


def test_lin_learns_to_judge_and_leaves_the_backbone_alone(hard, tmp_path):
    model = PerceptualCalibration("embedded", lr=1e-2)
    before, start = backbone_of(model), {layer: weight.clone() for layer, weight in model.calibration.items()}
    val = loaders(hard.part(160), 40)
    (untrained,) = trainer(tmp_path).validate(model, val, verbose=False)
    trainer(tmp_path, max_epochs=10).fit(model, loaders(hard.part(0, 160), 20), val)
    trained = model.calibration_scores["0"]
    assert untrained["val/2afc"] < 0.8
    assert trained > 0.88
    assert trained > untrained["val/2afc"] + 0.1
    assert model.human_ceilings == {"0": 1.0}  # the judge is of one mind
    assert all(torch.equal(value, before[name]) for name, value in backbone_of(model).items())
    assert all(float(weight.min()) >= 0 for weight in model.calibration.values())
    assert not any(torch.equal(weight, start[layer]) for layer, weight in model.calibration.items())


@pytest.mark.parametrize("mode", ["tune", "scratch"])
def test_backbone_is_trained_and_only_the_calibration_is_clamped(mode, data, tmp_path):
    model = PerceptualCalibration("embedded", mode, lr=1e-2)
    before = backbone_of(model)
    trainer(tmp_path, max_epochs=2).fit(model, loaders(data))
    after = backbone_of(model)
    assert not any(torch.equal(after[name], before[name]) for name in after)
    assert all(bool((value < 0).any()) for name, value in after.items() if name.endswith("weight"))
    assert all(float(weight.min()) == 0 for weight in model.calibration.values())


def test_checkpoints_inside_an_epoch_hold_clamped_weights(data, tmp_path):
    from pytorch_lightning.callbacks import ModelCheckpoint

    model = PerceptualCalibration("embedded", lr=0.1)
    every_step = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1)
    trainer(tmp_path, callbacks=[every_step], enable_checkpointing=True).fit(model, loaders(data))
    saved = sorted(tmp_path.glob("*.ckpt"))
    assert len(saved) == 3
    for path in saved:
        state = torch.load(path, weights_only=True)["state_dict"]
        weights = [value for name, value in state.items() if name.startswith("network._weights")]
        assert len(weights) == 5
        assert all(float(weight.min()) >= 0 for weight in weights)


def test_scores_are_logged_by_set_and_their_mean(data, tmp_path):
    class Data(judged.DataModule):
        val_names = ("noise", "blur")
        test_names = ("2afc/noise", "jnd/noise", "jnd/blur")

    pairs = judged.pairs(9)
    module = Data(val=[data, data.part(0, 7)], test=[data, pairs, pairs.part(3)])
    model = PerceptualCalibration("embedded", init="official")
    validated = trainer(tmp_path)
    validated.validate(model, module, verbose=False)
    found = {name: float(value) for name, value in validated.callback_metrics.items()}
    assert set(found) == {"val/noise/2afc", "val/blur/2afc", "val/2afc"}
    columns, net = data.columns, LPIPS("embedded")
    d0, d1 = net(columns["ref"], columns["p0"]), net(columns["ref"], columns["p1"])
    expected = {
        "noise": float(two_afc_score(d0, d1, columns["judge"])),
        "blur": float(two_afc_score(d0[:7], d1[:7], columns["judge"][:7])),
    }
    assert model.calibration_scores == pytest.approx(expected)
    assert found["val/2afc"] == pytest.approx((expected["noise"] + expected["blur"]) / 2)
    assert model.human_ceilings["noise"] == pytest.approx(float(human_ceiling(columns["judge"])))
    tested = trainer(tmp_path)
    tested.test(model, module, verbose=False)
    assert set(tested.callback_metrics) == {
        "test/noise/2afc",
        "test/2afc",
        "test/noise/jnd",
        "test/blur/jnd",
        "test/jnd",
    }
    distances = net(pairs.columns["p0"], pairs.columns["p1"])
    assert model.jnd_scores["noise"] == pytest.approx(float(jnd_score(distances, pairs.columns["same"])))
    recall, precision = model.jnd_curves["noise"]
    assert len(recall) == len(precision) == 9
    assert float(recall[-1]) == 1.0


def test_fit_logs_nothing_for_the_sanity_check_and_can_be_monitored(data, tmp_path):
    from pytorch_lightning.callbacks import ModelCheckpoint

    model = PerceptualCalibration("embedded")
    best = ModelCheckpoint(tmp_path, monitor="val/2afc", mode="max", filename="best", auto_insert_metric_name=False)
    fitted = trainer(tmp_path, max_epochs=2, callbacks=[best], enable_checkpointing=True)
    fitted.fit(model, loaders(data), loaders(data))
    assert set(fitted.callback_metrics) == {"train/loss", "val/0/2afc", "val/2afc"}
    again = PerceptualCalibration.load_from_checkpoint(tmp_path / "best.ckpt", weights_only=True)
    assert dict(again.hparams) == dict(model.hparams)
    assert again.hparams["net_type"] == "embedded"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"p1": None}, "batch: expected ref, p0, p1 and judge, or p0, p1 and same, got ref, p0, judge without p1"),
        ({"p1": torch.zeros(5, 3, 40, 40)}, "p1: expected the shape of ref"),
        ({"p0": torch.full((5, 3, 32, 32), 200.0)}, r"p0: expected values on \[-1, 1\], got values from 200"),
    ],
)
def test_bad_batches_are_refused_at_once(data, tmp_path, change, message):
    batch = {**next(iter(loaders(data))), **change}
    batch = {name: value for name, value in batch.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path).fit(PerceptualCalibration("embedded"), DataLoader([batch], batch_size=None))


def test_step_seeds_differ():
    seeds = {step_seed(*numbers) for numbers in ((0, 0, 0, 0), (0, 0, 1, 0), (0, 1, 0, 0), (1, 0, 0, 0), (0, 0, 0, 1))}
    assert len(seeds) == 5
    assert max(seeds) < 2**63


@pytest.mark.parametrize("mode", ["lin", pytest.param("tune", marks=pytest.mark.slow)])
def test_mid_epoch_resume_is_bit_equal_to_an_uninterrupted_training(tmp_path, mode):
    uninterrupted = workers.calibrate(tmp_path / "whole", mode)
    process = workers.start(workers.calibrate, tmp_path / "parts", mode, (1, 2))
    process.join()
    assert process.exitcode == -signal.SIGKILL
    last = tmp_path / "parts" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] % 5 != 0  # five steps an epoch
    resumed = workers.calibrate(tmp_path / "parts", mode, ckpt_path=last)
    assert set(resumed) == set(uninterrupted)
    assert all(torch.equal(resumed[name], value) for name, value in uninterrupted.items())


def test_lin_exports_a_calibration_that_every_entry_point_accepts(data, tmp_path, pair):
    x, y = pair(2, 64, 64)
    model = PerceptualCalibration("embedded", seed=4)
    fitted = trainer(tmp_path, callbacks=[CalibrationFile(str(tmp_path / "out" / "made.safetensors"), None)])
    fitted.fit(model, loaders(data), loaders(data))
    path = tmp_path / "out" / "made.safetensors"
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    expected = model.eval()(x, y).detach()
    assert torch.allclose(LPIPS("embedded", calibration=path)(x, y), expected, rtol=2e-6)
    metric = LearnedPerceptualImagePatchSimilarity("embedded", reduction="none", calibration=str(path))
    assert torch.allclose(metric(x, y), expected, rtol=2e-6)
    assert torch.allclose(
        PerceptualLoss("embedded", data_range=(-1, 1), calibration=str(path))(x, y), expected.mean(), rtol=2e-6
    )
    record = read_record(path)
    assert record["mode"] == "lin"
    assert record["net_type"] == "embedded"
    assert record["version"] == "0.1"
    assert record["seed"] == 4
    assert record["steps"] == 3
    assert record["scores"]["2afc"] == {"0": pytest.approx(model.calibration_scores["0"], abs=1e-6)}
    assert record["factor"] == 1.0


@pytest.mark.parametrize("mode", ["tune", "scratch"])
def test_trained_backbones_are_exported_with_their_calibration(mode, data, tmp_path, pair):
    x, y = pair(2, 64, 64)
    model = PerceptualCalibration("embedded", mode)
    trainer(tmp_path).fit(model, loaders(data))
    path = model.export(tmp_path / "both.safetensors")
    expected = model.eval()(x, y).detach()
    assert torch.allclose(LPIPS("embedded", weights=path)(x, y), expected, rtol=2e-6)
    assert torch.allclose(LPIPS("embedded", weights=path, calibration=path)(x, y), expected, rtol=2e-6)
    calibration = {layer: weight.clone() for layer, weight in model.calibration.items()}
    alone = LPIPS("embedded", calibration=path)(x, y)  # on the embedded backbone
    assert torch.equal(alone, LPIPS("embedded", calibration=calibration)(x, y))
    assert not torch.equal(alone, expected)


def test_export_is_rescaled_to_the_official_level(data, tmp_path):
    x, y = data.columns["ref"], data.columns["p0"]
    model = PerceptualCalibration("embedded")
    path = model.export(tmp_path / "level.safetensors", "official", [(x[:5], y[:5]), (x[5:], y[5:])])
    official, ours = LPIPS("embedded")(x, y), LPIPS("embedded", calibration=path)(x, y)
    assert float(ours.mean()) == pytest.approx(float(official.mean()), rel=1e-5)
    factor = read_record(path)["factor"]
    assert factor != pytest.approx(1.0, rel=0.01)
    assert torch.allclose(read_tensors(path)["relu2"], model.calibration["relu2"] * factor)
    assert model.training
    with pytest.raises(ValueError, match="pairs: expected pairs of different images to rescale over"):
        model.export(tmp_path / "level.safetensors", "official")
    with pytest.raises(ValueError, match="rescale_to: expected one of 'official', got 'mine'"):
        model.export(tmp_path / "level.safetensors", "mine", [(x, y)])


def test_callback_rescales_over_validation_triplets(data, tmp_path):
    path = tmp_path / "level.safetensors"
    file = CalibrationFile(str(path), rescale_pairs=7)  # "official" is the default
    model = PerceptualCalibration("embedded")
    trainer(tmp_path, callbacks=[file]).fit(model, loaders(data), loaders(data))
    ref, p0, p1 = (data.columns[name][:7] for name in ("ref", "p0", "p1"))
    means = [
        float(torch.cat([net(ref, p0), net(ref, p1)]).mean())
        for net in (LPIPS("embedded"), LPIPS("embedded", calibration=path))
    ]
    assert means[0] == pytest.approx(means[1], rel=1e-5)


def test_a_scale_is_that_of_the_official_calibration_on_the_same_backbone(data, backbones, tmp_path):
    x, y = data.columns["ref"], data.columns["p0"]
    model = PerceptualCalibration("squeeze", weights=backbones["squeeze"])
    path = model.export(tmp_path / "level.safetensors", "official", [(x, y)])
    means = [
        float(LPIPS("squeeze", weights=backbones["squeeze"], calibration=calibration)(x, y).mean())
        for calibration in (None, path)
    ]
    assert means[0] == pytest.approx(means[1], rel=1e-5)


def test_a_training_without_triplets_to_rescale_over_keeps_its_file(data, tmp_path, monkeypatch):
    file = CalibrationFile(str(tmp_path / "made.safetensors"))
    monkeypatch.setattr(file, "_pairs", lambda *_: iter(()))
    with pytest.warns(match=r"made.safetensors keeps the scale of the training: pairs: expected pairs of different"):
        trainer(tmp_path, callbacks=[file]).fit(PerceptualCalibration("embedded"), loaders(data))
    record = read_record(tmp_path / "made.safetensors")
    assert (record["rescale_to"], record["factor"]) == (None, 1.0)


def test_a_scale_that_cannot_be_had_is_refused_before_the_training(data, tmp_path, monkeypatch):
    monkeypatch.setenv("LPIPS_LIGHTNING_WEIGHTS", str(tmp_path))
    (tmp_path / "squeezenet1_1.safetensors").write_bytes(b"damaged")
    model = PerceptualCalibration("squeeze", "scratch")
    with pytest.raises(MisconfigurationException, match="rescale_to: expected the official backbone.*rescale_to: null"):
        trainer(tmp_path, callbacks=[CalibrationFile(str(tmp_path / "a.safetensors"))]).fit(model, loaders(data))
    trainer(tmp_path, callbacks=[CalibrationFile(str(tmp_path / "a.safetensors"), None)]).fit(model, loaders(data))
    assert (tmp_path / "a.safetensors").is_file()


def test_callback_refuses_another_module_and_another_suffix(tmp_path, data):
    from pytorch_lightning.demos.boring_classes import BoringModel

    with pytest.raises(MisconfigurationException, match="expected to be used with PerceptualCalibration, got BoringM"):
        trainer(tmp_path, callbacks=[CalibrationFile()]).fit(BoringModel())
    with pytest.raises(MisconfigurationException, match=r"path: expected a file that ends in .safetensors, got 'a.pt'"):
        trainer(tmp_path, callbacks=[CalibrationFile("a.pt")]).fit(PerceptualCalibration("embedded"), loaders(data))


def test_exports_are_written_atomically(tmp_path, monkeypatch):
    path = write_tensors(tmp_path / "a.safetensors", {"w": torch.ones(3, 2).T}, {"seed": 1}, net_type="alex")
    assert read_record(path) == {"seed": 1, "net_type": "alex"}
    assert torch.equal(read_tensors(path)["w"], torch.ones(2, 3))
    whole = path.read_bytes()

    def fail(tensors, file, metadata):
        Path(file).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        write_tensors(path, {"w": torch.zeros(1)}, {})
    assert path.read_bytes() == whole
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]
    with pytest.raises(ValueError, match="path: expected a file that ends in .safetensors"):
        write_tensors(tmp_path / "a.pth", {}, {})
    (tmp_path / "b.safetensors").write_bytes(b"no")
    with pytest.raises(WeightsError, match=r"b.safetensors: expected a safetensors file"):
        read_record(tmp_path / "b.safetensors")


@pytest.mark.parametrize("mode", ["lin", "tune"])
def test_a_custom_backbone_is_calibrated_and_accepted_by_every_entry_point(data, tmp_path, pair, mode):
    x, y = pair(2, 32, 32)
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 8, 5, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.ReLU())
    backbone = from_module(nn.Sequential(*layers), {"first": "2", "second": "4"}, name="mine")
    model = PerceptualCalibration(backbone, mode=mode, lr=1e-2)
    path = tmp_path / "mine.safetensors"
    trainer(tmp_path, callbacks=[CalibrationFile(str(path))]).fit(model, loaders(data), loaders(data))
    assert {layer: len(weight) for layer, weight in model.calibration.items()} == {"first": 8, "second": 12}
    expected = model.eval()(x, y).detach()
    source = {"calibration": path} if mode == "lin" else {"weights": path}
    net = LPIPS(backbone, **source)
    assert torch.allclose(net(x, y), expected, rtol=1e-6)
    assert "LPIPS mine [first second]" in net.fingerprint
    plain = LPIPS(backbone, calibrated=False).specification.backbone_sha256
    assert (net.specification.backbone_sha256 == plain) == (mode == "lin")
