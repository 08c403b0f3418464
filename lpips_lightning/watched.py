"""What the metrics over images share: they speak of wrong pixel values when they compute, and keep no graph."""

from __future__ import annotations

from typing import Any

from typing_extensions import override

from lpips_lightning.network import LPIPS
from lpips_lightning.numbered import NumberedMetric
from lpips_lightning.ranges import RangeWatch

__all__ = ["WatchedMetric"]


class WatchedMetric(NumberedMetric):
    """A metric on an LPIPS network whose watch speaks at the end of an epoch, not at every batch.

    Args:
        net: The network; it gets a watch of its own.
        kwargs: See `torchmetrics.Metric`.
    """

    def __init__(self, net: LPIPS, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.net = net
        self.net.watch = RangeWatch()
        self._in_forward = False

    @override
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Add a batch and return the batch's own score, differentiable; the state keeps no graph."""
        self._in_forward = True
        try:
            value = super().forward(*args, **kwargs)
        finally:
            self._in_forward = False
        for name in self._defaults:
            state = getattr(self, name)
            setattr(self, name, [part.detach() for part in state] if isinstance(state, list) else state.detach())
        # torchmetrics keeps the batch's score until the next batch, and with its graph the images.
        layers = value.items() if isinstance(value, dict) else [("", value)]
        kept = {layer: score.detach() for layer, score in layers}
        cache: Any = kept if isinstance(value, dict) else kept[""]
        self._forward_cache = cache
        return value

    def _speak(self) -> None:
        """Raise what the watch has seen, unless a batch's own score is being computed: nothing then waits for it."""
        if not self._in_forward:
            self.net.watch.speak()
