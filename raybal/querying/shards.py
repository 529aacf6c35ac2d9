"""Shards of factors, here or in other processes, and how centres are chosen from all of them together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raybal.errors import RaybalError
from raybal.querying.base import Candidates, Holder
from raybal.querying.distances import NotFiniteError
from raybal.querying.factors import FactorShard, Rows

R = TypeVar("R", bound=Rows)
#: Maps a holder to its items' factors (q, h).
Factors = Callable[[Holder], tuple[Tensor, Tensor]]


class Shards(Protocol):
    """Several `FactorShard`s, here or in other processes."""

    def __len__(self) -> int:
        """The number of shards."""
        ...

    def map(self, method: str, *args: Any, each: Sequence[tuple[Any, ...]] | None = None) -> list[Any]:
        """Calls a method of every shard and returns the results in the order of the shards; `each` holds further
        arguments for each one."""
        ...


class LocalShards:
    """Shards in this process."""

    def __init__(self, shards: Sequence[FactorShard]) -> None:
        self.shards = shards

    def __len__(self) -> int:
        return len(self.shards)

    def map(self, method: str, *args: Any, each: Sequence[tuple[Any, ...]] | None = None) -> list[Any]:
        own = each or [()] * len(self.shards)
        return [getattr(shard, method)(*args, *more) for shard, more in zip(self.shards, own, strict=True)]


class Joined:
    """Shards of several kinds as one, in their order."""

    def __init__(self, parts: Sequence[Shards]) -> None:
        self.parts = parts

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def map(self, method: str, *args: Any, each: Sequence[tuple[Any, ...]] | None = None) -> list[Any]:
        found: list[Any] = []
        for part in self.parts:
            own = None if each is None else each[len(found) : len(found) + len(part)]
            found += part.map(method, *args, each=own)
        return found


class HeldShards:
    """One shard in each holder of candidates.

    Args:
        candidates: all candidates.
        factors: of a holder's items.
    """

    def __init__(self, candidates: Candidates, factors: Factors) -> None:
        self.candidates = candidates
        candidates.map(_hold, factors)

    def __len__(self) -> int:
        return len(self.candidates)

    def map(self, method: str, *args: Any, each: Sequence[tuple[Any, ...]] | None = None) -> list[Any]:
        return self.candidates.map(_call, method, *args, each=each)

    def ids(self, picks: Sequence[Pick]) -> list[str]:
        """Returns the ids of picks, in order."""
        rows = [([p.row for p in picks if p.shard == s],) for s in range(len(self.candidates))]
        ids = [iter(answer) for answer in self.candidates.map(_take_ids, each=rows)]
        return [next(ids[p.shard]) for p in picks]


@dataclass(frozen=True)
class Pick:
    """One chosen item: which shard and row, its squared distance to what was chosen before, its squared norm."""

    shard: int
    row: int
    d2: float
    norm: float


def merge(answers: Sequence[R], order: Callable[[R], NDArray[np.int64]], count: int) -> tuple[R, NDArray[np.int64]]:
    """Returns the first `count` rows of several shards' answers, and the shard of each.

    Args:
        order: maps all rows to their positions in the order that is wanted; it must not depend on the shards.
    """
    kind = type(answers[0])
    whole = kind(**{name: _joined([getattr(a, name) for a in answers]) for name in vars(answers[0])})
    first = order(whole)[:count]
    shard = np.concatenate([np.full(len(a.row), s) for s, a in enumerate(answers)])[first]
    return whole[first], shard


def _joined(parts: list[Any]) -> Any:
    return torch.cat(parts) if isinstance(parts[0], Tensor) else np.concatenate(parts)


def accept(
    shards: Shards, rows: Rows, shard: NDArray[np.int64], chosen: Sequence[int], d2: Sequence[float]
) -> list[Pick]:
    """Makes items centres of all shards.

    Args:
        rows, shard: items, and where they lie.
        chosen: which of them, in order of choice.
        d2: squared distance of each to what was chosen before it.

    Returns:
        The picks.
    """
    index = np.asarray(chosen, np.int64)
    picks = [
        Pick(int(shard[i]), int(rows.row[i]), float(far), float(rows.norm[i]))
        for i, far in zip(index.tolist(), d2, strict=True)
    ]
    each = [
        ([p.row for p in picks if p.shard == s], [n for n, p in enumerate(picks) if p.shard == s])
        for s in range(len(shards))
    ]
    shards.map("update", rows.q[index], rows.h[index], each=each)
    return picks


def rows_of(shards: Shards, picks: Sequence[Pick]) -> Rows:
    """Returns the rows of picks, in order."""
    each = [(torch.tensor([p.row for p in picks if p.shard == s], dtype=torch.int64),) for s in range(len(shards))]
    where = np.argsort(np.argsort([p.shard for p in picks], kind="stable"))
    return merge(shards.map("rows", each=each), lambda r: where, len(picks))[0]


def add_centres(shards: Shards, centres: tuple[Tensor, Tensor] | None) -> None:
    """Makes what has these factors (q, h) centres of all shards."""
    if centres is not None:
        shards.map("update", *centres)


def count_cells(shards: Shards, size: int) -> list[int]:
    """Returns how many items have each of the `size` centres as their nearest, itself among them."""
    # Of what equals another, only itself.
    return np.maximum(sum(shards.map("cells", size)), 1).tolist() if size else []


def rest(shards: Shards, wanted: int, seed: int) -> list[Pick]:
    """Goes on uniformly, by hash, when every embedding left equals a centre."""
    answers = shards.map("earliest_free", seed, wanted)
    found = [(*item, shard) for shard, part in enumerate(answers) for item in part]
    return [Pick(shard, row, 0.0, norm) for _, row, norm, shard in sorted(found)[:wanted]]


def _hold(holder: Holder, factors: Factors) -> None:
    try:
        holder.state["shard"] = FactorShard(*factors(holder), holder.keys)
    except NotFiniteError as error:
        raise RaybalError(
            f"the embedding of item {holder.ids[error.row]} is not finite; has training diverged?"
        ) from error


def _call(holder: Holder, method: str, *args: Any) -> Any:
    return getattr(holder.state["shard"], method)(*args)


def _take_ids(holder: Holder, rows: list[int]) -> list[str]:
    return [holder.ids[row] for row in rows]
