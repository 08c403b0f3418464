"""LPIPS for PyTorch Lightning: a metric, a loss, callbacks, recipes, and the calibration itself."""

from pathlib import Path

# In a checkout callbacks/, recipes/ and weights/ lie beside this folder, not inside it.
__path__ = [*__path__, *(str(p.parent) for p in Path(__file__).parents[1].glob("pyproject.toml"))]

from lpips_lightning.loss import PerceptualLoss
from lpips_lightning.metric import LearnedPerceptualImagePatchSimilarity
from lpips_lightning.network import LPIPS

__version__ = "0.1.0"
__all__ = ["LPIPS", "LearnedPerceptualImagePatchSimilarity", "PerceptualLoss"]
