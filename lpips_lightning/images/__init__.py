"""What an image batch is: shapes, value ranges, masks, preprocessing.

`DataRange`, `Gray` and `Background` are the types of the options ``data_range``, ``gray`` and ``background``.
`RangeError` is raised where values leave the range. `lpips_lightning.Ensemble` averages over
transformations: `Shift`, `Flip`, `Transpose`, `ChannelGains`, `ChannelPermutation`, `BoxDownscale`, and any
`RandomTransform` of your own.

Images are ``(N, 3, H, W)``, floating on the declared ``data_range`` (``(low, high)``, or ``high`` alone for
``(0, high)``), or uint8 on [0, 255]. Unequal sizes are an error; nothing is broadcast or resized silently.

**Pixel values are checked.** Rounding overshoot up to 1e-3 is clamped. Anything else off the range is a `RangeError`
that names the likely mistake: [0, 255] floats, ``2x - 1`` applied twice, ImageNet normalization, ... A declared range
that the images visibly do not use ([-1, 1] never below 0, [0, 255] never above 1) is a warning, once. On a GPU neither
metric nor loss waits for the check: `compute` of the metric and a later call of the loss report what was found.
``validate_args=False`` switches the check off.

**A prediction never stops a training.** The predictions of `PerceptualLoss` and of the callbacks, and images that
require grad in `LPIPS`, in the function and in `lpips_lightning.compat`, may have any values, NaN too, and are not
clamped. One warning is given if the scale itself looks wrong: a quarter of the values or more is farther than 10 ranges
from the declared one, as of [0, 255] floats declared as [0, 1].

>>> import torch
>>> from lpips_lightning import LPIPS
>>> from lpips_lightning.images import pu21_encode, pu21_range
>>> net = LPIPS("embedded")
>>> x = torch.rand(2, 3, 64, 64)
>>> net(255 * x, 255 * x, data_range=(0, 1))
Traceback (most recent call last):
    ...
lpips_lightning.images.ranges.RangeError: x: expected values on [0, 1], got values from ...

A backbone may take other channels than 3, and values without a range (`lpips_lightning.backbones`): then
``data_range=None``, values are neither mapped nor clamped, uint8 is refused, and so are NaN and infinity in data.

**Other images** are accepted when you say how: ``gray="repeat"`` or ``"per_channel"``, ``background="white"`` or a
color for alpha channels, ``resize=(H, W)``. All three are in the fingerprint.

>>> gray = LPIPS("embedded", gray="repeat")
>>> gray(x[:, :1], x[:, :1], data_range=(0, 1))
tensor([0., 0.])

**High dynamic range.** Networks know display-encoded images. Linear RGB in cd/m^2, from a renderer or an HDR file
scaled to the display that shows it, is encoded with `pu21_encode` first, for metric, loss, function and `compare` of
tensors; `pu21_range` is then its range, and `pu21_decode` the inverse.

>>> hdr = 1000 * x  # cd/m^2
>>> net(pu21_encode(hdr), pu21_encode(hdr), data_range=pu21_range(1000))
tensor([0., 0.])
"""

from typing import TYPE_CHECKING

from lpips_lightning._lazy import lazy_names

__all__ = [
    "Background",
    "BoxDownscale",
    "ChannelGains",
    "ChannelPermutation",
    "DataRange",
    "Flip",
    "Gray",
    "RandomTransform",
    "RangeError",
    "Shift",
    "Transpose",
    "pu21_decode",
    "pu21_encode",
    "pu21_range",
]

if TYPE_CHECKING:
    from lpips_lightning.images.hdr import pu21_decode, pu21_encode, pu21_range
    from lpips_lightning.images.preprocessing import Background, Gray
    from lpips_lightning.images.random_transforms import (
        BoxDownscale,
        ChannelGains,
        ChannelPermutation,
        Flip,
        RandomTransform,
        Shift,
        Transpose,
    )
    from lpips_lightning.images.ranges import DataRange, RangeError
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "hdr": ["pu21_decode", "pu21_encode", "pu21_range"],
            "preprocessing": ["Background", "Gray"],
            "random_transforms": [
                "BoxDownscale",
                "ChannelGains",
                "ChannelPermutation",
                "Flip",
                "RandomTransform",
                "Shift",
                "Transpose",
            ],
            "ranges": ["DataRange", "RangeError"],
        },
    )
