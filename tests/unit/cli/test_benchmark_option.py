"""``compare --benchmark``: the parts of a run are measured, nothing is written."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from lpips_lightning.cli.compare import main
from lpips_lightning.cli.compare_run import with_benchmark
from lpips_lightning.runs import benchmark as module


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["--benchmark", "a", "b"], ["--benchmark=200", "a", "b"]),
        (["a", "b", "--benchmark"], ["a", "b", "--benchmark=200"]),
        (["--benchmark", "--psnr", "a"], ["--benchmark=200", "--psnr", "a"]),
        (["--benchmark", "12", "a"], ["--benchmark", "12", "a"]),
        (["--benchmark=12", "a"], ["--benchmark=12", "a"]),
        ([], []),
    ],
)
def test_its_number_may_be_left_out(given, expected):
    assert with_benchmark(given) == expected


def test_it_prints_a_table_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "_LEAST", 0.05)
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        for row in range(3):
            pixels = np.random.default_rng(row).integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / folder / f"{row}.png")
    main(["--net", "embedded", "--workers", "0", "--accelerator", "cpu", "--benchmark", "a", "b"])
    printed = capsys.readouterr().out
    assert printed.startswith("3 pairs, 0.00205 MPix in both images, 3 in a batch; cpu")
    assert "together" in printed and "all 3 pairs: about" in printed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_it_needs_a_positive_number(tmp_path):
    with pytest.raises(ValueError, match="benchmark: expected a positive number of pairs, got 0"):
        main(["--net", "embedded", "--benchmark", "0", str(tmp_path), str(tmp_path)])
