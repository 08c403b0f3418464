"""Methods ranked by people: what counts, intervals over references and observers, and what is said."""

import math
from dataclasses import replace

import pytest
import torch

from lpips_lightning.judge.records import Design, Image, Item, StudyError
from lpips_lightning.judge.results.bradley_terry import expected_shares, fit_scores
from lpips_lightning.judge.results.ranking import Preferences, preferences, rank
from lpips_lightning.judge.results.ranking_report import sentences
from lpips_lightning.judge.simulated import simulate
from lpips_lightning.judge.store import Study
from tests._helpers.method_study import NAMES, answers, method_study, noise_distances, write_methods


def population(by_reference, by_observer):
    """Scores that all references and observers together have."""
    scores = torch.tensor([0.9, 0.3, -0.3, -0.9], dtype=torch.float64)
    effects = torch.randn(20_000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    spread = (2 * (by_reference**2 + by_observer**2)) ** 0.5
    shares = (scores[:, None, None] - scores[None, :, None] + spread * effects).sigmoid().mean(-1)
    return fit_scores(1000 * shares)


@pytest.mark.parametrize(("by_reference", "by_observer"), [(0.0, 0.0), (0.8, 0.5)])
def test_intervals_cover_the_scores_of_the_population(by_reference, by_observer):
    generator, truth = torch.Generator().manual_seed(0), population(by_reference, by_observer)
    options = {"by_reference": by_reference, "by_observer": by_observer}
    inside, naive = 0, 0
    for seed in range(60):
        data = answers(400, generator, **options)
        for row in rank(data, resamples=100, seed=seed).scores:
            inside += row.low <= float(truth[NAMES.index(row.method)]) <= row.high
        alone = replace(data, references=torch.arange(400), observers=torch.zeros(400, dtype=torch.long))
        for row in rank(alone, resamples=100, seed=seed).scores:  # as if all answers were independent
            naive += row.low <= float(truth[NAMES.index(row.method)]) <= row.high
    assert 0.93 <= inside / 240 <= 1
    if by_reference:
        assert naive < inside - 12  # at least 5 % fewer


def test_scores_come_with_counts_probabilities_and_pairs():
    data = answers(600, torch.Generator().manual_seed(3))
    found = rank(data, resamples=100)
    scores = dict(zip(NAMES, fit_scores(data.wins).tolist(), strict=True))
    assert [row.method for row in found.scores] == sorted(NAMES, key=lambda name: -scores[name])
    assert all(
        row.score == pytest.approx(scores[row.method]) and row.low < row.score < row.high for row in found.scores
    )
    assert sum(row.score for row in found.scores) == pytest.approx(0)
    assert sum(row.wins for row in found.scores) == sum(row.losses for row in found.scores) == 600
    best = found.scores[0]
    assert best.preferred[0] == pytest.approx(1 / (1 + torch.e**-best.score))
    assert best.preferred[1] < best.preferred[0] < best.preferred[2]
    assert (found.answers, found.references, found.observers, found.prior) == (600, 40, 8, 0)
    assert len(found.pairs) == 6 and len(found.neighbors) == 3
    for one in found.pairs:
        assert one.difference == pytest.approx(scores[one.better] - scores[one.worse])
        assert (one.p < 0.05) == (one.low > 0)
    order = [NAMES.index(row.method) for row in found.scores]
    assert torch.equal(found.wins, data.wins[order][:, order])
    assert found == replace(rank(data, resamples=100), wins=found.wins)  # by seed


def test_equal_neighbors_cannot_be_told_apart_and_unequal_ones_can():
    scores = torch.tensor([1.5, 0.0, 0.0, -1.5], dtype=torch.float64)
    found = rank(answers(800, torch.Generator().manual_seed(5), scores=scores), resamples=200)
    ends, middle = (found.neighbors[0], found.neighbors[2]), found.neighbors[1]
    assert all(one.p < 0.01 for one in ends) and middle.p > 0.05
    said = list(sentences(found, ()))
    assert said[0].startswith("Places 1 and 2 (a, ") and "differ: p = " in said[0]
    assert "cannot be told apart with these answers: p = " in said[1]
    raw = {(one.better, one.worse): one.p for one in found.pairs}
    assert all(one.p >= raw[one.better, one.worse] for one in found.neighbors)  # Holm's


def test_the_fit_names_the_pair_that_one_score_per_method_does_not_explain():
    circle = torch.tensor([[0, 40, 10], [10, 0, 40], [40, 10, 0]])
    rows = [(i, j) for i in range(3) for j in range(3) for _ in range(int(circle[i, j]))]
    winners, losers = torch.tensor(rows).unbind(1)
    data = Preferences(NAMES[:3], winners, losers, torch.arange(150) % 10, torch.arange(150) % 7)
    fit = rank(data, resamples=50).fit
    assert fit.freedom == 1 and fit.p < 1e-6
    assert fit.count == 50 and abs(fit.observed - 0.5) == pytest.approx(0.3) and fit.expected == pytest.approx(0.5)
    assert "one score per method does not explain all pairs" in " ".join(sentences(rank(data, resamples=50), ()))
    fitting = rank(answers(600, torch.Generator().manual_seed(0)), resamples=50).fit
    assert fitting.freedom == 3 and fitting.p > 0.01


@pytest.mark.parametrize(
    ("references", "observers", "note"),
    [(1, 8, "other images"), (40, 1, "other people"), (40, 3, "With 3 observers"), (1, 1, "other people")],
)
def test_notes_say_what_intervals_do_not_tell(references, observers, note):
    data = answers(200, torch.Generator().manual_seed(2), references=references, observers=observers)
    found = rank(data, resamples=50)
    assert note in " ".join(found.notes)
    assert all(row.low < row.score < row.high for row in found.scores)


def test_a_method_that_wins_everything_gets_a_finite_score_and_the_prior_is_said():
    winners, losers = torch.tensor([0] * 20 + [1, 2] * 5), torch.tensor([1, 2] * 10 + [2, 1] * 5)
    data = Preferences(NAMES[:3], winners, losers, torch.arange(30) % 6, torch.arange(30) % 5)
    found = rank(data, resamples=50)
    assert found.prior == 1 and "won and lost half a comparison" in found.notes[0]
    best = found.scores[0]
    assert (best.method, best.wins, best.losses) == ("a", 20, 0) and 1 < best.low < best.high < 10


def test_methods_that_no_answers_connect_are_named():
    data = Preferences(NAMES, torch.tensor([0, 1, 2, 3]), torch.tensor([1, 0, 3, 2]), torch.arange(4), torch.arange(4))
    with pytest.raises(StudyError, match=r"got none between \(a, b\) and \(c, d\); more sessions are needed"):
        rank(data)


def test_preferences_are_the_counted_random_answers_between_methods(tmp_path):
    write_methods(tmp_path, references=3)
    study = method_study(tmp_path / "s.db", tmp_path, references=3, trials=10)

    def selector(study, candidates, rng):
        return candidates[0], ("active" if rng.random() < 0.3 else "random")

    simulate(study, noise_distances, selector, observers=4)
    data, both = preferences(study), preferences(study, ("random", "active"))
    reasons = [answer.reason for answer in study.answers()]
    assert len(data.winners) == reasons.count("random") < len(both.winners) == 40
    assert {"sentinel", "repeat"} < set(reasons)
    assert data.methods == ("clear", "fair", "good", "poor")
    items = study.items()
    first = next(answer for answer in study.answers() if answer.reason == "random")
    item = items[first.item]
    names = (item.method0, item.method1) if first.choice == "p0" else (item.method1, item.method0)
    assert (data.methods[data.winners[0]], data.methods[data.losers[0]]) == names
    assert int(data.references[0]) == item.ref and len(data.observers.unique()) == 4
    study.close()


def tiny(path, test="2afc", methods=("x", "y")):
    images = [Image(number, f"{number}.png", "0", 8, 8) for number in (1, 2, 3)]
    item = Item(1, "judged", 1, 2, 3 if test == "2afc" else None, None, *methods)
    return Study.create(path, Design(test=test, sentinels=0, pass_mark=0), path.parent, images, [item])


@pytest.mark.parametrize(
    ("test", "methods", "message"),
    [
        ("jnd", ("x", "y"), "expected a 2afc study of methods, got a jnd study"),
        ("2afc", ("", ""), "expected a study of two or more methods, got one of 0"),
        ("2afc", ("x", "x"), "expected a study of two or more methods, got one of 0"),
        ("2afc", ("x", "y"), "expected answers between methods that count, got none"),
    ],
)
def test_studies_that_rank_nothing_are_refused(tmp_path, test, methods, message):
    study = tiny(tmp_path / "s.db", test, methods)
    with pytest.raises(StudyError, match=message):
        preferences(study)
    study.close()


@pytest.mark.parametrize("options", [{"resamples": 1}, {"confidence": 1.0}])
def test_bad_options_are_refused(options):
    with pytest.raises(ValueError, match="resamples: expected at least 2 and a confidence"):
        rank(answers(100, torch.Generator().manual_seed(0)), **options)


def test_expected_shares_of_a_pair_add_to_one():
    shares = expected_shares(torch.tensor([0.3, -1.0, 0.7]))
    assert torch.allclose(shares + shares.mT, torch.ones(3, 3))


@pytest.mark.parametrize("share", [0.995, 0.97])
def test_intervals_cover_also_where_a_method_may_win_everything(share):
    generator, truth = torch.Generator().manual_seed(0), math.log(share / (1 - share)) / 2
    inside, separated = 0, 0
    for seed in range(40):
        winners = (torch.rand(60, generator=generator) > share).long()
        found = rank(
            Preferences(("a", "b"), winners, 1 - winners, torch.arange(60) % 20, torch.arange(60) % 6), 60, seed
        )
        best = next(row for row in found.scores if row.method == "a")
        inside += best.low <= truth <= best.high
        separated += bool(found.prior)
    assert inside >= 36 and 3 < separated < 38


def test_of_many_methods_that_no_answers_connect_some_are_named():
    names = tuple(f"m{number:02}" for number in range(20))
    winners, losers = torch.arange(8).repeat(2), torch.arange(1, 9).repeat(2)
    one = torch.zeros(16, dtype=torch.long)
    with pytest.raises(
        StudyError, match=r"\(m00, m01, m02, m03, m04, m05 and 3 more\) and \(m09\) and \(m10\) and others;"
    ):
        rank(Preferences(names, winners, losers, one, one))
