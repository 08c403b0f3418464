"""Student of the distillation: a small backbone with its own calibration, initialized from the teacher."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from typing_extensions import override

from lpips_lightning.backbones.definition import get_backbone
from lpips_lightning.backbones.extractor import FeatureExtractor, random_backbone
from lpips_lightning.backbones.frozen import FrozenNetwork
from lpips_lightning.backbones.plain import PlainBackbone, Stage
from lpips_lightning.distances.lpips import unit_normalize
from lpips_lightning.weights import read_tensors


class Student(PlainBackbone):
    """A backbone with its calibration: ``features.<i>.weight``, ``features.<i>.bias``, ``calibration.<layer>``.

    Args:
        stages: Convolutions from input to output.
        normalize: Normalize the output of every convolution over the batch during training, which keeps channels
            alive and gradients small; `folded` has the weights of the same network without it.
    """

    def __init__(self, stages: Sequence[Stage], normalize: bool = False) -> None:
        super().__init__(stages)
        values = {
            layer: nn.Parameter(torch.ones(count))
            for layer, count in zip(self.feature_layers, self.channels, strict=True)
        }
        self.calibration = nn.ParameterDict(values)
        convolutions = {str(i): layer for i, layer in enumerate(self.features) if isinstance(layer, nn.Conv2d)}
        for layer in convolutions.values():
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.constant_(cast("Tensor", layer.bias), 0.25)  # fewer dead channels, and norms away from 0
        norms = {index: nn.BatchNorm2d(layer.out_channels) for index, layer in convolutions.items() if normalize}
        self.norms = nn.ModuleDict(norms)

    @override
    def output_of(self, index: int, images: Tensor) -> Tensor:
        output = super().output_of(index, images)
        return self.norms[str(index)](output) if str(index) in self.norms else output

    @torch.no_grad()
    def folded(self) -> dict[str, Tensor]:
        """Tensors of the network without normalization, which computes the same."""
        tensors = {name: tensor.clone() for name, tensor in self.state_dict().items() if not name.startswith("norms.")}
        for index, norm in cast("Iterable[tuple[str, nn.BatchNorm2d]]", self.norms.items()):
            mean, variance = cast("Tensor", norm.running_mean), cast("Tensor", norm.running_var)
            weight, bias = f"features.{index}.weight", f"features.{index}.bias"
            factor = norm.weight / (variance + norm.eps).sqrt()
            tensors[weight] = tensors[weight] * factor.view(-1, 1, 1, 1)
            tensors[bias] = (tensors[bias] - mean) * factor + norm.bias
        return tensors

    @torch.no_grad()
    def clamp_calibration(self) -> None:
        """Clamp weights to >= 0, so that a larger difference never lowers the distance."""
        for weight in self.calibration.values():
            weight.clamp_(min=0)


class BackboneStudent(nn.Module):
    """A backbone of torchvision with its calibration, to be trained further: ``features.*``, ``calibration.<layer>``.

    Args:
        net_type: ``"alex"``, ``"vgg"`` or ``"squeeze"``. The weights are random until `load_pretrained`.
    """

    def __init__(self, net_type: str) -> None:
        super().__init__()
        record = get_backbone(net_type)
        self.features = FeatureExtractor(record, random_backbone(record, 0)).train()
        self.channels = record.channels
        values = zip(record.feature_layers, record.channels, strict=True)
        self.calibration = nn.ParameterDict({layer: nn.Parameter(torch.ones(count)) for layer, count in values})
        self.norms = nn.ModuleDict()

    def encode(self, images: Tensor) -> dict[str, Tensor]:
        """Features ``(N, C, h, w)`` by layer name."""
        features: dict[str, Tensor] = self.features(images)
        return features

    @torch.no_grad()
    def load_pretrained(self, network: FrozenNetwork) -> None:
        """Start from the weights and the calibration of a network of the same backbone."""
        self.features.graph.load_state_dict(network.extractor.graph.state_dict())
        for layer, weight in (network.calibration or {}).items():
            self.calibration[layer].copy_(weight)

    @torch.no_grad()
    def folded(self) -> dict[str, Tensor]:
        """Tensors by the backbone's names, and ``calibration.<layer>``."""
        tensors = {name: tensor.clone() for name, tensor in self.features.graph.state_dict().items()}
        return tensors | {f"calibration.{layer}": weight.detach().clone() for layer, weight in self.calibration.items()}

    @torch.no_grad()
    def clamp_calibration(self) -> None:
        """Clamp weights to >= 0, so that a larger difference never lowers the distance."""
        for weight in self.calibration.values():
            weight.clamp_(min=0)


def load_into(student: Student | BackboneStudent, path: str) -> None:
    """Initialize the student with the weights of a student's file.

    Args:
        student: Student of the same stages, or of the same backbone.
        path: File that this recipe wrote.

    Raises:
        WeightsError: If the file cannot be read or is damaged.
        ValueError: If it is of a student of other stages, or the student is normalized.
    """
    if len(student.norms):
        raise ValueError("normalize: expected False to train a student's file further, since files have no such layers")
    tensors = read_tensors(Path(path))
    own = student.state_dict() if isinstance(student, Student) else student.folded()
    expected, found = ({name: tuple(t.shape) for name, t in d.items()} for d in (own, tensors))
    if expected != found:
        raise ValueError(f"initialize: expected a student of the same stages, got one of other stages in {path}")
    if isinstance(student, Student):
        student.load_state_dict(tensors)
    else:
        start = len("calibration.")
        student.calibration.load_state_dict({n[start:]: t for n, t in tensors.items() if n.startswith("calibration.")})
        student.features.graph.load_state_dict({n: t for n, t in tensors.items() if not n.startswith("calibration.")})


def pair_maps(features: Mapping[str, Tensor], calibration: Mapping[str, Tensor], versions: int) -> list[Tensor]:
    """Distance maps between the image and each version, and between consecutive versions.

    Args:
        features: Features by layer, ``(G * (1 + versions), C, h, w)``, each image before its versions.
        calibration: Weights by layer, ``(C,)``.
        versions: Versions per group.

    Returns:
        For every layer ``(G, 2 * versions - 1, h, w)``; the first ``versions`` pairs include the image.
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
    """Initialize the student with the teacher's most important channels.

    The importance of a channel is its part of the calibrated distance, plus a smaller term for its activation. Kernels
    are cropped to the student's size; larger kernels of the student stay random.

    Args:
        student: Student with as many feature layers as the teacher, none of them wider.
        teacher: Sequential backbone with one convolution per feature layer, such as alex.
        images: Groups ``(G * (1 + versions), 3, S, S)``, in the input range of the backbones.
        versions: Versions per group.

    Raises:
        ValueError: If student or teacher are of another kind.
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
            "initialize: expected 'random', unless both are sequential with equally many layers, no student layer wider"
        )
    inputs = torch.arange(3)
    for (layer, index), (source, activations), kernel, bias in zip(
        student.feature_layers.items(), teacher.extractor(images).items(), kernels, biases, strict=True
    ):
        convolution, weight = cast("nn.Conv2d", student.features[index - 1]), calibration[source]
        unit = unit_normalize(activations).reshape(-1, versions + 1, *activations.shape[1:])
        contribution = (unit[:, 1:] - unit[:, :1]).square().mean((0, 1, 3, 4)) * weight
        importance = contribution / contribution.mean() + 0.3 * activations.mean((0, 2, 3)) / activations.mean()
        chosen = importance.topk(convolution.out_channels).indices.sort()[0]
        margin = (kernel.shape[-1] - convolution.kernel_size[0]) // 2
        window = slice(max(margin, 0), max(margin, 0) + convolution.kernel_size[0])
        # Partly compensates for the dropped channels; the exponent was found empirically.
        pruned = kernel[chosen][:, inputs][..., window, window] * (kernel.shape[1] / len(inputs)) ** 0.7
        if pruned.shape == convolution.weight.shape:
            convolution.weight.copy_(pruned)
            cast("Tensor", convolution.bias).copy_(bias[chosen])
        student.calibration[layer].copy_(weight[chosen] + 0.02)
        inputs = chosen
