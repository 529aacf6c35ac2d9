"""Why items were chosen, and what a query looks like beside the pool it was chosen from."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from raybal.querying.base import Candidates, Holder, Query, QueryStrategy
from raybal.querying.factors import exact_distances
from raybal.querying.shards import Factors, HeldShards, Pick, accept, count_cells, rows_of

#: Items whose distances to one another are held at a time.
BLOCK = 1024


def describe_items(candidates: Candidates, ids: list[str]) -> dict[str, dict[str, Any]]:
    """Returns prediction, confidence and contributions of some candidates, by id."""
    found: dict[str, dict[str, Any]] = {}
    for part in candidates.map(_describe, ids):
        found |= part
    return found


def _describe(holder: Holder, ids: list[str]) -> dict[str, dict[str, Any]]:
    return {
        holder.ids[row]: {
            "predicted": int(holder.columns["predicted"][row]),
            "confidence": float(holder.columns["confidence"][row]),
            "contribution": holder.columns["contribution"][row].tolist(),
        }
        for row, _ in _rows(holder, ids)
    }


def explain_items(
    candidates: Candidates, strategy: QueryStrategy, query: Query, labelled: Holder | None
) -> dict[str, dict[str, Any]]:
    """Returns, by id, what each chosen item is to others in the metric of the strategy.

    Returns:
        {id: {"stands_for": number of candidates that are nearer to it than to the others, itself among them,
        "nearest_labelled": id of the labelled item that is nearest, None without any, "labelled_distance": how far
        that is}}. Nothing where the strategy is told not to explain.
    """
    if not strategy.settings.explain or not query.ids:
        return {}
    shards = HeldShards(candidates, strategy.factors)
    picks = _find(candidates, query.ids)
    cells = query.cells or _count(shards, picks)
    found: dict[str, dict[str, Any]] = {
        i: {"stands_for": cell, "nearest_labelled": None, "labelled_distance": None}
        for i, cell in zip(query.ids, cells, strict=True)
    }
    if labelled is not None and labelled.ids:
        ids, distances = _nearest(shards, picks, labelled, strategy.factors)
        for i, near, distance in zip(query.ids, ids, distances, strict=True):
            found[i] |= {"nearest_labelled": near, "labelled_distance": distance}
    return found


def _find(candidates: Candidates, ids: list[str]) -> list[Pick]:
    where = {
        number: Pick(shard, row, 0.0, 0.0)
        for shard, part in enumerate(candidates.map(_rows, ids))
        for row, number in part
    }
    return [where[number] for number in range(len(ids))]


def _rows(holder: Holder, ids: list[str]) -> list[tuple[int, int]]:
    """Returns (row, position in `ids`) of those that are here."""
    wanted = {i: number for number, i in enumerate(ids)}
    return [(row, wanted[i]) for row, i in enumerate(holder.ids) if i in wanted]


def _count(shards: HeldShards, picks: list[Pick]) -> list[int]:
    for start in range(0, len(picks), BLOCK):
        part = picks[start : start + BLOCK]
        rows = rows_of(shards, part)
        accept(shards, rows, np.array([p.shard for p in part]), range(len(part)), rows.d2.tolist())
    return count_cells(shards, picks)


def _nearest(
    shards: HeldShards, picks: list[Pick], labelled: Holder, factors: Factors
) -> tuple[list[str], list[float]]:
    """Returns (ids, distances) of the labelled items nearest to picks, the smaller id among equals."""
    by_id = np.argsort(np.array(labelled.ids, dtype=object))
    q, h = factors(Holder([labelled.ids[i] for i in by_id], labelled.keys, _taken(labelled.columns, by_id)))
    rows = rows_of(shards, picks)
    ids, distances = [], []
    for start in range(0, len(picks), BLOCK):
        part = rows[start : start + BLOCK]
        blocks = zip(q.split(BLOCK), h.split(BLOCK), strict=True)
        near = torch.cat([exact_distances(part.q, part.h, *block) for block in blocks], 1)
        least = near.min(1)
        ids += [labelled.ids[by_id[i]] for i in least.indices.tolist()]
        distances += least.values.sqrt().tolist()
    return ids, distances


def _taken(columns: dict[str, NDArray], rows: NDArray[np.int64]) -> dict[str, NDArray]:
    return {name: values[rows] for name, values in columns.items()}


def summarise_pool(candidates: Candidates) -> dict[str, Any]:
    """Returns, over all candidates: their number, the mean contribution of each modality, the share of items that
    each modality dominates, and the number of items predicted in each class; nothing if there is none."""
    parts = candidates.map(_totals)
    if not parts:
        return {}
    count = sum(part["count"] for part in parts)
    total = sum(part["contribution"] for part in parts)
    dominated = sum(part["dominated"] for part in parts)
    predicted: dict[int, int] = {}
    for part in parts:
        for k, number in part["predicted"].items():
            predicted[k] = predicted.get(k, 0) + number
    return {
        "candidates": int(count),
        "contribution": (total / max(count, 1)).tolist(),
        "dominated": (dominated / max(count, 1)).tolist(),
        "predicted": dict(sorted(predicted.items())),
    }


def _totals(holder: Holder) -> dict[str, Any]:
    contribution = holder.columns["contribution"].astype(np.float64)
    classes, numbers = np.unique(holder.columns["predicted"], return_counts=True)
    strongest = np.bincount(contribution.argmax(1), minlength=contribution.shape[1])
    return {
        "count": len(contribution),
        "contribution": contribution.sum(0),
        "dominated": strongest.astype(np.float64),
        "predicted": dict(zip(classes.tolist(), numbers.tolist(), strict=True)),
    }
