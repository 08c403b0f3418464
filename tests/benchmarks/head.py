"""The Triton kernel of the head against the bandwidth of a copy. Needs a GPU."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks.contenders import DTYPES, backbone_tensors
from lpips_lightning.backbones.definition import BACKBONES
from lpips_lightning.backbones.extractor import FeatureExtractor
from lpips_lightning.kernels.head_triton import available

TIMES = 30
COPIED = 2**30  # bytes


def measure(net: str, batch: int, side: int, device: torch.device) -> list[dict[str, object]]:
    """Rows by dtype and work: bytes that must be read and written a second, by layer and over all layers.

    Before every run something else goes through the cache, so that features come from memory.
    """
    from lpips_lightning.kernels.head_triton_kernels import launch

    if not available(device):
        raise RuntimeError(f"{device}: expected a GPU on which the Triton kernels run")
    filler = torch.empty(COPIED // 4, device=device)
    copied = 2 * COPIED / _seconds(lambda: filler.clone(), filler[:1])
    rows = []
    for dtype in ("fp32", *DTYPES):
        for work in ("sum", "gradient"):
            total_bytes, total_seconds = 0, 0.0
            for layer, (x, y) in _features(net, batch, side, dtype, device):
                weight = torch.rand(x.shape[1], device=device)
                gradient = torch.empty_like(x) if work == "gradient" else None
                moved = x.nbytes + y.nbytes + (x.nbytes if gradient is not None else 0)
                seconds = _seconds(lambda x=x, y=y, w=weight, g=gradient: launch(x, y, w, g), filler)
                rows.append(_row(f"{layer} {tuple(x.shape)}", dtype, work, moved, seconds, copied))
                total_bytes, total_seconds = total_bytes + moved, total_seconds + seconds
            rows.append(_row("all layers", dtype, work, total_bytes, total_seconds, copied))
    return rows


def tune(net: str, batch: int, side: int, device: torch.device) -> Iterator[str]:
    """For every layer and dtype a line with the fastest ways to cut the work, and that of `plan`."""
    from lpips_lightning.kernels.head_triton_kernels import launch, plan

    filler = torch.empty(COPIED // 16, device=device)
    for dtype in ("fp32", "bf16"):
        for layer, (x, y) in _features(net, batch, side, dtype, device):
            weight, gradient = torch.rand(x.shape[1], device=device), torch.empty_like(x)
            block_c, own_p, own_warps = plan(x.shape[1])
            found = {}
            for warps in (1, 2, 4, 8):
                for block_p in (1, 2, 4, 8, 16, 32, 64):
                    if 4 <= block_c * block_p // (32 * warps) <= 64:
                        cut = (block_c, block_p, warps)
                        call = lambda cut=cut, x=x, y=y, w=weight, g=gradient: launch(x, y, w, g, cut)  # noqa: E731
                        found[cut] = 1e6 * _seconds(call, filler)
            best = sorted(found, key=lambda cut: found[cut])[:3]
            own = found.get((block_c, own_p, own_warps), float("nan"))
            shown = "  ".join(f"{cut}: {found[cut]:.1f}" for cut in best)
            yield f"{layer} {tuple(x.shape)} {dtype}, us: {shown}  plan {(block_c, own_p, own_warps)}: {own:.1f}"


def _features(
    net: str, batch: int, side: int, dtype: str, device: torch.device
) -> Iterator[tuple[str, tuple[Tensor, Tensor]]]:
    """Of the shapes that a net gives; the numbers are of no account."""
    record = BACKBONES[net]
    with torch.no_grad():
        shapes = FeatureExtractor(record, backbone_tensors(net))(torch.zeros(1, 3, side, side))
    for layer, feature_map in shapes.items():
        x, y = torch.randn(2, batch, *feature_map.shape[1:], device=device).relu().to(DTYPES.get(dtype, torch.float32))
        yield layer, tuple(part.contiguous(memory_format=torch.channels_last) for part in (x, y))


def _seconds(call: Callable[[], object], filler: Tensor) -> float:
    """Median on the device's own clock."""
    taken = []
    for _ in range(TIMES + 3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        filler.zero_()
        start.record()
        call()
        end.record()
        end.synchronize()
        taken.append(start.elapsed_time(end) / 1e3)
    return statistics.median(taken[3:])


def _row(shape: str, dtype: str, work: str, moved: int, seconds: float, copied: float) -> dict[str, object]:
    return {
        "shape": shape,
        "dtype": dtype,
        "kernel": work,
        "seconds": seconds,
        "gb_s": moved / seconds / 1e9,
        "copy_gb_s": copied / 1e9,
        "fraction": moved / seconds / copied,
    }
