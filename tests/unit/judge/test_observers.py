"""What observers did."""

from __future__ import annotations

from judged_study import bare_study

from lpips_lightning.judge.results.observers import repeat_pairs


def test_repeats_are_found_though_the_clock_was_set_back(tmp_path, monkeypatch):
    study, clock = bare_study(tmp_path, 1), iter(range(100, 0, -1))
    session = study.start_session(study.enroll()[0].id).id
    monkeypatch.setattr("lpips_lightning.judge.store.time.time", lambda: float(next(clock)))
    for position, reason in enumerate(("random", "repeat")):
        study.answer(study.assign(session, position, 1, reason, False).id, "p1", 500.0)
    assert [same for _, same in repeat_pairs(study)] == [True]
