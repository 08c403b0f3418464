"""Imports and calls leave the process as they found it: filters, flags, threads, locale, environment, random state."""

from __future__ import annotations

from pathlib import Path

import forked_python

ROOT = Path(__file__).parents[2]
CODE = """
import importlib, locale, logging, multiprocessing, os, pkgutil, random, signal, sys, warnings
from importlib.util import find_spec
# What others change when they are imported is theirs.
import jsonargparse, kornia, matplotlib, numpy, PIL.Image, pytorch_lightning, pytorch_lightning.cli, rich.progress
import safetensors.torch, skimage.data, torch, torchmetrics, torchmetrics.image, torchvision
import matplotlib.figure, pytorch_lightning.loggers, torchmetrics.functional.image
from torch.backends import cuda, cudnn
if find_spec("lightning"):  # the base classes derive from both Lightning packages
    import lightning.pytorch, lightning.pytorch.plugins.io

def state():
    umask = os_umask(0)
    os_umask(umask)
    return {
        "warning filters": list(warnings.filters),
        "showwarning": warnings.showwarning,
        "umask": umask,
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "deterministic": (torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, cudnn.benchmark),
        "precision": (torch.get_float32_matmul_precision(), cudnn.allow_tf32, cuda.matmul.allow_tf32),
        "gradients": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_anomaly_enabled()),
        "defaults": (torch.get_default_dtype(), torch.get_default_device(), torch.is_autocast_enabled("cpu")),
        "torch's random state": torch.get_rng_state().tolist(),
        "numpy's": (numpy.geterr(), *map(str, numpy.random.get_state())),
        "python's": random.getstate(),
        "sharing": (torch.multiprocessing.get_sharing_strategy(), multiprocessing.get_start_method(allow_none=True)),
        "matplotlib": dict(matplotlib.rcParams),
        "locale": locale.setlocale(locale.LC_ALL),
        "environment": dict(os.environ),
        "logging": (logging.root.level, list(logging.root.handlers), logging.root.manager.disable),
        "levels": [logging.getLogger(name).level for name in ("pytorch_lightning", "lightning.pytorch")],
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        "hooks": (sys.excepthook, sys.displayhook, sys.unraisablehook, sys.getrecursionlimit()),
        "folder": os.getcwd(),
        "PIL": (PIL.Image.MAX_IMAGE_PIXELS, PIL.ImageFile.LOAD_TRUNCATED_IMAGES),
    }

def refuse(*_):
    raise AssertionError("the umask is not ours to set, not even for a moment")

def check(what):
    now = state()
    changed = {name: (before[name], now[name]) for name in before if before[name] != now[name]}
    assert not changed, (what, changed)

os_umask, os.umask = os.umask, refuse
before = state()
modules = sys.argv[1].split(",")
for name in modules:
    if find_spec("triton") or not name.endswith("head_triton_kernels"):
        importlib.import_module(name)
        check(name)

from lpips_lightning import LearnedPerceptualImagePatchSimilarity, PerceptualLoss
from lpips_lightning.backbones.definition import BACKBONES
from lpips_lightning.backbones.extractor import random_backbone
from lpips_lightning.cli.commands import main
from lpips_lightning.io.image_files import write_image
generator = torch.Generator().manual_seed(0)
x, y = torch.rand(2, 4, 3, 256, 256, generator=generator)
metric = LearnedPerceptualImagePatchSimilarity("embedded", data_range=(0, 1))
metric.update(x, y)
assert 0 < float(metric.compute()) < 1
check("metric")
# Not weights="random", which draws its seed from PyTorch's generator, as its docstring says.
loss = PerceptualLoss("squeeze", weights=random_backbone(BACKBONES["squeeze"], seed=0), data_range=(0, 1))
loss(x.requires_grad_(), y).backward()
assert x.grad.abs().sum() > 0
check("loss")
folder = sys.argv[2]
for name, image in (("a", x[0].detach()), ("b", y[0])):
    write_image(image, f"{folder}/{name}.png")
assert main(["compare", f"{folder}/a.png", f"{folder}/b.png", "--net", "embedded", "--json", f"{folder}/c.json"]) == 0
check("compare")
assert main(["weights", "list"]) == 0
check("weights")
print(len(modules), oct(os.stat(f"{folder}/c.json").st_mode & 0o777))
"""


def modules():
    """Names of all modules in the checkout."""
    folders = {ROOT / "lpips_lightning": ""} | {ROOT / name: f"{name}." for name in ("callbacks", "recipes", "weights")}
    for folder, prefix in folders.items():
        for file in sorted(folder.rglob("*.py")):
            name = ".".join(file.relative_to(folder).with_suffix("").parts)
            yield f"lpips_lightning.{prefix}{name}".removesuffix("__init__").rstrip(".")


def test_imports_a_metric_a_loss_and_a_comparison_change_nothing_of_the_process(tmp_path):
    names = list(modules())
    assert len(names) > 100
    code = f"import os; os.umask(0o027)\n{CODE}"
    ran = forked_python.run(["-c", code, ",".join(names), tmp_path], cwd=ROOT, capture_output=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[-1] == f"{len(names)} 0o640"  # new files follow the umask
