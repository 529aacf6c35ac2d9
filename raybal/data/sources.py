"""The columns of a manifest that media come from, by their name and type, and what a modality may be called."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import pyarrow as pa
from torch import nn

from raybal.errors import DataError

SourceKind = Literal["uri", "bytes", "features", "sequence"]
# What is no medium.
PLAIN = ("id", "label", "group", "split")

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")


@dataclass(frozen=True)
class Source:
    """One column that media come from.

    Attributes:
        column: its name.
        kind: what a cell holds.
        modality: the modality that it feeds; None where a clip's tracks decide.
    """

    column: str
    kind: SourceKind
    modality: str | None


def find_sources(schema: pa.Schema, path: str) -> tuple[Source, ...]:
    """Returns the columns that media come from.

    Raises:
        DataError: there is none, two feed the same modality, or one feeds a modality that cannot be called so.
    """
    sources: list[Source] = []
    for field in schema:
        kind = source_kind(field)
        if kind is None:
            continue
        name = None if field.name in ("uri", "media") else field.name.removesuffix("_uri")
        if name is not None:
            _check_name(field.name, name, path)
        if kind == "uri" and not _is_text(field.type):
            raise DataError(f"{path}: column {field.name!r} must be text, and is {field.type}")
        for other in sources:
            if other.modality == name:
                raise DataError(
                    f"{path}: columns {other.column!r} and {field.name!r} give the same modality; rename one of them, "
                    "or leave it out"
                )
        sources.append(Source(field.name, kind, name))
    if not sources:
        raise DataError(
            f"{path} has no column that media could come from (it has {', '.join(schema.names)}); "
            "give uri, <modality>_uri, bytes, or lists of numbers"
        )
    return tuple(sources)


def source_kind(field: pa.Field) -> SourceKind | None:
    """Returns what the cells of a column hold, or None for a column that is left alone."""
    kind = field.type
    if field.name in PLAIN:
        return None
    if field.name == "uri" or field.name.endswith("_uri"):
        return "uri"
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return "bytes"
    if _is_list(kind):
        inner = kind.value_type
        if pa.types.is_floating(inner) or pa.types.is_integer(inner):
            return "features"
        if _is_list(inner) and (pa.types.is_floating(inner.value_type) or pa.types.is_integer(inner.value_type)):
            return "sequence"
    return None


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return any(is_kind(kind) for is_kind in (pa.types.is_string, pa.types.is_large_string, pa.types.is_null))


def _check_name(column: str, name: str, path: str) -> None:
    """A modality's name is a column of every shard, a part of the model, and a key in settings and reports."""
    if not _NAME.fullmatch(name):
        why = "accepted are letters, digits, _ and -, beginning with a letter"
    elif name == "fused":
        why = "the head over all modalities is called so"
    elif name in PLAIN or name in _names_in_a_model():
        why = "the name is taken"
    else:
        return
    raise DataError(f"{path}: column {column!r} gives a modality called {name!r}, and {why}; rename the column")


@lru_cache(maxsize=1)
def _names_in_a_model() -> frozenset[str]:
    """Encoders and heads are kept by modality in a ModuleDict, whose own attributes cannot be keys."""
    return frozenset(dir(nn.ModuleDict()))
