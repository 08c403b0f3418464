"""Tuning constants of the engine. They change speed and memory, not the result (beyond rounding).

Measured on two cores of an AMD EPYC (family 25, model 1, AVX2) with torch 2.15, 2026-11-21, unless stated otherwise.
"""

from __future__ import annotations

MIB = 2**20

# Default memory budgets in bytes, by device type. On a CPU, more memory is not faster, and it is slower where the
# system has to map fresh pages: squeeze takes 0.7 of the time for 16 images of 256 pixels, 0.8 for one of 1024 pixels
# in row strips.
FORWARD_BUDGET = {"cpu": 128 * MIB, "other": 4096 * MIB}
GRADIENT_BUDGET = {"cpu": 256 * MIB, "other": 4096 * MIB}
# Tiles compute their halo twice, so one image may take more before it is tiled.
SINGLE_IMAGE_GRADIENT_BUDGET = 4096 * MIB
TILED_GRADIENT_BUDGET = 1536 * MIB

# Batches of at most this many pixels always fit: no estimate, no plan.
UNPLANNED_PIXELS = 2**16
# Up to this many pixels all activations stay in cache, and the backbone's own `forward` and autograd are faster than
# running the layer graph node by node from Python.
AUTOGRAD_PIXELS = 2**17

# Bytes of a row strip: small enough to stay in cache and to be reused by the allocator. The planner halves it down to
# the minimum to meet a budget.
STRIP_BYTES = 8 * MIB
MIN_STRIP_BYTES = 1 * MIB
MAX_TILES_PER_AXIS = 64
MAX_CACHED_PLANS = 256

# Memory is measured at this image side and at twice this side (four and eight times for large images); a line through
# the two points gives every other size.
ESTIMATE_SIDE = 128
# The sides of streamed images are rounded up to a multiple of this, so that few estimates serve many sizes.
STREAM_SIDE_STEP = 64

# fp16 has no values between 0 and 6e-8, where gradients of a mean lie. Feature gradients are scaled so that their
# largest magnitude is this, and the input gradient is scaled back.
FP16_GRADIENT_PEAK = 2.0**10
