"""What a query looks like beside the pool it was chosen from."""

from __future__ import annotations

from typing import Any

import numpy as np

from raybal.querying.base import Candidates, Holder


def describe_items(candidates: Candidates, ids: list[str]) -> dict[str, dict[str, Any]]:
    """Returns prediction, confidence and contributions of some candidates, by id."""
    found: dict[str, dict[str, Any]] = {}
    for part in candidates.map(_describe, ids):
        found |= part
    return found


def _describe(holder: Holder, ids: list[str]) -> dict[str, dict[str, Any]]:
    wanted = set(ids)
    return {
        i: {
            "predicted": int(holder.columns["predicted"][row]),
            "confidence": float(holder.columns["confidence"][row]),
            "contribution": holder.columns["contribution"][row].tolist(),
        }
        for row, i in enumerate(holder.ids)
        if i in wanted
    }


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
