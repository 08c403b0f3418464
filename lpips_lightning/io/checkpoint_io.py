"""Checkpoints of Lightning that are there whole or not at all."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO
from typing_extensions import override

from lpips_lightning.io.atomic import atomic_write


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place, waits for the disk, and moves it there in one step; recipes have it on.

    Lightning's own (2.5 and 2.6) writes to the system's folder for temporary files and moves it from there. Where that
    is another file system than the checkpoint's, moving is copying: a process killed meanwhile leaves half a file under
    the final name, in the place of the last good one, and a full disk does the same. Neither waits for the disk.

    Checkpoints on remote storage are left to Lightning.

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
        content = io.BytesIO()  # torch.save makes other errors of a full disk
        torch.save(checkpoint, content)
        with atomic_write(path, durable=True) as beside:
            beside.write_bytes(content.getbuffer())
