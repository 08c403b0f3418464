"""LPIPS for PyTorch Lightning: a metric, a loss, callbacks, recipes, and the calibration itself."""

from pathlib import Path
from typing import TYPE_CHECKING

# In a checkout callbacks/, recipes/ and weights/ lie beside this folder, not inside it.
__path__ = [*__path__, *(str(p.parent) for p in Path(__file__).parents[1].glob("pyproject.toml"))]

__version__ = "0.1.0"
__all__ = ["LPIPS", "LearnedPerceptualImagePatchSimilarity", "PerceptualLoss"]

if TYPE_CHECKING:
    from lpips_lightning.loss import PerceptualLoss
    from lpips_lightning.metric import LearnedPerceptualImagePatchSimilarity
    from lpips_lightning.network import LPIPS
else:
    # They come with torch, torchvision and torchmetrics, seconds that `lpips-lightning --help` does without.
    _HOMES = {"LPIPS": "network", "LearnedPerceptualImagePatchSimilarity": "metric", "PerceptualLoss": "loss"}

    def __getattr__(name: str) -> type:
        from importlib import import_module

        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = found = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
        return found

    def __dir__() -> list[str]:
        return sorted({*globals(), *_HOMES})
