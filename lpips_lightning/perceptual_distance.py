"""What measures pairs of images: checks, batches, masks and maps, whatever the network behind them.

`LPIPS` is one; sums of several networks and averages over random transformations are others. Metric, loss, callbacks
and commands take any of them.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any, Literal, Self, overload

import torch
from torch import Tensor
from typing_extensions import override

from lpips_lightning.backbones.shared import DropsLegacyKeys
from lpips_lightning.batch import BatchLayout, Distances, Features, merge
from lpips_lightning.engine.dispatch import LayerDistances
from lpips_lightning.engine.planner import check_budget
from lpips_lightning.images.hints import MASK, Hints
from lpips_lightning.images.masks import check_mask, fill_masked
from lpips_lightning.images.preprocessing import SIGNED, ImagePolicy
from lpips_lightning.images.ranges import DataRange, RangeChecker, Role, parse_range
from lpips_lightning.options import Precision
from lpips_lightning.tracing import is_jit_tracing, is_tracing, refuse_scripts, static_sizes
from lpips_lightning.transforms import is_differentiated


class PerceptualDistance(DropsLegacyKeys):
    """Distance of image pairs by frozen networks: base class of `LPIPS` and of what combines several of them.

    A subclass sets the attributes and defines `layers`, `smallest_side`, `fingerprint`, `source`, `backbone_hashes`,
    `encode_flat`, `pair_terms`, `feature_terms` and `selfcheck`; `label`, `check_range` and `plain` where they differ.

    Attributes:
        net_type: Name for errors and labels.
        images: Which images are accepted, and how they are converted for the backbone.
        precision: Precision of the backbones.
        frame_chunk: Most images per backbone pass; None for as many as memory allows.
        memory_budget: Limit in bytes for the estimated peak memory of a call.
        validate_args: Whether pixel values are checked.
        range_checker: Checks pixel values.
        role: Role in `forward` and `measure` of images that do not require grad.
    """

    net_type: str
    images: ImagePolicy
    precision: Precision
    frame_chunk: int | None
    memory_budget: int | None
    validate_args: bool
    range_checker: RangeChecker
    role: Role

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the terms that sum to the distance, in execution order."""
        raise NotImplementedError

    @property
    def smallest_side(self) -> int:
        """Smallest side of the backbone's input, in pixels."""
        raise NotImplementedError

    @property
    def fingerprint(self) -> str:
        """One line to cite: everything that determines the distance, except the images' data range."""
        raise NotImplementedError

    @property
    def source(self) -> str:
        """Identifies backbones and preprocessing: features of equal sources can be compared."""
        raise NotImplementedError

    @property
    def backbone_hashes(self) -> frozenset[str]:
        """`tensors_sha256` of every backbone that it uses."""
        raise NotImplementedError

    @property
    def label(self) -> str:
        """Short name for figures."""
        return self.net_type

    @property
    def is_repeatable(self) -> bool:
        """Whether equal images always give equal distances."""
        return True

    def check_range(self, data_range: tuple[float, float]) -> None:
        """Refuse images on a range that cannot be measured.

        Args:
            data_range: ``(low, high)``.

        Raises:
            ValueError: If the network takes no images on this range.
        """

    def plain(self) -> Self:
        """A copy that takes RGB images as they are: no gray images, no alpha, no resizing."""
        clone = copy.deepcopy(self)
        clone.images = replace(self.images, gray=None, background=None, resize=None)
        return clone

    def encode_flat(self, images: Tensor, flat: Tensor, flat_range: tuple[float, float]) -> dict[str, Tensor]:
        """Features of a flat batch.

        Args:
            images: The images as they were given; they decide on device and dtype.
            flat: Images ``(M, 3, H, W)`` from `ImagePolicy.to_flat_rgb`.
            flat_range: Their value range.

        Returns:
            Features ``(M, C, h, w)`` by name.
        """
        raise NotImplementedError

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
    ) -> LayerDistances:
        """Distances of a flat batch from checked images.

        Args:
            x: Checked images.
            y: Checked images of the same shape, or features from `encode`.
            data_range: ``(low, high)`` of both.
            roles: Roles of `x` and `y`; data is clamped to its range.
            map_size: ``(H, W)`` of distance maps; None for one distance per pair.
            per_layer: Whether the caller needs every term with its own gradient.
            mask: Weight of each pixel, ``(M, 1, H, W)``, checked.
            erode: See `forward`.

        Returns:
            See `lpips_lightning.engine.dispatch.measure`.
        """
        raise NotImplementedError

    def feature_terms(
        self, x: Features, y: Features, *, map_size: tuple[int, int] | None, mask: Tensor | None, erode: bool
    ) -> LayerDistances:
        """As `pair_terms`, of checked features.

        Args:
            x: From `encode`.
            y: From `encode`.
            map_size: See `pair_terms`.
            mask: See `pair_terms`.
            erode: See `pair_terms`.
        """
        raise NotImplementedError

    def check_maps(self) -> None:
        """Raise ValueError if there are no distance maps, so that ``spatial=True`` would be an error."""

    def selfcheck(self, device: torch.device | str = "cpu") -> dict[str, float]:
        """Compare distances of known images with recorded ones.

        Args:
            device: Device to compute on.

        Returns:
            The measured distances.

        Raises:
            WeightsError: If they differ from the recorded ones.
            ValueError: If none are recorded.
        """
        raise NotImplementedError

    def encode(self, images: Tensor, data_range: DataRange | None = None) -> Features:
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
        low_high = self.images.value_range(data_range, SIGNED)
        self.check_range(low_high)
        self.images.check(images, "images", self.net_type, self.smallest_side)
        if self.validate_args and not torch.compiler.is_compiling():
            self.check_values(images, "images", low_high, hints=replace(self.images.hints, mask="none"))
        flat, flat_range = self.images.to_flat_rgb(images, low_high)
        layers = self.encode_flat(images, flat, flat_range)
        return Features(layers, (flat.shape[2], flat.shape[3]), self.images.batch_layout(images), self.source)

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
            x: Images ``(N, 3, H, W)`` or videos ``(B, T, 3, H, W)``, floating on `data_range` or uint8 on [0, 255];
                with other than 3 channels if the backbone takes them.
            y: Images of the same shape, or their features from `encode`.
            data_range: ``(low, high)``, or ``high`` alone for ``(0, high)``; the default is ``(-1, 1)``. None for a
                network whose input has no range, such as one of latents.
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
        low_high, roles = _range_of(self.images, normalize, data_range), roles_of(x, y, self.role)
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
        data_range: DataRange | None = None,
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
        return measure(self, x, y, self.images.value_range(data_range, SIGNED), roles=roles, **options)  # type: ignore[arg-type]

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
        first = next(iter(x.layers.values()))
        flat_mask = self.flat_mask(mask, erode, spatial, x.batch_layout, x.size, first.device)
        terms = self.feature_terms(x, y, map_size=x.size if spatial else None, mask=flat_mask, erode=erode)
        return merge(*terms, x.batch_layout, per_layer).values

    def pairwise(
        self,
        x: Tensor,
        y: Tensor | None = None,
        data_range: DataRange | None = None,
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
            Shape ``(N, M)``; for ``y=None`` with a zero diagonal, and exactly symmetric if the distance is. float32;
            float64 for float64.

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
            self.images.check(images, name, self.net_type, self.smallest_side)
            if images.dim() == 5:
                channels = self.images.channels
                raise ValueError(f"{name}: expected images (N, {channels}, H, W), got shape {tuple(images.shape)}")
        if type(batch_size) is not int or batch_size < 1:
            raise ValueError(f"batch_size: expected a positive number of images, got {batch_size!r}")
        check_budget(memory_budget)
        if min(len(x), len(columns)) == 0:
            return x.new_zeros(len(x), len(columns), dtype=torch.promote_types(x.dtype, torch.float32))
        self.images.check_pair(x[:1], columns[:1], ("x", "y"), self.net_type, self.smallest_side)
        return self.all_pairs(x, y, self.images.value_range(data_range, SIGNED), batch_size, memory_budget)

    def all_pairs(
        self, x: Tensor, y: Tensor | None, data_range: DataRange, batch_size: int, memory_budget: int
    ) -> Tensor:
        """`pairwise` of checked images: here by measuring each image of `x` beside every one of `y`.

        Args:
            x: See `pairwise`.
            y: See `pairwise`.
            data_range: See `pairwise`.
            batch_size: See `pairwise`.
            memory_budget: See `pairwise`.
        """
        columns = x if y is None else y
        rows = [
            torch.cat([self._of_one(row, part, data_range) for part in columns.split(batch_size)]) for row in x.split(1)
        ]
        return torch.stack(rows)

    def _of_one(self, row: Tensor, others: Tensor, data_range: DataRange) -> Tensor:
        found = self.measure(row.expand_as(others), others, data_range).values
        return found if isinstance(found, Tensor) else torch.stack(list(found.values())).sum(0)

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
        side = self.smallest_side
        if isinstance(y, Features):
            self.images.check(x, names[0], self.net_type, side)
            size = self.images.resize or (x.shape[-2], x.shape[-1])
            self._check_features(y, names[1], self.images.batch_layout(x), size)
            first = next(iter(y.layers.values()))
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

    def _check_features(self, features: Features, name: str, batch_layout: BatchLayout, size: tuple[int, int]) -> None:
        if not isinstance(features, Features):
            raise TypeError(f"{name}: expected features from encode, got {type(features).__name__}")
        if features.source != self.source:
            raise ValueError(f"{name}: expected features of {self.source!r}, got features of {features.source!r}")
        found, expected = (
            (static_sizes((*layout.shape, *height_width)), layout.channels)
            for layout, height_width in ((features.batch_layout, features.size), (batch_layout, size))
        )
        if found != expected:
            raise ValueError(
                f"{name}: expected features of {batch_layout.shape} images of size {size}, "
                f"got features of {features.batch_layout.shape} images of size {features.size}"
            )

    @override
    def extra_repr(self) -> str:
        return self.fingerprint

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        clone = type(self).__new__(type(self))
        memo[id(self)] = clone
        clone.__dict__ = {**self.__dict__, "_modules": copy.deepcopy(self._modules, memo)}
        clone.range_checker = copy.deepcopy(self.range_checker, memo)
        return clone


def _range_of(images: ImagePolicy, normalize: bool | None, data_range: DataRange | None) -> tuple[float, float]:
    if normalize is None:
        return images.value_range(data_range, SIGNED)
    if not isinstance(normalize, bool):
        raise ValueError(f"normalize: expected True or False, got {normalize!r}")
    if not images.has_range:
        raise ValueError(f"normalize: expected None for a network whose input has no range, got {normalize!r}")
    low_high = (0.0, 1.0) if normalize else (-1.0, 1.0)
    if data_range is not None and parse_range(data_range) != low_high:
        raise TypeError(f"normalize: expected None with data_range={data_range!r}; leave one of them out")
    return low_high


def check_repeatable(net: PerceptualDistance) -> None:
    """Refuse what draws random numbers in every call, where a number is reported.

    Args:
        net: The network.

    Raises:
        ValueError: If equal images may give different distances.
    """
    if not net.is_repeatable:
        raise ValueError(
            "net_type: expected distances that can be repeated, got an ensemble of fresh draws in every call; pass "
            "Ensemble(..., seed=0), and keep seed=None for a loss"
        )


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
    net: PerceptualDistance,
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
        net: The network, or what combines several.
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
    net.check_range(data_range)
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
    options = {"map_size": map_size, "per_layer": per_layer, "mask": flat_mask, "erode": erode}
    terms = net.pair_terms(x, y, data_range, roles, **options)  # type: ignore[arg-type]
    return merge(*terms, layout, per_layer)


def _filled(images: Tensor, mask: Tensor, data_range: tuple[float, float]) -> Tensor:
    """Images whose pixels outside the mask have the value of the range that is nearest to 0."""
    low, high = data_range
    return fill_masked(images, mask, min(max(low, 0.0), high) if images.is_floating_point() else 0)
