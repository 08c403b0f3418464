"""Calibrates LPIPS on human judgments: BAPPS or your own.

lpips-lightning calibration fit                                    # mode lin of the paper on BAPPS (downloaded)
lpips-lightning calibration fit --model.mode tune --data.num_workers 8
lpips-lightning calibration fit --ckpt_path outputs/calibration/version_0/checkpoints/last.ckpt  # resumes; same weights
lpips-lightning calibration fit --data TripletDataModule --data.csv mine.csv --data.folder my_images
lpips-lightning calibration fast --csv mine.csv --folder my_images           # lin in seconds; see --help
lpips-lightning calibration fast --folder bapps --devices 8 --workers 4      # on eight GPUs
lpips-lightning calibration test --ckpt_path outputs/calibration/version_0/checkpoints/best.ckpt
"""

import argparse
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.cli import LightningArgumentParser
from typing_extensions import override

from lpips_lightning import __version__
from lpips_lightning._lightning import LightningDataModule, LightningModule
from lpips_lightning.backbones.offline import require_backbone
from lpips_lightning.calibration.comparison import Comparison, compare_calibrations
from lpips_lightning.calibration.export import usage, write_calibration
from lpips_lightning.calibration.fit_pooled import fit_lin
from lpips_lightning.calibration.model import Initialization, TrainableLPIPS
from lpips_lightning.calibration.module import PerceptualCalibration
from lpips_lightning.calibration.pooled import PooledTriplets, cached_pool, level_factor
from lpips_lightning.callbacks.calibration_file import CalibrationFile
from lpips_lightning.callbacks.calibration_report import CalibrationReport
from lpips_lightning.cli.launch import LAUNCH_OPTIONS, launch_of
from lpips_lightning.cli.loggers import LOGGER_OPTIONS, check_loggers, log_scores
from lpips_lightning.data.bapps import TRAIN_SETS, VAL_SETS
from lpips_lightning.data.datamodules import BAPPSDataModule, TripletDataModule
from lpips_lightning.io.atomic import check_output_path, new_version
from lpips_lightning.io.download import ProgressCallback
from lpips_lightning.io.progress import progress_report
from lpips_lightning.io.streams import is_stream, name_streams
from lpips_lightning.network import LPIPS
from lpips_lightning.recipes.command import RecipeCLI, run_recipe
from lpips_lightning.recipes.command_lines import FAST_OUT, fast_parser
from lpips_lightning.runs.launch import Launch
from lpips_lightning.runs.once import PerProcess
from lpips_lightning.runs.pooled import PooledWork, pool_on_ranks


class CalibrationCLI(RecipeCLI):
    """Adds ``--best.*`` and ``--last.*`` (checkpoints) and ``--file.*`` (calibration file)."""

    networks = (("model.net_type", "model.weights"),)
    outputs = (("file.path", "fit"),)

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

    Compares the calibration with the official one on the held-out triplets, and writes it with a figure of its report
    beside it.

    Args:
        args: Command line after ``fast``.

    Raises:
        ValueError: If an argument is invalid.
        FileNotFoundError: If a file is missing.
    """
    options = fast_parser().parse_args(args)
    launch = launch_of(options)
    with progress_report("items") as report:
        found = _pool(options) if launch is None else _pool_on_ranks(options, launch, report)
    if found is not None:
        _fit(options, *found)


@dataclass(frozen=True)
class _Job:
    """What `fast` works on."""

    data: BAPPSDataModule | TripletDataModule
    network: Callable[[], TrainableLPIPS]
    console: Any

    @property
    def parts(self) -> list[Any]:
        """Triplets to train on, then those held out."""
        return [self.data.train_data, *self.data.val_data.values()]


def _prepare(options: argparse.Namespace) -> _Job:
    """Check all arguments, and read the judgments."""
    from lpips_lightning.io.console import Console

    options.out = options.out or str(FAST_OUT if options.force else new_version(FAST_OUT))
    console = Console(stderr=name_streams(options, ["csv", "val_csv"], ["out"]), highlight=False, soft_wrap=True)
    _check_fast(options)
    check_loggers(options)
    require_backbone(options.net, "--net", options.weights)
    data = _fast_data(options)
    data.prepare_data()
    data.setup("fit")
    network = PerProcess(_fast_network, options.net, options.weights, options.init, options.seed)
    return _Job(data, network, console)


def _fast_network(net: str, weights: str | None, init: Initialization, seed: int) -> TrainableLPIPS:
    require_backbone(net, "--net", weights)
    return TrainableLPIPS(net, weights=weights, init=init, seed=seed)


def _pool(options: argparse.Namespace) -> tuple[_Job, list[PooledTriplets]]:
    job = _prepare(options)
    pooled = [cached_pool(job.network(), part, options.cache, num_workers=options.num_workers) for part in job.parts]
    return job, pooled


def _pool_on_ranks(
    options: argparse.Namespace, launch: Launch, report: ProgressCallback
) -> tuple[_Job, list[PooledTriplets]] | None:
    """As `_pool`, on the ranks of a Trainer; None on all but rank 0."""
    jobs: list[_Job] = []

    def make() -> PooledWork:
        jobs.append(job := _prepare(options))
        return PooledWork(job.network, job.parts, options.cache, report=report)

    pooled = pool_on_ranks(launch.trainer(), make, workers=options.num_workers)
    return None if pooled is None else (jobs[0], pooled)


def _fit(options: argparse.Namespace, job: _Job, pooled: Sequence[PooledTriplets]) -> None:
    """Fit, compare, print and write."""
    data, network, console, (train, *held_out) = job.data, job.network(), job.console, pooled
    official = TrainableLPIPS(options.net, weights=options.weights, init="official").calibration
    console.print(f"Training on {len(train)} triplets, {len(train.mean)} pairs")
    found = fit_lin(train, network.calibration, lr=options.lr, seed=options.seed)
    network.set_calibration(found.calibration)
    comparisons = {
        name: compare_calibrations(part, found.calibration, official, getattr(data.val_data[name], "references", None))
        for name, part in zip(data.val_names, held_out, strict=True)
    }
    for name, comparison in comparisons.items():
        console.print("\n".join(comparison.lines(name)), markup=False)
    factor = level_factor(train, found.calibration, official) if options.rescale else 1.0
    record = _fast_record(options, len(train), comparisons, factor)
    path = write_calibration(options.out, network, factor, record)
    scale = f"scaled by {factor:.3g} to the mean distance of the official one" if options.rescale else "not rescaled"
    console.print(f"Written to {path}: the calibration, {scale}", markup=False)
    if not is_stream(path):
        weights = {layer: factor * weight for layer, weight in network.calibration.items()}
        _draw_report(comparisons, weights, path, console)
        console.print(usage(options.net, path, options.weights), markup=False)
    _log(options, comparisons, path, record, console)


def _log(
    options: argparse.Namespace, comparisons: dict[str, Comparison], path: Path, record: dict[str, Any], console: Any
) -> None:
    """Log the scores by the names of ``fit``, and the official ones beside them."""
    if not (options.logger or options.wandb):
        return
    scores = {"factor": record["factor"]}
    for name, found in comparisons.items():
        scores |= {
            f"val/{name}/2afc": found.own.value,
            f"val/{name}/2afc_official": found.official.value,
            f"val/{name}/2afc_difference": found.difference.value,
        }
    config = {name: value for name, value in record.items() if name not in ("scores", "factor")}
    if not is_stream(path):
        config["fingerprint"] = LPIPS(options.net, weights=options.weights, calibration=path).fingerprint
    log_scores(options, scores, config, "calibration", console)


def _check_fast(options: argparse.Namespace) -> None:
    if options.folder is None:
        raise ValueError("folder: expected --folder DIR, of the images of --csv FILE or of a data set, got none")
    if options.csv is None and options.val_csv is not None:
        raise ValueError("val-csv: expected --csv FILE with it, got none")
    if not options.out.endswith(".safetensors") and not is_stream(options.out):
        raise ValueError(f"out: expected a file that ends in .safetensors, got {options.out!r}")
    check_output_path(options.out, "out", replace=options.force)
    if not is_stream(options.out):
        for suffix in (".png", ".pdf"):  # the report
            check_output_path(Path(options.out).with_suffix(suffix), "out", replace=options.force)


def _fast_record(
    options: argparse.Namespace, triplets: int, comparisons: dict[str, Comparison], factor: float
) -> dict[str, Any]:
    unrecorded = {"out", "cache", "num_workers", "force", *LAUNCH_OPTIONS, *LOGGER_OPTIONS}
    return {
        **{name: value for name, value in vars(options).items() if name not in unrecorded},
        "mode": "lin",
        "fast": True,
        "triplets": triplets,
        "scores": {name: comparison.record() for name, comparison in comparisons.items()},
        "factor": factor,
        "date": date.today().isoformat(),
        "lpips_lightning": __version__,
    }


def _draw_report(
    comparisons: dict[str, Comparison], calibration: dict[str, torch.Tensor], path: Path, console: Any
) -> None:
    """Write the figure of `CalibrationReport` beside the calibration."""
    if find_spec("matplotlib") is None:
        console.print('No report, which matplotlib draws: pip install "lpips_lightning[recipes]"', markup=False)
        return
    official = {name: comparison.official.value for name, comparison in comparisons.items()}
    report = CalibrationReport(official)
    report.paper_label = "official calibration"
    results: Any = SimpleNamespace(
        calibration_scores={name: comparison.own.value for name, comparison in comparisons.items()},
        human_ceilings={name: found.human for name, found in comparisons.items() if found.human is not None},
        jnd_scores={},
        jnd_curves={},
        calibration=calibration,
    )
    files = report.save(results, path.with_suffix(".png"))
    console.print(f"Written to {' and '.join(map(str, files))}: its report", markup=False)


def _fast_data(options: argparse.Namespace) -> BAPPSDataModule | TripletDataModule:
    size = options.size or None
    if options.csv is None:
        train, val = (options.sets or _present(Path(options.folder, "2afc", split)) for split in ("train", "val"))
        return BAPPSDataModule(options.folder, train, val, size=size, seed=options.seed, download=False)
    split = (options.val_csv, options.val_fraction, options.split_by)
    return TripletDataModule(options.csv, options.folder, *split, size=size, seed=options.seed)


def _present(folder: Path) -> list[str]:
    """Names of the sets in `folder`, the paper's first; the paper's if there is no such folder."""
    known = TRAIN_SETS if folder.name == "train" else VAL_SETS
    if not folder.is_dir():
        return list(known)
    names = {path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")}
    return sorted(names, key=lambda name: (known.index(name) if name in known else len(known), name))
