"""Atomic checkpoints for Lightning."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from typing_extensions import override

from lpips_lightning._lightning import TorchCheckpointIO
from lpips_lightning.io.atomic import atomic_write


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints atomically and durably: temporary file in the same folder, fsync, rename. Used by the recipes.

    Lightning 2.5 and 2.6 write to the system's temporary folder and move the file. If the two are on different file
    systems, the move is a copy: a kill or a full disk then leaves a truncated file in place of the previous checkpoint.
    Lightning does not call fsync either.

    Checkpoints on remote storage are passed to Lightning. The Trainers of `pytorch_lightning` and `lightning` take it.

    Example:
        >>> from pytorch_lightning import Trainer
        >>> trainer = Trainer(plugins=[AtomicCheckpointIO()], accelerator="cpu", logger=False)
        >>> type(trainer.strategy.checkpoint_io).__name__
        'AtomicCheckpointIO'
    """

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        content = io.BytesIO()  # to memory first: on a full disk torch.save does not raise an OSError
        torch.save(checkpoint, content)
        with atomic_write(path, durable=True) as temporary:
            temporary.write_bytes(content.getbuffer())
