"""Published self-supervised methods on Caffe's AlexNet: settings of each one's network, and where they come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class PublishedMethod:
    """A method whose AlexNet users have as a file.

    Attributes:
        paper: Who published it.
        settings: Arguments of `CaffeAlexNet` that differ from its defaults; channels and groups are read off the file.
        source: Where the settings come from.
        note: What the source does not say, or what differs from the method's own preprocessing.
    """

    paper: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""
    note: str = ""


_TORCH = "ruthcfong/pytorch_models, models/self_supervised.py (alexnet-weakly_*.pt)"
_CAFFENET = "BVLC/caffe, models/bvlc_reference_caffenet (LRN behind the pools)"
_IMAGENET_MEAN = [255 * value for value in (0.485, 0.456, 0.406)]
_IMAGENET_STD = [255 * value for value in (0.229, 0.224, 0.225)]
_LRN = "whether it has LRN is not published with the weights: --set lrn=false if it has none"
_LAB = "a caffemodel says its scale of Lab in the layer before conv1, which is read; other files: --set std=[...]"

METHODS: dict[str, PublishedMethod] = {
    "audio": PublishedMethod("Owens et al. 2016, ambient sound", {"normalization": "batch"}, _TORCH),
    "bigan": PublishedMethod(
        "Donahue et al. 2017",
        {"lrn": False, "leaky": 0.2, "mean": [127.5] * 3, "std": [127.5] * 3},
        "jeffdonahue/bigan, caffemodels/alexnet_train_nolrn_lrelu.prototxt",
    ),
    "caffenet": PublishedMethod("Krizhevsky et al. 2012, with labels", {}, _CAFFENET),
    "colorization": PublishedMethod(
        "Zhang et al. 2016",
        {"lrn": False, "colors": "lightness"},
        "richzhang/colorization, models/alexnet_deploy_lab.prototxt",
        _LAB,
    ),
    "context": PublishedMethod(
        "Doersch et al. 2015",
        {"first_padding": 5, "colors": "rgb"},
        _TORCH,
        "the method standardizes every image by itself; here the mean of ImageNet is subtracted",
    ),
    "egomotion": PublishedMethod("Jayaraman and Grauman 2015", {"normalization": "batch_after"}, _TORCH),
    "inpainting": PublishedMethod("Pathak et al. 2016", {}, _CAFFENET, _LRN),
    "kmeans": PublishedMethod("Kraehenbuehl et al. 2016", {}, _CAFFENET, _LRN),
    "moving": PublishedMethod("Agrawal et al. 2015, learning to see by moving", {}, _TORCH),
    "object-centric": PublishedMethod("Gao et al. 2016", {}, _TORCH),
    "puzzle": PublishedMethod("Noroozi and Favaro 2016", {}, _TORCH),
    "split-brain": PublishedMethod(
        "Zhang et al. 2017",
        {"lrn": False, "colors": "lab"},
        "richzhang/splitbrainauto, models/deploy_lab.prototxt",
        _LAB,
    ),
    "video-order": PublishedMethod("Misra et al. 2016, shuffle and learn", {"normalization": "batch_345"}, _TORCH),
    "video-tracking": PublishedMethod("Wang and Gupta 2015", {}, _TORCH),
    "watching": PublishedMethod(
        "Pathak et al. 2017, watching objects move",
        {"colors": "rgb", "mean": _IMAGENET_MEAN, "std": _IMAGENET_STD},
        "pathak22/unsupervised-video, image_transform_layer.py",
        _LRN,
    ),
}
"""Methods by name."""
