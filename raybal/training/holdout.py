"""Keeping some training items away from gradients, for methods that measure on them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from raybal import hashing
from raybal.data.batches import Items


def hold_out(items: Items, share: float, seed: int) -> tuple[Items, Items | None]:
    """Parts training items into those that gradients come from and those that are held out.

    A share of each class is held out, at least one item, by a hash of the seed and the ids; a class with one item
    keeps it. All of these items are labelled and in the training split, so no label is seen that training would not
    see, and validation items are not touched.

    Args:
        items: labelled training items.
        share: of each class, in [0, 1).
        seed: of the choice.

    Returns:
        (items to train on, items held out); (all, None) for a share of 0, or where no class has two items.
    """
    if share == 0:
        return items, None
    order = hashing.order(items.ids, hashing.digest("held out", seed))
    out: list[NDArray[np.int64]] = []
    for label in np.unique(items.labels):
        own = order[items.labels[order] == label]
        if len(own) > 1:
            out.append(own[: max(1, min(round(share * len(own)), len(own) - 1))])
    if not out:
        return items, None
    chosen = np.sort(np.concatenate(out))
    return items.take(np.setdiff1d(np.arange(len(items)), chosen)), items.take(chosen)
