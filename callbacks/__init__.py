"""Lightning callbacks: perceptual validation scores and pictures in any model."""

from lpips_lightning.callbacks.calibration_file import CalibrationFile
from lpips_lightning.callbacks.calibration_report import CalibrationReport
from lpips_lightning.callbacks.loss_schedule import LossSchedule
from lpips_lightning.callbacks.perceptual_scores import PerceptualScores
from lpips_lightning.callbacks.sample_gallery import SampleGallery

__all__ = ["CalibrationFile", "CalibrationReport", "LossSchedule", "PerceptualScores", "SampleGallery"]
