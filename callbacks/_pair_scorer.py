"""Checks and converts predictions and targets for the scores, and computes their LPIPS."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lpips_lightning.backbones.definition import Backbone
from lpips_lightning.batch import Features
from lpips_lightning.callers import warn_user
from lpips_lightning.images.hints import UNMASKED
from lpips_lightning.images.preprocessing import ImagePolicy
from lpips_lightning.images.ranges import DataRange, NoRange, RangeChecker, RangeError, check_values, range_label
from lpips_lightning.network import LPIPS
from lpips_lightning.options import DEFAULTS, LPIPSOptions, check_names
from lpips_lightning.perceptual_distance import PerceptualDistance, check_repeatable


class PairScorer:
    """Checks image pairs and computes their LPIPS by layer.

    Args:
        net_type: A backbone or a built `PerceptualDistance`.
        data_range: Range of predictions and targets: ``(low, high)``, or ``high`` alone for ``(0, high)``; None for a
            backbone without a range.
        options: See `LPIPSOptions`; the image options apply to every score.
        owner: Class that the options were given to, for errors.
        lpips: False for scores other than LPIPS: no backbone is loaded.
        clamp: Clamp predictions to the range; otherwise values outside it are scored unclamped, with one warning.
        cache_bytes: Memory limit for cached target features.

    Attributes:
        data_range: ``(low, high)``.
        images: Which images are accepted, and how they are converted to color images; no videos.
        target_features: Cache of target features.

    Raises:
        TypeError: If `data_range` is neither a pair nor a number, or an option does not exist.
        ValueError: If an argument has an unknown value, or an option is given with a built network.
        WeightsError: If weights are missing, damaged or of another architecture.
    """

    def __init__(
        self,
        net_type: str | Backbone | PerceptualDistance,
        data_range: DataRange | NoRange,
        options: LPIPSOptions,
        owner: Callable[..., Any],
        *,
        lpips: bool = True,
        clamp: bool = False,
        cache_bytes: int = 0,
    ) -> None:
        self.clamp = clamp
        self.target_features = TargetFeatures(cache_bytes)
        self._predictions, self._targets = RangeChecker(immediate=True), RangeChecker(immediate=True)
        self._warned = False
        self._net: PerceptualDistance | None = None
        self._smallest = 1
        if lpips or isinstance(net_type, PerceptualDistance):
            self._net = net = LPIPS.of(net_type, options, owner)
            check_repeatable(net)
            images = net.images
            # Values are checked here with the user's argument names; the network must not check them again.
            self.validate_args, net.validate_args = net.validate_args, False
            self._smallest = net.smallest_side if lpips else 1
        else:
            check_names(options, owner)
            values: LPIPSOptions = {**DEFAULTS, **options}
            given = (net_type.input_channels, net_type.has_range) if isinstance(net_type, Backbone) else (3, True)
            images = ImagePolicy.parse(values["gray"], values["background"], values["resize"], *given)
            self.validate_args = values["validate_args"]
        self.images = replace(images, videos=False)
        self.data_range = images.value_range(data_range)
        if self._net is not None:
            self._net.check_range(self.data_range)
        if clamp and not images.has_range:
            raise ValueError("clamp: expected False for a network whose input has no range, got True")

    @property
    def net(self) -> PerceptualDistance:
        """LPIPS network.

        Raises:
            ValueError: If there is none, since only other scores are computed.
        """
        if self._net is None:
            raise ValueError("metrics: expected 'lpips' among them, got only other scores")
        return self._net

    @property
    def fingerprint(self) -> str:
        """One line to cite: everything that determines the score."""
        return f"{self.net.fingerprint}, {range_label(self.data_range)}{', predictions clamped' * self.clamp}"

    def check(self, pred: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Check a pair and clamp rounding overshoot; predictions may have any values and never stop a training.

        Args:
            pred: ``(N, 3, H, W)``, or other channels if the options allow, floating on the range or uint8 on [0, 255].
            target: Same shape.

        Raises:
            TypeError: If either is of the wrong type.
            ValueError: If shapes, sizes or devices do not match, or pixel values of `target` are outside the range.
        """
        net_type = "None" if self._net is None else self._net.net_type
        self.images.check_pair(pred, target, ("pred", "target"), net_type, self._smallest)
        if self.validate_args:
            self._targets.observe(target, "target", self.data_range, hints=UNMASKED)
        if not self.images.has_range:
            return pred, target
        if self.clamp and self.validate_args:
            self._predictions.observe(pred, "pred", self.data_range, "prediction", UNMASKED)
        if self.clamp or (self.validate_args and self._is_on_range(pred)):
            pred = self._clamped(pred)
        return pred, self._clamped(target) if self.validate_args else target

    def layers(self, pred: Tensor, target: Tensor, key: Hashable = None) -> list[Tensor]:
        """LPIPS by layer, each ``(N,)``, of a checked pair, with cached target features.

        Args:
            pred: ``(N, 3, H, W)``.
            target: Same shape.
            key: Identifies a batch of a fixed dataset for the cache; None does not cache. With a memory budget nothing
                is cached.
        """
        net, cache = self.net, self.target_features
        features = None
        if key is not None and cache.limit and net.memory_budget is None:
            features = cache.get(key, target)
            if features is None:
                features = net.encode(target, self.data_range)
                cache.put(key, target, features)
        terms = net(pred, target if features is None else features, self.data_range, per_layer=True)
        return list(terms.values())

    def to_unit_range(self, images: Tensor) -> Tensor:
        """Convert checked images to [0, 1], float32 or float64, for PSNR and SSIM.

        The result is the input of the LPIPS network: gray channels repeated, transparent images composited over the
        background, and resized.

        Args:
            images: ``(N, C, H, W)``.

        Returns:
            ``(N, 3, H, W)``; ``(N * C, 3, H, W)`` for ``gray="per_channel"``, one image per channel.
        """
        images, (low, high) = self.images.to_flat_rgb(images, self.data_range)
        images = images if images.dtype == torch.float64 else images.float()
        return images if (low, high) == (0.0, 1.0) else (images - low) / (high - low)

    def display(self, images: Tensor) -> tuple[Tensor, tuple[float, float]]:
        """Convert checked images to the network's input, for display; the channel mean for ``gray="per_channel"``.

        Args:
            images: ``(N, C, H, W)``.

        Returns:
            ``(N, 3, H, W)``, and its range.
        """
        flat, data_range = self.images.to_flat_rgb(images, self.data_range)
        if len(flat) != len(images):
            flat = flat.float().unflatten(0, (len(images), -1)).mean(1)
        return flat, data_range

    def display_input(self, images: Tensor) -> tuple[Tensor, tuple[float, float]]:
        """Convert a model's input to color images of the same size, for display.

        Args:
            images: ``(N, 3, h, w)``, ``(N, 1, h, w)`` or, with a background, ``(N, 4, h, w)``.

        Returns:
            ``(N, 3, h, w)``, and its range.
        """
        return replace(self.images, gray=None, resize=None).to_flat_rgb(images, self.data_range)

    def _is_on_range(self, pred: Tensor) -> bool:
        """Whether predictions are off their range by rounding at most; warns once if not."""
        try:
            check_values(pred, "pred", self.data_range, UNMASKED)
        except RangeError as error:
            if not self._warned:
                self._warned = True
                way_out = "clamp=True scores them as an image file would hold them"
                warn_user(f"{error}; they are scored as they are, {way_out}")
            return False
        return True

    def _clamped(self, images: Tensor) -> Tensor:
        return images if images.dtype == torch.uint8 else images.clamp(*self.data_range)


class TargetFeatures:
    """Memory-limited cache of target features for a fixed validation set, on the device of the images.

    An entry also stores its target and is used only if the new target is equal pixel for pixel; otherwise it is
    dropped. The comparison synchronizes with a GPU once per batch, since the host must know whether to run the
    backbone. A hash of the pixels would synchronize too.

    Args:
        limit: Bytes of features and targets together; 0 disables the cache.

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
        """Cached features of exactly this target, or None; an entry of another target is dropped."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        cached, features = entry
        if cached.dtype == target.dtype and cached.device == target.device and torch.equal(cached, target):
            return features
        del self._entries[key]
        self.size -= _bytes(cached, features)
        return None

    def put(self, key: Hashable, target: Tensor, features: Features) -> None:
        """Store the features if they fit."""
        size = _bytes(target, features)
        if key not in self._entries and self.size + size <= self.limit:
            self._entries[key] = target.clone(), features
            self.size += size

    def clear(self) -> None:
        """Drop all entries."""
        self._entries.clear()
        self.size = 0


def _bytes(target: Tensor, features: Features) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in (target, *features.layers.values()))
