"""Calibration files as metrics of a report or a ranking of a study."""

from __future__ import annotations

import pytest
from small_studies import small_study

from lpips_lightning.calibration.export import write_calibration
from lpips_lightning.calibration.model import TrainableLPIPS
from lpips_lightning.judge.results.calibrate import study_digest
from lpips_lightning.judge.results.own_calibrations import own_calibrations


def written(path, **record):
    path.parent.mkdir(exist_ok=True)
    network = TrainableLPIPS("embedded", init="official")
    return str(write_calibration(path, network, 1.0, {"mode": "lin", **record}))


def test_a_file_with_the_name_of_another_metric_keeps_its_own_place(tmp_path):
    """Two metrics of one name would be one row, with the distances of the second."""
    study = small_study(tmp_path)
    files = [written(tmp_path / folder / "embedded.safetensors") for folder in ("a", "b")]
    other = written(tmp_path / "own.safetensors")
    found = own_calibrations([*files, other, other], study, ["embedded", "l2"])
    assert [one.name for one in found] == [*files, "own"] == [one.load().name for one in found]
    assert [one.method for one in found] == [f"embedded:calibration={file}" for file in (*files, other)]


def test_what_a_file_was_not_trained_on_is_known_if_it_is_of_the_study(tmp_path):
    study = small_study(tmp_path)
    own = written(tmp_path / "a.safetensors", study={"digest": study_digest(study)}, held_out_items=[2, 4])
    other = written(tmp_path / "b.safetensors", study={"digest": "of another"}, held_out_items=[1])
    plain = written(tmp_path / "c.safetensors")
    assert [one.held_out for one in own_calibrations([own, other, plain], study)] == [[2, 4], None, None]


def test_files_with_a_backbone_of_their_own_are_refused(tmp_path):
    file = written(tmp_path / "tune.safetensors", mode="tune")
    with pytest.raises(ValueError, match=r"calibration: expected a file of `judge calibrate` or `calibration fast`"):
        own_calibrations([file], small_study(tmp_path))
