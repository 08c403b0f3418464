"""A missing backbone on a command line: one line before any work, with the option that needs no download."""

from pathlib import Path

import pytest

from lpips_lightning.backbones.offline import require_backbone
from lpips_lightning.cli.commands import main as run
from lpips_lightning.weights import WeightsError
from tests._helpers.small_data import write_bapps, write_noise

# Command lines without data enough for their work, and the option that the error names.
COMMAND_LINES = {
    "compare": (["compare", "images/a.png", "images/b.png"], "--net alex"),
    "correlate": (["correlate", "mos.csv", "--net", "vgg"], "--net vgg"),
    "export": (["export", "--net", "squeeze", "--out", "net.pt"], "--net squeeze"),
    "paper": (["paper", "--photographs", "images", "--methods", "l2", "--judge", "vgg"], "--judge vgg"),
    "bapps make": (["bapps", "make", "--images", "images", "--out", "made", "--judge", "alex"], "--judge alex"),
    "bapps evaluate": (["bapps", "evaluate", "l2", "alex:baseline", "--root", "bapps"], "METHOD alex"),
    "calibration fast": (["calibration", "fast", "--root", "bapps"], "--net alex"),
    "demo": (["demo", "--metric-net", "alex"], "--metric-net alex"),
    "superresolution fit": (["superresolution", "fit"], "--scores.net_type alex"),
    "superresolution test": (["superresolution", "test"], "--scores.net_type alex"),
    "loss": (
        ["superresolution", "fit", "--scores.net_type", "embedded", "--model.loss_net", "vgg"],
        "--model.loss_net vgg",
    ),
    "colorization predict": (["colorization", "predict", "--model.features_net", "vgg"], "--model.features_net vgg"),
    "frame-interpolation fit": (["frame-interpolation", "fit"], "--scores.net_type alex"),
    "deblurring fit": (["deblurring", "fit"], "--scores.net_type alex"),
    "autoencoder fit": (["autoencoder", "fit"], "--scores.net_type alex"),
    "distillation fit": (["distillation", "fit"], "--model.teacher alex"),
    "cnn-distortions fit": (["cnn-distortions", "fit", "--model.loss_net", "vgg"], "--model.loss_net vgg"),
    "calibration fit": (["calibration", "fit"], "--model.net_type alex"),
}


@pytest.fixture(autouse=True)
def _data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_noise("images")
    write_bapps("bapps", {"2afc/train/cnn": 2, "2afc/val/cnn": 2}, size=31)
    Path("mos.csv").write_text("reference,distorted,score\nimages/a.png,images/b.png,1\nimages/a.png,images/c.png,2\n")


@pytest.mark.parametrize("name", COMMAND_LINES)
def test_the_error_is_one_line_with_the_option_and_comes_before_any_work(name, capsys):
    line, chosen = COMMAND_LINES[name]
    before = set(Path().rglob("*"))
    assert run(line) == 2
    _, err = capsys.readouterr()
    error = err[err.rindex("lpips-lightning: ") :]
    assert error.startswith(f"lpips-lightning: {chosen}: expected its backbone on this machine or a network")
    instead = "embedded-vgg" if "vgg" in chosen or "scores" in chosen else "embedded"  # scores: not the loss's network
    assert f"offline, use {chosen.split()[0]} {instead}, or set LPIPS_LIGHTNING_WEIGHTS to a folder" in error
    assert error.count("\n") == 1 and "the tests have no network" in error
    assert f"{chosen}: its backbone is not on this machine; downloading it" in err
    assert set(Path().rglob("*")) == before


def test_networks_that_are_not_used_are_not_required(capsys):
    data = "--data.folder images --data.held_out [a] --data.val_crop_size 48"
    off = "--without scores gallery checkpoint --trainer.logger false --trainer.accelerator cpu"
    assert run(["superresolution", "validate", "--model.loss_net", "vgg", *data.split(), *off.split()]) == 0
    assert "backbone" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("net_type", "weights"), [("embedded", None), ("alex", "random"), (None, None), ("mine", None)]
)
def test_nothing_is_downloaded_for_other_networks(net_type, weights):
    require_backbone(net_type, "--net", weights)
    with pytest.raises(WeightsError, match="--net vgg: expected its backbone"):
        require_backbone("vgg", "--net")


@pytest.mark.parametrize("options", [["--distance", "dists"], ["--convention", "3dgs"]])
def test_no_network_is_named_where_none_can_take_its_place(options, capsys):
    assert run(["compare", "images/a.png", "images/b.png", "--net", "vgg", *options]) == 2
    error = capsys.readouterr().err
    assert "embedded" not in error
    assert "offline, set LPIPS_LIGHTNING_WEIGHTS to a folder that `lpips-lightning weights fetch --net vgg" in error
