"""What the report says about items that could not be prepared."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from raybal.data.pool import Pool
from raybal.report.data import place

NAME = "quarantine.parquet"
ITEMS = 50
REASONS = 12


@dataclass(frozen=True)
class QuarantinedItem:
    """An item that could not be prepared: which, where it came from, and why, with details."""

    id: str
    uri: str
    modality: str
    reason: str


@dataclass(frozen=True)
class Quarantine:
    """The items that could not be prepared.

    Attributes:
        total: their number.
        reasons: (reason without details, modality, number of items), most frequent first.
        left_out: number of reasons that are not among these.
        items: the first of them.
        table: where all of them are listed.
    """

    total: int
    reasons: list[tuple[str, str, int]]
    left_out: int
    items: list[QuarantinedItem]
    table: str


def read_quarantine(pool: Pool) -> Quarantine:
    """Returns what is in a pool's quarantine."""
    table = place(pool.store, NAME)
    if not pool.store.exists(NAME):
        return Quarantine(0, [], 0, [], table)
    rows = pool.store.read_table(NAME, columns=["id", "uri", "modality", "reason"]).to_pylist()
    found = [QuarantinedItem(r["id"], r["uri"] or "", r["modality"] or "", r["reason"] or "") for r in rows]
    # Details after the colon, such as a number of bytes, are each item's own.
    counts = Counter((item.reason.partition(": ")[0], item.modality) for item in found)
    reasons = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    return Quarantine(
        total=len(found),
        reasons=[(reason, modality, number) for (reason, modality), number in reasons[:REASONS]],
        left_out=max(0, len(reasons) - REASONS),
        items=found[:ITEMS],
        table=table,
    )
