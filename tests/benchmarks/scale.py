"""Whole commands on folders of photographs: `compare` of today, its large runs, a loop over `lpips`, pyiqa's command.

    python tests/benchmarks/scale.py --images Kodak                   about a quarter of an hour on two CPU cores
    python tests/benchmarks/scale.py --images Kodak --pyiqa FOLDER    also pyiqa's command, installed in FOLDER

Every command runs in a process of its own, in turn, so that all see the same disturbances; medians are of the wall time
from start to end, start-up included. The distances have to agree. LPIPS_LIGHTNING_WEIGHTS names the backbone's weights.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2]))  # the checkout
sys.path.insert(0, str(Path(__file__).parents[1]))  # tests/
sys.path.insert(0, str(Path(__file__).parents[1] / "_helpers"))  # where the peers are made

from benchmarks import machine
from benchmarks.contenders import backbone_tensors
from benchmarks.results import path_of
from lpips_lightning.io.atomic import atomic_write

ROOT = Path(__file__).parents[2]
RUNS = {
    "compare": (),
    "run, no workers": ("--workers", "0"),
    "run, 1 worker": ("--workers", "1"),
    "run, 2 workers": ("--workers", "2"),
    "run, 2 ranks": ("--devices", "2", "--workers", "0"),
}
SIZES = {256: 96, 1024: 16}  # pairs by side
AGREEMENT = 1e-4  # relative, of the mean distance


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print and write the results beside those of `run.py`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="folder of photographs")
    parser.add_argument("--pyiqa", type=Path, help="folder that pyiqa and what it imports are installed in")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--lpips-loop", nargs=2, metavar="FOLDER", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.lpips_loop:
        lpips_loop(*map(Path, args.lpips_loop))
        return
    described = machine.describe(torch.device("cpu"))
    out = path_of(Path(__file__).parent / "results" / "scale", described)
    results = {"machine": described, **machine.stamp(), "rounds": args.rounds, "sizes": {}}
    with tempfile.TemporaryDirectory() as folder:
        if args.pyiqa:
            write_peer_weights(Path(folder) / "torch")
        for side, pairs in SIZES.items():
            images = Path(folder) / str(side)
            write_pairs(args.images, images, side, pairs)
            results["sizes"][str(side)] = measure(images, pairs, args)
    with atomic_write(out) as file:
        file.write_text(json.dumps(results, indent=1) + "\n")
    with atomic_write(out.with_suffix(".md")) as file:
        file.write_text("\n".join(report(results)) + "\n")
    print("\n".join(report(results)))


def measure(images: Path, pairs: int, args: argparse.Namespace) -> dict[str, object]:
    """Wall seconds of every command by round, and its mean distance."""
    commands = {name: ours(images, options) for name, options in RUNS.items()}
    commands["loop over lpips"] = [
        *(sys.executable, __file__, "--images", str(images)),
        *("--lpips-loop", str(images / "a"), str(images / "b")),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    if args.pyiqa:
        module = [sys.executable, "-m", "pyiqa.pyiqa_cmd", "lpips", "--device", "cpu"]
        commands["pyiqa"] = [*module, "-t", str(images / "a"), "-r", str(images / "b")]
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    means: dict[str, float] = {}
    for _ in range(args.rounds):
        for name, command in commands.items():
            own = dict(environment)
            if name == "pyiqa":
                own |= {"PYTHONPATH": str(args.pyiqa), "TORCH_HOME": str(images.parent / "torch")}
            start = time.perf_counter()
            with tempfile.TemporaryDirectory() as folder:
                found = subprocess.run(command, cwd=folder, env=own, capture_output=True, text=True, check=False)
            seconds[name].append(round(time.perf_counter() - start, 3))
            if found.returncode:
                raise RuntimeError(f"{name}: expected exit code 0, got {found.returncode}: {found.stderr[-1500:]}")
            means[name] = float(re.search(r"mean['\s:]+(?:np\.float64\()?([\d.]+)", found.stdout).group(1))
            print(f"{images.name} {name}: {seconds[name][-1]:.2f} s, mean {means[name]:.6f}", flush=True)
    check_agreement(means)
    return {"pairs": pairs, "seconds": seconds, "means": means}


def ours(images: Path, options: Sequence[str]) -> list[str]:
    """Command line of `compare`."""
    return [sys.executable, "-m", "lpips_lightning", "compare", str(images / "a"), str(images / "b"), *options]


def check_agreement(means: dict[str, float]) -> None:
    """Raise if two commands do not compute the same.

    Raises:
        RuntimeError: Names the command.
    """
    reference = means["loop over lpips"]
    for name, mean in means.items():
        if abs(mean - reference) > AGREEMENT * reference:
            raise RuntimeError(f"{name}: expected the mean distance {reference}, got {mean}")


def lpips_loop(first: Path, second: Path) -> None:
    """What its page shows: one pair after the other."""
    import lpips
    from references import peer_lpips

    net = peer_lpips("alex", backbone_tensors("alex"))
    found = []
    with torch.no_grad():
        for path in sorted(first.iterdir()):
            images = (np.asarray(Image.open(folder / path.name)) for folder in (first, second))
            x, y = map(lpips.im2tensor, images)
            found.append(float(net(x, y)))
    print("mean", np.mean(found))


def write_pairs(source: Path, target: Path, side: int, count: int) -> None:
    """Crops of photographs, enlarged where they are too small, and what JPEG makes of them; both as PNG."""
    random = np.random.default_rng(0)
    paths = sorted(path for path in source.iterdir() if path.suffix.lower() in (".png", ".jpg"))
    for folder in ("a", "b"):
        (target / folder).mkdir(parents=True)
    for number in range(count):
        image = Image.open(paths[number % len(paths)]).convert("RGB")
        scale = max(1.0, side / min(image.size))
        image = image.resize([round(scale * one) for one in image.size], Image.Resampling.LANCZOS)
        left, top = (int(random.integers(0, one - side + 1)) for one in image.size)
        crop = image.crop((left, top, left + side, top + side))
        crop.save(target / "a" / f"{number:04d}.png")
        crop.save(file := io.BytesIO(), "jpeg", quality=int(random.integers(20, 80)))
        Image.open(file).save(target / "b" / f"{number:04d}.png")


def write_peer_weights(home: Path) -> None:
    """The files that pyiqa would download: torchvision's AlexNet, whose head it does not use, and the calibration."""
    import lpips
    import torchvision

    model = torchvision.models.alexnet()
    model.load_state_dict(backbone_tensors("alex"), strict=False)
    folders = home / "hub" / "checkpoints", home / "hub" / "pyiqa"
    for folder in folders:
        folder.mkdir(parents=True)
    torch.save(model.state_dict(), folders[0] / "alexnet-owt-7be5be79.pth")
    calibration = Path(lpips.__file__).parent / "weights" / "v0.1" / "alex.pth"
    (folders[1] / "LPIPS_v0.1_alex-df73285e.pth").write_bytes(calibration.read_bytes())


def report(results: dict) -> list[str]:
    """The medians as Markdown."""
    described = results["machine"]
    lines = ["# Whole commands on folders of photographs, LPIPS(alex), wall seconds", ""]
    lines += [f"{described['cpu']}, {described['cores']} cores, torch {described['torch']}, {results['date']};"]
    lines += [f"medians of {results['rounds']}, from start to end. Written by `tests/benchmarks/scale.py`.", ""]
    for side, found in results["sizes"].items():
        medians = {name: statistics.median(seconds) for name, seconds in found["seconds"].items()}
        lines += [f"| {found['pairs']} pairs of {side} pixels | seconds | least to most | over `compare` |"]
        lines += ["|---|---|---|---|"]
        for name, median in medians.items():
            rounds = found["seconds"][name]
            spread = f"{min(rounds):.3g} to {max(rounds):.3g}"
            lines.append(f"| {name} | {median:.3g} | {spread} | {median / medians['compare']:.2f} |")
        lines.append("")
    return lines


if __name__ == "__main__":
    main()
