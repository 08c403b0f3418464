"""Who judged a data set: BAPPS, generated data, and data of unknown origin."""

from __future__ import annotations

import json

import pytest

from lpips_lightning.data.bapps_download import ARCHIVES
from lpips_lightning.data.judges import PEOPLE, UNKNOWN, is_label, judge_note, judged_by

NET = (
    "LPIPS alex v0.1, lin sha256:fe6a817a5c14, backbone IMAGENET1K_V1 sha256:195266a4c8e9, fp32, lpips_lightning 0.1.0"
)


def with_judgments(root, part, name, count, kind):
    folder = root / part / name / kind
    folder.mkdir(parents=True)
    for number in range(count):
        (folder / f"{number:06d}.npy").touch()


@pytest.mark.parametrize(("part", "name", "kind"), [("2afc/val", "frameinterp", "judge"), ("jnd/val", "cnn", "same")])
def test_bapps_is_known_by_its_sets_and_their_sizes(part, name, kind, tmp_path, monkeypatch):
    monkeypatch.setitem(ARCHIVES[part].counts, name, (5, 6))
    with_judgments(tmp_path, part, name, 5, kind)
    with_judgments(tmp_path, part, "mine", 5, kind)
    assert judged_by(tmp_path, part, name) == PEOPLE
    assert judged_by(tmp_path, part, "mine") == UNKNOWN
    assert judged_by(tmp_path, part, "gone") == UNKNOWN
    (tmp_path / part / name / kind / "000004.npy").unlink()
    assert judged_by(tmp_path, part, name) == UNKNOWN


@pytest.mark.parametrize(
    ("judge", "label"),
    [
        (NET, "judge: LPIPS alex v0.1"),
        (NET.replace("lin sha256:fe6a817a5c14", "baseline"), "judge: LPIPS alex v0.1, baseline"),
        ("l2", "judge: l2"),
        ("none", "judges"),
        (None, "judges"),
    ],
)
def test_generated_data_names_its_judge(judge, label, tmp_path, monkeypatch):
    monkeypatch.setitem(ARCHIVES["2afc/val"].counts, "cnn", (0, 9))
    with_judgments(tmp_path, "2afc/val", "cnn", 5, "judge")
    (tmp_path / "made.json").write_text(json.dumps({"judge": judge}))
    found = judged_by(tmp_path, "2afc/val", "cnn")
    assert found.label == label and is_label(label) and not is_label("alex")
    assert judge_note([label]) == (f"judged by a metric: {label[7:]}" if found.kind == "metric" else "")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"counts": {}}'])
def test_a_record_that_names_no_judge_leaves_it_unknown(text, tmp_path):
    (tmp_path / "made.json").write_text(text)
    assert judged_by(tmp_path, "2afc/val", "cnn") == UNKNOWN
