"""Preparing a pool: every item is decoded once, over the whole cluster, into shards of tensors.

Ray Data streams one row a shard to be made through decoding. A shard is written whole, then its record; a
preparation that was interrupted goes on with the shards that have no record. `pool.yaml` is written last.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from collections.abc import Iterator, Sequence
from typing import Any

import ray.data
from tqdm import tqdm

from raybal.data.convert import Chunk, Converted, Preprocessing, convert
from raybal.data.demo import make_demo
from raybal.data.manifest import Source, read_manifest
from raybal.data.plan import (
    PrepareConfig,
    assign_splits,
    check_same,
    class_list,
    is_current,
    make_chunks,
    new_rows,
)
from raybal.data.probe import find_modalities
from raybal.data.publish import Prepared, publish, relabel, with_statistics, write_quarantine
from raybal.data.schema import Modality, PoolInfo
from raybal.errors import DataError, shorten
from raybal.media.audio import AudioSettings
from raybal.media.video import VideoSettings
from raybal.settings import from_plain
from raybal.store import Store

STAGING = "staging"
DEMO = "demo"

log = logging.getLogger(__name__)


def prepare(config: PrepareConfig) -> PoolInfo:
    """Prepares a pool. Ray must be connected.

    Returns:
        What `pool.yaml` says afterwards.

    Raises:
        DataError: the input cannot be used, too much of it is damaged, or it does not fit the pool that is there.
    """
    started = time.monotonic()
    manifest, store = read_manifest(config.input), Store(config.output)
    old = PoolInfo.read(store) if store.exists("pool.yaml") else None
    todo = new_rows(manifest, store, old)
    classes = class_list(config, manifest, old)
    if old is None:
        modalities, settings = find_modalities(manifest, config.preprocessing)
    else:
        check_same(config, manifest, store, old)
        if not len(todo):
            return relabel(config, manifest, store, old, classes)
        modalities, settings = old.modalities, from_plain(Preprocessing, old.preprocessing)
    splits = assign_splits(config, manifest, store, old)
    chunks = make_chunks(manifest, todo, splits, modalities, settings)
    log.info("preparing %d items in %d shards: %s", len(todo), len(chunks), _describe(modalities))
    results = _run(config, chunks, manifest.sources, modalities, settings, store)
    bad = [b for r in results for b in r.bad]
    write_quarantine(store, bad, {i for c in chunks for i in c.ids})
    _check_damage(config, len(bad), len(todo), bad)
    if old is None:
        modalities = with_statistics(modalities, results)
    new = Prepared(chunks, results, dict(zip(manifest.table["id"].to_pylist(), splits, strict=True)))
    info = publish(config, manifest, store, old, modalities, settings, classes, new)
    store.clear(STAGING)
    log.info(
        "prepared %s: %d items, %d in quarantine, %.1f s",
        config.output,
        info.counts["items"],
        info.counts["quarantined"],
        time.monotonic() - started,
    )
    return info


def demo_pool() -> str:
    """Returns the folder of the built-in pool, made and prepared once and then kept in the user's cache."""
    source = make_demo()
    small = Preprocessing(
        video=VideoSettings(frames=8, height=32, width=32, color="gray"), audio=AudioSettings(seconds=1.0)
    )
    output = str(source.parent / f"{source.name}-pool")
    prepare(PrepareConfig(input=str(source), output=output, preprocessing=small))
    return output


def _run(
    config: PrepareConfig,
    chunks: Sequence[Chunk],
    sources: tuple[Source, ...],
    modalities: tuple[Modality, ...],
    settings: Preprocessing,
    store: Store,
) -> list[Converted]:
    """Makes all shards; returns what became of each chunk, in order."""
    names = set(store.names(STAGING))
    results = {c.name: _read_record(store, c.name) for c in chunks if f"{c.name}.json" in names}
    results = {c.name: results[c.name] for c in chunks if c.name in results and is_current(c, results[c.name])}
    left = [c for c in chunks if c.name not in results]
    if len(left) < len(chunks):
        log.info("preparation continues: %d of %d shards are done", len(chunks) - len(left), len(chunks))
    total, bad = sum(len(c.ids) for c in chunks), sum(len(r.bad) for r in results.values())
    with tqdm(total=total, unit="items", desc="prepare", mininterval=1.0) as bar:
        bar.update(sum(len(c.ids) for c in chunks if c.name in results))
        for name, count in _stream(left, sources, modalities, settings, store):
            results[name] = _read_record(store, name)
            bad += len(results[name].bad)
            bar.update(count)
            if bad > config.max_damage * total:
                found = [b for r in results.values() for b in r.bad]
                write_quarantine(store, found, {i for c in chunks for i in c.ids if c.name in results})
                _check_damage(config, bad, total, found)
    return [results[c.name] for c in chunks]


def _stream(
    chunks: Sequence[Chunk],
    sources: tuple[Source, ...],
    modalities: tuple[Modality, ...],
    settings: Preprocessing,
    store: Store,
) -> Iterator[tuple[str, int]]:
    """Yields (shard, number of items) as shards are finished."""
    if not chunks:
        return
    # This has its own progress bar, in items.
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    plan = {c.name: ray.put(c) for c in chunks}

    def make(row: dict[str, Any]) -> dict[str, Any]:
        chunk: Chunk = ray.get(plan[row["shard"]])
        table, result = convert(chunk, sources, modalities, settings)
        store.write_table(f"shards/{chunk.name}.parquet", table, compression="none")
        store.write_bytes(f"{STAGING}/{chunk.name}.json", json.dumps(dataclasses.asdict(result)).encode())
        return {"shard": chunk.name, "items": len(chunk.ids)}

    rows = ray.data.from_items([{"shard": c.name} for c in chunks], override_num_blocks=len(chunks))
    for row in rows.map(make, num_cpus=1).iter_rows():
        yield row["shard"], row["items"]


def _read_record(store: Store, name: str) -> Converted:
    return from_plain(Converted, json.loads(store.read_bytes(f"{STAGING}/{name}.json")))


def _check_damage(config: PrepareConfig, bad: int, total: int, found: Sequence[tuple[str, ...]]) -> None:
    share = bad / max(total, 1)
    if share > config.max_damage:
        examples = shorten([f"{item} ({reason})" for item, _, _, reason, _ in found], 3)
        raise DataError(
            f"{bad} of {total} items ({100 * share:.1f} %) are damaged, more than the {100 * config.max_damage:g} % "
            f"accepted: {examples}. All are listed in {config.output}/quarantine.parquet; mend them or accept more "
            "with --max-damage, and run the same command again: what is done is kept"
        )


def _describe(modalities: Sequence[Modality]) -> str:
    return ", ".join(f"{m.name} ({m.kind} {'x'.join(map(str, m.shape))})" for m in modalities)
