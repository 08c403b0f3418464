"""Images -> features, by a frozen network."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor
from typing_extensions import override

from lpips_lightning.backbones import Backbone, backbone
from lpips_lightning.budget import check_budget
from lpips_lightning.features import Features, cat, parts
from lpips_lightning.frozen import Specification, WeightsSource, without_autocast
from lpips_lightning.held import HoldsFrozenNetwork
from lpips_lightning.images import Arrangement, Background, Gray, ImagePolicy, to_trunk
from lpips_lightning.pairwise import feature_vectors
from lpips_lightning.ranges import DataRange, RangeWatch, parse_range

__all__ = ["HALF_PRECISIONS", "Encoder", "Precision"]

Precision = Literal["fp32", "bf16", "fp16", "autocast"]
HALF_PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Encoder(HoldsFrozenNetwork):
    """A frozen network that looks at images, after it has looked whether they are what they are said to be.

    Its arguments are those of `lpips_lightning.network.LPIPS`, which says what they mean.

    Attributes:
        net_type: Name of the trunk.
        precision: Of the trunk.
        images: What images are taken, and how they are brought to the trunk.
        watch: What checks pixel values.
    """

    def __init__(
        self,
        net_type: str | Backbone = "alex",
        *,
        version: str = "0.1",
        calibrated: bool = True,
        weights: WeightsSource = None,
        calibration: WeightsSource = None,
        precision: Precision = "fp32",
        gray: Gray | None = None,
        background: Background | None = None,
        resize: int | Sequence[int] | None = None,
        frame_chunk: int | None = None,
        memory_budget: int | None = None,
        validate_args: bool = True,
    ) -> None:
        check_budget(memory_budget)
        if precision not in get_args(Precision):
            raise ValueError(f"precision: expected one of {get_args(Precision)}, got {precision!r}")
        if frame_chunk is not None and (type(frame_chunk) is not int or frame_chunk < 1):
            raise ValueError(f"frame_chunk: expected a positive number of images or None, got {frame_chunk!r}")
        for name, switch in (("calibrated", calibrated), ("validate_args", validate_args)):
            if not isinstance(switch, bool):
                raise ValueError(f"{name}: expected True or False, got {switch!r}")
        images = ImagePolicy.parse(gray, background, resize)
        super().__init__(backbone(net_type), version, calibrated, weights, calibration)
        self.net_type = self._record.name
        self.precision = precision
        self.images = images
        self.frame_chunk = frame_chunk
        self.memory_budget = memory_budget
        self.validate_args = validate_args
        self.watch = RangeWatch(immediate=True)

    @property
    def specification(self) -> Specification:
        """What the network is, by content; two that share a trunk have equal ``trunk_sha256``."""
        return self._specification

    @property
    def fingerprint(self) -> str:
        """One citeable line: everything that decides the number, but for the images' range."""
        from lpips_lightning import __version__

        found = self._specification
        taps = f" [{' '.join(self._record.taps)}]" if found.layout else ""
        lin = f"lin sha256:{found.calibration_sha256[:12]}" if found.calibrated else "baseline"
        trunk = f"trunk {found.trunk} sha256:{found.trunk_sha256[:12]}"
        parts = [f"LPIPS {found.net_type}{taps} v{found.version}", lin, trunk, str(self.images), self.precision]
        return ", ".join([*filter(None, parts), f"lpips_lightning {__version__}"])

    def encode(self, images: Tensor, data_range: DataRange = (-1, 1)) -> Features:
        """What the trunk sees: compute once, compare often with `distance`, or by giving it to `forward` for `y`.

        Args:
            images: ``(N, 3, H, W)`` or ``(B, T, 3, H, W)``, floating on `data_range` or uint8 on [0, 255].
            data_range: ``(low, high)``, or ``high`` alone for ``(0, high)``.

        Returns:
            Activations by layer. Made under ``torch.inference_mode`` they cannot serve a backward pass.

        Raises:
            TypeError: If an argument is of the wrong type.
            ValueError: If the shape or a side does not fit, or pixel values are off the range.
        """
        low_high = parse_range(data_range)
        self.images.check(images, "images", self.net_type, self._record.smallest_side)
        self._see(images, "images", low_high, 0.0)
        flat, flat_range = self.images.arrange(images, low_high)
        runs = [self._run(flat[part], flat_range, clamp=True) for part in parts(flat, self.frame_chunk)]
        layers = {layer: cat([run[layer] for run in runs]) for layer in self.layers}
        return Features(layers, (flat.shape[2], flat.shape[3]), self.images.arrangement(images), self._source)

    @property
    def _source(self) -> str:
        found = self._specification
        return f"{found.net_type} v{found.version} {found.trunk_sha256} {found.layout} {self.images}"

    def check_shapes(self, x: Tensor, y: Tensor | Features, names: tuple[str, str] = ("x", "y")) -> None:
        """Refuse what `forward` would refuse before it looks at pixel values.

        Args:
            x: Images.
            y: Images of the same shape, or what `encode` made of them.
            names: What to call them in errors.

        Raises:
            TypeError: If either is of the wrong type.
            ValueError: If shapes, devices or sides do not fit.
        """
        side = self._record.smallest_side
        if isinstance(y, Features):
            self.images.check(x, names[0], self.net_type, side)
            size = self.images.resize or (x.shape[-2], x.shape[-1])
            self._check_features(y, names[1], self.images.arrangement(x), size)
            first = y.layers[self.layers[0]]
            if first.device != x.device:
                raise ValueError(f"{names[1]}: expected features on device {x.device}, got {first.device}")
            if first.is_inference() and x.requires_grad and torch.is_grad_enabled():
                raise ValueError(
                    f"{names[1]}: expected features that can serve a backward pass, got some made under "
                    "torch.inference_mode; encode under torch.no_grad instead"
                )
        else:
            self.images.check_pair(x, y, names, self.net_type, side)

    def _check_features(self, features: Features, name: str, arrangement: Arrangement, size: tuple[int, int]) -> None:
        if not isinstance(features, Features):
            raise TypeError(f"{name}: expected features from encode, got {type(features).__name__}")
        if features.source != self._source:
            raise ValueError(f"{name}: expected features of {self._source!r}, got features of {features.source!r}")
        if (features.arrangement, features.size) != (arrangement, size):
            raise ValueError(
                f"{name}: expected features of {arrangement.shape} images of size {size}, "
                f"got those of {features.arrangement.shape} images of size {features.size}"
            )

    def _see(self, images: Tensor, name: str, data_range: tuple[float, float], slack: float) -> None:
        if self.validate_args and not torch.compiler.is_compiling():
            self.watch.see(images, name, data_range, slack)

    def _encoded_parts(
        self, x: Tensor, y: Tensor | Features, data_range: tuple[float, float], clamp_x: bool
    ) -> Iterator[tuple[slice, dict[str, Tensor], dict[str, Tensor]]]:
        flat_x, range_x = self.images.arrange(x, data_range)
        flat_y, range_y = self.images.arrange(y, data_range) if isinstance(y, Tensor) else (flat_x, range_x)
        for part in parts(flat_x, self.frame_chunk):
            fixed = {layer: y.layers[layer][part] for layer in self.layers} if isinstance(y, Features) else None
            yield part, self._run(flat_x[part], range_x, clamp_x), fixed or self._run(flat_y[part], range_y, clamp=True)

    def _run(self, images: Tensor, data_range: tuple[float, float], clamp: bool) -> dict[str, Tensor]:
        dtype = self._trunk_dtype(images)
        network = self._network(images.device, dtype)
        clamp = clamp and self.validate_args
        with without_autocast(images.device):
            return network.extractor(to_trunk(images, data_range, network.shift, network.scale, dtype, clamp))

    def _vectors(self, images: Tensor, data_range: DataRange, batch_size: int) -> Iterator[Tensor]:
        for chunk in images.split(batch_size):
            features = self.encode(chunk, data_range)
            first = features.layers[self.layers[0]]
            with without_autocast(first.device):
                vectors = feature_vectors(features.layers, self._network(first.device, first.dtype).calibration)
            channels = features.arrangement.channels
            yield vectors.view(len(chunk), -1) / channels**0.5 if channels > 1 else vectors

    def _trunk_dtype(self, images: Tensor) -> torch.dtype:
        if self.precision in HALF_PRECISIONS:
            return HALF_PRECISIONS[self.precision]
        device_type = images.device.type
        if self.precision == "autocast" and device_type != "meta" and torch.is_autocast_enabled(device_type):
            return torch.get_autocast_dtype(device_type)
        return torch.float64 if images.dtype == torch.float64 else torch.float32

    @override
    def extra_repr(self) -> str:
        return self.fingerprint

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        twin = super().__deepcopy__(memo)
        twin.watch = copy.deepcopy(self.watch, memo)
        return twin
