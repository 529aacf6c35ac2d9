"""The k-centre greedy: again and again the item that is farthest from all centres.

Done one by one this is a pass over all factors a pick. Here the shards name the items that are farthest now, m in all,
and the distance of the next one. Distances only fall, so as long as the farthest of the m, whose distances to the
centres accepted meanwhile are known, is farther than that next one was, it is the farthest of all. One exchange and
one matrix product then serve several picks, which are those of the one-by-one form.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from raybal.querying.distances import reproducible_distances
from raybal.querying.factors import Rows
from raybal.querying.shards import Pick, Shards, accept, add_centres, merge, rest, rows_of


def k_centre(
    shards: Shards, size: int, seed: int, *, labelled: tuple[Tensor, Tensor] | None = None, exchange: int = 256
) -> list[Pick]:
    """Chooses `size` items by the k-centre greedy over shards.

    Args:
        shards: of all candidates.
        size: number of items; all there are if there are fewer.
        seed: chooses the first item where there is no centre yet, and among items that equal a centre.
        labelled: factors of centres that are there already.
        exchange: items that are looked at between two exchanges.

    Returns:
        The picks in order of choice, which do not depend on how items lie in shards: of equals, the smaller key.
    """
    picks: list[Pick] = []
    if labelled is not None and len(labelled[0]):
        add_centres(shards, labelled)
    elif size > 0:
        picks = _first(shards, seed)
    while len(picks) < size:
        answers: list[Rows] = shards.map("farthest", exchange + 1)
        if not any(len(a.d2) and a.d2[0] > 0 for a in answers):
            return picks + rest(shards, size - len(picks), seed)
        found, shard = merge(answers, lambda r: np.lexsort((r.key, -r.d2)), exchange + 1)
        bound = float(found.d2[exchange]) if len(found.d2) > exchange else 0.0
        found = found[:exchange]
        distances = reproducible_distances(found.q, found.h, found.q, found.h).numpy()
        chosen, d2 = walk(found.key, found.d2, distances, bound, size - len(picks))
        picks += accept(shards, found, shard, chosen, d2)
    return picks


def _first(shards: Shards, seed: int) -> list[Pick]:
    earliest = rest(shards, 1, seed)
    if not earliest:
        return []
    return accept(shards, rows_of(shards, earliest), np.array([earliest[0].shard]), [0], [earliest[0].norm])


def walk(
    key: NDArray[np.uint64], d2: NDArray[np.float64], distances: NDArray[np.float64], bound: float, wanted: int
) -> tuple[list[int], list[float]]:
    """Accepts the farthest item again and again while it is known to be the farthest of all.

    Args:
        key: [m], of equals the smaller one is preferred.
        d2: [m], squared distances to the centres so far, falling; of equals, the smaller key first.
        distances: [m, m], squared distances of these items to one another.
        bound: squared distance of the farthest item that is not among them.
        wanted: stop after this many.

    Returns:
        (items, squared distance of each when it was accepted); at least one.
    """
    now, chosen, far = d2.copy(), list[int](), list[float]()
    while len(chosen) < wanted:
        farthest = np.flatnonzero(now == now.max())
        item = int(farthest[key[farthest].argmin()])
        # The first comes before every item elsewhere even at the same distance; a later one may not.
        if (chosen and now[item] <= bound) or now[item] <= 0:
            break
        chosen.append(item)
        far.append(float(now[item]))
        np.minimum(now, distances[item], out=now)
    return chosen, far
