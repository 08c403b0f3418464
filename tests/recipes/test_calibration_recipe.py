"""The calibration recipe: its command line, on a small data set of both kinds, and fast lin."""

import csv
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import toy_judgments as judged
import yaml

from lpips_lightning import LPIPS
from lpips_lightning.cli.commands import main as run_command
from lpips_lightning.data.bapps import TwoAFCDataset
from lpips_lightning.data.datamodules import TripletDataModule
from lpips_lightning.io.image_files import read_image, write_image
from lpips_lightning.io.tensor_files import read_record
from lpips_lightning.recipes.calibration import main
from lpips_lightning.weights import read_tensors

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
    return [f"--data.folder={root}", *sets, "--data.size=40", "--data.num_workers=0", "--data.batch_size=10"]


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
        f"--data.folder={images / '2afc/train/noise'}",
        "--data.size=40",
        "--data.num_workers=0",
    ]
    main(["fit", *QUIET, *own, "--trainer.max_epochs=1", "--file.path=mine.safetensors"])
    record = read_record(tmp_path / "mine.safetensors")
    assert list(record["scores"]["2afc"]) == ["triplets"]
    assert record["rescale_to"] == "official"
    assert record["factor"] > 0


def log_of(name):
    with Path("outputs", name, "version_0/metrics.csv").open(newline="") as text:
        (row,) = csv.DictReader(text)
    return {name: float(value) for name, value in row.items()}


@pytest.mark.parametrize("source", ["csv", "data set"])
def test_fast_lin_writes_a_better_calibration(source, images, tmp_path, monkeypatch, capsys, caplog):
    monkeypatch.chdir(tmp_path)
    own = ["--csv", str(images / "own.csv"), "--folder", str(images / "2afc/train/noise"), "--val-fraction", "0.3"]
    if source == "data set":
        own = ["--folder", str(images)]  # the sets that are there
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
            "--cache",
            "c",
            "--out",
            "o.safetensors",
            "--logger",
            "csv",
        ]
    )
    said = capsys.readouterr().out
    assert "Training on " in said and " triplets, " in said
    record = read_record(tmp_path / "o.safetensors")
    (scores,) = record["scores"].values()
    assert scores["human"] is None  # one vote per triplet
    assert f"{100 * scores['2afc']:.2f}" in said
    assert "difference" in said and "human ceiling         -" in said and "the noise" in said
    count = {"csv": "30 judged triplets, 9 held out", "data set": "60 judged triplets, 30 held out"}[source]
    assert f"{count}: too few to tell a better calibration from chance" in caplog.text
    assert len(list((tmp_path / "c").iterdir())) == 2
    assert record["fast"] is True and not {"logger", "devices"} & set(record)
    ((name, logged),) = [(name, value) for name, value in log_of("calibration").items() if name.endswith("/2afc")]
    assert (name.split("/")[1], logged) == (next(iter(record["scores"])), scores["2afc"])
    config = yaml.safe_load(Path("outputs/calibration/version_0/hparams.yaml").read_text())
    assert "lin custom o.safetensors sha256:" in config["fingerprint"]
    assert record["factor"] != pytest.approx(1)
    (line,) = re.findall(r"Python: (LPIPS\(.*\))", said)
    made = eval(line)
    assert made.fingerprint.startswith("LPIPS embedded v0.1, lin custom o.safetensors sha256:")
    assert re.search("Shell:  lpips-lightning (compare a.png b.png --net embedded --calibration o.safetensors)", said)
    assert "Written to o.png and o.pdf: its report" in said and read_image(tmp_path / "o.png").shape[0] == 3
    own_judgments = TripletDataModule(str(images / "own.csv"), str(images / "2afc/train/noise"), None, 0.3, size=40)
    own_judgments.setup("fit")
    train = own_judgments.train_data if source == "csv" else TwoAFCDataset(images, "train", ["noise"], 40)
    means = [
        sum(float(net(item["ref"][None], item[kind][None])) for item in train for kind in ("p0", "p1"))
        for net in (made, LPIPS("embedded"))
    ]
    assert means[0] == pytest.approx(means[1], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("source", ["csv", "data set"])
def test_fast_lin_on_two_processes_writes_the_same_bits_once(source, images, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    own = ["--csv", str(images / "own.csv"), "--folder", str(images / "2afc/train/noise")]
    own = ["fast", *(own if source == "csv" else ["--folder", str(images)]), "--net", "embedded", "--size", "40"]
    main([*own, "--cache", "one", "--out", "one.safetensors"])
    capfd.readouterr()
    two = [*own, "--cache", "two", "--devices", "2", "--accelerator", "cpu", "--workers", "1"]
    assert run_command(["calibration", *two, "--out", "two.safetensors", "--logger", "csv"]) == 0
    said = capfd.readouterr().out
    assert (said.count("Training on"), said.count("Logged to outputs/calibration/version_0")) == (1, 1)
    assert [path.name for path in Path("outputs/calibration").iterdir()] == ["version_0"]
    names = [sorted(path.name for path in Path(folder).iterdir()) for folder in ("one", "two")]
    assert names[0] == names[1] and len(names[0]) == 2
    for name in names[0]:
        first, second = (read_tensors(Path(folder, name)) for folder in ("one", "two"))
        assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    first, second = read_tensors(Path("one.safetensors")), read_tensors(Path("two.safetensors"))
    assert all(torch.equal(first[key], second[key]) for key in first)

    shutil.copytree(images, "broken")
    path = Path("broken/2afc/train/noise/p1/7.png")
    path.write_text("no image")
    own[own.index("--folder") + 1] = str(Path("broken/2afc/train/noise")) if source == "csv" else "broken"
    assert run_command(["calibration", *own, "--devices", "2", "--accelerator", "cpu", "--out", "bad.safetensors"]) == 2
    failed = capfd.readouterr().err
    assert failed.count("p1/7.png: expected a readable image") == 1
    assert not list(tmp_path.glob("bad.*"))


@pytest.mark.parametrize("spelling", ["--folder", "--images", "--root"])
def test_fast_lin_keeps_its_own_scale_on_request(spelling, images, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lpips_lightning.recipes.calibration.find_spec", lambda name: None)  # no matplotlib
    own = ["--csv", str(images / "own.csv"), spelling, str(images / "2afc/train/noise"), "--split-by", "triplet"]
    main(["fast", *own, "--net", "embedded", "--size", "40", "--no-rescale", "--out", "o.safetensors"])
    said = capsys.readouterr().out
    assert read_record(tmp_path / "o.safetensors")["factor"] == 1.0
    assert "the calibration, not rescaled" in said and 'pip install "lpips_lightning[recipes]"' in said
    assert not (tmp_path / "o.png").exists()


def test_fast_lin_refuses_a_scale_of_equal_images(images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [f"ref/{n}.png,ref/{n}.png,ref/{n}.png,1" for n in range(4)]
    (tmp_path / "same.csv").write_text("\n".join(["ref,p0,p1,judge", *rows]))
    own = ["--csv", "same.csv", "--folder", str(images / "2afc/train/noise"), "--net", "embedded", "--size", "40"]
    with pytest.raises(ValueError, match=r"rescale: expected mean distances above 0, got 0 and 0 \(official\); if the"):
        main(["fast", *own, "--out", "o.safetensors"])
    assert not (tmp_path / "o.safetensors").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "folder: expected --folder DIR, of the images of --csv FILE or of a data set, got none"),
        (["--csv", "a.csv"], "folder: expected --folder DIR"),
        (["--folder", "b", "--val-csv", "a.csv"], "val-csv: expected --csv FILE with it, got none"),
    ],
)
def test_fast_lin_needs_a_folder(args, message):
    with pytest.raises(ValueError, match=message):
        main(["fast", *args])


def test_module_docstring_names_commands_that_exist():
    from lpips_lightning.recipes import calibration

    for command in ("fit", "fast", "test"):
        assert f"lpips-lightning calibration {command}" in calibration.__doc__
