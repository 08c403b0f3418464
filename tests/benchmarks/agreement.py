"""How far values and gradients are from those of `lpips` in float64, on photographs: ours, lpips and torchmetrics.

python tests/benchmarks/agreement.py --folder Kodak              # alex, vgg and squeeze; Markdown on standard output
python tests/benchmarks/agreement.py --folder Kodak --nets vgg

Eight crops of 128 pixels, of the first eight files of the folder, against their copies reduced four times and enlarged
again, and against copies with weak noise. It uses one thread. The second line names the weights: ImageNet's where this
machine has them, else random ones.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))  # the checkout
sys.path.insert(0, str(Path(__file__).parents[1]))  # tests/
sys.path.insert(0, str(Path(__file__).parents[1] / "_helpers"))

from references import peer_lpips, peer_torchmetrics, relative_difference, relative_distance

from benchmarks.contenders import backbone_tensors, weights_name
from lpips_lightning import LPIPS
from lpips_lightning.io.image_files import read_image

NETS = ("alex", "vgg", "squeeze")
NOISE = {"alex": (5.7e-3, 1.8e-3, 5.5e-4), "vgg": (8e-3, 2.5e-3, 8e-4, 2.5e-4, 8e-5), "squeeze": (5e-3, 1.6e-3, 5e-4)}
"""Standard deviations on [-1, 1], of distances from about 1e-4 (vgg: 1e-3) to 1e-6."""


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, and print two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="photographs of at least 228 x 228 pixels")
    parser.add_argument("--nets", nargs="+", choices=NETS, default=NETS)
    args = parser.parse_args(argv)
    try:
        x = crops(args.folder)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    torch.set_num_threads(1)
    print(f"{torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}")
    print(", ".join(f"{net} {weights_name(net)}" for net in args.nets))
    _heading("what", "ours", "lpips", "torchmetrics", "ours, float64", "torchmetrics, float64")
    for net in args.nets:
        _print(net, agreement(net, x))
    _heading("distance", "ours", "lpips", "lpips, channels_last")
    for net in args.nets:
        _print(net, nearly_identical(net, x, NOISE[net]))


def crops(folder: Path, count: int = 8, side: int = 128) -> Tensor:
    """Crops ``(count, 3, side, side)`` on [-1, 1], at row and column 100 of the first files of a folder."""
    files = sorted(folder.glob("*.png"))[:count]
    if not files:
        raise FileNotFoundError(f"folder: expected a folder with PNG files, got {folder}")
    images = [read_image(file)[:, 100 : 100 + side, 100 : 100 + side] for file in files]
    if small := [str(file) for file, image in zip(files, images, strict=True) if image.shape[1:] != (side, side)]:
        raise ValueError(f"folder: expected images of at least {100 + side} x {100 + side} pixels, got {small[0]}")
    return torch.stack(images).float() / 127.5 - 1


def blurred(x: Tensor) -> Tensor:
    """Reduced to a quarter by area, and enlarged again."""
    small = F.interpolate(x, scale_factor=0.25, mode="area")
    return F.interpolate(small, x.shape[-2:], mode="bilinear", align_corners=False)


def agreement(net: str, x: Tensor) -> list[list[str]]:
    """Rows of the deviation of value, layers, map and gradient, each the largest over the pairs.

    Values and layers: relative. Maps and gradients: norm of the difference over the norm, pair by pair.
    """
    y = blurred(x)
    exact = _of_lpips(net, x, y, torch.float64)
    contenders = [
        _of_ours(net, x, y, torch.float32),
        _of_lpips(net, x, y, torch.float32),
        _of_torchmetrics(net, x, y, torch.float32),
        _of_ours(net, x, y, torch.float64),
        _of_torchmetrics(net, x, y, torch.float64),
    ]
    return [[name, *(_deviation(name, found, exact) for found in contenders)] for name in exact]


def nearly_identical(net: str, x: Tensor, noise: Iterable[float]) -> list[list[str]]:
    """Rows of mean distance, and the largest relative error of float32 distances over the pairs."""
    ours, peer = LPIPS(net, weights=backbone_tensors(net)), peer_lpips(net, backbone_tensors(net))
    exactly = peer_lpips(net, backbone_tensors(net)).double()
    rows = []
    for strength in noise:
        torch.manual_seed(0)
        y = (x + strength * torch.randn_like(x)).clamp(-1, 1)
        with torch.no_grad():
            exact = exactly(x.double(), y.double()).flatten()
            plain, last = ((x, y), [image.contiguous(memory_format=torch.channels_last) for image in (x, y)])
            found = [ours(x, y), peer(*plain).flatten(), peer(*last).flatten()]
        rows.append([f"{float(exact.mean()):.1e}", *(f"{relative_difference(value, exact):.1e}" for value in found)])
    return rows


def _of_ours(net: str, x: Tensor, y: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
    network = LPIPS(net, weights=backbone_tensors(net))
    y = _leaf(y, dtype)
    value = network(x.to(dtype), y)
    value.sum().backward()
    with torch.no_grad():
        layers = network(x.to(dtype), y, per_layer=True)
        spatial = network(x.to(dtype), y, spatial=True)
    return {"value": value.detach(), "layers": torch.stack([*layers.values()]), "map": spatial, "gradient": y.grad}


def _of_lpips(net: str, x: Tensor, y: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
    network = peer_lpips(net, backbone_tensors(net)).to(dtype)
    x, y = x.to(dtype), _leaf(y, dtype)
    value, layers = network(x, y, retPerLayer=True)
    value.sum().backward()
    with torch.no_grad(), mock.patch.object(network, "spatial", True):
        spatial = network(x, y)
    layers = torch.stack([layer.detach().flatten() for layer in layers])
    return {"value": value.detach().flatten(), "layers": layers, "map": spatial, "gradient": y.grad}


def _of_torchmetrics(net: str, x: Tensor, y: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
    network = peer_torchmetrics(net, backbone_tensors(net)).net.to(dtype)
    y = _leaf(y, dtype)
    value = network(x.to(dtype), y).flatten()
    value.sum().backward()
    return {"value": value.detach(), "gradient": y.grad}


def _leaf(images: Tensor, dtype: torch.dtype) -> Tensor:
    return images.to(dtype, copy=True).requires_grad_()


def _deviation(name: str, found: dict[str, Tensor], exact: dict[str, Tensor]) -> str:
    if name not in found:
        return ""
    pairs = zip(found[name], exact[name], strict=True)
    measure = relative_difference if name in ("value", "layers") else relative_distance
    return f"{max(measure(one, other) for one, other in pairs):.1e}"


def _heading(*columns: str) -> None:
    print(f"\n| net | {' | '.join(columns)} |\n{'|---' * (len(columns) + 1)}|")


def _print(net: str, rows: Iterable[Sequence[str]]) -> None:
    for row in rows:
        print(f"| {net} | {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
