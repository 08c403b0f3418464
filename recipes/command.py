"""How a recipe becomes a subcommand: LightningCLI, with the YAML beside the recipe's file as defaults.

What the recipes that make images have in common, so that who knows one of them knows all:

- A file holds one flat LightningModule and is read from top to bottom; it imports no other recipe. Its data are in
  ``<recipe>_data.py``, its defaults in ``<recipe>.yaml``.
- The model's arguments are plain values, so a checkpoint loads with ``weights_only=True`` and brings its settings
  along. ``pixel_weight, loss_weight, loss_net, loss_calibrated, loss_weights, lr`` mean the same everywhere. At
  ``loss_weight=0`` there is no perceptual loss, and no backbone is looked for.
- ``self.perceptual``, a `PerceptualLoss` or None, is made in ``setup("fit")``: a checkpoint then loads where there are
  no backbone weights.
- ``validation_step`` and ``test_step`` return ``{"input": ..., "preds": ..., "target": ...}``, images on [0, 1].
  `PerceptualScores` makes ``val/lpips``, ``val/psnr`` and ``val/ssim`` of them; the model logs what is its task's own.
- ``predict_step`` returns images, and the last part of its batch are their names; `ImageWriter` writes them.
- ``main`` calls `run_recipe` with a subclass of `ImageRecipeCLI`.
"""

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

from pytorch_lightning import Callback, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.plugins.io import TorchCheckpointIO
from rich.console import Console
from typing_extensions import override

from lpips_lightning.callbacks import LossSchedule, PerceptualScores, SampleGallery
from lpips_lightning.callbacks.image_writer import ImageWriter
from lpips_lightning.io.checkpoint_io import AtomicCheckpointIO

Wandb = Literal["offline", "online"]

_CALLBACKS: dict[str, type[Callback]] = {
    "checkpoint": ModelCheckpoint,
    "scores": PerceptualScores,
    "gallery": SampleGallery,
    "schedule": LossSchedule,
    "images": ImageWriter,
}
_LOGGERS = ("pytorch_lightning", "lightning.pytorch", "lightning_fabric", "lightning.fabric")
_JUDGE = ("net_type", "data_range", "version", "calibrated", "weights", "calibration", "gray", "background", "resize")


class RecipeCLI(LightningCLI):
    """LightningCLI as a subcommand of ``lpips-lightning``; its checkpoints are `AtomicCheckpointIO`."""

    @override
    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        # The base class warns when arguments are handed over while the program has some, as a subcommand's always are.
        self.config = parser.parse_args(args)

    @override
    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        trainer = super().instantiate_trainer(**kwargs)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # nobody asked for another
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        return trainer


class ImageRecipeCLI(RecipeCLI):
    """Adds the callbacks of recipes that make images, and wandb by one flag.

    ``--checkpoint.*`` (ModelCheckpoint), ``--scores.*`` (`PerceptualScores`), ``--gallery.*`` (`SampleGallery`, by the
    same network as the scores), ``--schedule.*`` (`LossSchedule`), ``--images.*`` (`ImageWriter`), all of them on
    unless ``--without`` names them. Left out by themselves are the judges in ``predict``, which has no targets, and the
    schedule of a model whose ``loss_weight`` is 0.

    ``--wandb`` logs to wandb beside the other loggers: into a folder, or with ``--wandb online`` to the user's account.

    Attributes:
        untrained: What the model is before it is trained, for the trade-off table.
    """

    untrained = "untrained"

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        for name, callback in _CALLBACKS.items():
            parser.add_class_arguments(callback, name, fail_untyped=False, instantiate=False)
        for option in _JUDGE:
            parser.link_arguments(f"scores.{option}", f"gallery.{option}")
        parser.add_argument(
            "--without", nargs="*", choices=list(_CALLBACKS), default=[], help="callbacks to leave out", metavar="NAME"
        )
        parser.add_argument(
            "--wandb",
            nargs="?",
            const="offline",
            choices=get_args(Wandb),
            help="log to wandb too, into outputs/wandb (offline, sent by nobody but you) or to your account (online)",
        )

    @override
    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        # Made here and not by the parser: what is left out must not look for its backbone.
        made = [
            callback(**self._get(self.config_init, name).as_dict())
            for name, callback in _CALLBACKS.items()
            if name not in self._left_out()
        ]
        trainer = self._get(self.config_init, "trainer")
        kwargs["callbacks"] = [*_as_list(trainer["callbacks"]), *made]
        mode = self._get(self.config, "wandb")
        if mode is not None:
            logger = _wandb_logger(self.parser.prog.split()[-1], mode)
            kwargs["logger"] = [*_as_list(trainer["logger"]), logger]
        return super().instantiate_trainer(**kwargs)

    def after_fit(self) -> None:
        """Say where the best checkpoint is."""
        checkpoint = self.trainer.checkpoint_callback
        if isinstance(checkpoint, ModelCheckpoint) and checkpoint.best_model_path and self.trainer.is_global_zero:
            score = "" if checkpoint.best_model_score is None else f", {checkpoint.best_model_score:.4g}"
            best = f"Best {checkpoint.monitor}{score}: {checkpoint.best_model_path}"
            Console().print(best, soft_wrap=True, highlight=False, markup=False)

    def _left_out(self) -> set[str]:
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
        cli: The recipe's own.
        model: Its LightningModule.
        data: Its data module.
        file: Of the recipe; the YAML of the same name holds the defaults, and the name is that of the subcommand.
        args: Command line without the program's name; None takes ``sys.argv``.
        options: Of `LightningCLI`.

    Returns:
        What ran; None after ``tradeoff``, which recipes of images have (see `recipes.tradeoff`).
    """
    args = sys.argv[1:] if args is None else args
    if args[:1] == ["tradeoff"] and issubclass(cli, ImageRecipeCLI):
        from lpips_lightning.recipes.tradeoff import run_tradeoff

        run_tradeoff(cli, model, data, file, args[1:])
        return None
    every = LightningCLI.subcommands()
    if args and args[0] in every:
        # Its parser alone: each of the four takes a tenth of a second to make.
        asked = {args[0]: every[args[0]]}
        cli = type(cli.__name__, (cli,), {"subcommands": staticmethod(lambda: asked)})
    command = f"lpips-lightning {command_name(file)}"
    description = f"`{command} fit --help` lists the options of training."
    if issubclass(cli, ImageRecipeCLI):
        description += f" `{command} tradeoff` trains under several losses and makes a table."
    defaults = {"default_config_files": [str(Path(file).with_suffix(".yaml"))]}
    return cli(
        model,
        data,
        args=args,
        parser_kwargs={"prog": command, "description": description} | dict.fromkeys(cli.subcommands(), defaults),
        save_config_kwargs={"overwrite": True},
        **options,
    )


def command_name(file: str) -> str:
    """The subcommand of a recipe's file: ``frame-interpolation`` of ``frame_interpolation.py``."""
    return Path(file).stem.replace("_", "-")


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Without Lightning's greetings and its advice on loaders; log levels and warning filters are restored."""
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
    """Callbacks or loggers of the YAML; True, False and null are none."""
    if isinstance(configured, bool) or configured is None:
        return []
    return configured if isinstance(configured, list) else [configured]


def _wandb_logger(project: str, mode: Wandb) -> Any:
    import wandb
    from packaging.version import Version
    from pytorch_lightning.loggers import WandbLogger

    # wandb 0.19 asks its server before it logs a table, offline too, and for ever (github.com/wandb/wandb/issues/8957).
    old = mode == "offline" and Version(wandb.__version__) < Version("0.20")
    options: dict[str, Any] = {"settings": wandb.Settings(allow_offline_artifacts=False)} if old else {}
    Path("outputs").mkdir(exist_ok=True)
    # By mode too: `offline` speaks through the environment, which wandb reads once a process.
    return WandbLogger(project=project, save_dir="outputs", offline=mode == "offline", mode=mode, **options)
