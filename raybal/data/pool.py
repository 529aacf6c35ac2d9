"""Reading a prepared pool: its index, its shards, and the sidecar tables beside them.

pool.yaml                  schema, preprocessing, classes, counts, and which generation of the tables is current
shards/<name>.parquet      id and one tensor column a modality (null where it is missing)
quarantine.parquet         id, uri, modality, reason, fingerprint of items that could not be prepared
tables/0001/               one generation:
  index.parquet            id, shard, row, split, content, seconds, present_<modality>: where scoring and training find
                           items
  sidecar/labels.parquet   id, label        opened by the oracle and the evaluator only
  sidecar/groups.parquet   id, group        opened by the splitter only
  sidecar/sources.parquet  id, uri, fingerprint     opened by preparation, to see what has changed
staging/                   records of a preparation that goes on, and what a refused one found damaged
lease.yaml, lease.lock     who prepares; readers do not look at them
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raybal.columns import read_tensor
from raybal.data.batches import Items
from raybal.data.room import room
from raybal.data.schema import PoolInfo
from raybal.errors import DataError, shorten
from raybal.store import Store

#: (id, class index) of items.
Labelled = list[tuple[str, int]]


class Pool:
    """A prepared pool, without its labels.

    Args:
        root: folder or URI of the pool.

    Attributes:
        info: the content of pool.yaml.
        ids: all item ids, an Arrow string array in index order; a *position* is an index into it.
        shards: names of the shards, sorted.
        shard_of: index into `shards` of each item, int32 [n].
        row_of: row inside its shard of each item, int32 [n].
        split: "train", "val" or "test" of each item, [n].
        present: bool [n, M].
        seconds: length of each item's media, float64 [n]; nan where it has none, or the pool does not know.

    Raises:
        DataError: there is no usable pool at this place.
    """

    def __init__(self, root: str) -> None:
        self.store = Store(root)
        self.info = PoolInfo.read(self.store)
        index = self.store.read_table(self.info.index)
        self.ids: pa.StringArray = index.column("id").combine_chunks()
        shard = index.column("shard").combine_chunks()
        self.shards: list[str] = sorted(pc.unique(shard).to_pylist())
        self.shard_of = pc.index_in(shard, pa.array(self.shards)).to_numpy().astype(np.int32)
        self.row_of = index.column("row").to_numpy().astype(np.int32)
        self.split = np.asarray(index.column("split").to_pylist(), dtype=object)
        self.present = np.stack(
            [index.column(f"present_{m}").to_numpy(zero_copy_only=False).astype(bool) for m in self.info.names], axis=1
        )
        known = "seconds" in index.column_names
        self.seconds = index.column("seconds").to_numpy().astype(np.float64) if known else np.full(len(index), np.nan)

    def __len__(self) -> int:
        return len(self.ids)

    def positions(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """Returns the positions of ids.

        Raises:
            DataError: an id is not in the pool; the message names it.
        """
        found = pc.index_in(pa.array(ids, pa.string()), self.ids)
        if found.null_count:
            missing = [i for i, p in zip(ids, found.to_pylist(), strict=True) if p is None]
            raise DataError(f"{self.store.root} has no item {shorten(missing)}")
        return found.to_numpy().astype(np.int64)

    def ids_at(self, positions: NDArray[np.int64]) -> list[str]:
        """Returns the ids at some positions."""
        return self.ids.take(pa.array(positions)).to_pylist()

    def positions_in(self, split: str) -> NDArray[np.int64]:
        """Returns the positions of all items of a split."""
        return np.flatnonzero(self.split == split)

    def read(self, positions: NDArray[np.int64]) -> tuple[dict[str, NDArray], NDArray[np.bool_]]:
        """Reads items from their shards.

        Returns:
            ({m: [n, *shape_m]}, present [n, M]) in the order of the positions.
        """
        inputs = {m.name: room((len(positions), *m.shape), m.dtype) for m in self.info.modalities}
        for shard in np.unique(self.shard_of[positions]):
            where = np.flatnonzero(self.shard_of[positions] == shard)
            rows = self.row_of[positions[where]]
            order = np.argsort(rows)
            values = self.read_rows(self.shards[shard], rows[order])
            for m, array in values.items():
                inputs[m][where[order]] = array
        return inputs, self.present[positions]

    def read_rows(self, shard: str, rows: NDArray[np.integer]) -> dict[str, NDArray]:
        """Reads ascending rows of one shard: {m: [len(rows), *shape_m]}; only the row groups that hold them."""
        path = self.store.path(f"shards/{shard}.parquet")
        file = pq.ParquetFile(path, filesystem=self.store.filesystem, memory_map=self.store.is_local)
        sizes = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
        starts = np.concatenate([[0], np.cumsum(sizes)])
        group_of = np.searchsorted(starts, rows, side="right") - 1
        needed = np.unique(group_of)
        table = file.read_row_groups(needed.tolist(), columns=list(self.info.names))
        # Where each needed group starts in the table just read.
        offset = dict(zip(needed.tolist(), np.cumsum([0, *(sizes[g] for g in needed)])[:-1].tolist(), strict=True))
        local = np.array([offset[g] + r - starts[g] for g, r in zip(group_of.tolist(), rows.tolist(), strict=True)])
        everything = len(local) == table.num_rows
        values = {m: read_tensor(table, m)[0] for m in self.info.names}
        return values if everything else {m: v[local] for m, v in values.items()}

    def items(self, ids: Sequence[str], labels: Sequence[int] | None = None) -> Items:
        """Reads items with the labels given (class indices) into memory."""
        inputs, present = self.read(self.positions(ids))
        known = np.full(len(ids), -1, np.int64) if labels is None else np.asarray(labels, np.int64)
        return Items(list(ids), inputs, present, known)


class Sidecar:
    """The tables of a pool that scoring and selection never open."""

    def __init__(self, root: str) -> None:
        self.store = Store(root)
        self.info = PoolInfo.read(self.store)

    def labels(self, ids: Sequence[str]) -> dict[str, str]:
        """Returns the labels of those items whose manifest gave one, by id."""
        return self._pairs("labels", "label", ids)

    def groups(self, ids: Sequence[str]) -> dict[str, str]:
        """Returns the groups of items by id; an item without a group is a group of its own."""
        return {i: i for i in ids} | self._pairs("groups", "group", ids)

    def uris(self, ids: Sequence[str]) -> dict[str, str]:
        """Returns where items came from, by id."""
        return self._pairs("sources", "uri", ids)

    def class_indices(self, ids: Sequence[str], classes: Sequence[str], why: str) -> list[int]:
        """Returns the class indices of items.

        Raises:
            DataError: an item has no label, or one outside the class list.
        """
        labels = self.labels(ids)
        missing = [i for i in ids if i not in labels]
        if missing:
            raise DataError(f"{why}, and there is none for {shorten(missing)}")
        index = {name: i for i, name in enumerate(classes)}
        unknown = [f"{i} ({labels[i]!r})" for i in ids if labels[i] not in index]
        if unknown:
            raise DataError(f"labels outside the class list: {shorten(unknown)}; classes are {shorten(classes, 20)}")
        return [index[labels[i]] for i in ids]

    def labelled(self, ids: Sequence[str], classes: Sequence[str], why: str) -> Labelled:
        """Returns those of some items that have a label.

        Raises:
            DataError: a label is outside the class list.
        """
        known = list(self.labels(ids)) if ids else []
        return list(zip(known, self.class_indices(known, classes, why), strict=True))

    def _pairs(self, table: str, column: str, ids: Sequence[str]) -> dict[str, str]:
        content = self.store.read_table(self.info.sidecar(table), columns=["id", column])
        content = content.filter(pc.is_in(content["id"], pa.array(ids, pa.string())))
        return dict(zip(content["id"].to_pylist(), content[column].to_pylist(), strict=True))
