"""Two batches of images, their input variants, and every public entry point that takes them."""

from __future__ import annotations

import copy
import math

import numpy as np
import torch
from torch import nn
from torchvision import tv_tensors

from lpips_lightning import LPIPS, LearnedPerceptualImagePatchSimilarity, PerceptualLoss
from lpips_lightning.callbacks import PerceptualScores
from lpips_lightning.functional.lpips import learned_perceptual_image_patch_similarity
from lpips_lightning.metrics.diversity import LPIPSDiversity

SIDE = 40
NET, UNCLAMPED = LPIPS("embedded"), LPIPS("embedded", validate_args=False)
_numbers = torch.rand(2, 2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) * 2 - 1
X, Y = _numbers[0].clone(), _numbers[1].clone()
METRIC, DIVERSITY = LearnedPerceptualImagePatchSimilarity("embedded", "none"), LPIPSDiversity("embedded")
LOSS = PerceptualLoss("embedded", data_range=(-1, 1), reduction="none")
UNCHECKED = PerceptualLoss("embedded", data_range=(-1, 1), reduction="none", validate_args=False)


def by_metric(x, y):
    metric = copy.deepcopy(METRIC)
    metric.update(x, y)
    return metric.compute()


def by_diversity(x, y):
    metric = copy.deepcopy(DIVERSITY)
    metric.update(torch.stack((x, y), 1))
    return metric.compute()


FACES = {  # two batches -> distances (N,)
    "network": NET,
    "measure": lambda x, y: NET.measure(x, y).values,
    "layers": lambda x, y: torch.stack(list(NET(x, y, per_layer=True).values())).sum(0),
    "mask": lambda x, y: NET(x, y, mask=torch.ones(len(x), *x.shape[-2:], dtype=torch.bool)),
    "features": lambda x, y: NET.distance(NET.encode(x), NET.encode(y)),
    "pairwise": lambda x, y: NET.pairwise(x, y).diagonal(),
    "built network": lambda x, y: learned_perceptual_image_patch_similarity(x, y, NET, "none"),
    "callback": lambda x, y: PerceptualScores(NET, data_range=(-1, 1), metrics=["lpips"]).score(x, y)[:, 0],
    "function": lambda x, y: learned_perceptual_image_patch_similarity(x, y, "embedded", "none"),
    "metric": by_metric,
    "forward of the metric": lambda x, y: copy.deepcopy(METRIC)(x, y),
    "loss": lambda x, y: copy.deepcopy(LOSS)(x, y),
    "loss without checks": UNCHECKED,
}


def plain(images):
    """The same values in a new, contiguous, ordinary float32 tensor on [-1, 1]."""
    images = images.detach().as_subclass(torch.Tensor).resolve_neg().resolve_conj()
    values = images.double() / 127.5 - 1 if images.dtype == torch.uint8 else images.double()
    return values.float().clone(memory_format=torch.contiguous_format)


class Own(torch.Tensor):
    """A user-defined tensor subclass."""


def _inference(images):
    with torch.inference_mode():
        return images.clone()


def _window(images):
    """A strided view: every other pixel of a larger tensor."""
    canvas = torch.full((len(images), 5, 2 * SIDE + 3, 3 * SIDE), math.nan)
    canvas[:, 1:4, 2 : 2 * SIDE + 2 : 2, 1::3] = images
    return canvas[:, 1:4, 2 : 2 * SIDE + 2 : 2, 1::3]


SAME = {  # a change of a batch that leaves it a batch of images
    "contiguous": lambda t: t.clone(),
    "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "transposed": lambda t: t.mT.contiguous().mT,
    "permuted from HWC": lambda t: t.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2),
    "permuted from CNHW": lambda t: t.transpose(0, 1).contiguous().transpose(0, 1),
    "window of a larger tensor": _window,
    "reversed by index": lambda t: t.flip(0)[torch.tensor([1, 0])],
    "expanded over the batch": lambda t: t[:1].expand(2, -1, -1, -1),
    "expanded over the channels": lambda t: t[:, :1].expand(-1, 3, -1, -1),
    "expanded over the rows": lambda t: t[:, :, :1].expand(-1, -1, SIDE, -1),
    "expanded from one number": lambda t: torch.tensor(0.3).expand(2, 3, SIDE, SIDE),
    "one row in memory, as_strided": lambda t: t.as_strided((2, 3, SIDE, SIDE), (1, 1, 1, 1)),
    "negated view": lambda t: torch._neg_view(-t),
    "real part of a conjugate": lambda t: torch.complex(t, t).conj().real,
    "imaginary part of a conjugate": lambda t: torch.complex(t, -t).conj().imag,
    "of NumPy, reversed and copied": lambda t: torch.from_numpy(t.numpy()[..., ::-1].copy()),
    "of NumPy, in Fortran's order": lambda t: torch.from_numpy(np.asfortranarray(t.numpy())),
    "one image": lambda t: t[:1],
    "three images": lambda t: t[[0, 1, 0]],
    "no image": lambda t: t[:0],
    "the smallest side": lambda t: t[..., :31, :31],
    "an odd side": lambda t: t[..., :37, :33],
    "a parameter": lambda t: nn.Parameter(t.clone()),
    "wants a gradient": lambda t: t.clone().requires_grad_(),
    "of another operation": lambda t: t.clone().requires_grad_() * 1,
    "detached": lambda t: (t.clone().requires_grad_() * 1).detach(),
    "of inference mode": _inference,
    "a subclass": lambda t: t.as_subclass(Own),
    "tv_tensors.Image": tv_tensors.Image,
    "tv_tensors.Image of float64": lambda t: tv_tensors.Image(t.double()),
    "float64": lambda t: t.double(),
    "float16": lambda t: t.half(),
    "bfloat16": lambda t: t.bfloat16(),
    "uint8": lambda t: ((t + 1) * 127.5).round().to(torch.uint8),
    "uint8, channels_last": lambda t: (
        ((t + 1) * 127.5).round().to(torch.uint8).contiguous(memory_format=torch.channels_last)
    ),
    "uint8, one value": lambda t: torch.full_like(t, 9, dtype=torch.uint8),
    "all on the border": lambda t: t.sign(),
    "all zero": torch.zeros_like,
    "an efficient zero": lambda t: torch._efficientzerotensor(t.shape),
    "minus zero": lambda t: t * -0.0,
    "nearly zero": lambda t: t * 1e-40,
    "over by rounding": lambda t: t * (1 + 3e-7),
}
ONE_SIDED = set(SAME) - {"one image", "three images", "no image", "the smallest side", "an odd side"}


def gradients(x, y, dtype=torch.float32):
    """Reference by plain autograd, layer by layer, without clamping, as in a loss."""
    x, y = (plain(images).to(dtype).requires_grad_() for images in (x, y))
    torch.stack(list(UNCLAMPED(x, y, per_layer=True).values())).sum().backward()
    return x.grad, y.grad
