"""ProbCover: the items whose neighbourhoods cover most of what no label covers yet.

Yehuda, Dekel, Hacohen and Weinshall, "Active Learning Through a Covering Lens", NeurIPS 2022.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raybal.analysis.clustering import k_means
from raybal.querying.base import EMBEDDING, Candidates, Query, Request, by_hash
from raybal.querying.embedding import EmbeddingSettings, EmbeddingStrategy
from raybal.settings import setting

#: Items on which the radius is estimated.
SAMPLE = 2000
BLOCK = 1024


@dataclass(frozen=True)
class ProbCoverSettings(EmbeddingSettings):
    """Settings of ProbCover."""

    radius: float | None = setting(
        None, gt=0, help="radius of a neighbourhood; none: the largest whose balls are pure by `purity`"
    )
    purity: float = setting(0.95, gt=0, lt=1, help="share of balls that must hold one class, by clusters for classes")
    limit: int = setting(20_000, ge=1, help="candidates that are looked at; of more, chosen by hash")


class ProbCover(EmbeddingStrategy):
    """Chooses greedily the item with the most uncovered items within the radius; labelled items cover theirs from the
    start. When all is covered, the rest follows at random.

    The radius is found on a sample, as in the paper: by k-means with as many clusters as classes, the largest such
    that 95 % of the balls hold one cluster only.
    """

    name = "probcover"
    Settings = ProbCoverSettings
    settings: ProbCoverSettings
    cold = True

    def select(self, candidates: Candidates, request: Request) -> Query:
        ids = by_hash(candidates, max(self.settings.limit, request.size), request.seed)
        if not ids:
            return Query([], [], [])
        _, z = self.embeddings(candidates, ids)
        radius = self.settings.radius or pure_radius(z[:SAMPLE], request.classes, self.settings.purity, request.seed)
        graph = _Graph(z, radius)
        if (known := request.known()) is not None:
            graph.cover_by(torch.from_numpy(known.columns[EMBEDDING]).float())
        chosen, covered = graph.greedy(request.size)
        taken = set(chosen)
        more = [row for row in range(len(ids)) if row not in taken][: request.size - len(chosen)]
        return Query(
            ids=[ids[row] for row in chosen + more],
            score=[float(count) for count in covered] + [0.0] * len(more),
            reason=[f"covers {count} items that nothing covered" for count in covered]
            + ["all is covered; at random"] * len(more),
            parts=[{"radius": radius}] * (len(chosen) + len(more)),
        )


def pure_radius(z: Tensor, classes: int, purity: float, seed: int) -> float:
    """Returns the largest radius at which this share of the items' balls holds one of `classes` clusters only. Beside
    items that a sample leaves out, balls are less pure than that.

    Args:
        z: a sample of embeddings [n, D].
    """
    few = len(z) <= classes
    labels = torch.arange(len(z)) if few else k_means(z, classes, restarts=3, seed=seed % 2**31).assignment
    distances = torch.cdist(z, z)
    other = distances.masked_fill(labels[:, None] == labels, torch.inf).amin(1)
    # A ball that holds everything is pure where there is one cluster only.
    impure = int(len(z) * (1 - purity) + 1e-9)
    found = other.sort().values[impure] if bool(torch.isfinite(other).all()) else 2 * distances.max()
    return max(float(found), 1e-6)


class _Graph:
    """Which items lie within the radius of which, in bits.

    Attributes:
        uncovered: bool [n].
    """

    def __init__(self, z: Tensor, radius: float) -> None:
        self.z, self.radius = z, radius
        self.near = np.concatenate([self._near(part) for part in z.split(BLOCK)])
        self.uncovered = np.ones(len(z), bool)

    def _near(self, rows: Tensor) -> NDArray[np.uint8]:
        # In float32 an item would be a thousandth of its norm away from itself.
        return np.packbits((torch.cdist(rows.double(), self.z.double()) < self.radius).numpy(), axis=1)

    def cover_by(self, centres: Tensor) -> None:
        """Covers what lies within the radius of these embeddings."""
        for part in centres.split(BLOCK):
            covered = np.bitwise_or.reduce(self._near(part), axis=0)
            self.uncovered &= ~np.unpackbits(covered, count=len(self.z)).astype(bool)

    def greedy(self, size: int) -> tuple[list[int], list[int]]:
        """Returns (items, the number that each covers when it is chosen), until all is covered; of equals the
        first."""
        degrees = self._count(np.packbits(self.uncovered))
        chosen, counts = list[int](), list[int]()
        while len(chosen) < size and degrees.max() > 0:
            item = int(degrees.argmax())
            chosen.append(item)
            counts.append(int(degrees[item]))
            newly = self.near[item] & np.packbits(self.uncovered)
            degrees -= self._count(newly)
            self.uncovered &= ~np.unpackbits(newly, count=len(self.z)).astype(bool)
        return chosen, counts

    def _count(self, bits: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Returns, for each item, how many of the marked ones lie within the radius."""
        parts = range(0, len(self.near), BLOCK)
        return np.concatenate([np.bitwise_count(self.near[i : i + BLOCK] & bits).sum(1, dtype=np.int64) for i in parts])
