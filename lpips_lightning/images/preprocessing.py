"""Validate image batches and convert them to backbone inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, cast, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from lpips_lightning.batch import BatchLayout
from lpips_lightning.images.hints import BARE, OPTIONS, Hints, conversion_hint, layout_hint
from lpips_lightning.images.ranges import UNBOUNDED, DataRange, NoRange, parse_range
from lpips_lightning.tracing import is_symbolic, is_tracing, refuse_proxies, static_sizes
from lpips_lightning.transforms import has_tangent, is_differentiated, is_transformed

Gray = Literal["repeat", "per_channel"]
Background: TypeAlias = Literal["white", "black"] | Sequence[float]
"""Background color for images with alpha: a name, or red, green, blue in [0, 1]."""

_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.uint8)
_COLORS = {"white": (1.0, 1.0, 1.0), "black": (0.0, 0.0, 0.0)}


@dataclass(frozen=True)
class ImagePolicy:
    """Which images a network of `channels` input channels accepts. All shape checks are here.

    Attributes:
        gray: ``"repeat"`` repeats one channel three times; ``"per_channel"`` compares every channel of
            ``(N, C, H, W)``, for any C, as a gray image and averages the distances.
        background: Red, green, blue in [0, 1]: background of RGBA images, whose alpha has the range of the colors.
        resize: ``(H, W)`` to which every image is resized, bilinear with antialiasing.
        videos: Accept videos ``(B, T, C, H, W)``, compared frame by frame.
        hints: Ways out that errors name.
        channels: Input channels of the network. Those of 3 take RGB images, and gray and transparent ones by option.
        has_range: Whether values have a range; otherwise the network gets them as they are, and uint8 is refused.
    """

    gray: Gray | None = None
    background: tuple[float, float, float] | None = None
    resize: tuple[int, int] | None = None
    videos: bool = True
    hints: Hints = field(default=OPTIONS, compare=False, repr=False)
    channels: int = 3
    has_range: bool = True

    @classmethod
    def parse(
        cls,
        gray: Gray | None,
        background: Background | None,
        resize: int | Sequence[int] | None,
        channels: int = 3,
        has_range: bool = True,
    ) -> ImagePolicy:
        """Create a policy from user arguments.

        Args:
            gray: See `ImagePolicy`.
            background: ``"white"``, ``"black"``, or three numbers in [0, 1].
            resize: ``(H, W)``, or one number for both.
            channels: See `ImagePolicy`.
            has_range: See `ImagePolicy`.

        Returns:
            The policy.

        Raises:
            ValueError: If an argument has an unknown value, or is one of RGB images beside other channels.
        """
        for name, option in (("gray", gray), ("background", background)):
            if option is not None and channels != 3:
                raise ValueError(
                    f"{name}: expected None for a network of {channels} input channels, got {option!r}; it makes RGB"
                    " images of others"
                )
        if gray is not None and gray not in get_args(Gray):
            raise ValueError(f"gray: expected None or one of {get_args(Gray)}, got {gray!r}")
        color, size = None if background is None else _color(background), None if resize is None else _size(resize)
        return cls(gray, color, size, channels=channels, has_range=has_range)

    def __str__(self) -> str:
        """Input channels other than 3, and the preprocessing steps, for the fingerprint; empty if there are none."""
        parts = [_count(self.channels)] if self.channels != 3 else []
        parts += [f"gray {self.gray}"] if self.gray else []
        parts += [f"alpha over {list(self.background)}"] if self.background else []
        parts += ["resize {}x{} bilinear antialias".format(*self.resize)] if self.resize else []
        return ", ".join(parts)

    def described(self) -> str:
        """What the network takes, for errors: "4 input channels without a value range"."""
        return f"{_count(self.channels)}{'' if self.has_range else ' without a value range'}"

    def check_pictures(self, name: str) -> None:
        """Raise a ValueError unless the network takes RGB images on a range, which can be read from files and shown.

        Args:
            name: Argument of the network, for the error.
        """
        if self.channels != 3 or not self.has_range:
            raise ValueError(f"{name}: expected a network of RGB images on a range, got one of {self.described()}")

    def value_range(
        self, data_range: DataRange | NoRange, default: tuple[float, float] | None = None
    ) -> tuple[float, float]:
        """Lowest and highest value of images.

        Args:
            data_range: ``(low, high)``, or ``high`` alone for ``(0, high)``; None, or ``"none"`` as in a YAML file,
                for a network without a range.
            default: Range for None where there is one; without a default, None is an error there.

        Returns:
            ``(low, high)``; `UNBOUNDED` for a network without a range.

        Raises:
            TypeError: If `data_range` is neither a pair nor a number.
            ValueError: If it is no range, or given for a network without one.
        """
        if not self.has_range:
            if data_range not in (None, "none", UNBOUNDED):
                raise ValueError(
                    f"data_range: expected None for a network whose input has no range, got {data_range!r}; it takes"
                    " values as they are"
                )
            return UNBOUNDED
        if data_range is None and default is not None:
            return default
        return parse_range(data_range)  # type: ignore[arg-type]

    def check(self, images: Tensor, name: str, net_type: str, smallest_side: int) -> None:
        """Raise unless `images` is a valid batch for the network.

        Args:
            images: ``(N, C, H, W)`` or ``(B, T, C, H, W)``, floating-point or uint8; N, B and T may be 0.
            name: Argument name for error messages.
            net_type: Network name for error messages.
            smallest_side: Minimum of H and W in pixels.

        Raises:
            TypeError: If `images` is not a dense tensor of floats or uint8.
            ValueError: If the shape is not accepted, or a side is too small.
        """
        check_dense(images, name, f"a tensor (N, {self.channels}, H, W)")
        self._check_dtype(images.dtype, name, net_type)
        shape = static_sizes(images.shape)
        if len(shape) not in ((4, 5) if self.videos else (4,)):
            way_out = f"; add the batch dimension with {self._layout_hint(shape)}" if len(shape) in (2, 3) else ""
            videos = f" or (B, T, {self.channels}, H, W)" if self.videos else ""
            expected = f"(N, {self.channels}, H, W){videos}"
            raise ValueError(f"{name}: expected shape {expected}, got {shape}{way_out}")
        self._check_channels(shape, name)
        height, width = self.resize or shape[-2:]
        if min(height, width) < smallest_side:
            raise ValueError(
                f"{name}: expected sides of at least {smallest_side} pixels for net_type {net_type!r}, got {height}x"
                f"{width}{self._size_hint(shape)}"
            )

    def check_pair(self, x: Tensor, y: Tensor, names: tuple[str, str], net_type: str, smallest_side: int) -> None:
        """Raise unless two batches are valid pairs of images.

        Args:
            x: See `check`.
            y: Images of the same shape on the same device; with `resize`, height and width may differ.
            names: Argument names for error messages.
            net_type: Network name for error messages.
            smallest_side: Minimum of H and W in pixels.

        Raises:
            TypeError: See `check`.
            ValueError: See `check`; also if the two differ in shape or device.
        """
        self.check(x, names[0], net_type, smallest_side)
        self.check(y, names[1], net_type, smallest_side)
        if self._comparable(x) != self._comparable(y):
            shape, other = static_sizes(x.shape), static_sizes(y.shape)
            unequal = not self.resize and shape[-2:] != other[-2:]
            hint = self.hints.unequal if unequal else self.hints.unequal_batch
            raise ValueError(
                f"{names[1]}: expected the shape of {names[0]}, {shape}, got {other}; nothing is broadcast or resized: "
                f"{hint}"
            )
        if x.device != y.device:
            raise ValueError(f"{names[1]}: expected device {x.device}, that of {names[0]}, got {y.device}")

    def to_flat_rgb(self, images: Tensor, data_range: tuple[float, float]) -> tuple[Tensor, tuple[float, float]]:
        """Convert checked images to a flat batch of the network's channels: frames, gray, alpha, resize.

        Args:
            images: Images that passed `check`.
            data_range: Value range ``(low, high)`` of floating-point images.

        Returns:
            Images ``(M, 3, H, W)``, or of other `channels`, and their value range.
        """
        low, high = data_range = (0.0, 255.0) if images.dtype == torch.uint8 else data_range
        flat = images.flatten(0, 1) if images.dim() == 5 else images
        if self.gray == "per_channel":
            flat = flat.flatten(0, 1).unsqueeze(1)
        (channels,) = static_sizes(flat.shape[1:2])
        if channels == 1 and self.channels == 3:
            flat = flat.expand(-1, 3, -1, -1)
        if channels == 4 and self.background is not None:
            # A copy: autograd saves factors, and the caller may overwrite the images before the backward pass.
            flat = flat.to(torch.promote_types(flat.dtype, torch.float32), copy=True)
            alpha = ((flat[:, 3:] - low) / (high - low)).clamp(0, 1)
            color = torch.stack([flat.new_full((), part) for part in self.background]).view(1, 3, 1, 1)
            flat = alpha * flat[:, :3] + (1 - alpha) * (low + (high - low) * color)
        if self.resize is not None and (is_tracing() or tuple(flat.shape[2:]) != self.resize):
            flat = flat if flat.dtype == torch.float64 else flat.float()
            flat = F.interpolate(flat, self.resize, mode="bilinear", antialias=True, align_corners=False)
        return flat, data_range

    def batch_layout(self, images: Tensor) -> BatchLayout:
        """How the batch of `to_flat_rgb` maps to the given images.

        Args:
            images: Images that passed `check`.

        Returns:
            The layout.
        """
        (channels,) = static_sizes(images.shape[-3:-2])
        return BatchLayout(tuple(images.shape[:-3]), channels if self.gray == "per_channel" else 1)

    def _comparable(self, images: Tensor) -> tuple[int, ...]:
        """The part of the shape in which two batches must agree."""
        *lead, channels, height, width = static_sizes(images.shape)
        return (*lead, channels if self.gray == "per_channel" else 3, *((height, width) if not self.resize else ()))

    def _check_dtype(self, dtype: torch.dtype, name: str, net_type: str) -> None:
        if not self.has_range and not dtype.is_floating_point:
            raise TypeError(
                f"{name}: expected floating-point values for net_type {net_type!r}, whose input has no range, got"
                f" {dtype}; convert with .float()"
            )
        if dtype not in _DTYPES:
            raise TypeError(
                f"{name}: expected floating-point values, or uint8 on [0, 255], got {dtype}; {self.hints.integers}"
            )

    def _check_channels(self, shape: tuple[int, ...], name: str) -> None:
        channels = shape[-3]
        if self.gray == "per_channel" and channels > 0:
            return
        known = [self.channels] + [1] * (self.gray == "repeat") + [4] * (self.background is not None)
        if channels in known:
            return
        way_out = (
            {}
            if self.channels != 3
            else {1: f"; gray images: {self.hints.gray}", 4: f"; alpha channels: {self.hints.alpha}"}
        )
        permuted = self._layout_hint(shape)
        hint = (
            f"; channels come {'second' if len(shape) == 4 else 'third'}: use {permuted}"
            if permuted
            else way_out.get(channels, "")
        )
        expected = " or ".join(map(str, sorted(known)))
        noun = "channel" if known == [1] else "channels"
        raise ValueError(f"{name}: expected {expected} {noun} (N, {expected}, H, W), got shape {shape}{hint}")

    def _layout_hint(self, shape: tuple[int, ...]) -> str:
        return layout_hint(shape) if self.channels == 3 else layout_hint(shape, (self.channels,))

    def _size_hint(self, shape: tuple[int, ...]) -> str:
        permuted = self._layout_hint(shape) if len(shape) > 3 else ""  # gray="per_channel" takes any number of channels
        if permuted:
            return f"; if these are rows of a channels-last image, use {permuted}"
        return f"; {self.hints.small}, or choose a net that accepts smaller images"


PLAIN = ImagePolicy(videos=False, hints=BARE)
"""Accepts only RGB images ``(N, 3, H, W)``."""

SIGNED = (-1.0, 1.0)
"""Range of images that name none, as in the `lpips` package."""


def to_backbone(
    images: Tensor,
    data_range: tuple[float, float],
    shift: Tensor | None,
    scale: Tensor | None,
    dtype: torch.dtype,
    clamp: bool,
) -> Tensor:
    """Backbone input: images mapped to ``[-1, 1]``, shifted and scaled.

    Args:
        images: ``(N, C, H, W)``; uint8 has the range [0, 255] regardless of `data_range`.
        data_range: Value range ``(low, high)`` of floating-point images; `UNBOUNDED` maps and clamps nothing.
        shift: Subtracted per channel, shape ``(C,)``; None for v0.0, which does not scale its input.
        scale: Divisor per channel after the shift, shape ``(C,)``; None for v0.0.
        dtype: Dtype of the result; arithmetic runs in float32, or in float64 for float64.
        clamp: Clamp values to the range.

    Returns:
        Shape ``(N, C, H, W)``, dtype `dtype`, ``channels_last`` memory.
    """
    low, high = (0.0, 255.0) if images.dtype == torch.uint8 else data_range
    clamp = clamp and images.dtype != torch.uint8 and (low, high) != UNBOUNDED
    working = torch.float64 if dtype == torch.float64 else torch.float32
    # Fresh memory costs more time than arithmetic, so tensors created here are modified in place. Object identity does
    # not tell them from the caller's: for tensor subclasses (torch.func), `.to` may return a new object that aliases.
    # Transforms of torch.func take neither, nor does forward-mode AD.
    in_place = not (is_transformed() or has_tangent(images))
    ours = in_place and (clamp or images.dtype != working)
    images = images.to(working)
    if clamp:
        images = clamped(images, low, high)
    if (low, high) not in ((-1.0, 1.0), UNBOUNDED):
        images = images.sub_(low) if ours else images - low
        slope = 2 / (high - low)
        images = images.mul_(slope).sub_(1) if in_place else images * slope - 1
        ours = in_place
    if shift is not None and scale is not None:
        shift, scale = (values.to(working).view(1, -1, 1, 1) for values in (shift, scale))
        images = images.sub_(shift) if ours else images - shift
        images = images.div_(scale) if in_place else images / scale
    images = images.to(dtype)
    if not in_place or torch.compiler.is_compiling():  # vmap knows no channels_last; a compiler chooses the layout
        return images
    if not ours and shift is None and is_differentiated(images):  # autograd must not save the caller's own images
        return images.clone(memory_format=torch.channels_last)
    return images.contiguous(memory_format=torch.channels_last)


def clamped(images: Tensor, low: float, high: float) -> Tensor:
    """Clamp with derivative 1 at the ends of the range too, where torch.clamp gives 0 or 1 depending on the version.

    Args:
        images: Any shape, floating.
        low: Lowest value.
        high: Highest value.

    Returns:
        Shape and dtype of `images`.
    """
    if not is_symbolic(images) and not is_differentiated(images):
        return images.clamp(low, high)
    inside = (images >= low) & (images <= high)
    return torch.where(inside, images, images.detach().clamp(low, high))


def _count(channels: int) -> str:
    return f"{channels} input channel{'s' * (channels != 1)}"


def _color(background: Background) -> tuple[float, float, float]:
    parts: Sequence[object] = _COLORS.get(background, ()) if isinstance(background, str) else background
    if not isinstance(parts, Sequence) or len(parts) != 3 or not all(map(_is_fraction, parts)):
        raise ValueError(f"background: expected 'white', 'black' or three numbers on [0, 1], got {background!r}")
    red, green, blue = (float(cast("float", part)) for part in parts)
    return red, green, blue


def _is_fraction(part: object) -> bool:
    return isinstance(part, int | float) and 0 <= part <= 1


def _size(resize: int | Sequence[int]) -> tuple[int, int]:
    sides = resize if isinstance(resize, Sequence) else (resize, resize)
    if len(sides) != 2 or not all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in sides):
        raise ValueError(f"resize: expected (H, W) or one number, in pixels, got {resize!r}")
    return sides[0], sides[1]


def check_dense(given: object, name: str, expected: str, images: bool = True) -> Tensor:
    """Raise unless an argument is a dense (strided) tensor.

    Args:
        given: Any object.
        name: Argument name for error messages.
        expected: What the error says was expected.
        images: Whether images are expected, for the hint.

    Returns:
        The tensor.

    Raises:
        TypeError: If it is not a tensor, or is sparse, nested or quantized.
    """
    refuse_proxies(**{name: given})
    if not isinstance(given, Tensor):
        raise TypeError(f"{name}: expected {expected}, got {type(given).__name__}{conversion_hint(given, images)}")
    if given.layout != torch.strided or given.is_quantized or given.is_nested:
        layout = "nested" if given.is_nested else given.layout
        raise TypeError(f"{name}: expected a dense tensor, got layout {layout}, dtype {given.dtype}")
    return given
