"""The work of `compare` on many pairs: LPIPS of every pair of a source, written while it is measured."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from pytorch_lightning import Trainer
from torch import Tensor
from typing_extensions import override

from lpips_lightning.comparison.fidelity import Score, pair_scores
from lpips_lightning.comparison.file_pairs import InputNeeds
from lpips_lightning.comparison.measure import layer_terms
from lpips_lightning.io.image_decoding import printable
from lpips_lightning.perceptual_distance import PerceptualDistance
from lpips_lightning.runs.engine import BatchTimes, Work
from lpips_lightning.runs.journal import Journal, PairRow, PartWriter
from lpips_lightning.runs.rates import RankRates
from lpips_lightning.runs.reading import PairBatch, PairReader
from lpips_lightning.sources.base import PairSource


@dataclass
class PairWork(Work):
    """LPIPS of every pair of a source.

    Attributes:
        source: The pairs.
        network: Makes the network; called on every rank.
        needs: What it needs of its images.
        folder: Folder of the run, which every rank sees.
        batch_size: Pairs per batch; None: 24, fewer for large images.
        scores: PSNR and SSIM, if wanted.
        per_layer: Keep the terms of the layers.
    """

    source: PairSource
    network: Callable[[], PerceptualDistance]
    needs: InputNeeds
    folder: Path
    batch_size: int | None = None
    scores: Sequence[Score] = ()
    per_layer: bool = False

    def __post_init__(self) -> None:
        found = Journal(self.folder).progress()
        self._units = [unit for unit in range(len(self.source)) if unit not in found.ended]
        self._done, self.resumed = found.begun, found.pairs

    @override
    def todo(self) -> Sequence[int]:
        return self._units

    @override
    def dataset(self, units: Sequence[int]) -> PairReader:
        done = {unit: self._done[unit] for unit in units if unit in self._done}
        return PairReader(units, self.source, self.needs, self.batch_size, done)

    @override
    def start(self, trainer: Trainer, device: torch.device) -> None:
        if not self.folder.is_dir():
            raise ValueError(
                f"out: expected a folder that all machines see, got '{printable(self.folder)}', which rank"
                f" {trainer.global_rank} does not; choose one on a shared disk"
            )
        self._net, self._device = self.network(), device
        self._part = PartWriter(self.folder, trainer.global_rank)
        self._rates = RankRates(self.folder, trainer.global_rank)

    @override
    def measure(self, batch: PairBatch, times: BatchTimes) -> None:
        start = time.perf_counter()
        rows = {row: PairRow(*batch.names[row], math.nan, error) for row, error in batch.errors.items()}
        if batch.x is not None and batch.y is not None:
            with torch.inference_mode():
                rows |= self._measured(batch, batch.x, batch.y)
        self._part.write(batch.unit, rows, batch.end)
        self._rates.add(batch, times, time.perf_counter() - start)

    @override
    def finish(self) -> None:
        self._part.close()
        self._rates.close()

    def _measured(self, batch: PairBatch, x: Tensor, y: Tensor) -> dict[int, PairRow]:
        terms, error = layer_terms(self._net, x, y)
        distances = torch.stack(list(terms.values())).sum(0).tolist()
        layers = {layer: values.tolist() for layer, values in terms.items()} if self.per_layer else {}
        errors = [None] * len(distances) if error is None else error.tolist()
        rows = {}
        for position, (row, distance) in enumerate(zip(batch.rows, distances, strict=True)):
            names = batch.names[row]
            if not math.isfinite(distance):
                reason = f"{printable(names[0])}: expected a finite distance, got {distance}; use --precision fp32"
                rows[row] = PairRow(*names, math.nan, reason)
                continue
            own = {layer: values[position] for layer, values in layers.items()}
            rows[row] = PairRow(*names, distance, "", self._scores(x, y, position), own, errors[position])
        return rows

    def _scores(self, x: Tensor, y: Tensor, position: int) -> Mapping[str, float]:
        if not self.scores:
            return {}
        first, second = (one[position].permute(1, 2, 0).cpu().numpy() for one in (x, y))
        return pair_scores(first, second, self._net.images, self.scores)
