"""The command ``judge simulate``: a study answered by simulated observers, before people are."""

from __future__ import annotations

import argparse
import shlex
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lpips_lightning.cli.bapps import add_observer_options, observer_options
from lpips_lightning.cli.evaluate import require_backbones
from lpips_lightning.cli.options import add_device_option, choose_device
from lpips_lightning.io.atomic import check_output_path
from lpips_lightning.io.console import Console
from lpips_lightning.io.image_folders import count_of
from lpips_lightning.io.progress import progress_report

if TYPE_CHECKING:
    from lpips_lightning.judge.simulated import SimulatedPerson
    from lpips_lightning.judge.store import Study

_SIMULATE = """Answer a copy of a study by simulated observers: to try what follows before people are asked.

They judge by a metric with noise, lapses and a bias of side, as `bapps make --observers simulated` has it, and go
through practice, sentinels and repeats as people do. DB itself gets no answer. Reports say that answers are
simulated: they say nothing about people."""


def add_simulation(commands: Any) -> None:
    """Add the actions to the parser of ``judge``."""
    text = "answer a copy of a study by simulated observers, to try what follows"
    parser = commands.add_parser("simulate", help=text, description=_SIMULATE)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.set_defaults(run=_simulate)
    _add_study(parser)
    add = parser.add_argument
    add("--out", required=True, metavar="FILE", help="file of the answered copy")
    add("--observers", type=int, default=10, metavar="N", help="number of observers (default 10)")
    add("--sessions", type=int, default=1, metavar="N", help="sessions of each one (default 1)")
    add("--force", action="store_true", help="replace an existing file of simulated answers")


def _add_study(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("study", metavar="DB", help="file of the study, from `judge serve`")
    add("--judge", default="embedded", metavar="METRIC", help="metric they judge by, as for `judge rank` (embedded)")
    add_observer_options(parser)
    add("--side-bias", type=float, default=0.0, metavar="P", help="probability of choosing the left image unseen (0)")
    add("--seed", type=int, default=0, metavar="N", help="random seed (default 0)")
    add_device_option(parser)


def _simulate(options: argparse.Namespace) -> None:
    from lpips_lightning.judge.selection import random_selector
    from lpips_lightning.judge.simulated import copy_without_answers, simulate
    from lpips_lightning.judge.store import Study

    _check_counts(options)
    check_output_path(options.out, "out", replace=options.force)
    person = _person(options)
    with closing(Study.open(options.study)) as study:
        distances = _distances(study, options)
        if Path(options.out).expanduser().exists():
            _remove_simulated(options.out)
        with closing(copy_without_answers(study, options.out)) as copy:
            given: dict[str, Any] = {"person": person, "seed": options.seed}
            simulate(copy, distances, random_selector, observers=options.observers, sessions=options.sessions, **given)
            answers, action = len(copy.answers()), _next_action(copy)
    console = Console(highlight=False)
    who = count_of(options.observers, "simulated observer")
    console.print(f"Written to {options.out}: {count_of(answers, 'answer')} by {who}", markup=False, soft_wrap=True)
    console.print(f"Next: lpips-lightning judge {action} {shlex.quote(options.out)}", markup=False, soft_wrap=True)


def _next_action(study: Study) -> str:
    """What follows: methods are ranked, unless they are the distortions of photographs."""
    from lpips_lightning.judge.judged_images import is_of_photographs

    compared = [item for item in study.items("judged").values() if item.method0 and item.method0 != item.method1]
    return "rank" if compared and study.design.test == "2afc" and not is_of_photographs(study) else "report"


def _check_counts(options: argparse.Namespace) -> None:
    for name in ("observers", "sessions"):
        if getattr(options, name) < 1:
            raise ValueError(f"{name}: expected at least 1, got {getattr(options, name)}")


def _person(options: argparse.Namespace) -> SimulatedPerson:
    from lpips_lightning.data.observer import SimulatedObserver
    from lpips_lightning.judge.simulated import SimulatedPerson

    return SimulatedPerson(SimulatedObserver(**observer_options(options)), side_bias=options.side_bias)


def _distances(study: Study, options: argparse.Namespace) -> dict[int, tuple[float, float | None]]:
    """Distances of the judged items by ``--judge``."""
    from lpips_lightning.evaluation.methods import parse_method
    from lpips_lightning.judge.judged_images import measure

    require_backbones([options.judge], "--judge")
    metric = parse_method(options.judge)
    items, device = list(study.items("judged").values()), choose_device(options.device)
    with progress_report("items") as report:
        (found,) = measure(study, items, [metric], device=device, report=report).values()
    if min(value for pair in found.values() for value in pair if value is not None) < 0:
        raise ValueError(f"judge: expected a metric whose distances are at least 0, got {options.judge}")
    return dict(found)


def _remove_simulated(path: str) -> None:
    """Remove an earlier simulation; a file with answers of people stays.

    Raises:
        FileExistsError: If it is anything else.
    """
    from lpips_lightning.judge.records import StudyError
    from lpips_lightning.judge.store import Study

    target = Path(path).expanduser()
    try:
        with closing(Study.open(target)) as study:
            answers = study.answers()
    except StudyError as error:
        raise FileExistsError(f"out: expected a new file, or one of simulated answers, got another: {error}") from error
    if not answers or not all(answer.timing.get("simulated") for answer in answers):
        raise FileExistsError(f"out: expected a new file, or one of simulated answers alone, got '{path}'")
    target.unlink()
