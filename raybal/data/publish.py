"""Writing what a preparation found: quarantine, statistics, index, sidecars and, last, pool.yaml."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raybal import hashing
from raybal.data.convert import Chunk, Converted, Preprocessing
from raybal.data.manifest import SPLITS, Manifest
from raybal.data.plan import PrepareConfig, splitting
from raybal.data.schema import Modality, PoolInfo
from raybal.errors import DataError
from raybal.store import Store

log = logging.getLogger(__name__)


def write_quarantine(store: Store, bad: Sequence[tuple[str, ...]], tried: Collection[str]) -> None:
    """Writes the items of this run that could not be prepared beside those of earlier runs that were not tried."""
    rows = []
    if store.exists("quarantine.parquet"):
        rows = [tuple(r.values()) for r in store.read_table("quarantine.parquet").to_pylist() if r["id"] not in tried]
    names = ("id", "uri", "modality", "reason", "fingerprint")
    columns = list(zip(*rows, *bad, strict=True)) or [()] * len(names)
    table = pa.table({n: pa.array(list(c), pa.string()) for n, c in zip(names, columns, strict=True)})
    store.write_table("quarantine.parquet", table)


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
        split_of: the split of each item of the manifest, by id.
    """

    chunks: Sequence[Chunk]
    results: Sequence[Converted]
    split_of: Mapping[str, str]


def publish(
    config: PrepareConfig,
    manifest: Manifest,
    store: Store,
    old: PoolInfo | None,
    modalities: tuple[Modality, ...],
    settings: Preprocessing,
    classes: tuple[str, ...] | None,
    new: Prepared,
) -> PoolInfo:
    """Writes a new generation of the pool's tables and, last, the pool.yaml that points to them."""
    index = _index(new, modalities)
    if old is not None:
        index = pa.concat_tables([store.read_table(old.index), index])
    if not len(index):
        raise DataError(f"{config.input}: no item could be prepared; see {config.output}/quarantine.parquet")
    prints = {i: f for r in new.results for i, f in r.fingerprints.items()}
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
    sidecars = _sidecars(manifest, pa.array(list(prints), pa.string()), prints, store, old)
    write_tables(store, info, index, sidecars)
    _sweep(store, info.generation, set(pc.unique(index["shard"]).to_pylist()))
    return PoolInfo.read(store)


def relabel(
    config: PrepareConfig, manifest: Manifest, store: Store, old: PoolInfo, classes: tuple[str, ...] | None
) -> PoolInfo:
    """Takes over what the manifest says about items that are prepared already: labels, groups and class names."""
    index = store.read_table(old.index)
    sources = store.read_table(old.sidecar("sources"))
    prints = dict(zip(sources["id"].to_pylist(), sources["fingerprint"].to_pylist(), strict=True))
    known = manifest.table["id"].filter(pc.is_in(manifest.table["id"], index["id"]))
    sidecars = _sidecars(manifest, known, prints, store, old)
    same = all(_rows(sidecars[t]) == _rows(store.read_table(old.sidecar(t))) for t in ("labels", "groups"))
    if same and classes == old.classes:
        log.info("%s is up to date: %d items, nothing to do", config.output, old.counts["items"])
        return old
    info = dataclasses.replace(old, classes=classes, generation=old.generation + 1)
    write_tables(store, info, index, sidecars)
    info = PoolInfo.read(store)
    log.info("%s: labels and groups brought up to date, %d items labelled", config.output, info.counts["labelled"])
    return info


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
        "quarantined": len(store.read_table("quarantine.parquet")) if store.exists("quarantine.parquet") else 0,
        "missing": {name: len(index) - (pc.sum(index[f"present_{name}"]).as_py() or 0) for name in info.names},
    }
    dataclasses.replace(info, counts=counts).write(store)


def _index(new: Prepared, modalities: tuple[Modality, ...]) -> pa.Table:
    parts = []
    for chunk, result in zip(new.chunks, new.results, strict=True):
        present = np.array(result.present, bool).reshape(len(result.ids), len(modalities))
        columns = {
            "id": pa.array(result.ids, pa.string()),
            "shard": pa.array([chunk.name] * len(result.ids), pa.string()),
            "row": pa.array(range(len(result.ids)), pa.int32()),
            "split": pa.array([new.split_of[i] for i in result.ids], pa.string()),
            "content": pa.array(result.contents, pa.string()),
        }
        parts.append(pa.table(columns | {f"present_{m.name}": present[:, k] for k, m in enumerate(modalities)}))
    return pa.concat_tables(parts)


def _content_hash(index: pa.Table, modalities: tuple[Modality, ...]) -> str:
    rows = sorted(zip(*(index[c].to_pylist() for c in ("id", "split", "content")), strict=True))
    kinds = [(m.name, m.kind, m.shape, m.dtype) for m in modalities]
    return f"{hashing.digest(kinds, *rows):016x}"


def _sidecars(
    manifest: Manifest, ids: pa.Array, fingerprints: Mapping[str, str], store: Store, old: PoolInfo | None
) -> dict[str, pa.Table]:
    """Returns the sidecar tables: what the manifest says of some items, and what the pool knew of all others. An
    empty cell takes nothing away."""
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
