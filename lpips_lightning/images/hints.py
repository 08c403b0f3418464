"""Ways out that errors about images name, in the words of the caller's own options."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from torch import Tensor

_CHANNELS = (1, 3, 4)


@dataclass(frozen=True)
class Hints:
    """What an error proposes. The defaults name options that `LPIPS` has, and all that take its options.

    Attributes:
        gray: For images with one channel.
        alpha: For images with four channels.
        small: For images below the smallest size.
        unequal: For images of different sizes.
        unequal_batch: For two batches of different shapes whose images have one size.
        integers: For integers other than uint8.
        bytes_range: For floats that look like [0, 255].
        signed_range: For values that look like [-1, 1], declared as [0, 1].
        unit_range: For values that look like [0, 1], declared otherwise.
        no_values: For tensors that have a shape and no values.
        mask: Whether the call takes ``mask=`` and ``erode=``, or was given a mask without ``erode=True``.
    """

    gray: str = "say gray='repeat'"
    alpha: str = "say background='white' or another"
    small: str = "enlarge both images alike with resize="
    unequal: str = "crop or resize one to the other, or both with resize=(H, W)"
    unequal_batch: str = "repeat images with .expand to compare one with many"
    integers: str = "convert with .float() and say data_range=, or values on [0, 255] with .to(torch.uint8)"
    bytes_range: str = "pass data_range=255 or uint8 images, or divide by 255"
    signed_range: str = "pass data_range=(-1, 1)"
    unit_range: str = "say data_range=(0, 1)"
    no_values: str = "validate_args=False gives shapes alone"
    mask: Literal["none", "available", "given"] = "available"

    def __reduce__(self) -> tuple[Callable[[], Hints], tuple[()]]:
        # Pickles of networks hold one: only what differs from the defaults.
        changed = {name: hint for name, hint in vars(self).items() if hint != getattr(Hints, name)}
        return partial(Hints, **changed), ()

    def nan(self) -> str:
        """For NaN among the pixel values."""
        masked = ", or exclude them with mask= and erode=True" if self.mask == "available" else ""
        return (
            "a NaN usually comes from a diverged network, or marks pixels without a value: fill those with "
            f".nan_to_num(){masked}"
        )

    def beside_mask(self) -> str:
        """For any value off the range beside a mask without ``erode=True``; empty otherwise."""
        if self.mask != "given":
            return ""
        return (
            "; pixels outside the mask count through their neighbors: erode=True excludes all that they reach, or fill "
            "them first with torch.where"
        )


OPTIONS = Hints()
"""Of `LPIPS`, the loss, and all that take the options of the network."""

METRIC = replace(
    OPTIONS,
    signed_range="pass data_range=(-1, 1) (normalize=False)",
    unit_range="say data_range=(0, 1) (normalize=True)",
)
"""Of the metrics and the functional form, which also have torchmetrics' ``normalize=``."""

UNMASKED = replace(OPTIONS, mask="none")
"""Of callers with the options of the network that take no mask: callbacks, and features."""

BARE = Hints(
    gray="repeat the channel with .expand(-1, 3, -1, -1)",
    alpha="drop the alpha channel with [..., :3, :, :], or blend the colors over a background first",
    small="enlarge both images alike with torch.nn.functional.interpolate",
    unequal="crop or resize one to the other",
    integers="convert values on [0, 255] with .float() / 127.5 - 1, or with .to(torch.uint8)",
    bytes_range="convert with images / 127.5 - 1, or pass uint8 images",
    signed_range="they are on [-1, 1] already",
    unit_range="convert with 2 * images - 1",
    no_values="pass tensors with values",
    mask="none",
)
"""Of callers without any of these options, whose images are on [-1, 1]."""

EVALUATION = replace(BARE, small="enlarge all images alike with size= of the data set (--size)")
"""Of the methods of an evaluation, whose images come from a data set."""

COMPAT = replace(
    BARE,
    unequal_batch="only a batch of one image is compared with many",
    bytes_range="pass uint8 images, or divide by 255 and say normalize=True",
    signed_range="say normalize=False",
    unit_range="say normalize=True",
    no_values=OPTIONS.no_values,
)
"""Of `compat.LPIPS`, which has the arguments of the `lpips` package."""

MASK = replace(
    BARE,
    bytes_range="divide the mask by 255",
    signed_range="a mask is 0 where pixels do not count",
    unit_range="a mask is 0 where pixels do not count, and 1 where they do",
)
"""Of masks with floating-point values."""


def layout_hint(shape: tuple[int, ...], known: tuple[int, ...] = _CHANNELS) -> str:
    """Code that makes a batch ``(N, C, H, W)`` of another layout; empty if the shape tells none.

    Args:
        shape: Shape of a tensor or an array.
        known: Possible numbers of channels.

    Returns:
        Methods of a tensor, such as ``".permute(0, 3, 1, 2)"``.
    """
    channels_last = len(shape) > 2 and shape[-1] in known and shape[-3] not in known
    if len(shape) == 5 and channels_last:
        return ".permute(0, 1, 4, 2, 3)"
    if len(shape) == 4 and channels_last:
        return ".permute(0, 3, 1, 2)"
    if len(shape) == 3:
        return ".permute(2, 0, 1).unsqueeze(0)" if channels_last else ".unsqueeze(0)"
    return "[None, None]" if len(shape) == 2 else ""


def conversion_hint(given: object, images: bool = True) -> str:
    """How to make a tensor of what is none, as the end of a message; empty if that is not known.

    Args:
        given: An array, a Pillow image, a list or anything else.
        images: Whether images are expected, rather than a tensor of any layout.

    Returns:
        A hint that begins with ``"; "``, or an empty string.
    """
    kind = type(given)
    if kind.__module__ == "numpy" and kind.__name__ == "ndarray":
        shape: tuple[int, ...] = getattr(given, "shape", ())
        return f"; convert it with torch.from_numpy(array){layout_hint(shape) if images else ''}"
    if not images:
        return ""
    if any(base.__module__ == "PIL.Image" for base in kind.__mro__):
        return "; convert it with torchvision.transforms.functional.pil_to_tensor(image.convert('RGB')).unsqueeze(0)"
    if isinstance(given, list | tuple) and given:
        first = given[0]
        if isinstance(first, Tensor):
            return f"; make one batch of it with torch.{'cat' if first.dim() == 4 else 'stack'}(images)"
        inner = conversion_hint(first)
        return f"; make one batch of it with torch.cat: of each image,{inner[1:]}" if inner else ""
    return ""
