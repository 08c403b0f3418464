"""One processor stands for several: the numerics once more, with fewer instructions for PyTorch's kernels or oneDNN's.

``ATEN_CPU_CAPABILITY`` chooses among the kernels that PyTorch was compiled with, ``ONEDNN_MAX_CPU_ISA`` bounds those
that oneDNN generates. Both are read once, when a process first needs them, hence the processes. The default run takes
the bounds of single convolutions and of networks; ``-m slow`` adds the whole files about numbers, and on a processor
with AVX-512 PyTorch's kernels without AVX2.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

TESTS = Path(__file__).parent
FEW = (
    "unit/kernels/test_conv2d.py::test_values_and_three_derivatives_are_those_of_pytorch_in_float64",
    "unit/kernels/test_winograd.py::test_in_float32_its_error_is_that_of_its_algorithm",
    "parity/test_peers.py::test_gradient_in_float32_points_where_lpips_does",
    *(
        f"parity/test_peers.py::test_nearly_equal_images_are_as_exact_as_lpips[{case}]"
        for case in ("alex-0.0001", "vgg-0.01", "squeeze-0.0001")
    ),
)
FILES = (
    *(
        "unit/kernels/test_conv2d.py",
        "unit/kernels/test_winograd.py",
        "unit/engine/test_autograd.py",
        "unit/engine/test_executor.py",
    ),
    "parity/test_peers.py::test_nearly_equal_images_are_as_exact_as_lpips",
    "parity/test_peers.py::test_gradient_in_float32_points_where_lpips_does",
)
MORE = (
    "parity/test_peers.py",
    "unit/test_network.py",
    "unit/engine/test_streaming.py",
    "unit/engine/test_tiling.py",
    "unit/images/test_masks.py",
    "unit/test_properties.py",
)
AVX2 = "ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2"  # both, as on a processor that has no more
NARROWER = {  # by what PyTorch calls the processor: the settings that take something from it
    "AVX2": ["ATEN_CPU_CAPABILITY=default"],
    "AVX512": ["ATEN_CPU_CAPABILITY=default", AVX2],
}
SETTINGS = NARROWER["AVX512"]
# pytest, after it was seen that the setting is one.
CODE = """
import sys, pytest, torch
print("capability", torch.backends.cpu.get_cpu_capability(), "threads", torch.get_num_threads(), flush=True)
sys.exit(pytest.main(sys.argv[1:]))
"""
# A convolution, by which oneDNN says with "verbose" what it takes.
CONVOLUTION = "import torch; torch.nn.functional.conv2d(torch.rand(1, 64, 56, 56), torch.rand(64, 64, 3, 3))"


def variables(setting):
    return dict(variable.split("=") for variable in setting.split())


def environment(setting, **more):
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    return {**inherited, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", **more, **variables(setting)}


def check_needed(setting):
    """Skip what would be the same run again."""
    found = torch.backends.cpu.get_cpu_capability()
    if platform.machine().lower() not in ("x86_64", "amd64") or not torch.backends.mkldnn.is_available():
        pytest.skip(f"the variables are x86's, this is {platform.machine()}")
    if setting not in NARROWER.get(found, []):
        pytest.skip(f"{setting} takes nothing from a processor with {found}")


def check_passes(setting, *arguments):
    """The tests pass in a process of their own, which really has the setting."""
    check_needed(setting)
    command = [sys.executable, "-c", CODE, "-p", "no:cacheprovider", "-n", "0", "-q", "--no-header", *arguments]
    done = subprocess.run(
        command, cwd=TESTS.parent, env=environment(setting), capture_output=True, text=True, timeout=3600
    )
    said = done.stdout[-6000:] + done.stderr[-2000:]
    assert done.returncode == 0, said
    capability, threads = re.match(r"capability (\S+) threads (\d+)\n", done.stdout).groups()
    assert threads == "1"
    assert capability == variables(setting)["ATEN_CPU_CAPABILITY"].upper()
    passed = re.search(r"\b(\d+) passed\b", done.stdout)
    assert passed and int(passed[1]) > 50, said


def nearest():
    """The setting that takes the least from this processor."""
    return NARROWER.get(torch.backends.cpu.get_cpu_capability(), SETTINGS)[-1]


def test_the_numerics_hold_with_fewer_instructions():
    check_passes(nearest(), *(str(TESTS / file) for file in FEW))


@pytest.mark.slow
def test_all_of_the_numerics_hold_with_fewer_instructions():
    check_passes(nearest(), *(str(TESTS / file) for file in FILES))


@pytest.mark.slow
def test_the_numerics_hold_with_the_fewest_instructions():
    if nearest() == SETTINGS[0]:
        pytest.skip("the test before this one had them")
    check_passes(SETTINGS[0], *(str(TESTS / file) for file in FILES))


@pytest.mark.slow
def test_the_rest_of_the_numerics_holds_with_fewer_instructions():
    check_passes(nearest(), *(str(TESTS / file) for file in MORE))


def test_onednn_generates_no_wider_instructions_than_it_may():
    check_needed(AVX2)
    command = [sys.executable, "-c", CONVOLUTION]
    done = subprocess.run(
        command,
        env=environment(AVX2, ONEDNN_VERBOSE="1", DNNL_VERBOSE="1"),
        capture_output=True,
        text=True,
        check=True,
        timeout=900,
    )
    lines = [line for line in done.stdout.splitlines() if ",convolution," in line]
    assert lines and all("avx2" in line and "avx512" not in line for line in lines)
