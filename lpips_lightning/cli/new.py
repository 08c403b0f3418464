"""The command ``lpips-lightning new``: a recipe as a project of the user's."""

from __future__ import annotations

import argparse
import os
import secrets
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from lpips_lightning.io.arguments import ArgumentParser, refuse
from lpips_lightning.io.atomic import check_output_path
from lpips_lightning.io.console import Console

_DESCRIPTION = """Copy a recipe (model, data, YAML) to a folder, as a project that runs by itself, for you to change.

It gets a README, requirements.txt, and a test that trains two steps on random images."""


def parser() -> argparse.ArgumentParser:
    """Build the argument parser."""
    from lpips_lightning.recipes.project import copyable_recipes

    names = copyable_recipes()
    result = ArgumentParser(
        "lpips-lightning new",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example:\n  lpips-lightning new superresolution sharper\n  cd sharper\n  python superresolution.py fit",
    )
    result.add_argument("recipe", metavar="RECIPE", choices=names, help=", ".join(names))
    result.add_argument("folder", metavar="DIR", help="folder to create; it may exist if it is empty")
    result.add_argument("--force", action="store_true", help="replace files of an older copy in DIR; keep other files")
    return result


def main(args: list[str] | None = None) -> None:
    """Copy a recipe.

    Args:
        args: Command line without the program's name; None takes ``sys.argv``.

    Raises:
        ValueError: If the folder cannot be written.
        FileExistsError: If it has files, and ``--force`` is not given.
    """
    from lpips_lightning.cli.commands import COMMANDS
    from lpips_lightning.recipes.project import project_files

    args = sys.argv[1:] if args is None else args
    _refuse_others(args)
    options = parser().parse_args(args)
    folder, name = Path(options.folder), options.recipe
    files = project_files(name, list(COMMANDS[name].actions))
    check_output_path(options.folder, "DIR", folder=True)
    _check_folder(folder, files, options.force)
    _write(folder, files)
    console = Console(highlight=False)
    for line in (f"{folder}: {', '.join(files)}", "Next:", f"  cd {shlex.quote(str(folder))}"):
        console.print(line, soft_wrap=True, markup=False)
    console.print(f"  python {name.replace('-', '_')}.py fit", soft_wrap=True, markup=False)


def _check_folder(folder: Path, files: Mapping[str, str], force: bool) -> None:
    """Raise if a file of the project, or anything else, is in the way."""
    if not folder.is_dir():
        return
    for file in files:
        if (folder / file).is_dir():
            raise ValueError(f"DIR: expected to write {folder / file}, got a folder of that name")
        check_output_path(folder / file, "DIR", replace=force)
    present = sorted(path.name for path in folder.iterdir())
    if present and not force:
        raise FileExistsError(
            f"DIR: expected a new or empty folder, got {str(folder)!r}, which has {', '.join(present[:3])}"
            f"{' and more' if len(present) > 3 else ''}; --force adds the project to it"
        )


def _write(folder: Path, files: Mapping[str, str]) -> None:
    """Write all files to a temporary folder, which becomes the folder, or if that exists gives its files to it."""
    target = Path(os.path.realpath(folder))
    target.parent.mkdir(parents=True, exist_ok=True)
    # Inside a folder that exists, which may be a mount point or the working folder.
    hidden = f".new.{secrets.token_hex(8)}"
    temporary = target / hidden if target.is_dir() else target.with_name(hidden)
    temporary.mkdir()
    try:
        for name, text in files.items():
            (temporary / name).write_text(text, encoding="utf-8")
        if temporary.parent == target:
            for name in files:
                (temporary / name).replace(target / name)
        else:
            temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _refuse_others(args: Sequence[str]) -> None:
    """Refuse commands that are no recipes with a model of their own, and say why."""
    from lpips_lightning.recipes.help_pages import RECIPES
    from lpips_lightning.recipes.project import copyable_recipes

    name = next((arg for arg in args if not arg.startswith("-")), "")
    names = copyable_recipes()
    if name in RECIPES and name not in names:
        refuse(
            f"new: expected one of {', '.join(names)}, got {name!r}, whose model and data are in the library and are"
            f" set by options: see `lpips-lightning {name} fit --help`"
        )
    if name == "demo":
        refuse("new: expected a recipe, got 'demo', which trains superresolution; did you mean superresolution?")
