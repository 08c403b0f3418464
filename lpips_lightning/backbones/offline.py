"""Missing backbones, on the command line: downloaded before other work, with the option that needs no download."""

from __future__ import annotations

from typing import Any

from lpips_lightning.backbones.definition import BACKBONES
from lpips_lightning.backbones.fetch import fetch_backbone, fetch_command
from lpips_lightning.weights import WeightsError
from lpips_lightning.weights.lookup import FOLDER_VARIABLE, backbone_file, backbone_places


def packaged_net(near: str, other_than: Any = None) -> str:
    """The network that ships and comes nearest to another one.

    Args:
        near: Name of a backbone.
        other_than: A network that it must not be, such as that of a loss, which is biased as a judge.

    Example:
        >>> packaged_net("alex"), packaged_net("vgg"), packaged_net("alex", other_than="embedded")
        ('embedded', 'embedded-vgg', 'embedded-vgg')
    """
    nets = ("embedded-vgg", "embedded") if near.startswith("vgg") else ("embedded", "embedded-vgg")
    return next(net for net in nets if net != other_than)


def require_backbone(net_type: Any, option: str, weights: Any = None, instead: str | None = None) -> None:
    """Download a backbone that is not on this machine, and say in one line how to run without it.

    One that comes in a package of a package index is not downloaded; the error has the command that fetches it.

    Args:
        net_type: Name of a backbone; anything else needs no file.
        option: The command's option that chose it, such as ``"--net"``; it also takes `instead`.
        weights: Given backbone weights; None for torchvision's.
        instead: The network that ships, to name as a way out; None for the one that comes nearest, and an empty text
            if none can take its place.

    Raises:
        WeightsError: If it cannot be downloaded.
    """
    record = BACKBONES.get(net_type) if isinstance(net_type, str) else None
    if weights is not None or record is None or record.is_available:
        return
    file = backbone_file(record.builder)
    if file is None:
        return

    instead = packaged_net(record.name) if instead is None else instead
    needless = f"{option} {instead} needs none" if instead else ""
    if not file.url:
        raise WeightsError(
            f"{option} {net_type}: expected its backbone on this machine, got none; fetch it with"
            f" `{fetch_command(record.name, 'FOLDER')}`, and set {FOLDER_VARIABLE} to FOLDER"
            f"{f'; {needless}' if needless else ''}"
        )

    from lpips_lightning.io.console import Console
    from lpips_lightning.io.progress import progress_report

    console = Console(stderr=True)
    note = f"{option} {net_type}: its backbone is not on this machine; downloading it"
    note += f" ({needless})" if needless else ""
    console.print(f"lpips-lightning: note: {note}", soft_wrap=True, highlight=False, markup=False, emoji=False)
    try:
        with progress_report() as report:
            fetch_backbone(file, backbone_places(record.builder)[-1].parent, report=report)
    except (OSError, WeightsError) as error:
        reason = getattr(error, "reason", error)
        offline = f"use {option} {instead}, or " if instead else ""
        raise WeightsError(
            f"{option} {net_type}: expected its backbone on this machine or a network to download it from, got"
            f" {reason}; offline, {offline}set {FOLDER_VARIABLE} to a folder that"
            f" `lpips-lightning weights fetch --net {net_type} --to FOLDER` filled elsewhere"
        ) from None
