"""The simulation of large runs: closed formulas in simple cases, and its table."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from lpips_lightning.runs.simulation import CASES, Setting, advice, main, simulate, table

PLAIN = Setting(
    pairs=480 * 1024, ranks=4, per_machine=2, workers=2, cores=16, variation=0, reading=0, decoding=0, start_s=0
)


def near(seconds):
    return pytest.approx(seconds, rel=5e-3)


@pytest.mark.parametrize(
    ("change", "seconds"),
    [
        ({"device": 0.01}, PLAIN.pairs * 0.01 / 4),
        ({"decoding": 0.05, "device": 0.01}, PLAIN.pairs * 0.05 / (4 * 2)),
        ({"decoding": 0.05, "device": 0.01, "cores": 3}, PLAIN.pairs * 0.05 / (4 * 2) * (2 * 3 / 3)),
        ({"reading": 0.05, "decoding": 0.04}, PLAIN.pairs * 0.05 / (4 * 2)),
        ({"bandwidth": 1e7, "bytes_per_pair": 1e6}, PLAIN.pairs * 1e6 / 1e7 / 2),
        ({"request_rate": 100, "requests_per_pair": 2}, PLAIN.pairs * 2 / 100),
        ({"device": 0.01, "ranks": 1}, PLAIN.pairs * 0.01),
    ],
)
def test_without_spread_the_slowest_part_counts(change, seconds):
    setting = replace(PLAIN, **{"device": 1e-6, **change})
    found = simulate(setting)
    assert found.total == near(seconds)
    assert setting.pairs / min(setting.limits().values()) == near(seconds)
    assert found.straggling < 0.01 * seconds
    assert found.busy == pytest.approx(setting.device * setting.pairs / setting.ranks / found.total)


def test_spread_among_pairs_averages_out_and_spread_among_units_does_not():
    setting = replace(PLAIN, decoding=0.05, device=0.04)
    alone = simulate(setting).total
    assert alone <= simulate(replace(setting, variation=1.0)).total < 1.1 * alone
    assert simulate(replace(setting, unit=9600, unit_variation=0.5)).straggling > 0.02 * alone


def test_start_and_end_are_added():
    found = simulate(replace(PLAIN, device=0.01, start_s=7, list_rate=1e5, merge_rate=2e5))
    pairs = PLAIN.pairs
    assert found.starting == pytest.approx(7 + pairs / 1e5)
    assert found.merging == pytest.approx(pairs / 2e5)
    assert found.total == near(7 + pairs / 1e5 + pairs / 2e5 + pairs * 0.01 / 4)


def test_failures_cost_a_start_each_and_repeat_a_batch_per_rank():
    setting = replace(PLAIN, device=0.1, unit=24, start_s=60)
    whole = simulate(setting).total
    setting = replace(setting, failure_h=setting.ranks * whole / 3600 / 20, scan_rate=1e6)
    found = simulate(setting)
    assert found.failures == pytest.approx(20, abs=4 * math.sqrt(20))
    assert found.failures > 0
    assert 0.5 < found.repeated / (found.failures * 4 * 24 // 2) <= 1  # a failure while starting repeats nothing
    least = whole + found.failures * 60 + found.repeated * 0.1 / 4
    assert least * 0.98 < found.total < 1.05 * least


def test_a_run_that_fails_before_it_starts_never_ends():
    found = simulate(replace(PLAIN, device=0.1, start_s=3600, failure_h=0.1))
    assert found.total == math.inf
    assert found.failures == 1000


@pytest.mark.parametrize("seed", [0, 1])
def test_equal_settings_give_equal_results(seed):
    setting = replace(PLAIN, decoding=0.05, variation=0.5, device=0.01, failure_h=10, seed=seed)
    assert simulate(setting) == simulate(setting)


def test_the_table_says_what_breaks_and_what_to_set(capsys):
    main([])
    printed = capsys.readouterr().out.splitlines()
    assert printed == table(CASES)
    assert [line.partition("  ")[0] for line in printed if not line.startswith("  ")] == ["hours", *CASES]
    setting = CASES["256 px PNG, objects"]
    found = advice(setting, simulate(setting))
    assert any("requests limits" in one for one in found) and any("names of all pairs" in one for one in found)


def test_one_setting_comes_from_the_command_line(capsys):
    main(["--pairs", "1000", "--ranks", "2", "--decoding", "0.5"])
    line, limit = capsys.readouterr().out.splitlines()[1:3]
    assert line.startswith("your setting")
    assert limit.startswith("  decoding limits, 32 pairs/s")  # 2 ranks with 8 workers, 0.5 s each


def test_a_setting_without_pairs_is_an_error(capsys):
    with pytest.raises(SystemExit):
        main(["--pairs", "0"])
    assert "pairs: expected at least 1, got 0" in capsys.readouterr().err
    with pytest.raises(ValueError, match="decoding: expected a number of at least 0, got -1"):
        replace(PLAIN, decoding=-1)
