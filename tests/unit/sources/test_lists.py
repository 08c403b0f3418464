"""Pairs in CSV and Parquet lists: every row once, in order, in units; malformed rows are found before the run."""

from __future__ import annotations

import csv
import pickle
import random
import re
import sys

import pytest
from file_servers import web_server

from lpips_lightning.io.tables import read_table
from lpips_lightning.sources import base, lists, storage
from lpips_lightning.sources.lists import CsvPairs, ParquetPairs, first_pairs, open_list


def names(count):
    return [(f"x/{n}.png", f"s3://bucket/y/{n * n}.png") for n in range(count)]


def table(path, rows, columns=("a", "b"), **options):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n", **options).writerows([columns, *rows])
    return str(path)


def parquet(path, rows, group=100, columns=("a", "b")):
    pa = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    a, b = zip(*rows, strict=True)
    write_table(pa.table({columns[0]: pa.array(a), columns[1]: pa.array(b)}), path, row_group_size=group)
    return str(path)


def read(source):
    """Shown names of all rows, by unit."""
    return [[(pair.a, pair.b) for pair in source.unit(unit)] for unit in range(len(source))]


def flat(units):
    return [row for unit in units for row in unit]


@pytest.mark.parametrize("batch", [1, 4, 24])
@pytest.mark.parametrize("count", [1, 23, 24, 25, 1000, 4000])
def test_every_row_of_a_csv_is_read_once(tmp_path, batch, count):
    source = CsvPairs(table(tmp_path / "x.csv", names(count)), batch)
    units = read(pickle.loads(pickle.dumps(source)))
    assert flat(units) == names(count)
    assert source.pairs == count
    size = base.unit_size(count, batch)
    assert {len(unit) for unit in units[:-1]} <= {size}
    assert 0 < len(units[-1]) <= size
    assert not size % batch


@pytest.mark.parametrize("count", [511, 512, 513, 700, 5000])
def test_a_csv_that_is_known_to_be_long(tmp_path, monkeypatch, count):
    monkeypatch.setattr(base, "_UNIT", 8)  # long from 512 rows on
    source = CsvPairs(table(tmp_path / "x.csv", names(count)), 4)
    assert flat(read(source)) == names(count)
    assert next(map(len, read(source))) == base.unit_size(count, 4) == (8 if count >= 512 else 4)
    assert len(source._offsets) == len(source) + 1


def test_rows_of_any_form(tmp_path):
    text = '\ufeffid;b ;a\r\n1;"y ""1"".png";x/ä.png\r\n\r\n;;\r\n2; y2.png ;"two\nlines.png"\r\n3;y3.png;"a;b.png"'
    path = tmp_path / "x.csv"
    path.write_bytes(text.encode())
    for batch in (1, 2, 5):
        source = CsvPairs(str(path), batch)
        assert flat(read(source)) == [("x/ä.png", 'y "1".png'), ("two\nlines.png", "y2.png"), ("a;b.png", "y3.png")]
        assert source.pairs == 3


@pytest.mark.parametrize(
    "text",
    ['\ufeff"a","b"\n1,2\n', '"a","b"\n1,2\n', '"b; a",a,b\n0,1,2\n', '"x, y";a;b\n0;1;2\n', '"x,;"\ta\tb\n0\t1\t2\n'],
)
def test_headers_of_any_form(tmp_path, text):
    path = tmp_path / "x.csv"
    path.write_text(text, encoding="utf-8")
    assert flat(read(CsvPairs(str(path), 1))) == [("1", "2")]
    assert [(row["a"], row["b"]) for row in read_table(path).rows] == [("1", "2")]


def test_random_tables_read_as_the_csv_module_reads_them(tmp_path):
    random_ = random.Random(5)
    for _ in range(60):
        cell = lambda: "".join(random_.choices('ab/".,\n;ü ', k=random_.randint(1, 9))).strip() or "x"  # noqa: E731
        rows = [(cell(), cell()) for _ in range(random_.randint(1, 40))]
        path = table(tmp_path / "x.csv", rows, quoting=random_.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
        assert flat(read(CsvPairs(path, random_.randint(1, 6)))) == rows


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "line 1: expected the columns a, b, once each, got none"),
        (b"a,c\n1,2\n", "line 1: expected the columns a, b, .* got a, c; --columns A,B names others"),
        (b"a,b,a\n1,2,3\n", "line 1: expected the columns a, b, once each"),
        (b"a,b\n", "x.csv: expected a header and rows, got only a header"),
        (b"a,b\n1,2\n1\n", "line 3: expected 2 values as in the header, got 1"),
        (b"a,b\n1,2\n1,2,3\n", "line 3: expected 2 values as in the header, got 3"),
        (b"a,b\n1,2\n\n1, \n", "line 4: expected a path or URL of both images, got an empty one"),
        (b"a,b\n1,\xff\n", "line 2: expected UTF-8 text, got byte 0xff"),
        (b'a,b\n1,2\n"1"x,2\n', "line 3: expected a CSV row, got "),
        (b'a,b\n1,2\n1,"2\n3,4\n', "line 3: expected a CSV row, got unexpected end of data"),
        (b'a,b\n1,2\n1,"' + b"2,3\n" * 40_000, "line 3: expected a CSV row, got field larger than field limit"),
        (b"a,b\r1,2\r", "line 1: expected a CSV row, got new-line character"),
    ],
)
def test_malformed_lists_are_refused_with_the_line(tmp_path, content, message):
    path = tmp_path / "x.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}.*{message.removeprefix('x.csv')}"):
        CsvPairs(str(path), 4)


def test_a_malformed_row_far_behind(tmp_path):
    rows = names(3000)
    rows[2500] = ("only one",)
    with pytest.raises(ValueError, match="line 2502: expected 2 values"):
        CsvPairs(table(tmp_path / "x.csv", rows), 4)


@pytest.mark.parametrize("change", [lambda b: b.replace(b"x/9.", b"x/8."), lambda b: b[:-2], lambda b: b"\n" + b])
def test_a_csv_that_changes_during_a_run_is_noticed(tmp_path, change):
    path = tmp_path / "x.csv"
    source = CsvPairs(table(path, names(1000)), 4)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match="x.csv: expected the same .* as before, got"):
        read(source)


def test_a_resumed_run_notices_another_list(tmp_path):
    first = CsvPairs(table(tmp_path / "x.csv", names(100)), 4).describe()
    assert CsvPairs(table(tmp_path / "x.csv", names(100)), 4).describe() == first
    changed = names(100)
    changed[50] = ("x/50.png", "s3://bucket/y/0.png")
    assert CsvPairs(table(tmp_path / "x.csv", changed), 4).describe() != first
    assert CsvPairs(table(tmp_path / "x.csv", names(100)), 4, folder="other").describe() != first


def test_relative_paths_start_from_the_list_or_a_folder(tmp_path):
    rows = [("x/1.png", "/y/1.png"), ("../1.png", "https://h/1.png?sig=secret")]
    path = table(tmp_path / "x.csv", rows, columns=("one", "two"))
    for folder, start in ((None, str(tmp_path)), ("s3://bucket/l", "s3://bucket/l")):
        source = CsvPairs(path, 1, ("one", "two"), folder)
        assert next(source.unit(0)).places == (storage.join(start, "x/1.png"), "/y/1.png")
        (pair,) = source.unit(1)
        assert pair.places == (storage.join(start, "../1.png"), "https://h/1.png?sig=secret")
        assert (pair.a, pair.b) == ("../1.png", "https://h/1.png?sig=***")
    assert first_pairs(path, ("one", "two"), "z")[0] == (storage.join("z", "x/1.png"), "/y/1.png")


@pytest.mark.parametrize("group", [7, 100, 10_000])
def test_every_row_of_a_parquet_is_read_once(tmp_path, group):
    source = open_list(parquet(tmp_path / "x.parquet", names(1000), group), 4)
    assert isinstance(source, ParquetPairs)
    units = read(pickle.loads(pickle.dumps(source)))
    assert flat(units) == names(1000)
    assert source.pairs == 1000
    assert max(map(len, units)) == min(base.unit_size(1000, 4), group)
    assert first_pairs(str(tmp_path / "x.parquet"), folder="/z")[1][0].endswith("1.png")


def test_rows_of_a_parquet_without_a_value_are_errors(tmp_path):
    source = ParquetPairs(parquet(tmp_path / "x.parquet", [("x", "y"), (None, "y"), ("x", "")]), 4)
    found = list(source.unit(0))
    assert [bool(pair.error) for pair in found] == [False, True, True]
    assert "x.parquet: expected a path or URL of both images" in found[1].error


def test_malformed_parquets_are_refused(tmp_path, monkeypatch):
    path = parquet(tmp_path / "x.parquet", names(10))
    with pytest.raises(ValueError, match="x.parquet: expected the columns a, c, got a, b; --columns"):
        ParquetPairs(path, 4, ("a", "c"))
    with pytest.raises(ValueError, match="x.parquet: b: expected a column of text, got int64"):
        ParquetPairs(parquet(tmp_path / "x.parquet", [("x", 1)]), 4)
    monkeypatch.setattr(lists, "_LARGE_GROUP", 5)
    with pytest.raises(ValueError, match="row groups of at most 5 rows, got 10; write the list with"):
        ParquetPairs(parquet(tmp_path / "x.parquet", names(10)), 4)
    (tmp_path / "x.parquet").write_bytes(b"no parquet at all")
    with pytest.raises(ValueError, match="x.parquet: expected a Parquet file, got"):
        ParquetPairs(path, 4)


def test_a_parquet_that_changes_during_a_run_is_noticed(tmp_path):
    source = ParquetPairs(parquet(tmp_path / "x.parquet", names(10)), 4)
    before = source.describe()
    assert flat(read(source)) == names(10)
    parquet(tmp_path / "x.parquet", names(11))
    with pytest.raises(ValueError, match="x.parquet: expected the list as it was before the run"):
        read(source)
    assert ParquetPairs(str(tmp_path / "x.parquet"), 4).describe() != before


def test_lists_behind_a_url(tmp_path):
    fsspec = pytest.importorskip("fsspec")
    system = fsspec.filesystem("memory")
    for kind, path in (("csv", table(tmp_path / "x", names(1000))), ("parquet", parquet(tmp_path / "y", names(1000)))):
        system.pipe_file(f"/lists/x.{kind}", (tmp_path / path).read_bytes())
        source = open_list(f"memory://lists/x.{kind}", 4)
        assert flat(read(source)) == names(1000)
        assert next(source.unit(0)).places[0] == "memory://lists/x/0.png"
    system.store.clear()


def test_a_list_that_is_missing_is_named(tmp_path):
    for suffix, kind in (("csv", "CSV"), ("parquet", "Parquet")):
        with pytest.raises(FileNotFoundError, match=f"none.{suffix}: expected a {kind} list of pairs, got no"):
            open_list(f"none.{suffix}", 4)
        (tmp_path / f"x.{suffix}").mkdir()
        with pytest.raises(IsADirectoryError, match=f"expected a {kind} list of pairs, got a folder"):
            open_list(str(tmp_path / f"x.{suffix}"), 4)


def test_a_server_that_gives_no_parts_of_files_is_refused(tmp_path, monkeypatch):
    pytest.importorskip("aiohttp")
    monkeypatch.setattr(storage, "_WAITS", ())
    table(tmp_path / "x.csv", names(100))
    with web_server(tmp_path) as (web, _):
        source = CsvPairs(f"{web}/x.csv", 4)
        assert source.pairs == 100
        with pytest.raises(ValueError, match="x.csv: expected the same .* bytes; leave the list .* parts of files"):
            list(source.unit(1))


def test_the_extra_parquet_is_named(tmp_path, monkeypatch):
    path = parquet(tmp_path / "x.parquet", names(10))
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ImportError, match=r"x.parquet: expected the package pyarrow .*lpips_lightning\[parquet\]"):
        ParquetPairs(path, 4)
