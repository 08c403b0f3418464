"""The folder of a run: whatever happens to it, each pair is there once or is measured again."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import threading
from collections import deque

import pytest

from lpips_lightning.runs import journal
from lpips_lightning.runs.journal import PLAN, Journal, PairRow, PartWriter

UNITS, LENGTH, BATCH = 7, 10, 4


def row(unit, number):
    if (unit + number) % 5 == 0:
        return PairRow(f"a/{unit}/{number}\udcff.png", f"b/{number}.png", math.nan, "b: expected «an image», got\nnone")
    return PairRow(f"a/{unit}/{number}.png", f"b/{number}.png", (unit + 1) / (number + 7), scores={"psnr": 1 / 3})


ROWS = [row(unit, number) for unit in range(UNITS) for number in range(LENGTH)]


def batches(units=range(UNITS)):
    for unit in units:
        for start in range(0, LENGTH, BATCH):
            numbers = range(start, min(start + BATCH, LENGTH))
            yield unit, {number: row(unit, number) for number in numbers}, LENGTH if numbers[-1] == LENGTH - 1 else None


def write(folder, rank, found):
    writer = PartWriter(folder, rank)
    for one in found:
        writer.write(*one)
    writer.close()


def go_on(folder):
    """Measure what is missing, as a run does; the number of rows that were measured again."""
    found = Journal(folder).progress()
    again = 0
    missing = []
    for unit, rows, end in batches(unit for unit in range(UNITS) if unit not in found.ended):
        done = found.begun.get(unit, frozenset())
        if end is None and rows.keys() <= done:
            continue
        again += len(rows.keys() & done)
        missing.append((unit, rows, end))
    write(folder, 0, missing)
    return again


def same(found):
    return json.dumps([one.to_json() for one in found]) == json.dumps([one.to_json() for one in ROWS])


def test_rows_are_in_the_order_of_the_source(tmp_path):
    every = list(batches())
    write(tmp_path, 0, every[::2][::-1])
    write(tmp_path, 1, every[1::2])
    assert same(Journal(tmp_path).rows(UNITS))
    progress = Journal(tmp_path).progress()
    assert progress == journal.Progress(dict.fromkeys(range(UNITS), LENGTH), {}, UNITS * LENGTH)


def test_a_part_cut_at_any_byte_loses_one_batch_at_most(tmp_path):
    whole = tmp_path / "whole"
    whole.mkdir()
    write(whole, 0, batches())
    content = (whole / "part-00000-000.jsonl").read_bytes()
    lines = content.splitlines(keepends=True)
    places = {
        0,
        1,
        len(content) - 1,
        len(content),
        *range(len(lines[0]) - 2, len(lines[0]) + 40),
        *range(700, len(content), 97),
    }
    for place in sorted(places):
        folder = tmp_path / f"{place}"
        folder.mkdir()
        (folder / "part-00000-000.jsonl").write_bytes(content[:place])
        before = Journal(folder).progress()
        kept = content[:place].count(b"\n")
        assert before.pairs == sum(len(rows) for _, rows, _ in list(batches())[:kept])
        assert go_on(folder) <= BATCH
        assert same(Journal(folder).rows(UNITS))
    assert len(places) > 80


@pytest.mark.parametrize("damage", [b"0.9", b"[", b"\x00", b"\n", b""])
def test_edited_lines_are_measured_again(tmp_path, damage):
    write(tmp_path, 0, batches())
    part = tmp_path / "part-00000-000.jsonl"
    content = part.read_bytes()
    for place in (3, 40, len(content) // 2, len(content) - 3):
        part.write_bytes(content[:place] + damage + content[place + 1 :])
        found = Journal(tmp_path).progress()
        assert found.damaged >= 1
        assert found.pairs < len(ROWS)
        with pytest.raises(ValueError, match="the same command goes on and measures what is missing"):
            list(Journal(tmp_path).rows(UNITS))
        go_on(tmp_path)
        assert same(Journal(tmp_path).rows(UNITS))
        (tmp_path / "part-00000-001.jsonl").unlink()


def test_deleted_parts_and_lines_are_measured_again(tmp_path):
    every = list(batches())
    write(tmp_path, 0, every[:9])
    write(tmp_path, 1, every[9:])
    (tmp_path / "part-00001-000.jsonl").unlink()
    part = tmp_path / "part-00000-000.jsonl"
    part.write_bytes(b"".join(part.read_bytes().splitlines(keepends=True)[1:]))
    with pytest.raises(ValueError, match="got an incomplete unit 0"):
        list(Journal(tmp_path).rows(UNITS))
    go_on(tmp_path)
    assert same(Journal(tmp_path).rows(UNITS))
    with pytest.raises(ValueError, match=f"got an incomplete unit {UNITS}"):
        list(Journal(tmp_path).rows(UNITS + 1))


def test_pairs_that_were_measured_twice_are_there_once(tmp_path):
    broken = {unit: {0: PairRow("a", "b", math.nan, "b: no connection")} for unit in range(UNITS)}
    write(tmp_path, 0, [(unit, rows, None) for unit, rows in broken.items()])
    write(tmp_path, 1, batches())
    write(tmp_path, 1, batches())
    assert Journal(tmp_path).progress().pairs == len(ROWS)
    found = list(Journal(tmp_path).rows(UNITS))
    assert len(found) == len(ROWS)
    assert found[1] == ROWS[1]  # of the first, all attempts failed
    assert same(found[:0] + [ROWS[n] if one.error == "b: no connection" else one for n, one in enumerate(found)])
    assert sum(one.error == "b: no connection" for one in found) == 2


def test_many_parts_are_merged_with_few_open_files(tmp_path, monkeypatch):
    monkeypatch.setattr(journal, "_OPEN", 2)
    for rank, one in enumerate(batches()):
        write(tmp_path, rank, [one])
    assert same(Journal(tmp_path).rows(UNITS))


def test_a_new_attempt_starts_new_parts(tmp_path):
    for _ in range(3):
        write(tmp_path, 5, [])
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"part-00005-00{attempt}.jsonl" for attempt in range(3)]
    assert not list(Journal(tmp_path).rows())


def test_a_full_disk_is_named_and_the_run_goes_on(tmp_path):
    resource = pytest.importorskip("resource")
    writer = PartWriter(tmp_path, 0)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, hard))
    try:
        with pytest.raises(OSError, match=r"part-00000-000.jsonl: expected to write results, got .*; free some space"):
            deque(writer.write(*one) for one in batches())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    writer.close()
    assert 0 < Journal(tmp_path).progress().pairs < len(ROWS)
    assert go_on(tmp_path) <= BATCH
    assert same(Journal(tmp_path).rows(UNITS))


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="expected to write results, got"):
        PartWriter(tmp_path / "file", 0)
    with pytest.raises(OSError, match="expected to write results, got"), Journal(tmp_path / "file" / "x").locked():
        pass


def test_another_run_is_kept_out(tmp_path, monkeypatch):
    monkeypatch.setattr(journal, "_PATIENCE", 0.1)
    code = "import sys; from lpips_lightning.runs.journal import Journal\n"
    code += "with Journal(sys.argv[1]).locked(): print('locked', flush=True); sys.stdin.read()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "run")], **pipes) as other:
        assert other.stdout.readline().strip() == b"locked"
        with pytest.raises(ValueError, match="out: expected a folder that no other run uses"):
            Journal(tmp_path / "run").locked().__enter__()
        other.kill()
        other.wait()
    with Journal(tmp_path / "run").locked():  # the lock of a killed process is gone
        assert not list(Journal(tmp_path / "run").rows())


def test_a_run_that_is_just_ending_is_waited_for(tmp_path):
    held, release = threading.Event(), threading.Event()

    def hold():
        with Journal(tmp_path).locked():
            held.set()
            release.wait(20)

    other = threading.Thread(target=hold)
    other.start()
    held.wait(20)
    threading.Timer(0.2, release.set).start()
    with Journal(tmp_path).locked():
        assert release.is_set()
    other.join()


@pytest.mark.parametrize("content", ["", "{", "[1]", "\x00\x00"])
def test_a_damaged_plan_is_an_error(tmp_path, content):
    (tmp_path / PLAN).write_text(content)
    with pytest.raises(ValueError, match=r"run.json: expected the JSON of a run, got"):
        Journal(tmp_path).plan()


def test_the_plan_and_its_end(tmp_path):
    book = Journal(tmp_path / "run")
    assert book.plan() is None
    book.begin({"format": 1})
    assert book.plan() == {"format": 1}
    write(book.folder, 0, batches())
    book.clear()
    assert not list(book.folder.iterdir())


def test_failed_pairs_are_forgotten_and_measured_again(tmp_path):
    every = list(batches())
    write(tmp_path, 0, every[::2])
    write(tmp_path, 1, every[1::2])
    failed = [one for one in ROWS if one.error]
    Journal(tmp_path).forget_failed()
    found = Journal(tmp_path).progress()
    assert found.pairs == len(ROWS) - len(failed) and not found.ended and not found.damaged
    go_on(tmp_path)
    assert same(Journal(tmp_path).rows(UNITS))


def test_an_archive_that_could_not_be_read_to_its_end_may_be_longer(tmp_path):
    ok = {number: PairRow("a", "b", float(number)) for number in range(3)}
    write(tmp_path, 0, [(0, {0: ok[0], 1: PairRow("x.tar", "x.tar", math.nan, "x.tar: cut off")}, 2), (1, ok, 3)])
    Journal(tmp_path).forget_failed()
    assert Journal(tmp_path).progress() == journal.Progress({1: 3}, {0: frozenset({0})}, 4)
    write(tmp_path, 0, [(0, {1: ok[1], 2: ok[2]}, 3)])
    assert [one.distance for one in Journal(tmp_path).rows(2)] == [0, 1, 2, 0, 1, 2]


def test_without_failures_nothing_is_forgotten(tmp_path):
    write(tmp_path, 0, [(0, {0: PairRow("a", "b", 1.0)}, 1)])
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    Journal(tmp_path).forget_failed()
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
