"""Options shared by several commands: the network and the device."""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING, Any

from lpips_lightning.io.arguments import NETS

if TYPE_CHECKING:
    import torch

    from lpips_lightning.options import LPIPSOptions

_VERSIONS = ("0.1", "0.0")
_PRECISIONS = ("fp32", "bf16", "fp16")  # not "autocast": a command runs outside any autocast context
_LIGHTNINGS_PRECISIONS = {"32-true": "fp32", "bf16-mixed": "bf16", "16-mixed": "fp16"}
_CONVENTIONS = ("3dgs",)
_COLORS = ("white", "black")
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}


def add_network_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--net`` and the network's options to `parser`."""
    group = parser.add_argument_group("the network")
    add_weight_options(group)
    add = group.add_argument
    add(
        "--precision",
        choices=_PRECISIONS,
        type=_precision,
        default="fp32",
        metavar="P",
        help="precision of the backbone: fp32 (default), bf16, fp16",
    )
    add(
        "--convention",
        choices=_CONVENTIONS,
        metavar="C",
        help="3dgs: vgg on [0, 1] images read as [-1, 1], as in 3DGS tables",
    )
    add("--gray", action="store_true", help="accept gray images, repeated to three channels")
    add("--background", metavar="COLOR", help="color behind transparent pixels: white, black, or R,G,B on [0, 1]")
    add("--resize", metavar="PX", help="resize all images first: 256, or HEIGHTxWIDTH")
    add("--frame-chunk", type=int, metavar="N", help="maximum number of images per backbone pass")
    add("--memory-budget", metavar="B", help="bytes besides weights and images: 500000000, 512M or 2G")
    add_device_option(parser)


def _precision(text: str) -> str:
    """The precision, which may be spelled as Lightning's Trainer has it."""
    return _LIGHTNINGS_PRECISIONS.get(text, text)


def add_weight_options(group: argparse._ArgumentGroup) -> None:
    """Add ``--net`` and the options that choose its weights to a group of a parser."""
    add = group.add_argument
    add(
        "--net",
        choices=NETS,
        default="alex",
        metavar="NET",
        help="alex (default), vgg, squeeze, alex-st, vgg-st; offline: embedded, embedded-vgg",
    )
    add("--version", choices=_VERSIONS, default="0.1", metavar="V", help="0.1 (default) or 0.0")
    add("--baseline", action="store_true", help="uncalibrated LPIPS (the baseline of the paper)")
    add("--weights", metavar="PATH", help="backbone weights: a file or a folder")
    add("--calibration", metavar="FILE", help="your own calibration file")
    add(
        "--distance",
        default="lpips",
        metavar="D",
        help="lpips, lpips_plus, mean_pool, style, dists, or a sum such as lpips+0.5*style",
    )


def require_network(options: argparse.Namespace) -> None:
    """Download the backbone of ``--net`` if it is not on this machine.

    Args:
        options: The parsed command line.

    Raises:
        WeightsError: If it cannot be downloaded. DISTS and the 3DGS convention have no network that ships.
    """
    from lpips_lightning.backbones.offline import require_backbone

    is_vgg_alone = getattr(options, "distance", "lpips") == "dists" or getattr(options, "convention", None) is not None
    require_backbone(options.net, "--net", options.weights, instead="" if is_vgg_alone else None)


def add_device_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--device`` to `parser`."""
    parser.add_argument(
        "--device", default="auto", metavar="NAME", help="auto (default: cuda or mps if available), cpu, cuda:1, ..."
    )


def network_options(options: argparse.Namespace) -> LPIPSOptions:
    """Keyword arguments of `LPIPS` from the options that `add_network_options` added, except ``options.net``.

    Args:
        options: The parsed command line.

    Raises:
        ValueError: If a value cannot be parsed, or options exclude each other.
    """
    if options.convention is not None and options.net != "vgg":
        raise ValueError(f"convention: expected --net vgg with this option, got --net {options.net}")
    if options.convention is not None and options.baseline:
        raise ValueError("convention: expected no --baseline with this option, got both")
    return {
        **weight_options(options),
        "convention": options.convention,
        "precision": options.precision,
        "gray": "repeat" if options.gray else None,
        "background": None if options.background is None else _color(options.background),
        "resize": None if options.resize is None else _size(options.resize),
        "frame_chunk": _positive(options.frame_chunk, "frame-chunk"),
        "memory_budget": None if options.memory_budget is None else _bytes(options.memory_budget),
    }


def weight_options(options: argparse.Namespace) -> LPIPSOptions:
    """As `network_options`, of the options that `add_weight_options` added.

    Args:
        options: The parsed command line.

    Raises:
        ValueError: If options exclude each other.
    """
    if options.baseline and options.calibration is not None:
        raise ValueError(f"calibration: expected no --baseline with this option, got both ({options.calibration!r})")
    return {
        "version": options.version,
        "calibrated": not options.baseline,
        "weights": options.weights,
        "calibration": options.calibration,
        "distance": options.distance,
    }


def choose_device(name: str) -> torch.device:
    """The torch device called `name`.

    Args:
        name: ``"auto"`` (CUDA if available, else MPS, else the CPU), or a name that torch knows, such as ``"cuda:1"``.

    Raises:
        ValueError: If this machine has no such device.

    Example:
        >>> choose_device("cpu")
        device(type='cpu')
    """
    import torch

    try:
        device = torch.device(_best_device() if name == "auto" else name)
        torch.zeros(1, device=device).cpu()
    except Exception as error:  # backends raise RuntimeError, AssertionError, NotImplementedError, ...
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"device: expected auto, cpu, cuda or another available device, got {name!r} ({reason})"
        ) from error
    return device


def _best_device() -> str:
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _positive(value: int | None, name: str) -> int | None:
    if value is not None and value < 1:
        raise ValueError(f"{name}: expected a positive number, got {value}")
    return value


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"([1-9]\d{0,4})(?:x([1-9]\d{0,4}))?", text)
    if found is None:
        raise ValueError(f"resize: expected a number of pixels, or HEIGHTxWIDTH, got {text!r}")
    return int(found[1]), int(found[2] or found[1])


def _color(text: str) -> Any:
    if text in _COLORS:
        return text
    try:
        parts = [float(part) for part in text.split(",")]
    except ValueError:
        parts = []
    if len(parts) != 3 or not all(0 <= part <= 1 for part in parts):
        raise ValueError(f"background: expected white, black, or R,G,B on [0, 1], got {text!r}")
    return parts


def _bytes(text: str) -> int:
    found = re.fullmatch(r"([1-9]\d{0,15})([KMG]?)", text, re.IGNORECASE)
    if found is None:
        raise ValueError(f"memory-budget: expected a number of bytes, or one with K, M or G, got {text!r}")
    return int(found[1]) * _UNITS[found[2].upper()]
