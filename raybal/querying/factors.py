"""One shard of factored embeddings and its squared distances to the centres chosen so far.

A gradient embedding is an outer product E_i = vec(q_i (x) h_i), so <E_i, E_j> = <q_i, q_j> <h_i, h_j>: only the factors
q [n, C] and h [n, D] are kept, never the product. A plain embedding h_i is the same with q_i = [1].
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raybal import hashing
from raybal.querying import clocks
from raybal.querying.distances import CENTRES, NOISE, TILE, Centres, finite_norms

#: Centres whose distances to a tile of rows are held at a time.
_AT_ONCE = 1024


@dataclass
class Rows:
    """Some items of a shard, on the CPU.

    Attributes:
        row: row inside the shard, int64 [m].
        key: hash of the id, uint64 [m].
        d2: squared distance to the nearest centre, float64 [m].
        nearest: number of that centre, int32 [m].
        norm: squared norm, float64 [m].
        q, h: factors [m, C], [m, D].
    """

    row: NDArray[np.int64]
    key: NDArray[np.uint64]
    d2: NDArray[np.float64]
    nearest: NDArray[np.int32]
    norm: NDArray[np.float64]
    q: Tensor
    h: Tensor

    def __getitem__(self, chosen: Any) -> Self:
        """Returns some of them: positions, or a slice."""
        return dataclasses.replace(self, **{name: value[chosen] for name, value in vars(self).items()})


@dataclass
class Proposals(Rows):
    """A shard's earliest arrivals of one block, sorted by time.

    Attributes:
        time: float64 [m].
        accept: uniform number that decides on acceptance, [m].
    """

    time: NDArray[np.float64]
    accept: NDArray[np.float64]


class FactorShard:
    """The factors of one shard's items and their squared distances to the nearest centre.

    Args:
        q: [n, C] residuals.
        h: [n, D] scaled embeddings, on the same device; in half precision they take half the room, and are computed
            with in float32.
        keys: uint64 [n], hashes of the ids; equal only for equal ids.
        weights: how often each item counts when items are drawn, float64 [n]; once without them.

    Attributes:
        norm: squared norms of the embeddings, float64 [n].
        d2: squared distances to the nearest centre, float64 [n].
        nearest: number of the nearest centre in order of choice, int32 [n]; -1 as long as there is none.
        free: whether the item may still be chosen, bool [n].
        centres: number of centres so far.

    Raises:
        NotFiniteError: a factor is not finite.
    """

    def __init__(self, q: Tensor, h: Tensor, keys: NDArray[np.uint64], weights: Tensor | None = None) -> None:
        self.q, self.h = q.contiguous(), h.contiguous()
        self.keys = keys
        self.weights = weights
        self.norm = finite_norms(self.q, self.h)
        self.free = torch.ones(len(q), dtype=torch.bool, device=q.device)
        self._clock = clocks.to_tensor(keys, q.device)
        self.forget()

    def __len__(self) -> int:
        return len(self.q)

    def forget(self) -> None:
        """Forgets all centres; what was chosen stays chosen."""
        self.d2 = torch.full_like(self.norm, torch.inf)
        self.nearest = torch.full_like(self.norm, -1, dtype=torch.int32)
        self.centres = 0

    def release(self) -> None:
        """Makes all items free again."""
        self.free.fill_(True)

    def rows(self, chosen: Tensor) -> Rows:
        """Returns some rows, int64 [m]."""
        row = chosen.cpu().numpy()
        d2, nearest, norm = (x[chosen].cpu().numpy() for x in (self.d2, self.nearest, self.norm))
        return Rows(row, self.keys[row], d2, nearest, norm, self.q[chosen].cpu(), self.h[chosen].cpu())

    def take(self, rows: Sequence[int]) -> None:
        """Lets these rows not be chosen again."""
        self.free[torch.as_tensor(np.asarray(rows, np.int64), device=self.free.device)] = False

    def part(self, seed: int, parts: int, number: int) -> Rows:
        """Returns the items that hashing puts into one of so many parts."""
        mine = hashing.mix(self.keys, seed, -2) % np.uint64(parts) == number
        return self.rows(torch.from_numpy(np.flatnonzero(mine)).to(self.q.device))

    def assign(self, q: Tensor, h: Tensor) -> None:
        """Gives every item the nearest of these centres alone, [k, C] and [k, D]."""
        self.forget()
        self.update(q, h)

    def magnitude(self) -> float:
        """Returns the largest absolute value of h."""
        return max((float(part.abs().max()) for part in self.h.split(TILE["cuda"]) if len(part)), default=0.0)

    def sums(self, size: int, step: float) -> NDArray[np.int64]:
        """Returns, for each of the first `size` centres, the sum of h over its cell in whole steps, and the number of
        items in it: int64 [size, D + 1], the same in any order of rows."""
        found = torch.zeros(size, self.h.shape[1] + 1, dtype=torch.int64, device=self.h.device)
        for rows in torch.arange(len(self), device=self.h.device).split(TILE["cuda"]):
            number = self.nearest[rows].long()
            whole = (self.h[rows].double() / step).round().long()
            found[:, :-1].index_add_(0, number, whole)
            found[:, -1] += torch.bincount(number, minlength=size)
        return found.cpu().numpy()

    def closest(self, size: int) -> Rows:
        """Returns the item that is closest to each of the first `size` centres among those of its cell, the smaller
        key among equals; of an empty cell none. In no order."""
        number = self.nearest.long()
        least = torch.full((size,), torch.inf, dtype=torch.float64, device=self.d2.device)
        least.scatter_reduce_(0, number, self.d2, "amin")
        rows = torch.nonzero(self.d2 <= least[number]).flatten()
        order = np.argsort(self.keys[rows.cpu().numpy()], kind="stable")
        rows = rows[torch.from_numpy(order).to(rows.device)]
        _, first = np.unique(number[rows].cpu().numpy(), return_index=True)
        return self.rows(rows[torch.from_numpy(first).to(rows.device)])

    def free_members(self, number: int, limit: int) -> Rows:
        """Returns the free items whose nearest centre is this one; of more than `limit` those of smallest keys."""
        rows = torch.nonzero((self.nearest == number) & self.free).flatten()
        if len(rows) > limit:
            first = np.argpartition(self.keys[rows.cpu().numpy()], limit)[:limit]
            rows = rows[torch.from_numpy(first).to(rows.device)]
        return self.rows(rows)

    def largest(self) -> Rows:
        """Returns the item of largest norm, the smallest key among equals; none if there is no item."""
        rows = torch.nonzero(self.norm == self.norm.max()).flatten() if len(self) else self.nearest.long()
        first = np.argsort(self.keys[rows.cpu().numpy()], kind="stable")[:1]
        return self.rows(rows[torch.from_numpy(first).to(rows.device)])

    def farthest(self, count: int) -> Rows:
        """Returns the `count` free items that are farthest from all centres, by the smaller key among equals."""
        d2 = torch.where(self.free, self.d2, -1.0)
        if len(d2) > count:
            least = d2.topk(count).values[-1]
            rows = torch.nonzero((d2 >= least) & self.free).flatten()
        else:
            rows = torch.nonzero(self.free).flatten()
        order = np.lexsort((self.keys[rows.cpu().numpy()], -d2[rows].cpu().numpy()))[:count]
        return self.rows(rows[torch.from_numpy(order).to(rows.device)])

    def propose(self, seed: int, block: int, count: int) -> Proposals:
        """Returns this shard's `count` earliest arrivals of a block (fewer only if no item has any mass)."""
        rate = torch.where(self.free, self.d2 if self.weights is None else self.d2 * self.weights, 0.0)
        block_clock = clocks.mix(self._clock, seed, block)
        time = clocks.uniform(clocks.mix(block_clock, 0, 0)).log_().neg_().div_(rate)
        first, rows = time.topk(min(count, len(time)), largest=False)
        rows = rows[first < torch.inf]
        base = hashing.mix(self.keys[rows.cpu().numpy()], seed, block)
        item, when, number = _arrivals(base, time[rows].cpu().numpy(), rate[rows].cpu().numpy(), count)
        accept = hashing.uniform(hashing.mix(base[item], number, 1))
        chosen = self.rows(rows[torch.from_numpy(item).to(rows.device)])
        return Proposals(**vars(chosen), time=when, accept=accept)

    def update(self, q: Tensor, h: Tensor, rows: Sequence[int] = (), numbers: Sequence[int] = ()) -> None:
        """Lowers D2 by new centres. What that gives for a row does not depend on the rows beside it.

        Args:
            q, h: factors of the centres, [k, C] and [k, D].
            rows: rows of this shard that are among the centres.
            numbers: which of the k centres each of them is.
        """
        for part_q, part_h in zip(q.split(_AT_ONCE), h.split(_AT_ONCE), strict=True):
            self._lower(part_q, part_h)
            self.centres += len(part_q)
        own = torch.as_tensor(np.asarray(rows, np.int64), device=self.q.device)
        self.free[own] = False
        self.d2[own] = 0.0
        first = self.centres - len(q)
        self.nearest[own] = torch.as_tensor(np.asarray(numbers, np.int32), device=own.device) + first

    def _lower(self, q: Tensor, h: Tensor) -> None:
        count = len(q)
        if not count or not len(self):
            return
        fill = -count % CENTRES
        # Repeats of the last centre change no minimum.
        q, h = (torch.cat([x, x[-1:].expand(fill, -1)]).to(self.q.device) for x in (q, h))
        tile = TILE[q.device.type]
        centres = Centres(q, h, tile)
        starts = range(0, len(self), tile)
        noisy = [self._update(slice(s, min(s + tile, len(self))), centres, count) for s in starts]
        for found in torch.cat(noisy).split(tile):
            self._improve(found, centres.exact(self.q[found], self.h[found]), count)

    def _update(self, rows: slice, centres: Centres, count: int) -> Tensor:
        """Lowers D2 of one tile; returns the rows [m] whose distances are noise and have to be computed exactly."""
        far = centres.beside(self.q[rows], self.h[rows])
        norm, before = self.norm[rows], self.d2[rows]
        d2 = (norm + far.amin(1)).clamp_(min=0.0)
        noise = d2 < NOISE * norm
        closer = torch.nonzero((d2 < before) & ~noise).flatten()
        # Which centre it is costs more than how far, and fewer and fewer rows need to know.
        self._improve(closer + rows.start, far[closer], count, d2[closer])
        return torch.nonzero(noise & (before > 0)).flatten() + rows.start

    def _improve(self, rows: Tensor, far: Tensor, count: int, d2: Tensor | None = None) -> None:
        """Notes the nearest of some centres where it is nearer than all before.

        Args:
            rows: int64 [m].
            far: squared distances to the centres [m, k], but for what is the same for all of them.
            count: number of centres, which repeats of the last one follow.
            d2: the smallest of these distances, [m]; the smallest of `far` without it.
        """
        if len(rows):
            number = far.argmin(1).clamp_(max=count - 1).int() + self.centres
            d2 = far.amin(1) if d2 is None else d2
            closer = d2 < self.d2[rows]
            self.d2[rows] = torch.where(closer, d2, self.d2[rows])
            self.nearest[rows] = torch.where(closer, number, self.nearest[rows])

    def cells(self, size: int) -> NDArray[np.int64]:
        """Returns how many of this shard's items have each of the first `size` centres as their nearest, [size]."""
        known = self.nearest[self.nearest >= 0].long()
        return torch.bincount(known, minlength=size)[:size].cpu().numpy()

    def objective(self) -> float:
        """Returns the sum of squared distances to the nearest centre."""
        return float(self.d2.sum())

    def earliest_free(self, seed: int, count: int) -> list[tuple[int, int, float]]:
        """Returns (hash, row, squared norm) of up to `count` free items in a random order by hash."""
        rows = torch.nonzero(self.free).flatten().cpu().numpy()
        clock = hashing.mix(self.keys[rows], seed, -1)
        first = np.argsort(clock)[:count]
        norms = self.norm[torch.from_numpy(rows[first]).to(self.norm.device)]
        return list(zip(clock[first].tolist(), rows[first].tolist(), norms.tolist(), strict=True))


def _arrivals(
    base: NDArray[np.uint64], time: NDArray[np.float64], rate: NDArray[np.float64], count: int
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]:
    """Returns (item, time, number of the item's arrival) of the first `count` arrivals, by time.

    Args:
        base: each item's clock in this block, [m].
        time: of each item's first arrival; those of other items lie after the first `count` of them.
        rate: of each item's arrivals.
    """
    item = np.arange(len(base))
    items, times, numbers = [item], [time], [np.zeros(len(item), np.int64)]
    while len(item):
        number = len(times)  # how many arrivals of each item have been drawn
        known = np.concatenate(times)
        last = np.inf if len(known) < count else np.partition(known, count - 1)[count - 1]
        time = time - np.log(hashing.uniform(hashing.mix(base[item], number, 0))) / rate[item]
        item, time = item[time < last], time[time < last]
        items.append(item)
        times.append(time)
        numbers.append(np.full(len(item), number))
    when = np.concatenate(times)
    first = np.argsort(when, kind="stable")[:count]
    return np.concatenate(items)[first], when[first], np.concatenate(numbers)[first]
