"""D-squared seeding (the seeding of k-means++) on factored gradient embeddings.

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

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raybal import hashing
from raybal.errors import RaybalError
from raybal.querying.distances import NOISE, exact_distances, finite_norms
from raybal.querying.factors import FactorShard, Proposals, Rows
from raybal.querying.shards import LocalShards, Pick, Shards, accept, add_centres, merge, rest


def rejection_seeding(
    shards: Shards, size: int, seed: int, *, labelled: tuple[Tensor, Tensor] | None = None, proposals: int = 512
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
        add_centres(shards, labelled)
    elif size > 0:
        picks, _ = first_pick(shards)
    block = 0
    while len(picks) < size:
        answers: list[Proposals] = shards.map("propose", seed, block, proposals)
        block += 1
        if not sum(len(a.row) for a in answers):
            return picks + rest(shards, size - len(picks), seed)
        found, shard = merge(answers, lambda p: np.lexsort((p.key, p.time)), proposals)
        distances = exact_distances(found.q, found.h, found.q, found.h).numpy()
        accepted = walk(found.key, found.d2, found.accept, distances, size - len(picks))
        picks += accept(shards, found, shard, [i for i, _ in accepted], [d2 for _, d2 in accepted])
    return picks


def first_pick(shards: Shards) -> tuple[list[Pick], tuple[Tensor, Tensor] | None]:
    """Makes the item of largest norm a centre; the smallest key among equals. Returns it, and its factors; nothing if
    there is no item."""
    answers: list[Rows] = shards.map("largest")
    if not sum(len(a.row) for a in answers):
        return [], None
    found, shard = merge(answers, lambda r: np.lexsort((r.key, -r.norm)), 1)
    return accept(shards, found, shard, [0], found.norm.tolist()), (found.q, found.h)


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


class _Passes:
    """Squared distances of all items to the nearest of centres that come one by one: one pass over the factors each.

    One piece a thread, stored column by column: matrix-vector products then run at memory bandwidth.
    """

    def __init__(self, q: Tensor, h: Tensor, threads: ThreadPoolExecutor, pieces: int) -> None:
        self.q, self.h = q, h
        self.norm = finite_norms(q, h).numpy()
        self.noise = NOISE * self.norm
        self.d2 = np.full(len(q), np.inf)
        self._threads = threads
        chunks = zip(*(x.chunk(pieces) if len(x) else [x] for x in (q, h)), strict=True)
        self._pieces = [[x.T.contiguous().T for x in chunk] for chunk in chunks]

    def add(self, q: Tensor, h: Tensor, norm: float) -> None:
        """Takes in a centre with factors [C] and [D] and its squared norm."""

        def products(piece: list[Tensor]) -> NDArray[np.float64]:
            return torch.mv(piece[0], q).double().numpy() * torch.mv(piece[1], h).double().numpy()

        product = np.concatenate(list(self._threads.map(products, self._pieces)))
        d2 = np.maximum(self.norm + norm - 2 * product, 0.0)
        noisy = np.flatnonzero((d2 < self.noise) & (self.d2 > 0))
        if len(noisy):
            rows = torch.from_numpy(noisy)
            d2[noisy] = exact_distances(self.q[rows], self.h[rows], q[None], h[None])[:, 0].numpy()
        np.minimum(self.d2, d2, out=self.d2)


def sequential_seeding(
    q: Tensor, h: Tensor, size: int, uniforms: NDArray[np.float64], labelled: tuple[Tensor, Tensor] | None = None
) -> NDArray[np.int64]:
    """Chooses items one by one with given uniforms: the smallest position whose cumulated D2, in row order, reaches
    the uniform's share of the whole. The first pick is the item of largest norm, the first among equals.

    This is the released code's procedure, for comparison with recorded sequences; one pass over all factors a pick.

    Raises:
        RaybalError: a factor is not finite, or there are fewer uniforms than draws.
    """
    # Half precision is for storage: its products would be all noise.
    q, h = (x if x.dtype == torch.float64 else x.float() for x in (q, h))
    size, picks = min(size, len(q)), list[int]()
    count = torch.get_num_threads()
    with ThreadPoolExecutor(count) as threads:
        passes = _Passes(q, h, threads, count)

        def pick(position: int) -> None:
            picks.append(position)
            passes.add(q[position], h[position], float(passes.norm[position]))
            passes.d2[position] = 0.0

        if labelled is not None and len(labelled[0]):
            centres = (labelled[0].to(q.dtype), labelled[1].to(h.dtype))
            for q_centre, h_centre, norm in zip(*centres, finite_norms(*centres).tolist(), strict=True):
                passes.add(q_centre, h_centre, norm)
        elif size:
            pick(int(np.argmax(passes.norm)))
        draws = iter(np.asarray(uniforms, np.float64).tolist())
        while len(picks) < size:
            uniform = next(draws, None)
            if uniform is None:
                raise RaybalError(f"{size} picks need more than the {len(uniforms)} uniforms given")
            cumulated = np.cumsum(passes.d2)
            if cumulated[-1] <= 0:
                free = np.setdiff1d(np.arange(len(q)), picks)
                picks.append(int(free[int(uniform * len(free))]))
                continue
            position = int(np.searchsorted(cumulated, uniform * cumulated[-1], side="left"))
            if position not in picks:
                pick(position)
    return np.array(picks, np.int64)


def d2_seeding(
    q: Tensor,
    h: Tensor,
    size: int,
    *,
    seed: int | None = None,
    uniforms: NDArray[np.float64] | None = None,
    ids: Sequence[str] | None = None,
    labelled: tuple[Tensor, Tensor] | None = None,
    proposals: int = 512,
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
