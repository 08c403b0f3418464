"""The LPIPS network: distance of image pairs, by layer or as a map."""

from __future__ import annotations

import copy
import inspect
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self, Unpack, get_args, overload

import torch
from torch import Tensor
from typing_extensions import override

from lpips_lightning.backbones.caffe_file import is_caffe_file
from lpips_lightning.backbones.definition import Backbone
from lpips_lightning.backbones.frozen import FrozenNetwork, Specification, without_autocast
from lpips_lightning.backbones.loading import describe_backbone
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
from lpips_lightning.images.hints import MASK, Hints
from lpips_lightning.images.masks import check_mask, fill_masked
from lpips_lightning.images.preprocessing import ImagePolicy
from lpips_lightning.images.ranges import DataRange, RangeChecker, Role, parse_range
from lpips_lightning.options import DEFAULTS, LPIPSOptions, Precision, check_names, check_not_given, with_options
from lpips_lightning.tracing import is_jit_tracing, is_tracing, refuse_scripts, static_sizes
from lpips_lightning.transforms import is_differentiated

_DEFAULT_NET = "alex"
HALF_PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}


@with_options()
class LPIPS(SharedNetworkModule):
    """Learned perceptual image patch similarity: images -> distance ``(N,)``, by layer, or as a map.

    ``d(x, y) = sum_l mean_hw  w_l . (x^_l - y^_l)^2`` (Zhang et al. 2018, equation 1), with ``w >= 0`` applied to the
    squared difference and ``1e-10`` added to the norm, outside the root, as in the reference implementation
    (richzhang/PerceptualSimilarity). 0 for identical images; symmetric; lower is more similar.

    The module has no parameters, buffers or state. It loads and checks the frozen network when it is constructed, and
    shares it with every other user of the same weights in this process. `.to()`, `.half()`, `.train()`, optimizers and
    checkpoints do not affect the network; it runs on the device of the images.

    Args:
        net_type: ``"alex"``, ``"vgg"``, ``"squeeze"``, or ``"embedded"`` or ``"embedded-vgg"``, which ship with the
            package; or a custom backbone from `lpips_lightning.backbones.custom`. ``"caffe-alexnet"`` is the one that
            the file in `weights` describes, which may be left out next to such a file.
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

    __jit_unused_properties__ = ("layers", "specification", "smallest_side", "fingerprint")

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
        images = ImagePolicy.parse(values["gray"], values["background"], values["resize"])
        weights, calibration = values["weights"], values["calibration"]
        backbone, calibrated = describe_backbone(net_type, weights, values["calibrated"], calibration, _DEFAULT_NET)
        super().__init__(backbone, values["version"], calibrated, weights, calibration)
        self.net_type = self._record.name
        self.precision = precision
        self.images = images
        found = self._specification
        self._source = f"{found.net_type} v{found.version} {found.backbone_sha256} {found.layout} {images}"
        self.frame_chunk = frame_chunk
        self.memory_budget = values["memory_budget"]
        self.validate_args = values["validate_args"]
        self.range_checker = RangeChecker(immediate=True)
        self.role: Role = "data"

    @classmethod
    def of(
        cls,
        net_type: str | Backbone | LPIPS,
        options: LPIPSOptions,
        owner: Callable[..., Any],
        **defaults: Unpack[LPIPSOptions],
    ) -> LPIPS:
        """Build the network of a metric, loss or callback: a separate object with its own `RangeChecker`.

        Args:
            net_type: A backbone; or a built `LPIPS`, which is copied: the copy has its options and shares its frozen
                network.
            options: Options given by the user; must be empty with a built `LPIPS`.
            owner: Class or function that the options were given to, for errors.
            defaults: Options of a new network that are used unless given.

        Returns:
            The network.

        Raises:
            TypeError: If an option does not exist.
            ValueError: If an argument has an unknown value, or an option was given with a built `LPIPS`.
            WeightsError: If weights are missing, damaged or of another architecture.

        Example:
            >>> net = LPIPS("embedded", gray="repeat")
            >>> other = LPIPS.of(net, {}, LPIPS)
            >>> other.fingerprint == net.fingerprint, other.range_checker is net.range_checker
            (True, False)
        """
        check_names(options, owner)
        if not isinstance(net_type, LPIPS):
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
        `tensors_sha256`; ``lpips-lightning weights list`` shows those of the packaged weights.
        """
        from lpips_lightning import __version__

        found = self._specification
        feature_layers = f" [{' '.join(self._record.feature_layers)}]" if found.layout else ""
        backbone = f"backbone {found.backbone} sha256:{found.backbone_sha256[:12]}"
        parts = [
            f"LPIPS {found.net_type}{feature_layers} v{found.version}",
            self._calibration_label(),
            backbone,
            str(self.images),
            self.precision,
        ]
        return ", ".join([*filter(None, parts), f"lpips_lightning {__version__}"])

    def _calibration_label(self) -> str:
        from lpips_lightning.io.image_decoding import printable

        found = self._specification
        if not found.calibrated:
            return "baseline"
        source = self._weights if self._calibration is None else self._calibration
        file = "" if not isinstance(source, str | os.PathLike) else printable(Path(source).name)
        custom = [found.calibration, file] if found.calibration == "custom" else []
        return " ".join(filter(None, ["lin", *custom, f"sha256:{found.calibration_sha256[:12]}"]))

    def encode(self, images: Tensor, data_range: DataRange = (-1, 1)) -> Features:
        """Compute the backbone's features once, to compare them often with `distance`, or as ``y`` of `forward`.

        Args:
            images: ``(N, 3, H, W)`` or ``(B, T, 3, H, W)``, floating on `data_range` or uint8 on [0, 255].
            data_range: ``(low, high)``, or ``high`` alone for ``(0, high)``.

        Returns:
            Activations by layer. Features computed under ``torch.inference_mode`` do not support a backward pass.

        Raises:
            TypeError: If an argument is of the wrong type.
            ValueError: If the shape or size is wrong, or pixel values are outside the range.
        """
        low_high = parse_range(data_range)
        self.images.check(images, "images", self.net_type, self._record.smallest_side)
        if self.validate_args and not torch.compiler.is_compiling():
            self.check_values(images, "images", low_high, hints=replace(self.images.hints, mask="none"))
        flat, flat_range = self.images.to_flat_rgb(images, low_high)
        network, dtype = self._network_for(images)
        layers = dispatch.encode(network, dtype, flat, flat_range, clamp=self.validate_args, chunk=self.frame_chunk)
        return Features(layers, (flat.shape[2], flat.shape[3]), self.images.batch_layout(images), self._source)

    @torch.jit.unused
    def forward(
        self,
        x: Tensor,
        y: Tensor | Features,
        data_range: DataRange | None = None,
        *,
        spatial: bool = False,
        per_layer: bool = False,
        mask: Tensor | None = None,
        erode: bool = False,
        normalize: bool | None = None,
        retperlayer: bool = False,
    ) -> Tensor | dict[str, Tensor] | tuple[Tensor, list[Tensor]]:
        """Distance of every pair.

        Images that require grad are treated as predictions of a network in training: any values pass unclamped, so that
        the gradient is right. Without gradients, values outside the range are an error. The network ``metric.net`` of a
        metric is then more lenient, since code written for torchmetrics uses it as a loss: either batch may have any
        values if the other one is within the range, and both may exceed it as far as ImageNet's normalization does. One
        warning is issued for each likely mistake, and nothing is clamped.

        Args:
            x: Images ``(N, 3, H, W)`` or videos ``(B, T, 3, H, W)``, floating on `data_range` or uint8 on [0, 255].
            y: Images of the same shape, or their features from `encode`.
            data_range: ``(low, high)``, or ``high`` alone for ``(0, high)``; the default is ``(-1, 1)``.
            spatial: Return the distance map; each layer's map is upsampled to the image size, or to
                `resize`.
            per_layer: Return a dict of the layers' terms by name; they sum to the distance.
            mask: Weight of each pixel: bool, or floating on [0, 1], ``(N, H, W)`` or ``(N, 1, H, W)``. Every layer's
                term becomes the mean over positions, weighted by the mask area-resized to the layer.
            erode: Count only positions whose receptive field, inside the image, holds only pixels with mask 1. The
                deepest receptive field is 163 pixels (alex), 196 (vgg), 207 (squeeze, embedded-vgg) or 147
                (embedded). Pixels outside the mask then have no effect on the distance; they may be NaN, or off
                the range.
            normalize: torchmetrics' argument of ``metric.net``, instead of `data_range`: True for [0, 1], False for
                [-1, 1].
            retperlayer: torchmetrics' argument of ``metric.net``: return a pair of the distance and the list of the
                layers' terms.

        Returns:
            ``(N,)``, or ``(N, 1, H, W)`` if `spatial`; for videos ``(B, T)`` replaces N; a dict of these if
            `per_layer`; a pair if `retperlayer`. float32; float64 for float64 images. NaN where the mask excludes every
            pixel.

        Raises:
            TypeError: If an argument is of the wrong type, or two are given of which one replaces the other.
            ValueError: If shapes, sizes or devices do not match, or pixel values are outside the range.
        """
        refuse_scripts(self, x=x, y=y)
        if retperlayer and per_layer:
            raise TypeError("retperlayer: expected False with per_layer=True; leave one of them out")
        low_high, roles = _range_of(normalize, data_range), roles_of(x, y, self.role)
        layers, masks = per_layer or retperlayer, {"mask": mask, "erode": erode}
        found = measure(self, x, y, low_high, roles=roles, spatial=spatial, per_layer=layers, **masks)  # type: ignore[arg-type]
        if retperlayer and isinstance(found.values, dict):
            terms = list(found.values.values())
            return sum(terms[1:], terms[0]), terms
        return found.values

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
        """Distance of every pair as `forward`, with a flag for each image that the mask does not exclude completely.

        Args:
            x: See `forward`.
            y: See `forward`.
            data_range: See `forward`.
            spatial: See `forward`.
            per_layer: See `forward`.
            mask: See `forward`.
            erode: See `forward`.

        Returns:
            Distances, and which of them are valid.

        Raises:
            TypeError: See `forward`.
            ValueError: See `forward`.
        """
        options = {"spatial": spatial, "per_layer": per_layer, "mask": mask, "erode": erode}
        roles = roles_of(x, y, self.role)
        return measure(self, x, y, parse_range(data_range), roles=roles, **options)  # type: ignore[arg-type]

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
            y: From `encode`, for the same number and size of images.
            spatial: Return the distance map; each layer's map is upsampled to the image size, or to
                `resize`.
            per_layer: Return a dict of the layers' terms by name; they sum to the distance.
            mask: See `forward`; its size is that of the backbone's input.
            erode: See `forward`.

        Returns:
            As `forward`.

        Raises:
            TypeError: If either is not from `encode`.
            ValueError: If network, image options, number or size of the images differ.
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
        """Distance of every image of `x` to every image of `y`; the backbone runs once for each image.

        Args:
            x: Images ``(N, 3, H, W)``, floating on `data_range` or uint8 on [0, 255].
            y: Images ``(M, 3, H, W)`` of the same size; None for `x` itself.
            data_range: ``(low, high)``, or ``high`` alone for ``(0, high)``.
            batch_size: Images in one backbone pass.
            memory_budget: Bytes for the features of `y`. If they need more, `y` is processed in parts, and the backbone
                runs on `x` once for each part.

        Returns:
            Shape ``(N, M)``; for ``y=None`` exactly symmetric with a zero diagonal. float32; float64 for float64.

        Raises:
            TypeError: If an argument is of the wrong type.
            ValueError: If shapes, sizes or devices do not match, or pixel values are outside the range.
        """
        if is_jit_tracing():
            raise ValueError(
                "pairwise: expected a call outside torch.jit.trace and torch.onnx.export(dynamo=False), which would "
                "keep the batch size of the example"
            )
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
            complete = y is None and sum(map(len, group)) == len(x)
            blocks.append(pairwise_distances(group if complete else self._vectors(x, data_range, batch_size), group))
        distances = torch.cat(blocks, 1)
        return distances if y is not None else distances.triu(1) + distances.triu(1).T

    def plan(self, shape: tuple[int, int, int, int], *, gradient: bool = False, device: str = "cpu") -> Plan:
        """Plan of a call on image pairs, with an estimate of its memory.

        Args:
            shape: ``(N, 3, H, W)`` of the images on each side.
            gradient: Include the gradient w.r.t. the first images, as for a loss.
            device: Device of the images.

        Returns:
            The plan; its ``size`` is the estimated memory in bytes, excluding weights and images.

        Raises:
            ValueError: If the shape is not four nonnegative integers.
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

    def flat_mask(
        self,
        mask: Tensor | None,
        erode: bool,
        spatial: bool,
        batch_layout: BatchLayout,
        size: tuple[int, int],
        device: torch.device,
    ) -> Tensor | None:
        """Checked mask of the flat batch, ``(M, 1, H, W)``, or None."""
        if mask is None:
            if erode:
                raise ValueError("erode: expected a mask with erode=True, got none")
            return None
        if spatial:
            raise ValueError("mask: expected None with spatial=True; multiply the map by the mask")
        if erode and is_jit_tracing():
            raise ValueError(
                "erode: expected False in torch.jit.trace and torch.onnx.export(dynamo=False), which would erode at "
                "the size of the example only; use torch.export or torch.onnx.export(dynamo=True)"
            )
        if erode and self.images.resize is not None:
            raise ValueError(
                "erode: expected resize=None, since erosion ignores the resize kernel; resize images and mask first"
            )
        flat = check_mask(mask, batch_layout.shape, size, device)
        if mask.dtype != torch.bool:
            self.check_values(flat, "mask", (0.0, 1.0), hints=MASK)
        return flat.repeat_interleave(batch_layout.channels, 0)

    def check_shapes(self, x: Tensor, y: Tensor | Features, names: tuple[str, str] = ("x", "y")) -> None:
        """Check types, shapes and devices as `forward` does, without reading pixel values.

        Args:
            x: Images.
            y: Images of the same shape, or their features from `encode`.
            names: Names of `x` and `y` in errors.

        Raises:
            TypeError: If either is of the wrong type.
            ValueError: If shapes, sizes or devices do not match.
        """
        side = self._record.smallest_side
        if isinstance(y, Features):
            self.images.check(x, names[0], self.net_type, side)
            size = self.images.resize or (x.shape[-2], x.shape[-1])
            self._check_features(y, names[1], self.images.batch_layout(x), size)
            first = y.layers[self.layers[0]]
            if first.device != x.device:
                raise ValueError(f"{names[1]}: expected features on device {x.device}, got {first.device}")
            if not torch.compiler.is_compiling() and first.is_inference() and is_differentiated(x):
                raise ValueError(
                    f"{names[1]}: expected features that support a backward pass, got features computed under "
                    "torch.inference_mode; encode under torch.no_grad instead"
                )
        else:
            self.images.check_pair(x, y, names, self.net_type, side)

    def check_values(
        self,
        images: Tensor,
        name: str,
        data_range: tuple[float, float],
        role: Role = "data",
        hints: Hints | None = None,
    ) -> None:
        """Check pixel values, unless `validate_args` is off or the call is compiled, traced or exported.

        Args:
            images: Tensor of any shape.
            name: Name in errors.
            data_range: ``(low, high)``.
            role: Role of the images.
            hints: Ways out that errors name; None for those of `images`.

        Raises:
            RangeError: If values are outside the range, except in predictions.
        """
        if self.validate_args and not is_tracing():
            self.range_checker.observe(images, name, data_range, role, hints or self.images.hints)

    def check_pair_values(
        self,
        x: Tensor,
        y: Tensor | Features,
        names: tuple[str, str],
        data_range: tuple[float, float],
        roles: tuple[Role, Role],
        hints: Hints | None = None,
    ) -> None:
        """`check_values` of both batches, each in its role.

        Args:
            x: Images.
            y: Images, or features, whose images were checked by `encode`.
            names: Names of `x` and `y` in errors.
            data_range: ``(low, high)`` of both.
            roles: Roles of `x` and `y`.
            hints: Ways out that errors name; None for those of `images`.

        Raises:
            RangeError: If values are outside the range, except in predictions.
        """
        if isinstance(y, Features):
            # Features come from data, so `x` is the prediction if either may be one.
            self.check_values(x, names[0], data_range, "data" if roles[0] == "data" else "prediction", hints)
        elif roles == ("unsure", "unsure"):
            if self.validate_args and not is_tracing():
                self.range_checker.observe_pair(x, y, names, data_range, hints or self.images.hints)
        else:
            for images, name, role in zip((x, y), names, roles, strict=True):
                self.check_values(images, name, data_range, "companion" if role == "unsure" else role, hints)

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
        flat_x, range_x = self.images.to_flat_rgb(x, data_range)
        flat_y, range_y = self.images.to_flat_rgb(y, data_range) if isinstance(y, Tensor) else (y.layers, data_range)
        network, dtype = self._network_for(x)
        clamps = (clamp_x and self.validate_args, clamp_y and self.validate_args)
        return Pairs(network, dtype, flat_x, flat_y, range_x, range_y, *clamps, self.frame_chunk, self.memory_budget)

    def _check_features(self, features: Features, name: str, batch_layout: BatchLayout, size: tuple[int, int]) -> None:
        if not isinstance(features, Features):
            raise TypeError(f"{name}: expected features from encode, got {type(features).__name__}")
        if features.source != self._source:
            raise ValueError(f"{name}: expected features of {self._source!r}, got features of {features.source!r}")
        found, expected = (
            (static_sizes((*layout.shape, *height_width)), layout.channels)
            for layout, height_width in ((features.batch_layout, features.size), (batch_layout, size))
        )
        if found != expected:
            raise ValueError(
                f"{name}: expected features of {batch_layout.shape} images of size {size}, "
                f"got features of {features.batch_layout.shape} images of size {features.size}"
            )

    def _vectors(self, images: Tensor, data_range: DataRange, batch_size: int) -> Iterator[Tensor]:
        for chunk in images.split(batch_size):
            features = self.encode(chunk, data_range)
            first = features.layers[self.layers[0]]
            with without_autocast(first.device):
                vectors = feature_vectors(features.layers, self.frozen_network(first.device, first.dtype).calibration)
            channels = features.batch_layout.channels
            yield vectors.view(len(chunk), -1) / channels**0.5 if channels > 1 else vectors

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


def _range_of(normalize: bool | None, data_range: DataRange | None) -> tuple[float, float]:
    if normalize is None:
        return parse_range((-1, 1) if data_range is None else data_range)
    if not isinstance(normalize, bool):
        raise ValueError(f"normalize: expected True or False, got {normalize!r}")
    low_high = (0.0, 1.0) if normalize else (-1.0, 1.0)
    if data_range is not None and parse_range(data_range) != low_high:
        raise TypeError(f"normalize: expected None with data_range={data_range!r}; leave one of them out")
    return low_high


def roles_of(x: Tensor, y: Tensor | Features, role: Role = "data") -> tuple[Role, Role]:
    """Roles of two batches: images that require grad are predictions.

    Args:
        x: Images.
        y: Images, or features.
        role: Role of images that do not require grad.

    Returns:
        Roles of `x` and `y`.
    """
    # torch.jit.trace checks its result once more without gradients: the roles must be the same there.
    tracing = is_jit_tracing()
    first, second = (
        isinstance(one, Tensor) and (is_differentiated(one) or (tracing and one.requires_grad)) for one in (x, y)
    )
    return "prediction" if first else role, "prediction" if second else role


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
    roles: tuple[Role, Role] = ("data", "data"),
    hints: Hints | None = None,
) -> Distances:
    """`LPIPS.measure` for metric, loss and functional form, with their own argument names in errors.

    Args:
        net: The network.
        x: See `LPIPS.forward`.
        y: See `LPIPS.forward`.
        data_range: ``(low, high)``.
        spatial: See `LPIPS.forward`.
        per_layer: See `LPIPS.forward`.
        mask: See `LPIPS.forward`.
        erode: See `LPIPS.forward`.
        names: Names of `x` and `y` in errors.
        roles: Roles of `x` and `y`. Only data is clamped.
        hints: Ways out that errors about pixel values name; None for those of ``net.images``.

    Returns:
        Distances, and which of them are valid.

    Raises:
        TypeError: See `LPIPS.forward`.
        ValueError: See `LPIPS.forward`.
    """
    net.check_shapes(x, y, names)
    layout, size = net.images.batch_layout(x), (x.shape[-2], x.shape[-1])
    flat_mask = net.flat_mask(mask, erode, spatial, layout, size, x.device)
    if erode and mask is not None:  # before the values are checked: nothing is known of those outside the mask
        x = _filled(x, mask, data_range)
        y = _filled(y, mask, data_range) if isinstance(y, Tensor) else y
    if net.validate_args and not is_tracing():
        hints = hints or net.images.hints
        if mask is not None:
            hints = replace(hints, mask="none" if erode else "given")
        net.check_pair_values(x, y, names, data_range, roles, hints)
    map_size = (net.images.resize or size) if spatial else None
    pairs = net.pairs(x, y, data_range, *(role == "data" for role in roles))
    terms = dispatch.measure(pairs, map_size=map_size, per_layer=per_layer, mask=flat_mask, erode=erode)
    return merge(*terms, layout, per_layer)


def _filled(images: Tensor, mask: Tensor, data_range: tuple[float, float]) -> Tensor:
    """Images whose pixels outside the mask have the value of the range that is nearest to 0."""
    low, high = data_range
    return fill_masked(images, mask, min(max(low, 0.0), high) if images.is_floating_point() else 0)


def _default_net(owner: Callable[..., Any]) -> object:
    """Default of the argument of a class or function that chooses the net."""
    parameters = inspect.signature(owner).parameters
    chosen = parameters.get("net_type", parameters.get("net"))
    return None if chosen is None else chosen.default
