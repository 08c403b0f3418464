"""Checks of every metric against a reference: batch and epoch values, reset, copies, merging, processes.

A test module makes a `MetricCase` of each metric and runs every check of `CHECKS` on it:

    @pytest.mark.parametrize("check", CHECKS)
    def test_it_owes(check, case):
        CHECKS[check](case)
"""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
import torch
from sharding import COUNT, Job, shards
from torch import Tensor
from torchmetrics import Metric

Value = Tensor | dict[str, Tensor]
SPLITS = ((8,), (3, 5), (1, 1, 1, 1, 1, 1, 1, 1), (4, 0, 4))


@dataclass(frozen=True)
class MetricCase:
    """A metric with its reference.

    Attributes:
        make: A new metric.
        columns: What `update` takes, by argument; a row a sample, `COUNT` of them.
        reference: Takes rows of `columns`, by argument, and returns what `compute` owes for them.
        tolerance: Relative and absolute, of values against the reference.
    """

    make: Callable[[], Metric]
    columns: dict[str, Tensor]
    reference: Callable[..., Value]
    tolerance: float = 1e-5
    _owed: dict[tuple[int, int], Value] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        assert {len(column) for column in self.columns.values()} == {COUNT}

    def rows(self, start: int, stop: int) -> dict[str, Tensor]:
        return {name: column[start:stop] for name, column in self.columns.items()}

    def batches(self, split: tuple[int, ...]) -> Iterator[dict[str, Tensor]]:
        """All rows, in batches of these sizes."""
        assert sum(split) == COUNT
        for index, size in enumerate(split):
            start = sum(split[:index])
            yield self.rows(start, start + size)

    def made(self, start: int, stop: int) -> Metric:
        """A metric updated with these rows."""
        metric = self.make()
        metric.update(**self.rows(start, stop))
        return metric

    def check(self, found: Value, start: int = 0, stop: int = COUNT) -> None:
        """Check a value against the reference of these rows."""
        if (start, stop) not in self._owed:
            self._owed[start, stop] = self.reference(**self.rows(start, stop))
        assert_equal_values(found, self._owed[start, stop], self.tolerance)


def assert_equal_values(found: Value, expected: Value, tolerance: float) -> None:
    """Tensors, or dicts of tensors with the same keys in the same order; equal shapes, near values."""
    found, expected = (value if isinstance(value, dict) else {"": value} for value in (found, expected))
    assert list(found) == list(expected)
    for key, value in expected.items():
        assert found[key].shape == value.shape, key
        near = torch.allclose(found[key].double(), value.double(), rtol=tolerance, atol=tolerance)
        assert near, f"{key}: {found[key]} instead of {value}"


def check_batch_value(case: MetricCase) -> None:
    """`forward` returns the value of its batch only, and updates the state."""
    metric = case.make()
    case.check(metric(**case.rows(0, 5)), 0, 5)
    case.check(metric(**case.rows(5, COUNT)), 5, COUNT)
    case.check(metric.compute())


def check_epoch_value(case: MetricCase) -> None:
    """`compute` is the same for any split into batches, of which one may be empty."""
    for split in SPLITS:
        metric = case.make()
        for rows in case.batches(split):
            metric.update(**rows)
        case.check(metric.compute())


def check_reset(case: MetricCase) -> None:
    metric = case.made(0, COUNT)
    states = set(metric.metric_state)
    metric.compute()
    metric.reset()
    assert metric.update_count == 0 and set(metric.metric_state) == states
    metric.update(**case.rows(2, 5))
    case.check(metric.compute(), 2, 5)


def check_copies(case: MetricCase) -> None:
    """A copy or a pickle keeps the state, can be updated, and does not change the original."""
    metric = case.made(0, 3)
    for clone in (copy.deepcopy(metric), metric.clone(), pickle.loads(pickle.dumps(metric))):
        case.check(clone.compute(), 0, 3)
        clone.update(**case.rows(3, COUNT))
        case.check(clone.compute())
    case.check(metric.compute(), 0, 3)


def check_nothing_is_saved_or_trained(case: MetricCase) -> None:
    metric = case.made(0, COUNT)
    assert dict(metric.state_dict()) == {} and not list(metric.parameters()) and not list(metric.buffers())
    assert not any(state.requires_grad for state in metric.metric_state.values() if isinstance(state, Tensor))


def check_merge(case: MetricCase) -> None:
    """Metrics of parts of any size, empty ones too, merge to the metric of all samples."""
    parts = [case.made(0, 5), case.make(), case.made(5, COUNT)]
    whole = parts[-1]
    for part in reversed(parts[:-1]):
        whole.merge_state(part)
    case.check(whole.compute())


def check_saved_state(case: MetricCase) -> None:
    """A metric goes on from a saved state, which may be synchronized, and the saved state stays as it is."""
    for ranks in (None, _one_rank):
        metric, first, second = case.made(0, 3), case.make(), case.make()
        metric.persistent(True)
        with metric.sync_context(ranks, distributed_available=lambda available=ranks is not None: available):
            saved = metric.state_dict()
        first.load_state_dict(saved)
        first.update(**case.rows(3, COUNT))
        case.check(first.compute())
        first.reset()
        second.load_state_dict(saved)
        for one in (second, metric):
            one.update(**case.rows(3, COUNT))
            case.check(one.compute())


def _one_rank(state: Tensor, group: object = None) -> list[Tensor]:
    return [state]


class _Holder(torch.nn.Module):
    def __init__(self, metric: Metric) -> None:
        super().__init__()
        self.metric = metric

    def forward(self, images: Tensor) -> Tensor:
        return images + 1


def check_scripting(case: MetricCase) -> None:
    """A module that holds the metric can be scripted; the metric stays as it is."""
    metric = case.made(0, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated
        scripted = torch.jit.script(_Holder(metric))
    assert scripted(torch.zeros(1)) == 1
    case.check(metric.compute(), 0, 3)


def check_nothing_seen(case: MetricCase) -> None:
    """Without samples the result is NaN."""
    metric = case.make()
    with pytest.warns(UserWarning, match="compute.* was called before the .*update"):
        value = metric.compute()
    for one in value.values() if isinstance(value, dict) else [value]:
        assert not one.numel() or bool(one.isnan().all()) or metric.reduction == "sum", value


CHECKS = {name.removeprefix("check_"): check for name, check in list(globals().items()) if name.startswith("check_")}
assert len(CHECKS) == 9


def jobs_over_ranks(cases: dict[str, MetricCase], world_size: int) -> tuple[list[Job], list[MetricCase]]:
    """Each metric over equal, uneven and empty shards, for `subprocess_jobs.scores_over_ranks`; and its case."""
    ways = shards(world_size)
    asked = [(name, case, way) for name, case in cases.items() for way in ("equal", "uneven", "all but the last empty")]
    jobs = [Job(f"{name}, {way}", case.make(), case.columns, ways[way], False) for name, case, way in asked]
    return jobs, [case for _, case, _ in asked]
