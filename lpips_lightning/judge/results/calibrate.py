"""A calibration of LPIPS from the answers of a study, and what it gains on triplets that it was not trained on."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lpips_lightning import __version__
from lpips_lightning.calibration.comparison import Comparison, compare_calibrations
from lpips_lightning.calibration.export import write_calibration
from lpips_lightning.calibration.fit_map import fit_map
from lpips_lightning.calibration.model import TrainableLPIPS
from lpips_lightning.calibration.pooled import PooledTriplets, cached_pool, level_factor
from lpips_lightning.data.triplets import TripletDataset, photograph_of, split_triplets
from lpips_lightning.functional.judgments import two_afc_score
from lpips_lightning.io.image_folders import count_of
from lpips_lightning.judge.judged_images import checked_files, related, related_by, triplets_of
from lpips_lightning.judge.records import Answer, StudyError
from lpips_lightning.judge.results.agreement import Ballots, Estimate, between
from lpips_lightning.judge.simulated import simulation_note
from lpips_lightning.judge.store import Study
from lpips_lightning.judge.votes import counted, tally

_FRACTIONS, _REPETITIONS = (0.1, 0.2, 0.4, 0.7), 3
_FEWEST = 5  # triplets of a point of the learning curve


@dataclass(frozen=True)
class Point:
    """A point of the learning curve.

    Attributes:
        judgments: Answers that the calibration was trained on.
        triplets: Their triplets.
        scores: Held-out 2AFC scores in [0, 1] of several random parts.
    """

    judgments: int
    triplets: int
    scores: Sequence[float]

    @property
    def mean(self) -> float:
        """Mean score."""
        return math.fsum(self.scores) / len(self.scores)


@dataclass(frozen=True)
class Calibrated:
    """What `calibrate` finds.

    Attributes:
        network: The network with the new calibration.
        factor: Factor on the calibration that keeps the mean distance of the official one.
        comparison: Scores on the held-out triplets.
        ceiling: Human ceiling on the held-out triplets, which are all that it is over.
        curve: Learning curve.
        record: What is stored with the calibration.
        notes: Sentences that a reader must know.
    """

    network: TrainableLPIPS
    factor: float
    comparison: Comparison
    ceiling: Estimate
    curve: Sequence[Point]
    record: dict[str, Any]
    notes: Sequence[str]

    @property
    def within_noise(self) -> bool:
        """Whether the interval of the gain contains 0."""
        return _is_within_noise(self.comparison)

    def lines(self) -> list[str]:
        """Text for people; scores in percent."""
        found, record = self.comparison, self.record
        used = f"{count_of(record['judgments'], 'judgment')} by {count_of(record['observers'], 'observer')}"
        trained = f"{count_of(record['triplets'], 'triplet')}, {count_of(record['judgments_train'], 'judgment')}"
        held_out = found.held_out(record["grouped_by"])
        return [
            f"{used}; trained on {trained}",
            f"2AFC in percent on {count_of(record['judgments_held_out'], 'judgment')} of {held_out}",
            f"  before (official)  {found.official}",
            f"  after              {found.own}",
            f"  gain               {found.difference}",
            f"  human ceiling      {_ceiling_text(self.ceiling)}",
            *self.notes,
        ]

    def write(self, path: str | Path) -> Path:
        """Write the calibration with its record, atomically; see `write_calibration`."""
        return write_calibration(path, self.network, self.factor, self.record)


@dataclass(frozen=True)
class _Data:
    """Triplets of one network; those held out have votes of random trials alone if there are any.

    `votes` are the numbers of answers to the triplets of `train`, `groups` the photographs of those of `held_out`.
    """

    train: PooledTriplets
    held_out: PooledTriplets
    votes: Tensor
    groups: Tensor
    train_answers: Sequence[Answer]
    held_out_answers: Sequence[Answer]
    held_out_items: Sequence[int]


def check_study(study: Study, **rules: Any) -> None:
    """Raise a StudyError unless a calibration can be trained on a study.

    Args:
        study: The study.
        **rules: Which answers count, as for `lpips_lightning.judge.votes.counted`.

    Raises:
        StudyError: If it is a JND study, or has too few answers that count.
    """
    if study.design.test != "2afc":
        raise StudyError(
            "study: expected a 2AFC study, whose answers rank two distances, got a JND study; for that,"
            " `lpips-lightning judge report` gives each metric's average precision and its just noticeable distance"
        )
    answers = counted(study, **rules)
    items = study.items("judged")
    groups = len(related(study, (items[answer.item] for answer in answers)).unique())
    if groups < 2:
        raise StudyError(
            f"study: expected answers that count on triplets of at least 2 {related_by(study)}s, to hold one out, got"
            f" {count_of(len(answers), 'answer')} on {groups}; {_way_out(study, answers)}"
        )


def _way_out(study: Study, answers: Sequence[Answer]) -> str:
    if not answers and any(answer.passed is False for answer in study.answers()):
        return "collect more, or --include-failed also counts sessions that failed their sentinels"
    items = study.items("judged")
    if len({items[answer.item].ref for answer in answers}) > 1:
        return "patches of one photograph count as one: make a study of more photographs"
    return "collect more"


def calibrate(
    study: Study,
    net_type: str = "alex",
    *,
    weights: str | None = None,
    val_fraction: float = 0.2,
    size: int | None = None,
    seed: int = 0,
    rescale: bool = True,
    cache: str | None = None,
    failed: bool = False,
    slipped: bool | None = None,
    curve: bool = True,
    report: Callable[[str, int, int], None] | None = None,
) -> Calibrated:
    """Train a calibration on the answers of a 2AFC study, and score it on references that were held out.

    The calibration is the most probable one under a prior around the official one, see `fit_map`. Training uses all
    answers that count; the score those of random trials, so that it holds for all triplets of the study, not for those
    on which metrics are unsure. Patches of one photograph are held out together, as one reference.

    Args:
        study: The study.
        net_type: Network.
        weights: Backbone weights, as for `LPIPS`.
        val_fraction: Fraction of the references that are held out; all patches of a photograph are, or none.
        size: Side to resize images to; None: as people saw them, which must be one size.
        seed: Seed of the split, and of the parts of the learning curve.
        rescale: Scale to the mean distance of the official calibration.
        cache: Cache folder for pooled differences; None: no cache.
        failed: See `lpips_lightning.judge.votes.counted`.
        slipped: See `lpips_lightning.judge.votes.counted`.
        curve: Also train on parts of the judgments, for the learning curve; takes most of the time.
        report: Progress callback: what, steps done, steps in total.

    Returns:
        The calibration, its scores and its record.

    Raises:
        StudyError: If it is no 2AFC study, has too few answers, or an image is missing or was changed.
        ValueError: If an argument is invalid.
    """
    rules = {"failed": failed, "slipped": slipped}
    check_study(study, **rules)
    network = TrainableLPIPS(net_type, weights=weights, init="official")
    official = {layer: weight.clone() for layer, weight in network.calibration.items()}
    data, notes = _load(study, network, rules, val_fraction, size, seed, cache)
    found = fit_map(data.train, official, data.votes)
    network.set_calibration(found)
    comparison = compare_calibrations(data.held_out, found, official, data.groups)
    ceiling, _ = between(Ballots.of(data.held_out_answers, study))
    points = _learning_curve(data, official, seed, comparison.own.value, _FRACTIONS if curve else (), report)
    factor = level_factor(data.train, found, official) if rescale else 1.0
    options = {"net": net_type, "weights": weights, "val_fraction": val_fraction, "size": size}
    options |= {"seed": seed, "rescale": rescale, **rules}
    record = {**options, **_record(study, data, comparison, ceiling, points), "factor": factor}
    return Calibrated(network, factor, comparison, ceiling, points, record, [*notes, *_verdict(comparison)])


def study_digest(study: Study) -> str:
    """Digest of what a study asks: its images and items, not its answers."""
    digest = hashlib.sha256(repr(sorted(image.sha256 for image in study.images().values())).encode())
    digest.update(repr(list(study.items().values())).encode())
    return digest.hexdigest()


def _load(
    study: Study,
    network: TrainableLPIPS,
    rules: Mapping[str, bool | None],
    val_fraction: float,
    size: int | None,
    seed: int,
    cache: str | None,
) -> tuple[_Data, list[str]]:
    answers = counted(study, **rules)  # type: ignore[arg-type]
    items, images = study.items("judged"), study.images()
    votes = tally(answers, study)
    apart = {photograph_of(one.ref) for one in split_triplets(triplets_of(study, votes), val_fraction, seed)[1]}
    held_out = {item for item in votes if photograph_of(images[items[item].ref].path) in apart}
    test = [answer for answer in answers if answer.item in held_out and answer.reason == "random"]
    note = simulation_note(answers)
    notes = [note] if note else []
    if not test:
        test = [answer for answer in answers if answer.item in held_out]
        notes.append("No held-out answer is of a random trial: the scores hold only for the triplets that were chosen.")
    learn = [answer for answer in answers if answer.item not in held_out]
    checked_files(study, (items[item] for item in votes))
    known, asked = tally(learn, study), tally(test, study)
    train_part, test_part = (
        cached_pool(network, TripletDataset(triplets_of(study, some), study.folder, size), cache)
        for some in (known, asked)
    )
    groups = related(study, (items[item] for item in asked))
    counts = torch.tensor([sum(pair) for pair in known.values()])
    return _Data(train_part, test_part, counts, groups, learn, test, list(asked)), notes


def _learning_curve(
    data: _Data,
    start: Mapping[str, Tensor],
    seed: int,
    full: float,
    fractions: Sequence[float],
    report: Callable[[str, int, int], None] | None,
) -> list[Point]:
    """Held-out score against the number of judgments: random parts of the training triplets, with all their votes."""
    votes = data.votes
    counts = sorted({max(_FEWEST, round(part * len(votes))) for part in fractions})
    counts = [count for count in counts if count < len(votes)]
    points = []
    for step, count in enumerate(counts):
        judgments, scores = 0, []
        for chosen in _parts(len(votes), count, seed):
            weights = fit_map(data.train.subset(chosen), start, votes[chosen])
            scores.append(float(two_afc_score(*data.held_out.distances(weights), data.held_out.judge)))
            judgments += int(votes[chosen].sum())
        points.append(Point(round(judgments / _REPETITIONS), count, scores))
        if report is not None:
            report("learning curve", step + 1, len(counts))
    return [*points, Point(int(votes.sum()), len(votes), [full])]


def _parts(total: int, count: int, seed: int) -> Iterator[Tensor]:
    for repetition in range(_REPETITIONS):
        generator = torch.Generator().manual_seed(1000 * seed + repetition)
        yield torch.randperm(total, generator=generator)[:count]


def _record(
    study: Study, data: _Data, comparison: Comparison, ceiling: Estimate, curve: Sequence[Point]
) -> dict[str, Any]:
    """What is stored with a calibration."""
    from datetime import date

    used = [*data.train_answers, *data.held_out_answers]
    return {
        "mode": "lin",
        "fit": "most probable weights around the official calibration",
        "study": {"title": study.design.title, "test": study.design.test, "digest": study_digest(study)},
        "judgments": len(used),
        "judgments_train": len(data.train_answers),
        "judgments_held_out": len(data.held_out_answers),
        "observers": len({answer.observer for answer in used}),
        "simulated": simulation_note(used) or None,
        "excluded": len(study.answers()) - len(used),
        "triplets": len(data.train),
        "grouped_by": related_by(study),
        "held_out_items": list(data.held_out_items),
        "scores": {"held-out": comparison.record()},
        "ceiling": list(ceiling) if ceiling.known else None,
        "gain_within_noise": _is_within_noise(comparison),
        "learning_curve": [[point.judgments, point.triplets, list(point.scores)] for point in curve],
        "date": date.today().isoformat(),
        "lpips_lightning": __version__,
    }


def _is_within_noise(comparison: Comparison) -> bool:
    return comparison.difference.low <= 0 <= comparison.difference.high


def _verdict(comparison: Comparison) -> list[str]:
    gain = comparison.difference
    if gain.low > 0:
        return ["The gain is beyond the noise: its interval is above 0."]
    if gain.high < 0:
        return ["Worse than the official calibration: the interval of the gain is below 0. Use the official one."]
    return [
        "WARNING: the gain is within the noise: its interval contains 0. These judgments do not tell whether the"
        " calibration is better than the official one; collect more."
    ]


def _ceiling_text(ceiling: Estimate) -> str:
    if not ceiling.known:
        return "      -   (no held-out triplet has two votes)"
    interval = f"   (95 %: {100 * ceiling.low:.2f} to {100 * ceiling.high:.2f})" if math.isfinite(ceiling.low) else ""
    return f"{100 * ceiling.value:7.2f}{interval}"
