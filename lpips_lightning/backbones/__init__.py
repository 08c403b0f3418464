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
