"""Generated data with CNN-based distortions: alone, and beside the traditional ones."""

import csv
import json
from pathlib import Path

import pytest
import torch
from small_data import write_noise

from lpips_lightning.cli.commands import main as run
from lpips_lightning.data.bapps import JNDDataset, TwoAFCDataset
from lpips_lightning.data.bapps_generate import l2, make_bapps
from lpips_lightning.data.cnn_distortions import (
    DenoisingAutoencoder,
    DistortionFamily,
    GeneratorSpec,
    read_family,
    write_family,
)
from lpips_lightning.data.datamodules import TripletDataModule
from lpips_lightning.io.image_files import read_image

COUNTS = {"train": 5, "val": 3, "jnd": 3, "size": 32}


def networks(count=3):
    torch.manual_seed(0)
    noise = {"corruption": "white_noise", "corruption_strength": 0.5}
    specs = [GeneratorSpec(first_channels=2, most_channels=4, **(noise if index else {})) for index in range(count)]
    return [DenoisingAutoencoder(spec) for spec in specs]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Photographs, a file of a family, and data with both families."""
    folder = tmp_path_factory.mktemp("cnn")
    write_noise(folder / "images")
    write_family(folder / "family.safetensors", networks(), {})
    family = read_family(folder / "family.safetensors")
    make_bapps(folder / "images", folder / "both", **COUNTS, distance=l2, family="both", cnn=family)
    return folder


def rows(path):
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


def files_in(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_both_makes_a_set_of_each_of_half_the_size(folder):
    for part, counts in (("2afc/train", (3, 2)), ("2afc/val", (2, 1)), ("jnd/val", (2, 1))):
        found = {path.name: len(list((path / "p1").iterdir())) for path in (folder / "both" / part).iterdir()}
        assert found == {"traditional": counts[0], "cnn": counts[1]}
    assert len(TwoAFCDataset(folder / "both", "train", ("traditional", "cnn"), size=None)) == 5
    assert len(JNDDataset(folder / "both", size=None)) == 3
    about = json.loads((folder / "both/made.json").read_text())
    assert about["family"] == "both" and about["counts"] == {"2afc/train": 5, "2afc/val": 3, "jnd/val": 3}
    family = read_family(folder / "family.safetensors")
    assert about["networks"] == {"names": ["cnn00", "cnn01", "cnn02"], "sha256": family.sha256}


def test_the_traditional_half_is_that_of_a_traditional_data_set(folder, tmp_path):
    alone = files_in(make_bapps(folder / "images", tmp_path / "out", train=3, val=2, jnd=2, size=32, distance=l2))
    assert list(json.loads(alone["made.json"])) == ["images", "counts", "set", "size", "seed", "judge"]
    both = files_in(folder / "both")
    shared = [name for name in alone if name != "made.json"]
    assert len(shared) == 3 * 4 + 2 * 4 + 2 * 3 + 3
    assert all(both[name] == alone[name] for name in shared)


def test_candidates_are_what_two_different_networks_make_of_the_patch(folder):
    family = read_family(folder / "family.safetensors")
    seen = 0
    for part in ("train", "val"):
        for row in rows(folder / f"both/2afc/{part}/cnn/made.csv"):
            assert row["p0"] != row["p1"] and {row["p0"], row["p1"]} <= set(family.names)
            assert row["p0_strength"] == row["p1_strength"] == ""
            images = {
                kind: read_image(folder / f"both/2afc/{part}/cnn/{kind}/{row['name']}.png").float() / 255
                for kind in ("ref", "p0", "p1")
            }
            for kind in ("p0", "p1"):
                mean = float((images[kind] - images["ref"]).square().mean())
                assert float(row[f"{kind}_distance"]) == pytest.approx(mean, rel=1e-4)
                if row[kind] == "cnn00":  # without noise; the stored patch is rounded to 8 bits
                    made = family.distort(images["ref"][None], "cnn00", torch.Generator())[0]
                    torch.testing.assert_close(images[kind], made, rtol=0, atol=3 / 255)
                    seen += 1
    assert seen


def test_training_and_validation_use_different_photographs_in_both_sets(folder):
    photographs = {
        split: {row["photograph"] for name in ("cnn", "traditional") for row in rows(path / name / "made.csv")}
        for split in ("train", "val")
        for path in [folder / "both/2afc" / split]
    }
    assert photographs["train"] and photographs["val"] and not photographs["train"] & photographs["val"]


def test_the_seed_decides_and_more_items_leave_the_first_ones_as_they_are(folder, tmp_path):
    options = {"distance": l2, "family": "cnn", "cnn": DistortionFamily(networks())}
    one = files_in(make_bapps(folder / "images", tmp_path / "one", **COUNTS, **options))
    assert files_in(make_bapps(folder / "images", tmp_path / "again", **COUNTS, **options)) == one
    more = files_in(make_bapps(folder / "images", tmp_path / "more", **(COUNTS | {"train": 7}), **options))
    other = files_in(make_bapps(folder / "images", tmp_path / "other", **COUNTS, **options, seed=1))
    images = [name for name in one if name.endswith(".png")]
    assert len(images) == 5 * 3 + 3 * 3 + 3 * 2 and all(name.split("/")[2] == "cnn" for name in images)
    assert all(more[name] == one[name] for name in images)
    assert not any(other[name] == one[name] for name in images)


def test_people_judge_both_sets_in_one_table(folder, tmp_path):
    options = {"distance": None, "family": "both", "cnn": DistortionFamily(networks())}
    root = make_bapps(folder / "images", tmp_path / "ask", train=4, val=2, size=32, **options)
    table = rows(root / "judge_train.csv")
    assert [row["ref"].split("/")[2] for row in table] == ["traditional"] * 2 + ["cnn"] * 2
    text = (root / "judge_train.csv").read_text()
    (root / "judge_train.csv").write_text(text.replace(",,\n", ",1,0\n"))
    data = TripletDataModule(str(root / "judge_train.csv"), str(root), size=32, val_fraction=0.3)
    data.setup("fit")
    assert len(data.train_data) + len(data.val_data["triplets"]) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"family": "cnn"},
            "cnn: expected trained networks for family cnn, got none; `lpips-lightning cnn-distortions",
        ),
        ({"family": "gan"}, "family: expected one of traditional, cnn, both, got 'gan'"),
        ({"cnn": DistortionFamily(networks())}, "cnn: expected it with family cnn or both, got family traditional"),
        ({"family": "cnn", "cnn": DistortionFamily(networks(1))}, "cnn: expected at least 2 networks, .* got 1"),
        (
            {"family": "both", "cnn": DistortionFamily(networks()), "set_name": "x"},
            "set_name: expected none for family",
        ),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_written(folder, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        make_bapps(folder / "images", tmp_path / "out", **COUNTS, distance=l2, **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["make", "sheet"])
def test_the_command_takes_the_file_and_names_what_is_missing(folder, tmp_path, monkeypatch, command, capsys):
    monkeypatch.chdir(tmp_path)
    small = "--judge l2 --size 32 --train 2 --val 1 --jnd 0" if command == "make" else ""
    out = {"make": "made", "sheet": "sheet.png"}[command]
    line = ["bapps", command, "--folder", str(folder / "images"), "--out", out, *small.split()]
    for wrong, said in (
        (
            ["--family", "cnn"],
            "cnn: expected --cnn FILE with --family cnn, got none; `lpips-lightning cnn-distortions fit",
        ),
        (["--cnn", "f.safetensors"], "family: expected --family cnn with --cnn FILE, got traditional"),
        (["--family", "cnn", "--cnn", "gone.safetensors"], "got none at 'gone.safetensors'; `lpips-lightning cnn-dist"),
    ):
        assert run([*line, *wrong]) == 2
        assert said in capsys.readouterr().err
        assert not list(tmp_path.iterdir())
    assert run([*line, "--family", "cnn", "--cnn", str(folder / "family.safetensors")]) == 0, capsys.readouterr().err
    made = tmp_path / "made/2afc/train/cnn/p0/000001.png" if command == "make" else tmp_path / "sheet.pdf"
    assert made.is_file()
