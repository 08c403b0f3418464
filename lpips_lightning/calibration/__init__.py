"""Calibration of LPIPS on human judgments.

`PerceptualCalibration` is the LightningModule that trains a `TrainableLPIPS` in the paper's modes lin, tune and
scratch; `write_calibration` writes files for ``calibration=``. `fit_lin` trains mode lin in seconds on
`PooledTriplets`: spatial means of squared differences, computed once by `cached_pool`. `stacked_kmeans` learns a
backbone without labels.

`lpips_lightning.recipes` documents the commands and their scores.
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
