"""A data module that keeps its split into training and held-out images in checkpoints."""

from typing import Any

from torch.utils.data import DataLoader, Dataset
from typing_extensions import override

from lpips_lightning._lightning import LightningDataModule
from lpips_lightning.data.samplers import ResumableLoader
from lpips_lightning.recipes.held_out import HeldOut


class SplitDataModule(LightningDataModule):
    """Data module that stores its split in checkpoints; a resumed run sets up again if its own was another one.

    Subclasses set ``_choice``, ``num_workers`` for `_loader`, and ``_stage`` to what ``setup`` was called with if it
    can be other than ``"fit"``.
    """

    _choice: HeldOut
    _stage: str = "fit"
    num_workers: int

    @override
    def state_dict(self) -> dict[str, Any]:
        return self._choice.state_dict()

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self._choice.load_state_dict(state_dict):
            self.setup(self._stage)

    def _loader(
        self, data: Dataset[Any], batch_size: int, shuffle: bool = False, drop_last: bool = False
    ) -> DataLoader[Any]:
        # Keyword arguments, since Lightning re-creates dataloaders with its own samplers from them.
        self._choice.announce(self.trainer)
        workers = self.num_workers
        return ResumableLoader(
            data,
            batch_size=batch_size,
            shuffle=shuffle,
            drop_last=drop_last,
            num_workers=workers,
            persistent_workers=workers > 0,
        )
