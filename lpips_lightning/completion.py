"""Completion scripts for bash, zsh and fish: made once, from the parsers; completing runs nothing of ours."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

__all__ = ["Place", "main", "parser", "places"]

_RECIPE = ("fit", "validate", "test", "predict")  # LightningCLI's own
_RECIPE_FLAGS, _RECIPE_FILES = ("--print_config", "--help"), ("--config", "--ckpt_path")
_DESCRIPTION = """Print what makes a shell complete lpips-lightning's commands and options.

bash:  lpips-lightning completion bash > ~/.local/share/bash-completion/completions/lpips-lightning
zsh:   lpips-lightning completion zsh > DIR/_lpips-lightning      (DIR in fpath, before compinit)
fish:  lpips-lightning completion fish > ~/.config/fish/completions/lpips-lightning.fish
"""


@dataclass
class Place:
    """What may follow some words on the command line.

    Attributes:
        words: Commands or actions, with what they do.
        flags: Options without a value.
        files: Options whose value is a file, a folder or a text.
        choices: Options with a few values.
    """

    words: dict[str, str] = field(default_factory=dict)
    flags: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    choices: dict[str, list[str]] = field(default_factory=dict)

    @property
    def options(self) -> list[str]:
        """All options."""
        return [*self.flags, *self.files, *self.choices]


def places() -> dict[str, Place]:
    """By the words before: ``""``, ``"compare"``, ``"weights"``, ``"weights fetch"``, ..."""
    from lpips_lightning.cli import COMMANDS

    summaries = {name: command.summary for name, command in COMMANDS.items()}
    found = {"": Place(summaries, ["--help", "--version"])}
    for name, command in COMMANDS.items():
        if command.parser:
            module, _, function = command.parser.partition(":")
            _add_parser(found, name, getattr(import_module(module), function)())
        elif _is_recipe(command.target):
            found[name] = Place(dict.fromkeys([*_RECIPE, *command.actions], ""), ["--help"])
            for action in _RECIPE:
                found[f"{name} {action}"] = Place({}, list(_RECIPE_FLAGS), list(_RECIPE_FILES))
            found |= {f"{name} {action}": Place({}, ["--help"]) for action in command.actions}
        else:
            found[name] = Place(dict.fromkeys(command.actions, ""), ["--help"])
    return found


def parser() -> argparse.ArgumentParser:
    """What the command takes."""
    made = argparse.ArgumentParser(
        "lpips-lightning completion",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("shell", choices=list(_SCRIPTS), help="for which")
    return made


def main(args: list[str] | None = None) -> None:
    """Print a completion script.

    Args:
        args: Command line without the program's name; None takes ``sys.argv``.
    """
    sys.stdout.write(_SCRIPTS[parser().parse_args(args).shell](places()))


def _is_recipe(target: str) -> bool:
    """Whether a YAML of LightningCLI's defaults lies beside the module, which is not imported."""
    package, _, name = target.partition(":")[0].rpartition(".")
    spec = find_spec(package)
    folders = spec.submodule_search_locations if spec is not None else None
    return any((Path(folder) / f"{name}.yaml").is_file() for folder in folders or ())


def _add_parser(found: dict[str, Place], place: str, made: argparse.ArgumentParser) -> None:
    here = found[place] = Place()
    for action in made._actions:
        if isinstance(action, argparse._SubParsersAction):
            said = {choice.dest: choice.help or "" for choice in action._choices_actions}
            for name, inner in action.choices.items():
                here.words[name] = said.get(name, "")
                _add_parser(found, f"{place} {name}", inner)
        elif not action.option_strings:
            here.words |= dict.fromkeys(map(str, action.choices or ()), "")
        elif action.nargs == 0:
            here.flags += [option for option in action.option_strings if option.startswith("--")]
        elif action.choices is not None:
            here.choices |= {option: list(map(str, action.choices)) for option in action.option_strings}
        else:
            here.files += action.option_strings


def _cases(found: dict[str, Place], describe: Callable[[Place], str]) -> str:
    """A branch of the shell's case for all places that are described alike."""
    alike: dict[str, list[str]] = {}
    for place, here in found.items():
        alike.setdefault(describe(here), []).append(f'"{place}"')
    return "\n".join(f"        {'|'.join(names)}) {said} ;;" for said, names in alike.items())


def _choices(found: dict[str, Place], command: str) -> str:
    """A branch for every option with a few values."""
    given = ((place, *one) for place, here in found.items() for one in here.choices.items())
    return "\n".join(
        f'        "{place} {option}") {command.format(" ".join(values))} ;;' for place, option, values in given
    )


def _bash(found: dict[str, Place]) -> str:
    """For bash 3.2 and later."""

    def describe(here: Place) -> str:
        return f'words="{" ".join(here.words)}"; options="{" ".join(here.options)}"; valued=" {" ".join(here.files)} "'

    deeper = "|".join(f'"{place}"' for place in found if " " in place)
    return f"""# bash completion of lpips-lightning, printed by `lpips-lightning completion bash`
_lpips_lightning() {{
    local IFS=$' \\t\\n' place="" words="" options="" valued=""
    local current="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}"
    COMPREPLY=()
    [[ $COMP_CWORD -gt 1 ]] && place="${{COMP_WORDS[1]}}"
    if [[ $COMP_CWORD -gt 2 ]]; then
        case "$place ${{COMP_WORDS[2]}}" in
        {deeper}) place="$place ${{COMP_WORDS[2]}}" ;;
        esac
    fi
    case "$place" in
{_cases(found, describe)}
    esac
    [[ -n $before && $valued == *" $before "* ]] && return
    case "$place $before" in
{_choices(found, 'words="{}"')}
        *) [[ $current == -* ]] && words="$options" ;;
    esac
    COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -o default -F _lpips_lightning lpips-lightning
"""


def _zsh(found: dict[str, Place]) -> str:
    def describe(here: Place) -> str:
        given = " ".join(_quoted(f"{word}:{said}" if said else word) for word, said in here.words.items())
        return f"given=({given}); options=({' '.join(here.options)}); valued=({' '.join(here.files)})"

    deeper = "|".join(f'"{place}"' for place in found if " " in place)
    return f"""#compdef lpips-lightning
# zsh completion of lpips-lightning, printed by `lpips-lightning completion zsh`
_lpips_lightning() {{
    local place=""
    local -a given options valued
    (( CURRENT > 2 )) && place="$words[2]"
    if (( CURRENT > 3 )); then
        case "$place $words[3]" in
        {deeper}) place="$place $words[3]" ;;
        esac
    fi
    case "$place" in
{_cases(found, describe)}
    esac
    case "$place $words[CURRENT-1]" in
{_choices(found, "compadd -- {}; return")}
    esac
    if (( $valued[(Ie)$words[CURRENT-1]] )); then
        _files
    elif [[ "$words[CURRENT]" == -* ]]; then
        compadd -- $options
    elif (( $#given )); then
        _describe command given
    else
        _files
    fi
}}
if [[ "$funcstack[1]" == "_lpips-lightning" ]]; then
    _lpips_lightning "$@"
else
    compdef _lpips_lightning lpips-lightning
fi
"""


def _fish(found: dict[str, Place]) -> str:
    lines = ["# fish completion of lpips-lightning, printed by `lpips-lightning completion fish`"]
    for place, here in found.items():
        names = place.split()
        seen = "; and ".join(f"__fish_seen_subcommand_from {name}" for name in names) or "__fish_use_subcommand"
        first = seen
        if here.words and names:
            first += f"; and not __fish_seen_subcommand_from {' '.join(here.words)}"
        begin = "complete -c lpips-lightning -n"
        for word, said in here.words.items():
            about = f" -d {_quoted(said)}" if said else ""
            lines.append(f"{begin} {_quoted(first)} -f -a {word}{about}")
        for option in here.options:
            name = f"-l {option[2:]}" if option.startswith("--") else f"-o {option[1:]}"
            value = "" if option in here.flags else f" -x -a {_quoted(' '.join(here.choices.get(option, [])))}"
            value = " -r" if option in here.files else value
            lines.append(f"{begin} {_quoted(seen)} {name}{value}")
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


_SCRIPTS: dict[str, Callable[[dict[str, Place]], str]] = {"bash": _bash, "zsh": _zsh, "fish": _fish}
