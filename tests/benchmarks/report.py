"""Results as Markdown and as a figure. `run.py` writes them; this does it again from the JSON.

python tests/benchmarks/report.py tests/benchmarks/results/MACHINE.json
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))  # the checkout
sys.path.insert(0, str(Path(__file__).parents[1]))  # tests/

from benchmarks.ratios import PEERS, Rows, checks
from lpips_lightning.io.atomic import atomic_write
from lpips_lightning.io.figures import TEXT_SIZE, category_styles, fit_name, new_figure, save_figure

COLUMNS = ("floor", "ours", *PEERS)
_WORK = {"forward": "forward", "step": "loss step: forward and gradient"}
_TICKS = (0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 7, 10, 15, 20, 30, 50, 100)


def write_report(data: dict, path: Path) -> None:
    """Write `path` (.md), and the figure beside it (.png, .pdf) if there are timings.

    Args:
        data: As `results.Results` writes it.
        path: The Markdown.
    """
    by = "cpu" if data["machine"]["device"] == "cpu" else "wall"
    image = path.with_suffix(".png")
    if data.get("timing"):
        draw(data, by, image)
    with atomic_write(path) as file:
        file.write_text("\n".join(_markdown(data, by, image.name if data.get("timing") else None)) + "\n")


def _markdown(data: dict, by: str, image: str | None) -> list[str]:
    machine = data["machine"]
    dates = sorted({row["date"] for part in data.values() if isinstance(part, list) for row in part})
    lines = [f"# {machine.get('gpu') or machine['cpu']}", ""]
    lines += ["Written by `tests/benchmarks/run.py`; the rounds are in the JSON beside it.", ""]
    lines += [f"- {key}: {_plain(value)}" for key, value in machine.items()]
    lines += [f"- measured: {', '.join(dates)}", *_other_versions(data), *_weights(data), ""]
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


def _weights(data: dict) -> list[str]:
    """Backbone weights by network and part; time hardly depends on them, memory and deviations may."""
    found: dict[str, list[str]] = {}
    for part, rows in data.items():
        for row in rows if part != "machine" else ():
            found.setdefault(f"{row['net']} {row.get('weights', 'not recorded')}", []).append(part)
    return [f"- weights: {name} ({', '.join(dict.fromkeys(parts))})" for name, parts in found.items()]


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


def draw(data: dict, by: str, path: Path) -> list[Path]:
    """Draw the time of every contender over that of the bare convolutions: a panel per work, a row per case.

    Args:
        data: As `results.Results` writes it.
        by: ``"cpu"`` or ``"wall"``: which seconds count.
        path: The PNG; a PDF is written beside it.

    Returns:
        The files.
    """
    rows = Rows(data, by)
    # On a GPU the default of PyTorch, on a CPU the only one that everybody has.
    setting = "fp32" if data["machine"]["device"] == "cpu" else "tf32"
    cases = {case: found for case, found in rows.cases("timing").items() if ("floor", setting) in found}
    names = list(dict.fromkeys(case[:3] for case in cases))
    order = [("ours", setting), ("ours", "bf16"), *((peer, setting) for peer in PEERS)]
    contenders = [which for which in order if any(which in found for found in cases.values())]
    machine = data["machine"]
    about = f"{machine.get('gpu') or machine['cpu']}, {machine['threads']} threads, torch {machine['torch']}"
    with new_figure("text", 1.0 + 0.26 * max(len(names), 3)) as figure:
        panels = figure.subplots(1, 2, sharey=True)
        for axes, work in zip(panels, _WORK, strict=True):
            ratios = {
                (place, which): rows.ratio(found[which], found["floor", setting])
                for place, name in enumerate(names)
                for found in [cases.get((*name, work), {})]
                for which in contenders
                if which in found
            }
            _draw_ratios(axes, ratios, contenders, len(names))
            axes.set_title(_WORK[work])
        panels[0].set_yticks(range(len(names)), [f"{net} {batch}x{side}" for net, batch, side in names])
        panels[0].set_ylim(max(len(names), 1) - 0.5, -0.5)
        handles, labels = panels[0].get_legend_handles_labels()
        if handles:
            figure.legend(handles, labels, loc="outside upper right", ncols=len(labels), columnspacing=1.2)
        label = f"{'CPU' if by == 'cpu' else by} time / that of the bare convolutions"
        figure.supxlabel(f"{label}\n{fit_name(about, 6, TEXT_SIZE)}", fontsize=TEXT_SIZE)
        return save_figure(figure, path)


def _draw_ratios(axes: Any, ratios: dict[tuple[int, tuple[str, str]], float], contenders: list, rows: int) -> None:
    """Dots of all contenders in each row, one a little below the other."""
    for index, (which, style) in enumerate(zip(contenders, category_styles(len(contenders)), strict=True)):
        below = 0.84 * ((index + 0.5) / len(contenders) - 0.5)
        points = [(value, place + below) for (place, other), value in ratios.items() if other == which]
        label = " ".join(which)
        axes.plot(*np.reshape(points, (-1, 2)).T, style.marker, color=style.color, markersize=3, label=label)
    axes.axvline(1, color="black", linewidth=0.8, zorder=0)
    for row in range(1, rows, 2):
        axes.axhspan(row - 0.5, row + 0.5, color="0.94", linewidth=0, zorder=-1)
    shown = [1.0, *(ratio for ratio in ratios.values() if 0 < ratio < float("inf"))]
    low, high = 0.93 * min(shown), 1.07 * max(shown)
    axes.set(xscale="log", xlim=(low, high))
    ticks = [tick for tick in _TICKS if low <= tick <= high]
    axes.set_xticks([tick for tick in ticks if len(ticks) < 9 or tick in (0.1, 1, 10, 100)], minor=False)
    axes.set_xticks([], minor=True)
    axes.xaxis.set_major_formatter("{x:g}")


def main() -> None:
    """Write the Markdown and the image beside a JSON."""
    parser = argparse.ArgumentParser(description="Write the Markdown and the image of a results file.")
    parser.add_argument("results", type=Path)
    args = parser.parse_args()
    write_report(json.loads(args.results.read_text()), args.results.with_suffix(".md"))


if __name__ == "__main__":
    main()
