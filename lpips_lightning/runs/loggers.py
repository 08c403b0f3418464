"""Lightning's loggers for the scores of a run: CSV, TensorBoard and wandb."""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger

Kind = Literal["csv", "tensorboard"]
Wandb = Literal["offline", "online"]

_log = logging.getLogger("lpips_lightning")


def check_run_loggers(kinds: Sequence[Kind], wandb: Wandb | None, folder: str | Path) -> None:
    """Check that `log_run` can log.

    Args:
        kinds: Loggers.
        wandb: How to log to wandb; None for not.
        folder: Folder of the logs.

    Raises:
        ModuleNotFoundError: If the package of a logger is not installed.
        ValueError: If the folder is a file, or wandb is to be online without an account.
    """
    if "tensorboard" in kinds and not any(map(_is_installed, ("tensorboard", "tensorboardX"))):
        raise ModuleNotFoundError(
            "logger: expected the package tensorboard, which is not installed; pip install tensorboard, or --logger csv"
        )
    if wandb is not None and not _is_installed("wandb"):
        raise ModuleNotFoundError(
            'wandb: expected the package wandb, which is not installed; pip install "lpips_lightning[recipes]",'
            " or --logger csv"
        )
    if wandb == "online" and not _has_account():
        raise ValueError("wandb: expected an account for online, got none; run `wandb login` first, or use offline")
    for part in (Path(folder), *Path(folder).parents):
        if part.exists():
            if not part.is_dir() or not os.access(part, os.W_OK):
                raise ValueError(f"log-dir: expected a folder that can be written to, got {str(folder)!r}")
            return


def log_run(
    kinds: Sequence[Kind],
    wandb: Wandb | None,
    folder: str | Path,
    name: str,
    scores: Mapping[str, float],
    config: Mapping[str, Any],
) -> list[str]:
    """Log scores and their configuration; a logger that fails is a warning.

    Args:
        kinds: Loggers; their files are in ``<folder>/<name>/version_N``.
        wandb: How to log to wandb, as `wandb_logger`; None for not.
        folder: Folder of the logs.
        name: Of the command.
        scores: Scores by name.
        config: Plain values by name.

    Returns:
        Where the logs are.
    """
    version = CSVLogger(folder, name).version  # one number for all
    makers: dict[str, Any] = {
        "csv": lambda: CSVLogger(folder, name, version),
        "tensorboard": lambda: TensorBoardLogger(folder, name, version),
        "wandb": lambda: wandb_logger(name, wandb or "offline", folder),
    }
    places = []
    for kind in sorted({*kinds, *(["wandb"] if wandb else [])}):  # csv wants an empty folder, and comes first
        try:
            places.append(_log_to(makers[kind](), scores, config))
        except Exception as error:  # of any kind, from the packages of loggers; the run is done
            _log.warning("%s: expected to log the scores, got %s: %s", kind, type(error).__name__, error)
    return list(dict.fromkeys(places))


def wandb_logger(project: str, mode: Wandb, folder: str | Path = "outputs") -> Logger:
    """Lightning's logger of wandb, for recipes and commands.

    Args:
        project: Name of the project.
        mode: ``"offline"``: into ``<folder>/wandb``. ``"online"``: to the user's account.
        folder: Folder of the logs, created if missing.
    """
    import wandb
    from packaging.version import Version
    from pytorch_lightning.loggers import WandbLogger

    # Before 0.20, wandb hangs when it logs a table offline (github.com/wandb/wandb/issues/8957).
    old = mode == "offline" and Version(wandb.__version__) < Version("0.20")
    options: dict[str, Any] = {"settings": wandb.Settings(allow_offline_artifacts=False)} if old else {}
    Path(folder).mkdir(parents=True, exist_ok=True)
    # Pass mode too: `offline` sets an environment variable, which wandb reads only once per process.
    return WandbLogger(project=project, save_dir=folder, offline=mode == "offline", mode=mode, **options)


def _log_to(logger: Any, scores: Mapping[str, float], config: Mapping[str, Any]) -> str:
    experiment: Any = logger.experiment
    logger.log_hyperparams(dict(config))
    logger.log_metrics(dict(scores), step=0)
    logger.save()
    logger.finalize("success")
    if not hasattr(experiment, "finish"):
        return str(logger.log_dir)
    place = getattr(experiment, "url", None) or Path(experiment.dir).parent
    experiment.finish()  # else the next run of this process would go on with it
    return str(place)


def _is_installed(package: str) -> bool:
    return find_spec(package) is not None


def _has_account() -> bool:
    """Whether wandb knows a key; if its version does not tell, as if it did."""
    import wandb

    try:
        if "prompt" in inspect.signature(wandb.login).parameters:
            return bool(wandb.login(prompt=False))
        return bool(wandb.api.api_key)
    except Exception:
        return True
