"""Bradley-Terry scores against closed forms, a published example and an independent fit."""

import math

import pytest
import torch

from lpips_lightning.judge.results.bradley_terry import (
    components,
    count_wins,
    deviance,
    expected_shares,
    fit_scores,
    is_estimable,
)
from lpips_lightning.judge.results.student import quantile, two_sided

# Wins of the row over the column; American League East, 1987: Agresti, Categorical Data Analysis, table 10.10 of the
# second edition, with the fit of table 10.11 and its text (relative to Baltimore; deviance 15.7 with 15 degrees).
BASEBALL = {
    "Milwaukee": ([0, 7, 9, 7, 7, 9, 11], 1.5814),
    "Detroit": ([6, 0, 7, 5, 11, 9, 9], 1.4364),
    "Toronto": ([4, 6, 0, 7, 7, 8, 12], 1.2945),
    "New York": ([6, 8, 6, 0, 6, 7, 10], 1.2476),
    "Boston": ([6, 2, 6, 7, 0, 7, 12], 1.1077),
    "Cleveland": ([4, 4, 5, 6, 6, 0, 6], 0.6839),
    "Baltimore": ([2, 4, 1, 3, 1, 7, 0], 0.0),
}


def random_wins(count, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, 30, (count, count), generator=generator).double()


@pytest.mark.parametrize(("won", "lost"), [(30, 10), (5, 5), (1, 99)])
def test_two_methods_are_their_log_odds_apart(won, lost):
    scores = fit_scores(torch.tensor([[0, won], [lost, 0]]))
    assert scores.tolist() == pytest.approx([math.log(won / lost) / 2, -math.log(won / lost) / 2], abs=1e-9)


def test_a_published_example_is_found_again():
    wins = torch.tensor([row for row, _ in BASEBALL.values()])
    scores = fit_scores(wins)
    assert (scores - scores[-1]).tolist() == pytest.approx([ability for _, ability in BASEBALL.values()], abs=5e-5)
    assert deviance(wins, scores) == (pytest.approx(15.737, abs=1e-3), 15)
    assert float(scores.mean()) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("prior", [0.0, 1.0])
@pytest.mark.parametrize(("count", "seed"), [(3, 0), (8, 1)])
def test_scores_are_those_of_an_independent_fit(count, seed, prior):
    optimize = pytest.importorskip("scipy.optimize")
    wins = random_wins(count, seed)

    def loss(values):
        scores = torch.tensor(values, dtype=torch.float64)
        scores = scores - scores.mean()
        fit = (wins * expected_shares(scores).log()).fill_diagonal_(0).sum()
        own = prior / 2 * (scores.sigmoid().log() + (-scores).sigmoid().log()).sum()
        return -float(fit + own)

    found = torch.tensor(optimize.minimize(loss, [0.0] * count, tol=1e-12).x)
    assert torch.allclose(fit_scores(wins, prior), found - found.mean(), atol=1e-4)


def test_a_batch_is_its_members():
    wins = torch.stack([random_wins(4, seed) for seed in range(3)])
    priors = torch.tensor([0.0, 1.0, 0.5])
    together = fit_scores(wins, priors)
    assert all(torch.allclose(together[i], fit_scores(wins[i], priors[i]), atol=1e-9) for i in range(3))


@pytest.mark.parametrize(
    ("wins", "estimable", "groups"),
    [
        ([[0, 3, 0], [0, 0, 3], [3, 0, 0]], True, 1),  # a circle
        ([[0, 3, 3], [0, 0, 2], [0, 1, 0]], False, 1),  # the first wins all
        ([[0, 3, 0], [1, 0, 0], [0, 0, 0]], False, 2),  # the third was never shown
        ([[9, 3], [0, 9]], False, 1),  # the diagonal is ignored
    ],
)
def test_what_has_no_finite_scores_is_refused_and_a_prior_makes_them_finite(wins, estimable, groups):
    table = torch.tensor(wins)
    assert bool(is_estimable(table)) is estimable
    assert len(components(table)) == groups
    scores = fit_scores(table, 1.0)
    assert scores.isfinite().all() and float(scores[0]) >= float(scores[1]) - 1e-9
    if estimable:
        assert fit_scores(table).abs().max() < 1e-9
    else:
        with pytest.raises(ValueError, match="scores of largest likelihood are infinite; use a prior above 0"):
            fit_scores(table)


def test_a_prior_pulls_less_the_more_answers_there_are():
    few, many = (fit_scores(torch.tensor([[0, 3 * n], [n, 0]]), 1.0)[0] for n in (1, 1000))
    assert 0 < few < many < math.log(3) / 2
    assert float(many) == pytest.approx(math.log(3) / 2, abs=1e-3)


@pytest.mark.parametrize("seed", range(5))
def test_newtons_method_converges_for_extreme_counts(seed):
    generator = torch.Generator().manual_seed(seed)
    size = 10.0 ** torch.randint(-1, 5, (50, 5, 5), generator=generator)
    wins = (torch.rand(50, 5, 5, generator=generator) * size).floor()
    scores = fit_scores(wins, 1.0)
    misfit = (wins - (wins + wins.mT) * expected_shares(scores)).sum(-1)
    assert scores.isfinite().all() and misfit.abs().max() < 1  # what the prior adds to a method


def test_negative_counts_are_refused():
    with pytest.raises(ValueError, match="wins: expected counts of at least 0, got -1"):
        fit_scores(torch.tensor([[0, -1], [1, 0]]))


def test_wins_are_counted():
    wins = count_wins(torch.tensor([0, 0, 2]), torch.tensor([1, 1, 0]), ("a", "b", "c"))
    assert wins.tolist() == [[0, 2, 0], [0, 0, 0], [1, 0, 0]]


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 7, 30, 1000])
def test_students_t_is_that_of_scipy(freedom):
    stats = pytest.importorskip("scipy.stats")
    for t in (0.0, 0.3, -1.0, 2.5, 7.0):
        assert two_sided(t, freedom) == pytest.approx(2 * stats.t.sf(abs(t), freedom), abs=1e-12)
    for confidence in (0.5, 0.95, 0.999):
        assert quantile(confidence, freedom) == pytest.approx(stats.t.ppf((1 + confidence) / 2, freedom), rel=1e-9)
