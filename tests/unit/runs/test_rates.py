"""The progress line of a run: rates of all ranks, what limits, and when it is printed."""

from __future__ import annotations

import io
import sys
import threading
import time

import pytest
import torch

from lpips_lightning.runs import rates as module
from lpips_lightning.runs.engine import BatchTimes
from lpips_lightning.runs.rates import ADVICE, RankRates, Rates, RunRates, duration, progress_line, read_rates
from lpips_lightning.runs.reading import PairBatch


def batch(pairs, failed=0, reading=0.0, decoding=0.0):
    errors = {pairs + row: "broken" for row in range(failed)}
    return PairBatch(0, tuple(range(pairs)), errors=errors, x=torch.zeros(1), reading=reading, decoding=decoding)


@pytest.mark.parametrize(
    ("rates", "limit"),
    [
        (Rates(waiting=6, network=3, transfer=1, reading=2, decoding=1), ("reading", 0.6)),
        (Rates(waiting=6, network=3, transfer=1, reading=1, decoding=2), ("decoding", 0.6)),
        (Rates(waiting=1, network=3, reading=9, decoding=9), ("network", 0.75)),
        (Rates(transfer=3, network=1), ("transfer", 0.75)),
        (Rates(), None),
    ],
)
def test_what_limits_is_where_the_time_of_the_ranks_goes(rates, limit):
    assert rates.limit() == limit
    assert limit is None or limit[0] in ADVICE


def test_ranks_keep_their_sums_in_the_folder(tmp_path):
    ranks = [RankRates(tmp_path, rank) for rank in range(2)]
    for rank in ranks:
        for _ in range(3):
            rank.add(batch(4, failed=1, reading=0.5, decoding=0.25), BatchTimes(1.0, 2.0), 3.0)
        rank.close()
    each = Rates(pairs=15, failed=3, waiting=3.0, transfer=6.0, network=9.0, reading=1.5, decoding=0.75)
    assert read_rates(tmp_path, 2) == each + each
    assert read_rates(tmp_path, 1) == each  # files of further ranks are of an earlier attempt
    (tmp_path / "rates-00001.json").write_text("{")
    assert read_rates(tmp_path, 2) == each


def test_the_line_says_how_far_how_fast_and_what_to_change():
    run = RunRates(10_000, resumed=1_000)
    assert run.line() == ""
    for second in range(101):  # ten pairs a second, then fifty
        pairs = 10 * second if second <= 50 else 500 + 50 * (second - 50)
        run.see(1e6 + second, Rates(pairs, failed=second // 50, waiting=3 * pairs, network=pairs, decoding=pairs))
    assert run.line() == (
        "4,000 of 10,000 pairs (40 %), 50/s now, 30/s on average, 2.0 min left, 2 failed;"
        " decoding limits (75% of the time): more --workers while cores are free, or more machines"
    )
    assert run.summary().startswith("3,000 pairs in 100 s, 30/s; decoding limits")


def test_the_line_does_without_a_total_and_without_progress():
    run = RunRates(None)
    run.see(0.0, Rates())
    assert run.line() == run.summary() == ""
    run.see(10.0, Rates(pairs=5))
    assert run.line() == "5 pairs, 0.5/s now, 0.5/s on average"
    run.see(100.0, Rates(pairs=5))
    run.see(200.0, Rates(pairs=5))
    assert "0/s now" in run.line() and "left" not in run.line()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (119, "119 s"), (150, "2.5 min"), (3000, "50 min"), (8000, "2.2 h"), (200_000, "2.3 days")],
)
def test_times_have_the_unit_that_suits(seconds, text):
    assert duration(seconds) == text


def test_lines_are_printed_while_the_run_goes_on_and_at_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_ELSEWHERE", 0.02)
    monkeypatch.setattr(sys, "stderr", stream := io.StringIO())
    RankRates(tmp_path, 7).close()  # of an earlier attempt with more ranks
    with progress_line(tmp_path, 1, 100):
        assert not list(tmp_path.iterdir())
        time.sleep(0.1)
        assert stream.getvalue() == ""  # nothing is measured yet
        rank = RankRates(tmp_path, 0)
        rank.add(batch(40), BatchTimes(0.0, 0.0), 1.0)
        rank.close()
        until = time.monotonic() + 10
        while not stream.getvalue() and time.monotonic() < until:
            time.sleep(0.01)
    lines = stream.getvalue().splitlines()
    assert lines[0].startswith("lpips-lightning: 40 of 100 pairs (40 %)")
    assert lines[-1].startswith("lpips-lightning: 40 pairs in 0 s")
    assert not [one for one in threading.enumerate() if one.name == "progress"]


def test_a_short_run_and_a_closed_standard_error_print_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stderr", stream := io.StringIO())
    with progress_line(tmp_path, 1, 100):
        RankRates(tmp_path, 0).add(batch(40), BatchTimes(0.0, 0.0), 1.0)
    assert stream.getvalue() == ""
    monkeypatch.setattr(sys, "stderr", None)
    with progress_line(tmp_path, 1, 100):
        assert not [one for one in threading.enumerate() if one.name == "progress"]


def test_a_terminal_that_goes_away_does_not_end_the_work(tmp_path, monkeypatch):
    class Gone(io.StringIO):
        def write(self, text):
            raise OSError("the terminal has gone")

    monkeypatch.setattr(module, "_ELSEWHERE", 0.01)
    monkeypatch.setattr(sys, "stderr", Gone())
    with progress_line(tmp_path, 1, 100):
        rank = RankRates(tmp_path, 0)
        rank.add(batch(40), BatchTimes(0.0, 0.0), 1.0)
        rank.close()
        time.sleep(0.1)
    assert read_rates(tmp_path, 1).pairs == 40


def test_an_error_in_the_run_ends_the_line_first(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with pytest.raises(RuntimeError, match="broken"), progress_line(tmp_path, 1, 100):
        raise RuntimeError("broken")
    assert not [one for one in threading.enumerate() if one.name == "progress"]
