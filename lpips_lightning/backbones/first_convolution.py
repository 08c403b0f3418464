"""First convolution of RGB networks, for images of other channels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lpips_lightning.backbones.definition import Backbone


def repeated_filters(weight: Tensor, channels: int) -> Tensor:
    """Filters of RGB images for another number of channels: timm's rule (``adapt_input_conv``).

    Channel c gets the filters of color c modulo 3, scaled by ``3 / channels``, so that a constant image gives the same
    activations up to the parts of the last round; one channel gets the sum over colors.

    Args:
        weight: Shape ``(K, 3, h, w)``.
        channels: Number of channels, at least 1.

    Returns:
        Shape ``(K, channels, h, w)``; `weight` itself for 3 channels.

    Example:
        >>> weight = torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1)
        >>> repeated_filters(weight, 4).flatten(), repeated_filters(weight, 1).flatten()
        (tensor([0.7500, 1.5000, 2.2500, 0.7500]), tensor([6.]))
    """
    if channels == 1:
        return weight.sum(1, keepdim=True)
    if channels == 3:
        return weight
    return weight[:, [channel % 3 for channel in range(channels)]] * (3 / channels)


def repeat_filters(record: Backbone, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a backbone, with its first convolution repeated where they are those of RGB images.

    Args:
        record: Definition of the backbone.
        tensors: Weights by name.

    Returns:
        The repeated weights alone; empty where nothing is repeated.
    """
    name = f"{record.repeated_conv}.weight"
    weight = tensors.get(name)
    channels = record.input_channels
    if not record.repeated_conv or channels == 3 or weight is None or weight.dim() != 4 or weight.shape[1] != 3:
        return {}
    return {name: repeated_filters(weight, channels)}


@dataclass(frozen=True)
class RepeatedBuilder:
    """Builds a network of RGB images for another number of channels.

    Attributes:
        build: Builds the network of RGB images.
        channels: Number of input channels.
    """

    build: Callable[[], nn.Module]
    channels: int

    def __call__(self) -> nn.Module:
        """The network, with the filters of its first convolution repeated."""
        model = self.build()
        name, like = _first_convolution(model)
        parent, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, _repeated(like, self.channels))
        return model

    @property
    def convolution(self) -> str:
        """Name of the convolution.

        Raises:
            ValueError: If the first convolution does not take 3 channels.
        """
        with torch.device("meta"):
            return _first_convolution(self.build())[0]


def _first_convolution(model: nn.Module) -> tuple[str, nn.Conv2d]:
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and name:
            if (module.in_channels, module.groups) != (3, 1):
                raise ValueError(
                    f"first_conv: expected a first convolution of 3 channels to repeat, got {name}: {module}"
                )
            return name, module
    raise ValueError("first_conv: expected a network with a convolution to repeat, got one without; say 'as_is'")


def _repeated(like: nn.Conv2d, channels: int) -> nn.Conv2d:
    convolution = nn.Conv2d(
        channels,
        like.out_channels,
        like.kernel_size,  # type: ignore[arg-type]
        like.stride,  # type: ignore[arg-type]
        like.padding,  # type: ignore[arg-type]
        like.dilation,  # type: ignore[arg-type]
        bias=like.bias is not None,
        padding_mode=like.padding_mode,
        device="meta",
    )
    convolution.weight = nn.Parameter(repeated_filters(like.weight.detach(), channels))
    convolution.bias = like.bias
    return convolution
