"""Runs the Triton kernels in Triton's interpreter, on the CPU, and prints the results as JSON.

A process of its own: the interpreter is switched on, by TRITON_INTERPRET=1, before the kernels are made.
"""

from __future__ import annotations

import json
import warnings
from itertools import product

import torch

from lpips_lightning.distances.lpips import layer_distances
from lpips_lightning.kernels.head_triton import layer_sum, layer_sum_gradient

CHANNELS = (3, 64, 100, 192, 512, 600, 2100)
SIZES = ((1, 1), (3, 1), (2, 2))
KINDS = ("different", "noise 1e-3", "noise 1e-5", "dead", "tiny")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LAYOUTS = {"last": (True, True), "first": (False, False), "mixed": (True, False)}


def features(channels, size, kind, dtype, layout, seed):
    """Two batches of backbone features."""
    generator = torch.Generator().manual_seed(seed)
    both = torch.randn(2, 2, channels, *size, generator=generator)
    x, y = both.relu() if channels > 10 else both  # of few channels a ReLU leaves one, and all unit vectors are alike
    if kind.startswith("noise"):
        y = x * (1 + float(kind.split()[1]) * torch.randn(x.shape, generator=generator))
    if kind == "dead":
        x[0, :, 0, 0] = y[0, :, 0, -1] = x[1, :, -1, 0] = y[1, :, -1, 0] = 0
    if kind == "tiny":  # squares that float32 holds as denormal numbers, or not at all
        x, y = x * 1e-20, y * torch.tensor([1e-20, 1e-30]).view(2, 1, 1, 1)
    formats = {True: torch.channels_last, False: torch.contiguous_format}
    return tuple(
        part.to(dtype).contiguous(memory_format=formats[last])
        for part, last in zip((x, y), LAYOUTS[layout], strict=True)
    )


def oracle(x, y, weight):
    """Sums and gradient by the plain form in float64."""
    exact = x.double().requires_grad_()
    calibration = None if weight is None else {"": weight.double()}
    with torch.enable_grad():
        means = layer_distances({"": exact}, {"": y.double()}, calibration)[""]
        sums = means * x.shape[2] * x.shape[3]
        (gradient,) = torch.autograd.grad(sums.sum(), exact)
    return sums.detach(), gradient


def cases():
    """One in seventeen of the combinations, but for those that half precision cannot hold, or that take long."""
    every = list(product(CHANNELS, SIZES, KINDS, DTYPES, LAYOUTS))
    sensible = [case for case in every[::17] if case[2] != "tiny" or case[3] == "float32"]
    return [case for case in sensible if case[0] < 2000 or case[1] == (1, 1)]


def compare(channels, size, kind, dtype, layout, seed):
    """Errors of one case against the oracle."""
    x, y = features(channels, size, kind, DTYPES[dtype], layout, seed)
    generator = torch.Generator().manual_seed(seed)
    weight = None if seed % 4 == 0 else torch.rand(channels, generator=generator)
    sums, gradient = layer_sum_gradient(x, y, weight)
    expected, slope = oracle(x, y, weight)
    itself = layer_sum_gradient(x, x.clone(), weight)
    scale = expected.abs().clamp_min(1e-30)
    rounding = (slope.to(x.dtype).double() - slope).norm()
    dead = (x == 0).all(1, keepdim=True).expand_as(x)
    return {
        "case": [channels, size, kind, dtype, layout],
        "value": float(((sums - expected).abs() / scale).max()),
        "gradient": float(((gradient.double() - slope).norm() - 1.5 * rounding) / slope.norm().clamp_min(1e-30)),
        "finite": bool(sums.isfinite().all() and gradient.isfinite().all()),
        "dead_gradient": float(gradient[dead].abs().max()) if dead.any() else 0.0,
        "dead_positions": int(dead[:, 0].sum()),
        "with_itself": max(float(part.abs().max()) for part in itself),
        "same_without_gradient": bool(torch.equal(layer_sum(x, y, weight), sums)),
        "same_alone": bool(torch.equal(layer_sum(x[1:], y[1:], weight), sums[1:])),
        "laid_out_as_x": gradient.stride() == x.stride() and gradient.dtype == x.dtype,
    }


def compiled():
    """The operators under torch.compile without graph breaks, and under PyTorch's own checks of operators."""
    x, y = features(64, (5, 3), "different", torch.float32, "last", 1)
    weight = torch.rand(64)

    def both(x, y, weight):
        sums, gradient = layer_sum_gradient(x, y, weight)
        return layer_sum(x, y, weight) + sums, gradient * 2

    sums, gradient = both(x, y, weight)
    graphed, graphed_gradient = torch.compile(both, fullgraph=True, backend="aot_eager")(x, y, weight)
    checks = ("test_schema", "test_faketensor")
    for operator in (torch.ops.lpips_lightning.layer_sum, torch.ops.lpips_lightning.layer_sum_gradient):
        for arguments in ((x, y, weight), (x.contiguous(), y, None)):
            torch.library.opcheck(operator.default, arguments, test_utils=checks)
    return bool(torch.equal(sums, graphed) and torch.equal(gradient, graphed_gradient))


def odd():
    """No images; every second column; one image expanded; more channels than one program holds."""
    x, y = features(20, (7, 6), "different", torch.float32, "first", 2)
    many = features(2100, (2, 2), "dead", torch.float32, "mixed", 3)
    found = []
    for a, b in ((x[:0], y[:0]), (x[..., 1::2], y[..., 1::2]), (x[:1].expand(2, -1, -1, -1), y), many):
        sums, gradient = layer_sum_gradient(a, b, None)
        expected, slope = oracle(a, b, None)
        found.append(
            bool(torch.allclose(sums.double(), expected) and torch.allclose(gradient.double(), slope, 1e-5, 1e-6))
        )
    return found


def main():
    """Print everything."""
    warnings.simplefilter("ignore")
    rows = [compare(*case, seed) for seed, case in enumerate(cases())]
    print(json.dumps({"cases": rows, "compiled": compiled(), "odd": odd()}))


if __name__ == "__main__":
    main()
