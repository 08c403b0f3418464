"""The student of a distillation: a small backbone with its own calibration, pruned from its teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from lpips_lightning.backbones.frozen import FrozenNetwork
from lpips_lightning.backbones.plain import PlainBackbone, Stage
from lpips_lightning.distance import unit_normalize


class Student(PlainBackbone):
    """A backbone with its calibration: ``features.<i>.weight``, ``features.<i>.bias``, ``calibration.<layer>``.

    Args:
        stages: From the input on.
    """

    def __init__(self, stages: Sequence[Stage]) -> None:
        super().__init__(stages)
        values = {
            layer: nn.Parameter(torch.ones(count))
            for layer, count in zip(self.feature_layers, self.channels, strict=True)
        }
        self.calibration = nn.ParameterDict(values)

    @torch.no_grad()
    def clamp_calibration(self) -> None:
        """Bring negative weights to 0: a distance never falls where images differ more."""
        for weight in self.calibration.values():
            weight.clamp_(min=0)


def pair_maps(features: Mapping[str, Tensor], calibration: Mapping[str, Tensor], versions: int) -> list[Tensor]:
    """Distance at every position, between the image and each version, and between versions that follow each other.

    Args:
        features: By layer, ``(G * (1 + versions), C, h, w)``, the image before its versions.
        calibration: By layer, ``(C,)``.
        versions: Versions in a group.

    Returns:
        For every layer ``(G, 2 * versions - 1, h, w)``; the first ``versions`` pairs hold the image itself.
    """
    first = [0] * versions + list(range(1, versions))
    second = [*range(1, versions + 1), *range(2, versions + 1)]
    maps = []
    for layer, activations in features.items():
        unit = unit_normalize(activations).permute(0, 2, 3, 1)
        unit = unit.reshape(-1, versions + 1, *unit.shape[1:])
        maps.append((unit[:, first] - unit[:, second]).square() @ calibration[layer])
    return maps


@torch.no_grad()
def prune_into(student: Student, teacher: FrozenNetwork, images: Tensor, versions: int) -> None:
    """Start the student from the teacher's most telling channels.

    In every layer the channels that carry most of the calibrated distance, and some that are merely active, are kept;
    kernels are cropped to the student's, and stay random where the student's are larger.

    Args:
        student: As many feature layers as the teacher, none of them wider.
        teacher: A chain with one convolution a feature layer, as alex is.
        images: Groups ``(G * (1 + versions), 3, S, S)``, as the backbones expect them.
        versions: Versions in a group.

    Raises:
        ValueError: If student or teacher are not of this kind.
    """
    tensors, calibration = teacher.extractor.graph.state_dict(), teacher.calibration
    kernels = [tensor for tensor in tensors.values() if tensor.dim() == 4]
    biases = [tensor for tensor in tensors.values() if tensor.dim() == 1]
    fits = len(student.feature_layers) == len(kernels) == len(teacher.layers)
    if (
        not fits
        or calibration is None
        or any(a > b for a, b in zip(student.channels, teacher.record.channels, strict=True))
    ):
        raise ValueError(
            "initialize: expected 'random', unless both are chains of as many layers and the student's are not wider"
        )
    kept = torch.arange(3)
    for (layer, index), (source, activations), kernel, bias in zip(
        student.feature_layers.items(), teacher.extractor(images).items(), kernels, biases, strict=True
    ):
        convolution, weight = cast("nn.Conv2d", student.features[index - 1]), calibration[source]
        unit = unit_normalize(activations).reshape(-1, versions + 1, *activations.shape[1:])
        telling = (unit[:, 1:] - unit[:, :1]).square().mean((0, 1, 3, 4)) * weight
        importance = telling / telling.mean() + 0.3 * activations.mean((0, 2, 3)) / activations.mean()
        chosen = importance.topk(convolution.out_channels).indices.sort()[0]
        margin = (kernel.shape[-1] - convolution.kernel_size[0]) // 2
        window = slice(max(margin, 0), max(margin, 0) + convolution.kernel_size[0])
        # What the dropped channels added is made up for in part: the exponent was found by trial.
        pruned = kernel[chosen][:, kept][..., window, window] * (kernel.shape[1] / len(kept)) ** 0.7
        if pruned.shape == convolution.weight.shape:
            convolution.weight.copy_(pruned)
            cast("Tensor", convolution.bias).copy_(bias[chosen])
        student.calibration[layer].copy_(weight[chosen] + 0.02)
        kept = chosen
