"""One shard of factored gradient embeddings and its squared distances to the centres chosen so far.

An embedding is an outer product E_i = vec(q_i (x) h_i), so <E_i, E_j> = <q_i, q_j> <h_i, h_j>: only the factors
q [n, C] and h [n, D] are kept, never the product.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raybal import hashing
from raybal.errors import RaybalError

TILE = 2048
#: Below this share of the norm a float32 distance is cancellation noise and is computed again in float64.
NOISE = 1e-4
#: Centres come in multiples of this: matrix products run the last few columns of other numbers by kernels whose
#: rounding depends on where in the tile a row lies.
_CENTRES = 16
#: Below this share of the norms a float64 distance is rounding: the embeddings are equal.
_EQUAL = 1e-12


@dataclass
class Proposals:
    """A shard's earliest arrivals of one block, sorted by time.

    Attributes:
        time: float64 [m].
        accept: uniform number that decides on acceptance, [m].
        row: row inside the shard, int64 [m].
        key: hash of the id, uint64 [m].
        d2: D2_start of the item, float64 [m].
        q, h: its factors [m, C], [m, D].
    """

    time: NDArray[np.float64]
    accept: NDArray[np.float64]
    row: NDArray[np.int64]
    key: NDArray[np.uint64]
    d2: NDArray[np.float64]
    q: Tensor
    h: Tensor


class FactorShard:
    """The factors of one shard's items and their squared distances to the nearest centre.

    Args:
        q: [n, C] residuals.
        h: [n, D] scaled embeddings.
        keys: uint64 [n], hashes of the ids; equal only for equal ids.

    Raises:
        RaybalError: a factor is not finite; the message names the row.
    """

    def __init__(self, q: Tensor, h: Tensor, keys: NDArray[np.uint64]) -> None:
        self.q, self.h = q.contiguous(), h.contiguous()
        self.keys = keys
        self.norm = finite_norms(self.q, self.h)
        self.d2 = np.full(len(q), np.inf)
        self.free = np.ones(len(q), bool)

    def __len__(self) -> int:
        return len(self.q)

    def largest(self) -> tuple[float, int, int, Tensor, Tensor]:
        """Returns (squared norm, key, row, q [1, C], h [1, D]) of the item of largest norm, the smallest key among
        equals; row -1 if there is no item."""
        if not len(self):
            return -1.0, 0, -1, self.q, self.h
        rows = np.flatnonzero(self.norm == self.norm.max())
        row = int(rows[np.argmin(self.keys[rows])])
        return float(self.norm[row]), int(self.keys[row]), row, self.q[row : row + 1], self.h[row : row + 1]

    def propose(self, seed: int, block: int, count: int) -> Proposals:
        """Returns this shard's `count` earliest arrivals of a block (fewer only if no item has any mass)."""
        live = np.flatnonzero(self.free & (self.d2 > 0))
        base, rate = hashing.mix(self.keys[live], seed, block), self.d2[live]

        def gap(of: NDArray[np.int64], arrival: int) -> NDArray[np.float64]:
            return -np.log(hashing.uniform(hashing.mix(base[of], arrival, 0))) / rate[of]

        item = np.arange(len(live))
        time = gap(item, 0)
        if len(item) > count:
            item = np.argpartition(time, count - 1)[:count]
            time = time[item]
        # An item may arrive again and again before the last arrival that counts.
        items, times, numbers = [item], [time], [np.zeros(len(item), np.int64)]
        while len(item):
            number = len(times)  # how many arrivals of each item have been drawn
            known = np.concatenate(times)
            last = np.inf if len(known) < count else np.partition(known, count - 1)[count - 1]
            time = time + gap(item, number)
            item, time = item[time < last], time[time < last]
            items.append(item)
            times.append(time)
            numbers.append(np.full(len(item), number))
        item, time, numbers_all = np.concatenate(items), np.concatenate(times), np.concatenate(numbers)
        first = np.argsort(time, kind="stable")[:count]
        item, time, number_of = item[first], time[first], numbers_all[first]
        accept = hashing.uniform(hashing.mix(base[item], number_of, 1))
        rows = live[item]
        chosen = torch.from_numpy(rows)
        return Proposals(time, accept, rows, self.keys[rows], self.d2[rows], self.q[chosen], self.h[chosen])

    def update(self, q: Tensor, h: Tensor, chosen: Sequence[int] = ()) -> None:
        """Lowers D2 by new centres. What that gives for a row does not depend on the rows beside it.

        Args:
            q, h: factors of the centres, [k, C] and [k, D].
            chosen: rows of this shard that are among the centres.
        """
        fill = -len(q) % _CENTRES
        # Repeats of the last centre change no minimum.
        q, h = (torch.cat([x, x[-1:].expand(fill, -1)]) for x in (q, h))
        centre_norm = squared_norms(q, h)
        scaled = (-2 * q.float()).T.contiguous()
        other = h.float().T.contiguous()
        offset = torch.from_numpy(centre_norm).float()
        # Fresh memory for every tile would cost as much as a third of the products.
        memory = torch.empty(2, TILE, len(q))
        for start in range(0, len(self), TILE):
            rows = slice(start, min(start + TILE, len(self)))
            nearest = _tile(offset, self.q[rows], scaled, self.h[rows], other, memory)
            d2 = np.maximum(self.norm[rows] + nearest.numpy(), 0.0)
            noisy = np.flatnonzero((d2 < NOISE * self.norm[rows]) & (self.d2[rows] > 0))
            if len(noisy):
                index = torch.from_numpy(noisy + start)
                d2[noisy] = exact_distances(self.q[index], self.h[index], q, h).min(1)
            self.d2[rows] = np.minimum(self.d2[rows], d2)
        rows_chosen = np.asarray(chosen, np.int64)
        self.free[rows_chosen] = False
        self.d2[rows_chosen] = 0.0

    def earliest_free(self, seed: int, count: int) -> list[tuple[int, int, float]]:
        """Returns (hash, row, squared norm) of up to `count` free items in a random order by hash."""
        rows = np.flatnonzero(self.free)
        clock = hashing.mix(self.keys[rows], seed, -1)
        first = np.argsort(clock)[:count]
        return list(zip(clock[first].tolist(), rows[first].tolist(), self.norm[rows[first]].tolist(), strict=True))


def squared_norms(q: Tensor, h: Tensor) -> NDArray[np.float64]:
    """Returns the squared norms of the embeddings, ||q_i||^2 ||h_i||^2, summed in float64."""

    def sums(x: Tensor) -> Tensor:
        return (
            torch.cat([part.double().square().sum(1) for part in x.split(TILE)]) if len(x) else x.new_zeros(0).double()
        )

    return (sums(q) * sums(h)).numpy()


def finite_norms(q: Tensor, h: Tensor) -> NDArray[np.float64]:
    """Returns `squared_norms`.

    Raises:
        RaybalError: a factor is not finite; the message names the row.
    """
    norms = squared_norms(q, h)
    bad = np.flatnonzero(~np.isfinite(norms))
    if len(bad):
        raise RaybalError(f"the gradient factors of {len(bad)} items are not finite, the first in row {bad[0]}")
    return norms


def exact_distances(q: Tensor, h: Tensor, q_other: Tensor, h_other: Tensor) -> NDArray[np.float64]:
    """Returns squared distances [n, k] of embeddings in float64; exactly 0 for equal ones."""
    product = (q.double() @ q_other.double().T) * (h.double() @ h_other.double().T)
    norms = squared_norms(q, h)[:, None] + squared_norms(q_other, h_other)[None]
    d2 = norms - 2 * product.numpy()
    return np.where(d2 <= _EQUAL * norms, 0.0, d2)


def _tile(offset: Tensor, q: Tensor, q_centres: Tensor, h: Tensor, h_centres: Tensor, memory: Tensor) -> Tensor:
    """Returns min_c(||E_c||^2 - 2 <E_i, E_c>) of one tile's rows.

    A short tile is filled up with zeros, so that every row is computed by the same kernel whatever its neighbours.
    """
    rows = len(q)
    if rows < TILE:
        q = torch.cat([q.float(), torch.zeros(TILE - rows, q.shape[1])])
        h = torch.cat([h.float(), torch.zeros(TILE - rows, h.shape[1])])
    product, other = memory
    torch.mm(q.float(), q_centres, out=product)
    torch.mm(h.float(), h_centres, out=other)
    return product.mul_(other).add_(offset).amin(1)[:rows]
