"""Judged image patches: BAPPS, your own triplets, and the distortions of the paper.

`BAPPSDataModule` downloads and loads BAPPS; `TripletDataModule` loads your own judgments. `TwoAFCDataset`, `JNDDataset`
and `TripletDataset` are their data sets; `TensorTriplets` holds triplets of latents or other channels in memory;
`read_triplets` and `split_triplets` return lists of `Triplet`. `make_bapps` generates a data set in BAPPS' layout from
any photographs. `distort` applies the paper's 20 traditional `DISTORTIONS` at continuous strength, singly or in
`ordered_pairs`; `read_family` reads a `DistortionFamily`, trained networks that `make_bapps` takes as the paper's
CNN-based distortions. `EpochSampler` and `ResumableLoader` make the order of an epoch depend only on seed and epoch,
and allow mid-epoch resume.
"""

from typing import TYPE_CHECKING

from lpips_lightning._lazy import lazy_names

__all__ = [
    "DISTORTIONS",
    "BAPPSDataModule",
    "DistortionFamily",
    "EpochSampler",
    "JNDDataset",
    "ResumableLoader",
    "TensorTriplets",
    "Triplet",
    "TripletDataModule",
    "TripletDataset",
    "TwoAFCDataset",
    "distort",
    "make_bapps",
    "ordered_pairs",
    "read_family",
    "read_triplets",
    "split_triplets",
]

if TYPE_CHECKING:
    from lpips_lightning.data.bapps import JNDDataset, TwoAFCDataset
    from lpips_lightning.data.bapps_generate import make_bapps
    from lpips_lightning.data.cnn_distortions import DistortionFamily, read_family
    from lpips_lightning.data.datamodules import BAPPSDataModule, TripletDataModule
    from lpips_lightning.data.distortions import DISTORTIONS, distort, ordered_pairs
    from lpips_lightning.data.samplers import EpochSampler, ResumableLoader
    from lpips_lightning.data.tensor_triplets import TensorTriplets
    from lpips_lightning.data.triplets import Triplet, TripletDataset, read_triplets, split_triplets
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "bapps": ["JNDDataset", "TwoAFCDataset"],
            "bapps_generate": ["make_bapps"],
            "cnn_distortions": ["DistortionFamily", "read_family"],
            "datamodules": ["BAPPSDataModule", "TripletDataModule"],
            "distortions": ["DISTORTIONS", "distort", "ordered_pairs"],
            "samplers": ["EpochSampler", "ResumableLoader"],
            "tensor_triplets": ["TensorTriplets"],
            "triplets": ["Triplet", "TripletDataset", "read_triplets", "split_triplets"],
        },
    )
