"""Predictions and targets as the scores want them: checked, on their range, and as features of the LPIPS network."""

from __future__ import annotations

from collections.abc import Hashable

import torch
from torch import Tensor

from lpips_lightning import LPIPS
from lpips_lightning.backbones import backbone
from lpips_lightning.frozen import WeightsSource
from lpips_lightning.images import PLAIN
from lpips_lightning.network import Features, Precision
from lpips_lightning.ranges import DataRange, check_values, parse_range, training_slack

__all__ = ["ImagePairs", "TargetFeatures"]


class ImagePairs:
    """Checks pairs of images and shows them to an LPIPS network.

    Args:
        net_type: See `LPIPS`; None for no network.
        data_range: Of predictions and targets: ``(low, high)``, or ``high`` alone for ``(0, high)``.
        clamp: Bring predictions onto the range first; without it, values off the range are an error.
        version: See `LPIPS`.
        calibrated: See `LPIPS`.
        weights: See `LPIPS`.
        calibration: See `LPIPS`.
        precision: See `LPIPS`.
        validate_args: Check pixel values.
        cache_bytes: Most memory for the features of targets.

    Raises:
        TypeError: If `data_range` is neither a pair nor a number.
        ValueError: If an argument is none of the known ones.
        WeightsError: If weights are missing, damaged or of another architecture.
    """

    def __init__(
        self,
        net_type: str | None,
        data_range: DataRange,
        *,
        clamp: bool = False,
        version: str = "0.1",
        calibrated: bool = True,
        weights: WeightsSource = None,
        calibration: WeightsSource = None,
        precision: Precision = "fp32",
        validate_args: bool = True,
        cache_bytes: int = 0,
    ) -> None:
        self.data_range = parse_range(data_range)
        self.clamp = clamp
        self.validate_args = validate_args
        self.target_features = TargetFeatures(cache_bytes)
        self._net_type = net_type
        # The values are checked here, under the names that the user knows, and not once more by the network.
        options = {"calibrated": calibrated, "weights": weights, "calibration": calibration, "precision": precision}
        self._net = None if net_type is None else LPIPS(net_type, version=version, validate_args=False, **options)  # type: ignore[arg-type]

    @property
    def net(self) -> LPIPS:
        """The network.

        Raises:
            ValueError: If there is none.
        """
        if self._net is None:
            raise ValueError("net_type: expected the name of a net, got None")
        return self._net

    @property
    def fingerprint(self) -> str:
        """One citeable line: everything that decides the number."""
        return f"{self.net.fingerprint}, range {list(self.data_range)}{', predictions clamped' * self.clamp}"

    def check(self, pred: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Both on their range, rounding overshoot clamped.

        Args:
            pred: ``(N, 3, H, W)``, floating on the range or uint8 on [0, 255].
            target: The same shape.

        Raises:
            TypeError: If either is not an image batch by its type.
            ValueError: If shapes, devices or sides do not fit, or pixel values are off the range.
        """
        smallest = 1 if self._net_type is None else backbone(self._net_type).smallest_side
        PLAIN.check_pair(pred, target, ("pred", "target"), str(self._net_type), smallest)
        if self.validate_args:
            # Predictions to be clamped may lie as far off as those of a loss; [0, 255] floats still stand out.
            check_values(pred, "pred", self.data_range, training_slack(self.data_range) if self.clamp else 0.0)
            check_values(target, "target", self.data_range)
        if self.validate_args or self.clamp:
            pred = self._clamped(pred)
        return pred, self._clamped(target) if self.validate_args else target

    def encode(self, pred: Tensor, target: Tensor, key: Hashable = None) -> tuple[Features, Features]:
        """The network's features of a checked pair; the target's from memory where they are known.

        Args:
            pred: ``(N, 3, H, W)``.
            target: The same shape.
            key: Says which batch of a fixed data set it is; None for none.
        """
        known = None if key is None else self.target_features.get(key, target)
        features = self.net.encode(target, self.data_range) if known is None else known
        if key is not None and known is None:
            self.target_features.put(key, target, features)
        return self.net.encode(pred, self.data_range), features

    def unit(self, images: Tensor) -> Tensor:
        """Checked images on [0, 1], float32 or float64, for scores that know one range only."""
        low, high = (0.0, 255.0) if images.dtype == torch.uint8 else self.data_range
        images = images if images.dtype == torch.float64 else images.float()
        return images if (low, high) == (0.0, 1.0) else (images - low) / (high - low)

    def _clamped(self, images: Tensor) -> Tensor:
        return images if images.dtype == torch.uint8 else images.clamp(*self.data_range)


class TargetFeatures:
    """Features of the targets of a fixed validation set, up to a bound of memory, on the device they were made on.

    Each entry keeps the target that it was made from, and counts only as long as the target that comes is equal to it,
    pixel for pixel; otherwise it is dropped. On a GPU the comparison waits for the device, once a batch, as a digest of
    the pixels would too; whether to run the trunk has to be known on the host, and a wrong score would cost more.

    Args:
        limit: Bytes of features and targets together; 0 keeps nothing.

    Raises:
        ValueError: If `limit` is negative.
    """

    def __init__(self, limit: int) -> None:
        if limit < 0:
            raise ValueError(f"cache_bytes: expected at least 0, got {limit}")
        self.limit = limit
        self.size = 0
        self._entries: dict[Hashable, tuple[Tensor, Features]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Hashable, target: Tensor) -> Features | None:
        """The features made from exactly this target; None, and the entry dropped, if it was another."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        kept, features = entry
        if kept.dtype == target.dtype and kept.device == target.device and torch.equal(kept, target):
            return features
        del self._entries[key]
        self.size -= _bytes(kept, features)
        return None

    def put(self, key: Hashable, target: Tensor, features: Features) -> None:
        """Keep the features, unless they would not fit."""
        size = _bytes(target, features)
        if key not in self._entries and self.size + size <= self.limit:
            self._entries[key] = target.clone(), features
            self.size += size

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()
        self.size = 0


def _bytes(target: Tensor, features: Features) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in (target, *features.layers.values()))
