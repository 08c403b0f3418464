"""Lightning callbacks: perceptual validation scores and images in any model.

`PerceptualScores` logs LPIPS, PSNR and SSIM. `SampleGallery` logs the worst and best samples as images. `LossSchedule`
sets the weight of a `PerceptualLoss` during training. `ImageWriter` writes predictions as PNG files.
`CalibrationReport` plots and `CalibrationFile` writes the calibration of a `PerceptualCalibration`.
"""

from typing import TYPE_CHECKING

from lpips_lightning._lazy import lazy_names

__all__ = ["CalibrationFile", "CalibrationReport", "ImageWriter", "LossSchedule", "PerceptualScores", "SampleGallery"]

if TYPE_CHECKING:
    from lpips_lightning.callbacks.calibration_file import CalibrationFile
    from lpips_lightning.callbacks.calibration_report import CalibrationReport
    from lpips_lightning.callbacks.image_writer import ImageWriter
    from lpips_lightning.callbacks.loss_schedule import LossSchedule
    from lpips_lightning.callbacks.perceptual_scores import PerceptualScores
    from lpips_lightning.callbacks.sample_gallery import SampleGallery
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "calibration_file": ["CalibrationFile"],
            "calibration_report": ["CalibrationReport"],
            "image_writer": ["ImageWriter"],
            "loss_schedule": ["LossSchedule"],
            "perceptual_scores": ["PerceptualScores"],
            "sample_gallery": ["SampleGallery"],
        },
    )
