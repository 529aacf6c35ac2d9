"""Candidates as a strategy sees them that looks at a part of the items, or of their columns."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raybal.querying.base import Candidates, Holder

Columns = dict[str, NDArray[Any]]


class View:
    """Candidates without some items, and with the columns of one prefix in place of others of the same names.

    Args:
        candidates: all candidates.
        name: of this view, by which holders keep what belongs to it.
        without: ids that are left out.
        prefix: of the columns that are seen without it.
        present: number of the modality that items must have.
        allowed: maps columns to which items are seen, bool [n].
    """

    def __init__(
        self,
        candidates: Candidates,
        name: str,
        *,
        without: Collection[str] = (),
        prefix: str = "",
        present: int | None = None,
        allowed: Callable[[Columns], NDArray[np.bool_]] | None = None,
    ) -> None:
        self.candidates = candidates
        self.name = name
        candidates.map(_open, name, set(without), prefix, present, allowed)

    def __len__(self) -> int:
        return len(self.candidates)

    def map(self, function: Callable[..., Any], *args: Any, each: Sequence[tuple[Any, ...]] | None = None) -> list[Any]:
        return self.candidates.map(_through, self.name, function, args, each=each)

    def close(self) -> None:
        """Lets holders forget it."""
        self.candidates.map(_close, self.name)


def viewed(
    holder: Holder,
    without: Collection[str] = (),
    prefix: str = "",
    present: int | None = None,
    allowed: Callable[[Columns], NDArray[np.bool_]] | None = None,
) -> Holder:
    """Returns what a view shows of a holder."""
    rows = np.ones(len(holder.ids), bool) if allowed is None else allowed(holder.columns)
    if present is not None:
        rows &= holder.columns["present"][:, present].astype(bool)
    if without:
        rows &= ~np.isin(np.array(holder.ids, dtype=object), list(without))
    found = dict(holder.columns)
    if prefix:
        found |= {name.removeprefix(prefix): v for name, v in holder.columns.items() if name.startswith(prefix)}
    columns = {name: values if rows.all() else values[rows] for name, values in found.items()}
    ids = [i for i, kept in zip(holder.ids, rows, strict=True) if kept]
    return Holder(ids, holder.keys[rows], columns)


def _open(holder: Holder, name: str, *shown: Any) -> None:
    holder.state[name] = viewed(holder, *shown)


def _through(holder: Holder, name: str, function: Callable[..., Any], args: tuple[Any, ...], *more: Any) -> Any:
    return function(holder.state[name], *args, *more)


def _close(holder: Holder, name: str) -> None:
    holder.state.pop(name, None)
