"""Methods ranked by metrics beside people: means, intervals, rank correlations, figures, and the command."""

import csv
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from shutil import copyfile

import pytest
import torch
from _helpers.figure_layout import HOSTILE_NAMES, saved_faults

from lpips_lightning.cli.commands import main
from lpips_lightning.evaluation.methods import parse_method
from lpips_lightning.judge.records import StudyError
from lpips_lightning.judge.results.metric_ranking import kendall, measure_methods, rank_by_metric, spearman
from lpips_lightning.judge.results.ranking import preferences, rank
from lpips_lightning.judge.results.ranking_report import save_ranking, sentences
from lpips_lightning.judge.simulated import simulate
from lpips_lightning.judge.store import Study
from tests._helpers.method_study import (
    NAMES,
    STRENGTHS,
    answers,
    method_study,
    noise_distances,
    random_selector,
    write_methods,
)

PLACES = {"a": 1, "b": 2, "c": 4, "d": 3}


def distances(data, effects, noise=0.0, missing=(), seed=0):
    """Distance of every method's image to its reference: a reference's level, the method's effect, and noise."""
    generator = torch.Generator().manual_seed(seed)
    level = torch.rand(1000, generator=generator, dtype=torch.float64)
    return {
        (ref, name): float(level[ref] + effect + noise * torch.randn((), generator=generator, dtype=torch.float64))
        for ref in data.references.unique().tolist()
        for name, effect in zip(data.methods, effects, strict=True)
        if (ref, name) not in missing
    }


@pytest.mark.parametrize("ties", [False, True])
def test_rank_correlations_are_those_of_scipy(ties):
    stats = pytest.importorskip("scipy.stats")
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.rand(2, 20, 7, generator=generator) * (3 if ties else 1e6)).floor().double()
    for measure, oracle in ((kendall, stats.kendalltau), (spearman, stats.spearmanr)):
        wanted = [oracle(*pair).statistic for pair in zip(one.tolist(), other.tolist(), strict=True)]
        assert measure(one, other).tolist() == pytest.approx(wanted, abs=1e-9, nan_ok=True)


def test_means_are_those_of_the_distances_and_intervals_those_of_the_differences_between_methods():
    data = answers(300, torch.Generator().manual_seed(0))
    ranking = rank(data, resamples=50)
    given = distances(data, (0.1, 0.2, 0.4, 0.3), noise=0.02)
    found = rank_by_metric("own", given, data, ranking, resamples=200)
    assert [mean.method for mean in found.means] == [row.method for row in ranking.scores]
    for mean in found.means:
        values = [value for (_, name), value in given.items() if name == mean.method]
        assert mean.value == pytest.approx(sum(values) / len(values))
        # 40 references, noise 0.02, three other methods: 2 * 0.02 * sqrt(3 / 4 / 40); levels of references from 0 to 1
        assert (mean.high - mean.low) / 2 == pytest.approx(0.0055, rel=0.4)
    assert found.references == 40
    assert dict(zip([mean.method for mean in found.means], found.places, strict=True)) == PLACES


def test_a_missing_image_does_not_move_a_mean_by_the_level_of_its_reference():
    data = answers(300, torch.Generator().manual_seed(0))
    hard = max(range(40), key=lambda ref: distances(data, (0, 0, 0, 0)).get((ref, "a"), 0))
    effects = (0.1, 0.2, 0.3, 0.4)
    whole, some = (
        rank_by_metric("own", distances(data, effects, missing=missing), data, rank(data, 50), 50)
        for missing in ((), {(hard, "a")})
    )
    differences = [[other.value - one.value for one, other in pairwise(found.means)] for found in (whole, some)]
    assert differences[0] == pytest.approx(differences[1], abs=1e-9)


def test_where_the_order_differs_is_listed_and_said():
    data = answers(1500, torch.Generator().manual_seed(1))
    ranking = rank(data, resamples=100)
    same = rank_by_metric("same", distances(data, (0.1, 0.2, 0.3, 0.4)), data, ranking, 100)
    swapped = rank_by_metric("swapped", distances(data, (0.2, 0.1, 0.3, 0.4)), data, ranking, 100)
    constant = rank_by_metric("constant", distances(data, (0.2, 0.2, 0.2, 0.2)), data, ranking, 100)
    assert [row.method for row in ranking.scores] == [*NAMES]
    assert same.kendall.value == same.spearman.value == 1 and not same.differing
    assert swapped.kendall.value == pytest.approx(2 / 3) and swapped.spearman.value == pytest.approx(0.8)
    assert swapped.kendall.low <= 2 / 3 <= swapped.kendall.high
    assert [(one.better, one.worse) for one in swapped.differing] == [("a", "b")]
    said = " ".join(sentences(ranking, [same, swapped, constant]))
    assert said.count(" puts ") == 1 and "swapped puts b before a; people prefer a (p = " in said
    assert constant.places == (1, 1, 1, 1) and constant.kendall.value != constant.kendall.value


def test_distances_that_are_not_finite_are_refused():
    data = answers(100, torch.Generator().manual_seed(1))
    given = distances(data, (0, 0, 0, 0)) | {(int(data.references[0]), "a"): float("inf")}
    with pytest.raises(ValueError, match="own: expected finite distances, got 1 others"):
        rank_by_metric("own", given, data, rank(data, 10), 10)


def test_the_agreements_interval_narrows_with_more_references_and_observers():
    widths = []
    for count, references, observers in ((120, 20, 5), (2400, 200, 20)):
        data = answers(count, torch.Generator().manual_seed(4), references=references, observers=observers)
        given = distances(data, (0.1, 0.2, 0.3, 0.4), noise=0.2)
        found = rank_by_metric("own", given, data, rank(data, 50), 200).kendall
        assert found.low <= found.value <= found.high
        widths.append(found.high - found.low)
    assert widths[1] < widths[0]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A study of four methods with a known order, answered by five simulated observers."""
    folder = tmp_path_factory.mktemp("made")
    write_methods(folder)
    found = method_study(folder / "study.db", folder)
    simulate(found, noise_distances, random_selector, observers=5)
    yield found
    found.close()


@pytest.fixture
def study(made, tmp_path, monkeypatch):
    """The study, in a working folder of its own; its images are elsewhere."""
    monkeypatch.chdir(tmp_path)
    copyfile(made.path, "study.db")
    return made


def test_measured_distances_are_those_of_the_metric(study):
    (metric,) = [parse_method("l2")]
    data = preferences(study)
    found = measure_methods(study, [metric], data.references)["l2"]
    assert len(found) == 6 * len(STRENGTHS)
    for (_, name), value in found.items():  # noise on [0, 1], clipped
        assert 0.4 * STRENGTHS[name] ** 2 < value < 1.2 * STRENGTHS[name] ** 2


@pytest.mark.parametrize(("damage", "message"), [("unlink", "got none at"), ("write", "got another content in")])
def test_images_that_changed_since_are_refused(study, damage, message):
    path = study.folder / "good/3.png"
    before = path.read_bytes()
    path.unlink() if damage == "unlink" else path.write_bytes((study.folder / "good/2.png").read_bytes())
    try:
        with pytest.raises(StudyError, match=message):
            measure_methods(study, [parse_method("l2")], preferences(study).references)
    finally:
        path.write_bytes(before)


def test_people_and_metrics_rank_methods_from_the_images_to_the_files(study, capsys):
    assert main(["judge", "rank", "study.db", "--net", "l2", "ssim", "--resamples", "100"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "100 answers by 5 observers on 6 references" in said
    assert "All answers are of simulated observers: they say nothing about people." in said
    assert "Places 1 and 2 (clear, good)" in said and "Goodness of fit: deviance" in said
    with Path("outputs/ranking/ranking.csv").open() as file:
        rows = list(csv.DictReader(file))
    order = {judge: [row["method"] for row in rows if row["judge"] == judge] for judge in ("people", "l2", "ssim")}
    assert order["people"] == order["l2"] == order["ssim"] == [*STRENGTHS]
    assert [row["place"] for row in rows] == ["1", "2", "3", "4"] * 3
    assert all(float(row["low"]) <= float(row["value"]) <= float(row["high"]) for row in rows)
    with Path("outputs/ranking/pairs.csv").open() as file:
        pairs = list(csv.DictReader(file))
    assert len(pairs) == 6 and sum(row["neighbors"] == "yes" for row in pairs) == 3
    assert sum(int(row["wins"]) + int(row["losses"]) for row in pairs) == 100
    with Path("outputs/ranking/agreement.csv").open() as file:
        assert [row["kendall"] for row in csv.DictReader(file)] == ["1", "1"]
    assert {path.name for path in Path("outputs/ranking").iterdir()} >= {"ranking.png", "ranking.pdf"}


def test_people_alone_are_ranked_without_metrics(study, capsys):
    assert main(["judge", "rank", "study.db", "--net", "--resamples", "20", "--out", "alone"]) == 0
    said = capsys.readouterr().out
    assert "Mean distance" not in said and "Kendall" not in said and Path("alone/ranking.png").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["missing.db"], "expected the file of a study, got 'missing.db', which does not exist"),
        (["note.txt"], "expected the file of a study, got 'note.txt'"),
        (["study.db", "--resamples", "1"], "--resamples: expected at least 2, got 1"),
        (["study.db", "--net", "lpips"], "--net: expected one of alex,"),
        (
            ["study.db", "--net", "ms-ssim"],
            "ms-ssim: expected sides of more than 160 pixels, got 32x32; use larger",
        ),
        (["study.db", "--out", "note.txt"], "--out: expected a folder to write, got 'note.txt', which is a file"),
    ],
)
def test_bad_input_is_one_line(study, capsys, words, message):
    Path("note.txt").write_text("a note\n" * 100)
    assert main(["judge", "rank", *words]) == 2
    assert message in capsys.readouterr().err
    assert not Path("outputs").exists()


def test_studies_of_distorted_photographs_are_refused(study, capsys):
    copy = Study.open("study.db")
    copy.set_value("made_with", '{"images": "photographs"}')
    copy.close()
    assert main(["judge", "rank", "study.db"]) == 2
    assert "expected one of methods, from `judge serve --methods DIR`, got one of" in capsys.readouterr().err


@pytest.mark.parametrize(("methods", "metrics"), [(2, 0), (2, 2), (20, 6), (5, 1)])
def test_figures_have_no_text_that_is_cut_off_or_covered(tmp_path, methods, metrics):
    names = tuple(sorted(HOSTILE_NAMES[-methods:] if methods > 5 else HOSTILE_NAMES[:methods]))
    scores = torch.linspace(1, -1, methods, dtype=torch.float64)
    data = answers(60 * methods, torch.Generator().manual_seed(0), scores=scores)
    data = replace(data, methods=names)
    ranking = rank(data, resamples=20)
    labels = [
        "embedded",
        "alex:calibration=a/long/folder/of/mine/my_calibration.safetensors",
        "$l_2$",
        "psnr",
        "l2",
        "s",
    ]
    others = [
        rank_by_metric(label, distances(data, scores.tolist(), 0.1), data, ranking, 20) for label in labels[:metrics]
    ]
    note = "All answers are of simulated observers: they say nothing about people."
    assert saved_faults(lambda path: save_ranking(ranking, others, path, note), tmp_path / "r.png") == []
