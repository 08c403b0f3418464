"""Stacked k-means: backbone weights without labels; a layer's filters are cluster centers of its input patches.

Kraehenbuehl, Doersch, Donahue, Darrell 2016, "Data-dependent Initializations of Convolutional Neural Networks"
(arXiv:1511.06856). Layer by layer, input patches are whitened and clustered (spherical k-means, Coates and Ng), and
every output channel is scaled to mean `beta` and variance 1 over the data. The LPIPS paper's Table 5 calls the method
"K-means". The original's last step, which equalizes learning rates by scaling whole layers, is omitted: it does not
affect LPIPS, which normalizes activations to unit length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from lpips_lightning.backbones.definition import Backbone
from lpips_lightning.images.preprocessing import to_backbone

_BATCH = 16


def stacked_kmeans(
    record: Backbone,
    images: Tensor,
    *,
    patches: int = 20_000,
    iterations: int = 10,
    beta: float = 0.0,
    seed: int = 0,
    report: Callable[[int, int], None] | None = None,
) -> dict[str, Tensor]:
    """Learn weights of a backbone that is a plain chain of convolutions, ReLUs and max-pools (alex, vgg, embedded).

    Args:
        record: The architecture.
        images: Shape ``(N, 3, H, W)`` on [-1, 1]; a few hundred. Of a custom backbone: its channels, any values if it
            has no range.
        patches: Patches to cluster per layer; at least the number of channels of the widest layer.
        iterations: Iterations of k-means.
        beta: Mean of every channel before its ReLU.
        seed: Random seed; equal seeds and images give equal weights on one machine.
        report: Progress callback: layers done, layers in total.

    Returns:
        Weights by torchvision's names.

    Raises:
        ValueError: If the backbone is not a plain chain, or there are fewer patches than channels.

    Example:
        >>> from lpips_lightning.backbones.definition import get_backbone
        >>> images = torch.rand(4, 3, 48, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
        >>> backbone = stacked_kmeans(get_backbone("embedded"), images, patches=300, iterations=2)
        >>> backbone["features.0.weight"].shape
        torch.Size([48, 3, 11, 11])
    """
    layers = _chain(record)
    convolutions = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
    widest = max(layer.out_channels for layer in convolutions)
    if patches < widest:
        raise ValueError(f"patches: expected at least {widest}, the channels of the widest layer, got {patches}")
    shift, scale = (torch.tensor(values) for values in (record.shift, record.scale))
    inputs = to_backbone(images, record.value_range, shift, scale, torch.float32, clamp=True)
    generator = Generator().manual_seed(seed)
    done = 0
    with torch.no_grad():
        for layer in layers:
            if isinstance(layer, nn.Conv2d):
                initialize_layer(layer, inputs, generator, patches=patches, iterations=iterations, beta=beta)
                done += 1
                if report is not None:
                    report(done, len(convolutions))
            inputs = torch.cat([layer(part) for part in inputs.split(_BATCH)])
    state = {f"features.{name}": tensor for name, tensor in layers.state_dict().items()}
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def spherical_kmeans(rows: Tensor, clusters: int, iterations: int, generator: Generator) -> Tensor:
    """Cluster centers by Lloyd's algorithm on cosine similarity.

    Args:
        rows: Shape ``(N, D)``, not all zero; N must be at least `clusters`.
        clusters: Number of clusters.
        iterations: Number of assignment and averaging steps.
        generator: Draws the initial centers, and new ones for empty clusters.

    Returns:
        Unit vectors of shape ``(clusters, D)``.

    Example:
        >>> rows = torch.tensor([[1.0, 0.2], [0.9, 0.0], [0.0, 1.0], [0.1, 0.8]])
        >>> centers = spherical_kmeans(rows, 2, 5, torch.Generator().manual_seed(1))
        >>> [[round(value, 1) for value in row] for row in sorted(centers.tolist())]
        [[0.1, 1.0], [1.0, 0.1]]
    """
    unit = F.normalize(rows, dim=1)
    centers = unit[torch.randperm(len(unit), generator=generator)[:clusters]]
    for _ in range(iterations):
        nearest = torch.cat([(part @ centers.T).argmax(1) for part in unit.split(4096)])
        # A matrix product sums in a fixed order; index_add_ on a GPU or with threads does not.
        sums = torch.zeros_like(centers)
        for part, assigned in zip(unit.split(4096), nearest.split(4096), strict=True):
            sums += F.one_hot(assigned, clusters).to(unit.dtype).T @ part
        empty = sums.norm(dim=1) < 1e-6
        if bool(empty.any()):
            drawn = torch.randint(len(unit), (int(empty.sum()),), generator=generator)
            sums[empty] = unit[drawn]
        centers = F.normalize(sums, dim=1)
    return centers


def whitening(rows: Tensor, fraction: float = 0.1) -> Tensor:
    """ZCA whitening matrix: maps centered rows to nearly uncorrelated coordinates with a variance of nearly 1.

    Args:
        rows: Shape ``(N, D)``.
        fraction: Regularization: this fraction of the mean variance is added to every eigenvalue.

    Returns:
        Symmetric matrix of shape ``(D, D)``.
    """
    centered = (rows - rows.mean(0)).double()
    values, vectors = torch.linalg.eigh(centered.T @ centered / len(rows))
    values = values.clamp(min=0)
    factors = (values + fraction * values.mean() + 1e-12).rsqrt()
    return (vectors * factors @ vectors.T).to(rows.dtype)


def _chain(record: Backbone) -> nn.Sequential:
    """The backbone's layers up to the last feature layer, with uninitialized weights on the CPU."""
    with torch.device("meta"):
        features = getattr(record.build(), "features", None)
    plain = (nn.Conv2d, nn.ReLU, nn.MaxPool2d)
    last = [name.removeprefix("features.") for name in record.feature_layers.values()][-1]
    if not isinstance(features, nn.Sequential) or not last.isdigit():
        raise ValueError(f"net: expected a plain chain of convolutions such as alex, got {record.name!r}")
    layers = features[: int(last) + 1]
    if not all(isinstance(layer, plain) and getattr(layer, "groups", 1) == 1 for layer in layers):
        raise ValueError(f"net: expected a plain chain of convolutions such as alex, got {record.name!r}")
    for layer in layers:
        if isinstance(layer, nn.ReLU):
            layer.inplace = False
    return layers.to_empty(device="cpu")


def initialize_layer(
    layer: nn.Conv2d,
    inputs: Tensor,
    generator: Generator,
    *,
    patches: int,
    iterations: int,
    beta: float = 0.0,
    fraction: float = 0.1,
    blocks: Sequence[tuple[slice, slice]] | None = None,
) -> None:
    """Set a layer's filters to cluster centers of its inputs, scaled to outputs of mean beta and variance 1.

    Args:
        layer: A convolution, with groups or without.
        inputs: Its inputs, ``(N, C, H, W)``.
        generator: Draws patches and initial centers.
        patches: Patches to cluster.
        iterations: Iterations of k-means.
        beta: Mean of every output channel.
        fraction: Regularization of `whitening`.
        blocks: Of a layer without groups, the input channels that each part of the output channels sees; the weights of
            the others are 0. None for all.
    """
    weight, groups = layer.weight.detach().zero_(), layer.groups
    seen, outputs = weight.shape[1], layer.out_channels // groups
    given = [(slice(k * seen, (k + 1) * seen), slice(k * outputs, (k + 1) * outputs)) for k in range(groups)]
    for sees, makes in blocks or given:
        rows = _patches(layer, inputs[:, sees], patches, generator)
        matrix = whitening(rows, fraction)
        count = len(range(layer.out_channels)[makes])
        centers = spherical_kmeans((rows - rows.mean(0)) @ matrix, count, iterations, generator)
        part = weight[makes, sees] if blocks else weight[makes]
        part.copy_((centers @ matrix).view_as(part))  # filter = whitening, then similarity to the center
    bias = cast("Tensor", layer.bias).detach().zero_()
    total = square = torch.zeros(layer.out_channels, dtype=torch.float64)
    count = 0
    for batch in inputs.split(_BATCH):
        output = layer(batch).double()
        total = total + output.sum((0, 2, 3))
        square = square + output.square().sum((0, 2, 3))
        count += output.shape[0] * output.shape[2] * output.shape[3]
    mean = total / count
    deviation = (square / count - mean.square()).clamp(min=1e-12).sqrt()
    weight.div_(deviation.float().view(-1, 1, 1, 1))
    bias.copy_((beta - mean / deviation).float())


def _patches(layer: nn.Conv2d, inputs: Tensor, count: int, generator: Generator) -> Tensor:
    """Random input patches of a layer, ``(count, D)``, equally many per image, none across the border."""
    kernel = cast("tuple[int, int]", layer.kernel_size)
    pad = [max(0, side - have) for side, have in zip(kernel, inputs.shape[2:], strict=True)]
    padded = F.pad(inputs, (0, pad[1], 0, pad[0]))
    images = torch.arange(count) % len(inputs)
    tops = torch.randint(padded.shape[2] - kernel[0] + 1, (count,), generator=generator)
    lefts = torch.randint(padded.shape[3] - kernel[1] + 1, (count,), generator=generator)
    rows = tops[:, None, None] + torch.arange(kernel[0])[:, None]
    columns = lefts[:, None, None] + torch.arange(kernel[1])
    taken = padded.permute(0, 2, 3, 1)[images[:, None, None], rows, columns]  # (count, kh, kw, C)
    return taken.permute(0, 3, 1, 2).flatten(1)
