"""Preparing a pool: every item is decoded once, over the whole cluster, into shards of tensors.

Ray Data streams one row a shard to be made through decoding. A shard is written whole, then its record; a
preparation that was interrupted goes on with the shards that have no record. `pool.yaml` is written last.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import math
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray.data
from numpy.typing import NDArray
from tqdm import tqdm

from raybal import hashing
from raybal.data.convert import Chunk, Converted, Preprocessing, convert, fingerprints
from raybal.data.demo import make_demo
from raybal.data.manifest import SPLITS, Manifest, Source, read_manifest
from raybal.data.probe import find_modalities
from raybal.data.schema import Modality, PoolInfo
from raybal.data.split import assign_groups
from raybal.errors import ConfigError, DataError, shorten
from raybal.media.audio import AudioSettings
from raybal.media.video import VideoSettings
from raybal.settings import Settings, from_plain, setting
from raybal.store import Store

STAGING = "staging"
SHARD_BYTES = 64 * 2**20
DEMO = "demo"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PrepareConfig(Settings):
    """Turns media files, Parquet with media inside, or precomputed features into a prepared pool.

    Columns of the input: id, label, group, split (the last three optional), and media: `uri` (a clip), `<name>_uri`
    (one file a modality), bytes, or lists of numbers. A bare folder of media files works too.

    Run it again to add what is new in the input; what is prepared already is not done again.
    """

    input: str = setting(help="manifest (.csv, .parquet), Parquet with media inside, or a folder; a path or URI")
    output: str = setting(help="folder or URI of the prepared pool")
    preprocessing: Preprocessing = setting(factory=Preprocessing, help="what shapes the tensors")
    classes: list[str] | None = setting(None, help="class names in order; none: those that occur among the labels")
    test_share: float = setting(
        0.2,
        ge=0,
        lt=1,
        help="share of the items in the test split (whole groups), where the input has labels but no split column",
    )
    val_share: float = setting(
        0.0, ge=0, lt=1, help="likewise for a fixed validation split; 0: the loop takes a share of its answers"
    )
    seed: int = setting(0, ge=0, help="of the split")
    max_damage: float = setting(0.05, ge=0, le=1, help="share of damaged items above which preparation stops")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.test_share + self.val_share >= 1:
            raise ConfigError(
                f"val_share: {self.val_share} is not accepted; with test_share ({self.test_share}) it must leave "
                "something to train on"
            )


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
    todo = _new_rows(manifest, store)
    if old is not None and not len(todo):
        _check_same(config, old)
        log.info("%s is up to date: %d items, nothing to do", config.output, old.counts["items"])
        return old
    classes = _classes(config, manifest, old)
    if old is None:
        modalities, settings = find_modalities(manifest, config.preprocessing)
    else:
        _check_same(config, old)
        modalities, settings = old.modalities, from_plain(Preprocessing, old.preprocessing)
    splits = _splits(config, manifest, store if old else None)
    chunks = make_chunks(manifest, todo, splits, modalities, settings)
    log.info("preparing %d items in %d shards: %s", len(todo), len(chunks), _describe(modalities))
    results = _run(config, chunks, manifest.sources, modalities, settings, store)
    bad = [b for r in results for b in r.bad]
    _write_quarantine(store, bad, {i for c in chunks for i in c.ids})
    _check_damage(config, len(bad), len(todo), bad)
    if old is None:
        modalities = _with_statistics(modalities, results)
    info = _finish(config, manifest, store, old, modalities, settings, classes, splits, chunks, results)
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
                _write_quarantine(store, found, {i for c in chunks for i in c.ids if c.name in results})
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


def _new_rows(manifest: Manifest, store: Store) -> NDArray[np.int64]:
    """Returns the rows of the manifest that are to be prepared: new ones, and those in quarantine whose files have
    changed since.

    Raises:
        DataError: a file has changed since it was prepared.
    """
    if not store.exists("pool.yaml"):
        return np.arange(len(manifest.table))
    prepared = _fingerprints(store, "sidecar/sources.parquet")
    quarantined = _fingerprints(store, "quarantine.parquet")
    files = np.repeat(np.array(manifest.files, dtype=object), manifest.file_rows)
    uris = [manifest.table[s.column].to_pylist() for s in manifest.sources if s.kind == "uri"]
    ids = manifest.table["id"].to_pylist()
    seen = [row for row, item in enumerate(ids) if item in prepared or item in quarantined]
    cells = {uri for column in uris for row in seen if (uri := column[row])}
    print_of = dict(zip(cells, fingerprints(list(cells)), strict=True))
    todo = np.setdiff1d(np.arange(len(ids)), seen).tolist()
    changed = []
    for row in seen:
        item = ids[row]
        if uris:
            now = " ".join(print_of[column[row]] for column in uris if column[row])
        else:
            now = manifest.fingerprints[files[row]] if item in quarantined else ""
        if item in prepared and now != prepared[item]:
            changed.append(item)
        elif item not in prepared and now != quarantined[item]:
            todo.append(row)
    if changed:
        raise DataError(
            f"{len(changed)} files have changed since they were prepared: {shorten(changed)}; give the new content a "
            "new id, or prepare into another folder"
        )
    return np.array(sorted(todo), np.int64)


def _fingerprints(store: Store, name: str) -> dict[str, str]:
    table = store.read_table(name, columns=["id", "fingerprint"])
    return dict(zip(table["id"].to_pylist(), table["fingerprint"].to_pylist(), strict=True))


def _check_same(config: PrepareConfig, old: PoolInfo) -> None:
    """Raises if parameters that are given differ from those the pool was prepared with."""
    given = _flat(dataclasses.asdict(config.preprocessing))
    defaults = _flat(dataclasses.asdict(Preprocessing()))
    for key, value in _flat(old.preprocessing).items():
        if given[key] not in (value, defaults[key]) or (given[key] != value and value == defaults[key]):
            raise DataError(
                f"{config.output} was prepared with preprocessing.{key} = {value}, and now it is {given[key]}; "
                "prepare into another folder, or give the old value"
            )


def _flat(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in content.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _classes(config: PrepareConfig, manifest: Manifest, old: PoolInfo | None) -> tuple[str, ...] | None:
    """Returns the class list: as given, or as the pool has it, or all labels that occur.

    Raises:
        DataError: a label is outside the list.
    """
    labels = manifest.table["label"]
    found = pc.unique(labels.drop_null()).to_pylist()
    if config.classes is not None:
        classes: Sequence[str] | None = config.classes
    elif old is not None and old.classes is not None:
        classes = old.classes
    else:
        numbers = all(label.lstrip("-").isdigit() for label in found)
        classes = sorted(found, key=int if numbers else str) or None
    if classes is None:
        return None
    unknown = set(found) - set(classes)
    if unknown:
        row = pc.index(labels, sorted(unknown)[0]).as_py()
        raise DataError(
            f"item {manifest.table['id'][row].as_py()} has label {labels[row].as_py()!r}, which is not a class; "
            f"classes are {shorten(classes, 40)}"
        )
    return tuple(classes)


def _splits(config: PrepareConfig, manifest: Manifest, store: Store | None) -> list[str]:
    """Returns the split of each row of the manifest; groups that are assigned already keep theirs."""
    table = manifest.table
    if table["split"].null_count == 0:
        return table["split"].to_pylist()
    if table["label"].null_count == len(table):
        # Nothing could be tested on.
        return ["train"] * len(table)
    ids = table["id"].to_pylist()
    groups = [g if g is not None else i for g, i in zip(table["group"].to_pylist(), ids, strict=True)]
    taken = {}
    if store is not None:
        index = store.read_table("index.parquet", columns=["id", "split"])
        before = dict(zip(index["id"].to_pylist(), index["split"].to_pylist(), strict=True))
        taken = {g: before[i] for g, i in zip(groups, ids, strict=True) if i in before}
    shares = {"train": 1 - config.test_share - config.val_share, "test": config.test_share, "val": config.val_share}
    shares = {part: share for part, share in shares.items() if share > 0}
    return assign_groups(groups, shares, hashing.digest(config.seed, "split"), taken=taken)


def make_chunks(
    manifest: Manifest,
    todo: NDArray[np.int64],
    splits: Sequence[str],
    modalities: tuple[Modality, ...],
    settings: Preprocessing,
) -> list[Chunk]:
    """Cuts the rows to be done into shards of about 64 MB, but into 16 or so where that would make fewer."""
    size = sum(math.prod(m.shape) * np.dtype(m.dtype).itemsize for m in modalities)
    count = max(1, min(SHARD_BYTES // size, max(64, math.ceil(len(todo) / 16))))
    table, uris = manifest.table, [s.column for s in manifest.sources if s.kind == "uri"]
    # A shard must not straddle two input files.
    bounds = np.cumsum([0, *manifest.file_rows]) if manifest.files else np.array([0, len(table)])
    chunks = []
    for number, (low, high) in enumerate(itertools.pairwise(bounds.tolist())):
        inside = todo[(todo >= low) & (todo < high)]
        file = manifest.files[number] if manifest.files else None
        for start in range(0, len(inside), count):
            rows = inside[start : start + count]
            part = table.take(pa.array(rows))
            ids = tuple(part["id"].to_pylist())
            chunks.append(
                Chunk(
                    name=f"{hashing.digest(*ids, settings):016x}",
                    ids=ids,
                    uris={column: tuple(part[column].to_pylist()) for column in uris},
                    file=file,
                    file_fingerprint=manifest.fingerprints[file] if file else "",
                    rows=tuple((rows - low).tolist()),
                    train=tuple(splits[r] == "train" for r in rows),
                )
            )
    return chunks


def _check_damage(config: PrepareConfig, bad: int, total: int, found: Sequence[tuple[str, ...]]) -> None:
    share = bad / max(total, 1)
    if share > config.max_damage:
        examples = shorten([f"{item} ({reason})" for item, _, _, reason, _ in found], 3)
        raise DataError(
            f"{bad} of {total} items ({100 * share:.1f} %) are damaged, more than the {100 * config.max_damage:g} % "
            f"accepted: {examples}. All are listed in {config.output}/quarantine.parquet; mend them or accept more "
            "with --max-damage, and run the same command again: what is done is kept"
        )


def _write_quarantine(store: Store, bad: Sequence[tuple[str, ...]], tried: Collection[str]) -> None:
    """Writes the items of this run that could not be prepared beside those of earlier runs that were not tried."""
    rows = []
    if store.exists("quarantine.parquet"):
        rows = [tuple(r.values()) for r in store.read_table("quarantine.parquet").to_pylist() if r["id"] not in tried]
    names = ("id", "uri", "modality", "reason", "fingerprint")
    columns = list(zip(*rows, *bad, strict=True)) or [()] * len(names)
    table = pa.table({n: pa.array(list(c), pa.string()) for n, c in zip(names, columns, strict=True)})
    store.write_table("quarantine.parquet", table)


def _with_statistics(modalities: tuple[Modality, ...], results: Sequence[Converted]) -> tuple[Modality, ...]:
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


def _finish(
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


def _describe(modalities: Sequence[Modality]) -> str:
    return ", ".join(f"{m.name} ({m.kind} {'x'.join(map(str, m.shape))})" for m in modalities)
