"""What a query strategy is.

A strategy is one class in one file. `columns` runs where items are scored and returns small per-item columns;
`select` runs over the shards that hold them and never needs all of them in one process. Neither sees a label.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from raybal import hashing
from raybal.balancing.base import Predictor
from raybal.errors import RaybalError
from raybal.models.classifier import Encoded
from raybal.registry import Registry
from raybal.settings import Settings, setting


@dataclass(frozen=True)
class QuerySettings(Settings):
    """What chooses the next items."""

    strategy: str = setting(help="query strategy")
    size: int = setting(60, ge=1, help="items asked for in each round")
    initial_size: int | None = setting(None, ge=1, help="items of the first, random round; none: as `size`")
    batch_size: int = setting(128, ge=1, help="items scored at a time")

    @classmethod
    def resolve(cls, content: Mapping[str, Any]) -> type[QuerySettings]:
        return STRATEGIES.settings(content, "strategy", cls)


@dataclass
class Scored:
    """One batch of items as the predictor sees them.

    Attributes:
        encoded: what the encoders give.
        probabilities: [n, C].
        predicted: class index of the prediction, int64 [n].
        contributions: each modality's share of the prediction, [n, M].
    """

    encoded: Encoded
    probabilities: Tensor
    predicted: Tensor
    contributions: Tensor


@dataclass(frozen=True)
class Request:
    """What is asked of a strategy.

    Attributes:
        size: number of items; all that are left if there are fewer.
        seed: of its draws.
    """

    size: int
    seed: int


@dataclass
class Query:
    """The items chosen, in order of choice.

    Attributes:
        ids: their ids.
        score: the strategy's number for each.
        reason: why each was chosen, in words.
    """

    ids: list[str]
    score: list[float]
    reason: list[str]


class Holder:
    """The candidates of one or more shard files, in memory.

    Attributes:
        ids: n ids.
        keys: their hashes, uint64 [n].
        columns: arrays [n, ...] by name.
        state: what a strategy keeps between calls.
    """

    def __init__(self, ids: Sequence[str], keys: NDArray[np.uint64], columns: dict[str, NDArray]) -> None:
        self.ids = list(ids)
        self.keys = keys
        self.columns = columns
        self.state: dict[str, Any] = {}


class Candidates(Protocol):
    """All candidates, in as many holders as there are, here or in other processes."""

    def __len__(self) -> int:
        """The number of holders."""
        ...

    def map(self, function: Callable[..., Any], *args: Any, each: Sequence[tuple[Any, ...]] | None = None) -> list[Any]:
        """Calls function(holder, *args, *each[i]) on every holder; returns the results in the order of the holders."""
        ...


class LocalCandidates:
    """Holders in this process."""

    def __init__(self, holders: Sequence[Holder]) -> None:
        self.holders = holders

    def __len__(self) -> int:
        return len(self.holders)

    def map(self, function: Callable[..., Any], *args: Any, each: Sequence[tuple[Any, ...]] | None = None) -> list[Any]:
        own = each or [()] * len(self.holders)
        return [function(holder, *args, *more) for holder, more in zip(self.holders, own, strict=True)]


class QueryStrategy(ABC):
    """Base of all strategies.

    Args:
        settings: of the subclass's own `Settings`.
    """

    name: ClassVar[str]
    Settings: ClassVar[type[QuerySettings]] = QuerySettings

    def __init__(self, settings: QuerySettings) -> None:
        self.settings = settings

    def columns(self, predictor: Predictor, scored: Scored) -> dict[str, Tensor]:
        """Returns per-item columns [n, ...] that `select` needs, beside those that every scoring keeps."""
        return {}

    @abstractmethod
    def select(self, candidates: Candidates, request: Request) -> Query:
        """Chooses items: a pure function of the columns and the request, the same for any number of holders and any
        order of rows."""


def top_k(candidates: Candidates, column: str, size: int) -> tuple[list[str], list[float]]:
    """Returns (ids, values) of the items with the largest values of a column; ties go to the smaller id."""
    found = [pair for part in candidates.map(_top_k, column, size) for pair in part]
    found.sort(key=lambda pair: (-pair[0], pair[1]))
    return [i for _, i in found[:size]], [v for v, _ in found[:size]]


def _top_k(holder: Holder, column: str, size: int) -> list[tuple[float, str]]:
    values = holder.columns[column]
    if not np.isfinite(values).all():
        bad = holder.ids[int(np.flatnonzero(~np.isfinite(values))[0])]
        raise RaybalError(f"column {column!r} of item {bad} is not finite")
    rows = np.arange(len(values))
    if len(values) > size:
        # All that tie with the last one stay in, for ids to decide.
        rows = np.flatnonzero(values >= np.partition(values, len(values) - size)[len(values) - size])
    return [(float(values[r]), holder.ids[r]) for r in rows]


def by_hash(candidates: Candidates, size: int, seed: int) -> list[str]:
    """Returns `size` ids in a random order that depends on the seed and the ids alone."""
    found = sorted(pair for part in candidates.map(_by_hash, size, seed) for pair in part)
    return [i for _, i in found[:size]]


def _by_hash(holder: Holder, size: int, seed: int) -> list[tuple[int, str]]:
    clock = hashing.mix(holder.keys, seed)
    rows = np.argsort(clock)[:size]
    return [(int(clock[r]), holder.ids[r]) for r in rows]


STRATEGIES: Registry[QueryStrategy] = Registry("query strategy", "raybal.querying", QueryStrategy)  # type: ignore[type-abstract]
