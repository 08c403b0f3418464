"""Triton kernels for the distance of a layer: every activation is read once, its gradient written once.

Only `head_triton` imports this module, and only if Triton is installed.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lpips_lightning.distances.lpips import EPS

_MAX_CHANNELS_IN_REGISTERS = 2048  # more channels are read block by block
_VALUES_PER_THREAD = 16  # of each image; about 100 registers on sm_90 (ptxas), so that enough warps fit


@triton.jit
def _address(start, position, channel, positions, CHANNELS: tl.constexpr, LAST: tl.constexpr):
    """Memory offsets. LAST: channels_last, the channels of a position are contiguous."""
    if LAST:
        return start + position[:, None] * CHANNELS + channel[None, :]
    return start + channel[None, :].to(tl.int64) * positions + position[:, None]


@triton.jit
def _read(x, y, weight, at_x, at_y, channel, keep, CHANNELS: tl.constexpr, WEIGHTED: tl.constexpr):
    """Features of both images and the channels' weights in float32, 0 beyond the last position and channel."""
    a = tl.load(x + at_x, mask=keep, other=0.0).to(tl.float32)
    b = tl.load(y + at_y, mask=keep, other=0.0).to(tl.float32)
    w = tl.full(channel.shape, 1.0, tl.float32)
    if WEIGHTED:
        w = tl.load(weight + channel, mask=channel < CHANNELS, other=0.0)
    return a, b, w


@triton.jit
def _inverse(square, EPSILON: tl.constexpr):
    """Root of a sum of squares, and the factor to unit length: 0 where all channels are 0, as in plain autograd.

    The root is used as a divisor: it is 1 where it is 0, or so small that Triton 3.2 flushes it to 0.
    """
    root = tl.sqrt_rn(square)
    inverse = tl.div_rn(tl.full(root.shape, 1.0, tl.float32), root + EPSILON)
    return tl.where(root == 0.0, 1.0, root), tl.where(square == 0.0, 0.0, inverse)


@triton.jit
def _factors(square_a, square_b, gap, EPSILON: tl.constexpr):
    """Root of `square_a`, factor to unit length of a, and the difference of that factor to b's.

    The difference is computed from ``gap = sum (a - b)(a + b)``, which does not cancel for similar images.
    """
    root_a, inverse_a = _inverse(square_a, EPSILON)
    root_b, inverse_b = _inverse(square_b, EPSILON)
    excess = -tl.div_rn(gap, root_a + root_b) * inverse_a * inverse_b
    both = (square_a != 0.0) & (square_b != 0.0)
    return root_a, inverse_a, tl.where(both, excess, inverse_a - inverse_b)


@triton.jit
def _difference(a, b, inverse_a, excess):
    """``a inverse_a - b inverse_b``, in a form that is exactly 0 for equal images even with fused multiply-add."""
    return (a - b) * inverse_a[:, None] + b * excess[:, None]


@triton.jit
def _gradient(a, weighted, along, root_a, inverse_a):
    """Gradient of the sum of ``weighted * difference`` w.r.t. `a`; `along` is ``sum weighted * a`` over channels."""
    back = inverse_a * tl.div_rn(along, root_a)
    return 2.0 * inverse_a[:, None] * (weighted - a * back[:, None])


@triton.jit(do_not_specialize=["positions", "tiles"])
def _whole(
    x, y, weight, partial, gradient, positions, tiles,
    CHANNELS: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, EPSILON: tl.constexpr,
    X_LAST: tl.constexpr, Y_LAST: tl.constexpr, WEIGHTED: tl.constexpr, GRADIENT: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_P positions of one image, all channels in registers."""
    program = tl.program_id(0)
    start = (program // tiles).to(tl.int64) * positions * CHANNELS
    position = (program % tiles).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    channel = tl.arange(0, BLOCK_C)
    keep = (position[:, None] < positions) & (channel[None, :] < CHANNELS)
    at_x = _address(start, position, channel, positions, CHANNELS, X_LAST)
    at_y = _address(start, position, channel, positions, CHANNELS, Y_LAST)
    a, b, w = _read(x, y, weight, at_x, at_y, channel, keep, CHANNELS, WEIGHTED)
    gap = tl.sum((a - b) * (a + b), 1)
    root_a, inverse_a, excess = _factors(tl.sum(a * a, 1), tl.sum(b * b, 1), gap, EPSILON)
    difference = _difference(a, b, inverse_a, excess)
    weighted = difference * w[None, :]
    tl.store(partial + program, tl.sum(tl.sum(weighted * difference, 1), 0))
    if GRADIENT:
        slope = _gradient(a, weighted, tl.sum(weighted * a, 1), root_a, inverse_a)
        tl.store(gradient + at_x, slope.to(gradient.dtype.element_ty), mask=keep)


@triton.jit(do_not_specialize=["positions", "tiles"])
def _by_blocks(
    x, y, weight, partial, gradient, positions, tiles,
    CHANNELS: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, EPSILON: tl.constexpr,
    X_LAST: tl.constexpr, Y_LAST: tl.constexpr, WEIGHTED: tl.constexpr, GRADIENT: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_P positions of one image, BLOCK_C channels at a time: norms, then distance, then gradient."""
    program = tl.program_id(0)
    start = (program // tiles).to(tl.int64) * positions * CHANNELS
    position = (program % tiles).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    square_a = tl.zeros((BLOCK_P,), tl.float32)
    square_b = tl.zeros((BLOCK_P,), tl.float32)
    gap = tl.zeros((BLOCK_P,), tl.float32)
    for first in range(0, CHANNELS, BLOCK_C):
        channel = first + tl.arange(0, BLOCK_C)
        keep = (position[:, None] < positions) & (channel[None, :] < CHANNELS)
        at_x = _address(start, position, channel, positions, CHANNELS, X_LAST)
        at_y = _address(start, position, channel, positions, CHANNELS, Y_LAST)
        a, b, _w = _read(x, y, weight, at_x, at_y, channel, keep, CHANNELS, WEIGHTED)
        square_a += tl.sum(a * a, 1)
        square_b += tl.sum(b * b, 1)
        gap += tl.sum((a - b) * (a + b), 1)
    root_a, inverse_a, excess = _factors(square_a, square_b, gap, EPSILON)
    distance = tl.zeros((BLOCK_P,), tl.float32)
    along = tl.zeros((BLOCK_P,), tl.float32)
    for first in range(0, CHANNELS, BLOCK_C):
        channel = first + tl.arange(0, BLOCK_C)
        keep = (position[:, None] < positions) & (channel[None, :] < CHANNELS)
        at_x = _address(start, position, channel, positions, CHANNELS, X_LAST)
        at_y = _address(start, position, channel, positions, CHANNELS, Y_LAST)
        a, b, w = _read(x, y, weight, at_x, at_y, channel, keep, CHANNELS, WEIGHTED)
        difference = _difference(a, b, inverse_a, excess)
        distance += tl.sum(difference * w[None, :] * difference, 1)
        along += tl.sum(difference * w[None, :] * a, 1)
    tl.store(partial + program, tl.sum(distance, 0))
    if GRADIENT:
        for first in range(0, CHANNELS, BLOCK_C):
            channel = first + tl.arange(0, BLOCK_C)
            keep = (position[:, None] < positions) & (channel[None, :] < CHANNELS)
            at_x = _address(start, position, channel, positions, CHANNELS, X_LAST)
            at_y = _address(start, position, channel, positions, CHANNELS, Y_LAST)
            a, b, w = _read(x, y, weight, at_x, at_y, channel, keep, CHANNELS, WEIGHTED)
            weighted = _difference(a, b, inverse_a, excess) * w[None, :]
            slope = _gradient(a, weighted, along, root_a, inverse_a)
            tl.store(gradient + at_x, slope.to(gradient.dtype.element_ty), mask=keep)


def plan(channels: int) -> tuple[int, int, int]:
    """Launch configuration; it depends only on the channels, so a new image size does not recompile.

    Up to 128 channels, a warp holds whole positions. From 256 to 512, a program is one warp, and its sums over channels
    need no barrier. (Derived from the assembly and from what a warp can address; not tuned on a GPU.)

    Args:
        channels: Channels of the features.

    Returns:
        Channels per program, positions per program (both powers of 2), and warps per program.
    """
    block_c = triton.next_power_of_2(channels)
    if block_c > _MAX_CHANNELS_IN_REGISTERS:
        return 512, 1, 1
    warps = 4 if block_c <= 128 else 1 if block_c <= 512 else block_c // 256
    return block_c, _VALUES_PER_THREAD * 32 * warps // block_c, warps


def launch(
    x: Tensor,
    y: Tensor,
    weight: Tensor | None,
    gradient: Tensor | None,
    cut: tuple[int, int, int] | None = None,
) -> Tensor:
    """Sums over positions of ``weight . (x^ - y^)^2``; writes the gradient w.r.t. `x` to `gradient`.

    Every program writes the sum of its positions, and the partial sums are added in a fixed order: equal calls give
    bit-identical results.

    Args:
        x: Features ``(N, C, h, w)`` in float32, bfloat16 or float16, contiguous or channels_last.
        y: Features of the same shape, contiguous or channels_last.
        weight: Contiguous float32 ``(C,)`` on the same device; None for 1.
        gradient: Output tensor with the memory format of `x`; None to compute no gradient.
        cut: Launch configuration instead of `plan`, for benchmarks.

    Returns:
        Shape ``(N,)``, float32.
    """
    images, channels, height, width = x.shape
    positions = height * width
    block_c, block_p, warps = cut or plan(channels)
    tiles = -(-positions // block_p)
    partial = torch.empty(images, tiles, dtype=torch.float32, device=x.device)
    if partial.numel():
        kernel = _whole if channels <= block_c else _by_blocks
        with torch.cuda.device_of(x):  # Triton launches on the current device
            kernel[(images * tiles,)](
                x, y, x if weight is None else weight, partial, x if gradient is None else gradient, positions, tiles,
                CHANNELS=channels, BLOCK_C=block_c, BLOCK_P=block_p, EPSILON=EPS,
                X_LAST=not x.is_contiguous(), Y_LAST=not y.is_contiguous(),
                WEIGHTED=weight is not None, GRADIENT=gradient is not None,
                num_warps=warps, enable_fp_fusion=True,
            )  # fmt: skip
    return partial.sum(1)
