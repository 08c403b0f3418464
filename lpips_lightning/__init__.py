"""LPIPS for PyTorch Lightning: a metric, a loss, callbacks, recipes, and the calibration itself.

`LPIPS` is the network, `PerceptualLoss` the training loss, `LearnedPerceptualImagePatchSimilarity` the metric,
`LPIPSDiversity` the metric of a group's samples; `Features` is what `LPIPS.encode` returns. Further public names stand
in the sub-packages `functional`, `metrics`, `backbones`, `data`, `calibration`, `evaluation`, `callbacks`, `images`,
`io` and `weights`, and in `compat`. Everything else is internal.

Names are imported when they are first used, with torch, torchvision and torchmetrics alone; Lightning, kornia and wandb
are imported by what needs them.

# The network is a resource, not a part

Metric and loss own no parameters, buffers or state-dict keys. `.half()`, `.train()`, `.requires_grad_()`, optimizers,
EMA, DDP and checkpoints leave the network alone; copies and pickles are a few bytes. Users of equal weights in one
process share one copy, freed with the last of them.

>>> import torch
>>> from lpips_lightning import LPIPS, PerceptualLoss
>>> loss = PerceptualLoss("embedded", data_range=(0, 1))
>>> list(loss.parameters()), loss.state_dict()
([], OrderedDict())

# Encode once, compare often

Features of a target that stays the same (GAN inversion, style optimization) are computed once: `encode` of the network
or the loss, then `distance` of the network, or ``reference=`` of the loss.

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

``mask=`` says which pixels count, and ``erode=True`` counts only positions that see nothing else. A video ``(B, T, 3,
H, W)`` gives a curve ``(B, T)``, and ``frame_chunk=`` bounds its memory. ``calibrated=False`` is the backbone without
the calibration.

>>> foreground = torch.ones(4, 64, 64, dtype=torch.bool)
>>> net(x, y, data_range=(0, 1), mask=foreground).shape
torch.Size([4])
>>> net(x[None], y[None], data_range=(0, 1)).shape
torch.Size([1, 4])

# Precision

The metric computes in float32 under any autocast (float64 for float64 images); the loss follows autocast in its
backbone (``precision="autocast"``). Everything after the backbone is float32 always, with finite values and gradients
at all-zero positions and under double backward. ``torch.compile(fullgraph=True)`` and ``torch.export`` work; compiled
calls check shapes, not values.

# Memory

A loss computes its gradient in the forward pass, a few images at a time, and keeps only that until ``backward``; maps,
masks, gradients by layer and derivatives of the gradient use plain autograd. `lpips_lightning.engine` tells how it
works.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from lpips_lightning._lazy import lazy_names

# In a checkout callbacks/, recipes/ and weights/ lie beside this folder, not inside it.
__path__ = [*__path__, *(str(p.parent) for p in Path(__file__).parents[1].glob("pyproject.toml"))]

__version__ = "0.1.0"
__all__ = ["LPIPS", "Features", "LPIPSDiversity", "LearnedPerceptualImagePatchSimilarity", "PerceptualLoss"]

if TYPE_CHECKING:
    from lpips_lightning.batch import Features
    from lpips_lightning.loss import PerceptualLoss
    from lpips_lightning.metrics.diversity import LPIPSDiversity
    from lpips_lightning.metrics.lpips import LearnedPerceptualImagePatchSimilarity
    from lpips_lightning.network import LPIPS
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "batch": ["Features"],
            "loss": ["PerceptualLoss"],
            "metrics.diversity": ["LPIPSDiversity"],
            "metrics.lpips": ["LearnedPerceptualImagePatchSimilarity"],
            "network": ["LPIPS"],
        },
    )
