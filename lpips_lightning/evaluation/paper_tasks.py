"""The paper's Table 4: whether networks that are good at semantic tasks agree with people, too.

Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", arXiv:1801.03924v2, Table 4:
Pearson's correlation, over networks, of the 2AFC score, the JND precision, and the mAP on PASCAL after fine-tuning.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics.functional import spearman_corrcoef

from lpips_lightning.functional.judgments import bootstrap_interval

TASKS = ("2AFC", "JND", "classification", "detection")

PAPER_TABLE_4: dict[tuple[str, str], float] = {
    ("2AFC", "JND"): 0.928,
    ("2AFC", "classification"): 0.640,
    ("2AFC", "detection"): 0.363,
    ("JND", "classification"): 0.612,
    ("JND", "detection"): 0.232,
    ("classification", "detection"): 0.429,
}
"""The paper's correlations."""

PASCAL: dict[str, tuple[float, float | None]] = {
    "AlexNet": (79.9, 56.8),
    "Gaussian": (53.3, 43.4),
    "Autoencoder": (53.8, 41.9),
    "K-means": (56.6, 45.6),
    "Egomotion": (54.2, 43.9),
    "Tracking": (63.1, 47.2),
    "Context": (65.3, 51.1),
    "Inpainting": (56.5, 44.5),
    "BiGAN": (60.1, 46.9),
    "Audio": (61.3, None),
    "Colorization": (65.9, 46.9),
    "Watching": (61.0, 52.2),
    "Split-Brain": (67.1, 46.7),
    "Puzzle": (67.6, 53.2),
}
"""mAP in per cent of fine-tuned AlexNets on PASCAL VOC: classification and detection, by the name in `TABLE_5`.

As collected in Zhang, Isola, Efros, "Split-Brain Autoencoders", CVPR 2017, its table of task generalization on PASCAL
(arXiv:1611.09842), and in Pathak et al., "Learning Features by Watching Objects Move", CVPR 2017 (arXiv:1612.06370).
"""

PRINTED_2AFC: dict[str, float] = {
    "Gaussian": 70.6,
    "K-means": 74.8,
    "Watching": 73.6,
    "Split-Brain": 75.5,
    "Puzzle": 76.8,
    "BiGAN": 76.4,
    "AlexNet": 76.8,
}
"""The paper's mean 2AFC scores on its two sets of distortions, in per cent: column "All" of Table 5.

These are all networks of `PASCAL` in that table. It prints no JND precision.
"""

_FEWEST = 3  # two points always correlate perfectly


@dataclass(frozen=True)
class TaskCorrelation:
    """One row of Table 4.

    Attributes:
        tasks: Two of `TASKS`.
        paper: The paper's correlation.
        printed: That of the numbers which the paper prints, over the networks of `PRINTED_2AFC`; None without numbers.
        ours: That of our scores; None for fewer than three networks.
        count: Number of networks behind `ours`.
    """

    tasks: tuple[str, str]
    paper: float
    printed: float | None
    ours: float | None
    count: int


def task_correlations(two_afc: Mapping[str, float], jnd: Mapping[str, float]) -> list[TaskCorrelation]:
    """Table 4 from the numbers that the paper prints, and from our own scores.

    Args:
        two_afc: Our 2AFC scores, by the network's name in `PASCAL`.
        jnd: Our JND precision, by the same names.

    Returns:
        The rows of `PAPER_TABLE_4`.

    Example:
        >>> rows = task_correlations({}, {})
        >>> [round(row.printed, 3) for row in rows if row.printed is not None]
        [0.707, 0.592, 0.842]
    """
    semantic: list[Mapping[str, float]] = [{name: row[0] for name, row in PASCAL.items()}]
    semantic.append({name: row[1] for name, row in PASCAL.items() if row[1] is not None})
    printed = _columns(PRINTED_2AFC, {}, semantic, PRINTED_2AFC)
    ours = _columns(two_afc, jnd, semantic, {**two_afc, **jnd})
    rows = []
    for tasks, paper in PAPER_TABLE_4.items():
        first, other = (ours[task] for task in tasks)
        count = len(first.keys() & other.keys())
        rows.append(TaskCorrelation(tasks, paper, _correlate(*(printed[task] for task in tasks)), None, count))
        if count >= _FEWEST:
            rows[-1] = TaskCorrelation(tasks, paper, rows[-1].printed, _correlate(first, other), count)
    return rows


@dataclass(frozen=True)
class Correlation:
    """Correlation of two scores over methods, with 95 % bootstrap intervals over methods.

    Attributes:
        pearson: Pearson's correlation, and the ends of its interval.
        spearman: Spearman's rank correlation, and the ends of its interval.
        count: Number of methods.
    """

    pearson: tuple[float, float, float]
    spearman: tuple[float, float, float]
    count: int


def correlation(first: Mapping[str, float], other: Mapping[str, float], resamples: int = 1000) -> Correlation | None:
    """Correlation of two scores over the methods that have both.

    Args:
        first: Scores by method.
        other: Other scores by method.
        resamples: Bootstrap resamples.

    Returns:
        The correlations; None for fewer than three methods, or if all of them have equal scores.
    """
    names = [name for name in first if name in other]
    x, y = (torch.tensor([scores[name] for name in names], dtype=torch.float64) for scores in (first, other))
    if len(names) < _FEWEST or bool((x == x[0]).all()) or bool((y == y[0]).all()):
        return None
    found = []
    for function in (_pearson, _spearman):
        found.append((float(function(x, y)), *bootstrap_interval(function, x, y, resamples=resamples)))
    return Correlation(found[0], found[1], len(names))


def _columns(
    two_afc: Mapping[str, float],
    jnd: Mapping[str, float],
    semantic: list[Mapping[str, float]],
    networks: Mapping[str, float],
) -> dict[str, dict[str, float]]:
    """Scores by task, then by network."""
    columns = dict(zip(TASKS, (two_afc, jnd, *semantic), strict=True))
    return {task: {name: scores[name] for name in networks if name in scores} for task, scores in columns.items()}


def _correlate(first: Mapping[str, float], other: Mapping[str, float]) -> float | None:
    names = [name for name in first if name in other]
    if len(names) < _FEWEST:
        return None
    columns = [torch.tensor([scores[name] for name in names], dtype=torch.float64) for scores in (first, other)]
    return float(_pearson(*columns))


def _pearson(x: Tensor, y: Tensor) -> Tensor:
    return torch.corrcoef(torch.stack([x, y]))[0, 1]


def _spearman(x: Tensor, y: Tensor) -> Tensor:
    return torch.as_tensor(spearman_corrcoef(x, y))
