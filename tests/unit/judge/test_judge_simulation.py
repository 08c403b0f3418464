"""``judge simulate``: a copy of a study with marked answers, and everything that follows from it."""

import csv
from pathlib import Path
from shutil import copyfile

import pytest

from lpips_lightning.cli.commands import main
from lpips_lightning.judge.records import Design
from lpips_lightning.judge.results import calibrate
from lpips_lightning.judge.simulated import simulation_note
from lpips_lightning.judge.stimuli import study_from_methods
from lpips_lightning.judge.store import Study
from lpips_lightning.judge.votes import counted
from tests._helpers.method_study import STRENGTHS, write_methods

SIMULATE = ["judge", "simulate", "study.db", "--judge", "l2", "--out", "answered.db"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A study from folders of methods, as `judge serve --methods` makes it."""
    folder = tmp_path_factory.mktemp("made")
    write_methods(folder / "outputs", references=6)
    design = Design(trials=30, sentinels=4, pass_mark=3, practice=2, repeats=2, votes=5)
    study = study_from_methods(folder / "study.db", folder / "outputs", "reference", design=design)
    study.close()
    return folder / "study.db"


@pytest.fixture(autouse=True)
def _folder(made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    copyfile(made, "study.db")


def answers(path):
    study = Study.open(path)
    found = study.answers(), counted(study)
    study.close()
    return found


def test_from_folders_of_methods_to_the_known_order(capsys):
    assert main([*SIMULATE, "--observers", "5", "--noise", "0.5", "--lapse", "0.02"]) == 0
    said = capsys.readouterr().out
    assert "answered.db: 190 answers by 5 simulated observers" in said  # practice 2, sentinels 4, 30, repeats 2
    assert "Next: lpips-lightning judge rank answered.db" in said
    everything, votes = answers("answered.db")
    assert len(votes) == 150 and simulation_note(everything).startswith("All answers")
    assert answers("study.db") == ([], [])
    assert main(["judge", "rank", "answered.db", "--net", "l2", "--resamples", "50"]) == 0
    assert "say nothing about people" in capsys.readouterr().out
    with Path("outputs/ranking/ranking.csv").open() as file:
        assert [row["method"] for row in csv.DictReader(file)] == [*STRENGTHS, *STRENGTHS]


def test_what_comes_next_depends_on_what_is_compared(capsys):
    study = Study.open("study.db")
    study.set_value("made_with", '{"images": "photographs"}')
    study.close()
    assert main([*SIMULATE, "--observers", "1"]) == 0
    assert "Next: lpips-lightning judge report answered.db" in capsys.readouterr().out
    assert main(["judge", "rank", "answered.db"]) == 2
    assert "got one of distorted photographs" in capsys.readouterr().err


def test_failed_sessions_count_only_if_asked_for(capsys):
    assert main([*SIMULATE, "--observers", "6", "--lapse", "1"]) == 0
    study = Study.open("answered.db")
    failed = [session.passed for session in study.sessions()].count(False)
    study.close()
    said = []
    for more in ([], ["--include-failed"]):
        capsys.readouterr()
        main(["judge", "rank", "answered.db", "--net", "--resamples", "10", "--force", "--out", "r", *more])
        said.append(capsys.readouterr().out)
    counts = [int(text.split()[0]) for text in said]  # "60 answers by 2 observers on ..."
    assert failed and counts[0] < counts[1] and " by 6 observers on 6 references" in said[1]


def test_equal_seeds_give_equal_answers_and_others_do_not():
    found = []
    for number, seed in enumerate(("1", "1", "2")):
        out = f"{number}.db"
        assert main([*SIMULATE[:-1], out, "--observers", "2", "--seed", seed]) == 0
        found.append([(one.item, one.choice) for one in answers(out)[1]])
    assert found[0] == found[1] != found[2]


def test_simulated_answers_are_replaced_by_force_and_those_of_people_never(capsys):
    assert main([*SIMULATE, "--observers", "1"]) == 0
    assert main([*SIMULATE, "--observers", "2"]) == 2
    assert "--out: answered.db exists; --force replaces it" in capsys.readouterr().err.replace(" out:", " --out:")
    assert main([*SIMULATE, "--observers", "2", "--force"]) == 0
    people = Study.open("answered.db")
    person, _ = people.enroll()
    trial = people.assign(people.start_session(person.id).id, 0, 1, "random", False)
    people.answer(trial.id, "p0", 700.0)
    count = len(people.answers())
    people.close()
    assert main([*SIMULATE, "--force"]) == 2
    assert "expected a new file, or one of simulated answers alone, got 'answered.db'" in capsys.readouterr().err
    assert len(answers("answered.db")[0]) == count
    Path("note.txt").write_text("a note")
    assert main([*SIMULATE[:-1], "note.txt", "--force"]) == 2
    assert Path("note.txt").read_text() == "a note"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--observers", "0"], "--observers: expected at least 1, got 0"),
        (["--sessions", "0"], "--sessions: expected at least 1, got 0"),
        (["--noise", "-1"], "--noise: expected at least 0, got -1"),
        (["--side-bias", "2"], "--side-bias: expected a probability in [-1, 1], got 2"),
        (["--judge", "psnr"], "--judge: expected a metric whose distances are at least 0, got psnr"),
        (["--judge", "nothing"], "expected one of alex, vgg, squeeze"),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_file(words, message, capsys):
    assert main([*SIMULATE, *words]) == 2
    assert message in capsys.readouterr().err
    assert not Path("answered.db").exists()


def test_report_and_calibration_say_that_answers_are_simulated(capsys, monkeypatch):
    assert main([*SIMULATE, "--observers", "5"]) == 0
    capsys.readouterr()
    note = "All answers are of simulated observers: they say nothing about people."
    assert main(["judge", "report", "answered.db", "--net", "l2", "--resamples", "10"]) == 0
    assert note in " ".join(capsys.readouterr().out.split())
    assert note in Path("outputs/judge/report/report.html").read_text(encoding="utf-8")
    monkeypatch.setattr(calibrate, "_learning_curve", lambda *args: [])
    study = Study.open("answered.db")
    found = calibrate.calibrate(study, "embedded", val_fraction=0.4)
    study.close()
    assert note in found.notes and found.record["simulated"] == note
