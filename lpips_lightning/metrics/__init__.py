"""torchmetrics metrics: LPIPS, diversity, and agreement with human judgments.

`LearnedPerceptualImagePatchSimilarity` replaces torchmetrics' class: same arguments and defaults, only the import
changes. `LPIPSDiversity` is the mean LPIPS over all pairs of a group's samples. `TemporalLPIPS` is tLP: how differently
two videos change from frame to frame. `TwoAFCScore`, `JNDScore` and `HumanCeiling` score distances against human
judgments, `RankFlipRate` their answers against those after a shift.

All return the single-process result for any sharding over batches and ranks. ``index=`` of ``update`` takes the dataset
index of each sample, so that samples repeated by a `DistributedSampler` count once.
"""

from typing import TYPE_CHECKING

from lpips_lightning._lazy import lazy_names

__all__ = [
    "HumanCeiling",
    "JNDScore",
    "LPIPSDiversity",
    "LearnedPerceptualImagePatchSimilarity",
    "RankFlipRate",
    "TemporalLPIPS",
    "TwoAFCScore",
]

if TYPE_CHECKING:
    from lpips_lightning.metrics.diversity import LPIPSDiversity
    from lpips_lightning.metrics.judgments import HumanCeiling, JNDScore, RankFlipRate, TwoAFCScore
    from lpips_lightning.metrics.lpips import LearnedPerceptualImagePatchSimilarity
    from lpips_lightning.metrics.temporal import TemporalLPIPS
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "diversity": ["LPIPSDiversity"],
            "judgments": ["HumanCeiling", "JNDScore", "RankFlipRate", "TwoAFCScore"],
            "lpips": ["LearnedPerceptualImagePatchSimilarity"],
            "temporal": ["TemporalLPIPS"],
        },
    )
