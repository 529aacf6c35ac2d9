"""Writing what a preparation found: quarantine, statistics, index, sidecars and, last, pool.yaml."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raybal import hashing
from raybal.data.chunk import Chunk, Converted, Preprocessing
from raybal.data.known import Known
from raybal.data.manifest import SPLITS, Manifest
from raybal.data.plan import PrepareConfig, splitting
from raybal.data.quarantine import NAME, read_quarantine, write_quarantine
from raybal.data.schema import Modality, PoolInfo
from raybal.store import Store


def with_statistics(modalities: tuple[Modality, ...], results: Sequence[Converted]) -> tuple[Modality, ...]:
    """Returns the modalities with mean and standard deviation over the training items."""
    found = []
    for m in modalities:
        sums = [r.sums[m.name] for r in results if m.name in r.sums]
        count = sum(s[0][0] for s in sums)
        if not count:
            found.append(m)
            continue
        mean = np.sum([s[1] for s in sums], axis=0) / count
        variance = np.maximum(np.sum([s[2] for s in sums], axis=0) / count - mean**2, 0.0)
        # A constant dimension carries nothing; dividing by 1 leaves it at 0.
        std = np.where(variance > 1e-12, np.sqrt(variance), 1.0)
        found.append(dataclasses.replace(m, mean=tuple(mean.tolist()), std=tuple(std.tolist())))
    return tuple(found)


@dataclass(frozen=True)
class Prepared:
    """What a preparation made.

    Attributes:
        chunks: its shards.
        results: what became of each.
        split_of: the split of each of their items, by id.
    """

    chunks: Sequence[Chunk] = ()
    results: Sequence[Converted] = ()
    split_of: Mapping[str, str] = field(default_factory=dict)


def publish(
    config: PrepareConfig,
    manifest: Manifest,
    store: Store,
    old: PoolInfo | None,
    known: Known,
    modalities: tuple[Modality, ...],
    settings: Preprocessing,
    classes: tuple[str, ...] | None,
    new: Prepared,
) -> PoolInfo:
    """Writes a new generation of the pool's tables and, last, the pool.yaml that points to them.

    New items come in; of those that the pool has, labels and groups become what the input says.
    """
    parts = [] if old is None else [store.read_table(old.index)]
    # Pools of earlier versions do not know how long items are.
    index = pa.concat_tables([*parts, *_index(new, modalities)], promote_options="default")
    prints = {**known.fingerprints, **{i: f for r in new.results for i, f in r.fingerprints.items()}}
    preprocessing = dataclasses.asdict(settings)
    info = PoolInfo(
        modalities=modalities,
        classes=classes,
        preprocessing=preprocessing,
        preprocessing_hash=f"{hashing.digest(json.dumps(preprocessing, sort_keys=True)):016x}",
        content_hash=_content_hash(index, modalities),
        splitting=splitting(config) if old is None else old.splitting,
        generation=1 if old is None else old.generation + 1,
    )
    if new.chunks:
        tried = {i for c in new.chunks for i in c.ids}
        kept = [] if old is None else [row for item, row in read_quarantine(store).items() if item not in tried]
        write_quarantine(store, [*kept, *(row for r in new.results for row in r.bad)])
    write_tables(store, info, index, _sidecars(manifest, prints, store, old))
    _sweep(store, info.generation, set(pc.unique(index["shard"]).to_pylist()))
    return PoolInfo.read(store)


def is_up_to_date(
    manifest: Manifest, store: Store, old: PoolInfo, known: Known, classes: tuple[str, ...] | None
) -> bool:
    """Returns whether the pool has everything that the input says: its items, their labels and groups, the classes."""
    if len(known.todo) or classes != old.classes:
        return False
    now = _sidecars(manifest, known.fingerprints, store, old)
    return all(_rows(now[t]) == _rows(store.read_table(old.sidecar(t))) for t in ("labels", "groups"))


def _rows(table: pa.Table) -> set[tuple[str, ...]]:
    return set(zip(*(column.to_pylist() for column in table.columns), strict=True))


def write_tables(store: Store, info: PoolInfo, index: pa.Table, sidecars: Mapping[str, pa.Table]) -> None:
    """Writes one generation of a pool's tables, and then the pool.yaml that points to them, with its counts."""
    for name, table in sidecars.items():
        store.write_table(info.sidecar(name), table)
    store.write_table(info.index, index)
    counts = {
        "items": len(index),
        **{part: index["split"].to_pylist().count(part) for part in SPLITS},
        "labelled": len(sidecars["labels"]),
        "quarantined": len(store.read_table(NAME)) if store.exists(NAME) else 0,
        "missing": {name: len(index) - (pc.sum(index[f"present_{name}"]).as_py() or 0) for name in info.names},
    }
    dataclasses.replace(info, counts=counts).write(store)


def _index(new: Prepared, modalities: tuple[Modality, ...]) -> list[pa.Table]:
    parts = []
    for chunk, result in zip(new.chunks, new.results, strict=True):
        present = np.array(result.present, bool).reshape(len(result.ids), len(modalities))
        columns = {
            "id": pa.array(result.ids, pa.string()),
            "shard": pa.array([chunk.name] * len(result.ids), pa.string()),
            "row": pa.array(range(len(result.ids)), pa.int32()),
            "split": pa.array([new.split_of[i] for i in result.ids], pa.string()),
            "content": pa.array(result.contents, pa.string()),
            "seconds": pa.array(result.seconds or [None] * len(result.ids), pa.float32()),
        }
        parts.append(pa.table(columns | {f"present_{m.name}": present[:, k] for k, m in enumerate(modalities)}))
    return parts


def _content_hash(index: pa.Table, modalities: tuple[Modality, ...]) -> str:
    rows = sorted(zip(*(index[c].to_pylist() for c in ("id", "split", "content")), strict=True))
    kinds = [(m.name, m.kind, m.shape, m.dtype) for m in modalities]
    return f"{hashing.digest(kinds, *rows):016x}"


def _sidecars(
    manifest: Manifest, fingerprints: Mapping[str, str], store: Store, old: PoolInfo | None
) -> dict[str, pa.Table]:
    """Returns the sidecar tables: what the manifest says of the items with a fingerprint, and what the pool knew of
    all others. An empty cell takes nothing away."""
    ids = pa.array(list(fingerprints), pa.string())
    table = manifest.table.filter(pc.is_in(manifest.table["id"], ids))
    uris = [s.column for s in manifest.sources if s.kind == "uri"]
    names = table["id"].to_pylist()
    where = [" ".join(u for u in row if u) for row in zip(*(table[c].to_pylist() for c in uris), strict=True)]
    sources = {
        "id": pa.array(names, pa.string()),
        "uri": pa.array(where or [""] * len(names), pa.string()),
        "fingerprint": pa.array([fingerprints[i] for i in names], pa.string()),
    }
    tables = {
        "labels": table.select(["id", "label"]).filter(pc.is_valid(table["label"])),
        "groups": table.select(["id", "group"]).filter(pc.is_valid(table["group"])),
        "sources": pa.table(sources),
    }
    if old is None:
        return tables
    for name, content in tables.items():
        before = store.read_table(old.sidecar(name))
        before = before.filter(pc.invert(pc.is_in(before["id"], content["id"])))
        tables[name] = pa.concat_tables([before, content.cast(before.schema)])
    return tables


def _sweep(store: Store, generation: int, shards: Collection[str]) -> None:
    """Deletes shards of preparations that were given up, and tables that nobody has read for a while."""
    for name in store.names("shards"):
        if name.removesuffix(".parquet") not in shards:
            store.delete(f"shards/{name}")
    # Whoever reads the pool meanwhile may still be at the generation before.
    for name in store.names("tables"):
        if name.isdigit() and int(name) < generation - 1:
            store.clear(f"tables/{name}")
