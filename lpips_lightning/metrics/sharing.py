"""Distances that several metrics of one network share, for `torchmetrics.wrappers.FeatureShare`."""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from lpips_lightning.batch import Distances, Features

_ROUNDS = 8  # batches to remember: one for each way in which the metrics measure it
_Images = Sequence[Tensor | Features | None]


@dataclass(frozen=True)
class _Entry:
    images: tuple[tuple[weakref.ref[Tensor], int] | None, ...]
    distances: Distances
    users: set[int]


class SharedDistances:
    """The latest batches and their distances.

    A metric gets the distances of a batch from here once, if another metric has stored them. Asked again, it measures:
    the caller may have written other images into the same tensor. Copies and pickles start empty.

    Example:
        >>> shared, first, second = SharedDistances(), object(), object()
        >>> x = torch.zeros(1, 3, 8, 8)
        >>> shared.store(first, "mean", (x, x), Distances(torch.zeros(1), None, 1))
        >>> [shared.find(one, "mean", (x, x)) is not None for one in (first, second, second)]
        [False, True, False]
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._entries: dict[Hashable, _Entry] = {}

    def find(self, metric: object, key: Hashable, images: _Images) -> Distances | None:
        """Distances that another metric has stored, or None.

        Args:
            metric: The metric that asks.
            key: How it measures.
            images: Both batches, and the mask or None.
        """
        with self._lock:
            entry = self._entries.get(_key(key, images))
            if entry is None or id(metric) in entry.users or entry.images != _identities(images):
                return None
            entry.users.add(id(metric))
            return entry.distances

    def store(self, metric: object, key: Hashable, images: _Images, distances: Distances) -> None:
        """Store distances for the other metrics, unless they have an autograd graph or belong to features.

        Args:
            metric: The metric that measured.
            key: How it measured.
            images: See `find`.
            distances: The result.
        """
        values = distances.values
        terms = list(values.values()) if isinstance(values, dict) else [values]
        if any(isinstance(one, Features) for one in images) or any(term.requires_grad for term in terms):
            return
        with self._lock:
            found = _key(key, images)
            self._entries.pop(found, None)
            self._entries[found] = _Entry(_identities(images), distances, {id(metric)})
            while len(self._entries) > _ROUNDS:
                self._entries.pop(next(iter(self._entries)))

    def __deepcopy__(self, memo: dict[int, Any]) -> SharedDistances:
        return SharedDistances()

    def __reduce__(self) -> tuple[type[SharedDistances], tuple[()]]:
        return SharedDistances, ()


def _key(key: Hashable, images: _Images) -> Hashable:
    device = next((one.device.type for one in images if isinstance(one, Tensor)), "cpu")
    autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    grad = torch.is_grad_enabled() and any(isinstance(one, Tensor) and one.requires_grad for one in images)
    return key, *map(id, images), autocast, grad, torch.is_inference_mode_enabled()


def _identities(images: _Images) -> tuple[tuple[weakref.ref[Tensor], int] | None, ...]:
    return tuple(
        (weakref.ref(one), 0 if one.is_inference() else one._version) if isinstance(one, Tensor) else None
        for one in images
    )
