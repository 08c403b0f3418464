"""Trade-off table: trains a recipe with several losses and validates each with several networks.

    lpips-lightning superresolution tradeoff
    lpips-lightning superresolution tradeoff --losses pixel,alex,alex:baseline --seeds 0,1,2 --trainer.max_epochs 5
    lpips-lightning superresolution tradeoff --losses untrained,pixel,embedded,pixel+gan,embedded+gan

All trainings have the recipe's options, the same initial network, the same batches and the same number of steps; only
the perceptual loss differs, and whether there is a discriminator. The last weights are validated, without selection by
a score.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from lpips_lightning.backbones.definition import BACKBONES
from lpips_lightning.io.atomic import atomic_write
from lpips_lightning.io.console import Console
from lpips_lightning.io.progress import progress_report
from lpips_lightning.recipes.command import ImageRecipeCLI, command_name, program, quiet_lightning
from lpips_lightning.recipes.command_lines import tradeoff_parser
from lpips_lightning.recipes.help_pages import recipes_with
from lpips_lightning.recipes.run_report import command_line, print_line
from lpips_lightning.recipes.small_jpeg import save_small_jpeg
from lpips_lightning.recipes.tradeoff_images import save_images
from lpips_lightning.recipes.tradeoff_plot import save_plot
from lpips_lightning.recipes.tradeoff_rows import Tradeoff, can_be_adversarial, first_with_options
from lpips_lightning.recipes.tradeoff_table import (
    BASELINE,
    GAN,
    PIXEL,
    UNTRAINED,
    legend,
    markdown,
    rich_table,
)


def run_tradeoff(cli: type[ImageRecipeCLI], model: type, data: type, file: str, args: list[str]) -> None:
    """Make the trade-off table of a recipe from the command line.

    Args:
        cli: CLI class of the recipe.
        model: LightningModule of the recipe.
        data: Data module of the recipe.
        file: File of the recipe.
        args: Command line after ``tradeoff``.

    Raises:
        ValueError: If an argument is invalid, or `out` has a table with other options.
    """
    name = command_name(file)
    parser = tradeoff_parser(name, program(file))
    options, recipe_options = parser.parse_known_args(args)
    if recipe_options and not recipe_options[0].startswith("-"):
        parser.error(f"expected options, got {recipe_options[0]!r}")
    losses = list(dict.fromkeys(map(_resolved, options.losses)))  # a row that counts twice would hide the deviation
    _check_adversarial(losses, model, name)
    judges = list(dict.fromkeys(options.judges or ())) or [net for net in BACKBONES if BACKBONES[net].is_available]
    if unknown := [judge for judge in judges if judge not in BACKBONES]:
        raise ValueError(f"judges: expected some of {', '.join(BACKBONES)}, got {unknown[0]!r}")
    console, start = Console(), time.monotonic()
    out = Path(options.out or f"outputs/{Path(file).stem}/tradeoff")
    if options.out is None and not options.force:
        default, out = out, first_with_options(out, recipe_options)
        if out != default:
            _say(console, f"{default} has a table with other options: writing to {out}")
    table = Tradeoff((cli, model, data, file), recipe_options, judges, out, options.force)
    table.check_settings()
    labels = {UNTRAINED: cli.untrained, PIXEL: cli.pixel}
    try:
        with quiet_lightning(), progress_report("items") as report:
            table.run(losses, list(dict.fromkeys(options.seeds)), report)
    except (KeyboardInterrupt, SystemExit):
        line = command_line(program(file), "tradeoff", args)
        print_line(f"Stopped. To resume with the rows that are missing:\n  {line}", error=True)
        raise
    finally:  # show finished rows after an interrupt too
        rows = [row for row in table.rows if row.scores or row.note]
        if rows:
            console.print(rich_table(rows, f"{name}: scores by loss", labels))
            _say(console, legend(rows, labels))
            text = f"{markdown(rows, labels)}\n`{command_line(program(file), 'tradeoff', args)}`\n"
            with atomic_write(out / "tradeoff.md") as temporary:
                temporary.write_text(text)
            seconds = time.monotonic() - start
            _say(console, f"{seconds:.0f} s. Written: {out}/tradeoff.csv, {out}/tradeoff.md")
    try:
        if files := save_plot(out / "scores.png", rows, labels):
            _say(console, f"Scores: {', '.join(map(str, files))}")
        heading = f"{name}: the same detail of an image under each loss"
        if files := save_images(out, rows, labels, heading, cli.detail):
            files.append(save_small_jpeg(files[0]))
            _say(console, f"Images: {', '.join(map(str, files))}")
    except ModuleNotFoundError as error:
        _say(console, f"No image: {error}")


def _resolved(loss: str) -> str:
    """Full name of a loss.

    Raises:
        ValueError: If the loss is unknown.
    """
    base = loss.removesuffix(GAN)
    if base == BASELINE:
        return f"{'alex' if BACKBONES['alex'].is_available else 'embedded'}:{BASELINE}{loss[len(base) :]}"
    net, _, kind = base.partition(":")
    if loss not in (UNTRAINED, f"{PIXEL}{GAN}", PIXEL) and (net not in BACKBONES or kind not in ("", BASELINE)):
        known = ", ".join((UNTRAINED, PIXEL, BASELINE, *BACKBONES))
        raise ValueError(
            f"losses: expected some of {known}, or NET:{BASELINE}, or a trained one of them with {GAN}, got {loss!r}"
        )
    return loss


def _check_adversarial(losses: Sequence[str], model: type, name: str) -> None:
    """Raise a ValueError if a loss has a discriminator, which the recipe has not."""
    wanted = [loss for loss in losses if loss.endswith(GAN)]
    if wanted and not can_be_adversarial(model):
        able = ", ".join(recipes_with("model", "adversarial_weight"))
        raise ValueError(
            f"losses: expected a recipe whose model has adversarial_weight for {wanted[0]}, such as {able}; {name} has"
            " no discriminator"
        )


def _say(console: Console, line: str) -> None:
    console.print(line, soft_wrap=True, highlight=False, markup=False)
