"""Your own judgments: CSV variants, errors with line numbers, splits without leakage."""

import logging
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lpips_lightning.data.datamodules import TripletDataModule
from lpips_lightning.data.triplets import Triplet, TripletDataset, read_triplets, split_triplets
from lpips_lightning.functional.judgments import two_afc_score


@pytest.fixture
def images(tmp_path):
    """Six images of three sizes."""
    folder = tmp_path / "images"
    folder.mkdir()
    numbers = np.random.default_rng(0)
    for index, (height, width) in enumerate([(20, 20), (20, 30), (40, 20)] * 2):
        noise = numbers.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{'abcdef'[index]}.png")
    return folder


@pytest.fixture
def table(tmp_path, images):
    """table(text): the triplets read from it."""

    def read(text, columns=None, encoding="utf-8"):
        (tmp_path / "judged.csv").write_bytes(text.encode(encoding))
        return read_triplets(tmp_path / "judged.csv", images, columns)

    return read


VOTES = "ref,p0,p1,votes_p0,votes_p1\na.png,b.png,c.png,1,3\na.png,c.png,d.png,2,0\n"


def test_the_judgment_is_the_fraction_that_preferred_p1(table):
    expected = [Triplet("a.png", "b.png", "c.png", 0.75), Triplet("a.png", "c.png", "d.png", 0.0)]
    assert table(VOTES) == expected
    assert table("judge,ref,p0,p1\n0.75,a.png,b.png,c.png\n0,a.png,c.png,d.png\n") == expected


def test_the_page_says_what_votes_count(tmp_path):
    page = (Path(__file__).parents[3] / "recipes/README.md").read_text()
    (example,) = re.findall(r"```csv\n(.*?)```", page, re.DOTALL)
    (tmp_path / "mine.csv").write_text(example)
    for name in re.findall(r"\w+\.png", example):
        (tmp_path / name).touch()
    first, second = read_triplets(tmp_path / "mine.csv", tmp_path)
    assert len(example.splitlines()) == 3
    assert (first.p0, first.p1, first.judge) == ("tree_jpeg.png", "tree_blur.png", 0.2)  # 4 of 5 for p0
    assert second.judge == 1.0  # 5 of 5 for p1
    d0, d1 = torch.tensor([0.1]), torch.tensor([0.3])  # p0 is closer: agrees with the people for p0
    assert float(two_afc_score(d0, d1, torch.tensor([first.judge], dtype=torch.float64))) == pytest.approx(0.8)


MERGED = {  # rows: triplets
    "one row per person, both orders": (
        "ref,p0,p1,judge\na.png,b.png,c.png,1\na.png,c.png,b.png,0\na.png,b.png,d.png,1\na.png,b.png,c.png,0\n",
        [("b.png", "c.png", 2 / 3), ("b.png", "d.png", 1.0)],
    ),
    "votes in both orders": (
        "ref,p0,p1,votes_p0,votes_p1\na.png,b.png,c.png,1,3\na.png,c.png,b.png,2,0\na.png,b.png,c.png,1,0\n",
        [("b.png", "c.png", 5 / 7)],
    ),
    "votes or judge": (
        "ref,p0,p1,votes_p0,votes_p1,judge\na.png,b.png,c.png,1,3,\na.png,c.png,b.png,,,0\na.png,b.png,d.png,,,0.3\n",
        [("b.png", "c.png", 4 / 5), ("b.png", "d.png", 0.3)],
    ),
    "votes count where both are given": (
        "ref,p0,p1,votes_p0,votes_p1,judge\na.png,b.png,c.png,1,3,0\na.png,b.png,c.png,0,4,\n",
        [("b.png", "c.png", 7 / 8)],
    ),
    "thirds in any order": (
        "ref,p0,p1,judge\n" + "a.png,b.png,c.png,0.1\na.png,c.png,b.png,0.7\na.png,b.png,c.png,0.1\n" * 7,
        [("b.png", "c.png", (0.1 * 2 + 0.3) / 3)],
    ),
    "the same candidates of another reference": (
        "ref,p0,p1,judge\na.png,b.png,c.png,1\nd.png,b.png,c.png,0\n",
        [("b.png", "c.png", 1.0), ("b.png", "c.png", 0.0)],
    ),
}


@pytest.mark.parametrize("name", MERGED)
def test_rows_about_the_same_images_are_one_triplet(name, table, caplog):
    text, expected = MERGED[name]
    found = table(text)
    assert [(triplet.p0, triplet.p1) for triplet in found] == [row[:2] for row in expected]
    assert [triplet.judge for triplet in found] == pytest.approx([row[2] for row in expected], rel=1e-12)
    header, *rows = text.splitlines()
    if len(rows) == len(expected):
        assert "merged" not in caplog.text
        return
    count = f"{len(expected)} triplet{'s' * (len(expected) > 1)}"
    assert f"judged.csv: merged {len(rows)} rows into {count}" in caplog.text
    again = {triplet.images: triplet for triplet in table("\n".join([header, *rows[::-1]]))}
    for triplet in found:  # the sum of votes does not depend on their order, to the last bit
        other = again[triplet.images]
        swapped = other.p0 != triplet.p0
        assert (1 - other.judge if swapped else other.judge) == pytest.approx(triplet.judge, abs=1e-15)


@pytest.mark.parametrize("blank", ["\n", ",,,,\n", " , ,,,\n"])
def test_blank_rows_are_counted_aloud(table, blank, caplog):
    expected = table(VOTES)
    assert caplog.text == ""
    rows = VOTES.splitlines(keepends=True)
    assert table(rows[0] + blank + rows[1] + blank + rows[2] + blank) == expected
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert caplog.records[0].message.endswith("judged.csv: skipped 3 blank rows")


@pytest.mark.parametrize(
    "write",
    [
        lambda text: "\ufeff" + text,
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace(",", ";"),
        lambda text: text.replace(",", "\t"),
        lambda text: text.replace(",", " , "),
        lambda text: text.replace("a.png", '"a.png"').replace("\n", "\n\n"),
        lambda text: text.replace("\n", ",a note\n").rstrip(),
    ],
)
def test_byte_order_marks_quotes_separators_and_other_columns_do_not_matter(table, write):
    assert table(write(VOTES)) == table(VOTES)


def test_a_quoted_name_may_hold_a_comma(table, images):
    (images / "b.png").rename(images / "b,1.png")
    assert table('ref,p0,p1,judge\na.png,"b,1.png",c.png,1\n')[0].p0 == "b,1.png"


def test_columns_of_other_names_can_be_named(table):
    text = VOTES.replace("ref,p0,p1", "reference,left,right")
    assert table(text, {"ref": "reference", "p0": "left", "p1": "right"}) == table(VOTES)
    with pytest.raises(ValueError, match="columns: expected some of ref, p0, .* as keys, got 'left'"):
        table(VOTES, {"left": "p0"})


def test_rows_without_a_judgment_are_skipped(table, caplog):
    with caplog.at_level(logging.INFO, "lpips_lightning"):
        assert len(table(VOTES + "a.png,b.png,d.png,,\n")) == 2
    assert "skipped 1 row without a judgment" in caplog.text
    with pytest.raises(ValueError, match=r"judged.csv: expected judged rows, got 1 row without a judgment"):
        table("ref,p0,p1,votes_p0,votes_p1\na.png,b.png,d.png,,\n")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "judged.csv: expected a header and rows, got an empty file"),
        ("ref,p0,p1,judge\n", "expected a header and rows, got only a header"),
        ("ref,p0,judge\na,b,1", "line 1: expected the columns ref, p0, p1, judge, got ref, p0, judge, without p1"),
        ("ref,p0,p1\na.png,b.png,c.png", "line 1: expected the columns .*, without votes_p0, votes_p1"),
        ("ref,p0,p1,votes_p0,judge\na.png,b.png,c.png,1,1", "line 1: expected the columns .*, without votes_p1"),
        ("ref,p0,p1,ref,judge\n1,2,3,4,5", "line 1: expected unique column names, got ref, p0, p1, ref"),
        (VOTES + "a.png,b.png,c.png,1\n", "line 4: expected 5 values as in the header, got 4"),
        (VOTES + "a.png,b.png,c.png,1,2,3\n", "line 4: expected 5 values as in the header, got 6"),
        (
            VOTES + "\n\na.png,b.png,c.png,0,0\n",
            "line 6: expected votes >= 0 and not both 0, got votes_p0 0 and",
        ),
        (VOTES + "a.png,b.png,c.png,-1,2\n", "line 4: expected votes >= 0"),
        (VOTES + "a.png,b.png,c.png,one,2\n", "line 4: votes_p0: expected a number, got 'one'"),
        (VOTES + "a.png,b.png,c.png,1,\n", "line 4: votes_p1: expected a number, got ''"),
        (VOTES + "a.png,b.png,c.png,1,inf\n", "line 4: votes_p1: expected a number, got 'inf'"),
        ("ref,p0,p1,judge\na.png,b.png,c.png,1.5\n", r"line 2: judge: expected a fraction in \[0, 1\], got 1.5"),
        ('ref,p0,p1,judge\na.png,"b.png,c.png,1\n', "line 2: expected a CSV row, got unexpected end of data"),
    ],
)
def test_invalid_rows_are_named_by_line_number(table, text, message):
    with pytest.raises(ValueError, match=message):
        table(text)


def test_missing_files_are_named_by_line_number(table, tmp_path, images):
    with pytest.raises(FileNotFoundError, match=r"line 4: p1: expected a file in '.*images', got 'z.png'"):
        table(VOTES + "a.png,b.png,z.png,1,2\n")
    with pytest.raises(FileNotFoundError, match=r"line 4: ref: expected a file in '.*images', got ''"):
        table(VOTES + ",b.png,a.png,1,2\n")
    with pytest.raises(FileNotFoundError, match=r"gone.csv: expected a CSV file, got no such file"):
        read_triplets(tmp_path / "gone.csv", images)
    with pytest.raises(FileNotFoundError, match="folder: expected an existing folder of images, got 'gone'"):
        read_triplets(tmp_path / "judged.csv", "gone")


def test_other_encodings_are_refused(table):
    with pytest.raises(ValueError, match=r"judged.csv: expected UTF-8 text, got byte 0xff at 0"):
        table(VOTES, encoding="utf-16")


def test_items_are_those_of_bapps_from_images_of_any_size(images):
    data = TripletDataset([Triplet("a.png", "b.png", "c.png", 0.25)], images, size=16)
    item = data[0]
    assert sorted(item) == ["judge", "p0", "p1", "path", "ref", "set"]
    assert all(item[kind].shape == (3, 16, 16) for kind in ("ref", "p0", "p1"))
    assert item["judge"] == 0.25 and item["judge"].shape == ()
    assert (item["set"], item["path"]) == ("triplets", "a.png|b.png|c.png")
    assert -1 <= item["ref"].min() < item["ref"].max() <= 1
    with pytest.raises(ValueError, match=r"b.png: expected the size of .*a.png, 20x20 \(height x width\), got 20x30"):
        TripletDataset(data.triplets, images, size=None)[0]


def test_the_image_cache_is_bounded(images, monkeypatch):
    reads = []
    from lpips_lightning.data import triplets as module

    read_image = module.read_image
    monkeypatch.setattr(module, "read_image", lambda path: reads.append(path.name[0]) or read_image(path))
    rows = [Triplet("a.png", "b.png", "c.png", 0), Triplet("a.png", "b.png", "d.png", 0)]
    image = 3 * 16 * 16

    def walk(cache_bytes):
        reads.clear()
        data = TripletDataset(rows, images, size=16, cache_bytes=cache_bytes)
        items = [data[index]["p1"] for index in (0, 1, 0, 1)]
        assert torch.equal(items[1], items[3]) and not torch.equal(items[0], items[1])
        return "".join(reads)

    assert walk(4 * image) == "abcd"
    assert walk(3 * image) == "abcdcd"  # a and b were used last, so c and d take turns
    assert walk(0) == "abcabdabcabd"


def test_split_keeps_rows_about_the_same_images_together():
    rows = [Triplet("r", f"{i}", f"{j}", 0.5) for i in range(8) for j in range(8) if i != j]
    first, second = split_triplets(rows, 0.25, seed=1, by="triplet")
    assert len(first) == 42 and len(second) == 14  # 28 groups of a pair in both orders
    assert not {frozenset((row.p0, row.p1)) for row in first} & {frozenset((row.p0, row.p1)) for row in second}
    assert sorted(map(str, first + second)) == sorted(map(str, rows))
    assert split_triplets(rows, 0.25, seed=1, by="triplet") == (first, second)
    assert split_triplets(rows, 0.25, seed=2, by="triplet")[1] != second
    shuffled = [rows[index] for index in torch.randperm(len(rows)).tolist()]
    assert {row.images for row in split_triplets(shuffled, 0.25, seed=1, by="triplet")[1]} == {
        row.images for row in second
    }


def test_split_by_reference_keeps_all_of_a_reference_together():
    rows = [Triplet(f"r{i}", "a", f"{j}", 0.5) for i in range(4) for j in range(5)]
    first, second = split_triplets(rows, 0.5, seed=0)
    assert len(second) == 10
    assert not {row.ref for row in first} & {row.ref for row in second}


def test_patches_of_one_photograph_stay_together():
    """As `judge export` writes them: on both sides, they would make held-out scores too good."""
    rows = [Triplet(f"photographs/{c}/00000{i}-ref.png", "p0.png", "p1.png", 0.0) for c in "abcd" for i in range(3)]
    first, second = split_triplets(rows, 0.5, seed=0)
    assert {row.ref[12] for row in first}.isdisjoint(row.ref[12] for row in second)
    assert len(first) == len(second) == 6
    assert TripletDataset(rows, ".").references.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    own = [Triplet(f"photographs/{i}.png", "p0.png", "p1.png", 0.0) for i in range(3)]
    assert TripletDataset(own, ".").references.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fraction": 0.0}, "val_fraction: expected a number between 0 and 1, got 0"),
        ({"fraction": 1.0}, "val_fraction: expected a number between 0 and 1"),
        ({"by": "reference"}, "split_by: expected at least 2 references, to hold one out, got 1"),
        ({"by": "image"}, r"split_by: expected one of \('reference', 'triplet'\), got 'image'"),
    ],
)
def test_wrong_splits_are_refused(options, message):
    rows = [Triplet("r", "a", "b", 0), Triplet("r", "a", "c", 0)]
    with pytest.raises(ValueError, match=message):
        split_triplets(rows, **({"fraction": 0.5, "seed": 0, "by": "triplet"} | options))


@pytest.mark.parametrize(("fraction", "held_out"), [(0.01, 1), (0.5, 2), (0.99, 3)])
def test_each_part_of_a_split_gets_a_reference(fraction, held_out):
    parts = split_triplets([Triplet(f"r{i}", "a", "b", 0) for i in range(4)], fraction, seed=0)
    assert [len(part) for part in parts] == [4 - held_out, held_out]


@pytest.fixture
def judged(tmp_path, images):
    """Path of a CSV with 20 triplets of 2 references."""
    names = "abcdef"
    rows = [
        f"{r}.png,{p}.png,{q}.png,{i % 3},{1 + i % 2}"
        for i, (r, p, q) in enumerate(
            [(r, p, q) for r in names for p in names for q in names if p < q and r not in (p, q)][:20]
        )
    ]
    path = tmp_path / "judged.csv"
    path.write_text("ref,p0,p1,votes_p0,votes_p1\n" + "\n".join(rows) + "\n")
    return path


def test_data_module_splits_into_training_and_validation(judged, images, caplog):
    data = TripletDataModule(str(judged), str(images), val_fraction=0.2, batch_size=4, size=16)
    data.setup("fit")
    paths = [path for batch in data.train_dataloader() for path in batch["path"]]
    (val,) = data.val_dataloader()
    held_out = [path for batch in val for path in batch["path"]]
    assert "20 judged triplets, 10 held out: too few to tell a better calibration from chance" in caplog.text
    assert not {path.split("|")[0] for path in paths} & {path.split("|")[0] for path in held_out}
    assert data.val_data["triplets"].references.tolist() == [0] * 10
    assert data.val_names == ("triplets",)
    assert len(paths) + len(held_out) == 20 and held_out
    assert not set(paths) & set(held_out)
    data.setup("test")
    (test,) = data.test_dataloader()
    assert data.test_names == ("2afc/triplets",)
    assert [path for batch in test for path in batch["path"]] == held_out
    other = TripletDataModule(str(judged), str(images), val_fraction=0.2, batch_size=4, size=16)
    other.setup("fit")
    assert [path for batch in other.train_dataloader() for path in batch["path"]] == paths


def test_a_separate_validation_csv_warns_of_triplets_in_both(judged, images, tmp_path):
    text = judged.read_text().splitlines()
    (tmp_path / "val.csv").write_text("\n".join([text[0], "f.png,a.png,b.png,1,0", text[1]]))
    data = TripletDataModule(str(judged), str(images), val_csv=str(tmp_path / "val.csv"), size=16)
    with pytest.warns(match="val_csv: 1 of 2 triplets are judged in csv too"):
        data.setup("validate")
    assert len(data.val_data["triplets"]) == 2
    assert len(data.train_data) == 20


def test_a_separate_validation_csv_says_that_it_has_references_of_the_other(judged, images, tmp_path, caplog):
    (tmp_path / "val.csv").write_text("ref,p0,p1,judge\na.png,e.png,f.png,1\nf.png,a.png,b.png,1\n")
    text = [line for line in judged.read_text().splitlines() if "e.png" not in line]
    judged.write_text("\n".join(text))
    TripletDataModule(str(judged), str(images), val_csv=str(tmp_path / "val.csv"), size=16).setup("fit")
    assert (
        "val_csv: 1 of 2 triplets have a reference of csv; their score may not hold for new references" in caplog.text
    )


def test_triplets_of_one_reference_are_split_by_triplet_and_that_is_said(images, tmp_path, caplog):
    rows = ["ref,p0,p1,judge", "a.png,b.png,c.png,1", "a.png,b.png,d.png,1", "a.png,b.png,e.png,0"]
    (tmp_path / "one.csv").write_text("\n".join(rows))
    data = TripletDataModule(str(tmp_path / "one.csv"), str(images), size=16)
    data.setup("fit")
    assert (len(data.train_data), len(data.val_data["triplets"])) == (2, 1)
    assert (
        "one.csv: all triplets have one reference, validation too; its score says nothing about others" in caplog.text
    )


def test_many_held_out_triplets_give_no_warning(images, tmp_path, caplog):
    data = TripletDataModule("unread.csv", str(images))
    rows = [Triplet(f"{index}", "b", "c", 1) for index in range(200)]
    data._split = lambda: (rows[:100], rows[100:])
    data.setup("fit")
    assert caplog.text == ""


def test_mirroring_keeps_the_epoch_length(judged, images):
    data = TripletDataModule(str(judged), str(images), val_fraction=0.2, batch_size=8, size=16, mirror=True)
    data.setup("fit")
    paths = [path for batch in data.train_dataloader() for path in batch["path"]]
    assert len(paths) == len(set(paths)) == len(data.train_data)
