"""Results as Markdown and as a image. `run.py` writes them; this does it again from the JSON.

python tests/benchmarks/report.py tests/benchmarks/results/MACHINE.json
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # the checkout
sys.path.insert(0, str(Path(__file__).parents[1]))  # tests/

from benchmarks.ratios import PEERS, Rows, checks
from lpips_lightning.io.atomic import atomic_write

COLUMNS = ("floor", "ours", *PEERS)


def write_report(data: dict, path: Path) -> None:
    """Write `path` (.md), and the image beside it (.png) if there are timings.

    Args:
        data: As `results.Results` writes it.
        path: The Markdown.
    """
    by = "cpu" if data["machine"]["device"] == "cpu" else "wall"
    image = path.with_suffix(".png")
    if data.get("timing"):
        with atomic_write(image) as file:
            _draw(data, by, file)
    with atomic_write(path) as file:
        file.write_text("\n".join(_markdown(data, by, image.name if data.get("timing") else None)) + "\n")


def _markdown(data: dict, by: str, image: str | None) -> list[str]:
    machine = data["machine"]
    dates = sorted({row["date"] for part in data.values() if isinstance(part, list) for row in part})
    lines = [f"# {machine.get('gpu') or machine['cpu']}", ""]
    lines += ["Written by `tests/benchmarks/run.py`; the rounds are in the JSON beside it.", ""]
    lines += [f"- {key}: {_plain(value)}" for key, value in machine.items()]
    lines += [f"- measured: {', '.join(dates)}", *_other_versions(data), ""]
    if image:
        lines += [f"![Seconds over those of the bare convolutions]({image})", ""]
    lines += _timings(data, by)
    lines += _memory(data)
    for heading, found in checks(data, by).items():
        lines += [f"## {heading[0].upper()}{heading[1:]}", "", "| case | measured | goal | |", "|---|---|---|---|"]
        for check in found:
            goal = "" if check.goal is None else f"{'>=' if check.at_least else '<='} {check.goal:g}{check.unit}"
            verdict = {True: "met", False: "**not met**", None: ""}[check.met]
            lines.append(f"| {check.what} | {check.value:.4g}{check.unit} | {goal} | {verdict} |")
        lines.append("")
    return lines


def _other_versions(data: dict) -> list[str]:
    """Cases that were measured with other versions than those above."""
    found: dict[str, list[str]] = {}
    for part, rows in data.items():
        for row in rows if part != "machine" else ():
            if "other_versions" in row:
                which = ", ".join(f"{name} {value}" for name, value in sorted(row["other_versions"].items()))
                case = f"{part} {row['net']} {row['batch']}x{row['side']} {row['work']}"
                found.setdefault(which, []).append(case)
    return [f"- with {which}: {', '.join(dict.fromkeys(cases))}" for which, cases in found.items()]


def _plain(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _timings(data: dict, by: str) -> list[str]:
    cases = Rows(data, by).cases("timing")
    settings = list(dict.fromkeys(setting for rows in cases.values() for _, setting in rows))
    lines = []
    for setting in settings:
        lines += [f"## Milliseconds, {setting}: wall / CPU, medians", ""]
        lines += [f"| case | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
        for (net, batch, side, work), rows in cases.items():
            cells = [rows.get((name, setting)) for name in COLUMNS]
            if any(cells):
                shown = (f"{1e3 * row['wall_s']:.4g} / {1e3 * row['cpu_s']:.4g}" if row else "" for row in cells)
                lines.append(f"| {net} {batch}x{side} {work} | {' | '.join(shown)} |")
        lines.append("")
    return lines


def _memory(data: dict) -> list[str]:
    lines = []
    if data.get("memory"):
        lines += ["## Peak memory of one call, MiB above network and images, in a fresh process", ""]
        lines += ["| case | contender | peak | images | wall s, first call |", "|---|---|---|---|---|"]
        for row in data["memory"]:
            case = f"{row['net']} {row['batch']}x{row['side']} {row['work']}"
            lines.append(
                f"| {case} | {row['contender']} {row['setting']} | {row['peak_mib']} | {row['inputs_mib']} | "
                f"{row['once_wall_s']:.3g} |"
            )
        lines.append("")
    return lines


def _draw(data: dict, by: str, path: Path) -> None:
    from matplotlib.figure import Figure  # no pyplot: no global state, no window

    rows = Rows(data, by)
    # On a GPU the default of PyTorch, on a CPU the only one that everybody has.
    setting = "fp32" if data["machine"]["device"] == "cpu" else "tf32"
    figure = Figure(figsize=(11, 7), layout="constrained")
    panels = figure.subplots(2, 1)
    for axes, work in zip(panels, ("forward", "step"), strict=True):
        cases = {case: found for case, found in rows.cases("timing").items() if case[3] == work}
        shown = [case for case, found in cases.items() if ("floor", setting) in found]
        for name, kind in [("ours", setting), ("ours", "bf16"), *((peer, setting) for peer in PEERS)]:
            points = [
                (place, rows.ratio(cases[case][name, kind], cases[case]["floor", setting]))
                for place, case in enumerate(shown)
                if (name, kind) in cases[case]
            ]
            if points:
                style = {"zorder": 3, "s": 60} if name == "ours" else {"s": 30}
                axes.scatter(*zip(*points, strict=True), label=f"{name} {kind}", **style)
        axes.axhline(1, color="black", linewidth=0.8)
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
        axes.set_xticks(range(len(shown)), [f"{net}\n{n}x{side}" for net, n, side, _ in shown], fontsize=7)
        axes.set_ylabel(f"{by} time / bare convolutions")
        axes.set_title({"forward": "forward", "step": "loss step: forward and gradient"}[work])
        axes.grid(axis="y", which="both", alpha=0.3)
        if shown:
            axes.legend(fontsize=8, ncols=5)
    machine = data["machine"]
    figure.suptitle(f"{machine.get('gpu') or machine['cpu']}, {machine['threads']} threads, torch {machine['torch']}")
    figure.savefig(path, dpi=110, format="png")


def main() -> None:
    """Write the Markdown and the image beside a JSON."""
    parser = argparse.ArgumentParser(description="Write the Markdown and the image of a results file.")
    parser.add_argument("results", type=Path)
    args = parser.parse_args()
    write_report(json.loads(args.results.read_text()), args.results.with_suffix(".md"))


if __name__ == "__main__":
    main()
