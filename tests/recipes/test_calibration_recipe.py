"""The calibration recipe: its command line, on a small data set of both kinds, and fast lin."""

import shutil

import numpy as np
import pytest
import toy_judgments as judged
import yaml

from lpips_lightning import LPIPS
from lpips_lightning.io.image_files import write_image
from lpips_lightning.io.tensor_files import read_record
from lpips_lightning.recipes.calibration import main

pytestmark = [
    # 2026-11-21, pytorch_lightning/trainer/connectors/data_connector.py: right for large data, noise for a few rows.
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    # 2026-11-21, pytorch_lightning/callbacks/model_checkpoint.py: a resumed run writes beside the first one's.
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A data set in the paper's layout, and a CSV over its images."""
    root = tmp_path_factory.mktemp("data")
    for split, seed in (("train", 0), ("val", 1)):
        data = judged.hard_triplets(30, judged.hidden_judge(), 40, seed)
        folder = root / "2afc" / split / "noise"
        for number in range(len(data)):
            for kind in ("ref", "p0", "p1"):
                write_image((data[number][kind] + 1) / 2, folder / kind / f"{number}.png")
            (folder / "judge").mkdir(exist_ok=True)
            np.save(folder / "judge" / f"{number}.npy", np.float32(data[number]["judge"]))
    shutil.copytree(root / "2afc/val/noise", root / "jnd/val/noise")
    (root / "jnd/val/noise/judge").rename(root / "jnd/val/noise/same")
    train = root / "2afc/train/noise"
    rows = [f"ref/{n}.png,p0/{n}.png,p1/{n}.png,{float(np.load(train / f'judge/{n}.npy'))}" for n in range(30)]
    (root / "own.csv").write_text("\n".join(["ref,p0,p1,judge", *rows]))
    return root


def bapps(root):
    sets = ["--data.train_sets=[noise]", "--data.val_sets=[noise]", "--data.jnd_sets=[noise]"]
    return [f"--data.root={root}", *sets, "--data.size=40", "--data.num_workers=0", "--data.batch_size=10"]


QUIET = [
    "--model.net_type=embedded",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.log_every_n_steps=1",
]


def test_packaged_yaml_takes_one_step(images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(["fit", *QUIET, *bapps(images), "--trainer.fast_dev_run=true"])
    assert list(tmp_path.rglob("*.safetensors")) == []


def test_packaged_yaml_has_the_papers_settings(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(["fit", "--print_config"])
    found = yaml.safe_load(capsys.readouterr().out)
    model = {
        name: found["model"][name] for name in ("mode", "lr", "betas", "constant_epochs", "decay_epochs", "dropout")
    }
    assert model == {
        "mode": "lin",
        "lr": 1e-4,
        "betas": [0.5, 0.999],
        "constant_epochs": 6,
        "decay_epochs": 4,
        "dropout": 0.5,
    }
    assert found["trainer"]["max_epochs"] == 10
    data = found["data"]["init_args"]
    assert (data["batch_size"], data["size"]) == (50, 64)
    assert data["train_sets"] == ["traditional", "cnn", "mix"]


def test_command_fits_resumes_and_tests(images, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    common = [*QUIET, *bapps(images), "--last.every_n_train_steps=2", "--model.lr=1e-2"]
    main(["fit", *common, "--trainer.max_epochs=2"])
    folder = tmp_path / "outputs/calibration/version_0"
    assert {"best.ckpt", "last.ckpt"} == {path.name for path in (folder / "checkpoints").iterdir()}
    record = read_record(folder / "calibration.safetensors")
    assert list(record["scores"]["2afc"]) == ["noise"]
    assert record["steps"] == 6
    assert LPIPS("embedded", calibration=folder / "calibration.safetensors").fingerprint
    main(["fit", *common, "--trainer.max_epochs=3", f"--ckpt_path={folder / 'checkpoints/last.ckpt'}"])
    assert read_record(folder / "calibration.safetensors")["steps"] == 9
    capsys.readouterr()
    main(["test", *common, f"--ckpt_path={folder / 'checkpoints/best.ckpt'}"])
    said = capsys.readouterr().out
    assert "test/noise/2afc" in said
    assert "test/noise/jnd" in said


def test_training_on_custom_judgments(images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = [
        "--data=TripletDataModule",
        f"--data.csv={images / 'own.csv'}",
        f"--data.images={images / '2afc/train/noise'}",
        "--data.size=40",
        "--data.num_workers=0",
    ]
    main(["fit", *QUIET, *own, "--trainer.max_epochs=1", "--file.path=mine.safetensors", "--file.rescale_to=official"])
    record = read_record(tmp_path / "mine.safetensors")
    assert list(record["scores"]["2afc"]) == ["triplets"]
    assert record["rescale_to"] == "official"
    assert record["factor"] > 0


@pytest.mark.parametrize("source", ["csv", "root"])
def test_fast_lin_writes_a_better_calibration(source, images, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    own = ["--csv", str(images / "own.csv"), "--images", str(images / "2afc/train/noise"), "--val-fraction", "0.3"]
    if source == "root":
        own = ["--root", str(images), "--sets", "noise"]
    main(
        [
            "fast",
            *own,
            "--net",
            "embedded",
            "--size",
            "40",
            "--lr",
            "1e-2",
            "--rescale",
            "--cache",
            "c",
            "--out",
            "o.safetensors",
        ]
    )
    said = capsys.readouterr().out
    assert "Training on " in said and " triplets, " in said
    record = read_record(tmp_path / "o.safetensors")
    (scores,) = record["scores"].values()
    assert scores["human"] == 1.0
    assert f"{100 * scores['2afc']:.2f}" in said
    assert len(list((tmp_path / "c").iterdir())) == 2
    assert record["fast"] is True
    assert record["factor"] != pytest.approx(1)
    made = LPIPS("embedded", calibration=tmp_path / "o.safetensors")
    assert made.fingerprint != LPIPS("embedded").fingerprint
    data = judged.triplets(6, 40).columns
    assert 0.1 < float(made(data["ref"], data["p0"]).mean() / LPIPS("embedded")(data["ref"], data["p0"]).mean()) < 10


@pytest.mark.parametrize("args", [[], ["--csv", "a.csv"], ["--csv", "a.csv", "--images", "b", "--root", "c"]])
def test_fast_lin_needs_one_source(args):
    with pytest.raises(ValueError, match="csv: expected either --csv FILE with --images DIR, or --root DIR"):
        main(["fast", *args])


def test_module_docstring_names_commands_that_exist():
    from lpips_lightning.recipes import calibration

    for command in ("fit", "fast", "test"):
        assert f"lpips-lightning calibration {command}" in calibration.__doc__
