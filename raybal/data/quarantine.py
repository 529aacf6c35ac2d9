"""Items that could not be prepared: a pool's quarantine, and how much of it is too much.

`quarantine.parquet` belongs to a pool: what was found in inputs that were accepted. An input that is refused changes
nothing there, so that the same command is refused again; what is wrong with it is listed in `staging`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import pyarrow as pa

from raybal.data.schema import STAGING
from raybal.errors import DataError, shorten
from raybal.store import Store

NAME = "quarantine.parquet"
REFUSED = f"{STAGING}/damaged.parquet"
COLUMNS = ("id", "uri", "modality", "reason", "fingerprint")

# id, uri, modality, reason, fingerprint of the files
Row = tuple[str, ...]


def read_quarantine(store: Store) -> dict[str, Row]:
    """Returns the rows of a pool's quarantine, by id."""
    if not store.exists(NAME):
        return {}
    table = store.read_table(NAME, columns=list(COLUMNS))
    return {row[0]: row for row in zip(*(table[c].to_pylist() for c in COLUMNS), strict=True)}


def write_quarantine(store: Store, rows: Sequence[Row], name: str = NAME) -> None:
    """Writes rows as a table."""
    columns = list(zip(*rows, strict=True)) or [()] * len(COLUMNS)
    arrays = {n: pa.array(list(c), pa.string()) for n, c in zip(COLUMNS, columns, strict=True)}
    store.write_table(name, pa.table(arrays))


class DamageLimit:
    """How many damaged items an input may have.

    The share is that of the whole input: what is in the pool already, what is in quarantine already, and what is new.
    One damaged item is measured against the whole pool: alone in an input, it says nothing of the input.

    Args:
        share: of damaged items that is accepted.
        items: of the input.
        quarantined: rows of the input's items that are in quarantine already and are not tried again.
        pool: items of the pool, with those of the input.
    """

    def __init__(self, share: float, items: int, quarantined: Sequence[Row], pool: int) -> None:
        self.share = share
        self.items = items
        self.quarantined = list(quarantined)
        self.accepted = max(share * items, min(1.0, share * pool))

    def check(self, bad: Sequence[Row], store: Store) -> None:
        """Raises a DataError if there are too many, and lists them all in a table beside the pool.

        Args:
            bad: those found so far.
            store: of the pool.
        """
        if len(self.quarantined) + len(bad) > self.accepted + 1e-9:
            self.refuse(bad, store)

    def refuse(self, bad: Sequence[Row], store: Store) -> NoReturn:
        """Raises the DataError."""
        found = [*self.quarantined, *bad]
        write_quarantine(store, found, REFUSED)
        examples = shorten([f"{item} ({reason})" for item, _, _, reason, _ in found], 3)
        share = f"more than the {100 * self.share:g} % accepted" if len(found) < self.items else "all there are"
        raise DataError(
            f"{len(found)} of {self.items} items ({100 * len(found) / self.items:.1f} %) are damaged, {share}: "
            f"{examples}. All are listed in {store.path(REFUSED)}; mend them, leave them out of the input, or accept "
            "more with --max-damage, and run the same command again: what is done is kept"
        )
