"""LPIPS: images -> distance, layers, map."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from lpips_lightning import direct
from lpips_lightning.budget import affordable, check_budget
from lpips_lightning.distance import layer_distances, layer_maps, upsample
from lpips_lightning.encoder import HALF_PRECISIONS, Encoder, Precision
from lpips_lightning.features import Features, Measurement, joined
from lpips_lightning.frozen import without_autocast
from lpips_lightning.images import Arrangement
from lpips_lightning.masks import check_mask, eroded_masks, layer_masks, measurable, without_holes
from lpips_lightning.memory import estimate
from lpips_lightning.pairwise import groups_within, pairwise_distances
from lpips_lightning.planning import Plan
from lpips_lightning.ranges import DataRange, parse_range
from lpips_lightning.selfcheck import selfcheck

__all__ = ["LPIPS", "Features", "Measurement", "Precision"]


class LPIPS(Encoder):
    """Learned perceptual image patch similarity: images -> distance ``(N,)``, by layer, or as a map.

    ``d(x, y) = sum_l mean_hw  w_l . (x^_l - y^_l)^2`` (Zhang et al. 2018, equation 1), with ``w >= 0`` applied to the
    squared difference and the norm's ``1e-10`` outside the root, as the reference implementation has it
    (richzhang/PerceptualSimilarity). 0 on identical images, symmetric, lower is more similar.

    The module owns no parameters, buffers or state: the frozen network is looked up and checked when the module is
    made, and shared with every other user of the same numbers in this process. `.to()`, `.half()`, `.train()`,
    optimizers and checkpoints leave it alone; it follows the device of the images.

    Args:
        net_type: ``"alex"``, ``"vgg"``, ``"squeeze"`` or ``"embedded"``, which ships; or a trunk of your own, from
            `lpips_lightning.trunks`.
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
        gray: None refuses gray images; ``"repeat"`` takes one channel for three; ``"per_channel"`` scores every channel
            of ``(N, C, H, W)`` as a gray image of its own, and averages.
        background: Colour under the alpha channel of RGBA images: ``"white"``, ``"black"``, or three numbers on [0, 1].
            Alpha is on the same range as the colours. None refuses alpha.
        resize: ``(H, W)``, or one number for both: every image is brought to it, bilinear with antialiasing. It is part
            of the fingerprint, for it changes the number.
        frame_chunk: Images, or frames of videos, in one pass of the trunk at most; None for as many as memory allows.
        memory_budget: Bytes that a call may take above the weights and the images; a warning says when it cannot be
            kept. Images are then taken a few at a time, huge ones in stripes of rows, or in tiles for the gradient,
            which changes no number beyond rounding. None takes 128 MiB, or 256 with a gradient, on a processor, where
            more saves no time, and four gigabytes on other devices or for the gradient of one image. It holds for
            pairs of images without `spatial`, `mask`, or a gradient by layer; `plan` says what a call will take.
        validate_args: Check pixel values on every call. This waits for the device. Shapes are always checked; under
            ``torch.compile`` values are not.

    Attributes:
        watch: What checks pixel values.

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
        names: tuple[str, str] = ("x", "y"),
        slack: float = 0.0,
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
            names: What to call `x` and `y` in errors.
            slack: How far `x` may lie off its range, in sizes of the range; it is then not clamped. ``math.inf``:
                as far as it likes.

        Returns:
            ``(N,)``, or ``(N, 1, H, W)`` if `spatial`, with ``(B, T)`` for N for videos; a dict of such if `per_layer`.
            float32; float64 for float64. NaN where the mask leaves nothing to measure.

        Raises:
            TypeError: If an argument is of the wrong type.
            ValueError: If shapes, devices or sides do not fit, or pixel values are off the range.
        """
        options = {"spatial": spatial, "per_layer": per_layer, "erode": erode, "slack": slack}
        return self.measure(x, y, data_range, mask=mask, names=names, **options).values  # type: ignore[arg-type]

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
        names: tuple[str, str] = ("x", "y"),
        slack: float = 0.0,
    ) -> Measurement:
        """`forward`, and which images the mask left something of.

        Args:
            x: See `forward`, as all others.
            y: See `forward`.
            data_range: See `forward`.
            spatial: See `forward`.
            per_layer: See `forward`.
            mask: See `forward`.
            erode: See `forward`.
            names: See `forward`.
            slack: See `forward`.

        Returns:
            Distances, and which of them count.

        Raises:
            TypeError: See `forward`.
            ValueError: See `forward`.
        """
        low_high = parse_range(data_range)
        self.check_shapes(x, y, names)
        self._see(x, names[0], low_high, slack)
        if isinstance(y, Tensor):
            self._see(y, names[1], low_high, 0.0)
        arrangement = self.images.arrangement(x)
        fixed = [y] if isinstance(y, Tensor) else list(y.layers.values())
        if mask is None and not (spatial or erode) and direct.is_possible(x, fixed, per_layer):
            terms = self._direct_terms(x, y, low_high, clamp_x=not slack)
            return joined([(terms, None)], arrangement, per_layer)
        counts = self._flat_mask(mask, erode, spatial, arrangement, (x.shape[-2], x.shape[-1]), x.device)
        if erode and mask is not None and isinstance(y, Tensor):
            low = low_high[0]
            x, y = (without_holes(batch, mask, low if batch.is_floating_point() else 0) for batch in (x, y))
        size = self.images.resize or (x.shape[-2], x.shape[-1])
        results = []
        for part, layers_x, layers_y in self._encoded_parts(x, y, low_high, clamp_x=not slack):
            masks = None if counts is None else self._layer_masks(counts[part], erode, layers_x)
            results.append(self._terms(layers_x, layers_y, size, spatial, masks))
        return joined(results, arrangement, per_layer)

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
            mask: See `forward`; of the size that the trunk saw.
            erode: See `forward`.

        Returns:
            As `forward`.

        Raises:
            TypeError: If either is none.
            ValueError: If the two are not of the same net, preparation, number and size.
        """
        if not isinstance(x, Features):
            raise TypeError(f"x: expected features from encode, got {type(x).__name__}")
        self._check_features(x, "x", x.arrangement, x.size)
        self._check_features(y, "y", x.arrangement, x.size)
        first = x.layers[self.layers[0]]
        counts = self._flat_mask(mask, erode, spatial, x.arrangement, x.size, first.device)
        masks = None if counts is None else self._layer_masks(counts, erode, x.layers)
        return joined([self._terms(x.layers, y.layers, x.size, spatial, masks)], x.arrangement, per_layer).values

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
        network = self._network(torch.device(device), dtype)
        found = affordable(network, shape, self.memory_budget, gradient)
        images = min(found.images, self.frame_chunk or found.images)
        size = (
            found.size
            if found.size and images == found.images
            else estimate(network, (images, *shape[1:]), "gradient" if gradient else "forward")
        )
        return replace(found, images=images, size=size)

    def selfcheck(self, device: torch.device | str = "cpu") -> dict[str, float]:
        """Hold the trunk's weights against the recorded distances of the reference implementation's example patches.

        Random weights, those of another training and damaged ones fail it. It takes a tenth of a second: call it once
        before numbers go into a paper.

        Args:
            device: Where to compute.

        Returns:
            The distances measured, of ``"p0"`` and ``"p1"`` to the reference, under the official v0.1 calibration.

        Raises:
            WeightsError: If they are not the recorded ones.
            ValueError: If none are recorded for this trunk.
        """
        return selfcheck(self.net_type, self._network(torch.device(device), torch.float32))

    def _direct_terms(
        self, x: Tensor, y: Tensor | Features, data_range: tuple[float, float], clamp_x: bool
    ) -> dict[str, Tensor]:
        flat_x, range_x = self.images.arrange(x, data_range)
        flat_y, range_y = self.images.arrange(y, data_range) if isinstance(y, Tensor) else (y.layers, data_range)
        dtype = self._trunk_dtype(x)
        network = self._network(x.device, dtype)
        clamps = (clamp_x and self.validate_args, self.validate_args)
        limits = (self.frame_chunk, self.memory_budget)
        pairs = direct.Pairs(network, dtype, flat_x, flat_y, range_x, range_y, *clamps, *limits)
        if torch.is_grad_enabled() and flat_x.requires_grad:
            return {"": direct.distances(pairs)}
        return direct.layer_terms(pairs)

    def _terms(
        self,
        x: dict[str, Tensor],
        y: dict[str, Tensor],
        size: tuple[int, int],
        spatial: bool,
        masks: dict[str, Tensor] | None,
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        first = x[self.layers[0]]
        network = self._network(first.device, first.dtype)
        calibration = network.calibration
        with without_autocast(first.device):
            if masks is None and not spatial and direct.is_possible(first, [*x.values(), *y.values()], per_layer=True):
                return direct.feature_terms(network, x, y), None
            if spatial:
                maps = layer_maps(x, y, calibration)
                return {layer: upsample(layer_map, size) for layer, layer_map in maps.items()}, None
            return layer_distances(x, y, calibration, masks), None if masks is None else measurable(masks)

    def _flat_mask(
        self,
        mask: Tensor | None,
        erode: bool,
        spatial: bool,
        arrangement: Arrangement,
        size: tuple[int, int],
        device: torch.device,
    ) -> Tensor | None:
        if mask is None:
            if erode:
                raise ValueError("erode: expected a mask with erode=True, got none")
            return None
        if spatial:
            raise ValueError("mask: expected None with spatial=True; multiply the map by the mask")
        if erode and self.images.resize is not None:
            raise ValueError("erode: expected no resize=, whose reach is not followed; resize images and mask before")
        flat = check_mask(mask, arrangement.shape, size, device)
        if mask.dtype != torch.bool:
            self._see(flat, "mask", (0.0, 1.0), 0.0)
        return flat.repeat_interleave(arrangement.channels, 0)

    def _layer_masks(self, mask: Tensor, erode: bool, layers: dict[str, Tensor]) -> dict[str, Tensor]:
        if erode:
            return eroded_masks(mask, self._base().extractor.graph)
        return layer_masks(mask, {layer: (tap.shape[2], tap.shape[3]) for layer, tap in layers.items()})
