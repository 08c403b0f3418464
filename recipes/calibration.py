"""Calibrates LPIPS on human judgments: BAPPS or your own.

lpips-lightning calibration fit                                    # mode lin of the paper on BAPPS (downloaded)
lpips-lightning calibration fit --model.mode tune --data.num_workers 8
lpips-lightning calibration fit --ckpt_path outputs/calibration/version_0/checkpoints/last.ckpt  # resumes; same weights
lpips-lightning calibration fit --data TripletDataModule --data.csv mine.csv --data.images my_images
lpips-lightning calibration fast --csv mine.csv --images my_images           # lin in seconds; see --help
lpips-lightning calibration test --ckpt_path outputs/calibration/version_0/checkpoints/best.ckpt
"""

import argparse
import warnings
from datetime import date
from pathlib import Path

import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.cli import LightningArgumentParser
from typing_extensions import override

from lpips_lightning import __version__
from lpips_lightning._lightning import LightningDataModule, LightningModule
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

_FAST = "Train mode lin on pooled squared differences: the backbone runs once, then ten epochs take seconds."


class CalibrationCLI(RecipeCLI):
    """Adds ``--best.*`` and ``--last.*`` (checkpoints) and ``--file.*`` (calibration file)."""

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_lightning_class_args(ModelCheckpoint, "best")
        parser.add_lightning_class_args(ModelCheckpoint, "last")
        parser.add_lightning_class_args(CalibrationFile, "file")

    @override
    def reference_models(self) -> dict[str, LightningModule]:
        model = self.model
        options = {name: model.hparams[name] for name in ("net_type", "version", "weights") if name in model.hparams}
        untrained = {"untrained": model} if model.hparams["init"] == "random" else {}
        if model.hparams["mode"] != "scratch":
            official = PerceptualCalibration(**options, mode="lin", init="official")
            return {"official calibration": official, **untrained}
        return untrained

    @override
    def written_files(self) -> list[tuple[Path, str]]:
        written = self._get(self.config_init, "file").written
        return [] if written is None else [(written, "the calibration")]

    @override
    def next_commands(self, checkpoint: Path) -> list[str]:
        net_type, mode = (self.model.hparams[name] for name in ("net_type", "mode"))
        option = "calibration" if mode == "lin" else "weights"
        use = [f"LPIPS({net_type!r}, {option}={str(path)!r}) in Python" for path, _ in self.written_files()]
        return [*super().next_commands(checkpoint), *use]


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

    options = _fast_parser().parse_args(args)
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


def _fast_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("lpips-lightning calibration fast", description=_FAST)
    parser.add_argument(
        "--csv", metavar="FILE", help="judgments (- for stdin): ref, p0, p1 and votes_p0, votes_p1 or judge"
    )
    parser.add_argument("--images", metavar="DIR", help="folder of the images named in --csv")
    parser.add_argument("--val-csv", metavar="FILE", help="validation judgments (default: a fraction of --csv)")
    parser.add_argument("--val-fraction", type=float, default=0.1, help="validation part of --csv (default 0.1)")
    parser.add_argument("--root", metavar="DIR", help="instead of --csv: BAPPS, or a dataset from `bapps make`")
    parser.add_argument(
        "--sets", nargs="*", metavar="SET", help="subsets of --root for training and validation (default: all)"
    )
    parser.add_argument("--net", default="alex", help="network: alex (default), vgg, squeeze, embedded")
    parser.add_argument("--weights", metavar="FILE", help="backbone weights (default: torchvision's)")
    parser.add_argument("--size", type=int, default=64, metavar="PIXELS", help="image size (default 64, the paper's)")
    parser.add_argument(
        "--init", default="random", choices=("random", "official"), help="initialization (default random)"
    )
    parser.add_argument("--lr", type=float, default=1e-3, help="Adam learning rate (default 1e-3; paper: 1e-4)")
    parser.add_argument("--seed", type=int, default=0, help="seed of split, initialization and order (default 0)")
    parser.add_argument("--rescale", action="store_true", help="scale to the mean distance of the official calibration")
    parser.add_argument("--cache", metavar="DIR", help="cache folder for pooled differences (default: no cache)")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="image reading processes (default 0)")
    parser.add_argument("--out", default="outputs/calibration/fast.safetensors", metavar="FILE", help="output file")
    return parser


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
