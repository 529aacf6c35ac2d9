"""One chunk of items -> tensors: what every preparation task does, without Ray."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raybal.columns import tensor_column, tensor_field
from raybal.data.cells import read_cells
from raybal.data.chunk import Chunk, Converted, Preprocessing
from raybal.data.files import fingerprint_of, fingerprints, read_media, without_secrets
from raybal.data.schema import Modality
from raybal.data.sources import Source
from raybal.errors import InstallationError, StoreError
from raybal.media.clip import Clip, decode_clip
from raybal.media.container import IMAGE_KINDS, probe
from raybal.media.damage import MediaError, sniff
from raybal.media.image import decode_image

# What decoding a clip gives besides an image.
_TRACKS = ("video", "audio")


@dataclass
class _Item:
    """One item: its arrays, None where missing; its files' fingerprints; its tracks that are no modality; its length in
    seconds, if it has one."""

    values: dict[str, NDArray | None] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    seconds: float | None = None

    def take(self, clip: Clip) -> dict[str, NDArray | None]:
        """Returns the values of one of its clips, after noting how long that is."""
        self.seconds = max(clip.seconds, self.seconds or 0.0)
        return clip.values


class ItemError(Exception):
    """One item cannot be prepared: (modality, uri, reason)."""


def convert(
    chunk: Chunk,
    sources: tuple[Source, ...],
    modalities: tuple[Modality, ...],
    settings: Preprocessing,
    *,
    starting: Callable[[str], None] | None = None,
    deadly: Collection[str] = (),
) -> tuple[pa.Table, Converted]:
    """Prepares the items of a chunk; a damaged item is set aside with its reason and stops nothing.

    Args:
        chunk: the items.
        sources: the columns that media come from.
        modalities: of the pool.
        settings: what shapes the tensors.
        starting: called with each item's id before its media are touched.
        deadly: ids of items that are set aside untouched, since processes died over them.

    Returns:
        (the shard's table, what became of the items)

    Raises:
        DataError: the Parquet file that holds the items cannot be read.
        InstallationError: a library that decodes cannot be loaded.
    """
    arrays: dict[str, list[NDArray | None]] = {m.name: [] for m in modalities}
    result = Converted()
    by_name = {m.name: m for m in modalities}
    # A plain clip gives what no column of its own gives.
    of_clips = {m.name: m for m in modalities if m.name not in {s.modality for s in sources}}
    inside = [s.column for s in sources if s.kind != "uri"]
    for row, (name, cells) in enumerate(zip(chunk.ids, _cells(chunk, inside), strict=True)):
        if starting is not None:
            starting(name)
        uris = [uri for column in chunk.uris.values() if (uri := column[row])]
        values = {s: cells[s.column] if s.kind != "uri" else chunk.uris[s.column][row] for s in sources}
        try:
            if name in deadly:
                raise ItemError("all", "", "cannot be decoded: processes that tried it died")
            item = _item(values, by_name, of_clips, settings)
        except ItemError as error:
            modality, where, reason = error.args
            where = without_secrets(where or (uris[0] if uris else f"{chunk.file}#{chunk.rows[row]}"))
            now = fingerprint_of(fingerprints(uris), chunk.file_fingerprint)
            result.bad.append((name, where, modality, reason, now))
            continue
        for m in modalities:
            arrays[m.name].append(item.values.get(m.name))
        result.ids.append(name)
        result.present.append([item.values.get(m.name) is not None for m in modalities])
        result.contents.append(_content(item.values))
        result.seconds.append(item.seconds)
        result.fingerprints[name] = fingerprint_of(item.files, chunk.file_fingerprint, cells)
        for track in item.unused:
            result.unused[track] = result.unused.get(track, 0) + 1
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


def _cells(chunk: Chunk, columns: list[str]) -> Iterator[dict[str, Any]]:
    """Yields each item's cells of the columns that hold media."""
    if not columns:
        return itertools.repeat({}, len(chunk.ids))
    assert chunk.file is not None
    return read_cells(chunk.file, columns, chunk.rows)


def _item(
    cells: Mapping[Source, Any],
    modalities: Mapping[str, Modality],
    of_clips: Mapping[str, Modality],
    settings: Preprocessing,
) -> _Item:
    """Decodes one item.

    Raises:
        ItemError: it cannot be prepared.
        InstallationError: no item like it can be, here.
    """
    item = _Item()
    for source, cell in cells.items():
        if cell is None:
            continue
        name = source.modality or "clip"
        where = cell if source.kind == "uri" else ""
        try:
            if source.kind == "uri":
                cell, found = read_media(cell)
                item.files.append(found)
            if source.kind in ("features", "sequence"):
                item.values[name] = _numbers(cell, modalities[name], settings)
            elif source.modality is None:
                item.values |= _clip(item, cell, of_clips, settings)
                item.unused += _unused(cell, modalities)
            else:
                item.values[name] = _decode(item, cell, modalities[name], settings)
        except (MediaError, StoreError) as error:
            raise ItemError(name, where, str(error)) from error
        except InstallationError:
            raise
        # One file must not stop all others, whatever a decoder makes of it.
        except Exception as error:
            raise ItemError(name, where, f"cannot be decoded: {type(error).__name__}: {error}") from error
    if not any(v is not None for v in item.values.values()):
        raise ItemError("all", "", "nothing of it is there")
    return item


def _clip(
    item: _Item, source: bytes, modalities: Mapping[str, Modality], settings: Preprocessing
) -> dict[str, NDArray | None]:
    tracks = set(_TRACKS) & set(modalities)
    if "image" in modalities and (not tracks or sniff(source) in IMAGE_KINDS):
        return {"image": decode_image(source, settings.image)}
    return item.take(
        decode_clip(
            source,
            video=settings.video if "video" in tracks else None,
            audio=settings.audio if "audio" in tracks else None,
        )
    )


def _unused(source: bytes, modalities: Mapping[str, Modality]) -> list[str]:
    """Returns the tracks of a clip that are no modality of the pool."""
    if set(_TRACKS) <= set(modalities):
        return []
    info = probe(source)
    there = {"video": info.has_video, "audio": info.has_audio}
    return [track for track in _TRACKS if there[track] and track not in modalities]


def _decode(item: _Item, source: bytes, modality: Modality, settings: Preprocessing) -> NDArray | None:
    if modality.kind == "video":
        frames = item.take(decode_clip(source, video=settings.video))["video"]
        if frames is None:
            raise MediaError("wrong type: it has sound and no pictures")
        return frames
    if modality.kind == "audio":
        return item.take(decode_clip(source, audio=settings.audio))["audio"]
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
