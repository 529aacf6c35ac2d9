"""Deterministic batches.

Batch t of an epoch is a function of (seed, epoch, t) and of the ids in the training set, whatever the number of
workers: the items are ordered by a hash of (seed, epoch, id) and cut into batches, and worker r of W takes part r
of each. No row is ever dropped, and a run resumed at an epoch sees the batches it would have seen.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raybal import hashing
from raybal.data.room import take


@dataclass
class Items:
    """Items in memory.

    Attributes:
        ids: n ids.
        inputs: {m: array [n, *shape_m]}, zeros where missing.
        present: bool [n, M].
        labels: class index int64 [n]; -1 where there is none.
    """

    ids: list[str]
    inputs: dict[str, NDArray]
    present: NDArray[np.bool_]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, positions: NDArray[np.int64]) -> Items:
        """Returns the items at some positions."""
        return Items(
            [self.ids[i] for i in positions],
            {m: take(array, positions) for m, array in self.inputs.items()},
            self.present[positions],
            self.labels[positions],
        )

    def in_proportion(self, seed: int) -> NDArray[np.int64]:
        """Returns all positions in an order of which any beginning has the classes in proportion: the i-th item of a
        class with n, by a hash of the seed and the ids, comes at (i + 1/2) / n of the way."""
        order = hashing.order(self.ids, seed)
        ranks = np.empty(len(self))
        for label in np.unique(self.labels):
            own = order[self.labels[order] == label]
            ranks[own] = (np.arange(len(own)) + 0.5) / len(own)
        return order[np.argsort(ranks[order], kind="stable")]


@dataclass
class Batch:
    """One worker's part of a batch, as tensors.

    Attributes:
        inputs: {m: [B, *shape_m]}.
        present: bool [B, M].
        labels: int64 [B].
        weights: float32 [B]; 0 for rows that only fill up a part that would have been empty, else 1.
        total: number of real rows in the whole batch, over all workers and micro-batches: what a mean divides by.
    """

    inputs: dict[str, Tensor]
    present: Tensor
    labels: Tensor
    weights: Tensor
    total: int


def steps_per_epoch(items: int, batch_size: int) -> int:
    """Returns the number of batches that an epoch over this many items has."""
    return math.ceil(items / batch_size)


def gather(items: Items, positions: NDArray[np.int64], device: torch.device, *, total: int | None = None) -> Batch:
    """Returns the items at some positions as one batch on a device. No positions gives one row of weight 0, since
    every worker must take part in every step."""
    weights = np.ones(max(len(positions), 1), np.float32)
    if len(positions) == 0:
        positions, weights = np.zeros(1, np.int64), np.zeros(1, np.float32)

    def tensor(array: NDArray) -> Tensor:
        return torch.from_numpy(array).to(device, non_blocking=True)

    return Batch(
        inputs={m: tensor(array[positions]) for m, array in items.inputs.items()},
        present=tensor(items.present[positions]),
        labels=tensor(items.labels[positions]),
        weights=tensor(weights),
        total=len(positions) if total is None else total,
    )


def epoch_batches(
    items: Items,
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    rank: int = 0,
    world: int = 1,
    accumulate: int = 1,
    device: torch.device | None = None,
) -> Iterator[list[Batch]]:
    """Yields, for each step of an epoch, this worker's micro-batches.

    Args:
        batch_size: rows of a whole batch, over all workers and micro-batches.
        seed, epoch: what the order depends on, with the ids.
        rank, world: this worker's number and the number of workers.
        accumulate: number of micro-batches that a batch is cut into; each worker has a part of each.
    """
    order = hashing.order(items.ids, seed, epoch)
    for step in range(steps_per_epoch(len(items), batch_size)):
        rows = order[step * batch_size : (step + 1) * batch_size]
        # Micro-batches first: what a method compares within one is then the same for any number of workers.
        mine = [np.array_split(part, world)[rank] for part in np.array_split(rows, accumulate)]
        yield [gather(items, part, device or torch.device("cpu"), total=len(rows)) for part in mine]


def in_batches(
    items: Items, batch_size: int, device: torch.device, positions: NDArray[np.int64] | None = None
) -> Iterator[Batch]:
    """Yields the items, or those at some positions, in order."""
    for rows in fixed_batches(len(items) if positions is None else len(positions), batch_size):
        yield gather(items, rows if positions is None else positions[rows], device)


def fixed_batches(count: int, batch_size: int) -> Iterator[NDArray[np.int64]]:
    """Yields positions 0..count-1 in order, in runs of batch_size."""
    for start in range(0, count, batch_size):
        yield np.arange(start, min(start + batch_size, count))
