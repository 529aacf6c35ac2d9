"""D-squared seeding (the seeding of k-means++) on factored gradient embeddings.

An embedding is an outer product E_i = vec(q_i (x) h_i), so <E_i, E_j> = <q_i, q_j> <h_i, h_j>: only the factors
q [n, C] and h [n, D] are kept, never the product.

Sequential seeding needs one pass over all factors per pick and is bound by memory bandwidth. Rejection draws from
exactly the same distribution in few passes. In a block, m proposals are drawn independently and with replacement
from the weights D2_start that held when the block began; walking through them in order, proposal x becomes a
centre with probability D2_now(x) / D2_start(x), where D2_now counts the centres accepted earlier in the block (only
the proposals' own m x m Gram matrix is needed). Then all items are updated with one matrix product.

Proposals depend neither on sharding nor on the order of rows: every item has Poisson arrivals of rate D2_start whose
clock is a hash of (seed, block, id, arrival), and the first m arrivals over all shards are m independent proposals.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raybal import hashing
from raybal.errors import RaybalError

TILE = 2048
#: Below this share of the norms a float32 distance is cancellation noise and is computed again in float64.
_NOISE = 1e-4
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


@dataclass(frozen=True)
class Pick:
    """One chosen item: which shard and row, its squared distance to what was chosen before, its squared norm."""

    shard: int
    row: int
    d2: float
    norm: float


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
        self.norm = squared_norms(self.q, self.h)
        bad = np.flatnonzero(~np.isfinite(self.norm))
        if len(bad):
            raise RaybalError(f"the gradient factors of {len(bad)} items are not finite, the first in row {bad[0]}")
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
        """Lowers D2 by new centres.

        Args:
            q, h: factors of the centres, [k, C] and [k, D].
            chosen: rows of this shard that are among the centres.
        """
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
            noisy = np.flatnonzero((d2 < _NOISE * self.norm[rows]) & (self.d2[rows] > 0))
            if len(noisy):
                index = torch.from_numpy(noisy + start)
                d2[noisy] = exact_distances(self.q[index], self.h[index], q, h).min(1)
            self.d2[rows] = np.minimum(self.d2[rows], d2)
        rows_chosen = np.asarray(chosen, np.int64)
        self.free[rows_chosen] = False
        self.d2[rows_chosen] = 0.0

    def earliest_free(self, seed: int, count: int) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """Returns (hash, row) of up to `count` free items in a random order by hash."""
        rows = np.flatnonzero(self.free)
        clock = hashing.mix(self.keys[rows], seed, -1)
        first = np.argsort(clock)[:count]
        return clock[first], rows[first]


def squared_norms(q: Tensor, h: Tensor) -> NDArray[np.float64]:
    """Returns the squared norms of the embeddings, ||q_i||^2 ||h_i||^2, summed in float64."""

    def sums(x: Tensor) -> Tensor:
        return (
            torch.cat([part.double().square().sum(1) for part in x.split(TILE)]) if len(x) else x.new_zeros(0).double()
        )

    return (sums(q) * sums(h)).numpy()


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


class Shards(Protocol):
    """Several `FactorShard`s, here or in other processes."""

    def map(self, method: str, *args: Any, each: Sequence[tuple[Any, ...]] | None = None) -> list[Any]:
        """Calls a method of every shard and returns the results in the order of the shards; `each` holds further
        arguments for each one."""
        ...


class LocalShards:
    """Shards in this process."""

    def __init__(self, shards: Sequence[FactorShard]) -> None:
        self.shards = shards

    def map(self, method: str, *args: Any, each: Sequence[tuple[Any, ...]] | None = None) -> list[Any]:
        own = each or [()] * len(self.shards)
        return [getattr(shard, method)(*args, *more) for shard, more in zip(self.shards, own, strict=True)]


def rejection_seeding(
    shards: Shards, size: int, seed: int, *, labelled: tuple[Tensor, Tensor] | None = None, proposals: int = 256
) -> list[Pick]:
    """Chooses `size` items by D-squared seeding over shards, with one exchange a block.

    Args:
        shards: of all candidates.
        size: number of items; all there are if there are fewer.
        seed: of the draws.
        labelled: factors of centres that are there already. Without them the first pick is the item of largest norm.
        proposals: drawn a block.

    Returns:
        The picks in order of choice, which do not depend on how items lie in shards.
    """
    picks: list[Pick] = []
    if labelled is not None and len(labelled[0]):
        shards.map("update", *labelled)
    elif size > 0:
        picks = _first(shards)
    block = 0
    while len(picks) < size:
        answers: list[Proposals] = shards.map("propose", seed, block, proposals)
        block += 1
        if not sum(len(a.time) for a in answers):
            return picks + _rest(shards, size - len(picks), seed)
        picks += _block(shards, answers, proposals, size - len(picks))
    return picks


def _first(shards: Shards) -> list[Pick]:
    """Makes the item of largest norm a centre; the smallest key among equals."""
    answers = shards.map("largest")
    shard = max(range(len(answers)), key=lambda s: (answers[s][0], -answers[s][1]))
    norm, _, row, q, h = answers[shard]
    if row < 0:
        return []
    pick = Pick(shard, row, norm, norm)
    _accept(shards, [pick], q, h, len(answers))
    return [pick]


def _block(shards: Shards, answers: list[Proposals], proposals: int, wanted: int) -> list[Pick]:
    """Walks through the first proposals of all shards and makes those accepted centres."""
    key = np.concatenate([a.key for a in answers])
    first = np.lexsort((key, np.concatenate([a.time for a in answers])))[:proposals]

    def merged(name: str) -> NDArray[Any]:
        return np.concatenate([getattr(a, name) for a in answers])[first]

    index = torch.from_numpy(first)
    q, h = torch.cat([a.q for a in answers])[index], torch.cat([a.h for a in answers])[index]
    accepted = walk(key[first], merged("d2"), merged("accept"), exact_distances(q, h, q, h), wanted)
    origin = np.concatenate([np.full(len(a.time), s) for s, a in enumerate(answers)])[first]
    rows, norms = merged("row"), squared_norms(q, h)
    picks = [Pick(int(origin[i]), int(rows[i]), d2, float(norms[i])) for i, d2 in accepted]
    chosen = torch.tensor([i for i, _ in accepted], dtype=torch.int64)
    _accept(shards, picks, q[chosen], h[chosen], len(answers))
    return picks


def walk(
    keys: NDArray[np.uint64],
    d2_start: NDArray[np.float64],
    accept: NDArray[np.float64],
    distances: NDArray[np.float64],
    wanted: int,
) -> list[tuple[int, float]]:
    """Accepts proposals in order with probability D2_now / D2_start.

    Args:
        keys: whose proposal each one is; a repeat of an accepted item is rejected by its key, not by its distance.
        d2_start: [m], D2 when the block began.
        accept: [m], uniform numbers.
        distances: [m, m], squared distances of the proposals to one another.
        wanted: stop after this many.

    Returns:
        (proposal, D2_now) of those accepted.
    """
    accepted: list[tuple[int, float]] = []
    taken: set[int] = set()
    d2_now = d2_start.copy()
    for i, key in enumerate(keys.tolist()):
        if key in taken or accept[i] * d2_start[i] >= d2_now[i]:
            continue
        accepted.append((i, float(d2_now[i])))
        taken.add(key)
        if len(accepted) == wanted:
            break
        np.minimum(d2_now, distances[i], out=d2_now)
    return accepted


def _accept(shards: Shards, picks: list[Pick], q: Tensor, h: Tensor, count: int) -> None:
    rows = [([p.row for p in picks if p.shard == s],) for s in range(count)]
    shards.map("update", q, h, each=rows)


def _rest(shards: Shards, wanted: int, seed: int) -> list[Pick]:
    """Goes on uniformly, by hash, when every embedding left equals a centre."""
    answers = shards.map("earliest_free", seed, wanted)
    found = [
        (int(c), s, int(row)) for s, (clock, rows) in enumerate(answers) for c, row in zip(clock, rows, strict=True)
    ]
    return [Pick(shard, row, 0.0, 0.0) for _, shard, row in sorted(found)[:wanted]]


def sequential_seeding(
    q: Tensor, h: Tensor, size: int, uniforms: NDArray[np.float64], labelled: tuple[Tensor, Tensor] | None = None
) -> NDArray[np.int64]:
    """Chooses items one by one with given uniforms: the smallest position whose cumulated D2, in row order, reaches
    the uniform's share of the whole. The first pick is the item of largest norm, the first among equals.

    This is the released code's procedure, for comparison with recorded sequences; one pass over all factors a pick.

    Raises:
        RaybalError: there are fewer uniforms than draws.
    """
    size = min(size, len(q))
    norm = squared_norms(q, h)
    # One piece a thread, stored column by column: matrix-vector products then run at memory bandwidth.
    pieces = [[x.T.contiguous().T for x in (q_part, h_part)] for q_part, h_part in zip(*_chunks(q, h), strict=True)]
    d2 = np.full(len(q), np.inf)
    picks: list[int] = []

    def products(piece: list[Tensor], q_centre: Tensor, h_centre: Tensor) -> NDArray[np.float64]:
        return torch.mv(piece[0], q_centre).double().numpy() * torch.mv(piece[1], h_centre).double().numpy()

    def add(q_centre: Tensor, h_centre: Tensor, centre_norm: float) -> None:
        product = np.concatenate(list(threads.map(lambda piece: products(piece, q_centre, h_centre), pieces)))
        np.minimum(d2, np.maximum(norm + centre_norm - 2 * product, 0.0), out=d2)
        d2[picks] = 0.0

    threads = ThreadPoolExecutor(len(pieces))
    if labelled is not None and len(labelled[0]):
        for q_centre, h_centre, value in zip(*labelled, squared_norms(*labelled).tolist(), strict=True):
            add(q_centre, h_centre, value)
    elif size:
        picks.append(int(np.argmax(norm)))
        add(q[picks[0]], h[picks[0]], float(norm[picks[0]]))
    draws = iter(np.asarray(uniforms, np.float64).tolist())
    while len(picks) < size:
        uniform = next(draws, None)
        if uniform is None:
            raise RaybalError(f"{size} picks need more than the {len(uniforms)} uniforms given")
        cumulated = np.cumsum(d2)
        if cumulated[-1] <= 0:
            free = np.setdiff1d(np.arange(len(q)), picks)
            picks.append(int(free[int(uniform * len(free))]))
            continue
        position = int(np.searchsorted(cumulated, uniform * cumulated[-1], side="left"))
        if position in picks:
            continue
        picks.append(position)
        add(q[position], h[position], float(norm[position]))
    return np.array(picks, np.int64)


def _chunks(*tensors: Tensor) -> list[Sequence[Tensor]]:
    return [x.chunk(torch.get_num_threads()) if len(x) else [x] for x in tensors]


def d2_seeding(
    q: Tensor,
    h: Tensor,
    size: int,
    *,
    seed: int | None = None,
    uniforms: NDArray[np.float64] | None = None,
    ids: Sequence[str] | None = None,
    labelled: tuple[Tensor, Tensor] | None = None,
    proposals: int = 256,
) -> NDArray[np.int64]:
    """Chooses items by D-squared seeding on the embeddings vec(q_i (x) h_i).

    Args:
        q: [n, C] residuals.
        h: [n, D] embeddings.
        size: number of items to choose; all if there are fewer.
        seed: of the draws (rejection mode). Give this or `uniforms`.
        uniforms: numbers in [0, 1) for the draws after the first pick (sequential mode, inverse CDF in row order).
        ids: names of the items, which the draws are keyed by; row numbers without them.
        labelled: factors (q, h) of items that are centres from the start. Without them the first pick is the item
            of largest norm.
        proposals: drawn a block (rejection mode).

    Returns:
        Positions [size] in order of choice.

    Raises:
        RaybalError: both or neither of seed and uniforms, or factors that are not finite.
    """
    if (seed is None) == (uniforms is None):
        raise RaybalError("d2_seeding takes either a seed or uniforms")
    if uniforms is not None:
        return sequential_seeding(q, h, size, uniforms, labelled)
    assert seed is not None
    keys = hashing.mix(np.arange(len(q), dtype=np.uint64), 0) if ids is None else hashing.hash_ids(ids)
    shards = LocalShards([FactorShard(q, h, keys)])
    picks = rejection_seeding(shards, min(size, len(q)), seed, labelled=labelled, proposals=proposals)
    return np.array([p.row for p in picks], np.int64)
