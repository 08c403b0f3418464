"""What the teacher says about groups of images, kept to be used again, and images that the student optimized."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from lpips_lightning.distances.lpips import unit_normalize
from lpips_lightning.recipes.distillation_student import pair_maps

Encoder = Callable[[Tensor], Mapping[str, Tensor]]


@dataclass
class Targets:
    """Groups of images with the answers of a teacher, or of a student.

    Attributes:
        images: Input of the backbones, ``(G, 1 + versions, 3, S, S)``, each image before its versions.
        maps: `pair_maps`.
        gradients: Gradient of the sum of a group's distances between image and versions w.r.t. its images, with the
            shape of `images`; None if not asked for.
        features: Features by layer, without a graph; empty if not kept.
    """

    images: Tensor
    maps: list[Tensor]
    gradients: Tensor | None = None
    features: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.images)


def answers(
    encode: Encoder,
    calibration: Mapping[str, Tensor],
    images: Tensor,
    gradients: bool = False,
    create_graph: bool = False,
    keep_features: bool = False,
) -> Targets:
    """Distance maps of groups, and the gradients of the distances between images and versions.

    Args:
        encode: Features by layer of images ``(N, 3, S, S)``.
        calibration: Weights by layer.
        images: Groups ``(G, 1 + versions, 3, S, S)``.
        gradients: Whether to compute gradients.
        create_graph: Keep the graph, so that the answers can be trained on.
        keep_features: Keep the features as well, without a graph.
    """
    versions = images.shape[1] - 1
    with torch.set_grad_enabled(gradients or create_graph):
        inputs = images.detach().requires_grad_(gradients)
        features = encode(inputs.flatten(0, 1))
        maps = pair_maps(features, calibration, versions)
        if gradients:
            distance = torch.stack([m[:, :versions].mean((2, 3)).sum() for m in maps]).sum()
            (found,) = torch.autograd.grad(distance, inputs, create_graph=create_graph)
    kept = {layer: f.detach() for layer, f in features.items()} if keep_features else {}
    return Targets(images, maps if create_graph else [m.detach() for m in maps], found if gradients else None, kept)


def gradient_of(encode: Encoder, calibration: Mapping[str, Tensor], images: Tensor) -> Tensor:
    """Gradient of the distances of groups w.r.t. their images: see `answers`."""
    gradient = answers(encode, calibration, images, gradients=True).gradients
    assert gradient is not None
    return gradient


def gradient_error(student: Tensor, teacher: Tensor, scales: int = 4) -> Tensor:
    """Mismatch of two gradients w.r.t. groups of images: 0 if equal.

    One minus the cosine between them, and the log ratio of their norms, of the gradients averaged over blocks of 1, 2,
    4, ... pixels: small blocks rule the optimization of pixels, large ones that of a network, whose output is smooth.
    The norms matter most: a student whose deep layers have larger gradients than the teacher's is an unstable loss.
    Images whose gradient is zero for the teacher do not count.

    Args:
        student: Gradient of the student's distances, ``(G, 1 + versions, 3, S, S)``.
        teacher: Gradient of the teacher's distances.
        scales: Number of block sizes.
    """
    errors = []
    student, teacher = student.flatten(0, 1), teacher.flatten(0, 1)
    counts = teacher.flatten(1).square().sum(1) > 0
    for scale in range(scales):
        mine, given = (F.avg_pool2d(g, 2**scale).flatten(1) for g in (student, teacher))
        tiny = 1e-3 * given.norm(dim=1).mean() + 1e-12
        norms = (mine.square().sum(1) + tiny**2).sqrt(), (given.square().sum(1) + tiny**2).sqrt()
        cosine = (mine * given).sum(1) / (norms[0] * norms[1])
        ratio = (norms[0] / norms[1]).log()
        errors.append(0.5 * (1 - cosine) + F.smooth_l1_loss(ratio, torch.zeros_like(ratio), reduction="none", beta=0.1))
    return (torch.stack(errors).mean(0) * counts).sum() / counts.sum().clamp(min=1)


def weighted_features(features: Mapping[str, Tensor], calibration: Mapping[str, Tensor]) -> list[Tensor]:
    """Features by layer whose squared difference is the distance map: unit length, times the root of the weights."""
    return [unit_normalize(f) * calibration[layer].sqrt().view(1, -1, 1, 1) for layer, f in features.items()]


def feature_error(student: list[Tensor], teacher: list[Tensor]) -> Tensor:
    """Part of the variance of the teacher's features that the student's do not explain, mean over layers.

    Args:
        student: Linear estimates of the teacher's features from those of the student, ``(N, C, h, w)`` per layer.
        teacher: `weighted_features` of the teacher.
    """
    errors = []
    for estimate, target in zip(student, teacher, strict=True):
        variance = (target - target.mean((0, 2, 3), keepdim=True)).square().sum(1).mean()
        errors.append((estimate - target).square().sum(1).mean() / variance)
    return torch.stack(errors).mean()


class Replay:
    """The last groups with the teacher's answers, by size: an expensive teacher's answer is trained on several times.

    Args:
        pixels: Number of pixels to keep per size, all images of a group counted.
    """

    def __init__(self, pixels: int) -> None:
        self.pixels = pixels
        self._kept: dict[int, list[Targets]] = {}

    def add(self, targets: Targets) -> None:
        """Keep groups, in half precision; forget the oldest ones beyond the limit."""
        kept = self._kept.setdefault(targets.images.shape[-1], [])
        for index in range(len(targets)):
            gradients = targets.gradients
            one = Targets(
                targets.images[index].half(),
                [m[index].half() for m in targets.maps],
                # bfloat16 has float32's range: gradients of means over many pixels are small
                None if gradients is None else gradients[index].to(torch.bfloat16),
            )
            kept.append(one)
        limit = max(1, self.pixels // targets.images[0, :, 0].numel())
        del kept[: max(0, len(kept) - limit)]

    def draw(self, size: int, count: int) -> Targets:
        """Draw groups of a size with replacement, by PyTorch's global generator."""
        kept = self._kept[size]
        chosen = [kept[index] for index in torch.randint(len(kept), (count,)).tolist()]
        maps = [torch.stack(same).float() for same in zip(*(one.maps for one in chosen), strict=True)]
        gradients = [one.gradients.float() for one in chosen if one.gradients is not None]
        images = torch.stack([one.images for one in chosen]).float()
        return Targets(images, maps, torch.stack(gradients) if gradients else None)


class OptimizedGroups:
    """Groups whose versions the student moves towards the image, step by step, as a training with it as loss would.

    What the student does not see, its optimization leaves or adds; with the teacher's answer on these versions the
    student learns to see it. Every group is optimized for `steps` steps of Adam with its own step size, then replaced.

    Args:
        count: Groups that are optimized at the same time.
        steps: Steps until a group is replaced.
        rates: Lowest and highest step size, in units of the input of the backbones (4.4 is black to white).
    """

    def __init__(self, count: int, steps: int, rates: tuple[float, float] = (0.01, 0.1)) -> None:
        self.count, self.steps, self.rates = count, steps, rates
        self._groups: list[_Optimized] = []
        self._next = 0

    def advance(self, fresh: Tensor, gradient: Callable[[Tensor], Tensor]) -> Tensor:
        """Optimize all groups by one step.

        Args:
            fresh: Groups ``(G, 1 + versions, 3, S, S)``; the first one becomes a new group if one is missing.
            gradient: Gradient of the student's distance, for groups.

        Returns:
            One of the groups in turn, ``(1, 1 + versions, 3, S, S)``.
        """
        if len(self._groups) < self.count:
            self._groups.append(self._start(fresh[:1]))
        for group in self._groups:
            group.step(gradient)
        self._next = (self._next + 1) % len(self._groups)
        chosen = self._groups[self._next]
        if chosen.taken >= self.steps:
            del self._groups[self._next]
        return chosen.images.detach().clone()

    def _start(self, group: Tensor) -> _Optimized:
        images = group.clone()
        low, high = images.amin((0, 1, 3, 4), keepdim=True), images.amax((0, 1, 3, 4), keepdim=True)
        noise = torch.rand_like(images[:, -1:])
        noise = torch.lerp(low, high, noise)
        images[:, -2:-1].lerp_(noise, 0.5)  # the last two versions start from noise and half of it
        images[:, -1:] = noise
        exponent = float(torch.rand(()))
        return _Optimized(images, self.rates[0] * (self.rates[1] / self.rates[0]) ** exponent)


class _Optimized:
    """A group and the optimizer of its versions."""

    def __init__(self, images: Tensor, rate: float) -> None:
        self.images, self.taken = images.requires_grad_(), 0
        self.low, self.high = images.detach().amin(), images.detach().amax()
        self.optimizer = torch.optim.Adam([self.images], lr=rate)

    def step(self, gradient: Callable[[Tensor], Tensor]) -> None:
        found = gradient(self.images)
        found[:, 0] = 0
        self.images.grad = found
        self.optimizer.step()
        self.taken += 1
        with torch.no_grad():
            self.images.clamp_(self.low, self.high)
