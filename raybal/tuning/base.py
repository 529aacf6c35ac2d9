"""What sweeps of training runs and sweeps of loops share."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from raybal.lease import Lease
from raybal.material import Material
from raybal.store import Store
from raybal.tuning.config import BEGUN, FOLDERS, TuneConfig
from raybal.tuning.journal import JOURNAL, StoreJournal

LOOKS = "looks.yaml"


class SweepBase(ABC):
    """A sweep over one pool: what defines it, its journal, and how often it has looked at test items.

    Args:
        config: its settings.
        store: where it lies.
        lease: of the store, held before anything is run.

    Raises:
        ConfigError, DataError: it cannot begin with these settings.
    """

    def __init__(self, config: TuneConfig, store: Store, lease: Lease) -> None:
        self.config = dataclasses.replace(config, store=store.root)
        self.store = store
        self.lease = lease
        self.material = Material(config)
        _ = self.material.validation
        if config.seeds:
            _ = self.material.test

    @property
    @abstractmethod
    def keys(self) -> dict[str, Any]:
        """What defines the sweep."""

    @property
    def rows(self) -> dict[str, dict[str, Any]]:
        """What defines each of its rows, which may be others at another start."""
        return {}

    def check(self) -> None:
        """Raises a StoreError where the store has another sweep."""
        BEGUN.check(self.store, self.keys, self.rows)

    def begin(self) -> None:
        """Writes what defines the sweep and its rows."""
        self.store.sweep(FOLDERS)
        BEGUN.write(self.store, self.keys, dataclasses.asdict(self.config), self.rows)

    def journal(self) -> StoreJournal:
        """Returns the journal of all trials, for a start that runs them."""
        # What Ray Tune writes there is of no use to another start.
        self.store.clear("ray")
        return StoreJournal(self.store, JOURNAL, self.lease.check)

    def looks(self, choices: Mapping[str, int] | None = None) -> int:
        """Returns for how many different choices of trials of a row test items have been looked at, with these, if
        given."""
        before: dict[str, list[int]] = self.store.read_yaml(LOOKS) if self.store.exists(LOOKS) else {}
        if choices is not None:
            for row, number in choices.items():
                before[row] = list(dict.fromkeys([*before.get(row, []), number]))
            self.store.write_yaml(LOOKS, before)
        return max(map(len, before.values()), default=0)
