"""Approximations of D-squared seeding for queries of very many items.

Both choose more candidates than are wanted, weight each by the items that are nearest to it, and draw the query from
these candidates by weighted D-squared seeding. Neither depends on how items lie in shards.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raybal import hashing
from raybal.querying.factors import FactorShard, Rows
from raybal.querying.seeding import first_pick, rejection_seeding
from raybal.querying.shards import LocalShards, Pick, Shards, accept, add_centres, merge, rest

Labelled = tuple[Tensor, Tensor]


def oversampled_seeding(
    shards: Shards, size: int, seed: int, *, labelled: Labelled | None = None, rounds: int = 5, factor: float = 2.0
) -> list[Pick]:
    """k-means|| (Bahmani, Moseley, Vattani, Kumar and Vassilvitskii, PVLDB 2012): a few rounds that each draw many.

    Each round draws `factor` times `size` items in proportion to their squared distances, independently and with
    replacement, where the paper tosses a coin for each item: the number is then given, and no sum over shards decides.

    Args:
        shards, size, seed, labelled: as in `rejection_seeding`.
        rounds: passes over all items.
        factor: items drawn in a round, as a multiple of `size`.

    Returns:
        The picks in order of choice.
    """
    if not _worth_it(shards, rounds * factor * size):
        return rejection_seeding(shards, size, seed, labelled=labelled)
    first: list[Pick] = []
    if labelled is not None and len(labelled[0]):
        add_centres(shards, labelled)
        before = len(labelled[0])
    else:
        first, labelled = first_pick(shards)
        before = 1
    found, where = [], []
    for block in range(rounds):
        answers = shards.map("propose", seed, block, round(factor * size))
        if not sum(len(a.row) for a in answers):
            break
        rows, shard = merge(answers, lambda p: np.lexsort((p.key, p.time)), round(factor * size))
        once = np.sort(np.unique(rows.key, return_index=True)[1])
        accept(shards, rows, shard, once.tolist(), rows.d2[once].tolist())
        found.append(rows[once])
        where.append(shard[once])
    picks = first
    if found:
        rows = _joined(found)
        weights = sum(shards.map("cells", before + len(rows.row)))[before:]
        picks = first + _draw(rows, np.concatenate(where), weights, size - len(first), seed, labelled)
    return picks + rest(shards, size - len(picks), seed)


def partitioned_seeding(
    shards: Shards, size: int, seed: int, *, labelled: Labelled | None = None, parts: int = 8, factor: float = 4.0
) -> list[Pick]:
    """Seeds in parts of the items, shuffled by hash, and then among what the parts chose.

    A part is gathered in this process; `factor` over `parts` of the work of the exact form is left.

    Args:
        shards, size, seed, labelled: as in `rejection_seeding`.
        parts: number of parts.
        factor: candidates that all parts choose together, as a multiple of `size`.

    Returns:
        The picks in order of choice.
    """
    if not _worth_it(shards, factor * size):
        return rejection_seeding(shards, size, seed, labelled=labelled)
    before = 0 if labelled is None else len(labelled[0])
    wanted = -(-round(factor * size) // parts)
    found, where, weights = [], [], []
    for number in range(parts):
        answers: list[Rows] = shards.map("part", seed, parts, number)
        rows, shard = merge(answers, lambda r: np.argsort(r.key), sum(len(a.row) for a in answers))
        own = FactorShard(rows.q, rows.h, rows.key)
        picks = rejection_seeding(LocalShards([own]), wanted, hashing.digest(seed, number), labelled=labelled)
        chosen = np.array([p.row for p in picks], np.int64)
        found.append(rows[chosen])
        where.append(shard[chosen])
        weights.append(own.cells(before + len(chosen))[before:])
    return _draw(_joined(found), np.concatenate(where), np.concatenate(weights), size, seed, labelled)


def _worth_it(shards: Shards, candidates: float) -> bool:
    """Returns whether there are many more items than candidates; if not, the exact form is as fast."""
    return sum(shards.map("__len__")) >= 2 * candidates


def _joined(parts: list[Rows]) -> Rows:
    return merge(parts, lambda r: np.arange(len(r.row)), sum(len(p.row) for p in parts))[0]


def _draw(
    rows: Rows, shard: NDArray[np.int64], weights: NDArray[np.int64], size: int, seed: int, labelled: Labelled | None
) -> list[Pick]:
    """Draws the query from candidates, each as often as the items that it stands for."""
    own = FactorShard(rows.q, rows.h, rows.key, torch.from_numpy(np.maximum(weights, 1).astype(np.float64)))
    picks = rejection_seeding(LocalShards([own]), size, hashing.digest(seed, "candidates"), labelled=labelled)
    return [Pick(int(shard[p.row]), int(rows.row[p.row]), p.d2, p.norm) for p in picks]
