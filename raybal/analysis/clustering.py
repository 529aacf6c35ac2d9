"""K-means over rows that lie on several workers, without gathering them.

Each worker holds a contiguous part of the rows; what travels is sums and counts. The same rows give the same clusters
for any number of workers, up to the order in which floating-point sums are added.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from raybal.workers import Workers

ITERATIONS = 300
TOLERANCE = 1e-4
#: Largest distance matrix held at once, in entries.
BLOCK = 1 << 24


@dataclass(frozen=True)
class Clusters:
    """The result of k-means.

    Attributes:
        assignment: cluster of each of this worker's rows, int64 [n].
        centres: [k, d].
        inertia: sum of squared distances of all workers' rows to their centres.
    """

    assignment: Tensor
    centres: Tensor
    inertia: float


def scale_columns(rows: Tensor, workers: Workers | None = None) -> Tensor:
    """Scales each column to [-1, 1] by its minimum and maximum over all workers; a constant column becomes -1.

    Args:
        rows: this worker's part, [n, d].

    Returns:
        [n, d].
    """
    workers = workers or Workers()
    largest = torch.finfo(rows.dtype).max
    low = rows.amin(0) if len(rows) else torch.full_like(rows.new_zeros(rows.shape[1]), largest)
    high = rows.amax(0) if len(rows) else torch.full_like(low, -largest)
    low, high = workers.gather(low).amin(0), workers.gather(high).amax(0)
    span = torch.where(high > low, high - low, 1.0)
    return 2 * (rows - low) / span - 1


def k_means(rows: Tensor, k: int, *, restarts: int, seed: int, workers: Workers | None = None) -> Clusters:
    """Clusters rows by Euclidean distance: greedy k-means++ and Lloyd's iterations, the best of several starts.

    Iterations end when no row changes its cluster, when the centres move by less than 1e-4 of the mean column
    variance (in squares, summed), or after 300: scikit-learn's defaults. A cluster that becomes empty takes the row
    that is farthest from its centre.

    Args:
        rows: this worker's part, [n, d]; all workers' rows in the order of the workers.
        k: number of clusters.
        restarts: number of starts; the least inertia wins.
        seed: of the starts.

    Raises:
        ValueError: fewer rows than clusters.
        ArithmeticError: a value that is not finite.
    """
    workers = workers or Workers()
    rows = rows.detach()
    moments = torch.stack([rows.double().sum(0), rows.double().square().sum(0)])
    count = torch.tensor([len(rows), (~torch.isfinite(rows)).sum()], dtype=torch.float64, device=rows.device)
    moments, (total, broken) = workers.sum(moments), workers.sum(count).tolist()
    if broken:
        raise ArithmeticError(f"{int(broken)} values are not finite")
    if total < k:
        raise ValueError(f"{int(total)} rows cannot make {k} clusters")
    variance = (moments[1] / total - (moments[0] / total) ** 2).clamp(min=0).mean()
    best: Clusters | None = None
    for start in range(restarts):
        generator = torch.Generator().manual_seed(seed + start)
        found = _lloyd(rows, _plus_plus(rows, k, generator, workers), float(TOLERANCE * variance), workers)
        if best is None or found.inertia < best.inertia:
            best = found
    assert best is not None
    return best


def _plus_plus(rows: Tensor, k: int, generator: torch.Generator, workers: Workers) -> Tensor:
    """Greedy k-means++ (Arthur and Vassilvitskii, 2007): of 2 + ln k draws each centre is the one that helps most."""
    draws = 2 + int(math.log(k))
    sizes = workers.gather(torch.tensor(float(len(rows)), dtype=torch.float64, device=rows.device))
    first = _pick(rows, torch.ones(len(rows), dtype=torch.float64, device=rows.device), sizes, generator, 1, workers)
    centres = [first[0]]
    nearest = _distances(rows, first)[:, 0].double()
    for _ in range(k - 1):
        masses = workers.gather(nearest.sum())
        candidates = _pick(rows, nearest, masses, generator, draws, workers)
        closer = torch.minimum(nearest[:, None], _distances(rows, candidates).double())
        best = int(workers.sum(closer.sum(0)).argmin())
        centres.append(candidates[best])
        nearest = closer[:, best]
    return torch.stack(centres)


def _pick(
    rows: Tensor, weights: Tensor, masses: Tensor, generator: torch.Generator, count: int, workers: Workers
) -> Tensor:
    """Draws rows in proportion to weights over all workers, [count, d]; every worker gets the same."""
    uniforms = torch.rand(count, generator=generator, dtype=torch.float64).to(rows.device)
    ends = masses.cumsum(0)
    targets = uniforms * ends[-1]
    owner = torch.searchsorted(ends, targets, right=True).clamp(max=workers.world - 1)
    picked = torch.zeros(count, rows.shape[1], dtype=rows.dtype, device=rows.device)
    mine = owner == workers.rank
    if len(rows) and bool(mine.any()):
        inside = targets[mine] - (ends[workers.rank] - masses[workers.rank])
        at = torch.searchsorted(weights.cumsum(0), inside, right=True).clamp(max=len(rows) - 1)
        picked[mine] = rows[at]
    return workers.sum(picked)


def _lloyd(rows: Tensor, centres: Tensor, tolerance: float, workers: Workers) -> Clusters:
    k = len(centres)
    before: Tensor | None = None
    for _ in range(ITERATIONS):
        assignment, nearest = _assign(rows, centres)
        sums = torch.zeros(k, rows.shape[1] + 1, dtype=torch.float64, device=rows.device)
        sums[:, :-1].index_add_(0, assignment, rows.double())
        sums[:, -1] = torch.bincount(assignment, minlength=k).double()
        changed = torch.ones((), dtype=torch.float64) if before is None else (assignment != before).any().double()
        flat = workers.sum(torch.cat([sums.flatten(), changed.to(rows.device)[None]]))
        sums, changed = flat[:-1].view(k, -1), flat[-1]
        if not changed:
            break
        before = assignment
        if bool((sums[:, -1] == 0).any()):
            _refill(rows, assignment, nearest, sums, workers)
        means = (sums[:, :-1] / sums[:, -1:].clamp(min=1)).to(rows.dtype)
        moved = torch.where(sums[:, -1:] > 0, means, centres)
        shift = float((moved - centres).double().square().sum())
        centres = moved
        if shift <= tolerance:
            break
    assignment, nearest = _assign(rows, centres)
    return Clusters(assignment, centres, float(workers.sum(nearest.double().sum())))


def _refill(rows: Tensor, assignment: Tensor, nearest: Tensor, sums: Tensor, workers: Workers) -> None:
    """Gives every empty cluster the row farthest from its centre, which leaves its own; changes `sums`."""
    empty = torch.nonzero(sums[:, -1] == 0).flatten().tolist()
    mine = torch.full((len(empty), rows.shape[1] + 2), -1.0, dtype=torch.float64, device=rows.device)
    order = nearest.argsort(descending=True, stable=True)[: len(empty)]
    found = torch.cat([nearest[order, None].double(), assignment[order, None].double(), rows[order].double()], 1)
    mine[: len(order)] = found
    everyone = workers.gather(mine).flatten(0, 1)
    farthest = everyone[:, 0].argsort(descending=True, stable=True)[: len(empty)]
    for cluster, row in zip(empty, everyone[farthest], strict=True):
        old = int(row[1])
        moved = torch.cat([row[2:], row.new_ones(1)])
        sums[old] -= moved
        sums[cluster] += moved


def _assign(rows: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """Returns (nearest centre of each row, squared distance to it)."""
    block = max(BLOCK // len(centres), 1)
    found = [_distances(part, centres).min(1) for part in rows.split(block)] if len(rows) else []
    if not found:
        return torch.zeros(0, dtype=torch.int64, device=rows.device), rows.new_zeros(0)
    return torch.cat([f.indices for f in found]), torch.cat([f.values for f in found])


def _distances(rows: Tensor, centres: Tensor) -> Tensor:
    """Returns squared distances [n, k]."""
    products = rows @ centres.T
    squares = rows.square().sum(1, keepdim=True) + centres.square().sum(1)
    return (squares - 2 * products).clamp(min=0)
