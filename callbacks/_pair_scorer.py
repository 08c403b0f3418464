"""Predictions and targets as the scores want them: checked, on their range, and as features of the LPIPS network."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lpips_lightning.backbones.definition import Backbone
from lpips_lightning.batch import Features
from lpips_lightning.images.preprocessing import ImagePolicy
from lpips_lightning.images.ranges import DataRange, check_values, parse_range, training_tolerance
from lpips_lightning.network import LPIPS
from lpips_lightning.options import DEFAULTS, LPIPSOptions, check_names


class PairScorer:
    """Checks pairs of images and shows them to an LPIPS network.

    Args:
        net_type: A backbone or a built network.
        data_range: Of predictions and targets: ``(low, high)``, or ``high`` alone for ``(0, high)``.
        options: See `LPIPSOptions`; those on images hold for every score.
        owner: What the options were given to, for errors.
        lpips: False for other scores alone: no backbone is looked for.
        clamp: Bring predictions onto the range first; without it, values off the range are an error.
        cache_bytes: Most memory for the features of targets.

    Attributes:
        data_range: ``(low, high)``.
        images: What images are taken, and how they are made color images; no videos.
        target_features: What the network saw in targets.

    Raises:
        TypeError: If `data_range` is neither a pair nor a number, or an option does not exist.
        ValueError: If an argument is none of the known ones, or an option is given beside a built network.
        WeightsError: If weights are missing, damaged or of another architecture.
    """

    def __init__(
        self,
        net_type: str | Backbone | LPIPS,
        data_range: DataRange,
        options: LPIPSOptions,
        owner: Callable[..., Any],
        *,
        lpips: bool = True,
        clamp: bool = False,
        cache_bytes: int = 0,
    ) -> None:
        self.data_range = parse_range(data_range)
        self.clamp = clamp
        self.target_features = TargetFeatures(cache_bytes)
        self._net: LPIPS | None = None
        self._smallest = 1
        if lpips or isinstance(net_type, LPIPS):
            self._net = net = LPIPS.of(net_type, options, owner)
            images = net.images
            # The values are checked here, under the names that the user knows, and not once more by the network.
            self.validate_args, net.validate_args = net.validate_args, False
            self._smallest = net.smallest_side if lpips else 1
        else:
            check_names(options, owner)
            said: LPIPSOptions = {**DEFAULTS, **options}
            images = ImagePolicy.parse(said["gray"], said["background"], said["resize"])
            self.validate_args = said["validate_args"]
        self.images = replace(images, videos=False)

    @property
    def net(self) -> LPIPS:
        """The network.

        Raises:
            ValueError: If there is none.
        """
        if self._net is None:
            raise ValueError("metrics: expected 'lpips' among them, got other scores alone")
        return self._net

    @property
    def fingerprint(self) -> str:
        """One citeable line: everything that decides the number."""
        return f"{self.net.fingerprint}, range {list(self.data_range)}{', predictions clamped' * self.clamp}"

    def check(self, pred: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Both on their range, rounding overshoot clamped.

        Args:
            pred: ``(N, 3, H, W)``, or other channels if the options say so, floating on the range or uint8 on [0, 255].
            target: The same shape.

        Raises:
            TypeError: If either is not an image batch by its type.
            ValueError: If shapes, devices or sides do not fit, or pixel values are off the range.
        """
        net_type = "None" if self._net is None else self._net.net_type
        self.images.check_pair(pred, target, ("pred", "target"), net_type, self._smallest)
        if self.validate_args:
            # Predictions to be clamped may lie as far off as those of a loss; [0, 255] floats still stand out.
            check_values(pred, "pred", self.data_range, training_tolerance(self.data_range) if self.clamp else 0.0)
            check_values(target, "target", self.data_range)
        if self.validate_args or self.clamp:
            pred = self._clamped(pred)
        return pred, self._clamped(target) if self.validate_args else target

    def layers(self, pred: Tensor, target: Tensor, key: Hashable = None) -> list[Tensor]:
        """LPIPS by layer, each ``(N,)``, of a checked pair; the features of a known target are not computed again.

        Args:
            pred: ``(N, 3, H, W)``.
            target: The same shape.
            key: Says which batch of a fixed data set it is; None for none. Under a memory budget nothing is kept.
        """
        net, known = self.net, self.target_features
        features = None
        if key is not None and known.limit and net.memory_budget is None:
            features = known.get(key, target)
            if features is None:
                features = net.encode(target, self.data_range)
                known.put(key, target, features)
        terms = net(pred, target if features is None else features, self.data_range, per_layer=True)
        return list(terms.values())

    def unit(self, images: Tensor) -> Tensor:
        """Checked images on [0, 1], float32 or float64, for scores that know one range only.

        They are the color images that the network sees: gray ones repeated, transparent ones over their background,
        resized.

        Args:
            images: ``(N, C, H, W)``.

        Returns:
            ``(N, 3, H, W)``; ``(N * C, 3, H, W)`` for ``gray="per_channel"``, one image a channel.
        """
        images, (low, high) = self.images.to_flat_rgb(images, self.data_range)
        images = images if images.dtype == torch.float64 else images.float()
        return images if (low, high) == (0.0, 1.0) else (images - low) / (high - low)

    def shown(self, images: Tensor) -> tuple[Tensor, tuple[float, float]]:
        """Checked images as the network sees them, one each: the mean of the channels for ``gray="per_channel"``.

        Args:
            images: ``(N, C, H, W)``.

        Returns:
            ``(N, 3, H, W)``, and their range.
        """
        flat, data_range = self.images.to_flat_rgb(images, self.data_range)
        if len(flat) != len(images):
            flat = flat.float().unflatten(0, (len(images), -1)).mean(1)
        return flat, data_range

    def shown_input(self, images: Tensor) -> tuple[Tensor, tuple[float, float]]:
        """A model's input as color images, in its own size.

        Args:
            images: ``(N, 3, h, w)``, ``(N, 1, h, w)`` or, if there is a background, ``(N, 4, h, w)``.

        Returns:
            ``(N, 3, h, w)``, and their range.
        """
        return replace(self.images, gray=None, resize=None).to_flat_rgb(images, self.data_range)

    def _clamped(self, images: Tensor) -> Tensor:
        return images if images.dtype == torch.uint8 else images.clamp(*self.data_range)


class TargetFeatures:
    """Features of the targets of a fixed validation set, up to a bound of memory, on the device they were made on.

    Each entry keeps the target that it was made from, and counts only as long as the target that comes is equal to it,
    pixel for pixel; otherwise it is dropped. On a GPU the comparison waits for the device, once a batch, as a digest of
    the pixels would too; whether to run the backbone has to be known on the host, and a wrong score would cost more.

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
