"""The numbers in their data set of the samples that a rank scores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch.distributed as dist
from torch.utils.data import DataLoader, DistributedSampler

if TYPE_CHECKING:
    from pytorch_lightning import Trainer


def dataset_indices(trainer: Trainer, dataloader_idx: int, seen: int, count: int) -> range:
    """Numbers in their data set of the images that this rank is scoring; shorter than `count` where the sampler pads.

    A distributed sampler repeats images until every rank has as many as the others (11 on 2 ranks become 12). It
    deals them out in turns, so the repeated ones are those whose number is beyond the data set; they come last. This
    is only said of loaders that are plainly made of batches of single images.

    Args:
        trainer: In validation or test.
        dataloader_idx: Of the loader.
        seen: How many images of this loader this rank had before.
        count: How many it has now.
    """
    loader = _loader(trainer, dataloader_idx)
    sampler = getattr(loader, "sampler", None)
    if not isinstance(loader, DataLoader) or not isinstance(sampler, DistributedSampler):
        first = trainer.global_rank + seen * trainer.world_size
        return range(first, first + count * trainer.world_size, trainer.world_size)
    step, first = sampler.num_replicas, sampler.rank + seen * sampler.num_replicas
    stop = first + count * step
    one_image_a_sample = count == min(loader.batch_size or 0, sampler.num_samples - seen)
    if one_image_a_sample and not sampler.drop_last:
        stop = min(stop, len(sampler.dataset))  # type: ignore[arg-type]
    return range(first, max(stop, first), step)


def _loader(trainer: Trainer, dataloader_idx: int) -> Any:
    # Not trainer.val_dataloaders: after a fit, it names the fit's loaders in a validate with others too.
    if trainer.testing:
        loop = trainer.test_loop
    else:
        loop = trainer.validate_loop if trainer.state.fn == "validate" else trainer.fit_loop.epoch_loop.val_loop
    loaders = getattr(getattr(loop, "_combined_loader", None), "flattened", [])
    return loaders[dataloader_idx] if dataloader_idx < len(loaders) else None


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
