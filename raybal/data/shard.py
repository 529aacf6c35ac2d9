"""What a preparation task does: one shard and its record, even where an item kills the process that decodes it.

A decoder of a damaged file may end its whole process, and Ray then begins the task again, without end. So a task
notes in `staging/<shard>.attempts` that it has begun. Whoever finds the note there goes on carefully and notes each
item before it is touched: one over which two processes have died is set aside.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from raybal.data.chunk import Chunk, Converted, Preprocessing
from raybal.data.convert import convert
from raybal.data.schema import STAGING, Modality
from raybal.data.sources import Source
from raybal.errors import DataError
from raybal.settings import from_plain
from raybal.store import Store

_DEADLY = 2
# Processes that may die without an item to blame: the first of a shard, and those of machines that go away.
_UNEXPLAINED = 5

_RECORD, _ATTEMPTS = ".json", ".attempts"


@dataclass
class _Attempts:
    """How often a shard was begun, and over which items its processes died."""

    begun: int = 0
    died: dict[str, int] = field(default_factory=dict)


def make_shard(
    chunk: Chunk,
    sources: tuple[Source, ...],
    modalities: tuple[Modality, ...],
    settings: Preprocessing,
    store: Store,
) -> None:
    """Writes a shard, and then the record of what became of its items.

    Raises:
        DataError: the input cannot be read, or processes that try die again and again.
        StoreError: the pool cannot be written.
    """
    note = f"{STAGING}/{chunk.name}{_ATTEMPTS}"
    before = _Attempts(**json.loads(store.read_bytes(note))) if store.exists(note) else _Attempts()
    if before.begun - sum(before.died.values()) >= _UNEXPLAINED:
        raise DataError(
            f"{before.begun} processes died over the items {chunk.ids[0]} to {chunk.ids[-1]} of the input, perhaps for "
            "lack of memory; what is done is kept, and the same command tries them again"
        )
    now = _Attempts(before.begun + 1, before.died)

    def write(attempts: _Attempts) -> None:
        store.write_bytes(note, json.dumps(dataclasses.asdict(attempts)).encode())

    def starting(item: str) -> None:
        write(_Attempts(now.begun, dict(Counter(now.died) + Counter([item]))))

    write(now)
    deadly = [item for item, times in now.died.items() if times >= _DEADLY]
    careful = starting if before.begun else None
    table, result = convert(chunk, sources, modalities, settings, starting=careful, deadly=deadly)
    write(now)
    store.write_table(f"shards/{chunk.name}.parquet", table, compression="none")
    store.write_bytes(f"{STAGING}/{chunk.name}{_RECORD}", json.dumps(dataclasses.asdict(result)).encode())


def read_records(store: Store, chunks: Sequence[Chunk]) -> list[tuple[Chunk, Converted]]:
    """Returns the shards that are made already, with their records."""
    names = set(store.names(STAGING))
    return [(c, read_record(store, c.name)) for c in chunks if f"{c.name}{_RECORD}" in names]


def read_record(store: Store, name: str) -> Converted:
    """Returns what became of a shard's items."""
    return from_plain(Converted, json.loads(store.read_bytes(f"{STAGING}/{name}{_RECORD}")))


def forget_attempts(store: Store) -> None:
    """Deletes the notes of preparations that ended: nobody died over their items."""
    for name in store.names(STAGING):
        if name.endswith(_ATTEMPTS):
            store.delete(f"{STAGING}/{name}")
