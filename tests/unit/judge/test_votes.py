"""Which answers count: every rule excludes exactly what it names."""

import pytest
from judged_study import bare_study

from lpips_lightning.judge.votes import counted, votes


def one_answer(study, item, choice, *, reason="random", slipped=False, passed=True, observer=None):
    """Put an answer in, in a session of its own."""
    who = observer or study.enroll()[0]
    session = study.start_session(who.id)
    trial = study.assign(session.id, 0, item, reason, False)
    study.answer(trial.id, choice, 500, slipped=slipped)
    if passed is not None:
        study.finish_session(session.id, passed)
    return trial.id


def test_votes_of_a_2afc_study_are_exactly_those_that_count(tmp_path):
    study = bare_study(tmp_path, 4)
    kept = [one_answer(study, 1, "p0"), one_answer(study, 1, "p1"), one_answer(study, 2, "p1", reason="active")]
    kept += [one_answer(study, 3, "p0", passed=None), one_answer(study, 1, "p1", slipped=True)]
    failed = one_answer(study, 4, "p0", passed=False)
    one_answer(study, 5, "p1", reason="sentinel")
    one_answer(study, 5, "p0", reason="practice")
    repeat = one_answer(study, 2, "p0", reason="repeat")
    assert [answer.trial for answer in counted(study)] == kept
    assert votes(study) == {1: (1, 2), 2: (0, 1), 3: (1, 0)}
    assert votes(study, failed=True) == {1: (1, 2), 2: (0, 1), 3: (1, 0), 4: (1, 0)}
    assert {answer.trial for answer in counted(study, failed=True, repeats=True)} == {*kept, failed, repeat}
    assert votes(study, slipped=False) == {1: (1, 1), 2: (0, 1), 3: (1, 0)}
    assert votes(study, reasons=("random",)) == {1: (1, 2), 3: (1, 0)}


def test_slipped_trials_count_in_no_jnd_study_unless_told(tmp_path):
    study = bare_study(tmp_path, 2, test="jnd")
    one_answer(study, 1, "same")
    one_answer(study, 1, "different", slipped=True)
    assert votes(study) == {1: (1, 0)}
    assert votes(study, slipped=True) == {1: (1, 1)}


@pytest.mark.parametrize(("first", "expected"), [({}, {1: (1, 0)}), ({"passed": False}, {1: (0, 1)})])
def test_an_observer_has_one_vote_per_item_the_first_that_no_rule_excludes(tmp_path, first, expected):
    study = bare_study(tmp_path, 2)
    observer, _ = study.enroll()
    one_answer(study, 1, "p0", observer=observer, **first)
    one_answer(study, 1, "p1", observer=observer)
    assert votes(study) == expected


def test_a_study_without_answers_has_no_votes(tmp_path):
    assert votes(bare_study(tmp_path)) == {}
