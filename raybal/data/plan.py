"""The parameters of a preparation, and what they make of an input: its classes, its splits, its shards."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raybal import hashing
from raybal.data.chunk import Chunk, Converted, Preprocessing
from raybal.data.files import fingerprint_of, item_fingerprints
from raybal.data.layouts.base import LayoutSettings
from raybal.data.manifest import Manifest
from raybal.data.schema import Modality, PoolInfo
from raybal.data.split import assign_groups
from raybal.errors import ConfigError, DataError, shorten
from raybal.settings import Settings, setting

SHARD_BYTES = 64 * 2**20
_NUMBER = re.compile(r"-?[0-9]+")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PrepareConfig(Settings):
    """Turns media files, Parquet with media inside, or precomputed features into a prepared pool.

    Columns of the input: id, label, group, split (the last three optional), and media: `uri` (a clip), `<name>_uri`
    (one file a modality), bytes, or lists of numbers. A bare folder of media files works too, and with --layout.name
    the folder of a known data set.

    Run it again to add what is new in the input; what is prepared already is not done again. Preprocessing that is
    left at its defaults is then that of the pool.
    """

    input: str = setting(help="manifest (.csv, .parquet), Parquet with media inside, or a folder; a path or URI")
    output: str = setting(help="folder or URI of the prepared pool")
    layout: LayoutSettings = setting(
        factory=LayoutSettings, help="the data set that the input is, where it is one as it is distributed"
    )
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
    max_damage: float = setting(0.05, ge=0, le=1, help="share of damaged items above which an input is refused")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.test_share + self.val_share >= 1:
            raise ConfigError(
                f"val_share: {self.val_share} is not accepted; with test_share ({self.test_share}) it must leave "
                "something to train on"
            )


def splitting(config: PrepareConfig) -> dict[str, Any]:
    """Returns what a split depends on where the input has none."""
    return {"test_share": config.test_share, "val_share": config.val_share, "seed": config.seed}


def is_split_here(manifest: Manifest) -> bool:
    """Returns whether the split is not the input's own, and there is something to test on."""
    return manifest.table["split"].null_count > 0 and manifest.table["label"].null_count < len(manifest.table)


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
        numbers = all(_NUMBER.fullmatch(label) for label in found)
        classes = sorted(found, key=lambda label: (int(label) if numbers else 0, label)) or None
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


def assign_splits(config: PrepareConfig, manifest: Manifest, taken: Mapping[str, str]) -> list[str]:
    """Returns the split of each row of the manifest; groups that the pool has keep theirs.

    Args:
        config: with the shares.
        manifest: the input.
        taken: the split of each group, and of each item, in the pool.
    """
    ids, groups = manifest.table["id"].to_pylist(), manifest.table["group"].to_pylist()
    groups = [g if g is not None else i for g, i in zip(groups, ids, strict=True)]
    if manifest.table["split"].null_count == 0:
        splits = manifest.table["split"].to_pylist()
        _warn_of_leaks(groups, splits)
        return splits
    if not is_split_here(manifest):
        return [taken.get(group, "train") for group in groups]
    shares = {"train": 1 - config.test_share - config.val_share, "test": config.test_share, "val": config.val_share}
    shares = {part: share for part, share in shares.items() if share > 0}
    splits = assign_groups(groups, shares, hashing.digest(config.seed, "split"), taken=taken)
    for part in sorted({*shares} - {*splits, *taken.values()}):
        log.warning(
            "no item is in the %s split: %d groups, the largest of %d of %d items, are too few or too large for a "
            "share of %g; give smaller groups, another --%s-share, or a split column",
            part,
            len(set(groups)),
            max(Counter(groups).values()),
            len(groups),
            shares[part],
            part,
        )
    return splits


def _warn_of_leaks(groups: Sequence[str], splits: Sequence[str]) -> None:
    sides: dict[str, set[str]] = {}
    for group, split in zip(groups, splits, strict=True):
        sides.setdefault(group, set()).add(split)
    leaks = [group for group, parts in sides.items() if len(parts) > 1]
    if leaks:
        log.warning("the split column has %d groups on more than one side: %s", len(leaks), shorten(leaks))


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
    made = record.fingerprints | {row[0]: row[-1] for row in record.bad}
    own = item_fingerprints(list(chunk.uris.values())) if chunk.uris else [""] * len(chunk.ids)
    now = [fingerprint_of([o] if o else [], chunk.file_fingerprint) for o in own]
    return now == [made[i].partition("#")[0] for i in chunk.ids]
