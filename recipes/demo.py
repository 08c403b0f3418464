"""Demonstration: a few minutes of superresolution training on the CPU, with a table of scores and a figure.

Examples::

    lpips-lightning demo
    lpips-lightning demo --minutes 10 --held-out chelsea --out outputs/chelsea
"""

import statistics
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
from pytorch_lightning import Trainer
from pytorch_lightning.utilities.seed import isolate_rng
from rich.table import Table
from torch import Tensor
from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure

from lpips_lightning import LPIPS
from lpips_lightning.backbones.definition import BACKBONES
from lpips_lightning.backbones.offline import packaged_net, require_backbone
from lpips_lightning.io.atomic import choose_output_folder
from lpips_lightning.io.console import Console
from lpips_lightning.io.figures import require_matplotlib
from lpips_lightning.recipes.command import quiet_lightning
from lpips_lightning.recipes.command_lines import DEMO_OUT, demo_parser
from lpips_lightning.recipes.panel import Column, save_panel
from lpips_lightning.recipes.superresolution import SuperResolution, upscale
from lpips_lightning.recipes.superresolution_data import Scale, SuperResolutionData
from lpips_lightning.recipes.tradeoff_table import OWN

_PANEL, _CHECKPOINT = "panel.png", "superresolution.ckpt"
_FILES = (_PANEL, "panel.pdf", _CHECKPOINT)

LOSS_NET = "embedded"  # ships with the package
METRIC_NET = "alex"  # if its weights are on this machine

SCALE: Scale = 4
STEPS_PER_MINUTE = 300  # speed of 2 cores; slower machines take fewer steps, faster ones finish earlier
WARM_UP_STEPS, TIMED_STEPS = 2, 4
OVERHEAD = 1.15  # optimizer, data and progress bar, relative to forward and backward pass
TIME_LIMIT = 1.25  # relative to the requested time, in case the machine slows down


@dataclass(frozen=True)
class Scores:
    """Scores of an image against the ground truth: `psnr` in dB and `ssim` (higher is better), `lpips` (lower)."""

    psnr: float
    ssim: float
    lpips: float


@dataclass(frozen=True)
class DemoResult:
    """Results of the demonstration.

    Attributes:
        scores: Scores on the held-out photograph: "bicubic", "before" and "after" training.
        steps: Number of training steps.
        panel: File of the figure.
        checkpoint: File of the trained model, for ``lpips-lightning superresolution predict``.
    """

    scores: dict[str, Scores]
    steps: int
    panel: Path
    checkpoint: Path


def main(args: list[str] | None = None) -> None:
    """Run the demonstration from the command line.

    Args:
        args: Command line without the program name; None takes ``sys.argv``.
    """
    options = demo_parser().parse_args(args)
    for option, net_type in (("--loss-net", options.loss_net), ("--metric-net", options.metric_net)):
        require_backbone(net_type, option)
    run_demo(
        choose_output_folder(options.out, DEMO_OUT, options.force, _FILES),
        minutes=options.minutes,
        held_out=options.held_out,
        loss_net=options.loss_net,
        metric_net=options.metric_net,
        seed=options.seed,
    )


def run_demo(
    out: str | Path = DEMO_OUT,
    *,
    minutes: float = 2.5,
    held_out: str = "astronaut",
    loss_net: str = LOSS_NET,
    metric_net: str = "auto",
    seed: int = 0,
    loss_weights: str | None = None,
    metric_weights: str | None = None,
    max_steps: int | None = None,
    console: Console | None = None,
) -> DemoResult:
    """Train superresolution x4 on scikit-image's photographs and evaluate it on a held-out one.

    Args:
        out: Folder for figure and checkpoint.
        minutes: Training time on the CPU; the number of steps follows from a few timed steps.
        held_out: Name of the photograph for evaluation.
        loss_net: Network of the loss.
        metric_net: Network of the metric; "auto" takes "alex" if its weights are on this machine, else the network
            that ships and is not that of the loss.
        seed: Seed of the initial network and the crops.
        loss_weights: Backbone weights of the loss, see `LPIPS`.
        metric_weights: Backbone weights of the metric, see `LPIPS`.
        max_steps: Most steps, even if the time allows more.
        console: Output console; None for standard output.

    Returns:
        Scores, steps and files.

    Raises:
        ValueError: If an argument is invalid, or the photograph does not exist.
        ModuleNotFoundError: If scikit-image or matplotlib is missing.
        WeightsError: If the weights of a network are missing.
    """
    if not minutes > 0:
        raise ValueError(f"minutes: expected more than 0, got {minutes}")
    require_matplotlib()  # before the training
    console = console or Console()
    with quiet_lightning(), isolate_rng(include_cuda=False):
        torch.manual_seed(seed)
        return _run(
            Path(out), minutes, held_out, loss_net, metric_net, loss_weights, metric_weights, max_steps, console
        )


def _run(
    out: Path,
    minutes: float,
    held_out: str,
    loss_net: str,
    metric_net: str,
    loss_weights: str | None,
    metric_weights: str | None,
    max_steps: int | None,
    console: Console,
) -> DemoResult:
    start = time.monotonic()
    metric_net_name = choose_metric_net(metric_net, loss_net, console)
    metric = LPIPS(metric_net_name, weights=metric_weights)
    data = SuperResolutionData(held_out=[held_out], scale=SCALE)
    model = SuperResolution(SCALE, loss_net=loss_net, loss_weights=loss_weights)
    data.setup("test")
    low, truth = (image[None] for image in data.test_data[0][:2])
    images = {"bicubic": upscale(low, SCALE).clamp(0, 1), "before": _enlarge(model, low)}

    _say(console, f"Training on {', '.join(data.split()[0])}; '{held_out}' is held out.")
    _say(console, f"Loss: L1 + {model.hparams['loss_weight']:g} LPIPS({loss_net}). Metric: LPIPS({metric_net_name}).")
    trainer = _fit(model, data, minutes * 60, max_steps)
    images["after"] = _enlarge(model, low)

    scores = {name: _score(image, truth, metric) for name, image in images.items()}
    console.print(scores_table(scores, held_out, f"LPIPS({metric_net_name})", same_network=metric_net_name == loss_net))
    result = DemoResult(scores, trainer.global_step, out / _PANEL, out / _CHECKPOINT)
    trainer.save_checkpoint(result.checkpoint)
    files = _draw(result, low, truth, images, metric, loss_net)
    seconds = time.monotonic() - start
    _say(console, f"{result.steps} training steps, {seconds:.0f} s in all. Metric: {metric.fingerprint}")
    _say(console, f"Figure: {', '.join(map(str, files))}")
    predict = f"lpips-lightning superresolution predict --ckpt_path {result.checkpoint} --data.predict_folder FOLDER"
    _say(console, f"To enlarge your own images: {predict}")
    return result


def _say(console: Console, line: str) -> None:
    console.print(line, soft_wrap=True, highlight=False, markup=False)


def choose_metric_net(metric_net: str, loss_net: str, console: Console) -> str:
    """Resolve the network of the metric; for "auto", print a fallback and its reason."""
    if metric_net != "auto":
        return metric_net
    if BACKBONES[METRIC_NET].is_available:
        return METRIC_NET
    fallback = packaged_net(METRIC_NET, other_than=loss_net)
    missing = f"The weights of {METRIC_NET!r} are not on this machine"
    _say(console, f"{missing}: the metric uses {fallback!r}; --metric-net {METRIC_NET} downloads them.")
    return fallback


def _fit(model: SuperResolution, data: SuperResolutionData, seconds: float, max_steps: int | None) -> Trainer:
    """Train one epoch with as many steps as `seconds` allow, at most `max_steps`."""
    all_threads = torch.get_num_threads()
    try:
        nominal, possible = seconds / 60 * STEPS_PER_MINUTE, seconds / _seconds_per_step(model, data)
        steps = max(1, int(min(nominal, possible)))
        data.epoch_size = data.batch_size * min(steps, max_steps or steps)
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=1,
            max_time=timedelta(seconds=TIME_LIMIT * seconds),
            limit_val_batches=0,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
        )
        trainer.fit(model, data)
        return trainer
    finally:
        torch.set_num_threads(all_threads)


def _seconds_per_step(model: SuperResolution, data: SuperResolutionData) -> float:
    """Seconds per training step; sets the number of threads, one or all, that is faster.

    If other programs use the cores, many threads can be ten times slower than one.
    """
    data.setup("fit")
    model.setup("fit")
    low, high, _ = next(iter(data.train_dataloader()))
    durations = {}
    for threads in {1, torch.get_num_threads()}:
        torch.set_num_threads(threads)
        times = []
        for _ in range(WARM_UP_STEPS + TIMED_STEPS):
            start = time.monotonic()
            torch.autograd.backward(model.losses(model.network(low), high)["train/loss"])
            times.append(time.monotonic() - start)
        durations[threads] = statistics.median(times[WARM_UP_STEPS:])
    model.zero_grad()
    fastest = min(durations, key=lambda threads: durations[threads])
    torch.set_num_threads(fastest)
    return durations[fastest] * OVERHEAD


def _enlarge(model: SuperResolution, low: Tensor) -> Tensor:
    model.eval()
    with torch.inference_mode():
        image = model(low)
    model.train()
    return image


def _score(image: Tensor, truth: Tensor, metric: LPIPS) -> Scores:
    psnr, ssim = PeakSignalNoiseRatio(data_range=1.0), StructuralSimilarityIndexMeasure(data_range=1.0)
    return Scores(float(psnr(image, truth)), float(ssim(image, truth)), float(metric(image, truth, (0, 1))))


def scores_table(scores: dict[str, Scores], held_out: str, metric: str, same_network: bool) -> Table:
    """Table of the scores, with the change of LPIPS relative to bicubic."""
    title = f"Superresolution x{SCALE} of the held-out '{held_out}'"
    table = Table(title=title)
    if same_network:
        table.caption = "Loss and metric share a network: a metric with another network would be stronger evidence."
    table.add_column("")
    for heading in ("PSNR (dB) \u2191", "SSIM \u2191", f"{metric} \u2193", "vs. bicubic"):
        table.add_column(heading, justify="right", no_wrap=True)
    reference = scores["bicubic"].lpips
    for name, row in scores.items():
        change = "" if name == "bicubic" else f"{row.lpips / reference - 1:+.1%}"
        label = {"before": "before training", "after": "after training"}.get(name, name)
        cells = (label, f"{row.psnr:.2f}", f"{row.ssim:.3f}", f"{row.lpips:.3f}", change)
        table.add_row(*cells, style="bold" if name == "after" else "")
    return table


def _draw(
    result: DemoResult, low: Tensor, truth: Tensor, images: dict[str, Tensor], metric: LPIPS, loss_net: str
) -> list[Path]:
    mark = OWN if metric.net_type == loss_net else ""

    def subtitle(name: str) -> str:
        scores = result.scores[name]
        return f"PSNR {scores.psnr:.1f} dB\nLPIPS {scores.lpips:.3f}{mark}"

    def heatmap(name: str) -> Tensor:
        with torch.inference_mode():
            return metric(images[name], truth, (0, 1), spatial=True)[0, 0]

    columns = [
        Column("Low resolution", f"{low.shape[3]} x {low.shape[2]} pixels\n", low[0]),
        Column("Bicubic", subtitle("bicubic"), images["bicubic"][0]),
        Column("With LPIPS", subtitle("after"), images["after"][0]),
        Column("Truth", f"{truth.shape[3]} x {truth.shape[2]} pixels\n", truth[0]),
        Column("Bicubic to truth", f"local LPIPS{mark}\n", heatmap("bicubic")),
        Column("Ours to truth", f"local LPIPS{mark}\n", heatmap("after")),
    ]
    biased = f" {OWN} The network of the loss: its scores are biased." if mark else ""
    return save_panel(
        columns,
        result.panel,
        f"Superresolution x{SCALE} after {result.steps} training steps, on a held-out photograph",
        map_label=f"local LPIPS({metric.net_type})",
        note=f"LPIPS by {metric.net_type} v{metric.version}.{biased}",
    )
