"""Which columns media come from, and what a modality may be called."""

from __future__ import annotations

import pyarrow as pa
import pytest
import torch

from raybal.data.sources import Source, find_sources
from raybal.errors import DataError
from raybal.models.fusion import FUSIONS


def schema(**columns):
    return pa.schema([("id", pa.string()), *columns.items()])


LISTS = pa.list_(pa.float32())
TAKEN = ["items", "type", "train", "forward", "keys", "half", "cpu", "_modules", "training"]


@pytest.mark.parametrize("name", [*TAKEN, "fused", "rna.v2", "1st", "with space", "-x", "é", "", "_x"])
@pytest.mark.parametrize("kind", [LISTS, pa.binary(), None])
def test_a_name_that_a_modality_cannot_have(name, kind):
    column, kind = (f"{name}_uri", pa.string()) if kind is None else (name, kind)
    with pytest.raises(DataError, match=r"^m\.csv: column .* gives a modality called .*; rename the column$") as error:
        find_sources(schema(**{column: kind}), "m.csv")
    assert f"column {column!r} gives a modality called {name!r}" in str(error.value)


@pytest.mark.parametrize("name", ["id", "label", "group", "split"])
def test_a_modality_called_like_a_column_of_every_table(name):
    with pytest.raises(DataError, match=f"column '{name}_uri' gives a modality called '{name}', and the name is taken"):
        find_sources(schema(**{f"{name}_uri": pa.string()}), "m.csv")


@pytest.mark.parametrize("name", ["video", "audio", "x", "RNA-seq_2", "mfcc13", "all", "clip", "classes"])
def test_a_name_that_is_accepted_is_one_in_a_model(name):
    assert find_sources(schema(**{name: LISTS}), "m.csv") == (Source(name, "features", name),)
    modules = torch.nn.ModuleDict({name: torch.nn.Linear(2, 3)})
    for fusion in ("concat", "film", "gated", "transformer"):
        FUSIONS[fusion]({name: 4, "other": 4}, 3)
    assert name in modules


def test_what_is_no_medium_may_be_called_anything():
    found = find_sources(schema(uri=pa.string(), **{"rna.v2": pa.string(), "items": pa.int64()}), "m.csv")
    assert found == (Source("uri", "uri", None),)


@pytest.mark.parametrize(
    "columns", [{"audio": pa.binary(), "audio_uri": pa.string()}, {"uri": pa.string(), "media": pa.binary()}]
)
def test_two_columns_of_one_modality(columns):
    first, second = columns
    with pytest.raises(DataError, match=f"columns '{first}' and '{second}' give the same modality"):
        find_sources(schema(**columns), "m.csv")


@pytest.mark.parametrize("column", ["uri", "audio_uri"])
@pytest.mark.parametrize("kind", [pa.binary(), pa.int64(), pa.list_(pa.string())])
def test_uris_are_text(column, kind):
    with pytest.raises(
        DataError, match=rf"^m\.parquet: column '{column}' must be text, and is {kind}".replace("<", ".")
    ):
        find_sources(schema(**{column: kind}), "m.parquet")


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.null(), pa.dictionary(pa.int32(), pa.string())])
def test_text_of_any_type_is_a_uri(kind):
    assert find_sources(schema(uri=kind), "m.parquet") == (Source("uri", "uri", None),)
