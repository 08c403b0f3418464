"""The command ``lpips-lightning kmeans``."""

from __future__ import annotations

from typing import Any

from jsonargparse import ArgumentParser, auto_cli, auto_parser


def parser() -> ArgumentParser:
    """Build the argument parser."""
    return auto_parser(kmeans, as_positional=False, prog="lpips-lightning kmeans")


def main(args: list[str] | None = None) -> None:
    """Run ``lpips-lightning kmeans``.

    Args:
        args: Command line after ``kmeans``.

    Raises:
        ValueError: If an argument is invalid.
        FileNotFoundError: If there are no images.
    """
    auto_cli(kmeans, as_positional=False, prog="lpips-lightning kmeans", args=args)


def kmeans(
    images: str,
    out: str,
    net: str = "alex",
    crops: int = 200,
    size: int = 128,
    patches: int = 20_000,
    iterations: int = 10,
    seed: int = 0,
) -> None:
    """Learn backbone weights without labels, by stacked k-means.

    Args:
        images: Folder of photographs.
        out: Output .safetensors file, for weights= and NET:kmeans=; - for stdout.
        net: Sequential architecture: alex, vgg or embedded.
        crops: Number of random crops to learn from.
        size: Side of a crop in pixels.
        patches: Patches to cluster per layer.
        iterations: Iterations of k-means.
        seed: Random seed of photographs, crops and patches.
    """
    import torch

    from lpips_lightning import __version__
    from lpips_lightning.backbones.definition import get_backbone
    from lpips_lightning.calibration.kmeans import stacked_kmeans
    from lpips_lightning.data.crops import crops as random_crops
    from lpips_lightning.io.atomic import check_output_path
    from lpips_lightning.io.console import Console
    from lpips_lightning.io.image_files import find_images, read_image
    from lpips_lightning.io.progress import progress_report
    from lpips_lightning.io.streams import STDOUT, is_stream
    from lpips_lightning.io.tensor_files import write_tensors

    console = Console(stderr=out == "-")
    out = STDOUT if out == "-" else out
    if not out.endswith(".safetensors") and not is_stream(out):
        raise ValueError(f"out: expected a file that ends in .safetensors, got {out!r}")
    check_output_path(out, "out")
    record = get_backbone(net)
    for name, got, least in (("crops", crops, 1), ("size", size, record.smallest_side), ("iterations", iterations, 1)):
        if got < least:
            raise ValueError(f"{name}: expected at least {least}, got {got}")
    generator = torch.Generator().manual_seed(seed)
    files = list(find_images(images).values())
    chosen = torch.randperm(len(files), generator=generator)[:crops].tolist()
    inputs = random_crops([read_image(files[index]) for index in chosen], crops, size, generator) * 2 - 1
    settings = {"patches": patches, "iterations": iterations, "seed": seed}
    with progress_report("items") as report:
        layers = f"{record.name}, layer by layer"
        tensors = stacked_kmeans(record, inputs, **settings, report=lambda done, total: report(layers, done, total))
    about: dict[str, Any] = {"mode": "kmeans", "photographs": len(chosen), "crops": crops, "size": size}
    path = write_tensors(out, tensors, about | settings | {"lpips_lightning": __version__}, net_type=record.name)
    message = f"Written to {path}; evaluate it as {record.name}:kmeans={path}"
    console.print(message, highlight=False, soft_wrap=True, markup=False)
