"""What a preparation has to do: which rows are new, their classes and splits, and how they are cut into shards."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raybal import hashing
from raybal.data.convert import Chunk, Converted, Preprocessing, fingerprints
from raybal.data.manifest import Manifest
from raybal.data.schema import Modality, PoolInfo
from raybal.data.split import assign_groups
from raybal.errors import ConfigError, DataError, shorten
from raybal.settings import Settings, setting
from raybal.store import Store

SHARD_BYTES = 64 * 2**20


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


def new_rows(manifest: Manifest, store: Store, old: PoolInfo | None) -> NDArray[np.int64]:
    """Returns the rows of the manifest that are to be prepared: new ones, and those in quarantine whose files have
    changed since.

    Raises:
        DataError: a file has changed since it was prepared.
    """
    if old is None:
        return np.arange(len(manifest.table))
    prepared = _fingerprints(store, old.sidecar("sources"))
    quarantined = _fingerprints(store, "quarantine.parquet")
    files = np.repeat(np.array(manifest.files, dtype=object), manifest.file_rows)
    uris = [manifest.table[s.column].to_pylist() for s in manifest.sources if s.kind == "uri"]
    ids = manifest.table["id"].to_pylist()
    seen = [row for row, item in enumerate(ids) if item in prepared or item in quarantined]
    prints = dict(zip(seen, item_fingerprints([[column[row] for row in seen] for column in uris]), strict=bool(uris)))
    todo = np.setdiff1d(np.arange(len(ids)), seen).tolist()
    changed = []
    for row in seen:
        item = ids[row]
        if uris:
            now = prints[row]
        else:
            now = manifest.fingerprints[files[row]] if item in quarantined else ""
        if item in prepared and now != prepared[item]:
            changed.append(item)
        elif item not in prepared and now != quarantined[item]:
            todo.append(row)
    if changed:
        raise DataError(
            f"the files of {len(changed)} items have changed since they were prepared: {shorten(changed)}; give the "
            "new content a new id, or prepare into another folder"
        )
    return np.array(sorted(todo), np.int64)


def item_fingerprints(uris: Sequence[Sequence[str | None]]) -> list[str]:
    """Returns the fingerprints of each item's files, from columns of uris."""
    cells = list({uri for column in uris for uri in column if uri})
    print_of = dict(zip(cells, fingerprints(cells), strict=True))
    return [" ".join(print_of[uri] for uri in row if uri) for row in zip(*uris, strict=True)]


def _fingerprints(store: Store, name: str) -> dict[str, str]:
    table = store.read_table(name, columns=["id", "fingerprint"])
    return dict(zip(table["id"].to_pylist(), table["fingerprint"].to_pylist(), strict=True))


def check_same(config: PrepareConfig, manifest: Manifest, store: Store, old: PoolInfo) -> None:
    """Raises if parameters or splits that are given differ from those the pool was prepared with."""
    if splitting(config) != old.splitting and _is_split_here(manifest):
        was, now = ", ".join(f"{k} {v}" for k, v in old.splitting.items()), splitting(config)
        raise DataError(
            f"{config.output} was split with {was}, and now with {', '.join(f'{k} {v}' for k, v in now.items())}; "
            "prepare into another folder, or give the old values"
        )
    given = _flat(dataclasses.asdict(config.preprocessing))
    defaults = _flat(dataclasses.asdict(Preprocessing()))
    for key, value in _flat(old.preprocessing).items():
        if given[key] not in (value, defaults[key]) or (given[key] != value and value == defaults[key]):
            raise DataError(
                f"{config.output} was prepared with preprocessing.{key} = {value}, and now it is {given[key]}; "
                "prepare into another folder, or give the old value"
            )
    if manifest.table["split"].null_count:
        return
    index = store.read_table(old.index, columns=["id", "split"])
    before = dict(zip(index["id"].to_pylist(), index["split"].to_pylist(), strict=True))
    for item, split in zip(manifest.table["id"].to_pylist(), manifest.table["split"].to_pylist(), strict=True):
        if before.get(item, split) != split:
            raise DataError(
                f"item {item} is in the {before[item]} split of {config.output}, and now in {split}; splits stay: "
                "give the old one, or prepare into another folder"
            )


def splitting(config: PrepareConfig) -> dict[str, Any]:
    """Returns what a split depends on where the input has none."""
    return {"test_share": config.test_share, "val_share": config.val_share, "seed": config.seed}


def _is_split_here(manifest: Manifest) -> bool:
    """Whether the split is not the input's own, and there is something to test on."""
    return manifest.table["split"].null_count > 0 and manifest.table["label"].null_count < len(manifest.table)


def _flat(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in content.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def class_list(config: PrepareConfig, manifest: Manifest, old: PoolInfo | None) -> tuple[str, ...] | None:
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
            f"classes are {shorten(classes, 40)}; the whole list can be given with --classes"
        )
    return tuple(classes)


def assign_splits(config: PrepareConfig, manifest: Manifest, store: Store, old: PoolInfo | None) -> list[str]:
    """Returns the split of each row of the manifest; groups that are assigned already keep theirs."""
    table = manifest.table
    if table["split"].null_count == 0:
        return table["split"].to_pylist()
    if not _is_split_here(manifest):
        return ["train"] * len(table)
    ids = table["id"].to_pylist()
    groups = [g if g is not None else i for g, i in zip(table["group"].to_pylist(), ids, strict=True)]
    taken = {}
    if old is not None:
        index = store.read_table(old.index, columns=["id", "split"])
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
            chunk = Chunk(
                name="",
                ids=tuple(part["id"].to_pylist()),
                uris={column: tuple(part[column].to_pylist()) for column in uris},
                file=file,
                file_fingerprint=manifest.fingerprints[file] if file else "",
                rows=tuple((rows - low).tolist()),
                train=tuple(splits[r] == "train" for r in rows),
            )
            name = f"{hashing.digest(chunk, manifest.sources, modalities, settings):016x}"
            chunks.append(dataclasses.replace(chunk, name=name))
    return chunks


def is_current(chunk: Chunk, record: Converted) -> bool:
    """Returns whether a shard that an interrupted preparation made is still what its files would give."""
    if not chunk.uris:
        return True
    made = record.fingerprints | {item: now for item, _, _, _, now in record.bad}
    return item_fingerprints(list(chunk.uris.values())) == [made[i] for i in chunk.ids]
