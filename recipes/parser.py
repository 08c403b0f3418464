"""Parser of the recipes: jsonargparse, with options in full and mistakes as one line that names the nearest option."""

from __future__ import annotations

import difflib
import inspect
import re
import types
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from importlib import import_module
from typing import Any, Literal, NoReturn, Union, get_args, get_origin

from pytorch_lightning.cli import LightningArgumentParser
from typing_extensions import override

from lpips_lightning.io.arguments import refuse, sentence, unknown_choice, unknown_option
from lpips_lightning.recipes.help_pages import Group
from lpips_lightning.recipes.signatures import Parameter, first_sentence, yaml_word

_VALUE = re.compile(r'Parser key "(?P<key>[^"]+)"(?P<element>[^:]*):(?P<reason>.*)', re.S)
_GIVEN = re.compile(r"(?:Given value|Got value): (.*)", re.S)
_NOT_AMONG = re.compile(r"\s*(.*) not among choices", re.S)
_NESTED = re.compile(r"NestedArg\(key='(?P<key>[^']+)', val='?(?P<value>.*?)'?\)", re.S)
_NO_FILE = re.compile(r"Unable to load config ['\"]([^'\"]+)")
_CLASS_OPTION = re.compile(r"class_path '(?P<name>[^']+)'.*?(?:Option|option|Key|key) '(?P<key>[^']+)'", re.S)
_CLASS_MISSING = re.compile(r"class_path '(?P<name>[^']+)':\s+the following arguments are required: (?P<keys>[\w, ]+)")
_YAML_KEY = re.compile(
    r"(?:Group '(?P<group>[^']+)'|Subcommand '[^']+') does not accept (?:option|nested key) '(?P<inner>[^']+)'"
    r"|(?:Option|Key) '(?P<key>[^']+)' is not (?:accepted|expected)"
)
_REQUIRED = re.compile(
    r"""[Kk]ey ["']([^"']+)["'] is required|the following arguments are required: [a-z]+\.([\w.]+)$"""
)
_PLURALS = {"integer": "integers", "number": "numbers"}
_WORDS = {int: "an integer", float: "a number", bool: "true or false", str: "text", type(None): "null", dict: "a dict"}


class RecipeParser(LightningArgumentParser):
    """Refuses abbreviated options, which would hide a typo; a mistake is one line, and exit code 2.

    Attributes:
        of_action: The parser of the action that was typed, whose options a mistake could mean.
    """

    of_action: LightningArgumentParser | None = None

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **options})

    @override
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:
            super().error(message, ex)
        parser = getattr(ex, "subcommand_parser", None) or self.of_action or self
        refuse(mistake(parser, message))


def mistake(parser: LightningArgumentParser, message: str) -> str:
    """Jsonargparse's message about a mistake, as ``"--option: expected <what>, got <value>"``.

    Args:
        parser: The parser of the action.
        message: The message.
    """
    command = parser.prog.replace(" [options]", "")
    if found := _VALUE.fullmatch(message):
        return _wrong_value(parser, found["key"], found["reason"].strip())
    if found := _REQUIRED.search(message):
        return f"--{found[1] or found[2]}: expected a value, got none"
    if found := _YAML_KEY.search(message):
        key = ".".join(filter(None, (found["group"], found["inner"], found["key"])))
        return unknown_option(f"--{key}", options_of(parser), command).replace(f"got --{key}", f"got {key} in YAML")
    return sentence(parser, message, options_of(parser))


def options_of(parser: LightningArgumentParser) -> list[str]:
    """Options of an action, without those that only print."""
    return [name for name in parser._option_string_actions if name.startswith("--") and not name.endswith(".help")]


def parser_groups(parser: LightningArgumentParser) -> list[Group]:
    """The option groups of an action, for its help page.

    Args:
        parser: The parser of the action.
    """
    found: dict[str, list[Parameter]] = {}
    names = {name.partition(".")[0] for name in options_of(parser) if "." in name}
    for option in options_of(parser):
        action = parser._option_string_actions[option]
        name, _, rest = action.dest.rpartition(".") if "." not in action.dest else action.dest.partition(".")
        if rest in names and not name:  # --model FILE
            continue
        choices = tuple(map(str, action.choices)) if action.choices else ()
        hint = getattr(action, "_typehint", None)
        values: dict[Any, str] = {int: "N", float: "X", bool: "BOOL", str: "TEXT"}
        value = values.get(hint, "VALUE")
        about = first_sentence(action.help or "") if isinstance(action.help, str) else ""
        nargs = action.nargs if action.nargs in ("?", "*") else None
        if action.nargs != 0:
            found.setdefault(name, []).append(Parameter(rest, yaml_word(action.default), choices, value, about, nargs))
    last = [name for name in ("trainer", "") if name in found]
    order = [*(name for name in found if name not in last), *last]
    return [Group(name, "", tuple(found[name])) for name in order]


def _wrong_value(parser: LightningArgumentParser, key: str, reason: str) -> str:
    action = next((one for one in parser._actions if one.dest == key), None)
    if found := _CLASS_OPTION.search(reason):
        known = [f"--{key}.{name}" for name in _parameters(found["name"])]
        return unknown_option(f"--{key}.{found['key']}", known, found["name"].rpartition(".")[2])
    if found := _CLASS_MISSING.search(reason):
        missing = ", ".join(f"--{key}.{name.strip()}" for name in found["keys"].split(","))
        return f"{missing}: expected for {found['name'].rpartition('.')[2]}, got none"
    given = _GIVEN.search(reason) or _NOT_AMONG.search(reason)
    hint = getattr(action, "_typehint", None)
    if unreadable := _NO_FILE.search(reason):
        return f"--{key}: expected a YAML file, got {unreadable[1]!r}"
    if given is None or hint is None:
        return f"--{key}: {' '.join(reason.split())}"
    value = " ".join(given[1].split()).strip("'")
    if nested := _NESTED.fullmatch(value.strip('"')):
        key, value = f"{key}.{nested['key']}", nested["value"]
    expected = list(dict.fromkeys(_expected(hint)))
    if len(expected) == 1 and (words := _words(hint)):
        return unknown_choice(f"--{key}", value, words)
    near = difflib.get_close_matches(value, [name for part in _parts(hint) for name in _subclasses(part)], 1)
    meant = f"; did you mean {near[0]}?" if near else ""
    return f"--{key}: expected {' or '.join(expected)}, got {'none' if value == 'None' else repr(value)}{meant}"


def _subclasses(hint: Any) -> Iterator[str]:
    """Names of the classes that a class stands for, as far as they are imported."""
    for one in hint.__subclasses__() if inspect.isclass(hint) and hint not in _WORDS else ():
        yield one.__name__
        yield from _subclasses(one)


def _parts(hint: Any) -> Iterator[Any]:
    """The types of a union, and those in it."""
    if get_origin(hint) in (Union, types.UnionType):
        for one in get_args(hint):
            yield from _parts(one)
    else:
        yield hint


def _words(hint: Any) -> list[str]:
    """The words of all Literals in a union."""
    parts = (part for part in _parts(hint) if get_origin(part) is Literal)
    return list(dict.fromkeys(str(one) for part in parts for one in get_args(part)))


def _expected(hint: Any) -> Iterator[str]:
    """What a type takes, in words."""
    if words := _words(hint):
        yield f"one of {', '.join(words)}"
    for part in _parts(hint):
        origin = get_origin(part)
        if origin is Literal:
            continue
        if part in _WORDS:
            yield _WORDS[part]
        elif origin is dict:
            yield _WORDS[dict]
        elif isinstance(origin, type) and issubclass(origin, Iterable):
            inner = " or ".join(
                dict.fromkeys(word for one in get_args(part) if one is not ... for word in _expected(one))
            )
            inner = inner.removeprefix("one of ").removeprefix("an ").removeprefix("a ")
            yield f"a list of {_PLURALS.get(inner, inner)}" if inner else "a list"
        else:
            yield f"a {getattr(part, '__name__', str(part))}"


def _parameters(class_path: str) -> Sequence[str]:
    """Names of a class's arguments."""
    module, _, name = class_path.rpartition(".")
    with suppress(ImportError, AttributeError, ValueError):
        return list(inspect.signature(getattr(import_module(module), name)).parameters)
    return []
