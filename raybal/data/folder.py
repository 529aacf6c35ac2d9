"""A bare folder of media files: each is an item whose id is its path in the folder."""

from __future__ import annotations

import logging
import os
from collections import Counter

import pyarrow.fs as pafs

from raybal.errors import DataError
from raybal.store import Store, storage_errors

CLIPS = "mp4 m4v mov qt 3gp 3g2 mkv webm avi mpg mpeg vob ts mts m2ts flv wmv asf ogv mxf nut"
SOUNDS = "wav wave w64 flac ogg oga opus mp3 m4a aac ac3 eac3 aif aiff aifc au caf amr wma wv"
IMAGES = "png jpg jpeg bmp gif webp tif tiff avif"
_SUFFIXES = frozenset(f".{suffix}" for suffix in f"{CLIPS} {SOUNDS} {IMAGES}".split())

log = logging.getLogger(__name__)


def media_names(folder: Store) -> list[str]:
    """Returns the sorted paths of all media files below a folder; files of other kinds are counted in the log.

    Raises:
        DataError: there are none.
        StoreError: the folder cannot be listed.
    """
    shown = file_names(folder)
    names = [name for name in shown if _suffix(name) in _SUFFIXES]
    if not names:
        raise DataError(
            f"folder {folder.root} has no manifest.csv, no manifest.parquet, no Parquet files and no media files"
        )
    others = Counter(_suffix(name) or "no suffix" for name in shown if _suffix(name) not in _SUFFIXES)
    if others:
        listed = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common())
        log.info("%s: %d files are no media and left out: %s", folder.root, others.total(), listed)
    return names


def file_names(folder: Store) -> list[str]:
    """Returns the sorted paths of all files below a folder, without hidden ones.

    Raises:
        StoreError: the folder cannot be listed.
    """
    with storage_errors("list", folder.path()):
        selector = pafs.FileSelector(folder.path(), recursive=True)
        files = [i for i in folder.filesystem.get_file_info(selector) if i.type == pafs.FileType.File]
        return sorted(os.path.relpath(i.path, folder.path()) for i in files if not i.base_name.startswith("."))


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()
