"""The most probable calibration from few judgments."""

import math

import pytest
import torch
from hidden_calibration import simulated

from lpips_lightning.calibration.fit_map import LAPSE, fit_map, likelihood_terms, normalized, prior_mean
from lpips_lightning.calibration.pooled import PooledTriplets
from lpips_lightning.functional.judgments import two_afc_score

START = {"one": torch.ones(6), "two": torch.ones(6)}


def voted(data, seed=1):
    """The triplets with one drawn vote each."""
    votes = torch.bernoulli(data.judge, generator=torch.Generator().manual_seed(seed))
    return PooledTriplets(data.mean, None, data.rows, votes, data.layers)


def together(calibration):
    return torch.cat([*calibration.values()])


def test_a_known_calibration_is_found_and_few_votes_already_help():
    data, hidden = simulated(3000)
    held_out, votes = data.subset(torch.arange(2500, 3000)), voted(data)
    scores = [float(two_afc_score(*held_out.distances(START), held_out.judge))]
    for count in (50, 2500):
        found = fit_map(votes.subset(torch.arange(count)), START)
        assert (together(found) >= 0).all()
        scores.append(float(two_afc_score(*held_out.distances(found), held_out.judge)))
    assert scores[0] + 0.01 < scores[1] < scores[2]
    assert torch.nn.functional.cosine_similarity(together(found), hidden, dim=0) > 0.98


def test_the_result_has_the_highest_posterior_probability_and_the_scale_of_the_start():
    data, _ = simulated(40)
    data, start = voted(data), torch.linspace(0.2, 2, 12)
    found = together(fit_map(data, dict(zip(START, start.split(6), strict=True))))
    rows, scale = normalized(data.mean[data.rows[:, 0]] - data.mean[data.rows[:, 1]])
    mean, factor = prior_mean(rows, start * scale)

    def posterior(weights):
        chance = LAPSE + (1 - 2 * LAPSE) * (rows @ weights).sigmoid()
        likelihood = torch.where(data.judge > 0, chance, 1 - chance).log().sum()
        return float(likelihood - 0.5 * (weights - mean).square().sum())

    best = found * scale * factor
    highest = posterior(best)
    assert highest > posterior(mean) + 0.1
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        other = (best + 0.05 * torch.randn(12, generator=generator)).clamp(min=0)
        assert posterior(other) < highest + 1e-4
    blind = PooledTriplets(data.mean, None, data.rows, torch.full((40,), 0.5), data.layers)
    near = together(fit_map(blind, dict(zip(START, start.split(6), strict=True)), torch.full((40,), 1e-6)))
    torch.testing.assert_close(near, start, atol=1e-4, rtol=1e-3)  # no answers: the official calibration


def test_derivatives_of_the_likelihood():
    logits = torch.linspace(-4, 4, 9, dtype=torch.float64, requires_grad=True)
    for second in (0.0, 0.25, 1.0):
        chance = LAPSE + (1 - 2 * LAPSE) * logits.sigmoid()
        (slope,) = torch.autograd.grad((second * chance.log() + (1 - second) * (1 - chance).log()).sum(), logits)
        torch.testing.assert_close(likelihood_terms(logits.detach(), torch.tensor(second))[0], slope)
    expected = sum(
        chance * likelihood_terms(logits.detach(), torch.tensor(answer))[0].square()
        for answer, chance in ((0.0, 1 - chance.detach()), (1.0, chance.detach()))
    )
    torch.testing.assert_close(likelihood_terms(logits.detach(), torch.tensor(0.5))[1], expected)
    assert math.isfinite(float(likelihood_terms(torch.tensor(1e4), torch.tensor(0.0))[0]))


def test_votes_count_as_often_as_they_were_given():
    data, _ = simulated(30)
    counts = torch.randint(1, 4, (30,), generator=torch.Generator().manual_seed(0))
    once = data.subset(torch.arange(30).repeat_interleave(counts))
    for layer, weights in fit_map(once, START).items():
        many = fit_map(data, START, counts)[layer]
        assert torch.nn.functional.cosine_similarity(many, weights, dim=0) > 0.99
    with pytest.raises(ValueError, match="train: expected triplets, got none"):
        fit_map(data.subset(torch.arange(0)), START)
    with pytest.raises(ValueError, match="features: expected images that differ"):
        fit_map(PooledTriplets(0 * data.mean, None, data.rows, data.judge, data.layers), START)
