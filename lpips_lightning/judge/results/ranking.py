"""Methods ranked by people's preferences between their images: Bradley-Terry scores with intervals.

Answers on one reference depend on each other, and so do those of one observer. The variance of a score is therefore
``V(references) + V(observers) - V(answers)``, where V is the bootstrap variance when references, observers or single
answers are drawn with replacement (Cameron, Gelbach and Miller 2011, J. Business & Economic Statistics 29, for two-way
clusters); at least the larger one of the first two. Student's t with the smaller number of references or observers,
less one, as degrees of freedom gives the ends.

Where a method won or lost everything, no resample shows what was never seen. Then references and observers are drawn
together, the weight of the prior is drawn as well, from chi-square with two degrees of freedom (the number of losses
that may have been missed, in halves, is then spread as after a flat prior of their rate), and the ends are percentiles.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from lpips_lightning.judge.records import Reason, StudyError
from lpips_lightning.judge.results.bradley_terry import (
    components,
    count_wins,
    deviance,
    expected_shares,
    fit_scores,
    is_estimable,
)
from lpips_lightning.judge.results.student import quantile, two_sided
from lpips_lightning.judge.store import Study
from lpips_lightning.judge.votes import counted

_CHUNK = 250  # resamples at once
_LEAST_PRIOR = 1e-3  # smaller weights only move the open end
_NAMED = 6  # methods of a group in a message
_MOST_FREEDOM = 1000  # beyond it, Student's t is the normal distribution


@dataclass(frozen=True)
class Preferences:
    """Answers between methods.

    Attributes:
        methods: Names of the methods, sorted.
        winners: Index of the preferred method in each answer, shape ``(N,)``.
        losers: Index of the other method, same shape.
        references: Number of the reference of each answer, same shape.
        observers: Number of the observer of each answer, same shape.
    """

    methods: tuple[str, ...]
    winners: Tensor
    losers: Tensor
    references: Tensor
    observers: Tensor

    @property
    def wins(self) -> Tensor:
        """How often each method (row) was preferred over each other one (column), ``(K, K)``."""
        return count_wins(self.winners, self.losers, self.methods)


@dataclass(frozen=True)
class MethodScore:
    """A method's place.

    Attributes:
        method: Its name.
        score: Log-odds of being preferred over an average method; the mean over methods is 0.
        low: Lower end of the interval.
        high: Upper end.
        wins: Answers that preferred it.
        losses: Answers that preferred the other method.
    """

    method: str
    score: float
    low: float
    high: float
    wins: int
    losses: int

    @property
    def preferred(self) -> tuple[float, float, float]:
        """Expected probability of being preferred over an average method, one of score 0, and the ends of it."""
        return _sigmoid(self.score), _sigmoid(self.low), _sigmoid(self.high)


@dataclass(frozen=True)
class Difference:
    """Two methods, the first one with the higher score.

    Attributes:
        better: Name of the first method.
        worse: Name of the second method.
        difference: Difference of the scores: log-odds of preferring the first.
        low: Lower end of the interval.
        high: Upper end.
        p: Probability of a difference as large between equal methods; see `Ranking` for its correction.
    """

    better: str
    worse: str
    difference: float
    low: float
    high: float
    p: float


@dataclass(frozen=True)
class Fit:
    """How well one score per method explains the answers.

    Attributes:
        deviance: Twice the log-likelihood that is lost against a free share of wins for every pair.
        freedom: Pairs that were compared, less the number of methods, plus one; with 0 there is nothing to test.
        p: Probability of a larger deviance if the model holds and answers are independent. Answers of one observer or
            reference are not: real values are somewhat larger.
        pair: The two methods whose share of wins is furthest from the expected one, in standard errors.
        observed: Fraction of their comparisons that the first won.
        expected: The same by the scores.
        count: Comparisons of the two.
    """

    deviance: float
    freedom: int
    p: float
    pair: tuple[str, str]
    observed: float
    expected: float
    count: int


@dataclass(frozen=True)
class Ranking:
    """Methods in people's order, best first.

    Attributes:
        scores: One entry per method.
        wins: How often each method (row) was preferred over each other one (column), in the order of `scores`.
        neighbors: Each method and the next one; their p are Holm's, corrected for the number of neighbors.
        pairs: All pairs of methods, with p that are not corrected.
        fit: Goodness of fit.
        answers: Number of answers.
        references: Number of references.
        observers: Number of observers.
        prior: 0: maximum likelihood. 1: a method, or a group of them, won or lost everything, so every method was taken
            to have won and lost half a comparison with an average one; scores would be infinite otherwise.
        confidence: Level of the intervals.
        notes: What limits the intervals, in sentences.
    """

    scores: tuple[MethodScore, ...]
    wins: Tensor
    neighbors: tuple[Difference, ...]
    pairs: tuple[Difference, ...]
    fit: Fit
    answers: int
    references: int
    observers: int
    prior: float
    confidence: float
    notes: tuple[str, ...] = field(default=())


_RANDOM: tuple[Reason, ...] = ("random",)


def preferences(study: Study, reasons: Collection[Reason] = _RANDOM, failed: bool = False) -> Preferences:
    """The answers of a study between methods: `votes.counted`, of items whose two candidates have different methods.

    Args:
        study: A 2AFC study whose items name methods.
        reasons: Trials that count. Those that were chosen since metrics are unsure are no fair sample of a pair's
            images, so that by default only the random ones do.
        failed: Also count sessions that failed their sentinels.

    Raises:
        StudyError: If the study compares no methods, or has no such answer.
    """
    if study.design.test != "2afc":
        raise StudyError("ranking: expected a 2afc study of methods, got a jnd study, which compares no methods")
    items = {n: item for n, item in study.items("judged").items() if item.method0 and item.method1 != item.method0}
    methods = tuple(sorted({name for item in items.values() for name in (item.method0, item.method1) if name}))
    if len(methods) < 2:
        raise StudyError(
            f"ranking: expected a study of two or more methods, got one of {len(methods)};"
            " `lpips-lightning judge serve --methods DIR` makes one from a folder per method"
        )
    answers = [one for one in counted(study, failed=failed, reasons=reasons) if one.item in items]
    if not answers:
        raise StudyError(f"ranking: expected answers between methods that count, got none in '{study.path}'")
    index, people = {name: number for number, name in enumerate(methods)}, dict[str, int]()
    rows = []
    for one in answers:
        item = items[one.item]
        pair = (item.method0, item.method1) if one.choice == "p0" else (item.method1, item.method0)
        rows.append((index[pair[0]], index[pair[1]], item.ref, people.setdefault(one.observer, len(people))))
    return Preferences(methods, *torch.tensor(rows).unbind(1))


def rank(data: Preferences, resamples: int = 1000, seed: int = 0, confidence: float = 0.95) -> Ranking:
    """Rank methods by people's answers.

    Args:
        data: The answers.
        resamples: Bootstrap resamples of references, of observers and of answers.
        seed: Equal seeds give equal intervals.
        confidence: Level of the intervals.

    Raises:
        StudyError: If no chain of answers connects two methods.
        ValueError: If an argument is out of its range.
    """
    if resamples < 2 or not 0 < confidence < 1:
        raise ValueError(f"resamples: expected at least 2 and a confidence in (0, 1), got {resamples}, {confidence}")
    _check_connected(data)
    prior = prior_of(data.wins)
    scores = fit_scores(data.wins, prior)
    spread = (_Percentiles if prior else _Spread).of(data, resamples, seed, confidence)
    order = sorted(range(len(scores)), key=lambda index: (-float(scores[index]), data.methods[index]))
    rows = [_method_score(data, scores, spread, index) for index in order]
    pairs = {
        (better, worse): _difference(data, scores, spread, better, worse)
        for place, better in enumerate(order)
        for worse in order[place + 1 :]
    }
    neighbors = _holm([pairs[pair] for pair in pairwise(order)])
    fit = _goodness(data, scores)
    references, observers = _sizes(data)
    return Ranking(
        scores=tuple(rows),
        wins=data.wins[order][:, order],
        neighbors=tuple(neighbors),
        pairs=tuple(pairs.values()),
        fit=fit,
        answers=len(data.winners),
        references=references,
        observers=observers,
        prior=float(prior),
        confidence=confidence,
        notes=tuple(_notes(references, observers, prior)),
    )


def prior_of(wins: Tensor) -> Tensor | float:
    """Weight of the prior: 0 where scores of largest likelihood exist, else 1; counts ``(..., K, K)`` to ``(...)``."""
    weight = 1 - is_estimable(wins).double()
    return weight if weight.ndim else float(weight)


def resampled_scores(
    data: Preferences, references: Tensor | None, observers: Tensor | None, prior: Tensor | None = None
) -> Tensor:
    """Scores of resamples, ``(B, K)``.

    Args:
        data: The answers.
        references: How often each reference was drawn, ``(B, R)`` in the order of ``data.references.unique()``; None:
            each one once.
        observers: The same of observers.
        prior: Weight of the prior in each resample, ``(B,)``; None: that of `prior_of`.
    """
    pair = data.winners * len(data.methods) + data.losers
    parts = []
    for rows in range(0, len(references if references is not None else _given(observers)), _CHUNK):
        weight: Tensor | float = 1.0
        for drawn, groups in ((references, data.references), (observers, data.observers)):
            if drawn is not None:
                weight = weight * drawn[rows : rows + _CHUNK, groups.unique(return_inverse=True)[1]]
        wins = torch.zeros(len(_given(weight)), len(data.methods) ** 2, dtype=torch.float64)
        wins.index_add_(1, pair, _given(weight))
        parts.append(_scores_of(wins, None if prior is None else prior[rows : rows + _CHUNK]))
    return torch.cat(parts)


def draw(count: int, resamples: int, generator: torch.Generator) -> Tensor:
    """How often each of `count` units is drawn in each resample: ``(B, count)``, float64."""
    chosen = torch.randint(count, (resamples, count), generator=generator)
    drawn = torch.zeros(resamples, count, dtype=torch.float64)
    return drawn.scatter_add_(1, chosen, torch.ones_like(drawn))


class _Uncertainty(Protocol):
    """How sure sums of scores are, each one times a number: the `contrast`."""

    def ends(self, value: float, contrast: Tensor) -> tuple[float, float]:
        """Interval around ``contrast @ scores``."""

    def p(self, value: float, contrast: Tensor) -> float:
        """Two-sided p-value of ``contrast @ scores`` against 0."""


@dataclass(frozen=True)
class _Spread:
    """Covariances of scores, by what was drawn: the sum has the signs of `signs`; `t` ends the interval."""

    covariances: tuple[Tensor, ...]
    signs: tuple[int, ...]
    freedom: int
    t: float

    @classmethod
    def of(cls, data: Preferences, resamples: int, seed: int, confidence: float) -> _Spread:
        generator, sizes = torch.Generator().manual_seed(seed), _sizes(data)
        parts, signs = [], []
        for place, size in enumerate(sizes):
            if size > 1:
                drawn = draw(size, resamples, generator)
                scores = resampled_scores(data, *((drawn, None) if place == 0 else (None, drawn)))
                parts.append(torch.cov(scores.mT) * size / (size - 1))
                signs.append(1)
        if len(parts) != 1:
            parts.append(torch.cov(_scores_of(_redrawn_wins(data, resamples, generator)).mT))
            signs.append(-1 if len(parts) > 1 else 1)
        freedom = min([size - 1 for size in sizes if size > 1] or [max(1, len(data.winners) - 1)])
        freedom = min(freedom, _MOST_FREEDOM)
        return cls(tuple(parts), tuple(signs), freedom, quantile(confidence, freedom))

    def ends(self, value: float, contrast: Tensor) -> tuple[float, float]:
        room = self.t * self.deviation(contrast)
        return value - room, value + room

    def p(self, value: float, contrast: Tensor) -> float:
        deviation = self.deviation(contrast)
        return two_sided(value / deviation, self.freedom) if deviation else float(value == 0)

    def deviation(self, contrast: Tensor) -> float:
        """Standard error of ``contrast @ scores``."""
        values = [float(contrast @ part @ contrast) for part in self.covariances]
        total = sum(sign * value for sign, value in zip(self.signs, values, strict=True))
        least = max(value for sign, value in zip(self.signs, values, strict=True) if sign > 0)
        return math.sqrt(max(total, least, 0.0))


@dataclass(frozen=True)
class _Percentiles:
    """Scores of resamples, ``(B, K)``, whose prior was drawn too; the ends leave `tail` outside on either side."""

    draws: Tensor
    tail: float

    @classmethod
    def of(cls, data: Preferences, resamples: int, seed: int, confidence: float) -> _Percentiles:
        generator = torch.Generator().manual_seed(seed)
        drawn = [draw(size, resamples, generator) if size > 1 else None for size in _sizes(data)]
        uniform = torch.rand(resamples, generator=generator, dtype=torch.float64)
        weight = (-2 * (1 - uniform).log()).clamp(min=_LEAST_PRIOR)
        if drawn == [None, None]:
            draws = _scores_of(_redrawn_wins(data, resamples, generator), weight)
        else:
            draws = resampled_scores(data, drawn[0], drawn[1], weight)
        return cls(draws, (1 - confidence) / 2)

    def ends(self, value: float, contrast: Tensor) -> tuple[float, float]:
        tails = torch.tensor([self.tail, 1 - self.tail], dtype=torch.float64)
        low, high = (self.draws @ contrast).quantile(tails).tolist()
        return min(low, value), max(high, value)

    def p(self, value: float, contrast: Tensor) -> float:
        across = (self.draws @ contrast * math.copysign(1, value) <= 0).sum()
        return min(1.0, 2 * (1 + float(across)) / (1 + len(self.draws)))


def _sizes(data: Preferences) -> list[int]:
    """Number of references and of observers."""
    return [len(column.unique()) for column in (data.references, data.observers)]


def _redrawn_wins(data: Preferences, resamples: int, generator: torch.Generator) -> Tensor:
    """Tables of wins ``(B, K * K)`` of resamples of single answers."""
    pair, count = data.winners * len(data.methods) + data.losers, len(data.winners)
    drawn = pair[torch.randint(count, (resamples, count), generator=generator)]
    wins = torch.zeros(resamples, len(data.methods) ** 2, dtype=torch.float64)
    return wins.scatter_add_(1, drawn, torch.ones(drawn.shape, dtype=torch.float64))


def _scores_of(wins: Tensor, prior: Tensor | None = None) -> Tensor:
    """Scores ``(B, K)`` of tables of wins ``(B, K * K)``."""
    methods = math.isqrt(wins.shape[1])
    square = wins.reshape(-1, methods, methods)
    return fit_scores(square, prior_of(square) if prior is None else prior)


def _given(value: Tensor | float | None) -> Tensor:
    if not isinstance(value, Tensor):
        raise ValueError("references, observers: expected how often they were drawn, got None for both")
    return value


def _check_connected(data: Preferences) -> None:
    groups = components(data.wins)
    if len(groups) > 1:
        names = [[data.methods[index] for index in group] for group in groups]
        parts = [", ".join(one[:_NAMED]) + (f" and {len(one) - _NAMED} more" if one[_NAMED:] else "") for one in names]
        raise StudyError(
            f"ranking: expected answers that compare all methods, directly or over others, got none between"
            f" {' and '.join(f'({part})' for part in parts[:3])}{' and others' if len(parts) > 3 else ''};"
            " more sessions are needed"
        )


def _method_score(data: Preferences, scores: Tensor, spread: _Uncertainty, index: int) -> MethodScore:
    contrast = torch.zeros(len(scores), dtype=torch.float64)
    contrast[index] = 1
    counts = int((data.winners == index).sum()), int((data.losers == index).sum())
    value = float(scores[index])
    return MethodScore(data.methods[index], value, *spread.ends(value, contrast), *counts)


def _difference(data: Preferences, scores: Tensor, spread: _Uncertainty, better: int, worse: int) -> Difference:
    contrast = torch.zeros(len(scores), dtype=torch.float64)
    contrast[better], contrast[worse] = 1, -1
    value = float(scores[better] - scores[worse])
    names = data.methods[better], data.methods[worse]
    return Difference(*names, value, *spread.ends(value, contrast), spread.p(value, contrast))


def _holm(tests: list[Difference]) -> Iterator[Difference]:
    """The tests with p-values corrected for their number, by Holm's step-down."""
    corrected, largest = dict[int, float](), 0.0
    for done, place in enumerate(sorted(range(len(tests)), key=lambda place: tests[place].p)):
        largest = max(largest, min(1.0, tests[place].p * (len(tests) - done)))
        corrected[place] = largest
    for place, one in enumerate(tests):
        yield Difference(one.better, one.worse, one.difference, one.low, one.high, corrected[place])


def _goodness(data: Preferences, scores: Tensor) -> Fit:
    wins = data.wins
    value, freedom = deviance(wins, scores)
    p = float(torch.special.gammaincc(torch.tensor(freedom / 2), torch.tensor(value / 2))) if freedom > 0 else 1.0
    played, expected = wins + wins.mT, expected_shares(scores)
    misfit = ((wins - played * expected) / (played * expected * (1 - expected)).clamp(min=1e-12).sqrt()).triu(1).abs()
    first, second = divmod(int(misfit.argmax()), len(scores))
    if first == second:  # all pairs fit exactly
        first, second = divmod(int(played.triu(1).argmax()), len(scores))
    count = int(played[first, second])
    pair = data.methods[first], data.methods[second]
    observed = float(wins[first, second]) / count
    return Fit(value, freedom, p, pair, observed, float(expected[first, second]), count)


def _notes(references: int, observers: int, prior: float | Tensor) -> Iterator[str]:
    if prior:
        yield (
            "A method, or a group of them, won or lost every comparison with the others: every method was taken to have"
            " won and lost half a comparison with an average one, or scores would be infinite. Their intervals are open"
            " to the side of what was never seen: the ends there tell little."
        )
    if observers == 1:
        yield "One observer answered: the intervals tell nothing about other people."
    if references == 1:
        yield "There is one reference: the intervals tell nothing about other images."
    if 1 < min(references, observers) < 5:
        fewest = f"{observers} observers" if observers <= references else f"{references} references"
        yield f"With {fewest}, intervals are wide and rough; five or more make them narrower."


def _sigmoid(value: float) -> float:
    return float(torch.tensor(value, dtype=torch.float64).sigmoid())
