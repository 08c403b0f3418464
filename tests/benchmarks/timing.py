"""Contenders in one process, round by round."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks.contenders import Contender, images

WARM_UP = 2
AGREEMENT = 1e-3  # between contenders in float32; the peers' epsilons differ


def time_case(
    contenders: Sequence[Contender],
    work: str,
    batch: int,
    side: int,
    device: torch.device,
    *,
    rounds: int,
    seconds: float,
) -> list[dict[str, object]]:
    """One row a contender: median wall and CPU seconds, every round's, and what it computed.

    Every round runs each contender once, so that what the machine does meanwhile meets all of them; who comes first
    moves on by one.

    Args:
        contenders: All on `device`.
        work: ``"forward"`` or ``"step"``.
        batch: Image pairs.
        side: Pixels.
        device: Where.
        rounds: At most so many ...
        seconds: ... and no new one after so long, but at least three (or `rounds`, if fewer). Before, two rounds to
            warm up, or one that takes a quarter of it.
    """
    pair = images(batch, side, device)
    inputs = {each.label: _prepared(each, work, pair) for each in contenders}
    start = time.perf_counter()
    for number in range(WARM_UP):
        if number and time.perf_counter() - start > seconds / 4:
            break
        for each in contenders:
            _timed(each, work, inputs[each.label])
    gc.collect()
    taken: dict[str, list[tuple[float, float]]] = {each.label: [] for each in contenders}
    start = time.perf_counter()
    for number in range(rounds):
        if number >= 3 and time.perf_counter() - start > seconds:
            break
        first = number % len(contenders)
        for each in (*contenders[first:], *contenders[:first]):
            taken[each.label].append(_timed(each, work, inputs[each.label]))
    rows = []
    for each in contenders:
        wall, cpu = zip(*taken[each.label], strict=True)
        rows.append(
            {
                "contender": each.name,
                "setting": each.setting,
                "wall_s": statistics.median(wall),
                "cpu_s": statistics.median(cpu),
                "rounds_wall_s": [round(value, 6) for value in wall],
                "rounds_cpu_s": [round(value, 6) for value in cpu],
            }
        )
    _add_numbers(rows, contenders, work, inputs)
    return rows


def _prepared(contender: Contender, work: str, pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    x, y = (contender.prepare(batch) for batch in pair)
    return x.clone().requires_grad_(work == "step"), y


def _timed(contender: Contender, work: str, inputs: tuple[Tensor, Tensor]) -> tuple[float, float]:
    inputs[0].grad = None
    _wait(inputs[0].device)
    wall, cpu = time.perf_counter(), time.process_time()
    contender.run(work, *inputs)
    _wait(inputs[0].device)
    return time.perf_counter() - wall, time.process_time() - cpu


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _add_numbers(
    rows: list[dict[str, object]],
    contenders: Sequence[Contender],
    work: str,
    inputs: dict[str, tuple[Tensor, Tensor]],
) -> None:
    """Mean distance; its error and the gradient's cosine to a peer in float32 (to ours where no peer knows the net).

    Raises:
        RuntimeError: If two contenders in float32 do not compute the same.
    """
    order = ("lpips", "torchmetrics", "piq", "ours")
    measured = [each for each in contenders if each.name != "floor"]
    found = {each.label: _number(each, work, inputs[each.label]) for each in measured}
    exact = [each for each in measured if each.setting == "fp32"]
    if not exact:
        return
    reference = min(exact, key=lambda each: order.index(each.name.split()[0]))
    distance, gradient = found[reference.label]
    for row, each in zip(rows, contenders, strict=True):
        if each.name == "floor":
            continue
        value, slope = found[each.label]
        row["distance"] = value
        row["distance_error"] = abs(value - distance) / distance
        if gradient is not None and slope is not None:
            row["gradient_cosine"] = float(torch.nn.functional.cosine_similarity(gradient, slope, dim=0))
        if each.setting == "fp32" and row["distance_error"] > AGREEMENT:
            raise RuntimeError(f"{each.name}: expected the distance of {reference.name}, {distance}, got {value}")


def _number(contender: Contender, work: str, inputs: tuple[Tensor, Tensor]) -> tuple[float, Tensor | None]:
    inputs[0].grad = None
    value = float(contender.run(work, *inputs).double().mean())
    gradient = inputs[0].grad
    return value, None if gradient is None else gradient.double().flatten().cpu()
