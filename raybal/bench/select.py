"""Selecting from large pools: how long, how much memory, and how far from what the machine can do."""

from __future__ import annotations

import multiprocessing
import resource
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from raybal import hashing
from raybal.bench.seeding import copy_bandwidth
from raybal.data.room import room
from raybal.querying.approximate import oversampled_seeding, partitioned_seeding
from raybal.querying.distances import TILE
from raybal.querying.factors import FactorShard
from raybal.querying.seeding import rejection_seeding, sequential_seeding
from raybal.querying.shards import LocalShards

CLASSES, SIZE, PICKS = 31, 512, 1000
#: From this many items on, factors are kept in half precision.
HALF = 1_000_000
#: Items of the pool on which passes of the sequential form are timed; those of a larger pool take as much longer.
TIMED = 1_000_000
#: Passes that are timed where all of them would take too long.
PASSES = 100


def bench_select(sizes: Sequence[int], cores: int) -> Iterator[tuple[str, float]]:
    """Chooses a thousand items from random factors (31 classes, 512 dimensions), each pool size in its own process.

    Yields:
        (what, value): seconds of the selection, its peak memory, the bytes and operations a second of its passes
        beside those of a copy and of a matrix product of the same shape, and how many times faster it is than the
        sequential factored form (of which some passes are timed, where all would take minutes).
    """
    for n in sizes:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            found = process.submit(_measure, n, cores).result()
        yield from ((f"{n:,} items: {what}", value) for what, value in found.items())


def bench_approximations(n: int, cores: int) -> Iterator[tuple[str, float]]:
    """Yields seconds and objective of the exact seeding and of its approximations."""
    torch.set_num_threads(cores)
    q, h = make_factors(n)
    keys = hashing.mix(np.arange(n, dtype=np.uint64), 0)
    ways: dict[str, Any] = {
        "exact": rejection_seeding,
        "oversampled": oversampled_seeding,
        "partitioned": partitioned_seeding,
    }
    for name, seeding in ways.items():
        shard = FactorShard(q, h, keys)
        started = time.perf_counter()
        picks = seeding(LocalShards([shard]), PICKS, 0)
        yield f"{n:,} items, {name}: s", time.perf_counter() - started
        rows = torch.tensor([p.row for p in picks])
        shard.assign(q[rows], h[rows])
        yield f"{n:,} items, {name}: objective", shard.objective() / n


def bench_gpu(
    n: int = 1_000_000, classes: int = 309, size: int = 1024, device: str = "cuda"
) -> Iterator[tuple[str, float]]:
    """Yields seconds and peak memory of choosing a thousand items on a GPU; nothing where there is none."""
    if device == "cuda" and not torch.cuda.is_available():
        return
    keys = hashing.mix(np.arange(n, dtype=np.uint64), 0)
    generator = torch.Generator(device).manual_seed(0)
    q = torch.randn(n, classes, generator=generator, device=device, dtype=torch.float16).mul_(2).softmax(1)
    q -= F.one_hot(q.argmax(1), classes)
    h = torch.rand(n, size, generator=generator, device=device, dtype=torch.float16)
    rejection_seeding(LocalShards([FactorShard(q[:10_000], h[:10_000], keys[:10_000])]), PICKS, 0)
    _ = q.sum().item(), h.sum().item()  # all work so far has ended
    started = time.perf_counter()
    picks = rejection_seeding(LocalShards([FactorShard(q, h, keys)]), PICKS, 0)
    # Picks are numbers in main memory: the GPU has finished.
    yield f"{n:,} items, {classes} classes, {size} dimensions: s for {len(picks)}", time.perf_counter() - started
    if device == "cuda":
        yield "peak GB", torch.cuda.max_memory_allocated() / 1e9


def make_factors(n: int) -> tuple[Tensor, Tensor]:
    """Returns factors (q [n, C], h [n, D]) of random items, in half precision if there are many."""
    kind = np.dtype(np.float16 if n >= HALF else np.float32)
    q, h = (torch.from_numpy(room((n, size), kind)) for size in (CLASSES, SIZE))
    generator = torch.Generator().manual_seed(0)
    for start in range(0, n, 1 << 16):
        rows = slice(start, min(start + (1 << 16), n))
        count = rows.stop - rows.start
        p = torch.randn(count, CLASSES, generator=generator).mul(2).softmax(1)
        q[rows] = (p - F.one_hot(p.argmax(1), CLASSES)).to(q.dtype)
        h[rows] = torch.rand(count, SIZE, generator=generator).to(h.dtype)
    return q, h


def _measure(n: int, cores: int) -> dict[str, float]:
    torch.set_num_threads(cores)
    q, h = make_factors(n)
    started = time.perf_counter()
    shard = FactorShard(q, h, hashing.mix(np.arange(n, dtype=np.uint64), 0))
    updates: list[int] = []
    update = shard.update

    def counted(q: Tensor, h: Tensor, *rest: Any) -> None:
        updates.append(len(q))
        update(q, h, *rest)

    shard.update = counted  # type: ignore[method-assign, assignment]
    rejection_seeding(LocalShards([shard]), PICKS, 0)
    seconds = time.perf_counter() - started
    peak, shared = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, _file_bytes()
    bytes_read = len(updates) * (q.nbytes + h.nbytes)
    operations = 2 * n * (CLASSES + SIZE) * sum(updates)
    sequential = _sequential_seconds(n, q, h)
    copy = copy_bandwidth(min(4 * n * SIZE, 1 << 30))
    product = _product_rate(max(1, round(sum(updates) / len(updates))))
    return {
        "s": seconds,
        "peak GB (factors in a mapped file included)": peak / 1e9,
        "of it factors GB": (q.nbytes + h.nbytes) / 1e9,
        "of it in mapped files GB": shared / 1e9,
        "passes": len(updates),
        "GB/s of passes": bytes_read / seconds / 1e9,
        "GB/s of a copy (read + written)": copy / 1e9,
        "GFLOP/s": operations / seconds / 1e9,
        "GFLOP/s of a product alone": product / 1e9,
        "sequential s": sequential,
        "sequential / copy, GB/s": PICKS * 4 * n * (CLASSES + SIZE) / sequential / copy,
        "times faster": sequential / seconds,
    }


def _file_bytes() -> int:
    """Returns the bytes of mapped files that this process holds."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("RssFile"))


def _sequential_seconds(n: int, q: Tensor, h: Tensor) -> float:
    """Returns the seconds of the sequential factored form in float32; extrapolated from some passes for many items."""
    uniforms = np.random.default_rng(0).random(2 * PICKS)
    some = min(n, TIMED)
    q, h = q[:some].float(), h[:some].float()
    sequential_seeding(q[:2000], h[:2000], 20, uniforms)
    if n <= 100_000:
        return _seconds(lambda: sequential_seeding(q, h, PICKS, uniforms))
    few = _seconds(lambda: sequential_seeding(q, h, 2, uniforms))
    many = _seconds(lambda: sequential_seeding(q, h, 2 + PASSES, uniforms))
    return (many - few) / PASSES * PICKS * n / some


def _product_rate(centres: int) -> float:
    """Returns operations a second of the product of a tile with so many centres, which the caches hold."""
    tile, other = torch.rand(TILE["cpu"], SIZE), torch.rand(SIZE, -(-centres // 16) * 16)
    out = tile @ other
    repeats = 200
    best = min(_seconds(lambda: [torch.mm(tile, other, out=out) for _ in range(repeats)]) for _ in range(5))
    return repeats * 2 * tile.numel() * other.shape[1] / best


def _seconds(work: Any) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def bench_dense(n: int = 20_000, picks: int = 200) -> Iterator[tuple[str, float]]:
    """Yields CPU seconds of the factored seeding and of the dense form that the released BMMAL computes, on one thread,
    and their ratio.

    The dense form holds all gradient embeddings [n, C D] in float32 and, for every pick, takes the distance of every
    item to the newest centre (with 1e-6 added to each coordinate of the difference, in slices of 128 rows), lowers the
    smallest distances, and draws by the inverse of their cumulated squares.
    """
    torch.set_num_threads(1)
    q, h = make_factors(n)
    keys = hashing.mix(np.arange(n, dtype=np.uint64), 0)
    started = time.process_time()
    rejection_seeding(LocalShards([FactorShard(q, h, keys)]), picks, 0)
    ours = time.process_time() - started
    started = time.process_time()
    dense_seeding(torch.einsum("nc,nd->ncd", q, h).flatten(1), picks, np.random.default_rng(0))
    dense = time.process_time() - started
    yield f"{n:,} items, {picks} picks: factored CPU s", ours
    yield f"{n:,} items, {picks} picks: dense CPU s", dense
    yield "dense / factored", dense / ours


def dense_seeding(embeddings: Tensor, size: int, generator: np.random.Generator) -> list[int]:
    """Chooses items by D-squared seeding on embeddings [n, CD], as released."""
    picks = [int(embeddings.norm(dim=1).argmax())]
    nearest = torch.full((len(embeddings),), torch.inf)
    while len(picks) < size:
        centre = embeddings[picks[-1]]
        distances = [F.pairwise_distance(part, centre) for part in embeddings.split(128)]
        nearest = torch.minimum(nearest, torch.cat(distances))
        share = (nearest / nearest.norm()).square()
        cumulated = np.cumsum(share.double().numpy())
        pick = picks[0]
        while pick in picks:
            pick = int(np.searchsorted(cumulated, generator.random() * cumulated[-1]))
        picks.append(pick)
    return picks
