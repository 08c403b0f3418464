"""`LPIPS` with the argument names and output shapes of the `lpips` package."""

from __future__ import annotations

import os
from typing import Any, cast

import torch
from torch import Tensor, nn
from typing_extensions import override

from lpips_lightning import network, perceptual_distance
from lpips_lightning.backbones.definition import BACKBONES
from lpips_lightning.backbones.shared import DropsLegacyKeys
from lpips_lightning.compat.modules import NetLinLayer, ScalingLayer
from lpips_lightning.images.hints import COMPAT, layout_hint
from lpips_lightning.images.preprocessing import ImagePolicy
from lpips_lightning.tracing import refuse_scripts, static_sizes

_VGG = {"vgg16": "vgg"}


class LPIPS(DropsLegacyKeys):
    """Replacement of `lpips.LPIPS` 0.1.4: ``from lpips_lightning.compat import LPIPS``.

    Same values and shapes. Unlike the reference, the network is frozen, ``.train()`` has no effect, and images on a
    wrong range are an error. Arguments that only serve to train the calibration are refused.

    As a loss: images that require grad may have any values, including NaN, and are not clamped. Without gradients, as
    in a validation, either batch may have any values if the other one is within the range, and both may exceed it as
    far as ImageNet's normalization does; one warning is issued for each likely mistake, and nothing is clamped. If both
    exceed it further, as floats on [0, 255] do, it is an error, unless ``validate_args=False``. Beside images that
    require grad, the other batch may exceed the range by up to 10 times its width, with the same warning; NaN and more,
    such as floats on [0, 255], are errors.

    There are no parameters: ``next(net.parameters())`` raises a `StopIteration` that says so. The network runs on the
    device of the images, so write ``images.device`` for ``next(net.parameters()).device``.

    Args:
        pretrained: False is refused; for an uncalibrated LPIPS pass ``lpips=False``.
        net: ``"alex"``, ``"vgg"`` (``"vgg16"``), ``"squeeze"``, or ``"embedded"``.
        version: ``"0.1"`` or ``"0.0"``; a number, as YAML reads it, too.
        lpips: False for the uncalibrated baseline.
        spatial: Return the map instead of the mean.
        pnet_rand: Use a random backbone, seeded by PyTorch's global generator.
        pnet_tune: True is refused.
        use_dropout: Ignored, as the reference ignores it in evaluation mode.
        model_path: Path of a calibration file.
        eval_mode: False is refused.
        verbose: Ignored; a library does not print.
        weights: Backbone weights, see `lpips_lightning.LPIPS`; the reference has no such argument.
        validate_args: Check pixel values, see above; the reference has no such argument and checks nothing.

    Attributes:
        net: The network, an `lpips_lightning.LPIPS`; its `encode` gives features.
        spatial: Whether maps are returned; may be changed at any time.

    Raises:
        ValueError: If an argument is refused or has an unknown value.
        WeightsError: If weights are missing, damaged or of another architecture.

    Example:
        >>> import torch
        >>> loss = LPIPS(net="squeeze", pnet_rand=True)
        >>> loss(torch.zeros(2, 3, 64, 64), torch.ones(2, 3, 64, 64)).shape
        torch.Size([2, 1, 1, 1])
    """

    __jit_unused_properties__ = ("version", "lpips", "chns", "L", "scaling_layer", "lins")

    def __init__(
        self,
        pretrained: bool = True,
        net: str = "alex",
        version: str | float = "0.1",
        lpips: bool = True,
        spatial: bool = False,
        pnet_rand: bool = False,
        pnet_tune: bool = False,
        use_dropout: bool = True,
        model_path: str | os.PathLike[str] | None = None,
        eval_mode: bool = True,
        verbose: bool = True,
        *,
        weights: str | os.PathLike[str] | None = None,
        validate_args: bool = True,
    ) -> None:
        super().__init__()
        if lpips and not pretrained:
            raise ValueError("pretrained: expected True, got False; for the backbone alone pass lpips=False")
        for name, value, wanted in (("pnet_tune", pnet_tune, False), ("eval_mode", eval_mode, True)):
            if value is not wanted:
                raise ValueError(
                    f"{name}: expected {wanted}, got {value!r}; this module is frozen, train with PerceptualCalibration"
                )
        if pnet_rand and weights is not None:
            raise ValueError("weights: expected None with pnet_rand=True, got another backbone")
        self.spatial = spatial
        self.pnet_type, self.pnet_rand, self.pnet_tune = net, pnet_rand, False
        version = str(version)
        if _VGG.get(net, net) not in BACKBONES:
            raise ValueError(f"net: expected one of {', '.join(map(repr, BACKBONES))}, got {net!r}")
        self.net = network.LPIPS(
            _VGG.get(net, net),
            version=version,
            calibrated=lpips,
            weights="random" if pnet_rand else weights,
            calibration=model_path if lpips else None,
            validate_args=validate_args,
        )
        self.net.role = "unsure"
        # The shift of v0.1 broadcasts one channel to three; v0.0 has none.
        self.net.images = ImagePolicy(None if version == "0.0" else "repeat", videos=False, hints=COMPAT)

    @override
    @torch.jit.unused
    def forward(
        self,
        in0: Tensor,
        in1: Tensor,
        retPerLayer: bool = False,
        normalize: bool = False,
    ) -> Tensor | tuple[Tensor, list[Tensor]]:
        """Distance of every pair.

        Args:
            in0: Images ``(N, 3, H, W)``, or one image ``(3, H, W)``.
            in1: Images of the same size; one image is compared with each of `in0`, and the other way round.
            retPerLayer: Also return the layers' terms, in a list.
            normalize: True for images on [0, 1], False for [-1, 1].

        Returns:
            ``(N, 1, 1, 1)``, or ``(N, 1, H, W)`` with `spatial`; a pair of this and the list if `retPerLayer`.

        Raises:
            TypeError: If an argument is of the wrong type.
            ValueError: If shapes, sizes or devices do not match, or the pixel values of both are outside the range.
        """
        refuse_scripts(self, in0=in0, in1=in1)
        in0, in1 = _same_batch(in0, in1)
        names, roles = ("in0", "in1"), perceptual_distance.roles_of(in0, in1, self.net.role)
        data_range = (0.0, 1.0) if normalize else (-1.0, 1.0)
        terms = perceptual_distance.measure(
            self.net, in0, in1, data_range, spatial=self.spatial, per_layer=True, names=names, roles=roles
        ).values
        layers = [term if self.spatial else term.view(-1, 1, 1, 1) for term in terms.values()]
        total = sum(layers[1:], layers[0])
        return (total, layers) if retPerLayer else total

    @property
    def version(self) -> str:
        """``"0.1"`` or ``"0.0"``."""
        return self.net.version

    @property
    def lpips(self) -> bool:
        """Whether the distance is calibrated."""
        return self.net.calibrated

    @property
    def chns(self) -> list[int]:
        """Channels of every feature layer."""
        return list(self.net.frozen_network().record.channels)

    @property
    def L(self) -> int:  # noqa: N802 - the name of `lpips`
        """Number of feature layers."""
        return len(self.net.layers)

    @property
    def scaling_layer(self) -> ScalingLayer:
        """A new module that does what v0.1 does to images on [-1, 1] first; the network keeps its own."""
        return ScalingLayer()

    @property
    def lins(self) -> nn.ModuleList:
        """Copies of the calibration, as frozen modules; also `lin0` to `lin4` (`lin6` for ``"squeeze"``).

        Raises:
            AttributeError: If the distance is not calibrated.
        """
        calibration = self.net.frozen_network().calibration
        if calibration is None:
            raise AttributeError  # `__getattr__` follows, and says why
        return nn.ModuleList(map(_lin_layer, calibration.values()))

    @override
    def __getattr__(self, name: str) -> Any:
        index = name.removeprefix("lin")
        is_layer = name != index and index.isdecimal() and int(index) < self.L
        if (is_layer or name == "lins") and not self.lpips:
            raise AttributeError(f"{name}: expected a calibrated network, got one with lpips=False")
        return self.lins[int(index)] if is_layer else super().__getattr__(name)


def _same_batch(in0: Tensor, in1: Tensor) -> tuple[Tensor, Tensor]:
    """Both as batches of one length. What is no image is left as it is, and is an error later."""
    if not all(isinstance(images, Tensor) for images in (in0, in1)):
        return in0, in1
    in0, in1 = (
        images[None] if layout_hint(static_sizes(images.shape)) == ".unsqueeze(0)" else images for images in (in0, in1)
    )
    if in0.dim() == in1.dim() == 4:
        first, second = static_sizes((in0.shape[0], in1.shape[0]))
        if first != second == 1:
            in1 = in1.expand(first, -1, -1, -1)
        elif second != first == 1:
            in0 = in0.expand(second, -1, -1, -1)
    return in0, in1


class _Frozen(NetLinLayer):
    """A copy of a layer's calibration; loading into it would change no distance."""

    @override
    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        raise ValueError("lin: expected no weights for a copy, got some; pass model_path= to LPIPS")


def _lin_layer(weight: Tensor) -> NetLinLayer:
    layer = _Frozen(len(weight), use_dropout=True)
    layer.eval().requires_grad_(False)
    convolution = cast(nn.Conv2d, layer.model[-1])
    convolution.weight.data.copy_(weight.view(1, -1, 1, 1))
    return layer
