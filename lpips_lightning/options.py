"""Options of the LPIPS network, shared by metric, loss, functional form and callbacks."""

from __future__ import annotations

import difflib
import functools
import inspect
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, TypedDict, TypeVar, Unpack, cast, get_type_hints

from lpips_lightning.backbones.loading import WeightsSource, version_name
from lpips_lightning.images.preprocessing import Background, Gray

Precision = Literal["fp32", "bf16", "fp16", "autocast"]
Convention = Literal["3dgs"]
_Owner = TypeVar("_Owner", bound=Callable[..., Any])


class LPIPSOptions(TypedDict, total=False):
    """Keyword options of the network, for ``**options: Unpack[LPIPSOptions]``.

    Attributes:
        version: ``"0.1"``, or ``"0.0"``: the first release, which does not normalize its input. The number 0.1, as YAML
            reads it, is understood too.
        calibrated: False for the baseline: all channels and layers have weight 1.
        weights: Backbone weights. None looks for torchvision's ImageNet weights in the folder named by the
            environment variable ``LPIPS_LIGHTNING_WEIGHTS``, then in torchvision's cache, then downloads them. Else a
            path to a file or folder, or tensors with torchvision's names. ``"random"`` draws Gaussian weights, seeded
            by PyTorch's global generator.
        calibration: None for the official calibration of `net_type` and `version`; else a path, or tensors ``(C,)`` by
            layer name.
        distance: How features become a distance. ``"lpips"``; ``"lpips_plus"``, which weights positions by the features
            of the reference `y` (TOPIQ); ``"mean_pool"`` and ``"style"``, which compare means and Gram matrices of
            whole feature maps (Kumar et al. 2022) and take no calibration; ``"dists"`` (Ding et al. 2020), for
            ``net_type="vgg"`` alone, with weights of its own; or a weighted sum on the same features,
            ``"lpips+0.5*style"``, or ``{"lpips": 1, "style": 0.5}``. It is part of the fingerprint. Only ``"lpips"``
            and ``"lpips_plus"`` have distance maps.
        convention: None measures images as they are declared. ``"3dgs"`` gives the number that tables of Gaussian
            splatting print: ``"vgg"`` on images on [0, 1] that are read as if they were on [-1, 1], without ``2x - 1``.
            Much code for NeRF converts its images: read how a table was made before you compare with it. It needs
            ``data_range=(0, 1)``; uint8 images, files and ``data_range=255`` are divided by 255.
        precision: Precision of the backbone; everything after it is float32. ``"fp32"``, also under autocast (float64
            for float64 images); ``"bf16"``; ``"fp16"``; or ``"autocast"``: the dtype of the surrounding autocast, and
            float32 without autocast.
        gray: None refuses gray images; ``"repeat"`` repeats one channel three times; ``"per_channel"`` scores every
            channel of ``(N, C, H, W)`` as a separate gray image and averages.
        background: Color under the alpha channel of RGBA images: ``"white"``, ``"black"``, or three values on [0, 1].
            Alpha has the same range as the colors. None refuses alpha.
        resize: ``(H, W)``, or one integer for both: every image is resized to it, bilinear with antialiasing. It
            changes the distance, so it is part of the fingerprint.
        frame_chunk: Most images, or frames of videos, per backbone pass; None for as many as memory allows.
        memory_budget: Limit in bytes for the estimated peak memory of a call, in addition to weights and images; a
            warning is issued if no plan fits. To stay within it, images run a few at a time, and large ones in row
            strips, or in tiles for the gradient; results differ by rounding only. None: on the CPU 128 MiB, or 256 MiB
            with a gradient (more saves no time); an image whose gradient needs more is evaluated whole within 4 GiB,
            else in tiles within 1.5 GiB; on other devices 4 GiB. Distances other than ``"lpips"`` take whole images. It
            applies to pairs of images without `spatial`, `mask`, or gradients of single layers; `LPIPS.plan` returns
            the plan of a call.
        validate_args: Check pixel values, and clamp rounding overshoot to the range; values are not checked under
            ``torch.compile``. Shapes are always checked.
    """

    version: str | float
    calibrated: bool
    weights: WeightsSource
    calibration: WeightsSource
    distance: str | Mapping[str, float]
    convention: Convention | None
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
    "distance": "lpips",
    "convention": None,
    "precision": "fp32",
    "gray": None,
    "background": None,
    "resize": None,
    "frame_chunk": None,
    "memory_budget": None,
    "validate_args": True,
}
"""Default of every option."""


def with_options(
    others: Mapping[str, object] | None = None, **defaults: Unpack[LPIPSOptions]
) -> Callable[[_Owner], _Owner]:
    """Spell out every option in signature and docstring of a class or function that takes ``**options``.

    Type checkers read ``Unpack[LPIPSOptions]``; `inspect.signature`, `help`, documentation and LightningCLI read the
    signature that this decorator sets. jsonargparse alone is not enough: up to 4.47 it drops these options or requires
    every one, and later versions show no defaults and cannot link them.

    Where there is a `net_type`, the keyword ``net`` is another name of it: `lpips` calls it so.

    Args:
        others: Defaults of further parameters that ``**options`` takes.
        defaults: Defaults that differ from `DEFAULTS`.

    Returns:
        A decorator. It replaces the line ``options: ...`` of the docstring by the documentation of all options.

    Example:
        >>> @with_options(precision="autocast")
        ... def distance(x: float, **options: Unpack[LPIPSOptions]) -> float: ...
        >>> parameters = inspect.signature(distance).parameters
        >>> len(parameters), parameters["precision"].default, parameters["gray"].default
        (14, 'autocast', None)
    """
    hints = get_type_hints(LPIPSOptions)
    parameters = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hints.get(name, Any))
        for name, default in {**DEFAULTS, **defaults, **(others or {})}.items()
    ]

    def decorate(owner: _Owner) -> _Owner:
        function = cast(Any, owner).__init__ if isinstance(owner, type) else cast(Any, owner)
        signature = inspect.signature(function)
        own = [one for one in signature.parameters.values() if one.kind is not inspect.Parameter.VAR_KEYWORD]
        owner.__doc__ = _with_option_docs(owner.__doc__)
        if "net_type" in signature.parameters:
            function = _accepting_net(function, signature)
        function.__signature__ = signature.replace(parameters=[*own, *parameters])
        if not isinstance(owner, type):
            return cast(_Owner, function)
        cast(Any, owner).__init__ = function
        return owner

    return decorate


def _accepting_net(function: Callable[..., Any], signature: inspect.Signature) -> Any:
    @functools.wraps(function)
    def accepting(*args: Any, **kwargs: Any) -> Any:
        if "net" in kwargs:
            net = kwargs.pop("net")
            if "net_type" in signature.bind_partial(*args, **kwargs).arguments:
                raise TypeError(f"net: expected net_type or net, which is another name of it, got both; net={net!r}")
            kwargs["net_type"] = net
        return function(*args, **kwargs)

    return accepting


def check_names(names: Iterable[str], owner: Callable[..., Any]) -> None:
    """Refuse unknown options.

    Args:
        names: Names of the given options.
        owner: Class or function that they were given to.

    Raises:
        TypeError: With the nearest name that exists.
    """
    for name in names:
        if name not in DEFAULTS:
            near = difflib.get_close_matches(name, [*DEFAULTS, *inspect.signature(owner).parameters], 1)
            hint = f"did you mean {near[0]!r}?" if near else f"options of the network: {', '.join(DEFAULTS)}"
            raise TypeError(f"{name}: expected the name of an option, got an unknown one; {hint}")


def check_not_given(options: LPIPSOptions, **defaults: Unpack[LPIPSOptions]) -> None:
    """Refuse options together with a built network, which has its own.

    Args:
        options: Given options. A configuration parser passes all of them; all at their defaults count as none.
        defaults: Defaults that differ from `DEFAULTS`.

    Raises:
        ValueError: If there are any.
    """
    given: Mapping[str, object] = options
    if given.keys() == DEFAULTS.keys():
        usual: Mapping[str, object] = {**DEFAULTS, **defaults}
        given = {**given, "version": version_name(options["version"])}
        given = {name: value for name, value in given.items() if value is not usual[name] and value != usual[name]}
    if given:
        raise ValueError(
            f"{next(iter(given))}: expected no options with a built network in net_type, got {', '.join(given)}; "
            "pass them to LPIPS(...)"
        )


def _with_option_docs(text: str | None) -> str | None:
    if text is None or LPIPSOptions.__doc__ is None:  # python -OO
        return text
    documentation = textwrap.dedent(inspect.cleandoc(LPIPSOptions.__doc__).partition("Attributes:\n")[2]).strip()
    lines = text.split("\n")
    place = next(index for index, line in enumerate(lines) if line.lstrip().startswith("options: "))
    indent = lines[place].partition("options: ")[0]
    return "\n".join([*lines[:place], textwrap.indent(documentation, indent), *lines[place + 1 :]])
