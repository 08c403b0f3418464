"""The command ``lpips-lightning export``."""

from __future__ import annotations

import argparse
import math

from lpips_lightning.cli.options import add_weight_options, require_network, weight_options
from lpips_lightning.io.arguments import ArgumentParser
from lpips_lightning.io.atomic import check_output_path
from lpips_lightning.io.console import Console
from lpips_lightning.io.streams import name_streams

FORMATS = ("onnx", "torchscript", "pt2")
"""Formats, without importing torch."""


def parser() -> argparse.ArgumentParser:
    """Build the argument parser."""
    result = ArgumentParser(
        "lpips-lightning export",
        description="Write LPIPS as one file with backbone and calibration, for runtimes without this package. The"
        " file takes x and y, float32 (N, 3, H, W) of any size, and returns distance (N,). It does not check pixel"
        " values.",
    )
    add = result.add_argument
    add("--out", required=True, metavar="FILE", help="output file; - for stdout, with --format")
    add("--force", action="store_true", help="replace an existing file")
    add("--format", choices=FORMATS, metavar="F", help="onnx, torchscript or pt2 (default: by the suffix of --out)")
    add(
        "--data-range",
        type=float,
        nargs=2,
        default=(-1.0, 1.0),
        metavar=("LOW", "HIGH"),
        help="range of the images (default: -1 1)",
    )
    add(
        "--size",
        type=int,
        nargs=2,
        default=(64, 64),
        metavar=("H", "W"),
        help="size of the traced example; the file takes any size (default: 64 64)",
    )
    add("--opset", type=int, metavar="N", help="version of the ONNX operators (default: PyTorch's)")
    add_weight_options(result.add_argument_group("the network"))
    return result


def main(args: list[str] | None = None) -> None:
    """Export a network and print its sha256.

    Args:
        args: Command line without the program's name; None takes ``sys.argv``.

    Raises:
        ValueError: If an argument is invalid.
        ModuleNotFoundError: If the onnx package is missing.
        OSError: If the file cannot be written.
        WeightsError: If weights are missing or damaged.
    """
    options = parser().parse_args(args)
    stdout_is_taken = name_streams(options, outputs=["out"])
    check_output_path(options.out, "out", replace=options.force)
    low, high = options.data_range
    if not -math.inf < low < high < math.inf:
        raise ValueError(f"data-range: expected LOW < HIGH, both finite, got {low:g} {high:g}")

    from lpips_lightning.export import export_network
    from lpips_lightning.network import LPIPS

    require_network(options)
    net = LPIPS(options.net, **weight_options(options))
    written = export_network(
        net,
        options.out,
        options.format,
        data_range=(low, high),
        size=tuple(options.size),
        opset=options.opset,
    )
    console = Console(stderr=stdout_is_taken, highlight=False, soft_wrap=True, markup=False, emoji=False)
    console.print(written.metadata["fingerprint"])
    console.print(f"sha256 {written.sha256}  {written.path}")
    console.print(
        "not verified: onnxruntime is not installed"
        if written.error is None
        else f"verified: distances differ from the network's by at most {written.error:.0e} of their size"
    )
    console.print(f"load: {written.usage}")
