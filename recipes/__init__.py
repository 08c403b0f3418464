"""Recipes: one task per file, each a flat LightningModule with its data, YAML defaults and LightningCLI.

Read a recipe from top to bottom, copy it and change it; no recipe imports another one. For a recipe of your own,
`run_recipe` runs a LightningModule, a data module and the YAML file beside them as a command. `ImageRecipeCLI` adds
scores, gallery, loss schedule, image writer and checkpoints; `RecipeCLI` is LightningCLI with atomic checkpoints.
"""

from typing import TYPE_CHECKING

from lpips_lightning._lazy import lazy_names

__all__ = ["ImageRecipeCLI", "RecipeCLI", "run_recipe"]

if TYPE_CHECKING:
    from lpips_lightning.recipes.command import ImageRecipeCLI, RecipeCLI, run_recipe
else:
    __getattr__, __dir__ = lazy_names(__name__, {"command": ["ImageRecipeCLI", "RecipeCLI", "run_recipe"]})
