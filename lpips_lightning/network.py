"""LPIPS: images -> distance, layers, map."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Literal, Self, Unpack, get_args, overload

import torch
from torch import Tensor
from typing_extensions import override

from lpips_lightning.backbones.definition import Backbone, get_backbone
from lpips_lightning.backbones.frozen import FrozenNetwork, Specification, without_autocast
from lpips_lightning.backbones.selfcheck import selfcheck
from lpips_lightning.backbones.shared import SharedNetworkModule
from lpips_lightning.batch import BatchLayout, Distances, Features, merge
from lpips_lightning.distance import (
    feature_vectors,
    groups_within,
    pairwise_distances,
)
from lpips_lightning.engine import dispatch
from lpips_lightning.engine.inputs import Pairs
from lpips_lightning.engine.memory import estimate
from lpips_lightning.engine.planner import check_budget, choose_plan
from lpips_lightning.engine.state import Plan
from lpips_lightning.images.masks import check_mask, fill_masked
from lpips_lightning.images.preprocessing import ImagePolicy
from lpips_lightning.images.ranges import DataRange, RangeChecker, parse_range
from lpips_lightning.options import DEFAULTS, LPIPSOptions, Precision, check_names, check_not_given, with_options

HALF_PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Encoder(SharedNetworkModule):
    """A frozen network that looks at images, after it has looked whether they are what they are said to be.

    Its arguments are those of `lpips_lightning.network.LPIPS`, which says what they mean.

    Attributes:
        net_type: Name of the backbone.
        precision: Of the backbone.
        images: What images are taken, and how they are brought to the backbone.
        range_checker: Checks pixel values.
    """

    def __init__(self, net_type: str | Backbone = "alex", **options: Unpack[LPIPSOptions]) -> None:
        check_names(options, type(self))
        said: LPIPSOptions = {**DEFAULTS, **options}
        precision, frame_chunk = said["precision"], said["frame_chunk"]
        check_budget(said["memory_budget"])
        if precision not in get_args(Precision):
            raise ValueError(f"precision: expected one of {get_args(Precision)}, got {precision!r}")
        if frame_chunk is not None and (type(frame_chunk) is not int or frame_chunk < 1):
            raise ValueError(f"frame_chunk: expected a positive number of images or None, got {frame_chunk!r}")
        for name, switch in (("calibrated", said["calibrated"]), ("validate_args", said["validate_args"])):
            if not isinstance(switch, bool):
                raise ValueError(f"{name}: expected True or False, got {switch!r}")
        images = ImagePolicy.parse(said["gray"], said["background"], said["resize"])
        network = (said["version"], said["calibrated"], said["weights"], said["calibration"])
        super().__init__(get_backbone(net_type), *network)
        self.net_type = self._record.name
        self.precision = precision
        self.images = images
        self.frame_chunk = frame_chunk
        self.memory_budget = said["memory_budget"]
        self.validate_args = said["validate_args"]
        self.range_checker = RangeChecker(immediate=True)

    @property
    def specification(self) -> Specification:
        """What the network is, by content; two that share a backbone have equal ``backbone_sha256``."""
        return self._specification

    @property
    def smallest_side(self) -> int:
        """Of the images that the backbone sees, in pixels."""
        return self._record.smallest_side

    @property
    def fingerprint(self) -> str:
        """One citeable line: everything that decides the number, but for the images' range."""
        from lpips_lightning import __version__

        found = self._specification
        feature_layers = f" [{' '.join(self._record.feature_layers)}]" if found.layout else ""
        lin = f"lin sha256:{found.calibration_sha256[:12]}" if found.calibrated else "baseline"
        backbone = f"backbone {found.backbone} sha256:{found.backbone_sha256[:12]}"
        parts = [
            f"LPIPS {found.net_type}{feature_layers} v{found.version}",
            lin,
            backbone,
            str(self.images),
            self.precision,
        ]
        return ", ".join([*filter(None, parts), f"lpips_lightning {__version__}"])

    def encode(self, images: Tensor, data_range: DataRange = (-1, 1)) -> Features:
        """What the backbone sees: compute once, compare often with `distance`, or by giving it to `forward` for `y`.

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
        self.check_values(images, "images", low_high)
        flat, flat_range = self.images.to_flat_rgb(images, low_high)
        network, dtype = self._network_for(images)
        layers = dispatch.encode(network, dtype, flat, flat_range, clamp=self.validate_args, chunk=self.frame_chunk)
        return Features(layers, (flat.shape[2], flat.shape[3]), self.images.batch_layout(images), self._source)

    @property
    def _source(self) -> str:
        found = self._specification
        return f"{found.net_type} v{found.version} {found.backbone_sha256} {found.layout} {self.images}"

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
            self._check_features(y, names[1], self.images.batch_layout(x), size)
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

    def _check_features(self, features: Features, name: str, batch_layout: BatchLayout, size: tuple[int, int]) -> None:
        if not isinstance(features, Features):
            raise TypeError(f"{name}: expected features from encode, got {type(features).__name__}")
        if features.source != self._source:
            raise ValueError(f"{name}: expected features of {self._source!r}, got features of {features.source!r}")
        if (features.batch_layout, features.size) != (batch_layout, size):
            raise ValueError(
                f"{name}: expected features of {batch_layout.shape} images of size {size}, "
                f"got those of {features.batch_layout.shape} images of size {features.size}"
            )

    def check_values(self, images: Tensor, name: str, data_range: tuple[float, float], tolerance: float = 0.0) -> None:
        """Check pixel values, unless `validate_args` is off or the call is compiled.

        Args:
            images: Of any shape.
            name: What to call them in errors.
            data_range: ``(low, high)``.
            tolerance: See `RangeChecker.observe`.

        Raises:
            RangeError: If values are off the range.
        """
        if self.validate_args and not torch.compiler.is_compiling():
            self.range_checker.observe(images, name, data_range, tolerance)

    def _vectors(self, images: Tensor, data_range: DataRange, batch_size: int) -> Iterator[Tensor]:
        for chunk in images.split(batch_size):
            features = self.encode(chunk, data_range)
            first = features.layers[self.layers[0]]
            with without_autocast(first.device):
                vectors = feature_vectors(features.layers, self.frozen_network(first.device, first.dtype).calibration)
            channels = features.batch_layout.channels
            yield vectors.view(len(chunk), -1) / channels**0.5 if channels > 1 else vectors

    def pairs(self, x: Tensor, y: Tensor | Features, data_range: tuple[float, float], clamp_x: bool = True) -> Pairs:
        """Checked images as the engine takes them.

        Args:
            x: Images.
            y: Images of the same shape, or what `encode` made of them.
            data_range: ``(low, high)`` of both.
            clamp_x: Bring `x` back onto its range.

        Returns:
            A flat batch of pairs.
        """
        flat_x, range_x = self.images.to_flat_rgb(x, data_range)
        flat_y, range_y = self.images.to_flat_rgb(y, data_range) if isinstance(y, Tensor) else (y.layers, data_range)
        network, dtype = self._network_for(x)
        clamps = (clamp_x and self.validate_args, self.validate_args)
        return Pairs(network, dtype, flat_x, flat_y, range_x, range_y, *clamps, self.frame_chunk, self.memory_budget)

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

    @override
    def extra_repr(self) -> str:
        return self.fingerprint

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        clone = super().__deepcopy__(memo)
        clone.range_checker = copy.deepcopy(self.range_checker, memo)
        return clone


@with_options()
class LPIPS(Encoder):
    """Learned perceptual image patch similarity: images -> distance ``(N,)``, by layer, or as a map.

    ``d(x, y) = sum_l mean_hw  w_l . (x^_l - y^_l)^2`` (Zhang et al. 2018, equation 1), with ``w >= 0`` applied to the
    squared difference and the norm's ``1e-10`` outside the root, as the reference implementation has it
    (richzhang/PerceptualSimilarity). 0 on identical images, symmetric, lower is more similar.

    The module owns no parameters, buffers or state: the frozen network is looked up and checked when the module is
    made, and shared with every other user of the same numbers in this process. `.to()`, `.half()`, `.train()`,
    optimizers and checkpoints leave it alone; it follows the device of the images.

    Args:
        net_type: ``"alex"``, ``"vgg"``, ``"squeeze"`` or ``"embedded"``, which ships; or a backbone of your own, from
            `lpips_lightning.backbones.custom`.
        options: See `lpips_lightning.options.LPIPSOptions`. Checking pixel values waits for the device.

    Attributes:
        range_checker: Checks pixel values.

    Raises:
        TypeError: If an option does not exist.
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

    @classmethod
    def of(
        cls,
        net_type: str | Backbone | LPIPS,
        options: LPIPSOptions,
        owner: Callable[..., Any],
        **defaults: Unpack[LPIPSOptions],
    ) -> LPIPS:
        """The network of a metric, a loss or a callback: its own object, so that it may watch pixel values its own way.

        Args:
            net_type: A backbone; or a network that is built, of which it gets a light copy that shares the frozen
                network and has its options.
            options: As they were given; none beside a network that is built.
            owner: What they were given to, for errors.
            defaults: Options that are used where a new network's are not given.

        Returns:
            The network.

        Raises:
            TypeError: If an option does not exist.
            ValueError: If an argument is none of the known ones, or an option was given beside a built network.
            WeightsError: If weights are missing, damaged or of another architecture.

        Example:
            >>> net = LPIPS("embedded", gray="repeat")
            >>> other = LPIPS.of(net, {}, LPIPS)
            >>> other.fingerprint == net.fingerprint, other.range_checker is net.range_checker
            (True, False)
        """
        check_names(options, owner)
        if not isinstance(net_type, LPIPS):
            said: LPIPSOptions = {**defaults, **options}
            return cls(net_type, **said)
        check_not_given(options, **defaults)
        made = copy.deepcopy(net_type)
        made.range_checker = RangeChecker(immediate=True)
        return made

    def forward(
        self,
        x: Tensor,
        y: Tensor | Features,
        data_range: DataRange = (-1, 1),
        *,
        spatial: bool = False,
        per_layer: bool = False,
        mask: Tensor | None = None,
        erode: bool = False,
    ) -> Tensor | dict[str, Tensor]:
        """Distance of every pair.

        Args:
            x: Images ``(N, 3, H, W)`` or videos ``(B, T, 3, H, W)``, floating on `data_range` or uint8 on [0, 255].
            y: Images of the same shape, or what `encode` made of them.
            data_range: ``(low, high)``, or ``high`` alone for ``(0, high)``.
            spatial: Return the map, each layer's upsampled to the image's size.
            per_layer: Return the layers' terms by name; they sum to the whole.
            mask: Which pixels count: bool, or floating on [0, 1], ``(N, H, W)`` or ``(N, 1, H, W)``. Every layer's term
                becomes the mean over its positions, weighted by the mask resized to the layer by area.
            erode: Count only the positions that see nothing but pixels whose mask is 1; what is beyond the image's
                border does no harm. The deepest layers see about 200 pixels. Other pixels leave no trace in the number.

        Returns:
            ``(N,)``, or ``(N, 1, H, W)`` if `spatial`, with ``(B, T)`` for N for videos; a dict of such if `per_layer`.
            float32; float64 for float64. NaN where the mask leaves nothing to measure.

        Raises:
            TypeError: If an argument is of the wrong type.
            ValueError: If shapes, devices or sides do not fit, or pixel values are off the range.
        """
        options = {"spatial": spatial, "per_layer": per_layer, "mask": mask, "erode": erode}
        return measure(self, x, y, parse_range(data_range), **options).values  # type: ignore[arg-type]

    def measure(
        self,
        x: Tensor,
        y: Tensor | Features,
        data_range: DataRange = (-1, 1),
        *,
        spatial: bool = False,
        per_layer: bool = False,
        mask: Tensor | None = None,
        erode: bool = False,
    ) -> Distances:
        """`forward`, and which images the mask left something of.

        Args:
            x: See `forward`, as all others.
            y: See `forward`.
            data_range: See `forward`.
            spatial: See `forward`.
            per_layer: See `forward`.
            mask: See `forward`.
            erode: See `forward`.

        Returns:
            Distances, and which of them count.

        Raises:
            TypeError: See `forward`.
            ValueError: See `forward`.
        """
        options = {"spatial": spatial, "per_layer": per_layer, "mask": mask, "erode": erode}
        return measure(self, x, y, parse_range(data_range), **options)  # type: ignore[arg-type]

    @overload
    def distance(
        self,
        x: Features,
        y: Features,
        *,
        spatial: bool = False,
        per_layer: Literal[False] = False,
        mask: Tensor | None = None,
        erode: bool = False,
    ) -> Tensor: ...

    @overload
    def distance(
        self,
        x: Features,
        y: Features,
        *,
        spatial: bool = False,
        per_layer: Literal[True],
        mask: Tensor | None = None,
        erode: bool = False,
    ) -> dict[str, Tensor]: ...

    @overload
    def distance(
        self,
        x: Features,
        y: Features,
        *,
        spatial: bool = False,
        per_layer: bool,
        mask: Tensor | None = None,
        erode: bool = False,
    ) -> Tensor | dict[str, Tensor]: ...

    def distance(
        self,
        x: Features,
        y: Features,
        *,
        spatial: bool = False,
        per_layer: bool = False,
        mask: Tensor | None = None,
        erode: bool = False,
    ) -> Tensor | dict[str, Tensor]:
        """Distance of every pair of features.

        Args:
            x: From `encode`.
            y: From `encode`, of as many images of the same size.
            spatial: Return the map, each layer's upsampled to the image's size.
            per_layer: Return the layers' terms by name; they sum to the whole.
            mask: See `forward`; of the size that the backbone saw.
            erode: See `forward`.

        Returns:
            As `forward`.

        Raises:
            TypeError: If either is none.
            ValueError: If the two are not of the same net, preparation, number and size.
        """
        if not isinstance(x, Features):
            raise TypeError(f"x: expected features from encode, got {type(x).__name__}")
        self._check_features(x, "x", x.batch_layout, x.size)
        self._check_features(y, "y", x.batch_layout, x.size)
        first = x.layers[self.layers[0]]
        flat_mask = self.flat_mask(mask, erode, spatial, x.batch_layout, x.size, first.device)
        network = self.frozen_network(first.device, first.dtype)
        masks = None if flat_mask is None else dispatch.position_masks(network, flat_mask, x.layers, erode)
        terms = dispatch.measure_features(
            network, x.layers, y.layers, map_size=x.size if spatial else None, masks=masks
        )
        return merge(*terms, x.batch_layout, per_layer).values

    def pairwise(
        self,
        x: Tensor,
        y: Tensor | None = None,
        data_range: DataRange = (-1, 1),
        *,
        batch_size: int = 16,
        memory_budget: int = 2**30,
    ) -> Tensor:
        """Distance of every image of `x` to every image of `y`; each image passes the backbone once.

        Args:
            x: Images ``(N, 3, H, W)``, floating on `data_range` or uint8 on [0, 255].
            y: Images ``(M, 3, H, W)`` of the same size; None for `x` itself.
            data_range: ``(low, high)``, or ``high`` alone for ``(0, high)``.
            batch_size: Images in one backbone pass.
            memory_budget: Bytes of the features of `y` to hold at once. If they are more, `x` passes the backbone again
                for every part that fits.

        Returns:
            Shape ``(N, M)``; for ``y=None`` exactly symmetric with a zero diagonal. float32; float64 for float64.

        Raises:
            TypeError: If an argument is of the wrong type.
            ValueError: If a shape, a side, the sizes or a device do not fit, or pixel values are off the range.
        """
        columns = x if y is None else y
        for name, images in (("x", x), ("y", columns)):
            self.images.check(images, name, self.net_type, self._record.smallest_side)
            if images.dim() == 5:
                raise ValueError(f"{name}: expected images (N, 3, H, W), got shape {tuple(images.shape)}")
        if type(batch_size) is not int or batch_size < 1:
            raise ValueError(f"batch_size: expected a positive number of images, got {batch_size!r}")
        check_budget(memory_budget)
        if min(len(x), len(columns)) == 0:
            return x.new_zeros(len(x), len(columns), dtype=torch.promote_types(x.dtype, torch.float32))
        self.images.check_pair(x[:1], columns[:1], ("x", "y"), self.net_type, self._record.smallest_side)
        blocks = []
        for group in groups_within(self._vectors(columns, data_range, batch_size), memory_budget):
            whole = y is None and sum(map(len, group)) == len(x)
            blocks.append(pairwise_distances(group if whole else self._vectors(x, data_range, batch_size), group))
        distances = torch.cat(blocks, 1)
        return distances if y is not None else distances.triu(1) + distances.triu(1).T

    def plan(self, shape: tuple[int, int, int, int], *, gradient: bool = False, device: str = "cpu") -> Plan:
        """How a call evaluates pairs of images, and how much memory it takes.

        Args:
            shape: ``(N, 3, H, W)`` of either.
            gradient: With the gradient by the first images, as a loss.
            device: Where.

        Returns:
            The plan: its ``size`` is an estimate in bytes, above the weights and the images.

        Raises:
            ValueError: If the shape is not of four whole numbers.
        """
        if len(shape) != 4 or not all(isinstance(size, int) and size >= 0 for size in shape):
            raise ValueError(f"shape: expected (N, 3, H, W), got {shape}")
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
        """Hold the backbone's weights against the recorded distances of the reference implementation's example patches.

        Random weights, those of another training and damaged ones fail it. It takes a tenth of a second: call it once
        before numbers go into a paper.

        Args:
            device: Where to compute.

        Returns:
            The distances measured, of ``"p0"`` and ``"p1"`` to the reference, under the official v0.1 calibration.

        Raises:
            WeightsError: If they are not the recorded ones.
            ValueError: If none are recorded for this backbone.
        """
        return selfcheck(self.net_type, self.frozen_network(torch.device(device), torch.float32))

    def flat_mask(
        self,
        mask: Tensor | None,
        erode: bool,
        spatial: bool,
        batch_layout: BatchLayout,
        size: tuple[int, int],
        device: torch.device,
    ) -> Tensor | None:
        """A checked mask of the flat batch, ``(M, 1, H, W)``; None for none."""
        if mask is None:
            if erode:
                raise ValueError("erode: expected a mask with erode=True, got none")
            return None
        if spatial:
            raise ValueError("mask: expected None with spatial=True; multiply the map by the mask")
        if erode and self.images.resize is not None:
            raise ValueError("erode: expected no resize=, whose reach is not followed; resize images and mask before")
        flat = check_mask(mask, batch_layout.shape, size, device)
        if mask.dtype != torch.bool:
            self.check_values(flat, "mask", (0.0, 1.0))
        return flat.repeat_interleave(batch_layout.channels, 0)


def measure(
    net: LPIPS,
    x: Tensor,
    y: Tensor | Features,
    data_range: tuple[float, float],
    *,
    spatial: bool = False,
    per_layer: bool = False,
    mask: Tensor | None = None,
    erode: bool = False,
    names: tuple[str, str] = ("x", "y"),
    tolerance: float = 0.0,
) -> Distances:
    """`LPIPS.measure` for metric, loss and functional, which have names of their own for the images.

    Args:
        net: The network.
        x: See `LPIPS.forward`.
        y: See `LPIPS.forward`.
        data_range: ``(low, high)``.
        spatial: See `LPIPS.forward`.
        per_layer: See `LPIPS.forward`.
        mask: See `LPIPS.forward`.
        erode: See `LPIPS.forward`.
        names: What to call `x` and `y` in errors.
        tolerance: How far `x` may exceed its range, as a multiple of the range; then `x` is not clamped. ``math.inf``
            disables the check.

    Returns:
        Distances, and which of them are valid.

    Raises:
        TypeError: See `LPIPS.forward`.
        ValueError: See `LPIPS.forward`.
    """
    net.check_shapes(x, y, names)
    net.check_values(x, names[0], data_range, tolerance)
    if isinstance(y, Tensor):
        net.check_values(y, names[1], data_range)
    layout, size = net.images.batch_layout(x), (x.shape[-2], x.shape[-1])
    flat_mask = net.flat_mask(mask, erode, spatial, layout, size, x.device)
    if erode and mask is not None and isinstance(y, Tensor):
        low = data_range[0]
        x, y = (fill_masked(batch, mask, low if batch.is_floating_point() else 0) for batch in (x, y))
    map_size = (net.images.resize or size) if spatial else None
    pairs = net.pairs(x, y, data_range, clamp_x=not tolerance)
    terms = dispatch.measure(pairs, map_size=map_size, per_layer=per_layer, mask=flat_mask, erode=erode)
    return merge(*terms, layout, per_layer)
