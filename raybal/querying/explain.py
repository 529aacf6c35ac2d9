"""Why items were chosen, and what a query looks like beside the pool it was chosen from."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from raybal.querying.base import Candidates, Holder, Query, QueryStrategy, column_names, finite, gather, rows_of
from raybal.querying.distances import reproducible_distances
from raybal.querying.shards import Factors, HeldShards, add_centres, count_cells

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
        for row in rows_of(holder, ids)
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
    q, h = strategy.factors(gather(candidates, query.ids, column_names(candidates)))
    cells = query.cells or _cells(HeldShards(candidates, strategy.factors), q, h)
    found: dict[str, dict[str, Any]] = {
        i: {"stands_for": cell, "nearest_labelled": None, "labelled_distance": None}
        for i, cell in zip(query.ids, cells, strict=True)
    }
    if labelled is not None and labelled.ids:
        ids, distances = _nearest(q, h, labelled, strategy.factors)
        for i, near, distance in zip(query.ids, ids, distances, strict=True):
            found[i] |= {"nearest_labelled": near, "labelled_distance": distance}
    return found


def _cells(shards: HeldShards, q: Tensor, h: Tensor) -> list[int]:
    add_centres(shards, (q, h))
    return count_cells(shards, len(q))


def _nearest(q: Tensor, h: Tensor, labelled: Holder, factors: Factors) -> tuple[list[str], list[float]]:
    """Returns (ids, distances) of the labelled items nearest to items with factors q and h, the smaller id among
    equals."""
    by_id = np.argsort(np.array(labelled.ids, dtype=object))
    labelled = labelled[by_id]
    known = factors(labelled)
    ids, distances = [], []
    for part in zip(q.split(BLOCK), h.split(BLOCK), strict=True):
        blocks = zip(*(x.split(BLOCK) for x in known), strict=True)
        least = torch.cat([reproducible_distances(*part, *block) for block in blocks], 1).min(1)
        ids += [labelled.ids[i] for i in least.indices.tolist()]
        distances += least.values.sqrt().tolist()
    return ids, distances


def summarise_pool(candidates: Candidates) -> dict[str, Any]:
    """Returns, over all candidates: their number, the mean contribution of each modality, the share of items that
    each modality dominates, and the number of items predicted in each class; nothing if there is none.

    Raises:
        RaybalError: a contribution is not finite; the message names the item.
    """
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
    contribution = finite(holder, "contribution").astype(np.float64)
    classes, numbers = np.unique(holder.columns["predicted"], return_counts=True)
    strongest = np.bincount(contribution.argmax(1), minlength=contribution.shape[1])
    return {
        "count": len(contribution),
        "contribution": contribution.sum(0),
        "dominated": strongest.astype(np.float64),
        "predicted": dict(zip(classes.tolist(), numbers.tolist(), strict=True)),
    }
