"""What items cost of the label budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raybal.data.files import filesystem_of
from raybal.data.pool import Pool
from raybal.errors import ConfigError, DataError, did_you_mean, shorten
from raybal.settings import Settings, setting
from raybal.store import storage_errors
from raybal.tables import read_csv

ITEMS, SECONDS = "items", "seconds"


@dataclass(frozen=True)
class CostSettings(Settings):
    """What an item costs of the label budget."""

    unit: str = setting(
        ITEMS, help="what the label budget counts: items, seconds (of media), or the name of a column of cost.file"
    )
    file: str | None = setting(
        None, defines=False, help="CSV or Parquet file with the columns id and cost.unit, e.g. the manifest"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.file is None and self.unit not in (ITEMS, SECONDS):
            raise ConfigError(f"unit: {self.unit!r} is not {ITEMS} or {SECONDS}; give cost.file with this column")
        if self.file is not None and self.unit in (ITEMS, "id"):
            raise ConfigError(f"file: not looked at with cost.unit {self.unit}; name one of its columns there")


def item_costs(settings: CostSettings, pool: Pool) -> NDArray[np.float64]:
    """Returns what each item of a pool costs, [n]; items that are never asked for may lack a cost (nan).

    Raises:
        ConfigError, DataError, StoreError: an item of the training split has no cost, or one that is not above 0.
    """
    if settings.file is not None:
        costs = _of_file(settings.file, settings.unit, pool)
    else:
        costs = np.ones(len(pool)) if settings.unit == ITEMS else pool.seconds
    train = pool.positions_in("train")
    bad = train[~((costs[train] > 0) & np.isfinite(costs[train]))]
    if len(bad):
        source = settings.file or f"pool {pool.store.root}"
        raise DataError(
            f"cost.unit: {len(bad)} items have no {settings.unit} above 0 in {source}: {shorten(pool.ids_at(bad))}"
            + ("; it tells the length of media that were prepared with this version" * (settings.file is None))
        )
    return costs


def affordable(costs: Sequence[float], left: float) -> list[int]:
    """Returns the positions of what can be had for `left`, going through costs in order and passing over what is more
    than what is left then."""
    kept = []
    for position, cost in enumerate(costs):
        if cost <= left:
            kept.append(position)
            left -= cost
    return kept


def _of_file(file: str, column: str, pool: Pool) -> NDArray[np.float64]:
    filesystem, path = filesystem_of(file)
    with storage_errors("read", file), filesystem.open_input_file(path) as opened:
        if file.lower().endswith(".csv"):
            table = read_csv(opened.read())
        else:
            content = pq.ParquetFile(opened)
            table = content.read([name for name in ("id", column) if name in content.schema_arrow.names])
    for name in ("id", column):
        if name not in table.column_names:
            raise ConfigError(f"cost.file: {file} has no column {name!r}{did_you_mean(name, table.column_names)}")
    ids = table["id"].cast(pa.string())
    if len(pc.unique(ids)) < len(ids):
        raise DataError(f"cost.file: {file} has ids that occur more than once")
    found = pc.index_in(pool.ids, ids.combine_chunks())
    try:
        values = table[column].cast(pa.float64()).take(found)
    except pa.ArrowInvalid as error:
        raise DataError(f"cost.file: column {column!r} of {file} must be numbers: {error}") from error
    return values.to_numpy()
