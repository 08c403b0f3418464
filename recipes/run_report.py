"""What is printed at the end of a recipe's run: scores beside the baseline, files written, the next command."""

from __future__ import annotations

import math
import shlex
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from rich.table import Table

from lpips_lightning.io.console import Console
from lpips_lightning.recipes.interruption import Stopped
from lpips_lightning.recipes.run_folder import CarryBest, RunFolder
from lpips_lightning.recipes.run_history import (
    RunHistory,
    Scores,
    Validation,
    monitored,
    plain_scores,
    rounded,
    score_models,
)

if TYPE_CHECKING:
    from lpips_lightning.recipes.command import RecipeCLI

# By a part of a score's name: whether larger is better. Others are shown without an arrow.
_DIRECTIONS = {
    **dict.fromkeys(("lpips", "loss", "ciede2000", "error"), False),
    **dict.fromkeys(("psnr", "ssim", "2afc", "jnd", "spearman", "pearson", "accuracy"), True),
}
_ARROWS = {True: " \u2191", False: " \u2193", None: ""}
_COLUMNS = 4  # scores that fit beside each other into 80 characters
_TARGETS = ("colorfulness_truth",)  # scores of the truth, which do not depend on the model


class RunReport:
    """Runs a subcommand of a recipe's CLI in a folder of its own, and prints what came of it."""

    def __init__(self, cli: RecipeCLI) -> None:
        self.cli = cli
        self.trainer: Any = cli.trainer
        self.speaks = cli.reports and self.trainer.is_global_zero
        self.folder = RunFolder()

    def fit(self, options: dict[str, Any]) -> None:
        """Train; print scores beside the baseline, files and the next commands.

        Raises:
            SystemExit: After SIGINT or SIGTERM, with code 130 or 143.
        """
        resumed = self._check_checkpoint(options.get("ckpt_path"))
        with self._run("fit", resumed):
            if self.speaks:
                print_line(f"Training {self.cli.trained()}{self._place()}.")
            self._score_references("val")
            self.trainer.fit(**options)
        if not self.speaks or getattr(self.trainer, "fast_dev_run", False):
            return
        print_scores(fit_rows(self.cli.history, self.trainer), "Validation scores")
        print_files(self.folder.path, [*_checkpoints(self.trainer), *self.cli.written_files()])
        checkpoint = best_checkpoint(self.trainer)
        for command in self.cli.next_commands(checkpoint) if checkpoint is not None else ():
            print_line(f"Next: {command}")

    def evaluate(self, subcommand: str, options: dict[str, Any]) -> None:
        """Validate or test; print scores beside the baseline, files and the next command."""
        stage = "val" if subcommand == "validate" else "test"
        given, history = options.get("ckpt_path"), self.cli.history
        self._check_checkpoint(given)
        prints = bool(options.pop("verbose", True)) and self.cli.reports
        with self._run(subcommand):
            if given and prints:
                self._score_references(stage, single_sets=True)
            getattr(self.trainer, subcommand)(**options, verbose=False)
        if not prints or not self.trainer.is_global_zero:
            return
        label = Path(given).name if given else next(reversed(self.cli.reference_models()), "before training")
        found = plain_scores(self.trainer.callback_metrics, stage, single_sets=True)
        print_columns({**history.references, label: found}, prefix=f"{stage}/")
        print_files(self.folder.path)
        for command in self.cli.next_commands(Path(given))[1:] if given else ():
            print_line(f"Next: {command}")

    def predict(self, options: dict[str, Any]) -> None:
        """Predict; print the folder of the images."""
        self._check_checkpoint(options.get("ckpt_path"))
        with self._run("predict"):
            self.trainer.predict(**options)
        for callback in self.trainer.callbacks if self.speaks else ():
            folder = getattr(callback, "out", None)
            if isinstance(folder, str | Path) and Path(folder).is_dir():
                print_line(f"Written: images in {folder}")
                print_line(f"Next: {command_line('lpips-lightning', 'compare', [str(folder), 'TRUTH'])}")

    @staticmethod
    def _check_checkpoint(given: str | None) -> Path | None:
        """Path of a checkpoint file; None without one, and for Lightning's keywords and addresses."""
        if given is None or str(given) in ("best", "last", "hpc") or ":" in str(given):
            return None
        if not Path(given).is_file():
            raise FileNotFoundError(f"--ckpt_path: expected an existing file, got {str(given)!r}")
        return Path(given)

    @contextmanager
    def _run(self, subcommand: str, resumed: Path | None = None) -> Iterator[None]:
        self.folder = RunFolder.open(self.trainer, resumed)
        if resumed is not None:
            self.trainer.callbacks.insert(0, CarryBest(resumed))
        stop = self.cli.interruption
        with stop, warnings.catch_warnings():
            if subcommand != "fit":  # ModelCheckpoint has nothing to do
                warnings.filterwarnings("ignore", "The dirpath has changed")
            if self.folder.continues:
                warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")
            try:
                yield
            except BaseException as error:
                if subcommand != "fit" or not stop.steps:
                    self.folder.discard()
                if stop.signal is None or not isinstance(error, Stopped | KeyboardInterrupt | SystemExit):
                    raise
                if subcommand == "fit" and self.speaks:
                    self._print_resume()
                raise SystemExit(stop.code) from None

    def _print_resume(self) -> None:
        stop = self.cli.interruption
        if stop.checkpoint is None:
            print_line(
                "Stopped before the first step." if not stop.steps else "Stopped without a checkpoint.", error=True
            )
            return
        args = [*without_option(self.cli.args, "--ckpt_path"), "--ckpt_path", stop.checkpoint]
        print_line(f"Stopped after step {self.trainer.global_step}. To resume:", error=True)
        print_line(f"  {command_line(self.cli.parser.prog, 'fit', args)}", error=True)

    def _place(self) -> str:
        if self.folder.path is None:
            return ""
        return f"; {'continues in' if self.folder.continues else 'results go to'} {self.folder.path}"

    def _score_references(self, stage: str, single_sets: bool = False) -> None:
        trainer = self.trainer
        limit = trainer.limit_test_batches if stage == "test" else trainer.limit_val_batches
        if not self.cli.reports or not limit or getattr(trainer, "fast_dev_run", False):
            return
        models = self.cli.reference_models()
        if models and self.speaks:
            print_line(f"Scoring for comparison: {', '.join(models)}.")
        history = self.cli.history
        history.references = score_models(trainer, models, self.cli.datamodule, stage, single_sets)
        history.untrained = next((label for label, one in models.items() if one is self.cli.model), None)


def print_columns(columns: dict[str, Scores], title: str | None = None, prefix: str = "") -> None:
    """Print scores as a table with a row per score, with arrows towards better, and a column per model.

    Args:
        columns: Scores by name, by label of the model.
        title: Title of the table.
        prefix: Put before the names.
    """
    table = Table(title=title, title_justify="left")
    table.add_column("", no_wrap=True)
    for label in columns:
        table.add_column(label, justify="right", overflow="fold")
    for name in dict.fromkeys(name for scores in reversed(columns.values()) for name in scores):
        cells = [rounded(scores[name]) if name in scores else "" for scores in columns.values()]
        table.add_row(f"{prefix}{name}{_ARROWS[_larger_is_better(name)]}", *cells)
    if table.rows:
        Console().print(table)


def print_line(line: str, *, error: bool = False) -> None:
    """Print one line, unwrapped, on standard output or error."""
    Console(stderr=error).print(line, soft_wrap=True, highlight=False, markup=False)


def print_scores(rows: Sequence[tuple[str, Scores]], title: str) -> None:
    """Print scores as a table: a row per model, a column per score, or the other way round with many scores.

    Args:
        rows: Labels and scores by name; the last row is emphasized.
        title: Title of the table.
    """
    names = list(dict.fromkeys(name for _, scores in reversed(rows) for name in scores if name not in _TARGETS))
    if not names:
        return
    if len(names) > _COLUMNS:
        print_columns(
            {label: {name: scores[name] for name in names if name in scores} for label, scores in rows}, title
        )
        return
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for name in names:
        table.add_column(f"{name}{_ARROWS[_larger_is_better(name)]}", justify="right", overflow="fold")
    for index, (label, scores) in enumerate(rows):
        cells = [rounded(scores[name]) if name in scores else "" for name in names]
        table.add_row(label, *cells, style="bold" if index == len(rows) - 1 and len(rows) > 1 else "")
    Console().print(table)


def fit_rows(history: RunHistory, trainer: Trainer) -> list[tuple[str, Scores]]:
    """Rows of the table after a training: other models, the first epoch if none is untrained, best and last epoch."""
    rows = [(_reference_label(label, history), scores) for label, scores in history.references.items()]
    if not history.validations:
        return rows
    best, last, first = _best(history, trainer), history.validations[-1], history.validations[0]
    if history.untrained is None and first is not last:
        rows.append((f"epoch {first.epoch}", first.scores))
    if best is last:
        return [*rows, (f"epoch {last.epoch}, best and last", last.scores)]
    if best is None:
        return [*rows, (f"epoch {last.epoch}, last", last.scores)]
    return [*rows, (f"epoch {last.epoch}, last", last.scores), (f"epoch {best.epoch}, best", best.scores)]


def print_files(folder: Path | None, first: Sequence[tuple[Path, str]] = ()) -> None:
    """Print the files of a run with a word on each; files that were not written are left out.

    Args:
        folder: Folder of the run.
        first: Other files and what they are.
    """
    files = [*first]
    if folder is not None:
        files += [(folder / "metrics.csv", "scores and losses by step"), (folder / "config.yaml", "all options")]
        images = [path for path in folder.rglob("*.png") if path.is_file()]
        for parent in sorted({path.parent for path in images}):
            count = sum(path.parent == parent for path in images)
            files.append((parent, "1 image" if count == 1 else f"{count} images"))
    files = [(path, what) for path, what in files if path.exists()]
    if files:
        print_line("Written:")
        width = max(len(str(path)) for path, _ in files)
        for path, what in files:
            print_line(f"  {path!s:{width}}  {what}")


def best_checkpoint(trainer: Trainer) -> Path | None:
    """The best checkpoint, else the last one, that exists."""
    found = [one for one in trainer.checkpoint_callbacks if isinstance(one, ModelCheckpoint)]
    paths = [one.best_model_path for one in found] + [one.last_model_path for one in found]
    return next((Path(path) for path in paths if path and Path(path).exists()), None)


def command_line(prog: str, subcommand: str, args: Sequence[str]) -> str:
    """Command line of a recipe, quoted for the shell."""
    return f"{prog} {subcommand} {shlex.join(args)}".rstrip()


def without_option(args: Sequence[str], name: str) -> list[str]:
    """Arguments without an option and its value.

    Example:
        >>> without_option(["--ckpt_path", "a", "--x=1", "--ckpt_path=b"], "--ckpt_path")
        ['--x=1']
    """
    return [word for group in _groups(args) if group[0].partition("=")[0] != name for word in group]


def options_with(args: Sequence[str], *prefixes: str) -> list[str]:
    """Options that are, or start with, one of the prefixes and a dot, with their values.

    Example:
        >>> options_with(["--data.folder", "a b", "--trainer.devices=2", "-c", "x"], "--data", "-c")
        ['--data.folder', 'a b', '-c', 'x']
    """
    return [word for group in _groups(args) if _name(group[0]) in prefixes for word in group]


def _name(option: str) -> str:
    return option.partition("=")[0].partition(".")[0]


def _groups(args: Sequence[str]) -> list[list[str]]:
    """Options, each with the values that follow it."""
    groups: list[list[str]] = []
    for word in args:
        is_option = word.startswith("--") or (word.startswith("-") and not word[1:2].isdigit() and word != "-")
        if is_option or not groups:
            groups.append([word])
        else:
            groups[-1].append(word)
    return groups


def _larger_is_better(name: str) -> bool | None:
    words = name.replace("/", "_").split("_")
    return next((larger for known, larger in _DIRECTIONS.items() if set(known.split("_")) <= set(words)), None)


def _reference_label(label: str, history: RunHistory) -> str:
    known = label == history.untrained and label != "untrained"
    return f"{label} (before training)" if known else "before training" if label == "untrained" else label


def _best(history: RunHistory, trainer: Trainer) -> Validation | None:
    monitor, mode = monitored(trainer)
    scored = [one for one in history.validations if monitor in one.scores]
    sign = -1 if mode == "max" else 1

    def cost(one: Validation) -> float:
        score = sign * one.scores[str(monitor)]
        return math.inf if math.isnan(score) else score

    return min(scored, key=cost) if scored else None


def _checkpoints(trainer: Trainer) -> list[tuple[Path, str]]:
    files: dict[str, str] = {}
    for callback in trainer.checkpoint_callbacks:
        if not isinstance(callback, ModelCheckpoint):
            continue
        if callback.best_model_path:
            score = "" if callback.best_model_score is None else f" {rounded(float(callback.best_model_score))}"
            files[callback.best_model_path] = f"checkpoint, best {callback.monitor}{score}" if score else "checkpoint"
        if callback.last_model_path:
            files.setdefault(callback.last_model_path, "checkpoint, last; --ckpt_path resumes from it")
    return [(Path(path), what) for path, what in files.items()]
