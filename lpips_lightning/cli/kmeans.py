"""The command ``lpips-lightning kmeans``."""

from __future__ import annotations

import argparse
from typing import Any

from lpips_lightning.io.arguments import NETS, ArgumentParser
from lpips_lightning.io.atomic import check_output_path
from lpips_lightning.io.streams import is_stream, name_streams


def parser() -> ArgumentParser:
    """Build the argument parser."""
    result = ArgumentParser(
        "lpips-lightning kmeans", description="Learn backbone weights without labels, by stacked k-means."
    )
    add = result.add_argument
    add("--folder", "--images", required=True, metavar="DIR", help="folder of photographs, searched recursively")
    out = "output .safetensors file, for weights= and NET:kmeans=; - for stdout"
    add("--out", required=True, metavar="FILE", help=out)
    add("--force", action="store_true", help="replace an existing file")
    net = "sequential architecture: alex, vgg or embedded (default: alex)"
    add("--net", choices=NETS, default="alex", metavar="NET", help=net)
    for option, default, what in (
        (("--crops",), 200, "number of random crops to learn from"),
        (("--crop-size", "--size"), 128, "side of a crop in pixels"),
        (("--patches",), 20_000, "patches to cluster per layer"),
        (("--iterations",), 10, "iterations of k-means"),
        (("--seed",), 0, "random seed of photographs, crops and patches"),
    ):
        add(*option, type=int, default=default, metavar="N", help=f"{what} (default: %(default)s)")
    return result


def main(args: list[str] | None = None) -> None:
    """Run ``lpips-lightning kmeans``.

    Args:
        args: Command line after ``kmeans``.

    Raises:
        ValueError: If an argument is invalid.
        FileExistsError: If the output exists, without ``--force``.
        FileNotFoundError: If there are no images.
    """
    options = parser().parse_args(args)
    stdout_is_taken = name_streams(options, outputs=["out"])
    if not options.out.endswith(".safetensors") and not is_stream(options.out):
        raise ValueError(f"out: expected a file that ends in .safetensors, got {options.out!r}")
    check_output_path(options.out, "out", replace=options.force)
    _learn(options, stdout_is_taken)


def _learn(options: argparse.Namespace, stdout_is_taken: bool) -> None:
    import torch

    from lpips_lightning import __version__
    from lpips_lightning.backbones.definition import get_backbone
    from lpips_lightning.calibration.kmeans import stacked_kmeans
    from lpips_lightning.data.crops import crops as random_crops
    from lpips_lightning.io.console import Console
    from lpips_lightning.io.image_files import find_images, read_image
    from lpips_lightning.io.progress import progress_report
    from lpips_lightning.io.tensor_files import write_tensors

    console = Console(stderr=stdout_is_taken)
    crops, size, seed = options.crops, options.crop_size, options.seed
    patches, iterations = options.patches, options.iterations
    record = get_backbone(options.net)
    least_size = record.smallest_side
    for name, got, least in (("crops", crops, 1), ("crop-size", size, least_size), ("iterations", iterations, 1)):
        if got < least:
            raise ValueError(f"{name}: expected at least {least}, got {got}")
    generator = torch.Generator().manual_seed(seed)
    files = list(find_images(options.folder).values())
    chosen = torch.randperm(len(files), generator=generator)[:crops].tolist()
    inputs = random_crops([read_image(files[index]) for index in chosen], crops, size, generator) * 2 - 1
    settings = {"patches": patches, "iterations": iterations, "seed": seed}
    with progress_report("items") as report:
        layers = f"{record.name}, layer by layer"
        tensors = stacked_kmeans(record, inputs, **settings, report=lambda done, total: report(layers, done, total))
    about: dict[str, Any] = {"mode": "kmeans", "photographs": len(chosen), "crops": crops, "size": size}
    about |= settings | {"lpips_lightning": __version__}
    path = write_tensors(options.out, tensors, about, net_type=record.name)
    message = f"Written to {path}; evaluate it as {record.name}:kmeans={path}"
    console.print(message, highlight=False, soft_wrap=True, markup=False)
