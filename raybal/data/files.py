"""Reading the files that a manifest names, and seeing whether they have changed."""

from __future__ import annotations

import functools
import urllib.parse
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pyarrow.fs as pafs

from raybal.data.cells import hash_cells
from raybal.errors import StoreError
from raybal.media.damage import MediaError
from raybal.store import Store

# After so many files of one file system that cannot be looked up, and none that can, the others are not tried.
_GIVE_UP = 8


def read_media(uri: str) -> tuple[bytes, str]:
    """Returns (content, fingerprint) of a file.

    Raises:
        MediaError: it cannot be read.
        StoreError: its uri cannot be opened.
    """
    filesystem, path = filesystem_of(uri)
    try:
        info = filesystem.get_file_info(path)
        if info.type != pafs.FileType.File:
            raise MediaError("there is no such file")
        with filesystem.open_input_stream(path) as stream:
            return stream.read(), fingerprint(info)
    except OSError as error:
        raise MediaError(f"cannot be read: {error}") from error


def fingerprint(info: pafs.FileInfo) -> str:
    """Returns size and modification time of a file; empty for what is none."""
    return f"{info.size}:{info.mtime_ns}" if info.type == pafs.FileType.File else ""


def fingerprints(uris: Sequence[str]) -> list[str]:
    """Returns size and modification time of files, to see whether they changed; empty for one that is not there or
    cannot be looked up.

    Files of one file system are looked up together: a bucket answers thousands at a time.
    """
    found = dict.fromkeys(uris, "")
    by_filesystem: dict[int, tuple[pafs.FileSystem, list[tuple[str, str]]]] = {}
    for uri in found:
        try:
            filesystem, path = filesystem_of(uri)
        except StoreError:
            continue
        by_filesystem.setdefault(id(filesystem), (filesystem, []))[1].append((uri, path))
    for filesystem, pairs in by_filesystem.values():
        prints = _look_up(filesystem, [path for _, path in pairs])
        found |= {uri: now for (uri, _), now in zip(pairs, prints, strict=False)}
    return [found[uri] for uri in uris]


def _look_up(filesystem: pafs.FileSystem, paths: list[str]) -> list[str]:
    """Returns the fingerprints of files, or of the first few where none of these can be looked up."""
    try:
        return [fingerprint(info) for info in filesystem.get_file_info(paths)]
    except (OSError, ValueError):
        # One that cannot be looked up makes all fail: now one by one.
        prints: list[str] = []
    failed = 0
    for path in paths:
        if failed == len(prints) == _GIVE_UP:
            break
        try:
            prints.append(fingerprint(filesystem.get_file_info(path)))
        except (OSError, ValueError):
            prints.append("")
            failed += 1
    return prints


def item_fingerprints(uris: Sequence[Sequence[str | None]]) -> list[str]:
    """Returns the fingerprints of each item's files, from columns of uris."""
    cells = list({uri for column in uris for uri in column if uri})
    print_of = dict(zip(cells, fingerprints(cells), strict=True))
    return [" ".join(print_of[uri] for uri in row if uri) for row in zip(*uris, strict=True)]


def filesystem_of(uri: str) -> tuple[pafs.FileSystem, str]:
    """Returns (filesystem, path) of a local path or URI; a bucket is connected to once.

    Raises:
        StoreError: the URI cannot be opened.
    """
    if "://" not in uri:
        return _filesystem("/"), uri
    head, mark, options = uri.partition("?")
    scheme, _, rest = head.partition("://")
    bucket = rest.split("/", 1)[0]
    path = urllib.parse.unquote(rest)
    if scheme == "file":
        return _filesystem("/"), f"/{path.lstrip('/')}"
    return _filesystem(f"{scheme}://{bucket}{mark}{options}"), path


@functools.lru_cache(maxsize=64)
def _filesystem(root: str) -> pafs.FileSystem:
    return Store(root).filesystem


def without_secrets(uri: str) -> str:
    """Returns a uri without the key and password that it may carry, as it can be shown."""
    scheme, mark, rest = uri.partition("://")
    bucket, slash, path = rest.partition("/")
    return f"{scheme}{mark}***@{bucket.rpartition('@')[2]}{slash}{path}" if "@" in bucket else uri


def fingerprint_of(files: Collection[str], file: str, cells: Mapping[str, Any] | None = None) -> str:
    """Returns what tells whether an item is still what it was.

    Args:
        files: fingerprints of its own files.
        file: fingerprint of the Parquet file with its cells, or "".
        cells: its media cells. Their hash stands behind a "#", since a file that rows were added to is another one
            and its cells are the same.
    """
    listed = " ".join([*files, *([file] if file else [])])
    return f"{listed}#{hash_cells(cells)}" if cells else listed
