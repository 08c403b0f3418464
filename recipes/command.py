"""How a recipe becomes a subcommand: LightningCLI, with the YAML beside the recipe's file as defaults."""

from pathlib import Path
from typing import Any

from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from typing_extensions import override

__all__ = ["RecipeCLI", "run_recipe"]


class RecipeCLI(LightningCLI):
    """LightningCLI as a subcommand of ``lpips-lightning``."""

    @override
    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        # The base class warns when arguments are handed over while the program has some, as a subcommand's always are.
        self.config = parser.parse_args(args)


def run_recipe(
    cli: type[RecipeCLI], model: type, data: type, file: str, args: list[str] | None, **options: Any
) -> None:
    """Run a recipe's command line.

    Args:
        cli: The recipe's own.
        model: Its LightningModule.
        data: Its data module.
        file: Of the recipe; the YAML of the same name holds the defaults, and the name is that of the subcommand.
        args: Command line without the program's name; None takes ``sys.argv``.
        options: Of `LightningCLI`.
    """
    defaults = {"default_config_files": [str(Path(file).with_suffix(".yaml"))]}
    cli(
        model,
        data,
        args=args,
        parser_kwargs={"prog": f"lpips-lightning {Path(file).stem}"}
        | dict.fromkeys(LightningCLI.subcommands(), defaults),
        save_config_kwargs={"overwrite": True},
        **options,
    )
