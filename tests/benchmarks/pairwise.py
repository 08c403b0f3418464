"""All pairs of a set of images: ours, against the loop that a user of `lpips` writes."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from references import peer_lpips
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.contenders import backbone_tensors, images
from lpips_lightning import LPIPS


class BackbonePasses(TorchDispatchMode):
    """Counts the images that pass the first convolution, whoever calls it; parts of an image by their area."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.pixels = side * side
        self.count = 0.0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in (torch.ops.aten.convolution, torch.ops.aten.mkldnn_convolution):
            batch, channels, height, width = args[0].shape
            if channels == 3:
                self.count += batch * min(1.0, height * width / self.pixels)
        return func(*args, **(kwargs or {}))


def compare(net: str, count: int, side: int, device: torch.device) -> list[dict[str, object]]:
    """Two rows, ours and lpips: seconds for all pairs, and backbone passes.

    Raises:
        RuntimeError: If the two do not compute the same.
    """
    x, _ = images(count, side, device)
    ours = LPIPS(net, weights=backbone_tensors(net)).to(device)
    theirs = peer_lpips(net, backbone_tensors(net)).to(device)
    calls: list[int] = []
    # Of its first slice: it calls its backbone's `forward`, past the hooks.
    theirs.net.slice1.register_forward_hook(lambda module, args, output: calls.append(len(args[0])))

    def loop(x: Tensor) -> Tensor:
        distances = torch.zeros(len(x), len(x))
        for row in range(len(x)):
            for column in range(row):
                distances[row, column] = distances[column, row] = theirs(x[row : row + 1], x[column : column + 1])
        return distances

    with torch.no_grad():
        our_row, our_matrix = _timed("ours", ours.pairwise, x)
        their_row, their_matrix = _timed("lpips", loop, x)
        their_row["backbone_passes"] = sum(calls) - 3 * 2  # without the warm-up
        with BackbonePasses(side) as passes:  # apart from the timed run, which it would slow down
            ours.pairwise(x)
        our_row["backbone_passes"] = round(passes.count, 2)
    if not torch.allclose(our_matrix, their_matrix, rtol=1e-3, atol=1e-6):
        raise RuntimeError(f"pairwise {net}: expected equal distances, got {our_matrix} and {their_matrix}")
    return [our_row, their_row]


def _timed(name: str, work: Callable[[Tensor], Tensor], x: Tensor) -> tuple[dict[str, object], Tensor]:
    work(x[:3])  # three pairs to warm up
    wall, cpu = time.perf_counter(), time.process_time()
    matrix = work(x).cpu()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"contender": name, "setting": "fp32", "wall_s": wall, "cpu_s": cpu}, matrix
