"""Runs command lines of a recipe one after the other, in each process that its Trainer starts; see test_recipes.py.

python recipe_worker.py RECIPE SUBCOMMAND OPTIONS... --then SUBCOMMAND OPTIONS...
"""

from __future__ import annotations

import itertools
import sys
import warnings
from importlib import import_module

import torch.distributed as dist

if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    name, *words = sys.argv[1:]
    for is_then, line in itertools.groupby(words, lambda word: word == "--then"):
        if not is_then:
            import_module(f"lpips_lightning.recipes.{name}").main(list(line))
    dist.destroy_process_group()
