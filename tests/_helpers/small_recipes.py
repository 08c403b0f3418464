"""Every recipe in small: a command line for two steps an epoch on a few images."""

from __future__ import annotations

from importlib import import_module
from typing import NamedTuple

RANDOM = ("--model.loss_weights=random", "--scores.weights=random")


class Recipe(NamedTuple):
    """A recipe in small: its options for two steps an epoch on the `images` below, two of which are held out."""

    name: str
    options: str

    def line(self, subcommand, *more, backbones=RANDOM):
        """A command line with more options: on the CPU, quiet, with random backbones."""
        quiet = "--trainer.accelerator=cpu --trainer.enable_progress_bar=false --trainer.enable_model_summary=false"
        small = f"{self.options} --trainer.log_every_n_steps=1 --trainer.max_epochs=2".split()
        return [subcommand, *small, *quiet.split(), *backbones, *more]

    def run(self, subcommand, *more, backbones=RANDOM):
        """Call its command line, see `line`."""
        return self.main(self.line(subcommand, *more, backbones=backbones))

    @property
    def main(self):
        return import_module(f"lpips_lightning.recipes.{self.name}").main


RECIPES = [
    Recipe(
        "superresolution",
        "--model.n_resblocks=1 --model.n_feats=4 --data.folder=images --data.held_out=[c,d,more/e]"
        " --data.crop_size=32 --data.val_crop_size=32 --data.epoch_size=4 --data.batch_size=2",
    ),
    Recipe(
        "colorization",
        "--model.n_feats=4 --model.n_levels=2 --model.working_size=40 --data.folder=images"
        " --data.held_out=[c,d,more/e] --data.crop_size=32 --data.epoch_size=4 --data.batch_size=2",
    ),
    Recipe(
        "autoencoder",
        "--model.channels=[4,4] --model.latent_channels=2 --model.discriminator_layers=1"
        " --model.discriminator_channels=4 --model.adversarial_start=2 --data.folder=images"
        " --data.held_out=[c,d,more/e] --data.crop_size=32 --data.val_crop_size=null"
        " --data.epoch_size=4 --data.batch_size=2",
    ),
    Recipe(
        "frame_interpolation",
        "--model.channels=[4,4] --model.hidden=4 --model.fine=4 --data.folder=images --data.held_out=[c,d,more/e]"
        " --data.crop_size=32 --data.val_size=32 --data.val_count=3 --data.epoch_size=4 --data.batch_size=2",
    ),
    Recipe(
        "deblurring",
        "--model.channels=[4,4] --model.scales=2 --data.frames=3 --data.folder=images --data.held_out=[c,d,more/e]"
        " --data.crop_size=32 --data.val_size=32 --data.val_count=3 --data.epoch_size=4 --data.batch_size=2",
    ),
]
