"""The options of the network, once for everything that has one: names, types, defaults and meaning."""

from __future__ import annotations

import difflib
import inspect
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, TypedDict, TypeVar, Unpack, cast, get_type_hints

from lpips_lightning.backbones.loading import WeightsSource
from lpips_lightning.images.preprocessing import Background, Gray

Precision = Literal["fp32", "bf16", "fp16", "autocast"]
_Owner = TypeVar("_Owner", bound=Callable[..., Any])


class LPIPSOptions(TypedDict, total=False):
    """Keyword options of the network, for ``**options: Unpack[LPIPSOptions]``.

    Attributes:
        version: ``"0.1"``, or ``"0.0"``: the first release, which did not scale its input.
        calibrated: False for the baseline: channels and layers summed with weight 1.
        weights: Of the backbone. None looks for torchvision's ImageNet weights in the folder that the environment
            variable ``LPIPS_LIGHTNING_WEIGHTS`` names, in torchvision's cache, and last downloads them. A path to a
            file or folder, or tensors by torchvision's names, are taken as they are. ``"random"`` draws Gaussian
            weights, seeded by PyTorch's global generator.
        calibration: None for the official one of `net_type` and `version`; else a path, or tensors ``(C,)`` by
            layer name.
        precision: Of the backbone; everything after it runs in float32. ``"fp32"`` also under autocast (float64 for
            float64 images), ``"bf16"``, ``"fp16"``, or ``"autocast"``: what the surrounding autocast says, float32
            without it.
        gray: None refuses gray images; ``"repeat"`` takes one channel for three; ``"per_channel"`` scores every channel
            of ``(N, C, H, W)`` as a gray image of its own, and averages.
        background: Color under the alpha channel of RGBA images: ``"white"``, ``"black"``, or three numbers on [0, 1].
            Alpha is on the same range as the colors. None refuses alpha.
        resize: ``(H, W)``, or one number for both: every image is brought to it, bilinear with antialiasing. It is part
            of the fingerprint, for it changes the number.
        frame_chunk: Images, or frames of videos, in one pass of the backbone at most; None for as many as memory
            allows.
        memory_budget: Bytes that a call may take above the weights and the images; a warning says when it cannot be
            kept. Images are then taken a few at a time, huge ones in stripes of rows, or in tiles for the gradient,
            which changes no number beyond rounding. None takes 128 MiB, or 256 with a gradient, on the CPU, where
            more saves no time, and four gigabytes on other devices or for the gradient of one image. It holds for
            pairs of images without `spatial`, `mask`, or a gradient by layer; `LPIPS.plan` says what a call will take.
        validate_args: Check pixel values. Shapes are always checked; under ``torch.compile`` values are not.
    """

    version: str
    calibrated: bool
    weights: WeightsSource
    calibration: WeightsSource
    precision: Precision
    gray: Gray | None
    background: Background | None
    resize: int | Sequence[int] | None
    frame_chunk: int | None
    memory_budget: int | None
    validate_args: bool


DEFAULTS: LPIPSOptions = {
    "version": "0.1",
    "calibrated": True,
    "weights": None,
    "calibration": None,
    "precision": "fp32",
    "gray": None,
    "background": None,
    "resize": None,
    "frame_chunk": None,
    "memory_budget": None,
    "validate_args": True,
}
"""What an option is where nobody says it."""


def with_options(
    others: Mapping[str, object] | None = None, **defaults: Unpack[LPIPSOptions]
) -> Callable[[_Owner], _Owner]:
    """Show every option, with its default and its meaning, where a class or function takes ``**options``.

    Type checkers understand ``Unpack[LPIPSOptions]``; `inspect.signature`, `help`, documentation and LightningCLI see
    the signature that this decorator spells out. jsonargparse by itself would not do: until 4.47 it drops such options
    or makes every one required, and later ones show no defaults and cannot link them.

    Args:
        others: Defaults of further parameters that ``**options`` takes.
        defaults: Those that differ from `DEFAULTS`.

    Returns:
        A decorator. In the docstring it puts the meanings in the place of the line ``options: ...``.

    Example:
        >>> @with_options(precision="autocast")
        ... def distance(x: float, **options: Unpack[LPIPSOptions]) -> float: ...
        >>> parameters = inspect.signature(distance).parameters
        >>> len(parameters), parameters["precision"].default, parameters["gray"].default
        (12, 'autocast', None)
    """
    hints = get_type_hints(LPIPSOptions)
    shown = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hints.get(name, Any))
        for name, default in {**DEFAULTS, **defaults, **(others or {})}.items()
    ]

    def spell_out(owner: _Owner) -> _Owner:
        function = cast(Any, owner).__init__ if isinstance(owner, type) else cast(Any, owner)
        signature = inspect.signature(function)
        own = [one for one in signature.parameters.values() if one.kind is not inspect.Parameter.VAR_KEYWORD]
        function.__signature__ = signature.replace(parameters=[*own, *shown])
        owner.__doc__ = _with_meanings(owner.__doc__)
        return owner

    return spell_out


def check_names(names: Iterable[str], owner: Callable[..., Any]) -> None:
    """Refuse options that do not exist.

    Args:
        names: Of the options given.
        owner: What they were given to.

    Raises:
        TypeError: With the nearest name that exists.
    """
    for name in names:
        if name not in DEFAULTS:
            near = difflib.get_close_matches(name, [*DEFAULTS, *inspect.signature(owner).parameters], 1)
            hint = f"did you mean {near[0]!r}?" if near else f"the network's are {', '.join(DEFAULTS)}"
            raise TypeError(f"{name}: expected the name of an option, got an unknown one; {hint}")


def check_not_given(options: LPIPSOptions, **defaults: Unpack[LPIPSOptions]) -> None:
    """Refuse options beside a network that is built, and has its own.

    Args:
        options: Those given. A configuration parser hands over all of them, which is the same as none if all are the
            defaults.
        defaults: Those that differ from `DEFAULTS`.

    Raises:
        ValueError: If there are any.
    """
    given: Mapping[str, object] = options
    if given.keys() == DEFAULTS.keys():
        usual: Mapping[str, object] = {**DEFAULTS, **defaults}
        given = {name: value for name, value in given.items() if value is not usual[name] and value != usual[name]}
    if given:
        raise ValueError(
            f"{next(iter(given))}: expected no options beside a built LPIPS in net_type, got {', '.join(given)}; "
            "the network has its own: give them to LPIPS(...)"
        )


def _with_meanings(text: str | None) -> str | None:
    if text is None or LPIPSOptions.__doc__ is None:  # python -OO
        return text
    meanings = textwrap.dedent(inspect.cleandoc(LPIPSOptions.__doc__).partition("Attributes:\n")[2]).strip()
    lines = text.split("\n")
    place = next(number for number, line in enumerate(lines) if line.lstrip().startswith("options: "))
    indent = lines[place].partition("options: ")[0]
    return "\n".join([*lines[:place], textwrap.indent(meanings, indent), *lines[place + 1 :]])
