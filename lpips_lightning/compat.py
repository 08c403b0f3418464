"""Drop-in `LPIPS` class with the argument names and output shapes of the `lpips` package."""

from __future__ import annotations

import os

import torch
from torch import Tensor
from typing_extensions import override

from lpips_lightning import network
from lpips_lightning.backbones.shared import DropsLegacyKeys
from lpips_lightning.tracing import refuse_scripts

__all__ = ["LPIPS"]

_VGG = {"vgg16": "vgg"}


class LPIPS(DropsLegacyKeys):
    """Replacement of `lpips.LPIPS` 0.1.4: ``from lpips_lightning.compat import LPIPS``.

    Same values and shapes. Unlike the reference, the network is frozen, ``.train()`` has no effect, and images on a
    wrong range are an error. Arguments that only serve to train the calibration are refused.

    As a loss: images that require grad may have any values, including NaN, and are not clamped. Without gradients, as
    in a validation, either batch may have any values if the other one is within the range, and both may exceed it by
    a quarter of it; one warning is issued, and nothing is clamped. If both exceed it further, as floats on [0, 255]
    do, it is an error, unless ``validate_args=False``.

    Args:
        pretrained: False is refused; for an uncalibrated LPIPS pass ``lpips=False``.
        net: ``"alex"``, ``"vgg"`` (``"vgg16"``), ``"squeeze"``, or ``"embedded"``.
        version: ``"0.1"`` or ``"0.0"``.
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

    Raises:
        ValueError: If an argument is refused or has an unknown value.
        WeightsError: If weights are missing, damaged or of another architecture.

    Example:
        >>> import torch
        >>> loss = LPIPS(net="squeeze", pnet_rand=True)
        >>> loss(torch.zeros(2, 3, 64, 64), torch.ones(2, 3, 64, 64)).shape
        torch.Size([2, 1, 1, 1])
    """

    def __init__(
        self,
        pretrained: bool = True,
        net: str = "alex",
        version: str = "0.1",
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
        self.net = network.LPIPS(
            _VGG.get(net, net),
            version=version,
            calibrated=lpips,
            weights="random" if pnet_rand else weights,
            calibration=model_path if lpips else None,
            validate_args=validate_args,
        )
        self.net.role = "unsure"

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
            in0: Images ``(N, 3, H, W)``.
            in1: Images of the same shape.
            retPerLayer: Also return the layers' terms, in a list.
            normalize: True for images on [0, 1], False for [-1, 1].

        Returns:
            ``(N, 1, 1, 1)``, or ``(N, 1, H, W)`` with `spatial`; a pair of this and the list if `retPerLayer`.

        Raises:
            TypeError: If an argument is of the wrong type.
            ValueError: If shapes, sizes or devices do not match, or the pixel values of both are outside the range.
        """
        refuse_scripts(self, in0=in0, in1=in1)
        names, roles = ("in0", "in1"), network.roles_of(in0, in1, self.net.role)
        data_range = (0.0, 1.0) if normalize else (-1.0, 1.0)
        terms = network.measure(
            self.net, in0, in1, data_range, spatial=self.spatial, per_layer=True, names=names, roles=roles
        ).values
        layers = [term if self.spatial else term.view(-1, 1, 1, 1) for term in terms.values()]
        total = sum(layers[1:], layers[0])
        return (total, layers) if retPerLayer else total
