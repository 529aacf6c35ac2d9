"""Keeping some training items away from gradients, for methods that measure on them."""

from __future__ import annotations

import math

import numpy as np

from raybal import hashing
from raybal.data.batches import Items


def hold_out(items: Items, share: float, seed: int) -> tuple[Items, Items | None]:
    """Parts training items into those that gradients come from and those that are held out.

    The share is taken with the classes in proportion, by a hash of the seed and the ids; of rare classes only some
    have an item held out, and none loses its last one. All of these items are labelled and in the training split, so
    no label is seen that training would not see, and validation items are not touched. Groups are not kept together:
    what is measured is how a model fares on other items of the speakers and scenes that it knows.

    Args:
        items: labelled training items.
        share: of all items, in [0, 1), rounded up.
        seed: of the choice.

    Returns:
        (items to train on, items held out); (all, None) for a share of 0, or where no class has two items.
    """
    if share == 0:
        return items, None
    order = items.in_proportion(hashing.digest("held out", seed))
    # The last item of each class stays.
    _, last = np.unique(items.labels[order][::-1], return_index=True)
    order = np.delete(order, len(order) - 1 - last)
    wanted = min(math.ceil(share * len(items)), len(order))
    if not wanted:
        return items, None
    chosen = np.sort(order[:wanted])
    return items.take(np.setdiff1d(np.arange(len(items)), chosen)), items.take(chosen)
