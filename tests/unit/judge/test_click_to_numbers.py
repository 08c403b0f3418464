"""From the image that a person clicks, by its pixels, to every number that follows: sides and candidates are right."""

import csv
import io
import warnings

import numpy as np
import pytest
import torch
from PIL import Image as PillowImage
from small_studies import GOOD_TIMING

from lpips_lightning.data.bapps import JNDDataset, TwoAFCDataset
from lpips_lightning.data.triplets import read_triplets
from lpips_lightning.evaluation.methods import Method
from lpips_lightning.io.image_files import read_image, write_image
from lpips_lightning.judge import Design, preferences, random_selector, rank, study_from_methods
from lpips_lightning.judge.judged_images import measure
from lpips_lightning.judge.results.calibrate import calibrate
from lpips_lightning.judge.results.export import export_answers, export_bapps, export_csv
from lpips_lightning.judge.results.metric_ranking import measure_methods, rank_by_metric
from lpips_lightning.judge.results.observers import consistency, side_bias
from lpips_lightning.judge.results.report import gather
from lpips_lightning.judge.server.app import create_app
from lpips_lightning.judge.votes import counted

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from starlette.testclient import TestClient

NOISE = {"good": 0.05, "middle": 0.15, "poor": 0.4}


def far(x, y):
    """Mean squared difference of images (N, 3, H, W)."""
    return (x - y).square().mean((1, 2, 3))


def study_of_methods(folder, test):
    """Six references with three methods, which are distorted by noise of different strength."""
    generator = torch.Generator().manual_seed(0)
    for number in range(6):
        truth = torch.rand(3, 32, 32, generator=generator)
        for method, noise in {"truth": 0.0, **NOISE}.items():
            image = truth + noise * torch.randn(3, 32, 32, generator=generator)
            path = folder / "results" / method / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_image(image.clamp(0, 1), path)
    design = Design(test, trials=18, sentinels=4, pass_mark=3, practice=2, repeats=3, votes=9)
    return study_from_methods(folder / "study.db", folder / "results", "truth", design=design, seed=3)


def look_and_answer(study, choose):
    """A person who sees pixels alone, over HTTP, until the session is done."""
    client = TestClient(create_app(study, random_selector), base_url="http://127.0.0.1:8765")
    client.post("/api/observers", json={"consent": True, "client": {}})
    while (step := client.get("/api/next").json())["step"] == "trial":
        seen = {
            name: np.asarray(PillowImage.open(io.BytesIO(client.get(step[name]).content)), dtype=np.float64)
            for name in ("ref", "left", "right", "first", "second")
            if name in step
        }
        answer = {"trial": step["trial"], "choice": choose(seen), "response_ms": 500, "timing": GOOD_TIMING}
        assert client.post("/api/answers", json=answer).json()["kept"]


def nearer(seen):
    left, right = (np.square(seen[side] - seen["ref"]).mean() for side in ("left", "right"))
    return "left" if left < right else "right"


def farther(seen):
    return {"left": "right", "right": "left"}[nearer(seen)]


@pytest.mark.parametrize(("choose", "sign"), [(nearer, 1), (farther, -1)])
def test_what_people_click_is_what_is_counted(tmp_path, choose, sign):
    study = study_of_methods(tmp_path, "2afc")
    for _ in range(2):
        look_and_answer(study, choose)
    assert all(one.passed is (sign > 0) for one in study.sessions())
    failed = sign < 0  # people who choose the worse image fail the sentinels
    answers = counted(study, failed=failed)
    assert len(answers) == 36 and {one.swapped for one in answers} == {False, True}
    assert {one.choice for one in answers} == {"p0", "p1"}

    export_csv(study, tmp_path / "votes.csv", failed=failed)
    for triplet in read_triplets(tmp_path / "votes.csv", study.folder):
        ref, p0, p1 = (read_image(study.folder / file).double() for file in (triplet.ref, triplet.p0, triplet.p1))
        second_is_nearer = float((ref - p1).square().mean()) < float((ref - p0).square().mean())
        assert triplet.judge == (second_is_nearer == (sign > 0))

    export_bapps(study, tmp_path, failed=failed)
    for item in TwoAFCDataset(tmp_path, sets=["study"], size=None):
        d0, d1 = (float((item["ref"] - item[name]).square().mean()) for name in ("p0", "p1"))
        assert float(item["judge"]) == ((d1 < d0) == (sign > 0))

    export_answers(study, tmp_path / "answers.csv", failed=failed)
    with (tmp_path / "answers.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["counted"] == "1"]
    for row in rows:
        better = min(("p0", "p1"), key=lambda side: NOISE[row[f"method_{side}"]])
        assert (row["choice"] == better) == (sign > 0)
        assert f"/{row['method_p0']}/" in f"/{row['p0']}" and f"/{row['method_p1']}/" in f"/{row['p1']}"
    assert {row["left"] for row in rows} == {"p0", "p1"}

    order = rank(preferences(study, failed=failed), resamples=20)
    assert [row.method for row in order.scores] == sorted(NOISE, key=NOISE.get, reverse=sign < 0)
    references = torch.tensor(sorted({item.ref for item in study.items("judged").values()}))
    by_metric = measure_methods(study, [Method("far", far, None)], references)["far"]
    agreed = rank_by_metric("far", by_metric, preferences(study, failed=failed), order, resamples=20)
    assert agreed.kendall.value == agreed.spearman.value == sign

    found = calibrate(study, "embedded", curve=False, val_fraction=0.34, failed=failed)
    assert (found.comparison.official.value == 1.0) == (sign > 0)
    assert found.comparison.own.value >= found.comparison.official.value


def test_the_report_takes_the_side_of_those_who_click_the_nearer_image(tmp_path):
    study = study_of_methods(tmp_path, "2afc")
    for _ in range(2):
        look_and_answer(study, nearer)
    items = list(study.items("judged").values())
    distances = measure(study, items, [Method("far", far, None), Method("opposite", lambda x, y: -far(x, y), None)])
    found = gather(study, distances, resamples=20)
    assert {one.name: one.score.value for one in found.scores} == {"far": 1.0, "opposite": 0.0}
    assert found.best.name == "far" and found.ceiling.value == 1.0
    assert consistency(study, 20).value == 1.0
    left = [answer.choice == ("p1" if answer.swapped else "p0") for answer in counted(study)]
    assert side_bias(counted(study), study, 20).value == pytest.approx(sum(left) / len(left))


def test_a_difference_that_people_see_is_a_distance(tmp_path):
    study = study_of_methods(tmp_path, "jnd")

    def answer(seen):
        return "same" if np.square(seen["first"] - seen["second"]).mean() < 700 else "different"

    look_and_answer(study, answer)
    export_bapps(study, tmp_path, failed=True)
    for item in JNDDataset(tmp_path, ["study"], None):
        assert float(item["same"]) == (float(far(item["p0"][None], item["p1"][None])) < 700 / 127.5**2)
    distances = measure(study, list(study.items("judged").values()), [Method("far", far, None)])
    (score,) = gather(study, distances, resamples=20).scores
    assert score.score.value == pytest.approx(1.0)
    assert 0.0225 < score.threshold.value < 0.16  # squares of noise of 0.05 and 0.15, on [-1, 1]
