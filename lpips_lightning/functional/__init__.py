"""Functions of tensors: LPIPS, PSNR and SSIM on luma, agreement with judgments, correlation with mean opinion scores.

`learned_perceptual_image_patch_similarity` is LPIPS with torchmetrics' name and arguments. `luma_scores` gives PSNR and
SSIM as superresolution papers report them, `temporal_lpips` how differently two videos change (tLP). `two_afc_score`,
`jnd_score`, `jnd_curve`, `human_ceiling` and `agreement` score distances against human judgments, with
`bootstrap_interval` around a mean; `rank_flip_rate` says how often a shift changes their answers. `correlate`,
`by_group` and `mean_over_groups` give SRCC, PLCC after the four-parameter logistic, and KRCC as `Correlations`.
"""

from typing import TYPE_CHECKING

from lpips_lightning._lazy import lazy_names

__all__ = [
    "Correlations",
    "agreement",
    "bootstrap_interval",
    "by_group",
    "correlate",
    "human_ceiling",
    "jnd_curve",
    "jnd_score",
    "learned_perceptual_image_patch_similarity",
    "luma_scores",
    "mean_over_groups",
    "rank_flip_rate",
    "temporal_lpips",
    "two_afc_score",
]

if TYPE_CHECKING:
    from lpips_lightning.functional.correlation import Correlations, by_group, correlate, mean_over_groups
    from lpips_lightning.functional.judgments import (
        agreement,
        bootstrap_interval,
        human_ceiling,
        jnd_curve,
        jnd_score,
        rank_flip_rate,
        two_afc_score,
    )
    from lpips_lightning.functional.lpips import learned_perceptual_image_patch_similarity
    from lpips_lightning.functional.luma import luma_scores
    from lpips_lightning.functional.temporal import temporal_lpips
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "correlation": ["Correlations", "by_group", "correlate", "mean_over_groups"],
            "judgments": [
                "agreement",
                "bootstrap_interval",
                "human_ceiling",
                "jnd_curve",
                "jnd_score",
                "rank_flip_rate",
                "two_afc_score",
            ],
            "lpips": ["learned_perceptual_image_patch_similarity"],
            "luma": ["luma_scores"],
            "temporal": ["temporal_lpips"],
        },
    )
