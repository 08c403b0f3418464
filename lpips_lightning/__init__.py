"""LPIPS for PyTorch Lightning: a metric, a loss, callbacks, recipes, and the calibration itself.

`LPIPS` is the network, `PerceptualLoss` the training loss, `LearnedPerceptualImagePatchSimilarity` the metric, and
`LPIPSDiversity` the diversity metric of a generator. `compare` takes files, folders, Pillow images and arrays.
`WeightedSum` adds several networks, and `Ensemble` averages one over random transformations. `LPIPS.encode` returns
`Features`. `AdversarialLoss`, `PatchDiscriminator` and `adaptive_weight` add a discriminator to a perceptual loss.
`export_network` writes a network as one file for other runtimes. More public names are in the sub-packages
`functional`, `metrics`, `backbones`, `data`, `calibration`, `evaluation`, `callbacks`, `images`, `io` and `weights`,
and in `compat`. Everything else is internal.

Names are imported on first use. The import needs only torch, torchvision and torchmetrics; Lightning, kornia and wandb
are imported only by the modules that use them.

# The frozen network is shared, not a submodule

Metric and loss have no parameters, buffers or state-dict keys. `.half()`, `.train()`, `.requires_grad_()`, optimizers,
EMA, DDP and checkpoints do not affect the network; copies and pickles take a few bytes. All users of equal weights in
one process share one copy, which is freed with its last user.

>>> import torch
>>> from lpips_lightning import LPIPS, PerceptualLoss
>>> loss = PerceptualLoss("embedded", data_range=(0, 1))
>>> list(loss.parameters()), loss.state_dict()
([], OrderedDict())

# Encode once, compare often

Compute the features of a fixed target (GAN inversion, style optimization) once with `encode` of the network or the
loss. Then use `distance` of the network, or ``reference=`` of the loss.

>>> net = LPIPS("embedded")
>>> x, y = torch.rand(2, 4, 3, 64, 64)
>>> fixed = net.encode(y, data_range=(0, 1))
>>> again = net.distance(net.encode(x, data_range=(0, 1)), fixed)
>>> torch.allclose(again, net(x, y, data_range=(0, 1)))
True
>>> reference = loss.encode(y)
>>> loss(x, reference=reference).shape
torch.Size([])

# Masks, videos, baseline

``mask=`` weights pixels; ``erode=True`` counts only positions whose receptive field lies inside the mask. A video
``(B, T, 3, H, W)`` gives one distance per frame, ``(B, T)``; ``frame_chunk=`` bounds its memory. ``calibrated=False``
uses the backbone without the calibration.

>>> foreground = torch.ones(4, 64, 64, dtype=torch.bool)
>>> net(x, y, data_range=(0, 1), mask=foreground).shape
torch.Size([4])
>>> net(x[None], y[None], data_range=(0, 1)).shape
torch.Size([1, 4])

# Precision

The metric computes in float32 under any autocast (float64 for float64 images); the backbone of the loss follows
autocast (``precision="autocast"``). Everything after the backbone is float32. Values and gradients are finite at
all-zero positions, under double backward too. ``torch.compile(fullgraph=True)`` and ``torch.export`` work; compiled
calls check shapes but not pixel values.

# Tracing and export

``torch.jit.trace``, both ONNX exporters, ``torch.export``, AOTInductor and ``make_fx`` record plain PyTorch operations,
which give the numbers of `LPIPS` for any batch and image size. Shapes are checked while tracing; the recorded graph
checks nothing, and clamps data to its range. To use a graph as a loss, trace it with an example that requires grad:
predictions are then not clamped, as in `LPIPS`. `export_network` and ``lpips-lightning export`` write one file with its
record.

# Memory

A loss computes its input gradient in the forward pass, a few images at a time, and stores only this gradient until
``backward``. Distance maps, masks, gradients of single layers and double backward use plain autograd. See
`lpips_lightning.engine`. `keep_freed_memory` makes calls on a CPU faster with glibc, by an allocator setting of the
whole process.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from lpips_lightning._lazy import lazy_names

# In a checkout, callbacks/, recipes/ and weights/ are siblings of this folder.
__path__ = [*__path__, *(str(p.parent) for p in Path(__file__).parents[1].glob("pyproject.toml"))]

__version__ = "0.1.0"
__all__ = [
    "LPIPS",
    "AdversarialLoss",
    "Ensemble",
    "Features",
    "LPIPSDiversity",
    "LearnedPerceptualImagePatchSimilarity",
    "PatchDiscriminator",
    "PerceptualLoss",
    "WeightedSum",
    "adaptive_weight",
    "compare",
    "export_network",
    "keep_freed_memory",
]

if TYPE_CHECKING:
    from lpips_lightning.adversarial import AdversarialLoss, PatchDiscriminator, adaptive_weight
    from lpips_lightning.batch import Features
    from lpips_lightning.comparison.compare import compare
    from lpips_lightning.engine.memory import keep_freed_memory
    from lpips_lightning.ensembles import Ensemble
    from lpips_lightning.export import export_network
    from lpips_lightning.loss import PerceptualLoss
    from lpips_lightning.metrics.diversity import LPIPSDiversity
    from lpips_lightning.metrics.lpips import LearnedPerceptualImagePatchSimilarity
    from lpips_lightning.network import LPIPS
    from lpips_lightning.weighted_sum import WeightedSum
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "adversarial": ["AdversarialLoss", "PatchDiscriminator", "adaptive_weight"],
            "batch": ["Features"],
            "comparison.compare": ["compare"],
            "engine.memory": ["keep_freed_memory"],
            "ensembles": ["Ensemble"],
            "export": ["export_network"],
            "loss": ["PerceptualLoss"],
            "metrics.diversity": ["LPIPSDiversity"],
            "metrics.lpips": ["LearnedPerceptualImagePatchSimilarity"],
            "network": ["LPIPS"],
            "weighted_sum": ["WeightedSum"],
        },
    )
