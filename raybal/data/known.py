"""What a pool has of an input already, and whether the input still fits the pool."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raybal.data.cells import hash_cells, read_cells
from raybal.data.chunk import Preprocessing
from raybal.data.files import fingerprint_of, item_fingerprints
from raybal.data.manifest import SPLITS, Manifest
from raybal.data.plan import PrepareConfig, is_split_here, splitting
from raybal.data.quarantine import Row, read_quarantine
from raybal.data.schema import PoolInfo
from raybal.errors import DataError, shorten
from raybal.store import Store

_TRACKS = ("video", "audio", "image")


@dataclass(frozen=True)
class Known:
    """What a pool has of an input.

    Attributes:
        todo: rows of the input that are to be prepared: new ones, and those in quarantine whose files have changed.
        fingerprints: of the items that are prepared, by id, as of now.
        quarantined: rows of the quarantine that are not tried again.
        taken: the split of each group, and of each item, in the pool.
        items: number of items in the pool.
    """

    todo: NDArray[np.int64]
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    quarantined: Sequence[Row] = ()
    taken: Mapping[str, str] = field(default_factory=dict)
    items: int = 0


def look_up(config: PrepareConfig, manifest: Manifest, store: Store, old: PoolInfo | None) -> Known:
    """Returns what the pool has of the input.

    Raises:
        DataError: the input does not fit the pool.
    """
    if old is None:
        return Known(np.arange(len(manifest.table)))
    _check_modalities(config, manifest, old)
    _check_parameters(config, manifest, old)
    split_of = _pairs(store, old.index, "split")
    _check_splits(config, manifest, split_of)
    before, quarantine = _pairs(store, old.sidecar("sources"), "fingerprint"), read_quarantine(store)
    ids = manifest.table["id"].to_pylist()
    seen = [row for row, item in enumerate(ids) if item in before or item in quarantine]
    files = dict(zip(seen, _files_now(manifest, seen), strict=True))
    prepared = {row: before[ids[row]] for row in seen if ids[row] in before}
    kept = [row for row in seen if row not in prepared and files[row] == quarantine[ids[row]][-1]]
    return Known(
        todo=np.setdiff1d(np.arange(len(ids)), [*prepared, *kept]),
        fingerprints=_fingerprints_now(config, manifest, old, prepared, files),
        quarantined=[quarantine[ids[row]] for row in kept],
        taken=_taken(config, manifest, split_of, _pairs(store, old.sidecar("groups"), "group")),
        items=len(split_of),
    )


def _pairs(store: Store, table: str, column: str) -> dict[str, str]:
    content = store.read_table(table, columns=["id", column])
    return dict(zip(content["id"].to_pylist(), content[column].to_pylist(), strict=True))


def _check_parameters(config: PrepareConfig, manifest: Manifest, old: PoolInfo) -> None:
    now = splitting(config)
    if now != old.splitting and is_split_here(manifest):
        was = ", ".join(f"{k} {v}" for k, v in old.splitting.items())
        raise DataError(
            f"{config.output} was split with {was}, and now with {', '.join(f'{k} {v}' for k, v in now.items())}; "
            "prepare into another folder, or give the old values"
        )
    given = _flat(dataclasses.asdict(config.preprocessing))
    defaults = _flat(dataclasses.asdict(Preprocessing()))
    shaping = {m.kind for m in old.modalities}
    for key, value in _flat(old.preprocessing).items():
        # A default that was given counts as not given: then the pool's own value is taken.
        if key.split(".")[0] in shaping and given.get(key) not in (value, defaults.get(key)):
            raise DataError(
                f"{config.output} was prepared with preprocessing.{key} = {value}, and now it is {given.get(key)}; "
                "prepare into another folder, or give the old value"
            )


def _flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in content.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _check_modalities(config: PrepareConfig, manifest: Manifest, old: PoolInfo) -> None:
    kinds = {m.name: m.kind for m in old.modalities}
    for source in manifest.sources:
        if source.modality is None:
            fits = any(kinds.get(track) == track for track in _TRACKS)
        elif source.kind in ("features", "sequence"):
            fits = kinds.get(source.modality) == source.kind
        else:
            fits = kinds.get(source.modality) in _TRACKS
        if not fits:
            listed = ", ".join(f"{name} ({kind})" for name, kind in kinds.items())
            raise DataError(
                f"{config.input}: column {source.column!r} does not fit {config.output}, whose modalities are "
                f"{listed}; leave the column out, or prepare into another folder"
            )


def _check_splits(config: PrepareConfig, manifest: Manifest, split_of: Mapping[str, str]) -> None:
    if manifest.table["split"].null_count:
        return
    for item, split in zip(manifest.table["id"].to_pylist(), manifest.table["split"].to_pylist(), strict=True):
        if split_of.get(item, split) != split:
            raise DataError(
                f"item {item} is in the {split_of[item]} split of {config.output}, and now in {split}; splits stay: "
                "give the old one, or prepare into another folder"
            )


def _taken(
    config: PrepareConfig, manifest: Manifest, split_of: Mapping[str, str], before: Mapping[str, str]
) -> dict[str, str]:
    """Returns the split of each group in the pool, with the groups that the input says.

    Args:
        config, manifest: the input.
        split_of: split by id, of all items of the pool.
        before: group by id, of those that have one.

    Raises:
        DataError: an item's new group lies in another split than the item.
    """
    given = zip(manifest.table["id"].to_pylist(), manifest.table["group"].to_pylist(), strict=True)
    changed = {i: g for i, g in given if i in split_of and g is not None and g != before.get(i)}
    group_of = {**before, **changed}
    sides: dict[str, set[str]] = {}
    for item, split in split_of.items():
        sides.setdefault(group_of.get(item, item), set()).add(split)
    if manifest.table["split"].null_count:
        for item, group in changed.items():
            others = sorted(sides[group] - {split_of[item]})
            if others:
                raise DataError(
                    f"item {item} is in the {split_of[item]} split of {config.output}, and its group is now "
                    f"{group!r}, which is in {others[0]}; no group may lie on both sides: give the item its old "
                    f"group ({before.get(item, 'none')}), or prepare into another folder"
                )
    # Where an input with splits of its own had a group on several sides, nothing more of it is trained on. Items are
    # there by their ids too, since an input may list them without their groups.
    return {**split_of, **{group: max(splits, key=SPLITS.index) for group, splits in sides.items()}}


def _files_now(manifest: Manifest, rows: Sequence[int]) -> list[str]:
    """Returns the fingerprints of the files of some items."""
    columns = [manifest.table[s.column].to_pylist() for s in manifest.sources if s.kind == "uri"]
    own = item_fingerprints([[column[row] for row in rows] for column in columns]) if columns else [""] * len(rows)
    if not manifest.files:
        return own
    file_of = np.repeat(np.array(manifest.files, dtype=object), manifest.file_rows)
    return [
        fingerprint_of([now] if now else [], manifest.fingerprints[file_of[row]])
        for row, now in zip(rows, own, strict=True)
    ]


def _fingerprints_now(
    config: PrepareConfig, manifest: Manifest, old: PoolInfo, before: Mapping[int, str], files: Mapping[int, str]
) -> dict[str, str]:
    """Returns the fingerprints of items that are prepared, as of now, by id.

    A Parquet file that rows were added to is another file, with the same cells: these are then read and compared,
    which takes no decoding.

    Args:
        config, manifest: the input.
        old: the pool.
        before: fingerprint by row of the manifest, as they were prepared.
        files: fingerprint of the files by row, as of now.

    Raises:
        DataError: an item is not what it was prepared from.
    """
    now, unsure, changed = {}, [], []
    for row, was in before.items():
        listed, _, cells = was.partition("#")
        # Without a fingerprint the pool cannot tell.
        if not was or listed == files[row]:
            now[row] = was
        elif cells and listed.split(" ")[:-1] == files[row].split(" ")[:-1]:
            unsure.append(row)
        else:
            changed.append(row)
    for row, cells in _hashes(manifest, unsure):
        now[row] = f"{files[row]}#{cells}"
        if cells != before[row].partition("#")[2]:
            changed.append(row)
    ids = manifest.table["id"]
    if changed:
        _refuse(config, manifest, old, [ids[row].as_py() for row in changed])
    return {ids[row].as_py(): fingerprint for row, fingerprint in now.items()}


def _hashes(manifest: Manifest, rows: Sequence[int]) -> list[tuple[int, str]]:
    """Returns (row, hash of its cells) of ascending rows."""
    columns = [s.column for s in manifest.sources if s.kind != "uri"]
    found: list[tuple[int, str]] = []
    start = 0
    for file, count in zip(manifest.files, manifest.file_rows, strict=True):
        inside = [row for row in rows if start <= row < start + count]
        cells = read_cells(file, columns, [row - start for row in inside])
        found += [(row, hash_cells(values)) for row, values in zip(inside, cells, strict=True)]
        start += count
    return found


def _refuse(config: PrepareConfig, manifest: Manifest, old: PoolInfo, changed: Sequence[str]) -> None:
    fed = {s.modality for s in manifest.sources}
    absent = [name for name in old.names if name not in fed and not (None in fed and name in _TRACKS)]
    if absent:
        raise DataError(
            f"{config.input} lists items that {config.output} has ({shorten(changed)}), without a column for their "
            f"modality {absent[0]!r}; give the column, or only new items"
        )
    raise DataError(
        f"the media of {len(changed)} items are gone, or have changed since they were prepared: {shorten(changed)}; "
        "give them back, give new content a new id, or prepare into another folder"
    )
