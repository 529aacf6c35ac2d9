"""Preparing a pool: every item is decoded once, over the whole cluster, into shards of tensors.

Ray Data streams one row a shard to be made through decoding. A shard is written whole, then its record; a
preparation that was interrupted goes on with the shards that have no record. `pool.yaml` is written last. One driver
at a time holds the pool's lease; an input that the pool has already is looked at without it.
"""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray.data
from tqdm import tqdm

from raybal.data.chunk import Chunk, Converted, Preprocessing
from raybal.data.demo import make_demo
from raybal.data.known import Known, look_up
from raybal.data.layouts.base import read_layout
from raybal.data.manifest import Manifest, read_manifest
from raybal.data.plan import PrepareConfig, assign_splits, class_list, is_current, make_chunks
from raybal.data.probe import find_modalities
from raybal.data.publish import Prepared, is_up_to_date, publish, with_statistics
from raybal.data.quarantine import DamageLimit, Row
from raybal.data.schema import STAGING, Modality, PoolInfo
from raybal.data.shard import forget_attempts, make_shard, read_record, read_records
from raybal.data.sources import Source
from raybal.errors import ConfigError, DataError, RaybalError, StoreError
from raybal.lease import Lease
from raybal.media.audio import AudioSettings
from raybal.media.video import VideoSettings
from raybal.settings import from_plain
from raybal.store import Store

DEMO = "demo"
FOLDERS = ("shards", "tables", STAGING)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Work:
    """What an input asks of a pool: the pool's description or None, what it has already, the class list."""

    old: PoolInfo | None
    known: Known
    classes: tuple[str, ...] | None


def prepare(config: PrepareConfig) -> PoolInfo:
    """Prepares a pool. Ray must be connected.

    Returns:
        What `pool.yaml` says afterwards.

    Raises:
        DataError: the input cannot be used, too much of it is damaged, or it does not fit the pool that is there.
        StoreError: the pool cannot be written, or another preparation is at work on it.
    """
    manifest, store = _read(config), Store(config.output)
    _check_apart(config, store)
    work = _compare(config, manifest, store)
    if not _is_done(config, manifest, store, work):
        with Lease(store) as lease:
            store.sweep(FOLDERS)
            if _read_info(store) != work.old:
                # Another preparation ended between the two looks.
                work = _compare(config, manifest, store)
            if not _is_done(config, manifest, store, work):
                return _prepare(config, manifest, store, work, lease)
    assert work.old is not None
    return work.old


def demo_pool() -> str:
    """Returns the folder of the built-in pool, made and prepared once and then kept in the user's cache."""
    source = make_demo()
    small = Preprocessing(
        video=VideoSettings(frames=8, height=32, width=32, color="gray"), audio=AudioSettings(seconds=1.0)
    )
    output = str(source.parent / f"{source.name}-pool")
    prepare(PrepareConfig(input=str(source), output=output, preprocessing=small))
    return output


def _read(config: PrepareConfig) -> Manifest:
    if config.layout.name is None:
        return read_manifest(config.input)
    return read_layout(config.layout, config.input)


def _check_apart(config: PrepareConfig, store: Store) -> None:
    if _place(Store(config.input)) == _place(store):
        raise ConfigError(f"output: {config.output!r} is not accepted, it is the input; give a folder of its own")


def _place(store: Store) -> tuple[str, str, str]:
    if store.is_local:
        return "", os.path.realpath(store.path()), ""
    scheme, _, rest = store.root.partition("://")
    return scheme, store.path(), rest.partition("?")[2]


def _read_info(store: Store) -> PoolInfo | None:
    return PoolInfo.read(store) if store.exists("pool.yaml") else None


def _compare(config: PrepareConfig, manifest: Manifest, store: Store) -> _Work:
    old = _read_info(store)
    known = look_up(config, manifest, store, old)
    return _Work(old, known, class_list(config, manifest, old))


def _is_done(config: PrepareConfig, manifest: Manifest, store: Store, work: _Work) -> bool:
    if work.old is None or not is_up_to_date(manifest, store, work.old, work.known, work.classes):
        return False
    log.info("%s is up to date: %d items, nothing to do", config.output, work.old.counts["items"])
    return True


def _prepare(config: PrepareConfig, manifest: Manifest, store: Store, work: _Work, lease: Lease) -> PoolInfo:
    """Does what there is to do, with the lease in hand."""
    started = time.monotonic()
    old, known = work.old, work.known
    if old is None:
        modalities, settings = find_modalities(manifest, config.preprocessing)
    else:
        modalities, settings = old.modalities, from_plain(Preprocessing, old.preprocessing)
    new = Prepared()
    if len(known.todo):
        new = _run(config, manifest, store, known, modalities, settings)
        if old is None:
            modalities = with_statistics(modalities, new.results)
    lease.check()
    info = publish(config, manifest, store, old, known, modalities, settings, work.classes, new)
    store.clear(STAGING)
    if not new.chunks:
        log.info("%s: labels, groups and classes brought up to date", config.output)
        return info
    log.info(
        "prepared %s: %d items, %d of them now, %d labelled, %d in quarantine, %.1f s",
        config.output,
        info.counts["items"],
        sum(len(r.ids) for r in new.results),
        info.counts["labelled"],
        info.counts["quarantined"],
        time.monotonic() - started,
    )
    return info


def _run(
    config: PrepareConfig,
    manifest: Manifest,
    store: Store,
    known: Known,
    modalities: tuple[Modality, ...],
    settings: Preprocessing,
) -> Prepared:
    """Makes all shards."""
    splits = assign_splits(config, manifest, known.taken)
    chunks = make_chunks(manifest, known.todo, splits, modalities, settings)
    log.info("preparing %d items in %d shards: %s", len(known.todo), len(chunks), _describe(modalities))
    limit = DamageLimit(config.max_damage, len(manifest.table), known.quarantined, known.items + len(known.todo))
    forget_attempts(store)
    results = {c.name: r for c, r in read_records(store, chunks) if is_current(c, r)}
    left = [c for c in chunks if c.name not in results]
    if results:
        log.info("preparation continues: %d of %d shards are done", len(results), len(chunks))
    limit.check(_bad(results.values()), store)
    with tqdm(total=len(known.todo), unit="items", desc="prepare", mininterval=1.0) as bar:
        bar.update(len(known.todo) - sum(len(c.ids) for c in left))
        for chunk in _stream(left, manifest.sources, modalities, settings, store):
            results[chunk.name] = read_record(store, chunk.name)
            bar.update(len(chunk.ids))
            limit.check(_bad(results.values()), store)
    made = [results[c.name] for c in chunks]
    if known.items == 0 and not any(r.ids for r in made):
        limit.refuse(_bad(made), store)
    _warn_of_unused(made)
    return Prepared(chunks, made, dict(zip(manifest.table["id"].to_pylist(), splits, strict=True)))


def _stream(
    chunks: Sequence[Chunk],
    sources: tuple[Source, ...],
    modalities: tuple[Modality, ...],
    settings: Preprocessing,
    store: Store,
) -> Iterator[Chunk]:
    """Yields shards as they are finished."""
    if not chunks:
        return
    # This has its own progress bar, in items.
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    by_name = {c.name: c for c in chunks}
    plan = {c.name: ray.put(c) for c in chunks}

    def make(row: dict[str, Any]) -> dict[str, Any]:
        try:
            make_shard(ray.get(plan[row["shard"]]), sources, modalities, settings, store)
        # Ray Data would wrap it into a traceback of its own, without its cause.
        except RaybalError as error:
            return {"shard": row["shard"], "error": str(error), "is_storage": isinstance(error, StoreError)}
        return {"shard": row["shard"], "error": "", "is_storage": False}

    rows = ray.data.from_items([{"shard": c.name} for c in chunks], override_num_blocks=len(chunks))
    for row in rows.map(make, num_cpus=1).iter_rows():
        if row["error"]:
            raise StoreError(row["error"]) if row["is_storage"] else DataError(row["error"])
        yield by_name[row["shard"]]


def _bad(results: Iterable[Converted]) -> list[Row]:
    return [row for r in results for row in r.bad]


def _warn_of_unused(results: Sequence[Converted]) -> None:
    counts = Counter[str]()
    for result in results:
        counts.update(result.unused)
    for track, count in counts.items():
        log.warning(
            "%d clips have %s, which is no modality of the pool; to have it, prepare into another folder with the "
            "clips in a column %s_uri too",
            count,
            {"audio": "sound", "video": "pictures"}[track],
            track,
        )


def _describe(modalities: Sequence[Modality]) -> str:
    return ", ".join(f"{m.name} ({m.kind} {'x'.join(map(str, m.shape))})" for m in modalities)
