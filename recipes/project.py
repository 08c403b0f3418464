"""Copies of recipes as projects of a user's: which files, with which changes. No recipe is imported."""

from __future__ import annotations

import ast
import importlib.metadata
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from lpips_lightning import __version__
from lpips_lightning.recipes.help_pages import ACTIONS, RECIPES, recipe_defaults
from lpips_lightning.recipes.signatures import first_sentence, source_file

_PACKAGE = "lpips_lightning.recipes"
_SHARED_BY = 3  # a module that so many recipes use is a part of the library, and not copied
_MAIN = '\n\nif __name__ == "__main__":\n    main()\n'
_IGNORED = "outputs/\nlightning_logs/\nwandb/\n__pycache__/\n.pytest_cache/\n"
_WIDEST = 60  # of a command with a comment aligned with the others
_STEPS = {"fit": "training_step", "validate": "validation_step", "test": "test_step", "predict": "predict_step"}

# Options of a training of two steps, for those recipes whose YAML file sets them.
_SMALL = {
    "data.folder": "images",
    "data.held_out": "[c,d]",
    "data.public_domain": "false",
    "data.epoch_size": "4",
    "data.batch_size": "2",
    "data.val_count": "2",
    "data.val_groups": "2",
    "data.measured": "2",
    "data.steps": "2",
    "data.sizes": "{64: 4}",
    "model.networks": "1",
    "model.start": "random",
    "model.teacher": "embedded",
    "model.initialize": "random",
    "scores.net_type": "embedded-vgg",
}
_SHORT = (
    *("--trainer.max_epochs=1", "--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1"),
    *("--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"),
)

_README = """# {title}

{about}. Copied by `lpips-lightning new {recipe}` from lpips_lightning {version}, to be changed.

```
{commands}
```

CHECKPOINT is a file that `fit` names at its end; `fit --ckpt_path CHECKPOINT` trains on from it.
`python {stem}.py fit --help` lists all options. Every value in the YAML file is an option, too:
`--trainer.max_epochs 20`.

| file | what it has |
|---|---|
{files}
{yamls}
| test_{stem}.py | the test |

These modules stay in the installed package; to change one, copy it here and import the copy:

{shared}

`LICENSE` is that of the copied files (BSD-2-Clause): keep it with them.
"""

_TEST = '''"""A training of two steps on random images: ``python -m pytest``."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

import {stem}

OPTIONS = """
{options}
"""


def test_training_ends_with_finite_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("images").mkdir()
    numbers = np.random.default_rng(0)
    for name in "abcd":
        Image.fromarray(numbers.integers(0, 256, (320, 320, 3), dtype=np.uint8)).save(f"images/{{name}}.png")
    {stem}.main(["fit", *OPTIONS.strip().split("\\n")])
    (path,) = Path("outputs").rglob("last.ckpt")
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["global_step"] > 0
    tensors = [one for one in checkpoint["state_dict"].values() if isinstance(one, torch.Tensor)]
    assert tensors and all(one.isfinite().all() for one in tensors)
'''


def copyable_recipes() -> list[str]:
    """Recipes with a model of their own; that of the others is a part of the library, and set by options."""
    return [name for name, recipe in RECIPES.items() if recipe.groups["model"][0].startswith(f"{_PACKAGE}.")]


def project_files(recipe: str, actions: Sequence[str]) -> dict[str, str]:
    """The files of a project: name and text.

    Copied are the recipe's module and those that it imports, but for modules that at least three recipes, or the
    recipes' command line, use.

    Args:
        recipe: One of `copyable_recipes`.
        actions: Its actions, such as ``"fit"``, for the project's README.

    Raises:
        FileNotFoundError: If the installed package has no license text.
    """
    stem = _stem(recipe)
    own = own_modules(recipe)
    yamls = _yaml_files(stem)
    files = {f"{module}.py": _copied(module, recipe, own, yamls) for module in own}
    files |= {name: _commands(text, recipe, yamls) for name, text in yamls.items()}
    files[f"test_{stem}.py"] = _TEST.format(stem=stem, options="\n".join(_small_options(recipe)))
    files["README.md"] = _readme(recipe, actions, own, list(yamls))
    files["requirements.txt"] = f"lpips_lightning[recipes]>={__version__}\npytest\n"
    files[".gitignore"] = _IGNORED
    files["LICENSE"] = license_text()
    return files


def own_modules(recipe: str) -> list[str]:
    """Modules of a recipe that are copied, the recipe's first.

    Example:
        >>> own_modules("puzzle")
        ['puzzle']
    """
    users = Counter(module for one in copyable_recipes() for module in _reached(_stem(one)))
    common = set(_reached("command"))
    return [one for one in _reached(_stem(recipe)) if users[one] < _SHARED_BY and one not in common]


def license_text() -> str:
    """The text of this package's license, from the installed package or the checkout.

    Raises:
        FileNotFoundError: If neither has it.
    """
    beside = source_file("lpips_lightning").parents[1] / "LICENSE"
    if beside.with_name("pyproject.toml").is_file() and beside.is_file():
        return beside.read_text(encoding="utf-8")
    for path in importlib.metadata.files("lpips_lightning") or ():
        if path.name == "LICENSE":
            return Path(str(path.locate())).read_text(encoding="utf-8")
    raise FileNotFoundError("LICENSE: expected the license in the installed lpips_lightning, got none: reinstall it")


def _stem(recipe: str) -> str:
    return recipe.replace("-", "_")


@cache
def _text(module: str) -> str:
    return source_file(f"{_PACKAGE}.{module}").read_text(encoding="utf-8")


def _imports(tree: ast.AST) -> Iterator[tuple[ast.ImportFrom, str]]:
    """Imports from modules of recipes, and the module's name in the package."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{_PACKAGE}."):
            yield node, str(node.module).removeprefix(f"{_PACKAGE}.")


@cache
def _reached(module: str) -> tuple[str, ...]:
    """A module and all modules of recipes that it imports, directly or not."""
    found, waiting = [], [module]
    while waiting:
        one = waiting.pop(0)
        if one not in found:
            found.append(one)
            waiting += [name for _, name in _imports(ast.parse(_text(one)))]
    return tuple(found)


def _yaml_files(stem: str) -> dict[str, str]:
    """YAML files of a recipe: ``stem.yaml``, and ``stem_*.yaml`` unless it is that of another recipe."""
    folder = source_file(_PACKAGE).parent
    others = {_stem(name) for name in RECIPES} - {stem}
    paths = [folder / f"{stem}.yaml", *sorted(folder.glob(f"{stem}_*.yaml"))]
    return {path.name: path.read_text(encoding="utf-8") for path in paths if path.stem not in others}


def _copied(module: str, recipe: str, own: Sequence[str], yamls: Mapping[str, str]) -> str:
    """Source of a module with imports of the copied modules beside it, after all others."""
    text = _text(module)
    tree = ast.parse(text)
    lines = text.encode().splitlines(keepends=True)  # ast counts bytes
    nodes = {node: name for node, name in _imports(tree) if name in own}
    for node, name in nodes.items():
        line, start = node.lineno - 1, node.col_offset
        full = f"{_PACKAGE}.{name}".encode()
        lines[line] = lines[line][:start] + lines[line][start:].replace(full, name.encode(), 1)
    moved = [node for node in tree.body if node in nodes]
    if moved:
        lines = _moved_last(lines, tree.body, moved)
    copied = _commands(b"".join(lines).decode(), recipe, yamls)
    return copied + _MAIN if module == _stem(recipe) and "__main__" not in text else copied


def _moved_last(lines: list[bytes], body: Sequence[ast.stmt], moved: Sequence[ast.stmt]) -> list[bytes]:
    """Lines with some of the import statements as a block after the others."""
    end = max(node.end_lineno or 0 for node in body if isinstance(node, ast.Import | ast.ImportFrom))
    numbers = [number for node in moved for number in range(node.lineno - 1, node.end_lineno or node.lineno)]
    others = [line for number, line in enumerate(lines[:end]) if number not in numbers]
    return [*others, b"\n", *(lines[number] for number in numbers), *lines[end:]]


def _commands(text: str, recipe: str, yamls: Mapping[str, str]) -> str:
    """Text with the commands of the project in place of the package's."""
    for name in (*yamls, f"{_stem(recipe)}.py"):  # also where a file is said to come from
        text = text.replace(f"recipes/{name}", name)
    return re.sub(rf"\blpips-lightning {recipe}(?![\w-])", f"python {_stem(recipe)}.py", text)


def _small_options(recipe: str) -> list[str]:
    defaults = recipe_defaults(recipe)
    return [*_SHORT, *(f"--{name}={value}" for name, value in _SMALL.items() if _has(defaults, name))]


def _has(defaults: Mapping[str, Any], option: str) -> bool:
    group, _, name = option.partition(".")
    return name in (defaults.get(group) or {})


def _readme(recipe: str, actions: Sequence[str], own: Sequence[str], yamls: Sequence[str]) -> str:
    stem = _stem(recipe)
    imported = {name for module in own for _, name in _imports(ast.parse(_text(module))) if name not in own}
    return _README.format(
        title=stem,
        recipe=recipe,
        stem=stem,
        version=__version__,
        about=_about(stem),
        commands=_aligned(list(_command_lines(recipe, actions, own))),
        files="\n".join(f"| {module}.py | {_about(module)} |" for module in own),
        yamls="\n".join(f"| {name} | {_about_yaml(name, stem)} |" for name in yamls),
        shared="\n".join(f"- `{_PACKAGE}.{module}`: {_about(module)}" for module in sorted(imported)),
    )


def _command_lines(recipe: str, actions: Sequence[str], own: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Commands of a project, and what they do."""
    yield "pip install -r requirements.txt", ""
    source = "".join(map(_text, own))
    for action in actions:
        if f"def {_STEPS.get(action, action)}(" in source or action == "tradeoff":
            given = "" if action in ("fit", "tradeoff") else " --ckpt_path CHECKPOINT"
            given += " --data.predict_folder FOLDER" if action == "predict" and "predict_folder" in source else ""
            yield f"python {_stem(recipe)}.py {action}{given}", ACTIONS[action]
    yield "python -m pytest", "train two steps on random images"


def _aligned(lines: Sequence[tuple[str, str]]) -> str:
    width = min(max(len(line) for line, _ in lines), _WIDEST)
    return "\n".join(f"{line:{width}}  {about and '# '}{about}".rstrip() for line, about in lines)


def _about_yaml(name: str, stem: str) -> str:
    own = "defaults of the options; the comments say what to expect"
    return own if name == f"{stem}.yaml" else f"other values: `python {stem}.py fit --config {name}`"


def _about(module: str) -> str:
    """First sentence of a module's documentation."""
    return first_sentence(ast.get_docstring(ast.parse(_text(module))) or "")
