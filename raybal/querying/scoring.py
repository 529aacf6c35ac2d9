"""Scoring one shard of the pool: a predictor's view of its unlabelled items, without labels."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from raybal import hashing
from raybal.analysis.contribution import contributions, shapley_values
from raybal.balancing.base import Predictor
from raybal.columns import read_tensor, tensor_column, tensor_field
from raybal.data.batches import fixed_batches
from raybal.data.pool import Pool
from raybal.data.room import room
from raybal.errors import RaybalError
from raybal.predictor import load_predictor
from raybal.querying.base import EMBEDDING, Holder, QueryStrategy, Scored
from raybal.store import Store


class ShardScorer:
    """Scores shards of a pool into files of a store.

    Nothing is opened when it is made: in another process an error there would reach nobody.

    Args:
        pool, store: roots.
    """

    def __init__(self, pool: str, store: str) -> None:
        self.roots = (pool, store)
        self.model: tuple[str, Any] = ("", None)

    @functools.cached_property
    def pool(self) -> Pool:
        """The pool that is scored."""
        return Pool(self.roots[0])

    @functools.cached_property
    def store(self) -> Store:
        """The experiment's store."""
        return Store(self.roots[1])

    @functools.cached_property
    def device(self) -> torch.device:
        """Where the model runs."""
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def score(self, file: str, positions: NDArray[np.int64], model: str, strategy: QueryStrategy) -> int:
        """Writes the scores of items of one shard, with what the strategy keeps of each; returns how many they are."""
        if self.model[0] != model:
            self.model = (model, load_predictor(self.store, model, self.device)[0])
        size = strategy.settings.batch_size
        table = score_shard(self.pool, positions, self.model[1], strategy, device=self.device, batch_size=size)
        self.store.write_table(file, table, compression="none")
        return len(table)


@torch.no_grad()
def score_shard(
    pool: Pool,
    positions: NDArray[np.int64],
    predictor: Predictor,
    strategy: QueryStrategy,
    *,
    device: torch.device,
    batch_size: int,
) -> pa.Table:
    """Scores items of one shard in the order of their ids, in batches of one size.

    The last batch is filled up with zeros, so that scoring again gives the same bytes.

    Args:
        positions: of the items in the pool, all in the same shard.

    Returns:
        A table of id, predicted (class index), confidence (of the prediction), contribution [M], present [M], and
        the strategy's own columns.
    """
    ids = np.array(pool.ids_at(positions), dtype=object)
    by_id = np.argsort(ids)
    ids, positions = ids[by_id], positions[by_id]
    values, _ = pool.read(positions)
    parts: list[dict[str, Tensor]] = []
    for run in fixed_batches(len(ids), batch_size):
        inputs = {m: torch.from_numpy(_filled(array[run], batch_size)).to(device) for m, array in values.items()}
        present = torch.from_numpy(_filled(pool.present[positions[run]], batch_size)).to(device)
        encoded = predictor.encode(inputs, present)
        phi, probabilities = shapley_values(
            lambda mask, e=encoded: predictor.logits(e.fusion_inputs, mask),  # type: ignore[misc]
            present,
        )
        predicted = probabilities.argmax(1)
        scored = Scored(encoded, probabilities, predicted, contributions(phi, predicted))
        columns = item_columns(strategy, predictor, scored)
        parts.append({name: column[: len(run)].cpu() for name, column in columns.items()})
    return _table(ids.tolist(), parts)


def item_columns(strategy: QueryStrategy, predictor: Predictor, scored: Scored) -> dict[str, Tensor]:
    """Returns all that is kept of a batch of items, by name, each [n, ...]."""
    columns = strategy.columns(predictor, scored)
    if strategy.settings.explain and not columns.keys() & {EMBEDDING, "h"}:
        columns[EMBEDDING] = torch.cat(list(scored.encoded.embeddings.values()), dim=1)
    if strategy.settings.half:
        whole, columns = columns, {k: _half(v) for k, v in columns.items()}
        if any(bool((v.isfinite() & ~columns[k].isfinite()).any()) for k, v in whole.items()):
            raise RaybalError("query.half: an embedding has a number above 65504, which half precision does not hold")
    return {
        "predicted": scored.predicted.int(),
        "confidence": scored.probabilities.amax(1),
        "contribution": scored.contributions,
        "present": scored.encoded.present.to(torch.uint8),
        **columns,
    }


def _half(values: Tensor) -> Tensor:
    return values.half() if values.ndim > 1 and values.is_floating_point() else values


def _filled(array: NDArray, size: int) -> NDArray:
    if len(array) == size:
        return np.ascontiguousarray(array)
    filled = np.zeros((size, *array.shape[1:]), array.dtype)
    filled[: len(array)] = array
    return filled


def _table(ids: list[str], parts: list[dict[str, Tensor]]) -> pa.Table:
    fields, arrays = [pa.field("id", pa.string())], [pa.array(ids, pa.string())]
    for name in parts[0] if parts else ():
        values = torch.cat([part[name] for part in parts]).numpy()
        if values.ndim == 1:
            arrays.append(pa.array(values))
            fields.append(pa.field(name, arrays[-1].type))
        else:
            arrays.append(tensor_column(values))
            fields.append(tensor_field(name, values.shape[1:], values.dtype.name))
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields))


def read_holder(store: Store, names: Sequence[str]) -> Holder:
    """Reads score tables into one holder. What is large lies in a mapped file, so it may be more than memory.

    Args:
        names: of the tables in the store, at least one.
    """
    ids = [i for name in names for i in store.read_table(name, columns=["id"])["id"].to_pylist()]
    columns: dict[str, NDArray] = {}
    start = 0
    for name in names:
        part = read_columns(store.read_table(name))
        for key, values in part.items():
            if key not in columns:
                columns[key] = room((len(ids), *values.shape[1:]), values.dtype)
            columns[key][start : start + len(values)] = values
        start += len(next(iter(part.values())))
    return Holder(ids, hashing.hash_ids(ids), columns)


def read_columns(table: pa.Table) -> dict[str, NDArray]:
    """Returns all columns of a score table but the id as arrays."""
    columns = {}
    for field in table.schema:
        if field.metadata and b"shape" in field.metadata:
            columns[field.name] = read_tensor(table, field.name)[0]
        elif field.name != "id":
            columns[field.name] = table.column(field.name).to_numpy()
    return columns
