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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.plugins.io import TorchCheckpointIO
from typing_extensions import override

from lpips_lightning.callbacks import LossSchedule, PerceptualScores, SampleGallery
from lpips_lightning.callbacks.image_writer import ImageWriter
from lpips_lightning.io.checkpoint_io import AtomicCheckpointIO
from lpips_lightning.io.console import Console
from lpips_lightning.recipes.help_pages import group_names, options_page, wanted_help
from lpips_lightning.recipes.parser import RecipeParser, parser_groups

Wandb = Literal["offline", "online"]

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
    """LightningCLI as a subcommand of ``lpips-lightning``, with `AtomicCheckpointIO`."""

    @override
    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self._show_help(parser, args)
        # The base class warns if args are passed while sys.argv has arguments, which is always so for a subcommand.
        self.config = parser.parse_args(args)

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
        trainer = super().instantiate_trainer(**kwargs)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # the default
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        return trainer


class ImageRecipeCLI(RecipeCLI):
    """Adds the callbacks of image recipes, and ``--wandb``.

    ``--checkpoint.*`` (ModelCheckpoint), ``--scores.*`` (`PerceptualScores`), ``--gallery.*`` (`SampleGallery`, by the
    same network as the scores), ``--schedule.*`` (`LossSchedule`) and ``--images.*`` (`ImageWriter`) configure
    callbacks, which ``--without`` disables. Scores and gallery are also off in ``predict``, which has no targets, and
    the schedule is off for ``loss_weight`` 0.

    ``--wandb`` adds a wandb logger, offline into a folder, or with ``--wandb online`` to the user's account.

    Attributes:
        untrained: Label of the untrained model in the trade-off table.
    """

    untrained = "untrained"

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        for name, callback in _CALLBACKS.items():
            parser.add_class_arguments(callback, name, fail_untyped=False, instantiate=False)
        for option in _LINKED_OPTIONS:
            parser.link_arguments(f"scores.{option}", f"gallery.{option}")
        parser.add_argument(
            "--without", nargs="*", choices=list(_CALLBACKS), default=[], help="callbacks to disable", metavar="NAME"
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
            callback(**self._get(self.config_init, name).as_dict())
            for name, callback in _CALLBACKS.items()
            if name not in self._disabled()
        ]
        trainer = self._get(self.config_init, "trainer")
        kwargs["callbacks"] = [*_as_list(trainer["callbacks"]), *callbacks]
        mode = self._get(self.config, "wandb")
        if mode is not None:
            logger = _wandb_logger(self.parser.prog.split()[-1], mode)
            kwargs["logger"] = [*_as_list(trainer["logger"]), logger]
        return super().instantiate_trainer(**kwargs)

    def after_fit(self) -> None:
        """Print the path of the best checkpoint."""
        checkpoint = self.trainer.checkpoint_callback
        if isinstance(checkpoint, ModelCheckpoint) and checkpoint.best_model_path and self.trainer.is_global_zero:
            score = "" if checkpoint.best_model_score is None else f", {checkpoint.best_model_score:.4g}"
            best = f"Best {checkpoint.monitor}{score}: {checkpoint.best_model_path}"
            Console().print(best, soft_wrap=True, highlight=False, markup=False)

    def _disabled(self) -> set[str]:
        names = set(self._get(self.config, "without") or [])
        if self.subcommand == "predict":
            names |= {"scores", "gallery"}
        model, schedule = self._get(self.config, "model"), self._get(self.config, "schedule")
        if self.subcommand == "fit" and model.get("loss_weight") == 0 and schedule["final"] is None:
            names.add("schedule")
        return names


def run_recipe(
    cli: type[RecipeCLI], model: type, data: type, file: str, args: list[str] | None, **options: Any
) -> RecipeCLI | None:
    """Run a recipe's command line.

    Args:
        cli: CLI class of the recipe.
        model: LightningModule of the recipe.
        data: Data module of the recipe.
        file: File of the recipe; its stem names the subcommand, and the YAML file of the same name has the defaults.
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
    subcommands = LightningCLI.subcommands()
    if args and args[0] in subcommands:
        # Create only the needed parser: each of the four takes 0.1 s.
        needed = {args[0]: subcommands[args[0]]}
        cli = type(cli.__name__, (cli,), {"subcommands": staticmethod(lambda: needed)})
    command = f"lpips-lightning {command_name(file)}"
    description = f"`{command} fit --help` lists the training options."
    if issubclass(cli, ImageRecipeCLI):
        description += f" `{command} tradeoff` trains with several losses and prints a table of scores."
    defaults = {"default_config_files": [str(Path(file).with_suffix(".yaml"))]}
    return cli(
        model,
        data,
        args=args,
        parser_class=RecipeParser,
        parser_kwargs={"prog": command, "description": description} | dict.fromkeys(cli.subcommands(), defaults),
        save_config_kwargs={"overwrite": True},
        **options,
    )


def command_name(file: str) -> str:
    """Subcommand of a recipe file: ``frame-interpolation`` for ``frame_interpolation.py``."""
    return Path(file).stem.replace("_", "-")


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Suppress Lightning's info messages and dataloader warnings; restores log levels and warning filters."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The '.*_dataloader' does not have many workers")
            warnings.filterwarnings("ignore", ".*LeafSpec")  # pytorch-lightning 2.6.6 on torch 2.15
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _as_list(configured: Any) -> list[Any]:
    """Callbacks or loggers from YAML as a list; empty for True, False and null."""
    if isinstance(configured, bool) or configured is None:
        return []
    return configured if isinstance(configured, list) else [configured]


def _wandb_logger(project: str, mode: Wandb) -> Any:
    import wandb
    from packaging.version import Version
    from pytorch_lightning.loggers import WandbLogger

    # Before 0.20, wandb hangs when it logs a table offline (github.com/wandb/wandb/issues/8957).
    old = mode == "offline" and Version(wandb.__version__) < Version("0.20")
    options: dict[str, Any] = {"settings": wandb.Settings(allow_offline_artifacts=False)} if old else {}
    Path("outputs").mkdir(exist_ok=True)
    # Pass mode too: `offline` sets an environment variable, which wandb reads only once per process.
    return WandbLogger(project=project, save_dir="outputs", offline=mode == "offline", mode=mode, **options)
