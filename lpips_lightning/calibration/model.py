"""LPIPS with trainable parameters, and the rank network that predicts a judgment from two distances."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, Self, cast, get_args

import torch
from torch import Generator, Tensor, nn
from typing_extensions import override

from lpips_lightning.backbones.definition import Backbone
from lpips_lightning.backbones.loading import WeightsSource, describe_backbone, resolve_network, version_name
from lpips_lightning.distances.lpips import layer_distances, unit_normalize
from lpips_lightning.images.preprocessing import PLAIN, to_backbone

Mode = Literal["lin", "tune", "scratch"]
Initialization = Literal["random", "official"]


class TrainableLPIPS(nn.Module):
    """LPIPS with a trainable calibration and, in modes ``"tune"`` and ``"scratch"``, a trainable backbone.

    In evaluation mode, distances equal those of `LPIPS` with the same weights. In training mode, squared differences
    are dropped element-wise with probability `dropout` before the calibration, as in the paper.

    Args:
        net_type: As for `LPIPS`.
        version: As for `LPIPS`.
        weights: Backbone weights, as for `LPIPS`; must be None with mode ``"scratch"``.
        mode: ``"lin"``: frozen backbone, always in evaluation mode. ``"tune"``: trained backbone. ``"scratch"``:
            trained backbone, initialized with Gaussian weights.
        init: Initial calibration: ``"random"`` as in the paper, or ``"official"``.
        dropout: Dropout probability in [0, 1).
        seed: Random seed; the global generator is not used.

    Attributes:
        extractor: The backbone.
        layers: Names of the feature layers, from the input on.
        images: Which images it accepts.

    Raises:
        ValueError: If an argument is invalid.
        WeightsError: If weights are missing, damaged or of another architecture.
    """

    shift: Tensor | None
    scale: Tensor | None

    def __init__(
        self,
        net_type: str | Backbone = "alex",
        *,
        version: str | float = "0.1",
        weights: WeightsSource = None,
        mode: Mode = "lin",
        init: Initialization = "random",
        dropout: float = 0.5,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_choice("mode", mode, get_args(Mode))
        check_choice("init", init, get_args(Initialization))
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout: expected a probability in [0, 1), got {dropout}")
        if mode == "scratch" and weights not in (None, "random"):
            raise ValueError(f"weights: expected None with mode 'scratch', which draws its own, got {weights!r}")
        source = "random" if mode == "scratch" else weights
        backbone, _ = describe_backbone(cast("Any", net_type), source, False, None, "alex")
        _, frozen = resolve_network(backbone, version_name(version), init == "official", source, None, seed)
        self.mode, self.dropout = mode, dropout
        self.layers, self.record = frozen.layers, frozen.record
        self.images = replace(PLAIN, channels=self.record.input_channels, has_range=self.record.has_range)
        self.extractor = copy.deepcopy(frozen.extractor).requires_grad_(mode != "lin")
        for name in ("shift", "scale"):
            value = getattr(frozen, name)
            self.register_buffer(name, None if value is None else value.clone(), persistent=False)
        start = frozen.calibration or random_calibration(frozen.record, seed)
        self._weights = nn.ParameterList([start[layer].clone() for layer in self.layers])
        self.train()

    @property
    def calibration(self) -> dict[str, Tensor]:
        """Current weights ``(C,)`` by layer name."""
        return {layer: weight.detach() for layer, weight in zip(self.layers, self._weights, strict=True)}

    @property
    def calibration_parameters(self) -> list[nn.Parameter]:
        """The calibration's parameters, one per layer."""
        return list(self._weights)

    def set_calibration(self, calibration: Mapping[str, Tensor]) -> None:
        """Set the calibration to weights ``(C,)`` by layer name."""
        with torch.no_grad():
            for layer, weight in zip(self.layers, self._weights, strict=True):
                weight.copy_(calibration[layer])

    def clamp_calibration(self) -> None:
        """Clamp negative calibration weights to 0, in place; the backbone is unchanged."""
        with torch.no_grad():
            for weight in self._weights:
                weight.clamp_(min=0)

    @override
    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self.mode == "lin":
            self.extractor.eval()
        return self

    def encode(self, images: Tensor) -> dict[str, Tensor]:
        """Activations by layer of images ``(N, 3, H, W)`` on [-1, 1]; without autograd in mode ``"lin"``.

        Of a custom backbone, images have its channels, and any values if it has no range.
        """
        options = (self.record.value_range, self.shift, self.scale, images.dtype)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.mode != "lin"):
            return self.extractor(to_backbone(images, *options, clamp=True))

    def distance(self, x: Mapping[str, Tensor], y: Mapping[str, Tensor], generator: Generator | None = None) -> Tensor:
        """Distances ``(N,)`` between activations.

        Args:
            x: Activations from `encode`.
            y: Activations from `encode`.
            generator: Generator of the dropout mask, on the activations' device; None: PyTorch's global one.
        """
        if not (self.training and self.dropout):
            calibration = dict(zip(self.layers, self._weights, strict=True))
            return torch.stack(list(layer_distances(x, y, calibration).values())).sum(0)
        pooled = pooled_differences(x, y, self.dropout, generator)
        # Not a matrix product, which autocast would run in half precision.
        terms = [(pooled[layer] * weight).sum(1) for layer, weight in zip(self.layers, self._weights, strict=True)]
        return torch.stack(terms).sum(0)

    @override
    def forward(self, ref: Tensor, *others: Tensor, generator: Generator | None = None) -> tuple[Tensor, ...]:
        """Distances ``(N,)`` of images ``(N, 3, H, W)`` on [-1, 1] to `ref`, one tensor for each of `others`."""
        layers = self.encode(torch.cat([ref, *others]))
        parts = [
            dict(zip(layers, split, strict=True))
            for split in zip(*(features.split(len(ref)) for features in layers.values()), strict=True)
        ]
        return tuple(self.distance(parts[0], part, generator) for part in parts[1:])


class RankNetwork(nn.Module):
    """The paper's network G: predicts the logit of the fraction of people who find `p1` nearer, from two distances.

    An MLP of widths 5, 32, 32, 1 with LeakyReLU(0.2) on ``(d0, d1, d0 - d1, d0 / (d1 + 0.1), d1 / (d0 + 0.1))``. The
    reference uses 1 x 1 convolutions and a final sigmoid; here the sigmoid is part of the loss, for numerical
    stability.

    Args:
        seed: Random seed of the weights; the global generator is not used.
        width: Width of the hidden layers.
    """

    def __init__(self, seed: int = 0, width: int = 32) -> None:
        super().__init__()
        sizes = ((5, width), (width, width), (width, 1))
        first, second, last = (nn.utils.skip_init(nn.Linear, *size) for size in sizes)
        self.body = nn.Sequential(first, nn.LeakyReLU(0.2), second, nn.LeakyReLU(0.2), last)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for linear in (first, second, last):
                bound = linear.in_features**-0.5  # PyTorch's default for convolutions and linear layers alike
                for parameter in (linear.weight, linear.bias):
                    parameter.copy_((2 * torch.rand(parameter.shape, generator=generator) - 1) * bound)

    @override
    def forward(self, d0: Tensor, d1: Tensor) -> Tensor:
        """Logits ``(N,)`` of distances ``(N,)`` to `p0` and `p1`."""
        ratios = (d0 / (d1 + 0.1), d1 / (d0 + 0.1))
        # Half precision would round close distances to equal values.
        with torch.autocast(d0.device.type, enabled=False):
            return self.body(torch.stack([d0, d1, d0 - d1, *ratios], 1)).squeeze(1)


def pooled_differences(
    x: Mapping[str, Tensor], y: Mapping[str, Tensor], dropout: float = 0.0, generator: Generator | None = None
) -> dict[str, Tensor]:
    """Spatial mean of the squared difference of unit-normalized activations, the input of a calibration.

    Args:
        x: Activations ``(N, C, h, w)`` by layer name.
        y: Activations of the same names and shapes.
        dropout: Probability to drop a squared difference; the others are scaled by ``1 / (1 - dropout)``.
        generator: Generator of the dropout mask, on the activations' device; None: PyTorch's global one.

    Returns:
        Shape ``(N, C)`` by layer name.

    Example:
        >>> x = {"relu1": torch.tensor([3.0, 4.0]).view(1, 2, 1, 1)}
        >>> y = {"relu1": torch.tensor([0.0, 1.0]).view(1, 2, 1, 1)}
        >>> pooled_differences(x, y)["relu1"]
        tensor([[0.3600, 0.0400]])
    """
    pooled = {}
    for layer in x:
        square = _square_difference(x[layer], y[layer])
        if dropout:
            keep = torch.empty_like(square).bernoulli_(1 - dropout, generator=generator)
            square = square * keep / (1 - dropout)
        pooled[layer] = square.mean((2, 3))
    return pooled


def random_calibration(record: Backbone, seed: int) -> dict[str, Tensor]:
    """Random initial calibration: PyTorch's default for 1 x 1 convolutions, with negative weights clamped to 0.

    The reference clamps them after the first step.

    Args:
        record: The backbone.
        seed: Random seed; the global generator is not used.

    Returns:
        Weights ``(C,)`` by layer name.
    """
    generator = torch.Generator().manual_seed(seed)
    return {
        layer: ((2 * torch.rand(channels, generator=generator) - 1) * channels**-0.5).clamp(min=0)
        for layer, channels in zip(record.feature_layers, record.channels, strict=True)
    }


def check_choice(argument: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise a ValueError unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{argument}: expected one of {', '.join(map(repr, choices))}, got {value!r}")


def _square_difference(x: Tensor, y: Tensor) -> Tensor:
    if x.dtype != torch.float64:
        x, y = x.float(), y.float()
    return (unit_normalize(x) - unit_normalize(y)).square()
