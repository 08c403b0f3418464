"""Recipes: one task per file, each a flat LightningModule with its data, YAML defaults and LightningCLI.

Read a recipe from top to bottom, copy it and change it; no recipe imports another one.
"""
