"""Help of the recipes: their own options first, with the defaults of the YAML file; written without importing torch."""

from __future__ import annotations

import argparse
import ast
import re
import shutil
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from lpips_lightning.io.arguments import refuse, unknown_choice, unknown_option
from lpips_lightning.recipes.signatures import REQUIRED, Parameter, parameters, source_file, yaml_word

ACTIONS = {
    "fit": "train, and keep the best checkpoint",
    "validate": "scores on the validation data",
    "test": "scores on the test data",
    "predict": "write predictions",
    "tradeoff": "train with several losses: a table of scores and an image",
    "fast": "fit your own judgments in seconds, on features that are computed once",
}
"""Actions of recipes, with a line about each."""

LIGHTNING = ("fit", "validate", "test", "predict")
"""Actions of LightningCLI."""

_TRAINER = "pytorch_lightning.trainer.trainer:Trainer"
_CHECKPOINT = "pytorch_lightning.callbacks.model_checkpoint:ModelCheckpoint"
_NO_OPTIONS = {"model", "datamodule", "dataloaders", "train_dataloaders", "val_dataloaders"}  # of Trainer.fit and so on
_USUAL = {"trainer": ("max_epochs", "accelerator", "devices", "precision"), "": ("ckpt_path", "config")}
_MOST_CHOICES = 6
_SHORT = 80
_OTHER = (
    Parameter("config", "null", (), "FILE", "YAML file with options; --print_config prints them all"),
    Parameter("seed_everything", "null", (), "N", "Seed of random numbers; true for a random one, false for none"),
    Parameter("optimizer", "null", (), "CLASS", "Optimizer in place of the recipe's; see --optimizer.help CLASS"),
    Parameter("lr_scheduler", "null", (), "CLASS", "With --optimizer; see --lr_scheduler.help CLASS"),
    Parameter("force", "null", (), "", "Replace existing output files"),
)
PARTS = ("checkpoint", "scores", "gallery", "schedule", "images", "baseline")
"""What ``--without`` leaves out."""

_IMAGE_OPTIONS = (
    Parameter(
        "without",
        "[]",
        (),
        "NAME",
        "Callbacks to disable: checkpoint, scores, gallery, schedule, images, baseline",
        "*",
    ),
    Parameter("wandb", "null", ("offline", "online"), "MODE", "Also log to wandb: a folder, or your account", "?"),
)
_IMAGE_GROUPS = {
    "scores": ("lpips_lightning.callbacks.perceptual_scores:PerceptualScores",),
    "gallery": ("lpips_lightning.callbacks.sample_gallery:SampleGallery",),
    "schedule": ("lpips_lightning.callbacks.loss_schedule:LossSchedule",),
    "images": ("lpips_lightning.callbacks.image_writer:ImageWriter",),
    "checkpoint": (_CHECKPOINT,),
}
_LINKED = ("net_type", "data_range", "version", "calibrated", "weights", "calibration", "gray", "background", "resize")


@dataclass(frozen=True)
class Recipe:
    """What the options of a recipe are.

    Attributes:
        groups: By name, as in ``--model.scale``, the classes whose parameters they are: ``"module:Class"``.
        more: Options without a group.
        linked: Options that follow from others: ``"data.scale"``.
    """

    groups: Mapping[str, Sequence[str]]
    more: tuple[Parameter, ...] = ()
    linked: frozenset[str] = field(default_factory=frozenset)


@dataclass(frozen=True)
class Group:
    """Options of one name, as in ``--model.scale``; the name is empty for options without a group."""

    name: str
    title: str
    options: tuple[Parameter, ...]

    def option(self, parameter: Parameter) -> str:
        """The option of a parameter."""
        return f"--{self.name}.{parameter.name}" if self.name else f"--{parameter.name}"


def _self_supervised(model: str) -> Recipe:
    shared = "lpips_lightning.recipes.self_supervised"
    return Recipe(
        {
            "model": (f"lpips_lightning.recipes.{model}",),
            "data": (f"{shared}:PhotographCrops",),
            "checkpoint": (_CHECKPOINT,),
            "file": (f"{shared}:BackboneFile",),
        }
    )


def _image_recipe(model: str, data: str, *linked: str) -> Recipe:
    groups = {"model": (f"lpips_lightning.recipes.{model}",), "data": (f"lpips_lightning.recipes.{data}",)}
    callbacks = (f"gallery.{option}" for option in _LINKED)
    return Recipe({**groups, **_IMAGE_GROUPS}, _IMAGE_OPTIONS, frozenset([*linked, *callbacks]))


RECIPES = {
    "superresolution": _image_recipe(
        "superresolution:SuperResolution", "superresolution_data:SuperResolutionData", "data.scale"
    ),
    "colorization": _image_recipe(
        "colorization:Colorization", "colorization_data:ColorizationData", "data.working_size"
    ),
    "frame-interpolation": _image_recipe(
        "frame_interpolation:FrameInterpolation", "frame_interpolation_data:FrameInterpolationData"
    ),
    "deblurring": _image_recipe("deblurring:Deblurring", "deblurring_data:DeblurringData"),
    "autoencoder": _image_recipe("autoencoder:Autoencoder", "autoencoder_data:AutoencoderData"),
    "cnn-distortions": Recipe(
        {
            "model": ("lpips_lightning.recipes.cnn_distortions:CNNDistortions",),
            "data": ("lpips_lightning.recipes.cnn_distortions_data:CNNDistortionsData",),
            "checkpoint": (_CHECKPOINT,),
            "file": ("lpips_lightning.recipes.cnn_distortions:FamilyFile",),
        }
    ),
    "distillation": Recipe(
        {
            "model": ("lpips_lightning.recipes.distillation:Distillation",),
            "data": ("lpips_lightning.recipes.distillation_data:DistillationData",),
            "checkpoint": (_CHECKPOINT,),
            "file": ("lpips_lightning.recipes.distillation:StudentFile",),
        }
    ),
    "split-brain": _self_supervised("split_brain:SplitBrain"),
    "puzzle": _self_supervised("puzzle:Puzzle"),
    "bigan": _self_supervised("bigan:BiGAN"),
    "calibration": Recipe(
        {
            "model": ("lpips_lightning.calibration.module:PerceptualCalibration",),
            "data": (
                "lpips_lightning.data.datamodules:BAPPSDataModule",
                "lpips_lightning.data.datamodules:TripletDataModule",
            ),  # the first is the YAML file's
            "best": (_CHECKPOINT,),
            "last": (_CHECKPOINT,),
            "file": ("lpips_lightning.callbacks.calibration_file:CalibrationFile",),
        }
    ),
}
"""The recipes, by command."""


def recipes_with(group: str, option: str) -> list[str]:
    """Commands of the recipes that have an option.

    Args:
        group: Its group, such as ``"model"``.
        option: Its name in the group.
    """
    return [
        command
        for command, recipe in RECIPES.items()
        if any(option == one.name for place in recipe.groups[group] for one in parameters(place))
    ]


def wanted_help(args: Sequence[str], groups: Sequence[str]) -> str | None:
    """The group whose help a command line asks for.

    Args:
        args: A command line.
        groups: Names that ``--help=NAME`` takes.

    Returns:
        A name, empty for ``--help`` alone; None if no help is wanted.

    Raises:
        SystemExit: If the name is unknown.
    """
    for number, arg in enumerate(args):
        if arg in ("-h", "--help"):
            after = args[number + 1] if number + 1 < len(args) else ""
            return after if after in groups else ""
        if arg.startswith("--help="):
            name = arg.partition("=")[2]
            return name if name in groups else refuse(unknown_choice("--help", name, groups))
    return None


def show_help(command: str, args: Sequence[str], actions: Sequence[str]) -> bool:
    """Print the help of a recipe, if a command line asks for it.

    Args:
        command: The recipe's command.
        args: Command line after the command.
        actions: The recipe's actions.

    Returns:
        Whether it did; False too if the source of a class is missing, which LightningCLI then reads by importing it.
    """
    action = next((arg for arg in args if not arg.startswith("-")), None)
    if action is None and wanted_help(args, ()) is not None:
        sys.stdout.write(actions_page(command, actions))
        return True
    if action not in LIGHTNING or not any(arg == "-h" or arg.startswith("--help") for arg in args):
        return False
    try:
        groups = recipe_groups(RECIPES[command], action)
    except (LookupError, OSError, SyntaxError):
        return False
    name = wanted_help(args, group_names(groups))
    if name is not None:
        sys.stdout.write(options_page(f"lpips-lightning {command}", action, groups, name, recipe_defaults(command)))
    return name is not None


def check_options(command: str, action: str, args: Sequence[str], more: Collection[str] = ()) -> None:
    """Refuse options that a recipe does not have, before the long imports.

    Args:
        command: The recipe's command.
        action: One of `LIGHTNING`; another one that takes the options of ``fit`` too has its own in `more`.
        args: Command line after the action.
        more: Further options.

    Raises:
        SystemExit: If there is an unknown option.
    """
    try:
        groups = recipe_groups(RECIPES[command], action if action in LIGHTNING else "fit")
    except (LookupError, OSError, SyntaxError):  # then LightningCLI tells
        return
    several = [group.name for number, group in enumerate(groups) if group.name == groups[number - 1].name]
    names = [group.name for group in groups if group.name]
    known = {group.option(option) for group in groups for option in group.options} | set(more)
    without_nearest = {*(f"--{name}" for name in names), "--help", "--print_config"}
    for arg in args:
        option = arg.partition("=")[0].rstrip("+")
        parents = [option[: dot.start()] for dot in re.finditer(r"\.", option)]
        nested = any(parent in known or parent.removeprefix("--") in several for parent in parents)
        if option.startswith("--") and not nested and option not in known | without_nearest:
            refuse(unknown_option(option, known, f"lpips-lightning {command} {action}"))


def recipe_defaults(command: str) -> dict[str, Any]:
    """What the YAML file of a recipe says."""
    folder = source_file("lpips_lightning.recipes").parent
    text = (folder / f"{command.replace('-', '_')}.yaml").read_text(encoding="utf-8")
    return dict(yaml.safe_load(text))


def recipe_groups(recipe: Recipe, action: str) -> list[Group]:
    """The option groups of a recipe's action, in the order of the help.

    Args:
        recipe: The recipe.
        action: One of `LIGHTNING`.

    Raises:
        LookupError: If the source of a class is not found.
    """
    found = []
    for name, places in recipe.groups.items():
        for place in places:
            options = [one for one in parameters(place) if f"{name}.{one.name}" not in recipe.linked]
            found.append(Group(name, place.partition(":")[2], tuple(options)))
    found.append(Group("trainer", "Trainer of Lightning", tuple(parameters(_TRAINER))))
    of_action = [one for one in parameters(f"{_TRAINER}.{action}") if one.name not in _NO_OPTIONS]
    return [*found, Group("", "other", (*of_action, *_OTHER, *recipe.more))]


def group_names(groups: Sequence[Group]) -> list[str]:
    """Names that ``--help=NAME`` takes."""
    return [*dict.fromkeys(group.name or "other" for group in groups), "all"]


def actions_page(command: str, actions: Sequence[str]) -> str:
    """Help of a recipe without an action."""
    lines = [f"Usage: lpips-lightning {command} ACTION [OPTION VALUE ...]", "", "Actions:"]
    lines += [f"  {action:10}{ACTIONS[action]}" for action in actions]
    lines += ["", f"`lpips-lightning {command} {actions[0]} --help` lists the options."]
    return "\n".join(lines) + "\n"


def options_page(command: str, action: str, groups: Sequence[Group], name: str, defaults: Mapping[str, Any]) -> str:
    """Help of a recipe's action.

    Args:
        command: The command, as in ``"lpips-lightning superresolution"``.
        action: The action.
        groups: All of its options.
        name: The group to show in full, or ``"all"``; empty for the options that the YAML file sets, and those that
            are used most.
        defaults: What the YAML file says.
    """
    start = f"{command} {action}"
    parser = argparse.ArgumentParser(
        start,
        usage=f"{start} [OPTION VALUE ...]",
        description=f"{ACTIONS[action][0].upper()}{ACTIONS[action][1:]}.",
        epilog=_epilog(start, action, groups),
        formatter_class=_Formatter,
        add_help=False,
        allow_abbrev=False,
    )
    names: set[str] = set()
    for group in groups:
        if name in ("", "all", group.name or "other"):
            _add_group(parser, group, _shown(group, defaults, bool(name)), group.name in names, defaults)
            names.add(group.name)
    return parser.format_help()


def static_parser(command: str, action: str) -> argparse.ArgumentParser:
    """Parser with all options of a recipe's action, for shell completion.

    Args:
        command: The recipe's command.
        action: One of `LIGHTNING`.
    """
    parser = argparse.ArgumentParser(f"lpips-lightning {command} {action}")
    for group in recipe_groups(RECIPES[command], action):
        _add_group(parser, group, group.options, False, {})
    parser.add_argument("--print_config", action="store_true", help="print all options as YAML")
    return parser


class _Formatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34, width=min(max(shutil.get_terminal_size().columns, 72), 110))


def _of_group(group: Group, defaults: Mapping[str, Any]) -> Mapping[str, Any]:
    """The group's part of the YAML file."""
    if not group.name:
        return defaults
    part = defaults.get(group.name) or {}
    if "class_path" in part:
        return part.get("init_args", {}) if part["class_path"].rpartition(".")[2] == group.title else {}
    return part


def _shown(group: Group, defaults: Mapping[str, Any], in_full: bool) -> Iterator[Parameter]:
    """All options of a group, or those that help shows at first."""
    if in_full or group.name in ("model", "data"):
        yield from group.options
        return
    first = _USUAL.get(group.name, ())
    wanted = [*first, *(name for name in _of_group(group, defaults) if name not in first)]
    by_name = {option.name: option for option in group.options}
    yield from (by_name[name] for name in wanted if name in by_name)


def _add_group(
    parser: argparse.ArgumentParser,
    group: Group,
    options: Iterator[Parameter] | Sequence[Parameter],
    second: bool,
    defaults: Mapping[str, Any],
) -> None:
    shown = [option for option in options if group.option(option) not in parser._option_string_actions]
    defaults = _of_group(group, defaults)
    notes = [group.title] if group.name and group.title else []
    if second:
        notes.append(f"with --{group.name} {group.title}; the others are as above")
    elif len(shown) < len(group.options):
        notes.append(f"all {len(group.options)} options: --help={group.name or 'other'}")
    name = group.name or "other options"
    section = parser.add_argument_group(f"{name} ({'; '.join(notes)})" if notes else name)
    for option in shown:
        few = option.choices and len(option.choices) <= _MOST_CHOICES
        kind: dict[str, Any] = {"choices": option.choices} if few else {"metavar": option.value}
        kind = {"nargs": option.nargs, **kind} if option.value else {"action": "store_true"}
        about = _about(option, defaults, len(shown) < len(group.options)) or None
        section.add_argument(group.option(option), help=about, **kind)


def _about(option: Parameter, defaults: Mapping[str, Any], short: bool) -> str:
    """What the help says about an option, in words of YAML."""
    text = re.sub(r"\b(None|True|False)\b", lambda word: yaml_word(ast.literal_eval(word[0])), option.about)
    if text.startswith("Defaults to"):
        text = ""
    if short and len(text) > _SHORT:
        text = text.partition("; ")[0]
    default = yaml_word(defaults[option.name]) if option.name in defaults else option.default
    if default not in ("null", REQUIRED, "[]", "''") and not isinstance(defaults.get(option.name), dict):
        text += f" (default: {default})"
    return text[:1].upper() + text[1:].replace("%", "%%")


def _epilog(start: str, action: str, groups: Sequence[Group]) -> str:
    examples = ["--trainer.devices 2 --trainer.precision bf16-mixed"]
    if action == "fit":
        examples = ["--trainer.max_epochs 20 --ckpt_path last.ckpt   # resumes", *examples]
    lines = ["examples:", *(f"  {start} {example}" for example in examples), ""]
    lines += ["Values are YAML: --data.held_out '[a, b]', null, true. Options are typed in full."]
    lines += [f"More: --help=NAME for {', '.join(group_names(groups))}."]
    return "\n".join(lines)
