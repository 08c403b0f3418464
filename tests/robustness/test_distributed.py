"""One, two and four gloo processes give the number of one, however samples are dealt out; an error ends them all."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import forked_python
import pytest
import sharding as dealt
import subprocess_jobs as workers
import torch
from sharding import COUNT, Job, Validation
from torch.multiprocessing import ProcessRaisedException

from lpips_lightning import LearnedPerceptualImagePatchSimilarity as Metric
from lpips_lightning.metrics.diversity import LPIPSDiversity
from lpips_lightning.metrics.judgments import HumanCeiling, JNDScore, TwoAFCScore
from lpips_lightning.metrics.temporal import TemporalLPIPS

TOLERANCE = 1e-6
SLOW = pytest.mark.slow
# 2026-11-21, pytorch_lightning/trainer/connectors/data_connector.py: its advice on loaders.
pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers")


@pytest.fixture(scope="module")
def columns(pair):
    """Samples of every kind: images, videos, masks, groups, judgments."""
    generator = torch.Generator().manual_seed(5)
    x, y = pair(COUNT, 48, 40)
    video_x, video_y = (image.view(COUNT, 2, 3, 32, 32) for image in pair(2 * COUNT, 32, 32))
    mask = torch.zeros(COUNT, 1, 48, 40, dtype=torch.bool)
    for number in range(1, COUNT):  # of the first nothing is left
        mask[number, :, : 6 * number] = True
    d0, d1 = ((torch.rand(COUNT, generator=generator) * 6).round() / 6 for _ in range(2))
    return {
        "images": {"preds": x, "target": y},
        "videos": {"preds": video_x, "target": video_y},
        "masked": {"preds": x, "target": y, "mask": mask},
        "groups": {"images": torch.stack([pair(3, 32, 32, seed=seed)[0] for seed in range(COUNT)])},
        "2afc": {"d0": d0, "d1": d1, "judge": torch.rand(COUNT, generator=generator)},
        "human": {"judge": torch.rand(COUNT, generator=generator)},
        "jnd": {"distances": d0, "same": torch.rand(COUNT, generator=generator)},
    }


def metrics(whole):
    """Kinds of samples, and metrics for them: those that keep different things, or all."""
    few = [
        ("images", Metric("embedded")),
        ("images", Metric("embedded", "none", per_layer=True)),
        ("images", Metric("embedded", "none", spatial=True)),
        ("videos", Metric("embedded")),
        ("masked", Metric("embedded", "sum", per_layer=True)),
        ("groups", LPIPSDiversity("embedded")),
        ("videos", TemporalLPIPS("embedded")),
        ("2afc", TwoAFCScore()),
        ("human", HumanCeiling()),
        ("jnd", JNDScore()),
    ]
    more = [
        ("images", Metric("embedded", "sum")),
        ("images", Metric("embedded", "none")),
        ("images", Metric("embedded", per_layer=True)),
        ("images", Metric("embedded", spatial=True)),
        ("videos", Metric("embedded", per_layer=True)),
        ("videos", Metric("embedded", "none")),
        ("masked", Metric("embedded")),
    ]
    return few + more * whole


def all_jobs(columns, world_size, whole):
    """Metrics over every way to deal out, with numbers and without; padded ones with numbers only.

    All of them for four processes, and a third for one and two, unless `whole`.
    """
    ways = dealt.shards(world_size)
    asked = [(name, shards, False) for name, shards in ways.items()]
    asked += [(name, shards, True) for name, shards in ways.items() if whole or name == "uneven"]
    asked += [
        (f"padded {count} {'shuffled' if shuffle else 'in order'}", dealt.padded(world_size, count, shuffle), True)
        for count, shuffle in ((7, False), (5, True), (1, False))
    ]
    jobs = []
    for kind, metric in metrics(whole):
        no_numbers = getattr(metric, "spatial", False) and metric.reduction != "none"  # it keeps no single map
        for name, shards, numbered in asked:
            if not (numbered and no_numbers):
                title = f"{kind}, {metric.__class__.__name__}, {name}, {numbered=}"
                jobs.append(Job(title, metric.clone(), columns[kind], shards, numbered))
    return jobs if whole or world_size == 4 else jobs[::3]


def differences(name, found, expected):
    """Sentences; none where they are equal."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), name
        return [said for key in expected for said in differences(f"{name} {key}", found[key], expected[key])]
    found, expected = torch.as_tensor(found), torch.as_tensor(expected)
    if found.shape == expected.shape and torch.allclose(
        found, expected, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True
    ):
        return []
    return [f"{name}: {found} instead of {expected}"]


def all_validations(world_size):
    shards = dealt.shards(world_size)
    return [
        Validation("sampler", "scores", (7, 5)),
        Validation("single", "scores", (1, 2)),
        Validation("uneven", "scores", (COUNT, 5), shards["uneven"]),
        Validation("empty", "scores", (COUNT, 5), shards["all but the first empty"]),
        Validation("judged", "judged", (13, 9)),
        Validation("judged_uneven", "judged", (COUNT, 9), shards["uneven"]),
        Validation("judged_empty", "judged", (COUNT, 9), shards["all but the last empty"]),
    ]


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=SLOW)])
@pytest.mark.parametrize("world_size", [pytest.param(1, marks=SLOW), 2, pytest.param(4, marks=SLOW)])
def test_any_way_to_deal_out_gives_the_numbers_of_one_process(world_size, whole, tmp_path, columns):
    jobs, validations = all_jobs(columns, world_size, whole), all_validations(world_size)
    assert len(jobs) == (17 * 6 + 16 * 9 if whole else 10 * 10 if world_size == 4 else 34)
    expected = [job.alone() for job in jobs]
    alone = [one.alone(f"{tmp_path}/alone/{one.name}") for one in validations]
    ranks = workers.run(workers.scores_over_ranks, world_size, tmp_path, world_size, str(tmp_path), jobs, validations)
    wrong = []
    for rank, (found, validated) in enumerate(ranks):
        for job, value, wanted in zip(jobs, found, expected, strict=True):
            wrong += differences(f"rank {rank}: {job.name}", value, wanted)
        for one, value, wanted in zip(validations, validated, alone, strict=True):
            wrong += differences(f"rank {rank}: Trainer, {one.name}", value, wanted)
    assert not wrong, "\n".join(wrong)
    check_table_and_gallery(tmp_path / "sampler", tmp_path / "alone" / "sampler")


def check_table_and_gallery(folder, alone):
    """A row a image, and the same images, pixel by pixel, as one process writes."""
    numbers, expected = (
        torch.tensor([[float(cell) for cell in row.split(",")] for row in file.read_text().splitlines()[1:]])
        for file in (one / "val" / "scores_step_00000000.csv" for one in (folder, alone))
    )
    assert len(numbers) == 7 + 5
    assert torch.allclose(numbers, expected, rtol=TOLERANCE, atol=TOLERANCE)
    names = sorted(path.name for path in (alone / "val" / "gallery").iterdir())
    assert len(names) == 8  # the sheet too, as PNG and PDF
    assert names == sorted(path.name for path in (folder / "val" / "gallery").iterdir())
    for name in names:
        assert (folder / "val" / "gallery" / name).read_bytes() == (alone / "val" / "gallery" / name).read_bytes()


def test_an_error_before_the_sync_ends_the_ranks_that_wait(tmp_path, columns):
    with pytest.raises(ProcessRaisedException, match=r"rank 1(?s:.)*preds: expected values on \[-1, 1\]"):
        workers.run(workers.raise_before_the_sync, 2, tmp_path, Metric("embedded"), columns["images"]["preds"])


@pytest.mark.parametrize(
    ("stage", "rank"),
    [
        ("training", 1),
        pytest.param("training", 0, marks=SLOW),
        pytest.param("validation", 0, marks=SLOW),
        pytest.param("validation", 1, marks=SLOW),
    ],
)
def test_an_error_in_a_step_of_one_rank_ends_the_run_with_it(tmp_path, stage, rank):
    script = Path(__file__).parents[1] / "_helpers" / "subprocess_jobs.py"
    # Without wandb's: an old one leaves the address of its server there, at which a new process waits when it ends.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    environment = {**inherited, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    with (tmp_path / "said").open("w") as said:
        output = {"stdout": said, "stderr": said}
        done = forked_python.run([script, tmp_path, rank, stage], env=environment, start_new_session=True, **output)
    try:
        workers.wait_until(lambda: not is_alive(done.pid))  # the other ranks are of its group
    finally:
        if is_alive(done.pid):
            os.killpg(done.pid, signal.SIGKILL)
    assert done.returncode != 0
    assert f"ValueError: the {stage} step of rank {rank} went wrong" in (tmp_path / "said").read_text()


def is_alive(group):
    """Whether a process group has processes."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
