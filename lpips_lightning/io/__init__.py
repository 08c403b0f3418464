"""File input and output: images, tensors, tables, downloads, checkpoints.

`find_images` lists a folder; `read_image` and `write_image` convert between image files and uint8 tensors.
`AtomicCheckpointIO` is a plugin for Lightning's Trainer.

All files are written atomically; a killed process leaves at most a hidden temporary file. Symbolic links and
permissions stay. Pipes, devices and redirected outputs are written into, and files that cannot be replaced are written
in place. A cache that cannot be written causes a warning; any other write to a full disk raises an error that names the
file.

Images are decoded exactly, including 16 bits per channel and EXIF orientation, or an error names the file.

**Checkpoints.** `AtomicCheckpointIO`, which the recipes use, writes them atomically. Lightning itself moves a
checkpoint from the system's temporary folder. If that is another file system, a kill during the move leaves a truncated
file in place of the previous checkpoint: 9 of 20 kills while saving left an unloadable checkpoint; with the plugin, 0.

>>> import pytorch_lightning as pl
>>> from lpips_lightning.io.checkpoint_io import AtomicCheckpointIO
>>> trainer = pl.Trainer(plugins=[AtomicCheckpointIO()], accelerator="cpu", logger=False)
"""

from typing import TYPE_CHECKING

from lpips_lightning._lazy import lazy_names

__all__ = ["AtomicCheckpointIO", "find_images", "read_image", "write_image"]

if TYPE_CHECKING:
    from lpips_lightning.io.checkpoint_io import AtomicCheckpointIO
    from lpips_lightning.io.image_files import find_images, read_image, write_image
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "checkpoint_io": ["AtomicCheckpointIO"],
            "image_files": ["find_images", "read_image", "write_image"],
        },
    )
