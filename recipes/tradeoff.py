"""The trade-off table: one recipe trained under several losses, each validated by several networks.

    lpips-lightning superresolution tradeoff
    lpips-lightning superresolution tradeoff --losses pixel,alex,alex:baseline --seeds 0,1,2 --trainer.max_epochs 5

Every training has the recipe's options, the same initial network and the same batches; only the perceptual loss
changes. All of them end after the same steps, with the last weights: no score chooses among them.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from rich.console import Console

from lpips_lightning.backbones.definition import BACKBONES
from lpips_lightning.io.atomic import atomic_write
from lpips_lightning.io.progress import progress_report
from lpips_lightning.recipes.command import ImageRecipeCLI, command_name, quiet_lightning
from lpips_lightning.recipes.tradeoff_rows import Tradeoff
from lpips_lightning.recipes.tradeoff_table import (
    BASELINE,
    PIXEL,
    UNTRAINED,
    legend,
    markdown,
    rich_table,
    save_images,
)

_LOSSES = (UNTRAINED, PIXEL, "vgg", "alex", "embedded", BASELINE)


def run_tradeoff(cli: type[ImageRecipeCLI], model: type, data: type, file: str, args: list[str]) -> None:
    """Make a recipe's trade-off table from the command line.

    Args:
        cli: The recipe's own.
        model: Its LightningModule.
        data: Its data module.
        file: Of the recipe.
        args: Command line after ``tradeoff``.

    Raises:
        ValueError: If an argument is off, or `out` holds the table of other options.
    """
    name = command_name(file)
    parser = _parser(name)
    options, recipe_options = parser.parse_known_args(args)
    if recipe_options and not recipe_options[0].startswith("-"):
        parser.error(f"expected options, got {recipe_options[0]!r}")
    losses = [_resolved(loss) for loss in options.losses]
    judges = options.judges or [net for net in BACKBONES if BACKBONES[net].is_available]
    if unknown := [judge for judge in judges if judge not in BACKBONES]:
        raise ValueError(f"judges: expected some of {', '.join(BACKBONES)}, got {unknown[0]!r}")
    console, out, start = Console(), Path(options.out or f"outputs/{Path(file).stem}/tradeoff"), time.monotonic()
    table = Tradeoff((cli, model, data, file), recipe_options, judges, out)
    table.check_settings()
    labels = {UNTRAINED: cli.untrained}
    try:
        with quiet_lightning(), progress_report("items") as report:
            table.run(losses, options.seeds, report)
    finally:  # after an interrupt too: what is finished is shown
        rows = [row for row in table.rows if row.scores or row.note]
        if rows:
            console.print(rich_table(rows, f"{name}: what each loss gives", labels))
            _say(console, legend(rows, labels))
            text = f"{markdown(rows, labels)}\n`lpips-lightning {name} tradeoff {' '.join(args)}`\n"
            with atomic_write(out / "tradeoff.md") as beside:
                beside.write_text(text)
            seconds = time.monotonic() - start
            _say(console, f"{seconds:.0f} s. Written: {out}/tradeoff.csv, {out}/tradeoff.md")
    try:
        if image := save_images(out, rows, labels, f"{name}: the same detail under each loss"):
            _say(console, f"Image: {image}")
    except ModuleNotFoundError as error:
        _say(console, f"No image: {error}")


def _parser(name: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        f"lpips-lightning {name} tradeoff",
        description="Train under several losses and validate each by several networks.",
        epilog=f"All other options are those of `lpips-lightning {name} fit`. What is finished is kept: the same"
        " command goes on.",
    )
    parser.add_argument(
        "--losses",
        type=_words,
        default=",".join(_LOSSES),
        help="untrained, pixel, a net's name, a net's name with :baseline for no calibration, or baseline: alex's where"
        " it is on this machine, else the embedded net's (default: %(default)s)",
    )
    parser.add_argument("--seeds", type=_numbers, default="0", help="of the trainings (default: %(default)s)")
    parser.add_argument("--judges", type=_words, help="nets that validate (default: all on this machine)")
    parser.add_argument("--out", help=f"folder (default: outputs/{name.replace('-', '_')}/tradeoff)")
    return parser


def _words(text: str) -> list[str]:
    return text.split(",")


def _numbers(text: str) -> list[int]:
    return [int(word) for word in _words(text)]


def _resolved(loss: str) -> str:
    """The loss's full name.

    Raises:
        ValueError: If there is no such loss.
    """
    if loss == BASELINE:
        return f"{'alex' if BACKBONES['alex'].is_available else 'embedded'}:{BASELINE}"
    net, _, kind = loss.partition(":")
    if loss not in (UNTRAINED, PIXEL) and (net not in BACKBONES or kind not in ("", BASELINE)):
        known = ", ".join((UNTRAINED, PIXEL, BASELINE, *BACKBONES))
        raise ValueError(f"losses: expected some of {known}, or NET:{BASELINE}, got {loss!r}")
    return loss


def _say(console: Console, line: str) -> None:
    console.print(line, soft_wrap=True, highlight=False, markup=False)
