"""What the processes of a distributed run tell each other."""

from __future__ import annotations

from typing import TypeVar, cast

import torch.distributed as dist
from pytorch_lightning import Trainer

__all__ = ["gather"]

T = TypeVar("T")


def gather(trainer: Trainer, own: T) -> list[T]:
    """Every rank's object, by rank, on every rank; all ranks have to call it.

    Args:
        trainer: Whose ranks.
        own: This rank's object; it is pickled.
    """
    if trainer.world_size == 1 or not (dist.is_available() and dist.is_initialized()):
        return [own]
    gathered: list[T | None] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, own)
    return cast(list[T], gathered)
