"""Judged image patches: BAPPS, your own triplets, and the distortions of the paper.

`BAPPSDataModule` downloads and serves BAPPS, `TripletDataModule` judgments of your own; `TwoAFCDataset`, `JNDDataset`
and `TripletDataset` (of `read_triplets`, `split_triplets`: lists of `Triplet`) are their datasets. `make_bapps` writes
a dataset in BAPPS' layout from any photographs. `distort` applies `DISTORTIONS`, the paper's 20 traditional ones at
continuous strength, and their `ordered_pairs`. `EpochSampler` and `ResumableLoader` order an epoch by a seed and its
number alone, and resume in the middle of it.
"""

from typing import TYPE_CHECKING

from lpips_lightning._lazy import lazy_names

__all__ = [
    "DISTORTIONS",
    "BAPPSDataModule",
    "EpochSampler",
    "JNDDataset",
    "ResumableLoader",
    "Triplet",
    "TripletDataModule",
    "TripletDataset",
    "TwoAFCDataset",
    "distort",
    "make_bapps",
    "ordered_pairs",
    "read_triplets",
    "split_triplets",
]

if TYPE_CHECKING:
    from lpips_lightning.data.bapps import JNDDataset, TwoAFCDataset
    from lpips_lightning.data.bapps_generate import make_bapps
    from lpips_lightning.data.datamodules import BAPPSDataModule, TripletDataModule
    from lpips_lightning.data.distortions import DISTORTIONS, distort, ordered_pairs
    from lpips_lightning.data.samplers import EpochSampler, ResumableLoader
    from lpips_lightning.data.triplets import Triplet, TripletDataset, read_triplets, split_triplets
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "bapps": ["JNDDataset", "TwoAFCDataset"],
            "bapps_generate": ["make_bapps"],
            "datamodules": ["BAPPSDataModule", "TripletDataModule"],
            "distortions": ["DISTORTIONS", "distort", "ordered_pairs"],
            "samplers": ["EpochSampler", "ResumableLoader"],
            "triplets": ["Triplet", "TripletDataset", "read_triplets", "split_triplets"],
        },
    )
