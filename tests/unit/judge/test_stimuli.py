"""What a study shows: images as PNGs in one folder, drawn in balance; sentinels whose answer is plain."""

import csv
import hashlib
import logging
import os
import random
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from _helpers.small_data import write_noise
from PIL import Image as PillowImage

from lpips_lightning.data.cnn_distortions import DenoisingAutoencoder, DistortionFamily, GeneratorSpec
from lpips_lightning.data.triplets import photograph_of
from lpips_lightning.io.image_files import read_image
from lpips_lightning.judge.method_pairs import balanced, method_groups
from lpips_lightning.judge.records import Design
from lpips_lightning.judge.stimuli import (
    study_from_methods,
    study_from_photographs,
    study_from_triplets,
)
from lpips_lightning.judge.store import Study
from lpips_lightning.judge.study_images import RECORD, safe_name

FEW = {"sentinels": 2, "pass_mark": 1, "practice": 1}


def smooth(path, height=40, width=48, seed=0):
    """An image of smooth colors."""
    coarse = torch.rand(1, 3, 4, 5, generator=torch.Generator().manual_seed(seed))
    image = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")[0].clamp(0, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    PillowImage.fromarray((image * 255).byte().permute(1, 2, 0).numpy().copy()).save(path)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    for seed, name in enumerate(("a", "b c", "more/ü")):
        smooth(folder / f"{name}.png", seed=seed)
    return folder


@pytest.fixture
def methods(tmp_path):
    """References and three methods, 4 images each, of different suffixes."""
    for number in range(4):
        smooth(tmp_path / f"outputs/original/i{number}.png", seed=number)
        pixels = read_image(tmp_path / f"outputs/original/i{number}.png").permute(1, 2, 0).numpy()
        for method, quality in (("low", 5), ("middle one", 30), ("high", 90)):
            (tmp_path / "outputs" / method).mkdir(exist_ok=True)
            PillowImage.fromarray(pixels).save(tmp_path / f"outputs/{method}/i{number}.webp", quality=quality)
    return tmp_path / "outputs"


def pixels(study, number):
    return read_image(study.folder / study.images()[number].path)


def error(study, first, second):
    return float((pixels(study, first).float() - pixels(study, second).float()).square().mean())


def summary(study):
    return [*study.images().values()], [*study.items().values()]


def check_files(study):
    """Every image is a file of the folder, with its digest and size, and no other image lies there."""
    for image in study.images().values():
        file = study.folder / image.path
        assert file.resolve().is_relative_to(study.folder)
        assert hashlib.sha256(file.read_bytes()).hexdigest() == image.sha256
        assert tuple(read_image(file).shape) == (3, image.height, image.width)
    assert {image.path for image in study.images().values()} | {RECORD} == {
        file.relative_to(study.folder).as_posix() for file in study.folder.rglob("*") if file.is_file()
    }
    assert sorted(study.images()) == list(range(1, len(study.images()) + 1))


def test_photographs_become_triplets_of_the_papers_distortions(photographs, tmp_path):
    seen = []
    design = Design(**FEW)
    study = study_from_photographs(
        tmp_path / "my study.db", photographs, design=design, count=7, size=32, report=lambda *done: seen.append(done)
    )
    check_files(study)
    judged = study.items("judged")
    assert (len(judged), study.folder.name, Study.open(study.path).design) == (7, "my study-images", design)
    assert seen[-1] == ("writing images", len(study.images()), len(study.images()))
    assert {(image.height, image.width) for image in study.images().values()} == {(32, 32)}
    references = [photograph_of(study.images()[item.ref].path) for item in judged.values()]
    assert sorted(Counter(references).values()) == [2, 2, 3]
    assert all(item.method0 and item.method1 and item.expected is None for item in judged.values())
    assert sum(error(study, item.ref, item.p0) > 0 for item in judged.values()) >= 6
    ids = [number for item in judged.values() for number in (item.ref, item.p0, item.p1)]
    assert ids != sorted(ids)  # numbers tell nothing about the image


def test_equal_seeds_give_equal_studies(photographs, tmp_path):
    def made(name, **options):
        return summary(study_from_photographs(tmp_path / name, photographs, count=3, size=32, **options))

    first = made("a.db", design=Design(**FEW))
    assert made("b.db", design=Design(**FEW)) == first
    assert made("c.db", design=Design(**FEW, seed=1)) != first
    assert made("d.db", design=Design(**FEW, seed=1), seed=0) == first


def test_jnd_pairs_are_nearer_than_candidates_of_triplets(photographs, tmp_path):
    means = {}
    for test in ("2afc", "jnd"):
        design = Design(test, sentinels=0, pass_mark=0, practice=0)
        study = study_from_photographs(tmp_path / f"{test}.db", photographs, design=design, count=12, size=16)
        items = study.items("judged").values()
        assert all((item.p1 is None) == (test == "jnd") for item in items)
        means[test] = float(np.median([error(study, item.ref, item.p0) for item in items]))
    assert means["jnd"] < 0.7 * means["2afc"]


def test_networks_of_a_family_distort(photographs, tmp_path):
    spec = GeneratorSpec(layers=2, first_channels=2, most_channels=4)
    family = DistortionFamily([DenoisingAutoencoder(spec) for _ in range(3)])
    study = study_from_photographs(tmp_path / "s.db", photographs, design=Design(**FEW), count=2, size=16, cnn=family)
    for item in study.items("judged").values():
        assert {item.method0, item.method1} < {"cnn00", "cnn01", "cnn02"}


def test_sentinels_and_practice_have_a_plain_answer(photographs, tmp_path):
    design = Design(sentinels=12, pass_mark=11, practice=5)
    study = study_from_photographs(tmp_path / "s.db", photographs, design=design, count=6, size=32)
    known = [*study.items("sentinel").values(), *study.items("practice").values()]
    assert (len(study.items("sentinel")), len(study.items("practice"))) == (12, 5)
    for item in known:
        near, far = (item.p0, item.p1) if item.expected == "p0" else (item.p1, item.p0)
        assert 3 * error(study, item.ref, near) < error(study, item.ref, far)
    assert {item.expected for item in study.items("sentinel").values()} == {"p0", "p1"}
    references = Counter(item.ref for item in study.items("sentinel").values())
    assert set(references.values()) == {2}  # of 6 references
    assert {item.ref for item in known} <= {item.ref for item in study.items("judged").values()}


def test_jnd_sentinels_are_mostly_identical_pairs_as_in_the_paper(photographs, tmp_path):
    design = Design("jnd", sentinels=10, pass_mark=9, practice=10)
    study = study_from_photographs(tmp_path / "s.db", photographs, design=design, count=4, size=32)
    for purpose, same in (("sentinel", 8), ("practice", 4)):
        items = study.items(purpose).values()
        assert Counter(item.expected for item in items) == {"same": same, "different": 10 - same}
        for item in items:
            assert item.ref != item.p0  # the page would show one image number twice
            assert (error(study, item.ref, item.p0) == 0) == (item.expected == "same")
            assert item.expected == "same" or error(study, item.ref, item.p0) > 100


@pytest.mark.parametrize(("sentinels", "different"), [(0, 0), (1, 0), (2, 1), (3, 1), (8, 2)])
def test_of_two_jnd_sentinels_one_is_different(photographs, tmp_path, sentinels, different):
    design = Design("jnd", sentinels=sentinels, pass_mark=sentinels, practice=0)
    study = study_from_photographs(tmp_path / "s.db", photographs, design=design, count=2, size=32)
    expected = [item.expected for item in study.items("sentinel").values()]
    assert (expected.count("different"), len(expected)) == (different, sentinels)


def test_practice_on_blank_images_has_a_plain_answer_too(tmp_path):
    for name in "ab":
        (tmp_path / "blank").mkdir(exist_ok=True)
        PillowImage.new("RGB", (40, 40), "white").save(tmp_path / "blank" / f"{name}.png")
    design = Design(sentinels=0, pass_mark=0, practice=5)
    study = study_from_photographs(tmp_path / "s.db", tmp_path / "blank", design=design, count=2, size=32)
    for item in study.items("practice").values():
        near, far = (item.p0, item.p1) if item.expected == "p0" else (item.p1, item.p0)
        assert 3 * error(study, item.ref, near) < error(study, item.ref, far)


def write_csv(path, columns, *rows):
    path.write_text("\n".join([",".join(columns), *(",".join(row) for row in rows)]), encoding="utf-8")
    return path


def test_triplets_of_a_csv_are_items_without_its_judgments(tmp_path, caplog):
    write_noise(tmp_path / "images", ("ä b", "more/c", "d"))
    (tmp_path / "images/link.png").symlink_to(tmp_path / "images/d.png")
    columns = ("ref", "p0", "p1", "votes_p0", "votes_p1", "method1")
    rows = ("ä b.png", "more/c.png", "link.png", "3", "2", "x"), ("ä b.png", "link.png", "more/c.png", "", "", "y")
    table = write_csv(tmp_path / "t.csv", columns, *rows, ("d.png", "ä b.png", "more/c.png", "1", "0", ""))
    with caplog.at_level(logging.INFO):
        study = study_from_triplets(tmp_path / "s.db", table, tmp_path / "images", design=Design(**FEW))
    check_files(study)
    items, images = study.items("judged"), study.images()
    paths = [tuple(images[n].path for n in (item.ref, item.p0, item.p1)) for item in items.values()]
    assert paths == [("ä b.png", "more/c.png", "link.png"), ("d.png", "ä b.png", "more/c.png")]
    assert [(item.method0, item.method1) for item in items.values()] == [("", "x"), ("", "")]
    assert "votes_p0, votes_p1 are not used" in caplog.text
    assert "merged 3 rows into 2 triplets" in caplog.text
    assert study.answers() == []
    assert torch.equal(pixels(study, items[1].p0), read_image(tmp_path / "images/more/c.png"))


def test_pairs_of_a_csv_for_jnd(tmp_path, caplog):
    write_noise(tmp_path / "images", "abc")
    table = write_csv(tmp_path / "t.csv", ("source", "p0", "p1"), ("a.png", "b.png", "a.png"))
    design = Design("jnd", **FEW)
    study = study_from_triplets(tmp_path / "s.db", table, tmp_path / "images", design=design, columns={"ref": "source"})
    assert [item.p1 for item in study.items().values()] == [None] * 4
    assert "p1 is not used" in caplog.text


@pytest.mark.parametrize(
    ("row", "kind", "message"),
    [
        (
            ("a.png", "b.png", "missing.png"),
            FileNotFoundError,
            r"t\.csv, line 3: p1: expected a file in .*'missing.png'",
        ),
        (("a.png", "", "b.png"), FileNotFoundError, r"t\.csv, line 3: p0: expected a file in .*, got ''"),
        (("a.png", "b.png", "b.png"), ValueError, r"t\.csv, line 3: expected two images to tell apart, got 'b.png'"),
        (("a.png", "b.png", "link.png"), ValueError, r"t\.csv, line 3: expected two images to tell apart"),
        (("a.png", "b.png", "large.png"), ValueError, r"t\.csv, line 3: .*large.png: expected the size of .*49x70"),
        (("tiny.png", "tiny2.png", "tiny3.png"), ValueError, r"line 3: .*tiny.png: .* at least 16 pixels, got 8x8"),
    ],
)
def test_a_wrong_row_is_named_with_its_line_and_nothing_is_left(tmp_path, row, kind, message):
    write_noise(tmp_path / "images", "abc")
    write_noise(tmp_path / "images", ("large",), height=50)
    write_noise(tmp_path / "images", ("tiny", "tiny2", "tiny3"), height=8, width=8)
    (tmp_path / "images/link.png").symlink_to(tmp_path / "images/b.png")
    table = write_csv(tmp_path / "t.csv", ("ref", "p0", "p1"), ("a.png", "b.png", "c.png"), row)
    with pytest.raises(kind, match=message):
        study_from_triplets(tmp_path / "s.db", table, tmp_path / "images", design=Design(**FEW))
    assert {path.name for path in tmp_path.iterdir()} == {"images", "t.csv"}


def test_every_pair_of_methods_meets_on_every_reference(methods, tmp_path):
    (methods / ".hidden").mkdir()
    (methods / "notes.txt").write_text("no image")
    study = study_from_methods(tmp_path / "s.db", methods, "original", design=Design(**FEW))
    check_files(study)
    images, judged = study.images(), study.items("judged").values()
    met = Counter((images[item.ref].path, *sorted((item.method0, item.method1))) for item in judged)
    assert (len(met), set(met.values())) == (12, {1})
    for item in judged:
        for number, method in ((item.p0, item.method0), (item.p1, item.method1)):
            assert images[number].path == images[item.ref].path.replace("original", method)
    assert len({item.method0 for item in judged}) == 3  # the order within a pair is random
    with (study.folder / RECORD).open(encoding="utf-8", newline="") as file:
        sources = {row["image"]: row["source"] for row in csv.DictReader(file)}
    assert sources["low/i0.png"] == str(methods / "low/i0.webp")


@pytest.mark.parametrize(
    ("references", "methods", "test"), [(7, 5, "2afc"), (6, 4, "2afc"), (4, 4, "jnd"), (1, 3, "2afc")]
)
def test_any_number_of_comparisons_is_balanced(references, methods, test):
    names = [f"i{number}" for number in range(references)]
    groups = method_groups([f"m{number}" for number in range(methods)], Design(test), random.Random(0))
    assert len(groups) == (methods * (methods - 1) // 2 if test == "2afc" else methods)
    for count in range(1, references * len(groups) + 1):
        drawn = balanced(names, groups, count, random.Random(0))
        assert len(set(drawn)) == count
        for part, kinds in ((0, names), (1, groups)):
            often = Counter(one[part] for one in drawn)
            assert max(often.values()) - min(often[kind] for kind in kinds) <= 1
        shown = Counter(method for _, group in drawn for method in group)
        assert max(shown.values()) - min(shown.values(), default=0) <= methods


def test_jnd_compares_each_method_with_the_reference(methods, tmp_path):
    study = study_from_methods(tmp_path / "s.db", methods, "original", design=Design("jnd", **FEW), count=6)
    judged = study.items("judged").values()
    assert Counter(item.method0 for item in judged) == {"low": 2, "middle one": 2, "high": 2}
    assert all(item.p1 is None and item.method1 == "" for item in judged)


def test_large_images_are_cropped_at_one_place_for_all_versions(methods, tmp_path):
    study = study_from_methods(tmp_path / "s.db", methods, "original", design=Design(**FEW), size=24)
    places = set()
    for item in study.items("judged").values():
        name = Path(study.images()[item.ref].path).stem
        original = read_image(methods / f"original/{name}.png")
        windows = original.unfold(1, 24, 1).unfold(2, 24, 1)  # (3, rows, columns, 24, 24)
        found = (windows == pixels(study, item.ref)[:, None, None]).all(-1).all(-1).all(0).nonzero().tolist()
        assert len(found) == 1
        y, x = found[0]
        output = read_image(methods / item.method0 / f"{name}.webp")
        assert torch.equal(output[:, y : y + 24, x : x + 24], pixels(study, item.p0))
        places.add((name, y, x))
    assert len(places) == 4
    assert len({place[1:] for place in places}) > 1
    whole = study_from_methods(tmp_path / "w.db", methods, "original", design=Design(**FEW), size=None)
    assert {(image.height, image.width) for image in whole.images().values()} == {(40, 48)}


def test_references_may_lie_elsewhere_and_names_may_be_common_only(methods, tmp_path):
    (methods / "original").rename(tmp_path / "truth")
    (methods / "low/i3.webp").unlink()
    smooth(methods / "high/extra.png")
    with pytest.raises(ValueError, match=r"image in 'low' for each of 'truth', got none for 'i3' \(1 of 4 missing\)"):
        study_from_methods(tmp_path / "s.db", methods, tmp_path / "truth", design=Design(**FEW))
    study = study_from_methods(tmp_path / "s.db", methods, tmp_path / "truth", design=Design(**FEW), common=True)
    assert len(study.items("judged")) == 9


def test_a_study_inside_the_folder_is_no_method_and_its_images_no_photographs(methods, caplog):
    study_from_methods(methods / "s.db", methods, "original", design=Design(**FEW))
    again = study_from_methods(methods / "t.db", methods, "original", design=Design(**FEW))
    assert {item.method0 for item in again.items("judged").values()} <= {"low", "middle one", "high"}
    photographs = study_from_photographs(methods / "p.db", methods, design=Design(**FEW), count=32, size=32)
    names = {photograph_of(photographs.images()[i.ref].path) for i in photographs.items("judged").values()}
    assert len(names) == 16
    assert "left out: 's.db' (not an image), 't.db' (not an image)" in caplog.text
    assert "study-images" not in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reference": "truth"}, r"reference: expected one of the folders .*\(high, low, middle one, original\)"),
        ({"count": 13}, "count: expected 1 to 12, all there are, got 13"),
        ({"size": 8}, "size: expected at least 16, got 8"),
    ],
)
def test_wrong_arguments_of_methods_are_named(methods, tmp_path, options, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        study_from_methods(tmp_path / "s.db", methods, **{"reference": "original", **options})
    assert not list(tmp_path.glob("*s.db*"))


@pytest.mark.skipif(os.name != "posix", reason="names are text there")
def test_names_that_are_no_text_are_written_as_text(methods, tmp_path, caplog):
    method, name = os.fsdecode(b"m\xff"), os.fsdecode(b"i\xfe.png")
    (methods / "low").rename(methods / method)
    shutil.copy(methods / "high/i0.webp", methods / method / "i0.webp")
    for folder in ("original", "high", "middle one", method):
        smooth(methods / folder / name, seed=7 + len(folder))
    study = study_from_methods(tmp_path / "s.db", methods, "original", design=Design(**FEW))
    check_files(study)
    items = study.items("judged").values()
    assert {item.method0 for item in items} | {item.method1 for item in items} == {"high", "m\\xff", "middle one"}
    assert "1 item of 15 with two images of equal pixels" in caplog.text


def test_sizes_of_methods_must_agree_and_two_are_needed(methods, tmp_path):
    smooth(methods / "low/i2.webp", width=47)
    with pytest.raises(ValueError, match=r"low/i2\.webp: expected the size of .*i2\.png, 40x48 .*, got 40x47"):
        study_from_methods(tmp_path / "s.db", methods, "original")
    for method in ("low", "high"):
        (methods / method).rename(tmp_path / method)
    with pytest.raises(ValueError, match="2 or more folders of methods .*, got 1; folders there: middle one, original"):
        study_from_methods(tmp_path / "s.db", methods, "original")


def test_an_existing_study_or_folder_of_images_is_kept(photographs, tmp_path):
    (tmp_path / "a.db").write_text("mine")
    with pytest.raises(FileExistsError, match=r"out: expected a new file, got .*a\.db"):
        study_from_photographs(tmp_path / "a.db", photographs)
    (tmp_path / "b-images").mkdir()
    (tmp_path / "b-images/mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"images_out: expected a new or empty folder, got .*b-images"):
        study_from_photographs(tmp_path / "b.db", photographs)
    (tmp_path / "empty").mkdir()
    study = study_from_photographs(
        tmp_path / "b.db", photographs, design=Design(**FEW), count=1, size=32, images_out=tmp_path / "empty"
    )
    check_files(study)
    assert (tmp_path / "a.db").read_text() == "mine"
    assert [path.name for path in (tmp_path / "b-images").iterdir()] == ["mine.txt"]


def test_a_failure_leaves_neither_images_nor_study(photographs, tmp_path, monkeypatch):
    def stop(task, done, total):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        study_from_photographs(tmp_path / "s.db", photographs, design=Design(**FEW), count=3, size=32, report=stop)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(Study, "create", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        study_from_photographs(tmp_path / "s.db", photographs, design=Design(**FEW), count=1, size=32)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "safe"), [("../../etc/x", "etc/x"), ("/", "image"), ("a:b", "a_b"), ("b/.c", "b/c")])
def test_names_stay_in_the_folder(name, safe):
    assert safe_name(name) == safe


def test_small_photographs_and_counts_are_named(photographs, tmp_path):
    with pytest.raises(ValueError, match=r"sides of at least 41 pixels, got 40x48 in .*a\.png"):
        study_from_photographs(tmp_path / "s.db", photographs, size=41)
    with pytest.raises(ValueError, match="size: expected at least 16, got 0"):
        study_from_photographs(tmp_path / "s.db", photographs, size=None)
    with pytest.raises(ValueError, match="count: expected at least 1, got 0"):
        study_from_photographs(tmp_path / "s.db", photographs, count=0)
