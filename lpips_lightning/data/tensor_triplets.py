"""Judged triplets in memory: latents, or images of any number of channels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset


class TensorTriplets(Dataset[dict[str, Any]]):
    """Data set of judged triplets of tensors, for `PerceptualCalibration` and `pool` with a custom backbone.

    Items are dicts as in `TripletDataset`: ``ref``, ``p0``, ``p1``, shape ``(C, H, W)``, and ``judge``, shape ``()``.

    Args:
        ref: References ``(N, C, H, W)``, floating-point: on [-1, 1], or any values for a backbone without a range.
        p0: First candidates, of the same shape and dtype.
        p1: Second candidates, likewise.
        judge: Fraction of people who found `p1` closer to `ref`, ``(N,)`` in [0, 1].

    Raises:
        TypeError: If an argument is no floating-point tensor.
        ValueError: If shapes differ, there are no triplets, or a fraction is not in [0, 1].

    Example:
        >>> latents = torch.randn(3, 5, 4, 32, 32)
        >>> data = TensorTriplets(*latents, judge=torch.rand(5))
        >>> len(data), data[0]["p1"].shape
        (5, torch.Size([4, 32, 32]))
    """

    def __init__(self, ref: Tensor, p0: Tensor, p1: Tensor, judge: Tensor) -> None:
        self.tensors = {"ref": ref, "p0": p0, "p1": p1, "judge": judge}
        for name, tensor in self.tensors.items():
            if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
                found = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
                raise TypeError(f"{name}: expected a floating-point tensor, got {found}")
            expected = ref.shape[:1] if name == "judge" else ref.shape
            if tensor.shape != expected:
                raise ValueError(f"{name}: expected shape {tuple(expected)}, as of ref, got {tuple(tensor.shape)}")
        if ref.dim() != 4 or not len(ref):
            raise ValueError(f"ref: expected images (N, C, H, W), at least one, got shape {tuple(ref.shape)}")
        if not bool(((judge >= 0) & (judge <= 1)).all()):
            raise ValueError(f"judge: expected fractions in [0, 1], got {judge.min():g} to {judge.max():g}")

    @classmethod
    @torch.no_grad()
    def encoded(cls, data: Dataset[dict[str, Any]], encode: Callable[[Tensor], Tensor], batch_size: int = 32) -> Self:
        """Triplets whose images went through an encoder, such as judged images as latents.

        Args:
            data: Triplets of images, such as a `TripletDataset` or a `TwoAFCDataset`.
            encode: Images ``(N, 3, H, W)`` on [-1, 1] -> tensors ``(N, C, h, w)``.
            batch_size: Images in one call of `encode`.

        Returns:
            The triplets, on the CPU in float32.

        Raises:
            ValueError: See `TensorTriplets`.

        Example:
            >>> images = TensorTriplets(*torch.rand(3, 5, 3, 32, 32), judge=torch.rand(5))
            >>> TensorTriplets.encoded(images, torch.nn.Conv2d(3, 4, 8, stride=8))[0]["ref"].shape
            torch.Size([4, 4, 4])
        """
        parts: dict[str, list[Tensor]] = {"ref": [], "p0": [], "p1": [], "judge": []}
        for batch in DataLoader(data, batch_size):
            for name, found in parts.items():
                values = batch[name] if name == "judge" else encode(batch[name])
                found.append(values.detach().to("cpu", torch.float32))
        return cls(**{name: torch.cat(found) if found else torch.empty(0) for name, found in parts.items()})

    def __len__(self) -> int:
        return len(self.tensors["judge"])

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {name: tensor[index] for name, tensor in self.tensors.items()}
