"""Generated data sets: complete, deterministic, judged by the given distance; and the contact sheet."""

import csv
import json
from contextlib import contextmanager

import pytest
import torch
from _helpers.figure_layout import layout_faults
from PIL import Image

from lpips_lightning import LPIPS
from lpips_lightning.cli import commands as cli
from lpips_lightning.data import bapps_generate as bapps_make
from lpips_lightning.data.bapps import JNDDataset, TwoAFCDataset
from lpips_lightning.data.bapps_generate import l2, make_bapps
from lpips_lightning.data.datamodules import TripletDataModule
from lpips_lightning.data.distortion_sheet import STRENGTHS, sheet_figure, write_sheet
from lpips_lightning.data.distortions import DISTORTIONS
from lpips_lightning.io.image_files import read_image

SMALL = {"train": 6, "val": 4, "jnd": 4, "size": 32}
EMBEDDED = LPIPS("embedded")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Four images of smooth colors with edges."""
    folder = tmp_path_factory.mktemp("photographs")
    numbers = torch.Generator().manual_seed(0)
    for name in "abcd":
        coarse = torch.rand(1, 3, 5, 6, generator=numbers)
        smooth = torch.nn.functional.interpolate(coarse, (72, 80), mode="bicubic")[0]
        smooth[:, 20:50, 30:60] = torch.rand(3, 1, 1, generator=numbers)
        Image.fromarray((smooth.clamp(0, 1) * 255).byte().permute(1, 2, 0).numpy().copy()).save(folder / f"{name}.png")
    return folder


@pytest.fixture(scope="module")
def made(photographs, tmp_path_factory):
    return make_bapps(photographs, tmp_path_factory.mktemp("made") / "bapps", **SMALL, distance=EMBEDDED)


def files_in(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_generated_data_is_read_as_bapps(made):
    for split, count in (("train", 6), ("val", 4)):
        data = TwoAFCDataset(made, split, ("traditional",), size=None)
        assert len(data) == count
        assert all(data[i][kind].shape == (3, 32, 32) for i in range(count) for kind in ("ref", "p0", "p1"))
        assert all(not torch.equal(data[i]["p0"], data[i]["p1"]) for i in range(count))
        assert {float(data[i]["judge"]) for i in range(count)} <= {0.0, 1.0}
    pairs = JNDDataset(made, ("traditional",), size=None)
    assert sorted(float(pairs[index]["same"]) for index in range(4)) == [0, 0, 1, 1]


@pytest.mark.parametrize("judge", ["embedded", "l2"])
def test_judgments_are_those_of_the_metric_on_the_written_images(made, photographs, tmp_path, judge):
    root = made if judge == "embedded" else make_bapps(photographs, tmp_path / "l2", **SMALL, distance=l2)
    net = LPIPS("embedded")

    def distance(x, y):
        return float(net(x[None], y[None])) if judge == "embedded" else float(((x - y) / 2).square().mean())

    data = TwoAFCDataset(root, "train", ("traditional",), size=None)
    table = rows(root / "2afc/train/traditional/made.csv")
    for item, row in zip((data[index] for index in range(6)), table, strict=True):
        d0, d1 = distance(item["ref"], item["p0"]), distance(item["ref"], item["p1"])
        assert [float(row["p0_distance"]), float(row["p1_distance"])] == pytest.approx([d0, d1], rel=1e-4)
        assert item["judge"] == float(d1 < d0)
    pairs = JNDDataset(root, ("traditional",), size=None)
    distances = [distance(pairs[index]["p0"], pairs[index]["p1"]) for index in range(4)]
    same = [float(pairs[index]["same"]) for index in range(4)]
    assert max(d for d, s in zip(distances, same, strict=True) if s) < min(
        d for d, s in zip(distances, same, strict=True) if not s
    )


def test_made_files_record_distortions_and_arguments(made):
    table = rows(made / "2afc/train/traditional/made.csv") + rows(made / "2afc/val/traditional/made.csv")
    for row in table:
        for candidate in ("p0", "p1"):
            names, strengths = row[candidate].split("+"), row[f"{candidate}_strength"].split("+")
            assert len(names) == len(strengths) == len(set(names)) <= 2
            assert set(names) <= set(DISTORTIONS)
            assert all(0 <= float(strength) <= 1 for strength in strengths)
    assert {len(row["p0"].split("+")) for row in table} == {1, 2}
    about = json.loads((made / "made.json").read_text())
    assert about["counts"] == {"2afc/train": 6, "2afc/val": 4, "jnd/val": 4}
    assert about["images"] == ["a", "b", "c", "d"]
    assert about["judge"].startswith("LPIPS embedded v0.1")


def test_training_and_validation_use_different_photographs(made):
    train = {row["photograph"] for row in rows(made / "2afc/train/traditional/made.csv")}
    val = {row["photograph"] for part in ("2afc", "jnd") for row in rows(made / part / "val/traditional/made.csv")}
    assert train and len(val) == 1 and not train & val


def test_the_seed_decides_and_more_triplets_leave_the_first_ones_as_they_are(made, photographs, tmp_path):
    again = files_in(make_bapps(photographs, tmp_path / "again", **SMALL, distance=EMBEDDED))
    assert again == files_in(made)
    more = files_in(make_bapps(photographs, tmp_path / "more", **(SMALL | {"train": 9}), distance=EMBEDDED))
    images = [name for name in again if name.endswith(".png")]
    assert len(images) == 6 * 3 + 4 * 3 + 4 * 2
    assert all(more[name] == again[name] for name in images)
    other = files_in(make_bapps(photographs, tmp_path / "other", **SMALL, distance=EMBEDDED, seed=1))
    assert not any(other[name] == again[name] for name in images)


def test_people_fill_in_a_table_that_the_data_module_reads(photographs, tmp_path):
    root = make_bapps(photographs, tmp_path / "people", train=6, val=2, size=32, distance=None)
    assert not list(root.rglob("*.npy")) and not (root / "jnd").exists()
    for name, votes in (("judge_train.csv", "3,1"), ("judge_val.csv", "0,5")):
        text = (root / name).read_text()
        assert text.count("\n") == text.count(",,\n") + 1
        (root / name).write_text(text.replace(",,\n", f",{votes}\n"))
    data = TripletDataModule(str(root / "judge_train.csv"), str(root), str(root / "judge_val.csv"), size=32)
    data.setup("fit")
    (batch,) = data.train_dataloader()
    assert batch["judge"].tolist() == [0.25] * 6
    (batch,) = data.val_dataloader()[0]
    assert batch["judge"].tolist() == [1.0] * 2
    stored = read_image(root / "2afc/val/traditional/p1/000001.png").float() / 255 * 2 - 1
    assert torch.equal(batch["p1"][1], stored)


def test_parts_can_be_left_out(photographs, tmp_path):
    root = make_bapps(photographs, tmp_path / "val", train=0, val=3, jnd=0, size=32, distance=l2, set_name="mine")
    assert sorted(path.name for path in root.iterdir()) == ["2afc", "made.json"]
    assert len(TwoAFCDataset(root, "val", ("mine",))) == 3
    assert {row["photograph"] for row in rows(root / "2afc/val/mine/made.csv")} <= set("abcd")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train": -1}, "train: expected at least 0, got -1"),
        ({"train": 0, "val": 0, "jnd": 0}, "train: expected some triplets or pairs, got 0 for train, val and jnd"),
        ({"distance": None}, r"jnd: expected 0 without a judging distance \(people judge triplets only\), got 4"),
        ({"seed": -1}, "seed: expected at least 0, got -1"),
        ({"size": 73}, r"folder: expected sides of at least 73 pixels, got 72x80 in .*a.png"),
        ({"size": 8}, "size: expected at least 16, got 8"),
        ({"set_name": "../evil"}, "set_name: expected a folder name, got '../evil'"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_written(photographs, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        make_bapps(photographs, tmp_path / "out", **(SMALL | {"distance": l2} | options))
    assert not list(tmp_path.iterdir())


def test_one_photograph_cannot_be_kept_out_of_training(photographs, tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "one/a.png").write_bytes((photographs / "a.png").read_bytes())
    with pytest.raises(ValueError, match="folder: expected at least 2 photographs, since training and validation use"):
        make_bapps(tmp_path / "one", tmp_path / "out", **SMALL, distance=l2)
    make_bapps(tmp_path / "one", tmp_path / "out", train=2, val=0, jnd=0, distance=l2)


def test_the_output_folder_must_be_new_or_empty(photographs, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="out: expected a new or empty folder, got '.*out', which is not empty"):
        make_bapps(photographs, out, **SMALL, distance=l2)
    (out / "notes.txt").unlink()
    make_bapps(photographs, out, train=1, val=0, jnd=0, distance=l2)
    assert (out / "made.json").is_file()


def test_a_distance_that_returns_no_tensor_is_refused(photographs, tmp_path):
    with pytest.raises(TypeError, match="distance: expected a callable that returns a tensor .*, got one .* float"):
        make_bapps(photographs, tmp_path / "out", **SMALL, distance=lambda x, y: 1.0)
    assert not list(tmp_path.iterdir())


def test_a_failure_leaves_nothing_behind(photographs, tmp_path, monkeypatch):
    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(bapps_make, "_write_tables", fail)
    with pytest.raises(OSError, match="disk full"):
        make_bapps(photographs, tmp_path / "out", **SMALL, distance=l2)
    assert not list(tmp_path.iterdir())


def test_command_makes_a_data_set_and_reports_errors_in_one_line(photographs, tmp_path, capsys):
    command = ["bapps", "make", f"--folder={photographs}", f"--out={tmp_path / 'out'}", "--judge=l2", "--size=32"]
    assert cli.main([*command, "--train=2", "--val=1", "--jnd=0"]) == 0
    assert len(TwoAFCDataset(tmp_path / "out", "train", ("traditional",))) == 2
    assert "3/3" in capsys.readouterr().err
    assert cli.main([*command, "--train=2"]) == 2
    assert capsys.readouterr().err == f"lpips-lightning: out: {tmp_path / 'out'} exists; --force replaces files in it\n"
    for wrong in (["bapps"], ["bapps", "mak"], ["bapps", "make"], [*command, "--judge=x"]):
        with pytest.raises(SystemExit) as exit_:
            cli.main(wrong)
        assert exit_.value.code == 2
        assert capsys.readouterr().err.startswith("lpips-lightning: ")


def test_contact_sheet_shows_every_distortion_at_increasing_strength(photographs, tmp_path, monkeypatch):
    drawn = []

    @contextmanager
    def kept(rows):
        drawn.extend(rows)
        with sheet_figure(rows) as figure:
            yield figure
            assert len(figure.axes) == len(DISTORTIONS) * (1 + len(STRENGTHS))
            assert layout_faults(figure) == []

    monkeypatch.setattr("lpips_lightning.data.distortion_sheet.sheet_figure", kept)
    assert cli.main(["bapps", "sheet", f"--images={photographs / 'a.png'}", f"--out={tmp_path / 'new/sheet.png'}"]) == 0
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["sheet.pdf", "sheet.png"]
    for row, name in zip(drawn, DISTORTIONS, strict=True):
        damage = [float((image - row[0]).square().mean()) for image in row[1:]]
        assert damage[0] > 0 and damage[-1] > 2 * damage[0], name


@pytest.mark.slow
def test_contact_sheet_alternates_photographs_and_refuses_other_formats(photographs, tmp_path):
    one, _ = write_sheet(photographs / "a.png", tmp_path / "one.png")
    four = [file.read_bytes() for file in write_sheet(photographs, tmp_path / "four.png")]
    assert one.read_bytes() != four[0]
    assert [file.read_bytes() for file in write_sheet(photographs, tmp_path / "again.png")] == four
    with pytest.raises(ValueError, match=r"out: expected a path that ends in .png, got '.*sheet.jpg'"):
        write_sheet(photographs, tmp_path / "sheet.jpg")
    with pytest.raises(FileNotFoundError, match="gone: expected an image file, got no such file"):
        write_sheet(photographs / "gone", tmp_path / "sheet.png")
