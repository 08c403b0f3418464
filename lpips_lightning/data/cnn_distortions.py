"""The paper's CNN-based distortions (Table 2, right): what trained denoising autoencoders make of an image.

A `GeneratorSpec` holds what is drawn at random about one autoencoder and the corruption of its input;
`DenoisingAutoencoder` is the network. A `DistortionFamily` applies trained ones as distortions. `write_family` and
`read_family` keep it as a checked file with the record of its training, which `lpips-lightning cnn-distortions` makes.

Source: Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", CVPR 2018, section 2.1.
The paper names what was drawn, but no ranges; those here are our choice.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from lpips_lightning.data.distortions import gaussian_noise, pink_noise
from lpips_lightning.io.tensor_files import read_record, write_tensors
from lpips_lightning.weights import WeightsError, read_tensors, tensors_sha256

Corruption = Literal["null", "pink_noise", "white_noise", "color_removal", "downsampling"]
Upsampling = Literal["nearest", "bilinear", "transposed"]
Normalization = Literal["none", "batch", "instance"]

COMMAND = "lpips-lightning cnn-distortions fit --data.folder DIR"
"""Command that trains a family."""

_KIND = "cnn-distortions"
_SMALLEST_SIDE = 16
_MOST_STRIDE = 16  # so that patches of 64 pixels keep 4 x 4 positions
_LAYERS = (4, 8)
_SLOPE = 0.2  # of the encoder's ReLUs, as in pix2pix


@dataclass(frozen=True)
class GeneratorSpec:
    """What is drawn at random about an autoencoder.

    Attributes:
        corruption: What is done to the input.
        corruption_strength: In [0, 1]: standard deviation of the noise in units of 0.25, or the factor of the
            downsampling from 1 to 4. Unused by ``"null"`` and ``"color_removal"``.
        layers: Convolutions of the encoder, and of the decoder. The first has `first_stride`, the others stride 2 until
            the image is reduced by 16, then 1.
        skips: Layers below the highest with a skip connection to the decoder, from 1 to ``layers - 2``.
        forced_skip: Whether the highest layer, 0, has a skip connection.
        dropout: Layers of the decoder with dropout during training, from 1 to ``layers - 1``.
        upsampling: How the decoder enlarges.
        normalization: Normalization in encoder and decoder.
        first_stride: 1 or 2.
        first_channels: Channels of the first layer; they double from layer to layer.
        most_channels: Most channels of a layer.

    Raises:
        ValueError: If a value is none of these.
    """

    corruption: Corruption = "null"
    corruption_strength: float = 0.0
    layers: int = 4
    skips: tuple[int, ...] = ()
    forced_skip: bool = True
    dropout: tuple[int, ...] = ()
    upsampling: Upsampling = "nearest"
    normalization: Normalization = "none"
    first_stride: int = 1
    first_channels: int = 16
    most_channels: int = 64

    def __post_init__(self) -> None:
        for name, known in (("corruption", Corruption), ("upsampling", Upsampling), ("normalization", Normalization)):
            if (value := getattr(self, name)) not in get_args(known):
                raise ValueError(f"{name}: expected one of {', '.join(get_args(known))}, got {value!r}")
        if not 0 <= self.corruption_strength <= 1:
            raise ValueError(f"corruption_strength: expected a number in [0, 1], got {self.corruption_strength}")
        for name, least in (("layers", 2), ("first_channels", 1), ("most_channels", self.first_channels)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected at least {least}, got {getattr(self, name)}")
        if self.first_stride not in (1, 2):
            raise ValueError(f"first_stride: expected 1 or 2, got {self.first_stride}")
        for name, end in (("skips", self.layers - 1), ("dropout", self.layers)):
            layers = tuple(getattr(self, name))  # a list in JSON
            object.__setattr__(self, name, layers)
            if set(layers) - set(range(1, end)):
                raise ValueError(f"{name}: expected layers from 1 to {end - 1}, got {layers}")

    @property
    def strides(self) -> list[int]:
        """Stride of every layer of the encoder."""
        strides, total = [self.first_stride], self.first_stride
        for _ in range(1, self.layers):
            strides.append(2 if total < _MOST_STRIDE else 1)
            total *= strides[-1]
        return strides

    @property
    def channels(self) -> list[int]:
        """Channels of every layer of the encoder."""
        return [min(self.first_channels * 2**layer, self.most_channels) for layer in range(self.layers)]


def draw_generator(
    generator: Generator,
    first_channels: Sequence[int] = (16, 32, 64),
    most_channels: Sequence[int] = (256, 512),
    layers: tuple[int, int] = _LAYERS,
    corruption: Corruption | None = None,
) -> GeneratorSpec:
    """Draw a spec: every choice with equal probability, numbers of layers uniformly.

    Args:
        generator: Random state.
        first_channels: Choices for the channels of the first layer.
        most_channels: Choices for the most channels of a layer; at least all of `first_channels`.
        layers: Fewest and most layers.
        corruption: The corruption; None draws it too.

    Example:
        >>> draw_generator(torch.Generator().manual_seed(0)) == draw_generator(torch.Generator().manual_seed(0))
        True
    """

    def integer(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    def choice(options: Sequence[Any]) -> Any:
        return options[integer(0, len(options) - 1)]

    def subset(end: int) -> tuple[int, ...]:
        """Any number of the layers from 1 to ``end - 1``."""
        count = integer(0, end - 1)
        return tuple(sorted((torch.randperm(end - 1, generator=generator)[:count] + 1).tolist()))

    count = integer(*layers)
    return GeneratorSpec(
        corruption=corruption or choice(get_args(Corruption)),
        corruption_strength=round(0.2 + 0.8 * float(torch.rand((), generator=generator)), 4),
        layers=count,
        skips=subset(count - 1),
        forced_skip=choice((False, True)),
        dropout=subset(count),
        upsampling=choice(get_args(Upsampling)),
        normalization=choice(get_args(Normalization)),
        first_stride=choice((1, 2)),
        first_channels=choice(first_channels),
        most_channels=choice(most_channels),
    )


class DenoisingAutoencoder(nn.Module):
    """U-Net-like autoencoder of a `GeneratorSpec`.

    Takes and returns images ``(N, 3, H, W)`` in [0, 1], of any height and width from 16 on: they are padded to what the
    strides need, and the output is cropped.

    Args:
        spec: Its form.
    """

    def __init__(self, spec: GeneratorSpec) -> None:
        super().__init__()
        self.spec = spec
        strides, channels = spec.strides, spec.channels
        self.skips = {*spec.skips, *((0,) if spec.forced_skip else ())}
        inputs = [3, *channels[:-1]]
        self.encoder = nn.ModuleList(
            _encoder_layer(spec, layer, inputs[layer], channels[layer], strides[layer]) for layer in range(spec.layers)
        )
        self.decoder = nn.ModuleList(
            _decoder_layer(spec, layer, channels[layer] * (1 + (layer in self.skips)), inputs[layer], strides[layer])
            for layer in range(spec.layers)
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                _initialize(module)

    def forward(self, images: Tensor) -> Tensor:
        """Restore corrupted images."""
        height, width = images.shape[-2:]
        x = _padded(images, self.spec.strides) * 2 - 1
        found = []
        for layer in self.encoder:
            x = layer(x)
            found.append(x)
        for index in reversed(range(self.spec.layers)):
            x = self.decoder[index](torch.cat([x, found[index]], dim=1) if index in self.skips else x)
        return x.sigmoid()[..., :height, :width]

    def corrupt(self, images: Tensor, generator: Generator) -> Tensor:
        """Corrupt images as its input is; noise is drawn from `generator`."""
        return _CORRUPTIONS[self.spec.corruption](images, self.spec.corruption_strength, generator)


def _initialize(convolution: nn.Conv2d | nn.ConvTranspose2d) -> None:
    """Keep the variance of the signal (He et al. 2015); from torch's own start, deep networks stay gray for long."""
    weight = convolution.weight
    terms = convolution.in_channels * weight[0, 0].numel()  # summed in an output
    if isinstance(convolution, nn.ConvTranspose2d):
        terms //= convolution.stride[0] ** 2
    nn.init.normal_(weight, std=math.sqrt(2 / ((1 + _SLOPE**2) * terms)))
    nn.init.zeros_(cast("Tensor", convolution.bias))


def _padded(images: Tensor, strides: Sequence[int]) -> Tensor:
    multiple = 1
    for stride in strides:
        multiple *= stride
    # Two positions at the bottom at least: an instance norm of one gives 0 whatever it is.
    height, width = (max(2, -(-side // multiple)) * multiple - side for side in images.shape[-2:])
    return F.pad(images, (0, width, 0, height), mode="replicate") if height or width else images


def _normalization(spec: GeneratorSpec, channels: int) -> list[nn.Module]:
    if spec.normalization == "none":
        return []
    return [nn.BatchNorm2d(channels) if spec.normalization == "batch" else nn.InstanceNorm2d(channels, affine=True)]


def _encoder_layer(spec: GeneratorSpec, layer: int, inputs: int, outputs: int, stride: int) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 4 if stride == 2 else 3, stride, padding=1)
    normalization = _normalization(spec, outputs) if layer else []  # as in pix2pix
    return nn.Sequential(convolution, *normalization, nn.LeakyReLU(_SLOPE))


def _decoder_layer(spec: GeneratorSpec, layer: int, inputs: int, outputs: int, stride: int) -> nn.Sequential:
    modules: list[nn.Module] = []
    if stride == 2 and spec.upsampling == "transposed":
        modules.append(nn.ConvTranspose2d(inputs, outputs, 4, 2, padding=1))
    else:
        if stride == 2:
            mode = "nearest" if spec.upsampling == "nearest" else "bilinear"
            modules.append(nn.Upsample(scale_factor=2.0, mode=mode))
        modules.append(nn.Conv2d(inputs, outputs, 3, padding=1))
    if not layer:
        return nn.Sequential(*modules)
    modules += _normalization(spec, outputs)
    if layer in spec.dropout:
        modules.append(nn.Dropout(0.5))
    return nn.Sequential(*modules, nn.ReLU())


def _null(images: Tensor, strength: float, generator: Generator) -> Tensor:
    return images


def _pink(images: Tensor, strength: float, generator: Generator) -> Tensor:
    return pink_noise(images, images.new_full((len(images),), strength), generator).clamp(0, 1)


def _white(images: Tensor, strength: float, generator: Generator) -> Tensor:
    return gaussian_noise(images, images.new_full((len(images),), strength), generator).clamp(0, 1)


def _gray(images: Tensor, strength: float, generator: Generator) -> Tensor:
    luma = images.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    return (images * luma).sum(1, keepdim=True).expand_as(images)


def _downsampled(images: Tensor, strength: float, generator: Generator) -> Tensor:
    size = images.shape[-2:]
    small = [max(1, round(side / (1 + 3 * strength))) for side in size]
    reduced = F.interpolate(images, size=small, mode="bilinear", antialias=True)
    return F.interpolate(reduced, size=size, mode="bilinear").clamp(0, 1)


_CORRUPTIONS: dict[str, Callable[[Tensor, float, Generator], Tensor]] = {
    "null": _null,
    "pink_noise": _pink,
    "white_noise": _white,
    "color_removal": _gray,
    "downsampling": _downsampled,
}


def network_names(count: int) -> list[str]:
    """Names of the networks of a family.

    Example:
        >>> network_names(2), network_names(101)[:1]
        (['cnn00', 'cnn01'], ['cnn000'])
    """
    digits = max(2, len(str(count - 1)))
    return [f"cnn{index:0{digits}}" for index in range(count)]


class DistortionFamily:
    """Trained autoencoders as distortions, named ``cnn00``, ``cnn01`` and so on.

    Args:
        networks: The networks; they are put into eval mode.
        record: How they were trained.

    Attributes:
        names: Names of the networks, in order.
        record: See above.
    """

    def __init__(self, networks: Sequence[DenoisingAutoencoder], record: Mapping[str, Any] | None = None) -> None:
        self.record = dict(record or {})
        self._networks = dict(zip(network_names(len(networks)), (one.eval() for one in networks), strict=True))

    @property
    def names(self) -> list[str]:
        """Names of the networks, in order."""
        return list(self._networks)

    def __len__(self) -> int:
        return len(self._networks)

    def __getitem__(self, name: str) -> DenoisingAutoencoder:
        return self._networks[name]

    @property
    def sha256(self) -> str:
        """`tensors_sha256` of all weights."""
        return tensors_sha256(_tensors(list(self._networks.values())))

    @torch.no_grad()
    def distort(self, images: Tensor, name: str, generator: Generator) -> Tensor:
        """Corrupt images and restore them with one network.

        Args:
            images: Shape ``(N, 3, H, W)``, floating, in [0, 1], sides of at least 16 pixels.
            name: One of `names`.
            generator: Random state of the corruption; equal seeds give equal images.

        Returns:
            Shape and dtype of `images`, in [0, 1].

        Raises:
            ValueError: If the name is unknown, or images have another shape or dtype.

        Example:
            >>> family = DistortionFamily([DenoisingAutoencoder(GeneratorSpec(corruption="white_noise"))])
            >>> family.names, family.distort(torch.rand(2, 3, 40, 33), "cnn00", torch.Generator()).shape
            (['cnn00'], torch.Size([2, 3, 40, 33]))
        """
        if name not in self._networks:
            raise ValueError(f"name: expected one of {', '.join(self._networks)}, got {name!r}")
        shape, side = tuple(images.shape), _SMALLEST_SIDE
        if len(shape) != 4 or shape[1] != 3 or min(shape[2:]) < side or not images.is_floating_point():
            raise ValueError(
                f"images: expected floats (N, 3, H, W), sides of at least {side}, got {images.dtype} {shape}"
            )
        network = self._networks[name].to(images.device)
        return network(network.corrupt(images.float(), generator)).to(images)


def write_family(path: str | os.PathLike[str], networks: Sequence[DenoisingAutoencoder], record: Any) -> Path:
    """Write trained networks and how they were trained, atomically.

    Args:
        path: Output ``.safetensors`` file; its metadata hold the sha256 of the weights, the specs and the record.
        networks: The networks.
        record: JSON-serializable.

    Returns:
        Path of the file.

    Raises:
        ValueError: If the path has another suffix.
        OSError: If the file cannot be written.
    """
    specs = json.dumps([asdict(network.spec) for network in networks])
    return write_tensors(path, _tensors(networks), record, kind=_KIND, specs=specs)


def read_family(path: str | os.PathLike[str]) -> DistortionFamily:
    """Read a file of `write_family`; its sha256 is verified.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: If there is no such file.
        WeightsError: If it is damaged, or a file of something else.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(
            f"cnn: expected a file of trained networks, got none at '{file}'; `{COMMAND}` trains them and writes one"
        )
    tensors = read_tensors(file)
    record = read_record(file) if file.suffix == ".safetensors" else {}
    if record.pop("kind", None) != _KIND:
        raise WeightsError(f"{file}: expected a file from `{COMMAND}`, got a file of other tensors")
    try:
        networks = _built(json.loads(record.pop("specs")), tensors)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:  # of another version
        raise WeightsError(f"{file}: expected networks that fit their specs, got {error}") from error
    return DistortionFamily(networks, record)


def _built(specs: Sequence[Mapping[str, Any]], tensors: Mapping[str, Tensor]) -> list[DenoisingAutoencoder]:
    known = {field.name for field in fields(GeneratorSpec)}
    networks = []
    for index, options in enumerate(specs):
        if unknown := options.keys() - known:
            raise ValueError(f"unknown {', '.join(sorted(unknown))}")
        network = DenoisingAutoencoder(GeneratorSpec(**options))
        start = f"{index}."
        network.load_state_dict({key[len(start) :]: one for key, one in tensors.items() if key.startswith(start)})
        networks.append(network.requires_grad_(False))
    return networks


def _tensors(networks: Sequence[DenoisingAutoencoder]) -> dict[str, Tensor]:
    return {
        f"{index}.{key}": one for index, network in enumerate(networks) for key, one in network.state_dict().items()
    }
