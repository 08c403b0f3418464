"""Calibrates LPIPS on human judgments: BAPPS or your own.

lpips-lightning calibration fit                                    # mode lin of the paper on BAPPS (downloaded)
lpips-lightning calibration fit --model.mode tune --data.num_workers 8
lpips-lightning calibration fit --ckpt_path outputs/calibration/last.ckpt      # resumes; same final weights
lpips-lightning calibration fit --data TripletDataModule --data.csv mine.csv --data.images my_images
lpips-lightning calibration fast --csv mine.csv --images my_images           # lin in seconds; see --help
lpips-lightning calibration test --ckpt_path outputs/calibration/best.ckpt
"""

import argparse
import warnings
from datetime import date

import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.cli import LightningArgumentParser
from typing_extensions import override

from lpips_lightning import __version__
from lpips_lightning._lightning import LightningDataModule
from lpips_lightning.calibration.export import write_calibration
from lpips_lightning.calibration.fit_pooled import fit_lin
from lpips_lightning.calibration.model import TrainableLPIPS
from lpips_lightning.calibration.module import PerceptualCalibration
from lpips_lightning.calibration.pooled import PooledTriplets, cached_pool
from lpips_lightning.callbacks.calibration_file import CalibrationFile
from lpips_lightning.data.datamodules import BAPPSDataModule, TripletDataModule
from lpips_lightning.functional.judgments import bootstrap_interval, human_ceiling, two_afc_score
from lpips_lightning.io.atomic import check_output_path
from lpips_lightning.io.streams import is_stream, name_streams
from lpips_lightning.recipes.command import RecipeCLI, run_recipe
from lpips_lightning.recipes.command_lines import fast_parser


class CalibrationCLI(RecipeCLI):
    """Adds ``--best.*`` and ``--last.*`` (checkpoints) and ``--file.*`` (calibration file)."""

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_lightning_class_args(ModelCheckpoint, "best")
        parser.add_lightning_class_args(ModelCheckpoint, "last")
        parser.add_lightning_class_args(CalibrationFile, "file")


def main(args: list[str] | None = None) -> None:
    """Run the recipe: ``fit``, ``validate`` or ``test`` with defaults from ``calibration.yaml``, or ``fast``.

    Args:
        args: Command line without the program's name; None takes ``sys.argv``.
    """
    if args and args[0] == "fast":
        fast(args[1:])
        return
    with warnings.catch_warnings():
        # In mode lin the frozen backbone is in eval mode on purpose.
        warnings.filterwarnings("ignore", r"Found \d+ module\(s\) in eval mode")
        run_recipe(CalibrationCLI, PerceptualCalibration, LightningDataModule, __file__, args, subclass_mode_data=True)


def fast(args: list[str]) -> None:
    """Train mode lin on pooled squared differences: the backbone runs once, then ten epochs take seconds.

    Args:
        args: Command line after ``fast``.

    Raises:
        ValueError: If an argument is invalid.
        FileNotFoundError: If a file is missing.
    """
    from lpips_lightning.io.console import Console

    options = fast_parser().parse_args(args)
    console = Console(stderr=name_streams(options, ["csv", "val_csv"], ["out"]))
    if (options.root is None) == (options.csv is None) or (options.csv is None) != (options.images is None):
        raise ValueError("csv: expected either --csv FILE with --images DIR, or --root DIR, got another combination")
    if not options.out.endswith(".safetensors") and not is_stream(options.out):
        raise ValueError(f"out: expected a file that ends in .safetensors, got {options.out!r}")
    check_output_path(options.out, "out")
    data = _fast_data(options)
    data.prepare_data()
    data.setup("fit")
    network = TrainableLPIPS(options.net, weights=options.weights, init=options.init, seed=options.seed)
    official = TrainableLPIPS(options.net, weights=options.weights, init="official").calibration
    train, *held_out = (
        cached_pool(network, part, options.cache, num_workers=options.workers)  # type: ignore[arg-type]
        for part in (data.train_data, *data.val_data.values())
    )
    console.print(f"Training on {len(train)} triplets, {len(train.mean)} pairs", highlight=False)
    found = fit_lin(train, network.calibration, lr=options.lr, seed=options.seed)
    network.set_calibration(found.calibration)
    scores: dict[str, dict[str, float]] = {}
    for name, part in zip(data.val_names, held_out, strict=True):
        scores[name] = {
            "official": _score(part, official),
            "2afc": _score(part, found.calibration),
            "human": float(human_ceiling(part.judge)),
        }
        low, high = bootstrap_interval(two_afc_score, *part.distances(found.calibration), part.judge, resamples=300)
        ours = f"{100 * scores[name]['2afc']:.2f} (95 %: {100 * low:.2f} to {100 * high:.2f})"
        before, ceiling = (f"{100 * scores[name][kind]:.2f}" for kind in ("official", "human"))
        line = f"{name}: 2AFC {ours}; official calibration {before}, human ceiling {ceiling}"
        console.print(line, highlight=False, markup=False)
    factor = _level(train, official) / _level(train, found.calibration) if options.rescale else 1.0
    record = {
        **{name: value for name, value in vars(options).items() if name not in ("out", "cache", "workers")},
        "mode": "lin",
        "fast": True,
        "triplets": len(train),
        "scores": scores,
        "factor": factor,
        "date": date.today().isoformat(),
        "lpips_lightning": __version__,
    }
    path = write_calibration(options.out, network, factor, record)
    line = f"Written to {path}: LPIPS({options.net!r}, calibration={str(path)!r})"
    console.print(line, highlight=False, markup=False, soft_wrap=True)


def _fast_data(options: argparse.Namespace) -> BAPPSDataModule | TripletDataModule:
    size = options.size or None
    if options.csv is None:
        sets = {} if options.sets is None else {"train_sets": options.sets, "val_sets": options.sets}
        return BAPPSDataModule(options.root, **sets, size=size, seed=options.seed, download=False)
    return TripletDataModule(
        options.csv, options.images, options.val_csv, options.val_fraction, size=size, seed=options.seed
    )


def _score(part: PooledTriplets, calibration: dict[str, torch.Tensor]) -> float:
    return float(two_afc_score(*part.distances(calibration), part.judge))


def _level(part: PooledTriplets, calibration: dict[str, torch.Tensor]) -> float:
    """Mean distance over the pairs of the triplets."""
    return float(torch.cat(part.distances(calibration)).cpu().double().mean())
