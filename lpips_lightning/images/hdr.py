"""PU21: perceptually uniform encoding of absolute luminance, for networks that were trained on display-encoded images.

Mantiuk and Azimi, "PU21: A novel perceptually uniform encoding for adapting existing quality metrics for HDR", Picture
Coding Symposium 2021, doi:10.1109/PCS50896.2021.9477471; parameters from gfxdisp/pu21, ``matlab/pu21_encoder.m``.
"""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from lpips_lightning.callers import warn_user
from lpips_lightning.tracing import is_tracing
from lpips_lightning.transforms import is_differentiated, unwrapped

PU21Kind: TypeAlias = Literal["banding", "banding_glare", "peaks", "peaks_glare"]
"""Which visibility data the encoding was fitted to; the authors recommend ``"banding_glare"``."""

_PARAMETERS: dict[str, tuple[float, ...]] = {
    "banding": (1.070275272, 0.4088273932, 0.153224308, 0.2520326168, 1.063512885, 1.14115047, 521.4527484),
    "banding_glare": (
        0.353487901,
        0.3734658629,
        8.277049286e-05,
        0.9062562627,
        0.09150303166,
        0.9099517204,
        596.3148142,
    ),
    "peaks": (1.043882782, 0.6459495343, 0.3194584211, 0.374025247, 1.114783422, 1.095360363, 384.9217577),
    "peaks_glare": (816.885024, 1479.463946, 0.001253215609, 0.9329636822, 0.06746643971, 1.573435413, 419.6006374),
}
_LOWEST, _HIGHEST = 0.005, 10_000.0  # cd/m^2


def pu21_encode(luminance: Tensor, kind: PU21Kind = "banding_glare", *, validate_args: bool = True) -> Tensor:
    """Encode absolute linear RGB or luminance so that equal steps are about equally visible.

    About 0 at 0.005 cd/m^2, 256 at 100 cd/m^2 (the white of an ordinary display) and 595 at 10,000 cd/m^2
    (``"banding_glare"``). Each channel is encoded by itself, as by the authors' PSNR of RGB. Strictly increasing.

    HDR files hold relative values: multiply them so that they are the cd/m^2 of the display that shows the image. Pass
    the result to a network with ``data_range=pu21_range(PEAK)``, where PEAK is the peak luminance of that display:
    its white is then the white of the network. The authors scale by the value of 100 cd/m^2 instead
    (``data_range=(0, 256)``), above which LPIPS refuses data; with ``validate_args=False`` it measures it unclamped.

    Values beyond [0.005, 10000] are clamped, zeros of an HDR file among them. Tensors that require grad are predictions
    of a network in training: for them the curve goes on as its tangent, and the gradient does not vanish.

    Args:
        luminance: Linear values in cd/m^2, any shape, floating-point.
        kind: Set of parameters.
        validate_args: Check the values of data, which synchronizes with the device. Data that is nowhere above 1, and
            so relative, and negative values or values above 10,000 get a warning.

    Returns:
        Shape of `luminance`; float32, float64 for float64.

    Raises:
        TypeError: If `luminance` is not a floating-point tensor.
        ValueError: If `kind` is unknown, or data has NaN or infinity.

    Example:
        >>> pu21_encode(torch.tensor([0.005, 0.1, 100.0, 10_000.0])).round(decimals=1).abs()
        tensor([  0.0000,   5.7000, 256.4000, 595.4000])
    """
    parameters = _checked(luminance, "luminance", kind)
    values = luminance.double() if luminance.dtype == torch.float64 else luminance.float()
    inside = values.clamp(_LOWEST, _HIGHEST)
    encoded = _encode(inside, parameters)
    if is_differentiated(luminance):
        low, high = (_slope(end, parameters) for end in (_LOWEST, _HIGHEST))
        return encoded + torch.where(values < 1, low, high) * (values - inside)
    if validate_args and not is_tracing():
        _check_luminance(unwrapped(values))
    return encoded


def pu21_decode(encoded: Tensor, kind: PU21Kind = "banding_glare") -> Tensor:
    """Luminance of encoded values: the inverse of `pu21_encode` on [0.005, 10000] cd/m^2.

    Args:
        encoded: Any shape, floating-point; values off the range of the encoding are clamped to it.
        kind: Set of parameters.

    Returns:
        cd/m^2; shape of `encoded`; float32, float64 for float64.

    Raises:
        TypeError: If `encoded` is not a floating-point tensor.
        ValueError: If `kind` is unknown.

    Example:
        >>> pu21_decode(pu21_encode(torch.tensor([1.0, 100.0]))).round(decimals=2)
        tensor([  1., 100.])
    """
    p1, p2, p3, p4, p5, p6, p7 = _checked(encoded, "encoded", kind)
    values = encoded.double()  # the power of 1 / p5 would lose float32's digits
    low, high = (
        _encode(torch.tensor(end, dtype=torch.float64), (p1, p2, p3, p4, p5, p6, p7)).item()
        for end in (_LOWEST, _HIGHEST)
    )
    root = (values.clamp(low, high) / p7 + p6) ** (1 / p5)
    power = (root - p1).clamp(min=0) / (p2 - p3 * root)
    return (power ** (1 / p4)).to(torch.promote_types(encoded.dtype, torch.float32))


def pu21_range(peak: float = _HIGHEST, kind: PU21Kind = "banding_glare") -> tuple[float, float]:
    """The ``data_range`` of encoded images.

    Args:
        peak: Luminance of white in cd/m^2: the peak of the display, at most 10,000.
        kind: Set of parameters.

    Returns:
        ``(0, PEAK)``, where PEAK is the encoded `peak`.

    Raises:
        ValueError: If `peak` is not on (0.005, 10000], or `kind` is unknown.

    Example:
        >>> [round(pu21_range(peak)[1], 1) for peak in (100, 1000, 10_000)]
        [256.4, 420.1, 595.4]
    """
    if not _LOWEST < peak <= _HIGHEST:
        raise ValueError(f"peak: expected a luminance on (0.005, 10000] cd/m^2, got {peak!r}")
    return 0.0, pu21_encode(torch.tensor(float(peak), dtype=torch.float64), kind, validate_args=False).item()


def _encode(luminance: Tensor, parameters: tuple[float, ...]) -> Tensor:
    p1, p2, p3, p4, p5, p6, p7 = parameters
    power = luminance**p4
    return p7 * (((p1 + p2 * power) / (1 + p3 * power)) ** p5 - p6)


def _slope(luminance: float, parameters: tuple[float, ...]) -> float:
    """Derivative of the encoding."""
    p1, p2, p3, p4, p5, _, p7 = parameters
    power = luminance**p4
    ratio = (p1 + p2 * power) / (1 + p3 * power)
    return p7 * p5 * ratio ** (p5 - 1) * (p2 - p1 * p3) / (1 + p3 * power) ** 2 * p4 * power / luminance


def _checked(values: Tensor, name: str, kind: str) -> tuple[float, ...]:
    if kind not in _PARAMETERS:
        raise ValueError(f"kind: expected one of {get_args(PU21Kind)}, got {kind!r}")
    if not isinstance(values, Tensor) or not values.is_floating_point():
        got = values.dtype if isinstance(values, Tensor) else type(values).__name__
        raise TypeError(f"{name}: expected a floating-point tensor, got {got}")
    return _PARAMETERS[kind]


def _check_luminance(values: Tensor) -> None:
    if not values.numel():
        return
    lowest, highest = (value.item() for value in torch.aminmax(values.detach()))
    if not (abs(lowest) < float("inf") and abs(highest) < float("inf")):
        raise ValueError(f"luminance: expected finite values in cd/m^2, got values from {lowest:g} to {highest:g}")
    if 0 < highest <= 1:
        warn_user(
            "luminance: expected absolute values in cd/m^2, got none above 1; multiply relative values by the luminance"
            " of the display's white"
        )
    elif lowest < 0 or highest > _HIGHEST:
        warn_user("luminance: negative values, and values above 10000 cd/m^2, are clamped to [0.005, 10000]")
