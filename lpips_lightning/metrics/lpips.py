"""LPIPS as a torchmetrics metric."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Unpack

import torch
from torch import Tensor
from torchmetrics.utilities import dim_zero_cat
from torchmetrics.wrappers.feature_share import NetworkCache
from typing_extensions import override

from lpips_lightning.backbones.definition import Backbone
from lpips_lightning.backbones.shared import DropsLegacyKeys
from lpips_lightning.batch import SUM_DTYPE, Distances, Features
from lpips_lightning.functional.reduction import Reduction, check_reduction
from lpips_lightning.images.hints import METRIC
from lpips_lightning.images.ranges import DataRange, range_label
from lpips_lightning.metrics.indexed import METRIC_DEFAULTS, ImageMetric, MetricOptions, as_list, state_names
from lpips_lightning.metrics.sharing import SharedDistances
from lpips_lightning.options import with_options
from lpips_lightning.perceptual_distance import PerceptualDistance, measure


@with_options(METRIC_DEFAULTS)
class LearnedPerceptualImagePatchSimilarity(DropsLegacyKeys, ImageMetric):
    """Mean LPIPS over all images; same name, arguments and defaults as torchmetrics' class.

    The state is a sum and a count, so any sharding over batches and ranks, uneven, empty or of one image, gives the
    same value. With ``index=``, the dataset index of each image, images repeated by a `DistributedSampler` count once;
    the state then stores one score per image. The frozen network is not part of the metric: copies, pickles and
    checkpoints do not contain it. On an accelerator, the check of pixel values does not synchronize in `update`:
    `compute` raises its errors.

    Several threads may update one metric. In a `torchmetrics.wrappers.FeatureShare`, metrics with equal network and
    range measure a batch once, and metrics with another network keep it.

    As input to `update` and `forward`:

    - ``img1`` or ``preds``: images ``(N, 3, H, W)``, floating on the range or uint8 on [0, 255];
    - ``img2`` or ``target``: images of the same shape.

    As output of `compute` and `forward`: a 0-dimensional tensor, or ``(N,)`` for reduction ``"none"`` (``(B, T)`` for
    videos); float32, float64 after float64 images.

    Args:
        net_type: ``"alex"``, ``"vgg"``, ``"squeeze"``; ``"alex-st"`` or ``"vgg-st"``, which tolerate shifts;
            ``"embedded"`` or ``"embedded-vgg"``, which ship with the package; a custom backbone from
            `lpips_lightning.backbones`; or a built `LPIPS`, `WeightedSum` or `Ensemble`, whose frozen networks and
            options are used.
        reduction: Over all images and the frames of videos: ``"mean"``, ``"sum"``, or ``"none"`` (None), which stores
            one score per image, or per frame of videos, which must then have equal length.
        normalize: torchmetrics' argument: True is ``data_range=(0, 1)``, False is ``(-1, 1)``.
        data_range: Range of the images, instead of `normalize`: ``(low, high)``, or ``high`` alone for ``(0, high)``.
            None for a backbone without a range.
        spatial: Return distance maps ``(1, H, W)``; all images must have the same size.
        per_layer: Return a dict of the layers' terms instead of their sum.
        options: See `lpips_lightning.options.LPIPSOptions`.
        kwargs: See `torchmetrics.Metric`.

    Attributes:
        fingerprint: One line to cite: everything that determines the score.

    Raises:
        TypeError: If an option does not exist.
        ValueError: If an argument has an unknown value, or an option is given with a built network.
        WeightsError: If weights are missing, damaged or of another architecture.

    Example:
        >>> metric = LearnedPerceptualImagePatchSimilarity("squeeze", data_range=(0, 1), weights="random")
        >>> metric.update(torch.ones(2, 3, 64, 64), torch.ones(2, 3, 64, 64))
        >>> metric.compute()
        tensor(0.)
    """

    is_differentiable = True
    higher_is_better = False
    full_state_update = False
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0
    feature_network = "net"

    # torch.jit.script reads annotations: no ClassVar here.
    __jit_ignored_attributes__ = [*ImageMetric.__jit_ignored_attributes__, "net"]  # noqa: RUF012
    __jit_unused_properties__ = [  # noqa: RUF012
        *ImageMetric.__jit_unused_properties__,
        "_is_unreduced",
        "_has_sum_state",
    ]

    def __init__(
        self,
        net_type: str | Backbone | PerceptualDistance = "alex",
        reduction: Reduction = "mean",
        normalize: bool = False,
        *,
        data_range: DataRange | None = None,
        spatial: bool = False,
        per_layer: bool = False,
        **options: Unpack[MetricOptions],
    ) -> None:
        check_reduction(reduction)
        super().__init__(net_type, options)
        self.data_range = low_high = self._choose_range(normalize, data_range)
        if spatial:
            self.net.check_maps()
        self.reduction = reduction
        self.normalize = low_high == (0.0, 1.0)
        self.spatial = spatial
        self.per_layer = per_layer
        self.fingerprint = f"{self.net.fingerprint}, {range_label(self.data_range)}"
        self._shared: SharedDistances | None = None
        stored = f"{self.fingerprint} spatial={spatial} per_layer={per_layer} single={self._is_unreduced}"
        self._scores, self._count, self._shape = state_names(("scores", "count", "shape"), stored, self.net)
        self._dtype_of_images = torch.float32
        self._sample_shape: tuple[int, int, int] | None = None
        self.add_state(self._count, default=torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")
        if self._has_sum_state:
            zeros = torch.zeros((len(self.net.layers),) if per_layer else (), dtype=SUM_DTYPE)
            self.add_state(self._scores, default=zeros, dist_reduce_fx="sum")
        else:
            # Flat, so that gathering also works for ranks without images; the shape is a separate state.
            self.add_state(self._scores, default=[], dist_reduce_fx="cat")
            self.add_state(self._shape, default=torch.zeros(3, dtype=torch.long), dist_reduce_fx="max")

    @override
    def update(
        self,
        preds: Tensor | None = None,
        target: Tensor | Features | None = None,
        img1: Tensor | None = None,
        img2: Tensor | Features | None = None,
        *,
        mask: Tensor | None = None,
        erode: bool = False,
        index: Tensor | Sequence[int] | None = None,
    ) -> None:
        """Add a batch.

        Args:
            preds: Images ``(N, 3, H, W)`` or videos ``(B, T, 3, H, W)``; N may be 0.
            target: Images of the same shape, or their features from ``metric.net.encode``.
            img1: Name of `preds` in torchmetrics. A `MetricCollection` with other metrics may pass all four: then
                `img1` and `img2` are compared.
            img2: Name of `target` in torchmetrics.
            mask: Weight of each pixel, see `LPIPS.forward`. Images that the mask excludes completely do not count in
                mean and sum, and are NaN for ``"none"``.
            erode: See `LPIPS.forward`.
            index: Dataset index of each image or video, ``(N,)``; repeated indices count once, and ``"none"`` returns
                the scores in the order of indices. Pass it in every update or in none.

        Raises:
            TypeError: If an argument is missing, given twice or of the wrong type.
            ValueError: If shapes, sizes or devices do not match, or pixel values are outside the range; if `index`
                has the wrong shape, or is given for the mean or sum of maps, which stores no single maps.
        """
        (name_x, x), (name_y, y) = _pair(preds, target, img1, img2)
        if index is not None and self.spatial and not self._is_unreduced:
            raise ValueError("index: expected None for the mean or sum of maps; reduction='none' accepts it")
        distances = self._measured(x, y, (name_x, name_y), mask, erode)
        indices = self._checked_index(index, len(x))
        values = distances.values
        scores = torch.stack(list(values.values()), distances.dims) if isinstance(values, dict) else values
        with self._exclusive():
            self._add(scores if self._in_forward else scores.detach(), distances, indices)

    def _measured(
        self, x: Tensor, y: Tensor | Features, names: tuple[str, str], mask: Tensor | None, erode: bool
    ) -> Distances:
        options: dict[str, Any] = {"spatial": self.spatial, "per_layer": self.per_layer, "mask": mask, "erode": erode}
        found = None
        if self._shared is not None and not torch.compiler.is_compiling():
            key = (self.data_range, self.spatial, self.per_layer, erode)
            found = self._shared.find(self, key, (x, y, mask))
        if found is not None:
            self.net.check_pair_values(x, y, names, self.data_range, ("data", "data"), METRIC)
            return found
        distances = measure(self.net, x, y, self.data_range, names=names, hints=METRIC, **options)
        if self._shared is not None and not torch.compiler.is_compiling():
            self._shared.store(self, key, (x, y, mask), distances)
        return distances

    def _add(self, scores: Tensor, distances: Distances, indices: Tensor | None) -> None:
        self._dtype_of_images = scores.dtype
        if not self._has_sum_state:
            self._add_scores(scores, distances.dims, indices)
        elif indices is None:
            self._add_sums(scores, distances)
        else:
            self._store_rows(indices, _sums_and_counts(scores, distances))

    def _add_sums(self, scores: Tensor, distances: Distances) -> None:
        scores = scores.flatten(0, distances.dims - 1)
        count: Tensor | int = scores.shape[0]
        if distances.valid is not None:
            valid = distances.valid.flatten()
            scores = torch.where(valid if scores.dim() == 1 else valid.unsqueeze(1), scores, 0)
            count = valid.sum()
        # Not the state's dtype: .to(torch.bfloat16) of a parent casts states, and must not round the sum.
        setattr(self, self._scores, getattr(self, self._scores) + scores.sum(0, dtype=SUM_DTYPE))
        setattr(self, self._count, getattr(self, self._count) + count)

    def _add_scores(self, scores: Tensor, dims: int, indices: Tensor | None) -> None:
        frames = scores.shape[1] if dims == 2 and self._is_unreduced else 0
        height, width = scores.shape[-2:] if self.spatial else (0, 0)
        if scores.numel() == 0:
            return
        if self._sample_shape not in (None, (frames, height, width)):
            raise ValueError(
                f"update: expected (frames, height, width) as in the first batch, {self._sample_shape}, "
                f"got {(frames, height, width)}"
            )
        self._sample_shape = (frames, height, width)
        setattr(self, self._shape, torch.tensor(self._sample_shape, device=self.device))
        if indices is not None:
            self._store_rows(indices, scores.flatten(1) if scores.dim() > 1 else scores.unsqueeze(1))
            return
        if self._is_unreduced:
            setattr(self, self._count, getattr(self, self._count) + scores.shape[0])
            self._append(self._scores, scores.flatten().to(SUM_DTYPE))
            return
        stored = as_list(getattr(self, self._scores))
        scores = scores.flatten(0, dims - 1)
        setattr(self, self._count, getattr(self, self._count) + scores.shape[0])
        total = scores.sum(0, dtype=SUM_DTYPE).flatten()
        merged = [part.reshape(part.numel() // total.numel(), -1).sum(0) for part in stored if part.numel()]
        setattr(self, self._scores, [sum(merged, total)])

    @override
    def compute(self) -> Tensor | dict[str, Tensor]:
        """Score of all images; the mean is NaN without images."""
        self._flush_range_checks()
        total, count = getattr(self, self._scores), getattr(self, self._count)
        rows = self._unique_rows(count)
        if not self._has_sum_state:
            total = self._reshaped(total, count) if rows is None else self._reshaped([rows.flatten()], len(rows))
        elif rows is not None:
            total, count = rows[:, :-1].sum(0).view(total.shape), rows[:, -1].sum()
        result = (total / count if self.reduction == "mean" else total).to(self._dtype_of_images)
        if not self.per_layer:
            return result
        dim = 0 if not self._is_unreduced else result.dim() - (4 if self.spatial else 1)
        return dict(zip(self.net.layers, result.unbind(dim), strict=True))

    def _reshaped(self, scores: list[Tensor], count: Tensor | int) -> Tensor:
        """Restore the shape ``(N, ...)`` of flat scores, or sum over N."""
        frames, height, width = getattr(self, self._shape).tolist()
        item = [frames] if frames else []
        item += [len(self.net.layers)] if self.per_layer else []
        item += [1, height, width] if self.spatial else []
        flat = dim_zero_cat(scores) if len(scores) else torch.zeros(0, dtype=SUM_DTYPE, device=self.device)
        if self._is_unreduced and flat.numel() != int(count) * math.prod(item):
            raise ValueError("compute: expected videos of equal length and maps of equal size on all ranks")
        shaped = flat.view(-1, *item) if flat.numel() else flat.view(0, *item)
        return shaped if self._is_unreduced else shaped.sum(0)

    def _restore_sample_shape(self) -> None:
        if not self._has_sum_state and (len(self.indices) or int(getattr(self, self._count))):
            frames, height, width = getattr(self, self._shape).tolist()
            self._sample_shape = (frames, height, width)

    @override
    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._restore_sample_shape()

    @override
    def _reduce_states(self, incoming_state: dict[str, Any]) -> None:
        super()._reduce_states(incoming_state)
        if not self._in_forward:  # there, it would wait for the device
            self._restore_sample_shape()

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "net" and isinstance(value, NetworkCache):
            self._share(value)
        else:
            super().__setattr__(name, value)

    def _share(self, cache: NetworkCache) -> None:
        """Share distances with the other metrics of a `FeatureShare`, if they have the same network."""
        network = cache.network
        if not isinstance(network, PerceptualDistance):
            return
        # The cache finds results by the tensors' identity, and misses that a batch was changed in place.
        vars(network).pop("forward", None)
        if (network.fingerprint, network.validate_args) == (self.net.fingerprint, self.net.validate_args):
            self._shared = vars(cache).setdefault("lpips_distances", SharedDistances())

    @property
    def _is_unreduced(self) -> bool:
        return self.reduction in ("none", None)

    @property
    def _has_sum_state(self) -> bool:
        return not self._is_unreduced and not self.spatial

    def _wrap_compute(self, compute: Callable[..., Any]) -> Callable[..., Any]:
        # torchmetrics squeezes every result of one element; the score of a single image must stay (1,).
        wrapped = super()._wrap_compute(compute)

        @functools.wraps(compute)
        def restore_shape(*args: Any, **kwargs: Any) -> Any:
            result = wrapped(*args, **kwargs)
            if not self._is_unreduced:
                return result
            single = (1, 1) if self._sample_shape is not None and self._sample_shape[0] == 1 else (1,)
            if isinstance(result, dict):
                return {layer: score if score.dim() else score.view(single) for layer, score in result.items()}
            return result if result.dim() else result.view(single)

        return restore_shape

    @override
    def reset(self) -> None:
        """Reset the state."""
        super().reset()
        if not self._in_forward:
            self._sample_shape = None

    def selfcheck(self, device: torch.device | str = "cpu") -> dict[str, float]:
        """See `LPIPS.selfcheck`.

        Args:
            device: Device to compute on.

        Returns:
            The measured distances.

        Raises:
            WeightsError: If they differ from the recorded ones.
            ValueError: If none are recorded for this backbone.
        """
        return self.net.selfcheck(device)

    def plot(self, val: Tensor | Sequence[Tensor] | None = None, ax: Any = None) -> Any:
        """Plot one or several scores.

        Args:
            val: Result of `forward` or `compute`, or a list of these; None calls `compute`.
            ax: Matplotlib axes to draw in.

        Returns:
            Figure and axes.

        Raises:
            ModuleNotFoundError: If matplotlib is missing.
        """
        return self._plot(val, ax)


def _pair(
    preds: Tensor | None, target: Tensor | Features | None, img1: Tensor | None, img2: Tensor | Features | None
) -> tuple[tuple[str, Tensor], tuple[str, Tensor | Features]]:
    """The two batches and their names: ``(preds, target)``, or torchmetrics' ``(img1, img2)``, which may be mixed."""
    both = all(image is not None for image in (preds, target, img1, img2))
    x = ("img1", img1) if preds is None or both else ("preds", preds)
    y = ("img2", img2) if target is None or both else ("target", target)
    given = sum(image is not None for image in (preds, target, img1, img2))
    if x[1] is None or y[1] is None or given == 3:
        raise TypeError("update: expected (preds, target) or (img1, img2), got another combination")
    return (x[0], x[1]), (y[0], y[1])


def _sums_and_counts(scores: Tensor, distances: Distances) -> Tensor:
    """Sum of the scores of each image or video, by layer if there are layers, and their count: ``(N, L + 1)``."""
    scores = scores if distances.dims == 2 else scores.unsqueeze(1)  # (N, frames) or (N, frames, L)
    scores = scores.to(SUM_DTYPE) if scores.dim() == 3 else scores.to(SUM_DTYPE).unsqueeze(2)
    valid = torch.ones_like(scores[..., 0], dtype=torch.bool)
    if distances.valid is not None:
        valid = distances.valid.view(valid.shape)
        scores = torch.where(valid.unsqueeze(2), scores, 0)
    return torch.cat([scores.sum(1), valid.sum(1, keepdim=True)], 1)
