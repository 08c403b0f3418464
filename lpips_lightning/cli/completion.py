"""The command ``lpips-lightning completion``: scripts for bash, zsh, fish and tcsh, made by `shtab`."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from importlib.util import find_spec
from typing import Any

_DESCRIPTION = """Print the script that makes a shell complete lpips-lightning's commands and options.

bash:  lpips-lightning completion bash > ~/.local/share/bash-completion/completions/lpips-lightning
zsh:   lpips-lightning completion zsh > DIR/_lpips-lightning      (DIR in fpath, before compinit)
fish:  lpips-lightning completion fish > ~/.config/fish/completions/lpips-lightning.fish
tcsh:  lpips-lightning completion tcsh > ~/.lpips-lightning.tcsh  (source it in ~/.tcshrc)
"""


def parser() -> argparse.ArgumentParser:
    """What the command takes."""
    made = argparse.ArgumentParser(
        "lpips-lightning completion",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("shell", choices=["bash", "zsh", "fish", "tcsh"], help="for which")
    return made


def main(args: list[str] | None = None) -> None:
    """Print a completion script.

    Args:
        args: Command line without the program's name; None takes ``sys.argv``.

    Raises:
        ModuleNotFoundError: If shtab is not installed.
    """
    shell = parser().parse_args(args).shell
    if find_spec("shtab") is None:
        raise ModuleNotFoundError('shtab is missing: pip install "lpips_lightning[completion]"')
    import shtab

    whole = whole_parser()
    _complete_files(whole, shtab.FILE)
    sys.stdout.write(shtab.complete(whole, shell) + "\n")


def whole_parser() -> argparse.ArgumentParser:
    """One parser of all subcommands, made without importing torch; of recipes, their actions and files."""
    from lpips_lightning.cli.main import COMMANDS

    whole = argparse.ArgumentParser("lpips-lightning")
    whole.add_argument("--version", action="store_true", help="the version")
    commands = whole.add_subparsers(metavar="COMMAND")
    for name, command in COMMANDS.items():
        if command.parser:
            module, _, function = command.parser.partition(":")
            made = getattr(import_module(module), function)()
            commands.add_parser(
                name, help=command.summary, description=made.description, parents=[made], add_help=False
            )
        else:
            _add_actions(commands.add_parser(name, help=command.summary), command.actions)
    return whole


def _add_actions(parser: argparse.ArgumentParser, names: tuple[str, ...]) -> None:
    """Actions of a recipe, with what all of them take; its other options are LightningCLI's, which needs torch."""
    from lpips_lightning.cli.main import RECIPE_ACTIONS

    if not names:
        return
    actions = parser.add_subparsers(metavar="ACTION")
    for name in names:
        action = actions.add_parser(name, help=f"{parser.prog.split()[-1]}: {name}")
        if name in RECIPE_ACTIONS:
            action.add_argument("--config", help="YAML with options")
            action.add_argument("--ckpt_path", help="checkpoint")
            action.add_argument("--print_config", action="store_true", help="print all options as YAML")


def _complete_files(parser: argparse.ArgumentParser, files: Any) -> None:
    """Let every value that is a text be completed as a file: most are, and it is what a shell does on its own."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                _complete_files(inner, files)
        elif action.nargs != 0 and action.choices is None and action.type is None:
            action.complete = files  # type: ignore[attr-defined]  # shtab's
