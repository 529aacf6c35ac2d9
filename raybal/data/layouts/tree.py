"""A folder of a data set: its lists and its media, found by their names wherever they lie in it.

Archives are unpacked into folders of many names, so what counts is the name of a file and not the folder it is in.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence

import pyarrow.fs as pafs

from raybal.data.folder import file_names
from raybal.errors import DataError
from raybal.store import Store, storage_errors


class Tree:
    """All files below a folder.

    Args:
        place: the folder, a path or URI.
        title: the data set, for messages.

    Attributes:
        names: sorted paths of all files, relative to the folder.
        offered: the media that were asked for.

    Raises:
        DataError: there is no such folder.
    """

    def __init__(self, place: str, title: str) -> None:
        self.store = Store(place)
        self.title = title
        with storage_errors("look for", place):
            kind = self.store.filesystem.get_file_info(self.store.path()).type
        if kind != pafs.FileType.Directory:
            raise DataError(f"there is no folder {place}; give the folder that holds {title}")
        self.names = file_names(self.store)
        self.offered: set[str] = set()

    def find(self, name: str) -> str | None:
        """Returns the path of the file of this name that lies nearest to the top, or None.

        Raises:
            DataError: several lie equally near.
        """
        found = [path for path in self.names if os.path.basename(path) == name]
        nearest = [path for path in found if path.count("/") == min(p.count("/") for p in found)]
        if len(nearest) > 1:
            raise DataError(
                f"{self.store.root} has several files {name}: {', '.join(nearest)}; give the folder of the right one "
                "with --layout.lists"
            )
        return nearest[0] if nearest else None

    def lines(self, name: str) -> list[str]:
        """Returns the lines of a list that are not empty.

        Raises:
            DataError: there is no such list, or it is no text.
        """
        path = self.find(name)
        if path is None:
            raise self.unlike(name, "; lists that are in another folder are given with --layout.lists")
        return self.read(path)

    def read(self, path: str) -> list[str]:
        """Returns the lines of a text file that are not empty."""
        try:
            text = self.store.read_bytes(path).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise DataError(f"{self.store.path(path)} is not text in UTF-8") from error
        return [line for line in text.splitlines() if line.strip()]

    def rows(self, name: str, columns: Sequence[str], separator: str = ",") -> list[list[str]]:
        """Returns the rows of a list without a header; one that repeats the columns is left out.

        Raises:
            DataError: there is no such list, or a line of it has fewer columns.
        """
        rows = list(csv.reader(self.lines(name), delimiter=separator))
        for row in rows:
            if len(row) < len(columns):
                raise DataError(
                    f"{self.store.root}: {name} has a line {separator.join(row)!r}, and "
                    f"{separator.join(columns)!r} was expected"
                )
        return [row for row in rows if row[: len(columns)] != list(columns)]

    def media(self, suffix: str, expected: str) -> dict[str, str]:
        """Returns the path of each medium by its name without the suffix; of two of a name, the one that sorts first.

        Args:
            suffix: of the files, e.g. ".mp4".
            expected: where one lies in the distribution, for the message.

        Raises:
            DataError: there are none.
        """
        paths = [path for path in self.names if path.lower().endswith(suffix)]
        if not paths:
            raise self.unlike(expected)
        self.offered.update(paths)
        # Backwards, so that the first one stays.
        return {os.path.basename(path)[: -len(suffix)]: path for path in reversed(paths)}

    def unlike(self, expected: str, advice: str = "") -> DataError:
        """Returns the error of a folder that is not the data set's."""
        return DataError(
            f"{self.store.root} does not look like {self.title}: there is no {expected} in it, nor in a folder below "
            f"it{advice}"
        )
