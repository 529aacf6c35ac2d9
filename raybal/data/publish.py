"""Writing what a preparation found: quarantine, statistics, index, sidecars and, last, pool.yaml."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raybal import hashing
from raybal.data.convert import Chunk, Converted, Preprocessing
from raybal.data.manifest import SPLITS, Manifest
from raybal.data.plan import PrepareConfig
from raybal.data.schema import Modality, PoolInfo
from raybal.errors import DataError
from raybal.store import Store


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


def publish(
    config: PrepareConfig,
    manifest: Manifest,
    store: Store,
    old: PoolInfo | None,
    modalities: tuple[Modality, ...],
    settings: Preprocessing,
    classes: tuple[str, ...] | None,
    splits: Sequence[str],
    chunks: Sequence[Chunk],
    results: Sequence[Converted],
) -> PoolInfo:
    """Writes the index, the sidecars and, last, pool.yaml."""
    split_of = dict(zip(manifest.table["id"].to_pylist(), splits, strict=True))
    parts = []
    for chunk, result in zip(chunks, results, strict=True):
        present = np.array(result.present, bool).reshape(len(result.ids), len(modalities))
        columns = {
            "id": pa.array(result.ids, pa.string()),
            "shard": pa.array([chunk.name] * len(result.ids), pa.string()),
            "row": pa.array(range(len(result.ids)), pa.int32()),
            "split": pa.array([split_of[i] for i in result.ids], pa.string()),
        }
        parts.append(pa.table(columns | {f"present_{m.name}": present[:, k] for k, m in enumerate(modalities)}))
    new = pa.concat_tables(parts)
    index = pa.concat_tables([store.read_table("index.parquet"), new]) if old is not None else new
    if not len(index):
        raise DataError(f"{config.input}: no item could be prepared; see {config.output}/quarantine.parquet")
    prints = {i: f for r in results for i, f in r.fingerprints.items()}
    _write_sidecars(store, manifest, new["id"].to_pylist(), prints, replace=old is None)
    store.write_table("index.parquet", index)
    preprocessing = dataclasses.asdict(settings)
    ids = sorted(index["id"].to_pylist())
    quarantined = len(store.read_table("quarantine.parquet"))
    info = PoolInfo(
        modalities=modalities,
        classes=classes,
        preprocessing=preprocessing,
        preprocessing_hash=f"{hashing.digest(json.dumps(preprocessing, sort_keys=True)):016x}",
        content_hash=f"{hashing.digest(json.dumps(preprocessing, sort_keys=True), *ids):016x}",
        counts={
            "items": len(index),
            **{part: index["split"].to_pylist().count(part) for part in SPLITS},
            "labelled": len(store.read_table("sidecar/labels.parquet")),
            "quarantined": quarantined,
            "missing": {m.name: len(index) - pc.sum(index[f"present_{m.name}"]).as_py() for m in modalities},
        },
    )
    info.write(store)
    return info


def _write_sidecars(
    store: Store, manifest: Manifest, ids: Sequence[str], fingerprints: dict[str, str], *, replace: bool
) -> None:
    table = manifest.table.filter(pc.is_in(manifest.table["id"], pa.array(ids, pa.string())))
    uris = [s.column for s in manifest.sources if s.kind == "uri"]
    where = [" ".join(u for u in row if u) for row in zip(*(table[c].to_pylist() for c in uris), strict=True)]
    names = table["id"].to_pylist()
    sources = {
        "id": names,
        "uri": pa.array(where or [""] * len(names), pa.string()),
        "fingerprint": pa.array([fingerprints[i] for i in names], pa.string()),
    }
    tables = {
        "labels": table.select(["id", "label"]).filter(pc.is_valid(table["label"])),
        "groups": table.select(["id", "group"]).filter(pc.is_valid(table["group"])),
        "sources": pa.table(sources),
    }
    for name, content in tables.items():
        file = f"sidecar/{name}.parquet"
        if not replace:
            before = store.read_table(file)
            before = before.filter(pc.invert(pc.is_in(before["id"], content["id"])))
            content = pa.concat_tables([before, content.cast(before.schema)])
        store.write_table(file, content)
