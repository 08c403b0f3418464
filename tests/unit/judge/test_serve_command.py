"""``lpips-lightning judge serve``: studies that are made, that go on, and options that are refused."""

from __future__ import annotations

import random

import image_file_kinds as kinds
import pytest

from lpips_lightning.cli import judge_serve
from lpips_lightning.cli.commands import main
from lpips_lightning.judge.selection import ActiveSelector
from lpips_lightning.judge.server import serving
from lpips_lightning.judge.store import Study
from lpips_lightning.judge.texts import CONSENT, QUESTIONS

JND = ("--images", "photographs", "--test", "jnd")
SMALL = ("--count", "3", "--size", "64", "--trials", "10")
NEW = ("--out", "s.db", "--images", "photographs", "--test", "2afc", *SMALL)


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run the command without serving; what would be served, or the exit code and what was printed."""
    served = []
    monkeypatch.setattr(serving, "serve", lambda study, selector, **options: served.append((study, selector, options)))
    monkeypatch.chdir(tmp_path)
    for number in range(2):
        path = tmp_path / "photographs" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(kinds.saved(kinds.noise(70, 80 + number), "PNG"))

    def command(*args):
        served.clear()
        code = main(["judge", "serve", *args])
        return (
            (served[0][0].design, served[0][2])
            if served
            else (code, capsys.readouterr().err.strip().rpartition("\n")[2])
        )

    command.served = served
    return command


def test_a_study_is_made_served_and_goes_on(run, tmp_path):
    design, options = run(*NEW, "--seed", "5", "--port", "0")
    assert (design.trials, design.sentinels, design.pass_mark, design.repeats, design.seed) == (10, 3, 3, 1, 5)
    assert design.question == QUESTIONS["2afc"] and design.consent == CONSENT and design.instructions
    assert options == {"host": "127.0.0.1", "port": 0, "url": "", "show": False}
    study = Study.open(tmp_path / "s.db")
    assert len(study.items("judged")) == 3 and len(study.items("sentinel")) >= 3
    for again in (("--out", "s.db"), (*NEW, "--seed", "5"), ("--out", "s.db", "--trials", "10")):
        assert run(*again)[0] == design


CONTRADICTIONS = [
    (("--trials", "11"), "--trials: expected 10, as when 's.db' was made, got 11; leave the option out, or make"),
    (("--test", "jnd"), "--test: expected 2afc, as when 's.db' was made, got 'jnd'"),
    (("--seed", "1"), "--seed: expected 0, as"),
    (("--images", "other"), "--images: expected "),
    (("--size", "65"), "--size: expected 64, as"),
    (("--reference", "x"), "--reference: expected no such option, as"),
    (("--consent", "text"), "--consent: expected its text, as when 's.db' was made, got another one;"),
]


def test_options_that_contradict_the_study_are_refused(run, tmp_path):
    run(*NEW)
    (tmp_path / "text").write_text("another")
    for options, sentence in CONTRADICTIONS:
        code, error = run("--out", "s.db", *options)
        assert code == 2 and error.startswith(f"lpips-lightning: {sentence}"), error


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ((), "--out: expected the file of a study, or --images, --triplets or --methods for a new one, got 's.db'"),
        (("--images", "photographs"), "--test: expected 2afc or jnd for a new study, got none"),
        (("--methods", "x", "--test", "jnd"), "--reference: expected the name of the folder of references"),
        (
            ("--images", "x", "--folder", "x", "--test", "jnd"),
            "--folder: expected this option with --triplets",
        ),
        (("--triplets", "x", "--count", "3", "--test", "jnd"), "--count: expected this option with --images or"),
        (
            (*JND, "--pass-mark", "41"),
            "--pass-mark: expected at most sentinels",
        ),
        (
            (*JND, "--consent", "no"),
            "--consent: expected a text file, got 'no'",
        ),
        (("--images", "nowhere", "--test", "jnd"), "--images: expected an existing folder of images"),
        ((*JND, "--active", "2"), "--active: expected a fraction in [0, 1]"),
    ],
)
def test_options_that_make_no_study_are_refused_and_leave_nothing(run, tmp_path, options, sentence):
    code, error = run("--out", "s.db", *options)
    assert code == 2 and error.startswith(f"lpips-lightning: {sentence}"), error
    assert [path.name for path in tmp_path.iterdir()] == ["photographs"]


def test_an_out_that_is_something_else_is_refused(run, tmp_path):
    (tmp_path / "table.csv").write_text("a,b\n1,2\n")
    code, error = run("--out", "table.csv")
    assert code == 2 and "expected the file of a study, got 'table.csv'" in error
    assert (tmp_path / "table.csv").read_text() == "a,b\n1,2\n"
    code, error = run("--out", "photographs")
    assert code == 2 and "--out: expected a file to write, got 'photographs', which is a folder" in error


def test_texts_are_read_from_files(run, tmp_path):
    (tmp_path / "consent.txt").write_text("\ufeffI agree.\n\nReally.\n", encoding="utf-8")
    design, _ = run(*NEW, "--consent", "consent.txt", "--question", "Which?", "--title", "Mine")
    assert (design.consent, design.question, design.title) == ("I agree.\n\nReally.", "Which?", "Mine")
    assert run("--out", "s.db", "--consent", "consent.txt")[0] == design


@pytest.mark.parametrize("package", ["starlette", "uvicorn"])
def test_a_missing_package_is_told_before_anything_is_made(run, tmp_path, monkeypatch, package):
    monkeypatch.setattr(judge_serve, "find_spec", lambda name: None if name == package else name)
    code, error = run(*NEW)
    assert code == 2 and f'{package} is missing: pip install "lpips_lightning[judge]"' in error
    assert not (tmp_path / "s.db").exists()


def test_triplets_and_methods_are_sources_too(run, tmp_path):
    for number, method in enumerate(("reference", "a", "b")):
        (tmp_path / "methods" / method).mkdir(parents=True)
        pixels = kinds.noise(40, 36) ^ number
        (tmp_path / "methods" / method / "1.png").write_bytes(kinds.saved(pixels, "PNG"))
    (tmp_path / "methods" / "t.csv").write_text("ref,p0,p1\nreference/1.png,a/1.png,b/1.png\n")
    design, _ = run("--out", "t.db", "--triplets", "methods/t.csv", "--test", "2afc")
    assert design.test == "2afc" and len(Study.open("t.db").items("judged")) == 1
    run("--out", "m.db", "--methods", "methods", "--reference", "reference", "--test", "jnd")
    (one, other) = Study.open("m.db").items("judged").values()
    assert {one.method0, other.method0} == {"a", "b"}
    assert run("--out", "m.db", "--methods", "methods")[0].pass_mark == 36


def test_active_selection_takes_the_network_that_the_study_was_made_with(run):
    new = (*NEW[:-2], "--trials", "3", "--active", "0.5", "--net", "embedded", "--count", "4")
    for args in (new, ("--out", "s.db")):
        assert run(*args)[0].active == 0.5
        _, selector, _ = run.served[0]
        assert isinstance(selector, ActiveSelector)
        study = Study.open("s.db")
        chosen = {selector(study, [item], random.Random(0))[1] for item in study.items("judged")}
        assert chosen == {"random", "active"}
    assert run("--out", "s.db", "--net", "alex")[1].startswith("lpips-lightning: --net: expected embedded, as when")


def test_missing_weights_are_told_before_a_study_is_made(run, tmp_path):
    code, error = run(*NEW, "--active", "0.5", "--net", "alex", "--weights", "nowhere")
    assert code == 2 and "nowhere" in error
    assert [path.name for path in tmp_path.iterdir()] == ["photographs"]


@pytest.mark.parametrize("test", ["2afc", "jnd"])
def test_a_second_network_counts_where_the_two_disagree(run, test):
    run(*NEW, "--test", test, "--active", "1", "--net", "embedded", "--second-net", "embedded-vgg")
    _, selector, _ = run.served[0]
    study = Study.open("s.db")
    stored = selector._second
    assert len(stored) == 3 and len({*stored.tolist()}) == 3
    assert selector(study, [*study.items("judged")], random.Random(0))[1] == "active"


@pytest.mark.parametrize("option", ["net", "second-net", "weights"])
def test_a_network_without_active_selection_is_refused(run, option):
    code, error = run(*NEW, f"--{option}", "embedded")
    assert code == 2 and error == f"lpips-lightning: --{option}: expected --active F above 0 with this option, got none"
