"""The trade-off table: rows, weights, equal batches, resume, messages."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console
from small_data import write_noise
from torch import Tensor

from lpips_lightning import LPIPS, PerceptualLoss
from lpips_lightning.recipes import frame_interpolation
from lpips_lightning.recipes.superresolution import SuperResolution, main
from lpips_lightning.recipes.tradeoff_table import TradeoffRow, markdown, read_rows, rich_table, write_rows

OUT = Path("outputs/superresolution/tradeoff")
SMALL = [
    *["--model.n_resblocks=1", "--model.n_feats=4", "--data.folder=images", "--data.held_out=[d]"],
    *["--data.crop_size=32", "--data.val_crop_size=32", "--data.epoch_size=4", "--data.batch_size=2"],
    *["--trainer.max_epochs=2", "--trainer.accelerator=cpu"],
]


@pytest.fixture(autouse=True)
def _images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "150")
    write_noise("images")


def tradeoff(losses, *more, judges="embedded"):
    """Make a table; returns its rows by loss."""
    main(["tradeoff", f"--losses={losses}", f"--judges={judges}", *SMALL, *more])
    return rows()


def rows():
    with (OUT / "tradeoff.csv").open() as file:
        return {(row["loss"], row["seed"]): row for row in csv.DictReader(file)}


def test_a_loss_with_a_discriminator_has_its_own_row_and_the_same_start_and_batches(monkeypatch, capsys):
    seen: dict[float, list[float]] = {}
    step = SuperResolution.training_step

    def watched(self, batch, batch_idx):
        first = [float(self.network.head.weight.detach().sum())] if self.trainer.global_step == 0 else []
        seen.setdefault(self.hparams["adversarial_weight"], []).extend([*first, float(batch[1].sum())])
        return step(self, batch, batch_idx)

    monkeypatch.setattr(SuperResolution, "training_step", watched)
    made = tradeoff("untrained,baseline,baseline+gan")
    assert seen[0.0] == seen[0.5]
    assert [(loss, row["adversarial"]) for (loss, _), row in made.items()] == [
        ("untrained", "0"),
        ("embedded:baseline", "0"),
        ("embedded:baseline+gan", "0.5"),
    ]
    weights = [row["weight"] for row in made.values()]
    assert weights[1] == weights[2] != "0"
    states = [torch.load(OUT / f"embedded_baseline{gan}_seed0.ckpt", weights_only=True) for gan in ("", "_gan")]
    assert [any(name.startswith("adversarial") for name in state["state_dict"]) for state in states] == [False, True]
    text = (OUT / "tradeoff.md").read_text()
    assert "| L1 + LPIPS(embedded, uncalibrated) + GAN |" in text
    assert "GAN: with a discriminator, adversarial weight 0.5." in text
    assert text.count("\u2020 |") == 2
    assert "+ embedded:baseline + GAN" in capsys.readouterr().out
    assert 1000 < (OUT / "tradeoff.jpg").stat().st_size < 150_000


@pytest.mark.slow
def test_the_weight_of_the_options_is_that_of_the_rows_with_a_discriminator_only():
    made = tradeoff("pixel,pixel+gan", "--model.adversarial_weight=0.2", "--trainer.max_epochs=1")
    assert [row["adversarial"] for row in made.values()] == ["0", "0.2"]


def test_a_recipe_without_discriminator_says_which_have_one():
    with pytest.raises(ValueError, match="expected a recipe whose model has adversarial_weight for .*superresolution"):
        frame_interpolation.main(["tradeoff", "--losses=pixel,pixel+gan"])


def no_training(monkeypatch):
    monkeypatch.setattr(SuperResolution, "training_step", lambda *args: pytest.fail("a model was trained"))


def test_every_loss_has_a_row_a_model_and_an_image(capsys):
    made = tradeoff("untrained,pixel,embedded,baseline,vgg", "--model.loss_weight=0.2")
    assert [loss for loss, _ in made] == ["untrained", "pixel", "embedded", "embedded:baseline", "vgg"]
    trained = ["pixel", "embedded", "embedded:baseline"]
    scores = {loss: [float(made[loss, "0"][name]) for name in ("psnr", "ssim", "lpips_embedded")] for loss in trained}
    assert len({tuple(values) for values in scores.values()}) == 3
    assert made["vgg", "0"]["note"] == "skipped: the backbone of vgg is not on this machine"
    assert made["vgg", "0"]["psnr"] == ""
    stems = ["pixel_seed0", "embedded_seed0", "embedded_baseline_seed0"]
    assert {path.stem for path in OUT.glob("*.ckpt")} == set(stems)
    images = {*stems, "untrained_seed0", "target", "input", "tradeoff", "scores"}
    assert {path.stem for path in OUT.glob("*.png")} == images
    assert (OUT / "scores.pdf").read_bytes().startswith(b"%PDF")
    said = capsys.readouterr().out
    assert f"Scores: {OUT}/scores.png, {OUT}/scores.pdf" in said
    for words in (
        "bicubic",
        "+ embedded:baseline",
        "+ vgg: skipped: the backbone of vgg is not on this machine",
    ):
        assert words in said
    text = (OUT / "tradeoff.md").read_text()
    assert text.count("\u2020 |") == 2  # of the embedded net's own two rows
    assert "`lpips-lightning superresolution tradeoff --losses=" in text
    check_weights(made)


def check_weights(made):
    """Weight 0 for pixels, the recipe's for networks; baselines give the untrained model the same loss."""
    weights = {loss: float(row["weight"]) for (loss, _), row in made.items()}
    assert weights["untrained"] == weights["pixel"] == 0
    assert weights["embedded"] == 0.2
    target, preds = (read(f"{OUT}/{name}.png") for name in ("target", "untrained_seed0"))
    calibrated, plain = (LPIPS("embedded", calibrated=on)(preds, target, (0, 1)) for on in (True, False))
    # Over both crops in the table, over one of them here.
    assert weights["embedded:baseline"] == pytest.approx(0.2 * float(calibrated / plain), rel=0.1)
    model = torch.load(OUT / "embedded_baseline_seed0.ckpt", weights_only=True)["hyper_parameters"]
    assert model["loss_net"] == "embedded"
    assert not model["loss_calibrated"]
    assert model["loss_weight"] == pytest.approx(weights["embedded:baseline"], rel=1e-5)


def read(file) -> Tensor:
    from lpips_lightning.io.image_files import read_image

    return read_image(file)[None] / 255


def test_every_training_has_the_same_start_and_batches(monkeypatch):
    seen: list[list[float]] = []
    step = SuperResolution.training_step

    def watched(self, batch, batch_idx):
        if self.trainer.global_step == 0:
            seen.append([float(parameter.detach().sum()) for parameter in self.network.parameters()])
        seen[-1].append(float(batch[1].sum()))
        return step(self, batch, batch_idx)

    # One loss draws more random numbers than another while it is made.
    monkeypatch.setattr(SuperResolution, "on_fit_start", lambda self: torch.rand(1 + len(seen)), raising=False)
    monkeypatch.setattr(SuperResolution, "training_step", watched)
    tradeoff("pixel,embedded", "--seeds=0,1")
    assert len(seen) == 4
    assert seen[0] == seen[2]
    assert seen[1] == seen[3]
    assert seen[0] != seen[1]


def test_a_second_run_trains_only_additional_losses(monkeypatch):
    before = tradeoff("untrained,embedded")
    text = (OUT / "tradeoff.csv").read_text()
    with monkeypatch.context() as patch:
        no_training(patch)
        assert tradeoff("untrained,embedded") == before
    assert (OUT / "tradeoff.csv").read_text() == text
    more = tradeoff("pixel")
    assert set(more) == {("pixel", "0"), *before}
    assert {key: more[key] for key in before} == before


@pytest.mark.slow
def test_an_additional_metric_network_needs_no_training(monkeypatch):
    before = tradeoff("pixel")
    no_training(monkeypatch)
    judge = LPIPS("squeeze", weights="random")
    monkeypatch.setattr(LPIPS, "of", lambda net_type, options, owner, **defaults: judge)
    after = tradeoff("pixel", judges="embedded,squeeze")
    assert float(after["pixel", "0"]["lpips_squeeze"]) > 0
    assert after["pixel", "0"]["psnr"] == before["pixel", "0"]["psnr"]
    assert after["pixel", "0"]["seconds"] == before["pixel", "0"]["seconds"]


def test_a_failed_training_is_reported_and_the_others_continue(monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(PerceptualLoss, "forward", lambda *args: 1 / 0)
        with pytest.warns(UserWarning, match="embedded_seed0: ZeroDivisionError: division by zero"):
            made = tradeoff("embedded,pixel")
    assert made["embedded", "0"]["note"] == "failed: ZeroDivisionError"
    assert made["pixel", "0"]["note"] == ""
    assert "+ embedded: failed: ZeroDivisionError" in capsys.readouterr().out
    assert tradeoff("embedded,pixel")["embedded", "0"]["note"] == ""


def test_an_interrupted_run_keeps_finished_rows_and_resumes(monkeypatch, capsys):
    def interrupt(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(PerceptualLoss, "forward", interrupt)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            tradeoff("pixel,embedded")
    assert set(rows()) == {("pixel", "0")}
    assert "pixel" in capsys.readouterr().out
    assert not list(OUT.glob("embedded*"))
    steps = []
    step = SuperResolution.training_step
    monkeypatch.setattr(SuperResolution, "training_step", lambda *args: steps.append(0) or step(*args))
    assert set(tradeoff("pixel,embedded")) == {("pixel", "0"), ("embedded", "0")}
    assert len(steps) == 4  # of the embedded net's training alone


@pytest.mark.slow
def test_a_table_with_other_options_is_not_resumed_and_replaced_on_request_only():
    tradeoff("pixel", "--data.cache=true")
    with pytest.raises(ValueError, match="out: expected the options of the table in .* pass another --out .* --force"):
        tradeoff("pixel", f"--out={OUT}")
    assert json.loads((OUT / "settings.json").read_text())["options"][-1] == "--data.cache=true"
    tradeoff("pixel")
    assert (OUT.with_name("tradeoff-2") / "tradeoff.csv").is_file()
    tradeoff("untrained", f"--out={OUT}", "--force")
    assert json.loads((OUT / "settings.json").read_text())["options"][-1] != "--data.cache=true"
    assert [loss for loss, _ in rows()] == ["untrained"] and not list(OUT.glob("*.ckpt"))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--losses=pixel,lpips"], "losses: expected some of untrained, pixel, baseline, alex, .* got 'lpips'"),
        (["--losses=alex:tuned"], "losses: expected some of .* got 'alex:tuned'"),
        (["--losses=untrained+gan"], "losses: expected some of .* with .gan, got 'untrained.gan'"),
        (
            ["--judges=ssim"],
            "judges: expected some of alex, vgg, squeeze, embedded, embedded-vgg, alex-st, vgg-st, got 'ssim'",
        ),
        (
            ["--judges=embedded", "--data.folder=nowhere"],
            "folder: expected an existing folder of images, got 'nowhere'",
        ),
    ],
)
def test_errors_are_raised_before_any_training(args, message, monkeypatch):
    no_training(monkeypatch)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        main(["tradeoff", *SMALL, *args])
    assert not (OUT / "settings.json").exists()


def test_bad_command_lines_are_refused_with_usage(capsys):
    for args, message in ((["--seeds=one"], "--seeds"), (["now"], "expected options, got 'now'")):
        with pytest.raises(SystemExit, match="2"):
            main(["tradeoff", *args])
        assert message in capsys.readouterr().err


def test_seeds_share_one_line_with_mean_and_standard_deviation(tmp_path):
    bicubic = {"psnr": 25.0, "ssim": 0.8, "lpips_alex": 0.3, "lpips_vgg": 0.4}
    one = {"psnr": 26.0, "ssim": 0.8, "lpips_alex": 0.1, "lpips_vgg": 0.2, "delta": 3}
    two = one | {"psnr": 27.0, "lpips_alex": 0.2, "delta": 5}
    scored = [
        TradeoffRow("untrained", 0, scores=bicubic),
        TradeoffRow("alex", 0, 0.05, 60, "", one),
        TradeoffRow("alex", 1, 0.05, 70, "", two),
    ]
    write_rows(tmp_path / "rows.csv", scored)
    assert read_rows(tmp_path / "rows.csv") == scored
    table = markdown(scored, {"untrained": "bicubic", "pixel": "L1"}).splitlines()
    assert (
        table[0]
        == "| loss | weight | time | PSNR \u2191 | SSIM \u2191 | LPIPS(alex) \u2193 | LPIPS(vgg) \u2193 | delta |"
    )
    assert table[2] == "| bicubic | 0 | \u2013 | 25.00 | 0.800 | 0.300 | 0.400 | \u2013 |"
    alex = "26.50 \u00b1 0.71 | 0.800 \u00b1 0.000 | 0.150 \u00b1 0.071\u2020 | 0.200 \u00b1 0.000 | 4.000 \u00b1 1.414"
    assert table[3] == f"| L1 + LPIPS(alex) | 0.05 | 65 s | {alex} |"
    assert "over the seeds 0, 1." in table[-1]


def test_the_table_of_four_networks_fits_80_characters_with_every_loss_on_one_line():
    names = ("psnr", "ssim", "lpips_alex", "lpips_squeeze", "lpips_vgg", "lpips_embedded")
    scores = dict.fromkeys(names, 0.123456) | {"psnr": 27.471}
    losses = ("untrained", "pixel", "alex", "vgg:baseline", "embedded", "squeeze:baseline")
    scored = [TradeoffRow(loss, 0, 0.00454, 516.0, scores=scores) for loss in losses]
    console = Console(width=80)
    with console.capture() as shown:
        console.print(rich_table(scored, "scores by loss", {"untrained": "bicubic"}))
    lines = [line.rstrip() for line in shown.get().splitlines()]
    assert max(map(len, lines)) <= 80
    assert lines[3].split() == ["loss", "weight", "time", *["\u2191"] * 2, *["\u2193"] * 4]
    values = ["0.0045", "516", "s", "27.47", "0.123", "0.123", "0.123\u2020", "0.123", "0.123"]
    assert lines[-1].split() == ["+", "squeeze:baseline", *values]
    assert len(lines) == 5 + len(losses)


def test_a_damaged_table_is_refused(tmp_path):
    (tmp_path / "rows.csv").write_text("loss,seed\npixel,0\n")
    with pytest.raises(ValueError, match="expected the columns loss, seed, weight, seconds, note"):
        read_rows(tmp_path / "rows.csv")


def test_a_table_without_the_column_of_the_discriminator_is_read(tmp_path):
    (tmp_path / "rows.csv").write_text("loss,seed,weight,seconds,note,psnr\nalex,1,0.05,60,,25\n")
    assert read_rows(tmp_path / "rows.csv") == [TradeoffRow("alex", 1, 0.05, 60, scores={"psnr": 25})]


@pytest.mark.slow
def test_a_loss_a_seed_or_a_judge_that_is_given_twice_counts_once_and_the_command_can_be_copied():
    made = tradeoff("pixel, pixel", "--seeds=0,0", "--trainer.max_epochs=1", judges="embedded,embedded")
    assert list(made) == [("pixel", "0")]
    text = (OUT / "tradeoff.md").read_text()
    assert "\u00b1" not in text
    assert "'--losses=pixel, pixel' --judges=embedded,embedded" in text and "'--data.held_out=[d]'" in text


@pytest.mark.slow
@pytest.mark.real
def test_lpips_as_loss_is_a_quarter_below_bicubic_and_below_the_pixel_loss(real_weights, monkeypatch):
    monkeypatch.setenv("LPIPS_LIGHTNING_WEIGHTS", str(real_weights))
    losses = "--losses=untrained,pixel,embedded"
    main(["tradeoff", losses, "--judges=alex", "--trainer.max_epochs=3", "--trainer.accelerator=cpu"])
    found = {loss: float(row["lpips_alex"]) for (loss, _), row in rows().items()}
    assert found["embedded"] < 0.75 * found["untrained"]
    assert found["embedded"] < found["pixel"]
