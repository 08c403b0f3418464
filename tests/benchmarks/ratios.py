"""Print the ratios of a results file, with the goals beside them.

python tests/benchmarks/ratios.py tests/benchmarks/results/MACHINE.json [--by cpu|wall]
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PEERS = ("lpips", "torchmetrics", "piq")
FASTER = {"alex": 1.5, "vgg": 1.6, "squeeze": 2.7}  # than the fastest peer, in float32 from 8x128 up
OVER_FLOOR = {"forward": 1.05, "step": 1.08}
ON_GPU = {("vgg", "bf16"): 5.0, ("alex", "bf16"): 3.0, ("vgg", "fp32"): 1.5, ("alex", "fp32"): 1.5}


@dataclass(frozen=True)
class Check:
    """One number and what it should be.

    Attributes:
        what: The case.
        value: Measured.
        goal: None where none was set.
        at_least: Whether `value` should be at least the goal; else at most.
        unit: Behind both numbers.
    """

    what: str
    value: float
    goal: float | None = None
    at_least: bool = True
    unit: str = "x"

    @property
    def met(self) -> bool | None:
        if self.goal is None:
            return None
        return self.value >= self.goal if self.at_least else self.value <= self.goal

    def __str__(self) -> str:
        goal = "" if self.goal is None else f"{'>=' if self.at_least else '<='} {self.goal:g}{self.unit}"
        verdict = {True: "met", False: "NOT MET", None: ""}[self.met]
        return f"{self.what:<62} {self.value:>9.4g}{self.unit:<4} {goal:>12}  {verdict}"


class Rows:
    """A results file by case.

    Args:
        data: As `results.Results` writes it.
        by: ``"cpu"`` or ``"wall"``: which seconds count.
    """

    def __init__(self, data: dict, by: str) -> None:
        self.data, self.by = data, by

    def cases(self, part: str) -> dict[tuple, dict[tuple[str, str], dict]]:
        """Rows of a part by (net, batch, side, work) and (contender, setting)."""
        found: dict[tuple, dict[tuple[str, str], dict]] = {}
        for row in self.data.get(part, []):
            case = (row["net"], row["batch"], row["side"], row["work"])
            found.setdefault(case, {})[row["contender"], row["setting"]] = row
        return found

    def ratio(self, slow: dict, fast: dict) -> float:
        """Median over rounds of the seconds of one over those of the other in the same round."""
        rounds = zip(slow[f"rounds_{self.by}_s"], fast[f"rounds_{self.by}_s"], strict=True)
        return statistics.median(a / b for a, b in rounds)

    def fastest_peer(self, rows: dict[tuple[str, str], dict], setting: str) -> dict | None:
        peers = [rows[peer, setting] for peer in PEERS if (peer, setting) in rows]
        return min(peers, key=lambda row: row[f"{self.by}_s"], default=None)


def checks(data: dict, by: str) -> dict[str, list[Check]]:
    """Every ratio that the results hold, by heading."""
    rows = Rows(data, by)
    cpu = data["machine"]["device"] == "cpu"
    speed = _cpu_speed(rows) if cpu else _gpu_speed(rows)
    parts = {**speed, "memory": _memory(rows), "huge images": _huge(rows), "all pairs": _pairs(rows)}
    parts["head kernel"] = [
        Check(
            f"{row['net']} {row['shape']} {row['dtype']} {row['kernel']}, of a copy's bandwidth",
            row["fraction"],
            0.6 if row["shape"] == "all layers" else None,
            unit="",
        )
        for row in data.get("head", [])
    ]
    return {heading: found for heading, found in parts.items() if found}


def _cpu_speed(rows: Rows) -> dict[str, list[Check]]:
    faster, floor, half = [], [], []
    amx = "amx_bf16" in rows.data["machine"]["cpu_flags"]
    for case, found in rows.cases("timing").items():
        net, _, side, work = case
        peer = rows.fastest_peer(found, "fp32")
        if peer and ("ours", "fp32") in found:
            goal = FASTER.get(net) if side >= 128 else 1.0
            faster.append(Check(_said(case, peer), rows.ratio(peer, found["ours", "fp32"]), goal))
        floor += _over_floor(rows, case, found, "fp32", OVER_FLOOR[work])
        floor += _over_floor(rows, case, found, "bf16", None)
        if peer and ("ours", "bf16") in found:
            goal = 5.0 if amx and work == "step" else None
            half.append(Check(_said(case, peer), rows.ratio(peer, found["ours", "bf16"]), goal))
            half += _quality(_said(case), found["ours", "bf16"])
    return {
        "float32, times faster than the fastest peer": faster,
        "over the floor": floor,
        f"bfloat16 backbone against the fastest peer in float32 ({'AMX' if amx else 'no AMX here: no goal'})": half,
    }


def _gpu_speed(rows: Rows) -> dict[str, list[Check]]:
    headings: dict[str, list[Check]] = {}
    for case, found in rows.cases("timing").items():
        net, batch, side, work = case
        here = (batch, side, work) == (16, 256, "step")
        for setting in ("fp32", "tf32", "bf16", "fp16"):
            peer, ours = rows.fastest_peer(found, setting), found.get(("ours", setting))
            if peer and ours:
                goal = ON_GPU.get((net, "fp32")) if here and setting in ("fp32", "tf32") else None
                headings.setdefault(f"{setting}, times faster than the fastest peer", []).append(
                    Check(_said(case, peer), rows.ratio(peer, ours), goal)
                )
            headings.setdefault("over the floor", []).extend(_over_floor(rows, case, found, setting, None))
        documented = found.get(("lpips", "tf32"))  # PyTorch's own default, without autocast
        if documented and ("ours", "bf16") in found:
            goal = ON_GPU.get((net, "bf16")) if here else None
            value = rows.ratio(documented, found["ours", "bf16"])
            headings.setdefault("ours under bf16 autocast, against lpips as documented", []).append(
                Check(_said(case), value, goal)
            )
            headings["ours under bf16 autocast, against lpips as documented"] += _quality(
                _said(case), found["ours", "bf16"]
            )
    return headings


def _over_floor(rows: Rows, case: tuple, found: dict, setting: str, goal: float | None) -> Iterator[Check]:
    if ("ours", setting) in found and ("floor", setting) in found:
        value = rows.ratio(found["ours", setting], found["floor", setting])
        yield Check(f"{_said(case)}, {setting}", value, goal, at_least=False)


def _quality(what: str, row: dict) -> Iterator[Check]:
    yield Check(f"{what}: relative error of d", row["distance_error"], 1e-2, at_least=False, unit="")
    if "gradient_cosine" in row:
        yield Check(f"{what}: cosine of the gradient", row["gradient_cosine"], 0.98, unit="")


def _memory(rows: Rows) -> list[Check]:
    found = []
    for case, by_contender in rows.cases("memory").items():
        ours, theirs = by_contender.get(("ours", "fp32")), by_contender.get(("lpips", "fp32"))
        if ours and theirs and case[2] < 2048:
            goal = 0.25 if case == ("vgg", 4, 256, "step") else None
            ratio = ours["peak_mib"] / theirs["peak_mib"]
            mib = f", {ours['peak_mib']:.0f} of {theirs['peak_mib']:.0f} MiB (lpips)"
            found.append(Check(_said(case) + mib, ratio, goal, at_least=False))
    return found


def _huge(rows: Rows) -> list[Check]:
    found = []
    # Both images counted in: the goals speak of everything above the weights.
    goals = {(2048, "forward"): 400.0, (4096, "forward"): 800.0, (2048, "step"): 2048.0}
    slower = {(2048, "forward"): 1.05, (2048, "step"): 1.7}
    for case, by_contender in rows.cases("memory").items():
        net, _, side, work = case
        for (name, setting), row in by_contender.items() if side >= 2048 else ():
            goal = goals.get((side, work)) if (net, name, setting) == ("vgg", "ours", "fp32") else None
            total = row["peak_mib"] + row["inputs_mib"]
            found.append(Check(f"{_said(case)}, {name} {setting}, with the images", total, goal, False, " MiB"))
        ours, whole = by_contender.get(("ours", "fp32")), by_contender.get(("ours whole", "fp32"))
        if ours and whole:
            ratio = ours[f"once_{rows.by}_s"] / whole[f"once_{rows.by}_s"]
            goal = slower.get((side, work)) if net == "vgg" else None
            found.append(Check(f"{_said(case)}, time over that without bounds", ratio, goal, at_least=False))
    return found


def _pairs(rows: Rows) -> list[Check]:
    found = []
    for case, by_contender in rows.cases("pairwise").items():
        net, count, side, _ = case
        ours, theirs = by_contender["ours", "fp32"], by_contender["lpips", "fp32"]
        what = f"{net}, {count} images of {side}"
        goal = 20.0 if net in ("alex", "vgg") and count == 64 else None
        found.append(Check(f"{what}, times faster", theirs[f"{rows.by}_s"] / ours[f"{rows.by}_s"], goal))
        passes = f"{what}, backbone passes (lpips: {theirs['backbone_passes']})"
        found.append(Check(passes, ours["backbone_passes"], float(count), at_least=False, unit=""))
    return found


def _said(case: tuple, peer: dict | None = None) -> str:
    net, batch, side, work = case
    return f"{net} {batch}x{side} {work}" + (f" ({peer['contender']})" if peer else "")


def main() -> None:
    """Print every ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--by", choices=("cpu", "wall"), help="which seconds; default: cpu on a CPU, wall on a GPU")
    args = parser.parse_args()
    data = json.loads(args.results.read_text())
    by = args.by or ("cpu" if data["machine"]["device"] == "cpu" else "wall")
    found = checks(data, by)
    for heading, some in found.items():
        print(f"\n{heading}" + ("" if heading in ("memory", "head kernel") else f" ({by} time)"))
        for check in some:
            print(f"  {check}")
    judged = [check for some in found.values() for check in some if check.met is not None]
    print(f"\n{sum(bool(check.met) for check in judged)} of {len(judged)} goals met")


if __name__ == "__main__":
    main()
