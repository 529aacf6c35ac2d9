"""Optuna's trials as one file in the store, which `optuna-dashboard` opens."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

from optuna.storages.journal import BaseJournalBackend

from raybal.store import Store

#: Its name in a store.
JOURNAL = "optuna.log"


class StoreJournal(BaseJournalBackend):
    """The log of Optuna's journal storage, in the format of its own file backend.

    It has one writer, the driver that holds the store's lease, so there is no lock that a killed driver could leave
    behind. `flush` replaces the file: what was appended since is lost with the driver, and nothing is ever half there.

    Args:
        store: of the sweep.
        name: of the file in it.
        check: raises a StoreError where another driver has taken over.
    """

    def __init__(self, store: Store, name: str, check: Callable[[], None] = lambda: None) -> None:
        self.store = store
        self.name = name
        self.check = check
        content = store.read_bytes(name).decode() if store.exists(name) else ""
        self._lines = content.splitlines()

    def read_logs(self, log_number_from: int) -> Iterable[dict[str, Any]]:
        return [json.loads(line) for line in self._lines[log_number_from:]]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        self._lines += [json.dumps(log, separators=(",", ":")) for log in logs]

    def flush(self) -> None:
        """Writes what was appended.

        Raises:
            StoreError: it cannot be written, or another driver has taken over.
        """
        self.check()
        self.store.write_bytes(self.name, "".join(f"{line}\n" for line in self._lines).encode())
