"""Dataset indices of a rank's samples, and gathering objects over ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch.distributed as dist
from torch.utils.data import DataLoader, DistributedSampler

if TYPE_CHECKING:
    from pytorch_lightning import Trainer


def dataset_indices(trainer: Trainer, dataloader_idx: int, seen: int, count: int) -> range:
    """Dataset indices of this rank's current batch; fewer than `count` where the sampler pads.

    A `DistributedSampler` repeats samples until all ranks have equally many (11 on 2 ranks become 12). It assigns them
    to ranks in turn, so the repeated samples come last and have an index beyond the dataset. They are only left out if
    each sample of the loader is one image. For loaders of whole batches, without a batch size, count batches as images.

    Args:
        trainer: Trainer in validation or test.
        dataloader_idx: Index of the dataloader.
        seen: Images of this dataloader that this rank has had in earlier batches.
        count: Images of the current batch.
    """
    loader = _loader(trainer, dataloader_idx)
    sampler = getattr(loader, "sampler", None)
    if not isinstance(loader, DataLoader) or not isinstance(sampler, DistributedSampler):
        first = trainer.global_rank + seen * trainer.world_size
        return range(first, first + count * trainer.world_size, trainer.world_size)
    step, first = sampler.num_replicas, sampler.rank + seen * sampler.num_replicas
    stop = first + count * step
    one_image_per_sample = count == min(loader.batch_size or 1, sampler.num_samples - seen)
    if one_image_per_sample and not sampler.drop_last:
        stop = min(stop, len(sampler.dataset))  # type: ignore[arg-type]
    return range(first, max(stop, first), step)


def _loader(trainer: Trainer, dataloader_idx: int) -> Any:
    # Not trainer.val_dataloaders: in a validate after a fit it still holds the loaders of the fit.
    if trainer.testing:
        loop = trainer.test_loop
    else:
        loop = trainer.validate_loop if trainer.state.fn == "validate" else trainer.fit_loop.epoch_loop.val_loop
    loaders = getattr(getattr(loop, "_combined_loader", None), "flattened", [])
    return loaders[dataloader_idx] if dataloader_idx < len(loaders) else None


T = TypeVar("T")


def gather(trainer: Trainer, own: T) -> list[T]:
    """Gather an object of every rank, in rank order; all ranks must call it.

    Args:
        trainer: Trainer of the ranks.
        own: This rank's object; it is pickled.
    """
    if trainer.world_size == 1 or not (dist.is_available() and dist.is_initialized()):
        return [own]
    gathered: list[T | None] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, own)
    return cast(list[T], gathered)
