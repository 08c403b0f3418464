"""LPIPS: images -> distance, layers, map."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple, Self, get_args

import torch
from torch import Tensor
from typing_extensions import override

from lpips_lightning.distance import layer_distances, layer_maps, upsample
from lpips_lightning.frozen import FrozenNetwork, Specification, WeightsSource, acquire, specify
from lpips_lightning.images import DataRange, check_pair, check_shape, check_values, parse_range, to_trunk
from lpips_lightning.legacy import DropsLegacyKeys
from lpips_lightning.pairwise import feature_vectors, groups_within, pairwise_distances
from lpips_lightning.weights import WeightsError

__all__ = ["LPIPS", "Features", "Precision"]

Precision = Literal["fp32", "bf16", "fp16", "autocast"]
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Features(NamedTuple):
    """What the trunk sees in a batch of images.

    Attributes:
        layers: Activations ``(N, C, h, w)`` by layer name, from the input on.
        size: ``(H, W)`` of the images.
    """

    layers: dict[str, Tensor]
    size: tuple[int, int]


class LPIPS(DropsLegacyKeys):
    """Learned perceptual image patch similarity: images -> distance ``(N,)``, by layer, or as a map.

    ``d(x, y) = sum_l mean_hw  w_l . (x^_l - y^_l)^2`` (Zhang et al. 2018, equation 1), with ``w >= 0`` applied to the
    squared difference and the norm's ``1e-10`` outside the root, as the reference implementation has it
    (richzhang/PerceptualSimilarity). 0 on identical images, symmetric, lower is more similar.

    The module owns no parameters, buffers or state: the frozen network is looked up and checked when the module is
    made, and shared with every other user of the same numbers in this process. `.to()`, `.half()`, `.train()`,
    optimizers and checkpoints leave it alone; it follows the device of the images.

    Args:
        net_type: ``"alex"``, ``"vgg"``, ``"squeeze"`` or ``"embedded"``, which ships.
        version: ``"0.1"``, or ``"0.0"``: the first release, which did not scale its input.
        calibrated: False for the baseline: channels and layers summed with weight 1.
        weights: Of the trunk. None looks for torchvision's ImageNet weights in the folder that the environment
            variable ``LPIPS_LIGHTNING_WEIGHTS`` names, in torchvision's cache, and last downloads them. A path to a
            file or folder, or tensors by torchvision's names, are taken as they are. ``"random"`` draws Gaussian
            weights, seeded by PyTorch's global generator.
        calibration: None for the official one of `net_type` and `version`; else a path, or tensors ``(C,)`` by
            layer name.
        precision: Of the trunk; everything after it runs in float32. ``"fp32"`` also under autocast (float64 for
            float64 images), ``"bf16"``, ``"fp16"``, or ``"autocast"``: what the surrounding autocast says.
        validate_args: Check pixel values on every call. This waits for the device. Shapes are always checked; under
            ``torch.compile`` values are not.

    Raises:
        ValueError: If an argument is none of the known ones.
        WeightsError: If weights are missing, damaged or of another architecture.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> net = LPIPS("squeeze", weights="random")
        >>> x = torch.rand(2, 3, 64, 64)
        >>> net(x, x, data_range=(0, 1))
        tensor([0., 0.])
        >>> net(x, 1 - x, data_range=(0, 1), spatial=True).shape
        torch.Size([2, 1, 64, 64])
    """

    def __init__(
        self,
        net_type: str = "alex",
        *,
        version: str = "0.1",
        calibrated: bool = True,
        weights: WeightsSource = None,
        calibration: WeightsSource = None,
        precision: Precision = "fp32",
        validate_args: bool = True,
    ) -> None:
        super().__init__()
        if precision not in get_args(Precision):
            raise ValueError(f"precision: expected one of {get_args(Precision)}, got {precision!r}")
        self.net_type = net_type
        self.version = version
        self.calibrated = calibrated
        self.precision = precision
        self.validate_args = validate_args
        self._weights = weights
        self._calibration = calibration
        self._seed = int(torch.randint(2**62, (), device="cpu")) if weights == "random" else 0
        self._specification, base = self._specify()
        # A plain dict in a plain attribute: no module, no parameter, no buffer is registered.
        self._held: dict[tuple[torch.device, torch.dtype], FrozenNetwork] = {_BASE: base}

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers, from the input on."""
        return self._base().layers

    @property
    def specification(self) -> Specification:
        """What the network is, by content; two that share a trunk have equal ``trunk_sha256``."""
        return self._specification

    @property
    def fingerprint(self) -> str:
        """One citeable line: everything that decides the number, but for the images' range."""
        from lpips_lightning import __version__

        found = self._specification
        lin = f"lin sha256:{found.calibration_sha256[:12]}" if found.calibrated else "baseline"
        return (
            f"LPIPS {found.net_type} v{found.version}, {lin}, trunk {found.trunk} sha256:{found.trunk_sha256[:12]}, "
            f"{self.precision}, lpips_lightning {__version__}"
        )

    def forward(
        self,
        x: Tensor,
        y: Tensor,
        data_range: DataRange = (-1, 1),
        *,
        spatial: bool = False,
        per_layer: bool = False,
        names: tuple[str, str] = ("x", "y"),
        slack: float = 0.0,
    ) -> Tensor | dict[str, Tensor]:
        """Distance of every pair.

        Args:
            x: Images ``(N, 3, H, W)``, floating on `data_range` or uint8 on [0, 255].
            y: Images of the same shape.
            data_range: ``(low, high)``, or ``high`` alone for ``(0, high)``.
            spatial: Return the map, each layer's upsampled to the image's size.
            per_layer: Return the layers' terms by name; they sum to the whole.
            names: What to call `x` and `y` in errors.
            slack: How far `x` may lie off its range, in sizes of the range; it is then not clamped. ``math.inf``:
                as far as it likes.

        Returns:
            ``(N,)``, or ``(N, 1, H, W)`` if `spatial`; a dict of such if `per_layer`. float32; float64 for float64.

        Raises:
            TypeError: If an argument is of the wrong type.
            ValueError: If shapes, devices or sides do not fit, or pixel values are off the range.
        """
        low_high = parse_range(data_range)
        check_pair(x, y, names, self.net_type, self._base().record.smallest_side)
        self._check_values(x, names[0], low_high, slack)
        self._check_values(y, names[1], low_high, 0.0)
        features_x = self._encode(x, low_high, clamp=self.validate_args and not slack)
        features_y = self._encode(y, low_high, clamp=self.validate_args)
        return self.distance(features_x, features_y, spatial=spatial, per_layer=per_layer)

    def encode(self, images: Tensor, data_range: DataRange = (-1, 1)) -> Features:
        """What the trunk sees: compute once, compare often with `distance`.

        Args:
            images: ``(N, 3, H, W)``, floating on `data_range` or uint8 on [0, 255].
            data_range: ``(low, high)``, or ``high`` alone for ``(0, high)``.

        Returns:
            Activations by layer. Made under ``torch.inference_mode`` they cannot serve a backward pass.

        Raises:
            TypeError: If an argument is of the wrong type.
            ValueError: If the shape or a side does not fit, or pixel values are off the range.
        """
        low_high = parse_range(data_range)
        check_shape(images, "images", self.net_type, self._base().record.smallest_side)
        self._check_values(images, "images", low_high, 0.0)
        return self._encode(images, low_high, clamp=self.validate_args)

    def distance(
        self, x: Features, y: Features, *, spatial: bool = False, per_layer: bool = False
    ) -> Tensor | dict[str, Tensor]:
        """Distance of every pair of features.

        Args:
            x: From `encode`.
            y: From `encode`, of as many images of the same size.
            spatial: Return the map, each layer's upsampled to the image's size.
            per_layer: Return the layers' terms by name; they sum to the whole.

        Returns:
            As `forward`.

        Raises:
            ValueError: If the two are not of the same net, number and size.
        """
        for layer in self.layers:
            if layer not in x.layers or layer not in y.layers or x.layers[layer].shape != y.layers[layer].shape:
                raise ValueError(f"y: expected features of the shapes of x at the layers {list(self.layers)}")
        first = x.layers[self.layers[0]]
        calibration = self._network(first.device, first.dtype).calibration
        with _without_autocast(first.device):
            if spatial:
                maps = layer_maps(x.layers, y.layers, calibration)
                terms = {layer: upsample(layer_map, x.size) for layer, layer_map in maps.items()}
            else:
                terms = layer_distances(x.layers, y.layers, calibration)
        return terms if per_layer else torch.stack(list(terms.values())).sum(0)

    def pairwise(
        self,
        x: Tensor,
        y: Tensor | None = None,
        data_range: DataRange = (-1, 1),
        *,
        batch_size: int = 16,
        memory_budget: int = 2**30,
    ) -> Tensor:
        """Distance of every image of `x` to every image of `y`; each image passes the trunk once.

        Args:
            x: Images ``(N, 3, H, W)``, floating on `data_range` or uint8 on [0, 255].
            y: Images ``(M, 3, H, W)`` of the same size; None for `x` itself.
            data_range: ``(low, high)``, or ``high`` alone for ``(0, high)``.
            batch_size: Images in one trunk pass.
            memory_budget: Bytes of the features of `y` to hold at once. If they are more, `x` passes the trunk again
                for every part that fits.

        Returns:
            Shape ``(N, M)``; for ``y=None`` exactly symmetric with a zero diagonal. float32; float64 for float64.

        Raises:
            TypeError: If an argument is of the wrong type.
            ValueError: If a shape, a side, the sizes or a device do not fit, or pixel values are off the range.
        """
        if y is not None and x.shape[1:] != y.shape[1:]:
            raise ValueError(f"y: expected images of the shape {tuple(x.shape[1:])} of x, got {tuple(y.shape[1:])}")
        columns = x if y is None else y
        parts = []
        for group in groups_within(self._vectors(columns, data_range, batch_size), memory_budget):
            whole = y is None and sum(map(len, group)) == len(x)
            parts.append(pairwise_distances(group if whole else self._vectors(x, data_range, batch_size), group))
        distances = torch.cat(parts, 1)
        return distances if y is not None else distances.triu(1) + distances.triu(1).T

    def _vectors(self, images: Tensor, data_range: DataRange, batch_size: int) -> Iterator[Tensor]:
        for chunk in images.split(batch_size):
            layers = self.encode(chunk, data_range).layers
            first = layers[self.layers[0]]
            with _without_autocast(first.device):
                yield feature_vectors(layers, self._network(first.device, first.dtype).calibration)

    def _check_values(self, images: Tensor, name: str, data_range: tuple[float, float], slack: float) -> None:
        if self.validate_args and not torch.compiler.is_compiling():
            check_values(images, name, data_range, slack)

    def _encode(self, images: Tensor, data_range: tuple[float, float], clamp: bool) -> Features:
        dtype = self._trunk_dtype(images)
        network = self._network(images.device, dtype)
        with _without_autocast(images.device):
            layers = network.extractor(to_trunk(images, data_range, network.shift, network.scale, dtype, clamp))
        return Features(layers, (images.shape[2], images.shape[3]))

    def _trunk_dtype(self, images: Tensor) -> torch.dtype:
        if self.precision in _DTYPES:
            return _DTYPES[self.precision]
        device_type = images.device.type
        if self.precision == "autocast" and torch.is_autocast_enabled(device_type):
            return torch.get_autocast_dtype(device_type)
        return torch.float64 if images.dtype == torch.float64 else torch.float32

    def _specify(self) -> tuple[Specification, FrozenNetwork]:
        return specify(self.net_type, self.version, self.calibrated, self._weights, self._calibration, self._seed)

    def _base(self) -> FrozenNetwork:
        base = self._held.get(_BASE)
        if base is None:
            found, base = self._specify()
            if found != self._specification:
                raise WeightsError(f"weights: expected those of {self._specification}, found {found}")
            self._held[_BASE] = base
        return base

    def _network(self, device: torch.device, dtype: torch.dtype) -> FrozenNetwork:
        network = self._held.get((device, dtype))
        if network is None:
            network = self._held[device, dtype] = acquire(self._base(), self._specification, device, dtype)
        return network

    @override
    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        # Nothing to move; but a module that goes to a device wants its network there before the first (compiled) step.
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        device = fn(torch.empty(0, device="cpu")).device
        if device.type not in ("cpu", "meta"):
            self._network(device, torch.float32)
        return self

    @override
    def extra_repr(self) -> str:
        return self.fingerprint

    def __getstate__(self) -> dict[str, Any]:
        state = {**self.__dict__, "_held": {}}
        if isinstance(self._weights, Mapping):
            state["_weights"] = dict(self._base().extractor.graph.state_dict())
        return state

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        twin = type(self).__new__(type(self))
        twin.__dict__ = {**self.__dict__, "_held": dict(self._held)}
        memo[id(self)] = twin
        return twin


_BASE = (torch.device("cpu"), torch.float32)


def _without_autocast(device: torch.device) -> contextlib.AbstractContextManager[None]:
    if device.type == "meta" or not torch.is_autocast_enabled(device.type):
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)
