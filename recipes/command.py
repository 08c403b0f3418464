"""Runs recipes as subcommands: LightningCLI with the recipe's YAML file as defaults.

Conventions of the image recipes:

- Each file has one flat LightningModule and imports no other recipe. Its data module is in ``<recipe>_data.py``, its
  defaults in ``<recipe>.yaml``.
- The model's arguments are plain values, so a checkpoint loads with ``weights_only=True`` and contains the settings.
``pixel_weight, loss_weight, loss_net, loss_calibrated, loss_weights, lr`` mean the same in all recipes. With
  ``loss_weight=0`` there is no perceptual loss, and its backbone is not needed.
- ``self.perceptual``, a `PerceptualLoss` or None, is created in ``setup("fit")``, so that a checkpoint loads without
  backbone weights.
- ``validation_step`` and ``test_step`` return ``{"input": ..., "preds": ..., "target": ...}``, images on [0, 1].
  `PerceptualScores` logs ``val/lpips``, ``val/psnr`` and ``val/ssim``; the model logs the scores of its task.
- ``predict_step`` returns images, and the last element of its batch holds their names; `ImageWriter` writes them.
- ``main`` calls `run_recipe` with a subclass of `ImageRecipeCLI`.
"""

import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import yaml
from jsonargparse import ActionConfigFile  # type: ignore[attr-defined]
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.utilities import rank_zero_only
from typing_extensions import override

from lpips_lightning.backbones.offline import packaged_net, require_backbone
from lpips_lightning.callbacks import LossSchedule, PerceptualScores, SampleGallery
from lpips_lightning.callbacks.image_writer import ImageWriter
from lpips_lightning.io.atomic import check_output_path, has_results, new_version
from lpips_lightning.io.checkpoint_io import AtomicCheckpointIO
from lpips_lightning.recipes.help_pages import PARTS, group_names, options_page, wanted_help
from lpips_lightning.recipes.interruption import Interruption, RandomNumbers, SaveLast
from lpips_lightning.recipes.parser import RecipeParser, parser_groups
from lpips_lightning.recipes.run_folder import SaveRunConfig
from lpips_lightning.recipes.run_history import RunHistory
from lpips_lightning.recipes.run_report import RunReport, command_line, options_with, print_line
from lpips_lightning.runs.loggers import Wandb, wandb_logger

_CALLBACKS: dict[str, type[Callback]] = {
    "checkpoint": ModelCheckpoint,
    "scores": PerceptualScores,
    "gallery": SampleGallery,
    "schedule": LossSchedule,
    "images": ImageWriter,
}
_LOGGERS = ("pytorch_lightning", "lightning.pytorch", "lightning_fabric", "lightning.fabric")
_LINKED_OPTIONS = (
    *("net_type", "data_range", "version", "calibrated", "weights", "calibration"),
    *("gray", "background", "resize"),
)


class RecipeCLI(LightningCLI):
    """LightningCLI as a subcommand of ``lpips-lightning``.

    It adds what a run needs from start to end: `AtomicCheckpointIO`, a folder of its own (`run_folder`), a checkpoint
    and the command that resumes after Ctrl-C (`interruption`), and scores beside the baseline, files and the next
    command at its end (`run_report`).

    Attributes:
        reports: Whether to print these.
        args: The command line after the subcommand.
        networks: Options that name a network, and options of its backbone weights. A missing backbone is downloaded
            before anything is built, or an error names the option.
        offline: Network that ships, for the first of `networks`.
        outputs: Options that name an output file or folder, and the subcommand that writes it.
    """

    reports = True
    args: Sequence[str] = ()
    networks: tuple[tuple[str, str], ...] = ()
    offline = "embedded"
    outputs: tuple[tuple[str, str], ...] = ()

    @override
    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_default_arguments_to_parser(parser)
        parser.add_argument("--force", action="store_true", help="replace existing output files")

    @override
    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand] if self.subcommand else self.config
        for option, subcommand in self.outputs:
            if self.subcommand == subcommand and config.get(option) is not None:
                config[option] = self._output(config, option)
        for option, weights in self.needed_networks():
            require_backbone(config.get(option), f"--{option}", config.get(weights), self.packaged(option, config))

    def packaged(self, option: str, config: Any) -> str:
        """The network that ships, for an option of `networks`; for scores, not that of the loss."""
        loss_net = config.get("model.loss_net") if option == "scores.net_type" else None
        return packaged_net(str(config.get(option)), other_than=loss_net)

    def _output(self, config: Any, option: str) -> str:
        """A given output path, or a new version of the recipe's default one if that exists."""
        path: str = config[option]
        resumes = self.subcommand == "fit" and config.get("ckpt_path") is not None
        if config["force"] or resumes or not has_results(path):
            return path
        if path != self._parser(self.subcommand).get_defaults().get(option):
            check_output_path(path, f"--{option}", folder=Path(path).is_dir(), replace=False)
        new = str(new_version(path))
        _print_once(f"{path} exists: writing to {new}")
        return new

    def needed_networks(self) -> tuple[tuple[str, str], ...]:
        """Those of `networks` that the subcommand uses."""
        return self.networks

    @override
    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        header = [f"pytorch_lightning=={version('pytorch-lightning')}"]
        parser = RecipeParser(**{"dump_header": header, **kwargs})
        parser.add_argument("-c", "--config", action=ActionConfigFile, help="YAML file with options")
        return parser

    @override
    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self._show_help(parser, args)
        if isinstance(parser, RecipeParser) and args:
            parser.of_action = self._subcommand_parsers.get(args[0])
        # The base class warns if args are passed while sys.argv has arguments, which is always so for a subcommand.
        self.config = parser.parse_args(args)
        self.args = list(args[1:])

    def _parse_ckpt_path(self) -> None:
        """Take the model's options from the checkpoint, as Lightning 2.6 does, but for those on the command line."""
        read = getattr(super(), "_parse_ckpt_path", None)
        names = {arg.partition("=")[0][2:] for arg in self.args if arg.startswith("--model.")}
        before = self.config.get(self.config.get("subcommand"), {})
        typed = {name: before[name] for name in names if name in before}
        if read is not None:
            read()
        given: dict[str, Any] = {}
        for name, value in typed.items():
            *groups, last = name.split(".")
            part = given
            for group in groups:
                part = part.setdefault(group, {})
            part[last] = value
        if given and read is not None:
            self.config = self.parser.parse_object({self.config["subcommand"]: given}, self.config)

    def _show_help(self, parser: LightningArgumentParser, args: list[str]) -> None:
        """Print the help of an action and leave, if the command line asks for it."""
        action = args[0] if args and args[0] in self._subcommand_parsers else None
        if action is None or not any(arg == "-h" or arg.startswith("--help") for arg in args):
            return
        options = self._subcommand_parsers[action]
        groups = parser_groups(options)
        name = wanted_help(args, group_names(groups))
        if name is not None:
            defaults = yaml.safe_load(Path(options.default_config_files[0]).read_text(encoding="utf-8"))
            sys.stdout.write(options_page(parser.prog, action, groups, name, defaults))
            raise SystemExit(0)

    @override
    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        trainer_options = self._get(self.config_init, "trainer")
        chooses_logging = trainer_options["log_every_n_steps"] is None and not trainer_options["barebones"]
        if chooses_logging:
            kwargs["log_every_n_steps"] = 1  # until the number of batches is known
        if trainer_options["enable_model_summary"] is None:
            kwargs["enable_model_summary"] = False
        loggers = _as_list(kwargs.get("logger", trainer_options["logger"]))
        if self.subcommand == "predict" and loggers and all(type(one) is CSVLogger for one in loggers):
            kwargs["logger"] = False  # nothing is logged, and its folder would be empty
        trainer: Any = super().instantiate_trainer(**kwargs)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # the default
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        self.history = RunHistory(self.advice(), chooses_logging=chooses_logging)
        self.interruption = Interruption()
        trainer.callbacks[:0] = [self.history, RandomNumbers()]
        trainer.callbacks += [SaveLast(), self.interruption]  # last, so that its checkpoints are complete
        return trainer

    def fit(self, **options: Any) -> None:
        """Train, and report."""
        RunReport(self).fit(options)

    def validate(self, **options: Any) -> None:
        """Validate, and report."""
        RunReport(self).evaluate("validate", options)

    def test(self, **options: Any) -> None:
        """Test, and report."""
        RunReport(self).evaluate("test", options)

    def predict(self, **options: Any) -> None:
        """Predict, and report."""
        RunReport(self).predict(options)

    def trained(self) -> str:
        """What is trained, for the first line of a training."""
        return f"{sum(one.numel() for one in self.model.parameters() if one.requires_grad):,} parameters"

    def reference_models(self) -> dict[str, LightningModule]:
        """Models whose scores are shown beside those of the trained one, by label; the last may be `model` itself."""
        return {}

    def advice(self) -> str:
        """What to try if training does not improve the scores."""
        lr = self._get(self.config_init, "model").hparams.get("lr")
        rates = f" (now {lr:g}), ten times higher or lower" if isinstance(lr, float) else ""
        return f"Things to try: another --model.lr{rates}; more data, or other data."

    def written_files(self) -> list[tuple[Path, str]]:
        """Files of a training beside checkpoints and logs, and what they are."""
        return []

    def next_commands(self, checkpoint: Path) -> list[str]:
        """What to do with a trained model: command lines."""
        data = options_with(self.args, "--config", "-c", "--data")
        return [command_line(self.parser.prog, "test", ["--ckpt_path", str(checkpoint), *data])]


class ImageRecipeCLI(RecipeCLI):
    """Adds the callbacks of image recipes, and ``--wandb``.

    ``--checkpoint.*`` (ModelCheckpoint), ``--scores.*`` (`PerceptualScores`), ``--gallery.*`` (`SampleGallery`, by the
    same network as the scores), ``--schedule.*`` (`LossSchedule`) and ``--images.*`` (`ImageWriter`) configure
    callbacks, which ``--without`` disables. Scores and gallery are also off in ``predict``, which has no targets, and
    the schedule is off for ``loss_weight`` 0.

    ``--wandb`` adds a wandb logger, offline into a folder, or with ``--wandb online`` to the user's account.

    Attributes:
        untrained: Label of the untrained model in the trade-off table.
        pixel: Label of the pixel loss there, such as ``"L1"``.
        detail: Side of the detail in the table's picture, in units of the image's shorter side.
        adversarial_weight: Its value in the table's rows with a discriminator, if the options have 0.
    """

    untrained = "untrained"
    pixel = "pixel"
    detail = 0.25
    adversarial_weight = 0.5
    offline = "embedded-vgg"  # not the network of the recipes' losses, which would be biased
    networks: tuple[tuple[str, str], ...] = (
        ("scores.net_type", "scores.weights"),
        ("model.loss_net", "model.loss_weights"),
    )
    outputs = (("images.out", "predict"),)

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        for name, callback in _CALLBACKS.items():
            parser.add_class_arguments(callback, name, fail_untyped=False, instantiate=False)
        for option in _LINKED_OPTIONS:
            parser.link_arguments(f"scores.{option}", f"gallery.{option}")
        parser.add_argument(
            "--without",
            nargs="*",
            choices=list(PARTS),
            default=[],
            help="callbacks to disable, or baseline: its scores beside the results",
            metavar="NAME",
        )
        parser.add_argument(
            "--wandb",
            nargs="?",
            const="offline",
            choices=get_args(Wandb),
            help="also log to wandb: offline into outputs/wandb, or online to your account",
        )

    @override
    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        # Created here and not by the parser: disabled callbacks must not load their backbone.
        callbacks = [
            callback(**_built(self._get(self.config_init, name).as_dict()))
            for name, callback in _CALLBACKS.items()
            if name not in self._disabled()
        ]
        trainer = self._get(self.config_init, "trainer")
        kwargs["callbacks"] = [*_as_list(trainer["callbacks"]), *callbacks]
        mode = self._get(self.config, "wandb")
        if mode is not None:
            logger = wandb_logger(self.parser.prog.split()[-1], mode)
            kwargs["logger"] = [*_as_list(trainer["logger"]), logger]
        return super().instantiate_trainer(**kwargs)

    @override
    def needed_networks(self) -> tuple[tuple[str, str], ...]:
        unused = set()
        if {"scores", "gallery"} <= self._disabled():
            unused.add("scores.net_type")
        if self.subcommand != "fit" or not self._get(self.config, "model").get("loss_weight"):
            unused.add("model.loss_net")
        return tuple(pair for pair in self.networks if pair[0] not in unused)

    @override
    def reference_models(self) -> dict[str, LightningModule]:
        return {} if "baseline" in self._disabled() else {self.untrained: self.model}

    @override
    def next_commands(self, checkpoint: Path) -> list[str]:
        scores = options_with(self.args, "--config", "-c", "--data", "--scores", "--without")
        given = ["--ckpt_path", str(checkpoint)]
        commands = [command_line(self.parser.prog, "test", [*given, *scores])]
        if "predict_folder" in (self._get(self.config, "data") or {}):  # a data module of the user's may lack it
            commands.append(command_line(self.parser.prog, "predict", [*given, "--data.predict_folder", "FOLDER"]))
        return commands

    def _disabled(self) -> set[str]:
        names = set(self._get(self.config, "without") or [])
        if self.subcommand == "predict":
            names |= {"scores", "gallery"}
        model, schedule = self._get(self.config, "model"), self._get(self.config, "schedule")
        if self.subcommand == "fit" and model.get("loss_weight") == 0 and schedule["final"] is None:
            names.add("schedule")
        return names


def run_recipe(
    cli: type[RecipeCLI], model: type, data: type, file: str, args: list[str] | None = None, **options: Any
) -> RecipeCLI | None:
    """Run a recipe's command line.

    Args:
        cli: CLI class of the recipe.
        model: LightningModule of the recipe.
        data: Data module of the recipe.
        file: ``__file__`` of the recipe, ours or your own; the YAML file of the same name has the defaults.
        args: Command line without the program name; None takes ``sys.argv``.
        options: Options of `LightningCLI`.

    Returns:
        The CLI after the run; None after ``tradeoff`` of an image recipe (see `recipes.tradeoff`).
    """
    args = sys.argv[1:] if args is None else args
    if args[:1] == ["tradeoff"] and issubclass(cli, ImageRecipeCLI):
        from lpips_lightning.recipes.tradeoff import run_tradeoff

        run_tradeoff(cli, model, data, file, args[1:])
        return None
    options = {"save_config_callback": SaveRunConfig, **options}
    subcommands = LightningCLI.subcommands()
    if args and args[0] in subcommands:
        # Create only the needed parser: each of the four takes 0.1 s.
        needed = {args[0]: subcommands[args[0]]}
        cli = type(cli.__name__, (cli,), {"subcommands": staticmethod(lambda: needed)})
    command = program(file)
    description = f"`{command} fit --help` lists the training options."
    if cli.networks:
        option = f"--{cli.networks[0][0]} {cli.offline}"
        description += f" Offline: {option}, or backbones from `lpips-lightning weights fetch`."
    if issubclass(cli, ImageRecipeCLI):
        description += f" `{command} tradeoff` trains with several losses and prints a table of scores."
    defaults = {"default_config_files": [str(Path(file).with_suffix(".yaml"))]}
    with quiet_lightning():
        return cli(
            model,
            data,
            args=args,
            parser_kwargs={"prog": command, "description": description} | dict.fromkeys(cli.subcommands(), defaults),
            **options,
        )


def command_name(file: str) -> str:
    """Subcommand of a recipe file: ``frame-interpolation`` for ``frame_interpolation.py``."""
    return Path(file).stem.replace("_", "-")


def program(file: str) -> str:
    """How a recipe is called: ``lpips-lightning NAME``, or ``python FILE`` for a file of the user's."""
    own = Path(file).resolve().parent != Path(__file__).resolve().parent
    return f"python {Path(file).name}" if own else f"lpips-lightning {command_name(file)}"


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Suppress Lightning's info messages and dataloader warnings; restores log levels and warning filters."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            if logger.getEffectiveLevel() >= logging.INFO:  # else somebody debugs
                logger.setLevel(max(logger.level, logging.WARNING))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The '.*_dataloader' does not have many workers")
            warnings.filterwarnings("ignore", ".*LeafSpec")  # pytorch-lightning 2.6.6 on torch 2.15
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@rank_zero_only
def _print_once(line: str) -> None:
    print_line(line)


def _built(options: dict[str, Any]) -> dict[str, Any]:
    """Options with a network in place of its class and arguments, which older versions of jsonargparse leave."""
    network = options.get("net_type")
    if not isinstance(network, dict):
        return options
    module, _, name = network["class_path"].rpartition(".")
    return {**options, "net_type": getattr(import_module(module), name)(**network.get("init_args", {}))}


def _as_list(configured: Any) -> list[Any]:
    """Callbacks or loggers from YAML as a list; empty for True, False and null."""
    if isinstance(configured, bool) or configured is None:
        return []
    return configured if isinstance(configured, list) else [configured]
