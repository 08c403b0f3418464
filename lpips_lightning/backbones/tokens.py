"""Token models (vision transformers) as backbones: tokens ``(N, L, C)`` become feature maps ``(N, C, h, w)``.

Class and register tokens, which stand for no place in the image, are left out. Every image is brought to a size that
the model takes: see `Tokens`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from lpips_lightning.backbones.definition import Backbone, get_backbone
from lpips_lightning.backbones.extractor import FeatureModule, hooked_features


@dataclass(frozen=True)
class Tokens:
    """How a model makes tokens of an image.

    Images are resized, bilinear with antialiasing and both of a pair alike: to `size` if the model has one; else each
    side to the nearest multiple of the patch, halves upward, and at least one patch. A side that fits is left as it is.
    So every token covers the same fraction of the image, masks and maps keep their place, and equal images stay equal.

    Attributes:
        patch: Pixels of a patch, one number or (rows, columns).
        prefix: Number of tokens before those of the patches: class token, distillation token, registers.
        size: (H, W) of the only images that the model takes, for position embeddings that are not interpolated; one
            number for both; None for any multiple of the patch.
        batch_first: False for outputs ``(L, N, C)``, as in the original code of CLIP.

    Raises:
        ValueError: If a number is not positive, or `size` is no multiple of the patch.

    Example:
        >>> Tokens(14, prefix=5).fitting(256, 100)
        (252, 98)
        >>> str(Tokens(16, prefix=1, size=224))
        'patch 16x16 without 1 prefix token, resize 224x224 bilinear antialias'
    """

    patch: int | tuple[int, int]
    prefix: int = 0
    size: int | tuple[int, int] | None = None
    batch_first: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "patch", _two(self.patch, "patch"))
        if self.size is not None:
            object.__setattr__(self, "size", _two(self.size, "size"))
            if self.fitting(*_two(self.size, "size"), fixed=False) != self.size:
                raise ValueError(f"size: expected a multiple of the patch, {self.patch}, got {self.size}")
        if type(self.prefix) is not int or self.prefix < 0:
            raise ValueError(f"prefix: expected a number of tokens, 0 or more, got {self.prefix!r}")

    @property
    def sides(self) -> tuple[int, int]:
        """Rows and columns of a patch, in pixels."""
        return _two(self.patch, "patch")

    def fitting(self, height: int, width: int, *, fixed: bool = True) -> tuple[int, int]:
        """Size to which images are resized.

        Args:
            height: Of the images.
            width: Of the images.
            fixed: Whether `size` counts.
        """
        if fixed and self.size is not None:
            return _two(self.size, "size")
        rows, columns = self.sides
        return max((height + rows // 2) // rows, 1) * rows, max((width + columns // 2) // columns, 1) * columns

    def __str__(self) -> str:
        """For the fingerprint: what is left out, and the rule by which images are resized."""
        prefix = f" without {self.prefix} prefix token{'s' * (self.prefix > 1)}" if self.prefix else ""
        rule = "to the nearest multiple" if self.size is None else "{}x{}".format(*_two(self.size, "size"))
        return "patch {}x{}".format(*self.sides) + f"{prefix}, resize {rule} bilinear antialias"


def _two(sides: Any, what: str) -> tuple[int, int]:
    both = tuple(sides) if isinstance(sides, Sequence) else (sides, sides)
    if len(both) != 2 or not all(type(side) is int and side > 0 for side in both):
        raise ValueError(f"{what}: expected a positive number of pixels, or two, got {sides!r}")
    return both[0], both[1]


def tokens_of(model: nn.Module) -> Tokens:
    """What a model says of its tokens: one of timm, or torchvision's `VisionTransformer`.

    Args:
        model: The model.

    Returns:
        Its tokens; with a `Tokens.size` if it takes one size only.

    Raises:
        ValueError: If the model does not say it.
    """
    from torchvision.models import VisionTransformer

    if isinstance(model, VisionTransformer):
        return Tokens(model.patch_size, prefix=1, size=model.image_size)
    embedding: Any = getattr(model, "patch_embed", None)
    prefix = getattr(model, "num_prefix_tokens", 0)
    patch = getattr(embedding, "patch_size", None)
    if patch is None:
        raise ValueError(
            f"tokens: expected Tokens(patch, prefix) for a {type(model).__name__}, which does not say its own"
        )
    fixed = getattr(embedding, "strict_img_size", True)
    return Tokens(
        patch if isinstance(patch, int) else tuple(patch),
        prefix,
        tuple(embedding.img_size) if fixed and embedding.img_size else None,
    )


class TokenMaps(FeatureModule):
    """A token model that returns feature maps by layer name.

    Input: preprocessed images ``(N, 3, H, W)`` of any size.
    Output: ``(N, C, h, w)`` by layer name. Parameters and buffers have the names of the model.

    Attributes:
        model: The model.
        nodes: Submodule by layer name, in execution order.
        tokens: How the model makes tokens.
        indices: What `model.forward_intermediates` of timm is asked for, instead of the outputs of the submodules.
        norm: Apply the last normalization of the model to every layer (with `indices`).

    Args:
        model: See the attributes.
        nodes: See the attributes.
        tokens: See the attributes.
        indices: See the attributes.
        norm: See the attributes.
    """

    def __init__(
        self,
        model: nn.Module,
        nodes: Mapping[str, str],
        tokens: Tokens,
        indices: Sequence[int] | None = None,
        norm: bool = False,
    ) -> None:
        super().__init__()
        self.model, self.nodes, self.tokens = model, dict(nodes), tokens
        self.indices, self.norm = None if indices is None else list(indices), norm

    @override
    def forward(self, images: Tensor) -> dict[str, Tensor]:
        if not images.shape[0]:  # models fail, since they reshape with -1
            one = torch.cat((images, images.new_zeros(1, *images.shape[1:])))
            return {layer: features[:0] for layer, features in self(one).items()}
        images = _resized(images, self.tokens.fitting(images.shape[-2], images.shape[-1]))
        if self.indices is None:
            found = hooked_features(self.model, self.nodes, images)
            return {layer: _to_map(output, images, self.tokens, layer) for layer, output in found.items()}
        read: Callable[..., list[Tensor]] = self.model.forward_intermediates  # type: ignore[assignment]
        maps = read(images, indices=self.indices, norm=self.norm, stop_early=True, intermediates_only=True)
        return dict(zip(self.nodes, maps, strict=True))

    @override
    def feature_nodes(self) -> nn.Module:
        return self.model

    @override
    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return self.model.state_dict(*args, **kwargs)

    @override
    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        for name in [name for name in state_dict if name.startswith(prefix)]:
            state_dict[f"{prefix}model.{name.removeprefix(prefix)}"] = state_dict.pop(name)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    @override
    def extra_repr(self) -> str:
        return f"{self.nodes}, {self.tokens!r}, indices={self.indices}, norm={self.norm}"


def _resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Images of another size; half precision is resized in float32."""
    if tuple(images.shape[-2:]) == size:
        return images
    working = images if images.dtype == torch.float64 else images.float()
    return F.interpolate(working, size, mode="bilinear", antialias=True, align_corners=False).to(images.dtype)


def _to_map(output: Any, images: Tensor, tokens: Tokens, layer: str) -> Tensor:
    """The tokens of the patches as a map, in ``channels_last`` order; of tuples, the first entry."""
    sequence = output[0] if isinstance(output, tuple | list) and output else output
    rows, columns = (side // patch for side, patch in zip(images.shape[-2:], tokens.sides, strict=True))
    if isinstance(sequence, Tensor) and sequence.dim() == 3 and not tokens.batch_first:
        sequence = sequence.transpose(0, 1)
    shape = tuple(sequence.shape) if isinstance(sequence, Tensor) else type(sequence).__name__
    if len(shape) != 3 or shape[:2] != (len(images), tokens.prefix + rows * columns):
        raise ValueError(
            f"tokens: expected {tokens.prefix} + {rows}x{columns} of them at {layer!r} for {images.shape[-2]}x"
            f"{images.shape[-1]} pixels, (N, {tokens.prefix + rows * columns}, C), got {shape} for N = {len(images)};"
            " say patch, prefix and size of the model with tokens=Tokens(...)"
        )
    return sequence[:, tokens.prefix :].unflatten(1, (rows, columns)).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class TokensBuilder:
    """Builds a token model as `TokenMaps`.

    Attributes:
        build: Builds the model.
        nodes: Layer name and submodule, in execution order.
        tokens: How the model makes tokens.
    """

    build: Callable[[], nn.Module]
    nodes: tuple[tuple[str, str], ...]
    tokens: Tokens

    def __call__(self) -> nn.Module:
        """The model."""
        return TokenMaps(self.build(), dict(self.nodes), self.tokens)


def mean_calibration(backbone: str | Backbone, *, over_channels: bool = False) -> dict[str, Tensor]:
    """A calibration of equal weights that makes the distance the mean over layers, where LPIPS has their sum.

    Args:
        backbone: The backbone, or its name.
        over_channels: Also the mean over channels, where LPIPS has their sum: the scale of the package
            ``dino-perceptual``, which counts the class token as one more position (its ``perceptual.py``).

    Returns:
        Shape ``(C,)`` by layer name, for the `calibration` argument.

    Example:
        >>> weights = mean_calibration("alex")
        >>> weights["relu5"].shape, round(float(weights["relu5"][0]), 3)
        (torch.Size([256]), 0.2)
    """
    backbone = get_backbone(backbone)
    layers = len(backbone.channels)
    return {
        layer: torch.full((channels,), 1 / (layers * channels if over_channels else layers))
        for layer, channels in zip(backbone.feature_layers, backbone.channels, strict=True)
    }
