"""Command lines: options in full, and mistakes as one line that names the nearest right word."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from typing_extensions import override

NETS = ("alex", "vgg", "squeeze", "embedded", "embedded-vgg", "alex-st", "vgg-st")
"""Names of the networks, for command lines that are read without importing torch."""

_TYPES = {"int": "an integer", "float": "a number", "integers": "integers with commas between them"}
_BAD_CHOICE = re.compile(r"argument (\S+): invalid choice: (.*?)(?: \(choose from .*\)|, maybe you meant .*)?", re.S)
_BAD_TYPE = re.compile(r"argument (\S+): invalid (\w+) value: (.*)", re.S)
_COUNT = re.compile(r"argument (\S+): expected (one|\d+|at least one|at most one) arguments?")
_EXCLUSIVE = re.compile(r"argument (\S+): not allowed with argument (\S+)")
_MISSING = re.compile(r"the following arguments are required: (.*)|one of the arguments (.*) is required")
_UNKNOWN = re.compile(r"unrecognized arguments: (.*)", re.S | re.I)


def integers(text: str) -> list[int]:
    """Integers with commas between them, as the type of an option."""
    return [int(word) for word in text.split(",")]


class ArgumentParser(argparse.ArgumentParser):
    """argparse's parser without abbreviations of options; a mistake is one line on standard error, and exit code 2."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **options})
        self._given: list[str] = []

    @override
    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self._given = sys.argv[1:] if args is None else list(args)
        return super().parse_known_args(self._given, namespace)

    @override
    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        given = sys.argv[1:] if args is None else list(args)
        options, unknown = self.parse_known_args(given, namespace)
        if unknown:  # the parser of the chosen subcommand knows the options that could be meant
            _chosen(self, given).error(f"unrecognized arguments: {' '.join(unknown)}")
        return options

    @override
    def error(self, message: str) -> NoReturn:
        if _MISSING.fullmatch(message) and (mistyped := self._unknown_options()):  # perhaps the missing option itself
            message = f"unrecognized arguments: {mistyped[0]}"
        refuse(sentence(self, message))

    def _unknown_options(self) -> list[str]:
        given = self._given[: self._given.index("--")] if "--" in self._given else self._given
        names = (word.partition("=")[0] for word in given)
        return [name for name in names if name.startswith("--") and name not in self._option_string_actions]


@dataclass(frozen=True)
class Page:
    """Options that ``--help=NAME`` explains instead of ``--help``.

    Attributes:
        name: The name.
        usage: The command line.
        about: What the options are for.
        more: What follows them.
    """

    name: str
    usage: str
    about: str
    more: str = ""


class PagedParser(ArgumentParser):
    """A parser with pages of help beside that of ``--help``."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._pages: dict[str, tuple[Page, argparse._ArgumentGroup]] = {}

    def add_page(self, page: Page) -> argparse._ArgumentGroup:
        """A group of options that have a page of their own."""
        group = self.add_argument_group(page.name)
        self._pages[page.name] = page, group
        return group

    @override
    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        given = sys.argv[1:] if args is None else list(args)
        for word in given[: given.index("--")] if "--" in given else given:
            option, equals, name = word.partition("=")
            if option == "--help" and equals:
                self._show(name)
        return super().parse_known_args(args, namespace)

    @override
    def format_help(self) -> str:
        groups, hidden = self._action_groups, [id(group) for _, group in self._pages.values()]
        try:
            self._action_groups = [group for group in groups if id(group) not in hidden]
            return super().format_help()
        finally:
            self._action_groups = groups

    def _show(self, name: str) -> NoReturn:
        if name not in self._pages:
            refuse(unknown_choice("--help", name, list(self._pages)))
        page, group = self._pages[name]
        formatter = argparse.HelpFormatter(self.prog, max_help_position=24, width=100)
        formatter.add_usage(page.usage, [], [])
        formatter.add_text(page.about)
        formatter.start_section("options")
        formatter.add_arguments(group._group_actions)
        formatter.end_section()
        formatter.add_text(page.more)
        self._print_message(formatter.format_help(), sys.stdout)
        raise SystemExit(0)


def refuse(sentence: str) -> NoReturn:
    """Print a mistake on the command line as one line on standard error.

    Raises:
        SystemExit: Always, with code 2.
    """
    line = "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in " ".join(sentence.split("\n"))
    )
    line = line.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    if sys.stderr is not None:
        encoding = sys.stderr.encoding or "utf-8"
        sys.stderr.write(f"lpips-lightning: {line.encode(encoding, 'backslashreplace').decode(encoding)}\n")
    raise SystemExit(2)


def nearest(word: str, known: Collection[str]) -> str | None:
    """The known word that `word` probably means; an option also by its last part.

    Args:
        word: What was typed.
        known: The right words.

    Example:
        >>> nearest("--model.scal", ["--model.scale", "--model.lr"]), nearest("--lr", ["--model.scale", "--model.lr"])
        ('--model.scale', '--model.lr')
    """
    by_last: dict[str, str] = {}
    for one in known:
        by_last.setdefault(_last(one), one)
    if _last(word) in by_last:
        return by_last[_last(word)]
    if longer := [one for one in known if len(word) > 2 and one.startswith(word)]:
        return min(longer, key=len)
    if near := difflib.get_close_matches(word, list(known), 1):
        return near[0]
    near = difflib.get_close_matches(_last(word), list(by_last), 1)
    return by_last[near[0]] if near else None


def unknown_option(word: str, known: Collection[str], command: str) -> str:
    """The sentence about an option that does not exist.

    Args:
        word: What was typed, without a value.
        known: The options of the command.
        command: The command, as in ``"lpips-lightning compare"``.
    """
    what = f"an option of `{command}`" if word.startswith("-") else "no further argument"
    near = nearest(word, known) if word.startswith("-") else None
    hint = f"did you mean {near}?" if near else f"`{command} --help` lists all"
    return f"expected {what}, got {word}; {hint}"


def unknown_choice(name: str, value: str, choices: Collection[Any]) -> str:
    """The sentence about a value that is not among the choices.

    Args:
        name: The option.
        value: What was typed.
        choices: The right values.
    """
    words = [str(choice) for choice in choices]
    near = difflib.get_close_matches(value, words, 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    value = repr(value) if value else "none"
    return f"{name}: expected {'one of ' if len(words) > 1 else ''}{', '.join(words)}, got {value}{hint}"


def _last(word: str) -> str:
    return word.lstrip("-").rpartition(".")[2].replace("-", "_")


def _chosen(parser: argparse.ArgumentParser, args: Sequence[str]) -> argparse.ArgumentParser:
    """The parser of the subcommand in `args`."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            chosen = next((word for word in args if word in action.choices), None)
            return parser if chosen is None else _chosen(action.choices[chosen], args)
    return parser


def sentence(parser: argparse.ArgumentParser, message: str, options: Collection[str] | None = None) -> str:
    """Argparse's message about a mistake, as ``"<option>: expected <what>, got <value>"``.

    Args:
        parser: The parser that raised it.
        message: The message.
        options: The options that could be meant; None for all of the parser.
    """
    command = parser.prog.replace(" [options]", "")
    if found := _UNKNOWN.fullmatch(message):
        words = found[1].split()
        word = next((word for word in words if word.startswith("-")), words[0] if words else "''")
        return unknown_option(word.partition("=")[0], options or list(parser._option_string_actions), command)
    if found := _BAD_CHOICE.fullmatch(message):
        action = _action(parser, found[1])
        if action is not None and action.choices is not None:
            name = action.option_strings[0] if action.option_strings else command.partition(" ")[2]
            return unknown_choice(name, found[2].strip("'"), list(action.choices))
    if found := _BAD_TYPE.fullmatch(message):
        return f"{found[1]}: expected {_TYPES.get(found[2], f'a value of type {found[2]}')}, got {found[3]}"
    if found := _COUNT.fullmatch(message):
        return f"{found[1]}: expected {found[2]} " + ("values, got fewer" if found[2].isdigit() else "value, got none")
    if found := _EXCLUSIVE.fullmatch(message):
        return f"{found[1]}: expected this option without {found[2]}, got both"
    if found := _MISSING.fullmatch(message):
        return _missing(parser, found[1] or f"one of {found[2]}", command)
    return message.removeprefix("argument ")


def _missing(parser: argparse.ArgumentParser, names: str, command: str) -> str:
    action = _action(parser, names)
    if action is not None and action.choices is not None:
        return f"expected one of {', '.join(map(str, action.choices))} after `{command}`, got none"
    return f"expected {names}, got none; `{command} --help` lists all options"


def _action(parser: argparse.ArgumentParser, name: str) -> argparse.Action | None:
    """The argument that argparse calls `name` in its messages."""
    return next((action for action in parser._actions if argparse._get_action_name(action) == name), None)
