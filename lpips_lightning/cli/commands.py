"""The command ``lpips-lightning``: dispatch to subcommands; user errors become one line on standard error."""

from __future__ import annotations

import difflib
import itertools
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from lpips_lightning.cli.launch import COMMAND
from lpips_lightning.io.console import Console
from lpips_lightning.io.streams import flush_standard_streams, has_lost_reader

TRACEBACK_VARIABLE = "LPIPS_LIGHTNING_TRACEBACK"
_READER_LEFT = 141  # the code of SIGPIPE


@dataclass(frozen=True)
class Command:
    """A subcommand.

    Attributes:
        summary: Its line on the help screen.
        target: ``"module:function"``, imported lazily and called with the remaining arguments.
        parser: ``"module:function"`` that builds the argparse parser without importing torch.
        actions: Actions of a recipe; the ``"module:function"`` that builds an action's parser from the recipe's name,
            or nothing for the actions of LightningCLI.
    """

    summary: str
    target: str
    parser: str = ""
    actions: Mapping[str, str] = field(default_factory=dict)


def _with_parser(summary: str, module: str) -> Command:
    return Command(summary, f"lpips_lightning.{module}:main", f"lpips_lightning.{module}:parser")


_RECIPES = "lpips_lightning.recipes"
_TRADEOFF, _FAST = (f"{_RECIPES}.command_lines:{name}_parser" for name in ("tradeoff", "fast"))


def _recipe(summary: str, module: str, **more: str) -> Command:
    actions = dict.fromkeys(("fit", "validate", "test", "predict"), "")  # LightningCLI's
    return Command(summary, f"{_RECIPES}.{module}:main", actions={**actions, **more})


COMMANDS = {
    "compare": _with_parser("LPIPS of two images, videos or folders, or of all pairs", "cli.compare"),
    "demo": Command(
        "superresolution in minutes: a table and an image",
        f"{_RECIPES}.demo:main",
        f"{_RECIPES}.command_lines:demo_parser",
    ),
    "new": _with_parser("a recipe as a project of your own, to change", "cli.new"),
    "superresolution": _recipe("enlarge images", "superresolution", tradeoff=_TRADEOFF),
    "colorization": _recipe("colorize images", "colorization", tradeoff=_TRADEOFF),
    "frame-interpolation": _recipe("insert frames", "frame_interpolation", tradeoff=_TRADEOFF),
    "autoencoder": _recipe("compress images", "autoencoder", tradeoff=_TRADEOFF),
    "deblurring": _recipe("sharpen images", "deblurring", tradeoff=_TRADEOFF),
    "cnn-distortions": _recipe("CNN distortions", "cnn_distortions"),
    "distillation": _recipe("small backbone", "distillation"),
    "split-brain": _recipe("backbone by colors", "split_brain"),
    "puzzle": _recipe("backbone by puzzles", "puzzle"),
    "bigan": _recipe("backbone by a GAN", "bigan"),
    "calibration": _recipe("train on judgments", "calibration", fast=_FAST),
    "bapps": _with_parser("evaluate on human judgments; generate a judged data set", "cli.bapps"),
    "judge": _with_parser("people's judgments on a local page; report, ranking", "cli.judge"),
    "paper": _with_parser("the paper's figures and tables as one HTML page", "cli.paper"),
    "correlate": _with_parser("LPIPS against mean opinion scores: SRCC, PLCC, KRCC", "cli.correlate"),
    "kmeans": _with_parser("learn a backbone without labels, by stacked k-means", "cli.kmeans"),
    "export": _with_parser("LPIPS as one file: ONNX, TorchScript, pt2", "cli.export"),
    "weights": _with_parser("list, download, check or convert weight files", "cli.weights"),
    "completion": _with_parser("shell completion for bash, zsh, fish and tcsh", "cli.completion"),
}
"""Subcommands by name, in the order of the help screen."""


def main(args: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        args: Command line without the program's name; None takes ``sys.argv``.

    Returns:
        The exit code: 0, 2 for bad input, 130 after an interrupt, 141 if a reader closed its pipe early; a subcommand
        may exit with another code.
    """
    try:
        try:
            code = _dispatch(args)
        finally:
            flush_standard_streams()  # the interpreter's own flush at exit only prints an ignored exception
    except BrokenPipeError as error:
        return _broken_pipe(error)
    except OSError as error:  # the disk of a redirected output is full
        if os.environ.get(TRACEBACK_VARIABLE):
            raise
        _discard_output(sys.stdout)
        return _fail(str(error))
    return _READER_LEFT if code == 0 and has_lost_reader(sys.stdout) else code


def _dispatch(args: list[str] | None) -> int:
    name, *rest = (sys.argv[1:] if args is None else args) or ["--help"]
    if name in ("-h", "--help"):
        _help()
        return 0
    if name in ("-V", "--version"):
        from lpips_lightning import __version__

        Console().print(f"lpips_lightning {__version__}", highlight=False)
        return 0
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, 1)
        hint = f"did you mean {near[0]!r}?" if near else "lpips-lightning --help lists them"
        return _fail(f"expected a subcommand, got {name!r}; {hint}")
    return _run(name, rest)


def _run(name: str, args: list[str]) -> int:
    COMMAND.set((name, *args))
    try:
        _check_early(name, args)
        with _own_warnings_as_notes():
            _function(COMMANDS[name].target)(args)
    except KeyboardInterrupt:
        return 130
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):  # Lightning's Trainer exits with code 1
            return 130
        raise
    except BrokenPipeError:
        raise
    except Exception as error:
        if os.environ.get(TRACEBACK_VARIABLE) or not _is_user_error(error):
            raise
        return _fail(_as_typed(error, name, args))
    return 0


@contextmanager
def _own_warnings_as_notes() -> Iterator[None]:
    """Print this package's warnings as one line each, without the place in its source."""
    package = sys.modules[__name__.partition(".")[0]]
    before, own = warnings.formatwarning, tuple(map(str, package.__path__))

    def as_note(message: Any, category: type[Warning], filename: str, lineno: int, line: str | None = None) -> str:
        if category is UserWarning and filename.startswith(own):
            return f"lpips-lightning: note: {message}\n"
        return before(message, category, filename, lineno, line)

    warnings.formatwarning = as_note
    try:
        yield
    finally:
        warnings.formatwarning = before


def _as_typed(error: Exception, name: str, args: list[str]) -> str:
    """The error with options as they are typed in place of arguments in Python."""
    from lpips_lightning.cli.as_typed import as_typed, parser_options, raising_group, recipe_options

    command, action = COMMANDS[name], args[0] if args else ""
    place, of_recipe = command.parser or command.actions.get(action), [name] if command.actions else []
    options = parser_options(_function(place)(*of_recipe), args) if place else []
    if not command.actions or action == "fast":
        return as_typed(str(error), options)
    from lpips_lightning.recipes.help_pages import LIGHTNING, RECIPES, recipe_defaults, recipe_groups

    groups = recipe_groups(RECIPES[name], action if action in LIGHTNING else "fit")
    options += recipe_options(groups, recipe_defaults(name), args)
    return as_typed(str(error), options, raising_group(error, {one.title: one.name for one in groups}))


def _check_early(name: str, args: list[str]) -> None:
    """Print help or refuse mistakes before the long imports of a recipe; other commands parse before they import.

    Raises:
        SystemExit: After help, and after a mistake.
    """
    command = COMMANDS[name]
    if not command.target.startswith(_RECIPES):
        return
    if command.parser:
        _function(command.parser)().parse_args(args)
        return
    from lpips_lightning.io.arguments import refuse, unknown_choice
    from lpips_lightning.recipes.help_pages import check_options, show_help

    action = args[0] if args else ""
    if action not in command.actions and not action.startswith("-"):
        refuse(unknown_choice(name, action, command.actions))
    if parser := command.actions.get(action):
        _parse_early(name, action, _function(parser)(name), args[1:])
    elif show_help(name, args, list(command.actions)):
        raise SystemExit(0)
    elif action in command.actions:
        check_options(name, action, args[1:])


def _parse_early(name: str, action: str, parser: Any, args: list[str]) -> None:
    from lpips_lightning.recipes.help_pages import check_options

    if action == "tradeoff":  # takes the options of fit too
        check_options(name, action, parser.parse_known_args(args)[1], parser._option_string_actions)
    else:
        parser.parse_args(args)


def _function(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)


def _broken_pipe(error: BrokenPipeError) -> int:
    """End as other programs do after ``| head``: with the code of SIGPIPE, and quietly if it was standard output."""
    if os.environ.get(TRACEBACK_VARIABLE):
        raise error
    lost = [stream for stream in (sys.stdout, sys.stderr) if has_lost_reader(stream)]
    for stream in lost:
        _discard_output(stream)
    if not lost:
        _fail(f"expected a reader to the end, got {error}")
    return _READER_LEFT


def _discard_output(stream: Any) -> None:
    """Send to nowhere what a stream still buffers, or the interpreter complains when it flushes the rest at exit."""
    with suppress(AttributeError, OSError, ValueError):  # streams that are no files
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _is_user_error(error: Exception) -> bool:
    """Whether the message alone tells the user what to do: errors raised on purpose, and file errors."""
    from lpips_lightning.weights import WeightsError

    deliberate = (ValueError, OSError, ModuleNotFoundError, WeightsError)
    return isinstance(error, deliberate) or type(error).__name__ == "MisconfigurationException"


def _fail(message: str) -> int:
    from lpips_lightning.io.image_decoding import printable

    message = "\n".join(map(printable, message.split("\n")))  # file names may contain control characters
    Console(stderr=True).print(
        f"lpips-lightning: {message}", soft_wrap=True, highlight=False, markup=False, emoji=False
    )
    return 2


def _help() -> None:
    console = Console(highlight=False)
    console.print("Usage: lpips-lightning COMMAND ... (LPIPS as a metric, a loss and ready recipes)\n")
    recipes = {name: command for name, command in COMMANDS.items() if command.actions}
    first = next(iter(recipes))
    for name, command in COMMANDS.items():
        if name == first:
            _help_on_recipes(console, recipes)
        elif name not in recipes:
            console.print(f"  [bold]{name:12}[/bold]{command.summary}")
    console.print("\nSee lpips-lightning COMMAND --help for details; --version prints the version.")
    console.print(f"Set {TRACEBACK_VARIABLE}=1 to see tracebacks.")


def _help_on_recipes(console: Console, recipes: Mapping[str, Command]) -> None:
    """Print the recipes in two columns."""
    console.print("  recipes: fit, validate, test, predict; * also tradeoff; calibration also fast", markup=False)
    starred = [(name + "*" * ("tradeoff" in one.actions), one.summary) for name, one in recipes.items()]
    rows = -(-len(starred) // 2)
    columns = starred[:rows], starred[rows:]
    widths = [[max(map(len, part)) for part in zip(*column, strict=True)] for column in columns]
    for line in itertools.zip_longest(*columns):
        cells = [
            f"[bold]{cell[0]:{first}}[/bold] {cell[1]:{second}}"
            for cell, (first, second) in zip(line, widths, strict=True)
            if cell
        ]
        console.print(f"    {'  '.join(cells)}".rstrip())
