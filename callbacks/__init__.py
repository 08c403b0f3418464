"""Lightning callbacks: perceptual validation scores and pictures in any model."""

from lpips_lightning.callbacks.loss_schedule import LossSchedule

__all__ = ["LossSchedule"]
