"""Which item comes next: random estimates stay unbiased, and active choices learn from fewer answers."""

import os
import random
from collections import Counter
from pathlib import Path

import pytest
import torch
from _helpers.judged_study import bare_study, drawn_study
from _helpers.selection_simulation import simulate_selection
from hidden_calibration import simulated

from lpips_lightning import LPIPS
from lpips_lightning.calibration.model import TrainableLPIPS
from lpips_lightning.calibration.pooled import pool
from lpips_lightning.data.bapps import to_signed
from lpips_lightning.data.triplets import TripletDataset, read_triplets
from lpips_lightning.io.image_files import read_image
from lpips_lightning.judge.belief import Belief, expected_loss
from lpips_lightning.judge.item_features import item_features, start_calibration
from lpips_lightning.judge.records import StudyError
from lpips_lightning.judge.selection import ActiveSelector, active_items, random_selector


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def features_of(study, channels=6, seed=0):
    return dict(zip(study.items("judged"), normal(len(study.items("judged")), channels, seed=seed), strict=True))


def ask(study, selector, answer, trials, seed=0):
    """Let a new observer judge, with candidates as `sessions` gives them; reason and item of every trial."""
    observer, _ = study.enroll()
    session, left, seen = study.start_session(observer.id), list(study.items("judged")), []
    votes = Counter(answer.item for answer in study.answers())
    for position in range(min(trials, len(left))):
        rng = random.Random(f"{seed}/{observer.id}/{position}")
        rng.shuffle(left)
        item, reason = selector(study, sorted(left, key=votes.__getitem__), rng)
        trial = study.assign(session.id, position, item, reason, False)
        study.answer(trial.id, answer(item), 500.0)
        left.remove(item)
        seen.append((reason, item))
    return seen


@pytest.mark.parametrize("fraction", [0.0, 0.3, 1.0])
def test_a_random_part_of_the_items_is_never_chosen_actively(tmp_path, fraction):
    study = bare_study(tmp_path, 20, active=fraction)
    selector = ActiveSelector(study, features_of(study), torch.ones(6))
    seen = ask(study, selector, lambda item: "p0", trials=20)
    active = active_items(study)
    assert len(active) == 20 * fraction
    assert {item for reason, item in seen if reason == "active"} == active
    assert {item for reason, item in seen if reason == "random"} == set(study.items("judged")) - active
    other = bare_study(tmp_path, 20, active=fraction, seed=1, name="other.db")
    assert (active_items(other) == active) == (fraction != 0.3)


def test_estimates_from_random_trials_are_unbiased_and_those_from_all_are_not(tmp_path):
    """Difficulty and the votes are tied to the features, so that active choices see other votes than random ones."""
    values = normal(40, 1, seed=1)
    far = {item: float(abs(value)) > 0.8 for item, value in enumerate(values, 1)}
    truth, rates = sum(far.values()) / 40, {"random": [], "all": []}
    for seed in range(25):
        study = bare_study(tmp_path, 40, active=0.5, seed=seed, name=f"{seed}.db", known=0)
        selector = ActiveSelector(study, dict(enumerate(values, 1)), torch.ones(1), refit_every=100)
        seen = ask(study, selector, lambda item: "p0", trials=22, seed=seed)
        study.close()
        for kind, found in rates.items():
            chosen = [far[item] for reason, item in seen if kind in ("all", reason)]
            found.append(sum(chosen) / len(chosen))
    error = float(torch.tensor(rates["random"]).std() / 25**0.5)
    assert abs(sum(rates["random"]) / 25 - truth) < 2.5 * error < 0.1
    assert abs(sum(rates["all"]) / 25 - truth) > 0.1


def test_equal_seeds_choose_equally_and_observers_get_different_items(tmp_path):
    def asked(name):
        study = bare_study(tmp_path, 30, active=0.7, name=name)
        selector = ActiveSelector(study, features_of(study), torch.ones(6))
        return [ask(study, selector, lambda item: ("p0", "p1")[item % 2], trials=8) for _ in range(2)]

    first = asked("a.db")
    assert asked("b.db") == first
    (one, other) = ([item for reason, item in part if reason == "active"] for part in first)
    assert one[:2] != other[:2]
    assert len(one) >= 2


def test_the_random_selector_takes_the_first_candidate(tmp_path):
    assert random_selector(bare_study(tmp_path), [4, 2], random.Random(0)) == (4, "random")


def test_an_open_decision_of_a_known_tie_teaches_nothing():
    loss = expected_loss(torch.tensor([0.0, 0.5, -0.5, 0.0]), torch.tensor([1.0, 1.0, 1.0, 1e-9]))
    assert loss[0] > loss[1] > 100 * loss[3]
    torch.testing.assert_close(loss[1], loss[2])
    draws = 0.5 + normal(200_000)
    torch.testing.assert_close(loss[1], (-draws).clamp(min=0).mean(), atol=3e-3, rtol=0)


def test_the_belief_finds_a_known_calibration():
    data, hidden = simulated(4000)
    votes = torch.bernoulli(data.judge, generator=torch.Generator().manual_seed(1))
    belief = Belief(data.mean[data.rows[:, 0]] - data.mean[data.rows[:, 1]], torch.ones(12))
    before = belief.predict(torch.arange(50))[1].mean()
    belief.fit(torch.arange(4000), votes, torch.ones(4000))
    cosine = torch.nn.functional.cosine_similarity
    assert cosine(torch.ones(12), hidden, dim=0) < 0.9
    assert cosine(belief.calibration, hidden, dim=0) > 0.97
    assert belief.predict(torch.arange(50))[1].mean() < 0.1 * before


def test_a_jnd_threshold_away_from_the_mean_distance_is_learned():
    features = torch.rand(400, 5, generator=torch.Generator().manual_seed(0))
    distance = features.sum(1)
    different = (distance > distance.quantile(0.8)).float()
    belief = Belief(features, torch.ones(5), threshold=True)
    belief.fit(torch.arange(400), different, torch.ones(400))
    assert ((belief.predict(torch.arange(400))[0] > 0) == different.bool()).float().mean() > 0.95


def test_active_selection_needs_at_most_60_percent_of_random_judgments_of_a_known_metric():
    data, _ = simulated(2500, seed=3)
    train, held_out = data.subset(torch.arange(2000)), data.subset(torch.arange(2000, 2500))
    start = {"one": torch.ones(6), "two": torch.ones(6)}

    def mean_scores(counts, active):
        runs = [simulate_selection(train, held_out, start, counts, active=active, seed=seed) for seed in range(5)]
        return [sum(run[count] for run in runs) / len(runs) for count in counts]

    randomly = mean_scores([60, 100, 200], 0.0)
    actively = mean_scores([60, 120], 1.0)
    assert randomly[0] < randomly[2]
    assert actively[0] >= randomly[1]
    assert actively[1] >= randomly[2]
    with pytest.raises(ValueError, match="counts: expected numbers from 1 to the 2000 triplets"):
        simulate_selection(train, held_out, start, [2001])


def test_two_metrics_that_disagree_draw_the_choice(tmp_path):
    study = bare_study(tmp_path, 12, active=1.0)
    items = sorted(study.items("judged"))
    agreed = {item: (0.1, 0.9) if item % 2 else (0.9, 0.1) for item in items}
    disagreed = dict(agreed)
    for item in items[3:6]:
        disagreed[item] = agreed[item][::-1]
    study.set_distances("mine", agreed)
    study.set_distances("theirs", disagreed)
    for second in ("theirs", {item: d0 - d1 for item, (d0, d1) in disagreed.items()}):
        seen = ask(study, ActiveSelector(study, metric="mine", second=second), lambda item: "p0", trials=3)
        assert {item for _, item in seen} == set(items[3:6])


def test_one_stored_metric_draws_the_choice_to_its_ties(tmp_path):
    for test, column in (("2afc", 1.0), ("jnd", None)):
        study = bare_study(tmp_path, 9, test=test, active=1.0, name=f"{test}.db")
        study.set_distances("mine", {item: (0.2 * item, column) for item in study.items("judged")})
        seen = ask(study, ActiveSelector(study, metric="mine"), lambda item, t=test: "p0" if t == "2afc" else "same", 3)
        assert {item for _, item in seen} == {4, 5, 6}  # around equal distances, or around the median


def test_missing_distances_and_features_are_named(tmp_path):
    study = bare_study(tmp_path, 3, active=1.0)
    study.set_distances("mine", {1: (0.1, 0.2)})
    with pytest.raises(StudyError, match=r"stored distances \(mine\), got 'theirs'"):
        ActiveSelector(study, metric="theirs")
    with pytest.raises(StudyError, match="got none of item 2"):
        ActiveSelector(study, metric="mine")
    with pytest.raises(StudyError, match="features: expected features with their calibration, or the name"):
        ActiveSelector(study)
    with pytest.raises(ValueError, match="refit_every: expected at least 1, got 0"):
        ActiveSelector(study, features_of(study), torch.ones(6), refit_every=0)
    with pytest.raises(ValueError, match=r"features: expected \(M, 5\) as start"):
        ActiveSelector(study, features_of(study), torch.ones(5))


@pytest.mark.parametrize("test", ["2afc", "jnd"])
def test_features_times_the_calibration_are_distances(tmp_path, test):
    study = drawn_study(tmp_path, 4, test=test)
    network, images = TrainableLPIPS("embedded", init="official"), study.images()
    features = item_features(study, network)
    metric = LPIPS("embedded")
    for item in study.items("judged").values():
        ref, *others = (
            to_signed(read_image(study.folder / images[number].path))[None]
            for number in (item.ref, item.p0, item.p1)
            if number is not None
        )
        with torch.inference_mode():
            distances = [metric(ref, other, normalize=False) for other in others]
        expected = distances[0] - distances[1] if test == "2afc" else distances[0]
        torch.testing.assert_close(features[item.id] @ start_calibration(network), expected[0], atol=1e-5, rtol=1e-4)


def test_features_are_cached_until_an_image_or_the_backbone_changes(tmp_path, monkeypatch, caplog):
    study = drawn_study(tmp_path, 2)
    network, cache = TrainableLPIPS("embedded"), tmp_path / "cache"
    first, seen = item_features(study, network, cache), []

    def again(network=network):
        seen.clear()
        found = item_features(study, network, cache, report=lambda *done: seen.append(done))
        assert all(torch.equal(found[item], first[item]) for item in first) == (not seen or network is not other)
        return bool(seen)

    other = TrainableLPIPS("alex", weights="random")
    assert not again()
    assert again(other)
    assert not again()  # a file for each network
    (file,) = cache.glob("*embedded*")
    file.write_bytes(b"damaged")
    assert again()
    assert "computing it anew" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("net_type", ["embedded", "alex"])
def test_active_selection_needs_at_most_60_percent_of_random_judgments_of_materials(net_type, request, monkeypatch):
    """100 materials, 22,801 triplets, votes of people (Lagunas et al. 2019); held-out references, half active."""
    root = os.environ.get("LPIPS_LIGHTNING_DATA")
    if not root or not (Path(root) / "materials").is_dir():
        pytest.skip("LPIPS_LIGHTNING_DATA does not name a folder with materials/train.csv and materials/images")
    if net_type != "embedded":
        monkeypatch.setenv("LPIPS_LIGHTNING_WEIGHTS", str(request.getfixturevalue("real_weights")))
    folder = Path(root) / "materials"
    dataset = TripletDataset(read_triplets(folder / "train.csv", folder / "images"), folder / "images")
    network = TrainableLPIPS(net_type, init="official")
    data, scores = pool(network, dataset), {0.0: torch.zeros(2), 0.5: torch.zeros(2)}
    for seed in range(6):
        order = torch.randperm(100, generator=torch.Generator().manual_seed(seed))
        held_out = torch.isin(dataset.references, order[:20])
        parts = data.subset((~held_out).nonzero()[:, 0]), data.subset(held_out.nonzero()[:, 0])
        for active, counts in ((0.0, [200, 400]), (0.5, [120, 240])):
            found = simulate_selection(*parts, network.calibration, counts, active=active, seed=seed)
            scores[active] += torch.tensor([*found.values()]) / 6
    assert (scores[0.5] >= scores[0.0]).all(), scores
    assert scores[0.0][1] > scores[0.0][0] > 0.74
