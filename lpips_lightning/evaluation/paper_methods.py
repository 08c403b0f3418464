"""The methods of the paper's comparison, by group: which can be measured here, and what the others need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from lpips_lightning.backbones.definition import BACKBONES
from lpips_lightning.data.judges import is_label
from lpips_lightning.evaluation.methods import Method, parse_method
from lpips_lightning.evaluation.table5 import TABLE_5
from lpips_lightning.images.hints import EVALUATION
from lpips_lightning.io.image_decoding import printable
from lpips_lightning.io.tensor_files import read_record
from lpips_lightning.network import LPIPS
from lpips_lightning.weights import read_tensors
from lpips_lightning.weights.lookup import FOLDER_VARIABLE

LOW_LEVEL, UNSUPERVISED, SELF_SUPERVISED = "low-level", "random and unsupervised", "self-supervised"
SUPERVISED, CALIBRATED, OTHER_WEIGHTS = "supervised", "LPIPS", "other weights"
GROUPS = (LOW_LEVEL, UNSUPERVISED, SELF_SUPERVISED, SUPERVISED, CALIBRATED, OTHER_WEIGHTS)
"""Groups of methods, in the order of the paper's figure 4; the last one is not in the paper."""

DEFAULT_METHODS = (
    *("l2", "ssim", "fsim"),
    *("squeeze:random", "alex:random", "vgg:random"),
    *("squeeze:baseline", "alex:baseline", "vgg:baseline"),
    *("squeeze", "alex", "vgg", "embedded", "embedded-vgg"),
)

# The task that trained a network, as its file names it: the paper's row.
_TASKS = {
    "kmeans": "K-means",
    "split-brain": "Split-Brain",
    "puzzle": "Puzzle",
    "bigan": "BiGAN",
    "watching": "Watching",
    **{name: name.capitalize() for name in ("context", "colorization", "inpainting", "egomotion", "audio", "tracking")},
}
_ALEXNETS = ("alex", "caffe-alexnet")  # the paper has these tasks for no other network
_CLASSICAL = {
    "l2": ("mean squared difference of RGB on [0, 1]", "torch"),
    "l2-lab": ("mean squared difference of CIELAB / 100", "kornia"),
    "psnr": ("negative PSNR of RGB on [0, 1]", "torch"),
    "ssim": ("1 - SSIM of RGB on [0, 1], Gaussian window 11 x 11, sigma 1.5", "torchmetrics"),
    "ms-ssim": ("1 - MS-SSIM of RGB on [0, 1]", "torchmetrics"),
    "fsim": ("1 - FSIMc of RGB on [0, 1]", "piq"),
}


@dataclass(frozen=True)
class Choice:
    """A method that was asked for.

    Attributes:
        name: Name in figures and tables.
        method: Name for `parse_method`, or a backbone file.
        group: One of `GROUPS`; None to derive it from the method.
    """

    name: str
    method: str
    group: str | None = None


@dataclass(frozen=True)
class PaperMethod:
    """A method of the comparison.

    Attributes:
        method: The distance, under its name in figures and tables.
        group: One of `GROUPS`.
        fingerprint: What is computed: of a network its fingerprint, of others definition and package.
        is_judge: Whether it is the metric that judged the data.
    """

    method: Method
    group: str
    fingerprint: str
    is_judge: bool = False

    @property
    def name(self) -> str:
        """Name in figures and tables."""
        return self.method.name

    @property
    def label(self) -> str:
        """Name in figures, with a note if it is the judge."""
        return f"{self.name} (the judge)" if self.is_judge else self.name


@dataclass(frozen=True)
class LeftOut:
    """A method that cannot be measured on this machine.

    Attributes:
        name: The method.
        reason: What is missing.
        command: The command that gets it.
    """

    name: str
    reason: str
    command: str


def choose(text: str, group: str | None = None) -> Choice:
    """Read ``METHOD`` or ``NAME=METHOD``.

    Args:
        text: A name for `parse_method`, or a ``.safetensors`` file of a backbone that says its architecture; before it,
            a name for figures and tables.
        group: One of `GROUPS`; None to derive it from the method.

    Example:
        >>> [choose(text).name for text in ("alex:baseline", "BiGAN=runs/encoder.safetensors", "alex:weights=a/b.pt")]
        ['alex:baseline', 'BiGAN', 'alex:weights=b']
    """
    head, equals, rest = text.partition("=")
    if equals and head and rest and ":" not in head and not Path(text).is_file():
        return Choice(head, rest, group)
    option, equals, file = text.partition("=")
    name = f"{option}={Path(file).stem}" if equals else Path(text).stem if text.endswith(".safetensors") else text
    return Choice(printable(name), text, group)


def load(choices: Sequence[Choice]) -> tuple[list[PaperMethod], list[LeftOut]]:
    """Build the methods that this machine can measure, ordered by group.

    Args:
        choices: The methods that were asked for.

    Returns:
        The methods, and those that are left out. Nothing is downloaded.

    Raises:
        ValueError: If a method is unknown, two have one name, or none is left.
        WeightsError: If a given file is missing, damaged or of another architecture.
    """
    choices = list(dict.fromkeys(choices))
    _check_names([choice.name for choice in choices])
    left_out = [found for choice in choices if (found := _missing(choice)) is not None]
    names = {one.name for one in left_out}
    methods = [_load(choice) for choice in choices if choice.name not in names]
    if not methods:
        commands = "; ".join(dict.fromkeys(one.command for one in left_out))
        raise ValueError(f"methods: expected one that this machine can measure, got none; {commands}")
    return sorted(methods, key=lambda one: GROUPS.index(one.group)), left_out


def mark_judge(methods: Sequence[PaperMethod], judge: str) -> list[PaperMethod]:
    """Mark the metric that judged generated data.

    Args:
        methods: The methods.
        judge: The judge in ``made.json``: the fingerprint of a network, or the name of a function.
    """
    return [replace(one, is_judge=judge in (one.fingerprint, one.name)) for one in methods]


def _check_names(names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"methods: expected different names, got {name!r} twice; NAME=METHOD gives a name")
        if is_label(name):
            raise ValueError(f"methods: expected a name that is not one of judges, got {name!r}")


def _missing(choice: Choice) -> LeftOut | None:
    """What the method needs that this machine lacks; a name that is unknown is an error of `parse_method`."""
    net_type, _, variant = choice.method.partition(":")
    if choice.method == "fsim" and find_spec("piq") is None:
        return LeftOut(choice.name, "the package piq is not installed", 'pip install "lpips_lightning[piq]"')
    needs_default = variant in ("", "baseline") or variant.startswith("calibration=")
    if net_type in BACKBONES and needs_default and not BACKBONES[net_type].is_available:
        return LeftOut(
            choice.name,
            f"the ImageNet weights of {net_type} are not on this machine",
            f"lpips-lightning weights fetch --net {net_type} --to DIR, then set {FOLDER_VARIABLE}=DIR",
        )
    return None


def _load(choice: Choice) -> PaperMethod:
    is_file = ":" not in choice.method and choice.method.endswith(".safetensors")
    method = _backbone_file(choice) if is_file else parse_method(choice.method)
    file = choice.method if is_file else choice.method.partition("=")[2]
    task = _TASKS.get(str(read_record(file).get("mode", "")).lower()) if file.endswith(".safetensors") else None
    named = {row.lower(): row for row in (*TABLE_5, *_TASKS.values())}.get(choice.name.lower())
    paper = method.paper or named or (task if _is_alexnet(method) else None)
    group = choice.group or _group(choice.method, method, named or task)
    return PaperMethod(replace(method, name=choice.name, paper=paper), group, _fingerprint(choice.method, method))


def _backbone_file(choice: Choice) -> Method:
    """The backbone in a file that says its architecture, uncalibrated unless the file has a calibration."""
    net_type = read_record(choice.method).get("net_type")
    if not isinstance(net_type, str):
        raise ValueError(
            f"methods: expected a file that says its architecture, got none in {choice.method!r}; write"
            f" NET:weights={choice.method} with the name of a network"
        )
    if net_type in BACKBONES:
        return parse_method(f"{net_type}:weights={choice.method}")
    calibrated = any(name.startswith("calibration.") for name in read_tensors(Path(choice.method).expanduser()))
    net = LPIPS(net_type, weights=choice.method, calibrated=calibrated)
    net.images = replace(net.images, hints=EVALUATION)
    return Method(choice.name, net, None)


def _is_alexnet(method: Method) -> bool:
    return isinstance(method.distance, LPIPS) and method.distance.net_type in _ALEXNETS


def _group(name: str, method: Method, task: str | None) -> str:
    if not isinstance(method.distance, LPIPS):
        return LOW_LEVEL
    variant = name.partition(":")[2]
    if method.distance.specification.calibrated:
        return CALIBRATED
    if variant == "baseline":
        return SUPERVISED
    if variant.startswith(("random", "kmeans")) or task == _TASKS["kmeans"]:
        return UNSUPERVISED
    return SELF_SUPERVISED if task in _TASKS.values() else OTHER_WEIGHTS


def _fingerprint(name: str, method: Method) -> str:
    if isinstance(method.distance, LPIPS):
        return method.distance.fingerprint
    definition, package = _CLASSICAL[name]
    return f"{name}: {definition}, {package} {version(package)}"


def groups_of(methods: Sequence[PaperMethod]) -> Mapping[str, list[PaperMethod]]:
    """The methods by group, without empty groups."""
    found = {group: [one for one in methods if one.group == group] for group in GROUPS}
    return {group: members for group, members in found.items() if members}
