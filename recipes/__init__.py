"""Recipes: one task a file, each a flat LightningModule with its data, its YAML and its LightningCLI.

A recipe is meant to be read from top to bottom, copied and changed; no recipe imports another one.
"""
