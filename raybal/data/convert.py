"""One chunk of items -> tensors: what every preparation task does, without Ray."""

from __future__ import annotations

import functools
import hashlib
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raybal.columns import tensor_column, tensor_field
from raybal.data.manifest import Source
from raybal.data.schema import Modality
from raybal.errors import StoreError
from raybal.media.audio import AudioSettings
from raybal.media.clip import decode_audio, decode_clip, decode_video
from raybal.media.damage import MediaError
from raybal.media.image import ImageSettings, decode_image
from raybal.media.video import VideoSettings
from raybal.settings import Settings, setting
from raybal.store import Store


@dataclass(frozen=True)
class SequenceSettings(Settings):
    """How precomputed sequences are brought to one length."""

    steps: int | None = setting(
        None,
        ge=1,
        help="steps of a prepared sequence: longer ones are cut, shorter ones filled with zeros; none: the "
        "median of the first items looked at",
    )


@dataclass(frozen=True)
class Preprocessing(Settings):
    """All parameters that shape the tensors."""

    video: VideoSettings = setting(factory=VideoSettings, help="frames")
    audio: AudioSettings = setting(factory=AudioSettings, help="log-mel spectrograms")
    image: ImageSettings = setting(factory=ImageSettings, help="still images")
    sequence: SequenceSettings = setting(factory=SequenceSettings, help="precomputed sequences")


@dataclass(frozen=True)
class Chunk:
    """The items of one shard to be made.

    Attributes:
        name: of the shard, a hash of everything that its content depends on but the files' own content.
        ids: in order.
        uris: {column: uri or None of each item}.
        file: Parquet file that holds the media columns, if any, and its size and time.
        rows: rows of the items in that file.
        train: whether each item is in the training split, whose statistics models standardise with.
    """

    name: str
    ids: tuple[str, ...]
    uris: Mapping[str, tuple[str | None, ...]]
    file: str | None
    file_fingerprint: str
    rows: tuple[int, ...]
    train: tuple[bool, ...]


@dataclass
class Converted:
    """What became of a chunk.

    Attributes:
        ids: of the items prepared, in the order of the shard's rows.
        present: bool [n, M].
        contents: a hash of each item's tensors, in the order of ids.
        fingerprints: size and time of each item's files.
        bad: (id, uri, modality, reason, fingerprint) of the items that could not be.
        sums: {m: ([count], sums, sums of squares)} over the training items, per channel or dimension, float64.
    """

    ids: list[str] = field(default_factory=list)
    present: list[list[bool]] = field(default_factory=list)
    contents: list[str] = field(default_factory=list)
    fingerprints: dict[str, str] = field(default_factory=dict)
    bad: list[tuple[str, ...]] = field(default_factory=list)
    sums: dict[str, tuple[list[float], ...]] = field(default_factory=dict)


class ItemError(Exception):
    """One item cannot be prepared: (modality, uri, reason)."""


def convert(
    chunk: Chunk, sources: tuple[Source, ...], modalities: tuple[Modality, ...], settings: Preprocessing
) -> tuple[pa.Table, Converted]:
    """Prepares the items of a chunk; a damaged item is set aside with its reason and stops nothing.

    Returns:
        (the shard's table, what became of the items)
    """
    cells = _cells(chunk, sources)
    arrays: dict[str, list[NDArray | None]] = {m.name: [] for m in modalities}
    result = Converted()
    by_name = {m.name: m for m in modalities}
    for row, item in enumerate(chunk.ids):
        uris = [chunk.uris[s.column][row] or "" for s in sources if s.kind == "uri"]
        uri = uris[0] if uris else f"{chunk.file}#{chunk.rows[row]}"
        try:
            values, prints = _item({s: cells[s.column][row] for s in sources}, by_name, settings)
        except ItemError as error:
            modality, where, reason = error.args
            now = " ".join(fingerprints([u for u in uris if u])) if uris else chunk.file_fingerprint
            result.bad.append((item, where or uri, modality, reason, now))
            continue
        for m in modalities:
            arrays[m.name].append(values.get(m.name))
        result.ids.append(item)
        result.present.append([values.get(m.name) is not None for m in modalities])
        result.contents.append(_content(values))
        result.fingerprints[item] = prints
    train = dict(zip(chunk.ids, chunk.train, strict=True))
    counts = np.array([train[i] for i in result.ids], bool)
    fields, columns = [pa.field("id", pa.string())], [pa.array(result.ids, pa.string())]
    for k, m in enumerate(modalities):
        present = np.array([p[k] for p in result.present], bool)
        zero = np.zeros(m.shape, m.dtype)
        stacked = np.stack([zero if a is None else a for a in arrays[m.name]] or [zero])[: len(result.ids)]
        result.sums[m.name] = _sums(stacked[present & counts], m)
        fields.append(tensor_field(m.name, m.shape, m.dtype))
        columns.append(tensor_column(stacked, present))
    return pa.Table.from_arrays(columns, schema=pa.schema(fields)), result


def _content(values: Mapping[str, NDArray | None]) -> str:
    """Returns a hash of an item's tensors."""
    state = hashlib.blake2b(digest_size=8)
    for name, array in sorted(values.items()):
        if array is not None:
            state.update(name.encode())
            state.update(np.ascontiguousarray(array).data)
    return state.hexdigest()


def _cells(chunk: Chunk, sources: tuple[Source, ...]) -> dict[str, list[Any]]:
    """Returns the cells of every source column; uris stay uris."""
    cells: dict[str, list[Any]] = {s.column: list(chunk.uris[s.column]) for s in sources if s.kind == "uri"}
    inside = [s.column for s in sources if s.kind != "uri"]
    if not inside:
        return cells
    assert chunk.file is not None
    store = Store(chunk.file)
    file = pq.ParquetFile(store.path(), filesystem=store.filesystem, memory_map=store.is_local)
    starts = np.concatenate([[0], np.cumsum([file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)])])
    groups = np.unique(np.searchsorted(starts, chunk.rows, side="right") - 1)
    table = file.read_row_groups(groups.tolist(), columns=inside)
    offset = np.concatenate([np.arange(starts[g], starts[g + 1]) for g in groups])
    table = table.take(pa.array(np.searchsorted(offset, chunk.rows)))
    return cells | {column: table[column].to_pylist() for column in inside}


def _item(
    cells: Mapping[Source, Any], modalities: Mapping[str, Modality], settings: Preprocessing
) -> tuple[dict[str, NDArray | None], str]:
    """Returns ({modality: array or None if it is missing}, fingerprint of the files)."""
    values: dict[str, NDArray | None] = {}
    fingerprints: list[str] = []
    for source, cell in cells.items():
        name = source.modality or "clip"
        where = cell if source.kind == "uri" and cell else ""
        try:
            if cell is None:
                continue
            if source.kind == "uri":
                cell, found = read_media(cell)
                fingerprints.append(found)
            if source.kind in ("features", "sequence"):
                values[name] = _numbers(cell, modalities[name], settings)
            elif source.modality is None:
                values |= _clip(cell, modalities, settings)
            else:
                values[name] = _decode(cell, modalities[name], settings)
        except (MediaError, StoreError) as error:
            raise ItemError(name, where, str(error)) from error
    if not any(v is not None for v in values.values()):
        raise ItemError("all", "", "nothing of it is there")
    return values, " ".join(fingerprints)


def _clip(source: bytes, modalities: Mapping[str, Modality], settings: Preprocessing) -> dict[str, NDArray | None]:
    if "image" in modalities:
        return {"image": decode_image(source, settings.image)}
    return decode_clip(
        source,
        video=settings.video if "video" in modalities else None,
        audio=settings.audio if "audio" in modalities else None,
    )


def _decode(source: bytes, modality: Modality, settings: Preprocessing) -> NDArray | None:
    if modality.kind == "video":
        return decode_video(source, settings.video)
    if modality.kind == "audio":
        return decode_audio(source, settings.audio)
    return decode_image(source, settings.image)


def _numbers(cell: Any, modality: Modality, settings: Preprocessing) -> NDArray:
    try:
        array = np.asarray(cell, np.float32)
    except (TypeError, ValueError) as error:
        raise MediaError(f"not numbers: {error}") from error
    if modality.kind == "sequence":
        if array.ndim != 2 or array.shape[1] != modality.shape[1]:
            raise MediaError(f"shape {array.shape}, and {('any', modality.shape[1])} was expected")
        filled = np.zeros(modality.shape, np.float32)
        filled[: len(array)] = array[: len(filled)]
        array = filled
    if array.shape != modality.shape:
        raise MediaError(f"shape {array.shape}, and {modality.shape} was expected")
    if not np.isfinite(array).all():
        raise MediaError("a number is not finite")
    return array


def read_media(uri: str) -> tuple[bytes, str]:
    """Returns (content, fingerprint) of a file.

    Raises:
        MediaError: it cannot be read.
    """
    filesystem, path = filesystem_of(uri)
    try:
        info = filesystem.get_file_info(path)
        if info.type != pafs.FileType.File:
            raise MediaError("there is no such file")
        with filesystem.open_input_stream(path) as stream:
            return stream.read(), _fingerprint(info)
    except OSError as error:
        raise MediaError(f"cannot be read: {error}") from error


def fingerprints(uris: Sequence[str]) -> list[str]:
    """Returns size and modification time of files, to see whether they changed; empty for one that is not there.

    Files of one file system are looked up together: a bucket answers thousands at a time.
    """
    found: dict[str, str] = {}
    by_filesystem: dict[int, tuple[pafs.FileSystem, dict[str, str]]] = {}
    for uri in uris:
        filesystem, path = filesystem_of(uri)
        by_filesystem.setdefault(id(filesystem), (filesystem, {}))[1][path] = uri
    for filesystem, paths in by_filesystem.values():
        for info in filesystem.get_file_info(list(paths)):
            found[paths[info.path]] = _fingerprint(info)
    return [found[uri] for uri in uris]


def _fingerprint(info: pafs.FileInfo) -> str:
    return f"{info.size}:{info.mtime_ns}" if info.type == pafs.FileType.File else ""


def filesystem_of(uri: str) -> tuple[pafs.FileSystem, str]:
    """Returns (filesystem, path) of a local path or URI; a bucket is connected to once."""
    if "://" not in uri:
        return _filesystem("/"), uri
    head, mark, options = uri.partition("?")
    scheme, _, rest = head.partition("://")
    bucket = rest.split("/", 1)[0]
    path = urllib.parse.unquote(rest)
    return _filesystem(f"{scheme}://{bucket}{mark}{options}"), path if scheme != "file" else f"/{path.lstrip('/')}"


@functools.lru_cache(maxsize=64)
def _filesystem(root: str) -> pafs.FileSystem:
    return Store(root).filesystem


def _sums(values: NDArray, modality: Modality) -> tuple[list[float], ...]:
    """Returns ([count], sums, sums of squares) per channel or dimension, or over everything for audio."""
    if modality.kind in ("video", "image"):
        flat = np.moveaxis(values, -3, -1).reshape(-1, modality.shape[-3])
    elif modality.kind == "audio":
        flat = values.reshape(-1, 1)
    else:
        flat = values.reshape(-1, modality.shape[-1])
    flat = flat.astype(np.float32) if flat.dtype == np.uint8 else flat
    total = flat.sum(0, dtype=np.float64)
    squares = np.einsum("nd,nd->d", flat, flat, dtype=np.float64, casting="unsafe")
    return [float(len(flat))], total.tolist(), squares.tolist()
