"""Candidates as a strategy sees them that looks at a part of the items, or of their columns."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raybal.data.room import take
from raybal.querying.base import Candidates, Holder

Columns = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Shown:
    """What is seen of a holder: not all items, and the columns of one prefix in place of others of the same names.

    Attributes:
        without: ids that are left out.
        prefix: of the columns that are seen without it.
        present: number of the modality that items must have.
        allowed: maps columns to which items are seen, bool [n].
    """

    without: Collection[str] = ()
    prefix: str = ""
    present: int | None = None
    allowed: Callable[[Columns], NDArray[np.bool_]] | None = None

    def of(self, holder: Holder) -> Holder:
        """Returns what is seen of a holder."""
        rows = np.ones(len(holder.ids), bool) if self.allowed is None else self.allowed(holder.columns)
        if self.present is not None:
            rows &= holder.columns["present"][:, self.present].astype(bool)
        if self.without:
            without = set(self.without)
            rows &= np.fromiter((i not in without for i in holder.ids), bool, len(holder.ids))
        found = holder.columns
        if self.prefix:
            own = {name: v for name, v in found.items() if name.startswith(self.prefix)}
            found = {name: v for name, v in found.items() if "." not in name}
            found |= {name.removeprefix(self.prefix): v for name, v in own.items()}
        chosen = np.flatnonzero(rows)
        columns = {name: values if rows.all() else take(values, chosen) for name, values in found.items()}
        ids = [i for i, kept in zip(holder.ids, rows, strict=True) if kept]
        return Holder(ids, holder.keys[rows], columns)


class View:
    """Candidates of which only a part is shown.

    Args:
        candidates: all candidates.
        name: of this view, by which holders keep what belongs to it.
        shown: what is seen.
    """

    def __init__(self, candidates: Candidates, name: str, shown: Shown) -> None:
        self.candidates = candidates
        self.name = name
        candidates.map(_open, name, shown)

    def __len__(self) -> int:
        return len(self.candidates)

    def map(self, function: Callable[..., Any], *args: Any, each: Sequence[tuple[Any, ...]] | None = None) -> list[Any]:
        return self.candidates.map(_through, self.name, function, args, each=each)

    def close(self) -> None:
        """Lets holders forget it."""
        self.candidates.map(_close, self.name)


def _open(holder: Holder, name: str, shown: Shown) -> None:
    holder.state[name] = shown.of(holder)


def _through(holder: Holder, name: str, function: Callable[..., Any], args: tuple[Any, ...], *more: Any) -> Any:
    return function(holder.state[name], *args, *more)


def _close(holder: Holder, name: str) -> None:
    holder.state.pop(name, None)
