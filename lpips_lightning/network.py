"""The LPIPS network: distance of image pairs, by layer or as a map."""

from __future__ import annotations

import copy
import inspect
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Self, Unpack, get_args

import torch
from torch import Tensor
from typing_extensions import override

from lpips_lightning.backbones.caffe_file import is_caffe_file
from lpips_lightning.backbones.definition import Backbone
from lpips_lightning.backbones.dists_vgg import dists_backbone
from lpips_lightning.backbones.frozen import FrozenNetwork, Specification, without_autocast
from lpips_lightning.backbones.loading import describe_backbone, version_name
from lpips_lightning.backbones.selfcheck import selfcheck
from lpips_lightning.backbones.shared import SharedNetworkModule
from lpips_lightning.batch import Features
from lpips_lightning.distances.feature_distance import FeatureDistance
from lpips_lightning.distances.vectors import DistanceVectors, groups_within, pairwise_distances
from lpips_lightning.distances.weighted import parse_distance
from lpips_lightning.engine import dispatch
from lpips_lightning.engine.inputs import Pairs
from lpips_lightning.engine.memory import estimate
from lpips_lightning.engine.planner import check_budget, choose_plan
from lpips_lightning.engine.state import Plan
from lpips_lightning.images.preprocessing import ImagePolicy, clamped
from lpips_lightning.images.ranges import DataRange, RangeChecker, Role
from lpips_lightning.options import (
    DEFAULTS,
    Convention,
    LPIPSOptions,
    Precision,
    check_names,
    check_not_given,
    with_options,
)
from lpips_lightning.perceptual_distance import PerceptualDistance

_DEFAULT_NET = "alex"
_CONVENTIONS = {"3dgs": "convention 3dgs: [0, 1] read as [-1, 1]"}
HALF_PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}


@with_options()
class LPIPS(SharedNetworkModule, PerceptualDistance):
    """Learned perceptual image patch similarity: images -> distance ``(N,)``, by layer, or as a map.

    ``d(x, y) = sum_l mean_hw  w_l . (x^_l - y^_l)^2`` (Zhang et al. 2018, equation 1), with ``w >= 0`` applied to the
    squared difference and ``1e-10`` added to the norm, outside the root, as in the reference implementation
    (richzhang/PerceptualSimilarity). 0 for identical images; symmetric; lower is more similar.

    The module has no parameters, buffers or state. It loads and checks the frozen network when it is constructed, and
    shares it with every other user of the same weights in this process. `.to()`, `.half()`, `.train()`, optimizers and
    checkpoints do not affect the network; it runs on the device of the images.

    Args:
        net_type: ``"alex"``, ``"vgg"``, ``"squeeze"``; ``"alex-st"`` or ``"vgg-st"``, which tolerate shifts (Ghildyal
            and Liu, ECCV 2022); ``"embedded"`` or ``"embedded-vgg"``, which ship with the package; or a
            custom backbone from `lpips_lightning.backbones.custom`. ``"caffe-alexnet"`` is the one that the file in
            `weights` describes, which may be left out next to such a file.
        options: See `lpips_lightning.options.LPIPSOptions`. Checking pixel values synchronizes with the device.

    Attributes:
        net_type: Name of the backbone.
        images: Which images are accepted, and how they are converted for the backbone.
        range_checker: Checks pixel values.
        role: Role in `forward` and `measure` of images that do not require grad.

    Raises:
        TypeError: If an option does not exist.
        ValueError: If an argument has an unknown value.
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

    __jit_unused_properties__ = (
        "layers",
        "specification",
        "smallest_side",
        "fingerprint",
        "source",
        "backbone_hashes",
        "label",
        "is_repeatable",
    )

    def __init__(self, net_type: str | Backbone = _DEFAULT_NET, **options: Unpack[LPIPSOptions]) -> None:
        check_names(options, type(self))
        values: LPIPSOptions = {**DEFAULTS, **options}
        precision, frame_chunk = values["precision"], values["frame_chunk"]
        check_budget(values["memory_budget"])
        if precision not in get_args(Precision):
            raise ValueError(f"precision: expected one of {get_args(Precision)}, got {precision!r}")
        if frame_chunk is not None and (type(frame_chunk) is not int or frame_chunk < 1):
            raise ValueError(f"frame_chunk: expected a positive number of images, or None, got {frame_chunk!r}")
        for name, switch in (("calibrated", values["calibrated"]), ("validate_args", values["validate_args"])):
            if not isinstance(switch, bool):
                raise ValueError(f"{name}: expected True or False, got {switch!r}")
        weights, calibration = values["weights"], values["calibration"]
        backbone, calibrated = describe_backbone(net_type, weights, values["calibrated"], calibration, _DEFAULT_NET)
        images = ImagePolicy.parse(
            values["gray"], values["background"], values["resize"], backbone.input_channels, backbone.has_range
        )
        distance = parse_distance(values["distance"])
        convention = _checked_convention(values, backbone.name)
        backbone, calibrated = _fitting(backbone, calibrated, distance, values)
        super().__init__(backbone, values["version"], calibrated, weights, calibration, distance)
        self.net_type = self._record.name
        self.convention = convention
        self.precision = precision
        self.images = images
        found = self._specification
        self._source = f"{found.net_type} v{found.version} {found.backbone_sha256} {found.layout} {images}"
        self._source += self._convention_label()
        self.frame_chunk = frame_chunk
        self.memory_budget = values["memory_budget"]
        self.validate_args = values["validate_args"]
        self.range_checker = RangeChecker(immediate=True)
        self.role: Role = "data"

    @classmethod
    def of(
        cls,
        net_type: str | Backbone | PerceptualDistance,
        options: LPIPSOptions,
        owner: Callable[..., Any],
        **defaults: Unpack[LPIPSOptions],
    ) -> PerceptualDistance:
        """Build the network of a metric, loss or callback: a separate object with its own `RangeChecker`.

        Args:
            net_type: A backbone; or a built `LPIPS` or other `PerceptualDistance`, which is copied: the copy has its
                options and shares its frozen network.
            options: Options given by the user; must be empty with a built one.
            owner: Class or function that the options were given to, for errors.
            defaults: Options of a new network that are used unless given.

        Returns:
            The network.

        Raises:
            TypeError: If an option does not exist.
            ValueError: If an argument has an unknown value, or an option was given with a built network.
            WeightsError: If weights are missing, damaged or of another architecture.

        Example:
            >>> net = LPIPS("embedded", gray="repeat")
            >>> other = LPIPS.of(net, {}, LPIPS)
            >>> other.fingerprint == net.fingerprint, other.range_checker is net.range_checker
            (True, False)
        """
        check_names(options, owner)
        if not isinstance(net_type, PerceptualDistance):
            values: LPIPSOptions = {**defaults, **options}
            if is_caffe_file(values.get("weights")) and net_type == _default_net(owner):
                net_type = _DEFAULT_NET  # the file says which net it is
            return cls(net_type, **values)
        check_not_given(options, **defaults)
        clone = copy.deepcopy(net_type)
        clone.range_checker, clone.role = RangeChecker(immediate=True), "data"
        return clone

    @property
    def specification(self) -> Specification:
        """Identity of the network by content: backbone and calibration with their SHA-256."""
        return self._specification

    @property
    def smallest_side(self) -> int:
        """Smallest side of the backbone's input, in pixels."""
        return self._record.smallest_side

    @property
    def fingerprint(self) -> str:
        """One line to cite: everything that determines the distance, except the images' data range.

        A calibration of your own is called ``custom``, with the name of its file. The hashes are the first 12 digits of
        `tensors_sha256`; ``lpips-lightning weights list`` shows those of the packaged weights. Of custom
        backbones, ``settings`` is a hash of structure and input scaling, which the weights do not determine; another
        version of PyTorch or timm may change it.
        """
        from lpips_lightning import __version__

        found = self._specification
        is_custom = found.layout and found.distance != "dists"
        feature_layers = f" [{' '.join(self._record.feature_layers)}]" if is_custom else ""
        backbone = f"backbone {found.backbone} sha256:{found.backbone_sha256[:12]}"
        settings = f"settings sha256:{found.layout[:12]}" if is_custom else ""
        parts = [
            f"{self._distance.title} {found.net_type}{feature_layers} v{found.version}",
            self._calibration_label(),
            backbone,
            settings,
            self._record.description,
            str(self.images),
            self._convention_label(),
            self.precision,
        ]
        return ", ".join([*filter(None, parts), f"lpips_lightning {__version__}"])

    @override
    def check_range(self, data_range: tuple[float, float]) -> None:
        if self.convention is not None and data_range not in ((0.0, 1.0), (0.0, 255.0)):
            low, high = data_range
            raise ValueError(
                f"data_range: expected (0, 1), or 255, with convention={self.convention!r}, which is defined by images "
                f"on [0, 1], got ({low:g}, {high:g}); declare images on [0, 1] with data_range=(0, 1), or leave the "
                "convention out"
            )

    @property
    @override
    def label(self) -> str:
        distance = "" if self._distance.name == "lpips" else f" {self._distance.name}"
        convention = "" if self.convention is None else f" {self.convention}"
        return f"{self.net_type} v{self.version}{distance}{convention}"

    def _convention_label(self) -> str:
        return "" if self.convention is None else _CONVENTIONS[self.convention]

    def _calibration_label(self) -> str:
        from lpips_lightning.io.image_decoding import printable

        found = self._specification
        if not self._distance.uses_calibration:
            return f"alpha beta sha256:{found.calibration_sha256[:12]}" if found.calibrated else ""
        if not found.calibrated:
            return "baseline"
        source = self._weights if self._calibration is None else self._calibration
        file = "" if not isinstance(source, str | os.PathLike) else printable(Path(source).name)
        custom = [found.calibration, file] if found.calibration == "custom" else []
        return " ".join(filter(None, ["lin", *custom, f"sha256:{found.calibration_sha256[:12]}"]))

    def plan(self, shape: tuple[int, int, int, int], *, gradient: bool = False, device: str = "cpu") -> Plan:
        """Plan of a call on image pairs, with an estimate of its memory.

        Args:
            shape: ``(N, 3, H, W)`` of the images on each side, or of other input channels.
            gradient: Include the gradient w.r.t. the first images, as for a loss.
            device: Device of the images.

        Returns:
            The plan; its ``size`` is the estimated memory in bytes, excluding weights and images.

        Raises:
            ValueError: If the shape is not four nonnegative integers, or has other channels than the network.
        """
        channels = self._record.input_channels
        if len(shape) != 4 or not all(isinstance(size, int) and size >= 0 for size in shape) or shape[1] != channels:
            raise ValueError(f"shape: expected (N, {channels}, H, W), got {shape}")
        dtype = HALF_PRECISIONS.get(self.precision, torch.float32)
        network = self.frozen_network(torch.device(device), dtype)
        found = choose_plan(network, shape, self.memory_budget, gradient)
        images = min(found.images, self.frame_chunk or found.images)
        size = (
            found.size
            if found.size and images == found.images
            else estimate(network, (images, *shape[1:]), "gradient" if gradient else "forward")
        )
        return replace(found, images=images, size=size)

    def selfcheck(self, device: torch.device | str = "cpu") -> dict[str, float]:
        """Compare distances of the reference implementation's example patches with the recorded ones.

        Random, retrained and damaged backbone weights fail. It checks the backbone only, in float32 to 0.2 percent, not
        your calibration, precision or value range. It takes 0.1 s: call it once before you publish results.

        Args:
            device: Device to compute on.

        Returns:
            Distances of ``"p0"`` and ``"p1"`` to the reference, with the official v0.1 calibration.

        Raises:
            WeightsError: If they differ from the recorded ones.
            ValueError: If none are recorded for this backbone.
        """
        return selfcheck(self.net_type, self.frozen_network(torch.device(device), torch.float32))

    def pairs(
        self,
        x: Tensor,
        y: Tensor | Features,
        data_range: tuple[float, float],
        clamp_x: bool = True,
        clamp_y: bool = True,
    ) -> Pairs:
        """Convert checked images to the input of the engine.

        Args:
            x: Images.
            y: Images of the same shape, or their features from `encode`.
            data_range: ``(low, high)`` of both.
            clamp_x: Clamp `x` to its range.
            clamp_y: Clamp `y` to its range.

        Returns:
            A flat batch of pairs.
        """
        clamps = (clamp_x and self.validate_args, clamp_y and self.validate_args)
        flat_x, range_x = self._flat(x, data_range, clamps[0])
        flat_y, range_y = self._flat(y, data_range, clamps[1]) if isinstance(y, Tensor) else (y.layers, data_range)
        network, dtype = self._network_for(x)
        return Pairs(network, dtype, flat_x, flat_y, range_x, range_y, *clamps, self.frame_chunk, self.memory_budget)

    @override
    def check_maps(self) -> None:
        self._distance.check_maps()

    @property
    @override
    def source(self) -> str:
        return self._source

    @property
    @override
    def backbone_hashes(self) -> frozenset[str]:
        return frozenset([self._specification.backbone_sha256])

    @override
    def encode_flat(self, images: Tensor, flat: Tensor, flat_range: tuple[float, float]) -> dict[str, Tensor]:
        network, dtype = self._network_for(images)
        flat, flat_range = self._as_read(flat, flat_range, self.validate_args)
        return dispatch.encode(network, dtype, flat, flat_range, clamp=self.validate_args, chunk=self.frame_chunk)

    @override
    def pair_terms(
        self,
        x: Tensor,
        y: Tensor | Features,
        data_range: tuple[float, float],
        roles: tuple[Role, Role],
        *,
        map_size: tuple[int, int] | None = None,
        per_layer: bool = False,
        mask: Tensor | None = None,
        erode: bool = False,
    ) -> dispatch.LayerDistances:
        if map_size is not None:
            self.check_maps()
        pairs = self.pairs(x, y, data_range, *(role == "data" for role in roles))
        return dispatch.measure(pairs, map_size=map_size, per_layer=per_layer, mask=mask, erode=erode)

    @override
    def feature_terms(
        self, x: Features, y: Features, *, map_size: tuple[int, int] | None, mask: Tensor | None, erode: bool
    ) -> dispatch.LayerDistances:
        first = x.layers[self.layers[0]]
        network = self.frozen_network(first.device, first.dtype)
        masks = None if mask is None else dispatch.position_masks(network, mask, x.layers, erode)
        return dispatch.measure_features(network, x.layers, y.layers, map_size=map_size, masks=masks)

    @override
    def all_pairs(
        self, x: Tensor, y: Tensor | None, data_range: DataRange, batch_size: int, memory_budget: int
    ) -> Tensor:
        if not self._distance.has_vectors:
            return self._all_feature_pairs(x, y, data_range, batch_size, memory_budget)
        columns = x if y is None else y
        blocks = []
        for group in groups_within(self._vectors(columns, data_range, batch_size), memory_budget):
            complete = y is None and sum(len(chunk.squared) for chunk in group) == len(x)
            blocks.append(pairwise_distances(group if complete else self._vectors(x, data_range, batch_size), group))
        distances = torch.cat(blocks, 1)
        return distances if y is not None else distances.triu(1) + distances.triu(1).T

    def _vectors(self, images: Tensor, data_range: DataRange, batch_size: int) -> Iterator[DistanceVectors]:
        for chunk in images.split(batch_size):
            features = self.encode(chunk, data_range)
            first = features.layers[self.layers[0]]
            with without_autocast(first.device):
                calibration = self.frozen_network(first.device, first.dtype).calibration
                vectors = self._distance.vectors(features.layers, calibration)
            yield vectors.averaged(features.batch_layout.channels)

    def _all_feature_pairs(
        self, x: Tensor, y: Tensor | None, data_range: DataRange | None, batch_size: int, memory_budget: int
    ) -> Tensor:
        """All pairs of a distance without vectors: each image's features beside those of every column."""
        columns = x if y is None else y
        blocks = []
        for group in _feature_groups(self, columns, data_range, batch_size, memory_budget):
            rows = (self.encode(part, data_range) for part in x.split(batch_size))
            blocks.append(torch.cat([self._one_to_many(row, group) for part in rows for row in _single(part)]))
        distances = torch.cat(blocks, 1)
        if y is not None:
            return distances
        upper = distances.triu(1)
        return upper + (upper.T if self._distance.is_symmetric else distances.tril(-1))

    def _one_to_many(self, row: Features, group: list[Features]) -> Tensor:
        """Distances ``(1, M)`` of one image to all of a group."""
        found = []
        for columns in group:
            count = columns.batch_layout.shape[0]
            repeated = {layer: values.repeat(count, 1, 1, 1) for layer, values in row.layers.items()}
            one = row._replace(layers=repeated, batch_layout=columns.batch_layout)
            found.append(self.distance(one, columns))
        return torch.cat(found).unsqueeze(0)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        clone = super().__deepcopy__(memo)
        clone.range_checker = copy.deepcopy(self.range_checker, memo)
        return clone

    def _flat(self, images: Tensor, data_range: tuple[float, float], clamp: bool) -> tuple[Tensor, tuple[float, float]]:
        return self._as_read(*self.images.to_flat_rgb(images, data_range), clamp)

    def _as_read(
        self, flat: Tensor, data_range: tuple[float, float], clamp: bool
    ) -> tuple[Tensor, tuple[float, float]]:
        """Images and their range as the convention reads them."""
        if self.convention is None:
            return flat, data_range
        if data_range[1] != 1:
            flat = flat.to(torch.promote_types(flat.dtype, torch.float32)) / data_range[1]
        return clamped(flat, 0.0, 1.0) if clamp else flat, (-1.0, 1.0)

    def _network_for(self, images: Tensor) -> tuple[FrozenNetwork, torch.dtype]:
        dtype = self._backbone_dtype(images)
        return self.frozen_network(images.device, dtype), dtype

    def _backbone_dtype(self, images: Tensor) -> torch.dtype:
        if self.precision in HALF_PRECISIONS:
            return HALF_PRECISIONS[self.precision]
        device_type = images.device.type
        if self.precision == "autocast" and device_type != "meta" and torch.is_autocast_enabled(device_type):
            return torch.get_autocast_dtype(device_type)
        return torch.float64 if images.dtype == torch.float64 else torch.float32


def _checked_convention(options: LPIPSOptions, net: str) -> Convention | None:
    convention = options["convention"]
    if convention is None:
        return None
    if convention not in get_args(Convention):
        raise ValueError(f"convention: expected None or one of {get_args(Convention)}, got {convention!r}")
    if net != "vgg":
        raise ValueError(
            f"convention: expected net_type='vgg' with {convention!r}, got {net!r}; such tables print other nets on "
            "[-1, 1], as convention=None measures them"
        )
    fixed = {"version": "0.1", "calibrated": True, "calibration": None, "distance": "lpips"}
    given: dict[str, Any] = {**options, "version": version_name(options["version"])}
    other = next((name for name, value in fixed.items() if given[name] is not value and given[name] != value), None)
    if other is not None:
        raise ValueError(
            f"{other}: expected {fixed[other]!r} with convention={convention!r}, got {given[other]!r:.80}; leave one "
            "of them out"
        )
    return convention


def _fitting(
    backbone: Backbone, calibrated: bool, distance: FeatureDistance, options: LPIPSOptions
) -> tuple[Backbone, bool]:
    """The backbone that a distance runs on, and whether it has weights beside it.

    Raises:
        ValueError: If an option does not fit the distance.
    """
    if distance.uses_calibration:
        distance.check_layers(tuple(backbone.feature_layers))
        return backbone, calibrated
    if options["calibration"] is not None:
        raise ValueError(
            f"calibration: expected None with distance={distance.name!r}, which takes no calibration, got "
            f"{options['calibration']!r:.80}; 'lpips' and 'lpips_plus' take one"
        )
    if distance.name != "dists":
        return backbone, False
    if not calibrated:
        raise ValueError(
            "calibrated: expected True with distance='dists', whose alpha and beta are part of it, got False"
        )
    return dists_backbone(backbone), True


def _feature_groups(
    net: LPIPS, images: Tensor, data_range: DataRange | None, batch_size: int, memory_budget: int
) -> Iterator[list[Features]]:
    """Features of consecutive batches, grouped up to a number of bytes, at least one batch per group."""
    group: list[Features] = []
    total = 0
    for part in images.split(batch_size):
        features = net.encode(part, data_range)
        size = sum(values.numel() * values.element_size() for values in features.layers.values())
        if group and total + size > memory_budget:
            yield group
            group, total = [], 0
        group.append(features)
        total += size
    yield group


def _single(features: Features) -> Iterator[Features]:
    """Features of each image of a batch alone."""
    (count,), channels = features.batch_layout
    for index in range(count):
        part = slice(index * channels, (index + 1) * channels)
        layers = {layer: values[part] for layer, values in features.layers.items()}
        yield features._replace(layers=layers, batch_layout=features.batch_layout._replace(shape=(1,)))


def _default_net(owner: Callable[..., Any]) -> object:
    """Default of the argument of a class or function that chooses the net."""
    parameters = inspect.signature(owner).parameters
    chosen = parameters.get("net_type", parameters.get("net"))
    return None if chosen is None else chosen.default
