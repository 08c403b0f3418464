"""Command lines of ``demo``, ``calibration fast`` and ``tradeoff``.

They stand in a module without torch, so that help and mistakes are answered before the long imports.
"""

from __future__ import annotations

from argparse import BooleanOptionalAction
from pathlib import Path

from lpips_lightning.cli.launch import add_launch_options
from lpips_lightning.cli.loggers import add_logger_options
from lpips_lightning.io.arguments import NETS, ArgumentParser, integers

LOSSES = ("untrained", "pixel", "vgg", "alex", "embedded", "embedded-vgg", "baseline")
"""Default rows of the trade-off table."""

DEMO_OUT, FAST_OUT = "outputs/demo", Path("outputs/calibration/fast.safetensors")
"""Default outputs; if they exist, a new version beside them."""

_OFFLINE = "Offline: --net embedded, which ships with the package; or see `lpips-lightning weights fetch --help`."
_FAST = "Train mode lin on pooled squared differences: the backbone runs once, then ten epochs take seconds."


def demo_parser() -> ArgumentParser:
    """Build the parser of ``lpips-lightning demo``."""
    parser = ArgumentParser(
        "lpips-lightning demo",
        description="Demonstration: a few minutes of superresolution training on the CPU, with a table of scores and a"
        " figure.",
    )
    parser.add_argument("--out", help=f"output folder (default: {DEMO_OUT}, or {DEMO_OUT}-2, ... if that exists)")
    parser.add_argument("--force", action="store_true", help="replace existing results")
    parser.add_argument("--minutes", type=float, default=2.5, help="training time at most (default: %(default)s)")
    parser.add_argument("--held-out", default="astronaut", help="photograph for evaluation (default: %(default)s)")
    parser.add_argument(
        "--loss-net",
        choices=NETS,
        default="embedded",
        metavar="NET",
        help=f"network of the loss: {', '.join(NETS)} (default: %(default)s)",
    )
    parser.add_argument(
        "--metric-net",
        choices=("auto", *NETS),
        default="auto",
        metavar="NET",
        help="network of the metric; auto (default): alex if on this machine, else embedded-vgg, or embedded"
        " if that is the network of the loss",
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed (default: %(default)s)")
    return parser


def fast_parser(name: str = "calibration") -> ArgumentParser:
    """Build the parser of ``lpips-lightning calibration fast``."""
    parser = ArgumentParser(f"lpips-lightning {name} fast", description=_FAST, epilog=_OFFLINE)
    parser.add_argument(
        "--csv", metavar="FILE", help="judgments (- for stdin): ref, p0, p1 and votes_p0, votes_p1 or judge"
    )
    parser.add_argument(
        "--folder",
        "--images",
        "--root",
        metavar="DIR",
        help="folder of the images named in --csv; without --csv: of BAPPS, or of a data set from `bapps make`",
    )
    parser.add_argument("--val-csv", metavar="FILE", help="validation judgments (default: a fraction of --csv)")
    parser.add_argument(
        "--val-fraction",
        type=float,
        default=0.1,
        metavar="F",
        help="fraction of the references of --csv that validate (default 0.1)",
    )
    parser.add_argument(
        "--split-by",
        choices=("reference", "triplet"),
        default="reference",
        help="reference (default): no reference trains and validates; triplet: only no triplet does",
    )
    parser.add_argument(
        "--sets", nargs="*", metavar="SET", help="sets of the data set for training and validation (default: all)"
    )
    parser.add_argument(
        "--net",
        choices=NETS,
        default="alex",
        metavar="NET",
        help=f"network: {', '.join(NETS)} (default: %(default)s)",
    )
    parser.add_argument("--weights", metavar="FILE", help="backbone weights (default: torchvision's)")
    parser.add_argument("--size", type=int, default=64, metavar="PIXELS", help="image size (default 64, the paper's)")
    parser.add_argument(
        "--init", default="random", choices=("random", "official"), help="initialization (default random)"
    )
    parser.add_argument("--lr", type=float, default=1e-3, help="Adam learning rate (default 1e-3; paper: 1e-4)")
    parser.add_argument("--seed", type=int, default=0, help="seed of split, initialization and order (default 0)")
    parser.add_argument(
        "--rescale",
        action=BooleanOptionalAction,
        default=True,
        help="scale to the mean distance of the official calibration, so that loss weights stay (default)",
    )
    parser.add_argument("--cache", metavar="DIR", help="cache folder for pooled differences (default: no cache)")
    parser.add_argument(
        "--num-workers", "--workers", type=int, default=0, metavar="N", help="image reading processes (default 0)"
    )
    out = f"output file (default {FAST_OUT}, or {FAST_OUT.stem}-2, ... if that exists)"
    parser.add_argument("--out", metavar="FILE", help=out)
    parser.add_argument("--force", action="store_true", help="replace an existing file")
    add_launch_options(parser.add_argument_group("several devices"), workers=False)
    add_logger_options(parser.add_argument_group("loggers"))
    return parser


def tradeoff_parser(name: str, program: str | None = None) -> ArgumentParser:
    """Build the parser of ``tradeoff``; the options of ``fit`` are left over.

    Args:
        name: The recipe.
        program: How it is called; None for ``lpips-lightning NAME``.
    """
    program = program or f"lpips-lightning {name}"
    parser = ArgumentParser(
        f"{program} tradeoff",
        description="Train with several losses and validate each with several networks.",
        epilog=f"All other options are those of `{program} fit`. Finished rows are kept: the same command resumes.",
    )
    parser.add_argument(
        "--losses",
        type=comma_separated,
        default=",".join(LOSSES),
        help="untrained, pixel, NET, NET:baseline (uncalibrated), or baseline: alex:baseline if alex is on this"
        " machine, else embedded:baseline; with +gan, such as embedded+gan, also a discriminator, in recipes with"
        " --model.adversarial_weight (default: %(default)s)",
    )
    parser.add_argument("--seeds", type=integers, default="0", help="seeds of the trainings (default: %(default)s)")
    parser.add_argument("--judges", type=comma_separated, help="validation networks (default: all on this machine)")
    parser.add_argument(
        "--out",
        help=f"output folder (default: outputs/{name.replace('-', '_')}/tradeoff, or tradeoff-2, ... if that has a"
        " table with other options)",
    )
    parser.add_argument("--force", action="store_true", help="discard the table in the folder and start again")
    return parser


def comma_separated(text: str) -> list[str]:
    """Words of a list."""
    return [word.strip() for word in text.split(",")]
