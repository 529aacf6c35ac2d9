"""What a query strategy is.

A strategy is one class in one file. `columns` runs where items are scored and returns small per-item columns;
`select` runs over the shards that hold them and never needs all of them in one process. Neither sees a label.
"""

from __future__ import annotations

import dataclasses
import heapq
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raybal import hashing
from raybal.balancing.base import Predictor
from raybal.errors import RaybalError
from raybal.models.classifier import Encoded
from raybal.registry import Registry
from raybal.settings import Settings, setting

#: The column of embeddings [n, D].
EMBEDDING = "z"


@dataclass(frozen=True)
class QuotaSettings(Settings):
    """Limits to how unbalanced a query may be."""

    dominated: float | None = setting(
        None, gt=0, le=1, help="largest share of a query that one modality may dominate; none: any"
    )
    predicted: float | None = setting(
        None, gt=0, le=1, help="largest share of a query that the model may put into one class; none: any"
    )
    contribution: float | None = setting(
        None,
        gt=0,
        help="largest difference of a modality's mean contribution in the query from that in the pool; none: any",
    )


@dataclass(frozen=True)
class QuerySettings(Settings):
    """What chooses the next items."""

    strategy: str = setting(help="query strategy")
    size: int = setting(60, ge=1, help="items asked for in each round")
    initial_size: int | None = setting(None, ge=1, help="items of the first, random round; none: as `size`")
    batch_size: int = setting(128, ge=1, help="items scored at a time")
    initial: str = setting(
        "random", help="strategy of the first round, which has no trained model: random, typiclust or probcover"
    )
    initial_features: str = setting(
        "joint",
        help="whose embeddings the first round chooses by, as the untrained model gives them (best with weights of "
        "one's own): joint, or one modality",
    )
    explain: bool = setting(
        True,
        help="say for each item which labelled item is nearest and how many items it stands for (needs its embedding, "
        "4 bytes a number)",
    )
    half: bool = setting(False, help="keep embeddings in half precision")
    quota: QuotaSettings = setting(factory=QuotaSettings, help="limits to how unbalanced a query may be")

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
        classes: number of classes.
        labelled: the items that have a label already, with the same columns as candidates; which label is not said.
            None where there is none.
        chosen: what the same query has chosen before; None at first.

    Raises:
        RaybalError: a number that is kept of a labelled or chosen item is not finite; the message names the item.
    """

    size: int
    seed: int
    classes: int = 2
    labelled: Holder | None = None
    chosen: Holder | None = None

    def __post_init__(self) -> None:
        for holder in (self.labelled, self.chosen):
            if holder is not None:
                for name in holder.columns:
                    finite(holder, name)

    def known(self, *, labelled: bool = True) -> Holder | None:
        """Returns the items that count as chosen: those chosen before and, if wanted, those with labels."""
        return joined(self.labelled if labelled else None, self.chosen)


@dataclass
class Query:
    """The items chosen, in order of choice.

    Attributes:
        ids: their ids.
        score: the strategy's own number for each, whose meaning `reason` tells.
        reason: why each was chosen, in words.
        parts: what the score of each is made of, by name; of a modality that is missing, nothing.
        cells: how many candidates are nearer to each than to the others of the query, itself among them, in the metric
            of the choice; None where the strategy does not find out by itself.
    """

    ids: list[str]
    score: list[float]
    reason: list[str]
    parts: list[dict[str, float]] = field(default_factory=list)
    cells: list[int] | None = None

    def only(self, kept: Sequence[int]) -> Query:
        """Returns the items at some positions."""
        return Query(
            [self.ids[k] for k in kept],
            [self.score[k] for k in kept],
            [self.reason[k] for k in kept],
            [self.parts[k] for k in kept] if self.parts else [],
            [self.cells[k] for k in kept] if self.cells else None,
        )


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

    def __getitem__(self, rows: NDArray[np.integer]) -> Holder:
        """Returns some rows, without what is kept between calls."""
        columns = {name: values[rows] for name, values in self.columns.items()}
        return Holder([self.ids[r] for r in rows], self.keys[rows], columns)


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
    #: Whether it needs no trained model, so that it can choose the first items.
    cold: ClassVar[bool] = False

    def __init__(self, settings: QuerySettings) -> None:
        self.settings = settings

    def check(self, predictor: Predictor) -> None:  # noqa: B027 - most can choose with any
        """Checks that the strategy can choose with such a predictor.

        Raises:
            ConfigError: it cannot.
        """

    def columns(self, predictor: Predictor, scored: Scored) -> dict[str, Tensor]:
        """Returns per-item columns [n, ...] that `select` needs, beside those that every scoring keeps."""
        return {}

    def factors(self, holder: Holder) -> tuple[Tensor, Tensor]:
        """Returns the factors (q [n, C], h [n, D]) of the embeddings in whose metric items are near or far; by default
        those of the predictor, with q = [1]."""
        z = torch.from_numpy(holder.columns[EMBEDDING])
        return torch.ones(len(z), 1), z

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
    values = finite(holder, column)
    if len(values) <= size:
        return list(zip(values.tolist(), holder.ids, strict=True))
    last = np.partition(values, len(values) - size)[len(values) - size] if size else np.inf
    above = np.flatnonzero(values > last)
    # Of those that tie with the last one, ids decide.
    ties = heapq.nsmallest(size - len(above), (holder.ids[r] for r in np.flatnonzero(values == last)))
    return [(float(values[r]), holder.ids[r]) for r in above] + [(float(last), i) for i in ties]


def finite(holder: Holder, column: str) -> NDArray[Any]:
    """Returns a column [n, ...].

    Raises:
        RaybalError: a number of it is not finite; the message names the item.
    """
    values = holder.columns[column]
    good = np.isfinite(values.reshape(len(values), values[:1].size or 1)).all(1)
    if not good.all():
        bad = holder.ids[int(np.flatnonzero(~good)[0])]
        raise RaybalError(f"column {column!r} of item {bad} is not finite; has training diverged?")
    return values


def gather(candidates: Candidates, ids: Sequence[str], columns: Sequence[str]) -> Holder:
    """Returns a holder of some candidates, in the order of these ids, with these columns."""
    parts = [part for part in candidates.map(_gather, list(ids), list(columns)) if part.ids]
    rows = {i: row for row, i in enumerate(i for part in parts for i in part.ids)}
    whole = joined(*parts)
    return (
        Holder([], np.zeros(0, np.uint64), {}) if whole is None else whole[np.array([rows[i] for i in ids], np.int64)]
    )


def joined(*holders: Holder | None) -> Holder | None:
    """Returns the items of several holders with the same columns as one; None where there is no item."""
    parts = [h for h in holders if h is not None and h.ids]
    if len(parts) < 2:
        return parts[0] if parts else None
    columns = {name: np.concatenate([h.columns[name] for h in parts]) for name in parts[0].columns}
    return Holder([i for h in parts for i in h.ids], np.concatenate([h.keys for h in parts]), columns)


def column_names(candidates: Candidates) -> list[str]:
    """Returns the names of the candidates' columns."""
    parts = candidates.map(_column_names)
    return parts[0] if parts else []


def _column_names(holder: Holder) -> list[str]:
    return list(holder.columns)


def _gather(holder: Holder, ids: list[str], columns: list[str]) -> Holder:
    rows = np.array(rows_of(holder, ids), np.int64)
    return Holder(holder.ids, holder.keys, {name: holder.columns[name] for name in columns})[rows]


def rows_of(holder: Holder, ids: Sequence[str]) -> list[int]:
    """Returns the rows of those of these ids that a holder has, in its order."""
    wanted = set(ids)
    return [row for row, i in enumerate(holder.ids) if i in wanted]


def by_hash(candidates: Candidates, size: int, seed: int) -> list[str]:
    """Returns `size` ids in a random order that depends on the seed and the ids alone."""
    found = sorted(pair for part in candidates.map(_by_hash, size, seed) for pair in part)
    return [i for _, i in found[:size]]


def _by_hash(holder: Holder, size: int, seed: int) -> list[tuple[int, str]]:
    clock = hashing.mix(holder.keys, seed)
    rows = np.argsort(clock)[:size]
    return [(int(clock[r]), holder.ids[r]) for r in rows]


def build_strategy(name: str, like: QuerySettings, **settings: Any) -> QueryStrategy:
    """Returns a strategy with its default settings, but for those given and those that all strategies have, which are
    `like` another's; settings that it does not have are left out."""
    cls = STRATEGIES.get(name)
    shared = {f.name: getattr(like, f.name) for f in dataclasses.fields(QuerySettings)}
    own = {f.name for f in dataclasses.fields(cls.Settings)}
    return cls(cls.Settings(**{**shared, "strategy": name, **{k: v for k, v in settings.items() if k in own}}))


STRATEGIES: Registry[QueryStrategy] = Registry("query strategy", "raybal.querying", QueryStrategy)  # type: ignore[type-abstract]
