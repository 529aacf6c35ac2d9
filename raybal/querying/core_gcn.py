"""CoreGCN: a core-set in the space of a graph network that tells labelled items from others.

Caramalau, Bhattarai and Kim, "Sequential Graph Convolutional Network for Active Learning", CVPR 2021.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raybal import hashing
from raybal.errors import RaybalError
from raybal.querying.base import EMBEDDING, Candidates, Holder, Query, Request, by_hash, finite, joined
from raybal.querying.embedding import EmbeddingSettings, EmbeddingStrategy
from raybal.querying.factors import FactorShard
from raybal.querying.kcentre import k_centre
from raybal.querying.shards import LocalShards
from raybal.settings import setting

LEARNING_RATE, WEIGHT_DECAY, DROPOUT = 1e-3, 5e-4, 0.3
HIDDEN = 128
#: Weight of the candidates in the loss.
CANDIDATES = 1.2


@dataclass(frozen=True)
class CoreGCNSettings(EmbeddingSettings):
    """Settings of CoreGCN."""

    chunk: int = setting(20_000, ge=2, help="candidates of one graph, about; more make several, by hash")
    steps: int = setting(200, ge=1, help="training steps of a graph network")


class CoreGCN(EmbeddingStrategy):
    """Trains a graph network to tell labelled items from candidates and chooses by the k-centre greedy in its space.

    The graph joins all items by the products of their embeddings, of length 1. Its matrix is never formed: a product
    with it is two with the embeddings. Unlike the authors' code, every graph has all labelled items, each chooses its
    share of the query in its own space (the spaces of different networks cannot be compared), and embeddings are those
    of scoring, without augmentation, each modality's scaled to length 1 before they are joined (`unit`). Biases begin
    at 0. Without labelled items the first query is random.
    """

    name = "core_gcn"
    Settings = CoreGCNSettings
    settings: CoreGCNSettings

    def select(self, candidates: Candidates, request: Request) -> Query:
        known = request.known()
        if known is None:
            chosen = by_hash(candidates, request.size, request.seed)
            return Query(chosen, [0.0] * len(chosen), ["nothing is labelled: at random"] * len(chosen))
        query = Query([], [], [])
        total = sum(candidates.map(_count))
        parts, size, seen = -(-total // self.settings.chunk), min(request.size, total), 0
        for number in range(parts):
            part = joined(*candidates.map(_part, request.seed, parts, number))
            if part is None:
                continue
            part = part[np.argsort(part.keys, kind="stable")]
            # Shares that add up to the whole.
            wanted = size * (seen + len(part.ids)) // total - size * seen // total
            seen += len(part.ids)
            self._choose(query, part, known, wanted, request.seed)
        return query

    def _choose(self, query: Query, part: Holder, labelled: Holder, wanted: int, seed: int) -> None:
        z = torch.from_numpy(finite(part, EMBEDDING)).float()
        x = F.normalize(torch.cat([torch.from_numpy(finite(labelled, EMBEDDING)).float(), z]), dim=1)
        count = len(labelled.ids)
        known = torch.arange(len(x)) < count
        hidden, logits = train(x, known, seed, self.settings.steps)
        space = torch.cat([hidden, logits[:, None]], 1)
        if not torch.isfinite(space).all():
            raise RaybalError("the graph network of core_gcn has diverged")
        ones = torch.ones(len(space), 1)
        shard = FactorShard(ones[count:], space[count:], part.keys)
        picks = k_centre(LocalShards([shard]), wanted, seed, labelled=(ones[:count], space[:count]))
        query.ids += [part.ids[p.row] for p in picks]
        query.score += [p.d2**0.5 for p in picks]
        query.reason += [f"{p.d2**0.5:.2f} away from what is labelled or chosen, in the graph's space" for p in picks]
        query.parts += [{"labelled_likeness": float(logits[count + p.row].sigmoid())} for p in picks]


def _count(holder: Holder) -> int:
    return len(holder.ids)


def _part(holder: Holder, seed: int, parts: int, number: int) -> Holder:
    """Returns the embeddings of the items that hashing puts into one of so many parts."""
    rows = np.flatnonzero(hashing.mix(holder.keys, seed, -2) % np.uint64(parts) == number)
    return Holder(holder.ids, holder.keys, {EMBEDDING: holder.columns[EMBEDDING]})[rows]


class Graph:
    """The graph of n items of unit embeddings: A_hat = A / (its column sums) + I with A = X X^T - I.

    Args:
        x: [n, D], rows of length 1.
        least: sums of smaller magnitude count as this. The authors' embeddings are not negative and their sums are
            large; where likenesses cancel out, a division would blow up.
    """

    def __init__(self, x: Tensor, least: float = 1.0) -> None:
        self.x = x
        sums = x @ x.sum(0) - 1
        self.sums = torch.where(sums < 0, sums.clamp(max=-least), sums.clamp(min=least))[:, None]

    def times(self, values: Tensor) -> Tensor:
        """Returns A_hat times values [n, k]."""
        scaled = values / self.sums
        return self.x @ (self.x.T @ scaled) - scaled + values


def discriminator_loss(scores: Tensor, labelled: Tensor) -> Tensor:
    """Returns -mean log s of the labelled - 1.2 mean log(1 - s) of the others.

    Args:
        scores: in (0, 1), [n].
        labelled: bool [n].
    """
    floor = torch.finfo(scores.dtype).tiny
    known, others = scores[labelled], 1 - scores[~labelled]
    return -known.clamp(min=floor).log().mean() - CANDIDATES * others.clamp(min=floor).log().mean()


def train(x: Tensor, labelled: Tensor, seed: int, steps: int) -> tuple[Tensor, Tensor]:
    """Trains the graph network.

    Args:
        x: [n, D], rows of length 1.
        labelled: bool [n].
        seed: of its weights and its dropout.
        steps: of Adam.

    Returns:
        (hidden [n, 128], logits [n] of being labelled), without dropout.
    """
    graph, size = Graph(x), x.shape[1]
    own = np.random.default_rng(hashing.digest("core_gcn", seed) % 2**63)

    def weights(rows: int, columns: int) -> nn.Parameter:
        bound = columns**-0.5
        return nn.Parameter(torch.from_numpy(own.uniform(-bound, bound, (rows, columns)).astype(np.float32)))

    first, first_bias, last, last_bias = (
        weights(size, HIDDEN), nn.Parameter(torch.zeros(HIDDEN)), weights(HIDDEN, 1), nn.Parameter(torch.zeros(1))
    )  # fmt: skip
    parameters = [first, first_bias, last, last_bias]
    optimizer = torch.optim.Adam(parameters, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)

    def forward(dropout: bool) -> tuple[Tensor, Tensor]:
        hidden = torch.relu(graph.times(x @ first) + first_bias)
        read = hidden
        if dropout:
            kept = torch.from_numpy(own.random(hidden.shape, np.float32)) >= DROPOUT
            read = hidden * kept / (1 - DROPOUT)
        return hidden, (graph.times(read @ last) + last_bias)[:, 0]

    for _ in range(steps):
        optimizer.zero_grad()
        discriminator_loss(torch.sigmoid(forward(dropout=True)[1]), labelled).backward()
        optimizer.step()
    with torch.no_grad():
        return forward(dropout=False)
