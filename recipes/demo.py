"""The demonstration: minutes of superresolution training on the CPU, a table of scores and an image to look at.

Examples::

    lpips-lightning demo
    lpips-lightning demo --minutes 10 --held-out chelsea --out outputs/chelsea
"""

import argparse
import statistics
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
from pytorch_lightning import Trainer
from pytorch_lightning.utilities.seed import isolate_rng
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure

from lpips_lightning import LPIPS
from lpips_lightning.backbones.definition import BACKBONES
from lpips_lightning.io.atomic import check_output_path
from lpips_lightning.recipes.command import quiet_lightning
from lpips_lightning.recipes.panel import Column, require_matplotlib, save_panel
from lpips_lightning.recipes.superresolution import SuperResolution, upscale
from lpips_lightning.recipes.superresolution_data import Scale, SuperResolutionData

LOSS_NET = "embedded"  # ships with the package
JUDGE = "alex"  # the metric's network where its weights lie on this machine already
SPARE_JUDGE = "embedded"  # else this one, although it is the loss's own

SCALE: Scale = 4
STEPS_PER_MINUTE = 300  # what 2 cores do; slower machines take fewer steps, faster ones rest earlier
WARM_UP_STEPS, CLOCKED_STEPS = 2, 4
OVERHEAD = 1.15  # optimizer, data and progress bar, in shares of forward and backward
GRACE = 1.25  # the hard limit, in shares of the time asked for, if the machine slows down on the way


@dataclass(frozen=True)
class Scores:
    """How near an image is to the truth: `psnr` in dB and `ssim` (higher is better), `lpips` (lower is better)."""

    psnr: float
    ssim: float
    lpips: float


@dataclass(frozen=True)
class DemoResult:
    """What the demonstration found.

    Attributes:
        scores: By "bicubic", "before" and "after" (training), on the held-out photograph.
        steps: Training steps taken.
        panel: The image.
        checkpoint: The trained model, for ``lpips-lightning superresolution predict``.
    """

    scores: dict[str, Scores]
    steps: int
    panel: Path
    checkpoint: Path


def main(args: list[str] | None = None) -> None:
    """Run the demonstration from the command line.

    Args:
        args: Command line without the program's name; None takes ``sys.argv``.
    """
    parser = argparse.ArgumentParser("lpips-lightning demo", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", default="outputs/demo", help="folder to write into (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=2.5, help="of training, at most (default: %(default)s)")
    parser.add_argument("--held-out", default="astronaut", help="photograph to judge by (default: %(default)s)")
    parser.add_argument("--loss-net", default=LOSS_NET, help="network of the loss (default: %(default)s)")
    parser.add_argument(
        "--metric-net",
        default="auto",
        help=f"network that judges; auto (the default): {JUDGE} if it is on this machine, else {SPARE_JUDGE}",
    )
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    options = parser.parse_args(args)
    check_output_path(options.out, "out", folder=True)
    run_demo(
        options.out,
        minutes=options.minutes,
        held_out=options.held_out,
        loss_net=options.loss_net,
        metric_net=options.metric_net,
        seed=options.seed,
    )


def run_demo(
    out: str | Path = "outputs/demo",
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
    """Train superresolution x4 on the photographs that come with scikit-image, and judge it on one that was held out.

    Args:
        out: Folder for the image and the checkpoint.
        minutes: Training time on the CPU; the number of steps is chosen to fit, after a few steps against the clock.
        held_out: Name of the photograph that is kept from training.
        loss_net: Network of the loss.
        metric_net: Network that judges; "auto" takes "alex" if its weights lie on this machine, else "embedded".
        seed: Of the initial network and the crops.
        loss_weights: Backbone weights of the loss, see `LPIPS`.
        metric_weights: Backbone weights of the judge, likewise.
        max_steps: Steps at most, whatever the clock says.
        console: Where to write to; None: standard output.

    Returns:
        Scores, steps and files.

    Raises:
        ValueError: If an argument is off, or no such photograph exists.
        ModuleNotFoundError: If scikit-image or matplotlib is missing.
        WeightsError: If the weights of a network are missing.
    """
    if not minutes > 0:
        raise ValueError(f"minutes: expected more than 0, got {minutes}")
    require_matplotlib()  # now, not after the training
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
    judge_name = choose_judge(metric_net, console)
    judge = LPIPS(judge_name, weights=metric_weights)
    data = SuperResolutionData(held_out=[held_out], scale=SCALE)
    model = SuperResolution(SCALE, loss_net=loss_net, loss_weights=loss_weights)
    data.setup("test")
    low, truth = (image[None] for image in data.test_data[0][:2])
    images = {"bicubic": upscale(low, SCALE).clamp(0, 1), "before": _enlarge(model, low)}

    _say(console, f"Training on {', '.join(data.split()[0])}; '{held_out}' is held out.")
    _say(console, f"Loss: L1 + {model.hparams['loss_weight']:g} LPIPS({loss_net}). Judge: LPIPS({judge_name}).")
    trainer = _fit(model, data, minutes * 60, max_steps)
    images["after"] = _enlarge(model, low)

    scores = {name: _score(image, truth, judge) for name, image in images.items()}
    console.print(scores_table(scores, held_out, f"LPIPS({judge_name})", own_judge=judge_name == loss_net))
    result = DemoResult(scores, trainer.global_step, out / "panel.png", out / "superresolution.ckpt")
    trainer.save_checkpoint(result.checkpoint)
    _draw(result, low, truth, images, judge)
    seconds = time.monotonic() - start
    _say(console, f"{result.steps} training steps, {seconds:.0f} s in all. Judge: {judge.fingerprint}")
    _say(console, f"Image: {result.panel}")
    predict = f"lpips-lightning superresolution predict --ckpt_path {result.checkpoint} --data.predict_folder FOLDER"
    _say(console, f"To enlarge small images of your own: {predict}")
    return result


def _say(console: Console, line: str) -> None:
    console.print(line, soft_wrap=True, highlight=False, markup=False)


def choose_judge(metric_net: str, console: Console) -> str:
    """The judge's network; "auto" says what it chose and why."""
    if metric_net != "auto":
        return metric_net
    if BACKBONES[JUDGE].is_available:
        return JUDGE
    absent = f"The weights of {JUDGE!r} are not on this machine"
    _say(console, f"{absent}, so {SPARE_JUDGE!r} judges; --metric-net {JUDGE} downloads them.")
    return SPARE_JUDGE


def _fit(model: SuperResolution, data: SuperResolutionData, seconds: float, max_steps: int | None) -> Trainer:
    """Train for one epoch of as many steps as `seconds` allow, at most `max_steps`."""
    all_threads = torch.get_num_threads()
    try:
        nominal, possible = seconds / 60 * STEPS_PER_MINUTE, seconds / _pace(model, data)
        steps = max(1, int(min(nominal, possible)))
        data.epoch_size = data.batch_size * min(steps, max_steps or steps)
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=1,
            max_time=timedelta(seconds=GRACE * seconds),
            limit_val_batches=0,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
        )
        trainer.fit(model, data)
        return trainer
    finally:
        torch.set_num_threads(all_threads)


def _pace(model: SuperResolution, data: SuperResolutionData) -> float:
    """Seconds a step takes with one thread or with all, whichever is faster and then stays set.

    On cores that other programs keep busy, threads that wait for one another are ten times slower than one alone.
    """
    data.setup("fit")
    model.setup("fit")
    low, high, _ = next(iter(data.train_dataloader()))
    paces = {}
    for threads in {1, torch.get_num_threads()}:
        torch.set_num_threads(threads)
        times = []
        for _ in range(WARM_UP_STEPS + CLOCKED_STEPS):
            start = time.monotonic()
            torch.autograd.backward(model.losses(low, high)["train/loss"])
            times.append(time.monotonic() - start)
        paces[threads] = statistics.median(times[WARM_UP_STEPS:])
    model.zero_grad()
    fastest = min(paces, key=lambda threads: paces[threads])
    torch.set_num_threads(fastest)
    return paces[fastest] * OVERHEAD


def _enlarge(model: SuperResolution, low: Tensor) -> Tensor:
    model.eval()
    with torch.inference_mode():
        image = model(low)
    model.train()
    return image


def _score(image: Tensor, truth: Tensor, judge: LPIPS) -> Scores:
    psnr, ssim = PeakSignalNoiseRatio(data_range=1.0), StructuralSimilarityIndexMeasure(data_range=1.0)
    return Scores(float(psnr(image, truth)), float(ssim(image, truth)), float(judge(image, truth, (0, 1))))


def scores_table(scores: dict[str, Scores], held_out: str, judge: str, own_judge: bool) -> Table:
    """The scores of `bicubic`, `before` and `after`, with their change against bicubic."""
    title = f"Superresolution x{SCALE} of '{held_out}', which was held out"
    table = Table(title=title)
    if own_judge:
        table.caption = "Loss and judge share a network: a score from another one would be harder evidence."
    table.add_column("")
    for heading in ("PSNR (dB) \u2191", "SSIM \u2191", f"{judge} \u2193", "against bicubic"):
        table.add_column(heading, justify="right")
    reference = scores["bicubic"].lpips
    for name, row in scores.items():
        change = "" if name == "bicubic" else f"{row.lpips / reference - 1:+.1%}"
        label = {"before": "before training", "after": "after training"}.get(name, name)
        cells = (label, f"{row.psnr:.2f}", f"{row.ssim:.3f}", f"{row.lpips:.3f}", change)
        table.add_row(*cells, style="bold" if name == "after" else "")
    return table


def _draw(result: DemoResult, low: Tensor, truth: Tensor, images: dict[str, Tensor], judge: LPIPS) -> None:
    def subtitle(name: str) -> str:
        scores = result.scores[name]
        return f"PSNR {scores.psnr:.1f} dB   LPIPS {scores.lpips:.3f}"

    def heat(name: str) -> Tensor:
        with torch.inference_mode():
            return judge(images[name], truth, (0, 1), spatial=True)[0, 0]

    columns = [
        Column("Low resolution", f"{low.shape[3]} x {low.shape[2]} pixels", low[0]),
        Column("Bicubic", subtitle("bicubic"), images["bicubic"][0]),
        Column("Trained with LPIPS", subtitle("after"), images["after"][0]),
        Column("Truth", f"{truth.shape[3]} x {truth.shape[2]} pixels", truth[0]),
        Column("Where bicubic differs", f"LPIPS({judge.net_type}) map", heat("bicubic")),
        Column("Where ours differs", f"LPIPS({judge.net_type}) map", heat("after")),
    ]
    save_panel(
        columns,
        result.panel,
        f"Superresolution x{SCALE} after {result.steps} training steps, on a photograph that was held out",
    )
