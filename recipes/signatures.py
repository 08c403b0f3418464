"""Parameters of classes and functions, read from their source without importing it: help must not wait for torch."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

_TYPE_WORDS = {
    "bool": "BOOL",
    "int": "N",
    "float": "X",
    "str": "TEXT",
    "dict": "DICT",
    **dict.fromkeys(("list", "tuple", "Sequence", "Iterable"), "LIST"),
}
REQUIRED = "required"
"""In place of a default."""


@dataclass(frozen=True)
class Parameter:
    """A parameter of a signature.

    Attributes:
        name: Its name.
        default: Its default, as YAML shows it.
        choices: The words it takes; empty for other types.
        value: A word for its value in the help; empty for a flag.
        about: First sentence of its documentation.
        nargs: As in argparse, for an option that takes another number of values than one.
    """

    name: str
    default: str
    choices: tuple[str, ...] = ()
    value: str = "VALUE"
    about: str = ""
    nargs: str | None = None


@dataclass(frozen=True)
class _Scope:
    """Names at the top level of a module: its definitions, and the ``(module, name)`` of its imports."""

    module: str
    definitions: dict[str, ast.AST]
    imports: dict[str, tuple[str, str]]


def parameters(place: str) -> list[Parameter]:
    """Parameters of a class or method, without `self`.

    Args:
        place: ``"module:Class"`` or ``"module:Class.method"``.

    Returns:
        The parameters in order; ``**options: Unpack[TypedDict]`` is replaced by the options.

    Raises:
        LookupError: If there is no such source.
    """
    module, _, path = place.partition(":")
    name, _, method = path.partition(".")
    scope, owner = _found(module, name)
    if not isinstance(owner, ast.ClassDef):
        raise LookupError(f"{place}: expected a class, got another definition")
    function = _method(owner, method or "__init__")
    if function is None:  # inherited
        return next((parameters(f"{base}.{method}".rstrip(".")) for base in _bases(scope, owner)), [])
    about = {**_documented(owner), **_documented(function)}
    return [*_own(scope, function, about), *_options(scope, owner, function)]


def summary(place: str) -> str:
    """First sentence of the documentation of a method or class, such as ``"module:Class.method"``."""
    module, _, path = place.partition(":")
    name, _, method = path.partition(".")
    _, owner = _found(module, name)
    found = _method(owner, method) if method else owner
    return first_sentence(_doc(found) if found is not None else "")


def first_sentence(text: str) -> str:
    """First sentence of a documentation, without marks of reStructuredText."""
    plain = re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"\1", text.partition("\n\n")[0]).replace("`", "")
    plain = " ".join(plain.split())
    found = re.match(r".*?[^.]\.(?= [A-Z(]|$)", plain)
    return (found[0] if found else plain).rstrip(".")


def _own(scope: _Scope, function: ast.FunctionDef, about: dict[str, str]) -> Iterator[Parameter]:
    given = function.args
    ordered = [*given.posonlyargs, *given.args]
    defaults = [*[None] * (len(ordered) - len(given.defaults)), *given.defaults, *given.kw_defaults]
    for one, default in zip([*ordered, *given.kwonlyargs], defaults, strict=True):
        if one.arg != "self":
            shown = REQUIRED if default is None else _shown(scope, default)
            yield _parameter(scope, one.arg, one.annotation, shown, about.get(one.arg, ""))


def _options(scope: _Scope, owner: ast.ClassDef, function: ast.FunctionDef) -> Iterator[Parameter]:
    """The keyword options of ``**options: Unpack[Name]``, whose defaults are ``DEFAULTS`` of the module of ``Name``."""
    kwarg = function.args.kwarg
    named = isinstance(kwarg and kwarg.annotation, ast.Subscript) and ast.unparse(kwarg.annotation)  # type: ignore[union-attr,arg-type]
    if not named or not named.startswith("Unpack["):
        return
    inner, typed = _resolved(scope, named[len("Unpack[") : -1])
    _, table = _resolved(inner, "DEFAULTS")
    if not isinstance(typed, ast.ClassDef) or not isinstance(table, ast.Dict):
        return
    defaults = {ast.literal_eval(key): _shown(inner, value) for key, value in _items(table)}
    for decorator in owner.decorator_list:  # with_options(precision=...) changes defaults
        if isinstance(decorator, ast.Call):
            defaults |= {one.arg: _shown(scope, one.value) for one in decorator.keywords if one.arg}
    about = _documented(typed)
    for line in typed.body:
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
            name = line.target.id
            yield _parameter(inner, name, line.annotation, defaults.get(name, REQUIRED), about.get(name, ""))


def _items(table: ast.Dict) -> Iterator[tuple[ast.expr, ast.expr]]:
    return ((key, value) for key, value in zip(table.keys, table.values, strict=True) if key is not None)


def _parameter(scope: _Scope, name: str, annotation: ast.expr | None, default: str, about: str) -> Parameter:
    parts = list(_alternatives(scope, annotation))
    literals = [one for one in parts if _head(one) == "Literal"]
    if literals and len(literals) == len(parts):
        choices = dict.fromkeys(word for one in literals for word in _words(one))
        return Parameter(name, default, tuple(choices), "TEXT", about)
    words = [_TYPE_WORDS[_head(one)] for one in parts if _head(one) in _TYPE_WORDS]
    return Parameter(name, default, value=words[0] if words else "VALUE", about=about)


def _alternatives(scope: _Scope, annotation: ast.expr | None) -> Iterator[ast.expr]:
    """The types of a union, without None; names of types are resolved."""
    if annotation is None or (isinstance(annotation, ast.Constant) and annotation.value is None):
        return
    if isinstance(annotation, ast.BinOp):
        yield from _alternatives(scope, annotation.left)
        yield from _alternatives(scope, annotation.right)
    elif _head(annotation) in ("Optional", "Union"):
        inner = annotation.slice  # type: ignore[attr-defined]
        for one in inner.elts if isinstance(inner, ast.Tuple) else [inner]:
            yield from _alternatives(scope, one)
    elif isinstance(annotation, ast.Name) and annotation.id not in _TYPE_WORDS:
        try:
            other, found = _resolved(scope, annotation.id)
        except LookupError:
            found = None
        if isinstance(found, ast.expr):
            yield from _alternatives(other, found)
        else:
            yield annotation
    else:
        yield annotation


def _head(annotation: ast.expr) -> str:
    return ast.unparse(annotation.value if isinstance(annotation, ast.Subscript) else annotation)


def _words(literal: ast.expr) -> list[str]:
    inner = literal.slice  # type: ignore[attr-defined]
    return [str(ast.literal_eval(one)) for one in (inner.elts if isinstance(inner, ast.Tuple) else [inner])]


def _shown(scope: _Scope, default: ast.expr) -> str:
    """A default as YAML shows it."""
    if isinstance(default, ast.Name):
        with suppress(LookupError):
            other, found = _resolved(scope, default.id)
            return _shown(other, found) if isinstance(found, ast.expr) else default.id
    try:
        return yaml_word(ast.literal_eval(default))
    except ValueError:
        return ast.unparse(default).replace(" ** ", "**")


def yaml_word(value: Any) -> str:
    """A value as one word of YAML."""
    if value is None or isinstance(value, bool):
        return str(value).lower().replace("none", "null")
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(yaml_word, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {yaml_word(one)}" for key, one in value.items()) + "}"
    return str(value) if value != "" else "''"


def _documented(owner: ast.AST) -> dict[str, str]:
    """First sentence about every argument, or attribute, in a docstring."""
    from docstring_parser import DocstringStyle, parse

    found: dict[str, str] = {}
    for one in parse(_doc(owner), DocstringStyle.GOOGLE).params:
        found.setdefault(one.arg_name, first_sentence(one.description or ""))
    return found


def _doc(owner: ast.AST) -> str:
    return (isinstance(owner, ast.ClassDef | ast.FunctionDef) and ast.get_docstring(owner)) or ""


def _method(owner: ast.AST, name: str) -> ast.FunctionDef | None:
    body = owner.body if isinstance(owner, ast.ClassDef) else []
    return next((one for one in body if isinstance(one, ast.FunctionDef) and one.name == name), None)


def _bases(scope: _Scope, owner: ast.ClassDef) -> Iterator[str]:
    """``"module:Class"`` of the base classes whose source is found."""
    for base in owner.bases:
        with suppress(LookupError):
            other, found = _resolved(scope, ast.unparse(base))
            if isinstance(found, ast.ClassDef):
                yield f"{other.module}:{found.name}"


def _found(module: str, name: str) -> tuple[_Scope, ast.AST]:
    return _resolved(_scope(module), name)


def _resolved(scope: _Scope, name: str) -> tuple[_Scope, ast.AST]:
    """Definition of a name, in this module or where it is imported from."""
    if name in scope.definitions:
        return scope, scope.definitions[name]
    if name in scope.imports:
        return _found(*scope.imports[name])
    raise LookupError(f"{scope.module}: expected a definition of {name}, got none")


@cache
def _scope(module: str) -> _Scope:
    tree = ast.parse(source_file(module).read_text(encoding="utf-8"))
    definitions: dict[str, ast.AST] = {}
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            definitions[node.name] = node
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            definitions[node.targets[0].id] = node.value
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            definitions[node.target.id] = node.value
    imports = {
        alias.asname or alias.name: (node.module or "", alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and not node.level
        for alias in node.names
    }
    return _Scope(module, definitions, imports)


def source_file(module: str) -> Path:
    """The source file of a module, which is not imported.

    Args:
        module: Its full name.

    Raises:
        LookupError: If there is no such file.
    """
    path: list[str] | None = None
    origin: str | None = None
    parts = module.split(".")
    for number in range(1, len(parts) + 1):
        name = ".".join(parts[:number])
        loaded = sys.modules.get(name)
        spec = loaded.__spec__ if loaded is not None and loaded.__spec__ else PathFinder.find_spec(name, path)
        origin = getattr(loaded, "__file__", None) or (spec.origin if spec else None)
        path = list(getattr(loaded, "__path__", None) or (spec.submodule_search_locations if spec else None) or [])
    if origin is None or not origin.endswith(".py"):
        raise LookupError(f"{module}: expected a source file, got none")
    return Path(origin)
