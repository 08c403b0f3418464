"""What paths name: folders on disks and behind URLs give the same pairs and notes, lists and shards are told apart."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pytest
from file_servers import reset, web_server
from PIL import Image

from lpips_lightning.comparison.file_pairs import InputNeeds, match_folders
from lpips_lightning.images.preprocessing import ImagePolicy
from lpips_lightning.runs.choose import first_batch, open_source
from lpips_lightning.runs.reading import PairReader
from lpips_lightning.sources import storage
from lpips_lightning.sources.base import unit_size
from lpips_lightning.sources.lists import CsvPairs
from lpips_lightning.sources.names import is_list, is_shards
from lpips_lightning.sources.shards import ShardPairs

fsspec = pytest.importorskip("fsspec")


def image(path, side=40, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)).save(path)


@pytest.fixture
def folders(tmp_path):
    """Two folders with the same names, in an order that numbers decide, and files that are no images."""
    for side in "xy":
        for number in (1, 2, 10):
            image(tmp_path / side / f"in 1/f{number}.png", seed=number)
        image(tmp_path / side / "z.bmp")
    (tmp_path / "x" / "about.pdf").write_bytes(b"%PDF")
    (tmp_path / "y" / ".hidden").mkdir()
    image(tmp_path / "y" / ".hidden" / "f.png")
    return tmp_path


def outcome(call, *places):
    """Inner paths of the pairs and notes, or the error, without the places."""
    try:
        pairs, notes = call()
    except (ValueError, FileNotFoundError) as error:
        pairs, notes = type(error).__name__, [str(error)]
    place = re.compile("|".join(map(re.escape, places)))
    if isinstance(pairs, list):
        pairs = [tuple(place.sub("@", name).replace("%20", " ") for name in pair) for pair in pairs]
    return pairs, [re.sub("^(folder|@/[xy]): ", "", place.sub("@", note)) for note in notes]


def in_memory(folder):
    """Copy a folder to memory://m."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    for path in folder.rglob("*"):
        if path.is_file():
            system.pipe_file(f"/m/{path.relative_to(folder).as_posix()}", path.read_bytes())
    return system


def opened(paths, **options):
    source, notes = open_source(paths, **options)
    return [(pair.a, pair.b) for unit in range(len(source)) for pair in source.unit(unit)], notes


def matched(a, b, **options):
    found = match_folders(a, b, **options)
    return [(str(pair.a), str(pair.b)) for pair in found.pairs], found.notes


@pytest.mark.parametrize("options", [{}, {"common": True}, {"in_order": True}])
@pytest.mark.parametrize("change", ["none", "one more", "another", "twice", "empty"])
def test_folders_give_the_same_everywhere(folders, options, change):
    if change in ("one more", "another"):
        image(folders / "y" / "in 1/f3.png")
    if change == "another":
        (folders / "y" / "in 1/f2.png").unlink()
    if change == "twice":
        image(folders / "x" / "z.jpg")
    if change == "empty":
        for path in [*folders.glob("y/in 1/*"), folders / "y" / "z.bmp"]:
            path.unlink()
    memory = in_memory(folders)
    local = [str(folders / side) for side in "xy"]
    with web_server(folders) as (web, _):
        expected = outcome(lambda: matched(*local, **options), str(folders))
        for a, b in (local, ["memory://m/x", "memory://m/y"], [f"{web}/x", f"{web}/y"], [local[0], f"{web}/y"]):
            got = outcome(lambda a=a, b=b: opened([a, b], **options), "memory://m", web, str(folders))
            assert got == expected, a
    memory.store.clear()


def test_a_changed_image_is_another_source(folders):
    memory = in_memory(folders)
    paths = [str(folders / "x"), "memory://m/x"]
    first = open_source(paths)[0].describe()
    assert open_source(paths)[0].describe() == first
    image(folders / "x" / "z.bmp", seed=3)
    second = open_source(paths)[0].describe()
    memory.pipe_file("/m/x/z.bmp", b"broken")
    assert len({repr(one) for one in (first, second, open_source(paths)[0].describe())}) == 3
    memory.store.clear()


def test_the_size_of_units_follows_the_first_image_that_can_be_read(tmp_path):
    image(tmp_path / "large.png", 600)
    image(tmp_path / "small.png", 40)
    (tmp_path / "broken.png").write_bytes(b"no image")
    large, small, broken = (str(tmp_path / f"{name}.png") for name in ("large", "small", "broken"))
    assert first_batch([(broken, small), (large, small), (small, small)]) == 1
    assert first_batch([("none.png", small), (small, small)]) == 24
    assert first_batch([(broken, broken)] * 100) == 1
    sizes = [unit_size(pairs, batch) for pairs in (1, 100, 10_000, 10**8) for batch in (1, 24, 1000)]
    assert sizes == [1, 24, 1000, 1, 24, 1000, 156, 144, 1000, 480, 480, 1000]


def test_lists_and_shards_are_told_by_their_names(tmp_path):
    image(tmp_path / "1.png")
    (tmp_path / "x.csv").write_text("a,b\n1.png,1.png\n")
    source, _ = open_source([str(tmp_path / "x.csv")])
    assert isinstance(source, CsvPairs)
    (pair,) = source.unit(0)
    assert Image.open(io.BytesIO(source.read(pair.places[0]))).size == (40, 40)
    assert all(map(is_shards, ["x.tar", "s3://b/x.tar.gz?versionId=1", "x-{00..10}.tar", "x-{0..3}"]))
    assert not any(map(is_shards, ["x.csv", "tar", "s3://b/x?of=.tar", "x.tar/y"]))
    assert all(map(is_list, ["x.CSV", "https://h/x.csv?sig=1", "s3://b/x.parquet", "zip://x.tsv::y.zip"]))
    assert not any(map(is_list, ["x", "x.csv.gz", "zip://x.png::y.csv"]))
    pytest.importorskip("webdataset")
    (tmp_path / "x.tar").write_bytes(bytes(1024))
    assert isinstance(open_source([str(tmp_path / "x.tar")])[0], ShardPairs)


def test_two_folders_and_a_list_of_their_images(folders):
    (folders / "t.csv").write_text("a,b\nz,in 1/f1\nin 1/f2.png,z.bmp\n")
    pairs, notes = opened([str(folders / "t.csv"), str(folders / "x"), str(folders / "y")])
    assert [(Path(a).name, Path(b).name) for a, b in pairs] == [("z.bmp", "f1.png"), ("f2.png", "z.bmp")]
    assert any("in no pair" in note for note in notes)


@pytest.mark.parametrize(
    ("paths", "options", "message"),
    [
        (["x"], {}, "paths: expected two folders, one list .* got 'x'"),
        (["x.csv", "y.csv"], {}, "paths: expected two folders, one list .* got 'x.csv', 'y.csv'"),
        (["x.csv"], {"common": True}, "common: expected no --common with a list"),
        (["x.tar"], {"in_order": True}, "in-order: expected no --in-order with tar shards"),
        (["x.tar", "y"], {}, "paths: expected shards with both images, .* got 'x.tar', 'y'"),
        (["x.tar"], {"folder": "z"}, "folder: expected no --folder with tar shards"),
        (["x", "y"], {"columns": ("a", "b")}, "columns: expected no --columns with folders"),
        (["s3://b/x", "y", "z.csv"], {}, "paths: expected two local folders and a CSV"),
        (["https://u:p@h/x"], {}, r"got 'https://\*\*\*@h/x'"),
        (["none", "y"], {}, "^none: expected a folder, got no such file"),
        (["memory://none", "y"], {}, "^memory://none: expected an existing folder of images, got no "),
    ],
)
def test_paths_and_options_that_do_not_go_together(paths, options, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        open_source(paths, **options)


def test_images_that_cannot_be_read_are_errors_and_the_rest_goes_on(folders, monkeypatch):
    monkeypatch.setattr(storage, "_WAITS", (0.01,))
    lost = []

    def misbehave(handler):
        name = handler.path.partition("?")[0]
        if name.endswith("/y/in%201/f2.png"):
            return handler.send_error(500) is None
        first, _ = name not in lost, lost.append(name)
        return first and name.endswith(".png") and reset(handler)

    with web_server(folders, misbehave) as (web, _):
        url = web.replace("//", "//me:secret@")
        rows = [f"{url}/{{}}/in%201/f{number}.png?sig=secret" for number in (1, 2, 10, 11)]
        table = "a,b\n" + "".join(f"{row.format('x')},{row.format('y')}\n" for row in rows)
        (folders / "list.csv").write_text(table)
        source, _ = open_source([str(folders / "list.csv")])
        batches = list(PairReader(range(len(source)), source, InputNeeds(ImagePolicy(), 8, "alex")))
    errors = {row: error for batch in batches for row, error in batch.errors.items()}
    assert sorted(row for batch in batches for row in batch.rows) == [0, 2]
    assert "y/in%201/f2.png?sig=***: expected an image file that can be read, got ClientResponseError, 2 t" in errors[1]
    assert "x/in%201/f11.png?sig=***: expected an image file, got no such file" in errors[3]
    assert "secret" not in repr([(batch.names, batch.errors) for batch in batches])
    assert "secret" not in repr(source.describe())
