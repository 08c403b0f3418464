"""Calibration of LPIPS on human judgments.

`PerceptualCalibration` is the LightningModule that trains a `TrainableLPIPS` in the paper's modes lin, tune and
scratch; `write_calibration` writes what ``calibration=`` reads. `fit_lin` calibrates mode lin in seconds on
`PooledTriplets`, spatial means of squared differences that `cached_pool` computes once. `stacked_kmeans` learns a
backbone without labels.

The commands, and what they reach, are on the page of `lpips_lightning.recipes`.
"""

from typing import TYPE_CHECKING

from lpips_lightning._lazy import lazy_names

__all__ = [
    "PerceptualCalibration",
    "PooledTriplets",
    "TrainableLPIPS",
    "cached_pool",
    "fit_lin",
    "stacked_kmeans",
    "write_calibration",
]

if TYPE_CHECKING:
    from lpips_lightning.calibration.export import write_calibration
    from lpips_lightning.calibration.fit_pooled import fit_lin
    from lpips_lightning.calibration.kmeans import stacked_kmeans
    from lpips_lightning.calibration.model import TrainableLPIPS
    from lpips_lightning.calibration.module import PerceptualCalibration
    from lpips_lightning.calibration.pooled import PooledTriplets, cached_pool
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "export": ["write_calibration"],
            "fit_pooled": ["fit_lin"],
            "kmeans": ["stacked_kmeans"],
            "model": ["TrainableLPIPS"],
            "module": ["PerceptualCalibration"],
            "pooled": ["PooledTriplets", "cached_pool"],
        },
    )
