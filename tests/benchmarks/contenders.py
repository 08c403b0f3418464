"""Who is measured: ours, the peers as they document their use, and the floor; all with the same weights."""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from unittest import mock

import torch
from references import peer_lpips, peer_torchmetrics
from torch import Tensor

from lpips_lightning import LPIPS, PerceptualLoss
from lpips_lightning.backbones.definition import BACKBONES
from lpips_lightning.backbones.extractor import FeatureExtractor, random_backbone
from lpips_lightning.backbones.fetch import find_backbone
from lpips_lightning.weights import CALIBRATIONS, load, tensors_sha256

NETS = ("alex", "vgg", "squeeze", "embedded")
PEERS = ("lpips", "torchmetrics", "piq")
NAMES = ("floor", "ours", *PEERS)
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Contender:
    """One way to compute LPIPS, or the convolutions that nobody can do without.

    Attributes:
        name: One of NAMES, or ``"ours whole"``: ours without bounds on memory.
        setting: ``"fp32"``, ``"tf32"``, ``"bf16"`` or ``"fp16"``.
        prepare: Images on [-1, 1] -> what it takes; not timed.
        forward: Two batches -> distances, without gradient.
        step: Two batches -> distances, and a gradient in the first one's ``.grad``.
    """

    name: str
    setting: str
    prepare: Callable[[Tensor], Tensor]
    forward: Callable[[Tensor, Tensor], Tensor]
    step: Callable[[Tensor, Tensor], Tensor]

    @property
    def label(self) -> str:
        return f"{self.name} {self.setting}"

    def run(self, work: str, x: Tensor, y: Tensor) -> Tensor:
        """Do the work ``"forward"`` or ``"step"``."""
        with surroundings(self.setting, x.device):
            if work == "step":
                return self.step(x, y)
            with torch.no_grad():
                return self.forward(x, y)


def contender(name: str, setting: str, net: str, device: torch.device) -> Contender | None:
    """The contender, ready; None where there is none: peers know no embedded net, piq only vgg."""
    if name in PEERS and (net == "embedded" or (name == "piq" and net != "vgg")):
        return None
    if name in PEERS and device.type == "cpu" and setting != "fp32":
        return None  # none of them documents another precision
    if name == "ours whole" and "memory_budget" not in inspect.signature(LPIPS).parameters:
        return None
    return MAKERS[name](net, setting, device)


def settings(device: torch.device) -> tuple[str, ...]:
    """The precisions that are measured on a device."""
    return ("fp32", "tf32", "bf16", "fp16") if device.type == "cuda" else ("fp32", "bf16")


@contextlib.contextmanager
def surroundings(setting: str, device: torch.device):
    """What a user's program says about precision; on a CPU nothing, for there it is said to ours alone."""
    if device.type != "cuda":
        yield
        return
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.backends.cudnn.flags(enabled=True, allow_tf32=setting != "fp32"))
        if setting in DTYPES:
            stack.enter_context(torch.autocast("cuda", DTYPES[setting]))
        yield


@cache
def backbone_tensors(net: str) -> dict[str, Tensor]:
    """The ImageNet backbone where this machine has it, else a seeded random one; `weights_name` says which."""
    record = BACKBONES[net]
    if record.default_weights is not None:
        return dict(record.default_weights())
    if record.is_available:
        return dict(find_backbone(record.builder).tensors)
    return random_backbone(record, seed=0)


@cache
def weights_name(net: str) -> str:
    """Name and hash of `backbone_tensors`, as in a fingerprint: ``"IMAGENET1K_V1 sha256:195266a4c8e9"``."""
    record = BACKBONES[net]
    if not record.is_available:
        return f"random sha256:{tensors_sha256(backbone_tensors(net))[:12]}"
    network = LPIPS(net, weights=None if record.default_weights else find_backbone(record.builder).origin)
    return re.search(r"backbone (\w+ sha256:\w+)", network.fingerprint)[1]


def images(batch: int, side: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Two batches on [-1, 1], smooth with noise, really different."""
    generator = torch.Generator().manual_seed(0)

    def one() -> Tensor:
        coarse = torch.rand(batch, 3, side // 8, side // 8, generator=generator)
        smooth = torch.nn.functional.interpolate(coarse, (side, side), mode="bilinear")
        return (1.4 * smooth + 0.6 * torch.rand(batch, 3, side, side, generator=generator) - 1).to(device)

    return one(), one()


def _same(images: Tensor) -> Tensor:
    return images


def _ours(net: str, setting: str, device: torch.device, **options: int) -> Contender:
    # On a GPU the surrounding autocast says it; on a CPU ours is asked for it.
    precision = "fp32" if setting in ("fp32", "tf32") else "autocast" if device.type == "cuda" else setting
    network = LPIPS(net, weights=backbone_tensors(net), precision=precision, **options).to(device)
    loss = PerceptualLoss(net, data_range=(-1, 1), weights=backbone_tensors(net), precision=precision, **options).to(
        device
    )

    def step(x: Tensor, y: Tensor) -> Tensor:
        value = loss(x, y)
        value.backward()
        return value.detach()

    return Contender("ours whole" if options else "ours", setting, _same, network, step)


def _ours_whole(net: str, setting: str, device: torch.device) -> Contender:
    return _ours(net, setting, device, memory_budget=2**50)


def _floor(net: str, setting: str, device: torch.device) -> Contender:
    record = BACKBONES[net]
    name, node = list(record.feature_layers.items())[-1]
    dtype = DTYPES.get(setting, torch.float32)
    tensors = {key: value for key, value in backbone_tensors(net).items() if not key.startswith("calibration.")}
    bare = FeatureExtractor(replace(record, feature_layers={name: node}), tensors).requires_grad_(False)
    bare.to(device, dtype).to(memory_format=torch.channels_last)
    ones: dict[torch.Size, Tensor] = {}

    def forward(x: Tensor, y: Tensor) -> Tensor:
        bare(x)
        return bare(y)[name]

    def step(x: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            bare(y)
        last = bare(x)[name]
        if last.shape not in ones:
            ones[last.shape] = torch.ones_like(last)
        last.backward(ones[last.shape])
        return last.detach()

    def prepare(images: Tensor) -> Tensor:
        return images.to(dtype).contiguous(memory_format=torch.channels_last)

    return Contender("floor", setting, prepare, _without_autocast(forward, device), _without_autocast(step, device))


def _without_autocast(call: Callable[..., Tensor], device: torch.device) -> Callable[..., Tensor]:
    """The floor is in its dtype already: it pays no casts."""

    def bare(*args: Tensor) -> Tensor:
        with torch.autocast(device.type, enabled=False):
            return call(*args)

    return bare


def _lpips(net: str, setting: str, device: torch.device) -> Contender:
    model = peer_lpips(net, backbone_tensors(net)).to(device)
    model.lins.requires_grad_(True)  # as the package makes it

    def step(x: Tensor, y: Tensor) -> Tensor:
        distances = model(x, y)
        distances.mean().backward()
        return distances.detach().flatten()

    return Contender("lpips", setting, _same, lambda x, y: model(x, y).flatten(), step)


def _torchmetrics(net: str, setting: str, device: torch.device) -> Contender:
    metric = peer_torchmetrics(net, backbone_tensors(net)).to(device)

    def forward(x: Tensor, y: Tensor) -> Tensor:
        metric.update(x, y)
        value = metric.compute()
        metric.reset()  # else it keeps every call's distances
        return value

    def step(x: Tensor, y: Tensor) -> Tensor:
        value = metric(x, y)
        value.backward()
        metric.reset()
        return value.detach()

    return Contender("torchmetrics", setting, _same, forward, step)


def _piq(net: str, setting: str, device: torch.device) -> Contender:
    import piq
    from torchvision.models import vgg16

    official = load(CALIBRATIONS["vgg", "0.1"])
    weights = [official[layer].view(1, -1, 1, 1) for layer in BACKBONES["vgg"].feature_layers]
    with torch.device("meta"):
        bare = vgg16(weights=None)  # its numbers come below
    with (
        mock.patch("torch.hub.load_state_dict_from_url", return_value=weights),
        mock.patch("piq.perceptual.vgg16", return_value=bare),
    ):
        loss = piq.LPIPS()
    features = {name.removeprefix("features."): value for name, value in backbone_tensors("vgg").items()}
    loss.model.load_state_dict({name: features[name] for name in loss.model.state_dict()}, assign=True)
    loss.to(device)

    def step(x: Tensor, y: Tensor) -> Tensor:
        value = loss(x, y)
        value.backward()
        return value.detach()

    return Contender("piq", setting, lambda images: (images + 1) / 2, loss, step)


MAKERS = {
    "floor": _floor,
    "ours": _ours,
    "ours whole": _ours_whole,
    "lpips": _lpips,
    "torchmetrics": _torchmetrics,
    "piq": _piq,
}
