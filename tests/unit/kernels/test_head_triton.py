"""The Triton kernels: in Triton's interpreter, compiled for a GPU that is not there, and on one that is."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import forked_python
import interpreted_head
import pytest
import torch

from lpips_lightning.kernels import head_triton
from lpips_lightning.kernels.head_triton import SWITCH, available, layer_sum, layer_sum_gradient

ROOT = Path(__file__).parents[3]
TRITON = importlib.util.find_spec("triton") is not None
CASES = interpreted_head.cases()
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}


def python(code):
    done = forked_python.run(["-c", code], env=ENVIRONMENT, capture_output=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def interpreted():
    if not TRITON:
        pytest.skip("Triton is not installed")
    command = [sys.executable, str(ROOT / "tests" / "_helpers" / "interpreted_head.py")]
    environment = {**ENVIRONMENT, "TRITON_INTERPRET": "1"}  # before Triton is imported, as torch does
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_cases_cover_every_choice(interpreted):
    assert [row["case"] for row in interpreted["cases"]] == [[case[0], list(case[1]), *case[2:]] for case in CASES]
    assert len(CASES) >= 40
    for place, choices in enumerate(
        (
            interpreted_head.CHANNELS,
            interpreted_head.SIZES,
            interpreted_head.KINDS,
            interpreted_head.DTYPES,
            interpreted_head.LAYOUTS,
        )
    ):
        assert {case[place] for case in CASES} == set(choices)


@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda number: "-".join(map(str, CASES[number])))
def test_sums_and_gradients_are_those_of_the_plain_form_in_float64(interpreted, number):
    row = interpreted["cases"][number]
    assert row["value"] < 1e-6, row
    # Beyond the rounding of the features' dtype. The interpreter cuts bfloat16 off where a GPU rounds.
    assert row["gradient"] < (8e-3 if CASES[number][3] == "bfloat16" else 1e-6), row
    assert row["finite"] and row["laid_out_as_x"], row


def test_equal_images_are_at_zero_with_a_zero_gradient(interpreted):
    assert [row["with_itself"] for row in interpreted["cases"]] == [0.0] * len(CASES)


def test_positions_without_a_channel_have_no_gradient(interpreted):
    assert sum(row["dead_positions"] for row in interpreted["cases"]) >= 10
    assert max(row["dead_gradient"] for row in interpreted["cases"]) == 0


def test_a_sum_depends_on_its_own_pair_alone_with_gradient_or_without(interpreted):
    assert all(row["same_without_gradient"] and row["same_alone"] for row in interpreted["cases"])


def test_the_operators_compile_without_a_graph_break(interpreted):
    assert interpreted["compiled"]


def test_empty_batches_strided_memory_expanded_and_wide_features(interpreted):
    assert interpreted["odd"] == [True] * 4


@pytest.mark.skipif(not TRITON, reason="Triton is not installed")
def test_the_kernels_compile_for_a_gpu_that_is_not_there():
    code = """
import sys, triton
if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 3):
    print("too old for this call of its compiler"); sys.exit()
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from lpips_lightning.kernels import head_triton_kernels as head_kernels
for kernel, channels, dtype in ((head_kernels._whole, 64, "bf16"), (head_kernels._by_blocks, 3000, "fp32")):
    block_c, block_p, warps = head_kernels.plan(channels)
    fixed = {"CHANNELS": channels, "BLOCK_C": block_c, "BLOCK_P": block_p, "EPSILON": 1e-10, "X_LAST": True,
             "Y_LAST": True, "WEIGHTED": True, "GRADIENT": True}
    pointers = {"x": dtype, "y": dtype, "weight": "fp32", "partial": "fp32", "gradient": dtype}
    types = {"positions": "i32", "tiles": "i32"} | {name: f"*{type}" for name, type in pointers.items()}
    names = kernel.arg_names
    signature = {name: types.get(name, "constexpr") for name in names}
    aligned = {(place,): [["tt.divisibility", 16]] for place, name in enumerate(names) if name in pointers}
    source = ASTSource(kernel, signature, {(names.index(name),): value for name, value in fixed.items()}, aligned)
    options = {"num_warps": warps, "enable_fp_fusion": True}
    ptx = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"]
    scalar = ptx.count("ld.global.b16") + ptx.count("ld.global.b32")
    print(int("sqrt.rn" in ptx and "div.rn" in ptx and "ld.global.v4" in ptx and scalar <= 3))
"""
    printed = python(code)
    if "too old" in printed:
        pytest.skip(f"Triton: {printed.strip()}")
    assert printed.split() == ["1", "1"]


def test_bad_arguments_are_one_clear_error():
    x = torch.zeros(2, 3, 4, 4)
    with pytest.raises(TypeError, match=r"y: expected float32, bfloat16 or float16, got torch\.float64"):
        layer_sum(x, x.double(), None)
    with pytest.raises(ValueError, match=r"y: expected features .* as x, \(2, 3, 4, 4\) on cpu, got \(2, 3, 4, 5\)"):
        layer_sum_gradient(x, torch.zeros(2, 3, 4, 5), None)
    with pytest.raises(ValueError, match=r"y: expected features \(N, C, h, w\)"):
        layer_sum(x[0], x[0], None)
    with pytest.raises(ValueError, match=r"y: expected .* on cpu, got \(2, 3, 4, 4\) on meta"):
        layer_sum(x, x.to("meta"), None)
    with pytest.raises(ValueError, match=r"weight: expected shape \(3,\) on cpu, got \(4,\) on cpu"):
        layer_sum(x, x, torch.ones(4))
    with pytest.raises(ValueError, match="x, y: expected features without requires_grad"):
        layer_sum(x.requires_grad_(), x, None)


def test_shapes_are_known_without_a_launch():
    x = torch.zeros(2, 3, 4, 5, dtype=torch.bfloat16, device="meta").to(memory_format=torch.channels_last)
    sums, gradient = layer_sum_gradient(x, x, None)
    assert (sums.shape, sums.dtype) == ((2,), torch.float32)
    assert (gradient.shape, gradient.dtype, gradient.stride()) == (x.shape, x.dtype, x.stride())


def test_there_are_no_kernels_on_a_cpu_nor_for_float64():
    assert not available(torch.device("cpu"))
    assert not available(torch.device("cuda"), torch.float64)
    assert torch.compile(lambda x: x + available(x.device), fullgraph=True, backend="eager")(torch.zeros(1)) == 0


@pytest.fixture
def no_device(monkeypatch):
    """A GPU by name, on which a kernel gives what it is told to."""
    monkeypatch.setattr(head_triton, "_works", {})
    monkeypatch.setattr(head_triton, "find_spec", lambda name: name == "triton")
    monkeypatch.setattr(torch, "tensor", lambda values, **kwargs: torch.FloatTensor(values))
    calls = []

    def gives(result):
        def kernel(x, y, weight):
            calls.append(x)
            if isinstance(result, Exception):
                raise result
            return torch.FloatTensor([result]), x

        monkeypatch.setattr(head_triton, "layer_sum_gradient", kernel)
        return calls

    return gives


def test_a_gpu_on_which_the_kernel_works_is_tried_once(no_device, caplog):
    calls = no_device(0.08)
    assert available(torch.device("cuda")) and available(torch.device("cuda"))
    assert len(calls) == 1
    assert not caplog.records


@pytest.mark.parametrize("failure", [RuntimeError("Failed to find C compiler.\nmore"), 0.09])
def test_a_kernel_that_fails_is_left_out_with_one_warning(no_device, caplog, failure):
    calls = no_device(failure)
    with caplog.at_level(logging.WARNING, "lpips_lightning"):
        assert not available(torch.device("cuda")) and not available(torch.device("cuda"))
    assert len(calls) == 1
    (record,) = caplog.records
    said = "RuntimeError: Failed to find C compiler." if isinstance(failure, Exception) else "expected 0.08, got 0.09"
    assert record.getMessage() == f"the Triton kernels do not run on cuda, the plain form does: {said}"


def test_a_variable_or_a_lack_of_triton_leaves_the_kernels_out(no_device, monkeypatch):
    calls = no_device(0.08)
    monkeypatch.setenv(SWITCH, "0")
    assert not available(torch.device("cuda"))
    monkeypatch.delenv(SWITCH)
    monkeypatch.setattr(head_triton, "_works", {})
    monkeypatch.setattr(head_triton, "find_spec", lambda name: None)
    assert not available(torch.device("cuda"))
    assert not calls


def test_neither_the_package_nor_the_operators_import_triton():
    code = """
import sys, torch, torchvision, torchmetrics
before = set(sys.modules)
import lpips_lightning, lpips_lightning.kernels.head_triton
print(sorted(name for name in set(sys.modules) - before if name.partition(".")[0] == "triton"))
"""
    assert python(code).strip() == "[]"


@cuda
@pytest.mark.parametrize("dtype", interpreted_head.DTYPES)
@pytest.mark.parametrize("channels", [*interpreted_head.CHANNELS, 128, 256, 384])
def test_gpu_equals_the_plain_form_in_float64(channels, dtype):
    for seed, kind in enumerate(interpreted_head.KINDS if dtype == "float32" else interpreted_head.KINDS[:-1]):
        for layout in interpreted_head.LAYOUTS:
            kinds = (channels, (13, 9), kind, interpreted_head.DTYPES[dtype], layout, seed)
            x, y = (features.cuda() for features in interpreted_head.features(*kinds))
            weight = torch.rand(channels, device="cuda")
            sums, gradient = layer_sum_gradient(x, y, weight)
            expected, slope = interpreted_head.oracle(x, y, weight)
            assert torch.allclose(sums.double(), expected, 1e-5, 0)
            rounding = (slope.to(x.dtype).double() - slope).norm()
            assert (gradient.double() - slope).norm() < 1.5 * rounding + 1e-5 * slope.norm()
            assert torch.equal(layer_sum(x, y, weight), sums)
            assert layer_sum(x, x.clone(), weight).abs().max() == 0
            assert layer_sum_gradient(x, x.clone(), weight)[1].abs().max() == 0


@cuda
def test_gpu_gives_equal_bits_in_a_graph_and_compiled():
    assert available(torch.device("cuda"))
    x, y = torch.randn(2, 4, 256, 65, 63, device="cuda").to(torch.bfloat16).relu()
    x, y = x.contiguous(memory_format=torch.channels_last), y.contiguous(memory_format=torch.channels_last)
    weight = torch.rand(256, device="cuda")
    sums, gradient = layer_sum_gradient(x, y, weight)
    for _ in range(10):
        again = layer_sum_gradient(x, y, weight)
        assert torch.equal(again[0], sums) and torch.equal(again[1], gradient)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        recorded = layer_sum_gradient(x, y, weight)
    graph.replay()
    assert torch.equal(recorded[0], sums) and torch.equal(recorded[1], gradient)
    compiled = torch.compile(layer_sum_gradient, fullgraph=True)(x, y, weight)
    assert torch.equal(compiled[0], sums) and torch.equal(compiled[1], gradient)


@cuda
def test_gpu_takes_no_memory_but_the_gradient_and_the_parts():
    x, y = torch.rand(2, 4, 64, 256, 256, device="cuda")
    layer_sum_gradient(x[:1], y[:1], None)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    layer_sum_gradient(x, y, None)
    assert torch.cuda.max_memory_allocated() - before < 1.1 * x.nbytes


@cuda
def test_gpu_addresses_more_than_two_to_the_31_numbers():
    x = torch.ones(1, 64, 5800, 5800, dtype=torch.bfloat16, device="cuda")  # 2.15e9 numbers, 4.3 GB
    y = x.clone()
    y[..., -1, -1] = 0
    assert float(layer_sum(x, y, None)) == pytest.approx(1.0)
