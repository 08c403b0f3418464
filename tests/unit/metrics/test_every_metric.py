"""Every metric against its reference: batches, epochs, resets, copies, merging, two processes."""

from __future__ import annotations

from itertools import product

import pytest
import subprocess_jobs
import torch
from metric_harness import CHECKS, MetricCase, assert_equal_values, jobs_over_ranks
from references import slow_diversity, slow_jnd, slow_two_afc
from sharding import COUNT
from torchmetrics import Metric

from lpips_lightning import LPIPS
from lpips_lightning.functional import human_ceiling, learned_perceptual_image_patch_similarity, rank_flip_rate
from lpips_lightning.metrics import (
    HumanCeiling,
    JNDScore,
    LearnedPerceptualImagePatchSimilarity,
    LPIPSDiversity,
    RankFlipRate,
    TemporalLPIPS,
    TwoAFCScore,
)

REDUCTIONS = ("mean", "sum", "none")
WHAT = {
    "distances": {},
    "maps": {"spatial": True},
    "layers": {"per_layer": True},
    "layer maps": {"spatial": True, "per_layer": True},
}
LPIPS_CASES = {
    f"{kind}, {what}, {reduction}": (kind, WHAT[what], reduction)
    for kind, what, reduction in [*product(("images", "videos"), WHAT, REDUCTIONS), ("images", "distances", None)]
}
OTHERS = ("plain mean", "diversity", "temporal", "2afc", "human", "jnd", "rank flips")


@pytest.fixture(scope="module")
def cases(backbones, pair):
    """Every metric in every way to reduce, by name."""
    weights = {"weights": backbones["squeeze"]}
    net = LPIPS("squeeze", **weights)
    columns = {}
    for kind, frames in (("images", 1), ("videos", 2)):
        x, y = pair(COUNT * frames, 32, 40)
        columns[kind] = [image if frames == 1 else image.view(COUNT, frames, 3, 32, 40) for image in (x, y)]

    def lpips(kind, options, reduction):
        def reference(preds, target):
            return learned_perceptual_image_patch_similarity(preds, target, net, reduction, **options)

        preds, target = columns[kind]
        return MetricCase(
            lambda: LearnedPerceptualImagePatchSimilarity(net, reduction, **options),
            {"preds": preds, "target": target},
            reference,
        )

    generator = torch.Generator().manual_seed(3)
    d0, d1, judge = (torch.rand(COUNT, generator=generator, dtype=torch.float64).mul(6).round() / 6 for _ in range(3))
    judge[2] = 1  # somebody saw no difference, in every part that is scored alone
    judge[6] = 0.5
    judged = {"2afc": {"d0": d0, "d1": d1, "judge": judge}, "human": {"judge": judge}}
    preds, target = columns["images"]
    return {
        **{name: lpips(*options) for name, options in LPIPS_CASES.items()},
        "plain mean": MetricCase(
            lambda: LearnedPerceptualImagePatchSimilarity("squeeze", **weights),
            {"preds": preds, "target": target},
            lambda preds, target: torch.stack(
                [net(x[None], y[None])[0] for x, y in zip(preds, target, strict=True)]
            ).mean(),
        ),
        "diversity": MetricCase(
            lambda: LPIPSDiversity("squeeze", **weights),
            {"images": torch.stack([pair(3, 32, 40, seed=seed)[0] for seed in range(COUNT)])},
            lambda images: slow_diversity(net, images),
        ),
        "temporal": MetricCase(
            lambda: TemporalLPIPS(net),
            dict(zip(("preds", "target"), columns["videos"], strict=True)),
            lambda preds, target: torch.stack(
                [slow_change(net, *rows) for rows in zip(preds, target, strict=True)]
            ).mean(),
        ),
        "2afc": MetricCase(TwoAFCScore, judged["2afc"], lambda **rows: torch.tensor(slow_two_afc(**rows)), 1e-6),
        "human": MetricCase(HumanCeiling, judged["human"], human_ceiling, 1e-12),
        "rank flips": MetricCase(
            RankFlipRate, {"d0": d0, "d1": d1, "shifted_d0": judge, "shifted_d1": d0.flip(0)}, rank_flip_rate, 1e-12
        ),
        "jnd": MetricCase(
            JNDScore, {"distances": d0, "same": judge}, lambda **rows: torch.tensor(slow_jnd(**rows)), 1e-6
        ),
    }


def slow_change(net, x, y):
    """tLP of two videos of two frames."""
    return (net(x[:1], x[1:]) - net(y[:1], y[1:])).abs()[0]


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", [*LPIPS_CASES, *OTHERS])
def test_every_metric_passes_the_harness(name, check, cases):
    CHECKS[check](cases[name])


def test_two_processes_give_the_reference_of_all_samples(cases, tmp_path):
    chosen = {name: case for name, case in cases.items() if name in OTHERS or name.startswith("images, layers")}
    assert len(chosen) == 10 and len(cases) == 32
    jobs, owed = jobs_over_ranks(chosen, 2)
    ranks = subprocess_jobs.run(subprocess_jobs.scores_over_ranks, 2, tmp_path, 2, str(tmp_path), jobs, [])
    assert len(jobs) == 30
    for found, _ in ranks:
        for value, case in zip(found, owed, strict=True):
            assert_equal_values(value, case.reference(**case.columns), case.tolerance)


class FaultyMean(Metric):
    """A mean with one fault."""

    full_state_update = False

    def __init__(self, fault):
        super().__init__()
        self.fault, self.hidden = fault, 0.0
        self.reduction = "mean"
        self.add_state("total", torch.tensor(0.0), None if fault == "merge" else "sum", fault == "saved")
        self.add_state("count", torch.tensor(0.0), "sum")

    def update(self, values):
        last = self.fault == "epoch" and self.count > 0
        self.total = self.total * (0 if last else 1) + values.sum()
        self.count = self.count * (0 if last else 1) + len(values)
        self.hidden += float(values.sum())

    def compute(self):
        if self.fault == "nothing":
            return self.total / self.count.clamp(min=1)
        return (torch.tensor(self.hidden) if self.fault == "reset" else self.total) / self.count

    def __getstate__(self):
        return super().__getstate__() | ({"total": torch.tensor(0.0)} if self.fault == "pickle" else {})


@pytest.mark.parametrize(
    ("fault", "caught_by"),
    [
        ("epoch", {"epoch_value", "copies", "saved_state"}),
        ("reset", {"batch_value", "merge", "reset", "saved_state"}),
        ("pickle", {"copies"}),
        ("saved", {"nothing_is_saved_or_trained"}),
        ("merge", {"batch_value", "merge"}),
        ("nothing", {"nothing_seen"}),
        (None, set()),
    ],
)
def test_each_fault_is_caught(fault, caught_by):
    values = {"values": torch.arange(COUNT, dtype=torch.float32).square()}
    case = MetricCase(lambda: FaultyMean(fault), values, lambda values: values.mean())
    caught = set()
    for name, check in CHECKS.items():
        try:
            check(case)
        except (AssertionError, ValueError, TypeError, RuntimeError, pytest.fail.Exception):
            caught.add(name)
    assert caught == caught_by
