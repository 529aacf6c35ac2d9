"""What the parameters of a preparation make of an input."""

from __future__ import annotations

import pyarrow as pa
import pytest

from raybal.data.manifest import Manifest
from raybal.data.plan import PrepareConfig, class_list
from raybal.data.sources import Source

CONFIG = PrepareConfig(input="in", output="out")


def labelled(labels):
    ids = [f"i{k}" for k in range(len(labels))]
    nothing = pa.nulls(len(ids), pa.string())
    table = pa.table({"id": ids, "label": pa.array(labels, pa.string()), "group": nothing, "split": nothing})
    return Manifest(table, (Source("uri", "uri", None),), (), (), {})


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["10", "9", "-1", None], ("-1", "9", "10")),
        (["01", "1", "0"], ("0", "01", "1")),
        (["--5", "3"], ("--5", "3")),
        (["²", "3", "10"], ("10", "3", "²")),
        (["-", "1"], ("-", "1")),
        (["٣", "1"], ("1", "٣")),
        (["b", "a", "1"], ("1", "a", "b")),
        ([None], None),
    ],
)
def test_classes_are_in_the_order_of_their_numbers_where_all_are_numbers(labels, classes):
    assert class_list(CONFIG, labelled(labels), None) == classes
