"""D-squared seeding by rejection beside the sequential factored form, and both beside memory bandwidth."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F

from raybal.querying.distances import exact_distances
from raybal.querying.seeding import d2_seeding

REPETITIONS = 2


def bench_seeding(
    n: int = 100_000, classes: int = 31, size: int = 512, picks: int = 1000
) -> Iterator[tuple[str, float]]:
    """Chooses items from random factors in both ways, by turns; the best time of each counts.

    Yields:
        (what, value): seconds, their ratio, the bandwidth of the sequential form's passes beside that of a copy, and
        the sum of squared distances that each leaves (they agree within noise).
    """
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(n, classes, generator=generator).mul(2).softmax(1)
    q -= F.one_hot(q.argmax(1), classes)
    h = torch.rand(n, size, generator=generator)
    uniforms = np.random.default_rng(0).random(2 * picks)
    d2_seeding(q[:5000], h[:5000], 20, seed=0)
    d2_seeding(q[:5000], h[:5000], 20, uniforms=uniforms)
    rejections, sequentials = [], []
    for _ in range(REPETITIONS):
        rejection, first = _timed(lambda: d2_seeding(q, h, picks, seed=0))
        sequential, second = _timed(lambda: d2_seeding(q, h, picks, uniforms=uniforms))
        rejections.append(rejection)
        sequentials.append(sequential)
    rejection, sequential = min(rejections), min(sequentials)
    pass_bytes = 4 * n * (classes + size)
    copy = copy_bandwidth(pass_bytes)
    found = {
        "sequential s": sequential,
        "rejection s": rejection,
        "times faster": sequential / rejection,
        "sequential GB/s": picks * pass_bytes / sequential / 1e9,
        "copy GB/s (read + written)": copy / 1e9,
        "sequential / copy": picks * pass_bytes / sequential / copy,
        "rejection GFLOP/s": 2 * picks * n * (classes + size) / rejection / 1e9,
        "objective, rejection": _objective(q, h, first),
        "objective, sequential": _objective(q, h, second),
    }
    yield from found.items()


def copy_bandwidth(size: int) -> float:
    """Returns bytes a second, read and written, of the best of several copies of `size` bytes."""
    source = torch.ones(size // 4)
    target = torch.empty_like(source)
    return 2 * size / min(_timed(lambda: target.copy_(source))[0] for _ in range(10))


def _timed(function: Callable[[], object]) -> tuple[float, object]:
    started = time.perf_counter()
    result = function()
    return time.perf_counter() - started, result


def _objective(q: torch.Tensor, h: torch.Tensor, picks: object) -> float:
    rows = torch.as_tensor(picks)
    sample = torch.arange(0, len(q), max(1, len(q) // 2000))
    return float(exact_distances(q[sample], h[sample], q[rows], h[rows]).amin(1).mean())
