"""Sums and differences along one axis of Winograd's arithmetic, F(m, 3): see `lpips_lightning.winograd`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

__all__ = ["FORMS", "Form", "Size"]

Size: TypeAlias = Literal[2, 3]
"""Pixels of the result that a tile makes, along each axis."""


@dataclass(frozen=True)
class Form:
    """One axis of F(m x m, 3x3).

    Attributes:
        points: The kernel's value at each, as sums of its three weights.
        mirrored: Order of the points for the mirrored kernel.
        split: Rows of m + 2 pixels -> the value at each point.
        merge: Products at the points -> m pixels; all but the first may be a column short where the image ends.
    """

    points: Sequence[Sequence[float]]
    mirrored: tuple[int, ...]
    split: Callable[[list[Tensor], list[Tensor]], None]
    merge: Callable[[list[Tensor], list[Tensor]], None]


def _split_2(d: list[Tensor], into: list[Tensor]) -> None:
    torch.sub(d[0], d[2], out=into[0])
    torch.add(d[1], d[2], out=into[1])
    torch.sub(d[2], d[1], out=into[2])
    torch.sub(d[1], d[3], out=into[3])


def _merge_2(m: list[Tensor], into: list[Tensor]) -> None:
    torch.add(m[1], m[2], out=into[0]).add_(m[0])
    short = _like(into[1], m)
    torch.sub(short[1], short[2], out=into[1]).sub_(short[3])


def _split_3(d: list[Tensor], into: list[Tensor]) -> None:
    before, after = torch.sub(d[1], d[2], out=into[1]), torch.sub(d[3], d[2], out=into[2])
    torch.sub(d[0], d[3], out=into[0]).add_(before, alpha=1.5)
    torch.sub(d[4], d[1], out=into[4]).add_(after, alpha=1.5)
    torch.sub(before, after, alpha=2, out=into[3])
    torch.sub(after, before, alpha=2, out=into[2])
    torch.add(d[1], d[3], out=into[1]).add_(d[2], alpha=2.5)


def _merge_3(m: list[Tensor], into: list[Tensor]) -> None:
    torch.add(m[0], m[1], out=into[0]).add_(m[2]).add_(m[3], alpha=0.25)
    short = _like(into[1], m)
    both = torch.add(short[2], short[3], out=into[1])
    torch.sub(short[1], both, alpha=0.5, out=into[1])
    short = _like(into[2], m)
    torch.add(short[4], short[1], out=into[2]).add_(short[2], alpha=0.25).add_(short[3])


def _like(short: Tensor, m: list[Tensor]) -> list[Tensor]:
    return [part[..., : short.shape[-2], :] for part in m]


_NINTHS = 8 / 9
FORMS: dict[Size, Form] = {
    # at 0, 1, -1 and infinity
    2: Form([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], (3, 1, 2, 0), _split_2, _merge_2),
    # at 0, 1, -1/2, -2 and infinity, scaled so that mirroring changes nothing but the order
    3: Form(
        [
            [1, 0, 0],
            [2 / 9, 2 / 9, 2 / 9],
            [_NINTHS, -_NINTHS / 2, _NINTHS / 4],
            [_NINTHS / 4, -_NINTHS / 2, _NINTHS],
            [0, 0, 1],
        ],
        (4, 1, 3, 2, 0),
        _split_3,
        _merge_3,
    ),
}
