"""Code written for `lpips` or torchmetrics, run with their classes and with ours: only the import changes."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import torch
from references import BUILDERS, peer_lpips, peer_torchmetrics, relative_difference
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from lpips_lightning import LPIPS, LearnedPerceptualImagePatchSimilarity, PerceptualLoss, compat

ONE_CALL = 1e-5  # float32 of images that differ
KINKS = 2e-2  # gradients: rounding moves a few activations over the kink of a ReLU or to another pixel of a pooling
A_FEW_STEPS = 1e-3  # that, times how far the loss goes down in the steps

_peers: dict[str, nn.Module] = {}


def packages(backbones: dict[str, Any], folder: Any) -> tuple[SimpleNamespace, SimpleNamespace]:
    """The peers' names with the peers' classes, and with ours; all with the same seeded backbones."""
    for net, tensors in backbones.items():
        save_file(tensors, folder / f"{BUILDERS[net]}.safetensors")

    def peer(build: Callable[..., nn.Module], net: str, options: dict[str, Any]) -> nn.Module:
        key = f"{folder} {build.__name__} {net} {options}"
        if key not in _peers:
            with torch.random.fork_rng():
                _peers[key] = build(net, backbones[net], **options)
        return copy.deepcopy(_peers[key])

    def their_lpips(net: str = "alex", verbose: bool = True, **options: Any) -> nn.Module:
        return peer(peer_lpips, net, options)

    def their_metric(
        net_type: str = "alex", reduction: str = "mean", normalize: bool = False, **options: Any
    ) -> nn.Module:
        return peer(peer_torchmetrics, net_type, {"reduction": reduction, "normalize": normalize, **options})

    ours = {
        "LPIPS": functools.partial(compat.LPIPS, weights=folder),
        "LearnedPerceptualImagePatchSimilarity": functools.partial(
            LearnedPerceptualImagePatchSimilarity, weights=folder
        ),
    }
    theirs = SimpleNamespace(LPIPS=their_lpips, LearnedPerceptualImagePatchSimilarity=their_metric)
    return theirs, SimpleNamespace(**ours)


class Rewritten(nn.Module):
    """`PerceptualLoss` in the place of `lpips.LPIPS`, as one rewrites a loop: the prediction first, the range said."""

    def __init__(self, folder: Any, net: str = "alex", verbose: bool = True, **options: Any) -> None:
        super().__init__()
        network = LPIPS(net, weights=folder, **options)
        self.signed, self.unit = (
            PerceptualLoss(network, data_range=data_range, reduction="none") for data_range in ((-1, 1), (0, 1))
        )

    def forward(self, in0: Tensor, in1: Tensor, normalize: bool = False) -> Tensor:
        prediction, target = (in1, in0) if in1.requires_grad else (in0, in1)
        return (self.unit if normalize else self.signed)(prediction, target).view(-1, 1, 1, 1)


def with_loss(same: Comparison, folder: Any) -> Comparison:
    """A comparison in which our side is `PerceptualLoss`, whose backward pass is another one than `compat`'s."""
    return Comparison(same.theirs, SimpleNamespace(LPIPS=functools.partial(Rewritten, folder)))


@dataclasses.dataclass
class Comparison:
    """Runs the same code with the peers' classes and with ours; both must give the same numbers."""

    theirs: SimpleNamespace
    ours: SimpleNamespace

    def __call__(self, code: Callable[..., Any], *args: Any, tolerance: float = ONE_CALL, **kwargs: Any) -> Any:
        """Result of ``code(package, ...)`` with our package."""
        found, expected = self._both(code, *args, **kwargs)
        _check(found, expected, tolerance)
        return found

    def training(
        self, code: Callable[..., Any], *args: Any, first: float = ONE_CALL, later: float = A_FEW_STEPS
    ) -> Any:
        """The same for a list with a row for every step, which is exact before the first update."""
        found, expected = self._both(code, *args)
        assert len(found) > 1
        _check(found[0], expected[0], first)
        _check(found[1:], expected[1:], later)
        return found

    def _both(self, code: Callable[..., Any], *args: Any, **kwargs: Any) -> list[Any]:
        results = []
        for package in (self.ours, self.theirs):
            torch.manual_seed(0)
            results.append(code(package, *args, **kwargs))
        return results


def _check(found: Any, expected: Any, tolerance: float) -> None:
    pairs = list(zip(_numbers(found), _numbers(expected), strict=True))
    assert pairs
    for (name, one), (_, other) in pairs:
        assert one.shape == other.shape, (name, one.shape, other.shape)
        finite = other.isfinite()
        assert torch.equal(one.isfinite(), finite), (name, one, other)
        if finite.any():
            allowed = max(tolerance, KINKS) if "gradient" in name else tolerance
            difference = relative_difference(one[finite], other[finite])
            assert difference < allowed, (name, difference, one.flatten()[:4], other.flatten()[:4])


def _numbers(result: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Place and value of every number of nested lists, tuples and dicts, as float64."""
    if isinstance(result, list | tuple):
        result = dict(enumerate(result))
    if isinstance(result, dict):
        for key, one in result.items():
            yield from _numbers(one, f"{name}/{key}")
    else:
        yield name, torch.as_tensor(result).detach().double()


def images(count: int = 2, size: int = 48, seed: int = 0, low: float = -1.0) -> Tensor:
    """Smooth images with noise, ``(count, 3, size, size)`` on [low, 1]."""
    generator = torch.Generator().manual_seed(seed)
    smooth = F.interpolate(torch.rand(count, 3, 6, 6, generator=generator), (size, size), mode="bilinear")
    return (0.7 * smooth + 0.3 * torch.rand(count, 3, size, size, generator=generator)) * (1 - low) + low


class AutoEncoder(nn.Module):
    """Two convolutions down, two up, no tanh at the end: ``(N, 3, H, W)`` -> the same."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1), nn.SiLU(), nn.Conv2d(width, 2 * width, 3, padding=1))
        self.decoder = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(4, width), nn.SiLU())
        self.conv_out = nn.Conv2d(width, 3, 3, padding=1)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the latent."""
        mean, logvar = self.encoder(x).chunk(2, 1)
        return mean, logvar

    def decode(self, z: Tensor) -> Tensor:
        return self.conv_out(self.decoder(F.interpolate(z, scale_factor=2)))

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x)[0])


def critic(width: int = 8) -> nn.Module:
    """A small PatchGAN."""
    layers = [nn.Conv2d(3, width, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(width, 2 * width, 4, 2, 1)]
    return nn.Sequential(*layers, nn.BatchNorm2d(2 * width), nn.LeakyReLU(0.2), nn.Conv2d(2 * width, 1, 4, 1, 1))


class WithLoss(nn.Module):
    """An autoencoder that holds its loss, and whose forward pass returns it."""

    def __init__(self, perceptual: nn.Module) -> None:
        super().__init__()
        self.network = AutoEncoder()
        self.perceptual = perceptual

    def forward(self, x: Tensor) -> Tensor:
        prediction = self.network(x)
        return self.perceptual(prediction, x).mean() + (prediction - x).abs().mean()


def steps(model: nn.Module, batches: list[Tensor]) -> list[float]:
    """Losses of SGD steps; every parameter must get a gradient."""
    optimizer, log = torch.optim.SGD(model.parameters(), lr=0.05), []
    for batch in batches:
        optimizer.zero_grad()
        loss = model(batch)
        loss.backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        optimizer.step()
        log.append(float(loss.detach()))
    return log


def wrapped_steps(rank: int, kind: str, model: WithLoss, x: Tensor) -> tuple[list[float], Tensor]:
    """Steps of DDP or FSDP on this rank's half of the batch; losses and the weight of the last layer."""
    own = x.chunk(2)[rank]
    if kind == "ddp":
        log = steps(nn.parallel.DistributedDataParallel(model), [own] * 3)
        return log, model.network.conv_out.weight.detach().clone()
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (2,))
    fully_shard(model.network, mesh=mesh)
    fully_shard(model, mesh=mesh)
    log = steps(model, [own] * 3)
    return log, model.network.conv_out.weight.full_tensor().detach().clone()
