"""The `lpips` package's `Trainer`, of which only the part that scores remains, and its two scores of data sets."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lpips_lightning.compat.lpips import LPIPS
from lpips_lightning.compat.modules import DSSIM, L2
from lpips_lightning.functional.judgments import agreement, jnd_score

_OF_TRAINING = {
    "backward_train",
    "clamp_weights",
    "compute_accuracy",
    "forward_train",
    "get_current_errors",
    "get_current_visuals",
    "load_network",
    "optimize_parameters",
    "save",
    "save_done",
    "save_network",
    "set_input",
    "update_learning_rate",
}
_TRAIN = (
    "calibrations are trained by lpips_lightning.calibration.PerceptualCalibration and `lpips-lightning calibration`"
)


class Trainer:
    """A distance by name, for scripts that score it with `score_2afc_dataset` and `score_jnd_dataset`.

    Training a calibration is refused.

    Attributes:
        net: The distance.
        parameters: Empty: nothing is trained.

    Example:
        >>> trainer = Trainer()
        >>> trainer.initialize(model="L2", colorspace="RGB", use_gpu=False)
        >>> trainer.forward(torch.zeros(1, 3, 8, 8), torch.full((1, 3, 8, 8), 0.5))
        tensor([0.2500])
    """

    net: nn.Module

    def initialize(
        self,
        model: str = "lpips",
        net: str = "alex",
        colorspace: str = "Lab",
        pnet_rand: bool = False,
        pnet_tune: bool = False,
        model_path: str | os.PathLike[str] | None = None,
        use_gpu: bool = True,
        printNet: bool = False,  # noqa: N803 - the names of `lpips`
        spatial: bool = False,
        is_train: bool = False,
        lr: float = 0.0001,
        beta1: float = 0.5,
        version: str | float = "0.1",
        gpu_ids: Sequence[int] = (0,),
    ) -> None:
        """Build the distance.

        Args:
            model: ``"lpips"``; ``"baseline"``, without calibration; ``"L2"`` or ``"DSSIM"`` (``"l2"``, ``"ssim"``).
            net: Backbone of the first two.
            colorspace: ``"Lab"`` or ``"RGB"``, of the last two.
            pnet_rand: Random backbone.
            pnet_tune: True is refused.
            model_path: A calibration file.
            use_gpu: Compute on the first of `gpu_ids`.
            printNet: Ignored.
            spatial: Return maps, with ``"lpips"``.
            is_train: True is refused.
            lr: Ignored.
            beta1: Ignored.
            version: ``"0.1"`` or ``"0.0"``, of ``"lpips"``.
            gpu_ids: Indices of GPUs, of which one is used.

        Raises:
            ValueError: If an argument is refused or has an unknown value.
            WeightsError: If weights are missing, damaged or of another architecture.
        """
        if is_train:
            raise ValueError(f"is_train: expected False, got True; {_TRAIN}")
        self.model, self.is_train, self.spatial = model, False, spatial
        self.use_gpu, self.gpu_ids = use_gpu, list(gpu_ids)
        self.model_name = f"{model} [{net}]"
        if model == "lpips":
            options = {"version": version, "spatial": spatial, "pnet_rand": pnet_rand, "pnet_tune": pnet_tune}
            self.net = LPIPS(net=net, model_path=model_path, **options)  # type: ignore[arg-type]
        elif model == "baseline":
            self.net = LPIPS(net=net, lpips=False, pnet_rand=pnet_rand)
        elif model in ("L2", "l2"):
            self.net, self.model_name = L2(use_gpu, colorspace), "L2"
        elif model in ("DSSIM", "dssim", "SSIM", "ssim"):
            self.net, self.model_name = DSSIM(use_gpu, colorspace), "SSIM"
        else:
            raise ValueError(f"model: expected 'lpips', 'baseline', 'L2' or 'DSSIM', got {model!r}")
        self.parameters = list(self.net.parameters())
        self._device = torch.device("cuda", self.gpu_ids[0]) if use_gpu else None
        if self._device is not None:
            self.net.to(self._device)

    def name(self) -> str:
        """What is measured."""
        return self.model_name

    def forward(self, in0: Tensor, in1: Tensor, retPerLayer: bool = False) -> Any:  # noqa: N803
        """Distance of every pair.

        Args:
            in0: Images ``(N, 3, H, W)`` on [-1, 1].
            in1: The same.
            retPerLayer: Also return the layers' terms.

        Returns:
            As `net` does.
        """
        if self._device is not None:
            in0, in1 = in0.to(self._device), in1.to(self._device)
        return self.net(in0, in1, retPerLayer=retPerLayer)

    def __getattr__(self, name: str) -> Any:
        if name in _OF_TRAINING:
            raise AttributeError(f"Trainer.{name} is part of a training; {_TRAIN}")
        raise AttributeError(f"Trainer has no attribute {name!r}" + "; call initialize first" * (name == "net"))


def score_2afc_dataset(
    data_loader: Any, func: Callable[[Tensor, Tensor], Tensor], name: str = ""
) -> tuple[np.floating[Any], dict[str, Any]]:
    """2AFC score of a distance: how often it agrees with people on which of two patches is closer to a reference.

    Args:
        data_loader: Has ``load_data()``, which gives batches with ``"ref"``, ``"p0"``, ``"p1"`` and ``"judge"``; or the
            batches themselves.
        func: Distance of two batches of images, one number per pair.
        name: Ignored; nothing is printed.

    Returns:
        The score in [0, 1]; and arrays ``d0s``, ``d1s``, ``gts``, ``scores`` with one number per triplet.

    Raises:
        ValueError: If a number is NaN, or a judgment is outside [0, 1].
    """
    columns: list[list[Tensor]] = [[], [], []]
    for batch in _batches(data_loader):
        found = func(batch["ref"], batch["p0"]), func(batch["ref"], batch["p1"]), batch["judge"]
        for column, values in zip(columns, found, strict=True):
            column.append(_flat(values))
    d0s, d1s, gts = (torch.cat(column) for column in columns)
    scores = agreement(d0s, d1s, gts)
    arrays = {"d0s": d0s, "d1s": d1s, "gts": gts, "scores": scores}
    return np.float64(scores.mean()), {key: values.numpy() for key, values in arrays.items()}


def score_jnd_dataset(
    data_loader: Any, func: Callable[[Tensor, Tensor], Tensor], name: str = ""
) -> tuple[np.floating[Any], dict[str, Any]]:
    """Average precision of a distance for "these look the same".

    `lpips` 0.1.4 sorts distances ``(N, 1, 1, 1)``, those of its networks, along the last axis, which does not sort
    them: it returns the first pair's fraction. Here they are sorted, and a warning says that the number differs.

    Args:
        data_loader: Has ``load_data()``, which gives batches with ``"p0"``, ``"p1"`` and ``"same"``; or the batches
            themselves.
        func: Distance of two batches of images, one number per pair.
        name: Ignored; nothing is printed.

    Returns:
        The score in [0, 1]; and arrays ``ds``, ``sames`` with one number per pair.

    Raises:
        ValueError: If a number is NaN, or a judgment is outside [0, 1].
    """
    columns: list[list[Tensor]] = [[], []]
    for batch in _batches(data_loader):
        found = func(batch["p0"], batch["p1"])
        if found.dim() > 1 and not columns[0]:
            warnings.warn(
                f"func: distances of shape {tuple(found.shape)} are sorted here; lpips 0.1.4 does not sort them, and "
                "returns the fraction of the first pair instead of the average precision",
                stacklevel=2,
            )
        for column, values in zip(columns, (found, batch["same"]), strict=True):
            column.append(_flat(values))
    ds, sames = (torch.cat(column) for column in columns)
    return np.float64(jnd_score(ds, sames)), {"ds": ds.numpy(), "sames": sames.numpy()}


def voc_ap(rec: Any, prec: Any, use_07_metric: bool = False) -> np.floating[Any]:
    """Average precision as in the PASCAL VOC challenges.

    Args:
        rec: Recall at increasing thresholds, ascending.
        prec: Precision at the same thresholds.
        use_07_metric: Mean of the best precision at 11 recalls, as until 2009, instead of the area below the envelope.

    Returns:
        A number in [0, 1].
    """
    recall, precision = np.asarray(rec, np.float64), np.asarray(prec, np.float64)
    if use_07_metric:
        best = [precision[recall >= least].max(initial=0.0) for least in np.arange(0.0, 1.1, 0.1)]
        return np.float64(np.mean(best))
    envelope = np.maximum.accumulate(np.append(precision, 0.0)[::-1])[::-1]
    steps = np.diff(np.concatenate(([0.0], recall, [1.0])))
    return np.float64(np.sum(steps * envelope))


def _batches(data_loader: Any) -> Iterable[Any]:
    return data_loader.load_data() if hasattr(data_loader, "load_data") else data_loader


def _flat(values: Tensor) -> Tensor:
    """Numbers ``(N,)`` on the CPU, in float64."""
    return values.detach().cpu().double().flatten()
