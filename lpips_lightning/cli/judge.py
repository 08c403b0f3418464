"""``lpips-lightning judge``: a study with people on a local page, and what follows from its answers."""

from __future__ import annotations

from lpips_lightning.cli.judge_ranking import add_ranking
from lpips_lightning.cli.judge_results import add_results
from lpips_lightning.cli.judge_serve import add_serve
from lpips_lightning.cli.judge_simulation import add_simulation
from lpips_lightning.io.arguments import ArgumentParser


def parser() -> ArgumentParser:
    """The parser of the command; imports no torch."""
    root = ArgumentParser(prog="lpips-lightning judge", description=__doc__.partition(": ")[2].capitalize())
    commands = root.add_subparsers(dest="command", required=True, metavar="ACTION")
    for add in (add_serve, add_results, add_ranking, add_simulation):
        add(commands)
    return root


def main(args: list[str] | None = None) -> None:
    """Run the command."""
    options = parser().parse_args(args)
    options.run(options)
