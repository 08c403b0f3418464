"""The names of the `lpips` package 0.1.4: ``import lpips_lightning.compat as lpips``.

`LPIPS` is its network, as a metric and as a loss. `load_image`, `im2tensor`, `tensor2im`, `np2tensor`, `tensor2np` and
`tensor2tensorlab` read and convert images. `normalize_tensor`, `spatial_average`, `upsample`, `ScalingLayer` and
`NetLinLayer` are the steps of the distance. `l2`, `psnr`, `dssim` and `rgb2lab` take arrays; `L2` and `DSSIM` are
modules, for one pair at a time. `Trainer`, `score_2afc_dataset`, `score_jnd_dataset` and `voc_ap` score a distance
against human judgments.

What only serves to train a calibration is an error that names its replacement. `lpips` prints, these names do not.

>>> import torch
>>> import lpips_lightning.compat as lpips
>>> loss_fn = lpips.LPIPS(net="embedded")
>>> loss_fn(torch.zeros(2, 3, 64, 64), torch.ones(2, 3, 64, 64), normalize=True).shape
torch.Size([2, 1, 1, 1])
"""

from typing import TYPE_CHECKING

from lpips_lightning._lazy import lazy_names

__all__ = [
    "DSSIM",
    "L2",
    "LPIPS",
    "NetLinLayer",
    "ScalingLayer",
    "Trainer",
    "dssim",
    "im2tensor",
    "l2",
    "load_image",
    "normalize_tensor",
    "np2tensor",
    "psnr",
    "rgb2lab",
    "score_2afc_dataset",
    "score_jnd_dataset",
    "spatial_average",
    "tensor2im",
    "tensor2np",
    "tensor2tensorlab",
    "upsample",
    "voc_ap",
]

if TYPE_CHECKING:
    from lpips_lightning.compat.arrays import (
        dssim,
        im2tensor,
        l2,
        load_image,
        np2tensor,
        psnr,
        rgb2lab,
        tensor2im,
        tensor2np,
        tensor2tensorlab,
    )
    from lpips_lightning.compat.lpips import LPIPS
    from lpips_lightning.compat.modules import (
        DSSIM,
        L2,
        NetLinLayer,
        ScalingLayer,
        normalize_tensor,
        spatial_average,
        upsample,
    )
    from lpips_lightning.compat.trainer import Trainer, score_2afc_dataset, score_jnd_dataset, voc_ap
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "arrays": [
                "dssim",
                "im2tensor",
                "l2",
                "load_image",
                "np2tensor",
                "psnr",
                "rgb2lab",
                "tensor2im",
                "tensor2np",
                "tensor2tensorlab",
            ],
            "lpips": ["LPIPS"],
            "modules": [
                "DSSIM",
                "L2",
                "NetLinLayer",
                "ScalingLayer",
                "normalize_tensor",
                "spatial_average",
                "upsample",
            ],
            "trainer": ["Trainer", "score_2afc_dataset", "score_jnd_dataset", "voc_ap"],
        },
        {
            "BCERankingLoss": "lpips_lightning.calibration.PerceptualCalibration trains calibrations",
            "Dist2LogitLayer": "lpips_lightning.calibration.PerceptualCalibration trains calibrations",
            "pretrained_networks": "LPIPS(net).encode(images).layers of lpips_lightning gives a backbone's features",
            "print_network": "print(net) shows what a network is",
            "tensor2vec": "write tensor[:, :, 0, 0].numpy()",
            "tensorlab2tensor": "use skimage.color.lab2rgb, and im2tensor",
        },
    )
