"""What a store was begun with: written when work on it starts, and compared at every later start."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import raybal
from raybal.errors import StoreError, shorten
from raybal.store import Store

_LEASE_FILES = "lease."


@dataclass(frozen=True)
class Kind:
    """What a store may hold.

    Attributes:
        noun: "experiment" or the like, for messages; `<noun>.yaml` is the file.
        format: of all files of such a store.
        hint: what a person can do beside choosing another store.
    """

    noun: str
    format: int
    hint: str = "give the old value, or choose another store"

    @property
    def file(self) -> str:
        """The file that says what was begun."""
        return f"{self.noun}.yaml"

    def write(
        self,
        store: Store,
        defines: Mapping[str, Any],
        settings: Mapping[str, Any],
        rows: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        """Writes what defines the work, and all settings of this start.

        Args:
            store: where it is begun.
            defines: values by key.
            settings: all of this start, plain.
            rows: what defines each row of a comparison, which may have others at another start.
        """
        content = {"format": self.format, "raybal": raybal.__version__, "defines": defines, "settings": settings}
        store.write_yaml(self.file, content)
        for row, own in (rows or {}).items():
            store.write_yaml(_row_file(row), own)

    def read(self, store: Store) -> dict[str, Any] | None:
        """Returns what `write` wrote last, or None if the store is empty.

        Raises:
            StoreError: something else lies there, or what is there is damaged or of another format.
        """
        name, root = self.file, store.root
        if not store.exists(name):
            foreign = [other for other in store.names() if not other.startswith((".", _LEASE_FILES))]
            if foreign:
                raise StoreError(
                    f"{root} is not the store of a{'n' if self.noun[0] in 'aeiou' else ''} {self.noun} (it has no "
                    f"{name}) and is not empty (it has {shorten(foreign)}); choose another folder"
                )
            return None
        begun = store.read_yaml(name)
        if not isinstance(begun, dict) or not {"format", "raybal"} <= set(begun):
            raise StoreError(f"{store.path(name)} is damaged: it does not say what was begun; choose another store")
        if begun["format"] != self.format:
            raise StoreError(
                f"store {root} was written in format {begun['format']} by raybal {begun['raybal']}; this is raybal "
                f"{raybal.__version__}, which reads format {self.format}. Use that version, or another store"
            )
        if not isinstance(begun.get("defines"), dict) or not isinstance(begun.get("settings"), dict):
            raise StoreError(f"{store.path(name)} is damaged: its settings are missing; choose another store")
        return begun

    def check(
        self, store: Store, defines: Mapping[str, Any], rows: Mapping[str, Mapping[str, Any]] | None = None
    ) -> None:
        """Compares what work was begun with, if it was, and what it is to go on with; arguments as `write` has them.

        Raises:
            StoreError: a value differs; the message names its key.
        """
        if (begun := self.read(store)) is not None:
            self.refuse_changes(store, begun["defines"], defines)
        for row, own in (rows or {}).items():
            if store.exists(name := _row_file(row)):
                self.refuse_changes(store, store.read_yaml(name), own, f"balancing.{row}.")

    def refuse_changes(self, store: Store, before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> None:
        """Compares what work was begun with and what it is to go on with.

        Args:
            store: where it was begun.
            before, now: values by key.
            prefix: of the keys, in messages.

        Raises:
            StoreError: a value differs; the message names its key.
        """
        for key in dict.fromkeys([*before, *now]):
            old, new = before.get(key), now.get(key)
            if old != new and key == "pool":
                raise StoreError(
                    f"store {store.root} was begun with another pool than the one that is given, or than it is now: "
                    f"its items, splits or tensors differ ({old} and {new}). Give the pool as it was, or choose "
                    "another store"
                )
            if old != new:
                raise StoreError(
                    f"store {store.root} was begun with {prefix}{key} = {old}, and now it is {new}. What defines the "
                    f"{self.noun} cannot change in the middle: {self.hint}"
                )


def _row_file(row: str) -> str:
    return f"rows/{row}.yaml"
