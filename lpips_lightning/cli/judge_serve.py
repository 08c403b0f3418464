"""Serve the page of a study."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lpips_lightning.io.arguments import NETS
from lpips_lightning.io.atomic import check_output_path
from lpips_lightning.io.progress import progress_report

if TYPE_CHECKING:
    from lpips_lightning.calibration.model import TrainableLPIPS
    from lpips_lightning.judge.records import Design
    from lpips_lightning.judge.selection import Selector
    from lpips_lightning.judge.store import Study

_SOURCES = ("images", "triplets", "methods")
_MADE_WITH = (*_SOURCES, "folder", "reference", "common", "cnn", "count", "size", "net", "second_net", "weights")
_ONLY_WITH = {"folder": ["triplets"], "reference": ["methods"], "common": ["methods"], "cnn": ["images"]}
_ONLY_WITH |= {"count": ["images", "methods"]}
_NUMBERS = {
    "trials": "judged trials of a session (50; JND 160)",
    "sentinels": "trials of a session with a known answer (15; JND 40)",
    "pass-mark": "sentinels that must be right, or the session does not count (14; JND 36)",
    "practice": "trials with feedback before the first session (5; JND 10)",
    "repeats": "trials of a session that are shown twice, for consistency (one of ten)",
    "votes": "answers wanted per item (5; JND 3)",
    "break-every": "trials between offered breaks; 0: none (25; JND 50)",
    "shown-ms": "JND: duration of each image (1000)",
    "gap-ms": "JND: gap between the images (250)",
}


def add_serve(commands: Any) -> None:
    """Add the actions to the parser of ``judge``."""
    text = "collect judgments of people on a local page: 2AFC or JND, as the paper did"
    parser = commands.add_parser("serve", help=text, description=f"{text[0].upper()}{text[1:]}.")
    parser.set_defaults(run=_serve)
    parser.add_argument("--out", required=True, metavar="DB", help="file of the study; an existing one goes on")
    _add_source(parser)
    _add_design(parser)
    _add_server(parser)


def _add_source(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what is judged, of a new study")
    one = group.add_mutually_exclusive_group()
    one.add_argument("--images", metavar="DIR", help="photographs; the paper's distortions of them are compared")
    one.add_argument("--triplets", metavar="CSV", help="rows of ref, p0, p1 (JND: ref, p0)")
    one.add_argument("--methods", metavar="DIR", help="a folder per method, with the same names of images")
    group.add_argument("--folder", metavar="DIR", help="folder of the images of --triplets (default: that of the CSV)")
    group.add_argument("--reference", metavar="NAME", help="folder of the references in --methods")
    group.add_argument("--common", action="store_true", default=None, help="--methods: images that all folders have")
    group.add_argument("--cnn", metavar="FILE", help="--images: distortions by trained networks of this file")
    group.add_argument("--test", choices=("2afc", "jnd"), help="2afc: which is nearer; jnd: same or different")
    group.add_argument("--count", type=int, metavar="N", help="items to judge (200; --methods: all)")
    size = "side of patches of --images (256); larger images of others are cropped to it (512; 0: not)"
    group.add_argument("--size", type=int, metavar="PX", help=size)
    group.add_argument("--seed", type=int, metavar="N", help="random seed of items, orders and sides (0)")
    group.add_argument("--active", type=float, metavar="F", help="fraction of trials where metrics are unsure (0)")
    group.add_argument("--net", choices=NETS, metavar="NET", help="network of --active (embedded)")
    second = "--active: also where --net and this network disagree"
    group.add_argument("--second-net", choices=NETS, metavar="NET", help=second)
    weights = "backbone weights of --net, a file or a folder; with --second-net a folder"
    group.add_argument("--weights", metavar="PATH", help=weights)


def _add_design(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("how it is conducted, of a new study")
    for name, text in _NUMBERS.items():
        group.add_argument(f"--{name}", type=int, metavar="N", help=text)
    group.add_argument("--title", metavar="TEXT", help="title of the page")
    group.add_argument("--question", metavar="TEXT", help="question of a trial")
    group.add_argument("--instructions", metavar="FILE", help="text before the practice; blank lines part paragraphs")
    group.add_argument("--consent", metavar="FILE", help="text that observers agree to")


def _add_server(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the server")
    add = group.add_argument
    add("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0: other machines too, by a link with a token")
    add("--port", type=int, default=8765, metavar="N", help="port (default: %(default)s)")
    add(
        "--url", default="", metavar="URL", help="address of a proxy or tunnel in front, such as https://my.example.org"
    )
    add("--open", action="store_true", help="open the page in a browser")


def _serve(options: argparse.Namespace) -> None:
    _check_packages()
    from lpips_lightning.judge.server.serving import serve

    check_output_path(options.out, "out")
    study = _resumed(options) if Path(options.out).expanduser().exists() else _new(options)
    try:
        selector = _selector(study, options.weights)
        serve(study, selector, host=options.host, port=options.port, url=options.url, show=options.open)
    finally:
        study.close()


def _selector(study: Study, weights: str | None) -> Selector:
    """What chooses the next item: at random, or in part where the network of --net is unsure."""
    from lpips_lightning.judge.selection import ActiveSelector, random_selector

    if not study.design.active:
        return random_selector
    from lpips_lightning.judge.item_features import item_features, start_calibration

    made = study.made_with()
    names, weights = (made.get("net") or "embedded", made.get("second_net")), weights or made.get("weights")
    networks = [_network(name, weights) for name in names if name]
    with progress_report("items") as report:
        features, *others = (item_features(study, network, study.folder, report) for network in networks)
    calibration, *more = (start_calibration(network) for network in networks)
    differences = [
        {item: float(values @ start) for item, values in other.items()}
        for other, start in zip(others, more, strict=True)
    ]
    return ActiveSelector(study, features, calibration, second=differences[0] if differences else None)


def _network(net: str, weights: str | None) -> TrainableLPIPS:
    from lpips_lightning.calibration.model import TrainableLPIPS

    return TrainableLPIPS(net, weights=weights, init="official").eval()


def _check_packages() -> None:
    missing = [name for name in ("starlette", "uvicorn") if find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(f'{missing[0]} is missing: pip install "lpips_lightning[judge]"', name=missing[0])


def _design(options: argparse.Namespace) -> Design:
    """The usual design of the test with the given options."""
    from dataclasses import replace

    from lpips_lightning.judge.texts import usual_design

    return replace(usual_design(options.test, options.trials, options.sentinels), **_given_design(options))


def _given_design(options: argparse.Namespace) -> dict[str, Any]:
    """The given options that are fields of a `Design`; texts are read."""
    names = [name.replace("-", "_") for name in _NUMBERS]
    given = {name: getattr(options, name) for name in (*names, "test", "seed", "active", "title", "question")}
    given |= {name: _text(getattr(options, name), name) for name in ("instructions", "consent")}
    return {name: value for name, value in given.items() if value is not None}


def _text(path: str | None, argument: str) -> str | None:
    if path is None:
        return None
    try:
        return Path(path).expanduser().read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"{argument}: expected a text file in UTF-8, got '{path}'") from error
    except OSError as error:
        raise ValueError(f"{argument}: expected a text file, got '{path}' ({error.strerror})") from error


def _made_with(options: argparse.Namespace) -> dict[str, Any]:
    """The given options of the source; paths in full, since a study goes on in any folder."""
    given = {name: getattr(options, name) for name in _MADE_WITH if getattr(options, name) is not None}
    paths = ("images", "triplets", "methods", "folder", "cnn", "weights")
    return {name: str(Path(value).expanduser().resolve()) if name in paths else value for name, value in given.items()}


def _resumed(options: argparse.Namespace) -> Study:
    """The existing study.

    Raises:
        ValueError: If an option contradicts it.
    """
    from lpips_lightning.judge.store import Study

    study = Study.open(options.out)
    try:
        _check_same(options, study)
    except ValueError:
        study.close()
        raise
    return study


def _check_same(options: argparse.Namespace, study: Study) -> None:
    given, stored = _given_design(options), study.made_with()  # --weights may have moved
    has = {name: getattr(study.design, name) for name in given}
    if stored:  # else the program ended before it could be written
        given, has = {**given, **_made_with(options)}, {**dict.fromkeys(_MADE_WITH), **stored, **has}
        given.pop("weights", None)
    for name, value in given.items():
        if value != has[name]:
            there, here = (
                ("its text", "another one") if name in ("instructions", "consent") else (has[name], repr(value))
            )
            there = "no such option" if there is None else there
            raise ValueError(
                f"{name}: expected {there}, as when '{options.out}' was made, got {here}; leave the option out, or make"
                " another study with another --out"
            )


def _new(options: argparse.Namespace) -> Study:
    """The study that the options describe."""
    _check_new(options)
    design, made = _design(options), _made_with(options)
    if design.active:
        for net in (options.net or "embedded", options.second_net):
            if net is not None:
                _network(net, options.weights)  # missing weights are told before images are written
    with progress_report("items") as report, _errors_as_typed(options):
        study = _source(options, design, report)
    study.set_made_with(made)
    return study


def _check_new(options: argparse.Namespace) -> None:
    """Refuse options that make no study.

    Raises:
        ValueError: If one is missing, or not for the source.
    """
    source = next((name for name in _SOURCES if getattr(options, name) is not None), None)
    if source is None:
        what = "the file of a study, or --images, --triplets or --methods for a new one"
        raise ValueError(f"out: expected {what}, got '{options.out}', which does not exist")
    if options.test is None:
        raise ValueError("test: expected 2afc or jnd for a new study, got none")
    if options.methods is not None and options.reference is None:
        raise ValueError("reference: expected the name of the folder of references in --methods, got none")
    for name in ("net", "second_net", "weights"):
        if getattr(options, name) is not None and not options.active:
            raise ValueError(f"{name.replace('_', '-')}: expected --active F above 0 with this option, got none")
    for name, allowed in _ONLY_WITH.items():
        if getattr(options, name) and source not in allowed:
            raise ValueError(f"{name}: expected this option with --{' or --'.join(allowed)} alone, got --{source}")


@contextmanager
def _errors_as_typed(options: argparse.Namespace) -> Iterator[None]:
    """What functions call `folder` is --images or --methods here; --folder belongs to --triplets."""
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        source, about = next(name for name in _SOURCES if getattr(options, name)), str(error)
        if source == "triplets" or not about.startswith("folder: "):
            raise
        raise ValueError(about.replace("folder", source, 1)) from error


def _source(options: argparse.Namespace, design: Design, report: Any) -> Study:
    """Make the study from its source."""
    from lpips_lightning.judge.stimuli import study_from_methods, study_from_photographs, study_from_triplets

    given: dict[str, Any] = {"design": design, "report": report}
    if options.count is not None:
        given["count"] = options.count
    if options.size is not None:
        given["size"] = options.size or None
    if options.images is not None:
        cnn = _family(options.cnn)
        return study_from_photographs(options.out, options.images, cnn=cnn, **given)
    if options.triplets is not None:
        folder = options.folder if options.folder is not None else Path(options.triplets).expanduser().parent
        return study_from_triplets(options.out, options.triplets, folder, **given)
    return study_from_methods(options.out, options.methods, options.reference, common=options.common, **given)


def _family(path: str | None) -> Any:
    from lpips_lightning.data.cnn_distortions import read_family

    return None if path is None else read_family(path)
