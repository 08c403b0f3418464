"""LPIPS as a torchmetrics metric."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable, Sequence
from typing import Any, Unpack

import torch
from torch import Tensor
from torchmetrics.utilities import dim_zero_cat
from typing_extensions import override

from lpips_lightning.backbones.definition import Backbone
from lpips_lightning.backbones.shared import DropsLegacyKeys
from lpips_lightning.batch import SUM_DTYPE, Distances, Features
from lpips_lightning.functional.reduction import Reduction, check_reduction, choose_range
from lpips_lightning.images.ranges import DataRange
from lpips_lightning.metrics.indexed import METRIC_DEFAULTS, ImageMetric, MetricOptions
from lpips_lightning.network import LPIPS, measure
from lpips_lightning.options import with_options


@with_options(METRIC_DEFAULTS)
class LearnedPerceptualImagePatchSimilarity(DropsLegacyKeys, ImageMetric):
    """Mean LPIPS over all images seen; torchmetrics' class of the same name, with its arguments and defaults.

    The state is a sum and a count, so that any split over batches and ranks, uneven, empty or of one image, gives the
    same number. A distributed sampler repeats images to give every rank as many; told each image's number in the data
    set (``index=``), the metric counts them once, and keeps one score an image for that. The frozen network is not part
    of the metric: copies and pickles are small, checkpoints do not hold it. On an accelerator no update waits for the
    check of pixel values: `compute` raises what it finds.

    As input to `update` and `forward`:

    - ``img1`` or ``preds``: images ``(N, 3, H, W)``, floating on the range or uint8 on [0, 255];
    - ``img2`` or ``target``: images of the same shape.

    As output of `compute` and `forward`: a 0-dimensional tensor, or ``(N,)`` for reduction ``"none"`` (``(B, T)`` for
    videos); float32, float64 after float64 images.

    Args:
        net_type: ``"alex"``, ``"vgg"``, ``"squeeze"`` or ``"embedded"``, which ships; from
            `lpips_lightning.backbones.custom`; or a built `LPIPS`, whose frozen network is shared and whose options
            hold.
        reduction: Over all images, and over the frames of videos: ``"mean"``, ``"sum"``, or ``"none"`` (None), which
            keeps one score an image; for videos, which must then be of one length, one a frame.
        normalize: True if images are on [0, 1], False if on [-1, 1].
        data_range: Instead of `normalize`: ``(low, high)``, or ``high`` alone for ``(0, high)``.
        spatial: Maps ``(1, H, W)`` instead of numbers; all images must be of one size.
        per_layer: A dict of the layers' terms instead of their sum.
        options: See `lpips_lightning.options.LPIPSOptions`.
        kwargs: See `torchmetrics.Metric`.

    Attributes:
        fingerprint: One citeable line: everything that decides the number.

    Raises:
        TypeError: If an option does not exist.
        ValueError: If an argument is none of the known ones, or an option is given beside a built network.
        WeightsError: If weights are missing, damaged or of another architecture.

    Example:
        >>> metric = LearnedPerceptualImagePatchSimilarity("squeeze", normalize=True, weights="random")
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

    def __init__(
        self,
        net_type: str | Backbone | LPIPS = "alex",
        reduction: Reduction = "mean",
        normalize: bool = False,
        *,
        data_range: DataRange | None = None,
        spatial: bool = False,
        per_layer: bool = False,
        **options: Unpack[MetricOptions],
    ) -> None:
        check_reduction(reduction)
        low_high = choose_range(normalize, data_range)
        super().__init__(net_type, options)
        self.reduction = reduction
        self.normalize = normalize
        self.data_range = low_high
        self.spatial = spatial
        self.per_layer = per_layer
        self.fingerprint = f"{self.net.fingerprint}, range {list(self.data_range)}"
        # MetricCollection merges metrics whose states have equal names and equal first values (two nets that both saw
        # identical images): the names carry everything that makes two metrics differ.
        identity = hashlib.sha256(f"{self.fingerprint} {self.net.validate_args}".encode()).hexdigest()[:8]
        self._scores, self._count, self._shape = (
            f"{what}_{self.net.net_type}_{identity}" for what in ("scores", "count", "shape")
        )
        self._dtype_of_images = torch.float32
        self._shape_seen: tuple[int, int, int] | None = None
        self.add_state(self._count, default=torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")
        if self._is_plain:
            zeros = torch.zeros((len(self.net.layers),) if per_layer else (), dtype=SUM_DTYPE)
            self.add_state(self._scores, default=zeros, dist_reduce_fx="sum")
        else:
            # Flat, so that ranks which saw nothing can be gathered too; the shape is a state of its own.
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
            target: Images of the same shape, or what ``metric.net.encode`` made of them.
            img1: Another name of `preds`, torchmetrics'.
            img2: Another name of `target`, torchmetrics'.
            mask: Which pixels count, see `LPIPS.forward`. Images of which nothing is left do not enter mean and sum,
                and are NaN under ``"none"``.
            erode: See `LPIPS.forward`.
            index: Number in the data set of each image or video, ``(N,)``; what comes again is counted once, and
                ``"none"`` gives the scores in the order of numbers. In every update or in none.

        Raises:
            TypeError: If an argument is missing, given twice or of the wrong type.
            ValueError: If shapes, devices or sides do not fit, or pixel values are off the range; if `index` does not
                fit, or is given for the mean or sum of maps, which keeps no single one.
        """
        names = ("img1", "img2") if preds is None else ("preds", "target")
        x, y = (img1, img2) if preds is None else (preds, target)
        spare = (target,) if preds is None else (img1, img2)
        if x is None or y is None or any(image is not None for image in spare):
            raise TypeError("update: expected (preds, target) or (img1, img2), got another combination")
        if index is not None and self.spatial and not self._keeps_each:
            raise ValueError("index: expected None for the mean or sum of maps; reduction='none' keeps each")
        options = {"spatial": self.spatial, "per_layer": self.per_layer, "mask": mask, "erode": erode}
        shown = measure(self.net, x, y, self.data_range, names=names, **options)  # type: ignore[arg-type]
        numbers = self._checked_index(index, len(x))
        values = shown.values
        scores = torch.stack(list(values.values()), shown.dims) if isinstance(values, dict) else values
        self._dtype_of_images = scores.dtype
        if not self._is_plain:
            self._collect(scores, shown.dims, numbers)
        elif numbers is None:
            self._sum(scores, shown)
        else:
            self._keep(numbers, _sums_and_counts(scores, shown))

    def _sum(self, scores: Tensor, shown: Distances) -> None:
        scores = scores.flatten(0, shown.dims - 1)
        count: Tensor | int = scores.shape[0]
        if shown.valid is not None:
            counted = shown.valid.flatten()
            scores = torch.where(counted if scores.dim() == 1 else counted.unsqueeze(1), scores, 0)
            count = counted.sum()
        # Not the state's dtype: a parent's .to(torch.bfloat16) casts states, and must not round the sum.
        setattr(self, self._scores, getattr(self, self._scores) + scores.sum(0, dtype=SUM_DTYPE))
        setattr(self, self._count, getattr(self, self._count) + count)

    def _collect(self, scores: Tensor, dims: int, numbers: Tensor | None) -> None:
        frames = scores.shape[1] if dims == 2 and self._keeps_each else 0
        height, width = scores.shape[-2:] if self.spatial else (0, 0)
        if scores.numel() == 0:
            return
        if self._shape_seen not in (None, (frames, height, width)):
            raise ValueError(
                f"update: expected (frames, height, width) as in the first batch, {self._shape_seen}, "
                f"got {(frames, height, width)}"
            )
        self._shape_seen = (frames, height, width)
        setattr(self, self._shape, torch.tensor(self._shape_seen, device=self.device))
        kept = getattr(self, self._scores)
        if numbers is not None:
            self._keep(numbers, scores.flatten(1) if scores.dim() > 1 else scores.unsqueeze(1))
            return
        if self._keeps_each:
            setattr(self, self._count, getattr(self, self._count) + scores.shape[0])
            kept.append(scores.flatten().to(SUM_DTYPE))
            return
        scores = scores.flatten(0, dims - 1)
        setattr(self, self._count, getattr(self, self._count) + scores.shape[0])
        total = scores.sum(0, dtype=SUM_DTYPE).flatten()
        setattr(self, self._scores, [kept[0] + total if kept else total])

    @override
    def compute(self) -> Tensor | dict[str, Tensor]:
        """The score of everything seen; NaN for the mean of no image."""
        self._flush_range_checks()
        total, count = getattr(self, self._scores), getattr(self, self._count)
        rows = self._kept(count)
        if not self._is_plain:
            total = self._gathered(total, count) if rows is None else self._gathered([rows.flatten()], len(rows))
        elif rows is not None:
            total, count = rows[:, :-1].sum(0).view(total.shape), rows[:, -1].sum()
        result = (total / count if self.reduction == "mean" else total).to(self._dtype_of_images)
        if not self.per_layer:
            return result
        dim = 0 if not self._keeps_each else result.dim() - (4 if self.spatial else 1)
        return dict(zip(self.net.layers, result.unbind(dim), strict=True))

    def _gathered(self, scores: list[Tensor], count: Tensor | int) -> Tensor:
        """What was kept flat, in its shape: ``(N, ...)``, or the sum over N."""
        frames, height, width = getattr(self, self._shape).tolist()
        item = [frames] if frames else []
        item += [len(self.net.layers)] if self.per_layer else []
        item += [1, height, width] if self.spatial else []
        flat = dim_zero_cat(scores) if len(scores) else torch.zeros(0, dtype=SUM_DTYPE, device=self.device)
        if self._keeps_each and flat.numel() != int(count) * math.prod(item):
            raise ValueError("compute: expected videos of as many frames, and maps of one size, on all ranks")
        shaped = flat.view(-1, *item) if flat.numel() else flat.view(0, *item)
        return shaped if self._keeps_each else shaped.sum(0)

    @property
    def _keeps_each(self) -> bool:
        return self.reduction in ("none", None)

    @property
    def _is_plain(self) -> bool:
        return not self._keeps_each and not self.spatial

    def _wrap_compute(self, compute: Callable[..., Any]) -> Callable[..., Any]:
        # torchmetrics makes every result of one element 0-dimensional; one score of one image stays (1,).
        wrapped = super()._wrap_compute(compute)

        @functools.wraps(compute)
        def with_its_shape(*args: Any, **kwargs: Any) -> Any:
            result = wrapped(*args, **kwargs)
            if not self._keeps_each:
                return result
            single = (1, 1) if self._shape_seen is not None and self._shape_seen[0] == 1 else (1,)
            whole = result if isinstance(result, dict) else {"": result}
            whole = {layer: score if score.dim() else score.view(single) for layer, score in whole.items()}
            return whole if isinstance(result, dict) else whole[""]

        return with_its_shape

    @override
    def reset(self) -> None:
        """Forget everything seen."""
        super().reset()
        if not self._in_forward:
            self._shape_seen = None

    def selfcheck(self, device: torch.device | str = "cpu") -> dict[str, float]:
        """See `LPIPS.selfcheck`.

        Args:
            device: Where to compute.

        Returns:
            The distances measured.

        Raises:
            WeightsError: If they are not the recorded ones.
            ValueError: If none are recorded for this backbone.
        """
        return self.net.selfcheck(device)

    def plot(self, val: Tensor | Sequence[Tensor] | None = None, ax: Any = None) -> Any:
        """Draw one or several scores.

        Args:
            val: What `forward` or `compute` returned, or a list of such; None computes.
            ax: A matplotlib axes to draw in.

        Returns:
            Figure and axes.

        Raises:
            ModuleNotFoundError: If matplotlib is missing.
        """
        return self._plot(val, ax)


def _sums_and_counts(scores: Tensor, shown: Distances) -> Tensor:
    """Of each image or video: the sum of its scores, or of each layer's, and how many; ``(N, 2)`` or ``(N, L + 1)``."""
    scores = scores if shown.dims == 2 else scores.unsqueeze(1)  # (N, frames) or (N, frames, L)
    scores = scores.to(SUM_DTYPE) if scores.dim() == 3 else scores.to(SUM_DTYPE).unsqueeze(2)
    counted = torch.ones_like(scores[..., 0], dtype=torch.bool)
    if shown.valid is not None:
        counted = shown.valid.view(counted.shape)
        scores = torch.where(counted.unsqueeze(2), scores, 0)
    return torch.cat([scores.sum(1), counted.sum(1, keepdim=True)], 1)
