"""Frozen feature extractors: what a backbone is, those by name, and your own.

`BACKBONES` holds the `Backbone` of every ``net_type``, and `get_backbone` finds one by name. `FeatureExtractor` is a
backbone as a module, and `random_backbone` its seeded tensors.

A backbone of your own goes wherever the name of a net goes, in network, metric and loss. `from_torchvision` takes
torchvision's other models with their ImageNet weights, `from_module` any module, cut at named parts. There is no
official calibration for them: pass ``calibration=PATH``, or ``calibrated=False``.

>>> from torch import nn
>>> from lpips_lightning import LearnedPerceptualImagePatchSimilarity
>>> from lpips_lightning.backbones.custom import from_module, from_torchvision
>>> deep = from_torchvision("convnext_tiny", ["features.1", "features.3", "features.5"])
>>> deep.channels
(96, 192, 384)
>>> mine = from_module(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), ["1"], mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
>>> metric = LearnedPerceptualImagePatchSimilarity(mine, data_range=(0, 1), calibrated=False)

`from_timm` (extra ``timm``) takes vision transformers, DINO and CLIP among them, and timm's convolutional nets; the
other two take those of torchvision and your own with ``tokens=``, a `Tokens` that says the patch. `mean_calibration`
makes the distance the mean over layers.

Images may have any number of channels, ``input_channels``, with ``mean`` and ``std`` of that length or none; without a
value range (``has_range=False``) every call says ``data_range=None``. An RGB network takes other channels with
``first_conv="repeat"``. A distance of latents is such a backbone, here like VGG with group normalization:

>>> import torch
>>> from lpips_lightning import PerceptualLoss
>>> def stage(inputs: int, outputs: int) -> list[nn.Module]:
...     return [nn.Conv2d(inputs, outputs, 3, padding=1), nn.GroupNorm(8, outputs), nn.ReLU()]
>>> trunk = nn.Sequential(*stage(4, 32), nn.MaxPool2d(2), *stage(32, 64), nn.MaxPool2d(2), *stage(64, 128))
>>> latent = from_module(trunk, ["2", "6", "10"], name="latent", input_channels=4, has_range=False)
>>> loss = PerceptualLoss(latent, data_range=None, calibrated=False)
>>> latents = 5 * torch.randn(2, 4, 32, 32)
>>> float(loss(latents, latents))
0.0

`lpips_lightning.calibration.PerceptualCalibration` trains its calibration on judged latents
(`lpips_lightning.data.TensorTriplets`), and ``calibration=FILE`` reads it.

`CaffeAlexNet` is the network of most self-supervised methods. `write_caffe_alexnet` writes one as a file that says its
architecture, for ``LPIPS(weights=FILE)``, and `load_caffe_alexnet` reads it again to go on training.

Where weights are looked for, and what they are checked against: see `lpips_lightning.weights`.
"""

from typing import TYPE_CHECKING

from lpips_lightning._lazy import lazy_names

__all__ = [
    "BACKBONES",
    "Backbone",
    "CaffeAlexNet",
    "FeatureExtractor",
    "Tokens",
    "from_module",
    "from_timm",
    "from_torchvision",
    "get_backbone",
    "load_caffe_alexnet",
    "mean_calibration",
    "random_backbone",
    "write_caffe_alexnet",
]

if TYPE_CHECKING:
    from lpips_lightning.backbones.caffe_alexnet import CaffeAlexNet
    from lpips_lightning.backbones.caffe_file import load_caffe_alexnet, write_caffe_alexnet
    from lpips_lightning.backbones.custom import from_module, from_torchvision
    from lpips_lightning.backbones.definition import BACKBONES, Backbone, get_backbone
    from lpips_lightning.backbones.extractor import FeatureExtractor, random_backbone
    from lpips_lightning.backbones.timm_models import from_timm
    from lpips_lightning.backbones.tokens import Tokens, mean_calibration
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "caffe_alexnet": ["CaffeAlexNet"],
            "caffe_file": ["load_caffe_alexnet", "write_caffe_alexnet"],
            "custom": ["from_module", "from_torchvision"],
            "definition": ["BACKBONES", "Backbone", "get_backbone"],
            "extractor": ["FeatureExtractor", "random_backbone"],
            "timm_models": ["from_timm"],
            "tokens": ["Tokens", "mean_calibration"],
        },
    )
