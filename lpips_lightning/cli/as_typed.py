"""Errors in the words of the command line: the option that was typed in place of the argument in Python."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_ARGUMENTS = re.compile(r"(?P<names>[A-Za-z_][\w-]*(?: and [A-Za-z_][\w-]*)?): (?=expected)")
_ASSIGNMENT = re.compile(
    r"""(?P<call>\b[A-Z]\w*\()?\b(?<!:)(?P<name>[a-z_]+)=(?P<value>"[^"]*"|'[^']*'|[\w./<>-]+)(?(call)\))"""
)
_NETS = ("net", "net_type", "teacher")


@dataclass(frozen=True)
class Option:
    """An option of a command.

    Attributes:
        typed: How it is typed.
        name: Name of its argument in Python.
        group: Group of a recipe's option, ``"data"`` in ``--data.folder``.
        value: What was typed as its value, or its default; empty for none.
        flag: Whether it takes no value.
    """

    typed: str
    name: str
    group: str = ""
    value: str = ""
    flag: bool = False


def as_typed(message: str, options: Sequence[Option], group: str = "") -> str:
    """An error with options in place of arguments.

    Args:
        message: The error, ``"<argument>: expected <what>, got <value>"``.
        options: The options of the command.
        group: The group of options in which it was raised, if known.

    Returns:
        The error with ``"--option: expected"``, and ``--option value`` in place of ``argument="value"``. What is no
        option stays as it is.
    """
    start = _ARGUMENTS.match(message)
    if start is not None:
        names = [_renamed(name, message, options, group) for name in start["names"].split(" and ")]
        message = f"{' and '.join(names)}: {message[start.end() :]}"

    def assigned(found: re.Match[str]) -> str:
        value = found["value"].strip("\"'")
        value = {"True": "true", "False": "false", "None": "null"}.get(value, value)
        chosen = [one for one in _named(found["name"], options, group) if one.value != value]
        if found["name"] in _NETS:  # the networks that the message is about
            about = [one for one in chosen if one.value and f"'{one.value}" in message]
            chosen = about or chosen
        elif len(chosen) > 1:  # that of the network, such as its weights
            groups = {one.group for net in _NETS for one in _named(net, options, group) if f"'{one.value}" in message}
            chosen = [one for one in chosen if one.group in groups]
        if len(chosen) != 1 and found["name"] not in _NETS:
            return found[0]
        return " ".join(one.typed if one.flag else f"{one.typed} {value}" for one in chosen) or found[0]

    return _ASSIGNMENT.sub(assigned, message)


def parser_options(parser: argparse.ArgumentParser, args: Sequence[str]) -> list[Option]:
    """The options of a command with an argparse parser, with what was typed.

    Args:
        parser: The parser.
        args: The command line.
    """
    found = []
    values = typed_values(args)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            chosen = next((word for word in args if word in action.choices), None)
            found += parser_options(action.choices[chosen], args) if chosen else []
        names = [name for name in action.option_strings if name.startswith("--")]
        if names and action.dest != "help":
            typed = next((name for name in names if name in values), names[0])
            value = values.get(typed, "" if action.default is None else str(action.default))
            flag = action.nargs == 0
            arguments = dict.fromkeys([action.dest, *(_python(name) for name in names)])
            found += [Option(typed, name, value=value, flag=flag) for name in arguments]
    return found


def recipe_options(groups: Sequence[Any], defaults: Mapping[str, Any], args: Sequence[str]) -> list[Option]:
    """The options of a recipe's action, with what was typed.

    Args:
        groups: Its `recipes.help_pages.Group`s.
        defaults: What its YAML file says.
        args: The command line.
    """
    found, values = [], typed_values(args)
    for group in groups:
        part = defaults.get(group.name, {}) if group.name else defaults
        part = part.get("init_args", part) if isinstance(part, dict) else {}
        for option in group.options:
            typed = group.option(option)
            value = values.get(typed, part.get(option.name, option.default))
            found.append(Option(typed, option.name, group.name, "" if value is None else str(value)))
    return found


def typed_values(args: Sequence[str]) -> dict[str, str]:
    """Options on a command line and their first values."""
    found = {}
    for number, arg in enumerate(args):
        if arg.startswith("--"):
            name, equals, value = arg.partition("=")
            after = args[number + 1] if number + 1 < len(args) else ""
            found[name] = value if equals else after
    return found


def raising_group(error: BaseException, classes: Mapping[str, str]) -> str:
    """The group of options whose object raised an error.

    Args:
        error: The error.
        classes: Groups by the name of their class.
    """
    found, trace = "", error.__traceback__
    while trace is not None:  # the innermost counts
        owner = type(trace.tb_frame.f_locals.get("self"))
        found = next((classes[one.__name__] for one in owner.__mro__ if one.__name__ in classes), found)
        trace = trace.tb_next
    return found


def _renamed(name: str, message: str, options: Sequence[Option], group: str) -> str:
    candidates = _named(name, options, group)
    fitting = [one for one in candidates if _is_got(one, message)]
    if not candidates:  # an argument of a function behind the command: the option with that value
        others = [one for one in options if group in ("", one.group) and _is_got(one, message)]
        fitting = others[:1] if len({one.typed for one in others}) == 1 else []
    chosen = fitting or candidates
    return chosen[0].typed if chosen else name


def _named(name: str, options: Sequence[Option], group: str) -> list[Option]:
    """Options of an argument: in the group that raised, of the name or ending with it; then of the name elsewhere."""
    names = _NETS if name in _NETS else (name, _python(name))
    ends = tuple(f"_{one}" for one in names)
    inside = [one for one in options if one.group == group] if group else list(options)
    found = [one for one in inside if one.name in names] + [one for one in inside if one.name.endswith(ends)]
    by_option: dict[str, Option] = {}
    for one in found or [one for one in options if one.name in names]:
        by_option.setdefault(one.typed, one)
    return list(by_option.values())


def _is_got(option: Option, message: str) -> bool:
    """Whether the error is about the value of an option."""
    got = message.rpartition(", got ")[2]
    return bool(option.value) and re.match(rf"['\"]?{re.escape(option.value)}(?:['\"]|\b|$)", got) is not None


def _python(name: str) -> str:
    return name.lstrip("-").replace("-", "_")
