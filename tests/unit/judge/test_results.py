"""Report, export and calibration of studies with simulated observers, down to those without an answer."""

import csv
import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from _helpers.figure_layout import HOSTILE_NAMES, saved_faults
from _helpers.small_data import write_noise
from judged_study import bare_study, drawn_study, observe
from toy_judgments import hidden_judge

from lpips_lightning import LPIPS
from lpips_lightning.calibration.model import TrainableLPIPS
from lpips_lightning.cli.commands import main
from lpips_lightning.data.bapps import JNDDataset, TwoAFCDataset
from lpips_lightning.data.triplets import TripletDataset, photograph_of, read_triplets
from lpips_lightning.evaluation.methods import Method
from lpips_lightning.functional.judgments import jnd_score, two_afc_score
from lpips_lightning.io.image_files import write_image
from lpips_lightning.io.tensor_files import read_record
from lpips_lightning.judge.judged_images import is_of_photographs, measure
from lpips_lightning.judge.records import Design, StudyError
from lpips_lightning.judge.results import report_figures as figures
from lpips_lightning.judge.results.agreement import UNKNOWN, Ballots, Estimate
from lpips_lightning.judge.results.calibrate import Point, calibrate, check_study
from lpips_lightning.judge.results.export import export_answers, export_bapps, export_csv
from lpips_lightning.judge.results.observers import (
    TOO_FAST_MS,
    consistency,
    excluded,
    fatigue,
    observer_rows,
    side_bias,
)
from lpips_lightning.judge.results.report import gather, write_page
from lpips_lightning.judge.results.scoring import Judgments, Outlook, difference, outlook, psychometric, score
from lpips_lightning.judge.stimuli import study_from_photographs
from lpips_lightning.judge.store import Study
from lpips_lightning.judge.votes import counted, tally, votes


def random_distances(study, seed=0):
    """Distances by item."""
    generator = torch.Generator().manual_seed(seed)
    jnd = study.design.test == "jnd"

    def draw():
        return float(torch.randn((), generator=generator).exp())

    return {item: (draw(), None if jnd else draw()) for item in study.items("judged")}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Studies with images by test, judged by observers of a hidden calibration, and its distances."""
    found = {}
    for test, count in (("2afc", 120), ("jnd", 30)):
        study = drawn_study(tmp_path_factory.mktemp(test), count, test=test, title="Noise")
        method = Method("hidden", hidden_judge(), None)
        distances = measure(study, list(study.items("judged").values()), [method])["hidden"]
        middle = sorted(pair[0] for pair in distances.values())[count // 2]
        observe(study, distances, observers=6, threshold=middle, noise=0.2, repeats=4, seed=1)
        found[test] = study, distances
    return found


@pytest.mark.parametrize("test", ["2afc", "jnd"])
@pytest.mark.parametrize("answers", ["no observer", "one answer", "one observer", "two observers", "all failed"])
def test_a_report_of_few_answers_says_what_cannot_be_told(tmp_path, test, answers):
    study = bare_study(tmp_path, 6, test=test)
    distances = random_distances(study)
    people = {"no observer": 0, "two observers": 2}.get(answers, 1)
    few = {"trials": 1} if answers == "one answer" else {}
    observe(study, distances, observers=people, passed=answers != "all failed", **few)
    found = gather(study, {"metric": distances}, resamples=20)
    texts = {one.name: one.text for one in found.numbers}
    ceiling = texts["agreement between observers" + (" (human ceiling)" if test == "2afc" else "")]
    counts = answers not in ("no observer", "all failed")
    assert ceiling.startswith("-") == (answers != "two observers")
    assert (len(found.scores) == 1) == counts
    assert any("No answer counts yet" in note for note in found.notes) == (not counts)
    assert any(note.startswith("One observer") for note in found.notes) == (counts and people == 1)
    if test == "2afc" and answers == "one observer":
        assert "cannot be told" in " ".join(found.outlook.sentences())
    write_page(found, {}, {"date": "today"}, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert ("nan" in page, "None" in page, "{{" in page) == (False, False, False)


def test_exactly_the_answers_that_count_are_reported(tmp_path):
    study = bare_study(tmp_path, 20)
    distances = random_distances(study)
    kept = observe(study, distances, observers=2, repeats=5, noise=0)
    failed = observe(study, distances, observers=1, passed=False, seed=3)
    numbers = {one.name: one for one in gather(study, {}, resamples=20).numbers}
    assert numbers["answers"].estimate.value == 70 and numbers["answers that count"].estimate.value == 40
    assert excluded(study) == {"repeats": 10, "of sessions that failed their sentinels": 20}
    rows = {row.name: row for row in observer_rows(study)}
    assert [
        (rows[name].counted, rows[name].repeats, rows[name].alike, rows[name].failed) for name in (*kept, *failed)
    ] == [
        *[(20, 5, 5, 0)] * 2,
        (0, 0, 0, 1),
    ]


def test_sentinels_fast_answers_slips_and_sides_are_counted(tmp_path):
    study = bare_study(tmp_path, 2, known=3)
    observer, _ = study.enroll()
    session = study.start_session(observer.id)
    plan = [(3, "sentinel", "p0", 900), (4, "sentinel", "p1", 150), (1, "random", "p0", 100), (2, "random", "p1", 500)]
    for position, (item, reason, choice, time) in enumerate([*plan, (5, "practice", "p1", 10)]):
        trial = study.assign(session.id, position, item, reason, swapped=item == 2)
        study.answer(trial.id, choice, time, slipped=item == 1, timing={"refresh_ms": 8.0 + 2 * (position % 2)})
    (row,) = observer_rows(study, TOO_FAST_MS)
    assert (row.sentinels, row.wrong, row.too_fast, row.slipped, row.counted) == (2, 1, 2, 1, 2)
    assert (row.median_ms, row.refresh_ms, row.left) == (325, 8.0, 1.0)
    assert side_bias(counted(study), study).value == 1.0


@pytest.mark.parametrize(("test", "function"), [("2afc", two_afc_score), ("jnd", jnd_score)])
def test_scores_of_metrics_are_those_of_random_trials(tmp_path, test, function):
    study = bare_study(tmp_path, 30, test=test, per_reference=2)
    people, metric, other = (random_distances(study, seed) for seed in range(3))
    observe(study, people, observers=3, reason=lambda item: "active" if item % 3 == 0 else "random")
    found = gather(study, {"metric": metric, "other": other}, resamples=30)
    table = votes(study, reasons=("random",))
    assert set(table) == {item for item in people if item % 3}
    second = torch.tensor([pair[1] / sum(pair) for pair in table.values()], dtype=torch.float64)
    expected = {}
    for name, distances in (("metric", metric), ("other", other)):
        columns = torch.tensor([[one or 0.0 for one in distances[item]] for item in table], dtype=torch.float64)
        arguments = (*columns.T, second) if test == "2afc" else (columns[:, 0], 1 - second)
        expected[name] = float(function(*arguments))
    assert {one.name: one.score.value for one in found.scores} == pytest.approx(expected)
    (pair,) = found.differences
    assert pair.difference.value == pytest.approx(expected[pair.first] - expected[pair.second])
    assert pair.difference.low <= pair.difference.value <= pair.difference.high
    assert "random trials" in " ".join(found.notes)


def test_a_calibration_is_scored_on_what_it_was_not_trained_on(tmp_path):
    study = bare_study(tmp_path, 10)
    distances = random_distances(study)
    observe(study, distances, observers=2)
    found = gather(
        study, {"own": distances, "other": random_distances(study, 1)}, held_out={"own": [1, 4]}, resamples=20
    )
    items = {one.name: (one.items, one.held_out) for one in found.scores}
    assert items == {"own": (2, True), "other": (10, False)}
    assert found.differences[0].items == 2 and found.best.name == "other"


def test_the_outlook_is_what_more_judgments_do(tmp_path):
    """The interval that is predicted for twice the items is that of a study with twice the items."""
    halves = {}
    for count in (100, 200):
        study = bare_study(tmp_path, count, name=f"{count}.db")
        people = random_distances(study)
        observe(study, people, observers=4, noise=0.8)
        base = counted(study)
        judged, ballots = Judgments.of(tally(base, study), study), Ballots.of(base, study)
        found = score("metric", people, judged, "2afc", resamples=200)
        halves[count] = found.score.half, outlook(found, people, ballots, study, more=400)
    ahead = halves[100][1]
    assert ahead.new_items == pytest.approx(halves[200][0], rel=0.2)
    assert ahead.new_items < ahead.same_items < ahead.half
    assert sum(ahead.parts) == pytest.approx(1)
    assert "400 more judgments of new items would narrow metric from ±" in ahead.sentences()[0]


def test_fatigue_is_seen_and_is_not_seen_where_there_is_none(tmp_path):
    found = {}
    for name, lapse in (("fresh", 0.0), ("tired", 1.0)):
        study = bare_study(tmp_path, 60, name=f"{name}.db")
        sure = {item: (0.1, 1.0) if item % 2 else (1.0, 0.1) for item in study.items("judged")}
        for seed in range(6):
            observer, _ = study.enroll()
            session = study.start_session(observer.id)
            order = torch.randperm(60, generator=torch.Generator().manual_seed(seed)).tolist()
            for position, row in enumerate(order):
                item = row + 1
                right = sure[item][0] > sure[item][1]
                guess = position >= 30 and lapse and (position + seed) % 2
                trial = study.assign(session.id, position, item, "random", False)
                study.answer(trial.id, "p1" if right != bool(guess) else "p0", 500 + 10 * position)
        found[name] = fatigue(counted(study), study, 100)
    assert found["tired"].agreement.high < 0 and found["fresh"].agreement.value == 0
    assert found["fresh"].times[1] - found["fresh"].times[0] == pytest.approx(300)


def test_consistency_is_that_of_repeats_alone(tmp_path):
    study = bare_study(tmp_path, 12)
    observe(study, random_distances(study), observers=5, repeats=6, noise=5.0, seed=2)
    pairs = {}
    same = []
    for answer in study.answers():
        key = answer.observer, answer.item
        if answer.reason == "repeat":
            same.append(pairs[key] == answer.choice)
        pairs[key] = answer.choice
    assert len(same) == 30 and 0 < sum(same) < 30
    assert consistency(study, 50).value == pytest.approx(sum(same) / 30)


def test_the_noticeable_distance_is_that_of_the_observers(tmp_path):
    study = bare_study(tmp_path, 200, test="jnd")
    people = random_distances(study)
    observe(study, people, observers=5, threshold=1.5, noise=0.3, seed=5)
    judged = Judgments.of(votes(study), study)
    found = score("metric", people, judged, "jnd", resamples=50)
    assert found.threshold.low < 1.5 < found.threshold.high and found.threshold.half < 0.3
    flipped = torch.tensor([0.1, 0.2, 0.4]), torch.tensor([1.0, 0.5, 0.0]), torch.ones(3)
    assert psychometric(*flipped)[0].isnan()


def test_an_exported_csv_reads_back_as_the_same_judgments(tmp_path, drawn):
    study, _ = drawn["2afc"]
    assert export_csv(study, tmp_path / "votes.csv") == 120
    read = read_triplets(tmp_path / "votes.csv", study.folder)
    table = votes(study)
    assert [one.judge for one in read] == [pair[1] / sum(pair) for pair in table.values()]
    assert read[0].ref == "ref-0000.png"


@pytest.mark.parametrize("test", ["2afc", "jnd"])
def test_exported_folders_read_back_as_the_same_images_and_judgments(tmp_path, drawn, test):
    study, _ = drawn[test]
    export_bapps(study, tmp_path, name="mine")
    with pytest.raises(FileExistsError, match="--force"):
        export_bapps(study, tmp_path, name="mine")
    export_bapps(study, tmp_path, name="mine", replace=True)
    data = TwoAFCDataset(tmp_path, sets=["mine"], size=None) if test == "2afc" else JNDDataset(tmp_path, ["mine"], None)
    table = list(votes(study).values())
    kind, of = ("judge", 1) if test == "2afc" else ("same", 0)
    assert [float(item[kind]) for item in data] == pytest.approx([pair[of] / sum(pair) for pair in table])
    if test == "2afc":
        export_csv(study, tmp_path / "votes.csv")
        other = TripletDataset(read_triplets(tmp_path / "votes.csv", study.folder), study.folder, None)
        assert all(
            torch.equal(one[name], two[name]) for one, two in zip(data, other, strict=True) for name in ("ref", "p1")
        )
    assert [path.name for path in (tmp_path / test / "val").iterdir()] == ["mine"]


def test_exported_answers_are_all_answers(tmp_path):
    study = bare_study(tmp_path, 4)
    (name,) = observe(study, random_distances(study), observers=1, repeats=1)
    observe(study, random_distances(study), observers=1, passed=False)
    export_answers(study, tmp_path / "answers.csv")
    with (tmp_path / "answers.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 9 and [row["counted"] for row in rows].count("1") == 4
    assert {row["observer"] for row in rows} == {"observer 1", "observer 2"}
    assert json.loads(rows[0]["timing"])["refresh_ms"] == 16.7
    export_answers(study, tmp_path / "named.csv", observers=True)
    assert name in (tmp_path / "named.csv").read_text(encoding="utf-8")


def test_nothing_to_export_is_said(tmp_path):
    study = bare_study(tmp_path)
    observe(study, random_distances(study), observers=1, passed=False)
    with pytest.raises(StudyError, match=r"got none of 10; --include-failed"):
        export_csv(study, tmp_path / "votes.csv")
    assert export_csv(study, tmp_path / "votes.csv", failed=True) == 10


def test_calibration_finds_the_metric_of_the_observers(tmp_path):
    """Its held-out score comes nearer to that of the observers' own metric than to the official one."""
    study = drawn_study(tmp_path, 400)
    hidden = measure(study, list(study.items("judged").values()), [Method("hidden", hidden_judge(), None)])["hidden"]
    observe(study, hidden, observers=6, noise=0.2, repeats=4, seed=1)
    found = calibrate(study, "embedded", curve=False)
    record = found.record
    held_out = record["held_out_items"]
    table = votes(study)
    people = torch.tensor([table[item][1] / sum(table[item]) for item in held_out], dtype=torch.float64)
    best = float(two_afc_score(*torch.tensor([hidden[item] for item in held_out]).T, people))
    before, after = found.comparison.official.value, found.comparison.own.value
    assert after - before > 0.5 * (best - before) > 0.05
    assert after > found.ceiling.value - 0.05
    assert (record["judgments"], record["observers"], record["excluded"]) == (2400, 6, 24)
    assert record["judgments_train"] + record["judgments_held_out"] == 2400
    assert record["scores"]["held-out"]["2afc"] == after
    assert record["learning_curve"] == [[record["judgments_train"], len(table) - len(held_out), [after]]]
    assert not {table[item] and study.items()[item].ref for item in held_out} & {
        study.items()[item].ref for item in table if item not in held_out
    }


def test_patches_of_one_photograph_are_held_out_and_resampled_together(tmp_path):
    """Else what a calibration learned on one patch would be scored on another one of the same photograph."""
    for number in range(4):
        noise = torch.rand(3, 48, 48, generator=torch.Generator().manual_seed(number))
        write_image(noise, tmp_path / "photographs" / f"{number}.png")
    design = Design(trials=12, sentinels=1, pass_mark=1, practice=0, repeats=0)
    study = study_from_photographs(tmp_path / "s.db", tmp_path / "photographs", count=12, size=32, design=design)
    distances = random_distances(study)
    observe(study, distances, observers=2)
    found = calibrate(study, "embedded", val_fraction=0.5, curve=False)
    images, items = study.images(), study.items("judged")
    parts = {True: set(), False: set()}
    for item in items.values():
        parts[item.id in found.record["held_out_items"]].add(photograph_of(images[item.ref].path))
    assert is_of_photographs(study)
    assert len(parts[True]) == len(parts[False]) == 2 and not parts[True] & parts[False]
    assert found.comparison.references == 2 and "6 held-out triplets of 2 photographs" in found.lines()[1]
    one = calibrate(study, "embedded", val_fraction=0.25, curve=False)
    assert "3 held-out triplets of 1 photograph, for which alone the intervals hold" in one.lines()[1]
    judged = Judgments.of(votes(study), study)
    assert judged.references.unique(return_counts=True)[1].tolist() == [3] * 4
    ballots = Ballots.of(counted(study), study)
    assert ballots.references.tolist() == judged.references.tolist()
    write_page(gather(study, {"metric": distances}, resamples=20), {}, {}, tmp_path / "report.html")
    assert "95 % intervals over photographs" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_every_training_starts_at_the_official_calibration(tmp_path, monkeypatch):
    """The learning curve must know nothing of what was learned from all judgments."""
    study = drawn_study(tmp_path, 12)
    observe(study, random_distances(study), observers=2)
    starts = []

    def train(data, start, answers):
        starts.append({layer: weight.clone() for layer, weight in start.items()})
        return {layer: weight + 1 for layer, weight in start.items()}

    monkeypatch.setattr("lpips_lightning.judge.results.calibrate.fit_map", train)
    calibrate(study, "embedded")
    official = TrainableLPIPS("embedded", init="official").calibration
    assert len(starts) > 3
    assert all(torch.equal(one[layer], weight) for one in starts for layer, weight in official.items())


def test_a_gain_within_the_noise_is_said_and_the_file_is_written(tmp_path):
    study = drawn_study(tmp_path, 12)
    observe(study, random_distances(study), observers=2)
    found = calibrate(study, "embedded")
    points = found.record["learning_curve"]
    assert len(points) > 1 and all(one[0] < other[0] for one, other in pairwise(points))
    assert points[-1][:2] == [found.record["judgments_train"], found.record["triplets"]]
    path = found.write(tmp_path / "own.safetensors")
    record = read_record(path)
    assert found.within_noise == record["gain_within_noise"] == ("within the noise" in found.lines()[-1])
    assert found.within_noise
    net = LPIPS("embedded", calibration=path)
    x = torch.rand(1, 3, 32, 32) * 2 - 1
    assert float(net(x, -x)) > 0


@pytest.mark.parametrize("case", ["jnd", "no answers", "failed", "one reference", "one photograph"])
def test_what_cannot_be_calibrated_is_refused_with_a_way_out(tmp_path, case):
    study = bare_study(tmp_path, 5, test="jnd" if case == "jnd" else "2afc", per_reference=5)
    if case == "one photograph":
        write_noise(tmp_path / "photographs", ["a"])
        design = Design(trials=5, sentinels=1, pass_mark=1, practice=0, repeats=0)
        photographs = tmp_path / "photographs"
        study = study_from_photographs(tmp_path / "p.db", photographs, design=design, count=5, size=32)
    if case != "no answers":
        observe(study, random_distances(study), observers=1, passed=case != "failed")
    match = {
        "jnd": "judge report",
        "no answers": "0 answers on 0; collect more$",
        "failed": "0 answers on 0; collect more, or --include-failed",
        "one reference": "5 answers on 1; collect more$",
        "one photograph": "5 answers on 1; patches of one photograph count as one",
    }[case]
    with pytest.raises(StudyError, match=match):
        check_study(study)


@pytest.mark.parametrize("change", ["missing", "another"])
def test_images_that_people_did_not_see_are_not_measured(tmp_path, change):
    study = drawn_study(tmp_path, 3)
    file = study.folder / "p0-0001.png"
    if change == "missing":
        file.unlink()
    else:
        file.write_bytes((study.folder / "p0-0002.png").read_bytes())
    method = Method("l2", lambda x, y: (x - y).square().mean((1, 2, 3)), None)
    with pytest.raises(StudyError, match=rf"expected the file that people saw, got .*{file.name}"):
        measure(study, list(study.items("judged").values()), [method])


def test_a_study_that_was_moved_with_its_images_finds_them(tmp_path):
    method = Method("l2", lambda x, y: (x - y).square().mean((1, 2, 3)), None)
    study = drawn_study(tmp_path / "here", 2)
    expected = measure(study, list(study.items("judged").values()), [method])
    study.close()
    (tmp_path / "here").rename(tmp_path / "there")
    study = Study.open(tmp_path / "there" / "study.db")
    assert study.folder == tmp_path / "there" / "images"
    assert measure(study, list(study.items("judged").values()), [method]) == expected
    study.folder.rename(tmp_path / "gone")
    with pytest.raises(StudyError, match="or the folder beside the file of the study"):
        measure(Study.open(study.path), list(study.items("judged").values()), [method])


def test_disagreements_come_with_the_strongest_first(tmp_path):
    study = bare_study(tmp_path, 4)
    for item, choice in ((1, "p0"), (1, "p0"), (1, "p0"), (2, "p0"), (3, "p1"), (3, "p1"), (4, "p0")):
        observer, _ = study.enroll()
        trial = study.assign(study.start_session(observer.id).id, 0, item, "random", False)
        study.answer(trial.id, choice, 500)
    judged = Judgments.of(votes(study), study)
    distances = {1: (0.8, 0.1), 2: (0.5, 0.1), 3: (0.2, 0.1), 4: (0.1, 0.9)}  # 3 and 4: as people
    rows = figures.disagreements(distances, judged, "2afc")
    assert [judged.items[row].id for row in rows] == [1, 2]


NAMES = ["metric", HOSTILE_NAMES[1], HOSTILE_NAMES[-1]]
KNOWN = Estimate(0.71, 0.64, 0.78)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("figure", ["scores", "outlook", "learning", "threshold", "disagreements"])
def test_figures_are_readable(tmp_path, drawn, figure, name):
    study, distances = drawn["jnd" if figure == "threshold" else "2afc"]
    judged = Judgments.of(votes(study), study)
    other = {item: (pair[1] or pair[0], pair[0]) for item, pair in distances.items()}  # disagrees with people
    found = score(name, distances, judged, study.design.test, resamples=20)
    ahead = Outlook(name, 0.05, 500, 200, 0.04, None, None, 3)
    curve = [Point(20, 5, [0.6, 0.64, 0.7]), Point(400, 90, [0.8])]
    draw = {
        "scores": lambda path: figures.draw_scores([found], KNOWN, "2afc", name, path),
        "outlook": lambda path: figures.draw_outlook([(30, 0.2), (500, 0.05)], ahead, path),
        "learning": lambda path: figures.draw_learning(curve, KNOWN, UNKNOWN, path),
        "threshold": lambda path: figures.draw_psychometric(name, distances, judged, found.threshold, path),
        "disagreements": lambda path: figures.draw_disagreements(study, name, other, judged, path),
    }[figure]
    assert not saved_faults(draw, tmp_path / "figure.png")


def test_commands_from_a_study_to_a_metric(tmp_path, drawn, capsys):
    study, _ = drawn["2afc"]
    db, out = str(study.path), tmp_path / "own.safetensors"
    common = ["judge"]
    assert main([*common, "calibrate", db, "--net", "embedded", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert f"Python: LPIPS('embedded', calibration='{out}')" in said.replace("\n", "")
    assert f"--net embedded --calibration {out}" in said
    assert {path.name for path in tmp_path.iterdir()} == {"own.safetensors", "own.png", "own.pdf"}
    assert main([*common, "calibrate", db, "--net", "embedded", "--out", str(out)]) == 2
    assert "--force" in capsys.readouterr().err
    options = ["--net", "embedded", "--calibration", str(out), "--resamples", "20", "--out", str(tmp_path / "report")]
    assert main([*common, "report", db, *options]) == 0
    assert "own (held-out items)" in capsys.readouterr().out
    with (tmp_path / "report" / "metrics.csv").open(encoding="utf-8", newline="") as file:
        rows = {row["metric"]: row for row in csv.DictReader(file)}
    assert rows["own"]["items"] == "24" and rows["embedded"]["items"] == "120"
    page = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert 'src="data:image/png;base64,' in page and "http" not in page.replace("http-equiv", "")
    assert main([*common, "export", db, "--out", str(tmp_path / "votes.csv")]) == 0
    assert main([*common, "export", db, "--out", str(tmp_path / "set"), "--layout", "bapps"]) == 0
    judge = np.load(tmp_path / "set" / "2afc" / "val" / "study" / "judge" / "000000.npy")
    assert judge.shape == (1,)
    with Study.open(db)._connection as connection:  # nothing was written into the study
        assert not connection.execute("SELECT count(*) FROM distance").fetchone()[0]


def test_a_difference_of_metrics_without_shared_items_is_not_known(tmp_path):
    study = bare_study(tmp_path, 4)
    distances = random_distances(study)
    observe(study, distances, observers=1)
    judged = Judgments.of(votes(study), study)
    parts = [{item: distances[item] for item in some} for some in ((1, 2), (3, 4))]
    found = difference(("a", "b"), (parts[0], parts[1]), judged, "2afc")
    assert found.items == 0 and found.verdict == "cannot be told"
