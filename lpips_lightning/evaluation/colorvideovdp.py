"""ColorVideoVDP (extra ``cvvdp``) as a method of the evaluation: the successor of the paper's HDR-VDP by its authors.

Mantiuk et al., "ColorVideoVDP: A visual difference predictor for image, video and display distortions", ACM
Transactions on Graphics 43(4), 2024, doi:10.1145/3658144. It predicts a quality in just-objectionable differences
(JOD), 10 for equal images, of images as a display emits them. It is not symmetric: masking is by the reference.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

DISPLAY = "standard_4k"
"""Its default display model: 30 inch, 4K, 200 cd/m^2 in an office, seen from twice its height."""


def color_video_vdp(display: str = DISPLAY) -> tuple[Callable[[Tensor, Tensor], Tensor], str]:
    """Distance ``10 - JOD`` of images as a display shows them.

    Args:
        display: Name of a display model of the package with an sRGB input.

    Returns:
        Function of references and distorted images ``(N, 3, H, W)`` on [0, 1], which returns ``(N,)``; and a sentence
        that says package, version and display.

    Raises:
        ModuleNotFoundError: If the package cvvdp is not installed.
        ValueError: If it has no such display model, or one that takes HDR input.
    """
    by_device = {"cpu": _metric(display, torch.device("cpu"))}
    cpu = by_device["cpu"]

    def distance(x: Tensor, y: Tensor) -> Tensor:
        metric = by_device.setdefault(str(x.device), cpu)
        if metric.device != x.device:
            metric = by_device[str(x.device)] = _metric(display, x.device)
        step = 1 if x.device.type == "mps" else max(1, len(x))  # the package has no batches there
        parts = [
            metric.predict(test[:, :, None], reference[:, :, None], dim_order="BCFHW")[0].reshape(len(test))
            for test, reference in zip(y.split(step), x.split(step), strict=True)
        ]
        return 10 - torch.cat(parts)

    version = cpu.get_info_string().strip('"')
    return distance, f"10 - JOD of still images, {version}; Mantiuk et al. 2024, doi:10.1145/3658144"


def _metric(display: str, device: torch.device) -> Any:
    package = _package()
    from pycvvdp.vq_metric import vq_exception

    try:
        metric = package.cvvdp(display_name=display, quiet=True, device=device)
    except (vq_exception, RuntimeError) as error:
        raise ValueError(f"cvvdp: expected a display model of the package cvvdp, got {display!r}: {error}") from error
    eotf = getattr(metric.display_photometry, "EOTF", None)
    if eotf != "sRGB":
        raise ValueError(
            f"cvvdp: expected a display model with sRGB input, such as {DISPLAY}, got {display!r} with {eotf}"
        )
    return metric


def _package() -> Any:
    if find_spec("pycvvdp") is None:
        raise ModuleNotFoundError(
            'cvvdp: expected the package cvvdp, which is not installed: pip install "lpips_lightning[cvvdp]"'
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # of its dependencies' strings
        import pycvvdp
    return pycvvdp
