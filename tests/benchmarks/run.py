"""Measure ours, the peers and the bare convolutions side by side, and write JSON, Markdown and an image.

    python tests/benchmarks/run.py                     everything; about an hour on two CPU cores
    python tests/benchmarks/run.py --quick             a part of it in some minutes
    python tests/benchmarks/run.py --nets vgg --sizes 4x256 --parts timing memory

Cases are added to the machine's results, or replace those of the same name in it. The file's name says the processor,
its widest instructions and the threads, or the GPU; rows that were measured with other versions say these.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))  # the checkout
sys.path.insert(0, str(Path(__file__).parents[1]))  # tests/
sys.path.insert(0, str(Path(__file__).parents[1] / "_helpers"))  # where the peers are made

from benchmarks import contenders, head, machine, memory, pairwise, report, timing
from benchmarks.results import Results, path_of
from lpips_lightning import keep_freed_memory

SIZES = ("16x64", "8x128", "4x256", "1x512", "1x1024")
PARTS = ("timing", "memory", "pairwise", "huge", "head")
HERE = Path(__file__).parent


def main(argv: Sequence[str] | None = None) -> None:
    """Run the parts that are asked for."""
    args = _arguments(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    described = machine.describe(args.device)
    keep_freed_memory()  # all contenders profit alike
    out = args.out or path_of(HERE / "results", described)
    results = Results(out, described)
    print(results.opening(), flush=True)
    print("weights: " + ", ".join(f"{net} {contenders.weights_name(net)}" for net in args.nets), flush=True)
    run = {"timing": _timing, "memory": _memory, "pairwise": _pairwise, "huge": _huge, "head": _head}
    try:
        for part in args.parts:
            run[part](args, results)
    finally:
        if out.is_file():  # with what is on the disk, should nothing have been measured
            report.write_report(json.loads(out.read_text()), out.with_suffix(".md"))
    print(f"{out}\npython {HERE / 'ratios.py'} {out}")


def _timing(args: argparse.Namespace, results: Results) -> None:
    for net in args.nets:
        ready = _contenders(net, args)
        for batch, side in args.sizes:
            for work in args.works:
                rows = timing.time_case(ready, work, batch, side, args.device, rounds=args.rounds, seconds=args.seconds)
                results.put("timing", {"net": net, "batch": batch, "side": side, "work": work}, rows)
                times = "  ".join(f"{r['contender']} {r['setting']} {1e3 * r['wall_s']:.4g}" for r in rows)
                print(f"{net} {batch}x{side} {work}, ms: {times}", flush=True)


def _contenders(net: str, args: argparse.Namespace) -> list[contenders.Contender]:
    found = (
        contenders.contender(name, setting, net, args.device) for setting in args.settings for name in args.contenders
    )
    return [each for each in found if each is not None]


def _memory(args: argparse.Namespace, results: Results) -> None:
    if not memory.is_measurable(args.device):
        print("memory: left out, on a CPU its peak is read from Linux's /proc")
        return
    for net in args.nets:
        for batch, side in args.sizes if args.all_memory else [size for size in args.sizes if size == (4, 256)]:
            for work in args.works:
                _measure_memory(args, results, net, batch, side, work, args.contenders)


def _huge(args: argparse.Namespace, results: Results) -> None:
    if not memory.is_measurable(args.device):
        print("huge: left out, on a CPU its peak is read from Linux's /proc")
        return
    names = ["ours", "ours whole", *(["floor", "lpips"] if args.huge_peers else [])]
    for net in [net for net in args.nets if net == "vgg" or args.huge_peers]:
        for work in args.works:
            _measure_memory(args, results, net, 1, 2048, work, names)
        if "forward" in args.works:
            _measure_memory(args, results, net, 1, 4096, "forward", ["ours"])


def _measure_memory(
    args: argparse.Namespace, results: Results, net: str, batch: int, side: int, work: str, names: Sequence[str]
) -> None:
    rows = []
    for setting in args.settings:
        for name in names:
            if name != "ours" and not memory.room(side, work, args.device):
                print(f"{name} {setting} {net} {batch}x{side} {work}: left out, too large for this machine")
                continue
            try:
                row = memory.measure(name, setting, net, batch, side, work, args.device)
            except RuntimeError as error:  # too large for this machine: the others still count
                print(f"{name} {setting} {net} {batch}x{side} {work}: {error}", file=sys.stderr)
                continue
            if row:
                rows.append(row)
                print(f"{net} {batch}x{side} {work} {name} {setting}: {row['peak_mib']} MiB", flush=True)
    results.put("memory", {"net": net, "batch": batch, "side": side, "work": work}, rows)


def _pairwise(args: argparse.Namespace, results: Results) -> None:
    for net in args.nets:
        if net != "embedded":
            count, side = args.pairwise
            rows = pairwise.compare(net, count, side, args.device)
            results.put("pairwise", {"net": net, "batch": count, "side": side, "work": "pairwise"}, rows)
            print(f"{net} {count} images of {side}: {', '.join(_said(row) for row in rows)}", flush=True)


def _head(args: argparse.Namespace, results: Results) -> None:
    if args.device.type != "cuda":
        print("head: left out, the Triton kernel needs a GPU")
        return
    for net in args.nets:
        if args.tune:
            print("\n".join(head.tune(net, 16, 256, args.device)), flush=True)
        else:
            rows = head.measure(net, 16, 256, args.device)
            results.put("head", {"net": net, "batch": 16, "side": 256, "work": "head"}, rows)


def _said(row: dict[str, object]) -> str:
    return f"{row['contender']} {row['wall_s']:.3g} s, {row['backbone_passes']} backbone passes"


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--quick", action="store_true", help="fewer rounds, nets alex and squeeze, 16x64 and 4x256, no huge images")
    add("--parts", nargs="+", choices=PARTS)
    add("--nets", nargs="+", choices=contenders.NETS)
    add("--sizes", nargs="+", type=_size, metavar="NxSIDE", help=f"default: {' '.join(SIZES)}, on a GPU also 16x256")
    add("--works", nargs="+", choices=("forward", "step"), default=["forward", "step"])
    add("--contenders", nargs="+", choices=contenders.NAMES, default=list(contenders.NAMES))
    add("--settings", nargs="+", choices=("fp32", "tf32", "bf16", "fp16"), help="default: all that the device has")
    add("--rounds", type=int, help="at most so many (default 15; 5 with --quick) ...")
    add("--seconds", type=float, help="... and after three no new one after so long (default 60; 15 with --quick)")
    add("--pairwise", type=_size, default=(64, 64), metavar="NxSIDE", help="images for all pairs (default 64x64)")
    add("--all-memory", action="store_true", help="memory at every size, not at 4x256 alone")
    add("--huge-peers", action="store_true", help="huge images also with lpips, the floor, other nets: takes 16 GiB")
    add("--tune", action="store_true", help="part head: ways to cut the kernel's work, instead of its bandwidth")
    add("--threads", type=int, help="default: PyTorch's own choice")
    add("--device", type=torch.device, default=torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    add("--out", type=Path, help="the JSON; default: results/MACHINE.json beside this file")
    args = parser.parse_args(argv)
    quick = args.quick
    more = [] if args.device.type == "cpu" else ["16x256"]
    args.parts = args.parts or [part for part in PARTS if not (quick and part == "huge")]
    args.nets = args.nets or (["alex", "squeeze"] if quick else list(contenders.NETS))
    args.sizes = args.sizes or [_size(size) for size in (("16x64", "4x256") if quick else (*SIZES, *more))]
    args.settings = args.settings or list(contenders.settings(args.device))
    args.rounds = args.rounds or (5 if quick else 15)
    args.seconds = args.seconds or (15.0 if quick else 60.0)
    return args


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if not found:
        raise argparse.ArgumentTypeError(f"expected a number of images and a side like 4x256, got {text!r}")
    return int(found[1]), int(found[2])


if __name__ == "__main__":
    main()
